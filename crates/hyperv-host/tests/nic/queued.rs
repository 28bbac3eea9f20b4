//! A NIC with all its queues in one hand, against the host's service.

use hyperv_host::memory::{GuestMemory, GuestRam};
use hyperv_host::nic::{GuestView, NicFault, NicService, NicServiceConfig, NicServiceEvent};
use hyperv_host::switch::{Offered, PortConfig, SwitchPort, WireConfig};
use netvsc::adapter::{Refused, Synthetic, append};
use netvsc::nic::{
    ConfigError, Lack, Lending, PageSlice, PagedFrame, QueueError, QueueTotals, QueuedNic,
    SharedBuffer, Step, TxWork,
};
use netvsc::{Nic, NicConfig, NicEvent, Path};
use vmbus::channel::{Channel, SignalFlag};
use vmbus::memory::{PageList, SharedMemory, SharedPages, WeakPages};
use vmbus::time::earliest;
use vmbus::{GpadlId, Instant, Pfn, Platform};

use crate::world::{MAC, PEER, ROOMY, connect};

struct Wide {
    ram: GuestRam,
    service: NicService,
    port: SwitchPort,
    nic: QueuedNic,
    to_host: SignalFlag,
    to_guest: SignalFlag,
    buffers: [(GpadlId, PageList); 2],
    now: Instant,
    received: Vec<Vec<u8>>,
    at_peer: Vec<Vec<u8>>,
    events: Vec<NicEvent>,
    /// Sub-channels that the host offers, not opened yet.
    offered: u16,
}

fn wide(queues: u16) -> Wide {
    let ram = GuestRam::new(7, 4096);
    let mut config = NicServiceConfig::new(MAC);
    config.policy.max_queues = 8;
    let mut service = NicService::new(config);
    let wire = WireConfig::instant();
    let config = PortConfig { to_peer: wire, from_peer: wire, ..PortConfig::default() };
    let mut port = SwitchPort::new(config);
    let (to_host, to_guest) = (SignalFlag::new(), SignalFlag::new());
    let signals = [&to_host, &to_guest];
    let (channel, buffers, [receive, send]) =
        connect(&ram, &mut service, &mut port, signals, &ROOMY);
    let config = NicConfig { queues, lend_from: 0, ..NicConfig::default() };
    let nic = Nic::new(channel, receive, Some(send), config, Instant::ZERO).unwrap();
    let mut key = [0; 40];
    key.iter_mut().enumerate().for_each(|(at, byte)| *byte = (at * 37 + 11) as u8);
    let mut wide = Wide {
        ram,
        service,
        port,
        nic: QueuedNic::new(nic, key),
        to_host,
        to_guest,
        buffers,
        now: Instant::ZERO,
        received: Vec::new(),
        at_peer: Vec::new(),
        events: Vec::new(),
        offered: 0,
    };
    wide.settle();
    assert!(matches!(wide.events[0], NicEvent::Ready { .. }));
    wide
}

impl Wide {
    fn host(&mut self) {
        let Self { service, port, buffers, ram, now, .. } = self;
        let gpadl =
            |id| buffers.iter().find(|(known, _)| *known == id).map(|(_, pages)| pages.clone());
        let pages = |frames: &[Pfn]| ram.map(frames).ok();
        service.poll(*now, GuestView { gpadl: &gpadl, pages: &pages }, port);
        while let Some(event) = self.service.poll_event() {
            match event {
                NicServiceEvent::OfferSubChannels { count } => self.offered += count,
                NicServiceEvent::Failed(why) => panic!("{why}"),
                _ => {}
            }
        }
        let port = &mut self.port;
        self.at_peer.extend(std::iter::from_fn(|| port.peer_receive(*now)));
    }

    fn guest(&mut self) {
        let Self { nic, received, now, .. } = self;
        let polled = Synthetic::poll(nic, *now, &mut |frame| {
            let mut copy = Vec::new();
            append(frame, &mut copy);
            received.push(copy);
        });
        polled.unwrap();
        self.events.extend(std::iter::from_fn(|| Synthetic::poll_event(nic)));
    }

    /// Everybody talks until nobody has anything to say at this moment.
    fn settle(&mut self) {
        for _ in 0..10_000 {
            let due = |at: Option<Instant>| at.is_some_and(|at| at <= self.now);
            let woken = self.port.take_wake(Path::Synthetic, self.now);
            let host = self.to_host.take() | woken | due(self.service.poll_deadline());
            let guest = self.to_guest.take() | due(Synthetic::poll_deadline(&self.nic));
            if host {
                self.host();
            }
            if guest {
                self.guest();
            }
            if !host && !guest {
                return;
            }
        }
        panic!("never at rest");
    }

    /// A deadline passes.
    fn wait(&mut self) {
        let at = earliest(self.service.poll_deadline(), Synthetic::poll_deadline(&self.nic));
        self.now = at.expect("something is waited for");
        self.settle();
    }

    fn open(&mut self, number: u16) {
        let rings = self.ram.allocate(34).unwrap();
        let (up, down) = (rings.slice(0, 17).unwrap(), rings.slice(17, 17).unwrap());
        let map = |pages: &SharedPages| self.ram.map(pages.frames()).unwrap();
        let host = Channel::from_parts(map(&down), map(&up), self.to_guest.clone()).unwrap();
        let guest = Channel::from_parts(up, down, self.to_host.clone()).unwrap();
        self.service.open_queue(number, host, &mut self.port);
        self.nic.add_queue(number, guest).unwrap();
        self.host();
        self.guest();
    }

    fn peer_sends(&mut self, frame: &[u8]) {
        assert_eq!(self.port.peer_transmit(frame, self.now), Offered::Accepted);
    }

    /// The NIC goes down in order and begins anew on another channel, with so many channels in all.
    fn begin_anew(&mut self, queues: u16) {
        self.nic.shutdown(self.now);
        self.settle();
        assert_eq!(self.events.last(), Some(&NicEvent::Stopped));
        self.service.close(&mut self.port);
        self.nic.nic_mut().set_queues(queues).unwrap();
        let Self { ram, service, port, nic, to_host, to_guest, now, .. } = self;
        let signals = [&*to_host, &*to_guest];
        let (channel, buffers, [receive, send]) = connect(ram, service, port, signals, &ROOMY);
        self.buffers = buffers;
        drop(nic.restart(channel, receive, Some(send), *now).unwrap());
        self.settle();
        self.open_all();
    }

    /// As many frames as these of 32 flows in either direction.
    fn both_ways(&mut self, frames: u8) {
        for number in 0..frames {
            for flow in 0..32 {
                self.nic.transmit(&udp(false, flow, number)).unwrap();
                self.peer_sends(&udp(true, flow, number));
            }
            self.nic.flush();
            self.settle();
        }
        in_order(&std::mem::take(&mut self.at_peer), 32, frames);
        in_order(&std::mem::take(&mut self.received), 32, frames);
    }

    /// Opens everything that the host offers.
    fn open_all(&mut self) {
        for number in 1..=std::mem::take(&mut self.offered) {
            self.open(number);
        }
        self.settle();
    }
}

/// A UDP frame of one of many flows.
fn udp(to_guest: bool, flow: u8, number: u8) -> Vec<u8> {
    let [to, from] = if to_guest { [MAC, PEER] } else { [PEER, MAC] };
    let mut frame = [to.0, from.0].concat();
    frame.extend([8, 0, 0x45, 0, 0, 46, 0, 0, 0, 0, 64, 17, 0, 0, 10, 0, 0, flow, 10, 0, 0, 2]);
    frame.extend([0x10, 0, 0x20, 0, 0, 26, 0, 0]);
    frame.resize(59, 0);
    frame.push(number);
    frame
}

fn in_order(frames: &[Vec<u8>], flows: u8, each: u8) {
    assert_eq!(frames.len(), usize::from(flows) * usize::from(each));
    for flow in 0..flows {
        let mine = frames.iter().filter(|frame| frame[29] == flow).map(|frame| frame[59]);
        assert!(mine.eq(0..each), "flow {flow} arrives whole and in order");
    }
}

#[test]
fn queues_are_asked_for_and_used_both_ways_without_a_word_of_the_owners() {
    let mut wide = wide(4);
    assert!(wide.events.contains(&NicEvent::QueuesGranted { count: 3 }));
    wide.open_all();
    assert_eq!(wide.nic.channels(), 4);
    wide.both_ways(10);
    for (number, totals) in wide.nic.totals().iter().enumerate() {
        assert!(totals.tx_frames > 0 && totals.rx_frames > 0, "queue {number}: {totals:?}");
        assert_eq!((totals.bad, totals.tx_refused), (0, 0));
    }
    assert_eq!(wide.nic.busy_slots(), 0, "what queues keep is not under way");
}

// LISA: verify_device_channels_change.
#[test]
fn another_number_of_channels_holds_when_the_nic_has_begun_anew() {
    let mut wide = wide(4);
    wide.open_all();
    wide.both_ways(2);
    assert_eq!(wide.nic.nic_mut().set_queues(2), Err(ConfigError::AtWork));
    let mut before = wide.nic.totals();
    for queues in [2, 8, 1, 4] {
        wide.begin_anew(queues);
        assert_eq!(wide.nic.channels(), usize::from(queues));
        wide.both_ways(4);
        let totals = wide.nic.totals();
        before.resize(totals.len(), QueueTotals::default());
        for (number, (now, before)) in totals.iter().zip(&before).enumerate() {
            let used = now.tx_frames > before.tx_frames && now.rx_frames > before.rx_frames;
            assert_eq!(used, number < usize::from(queues), "queue {number} of {queues}");
            assert_eq!((now.bad, now.tx_refused), (0, 0));
        }
        before = totals;
    }
    wide.nic.shutdown(wide.now);
    wide.settle();
    for none in [0, 65] {
        assert_eq!(wide.nic.nic_mut().set_queues(none), Err(ConfigError::Queues(none)));
    }
}

#[test]
fn a_new_queue_waits_until_nothing_older_is_under_way() {
    let mut wide = wide(2);
    let (flows, mut taken) = (16, 0);
    for flow in 0..flows {
        wide.nic.transmit(&udp(false, flow, 0)).unwrap();
    }
    wide.nic.flush();
    // The host has not looked at its ring yet when the queue is there.
    let rings = wide.ram.allocate(34).unwrap();
    let (up, down) = (rings.slice(0, 17).unwrap(), rings.slice(17, 17).unwrap());
    let map = |pages: &SharedPages| wide.ram.map(pages.frames()).unwrap();
    let host = Channel::from_parts(map(&down), map(&up), wide.to_guest.clone()).unwrap();
    let guest = Channel::from_parts(up, down, wide.to_host.clone()).unwrap();
    wide.nic.add_queue(1, guest).unwrap();
    for flow in 0..flows {
        taken += usize::from(wide.nic.transmit(&udp(false, flow, 1)).is_ok());
        assert_eq!(wide.nic.transmit(&udp(false, flow, 1)), Err(Refused::Full(Lack::Order)));
    }
    assert_eq!(taken, 0, "frames could overtake those on the other channel");
    wide.service.open_queue(1, host, &mut wide.port);
    wide.settle();
    assert_eq!(wide.at_peer.len(), usize::from(flows));
    for flow in 0..flows {
        wide.nic.transmit(&udp(false, flow, 1)).unwrap();
    }
    wide.nic.flush();
    wide.settle();
    in_order(&wide.at_peer, flows, 2);
    assert!(wide.nic.totals().iter().all(|queue| queue.tx_frames > 0), "both have work");
}

#[test]
fn a_queue_that_is_taken_back_leaves_its_flows_to_the_others() {
    let mut wide = wide(4);
    wide.open_all();
    wide.service.close_queue(2, &mut wide.port);
    wide.host();
    let now = wide.now;
    wide.nic.remove_queue(2, now);
    wide.settle();
    for flow in 0..32 {
        wide.nic.transmit(&udp(false, flow, 0)).unwrap();
        wide.peer_sends(&udp(true, flow, 0));
    }
    wide.nic.flush();
    wide.settle();
    in_order(&wide.at_peer, 32, 1);
    in_order(&wide.received, 32, 1);
    let totals = wide.nic.totals();
    assert_eq!((wide.nic.channels(), totals.len(), totals[2].tx_frames), (3, 4, 0));
}

#[test]
fn one_that_is_taken_back_does_not_keep_the_next_from_coming() {
    let mut wide = wide(4);
    wide.open(1);
    wide.open(2);
    wide.service.close_queue(2, &mut wide.port);
    wide.host();
    let now = wide.now;
    wide.nic.remove_queue(2, now);
    wide.settle();
    wide.open(3);
    wide.settle();
    for flow in 0..32 {
        wide.nic.transmit(&udp(false, flow, 0)).unwrap();
    }
    wide.nic.flush();
    wide.settle();
    in_order(&wide.at_peer, 32, 1);
    let totals = wide.nic.totals();
    assert!(totals[3].tx_frames > 0 && wide.nic.channels() == 3, "{totals:?}");
    assert_eq!(wide.nic.nic().stats().bad.table, 0);
}

#[test]
fn a_nic_that_has_failed_takes_no_frames_on_any_queue() {
    let mut wide = wide(4);
    wide.open_all();
    wide.service.inject(NicFault::ReplyOfOtherKind);
    wide.nic.nic_mut().keep_alive(wide.now).unwrap();
    wide.host();
    let polled = Synthetic::poll(&mut wide.nic, wide.now, &mut |_| {});
    assert!(polled.is_err(), "{polled:?}");
    for flow in 0..32 {
        assert_eq!(wide.nic.transmit(&udp(false, flow, 0)), Err(Refused::NotReady));
    }
    assert_eq!(Synthetic::poll_deadline(&wide.nic), None);
}

#[test]
fn a_host_that_offers_fewer_than_it_granted_spreads_over_those_that_there_are() {
    let mut wide = wide(4);
    wide.offered = 0;
    wide.open(1);
    wide.settle();
    while wide.service.poll_deadline().is_some() || Synthetic::poll_deadline(&wide.nic).is_some() {
        wide.wait();
    }
    for flow in 0..32 {
        wide.peer_sends(&udp(true, flow, 0));
    }
    wide.settle();
    in_order(&wide.received, 32, 1);
    let totals = wide.nic.totals();
    assert!(totals[0].rx_frames > 0 && totals[1].rx_frames > 0, "{totals:?}");
    // One that comes after all gets its share.
    wide.open(2);
    wide.settle();
    wide.received.clear();
    for flow in 0..32 {
        wide.peer_sends(&udp(true, flow, 0));
    }
    wide.settle();
    in_order(&wide.received, 32, 1);
    assert!(wide.nic.totals()[2].rx_frames > 0);
}

/// A frame of each of 32 flows is on its way when it is to go down.
fn stopped_with_frames_under_way() -> Wide {
    let mut wide = wide(4);
    wide.open_all();
    for flow in 0..32 {
        wide.nic.transmit(&udp(false, flow, 0)).unwrap();
    }
    wide.nic.shutdown(wide.now);
    wide
}

#[test]
fn the_way_down_begins_when_the_queues_have_sent_everything() {
    let mut wide = stopped_with_frames_under_way();
    assert!(wide.nic.nic().info().ready, "the queues are not idle yet");
    assert_eq!(wide.nic.transmit(&udp(false, 0, 1)), Err(Refused::NotReady));
    wide.settle();
    assert_eq!(wide.events.last(), Some(&NicEvent::Stopped));
    in_order(&wide.at_peer, 32, 1);
    let sent: u64 = wide.nic.totals().iter().map(|queue| queue.tx_frames).sum();
    assert_eq!((wide.nic.channels(), sent), (1, 32), "what the queues did is still counted");
}

// A pause of the whole machine eats a guest's patience: the host was not given the time, and what it still has is not lost.
#[test]
fn queues_that_are_not_idle_in_time_are_told_once_and_waited_for_all_the_same() {
    let mut wide = stopped_with_frames_under_way();
    wide.now = wide.now + wide.nic.nic().config().deadline.mul_f32(3.5);
    wide.guest();
    wide.guest();
    assert_eq!(wide.events.last(), Some(&NicEvent::Overdue { step: Step::Drain }));
    let overdue = |event: &&NicEvent| matches!(event, NicEvent::Overdue { .. });
    assert_eq!(wide.events.iter().filter(overdue).count(), 1);
    assert_eq!(wide.nic.transmit(&udp(false, 0, 1)), Err(Refused::NotReady));
    wide.settle();
    in_order(&wide.at_peer, 32, 1);
    assert_eq!(wide.events.last(), Some(&NicEvent::Stopped));
}

#[test]
fn queues_that_the_host_never_serves_again_are_given_up() {
    let mut wide = stopped_with_frames_under_way();
    let rings = wide.ram.allocate(34).unwrap();
    let (up, down) = (rings.slice(0, 17).unwrap(), rings.slice(17, 17).unwrap());
    let late = Channel::from_parts(up, down, wide.to_host.clone()).unwrap();
    assert_eq!(wide.nic.add_queue(1, late), Err(QueueError::NotReady), "it comes too late");
    wide.guest();
    assert!(!wide.events.contains(&NicEvent::Stopped));
    wide.nic.abandon(wide.now);
    wide.guest();
    assert_eq!(wide.events.last(), Some(&NicEvent::Stopped));
    assert_eq!((wide.nic.channels(), Synthetic::poll_deadline(&wide.nic)), (1, None));
}

#[test]
fn every_channel_can_have_another_doorbell() {
    let mut wide = wide(4);
    wide.open_all();
    for number in 0..4 {
        let new = SignalFlag::new();
        assert!(wide.nic.set_doorbell(number, new.clone()).is_ok());
        let _ = wide.to_host.take();
        let before = wide.nic.totals()[usize::from(number)].tx_frames;
        for flow in 0..64 {
            wide.nic.transmit(&udp(false, flow, 0)).unwrap();
        }
        wide.nic.flush();
        assert!(new.take() && wide.nic.totals()[usize::from(number)].tx_frames > before);
        assert!(number < 3 || !wide.to_host.take(), "nobody has the old one any more");
        wide.host();
        wide.settle();
    }
    assert!(wide.nic.set_doorbell(4, SignalFlag::new()).is_err());
}

#[test]
fn pages_lent_on_a_queue_that_is_taken_back_come_back_without_a_status() {
    let mut wide = wide(4);
    wide.open_all();
    let memory = wide.ram.allocate(1).unwrap();
    let body = [PageSlice::new(memory, 0, 1400).unwrap()];
    for flow in 0..32 {
        let head = &udp(false, flow, 0)[..42];
        let (work, token) = (TxWork::NONE, u64::from(flow));
        let frame = PagedFrame { head, body: &body, work, token };
        assert_eq!(wide.nic.transmit_pages(&frame), Ok(Lending::Lent));
    }
    let of_two = wide.nic.totals()[2].tx_frames;
    assert!((1..32).contains(&of_two), "{of_two}");
    wide.service.close_queue(2, &mut wide.port);
    let now = wide.now;
    wide.nic.remove_queue(2, now);
    wide.nic.flush();
    wide.settle();
    let returned: Vec<_> = std::iter::from_fn(|| wide.nic.poll_returned()).collect();
    let lost = returned.iter().filter(|returned| returned.status.is_none()).count();
    assert_eq!((returned.len(), lost), (32, of_two as usize));
    let mut tokens: Vec<_> = returned.iter().map(|returned| returned.token).collect();
    tokens.sort_unstable();
    assert!(tokens.into_iter().eq(0..32), "each once");
}

/// A NIC of four channels that has lent the same page on each.
fn lent_on_all() -> (Wide, WeakPages) {
    let mut wide = wide(4);
    wide.open_all();
    let memory = wide.ram.allocate(1).unwrap();
    let weak = memory.downgrade();
    let body = [PageSlice::new(memory, 0, 1400).unwrap()];
    for flow in 0..32 {
        let head = &udp(false, flow, 0)[..42];
        let frame = PagedFrame { head, body: &body, work: TxWork::NONE, token: 0 };
        assert_eq!(wide.nic.transmit_pages(&frame), Ok(Lending::Lent));
    }
    let on_primary = wide.nic.totals()[0].tx_frames;
    assert!((1..32).contains(&on_primary), "{on_primary}");
    (wide, weak)
}

#[test]
fn pages_lent_on_any_queue_go_with_what_a_nic_that_is_taken_apart_leaves_behind() {
    let (wide, weak) = lent_on_all();
    let remains = wide.nic.into_parts();
    assert_eq!((remains.lent.len(), weak.is_alive()), (32, true));
    drop(remains);
    assert!(!weak.is_alive());
}

#[test]
fn pages_lent_on_any_queue_go_with_what_a_nic_leaves_behind_on_a_channel_that_does_not_work() {
    let (mut wide, weak) = lent_on_all();
    // Nobody has asked for its events.
    wide.nic.abandon(wide.now);
    let [up, down] = [(); 2].map(|()| wide.ram.allocate(5).unwrap());
    // Full from the beginning, and when the guest looks at how far the host is, that cannot be.
    up.store_u32(4, 8).unwrap();
    let channel = Channel::from_parts(up.clone(), down, wide.to_host.clone()).unwrap();
    up.store_u32(4, 5).unwrap();
    let buffer = |id| SharedBuffer { gpadl: GpadlId(id), pages: wide.ram.allocate(64).unwrap() };
    let (receive, send) = (buffer(1), buffer(2));
    let failed = wide.nic.restart(channel, receive, Some(send), wide.now).unwrap_err();
    assert!(matches!(failed.error, ConfigError::Channel(_)), "{failed}");
    assert_eq!((failed.remains.lent.len(), weak.is_alive()), (32, true));
    let returned = std::iter::from_fn(|| wide.nic.poll_returned()).count();
    assert_eq!(returned, 32, "each is told of");
    drop(failed);
    assert!(!weak.is_alive());
}

#[test]
fn pages_lent_on_any_queue_go_with_what_a_nic_leaves_behind() {
    let (mut wide, weak) = lent_on_all();
    wide.nic.abandon(wide.now);
    wide.guest();
    assert!(weak.is_alive(), "the channels are not closed yet");
    wide.service.close(&mut wide.port);
    let Wide { ram, service, port, nic, to_host, to_guest, now, .. } = &mut wide;
    let signals = [&*to_host, &*to_guest];
    let (channel, _, [receive, send]) = connect(ram, service, port, signals, &ROOMY);
    let remains = nic.restart(channel, receive, Some(send), *now).unwrap();
    assert_eq!(remains.lent.len(), 32);
    assert!(weak.is_alive());
    drop(remains);
    assert!(!weak.is_alive());
}

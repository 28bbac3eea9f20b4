//! A guest's whole NIC, with the real service of a host behind it, and somebody between them.

mod between;
mod frames;
mod lane;

use std::collections::BTreeSet;
use std::iter;
use std::time::Duration;

use hyperv_host::memory::GuestRam;
use netvsc::Path;
use netvsc::nic::{
    Lending, Nic, NicConfig, NicEvent, NicOffloads, NicQueue, NicStats, PageSlice, PagedFrame,
    Remains, RxFrame, SharedBuffer, TransmitError,
};
use netvsc::nvsp::Version;
use netvsc::rndis::offload::ChecksumSet;
use netvsc::rndis::scaling::Scaling;
use vmbus::channel::{Channel, SignalFlag};
use vmbus::memory::SharedMemory;
use vmbus::{GpadlId, Instant, Platform};

use self::between::Between;
use self::frames::Wish;
use crate::script::Script;

/// Steps of one input; more teach nothing new.
const STEPS: usize = 300;
/// Sub-channels of a guest that wants any.
const SUB_CHANNELS: u16 = 3;
const RECEIVE: GpadlId = GpadlId(0xe1e10);
const SEND: GpadlId = GpadlId(0xe1e11);

/// How far an input brought the NIC: so that a corpus can be seen to reach what lies deep.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct NicReach {
    /// Start-up was finished.
    pub ready: bool,
    /// It was shut down to the end.
    pub stopped: bool,
    /// It gave its channel up.
    pub failed: bool,
    /// Sub-channels in use.
    pub queues: usize,
    /// Frames received, and those of them on sub-channels.
    pub received: [u64; 2],
    /// Received segments that the host had put together.
    pub coalesced: u64,
    /// Received frames with a tag beside them.
    pub tagged: u64,
    /// Frames sent, and those of them on sub-channels.
    pub sent: [u64; 2],
    /// Segments that the host was asked to cut.
    pub large: u64,
    /// Frames whose checksums were left to the host.
    pub checksums: u64,
    /// Packets of the guest that named its memory by page.
    pub gpa_direct: u64,
    /// Frames whose data the host was to read in the guest's own pages.
    pub lent: u64,
    /// Of them, those that came back completed.
    pub returned: u64,
}

/// A byte that configures the guest, then what happens, one byte each with what belongs to it. Packets of the host's service
/// arrive as they are, changed, twice, late or never, with ranges and contents that lie, among others that nobody sent;
/// the guest sends frames, over one channel or several and with work for the host or without, switches, and goes down.
pub fn nic_guest(input: &[u8]) {
    nic_reach(input);
}

/// The same, and says how far it came.
pub fn nic_reach(input: &[u8]) -> NicReach {
    let mut script = Script::new(input);
    let ram = GuestRam::new(7, 1024);
    let mut world = World::new(&mut script, &ram);
    for _ in 0..STEPS {
        if script.is_over() {
            break;
        }
        world.step(&mut script);
    }
    let reach = world.finish();
    assert_eq!(ram.allocated(), 0, "pages are lost");
    reach
}

/// What a guest is like, by the bits of the first byte.
#[derive(Clone, Copy, Debug)]
struct Form(u8);

impl Form {
    fn has(self, bit: u8) -> bool {
        self.0 & bit != 0
    }

    /// Sub-channels are asked for as soon as that is possible.
    fn many_queues(self) -> bool {
        self.has(16)
    }

    /// Work is left to the host, large sends and coalescing included.
    fn offloads(self) -> bool {
        self.has(32)
    }

    fn config(self) -> NicConfig {
        NicConfig {
            versions: if self.has(2) {
                vec![Version::V5]
            } else {
                vec![Version::V6_1, Version::V5]
            },
            sriov: !self.has(4),
            isolated: self.0 & 10 == 8,
            queues: if self.many_queues() { 1 + SUB_CHANNELS } else { 1 },
            offloads: if self.offloads() { NicOffloads::ALL } else { NicOffloads::default() },
            // Longer than a section: such frames lie across pages.
            mtu: if self.has(64) { 9000 } else { 1500 },
            lend_from: 100,
            ..NicConfig::default()
        }
    }

    /// Pages of the receive and of the send buffer.
    fn buffers(self) -> [usize; 2] {
        if self.0 & 0x70 == 0 { [16, 12] } else { [96, 96] }
    }
}

struct World {
    ram: GuestRam,
    form: Form,
    nic: Nic,
    queues: Vec<NicQueue>,
    between: Between,
    now: Instant,
    reach: NicReach,
    /// Largest frame with its header.
    most: usize,
    /// Frames taken for sending, by channel.
    sent: [u64; 1 + SUB_CHANNELS as usize],
    overdue: u64,
    /// Frames in pages that were offered, and those of them that are lent.
    tokens: u64,
    lent: BTreeSet<u64>,
}

/// Puts bytes into memory of the guest's own, in two places.
fn slices(ram: &GuestRam, bytes: &[u8]) -> Vec<PageSlice> {
    // There may be none left: what was sent is never completed.
    let Ok(memory) = ram.allocate(1 + (bytes.len() + 100).div_ceil(4096)) else {
        return Vec::new();
    };
    let (first, second) = bytes.split_at(bytes.len() / 2);
    let behind = 4000 + first.len() + usize::from(bytes.len().is_multiple_of(3)) * 50;
    let place = |(at, part): (usize, &[u8])| {
        memory.write(at, part).expect("there is room");
        PageSlice::new(memory.clone(), at, part.len()).expect("inside")
    };
    [(4000, first), (behind, second)].map(place).into()
}

impl World {
    fn new(script: &mut Script<'_>, ram: &GuestRam) -> Self {
        let form = Form(script.byte());
        let pages = |count| ram.allocate(count).expect("memory");
        let rings = |count| (pages(count), pages(count));
        let near = rings(if form.has(1) { 2 } else { 5 });
        let guest = Channel::from_parts(near.0.clone(), near.1.clone(), SignalFlag::new());
        let buffer = |gpadl, count| SharedBuffer { gpadl, pages: pages(count) };
        let [receive, send] = form.buffers();
        let (receive, send) = (buffer(RECEIVE, receive), buffer(SEND, send));
        let config = form.config();
        let most = config.mtu as usize + 14;
        let between = Between::new(ram, rings(5), near, [receive.clone(), send.clone()]);
        let guest = guest.expect("empty rings");
        let nic = Nic::new(guest, receive, Some(send), config, Instant::ZERO);
        Self {
            ram: ram.clone(),
            form,
            nic: nic.expect("a sound configuration"),
            queues: Vec::new(),
            between,
            now: Instant::ZERO,
            reach: NicReach::default(),
            most,
            sent: [0; 1 + SUB_CHANNELS as usize],
            overdue: 0,
            tokens: 0,
            lent: BTreeSet::new(),
        }
    }

    fn step(&mut self, script: &mut Script<'_>) {
        match script.below(32) {
            0 | 1 => self.poll(),
            2..5 => {
                let count = script.byte();
                self.exchange(count.into());
            }
            5 => {
                let count = 1 + (script.byte() & 7);
                for _ in 0..count {
                    if self.form.0 & 0x70 == 0 {
                        let len = usize::from(script.byte()) * 7;
                        self.transmit(0, Wish(8), len);
                        continue;
                    }
                    let (wish, len) = (Wish(script.byte()), usize::from(script.byte()));
                    let len = len * if wish.is_large() { 200 } else { self.most / 250 };
                    self.transmit(usize::from(wish.0 >> 5), wish, len);
                }
                self.nic.flush();
                self.queues.iter_mut().for_each(NicQueue::flush);
            }
            6 => {
                let path = if script.byte() & 1 == 0 { Path::Synthetic } else { Path::Vf };
                self.nic.switch_data_path(path, self.now);
            }
            7 => {
                // Only now and then, since little can follow.
                if script.byte() == 0x77 {
                    // A dead NIC can be put down, too.
                    self.reach.failed = false;
                    self.queues.iter_mut().for_each(NicQueue::stop);
                    self.nic.shutdown(self.now);
                }
            }
            8 => {
                self.now = self.now + Duration::from_millis(100 * u64::from(script.byte()));
                self.poll();
            }
            what => self.between.step(what, script, self.now),
        }
    }

    /// So many rounds of both sides, with everything delivered as it is.
    fn exchange(&mut self, rounds: usize) {
        for _ in 0..rounds {
            self.poll();
            let up = self.between.hand_up();
            self.between.serve(self.now);
            if !self.between.hand_down() && !up {
                break;
            }
        }
    }

    /// Over the primary channel, or as far as there are any over another.
    fn transmit(&mut self, which: usize, wish: Wish, len: usize) {
        let Self { nic, queues, .. } = self;
        let which = which % (queues.len() + 1);
        let can = nic.can_transmit();
        let token = self.tokens;
        self.tokens += u64::from(wish.is_paged());
        let outcome = wish.with(len, |frame| {
            if wish.is_paged() {
                let body = slices(&self.ram, frame.pieces[1]);
                let (head, work) = (frame.pieces[0], frame.work());
                let frame = PagedFrame { head, body: &body, work, token };
                let taken = match which.checked_sub(1) {
                    Some(queue) => queues[queue].transmit_pages(&frame),
                    None => nic.transmit_pages(&frame),
                };
                return taken.map(|lending| {
                    if lending == Lending::Lent {
                        self.lent.insert(token);
                        self.reach.lent += 1;
                    }
                });
            }
            match which.checked_sub(1) {
                Some(queue) => queues[queue].transmit_with(frame),
                None => nic.transmit_with(frame),
            }
        });
        match outcome {
            Ok(()) => {
                // Segments have slots of their own, which may be free where no others are.
                let could = can || wish.is_large();
                assert!(self.reach.ready && (which > 0 || could && !self.events_over()));
                let cuts = self.longest_cut(wish);
                assert!((14..=self.most.max(cuts)).contains(&len), "{len} bytes, {wish:?}");
                self.sent[which] += 1;
                let Self { nic, reach, .. } = self;
                let by_host = wish.asks_checksums()
                    && nic.info().offloads.ipv4.transmit.contains(ChecksumSet::TCP);
                reach.checksums += u64::from(by_host);
            }
            Err(error) => {
                assert!(!error.to_string().is_empty());
                // What is wrong with a frame is the same whatever the host says.
                let own = matches!(error, TransmitError::Headers { .. });
                assert!(!own || wish.0 & 0x2e != 0, "{error}");
            }
        }
    }

    /// Longest segment that the host may be asked to cut: what is lent need not fit in the send buffer.
    fn longest_cut(&self, wish: Wish) -> usize {
        let info = self.nic.info();
        match (wish.is_large(), wish.is_paged()) {
            (false, _) => 0,
            (true, false) => info.large_send as usize,
            (true, true) => {
                info.offloads.ipv4.large_send.max(info.offloads.ipv6.large_send) as usize
            }
        }
    }

    fn poll(&mut self) {
        let most = self.between.receive_bytes();
        let before = self.reach.received[0];
        let Self { nic, queues, reach, .. } = self;
        let mut sink = |frame: RxFrame<'_>| {
            reach.received[0] += 1;
            reach.coalesced += u64::from(frame.parts() > 1);
            reach.tagged += u64::from(frame.vlan().is_some());
            // The same bytes may be named as several parts.
            let most = most * frame.parts() + 4;
            assert!((14..=most).contains(&frame.len()), "{} bytes", frame.len());
            let mut out = vec![0; frame.len() + 1];
            assert_eq!(frame.copy_to(&mut out), frame.len());
            assert_eq!(frame.copy_to(&mut out[..13]), 13);
        };
        let counted = nic.stats().rx_frames;
        let outcome = nic.poll(self.now, &mut sink);
        let mut broken = false;
        for queue in queues.iter_mut() {
            broken |= queue.poll(&mut sink).is_err();
        }
        let on_queues = queues.iter().map(|queue| queue.stats().rx_frames).sum();
        let mine = nic.stats().rx_frames - counted + on_queues - reach.received[1];
        assert_eq!(self.reach.received[0] - before, mine);
        self.reach.received[1] = on_queues;
        assert!(!broken || self.between.tampered, "a queue broke");
        assert!(mine == 0 || self.reach.ready || !self.events_over(), "frames before it is ready");
        self.events();
        assert_eq!(outcome.is_err(), self.reach.failed, "{outcome:?}");
        if let Err(error) = outcome {
            assert_eq!(
                self.nic.poll(self.now, &mut |_| panic!("a frame after {error}")),
                Err(error)
            );
            assert!(self.between.tampered, "{error}");
        }
        self.take_back();
        self.check_stats();
    }

    /// Whatever the host says, pages come back once each.
    fn take_back(&mut self) {
        let Self { nic, queues, .. } = self;
        let more = queues.iter_mut().flat_map(|queue| iter::from_fn(|| queue.poll_returned()));
        for returned in iter::from_fn(|| nic.poll_returned()).chain(more) {
            assert!(self.lent.remove(&returned.token), "{returned:?}");
            self.reach.returned += u64::from(returned.status.is_some());
        }
    }

    /// By channel.
    fn stats(&self) -> impl Iterator<Item = NicStats> {
        core::iter::once(self.nic.stats()).chain(self.queues.iter().map(NicQueue::stats))
    }

    fn check_stats(&self) {
        for (stats, sent) in self.stats().zip(self.sent) {
            assert!(self.between.tampered || stats.bad.total() == 0, "{:?}", stats.bad);
            assert!(stats.tx_frames == sent && stats.tx_completed <= stats.tx_messages);
        }
    }

    /// Whether there is nothing more to be told.
    fn events_over(&self) -> bool {
        self.reach.failed || self.reach.stopped
    }

    fn events(&mut self) {
        while let Some(event) = self.nic.poll_event() {
            assert!(!self.events_over(), "{event:?} after the end");
            match event {
                NicEvent::Ready { mac, mtu, .. } => {
                    assert!(!self.reach.ready && !mac.is_multicast() && mtu >= 68);
                    self.most = self.most.min(mtu as usize + 14);
                    self.reach.ready = true;
                    self.ask_for_queues();
                }
                NicEvent::Failed(_) => self.reach.failed = true,
                NicEvent::Stopped => self.reach.stopped = true,
                NicEvent::QueuesGranted { count } => self.add_queues(count),
                NicEvent::Overdue { .. } => self.overdue += 1,
                NicEvent::Link { .. } => assert!(self.reach.ready),
                _ => {}
            }
        }
    }

    fn ask_for_queues(&mut self) {
        if self.form.many_queues() {
            // It may have failed since it said that it is ready.
            let _ = self.nic.request_queues(SUB_CHANNELS, self.now);
        }
    }

    /// Sub-channels are opened, and received frames spread over all.
    fn add_queues(&mut self, count: u16) {
        assert!(count <= SUB_CHANNELS);
        let pages = |count| self.ram.allocate(count).expect("memory");
        for number in 1..=count {
            let near = (pages(5), pages(5));
            let guest = Channel::from_parts(near.0.clone(), near.1.clone(), SignalFlag::new());
            // It may have failed, or be on its way down.
            if let Ok(queue) = self.nic.add_queue(number, guest.expect("empty rings")) {
                self.between.open_queue(number, (pages(5), pages(5)), near);
                self.queues.push(queue);
            }
        }
        let spread = Scaling::even(1 + count, [0x5a; 40]);
        let _ = self.nic.set_scaling(Some(&spread), self.now);
    }

    /// Nothing is awaited for ever, and nothing is held when the NIC is gone.
    fn finish(mut self) -> NicReach {
        self.poll();
        for round in 0.. {
            assert!(round < 10_000, "deadlines without end");
            let Some(due) = self.nic.poll_deadline() else { break };
            if self.events_over() {
                break;
            }
            self.now = self.now.max(due);
            self.poll();
        }
        let idle = self.reach.ready || self.events_over();
        assert!(idle || self.overdue > 0, "start-up waits for ever");
        self.queues.iter_mut().for_each(NicQueue::abandon);
        self.nic.abandon(self.now);
        self.take_back();
        // A NIC that has no room to say that it leaves, still waits for some.
        let waits = self.between.tampered || self.lent.is_empty();
        assert!(waits, "pages of {:?} do not come back", self.lent);
        let mut reach = self.reach;
        reach.queues = self.queues.len();
        reach.sent = [self.sent.iter().sum(), self.sent[1..].iter().sum()];
        reach.large = self.stats().map(|stats| stats.tx_large).sum();
        reach.gpa_direct = self.between.gpa_direct();
        let Self { nic, between, queues, .. } = self;
        queues.into_iter().for_each(|queue| drop(queue.into_parts()));
        let Remains { receive, send, .. } = nic.into_parts();
        assert!(send.is_some_and(|send| send.gpadl == SEND));
        assert_eq!(receive.gpadl, RECEIVE);
        drop(between);
        reach
    }
}

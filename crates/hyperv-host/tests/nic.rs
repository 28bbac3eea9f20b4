//! The guest's NIC and the host's NIC service against each other, each woken only by the other's doorbell.

use std::collections::VecDeque;
use std::time::Duration;

use hyperv_host::memory::{GuestMemory, GuestRam};
use hyperv_host::nic::{GuestView, NicService, NicServiceConfig, NicServiceEvent, VfState};
use hyperv_host::switch::{Offered, PortConfig, SwitchPort, WireConfig};
use netvsc::nic::TransmitError;
use netvsc::nvsp::Version;
use netvsc::{MacAddress, Nic, NicConfig, NicEvent, Path, SharedBuffer};
use proptest::prelude::*;
use vmbus::channel::{Channel, SignalFlag};
use vmbus::memory::{PageList, SharedPages};
use vmbus::time::earliest;
use vmbus::{GpadlId, Instant, Pfn, Platform, Serial};

const MAC: MacAddress = MacAddress([0x00, 0x15, 0x5d, 0, 0, 7]);
const PEER: MacAddress = MacAddress([0x02, 0, 0, 0, 0, 1]);
const RECEIVE: GpadlId = GpadlId(0xe1e10);
const SEND: GpadlId = GpadlId(0xe1e11);

struct World {
    ram: GuestRam,
    service: NicService,
    port: SwitchPort,
    nic: Nic,
    to_host: SignalFlag,
    to_guest: SignalFlag,
    buffers: [(GpadlId, PageList); 2],
    now: Instant,
    received: Vec<Vec<u8>>,
    at_peer: Vec<Vec<u8>>,
    events: VecDeque<NicEvent>,
    host_events: Vec<NicServiceEvent>,
}

struct Sizes {
    ring: usize,
    receive: usize,
    send: usize,
}

const ROOMY: Sizes = Sizes { ring: 33, receive: 256, send: 64 };

fn world(config: NicConfig, sizes: &Sizes, versions: &[Version]) -> World {
    let ram = GuestRam::new(7, 1024);
    let map = |pages: &SharedPages| ram.map(pages.frames()).unwrap();
    let rings = ram.allocate(2 * sizes.ring).unwrap();
    let (up, down) = (rings.slice(0, sizes.ring).unwrap(), rings.slice(sizes.ring, sizes.ring));
    let down = down.unwrap();
    let (receive, send) = (ram.allocate(sizes.receive).unwrap(), ram.allocate(sizes.send).unwrap());
    let (to_host, to_guest) = (SignalFlag::new(), SignalFlag::new());
    let host = Channel::from_parts(map(&down), map(&up), to_guest.clone()).unwrap();
    let guest = Channel::from_parts(up, down, to_host.clone()).unwrap();
    let buffers = [(RECEIVE, map(&receive)), (SEND, map(&send))];
    let mut service_config = NicServiceConfig::new(MAC);
    service_config.policy.versions = versions.to_vec();
    let mut service = NicService::new(service_config);
    let mut port = SwitchPort::new(PortConfig {
        to_peer: WireConfig::instant(),
        from_peer: WireConfig::instant(),
        ..PortConfig::default()
    });
    service.open(host, &mut port);
    let now = Instant::ZERO;
    let receive = SharedBuffer { gpadl: RECEIVE, pages: receive };
    let send = SharedBuffer { gpadl: SEND, pages: send };
    let nic = Nic::new(guest, receive, Some(send), config, now).unwrap();
    World {
        ram,
        service,
        port,
        nic,
        to_host,
        to_guest,
        buffers,
        now,
        received: Vec::new(),
        at_peer: Vec::new(),
        events: VecDeque::new(),
        host_events: Vec::new(),
    }
}

fn ready() -> World {
    let mut world = world(NicConfig::default(), &ROOMY, &[Version::V6_1, Version::V5]);
    world.settle();
    assert!(matches!(world.events.pop_front(), Some(NicEvent::Ready { mac: MAC, .. })));
    world
}

impl World {
    fn poll_host(&mut self) {
        let Self { service, port, buffers, ram, now, .. } = self;
        let gpadl =
            |id| buffers.iter().find(|(known, _)| *known == id).map(|(_, pages)| pages.clone());
        let pages = |frames: &[Pfn]| ram.map(frames).ok();
        service.poll(*now, GuestView { gpadl: &gpadl, pages: &pages }, port);
        while let Some(event) = self.service.poll_event() {
            assert!(!matches!(event, NicServiceEvent::Failed(_)), "{event:?}");
            self.host_events.push(event);
        }
    }

    fn poll_guest(&mut self) {
        let Self { nic, received, now, .. } = self;
        nic.poll(*now, &mut |frame| {
            let mut copy = vec![0; frame.len()];
            assert_eq!(frame.copy_to(&mut copy), copy.len());
            received.push(copy);
        })
        .unwrap();
        self.events.extend(std::iter::from_fn(|| self.nic.poll_event()));
    }

    /// Lets everybody talk until nobody has anything to do; time passes only when all wait for it.
    fn settle(&mut self) {
        for _ in 0..100_000 {
            let woken = self.port.take_wake(Path::Synthetic, self.now);
            let due = |at: Option<Instant>| at.is_some_and(|at| at <= self.now);
            let host = self.to_host.take() | woken | due(self.service.poll_deadline());
            if host {
                self.poll_host();
            }
            let due = self.nic.poll_deadline().is_some_and(|at| at <= self.now);
            let guest = self.to_guest.take() | due;
            if guest {
                self.poll_guest();
            }
            let before = self.at_peer.len();
            self.at_peer.extend(std::iter::from_fn(|| self.port.peer_receive(self.now)));
            if host || guest || self.at_peer.len() > before {
                continue;
            }
            let next = earliest(self.service.poll_deadline(), self.port.poll_deadline());
            match next {
                Some(next) if next > self.now => self.now = next,
                _ => return,
            }
        }
        panic!("they never stop");
    }

    /// The peer sends a frame; its wire has room.
    fn peer_sends(&mut self, frame: &[u8]) {
        assert_ne!(self.port.peer_transmit(frame, self.now), Offered::Busy);
    }

    /// The host's own acts are followed by a poll.
    fn host(&mut self, act: impl FnOnce(&mut NicService, Instant)) {
        act(&mut self.service, self.now);
        self.poll_host();
        self.settle();
    }
}

fn frame(to: MacAddress, from: MacAddress, len: usize, seed: u8) -> Vec<u8> {
    let mut frame: Vec<u8> = (0..len).map(|at| (at as u8).wrapping_mul(31) ^ seed).collect();
    frame[..6].copy_from_slice(&to.0);
    frame[6..12].copy_from_slice(&from.0);
    frame[12..14].copy_from_slice(&[0x88, 0xb5]);
    frame
}

#[test]
fn both_versions_come_up() {
    for version in [Version::V6_1, Version::V5] {
        let mut world = world(NicConfig::default(), &ROOMY, &[version]);
        world.settle();
        let ready = NicEvent::Ready { mac: MAC, mtu: 1500, version, link: true };
        assert_eq!(world.events, [ready]);
        assert!(
            world.host_events.contains(&NicServiceEvent::Operational { version, sriov: true }),
            "{:?}",
            world.host_events
        );
    }
}

#[test]
fn frames_of_every_length_arrive_both_ways() {
    let mut world = ready();
    let out: Vec<_> = (60..1515).map(|len| frame(PEER, MAC, len, len as u8)).collect();
    for frame in &out {
        while let Err(error) = world.nic.transmit(frame) {
            assert!(matches!(error, TransmitError::Full(_)), "{error}");
            world.settle();
        }
        world.nic.flush();
    }
    world.settle();
    assert_eq!(world.at_peer, out);
    let back: Vec<_> = (60..1515).map(|len| frame(MAC, PEER, len, len as u8)).collect();
    for frame in &back {
        world.peer_sends(frame);
        world.settle();
    }
    assert_eq!(world.received, back);
    assert_eq!((world.service.counters().lent, world.nic.stats().bad.total()), (0, 0));
}

#[test]
fn jumbo_frames_arrive_both_ways() {
    let config = NicConfig { mtu: 9000, ..NicConfig::default() };
    let mut world = world(config, &ROOMY, &[Version::V6_1]);
    world.settle();
    assert_eq!(world.nic.info().mtu, 9000);
    for len in [6000, 6085, 6100, 8999, 9014] {
        let out = frame(PEER, MAC, len, 1);
        world.nic.transmit(&out).unwrap();
        world.nic.flush();
        world.settle();
        assert_eq!(world.at_peer.pop(), Some(out));
        let back = frame(MAC, PEER, len, 2);
        world.peer_sends(&back);
        world.settle();
        assert_eq!(world.received.pop(), Some(back));
    }
}

#[test]
fn tags_arrive_both_ways() {
    let mut world = ready();
    let tag = |mut frame: Vec<u8>| {
        frame.splice(12..12, [0x81, 0x00, 0x20, 0x05]);
        frame
    };
    let (out, back) = (tag(frame(PEER, MAC, 100, 1)), tag(frame(MAC, PEER, 100, 2)));
    world.nic.transmit(&out).unwrap();
    world.nic.flush();
    world.peer_sends(&back);
    world.settle();
    assert_eq!((world.at_peer, world.received), (vec![out], vec![back]));
}

#[test]
fn a_virtual_function_comes_is_switched_to_and_goes() {
    let mut world = ready();
    world.host(|service, now| service.vf_added(Serial(7), now));
    assert_eq!(world.events.pop_front(), Some(NicEvent::Associated { serial: Serial(7) }));
    world.nic.switch_data_path(Path::Vf, world.now);
    world.settle();
    assert_eq!(world.events.pop_front(), Some(NicEvent::SwitchCompleted { path: Path::Vf }));
    assert_eq!(world.service.data_path(), Path::Vf);
    // Torn away: the host says so, and then that nothing belongs to the NIC.
    world.host(|service, _| service.vf_lost());
    assert_eq!(
        world.events,
        [
            NicEvent::HostSwitched { path: Path::Synthetic },
            NicEvent::Disassociated { serial: Serial(7) },
        ]
    );
    assert_eq!(world.service.data_path(), Path::Synthetic);
    assert_eq!(world.service.vf_state(), VfState::Unavailable);
}

#[test]
fn the_link_goes_down_and_up() {
    let mut world = ready();
    world.host(|service, _| service.set_link(false));
    world.host(|service, _| service.set_link(true));
    assert_eq!(world.events, [NicEvent::Link { up: false }, NicEvent::Link { up: true }]);
}

#[test]
fn a_nic_goes_down_without_leaving_anything_behind() {
    let mut world = ready();
    for seed in 0..100 {
        world.peer_sends(&frame(MAC, PEER, 600, seed));
    }
    world.nic.transmit(&frame(PEER, MAC, 60, 1)).unwrap();
    world.nic.shutdown(world.now);
    world.settle();
    assert_eq!(world.events, [NicEvent::Stopped]);
    assert_eq!((world.at_peer.len(), world.service.counters().leaked), (1, 0));
    assert!(world.host_events.contains(&NicServiceEvent::Halted));
    let patience = Duration::from_secs(60);
    world.now = world.now + patience;
    world.settle();
    assert_eq!(world.events.len(), 1, "and nothing happens after it");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    // Rings and buffers of any size, traffic in both directions at once: every frame arrives, once and in order.
    #[test]
    fn no_frame_is_lost_in_small_rings_and_buffers(
        ring in 2..6usize, receive in 16..40usize, send in 8..40usize,
        steps in proptest::collection::vec((0..3u8, 60..1515usize), 1..300),
    ) {
        let sizes = Sizes { ring, receive, send };
        let mut world = world(NicConfig::default(), &sizes, &[Version::V6_1]);
        world.settle();
        let (mut out, mut back) = (Vec::new(), Vec::new());
        for (at, (kind, len)) in steps.into_iter().enumerate() {
            match kind {
                0 => {
                    let frame = frame(PEER, MAC, len, at as u8);
                    while let Err(error) = world.nic.transmit(&frame) {
                        prop_assert!(matches!(error, TransmitError::Full(_)));
                        world.settle();
                    }
                    out.push(frame);
                }
                1 => {
                    let frame = frame(MAC, PEER, len, at as u8);
                    if !world.port.peer_has_room(frame.len()) {
                        world.settle();
                    }
                    world.peer_sends(&frame);
                    back.push(frame);
                }
                _ => {
                    world.nic.flush();
                    world.poll_host();
                }
            }
        }
        world.nic.flush();
        world.settle();
        prop_assert_eq!(&world.at_peer, &out);
        prop_assert_eq!(&world.received, &back);
        prop_assert_eq!(world.service.counters().lent, 0);
        prop_assert_eq!(world.nic.stats().bad.total(), 0);
    }
}

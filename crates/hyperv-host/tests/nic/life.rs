//! What a NIC goes through with a host that does everything right.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use hyperv_host::nic::{NicServiceConfig, NicServiceEvent, VfState};
use netvsc::nic::TransmitError;
use netvsc::nvsp::Version;
use netvsc::{NicConfig, NicEvent, Path};
use proptest::prelude::*;
use vmbus::channel::{Direction, PacketTap};
use vmbus::{Instant, Serial};

use super::world::*;

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

/// Direction, time and bytes of a packet.
type Seen = (Direction, Instant, Vec<u8>);

/// Keeps every packet that one end of a channel sends or reads.
#[derive(Clone, Debug, Default)]
struct Log(Arc<Mutex<Vec<Seen>>>);

impl PacketTap for Log {
    fn packet(&mut self, direction: Direction, now: Instant, packet: &[u8]) {
        self.0.lock().unwrap().push((direction, now, packet.to_vec()));
    }
}

impl Log {
    fn pair(&self) -> [Option<Box<dyn PacketTap>>; 2] {
        [Some(Box::new(self.clone())), Some(Box::new(self.clone()))]
    }

    fn bytes(&self, direction: Direction) -> Vec<Vec<u8>> {
        let log = self.0.lock().unwrap();
        let seen = log.iter().filter(|(way, ..)| *way == direction);
        seen.map(|(.., bytes)| bytes.clone()).collect()
    }
}

#[test]
fn what_one_end_says_is_what_the_other_hears_byte_for_byte() {
    let (of_guest, of_host) = (Log::default(), Log::default());
    let service = NicServiceConfig::new(MAC);
    let mut world = world_watched(NicConfig::default(), &ROOMY, service, |guest, host| {
        let ([sent, received], [told, heard]) = (of_guest.pair(), of_host.pair());
        guest.set_taps(sent, received);
        host.set_taps(told, heard);
    });
    world.settle();
    for len in [60, 700, 1514] {
        world.nic.transmit(&frame(PEER, MAC, len, 1)).unwrap();
        world.nic.flush();
        world.peer_sends(&frame(MAC, PEER, len, 2));
        world.settle();
    }
    world.now = world.now + Duration::from_secs(1);
    world.nic.shutdown(world.now);
    world.settle();
    assert_eq!(world.events.back(), Some(&NicEvent::Stopped));
    let said = of_guest.bytes(Direction::Out);
    assert_eq!(said, of_host.bytes(Direction::In));
    assert_eq!(of_guest.bytes(Direction::In), of_host.bytes(Direction::Out));
    // INIT for 6.1 first, and the revocation of the send buffer last.
    assert_eq!((&said[0][..8], said[0].len()), (&[6, 0, 2, 0, 7, 0, 1, 0][..], 56));
    let (_, init) = said[0].split_at(16);
    assert_eq!(init[..12], [1_u32, 0x60001, 0x60001].map(u32::to_le_bytes).concat());
    assert_eq!(said.last().unwrap()[16..20], 106_u32.to_le_bytes());
    let log = of_guest.0.lock().unwrap();
    assert!(log.windows(2).all(|pair| pair[0].1 <= pair[1].1), "time goes forward");
    assert_eq!(log.last().unwrap().1.as_nanos() / 1_000_000_000, 1);
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
    // The guest tells of a change once in two seconds.
    while let Some(at) = world.nic.poll_deadline() {
        world.now = at;
        world.poll_guest();
        world.settle();
    }
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

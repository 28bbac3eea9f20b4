//! Driver, device and switch port together, woken only by doorbell, interrupt and the port's own wake-up; and a raw
//! driver where a real one would have to misbehave.

mod hostile;

use std::sync::Arc;

use netvsc::MacAddress;
use netvsc::port::{PortError, PortLink, VfPort};
use proptest::prelude::*;
use vmbus::memory::{PAGE_SIZE, SharedMemory};
use vmbus::platform::Platform;
use vmbus::{Instant, Pfn};

use super::layout::*;
use super::*;
use crate::memory::{GuestMemory, GuestRam, UnknownFrame};
use crate::switch::{
    DropCause, Offered, Path, PortConfig, SideState, SwitchPort, VfTransmit, WireConfig,
};

const MAC: MacAddress = MacAddress([0x00, 0x15, 0x5d, 0x01, 0x02, 0x03]);
const DEPTH_USED: u32 = 8;
const NOW: Instant = Instant::ZERO;

struct World {
    ram: GuestRam,
    device: VfDevice,
    port: Option<SimulatedPort>,
    wire: SwitchPort,
    /// First bytes of the frames that each end has got.
    peer_got: Vec<u32>,
    guest_got: Vec<u32>,
    guest_reads: bool,
}

fn frame(number: u32) -> Vec<u8> {
    let mut frame = vec![0x02; 60];
    frame[14..18].copy_from_slice(&number.to_le_bytes());
    frame
}

fn number(frame: &[u8]) -> u32 {
    u32::from_le_bytes(*frame[14..].first_chunk().unwrap())
}

fn wire(config: WireConfig, vf_transmit: VfTransmit) -> SwitchPort {
    let config = PortConfig {
        to_peer: config,
        from_peer: WireConfig::instant(),
        vf_transmit,
        ..PortConfig::default()
    };
    let mut wire = SwitchPort::new(config);
    wire.set_side(Path::Synthetic, SideState::Up);
    wire.set_data_path(Path::Vf);
    wire
}

impl World {
    fn new(to_peer: WireConfig) -> Self {
        let ram = GuestRam::new(5, 64);
        let config = VfConfig { mac: MAC, link: true, features: VfFeatures::WORK };
        let device = VfDevice::new(config, Arc::new(ram.clone()));
        let port = SimulatedPort::open(device.window(), &ram, DEPTH_USED).unwrap();
        let mut world = Self {
            ram,
            device,
            port: Some(port),
            wire: wire(to_peer, VfTransmit::Always),
            peer_got: Vec::new(),
            guest_got: Vec::new(),
            guest_reads: true,
        };
        world.settle();
        world
    }

    fn port(&mut self) -> &mut SimulatedPort {
        self.port.as_mut().unwrap()
    }

    /// Runs the device and the driver as long as something wakes them.
    fn settle(&mut self) {
        for _ in 0..1000 {
            let wake = self.wire.take_wake(Path::Vf, NOW);
            let device = self.device.take_doorbell() | wake;
            if device {
                self.device.poll(NOW, &mut self.wire);
            }
            let guest =
                self.guest_reads && self.port.as_ref().is_some_and(SimulatedPort::take_interrupt);
            if guest {
                let got = &mut self.guest_got;
                self.port.as_mut().unwrap().receive(&mut |frame| got.push(number(frame)));
            }
            if !device && !guest {
                return;
            }
        }
        panic!("never at rest");
    }

    fn send(&mut self, numbers: impl IntoIterator<Item = u32>) {
        for number in numbers {
            self.port().transmit(&frame(number)).unwrap();
        }
        self.port().flush();
    }

    fn peer_reads(&mut self, count: usize) {
        for _ in 0..count {
            let frame = self.wire.peer_receive(NOW).unwrap();
            self.peer_got.push(number(&frame));
            self.wire.recycle(frame);
        }
    }

    fn peer_sends(&mut self, numbers: impl IntoIterator<Item = u32>) {
        for number in numbers {
            assert_eq!(self.wire.peer_transmit(&frame(number), NOW), Offered::Accepted);
        }
    }
}

fn instant() -> WireConfig {
    WireConfig::instant()
}

/// A wire on which two frames of 60 bytes fit.
fn narrow() -> WireConfig {
    WireConfig { capacity: 120, ..WireConfig::instant() }
}

#[test]
fn a_driver_takes_the_device_into_use() {
    let mut world = World::new(instant());
    assert!(world.device.is_running());
    assert_eq!(world.wire.side_state(Path::Vf), SideState::Up);
    let port = world.port();
    assert_eq!((port.permanent_mac(), port.link()), (Some(MAC), PortLink::Up));
}

#[test]
fn the_link_is_down_until_the_device_has_taken_the_rings() {
    let ram = GuestRam::new(1, 64);
    let mut device = VfDevice::new(
        VfConfig { mac: MAC, link: true, features: VfFeatures::WORK },
        Arc::new(ram.clone()),
    );
    let mut wire = wire(instant(), VfTransmit::Always);
    let mut port = SimulatedPort::open(device.window(), &ram, 2).unwrap();
    assert_eq!(port.link(), PortLink::Down);
    assert!(device.take_doorbell());
    device.poll(NOW, &mut wire);
    assert!(port.take_interrupt());
    assert_eq!(port.link(), PortLink::Up);
    device.set_link(false);
    assert!(port.take_interrupt());
    assert_eq!(port.link(), PortLink::Down);
    device.set_link(false);
    assert!(!port.take_interrupt(), "nothing changed");
}

#[test]
fn while_the_link_is_down_nothing_moves_and_a_driver_that_did_not_look_loses_nothing() {
    let mut world = World::new(instant());
    world.device.set_link(false);
    world.send(0..3);
    world.peer_sends(0..2);
    world.settle();
    let counters = world.device.counters();
    assert_eq!((counters.tx_seen, counters.tx_confirmed, counters.rx_handed), (3, 0, 0));
    assert_eq!((world.port().confirmed(), world.guest_got.len()), (0, 0));
    assert!(world.wire.peer_receive(NOW).is_none());

    world.device.set_link(true);
    world.settle();
    world.peer_reads(3);
    assert_eq!((&world.peer_got[..], &world.guest_got[..]), (&[0, 1, 2][..], &[0, 1][..]));
    assert_eq!((world.port().confirmed(), world.device.counters().tx_open()), (3, 0));
}

// HISTORY 35: a driver that sees no carrier sends its frames elsewhere, so the device must not send them later.
#[test]
fn frames_that_a_driver_takes_back_while_the_link_is_down_are_never_sent() {
    let mut world = World::new(narrow());
    world.send(0..5);
    world.settle();
    world.device.set_link(false);
    world.port().transmit(&frame(5)).unwrap();
    assert_eq!(world.port().link(), PortLink::Down);
    assert_eq!(world.port().confirmed(), 2, "the first two are on the wire");
    world.settle();
    assert_eq!(world.port().confirmed(), 2, "what was taken back is not confirmed while it counts");
    let counters = world.device.counters();
    assert_eq!((counters.tx_taken_back, counters.tx_open()), (4, 0));
    world.peer_reads(2);

    world.device.set_link(true);
    world.settle();
    assert_eq!(world.port().link(), PortLink::Up);
    assert_eq!(world.port().confirmed(), 6, "nobody waits for the four any more");
    world.send([6]);
    world.settle();
    world.peer_reads(1);
    assert_eq!(world.peer_got, [0, 1, 6]);
    assert_eq!((world.port().confirmed(), world.device.counters().tx_confirmed), (7, 3));
}

#[test]
fn frames_go_both_ways_in_order_across_the_wrap_of_every_count() {
    let mut world = World::new(instant());
    for round in 0..100 {
        let numbers = round * 5..round * 5 + 5;
        world.send(numbers.clone());
        world.peer_sends(numbers);
        world.settle();
        world.peer_reads(5);
        world.settle();
    }
    let all: Vec<_> = (0..500).collect();
    assert_eq!((&world.peer_got, &world.guest_got), (&all, &all));
    assert_eq!(world.port().confirmed(), 500);
    let expected = VfCounters {
        tx_seen: 500,
        tx_confirmed: 500,
        rx_handed: 500,
        starts: 1,
        ..VfCounters::default()
    };
    assert_eq!(world.device.counters(), expected);
    assert!(world.device.quiesced());
}

#[test]
fn frames_are_shown_to_the_device_by_flush_only() {
    let mut world = World::new(instant());
    world.port().transmit(&frame(1)).unwrap();
    world.settle();
    world.device.poll(NOW, &mut world.wire);
    assert_eq!(world.device.counters().tx_seen, 0);
    world.port().flush();
    world.settle();
    assert_eq!(world.port().confirmed(), 1);
    world.port().flush();
    assert!(!world.device.take_doorbell(), "nothing new to tell");
}

#[test]
fn only_what_the_switch_took_is_confirmed() {
    let mut world = World::new(narrow());
    world.send(0..6);
    world.settle();
    assert_eq!(world.port().confirmed(), 2);
    assert!(!world.device.quiesced());
    world.peer_reads(1);
    world.settle();
    assert_eq!(world.port().confirmed(), 3, "the port woke the device when there was room");
    while world.peer_got.len() < 6 {
        world.peer_reads(1);
        world.settle();
    }
    assert_eq!(world.peer_got, [0, 1, 2, 3, 4, 5]);
    assert_eq!(world.port().confirmed(), 6);
    assert!(world.device.quiesced());
}

#[test]
fn a_stalled_device_leaves_frames_in_its_ring_and_sends_them_when_it_is_prompt_again() {
    let mut world = World::new(instant());
    world.device.set_pace(VfPace::Stalled);
    world.send(0..DEPTH_USED);
    world.peer_sends([50]);
    world.settle();
    assert_eq!(world.port().transmit(&frame(99)), Err(PortError::Full));
    assert_eq!((world.port().confirmed(), world.guest_got.len()), (0, 1), "it receives");
    assert!(!world.device.quiesced());
    world.device.set_pace(VfPace::Prompt);
    world.settle();
    world.peer_reads(DEPTH_USED as usize);
    assert_eq!(world.peer_got, (0..DEPTH_USED).collect::<Vec<_>>());
    assert_eq!(world.port().confirmed(), u64::from(DEPTH_USED));
}

// PAIRING F5: what the VF had sent and not confirmed is the one case in which a frame may arrive twice.
#[test]
fn a_device_that_confirms_nothing_sends_all_the_same_and_takes_the_knowledge_with_it() {
    let mut world = World::new(instant());
    world.device.set_pace(VfPace::Unconfirmed);
    world.send(0..3);
    world.settle();
    world.peer_reads(3);
    assert_eq!((world.port().confirmed(), world.device.counters().tx_confirmed), (0, 3));
    world.device.set_pace(VfPace::Prompt);
    world.settle();
    assert_eq!(world.port().confirmed(), 3, "said without another frame");
    world.device.set_pace(VfPace::Unconfirmed);
    world.send(3..5);
    world.settle();
    world.device.tear_away(&mut world.wire);
    world.device.set_pace(VfPace::Prompt);
    world.settle();
    assert_eq!((world.port().confirmed(), world.device.counters().tx_confirmed), (3, 5));
}

#[test]
fn a_full_ring_takes_frames_again_as_they_are_confirmed() {
    let mut world = World::new(narrow());
    world.send(0..DEPTH_USED);
    assert_eq!(world.port().transmit(&frame(99)), Err(PortError::Full));
    world.settle();
    world.send(DEPTH_USED..DEPTH_USED + 2);
    assert_eq!(world.port().transmit(&frame(99)), Err(PortError::Full));
}

#[test]
fn a_guest_that_does_not_read_pushes_back_to_the_wire() {
    let mut world = World::new(instant());
    world.guest_reads = false;
    world.peer_sends(0..20);
    world.settle();
    assert_eq!(world.device.counters().rx_handed, u64::from(DEPTH_USED));
    assert_eq!(world.wire.waiting(Path::Vf), 20 - DEPTH_USED as usize);
    assert!(!world.device.quiesced());
    world.guest_reads = true;
    world.settle();
    assert_eq!(world.guest_got, (0..20).collect::<Vec<_>>());
    assert!(world.device.quiesced());
}

#[test]
fn frames_that_the_switch_drops_are_done_but_not_confirmed_by_the_host() {
    let mut world = World::new(instant());
    world.wire = wire(instant(), VfTransmit::WhileSwitched);
    world.wire.set_data_path(Path::Synthetic);
    world.send([1]);
    world.settle();
    let counters = world.device.counters();
    assert_eq!((counters.tx_confirmed, counters.tx_dropped, counters.tx_open()), (0, 1, 0));
    assert_eq!(world.wire.counters().dropped_from_guest.by(DropCause::NotSwitched), 1);
}

#[test]
fn lengths_no_port_can_send_are_refused_and_others_still_go() {
    let mut world = World::new(instant());
    for len in [0, LONGEST_FRAME + 1, 70_000] {
        let refused = Err(PortError::Length { len, most: LONGEST_FRAME });
        assert_eq!(world.port().transmit(&vec![0; len]), refused);
    }
    world.port().transmit(&vec![2; LONGEST_FRAME]).unwrap();
    world.port().flush();
    world.settle();
    assert_eq!(world.port().confirmed(), 1);
}

#[test]
fn a_frame_longer_than_the_guests_buffers_is_dropped_and_counted() {
    let mut world = World::new(instant());
    assert_eq!(world.wire.peer_transmit(&vec![2; LONGEST_FRAME + 1], NOW), Offered::Accepted);
    world.peer_sends([7]);
    world.settle();
    assert_eq!(world.device.counters().rx_too_long, 1);
    assert_eq!(world.guest_got, [7]);
}

// PAIRING F5: the guest must know exactly which frames to send again.
#[test]
fn a_device_torn_away_leaves_an_exact_count_and_reads_all_ones() {
    let mut world = World::new(narrow());
    world.guest_reads = false;
    world.send(0..6);
    world.peer_sends(0..3);
    world.settle();
    // Handed over after the device last looked: lost like the rest.
    world.send(6..8);
    world.device.tear_away(&mut world.wire);
    world.settle();

    let counters = world.device.counters();
    assert_eq!((counters.tx_seen, counters.tx_confirmed, counters.tx_perished), (8, 2, 6));
    assert_eq!((counters.rx_handed, counters.rx_perished, counters.tx_open()), (3, 3, 0));
    assert_eq!(world.wire.side_state(Path::Vf), SideState::Absent);
    for register in (0..PAGE_SIZE).step_by(4) {
        assert_eq!(load(&world.device.window().registers, register), GONE);
    }
    let port = world.port();
    assert!(port.take_interrupt(), "the driver is told");
    assert_eq!(port.link(), PortLink::Gone);
    assert_eq!(port.confirmed(), 2);
    assert_eq!(port.transmit(&frame(9)), Err(PortError::Gone));
    port.flush();
    assert_eq!(port.receive(&mut |_| panic!("nothing comes from a dead device")), 0);

    let again = SimulatedPort::open(world.device.window(), &world.ram, 8).unwrap_err();
    assert_eq!(again, OpenError::NotThere(GONE));
    world.port = None;
    assert_eq!(world.ram.allocated(), 0, "the device has let go of the guest's memory");
    world.device.poll(NOW, &mut world.wire);
    world.device.tear_away(&mut world.wire);
    assert!(world.device.is_gone());
}

#[test]
fn a_dropped_driver_turns_the_device_off_and_the_next_one_starts_afresh() {
    let mut world = World::new(narrow());
    world.send(0..4);
    world.settle();
    for polled_in_between in [true, false] {
        world.port = None;
        if polled_in_between {
            world.settle();
            assert!(!world.device.is_running());
            assert_eq!(world.wire.side_state(Path::Vf), SideState::Down);
            assert_eq!(world.ram.allocated(), 0);
        }
        let port = SimulatedPort::open(world.device.window(), &world.ram, 16).unwrap();
        world.port = Some(port);
        world.settle();
        assert_eq!((world.port().link(), world.port().confirmed()), (PortLink::Up, 0));
        while let Some(frame) = world.wire.peer_receive(NOW) {
            world.wire.recycle(frame);
        }
        world.send([100]);
        world.settle();
        assert_eq!(world.port().confirmed(), 1);
    }
    let counters = world.device.counters();
    assert_eq!((counters.starts, counters.tx_perished, counters.tx_open()), (3, 2, 0));
}

#[test]
fn a_driver_that_cannot_start_says_why() {
    let ram = GuestRam::new(1, 8);
    let device = VfDevice::new(
        VfConfig { mac: MAC, link: true, features: VfFeatures::WORK },
        Arc::new(ram.clone()),
    );
    for depth in [0, 1, 3, 512] {
        let error = SimulatedPort::open(device.window(), &ram, depth).unwrap_err();
        assert_eq!(error, OpenError::Depth(depth));
    }
    assert!(matches!(SimulatedPort::open(device.window(), &ram, 256), Err(OpenError::Memory(_))));
    assert_eq!(ram.allocated(), 0);
}

#[test]
fn registers_and_window_are_what_the_layout_says() {
    let ram = GuestRam::new(1, 8);
    let device = VfDevice::new(
        VfConfig { mac: MAC, link: false, features: VfFeatures::WORK },
        Arc::new(ram),
    );
    let mut bytes = [0; 0x18];
    device.window().registers.read(0, &mut bytes).unwrap();
    #[rustfmt::skip]
    assert_eq!(bytes, [
        b'N', b'V', b'F', b'1', 0, 0, 0, 0,
        0x00, 0x15, 0x5d, 0x01, 0x02, 0x03, 0, 0,
        0x00, 0x08, 0, 0, 7, 0, 0, 0,
    ]);
    let described = description(Slot::new(0, 0).unwrap(), Serial(4));
    assert_eq!((described.class, described.subclass, described.serial), (2, 0, Serial(4)));
}

proptest! {
    // Whatever happens in whatever order, and whenever the device is torn away: the peer has exactly the frames that the
    // driver counts as confirmed, in order, and every frame is accounted for.
    #[test]
    fn every_frame_is_accounted_for(steps in proptest::collection::vec((0_u8..7, 1_u32..12), 1..80)) {
        let mut world = World::new(WireConfig { capacity: 600, ..WireConfig::instant() });
        world.guest_reads = false;
        let (mut sent, mut queued, mut from_peer) = (0, 0, 0);
        for (step, count) in steps {
            match step {
                0 => for _ in 0..count {
                    queued += u32::from(world.port().transmit(&frame(queued)).is_ok());
                },
                1 => {
                    world.port().flush();
                    sent = queued;
                }
                2 => world.settle(),
                3 => while let Some(frame) = world.wire.peer_receive(NOW) {
                    world.peer_got.push(number(&frame));
                },
                4 => for _ in 0..count {
                    let accepted = world.wire.peer_transmit(&frame(from_peer), NOW);
                    from_peer += u32::from(accepted == Offered::Accepted);
                },
                _ => {
                    let got = &mut world.guest_got;
                    world.port.as_mut().unwrap().receive(&mut |frame| got.push(number(frame)));
                }
            }
        }
        world.device.tear_away(&mut world.wire);
        while let Some(frame) = world.wire.peer_receive(NOW) {
            world.peer_got.push(number(&frame));
        }
        let confirmed = world.port().confirmed();
        let counters = world.device.counters();
        prop_assert_eq!(world.peer_got, (0..confirmed as u32).collect::<Vec<_>>());
        prop_assert_eq!(counters.tx_confirmed, confirmed);
        prop_assert_eq!(counters.tx_seen, u64::from(sent));
        prop_assert_eq!(counters.tx_perished, u64::from(sent) - confirmed);
        prop_assert_eq!(&world.guest_got, &(0..world.guest_got.len() as u32).collect::<Vec<_>>());
        prop_assert_eq!(counters.rx_handed, world.guest_got.len() as u64 + counters.rx_perished);
        let mut left = 0;
        while world.wire.next_for_guest(Path::Synthetic, NOW).is_some() {
            left += 1;
        }
        prop_assert_eq!(counters.rx_handed + left, u64::from(from_peer));
    }
}

#[test]
fn a_device_whose_frames_go_elsewhere_has_a_mac_and_no_rings() {
    let ram = GuestRam::new(5, 64);
    let config = VfConfig { mac: MAC, link: true, features: VfFeatures::ELSEWHERE };
    let mut device = VfDevice::new(config, Arc::new(ram.clone()));
    let mut wire = wire(WireConfig::instant(), VfTransmit::Always);
    assert!(device.is_elsewhere() && device.take_doorbell(), "nobody else rings");
    device.poll(NOW, &mut wire);
    assert_eq!(wire.side_state(Path::Vf), SideState::Up);
    assert_eq!(device.window().describe(), (MAC, VfFeatures::ELSEWHERE));
    let refused = SimulatedPort::open(device.window(), &ram, DEPTH_USED).unwrap_err();
    assert_eq!(refused, OpenError::Elsewhere);
    // What waits for the guest stays where whoever carries it finds it.
    assert_eq!(wire.peer_transmit(&frame(7), NOW), Offered::Accepted);
    device.poll(NOW, &mut wire);
    assert_eq!(wire.next_for_guest(Path::Vf, NOW).map(|frame| number(&frame)), Some(7));
    device.tear_away(&mut wire);
    assert_eq!(wire.side_state(Path::Vf), SideState::Absent);
}

//! Functions in a whole system: host and guest over one memory, on a stepped clock, with numbered frames instead of TCP.

mod system;

use std::time::Duration;

use hyperv_host::bus::BusPolicy;
use hyperv_host::host::{ActError, Departure, Disassociation, VfPlace};
use hyperv_host::nic::{NicPolicy, SwitchAnswer};
use hyperv_host::pci::PciPolicy;
use hyperv_host::switch::VlanMode;
use netvsc_cli::event::What;
use system::{System, bus, vf};
use vmbus::Serial;
use vmbus::bus::PostStatus;
use vmbus::message::Version;

/// Long enough for every frame to arrive, and for every switch.
const SOON: Duration = Duration::from_millis(50);
/// What host and guest take for servicing of a VF.
const SERVICING: Duration = Duration::from_secs(30);

/// Frames in both directions over every NIC; all arrive.
fn traffic(system: &mut System) {
    for nic in 0..system.nics() {
        system.send(nic, 60);
        system.peer_sends(nic, 20);
    }
    system.run(SOON);
    for nic in 0..system.nics() {
        system.check(nic);
    }
}

fn all_on_vf(system: &mut System) {
    for nic in 0..system.nics() {
        system.run_until_on_vf(nic);
    }
}

/// NIC, serial and reason of every pair.
fn pairs(system: &System) -> Vec<(usize, u32, &'static str)> {
    let pairs = system.world.guest.pairs();
    pairs.into_iter().map(|pair| (pair.nic, pair.serial, pair.reason)).collect()
}

// HISTORY 35: without carrier the VF is a black hole; what it had and had not sent goes out on the synthetic path.
#[test]
fn a_vf_without_carrier_is_left_and_no_frame_is_lost_doubled_or_overtaken() {
    let mut system = System::with_nics(1);
    system.add_vf(0, 7);
    system.run_until_on_vf(0);
    for _ in 0..5 {
        system.send(0, 40);
        system.peer_sends(0, 5);
        system.world.host.set_vf_link(0, false).unwrap();
        system.send(0, 20);
        system.settle();
        assert_eq!(system.path(0), "synthetic", "within one poll");
        system.run(SOON);
        system.check(0);
        system.world.host.set_vf_link(0, true).unwrap();
        system.run_until_on_vf(0);
        system.send(0, 30);
        system.run(SOON);
        system.check(0);
    }
    assert!(system.world.host.vf_counters(0).tx_taken_back >= 5 * 60);
}

// HISTORY 40, PAIRING P5: one function, one serial, three ports; the MAC decides which NIC has which.
#[test]
fn the_ports_of_one_function_are_paired_by_their_macs_and_each_has_queues_of_its_own() {
    let mut system = System::with_nics(3);
    system.add_shared_vf(9, 9);
    all_on_vf(&mut system);
    assert_eq!(
        pairs(&system),
        [(0, 9, "SerialAndMac"), (1, 9, "SerialAndMac"), (2, 9, "SerialAndMac")]
    );
    traffic(&mut system);
    for nic in 0..3 {
        let counters = system.world.host.vf_counters(nic);
        assert_eq!((counters.tx_confirmed, counters.rx_handed, counters.starts), (60, 20, 1));
    }
    let arrived = system.take_told(|what| match what {
        What::FunctionArrived { id, .. } => Some(id.clone()),
        _ => None,
    });
    assert_eq!(arrived, ["1414:00ba"]);
}

// PAIRING P6: the associations name another number than the function has, as MANA's do.
#[test]
fn ports_whose_serial_no_association_names_are_paired_by_mac() {
    let mut system = System::with_nics(2);
    system.add_shared_vf(1_296_119_428, 1);
    all_on_vf(&mut system);
    assert_eq!(pairs(&system), [(0, 1_296_119_428, "Mac"), (1, 1_296_119_428, "Mac")]);
    traffic(&mut system);
}

// HISTORY 16: other vPCI devices have the same serial numbers as VFs.
#[test]
fn a_disk_with_the_serial_of_a_vf_is_found_and_never_paired() {
    let mut system = System::with_nics(1);
    system.add_disk(100, 7);
    system.run(SOON);
    system.add_vf(0, 7);
    system.add_disk(101, 7);
    all_on_vf(&mut system);
    assert_eq!(pairs(&system), [(0, 7, "SerialAndMac")]);
    let serials = system.take_told(|what| match what {
        What::FunctionArrived { serial, .. } => Some(*serial),
        _ => None,
    });
    assert_eq!(serials, [Serial(7); 3]);
    assert_eq!(system.world.host.pci(bus(100)).unwrap().assigned(), 1);

    // They go, one asked for and one not, and the VF stays where it is.
    system.world.host.eject_device(bus(100), system.now).unwrap();
    system.world.host.tear_away_device(bus(101), system.now).unwrap();
    traffic(&mut system);
    assert_eq!(system.gone_devices.len(), 2);
    assert!(system.gone_devices.contains(&(bus(100), Departure::Orderly)));
    assert!(system.gone_devices.contains(&(bus(101), Departure::Surprise)));
    assert!(!system.world.host.has_device(bus(100)));
    assert_eq!((system.path(0), system.gone.len()), ("vf", 0));
}

// F4, F6: one function, several NICs, one eject. All leave it together and none loses a frame.
#[test]
fn the_nics_of_one_function_leave_it_together_and_come_back_together() {
    let mut system = System::with_nics(3);
    for serial in [9, 10] {
        system.add_shared_vf(serial, serial);
        all_on_vf(&mut system);
        for nic in 0..3 {
            system.send(nic, 40);
        }
        system.world.host.eject_vf(0, Disassociation::First, system.now).unwrap();
        for nic in 0..3 {
            system.send(nic, 40);
        }
        system.run(Duration::from_secs(2));
        for nic in 0..3 {
            assert_eq!(system.path(nic), "synthetic");
            system.check(nic);
            assert_eq!(system.world.guest.counters(nic).frames_resent, 0);
        }
        let answers =
            system.take_told(|what| matches!(what, What::EjectAnswered { .. }).then_some(()));
        assert_eq!(answers.len(), 1, "the function is given back once");
        system.world.unmap_vf(bus(0));
    }
    assert!(system.gone.iter().all(|(_, how)| *how == Departure::Orderly));
}

#[test]
fn acts_that_are_not_possible_are_refused() {
    let mut system = System::with_nics(2);
    system.add_disk(100, 1);
    let now = system.now;
    let host = &mut system.world.host;
    let first = Disassociation::First;
    assert_eq!(host.add_shared_vf(&[], vf(0, 1), now), Err(ActError::Ports(0)));
    assert_eq!(host.add_shared_vf(&[0; 16], vf(0, 1), now), Err(ActError::Ports(16)));
    assert_eq!(host.add_shared_vf(&[0, 0], vf(0, 1), now), Err(ActError::VfPresent(0)));
    assert_eq!(host.add_shared_vf(&[0, 2], vf(0, 1), now), Err(ActError::NoNic(2)));
    assert_eq!(host.add_vf(0, vf(100, 1), now), Err(ActError::DevicePresent(bus(100))));
    assert_eq!(host.vf_place(0), VfPlace::Absent, "nothing was done by halves");
    assert_eq!(host.eject_vf(0, first, now), Err(ActError::NoVf(0)));
    assert_eq!(host.tear_away_vf(5, first, now), Err(ActError::NoNic(5)));
    assert_eq!(host.set_vf_link(1, true), Err(ActError::NoVf(1)));
    host.add_shared_vf(&[0, 1], vf(0, 1), now).unwrap();
    assert_eq!(host.add_vf(1, vf(1, 1), now), Err(ActError::VfPresent(1)));
    assert_eq!(host.eject_device(bus(0), now), Err(ActError::NoDevice(bus(0))), "it has NICs");
    assert_eq!(host.tear_away_device(bus(0), now), Err(ActError::NoDevice(bus(0))));
    assert_eq!(host.eject_device(bus(9), now), Err(ActError::NoDevice(bus(9))));
    system.run(SOON);
    let host = &mut system.world.host;
    assert_eq!(host.eject_device(bus(100), system.now), Ok(()));
    let again = host.eject_device(bus(100), system.now);
    assert_eq!(again, Err(ActError::NoDevice(bus(100))), "it is on its way out");
}

/// How a VF goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Removal {
    Orderly,
    Surprise,
}

/// How NICs have their VFs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Layout {
    Own,
    Shared,
}

const BEFORE_AND_AFTER: [Disassociation; 3] = [
    Disassociation::First,
    Disassociation::After(Duration::ZERO),
    Disassociation::After(Duration::from_millis(40)),
];

fn add(system: &mut System, layout: Layout, serial: u32) {
    match layout {
        Layout::Own => (0..system.nics()).for_each(|nic| system.add_vf(nic, serial)),
        Layout::Shared => system.add_shared_vf(serial, serial),
    }
}

/// Takes the VF of every NIC. One that is not offered yet stays.
fn take(system: &mut System, layout: Layout, removal: Removal, then: Disassociation) {
    let last = if layout == Layout::Own { system.nics() } else { 1 };
    for nic in 0..last {
        let (host, now) = (&mut system.world.host, system.now);
        let done = match removal {
            Removal::Orderly => host.eject_vf(nic, then, now),
            Removal::Surprise => host.tear_away_vf(nic, then, now),
        };
        assert!(matches!(done, Ok(()) | Err(ActError::NoVf(_))), "{done:?}");
    }
}

fn all_absent(system: &System) -> bool {
    (0..system.nics()).all(|nic| system.world.host.vf_place(nic) == VfPlace::Absent)
}

// The scenarios "orderly removal", "surprise removal" and "servicing", with the NIC's disassociation before and after, and
// with the serial number kept and changed. HISTORY 28: nothing is stored that a new number could contradict.
// HISTORY 5: the upper layer has one card all the while, under one number.
#[test]
fn vfs_go_in_any_way_under_traffic_and_come_back_after_servicing_with_any_serial() {
    for layout in [Layout::Own, Layout::Shared] {
        for removal in [Removal::Orderly, Removal::Surprise] {
            for then in BEFORE_AND_AFTER {
                let at = format!("{layout:?}, {removal:?}, {then:?}");
                let mut system = System::with_nics(2);
                add(&mut system, layout, 5);
                all_on_vf(&mut system);
                for serial in [5, 6] {
                    // Under way while the VF goes.
                    for nic in 0..2 {
                        system.send(nic, 50);
                        system.peer_sends(nic, 10);
                    }
                    take(&mut system, layout, removal, then);
                    system.run_until(&at, all_absent);
                    system.run(SERVICING);
                    traffic(&mut system);
                    assert_eq!(
                        (system.path(0), system.path(1)),
                        ("synthetic", "synthetic"),
                        "{at}"
                    );
                    add(&mut system, layout, serial);
                    all_on_vf(&mut system);
                    let reason = "SerialAndMac";
                    assert_eq!(pairs(&system), [(0, serial, reason), (1, serial, reason)], "{at}");
                    traffic(&mut system);
                }
                let departure = match removal {
                    Removal::Orderly => Departure::Orderly,
                    Removal::Surprise => Departure::Surprise,
                };
                let ways: Vec<_> = system.gone.iter().map(|gone| gone.1).collect();
                assert_eq!(ways, [departure; 4], "{at}");
            }
        }
    }
}

// The scenario "the host's patience ends": it completes the switch away from the VF later than it waits for the guest.
#[test]
fn a_host_whose_patience_ends_takes_the_vf_as_by_surprise_and_no_frame_is_lost() {
    for layout in [Layout::Own, Layout::Shared] {
        let nic = NicPolicy {
            switch_answer: SwitchAnswer::Complete(Duration::from_millis(20)),
            ..NicPolicy::default()
        };
        let pci = PciPolicy { eject_patience: Duration::from_millis(10), ..PciPolicy::default() };
        let mut system = System::with_policies(2, BusPolicy::default(), pci, &nic);
        add(&mut system, layout, 5);
        all_on_vf(&mut system);
        for nic in 0..2 {
            system.send(nic, 50);
        }
        take(&mut system, layout, Removal::Orderly, Disassociation::After(Duration::ZERO));
        system.run_until("the VFs are gone", all_absent);
        assert!(system.gone.iter().all(|gone| gone.1 == Departure::Surprise), "{:?}", system.gone);
        traffic(&mut system);
        add(&mut system, layout, 5);
        all_on_vf(&mut system);
        traffic(&mut system);
    }
}

// The scenario "removal during every step of the guest". Every answer of the host takes a while, so that each step has a
// moment of its own at which the VF can go.
#[test]
fn a_vf_may_go_at_any_step_of_its_arrival_and_comes_back() {
    let answer = Duration::from_micros(100);
    let nic = NicPolicy {
        switch_answer: SwitchAnswer::Complete(answer),
        offer_delay: Duration::from_micros(300),
        ..NicPolicy::default()
    };
    let pci = PciPolicy { reply_delay: answer, ..PciPolicy::default() };
    let bus = BusPolicy { reply_delay: answer, ..BusPolicy::default() };
    for layout in [Layout::Own, Layout::Shared] {
        for removal in [Removal::Orderly, Removal::Surprise] {
            let mut moment = 0;
            loop {
                let at = format!("{layout:?}, {removal:?} {moment} steps after the association");
                let mut system = System::with_policies(2, bus.clone(), pci.clone(), &nic);
                let ready = |system: &System| {
                    (0..2).all(|nic| system.world.guest.view(nic).mac != String::new())
                };
                system.run_until("the NICs are ready", ready);
                add(&mut system, layout, 3);
                for _ in 0..moment {
                    system.run_to_next();
                }
                let arrived = (0..2).all(|nic| system.path(nic) == "vf");
                for nic in 0..2 {
                    system.send(nic, 5);
                }
                take(&mut system, layout, removal, Disassociation::First);
                system.run(Duration::from_secs(1));
                if (0..2).any(|nic| system.world.host.vf_place(nic) != VfPlace::Absent) {
                    // It was not offered yet at that moment, and is now.
                    take(&mut system, layout, removal, Disassociation::First);
                }
                system.run_until(&at, all_absent);
                system.run(SERVICING);
                add(&mut system, layout, 3);
                all_on_vf(&mut system);
                traffic(&mut system);
                if arrived {
                    break;
                }
                moment += 1;
            }
            // Association, offer, rings, channel, version, D0 entry, requirements, resources, switch.
            assert!(moment >= 9, "{layout:?}: {moment} steps are too few to be true");
        }
    }
}

// To the guest it is the same NIC each time, number 0; to the host it is another one.
// HISTORY 63: a NIC is its instance GUID, whatever the order of offers.
#[test]
fn a_nic_is_taken_away_with_its_vf_and_comes_back_under_its_identity() {
    let mut system = System::with_nics(1);
    for (nic, serial) in [(0, 7), (1, 8), (2, 7)] {
        system.add_vf(nic, serial);
        system.run_until_on_vf(0);
        let sent = nic as u32 * 60..(nic as u32 + 1) * 60;
        system.send(0, 60);
        system.run(SOON);
        assert_eq!(system.peer_got(nic), sent.collect::<Vec<_>>());
        system.world.host.remove_nic(nic, system.now).unwrap();
        system.run_until("the NIC is gone", |system| system.gone_nics.len() == nic + 1);
        system.run_until("its VF is gone", |system| system.gone.len() == nic + 1);
        assert_eq!(system.world.host.remove_nic(nic, system.now), Err(ActError::NoNic(nic)));
        let spec = vf(9, 9);
        assert_eq!(system.world.host.add_vf(nic, spec, system.now), Err(ActError::NoNic(nic)));
        assert_eq!(system.add_nic(0), nic + 1);
    }
    assert_eq!(system.gone_nics, [0, 1, 2]);
}

#[test]
fn joined_nics_reach_each_other_without_a_peer() {
    let mut system = System::with_nics(3);
    system.run(SOON);
    for (nic, vlan) in [(0, 1), (1, 1), (2, 2)] {
        system.world.host.connect_nic(nic, VlanMode::Access(vlan)).unwrap();
    }
    // To an address that nobody has: everybody in the VLAN gets it.
    system.send(0, 30);
    system.run(SOON);
    assert_eq!(system.guest_got(1), (0..30).collect::<Vec<_>>());
    assert_eq!((system.guest_got(0).len(), system.guest_got(2).len()), (0, 0));
    let counters = system.world.host.bridge_counters();
    assert_eq!((counters.flooded, counters.unaccounted()), (30, 0));
}

#[test]
fn a_guest_finds_an_old_host_whose_hypervisor_is_short_of_room() {
    let busy = [PostStatus::INSUFFICIENT_BUFFERS, PostStatus::INSUFFICIENT_MEMORY];
    for version in [Version::V2_4, Version::V4_1] {
        let (versions, post_failures) = (vec![version], busy.into());
        let bus = BusPolicy { versions, post_failures, ..BusPolicy::default() };
        let mut system = System::with_policies(1, bus, PciPolicy::default(), &NicPolicy::default());
        system.add_vf(0, 7);
        all_on_vf(&mut system);
        traffic(&mut system);
        assert_eq!(pairs(&system), [(0, 7, "SerialAndMac")], "{version}");
    }
}

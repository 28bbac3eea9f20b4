//! What the kernel did and what the rules call for, in every kind of guest.

#[expect(dead_code, reason = "shared with tests that need more of it")]
mod guest;

use guest::{Guest, kernel, kinds};
use netvsc::pairing::Reason;
use netvsc::port::Path;
use netvsc_linux::inventory::{Depth, Snapshot, Source, take};
use netvsc_linux::relation::{Obstacle, Relations, State};
use vmbus::Serial;

fn read(guest: &Guest) -> Snapshot {
    take(Some(guest.root()), Depth::Pairs).expect("the root is a directory")
}

/// The state of every NIC, the name of its VF, and the reason.
fn states(guest: &Guest) -> Vec<(State, Option<String>, Option<Reason>)> {
    let snapshot = read(guest);
    let relations = Relations::of(&snapshot);
    let row = |nic| {
        let vf = relations.vf(nic).map(|vf| vf.link.name.clone());
        (nic.state, vf, nic.reason)
    };
    relations.nics.iter().map(row).collect()
}

fn accelerated(vf: &str, reason: Reason) -> (State, Option<String>, Option<Reason>) {
    (State::Accelerated, Some(vf.into()), Some(reason))
}

/// The only NIC's state and what stands in its way.
fn only(guest: &Guest) -> (State, Option<Obstacle>) {
    let snapshot = read(guest);
    let relations = Relations::of(&snapshot);
    let [nic] = relations.nics.as_slice() else { panic!("one NIC") };
    (nic.state, nic.obstacle)
}

// HISTORY 59: NIC and VF have one MAC, and are one pair.
#[test]
fn healthy_guests_are_accelerated_by_serial_and_mac() {
    let both = Reason::SerialAndMac;
    let two = [accelerated("enP37498s1", both), accelerated("enP6757s2", both)];
    assert_eq!(states(&kinds::azure_mlx4()), two);
    assert_eq!(states(&kinds::worked_example()), two);
    let named = [accelerated("enP37498s1np0", both), accelerated("enP6757s2np0", both)];
    assert_eq!(states(&kinds::azure_mlx5()), named);
    assert_eq!(states(&kinds::on_prem()), [accelerated("enP24173s3", both)]);
    assert_eq!(states(&kinds::renamed_vf()), [accelerated("fast0", both)]);
    assert_eq!(states(&kinds::after_hibernation()), [accelerated("enP6757s2", both)]);
}

#[test]
fn ports_of_a_function_whose_slot_is_another_number_are_told_apart_by_mac() {
    let mana = states(&kinds::azure_mana());
    let names = ["enP30832s1", "enP30832s1d1", "enP30832s1d2", "enP30832s1d3"];
    assert_eq!(mana, names.map(|name| accelerated(name, Reason::Mac)));
}

#[test]
fn what_the_rules_call_for_is_what_the_kernel_did_in_every_healthy_guest() {
    for guest in [kinds::worked_example(), kinds::azure_mana(), kinds::on_prem()] {
        let snapshot = read(&guest);
        for port in Relations::of(&snapshot).ports {
            assert_eq!(port.should.map(|(nic, _)| nic), port.did, "{}", port.link.name);
        }
    }
}

#[test]
fn an_emulated_nic_with_the_same_mac_is_no_candidate() {
    let guest = kinds::emulated_beside();
    let snapshot = read(&guest);
    let relations = Relations::of(&snapshot);
    assert_eq!(relations.ports.len(), 1);
    let (link, refusal) = &relations.others[0];
    assert_eq!((link.name.as_str(), refusal.rule()), ("eth1", "P1"));
}

// HISTORY 2: it has the VF's MAC, and is none.
#[test]
fn a_vlan_over_the_vf_is_no_second_candidate() {
    let mut guest = Guest::new();
    let pair = kinds::one(&mut guest);
    let name = format!("{}.100", pair.port.name);
    let vlan = guest.software(&name, "7c:1e:52:25:55:d2");
    guest.write(&format!("{vlan}/uevent"), &format!("DEVTYPE=vlan\nINTERFACE={name}\nIFINDEX=9"));
    guest.symlink(&format!("{vlan}/lower_{}", pair.port.name), &pair.port.net);
    let snapshot = read(&guest);
    let relations = Relations::of(&snapshot);
    let [port] = relations.ports.as_slice() else { panic!("one candidate") };
    assert_eq!(port.link.name, pair.port.name);
    assert!(port.did.is_some() && port.should.map(|(nic, _)| nic) == port.did);
    let (link, refusal) = &relations.others[0];
    assert_eq!((link.name.as_str(), refusal.rule()), (name.as_str(), "P1"));
}

#[test]
fn a_port_without_nic_stands_alone() {
    let guest = kinds::mana_only();
    let snapshot = read(&guest);
    let relations = Relations::of(&snapshot);
    assert!(relations.nics.is_empty());
    let alone: Vec<_> = relations.standalone().map(|port| port.link.name.as_str()).collect();
    assert_eq!(alone, ["enP30832s1"]);
}

// HISTORY 71: also where user space has the NIC.
#[test]
fn the_first_broken_link_is_named() {
    let address = netvsc_linux::inventory::PciAddress::parse("927a:00:02.0").unwrap();
    let mana = netvsc_linux::inventory::PciAddress::parse("927a:00:00.0").unwrap();
    let synthetic = State::Synthetic;
    for (guest, state, obstacle) in [
        (kinds::synthetic_only(), synthetic, Obstacle::NoAssociation),
        (kinds::mid_servicing(), synthetic, Obstacle::NoAssociation),
        (kinds::driver_missing(), State::Waiting, Obstacle::NoDriver(mana)),
        (kinds::vf_in_namespace(), State::Waiting, Obstacle::NoPort(address)),
        (kinds::bonded(), State::Pending, Obstacle::NotJoined),
        (kinds::duplicate_slot(), State::Waiting, Obstacle::NoFunction),
        (kinds::confidential(), synthetic, Obstacle::Isolated),
        (kinds::uio_bound(), synthetic, Obstacle::NicUnbound),
    ] {
        assert_eq!(only(&guest), (state, Some(obstacle)));
    }
}

#[test]
fn a_vf_that_is_down_or_not_switched_to_is_paired() {
    let mut guest = Guest::new();
    let pair = kinds::one(&mut guest);
    guest.say_nic(7_000_000, &pair.nic, "Data path switched from VF: enP37498s1");
    assert_eq!(only(&guest), (State::Paired, Some(Obstacle::NotSwitched)));
    guest.write(&format!("{}/flags", pair.port.net), "0x1802");
    assert_eq!(only(&guest), (State::Paired, Some(Obstacle::VfDown)));
}

#[test]
fn without_the_log_nothing_is_claimed() {
    let mut guest = Guest::new();
    kinds::one(&mut guest);
    guest.remove("dev/kmsg");
    assert_eq!(only(&guest), (State::Unknown, Some(Obstacle::NoLog)));
    let snapshot = read(&guest);
    let relations = Relations::of(&snapshot);
    let told = relations.nics[0].association.unwrap();
    assert_eq!((told.value, told.source), (Some(Serial(1)), Source::InferredLink));
    assert_eq!((relations.nics[0].path, relations.nics[0].reason), (None, None));
    let guest = kinds::synthetic_only();
    guest.remove("dev/kmsg");
    assert_eq!(only(&guest), (State::Unknown, Some(Obstacle::NoLog)));
}

#[test]
fn frames_that_go_through_the_vf_are_seen_in_counters_where_there_is_no_log() {
    let mut guest = Guest::new();
    let pair = kinds::one(&mut guest);
    guest.remove("dev/kmsg");
    let seen = |guest: &Guest| {
        let snapshot = read(guest);
        let nic = &Relations::of(&snapshot).nics[0];
        (nic.state, nic.path, nic.path_source)
    };
    guest.sample_vf(pair.nic.index, [70, 70, 71]);
    assert_eq!(seen(&guest), (State::Accelerated, Some(Path::Vf), Some(Source::Counters)));
    // Where nothing went through the VF, perhaps nothing was sent.
    guest.sample_vf(pair.nic.index, [70, 70, 70]);
    assert_eq!(seen(&guest), (State::Unknown, None, None));
    // What the host confirmed counts for more than what was on its way.
    guest.say(0, "Linux version 6.8.0-1020-azure", None);
    guest.say_nic(7_000_000, &pair.nic, "Data path switched from VF: enP37498s1");
    guest.sample_vf(pair.nic.index, [70, 80, 90]);
    let logged = Some(Source::KernelLog);
    assert_eq!(seen(&guest), (State::Paired, Some(Path::Synthetic), logged));
}

#[test]
fn a_log_that_was_cut_short_says_nothing_by_silence() {
    let guest = kinds::synthetic_only();
    guest.write("dev/kmsg", "6,900,5000000,-;something else");
    assert_eq!(only(&guest), (State::Unknown, Some(Obstacle::NoLog)));
}

#[test]
fn nics_that_nothing_tells_apart_are_in_conflict() {
    let mut guest = Guest::new();
    let mac = "00:15:5d:01:02:03";
    let a = guest.nic("2d0e6c1a-93f4-4b5e-8a77-0c1d2e3f4a5b", "eth0", mac);
    let b = guest.nic("2d0e6c1a-93f4-4b5e-8a77-0c1d2e3f4a5c", "eth1", mac);
    let function = guest.function("4f1c9b02-5e6d-4a7b-9c8d-1e2f3a4b5c6d", "3", &kinds::IXGBEVF);
    guest.port(&function, "enP24173s3", mac, 0);
    for nic in [&a, &b] {
        guest.say_nic(2000, nic, "VF slot 3 added");
    }
    let states: Vec<_> = states(&guest).into_iter().map(|(state, ..)| state).collect();
    assert_eq!(states, [State::Conflict; 2]);
}

#[test]
fn a_serial_is_read_from_a_name_where_there_are_no_slots() {
    let mut guest = Guest::new();
    let pair = kinds::one(&mut guest);
    guest.remove("sys/bus/pci/slots/1");
    guest.udev(pair.port.index, &[("ID_NET_NAME_SLOT", "enP37498s1np0")]);
    let snapshot = read(&guest);
    let serial = Relations::of(&snapshot).ports[0].serial.unwrap();
    assert_eq!((serial.value, serial.source), (Serial(1), Source::SlotName));
}

#[test]
fn a_serial_is_read_from_another_name_that_the_interface_has() {
    for (name, serial) in [
        ("enP37498s1296119428", Some(1_296_119_428)),
        ("enP37498s7np0", Some(7)),
        ("enP37498s7d1", Some(7)),
        // Of another function, without a slot, and what nobody makes of a slot.
        ("enP6757s7", None),
        ("enP37498p0s2", None),
        ("enP37498s7x", None),
    ] {
        let mut guest = Guest::new();
        let pair = kinds::one(&mut guest);
        guest.remove("sys/bus/pci/slots/1");
        guest.tell("", pair.port.index, "enP37498s1", &[kernel::altname(name)]);
        let snapshot = read(&guest);
        let read = Relations::of(&snapshot).ports[0].serial;
        let expected = serial.map(|value| (Serial(value), Source::SlotName));
        assert_eq!(read.map(|it| (it.value, it.source)), expected, "{name}");
    }
}

#[test]
fn the_path_is_the_last_one_that_the_host_confirmed() {
    let guest = kinds::after_hibernation();
    let snapshot = read(&guest);
    let relations = Relations::of(&snapshot);
    assert_eq!(relations.nics[0].path, Some(Path::Vf));
    assert_eq!(relations.nics[0].since.unwrap().as_millis(), 91_200);
}

#[test]
fn a_pair_of_two_macs_has_no_reason() {
    let mut guest = Guest::new();
    let pair = kinds::one(&mut guest);
    guest.write(&format!("{}/address", pair.port.net), "7c:1e:52:25:5c:a6");
    assert_eq!(states(&guest), [(State::Accelerated, Some("enP37498s1".into()), None)]);
}

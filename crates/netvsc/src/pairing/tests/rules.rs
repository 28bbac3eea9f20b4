//! One test per rule, by its number in PAIRING.md.
extern crate std;

use std::string::ToString;
use std::time::Duration;
use std::vec;

use super::*;

#[test]
fn p1_an_emulated_nic_with_the_same_mac_is_never_paired() {
    // HISTORY 2, 3, 21
    for kind in [
        DeviceKind::Emulated,
        DeviceKind::Pci,
        DeviceKind::Usb,
        DeviceKind::Tap,
        DeviceKind::Vlan,
        DeviceKind::Bond,
        DeviceKind::Bridge,
        DeviceKind::Team,
        DeviceKind::Other,
    ] {
        let mut world = World::new();
        let nic = world.nic(0, mac(1));
        world.associate(nic, 7);
        world.pairing.ignored(kind, mac(1));
        world.run();
        assert_eq!(world.words(), ["refused"]);
        assert_eq!(world.state(nic), "waiting");
        // The VF underneath, of the same MAC, is the one candidate.
        let (_, port) = world.vf(0, 7, mac(1));
        assert_eq!(world.pairing.bound(nic).map(|(port, _)| port.id), Some(port));
    }
}

#[test]
fn p1_the_refusal_names_rule_and_device() {
    let mut pairing = Pairing::new(PairingConfig::default());
    pairing.ignored(DeviceKind::Emulated, mac(1));
    let refusal = pairing.poll_decision().expect("a refusal");
    assert_eq!(
        refusal.to_string(),
        "an emulated network card with MAC 00:15:00:00:00:01 is no candidate: it did not come over vPCI (P1)"
    );
}

#[test]
fn p2_an_old_serial_matches_nothing() {
    let mut world = World::new();
    let (a, b) = (world.nic(0, mac(1)), world.nic(1, mac(1)));
    world.associate(a, 7);
    world.disassociate(a);
    world.associate(b, 7);
    world.vf(0, 7, mac(1));
    assert_eq!(world.pairs(), [(instance(1), port_key(0, 7, 0), Reason::SerialAndMac)]);
    assert_eq!(world.state(a), "synthetic");
}

#[test]
fn p2_serial_0_is_an_ordinary_number() {
    ordinary_serial(0);
}

#[test]
fn p2_serial_4294967295_is_an_ordinary_number() {
    ordinary_serial(u32::MAX);
}

fn ordinary_serial(serial: u32) {
    let mut world = World::new();
    let (a, b) = (world.nic(0, mac(1)), world.nic(1, mac(2)));
    // `a` never hears of an association; that is not an association with 0.
    world.associate(b, serial);
    world.vf(0, serial, mac(2));
    assert_eq!(world.pairs(), [(instance(1), port_key(0, serial, 0), Reason::SerialAndMac)]);
    assert_eq!((world.state(a), world.state(b)), ("synthetic", "paired"));
}

#[test]
fn p3_the_bind_carries_its_reason_and_facts() {
    let mut world = World::new();
    let nic = world.nic(0, mac(1));
    world.associate(nic, 7);
    world.vf(2, 7, mac(1));
    let bind = world.log.iter().find(|decision| decision.word() == "bind").expect("bound");
    let Decision::Bind { reason, facts, .. } = bind else { unreachable!() };
    assert_eq!(reason.word(), "SerialAndMac");
    let expected = Facts {
        associated: Some(Serial(7)),
        serial: Serial(7),
        nic_mac: mac(1),
        port_mac: Some(mac(1)),
    };
    assert_eq!(*facts, expected);
    let text = bind.to_string();
    assert!(text.contains("serial and permanent MAC agree"), "{text}");
    assert!(text.contains("slot 0x2"), "{text}");
}

#[test]
fn p4_a_mac_not_known_yet_waits() {
    let mut world = World::new();
    let nic = world.nic(0, mac(1));
    world.associate(nic, 7);
    let function = world.function(0, 7);
    let port = world.port(function, 0, PermanentMac::NotYet);
    assert_eq!(world.words(), ["pending"]);
    assert_eq!(world.state(nic), "pending");
    assert_eq!(world.port(function, 0, PermanentMac::Known(mac(1))), port);
    assert_eq!(world.words(), ["bind"]);
    assert_eq!(world.state(nic), "paired");
}

#[test]
fn p4_an_address_that_no_station_has_is_not_known() {
    for nobody in [MacAddress([0; 6]), MacAddress::BROADCAST] {
        let mut world = World::new();
        let nic = world.nic(0, nobody);
        world.associate(nic, 7);
        world.vf(0, 7, nobody);
        assert_eq!((world.pairs(), world.state(nic)), (vec![], "pending"));
    }
}

#[test]
fn p4_a_single_port_without_a_mac_pairs_by_serial() {
    let mut world = World::new();
    let nic = world.nic(0, mac(1));
    world.associate(nic, 7);
    let function = world.function(0, 7);
    world.port(function, 0, PermanentMac::NotYet);
    world.port(function, 0, PermanentMac::Never);
    assert_eq!(world.pairs(), [(instance(0), port_key(0, 7, 0), Reason::Serial)]);
    // A second port, and nothing is certain any more.
    let second = world.port(function, 1, PermanentMac::Never);
    assert_eq!((world.pairs(), world.state(nic)), (vec![], "conflict"));
    world.pairing.port_left(second, T0).expect("it is here");
    world.run();
    assert_eq!(world.pairs(), [(instance(0), port_key(0, 7, 0), Reason::Serial)]);
}

#[test]
fn p5_a_serial_shared_with_an_nvme_function_pairs_all_the_same() {
    // HISTORY 16
    let mut world = World::new();
    let nic = world.nic(0, mac(1));
    world.associate(nic, 1);
    let nvme = FunctionKey { bus: Guid::from_u128(9), vendor: 0x1414, device: 0xb111, ..key(0, 1) };
    world.pairing.function_arrived(nvme, T0);
    world.run();
    assert_eq!(world.state(nic), "waiting");
    world.vf(0, 1, mac(1));
    assert_eq!(world.pairs(), [(instance(0), port_key(0, 1, 0), Reason::SerialAndMac)]);
}

#[test]
fn p5_three_ports_of_one_function_go_to_three_nics_of_one_serial() {
    // HISTORY 40
    let mut world = World::new();
    let nics = [1, 2, 3].map(|n| world.nic(n, mac(n)));
    let function = world.function(0, 9);
    for n in [3, 1, 2] {
        world.port(function, n, PermanentMac::Known(mac(n)));
    }
    for nic in nics {
        world.associate(nic, 9);
    }
    let expected = [1, 2, 3].map(|n| (instance(n), port_key(0, 9, n), Reason::SerialAndMac));
    assert_eq!(world.pairs(), expected);
}

#[test]
fn p5_more_than_one_possibility_is_nobody_s_and_names_all_parties() {
    let mut world = World::new();
    let (a, b) = (world.nic(0, mac(1)), world.nic(1, mac(1)));
    world.associate(a, 7);
    let (_, port) = world.vf(0, 7, mac(1));
    assert_eq!(world.pairs().len(), 1);
    world.words();
    world.associate(b, 7);
    assert_eq!(world.pairs(), []);
    assert_eq!((world.state(a), world.state(b)), ("conflict", "conflict"));
    let conflict = world.log.iter().find(|decision| decision.word() == "conflict").expect("told");
    let Decision::Conflict { over, nics, ports } = conflict else { unreachable!() };
    assert_eq!(*over, Dispute::SerialAndMac(Serial(7), mac(1)));
    assert_eq!(nics.iter().map(|nic| nic.id).collect::<vec::Vec<_>>(), [a, b]);
    assert_eq!(ports.iter().map(|port| port.id).collect::<vec::Vec<_>>(), [port]);
    world.words();
    world.disassociate(a);
    assert_eq!(world.words(), ["bind", "settled"]);
    assert_eq!(world.pairs(), [(instance(1), port_key(0, 7, 0), Reason::SerialAndMac)]);
}

#[test]
fn p5_two_ports_that_claim_by_serial_alone_contradict_each_other() {
    let mut world = World::new();
    let nic = world.nic(0, mac(1));
    world.associate(nic, 7);
    for slot in 0..2 {
        let function = world.function(slot, 7);
        world.port(function, 0, PermanentMac::Never);
    }
    assert_eq!((world.pairs(), world.state(nic)), (vec![], "conflict"));
}

#[test]
fn p6_mana_three_ports_on_one_function_pair_by_mac() {
    let mut world = World::new();
    let function = world.function(0, 30);
    for n in 1..=3 {
        let nic = world.nic(n, mac(n));
        // The association's serial is not the function's.
        world.associate(nic, 0x100 + n);
        world.port(function, n, PermanentMac::Known(mac(n)));
    }
    assert_eq!(world.pairs(), [1, 2, 3].map(|n| (instance(n), port_key(0, 30, n), Reason::Mac)));
    assert!(Reason::Mac.is_weak());
}

#[test]
fn p6_policy_can_forbid_a_mac_alone() {
    let config = PairingConfig { mac_policy: MacPolicy::Deny, ..PairingConfig::default() };
    let mut world = World::with(config);
    let nic = world.nic(0, mac(1));
    let (_, port) = world.vf(0, 7, mac(1));
    assert_eq!(world.pairs(), []);
    let refused = world.log.pop().expect("a refusal").to_string();
    assert!(refused.ends_with("policy asks for a serial (P6)"), "{refused}");
    let standing = world.pairing.standing(port).expect("it is here");
    assert_eq!(standing, Standing::Refused(Refusal::MacAlone(mac(1))));
    world.associate(nic, 7);
    assert_eq!(world.pairs(), [(instance(0), port_key(0, 7, 0), Reason::SerialAndMac)]);
}

#[test]
fn p6_a_weak_pair_is_confirmed_by_its_association_without_coming_apart() {
    // HISTORY 44
    let mut world = World::new();
    let nic = world.nic(0, mac(1));
    world.vf(0, 7, mac(1));
    assert_eq!(world.pairs(), [(instance(0), port_key(0, 7, 0), Reason::Mac)]);
    world.words();
    world.associate(nic, 7);
    assert_eq!(world.words(), ["reexamined"]);
    assert_eq!(world.pairs(), [(instance(0), port_key(0, 7, 0), Reason::SerialAndMac)]);
}

#[test]
fn p7_equal_serials_and_different_macs_never_pair() {
    let mut world = World::new();
    let nic = world.nic(0, mac(1));
    world.associate(nic, 7);
    let (_, port) = world.vf(0, 7, mac(2));
    assert_eq!(world.words(), ["mac-mismatch"]);
    assert_eq!((world.pairs(), world.state(nic)), (vec![], "conflict"));
    let state = world.pairing.state(nic).expect("it is here");
    let port = PortRef { key: port_key(0, 7, 0), id: port };
    assert_eq!(state, NicState::Conflict(Conflict::MacMismatch(port)));
    // Also not by the MAC of somebody else: the serial is spoken for.
    world.nic(1, mac(2));
    assert_eq!(world.pairs(), []);
}

#[test]
fn p8_a_stronger_claim_replaces_a_weaker_one_after_a_clean_unbinding() {
    let mut world = World::new();
    let nic = world.nic(0, mac(1));
    world.vf(0, 3, mac(1));
    assert_eq!(world.pairs(), [(instance(0), port_key(0, 3, 0), Reason::Mac)]);
    world.pairing.associated(nic, Serial(7), T0).expect("it is here");
    let function = world.function(1, 7);
    world.words();
    let known = PermanentMac::Known(mac(1));
    world.pairing.port_arrived(function, 0, known, T0).expect("it is here");
    world.take();
    // The better one is not bound before the old one has been let go.
    assert_eq!(world.words(), ["unbind", "standby"]);
    assert_eq!(world.state(nic), "pending");
    world.run();
    assert_eq!(world.words(), ["bind"]);
    assert_eq!(world.pairs(), [(instance(0), port_key(1, 7, 0), Reason::SerialAndMac)]);
}

#[test]
fn p9_a_standby_takes_over_when_the_first_goes() {
    let mut world = World::new();
    let nic = world.nic(0, mac(1));
    world.associate(nic, 7);
    let (first, _) = world.vf(0, 7, mac(1));
    let (_, second) = world.vf(1, 7, mac(1));
    assert_eq!(world.words(), ["bind", "standby"]);
    assert_eq!(world.pairs(), [(instance(0), port_key(0, 7, 0), Reason::SerialAndMac)]);
    let standing = world.pairing.standing(second).expect("it is here");
    assert!(matches!(standing, Standing::Standby(..)), "{standing}");
    world.pairing.function_left(first, T0).expect("it is here");
    world.run();
    assert_eq!(world.words(), ["unbind", "bind"]);
    assert_eq!(world.pairs(), [(instance(0), port_key(1, 7, 0), Reason::SerialAndMac)]);
}

// HISTORY 57: a VF that no driver takes leaves its NIC on synthetic; said once, tried never again.
#[test]
fn p12_an_association_without_a_vf_and_a_port_without_a_nic_are_reported_once_each() {
    let mut world = World::new();
    let nic = world.nic(0, mac(1));
    world.associate(nic, 7);
    world.vf(0, 8, mac(2));
    assert_eq!(world.words(), ["alone"]);
    let due = world.pairing.poll_deadline().expect("a deadline");
    assert_eq!(due, T0 + Duration::from_secs(60));
    world.pairing.handle_deadline(due);
    world.run();
    assert_eq!(world.words(), ["overdue", "overdue"]);
    assert_eq!((world.pairing.poll_deadline(), world.state(nic)), (None, "waiting"));
    // It comes after all.
    world.vf(1, 7, mac(1));
    assert_eq!(world.words(), ["bind"]);
}

#[test]
fn p12_what_came_in_time_is_not_reported() {
    let mut world = World::new();
    let nic = world.nic(0, mac(1));
    world.associate(nic, 7);
    assert!(world.pairing.poll_deadline().is_some());
    world.vf(0, 7, mac(1));
    assert_eq!(world.pairing.poll_deadline(), None);
}

#[test]
fn p12_an_unbinding_that_nobody_confirms_is_reported() {
    let mut world = World::new();
    world.nic(0, mac(1));
    let (function, _) = world.vf(0, 7, mac(1));
    world.pairing.function_left(function, T0).expect("it is here");
    world.take();
    world.words();
    let due = world.pairing.poll_deadline().expect("a deadline");
    world.pairing.handle_deadline(due);
    world.take();
    assert!(matches!(world.log[..], [Decision::Overdue(Overdue::Unbinding(..))]));
}

#[test]
fn p13_another_serial_in_the_same_slot_is_another_function() {
    // HISTORY 28
    let mut world = World::new();
    let nic = world.nic(0, mac(1));
    world.associate(nic, 7);
    let (old, _) = world.vf(0, 7, mac(1));
    world.words();
    let new = world.function(0, 8);
    assert_ne!(old, new);
    assert_eq!(world.words(), ["replaced", "unbind"]);
    world.associate(nic, 8);
    world.port(new, 0, PermanentMac::Known(mac(1)));
    assert_eq!(world.pairs(), [(instance(0), port_key(0, 8, 0), Reason::SerialAndMac)]);
    assert_eq!(world.pairing.function_left(old, T0), Err(FactError::FunctionLeft(old)));
}

#[test]
fn p14_an_isolated_guest_pairs_nothing() {
    // HISTORY 42
    let mut world = World::with(PairingConfig { isolated: true, ..PairingConfig::default() });
    let nic = world.nic(0, mac(1));
    world.associate(nic, 7);
    world.vf(0, 7, mac(1));
    assert_eq!((world.pairs(), world.state(nic)), (vec![], "synthetic"));
    for decision in &world.log {
        let text = decision.to_string();
        assert!(text.ends_with("takes no VF from it (P14)"), "{text}");
    }
    assert_eq!(world.log.len(), 2);
}

#[test]
fn p15_a_nic_can_be_explained_in_plain_words() {
    let mut world = World::new();
    let nic = world.nic(0, mac(1));
    let explanation = world.pairing.explain(nic).expect("it is here").to_string();
    assert_eq!(
        explanation,
        "NIC 00000000-0000-0000-0000-000012340000 with MAC 00:15:00:00:00:01 is synthetic: no association. \
         The host associates it with no serial. No port has its serial or its MAC."
    );
    world.associate(nic, 7);
    world.vf(0, 7, mac(1));
    world.vf(1, 7, mac(1));
    let explanation = world.pairing.explain(nic).expect("it is here").to_string();
    for part in [
        "is paired: serial and permanent MAC agree.",
        "The host associates it with serial 7.",
        "in slot 0x0 of bus 00000000-0000-0000-0000-00000000b005, serial 7 belongs to NIC",
        "stands by for NIC",
    ] {
        assert!(explanation.contains(part), "{part}: {explanation}");
    }
}

#[test]
fn p15_a_port_can_be_explained_in_plain_words_and_refusals_too() {
    let explained =
        |world: &World, port| world.pairing.explain_port(port).expect("it is here").to_string();
    let mut world =
        World::with(PairingConfig { mac_policy: MacPolicy::Deny, ..PairingConfig::default() });
    let nic = world.nic(0, mac(1));
    let (function, port) = world.vf(0, 30, mac(1));
    assert_eq!(
        explained(&world, port),
        "port 0 of function 15b3:1016 in slot 0x0 of bus 00000000-0000-0000-0000-00000000b005, serial 30 \
         is refused: only MAC 00:15:00:00:00:01 agrees, and policy asks for a serial (P6). \
         Its permanent MAC is 00:15:00:00:00:01. \
         NIC 00000000-0000-0000-0000-000012340000 has MAC 00:15:00:00:00:01 and is associated with no serial."
    );
    world.associate(nic, 30);
    assert!(explained(&world, port).contains("belongs to NIC"), "{}", explained(&world, port));
    assert!(explained(&world, port).ends_with("is associated with serial 30."));
    // The serial of one NIC and the MAC of another: both are named.
    let other = world.nic(1, mac(2));
    world.associate(other, 8);
    let (_, crossed) = world.vf(1, 30, mac(2));
    let text = explained(&world, crossed);
    assert!(text.contains("has the serial of NIC") && text.contains("another MAC"), "{text}");
    assert!(text.contains("serial 30.") && text.contains("serial 8."), "{text}");
    let waiting = world.function(2, 99);
    let waiting = world.port(waiting, 0, PermanentMac::NotYet);
    let text = explained(&world, waiting);
    assert!(
        text.ends_with("Its permanent MAC is not known yet. No NIC has its serial or its MAC."),
        "{text}"
    );
    world.pairing.function_left(function, T0).expect("it is here");
    assert_eq!(world.pairing.explain_port(port), Err(FactError::PortLeft(port)));

    let mut world = World::with(PairingConfig { isolated: true, ..PairingConfig::default() });
    let nic = world.nic(0, mac(1));
    world.associate(nic, 7);
    let (_, port) = world.vf(0, 7, mac(1));
    let refusal = "this guest is isolated from its host and takes no VF from it (P14).";
    assert!(explained(&world, port).contains(refusal), "{}", explained(&world, port));
    let text = world.pairing.explain(nic).expect("it is here").to_string();
    assert!(text.ends_with(refusal), "{text}");
}

#[test]
fn p15_states_have_the_words_of_the_rules() {
    let paired = NicState::Paired(Reason::Serial);
    let words = [
        NicState::Synthetic,
        NicState::Waiting,
        NicState::Pending,
        paired,
        paired.on(crate::Path::Vf),
        NicState::Conflict(Conflict::Dispute(Dispute::Mac(mac(1)))),
    ]
    .map(|state| state.word());
    let expected = ["synthetic", "waiting", "pending", "paired", "accelerated", "conflict"];
    assert_eq!(words, expected);
    assert_eq!(NicState::Waiting.on(crate::Path::Vf), NicState::Waiting);
    assert_eq!(paired.on(crate::Path::Vf).on(crate::Path::Synthetic), paired);
}

pub(super) fn port_key(slot: u32, serial: u32, index: u32) -> PortKey {
    PortKey { function: key(slot, serial), index }
}

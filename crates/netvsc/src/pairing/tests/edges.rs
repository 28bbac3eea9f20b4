//! Cases that went wrong elsewhere, and handles.
extern crate std;

use std::vec;

use super::rules::port_key;
use super::*;

#[test]
fn the_current_mac_is_not_even_a_fact() {
    // HISTORY 1: facts carry permanent addresses only; the NIC's current one may be anything at any time.
    let mut world = World::new();
    let nic = world.nic(0, mac(1));
    world.associate(nic, 7);
    world.vf(0, 7, mac(1));
    world.words();
    // Somebody changes the current MAC and the stack scans again: the same permanent facts, no decision.
    assert_eq!(world.nic(0, mac(1)), nic);
    world.vf(0, 7, mac(1));
    assert_eq!(world.words(), vec![""; 0]);
}

#[test]
fn a_serial_that_was_known_before_the_nic_counts_from_the_first_decision() {
    let mut world = World::new();
    world.vf(0, 7, mac(1));
    world.words();
    let nic = world.pairing.nic_arrived_associated(instance(0), mac(1), Serial(7), T0);
    world.run();
    assert_eq!(world.words(), ["bind"]);
    assert_eq!(world.pairs(), [(instance(0), port_key(0, 7, 0), Reason::SerialAndMac)]);
    // Said again it changes nothing; with another serial it is what the host says now.
    assert_eq!(world.pairing.nic_arrived_associated(instance(0), mac(1), Serial(7), T0), nic);
    world.run();
    assert_eq!(world.words(), vec![""; 0]);
    assert_eq!(world.pairing.nic_arrived_associated(instance(0), mac(1), Serial(8), T0), nic);
    world.run();
    assert_eq!(world.pairs()[0].2, Reason::Mac);

    let mut isolated = World::with(PairingConfig { isolated: true, ..PairingConfig::default() });
    isolated.pairing.nic_arrived_associated(instance(0), mac(1), Serial(7), T0);
    isolated.vf(0, 7, mac(1));
    assert_eq!((isolated.words().first(), isolated.pairs().len()), (Some(&"refused"), 0));
}

#[test]
fn of_two_nics_with_one_mac_the_associated_one_is_paired() {
    // HISTORY 19
    let mut world = World::new();
    let (first, second) = (world.nic(0, mac(1)), world.nic(1, mac(1)));
    world.vf(0, 7, mac(1));
    assert_eq!((world.state(first), world.state(second)), ("conflict", "conflict"));
    world.associate(second, 7);
    assert_eq!(world.pairs(), [(instance(1), port_key(0, 7, 0), Reason::SerialAndMac)]);
    assert_eq!(world.state(first), "synthetic");
}

#[test]
fn the_slot_number_is_no_serial() {
    // HISTORY 20: serial 3 in slot 0.
    let mut world = World::new();
    let (a, b) = (world.nic(0, mac(1)), world.nic(1, mac(2)));
    world.associate(a, 0);
    world.associate(b, 3);
    world.vf(0, 3, mac(2));
    assert_eq!(world.pairs(), [(instance(1), port_key(0, 3, 0), Reason::SerialAndMac)]);
    assert_eq!(world.state(a), "waiting");
}

#[test]
fn a_vf_may_return_under_any_serial_with_nothing_remembered() {
    // HISTORY 28
    let mut world = World::new();
    let nic = world.nic(0, mac(1));
    for serial in [7, 8, 0, 7] {
        world.associate(nic, serial);
        let (function, _) = world.vf(0, serial, mac(1));
        assert_eq!(world.pairs(), [(instance(0), port_key(0, serial, 0), Reason::SerialAndMac)]);
        world.pairing.function_left(function, T0).expect("it is here");
        world.run();
        world.disassociate(nic);
        assert_eq!(world.state(nic), "synthetic");
    }
}

#[test]
fn a_function_that_leaves_and_returns_unchanged_is_bound_anew() {
    let mut world = World::new();
    let nic = world.nic(0, mac(1));
    world.associate(nic, 7);
    let (function, port) = world.vf(0, 7, mac(1));
    world.pairing.function_left(function, T0).expect("it is here");
    let (_, again) = world.vf(0, 7, mac(1));
    assert_ne!(port, again);
    assert_eq!(world.words(), ["bind", "unbind", "bind"]);
}

// HISTORY 48: the NIC is started anew while the VF stays; nothing of the host is needed to pair again.
#[test]
fn a_nic_that_leaves_gives_its_port_back_for_the_next_one() {
    // HISTORY 9
    let mut world = World::new();
    let nic = world.nic(0, mac(1));
    world.vf(0, 7, mac(1));
    world.pairing.nic_left(nic, T0).expect("it is here");
    // The next one is here before the port has been let go.
    let next = world.pairing.nic_arrived(instance(0), mac(1), T0);
    world.take();
    assert_eq!(world.words(), ["bind", "unbind", "alone"]);
    world.run();
    assert_eq!(world.words(), ["bind"]);
    assert_ne!(nic, next);
    assert_eq!(world.state(next), "paired");
}

#[test]
fn a_nic_with_another_permanent_mac_is_another_nic() {
    let mut world = World::new();
    let nic = world.nic(0, mac(1));
    world.vf(0, 7, mac(1));
    let other = world.nic(0, mac(2));
    assert_ne!(nic, other);
    assert_eq!(world.pairs(), []);
    assert_eq!(world.pairing.state(nic), Err(FactError::NicLeft(nic)));
}

#[test]
fn a_port_with_another_permanent_mac_is_another_port() {
    let mut world = World::new();
    let nic = world.nic(0, mac(1));
    world.associate(nic, 7);
    let (function, port) = world.vf(0, 7, mac(1));
    let other = world.port(function, 0, PermanentMac::Known(mac(2)));
    assert_ne!(port, other);
    assert_eq!((world.pairs(), world.state(nic)), (vec![], "conflict"));
}

#[test]
fn a_repeated_port_never_knows_less() {
    let mut world = World::new();
    let nic = world.nic(0, mac(1));
    world.associate(nic, 7);
    let (function, port) = world.vf(0, 7, mac(1));
    world.words();
    assert_eq!(world.port(function, 0, PermanentMac::NotYet), port);
    assert_eq!(world.port(function, 0, PermanentMac::Never), port);
    assert_eq!((world.words(), world.state(nic)), (vec![], "paired"));
}

#[test]
fn an_association_said_twice_changes_nothing() {
    let mut world = World::new();
    let nic = world.nic(0, mac(1));
    world.associate(nic, 7);
    world.vf(0, 7, mac(1));
    world.words();
    world.associate(nic, 7);
    assert_eq!(world.words(), vec![""; 0]);
}

#[test]
fn an_association_gone_and_back_before_the_port_is_let_go_keeps_the_pair() {
    let mut world = World::new();
    let nic = world.nic(0, mac(1));
    world.associate(nic, 7);
    world.vf(0, 7, mac(1));
    world.words();
    world.disassociate(nic);
    world.associate(nic, 7);
    assert_eq!(world.words(), ["reexamined", "reexamined"]);
    assert_eq!(world.state(nic), "paired");
}

#[test]
fn a_stale_handle_is_an_error_value() {
    let mut world = World::new();
    let nic = world.nic(0, mac(1));
    let (function, port) = world.vf(0, 7, mac(1));
    let pairing = &mut world.pairing;
    pairing.nic_left(nic, T0).expect("it is here");
    pairing.function_left(function, T0).expect("it is here");
    // Their places are taken again at once.
    let new = pairing.nic_arrived(instance(5), mac(5), T0);
    let home = pairing.function_arrived(key(5, 5), T0);
    let fresh = pairing.port_arrived(home, 0, PermanentMac::NotYet, T0).expect("it is here");
    assert!(new != nic && home != function && fresh != port);

    let nic_left = FactError::NicLeft(nic);
    assert_eq!(pairing.nic_left(nic, T0), Err(nic_left));
    assert_eq!(pairing.associated(nic, Serial(1), T0), Err(nic_left));
    assert_eq!(pairing.disassociated(nic, T0), Err(nic_left));
    assert_eq!(pairing.state(nic), Err(nic_left));
    assert_eq!(pairing.explain(nic), Err(nic_left));
    let function_left = FactError::FunctionLeft(function);
    assert_eq!(pairing.function_left(function, T0), Err(function_left));
    let again = pairing.port_arrived(function, 0, PermanentMac::NotYet, T0);
    assert_eq!(again, Err(function_left));
    let port_left = FactError::PortLeft(port);
    assert_eq!(pairing.port_left(port, T0), Err(port_left));
    assert_eq!(pairing.standing(port), Err(port_left));
    assert_eq!(pairing.counts(), (1, 1, 1));
}

#[test]
fn only_what_is_being_unbound_can_have_been_unbound() {
    let mut world = World::new();
    let nic = world.nic(0, mac(1));
    let (_, port) = world.vf(0, 7, mac(1));
    let error = world.pairing.unbound(nic, port, T0);
    assert_eq!(error, Err(FactError::NotUnbinding { nic, port }));
    assert_eq!(world.state(nic), "paired");
}

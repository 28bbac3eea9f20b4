//! The cases that pairing was built for, by name.
extern crate std;

use std::time::Duration;
use std::vec;

use super::rules::port_key;
use super::*;

#[test]
fn an_emulated_nic_with_the_same_mac() {
    let mut world = World::new();
    let nic = world.nic(0, mac(1));
    world.pairing.ignored(DeviceKind::Emulated, mac(1));
    world.associate(nic, 7);
    assert_eq!((world.pairs(), world.state(nic)), (vec![], "waiting"));
    world.vf(0, 7, mac(1));
    assert_eq!(world.pairs(), [(instance(0), port_key(0, 7, 0), Reason::SerialAndMac)]);
}

/// There is no depth that a bridge could change: a function has a bus and a slot, whatever lies between.
#[test]
fn a_bridge_between_the_function_and_the_bus() {
    let mut world = World::new();
    let nic = world.nic(0, mac(1));
    world.associate(nic, 7);
    // Device 1, function 0 behind a bridge, where an ordinary VF is device 0.
    let behind = FunctionKey { slot: 0x08, ..key(0, 7) };
    let function = world.pairing.function_arrived(behind, T0);
    world.port(function, 0, PermanentMac::Known(mac(1)));
    let port = PortKey { function: behind, index: 0 };
    assert_eq!(world.pairs(), [(instance(0), port, Reason::SerialAndMac)]);
}

#[test]
fn a_vf_on_a_machine_without_the_vpci_driver() {
    let mut world = World::new();
    let nic = world.nic(0, mac(1));
    world.associate(nic, 7);
    assert_eq!(world.state(nic), "waiting");
    let due = world.pairing.poll_deadline().expect("not waited for without end");
    world.pairing.handle_deadline(due);
    world.run();
    assert_eq!((world.words(), world.pairing.poll_deadline()), (vec!["overdue"], None));
    // The driver is loaded after an hour.
    world.vf(0, 7, mac(1));
    assert_eq!(world.state(nic), "paired");
}

#[test]
fn two_vfs_with_one_serial() {
    // HISTORY 16
    let mut world = World::new();
    for n in 0..2 {
        let nic = world.nic(n, mac(n + 1));
        world.associate(nic, 7);
    }
    // Crosswise, so that counting along would be wrong.
    world.vf(0, 7, mac(2));
    world.vf(1, 7, mac(1));
    let expected = [
        (instance(0), port_key(1, 7, 0), Reason::SerialAndMac),
        (instance(1), port_key(0, 7, 0), Reason::SerialAndMac),
    ];
    assert_eq!(world.pairs(), expected);
}

#[test]
fn a_guest_with_nothing_but_mana() {
    let mut world = World::new();
    let function = world.function(0, 30);
    for n in 0..3 {
        world.port(function, n, PermanentMac::Known(mac(n + 1)));
    }
    assert_eq!((world.pairs(), world.words()), (vec![], vec!["alone"; 3]));
    let due = world.pairing.poll_deadline().expect("reported in time");
    assert_eq!(due, T0 + Duration::from_secs(60));
    world.pairing.handle_deadline(due);
    world.run();
    assert_eq!(world.words(), ["overdue"; 3], "visible, and no error");
}

/// Neither a name nor a namespace is a fact; a device that moves is seen again as it was, and stays where it belongs (F13).
#[test]
fn a_vf_in_another_network_namespace() {
    // HISTORY 11, 49, 64
    let mut world = World::new();
    let nic = world.nic(0, mac(1));
    world.associate(nic, 7);
    let (function, port) = world.vf(0, 7, mac(1));
    world.words();
    assert_eq!(world.port(function, 0, PermanentMac::Known(mac(1))), port);
    assert_eq!(world.nic(0, mac(1)), nic);
    assert_eq!((world.words(), world.state(nic)), (vec![], "paired"));
}

/// Servicing takes everything away and brings it back with the serials dealt out anew, some in the hands of others.
#[test]
fn serials_in_other_hands_after_servicing() {
    // HISTORY 28
    let mut world = World::new();
    let nics = [0, 1].map(|n| world.nic(n, mac(n + 1)));
    for n in 0..2u32 {
        world.associate(nics[n as usize], n + 1);
        world.vf(n, n + 1, mac(n + 1));
    }
    assert_eq!(world.pairs().len(), 2);
    // The functions come back first: to each NIC its old serial names the other's VF.
    world.vf(0, 2, mac(1));
    world.vf(1, 1, mac(2));
    assert_eq!(world.pairs(), [], "serial and MAC contradict each other");
    world.associate(nics[0], 2);
    world.associate(nics[1], 1);
    let expected = [
        (instance(0), port_key(0, 2, 0), Reason::SerialAndMac),
        (instance(1), port_key(1, 1, 0), Reason::SerialAndMac),
    ];
    assert_eq!(world.pairs(), expected);
}

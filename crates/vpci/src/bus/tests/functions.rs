//! Functions that come, go, and are asked back.

use super::*;

// HISTORY 18, 20: the serial is a plain number of the function, whatever its device number.
#[test]
fn the_serial_is_found_by_slot_and_has_nothing_to_do_with_the_device_number() {
    let (bus, _host) = running(&[function(0, 3), function(0xa2, 0), function(1, u32::MAX)]);
    let serial = |slot| bus.serial(Slot::from_wire(slot).unwrap());
    assert_eq!(serial(0), Some(Serial(3)));
    assert_eq!(serial(0xa2), Some(Serial(0)));
    assert_eq!(serial(1), Some(Serial(u32::MAX)));
}

// HISTORY 22
#[test]
fn a_slot_without_a_function_has_no_serial() {
    let (bus, _host) = running(&[function(0, 3)]);
    for slot in 1..256 {
        assert_eq!(bus.serial(Slot::from_wire(slot).unwrap()), None);
    }
}

// HISTORY 16: a disk and a virtual function may carry the same number.
#[test]
fn two_buses_with_equal_serials_come_up_side_by_side() {
    let mut disk = function(0, 1);
    (disk.vendor, disk.device, disk.class, disk.subclass) = (0x1414, 0xb111, 1, 8);
    let (mut one, _host_one) = running(&[disk]);
    let (mut two, _host_two) = running(&[function(2, 1)]);
    assert_eq!(moves(&mut one), [('+', 0, 1)]);
    assert_eq!(moves(&mut two), [('+', 2, 1)]);
}

// HISTORY 19, as far as the bus goes: it tells functions of equal kind apart by their numbers alone.
#[test]
fn functions_that_differ_only_in_serial_are_two_functions() {
    let (mut bus, _host) = running(&[function(0, 1), function(1, 2)]);
    assert_eq!(moves(&mut bus), [('+', 0, 1), ('+', 1, 2)]);
}

#[test]
fn an_eject_is_asked_once_and_answered_once() {
    let (mut bus, mut host) = running(&[function(0xa2, 7)]);
    let id = arrived(&mut bus)[0];
    assert_eq!(bus.eject_complete(id), Err(NotEjecting(id)), "nobody asked");
    host.say(MessageType::EJECT, &[0xa2]);
    host.say(MessageType::EJECT, &[0xa2]);
    bus.poll(START).unwrap();
    assert_eq!(events(&mut bus), [Event::EjectRequested { function: id }]);
    assert!(host.receive().is_none());
    assert_eq!(bus.serial(id.slot()), Some(Serial(7)), "still in use");

    bus.eject_complete(id).unwrap();
    assert_eq!(bus.poll_deadline(), Some(START), "there is something to send");
    bus.poll(START).unwrap();
    assert_eq!(moves(&mut bus), [('-', 0xa2, 7)]);
    let got = host.receive().unwrap();
    assert_eq!((got.kind, got.completion), (MessageType::EJECT_COMPLETE, false));
    assert_eq!(got.rest[..8], [0xa2, 0, 0, 0, 0, 0, 0, 0]);

    host.say(MessageType::EJECT, &[0xa2]);
    bus.poll(START).unwrap();
    assert_eq!(bus.eject_complete(id), Err(NotEjecting(id)));
    bus.poll(START).unwrap();
    assert!(events(&mut bus).is_empty() && host.receive().is_none());
    assert_eq!((bus.stats().ejects, bus.stats().ejects_ignored), (3, 2));
    assert_eq!(bus.functions().count(), 0);
}

#[test]
fn an_eject_of_an_empty_slot_is_ignored() {
    let (mut bus, mut host) = running(&[function(0, 1)]);
    arrived(&mut bus);
    host.say(MessageType::EJECT, &[1]);
    bus.poll(START).unwrap();
    assert!(events(&mut bus).is_empty() && host.receive().is_none());
    assert_eq!(bus.stats().ejects_ignored, 1);
}

// HISTORY 26
#[test]
fn an_eject_and_a_snapshot_without_the_function_are_one_removal() {
    let (mut bus, mut host) = running(&[function(0, 1)]);
    let id = arrived(&mut bus)[0];
    host.say(MessageType::EJECT, &[0]);
    host.list(&[]);
    bus.poll(START).unwrap();
    assert_eq!(moves(&mut bus), [('-', 0, 1)]);
    assert_eq!(bus.eject_complete(id), Err(NotEjecting(id)));
    bus.poll(START).unwrap();
    assert!(host.receive().is_none());
}

#[test]
fn a_late_answer_never_hits_a_newer_function_in_the_slot() {
    let (mut bus, mut host) = running(&[function(0, 1)]);
    let old = arrived(&mut bus)[0];
    host.say(MessageType::EJECT, &[0]);
    host.list(&[function(0, 2)]);
    host.serve(&mut bus);
    let new = arrived(&mut bus)[0];
    assert_ne!(old, new);
    assert_eq!(old.slot(), new.slot());
    assert_eq!(bus.eject_complete(old), Err(NotEjecting(old)));
    host.say(MessageType::EJECT, &[0]);
    bus.poll(START).unwrap();
    assert_eq!(
        bus.eject_complete(old),
        Err(NotEjecting(old)),
        "even though the newer is asked back"
    );
    bus.eject_complete(new).unwrap();
    bus.poll(START).unwrap();
    host.expect(MessageType::EJECT_COMPLETE);
    assert!(host.receive().is_none());
}

#[test]
fn an_ejected_function_comes_back_only_after_a_snapshot_without_it() {
    let (mut bus, mut host) = running(&[function(0, 1)]);
    let id = arrived(&mut bus)[0];
    host.say(MessageType::EJECT, &[0]);
    bus.poll(START).unwrap();
    bus.eject_complete(id).unwrap();
    bus.poll(START).unwrap();
    host.expect(MessageType::EJECT_COMPLETE);
    events(&mut bus);

    // A snapshot that was under way before the answer was read.
    host.list(&[function(0, 1), function(1, 2)]);
    host.serve(&mut bus);
    assert_eq!(moves(&mut bus), [('+', 1, 2)]);
    // Gone and back again, in snapshots that are read together.
    host.list(&[function(1, 2)]);
    host.list(&[function(0, 1), function(1, 2)]);
    host.serve(&mut bus);
    assert_eq!(moves(&mut bus), [('+', 0, 1)]);
    assert_eq!(bus.stats().snapshots_superseded, 1);
}

// HISTORY section 6, 8: a slot used again with another serial; every field of the identity counts.
#[test]
fn a_changed_identity_is_another_function() {
    for change in [
        |f: &mut Description| f.serial = Serial(9),
        |f: &mut Description| f.vendor = 0x1414,
        |f: &mut Description| f.device = 0xba,
    ] {
        let (mut bus, mut host) = running(&[function(0, 1)]);
        let old = arrived(&mut bus)[0];
        let mut changed = function(0, 1);
        change(&mut changed);
        host.list(&[changed]);
        host.serve(&mut bus);
        assert_eq!(moves(&mut bus), [('-', 0, 1), ('+', 0, changed.serial.0)]);
        assert_ne!(bus.functions().next().unwrap().id, old);
    }
}

#[test]
fn the_same_snapshot_again_changes_nothing() {
    let (mut bus, mut host) = running(&[function(0, 1), function(0xe0, 1)]);
    arrived(&mut bus);
    let mut moved_node = function(0, 1);
    moved_node.numa_node = Some(1);
    host.list(&[function(0xe0, 1), moved_node]);
    host.serve(&mut bus);
    assert_eq!(moves(&mut bus), []);
}

#[test]
fn only_the_newest_of_several_snapshots_counts() {
    let (mut bus, mut host) = running(&[function(0, 1)]);
    arrived(&mut bus);
    host.list(&[]);
    host.list(&[function(1, 5)]);
    host.list(&[function(0, 1), function(2, 3)]);
    host.serve(&mut bus);
    assert_eq!(moves(&mut bus), [('+', 2, 3)]);
    assert_eq!(bus.stats().snapshots_superseded, 2);
}

// HISTORY 23, 28: each time with another serial, and nothing stored in between.
#[test]
fn a_hundred_arrivals_and_departures_leave_nothing_behind() {
    let (mut bus, mut host) = running(&[]);
    for serial in 0..100 {
        host.list(&[function(0, serial)]);
        host.serve(&mut bus);
        assert_eq!(moves(&mut bus), [('+', 0, serial)]);
        host.list(&[]);
        host.serve(&mut bus);
        assert_eq!(moves(&mut bus), [('-', 0, serial)]);
        assert_eq!(bus.functions().count(), 0);
        assert_eq!(bus.serial(Slot::from_wire(0).unwrap()), None);
        assert!(bus.pending.is_empty() && bus.outgoing.front().is_none());
    }
}

// HISTORY 24, 25: each way out frees everything on its own.
#[test]
fn every_way_out_leaves_no_function_and_no_wait() {
    for way in 0..4 {
        let (mut bus, mut host) = running(&[function(0, 1)]);
        let id = arrived(&mut bus)[0];
        match way {
            0 => {
                host.say(MessageType::EJECT, &[0]);
                bus.poll(START).unwrap();
                bus.eject_complete(id).unwrap();
                bus.poll(START).unwrap();
            }
            1 => host.list(&[]),
            2 => bus.rescinded(),
            _ => bus.shutdown(START),
        }
        bus.poll(START).unwrap();
        assert_eq!(moves(&mut bus), [('-', 0, 1)], "way {way}");
        assert_eq!((bus.functions().count(), bus.serial(id.slot())), (0, None));
        if way == 3 {
            host.expect(MessageType::RELEASE_RESOURCES);
            let id = host.expect(MessageType::FDO_D0_EXIT);
            host.complete(id, &[0]);
            bus.poll(START).unwrap();
        }
        assert!(bus.pending.is_empty(), "way {way}");
        assert_eq!(bus.poll_deadline(), None);
    }
}

// HISTORY 55: taking a removal in does nothing but queue what follows from it.
#[test]
fn a_rescind_ends_every_wait_and_sends_nothing() {
    let (mut bus, mut host) = running(&[function(0, 1)]);
    let id = arrived(&mut bus)[0];
    host.say(MessageType::EJECT, &[0]);
    host.list(&[function(0, 1), function(1, 2)]);
    bus.poll(START).unwrap();
    bus.eject_complete(id).unwrap();
    bus.rescinded();
    host.expect(MessageType::QUERY_RESOURCE_REQUIREMENTS);
    bus.poll(START).unwrap();
    assert!(host.receive().is_none());
    let events = events(&mut bus);
    assert_eq!(events.last(), Some(&Event::Stopped));
    bus.rescinded();
    assert_eq!(bus.poll_event(), None, "told once");
    assert_eq!(bus.poll_deadline(), None);
}

#[test]
fn an_invalidated_bus_is_asked_again_once() {
    let (mut bus, mut host) = running(&[function(0, 1)]);
    arrived(&mut bus);
    host.say(MessageType::INVALIDATE_BUS, &[]);
    host.say(MessageType::INVALIDATE_DEVICE, &[0]);
    bus.poll(START).unwrap();
    host.expect(MessageType::QUERY_BUS_RELATIONS);
    assert!(host.receive().is_none());
    host.list(&[]);
    bus.poll(START).unwrap();
    assert_eq!(moves(&mut bus), [('-', 0, 1)]);
    assert_eq!(bus.poll_deadline(), None);
}

#[test]
fn invalidated_blocks_are_told_for_functions_in_use() {
    let (mut bus, mut host) = running(&[function(3, 1)]);
    let id = arrived(&mut bus)[0];
    host.say(MessageType::INVALIDATE_BLOCK, &[3, 6, 1]);
    host.say(MessageType::INVALIDATE_BLOCK, &[4, 6, 1]);
    host.say(MessageType::QUERY_STOP, &[4]);
    bus.poll(START).unwrap();
    assert_eq!(events(&mut bus), [Event::BlocksInvalidated { function: id, mask: 0x1_0000_0006 }]);
    assert_eq!(bus.stats().ignored, 2);
}

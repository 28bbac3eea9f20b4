//! Turning a bus on and off.

use super::*;

#[test]
fn a_bus_comes_up_step_by_step() {
    let (mut bus, mut host) = setup();
    assert_eq!(bus.poll_deadline(), Some(START), "the first packet wants to be sent");
    bus.poll(START).unwrap();
    assert!(host.to_host.take());

    let got = host.receive().unwrap();
    assert_eq!((got.kind, got.completion), (MessageType::QUERY_PROTOCOL_VERSION, true));
    assert_eq!(got.rest, [4, 0, 1, 0]);
    // OpenVMM names 1.3 whatever was asked; 1.4 was asked, so 1.4 is spoken.
    host.complete(got.id, &[0, 0x1_0003]);
    bus.poll(START).unwrap();
    assert_eq!(bus.version(), Some(Version::V1_4));

    let got = host.receive().unwrap();
    assert_eq!((got.kind, got.completion), (MessageType::QUERY_BUS_RELATIONS, false));
    host.list(&[function(0xa2, 3)]);
    bus.poll(START).unwrap();

    let got = host.receive().unwrap();
    assert_eq!((got.kind, got.completion), (MessageType::FDO_D0_ENTRY, true));
    assert_eq!(got.rest, [0, 0, 0, 0, 0, 0, 0, 0xe0, 0x0f, 0, 0, 0]);
    host.list(&[function(0xa2, 3)]);
    host.complete(got.id, &[0]);
    bus.poll(START).unwrap();
    assert_eq!(events(&mut bus), [Event::Ready { version: Version::V1_4 }]);

    let got = host.receive().unwrap();
    assert_eq!(got.kind, MessageType::QUERY_RESOURCE_REQUIREMENTS);
    assert_eq!(got.rest, [0xa2, 0, 0, 0]);
    host.complete(got.id, &[0, BAR0, 0xffff_ffff, 0, 0, 0, 0]);
    bus.poll(START).unwrap();

    let got = host.receive().unwrap();
    assert_eq!((got.kind, got.completion), (MessageType::ASSIGNED_RESOURCES2, true));
    assert_eq!(
        got.rest.len(),
        208 - 4,
        "202 bytes, padded to 8 and read without the type: {got:?}"
    );
    host.complete(got.id, &[0]);
    bus.poll(START).unwrap();
    let events = events(&mut bus);
    let [Event::FunctionArrived(arrived)] = &events[..] else { panic!("{events:?}") };
    assert_eq!(arrived.description, function(0xa2, 3));
    assert_eq!(arrived.bar_masks, [BAR0, 0xffff_ffff, 0, 0, 0, 0]);
    assert_eq!(bus.functions().count(), 1);
    assert_eq!(bus.poll_deadline(), None, "nothing is waited for");
}

#[test]
fn older_versions_are_offered_until_one_is_taken() {
    for accepted in [Version::V1_3, Version::V1_2, Version::V1_1] {
        let (mut bus, mut host) = setup();
        loop {
            bus.poll(START).unwrap();
            let got = host.receive().unwrap();
            assert_eq!(got.kind, MessageType::QUERY_PROTOCOL_VERSION);
            if got.rest == accepted.0.to_le_bytes() {
                // HISTORY section 6, 8: a host that always answers 1.3.
                host.complete(got.id, &[0, 0x1_0003]);
                break;
            }
            host.complete(got.id, &[Status::REVISION_MISMATCH.0, 0x1_0003]);
        }
        bus.poll(START).unwrap();
        assert_eq!(bus.version(), Some(accepted));
        host.expect(MessageType::QUERY_BUS_RELATIONS);
        host.send(&encode_relations(accepted, &[function(0, 1)]));
        bus.poll(START).unwrap();
        let id = host.expect(MessageType::FDO_D0_ENTRY);
        host.complete(id, &[0]);
        bus.poll(START).unwrap();
        let id = host.expect(MessageType::QUERY_RESOURCE_REQUIREMENTS);
        host.complete(id, &[0; 7]);
        bus.poll(START).unwrap();
        host.expect(match accepted {
            Version::V1_1 => MessageType::ASSIGNED_RESOURCES,
            _ => MessageType::ASSIGNED_RESOURCES2,
        });
    }
}

#[test]
fn a_host_that_takes_no_version_is_given_up() {
    let (mut bus, mut host) = setup();
    for _ in 0..4 {
        bus.poll(START).unwrap();
        let id = host.expect(MessageType::QUERY_PROTOCOL_VERSION);
        host.complete(id, &[Status::REVISION_MISMATCH.0]);
    }
    bus.poll(START).unwrap();
    assert_eq!(events(&mut bus), [Event::Failed(Failure::NoCommonVersion)]);
    assert!(host.receive().is_none());
    assert_eq!(bus.poll_deadline(), None);
}

#[test]
fn another_failure_of_the_version_query_ends_the_bus() {
    let (mut bus, mut host) = setup();
    bus.poll(START).unwrap();
    let id = host.expect(MessageType::QUERY_PROTOCOL_VERSION);
    host.complete(id, &[Status::NOT_SUPPORTED.0]);
    bus.poll(START).unwrap();
    let (step, status) = (Step::Version(Version::V1_4), Status::NOT_SUPPORTED);
    assert_eq!(events(&mut bus), [Event::Failed(Failure::Refused { step, status })]);
}

// HISTORY 54
#[test]
fn a_refused_d0_entry_is_tried_once_more_after_release_and_exit() {
    for works in [true, false] {
        let (mut bus, mut host) = setup();
        bus.poll(START).unwrap();
        let id = host.expect(MessageType::QUERY_PROTOCOL_VERSION);
        host.complete(id, &[0]);
        bus.poll(START).unwrap();
        host.expect(MessageType::QUERY_BUS_RELATIONS);
        host.list(&[function(0, 1), function(1, 2)]);
        bus.poll(START).unwrap();
        let id = host.expect(MessageType::FDO_D0_ENTRY);
        host.complete(id, &[Status::BAD_DATA.0]);
        bus.poll(START).unwrap();
        host.expect(MessageType::RELEASE_RESOURCES);
        host.expect(MessageType::RELEASE_RESOURCES);
        let id = host.expect(MessageType::FDO_D0_EXIT);
        host.complete(id, &[Status::BAD_DATA.0]);
        bus.poll(START).unwrap();
        let id = host.expect(MessageType::FDO_D0_ENTRY);
        let status = if works { Status::SUCCESS } else { Status::BAD_DATA };
        host.complete(id, &[status.0]);
        bus.poll(START).unwrap();
        let expected = match works {
            true => Event::Ready { version: Version::V1_4 },
            false => Event::Failed(Failure::Refused { step: Step::D0Entry, status }),
        };
        assert_eq!(events(&mut bus), [expected]);
        assert_eq!(host.receive().is_some(), works, "no third attempt");
    }
}

// HISTORY 54: the host wants the function back before it was ever of use.
#[test]
fn an_eject_during_start_up_is_answered_at_once_and_the_function_never_arrives() {
    let asked = [MessageType::QUERY_RESOURCE_REQUIREMENTS, MessageType::ASSIGNED_RESOURCES2];
    for (step, replies) in asked.into_iter().zip([[0; 7], [0; 7]]) {
        let (mut bus, mut host) = running(&[]);
        host.list(&[function(0, 1)]);
        bus.poll(START).unwrap();
        let mut id = host.expect(MessageType::QUERY_RESOURCE_REQUIREMENTS);
        if step == MessageType::ASSIGNED_RESOURCES2 {
            host.complete(id, &replies);
            bus.poll(START).unwrap();
            id = host.expect(step);
        }
        host.say(MessageType::EJECT, &[0]);
        bus.poll(START).unwrap();
        host.expect(MessageType::EJECT_COMPLETE);
        host.complete(id, &replies);
        host.list(&[]);
        bus.poll(START).unwrap();
        assert_eq!(moves(&mut bus), []);
        assert!(host.receive().is_none(), "no further step for it");
        assert_eq!(bus.poll_deadline(), None);
    }
}

#[test]
fn shutdown_turns_the_bus_off_and_listens_to_nothing_else() {
    let (mut bus, mut host) = running(&[function(0, 1), function(1, 2)]);
    arrived(&mut bus);
    bus.shutdown(START);
    bus.shutdown(START);
    assert_eq!(bus.poll_deadline(), Some(START));
    host.say(MessageType::EJECT, &[0]);
    host.list(&[function(3, 4)]);
    bus.poll(START).unwrap();
    host.expect(MessageType::RELEASE_RESOURCES);
    host.expect(MessageType::RELEASE_RESOURCES);
    let id = host.expect(MessageType::FDO_D0_EXIT);
    assert!(host.receive().is_none());
    assert_eq!(moves(&mut bus), [('-', 0, 1), ('-', 1, 2)]);
    let due = bus.poll_deadline().unwrap();
    bus.poll(due).unwrap();
    let waited = Duration::from_secs(10);
    assert_eq!(events(&mut bus), [Event::Overdue { step: Step::D0Exit, waited }]);
    host.complete(id, &[Status::BAD_DATA.0]);
    bus.poll(due).unwrap();
    assert_eq!(events(&mut bus), [Event::Stopped]);
}

#[test]
fn shutdown_before_d0_entry_has_nothing_to_turn_off() {
    let (mut bus, mut host) = setup();
    bus.poll(START).unwrap();
    host.expect(MessageType::QUERY_PROTOCOL_VERSION);
    bus.shutdown(START);
    assert_eq!(events(&mut bus), [Event::Stopped]);
    bus.poll(START).unwrap();
    assert!(host.receive().is_none());
}

#[test]
fn shutdown_during_d0_entry_waits_for_the_exit_only() {
    let (mut bus, mut host) = setup();
    bus.poll(START).unwrap();
    let id = host.expect(MessageType::QUERY_PROTOCOL_VERSION);
    host.complete(id, &[0]);
    host.list(&[]);
    bus.poll(START).unwrap();
    host.expect(MessageType::QUERY_BUS_RELATIONS);
    let entry = host.expect(MessageType::FDO_D0_ENTRY);
    bus.shutdown(START);
    bus.poll(START).unwrap();
    let exit = host.expect(MessageType::FDO_D0_EXIT);
    host.complete(entry, &[0]);
    bus.poll(START).unwrap();
    assert!(events(&mut bus).is_empty());
    host.complete(exit, &[0]);
    bus.poll(START).unwrap();
    assert_eq!(events(&mut bus), [Event::Stopped]);
}

#[test]
fn every_wait_is_reported_when_overdue_and_a_late_answer_still_counts() {
    let (mut bus, mut host) = setup();
    let mut now = START;
    let waited = Duration::from_secs(10);
    let mut steps = Vec::new();
    while bus.functions().count() == 0 {
        bus.poll(now).unwrap();
        let got = host.receive().unwrap();
        let due = bus.poll_deadline().unwrap();
        assert_eq!(due, now + waited);
        bus.poll(due).unwrap();
        now = due;
        while let Some(event) = bus.poll_event() {
            if let Event::Overdue { step, waited: told } = event {
                assert_eq!(told, waited);
                steps.push(step);
            }
        }
        assert_eq!(bus.poll_deadline(), None, "reported once");
        match got.kind {
            MessageType::QUERY_BUS_RELATIONS => host.list(&[function(0, 1)]),
            _ => host.complete(got.id, &[0; 7]),
        }
        bus.poll(now).unwrap();
    }
    let id = bus.functions().next().unwrap().id;
    assert_eq!(
        steps,
        [
            Step::Version(Version::V1_4),
            Step::Relations,
            Step::D0Entry,
            Step::Requirements(id),
            Step::Assign(id)
        ]
    );
}

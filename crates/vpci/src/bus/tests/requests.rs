//! What the owner asks for a function, and buses that are turned off for a while.

use super::*;
use crate::interrupt::{Delivery, Interrupt, InterruptWish};
use crate::message::PowerState;

const WISH: InterruptWish<'_> =
    InterruptWish { vector: 0x31, vectors: 2, delivery: Delivery::Fixed, processors: &[1] };
const MSI: Interrupt = Interrupt { address: 0x1_fee0_0000, data: 9, vectors: 2 };
/// A completion that grants [`MSI`].
const GRANT: [u32; 6] = [0, 0, 2 << 16, 9, 0xfee0_0000, 1];

fn one() -> (PciBus, Host, FunctionId) {
    let (mut bus, host) = running(&[function(0xa2, 7)]);
    let id = arrived(&mut bus)[0];
    (bus, host, id)
}

fn with_interrupt() -> (PciBus, Host, FunctionId) {
    let (mut bus, mut host, function) = one();
    let request = bus.create_interrupt(function, &WISH, START).unwrap();
    bus.poll(START).unwrap();
    let id = host.expect(MessageType::CREATE_INTERRUPT3);
    host.complete(id, &GRANT);
    bus.poll(START).unwrap();
    let created = Event::InterruptCreated { function, request, interrupt: MSI };
    assert_eq!(events(&mut bus), [created]);
    (bus, host, function)
}

#[test]
fn an_interrupt_is_created_and_given_back_as_it_was_granted() {
    let (mut bus, mut host, function) = with_interrupt();
    assert_eq!(bus.interrupts(function).collect::<Vec<_>>(), [MSI]);
    bus.delete_interrupt(function, MSI).unwrap();
    let again = bus.delete_interrupt(function, MSI);
    assert_eq!(again, Err(RequestError::NoInterrupt(function)));
    bus.poll(START).unwrap();
    let got = host.receive().unwrap();
    assert_eq!((got.kind, got.completion), (MessageType::DELETE_INTERRUPT, false));
    assert_eq!(
        got.rest[..20],
        [0xa2, 0, 0, 0, 0, 0, 2, 0, 9, 0, 0, 0, 0, 0, 0xe0, 0xfe, 1, 0, 0, 0]
    );
    assert!(host.receive().is_none());
}

// HISTORY section 6, 8: interrupt refused, reply shorter than status.
#[test]
fn interrupts_that_are_refused_short_or_fewer_than_asked_fail_the_request_only() {
    let (mut bus, mut host, function) = one();
    let step = Step::CreateInterrupt { function, vectors: 2 };
    let kind = MessageType::CREATE_INTERRUPT3;
    for (words, why) in [
        (&[Status::NOT_SUPPORTED.0][..], Failure::Refused { step, status: Status::NOT_SUPPORTED }),
        (
            &[],
            Failure::Answer {
                step,
                error: MessageError::ReplyTooShort { request: kind, len: 0, expected: 4 },
            },
        ),
        (
            &[0, 0],
            Failure::Answer {
                step,
                error: MessageError::ReplyTooShort { request: kind, len: 8, expected: 24 },
            },
        ),
        (&[0, 0, 1 << 16, 9, 0, 0], Failure::TooFewVectors { asked: 2, got: 1 }),
    ] {
        let request = bus.create_interrupt(function, &WISH, START).unwrap();
        bus.poll(START).unwrap();
        let id = host.expect(kind);
        host.complete(id, words);
        bus.poll(START).unwrap();
        assert_eq!(events(&mut bus), [Event::RequestFailed { function, request, why }]);
    }
    host.expect(MessageType::DELETE_INTERRUPT);
    assert_eq!(bus.interrupts(function).count(), 0);
    assert_eq!(bus.functions().count(), 1);
}

#[test]
fn a_request_without_an_answer_is_reported_and_may_still_succeed() {
    let (mut bus, mut host, function) = one();
    bus.create_interrupt(function, &WISH, START).unwrap();
    bus.poll(START).unwrap();
    let id = host.expect(MessageType::CREATE_INTERRUPT3);
    let due = bus.poll_deadline().unwrap();
    bus.poll(due).unwrap();
    let step = Step::CreateInterrupt { function, vectors: 2 };
    assert_eq!(events(&mut bus), [Event::Overdue { step, waited: due - START }]);
    assert_eq!(bus.poll_deadline(), None);
    host.complete(id, &GRANT);
    bus.poll(due).unwrap();
    assert!(matches!(events(&mut bus)[..], [Event::InterruptCreated { .. }]));
}

// HISTORY 25, 54: nothing is left of a function that leaves while something was asked for it.
#[test]
fn a_function_that_leaves_takes_its_requests_and_interrupts_along() {
    let (mut bus, mut host, function) = with_interrupt();
    bus.create_interrupt(function, &WISH, START).unwrap();
    bus.read_block(function, 1, 8, START).unwrap();
    bus.poll(START).unwrap();
    let id = host.expect(MessageType::CREATE_INTERRUPT3);
    let block = host.expect(MessageType::READ_BLOCK);
    host.list(&[]);
    bus.poll(START).unwrap();
    assert_eq!(moves(&mut bus), [('-', 0xa2, 7)]);
    assert_eq!(bus.interrupts(function).count(), 0);
    let later = START + Duration::from_secs(60);
    bus.poll(later).unwrap();
    host.complete(id, &GRANT);
    host.complete(block, &[0, 1, 2]);
    bus.poll(later).unwrap();
    assert!(events(&mut bus).is_empty(), "neither overdue nor created");
    assert_eq!(bus.stats().late_answers, 2);
    assert!(bus.pending.is_empty());
    let error = RequestError::NotUsable(function);
    assert_eq!(bus.create_interrupt(function, &WISH, START), Err(error));
    assert_eq!(bus.delete_interrupt(function, MSI), Err(error));
}

// HISTORY 28: whoever comes into the same slot gets nothing of what was asked for the one before.
#[test]
fn an_answer_for_a_function_never_reaches_the_one_that_came_after_it() {
    let (mut bus, mut host, old) = one();
    bus.create_interrupt(old, &WISH, START).unwrap();
    bus.poll(START).unwrap();
    let id = host.expect(MessageType::CREATE_INTERRUPT3);
    host.list(&[function(0xa2, 8)]);
    host.serve(&mut bus);
    let new = arrived(&mut bus)[0];
    host.complete(id, &GRANT);
    bus.poll(START).unwrap();
    assert!(events(&mut bus).is_empty());
    assert_eq!(bus.interrupts(new).count() + bus.interrupts(old).count(), 0);
}

#[test]
fn interrupts_go_back_before_their_function_does() {
    let (mut bus, mut host, function) = with_interrupt();
    host.say(MessageType::EJECT, &[0xa2]);
    bus.poll(START).unwrap();
    bus.eject_complete(function).unwrap();
    bus.poll(START).unwrap();
    host.expect(MessageType::DELETE_INTERRUPT);
    host.expect(MessageType::EJECT_COMPLETE);

    let (mut bus, mut host, _) = with_interrupt();
    bus.shutdown(START);
    bus.poll(START).unwrap();
    host.expect(MessageType::DELETE_INTERRUPT);
    host.expect(MessageType::RELEASE_RESOURCES);
    host.expect(MessageType::FDO_D0_EXIT);
}

#[test]
fn blocks_are_read_and_written() {
    let (mut bus, mut host, function) = one();
    let read = bus.read_block(function, 3, 5, START).unwrap();
    let write = bus.write_block(function, 4, &[1, 2, 3], START).unwrap();
    bus.poll(START).unwrap();
    let got = host.receive().unwrap();
    assert_eq!(
        (got.kind, &got.rest[..12]),
        (MessageType::READ_BLOCK, &[3, 0, 0, 0, 0xa2, 0, 0, 0, 5, 0, 0, 0][..])
    );
    host.complete(got.id, &[0, 0x0403_0201, 0x0605]);
    let got = host.receive().unwrap();
    assert_eq!(
        (got.kind, &got.rest[..15]),
        (MessageType::WRITE_BLOCK, &[4, 0, 0, 0, 0xa2, 0, 0, 0, 3, 0, 0, 0, 1, 2, 3][..])
    );
    host.complete(got.id, &[0]);
    bus.poll(START).unwrap();
    let [Event::BlockRead { request, block: 3, data, .. }, written] = events(&mut bus)[..] else {
        panic!("expected a block");
    };
    assert_eq!((request, data.as_bytes()), (read, &[1, 2, 3, 4, 5][..]));
    assert_eq!(written, Event::BlockWritten { function, request: write, block: 4 });

    let error = RequestError::BlockTooLong(129);
    assert_eq!(bus.read_block(function, 0, 129, START), Err(error));
    assert_eq!(bus.write_block(function, 0, &[0; 129], START), Err(error));
    assert!(bus.read_block(function, 0, 128, START).is_ok());
}

#[test]
fn a_block_shorter_than_asked_fails_the_request() {
    let (mut bus, mut host, function) = one();
    let request = bus.read_block(function, 3, 9, START).unwrap();
    bus.poll(START).unwrap();
    let id = host.expect(MessageType::READ_BLOCK);
    host.complete(id, &[0, 1]);
    bus.poll(START).unwrap();
    let step = Step::ReadBlock { function, block: 3, bytes: 9 };
    let error =
        MessageError::ReplyTooShort { request: MessageType::READ_BLOCK, len: 8, expected: 13 };
    let why = Failure::Answer { step, error };
    assert_eq!(events(&mut bus), [Event::RequestFailed { function, request, why }]);
}

#[test]
fn power_states_are_told_and_noted() {
    let (mut bus, mut host, function) = one();
    let request = bus.set_power(function, PowerState::D3, START).unwrap();
    bus.poll(START).unwrap();
    let got = host.receive().unwrap();
    assert_eq!(got.kind, MessageType::DEVICE_POWER_STATE_CHANGE);
    assert_eq!(got.rest[..8], [0xa2, 0, 0, 0, 4, 0, 0, 0]);
    host.complete(got.id, &[0]);
    bus.poll(START).unwrap();
    let state = PowerState::D3;
    assert_eq!(events(&mut bus), [Event::PowerChanged { function, request, state }]);
}

#[test]
fn notices_about_stopping_are_passed_on() {
    let (mut bus, mut host, function) = one();
    for (kind, notice) in [
        (MessageType::QUERY_STOP, StopNotice::Wanted),
        (MessageType::QUERY_STOP_FAILED, StopNotice::Cancelled),
        (MessageType::RE_ENABLE, StopNotice::Over),
    ] {
        host.say(kind, &[0xa2]);
        bus.poll(START).unwrap();
        assert_eq!(events(&mut bus), [Event::StopNotice { function, notice }]);
    }
    assert!(host.receive().is_none());
}

#[test]
fn resources_are_assigned_in_form_3_where_that_is_wished_and_known() {
    for (version, wished, kind, len) in [
        (Version::V1_1, true, MessageType::ASSIGNED_RESOURCES, 148),
        (Version::V1_3, true, MessageType::ASSIGNED_RESOURCES2, 202),
        (Version::V1_4, false, MessageType::ASSIGNED_RESOURCES2, 202),
        (Version::V1_4, true, MessageType::ASSIGNED_RESOURCES3, 216),
    ] {
        let (mut bus, mut host) = setup();
        bus.config.resources_form3 = wished;
        bus.config.versions = vec![version];
        bus = PciBus::new(bus.channel, bus.config, START);
        bus.poll(START).unwrap();
        let id = host.expect(MessageType::QUERY_PROTOCOL_VERSION);
        host.complete(id, &[0]);
        host.list(&[function(0, 1)]);
        bus.poll(START).unwrap();
        host.expect(MessageType::QUERY_BUS_RELATIONS);
        let id = host.expect(MessageType::FDO_D0_ENTRY);
        host.complete(id, &[0]);
        bus.poll(START).unwrap();
        let id = host.expect(MessageType::QUERY_RESOURCE_REQUIREMENTS);
        host.complete(id, &[0; 7]);
        bus.poll(START).unwrap();
        let got = host.receive().unwrap();
        assert_eq!((got.kind, got.rest.len()), (kind, usize::next_multiple_of(len, 8) - 4));
    }
}

/// Brings a suspended bus up again on new rings, with these functions.
fn resume(bus: &mut PciBus, list: &[Description]) -> Host {
    let (other, mut host) = setup();
    bus.resume(other.into_channel(), START).unwrap();
    bus.poll(START).unwrap();
    let asks = |bus: &PciBus| assert!(!bus.waits_forever() && bus.poll_deadline().is_some());
    asks(bus);
    let id = host.expect(MessageType::QUERY_PROTOCOL_VERSION);
    host.complete(id, &[0]);
    bus.poll(START).unwrap();
    asks(bus);
    host.expect(MessageType::QUERY_BUS_RELATIONS);
    host.list(list);
    bus.poll(START).unwrap();
    asks(bus);
    let id = host.expect(MessageType::FDO_D0_ENTRY);
    host.complete(id, &[0]);
    host.serve(bus);
    host
}

#[test]
fn a_bus_that_asks_for_nothing_on_its_way_is_noticed() {
    let list = [function(0, 1)];
    let (mut bus, mut host) = running(&list);
    arrived(&mut bus);
    assert!(!bus.waits_forever(), "it is where it wants to be");
    suspend(&mut bus, &mut host);
    assert!(!bus.waits_forever(), "it sleeps");
    let (other, _host) = setup();
    bus.resume(other.into_channel(), START).unwrap();
    bus.poll(START).unwrap();
    bus.pending.clear();
    assert!(bus.waits_forever(), "nobody was asked for the version");
}

fn suspend(bus: &mut PciBus, host: &mut Host) {
    bus.suspend(START).unwrap();
    assert!(!bus.waits_forever() && bus.poll_deadline().is_some());
    bus.poll(START).unwrap();
    loop {
        let got = host.receive().unwrap();
        if got.kind == MessageType::FDO_D0_EXIT {
            host.complete(got.id, &[0]);
            break;
        }
        assert!(
            [MessageType::RELEASE_RESOURCES, MessageType::DELETE_INTERRUPT].contains(&got.kind)
        );
    }
    bus.poll(START).unwrap();
    assert_eq!(bus.poll_event(), Some(Event::Suspended));
}

#[test]
fn the_same_functions_are_resumed_and_changed_ones_leave_and_arrive() {
    let list = [function(0, 1), function(1, 2), function(2, 3)];
    let (mut bus, mut host) = running(&list);
    let ids = arrived(&mut bus);
    suspend(&mut bus, &mut host);
    assert_eq!(bus.functions().count(), 3, "still known");
    assert_eq!((bus.poll_event(), bus.poll_deadline()), (None, None));
    let error = RequestError::NotOn;
    assert_eq!(bus.set_power(ids[0], PowerState::D0, START), Err(error));

    // HISTORY 28: the serial of one has changed; another is gone.
    let mut host = resume(&mut bus, &[function(0, 1), function(1, 9)]);
    let events = events(&mut bus);
    let resumed = |event: &Event| match event {
        Event::FunctionResumed(function) => Some(function.id),
        _ => None,
    };
    assert_eq!(events.iter().filter_map(resumed).collect::<Vec<_>>(), [ids[0]]);
    let left = |event: &Event| match event {
        Event::FunctionLeft(function) => Some(function.id),
        _ => None,
    };
    assert_eq!(events.iter().filter_map(left).collect::<Vec<_>>(), ids[1..]);
    assert!(events.iter().any(|event| matches!(
        event,
        Event::FunctionArrived(function) if function.serial() == Serial(9)
    )));
    assert!(bus.create_interrupt(ids[0], &WISH, START).is_ok());
    bus.poll(START).unwrap();
    host.expect(MessageType::CREATE_INTERRUPT3);
}

#[test]
fn requests_that_are_not_answered_before_a_suspend_fail_with_it() {
    let (mut bus, mut host, function) = one();
    let asked = [
        bus.create_interrupt(function, &WISH, START).unwrap(),
        bus.read_block(function, 1, 8, START).unwrap(),
        bus.set_power(function, PowerState::D3, START).unwrap(),
        bus.query_resources(function, START).unwrap(),
        bus.tdisp(function, b"hello", START).unwrap(),
    ];
    bus.poll(START).unwrap();
    let id = host.expect(MessageType::CREATE_INTERRUPT3);
    let answered = [asked[1], asked[2]];
    let blocks = host.expect(MessageType::READ_BLOCK);
    host.complete(blocks, &[0, 7, 8]);
    let power = host.expect(MessageType::DEVICE_POWER_STATE_CHANGE);
    host.complete(power, &[0]);
    bus.poll(START).unwrap();
    let seen: Vec<_> = events(&mut bus)
        .into_iter()
        .map(|event| match event {
            Event::BlockRead { request, .. } | Event::PowerChanged { request, .. } => request,
            event => panic!("{event:?}"),
        })
        .collect();
    assert_eq!(seen, answered);

    bus.suspend(START).unwrap();
    let why = Failure::Suspended;
    let failed = [asked[0], asked[3], asked[4]].map(|request| Event::RequestFailed {
        function,
        request,
        why,
    });
    assert_eq!(events(&mut bus), failed);
    // An answer that crossed the suspend is of no use; what it grants goes with the resources.
    host.complete(id, &GRANT);
    bus.poll(START).unwrap();
    assert_eq!((events(&mut bus), bus.stats().late_answers), (vec![], 1));
    assert_eq!(bus.interrupts(function).count(), 0);
    host.expect(MessageType::GET_RESOURCES);
    host.expect(MessageType::TDISP);
    host.expect(MessageType::RELEASE_RESOURCES);
    let exit = host.expect(MessageType::FDO_D0_EXIT);
    host.complete(exit, &[0]);
    bus.poll(START).unwrap();
    assert_eq!(events(&mut bus), [Event::Suspended], "nothing is said twice");
}

#[test]
fn a_function_asked_back_before_a_suspend_has_to_be_asked_again() {
    let (mut bus, mut host, id) = one();
    host.say(MessageType::EJECT, &[0xa2]);
    bus.poll(START).unwrap();
    events(&mut bus);
    suspend(&mut bus, &mut host);
    assert_eq!(bus.eject_complete(id), Err(NotEjecting(id)));
    let mut host = resume(&mut bus, &[function(0xa2, 7)]);
    events(&mut bus);
    host.say(MessageType::EJECT, &[0xa2]);
    bus.poll(START).unwrap();
    assert_eq!(events(&mut bus), [Event::EjectRequested { function: id }]);
    bus.eject_complete(id).unwrap();
}

#[test]
fn a_function_that_does_not_come_up_after_a_resume_leaves_and_fails() {
    let (mut bus, mut host, id) = one();
    suspend(&mut bus, &mut host);
    let (other, mut host) = setup();
    bus.resume(other.into_channel(), START).unwrap();
    bus.poll(START).unwrap();
    let version = host.expect(MessageType::QUERY_PROTOCOL_VERSION);
    host.complete(version, &[0]);
    host.list(&[function(0xa2, 7)]);
    bus.poll(START).unwrap();
    host.expect(MessageType::QUERY_BUS_RELATIONS);
    let entry = host.expect(MessageType::FDO_D0_ENTRY);
    host.complete(entry, &[0]);
    bus.poll(START).unwrap();
    let requirements = host.expect(MessageType::QUERY_RESOURCE_REQUIREMENTS);
    host.complete(requirements, &[Status::BAD_DATA.0]);
    bus.poll(START).unwrap();
    assert!(matches!(
        events(&mut bus)[..],
        [Event::Ready { .. }, Event::FunctionLeft(left), Event::FunctionFailed { .. }]
            if left.id == id
    ));
}

#[test]
fn a_bus_that_is_off_for_a_while_can_be_ended() {
    let (mut bus, mut host, _) = one();
    suspend(&mut bus, &mut host);
    bus.shutdown(START);
    assert_eq!(moves(&mut bus), [('-', 0xa2, 7)]);

    let (mut bus, mut host, _) = one();
    suspend(&mut bus, &mut host);
    bus.rescinded();
    assert!(matches!(events(&mut bus)[..], [Event::FunctionLeft(_), Event::Stopped]));

    let (mut bus, mut host, _) = one();
    bus.suspend(START).unwrap();
    bus.shutdown(START);
    bus.poll(START).unwrap();
    host.expect(MessageType::RELEASE_RESOURCES);
    let id = host.expect(MessageType::FDO_D0_EXIT);
    host.complete(id, &[0]);
    bus.poll(START).unwrap();
    assert!(matches!(events(&mut bus)[..], [Event::FunctionLeft(_), Event::Stopped]));
}

#[test]
fn only_a_bus_that_is_on_is_suspended_and_only_a_suspended_one_resumed() {
    let (mut bus, _host) = setup();
    assert_eq!(bus.suspend(START), Err(NotOn));
    let (other, _other_host) = setup();
    assert!(bus.resume(other.into_channel(), START).is_err());
}

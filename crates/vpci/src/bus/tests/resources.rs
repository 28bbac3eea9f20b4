//! Resources with interrupts, resources that the host knows of, resets and security commands.

use super::*;
use crate::interrupt::{Delivery, Interrupt, InterruptWish};
use crate::message::{Resource, resources_of};

const NARROW: InterruptWish<'_> =
    InterruptWish { vector: 0x31, vectors: 1, delivery: Delivery::Fixed, processors: &[1] };
const WIDE: InterruptWish<'_> = InterruptWish {
    vector: 0x40,
    vectors: 4,
    delivery: Delivery::LowestPriority,
    processors: &[2, 3],
};

/// A bus that speaks this version and uses the newest forms, with one function.
fn newest(version: Version) -> (PciBus, Host, FunctionId) {
    let (bus, mut host) = setup();
    let config = PciBusConfig {
        versions: vec![version],
        resources_form3: true,
        delete_interrupt_form2: true,
        ..PciBusConfig::new(WINDOW)
    };
    let mut bus = PciBus::new(bus.into_channel(), config, START);
    let mut found = Vec::new();
    for _ in 0..10 {
        bus.poll(START).unwrap();
        while let Some(got) = host.receive() {
            match got.kind {
                MessageType::QUERY_BUS_RELATIONS => host.list(&[function(0xa2, 7)]),
                _ => host.complete(got.id, &[0, BAR0, 0, 0, 0, 0, 0]),
            }
        }
        found.extend(arrived(&mut bus));
    }
    (bus, host, found[0])
}

/// The completion that grants `vectors` for each interrupt, in elements of `stride` bytes.
fn granted(stride: usize, vectors: &[u32]) -> Vec<u32> {
    let mut words = vec![0; 34];
    words[32] = vectors.len() as u32;
    for (number, vectors) in (0..).zip(vectors) {
        let start = words.len();
        words.extend([vectors << 16, 0x50 + 16 * number, 0xfee0_0000, 0]);
        words.resize(start + stride / 4, 0);
    }
    words
}

fn interrupt(number: u32, vectors: u16) -> Interrupt {
    Interrupt { address: 0xfee0_0000, data: 0x50 + 16 * number, vectors }
}

#[test]
fn interrupts_are_asked_for_with_resources_in_the_form_of_the_version() {
    for (version, kind, stride, count_at) in [
        (Version::V1_1, MessageType::ASSIGNED_RESOURCES, 16, 2),
        (Version::V1_3, MessageType::ASSIGNED_RESOURCES2, 72, 2),
        (Version::V1_4, MessageType::ASSIGNED_RESOURCES3, 80, 6),
    ] {
        let (mut bus, mut host, function) = newest(version);
        let request = bus.assign_with_interrupts(function, &[NARROW, WIDE], START).unwrap();
        bus.poll(START).unwrap();
        let got = host.receive().unwrap();
        assert_eq!((got.kind, got.completion), (kind, true));
        assert_eq!(got.rest.len(), 132 + 2 * stride);
        assert_eq!(got.rest[..4], [0xa2, 0, 0, 0]);
        assert_eq!(got.rest[124..132], [2, 0, 0, 0, 0, 0, 0, 0]);
        let (first, second) = (132 + count_at, 132 + stride + count_at);
        assert_eq!((got.rest[first], got.rest[second]), (1, 4));
        assert_eq!((got.rest[132], got.rest[132 + stride]), (0x31, 0x40));

        host.complete(got.id, &granted(stride, &[1, 4]));
        bus.poll(START).unwrap();
        let [one, two] = [interrupt(0, 1), interrupt(1, 4)];
        assert_eq!(
            events(&mut bus),
            [
                Event::InterruptCreated { function, request, interrupt: one },
                Event::InterruptCreated { function, request, interrupt: two },
                Event::ResourcesAssigned { function, request },
            ]
        );
        assert_eq!(bus.interrupts(function).collect::<Vec<_>>(), [one, two]);

        bus.delete_interrupt(function, one).unwrap();
        bus.poll(START).unwrap();
        let form = match version {
            Version::V1_1 => MessageType::DELETE_INTERRUPT,
            _ => MessageType::DELETE_INTERRUPT2,
        };
        host.expect(form);
    }
}

#[test]
fn a_host_that_assigns_less_than_was_asked_for_gets_it_back() {
    let step = |function| Step::AssignInterrupts { function, interrupts: 2 };
    let short = MessageError::ReplyTooShort {
        request: MessageType::ASSIGNED_RESOURCES3,
        len: 8,
        expected: 136,
    };
    for (words, back, why) in [
        (granted(80, &[1, 3]), 2, Failure::TooFewVectors { asked: 4, got: 3 }),
        (granted(80, &[1]), 1, Failure::InterruptCount { asked: 2, got: 1 }),
        (granted(80, &[1, 4, 1]), 3, Failure::InterruptCount { asked: 2, got: 3 }),
        (vec![0], 0, Failure::NoCommonVersion),
        (vec![0xc000_090b], 0, Failure::NoCommonVersion),
    ] {
        let (mut bus, mut host, function) = newest(Version::V1_4);
        let why = match &words[..] {
            [0] => Failure::Answer { step: step(function), error: short },
            [status] => Failure::Refused { step: step(function), status: Status(*status) },
            _ => why,
        };
        let request = bus.assign_with_interrupts(function, &[NARROW, WIDE], START).unwrap();
        bus.poll(START).unwrap();
        let id = host.expect(MessageType::ASSIGNED_RESOURCES3);
        host.complete(id, &words);
        bus.poll(START).unwrap();
        assert_eq!(events(&mut bus), [Event::RequestFailed { function, request, why }]);
        for _ in 0..back {
            host.expect(MessageType::DELETE_INTERRUPT2);
        }
        assert!(host.receive().is_none());
        assert_eq!(bus.interrupts(function).count(), 0);
    }
}

#[test]
fn what_does_not_fit_into_a_message_or_a_version_is_not_sent() {
    let (mut bus, mut host, function) = newest(Version::V1_4);
    let most = (8192 - 32 - 136) / 80;
    for interrupts in [0, most + 1] {
        let wishes = vec![NARROW; interrupts];
        let refused = bus.assign_with_interrupts(function, &wishes, START);
        assert_eq!(refused, Err(RequestError::Interrupts { interrupts, most }));
    }
    let wrong = InterruptWish { vectors: 0, ..NARROW };
    assert!(matches!(
        bus.assign_with_interrupts(function, &[NARROW, wrong], START),
        Err(RequestError::Wish(_))
    ));
    let (needed, spoken) = (Version::V1_5, Version::V1_4);
    assert_eq!(bus.reset(function, START), Err(RequestError::NotInVersion { needed, spoken }));
    let (len, most) = (8192, 8192 - 32 - 16);
    let command = vec![0; len];
    assert_eq!(
        bus.tdisp(function, &command, START),
        Err(RequestError::CommandTooLong { len, most })
    );
    bus.poll(START).unwrap();
    assert!(host.receive().is_none());
    // The longest that fit do go.
    let wishes = vec![NARROW; (8192 - 32 - 136) / 80];
    bus.assign_with_interrupts(function, &wishes, START).unwrap();
    bus.tdisp(function, &command[..most], START).unwrap();
    bus.poll(START).unwrap();
    host.expect(MessageType::ASSIGNED_RESOURCES3);
    bus.poll(START).unwrap();
    host.expect(MessageType::TDISP);
}

#[test]
fn the_resources_that_the_host_knows_of_are_asked_for() {
    let (mut bus, mut host, function) = newest(Version::V1_4);
    let request = bus.query_resources(function, START).unwrap();
    bus.poll(START).unwrap();
    let got = host.receive().unwrap();
    assert_eq!((got.kind, got.rest.len()), (MessageType::GET_RESOURCES, 28));
    let mut words = vec![0x1_0001, 6];
    for bar in 0..6 {
        words.extend([3, 0xf000_0000 + bar * 0x1000, 0, 0x1000, 0]);
    }
    host.complete(got.id, &words);
    bus.poll(START).unwrap();
    let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
    let resources: [Resource; 6] = resources_of(&bytes).unwrap().unwrap();
    assert_eq!(resources[5].address.get(), 0xf000_5000);
    assert_eq!(events(&mut bus), [Event::Resources { function, request, resources }]);

    let step = Step::Resources(function);
    let short =
        MessageError::ReplyTooShort { request: MessageType::GET_RESOURCES, len: 8, expected: 128 };
    for (words, why) in [
        (&[0xc000_090b][..], Failure::Refused { step, status: Status::BAD_DATA }),
        (&[0x1_0001, 6], Failure::Answer { step, error: short }),
    ] {
        let request = bus.query_resources(function, START).unwrap();
        bus.poll(START).unwrap();
        let id = host.expect(MessageType::GET_RESOURCES);
        host.complete(id, words);
        bus.poll(START).unwrap();
        assert_eq!(events(&mut bus), [Event::RequestFailed { function, request, why }]);
    }
}

#[test]
fn a_function_is_reset_from_version_1_5_on() {
    let (mut bus, mut host, function) = newest(Version::V1_5);
    for (status, failed) in [(Status::SUCCESS, false), (Status::NOT_SUPPORTED, true)] {
        let request = bus.reset(function, START).unwrap();
        bus.poll(START).unwrap();
        let got = host.receive().unwrap();
        assert_eq!((got.kind, &got.rest[..]), (MessageType::RESET_DEVICE, &[0xa2, 0, 0, 0][..]));
        host.complete(got.id, &[status.0]);
        bus.poll(START).unwrap();
        let why = Failure::Refused { step: Step::Reset(function), status };
        let expected = match failed {
            false => Event::FunctionReset { function, request },
            true => Event::RequestFailed { function, request, why },
        };
        assert_eq!(events(&mut bus), [expected]);
    }
}

#[test]
fn security_commands_are_carried_and_their_answers_kept_until_fetched_or_the_function_leaves() {
    let (mut bus, mut host, function) = newest(Version::V1_4);
    let mut requests = Vec::new();
    for word in [0x0403_0201, 0x0807_0605] {
        let request = bus.tdisp(function, &[9, 8, 7], START).unwrap();
        bus.poll(START).unwrap();
        let got = host.receive().unwrap();
        assert_eq!(got.kind, MessageType::TDISP);
        assert_eq!(got.rest[..15], [0xa2, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0, 9, 8, 7]);
        host.complete(got.id, &[0, word]);
        bus.poll(START).unwrap();
        assert_eq!(events(&mut bus), [Event::TdispAnswered { function, request }]);
        requests.push(request);
    }
    assert_eq!(bus.take_tdisp_answer(requests[0]), Some(vec![1, 2, 3, 4]));
    assert_eq!(bus.take_tdisp_answer(requests[0]), None, "once");
    host.list(&[]);
    bus.poll(START).unwrap();
    assert_eq!(bus.take_tdisp_answer(requests[1]), None, "it went with its function");
}

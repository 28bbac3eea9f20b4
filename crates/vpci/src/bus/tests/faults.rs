//! Hosts that refuse, lie, flood or fall silent.

use super::*;
use crate::interrupt::{Delivery, InterruptWish};
use crate::message::MAX_FUNCTIONS;

// HISTORY section 6, 8: replies shorter than their status.
#[test]
fn an_answer_shorter_than_its_status_fails_the_step() {
    let short = |request, len, expected| MessageError::ReplyTooShort { request, len, expected };
    let (mut bus, mut host) = setup();
    bus.poll(START).unwrap();
    let id = host.expect(MessageType::QUERY_PROTOCOL_VERSION);
    host.complete(id, &[]);
    bus.poll(START).unwrap();
    let error = short(MessageType::QUERY_PROTOCOL_VERSION, 0, 4);
    let step = Step::Version(Version::V1_4);
    assert_eq!(events(&mut bus), [Event::Failed(Failure::Answer { step, error })]);
    assert_eq!(bus.stats().last_bad_packet, Some(BadPacket::Message(error)));

    for (reply, len) in [(&[][..], 0), (&[0, 0], 8), (&[0; 5], 24)] {
        let (mut bus, mut host) = running(&[]);
        events(&mut bus);
        host.list(&[function(0, 1)]);
        bus.poll(START).unwrap();
        let id = host.expect(MessageType::QUERY_RESOURCE_REQUIREMENTS);
        host.complete(id, reply);
        bus.poll(START).unwrap();
        let expected = if len == 0 { 4 } else { 28 };
        let error = short(MessageType::QUERY_RESOURCE_REQUIREMENTS, len, expected);
        let events = events(&mut bus);
        let [Event::FunctionFailed { function: failed, why }] = &events[..] else {
            panic!("{events:?}")
        };
        let step = Step::Requirements(failed.id);
        assert_eq!(*why, Failure::Answer { step, error });
        host.list(&[function(0, 1), function(1, 2)]);
        host.serve(&mut bus);
        assert_eq!(moves(&mut bus), [('+', 1, 2)], "the bus lives on");
    }
}

#[test]
fn a_refused_function_does_not_arrive_and_may_come_again() {
    for step in 0..2 {
        let (mut bus, mut host) = running(&[]);
        events(&mut bus);
        host.list(&[function(0, 1)]);
        bus.poll(START).unwrap();
        let mut id = host.expect(MessageType::QUERY_RESOURCE_REQUIREMENTS);
        if step == 1 {
            host.complete(id, &[0; 7]);
            bus.poll(START).unwrap();
            id = host.expect(MessageType::ASSIGNED_RESOURCES2);
        }
        host.complete(id, &[Status::NOT_SUPPORTED.0]);
        bus.poll(START).unwrap();
        let events = events(&mut bus);
        assert!(
            matches!(
                &events[..],
                [Event::FunctionFailed {
                    why: Failure::Refused { status: Status::NOT_SUPPORTED, .. },
                    ..
                }]
            ),
            "{events:?}"
        );
        host.say(MessageType::EJECT, &[0]);
        host.list(&[]);
        host.list(&[function(0, 1)]);
        bus.poll(START).unwrap();
        host.expect(MessageType::EJECT_COMPLETE);
        host.serve(&mut bus);
        assert_eq!(moves(&mut bus), [('+', 0, 1)]);
    }
}

#[test]
fn a_slot_used_again_waits_for_the_answer_about_its_earlier_function() {
    let (mut bus, mut host) = running(&[]);
    host.list(&[function(0, 1)]);
    bus.poll(START).unwrap();
    let first = host.expect(MessageType::QUERY_RESOURCE_REQUIREMENTS);
    for serial in 2..50 {
        host.list(&[function(0, serial)]);
        bus.poll(START).unwrap();
        assert!(host.receive().is_none(), "a host cannot make questions pile up");
    }
    host.complete(first, &[0; 7]);
    host.serve(&mut bus);
    assert_eq!(moves(&mut bus), [('+', 0, 49)]);
}

#[test]
fn packets_of_no_use_cost_only_themselves() {
    let (mut bus, mut host) = running(&[function(0, 1)]);
    arrived(&mut bus);
    let mut expect = |host: &mut Host, count, error| {
        bus.poll(START).unwrap();
        assert_eq!(bus.stats().bad_packets, count);
        assert_eq!(bus.stats().last_bad_packet, Some(error));
        assert!(bus.poll_event().is_none() && host.receive().is_none());
    };
    host.complete(999, &[0]);
    expect(&mut host, 1, BadPacket::UnknownCompletion(999));
    host.send(&[]);
    expect(&mut host, 2, MessageError::NoType(0).into());
    host.say(MessageType(0x4249_0fff), &[]);
    expect(&mut host, 3, MessageError::UnknownType(MessageType(0x4249_0fff)).into());
    let kind = MessageType::BUS_RELATIONS2;
    host.say(kind, &[2, 0, 0]);
    expect(&mut host, 4, MessageError::TooShort { kind, len: 16, expected: 64 }.into());
    host.channel
        .try_send(&Outgoing::GpaDirect {
            transaction_id: 1,
            ranges: &[GpaRange { byte_count: 8, byte_offset: 0, frames: &[Pfn(1)] }],
            payload: &MessageType::EJECT.0.to_le_bytes(),
        })
        .unwrap();
    expect(&mut host, 5, BadPacket::Ranges);
    host.send(&[0; 9000]);
    let error = vmbus::packet::PacketError::TooLarge { packet: 9016, buffer: 8192 };
    expect(&mut host, 6, error.into());
    assert_eq!(bus.functions().count(), 1);
}

#[test]
fn a_second_answer_is_an_answer_to_nothing() {
    let (mut bus, mut host) = setup();
    bus.poll(START).unwrap();
    let id = host.expect(MessageType::QUERY_PROTOCOL_VERSION);
    host.complete(id, &[0]);
    host.complete(id, &[0]);
    bus.poll(START).unwrap();
    assert_eq!(bus.stats().last_bad_packet, Some(BadPacket::UnknownCompletion(id)));
    host.expect(MessageType::QUERY_BUS_RELATIONS);
    assert!(host.receive().is_none());
}

#[test]
fn a_full_ring_delays_messages_and_loses_none() {
    let list: Vec<_> = (0..256).map(|slot| function(slot, slot)).collect();
    let (mut bus, mut host) = setup();
    bus.poll(START).unwrap();
    let id = host.expect(MessageType::QUERY_PROTOCOL_VERSION);
    host.complete(id, &[0]);
    host.list(&list);
    bus.poll(START).unwrap();
    host.expect(MessageType::QUERY_BUS_RELATIONS);
    let id = host.expect(MessageType::FDO_D0_ENTRY);
    host.complete(id, &[0]);
    bus.poll(START).unwrap();
    for expected in 0..256 {
        let got = host.receive().unwrap();
        assert_eq!(u32::from(got.rest[0]), expected);
        host.complete(got.id, &[0; 7]);
        if host.to_guest.take() {
            bus.poll(START).unwrap();
        }
    }
    host.channel.arm().unwrap();
    let mut rounds = 0;
    loop {
        if host.to_guest.take() {
            bus.poll(START).unwrap();
        }
        while let Some(got) = host.receive() {
            host.complete(got.id, &[0]);
        }
        if bus.functions().count() == 256 {
            break;
        }
        assert!(!host.channel.arm().unwrap() || host.to_host.take());
        rounds += 1;
        assert!(rounds < 600, "a wake-up was lost");
    }
    assert_eq!(moves(&mut bus).len(), 256);
}

/// Most messages that a host can have wait in a guest: answers to what it says, and for each slot one question and one answer
/// of the owner's to an eject.
const MOST_WAITING: usize = MOST_ANSWERS + 2 * MAX_FUNCTIONS;

/// A host that does not read by itself, so that the guest's ring is full, and answers requests before they are sent.
struct Greedy {
    bus: PciBus,
    host: Host,
    /// Functions that the guest's owner gave back.
    given_back: u32,
}

impl Greedy {
    fn new() -> Self {
        let (bus, host) = running(&[]);
        Self { bus, host, given_back: 0 }
    }

    /// 256 functions, none of which was there before.
    fn list_others(&mut self, round: u32) {
        let list: Vec<_> = (0..256).map(|slot| function(slot, round)).collect();
        self.say(&Outgoing::InBand {
            transaction_id: 0,
            completion: false,
            payload: &encode_relations(Version::V1_3, &list),
        });
        self.poll();
    }

    /// Answers every request that the guest has made, sent or not; the ids are easy to guess.
    fn answer_all(&mut self) {
        let ids: Vec<_> = self.bus.pending.keys().copied().collect();
        for transaction_id in ids {
            self.say(&Outgoing::Completion { transaction_id, payload: &[0; 28] });
        }
        self.poll();
    }

    /// Puts a packet into its ring, if there is room after the guest has read.
    fn say(&mut self, packet: &Outgoing<'_>) {
        if self.host.channel.try_send(packet).is_err() {
            self.poll();
            // What a guest does not read any more is lost on it.
            let _ = self.host.channel.try_send(packet);
        }
    }

    /// The guest has its turn, and its owner gives back at once what it is asked for.
    #[track_caller]
    fn poll(&mut self) {
        self.bus.poll(START).unwrap();
        for event in events(&mut self.bus) {
            if let Event::EjectRequested { function } = event {
                self.bus.eject_complete(function).unwrap();
                self.given_back += 1;
            }
        }
        let waiting = self.bus.outgoing.len();
        assert!(waiting <= MOST_WAITING, "{waiting} messages wait");
    }
}

#[test]
fn answers_to_requests_that_were_not_sent_yet_cannot_make_messages_pile_up() {
    let mut greedy = Greedy::new();
    for round in 0..100 {
        greedy.list_others(round);
        greedy.answer_all();
        greedy.answer_all();
        let waiting = greedy.bus.outgoing.len();
        assert!(waiting <= MAX_FUNCTIONS, "round {round}: {waiting} messages wait");
    }
    let Greedy { mut bus, mut host, .. } = greedy;
    let error = BadPacket::UnsentCompletion(bus.last_id);
    assert_eq!(bus.stats().last_bad_packet, Some(error));
    // Once it reads, all is asked and answered as ever.
    host.serve(&mut bus);
    let serials: Vec<_> = bus.functions().map(|function| function.serial().0).collect();
    assert_eq!(serials, [99; 256]);
    assert!(bus.pending.is_empty() && bus.outgoing.front().is_none());
}

#[test]
fn whatever_a_host_that_reads_little_says_what_waits_for_it_is_bounded() {
    let mut greedy = Greedy::new();
    let mut most_answers = 0;
    for round in 0..200 {
        // Now and then others, and all of them are asked back after some have arrived.
        greedy.list_others(round / 4);
        greedy.answer_all();
        greedy.answer_all();
        let eject = |slot: u32| [MessageType::EJECT.0, slot].map(u32::to_le_bytes).concat();
        let ejects = (0..256).map(eject).filter(|_| round % 4 == 3);
        let invalidate = MessageType::INVALIDATE_BUS.0.to_le_bytes().to_vec();
        for payload in ejects.chain([invalidate]) {
            greedy.say(&Outgoing::InBand {
                transaction_id: 0,
                completion: false,
                payload: &payload,
            });
        }
        greedy.poll();
        most_answers = most_answers.max(greedy.bus.outgoing.answers());
        // Enough for functions to arrive, and later hardly any.
        for _ in 0..if round < 100 { 400 } else { round % 50 } {
            if greedy.host.receive().is_none() {
                greedy.poll();
            }
        }
    }
    assert_eq!(most_answers, MOST_ANSWERS, "it was not for want of words");
    assert!(greedy.given_back > 4000, "functions came and went all the while");
}

#[test]
fn a_request_that_its_owner_repeats_waits_once_however_often_the_host_answers_it() {
    let (mut bus, mut host) = running(&[function(0, 1)]);
    let id = arrived(&mut bus)[0];
    let processors = &[0];
    let wish = InterruptWish { vector: 0x40, vectors: 1, delivery: Delivery::Fixed, processors };
    bus.create_interrupt(id, &wish, START).unwrap();
    for _ in 0..2000 {
        bus.poll(START).unwrap();
        // An interrupt without vectors, which the guest gives back; and the owner asks for another.
        host.complete(bus.last_id, &[0; 8]);
        bus.poll(START).unwrap();
        if let Some(Event::RequestFailed { .. }) = bus.poll_event() {
            bus.create_interrupt(id, &wish, START).unwrap();
        }
        assert!(bus.outgoing.len() <= 2, "{} messages wait", bus.outgoing.len());
    }
}

#[test]
fn another_doorbell_is_rung_instead_of_the_first() {
    let (mut bus, mut host) = running(&[function(0, 1)]);
    let id = arrived(&mut bus)[0];
    let new = SignalFlag::new();
    drop(bus.set_doorbell(new.clone()));
    let _ = host.to_host.take();
    let processors = &[0];
    let wish = InterruptWish { vector: 0x40, vectors: 1, delivery: Delivery::Fixed, processors };
    bus.create_interrupt(id, &wish, START).unwrap();
    bus.poll(START).unwrap();
    assert!(!host.to_host.take() && new.take());
    assert!(host.receive().is_some());
}

#[test]
fn a_broken_ring_ends_the_bus() {
    let down = SharedPages::from_heap(&[Pfn(0), Pfn(1)]);
    let up = SharedPages::from_heap(&[Pfn(2), Pfn(3)]);
    let channel = Channel::from_parts(up, down.clone(), SignalFlag::new()).unwrap();
    let mut bus = PciBus::new(channel, PciBusConfig::new(WINDOW), START);
    // The host's write index becomes impossible.
    vmbus::memory::SharedMemory::write(&down, 0, &u32::MAX.to_le_bytes()).unwrap();
    let error = bus.poll(START).unwrap_err();
    assert!(matches!(error, ChannelError::Ring(RingError::Index { .. })));
    assert_eq!(events(&mut bus), [Event::Failed(Failure::Channel(error))]);
    bus.poll(START).unwrap();
}

#[test]
fn a_host_that_never_stops_talking_does_not_hold_the_guest() {
    let frames: Vec<_> = (0..17).map(Pfn).collect();
    let (up, down) = (SharedPages::from_heap(&frames), SharedPages::from_heap(&frames));
    let guest = Channel::from_parts(up.clone(), down.clone(), SignalFlag::new()).unwrap();
    let mut host = Channel::from_parts(down, up, SignalFlag::new()).unwrap();
    let mut bus = PciBus::new(guest, PciBusConfig::new(WINDOW), START);
    let mut sent = 0;
    while host.try_send(&Outgoing::Completion { transaction_id: 9, payload: &[] }).is_ok() {
        sent += 1;
    }
    assert!(sent > PACKETS_PER_POLL as u64);
    bus.poll(START).unwrap();
    assert_eq!(bus.stats().bad_packets, PACKETS_PER_POLL as u64);
    assert_eq!(bus.poll_deadline(), Some(START), "the rest is not forgotten");
    while bus.poll_deadline() == Some(START) {
        bus.poll(START).unwrap();
    }
    assert_eq!(bus.stats().bad_packets, sent);
}

proptest! {
    // Whatever the host lists, in whatever batches: afterwards the guest has exactly the newest list, and what it was
    // told on the way adds up to it.
    #[test]
    fn the_guest_ends_with_the_newest_snapshot(
        batches in proptest::collection::vec(
            proptest::collection::vec(
                proptest::collection::btree_map(0_u32..6, 0_u32..3, 0..5),
                1..4,
            ),
            1..8,
        ),
        ejects in proptest::collection::vec(0_u32..6, 0..8),
    ) {
        let (mut bus, mut host) = running(&[]);
        events(&mut bus);
        let mut told = std::collections::BTreeMap::new();
        let mut ejects = ejects.into_iter();
        for batch in &batches {
            let mut newest = Vec::new();
            for snapshot in batch {
                newest = snapshot.iter().map(|(&slot, &serial)| function(slot, serial)).collect();
                host.list(&newest);
            }
            if let Some(slot) = ejects.next() {
                host.say(MessageType::EJECT, &[slot]);
                // The host forgets the function with that, so that its lists never bring it back.
                newest.retain(|function| function.slot.to_wire() != slot);
                host.list(&newest);
            }
            // Functions asked back before they arrived are answered at once.
            loop {
                bus.poll(START).unwrap();
                let Some(got) = host.receive() else { break };
                if got.completion {
                    host.complete(got.id, &[0; 7]);
                } else {
                    prop_assert_eq!(got.kind, MessageType::EJECT_COMPLETE);
                }
            }
            for (sign, slot, serial) in moves(&mut bus) {
                match sign {
                    '+' => prop_assert_eq!(told.insert(slot, serial), None),
                    _ => prop_assert_eq!(told.remove(&slot), Some(serial)),
                }
            }
            let newest: Vec<_> = newest.iter().map(|f| (f.slot.to_wire(), f.serial.0)).collect();
            let there: Vec<_> =
                bus.functions().map(|f| (f.slot().to_wire(), f.serial().0)).collect();
            prop_assert_eq!(&there, &newest);
            prop_assert_eq!(told.iter().map(|(a, b)| (*a, *b)).collect::<Vec<_>>(), newest);
            prop_assert!(bus.pending.is_empty());
        }
    }

    #[test]
    fn no_bytes_from_the_host_make_the_guest_panic(
        packets in proptest::collection::vec(
            (any::<bool>(), 0_u64..8, 0_u32..0x20, proptest::collection::vec(any::<u8>(), 0..64)),
            0..40,
        ),
    ) {
        let (mut bus, mut host) = running(&[function(0, 1)]);
        for (completion, id, kind, rest) in packets {
            let mut payload = (0x4249_0000 + kind).to_le_bytes().to_vec();
            payload.extend(rest);
            let packet = match completion {
                true => Outgoing::Completion { transaction_id: id, payload: &payload },
                false => Outgoing::InBand { transaction_id: id, completion: true, payload: &payload },
            };
            host.channel.try_send(&packet).unwrap();
            bus.poll(START).unwrap();
        }
    }
}

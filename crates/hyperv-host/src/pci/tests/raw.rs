//! Packets that the real guest never sends.

use super::*;

/// A guest that sends what a test tells it to.
struct Raw {
    channel: Channel,
    host: PciService,
}

impl Raw {
    fn new() -> Self {
        let ram = GuestRam::new(2, 64);
        let (channel, host_channel) = connect(&ram, &SignalFlag::new(), &SignalFlag::new());
        let mut host = PciService::new(PciPolicy::default());
        host.open(host_channel);
        Self { channel, host }
    }

    fn connected() -> Self {
        let mut raw = Self::new();
        assert_eq!(raw.ask(&version(Version::V1_4))[..4], [0; 4]);
        raw.events();
        raw
    }

    fn send(&mut self, completion: bool, payload: &[u8]) {
        self.channel
            .try_send(&Outgoing::InBand { transaction_id: 77, completion, payload })
            .unwrap();
        self.host.poll(Instant::ZERO);
    }

    /// Sends a request and gives what the completion holds.
    fn ask(&mut self, payload: &[u8]) -> Vec<u8> {
        self.send(true, payload);
        let mut buffer = vec![0; 1024];
        let packet = self.channel.receive(&mut buffer).unwrap().expect("an answer");
        assert!(matches!(packet.kind, vmbus::packet::PacketKind::Completion));
        assert_eq!(packet.transaction_id, 77);
        packet.payload.to_vec()
    }

    fn status(&mut self, kind: MessageType, words: &[u32]) -> Status {
        let words = core::iter::once(&kind.0).chain(words);
        let message: Vec<u8> = words.flat_map(|word| word.to_le_bytes()).collect();
        Status(u32::from_le_bytes(*self.ask(&message).first_chunk().unwrap()))
    }

    fn events(&mut self) -> Vec<PciEvent> {
        core::iter::from_fn(|| self.host.poll_event()).collect()
    }
}

fn version(version: Version) -> Vec<u8> {
    let kind = MessageType::QUERY_PROTOCOL_VERSION.0.into();
    QueryVersion { kind, version: version.0.into() }.as_bytes().to_vec()
}

#[test]
fn anything_but_a_version_query_first_ends_the_channel() {
    let kind = MessageType::QUERY_BUS_RELATIONS;
    let mut raw = Raw::new();
    raw.send(false, &kind.0.to_le_bytes());
    assert_eq!(raw.events(), [PciEvent::Failed(PciError::FirstPacket(kind))]);
    assert!(!raw.host.is_open());

    let mut raw = Raw::new();
    raw.send(true, &[1, 2]);
    let error = MessageError::UnknownType(MessageType(0x0201));
    assert_eq!(raw.events(), [PciEvent::Failed(PciError::FirstUnusable(error.into()))]);

    let mut raw = Raw::new();
    raw.channel.try_send(&Outgoing::Completion { transaction_id: 1, payload: &[] }).unwrap();
    raw.host.poll(Instant::ZERO);
    let error = BadPacket::NotInBand;
    assert_eq!(raw.events(), [PciEvent::Failed(PciError::FirstUnusable(error))]);

    let mut raw = Raw::new();
    raw.send(false, &version(Version::V1_4));
    let error = BadPacket::NoCompletion(MessageType::QUERY_PROTOCOL_VERSION);
    assert_eq!(raw.events(), [PciEvent::Failed(PciError::FirstUnusable(error))]);

    // Between a refused and an accepted version nothing else may come either.
    let mut raw = Raw::new();
    assert_eq!(raw.ask(&version(Version::V1_6))[..4], Status::REVISION_MISMATCH.0.to_le_bytes());
    raw.send(false, &kind.0.to_le_bytes());
    assert_eq!(raw.events(), [PciEvent::Failed(PciError::FirstPacket(kind))]);
}

#[test]
fn a_second_version_query_ends_the_channel() {
    let mut raw = Raw::connected();
    raw.send(true, &version(Version::V1_4));
    let error = PciError::SecondVersionQuery(Version::V1_4);
    assert_eq!(raw.events(), [PciEvent::Failed(error)]);
}

#[test]
fn malformed_packets_later_are_answered_and_the_channel_lives() {
    let mut raw = Raw::connected();
    for (kind, words) in [
        (MessageType(1), &[][..]),
        (MessageType::EJECT, &[0]),
        (MessageType::FDO_D0_ENTRY, &[0]),
        (MessageType::RELEASE_RESOURCES, &[0x100]),
    ] {
        assert_eq!(raw.status(kind, words), Status::BAD_DATA);
    }
    assert_eq!(raw.host.stats().bad_packets, 4);
    raw.channel.try_send(&Outgoing::Completion { transaction_id: 1, payload: &[] }).unwrap();
    raw.host.poll(Instant::ZERO);
    assert_eq!(raw.host.stats().last_bad_packet, Some(BadPacket::NotInBand));
    assert!(raw.host.is_open());
    assert_eq!(raw.status(MessageType::FDO_D0_EXIT, &[]), Status::SUCCESS);
}

#[test]
fn requests_out_of_order_or_for_empty_slots_are_refused() {
    let mut raw = Raw::connected();
    raw.host.add_function(function(0, 1), BAR, Instant::ZERO).unwrap();
    let assign = [0; 50];
    assert_eq!(raw.status(MessageType::ASSIGNED_RESOURCES2, &assign), Status::BAD_DATA);
    assert_eq!(raw.host.stats().order_errors, 1);
    raw.host.policy_mut().relations_at_d0 = false;
    let entry = D0Entry {
        kind: MessageType::FDO_D0_ENTRY.0.into(),
        reserved: 0.into(),
        window: WINDOW.into(),
    };
    assert_eq!(raw.ask(entry.as_bytes())[..4], [0; 4]);
    assert_eq!(raw.ask(entry.as_bytes())[..4], Status::BAD_DATA.0.to_le_bytes());
    assert_eq!(raw.host.stats().order_errors, 2);
    assert_eq!(raw.status(MessageType::ASSIGNED_RESOURCES2, &assign), Status::SUCCESS);
    for kind in [
        MessageType::QUERY_RESOURCE_REQUIREMENTS,
        MessageType::GET_RESOURCES,
        MessageType::RELEASE_RESOURCES,
        MessageType::ASSIGNED_RESOURCES,
        MessageType::DEVICE_POWER_STATE_CHANGE,
        MessageType::CREATE_INTERRUPT,
    ] {
        let mut words = [0; 50];
        words[0] = 9;
        assert_eq!(raw.status(kind, &words), Status::BAD_DATA, "{kind}");
    }
    assert_eq!(raw.host.stats().unknown_slots, 6);
    for kind in [MessageType::READ_BLOCK, MessageType::TDISP] {
        assert_eq!(raw.status(kind, &[0, 0, 0]), Status::NOT_SUPPORTED);
    }
    assert_eq!(raw.status(MessageType::RESET_DEVICE, &[0]), Status::BAD_DATA, "1.5 has it");
}

#[test]
fn both_lengths_of_eject_complete_are_taken_and_unasked_ones_are_told() {
    for length in [8, 12] {
        let mut raw = Raw::connected();
        raw.host.add_function(function(3, 1), BAR, Instant::ZERO).unwrap();
        raw.send(false, &MessageType::QUERY_BUS_RELATIONS.0.to_le_bytes());
        let complete = EjectComplete {
            kind: MessageType::EJECT_COMPLETE.0.into(),
            slot: 3.into(),
            status: 0.into(),
        };
        let complete = &complete.as_bytes()[..length];
        raw.send(false, complete);
        assert_eq!(raw.events(), [PciEvent::UnexpectedEjectComplete { slot: slot(3) }]);
        raw.host.eject(slot(3), Instant::ZERO);
        raw.send(false, complete);
        assert_eq!(raw.events(), [PciEvent::EjectCompleted { slot: slot(3) }]);
    }
}

// An answer may be on its way while the host takes the function all the same. It is not the next function's answer, and
// no sign of a guest that has lost count.
#[test]
fn an_answer_that_crosses_a_removal_is_for_the_function_that_was_removed() {
    for patience_ends in [false, true] {
        let mut raw = Raw::connected();
        raw.send(false, &MessageType::QUERY_BUS_RELATIONS.0.to_le_bytes());
        raw.host.add_function(function(3, 1), BAR, Instant::ZERO).unwrap();
        raw.host.eject(slot(3), Instant::ZERO);
        let mut now = Instant::ZERO;
        if patience_ends {
            now = now + Duration::from_secs(60);
            raw.host.poll(now);
            assert_eq!(raw.events(), [PciEvent::EjectOverdue { slot: slot(3) }]);
        } else {
            raw.host.remove(slot(3), now);
        }
        raw.host.add_function(function(3, 2), BAR, now).unwrap();
        raw.host.eject(slot(3), now);
        let complete = [MessageType::EJECT_COMPLETE.0.to_le_bytes(), 3_u32.to_le_bytes()].concat();
        raw.send(false, &complete);
        assert_eq!(raw.events(), [], "the new function is still waited for");
        let counts = |raw: &Raw| {
            let stats = raw.host.stats();
            (stats.crossed_eject_completes, stats.unexpected_eject_completes)
        };
        assert_eq!(counts(&raw), (1, 0));
        raw.send(false, &complete);
        assert_eq!(raw.events(), [PciEvent::EjectCompleted { slot: slot(3) }]);
        raw.send(false, &complete);
        assert_eq!(counts(&raw), (1, 1));
    }
}

#[test]
fn a_guest_that_asks_for_a_new_function_has_no_answer_left_for_the_old_one() {
    let mut raw = Raw::connected();
    raw.send(false, &MessageType::QUERY_BUS_RELATIONS.0.to_le_bytes());
    raw.host.add_function(function(3, 1), BAR, Instant::ZERO).unwrap();
    raw.host.eject(slot(3), Instant::ZERO);
    raw.host.remove(slot(3), Instant::ZERO);
    raw.host.add_function(function(3, 2), BAR, Instant::ZERO).unwrap();
    let query = [MessageType::QUERY_RESOURCE_REQUIREMENTS.0.to_le_bytes(), 3_u32.to_le_bytes()];
    raw.send(false, &query.concat());
    raw.host.eject(slot(3), Instant::ZERO);
    let complete = [MessageType::EJECT_COMPLETE.0.to_le_bytes(), 3_u32.to_le_bytes()];
    raw.send(false, &complete.concat());
    assert_eq!(raw.events(), [PciEvent::EjectCompleted { slot: slot(3) }]);
}

#[test]
fn interrupts_are_made_in_every_form_and_deleted() {
    let mut raw = Raw::connected();
    raw.host.add_function(function(0, 1), BAR, Instant::ZERO).unwrap();
    let mut ask = |kind: MessageType, descriptor: &[u8]| {
        let mut message = kind.0.to_le_bytes().to_vec();
        message.extend([0; 4]);
        message.extend(descriptor);
        raw.ask(&message)
    };
    let one =
        Msi1 { vector: 0x30, mode: 0, count: 2.into(), reserved: 0.into(), processors: 1.into() };
    let first = ask(MessageType::CREATE_INTERRUPT, one.as_bytes());
    assert_eq!(first[..4], [0; 4]);
    assert_eq!(first[10..12], [2, 0], "two vectors");
    let mut three = [0; MSI3_SHORT];
    three[6] = 1;
    let second = ask(MessageType::CREATE_INTERRUPT3, &three);
    assert_ne!(first[12..16], second[12..16], "each writes its own data");
    three[6] = 33;
    assert_eq!(ask(MessageType::CREATE_INTERRUPT3, &three)[..4], Status::BAD_DATA.0.to_le_bytes());
    assert_eq!(size_of::<Msi3>(), MSI3_SHORT + 2);

    let made = &first[8..8 + size_of::<RemappedMsi>()];
    assert_eq!(ask(MessageType::DELETE_INTERRUPT, made)[..4], [0; 4]);
    assert_eq!(ask(MessageType::DELETE_INTERRUPT, made)[..4], Status::BAD_DATA.0.to_le_bytes());
    assert_eq!(raw.host.interrupts(), 1);
}

#[test]
fn a_guest_that_never_reads_its_answers_cannot_fill_the_hosts_memory() {
    let mut raw = Raw::connected();
    let message = MessageType::FDO_D0_EXIT.0.to_le_bytes();
    let packet = Outgoing::InBand { transaction_id: 1, completion: true, payload: &message };
    let mut sent = 0;
    for _ in 0..20_000 {
        match raw.channel.try_send(&packet) {
            Ok(()) => sent += 1,
            Err(_) => raw.host.poll(Instant::ZERO),
        }
    }
    assert!(raw.host.outgoing.len() <= MOST_WAITING);
    assert!(sent < 2_000, "{sent}");
    // Once it reads, everything comes: by doorbell or deadline at every step.
    let mut buffer = vec![0; 64];
    let mut answers = 0;
    for _ in 0..20_000 {
        if raw.channel.receive(&mut buffer).unwrap().is_some() {
            answers += 1;
            raw.channel.commit_read().unwrap();
        } else {
            raw.host.poll(Instant::ZERO);
        }
    }
    assert_eq!(answers, sent);
}

// HISTORY section 6, 8: interrupts refused.
#[test]
fn a_refused_interrupt_is_not_made() {
    let kind = MessageType::CREATE_INTERRUPT2;
    let mut raw = Raw::connected();
    raw.host.add_function(function(0, 1), BAR, Instant::ZERO).unwrap();
    raw.host.policy_mut().refused.push((kind, Status::NOT_SUPPORTED));
    assert_eq!(raw.status(kind, &[0; 20]), Status::NOT_SUPPORTED);
    assert_eq!(raw.host.interrupts(), 0);
}

proptest::proptest! {
    #[test]
    fn no_bytes_from_the_guest_make_the_host_panic(
        packets in proptest::collection::vec(
            (
                proptest::bool::ANY,
                0_u32..0x20,
                proptest::collection::vec(proptest::num::u8::ANY, 0..200),
            ),
            0..30,
        ),
    ) {
        let mut raw = Raw::connected();
        raw.host.add_function(function(0, 1), BAR, Instant::ZERO).unwrap();
        let mut buffer = vec![0; 1024];
        for (completion, kind, rest) in packets {
            let mut payload = (0x4249_0000 + kind).to_le_bytes().to_vec();
            payload.extend(rest);
            raw.send(completion, &payload);
            while raw.channel.receive(&mut buffer).unwrap().is_some() {}
            raw.channel.commit_read().unwrap();
        }
    }
}

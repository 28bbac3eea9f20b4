extern crate std;

use std::vec;
use std::vec::Vec;

use proptest::prelude::*;
use vmbus::memory::SharedPages;
use vmbus::packet::Outgoing;
use vmbus::{Channel, Pfn, Serial, SignalFlag};
use zerocopy::IntoBytes;

use super::*;
use crate::slot::{BadSlot, Slot};

/// A message of `kind` with `words` behind its type.
fn message(kind: MessageType, words: &[u32]) -> Vec<u8> {
    core::iter::once(&kind.0).chain(words).flat_map(|word| word.to_le_bytes()).collect()
}

fn slot(number: u32) -> Slot {
    Slot::from_wire(number).unwrap()
}

#[test]
fn the_table_has_every_message_in_the_place_of_its_number() {
    for (number, line) in (0..).zip(&MESSAGES) {
        assert_eq!(line.kind.0, 0x4249_0000 + number);
        assert_eq!(info(line.kind), Some(line));
        assert!(line.kind.name().is_some(), "{:?}", line.kind);
    }
    assert_eq!(MESSAGES[0x19].kind, MessageType::BUS_RELATIONS2);
    assert_eq!(MESSAGES[0x1d].kind, MessageType::TDISP);
    for number in [0, 0x4248_ffff, 0x4249_001e, u32::MAX] {
        assert_eq!(info(MessageType(number)), None);
    }
}

// PROTOCOL Appendix D: FDO_D0_ENTRY with the window at 0xfe0000000, id 3, first packet of its ring.
#[test]
fn d0_entry_has_the_documented_bytes() {
    let entry = D0Entry {
        kind: MessageType::FDO_D0_ENTRY.0.into(),
        reserved: 0.into(),
        window: 0xf_e000_0000.into(),
    };
    let tx = SharedPages::from_heap(&[Pfn(0), Pfn(1)]);
    let rx = SharedPages::from_heap(&[Pfn(2), Pfn(3)]);
    let mut channel = Channel::from_parts(tx.clone(), rx, SignalFlag::new()).unwrap();
    channel
        .try_send(&Outgoing::InBand {
            transaction_id: 3,
            completion: true,
            payload: entry.as_bytes(),
        })
        .unwrap();
    let mut bytes = [0; 40];
    vmbus::memory::SharedMemory::read(&tx, 4096, &mut bytes).unwrap();
    #[rustfmt::skip]
    assert_eq!(bytes, [
        0x06, 0x00, 0x02, 0x00, 0x04, 0x00, 0x01, 0x00, 0x03, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00,
        0x07, 0x00, 0x49, 0x42, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0xe0, 0x0f, 0x00, 0x00, 0x00,
        0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00,
    ]);
}

#[rustfmt::skip]
const FORM2: [u8; 36] = [
    0x19, 0x00, 0x49, 0x42, 0x01, 0x00, 0x00, 0x00,
    0xb3, 0x15, 0x18, 0x10, 0x80, 0x01, 0x00, 0x02, // 15b3:1018, revision 0x80, prog-if 1, class 0x0200
    0x34, 0x12, 0x76, 0x98, 0xa2, 0x00, 0x00, 0x00, // subsystem 1234:9876, device 2 function 5
    0x07, 0x00, 0x00, 0x00, 0x01, 0x00, 0x00, 0x00, // serial 7, NUMA node valid
    0x03, 0x00, 0x00, 0x00,
];

fn described() -> Description {
    Description {
        slot: Slot::new(2, 5).unwrap(),
        vendor: 0x15b3,
        device: 0x1018,
        revision: 0x80,
        class: 2,
        subclass: 0,
        prog_if: 1,
        subsystem_vendor: 0x1234,
        subsystem: 0x9876,
        serial: Serial(7),
        numa_node: Some(3),
    }
}

#[test]
fn relations_of_both_forms_are_read_and_written_byte_by_byte() {
    let read = |bytes: &[u8]| match HostMessage::parse(bytes).unwrap() {
        HostMessage::Relations(list) => list.iter().collect::<Vec<_>>(),
        other => panic!("{other:?}"),
    };
    assert_eq!(read(&FORM2), [described()]);
    assert_eq!(encode_relations(Version::V1_3, &[described()]), FORM2);

    let mut form1 = FORM2[..28].to_vec();
    form1[0] = 0;
    assert_eq!(read(&form1), [Description { numa_node: None, ..described() }]);
    assert_eq!(encode_relations(Version::V1_2, &[described()]), form1);

    let mut unknown_node = FORM2;
    unknown_node[28] = 0;
    assert_eq!(read(&unknown_node)[0].numa_node, None, "the node counts only with its flag");
}

#[test]
fn an_empty_snapshot_says_that_all_are_gone() {
    let bytes = message(MessageType::BUS_RELATIONS, &[0]);
    let HostMessage::Relations(list) = HostMessage::parse(&bytes).unwrap() else { panic!() };
    assert!(list.is_empty());
}

#[test]
fn a_snapshot_shorter_than_its_count_is_refused() {
    for len in 8..36 {
        let kind = MessageType::BUS_RELATIONS2;
        assert_eq!(
            HostMessage::parse(&FORM2[..len]).unwrap_err(),
            MessageError::TooShort { kind, len, expected: 36 }
        );
    }
    let kind = MessageType::BUS_RELATIONS;
    for count in [257, u32::MAX] {
        assert_eq!(
            HostMessage::parse(&message(kind, &[count])).unwrap_err(),
            MessageError::TooManyFunctions { kind, count }
        );
    }
}

#[test]
fn a_snapshot_with_an_impossible_slot_or_one_slot_twice_is_refused() {
    let kind = MessageType::BUS_RELATIONS2;
    let mut bytes = FORM2;
    bytes[21] = 1;
    assert_eq!(
        HostMessage::parse(&bytes).unwrap_err(),
        MessageError::Slot { kind, error: BadSlot(0x1a2) }
    );
    let twice = encode_relations(Version::V1_4, &[described(), described()]);
    assert_eq!(
        HostMessage::parse(&twice).unwrap_err(),
        MessageError::SlotTwice { kind, slot: described().slot }
    );
}

#[test]
fn messages_without_a_known_type_or_from_the_wrong_side_are_refused() {
    assert_eq!(HostMessage::parse(&[1, 2, 3]).unwrap_err(), MessageError::NoType(3));
    let unknown = MessageType(0x4249_001e);
    assert_eq!(
        HostMessage::parse(&message(unknown, &[0])).unwrap_err(),
        MessageError::UnknownType(unknown)
    );
    assert_eq!(
        HostMessage::parse(&message(MessageType::FDO_D0_EXIT, &[])).unwrap_err(),
        MessageError::WrongSide(MessageType::FDO_D0_EXIT)
    );
    assert_eq!(
        GuestMessage::parse(&message(MessageType::EJECT, &[0])).unwrap_err(),
        MessageError::WrongSide(MessageType::EJECT)
    );
}

#[test]
fn every_message_is_refused_one_byte_short_and_taken_when_padded() {
    for line in &MESSAGES {
        let mut bytes = message(line.kind, &[0; 40]);
        let parse = |bytes: &[u8]| match line.sender {
            Sender::Host => HostMessage::parse(bytes).map(|_| ()),
            Sender::Guest => GuestMessage::parse(bytes).map(|_| ()),
        };
        assert_eq!(parse(&bytes), Ok(()), "{:?}", line.kind);
        bytes.truncate(line.min_len);
        assert_eq!(parse(&bytes), Ok(()), "{:?}", line.kind);
        bytes.pop();
        let short = parse(&bytes).unwrap_err();
        if line.min_len == 4 {
            assert_eq!(short, MessageError::NoType(3));
        } else {
            let (kind, expected) = (line.kind, line.min_len);
            assert_eq!(short, MessageError::TooShort { kind, len: expected - 1, expected });
        }
    }
}

#[test]
fn guest_messages_are_read_field_by_field() {
    let parse = |kind, words: &[u32]| {
        std::format!("{:?}", GuestMessage::parse(&message(kind, words)).unwrap())
    };
    use MessageType as T;
    assert_eq!(parse(T::QUERY_PROTOCOL_VERSION, &[0x1_0004]), "QueryVersion(V1_4)");
    assert_eq!(parse(T::FDO_D0_ENTRY, &[9, 0xe000_0000, 0xf]), "D0Entry { window: 68182605824 }");
    assert_eq!(parse(T::EJECT_COMPLETE, &[0xa2]), "EjectComplete(Slot(02.5))");
    assert_eq!(
        parse(T::DEVICE_POWER_STATE_CHANGE, &[1, 4, 0]),
        "PowerStateChange { slot: Slot(01.0), state: 4 }"
    );
    assert_eq!(
        parse(T::READ_BLOCK, &[5, 1, 128]),
        "ReadBlock { slot: Slot(01.0), block: 5, bytes: 128 }"
    );
    assert_eq!(
        parse(T::WRITE_BLOCK, &[5, 1, 3, 0x0403_0201]),
        "WriteBlock { slot: Slot(01.0), block: 5, data: [1, 2, 3] }"
    );
}

#[test]
fn blocks_longer_than_the_limit_or_the_message_are_refused() {
    let kind = MessageType::WRITE_BLOCK;
    assert_eq!(
        GuestMessage::parse(&message(kind, &[0, 0, 129])).unwrap_err(),
        MessageError::BlockTooLong { kind, bytes: 129 }
    );
    assert_eq!(
        GuestMessage::parse(&message(kind, &[0, 0, 5, 0])).unwrap_err(),
        MessageError::TooShort { kind, len: 20, expected: 21 }
    );
}

#[test]
fn slots_beyond_a_byte_are_refused_wherever_they_stand() {
    for kind in [MessageType::EJECT, MessageType::INVALIDATE_DEVICE, MessageType::QUERY_STOP] {
        assert_eq!(
            HostMessage::parse(&message(kind, &[0x100])).unwrap_err(),
            MessageError::Slot { kind, error: BadSlot(0x100) }
        );
    }
    let kind = MessageType::INVALIDATE_BLOCK;
    assert!(matches!(
        HostMessage::parse(&message(kind, &[0x100, 1, 2])).unwrap_err(),
        MessageError::Slot { .. }
    ));
    assert!(matches!(
        HostMessage::parse(&message(kind, &[3, 1, 2])).unwrap(),
        HostMessage::InvalidateBlock { slot: there, mask: 0x2_0000_0001 } if there == slot(3)
    ));
}

#[test]
fn replies_shorter_than_their_content_are_refused() {
    let request = MessageType::QUERY_RESOURCE_REQUIREMENTS;
    assert_eq!(
        status_of(request, &[0, 0, 0]).unwrap_err(),
        MessageError::ReplyTooShort { request, len: 3, expected: 4 }
    );
    assert_eq!(
        requirements_of(&[0; 27]).unwrap_err(),
        MessageError::ReplyTooShort { request, len: 27, expected: 28 }
    );
    let refused = Status::NOT_SUPPORTED.0.to_le_bytes();
    assert_eq!(
        requirements_of(&refused),
        Ok(Err(Status::NOT_SUPPORTED)),
        "a refusal needs no masks"
    );
    let mut masks = vec![0; 28];
    masks[4..8].copy_from_slice(&0xffff_000c_u32.to_le_bytes());
    assert_eq!(requirements_of(&masks), Ok(Ok([0xffff_000c, 0, 0, 0, 0, 0])));
}

#[test]
fn a_status_fails_when_it_is_negative() {
    assert!(!Status::SUCCESS.is_failure() && !Status(0x103).is_failure());
    assert!(Status::REVISION_MISMATCH.is_failure() && Status(u32::MAX).is_failure());
}

fn descriptions() -> impl Strategy<Value = Vec<Description>> {
    let one = (any::<[u16; 4]>(), any::<[u8; 4]>(), any::<u32>(), any::<Option<u16>>());
    proptest::collection::btree_map(0_u32..256, one, 0..256).prop_map(|map| {
        map.into_iter()
            .map(
                |(
                    at,
                    ([vendor, device, subsystem_vendor, subsystem], bytes, serial, numa_node),
                )| {
                    let [revision, class, subclass, prog_if] = bytes;
                    Description {
                        slot: slot(at),
                        vendor,
                        device,
                        revision,
                        class,
                        subclass,
                        prog_if,
                        subsystem_vendor,
                        subsystem,
                        serial: Serial(serial),
                        numa_node,
                    }
                },
            )
            .collect()
    })
}

proptest! {
    #[test]
    fn snapshots_come_back_as_they_were_written(list in descriptions(), padding in 0_usize..8) {
        for version in [Version::V1_1, Version::V1_4] {
            let mut bytes = encode_relations(version, &list);
            bytes.resize(bytes.len() + padding, 0);
            let HostMessage::Relations(back) = HostMessage::parse(&bytes).unwrap() else { panic!() };
            let expected: Vec<_> = list
                .iter()
                .map(|one| match version {
                    Version::V1_1 => Description { numa_node: None, ..*one },
                    _ => *one,
                })
                .collect();
            prop_assert_eq!(back.len(), list.len());
            prop_assert_eq!(back.iter().collect::<Vec<_>>(), expected);
        }
    }

    #[test]
    fn no_bytes_make_the_decoders_panic(
        kind in 0_u32..0x20,
        rest in proptest::collection::vec(any::<u8>(), 0..300),
        raw in any::<bool>(),
    ) {
        let mut bytes = if raw { Vec::new() } else { (0x4249_0000 + kind).to_le_bytes().to_vec() };
        bytes.extend(rest);
        if let Ok(HostMessage::Relations(list)) = HostMessage::parse(&bytes) {
            prop_assert_eq!(list.iter().count(), list.len());
        }
        let _ = GuestMessage::parse(&bytes);
        let _ = requirements_of(&bytes);
    }
}

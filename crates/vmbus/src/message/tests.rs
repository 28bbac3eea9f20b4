extern crate std;
use std::vec;
use std::vec::Vec;

use proptest::prelude::*;
use zerocopy::little_endian::{U16, U32, U64};

use super::*;

fn smallest(spec: &Spec) -> Vec<u8> {
    let mut bytes = vec![0; spec.size];
    bytes[..4].copy_from_slice(&spec.kind.0.to_le_bytes());
    bytes
}

#[test]
fn the_table_is_complete_and_in_order() {
    assert_eq!(TABLE.len(), 29);
    for (at, spec) in TABLE.iter().enumerate() {
        assert_eq!(spec.kind.0 as usize, at + 1);
        assert_eq!(spec.kind.spec(), Some(spec));
        assert!(spec.kind.name().is_some() && spec.size <= MAX_MESSAGE);
    }
    assert_eq!(MessageType(0).spec(), None);
    assert_eq!(MessageType(30).spec(), None);
}

#[test]
fn every_message_is_taken_at_its_size_and_longer_but_not_shorter() {
    for spec in TABLE {
        let bytes = smallest(spec);
        let (message, rest) = Message::parse(&bytes, spec.sender, Version::V6_0).unwrap();
        assert_eq!((message.kind(), rest), (spec.kind, &[][..]));
        let mut longer = bytes.clone();
        longer.extend([1, 2]);
        let (message, rest) = Message::parse(&longer, spec.sender, Version::V6_0).unwrap();
        assert_eq!((message.kind(), rest), (spec.kind, &[1, 2][..]));
        let short = &bytes[..spec.size - 1];
        let expected = if spec.size == HEADER_SIZE {
            MessageError::NoHeader { len: 7 }
        } else {
            MessageError::TooShort { kind: spec.kind, len: short.len(), need: spec.size }
        };
        assert_eq!(Message::parse(short, spec.sender, Version::V6_0), Err(expected));
    }
}

#[test]
fn a_payload_has_the_fields_of_its_own_message_and_of_no_other() {
    let modify = ModifyChannel { channel: U32::new(3), target_vp: U32::new(5) };
    let payload = Payload::new(&modify);
    assert_eq!(payload.body(), Some(&modify));
    assert_eq!(payload.with(&[1, 2]).body(), Some(&modify));
    // Its first field would be the same.
    assert_eq!(payload.body::<CloseChannel>(), None);
    for short in 0..payload.len() {
        assert_eq!(Payload::from_bytes(&payload[..short]).body::<ModifyChannel>(), None);
    }
}

#[test]
fn messages_of_a_newer_version_are_refused() {
    for spec in TABLE.iter().filter(|spec| spec.since > Version::ANY) {
        let bytes = smallest(spec);
        let version = Version(spec.since.0 - 1);
        assert_eq!(
            Message::parse(&bytes, spec.sender, version),
            Err(MessageError::TooNew { kind: spec.kind, since: spec.since, version })
        );
        assert!(Message::parse(&bytes, spec.sender, spec.since).is_ok());
    }
}

#[test]
fn messages_from_the_wrong_side_are_refused() {
    for spec in TABLE {
        let sender = if spec.sender == Side::Guest { Side::Host } else { Side::Guest };
        assert_eq!(
            Message::parse(&smallest(spec), sender, Version::V6_0),
            Err(MessageError::WrongSender { kind: spec.kind, sender })
        );
    }
}

#[test]
fn bytes_that_are_no_message_are_refused() {
    let parse = |bytes: &[u8]| Message::parse(bytes, Side::Host, Version::V6_0).unwrap_err();
    assert_eq!(parse(&[0; 241]), MessageError::TooLong { len: 241 });
    assert_eq!(parse(&[1, 0, 0]), MessageError::NoHeader { len: 3 });
    assert_eq!(parse(&[0; 8]), MessageError::Unknown { kind: MessageType(0) });
    assert_eq!(parse(&[0xff; 8]), MessageError::Unknown { kind: MessageType(u32::MAX) });
}

#[test]
fn offer_lies_where_the_protocol_says() {
    let offer = OfferChannel {
        class: NIC_CLASS.into(),
        instance: VPCI_CLASS.into(),
        reserved: [0; 16],
        flags: U16::new(0x201),
        mmio_megabytes: U16::new(8),
        user_defined: [0; 120],
        sub_channel: U16::new(3),
        mmio_megabytes_optional: U16::new(0),
        channel: U32::new(5),
        monitor: 7,
        monitor_allocated: 1,
        dedicated_interrupt: U16::new(1),
        connection: U32::new(0x2005),
    };
    let payload = Payload::new(&offer);
    assert_eq!(payload.len(), 196);
    let class = [
        0x63, 0x51, 0x61, 0xf8, 0x3e, 0xdf, 0xc5, 0x46, 0x91, 0x3f, 0xf2, 0xd2, 0xf9, 0x65, 0xed,
        0x0e,
    ];
    assert_eq!(payload[..8], [1, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(payload[8..24], class);
    assert_eq!(payload[56..60], [1, 2, 8, 0]);
    assert_eq!(payload[180..182], [3, 0]);
    assert_eq!(payload[184..196], [5, 0, 0, 0, 7, 1, 1, 0, 5, 0x20, 0, 0]);
    let (message, _) = Message::parse(&payload, Side::Host, Version::V2_4).unwrap();
    assert_eq!(message, Message::OfferChannel(&offer));
    assert_eq!(Guid::from(offer.class), NIC_CLASS);
}

#[test]
fn contact_and_open_lie_where_the_protocol_says() {
    let contact = Payload::new(&InitiateContact {
        version: U32::new(Version::V5_3.0),
        target_vp: U32::new(1),
        target: U64::new(u64::from(VMBUS_SINT)),
        monitor_to_guest: U64::new(0x1000),
        monitor_to_host: U64::new(0x2000),
    });
    assert_eq!(contact[..16], [14, 0, 0, 0, 0, 0, 0, 0, 3, 0, 5, 0, 1, 0, 0, 0]);
    assert_eq!(contact[16..24], [2, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!((contact[25], contact[33], contact.len()), (0x10, 0x20, 40));
    let open = Payload::new(&OpenChannel {
        channel: U32::new(5),
        open_id: U32::new(6),
        ring_gpadl: U32::new(7),
        target_vp: U32::new(8),
        downstream_page: U32::new(9),
        user_data: [0; 120],
    });
    assert_eq!(open[8..28], [5, 0, 0, 0, 6, 0, 0, 0, 7, 0, 0, 0, 8, 0, 0, 0, 9, 0, 0, 0]);
    assert_eq!(open.len(), 148);
}

#[test]
fn versions_print_as_people_write_them() {
    assert_eq!(std::format!("{} {:?}", Version::V5_3, Version::V2_4), "5.3 Version(2.4)");
    assert!(Version::RECOMMENDED.windows(2).all(|pair| pair[0] > pair[1]));
}

#[test]
fn data_behind_the_fields_ends_at_the_largest_message() {
    let payload = Payload::new(&GpadlBody { number: U32::new(0), gpadl: U32::new(1) });
    assert_eq!(payload.room(), 224);
    let full = payload.with(&[0xaa; 300]);
    assert_eq!((full.len(), full.room(), full[239]), (240, 0, 0xaa));
}

proptest! {
    #[test]
    fn no_bytes_make_the_parser_fall(bytes in proptest::collection::vec(any::<u8>(), 0..260), kind in 0u32..40) {
        let mut bytes = bytes;
        if let Some(start) = bytes.get_mut(..4) {
            start.copy_from_slice(&kind.to_le_bytes());
        }
        for sender in [Side::Guest, Side::Host] {
            if let Ok((message, rest)) = Message::parse(&bytes, sender, Version::V6_0) {
                let spec = message.kind().spec().unwrap();
                prop_assert_eq!(spec.size + rest.len(), bytes.len());
            }
        }
    }
}

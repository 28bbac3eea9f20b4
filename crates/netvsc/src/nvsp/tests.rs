extern crate std;
use super::*;
use proptest::prelude::*;
use std::vec::Vec;
use std::{format, vec};

fn hex(text: &str) -> Vec<u8> {
    text.split_whitespace().map(|byte| u8::from_str_radix(byte, 16).unwrap()).collect()
}

#[test]
fn init_for_the_newest_version_has_the_bytes_of_the_protocol() {
    let init = GuestMessage::Init { min: Version::V6_1, max: Version::V6_1 };
    let expected = hex("01 00 00 00 01 00 06 00 01 00 06 00 00 00 00 00
                        00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00
                        00 00 00 00 00 00 00 00");
    assert_eq!(&*init.encode(Version::V6_1), &expected[..]);
    assert_eq!(GuestMessage::decode(&expected), Ok(init));
    let old = GuestMessage::Init { min: Version::V5, max: Version::V5 };
    assert_eq!(old.encode(Version::V5).len(), 28);
}

#[test]
fn an_association_has_the_bytes_of_the_protocol() {
    let association = HostMessage::VfAssociation { allocated: true, serial: Serial(7) };
    let encoded = association.encode(Version::V6_1);
    assert_eq!(encoded.len(), 40);
    assert_eq!(&encoded[..12], &hex("80 00 00 00 01 00 00 00 07 00 00 00")[..]);
    assert_eq!(HostMessage::decode(&encoded, Version::V6_1), Ok(association));
}

#[test]
fn sizes_follow_the_version() {
    for version in [Version::V1, Version::V2, Version::V4, Version::V5, Version::V6] {
        assert_eq!(version.message_size(), 28, "{version}");
    }
    assert_eq!(Version::V6_1.message_size(), 40);
    assert_eq!((Version::V4.ndis(), Version::V5.ndis()), ((6, 1), (6, 30)));
}

#[test]
fn an_answer_to_transfer_pages_is_eight_bytes() {
    let done = GuestMessage::RndisPacketComplete { status: Status::SUCCESS };
    assert_eq!(&*done.encode(Version::V6_1), &rndis_complete(Status::SUCCESS)[..]);
    assert_eq!(rndis_complete(Status::FAILURE), [108, 0, 0, 0, 2, 0, 0, 0]);
}

#[test]
fn an_rndis_packet_names_its_section_or_none() {
    let section = Some(SectionUse { index: 5, bytes: 300 });
    let bytes = rndis_packet(ChannelType::DATA, section);
    assert_eq!(&bytes[..16], &hex("6b 00 00 00 00 00 00 00 05 00 00 00 2c 01 00 00")[..]);
    let none = rndis_packet(ChannelType::CONTROL, None);
    assert_eq!(&none[..16], &hex("6b 00 00 00 01 00 00 00 ff ff ff ff 00 00 00 00")[..]);
}

#[test]
fn short_messages_are_refused_and_long_ones_accepted() {
    assert_eq!(GuestMessage::decode(&[1, 0]), Err(DecodeError::NoType(2)));
    let init = GuestMessage::Init { min: Version::V5, max: Version::V5 }.encode(Version::V5);
    assert_eq!(
        GuestMessage::decode(&init[..11]),
        Err(DecodeError::TooShort { kind: MessageType::INIT, expected: 12, found: 11 })
    );
    assert!(GuestMessage::decode(&init[..12]).is_ok());
    let mut long = init.to_vec();
    long.resize(200, 0xff);
    assert!(GuestMessage::decode(&long).is_ok());
}

#[test]
fn messages_of_the_wrong_direction_or_of_no_meaning_are_refused() {
    let init = GuestMessage::Init { min: Version::V5, max: Version::V5 }.encode(Version::V5);
    assert_eq!(
        HostMessage::decode(&init, Version::V5),
        Err(DecodeError::Unexpected(MessageType::INIT))
    );
    let mut message = [0; 28];
    message[0] = 109;
    assert_eq!(
        GuestMessage::decode(&message),
        Err(DecodeError::Unexpected(MessageType(109))),
        "chimney"
    );
}

#[test]
fn an_association_that_is_neither_made_nor_withdrawn_is_refused() {
    let mut bytes = HostMessage::VfAssociation { allocated: true, serial: Serial(1) }
        .encode(Version::V5)
        .to_vec();
    bytes[4] = 2;
    assert_eq!(HostMessage::decode(&bytes, Version::V5), Err(DecodeError::Allocated(2)));
    assert!(matches!(
        HostMessage::decode(&bytes[..8], Version::V5),
        Err(DecodeError::TooShort { expected: 12, found: 8, .. })
    ));
}

#[test]
fn a_refused_receive_buffer_needs_no_sections() {
    let refused =
        HostMessage::ReceiveBufferComplete { status: Status::FAILURE, sections: 0, first: None };
    let bytes = refused.encode(Version::V5);
    assert_eq!(HostMessage::decode(&bytes[..12], Version::V5), Ok(refused));
    let mut accepted = bytes.to_vec();
    accepted[4] = 1;
    accepted[8] = 1;
    assert_eq!(
        HostMessage::decode(&accepted[..27], Version::V5),
        Err(DecodeError::TooShort {
            kind: MessageType::RECEIVE_BUFFER_COMPLETE,
            expected: 28,
            found: 27
        })
    );
}

fn table() -> [u32; TABLE_ENTRIES] {
    core::array::from_fn(|at| at as u32 % 3)
}

// HISTORY 32: the offset names 12, the table stands at 40.
#[test]
fn up_to_six_a_long_table_message_has_its_table_at_forty() {
    let mut bytes = HostMessage::IndirectionTable([9; TABLE_ENTRIES]).encode(Version::V6).to_vec();
    bytes.truncate(12);
    bytes.resize(40, 0xee);
    for entry in table() {
        bytes.extend_from_slice(&entry.to_le_bytes());
    }
    assert_eq!(
        HostMessage::decode(&bytes, Version::V6),
        Ok(HostMessage::IndirectionTable(table()))
    );
    // A host of 6.1 means what it says.
    assert_ne!(
        HostMessage::decode(&bytes, Version::V6_1),
        Ok(HostMessage::IndirectionTable(table()))
    );
}

// HISTORY 32
#[test]
fn a_table_outside_its_message_or_of_another_size_is_refused() {
    let good = HostMessage::IndirectionTable(table()).encode(Version::V6_1);
    assert_eq!(good.len(), 76);
    assert_eq!(HostMessage::decode(&good, Version::V5), Ok(HostMessage::IndirectionTable(table())));
    for offset in [0u32, 11, 13, 76, 77, u32::MAX] {
        let mut bytes = good.to_vec();
        bytes[8..12].copy_from_slice(&offset.to_le_bytes());
        assert_eq!(
            HostMessage::decode(&bytes, Version::V6_1),
            Err(DecodeError::TableOffset { offset, len: 76 })
        );
    }
    for count in [0, 15, 17, u32::MAX] {
        let mut bytes = good.to_vec();
        bytes[4..8].copy_from_slice(&count.to_le_bytes());
        assert_eq!(HostMessage::decode(&bytes, Version::V6_1), Err(DecodeError::TableCount(count)));
    }
}

/// Bytes, zeros behind them up to `size`.
fn padded(text: &str, size: usize) -> Vec<u8> {
    let mut bytes = hex(text);
    bytes.resize(size.max(bytes.len()), 0);
    bytes
}

/// Every message of a guest with its bytes (PROTOCOL §7.2), the padding left out.
fn guest_bytes() -> Vec<(GuestMessage, &'static str)> {
    let section = Some(SectionUse { index: 5, bytes: 300 });
    let capabilities = Capabilities::SRIOV | Capabilities::IEEE8021Q | Capabilities::RSC;
    let packet =
        |channel_type, section| GuestMessage::RndisPacket(RndisPacket { channel_type, section });
    vec![
        (
            GuestMessage::Init { min: Version::V2, max: Version::V2 },
            "01 00 00 00 02 00 03 00 02 00 03 00",
        ),
        (GuestMessage::NdisVersion { major: 6, minor: 30 }, "64 00 00 00 06 00 00 00 1e 00 00 00"),
        (
            GuestMessage::NdisConfig { mtu: 1514, capabilities },
            "7d 00 00 00 ea 05 00 00 00 00 00 00 8c 00 00 00 00 00 00 00",
        ),
        (
            GuestMessage::ReceiveBuffer { gpadl: GpadlId(0xe1e10), id: 0xcafe },
            "65 00 00 00 10 1e 0e 00 fe ca",
        ),
        (GuestMessage::RevokeReceiveBuffer { id: 0xcafe }, "67 00 00 00 fe ca"),
        (
            GuestMessage::SendBuffer { gpadl: GpadlId(0xe1e11), id: 1 },
            "68 00 00 00 11 1e 0e 00 01 00",
        ),
        (GuestMessage::RevokeSendBuffer { id: 1 }, "6a 00 00 00 01 00"),
        (packet(ChannelType::DATA, section), "6b 00 00 00 00 00 00 00 05 00 00 00 2c 01 00 00"),
        (packet(ChannelType::CONTROL, None), "6b 00 00 00 01 00 00 00 ff ff ff ff 00 00 00 00"),
        (GuestMessage::RndisPacketComplete { status: Status::SUCCESS }, "6c 00 00 00 01 00 00 00"),
        (GuestMessage::SwitchDataPath(DataPath::VF), "81 00 00 00 01 00 00 00"),
        (
            GuestMessage::OidQueryEx { header: 0x0028_0180, oid: 0x0001_0106 },
            "83 00 00 00 80 01 28 00 06 01 01 00",
        ),
        (
            GuestMessage::SubChannels { operation: SubChannelOperation::ALLOCATE, count: 7 },
            "85 00 00 00 01 00 00 00 07 00 00 00",
        ),
    ]
}

/// Every message of a host with its bytes (PROTOCOL §7.2), the padding left out.
fn host_bytes() -> Vec<(HostMessage, &'static str)> {
    let first = Some(ReceiveSection {
        offset: 0,
        sub_alloc_size: 1806,
        num_sub_allocs: 9289,
        end_offset: 16_775_934,
    });
    let status = Status::SUCCESS;
    let packet = RndisPacket { channel_type: ChannelType::DATA, section: None };
    vec![
        (
            HostMessage::InitComplete { version: u32::MAX, max_mdl_chain: 34, status },
            "02 00 00 00 ff ff ff ff 22 00 00 00 01 00 00 00",
        ),
        (
            HostMessage::ReceiveBufferComplete { status, sections: 1, first },
            "66 00 00 00 01 00 00 00 01 00 00 00 00 00 00 00 0e 07 00 00 49 24 00 00 fe fa ff 00",
        ),
        (
            HostMessage::SendBufferComplete { status, section_size: 6144 },
            "69 00 00 00 01 00 00 00 00 18 00 00",
        ),
        (HostMessage::RndisPacket(packet), "6b 00 00 00 00 00 00 00 ff ff ff ff 00 00 00 00"),
        (HostMessage::RndisPacketComplete { status: Status::FAILURE }, "6c 00 00 00 02 00 00 00"),
        (
            HostMessage::VfAssociation { allocated: false, serial: Serial(0x102) },
            "80 00 00 00 00 00 00 00 02 01 00 00",
        ),
        (HostMessage::SwitchDataPath(DataPath::SYNTHETIC), "81 00 00 00 00 00 00 00"),
        (
            HostMessage::OidQueryExComplete { status: 0xc000_00bb, bytes: 0 },
            "84 00 00 00 bb 00 00 c0 00 00 00 00",
        ),
        (HostMessage::SubChannels { status, count: 7 }, "85 00 00 00 01 00 00 00 07 00 00 00"),
        (
            HostMessage::IndirectionTable(table()),
            "86 00 00 00 10 00 00 00 0c 00 00 00
             00 00 00 00 01 00 00 00 02 00 00 00 00 00 00 00 01 00 00 00 02 00 00 00 00 00 00 00 01 00 00 00
             02 00 00 00 00 00 00 00 01 00 00 00 02 00 00 00 00 00 00 00 01 00 00 00 02 00 00 00 00 00 00 00",
        ),
    ]
}

#[test]
fn every_message_of_a_guest_has_the_bytes_of_the_protocol_in_every_version() {
    for version in [Version::V1, Version::V2, Version::V4, Version::V5, Version::V6, Version::V6_1]
    {
        for (message, text) in guest_bytes() {
            // Answers to transfer pages are never padded.
            let answer = matches!(message, GuestMessage::RndisPacketComplete { .. });
            let bytes = padded(text, if answer { 0 } else { version.message_size() });
            assert_eq!(&*message.encode(version), &bytes[..], "{message:?} in {version}");
            assert_eq!(GuestMessage::decode(&bytes), Ok(message));
            let fields = hex(text);
            assert_eq!(GuestMessage::decode(&fields), Ok(message), "without padding");
            assert!(GuestMessage::decode(&fields[..fields.len() - 1]).is_err(), "{message:?} cut");
        }
    }
}

#[test]
fn every_message_of_a_host_has_the_bytes_of_the_protocol_in_every_version() {
    for version in [Version::V1, Version::V2, Version::V4, Version::V5, Version::V6, Version::V6_1]
    {
        for (message, text) in host_bytes() {
            let bytes = padded(text, version.message_size());
            assert_eq!(&*message.encode(version), &bytes[..], "{message:?} in {version}");
            assert_eq!(HostMessage::decode(&bytes, version), Ok(message));
            let fields = hex(text);
            assert_eq!(HostMessage::decode(&fields, version), Ok(message), "without padding");
            // The bytes of a section are of no meaning where none is named.
            let needed = fields.len() - 1;
            assert!(HostMessage::decode(&fields[..needed], version).is_err(), "{message:?} cut");
        }
    }
}

#[test]
fn versions_statuses_and_capabilities_have_the_numbers_of_the_protocol() {
    let versions = Version::ALL.map(|version| version.0);
    assert_eq!(versions, [0x6_0001, 0x6_0000, 0x5_0000, 0x4_0000, 0x3_0002, 2]);
    type S = Status;
    let statuses = [
        S::NONE,
        S::SUCCESS,
        S::FAILURE,
        S::TOO_NEW,
        S::TOO_OLD,
        S::INVALID_RNDIS_PACKET,
        S::BUSY,
        S::UNSUPPORTED_VERSION,
    ];
    for (number, status) in statuses.into_iter().enumerate() {
        assert_eq!(status.0 as usize, number);
        let bytes = [108, 0, 0, 0, number as u8, 0, 0, 0];
        assert_eq!(rndis_complete(status), bytes);
        let message = HostMessage::RndisPacketComplete { status };
        assert_eq!(HostMessage::decode(&bytes, Version::V5), Ok(message));
    }
    type C = Capabilities;
    let capabilities = [
        C::VMQ,
        C::CHIMNEY,
        C::SRIOV,
        C::IEEE8021Q,
        C::CORRELATION_ID,
        C::TEAMING,
        C::VIRTUAL_SUBNET_ID,
        C::RSC,
    ];
    for (bit, capability) in capabilities.into_iter().enumerate() {
        assert_eq!(capability.bits(), 1 << bit);
    }
    assert_eq!((DataPath::SYNTHETIC.0, DataPath::VF.0), (0, 1));
    assert_eq!((ChannelType::DATA.0, ChannelType::CONTROL.0), (0, 1));
}

#[test]
fn numbers_that_are_deprecated_or_never_used_are_refused_on_both_sides() {
    for kind in (109..=124).chain([126, 127, 130, 135, 136]) {
        let mut message = [0; 40];
        message[0] = kind;
        let error = DecodeError::Unexpected(MessageType(u32::from(kind)));
        assert_eq!(GuestMessage::decode(&message), Err(error));
        assert_eq!(HostMessage::decode(&message, Version::V6_1), Err(error));
    }
}

#[test]
fn errors_say_what_was_expected() {
    let text = format!("{}", DecodeError::TableOffset { offset: 99, len: 76 });
    assert!(text.contains("offset 99") && text.contains("64 bytes"), "{text}");
}

fn any_version() -> impl Strategy<Value = Version> {
    prop_oneof![
        Just(Version::V1),
        Just(Version::V4),
        Just(Version::V5),
        Just(Version::V6),
        Just(Version::V6_1)
    ]
}

fn any_rndis() -> impl Strategy<Value = RndisPacket> {
    (any::<u32>(), proptest::option::of((0..NO_SECTION, any::<u32>()))).prop_map(
        |(kind, section)| RndisPacket {
            channel_type: ChannelType(kind),
            section: section.map(|(index, bytes)| SectionUse { index, bytes }),
        },
    )
}

fn any_guest() -> impl Strategy<Value = GuestMessage> {
    let words = (any::<u32>(), any::<u32>());
    let buffer = (any::<u32>(), any::<u16>());
    prop_oneof![
        words.prop_map(|(a, b)| GuestMessage::Init { min: Version(a), max: Version(b) }),
        words.prop_map(|(major, minor)| GuestMessage::NdisVersion { major, minor }),
        (any::<u32>(), any::<u64>()).prop_map(|(mtu, bits)| GuestMessage::NdisConfig {
            mtu,
            capabilities: Capabilities::from_bits_retain(bits)
        }),
        buffer.prop_map(|(gpadl, id)| GuestMessage::ReceiveBuffer { gpadl: GpadlId(gpadl), id }),
        buffer.prop_map(|(gpadl, id)| GuestMessage::SendBuffer { gpadl: GpadlId(gpadl), id }),
        any::<u16>().prop_map(|id| GuestMessage::RevokeReceiveBuffer { id }),
        any::<u16>().prop_map(|id| GuestMessage::RevokeSendBuffer { id }),
        any_rndis().prop_map(GuestMessage::RndisPacket),
        any::<u32>().prop_map(|s| GuestMessage::RndisPacketComplete { status: Status(s) }),
        any::<u32>().prop_map(|path| GuestMessage::SwitchDataPath(DataPath(path))),
        words.prop_map(|(header, oid)| GuestMessage::OidQueryEx { header, oid }),
        words.prop_map(|(operation, count)| GuestMessage::SubChannels {
            operation: SubChannelOperation(operation),
            count
        }),
    ]
}

fn any_host() -> impl Strategy<Value = HostMessage> {
    let words = (any::<u32>(), any::<u32>());
    prop_oneof![
        any::<[u32; 3]>().prop_map(|[version, max_mdl_chain, status]| HostMessage::InitComplete {
            version,
            max_mdl_chain,
            status: Status(status)
        }),
        (1..=u32::MAX, any::<[u32; 4]>()).prop_map(|(sections, [a, b, c, d])| {
            HostMessage::ReceiveBufferComplete {
                status: Status::SUCCESS,
                sections,
                first: Some(ReceiveSection {
                    offset: a,
                    sub_alloc_size: b,
                    num_sub_allocs: c,
                    end_offset: d,
                }),
            }
        }),
        words.prop_map(|(status, section_size)| HostMessage::SendBufferComplete {
            status: Status(status),
            section_size
        }),
        any_rndis().prop_map(HostMessage::RndisPacket),
        any::<u32>().prop_map(|s| HostMessage::RndisPacketComplete { status: Status(s) }),
        (any::<bool>(), any::<u32>()).prop_map(|(allocated, serial)| HostMessage::VfAssociation {
            allocated,
            serial: Serial(serial)
        }),
        any::<u32>().prop_map(|path| HostMessage::SwitchDataPath(DataPath(path))),
        words.prop_map(|(status, bytes)| HostMessage::OidQueryExComplete { status, bytes }),
        words
            .prop_map(|(status, count)| HostMessage::SubChannels { status: Status(status), count }),
        any::<[u32; TABLE_ENTRIES]>().prop_map(HostMessage::IndirectionTable),
    ]
}

proptest! {
    #[test]
    fn what_a_guest_says_comes_back(message in any_guest(), version in any_version()) {
        let encoded = message.encode(version);
        prop_assert_eq!(GuestMessage::decode(&encoded), Ok(message));
    }

    #[test]
    fn what_a_host_says_comes_back(message in any_host(), version in any_version()) {
        let encoded = message.encode(version);
        prop_assert!(encoded.len() >= version.message_size());
        prop_assert_eq!(HostMessage::decode(&encoded, version), Ok(message));
    }

    #[test]
    fn no_bytes_make_the_decoders_panic(
        kind in prop_oneof![0..140u32, any::<u32>()],
        rest in proptest::collection::vec(any::<u8>(), 0..150),
        version in any_version(),
    ) {
        let mut bytes = vec![];
        bytes.extend_from_slice(&kind.to_le_bytes());
        bytes.extend_from_slice(&rest);
        let _ = GuestMessage::decode(&bytes);
        let _ = HostMessage::decode(&bytes, version);
        let _ = GuestMessage::decode(&rest);
    }
}

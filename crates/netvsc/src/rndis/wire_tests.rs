//! Every message, object, status and piece of information of RNDIS as bytes that were written down by hand from the
//! protocol (§9), in both directions. What lies in objects of more than a number is tested beside them.

extern crate std;
use super::packet::{
    LargeSend, Layout, PartFlags, Ppi, PpiType, Ppis, ReceiveChecksum, TransmitChecksum, VlanTag,
    write_header,
};
use super::*;
use std::vec;
use std::vec::Vec;

fn hex(text: &str) -> Vec<u8> {
    text.split_whitespace().map(|byte| u8::from_str_radix(byte, 16).unwrap()).collect()
}

/// Each message of a guest with its bytes.
fn guest_bytes() -> Vec<(GuestMessage<'static>, &'static str)> {
    vec![
        (
            GuestMessage::Initialize {
                request_id: 0x0102_0304,
                major: 1,
                minor: 0,
                max_transfer: 0x4000,
            },
            "02 00 00 00 18 00 00 00 04 03 02 01 01 00 00 00 00 00 00 00 00 40 00 00",
        ),
        (GuestMessage::Halt { request_id: 9 }, "03 00 00 00 0c 00 00 00 09 00 00 00"),
        (
            GuestMessage::Query {
                request_id: 2,
                oid: Oid::OFFLOAD_HARDWARE_CAPABILITIES,
                info: &[0xa7, 3, 0x9c, 0],
            },
            "04 00 00 00 20 00 00 00 02 00 00 00 0d 02 01 fc 04 00 00 00 14 00 00 00 00 00 00 00 a7 03 9c 00",
        ),
        (
            GuestMessage::Set {
                request_id: 3,
                oid: Oid::CURRENT_PACKET_FILTER,
                info: &[0x2f, 0, 0, 0],
            },
            "05 00 00 00 20 00 00 00 03 00 00 00 0e 01 01 00 04 00 00 00 14 00 00 00 00 00 00 00 2f 00 00 00",
        ),
        (GuestMessage::Reset, "06 00 00 00 0c 00 00 00 00 00 00 00"),
        (GuestMessage::KeepAlive { request_id: 7 }, "08 00 00 00 0c 00 00 00 07 00 00 00"),
        (
            GuestMessage::KeepAliveComplete { request_id: 8, status: Status::SUCCESS },
            "08 00 00 80 10 00 00 00 08 00 00 00 00 00 00 00",
        ),
    ]
}

/// Each message of a host with its bytes.
fn host_bytes() -> Vec<(HostMessage<'static>, &'static str)> {
    let status = Status::SUCCESS;
    vec![
        (
            HostMessage::InitializeComplete(InitializeComplete {
                request_id: 1,
                status,
                major: 1,
                minor: 0,
                device_flags: 1,
                medium: 0,
                max_packets: 8,
                max_transfer: 0x17f8,
                alignment_factor: 3,
            }),
            "02 00 00 80 34 00 00 00 01 00 00 00 00 00 00 00 01 00 00 00 00 00 00 00 01 00 00 00 00 00 00 00
             08 00 00 00 f8 17 00 00 03 00 00 00 00 00 00 00 00 00 00 00",
        ),
        (
            HostMessage::QueryComplete { request_id: 2, status, info: &[0, 0x15, 0x5d, 1, 2, 3] },
            "04 00 00 80 1e 00 00 00 02 00 00 00 00 00 00 00 06 00 00 00 10 00 00 00 00 15 5d 01 02 03",
        ),
        (
            HostMessage::SetComplete { request_id: 3, status: Status::INVALID_DATA },
            "05 00 00 80 10 00 00 00 03 00 00 00 15 00 01 c0",
        ),
        (
            HostMessage::ResetComplete { status, addressing_reset: true },
            "06 00 00 80 10 00 00 00 00 00 00 00 01 00 00 00",
        ),
        (
            HostMessage::Indicate { status: Status::LINK_SPEED_CHANGE, buffer: &[0, 0xe1, 0xf5, 5] },
            "07 00 00 00 18 00 00 00 13 00 01 40 04 00 00 00 0c 00 00 00 00 e1 f5 05",
        ),
        (
            HostMessage::KeepAliveComplete { request_id: 7, status },
            "08 00 00 80 10 00 00 00 07 00 00 00 00 00 00 00",
        ),
        (HostMessage::KeepAlive { request_id: 8 }, "08 00 00 00 0c 00 00 00 08 00 00 00"),
    ]
}

/// Whether it is one of the two messages that either side sends.
fn goes_both_ways(bytes: &[u8]) -> bool {
    bytes[0] == 8
}

#[test]
fn every_request_has_the_bytes_of_the_protocol() {
    for (message, text) in guest_bytes() {
        let (mut encoded, bytes) = (vec![], hex(text));
        message.encode(&mut encoded);
        assert_eq!(encoded, bytes, "{message:?}");
        assert_eq!(GuestMessage::decode(&bytes), Ok(message));
        for len in 0..bytes.len() {
            assert!(GuestMessage::decode(&bytes[..len]).is_err(), "{message:?}: {len} bytes");
        }
        let padded = [&bytes[..], &[0xee; 9]].concat();
        assert_eq!(GuestMessage::decode(&padded), Ok(message), "with bytes behind it");
        for length in [0, bytes.len() as u32 - 1, bytes.len() as u32 + 1, u32::MAX] {
            let mut lying = bytes.clone();
            lying[4..8].copy_from_slice(&length.to_le_bytes());
            assert!(GuestMessage::decode(&lying).is_err(), "{message:?}: length {length}");
        }
        let ours = HostMessage::decode(&bytes).is_err() || goes_both_ways(&bytes);
        assert!(ours, "{message:?} is not a host's");
    }
}

#[test]
fn every_reply_and_indication_has_the_bytes_of_the_protocol() {
    for (message, text) in host_bytes() {
        let (mut encoded, bytes) = (vec![], hex(text));
        message.encode(&mut encoded);
        assert_eq!(encoded, bytes, "{message:?}");
        assert_eq!(HostMessage::decode(&bytes), Ok(message));
        for len in 0..bytes.len() {
            assert!(HostMessage::decode(&bytes[..len]).is_err(), "{message:?}: {len} bytes");
        }
        let padded = [&bytes[..], &[0xee; 9]].concat();
        assert_eq!(HostMessage::decode(&padded), Ok(message), "with bytes behind it");
        for length in [0, 11, bytes.len().min(16) as u32 - 1, bytes.len() as u32 + 1, u32::MAX] {
            let mut lying = bytes.clone();
            lying[4..8].copy_from_slice(&length.to_le_bytes());
            assert!(HostMessage::decode(&lying).is_err(), "{message:?}: length {length}");
        }
        let ours = GuestMessage::decode(&bytes).is_err() || goes_both_ways(&bytes);
        assert!(ours, "{message:?} is not a guest's");
    }
}

#[test]
fn frames_and_messages_that_nobody_speaks_are_no_control_messages() {
    // PACKET, SET_EX, and what has no meaning, with and without the bit of replies.
    for kind in [0u32, 1, 9, 10, 0x8000_0000, 0x8000_0001, 0x8000_0003, 0x8000_0007, 0x8000_0009] {
        let mut bytes = vec![0; 44];
        bytes[..4].copy_from_slice(&kind.to_le_bytes());
        bytes[4] = 44;
        let error = DecodeError::Unexpected(MessageType(kind));
        assert_eq!(GuestMessage::decode(&bytes), Err(error));
        assert_eq!(HostMessage::decode(&bytes), Err(error));
    }
}

#[test]
fn every_object_is_named_by_the_bytes_of_the_protocol() {
    let objects = [
        (Oid::MAXIMUM_FRAME_SIZE, "06 01 01 00"),
        (Oid::LINK_SPEED, "07 01 01 00"),
        (Oid::CURRENT_PACKET_FILTER, "0e 01 01 00"),
        (Oid::MEDIA_CONNECT_STATUS, "14 01 01 00"),
        (Oid::RSS_CAPABILITIES, "03 02 01 00"),
        (Oid::RSS_PARAMETERS, "04 02 01 00"),
        (Oid::LINK_STATE, "07 02 01 00"),
        (Oid::CONFIG_PARAMETER, "1b 02 01 00"),
        (Oid::FRIENDLY_NAME, "16 02 02 00"),
        (Oid::PERMANENT_ADDRESS, "01 01 01 01"),
        (Oid::CURRENT_ADDRESS, "02 01 01 01"),
        (Oid::OFFLOAD_ENCAPSULATION, "0a 01 01 01"),
        (Oid::OFFLOAD_CURRENT_CONFIG, "0b 02 01 fc"),
        (Oid::OFFLOAD_PARAMETERS, "0c 02 01 fc"),
        (Oid::OFFLOAD_HARDWARE_CAPABILITIES, "0d 02 01 fc"),
    ];
    for (oid, name) in objects {
        let bytes = [
            hex("04 00 00 00 1c 00 00 00 05 00 00 00"),
            hex(name),
            hex("00 00 00 00 14 00 00 00 00 00 00 00"),
        ]
        .concat();
        let query = GuestMessage::Query { request_id: 5, oid, info: &[] };
        let mut encoded = vec![];
        query.encode(&mut encoded);
        assert_eq!(encoded, bytes, "{oid:?}");
        assert_eq!(GuestMessage::decode(&bytes), Ok(query));
    }
}

#[test]
fn every_status_has_the_bytes_of_the_protocol() {
    let all = [
        (Status::SUCCESS, "00 00 00 00"),
        (Status::PENDING, "03 01 00 00"),
        (Status::FAILURE, "01 00 00 c0"),
        (Status::RESOURCES, "9a 00 00 c0"),
        (Status::NOT_SUPPORTED, "bb 00 00 c0"),
        (Status::BAD_VERSION, "04 00 01 c0"),
        (Status::INVALID_DATA, "15 00 01 c0"),
        (Status::BUFFER_TOO_SHORT, "16 00 01 c0"),
        (Status::INVALID_OID, "17 00 01 c0"),
    ];
    for (status, text) in all {
        let bytes = [hex("05 00 00 80 10 00 00 00 06 00 00 00"), hex(text)].concat();
        let reply = HostMessage::SetComplete { request_id: 6, status };
        let mut encoded = vec![];
        reply.encode(&mut encoded);
        assert_eq!((encoded, HostMessage::decode(&bytes)), (bytes.clone(), Ok(reply)));
    }
}

#[test]
fn every_indication_has_the_bytes_of_the_protocol() {
    let all = [
        (Status::MEDIA_CONNECT, "0b 00 01 40"),
        (Status::MEDIA_DISCONNECT, "0c 00 01 40"),
        (Status::NETWORK_CHANGE, "18 00 01 40"),
        (Status::OFFLOAD_CURRENT_CONFIG, "06 00 02 40"),
    ];
    for (status, text) in all {
        let head = hex("07 00 00 00 14 00 00 00");
        let bytes = [head, hex(text), hex("00 00 00 00 00 00 00 00")].concat();
        let indication = HostMessage::Indicate { status, buffer: &[] };
        let mut encoded = vec![];
        indication.encode(&mut encoded);
        assert_eq!((encoded, HostMessage::decode(&bytes)), (bytes.clone(), Ok(indication)));
    }
}

#[test]
fn filters_have_the_bits_of_the_protocol() {
    use PacketFilter as F;
    let all = [F::DIRECTED, F::MULTICAST, F::ALL_MULTICAST, F::BROADCAST, F::PROMISCUOUS];
    assert_eq!(all.map(|filter| filter.bits()), [1, 2, 4, 8, 0x20]);
}

/// A header with one word of information, and that information as it is read from it.
fn information(kind: PpiType, word: u32) -> (Vec<u8>, PpiType, u32) {
    let mut bytes = vec![0; 60];
    assert_eq!(write_header(&mut bytes, &[(kind, word)], 60, 14), Some(60));
    let layout = Layout::decode(&bytes, 74).unwrap();
    assert_eq!((layout.ppi.clone(), layout.data), (44..60, 60..74));
    let Ppi { kind, data } = Ppis::new(&bytes[layout.ppi.clone()]).next().unwrap().unwrap();
    (bytes[layout.ppi].to_vec(), kind, u32::from_le_bytes(data.try_into().unwrap()))
}

/// The word and its bytes on the wire belong to each other, both ways.
fn stands(kind: PpiType, word: u32, text: &str) {
    assert_eq!(information(kind, word), (hex(text), kind, word));
}

#[test]
fn a_checksum_to_be_filled_in_has_the_bytes_of_the_protocol() {
    use TransmitChecksum as T;
    let tcp = (T::IPV4 | T::TCP | T::IP_HEADER).at(34);
    stands(PpiType::CHECKSUM, tcp.bits(), "10 00 00 00 00 00 00 00 0c 00 00 00 15 00 22 00");
    assert_eq!(tcp.layer4(), 34);
    let udp = (T::IPV6 | T::UDP).at(1023);
    stands(PpiType::CHECKSUM, udp.bits(), "10 00 00 00 00 00 00 00 0c 00 00 00 0a 00 ff 03");
    assert_eq!((udp.layer4(), udp & (T::IPV6 | T::UDP)), (1023, T::IPV6 | T::UDP));
}

#[test]
fn what_was_found_of_checksums_has_the_bits_of_the_protocol() {
    use ReceiveChecksum as R;
    let all = [
        R::TCP_BAD,
        R::UDP_BAD,
        R::IP_BAD,
        R::TCP_GOOD,
        R::UDP_GOOD,
        R::IP_GOOD,
        R::LOOPBACK,
        R::TCP_VALUE_INVALID,
        R::IP_VALUE_INVALID,
    ];
    for (bit, flag) in all.into_iter().enumerate() {
        assert_eq!(flag.bits(), 1 << bit);
    }
    let good = R::TCP_GOOD | R::IP_GOOD | R::TCP_VALUE_INVALID;
    stands(PpiType::CHECKSUM, good.bits(), "10 00 00 00 00 00 00 00 0c 00 00 00 a8 00 00 00");
}

#[test]
fn a_large_send_has_the_bytes_of_the_protocol() {
    let send = LargeSend { segment: 1460, layer4: 34, ipv6: false };
    stands(PpiType::LARGE_SEND, send.to_ppi(), "10 00 00 00 02 00 00 00 0c 00 00 00 b4 05 20 42");
    assert_eq!(LargeSend::from_ppi(0x4220_05b4), send);
    let most = LargeSend { segment: 0xf_ffff, layer4: 1023, ipv6: true };
    stands(PpiType::LARGE_SEND, most.to_ppi(), "10 00 00 00 02 00 00 00 0c 00 00 00 ff ff ff ff");
    assert_eq!(LargeSend::from_ppi(u32::MAX), most);
}

#[test]
fn a_tag_has_the_bytes_of_the_protocol() {
    // Priority 5, DEI, VLAN 0x123.
    let tag = VlanTag(0xb123);
    stands(PpiType::VLAN, tag.to_ppi(), "10 00 00 00 06 00 00 00 0c 00 00 00 3d 12 00 00");
    assert_eq!(VlanTag::from_ppi(0x123d), tag);
}

#[test]
fn a_hash_has_the_bytes_of_the_protocol() {
    stands(PpiType::HASH, 0x51cc_c178, "10 00 00 00 08 00 00 00 0c 00 00 00 78 c1 cc 51");
}

#[test]
fn a_part_of_a_segment_has_the_bytes_of_the_protocol() {
    let flags = [
        (1, PartFlags::SUB_ALLOCATED),
        (3, PartFlags::SUB_ALLOCATED | PartFlags::FIRST),
        (5, PartFlags::SUB_ALLOCATED | PartFlags::LAST),
    ];
    for (byte, flags) in flags {
        let word = u32::from_le_bytes([1, byte, 0x34, 0x12]);
        let (bytes, kind, _) = information(PpiType::PACKET_ID, word);
        let mut expected = hex("10 00 00 00 01 00 00 80 0c 00 00 00 01 00 34 12");
        expected[13] = byte;
        assert_eq!((&bytes, kind), (&expected, PpiType::PACKET_ID));
        assert_eq!(Ppi { kind, data: &expected[12..] }.part(), Some(flags));
    }
    assert_eq!(Ppi { kind: PpiType::PACKET_ID, data: &[1] }.part(), None, "cut");
    assert_eq!(Ppi { kind: PpiType::HASH, data: &[1, 2, 3] }.word(), None, "cut");
}

#[test]
fn a_packet_has_the_bytes_of_the_protocol() {
    let bytes =
        hex("01 00 00 00 68 00 00 00 24 00 00 00 3c 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00
                     00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00");
    let mut encoded = [0xee; 44];
    assert_eq!(write_header(&mut encoded, &[], 44, 60), Some(44));
    assert_eq!(encoded[..], bytes);
    assert_eq!(Layout::decode(&bytes, 104), Ok(Layout { length: 104, data: 44..104, ppi: 44..44 }));
    for len in 0..44 {
        assert!(Layout::decode(&bytes[..len], 104).is_err(), "{len} bytes of the header");
    }
    for total in 0..104 {
        assert!(Layout::decode(&bytes, total).is_err(), "{total} bytes in all");
    }
}

extern crate std;
use super::packet::{
    Layout, PACKET_HEADER, PartFlags, PpiError, PpiType, Ppis, VlanTag, write_header,
};
use super::*;
use proptest::prelude::*;
use std::vec;
use std::vec::Vec;

fn guest(message: GuestMessage<'_>) -> Vec<u8> {
    let mut bytes = vec![];
    message.encode(&mut bytes);
    bytes
}

fn host(message: HostMessage<'_>) -> Vec<u8> {
    let mut bytes = vec![];
    message.encode(&mut bytes);
    bytes
}

fn words(bytes: &[u8]) -> Vec<u32> {
    bytes.as_chunks().0.iter().map(|word| u32::from_le_bytes(*word)).collect()
}

fn put(bytes: &mut [u8], at: usize, value: u32) {
    bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
}

#[test]
fn requests_have_the_fields_of_the_protocol() {
    let initialize =
        GuestMessage::Initialize { request_id: 9, major: 1, minor: 0, max_transfer: MAX_TRANSFER };
    assert_eq!(words(&guest(initialize)), [2, 24, 9, 1, 0, 0x4000]);
    assert_eq!(words(&guest(GuestMessage::Halt { request_id: 3 })), [3, 12, 3]);
    let query = GuestMessage::Query { request_id: 4, oid: Oid::PERMANENT_ADDRESS, info: &[] };
    assert_eq!(words(&guest(query)), [4, 28, 4, 0x0101_0101, 0, 20, 0]);
    let set = GuestMessage::Set {
        request_id: 5,
        oid: Oid::CURRENT_PACKET_FILTER,
        info: &9u32.to_le_bytes(),
    };
    assert_eq!(words(&guest(set)), [5, 32, 5, 0x0001_010e, 4, 20, 0, 9]);
}

#[test]
fn replies_have_the_fields_of_the_protocol() {
    let reply =
        HostMessage::QueryComplete { request_id: 4, status: Status::SUCCESS, info: &[1, 0, 0, 0] };
    assert_eq!(words(&host(reply)), [0x8000_0004, 28, 4, 0, 4, 16, 1]);
    let link = HostMessage::Indicate { status: Status::MEDIA_DISCONNECT, buffer: &[] };
    assert_eq!(words(&host(link)), [7, 20, 0x4001_000c, 0, 0]);
}

#[test]
fn an_indication_may_leave_its_buffer_out_of_its_length() {
    let mut bytes =
        host(HostMessage::Indicate { status: Status::LINK_SPEED_CHANGE, buffer: &[1, 2, 3, 4] });
    put(&mut bytes, 4, 20);
    assert_eq!(
        HostMessage::decode(&bytes),
        Ok(HostMessage::Indicate { status: Status::LINK_SPEED_CHANGE, buffer: &[1, 2, 3, 4] })
    );
    assert_eq!(
        HostMessage::decode(&bytes[..22]),
        Err(DecodeError::Outside {
            kind: MessageType::INDICATE_STATUS,
            part: "buffer",
            offset: 12,
            len: 4,
            found: 22
        })
    );
}

#[test]
fn lengths_that_lie_are_refused() {
    let good = host(HostMessage::SetComplete { request_id: 1, status: Status::SUCCESS });
    for length in [0, 15, 17, u32::MAX] {
        let mut bytes = good.clone();
        put(&mut bytes, 4, length);
        assert_eq!(
            HostMessage::decode(&bytes),
            Err(DecodeError::Length { kind: MessageType::SET_CMPLT, length, least: 16, found: 16 })
        );
    }
    assert_eq!(HostMessage::decode(&good[..7]), Err(DecodeError::NoHeader(7)));
    assert_eq!(GuestMessage::decode(&good), Err(DecodeError::Unexpected(MessageType::SET_CMPLT)));
}

#[test]
fn values_outside_their_message_are_refused() {
    let good = host(HostMessage::QueryComplete {
        request_id: 4,
        status: Status::SUCCESS,
        info: &[1, 2, 3, 4, 5, 6],
    });
    for (len, offset) in [(7, 16), (6, 17), (u32::MAX, 16), (6, u32::MAX), (1, 22)] {
        let mut bytes = good.clone();
        put(&mut bytes, 16, len);
        put(&mut bytes, 20, offset);
        assert_eq!(
            HostMessage::decode(&bytes),
            Err(DecodeError::Outside {
                kind: MessageType::QUERY_CMPLT,
                part: "value",
                offset,
                len,
                found: 30
            })
        );
    }
    // Bytes behind the length are not the message's.
    let mut longer = good.clone();
    longer.push(7);
    put(&mut longer, 16, 7);
    assert!(HostMessage::decode(&longer).is_err());
}

fn packet(ppis: &[(PpiType, u32)], data: &[u8]) -> Vec<u8> {
    let at = PACKET_HEADER + 16 * ppis.len();
    let mut bytes = vec![0; at + data.len()];
    assert_eq!(write_header(&mut bytes, ppis, at, data.len()), Some(at));
    bytes[at..].copy_from_slice(data);
    bytes
}

#[test]
fn a_packet_header_has_the_fields_of_the_protocol() {
    assert_eq!(words(&packet(&[], &[0; 60])[..44]), [1, 104, 36, 60, 0, 0, 0, 0, 0, 0, 0]);
    let tagged = packet(&[(PpiType::VLAN, VlanTag(0xa123).to_ppi())], &[0; 60]);
    assert_eq!(words(&tagged[..44]), [1, 120, 52, 60, 0, 0, 0, 36, 16, 0, 0]);
    assert_eq!(words(&tagged[44..60]), [16, 6, 12, 0x1235]);
}

#[test]
fn a_packet_may_claim_more_than_came_but_its_frame_may_not() {
    let mut bytes = packet(&[], &[0; 60]);
    put(&mut bytes, 4, 1806);
    assert_eq!(Layout::decode(&bytes, 104).unwrap().data, 44..104);
    assert!(matches!(
        Layout::decode(&bytes, 103),
        Err(DecodeError::Outside { part: "frame", found: 103, .. })
    ));
}

#[test]
fn packets_that_lie_are_refused() {
    let good = packet(&[(PpiType::HASH, 1)], &[0; 60]);
    let with = |at, value| {
        let mut bytes = good.clone();
        put(&mut bytes, at, value);
        Layout::decode(&bytes, bytes.len()).unwrap_err()
    };
    assert_eq!(with(0, 2), DecodeError::Unexpected(MessageType::INITIALIZE));
    assert!(matches!(with(4, 43), DecodeError::Length { length: 43, least: 44, .. }));
    assert_eq!(with(12, 0), DecodeError::NoData);
    for offset in [0, 35, 53, u32::MAX] {
        assert!(matches!(with(8, offset), DecodeError::Outside { part: "frame", .. }));
    }
    for (at, field) in [
        (16, "out-of-band offset"),
        (20, "out-of-band length"),
        (24, "out-of-band count"),
        (36, "virtual circuit"),
    ] {
        assert_eq!(with(at, 5), DecodeError::NotZero { field, value: 5 });
    }
    for (at, value) in [(28, 0), (28, 120), (32, u32::MAX)] {
        assert!(matches!(
            with(at, value),
            DecodeError::Outside { part: "per-packet information", .. }
        ));
    }
    assert_eq!(Layout::decode(&good[..7], 7), Err(DecodeError::NoHeader(7)));
    assert!(matches!(Layout::decode(&good[..43], 43), Err(DecodeError::Length { found: 43, .. })));
}

#[test]
fn a_header_that_does_not_fit_is_not_written() {
    assert_eq!(write_header(&mut [0; 43], &[], 44, 60), None);
    assert_eq!(write_header(&mut [0; 100], &[(PpiType::HASH, 1)], 59, 60), None);
    assert_eq!(write_header(&mut [0; 100], &[], 44, usize::MAX), None);
}

fn entry(size: u32, kind: u32, offset: u32, data: &[u8]) -> Vec<u8> {
    let mut bytes: Vec<u8> = [size, kind, offset].iter().flat_map(|w| w.to_le_bytes()).collect();
    bytes.extend_from_slice(data);
    bytes
}

#[test]
fn unknown_information_is_passed_over_and_a_size_of_zero_ends_the_walk() {
    let mut list = entry(20, 77, 12, &[0; 8]);
    list.extend(entry(16, 6, 12, &[1, 0, 0, 0]));
    list.extend(entry(0, 6, 12, &[1, 0, 0, 0]));
    let mut walk = Ppis::new(&list);
    assert_eq!(walk.next().unwrap().unwrap().kind, PpiType(77));
    assert_eq!(walk.next().unwrap().unwrap().word(), Some(1));
    assert_eq!(walk.next(), Some(Err(PpiError { size: 0, data_offset: 12, room: 16 })));
    assert_eq!(walk.next(), None);
}

#[test]
fn information_that_lies_is_refused() {
    for (size, offset) in [(11, 0), (17, 12), (16, 16), (16, u32::MAX), (u32::MAX, 12)] {
        let list = entry(size, 0, offset, &[0; 4]);
        let error = PpiError { size, data_offset: offset, room: 16 };
        assert_eq!(Ppis::new(&list).next(), Some(Err(error)));
    }
    assert_eq!(
        Ppis::new(&[1; 11]).next(),
        Some(Err(PpiError { size: 0, data_offset: 0, room: 11 }))
    );
}

#[test]
fn parts_of_a_segment_are_told_apart() {
    let list = entry(16, 0x8000_0001, 12, &[1, 3, 0, 0]);
    let part = Ppis::new(&list).next().unwrap().unwrap();
    assert_eq!(part.kind, PpiType::PACKET_ID);
    assert_eq!(part.part(), Some(PartFlags::SUB_ALLOCATED | PartFlags::FIRST));
}

proptest! {
    #[test]
    fn tags_survive_both_ways(tag: u16) {
        prop_assert_eq!(VlanTag::from_ppi(VlanTag(tag).to_ppi()), VlanTag(tag));
    }

    #[test]
    fn what_a_guest_says_comes_back(
        kind in 0..6, [request_id, a, b, c]: [u32; 4],
        info in proptest::collection::vec(any::<u8>(), 0..80),
    ) {
        let message = match kind {
            0 => GuestMessage::Initialize { request_id, major: a, minor: b, max_transfer: c },
            1 => GuestMessage::Halt { request_id },
            2 => GuestMessage::Query { request_id, oid: Oid(a), info: &info },
            3 => GuestMessage::Set { request_id, oid: Oid(a), info: &info },
            4 => GuestMessage::Reset,
            _ => GuestMessage::KeepAlive { request_id },
        };
        let bytes = guest(message);
        prop_assert_eq!(GuestMessage::decode(&bytes), Ok(message));
    }

    #[test]
    fn what_a_host_says_comes_back(
        kind in 0..6, [request_id, a, b, c, d]: [u32; 5],
        info in proptest::collection::vec(any::<u8>(), 0..80), addressing_reset: bool,
    ) {
        let status = Status(a);
        let message = match kind {
            0 => HostMessage::InitializeComplete(InitializeComplete {
                request_id, status, major: b, minor: c, device_flags: d, medium: a,
                max_packets: b, max_transfer: c, alignment_factor: d,
            }),
            1 => HostMessage::QueryComplete { request_id, status, info: &info },
            2 => HostMessage::SetComplete { request_id, status },
            3 => HostMessage::ResetComplete { status, addressing_reset },
            4 => HostMessage::Indicate { status, buffer: &info },
            _ => HostMessage::KeepAliveComplete { request_id, status },
        };
        let bytes = host(message);
        prop_assert_eq!(HostMessage::decode(&bytes), Ok(message));
    }

    #[test]
    fn what_a_header_says_comes_back(
        values in proptest::collection::vec((any::<u32>(), any::<u32>()), 0..5),
        gap in 0..300usize, len in 1..2000usize,
    ) {
        let ppis: Vec<_> = values.iter().map(|(kind, value)| (PpiType(*kind), *value)).collect();
        let at = PACKET_HEADER + 16 * ppis.len() + gap;
        let mut bytes = vec![0; at];
        write_header(&mut bytes, &ppis, at, len).unwrap();
        let layout = Layout::decode(&bytes, at + len).unwrap();
        prop_assert_eq!((layout.length as usize, layout.data), (at + len, at..at + len));
        let back: Vec<_> = Ppis::new(&bytes[layout.ppi])
            .map(|ppi| ppi.map(|ppi| (ppi.kind, ppi.word().unwrap())).unwrap())
            .collect();
        prop_assert_eq!(back, ppis);
    }

    #[test]
    fn no_bytes_make_the_decoders_panic(
        kind in prop_oneof![0..10u32, 0x8000_0000u32..0x8000_000a, any::<u32>()],
        length in prop_oneof![0..100u32, any::<u32>()],
        rest in proptest::collection::vec(prop_oneof![Just(0u8), Just(12), Just(16), any::<u8>()], 0..100),
        total in prop_oneof![0..200usize, any::<usize>()],
    ) {
        let mut bytes = entry(kind, length, 0, &[]);
        bytes.truncate(8);
        bytes.extend_from_slice(&rest);
        let _ = GuestMessage::decode(&bytes);
        let _ = HostMessage::decode(&bytes);
        let _ = Layout::decode(&rest, total);
        if let Ok(layout) = Layout::decode(&bytes, total) {
            prop_assert!(layout.data.start >= PACKET_HEADER && layout.data.end <= total);
            prop_assert!(layout.ppi.start <= layout.ppi.end && layout.ppi.end <= total.max(44));
        }
        prop_assert!(Ppis::new(&rest).count() <= rest.len());
    }
}

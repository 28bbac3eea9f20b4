extern crate std;
use super::*;
use crate::Pfn;
use std::vec;
use std::vec::Vec;

/// A packet of `kind` whose header has `extra` behind the descriptor.
fn bytes(kind: u16, flags: u16, extra: &[u8], body: &[u8]) -> Vec<u8> {
    let header = 16 + extra.len() as u16;
    let mut packet = Vec::new();
    for field in [kind, header / 8, (header + body.len() as u16) / 8, flags] {
        packet.extend(field.to_le_bytes());
    }
    packet.extend(9u64.to_le_bytes());
    packet.extend(extra);
    packet.extend(body);
    packet
}

fn ranges(count: u32, entries: &[u32]) -> Vec<u8> {
    let mut extra = vec![0xfe, 0xca, 0, 0];
    extra.extend(count.to_le_bytes());
    extra.extend(entries.iter().flat_map(|entry| entry.to_le_bytes()));
    extra
}

#[test]
fn transfer_ranges_come_back_in_order() {
    let packet = bytes(7, 1, &ranges(2, &[10, 100, 20, 200]), &[1; 8]);
    let packet = Packet::parse(&packet).unwrap();
    let PacketKind::TransferPages { pageset, ranges } = packet.kind else { panic!("{packet:?}") };
    assert_eq!((pageset, ranges.len()), (0xcafe, 2));
    let second = ranges.iter().nth(1).unwrap();
    assert_eq!((second.byte_count, second.byte_offset), (20, 200));
    assert_eq!(packet.payload, [1; 8]);
    assert!(packet.completion_requested);
}

#[test]
fn more_ranges_than_header_are_refused() {
    for count in [0, 3, u32::MAX] {
        let packet = bytes(7, 1, &ranges(count, &[10, 100, 20, 200]), &[]);
        assert_eq!(Packet::parse(&packet).unwrap_err(), PacketError::Ranges { count, room: 16 });
    }
}

// HISTORY 69: one range over three pages, and three ranges, are the same frame.
#[test]
fn gpa_ranges_of_one_and_of_many_pages() {
    let whole = ranges(1, &[9000, 8, 1, 0, 2, 0, 3, 0]);
    let packet = bytes(9, 1, &whole, &[]);
    let PacketKind::GpaDirect(list) = Packet::parse(&packet).unwrap().kind else { panic!() };
    let range = list.iter().next().unwrap();
    assert_eq!(range.frames().collect::<Vec<_>>(), [Pfn(1), Pfn(2), Pfn(3)]);

    let split = ranges(3, &[4088, 8, 1, 0, 4096, 0, 2, 0, 816, 0, 3, 0]);
    let packet = bytes(9, 1, &split, &[]);
    let PacketKind::GpaDirect(list) = Packet::parse(&packet).unwrap().kind else { panic!() };
    assert_eq!(list.iter().map(|range| range.byte_count).sum::<u32>(), 9000);
    assert_eq!((list.count(), list.iter().count()), (3, 3));
}

#[test]
fn gpa_ranges_that_lie_are_refused() {
    for entries in [
        &[8193, 0, 1, 0, 2, 0][..],
        &[u32::MAX, 0, 1, 0],
        &[1, 4096, 1, 0],
        &[1, u32::MAX, 1, 0],
        &[1],
    ] {
        let mut extra = ranges(1, entries);
        extra.resize(extra.len().next_multiple_of(8), 0);
        let packet = bytes(9, 1, &extra, &[]);
        assert!(matches!(Packet::parse(&packet), Err(PacketError::Ranges { count: 1, .. })));
    }
}

#[test]
fn contradictions_are_refused() {
    assert_eq!(
        Packet::parse(&[0; 8]).unwrap_err(),
        PacketError::HeaderLength { header: 16, packet: 8 }
    );
    let mut packet = bytes(6, 0, &[], &[0; 8]);
    packet[2] = 1;
    assert_eq!(
        Packet::parse(&packet).unwrap_err(),
        PacketError::HeaderLength { header: 8, packet: 24 }
    );
    packet[2] = 4;
    assert!(matches!(Packet::parse(&packet), Err(PacketError::HeaderLength { .. })));
    assert_eq!(
        Packet::parse(&bytes(8, 0, &[], &[])).unwrap_err(),
        PacketError::UnknownType(PacketType(8))
    );
    assert_eq!(Packet::parse(&bytes(6, 2, &[], &[])).unwrap_err(), PacketError::Flags(2));
}

proptest::proptest! {
    #[test]
    fn no_bytes_make_the_parser_panic(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..200)) {
        if let Ok(packet) = Packet::parse(&bytes) {
            match packet.kind {
                PacketKind::GpaDirect(ranges) => {
                    proptest::prop_assert_eq!(ranges.iter().count(), ranges.count());
                }
                PacketKind::TransferPages { ranges, .. } => {
                    proptest::prop_assert_eq!(ranges.iter().count(), ranges.len());
                }
                _ => {}
            }
        }
    }
}

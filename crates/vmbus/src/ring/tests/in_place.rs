//! Packets built in the ring and read where they lie.

use super::*;
use crate::packet::PacketType;

/// A whole packet: descriptor, what stands behind it, trailer; as a peer that does not play by the rules might write it.
fn raw(memory: &SharedPages, kind: u16, header8: u16, flags: u16, rest: &[u64]) {
    let len8 = 2 + rest.len() as u16;
    let mut bytes = Vec::new();
    for field in [kind, header8, len8, flags] {
        bytes.extend(field.to_le_bytes());
    }
    bytes.extend(77u64.to_le_bytes());
    bytes.extend(rest.iter().flat_map(|word| word.to_le_bytes()));
    bytes.extend([0; 8]);
    memory.write(PAGE_SIZE, &bytes).unwrap();
    poke(memory, WRITE_INDEX, bytes.len() as u32);
}

#[test]
fn a_slot_is_the_packet_that_a_stage_would_write() {
    for (given, appended) in [(0, 0), (3, 0), (0, 13), (8, 8), (5, 60), (16, 3)] {
        let whole: Vec<u8> = (1..=given + appended).collect();
        let (first, rest) = whole.split_at(usize::from(given));
        let (mut writer, mut reader, memory) = both(1);
        let mut slot = writer.reserve(&in_band(first), 100).unwrap();
        assert_eq!(slot.room(), 100);
        for piece in rest.chunks(7) {
            slot.append(piece).unwrap();
        }
        slot.finish().unwrap();
        assert!(reader.receive(&mut [0; 256]).unwrap().is_none(), "not before the commit");
        assert!(writer.commit().unwrap());
        let mut built = vec![0; 256];
        memory.read(PAGE_SIZE, &mut built).unwrap();

        let (mut writer, _, memory) = both(1);
        writer.stage(&in_band(&whole)).unwrap();
        let mut staged = vec![0; 256];
        memory.read(PAGE_SIZE, &mut staged).unwrap();
        assert_eq!(built, staged);
        let mut buffer = [0; 256];
        let packet = reader.receive(&mut buffer).unwrap().unwrap();
        assert_eq!(&packet.payload[..whole.len()], whole);
    }
}

#[test]
fn a_slot_that_is_dropped_leaves_the_ring_as_it_was() {
    let (mut writer, mut reader, _) = both(1);
    let _ = writer.reserve(&in_band(b"never"), 10).unwrap();
    writer.stage(&in_band(b"instead")).unwrap();
    writer.commit().unwrap();
    assert_eq!(reader.receive(&mut [0; 64]).unwrap().unwrap().payload, b"instead\0");
    assert!(reader.receive(&mut [0; 64]).unwrap().is_none());
    assert_eq!(writer.traffic(), Traffic { packets: 1, bytes: 32, failed: 0 });
    assert_eq!(reader.traffic(), Traffic { packets: 1, bytes: 32, failed: 0 });
}

#[test]
fn a_slot_takes_what_was_reserved_and_no_more() {
    let (mut writer, _, _) = both(1);
    let mut slot = writer.reserve(&in_band(b""), 10).unwrap();
    slot.append(&[1; 6]).unwrap();
    assert_eq!(slot.append(&[1; 5]).unwrap_err(), SlotError::Room { len: 5, room: 4 });
    slot.append(&[1; 4]).unwrap();
    slot.finish().unwrap();
    assert_eq!(writer.traffic().bytes, 40);

    let most = 4088;
    assert_eq!(
        writer.reserve(&in_band(b""), 4096 - 24).unwrap_err(),
        SendError::TooLarge { len: 4096, most }
    );
    assert!(matches!(
        writer.reserve(&in_band(b"x"), usize::MAX).unwrap_err(),
        SendError::TooLarge { .. }
    ));
    assert_eq!(
        writer.reserve(&in_band(b""), 4088 - 24).unwrap_err(),
        SendError::Full { need: 4088 }
    );
}

#[test]
fn a_slot_with_ranges_and_around_the_end() {
    let transfer = [TransferRange { byte_count: 60, byte_offset: 1806 }; 5];
    for start in (3904..4096).step_by(8) {
        let memory = memory(1);
        poke(&memory, WRITE_INDEX, start);
        poke(&memory, READ_INDEX, start);
        let mut writer = RingWriter::attach(memory.clone()).unwrap();
        let mut reader = RingReader::attach(memory).unwrap();
        reader.check_trailers(true);
        let head = Outgoing::TransferPages {
            transaction_id: 1,
            pageset: 3,
            ranges: &transfer,
            payload: b"head ",
        };
        let mut slot = writer.reserve(&head, 100).unwrap();
        slot.append(&[b'x'; 21]).unwrap();
        slot.append(b" tail").unwrap();
        slot.finish().unwrap();
        writer.stage(&in_band(b"behind")).unwrap();
        writer.commit().unwrap();

        let mut view = reader.peek().unwrap().unwrap();
        assert_eq!(view.kind(), ViewKind::TransferPages { pageset: 3 });
        assert_eq!((view.ranges_left(), view.payload_len()), (5, 32));
        for range in transfer {
            assert_eq!(view.next_range().unwrap(), Some(range));
        }
        assert_eq!(view.next_range().unwrap(), None);
        let mut message = [0xff; 40];
        assert_eq!(view.take(&mut message[..10]).unwrap(), 10);
        assert_eq!(view.take(&mut message[10..]).unwrap(), 22);
        assert_eq!(&message[..33], b"head xxxxxxxxxxxxxxxxxxxxx tail\0\xff");
        view.advance();
        assert_eq!(reader.receive(&mut [0; 64]).unwrap().unwrap().payload, b"behind\0\0");
    }
}

#[test]
fn a_view_that_is_dropped_leaves_the_packet() {
    let (mut writer, mut reader, _) = both(1);
    writer.stage(&in_band(b"look")).unwrap();
    writer.stage(&Outgoing::Completion { transaction_id: 9, payload: b"" }).unwrap();
    writer.commit().unwrap();
    for _ in 0..2 {
        let view = reader.peek().unwrap().unwrap();
        assert_eq!(view.kind(), ViewKind::InBand);
        assert!(view.completion_requested() && view.transaction_id() == 1);
    }
    assert!(!reader.commit().unwrap());
    reader.peek().unwrap().unwrap().advance();
    let mut view = reader.peek().unwrap().unwrap();
    assert_eq!((view.kind(), view.payload_len()), (ViewKind::Completion, 0));
    assert_eq!(view.take(&mut [0; 8]).unwrap(), 0);
    assert_eq!((view.next_range().unwrap(), view.next_frame().unwrap()), (None, None));
    assert_eq!(view.next_gpa_range().unwrap(), None);
    view.advance();
    assert!(reader.peek().unwrap().is_none());
    assert_eq!(reader.traffic().packets, 2);
}

#[test]
fn gpa_ranges_are_taken_with_or_without_their_frames() {
    let (mut writer, mut reader, _) = both(1);
    let frames = [Pfn(5), Pfn(9), Pfn(11)];
    let ranges = [
        GpaRange { byte_count: 5000, byte_offset: 100, frames: &frames[..2] },
        GpaRange { byte_count: 1, byte_offset: 4095, frames: &frames[2..] },
    ];
    let packet = Outgoing::GpaDirect { transaction_id: 1, ranges: &ranges, payload: b"gpa" };
    for taken in 0..=2 {
        writer.stage(&packet).unwrap();
        writer.commit().unwrap();
        let mut view = reader.peek().unwrap().unwrap();
        assert_eq!(view.kind(), ViewKind::GpaDirect);
        let first = view.next_gpa_range().unwrap().unwrap();
        assert_eq!(first, GpaRangeHead { byte_count: 5000, byte_offset: 100, frames: 2 });
        for frame in &frames[..taken] {
            assert_eq!(view.next_frame().unwrap(), Some(*frame));
        }
        let second = view.next_gpa_range().unwrap().unwrap();
        assert_eq!(second, GpaRangeHead { byte_count: 1, byte_offset: 4095, frames: 1 });
        assert_eq!(view.next_frame().unwrap(), Some(Pfn(11)));
        assert_eq!(view.next_frame().unwrap(), None);
        assert_eq!(view.next_gpa_range().unwrap(), None);
        view.advance();
    }
}

#[test]
fn contradictions_cost_the_packet_in_place_too() {
    let pair = |low: u32, high: u32| u64::from(low) | u64::from(high) << 32;
    let header = |header, packet| PacketError::HeaderLength { header, packet };
    let unranged = PacketError::Ranges { count: 0, room: 0 };
    for (kind, header8, flags, rest, expected) in [
        (6, 1, 0, &[0][..], header(8, 24)),
        (6, 4, 0, &[0], header(32, 24)),
        (6, 2, 2, &[0], PacketError::Flags(2)),
        (8, 2, 0, &[0], PacketError::UnknownType(PacketType(8))),
        (7, 2, 1, &[0], unranged),
        (9, 2, 1, &[0], unranged),
        (7, 4, 1, &[pair(1, 0), 0], PacketError::Ranges { count: 0, room: 8 }),
        (7, 4, 1, &[pair(1, 2), 0], PacketError::Ranges { count: 2, room: 8 }),
        (9, 4, 1, &[pair(1, u32::MAX), 0], PacketError::Ranges { count: u32::MAX, room: 8 }),
    ] {
        let (_, mut reader, memory) = both(1);
        reader.check_trailers(false);
        raw(&memory, kind, header8, flags, rest);
        assert_eq!(reader.peek().unwrap_err(), ReceiveError::Packet(expected));
        assert!(reader.peek().unwrap().is_none(), "skipped");
        assert_eq!(reader.traffic().failed, 1);

        let (_, mut reader, memory) = both(1);
        reader.check_trailers(false);
        raw(&memory, kind, header8, flags, rest);
        assert_eq!(reader.receive(&mut [0; 64]).unwrap_err(), ReceiveError::Packet(expected));
        assert!(reader.receive(&mut [0; 64]).unwrap().is_none(), "skipped");
        assert_eq!(reader.traffic().failed, 1);
    }
}

#[test]
fn a_gpa_range_that_does_not_fit_ends_the_ranges() {
    let pair = |low: u32, high: u32| u64::from(low) | u64::from(high) << 32;
    for (range, room) in [(pair(8193, 0), 24), (pair(1, 4096), 24), (pair(u32::MAX, u32::MAX), 24)]
    {
        let (_, mut reader, memory) = both(1);
        reader.check_trailers(false);
        raw(&memory, 9, 6, 1, &[pair(0, 2), range, 1, 2, 0x1234]);
        let mut view = reader.peek().unwrap().unwrap();
        assert_eq!(
            view.next_gpa_range().unwrap_err(),
            ReceiveError::Packet(PacketError::Ranges { count: 2, room })
        );
        assert_eq!(view.next_gpa_range().unwrap(), None);
        assert_eq!(view.next_frame().unwrap(), None);
        let mut message = [0; 8];
        assert_eq!(view.take(&mut message).unwrap(), 8);
        assert_eq!(u64::from_le_bytes(message), 0x1234);
    }
    // The second range begins where the header ends.
    let (_, mut reader, memory) = both(1);
    reader.check_trailers(false);
    raw(&memory, 9, 5, 1, &[pair(0, 2), pair(1, 0), 7]);
    let mut view = reader.peek().unwrap().unwrap();
    view.next_gpa_range().unwrap().unwrap();
    assert_eq!(
        view.next_gpa_range().unwrap_err(),
        ReceiveError::Packet(PacketError::Ranges { count: 1, room: 0 })
    );
}

#[test]
fn trailers_and_lengths_are_checked_in_place_too() {
    let (mut writer, mut reader, memory) = both(1);
    writer.stage(&in_band(&[0; 8])).unwrap();
    writer.stage(&in_band(&[0; 8])).unwrap();
    writer.commit().unwrap();
    memory.write(PAGE_SIZE + 24, &[1]).unwrap();
    assert_eq!(reader.peek().unwrap_err(), PacketError::Trailer { expected: 0, found: 1 }.into());
    memory.write(PAGE_SIZE + 32 + 4, &[9, 0]).unwrap();
    assert!(matches!(
        reader.peek().unwrap_err(),
        ReceiveError::Ring(RingError::PacketLength { packet: 72, available: 32, at: 32 })
    ));
}

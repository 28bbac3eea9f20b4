//! Packets: the parser of whole packets, and the ring's two ways to read one, against each other.

use vmbus::Pfn;
use vmbus::memory::{PAGE_SIZE, SharedMemory, SharedPages};
use vmbus::packet::{
    DESCRIPTOR_SIZE, Descriptor, GpaRange, Outgoing, Packet, PacketKind, RANGES_OFFSET,
    TransferRange,
};
use vmbus::ring::{
    PacketView, READ_INDEX, ReceiveError, RingReader, RingWriter, ViewKind, WRITE_INDEX,
};

/// Pages of data of the ring.
const PAGES: usize = 2;

/// A byte that says where in the ring the packet starts, then the packet: parsed as it is, copied out of a ring, looked at
/// in a ring, and written anew.
pub fn vmbus_packets(input: &[u8]) {
    let Some((start, bytes)) = input.split_first() else { return };
    if let Ok(packet) = Packet::parse(bytes) {
        check(&packet, bytes);
        write_again(&packet);
    }
    in_a_ring(*start, bytes);
}

/// A packet that was understood lies inside its bytes, with everything that belongs to it.
fn check(packet: &Packet<'_>, bytes: &[u8]) {
    let head = bytes.first_chunk::<DESCRIPTOR_SIZE>().expect("a descriptor");
    let descriptor = Descriptor::decode(head);
    let header = descriptor.header_len;
    assert!(descriptor.flags <= 1);
    assert_eq!(packet.completion_requested, descriptor.flags == 1);
    assert_eq!(packet.transaction_id, descriptor.transaction_id);
    assert_eq!(packet.payload, &bytes[header..]);
    let count =
        |at: usize| u32::from_le_bytes(*bytes[at..].first_chunk().expect("inside")) as usize;
    match packet.kind {
        PacketKind::InBand | PacketKind::Completion => assert!(header >= DESCRIPTOR_SIZE),
        PacketKind::TransferPages { ranges, .. } => {
            assert_eq!((ranges.len(), ranges.iter().count()), (count(20), count(20)));
            assert!(RANGES_OFFSET + 8 * ranges.len() <= header);
            for (index, range) in ranges.iter().enumerate() {
                let at = RANGES_OFFSET + 8 * index;
                assert_eq!(range.byte_count as usize, count(at));
                assert_eq!(range.byte_offset as usize, count(at + 4));
            }
        }
        PacketKind::GpaDirect(ranges) => {
            assert_eq!((ranges.count(), ranges.iter().count()), (count(20), count(20)));
            let mut end = RANGES_OFFSET;
            for range in ranges.iter() {
                let touched = u64::from(range.byte_offset) + u64::from(range.byte_count);
                assert!((range.byte_offset as usize) < PAGE_SIZE);
                assert_eq!(range.frames().len() as u64, touched.div_ceil(PAGE_SIZE as u64));
                assert_eq!(range.frames().count(), range.frames().len());
                end += 8 + 8 * range.frames().len();
            }
            assert!(end <= header, "{end} bytes of ranges in a header of {header}");
        }
    }
}

/// The ranges of guest memory in a packet.
fn gpa_ranges(packet: &Packet<'_>) -> Vec<(u32, u32, Vec<Pfn>)> {
    let PacketKind::GpaDirect(ranges) = packet.kind else { return Vec::new() };
    ranges
        .iter()
        .map(|range| (range.byte_count, range.byte_offset, range.frames().collect()))
        .collect()
}

/// The ranges of a known buffer in a packet.
fn transfer_ranges(packet: &Packet<'_>) -> Vec<TransferRange> {
    match packet.kind {
        PacketKind::TransferPages { ranges, .. } => ranges.iter().collect(),
        _ => Vec::new(),
    }
}

/// What was understood is written into a ring, and must come out of it the same.
fn write_again(packet: &Packet<'_>) {
    let Packet { transaction_id, payload, completion_requested, .. } = *packet;
    let frames = gpa_ranges(packet);
    let guest: Vec<_> = frames
        .iter()
        .map(|(byte_count, byte_offset, frames)| GpaRange {
            byte_count: *byte_count,
            byte_offset: *byte_offset,
            frames,
        })
        .collect();
    let known = transfer_ranges(packet);
    let outgoing = match packet.kind {
        PacketKind::InBand => {
            Outgoing::InBand { transaction_id, completion: completion_requested, payload }
        }
        PacketKind::Completion => Outgoing::Completion { transaction_id, payload },
        PacketKind::GpaDirect(_) => Outgoing::GpaDirect { transaction_id, ranges: &guest, payload },
        PacketKind::TransferPages { pageset, .. } => {
            Outgoing::TransferPages { transaction_id, pageset, ranges: &known, payload }
        }
    };
    let memory = ring();
    let mut writer = RingWriter::attach(memory.clone()).expect("a ring");
    let mut reader = RingReader::attach(memory).expect("a ring");
    if outgoing.ring_len() > writer.capacity() {
        assert!(writer.stage(&outgoing).is_err());
        return;
    }
    writer.stage(&outgoing).expect("room");
    writer.commit().expect("a ring");
    let mut buffer = vec![0; PAGES * PAGE_SIZE];
    let again = reader.receive(&mut buffer).expect("a legal packet").expect("a packet");
    assert_eq!(again.transaction_id, transaction_id);
    assert_eq!(again.payload.split_at(payload.len()), (payload, &[0; 8][..padding(payload.len())]));
    assert_eq!((gpa_ranges(&again), transfer_ranges(&again)), (frames, known));
    assert_eq!(std::mem::discriminant(&again.kind), std::mem::discriminant(&packet.kind));
}

fn padding(len: usize) -> usize {
    len.wrapping_neg() % 8
}

fn ring() -> SharedPages {
    SharedPages::from_heap(&[Pfn(0), Pfn(1), Pfn(2)])
}

/// The bytes lie in a ring, padded to words and with a trailer: the two ways to read them agree with each other and with the
/// parser.
fn in_a_ring(start: u8, bytes: &[u8]) {
    let size = PAGES * PAGE_SIZE;
    let mut bytes = bytes.to_vec();
    bytes.resize(bytes.len().next_multiple_of(8) + 8, 0);
    if bytes.len() >= size {
        return;
    }
    // Most starts are close enough to the end for the packet to wrap around it.
    let start = size - 8 * (1 + usize::from(start));
    let write = (start + bytes.len()) % size;
    let attach = || {
        let memory = ring();
        for (at, word) in bytes.chunks(8).enumerate() {
            memory.write(PAGE_SIZE + (start + 8 * at) % size, word).expect("inside");
        }
        memory.store_u32(READ_INDEX, start as u32).expect("inside");
        memory.store_u32(WRITE_INDEX, write as u32).expect("inside");
        RingReader::attach(memory).expect("legal indices")
    };
    let (mut copying, mut looking) = (attach(), attach());
    let mut buffer = vec![0; size];
    // What stands behind a packet is read as the next one. Each takes three words at least.
    for _ in 0..=bytes.len() / 24 {
        let copied = copying.receive(&mut buffer);
        if let Ok(Some(packet)) = &copied {
            write_again(packet);
        }
        match (copied, looking.peek()) {
            (Ok(None), Ok(None)) => return,
            (Err(ReceiveError::Ring(copied)), Err(ReceiveError::Ring(looked))) => {
                assert_eq!(copied, looked);
                return;
            }
            (Err(ReceiveError::Packet(_)), Err(ReceiveError::Packet(_))) => {}
            (copied, Ok(Some(view))) => compare(copied.as_ref(), view),
            (copied, looked) => panic!("{copied:?} and {looked:?}"),
        }
        assert_eq!(copying.traffic().bytes, looking.traffic().bytes);
    }
    panic!("more packets than there is room for");
}

/// A packet looked at is the packet that was copied; ranges that make no sense are found by the time the last was taken.
fn compare(
    copied: Result<&Option<Packet<'_>>, &ReceiveError>,
    mut view: PacketView<'_, SharedPages>,
) {
    let most = view.ranges_left();
    let (mut guest, mut known) = (Vec::new(), Vec::new());
    let mut broken = false;
    for _ in 0..=most {
        match view.next_gpa_range() {
            Ok(None) => break,
            Ok(Some(head)) => {
                let mut frames = Vec::new();
                while let Some(frame) = view.next_frame().expect("memory") {
                    frames.push(frame);
                }
                assert_eq!(frames.len(), head.frames);
                guest.push((head.byte_count, head.byte_offset, frames));
            }
            Err(error) => {
                assert!(matches!(error, ReceiveError::Packet(_)), "{error}");
                broken = true;
            }
        }
    }
    while let Some(range) = view.next_range().expect("memory") {
        known.push(range);
    }
    assert!(guest.len() <= most && known.len() <= most);
    let mut payload = vec![0; view.payload_len() + 8];
    let taken = view.take(&mut payload).expect("memory");
    assert_eq!(taken, view.payload_len());
    assert_eq!(view.take(&mut payload), Ok(0), "every byte is given once");
    match copied {
        Ok(Some(packet)) => {
            assert!(!broken, "{packet:?}");
            assert_eq!(packet.transaction_id, view.transaction_id());
            assert_eq!(packet.completion_requested, view.completion_requested());
            let pageset = match (packet.kind, view.kind()) {
                (PacketKind::InBand, ViewKind::InBand)
                | (PacketKind::Completion, ViewKind::Completion)
                | (PacketKind::GpaDirect(_), ViewKind::GpaDirect) => None,
                (
                    PacketKind::TransferPages { pageset, .. },
                    ViewKind::TransferPages { pageset: seen },
                ) => Some((pageset, seen)),
                (copied, looked) => panic!("{copied:?} and {looked:?}"),
            };
            assert!(pageset.is_none_or(|(copied, looked)| copied == looked));
            assert_eq!((gpa_ranges(packet), transfer_ranges(packet)), (guest, known));
            assert_eq!(packet.payload, &payload[..taken]);
        }
        other => assert!(broken, "{other:?} and {view:?}"),
    }
    view.advance();
}

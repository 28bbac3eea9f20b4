//! What a ring does when the other side does what it may not do.

use std::boxed::Box;

use super::fickle::{Change, Fickle};
use super::*;
use crate::memory::{PageList, SharedMemory};

/// Bytes that a peer might put there: small numbers and plausible descriptors more often than noise.
fn mischief() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        prop::collection::vec(any::<u8>(), 1..9),
        (0u32..5000).prop_map(|value| value.to_le_bytes().to_vec()),
        (0u16..12, 0u16..9, 0u16..600, 0u16..3).prop_map(|(kind, header, len, flags)| {
            [kind, header, len, flags].iter().flat_map(|field| field.to_le_bytes()).collect()
        }),
        (any::<u16>(), 0u32..70).prop_map(|(pageset, count)| {
            [u32::from(pageset), count].iter().flat_map(|field| field.to_le_bytes()).collect()
        }),
    ]
}

/// Changes before accesses that will happen: to the header page's fields or to the data.
fn changes(data: usize) -> impl Strategy<Value = Vec<Change>> {
    let offset = prop_oneof![
        prop_oneof![
            Just(WRITE_INDEX),
            Just(READ_INDEX),
            Just(PENDING_SEND_SIZE),
            Just(FEATURE_BITS)
        ],
        (0..data / 8 - 1).prop_map(|word| PAGE_SIZE + word * 8),
        (0..20usize).prop_map(|word| PAGE_SIZE + word * 8),
    ];
    let change = (0u32..120, offset, mischief()).prop_map(|(access, offset, bytes)| Change {
        access,
        offset,
        bytes,
    });
    prop::collection::vec(change, 0..20)
}

/// Whether no byte was fetched twice.
fn disjoint(mut fetched: Vec<(usize, usize)>) -> bool {
    fetched.sort_unstable();
    fetched.windows(2).all(|pair| pair[0].0 + pair[0].1 <= pair[1].0)
}

/// Everything that a packet says about itself fits together.
fn check_packet(packet: &crate::packet::Packet<'_>, buffer: usize) {
    assert!(packet.payload.len() <= buffer);
    match packet.kind {
        PacketKind::TransferPages { ranges, .. } => {
            assert!(ranges.len() > 0 && ranges.iter().count() == ranges.len());
        }
        PacketKind::GpaDirect(ranges) => {
            assert!(ranges.iter().all(|range| {
                let bytes = u64::from(range.byte_offset) + u64::from(range.byte_count);
                range.frames().len() as u64 == bytes.div_ceil(PAGE_SIZE as u64)
            }));
        }
        PacketKind::InBand | PacketKind::Completion => {}
    }
}

/// A ring with a few packets of every type in it.
fn filled(writer: &mut RingWriter<SharedPages>) {
    let frames = [Pfn(5), Pfn(9)];
    let gpa = [GpaRange { byte_count: 5000, byte_offset: 100, frames: &frames }];
    let transfer = [TransferRange { byte_count: 60, byte_offset: 1806 }; 3];
    for transaction_id in 1..4 {
        let payload: &[u8] = b"payload of some length";
        for packet in [
            Outgoing::InBand { transaction_id, completion: false, payload },
            Outgoing::TransferPages { transaction_id, pageset: 1, ranges: &transfer, payload },
            Outgoing::Completion { transaction_id, payload },
            Outgoing::GpaDirect { transaction_id, ranges: &gpa, payload },
        ] {
            writer.stage(&packet).unwrap();
        }
    }
    writer.commit().unwrap();
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    /// However the memory changes between two accesses of a reader: it copies each byte once at most, gives out nothing
    /// that contradicts itself, and never leaves the ring.
    #[test]
    fn a_reader_of_changing_memory_fetches_once_and_stays_inside(
        changes in changes(PAGE_SIZE),
        strict in any::<bool>(),
        buffer in 0usize..300,
        start in 0u32..512,
    ) {
        let memory = memory(1);
        poke(&memory, WRITE_INDEX, start * 8);
        poke(&memory, READ_INDEX, start * 8);
        filled(&mut RingWriter::attach(memory.clone()).unwrap());
        let fickle = Fickle::new(memory, changes);
        let Ok(mut reader) = RingReader::attach(fickle.clone()) else { return Ok(()) };
        reader.check_trailers(strict);
        let mut space = vec![0; buffer];
        for _ in 0..40 {
            match reader.receive(&mut space) {
                Ok(Some(packet)) => check_packet(&packet, buffer),
                Ok(None) => break,
                Err(ReceiveError::Packet(_)) => {}
                Err(ReceiveError::Ring(RingError::Memory(error))) => prop_assert!(false, "{error}"),
                Err(ReceiveError::Ring(_)) => break,
            }
            prop_assert!(disjoint(fickle.take_fetched()));
            match reader.commit() {
                Err(RingError::Memory(error)) => prop_assert!(false, "{error}"),
                Err(_) => break,
                Ok(_) => {}
            }
        }
    }

    /// The same for packets read where they lie.
    #[test]
    fn a_view_of_changing_memory_gives_each_byte_once(
        changes in changes(PAGE_SIZE),
        strict in any::<bool>(),
        pieces in 1usize..40,
        start in 0u32..512,
    ) {
        let memory = memory(1);
        poke(&memory, WRITE_INDEX, start * 8);
        poke(&memory, READ_INDEX, start * 8);
        filled(&mut RingWriter::attach(memory.clone()).unwrap());
        let fickle = Fickle::new(memory, changes);
        let Ok(mut reader) = RingReader::attach(fickle.clone()) else { return Ok(()) };
        reader.check_trailers(strict);
        for _ in 0..40 {
            match reader.peek() {
                Ok(Some(mut view)) => {
                    let mut taken = 0;
                    let mut piece = vec![0; pieces];
                    while view.next_range().unwrap().is_some() {}
                    while let Ok(Some(range)) = view.next_gpa_range() {
                        let mut frames = 0;
                        while view.next_frame().unwrap().is_some() { frames += 1; }
                        prop_assert_eq!(frames, range.frames);
                    }
                    loop {
                        let count = view.take(&mut piece).unwrap();
                        taken += count;
                        if count == 0 { break; }
                    }
                    prop_assert_eq!(taken, view.payload_len());
                    view.advance();
                }
                Ok(None) => break,
                Err(ReceiveError::Packet(_)) => {}
                Err(ReceiveError::Ring(RingError::Memory(error))) => prop_assert!(false, "{error}"),
                Err(ReceiveError::Ring(_)) => break,
            }
            prop_assert!(disjoint(fickle.take_fetched()));
        }
    }

    /// A writer looks at nothing but the two fields of its reader, and whatever they say writes inside the ring.
    #[test]
    fn a_writer_never_reads_data_and_stays_inside(
        changes in changes(PAGE_SIZE),
        sizes in prop::collection::vec(0usize..900, 1..30),
    ) {
        let fickle = Fickle::new(memory(1), changes);
        let Ok(mut writer) = RingWriter::attach(fickle.clone()) else { return Ok(()) };
        for len in sizes {
            match writer.stage(&in_band(&vec![1; len])) {
                Ok(()) | Err(SendError::Full { .. }) => {}
                Err(SendError::Ring(RingError::Index { .. } | RingError::IndexJump { .. })) => break,
                Err(error) => prop_assert!(false, "{error}"),
            }
            writer.commit().unwrap();
            let done = writer.request_space(len);
            if let Err(error) = done {
                prop_assert!(!matches!(error, RingError::Memory(_)), "{}", error);
                break;
            }
        }
        prop_assert!(fickle.take_fetched().is_empty());
    }

}

proptest! {
    /// The ways through memory in one piece, in pages and without words leave the same bytes and read the same packets.
    #[test]
    fn every_way_through_memory_is_the_same(
        sizes in prop::collection::vec((0usize..600, 0usize..20, 0u8..4), 1..60),
    ) {
        let straight = memory(2);
        let pieces = memory(2);
        let watched = Fickle::new(memory(2), Vec::new());
        // Pages that lie in another order.
        let scattered = PageList::new([2, 0, 1].map(|page| pieces.slice(page, 1).unwrap()));
        let mut ends = [
            ends(straight.clone()),
            ends(scattered.clone()),
            ends(watched.clone()),
        ];
        for (len, count, kind) in sizes {
            let payload: Vec<u8> = (0..len).map(|at| at as u8 ^ 0x5a).collect();
            let frames: Vec<_> = (0..count as u64 + 1).map(Pfn).collect();
            let byte_count = (frames.len() * PAGE_SIZE) as u32;
            let gpa = [GpaRange { byte_count, byte_offset: 0, frames: &frames }];
            let transfer = vec![TransferRange { byte_count: 9, byte_offset: 1 }; count + 1];
            let packet = match kind {
                0 => in_band(&payload),
                1 => Outgoing::Completion { transaction_id: 8, payload: &payload },
                2 => Outgoing::GpaDirect { transaction_id: 9, ranges: &gpa, payload: &payload },
                _ => Outgoing::TransferPages {
                    transaction_id: 9, pageset: 3, ranges: &transfer, payload: &payload,
                },
            };
            let seen = ends.each_mut().map(|end| end(&packet));
            prop_assert_eq!(&seen[0], &seen[1]);
            prop_assert_eq!(&seen[0], &seen[2]);
        }
        let mut bytes = [(); 3].map(|()| vec![0; 3 * PAGE_SIZE]);
        straight.read(0, &mut bytes[0]).unwrap();
        scattered.read(0, &mut bytes[1]).unwrap();
        watched.read(0, &mut bytes[2]).unwrap();
        prop_assert!(bytes[0] == bytes[1] && bytes[0] == bytes[2]);
    }
}

/// Writes a packet into the ring in `memory`, reads it back and describes it.
type End = Box<dyn FnMut(&Outgoing<'_>) -> std::string::String>;

fn ends<M: SharedMemory + Clone + 'static>(memory: M) -> End {
    let mut writer = RingWriter::attach(memory.clone()).unwrap();
    let mut reader = RingReader::attach(memory).unwrap();
    reader.check_trailers(true);
    let mut buffer = vec![0; 4096];
    Box::new(move |packet| {
        writer.stage(packet).unwrap();
        let signal = writer.commit().unwrap();
        let read = std::format!("{:?}", reader.receive(&mut buffer).unwrap());
        reader.commit().unwrap();
        std::format!("{signal} {read}")
    })
}

#[test]
fn memory_that_shrinks_is_an_error_and_nothing_worse() {
    let pages = memory(1);
    filled(&mut RingWriter::attach(pages.clone()).unwrap());
    let fickle = Fickle::new(pages, Vec::new());
    let mut reader = RingReader::attach(fickle.clone()).unwrap();
    let mut writer = RingWriter::attach(fickle.clone()).unwrap();
    let mut slot = writer.reserve(&in_band(b"slot"), 8).unwrap();
    fickle.cut(PAGE_SIZE + 8);
    let cut = |offset, len| OutOfRange { offset, len, size: PAGE_SIZE + 8 };
    assert!(matches!(slot.append(b"more"), Err(SlotError::Ring(RingError::Memory(_)))));
    assert!(matches!(slot.finish(), Err(RingError::Memory(_))));
    assert!(matches!(writer.stage(&in_band(b"")), Err(SendError::Ring(RingError::Memory(_)))));
    assert_eq!(
        reader.receive(&mut [0; 64]).unwrap_err(),
        ReceiveError::Ring(RingError::Memory(cut(PAGE_SIZE + 8, 8)))
    );
    fickle.cut(4);
    assert_eq!(reader.mask().unwrap_err(), RingError::Memory(cut_at(INTERRUPT_MASK, 4)));
    assert!(reader.unmask().is_err() && writer.request_space(8).is_err());
    assert!(RingReader::attach(fickle.clone()).is_err() && RingWriter::attach(fickle).is_err());
}

fn cut_at(offset: usize, size: usize) -> OutOfRange {
    OutOfRange { offset, len: 4, size }
}

#[test]
fn a_ring_larger_than_any_is_refused() {
    struct Huge;
    impl SharedMemory for Huge {
        fn size(&self) -> usize {
            LARGEST_RING + 2 * PAGE_SIZE
        }
        fn read(&self, _: usize, _: &mut [u8]) -> Result<(), OutOfRange> {
            unreachable!("refused before anything is read")
        }
        fn write(&self, _: usize, _: &[u8]) -> Result<(), OutOfRange> {
            unreachable!("refused before anything is written")
        }
        fn load_u32(&self, _: usize) -> Result<u32, OutOfRange> {
            unreachable!("refused before anything is read")
        }
        fn store_u32(&self, _: usize, _: u32) -> Result<(), OutOfRange> {
            unreachable!("refused before anything is written")
        }
    }
    let size = LARGEST_RING + 2 * PAGE_SIZE;
    assert_eq!(RingWriter::attach(Huge).map(drop).unwrap_err(), RingError::Size(size));
    assert_eq!(RingReader::attach(Huge).map(drop).unwrap_err(), RingError::Size(size));
}

#[test]
fn a_writer_index_that_is_impossible_when_space_is_wanted() {
    let (mut writer, mut reader, memory) = both(1);
    writer.stage(&in_band(&[0; 1000])).unwrap();
    writer.commit().unwrap();
    reader.receive(&mut [0; 1024]).unwrap().unwrap();
    poke(&memory, PENDING_SEND_SIZE, 8);
    poke(&memory, WRITE_INDEX, 4096);
    assert!(matches!(reader.commit(), Err(RingError::Index { which: "write", value: 4096, .. })));
}

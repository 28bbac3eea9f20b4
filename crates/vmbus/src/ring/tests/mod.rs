extern crate std;
use std::vec;
use std::vec::Vec;

use proptest::prelude::*;

use super::*;
use crate::Pfn;
use crate::memory::SharedPages;
use crate::packet::{GpaRange, Outgoing, PacketError, PacketKind, TransferRange};

mod faults;
mod fickle;
mod in_place;

fn memory(data_pages: u64) -> SharedPages {
    SharedPages::from_heap(&(0..=data_pages).map(Pfn).collect::<Vec<_>>())
}

fn both(data_pages: u64) -> (RingWriter<SharedPages>, RingReader<SharedPages>, SharedPages) {
    let memory = memory(data_pages);
    let writer = RingWriter::attach(memory.clone()).unwrap();
    let mut reader = RingReader::attach(memory.clone()).unwrap();
    reader.check_trailers(true);
    (writer, reader, memory)
}

fn in_band(payload: &[u8]) -> Outgoing<'_> {
    Outgoing::InBand { transaction_id: 1, completion: true, payload }
}

fn poke(memory: &SharedPages, field: usize, value: u32) {
    memory.atomic_u32(field).unwrap().store(value, Ordering::Relaxed);
}

// PROTOCOL Appendix D, first example.
#[test]
fn worked_bytes_of_an_in_band_packet() {
    let (mut writer, _, memory) = both(1);
    let mut init = [0; 40];
    init[..12].copy_from_slice(&[1, 0, 0, 0, 1, 0, 6, 0, 1, 0, 6, 0]);
    writer.stage(&in_band(&init)).unwrap();
    assert!(writer.commit().unwrap());
    let mut bytes = [0xaa; 64];
    memory.read(PAGE_SIZE, &mut bytes).unwrap();
    let mut expected = [0; 64];
    expected[..16].copy_from_slice(&[6, 0, 2, 0, 7, 0, 1, 0, 1, 0, 0, 0, 0, 0, 0, 0]);
    expected[16..28].copy_from_slice(&init[..12]);
    assert_eq!(bytes, expected);
    assert_eq!(memory.atomic_u32(WRITE_INDEX).unwrap().load(Ordering::Relaxed), 64);
    assert_eq!(memory.atomic_u32(FEATURE_BITS).unwrap().load(Ordering::Relaxed), 1);
}

#[test]
fn every_type_survives_the_ring() {
    let (mut writer, mut reader, _) = both(1);
    let frames = [Pfn(5), Pfn(9)];
    let gpa = [GpaRange { byte_count: 5000, byte_offset: 100, frames: &frames }];
    let transfer = [TransferRange { byte_count: 60, byte_offset: 1806 }];
    for packet in [
        in_band(b"in band"),
        Outgoing::Completion { transaction_id: 1, payload: b"" },
        Outgoing::GpaDirect { transaction_id: 1, ranges: &gpa, payload: b"gpa" },
        Outgoing::TransferPages {
            transaction_id: 1,
            pageset: 3,
            ranges: &transfer,
            payload: b"pages",
        },
    ] {
        writer.stage(&packet).unwrap();
    }
    writer.commit().unwrap();
    let mut buffer = [0; 256];
    assert_eq!(reader.receive(&mut buffer).unwrap().unwrap().payload, b"in band\0");
    let done = reader.receive(&mut buffer).unwrap().unwrap();
    assert!(matches!(done.kind, PacketKind::Completion) && done.payload.is_empty());
    let PacketKind::GpaDirect(ranges) = reader.receive(&mut buffer).unwrap().unwrap().kind else {
        panic!()
    };
    let range = ranges.iter().next().unwrap();
    assert_eq!((range.byte_count, range.byte_offset), (5000, 100));
    assert_eq!(range.frames().collect::<Vec<_>>(), frames);
    let PacketKind::TransferPages { pageset, ranges } =
        reader.receive(&mut buffer).unwrap().unwrap().kind
    else {
        panic!()
    };
    assert_eq!((pageset, ranges.iter().next()), (3, Some(transfer[0])));
    assert!(reader.receive(&mut buffer).unwrap().is_none());
}

#[test]
fn a_ring_is_never_filled_completely() {
    let (mut writer, mut reader, _) = both(1);
    // 4096 bytes of data: one packet of 4088 with descriptor and trailer, and 8 bytes stay free.
    let longest = vec![1; 4096 - 8 - 24];
    let mut too_long = longest.clone();
    too_long.push(1);
    assert_eq!(
        writer.stage(&in_band(&too_long)).unwrap_err(),
        SendError::TooLarge { len: 4096, most: 4088 }
    );
    writer.stage(&in_band(&longest)).unwrap();
    assert_eq!(writer.stage(&in_band(b"")).unwrap_err(), SendError::Full { need: 24 });
    writer.commit().unwrap();
    assert_eq!(reader.receive(&mut vec![0; 4096]).unwrap().unwrap().payload, longest);
    assert_eq!(
        writer.stage(&in_band(b"")).unwrap_err(),
        SendError::Full { need: 24 },
        "not published"
    );
    reader.commit().unwrap();
    writer.stage(&in_band(b"")).unwrap();
}

// HISTORY 70.
#[test]
fn impossible_indices_break_the_ring_and_nothing_else() {
    for value in [4096, 3, u32::MAX, 4100] {
        let (_, mut reader, memory) = both(1);
        poke(&memory, WRITE_INDEX, value);
        let expected = RingError::Index { which: "write", value, size: 4096 };
        assert_eq!(reader.receive(&mut [0; 64]).unwrap_err(), expected.into());

        let (mut writer, _, memory) = both(1);
        writer.stage(&in_band(&[0; 4000])).unwrap();
        poke(&memory, READ_INDEX, value);
        let expected = RingError::Index { which: "read", value, size: 4096 };
        assert_eq!(writer.stage(&in_band(&[0; 100])).unwrap_err(), expected.into());
    }
}

#[test]
fn indices_that_pass_our_own_break_the_ring() {
    let (mut writer, mut reader, memory) = both(1);
    writer.stage(&in_band(&[0; 1000])).unwrap();
    writer.commit().unwrap();
    poke(&memory, READ_INDEX, 2048);
    assert!(matches!(writer.request_space(4000), Err(RingError::IndexJump { which: "read", .. })));

    reader.receive(&mut [0; 2000]).unwrap().unwrap();
    reader.commit().unwrap();
    poke(&memory, WRITE_INDEX, 1024);
    poke(&memory, WRITE_INDEX, 2048);
    assert!(matches!(
        reader.receive(&mut [0; 64]).unwrap_err(),
        ReceiveError::Ring(RingError::PacketLength { packet: 0, .. })
    ));
    poke(&memory, WRITE_INDEX, 1032);
    assert!(matches!(reader.unmask(), Err(RingError::IndexJump { which: "write", .. })));
}

#[test]
fn lengths_beyond_the_ring_break_it() {
    for len8 in [0u16, 1, 6, u16::MAX] {
        let (mut writer, mut reader, memory) = both(1);
        writer.stage(&in_band(&[0; 8])).unwrap();
        writer.commit().unwrap();
        memory.write(PAGE_SIZE + 4, &len8.to_le_bytes()).unwrap();
        assert!(matches!(
            reader.receive(&mut [0; 64]).unwrap_err(),
            ReceiveError::Ring(RingError::PacketLength { available: 32, .. })
        ));
    }
}

#[test]
fn a_bad_packet_costs_that_packet() {
    let (mut writer, mut reader, memory) = both(1);
    writer.stage(&in_band(&[0; 8])).unwrap();
    writer.stage(&in_band(b"next one")).unwrap();
    writer.commit().unwrap();
    memory.write(PAGE_SIZE, &[8]).unwrap();
    let error = reader.receive(&mut [0; 64]).unwrap_err();
    assert!(matches!(error, ReceiveError::Packet(PacketError::UnknownType(_))));
    assert_eq!(reader.receive(&mut [0; 64]).unwrap().unwrap().payload, b"next one");
}

#[test]
fn a_wrong_trailer_and_a_small_buffer_cost_the_packet() {
    let (mut writer, mut reader, memory) = both(1);
    writer.stage(&in_band(&[0; 8])).unwrap();
    writer.stage(&in_band(&[0; 64])).unwrap();
    writer.stage(&in_band(b"next one")).unwrap();
    writer.commit().unwrap();
    memory.write(PAGE_SIZE + 24, &[1]).unwrap();
    let error = reader.receive(&mut [0; 64]).unwrap_err();
    assert_eq!(error, PacketError::Trailer { expected: 0, found: 1 }.into());
    let error = reader.receive(&mut [0; 60]).unwrap_err();
    assert_eq!(error, PacketError::TooLarge { packet: 80, buffer: 60 }.into());
    assert_eq!(reader.receive(&mut [0; 64]).unwrap().unwrap().payload, b"next one");
}

#[test]
fn signal_after_read_only_when_the_wish_is_crossed() {
    // (wish of the writer, whether reading the first and the second of four 1000-byte packets signals)
    for (wish, signals) in [
        (0, [false, false]),
        (1096, [false, true]),
        (1095, [true, false]),
        (2000, [false, true]),
        (4095, [false, false]),
    ] {
        let (mut writer, mut reader, memory) = both(1);
        for _ in 0..4 {
            writer.stage(&in_band(&[0; 976])).unwrap();
        }
        writer.commit().unwrap();
        poke(&memory, PENDING_SEND_SIZE, wish);
        let seen = [(); 2].map(|()| {
            reader.receive(&mut [0; 1024]).unwrap().unwrap();
            reader.commit().unwrap()
        });
        // 96 bytes free at first, 1096 after one packet, 2096 after two.
        assert_eq!(seen, signals, "wish {wish}");
    }
}

#[test]
fn a_writer_without_the_feature_bit_is_not_signalled() {
    let (mut writer, mut reader, memory) = both(1);
    writer.stage(&in_band(&[0; 4000])).unwrap();
    writer.commit().unwrap();
    poke(&memory, PENDING_SEND_SIZE, 1000);
    poke(&memory, FEATURE_BITS, 0);
    reader.receive(&mut [0; 4096]).unwrap().unwrap();
    assert!(!reader.commit().unwrap());
}

#[test]
fn memory_that_cannot_be_a_ring_is_refused() {
    let one = SharedPages::from_heap(&[Pfn(0)]);
    assert_eq!(RingWriter::attach(one).unwrap_err(), RingError::Size(4096));
}

proptest! {
    /// Any sequence of packet sizes survives any ring size, wrap and batch pattern.
    #[test]
    fn packets_survive_wraps_and_batches(
        pages in 1u64..4,
        sizes in prop::collection::vec((0usize..700, 1usize..5, 1usize..5), 1..200),
    ) {
        let (mut writer, mut reader, _) = both(pages);
        let mut buffer = vec![0; 8192];
        let (mut sent, mut seen) = (0u64, 0u64);
        let body = |id: u64, len: usize| -> Vec<u8> { (0..len).map(|at| (id as usize * 31 + at) as u8).collect() };
        let mut lens = Vec::new();
        for (len, batch, reads) in sizes {
            for _ in 0..batch {
                let payload = body(sent, len);
                match writer.stage(&Outgoing::InBand { transaction_id: sent, completion: false, payload: &payload }) {
                    Ok(()) => {
                        lens.push(len);
                        sent += 1;
                    }
                    Err(SendError::Full { .. }) => break,
                    Err(error) => prop_assert!(false, "{error}"),
                }
            }
            writer.commit().unwrap();
            for _ in 0..reads {
                let Some(packet) = reader.receive(&mut buffer).unwrap() else { break };
                prop_assert_eq!(packet.transaction_id, seen);
                let len = lens[seen as usize];
                prop_assert_eq!(&packet.payload[..len], &body(seen, len)[..]);
                prop_assert!(packet.payload[len..].iter().all(|byte| *byte == 0));
                seen += 1;
            }
            reader.commit().unwrap();
        }
        while let Some(packet) = reader.receive(&mut buffer).unwrap() {
            prop_assert_eq!(packet.transaction_id, seen);
            seen += 1;
        }
        prop_assert_eq!(seen, sent);
    }
}

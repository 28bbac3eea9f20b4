extern crate std;
use std::vec;

use proptest::prelude::*;

use super::*;
use crate::message::{Message, Side, Version};

fn range(byte_count: u32, byte_offset: u32, frames: &[Pfn]) -> GpaRange<'_> {
    GpaRange { byte_count, byte_offset, frames }
}

fn frames(count: u64) -> Vec<Pfn> {
    (0..count).map(|frame| Pfn(3 * frame + 7)).collect()
}

fn encode(ranges: &[GpaRange<'_>]) -> Result<Vec<Payload>, EncodeError> {
    Ok(GpadlMessages::new(ChannelId(5), GpadlId(9), ranges)?.collect())
}

fn decode(messages: &[Payload]) -> Result<Option<Vec<Range>>, DecodeError> {
    let mut assembler = None::<GpadlAssembler>;
    for message in messages {
        match Message::parse(message, Side::Guest, Version::ANY).unwrap() {
            (Message::GpadlHeader(header), data) => {
                assembler = Some(GpadlAssembler::new(header, data)?);
            }
            (Message::GpadlBody(body), data) => {
                assert_eq!(body.gpadl.get(), 9);
                assembler.as_mut().unwrap().add(data)?;
            }
            (other, _) => panic!("{other:?}"),
        }
    }
    assembler.unwrap().ranges()
}

fn header(range_bytes: u16, range_count: u16) -> GpadlHeader {
    GpadlHeader {
        channel: U32::new(5),
        gpadl: U32::new(9),
        range_bytes: U16::new(range_bytes),
        range_count: U16::new(range_count),
    }
}

fn words(words: &[u64]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

#[test]
fn the_worked_example_has_its_bytes() {
    let frames = [Pfn(0x100), Pfn(0x101), Pfn(0x205)];
    let ranges = [range(0x3000, 0, &frames)];
    let mut messages = GpadlMessages::new(ChannelId(5), GpadlId(0xe1e10), &ranges).unwrap();
    let expected = [
        0x08, 0, 0, 0, 0, 0, 0, 0, 0x05, 0, 0, 0, 0x10, 0x1e, 0x0e, 0, //
        0x20, 0, 0x01, 0, 0, 0x30, 0, 0, 0, 0, 0, 0, 0, 0x01, 0, 0, //
        0, 0, 0, 0, 0x01, 0x01, 0, 0, 0, 0, 0, 0, 0x05, 0x02, 0, 0, //
        0, 0, 0, 0,
    ];
    assert_eq!(messages.next().unwrap()[..], expected);
    assert_eq!(messages.next(), None);
}

#[test]
fn the_header_holds_26_frames_and_a_body_28() {
    for (pages, messages) in [(1, 1), (26, 1), (27, 2), (54, 2), (55, 3), (4096, 147)] {
        let frames = frames(pages);
        let sent = encode(&[range(pages as u32 * 4096, 0, &frames)]).unwrap();
        assert_eq!(sent.len(), messages, "{pages} pages");
        assert!(sent.iter().all(|message| message.len() <= 240));
        assert_eq!(decode(&sent).unwrap().unwrap()[0].frames, frames);
    }
}

#[test]
fn a_range_may_begin_anywhere_in_a_message() {
    let (one, two) = (frames(26), frames(30));
    let sent = encode(&[range(26 * 4096, 0, &one), range(28 * 4096 + 2, 4095, &two)]).unwrap();
    let ranges = decode(&sent).unwrap().unwrap();
    assert_eq!(ranges[0].frames, one);
    assert!(ranges[0].is_whole_pages() && !ranges[1].is_whole_pages());
    assert_eq!((ranges[1].byte_count, ranges[1].byte_offset), (28 * 4096 + 2, 4095));
    assert_eq!(ranges[1].frames, two);
}

#[test]
fn memory_that_cannot_be_described_is_refused() {
    let one = frames(1);
    let id = |id| GpadlMessages::new(ChannelId(5), GpadlId(id), &[]).map(|_| ());
    assert_eq!(id(0), Err(EncodeError::ZeroId));
    assert_eq!(id(1), Err(EncodeError::NoRanges));
    let bad = |byte_count, byte_offset| EncodeError::BadRange { range: 0, byte_count, byte_offset };
    assert_eq!(encode(&[range(0, 0, &[])]), Err(bad(0, 0)));
    assert_eq!(encode(&[range(1, 4096, &one)]), Err(bad(1, 4096)));
    assert_eq!(
        encode(&[range(4096, 1, &one)]),
        Err(EncodeError::FrameCount { range: 0, need: 2, got: 1 })
    );
    let most = frames(MAX_PAGES as u64 + 1);
    assert_eq!(
        encode(&[range((MAX_PAGES as u32 + 1) * 4096, 0, &most)]),
        Err(EncodeError::TooLarge { bytes: 65536 })
    );
    assert!(encode(&[range(MAX_PAGES as u32 * 4096, 0, &most[1..])]).is_ok());
}

#[test]
fn headers_that_contradict_themselves_are_refused() {
    let start = |header, data: &[u8]| GpadlAssembler::new(&header, data).map(|_| ()).unwrap_err();
    let zero = GpadlHeader { gpadl: U32::new(0), ..header(16, 1) };
    assert_eq!(start(zero, &[0; 16]), DecodeError::ZeroId);
    assert_eq!(start(header(16, 0), &[0; 16]), DecodeError::NoRanges);
    assert_eq!(start(header(17, 1), &[0; 16]), DecodeError::Ragged { bytes: 17 });
    assert_eq!(start(header(24, 2), &[0; 24]), DecodeError::TooShort { ranges: 2, bytes: 24 });
    assert_eq!(start(header(16, 1), &[0; 12]), DecodeError::SplitWord { len: 12 });
    assert_eq!(start(header(16, 1), &[]), DecodeError::Empty { missing: 16 });
    assert_eq!(start(header(16, 1), &[0; 24]), DecodeError::Overflow { len: 24, missing: 16 });
}

#[test]
fn bodies_may_not_bring_more_than_announced_or_nothing() {
    let mut assembler = GpadlAssembler::new(&header(24, 1), &words(&[0x2000])).unwrap();
    assert_eq!(assembler.ranges(), Ok(None));
    assert_eq!(assembler.add(&[]), Err(DecodeError::Empty { missing: 16 }));
    assert_eq!(assembler.add(&[0; 24]), Err(DecodeError::Overflow { len: 24, missing: 16 }));
    assert_eq!(assembler.add(&[0; 4]), Err(DecodeError::SplitWord { len: 4 }));
    assembler.add(&[0; 16]).unwrap();
    assert_eq!(assembler.add(&[]), Err(DecodeError::Empty { missing: 0 }));
    assert_eq!(assembler.ranges().unwrap().unwrap().len(), 1);
}

#[test]
fn ranges_that_contradict_themselves_are_refused() {
    let parse = |count: u16, data: &[u64]| {
        let header = header(8 * data.len() as u16, count);
        GpadlAssembler::new(&header, &words(data)).unwrap().ranges().unwrap_err()
    };
    let bad = |byte_count, byte_offset| DecodeError::BadRange { range: 0, byte_count, byte_offset };
    assert_eq!(parse(1, &[0, 1]), bad(0, 0));
    assert_eq!(parse(1, &[4096 << 32 | 1, 1]), bad(1, 4096));
    let count = |range, need, got| DecodeError::FrameCount { range, need, got };
    assert_eq!(parse(1, &[0x2000, 1]), count(0, 2, 1));
    assert_eq!(parse(1, &[0xffff_ffff, 1]), count(0, 1 << 20, 1));
    assert_eq!(parse(2, &[0x3000, 1, 2, 3]), count(1, 1, 0));
    assert_eq!(parse(1, &[0x1000, 1, 2]), DecodeError::LeftOver { words: 1 });
}

prop_compose! {
    fn any_range()(offset in 0u32..4096, count in 1u32..400_000, seed in any::<u64>()) -> Range {
        let pages = pages_touched(offset, count) as u64;
        let frames = (0..pages).map(|page| Pfn(page.wrapping_mul(seed) ^ seed)).collect();
        Range { byte_count: count, byte_offset: offset, frames }
    }
}

proptest! {
    #[test]
    fn what_is_written_is_read(ranges in proptest::collection::vec(any_range(), 1..6)) {
        let refs: Vec<_> =
            ranges.iter().map(|r| range(r.byte_count, r.byte_offset, &r.frames)).collect();
        prop_assert_eq!(decode(&encode(&refs).unwrap()).unwrap().unwrap(), ranges);
    }

    #[test]
    fn no_data_makes_the_assembler_fall(
        bytes in any::<u16>(), count in any::<u16>(),
        parts in proptest::collection::vec(proptest::collection::vec(0u64..9000, 0..29), 1..5),
    ) {
        let mut parts = parts.iter().map(|part| words(part));
        let first = parts.next().unwrap_or(vec![]);
        if let Ok(mut assembler) = GpadlAssembler::new(&header(bytes, count), &first) {
            for part in parts {
                let _ = assembler.add(&part);
            }
            let _ = assembler.ranges();
        }
    }
}

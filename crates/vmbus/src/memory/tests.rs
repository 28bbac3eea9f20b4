extern crate std;
use std::vec;
use std::vec::Vec;

use super::*;
use crate::Pfn;

fn pages(count: u64) -> SharedPages {
    SharedPages::from_heap(&(0..count).map(Pfn).collect::<Vec<_>>())
}

#[test]
fn copies_of_every_alignment_and_length_come_back() {
    let memory = pages(1);
    for offset in 0..17 {
        for len in (0..40).chain(120..350) {
            memory.fill(0xee);
            let data: Vec<u8> = (0..len).map(|byte| byte as u8 | 1).collect();
            memory.write(offset, &data).unwrap();
            let mut back = vec![0; len + 2];
            memory.read(offset.saturating_sub(1), &mut back).unwrap();
            let lead = usize::from(offset > 0);
            assert_eq!(&back[lead..lead + len], &data[..], "offset {offset} len {len}");
            if lead == 1 {
                assert_eq!((back[0], back[len + 1]), (0xee, 0xee), "neighbours untouched");
            }
        }
    }
}

#[test]
fn accesses_outside_are_refused() {
    let memory = pages(1);
    assert!(memory.read(PAGE_SIZE, &mut [0]).is_err());
    assert!(memory.write(PAGE_SIZE - 1, &[0, 0]).is_err());
    assert!(memory.write(usize::MAX, &[0]).is_err());
    assert!(memory.load_u32(2).is_err() && memory.store_u32(2, 0).is_err());
    assert!(memory.load_u32(PAGE_SIZE).is_err());
    assert!(memory.words(4).is_empty() && memory.words(PAGE_SIZE + 8).is_empty());
    assert!(memory.words(PAGE_SIZE).is_empty());
    assert_eq!(memory.words(PAGE_SIZE - 16).len(), 2);
    assert!(memory.read(PAGE_SIZE, &mut []).is_ok());
}

#[test]
fn slices_share_memory_and_frames() {
    let whole = pages(4);
    let part = whole.slice(1, 2).unwrap().slice(1, 1).unwrap();
    assert_eq!(part.frames(), &[Pfn(2)]);
    part.write(0, b"here").unwrap();
    let mut back = [0; 4];
    whole.read(2 * PAGE_SIZE, &mut back).unwrap();
    assert_eq!(&back, b"here");
    assert!(whole.slice(3, 2).is_none() && whole.slice(usize::MAX, 1).is_none());
}

#[test]
fn memory_goes_with_its_last_view() {
    let whole = pages(2);
    let weak = whole.downgrade();
    let view = whole.slice(1, 1).unwrap();
    drop(whole);
    assert!(weak.upgrade().is_some());
    drop(view);
    assert!(weak.upgrade().is_none());
}

#[test]
fn page_list_joins_scattered_pages() {
    let whole = pages(3);
    let list = PageList::new([whole.slice(2, 1).unwrap(), whole.slice(0, 1).unwrap()]);
    list.write(PAGE_SIZE - 2, b"abcd").unwrap();
    let mut back = [0; 4];
    list.read(PAGE_SIZE - 2, &mut back).unwrap();
    assert_eq!(&back, b"abcd");
    let mut direct = [0; 2];
    whole.read(0, &mut direct).unwrap();
    assert_eq!(&direct, b"cd");
    assert!(list.write(2 * PAGE_SIZE - 1, b"ab").is_err());
    list.store_u32(PAGE_SIZE, 5).unwrap();
    assert_eq!((list.load_u32(PAGE_SIZE).unwrap(), list.words(PAGE_SIZE - 8).len()), (5, 1));
    assert!(list.load_u32(2 * PAGE_SIZE).is_err() && list.words(2 * PAGE_SIZE).is_empty());
    whole.read(0, &mut direct).unwrap();
    assert_eq!(direct, [5, 0]);
}

#[test]
fn a_doubly_mapped_ring_has_a_header_and_its_data_twice() {
    for (count, size) in [(1, None), (2, None), (3, Some(2)), (4, None), (9, Some(5))] {
        let memory = DoublyMapped::new(pages(count));
        assert_eq!(memory.map(|memory| memory.size() / PAGE_SIZE), size, "{count} pages");
    }
    let memory = DoublyMapped::new(pages(3)).unwrap();
    assert_eq!((memory.words(PAGE_SIZE).len(), memory.whole().len()), (1024, 1536));
}

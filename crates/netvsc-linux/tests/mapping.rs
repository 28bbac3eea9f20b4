//! Rings whose data the kernel maps twice.

use std::os::fd::OwnedFd;

use netvsc_linux::mapping::map_ring;
use proptest::prelude::*;
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use rustix::io::Errno;
use vmbus::memory::{DoublyMapped, PAGE_SIZE, SharedMemory};

#[path = "../../vmbus/tests/sequences/model.rs"]
mod model;
use model::{World, begin_at, drive, steps};

fn file(pages: u64) -> OwnedFd {
    let file = memfd_create("ring", MemfdFlags::CLOEXEC).unwrap();
    ftruncate(&file, pages * PAGE_SIZE as u64).unwrap();
    file
}

fn ring(data_pages: usize, start: u32) -> DoublyMapped {
    let memory = map_ring(file(1 + data_pages as u64), 0, data_pages).unwrap();
    begin_at(&memory, start);
    memory
}

#[test]
fn the_second_copy_is_the_first() {
    let file = file(8);
    let memory = map_ring(&file, 3 * PAGE_SIZE as u64, 4).unwrap();
    assert_eq!(memory.size(), 5 * PAGE_SIZE);
    memory.write(PAGE_SIZE, b"start of data").unwrap();
    let mut seen = [0; 13];
    memory.read(5 * PAGE_SIZE, &mut seen).unwrap();
    assert_eq!(&seen, b"start of data");
    // A peer that maps the file by itself sees the same, and what wraps arrives at the start.
    let peer = map_ring(&file, 3 * PAGE_SIZE as u64, 4).unwrap();
    memory.write(5 * PAGE_SIZE - 4, b"this wraps").unwrap();
    peer.read(PAGE_SIZE, &mut seen[..6]).unwrap();
    assert_eq!(&seen[..6], b" wraps");
}

#[test]
fn what_cannot_be_a_ring_is_refused() {
    assert_eq!(map_ring(file(2), 0, 0).unwrap_err(), Errno::INVAL);
    assert_eq!(map_ring(file(2), 0, usize::MAX / 4).unwrap_err(), Errno::INVAL);
    assert_eq!(map_ring(file(2), 5, 1).unwrap_err(), Errno::INVAL);
    assert_eq!(map_ring(file(2), 0, usize::MAX / PAGE_SIZE / 2 - 1).unwrap_err(), Errno::NOMEM);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    #[test]
    fn any_sequence_survives_a_doubly_mapped_ring(
        pages in 1usize..5,
        start in any::<u32>(),
        steps in steps(),
    ) {
        let [up, down] = [ring(pages, start), ring(1, start / 3)];
        let far = [up.clone(), down.clone()];
        drive(World::new([up, down], far), &steps);
    }
}

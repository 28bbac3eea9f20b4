//! Any sequence of packets, in every way to write and to read them, through rings of any size.

use proptest::prelude::*;
use vmbus::memory::{PageList, SharedPages};
use vmbus::packet::Outgoing;
use vmbus::{Channel, Doorbell, Pfn};

mod model;
use model::{World, begin_at, drive, steps};

/// A ring whose reader and writer stand at the word `start` of so many pages of data.
fn ring(pages: u64, start: u32) -> SharedPages {
    let memory = SharedPages::from_heap(&(0..=pages).map(Pfn).collect::<Vec<_>>());
    begin_at(&memory, start);
    memory
}

/// The same memory as its peer sees it: every page by itself.
fn scattered(memory: &SharedPages) -> PageList {
    PageList::new((0..memory.pages()).filter_map(|page| memory.slice(page, 1)))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn any_sequence_survives_any_ring(
        pages in 1u64..6,
        start in any::<u32>(),
        steps in steps(),
    ) {
        let [up, down] = [ring(pages, start), ring(1, start / 3)];
        let far = [up.clone(), down.clone()];
        drive(World::new([up, down], far), &steps);
    }

    #[test]
    fn any_sequence_survives_scattered_pages(
        pages in 1u64..4,
        start in any::<u32>(),
        near_scattered in any::<bool>(),
        steps in steps(),
    ) {
        let [up, down] = [ring(pages, start), ring(1, start / 3)];
        let pieces = [scattered(&up), scattered(&down)];
        match near_scattered {
            true => drive(World::new(pieces, [up, down]), &steps),
            false => drive(World::new([up, down], pieces), &steps),
        }
    }
}

/// Rings nobody hears are counted all the same.
#[test]
fn the_counters_do_not_depend_on_the_doorbell() {
    struct Deaf;
    impl Doorbell for Deaf {
        fn ring(&self) {}
    }
    let [up, down] = [ring(1, 0), ring(1, 0)];
    let mut near = Channel::from_parts(up, down, Deaf).unwrap();
    for transaction_id in 1..=3 {
        near.try_send(&Outgoing::Completion { transaction_id, payload: &[] }).unwrap();
    }
    let stats = near.stats();
    assert_eq!((stats.signals, stats.signals_suppressed), (1, 2));
}

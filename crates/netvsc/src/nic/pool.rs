//! Slots of the send buffer that no queue holds.
//!
//! Every queue belongs to one thread; this is what they share. It is a bitmap of atomics, without locks: a queue takes some
//! slots and keeps them until it has more than it needs.

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::ops::Range;
use core::sync::atomic::{AtomicUsize, Ordering};

const BITS: usize = usize::BITS as usize;

/// A bit for each slot from `first` on; set while nobody has it.
#[derive(Debug)]
pub(super) struct Pool {
    first: u32,
    words: Box<[AtomicUsize]>,
}

impl Pool {
    /// All of these slots, free.
    pub(super) fn new(slots: Range<u32>) -> Self {
        let count = slots.len();
        let word = |at: usize| {
            let bits = (count - at * BITS).min(BITS);
            AtomicUsize::new(usize::MAX >> (BITS - bits))
        };
        Self { first: slots.start, words: (0..count.div_ceil(BITS)).map(word).collect() }
    }

    /// Takes up to `most` slots, which may be none. `into` has room for them.
    pub(super) fn take(&self, into: &mut Vec<u32>, most: usize) {
        let mut wanted = most;
        for (at, word) in self.words.iter().enumerate() {
            while wanted > 0 {
                let free = word.load(Ordering::Relaxed);
                if free == 0 {
                    break;
                }
                let bit = free.trailing_zeros();
                // Whoever gives a slot back has written to it before; it may be written to again only after that.
                if word.fetch_and(!(1 << bit), Ordering::Acquire) >> bit & 1 == 1 {
                    into.push(self.first + (at * BITS) as u32 + bit);
                    wanted -= 1;
                }
            }
        }
    }

    /// Gives a slot back that was taken from here.
    pub(super) fn give(&self, slot: u32) {
        let at = slot.wrapping_sub(self.first) as usize;
        if let Some(word) = self.words.get(at / BITS) {
            word.fetch_or(1 << (at % BITS), Ordering::Release);
        }
    }

    /// How many are free; while others take and give, about so many.
    pub(super) fn count_free(&self) -> usize {
        self.words.iter().map(|word| word.load(Ordering::Relaxed).count_ones() as usize).sum()
    }

    /// Whether there may be a free one.
    pub(super) fn has_free(&self) -> bool {
        self.words.iter().any(|word| word.load(Ordering::Relaxed) != 0)
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use std::sync::Arc;
    use std::{thread, vec};

    #[test]
    fn every_slot_is_given_out_once() {
        let pool = Pool::new(1..131);
        let mut taken = vec![];
        pool.take(&mut taken, 100);
        assert_eq!(taken.len(), 100);
        pool.take(&mut taken, 100);
        taken.sort_unstable();
        assert_eq!(taken, (1..131).collect::<Vec<_>>());
        assert!(!pool.has_free());
        pool.give(130);
        let mut again = vec![];
        pool.take(&mut again, 2);
        assert_eq!(again, [130]);
    }

    #[test]
    fn an_empty_pool_has_nothing() {
        let pool = Pool::new(5..5);
        let mut taken = vec![];
        pool.take(&mut taken, 1);
        pool.give(5);
        assert!(taken.is_empty() && !pool.has_free());
    }

    #[test]
    fn threads_never_hold_the_same_slot() {
        let pool = Arc::new(Pool::new(0..70));
        let held: Arc<Vec<AtomicUsize>> = Arc::new((0..70).map(|_| AtomicUsize::new(0)).collect());
        let work = |seed: usize| {
            let (pool, held) = (pool.clone(), held.clone());
            move || {
                for round in 0..2000 {
                    let mut mine = vec![];
                    pool.take(&mut mine, (seed + round) % 40);
                    for slot in &mine {
                        assert_eq!(held[*slot as usize].fetch_add(1, Ordering::Relaxed), 0);
                    }
                    for slot in mine {
                        held[slot as usize].fetch_sub(1, Ordering::Relaxed);
                        pool.give(slot);
                    }
                }
            }
        };
        let threads: Vec<_> = (0..3).map(|seed| thread::spawn(work(seed))).collect();
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        let mut all = vec![];
        pool.take(&mut all, 100);
        assert_eq!(all.len(), 70);
    }
}

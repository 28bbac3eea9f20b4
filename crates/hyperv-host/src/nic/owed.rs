//! Completions of data messages that the guest still waits for.

use std::collections::VecDeque;

use netvsc::nvsp::Status;
use rand_core::{Rng, SeedableRng};
use rand_xoshiro::Xoshiro256PlusPlus;
use vmbus::Instant;

use super::policy::SendOrder;

#[derive(Clone, Copy, Debug)]
struct Completion {
    due: Instant,
    transaction: u64,
    status: Status,
}

/// Completions in the order of their messages, which is that of their moments.
#[derive(Debug, Default)]
pub(super) struct Owed {
    waiting: VecDeque<Completion>,
    /// Of those in front, so many are due.
    due: usize,
    random: Option<Xoshiro256PlusPlus>,
}

impl Owed {
    pub(super) fn push(&mut self, transaction: u64, status: Status, due: Instant) {
        // A delay that gets shorter never overtakes.
        let due = self.waiting.back().map_or(due, |last| due.max(last.due));
        self.waiting.push_back(Completion { due, transaction, status });
    }

    pub(super) fn len(&self) -> usize {
        self.waiting.len()
    }

    /// Nothing waits for its time any more.
    pub(super) fn hurry(&mut self) {
        self.waiting.iter_mut().for_each(|completion| completion.due = Instant::ZERO);
    }

    /// The next completion that is due.
    pub(super) fn take(&mut self, now: Instant, order: SendOrder) -> Option<(u64, Status)> {
        while self.waiting.get(self.due).is_some_and(|completion| completion.due <= now) {
            self.due += 1;
        }
        let last = self.due.checked_sub(1)?;
        let taken = match order {
            SendOrder::InOrder => self.waiting.pop_front(),
            SendOrder::NewestFirst => self.waiting.remove(last),
            SendOrder::Shuffled(seed) => {
                let seeded = || Xoshiro256PlusPlus::seed_from_u64(seed);
                let random = self.random.get_or_insert_with(seeded).next_u64();
                // Any of them changes places with the first.
                self.waiting.swap(0, usize::try_from(random % self.due as u64).unwrap_or(0));
                self.waiting.pop_front()
            }
        };
        self.due -= 1;
        taken.map(|completion| (completion.transaction, completion.status))
    }

    /// When the next completion is due that was not at `seen`.
    pub(super) fn poll_deadline(&self, seen: Instant) -> Option<Instant> {
        self.waiting.get(self.due).map(|completion| completion.due).filter(|due| *due > seen)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(nanos: u64) -> Instant {
        Instant::from_nanos(nanos)
    }

    fn order(order: SendOrder) -> Vec<u64> {
        let mut owed = Owed::default();
        (0..10).for_each(|id| owed.push(id, Status::SUCCESS, at(10 + id * 10)));
        assert_eq!(owed.poll_deadline(at(0)), Some(at(10)));
        let mut taken = Vec::new();
        for now in [55, 100] {
            while let Some((id, _)) = owed.take(at(now), order) {
                taken.push(id);
            }
        }
        assert_eq!((owed.len(), owed.poll_deadline(at(100))), (0, None));
        taken
    }

    #[test]
    fn completions_come_in_the_order_that_policy_wants() {
        assert_eq!(order(SendOrder::InOrder), [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]);
        assert_eq!(order(SendOrder::NewestFirst), [4, 3, 2, 1, 0, 9, 8, 7, 6, 5]);
        let shuffled = order(SendOrder::Shuffled(3));
        assert_eq!(shuffled, order(SendOrder::Shuffled(3)), "as the seed says");
        assert_ne!(shuffled, order(SendOrder::InOrder));
        let mut sorted = shuffled;
        sorted.sort_unstable();
        assert_eq!(sorted, order(SendOrder::InOrder), "each once");
    }

    #[test]
    fn in_a_hurry_everything_is_due() {
        let mut owed = Owed::default();
        owed.push(1, Status::SUCCESS, at(100));
        owed.push(2, Status::SUCCESS, at(50));
        assert_eq!(owed.poll_deadline(at(0)), Some(at(100)));
        assert_eq!(owed.take(at(99), SendOrder::InOrder), None);
        owed.hurry();
        assert_eq!(owed.take(at(0), SendOrder::InOrder), Some((1, Status::SUCCESS)));
        assert_eq!(owed.take(at(0), SendOrder::InOrder), Some((2, Status::SUCCESS)));
    }
}

//! In which order frames were handed to several queues, each of which confirms its own: what counts as confirmed is all of them up to
//! the first that is not.

use std::collections::VecDeque;

/// How a frame stands that has not been counted yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Its queue has it.
    Queued,
    /// It was taken out of its queue again, since the link went down: it goes elsewhere.
    Cut,
    /// Nobody waits for it any more.
    Settled,
}

/// Frames of several queues in the order in which they were handed over.
#[derive(Debug, Default)]
pub(super) struct Order {
    waiting: VecDeque<(u8, State)>,
    /// By queue: frames that it has confirmed and that are not counted, as older ones of other queues are not confirmed.
    ahead: Vec<u64>,
    confirmed: u64,
}

impl Order {
    pub(super) fn new(queues: usize) -> Self {
        Self { ahead: vec![0; queues], ..Self::default() }
    }

    /// How many are confirmed, all before them included.
    pub(super) fn confirmed(&self) -> u64 {
        self.confirmed
    }

    /// A queue has taken a frame.
    pub(super) fn took(&mut self, queue: usize) {
        self.waiting.push_back((u8::try_from(queue).unwrap_or(u8::MAX), State::Queued));
    }

    /// A queue has confirmed so many of its frames, which it does in order.
    pub(super) fn done(&mut self, queue: usize, count: u64) {
        if let Some(ahead) = self.ahead.get_mut(queue) {
            *ahead += count;
        }
        self.advance();
    }

    /// The newest so many frames of a queue were taken out of it.
    pub(super) fn cut(&mut self, queue: usize, count: u64) {
        let of_queue =
            |(of, state): &&mut (u8, State)| usize::from(*of) == queue && *state == State::Queued;
        let newest = self.waiting.iter_mut().rev().filter(of_queue);
        newest.take(usize::try_from(count).unwrap_or(usize::MAX)).for_each(|it| it.1 = State::Cut);
    }

    /// What was cut has been sent elsewhere, and counts from now on.
    pub(super) fn settle(&mut self) {
        for (_, state) in &mut self.waiting {
            if *state == State::Cut {
                *state = State::Settled;
            }
        }
        self.advance();
    }

    fn advance(&mut self) {
        while let Some((queue, state)) = self.waiting.front() {
            match state {
                State::Settled => {}
                State::Cut => return,
                State::Queued => match self.ahead.get_mut(usize::from(*queue)) {
                    Some(ahead @ 1..) => *ahead -= 1,
                    _ => return,
                },
            }
            self.waiting.pop_front();
            self.confirmed += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(queues: &[usize]) -> Order {
        let mut order = Order::new(3);
        queues.iter().for_each(|queue| order.took(*queue));
        order
    }

    #[test]
    fn a_frame_counts_when_all_before_it_do() {
        let mut order = with(&[0, 1, 1, 0, 2]);
        order.done(1, 2);
        order.done(2, 1);
        assert_eq!(order.confirmed(), 0);
        order.done(0, 1);
        assert_eq!(order.confirmed(), 3);
        order.done(0, 1);
        assert_eq!(order.confirmed(), 5);
    }

    #[test]
    fn what_was_cut_holds_up_what_is_behind_it_until_it_is_settled() {
        let mut order = with(&[0, 1, 0, 1, 0]);
        // The second and third of queue 0 were not looked at.
        order.cut(0, 2);
        order.done(0, 1);
        order.done(1, 2);
        assert_eq!(order.confirmed(), 2, "the third goes elsewhere, and what is behind it with it");
        order.settle();
        assert_eq!(order.confirmed(), 5);
        order.took(1);
        assert_eq!(order.confirmed(), 5);
        order.done(1, 1);
        assert_eq!(order.confirmed(), 6);
    }

    #[test]
    fn confirmations_after_a_cut_are_of_what_was_before_it() {
        let mut order = with(&[0, 0, 0]);
        order.cut(0, 1);
        order.settle();
        assert_eq!(order.confirmed(), 0);
        order.done(0, 2);
        assert_eq!(order.confirmed(), 3);
    }
}

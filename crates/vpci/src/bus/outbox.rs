//! Messages that wait for room in the ring.

use alloc::collections::VecDeque;
use alloc::vec::Vec;

/// One message.
#[derive(Debug)]
pub(super) struct Waiting {
    pub(super) transaction_id: u64,
    pub(super) completion: bool,
    pub(super) message: Vec<u8>,
    /// It is there because the host said something of its own accord.
    answer: bool,
}

/// The messages that wait, the oldest first.
#[derive(Debug, Default)]
pub(super) struct Outbox {
    waiting: VecDeque<Waiting>,
    /// How many of them are answers.
    answers: usize,
    /// What is queued now is an answer.
    answering: bool,
}

impl Outbox {
    pub(super) fn push(&mut self, transaction_id: u64, completion: bool, message: &[u8]) {
        let answer = self.answering;
        self.answers += usize::from(answer);
        let message = message.to_vec();
        self.waiting.push_back(Waiting { transaction_id, completion, message, answer });
    }

    pub(super) fn front(&self) -> Option<&Waiting> {
        self.waiting.front()
    }

    pub(super) fn pop(&mut self) {
        let gone = self.waiting.pop_front();
        self.answers -= usize::from(gone.is_some_and(|gone| gone.answer));
    }

    pub(super) fn clear(&mut self) {
        self.waiting.clear();
        self.answers = 0;
    }

    /// What is queued from now on is there because the host said something of its own accord, or not.
    pub(super) fn set_answering(&mut self, answering: bool) {
        self.answering = answering;
    }

    /// How many messages wait that are answers.
    pub(super) fn answers(&self) -> usize {
        self.answers
    }
}

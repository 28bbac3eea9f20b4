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
    /// The highest transaction id that went out of here into the ring.
    last_sent: u64,
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

    /// The oldest message is in the ring.
    pub(super) fn sent(&mut self) {
        if let Some(sent) = self.waiting.pop_front() {
            self.answers -= usize::from(sent.answer);
            // Ids rise from request to request; messages that are no requests have id 0.
            self.last_sent = self.last_sent.max(sent.transaction_id);
        }
    }

    /// Whether the request with this id went into the ring, so that the host can have read it.
    pub(super) fn has_sent(&self, id: u64) -> bool {
        id <= self.last_sent
    }

    pub(super) fn clear(&mut self) {
        self.waiting.clear();
        self.answers = 0;
    }

    /// What is queued from now on is there because the host said something of its own accord, or not.
    pub(super) fn set_answering(&mut self, answering: bool) {
        self.answering = answering;
    }

    /// How many messages wait.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.waiting.len()
    }

    /// How many messages wait that are answers.
    pub(super) fn answers(&self) -> usize {
        self.answers
    }
}

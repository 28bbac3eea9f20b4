//! Whether the other side is still there: RNDIS KEEPALIVE, both ways.
//!
//! The guest asks when the host has been silent on the control channel for as long as the configuration says. Frames are no
//! sign of life there: a host may go on moving frames while nobody answers requests any more.

use core::time::Duration;

use vmbus::Instant;
use vmbus::channel::Doorbell;

use super::{Nic, Stage, Step};

/// Answers to the host that may wait for the control slot. A host that asks faster than it takes answers gets no more.
const MOST_ANSWERS: usize = 16;

#[derive(Debug)]
pub(super) struct Alive {
    /// When the host last said something that is no frame.
    heard: Instant,
}

impl Alive {
    pub(super) fn new(now: Instant) -> Self {
        Self { heard: now }
    }

    /// The host has said something.
    pub(super) fn heard(&mut self, now: Instant) {
        self.heard = now.max(self.heard);
    }

    /// When it will have been silent for too long.
    fn silent_at(&self, most: Duration) -> Instant {
        self.heard + most
    }
}

impl<D: Doorbell> Nic<D> {
    /// The host has said something that is no frame. If it owes the answer to a question for too long, that one is lost, and the
    /// next silence is another matter.
    pub(super) fn hear(&mut self) {
        self.alive.heard(self.now);
        if self.waits.is_overdue(Step::KeepAlive) {
            self.waits.end(Step::KeepAlive);
        }
    }

    /// When the host has to be asked whether it is there. One question at a time: there is no other before the host has
    /// answered the last one or said something else, however late.
    pub(super) fn silence_deadline(&self) -> Option<Instant> {
        let most = self.config.keep_alive.filter(|_| self.stage == Stage::Ready)?;
        let asked = self.waits.has(Step::KeepAlive);
        (!asked).then(|| self.alive.silent_at(most))
    }

    /// Asks the host whether it is there, if it is time.
    pub(super) fn ask_when_silent(&mut self) {
        if self.silence_deadline().is_some_and(|at| at <= self.now) {
            self.stats.keep_alives += 1;
            self.ask_alive();
        }
    }

    /// The host asks whether the guest is there.
    pub(super) fn handle_keep_alive(&mut self, request_id: u32) {
        if self.answer_alive(request_id, MOST_ANSWERS) {
            self.stats.keep_alives_answered += 1;
        } else {
            self.stats.bad.unexpected += 1;
        }
    }
}

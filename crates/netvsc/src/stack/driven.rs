//! A card that is polled on behalf of a stack.

use alloc::collections::VecDeque;
use core::fmt;

use vmbus::Instant;

use super::{Card, Frames};

/// Events kept for whoever wants them: as many as a NIC keeps. One that nobody takes them from reads nothing more.
const MOST_EVENTS: usize = 256;

/// A card and what it said.
pub(super) struct Driven<C: Card> {
    pub(super) card: C,
    pub(super) events: VecDeque<C::Event>,
    /// Events for which there was no place.
    pub(super) lost: u64,
}

// Events need not be something that can be shown: they may bring a port along.
impl<C: Card + fmt::Debug> fmt::Debug for Driven<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = f.debug_struct("Driven");
        shown.field("card", &self.card).field("events", &self.events.len());
        shown.field("lost", &self.lost).finish()
    }
}

impl<C: Card> Driven<C> {
    pub(super) const fn new(card: C) -> Self {
        Self { card, events: VecDeque::new(), lost: 0 }
    }

    /// Carries frames both ways, and takes down what else there is to know. True if the stack should be polled.
    pub(super) fn poll(&mut self, frames: &mut Frames, now: Instant) -> Result<bool, C::Error> {
        let before = (frames.to_receive(), frames.has_link());
        let polled = self.card.poll(now, &mut |frame| frames.push_frame(frame));
        while let Some(event) = self.card.poll_event() {
            if self.events.len() >= MOST_EVENTS {
                self.events.pop_front();
                self.lost += 1;
            }
            self.events.push_back(event);
        }
        frames.set_link(self.card.is_connected());
        polled?;
        let sent = frames.send(&mut self.card, now);
        Ok(sent || (frames.to_receive(), frames.has_link()) != before)
    }
}

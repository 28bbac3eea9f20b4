//! IP stacks on a card: feature `smoltcp` makes a [`Device`] a smoltcp `phy::Device`, feature `embassy` splits one into what a task polls
//! and a driver for embassy-net (module `embassy`).
//!
//! [`Frames`] are the two queues between a stack and a card. A [`Device`] owns them and the card, an
//! [`Adapter`](crate::Adapter) or a bare [`Nic`](crate::Nic); its owner polls it when the host rang, when its deadline has come, and after the
//! stack. A shell that keeps its cards elsewhere takes [`Frames`] alone and carries the frames itself.
//!
//! A [`Device`] takes the card's events and keeps the newest of them for its owner, so that a card whose owner wants none does not come to a
//! stop; and its link is the card's: down until start-up is finished.
//!
//! What a stack is told of checksums is what the card's owner says in [`FramesConfig::offloads`], which should be what both paths do
//! ([`Adapter::offloads`](crate::Adapter::offloads)): then nobody computes them in software. A stack may rely on it whatever comes: an
//! [`Adapter`](crate::Adapter) computes for a path what that path does not. With [`FramesConfig::trust`] the stack does not check what the
//! host found right; it is told so once for all frames, so that those of which nothing is said are checked here. These stacks know of no segments longer than the MTU, so
//! that they leave none to be cut; those that do call [`Adapter::transmit_with`](crate::Adapter::transmit_with).

mod card;
mod driven;
#[cfg(feature = "embassy")]
pub mod embassy;
mod frames;
mod received;
#[cfg(feature = "smoltcp")]
mod smoltcp;
mod sums;

use vmbus::Instant;

use self::driven::Driven;

pub use self::card::{Card, Linked};
pub use self::frames::{Frames, FramesConfig};
#[cfg(feature = "smoltcp")]
pub use self::smoltcp::{Received, Room};

/// A card with the queues of a stack.
#[derive(Debug)]
pub struct Device<C: Card> {
    driven: Driven<C>,
    frames: Frames,
}

impl<C: Card> Device<C> {
    /// Joins a card and empty queues.
    #[must_use]
    pub fn new(card: C, config: FramesConfig) -> Self {
        let (driven, mut frames) = (Driven::new(card), Frames::new(config));
        frames.set_link(driven.card.is_connected());
        Self { driven, frames }
    }

    /// The card.
    #[must_use]
    pub fn card(&self) -> &C {
        &self.driven.card
    }

    /// The card, for what is not about frames: a port to bind, a setting. Its events come out of [`Device::poll_event`].
    pub fn card_mut(&mut self) -> &mut C {
        &mut self.driven.card
    }

    /// The queues.
    #[must_use]
    pub fn frames(&self) -> &Frames {
        &self.frames
    }

    /// The queues, to say what has become known only now: an address, what the card does to frames. Their link is the card's as of
    /// the last poll.
    pub fn frames_mut(&mut self) -> &mut Frames {
        &mut self.frames
    }

    /// The card again; frames still in the queues are dropped, and so are events that nobody took.
    #[must_use]
    pub fn into_card(self) -> C {
        self.driven.card
    }

    /// Carries frames both ways as far as they go now. True if the stack should be polled.
    ///
    /// # Errors
    /// The card's: its channel is dead.
    pub fn poll(&mut self, now: Instant) -> Result<bool, C::Error> {
        self.driven.poll(&mut self.frames, now)
    }

    /// The next event of the card. Of those that nobody takes the newest 256 are kept; what an older one brought along, such as a
    /// port that was released, is dropped with it.
    pub fn poll_event(&mut self) -> Option<C::Event> {
        self.driven.events.pop_front()
    }

    /// Events that nobody took in time.
    #[must_use]
    pub fn events_lost(&self) -> u64 {
        self.driven.lost
    }

    /// When to poll although nobody rang.
    #[must_use]
    pub fn poll_deadline(&self) -> Option<Instant> {
        self.driven.card.poll_deadline()
    }
}

#[cfg(test)]
mod tests;

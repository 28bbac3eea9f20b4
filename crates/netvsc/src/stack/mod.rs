//! IP stacks on a card: feature `smoltcp` makes a [`Device`] a smoltcp `phy::Device`, feature `embassy` an embassy-net driver.
//!
//! [`Frames`] are the two queues between a stack and a card. A [`Device`] owns them and the card, an
//! [`Adapter`](crate::Adapter) or a bare [`Nic`](crate::Nic); its owner polls it when the host rang, when its deadline has come, and after the
//! stack. A shell that keeps its cards elsewhere takes [`Frames`] alone and carries the frames itself.
//!
//! What a stack is told of checksums is what the card's owner says in [`FramesConfig::offloads`], which should be what both paths do
//! ([`Adapter::offloads`](crate::Adapter::offloads)): then nobody computes them in software. A stack may rely on it whatever comes: an
//! [`Adapter`](crate::Adapter) computes for a path what that path does not. With [`FramesConfig::trust`] the stack does not check what the
//! host found right; it is told so once for all frames, so that those of which nothing is said are checked here. These stacks know of no segments longer than the MTU, so
//! that they leave none to be cut; those that do call [`Adapter::transmit_with`](crate::Adapter::transmit_with).

mod card;
#[cfg(feature = "embassy")]
mod embassy;
mod frames;
mod received;
#[cfg(feature = "smoltcp")]
mod smoltcp;
mod sums;

use vmbus::Instant;

pub use self::card::Card;
pub use self::frames::{Frames, FramesConfig, Received, Room};

/// A card with the queues of a stack.
#[derive(Debug)]
pub struct Device<C> {
    card: C,
    frames: Frames,
}

impl<C: Card> Device<C> {
    /// Joins a card and empty queues.
    #[must_use]
    pub fn new(card: C, config: FramesConfig) -> Self {
        Self { card, frames: Frames::new(config) }
    }

    /// The card.
    #[must_use]
    pub fn card(&self) -> &C {
        &self.card
    }

    /// The card, for what is not about frames: events, a port to bind.
    pub fn card_mut(&mut self) -> &mut C {
        &mut self.card
    }

    /// The queues.
    #[must_use]
    pub fn frames(&self) -> &Frames {
        &self.frames
    }

    /// The card again; frames still in the queues are dropped.
    #[must_use]
    pub fn into_card(self) -> C {
        self.card
    }

    /// Carries frames both ways as far as they go now. True if the stack should be polled.
    ///
    /// # Errors
    /// The card's: its channel is dead.
    pub fn poll(&mut self, now: Instant) -> Result<bool, C::Error> {
        let Self { card, frames } = self;
        let before = frames.to_receive();
        card.poll(now, &mut |frame| frames.push_frame(frame))?;
        let sent = frames.send(card, now);
        Ok(sent || frames.to_receive() > before)
    }

    /// When to poll although nobody rang.
    #[must_use]
    pub fn poll_deadline(&self) -> Option<Instant> {
        self.card.poll_deadline()
    }
}

#[cfg(test)]
mod tests;

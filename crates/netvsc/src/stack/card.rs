//! Whatever takes and gives frames: an adapter, or a NIC without one.

use vmbus::{Doorbell, Instant};

use crate::adapter::{Adapter, AdapterError, AdapterEvent, Frame, Refused, Synthetic};
use crate::nic::{Nic, NicError, NicEvent, QueuedNic, TxFrame};
use crate::port::VfPort;

/// A network card as a [`Device`](super::Device) uses it.
pub trait Card {
    /// Why it cannot go on.
    type Error;
    /// What it has to say.
    type Event;

    /// Does what can be done now; received frames go to `sink`.
    ///
    /// # Errors
    /// The channel is dead.
    fn poll(&mut self, now: Instant, sink: &mut dyn FnMut(&dyn Frame)) -> Result<(), Self::Error>;

    /// Takes a frame to be sent with the next [`flush`](Card::flush).
    ///
    /// # Errors
    /// [`Refused`]; nothing was taken.
    fn transmit(&mut self, frame: &[u8], now: Instant) -> Result<(), Refused>;

    /// The same with checksums left to the card.
    ///
    /// # Errors
    /// [`Refused`]; nothing was taken.
    fn transmit_with(&mut self, frame: &TxFrame<'_>, now: Instant) -> Result<(), Refused>;

    /// Sends what was taken.
    fn flush(&mut self);

    /// When to poll at the latest.
    fn poll_deadline(&self) -> Option<Instant>;

    /// The next event. One that nobody takes may keep the card from reading on.
    fn poll_event(&mut self) -> Option<Self::Event>;

    /// Whether it is at work and connected.
    fn is_connected(&self) -> bool;
}

/// Whether a NIC has a link: what an [`Adapter`] is asked by its stack, and asks its NIC.
///
/// A VF's link is no part of it: a card whose VF has none goes on, on the synthetic path.
pub trait Linked {
    /// Whether start-up is finished, nothing has ended it, and the host says that the link is up.
    fn has_link(&self) -> bool;
}

impl<D: Doorbell> Linked for Nic<D> {
    fn has_link(&self) -> bool {
        let info = self.info();
        info.ready && info.link
    }
}

impl<D: Doorbell> Linked for QueuedNic<D> {
    fn has_link(&self) -> bool {
        self.nic().has_link()
    }
}

fn refused(error: AdapterError) -> Refused {
    match error {
        AdapterError::Full(lack) => Refused::Full(lack),
        AdapterError::NotReady => Refused::NotReady,
        AdapterError::Refused { .. } => Refused::Never,
    }
}

impl<N: Synthetic + Linked, P: VfPort> Card for Adapter<N, P> {
    type Error = N::Error;
    type Event = AdapterEvent<N::Event, P>;

    fn poll(&mut self, now: Instant, sink: &mut dyn FnMut(&dyn Frame)) -> Result<(), N::Error> {
        Adapter::poll(self, now, &mut |_, frame| sink(frame))
    }

    fn transmit(&mut self, frame: &[u8], now: Instant) -> Result<(), Refused> {
        Adapter::transmit(self, frame, now).map_err(refused)
    }

    fn transmit_with(&mut self, frame: &TxFrame<'_>, now: Instant) -> Result<(), Refused> {
        Adapter::transmit_with(self, frame, now).map_err(refused)
    }

    fn flush(&mut self) {
        Adapter::flush(self);
    }

    fn poll_deadline(&self) -> Option<Instant> {
        Adapter::poll_deadline(self)
    }

    fn poll_event(&mut self) -> Option<Self::Event> {
        Adapter::poll_event(self)
    }

    fn is_connected(&self) -> bool {
        self.is_open() && self.nic().has_link()
    }
}

impl<D: Doorbell> Card for Nic<D> {
    type Error = NicError;
    type Event = NicEvent;

    fn poll(&mut self, now: Instant, sink: &mut dyn FnMut(&dyn Frame)) -> Result<(), NicError> {
        Synthetic::poll(self, now, sink)
    }

    fn transmit(&mut self, frame: &[u8], _: Instant) -> Result<(), Refused> {
        Synthetic::transmit(self, frame)
    }

    fn transmit_with(&mut self, frame: &TxFrame<'_>, _: Instant) -> Result<(), Refused> {
        Synthetic::transmit_with(self, frame)
    }

    fn flush(&mut self) {
        Nic::flush(self);
    }

    fn poll_deadline(&self) -> Option<Instant> {
        Nic::poll_deadline(self)
    }

    fn poll_event(&mut self) -> Option<NicEvent> {
        Nic::poll_event(self)
    }

    fn is_connected(&self) -> bool {
        self.has_link()
    }
}

//! Whatever takes and gives frames: an adapter, or a NIC without one.

use vmbus::{Doorbell, Instant};

use crate::adapter::{Adapter, AdapterError, Frame, Refused, Synthetic};
use crate::nic::{Nic, NicError, TxFrame};
use crate::port::VfPort;

/// A network card as a [`Device`](super::Device) uses it.
pub trait Card {
    /// Why it cannot go on.
    type Error;

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
}

fn refused(error: AdapterError) -> Refused {
    match error {
        AdapterError::Full => Refused::Full,
        AdapterError::NotReady => Refused::NotReady,
        AdapterError::Refused { .. } => Refused::Never,
    }
}

impl<N: Synthetic, P: VfPort> Card for Adapter<N, P> {
    type Error = N::Error;

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
}

impl<D: Doorbell> Card for Nic<D> {
    type Error = NicError;

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
}

//! The synthetic NIC as an adapter sees it.

use vmbus::Instant;

use super::Frame;
use crate::nic::{Lack, Lending, PagedFrame, Returned, TxFrame};
use crate::port::{Path, PathOffloads, PortSettings};

/// What a synthetic NIC says that bears on the path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sign {
    /// It can carry frames and switch messages.
    Ready,
    /// Its channel is closed or dead.
    Closed,
    /// The host associated it with a serial.
    Associated,
    /// The host has no VF for it any more.
    Disassociated,
    /// The host completed a switch.
    SwitchCompleted(Path),
    /// The host switched by itself.
    HostSwitched(Path),
}

/// Why the synthetic NIC did not take a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// No room now; after its doorbell rang and it was polled, there may be.
    Full(Lack),
    /// The NIC is not at work (yet, or any more). When it is, the frame may be taken.
    NotReady,
    /// It cannot be sent at all: the frame is too long or too short.
    Never,
}

/// The synthetic NIC as the adapter sees it. [`Nic`](crate::nic::Nic) is the one that there is.
pub trait Synthetic {
    /// Everything it has to say.
    type Event;
    /// Why it cannot go on.
    type Error;

    /// Does what can be done now; received frames go to `sink`.
    ///
    /// # Errors
    /// The channel is dead.
    fn poll(&mut self, now: Instant, sink: &mut dyn FnMut(&dyn Frame)) -> Result<(), Self::Error>;

    /// The next event.
    fn poll_event(&mut self) -> Option<Self::Event>;

    /// What an event means for the path.
    fn sign(event: &Self::Event) -> Option<Sign>;

    /// When to poll at the latest.
    fn poll_deadline(&self) -> Option<Instant>;

    /// Takes a frame to be sent with the next [`flush`](Synthetic::flush).
    ///
    /// # Errors
    /// [`Refused`]; nothing was taken.
    fn transmit(&mut self, frame: &[u8]) -> Result<(), Refused>;

    /// The same with work for the host, of which it is told only what it offers; the rest is done on the way. A large send
    /// only comes if the host cuts it.
    ///
    /// # Errors
    /// [`Refused`]; nothing was taken.
    fn transmit_with(&mut self, frame: &TxFrame<'_>) -> Result<(), Refused>;

    /// Takes a frame out of the caller's own pages, or copies it: see [`Nic::transmit_pages`](crate::nic::Nic::transmit_pages).
    ///
    /// # Errors
    /// [`Refused`]; nothing was taken. [`Refused::Never`] if the host cannot read it there; it may take it as bytes.
    fn transmit_pages(&mut self, frame: &PagedFrame<'_>) -> Result<Lending, Refused> {
        let _ = frame;
        Err(Refused::Never)
    }

    /// The next frame whose pages are the caller's again.
    fn poll_returned(&mut self) -> Option<Returned> {
        None
    }

    /// Number of the channel that took the last frame, of a NIC with several; 0 is the primary one.
    fn last_queue(&self) -> u16 {
        0
    }

    /// What the host does to frames.
    fn offloads(&self) -> PathOffloads;

    /// How a port has to be set up to carry what this NIC carries; `None` before start-up is finished.
    fn settings(&self) -> Option<PortSettings>;

    /// Sends what was taken.
    fn flush(&mut self);

    /// Whether the host has taken every frame that was sent.
    fn is_idle(&self) -> bool;

    /// Asks the host for a data path. If there is no room for that now, it is done later, and the newest wish wins (F8).
    fn switch_data_path(&mut self, path: Path, now: Instant);
}

//! What the owner of a NIC gives it to be sent, and gets back.

use vmbus::channel::Doorbell;

use super::{Lending, Nic, PagedFrame, Returned, Stage, TransmitError, TxFrame};

impl<D: Doorbell> Nic<D> {
    /// Takes a frame to be sent. The host may see it only after [`Nic::flush`].
    ///
    /// # Errors
    /// [`TransmitError`]; the frame was then not taken.
    #[inline]
    pub fn transmit(&mut self, frame: &[u8]) -> Result<(), TransmitError> {
        if self.stage != Stage::Ready {
            return Err(TransmitError::NotReady);
        }
        let taken = self.transmit.transmit(&mut self.link, frame, &mut self.stats);
        if let Err(TransmitError::Failed(error)) = taken {
            self.fail(error);
        }
        taken
    }

    /// Takes a frame with work for the host: checksums, a segment to be cut, a tag, a hash. Otherwise like
    /// [`Nic::transmit`].
    ///
    /// # Errors
    /// [`TransmitError`]; the frame was then not taken.
    pub fn transmit_with(&mut self, frame: &TxFrame<'_>) -> Result<(), TransmitError> {
        if self.stage != Stage::Ready {
            return Err(TransmitError::NotReady);
        }
        let taken = self.transmit.transmit_with(&mut self.link, frame, &mut self.stats);
        if let Err(TransmitError::Failed(error)) = taken {
            self.fail(error);
        }
        taken
    }

    /// Takes a frame most of which lies in the caller's own pages, where the host reads it: only its head is copied. Otherwise
    /// like [`Nic::transmit_with`]. A TCP segment to be cut may have as many bytes as the host says that it cuts
    /// ([`NicInfo::offloads`](super::NicInfo::offloads)) and takes in one message, whatever the send buffer has room for.
    ///
    /// Pages that were lent are to be left alone until [`Nic::poll_returned`] names the frame. What is too short for that to
    /// pay ([`NicConfig::lend_from`](super::NicConfig::lend_from)), or lies in more ranges than the host takes
    /// ([`NicInfo::page_ranges`](super::NicInfo::page_ranges)), is copied if it can be.
    ///
    /// # Errors
    /// [`TransmitError`]; the frame was then not taken. [`TransmitError::Pages`] if it can only be sent otherwise.
    pub fn transmit_pages(&mut self, frame: &PagedFrame<'_>) -> Result<Lending, TransmitError> {
        if self.stage != Stage::Ready {
            return Err(TransmitError::NotReady);
        }
        let taken = self.transmit.transmit_pages(&mut self.link, frame, &mut self.stats);
        if let Err(TransmitError::Failed(error)) = taken {
            self.fail(error);
        }
        taken
    }

    /// The next frame whose pages are the caller's again: the host has completed it, or never will. Each that was
    /// [lent](Lending::Lent) comes back once, in the order in which the host completed them.
    pub fn poll_returned(&mut self) -> Option<Returned> {
        self.transmit.loans.poll_returned()
    }

    /// Shows the host everything taken so far, with one doorbell at most. What finds no room in the ring goes out in a later
    /// [`Nic::poll`].
    pub fn flush(&mut self) {
        if matches!(self.stage, Stage::Failed(_) | Stage::Stopped) {
            return;
        }
        self.flushing = true;
        if seeded!("forget-flush") {
            return;
        }
        if let Err(error) = self.pump() {
            self.fail(error);
        }
    }

    /// Whether a frame would be taken now, as far as that can be known without looking at the ring. A segment to be cut has slots
    /// of its own: it may be taken where no other frame is, and the other way round.
    #[must_use]
    pub fn can_transmit(&self) -> bool {
        self.stage == Stage::Ready && !self.flushing && self.transmit.has_slot()
    }
}

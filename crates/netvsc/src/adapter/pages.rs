//! Frames out of the caller's own pages, on whichever path is live.
//!
//! The synthetic path reads them where they lie. A VF gets a copy: what it takes down with it has to go out again, and its
//! pages would be the caller's by then.

use vmbus::Instant;
use vmbus::memory::OutOfRange;

use super::send::show;
use super::{Adapter, AdapterError, Refused, Synthetic};
use crate::failover::Outlet;
use crate::nic::cut;
use crate::nic::{Lack, Lending, PagedFrame, Returned};
use crate::port::{Path, VfPort};

impl<N: Synthetic, P: VfPort> Adapter<N, P> {
    /// Takes a frame most of which lies in the caller's own pages. Where the host can read them, and the synthetic path is
    /// live, it does so, and the pages are to be left alone until [`Adapter::poll_returned`] names the frame. Otherwise the frame is
    /// copied and sent as by [`Adapter::transmit_with`].
    ///
    /// # Errors
    /// [`AdapterError`]; nothing was taken.
    pub fn transmit_pages(
        &mut self,
        frame: &PagedFrame<'_>,
        now: Instant,
    ) -> Result<Lending, AdapterError> {
        let pieces = [frame.head];
        let tag = if frame.work.vlan.is_some() { cut::TAG } else { 0 };
        let len = frame.len() + tag;
        let most = match frame.work.large_send {
            Some(_) => self.large_send,
            None => self.frame_size.min(self.most_of(frame.head) + tag),
        };
        let segments = self.segments(&frame.work.of(&pieces), frame.len(), len);
        let Some(segments) = segments.filter(|_| len <= most) else {
            return self.taken(Err(Refused::Never), len, most).map(|()| Lending::Copied);
        };
        if self.outlet(now) == Outlet::Path(Path::Synthetic) {
            match self.lend(frame, now) {
                // The host cannot read it there.
                Err(Refused::Never) => {}
                result => {
                    self.taken(result.map(|_| ()), len, most)?;
                    self.counters.segments_accepted += segments as u64 - 1;
                    return Ok(result.unwrap_or(Lending::Copied));
                }
            }
        }
        let mut bytes = core::mem::take(&mut self.gathered);
        bytes.clear();
        gather(frame, &mut bytes);
        let pieces = [&bytes[..]];
        let result = self.transmit_with(&frame.work.of(&pieces), now);
        self.gathered = bytes;
        result.map(|()| Lending::Copied)
    }

    /// The next frame whose pages are the caller's again; see [`Nic::poll_returned`](crate::nic::Nic::poll_returned).
    pub fn poll_returned(&mut self) -> Option<Returned> {
        self.nic.poll_returned()
    }

    fn lend(&mut self, frame: &PagedFrame<'_>, now: Instant) -> Result<Lending, Refused> {
        self.resend(now);
        if self.backlog {
            return Err(Refused::Full(Lack::Backlog));
        }
        let lending = self.nic.transmit_pages(frame)?;
        self.counters.frames_synthetic += 1;
        if self.tap.is_some() {
            self.segment.clear();
            gather(frame, &mut self.segment);
            let place = (Path::Synthetic, self.nic.last_queue());
            show(&mut self.tap, place, now, &self.segment);
        }
        Ok(lending)
    }
}

/// Puts the bytes of a frame together.
fn gather(frame: &PagedFrame<'_>, out: &mut alloc::vec::Vec<u8>) {
    out.extend_from_slice(frame.head);
    for slice in frame.body {
        let read = slice.read(|part| {
            out.extend_from_slice(part);
            Ok::<_, OutOfRange>(())
        });
        debug_assert_eq!(read, Ok(()), "a slice lies inside its pages");
    }
}

//! Frames on their way out, on whichever path is live.
//!
//! What a frame asks for is done by the path that it takes, or else here, so that the upper layer never has to know which path
//! that is (F11). A large send that neither cuts is kept as one record and cut as it goes; if its path changes half-way, the
//! rest goes on the other.

use alloc::boxed::Box;

use vmbus::Instant;

use super::{Adapter, AdapterError, AdapterEvent, Direction, Refused, Synthetic, Tap};
use crate::failover::Outlet;
use crate::nic::cut::{self, Cut};
use crate::nic::{Lack, TransmitError, TxFrame, TxWork, offload};
use crate::port::{Path, PortError, VfPort};
use crate::rndis::packet::{LargeSend, TransmitChecksum};

impl<N: Synthetic, P: VfPort> Adapter<N, P> {
    /// Takes a frame to be sent with the next [`Adapter::flush`].
    ///
    /// # Errors
    /// [`AdapterError`]; nothing was taken.
    pub fn transmit(&mut self, frame: &[u8], now: Instant) -> Result<(), AdapterError> {
        let len = frame.len();
        if len > self.most && len > self.most_of(frame) {
            return self.taken(Err(Refused::Never), len, self.most_of(frame));
        }
        let result = match self.outlet(now) {
            Outlet::Draining => Err(Refused::Full(Lack::Drain)),
            Outlet::Path(Path::Vf) => self.transmit_vf(frame, now),
            Outlet::Path(Path::Synthetic) => self.transmit_synthetic(frame, now),
        };
        self.taken(result, len, self.most)
    }

    /// Longest frame with these addresses and tag.
    pub(super) fn most_of(&self, head: &[u8]) -> usize {
        let tag = if cut::has_tag(head) { cut::TAG } else { 0 };
        self.frame_size.min(self.most + tag)
    }

    /// Takes a frame that leaves work to the card: checksums, a tag, a TCP segment to be cut of up to
    /// [`AdapterConfig::large_send`](super::AdapterConfig::large_send) bytes. Whichever path it takes, and whatever that path
    /// does of it, it leaves as the frame says; [`Adapter::offloads`] tells what costs nothing here.
    ///
    /// # Errors
    /// [`AdapterError`]; nothing was taken.
    pub fn transmit_with(&mut self, frame: &TxFrame<'_>, now: Instant) -> Result<(), AdapterError> {
        if let ([bytes], true) = (frame.pieces, frame.work().is_none()) {
            return self.transmit(bytes, now);
        }
        let head = frame.pieces.first().copied().unwrap_or_default();
        let tag = if frame.vlan.is_some() { cut::TAG } else { 0 };
        let len = frame.len() + tag;
        let most = match frame.large_send {
            Some(_) => self.large_send,
            None => self.frame_size.min(self.most_of(head) + tag),
        };
        let Some(segments) = self.segments(frame, frame.len(), len).filter(|_| len <= most) else {
            return self.taken(Err(Refused::Never), len, most);
        };
        let result = match self.outlet(now) {
            Outlet::Draining => Err(Refused::Full(Lack::Drain)),
            Outlet::Path(Path::Vf) => self.work_vf(frame, len, now),
            Outlet::Path(Path::Synthetic) => self.work_synthetic(frame, now),
        };
        self.taken(result, len, most)?;
        self.counters.segments_accepted += segments as u64 - 1;
        Ok(())
    }

    /// Frames on the wire that one of `bare` bytes is, `len` with its tag: one at least. `None` if not both paths can send it, so that
    /// neither refuses it later.
    pub(super) fn segments(&self, frame: &TxFrame<'_>, bare: usize, len: usize) -> Option<usize> {
        let head = frame.pieces.first().copied().unwrap_or_default();
        if frame.vlan.is_some() && cut::has_tag(head) {
            return None;
        }
        cut::check(frame).ok()?;
        let Some(send) = frame.large_send else { return Some(1) };
        let cut = Cut::new(head, send).ok().filter(|cut| cut.longest(len) <= self.most_of(head))?;
        Some(cut.count(bare))
    }

    /// Where the next frame goes, now that everybody has been asked.
    pub(super) fn outlet(&mut self, now: Instant) -> Outlet {
        if self.failover.outlet() == Outlet::Draining {
            self.reap();
            self.act(now);
        }
        self.failover.outlet()
    }

    pub(super) fn taken(
        &mut self,
        result: Result<(), Refused>,
        len: usize,
        most: usize,
    ) -> Result<(), AdapterError> {
        match result {
            Ok(()) => {
                self.counters.frames_accepted += 1;
                Ok(())
            }
            Err(Refused::Full(lack)) => {
                self.counters.pushed_back += 1;
                Err(AdapterError::Full(lack))
            }
            Err(Refused::NotReady) => {
                self.counters.pushed_back += 1;
                Err(AdapterError::NotReady)
            }
            Err(Refused::Never) => {
                self.counters.refused += 1;
                Err(AdapterError::Refused { len, most })
            }
        }
    }

    /// Whether a frame of `len` bytes may go to the VF now: what is older has gone, and there is room to keep a copy.
    fn may_use_vf(&mut self, len: usize, now: Instant) -> Result<(), Refused> {
        if !self.replay.has_room(len) {
            self.reap();
            if !self.replay.has_room(len) {
                return Err(Refused::Full(Lack::Confirmation));
            }
        }
        // What an earlier VF left behind goes first, on the path that is safe.
        self.resend(now);
        if self.backlog {
            return Err(Refused::Full(Lack::Backlog));
        }
        if self.replay.is_waiting() && !self.give(now) {
            return Err(Refused::Full(Lack::Port));
        }
        // So does a frame that took the other path since the VF did not want it.
        if self.detour && self.nic.is_idle() {
            self.detour = false;
        }
        if self.detour { Err(Refused::Full(Lack::Drain)) } else { Ok(()) }
    }

    fn transmit_vf(&mut self, frame: &[u8], now: Instant) -> Result<(), Refused> {
        self.may_use_vf(frame.len(), now)?;
        let Some(port) = &mut self.port else { return self.transmit_synthetic(frame, now) };
        match port.transmit(frame) {
            Ok(()) => {
                show(&mut self.tap, (Path::Vf, 0), now, frame);
                self.replay.push_given(frame);
                self.note_given();
                Ok(())
            }
            Err(PortError::Full) => {
                self.wake_port();
                Err(Refused::Full(Lack::Port))
            }
            Err(PortError::Gone) => {
                self.port_gone(now);
                self.transmit_synthetic(frame, now)
            }
            Err(PortError::Length { .. } | PortError::Mtu { .. }) => {
                // It goes on the other path, when nothing can overtake it or be overtaken.
                self.wake_port();
                if !self.replay.is_empty() {
                    return Err(Refused::Full(Lack::Drain));
                }
                self.transmit_synthetic(frame, now)?;
                self.counters.too_long_for_vf += 1;
                self.detour = true;
                Ok(())
            }
        }
    }

    fn note_given(&mut self) {
        self.expected = self.expected.saturating_add(1);
        self.unflushed = true;
        self.counters.frames_vf += 1;
    }

    /// The port is full: it may wait for its doorbell before it can confirm anything.
    fn wake_port(&mut self) {
        if let Some(port) = &mut self.port {
            port.flush();
        }
        self.unflushed = false;
        self.reap();
    }

    /// The same with work: the copy that is kept has everything done to it that the VF does not do.
    fn work_vf(&mut self, frame: &TxFrame<'_>, len: usize, now: Instant) -> Result<(), Refused> {
        self.may_use_vf(len, now)?;
        if self.port.is_none() {
            return self.work_synthetic(frame, now);
        }
        self.keep(frame, len)?;
        if self.give(now) {
            return Ok(());
        }
        let untouched = self.replay.waiting().is_some_and(|(record, _)| record.given == 0);
        if untouched && !self.backlog && !self.unwanted {
            // Nothing of it has gone: it was not taken.
            self.withdraw();
            return Err(Refused::Full(Lack::Port));
        }
        // The rest follows as there is room; or the VF is gone or does not want it, and it goes out on the other path.
        self.reap();
        self.resend(now);
        Ok(())
    }

    /// Keeps a copy for the VF, with everything done to it that the VF does not do.
    fn keep(&mut self, frame: &TxFrame<'_>, len: usize) -> Result<(), Refused> {
        let offloads = self.port_offloads;
        let mut work = frame.work();
        let (first, rest) = frame.pieces.split_first().ok_or(Refused::Never)?;
        let tag = work.vlan.filter(|_| !offloads.vlan).map(cut::tag_bytes);
        let kept_len = if tag.is_some() { len } else { frame.len() };
        let (at, bytes) = match &tag {
            Some((at, bytes)) => (*at, &bytes[..]),
            None => (0, &[][..]),
        };
        let (before, behind) = first.split_at_checked(at).ok_or(Refused::Never)?;
        let pieces = [before, bytes, behind].into_iter().chain(rest.iter().copied());
        let (record, kept) =
            self.replay.push(pieces, kept_len).ok_or(Refused::Full(Lack::Confirmation))?;
        if tag.is_some() {
            work = behind_tag(work);
        }
        let done = finish(
            kept,
            &mut work,
            |head, send| offloads.cuts(head, send, kept_len),
            |head, request| offloads.computes(head, request),
        );
        // It was looked at before, so that it can be done.
        let Ok(cut) = done else {
            self.replay.withdraw();
            return Err(Refused::Never);
        };
        (record.work, record.cut) = (work, cut);
        record.frames = cut.map_or(1, |cut| cut.count(kept_len));
        self.counters.frames_cut += record.frames as u64 - 1;
        Ok(())
    }

    /// The newest record was not taken after all.
    fn withdraw(&mut self) {
        if let Some(frames) = self.replay.withdraw() {
            self.counters.frames_cut -= frames as u64 - 1;
        }
    }

    /// Gives the VF what it has not been given yet, as far as it has room. True if it has everything.
    pub(super) fn give(&mut self, now: Instant) -> bool {
        while let Some((record, bytes)) = self.replay.waiting() {
            let Some(port) = &mut self.port else { return false };
            let (frame, result) = match record.cut {
                Some(cut) => {
                    cut.write(bytes, record.given, &mut self.segment);
                    let frame = self.segment.as_slice();
                    (frame, give_to(port, frame, &record.work))
                }
                None => (bytes, give_to(port, bytes, &record.work)),
            };
            match result {
                Ok(()) => {
                    show(&mut self.tap, (Path::Vf, 0), now, frame);
                    self.replay.gave();
                    self.note_given();
                }
                Err(PortError::Full) => {
                    self.wake_port();
                    return false;
                }
                Err(PortError::Gone) => {
                    self.port_gone(now);
                    return false;
                }
                Err(PortError::Length { .. } | PortError::Mtu { .. }) => {
                    // It has said that it takes such frames, and does not: they go on the other path once it is empty.
                    self.unwanted = true;
                    return false;
                }
            }
        }
        true
    }

    fn transmit_synthetic(&mut self, frame: &[u8], now: Instant) -> Result<(), Refused> {
        self.resend(now);
        if self.backlog {
            return Err(Refused::Full(Lack::Backlog));
        }
        self.nic.transmit(frame)?;
        let place = (Path::Synthetic, self.nic.last_queue());
        show(&mut self.tap, place, now, frame);
        self.counters.frames_synthetic += 1;
        Ok(())
    }

    fn work_synthetic(&mut self, frame: &TxFrame<'_>, now: Instant) -> Result<(), Refused> {
        self.resend(now);
        if self.backlog {
            return Err(Refused::Full(Lack::Backlog));
        }
        let head = frame.pieces.first().copied().unwrap_or_default();
        if let Some(send) = frame.large_send
            && !self.nic.offloads().cuts(head, send, frame.len())
        {
            return self.cut_for_synthetic(frame, send, now);
        }
        self.nic.transmit_with(frame)?;
        self.counters.frames_synthetic += 1;
        if self.tap.is_some() {
            self.show_pieces(frame, now);
        }
        Ok(())
    }

    /// The host does not cut it: it goes out in segments, as there is room.
    fn cut_for_synthetic(
        &mut self,
        frame: &TxFrame<'_>,
        send: LargeSend,
        now: Instant,
    ) -> Result<(), Refused> {
        if !self.failover.is_open() {
            return Err(Refused::NotReady);
        }
        let head = frame.pieces.first().copied().unwrap_or_default();
        let cut = Cut::new(head, send).map_err(|_| Refused::Never)?;
        let len = frame.len();
        let pieces = frame.pieces.iter().copied();
        let (record, _) = self.replay.push(pieces, len).ok_or(Refused::Full(Lack::Backlog))?;
        record.work = TxWork { vlan: frame.vlan, hash: frame.hash, ..TxWork::NONE };
        record.cut = Some(cut);
        record.frames = cut.count(len);
        self.counters.frames_cut += record.frames as u64 - 1;
        self.backlog = true;
        self.resend(now);
        Ok(())
    }

    fn show_pieces(&mut self, frame: &TxFrame<'_>, now: Instant) {
        self.segment.clear();
        frame.pieces.iter().for_each(|piece| self.segment.extend_from_slice(piece));
        let place = (Path::Synthetic, self.nic.last_queue());
        show(&mut self.tap, place, now, &self.segment);
    }

    /// Sends what was taken.
    pub fn flush(&mut self) {
        self.nic.flush();
        if core::mem::take(&mut self.unflushed)
            && let Some(port) = &mut self.port
        {
            port.flush();
        }
    }

    /// Forgets frames that the VF has confirmed, and notices when the path that was left has sent everything.
    pub(super) fn reap(&mut self) {
        if let Some(port) = &mut self.port
            && !self.backlog
        {
            // Counted from the end: of what the port has not confirmed, the oldest may have been sent again long ago.
            let unconfirmed = self.expected.saturating_sub(port.confirmed());
            let unconfirmed = unconfirmed.saturating_sub(u64::from(seeded!("confirm-too-many")));
            let unconfirmed = usize::try_from(unconfirmed).unwrap_or(usize::MAX);
            self.replay.confirmed(self.replay.with_port().saturating_sub(unconfirmed));
        }
        if self.unwanted && self.replay.with_port() == 0 {
            self.unwanted = false;
            self.counters.too_long_for_vf += 1;
            (self.backlog, self.detour) = (!self.replay.is_empty(), true);
        }
        if self.failover.outlet() == Outlet::Draining {
            let path = self.failover.path();
            if path == Path::Synthetic && self.replay.with_port() == 0 {
                // What the VF had no room for goes on where all goes now.
                self.backlog = !self.replay.is_empty();
            }
            let sent = match path {
                Path::Synthetic => self.replay.is_empty(),
                Path::Vf => !self.backlog && self.nic.is_idle(),
            };
            if sent {
                self.failover.drained();
            }
        }
    }

    /// Everything that is not confirmed is to go out on the synthetic path.
    pub(super) fn begin_resend(&mut self) {
        self.reap();
        let had = self.replay.with_port();
        self.replay.take_back();
        self.backlog = !self.replay.is_empty();
        if had > 0 {
            self.events.push_back(AdapterEvent::Resending { frames: had });
        }
    }

    /// Sends what has to go out again, as far as there is room. Without a channel it waits for the next one.
    pub(super) fn resend(&mut self, now: Instant) {
        while self.backlog && self.failover.is_open() {
            let Some((record, bytes)) = self.replay.front() else {
                self.backlog = false;
                return;
            };
            let again = record.given > record.done;
            let mut work = record.work;
            let frame = match record.cut {
                Some(cut) => {
                    // Its checksums are computed, whoever was to cut it first.
                    work.large_send = None;
                    work.checksum = TransmitChecksum::empty();
                    cut.write(bytes, record.done, &mut self.segment);
                    self.segment.as_slice()
                }
                None => bytes,
            };
            if let (None, Some(send)) = (record.cut, work.large_send)
                && !self.nic.offloads().cuts(bytes, send, bytes.len())
                && let Ok(cut) = Cut::new(bytes, send)
            {
                // The VF would have cut it; the host does not.
                self.counters.frames_cut += cut.count(bytes.len()) as u64 - 1;
                self.replay.cut_front(cut);
                continue;
            }
            match send_to(&mut self.nic, frame, &work) {
                Ok(()) => {
                    let place = (Path::Synthetic, self.nic.last_queue());
                    show(&mut self.tap, place, now, frame);
                    self.counters.frames_synthetic += 1;
                    self.counters.frames_resent += u64::from(again);
                }
                Err(Refused::Full(_) | Refused::NotReady) => return,
                Err(Refused::Never) => self.counters.frames_lost += 1,
            }
            self.replay.forget();
            self.backlog = !self.replay.is_empty();
        }
    }
}

/// Does what the path does not, to a copy of the frame; `work` is what is left. How it is cut here, if it is.
fn finish(
    frame: &mut [u8],
    work: &mut TxWork,
    cuts: impl Fn(&[u8], LargeSend) -> bool,
    computes: impl Fn(&[u8], TransmitChecksum) -> bool,
) -> Result<Option<Cut>, TransmitError> {
    if let Some(send) = work.large_send {
        if cuts(frame, send) {
            return Ok(None);
        }
        *work = TxWork { vlan: work.vlan, hash: work.hash, ..TxWork::NONE };
        return Cut::new(frame, send).map(Some);
    }
    if offload::asks(work.checksum) && !computes(frame, work.checksum) {
        cut::fill_checksums(frame, work.checksum)?;
        work.checksum = TransmitChecksum::empty();
    }
    Ok(None)
}

/// The work on a frame that its tag has been put into.
fn behind_tag(work: TxWork) -> TxWork {
    let moved = |at: usize| (at + cut::TAG) as u16;
    let checksum = work.checksum;
    TxWork {
        vlan: None,
        checksum: match offload::asks(checksum) {
            true => checksum.at(moved(checksum.layer4())),
            false => checksum,
        },
        large_send: work
            .large_send
            .map(|send| LargeSend { layer4: moved(usize::from(send.layer4)), ..send }),
        hash: work.hash,
    }
}

fn give_to<P: VfPort>(port: &mut P, frame: &[u8], work: &TxWork) -> Result<(), PortError> {
    let work = TxWork { hash: None, ..*work };
    if work.is_none() { port.transmit(frame) } else { port.transmit_with(frame, &work) }
}

fn send_to<N: Synthetic>(nic: &mut N, frame: &[u8], work: &TxWork) -> Result<(), Refused> {
    if work.is_none() { nic.transmit(frame) } else { nic.transmit_with(&work.of(&[frame])) }
}

/// Shows the tap a frame that a path took.
#[inline]
pub(super) fn show(
    tap: &mut Option<Box<dyn Tap>>,
    (path, queue): (Path, u16),
    now: Instant,
    frame: &[u8],
) {
    if let Some(tap) = tap {
        tap.frame(path, queue, Direction::Out, now, &frame);
    }
}

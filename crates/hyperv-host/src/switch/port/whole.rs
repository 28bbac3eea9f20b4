//! TCP segments of a peer that are longer than frames: whole as far as a driver takes them so, in pieces everywhere else.

use super::{DropCause, Offered, Queued, SwitchPort};
use crate::nic::offload::{LargeSend, Segments};
use crate::switch::{Path, Uncut};
use vmbus::Instant;

impl SwitchPort {
    /// Whether the driver of the VF takes TCP segments that are longer than frames, by [`SwitchPort::next_for_vf`].
    pub fn set_vf_cuts(&mut self, cuts: bool) {
        self.vf_cuts = cuts;
    }

    /// Whether the guest's NIC takes such segments, as one that coalesces what it receives does. Those that wait and cannot be given to
    /// it are cut by [`SwitchPort::cut_next`].
    pub fn set_nic_gathers(&mut self, gathers: bool) {
        self.nic_gathers = gathers;
    }

    /// Whether a segment of the peer would reach the guest as it is now, so that whoever cuts it otherwise may leave it.
    #[must_use]
    pub fn wants_uncut(&self) -> bool {
        self.takes_uncut(self.data_path)
    }

    pub(super) fn takes_uncut(&self, path: Path) -> bool {
        match path {
            Path::Synthetic => self.nic_gathers,
            Path::Vf => self.vf_cuts,
        }
    }

    /// Cuts the next segment in a queue of the synthetic side; its pieces take its place. Nothing happens to a frame.
    pub fn cut_next(&mut self, queue: u16) {
        let next = self.peek_queue(queue).and_then(|queued| queued.uncut);
        let Some((uncut, Queued { frame, hash, .. })) =
            next.and_then(|uncut| Some((uncut, self.synthetic.pop_from(queue)?)))
        else {
            return;
        };
        if let Some(segments) = self.begin_cut(&frame, uncut) {
            for number in (0..segments.count(&frame)).rev() {
                let frame = self.piece(&segments, &frame, number);
                self.synthetic.push_front(queue, Queued { frame, hash, uncut: None });
            }
        }
        self.recycle(frame);
    }

    /// A TCP segment sent by the peer, to be cut where the guest takes no such segments. It counts as one frame until it is cut.
    pub fn peer_transmit_uncut(&mut self, segment: &[u8], uncut: Uncut, now: Instant) -> Offered {
        self.offer(segment, Some(uncut), now)
    }

    /// Delivers a segment in pieces.
    pub(super) fn deliver_pieces(&mut self, path: Path, segment: Vec<u8>, uncut: Uncut) {
        if let Some(segments) = self.begin_cut(&segment, uncut) {
            for number in 0..segments.count(&segment) {
                let piece = self.piece(&segments, &segment, number);
                self.deliver(path, piece, None);
            }
        }
        self.recycle(segment);
    }

    /// Counts a segment as its pieces; `None` if nobody can cut it, which is counted, too.
    fn begin_cut(&mut self, segment: &[u8], uncut: Uncut) -> Option<Segments> {
        let send = LargeSend { segment: uncut.segment, tcp_offset: uncut.layer4, ipv6: uncut.ipv6 };
        let Ok(segments) = Segments::new(segment, send) else {
            // It is longer than what goes over a link.
            self.counters.dropped_from_peer.count(DropCause::Oversize);
            return None;
        };
        self.counters.from_peer += segments.count(segment) as u64 - 1;
        Some(segments)
    }

    /// One piece of a segment.
    fn piece(&mut self, segments: &Segments, segment: &[u8], number: usize) -> Vec<u8> {
        let mut piece = self.spare.pop().unwrap_or_default();
        segments.write(segment, number, &mut piece);
        piece
    }
}

//! TCP segments of a peer that are longer than frames: whole as far as a driver takes them so, in pieces everywhere else.

use super::{DropCause, Offered, SwitchPort};
use crate::nic::offload::{LargeSend, Segments};
use crate::switch::{Path, Uncut};
use vmbus::Instant;

impl SwitchPort {
    /// Whether the driver of the VF takes TCP segments that are longer than frames, by [`SwitchPort::next_for_vf`].
    pub fn set_vf_cuts(&mut self, cuts: bool) {
        self.vf_cuts = cuts;
    }

    /// Whether a segment of the peer would reach the guest as it is now, so that whoever cuts it otherwise may leave it.
    #[must_use]
    pub fn wants_uncut(&self) -> bool {
        self.data_path == Path::Vf && self.takes_uncut(Path::Vf)
    }

    pub(super) fn takes_uncut(&self, path: Path) -> bool {
        path == Path::Vf && self.vf_cuts
    }

    /// A TCP segment sent by the peer, to be cut where the guest takes no such segments. It counts as one frame until it is cut.
    pub fn peer_transmit_uncut(&mut self, segment: &[u8], uncut: Uncut, now: Instant) -> Offered {
        self.offer(segment, Some(uncut), now)
    }

    /// Delivers a segment in pieces.
    pub(super) fn deliver_pieces(&mut self, path: Path, segment: Vec<u8>, uncut: Uncut) {
        let send = LargeSend { segment: uncut.segment, tcp_offset: uncut.layer4, ipv6: uncut.ipv6 };
        let Ok(segments) = Segments::new(&segment, send) else {
            // Nobody can cut it, and it is longer than what goes over a link.
            self.counters.dropped_from_peer.count(DropCause::Oversize);
            self.recycle(segment);
            return;
        };
        let count = segments.count(&segment);
        self.counters.from_peer += count as u64 - 1;
        for number in 0..count {
            let mut piece = self.spare.pop().unwrap_or_default();
            segments.write(&segment, number, &mut piece);
            self.deliver(path, piece, None);
        }
        self.recycle(segment);
    }
}

//! What became of every frame that the switch accepted.

use std::fmt;

use super::Path;

/// Why the switch dropped a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub enum DropCause {
    /// Shorter than an Ethernet header.
    Runt,
    /// Longer than the port allows.
    Oversize,
    /// For the synthetic side while no guest driver receives there (channel closed or packet filter 0).
    SyntheticDown,
    /// For the VF side while the VF is there and its driver does not receive.
    VfDown,
    /// Sent by the VF while the host does not forward for it (see [`super::VfTransmit`]).
    NotSwitched,
    /// A group frame that the NIC's packet filter does not ask for.
    Filtered,
    /// For another address than the NIC's, which is not promiscuous (see [`super::SwitchPort::set_address`]).
    Foreign,
}

impl DropCause {
    /// Every cause.
    pub const ALL: [Self; 7] = [
        Self::Runt,
        Self::Oversize,
        Self::SyntheticDown,
        Self::VfDown,
        Self::NotSwitched,
        Self::Filtered,
        Self::Foreign,
    ];

    /// The name of the cause in reports and metrics.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Runt => "runt",
            Self::Oversize => "oversize",
            Self::SyntheticDown => "synthetic-down",
            Self::VfDown => "vf-down",
            Self::NotSwitched => "not-switched",
            Self::Filtered => "filtered",
            Self::Foreign => "foreign",
        }
    }

    const fn index(self) -> usize {
        self as usize
    }
}

impl fmt::Display for DropCause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Dropped frames by cause.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Drops([u64; DropCause::ALL.len()]);

impl Drops {
    pub(super) fn count(&mut self, cause: DropCause) {
        self.0[cause.index()] += 1;
    }

    /// Frames dropped for `cause`.
    #[must_use]
    pub fn by(&self, cause: DropCause) -> u64 {
        self.0[cause.index()]
    }

    /// Frames dropped for any cause.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.0.iter().sum()
    }

    /// Every cause with its count, zeros included.
    pub fn iter(&self) -> impl Iterator<Item = (DropCause, u64)> + '_ {
        DropCause::ALL.into_iter().map(|cause| (cause, self.by(cause)))
    }
}

/// What one side of a port did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SideCounters {
    /// Frames taken from the guest on this side, those dropped at once included.
    pub from_guest: u64,
    /// Frames that those are more than that for a peer that cuts for itself: of every segment that was left to it, its pieces less one.
    pub from_guest_segments: u64,
    /// Bytes of those frames.
    pub from_guest_bytes: u64,
    /// Frames handed to the guest on this side.
    pub to_guest: u64,
    /// Bytes of those frames.
    pub to_guest_bytes: u64,
    /// Times a frame of the guest was turned away because the wire was full. The guest's side keeps the frame.
    pub busy: u64,
    /// Frames that wait for the guest on this side.
    pub queued: u64,
}

/// What one port did. [`PortCounters::unaccounted`] proves that no frame went missing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PortCounters {
    /// The synthetic side.
    pub synthetic: SideCounters,
    /// The VF side.
    pub vf: SideCounters,
    /// Frames that reached the peer.
    pub to_peer: u64,
    /// Bytes of those frames.
    pub to_peer_bytes: u64,
    /// Frames taken from the peer, those dropped at once included.
    pub from_peer: u64,
    /// Bytes of those frames.
    pub from_peer_bytes: u64,
    /// Times a frame of the peer was turned away because the wire was full.
    pub peer_busy: u64,
    /// Frames on their way to the peer.
    pub wire_to_peer: u64,
    /// Frames on their way from the peer.
    pub wire_from_peer: u64,
    /// Frames of the guest that were dropped.
    pub dropped_from_guest: Drops,
    /// Frames of the peer that were dropped.
    pub dropped_from_peer: Drops,
    /// Frames moved from the VF's queue to the synthetic queue because the data path changed while they waited.
    pub resteered: u64,
    /// Times that frames of the peer began to take another path: the data path changed, or the VF came or went.
    pub turns: u64,
}

impl SideCounters {
    /// Frames of the guest as a wire would carry them, with segments cut.
    #[must_use]
    pub const fn from_guest_cut(&self) -> u64 {
        self.from_guest + self.from_guest_segments
    }
}

impl PortCounters {
    /// The counters of one side.
    #[must_use]
    pub const fn side(&self, path: Path) -> &SideCounters {
        match path {
            Path::Synthetic => &self.synthetic,
            Path::Vf => &self.vf,
        }
    }

    /// Frames accepted from guest and peer minus frames delivered, waiting or dropped: zero each, always.
    #[must_use]
    pub fn unaccounted(&self) -> (i128, i128) {
        let from_guest = self.synthetic.from_guest + self.vf.from_guest;
        let guest_known = self.to_peer + self.wire_to_peer + self.dropped_from_guest.total();
        let peer_known = self.synthetic.to_guest
            + self.vf.to_guest
            + self.synthetic.queued
            + self.vf.queued
            + self.wire_from_peer
            + self.dropped_from_peer.total();
        (
            i128::from(from_guest) - i128::from(guest_known),
            i128::from(self.from_peer) - i128::from(peer_known),
        )
    }

    /// Frames dropped in either direction.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.dropped_from_guest.total() + self.dropped_from_peer.total()
    }

    /// Frames that are still on the way somewhere.
    #[must_use]
    pub const fn in_flight(&self) -> u64 {
        self.wire_to_peer + self.wire_from_peer + self.synthetic.queued + self.vf.queued
    }
}

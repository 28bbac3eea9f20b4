//! Looking at the frames of an adapter, path by path.

use core::fmt;

use vmbus::Instant;

/// Which way a frame goes, as the guest sees it.
pub use vmbus::channel::Direction;

use super::Frame;
use crate::port::Path;

/// Sees every frame of an adapter as it goes over a path: what either path took, also when it is sent again, and what came.
/// An adapter without one spends a comparison per frame on it.
pub trait Tap: fmt::Debug + Send {
    /// A frame, on this channel of the NIC: 0 for the primary one, and for a VF.
    fn frame(
        &mut self,
        path: Path,
        queue: u16,
        direction: Direction,
        now: Instant,
        frame: &dyn Frame,
    );
}

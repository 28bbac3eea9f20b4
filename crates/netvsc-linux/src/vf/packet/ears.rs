//! What to wait for on behalf of a port that somebody else has.

use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};

/// What to wait for on a port's behalf, wherever the port is. It does not keep the port.
#[derive(Clone, Debug)]
pub struct PortEars {
    parts: Vec<Weak<OwnedFd>>,
    stuck: Arc<AtomicBool>,
}

impl PortEars {
    pub(crate) fn of<'a>(
        parts: impl IntoIterator<Item = &'a Arc<OwnedFd>>,
        stuck: &Arc<AtomicBool>,
    ) -> Self {
        let parts = parts.into_iter().map(Arc::downgrade).collect();
        Self { parts, stuck: stuck.clone() }
    }

    /// Descriptors that are readable when there are frames, or the interface has changed; none once the port is gone.
    #[must_use]
    pub fn descriptors(&self) -> Vec<Arc<OwnedFd>> {
        self.parts.iter().filter_map(Weak::upgrade).collect()
    }

    /// Whether frames wait that the kernel has not taken: try again a little later, by [`VfPort::flush`](netvsc::VfPort::flush).
    #[must_use]
    pub fn is_stuck(&self) -> bool {
        self.stuck.load(Ordering::Relaxed)
    }
}

//! What a guest must provide: memory that it can share with its host.

use crate::memory::SharedPages;

/// No memory to share.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no {pages} pages of shareable memory are left")]
pub struct AllocError {
    /// Number of pages asked for.
    pub pages: usize,
}

/// The guest's environment, where the protocol machines need it.
///
/// There is no method that gives memory back: that is what dropping the last view of [`SharedPages`] does. Time is not
/// here either; it is handed to whoever needs it.
pub trait Platform {
    /// Zeroed memory that the host can be told about, known to it by [`SharedPages::frames`].
    ///
    /// The pages lie in one piece in this address space; their frames need not follow each other.
    ///
    /// # Errors
    /// [`AllocError`] if there is not enough, or if `pages` is 0.
    fn allocate(&self, pages: usize) -> Result<SharedPages, AllocError>;
}

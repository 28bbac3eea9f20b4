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

    /// Makes memory readable for the host; called by [`Bus::reveal`](crate::Bus::reveal). What was in it is lost.
    /// Only guests that are isolated from their host have something to do here.
    ///
    /// # Errors
    /// [`AllocError`] if the memory, or a part of it, cannot be made readable. It is never used again then, since nobody
    /// knows how far it went.
    fn decrypt(&self, memory: &SharedPages) -> Result<(), AllocError> {
        let _ = memory;
        Ok(())
    }

    /// Makes memory the guest's own again; called by [`Bus::conceal`](crate::Bus::conceal), for pages that the host has
    /// returned. What was in it is lost.
    ///
    /// # Errors
    /// [`AllocError`] if it stays readable for the host. It is never used again then.
    fn encrypt(&self, memory: &SharedPages) -> Result<(), AllocError> {
        let _ = memory;
        Ok(())
    }
}

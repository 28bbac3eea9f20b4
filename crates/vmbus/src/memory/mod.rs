//! Memory that a peer may change at any moment. The only module of this crate with `unsafe` in it.
//!
//! A host can write to every page it was given, whenever it likes. Such memory is therefore never a `&[u8]`: it
//! is reached through copies ([`SharedMemory::read`], [`SharedMemory::write`]) and single atomics
//! ([`SharedMemory::load_u32`], [`SharedMemory::words`]), so that whatever the peer does, the guest sees some value and
//! nothing worse.
//!
//! [`SharedPages`] is memory that lies in one piece in the owner's address space (a guest's own pages, a mapping);
//! [`PageList`] is the other side's view of the same pages, scattered; [`DoublyMapped`] is a ring in which no packet wraps.

use core::sync::atomic::AtomicU64;

mod copy;
mod double;
mod list;
mod pages;

pub use copy::{copy_in, copy_out};
pub(crate) use copy::{full_barrier, words_for};
pub use double::DoublyMapped;
pub use list::PageList;
pub use pages::{Backing, SharedPages, WeakPages};

/// Bytes in a page of the protocol. Always 4,096, also on guests whose own pages are larger.
pub const PAGE_SIZE: usize = 4096;

/// An access outside shared memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{len} bytes at offset {offset} do not lie within {size} bytes of shared memory")]
pub struct OutOfRange {
    /// First byte asked for.
    pub offset: usize,
    /// Number of bytes asked for.
    pub len: usize,
    /// Size of the memory.
    pub size: usize,
}

/// Memory shared with a peer that may write to it at any moment.
///
/// Copies are not atomic as a whole: a peer that writes meanwhile leaves a mixture. Copy once, then validate the
/// copy and use nothing else.
pub trait SharedMemory {
    /// Size in bytes; fixed for the life of the value.
    fn size(&self) -> usize;

    /// Copies `out.len()` bytes at `offset` out of shared memory.
    ///
    /// # Errors
    /// [`OutOfRange`] if the bytes do not all lie inside; `out` is then unchanged.
    fn read(&self, offset: usize, out: &mut [u8]) -> Result<(), OutOfRange>;

    /// Copies `data` into shared memory at `offset`.
    ///
    /// # Errors
    /// [`OutOfRange`] if the bytes do not all fit; nothing is then written.
    fn write(&self, offset: usize, data: &[u8]) -> Result<(), OutOfRange>;

    /// Reads the aligned little-endian 32-bit word at `offset`, with the ordering of an acquire.
    ///
    /// # Errors
    /// [`OutOfRange`] if it does not lie inside or `offset` is not a multiple of 4.
    fn load_u32(&self, offset: usize) -> Result<u32, OutOfRange>;

    /// Writes the aligned little-endian 32-bit word at `offset`, with the ordering of a release.
    ///
    /// # Errors
    /// [`OutOfRange`] if it does not lie inside or `offset` is not a multiple of 4.
    fn store_u32(&self, offset: usize, value: u32) -> Result<(), OutOfRange>;

    /// The memory from `offset` on as 64-bit words, as far as it lies in one piece.
    ///
    /// The way around the checks of [`SharedMemory::read`] and [`SharedMemory::write`] for those who have many small
    /// accesses. Fewer words than there are bytes left, or none at all, say nothing about the range: memory in pieces ends
    /// at the end of a piece, and an implementation that watches its accesses has no words to give. [`DoublyMapped`] gives
    /// more words than its size.
    #[inline]
    fn words(&self, offset: usize) -> &[AtomicU64] {
        let _ = offset;
        &[]
    }

    /// All of the memory as words, if it lies in one piece; otherwise none. Asked for every packet, so it has to be cheap.
    #[inline]
    fn whole(&self) -> &[AtomicU64] {
        &[]
    }
}

/// Whether `len` bytes at `offset` lie within `size` bytes.
#[inline]
fn check(offset: usize, len: usize, size: usize) -> Result<(), OutOfRange> {
    match offset.checked_add(len) {
        Some(end) if end <= size => Ok(()),
        _ => Err(OutOfRange { offset, len, size }),
    }
}

#[cfg(test)]
mod tests;

//! Mappings: rings in which no packet wraps (the data twice, one right behind the other), and files that processes share.

use std::os::fd::AsFd;
use std::ptr::{self, NonNull};
use std::sync::Arc;

use rustix::io::Errno;
use rustix::mm::{MapFlags, ProtFlags, mmap, mmap_anonymous, munmap};
use vmbus::Pfn;
use vmbus::memory::{Backing, DoublyMapped, PAGE_SIZE, SharedPages};

/// Maps the ring of a header page and `data_pages` pages of data (4,096 bytes each) that starts `offset` bytes into `file`:
/// the `memory` of a uio device, or a file of `memfd_create`.
///
/// The file has to stay as long as it is: an access behind its end kills the process.
///
/// # Errors
/// What the kernel says; [`Errno::INVAL`] also for no pages, more than can be addressed, or pages of another size than the
/// kernel's.
pub fn map_ring(file: impl AsFd, offset: u64, data_pages: usize) -> Result<DoublyMapped, Errno> {
    let pages = data_pages.checked_mul(2).and_then(|pages| pages.checked_add(1));
    let len = pages.and_then(|pages| pages.checked_mul(PAGE_SIZE)).ok_or(Errno::INVAL)?;
    if data_pages == 0 || rustix::param::page_size() != PAGE_SIZE {
        return Err(Errno::INVAL);
    }
    let region = Region::reserve(len)?;
    let once = PAGE_SIZE * (1 + data_pages);
    region.place(&file, offset, 0, once)?;
    region.place(&file, offset + PAGE_SIZE as u64, once, PAGE_SIZE * data_pages)?;
    let base = region.base;
    // SAFETY: `region` is mapped readable and writable in full, page aligned, and unmapped when it goes. Nothing else in this
    // process knows the address.
    let pages = unsafe { SharedPages::from_raw(base, len / PAGE_SIZE, &[], Arc::new(region)) };
    DoublyMapped::new(pages).ok_or(Errno::INVAL)
}

/// Maps `pages` pages (4,096 bytes each) of `file` from the byte `offset` on, known to the peer as `frames`, which is empty or
/// as long. What an offset means is up to the file: those of a uio device number its maps.
///
/// The file has to stay as long as it is, as for [`map_ring`].
pub(crate) fn map_file(
    file: impl AsFd,
    offset: u64,
    pages: usize,
    frames: &[Pfn],
) -> Result<SharedPages, Errno> {
    let len = pages.checked_mul(PAGE_SIZE).filter(|len| *len > 0).ok_or(Errno::INVAL)?;
    let region = Region::reserve(len)?;
    region.place(&file, offset, 0, len)?;
    let base = region.base;
    // SAFETY: `region` is mapped readable and writable in full, page aligned, and unmapped when it goes. Nothing else in this
    // process knows the address; what other processes do to the memory is what `SharedPages` is made for.
    Ok(unsafe { SharedPages::from_raw(base, pages, frames, Arc::new(region)) })
}

/// A piece of address space that is ours.
struct Region {
    base: NonNull<u8>,
    len: usize,
}

impl Region {
    /// Address space with nothing in it that could be accessed.
    fn reserve(len: usize) -> Result<Self, Errno> {
        // SAFETY: the kernel chooses a place where nothing is.
        let base =
            unsafe { mmap_anonymous(ptr::null_mut(), len, ProtFlags::empty(), MapFlags::PRIVATE)? };
        let base = NonNull::new(base.cast()).ok_or(Errno::NOMEM)?;
        Ok(Self { base, len })
    }

    /// Puts `len` bytes of a file, from `offset` on, at so many bytes into the region. They lie inside.
    fn place(&self, file: &impl AsFd, offset: u64, at: usize, len: usize) -> Result<(), Errno> {
        assert!(at + len <= self.len, "inside the region");
        let flags = MapFlags::SHARED | MapFlags::FIXED;
        // SAFETY: what is replaced is a part of this region, by the assertion, and nobody uses it yet.
        unsafe {
            let start = self.base.as_ptr().add(at).cast();
            mmap(start, len, ProtFlags::READ | ProtFlags::WRITE, flags, file, offset)?;
        }
        Ok(())
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        // SAFETY: ours alone, mapped in `reserve`, and with its last view gone.
        if let Err(error) = unsafe { munmap(self.base.as_ptr().cast(), self.len) } {
            tracing::debug!(%error, "a mapping stays");
        }
    }
}

// SAFETY: an address range without state; only `Drop` uses it.
unsafe impl Send for Region {}
// SAFETY: as above.
unsafe impl Sync for Region {}

impl Backing for Region {}

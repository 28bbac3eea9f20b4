//! Pages that lie in one piece in this address space.

use alloc::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use alloc::sync::{Arc, Weak};
use core::fmt;
use core::ptr::NonNull;
use core::slice;
use core::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering};

use super::copy::bulk;
use super::{OutOfRange, PAGE_SIZE, SharedMemory, check};
use crate::Pfn;

/// What keeps a piece of shared memory alive; dropped with its last view.
///
/// An implementation gives the memory back in its `Drop`. The trait has no method because nothing else is asked
/// of it.
pub trait Backing: Send + Sync {}

/// Pages that lie in one piece in this address space, with the page frame numbers by which the peer knows them.
///
/// Cheap to clone: clones are views of the same memory, which is given back when the last view goes. So memory
/// that a host may still write to cannot be freed while any part of this crate holds a view.
#[derive(Clone)]
pub struct SharedPages {
    base: NonNull<AtomicU8>,
    size: usize,
    /// The same in words: asked for with every packet.
    words: usize,
    frames: Arc<[Pfn]>,
    first_frame: usize,
    backing: Arc<dyn Backing>,
}

// SAFETY: the memory is only reached through atomics, `Backing` is Send + Sync, and `base` stays valid wherever the
// value moves because `backing` goes with it.
unsafe impl Send for SharedPages {}
// SAFETY: as above; all access through `&self` is atomic.
unsafe impl Sync for SharedPages {}

impl SharedPages {
    /// A view of memory that something else provides, such as a mapping.
    ///
    /// `frames` holds one page frame number per page, or is empty where the peer does not need to know them (a
    /// mapping whose descriptor list already exists).
    ///
    /// # Safety
    /// - `base` is aligned to 8 bytes and valid for reads and writes of `pages` × [`PAGE_SIZE`] bytes for as long as
    ///   `backing` lives.
    /// - While it lives, this process reaches that memory only through atomics or through this crate.
    ///
    /// # Panics
    /// If `pages` is 0, or `frames` is neither empty nor `pages` long.
    #[must_use]
    pub unsafe fn from_raw(
        base: NonNull<u8>,
        pages: usize,
        frames: &[Pfn],
        backing: Arc<dyn Backing>,
    ) -> Self {
        assert!(pages > 0, "shared memory has at least one page");
        assert!(frames.is_empty() || frames.len() == pages, "one page frame number per page");
        Self {
            base: base.cast(),
            size: pages * PAGE_SIZE,
            words: pages * PAGE_SIZE / 8,
            frames: frames.into(),
            first_frame: 0,
            backing,
        }
    }

    /// Zeroed memory from the heap, known to the peer as `frames` (one page each).
    ///
    /// # Panics
    /// If `frames` is empty.
    #[must_use]
    pub fn from_heap(frames: &[Pfn]) -> Self {
        assert!(!frames.is_empty(), "shared memory has at least one page");
        let block = HeapBlock::zeroed(frames.len() * PAGE_SIZE);
        let base = block.base;
        // SAFETY: the block is page aligned, as long as `frames` says, freed when the Arc goes, and reachable only
        // through the value made here.
        unsafe { Self::from_raw(base, frames.len(), frames, Arc::new(block)) }
    }

    /// Number of pages.
    #[must_use]
    pub fn pages(&self) -> usize {
        self.size / PAGE_SIZE
    }

    /// The page frame numbers of these pages, in order; empty if the peer does not need them.
    #[must_use]
    pub fn frames(&self) -> &[Pfn] {
        let end = self.first_frame + self.pages();
        self.frames.get(self.first_frame..end).unwrap_or_default()
    }

    /// A view of `pages` pages from page `first`; `None` if they are not all inside.
    #[must_use]
    pub fn slice(&self, first: usize, pages: usize) -> Option<Self> {
        if pages == 0 || first.checked_add(pages)? > self.pages() {
            return None;
        }
        // SAFETY: the offset lies inside the memory by the check above.
        let base = unsafe { self.base.add(first * PAGE_SIZE) };
        Some(Self {
            base,
            size: pages * PAGE_SIZE,
            words: pages * PAGE_SIZE / 8,
            first_frame: self.first_frame + first,
            ..self.clone()
        })
    }

    /// A view of the same memory by somebody who does not know its page frames, as is the rule where the kernel has mapped it.
    #[must_use]
    pub fn without_frames(&self) -> Self {
        Self { frames: Arc::from([]), first_frame: 0, ..self.clone() }
    }

    /// A handle that does not keep the memory alive.
    #[must_use]
    pub fn downgrade(&self) -> WeakPages {
        WeakPages {
            base: self.base,
            size: self.size,
            frames: self.frames.clone(),
            first_frame: self.first_frame,
            backing: Arc::downgrade(&self.backing),
        }
    }

    /// Fills the memory with `byte`.
    pub fn fill(&self, byte: u8) {
        for word in self.whole() {
            word.store(u64::from_ne_bytes([byte; 8]), Ordering::Relaxed);
        }
    }

    /// The aligned 32-bit word at `offset`, for what is more than a load or a store.
    ///
    /// # Errors
    /// [`OutOfRange`] if it does not lie inside or `offset` is not a multiple of 4.
    #[inline]
    pub fn atomic_u32(&self, offset: usize) -> Result<&AtomicU32, OutOfRange> {
        // SAFETY: every constructor makes sure of one page at least. The fields of a ring's header need no check then.
        unsafe { core::hint::assert_unchecked(self.size >= PAGE_SIZE) };
        check(offset, 4, self.size)?;
        if !offset.is_multiple_of(4) {
            return Err(OutOfRange { offset, len: 4, size: self.size });
        }
        // SAFETY: inside and aligned by the checks above.
        Ok(unsafe { self.base.add(offset).cast::<AtomicU32>().as_ref() })
    }
}

impl SharedMemory for SharedPages {
    #[inline]
    fn size(&self) -> usize {
        self.size
    }

    #[inline]
    fn read(&self, offset: usize, out: &mut [u8]) -> Result<(), OutOfRange> {
        check(offset, out.len(), self.size)?;
        // SAFETY: inside by the check above; `out` is ours alone.
        unsafe {
            bulk::load(
                self.base.as_ptr().cast_const().cast::<u8>().add(offset),
                out.as_mut_ptr(),
                out.len(),
            );
        }
        Ok(())
    }

    #[inline]
    fn write(&self, offset: usize, data: &[u8]) -> Result<(), OutOfRange> {
        check(offset, data.len(), self.size)?;
        // SAFETY: inside by the check above; atomics may be written through a shared reference.
        unsafe {
            bulk::store(data.as_ptr(), self.base.as_ptr().cast::<u8>().add(offset), data.len());
        }
        Ok(())
    }

    #[inline]
    fn load_u32(&self, offset: usize) -> Result<u32, OutOfRange> {
        Ok(u32::from_le(self.atomic_u32(offset)?.load(Ordering::Acquire)))
    }

    #[inline]
    fn store_u32(&self, offset: usize, value: u32) -> Result<(), OutOfRange> {
        self.atomic_u32(offset)?.store(value.to_le(), Ordering::Release);
        Ok(())
    }

    #[inline(always)]
    fn whole(&self) -> &[AtomicU64] {
        // SAFETY: all of the memory, which is aligned and a multiple of 8 long; atomics may alias.
        unsafe { slice::from_raw_parts(self.base.cast().as_ptr(), self.words) }
    }

    #[inline]
    fn words(&self, offset: usize) -> &[AtomicU64] {
        if offset > self.size || !offset.is_multiple_of(8) {
            return &[];
        }
        // SAFETY: inside by the check above, aligned since `base` and `offset` are; atomics may alias.
        unsafe {
            slice::from_raw_parts(self.base.add(offset).cast().as_ptr(), (self.size - offset) / 8)
        }
    }
}

impl fmt::Debug for SharedPages {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SharedPages").field("size", &self.size).finish_non_exhaustive()
    }
}

/// A handle to [`SharedPages`] that does not keep them alive.
#[derive(Clone)]
pub struct WeakPages {
    base: NonNull<AtomicU8>,
    size: usize,
    frames: Arc<[Pfn]>,
    first_frame: usize,
    backing: Weak<dyn Backing>,
}

// SAFETY: as for SharedPages; the pointer is used only after `backing` was upgraded.
unsafe impl Send for WeakPages {}
// SAFETY: as above.
unsafe impl Sync for WeakPages {}

impl WeakPages {
    /// Whether somebody still holds the pages.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        self.backing.strong_count() > 0
    }

    /// The pages, if somebody still holds them.
    #[must_use]
    pub fn upgrade(&self) -> Option<SharedPages> {
        Some(SharedPages {
            base: self.base,
            size: self.size,
            words: self.size / 8,
            frames: self.frames.clone(),
            first_frame: self.first_frame,
            backing: self.backing.upgrade()?,
        })
    }
}

impl fmt::Debug for WeakPages {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WeakPages").field("size", &self.size).finish_non_exhaustive()
    }
}

/// A block of zeroed, page-aligned heap memory.
struct HeapBlock {
    base: NonNull<u8>,
    layout: Layout,
}

impl HeapBlock {
    fn zeroed(size: usize) -> Self {
        let Ok(layout) = Layout::from_size_align(size, PAGE_SIZE) else {
            handle_alloc_error(Layout::new::<u64>());
        };
        // SAFETY: the layout is not empty; `from_heap` refuses zero pages.
        let Some(base) = NonNull::new(unsafe { alloc_zeroed(layout) }) else {
            handle_alloc_error(layout);
        };
        Self { base, layout }
    }
}

impl Drop for HeapBlock {
    fn drop(&mut self) {
        // SAFETY: allocated in `zeroed` with this layout, freed once.
        unsafe { dealloc(self.base.as_ptr(), self.layout) }
    }
}

// SAFETY: the block owns its memory and has no interior access of its own.
unsafe impl Send for HeapBlock {}
// SAFETY: as above.
unsafe impl Sync for HeapBlock {}

impl Backing for HeapBlock {}

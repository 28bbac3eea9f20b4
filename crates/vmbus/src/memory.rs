//! Memory that a peer may change at any moment. The only module of this crate with `unsafe` in it.
//!
//! A host can write to every page it was given, whenever it likes. Such memory is therefore never a `&[u8]`: it
//! is reached through copies ([`SharedMemory::read`], [`SharedMemory::write`]) and single atomics
//! ([`SharedMemory::atomic_u32`]), so that whatever the peer does, the guest sees some value and nothing worse.
//!
//! [`SharedPages`] is memory that lies in one piece in the owner's address space (a guest's own pages, a mapping);
//! [`PageList`] is the other side's view of the same pages, scattered.

use alloc::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use alloc::boxed::Box;
use alloc::sync::{Arc, Weak};
use alloc::vec::Vec;
use core::fmt;
use core::ptr::NonNull;
use core::slice;
use core::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering};

use crate::Pfn;

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

    /// The aligned 32-bit word at `offset`.
    ///
    /// # Errors
    /// [`OutOfRange`] if it does not lie inside or `offset` is not a multiple of 4.
    fn atomic_u32(&self, offset: usize) -> Result<&AtomicU32, OutOfRange>;

    /// `len` bytes at `offset` as 64-bit words, if they lie in one piece and both numbers are multiples of 8.
    ///
    /// `None` says nothing about the range: memory in several pieces may refuse any of them. [`copy_in`] and
    /// [`copy_out`] copy through such words with one check for the whole.
    fn words(&self, offset: usize, len: usize) -> Option<&[AtomicU64]>;
}

/// Copies `data` into shared words. What does not fill a whole word, or finds none, is left out.
///
/// The peer may see the words in any order, and each of them whole.
#[inline]
pub fn copy_in(words: &[AtomicU64], data: &[u8]) {
    let len = (words.len() * 8).min(data.len()) & !7;
    if len >= BULK {
        // SAFETY: both are valid for `len` bytes, a multiple of 8; atomics may be written through a shared reference.
        return unsafe { bulk::copy(data.as_ptr(), words.as_ptr().cast_mut().cast(), len) };
    }
    for (word, bytes) in words.iter().zip(data.chunks_exact(8)) {
        let Some(bytes) = bytes.first_chunk() else { return };
        word.store(u64::from_ne_bytes(*bytes), Ordering::Relaxed);
    }
}

/// Copies shared words out into `out`. Bytes of `out` that do not fill a whole word, or find none, stay as they are.
#[inline]
pub fn copy_out(words: &[AtomicU64], out: &mut [u8]) {
    let len = (words.len() * 8).min(out.len()) & !7;
    if len >= BULK {
        // SAFETY: both are valid for `len` bytes, a multiple of 8; `out` is ours alone.
        return unsafe { bulk::copy(words.as_ptr().cast(), out.as_mut_ptr(), len) };
    }
    for (word, bytes) in words.iter().zip(out.chunks_exact_mut(8)) {
        bytes.copy_from_slice(&word.load(Ordering::Relaxed).to_ne_bytes());
    }
}

/// From this many bytes on, a copy goes through the widest moves there are.
const BULK: usize = 64;

/// Copies of many bytes. Rust has no atomic access wider than a word, and the compiler may not join atomic accesses; the
/// moves below are invisible to it, so that memory which a peer changes meanwhile is no data race of the language.
#[cfg(all(target_arch = "x86_64", target_feature = "sse2", not(miri)))]
mod bulk {
    use core::arch::asm;

    /// Copies `len` bytes, a multiple of 8, 64 at a time.
    ///
    /// # Safety
    /// `from` is valid for reads and `to` for writes of `len` bytes, and they do not overlap.
    #[inline]
    pub(super) unsafe fn copy(from: *const u8, to: *mut u8, len: usize) {
        // SAFETY: every access lies within the `len` bytes: whole blocks of 64 first, single words behind them. Only the
        // registers named are changed.
        unsafe {
            asm!(
                "2:",
                "movups {a}, [{from}]",
                "movups {b}, [{from} + 16]",
                "movups {c}, [{from} + 32]",
                "movups {d}, [{from} + 48]",
                "movups [{to}], {a}",
                "movups [{to} + 16], {b}",
                "movups [{to} + 32], {c}",
                "movups [{to} + 48], {d}",
                "add {from}, 64",
                "add {to}, 64",
                "dec {blocks}",
                "jnz 2b",
                "test {words}, {words}",
                "jz 4f",
                "3:",
                "mov {t}, [{from}]",
                "mov [{to}], {t}",
                "add {from}, 8",
                "add {to}, 8",
                "dec {words}",
                "jnz 3b",
                "4:",
                from = inout(reg) from => _,
                to = inout(reg) to => _,
                blocks = inout(reg) len / 64 => _,
                words = inout(reg) len % 64 / 8 => _,
                a = out(xmm_reg) _,
                b = out(xmm_reg) _,
                c = out(xmm_reg) _,
                d = out(xmm_reg) _,
                t = out(reg) _,
                options(nostack),
            );
        }
    }
}

/// Copies of many bytes, word by word.
#[cfg(not(all(target_arch = "x86_64", target_feature = "sse2", not(miri))))]
mod bulk {
    use core::sync::atomic::{AtomicU64, Ordering};

    /// Copies `len` bytes, a multiple of 8.
    ///
    /// # Safety
    /// `from` is valid for reads and `to` for writes of `len` bytes, and they do not overlap. The one that is shared is
    /// aligned to 8.
    #[inline]
    pub(super) unsafe fn copy(from: *const u8, to: *mut u8, len: usize) {
        for at in (0..len).step_by(8) {
            // SAFETY: inside by the loop. The private side may be unaligned, the shared side is a word of its own.
            unsafe {
                let (from, to) = (from.add(at), to.add(at));
                let value = if from.cast::<u64>().is_aligned() {
                    (*from.cast::<AtomicU64>()).load(Ordering::Relaxed)
                } else {
                    from.cast::<u64>().read_unaligned()
                };
                if to.cast::<u64>().is_aligned() {
                    (*to.cast::<AtomicU64>()).store(value, Ordering::Relaxed);
                } else {
                    to.cast::<u64>().write_unaligned(value);
                }
            }
        }
    }
}

fn check(offset: usize, len: usize, size: usize) -> Result<(), OutOfRange> {
    match offset.checked_add(len) {
        Some(end) if end <= size => Ok(()),
        _ => Err(OutOfRange { offset, len, size }),
    }
}

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
    /// If `frames` is neither empty nor `pages` long.
    #[must_use]
    pub unsafe fn from_raw(
        base: NonNull<u8>,
        pages: usize,
        frames: &[Pfn],
        backing: Arc<dyn Backing>,
    ) -> Self {
        assert!(frames.is_empty() || frames.len() == pages, "one page frame number per page");
        Self {
            base: base.cast(),
            size: pages * PAGE_SIZE,
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
            first_frame: self.first_frame + first,
            ..self.clone()
        })
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
        for word in self.words_unchecked(0, self.size) {
            word.store(u64::from_ne_bytes([byte; 8]), Ordering::Relaxed);
        }
    }

    /// `len` bytes at `offset` as words. The caller has checked that they lie inside; both numbers are multiples of 8,
    /// or `len` is 0.
    #[inline]
    fn words_unchecked(&self, offset: usize, len: usize) -> &[AtomicU64] {
        if len == 0 {
            return &[];
        }
        debug_assert!(offset.is_multiple_of(8) && offset + len <= self.size);
        // SAFETY: inside by the caller's check, aligned since `base` and `offset` are; atomics may alias.
        unsafe { slice::from_raw_parts(self.base.add(offset).cast().as_ptr(), len / 8) }
    }

    /// The byte at `offset`. The caller has checked that it lies inside.
    #[inline]
    fn byte(&self, offset: usize) -> &AtomicU8 {
        debug_assert!(offset < self.size);
        // SAFETY: inside by the caller's check.
        unsafe { self.base.add(offset).as_ref() }
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
        // Single bytes up to a word, words, single bytes behind the last.
        let head = (offset.wrapping_neg() % 8).min(out.len());
        let (first, rest) = out.split_at_mut(head);
        let (middle, last) = rest.split_at_mut(rest.len() & !7);
        for (at, byte) in first.iter_mut().enumerate() {
            *byte = self.byte(offset + at).load(Ordering::Relaxed);
        }
        copy_out(self.words_unchecked(offset + head, middle.len()), middle);
        let tail = offset + head + middle.len();
        for (at, byte) in last.iter_mut().enumerate() {
            *byte = self.byte(tail + at).load(Ordering::Relaxed);
        }
        Ok(())
    }

    #[inline]
    fn write(&self, offset: usize, data: &[u8]) -> Result<(), OutOfRange> {
        check(offset, data.len(), self.size)?;
        let head = (offset.wrapping_neg() % 8).min(data.len());
        let (first, rest) = data.split_at(head);
        let (middle, last) = rest.split_at(rest.len() & !7);
        for (at, byte) in first.iter().enumerate() {
            self.byte(offset + at).store(*byte, Ordering::Relaxed);
        }
        copy_in(self.words_unchecked(offset + head, middle.len()), middle);
        let tail = offset + head + middle.len();
        for (at, byte) in last.iter().enumerate() {
            self.byte(tail + at).store(*byte, Ordering::Relaxed);
        }
        Ok(())
    }

    #[inline]
    fn words(&self, offset: usize, len: usize) -> Option<&[AtomicU64]> {
        if !(offset | len).is_multiple_of(8) || check(offset, len, self.size).is_err() {
            return None;
        }
        Some(self.words_unchecked(offset, len))
    }

    #[inline]
    fn atomic_u32(&self, offset: usize) -> Result<&AtomicU32, OutOfRange> {
        check(offset, 4, self.size)?;
        if !offset.is_multiple_of(4) {
            return Err(OutOfRange { offset, len: 4, size: self.size });
        }
        // SAFETY: inside and aligned by the checks above.
        Ok(unsafe { self.base.add(offset).cast::<AtomicU32>().as_ref() })
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

/// Pages in any order, seen as one piece: how a host sees the memory that a guest described page by page.
#[derive(Clone, Debug)]
pub struct PageList {
    pages: Box<[SharedPages]>,
}

impl PageList {
    /// The concatenation of `runs`, each of one page or more.
    #[must_use]
    pub fn new(runs: impl IntoIterator<Item = SharedPages>) -> Self {
        let mut pages = Vec::new();
        for run in runs {
            pages.extend((0..run.pages()).filter_map(|page| run.slice(page, 1)));
        }
        Self { pages: pages.into() }
    }

    /// Number of pages.
    #[must_use]
    pub fn pages(&self) -> usize {
        self.pages.len()
    }

    /// The pages from `first`, `pages` of them; `None` if they are not all inside.
    #[must_use]
    pub fn slice(&self, first: usize, pages: usize) -> Option<Self> {
        let end = first.checked_add(pages)?;
        Some(Self { pages: self.pages.get(first..end)?.into() })
    }

    /// Calls `part(page, offset in page, range of the caller's buffer)` for each page that the bytes touch.
    #[inline]
    fn split(
        &self,
        mut offset: usize,
        len: usize,
        mut part: impl FnMut(&SharedPages, usize, core::ops::Range<usize>) -> Result<(), OutOfRange>,
    ) -> Result<(), OutOfRange> {
        check(offset, len, self.size())?;
        let mut done = 0;
        while done < len {
            let within = offset % PAGE_SIZE;
            let count = (PAGE_SIZE - within).min(len - done);
            part(&self.pages[offset / PAGE_SIZE], within, done..done + count)?;
            done += count;
            offset += count;
        }
        Ok(())
    }
}

impl SharedMemory for PageList {
    #[inline]
    fn size(&self) -> usize {
        self.pages.len() * PAGE_SIZE
    }

    #[inline]
    fn read(&self, offset: usize, out: &mut [u8]) -> Result<(), OutOfRange> {
        self.split(offset, out.len(), |page, at, range| page.read(at, &mut out[range]))
    }

    #[inline]
    fn write(&self, offset: usize, data: &[u8]) -> Result<(), OutOfRange> {
        self.split(offset, data.len(), |page, at, range| page.write(at, &data[range]))
    }

    #[inline]
    fn words(&self, offset: usize, len: usize) -> Option<&[AtomicU64]> {
        self.pages.get(offset / PAGE_SIZE)?.words(offset % PAGE_SIZE, len)
    }

    #[inline]
    fn atomic_u32(&self, offset: usize) -> Result<&AtomicU32, OutOfRange> {
        check(offset, 4, self.size())?;
        self.pages[offset / PAGE_SIZE].atomic_u32(offset % PAGE_SIZE)
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use std::vec;

    fn pages(count: u64) -> SharedPages {
        SharedPages::from_heap(&(0..count).map(Pfn).collect::<Vec<_>>())
    }

    #[test]
    fn copies_of_every_alignment_and_length_come_back() {
        let memory = pages(1);
        for offset in 0..17 {
            for len in (0..40).chain(120..350) {
                memory.fill(0xee);
                let data: Vec<u8> = (0..len).map(|byte| byte as u8 | 1).collect();
                memory.write(offset, &data).unwrap();
                let mut back = vec![0; len + 2];
                memory.read(offset.saturating_sub(1), &mut back).unwrap();
                let lead = usize::from(offset > 0);
                assert_eq!(&back[lead..lead + len], &data[..], "offset {offset} len {len}");
                if lead == 1 {
                    assert_eq!((back[0], back[len + 1]), (0xee, 0xee), "neighbours untouched");
                }
            }
        }
    }

    #[test]
    fn accesses_outside_are_refused() {
        let memory = pages(1);
        assert!(memory.read(PAGE_SIZE, &mut [0]).is_err());
        assert!(memory.write(PAGE_SIZE - 1, &[0, 0]).is_err());
        assert!(memory.write(usize::MAX, &[0]).is_err());
        assert!(memory.atomic_u32(2).is_err());
        assert!(memory.atomic_u32(PAGE_SIZE).is_err());
        assert!(memory.read(PAGE_SIZE, &mut []).is_ok());
    }

    #[test]
    fn slices_share_memory_and_frames() {
        let whole = pages(4);
        let part = whole.slice(1, 2).unwrap().slice(1, 1).unwrap();
        assert_eq!(part.frames(), &[Pfn(2)]);
        part.write(0, b"here").unwrap();
        let mut back = [0; 4];
        whole.read(2 * PAGE_SIZE, &mut back).unwrap();
        assert_eq!(&back, b"here");
        assert!(whole.slice(3, 2).is_none() && whole.slice(usize::MAX, 1).is_none());
    }

    #[test]
    fn memory_goes_with_its_last_view() {
        let whole = pages(2);
        let weak = whole.downgrade();
        let view = whole.slice(1, 1).unwrap();
        drop(whole);
        assert!(weak.upgrade().is_some());
        drop(view);
        assert!(weak.upgrade().is_none());
    }

    #[test]
    fn page_list_joins_scattered_pages() {
        let whole = pages(3);
        let list = PageList::new([whole.slice(2, 1).unwrap(), whole.slice(0, 1).unwrap()]);
        list.write(PAGE_SIZE - 2, b"abcd").unwrap();
        let mut back = [0; 4];
        list.read(PAGE_SIZE - 2, &mut back).unwrap();
        assert_eq!(&back, b"abcd");
        let mut direct = [0; 2];
        whole.read(0, &mut direct).unwrap();
        assert_eq!(&direct, b"cd");
        assert!(list.write(2 * PAGE_SIZE - 1, b"ab").is_err());
        list.atomic_u32(PAGE_SIZE).unwrap().store(5, Ordering::Relaxed);
        whole.read(0, &mut direct).unwrap();
        assert_eq!(direct, [5, 0]);
    }
}

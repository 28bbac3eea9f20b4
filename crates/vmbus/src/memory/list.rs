//! Scattered pages seen as one piece.

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::sync::atomic::AtomicU64;

use super::{OutOfRange, PAGE_SIZE, SharedMemory, SharedPages, check};

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

    /// One page.
    #[must_use]
    pub fn page(&self, at: usize) -> Option<&SharedPages> {
        self.pages.get(at)
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
    fn load_u32(&self, offset: usize) -> Result<u32, OutOfRange> {
        check(offset, 4, self.size())?;
        self.pages[offset / PAGE_SIZE].load_u32(offset % PAGE_SIZE)
    }

    #[inline]
    fn store_u32(&self, offset: usize, value: u32) -> Result<(), OutOfRange> {
        check(offset, 4, self.size())?;
        self.pages[offset / PAGE_SIZE].store_u32(offset % PAGE_SIZE, value)
    }

    #[inline]
    fn words(&self, offset: usize) -> &[AtomicU64] {
        self.pages.get(offset / PAGE_SIZE).map_or(&[], |page| page.words(offset % PAGE_SIZE))
    }
}

//! A ring whose data is mapped twice in a row.

use core::sync::atomic::AtomicU64;

use super::{OutOfRange, PAGE_SIZE, SharedMemory, SharedPages};

/// A ring in one piece of address space in which the data is mapped twice, the second time right behind the first. A packet
/// that wraps around the end of the ring lies there in one piece, too.
///
/// Such memory is made by whoever can map pages: on Linux by mapping a file twice.
#[derive(Clone, Debug)]
pub struct DoublyMapped {
    pages: SharedPages,
    /// Bytes of header page and data, which is there once.
    size: usize,
}

impl DoublyMapped {
    /// Takes `pages` as a header page and data that is there twice. `None` if their number cannot be that.
    ///
    /// That both are the same memory is for the caller to see to. Where they are not, packets that wrap arrive with other
    /// bytes than were sent, and nothing worse comes of it.
    #[must_use]
    pub fn new(pages: SharedPages) -> Option<Self> {
        let data = pages.pages() - 1;
        let once = data > 0 && data.is_multiple_of(2);
        once.then(|| Self { size: (1 + data / 2) * PAGE_SIZE, pages })
    }
}

impl SharedMemory for DoublyMapped {
    #[inline]
    fn size(&self) -> usize {
        self.size
    }

    #[inline]
    fn read(&self, offset: usize, out: &mut [u8]) -> Result<(), OutOfRange> {
        self.pages.read(offset, out)
    }

    #[inline]
    fn write(&self, offset: usize, data: &[u8]) -> Result<(), OutOfRange> {
        self.pages.write(offset, data)
    }

    #[inline]
    fn load_u32(&self, offset: usize) -> Result<u32, OutOfRange> {
        self.pages.load_u32(offset)
    }

    #[inline]
    fn store_u32(&self, offset: usize, value: u32) -> Result<(), OutOfRange> {
        self.pages.store_u32(offset, value)
    }

    #[inline]
    fn words(&self, offset: usize) -> &[AtomicU64] {
        self.pages.words(offset)
    }

    #[inline(always)]
    fn whole(&self) -> &[AtomicU64] {
        self.pages.whole()
    }
}

//! The memory of a guest whose host is another process, dealt out in pieces.

use std::sync::{Mutex, MutexGuard, PoisonError};

use vmbus::Pfn;
use vmbus::memory::{SharedPages, WeakPages};
use vmbus::platform::{AllocError, Platform};

use crate::memfd::{MemfdError, SharedFile};

/// A shared file out of which a guest takes what it shares with its host.
///
/// A piece is in use as long as anybody in this process holds a view of it. Its pages come zeroed.
#[derive(Debug)]
pub struct Arena {
    file: SharedFile,
    /// Page frame number of the file's first page.
    first: u64,
    used: Mutex<Vec<Piece>>,
    /// Pages at the beginning that are never dealt out.
    reserved: usize,
}

/// Pages of the file that somebody has, or had.
#[derive(Debug)]
struct Piece {
    at: usize,
    pages: usize,
    view: WeakPages,
}

impl Arena {
    /// Deals out the pages of `file` behind the first `reserved`. The host knows the first page as page frame `first`, and
    /// the others by the numbers that follow.
    #[must_use]
    pub const fn new(file: SharedFile, first: u64, reserved: usize) -> Self {
        Self { file, first, used: Mutex::new(Vec::new()), reserved }
    }

    /// The file.
    #[must_use]
    pub const fn file(&self) -> &SharedFile {
        &self.file
    }

    /// Page frame number of the first page.
    #[must_use]
    pub const fn first_frame(&self) -> u64 {
        self.first
    }

    /// The pages that are never dealt out.
    ///
    /// # Errors
    /// [`MemfdError`] if there are none, or what the kernel says.
    pub fn reserved(&self) -> Result<SharedPages, MemfdError> {
        self.map(0, self.reserved)
    }

    /// Pages that somebody still has.
    #[must_use]
    pub fn allocated(&self) -> usize {
        let mut used = self.lock();
        used.retain(|piece| piece.view.is_alive());
        used.iter().map(|piece| piece.pages).sum()
    }

    fn map(&self, at: usize, pages: usize) -> Result<SharedPages, MemfdError> {
        let frames: Vec<Pfn> = (self.first + at as u64..).take(pages).map(Pfn).collect();
        self.file.map_part(at, pages, &frames)
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Piece>> {
        // The list is consistent between any two statements.
        self.used.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Platform for Arena {
    fn allocate(&self, pages: usize) -> Result<SharedPages, AllocError> {
        let refused = AllocError { pages };
        let mut used = self.lock();
        used.retain(|piece| piece.view.is_alive());
        // In the order of their places: the first gap that is wide enough.
        let mut at = self.reserved;
        let mut place = used.len();
        for (number, piece) in used.iter().enumerate() {
            if piece.at - at >= pages {
                place = number;
                break;
            }
            at = piece.at + piece.pages;
        }
        if pages == 0 || self.file.pages().saturating_sub(at) < pages {
            return Err(refused);
        }
        let memory = self.map(at, pages).map_err(|error| {
            tracing::debug!(%error, pages, "memory for the host cannot be mapped");
            refused
        })?;
        // Somebody else may have had it before.
        memory.fill(0);
        used.insert(place, Piece { at, pages, view: memory.downgrade() });
        Ok(memory)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vmbus::memory::SharedMemory;

    fn arena() -> Arena {
        Arena::new(SharedFile::create("arena", 16).unwrap(), 0x100, 2)
    }

    fn frames(memory: &SharedPages) -> Vec<u64> {
        memory.frames().iter().map(|frame| frame.0).collect()
    }

    #[test]
    fn pieces_do_not_overlap_and_come_back() {
        let arena = arena();
        let (one, two, three) =
            (arena.allocate(4).unwrap(), arena.allocate(3).unwrap(), arena.allocate(7).unwrap());
        assert_eq!(frames(&one), [0x102, 0x103, 0x104, 0x105]);
        assert_eq!((frames(&two)[0], frames(&three)[0]), (0x106, 0x109));
        assert_eq!(arena.allocate(1).unwrap_err(), AllocError { pages: 1 });
        assert_eq!(arena.allocated(), 14);
        // A part keeps the whole.
        let part = two.slice(1, 1).unwrap();
        drop(two);
        assert_eq!(arena.allocate(1).unwrap_err(), AllocError { pages: 1 });
        drop(part);
        assert_eq!(arena.allocate(4).unwrap_err(), AllocError { pages: 4 });
        let again = [arena.allocate(2).unwrap(), arena.allocate(1).unwrap()];
        assert_eq!(again.each_ref().map(|piece| frames(piece)[0]), [0x106, 0x108]);
        drop((one, three, again));
        assert_eq!(arena.allocated(), 0);
        assert_eq!(frames(&arena.allocate(14).unwrap())[0], 0x102);
        assert!(arena.allocate(0).is_err() && arena.allocate(15).is_err());
    }

    #[test]
    fn memory_is_zeroed_again_and_the_other_process_sees_it() {
        let arena = arena();
        let file = arena.file().handle().unwrap();
        let other = SharedFile::adopt(file).unwrap().map(&[]).unwrap();
        let memory = arena.allocate(1).unwrap();
        memory.write(5, b"old").unwrap();
        let mut back = [0; 3];
        other.read(2 * 4096 + 5, &mut back).unwrap();
        assert_eq!(&back, b"old");
        drop(memory);
        let memory = arena.allocate(1).unwrap();
        memory.read(5, &mut back).unwrap();
        assert_eq!(back, [0; 3]);
        arena.reserved().unwrap().write(0, b"talk").unwrap();
        other.read(0, &mut back).unwrap();
        assert_eq!(&back, b"tal");
    }
}

//! The guest's memory as the host reaches it: by page frame number.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rand_core::{Rng, SeedableRng};
use rand_xoshiro::Xoshiro256PlusPlus;
use vmbus::Pfn;
use vmbus::memory::{PageList, SharedPages, WeakPages};
use vmbus::platform::{AllocError, Platform};

/// A page frame that is not memory of the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("page frame {frame} is not memory of this guest")]
pub struct UnknownFrame {
    /// The first frame that could not be mapped.
    pub frame: Pfn,
}

/// Guest memory, addressed by page frame number.
pub trait GuestMemory: Send + Sync {
    /// The pages with these frame numbers, in this order, as one piece.
    ///
    /// # Errors
    /// [`UnknownFrame`] names the first frame that is not memory of the guest.
    fn map(&self, frames: &[Pfn]) -> Result<PageList, UnknownFrame>;
}

/// Memory that lies somewhere: pieces that follow each other in the guest's address space, wherever they are mapped here.
///
/// What such memory is made of is the pieces' own business: the shared memory of another process, or that of a virtual
/// machine.
#[derive(Clone, Debug, Default)]
pub struct Regions {
    /// By the first frame of each.
    pieces: BTreeMap<Pfn, SharedPages>,
}

/// Why a piece cannot be part of guest memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RegionError {
    /// Its frames are unknown, or not neighbours in rising order.
    #[error("the {pages} pages of a piece of guest memory have consecutive page frame numbers")]
    Scattered {
        /// Pages of the piece.
        pages: usize,
    },
    /// A frame that is there already.
    #[error("page frame {frame} is part of guest memory already")]
    Overlap {
        /// The first such frame.
        frame: Pfn,
    },
}

impl Regions {
    /// No memory.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a piece, whose frames say where it lies in the guest.
    ///
    /// # Errors
    /// [`RegionError`]; nothing is added then.
    pub fn insert(&mut self, piece: SharedPages) -> Result<(), RegionError> {
        let frames = piece.frames();
        let beside = |pair: &[Pfn]| matches!(pair, [a, b] if a.0.checked_add(1) == Some(b.0));
        let Some(first) = frames.first().filter(|_| frames.windows(2).all(beside)) else {
            return Err(RegionError::Scattered { pages: piece.pages() });
        };
        if let Some(frame) = frames.iter().find(|frame| self.page(**frame).is_some()) {
            return Err(RegionError::Overlap { frame: *frame });
        }
        self.pieces.insert(*first, piece);
        Ok(())
    }

    fn page(&self, frame: Pfn) -> Option<SharedPages> {
        let (first, piece) = self.pieces.range(..=frame).next_back()?;
        piece.slice(usize::try_from(frame.0 - first.0).ok()?, 1)
    }
}

impl GuestMemory for Regions {
    fn map(&self, frames: &[Pfn]) -> Result<PageList, UnknownFrame> {
        let page = |frame: &Pfn| self.page(*frame).ok_or(UnknownFrame { frame: *frame });
        Ok(PageList::new(frames.iter().map(page).collect::<Result<Vec<_>, _>>()?))
    }
}

/// Simulated guest memory.
///
/// It punishes guests that assume too much: the frames of one allocation come in random order, no two frames are
/// neighbours, and a frame that was given back comes again soon. The same seed deals the same frames.
///
/// Clones are handles of the same memory. A page counts as allocated as long as anybody, guest or host, holds a view of
/// it; [`GuestRam::allocated`] is therefore the number of leaked pages once everybody says they are done.
#[derive(Clone)]
pub struct GuestRam {
    pool: Arc<Mutex<Pool>>,
}

struct Pool {
    rng: Xoshiro256PlusPlus,
    /// Frames nobody uses, in no order.
    free: Vec<Pfn>,
    /// Frames dealt out: a handle of the page that does not keep it alive.
    used: BTreeMap<Pfn, WeakPages>,
    /// Pages dealt out since it was last looked which of them are still held.
    since_sweep: usize,
}

impl GuestRam {
    /// `pages` pages of memory, dealt out in an order that follows from `seed`.
    #[must_use]
    pub fn new(seed: u64, pages: usize) -> Self {
        // Low memory stays unused, as in a real guest: frame 0 would hide forgotten fields. Every second frame is
        // never used, so that neighbours in an allocation are not neighbours in memory.
        let free = (0..pages as u64).map(|page| Pfn(0x100 + 2 * page)).collect();
        let rng = Xoshiro256PlusPlus::seed_from_u64(seed);
        Self {
            pool: Arc::new(Mutex::new(Pool { rng, free, used: BTreeMap::new(), since_sweep: 0 })),
        }
    }

    /// Pages that somebody still holds.
    #[must_use]
    pub fn allocated(&self) -> usize {
        let mut pool = self.lock();
        pool.sweep();
        pool.used.len()
    }

    fn lock(&self) -> MutexGuard<'_, Pool> {
        // The pool is consistent between any two statements, so a panic elsewhere does not spoil it.
        self.pool.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Pool {
    /// Takes back the frames of pages that nobody holds any more. That costs as much as there are pages in use: whoever allocates does it
    /// once as many have been dealt out as half of them, so that a page costs the same however many there are.
    fn sweep(&mut self) {
        self.since_sweep = 0;
        let free = &mut self.free;
        self.used.retain(|frame, page| {
            let held = page.is_alive();
            if !held {
                free.push(*frame);
            }
            held
        });
    }

    fn deal(&mut self) -> Option<Pfn> {
        let len = self.free.len() as u64;
        if len == 0 {
            return None;
        }
        // The bias of the remainder is far below anything a test could see.
        let at = usize::try_from(self.rng.next_u64() % len).ok()?;
        Some(self.free.swap_remove(at))
    }
}

impl Platform for GuestRam {
    fn allocate(&self, pages: usize) -> Result<SharedPages, AllocError> {
        let mut pool = self.lock();
        if pool.free.len() < pages || pool.since_sweep * 2 >= pool.used.len() {
            pool.sweep();
        }
        if pages == 0 || pool.free.len() < pages {
            return Err(AllocError { pages });
        }
        let frames: Vec<Pfn> = (0..pages).map_while(|_| pool.deal()).collect();
        let memory = SharedPages::from_heap(&frames);
        for (page, frame) in frames.iter().enumerate() {
            if let Some(page) = memory.slice(page, 1) {
                pool.used.insert(*frame, page.downgrade());
            }
        }
        pool.since_sweep += pages;
        Ok(memory)
    }
}

impl GuestMemory for GuestRam {
    fn map(&self, frames: &[Pfn]) -> Result<PageList, UnknownFrame> {
        let pool = self.lock();
        let page = |frame: &Pfn| {
            let page = pool.used.get(frame).and_then(WeakPages::upgrade);
            page.ok_or(UnknownFrame { frame: *frame })
        };
        Ok(PageList::new(frames.iter().map(page).collect::<Result<Vec<_>, _>>()?))
    }
}

impl fmt::Debug for GuestRam {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let pool = self.lock();
        f.debug_struct("GuestRam")
            .field("free", &pool.free.len())
            .field("used", &pool.used.len())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vmbus::memory::SharedMemory;

    #[test]
    fn frames_are_shuffled_scattered_and_repeatable() {
        let deal = |seed| GuestRam::new(seed, 64).allocate(32).unwrap().frames().to_vec();
        let frames = deal(1);
        assert_eq!(frames, deal(1));
        assert_ne!(frames, deal(2));
        assert!(frames.windows(2).all(|pair| pair[1].0.abs_diff(pair[0].0) > 1));
        assert!(frames.windows(2).any(|pair| pair[1] < pair[0]));
    }

    #[test]
    fn host_and_guest_see_the_same_bytes() {
        let ram = GuestRam::new(3, 16);
        let pages = ram.allocate(3).unwrap();
        pages.write(4094, b"wire").unwrap();
        let host = ram.map(pages.frames()).unwrap();
        let mut back = [0; 4];
        host.read(4094, &mut back).unwrap();
        assert_eq!(&back, b"wire");
    }

    #[test]
    fn a_page_is_leaked_as_long_as_either_side_holds_it() {
        let ram = GuestRam::new(3, 16);
        let pages = ram.allocate(4).unwrap();
        let host = ram.map(&pages.frames()[..1]).unwrap();
        assert_eq!(ram.allocated(), 4);
        drop(pages);
        assert_eq!(ram.allocated(), 4, "one allocation goes in one piece");
        drop(host);
        assert_eq!(ram.allocated(), 0);
    }

    #[test]
    fn memory_ends_and_comes_back() {
        let ram = GuestRam::new(3, 4);
        assert_eq!(ram.allocate(0).unwrap_err(), AllocError { pages: 0 });
        let all = ram.allocate(4).unwrap();
        assert_eq!(ram.allocate(1).unwrap_err(), AllocError { pages: 1 });
        drop(all);
        ram.allocate(4).unwrap();
    }

    #[test]
    fn frames_that_are_not_memory_cannot_be_mapped() {
        let ram = GuestRam::new(3, 4);
        let frame = ram.allocate(1).unwrap().frames()[0];
        assert_eq!(ram.map(&[frame]).unwrap_err(), UnknownFrame { frame }, "given back");
        assert_eq!(ram.map(&[Pfn(1)]).unwrap_err(), UnknownFrame { frame: Pfn(1) });
    }

    #[test]
    fn regions_are_found_by_frame_and_do_not_overlap() {
        let piece = |frames: &[u64]| {
            SharedPages::from_heap(&frames.iter().map(|frame| Pfn(*frame)).collect::<Vec<_>>())
        };
        let mut regions = Regions::new();
        let (low, high) = (piece(&[3, 4, 5]), piece(&[9]));
        low.write(2 * 4096, b"five").unwrap();
        high.write(0, b"nine").unwrap();
        regions.insert(high).unwrap();
        regions.insert(low).unwrap();
        let mapped = regions.map(&[Pfn(9), Pfn(5), Pfn(9)]).unwrap();
        let mut back = [0; 4];
        for (at, expected) in [(0, b"nine"), (4096, b"five"), (8192, b"nine")] {
            mapped.read(at, &mut back).unwrap();
            assert_eq!(&back, expected);
        }
        for frame in [2, 6, 8, 10, u64::MAX] {
            let frame = Pfn(frame);
            assert_eq!(regions.map(&[Pfn(3), frame]).unwrap_err(), UnknownFrame { frame });
        }
        let overlap = RegionError::Overlap { frame: Pfn(9) };
        assert_eq!(regions.insert(piece(&[8, 9])), Err(overlap));
        for scattered in [&[20, 22][..], &[21, 20], &[u64::MAX, 0]] {
            let error = RegionError::Scattered { pages: 2 };
            assert_eq!(regions.insert(piece(scattered)), Err(error));
        }
        regions.insert(piece(&[6, 7, 8])).unwrap();
    }
}

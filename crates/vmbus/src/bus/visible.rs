//! Memory of a guest that is isolated from its host: revealed before the host is told of it, concealed when it came back.
//!
//! The host of such a guest can read no page by itself. [`Bus::reveal`] makes memory readable, and the bus tells the host of
//! no other. When the host has returned it, and not before, [`Bus::conceal`] makes it the guest's own; events wait for that,
//! so that "the guest's again" means what it says. Pages that the host never returns, and pages whose change failed, are
//! kept for ever: nobody may use them for anything else.

use alloc::collections::BTreeMap;
use alloc::vec::Vec;

use tracing::debug;

use super::{Bus, Error};
use crate::Pfn;
use crate::memory::SharedPages;
use crate::platform::Platform;

/// One page that the host can read.
#[derive(Debug)]
struct Page {
    /// The memory that was revealed together, and the page's place in there. Kept so that it stays alive.
    run: SharedPages,
    at: usize,
    /// How often the host was told of it and has not returned it.
    told: u32,
    /// It was told and returned: to be concealed.
    returned: bool,
}

/// The pages that are readable for the host of an isolated guest.
#[derive(Debug, Default)]
pub(super) struct Visible {
    pages: BTreeMap<Pfn, Page>,
    /// Pages of which nobody knows who can read them.
    lost: Vec<SharedPages>,
    /// Pages to be concealed.
    returned: usize,
}

impl Drop for Visible {
    fn drop(&mut self) {
        // To give them back would hand pages to others that the host can read, or write to.
        let left = core::mem::take(&mut self.pages).into_values().map(|page| page.run);
        left.chain(self.lost.drain(..)).for_each(core::mem::forget);
    }
}

impl Visible {
    /// Whether pages wait for [`Bus::conceal`].
    pub(super) fn owes(&self) -> bool {
        self.returned > 0
    }

    /// The host is told of memory, all of whose pages must be readable for it.
    fn tell(&mut self, memory: &SharedPages) -> Result<(), Error> {
        if !memory.frames().iter().all(|frame| self.pages.contains_key(frame)) {
            return Err(Error::NotRevealed { pages: memory.pages() });
        }
        for frame in memory.frames() {
            if let Some(page) = self.pages.get_mut(frame) {
                page.told = page.told.saturating_add(1);
                self.returned -= usize::from(core::mem::take(&mut page.returned));
            }
        }
        Ok(())
    }

    /// Takes out all returned pages: in as few pieces as they were revealed in, as far as they lie side by side.
    fn take_returned(&mut self) -> Vec<SharedPages> {
        self.returned = 0;
        let mut pages = Vec::new();
        self.pages.retain(|_, page| {
            if page.returned {
                pages.push((page.run.clone(), page.at));
            }
            !page.returned
        });
        let first_frame = |run: &SharedPages| run.frames().first().copied();
        pages.sort_by_key(|(run, at)| (first_frame(run), *at));
        let beside = |(run, at): &(SharedPages, usize), (other, next): &(SharedPages, usize)| {
            first_frame(run) == first_frame(other) && at + 1 == *next
        };
        let pieces = pages.chunk_by(beside);
        pieces.filter_map(|piece| piece.first()?.0.slice(piece.first()?.1, piece.len())).collect()
    }

    /// The host has returned memory.
    fn take_back(&mut self, memory: &SharedPages) {
        for frame in memory.frames() {
            if let Some(page) = self.pages.get_mut(frame).filter(|page| page.told > 0) {
                page.told -= 1;
                page.returned = page.told == 0;
                self.returned += usize::from(page.returned);
            }
        }
    }
}

impl Bus {
    /// Makes memory readable for the host of an isolated guest, and zeroes it: whatever is to be in it, such as the rings of
    /// a [`Channel`](crate::Channel), comes afterwards. Memory that is readable already stays as it is. A guest that is
    /// not isolated has nothing to do, and nothing happens.
    ///
    /// # Errors
    /// [`Error::RevealFailed`]: the pages are lost and counted in [`Bus::lost_pages`], and the host is never told of them.
    pub fn reveal<P: Platform + ?Sized>(
        &mut self,
        platform: &P,
        memory: &SharedPages,
    ) -> Result<(), Error> {
        if !self.config.isolated {
            return Ok(());
        }
        let pages = memory.pages();
        if memory.frames().is_empty() {
            return Err(Error::NoFrames { pages });
        }
        for run in self.hidden_runs(memory) {
            if platform.decrypt(&run).is_err() {
                debug!(pages = run.pages(), "pages cannot be revealed and are lost");
                self.visible.lost.push(run);
                self.give_up(memory);
                return Err(Error::RevealFailed { pages });
            }
            run.fill(0);
            for (at, frame) in run.frames().iter().enumerate() {
                let page = Page { run: run.clone(), at, told: 0, returned: false };
                self.visible.pages.insert(*frame, page);
            }
        }
        Ok(())
    }

    /// Conceals all memory that the host has returned. For a guest that is not isolated there never is any.
    ///
    /// Call it before [`Bus::poll_event`], which says nothing while something is owed here. Memory that was
    /// revealed and that the host was never told of is given up with [`Bus::give_up`].
    pub fn conceal<P: Platform + ?Sized>(&mut self, platform: &P) {
        if !self.visible.owes() {
            return;
        }
        for memory in self.visible.take_returned() {
            if platform.encrypt(&memory).is_err() {
                debug!(pages = memory.pages(), "pages cannot be concealed and are lost");
                self.visible.lost.push(memory);
            }
        }
    }

    /// Gives up memory that was revealed and is of no use: it is concealed next time, unless the host knows of it.
    pub fn give_up(&mut self, memory: &SharedPages) {
        for frame in memory.frames() {
            if let Some(page) = self.visible.pages.get_mut(frame)
                && page.told == 0
                && !page.returned
            {
                page.returned = true;
                self.visible.returned += 1;
            }
        }
    }

    /// Pages that the host of an isolated guest can read, or may be able to.
    #[must_use]
    pub fn revealed_pages(&self) -> usize {
        self.visible.pages.len().saturating_add(self.lost_pages())
    }

    /// Pages of an isolated guest that could be neither revealed nor concealed, and are never used again.
    #[must_use]
    pub fn lost_pages(&self) -> usize {
        self.visible.lost.iter().map(SharedPages::pages).sum()
    }

    /// Notes that the host is told of memory; `private`: it need not be able to read it.
    pub(super) fn tell(&mut self, memory: &SharedPages, private: bool) -> Result<(), Error> {
        if !self.config.isolated {
            return Ok(());
        }
        match self.visible.tell(memory) {
            Err(_) if private => Ok(()),
            told => told,
        }
    }

    /// Notes that the host has returned memory.
    pub(super) fn came_back(&mut self, memory: &SharedPages) {
        if self.config.isolated {
            self.visible.take_back(memory);
        }
    }

    /// The longest pieces of memory that the host cannot read yet.
    fn hidden_runs(&self, memory: &SharedPages) -> Vec<SharedPages> {
        let hidden: Vec<bool> =
            memory.frames().iter().map(|frame| !self.visible.pages.contains_key(frame)).collect();
        let mut runs = Vec::new();
        let mut first = 0;
        for run in hidden.chunk_by(|a, b| a == b) {
            if run.first() == Some(&true) {
                runs.extend(memory.slice(first, run.len()));
            }
            first += run.len();
        }
        runs
    }
}

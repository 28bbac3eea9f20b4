//! Pages for the registers of VFs, where a guest in another process can map them.

use vmbus::memory::SharedPages;

/// Pages, of which each port has one as long as it is there.
pub(super) struct RegisterPool {
    pages: SharedPages,
    /// Where the search for a free page begins: behind the one that was given last, so that a driver that lets go late
    /// does not write into another device.
    next: usize,
}

impl RegisterPool {
    pub(super) const fn new(pages: SharedPages) -> Self {
        Self { pages, next: 0 }
    }

    /// A page that is none of `taken`.
    pub(super) fn page(
        &mut self,
        taken: impl Iterator<Item = SharedPages> + Clone,
    ) -> Option<SharedPages> {
        let count = self.pages.pages();
        let free = |at: &usize| {
            let frame = self.pages.frames().get(*at);
            !taken.clone().any(|page| page.frames().first() == frame)
        };
        let at = (0..count).map(|step| (self.next + step) % count).find(free)?;
        self.next = at + 1;
        self.pages.slice(at, 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vmbus::Pfn;

    #[test]
    fn pages_that_are_free_come_again_as_late_as_can_be() {
        let mut pool = RegisterPool::new(SharedPages::from_heap(&[Pfn(5), Pfn(6), Pfn(7)]));
        let mut taken: Vec<SharedPages> = Vec::new();
        let mut next = |taken: &[SharedPages]| {
            let page = pool.page(taken.iter().cloned())?;
            Some((page.frames()[0].0, page))
        };
        let (first, page) = next(&taken).unwrap();
        assert_eq!(first, 5);
        drop(page);
        for expected in [6, 7, 5] {
            let (frame, page) = next(&taken).unwrap();
            assert_eq!(frame, expected);
            taken.push(page);
        }
        assert!(next(&taken).is_none());
        taken.remove(1);
        assert_eq!(next(&taken).unwrap().0, 7);
    }
}

//! Addresses for BARs, out of the ranges that firmware left to the guest for such devices.
//!
//! A BAR lies at a multiple of its size. One of 32 bits has to lie below 4 GiB; one of 64 bits is put above if there is
//! room, so that the scarce space below is left to those that need it. Virtual buses have no bridges in front, so
//! prefetchable BARs may lie wherever others may.

use alloc::vec::Vec;
use core::ops::Range;

use crate::bar::Bar;

/// Where 32-bit addresses end.
const FOUR_GIB: u64 = 1 << 32;

/// A BAR and its address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Placed {
    /// The BAR.
    pub bar: Bar,
    /// Where it begins.
    pub address: u64,
}

/// There are no addresses left for something.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no {size:#x} bytes of address space left{}", if *.below_4g { " below 4 GiB" } else { "" })]
pub struct Exhausted {
    /// How much was wanted.
    pub size: u64,
    /// Whether it had to lie below 4 GiB.
    pub below_4g: bool,
}

/// A size that nothing can have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AssignError {
    /// There is no room.
    #[error(transparent)]
    Exhausted(#[from] Exhausted),
    /// Not a power of two.
    #[error("{0:#x} bytes of address space: expected a power of two")]
    Size(u64),
}

/// Addresses were given back that were not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("addresses {start:#x} to {end:#x} given back: expected ones that were taken")]
pub struct NotTaken {
    /// First address.
    pub start: u64,
    /// The address behind the last.
    pub end: u64,
}

/// Address space, and what of it is free.
#[derive(Clone, Debug, Default)]
pub struct AddressSpace {
    /// Free ranges: in order, not empty, none touching the next.
    free: Vec<Range<u64>>,
    /// Taken ranges, in order.
    taken: Vec<Range<u64>>,
}

impl AddressSpace {
    /// All of these ranges, free. They may touch and overlap.
    #[must_use]
    pub fn new(ranges: impl IntoIterator<Item = Range<u64>>) -> Self {
        let mut space = Self::default();
        let mut ranges: Vec<_> = ranges.into_iter().filter(|range| !range.is_empty()).collect();
        ranges.sort_by_key(|range| range.start);
        for range in ranges {
            match space.free.last_mut() {
                Some(last) if range.start <= last.end => last.end = last.end.max(range.end),
                _ => space.free.push(range),
            }
        }
        space
    }

    /// Bytes that are free.
    #[must_use]
    pub fn free_bytes(&self) -> u64 {
        self.free.iter().map(|range| range.end - range.start).sum()
    }

    /// Takes `size` bytes at a multiple of `size`: above 4 GiB if `wide` and there is room, below else.
    ///
    /// # Errors
    /// [`AssignError`].
    pub fn take(&mut self, size: u64, wide: bool) -> Result<u64, AssignError> {
        if !size.is_power_of_two() {
            return Err(AssignError::Size(size));
        }
        let above = if wide { self.find(size, FOUR_GIB..u64::MAX) } else { None };
        let (place, start) = above
            .or_else(|| self.find(size, 0..FOUR_GIB))
            .ok_or(Exhausted { size, below_4g: !wide })?;
        let end = start + size;
        let Some(range) = self.free.get_mut(place) else { return Ok(start) };
        let behind = end..range.end;
        range.end = start;
        let at = if range.is_empty() {
            self.free.remove(place);
            place
        } else {
            place + 1
        };
        if !behind.is_empty() {
            self.free.insert(at, behind);
        }
        let at = self.taken.partition_point(|range| range.start < start);
        self.taken.insert(at, start..end);
        Ok(start)
    }

    /// Gives back what was taken.
    ///
    /// # Errors
    /// [`NotTaken`] if exactly this range is not taken; nothing changes then.
    pub fn give_back(&mut self, start: u64, size: u64) -> Result<(), NotTaken> {
        let mut range = start..start.saturating_add(size);
        let at = self
            .taken
            .iter()
            .position(|taken| *taken == range)
            .ok_or(NotTaken { start, end: range.end })?;
        self.taken.remove(at);
        let mut at = self.free.partition_point(|free| free.start < start);
        if let Some(behind) = self.free.get(at).filter(|free| free.start == range.end) {
            range.end = behind.end;
            self.free.remove(at);
        }
        if let Some(before) =
            at.checked_sub(1).and_then(|at| self.free.get(at)).filter(|free| free.end == start)
        {
            range.start = before.start;
            at -= 1;
            self.free.remove(at);
        }
        self.free.insert(at, range);
        Ok(())
    }

    /// Places all BARs of a function, the largest first, or none.
    ///
    /// # Errors
    /// [`AssignError`] for the first that finds no room; nothing is taken then.
    pub fn place(
        &mut self,
        bars: impl IntoIterator<Item = Bar>,
    ) -> Result<Vec<Placed>, AssignError> {
        let mut bars: Vec<_> = bars.into_iter().collect();
        bars.sort_by(|a, b| b.size.cmp(&a.size).then(a.index.cmp(&b.index)));
        let mut placed: Vec<Placed> = Vec::with_capacity(bars.len());
        for bar in bars {
            match self.take(bar.size, bar.wide) {
                Ok(address) => placed.push(Placed { bar, address }),
                Err(error) => {
                    self.remove(&placed);
                    return Err(error);
                }
            }
        }
        placed.sort_by_key(|placed| placed.bar.index);
        Ok(placed)
    }

    /// Gives back the BARs of a function. What was not taken is left alone.
    pub fn remove(&mut self, placed: &[Placed]) {
        for Placed { bar, address } in placed {
            let taken = self.give_back(*address, bar.size);
            debug_assert!(taken.is_ok());
        }
    }

    /// The first place for `size` bytes within some bounds: which free range, and where in it.
    fn find(&self, size: u64, bounds: Range<u64>) -> Option<(usize, u64)> {
        self.free.iter().enumerate().find_map(|(place, range)| {
            let first = range.start.max(bounds.start).checked_next_multiple_of(size)?;
            let end = first.checked_add(size)?;
            (end <= range.end.min(bounds.end)).then_some((place, first))
        })
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use proptest::prelude::*;
    use std::vec;

    fn bar(index: usize, size: u64, wide: bool) -> Bar {
        Bar { index, size, wide, prefetchable: wide }
    }

    fn space() -> AddressSpace {
        AddressSpace::new([0xf000_0000..0xf010_0000, 0x10_0000_0000..0x10_1000_0000])
    }

    #[test]
    fn narrow_bars_lie_below_4_gib_and_wide_ones_above_each_at_a_multiple_of_its_size() {
        let bars = [bar(0, 0x1000, false), bar(1, 0x10_0000, true), bar(3, 0x10, false)];
        let placed = space().place(bars).unwrap();
        assert_eq!(placed.iter().map(|p| p.bar.index).collect::<Vec<_>>(), [0, 1, 3]);
        assert_eq!(
            placed.iter().map(|p| p.address).collect::<Vec<_>>(),
            [0xf000_0000, 0x10_0000_0000, 0xf000_1000]
        );
    }

    #[test]
    fn wide_bars_go_below_when_there_is_no_room_above() {
        let mut low = AddressSpace::new(core::iter::once(0xf000_0000..0xf010_0000));
        assert_eq!(low.take(0x10_0000, true), Ok(0xf000_0000));
        let mut odd = AddressSpace::new(core::iter::once(0xffff_f000..0x1_0000_1000));
        assert_eq!(odd.take(0x1000, true), Ok(0x1_0000_0000));
        assert_eq!(odd.take(0x1000, false), Ok(0xffff_f000));
        assert_eq!(odd.free_bytes(), 0);
    }

    #[test]
    fn exhaustion_is_an_error_and_takes_nothing() {
        let mut space = space();
        let before = space.free_bytes();
        let error = Exhausted { size: 0x20_0000, below_4g: true }.into();
        let bars = [bar(0, 0x1000, true), bar(2, 0x1000, false), bar(3, 0x20_0000, false)];
        assert_eq!(space.place(bars), Err(error));
        let small_fails = [bar(0, 0x10_0000, false), bar(1, 0x1000, false)];
        let error = Exhausted { size: 0x1000, below_4g: true }.into();
        assert_eq!(space.place(small_fails), Err(error));
        assert_eq!(space.free_bytes(), before);
        assert_eq!(space.take(0x3000, false), Err(AssignError::Size(0x3000)));
        assert_eq!(space.take(0, false), Err(AssignError::Size(0)));
        let error = Exhausted { size: 1 << 63, below_4g: false };
        assert_eq!(space.take(1 << 63, true), Err(error.into()));
    }

    #[test]
    fn only_what_was_taken_can_be_given_back_and_only_once() {
        let mut space = space();
        let at = space.take(0x2000, false).unwrap();
        assert!(space.give_back(at, 0x1000).is_err());
        space.give_back(at, 0x2000).unwrap();
        assert_eq!(space.give_back(at, 0x2000), Err(NotTaken { start: at, end: at + 0x2000 }));
    }

    #[test]
    fn ranges_that_touch_or_overlap_are_one() {
        let mut space = AddressSpace::new([0x3000..0x4000, 0..0x2000, 0x1000..0x3000, 5..5]);
        assert_eq!(space.take(0x4000, false), Ok(0));
        assert_eq!(space.take(1, false), Err(Exhausted { size: 1, below_4g: true }.into()));
    }

    proptest! {
        #[test]
        fn what_is_taken_never_overlaps_and_comes_back_whole(
            wishes in proptest::collection::vec((4_u32..22, any::<bool>(), any::<bool>()), 0..60),
        ) {
            let mut space = space();
            let whole = space.free.clone();
            let mut taken: Vec<(u64, u64)> = vec![];
            for (power, wide, back) in wishes {
                let size = 1 << power;
                if back && !taken.is_empty() {
                    let (start, size) = taken.swap_remove(power as usize % taken.len());
                    space.give_back(start, size).unwrap();
                } else if let Ok(start) = space.take(size, wide) {
                    prop_assert_eq!(start % size, 0);
                    prop_assert!(wide || start + size <= FOUR_GIB);
                    for (other, length) in &taken {
                        prop_assert!(start + size <= *other || other + length <= start);
                    }
                    taken.push((start, size));
                }
            }
            for (start, size) in taken {
                space.give_back(start, size).unwrap();
            }
            prop_assert_eq!(space.free, whole);
        }
    }
}

//! What the BAR masks of a function mean (PROTOCOL §10.4).
//!
//! A mask is what a BAR reads after all ones were written to it: the bits that stayed zero say how large it is, the low
//! four what kind. A 64-bit BAR takes two registers.

use crate::message::BARS;

/// Mask bit: I/O ports, which do not exist on a virtual bus.
const IO: u32 = 1;
/// Mask bits 1 and 2: where the BAR may lie.
const LOCATION: u32 = 0b110;
const LOCATION_32: u32 = 0b000;
const LOCATION_64: u32 = 0b100;
/// Mask bit: reads have no side effects.
const PREFETCHABLE: u32 = 0b1000;

/// One BAR of a function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bar {
    /// Its register, 0..=5; of a 64-bit BAR the first of two.
    pub index: usize,
    /// Bytes that it takes; a power of two, and a multiple of which it has to lie at.
    pub size: u64,
    /// Whether it may lie beyond 4 GiB.
    pub wide: bool,
    /// Whether reads have no side effects.
    pub prefetchable: bool,
}

/// Masks that describe no BAR.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BarError {
    /// I/O ports.
    #[error("BAR {index} has mask {mask:#x}: expected memory, got I/O ports")]
    Io {
        /// The register.
        index: usize,
        /// Its mask.
        mask: u32,
    },
    /// A location that PCI does not define.
    #[error("BAR {index} has mask {mask:#x}: expected 0 or 2 in bits 1-2")]
    Location {
        /// The register.
        index: usize,
        /// Its mask.
        mask: u32,
    },
    /// A 64-bit BAR without a second register.
    #[error("BAR {index} is 64 bits wide: expected one more register behind it")]
    NoUpperHalf {
        /// The register.
        index: usize,
    },
    /// Address bits that are not ones above zeros.
    #[error("BAR {index} has mask {mask:#x}: expected ones above zeros in the address bits")]
    Size {
        /// The register.
        index: usize,
        /// The mask over one or two registers.
        mask: u64,
    },
}

/// The BARs that a function's masks describe, in the order of their registers.
///
/// # Errors
/// [`BarError`] for the first that makes no sense.
pub fn decode(masks: &[u32; BARS]) -> Result<impl Iterator<Item = Bar> + use<>, BarError> {
    let mut bars = [None; BARS];
    let mut index = 0;
    while let (Some(&low), Some(bar)) = (masks.get(index), bars.get_mut(index)) {
        if low == 0 {
            index += 1;
            continue;
        }
        if low & IO != 0 {
            return Err(BarError::Io { index, mask: low });
        }
        let (mask, used) = match low & LOCATION {
            LOCATION_32 => (u64::from(low) | u64::from(u32::MAX) << 32, 1),
            LOCATION_64 => {
                let high = masks.get(index + 1).ok_or(BarError::NoUpperHalf { index })?;
                (u64::from(low) | u64::from(*high) << 32, 2)
            }
            _ => return Err(BarError::Location { index, mask: low }),
        };
        let address = mask & !0xf;
        let size = address.wrapping_neg();
        if !size.is_power_of_two() {
            return Err(BarError::Size { index, mask });
        }
        let prefetchable = low & PREFETCHABLE != 0;
        *bar = Some(Bar { index, size, wide: used == 2, prefetchable });
        index += used;
    }
    Ok(bars.into_iter().flatten())
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use proptest::prelude::*;
    use std::vec::Vec;

    fn list(masks: [u32; BARS]) -> Result<Vec<Bar>, BarError> {
        decode(&masks).map(Iterator::collect)
    }

    fn bar(index: usize, size: u64, wide: bool, prefetchable: bool) -> Bar {
        Bar { index, size, wide, prefetchable }
    }

    // HISTORY section 6, 8: 32-bit and 64-bit BARs mixed.
    #[test]
    fn narrow_and_wide_bars_stand_side_by_side() {
        assert_eq!(
            list([0xffff_f000, 0xffff_c00c, 0xffff_ffff, 0, 0x0000_0004, 0xffff_fffe]),
            Ok(std::vec![
                bar(0, 0x1000, false, false),
                bar(1, 0x4000, true, true),
                bar(4, 0x2_0000_0000, true, false),
            ])
        );
        assert_eq!(list([0; BARS]), Ok(Vec::new()));
        assert_eq!(list([0, 0, 0, 0, 0, 0xffff_fff0]), Ok(std::vec![bar(5, 16, false, false)]));
    }

    #[test]
    fn masks_that_describe_no_bar_are_refused() {
        let index = 0;
        let mask = 0xffff_ff01;
        assert_eq!(list([mask, 0, 0, 0, 0, 0]), Err(BarError::Io { index, mask }));
        let mask = 0xffff_f002;
        assert_eq!(list([mask, 0, 0, 0, 0, 0]), Err(BarError::Location { index, mask }));
        let mask = 0xffff_f004;
        assert_eq!(list([0, 0, 0, 0, 0, mask]), Err(BarError::NoUpperHalf { index: 5 }));
        let mask = 0xffff_ffff_f0f0_f000;
        assert_eq!(list([0xf0f0_f000, 0, 0, 0, 0, 0]), Err(BarError::Size { index, mask }));
        let mask = 0x0000_0001_ffff_f004;
        assert_eq!(list([0xffff_f004, 1, 0, 0, 0, 0]), Err(BarError::Size { index, mask }));
        let mask = 0x0000_0000_0000_0004;
        assert_eq!(list([0x4, 0, 0, 0, 0, 0]), Err(BarError::Size { index, mask }));
    }

    proptest! {
        #[test]
        fn no_masks_make_the_decoder_panic(masks in any::<[u32; BARS]>()) {
            for bar in list(masks).into_iter().flatten() {
                prop_assert!(bar.size.is_power_of_two() && bar.size >= 16);
            }
        }
    }
}

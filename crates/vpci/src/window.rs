//! Device memory as the guest reaches it.
//!
//! A bus has one window of two pages for the configuration space of all its functions (PROTOCOL §10.4): a 32-bit write
//! of a slot number to offset 0 selects the function, the second page then is its configuration space. Selecting and
//! accessing must never be torn apart by somebody else who selects, so everything here takes the window by `&mut`: who
//! has it alone needs no lock.

/// Offset of the register that selects a slot.
pub const SELECT: u32 = 0;
/// Offset of the selected function's configuration space, and its size.
pub const CONFIG_PAGE: u32 = 0x1000;

/// How many bytes one access moves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Width {
    /// One byte.
    Byte,
    /// Two bytes.
    Half,
    /// Four bytes.
    Word,
}

impl Width {
    /// Number of bytes.
    #[must_use]
    pub const fn bytes(self) -> u32 {
        match self {
            Self::Byte => 1,
            Self::Half => 2,
            Self::Word => 4,
        }
    }

    /// A number with as many ones as the access has bits: what memory reads where nothing answers.
    #[must_use]
    pub const fn ones(self) -> u32 {
        u32::MAX >> (32 - 8 * self.bytes())
    }
}

/// A run of device memory: the window of a bus, or a BAR of a function.
///
/// An implementation makes exactly one access of that width for each call, in the order of the calls, with whatever
/// barrier the machine needs between them. Offsets handed in are multiples of the width; where nothing answers, and
/// beyond the end, reads give all ones and writes are lost, as on real machines.
pub trait MmioWindow {
    /// Reads; the value stands in the low bits.
    fn read(&mut self, offset: u32, width: Width) -> u32;

    /// Writes the low bits of `value`.
    fn write(&mut self, offset: u32, width: Width, value: u32);
}

impl<W: MmioWindow + ?Sized> MmioWindow for &mut W {
    fn read(&mut self, offset: u32, width: Width) -> u32 {
        (**self).read(offset, width)
    }

    fn write(&mut self, offset: u32, width: Width, value: u32) {
        (**self).write(offset, width, value);
    }
}

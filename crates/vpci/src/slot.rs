//! Where a function sits on a virtual PCI bus.
//!
//! The protocol and PCI both pack a device number (0..=31) and a function number (0..=7) into one byte, but the other
//! way round: a slot has the device in its *low* five bits, a PCI "devfn" has it in its *high* five. So each is a type
//! of its own, and the only way from one to the other is [`Slot::devfn`] and [`DevFn::slot`].

use core::fmt;

/// A slot number with bits that no slot has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("slot number {0:#x}: expected bits 8 to 31 to be zero")]
pub struct BadSlot(pub u32);

/// A place on a virtual PCI bus: device in bits 0-4, function in bits 5-7 of the wire's 32-bit number.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Slot(u8);

impl Slot {
    /// The slot of a device (0..=31) and a function (0..=7); `None` if either is larger.
    #[must_use]
    pub const fn new(device: u8, function: u8) -> Option<Self> {
        if device < 32 && function < 8 { Some(Self(device | function << 5)) } else { None }
    }

    /// Takes a slot from the wire.
    ///
    /// # Errors
    /// [`BadSlot`] if any of the upper 24 bits is set.
    pub const fn from_wire(number: u32) -> Result<Self, BadSlot> {
        if number > 0xff { Err(BadSlot(number)) } else { Ok(Self(number as u8)) }
    }

    /// The number as it goes over the wire.
    #[must_use]
    pub const fn to_wire(self) -> u32 {
        self.0 as u32
    }

    /// Device number, 0..=31.
    #[must_use]
    pub const fn device(self) -> u8 {
        self.0 & 0x1f
    }

    /// Function number, 0..=7.
    #[must_use]
    pub const fn function(self) -> u8 {
        self.0 >> 5
    }

    /// The same place as PCI writes it.
    #[must_use]
    pub const fn devfn(self) -> DevFn {
        DevFn(self.device() << 3 | self.function())
    }
}

impl fmt::Debug for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Slot({self})")
    }
}

/// As PCI tools print it: device in two hexadecimal digits, a dot, function.
impl fmt::Display for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:02x}.{}", self.device(), self.function())
    }
}

/// A place on a PCI bus as PCI packs it: function in bits 0-2, device in bits 3-7.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DevFn(pub u8);

impl DevFn {
    /// The same place as the protocol writes it.
    #[must_use]
    pub const fn slot(self) -> Slot {
        Slot(self.0 >> 3 | (self.0 & 7) << 5)
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use std::format;

    // HISTORY 27
    #[test]
    fn device_is_in_the_low_bits_and_function_in_the_high() {
        let slot = Slot::new(2, 5).unwrap();
        assert_eq!(slot.to_wire(), 0xa2);
        assert_eq!((slot.device(), slot.function()), (2, 5));
        assert_eq!(slot.devfn(), DevFn(2 << 3 | 5));
        assert_eq!(format!("{slot} {slot:?}"), "02.5 Slot(02.5)");
    }

    // HISTORY 27
    #[test]
    fn all_256_slots_survive_every_round_trip() {
        for number in 0..=255 {
            let slot = Slot::from_wire(number).unwrap();
            assert_eq!(slot.to_wire(), number);
            assert_eq!(Slot::new(slot.device(), slot.function()), Some(slot));
            assert_eq!(slot.devfn().slot(), slot);
        }
    }

    #[test]
    fn numbers_beyond_a_byte_are_refused() {
        for number in [0x100, 0x8000_0000, u32::MAX] {
            assert_eq!(Slot::from_wire(number), Err(BadSlot(number)));
        }
        assert!(Slot::new(32, 0).is_none() && Slot::new(0, 8).is_none());
    }
}

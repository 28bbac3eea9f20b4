//! The list of what a function can do. The host keeps it, so it may lead anywhere, also back to where it came from.

use alloc::vec::Vec;

use super::{CAPABILITIES, CONFIG_SIZE, ConfigSpace, STATUS, STATUS_CAPABILITIES};
use crate::window::{MmioWindow, Width};

/// Where capabilities may begin.
const FIRST: u32 = 0x40;
/// Where extended capabilities begin; before it, all of PCI's own.
const EXTENDED: u32 = 0x100;

/// One capability.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capability {
    /// What it is: 0x05 MSI, 0x10 PCI Express, 0x11 MSI-X, ...
    pub id: u8,
    /// Where it stands.
    pub offset: u32,
}

impl Capability {
    /// Message-signalled interrupts.
    pub const MSI: u8 = 0x05;
    /// PCI Express.
    pub const EXPRESS: u8 = 0x10;
    /// Message-signalled interrupts with a table.
    pub const MSIX: u8 = 0x11;
}

/// One extended capability.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExtendedCapability {
    /// What it is.
    pub id: u16,
    /// Its version.
    pub version: u8,
    /// Where it stands.
    pub offset: u32,
}

/// A list of capabilities that cannot be followed to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CapabilityError {
    /// The function is gone.
    #[error("the function does not answer: expected a list of capabilities")]
    Gone,
    /// The list leads to where no capability can stand.
    #[error("capability at {offset:#x}: expected one at {first:#x} or behind")]
    Outside {
        /// Where it would stand.
        offset: u32,
        /// Where the first may stand.
        first: u32,
    },
    /// The list leads back.
    #[error("the list of capabilities comes back to {offset:#x}: expected an end")]
    Loop {
        /// Where it has been before.
        offset: u32,
    },
}

/// The places where a walk has been, one bit for each 32-bit word.
#[derive(Default)]
struct Seen([u64; (CONFIG_SIZE / 4 / 64) as usize]);

impl Seen {
    /// Notes that the walk comes to `offset`.
    fn visit(&mut self, offset: u32, first: u32) -> Result<(), CapabilityError> {
        if offset < first {
            return Err(CapabilityError::Outside { offset, first });
        }
        let word = offset / 4;
        let bit = 1 << (word % 64);
        match self.0.get_mut((word / 64) as usize) {
            Some(bits) if *bits & bit == 0 => {
                *bits |= bit;
                Ok(())
            }
            Some(_) => Err(CapabilityError::Loop { offset }),
            None => Err(CapabilityError::Outside { offset, first }),
        }
    }
}

impl ConfigSpace {
    /// The capabilities in the order of the list.
    ///
    /// # Errors
    /// [`CapabilityError`].
    pub fn capabilities(
        &self,
        window: &mut impl MmioWindow,
    ) -> Result<Vec<Capability>, CapabilityError> {
        let status = self.word(window, STATUS & !3) >> 16;
        if status == 0xffff {
            return Err(CapabilityError::Gone);
        }
        let mut list = Vec::new();
        if status & u32::from(STATUS_CAPABILITIES) == 0 {
            return Ok(list);
        }
        let mut seen = Seen::default();
        // The lowest two bits of the pointers are reserved.
        let mut offset = self.word(window, CAPABILITIES) & 0xfc;
        while offset != 0 {
            seen.visit(offset, FIRST)?;
            let head = self.word(window, offset);
            if head == u32::MAX {
                return Err(CapabilityError::Gone);
            }
            list.push(Capability { id: head as u8, offset });
            offset = head >> 8 & 0xfc;
        }
        Ok(list)
    }

    /// The first capability of a kind.
    ///
    /// # Errors
    /// [`CapabilityError`].
    pub fn find_capability(
        &self,
        window: &mut impl MmioWindow,
        id: u8,
    ) -> Result<Option<Capability>, CapabilityError> {
        Ok(self.capabilities(window)?.into_iter().find(|capability| capability.id == id))
    }

    /// The extended capabilities in the order of the list; none if the function has no extended configuration space.
    ///
    /// # Errors
    /// [`CapabilityError`].
    pub fn extended_capabilities(
        &self,
        window: &mut impl MmioWindow,
    ) -> Result<Vec<ExtendedCapability>, CapabilityError> {
        let mut list = Vec::new();
        let mut seen = Seen::default();
        let mut offset = EXTENDED;
        while offset != 0 {
            seen.visit(offset, EXTENDED)?;
            let head = self.word(window, offset);
            // Where there is no such space, its first word is all zeros or all ones.
            if offset == EXTENDED && (head == 0 || head == u32::MAX) {
                break;
            }
            if head == u32::MAX {
                return Err(CapabilityError::Gone);
            }
            let version = (head >> 16 & 0xf) as u8;
            list.push(ExtendedCapability { id: head as u16, version, offset });
            offset = head >> 20 & 0xffc;
        }
        Ok(list)
    }

    /// A 32-bit word at an offset that is known to be a multiple of 4 within the space.
    fn word(&self, window: &mut impl MmioWindow, offset: u32) -> u32 {
        self.read(window, offset, Width::Word).unwrap_or(u32::MAX)
    }
}

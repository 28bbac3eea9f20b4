//! Telling a function where to write its interrupts: the MSI capability, and MSI-X with its table in a BAR.
//!
//! The host grants an [`Interrupt`]; what is written here makes the function use it.

use crate::bar::{self, BarError};
use crate::config::{Capability, CapabilityError, ConfigError, ConfigSpace};
use crate::interrupt::Interrupt;
use crate::message::BARS;
use crate::window::{MmioWindow, Width};

/// Bytes of an entry of the table.
const ENTRY: u32 = 16;
/// How far into a BAR a window reaches.
const REACH: u64 = 1 << 32;
/// Control word of MSI-X: all entries masked.
const MSIX_MASKED: u32 = 1 << 14;
/// Control word of MSI-X: in use.
const MSIX_ENABLE: u32 = 1 << 15;
/// Control word of MSI: in use.
const MSI_ENABLE: u32 = 1;
/// Control word of MSI: the address has 64 bits.
const MSI_WIDE: u32 = 1 << 7;

/// Interrupts that a function cannot be told about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MsiError {
    /// The capability was not found.
    #[error(transparent)]
    Capability(#[from] CapabilityError),
    /// Configuration space cannot be reached as the capability has it.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The function's BARs make no sense.
    #[error(transparent)]
    Bar(#[from] BarError),
    /// The table lies where there is no BAR, or not all of it, or where offsets of 32 bits do not reach.
    #[error(
        "MSI-X table of {entries} entries at {offset:#x} of BAR {bar}: expected it within a BAR and its first 4 GiB"
    )]
    TableOutside {
        /// The BAR.
        bar: usize,
        /// Where in it.
        offset: u32,
        /// How many entries.
        entries: u16,
    },
    /// An entry that the table does not have.
    #[error("MSI-X entry {entry}: expected one below {entries}")]
    NoEntry {
        /// The entry.
        entry: u16,
        /// How many there are.
        entries: u16,
    },
    /// MSI takes a power of two of vectors, and not more than the function has.
    #[error("MSI with {vectors} vectors: expected a power of two up to {most}")]
    Vectors {
        /// Vectors of the interrupt.
        vectors: u16,
        /// Most that the function has.
        most: u16,
    },
    /// The function can write to 32-bit addresses only.
    #[error("interrupt at address {0:#x}: expected one below 4 GiB")]
    Address(u64),
}

/// The MSI-X capability of a function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Msix {
    capability: u32,
    /// Entries of the table, 1 to 2,048.
    pub entries: u16,
    /// The BAR in which the table lies.
    pub bar: usize,
    /// Where in that BAR it begins.
    pub offset: u32,
}

impl Msix {
    /// Looks for the capability, and checks that the table lies in a BAR.
    ///
    /// # Errors
    /// [`MsiError`].
    pub fn find(
        config: &ConfigSpace,
        window: &mut impl MmioWindow,
    ) -> Result<Option<Self>, MsiError> {
        let Some(found) = config.find_capability(window, Capability::MSIX)? else {
            return Ok(None);
        };
        let control = config.read(window, found.offset, Width::Word)? >> 16;
        let place = config.read(window, found.offset + 4, Width::Word)?;
        let entries = (control as u16 & 0x7ff) + 1;
        let (bar, offset) = ((place & 7) as usize, place & !7);
        let size = bar::decode(config.bar_masks())?.find(|it| it.index == bar).map(|it| it.size);
        let end = u64::from(offset) + u64::from(entries) * u64::from(ENTRY);
        // An entry is reached by an offset of 32 bits, and a BAR may be larger.
        if bar >= BARS || size.is_none_or(|size| end > size.min(REACH)) {
            return Err(MsiError::TableOutside { bar, offset, entries });
        }
        Ok(Some(Self { capability: found.offset, entries, bar, offset }))
    }

    /// Sets an entry to one vector of an interrupt and lets it through. `memory` is the BAR in which the table lies,
    /// from its beginning.
    ///
    /// # Errors
    /// [`MsiError::NoEntry`], [`MsiError::Vectors`] if the interrupt has no such vector.
    pub fn program(
        &self,
        memory: &mut impl MmioWindow,
        entry: u16,
        interrupt: &Interrupt,
        vector: u16,
    ) -> Result<(), MsiError> {
        let at = self.entry(entry)?;
        let most = interrupt.vectors;
        let data = interrupt.data_of(vector).ok_or(MsiError::Vectors { vectors: vector, most })?;
        // An entry must not change while it is let through.
        memory.write(at + 12, Width::Word, 1);
        memory.write(at, Width::Word, interrupt.address as u32);
        memory.write(at + 4, Width::Word, (interrupt.address >> 32) as u32);
        memory.write(at + 8, Width::Word, data);
        memory.write(at + 12, Width::Word, 0);
        Ok(())
    }

    /// Holds an entry back, or lets it through again.
    ///
    /// # Errors
    /// [`MsiError::NoEntry`].
    pub fn mask(
        &self,
        memory: &mut impl MmioWindow,
        entry: u16,
        masked: bool,
    ) -> Result<(), MsiError> {
        let at = self.entry(entry)?;
        memory.write(at + 12, Width::Word, masked.into());
        Ok(())
    }

    /// Holds all entries back, each for itself.
    pub fn mask_all(&self, memory: &mut impl MmioWindow) {
        for entry in 0..self.entries {
            let masked = self.mask(memory, entry, true);
            debug_assert!(masked.is_ok());
        }
    }

    /// Turns MSI-X on, with nothing held back as a whole, or off.
    ///
    /// # Errors
    /// [`ConfigError`].
    pub fn enable(
        &self,
        config: &mut ConfigSpace,
        window: &mut impl MmioWindow,
        on: bool,
    ) -> Result<(), ConfigError> {
        let at = self.capability + 2;
        let control = config.read(window, at, Width::Half)? & !(MSIX_ENABLE | MSIX_MASKED);
        config.write(window, at, Width::Half, if on { control | MSIX_ENABLE } else { control })
    }

    fn entry(&self, entry: u16) -> Result<u32, MsiError> {
        let entries = self.entries;
        if entry >= entries {
            return Err(MsiError::NoEntry { entry, entries });
        }
        Ok(self.offset + u32::from(entry) * ENTRY)
    }
}

/// The MSI capability of a function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Msi {
    capability: u32,
    /// Most vectors that the function can use.
    pub vectors: u16,
    /// Whether it can write to 64-bit addresses.
    pub wide: bool,
}

impl Msi {
    /// Looks for the capability.
    ///
    /// # Errors
    /// [`MsiError`].
    pub fn find(
        config: &ConfigSpace,
        window: &mut impl MmioWindow,
    ) -> Result<Option<Self>, MsiError> {
        let Some(found) = config.find_capability(window, Capability::MSI)? else {
            return Ok(None);
        };
        let control = config.read(window, found.offset, Width::Word)? >> 16;
        // Powers of two up to 32; the two values beyond are reserved.
        let vectors = 1 << (control >> 1 & 7).min(5);
        Ok(Some(Self { capability: found.offset, vectors, wide: control & MSI_WIDE != 0 }))
    }

    /// Sets the interrupt and turns MSI on.
    ///
    /// # Errors
    /// [`MsiError`]; nothing is written then.
    pub fn program(
        &self,
        config: &mut ConfigSpace,
        window: &mut impl MmioWindow,
        interrupt: &Interrupt,
    ) -> Result<(), MsiError> {
        let vectors = interrupt.vectors;
        if !vectors.is_power_of_two() || vectors > self.vectors {
            return Err(MsiError::Vectors { vectors, most: self.vectors });
        }
        if !self.wide && interrupt.address >> 32 != 0 {
            return Err(MsiError::Address(interrupt.address));
        }
        self.disable(config, window)?;
        let at = self.capability;
        config.write(window, at + 4, Width::Word, interrupt.address as u32)?;
        let data = if self.wide {
            config.write(window, at + 8, Width::Word, (interrupt.address >> 32) as u32)?;
            at + 12
        } else {
            at + 8
        };
        config.write(window, data, Width::Half, interrupt.data)?;
        let control = config.read(window, at + 2, Width::Half)? & !(7 << 4);
        let count = vectors.trailing_zeros() << 4;
        Ok(config.write(window, at + 2, Width::Half, control | count | MSI_ENABLE)?)
    }

    /// Turns MSI off.
    ///
    /// # Errors
    /// [`ConfigError`].
    pub fn disable(
        &self,
        config: &mut ConfigSpace,
        window: &mut impl MmioWindow,
    ) -> Result<(), ConfigError> {
        let at = self.capability + 2;
        let control = config.read(window, at, Width::Half)?;
        config.write(window, at, Width::Half, control & !MSI_ENABLE)
    }
}

#[cfg(test)]
mod tests {
    use vmbus::Serial;

    use super::*;
    use crate::bus::{Function, FunctionId};
    use crate::config::{CAPABILITIES, COMMAND, STATUS_CAPABILITIES};
    use crate::message::Description;
    use crate::slot::Slot;
    use crate::window::CONFIG_PAGE;

    /// Configuration space with nothing but an MSI-X capability at 0x40, whose table is at this place.
    struct Table {
        entries: u16,
        place: u32,
    }

    impl MmioWindow for Table {
        fn read(&mut self, offset: u32, width: Width) -> u32 {
            let value = match offset - CONFIG_PAGE {
                COMMAND => u32::from(STATUS_CAPABILITIES) << 16,
                CAPABILITIES => 0x40,
                0x40 => u32::from(self.entries - 1) << 16 | u32::from(Capability::MSIX),
                0x44 => self.place,
                _ => 0,
            };
            value & width.ones()
        }

        fn write(&mut self, _: u32, _: Width, _: u32) {}
    }

    #[test]
    fn a_table_beyond_4_gib_of_its_bar_is_refused() {
        let slot = Slot::from_wire(0).unwrap();
        // One BAR of 8 GiB.
        let config = ConfigSpace::new(&Function {
            id: FunctionId { slot, generation: 1 },
            description: Description {
                slot,
                vendor: 1,
                device: 2,
                revision: 0,
                class: 2,
                subclass: 0,
                prog_if: 0,
                subsystem_vendor: 0,
                subsystem: 0,
                serial: Serial(1),
                numa_node: None,
            },
            bar_masks: [0xc, 0xffff_fffe, 0, 0, 0, 0],
        });
        let find = |entries, place| Msix::find(&config, &mut Table { entries, place });
        // The last entry ends where an offset of 32 bits does.
        let msix = find(2, 0xffff_ffe0).unwrap().unwrap();
        assert_eq!(msix.entry(1), Ok(0xffff_fff0));
        msix.mask_all(&mut Table { entries: 2, place: 0 });
        let (bar, entries) = (0, 2);
        for offset in [0xffff_ffe8, 0xffff_fff0, 0xffff_fff8] {
            assert_eq!(find(2, offset), Err(MsiError::TableOutside { bar, offset, entries }));
        }
    }
}

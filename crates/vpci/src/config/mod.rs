//! Configuration space of a function (PROTOCOL §10.4).
//!
//! What the host said in its snapshot is answered from there and never read from the window; the expansion ROM and the
//! interrupt line and pin, which virtual functions do not have, read 0; writes to all these are dropped. BARs and the
//! memory-enable bit are remembered once written, because some hosts do not give them back reliably. Everything else
//! goes through the window, where selecting the function and the access are one operation.

mod capability;
#[cfg(test)]
mod tests;

pub use capability::{Capability, CapabilityError, ExtendedCapability};

use crate::assign::Placed;
use crate::bus::{Function, FunctionId};
use crate::message::{BARS, Description};
use crate::slot::Slot;
use crate::window::{CONFIG_PAGE, MmioWindow, SELECT, Width};

/// Bytes of a function's configuration space.
pub const CONFIG_SIZE: u32 = 0x1000;
/// Offset of the command register, 16 bits.
pub const COMMAND: u32 = 0x04;
/// Offset of the status register, 16 bits.
pub const STATUS: u32 = 0x06;
/// Offset of the first BAR.
pub const BAR0: u32 = 0x10;
/// Offset behind the last BAR.
pub const BARS_END: u32 = BAR0 + 4 * BARS as u32;
/// Offset of the pointer to the first capability, 8 bits.
pub const CAPABILITIES: u32 = 0x34;

/// [`COMMAND`]: the function answers at the addresses in its BARs.
pub const COMMAND_MEMORY: u16 = 0x2;
/// [`COMMAND`]: the function may read and write memory by itself.
pub const COMMAND_MASTER: u16 = 0x4;
/// [`STATUS`]: there is a list of capabilities.
pub const STATUS_CAPABILITIES: u16 = 0x10;

/// An access that is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// Beyond the end.
    #[error("configuration space at {offset:#x}: expected an offset below {CONFIG_SIZE:#x}")]
    Outside {
        /// Where.
        offset: u32,
    },
    /// Not a multiple of the width. Such an access could straddle a page.
    #[error("configuration space at {offset:#x}: expected a multiple of {}", width.bytes())]
    Unaligned {
        /// Where.
        offset: u32,
        /// How wide.
        width: Width,
    },
    /// A BAR may change only while the function does not answer at it.
    #[error("BAR at {offset:#x} written with memory-enable on: expected it off")]
    MemoryEnabled {
        /// Where.
        offset: u32,
    },
    /// A BAR that the function does not have.
    #[error("BAR {index}: expected one that the function has")]
    NoSuchBar {
        /// Its register.
        index: usize,
    },
}

/// Where the value of a byte comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Source {
    /// It is this one, and cannot be written.
    Fixed(u8),
    /// From the window.
    Window,
}

/// Configuration space of one function, for as long as that function is there.
#[derive(Clone, Debug)]
pub struct ConfigSpace {
    function: FunctionId,
    description: Description,
    bar_masks: [u32; BARS],
    /// What was written to the BARs, as far as they were.
    bars: [Option<u32>; BARS],
    /// What was written to memory-enable.
    memory: Option<bool>,
}

impl ConfigSpace {
    /// Configuration space of a function that has arrived. Nothing is read or written yet.
    #[must_use]
    pub fn new(function: &Function) -> Self {
        Self {
            function: function.id,
            description: function.description,
            bar_masks: function.bar_masks,
            bars: [None; BARS],
            memory: None,
        }
    }

    /// Whose it is.
    #[must_use]
    pub fn function(&self) -> FunctionId {
        self.function
    }

    /// Which slot is selected for it.
    #[must_use]
    pub fn slot(&self) -> Slot {
        self.description.slot
    }

    /// What the host says each BAR reads after all ones were written to it.
    #[must_use]
    pub fn bar_masks(&self) -> &[u32; BARS] {
        &self.bar_masks
    }

    /// Reads; the value stands in the low bits.
    ///
    /// # Errors
    /// [`ConfigError::Outside`] or [`ConfigError::Unaligned`].
    pub fn read(
        &self,
        window: &mut impl MmioWindow,
        offset: u32,
        width: Width,
    ) -> Result<u32, ConfigError> {
        check(offset, width)?;
        if let Some(value) = self.bar_at(offset).and_then(|index| *self.bars.get(index)?) {
            return Ok(value >> (8 * (offset % 4)) & width.ones());
        }
        let bytes = offset..offset + width.bytes();
        let mut value = 0;
        if bytes.clone().any(|byte| self.source(byte) == Source::Window) {
            value = self.through(window, |window| window.read(CONFIG_PAGE + offset, width));
        }
        for byte in bytes {
            let shift = 8 * (byte - offset);
            if let Source::Fixed(fixed) = self.source(byte) {
                value = value & !(0xff << shift) | u32::from(fixed) << shift;
            }
            if let (COMMAND, Some(on)) = (byte, self.memory) {
                let bit = u32::from(COMMAND_MEMORY) << shift;
                value = if on { value | bit } else { value & !bit };
            }
        }
        Ok(value)
    }

    /// Writes the low bits of `value`. What cannot be written is dropped.
    ///
    /// # Errors
    /// [`ConfigError`]; nothing is written then.
    pub fn write(
        &mut self,
        window: &mut impl MmioWindow,
        offset: u32,
        width: Width,
        value: u32,
    ) -> Result<(), ConfigError> {
        check(offset, width)?;
        if let Some(index) = self.bar_at(offset) {
            return self.write_bar(window, index, offset, width, value);
        }
        let fixed =
            (0..width.bytes()).filter(|byte| self.source(offset + byte) != Source::Window).count();
        if fixed == 0 {
            self.through(window, |window| window.write(CONFIG_PAGE + offset, width, value));
        } else {
            for byte in (0..width.bytes()).filter(|b| self.source(offset + b) == Source::Window) {
                let value = value >> (8 * byte) & 0xff;
                self.through(window, |window| {
                    window.write(CONFIG_PAGE + offset + byte, Width::Byte, value);
                });
            }
        }
        if offset == COMMAND {
            self.memory = Some(value & u32::from(COMMAND_MEMORY) != 0);
        }
        Ok(())
    }

    /// The command register.
    pub fn command(&self, window: &mut impl MmioWindow) -> u16 {
        // The offset is a constant that both checks let through, and sixteen bits were read.
        self.read(window, COMMAND, Width::Half).map_or(u16::MAX, |value| value as u16)
    }

    /// Sets the command register; the status register beside it is not touched.
    pub fn set_command(&mut self, window: &mut impl MmioWindow, command: u16) {
        let written = self.write(window, COMMAND, Width::Half, command.into());
        debug_assert!(written.is_ok());
    }

    /// Whether the function still answers. Reads of one that is gone give all ones, which no status register does.
    pub fn is_present(&self, window: &mut impl MmioWindow) -> bool {
        self.read(window, STATUS, Width::Half) != Ok(0xffff)
    }

    /// Finds out the mask of each BAR as PCI does: writes all ones, reads, and writes back the address that it was given,
    /// or what the window read where it was given none. The host has said the same in its resource requirements; the two
    /// can be compared. A host that does not give BARs back keeps the addresses, and its masks are worthless.
    pub fn probe_bars(&mut self, window: &mut impl MmioWindow) -> [u32; BARS] {
        let command = self.command(window);
        self.set_command(window, command & !COMMAND_MEMORY);
        let mut masks = [0; BARS];
        let bars = (BAR0..BARS_END).step_by(4).zip(self.bars);
        for ((offset, written), mask) in bars.zip(&mut masks) {
            *mask = self.through(window, |window| {
                let at = CONFIG_PAGE + offset;
                let before = written.unwrap_or_else(|| window.read(at, Width::Word));
                window.write(at, Width::Word, u32::MAX);
                let mask = window.read(at, Width::Word);
                window.write(at, Width::Word, before);
                mask
            });
        }
        self.set_command(window, command);
        masks
    }

    /// Gives the BARs their addresses: turns memory-enable off, writes them, and turns it on.
    ///
    /// # Errors
    /// [`ConfigError::NoSuchBar`]; nothing is written then.
    pub fn place_bars(
        &mut self,
        window: &mut impl MmioWindow,
        placed: &[Placed],
    ) -> Result<(), ConfigError> {
        for Placed { bar, .. } in placed {
            if self.bar_masks.get(bar.index).is_none_or(|mask| *mask == 0) {
                return Err(ConfigError::NoSuchBar { index: bar.index });
            }
        }
        let command = self.command(window) & !COMMAND_MEMORY;
        self.set_command(window, command);
        for Placed { bar, address } in placed {
            let offset = BAR0 + 4 * bar.index as u32;
            self.write(window, offset, Width::Word, *address as u32)?;
            if bar.wide {
                self.write(window, offset + 4, Width::Word, (*address >> 32) as u32)?;
            }
        }
        self.set_command(window, command | COMMAND_MEMORY);
        Ok(())
    }

    /// Writes everything that is remembered again, after the function has lost it: at resume, after a reset.
    pub fn restore(&mut self, window: &mut impl MmioWindow, command: u16) {
        self.set_command(window, command & !COMMAND_MEMORY);
        for (offset, bar) in (BAR0..BARS_END).step_by(4).zip(self.bars) {
            if let Some(value) = bar {
                self.through(window, |window| {
                    window.write(CONFIG_PAGE + offset, Width::Word, value);
                });
            }
        }
        self.set_command(window, command);
    }

    fn write_bar(
        &mut self,
        window: &mut impl MmioWindow,
        index: usize,
        offset: u32,
        width: Width,
        value: u32,
    ) -> Result<(), ConfigError> {
        if self.command(window) & COMMAND_MEMORY != 0 {
            return Err(ConfigError::MemoryEnabled { offset });
        }
        let start = BAR0 + 4 * index as u32;
        let shift = 8 * (offset - start);
        let before = match width {
            Width::Word => 0,
            Width::Byte | Width::Half => self.read(window, start, Width::Word)?,
        };
        let ones = width.ones() << shift;
        let value = before & !ones | value << shift & ones;
        let (mask, kind) = self.bar_bits(index);
        let value = value & mask & !kind | mask & kind;
        self.through(window, |window| window.write(CONFIG_PAGE + start, Width::Word, value));
        if let Some(bar) = self.bars.get_mut(index) {
            *bar = Some(value);
        }
        Ok(())
    }

    /// The mask of a BAR register, and which of its bits say what kind of BAR it is.
    fn bar_bits(&self, index: usize) -> (u32, u32) {
        let mask = self.bar_masks.get(index).copied().unwrap_or(0);
        let upper = crate::bar::decode(&self.bar_masks)
            .is_ok_and(|mut bars| bars.any(|bar| bar.wide && bar.index + 1 == index));
        (mask, if upper { 0 } else { 0xf })
    }

    fn bar_at(&self, offset: u32) -> Option<usize> {
        (BAR0..BARS_END).contains(&offset).then(|| ((offset - BAR0) / 4) as usize)
    }

    /// What a byte of configuration space is.
    fn source(&self, byte: u32) -> Source {
        let it = &self.description;
        let [vendor0, vendor1] = it.vendor.to_le_bytes();
        let [device0, device1] = it.device.to_le_bytes();
        let [maker0, maker1] = it.subsystem_vendor.to_le_bytes();
        let [system0, system1] = it.subsystem.to_le_bytes();
        Source::Fixed(match byte {
            0x00 => vendor0,
            0x01 => vendor1,
            0x02 => device0,
            0x03 => device1,
            0x08 => it.revision,
            0x09 => it.prog_if,
            0x0a => it.subclass,
            0x0b => it.class,
            0x2c => maker0,
            0x2d => maker1,
            0x2e => system0,
            0x2f => system1,
            // Expansion ROM; interrupt line and pin.
            0x30..=0x33 | 0x3c | 0x3d => 0,
            _ => return Source::Window,
        })
    }

    /// Selects the function and does something with its configuration space, as one operation.
    fn through<W: MmioWindow, T>(&self, window: &mut W, access: impl FnOnce(&mut W) -> T) -> T {
        window.write(SELECT, Width::Word, self.description.slot.to_wire());
        access(window)
    }
}

fn check(offset: u32, width: Width) -> Result<(), ConfigError> {
    if offset >= CONFIG_SIZE {
        return Err(ConfigError::Outside { offset });
    }
    if !offset.is_multiple_of(width.bytes()) {
        return Err(ConfigError::Unaligned { offset, width });
    }
    Ok(())
}

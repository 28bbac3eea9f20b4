//! Device memory as the host serves it: the guest's window, and the BARs wherever the guest has put them.

use vpci::message::WINDOW_SIZE;
use vpci::window::{CONFIG_PAGE, SELECT};
use vpci::{MmioWindow, Slot, Width};

use super::PciService;
use super::device::Raised;

/// A run of device memory from some guest physical address on, for the guest to read and write.
#[derive(Debug)]
pub struct HostMemory<'a> {
    service: &'a mut PciService,
    base: u64,
}

impl MmioWindow for HostMemory<'_> {
    fn read(&mut self, offset: u32, width: Width) -> u32 {
        let address = self.base.wrapping_add(offset.into());
        self.service.read_memory(address, width)
    }

    fn write(&mut self, offset: u32, width: Width, value: u32) {
        let address = self.base.wrapping_add(offset.into());
        self.service.write_memory(address, width, value);
    }
}

impl PciService {
    /// Device memory from `base` on: the address of the guest's window, or of a BAR that it has placed.
    pub fn memory(&mut self, base: u64) -> HostMemory<'_> {
        HostMemory { service: self, base }
    }

    /// Reads device memory. Where nothing answers there are all ones.
    pub fn read_memory(&mut self, address: u64, width: Width) -> u32 {
        self.stats.memory_accesses += 1;
        if !address.is_multiple_of(width.bytes().into()) {
            return width.ones();
        }
        if let Some(offset) = self.window_offset(address) {
            let forgetful = self.policy.forgetful_config;
            return match (self.selected(), offset.checked_sub(CONFIG_PAGE)) {
                (Some(function), Some(at)) => function.hardware.read_config(at, width, forgetful),
                _ => width.ones(),
            };
        }
        let mut functions = self.functions.values();
        functions
            .find_map(|function| function.hardware.read_memory(address, width))
            .unwrap_or(width.ones())
    }

    /// Writes device memory. Where nothing answers that is lost.
    pub fn write_memory(&mut self, address: u64, width: Width, value: u32) {
        self.stats.memory_accesses += 1;
        if !address.is_multiple_of(width.bytes().into()) {
            return;
        }
        let Some(offset) = self.window_offset(address) else {
            let _ = self
                .functions
                .values_mut()
                .any(|function| function.hardware.write_memory(address, width, value));
            return;
        };
        match offset.checked_sub(CONFIG_PAGE) {
            Some(at) => {
                let function = self.select.and_then(|slot| self.functions.get_mut(&slot));
                if let Some(function) = function {
                    function.hardware.write_config(at, width, value);
                }
            }
            None if (offset, width) == (SELECT, Width::Word) => {
                self.select = Slot::from_wire(value).ok();
            }
            None => {}
        }
    }

    /// A function raises an interrupt. `None` if there is no such function. What it writes must be an interrupt that was
    /// granted to it; anything else is counted, as a real host would drop it.
    pub fn raise(&mut self, slot: Slot, vector: u16) -> Option<Raised> {
        let raised = self.functions.get(&slot)?.hardware.raise(vector);
        if let Raised::Written { address, data } = raised
            && !self.is_granted(slot, address, data)
        {
            self.stats.stray_interrupts += 1;
        }
        Some(raised)
    }

    fn is_granted(&self, slot: Slot, address: u64, data: u32) -> bool {
        let granted = self.interrupts.range(..=data).next_back();
        address == super::serve::INTERRUPT_ADDRESS
            && granted
                .is_some_and(|(first, (of, count))| *of == slot && data - first < u32::from(*count))
    }

    fn window_offset(&self, address: u64) -> Option<u32> {
        let offset = address.checked_sub(self.window?)?;
        (offset < WINDOW_SIZE).then_some(offset as u32)
    }

    fn selected(&self) -> Option<&super::Function> {
        self.functions.get(&self.select?)
    }
}

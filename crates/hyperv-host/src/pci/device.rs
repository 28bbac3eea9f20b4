//! The functions themselves: configuration space, BARs, interrupts, and some that are worth discovering.

use std::collections::BTreeMap;

use netvsc::MacAddress;
use vmbus::Serial;
use vpci::config::{
    BAR0, BARS_END, CAPABILITIES, COMMAND, COMMAND_MASTER, COMMAND_MEMORY, CONFIG_SIZE, STATUS,
    STATUS_CAPABILITIES,
};
use vpci::message::{BARS, Description};
use vpci::{Slot, Width, bar};

/// Where the capabilities of a function stand.
const EXPRESS: u32 = 0x40;
const MSI: u32 = 0x80;
const MSIX: u32 = 0xa0;
/// [`MULTI_PORT_ID`] stands at the beginning of the multi-port function's BAR 0.
pub const MULTI_PORT_ID: u32 = u32::from_le_bytes(*b"NVMP");
/// Where that BAR has the number of ports.
pub const MULTI_PORT_COUNT: u32 = 4;
/// Where it has the first port's MAC address: four bytes, then two.
pub const MULTI_PORT_MACS: u32 = 0x10;
/// Bytes from one port to the next.
pub const MULTI_PORT_STRIDE: u32 = 0x10;

/// Most ports that such a function can have: BAR 0 has a page of registers for each behind its first.
pub const MOST_PORTS: usize = 15;

/// Where a function has its MSI-X table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MsixSpec {
    /// Entries, 1 to 2,048.
    pub entries: u16,
    /// The BAR in which the table lies.
    pub bar: u8,
    /// Where in it; a multiple of 8.
    pub offset: u32,
}

/// What a function is made with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FunctionSpec {
    /// What the snapshots say.
    pub description: Description,
    /// Per BAR, what it reads after all ones were written to it.
    pub bars: [u32; BARS],
    /// Interrupts with a table.
    pub msix: Option<MsixSpec>,
    /// Interrupts without: the binary logarithm of how many vectors, at most 5.
    pub msi: Option<u8>,
    /// Words that can be read in its BARs, by BAR and offset. Everything else there reads 0.
    pub registers: BTreeMap<(u8, u32), u32>,
    /// Configuration blocks that the driver of the physical function keeps for it.
    pub blocks: BTreeMap<u32, Vec<u8>>,
}

impl FunctionSpec {
    /// A function with BARs and nothing else.
    #[must_use]
    pub fn new(description: Description, bars: [u32; BARS]) -> Self {
        Self {
            description,
            bars,
            msix: None,
            msi: None,
            registers: BTreeMap::new(),
            blocks: BTreeMap::new(),
        }
    }

    /// A disk of the NVMe class, as Azure has them: 16 KiB of registers, MSI-X with 65 vectors, NUMA node 0.
    #[must_use]
    pub fn nvme(slot: Slot, serial: Serial) -> Self {
        let mut description = crate::vf::description(slot, serial);
        (description.device, description.subsystem) = (0xb111, 1);
        (description.class, description.subclass, description.prog_if) = (1, 8, 2);
        description.numa_node = Some(0);
        let mut spec = Self::new(description, [0xffff_c004, 0xffff_ffff, 0, 0, 0, 0]);
        spec.msix = Some(MsixSpec { entries: 65, bar: 0, offset: 0x2000 });
        // Capabilities: 1,024 entries per queue, contiguous queues. Version 1.4.
        spec.registers.insert((0, 0), 0x0001_03ff);
        spec.registers.insert((0, 8), 0x0001_0400);
        spec
    }

    /// One network function with several ports, as Azure's MANA is: every NIC of the machine is paired with one port of
    /// it, so that all have the same serial number. The first page of BAR 0 lists the ports' MAC addresses; the registers
    /// of port n are its page n + 1. Of more than [`MOST_PORTS`] ports the rest is left out.
    #[must_use]
    pub fn multi_port(slot: Slot, serial: Serial, ports: &[MacAddress]) -> Self {
        let ports = ports.get(..MOST_PORTS).unwrap_or(ports);
        let mut description = crate::vf::description(slot, serial);
        (description.device, description.subsystem) = (0x00ba, 0x00b9);
        description.numa_node = Some(0);
        let bars = [0xffff_000c, 0xffff_ffff, 0, 0, 0xffff_8000, 0];
        let mut spec = Self::new(description, bars);
        spec.msix = Some(MsixSpec { entries: 32, bar: 4, offset: 0 });
        spec.registers.insert((0, 0), MULTI_PORT_ID);
        spec.registers.insert((0, MULTI_PORT_COUNT), ports.len() as u32);
        for (at, port) in (MULTI_PORT_MACS..).step_by(MULTI_PORT_STRIDE as usize).zip(ports) {
            let [a, b, c, d, e, f] = port.0;
            spec.registers.insert((0, at), u32::from_le_bytes([a, b, c, d]));
            spec.registers.insert((0, at + 4), u32::from_le_bytes([e, f, 0, 0]));
        }
        spec
    }
}

/// What became of an interrupt that a function raised.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Raised {
    /// It was written to this address.
    Written {
        /// Where.
        address: u64,
        /// What.
        data: u32,
    },
    /// The guest has it held back.
    Masked,
    /// The guest has not turned such interrupts on, or does not let the function write to memory.
    Off,
}

/// The hardware of a function.
#[derive(Clone, Debug)]
pub(super) struct Hardware {
    spec: FunctionSpec,
    config: Vec<u8>,
    /// Which bits of configuration space can be written.
    writable: Vec<u8>,
    /// The MSI-X table.
    table: Vec<[u32; 4]>,
}

impl Hardware {
    pub(super) fn new(spec: FunctionSpec) -> Self {
        let mut it = Self {
            config: vec![0; CONFIG_SIZE as usize],
            writable: vec![0; CONFIG_SIZE as usize],
            table: vec![[0, 0, 0, 1]; spec.msix.map_or(0, |msix| msix.entries.into())],
            spec,
        };
        let about = it.spec.description;
        let pair = |low: u16, high: u16| u32::from(low) | u32::from(high) << 16;
        it.word(0x00, pair(about.vendor, about.device), 0);
        it.word(COMMAND, 0, (COMMAND_MEMORY | COMMAND_MASTER | 1 << 10).into());
        let class = [about.revision, about.prog_if, about.subclass, about.class];
        it.word(0x08, u32::from_le_bytes(class), 0);
        it.word(0x0c, 0, 0xff);
        it.word(0x2c, pair(about.subsystem_vendor, about.subsystem), 0);
        let wide: Vec<_> = bar::decode(&it.spec.bars)
            .map(|bars| bars.filter(|bar| bar.wide).map(|bar| bar.index + 1).collect())
            .unwrap_or_default();
        for (index, (at, mask)) in (BAR0..).step_by(4).zip(it.spec.bars).enumerate() {
            let kind = if wide.contains(&index) { 0 } else { 0xf };
            it.word(at, mask & kind, mask & !kind);
        }
        it.capabilities();
        it
    }

    /// Makes everything that a guest can write as it was at the beginning.
    pub(super) fn reset(&mut self) {
        *self = Self::new(self.spec.clone());
    }

    /// Writes the list of capabilities: PCI Express, and the interrupts that there are.
    fn capabilities(&mut self) {
        self.word(STATUS & !3, u32::from(STATUS_CAPABILITIES) << 16, self.writable_word(COMMAND));
        let mut next = 0;
        if let Some(msix) = self.spec.msix {
            let control = u32::from(msix.entries.clamp(1, 2048)) - 1;
            self.word(MSIX, 0x11 | control << 16, 0xc000 << 16);
            self.word(MSIX + 4, msix.offset & !7 | u32::from(msix.bar), 0);
            let pending = msix.offset + 16 * u32::from(msix.entries);
            self.word(MSIX + 8, pending.next_multiple_of(8) | u32::from(msix.bar), 0);
            next = MSIX;
        }
        if let Some(vectors) = self.spec.msi {
            let control = 0x80 | u32::from(vectors.min(5)) << 1;
            self.word(MSI, 0x05 | next << 8 | control << 16, 0x71 << 16);
            self.word(MSI + 4, 0, 0xffff_fffc);
            self.word(MSI + 8, 0, u32::MAX);
            self.word(MSI + 12, 0, 0xffff);
            next = MSI;
        }
        self.word(EXPRESS, 0x10 | next << 8 | 0x0002 << 16, 0);
        self.word(CAPABILITIES, EXPRESS, 0);
    }

    pub(super) fn spec_mut(&mut self) -> &mut FunctionSpec {
        &mut self.spec
    }

    pub(super) fn spec(&self) -> &FunctionSpec {
        &self.spec
    }

    fn word(&mut self, at: u32, value: u32, writable: u32) {
        let at = at as usize;
        self.config[at..at + 4].copy_from_slice(&value.to_le_bytes());
        self.writable[at..at + 4].copy_from_slice(&writable.to_le_bytes());
    }

    fn writable_word(&self, at: u32) -> u32 {
        load(&self.writable, at, Width::Word)
    }

    /// Reads configuration space. A forgetful one does not give back BARs and memory-enable.
    pub(super) fn read_config(&self, at: u32, width: Width, forgetful: bool) -> u32 {
        if forgetful && (BAR0..BARS_END).contains(&at) {
            return 0;
        }
        let value = load(&self.config, at, width);
        let hide = if forgetful && at == COMMAND { COMMAND_MEMORY.into() } else { 0 };
        value & !hide
    }

    pub(super) fn write_config(&mut self, at: u32, width: Width, value: u32) {
        for (byte, at) in value.to_le_bytes().iter().zip(at as usize..).take(width.bytes() as usize)
        {
            let (Some(place), Some(writable)) = (self.config.get_mut(at), self.writable.get(at))
            else {
                return;
            };
            *place = *place & !writable | byte & writable;
        }
    }

    /// Sets or clears memory-enable, as power states do.
    pub(super) fn set_memory(&mut self, on: bool) {
        let command = load(&self.config, COMMAND, Width::Half);
        let memory = u32::from(COMMAND_MEMORY);
        let command = if on { command | memory } else { command & !memory };
        self.write_config(COMMAND, Width::Half, command);
    }

    /// The BAR that covers an address, and where in it that lies.
    fn decode(&self, address: u64) -> Option<(u8, u32)> {
        if load(&self.config, COMMAND, Width::Half) & u32::from(COMMAND_MEMORY) == 0 {
            return None;
        }
        bar::decode(&self.spec.bars).ok()?.find_map(|bar| {
            let at = BAR0 + 4 * bar.index as u32;
            let mut base = u64::from(load(&self.config, at, Width::Word) & !0xf);
            if bar.wide {
                base |= u64::from(load(&self.config, at + 4, Width::Word)) << 32;
            }
            let offset = address.checked_sub(base).filter(|offset| *offset < bar.size)?;
            Some((bar.index as u8, u32::try_from(offset).ok()?))
        })
    }

    /// The entry and word of the MSI-X table at a place of a BAR.
    fn entry(&self, bar: u8, offset: u32) -> Option<(usize, usize)> {
        let msix = self.spec.msix.filter(|msix| msix.bar == bar)?;
        let at = offset.checked_sub(msix.offset)? as usize;
        (at / 16 < self.table.len()).then_some((at / 16, at % 16 / 4))
    }

    /// Reads memory of the function; `None` if it is not the function's.
    pub(super) fn read_memory(&self, address: u64, width: Width) -> Option<u32> {
        let (bar, offset) = self.decode(address)?;
        let word = match self.entry(bar, offset) {
            Some((entry, word)) => *self.table.get(entry)?.get(word)?,
            None => self.spec.registers.get(&(bar, offset & !3)).copied().unwrap_or(0),
        };
        Some(word >> (8 * (offset % 4)) & width.ones())
    }

    /// Writes memory of the function; false if it is not the function's.
    pub(super) fn write_memory(&mut self, address: u64, width: Width, value: u32) -> bool {
        let Some((bar, offset)) = self.decode(address) else { return false };
        // Tables are written by whole words; anything else is lost.
        if width == Width::Word
            && let Some((entry, word)) = self.entry(bar, offset)
            && let Some(place) = self.table.get_mut(entry).and_then(|entry| entry.get_mut(word))
        {
            *place = value;
        }
        true
    }

    /// Raises a vector: an entry of the table, or a number of MSI.
    pub(super) fn raise(&self, vector: u16) -> Raised {
        let config = |at, width| load(&self.config, at, width);
        if config(COMMAND, Width::Half) & u32::from(COMMAND_MASTER) == 0 {
            return Raised::Off;
        }
        if self.spec.msix.is_some() && config(MSIX + 2, Width::Half) & 0x8000 != 0 {
            let masked = config(MSIX + 2, Width::Half) & 0x4000 != 0;
            return match self.table.get(usize::from(vector)) {
                None => Raised::Off,
                Some([.., control]) if masked || control & 1 != 0 => Raised::Masked,
                Some([low, high, data, _]) => {
                    let address = u64::from(*low) | u64::from(*high) << 32;
                    Raised::Written { address, data: *data }
                }
            };
        }
        let control = config(MSI + 2, Width::Half);
        if self.spec.msi.is_none() || control & 1 == 0 || vector >= 1 << (control >> 4 & 7) {
            return Raised::Off;
        }
        let high = u64::from(config(MSI + 8, Width::Word)) << 32;
        let address = u64::from(config(MSI + 4, Width::Word)) | high;
        Raised::Written { address, data: config(MSI + 12, Width::Half) + u32::from(vector) }
    }
}

/// Bytes of configuration space; all ones beyond its end.
fn load(bytes: &[u8], at: u32, width: Width) -> u32 {
    let at = at as usize;
    bytes.get(at..at + width.bytes() as usize).map_or(width.ones(), |bytes| {
        bytes.iter().rev().fold(0, |value, byte| value << 8 | u32::from(*byte))
    })
}

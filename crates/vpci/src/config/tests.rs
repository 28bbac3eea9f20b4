//! Configuration space against a window that notes every access.

extern crate std;

use std::collections::BTreeMap;
use std::vec;
use std::vec::Vec;

use proptest::prelude::*;
use vmbus::Serial;

use super::*;
use crate::bar;

const MASKS: [u32; BARS] = [0xffff_f00c, 0xffff_ffff, 0xffff_0000, 0, 0, 0];

/// Memory behind the window: per slot a page. It keeps BARs as they are written if `honest`, and forgets them if not.
#[derive(Default)]
struct Fake {
    pages: BTreeMap<u32, Vec<u8>>,
    selected: u32,
    honest: bool,
    accesses: Vec<(bool, u32, Width)>,
}

impl Fake {
    fn word(&mut self, slot: u32, offset: usize, value: u32) {
        let page = self.pages.entry(slot).or_insert_with(|| vec![0; 4096]);
        page[offset..offset + 4].copy_from_slice(&value.to_le_bytes());
    }
}

impl MmioWindow for Fake {
    fn read(&mut self, offset: u32, width: Width) -> u32 {
        assert_eq!(offset % width.bytes(), 0);
        self.accesses.push((false, offset, width));
        let (Some(page), Some(at)) =
            (self.pages.get(&self.selected), offset.checked_sub(CONFIG_PAGE))
        else {
            return width.ones();
        };
        let bytes = &page[at as usize..(at + width.bytes()) as usize];
        bytes.iter().rev().fold(0, |value, byte| value << 8 | u32::from(*byte))
    }

    fn write(&mut self, offset: u32, width: Width, value: u32) {
        assert_eq!(offset % width.bytes(), 0);
        self.accesses.push((true, offset, width));
        let Some(at) = offset.checked_sub(CONFIG_PAGE) else {
            assert_eq!((offset, width), (SELECT, Width::Word));
            self.selected = value;
            return;
        };
        let bar = (BAR0..BARS_END).contains(&at);
        if (bar || at == COMMAND) && !self.honest {
            return;
        }
        let value = if bar {
            let index = ((at - BAR0) / 4) as usize;
            let kind = if index == 1 { 0 } else { MASKS[index] & 0xf };
            value & MASKS[index] & !kind | kind
        } else {
            value
        };
        if let Some(page) = self.pages.get_mut(&self.selected) {
            let bytes = &value.to_le_bytes()[..width.bytes() as usize];
            page[at as usize..at as usize + bytes.len()].copy_from_slice(bytes);
        }
    }
}

fn function(slot: u32) -> Function {
    let slot = Slot::from_wire(slot).unwrap();
    Function {
        id: FunctionId { slot, generation: 1 },
        description: Description {
            slot,
            vendor: 0x15b3,
            device: 0x1018,
            revision: 0x12,
            class: 2,
            subclass: 0,
            prog_if: 0x34,
            subsystem_vendor: 0x5678,
            subsystem: 0x9abc,
            serial: Serial(1),
            numa_node: None,
        },
        bar_masks: MASKS,
    }
}

fn setup(slot: u32) -> (ConfigSpace, Fake) {
    let mut fake = Fake { honest: true, ..Fake::default() };
    for offset in (0..4096).step_by(4) {
        fake.word(slot, offset, 0);
    }
    (ConfigSpace::new(&function(slot)), fake)
}

#[test]
fn identity_comes_from_the_description_and_the_window_is_not_asked() {
    let (config, mut fake) = setup(3);
    for offset in [0, 8, 0x2c, 0x30, 0x3c] {
        fake.word(3, offset, 0xdead_beef);
    }
    for (offset, width, value) in [
        (0x00, Width::Word, 0x1018_15b3),
        (0x02, Width::Half, 0x1018),
        (0x08, Width::Word, 0x0200_3412),
        (0x0b, Width::Byte, 0x02),
        (0x2c, Width::Word, 0x9abc_5678),
        (0x30, Width::Word, 0),
        (0x3c, Width::Half, 0),
    ] {
        assert_eq!(config.read(&mut fake, offset, width), Ok(value), "{offset:#x}");
    }
    assert!(fake.accesses.is_empty());
    assert_eq!(config.read(&mut fake, 0x3c, Width::Word), Ok(0xdead_0000), "latencies are real");
}

#[test]
fn writes_to_what_cannot_be_written_are_dropped() {
    let (mut config, mut fake) = setup(3);
    for offset in [0, 8, 0x2c, 0x30] {
        config.write(&mut fake, offset, Width::Word, u32::MAX).unwrap();
    }
    config.write(&mut fake, 0x3c, Width::Half, 0xffff).unwrap();
    assert!(fake.accesses.is_empty());
    config.write(&mut fake, 0x3c, Width::Word, 0x1122_3344).unwrap();
    assert_eq!(fake.pages[&3][0x3c..0x40], [0, 0, 0x22, 0x11]);
}

#[test]
fn every_access_selects_its_function_first() {
    let (one, mut fake) = setup(3);
    let mut other = ConfigSpace::new(&function(0xa2));
    fake.word(0xa2, 0x40, 7);
    fake.word(3, 0x40, 8);
    assert_eq!(one.read(&mut fake, 0x40, Width::Word), Ok(8));
    assert_eq!(other.read(&mut fake, 0x40, Width::Word), Ok(7));
    other.write(&mut fake, 0x40, Width::Word, 9).unwrap();
    assert_eq!(one.read(&mut fake, 0x40, Width::Byte), Ok(8));
    let selects = fake.accesses.iter().step_by(2);
    assert!(selects.eq([(true, SELECT, Width::Word); 4].iter()));
}

#[test]
fn accesses_that_could_straddle_a_page_are_refused() {
    let (mut config, mut fake) = setup(0);
    for (offset, width) in [(0xfff, Width::Half), (0xffe, Width::Word), (0x41, Width::Half)] {
        let error = ConfigError::Unaligned { offset, width };
        assert_eq!(config.read(&mut fake, offset, width), Err(error));
        assert_eq!(config.write(&mut fake, offset, width, 0), Err(error));
    }
    for offset in [0x1000, 0xffff_fffc] {
        let error = ConfigError::Outside { offset };
        assert_eq!(config.read(&mut fake, offset, Width::Word), Err(error));
    }
    assert!(fake.accesses.is_empty());
}

#[test]
fn bars_and_memory_enable_are_remembered_when_the_host_forgets_them() {
    let (mut config, mut fake) = setup(0);
    fake.honest = false;
    let mut space = crate::assign::AddressSpace::new([0xe000_0000..0xe100_0000, 1 << 40..1 << 41]);
    let placed = space.place(bar::decode(&MASKS).unwrap()).unwrap();
    config.place_bars(&mut fake, &placed).unwrap();
    let read = |fake: &mut Fake, at| config.read(fake, at, Width::Word).unwrap();
    assert_eq!(read(&mut fake, 0x10), 0xc);
    assert_eq!(read(&mut fake, 0x14), 0x100);
    assert_eq!(read(&mut fake, 0x18), 0xe000_0000);
    assert_eq!(config.read(&mut fake, 0x1a, Width::Half), Ok(0xe000));
    assert_eq!(config.command(&mut fake), COMMAND_MEMORY);
    config.set_command(&mut fake, COMMAND_MASTER);
    assert_eq!(config.command(&mut fake) & COMMAND_MEMORY, 0);
}

#[test]
fn bars_change_only_while_memory_enable_is_off() {
    let (mut config, mut fake) = setup(0);
    config.set_command(&mut fake, COMMAND_MEMORY);
    let error = ConfigError::MemoryEnabled { offset: 0x10 };
    assert_eq!(config.write(&mut fake, 0x10, Width::Word, 0), Err(error));
    config.set_command(&mut fake, 0);
    config.write(&mut fake, 0x10, Width::Word, u32::MAX).unwrap();
    assert_eq!(config.read(&mut fake, 0x10, Width::Word), Ok(0xffff_f00c));
    config.write(&mut fake, 0x1a, Width::Half, 0xabcd).unwrap();
    assert_eq!(config.read(&mut fake, 0x18, Width::Word), Ok(0xabcd_0000));
    assert_eq!(fake.pages[&0][0x18..0x1c], [0, 0, 0xcd, 0xab]);
}

#[test]
fn probing_finds_the_masks_and_leaves_everything_as_it_was() {
    let (mut config, mut fake) = setup(0);
    fake.word(0, 0x18, 0x1234_0000);
    config.set_command(&mut fake, COMMAND_MEMORY | COMMAND_MASTER);
    assert_eq!(config.probe_bars(&mut fake), MASKS);
    assert_eq!(config.read(&mut fake, 0x18, Width::Word), Ok(0x1234_0000));
    assert_eq!(config.command(&mut fake), COMMAND_MEMORY | COMMAND_MASTER);
}

#[test]
fn bars_that_a_function_does_not_have_are_not_placed() {
    let (mut config, mut fake) = setup(0);
    let bar = bar::Bar { index: 5, size: 16, wide: false, prefetchable: false };
    let error = ConfigError::NoSuchBar { index: 5 };
    assert_eq!(config.place_bars(&mut fake, &[Placed { bar, address: 0 }]), Err(error));
    assert!(fake.accesses.is_empty());
}

#[test]
fn what_was_written_can_be_written_again_after_it_was_lost() {
    let (mut config, mut fake) = setup(0);
    config.write(&mut fake, 0x18, Width::Word, 0xe123_0000).unwrap();
    config.set_command(&mut fake, COMMAND_MEMORY);
    fake.word(0, 0x18, 0);
    fake.word(0, 0x04, 0);
    config.restore(&mut fake, COMMAND_MEMORY | COMMAND_MASTER);
    assert_eq!(fake.pages[&0][0x18..0x1c], 0xe123_0000_u32.to_le_bytes());
    assert_eq!(fake.pages[&0][0x04], 6);
}

#[test]
fn capabilities_are_walked_to_the_end() {
    let (config, mut fake) = setup(0);
    assert_eq!(config.capabilities(&mut fake), Ok(vec![]));
    fake.word(0, 0x04, 0x10 << 16);
    assert_eq!(config.capabilities(&mut fake), Ok(vec![]));
    fake.word(0, 0x34, 0x43);
    fake.word(0, 0x40, 0x8010);
    fake.word(0, 0x80, 0x0011);
    assert_eq!(
        config.capabilities(&mut fake),
        Ok(vec![Capability { id: 0x10, offset: 0x40 }, Capability { id: 0x11, offset: 0x80 }])
    );
    let msix = config.find_capability(&mut fake, Capability::MSIX).unwrap();
    assert_eq!(msix.map(|capability| capability.offset), Some(0x80));
    assert_eq!(config.find_capability(&mut fake, Capability::MSI), Ok(None));
    assert_eq!(config.extended_capabilities(&mut fake), Ok(vec![]));
    fake.word(0, 0x100, 0xf001_0002 & !0xfff0_0000 | 0x200 << 20);
    fake.word(0, 0x200, 3);
    assert_eq!(
        config.extended_capabilities(&mut fake),
        Ok(vec![
            ExtendedCapability { id: 2, version: 1, offset: 0x100 },
            ExtendedCapability { id: 3, version: 0, offset: 0x200 },
        ])
    );
}

#[test]
fn lists_of_capabilities_that_lead_nowhere_are_refused() {
    let (config, mut fake) = setup(0);
    fake.word(0, 0x04, 0x10 << 16);
    fake.word(0, 0x34, 0x40);
    fake.word(0, 0x40, 0x8010);
    fake.word(0, 0x80, 0x4011);
    let error = CapabilityError::Loop { offset: 0x40 };
    assert_eq!(config.capabilities(&mut fake), Err(error));
    fake.word(0, 0x80, 0x3c11);
    let error = CapabilityError::Outside { offset: 0x3c, first: 0x40 };
    assert_eq!(config.capabilities(&mut fake), Err(error));
    fake.word(0, 0x80, u32::MAX);
    assert_eq!(config.capabilities(&mut fake), Err(CapabilityError::Gone));
    fake.word(0, 0x100, 0x1001_0002);
    let error = CapabilityError::Loop { offset: 0x100 };
    assert_eq!(config.extended_capabilities(&mut fake), Err(error));
    fake.word(0, 0x100, 0x0441_0002);
    let error = CapabilityError::Outside { offset: 0x44, first: 0x100 };
    assert_eq!(config.extended_capabilities(&mut fake), Err(error));
}

#[test]
fn a_function_that_is_gone_is_seen_to_be() {
    let (config, mut fake) = setup(0);
    assert!(config.is_present(&mut fake));
    fake.pages.clear();
    assert!(!config.is_present(&mut fake));
    assert_eq!(config.capabilities(&mut fake), Err(CapabilityError::Gone));
}

proptest! {
    #[test]
    fn no_space_makes_a_walk_endless(words in proptest::collection::vec(any::<u32>(), 1024)) {
        let (config, mut fake) = setup(0);
        for (at, word) in words.iter().enumerate() {
            fake.word(0, 4 * at, *word);
        }
        let _ = config.capabilities(&mut fake);
        let _ = config.extended_capabilities(&mut fake);
        prop_assert!(fake.accesses.len() < 5000);
    }

    #[test]
    fn narrow_reads_are_parts_of_wide_ones(at in 0_u32..1024, seed in any::<u32>()) {
        let (config, mut fake) = setup(0);
        fake.word(0, 4 * at as usize, seed);
        let word = config.read(&mut fake, 4 * at, Width::Word).unwrap();
        for byte in 0..4 {
            let read = config.read(&mut fake, 4 * at + byte, Width::Byte).unwrap();
            prop_assert_eq!(read, word >> (8 * byte) & 0xff);
        }
        for half in [0, 2] {
            let read = config.read(&mut fake, 4 * at + half, Width::Half).unwrap();
            prop_assert_eq!(read, word >> (8 * half) & 0xffff);
        }
    }
}

//! The guest's ways to a function's hardware, end to end: configuration space, BARs, interrupts, blocks, power.

use netvsc::MacAddress;
use vpci::assign::AddressSpace;
use vpci::bus::RequestError;
use vpci::config::{COMMAND_MASTER, COMMAND_MEMORY, Capability};
use vpci::interrupt::Delivery;
use vpci::message::PowerState;
use vpci::msi::{Msi, MsiError, Msix};
use vpci::{ConfigSpace, Function as GuestFunction, Interrupt, InterruptWish, MmioWindow, Width};

use super::*;

fn world(specs: Vec<FunctionSpec>) -> World {
    let mut world = World::new(PciPolicy::default(), &[]);
    for spec in specs {
        world.host.add_device(spec, Instant::ZERO).unwrap();
    }
    world.run();
    world
}

fn addresses() -> AddressSpace {
    AddressSpace::new([0xf800_0000..0xf900_0000, 0x10_0000_0000..0x10_1000_0000])
}

impl World {
    fn only(&self) -> GuestFunction {
        *self.guest.functions().next().unwrap()
    }

    fn interrupt(&mut self, vectors: u16) -> Interrupt {
        let function = self.only().id;
        let wish =
            InterruptWish { vector: 0x40, vectors, delivery: Delivery::Fixed, processors: &[0, 3] };
        self.guest.create_interrupt(function, &wish, self.now).unwrap();
        self.settle();
        self.guest.interrupts(function).last().unwrap()
    }
}

/// Places the BARs of a function and lets it work. The address of each by register.
fn bring_up(world: &mut World, space: &mut AddressSpace) -> (ConfigSpace, [u64; BARS]) {
    let function = world.only();
    let mut config = ConfigSpace::new(&function);
    let placed = space.place(function.bars().unwrap()).unwrap();
    let window = &mut world.host.memory(WINDOW);
    config.place_bars(window, &placed).unwrap();
    let command = config.command(window) | COMMAND_MASTER;
    config.set_command(window, command);
    let mut bars = [0; BARS];
    for placed in placed {
        bars[placed.bar.index] = placed.address;
    }
    (config, bars)
}

#[test]
fn a_disk_is_brought_up_to_its_interrupts() {
    let mut world = world(vec![FunctionSpec::nvme(slot(0), Serial(1))]);
    let (mut config, bars) = bring_up(&mut world, &mut addresses());
    assert!(config.is_present(&mut world.host.memory(WINDOW)));
    assert_eq!(world.only().description.numa_node, Some(0));
    let masks = config.probe_bars(&mut world.host.memory(WINDOW));
    assert_eq!(masks, world.only().bar_masks, "both ways to the masks agree");
    assert_eq!(world.host.memory(bars[0]).read(8, Width::Word), 0x0001_0400);

    let interrupt = world.interrupt(1);
    let msix = Msix::find(&config, &mut world.host.memory(WINDOW)).unwrap().unwrap();
    assert_eq!((msix.entries, msix.bar, msix.offset), (65, 0, 0x2000));
    assert_eq!(world.host.raise(slot(0), 64), Some(Raised::Off));
    msix.mask_all(&mut world.host.memory(bars[0]));
    msix.enable(&mut config, &mut world.host.memory(WINDOW), true).unwrap();
    assert_eq!(world.host.raise(slot(0), 64), Some(Raised::Masked));
    msix.program(&mut world.host.memory(bars[0]), 64, &interrupt, 0).unwrap();
    let (address, data) = (interrupt.address, interrupt.data);
    assert_eq!(world.host.raise(slot(0), 64), Some(Raised::Written { address, data }));
    assert_eq!(world.host.stats().stray_interrupts, 0);
    let error = MsiError::NoEntry { entry: 65, entries: 65 };
    let outside = msix.program(&mut world.host.memory(bars[0]), 65, &interrupt, 0);
    assert_eq!(outside, Err(error));
    msix.mask(&mut world.host.memory(bars[0]), 64, true).unwrap();
    assert_eq!(world.host.raise(slot(0), 64), Some(Raised::Masked));

    // An interrupt that was given back must not be written to any more.
    msix.mask(&mut world.host.memory(bars[0]), 64, false).unwrap();
    let id = world.only().id;
    world.guest.delete_interrupt(id, interrupt).unwrap();
    world.settle();
    assert_eq!(world.host.interrupts(), 0);
    world.host.raise(slot(0), 64);
    assert_eq!(world.host.stats().stray_interrupts, 1);
    msix.enable(&mut config, &mut world.host.memory(WINDOW), false).unwrap();
    assert_eq!(world.host.raise(slot(0), 64), Some(Raised::Off));
}

#[test]
fn interrupts_without_a_table_have_consecutive_numbers() {
    let mut spec = FunctionSpec::new(function(3, 1), BAR);
    spec.msi = Some(3);
    let mut world = world(vec![spec]);
    let (mut config, _) = bring_up(&mut world, &mut addresses());
    let interrupt = world.interrupt(4);
    let window = &mut world.host.memory(WINDOW);
    assert_eq!(Msix::find(&config, window), Ok(None));
    let msi = Msi::find(&config, window).unwrap().unwrap();
    assert_eq!((msi.vectors, msi.wide), (8, true));
    for vectors in [3, 16] {
        let wrong = Interrupt { vectors, ..interrupt };
        let error = MsiError::Vectors { vectors, most: 8 };
        assert_eq!(msi.program(&mut config, window, &wrong), Err(error));
    }
    let mut narrow = msi;
    narrow.wide = false;
    let high = Interrupt { address: 1 << 32, ..interrupt };
    let refused = narrow.program(&mut config, window, &high);
    assert_eq!(refused, Err(MsiError::Address(1 << 32)));
    msi.program(&mut config, window, &interrupt).unwrap();
    for vector in 0..4 {
        let (address, data) = (interrupt.address, interrupt.data_of(vector).unwrap());
        let written = Raised::Written { address, data };
        assert_eq!(world.host.raise(slot(3), vector), Some(written));
    }
    assert_eq!(world.host.raise(slot(3), 4), Some(Raised::Off));
    assert_eq!(world.host.stats().stray_interrupts, 0);
    msi.disable(&mut config, &mut world.host.memory(WINDOW)).unwrap();
    assert_eq!(world.host.raise(slot(3), 0), Some(Raised::Off));
}

#[test]
fn a_table_outside_of_every_bar_is_refused() {
    for (bar, offset) in [(0, 0xff8), (3, 0), (7, 0)] {
        let mut spec = FunctionSpec::new(function(0, 1), BAR);
        spec.msix = Some(MsixSpec { entries: 1, bar, offset });
        let mut world = world(vec![spec]);
        let config = ConfigSpace::new(&world.only());
        let error = MsiError::TableOutside { bar: bar.into(), offset, entries: 1 };
        assert_eq!(Msix::find(&config, &mut world.host.memory(WINDOW)), Err(error));
    }
}

// HISTORY 40: one function, one serial, three ports with a MAC address each.
#[test]
fn a_function_with_several_ports_lists_their_addresses() {
    let ports = [1, 2, 3].map(|last| MacAddress([0, 0x15, 0x5d, 7, 8, last]));
    let mut world = world(vec![FunctionSpec::multi_port(slot(0), Serial(9), &ports)]);
    assert_eq!(world.guest.functions().count(), 1);
    let (config, bars) = bring_up(&mut world, &mut addresses());
    let mut memory = world.host.memory(bars[0]);
    assert_eq!(memory.read(0, Width::Word), MULTI_PORT_ID);
    assert_eq!(memory.read(MULTI_PORT_COUNT, Width::Word), 3);
    for (at, port) in (MULTI_PORT_MACS..).step_by(MULTI_PORT_STRIDE as usize).zip(ports) {
        let bytes: Vec<_> = (0..6).map(|byte| memory.read(at + byte, Width::Byte) as u8).collect();
        assert_eq!(bytes, port.0);
    }
    let msix = Msix::find(&config, &mut world.host.memory(WINDOW)).unwrap().unwrap();
    assert_eq!((msix.bar, msix.entries), (4, 32));
    assert!(bars[4] < 1 << 32 && bars[0] >= 1 << 32);
}

#[test]
fn every_function_has_its_own_configuration_space_behind_the_one_window() {
    let slots = [0, 0x25, 0xff];
    let specs = slots.map(|number| {
        let mut spec = FunctionSpec::nvme(slot(number), Serial(number));
        spec.description.device = number as u16;
        spec
    });
    let mut world = world(specs.to_vec());
    let mut space = addresses();
    let mut placed = Vec::new();
    for function in world.guest.functions().copied().collect::<Vec<_>>() {
        let mut config = ConfigSpace::new(&function);
        let bars = space.place(function.bars().unwrap()).unwrap();
        config.place_bars(&mut world.host.memory(WINDOW), &bars).unwrap();
        placed.push((config, bars));
    }
    let window = &mut world.host.memory(WINDOW);
    for (config, bars) in &placed {
        assert_eq!(config.read(window, 0x10, Width::Word), Ok(bars[0].address as u32 | 4));
        let raw = |window: &mut HostMemory<'_>, at| {
            window.write(0, Width::Word, config.slot().to_wire());
            window.read(0x1000 + at, Width::Word)
        };
        // The host has in its configuration space what the guest answers from the snapshot.
        for at in [0, 8, 0x2c] {
            assert_eq!(config.read(window, at, Width::Word), Ok(raw(window, at)));
        }
    }
    window.write(0, Width::Word, 7);
    assert_eq!(window.read(0x1000, Width::Word), u32::MAX, "an empty slot");
    window.write(0, Width::Word, 0x100);
    assert_eq!(window.read(0x1000, Width::Half), 0xffff, "no slot");
    assert_eq!(window.read(0, Width::Word), u32::MAX, "the selecting register cannot be read");
}

#[test]
fn a_host_that_forgets_bars_and_memory_enable_is_not_noticed() {
    let mut world = world(vec![FunctionSpec::nvme(slot(0), Serial(1))]);
    world.host.policy_mut().forgetful_config = true;
    let (config, bars) = bring_up(&mut world, &mut addresses());
    let window = &mut world.host.memory(WINDOW);
    assert_eq!(config.command(window), COMMAND_MASTER | COMMAND_MEMORY);
    assert_eq!(config.read(window, 0x10, Width::Word), Ok(bars[0] as u32 | 4));
    assert_eq!(config.read(window, 0x14, Width::Word), Ok((bars[0] >> 32) as u32));
}

#[test]
fn probing_leaves_bars_where_they_were_placed_whatever_the_host_gives_back() {
    for forgetful_config in [false, true] {
        let mut world = world(vec![FunctionSpec::nvme(slot(0), Serial(1))]);
        world.host.policy_mut().forgetful_config = forgetful_config;
        let (mut config, bars) = bring_up(&mut world, &mut addresses());
        let masks = config.probe_bars(&mut world.host.memory(WINDOW));
        assert_eq!(masks == world.only().bar_masks, !forgetful_config);
        let version = world.host.memory(bars[0]).read(8, Width::Word);
        assert_eq!(version, 0x0001_0400, "the function answers where it did");
        let low = config.read(&mut world.host.memory(WINDOW), 0x10, Width::Word);
        assert_eq!(low, Ok(bars[0] as u32 | 4));
    }
}

#[test]
fn thousands_of_requests_before_the_first_look_are_all_answered() {
    const REQUESTS: u16 = 2048;
    let mut world = world(vec![FunctionSpec::nvme(slot(0), Serial(1))]);
    let function = world.only().id;
    let processors = &[0];
    let wish = InterruptWish { vector: 0x40, vectors: 1, delivery: Delivery::Fixed, processors };
    for _ in 0..REQUESTS {
        world.guest.create_interrupt(function, &wish, world.now).unwrap();
    }
    world.guest_events.clear();
    world.settle();
    let created = |event: &&Event| matches!(event, Event::InterruptCreated { .. });
    assert_eq!(world.guest_events.iter().filter(created).count(), usize::from(REQUESTS));
    assert_eq!(world.guest.interrupts(function).count(), usize::from(REQUESTS));
    assert_eq!(world.guest.poll_deadline(), None, "nothing is left to wait for");
}

#[test]
fn a_function_that_is_off_or_gone_reads_all_ones() {
    let mut world = world(vec![FunctionSpec::nvme(slot(0), Serial(1))]);
    let (config, bars) = bring_up(&mut world, &mut addresses());
    let version = |world: &mut World| world.host.memory(bars[0]).read(8, Width::Word);
    let id = world.only().id;
    for (state, expected) in [(PowerState::D3, u32::MAX), (PowerState::D0, 0x0001_0400)] {
        world.guest.set_power(id, state, world.now).unwrap();
        world.settle();
        let function = id;
        assert!(world.guest_events.iter().any(|event| matches!(
            event,
            Event::PowerChanged { function: of, state: now, .. } if (*of, *now) == (function, state)
        )));
        assert_eq!(version(&mut world), expected);
    }
    world.host.remove(slot(0), world.now);
    assert_eq!(version(&mut world), u32::MAX);
    assert!(!config.is_present(&mut world.host.memory(WINDOW)));
    assert_eq!(
        config.find_capability(&mut world.host.memory(WINDOW), Capability::MSIX),
        Err(vpci::config::CapabilityError::Gone)
    );
    world.run();
    assert_eq!(
        world.guest.set_power(id, PowerState::D0, world.now),
        Err(RequestError::NotUsable(id))
    );
}

#[test]
fn blocks_are_kept_by_the_host_and_changes_are_told() {
    let mut spec = FunctionSpec::nvme(slot(0), Serial(1));
    spec.blocks.insert(2, vec![1, 2, 3]);
    let mut world = world(vec![spec]);
    let id = world.only().id;
    world.guest_events.clear();
    world.guest.write_block(id, 2, &[9, 8], world.now).unwrap();
    world.guest.read_block(id, 2, 4, world.now).unwrap();
    world.guest.read_block(id, 3, 4, world.now).unwrap();
    world.host.invalidate_blocks(slot(0), 4, world.now);
    world.settle();
    assert_eq!(world.host.block(slot(0), 2), Some(&[9, 8][..]));
    assert!(world.guest_events.contains(&Event::BlocksInvalidated { function: id, mask: 4 }));
    assert!(world.guest_events.iter().any(
        |event| matches!(event, Event::BlockRead { data, .. } if data.as_bytes() == [9, 8, 0, 0])
    ));
    assert!(world.guest_events.iter().any(|event| matches!(
        event,
        Event::RequestFailed { why: Failure::Refused { status: Status::NOT_SUPPORTED, .. }, .. }
    )));
}

#[test]
fn interrupts_are_granted_in_the_form_of_every_version() {
    for only in [Version::V1_1, Version::V1_2, Version::V1_3, Version::V1_4] {
        let policy = PciPolicy { oldest: only, newest: only, ..PciPolicy::default() };
        let mut world = World::new(policy, &[function(0, 1)]);
        world.run();
        assert_eq!(world.interrupt(2).vectors, 2, "{only}");
        assert_eq!((world.host.interrupts(), world.host.stats().bad_packets), (1, 0));
        world.guest.shutdown(world.now);
        world.run();
        assert_eq!(world.host.interrupts(), 0, "nothing is left behind");
    }
}

// Each kind of misbehaviour, before and after the function is up: the bus lives, and what was wrong is counted.
#[test]
fn no_misbehaviour_of_the_host_costs_the_guest_its_bus() {
    for kind in Misbehaviour::ALL {
        let mut world = World::new(PciPolicy::default(), &[function(0, 1)]);
        world.run();
        let id = world.only().id;
        world.guest_events.clear();
        world.host.misbehave(kind, world.now);
        let wish = InterruptWish {
            vector: 1,
            vectors: 2,
            delivery: Delivery::LowestPriority,
            processors: &[0],
        };
        world.guest.create_interrupt(id, &wish, world.now).unwrap();
        world.run();
        assert_eq!(world.host.misbehaved(kind), 1, "{kind:?}");
        let stats = world.guest.stats();
        let failed = |event: &Event| matches!(event, Event::RequestFailed { .. });
        let noticed = stats.bad_packets == 1
            || stats.snapshots_superseded == 9
            || stats.ejects_ignored == 1
            || world.guest_events.iter().any(failed);
        assert!(noticed, "{kind:?}: {stats:?} {:?}", world.guest_events);
        assert_eq!(world.only().id, id, "{kind:?}");
        assert!(world.guest.set_power(id, PowerState::D0, world.now).is_ok());
        world.run();
        assert!(!world.guest_events.iter().any(|event| matches!(event, Event::Overdue { .. })));
    }
}

//! Drivers and devices that do what makes no sense.

use super::*;

/// A driver that writes what a test tells it to.
struct Raw {
    device: VfDevice,
    wire: SwitchPort,
    registers: vmbus::memory::SharedPages,
    tx_ring: vmbus::memory::SharedPages,
    buffer: u64,
    control: u32,
    _rest: vmbus::memory::SharedPages,
}

impl Raw {
    fn new() -> Self {
        let ram = GuestRam::new(9, 16);
        let device = VfDevice::new(
            VfConfig { mac: MAC, link: true, features: VfFeatures::WORK },
            Arc::new(ram.clone()),
        );
        let registers = device.window().registers;
        let rest = ram.allocate(4).unwrap();
        let tx_ring = rest.slice(0, 1).unwrap();
        for (page, register) in [TX_RING, RX_RING, REPORT].into_iter().enumerate() {
            store_address(&registers, register, rest.frames()[page].0 * PAGE_SIZE as u64);
        }
        store(&registers, DEPTH, 4);
        let buffer = rest.frames()[3].0 * PAGE_SIZE as u64;
        let wire = wire(instant(), VfTransmit::Always);
        Self { device, wire, registers, tx_ring, buffer, control: 1, _rest: rest }
    }

    fn restart(&mut self) {
        self.control += 2;
        store(&self.registers, CONTROL, self.control);
        self.device.poll(NOW, &mut self.wire);
    }

    /// The fault that comes of it, and whether it is shown as one.
    fn fault(&mut self) -> Option<VfFault> {
        self.device.poll(NOW, &mut self.wire);
        let shown = load(&self.registers, STATUS) & (STATUS_FAULT | STATUS_RUNNING);
        let fault = self.device.fault();
        assert_eq!(shown, if fault.is_some() { STATUS_FAULT } else { STATUS_RUNNING });
        fault
    }
}

#[test]
fn impossible_settings_stop_the_device() {
    let mut raw = Raw::new();
    for depth in [0, 1, 3, 512, u32::MAX] {
        store(&raw.registers, DEPTH, depth);
        raw.restart();
        assert_eq!(raw.fault(), Some(VfFault::Depth(depth)));
    }
    store(&raw.registers, DEPTH, 4);
    for register in [TX_RING, RX_RING, REPORT] {
        let right = load_address(&raw.registers, register);
        store_address(&raw.registers, register, right + 8);
        raw.restart();
        assert_eq!(raw.fault(), Some(VfFault::Unaligned(right + 8)));
        store_address(&raw.registers, register, 0);
        raw.restart();
        assert_eq!(raw.fault(), Some(UnknownFrame { frame: Pfn(0) }.into()));
        store_address(&raw.registers, register, right);
    }
    raw.restart();
    assert_eq!(raw.fault(), None, "and a right one is taken again");
    assert_eq!(raw.device.counters().faults, 11);
}

#[test]
fn impossible_counts_stop_the_device() {
    for (register, which) in [(TX_PRODUCED, "TX_PRODUCED"), (RX_POSTED, "RX_POSTED")] {
        for ahead in [5, u32::MAX] {
            let mut raw = Raw::new();
            raw.restart();
            store(&raw.registers, register, ahead);
            let depth = 4;
            assert_eq!(raw.fault(), Some(VfFault::Count { which, ahead, depth }));
            assert_eq!(raw.wire.side_state(Path::Vf), SideState::Down);
            assert!(!raw.device.window().doorbell.take());
            let counters = raw.device.counters();
            assert_eq!((counters.tx_perished, counters.rx_perished), (0, 0));
        }
    }
}

#[test]
fn impossible_buffers_stop_the_device() {
    for (offset, length) in [(0, 0), (0, 2049), (4095, 60), (0, u32::MAX)] {
        let mut raw = Raw::new();
        raw.restart();
        let address = raw.buffer + offset;
        Descriptor { address, length, used: 0 }.write(&raw.tx_ring, 0);
        store(&raw.registers, TX_PRODUCED, 1);
        assert_eq!(raw.fault(), Some(VfFault::Buffer { address, length }));
        let counters = raw.device.counters();
        assert_eq!((counters.tx_seen, counters.tx_perished), (1, 1));
    }
    let mut raw = Raw::new();
    raw.restart();
    Descriptor { address: u64::MAX - 4095, length: 60, used: 0 }.write(&raw.tx_ring, 0);
    store(&raw.registers, TX_PRODUCED, 1);
    assert!(matches!(raw.fault(), Some(VfFault::Unmapped(_))));
}

/// A device that reports what a test tells it to, and its driver.
fn lied_to(lie: impl Fn(&vmbus::memory::PageList, &vmbus::memory::PageList)) -> SimulatedPort {
    let mut world = World::new(instant());
    let registers = world.device.window().registers;
    let map = |register| {
        let frame = Pfn(load_address(&registers, register) / PAGE_SIZE as u64);
        world.ram.map(&[frame]).unwrap()
    };
    lie(&map(REPORT), &map(RX_RING));
    world.port.take().unwrap()
}

#[test]
fn a_device_that_reports_the_impossible_counts_as_gone() {
    let count = |memory: &vmbus::memory::PageList, at, by: u32| {
        store(memory, at, load(memory, at).wrapping_add(by));
    };
    for by in [1, u32::MAX] {
        let mut port = lied_to(|report, _| count(report, TX_DONE, by));
        assert_eq!((port.confirmed(), port.link()), (0, PortLink::Gone));
    }
    for by in [DEPTH_USED + 1, u32::MAX] {
        let mut port = lied_to(|report, _| count(report, RX_DONE, by));
        assert_eq!(port.receive(&mut |_| panic!("nothing is there")), 0);
        assert_eq!(port.link(), PortLink::Gone);
    }
    for used in [LONGEST_FRAME as u32 + 1, u32::MAX] {
        let mut port = lied_to(|report, ring| {
            for place in 0..DEPTH_USED as usize {
                let descriptor = Descriptor { used, ..Descriptor::read(ring, place) };
                descriptor.write(ring, place);
            }
            count(report, RX_DONE, 1);
        });
        assert_eq!(port.receive(&mut |_| panic!("no such frame")), 0);
        assert_eq!(port.link(), PortLink::Gone);
    }
}

//! What one function costs to be found, from 8 to 512 of them: `cargo bench -p hyperv-host --bench enumeration`.
//!
//! Buses of eight functions each, guest and host in turn on one thread. The time of a function should not depend on how
//! many there are.

use std::time::{Duration, Instant as Clock};

use hyperv_host::bus::HostChannel;
use hyperv_host::memory::{GuestMemory, GuestRam};
use hyperv_host::pci::{FunctionSpec, PciPolicy, PciService};
use vmbus::{Channel, Instant, Platform, Serial, SignalFlag};
use vpci::{PciBus, PciBusConfig, Slot};

/// Functions on each bus.
const PER_BUS: u32 = 8;
/// How long one count of functions is measured.
const SPAN: Duration = Duration::from_millis(700);

fn connect(ram: &GuestRam) -> (Channel, HostChannel) {
    let (up, down) = (ram.allocate(5).unwrap(), ram.allocate(5).unwrap());
    let map = |pages: &vmbus::memory::SharedPages| ram.map(pages.frames()).unwrap();
    let (to_guest, to_host) = (SignalFlag::new(), SignalFlag::new());
    let host = Channel::from_parts(map(&down), map(&up), to_guest).unwrap();
    (Channel::from_parts(up, down, to_host).unwrap(), host)
}

/// Hosts with their functions, no guest yet.
fn build(buses: u32) -> Vec<PciService> {
    (0..buses)
        .map(|bus| {
            let mut host = PciService::new(PciPolicy::default());
            for number in 0..PER_BUS {
                let slot = Slot::from_wire(number).unwrap();
                let spec = FunctionSpec::nvme(slot, Serial(bus));
                host.add_device(spec, Instant::ZERO).unwrap();
            }
            host
        })
        .collect()
}

/// A new guest for every host; nothing is sent yet.
fn open(ram: &GuestRam, hosts: &mut [PciService]) -> Vec<PciBus> {
    let mut guests = Vec::new();
    for host in hosts {
        let (channel, host_channel) = connect(ram);
        host.open(host_channel);
        guests.push(PciBus::new(channel, PciBusConfig::new(0x1_0000), Instant::ZERO));
    }
    guests
}

/// Runs all buses until every function has arrived.
fn enumerate(guests: &mut [PciBus], hosts: &mut [PciService]) {
    for (guest, host) in guests.iter_mut().zip(hosts) {
        while guest.functions().count() < PER_BUS as usize {
            guest.poll(Instant::ZERO).unwrap();
            host.poll(Instant::ZERO);
            while guest.poll_event().is_some() {}
        }
    }
}

/// Turns all buses off, so that the next guests find them so.
fn turn_off(guests: &mut [PciBus], hosts: &mut [PciService]) {
    for (guest, host) in guests.iter_mut().zip(hosts) {
        guest.shutdown(Instant::ZERO);
        while host.window().is_some() {
            guest.poll(Instant::ZERO).unwrap();
            host.poll(Instant::ZERO);
        }
        while host.poll_event().is_some() {}
    }
}

fn main() {
    // `cargo test` runs benches too, without this; one short look at each is enough there.
    let span = if std::env::args().any(|it| it == "--bench") { SPAN } else { Duration::ZERO };
    println!("functions  ns per function (median)");
    let mut all = Vec::new();
    for buses in [1, 2, 4, 8, 16, 32, 64] {
        let functions = buses * PER_BUS;
        let ram = GuestRam::new(1, 4096);
        let mut hosts = build(buses);
        // The first round warms memory up and is not counted.
        let mut guests = open(&ram, &mut hosts);
        enumerate(&mut guests, &mut hosts);
        let mut times = Vec::new();
        let end = Clock::now() + span;
        loop {
            turn_off(&mut guests, &mut hosts);
            guests = open(&ram, &mut hosts);
            let start = Clock::now();
            enumerate(&mut guests, &mut hosts);
            times.push(start.elapsed().as_nanos() / u128::from(functions));
            if Clock::now() >= end {
                break;
            }
        }
        times.sort_unstable();
        let median = times.get(times.len() / 2).copied().unwrap_or_default();
        println!("{functions:9}  {median:6}");
        all.push(median);
    }
    let (least, most) = (all.iter().min(), all.iter().max());
    if let (Some(least), Some(most)) = (least, most) {
        println!("most over least: {:.2}", *most as f64 / *least as f64);
    }
}

//! What one function costs to be found, from 8 to 512 of them: `cargo bench -p hyperv-host --bench enumeration`.
//!
//! Guest and host in turn on one thread: buses of eight functions each, or one bus with more and more. The time of a
//! function should not depend on how many there are. All rows take turns, so that whatever else the machine does meets
//! all of them.
//!
//! `enumeration BUSES FUNCTIONS ROUNDS` runs one row so many times and measures nothing: for counting instructions from
//! outside, as `checks/enumeration` does.

use std::time::{Duration, Instant as Clock};

use hyperv_host::bus::HostChannel;
use hyperv_host::memory::{GuestMemory, GuestRam};
use hyperv_host::pci::{FunctionSpec, PciPolicy, PciService};
use vmbus::{Channel, Instant, Platform, Serial, SignalFlag};
use vpci::{Event, PciBus, PciBusConfig, Slot};

/// Buses, and functions on each.
const ROWS: [(u32, u32); 12] = [
    (1, 8),
    (2, 8),
    (4, 8),
    (8, 8),
    (16, 8),
    (32, 8),
    (64, 8),
    (1, 16),
    (1, 32),
    (1, 64),
    (1, 128),
    (1, 256),
];
/// How long all rows together are measured.
const SPAN: Duration = Duration::from_secs(6);

/// Some buses: their hosts, and guests that come and go.
struct Row {
    ram: GuestRam,
    per_bus: u32,
    hosts: Vec<PciService>,
    guests: Vec<PciBus>,
    /// Per round: what the guest did, and guest and host together.
    times: Vec<(Duration, Duration)>,
}

fn connect(ram: &GuestRam) -> (Channel, HostChannel) {
    let (up, down) = (ram.allocate(5).unwrap(), ram.allocate(5).unwrap());
    let map = |pages: &vmbus::memory::SharedPages| ram.map(pages.frames()).unwrap();
    let (to_guest, to_host) = (SignalFlag::new(), SignalFlag::new());
    let host = Channel::from_parts(map(&down), map(&up), to_guest).unwrap();
    (Channel::from_parts(up, down, to_host).unwrap(), host)
}

impl Row {
    /// Hosts with their functions, no guest yet.
    fn new(buses: u32, per_bus: u32) -> Self {
        let host = |bus| {
            let mut host = PciService::new(PciPolicy::default());
            for number in 0..per_bus {
                let slot = Slot::from_wire(number).unwrap();
                host.add_device(FunctionSpec::nvme(slot, Serial(bus)), Instant::ZERO).unwrap();
            }
            host
        };
        let hosts = (0..buses).map(host).collect();
        let ram = GuestRam::new(1, 4096);
        Self { ram, per_bus, hosts, guests: Vec::new(), times: Vec::new() }
    }

    /// Turns all buses off, so that the next guests find them so.
    fn turn_off(&mut self) {
        for (guest, host) in self.guests.iter_mut().zip(&mut self.hosts) {
            guest.shutdown(Instant::ZERO);
            while host.window().is_some() {
                guest.poll(Instant::ZERO).unwrap();
                host.poll(Instant::ZERO);
            }
            while host.poll_event().is_some() {}
        }
        self.guests.clear();
    }

    /// One round: bus after bus, as a host offers them, is opened by a new guest that finds its functions. All buses stay
    /// until the end of the round. The time that the guests take for the finding, and that of both sides.
    fn round(&mut self) -> (Duration, Duration) {
        let (mut guests, mut both) = (Duration::ZERO, Duration::ZERO);
        for host in &mut self.hosts {
            let (channel, host_channel) = connect(&self.ram);
            host.open(host_channel);
            let mut guest = PciBus::new(channel, PciBusConfig::new(0x1_0000), Instant::ZERO);
            let start = Clock::now();
            guests += enumerate(&mut guest, host, self.per_bus as usize);
            both += start.elapsed();
            self.guests.push(guest);
        }
        self.turn_off();
        (guests, both)
    }

    fn functions(&self) -> u32 {
        self.hosts.len() as u32 * self.per_bus
    }
}

/// Runs a bus until every function has arrived.
fn enumerate(guest: &mut PciBus, host: &mut PciService, functions: usize) -> Duration {
    let mut time = Duration::ZERO;
    let mut found = 0;
    while found < functions {
        let start = Clock::now();
        found += look(guest);
        time += start.elapsed();
        host.poll(Instant::ZERO);
    }
    time
}

/// What the guest does once. Found by its name in `checks/enumeration`.
#[inline(never)]
fn look(guest: &mut PciBus) -> usize {
    guest.poll(Instant::ZERO).unwrap();
    let events = std::iter::from_fn(|| guest.poll_event());
    events.filter(|event| matches!(event, Event::FunctionArrived(_))).count()
}

fn main() {
    let numbers: Vec<u32> = std::env::args().skip(1).filter_map(|it| it.parse().ok()).collect();
    if let [buses, functions, rounds] = numbers[..] {
        let mut row = Row::new(buses, functions);
        for _ in 0..rounds {
            row.round();
        }
        return;
    }
    // `cargo test` runs benches too, without this; one short look at each is enough there.
    let span = if std::env::args().any(|it| it == "--bench") { SPAN } else { Duration::ZERO };
    let mut rows = ROWS.map(|(buses, per_bus)| Row::new(buses, per_bus));
    for row in &mut rows {
        // Warms memory up and is not counted.
        row.round();
    }
    let end = Clock::now() + span;
    loop {
        for row in &mut rows {
            // Few functions are found too fast for the clock, so every row finds as many.
            let rounds = 512 / row.functions();
            let (mut guest, mut both) = (Duration::ZERO, Duration::ZERO);
            for _ in 0..rounds {
                let round = row.round();
                (guest, both) = (guest + round.0, both + round.1);
            }
            row.times.push((guest / 512, both / 512));
        }
        if Clock::now() >= end {
            break;
        }
    }
    println!("                      guest         guest and host");
    println!("buses  functions  ns each  ratio   ns each  ratio");
    let mut first = None;
    for row in &mut rows {
        let guest = median(row.times.iter().map(|times| times.0));
        let both = median(row.times.iter().map(|times| times.1));
        let (of_guest, of_both) = *first.get_or_insert((guest, both));
        let (buses, functions) = (row.hosts.len(), row.functions());
        let ratios = (guest / of_guest, both / of_both);
        println!(
            "{buses:5}  {functions:9}  {guest:7.0}  {:5.2}   {both:7.0}  {:5.2}",
            ratios.0, ratios.1
        );
    }
}

/// In nanoseconds.
fn median(times: impl Iterator<Item = Duration>) -> f64 {
    let mut times: Vec<_> = times.collect();
    times.sort_unstable();
    times.get(times.len() / 2).map_or(0, Duration::as_nanos) as f64
}

//! Pairing events per second with 16, 1,024 and 65,536 NICs, as a Markdown table: `cargo bench -p netvsc --bench pairing`.
//!
//! All NICs are paired. Then VFs leave and come back under another serial, in an order that has nothing to do with the NICs':
//! six events each, of which every one is a fact for [`Pairing`] or an answer to its decision. The sizes take turns, and the
//! median turn counts.
//!
//! With two numbers it is `checks/pairing`'s: so many NICs, so many VFs that leave and return, and what that executes in the
//! function `events` and below it is for valgrind to count. What it prints then is the number of events.

use std::hint::black_box;
use std::time::Instant as Clock;

use netvsc::MacAddress;
use netvsc::pairing::{
    Decision, FunctionId, FunctionKey, NicId, Pairing, PairingConfig, PermanentMac,
};
use vmbus::{Guid, Instant, Serial};

const SIZES: [u32; 3] = [16, 1_024, 65_536];
/// Turns of each size.
const TURNS: usize = 31;
/// VFs that leave and return in a turn.
const VISITS: u32 = 8_192;
const NOW: Instant = Instant::ZERO;

struct Guest {
    pairing: Pairing,
    /// Each NIC and its VF.
    pairs: Vec<(NicId, FunctionId)>,
    /// The next one to lose its VF.
    next: u32,
    serial: u32,
    events: u64,
}

fn mac(n: u32) -> MacAddress {
    let [a, b, c, d] = n.to_be_bytes();
    MacAddress([0x00, 0x15, a, b, c, d])
}

fn key(n: u32, serial: u32) -> FunctionKey {
    let bus = Guid::from_u128(0x1_0000_0000 + u128::from(n));
    FunctionKey { bus, slot: 0, vendor: 0x15b3, device: 0x1016, serial: Serial(serial) }
}

impl Guest {
    fn new(nics: u32) -> Self {
        let pairing = Pairing::new(PairingConfig::default());
        let mut guest = Self { pairing, pairs: Vec::new(), next: 0, serial: nics, events: 0 };
        for n in 0..nics {
            let instance = Guid::from_u128(u128::from(n));
            let nic = guest.pairing.nic_arrived(instance, mac(n), NOW);
            let function = guest.give(nic, n, n);
            guest.pairs.push((nic, function));
            guest.carry_out();
        }
        assert_eq!(guest.pairing.pairs().count(), nics as usize);
        guest
    }

    fn give(&mut self, nic: NicId, n: u32, serial: u32) -> FunctionId {
        self.pairing.associated(nic, Serial(serial), NOW).expect("it is here");
        let function = self.pairing.function_arrived(key(n, serial), NOW);
        let mac = PermanentMac::Known(mac(n));
        self.pairing.port_arrived(function, 0, mac, NOW).expect("it is here");
        self.events += 3;
        function
    }

    fn carry_out(&mut self) {
        while let Some(decision) = self.pairing.poll_decision() {
            if let Decision::Unbind { nic, port, .. } = black_box(decision) {
                self.pairing.unbound(nic.id, port.id, NOW).expect("it was being unbound");
                self.events += 1;
            }
        }
    }

    /// A VF leaves and comes back.
    fn visit(&mut self) {
        let n = self.next;
        let count = self.pairs.len() as u32;
        // An odd step through a power of two meets everybody.
        self.next = (n + 40_503) % count;
        self.serial = self.serial.wrapping_add(1);
        let (nic, function) = self.pairs[n as usize];
        self.pairing.disassociated(nic, NOW).expect("it is here");
        self.carry_out();
        self.pairing.function_left(function, NOW).expect("it is here");
        self.carry_out();
        self.events += 2;
        self.pairs[n as usize].1 = self.give(nic, n, self.serial);
        self.carry_out();
    }

    /// Nanoseconds per event.
    fn turn(&mut self) -> f64 {
        let start = Clock::now();
        let events = events(self, VISITS);
        start.elapsed().as_nanos() as f64 / events as f64
    }
}

/// So many VFs leave and come back; how many events that were.
#[inline(never)]
fn events(guest: &mut Guest, visits: u32) -> u64 {
    let before = guest.events;
    for _ in 0..visits {
        guest.visit();
    }
    guest.events - before
}

fn main() {
    let numbers: Vec<u32> = std::env::args().filter_map(|arg| arg.parse().ok()).collect();
    if let [nics, visits] = *numbers {
        println!("{}", events(&mut Guest::new(nics), visits));
        return;
    }
    let mut guests = SIZES.map(Guest::new);
    let mut times = SIZES.map(|_| Vec::new());
    for _ in 0..TURNS {
        for (guest, times) in guests.iter_mut().zip(&mut times) {
            times.push(guest.turn());
        }
    }
    println!("| NICs | ns per event | events per second | of the smallest |");
    println!("|---|---|---|---|");
    let medians = times.map(|mut times| {
        times.sort_by(f64::total_cmp);
        times[times.len() / 2]
    });
    for (size, median) in SIZES.iter().zip(medians) {
        println!("| {size} | {median:.0} | {:.0} | **{:.2}** |", 1e9 / median, median / medians[0]);
    }
}

//! The names that Linux gives to what sits on a virtual PCI bus, so that they can be told in advance.
//!
//! None of them is an identity: serials repeat and change, domains move when two buses collide. They are for people, who
//! know a function as `enP27441s1`.
//!
//! The rules are those of Linux's vPCI driver and PCI slots, and of systemd's naming policy "slot, then path".

use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::{String, ToString};
use core::fmt::Write;

use vmbus::{Guid, Serial};

use crate::slot::Slot;

/// Longest name of a network interface in Linux.
const LONGEST_INTERFACE: usize = 15;

/// The PCI domain that Linux asks for first: the second group of the bus's instance GUID as it is printed, which is
/// bytes 5 and 4 of its binary form. May be 0, which no bus gets.
#[must_use]
pub fn wanted_domain(bus: &Guid) -> u16 {
    let (_, second, _, _) = bus.as_fields();
    second
}

/// A PCI domain that a bus holds. It can be given back only as a whole and, there being no copies, only once.
#[derive(Debug, PartialEq, Eq)]
#[must_use = "a domain that is not given back stays taken"]
pub struct Domain(u16);

impl Domain {
    /// The number.
    #[must_use]
    pub const fn number(&self) -> u16 {
        self.0
    }
}

/// All 65,535 domains are taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no PCI domain is free for bus {0}: expected fewer than 65,535 buses")]
pub struct NoDomain(pub Guid);

/// A domain of another registry was given back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("PCI domain {0} given back: expected one that is taken")]
pub struct NotHeld(pub u16);

/// Which PCI domains are taken.
#[derive(Debug)]
pub struct Domains {
    /// One bit per domain; that of 0 is always set.
    taken: alloc::vec::Vec<u64>,
}

impl Default for Domains {
    fn default() -> Self {
        let mut taken = alloc::vec![0; 1024];
        if let Some(first) = taken.first_mut() {
            *first = 1;
        }
        Self { taken }
    }
}

impl Domains {
    /// None taken but 0.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Marks a domain as taken by something that is no virtual bus. False if it was already.
    pub fn reserve(&mut self, domain: u16) -> bool {
        self.set(domain)
    }

    /// Takes a domain for a bus: the one its GUID asks for, or the lowest that is free if that is 0 or taken.
    ///
    /// # Errors
    /// [`NoDomain`].
    pub fn claim(&mut self, bus: &Guid) -> Result<Domain, NoDomain> {
        let wanted = wanted_domain(bus);
        if self.set(wanted) {
            return Ok(Domain(wanted));
        }
        let free = self.taken.iter().position(|word| *word != u64::MAX).and_then(|at| {
            let bit = self.taken.get(at)?.trailing_ones() as usize;
            u16::try_from(64 * at + bit).ok()
        });
        let free = free.filter(|domain| self.set(*domain)).ok_or(NoDomain(*bus))?;
        Ok(Domain(free))
    }

    /// Gives a domain back.
    ///
    /// # Errors
    /// [`NotHeld`] if it comes from another registry.
    pub fn release(&mut self, domain: Domain) -> Result<(), NotHeld> {
        let (at, bit) = place(domain.0);
        match self.taken.get_mut(at) {
            Some(word) if *word & bit != 0 && domain.0 != 0 => {
                *word &= !bit;
                Ok(())
            }
            _ => Err(NotHeld(domain.0)),
        }
    }

    /// How many domains are taken; 0 is not counted.
    #[must_use]
    pub fn taken(&self) -> usize {
        let bits: u32 = self.taken.iter().map(|word| word.count_ones()).sum();
        (bits as usize).saturating_sub(1)
    }

    fn set(&mut self, domain: u16) -> bool {
        let (at, bit) = place(domain);
        let Some(word) = self.taken.get_mut(at) else { return false };
        let free = *word & bit == 0;
        *word |= bit;
        free
    }
}

const fn place(domain: u16) -> (usize, u64) {
    (domain as usize / 64, 1 << (domain % 64))
}

/// One of a system's PCI devices: its domain and device number. A virtual bus is always bus 0 of its domain.
type Place = (u16, u8);

#[derive(Debug)]
struct Named {
    name: String,
    /// How many functions of the device there are; Linux names the device, not the function.
    functions: u32,
}

/// The names of all PCI slots of a system: `/sys/bus/pci/slots`.
///
/// A slot is named by the serial number in decimal. If that name is taken, a number from 1 is put behind it: `2`, `2-1`,
/// `2-2`. A device has one slot, named when its first function comes and freed when its last has gone.
#[derive(Debug, Default)]
pub struct SlotNames {
    devices: BTreeMap<Place, Named>,
    /// Which names are taken. Kept apart so that finding a free one does not look at every device.
    names: BTreeMap<String, Place>,
}

impl SlotNames {
    /// No names.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// A function has come. Gives the name of its device's slot.
    pub fn add(&mut self, domain: &Domain, slot: Slot, serial: Serial) -> &str {
        let place = (domain.number(), slot.device());
        let names = &mut self.names;
        let named = self.devices.entry(place).or_insert_with(|| {
            let mut name = serial.0.to_string();
            let mut duplicate = 1_u64;
            while names.contains_key(&name) {
                name = format!("{serial}-{duplicate}");
                duplicate += 1;
            }
            names.insert(name.clone(), place);
            Named { name, functions: 0 }
        });
        named.functions += 1;
        &named.name
    }

    /// A function has gone. False if there was none at that place; nothing changes then.
    pub fn remove(&mut self, domain: &Domain, slot: Slot) -> bool {
        let place = (domain.number(), slot.device());
        let Some(named) = self.devices.get_mut(&place) else { return false };
        named.functions -= 1;
        if named.functions == 0
            && let Some(named) = self.devices.remove(&place)
        {
            self.names.remove(&named.name);
        }
        true
    }

    /// The name of a device's slot. `None` if the device has none, which is no reason not to use it.
    #[must_use]
    pub fn get(&self, domain: u16, slot: Slot) -> Option<&str> {
        self.devices.get(&(domain, slot.device())).map(|named| named.name.as_str())
    }

    /// How many names there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.names.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.names.is_empty()
    }
}

/// The serial number that a slot's name stands for: a decimal number and nothing else, as Linux's NIC driver reads it.
/// The name of a duplicate, such as `2-1`, stands for none.
#[must_use]
pub fn serial_of(slot_name: &str) -> Option<Serial> {
    let digits = !slot_name.is_empty() && slot_name.bytes().all(|byte| byte.is_ascii_digit());
    digits.then(|| slot_name.parse().ok().map(Serial)).flatten()
}

/// What systemd knows about a network interface when it names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Interface<'a> {
    /// PCI domain of its function.
    pub domain: u16,
    /// Where its function sits.
    pub slot: Slot,
    /// The name of its device's slot, if there is one.
    pub slot_name: Option<&'a str>,
    /// Whether its device has several functions.
    pub multifunction: bool,
    /// Port of the function, counted from 0.
    pub dev_port: u32,
    /// The driver's own name for the port, such as `p0`.
    pub port_name: Option<&'a str>,
}

/// The name that systemd gives to the Ethernet interface: `enP<domain>s<serial>`.
///
/// A second and later port has `d<port>` behind it, a named port `n<name>`, a function of several `f<function>`. Where
/// the slot has no name that is a number above 0, or the result is too long for an interface, the device number takes
/// the place of the serial: `enP<domain>p0s<device>`. `None` if that is too long as well.
#[must_use]
pub fn predict(interface: &Interface<'_>) -> Option<String> {
    let serial = interface.slot_name.and_then(hotplug_slot);
    let by_slot = serial.map(|serial| compose(interface, format_args!("s{serial}")));
    let by_path = || compose(interface, format_args!("p0s{}", interface.slot.device()));
    let fits = |name: &String| name.len() <= LONGEST_INTERFACE;
    by_slot.filter(fits).or_else(|| Some(by_path()).filter(fits))
}

/// The number of a slot's name as systemd takes it: above 0, within 31 bits, without leading zeros.
fn hotplug_slot(name: &str) -> Option<u32> {
    let Serial(number) = serial_of(name)?;
    (number > 0 && number <= i32::MAX as u32 && !name.starts_with('0')).then_some(number)
}

fn compose(interface: &Interface<'_>, place: core::fmt::Arguments<'_>) -> String {
    let mut name = String::from("en");
    if interface.domain > 0 {
        push(&mut name, format_args!("P{}", interface.domain));
    }
    push(&mut name, place);
    let function = interface.slot.function();
    if function > 0 || interface.multifunction {
        push(&mut name, format_args!("f{function}"));
    }
    match interface.port_name {
        Some(port) if !port.is_empty() => push(&mut name, format_args!("n{port}")),
        _ if interface.dev_port > 0 => push(&mut name, format_args!("d{}", interface.dev_port)),
        _ => {}
    }
    name
}

fn push(name: &mut String, part: core::fmt::Arguments<'_>) {
    // Writing to a string never fails.
    let _ = name.write_fmt(part);
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use std::vec::Vec;

    fn bus(second: &str) -> Guid {
        Guid::parse_str(&format!("47505500-{second}-0000-3130-444531334632")).unwrap()
    }

    fn slot(device: u8, function: u8) -> Slot {
        Slot::new(device, function).unwrap()
    }

    fn interface(slot_name: Option<&str>) -> Interface<'_> {
        Interface {
            domain: 27441,
            slot: slot(2, 0),
            slot_name,
            multifunction: false,
            dev_port: 0,
            port_name: None,
        }
    }

    // HISTORY 17
    #[test]
    fn the_domain_is_the_second_group_of_the_guid() {
        assert_eq!(wanted_domain(&bus("6b31")), 0x6b31);
        let wire = bus("6b31").to_bytes_le();
        assert_eq!(u16::from(wire[5]) << 8 | u16::from(wire[4]), 0x6b31);
    }

    // HISTORY 17
    #[test]
    fn buses_that_want_the_same_domain_get_two() {
        let mut domains = Domains::new();
        let first = domains.claim(&bus("0002")).unwrap();
        let second = domains.claim(&bus("0002")).unwrap();
        let third = domains.claim(&bus("0002")).unwrap();
        assert_eq!([first.number(), second.number(), third.number()], [2, 1, 3]);
        domains.release(first).unwrap();
        assert_eq!(domains.claim(&bus("0002")).unwrap().number(), 2);
    }

    // HISTORY 17
    #[test]
    fn no_bus_gets_domain_0() {
        let mut domains = Domains::new();
        assert_eq!(domains.claim(&bus("0000")).unwrap().number(), 1);
        assert!(!domains.reserve(0) && domains.reserve(2) && !domains.reserve(2));
        assert_eq!(domains.claim(&bus("0000")).unwrap().number(), 3);
    }

    #[test]
    fn when_all_domains_are_taken_the_next_bus_is_refused() {
        let mut domains = Domains::new();
        let all: Vec<_> = (1..=u16::MAX).map(|_| domains.claim(&bus("0000")).unwrap()).collect();
        assert_eq!((all.len(), domains.taken()), (65_535, 65_535));
        assert_eq!(domains.claim(&bus("0007")), Err(NoDomain(bus("0007"))));
        for domain in all {
            domains.release(domain).unwrap();
        }
        assert_eq!(domains.taken(), 0);
    }

    // HISTORY 56: giving back takes the domain away from its owner, so only another registry's could come.
    #[test]
    fn a_domain_is_freed_exactly_once() {
        let (mut one, mut other) = (Domains::new(), Domains::new());
        let domain = one.claim(&bus("0009")).unwrap();
        let foreign = other.claim(&bus("000a")).unwrap();
        assert_eq!(one.release(foreign), Err(NotHeld(10)));
        assert_eq!(one.release(domain), Ok(()));
        assert_eq!((one.taken(), other.taken()), (0, 1));
    }

    // HISTORY 18, 20
    #[test]
    fn the_slots_name_is_the_serial_and_back() {
        let (mut names, mut domains) = (SlotNames::new(), Domains::new());
        let domain = domains.claim(&bus("0001")).unwrap();
        assert_eq!(names.add(&domain, slot(0, 0), Serial(7)), "7");
        assert_eq!(names.get(1, slot(0, 0)).and_then(serial_of), Some(Serial(7)));
        assert_eq!(serial_of("4294967295"), Some(Serial(u32::MAX)));
        for other in ["", "2-1", "+2", " 2", "0x2", "4294967296"] {
            assert_eq!(serial_of(other), None, "{other}");
        }
    }

    // HISTORY 16, 23
    #[test]
    fn duplicates_are_numbered_and_freed_names_are_used_again() {
        let (mut names, mut domains) = (SlotNames::new(), Domains::new());
        let buses: Vec<_> =
            ["0001", "0002", "0003"].iter().map(|b| domains.claim(&bus(b)).unwrap()).collect();
        let given: Vec<_> = buses
            .iter()
            .map(|domain| names.add(domain, slot(0, 0), Serial(2)).to_string())
            .collect();
        assert_eq!(given, ["2", "2-1", "2-2"]);
        assert!(names.remove(&buses[1], slot(0, 0)));
        assert!(!names.remove(&buses[1], slot(0, 0)), "once");
        assert_eq!(names.add(&buses[1], slot(4, 0), Serial(2)), "2-1");
    }

    #[test]
    fn functions_of_one_device_share_its_slot() {
        let (mut names, mut domains) = (SlotNames::new(), Domains::new());
        let domain = domains.claim(&bus("0001")).unwrap();
        assert_eq!(names.add(&domain, slot(3, 0), Serial(5)), "5");
        assert_eq!(names.add(&domain, slot(3, 1), Serial(6)), "5", "named by the first");
        assert!(names.remove(&domain, slot(3, 0)));
        assert_eq!(names.get(1, slot(3, 1)), Some("5"));
        assert!(names.remove(&domain, slot(3, 1)));
        assert!(names.is_empty());
    }

    // HISTORY 22
    #[test]
    fn a_function_without_a_slot_name_is_named_by_its_path() {
        assert_eq!(SlotNames::new().get(1, slot(0, 0)), None);
        assert_eq!(predict(&interface(None)).unwrap(), "enP27441p0s2");
    }

    // HISTORY 23, 24: a name cannot be given back without the domain it hangs on, and leaves nothing behind.
    #[test]
    fn adding_and_removing_a_bus_a_hundred_times_leaves_no_name() {
        let (mut names, mut domains) = (SlotNames::new(), Domains::new());
        for _ in 0..100 {
            let domain = domains.claim(&bus("0001")).unwrap();
            assert_eq!(names.add(&domain, slot(0, 0), Serial(2)), "2");
            assert!(names.remove(&domain, slot(0, 0)));
            domains.release(domain).unwrap();
        }
        assert_eq!((names.len(), domains.taken()), (0, 0));
    }

    #[test]
    fn interfaces_are_named_by_domain_and_serial() {
        let one = interface(Some("1"));
        assert_eq!(predict(&one).unwrap(), "enP27441s1");
        for (interface, name) in [
            (Interface { dev_port: 2, ..one }, "enP27441s1d2"),
            (Interface { port_name: Some("p0"), dev_port: 2, ..one }, "enP27441s1np0"),
            (Interface { port_name: Some(""), ..one }, "enP27441s1"),
            (Interface { slot: slot(2, 1), ..one }, "enP27441s1f1"),
            (Interface { multifunction: true, ..one }, "enP27441s1f0"),
            (Interface { domain: 0, ..one }, "ens1"),
        ] {
            assert_eq!(predict(&interface).unwrap(), name);
        }
    }

    #[test]
    fn where_the_serial_makes_no_name_the_path_does() {
        for name in ["0", "2-1", "01", "4294967295"] {
            assert_eq!(predict(&interface(Some(name))).unwrap(), "enP27441p0s2", "{name}");
        }
        // Sixteen characters do not fit an interface, fifteen do.
        assert_eq!(predict(&interface(Some("1234567"))).unwrap(), "enP27441p0s2");
        assert_eq!(predict(&interface(Some("123456"))).unwrap(), "enP27441s123456");
        let long = Interface { port_name: Some("uplink0"), ..interface(Some("1")) };
        assert_eq!(predict(&long), None);
    }
}

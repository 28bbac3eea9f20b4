//! What a snapshot of a guest consists of.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::Duration;

use netvsc::mac::MacAddress;
use vmbus::message::{NIC_CLASS, VPCI_CLASS};
use vmbus::{Guid, Serial};

use super::log::KernelLog;
use super::machine::Machine;
use super::tree::Unreadable;
use crate::netlink::{Address, Link, Neighbour, Ring, Route};

/// From where a fact about a pair comes, the strongest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Source {
    /// The newest line of the kernel log about it.
    KernelLog,
    /// The name of the function's slot directory.
    Slot,
    /// An alternative name or a udev property that holds the slot's name.
    SlotName,
    /// The kernel links the two devices: `master`, `upper_*`, `lower_*`.
    Link,
    /// Counters that moved.
    Counters,
    /// The serial of the NIC, taken over from the slot of the VF that it is linked with.
    InferredLink,
    /// Equal permanent MACs, and no link.
    Mac,
    /// A MAC read out of a GUID.
    GuidHint,
}

impl Source {
    /// The word for machines.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::KernelLog => "kernel-log",
            Self::Slot => "slot",
            Self::SlotName => "slot-name",
            Self::Link => "link",
            Self::Counters => "counters",
            Self::InferredLink => "inferred-link",
            Self::Mac => "mac",
            Self::GuidHint => "guid-hint",
        }
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

/// The address of a PCI function.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PciAddress {
    /// Domain. Linux numbers 16 bits for virtual buses and more for some real ones.
    pub domain: u32,
    /// Bus in the domain.
    pub bus: u8,
    /// Device on the bus, 0 to 31.
    pub device: u8,
    /// Function of the device, 0 to 7.
    pub function: u8,
}

impl PciAddress {
    /// Reads `927a:00:02.0`.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let (place, function) = text.split_once('.')?;
        let (domain, bus, device) = Self::parse_place(place)?;
        let function =
            hex(function, 1..=1)?.try_into().ok().filter(|&function: &u8| function < 8)?;
        Some(Self { domain, bus, device, function })
    }

    /// Reads the address of a slot, `927a:00:02`, which has no function.
    #[must_use]
    pub fn parse_place(text: &str) -> Option<(u32, u8, u8)> {
        let mut parts = text.split(':');
        let domain = hex(parts.next()?, 4..=8)?;
        let bus = hex(parts.next()?, 2..=2)?.try_into().ok()?;
        let device =
            hex(parts.next()?, 2..=2)?.try_into().ok().filter(|&device: &u8| device < 32)?;
        parts.next().is_none().then_some((domain, bus, device))
    }

    /// Domain, bus and device: where its slot is.
    #[must_use]
    pub const fn place(&self) -> (u32, u8, u8) {
        (self.domain, self.bus, self.device)
    }
}

/// The VMBus device that owns the root bus of a function's domain, by the names of the directories above the function.
/// Bridges between the two do not matter.
pub(crate) fn bus_of(ancestors: &[&str], address: PciAddress) -> Option<Guid> {
    let root = format!("pci{:04x}:00", address.domain);
    let at = ancestors.iter().rposition(|part| *part == root)?;
    vmbus_instance(ancestors.get(at.checked_sub(1)?)?)
}

/// The instance that names the directory of a VMBus device.
pub(crate) fn vmbus_instance(name: &str) -> Option<Guid> {
    name.parse().ok().filter(|_| name.len() == 36)
}

fn hex(text: &str, length: std::ops::RangeInclusive<usize>) -> Option<u32> {
    let good = length.contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    good.then(|| u32::from_str_radix(text, 16).ok()).flatten()
}

impl fmt::Display for PciAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { domain, bus, device, function } = self;
        write!(f, "{domain:04x}:{bus:02x}:{device:02x}.{function:x}")
    }
}

/// A channel of a VMBus device and what it has counted since it was opened.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Channel {
    /// Number that the host gave it.
    pub id: u32,
    /// Processor that its interrupts go to.
    pub cpu: Option<u32>,
    /// 0 for the primary channel.
    pub subchannel: Option<u32>,
    /// Counters by the name of their attribute, such as `interrupts` and `out_full_total`.
    pub counters: BTreeMap<&'static str, u64>,
}

/// A device on VMBus.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VmbusDevice {
    /// Instance of the offer.
    pub guid: Guid,
    /// Number of the primary channel (`id`); read from [`Depth::Full`](super::Depth::Full) on.
    pub id: Option<u32>,
    /// Class of the offer (`class_id`).
    pub class: Option<Guid>,
    /// Driver that is bound (`driver`).
    pub driver: Option<String>,
    /// What the operator wants to be bound (`driver_override`); read from [`Depth::Full`](super::Depth::Full) on.
    pub driver_override: Option<String>,
    /// 0 offered, 1 opening, 2 open, 3 opened (`state`); read from [`Depth::Full`](super::Depth::Full) on.
    pub state: Option<u32>,
    /// NUMA node (`numa_node`); none if the host named none. Read from [`Depth::Full`](super::Depth::Full) on.
    pub numa_node: Option<u32>,
    /// Channels and their processors, the primary one first (`channel_vp_mapping`); of NICs, and of others from
    /// [`Depth::Full`](super::Depth::Full) on.
    pub mapping: Vec<(u32, u32)>,
    /// Name of its UIO device, if a user-space driver has it (`uio/`); read from [`Depth::Full`](super::Depth::Full) on.
    pub uio: Option<String>,
    /// Its channels with their counters; read at [`Depth::Full`](super::Depth::Full) only.
    pub channels: Vec<Channel>,
    /// Where it was read.
    pub path: String,
}

impl VmbusDevice {
    /// Whether it is a synthetic NIC.
    #[must_use]
    pub fn is_nic(&self) -> bool {
        self.class == Some(NIC_CLASS)
    }

    /// Whether it is a virtual PCI bus.
    #[must_use]
    pub fn is_vpci(&self) -> bool {
        self.class == Some(VPCI_CLASS)
    }

    /// A MAC that the GUID of an Azure NIC holds. Only a hint, for offers that no driver has yet.
    #[must_use]
    pub fn mac_hint(&self) -> Option<MacAddress> {
        mac_hint(self.guid)
    }
}

/// A MAC that the GUID of an Azure NIC holds.
pub(crate) fn mac_hint(guid: Guid) -> Option<MacAddress> {
    let bytes = guid.as_bytes();
    let (head, tail) = (&bytes[..6], &bytes[10..]);
    // aabbccdd-eeff-aabb-ccdd-eeffaabbccdd: the MAC over and over.
    let repeated = bytes.iter().enumerate().all(|(at, byte)| *byte == head[at % 6]);
    // f8615163-NNNN-1000-2000-aabbccddeeff: an index and the MAC.
    let numbered = bytes[..4] == [0xf8, 0x61, 0x51, 0x63] && bytes[6..10] == [0x10, 0, 0x20, 0];
    let mac = if repeated {
        head
    } else if numbered {
        tail
    } else {
        return None;
    };
    mac.try_into().ok().map(MacAddress).filter(|mac| mac.is_unicast())
}

/// A PCI function.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Function {
    /// Its address.
    pub address: PciAddress,
    /// The virtual bus that it came over, if it came over one.
    pub bus: Option<Guid>,
    /// Vendor.
    pub vendor: Option<u16>,
    /// Device.
    pub device: Option<u16>,
    /// Class, subclass and programming interface: 24 bits.
    pub class: Option<u32>,
    /// Driver that is bound.
    pub driver: Option<String>,
    /// NUMA node; none if the host named none. Read from [`Depth::Full`](super::Depth::Full) on.
    pub numa_node: Option<u32>,
    /// Name of its slot. Several functions may share it, and it need not be a number.
    pub slot: Option<String>,
    /// Where it was read.
    pub path: String,
}

impl Function {
    /// Whether it is an Ethernet controller.
    #[must_use]
    pub fn is_ethernet(&self) -> bool {
        self.class.is_some_and(|class| class >> 8 == 0x0200)
    }

    /// The serial number that its slot stands for.
    #[must_use]
    pub fn serial(&self) -> Option<Serial> {
        self.slot.as_deref().and_then(vpci::naming::serial_of)
    }
}

/// What a network device sits on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Parent {
    /// A VMBus device: a synthetic NIC.
    Vmbus(Guid),
    /// A PCI function.
    Pci(PciAddress),
    /// A device on another bus, by the names of bus and device.
    Other(String, String),
    /// Nothing: it was made by software.
    None,
}

impl Parent {
    /// What a device of this name is: the name alone says so, for the two buses that matter.
    pub(crate) fn named(name: &str, bus: impl FnOnce() -> String) -> Self {
        if let Some(address) = PciAddress::parse(name) {
            return Self::Pci(address);
        }
        match vmbus_instance(name) {
            Some(guid) => Self::Vmbus(guid),
            None => Self::Other(bus(), name.to_owned()),
        }
    }
}

/// What kind of network device made by software it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SoftKind {
    /// A bond.
    Bond,
    /// A bridge.
    Bridge,
    /// A VLAN.
    Vlan,
    /// A TAP or TUN interface.
    Tap,
    /// The loopback interface.
    Loopback,
    /// Anything else.
    Other,
}

impl SoftKind {
    /// What the kernel made for somebody who asked for this kind (`IFLA_INFO_KIND`).
    pub(crate) fn made(kind: &str) -> Self {
        match kind {
            "bond" => Self::Bond,
            "bridge" => Self::Bridge,
            "vlan" => Self::Vlan,
            "tun" => Self::Tap,
            _ => Self::Other,
        }
    }
}

/// A network device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetDevice {
    /// Its name now.
    pub name: String,
    /// Its number, which outlives names.
    pub index: Option<u32>,
    /// Hardware type; 1 is Ethernet.
    pub kind: Option<u32>,
    /// Its MAC now.
    pub mac: Option<MacAddress>,
    /// Its permanent MAC: what netlink tells, or the address, if nobody assigned another (`addr_assign_type` 0).
    pub permanent: Option<MacAddress>,
    /// What it sits on.
    pub parent: Parent,
    /// What it is if it sits on nothing.
    pub soft: SoftKind,
    /// Name of the device that it belongs to (`master`).
    pub master: Option<String>,
    /// Names of the devices below it (`lower_*`); where netlink tells enough, at [`Depth::Pairs`](super::Depth::Pairs), those whose
    /// master it is and what a VLAN or the like is made on.
    pub lowers: Vec<String>,
    /// Names of the devices above it (`upper_*`).
    pub uppers: Vec<String>,
    /// Which port of its function (`dev_port`).
    pub port: u32,
    /// Interface flags, without those that only netlink tells.
    pub flags: Option<u32>,
    /// MTU in bytes.
    pub mtu: Option<u32>,
    /// `up`, `down` and others (`operstate`).
    pub operstate: Option<String>,
    /// Carrier; none while the interface is down.
    pub carrier: Option<bool>,
    /// Speed in Mbit/s, if known; read from [`Depth::Full`](super::Depth::Full) on.
    pub speed: Option<u32>,
    /// Transmit and receive queues; read at [`Depth::Full`](super::Depth::Full) only.
    pub queues: Option<(u32, u32)>,
    /// Counters by the name of their attribute; read at [`Depth::Full`](super::Depth::Full) only.
    pub counters: BTreeMap<&'static str, u64>,
    /// What the driver of a synthetic NIC counts of its VF, by the names that it gives them (`vf_rx_packets` and others); empty if
    /// nobody could ask. Read at [`Depth::Full`](super::Depth::Full) only.
    pub shares: BTreeMap<String, u64>,
    /// Properties in the udev database; none if there is no entry. Read from [`Depth::Full`](super::Depth::Full) on, and of VFs without
    /// a slot.
    pub udev: Option<BTreeMap<String, String>>,
    /// When udev first knew it, since boot.
    pub initialized: Option<Duration>,
    /// What netlink says about it; none if nobody could ask.
    pub told: Option<Box<Link>>,
    /// Its receive ring; read at [`Depth::Checks`](super::Depth::Checks) only.
    pub ring: Option<Ring>,
    /// Whether it merges received frames (LRO); read at [`Depth::Checks`](super::Depth::Checks) only.
    pub lro: Option<bool>,
    /// Where it was read.
    pub path: String,
}

/// The links of another network namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Elsewhere {
    /// The namespace's name.
    pub namespace: String,
    /// Its links; none if it could not be entered.
    pub links: Option<Vec<Link>>,
}

impl NetDevice {
    /// One made by software, of which nothing more is known yet.
    pub(crate) fn software(index: u32, name: String, soft: SoftKind) -> Self {
        Self {
            name,
            index: Some(index),
            kind: None,
            mac: None,
            permanent: None,
            parent: Parent::None,
            soft,
            master: None,
            lowers: Vec::new(),
            uppers: Vec::new(),
            port: 0,
            flags: None,
            mtu: None,
            operstate: None,
            carrier: None,
            speed: None,
            queues: None,
            counters: BTreeMap::new(),
            shares: BTreeMap::new(),
            udev: None,
            initialized: None,
            told: None,
            ring: None,
            lro: None,
            path: String::new(),
        }
    }

    /// Takes over what netlink says about the link itself.
    pub(crate) fn take(&mut self, told: &Link) {
        self.mac = told.mac.or(self.mac);
        self.permanent = told.permanent.or(self.permanent);
        self.flags = Some(told.stored_flags());
        self.mtu = told.mtu.or(self.mtu);
        self.operstate = told.operstate.as_ref().map(|state| state.to_lowercase());
        self.carrier = told.carrier.filter(|_| told.is_up());
        self.told = Some(Box::new(told.clone()));
    }

    /// Its other names, as far as netlink told them.
    #[must_use]
    pub fn altnames(&self) -> &[String] {
        self.told.as_ref().map_or(&[], |told| &told.altnames)
    }

    /// Whether it is administratively up.
    #[must_use]
    pub fn is_up(&self) -> Option<bool> {
        self.flags.map(|flags| flags & 1 != 0)
    }

    /// A property of the udev database.
    #[must_use]
    pub fn property(&self, key: &str) -> Option<&str> {
        self.udev.as_ref()?.get(key).map(String::as_str)
    }
}

/// A guest as it was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// Whether it was read from the running system, not from a directory.
    pub live: bool,
    /// Whether there is a VMBus at all.
    pub hyperv: bool,
    /// Release of the kernel.
    pub release: Option<String>,
    /// Time since boot on the clock of the kernel log, which stands still while the machine sleeps; none if that is not known.
    pub uptime: Option<Duration>,
    /// Devices on VMBus, in the order of their GUIDs.
    pub devices: Vec<VmbusDevice>,
    /// PCI functions, in the order of their addresses.
    pub functions: Vec<Function>,
    /// Names of slots with their place.
    pub slots: Vec<(String, (u32, u8, u8))>,
    /// Network devices, in the order of their numbers.
    pub links: Vec<NetDevice>,
    /// Modules that are loaded; none if unknown.
    pub modules: Option<BTreeSet<String>>,
    /// Network namespaces with a name.
    pub namespaces: Vec<String>,
    /// What the kernel said.
    pub log: KernelLog,
    /// Addresses; none if not asked for or not told.
    pub addresses: Option<Vec<Address>>,
    /// Routes; none if not asked for or not told.
    pub routes: Option<Vec<Route>>,
    /// Neighbours; none if not asked for or not told.
    pub neighbours: Option<Vec<Neighbour>>,
    /// The links of other network namespaces that have names.
    pub elsewhere: Vec<Elsewhere>,
    /// The machine around the devices.
    pub machine: Machine,
    /// What could not be read.
    pub unreadable: Vec<Unreadable>,
}

impl Snapshot {
    /// The synthetic NICs.
    pub fn nics(&self) -> impl Iterator<Item = &VmbusDevice> {
        self.devices.iter().filter(|device| device.is_nic())
    }

    /// The network device of a synthetic NIC, if a driver made one here.
    #[must_use]
    pub fn link_of(&self, nic: Guid) -> Option<&NetDevice> {
        self.links.iter().find(|link| link.parent == Parent::Vmbus(nic))
    }

    /// The network devices of a function, by port.
    pub fn ports_of(&self, address: PciAddress) -> impl Iterator<Item = &NetDevice> {
        self.links.iter().filter(move |link| link.parent == Parent::Pci(address))
    }

    /// The function with this address.
    #[must_use]
    pub fn function(&self, address: PciAddress) -> Option<&Function> {
        let at = self.functions.binary_search_by_key(&address, |function| function.address).ok()?;
        self.functions.get(at)
    }

    /// The VMBus device with this instance.
    #[must_use]
    pub fn device(&self, guid: Guid) -> Option<&VmbusDevice> {
        let at = self.devices.binary_search_by_key(&guid, |device| device.guid).ok()?;
        self.devices.get(at)
    }

    /// The network device with this name.
    #[must_use]
    pub fn link(&self, name: &str) -> Option<&NetDevice> {
        self.links.iter().find(|link| link.name == name)
    }
}

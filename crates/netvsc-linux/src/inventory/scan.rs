//! Reads the parts of a snapshot, each at a fixed depth: a bus's list, the things in it, their attributes.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use netvsc::mac::MacAddress;
use vmbus::Guid;

use super::Depth;
use super::model::{
    Channel, Function, NetDevice, Parent, PciAddress, SoftKind, VmbusDevice, bus_of,
};
use super::told::Links;
use super::tree::{ATTRIBUTE_LIMIT, FILE_LIMIT, Folder, Tree};

/// Attributes of a channel that count something, or say how full its rings are (bytes).
const CHANNEL_COUNTERS: [&str; 8] = [
    "events",
    "interrupts",
    "intr_in_full",
    "intr_out_empty",
    "out_full_first",
    "out_full_total",
    "read_avail",
    "write_avail",
];

/// Attributes of a network device that count something.
const LINK_COUNTERS: [&str; 9] = [
    "rx_bytes",
    "rx_dropped",
    "rx_errors",
    "rx_missed_errors",
    "rx_packets",
    "tx_bytes",
    "tx_dropped",
    "tx_errors",
    "tx_packets",
];

const VMBUS: &str = "sys/bus/vmbus/devices";
const PCI: &str = "sys/bus/pci/devices";
const SLOTS: &str = "sys/bus/pci/slots";
const NET: &str = "sys/class/net";

pub(super) fn devices(tree: &mut Tree, depth: Depth) -> Vec<VmbusDevice> {
    let mut devices = Vec::new();
    for name in tree.names_at(VMBUS) {
        let path = format!("{VMBUS}/{name}");
        let Ok(guid) = name.parse::<Guid>() else {
            tree.note(format!("/{path}"), "expected a name that is a GUID");
            continue;
        };
        if let Some(folder) = tree.folder(&path) {
            devices.push(device(tree, &folder, guid, depth));
        }
    }
    devices.sort_unstable_by_key(|device| device.guid);
    devices
}

fn device(tree: &mut Tree, folder: &Folder, guid: Guid, depth: Depth) -> VmbusDevice {
    let braced = |text: &str| text.trim_matches(['{', '}']).parse().ok();
    let mut device = VmbusDevice {
        guid,
        id: None,
        class: tree.parsed(folder, "class_id", "a GUID in braces", braced),
        driver: tree.link(folder, "driver"),
        driver_override: None,
        state: None,
        numa_node: None,
        mapping: Vec::new(),
        uio: None,
        channels: Vec::new(),
        path: folder.path.clone(),
    };
    if depth.full() || device.is_nic() {
        let mapping = tree.parsed(folder, "channel_vp_mapping", "pairs `channel:cpu`", mapping);
        device.mapping = mapping.unwrap_or_default();
    }
    if depth.full() {
        device.id = tree.small(folder, "id");
        device.driver_override = tree.text(folder, "driver_override").filter(|name| set(name));
        device.state = tree.small(folder, "state");
        device.numa_node = numa_node(tree, folder);
        device.uio = tree.names_below(folder, "uio").into_iter().next();
        device.channels = channels(tree, folder);
    }
    device
}

/// Whether an override is one: the kernel writes `(null)` for none.
fn set(name: &str) -> bool {
    !name.is_empty() && name != "(null)"
}

/// -1 means that the host named none.
fn numa_node(tree: &mut Tree, folder: &Folder) -> Option<u32> {
    let parse = |text: &str| text.parse::<i32>().ok();
    tree.parsed(folder, "numa_node", "a node number or -1", parse)?.try_into().ok()
}

fn mapping(text: &str) -> Option<Vec<(u32, u32)>> {
    text.split_whitespace()
        .map(|pair| {
            let (channel, cpu) = pair.split_once(':')?;
            Some((channel.parse().ok()?, cpu.parse().ok()?))
        })
        .collect()
}

fn channels(tree: &mut Tree, device: &Folder) -> Vec<Channel> {
    let Some(list) = tree.below(device, "channels") else { return Vec::new() };
    let mut channels = Vec::new();
    for name in tree.names(&list) {
        let Ok(id) = name.parse() else {
            tree.note(format!("{}/{name}", list.path), "expected the number of a channel");
            continue;
        };
        let Some(folder) = tree.below(&list, &name) else { continue };
        channels.push(Channel {
            id,
            cpu: tree.small(&folder, "cpu"),
            subchannel: tree.small(&folder, "subchannel_id"),
            counters: counters(tree, &folder, &CHANNEL_COUNTERS),
        });
    }
    channels.sort_unstable_by_key(|channel| channel.id);
    channels
}

fn counters(
    tree: &mut Tree,
    folder: &Folder,
    names: &[&'static str],
) -> BTreeMap<&'static str, u64> {
    names.iter().filter_map(|name| Some((*name, tree.number(folder, name)?))).collect()
}

/// Slots by name, with domain, bus and device.
pub(super) fn slots(tree: &mut Tree) -> Vec<(String, (u32, u8, u8))> {
    let Some(folder) = tree.folder(SLOTS) else { return Vec::new() };
    let mut slots = Vec::new();
    for name in tree.names(&folder) {
        let address = format!("{name}/address");
        let place = tree.parsed(&folder, &address, "an address such as 927a:00:02", |text| {
            PciAddress::parse_place(text)
        });
        slots.extend(place.map(|place| (name, place)));
    }
    slots
}

pub(super) fn functions(
    tree: &mut Tree,
    devices: &[VmbusDevice],
    slots: &[(String, (u32, u8, u8))],
    depth: Depth,
) -> Vec<Function> {
    let buses: BTreeSet<Guid> =
        devices.iter().filter(|device| device.is_vpci()).map(|device| device.guid).collect();
    let places: BTreeMap<_, &str> =
        slots.iter().rev().map(|(name, place)| (*place, name.as_str())).collect();
    let mut functions = Vec::new();
    let Some(list) = tree.folder(PCI) else { return functions };
    for name in tree.names(&list) {
        let path = format!("{PCI}/{name}");
        let Some(address) = PciAddress::parse(&name) else {
            tree.note(format!("/{path}"), "expected a name such as 927a:00:02.0");
            continue;
        };
        let target = tree.target(&list, &name).unwrap_or_default();
        let Some(folder) = tree.folder(&path) else { continue };
        let bus = bus_of(&target.split('/').collect::<Vec<_>>(), address);
        let Kind { vendor, device, class } = kind(tree, &folder, depth);
        functions.push(Function {
            address,
            bus: bus.filter(|bus| buses.contains(bus)),
            vendor,
            device,
            class,
            driver: tree.link(&folder, "driver"),
            numa_node: if depth.full() { numa_node(tree, &folder) } else { None },
            slot: places.get(&address.place()).map(|name| (*name).to_owned()),
            path: folder.path.clone(),
        });
    }
    functions.sort_unstable_by_key(|function| function.address);
    functions
}

/// What a PCI function is.
#[derive(Default)]
struct Kind {
    vendor: Option<u16>,
    device: Option<u16>,
    class: Option<u32>,
}

/// `modalias` says all of it in one read. (`uevent` does too, and may wait for a driver that is starting.)
fn kind(tree: &mut Tree, folder: &Folder, depth: Depth) -> Kind {
    if !depth.full()
        && let Some(kind) = tree.text(folder, "modalias").as_deref().and_then(Kind::parse)
    {
        return kind;
    }
    let id = |tree: &mut Tree, name| {
        tree.parsed(folder, name, "16 bits in hexadecimal", |text| {
            super::tree::number(text)?.try_into().ok()
        })
    };
    Kind {
        vendor: id(tree, "vendor"),
        device: id(tree, "device"),
        class: tree.small(folder, "class"),
    }
}

impl Kind {
    /// From such as `pci:v00008086d00001515sv00008086sd00001515bc02sc00i00`.
    fn parse(text: &str) -> Option<Self> {
        let rest = text.strip_prefix("pci:v")?;
        let (vendor, rest) = rest.split_once('d')?;
        let (device, rest) = rest.split_once("sv")?;
        let (_, rest) = rest.split_once("bc")?;
        let (base, rest) = rest.split_once("sc")?;
        let (sub, interface) = rest.split_once('i')?;
        let byte = |text: &str| u8::from_str_radix(text, 16).ok();
        let class = [0, byte(base)?, byte(sub)?, byte(interface)?];
        Some(Self {
            vendor: Some(u32::from_str_radix(vendor, 16).ok()?.try_into().ok()?),
            device: Some(u32::from_str_radix(device, 16).ok()?.try_into().ok()?),
            class: Some(u32::from_be_bytes(class)),
        })
    }
}

pub(super) fn links(
    tree: &mut Tree,
    told: &Links,
    functions: &[Function],
    depth: Depth,
) -> Vec<NetDevice> {
    let mut links = Vec::new();
    for name in tree.names_at(NET) {
        // `bonding_masters` is a file among the directories.
        if name == "bonding_masters" {
            continue;
        }
        let quick = if depth.full() { None } else { told.device(tree, &name, functions) };
        if let Some(link) = quick {
            links.push(link);
        } else if let Some(folder) = tree.folder(&format!("{NET}/{name}")) {
            links.push(link(tree, &folder, name, depth));
        }
    }
    links.sort_by(|a, b| a.index.cmp(&b.index).then_with(|| a.name.cmp(&b.name)));
    links
}

fn link(tree: &mut Tree, folder: &Folder, name: String, depth: Depth) -> NetDevice {
    let entries = tree.names(folder);
    let has = |name: &str| entries.iter().any(|entry| entry == name);
    let related = |prefix: &str| {
        entries.iter().filter_map(|entry| entry.strip_prefix(prefix).map(str::to_owned)).collect()
    };
    let parent = if has("device") { parent(tree, folder) } else { Parent::None };
    let mac = tree.text(folder, "address").and_then(|text| text.parse::<MacAddress>().ok());
    // 0: the address is the device's own, not random, borrowed or set.
    let own = tree.small(folder, "addr_assign_type") == Some(0);
    let index = tree.small(folder, "ifindex");
    let full = depth.full();
    let udev = index.and_then(|index| udev(tree, index));
    let statistics = if full { tree.below(folder, "statistics") } else { None };
    NetDevice {
        index,
        kind: tree.small(folder, "type"),
        mac,
        permanent: mac.filter(|mac| own && mac.is_unicast()),
        soft: if parent == Parent::None { soft(tree, folder, &has) } else { SoftKind::Other },
        parent,
        master: tree.link(folder, "master"),
        lowers: related("lower_"),
        uppers: related("upper_"),
        port: tree.small(folder, "dev_port").unwrap_or(0),
        flags: tree.small(folder, "flags"),
        mtu: tree.small(folder, "mtu"),
        operstate: tree.text(folder, "operstate"),
        carrier: tree.small(folder, "carrier").map(|carrier| carrier != 0),
        // A negative speed means that it is not known.
        speed: if full { tree.text(folder, "speed") } else { None }
            .and_then(|text| text.parse().ok()),
        queues: if full { queues(tree, folder) } else { None },
        counters: statistics
            .map(|statistics| counters(tree, &statistics, &LINK_COUNTERS))
            .unwrap_or_default(),
        shares: BTreeMap::new(),
        initialized: udev.as_ref().and_then(|(_, at)| *at),
        udev: udev.map(|(properties, _)| properties),
        told: None,
        ring: None,
        lro: None,
        path: folder.path.clone(),
        name,
    }
}

/// What the `device` link points to.
fn parent(tree: &mut Tree, folder: &Folder) -> Parent {
    let Some(name) = tree.link(folder, "device") else { return Parent::None };
    Parent::named(&name, || {
        let device = tree.folder(&format!("{}/device", folder.path.trim_start_matches('/')));
        device.and_then(|device| tree.link(&device, "subsystem")).unwrap_or_default()
    })
}

fn soft(tree: &mut Tree, folder: &Folder, has: &impl Fn(&str) -> bool) -> SoftKind {
    if has("bonding") {
        return SoftKind::Bond;
    }
    if has("bridge") {
        return SoftKind::Bridge;
    }
    if has("tun_flags") {
        return SoftKind::Tap;
    }
    let event = tree.text(folder, "uevent").unwrap_or_default();
    match event.lines().find_map(|line| line.strip_prefix("DEVTYPE=")) {
        Some("vlan") => SoftKind::Vlan,
        Some("bond") => SoftKind::Bond,
        Some("bridge") => SoftKind::Bridge,
        _ if tree.small(folder, "type") == Some(772) => SoftKind::Loopback,
        _ => SoftKind::Other,
    }
}

/// Transmit and receive queues.
fn queues(tree: &mut Tree, folder: &Folder) -> Option<(u32, u32)> {
    let queues = tree.below(folder, "queues")?;
    let names = tree.names(&queues);
    let count = |prefix: &str| {
        u32::try_from(names.iter().filter(|name| name.starts_with(prefix)).count()).ok()
    };
    Some((count("tx-")?, count("rx-")?))
}

/// An entry of the udev database: the properties, and when udev first knew the device.
pub(super) fn udev(
    tree: &mut Tree,
    index: u32,
) -> Option<(BTreeMap<String, String>, Option<Duration>)> {
    let text = tree.contents(&format!("run/udev/data/n{index}"), FILE_LIMIT)?;
    let properties = text
        .lines()
        .filter_map(|line| line.strip_prefix("E:")?.split_once('='))
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .collect();
    let since = text.lines().find_map(|line| line.strip_prefix("I:")?.parse().ok());
    Some((properties, since.map(Duration::from_micros)))
}

pub(super) fn release(tree: &mut Tree) -> Option<String> {
    tree.contents("proc/sys/kernel/osrelease", ATTRIBUTE_LIMIT).filter(|text| !text.is_empty())
}

/// Names of loaded modules; none if that is not known, as where the list is empty.
pub(super) fn modules(tree: &mut Tree) -> Option<std::collections::BTreeSet<String>> {
    let text = tree.contents("proc/modules", FILE_LIMIT)?;
    let names: std::collections::BTreeSet<String> =
        text.lines().filter_map(|line| line.split_whitespace().next()).map(str::to_owned).collect();
    (!names.is_empty()).then_some(names)
}

pub(super) fn namespaces(tree: &mut Tree) -> Vec<String> {
    tree.names_at("run/netns")
}

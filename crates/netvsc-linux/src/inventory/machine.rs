//! What the checks need beside the devices: the machine, its managers of networks, and their configuration.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use super::config::{self, ConfigFile};
use super::tree::{ATTRIBUTE_LIMIT, Tree, number};
use super::{Parent, Snapshot, shares};

/// Longest list of modules and longest kernel configuration, in bytes.
const LIST_LIMIT: usize = 8 << 20;
/// Longest state file of a manager, in bytes.
const STATE_LIMIT: usize = 64 << 10;
/// What Azure writes into every machine's chassis.
const AZURE_TAG: &str = "7783-7084-3265-9085-8269-3286-77";

/// Modules that matter here, with the option of the kernel's configuration that makes each.
pub const MODULES: [(&str, &str); 8] = [
    ("hv_netvsc", "CONFIG_HYPERV_NET"),
    ("pci_hyperv", "CONFIG_PCI_HYPERV"),
    ("mlx4_en", "CONFIG_MLX4_EN"),
    ("mlx5_core", "CONFIG_MLX5_CORE"),
    ("mana", "CONFIG_MICROSOFT_MANA"),
    ("ixgbevf", "CONFIG_IXGBEVF"),
    ("iavf", "CONFIG_IAVF"),
    ("bnxt_en", "CONFIG_BNXT"),
];

/// A program that gives interfaces their addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Manager {
    /// systemd-networkd.
    Networkd,
    /// NetworkManager.
    NetworkManager,
    /// dhcpcd.
    Dhcpcd,
    /// ifupdown.
    Ifupdown,
}

impl Manager {
    /// Its name.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Networkd => "systemd-networkd",
            Self::NetworkManager => "NetworkManager",
            Self::Dhcpcd => "dhcpcd",
            Self::Ifupdown => "ifupdown",
        }
    }

    /// What is there only while (or since) it runs.
    const fn traces(self) -> &'static [&'static str] {
        match self {
            Self::Networkd => &["run/systemd/netif/links", "run/systemd/netif/state"],
            Self::NetworkManager => &["run/NetworkManager/devices"],
            Self::Dhcpcd => &["run/dhcpcd/pid", "run/dhcpcd.pid"],
            Self::Ifupdown => &["run/network/ifstate"],
        }
    }
}

/// The interrupts of one line since the boot.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Interrupts {
    /// Its number.
    pub number: u32,
    /// The name that its driver gave it, such as `mlx5_comp0@pci:927a:00:02.0`.
    pub name: String,
    /// How many each processor took.
    pub counts: Vec<u64>,
    /// Which processors may take them (`smp_affinity_list`).
    pub affinity: Option<String>,
}

/// Packets of an interface at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Packets {
    /// Received.
    pub received: u64,
    /// Sent.
    pub sent: u64,
    /// Sent through the VF, as the driver of a synthetic NIC counts them (`vf_tx_packets`); none if nobody told.
    pub sent_by_vf: Option<u64>,
}

/// The packets of every interface at one moment, by the interface's number.
pub type Sample = BTreeMap<u32, Packets>;

/// The machine around the devices; empty, but for samples, unless read at [`Depth::Checks`](super::Depth::Checks).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Machine {
    /// Whether it runs on Azure; none if the firmware's tables could not be read.
    pub azure: Option<bool>,
    /// Processors that are at work; none if unknown.
    pub cpus: Option<u32>,
    /// Modules of [`MODULES`] that this kernel has on disk (false) or built in (true); none if there is no list.
    pub available: Option<BTreeMap<&'static str, bool>>,
    /// What the kernel's configuration says about the options of [`MODULES`]; none if it is not there.
    pub options: Option<BTreeMap<&'static str, Option<String>>>,
    /// Version of systemd as its library is named, such as `257` or `257.7-1.fc42`; none if it is not there.
    pub systemd: Option<String>,
    /// The managers that run.
    pub managers: Vec<Manager>,
    /// Whether NetworkManager ran in the initramfs.
    pub early_manager: bool,
    /// What systemd-networkd says about each interface (`ADMIN_STATE`), by the interface's number.
    pub networkd: BTreeMap<u32, String>,
    /// Whether NetworkManager says that it manages an interface, by the interface's number.
    pub network_manager: BTreeMap<u32, bool>,
    /// Names of the interfaces that ifupdown has brought up.
    pub ifupdown: Vec<String>,
    /// Configuration files, in the order of their folders.
    pub config: Vec<ConfigFile>,
    /// Interrupt lines of network cards.
    pub interrupts: Vec<Interrupts>,
    /// The queueing discipline that interfaces get by default.
    pub default_qdisc: Option<String>,
    /// Packets of all interfaces, at several moments.
    pub samples: Vec<Sample>,
}

pub(super) fn read(tree: &mut Tree, release: Option<&str>) -> Machine {
    let early_manager = tree.exists("run/NetworkManager/initrd");
    let mut machine = Machine {
        azure: tree
            .contents("sys/class/dmi/id/chassis_asset_tag", ATTRIBUTE_LIMIT)
            .map(|tag| tag == AZURE_TAG),
        cpus: tree
            .contents("sys/devices/system/cpu/online", ATTRIBUTE_LIMIT)
            .and_then(|list| count(&list)),
        available: release.and_then(|release| available(tree, release)),
        options: release.and_then(|release| options(tree, release)),
        systemd: systemd(tree),
        early_manager,
        default_qdisc: tree.contents("proc/sys/net/core/default_qdisc", ATTRIBUTE_LIMIT),
        config: config::read(tree, early_manager),
        interrupts: interrupts(tree),
        ..Machine::default()
    };
    for manager in [Manager::Networkd, Manager::NetworkManager, Manager::Dhcpcd, Manager::Ifupdown]
    {
        if manager.traces().iter().any(|trace| tree.exists(trace)) {
            machine.managers.push(manager);
        }
    }
    states(tree, &mut machine);
    machine
}

/// What the managers say about interfaces, from the files in which they keep that.
fn states(tree: &mut Tree, machine: &mut Machine) {
    for (folder, key) in
        [("run/systemd/netif/links", "ADMIN_STATE="), ("run/NetworkManager/devices", "managed=")]
    {
        for name in tree.names_at(folder) {
            let Ok(index) = name.parse() else { continue };
            let text = tree.contents(&format!("{folder}/{name}"), STATE_LIMIT);
            let text = text.unwrap_or_default();
            let Some(value) = text.lines().find_map(|line| line.trim().strip_prefix(key)) else {
                continue;
            };
            if key.starts_with('A') {
                machine.networkd.insert(index, value.to_owned());
            } else {
                machine.network_manager.insert(index, matches!(value, "true" | "1"));
            }
        }
    }
    let up = tree.contents("run/network/ifstate", STATE_LIMIT).unwrap_or_default();
    let names = up.lines().filter_map(|line| line.split('=').next());
    machine.ifupdown = names.map(str::to_owned).filter(|name| !name.is_empty()).collect();
}

/// How many numbers there are in a list such as `0-3,8`.
pub(super) fn count(list: &str) -> Option<u32> {
    let mut total = 0_u32;
    for part in list.split(',') {
        let (from, to) = part.split_once('-').unwrap_or((part, part));
        let (from, to): (u32, u32) = (from.trim().parse().ok()?, to.trim().parse().ok()?);
        total = total.checked_add(to.checked_sub(from)?.checked_add(1)?)?;
    }
    Some(total)
}

/// A name without a path and what follows the first dot, with `_` for `-`, as the kernel writes it.
fn module(path: &str) -> Option<&'static str> {
    let name = path.rsplit('/').next()?.split('.').next()?.replace('-', "_");
    MODULES.iter().map(|(module, _)| *module).find(|module| *module == name)
}

fn available(tree: &mut Tree, release: &str) -> Option<BTreeMap<&'static str, bool>> {
    // The release is text from a file, and becomes a part of a path.
    if release.contains('/') || release.starts_with('.') {
        return None;
    }
    let folder = ["usr/lib/modules", "lib/modules"]
        .map(|folder| format!("{folder}/{release}"))
        .into_iter()
        .find(|folder| tree.exists(folder))?;
    let mut found = BTreeMap::new();
    let listed = tree.contents(&format!("{folder}/modules.dep"), LIST_LIMIT)?;
    for line in listed.lines() {
        found.extend(line.split(':').next().and_then(module).map(|name| (name, false)));
    }
    let built_in = tree.contents(&format!("{folder}/modules.builtin"), LIST_LIMIT);
    for line in built_in.unwrap_or_default().lines() {
        found.extend(module(line).map(|name| (name, true)));
    }
    Some(found)
}

fn options(tree: &mut Tree, release: &str) -> Option<BTreeMap<&'static str, Option<String>>> {
    if release.contains('/') {
        return None;
    }
    let text = tree.contents(&format!("boot/config-{release}"), LIST_LIMIT)?;
    let set: BTreeMap<&str, &str> =
        text.lines().filter_map(|line| line.trim().split_once('=')).collect();
    let value = |option: &str| set.get(option).map(|value| (*value).to_owned());
    Some(MODULES.iter().map(|(_, option)| (*option, value(option))).collect())
}

fn systemd(tree: &mut Tree) -> Option<String> {
    let folders = [
        "usr/lib/systemd",
        "usr/lib64/systemd",
        "usr/lib/x86_64-linux-gnu/systemd",
        "usr/lib/aarch64-linux-gnu/systemd",
        "lib/systemd",
    ];
    folders.iter().find_map(|folder| {
        tree.names_at(folder).iter().find_map(|name| {
            let version = name.strip_prefix("libsystemd-shared-")?.strip_suffix(".so")?;
            Some(version.to_owned())
        })
    })
}

/// Whether an interrupt line is a network card's, by the names that drivers give them.
fn is_card(name: &str) -> bool {
    ["mlx4", "mlx5", "mana", "iavf", "ixgbevf", "bnxt"].iter().any(|driver| name.contains(driver))
}

fn interrupts(tree: &mut Tree) -> Vec<Interrupts> {
    let Some(text) = tree.contents("proc/interrupts", LIST_LIMIT) else { return Vec::new() };
    let mut lines = text.lines();
    let cpus = lines.next().map_or(0, |header| header.split_whitespace().count());
    let mut found = Vec::new();
    for line in lines {
        let Some((number, rest)) = line.split_once(':') else { continue };
        let Ok(number) = number.trim().parse() else { continue };
        let counts: Vec<u64> =
            rest.split_whitespace().take(cpus).map_while(|word| word.parse().ok()).collect();
        let name = rest.split_whitespace().last().unwrap_or_default();
        if !is_card(name) {
            continue;
        }
        let affinity =
            tree.contents(&format!("proc/irq/{number}/smp_affinity_list"), ATTRIBUTE_LIMIT);
        found.push(Interrupts { number, name: name.to_owned(), counts, affinity });
    }
    found
}

/// Where a tree has samples: lines `SAMPLE IFINDEX RX_PACKETS TX_PACKETS`, and behind that the packets that a NIC sent through its
/// VF, where its driver told.
pub(super) const SAMPLES: &str = "netvsc/samples";

pub(super) fn samples(tree: &mut Tree) -> Vec<Sample> {
    let Some(text) = tree.contents(SAMPLES, LIST_LIMIT) else { return Vec::new() };
    let mut samples: BTreeMap<u64, Sample> = BTreeMap::new();
    for line in text.lines() {
        let numbers: Vec<u64> = line.split_whitespace().filter_map(number).collect();
        if let [at, index, received, sent, ref rest @ ..] = numbers[..]
            && let Ok(index) = index.try_into()
        {
            let packets = Packets { received, sent, sent_by_vf: rest.first().copied() };
            samples.entry(at).or_default().insert(index, packets);
        }
    }
    samples.into_values().collect()
}

/// The file of samples.
pub(super) fn recorded(samples: &[Sample]) -> String {
    let mut text = String::new();
    for (at, sample) in samples.iter().enumerate() {
        for (index, Packets { received, sent, sent_by_vf }) in sample {
            _ = write!(text, "{at} {index} {received} {sent}");
            if let Some(sent) = sent_by_vf {
                _ = write!(text, " {sent}");
            }
            text.push('\n');
        }
    }
    text
}

/// Takes one more sample of the running system: the packets of the interfaces that a snapshot has.
pub fn sample(snapshot: &mut Snapshot) {
    let Ok(mut tree) = Tree::open(None) else { return };
    let mut sample = Sample::new();
    for link in &snapshot.links {
        let Some(index) = link.index else { continue };
        let mut packets = |direction: &str| {
            let path = format!("sys/class/net/{}/statistics/{direction}_packets", link.name);
            number(&tree.contents(&path, ATTRIBUTE_LIMIT)?)
        };
        if let (Some(received), Some(sent)) = (packets("rx"), packets("tx")) {
            let sent_by_vf = match link.parent {
                Parent::Vmbus(_) => shares::sent_by_vf(&link.name),
                _ => None,
            };
            sample.insert(index, Packets { received, sent, sent_by_vf });
        }
    }
    snapshot.machine.samples.push(sample);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_processors_are_counted() {
        assert_eq!(count("0-7"), Some(8));
        assert_eq!(count("0,2-3,9"), Some(4));
        for bad in ["", "x", "3-1", "0-4294967295"] {
            assert_eq!(count(bad), None, "{bad}");
        }
    }

    #[test]
    fn modules_are_known_by_the_names_of_their_files() {
        assert_eq!(module("kernel/drivers/pci/controller/pci-hyperv.ko.zst"), Some("pci_hyperv"));
        assert_eq!(module("kernel/drivers/net/ethernet/intel/ice/ice.ko"), None);
    }
}

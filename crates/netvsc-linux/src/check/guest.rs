//! What the checks look at.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use netvsc::mac::MacAddress;

use super::finding::Outcome;
use super::fix::{Fix, LinkName, Step};
use super::stanza::{self, Stanza};
use crate::inventory::{
    ConfigFile, ConfigKind, Function, NetDevice, Parent, PciAddress, Snapshot, folders,
};
use crate::relation::{NicView, Relations, VfPort};

/// From when on something is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Thresholds {
    /// How long a function or an association may wait for what follows.
    pub arrival: Duration,
    /// How long a VF may be there without being joined.
    pub join: Duration,
    /// How long the kernel may wait for an association.
    pub blocked: Duration,
    /// How long a pair may stay on the synthetic path: worth a warning.
    pub synthetic_warn: Duration,
    /// How long a pair may stay on the synthetic path, or an association without VF: critical.
    pub synthetic_critical: Duration,
    /// Switches of the path in an hour.
    pub switches_per_hour: usize,
    /// Removals of the VF in a day.
    pub removals_per_day: usize,
    /// Queues that are enough whatever the number of processors.
    pub queues: u32,
    /// Receive ring that is enough whatever is dropped.
    pub ring: u32,
    /// Interrupts of a card before their spread means anything.
    pub interrupts: u64,
}

impl Default for Thresholds {
    fn default() -> Self {
        let seconds = Duration::from_secs;
        Self {
            arrival: seconds(60),
            join: seconds(10),
            blocked: seconds(30),
            synthetic_warn: seconds(300),
            synthetic_critical: seconds(3600),
            switches_per_hour: 10,
            removals_per_day: 3,
            queues: 8,
            ring: 1024,
            interrupts: 10_000,
        }
    }
}

/// A guest: its snapshot, who belongs to whom, and whom the operator talks through.
#[derive(Debug)]
pub struct Guest<'a> {
    /// What was read.
    pub snapshot: &'a Snapshot,
    /// Who belongs to whom.
    pub relations: &'a Relations<'a>,
    /// When something is wrong.
    pub thresholds: Thresholds,
    /// The operator's session: the addresses of the other and of this end.
    pub session: Option<(IpAddr, IpAddr)>,
    stanzas: Vec<Stanza>,
    /// Permanent MACs of the synthetic NICs, bound or (by their GUIDs) not.
    macs: BTreeSet<MacAddress>,
}

impl<'a> Guest<'a> {
    /// A guest with the usual thresholds.
    #[must_use]
    pub fn new(snapshot: &'a Snapshot, relations: &'a Relations<'a>) -> Self {
        let stanzas = snapshot.machine.config.iter().flat_map(stanza::read).collect();
        let thresholds = Thresholds::default();
        let macs = relations.nics.iter().filter_map(|nic| match nic.link {
            Some(link) => link.permanent,
            None => nic.device.mac_hint(),
        });
        let macs = macs.collect();
        Self { snapshot, relations, thresholds, session: None, stanzas, macs }
    }

    /// What configuration says about interfaces.
    pub(super) fn stanzas(&self) -> &[Stanza] {
        &self.stanzas
    }

    /// Configuration files of one kind.
    pub(super) fn config(&self, kind: ConfigKind) -> impl Iterator<Item = &'a ConfigFile> {
        self.snapshot.machine.config.iter().filter(move |file| file.kind == kind)
    }

    /// The contents of a configuration file now, if it is there.
    pub(super) fn contents(&self, path: &str) -> Option<String> {
        let file = self.snapshot.machine.config.iter().find(|file| file.path == path);
        // What was trimmed when it was read ends with a line.
        file.map(|file| format!("{}\n", file.text))
    }

    /// A step that writes a configuration file.
    pub(super) fn file(&self, path: &str, contents: String) -> Step {
        Step::File { before: self.contents(path), path: path.to_owned(), contents }
    }

    /// Why files of these kinds could not all be read.
    pub(super) fn unreadable(&self, kinds: &[ConfigKind]) -> Option<String> {
        let notes = &self.snapshot.unreadable;
        let below = |path: &str, folder: &str| {
            path.strip_prefix('/').is_some_and(|path| path.starts_with(folder))
        };
        let folders = || kinds.iter().flat_map(|kind| folders(*kind)).filter(|f| *f != "etc");
        let note = notes.iter().find(|note| folders().any(|folder| below(&note.path, folder)))?;
        Some(note.to_string())
    }

    /// The pairs that the kernel joined.
    pub(super) fn pairs(&self) -> impl Iterator<Item = (&NicView<'a>, &VfPort<'a>)> {
        self.relations.nics.iter().filter(|nic| nic.joined).filter_map(|nic| {
            let port = self.relations.vf(nic)?;
            Some((nic, port))
        })
    }

    /// Ports that are somebody's VF: joined, or with the MAC of a synthetic NIC, bound or not.
    pub(super) fn vfs(&self) -> impl Iterator<Item = &VfPort<'a>> {
        self.relations.ports.iter().filter(|port| self.is_vf(port))
    }

    /// Whether a port is somebody's VF.
    pub(super) fn is_vf(&self, port: &VfPort<'_>) -> bool {
        let mac = port.link.permanent.or(port.link.mac);
        port.did.is_some() || port.should.is_some() || mac.is_some_and(|mac| self.has_nic(mac))
    }

    fn has_nic(&self, mac: MacAddress) -> bool {
        self.macs.contains(&mac)
    }

    /// Ethernet functions that came over a virtual bus.
    pub(super) fn functions(&self) -> impl Iterator<Item = &'a Function> {
        self.snapshot.functions.iter().filter(|f| f.bus.is_some() && f.is_ethernet())
    }

    /// Whether something has lasted for longer than that. Where nobody knows what time it is, it has if it had when the newest record of
    /// the kernel log was written; otherwise that is said, and the answer is no.
    pub(super) fn older(&self, at: Duration, than: Duration, out: &mut Outcome) -> bool {
        let since = |now: Duration| now.saturating_sub(at) > than;
        if let Some(now) = self.snapshot.uptime {
            return since(now);
        }
        if self.snapshot.log.newest.is_some_and(since) {
            return true;
        }
        out.undecided(
            "how long ago that was is not known: the clock of the kernel log stands still while a machine sleeps, and nothing says what it \
             showed (`netvsc collect` writes it down)",
        );
        false
    }

    /// Why the kernel log does not say what is asked of it.
    pub(super) fn no_log(&self) -> Option<&'static str> {
        if !self.snapshot.log.read {
            Some("the kernel log could not be read; it needs CAP_SYSLOG")
        } else if !self.snapshot.log.complete {
            Some("the kernel log does not go back to the boot")
        } else {
            None
        }
    }

    /// Interfaces that carry the operator's session or a default route, and what they carry. Who belongs to one of them
    /// (its master, what is below it, the other half of a pair) is among them.
    #[must_use]
    pub fn carriers(&self) -> BTreeMap<u32, &'static str> {
        let mut carriers = BTreeMap::new();
        let routes = self.snapshot.routes.as_deref().unwrap_or_default();
        for route in routes.iter().filter(|route| route.is_default()) {
            carriers.extend(route.index.map(|index| (index, "the default route")));
        }
        if let Some((theirs, ours)) = self.session {
            let addresses = self.snapshot.addresses.as_deref().unwrap_or_default();
            let own = addresses.iter().filter(|a| a.address == ours).map(|a| a.index);
            // The most particular route to the other end.
            let way = routes
                .iter()
                .filter(|route| route.unicast && route.covers(theirs))
                .max_by_key(|route| route.prefix)
                .and_then(|route| route.index);
            carriers.extend(own.chain(way).map(|index| (index, "the session that this runs in")));
        }
        let mut open: Vec<u32> = carriers.keys().copied().collect();
        while let Some(index) = open.pop() {
            let what = carriers[&index];
            for relative in self.relatives(index) {
                if carriers.insert(relative, what).is_none() {
                    open.push(relative);
                }
            }
        }
        carriers
    }

    /// Why the steps of a fix should not be taken without asking: which interface they touch, and what it carries.
    #[must_use]
    pub fn guarded(&self, fix: &Fix) -> Option<(String, &'static str)> {
        let carriers = self.carriers();
        // Who does not know the routes knows nobody who may be touched.
        let unknown = self.snapshot.routes.is_none();
        self.touched(fix).into_iter().find_map(|link| {
            let what = link.index.and_then(|index| carriers.get(&index)).copied();
            let what =
                what.or(unknown.then_some("perhaps the default route (the routes are not known)"));
            Some((link.name.clone(), what?))
        })
    }

    /// The interfaces that a fix changes. A file changes none by being written.
    fn touched(&self, fix: &Fix) -> Vec<&NetDevice> {
        let links = &self.snapshot.links;
        let mut touched = Vec::new();
        for step in &fix.steps {
            match step {
                Step::Value { path, value, .. } => {
                    let address = PciAddress::parse(value);
                    touched.extend(links.iter().filter(|link| {
                        let bound = address.is_some_and(|at| link.parent == Parent::Pci(at));
                        bound || path.contains(&format!("/{}/", link.name))
                    }));
                }
                step => touched.extend(links.iter().filter(|link| {
                    step.link().is_some_and(|named| link.index == Some(named.index))
                })),
            }
        }
        touched
    }

    fn relatives(&self, index: u32) -> Vec<u32> {
        let Some(link) = self.snapshot.links.iter().find(|link| link.index == Some(index)) else {
            return Vec::new();
        };
        let names = link.master.iter().chain(&link.uppers).chain(&link.lowers);
        let near = names.filter_map(|name| self.snapshot.link(name)?.index);
        let twins = self.snapshot.links.iter().filter(|other| {
            link.permanent.is_some()
                && other.permanent == link.permanent
                && matches!(
                    (&link.parent, &other.parent),
                    (Parent::Vmbus(_), Parent::Pci(_)) | (Parent::Pci(_), Parent::Vmbus(_))
                )
        });
        near.chain(twins.filter_map(|twin| twin.index)).collect()
    }
}

/// What udev and systemd call the driver of an interface (`ID_NET_DRIVER`). For ConnectX-3 that is not the driver of its PCI
/// function, which udev calls by `DRIVERS` and NetworkManager by `driver:`.
pub(super) fn net_driver<'g>(
    link: &'g NetDevice,
    function: Option<&'g Function>,
) -> Option<&'g str> {
    let of_function = || match function?.driver.as_deref()? {
        "mlx4_core" => Some("mlx4_en"),
        driver => Some(driver),
    };
    link.property("ID_NET_DRIVER").or_else(of_function)
}

/// An interface for a step; none if its number is not known.
pub(super) fn name(link: &NetDevice) -> Option<LinkName> {
    Some(LinkName { index: link.index?, name: link.name.clone() })
}

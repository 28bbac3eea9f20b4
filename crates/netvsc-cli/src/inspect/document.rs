//! What the verbs print as JSON, and the base of what they print for people.
//!
//! `docs/schema` describes it. Keys are never renamed or retyped within a `schema_version`; what is not known is null.

use std::collections::BTreeMap;
use std::time::SystemTime;

use netvsc_linux::inventory::{Snapshot, SoftKind};
use netvsc_linux::relation::{NicView, Relations, VfPort};
use serde::Serialize;

use crate::live::{Live, LiveCounters, LiveNic};

/// Version of everything that is printed as JSON.
pub const SCHEMA_VERSION: u32 = 1;

/// A guest.
#[derive(Debug, Serialize)]
pub struct Document {
    /// [`SCHEMA_VERSION`].
    pub schema_version: u32,
    /// When it was read; null for a snapshot, which has no clock.
    pub generated_at: Option<String>,
    /// From where.
    pub source: Origin,
    /// Whether there is a VMBus.
    pub hyperv: bool,
    /// Release of the kernel.
    pub kernel: Option<String>,
    /// The synthetic NICs.
    pub nics: Vec<Nic>,
    /// Ports of VFs without a NIC.
    pub standalone: Vec<Port>,
    /// Other network cards, which are never candidates.
    pub others: Vec<Other>,
    /// What could not be read.
    pub unreadable: Vec<Unread>,
}

/// Where a document comes from.
#[derive(Debug, Serialize)]
pub struct Origin {
    /// `live` or `snapshot`.
    pub kind: &'static str,
}

/// A synthetic NIC.
#[derive(Debug, Serialize)]
pub struct Nic {
    /// Instance of its offer.
    pub guid: String,
    /// Its interface.
    pub ifname: Option<String>,
    /// The interface's number.
    pub ifindex: Option<u32>,
    /// The interface's other names.
    pub altnames: Vec<String>,
    /// MAC now.
    pub mac: Option<String>,
    /// Permanent MAC.
    pub perm_mac: Option<String>,
    /// Driver.
    pub driver: Option<String>,
    /// MTU in bytes.
    pub mtu: Option<u32>,
    /// `up`, `down` and others.
    pub operstate: Option<String>,
    /// State, in the words of pairing.
    pub state: &'static str,
    /// Why the pair is one.
    pub reason: Option<&'static str>,
    /// Path that the host last confirmed, or that frames were seen to take.
    pub path: Option<&'static str>,
    /// From where that is known.
    pub path_source: Option<&'static str>,
    /// Since when, in seconds since boot.
    pub since: Option<f64>,
    /// What the host last said.
    pub association: Association,
    /// Its VF: joined, or that should be.
    pub vf: Option<Port>,
    /// Whether the kernel joined that VF.
    pub joined: bool,
    /// What stands between it and acceleration.
    pub obstacle: Option<String>,
    /// How many channels it has.
    pub channel_count: Option<usize>,
    /// Its channels, where they were asked for.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub channels: Vec<Channel>,
    /// Transmit and receive queues, where they were asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub queues: Option<Queues>,
    /// Counters of the interface, where they were asked for.
    pub counters: BTreeMap<&'static str, u64>,
    /// The run that drives it from user space, if one does.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub run: Option<Driven>,
}

/// How a NIC is driven from user space, as the run itself tells.
#[derive(Debug, Serialize)]
pub struct Driven {
    /// Its process.
    pub pid: u32,
    /// The TAP interface that stands for the NIC.
    pub ifname: String,
    /// The kernel's interface that is its VF, while it has one.
    pub vf: Option<String>,
    /// Channels in use.
    pub queues: usize,
    /// What it has counted.
    pub counters: LiveCounters,
}

/// What the host last said about a NIC.
#[derive(Debug, Serialize)]
pub struct Association {
    /// Whether a VF is allocated; null if nobody can tell.
    pub allocated: Option<bool>,
    /// The serial, while one is.
    pub serial: Option<u32>,
    /// From where this is known.
    pub source: Option<&'static str>,
}

/// A port of a VF.
#[derive(Debug, Serialize)]
pub struct Port {
    /// Its interface.
    pub ifname: String,
    /// The interface's number.
    pub ifindex: Option<u32>,
    /// The interface's other names.
    pub altnames: Vec<String>,
    /// Address of its function.
    pub pci: String,
    /// Domain of that.
    pub domain: u32,
    /// Instance of the virtual bus.
    pub bus_guid: Option<String>,
    /// Vendor and device, in hexadecimal.
    pub ids: Option<String>,
    /// Driver.
    pub driver: Option<String>,
    /// Which port of the function.
    pub port: u32,
    /// Slot of the function.
    pub slot: Slot,
    /// MAC now.
    pub mac: Option<String>,
    /// Permanent MAC.
    pub perm_mac: Option<String>,
    /// MTU in bytes.
    pub mtu: Option<u32>,
    /// `up`, `down` and others.
    pub operstate: Option<String>,
    /// From where it is known to be the NIC's: `link` or `mac`.
    pub source: Option<&'static str>,
    /// `standalone` for a port without NIC, null otherwise.
    pub state: Option<&'static str>,
    /// Transmit and receive queues, where they were asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub queues: Option<Queues>,
    /// Counters of the interface, where they were asked for.
    pub counters: BTreeMap<&'static str, u64>,
}

/// A slot of PCI functions.
#[derive(Debug, Serialize)]
pub struct Slot {
    /// Its name.
    pub name: Option<String>,
    /// The serial that it stands for.
    pub serial: Option<u32>,
    /// From where the serial is known.
    pub source: Option<&'static str>,
}

/// A channel.
#[derive(Debug, Serialize)]
pub struct Channel {
    /// Its number.
    pub id: u32,
    /// Processor of its interrupts.
    pub cpu: Option<u32>,
    /// 0 for the primary one.
    pub subchannel: Option<u32>,
    /// What it has counted.
    pub counters: BTreeMap<&'static str, u64>,
}

/// How many queues.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Queues {
    /// To transmit.
    pub tx: u32,
    /// To receive.
    pub rx: u32,
}

/// A network card that is no candidate.
#[derive(Debug, Serialize)]
pub struct Other {
    /// Its interface.
    pub ifname: String,
    /// The interface's number.
    pub ifindex: Option<u32>,
    /// MAC now.
    pub mac: Option<String>,
    /// What it is and which rule keeps it out.
    pub refusal: String,
}

/// A file that could not be read.
#[derive(Debug, Serialize)]
pub struct Unread {
    /// Its path.
    pub path: String,
    /// Why.
    pub why: String,
}

/// When a guest was read; none for a snapshot, which has no clock.
#[must_use]
pub fn generated_at(snapshot: &Snapshot) -> Option<String> {
    snapshot.live.then(|| humantime::format_rfc3339_seconds(SystemTime::now()).to_string())
}

impl Origin {
    /// Where a snapshot comes from.
    #[must_use]
    pub fn of(snapshot: &Snapshot) -> Self {
        Self { kind: if snapshot.live { "live" } else { "snapshot" } }
    }
}

impl Unread {
    /// All that could not be read.
    #[must_use]
    pub fn all(snapshot: &Snapshot) -> Vec<Self> {
        let unread = |note: &netvsc_linux::inventory::Unreadable| Self {
            path: note.path.clone(),
            why: note.why.clone(),
        };
        snapshot.unreadable.iter().map(unread).collect()
    }
}

impl Document {
    /// Everything of a snapshot. Devices made by software are left out: there can be thousands.
    #[must_use]
    pub fn of(snapshot: &Snapshot, relations: &Relations<'_>) -> Self {
        let others = relations.others.iter().filter(|(link, _)| {
            link.parent != netvsc_linux::inventory::Parent::None || link.soft == SoftKind::Bond
        });
        Self {
            schema_version: SCHEMA_VERSION,
            generated_at: generated_at(snapshot),
            source: Origin::of(snapshot),
            hyperv: snapshot.hyperv,
            kernel: snapshot.release.clone(),
            nics: relations.nics.iter().map(|nic| Nic::of(nic, relations)).collect(),
            standalone: relations.standalone().map(|port| Port::of(port, None)).collect(),
            others: others
                .map(|(link, refusal)| Other {
                    ifname: link.name.clone(),
                    ifindex: link.index,
                    mac: link.mac.map(|mac| mac.to_string()),
                    refusal: refusal.to_string(),
                })
                .collect(),
            unreadable: Unread::all(snapshot),
        }
    }
}

impl Document {
    /// Adds what runs tell that drive NICs of this guest from user space.
    pub fn hear(&mut self, live: &[Live]) {
        for run in live {
            for told in &run.nics {
                let same = |nic: &&mut Nic| told.guid.as_ref() == Some(&nic.guid);
                if let Some(nic) = self.nics.iter_mut().find(same) {
                    nic.take_from(run, told);
                }
            }
        }
    }
}

impl Nic {
    fn of(view: &NicView<'_>, relations: &Relations<'_>) -> Self {
        let link = view.link;
        let channels = view.device.channels.iter().map(|channel| Channel {
            id: channel.id,
            cpu: channel.cpu,
            subchannel: channel.subchannel,
            counters: channel.counters.clone(),
        });
        Self {
            guid: view.device.guid.to_string(),
            ifname: link.map(|link| link.name.clone()),
            ifindex: link.and_then(|link| link.index),
            altnames: link.map(|link| link.altnames().to_vec()).unwrap_or_default(),
            mac: link.and_then(|link| link.mac).map(|mac| mac.to_string()),
            perm_mac: link.and_then(|link| link.permanent).map(|mac| mac.to_string()),
            driver: view.device.driver.clone(),
            mtu: link.and_then(|link| link.mtu),
            operstate: link.and_then(|link| link.operstate.clone()),
            state: view.state.word(),
            reason: view.reason.map(netvsc::pairing::Reason::word),
            path: view.path.map(|path| match path {
                netvsc::port::Path::Synthetic => "synthetic",
                netvsc::port::Path::Vf => "vf",
            }),
            path_source: view.path_source.map(netvsc_linux::inventory::Source::word),
            since: view.since.map(|since| since.as_secs_f64()),
            association: Association {
                allocated: view.association.map(|told| told.value.is_some()),
                serial: view.association.and_then(|told| told.value).map(|serial| serial.0),
                source: view.association.map(|told| told.source.word()),
            },
            vf: relations
                .vf(view)
                .map(|port| Port::of(port, Some(if view.joined { "link" } else { "mac" }))),
            joined: view.joined,
            obstacle: view.obstacle.map(|obstacle| obstacle.to_string()),
            channel_count: Some(view.device.mapping.len()).filter(|count| *count > 0),
            channels: channels.collect(),
            queues: link.and_then(|link| link.queues).map(|(tx, rx)| Queues { tx, rx }),
            counters: link.map(|link| link.counters.clone()).unwrap_or_default(),
            run: None,
        }
    }

    /// What the kernel does not know of a NIC that it does not have.
    fn take_from(&mut self, run: &Live, nic: &LiveNic) {
        self.mac = self.mac.take().or_else(|| nic.mac.clone());
        self.mtu = self.mtu.or(nic.mtu);
        self.path = match nic.path.as_deref() {
            Some("vf") => Some("vf"),
            Some("synthetic") => Some("synthetic"),
            _ => self.path,
        };
        self.run = Some(Driven {
            pid: run.pid,
            ifname: nic.device.clone(),
            vf: nic.vf.clone(),
            queues: nic.queues,
            counters: nic.counters,
        });
    }
}

impl Port {
    fn of(port: &VfPort<'_>, source: Option<&'static str>) -> Self {
        let VfPort { function, link, serial, .. } = port;
        let ids = function.vendor.zip(function.device);
        Self {
            ifname: link.name.clone(),
            ifindex: link.index,
            altnames: link.altnames().to_vec(),
            pci: function.address.to_string(),
            domain: function.address.domain,
            bus_guid: function.bus.map(|bus| bus.to_string()),
            ids: ids.map(|(vendor, device)| format!("{vendor:04x}:{device:04x}")),
            driver: function.driver.clone(),
            port: link.port,
            slot: Slot {
                name: function.slot.clone(),
                serial: serial.map(|serial| serial.value.0),
                source: serial.map(|serial| serial.source.word()),
            },
            mac: link.mac.map(|mac| mac.to_string()),
            perm_mac: link.permanent.map(|mac| mac.to_string()),
            mtu: link.mtu,
            operstate: link.operstate.clone(),
            source,
            state: source.is_none().then_some("standalone"),
            queues: link.queues.map(|(tx, rx)| Queues { tx, rx }),
            counters: link.counters.clone(),
        }
    }
}

//! The metrics themselves: what each is called, what it means, and how it follows from a snapshot of a guest.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use netvsc_linux::check::{Report, Severity, checks};
use netvsc_linux::inventory::{LogEvent, NetDevice, Snapshot, Subject, Unreadable, VmbusDevice};
use netvsc_linux::relation::{NicView, Relations, State};
use serde::Serialize;

use super::driven::driven;
use crate::live::{Answers, Live};

/// What kind of number it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// It may go up and down.
    Gauge,
    /// It only grows, until what counts it begins anew.
    Counter,
}

/// One number.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Sample {
    /// Names and values that tell it from others of its family, in a fixed order.
    pub labels: BTreeMap<&'static str, String>,
    /// The number.
    pub value: f64,
}

/// A metric and all its numbers.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Family {
    /// Its name.
    pub name: &'static str,
    /// What it means, in a sentence.
    pub help: &'static str,
    /// What kind of number it is.
    #[serde(rename = "type")]
    pub kind: Kind,
    /// Its numbers. A family without any is not told.
    pub samples: Vec<Sample>,
}

/// States that a NIC can be in.
const STATES: [State; 7] = [
    State::Synthetic,
    State::Waiting,
    State::Pending,
    State::Paired,
    State::Accelerated,
    State::Conflict,
    State::Unknown,
];

/// What is counted by whoever looks, and not by the guest.
#[derive(Clone, Debug, Default)]
pub struct Observer {
    /// When the snapshot was taken, in seconds since 1970; none for a guest that is not this one.
    pub at: Option<f64>,
    /// What could not be read so far, by kind of source.
    pub unreadable: BTreeMap<&'static str, u64>,
    /// Times that something was missed and everything looked at anew, by source.
    pub resyncs: BTreeMap<&'static str, u64>,
    /// Whether interrupts and full rings are counted by channel.
    pub per_channel: bool,
    /// What runs tell that drive NICs from user space.
    pub live: Vec<Live>,
}

impl Observer {
    /// Takes note of what a snapshot lacks.
    pub fn note(&mut self, snapshot: &Snapshot) {
        for source in SOURCES {
            self.unreadable.entry(source).or_default();
        }
        for note in &snapshot.unreadable {
            *self.unreadable.entry(source(note)).or_default() += 1;
        }
        *self.resyncs.entry("kernel-log").or_default() += snapshot.log.lost;
    }

    /// Takes note of what runs told, and of those that told nothing, which are returned.
    pub fn hear(&mut self, answers: Answers) -> Vec<(PathBuf, String)> {
        *self.unreadable.entry("run").or_default() += answers.failed.len() as u64;
        self.live = answers.live;
        answers.failed
    }
}

/// Kinds of sources that something can be unreadable in.
const SOURCES: [&str; 6] = ["sysfs", "proc", "kernel-log", "udev", "netlink", "config"];

fn source(note: &Unreadable) -> &'static str {
    let path = note.path.as_str();
    match path {
        _ if path.starts_with("/sys/") => "sysfs",
        _ if path.starts_with("/proc/") => "proc",
        _ if path.starts_with("/dev/kmsg") => "kernel-log",
        _ if path.starts_with("/run/udev") => "udev",
        _ if path.starts_with("/etc/") || path.starts_with("/run/") => "config",
        _ if path.starts_with("/usr/") || path.starts_with("/lib/") => "config",
        _ => "netlink",
    }
}

/// Families in the order in which their first numbers came.
#[derive(Default)]
pub(super) struct Families(pub(super) Vec<Family>);

impl Families {
    pub(super) fn family(
        &mut self,
        name: &'static str,
        kind: Kind,
        help: &'static str,
    ) -> &mut Vec<Sample> {
        let at = self.0.iter().position(|family| family.name == name).unwrap_or_else(|| {
            self.0.push(Family { name, help, kind, samples: Vec::new() });
            self.0.len() - 1
        });
        &mut self.0[at].samples
    }
}

pub(super) fn sample<const N: usize>(labels: [(&'static str, String); N], value: f64) -> Sample {
    Sample { labels: labels.into(), value }
}

/// What the program was built from, if whoever built it said so in `NETVSC_COMMIT`: it need not have been a checkout.
const COMMIT: &str = match option_env!("NETVSC_COMMIT") {
    Some(commit) => commit,
    None => "unknown",
};

/// All metrics of a guest, those without numbers left out.
#[must_use]
pub fn of(
    snapshot: &Snapshot,
    relations: &Relations<'_>,
    report: &Report,
    observer: &Observer,
) -> Vec<Family> {
    let mut all = Families::default();
    let (version, commit) = (env!("CARGO_PKG_VERSION").to_owned(), COMMIT.to_owned());
    all.family("netvsc_build_info", Kind::Gauge, "Always 1; says which program tells this.")
        .push(sample([("version", version), ("commit", commit)], 1.0));
    for nic in &relations.nics {
        pair(&mut all, relations, nic);
        switches(&mut all, snapshot, nic);
        traffic(&mut all, nic);
        rings(&mut all, nic, observer.per_channel);
        leaks(&mut all, snapshot, relations, nic);
    }
    for port in relations.standalone() {
        state(&mut all, &port.link.name, State::Standalone, &[State::Standalone]);
    }
    let names = relations.nics.iter().map(NicView::name).collect();
    driven(&mut all, &observer.live, names);
    if snapshot.hyperv {
        check_status(&mut all, report);
    }
    observed(&mut all, observer);
    all.0.retain(|family| !family.samples.is_empty());
    all.0
}

fn state(all: &mut Families, device: &str, now: State, states: &[State]) {
    let help = "1 for the state that a NIC is in, 0 for the others.";
    let family = all.family("netvsc_state", Kind::Gauge, help);
    for state in states {
        let labels = [("device", device.to_owned()), ("state", state.word().to_owned())];
        family.push(sample(labels, f64::from(u8::from(*state == now))));
    }
}

fn pair(all: &mut Families, relations: &Relations<'_>, nic: &NicView<'_>) {
    let device = nic.name();
    state(all, &device, nic.state, &STATES);
    if let Some(path) = nic.path {
        let vf = f64::from(u8::from(path == netvsc::Path::Vf));
        all.family("netvsc_datapath_vf", Kind::Gauge, ON_VF)
            .push(sample([("device", device.clone())], vf));
    }
    let port = relations.vf(nic);
    let vf = port.map(|port| port.link.name.clone()).unwrap_or_default();
    let pci = port.map(|port| port.function.address.to_string()).unwrap_or_default();
    let driver = port.and_then(|port| port.function.driver.clone()).unwrap_or_default();
    let serial = nic.association.and_then(|it| it.value);
    let serial = serial.or_else(|| port.and_then(|port| port.serial).map(|it| it.value));
    let labels = [
        ("device", device),
        ("guid", nic.device.guid.to_string()),
        ("vf", vf),
        ("pci", pci),
        ("driver", driver),
        ("serial", serial.map(|serial| serial.0.to_string()).unwrap_or_default()),
        ("match", nic.reason.map(|reason| reason.word().to_owned()).unwrap_or_default()),
    ];
    let help = "Always 1; who is paired with whom. A NIC without VF has no names for it.";
    all.family("netvsc_pair_info", Kind::Gauge, help).push(sample(labels, 1.0));
}

/// What the kernel log tells, if it goes back to the boot: otherwise the numbers would shrink as it is overwritten.
fn switches(all: &mut Families, snapshot: &Snapshot, nic: &NicView<'_>) {
    let (log, device) = (&snapshot.log, nic.name());
    if !log.read || !log.complete || log.lost > 0 {
        return;
    }
    let (mut to_vf, mut to_synthetic, mut absent) = (0_u32, 0_u32, Duration::ZERO);
    let mut gone: Option<Duration> = None;
    for line in log.about(Subject::Vmbus(nic.device.guid)) {
        match line.event {
            LogEvent::SwitchedToVf => to_vf += 1,
            LogEvent::SwitchedFromVf => to_synthetic += 1,
            LogEvent::Unregistering(_) => gone = Some(line.at),
            LogEvent::Registering(_) => {
                absent += gone.take().map_or(Duration::ZERO, |since| line.at.saturating_sub(since));
            }
            _ => {}
        }
    }
    let absent = match (gone, snapshot.uptime) {
        (None, _) => Some(absent),
        (Some(since), now) => now.map(|now| absent + now.saturating_sub(since)),
    };
    let family = all.family("netvsc_datapath_switches_total", Kind::Counter, SWITCHES);
    for (to, count) in [("vf", to_vf), ("synthetic", to_synthetic)] {
        let labels = [("device", device.clone()), ("to", to.to_owned())];
        family.push(sample(labels, f64::from(count)));
    }
    let Some(absent) = absent else { return };
    let help = "Time that a NIC has been without a VF that it had before, since boot.";
    all.family("netvsc_vf_absent_seconds_total", Kind::Counter, help)
        .push(sample([("device", device)], absent.as_secs_f64()));
}

pub(super) const ON_VF: &str =
    "1 if the host has confirmed that frames go through the VF, 0 if they go the synthetic way.";
pub(super) const SWITCHES: &str = "Switches of a NIC's data path that the host has confirmed, since boot; those of a NIC that `netvsc run` drives, since that began.";
/// Packets or bytes of a NIC, by direction.
const TRAFFIC: [(&str, &str, &str, &str); 4] = [
    ("netvsc_receive_packets_total", "rx_packets", "vf_rx_packets", RECEIVED_PACKETS),
    ("netvsc_receive_bytes_total", "rx_bytes", "vf_rx_bytes", RECEIVED_BYTES),
    ("netvsc_transmit_packets_total", "tx_packets", "vf_tx_packets", SENT_PACKETS),
    ("netvsc_transmit_bytes_total", "tx_bytes", "vf_tx_bytes", SENT_BYTES),
];
pub(super) const RECEIVED_PACKETS: &str = "Packets that a NIC received, by path. The paths add up to what the interface counts; a VF's own interface counts its share once more.";
const RECEIVED_BYTES: &str = "Bytes that a NIC received, by path. The paths add up to what the interface counts; a VF's own interface counts its share once more.";
pub(super) const SENT_PACKETS: &str = "Packets that a NIC sent, by path. The paths add up to what the interface counts; a VF's own interface counts its share once more.";
const SENT_BYTES: &str = "Bytes that a NIC sent, by path. The paths add up to what the interface counts; a VF's own interface counts its share once more.";

fn traffic(all: &mut Families, nic: &NicView<'_>) {
    let Some(link) = nic.link else { return };
    let device = nic.name();
    for (name, total, share, help) in TRAFFIC {
        let (Some(total), Some(share)) = (count(link, total), link.shares.get(share)) else {
            continue;
        };
        // The two are read one after the other.
        let synthetic = total.saturating_sub(*share);
        let family = all.family(name, Kind::Counter, help);
        for (path, value) in [("vf", *share), ("synthetic", synthetic)] {
            let labels = [("device", device.clone()), ("path", path.to_owned())];
            family.push(sample(labels, value as f64));
        }
    }
    if let Some(dropped) = link.shares.get("vf_tx_dropped") {
        let help = "Packets that a NIC's VF did not take.";
        all.family("netvsc_vf_transmit_dropped_total", Kind::Counter, help)
            .push(sample([("device", device)], *dropped as f64));
    }
}

fn count(link: &NetDevice, name: &str) -> Option<u64> {
    link.counters.get(name).copied()
}

fn rings(all: &mut Families, nic: &NicView<'_>, per_channel: bool) {
    let counted = [
        (
            "netvsc_vmbus_ring_full_total",
            "out_full_total",
            "Times that a ring of a NIC to the host was full.",
        ),
        ("netvsc_vmbus_interrupts_total", "interrupts", "Interrupts of a NIC's channels."),
    ];
    for (name, counter, help) in counted {
        let channels = by_channel(nic.device, counter);
        if channels.is_empty() {
            continue;
        }
        let family = all.family(name, Kind::Counter, help);
        if per_channel {
            for (channel, value) in channels {
                let labels = [("device", nic.name()), ("channel", channel.to_string())];
                family.push(sample(labels, value as f64));
            }
        } else {
            let sum: u64 = channels.iter().map(|(_, value)| value).sum();
            family.push(sample([("device", nic.name())], sum as f64));
        }
    }
}

fn by_channel(device: &VmbusDevice, counter: &str) -> Vec<(u32, u64)> {
    let channels = device.channels.iter();
    channels.filter_map(|channel| Some((channel.id, *channel.counters.get(counter)?))).collect()
}

fn leaks(all: &mut Families, snapshot: &Snapshot, relations: &Relations<'_>, nic: &NicView<'_>) {
    let (Some(addresses), Some(port)) = (&snapshot.addresses, relations.vf(nic)) else { return };
    let Some(index) = port.link.index.filter(|_| nic.joined) else { return };
    let help = "Addresses that a VF has although it belongs to a NIC: it should have none.";
    let family = all.family("netvsc_address_leak", Kind::Gauge, help);
    for (word, v6) in [("ipv4", false), ("ipv6", true)] {
        let own = addresses.iter().filter(|it| it.index == index && it.address.is_ipv6() == v6);
        let labels =
            [("device", nic.name()), ("vf", port.link.name.clone()), ("family", word.to_owned())];
        family.push(sample(labels, own.count() as f64));
    }
}

/// Every check, and what each finding is about; 0 fine, 1 to be mended, 2 to be mended now, 3 nobody can tell.
fn check_status(all: &mut Families, report: &Report) {
    let help = "What `netvsc check` finds: 0 nothing, 1 something to be mended, 2 to be mended now, 3 not decided. Device is empty where there is nothing to name.";
    let family = all.family("netvsc_check_status", Kind::Gauge, help);
    for check in checks() {
        let mut worst: BTreeMap<&str, u8> = BTreeMap::new();
        for finding in report.findings.iter().filter(|finding| finding.id == check.id) {
            let status = match finding.severity {
                Severity::Ok | Severity::Info => 0,
                Severity::Warn => 1,
                Severity::Critical => 2,
            };
            let entry = worst.entry(finding.subject.as_str()).or_default();
            *entry = status.max(*entry);
        }
        if worst.is_empty() {
            let undecided = report.undecided.iter().any(|it| it.id == check.id);
            worst.insert("", if undecided { 3 } else { 0 });
        }
        for (device, status) in worst {
            let labels = [("check", check.id.to_owned()), ("device", device.to_owned())];
            family.push(sample(labels, f64::from(status)));
        }
    }
}

fn observed(all: &mut Families, observer: &Observer) {
    if let Some(at) = observer.at {
        let help = "When this was read, in seconds since 1970.";
        all.family("netvsc_last_scan_timestamp_seconds", Kind::Gauge, help).push(sample([], at));
    }
    let counted = [
        (
            "netvsc_resyncs_total",
            "Times that something was overwritten before it was read, so that all was looked at anew.",
            &observer.resyncs,
        ),
        ("netvsc_unreadable_total", "What could not be read.", &observer.unreadable),
    ];
    for (name, help, counts) in counted {
        let family = all.family(name, Kind::Counter, help);
        for (source, count) in counts {
            family.push(sample([("source", (*source).to_owned())], *count as f64));
        }
    }
}

//! Metrics of NICs that `netvsc run` drives: what the kernel cannot tell comes from the run itself, under the same names.

use std::collections::BTreeSet;

use crate::live::{Live, LiveNic};

use super::families::{Families, Kind, ON_VF, RECEIVED_PACKETS, SENT_PACKETS, SWITCHES, sample};

/// Adds what runs have told. `taken` are the names of the NICs that are told of already: interfaces in different network namespaces may
/// share one, and a second one has its process behind the name.
pub(super) fn driven(all: &mut Families, live: &[Live], mut taken: BTreeSet<String>) {
    for run in live {
        let help = "How long a `netvsc run` has been running.";
        all.family("netvsc_run_uptime_seconds", Kind::Gauge, help)
            .push(sample([("pid", run.pid.to_string())], run.uptime_seconds));
        for nic in &run.nics {
            let mut name = nic.device.clone();
            if !taken.insert(name.clone()) {
                name = format!("{name}@{}", run.pid);
                taken.insert(name.clone());
            }
            of_nic(all, run, nic, &name);
        }
    }
}

fn of_nic(all: &mut Families, run: &Live, nic: &LiveNic, name: &str) {
    let device = || ("device", name.to_owned());
    let labels = [
        device(),
        ("guid", nic.guid.clone().unwrap_or_default()),
        ("vf", nic.vf.clone().unwrap_or_default()),
        ("host", run.host.clone()),
        ("pid", run.pid.to_string()),
        ("version", run.version.clone()),
    ];
    let help = "Always 1; a NIC that `netvsc run` drives, and in which process.";
    all.family("netvsc_run_info", Kind::Gauge, help).push(sample(labels, 1.0));
    if let Some(path) = &nic.path {
        let vf = f64::from(u8::from(path == "vf"));
        all.family("netvsc_datapath_vf", Kind::Gauge, ON_VF).push(sample([device()], vf));
    }
    let help = "Channels that `netvsc run` uses of a NIC.";
    all.family("netvsc_run_queues", Kind::Gauge, help).push(sample([device()], nic.queues as f64));
    let counters = &nic.counters;
    let both = [
        (
            "netvsc_transmit_packets_total",
            SENT_PACKETS,
            ("path", [("vf", counters.sent_vf), ("synthetic", counters.sent_synthetic)]),
        ),
        (
            "netvsc_receive_packets_total",
            RECEIVED_PACKETS,
            ("path", [("vf", counters.received_vf), ("synthetic", counters.received_synthetic)]),
        ),
        (
            "netvsc_datapath_switches_total",
            SWITCHES,
            (
                "to",
                [("vf", counters.switches_to_vf), ("synthetic", counters.switches_to_synthetic)],
            ),
        ),
    ];
    for (name, help, (label, values)) in both {
        let family = all.family(name, Kind::Counter, help);
        for (which, value) in values {
            family.push(sample([device(), (label, which.to_owned())], value as f64));
        }
    }
    let single = [
        (
            "netvsc_run_resent_packets_total",
            "Packets that `netvsc run` sent again since a VF never confirmed them.",
            counters.resent,
        ),
        (
            "netvsc_run_lost_packets_total",
            "Packets that neither a VF nor the synthetic path took.",
            counters.lost,
        ),
        (
            "netvsc_run_pushed_back_total",
            "Times that a packet of the kernel's had to wait for room.",
            counters.pushed_back,
        ),
        (
            "netvsc_run_unsendable_packets_total",
            "Packets of the kernel's that can never be sent.",
            counters.unsendable,
        ),
        (
            "netvsc_run_refused_packets_total",
            "Received packets that the kernel did not take: its interface is down or slow.",
            counters.refused,
        ),
    ];
    for (name, help, value) in single {
        all.family(name, Kind::Counter, help).push(sample([device()], value as f64));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_series_have_the_same_labels() {
        let nic = |device: &str| LiveNic {
            device: device.into(),
            path: Some("vf".into()),
            ..LiveNic::default()
        };
        let run = |pid| Live { pid, ..Live::new("unix", 1.0, vec![nic("nv0"), nic("eth0")]) };
        let mut all = Families::default();
        driven(&mut all, &[run(7), run(8)], ["eth0".to_owned()].into());
        for family in all.0 {
            let mut seen = BTreeSet::new();
            let labels = family.samples.iter().map(|sample| format!("{:?}", sample.labels));
            assert!(labels.into_iter().all(|labels| seen.insert(labels)), "{}", family.name);
            let own = |sample: &&super::super::families::Sample| {
                sample.labels.get("device").is_some_and(|device| device == "nv0@8")
            };
            if family.name == "netvsc_datapath_vf" {
                assert_eq!(family.samples.iter().filter(own).count(), 1);
            }
        }
    }
}

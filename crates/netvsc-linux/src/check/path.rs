//! Whether frames go through the VF, and whether that stays so.

use std::time::Duration;

use netvsc::port::Path;

use super::Check;
use super::finding::{Finding, Label, Outcome, Severity};
use super::fix::{Fix, Step};
use super::guest::{self, Guest};
use super::pair::rebind;
use crate::inventory::{LogEvent, NetDevice, Source, Subject};
use crate::relation::{VfPort, switches};

pub(super) const CHECKS: [Check; 3] = [
    Check::new(
        "path.synthetic",
        "warn after 5 minutes, critical after an hour",
        "a NIC and its VF are joined, and the host has not switched to the VF",
        synthetic,
    ),
    Check::new(
        "path.frozen",
        "critical",
        "frames are sent, and none of them through the VF that they should take",
        frozen,
    ),
    Check::new("path.flap", "warn", "the path is switched, or the VF taken away, too often", flap),
];

const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(86_400);

fn synthetic(guest: &Guest<'_>, out: &mut Outcome) {
    for (nic, port) in guest.pairs() {
        let Some(path) = nic.path else {
            out.undecided(guest.no_log().unwrap_or("the kernel log is silent about the path"));
            continue;
        };
        // The kernel opens a VF with its NIC: one that is down below a NIC that is up was set down by somebody.
        let down = port.link.is_up() == Some(false);
        let unwanted = down && nic.link.and_then(NetDevice::is_up) != Some(true);
        if path != Path::Synthetic || unwanted {
            continue;
        }
        // Since the join, if the path was never another one.
        let joined = guest.snapshot.log.about(Subject::Pci(port.function.address)).rev();
        let joined = joined.into_iter().find(|line| matches!(line.event, LogEvent::Joined(_)));
        let joined = joined.map(|line| line.at);
        let Some(since) = nic.since.max(joined) else {
            out.undecided("the kernel log does not say when the VF was joined");
            continue;
        };
        let severity = if guest.older(since, guest.thresholds.synthetic_critical, out) {
            Severity::Critical
        } else if guest.older(since, guest.thresholds.synthetic_warn, out) {
            Severity::Warn
        } else {
            continue;
        };
        let (name, vf) = (nic.name(), &port.link.name);
        let text = if down {
            format!("{vf}, the VF of {name}, is down, and frames go the synthetic way")
        } else {
            format!("{name} and {vf} are joined, and frames still go the synthetic way")
        };
        let mut finding = Finding::new(severity, name, text).because(
            "joined",
            Label::Pair(Source::Link),
            format!("{}/master", port.link.path),
        );
        if down {
            let path = format!("{}/flags", port.link.path);
            finding = finding.because("VF is down", Label::Sysfs, path);
        }
        let finding = finding.logged("no switch to the VF since then").since(Some(since));
        out.find(finding.fix(up(port, down)));
    }
}

/// Has the kernel ask the host for the VF's path, which it does when a VF goes up.
fn up(port: &VfPort<'_>, down: bool) -> Fix {
    let vf = &port.link.name;
    let step = |up: bool| Some(Step::Up { link: guest::name(port.link)?, up });
    let steps = |states: &[bool]| states.iter().filter_map(|up| step(*up)).collect();
    if down {
        // Whoever set it down may have had a reason.
        let words = format!("ip link set dev {vf} up, and find out who set it down");
        return Fix::rough(words, steps(&[true]));
    }
    let words = "set the VF down and up, so that the kernel asks the host again";
    Fix::safe(words, steps(&[false, true]))
}

fn frozen(guest: &Guest<'_>, out: &mut Outcome) {
    let samples = &guest.snapshot.machine.samples;
    for (nic, port) in guest.pairs().filter(|(nic, _)| nic.path == Some(Path::Vf)) {
        if samples.len() < 3 {
            out.undecided("three samples of the counters are needed");
            continue;
        }
        let sent = |index: Option<u32>| -> Option<Vec<u64>> {
            let index = index?;
            samples.iter().map(|sample| sample.get(&index).map(|packets| packets.sent)).collect()
        };
        let Some(link) = nic.link else { continue };
        let (Some(above), Some(below)) = (sent(link.index), sent(port.link.index)) else {
            out.undecided("the samples do not hold both interfaces");
            continue;
        };
        // What is sent while the path is the VF is sent by the VF; what comes in may come either way.
        let moves = above.windows(2).all(|two| two[1] > two[0]);
        let stands =
            below.windows(2).all(|two| two[1] == two[0]) && port.link.is_up() != Some(false);
        if !moves || !stands {
            continue;
        }
        let name = &link.name;
        let frames = above.last().zip(above.first()).map_or(0, |(last, first)| last - first);
        let text = format!("{name} sent {frames} frames and its VF {} none", port.link.name);
        let finding = Finding::new(Severity::Critical, name.clone(), text)
            .because(
                format!("{above:?} frames sent"),
                Label::Counters,
                format!("{}/statistics/tx_packets", link.path),
            )
            .because(
                format!("{below:?} frames sent"),
                Label::Counters,
                format!("{}/statistics/tx_packets", port.link.path),
            )
            .logged("Data path switched to VF")
            .since(nic.since)
            .fix(rebind(port, false));
        out.find(finding);
    }
}

fn flap(guest: &Guest<'_>, out: &mut Outcome) {
    let limits = guest.thresholds;
    let Some(now) = guest.snapshot.uptime else { return out.undecided("the uptime is not known") };
    for nic in &guest.relations.nics {
        let guid = nic.device.guid;
        let switches = switches(guest.snapshot, guid, HOUR);
        let removals = guest
            .snapshot
            .log
            .about(Subject::Vmbus(guid))
            .filter(|line| line.at >= now.saturating_sub(DAY))
            .filter(|line| matches!(line.event, LogEvent::Dissociated(_)))
            .count();
        let text = if switches > limits.switches_per_hour {
            format!("the path of {} was switched {switches} times within an hour", nic.name())
        } else if removals > limits.removals_per_day {
            format!("the VF of {} was taken away {removals} times within a day", nic.name())
        } else {
            continue;
        };
        let finding = Finding::new(Severity::Warn, nic.name(), text)
            .logged(format!("{switches} switches in the last hour, {removals} removals in the last day"))
            .fix(Fix::advice(
                "the host decides; `netvsc watch` tells when, so that what suffers can be moved before (Azure announces \
                 maintenance as scheduled events)",
            ));
        out.find(finding);
    }
    if !guest.snapshot.log.read {
        out.undecided(guest.no_log().unwrap_or_default());
    }
}

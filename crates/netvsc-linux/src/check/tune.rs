//! Whether both layers are set so that frames flow: MTU, queues, rings, interrupts, queueing.

use super::Check;
use super::finding::{Finding, Label, Outcome, Severity};
use super::fix::{Fix, Step};
use super::guest::{self, Guest};
use crate::inventory::{ConfigKind, LogEvent, NetDevice, Source, Subject};

pub(super) const CHECKS: [Check; 6] = [
    Check::new("mtu.mismatch", "warn", "a NIC and its VF have different MTUs", mtu_mismatch),
    Check::new("mtu.max", "warn", "an MTU is wanted that a driver does not take", mtu_max),
    Check::new("queue.few", "info", "there are fewer queues than processors allow", queue_few),
    Check::new(
        "ring.small",
        "info",
        "frames are dropped for want of room in a small ring",
        ring_small,
    ),
    Check::new("irq.spread", "info", "few processors take all interrupts of a VF", irq_spread),
    Check::new("qdisc.double", "info", "frames are queued fairly on both layers", qdisc_double),
];

fn mtu_mismatch(guest: &Guest<'_>, out: &mut Outcome) {
    for (nic, port) in guest.pairs() {
        let Some(link) = nic.link else { continue };
        let (Some(above), Some(below)) = (link.mtu, port.link.mtu) else { continue };
        if above == below {
            continue;
        }
        let text = format!(
            "{} has MTU {above}, its VF {} has {below}; frames that fit one are lost on the other",
            link.name, port.link.name
        );
        let fits =
            port.link.told.as_ref().and_then(|told| told.max_mtu).is_none_or(|max| above <= max);
        let steps = guest::name(port.link).filter(|_| fits);
        let steps = steps.map(|link| vec![Step::Mtu { link, mtu: above, before: below }]);
        let finding = Finding::new(Severity::Warn, link.name.clone(), text)
            .because(format!("MTU {above}"), Label::Sysfs, format!("{}/mtu", link.path))
            .because(format!("MTU {below}"), Label::Sysfs, format!("{}/mtu", port.link.path))
            .fix(Fix::safe(
                format!("set both to {}: ip link set dev {} mtu {above}", above, port.link.name),
                steps.unwrap_or_default(),
            ));
        out.find(finding);
    }
}

/// Who can take no more than what: the lesser of a NIC and its VF.
fn limit<'g>(links: &[&'g NetDevice]) -> Option<(&'g NetDevice, u32)> {
    let limits = links.iter().filter_map(|link| Some((*link, link.told.as_ref()?.max_mtu?)));
    limits.min_by_key(|(_, max)| *max)
}

fn mtu_max(guest: &Guest<'_>, out: &mut Outcome) {
    for nic in &guest.relations.nics {
        let Some(link) = nic.link else { continue };
        let port = guest.relations.vf(nic);
        let links: Vec<_> = std::iter::once(link).chain(port.map(|port| port.link)).collect();
        let wanted = guest.stanzas().iter().find(|stanza| {
            let means = stanza.means(link, None)
                || port.is_some_and(|port| stanza.means(port.link, Some(port.function)));
            stanza.mtu.is_some_and(|mtu| limit(&links).is_some_and(|(_, max)| mtu > max)) && means
        });
        if let (Some(stanza), Some((who, max))) = (wanted, limit(&links)) {
            let mtu = stanza.mtu.unwrap_or_default();
            let text = format!(
                "{} wants MTU {mtu} for {}, and {} takes {max} at most",
                stanza.path, link.name, who.name
            );
            let finding = Finding::new(Severity::Warn, link.name.clone(), text)
                .because(format!("MTU {mtu}"), Label::Config, stanza.path.clone())
                .because(
                    format!("{} takes {max} at most", who.name),
                    Label::Netlink,
                    "netlink/links",
                )
                .fix(Fix::advice(format!("in {}: an MTU of {max} or less", stanza.path)));
            out.find(finding);
            continue;
        }
        let refused = guest.snapshot.log.about(Subject::Vmbus(nic.device.guid)).rev().chain(
            port.into_iter().flat_map(|port| {
                guest.snapshot.log.about(Subject::Pci(port.function.address)).rev()
            }),
        );
        let refused = refused.into_iter().find(|line| {
            matches!(&line.event, LogEvent::Unusable(text) if text.starts_with("unable to change mtu"))
        });
        if let Some(line) = refused.filter(|_| nic.joined) {
            let text =
                format!("the VF of {} did not take the MTU that {} has", link.name, link.name);
            let finding = Finding::new(Severity::Warn, link.name.clone(), text)
                .logged(line.text.clone())
                .since(Some(line.at))
                .fix(Fix::advice(format!("set a lower MTU on {}", link.name)));
            out.find(finding);
        }
    }
    let kinds = [ConfigKind::Netplan, ConfigKind::Network, ConfigKind::Connection];
    if let Some(reason) = guest.unreadable(&kinds) {
        out.undecided(reason);
    }
}

fn queue_few(guest: &Guest<'_>, out: &mut Outcome) {
    let Some(cpus) = guest.snapshot.machine.cpus else {
        return out.undecided("the number of processors is not known");
    };
    let allowed = cpus.min(guest.thresholds.queues);
    let ports = guest.relations.ports.iter().map(|port| port.link);
    let links = guest.relations.nics.iter().filter_map(|nic| nic.link).chain(ports);
    for link in links {
        let Some((_, queues)) = link.queues else { continue };
        let most = link.told.as_ref().and_then(|told| told.most_queues.1);
        let allowed = allowed.min(most.unwrap_or(allowed));
        if queues >= allowed {
            continue;
        }
        let text = format!(
            "{} has {queues} receive queues, and {cpus} processors allow {allowed}",
            link.name
        );
        let finding = Finding::new(Severity::Info, link.name.clone(), text)
            .because(
                format!("{queues} receive queues"),
                Label::Sysfs,
                format!("{}/queues", link.path),
            )
            .because(format!("{cpus} processors"), Label::Sysfs, "/sys/devices/system/cpu/online")
            .fix(Fix::advice(format!("ethtool -L {} combined {allowed}", link.name)));
        out.find(finding);
    }
}

fn ring_small(guest: &Guest<'_>, out: &mut Outcome) {
    for (_, port) in guest.pairs() {
        let link = port.link;
        let (Some(dropped), Some(ring)) = (link.counters.get("rx_missed_errors"), link.ring) else {
            continue;
        };
        if *dropped == 0 || ring.receive > guest.thresholds.ring || ring.receive >= ring.most {
            continue;
        }
        let text = format!(
            "{} dropped {dropped} frames for want of room; its receive ring holds {}, {} are possible",
            link.name, ring.receive, ring.most
        );
        let finding = Finding::new(Severity::Info, link.name.clone(), text)
            .because(
                format!("{dropped} frames"),
                Label::Counters,
                format!("{}/statistics/rx_missed_errors", link.path),
            )
            .because(format!("receive ring of {}", ring.receive), Label::Netlink, "netlink/rings")
            .fix(Fix::advice(format!("ethtool -G {} rx {}", link.name, ring.most.min(4096))));
        out.find(finding);
    }
}

fn irq_spread(guest: &Guest<'_>, out: &mut Outcome) {
    let lines = &guest.snapshot.machine.interrupts;
    // Drivers that name the function in their lines are told apart by it.
    let named = lines.iter().any(|line| line.name.contains("@pci:"));
    let mut told = Vec::new();
    for (_, port) in guest.pairs() {
        let address = port.function.address;
        // Ports of one function share its interrupts.
        if told.contains(&address) || (!named && !told.is_empty()) {
            continue;
        }
        told.push(address);
        let own: Vec<_> = lines
            .iter()
            .filter(|line| !named || line.name.contains(&address.to_string()))
            .collect();
        let cpus = own.iter().map(|line| line.counts.len()).max().unwrap_or(0);
        let mut taken = vec![0_u64; cpus];
        for line in &own {
            for (cpu, count) in line.counts.iter().enumerate() {
                taken[cpu] = taken[cpu].saturating_add(*count);
            }
        }
        let total = taken.iter().fold(0_u64, |sum, count| sum.saturating_add(*count));
        // A processor that takes a twentieth takes part.
        let busy = taken.iter().filter(|count| count.saturating_mul(20) >= total).count();
        let possible = cpus.min(own.len()).min(4);
        if total < guest.thresholds.interrupts || busy * 2 > possible {
            continue;
        }
        let text = format!(
            "{busy} of {cpus} processors took nearly all of {total} interrupts of {}, which has {} lines",
            port.link.name,
            own.len()
        );
        let mut finding = Finding::new(Severity::Info, port.link.name.clone(), text).because(
            format!("interrupts by processor {taken:?}"),
            Label::Proc,
            "/proc/interrupts",
        );
        if let Some(line) = own.first()
            && let Some(affinity) = &line.affinity
        {
            let path = format!("/proc/irq/{}/smp_affinity_list", line.number);
            finding =
                finding.because(format!("{} may go to {affinity}", line.name), Label::Proc, path);
        }
        let numbers: Vec<_> = own.iter().map(|line| line.number.to_string()).collect();
        out.find(finding.fix(Fix::advice(format!(
            "run irqbalance, or give each of the lines {} a processor in /proc/irq/N/smp_affinity_list",
            numbers.join(" ")
        ))));
    }
}

fn qdisc_double(guest: &Guest<'_>, out: &mut Outcome) {
    let default = guest.snapshot.machine.default_qdisc.as_deref();
    // `mq` has one of the default kind for each queue.
    let fair = |link: &NetDevice| {
        let qdisc = link.told.as_ref().and_then(|told| told.qdisc.as_deref());
        let kind = if qdisc == Some("mq") { default } else { qdisc };
        kind.filter(|kind| matches!(*kind, "fq" | "fq_codel" | "sfq" | "cake")).map(str::to_owned)
    };
    for (nic, port) in guest.pairs() {
        let Some(link) = nic.link else { continue };
        let (Some(above), Some(below)) = (fair(link), fair(port.link)) else { continue };
        let text = format!(
            "{} queues by {above} and its VF {} by {below}; every frame is queued twice",
            link.name, port.link.name
        );
        let finding = Finding::new(Severity::Info, link.name.clone(), text)
            .because(format!("{} has {above}", link.name), Label::Netlink, "netlink/links")
            .because(format!("{} has {below}", port.link.name), Label::Netlink, "netlink/links")
            .because(
                format!("the default is {}", default.unwrap_or("not known")),
                Label::Proc,
                "/proc/sys/net/core/default_qdisc",
            )
            .because("joined", Label::Pair(Source::Link), format!("{}/master", port.link.path))
            .fix(Fix::advice(format!("tc qdisc replace dev {} root noqueue", link.name)));
        out.find(finding);
    }
}

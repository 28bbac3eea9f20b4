//! Whether XDP programs see the frames of both layers.

use super::Check;
use super::finding::{Finding, Label, Outcome, Severity};
use super::fix::Fix;
use super::guest::Guest;

pub(super) const CHECKS: [Check; 2] = [
    Check::new("xdp.asym", "warn", "an XDP program is attached on one layer only", asym),
    Check::new("xdp.lro", "warn", "LRO is on where an XDP program is attached", lro),
];

fn asym(guest: &Guest<'_>, out: &mut Outcome) {
    for (nic, port) in guest.pairs() {
        let Some(link) = nic.link else { continue };
        let (Some(above), Some(below)) = (&link.told, &port.link.told) else { continue };
        let (with, without, how) = match (above.xdp, below.xdp) {
            (Some(how), None) => (link, port.link, how),
            (None, Some(how)) => (port.link, link, how),
            _ => continue,
        };
        let text = format!(
            "an XDP program ({how}) is attached to {} and none to {}; it sees a part of the frames",
            with.name, without.name
        );
        let finding = Finding::new(Severity::Warn, link.name.clone(), text)
            .because(format!("{} has one ({how})", with.name), Label::Netlink, "netlink/links")
            .because(format!("{} has none", without.name), Label::Netlink, "netlink/links")
            .fix(Fix::advice(format!(
                "detach it (ip link set dev {} xdp off) and attach it to {}: the driver hands it on to the VF; where the \
                 VF's driver takes none, use xdpgeneric",
                with.name, link.name
            )));
        out.find(finding);
    }
}

fn lro(guest: &Guest<'_>, out: &mut Outcome) {
    for (nic, port) in guest.pairs() {
        let Some(link) = nic.link else { continue };
        let attached = [link, port.link]
            .into_iter()
            .find(|link| link.told.as_ref().is_some_and(|told| told.xdp.is_some()));
        let Some(attached) = attached else { continue };
        for with in [link, port.link].into_iter().filter(|link| link.lro == Some(true)) {
            let text = format!(
                "{} merges frames (LRO), and an XDP program is attached to {}",
                with.name, attached.name
            );
            let finding = Finding::new(Severity::Warn, with.name.clone(), text)
                .because("rx-lro is on", Label::Netlink, "netlink/features")
                .because(
                    format!("{} has an XDP program", attached.name),
                    Label::Netlink,
                    "netlink/links",
                )
                .fix(Fix::advice(format!("ethtool -K {} lro off", with.name)));
            out.find(finding);
        }
    }
}

//! Whether what is measured is what there is.

use super::Check;
use super::finding::{Finding, Label, Outcome, Severity};
use super::fix::Fix;
use super::guest::Guest;
use crate::inventory::ConfigKind;

pub(super) const CHECKS: [Check; 1] = [Check::new(
    "obs.double",
    "info",
    "an exporter counts the frames of a VF twice: its NIC's counters hold them already",
    double,
)];

fn double(guest: &Guest<'_>, out: &mut Outcome) {
    let Some((nic, port)) = guest.pairs().next() else { return };
    for file in guest.config(ConfigKind::Exporter) {
        // Who says which devices to take has thought about it.
        let chosen =
            ["device-exclude", "device-include", "exclude_interfaces", "include_interfaces"];
        if chosen.iter().any(|word| file.text.contains(word)) {
            continue;
        }
        let text = format!(
            "{} takes all interfaces; {} holds the frames of {} already",
            file.path,
            nic.name(),
            port.link.name
        );
        let finding = Finding::new(Severity::Info, file.path.clone(), text)
            .because("no choice of interfaces", Label::Config, file.path.clone())
            .fix(Fix::advice(
                "never add up a NIC and its VF: leave VFs out (node_exporter: \
                 --collector.netdev.device-exclude='^(enP.*)$'), or take `netvsc metrics`, which tells both paths apart",
            ));
        out.find(finding);
    }
}

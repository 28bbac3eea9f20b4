//! Whether a NIC that is meant for a user-space driver can be spared.

use super::Check;
use super::finding::{Finding, Label, Outcome, Severity};
use super::fix::Fix;
use super::guest::Guest;
use crate::inventory::ConfigKind;

pub(super) const CHECKS: [Check; 1] = [Check::new(
    "uio.default-route",
    "critical",
    "a NIC that is to be bound to a user-space driver carries the default route or the operator's session",
    default_route,
)];

/// The driver that gives a VMBus device to user space.
const UIO: &str = "uio_hv_generic";

fn default_route(guest: &Guest<'_>, out: &mut Outcome) {
    let carriers = guest.carriers();
    for nic in &guest.relations.nics {
        let device = nic.device;
        let Some(link) = nic.link else { continue };
        let kept = format!("vmbus-{}", device.guid);
        let file = guest
            .config(ConfigKind::Driverctl)
            .find(|file| file.name() == kept && file.text.trim() == UIO);
        let meant = if device.driver_override.as_deref() == Some(UIO) {
            (Label::Sysfs, format!("{}/driver_override", device.path))
        } else if let Some(file) = file {
            (Label::Config, file.path.clone())
        } else {
            continue;
        };
        if guest.snapshot.routes.is_none() {
            out.undecided("the routes could not be asked for by netlink");
            continue;
        }
        let Some(what) = link.index.and_then(|index| carriers.get(&index)) else { continue };
        let text = format!("{} is to be bound to {UIO}, and it carries {what}", link.name);
        let finding = Finding::new(Severity::Critical, link.name.clone(), text)
            .because(format!("{UIO} is wanted"), meant.0, meant.1)
            .because(format!("{} carries {what}", link.name), Label::Netlink, "netlink/routes")
            .fix(Fix::advice(format!(
                "take another NIC, or move {what} first; driverctl -b vmbus unset-override {}",
                device.guid
            )));
        out.find(finding);
    }
}

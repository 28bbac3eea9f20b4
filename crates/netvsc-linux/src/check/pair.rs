//! Whether every VF is joined with its NIC.

use super::Check;
use super::finding::{Finding, Label, Outcome, Severity};
use super::fix::{Fix, Step};
use super::guest::Guest;
use super::sys;
use crate::inventory::{Function, LogEvent, Source, Subject};
use crate::relation::{NicView, VfPort};

pub(super) const CHECKS: [Check; 9] = [
    Check::new(
        "pair.orphan-pci",
        "critical",
        "an Ethernet function on a virtual bus has no driver",
        orphan,
    ),
    Check::new(
        "pair.assoc-no-vf",
        "warn, critical after an hour, info where VFs are not expected",
        "the host associated a VF, and no such function came",
        no_vf,
    ),
    Check::new("pair.unpaired", "warn", "a NIC and its VF are both here and not joined", unpaired),
    Check::new("pair.wrong", "critical", "a NIC is joined with a VF of another MAC", wrong),
    Check::new(
        "pair.by-mac-only",
        "info",
        "a NIC and its VF are joined, and their serials differ",
        by_mac,
    ),
    Check::new("pair.standalone", "ok", "a VF has no synthetic NIC, and needs none", standalone),
    Check::new("pair.slot-name", "critical", "a VF's slot is not named by a serial", slot_name),
    Check::new("pair.join", "critical", "the kernel could not join a VF with its NIC", join),
    Check::new(
        "pair.blocked",
        "critical",
        "the kernel waits for an association and blocks all network configuration",
        blocked,
    ),
];

fn orphan(guest: &Guest<'_>, out: &mut Outcome) {
    let wait = guest.thresholds.arrival;
    for function in guest.functions().filter(|function| function.driver.is_none()) {
        // Who was associated a moment ago has a function that came a moment ago.
        let told = guest.relations.nics.iter().find_map(|nic| {
            let (serial, at) = guest.snapshot.log.association(nic.device.guid)?;
            (serial.is_some() && serial == function.serial()).then_some(at)
        });
        if !guest.older(told.unwrap_or_default(), wait, out) {
            continue;
        }
        let ids = function.vendor.zip(function.device);
        let ids = ids.map_or_else(String::new, |(v, d)| format!(" ({v:04x}:{d:04x})"));
        let text = format!("Ethernet function {}{ids} has no driver", function.address);
        let finding = Finding::new(Severity::Critical, function.address.to_string(), text)
            .because("class is Ethernet", Label::Sysfs, format!("{}/class", function.path))
            .because("no driver is bound", Label::Sysfs, format!("{}/driver", function.path))
            .since(told)
            .fix(driver_fix(guest, function));
        out.find(finding);
    }
}

fn driver_fix(guest: &Guest<'_>, function: &Function) -> Fix {
    let Some(module) = sys::module_of(function) else {
        return Fix::advice(
            "no driver of this program's table takes it; look for one by the ids of the function",
        );
    };
    let option = sys::option_of(module);
    match &guest.snapshot.machine.available {
        Some(available) if !available.contains_key(module) => Fix::advice(format!(
            "this kernel has no module {module}; install the package with its extra modules, or a kernel with {option}"
        )),
        _ => Fix::safe(
            format!("modprobe {module} (kernel option {option})"),
            vec![Step::Module { name: module }],
        ),
    }
}

/// Whether a function may be the VF that a NIC waits for.
fn may_be(guest: &Guest<'_>, nic: &NicView<'_>, function: &Function) -> bool {
    let associated = nic.association.and_then(|told| told.value);
    let mut ports = guest.snapshot.ports_of(function.address).peekable();
    let mac = nic.link.and_then(|link| link.permanent);
    let same_mac = |link: &&crate::inventory::NetDevice| {
        mac.is_some() && (link.permanent == mac || link.mac == mac)
    };
    function.serial() == associated
        || function.serial().is_none()
        || ports.peek().is_none()
        || ports.any(|link| same_mac(&link))
}

fn no_vf(guest: &Guest<'_>, out: &mut Outcome) {
    let limits = guest.thresholds;
    let log = &guest.snapshot.log;
    for nic in guest.relations.nics.iter().filter(|nic| !nic.joined) {
        let guid = nic.device.guid;
        let Some((Some(serial), at)) = log.association(guid) else { continue };
        if guest.functions().any(|f| may_be(guest, nic, f)) || !guest.older(at, limits.arrival, out)
        {
            continue;
        }
        let seen = log
            .about(Subject::Vmbus(guid))
            .any(|line| matches!(line.event, LogEvent::Registering(_) | LogEvent::SwitchedToVf));
        let azure = guest.snapshot.machine.azure == Some(true);
        let severity = match (seen || azure, guest.older(at, limits.synthetic_critical, out)) {
            (true, true) => Severity::Critical,
            (true, false) => Severity::Warn,
            (false, _) => Severity::Info,
        };
        let text = format!(
            "the host associated serial {serial} with {}, and no such function is here",
            nic.name()
        );
        let mut finding = Finding::new(severity, nic.name(), text)
            .logged(format!("VF slot {serial} added"))
            .because(
                "no Ethernet function on a virtual bus may be it",
                Label::Sysfs,
                "/sys/bus/pci/devices",
            )
            .since(Some(at));
        if seen {
            finding = finding.logged("a VF of this NIC was here since the boot");
        }
        if azure {
            let path = "/sys/class/dmi/id/chassis_asset_tag";
            finding = finding.because("this is Azure", Label::Sysfs, path);
        }
        let unbound = guest.snapshot.devices.iter().find(|d| d.is_vpci() && d.driver.is_none());
        let fix = match unbound {
            Some(bus) => {
                finding = finding.because(
                    format!("virtual PCI bus {} has no driver", bus.guid),
                    Label::Sysfs,
                    format!("{}/driver", bus.path),
                );
                Fix::safe(
                    "modprobe pci_hyperv (kernel option CONFIG_PCI_HYPERV)",
                    vec![Step::Module { name: "pci_hyperv" }],
                )
            }
            None => Fix::advice(
                "echo 1 > /sys/bus/pci/rescan; if nothing comes, the host has to offer the function again: stop and start \
                 the VM, or switch acceleration off and on",
            ),
        };
        out.find(finding.fix(fix));
    }
    if let Some(reason) = guest.no_log()
        && guest.relations.nics.iter().any(|nic| !nic.joined && nic.association.is_none())
    {
        out.undecided(reason);
    }
}

/// The NIC with a port's permanent MAC.
fn nic_of<'g>(guest: &'g Guest<'_>, port: &VfPort<'_>) -> Option<&'g NicView<'g>> {
    let mac = port.link.permanent?;
    guest.relations.nics.iter().find(|nic| nic.link.is_some_and(|link| link.permanent == Some(mac)))
}

/// Whether the newest word about joining a port is that it failed, and what was said.
fn join_failure<'g>(
    guest: &'g Guest<'_>,
    port: &VfPort<'_>,
) -> Option<&'g crate::inventory::LogLine> {
    let subject = Subject::Pci(port.function.address);
    let newest = guest
        .snapshot
        .log
        .about(subject)
        .rev()
        .find(|line| matches!(line.event, LogEvent::JoinFailed(_) | LogEvent::Joined(_)))?;
    matches!(newest.event, LogEvent::JoinFailed(_)).then_some(newest)
}

/// The master of a port, if it is not a synthetic NIC.
pub(super) fn other_master<'g>(port: &'g VfPort<'_>) -> Option<&'g str> {
    port.link.master.as_deref().filter(|_| port.did.is_none())
}

fn unpaired(guest: &Guest<'_>, out: &mut Outcome) {
    for port in &guest.relations.ports {
        let known = port.did.is_some() || other_master(port).is_some();
        let slot = port.function.slot.as_deref();
        if known || slot.is_some_and(|_| port.function.serial().is_none()) {
            continue;
        }
        if port.link.kind.is_some_and(|kind| kind != 1) || join_failure(guest, port).is_some() {
            continue;
        }
        let Some(nic) = nic_of(guest, port) else { continue };
        let (Some(link), false) = (nic.link, nic.joined) else { continue };
        let since = port.link.initialized;
        if !guest.older(since.unwrap_or_default(), guest.thresholds.join, out) {
            continue;
        }
        let text = format!(
            "{} and {} have the same permanent MAC, and the kernel has not joined them",
            port.link.name, link.name
        );
        let finding = Finding::new(Severity::Warn, link.name.clone(), text)
            .because("permanent MAC", Label::Pair(Source::Mac), format!("{}/address", link.path))
            .because(
                "permanent MAC",
                Label::Pair(Source::Mac),
                format!("{}/address", port.link.path),
            )
            .because("no master", Label::Sysfs, format!("{}/master", port.link.path))
            .since(since)
            .fix(rebind(port, true));
        out.find(finding);
    }
}

/// Takes a VF from its driver and gives it back, so that the kernel sees it as new.
pub(super) fn rebind(port: &VfPort<'_>, safe: bool) -> Fix {
    let Some(driver) = &port.function.driver else { return Fix::default() };
    let write = |file: &str| Step::Value {
        path: format!("/sys/bus/pci/drivers/{driver}/{file}"),
        value: port.function.address.to_string(),
        before: None,
    };
    let text = format!("bind {} anew, so that the kernel tries again", port.function.address);
    let steps = vec![write("unbind"), write("bind")];
    if safe { Fix::safe(text, steps) } else { Fix::rough(text, steps) }
}

fn wrong(guest: &Guest<'_>, out: &mut Outcome) {
    for (nic, port) in guest.pairs() {
        let Some(link) = nic.link else { continue };
        let (Some(ours), Some(theirs)) = (link.permanent, port.link.permanent) else { continue };
        if ours == theirs {
            continue;
        }
        let text = format!(
            "{} ({ours}) is joined with {} ({theirs}), which is another NIC's VF or nobody's",
            link.name, port.link.name
        );
        let finding = Finding::new(Severity::Critical, link.name.clone(), text)
            .because(ours.to_string(), Label::Sysfs, format!("{}/address", link.path))
            .because(theirs.to_string(), Label::Sysfs, format!("{}/address", port.link.path))
            .because("joined", Label::Pair(Source::Link), format!("{}/master", port.link.path))
            .fix(Fix::advice(
                "nothing in the guest mends this; run `netvsc collect` and report it",
            ));
        out.find(finding);
    }
}

fn by_mac(guest: &Guest<'_>, out: &mut Outcome) {
    for (nic, port) in guest.pairs() {
        let told = nic.association.filter(|told| told.source == Source::KernelLog);
        let (Some(told), Some(slot)) = (told.and_then(|told| told.value), port.serial) else {
            continue;
        };
        let single = guest.snapshot.ports_of(port.function.address).count() == 1;
        if told == slot.value || !single {
            continue;
        }
        let text = format!(
            "{} is associated with serial {told}, its VF {} has serial {slot}; the MAC made the pair",
            nic.name(),
            port.link.name,
            slot = slot.value
        );
        let path = format!("/sys/bus/pci/slots/{}/address", slot.value);
        let finding = Finding::new(Severity::Info, nic.name(), text)
            .logged(format!("VF slot {told} added"))
            .because(format!("serial {}", slot.value), Label::Pair(slot.source), path)
            .fix(Fix::advice("none is needed"));
        out.find(finding);
    }
}

fn standalone(guest: &Guest<'_>, out: &mut Outcome) {
    for port in guest.relations.standalone().filter(|port| !guest.is_vf(port)) {
        if port.link.kind.is_some_and(|kind| kind != 1) {
            continue;
        }
        let text = format!(
            "{} has no synthetic NIC; it is all there is, and is to be managed like any NIC",
            port.link.name
        );
        let finding = Finding::new(Severity::Ok, port.link.name.clone(), text)
            .because("no NIC has its MAC", Label::Sysfs, "/sys/bus/vmbus/devices")
            .fix(Fix::advice("none is needed"));
        out.find(finding);
    }
}

fn slot_name(guest: &Guest<'_>, out: &mut Outcome) {
    for function in guest.functions() {
        let Some(slot) = &function.slot else { continue };
        let path = format!("/sys/bus/pci/slots/{slot}/address");
        let shared = guest.functions().find(|f| {
            f.address != function.address && f.address.place() == function.address.place()
        });
        let (text, evidence) = if function.serial().is_none() {
            let number = slot.split('-').next().unwrap_or_default();
            let owner = guest.snapshot.slots.iter().find(|(name, _)| name == number);
            let owner = owner.and_then(|(_, place)| {
                guest.snapshot.functions.iter().find(|f| f.address.place() == *place)
            });
            let text = format!(
                "the slot of {} is `{slot}`, which is no serial, so its VF is never paired",
                function.address
            );
            let owner = owner.map(|f| format!("slot {number} belongs to function {}", f.address));
            (text, owner)
        } else if let Some(other) = shared {
            let text = format!("{} and {} share slot `{slot}`", function.address, other.address);
            (text, None)
        } else {
            continue;
        };
        let mut finding = Finding::new(Severity::Critical, function.address.to_string(), text)
            .because(format!("slot `{slot}`"), Label::Pair(Source::Slot), path)
            .fix(Fix::advice(
                "nothing in the guest mends this: the host gave one number twice; stop and start the VM",
            ));
        if let Some(owner) = evidence {
            finding = finding.because(owner, Label::Sysfs, "/sys/bus/pci/slots");
        }
        out.find(finding);
    }
}

fn join(guest: &Guest<'_>, out: &mut Outcome) {
    for port in &guest.relations.ports {
        let failure = join_failure(guest, port);
        let master = other_master(port).filter(|_| nic_of(guest, port).is_some());
        let name = &port.link.name;
        let text = match (failure, master) {
            (_, Some(master)) => {
                format!(
                    "{name} cannot join its NIC: it is a port of {master}, and the kernel does not try again"
                )
            }
            (Some(_), None) => {
                format!("{name} could not join its NIC, and the kernel does not try again")
            }
            (None, None) => continue,
        };
        let mut finding =
            Finding::new(Severity::Critical, name.clone(), text).since(failure.map(|line| line.at));
        if let Some(line) = failure {
            finding = finding.logged(line.text.clone());
        }
        if let Some(master) = master {
            let path = format!("{}/master", port.link.path);
            finding = finding.because(format!("master is {master}"), Label::Sysfs, path);
        }
        // Binding anew while it is still somebody's port would end the same way.
        let mut fix = rebind(port, master.is_none());
        if let Some(master) = master {
            fix.text = format!("take {name} out of {master} (own.master), then {}", fix.text);
        }
        out.find(finding.fix(fix));
    }
}

fn blocked(guest: &Guest<'_>, out: &mut Outcome) {
    for nic in &guest.relations.nics {
        let mut lines = guest.snapshot.log.about(Subject::Vmbus(nic.device.guid)).rev();
        let newest = lines.find(|line| {
            matches!(line.event, LogEvent::WaitsForAssociation | LogEvent::Associated(_))
        });
        let Some(line) = newest.filter(|line| line.event == LogEvent::WaitsForAssociation) else {
            continue;
        };
        if !guest.older(line.at, guest.thresholds.blocked, out) {
            continue;
        }
        let text = format!(
            "the kernel waits for the host to associate a VF with {}, and every network command waits with it",
            nic.name()
        );
        let finding = Finding::new(Severity::Critical, nic.name(), text)
            .logged(line.text.clone())
            .since(Some(line.at))
            .fix(Fix::advice(
                "nothing in the guest ends the wait: the host has to answer; stop and start the VM",
            ));
        out.find(finding);
    }
    if let Some(reason) = guest.no_log().filter(|_| !guest.snapshot.log.read) {
        out.undecided(reason);
    }
}

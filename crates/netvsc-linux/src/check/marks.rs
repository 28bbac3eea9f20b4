//! Whether the rules of udev that mark VFs for managers are there, and up to date.

use super::finding::{Finding, Label, Outcome, Severity};
use super::fix::Fix;
use super::guest::Guest;
use super::rules::{self, Obsolete};
use crate::inventory::{ConfigFile, ConfigKind};

/// Rules that tell managers to leave VFs alone, with their files. Many others tell them to leave other interfaces alone.
fn marking<'g>(guest: &Guest<'g>) -> Vec<(&'g ConfigFile, rules::Rule<'g>)> {
    // One that has no synthetic NIC counts as well: a rule that takes it is the fault.
    let ports: Vec<_> = guest.relations.ports.iter().map(rules::Seen::of).collect();
    guest
        .config(ConfigKind::UdevRules)
        .flat_map(|file| rules::rules(&file.text).into_iter().map(move |rule| (file, rule)))
        .filter(|(_, rule)| rule.marks() && ports.iter().any(|port| rule.may_mean(port)))
        .collect()
}

/// VFs as rules see them.
fn seen<'g>(guest: &Guest<'g>) -> Vec<rules::Seen<'g>> {
    guest.vfs().map(rules::Seen::of).collect()
}

/// A rule that holds for whatever came over a virtual bus and is somebody's slave, at every event.
const GOOD_RULE: &str = "SUBSYSTEM==\"net\", ACTION!=\"remove\", DRIVERS==\"hv_pci\", \
     ATTR{flags}==\"0x?[89abcdefABCDEF]??\", ENV{AZURE_UNMANAGED_SRIOV}=\"1\", \
     ENV{ID_NET_MANAGED_BY}=\"unmanaged\", ENV{NM_UNMANAGED}=\"1\"\n";

pub(super) fn rule_old(guest: &Guest<'_>, out: &mut Outcome) {
    let vfs = seen(guest);
    let mut told: Vec<&str> = Vec::new();
    let marking = marking(guest);
    for (file, rule) in &marking {
        let Some(why) = rule.obsolete(&vfs) else { continue };
        if told.contains(&file.path.as_str()) {
            continue;
        }
        told.push(&file.path);
        let text = format!("the rule in {} is out of date: {}", file.path, why.text());
        let path = format!("/etc/udev/rules.d/{}", file.name());
        // Only a file that holds nothing but such rules can be replaced as a whole.
        let such = marking.iter().filter(|(other, _)| other.path == file.path).count();
        let alone = rules::rules(&file.text).len() == such;
        let words = format!(
            "replace it by `netvsc install`, or write {path} with a rule for every event; then udevadm control --reload"
        );
        let fix = if alone && !matches!(why, Obsolete::BusAlone) {
            Fix::safe(words, vec![guest.file(&path, GOOD_RULE.to_owned())])
        } else {
            Fix::advice(words)
        };
        let finding = Finding::new(Severity::Warn, file.path.clone(), text)
            .because(format!("line {}", rule.line), Label::Config, file.path.clone())
            .fix(fix);
        out.find(finding);
    }
    if let Some(reason) = guest.unreadable(&[ConfigKind::UdevRules]) {
        out.undecided(reason);
    }
}

pub(super) fn rule_dup(guest: &Guest<'_>, out: &mut Outcome) {
    let rules = marking(guest);
    let vfs = seen(guest);
    let disagree = |a: &(&ConfigFile, rules::Rule<'_>), b: &(&ConfigFile, rules::Rule<'_>)| {
        a.0.path != b.0.path
            && a.1.conditions() != b.1.conditions()
            && (a.1.obsolete(&vfs).is_some() || b.1.obsolete(&vfs).is_some())
    };
    for (at, first) in rules.iter().enumerate() {
        let Some(second) = rules.iter().skip(at + 1).find(|second| disagree(first, second)) else {
            continue;
        };
        let (old, new) =
            if first.1.obsolete(&vfs).is_some() { (first, second) } else { (second, first) };
        let text =
            format!("{} and {} both mark VFs, by different conditions", old.0.path, new.0.path);
        let finding = Finding::new(Severity::Warn, old.0.path.clone(), text)
            .because(format!("line {}", old.1.line), Label::Config, old.0.path.clone())
            .because(format!("line {}", new.1.line), Label::Config, new.0.path.clone())
            .fix(Fix::advice(format!(
                "remove the package that brought {old}, or hide it: ln -s /dev/null /etc/udev/rules.d/{name}",
                old = old.0.path,
                name = old.0.name()
            )));
        // Two files are two generations, however many rules they have.
        return out.find(finding);
    }
}

pub(super) fn rule_initramfs(guest: &Guest<'_>, out: &mut Outcome) {
    if !guest.snapshot.machine.early_manager {
        return;
    }
    let rules = marking(guest);
    let Some((rule, _)) = rules.first() else { return };
    let carried = guest
        .config(ConfigKind::Initramfs)
        .any(|file| file.text.contains(rule.name()) || file.text.contains("netvsc"));
    if carried {
        return;
    }
    for port in guest.vfs() {
        let marked = port.link.property("NM_UNMANAGED").is_some_and(|value| value != "0");
        let index = port.link.index.unwrap_or_default();
        let managed = guest.snapshot.machine.network_manager.get(&index) == Some(&true);
        if !marked || !managed {
            continue;
        }
        let text = format!(
            "NetworkManager took {} in the initramfs, where the rule that marks it is missing",
            port.link.name
        );
        let finding = Finding::new(Severity::Warn, port.link.name.clone(), text)
            .because("NetworkManager ran in the initramfs", Label::File, "/run/NetworkManager/initrd")
            .because("NM_UNMANAGED=1", Label::Udev, format!("/run/udev/data/n{index}"))
            .because("managed=true", Label::State, format!("/run/NetworkManager/devices/{index}"))
            .because("nothing puts the rule into the initramfs", Label::Inferred, "/etc/dracut.conf.d")
            .fix(Fix::advice(format!(
                "echo 'install_items+=\" {} \"' > /etc/dracut.conf.d/90-netvsc.conf; dracut -f (or update-initramfs -u)",
                rule.path
            )));
        out.find(finding);
    }
}

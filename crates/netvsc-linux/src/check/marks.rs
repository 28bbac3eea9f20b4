//! Whether the rules of udev that mark VFs for managers are there, and up to date.

use super::finding::{Finding, Label, Outcome, Severity};
use super::fix::Fix;
use super::guest::Guest;
use super::rules::{self, Obsolete};
use crate::inventory::{ConfigFile, ConfigKind};

/// A rule and its file.
type OfFile<'g> = (&'g ConfigFile, rules::Rule<'g>);

/// Rules that tell managers to leave VFs alone, with their files. Many others tell them to leave other interfaces alone.
fn marking<'g>(guest: &Guest<'g>) -> Vec<OfFile<'g>> {
    // One that has no synthetic NIC counts as well: a rule that takes it is the fault.
    let ports: Vec<_> = guest.relations.ports.iter().map(rules::Seen::of).collect();
    guest
        .config(ConfigKind::UdevRules)
        .flat_map(|file| rules::rules(&file.text).into_iter().map(move |rule| (file, rule)))
        .filter(|(_, rule)| rule.marks() && ports.iter().any(|port| rule.may_mean(port)))
        .collect()
}

/// What is obsolete about one of these rules, beside the others of its file.
fn obsolete(
    (file, rule): &OfFile<'_>,
    marking: &[OfFile<'_>],
    vfs: &[rules::Seen<'_>],
) -> Option<Obsolete> {
    let same = marking.iter().filter(|(other, _)| other.path == file.path);
    let same: Vec<_> = same.map(|(_, rule)| rule).collect();
    rule.obsolete(vfs, &same)
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
    for of_file in &marking {
        let (file, rule) = of_file;
        let Some(why) = obsolete(of_file, &marking, &vfs) else { continue };
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
    let old = |of_file: &OfFile<'_>| obsolete(of_file, &rules, &vfs).is_some();
    let disagree = |a: &OfFile<'_>, b: &OfFile<'_>| {
        a.0.path != b.0.path && a.1.conditions() != b.1.conditions() && (old(a) || old(b))
    };
    for (at, first) in rules.iter().enumerate() {
        let Some(second) = rules.iter().skip(at + 1).find(|second| disagree(first, second)) else {
            continue;
        };
        let (old, new) = if old(first) { (first, second) } else { (second, first) };
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

/// The rule of our own, which marks by what a program says and so does not look like one that marks.
const OWN_RULE: &str = "60-netvsc.rules";

pub(super) fn rule_initramfs(guest: &Guest<'_>, out: &mut Outcome) {
    if !guest.snapshot.machine.early_manager {
        return;
    }
    let own = guest.config(ConfigKind::UdevRules).filter(|file| file.name() == OWN_RULE);
    let rules: Vec<_> = marking(guest).into_iter().map(|(file, _)| file).chain(own).collect();
    let Some(first) = rules.first() else { return };
    // What puts one of them into an initramfs, and which.
    let carrier = guest.config(ConfigKind::Initramfs).find_map(|file| {
        let rule = rules.iter().find(|rule| file.text.contains(rule.name()))?;
        Some((file, *rule))
    });
    for port in guest.vfs() {
        let marked = port.link.property("NM_UNMANAGED").is_some_and(|value| value != "0");
        let index = port.link.index.unwrap_or_default();
        let managed = guest.snapshot.machine.network_manager.get(&index) == Some(&true);
        if !marked || !managed {
            continue;
        }
        let name = &port.link.name;
        let why = if carrier.is_some() {
            "which is older than the rule that marks it"
        } else {
            "where the rule that marks it is missing"
        };
        let text = format!("NetworkManager took {name} in the initramfs, {why}");
        let finding = Finding::new(Severity::Warn, name.clone(), text)
            .because(
                "NetworkManager ran in the initramfs",
                Label::File,
                "/run/NetworkManager/initrd",
            )
            .because("NM_UNMANAGED=1", Label::Udev, format!("/run/udev/data/n{index}"))
            .because("managed=true", Label::State, format!("/run/NetworkManager/devices/{index}"));
        out.find(match carrier {
            Some((file, rule)) => finding
                .because(format!("it puts {} into an initramfs", rule.name()), Label::Config, file.path.clone())
                .because("the initramfs that booted was made without it", Label::Inferred, rule.path.clone())
                .fix(Fix::advice(
                    "make the initramfs anew: dracut -f (or update-initramfs -u), and boot it",
                )),
            None => finding
                .because("nothing puts the rule into the initramfs", Label::Inferred, "/etc/dracut.conf.d")
                .fix(Fix::advice(format!(
                    "echo 'install_items+=\" {} \"' > /etc/dracut.conf.d/90-netvsc.conf; dracut -f (or update-initramfs -u)",
                    first.path
                ))),
        });
    }
}

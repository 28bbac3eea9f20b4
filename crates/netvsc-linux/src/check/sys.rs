//! Whether kernel and systemd are able to do what a pair needs.

use super::Check;
use super::finding::{Finding, Label, Outcome, Severity};
use super::fix::Fix;
use super::guest::Guest;
use super::manager;
use crate::inventory::{ConfigKind, Function, MODULES, Manager};
use crate::relation::VfPort;

pub(super) const CHECKS: [Check; 3] = [
    Check::new("sys.module", "warn", "this kernel lacks a module that a pair needs", module),
    Check::new(
        "sys.kernel",
        "warn",
        "this kernel shows a fault that newer ones do not have",
        kernel,
    ),
    Check::new(
        "sys.networkd",
        "warn",
        "a systemd-networkd that may forget which interfaces to leave alone",
        networkd,
    ),
];

/// The module that drives a function.
pub(super) fn module_of(function: &Function) -> Option<&'static str> {
    match (function.vendor?, function.device?) {
        (0x15b3, 0x1002..=0x1007) => Some("mlx4_en"),
        (0x15b3, 0x1011..=0x10ff) => Some("mlx5_core"),
        (0x1414, 0x00b9..=0x00bb) => Some("mana"),
        (
            0x8086,
            0x10ed | 0x152e | 0x1515 | 0x1530 | 0x1564 | 0x1565 | 0x15a8 | 0x15a9 | 0x15b4 | 0x15c5,
        ) => Some("ixgbevf"),
        (0x8086, 0x154c | 0x1571 | 0x1889 | 0x37cd) => Some("iavf"),
        (0x14e4, _) => Some("bnxt_en"),
        _ => None,
    }
}

/// The kernel option that makes a module.
pub(super) fn option_of(module: &str) -> &'static str {
    MODULES.iter().find(|(name, _)| *name == module).map_or("unknown", |(_, option)| option)
}

fn module(guest: &Guest<'_>, out: &mut Outcome) {
    let snapshot = guest.snapshot;
    let functions = guest.functions().filter(|f| f.driver.is_none()).filter_map(module_of);
    let idle = |is: &dyn Fn(&crate::inventory::VmbusDevice) -> bool| {
        snapshot.devices.iter().any(|d| is(d) && d.driver.is_none())
    };
    let nics = idle(&|device| device.is_nic()).then_some("hv_netvsc");
    let buses = idle(&|device| device.is_vpci()).then_some("pci_hyperv");
    let mut needed: Vec<_> = functions.chain(nics).chain(buses).collect();
    needed.sort_unstable();
    needed.dedup();
    for name in needed {
        if snapshot.modules.as_ref().is_some_and(|loaded| loaded.contains(name)) {
            continue;
        }
        let option = option_of(name);
        let release = snapshot.release.as_deref().unwrap_or("unknown");
        let machine = &snapshot.machine;
        let missing = machine.available.as_ref().map(|available| !available.contains_key(name));
        let set = machine.options.as_ref().map(|options| options.get(option).cloned().flatten());
        let (fact, label, path) = match (missing, &set) {
            (Some(true), _) => {
                let path = format!("/lib/modules/{release}/modules.dep");
                (format!("{name} is not among its modules"), Label::File, path)
            }
            (None, Some(None)) => {
                let path = format!("/boot/config-{release}");
                (format!("{option} is not set"), Label::Config, path)
            }
            (None, None) => {
                let needs =
                    "neither the list of modules nor the configuration of the kernel is there";
                out.undecided(needs);
                continue;
            }
            _ => continue,
        };
        let text = format!("kernel {release} has no {name}, which a device here needs");
        let finding = Finding::new(Severity::Warn, name, text).because(fact, label, path).fix(
            Fix::advice(format!(
                "install the package with the extra modules of this kernel, or a kernel with {option}"
            )),
        );
        out.find(finding);
    }
}

/// A fault of the kernel: from which release on it is mended, and how it shows.
struct Fault {
    mended: (u32, u32),
    text: &'static str,
    shows: fn(&Guest<'_>, &VfPort<'_>) -> bool,
}

/// Distributions mend faults under old numbers, so a number alone says nothing: a fault has to show.
const FAULTS: [Fault; 2] = [
    Fault {
        mended: (6, 7),
        text: "shows VFs to user space before it marks them as slaves, so that rules which ask for the mark miss them",
        shows: marked_late,
    },
    Fault {
        mended: (6, 16),
        text: "lets VFs take IPv6 addresses of their own",
        shows: |guest, port| {
            let mut addresses = guest.snapshot.addresses.iter().flatten();
            addresses
                .any(|a| Some(a.index) == port.link.index && a.link_local && a.address.is_ipv6())
        },
    },
];

/// Whether a rule asks for the mark, the VF has it now, and the rule did not see it.
fn marked_late(guest: &Guest<'_>, port: &VfPort<'_>) -> bool {
    let asks = guest.config(ConfigKind::UdevRules).any(|file| {
        super::rules::rules(&file.text)
            .iter()
            .any(|rule| rule.marks() && rule.matches().any(|(key, _)| key == "ATTR{flags}"))
    });
    let slave = port.link.flags.is_some_and(|flags| flags & 0x800 != 0);
    asks && slave && port.link.udev.is_some() && port.link.property("NM_UNMANAGED").is_none()
}

/// The number that a text begins with, and what follows it.
fn number(text: &str) -> Option<(u32, &str)> {
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    Some((text[..end].parse().ok()?, &text[end..]))
}

/// Major and minor number of a release. What follows a hyphen is the distribution's: `257-9.el10` has no minor number.
fn version(release: &str) -> Option<(u32, u32)> {
    let (major, rest) = number(release)?;
    Some((major, number(rest.strip_prefix('.')?)?.0))
}

fn kernel(guest: &Guest<'_>, out: &mut Outcome) {
    let Some(release) = guest.snapshot.release.as_deref() else {
        return out.undecided("the release of the kernel is not known");
    };
    let Some(found) = version(release) else { return };
    for fault in FAULTS.iter().filter(|fault| found < fault.mended) {
        let Some((_, port)) = guest.pairs().find(|(_, port)| (fault.shows)(guest, port)) else {
            continue;
        };
        let (major, minor) = fault.mended;
        let text = format!("kernel {release} {}", fault.text);
        let finding = Finding::new(Severity::Warn, "kernel", text)
            .because(release, Label::Proc, "/proc/sys/kernel/osrelease")
            .because(
                format!("{} shows it; mended in {major}.{minor}, by distributions also earlier", port.link.name),
                Label::Inferred,
                port.link.path.clone(),
            )
            .fix(Fix::advice(format!(
                "take a kernel from {major}.{minor} on, or an update of this one that carries the fix"
            )));
        out.find(finding);
    }
}

/// Major number of systemd.
pub(super) fn systemd_major(guest: &Guest<'_>) -> Option<u32> {
    Some(number(guest.snapshot.machine.systemd.as_deref()?)?.0)
}

/// Whether a systemd forgets what udev says of an interface; the reason if that is not known.
fn forgets(guest: &Guest<'_>) -> Result<bool, &'static str> {
    let unknown = "the version of systemd is not known";
    let found = guest.snapshot.machine.systemd.as_deref().ok_or(unknown)?;
    match (version(found), systemd_major(guest)) {
        (Some(found), _) => Ok(found < (257, 7)),
        (None, Some(257)) => Err("systemd is 257, and which 257 is not known"),
        (None, Some(major)) => Ok(major < 257),
        (None, None) => Err(unknown),
    }
}

fn networkd(guest: &Guest<'_>, out: &mut Outcome) {
    if !guest.snapshot.machine.managers.contains(&Manager::Networkd) {
        return;
    }
    // What a file says is not forgotten, and a VF that no file means is not touched.
    let file = |port| manager::network_file(guest, port).filter(|stanza| !stanza.unmanaged);
    let vfs = guest.vfs().filter(|port| port.link.kind.is_none_or(|kind| kind == 1));
    let meant: Vec<_> = vfs.filter_map(|port| Some((port, file(port)?))).collect();
    if meant.is_empty() {
        if let Some(reason) = guest.unreadable(&[ConfigKind::Network]) {
            out.undecided(reason);
        }
        return;
    }
    match forgets(guest) {
        Ok(true) => {}
        Ok(false) => return,
        Err(reason) => return out.undecided(reason),
    }
    let found = guest.snapshot.machine.systemd.as_deref().unwrap_or("unknown");
    let text = format!(
        "systemd {found} runs systemd-networkd, which may forget at a reload that VFs are not its own"
    );
    let mut finding = Finding::new(Severity::Warn, "systemd-networkd", text)
        .because(format!("version {found}"), Label::File, "/usr/lib/systemd/libsystemd-shared-*.so")
        .because("systemd-networkd runs", Label::State, "/run/systemd/netif");
    for (port, stanza) in &meant {
        let fact = format!("this file means {}", port.link.name);
        finding = finding.because(fact, Label::Config, stanza.path.clone());
    }
    let ports: Vec<_> = meant.iter().map(|(port, _)| *port).collect();
    let (paths, steps): (Vec<_>, Vec<_>) = manager::unmanage_all(guest, &ports).into_iter().unzip();
    let words = if paths.is_empty() {
        "update systemd to 257.7".to_owned()
    } else {
        format!("write {}, then networkctl reload; or update systemd to 257.7", paths.join(", "))
    };
    out.find(finding.fix(Fix::safe(words, steps)));
}

//! Whether the managers of networks leave VFs alone, each by its own means.

use std::collections::BTreeMap;

use netvsc::mac::MacAddress;

use super::config::{fits, ini};
use super::finding::{Finding, Label, Outcome, Severity};
use super::fix::{Fix, Step};
use super::guest::{Guest, net_driver};
use super::stanza::Stanza;
use crate::inventory::{ConfigFile, ConfigKind, Manager};
use crate::relation::VfPort;

pub(super) fn manager(guest: &Guest<'_>, out: &mut Outcome) {
    for port in guest.vfs().filter(|port| port.link.kind.is_none_or(|kind| kind == 1)) {
        for manager in &guest.snapshot.machine.managers {
            let verdict = match manager {
                Manager::Networkd => networkd(guest, port),
                Manager::NetworkManager => network_manager(guest, port),
                Manager::Dhcpcd => dhcpcd(guest, port),
                Manager::Ifupdown => ifupdown(guest, port),
            };
            let Some((fact, label, path)) = verdict else { continue };
            let name = &port.link.name;
            let text =
                format!("{} does not leave {name} alone, which belongs to a NIC", manager.word());
            let mark = port.link.property("ID_NET_MANAGED_BY").unwrap_or("not set");
            let entry = format!("/run/udev/data/n{}", port.link.index.unwrap_or_default());
            let finding = Finding::new(Severity::Warn, name.clone(), text)
                .because(fact, label, path)
                .because(format!("ID_NET_MANAGED_BY is {mark}"), Label::Udev, entry)
                .fix(exclude(guest, *manager, port));
            out.find(finding);
        }
    }
    let kinds = [ConfigKind::Network, ConfigKind::NetworkManager, ConfigKind::Dhcpcd];
    if let Some(reason) = guest.unreadable(&kinds) {
        out.undecided(reason);
    }
}

/// Why a manager is thought to manage a VF: what was read, and where.
type Verdict = Option<(String, Label, String)>;

fn networkd(guest: &Guest<'_>, port: &VfPort<'_>) -> Verdict {
    let machine = &guest.snapshot.machine;
    let index = port.link.index?;
    match machine.networkd.get(&index).map(String::as_str) {
        Some("unmanaged") => return None,
        Some(state @ ("configured" | "configuring" | "degraded" | "failed")) => {
            let path = format!("/run/systemd/netif/links/{index}");
            return Some((format!("ADMIN_STATE={state}"), Label::State, path));
        }
        _ => {}
    }
    let by = port.link.property("ID_NET_MANAGED_BY");
    // Older versions do not know the property.
    let heeds = super::sys::systemd_major(guest).is_none_or(|major| major >= 255);
    if heeds && by.is_some_and(|by| by != "io.systemd.Network") {
        return None;
    }
    let file = network_file(guest, port).filter(|stanza| !stanza.unmanaged)?;
    Some(("this file means it".into(), Label::Config, file.path.clone()))
}

/// The file that systemd-networkd takes for a VF: the first by name of those that mean it.
pub(super) fn network_file<'g>(guest: &'g Guest<'_>, port: &VfPort<'_>) -> Option<&'g Stanza> {
    let means = |stanza: &&Stanza| {
        stanza.kind == ConfigKind::Network && stanza.means(port.link, Some(port.function))
    };
    guest.stanzas().iter().filter(means).min_by_key(|stanza| stanza.path.rsplit('/').next())
}

fn network_manager(guest: &Guest<'_>, port: &VfPort<'_>) -> Verdict {
    let index = port.link.index?;
    match guest.snapshot.machine.network_manager.get(&index) {
        Some(false) => return None,
        Some(true) => {
            let path = format!("/run/NetworkManager/devices/{index}");
            return Some(("managed=true".into(), Label::State, path));
        }
        None => {}
    }
    if port.link.property("NM_UNMANAGED").is_some_and(|value| value != "0") {
        return None;
    }
    if guest.config(ConfigKind::NetworkManager).any(|file| leaves_alone(file, port)) {
        return None;
    }
    let fact = "nothing excludes it, and NetworkManager takes what is not excluded".to_owned();
    Some((fact, Label::Inferred, "/etc/NetworkManager".into()))
}

/// Whether a file of NetworkManager's has it leave a VF alone: by `unmanaged-devices=`, or by a section for devices.
fn leaves_alone(file: &ConfigFile, port: &VfPort<'_>) -> bool {
    let keyfile = ini(&file.text).any(|(section, key, value)| {
        section == "keyfile" && key.starts_with("unmanaged-devices") && named(value, port)
    });
    keyfile || unmanaged_section(file, port)
}

/// Whether a section for devices means a VF and says that it is not managed. One that does not say whom it means, means all.
fn unmanaged_section(file: &ConfigFile, port: &VfPort<'_>) -> bool {
    let mut sections: BTreeMap<&str, (bool, bool)> = BTreeMap::new();
    for (section, key, value) in ini(&file.text) {
        if !section.starts_with("device") {
            continue;
        }
        let (means, unmanaged) = sections.entry(section).or_insert((true, false));
        match key {
            "match-device" => *means = named(value, port),
            "managed" => *unmanaged = matches!(value, "0" | "false" | "no" | "off"),
            _ => {}
        }
    }
    sections.into_values().any(|(means, unmanaged)| means && unmanaged)
}

/// Whether a list of NetworkManager's names a VF. One of exceptions only names all the others.
fn named(list: &str, port: &VfPort<'_>) -> bool {
    let specs = list.split([';', ',']).map(str::trim).filter(|spec| !spec.is_empty());
    let (mut named, mut excepted) = (None, false);
    for spec in specs {
        match spec.strip_prefix("except:") {
            Some(spec) if is(spec, port) => return false,
            Some(_) => excepted = true,
            None => named = Some(named == Some(true) || is(spec, port)),
        }
    }
    named.unwrap_or(excepted)
}

/// Whether one entry of such a list is about a VF.
fn is(spec: &str, port: &VfPort<'_>) -> bool {
    let name = port.link.name.as_str();
    let mac = port.link.permanent.or(port.link.mac).map(|mac| mac.to_string());
    let is_mac = |value: &str| mac.as_deref().is_some_and(|mac| value.eq_ignore_ascii_case(mac));
    match spec.split_once(':') {
        Some(("mac", value)) => is_mac(value),
        Some(("interface-name", value)) => match value.strip_prefix('=') {
            Some(value) => value == name,
            None => fits(value.trim_start_matches('~'), name),
        },
        // The driver of the function; behind a slash its version.
        Some(("driver", value)) => {
            let driver = port.function.driver.as_deref().unwrap_or_default();
            fits(value.split('/').next().unwrap_or_default(), driver)
        }
        Some(("type", value)) => value == "ethernet" && port.link.kind == Some(1),
        _ => spec == "*" || spec == name || is_mac(spec),
    }
}

fn dhcpcd(guest: &Guest<'_>, port: &VfPort<'_>) -> Verdict {
    let path = "/etc/dhcpcd.conf";
    let files: Vec<_> = guest.config(ConfigKind::Dhcpcd).collect();
    let patterns = |word: &str| -> Vec<String> {
        let lines = files.iter().flat_map(|file| file.text.lines());
        let lines = lines.filter_map(|line| line.trim().strip_prefix(word).map(str::to_owned));
        lines
            .flat_map(|line| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>())
            .collect()
    };
    let name = &port.link.name;
    if patterns("denyinterfaces ").iter().any(|pattern| fits(pattern, name)) {
        return None;
    }
    let allowed = patterns("allowinterfaces ");
    if !allowed.is_empty() && !allowed.iter().any(|pattern| fits(pattern, name)) {
        return None;
    }
    Some((
        "nothing excludes it, and dhcpcd takes what is not excluded".into(),
        Label::Config,
        path.into(),
    ))
}

fn ifupdown(guest: &Guest<'_>, port: &VfPort<'_>) -> Verdict {
    let name = &port.link.name;
    if guest.snapshot.machine.ifupdown.contains(name) {
        return Some((
            format!("{name} was brought up"),
            Label::State,
            "/run/network/ifstate".into(),
        ));
    }
    let stanza = guest
        .stanzas()
        .iter()
        .find(|stanza| stanza.kind == ConfigKind::Interfaces && stanza.names.contains(name))?;
    Some((format!("iface {name}"), Label::Config, stanza.path.clone()))
}

/// What makes a manager leave a VF alone. The MAC alone would mean the NIC as well, so the driver is named too.
fn exclude(guest: &Guest<'_>, manager: Manager, port: &VfPort<'_>) -> Fix {
    let mac = port.link.permanent.or(port.link.mac);
    let (Some(mac), Some(driver)) = (mac, net_driver(port.link, Some(port.function))) else {
        return Fix::advice("exclude it in the manager's configuration");
    };
    let tail = mac.to_string().replace(':', "");
    match manager {
        Manager::Networkd => {
            let (path, step) = unmanage(guest, mac, driver);
            Fix::safe(
                format!(
                    "write {path}, then networkctl reload; `netvsc install` does it for all VFs"
                ),
                vec![step],
            )
        }
        Manager::NetworkManager => {
            let contents =
                format!("[keyfile]\nunmanaged-devices+=mac:{mac};except:driver:hv_netvsc\n");
            // Behind others: the last word counts there, and `=` in a later file would take `+=` back.
            let path = format!("/etc/NetworkManager/conf.d/90-netvsc-vf-{tail}.conf");
            let step = guest.file(&path, contents);
            Fix::safe(
                format!(
                    "write {path}, then nmcli general reload; `netvsc install` does it for all VFs"
                ),
                vec![step],
            )
        }
        Manager::Dhcpcd => {
            let path = "/etc/dhcpcd.conf";
            let before = guest.contents(path).unwrap_or_default();
            let contents = format!("{before}denyinterfaces {}\n", port.link.name);
            let step = guest.file(path, contents);
            Fix::safe(format!("exclude it in {path}, then restart dhcpcd"), vec![step])
        }
        Manager::Ifupdown => Fix::advice(format!(
            "ifdown {name}, and take the stanza of {name} out of /etc/network/interfaces",
            name = port.link.name
        )),
    }
}

/// The file that has systemd-networkd leave a VF alone, before all others. The MAC alone would mean the NIC as well, so the driver
/// is named too.
fn unmanage(guest: &Guest<'_>, mac: MacAddress, driver: &str) -> (String, Step) {
    let contents =
        format!("[Match]\nPermanentMACAddress={mac}\nDriver={driver}\n\n[Link]\nUnmanaged=yes\n");
    let tail = mac.to_string().replace(':', "");
    let path = format!("/etc/systemd/network/00-netvsc-vf-{tail}.network");
    let step = guest.file(&path, contents);
    (path, step)
}

/// The files that have systemd-networkd leave VFs alone, as far as their MACs and drivers are known.
pub(super) fn unmanage_all(guest: &Guest<'_>, ports: &[&VfPort<'_>]) -> Vec<(String, Step)> {
    let file = |port: &&VfPort<'_>| {
        let mac = port.link.permanent.or(port.link.mac)?;
        Some(unmanage(guest, mac, net_driver(port.link, Some(port.function))?))
    };
    ports.iter().filter_map(file).collect()
}

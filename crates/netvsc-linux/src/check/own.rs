//! Whether somebody else takes a VF for a NIC of its own: addresses, managers, masters, namespaces.

use super::Check;
use super::config::{fits, ini};
use super::finding::{Finding, Label, Outcome, Severity};
use super::fix::{Fix, LinkName, Step};
use super::guest::{self, Guest};
use super::marks::{rule_dup, rule_initramfs, rule_old};
use super::pair::other_master;
use crate::inventory::{ConfigFile, ConfigKind, Manager, PciAddress, Source};
use crate::netlink::Address;
use crate::relation::VfPort;

pub(super) const CHECKS: [Check; 7] = [
    Check::new(
        "own.address",
        "critical, warn for an fe80:: address alone",
        "a VF that belongs to a NIC has an address, a route or a neighbour of its own",
        address,
    ),
    Check::new("own.manager", "warn", "a manager of networks takes a VF for its own", manager),
    Check::new("own.rule-old", "warn", "a udev rule finds VFs by what is no longer true", rule_old),
    Check::new("own.rule-dup", "warn", "two generations of udev rules disagree", rule_dup),
    Check::new(
        "own.rule-initramfs",
        "warn",
        "the rule for VFs was not in the initramfs that booted",
        rule_initramfs,
    ),
    Check::new("own.master", "critical", "a VF is a port of something that is no NIC", master),
    Check::new("own.netns", "warn", "a VF and its NIC are in different network namespaces", netns),
];

fn address(guest: &Guest<'_>, out: &mut Outcome) {
    let snapshot = guest.snapshot;
    for (nic, port) in guest.pairs() {
        let (Some(link), Some(index)) = (guest::name(port.link), port.link.index) else { continue };
        let Some(addresses) = &snapshot.addresses else {
            out.undecided("the addresses could not be asked for by netlink");
            return;
        };
        let own: Vec<_> = addresses.iter().filter(|address| address.index == index).collect();
        let routes = snapshot.routes.iter().flatten().filter(|route| {
            let ours = route.index == Some(index) && route.unicast;
            // What comes with every fe80:: address is told with it.
            let with_it = route.v6
                && route.destination.is_some_and(|to| match to {
                    std::net::IpAddr::V6(to) => to.is_unicast_link_local() || to.is_multicast(),
                    std::net::IpAddr::V4(_) => false,
                });
            ours && !with_it
        });
        let routes: Vec<_> = routes.collect();
        let neighbours = snapshot.neighbours.iter().flatten();
        let neighbours = neighbours.filter(|n| n.index == index && n.asked).count();
        if own.is_empty() && routes.is_empty() && neighbours == 0 {
            continue;
        }
        let slight = own.iter().all(|a| a.link_local && a.address.is_ipv6())
            && routes.is_empty()
            && !own.is_empty();
        let severity = if slight { Severity::Warn } else { Severity::Critical };
        let what: Vec<_> = own.iter().map(|a| format!("{}/{}", a.address, a.prefix)).collect();
        let text = if what.is_empty() {
            format!("{link} belongs to {} and has routes or neighbours of its own", nic.name())
        } else {
            format!(
                "{link} belongs to {} and has an address of its own: {}",
                nic.name(),
                what.join(", ")
            )
        };
        let mut finding = Finding::new(severity, port.link.name.clone(), text).because(
            "joined",
            Label::Pair(Source::Link),
            format!("{}/master", port.link.path),
        );
        for address in &what {
            finding = finding.because(address.clone(), Label::Netlink, "netlink/addresses");
        }
        if !routes.is_empty() {
            finding =
                finding.because(counted(routes.len(), "route"), Label::Netlink, "netlink/routes");
        }
        if neighbours > 0 {
            let fact = counted(neighbours, "neighbour");
            finding = finding.because(fact, Label::Netlink, "netlink/neighbours");
        }
        out.find(finding.fix(flush(&link, &own)));
    }
}

fn counted(number: usize, what: &str) -> String {
    format!("{number} {what}{}", if number == 1 { "" } else { "s" })
}

/// Takes away what an interface has, and what would come back by itself.
fn flush(link: &LinkName, own: &[&Address]) -> Fix {
    let mut steps: Vec<_> = own
        .iter()
        .map(|address| Step::Address {
            link: link.clone(),
            address: address.address,
            prefix: address.prefix,
        })
        .collect();
    if own.iter().any(|address| address.link_local && address.address.is_ipv6()) {
        steps.push(Step::Value {
            path: format!("/proc/sys/net/ipv6/conf/{link}/addr_gen_mode"),
            value: "1".into(),
            before: Some("0".into()),
        });
    }
    Fix::safe(
        format!(
            "take what {link} has away (ip address flush dev {link}; ip route flush dev {link}), and keep managers off it (own.manager)"
        ),
        steps,
    )
}

fn manager(guest: &Guest<'_>, out: &mut Outcome) {
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
    let means = |stanza: &&super::stanza::Stanza| {
        stanza.kind == ConfigKind::Network && stanza.means(port.link, Some(port.function))
    };
    let mut files: Vec<_> = guest.stanzas().iter().filter(means).collect();
    if files.iter().any(|stanza| stanza.unmanaged) {
        return None;
    }
    // The first file by name wins.
    files.sort_by_key(|stanza| stanza.path.rsplit('/').next().map(str::to_owned));
    let first = files.first()?;
    Some(("this file means it".into(), Label::Config, first.path.clone()))
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

/// Whether `unmanaged-devices=` of a file names a VF.
fn leaves_alone(file: &ConfigFile, port: &VfPort<'_>) -> bool {
    let driver = port.function.driver.as_deref().unwrap_or_default();
    let mac = port.link.permanent.or(port.link.mac).map(|mac| mac.to_string());
    let is = |spec: &str| match spec.split_once(':') {
        Some(("mac", value)) => mac.as_deref().is_some_and(|mac| value.eq_ignore_ascii_case(mac)),
        Some(("interface-name", value)) => {
            fits(value.trim_start_matches(['=', '~']), &port.link.name)
        }
        Some(("driver", value)) => fits(value, driver),
        _ => spec == "*",
    };
    ini(&file.text).any(|(section, key, value)| {
        if section != "keyfile" || !key.starts_with("unmanaged-devices") {
            return false;
        }
        let mut named = false;
        for spec in value.split([';', ',']).map(str::trim).filter(|spec| !spec.is_empty()) {
            match spec.strip_prefix("except:") {
                Some(spec) if is(spec) => return false,
                Some(_) => {}
                None => named |= is(spec),
            }
        }
        named
    })
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
    let (Some(mac), Some(driver)) = (mac, &port.function.driver) else {
        return Fix::advice("exclude it in the manager's configuration");
    };
    let tail = mac.to_string().replace(':', "");
    match manager {
        Manager::Networkd => {
            let contents = format!(
                "[Match]\nPermanentMACAddress={mac}\nDriver={driver}\n\n[Link]\nUnmanaged=yes\n"
            );
            let path = format!("/etc/systemd/network/00-netvsc-vf-{tail}.network");
            let step = guest.file(&path, contents);
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

fn master(guest: &Guest<'_>, out: &mut Outcome) {
    for port in guest.vfs() {
        let Some(master) = other_master(port) else { continue };
        let name = &port.link.name;
        let text = format!("{name} is a port of {master}, which is no synthetic NIC");
        let link = guest::name(port.link);
        let above = guest.snapshot.link(master).and_then(guest::name);
        let steps = link.zip(above).map(|(link, master)| vec![Step::Release { link, master }]);
        let finding = Finding::new(Severity::Critical, name.clone(), text)
            .because(format!("master is {master}"), Label::Sysfs, format!("{}/master", port.link.path))
            .fix(Fix::safe(
                format!("ip link set dev {name} nomaster, and put the NIC itself into {master} if it is needed there"),
                steps.unwrap_or_default(),
            ));
        out.find(finding);
    }
}

fn netns(guest: &Guest<'_>, out: &mut Outcome) {
    for nic in guest.relations.nics.iter().filter(|nic| !nic.joined) {
        let Some(mac) = nic.link.and_then(|link| link.permanent) else { continue };
        for namespace in &guest.snapshot.elsewhere {
            let Some(links) = &namespace.links else {
                out.undecided(format!(
                    "the network namespace {} could not be entered; it needs CAP_SYS_ADMIN",
                    namespace.namespace
                ));
                continue;
            };
            let is_vf = |link: &&crate::netlink::Link| {
                let function = link.parent.as_deref().and_then(PciAddress::parse);
                let function = function.and_then(|address| guest.snapshot.function(address));
                let vpci = function.is_some_and(|function| function.bus.is_some());
                vpci && (link.permanent == Some(mac) || link.mac == Some(mac))
            };
            let Some(link) = links.iter().find(is_vf) else { continue };
            let text = format!(
                "{}, the VF of {}, is in the network namespace {}",
                link.name,
                nic.name(),
                namespace.namespace
            );
            let finding = Finding::new(Severity::Warn, nic.name(), text)
                .because(
                    format!("{} has permanent MAC {mac}", link.name),
                    Label::Netlink,
                    format!("/run/netns/{}", namespace.namespace),
                )
                .fix(Fix::advice(format!(
                    "ip -n {} link set dev {} netns 1",
                    namespace.namespace, link.name
                )));
            out.find(finding);
        }
    }
}

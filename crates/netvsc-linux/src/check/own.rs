//! Whether somebody else takes a VF for a NIC of its own: addresses, managers, masters, namespaces.

use super::Check;
use super::finding::{Finding, Label, Outcome, Severity};
use super::fix::{Fix, LinkName, Step};
use super::guest::{self, Guest};
use super::manager::manager;
use super::marks::{rule_dup, rule_initramfs, rule_old};
use super::pair::other_master;
use crate::inventory::{PciAddress, Source};
use crate::netlink::Address;

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

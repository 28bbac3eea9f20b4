//! Whether interfaces have the names that they should have, and keep them.

use vpci::Slot;
use vpci::naming::{Interface, predict};

use super::Check;
use super::config::is_vf_name;
use super::finding::{Finding, Label, Outcome, Severity};
use super::fix::{Fix, Step};
use super::guest::{self, Guest};
use super::stanza::Stanza;
use crate::inventory::{ConfigKind, NetDevice, Parent};

pub(super) const CHECKS: [Check; 3] = [
    Check::new("name.temp", "warn", "an interface kept a name that was meant for a moment", temp),
    Check::new(
        "name.mac-match",
        "warn",
        "configuration finds a NIC by its MAC alone, which its VF has as well",
        mac_match,
    ),
    Check::new("name.unstable", "info", "configuration relies on a name that changes", unstable),
];

/// Configuration that finds interfaces by names or MACs.
const KINDS: [ConfigKind; 7] = [
    ConfigKind::Netplan,
    ConfigKind::Network,
    ConfigKind::Link,
    ConfigKind::Connection,
    ConfigKind::Ifcfg,
    ConfigKind::Interfaces,
    ConfigKind::UdevRules,
];

fn is_temporary(name: &str) -> bool {
    ["cirename", "rename"].iter().any(|prefix| {
        name.strip_prefix(prefix)
            .is_some_and(|rest| !rest.is_empty() && rest.bytes().all(|byte| byte.is_ascii_digit()))
    })
}

fn temp(guest: &Guest<'_>, out: &mut Outcome) {
    for link in guest.snapshot.links.iter().filter(|link| is_temporary(&link.name)) {
        let name = &link.name;
        let text = format!(
            "{name} is a name for the moment of renaming; whoever renamed it did not finish"
        );
        // The name that udev would give it, if nobody has it.
        let better = ["ID_NET_NAME_SLOT", "ID_NET_NAME_PATH", "ID_NET_NAME_MAC"]
            .iter()
            .find_map(|key| link.property(key).map(str::to_owned))
            .or_else(|| slot_name(guest, link))
            .filter(|better| better.len() < 16 && guest.snapshot.link(better).is_none());
        let (words, steps) = match (better, guest::name(link)) {
            (Some(better), Some(link)) => (
                format!("ip link set dev {name} name {better}"),
                vec![Step::Rename { link, to: better }],
            ),
            _ => (format!("ip link set dev {name} name NAME"), Vec::new()),
        };
        let finding = Finding::new(Severity::Warn, name.clone(), text)
            .because(format!("name {name}"), Label::Sysfs, link.path.clone())
            .fix(Fix::safe(words, steps));
        out.find(finding);
    }
}

/// The name that udev makes of the slot of a VF.
fn slot_name(guest: &Guest<'_>, link: &NetDevice) -> Option<String> {
    let Parent::Pci(address) = link.parent else { return None };
    let function = guest.snapshot.function(address).filter(|f| f.bus.is_some())?;
    predict(&Interface {
        domain: address.domain.try_into().ok()?,
        slot: Slot::new(address.device, address.function)?,
        slot_name: function.slot.as_deref(),
        multifunction: false,
        dev_port: link.port,
        port_name: None,
    })
}

/// What takes a MAC and a driver, in the words of each kind of file.
fn patch(stanza: &Stanza) -> String {
    let how = match stanza.kind {
        ConfigKind::Netplan => "match:\n+ driver: hv_netvsc",
        ConfigKind::Link | ConfigKind::Network => "[Match]\n+ Driver=hv_netvsc",
        ConfigKind::UdevRules => "+ DRIVERS==\"hv_netvsc\"",
        ConfigKind::Connection => "[match]\n+ driver=hv_netvsc",
        _ => "- HWADDR=..",
    };
    format!("in {}: {how}", stanza.path)
}

fn mac_match(guest: &Guest<'_>, out: &mut Outcome) {
    // A MAC means two interfaces wherever a NIC has a VF, or may get one.
    let twice = |stanza: &Stanza| {
        let nics = guest.relations.nics.iter().filter_map(|nic| nic.link?.permanent);
        nics.into_iter().find(|mac| stanza.macs.contains(mac))
    };
    for stanza in guest.stanzas() {
        // A `.network` file with a name or a connection with an interface's name means one interface.
        if !KINDS.contains(&stanza.kind) || !stanza.by_mac_alone() || !stanza.names.is_empty() {
            continue;
        }
        if stanza.unmanaged {
            continue;
        }
        let Some(mac) = twice(stanza) else { continue };
        let text = format!(
            "{} finds its interface by MAC {mac} alone, which a NIC and its VF share",
            stanza.path
        );
        let finding = Finding::new(Severity::Warn, stanza.path.clone(), text)
            .because(format!("match by {mac}, no driver"), Label::Config, stanza.path.clone())
            .fix(Fix::advice(patch(stanza)));
        out.find(finding);
    }
    if let Some(reason) = guest.unreadable(&KINDS) {
        out.undecided(reason);
    }
}

fn unstable(guest: &Guest<'_>, out: &mut Outcome) {
    for stanza in guest.stanzas().iter().filter(|stanza| KINDS.contains(&stanza.kind)) {
        if stanza.unmanaged {
            continue;
        }
        let Some((text, evidence)) = names_vf(guest, stanza).or_else(|| misnamed(guest, stanza))
        else {
            continue;
        };
        let finding = Finding::new(Severity::Info, stanza.path.clone(), text)
            .because(evidence, Label::Config, stanza.path.clone())
            .fix(Fix::advice(
                "find the NIC by its MAC and driver hv_netvsc; to give it a name of its own, write a .link file with both: \
                 [Match] PermanentMACAddress=.. Driver=hv_netvsc [Link] Name=..",
            ));
        out.find(finding);
    }
    if let Some(reason) = guest.unreadable(&KINDS) {
        out.undecided(reason);
    }
}

/// Whether a stanza names a VF: one that is here, or by a name that only VFs have.
fn names_vf(guest: &Guest<'_>, stanza: &Stanza) -> Option<(String, String)> {
    let here = |name: &&String| guest.vfs().any(|port| port.link.name == **name);
    let alone = |name: &&String| {
        // The name of a port that is nobody's VF is as good as any.
        !guest.relations.standalone().any(|port| port.link.name == **name && !guest.is_vf(port))
    };
    let name = stanza.names.iter().filter(alone).find(|name| here(name) || is_vf_name(name))?;
    let text =
        format!("{} names {name}, a VF, whose name changes with the host it runs on", stanza.path);
    Some((text, format!("names {name}")))
}

/// Whether a NIC is called otherwise than a stanza wants it to be.
fn misnamed(guest: &Guest<'_>, stanza: &Stanza) -> Option<(String, String)> {
    let wanted = stanza.wants_name.as_deref().filter(|name| !name.contains(['$', '%']))?;
    let mut links = guest.relations.nics.iter().filter_map(|nic| nic.link);
    let link = links.find(|link| link.permanent.is_some_and(|mac| stanza.macs.contains(&mac)))?;
    if link.name == wanted {
        return None;
    }
    let text = format!(
        "{} calls the NIC with MAC {} {wanted}, and it is called {}",
        stanza.path, link.permanent?, link.name
    );
    Some((text, format!("wants the name {wanted}")))
}

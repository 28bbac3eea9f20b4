//! What people read: one page per pair, and why it is or is not one.

use std::fmt::Write;

use netvsc::MacAddress;
use netvsc::pairing::Reason;
use netvsc_linux::inventory::{LogLine, NetDevice, Snapshot, Source, Subject};
use netvsc_linux::relation::{NicView, Relations, State, VfPort};

use super::table::{Style, plain, table};
use crate::live::Live;

/// Lines of the kernel log on a page.
const LOG_LINES: usize = 8;

/// What a name on the command line means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    /// A NIC, by its place in [`Relations::nics`].
    Nic(usize),
    /// A port without NIC, by its place in [`Relations::ports`].
    Port(usize),
    /// A card that is no candidate, by its place in [`Relations::others`].
    Other(usize),
}

/// Finds what an interface (by any of its names), GUID, PCI address or permanent MAC address names. The NIC, where it names one of
/// a pair. GUIDs may stand in braces, MACs be written with dashes as Windows does, and case does not matter but in names.
#[must_use]
pub fn find(relations: &Relations<'_>, name: &str) -> Option<Found> {
    let lower = name.trim_matches(['{', '}']).to_ascii_lowercase();
    let mac = lower.parse::<MacAddress>().ok();
    let called =
        |link: &NetDevice| link.name == name || link.altnames().iter().any(|it| it == name);
    let same_mac = |link: &NetDevice| mac.is_some() && link.permanent == mac;
    let of_port = |port: &VfPort<'_>| {
        called(port.link)
            || same_mac(port.link)
            || port.function.address.to_string() == lower
            || port.function.bus.is_some_and(|bus| bus.to_string() == lower)
    };
    let of_nic = |nic: &NicView<'_>| {
        nic.device.guid.to_string() == lower
            || nic.link.is_some_and(|link| called(link) || same_mac(link))
    };
    let direct = relations.nics.iter().position(of_nic);
    let by_vf = || relations.nics.iter().position(|nic| relations.vf(nic).is_some_and(&of_port));
    if let Some(at) = direct.or_else(by_vf) {
        return Some(Found::Nic(at));
    }
    if let Some(at) = relations.ports.iter().position(of_port) {
        return Some(Found::Port(at));
    }
    let other = relations.others.iter().position(|(link, _)| called(link));
    other.map(Found::Other)
}

/// A page about one NIC: the facts with their sources, both interfaces side by side, the last words of the kernel.
#[must_use]
pub fn nic(
    snapshot: &Snapshot,
    relations: &Relations<'_>,
    nic: &NicView<'_>,
    style: Style,
) -> String {
    let mut page = format!("{} is {}", plain(&nic.name()), nic.state);
    match &nic.obstacle {
        Some(obstacle) => _ = writeln!(page, ": {obstacle}"),
        None => page.push('\n'),
    }
    page.push('\n');
    let port = relations.vf(nic);
    let mut facts = vec![fact("guid", nic.device.guid, "vmbus")];
    facts.push(fact("driver", nic.device.driver.as_deref().unwrap_or("none"), "driver"));
    match nic.association {
        Some(told) => {
            let value =
                told.value.map_or_else(|| "none".into(), |serial| format!("serial {serial}"));
            facts.push(fact("association", value, told.source));
        }
        None => facts.push(fact("association", "unknown", "the kernel log is silent")),
    }
    if let Some(port) = port {
        facts.extend(port_facts(port));
        facts.push(fact("pair", if nic.joined { "joined" } else { "not joined" }, Source::Link));
        let reason = nic.reason.map_or("unknown", Reason::word);
        facts.push(fact("reason", reason, "serials and permanent MACs"));
    }
    let path = nic.path.map_or_else(|| "unknown".to_owned(), |path| path.to_string());
    let since = nic.since.map(|at| format!(", since {:.3} s after boot", at.as_secs_f64()));
    let source = nic.path_source.map_or("the kernel log is silent", Source::word);
    facts.push(fact("path", path + &since.unwrap_or_default(), source));
    page.push_str(&table(&["FACT", "VALUE", "SOURCE"].map(str::to_owned), &facts, style));
    page.push('\n');
    page.push_str(&side_by_side(nic, port, style));
    channels(&mut page, nic, style);
    words(&mut page, snapshot, nic, port);
    page
}

/// What the run says that drives a NIC from user space, if one does.
#[must_use]
pub fn run(nic: &NicView<'_>, live: &[Live]) -> String {
    let guid = nic.device.guid.to_string();
    let nics = live.iter().flat_map(|run| run.nics.iter().map(move |nic| (run, nic)));
    let mut said = String::new();
    for (run, nic) in nics.filter(|(_, nic)| nic.guid.as_ref() == Some(&guid)) {
        let path = nic.path.as_deref().unwrap_or("no");
        let vf = nic.vf.as_ref().map(|vf| format!(" with {vf} for a VF")).unwrap_or_default();
        let counters = &nic.counters;
        _ = writeln!(
            said,
            "\nDriven from user space by process {}, as {}: {path} path{vf}, {} channels;\n\
             frames sent {} (vf) and {} (synthetic), received {} and {}; {} switches to the VF, {} back",
            run.pid,
            nic.device,
            nic.queues,
            counters.sent_vf,
            counters.sent_synthetic,
            counters.received_vf,
            counters.received_synthetic,
            counters.switches_to_vf,
            counters.switches_to_synthetic
        );
    }
    said
}

fn fact(name: &str, value: impl ToString, source: impl ToString) -> Vec<String> {
    vec![name.to_owned(), value.to_string(), source.to_string()]
}

fn port_facts(port: &VfPort<'_>) -> Vec<Vec<String>> {
    let function = port.function;
    let mut facts = vec![fact("function", function.address, "vPCI")];
    if let Some(bus) = function.bus {
        facts.push(fact("bus", bus, "vmbus"));
    }
    facts.push(fact("vf driver", function.driver.as_deref().unwrap_or("none"), "driver"));
    match port.serial {
        Some(serial) => facts.push(fact("vf serial", serial.value, serial.source)),
        None => {
            let name = function.slot.as_deref().unwrap_or("no slot");
            facts.push(fact("vf serial", format!("unknown ({name})"), Source::Slot));
        }
    }
    facts
}

/// The settings of both layers.
fn side_by_side(nic: &NicView<'_>, port: Option<&VfPort<'_>>, style: Style) -> String {
    let links = [nic.link, port.map(|port| port.link)];
    let text = |value: Option<String>| value.unwrap_or_else(|| "-".into());
    let mut rows = Vec::new();
    let mut row = |name: &str, of: &dyn Fn(&NetDevice) -> Option<String>| {
        let mut cells = vec![name.to_owned()];
        cells.extend(links.iter().map(|link| text(link.and_then(of))));
        rows.push(cells);
    };
    row("other names", &|link| Some(link.altnames().join(" ")).filter(|names| !names.is_empty()));
    row("index", &|link| link.index.map(|index| index.to_string()));
    row("mac", &|link| link.mac.map(|mac| mac.to_string()));
    row("permanent mac", &|link| link.permanent.map(|mac| mac.to_string()));
    row("up", &|link| link.is_up().map(|up| if up { "yes" } else { "no" }.to_owned()));
    row("operstate", &|link| link.operstate.clone());
    row("mtu", &|link| link.mtu.map(|mtu| mtu.to_string()));
    row("speed", &|link| link.speed.map(|speed| format!("{speed} Mbit/s")));
    row("queues", &|link| link.queues.map(|(tx, rx)| format!("{tx} tx, {rx} rx")));
    row("managed by", &|link| link.property("ID_NET_MANAGED_BY").map(str::to_owned));
    for counter in ["rx_packets", "rx_bytes", "rx_dropped", "tx_packets", "tx_bytes"] {
        row(counter, &|link| link.counters.get(counter).map(u64::to_string));
    }
    // What the NIC's driver counts of its VF, over all VFs that there were.
    for counter in ["vf_rx_packets", "vf_tx_packets", "vf_tx_dropped"] {
        if links.iter().flatten().any(|link| link.shares.contains_key(counter)) {
            row(counter, &|link| link.shares.get(counter).map(u64::to_string));
        }
    }
    let vf = port.map_or("(no VF)", |port| port.link.name.as_str());
    table(&["".into(), nic.name(), vf.to_owned()], &rows, style)
}

fn channels(page: &mut String, nic: &NicView<'_>, style: Style) {
    if nic.device.channels.is_empty() {
        return;
    }
    let number = |value: Option<u32>| value.map_or_else(|| "-".into(), |value| value.to_string());
    let rows: Vec<_> =
        nic.device
            .channels
            .iter()
            .map(|channel| {
                let mut row =
                    vec![channel.id.to_string(), number(channel.subchannel), number(channel.cpu)];
                row.extend(["interrupts", "events", "out_full_total"].map(|name| {
                    channel.counters.get(name).map_or_else(|| "-".into(), u64::to_string)
                }));
                row
            })
            .collect();
    let headers = ["CHANNEL", "SUB", "CPU", "INTERRUPTS", "EVENTS", "RING FULL"];
    page.push('\n');
    page.push_str(&table(&headers.map(str::to_owned), &rows, style));
}

/// The last lines of the kernel about the pair.
fn words(page: &mut String, snapshot: &Snapshot, nic: &NicView<'_>, port: Option<&VfPort<'_>>) {
    let subjects = [
        Some(Subject::Vmbus(nic.device.guid)),
        port.map(|port| Subject::Pci(port.function.address)),
    ];
    let lines: Vec<&LogLine> =
        snapshot.log.lines.iter().filter(|line| subjects.contains(&Some(line.subject))).collect();
    if lines.is_empty() {
        return;
    }
    page.push_str("\nkernel log:\n");
    for line in lines.iter().skip(lines.len().saturating_sub(LOG_LINES)) {
        let text = plain(&line.text).replace('\n', " ");
        _ = writeln!(page, "  [{:>12.6}] {text}", line.at.as_secs_f64());
    }
}

/// A port without NIC.
#[must_use]
pub fn port(port: &VfPort<'_>, style: Style) -> String {
    let mut page = format!(
        "{} is {}: no NIC has its serial or its MAC\n\n",
        plain(&port.link.name),
        State::Standalone
    );
    let rows = port_facts(port);
    page.push_str(&table(&["FACT", "VALUE", "SOURCE"].map(str::to_owned), &rows, style));
    page
}

/// Why something is or is not a pair, one sentence each.
#[must_use]
pub fn explain(snapshot: &Snapshot, relations: &Relations<'_>, found: Found) -> Vec<String> {
    match found {
        Found::Nic(at) => relations.nics.get(at).map(|nic| sentences(snapshot, relations, nic)),
        Found::Port(at) => relations.ports.get(at).map(|port| {
            let rules = match port.rules.as_deref() {
                Some(_) if !relations.informed => UNINFORMED,
                rules => rules.unwrap_or("it has no serial, so none applies."),
            };
            vec![
                format!(
                    "{} is a port of function {}, which came over vPCI.",
                    port.link.name, port.function.address
                ),
                format!("The rules: {rules}"),
                "The kernel has not joined it with a NIC.".to_owned(),
            ]
        }),
        Found::Other(at) => relations
            .others
            .get(at)
            .map(|(link, refusal)| vec![format!("{}: {refusal}.", link.name)]),
    }
    .unwrap_or_default()
}

/// What the rules come to where the log does not say what the host associates: they would take that for nothing.
const UNINFORMED: &str =
    "they go by what the host associates with each NIC, and that is not known of all.";

/// Why the rules make a pair, as far as that rests on what was read.
fn grounds(relations: &Relations<'_>, reason: Reason) -> String {
    match reason {
        // That no NIC is associated with a serial is known only if it is known of all.
        Reason::Mac if !relations.informed => {
            "the permanent MACs agree, and what the host associates is not known".to_owned()
        }
        reason => reason.to_string(),
    }
}

fn sentences(snapshot: &Snapshot, relations: &Relations<'_>, nic: &NicView<'_>) -> Vec<String> {
    let mut said = vec![format!("{} is {}.", nic.name(), nic.state)];
    said.extend(nic.obstacle.map(|obstacle| format!("The first thing in the way: {obstacle}.")));
    said.push(match nic.association {
        Some(told) => match told.value {
            Some(serial) if told.source != Source::KernelLog => format!(
                "The host probably associates serial {serial} with it: the kernel joined it with a VF of that serial ({}).",
                told.source
            ),
            Some(serial) => {
                format!("The host associates serial {serial} with it ({}).", told.source)
            }
            None => format!("The host associates nothing with it ({}).", told.source),
        },
        None => "Nobody knows what the host associates with it.".to_owned(),
    });
    if let Some(port) = relations.vf(nic) {
        let name = &port.link.name;
        said.push(match (nic.joined, port.should) {
            (true, Some((guid, reason))) if guid == nic.device.guid => {
                let why = grounds(relations, reason);
                format!("The kernel has joined {name} with it, and the rules agree: {why}.")
            }
            (true, Some((guid, _))) => {
                format!("The kernel has joined {name} with it, but by the rules it is NIC {guid}'s.")
            }
            (true, None) if nic.link.is_some_and(|link| link.permanent != port.link.permanent) => {
                format!("The kernel has joined {name} with it, and they have not the same permanent MAC: by the rules they are no pair.")
            }
            (true, None) => {
                format!("The kernel has joined {name} with it; the rules cannot confirm that from what was read.")
            }
            (false, _) => format!("By the rules {name} is its VF, and the kernel has not joined the two."),
        });
    }
    let rules = if relations.informed { relations.rules(nic) } else { Some(UNINFORMED.to_owned()) };
    said.extend(rules.map(|rules| format!("The rules: {rules}")));
    if !snapshot.log.read {
        said.push("The kernel log could not be read; it needs CAP_SYSLOG.".to_owned());
    } else if !snapshot.log.complete {
        said.push(
            "The kernel log does not go back to the boot, so its silence says nothing.".to_owned(),
        );
    }
    said
}

//! The verbs that look at a guest: list, show, explain, resolve, lsvmbus.
//!
//! Each reads one snapshot, prints, and ends. Only what was asked for is on standard output; what could not be read is
//! said on standard error.

pub mod args;
pub mod columns;
pub mod document;
pub mod lsvmbus;
pub mod page;
pub mod table;

use std::io::Write;
use std::path::Path;
use std::time::Duration;

use netvsc_linux::inventory::{Depth, Snapshot, sample, take};
use netvsc_linux::relation::{NicView, Relations, wants_samples};
use netvsc_linux::uio::UIO_DRIVER;
use serde::Serialize;

use self::args::{
    ExplainArgs, ListArgs, LsvmbusArgs, OutputArgs, ResolveArgs, ShowArgs, SourceArgs, Wanted,
};
use self::columns::{Column, ColumnChoice};
use self::document::{Document, SCHEMA_VERSION};
use self::page::Found;
use self::table::{Style, plain, table};
use crate::error::Error;
use crate::live::{Live, ask_all};

/// What is said where there is nothing to look at.
pub const NO_HYPERV: &str = "no VMBus here: this machine is no Hyper-V guest";

/// What there is to say on a guest that has no network card.
const NO_NICS: &str = "no NIC on this VMBus, and no VF behind it";

/// How far apart samples of the counters are, where the kernel log does not tell which way frames go.
pub(crate) const INTERVAL: Duration = Duration::from_millis(100);
/// How many samples there are.
const SAMPLES: usize = 3;

/// Reads a guest, and looks at its counters for a while if the kernel log does not tell the path of every pair.
pub(crate) fn snapshot(source: &SourceArgs, depth: Depth) -> Result<Snapshot, Error> {
    let mut snapshot = take(source.sysfs_root.as_deref(), depth)?;
    if snapshot.live && wants_samples(&snapshot) {
        watch_counters(&mut snapshot, INTERVAL);
    }
    Ok(snapshot)
}

/// Takes samples of the counters of the running system.
pub(crate) fn watch_counters(snapshot: &mut Snapshot, interval: Duration) {
    for number in 0..SAMPLES {
        if number > 0 {
            std::thread::sleep(interval);
        }
        sample(snapshot);
    }
}

/// What runs tell that drive NICs from user space, if this guest has any that the kernel does not drive.
fn runs(source: &SourceArgs, relations: &Relations<'_>) -> Vec<Live> {
    let ours = |nic: &NicView<'_>| nic.device.driver.as_deref() == Some(UIO_DRIVER);
    if !relations.nics.iter().any(ours) {
        return Vec::new();
    }
    let answers = ask_all(source.sysfs_root.as_deref().unwrap_or(Path::new("/")));
    for (path, why) in &answers.failed {
        crate::remark(format_args!("cannot ask {}: {why}", path.display()));
    }
    answers.live
}

/// Says on standard error what could not be read.
pub(crate) fn complain(snapshot: &Snapshot) {
    for note in &snapshot.unreadable {
        let text: String = note.to_string().chars().filter(|c| !c.is_control()).collect();
        crate::remark(format_args!("cannot read {text}"));
    }
}

/// Prints text. A reader that has seen enough and closed the pipe is no failure.
pub(crate) fn print(text: &str) -> Result<(), Error> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Err(Error::Output(error)),
        _ => Ok(()),
    }
}

pub(crate) fn print_json(value: &impl Serialize, output: &OutputArgs) -> Result<(), Error> {
    let text = if output.pretty {
        serde_json::to_string_pretty(value)
    } else {
        serde_json::to_string(value)
    };
    let mut text = text.map_err(|error| Error::Output(error.into()))?;
    text.push('\n');
    print(&text)
}

/// `netvsc list`.
///
/// # Errors
/// If the root cannot be used or the output not be written.
pub fn list(args: &ListArgs) -> Result<(), Error> {
    let snapshot = snapshot(&args.source, Depth::Pairs)?;
    let relations = Relations::of(&snapshot);
    let mut document = Document::of(&snapshot, &relations);
    document.hear(&runs(&args.source, &relations));
    if !args.output.json() {
        complain(&snapshot);
    }
    if !snapshot.hyperv {
        if args.output.json() {
            crate::remark(NO_HYPERV);
        } else {
            return print(&format!("{NO_HYPERV}\n"));
        }
    }
    if args.output.json() {
        return print_json(&document, &args.output);
    }
    if document.nics.is_empty() && document.standalone.is_empty() {
        return print(&format!("{NO_NICS}\n"));
    }
    let columns = args.rows.chosen().unwrap_or_else(|| ColumnChoice::default().0);
    print(&listing(&document, &columns, !args.rows.brief, Style::choose(args.output.color)))
}

/// A table of NICs, and of ports that belong to none.
fn listing(document: &Document, columns: &[Column], header: bool, style: Style) -> String {
    let nics = document.nics.iter();
    let mut rows: Vec<Vec<String>> =
        nics.map(|nic| columns.iter().map(|column| column.of_nic(nic)).collect()).collect();
    rows.extend(
        document
            .standalone
            .iter()
            .map(|port| columns.iter().map(|column| column.of_port(port)).collect()),
    );
    let headers: Vec<_> = columns.iter().map(|column| column.header()).collect();
    table(if header { &headers } else { &[] }, &rows, style)
}

/// `netvsc show`.
///
/// # Errors
/// If a name means nothing here, the root cannot be used or the output not be written.
pub fn show(args: &ShowArgs) -> Result<(), Error> {
    let snapshot = snapshot(&args.source, Depth::Full)?;
    let relations = Relations::of(&snapshot);
    let found: Vec<Found> = if args.names.is_empty() {
        let alone = relations.ports.iter().enumerate();
        let alone = alone.filter(|(_, port)| port.did.is_none() && port.should.is_none());
        let nics = (0..relations.nics.len()).map(Found::Nic);
        nics.chain(alone.map(|(at, _)| Found::Port(at))).collect()
    } else {
        let found = args.names.iter().map(|name| named(&relations, name));
        found.collect::<Result<_, _>>()?
    };
    let live = runs(&args.source, &relations);
    let document = || {
        let mut document = Document::of(&snapshot, &relations);
        document.hear(&live);
        select(&mut document, &relations, &found);
        document
    };
    if args.output.json() {
        return print_json(&document(), &args.output);
    }
    complain(&snapshot);
    if !snapshot.hyperv {
        return print(&format!("{NO_HYPERV}\n"));
    }
    let style = Style::choose(args.output.color);
    if let Some(columns) = args.rows.chosen() {
        return print(&listing(&document(), &columns, !args.rows.brief, style));
    }
    let pages: Vec<String> = found
        .iter()
        .filter_map(|found| match *found {
            Found::Nic(at) => {
                let nic = relations.nics.get(at);
                nic.map(|nic| page::nic(&snapshot, &relations, nic, style) + &page::run(nic, &live))
            }
            Found::Port(at) => relations.ports.get(at).map(|port| page::port(port, style)),
            Found::Other(_) => {
                Some(plain(&page::explain(&snapshot, &relations, *found).join(" ")) + "\n")
            }
        })
        .collect();
    print(&pages.join("\n"))
}

/// Leaves in a document what was asked for.
fn select(document: &mut Document, relations: &Relations<'_>, found: &[Found]) {
    let guids: Vec<String> = found
        .iter()
        .filter_map(|found| match found {
            Found::Nic(at) => relations.nics.get(*at).map(|nic| nic.device.guid.to_string()),
            _ => None,
        })
        .collect();
    let names: Vec<&str> = found
        .iter()
        .filter_map(|found| match found {
            Found::Nic(_) => None,
            Found::Port(at) => relations.ports.get(*at).map(|port| port.link.name.as_str()),
            Found::Other(at) => relations.others.get(*at).map(|(link, _)| link.name.as_str()),
        })
        .collect();
    document.nics.retain(|nic| guids.contains(&nic.guid));
    document.standalone.retain(|port| names.contains(&port.ifname.as_str()));
    document.others.retain(|other| names.contains(&other.ifname.as_str()));
}

fn named(relations: &Relations<'_>, name: &str) -> Result<Found, Error> {
    page::find(relations, name).ok_or_else(|| Error::NoSuchDevice { name: name.to_owned() })
}

#[derive(Serialize)]
struct Explained<'a> {
    schema_version: u32,
    name: &'a str,
    sentences: Vec<String>,
}

/// `netvsc explain`.
///
/// # Errors
/// If the name means nothing here, the root cannot be used or the output not be written.
pub fn explain(args: &ExplainArgs) -> Result<(), Error> {
    let snapshot = snapshot(&args.source, Depth::Pairs)?;
    let relations = Relations::of(&snapshot);
    let found = named(&relations, &args.name)?;
    let sentences = page::explain(&snapshot, &relations, found);
    if args.output.json() {
        let explained = Explained { schema_version: SCHEMA_VERSION, name: &args.name, sentences };
        return print_json(&explained, &args.output);
    }
    print(&plain(&(sentences.join("\n") + "\n")))
}

#[derive(Serialize)]
struct Resolved {
    schema_version: u32,
    value: String,
}

/// `netvsc resolve`: one word.
///
/// # Errors
/// If no pair or more than one fits, what is wanted is not known of it, the root cannot be used, or the output not be
/// written.
pub fn resolve(args: &ResolveArgs) -> Result<(), Error> {
    let snapshot = snapshot(&args.source, Depth::Pairs)?;
    let relations = Relations::of(&snapshot);
    let asked = [&args.mac, &args.guid, &args.pci, &args.interface].into_iter().flatten().next();
    let nic = match (asked, args.serial) {
        (Some(name), _) => match page::find(&relations, name) {
            Some(Found::Nic(at)) => relations.nics.get(at),
            _ => None,
        }
        .ok_or_else(|| Error::NoSuchDevice { name: name.clone() })?,
        (None, serial) => by_serial(&relations, serial.unwrap_or_default())?,
    };
    let port = relations.vf(nic);
    let link = nic.link.or(port.map(|port| port.link));
    let word = match args.print {
        Wanted::Nic => nic.link.map(|link| link.name.clone()),
        Wanted::Vf => port.map(|port| port.link.name.clone()),
        Wanted::Guid => Some(nic.device.guid.to_string()),
        Wanted::Pci => port.map(|port| port.function.address.to_string()),
        Wanted::Mac => link.and_then(|link| link.permanent).map(|mac| mac.to_string()),
    };
    let value = word.ok_or_else(|| Error::NotKnown { nic: nic.name(), state: nic.state.word() })?;
    if args.output.json() {
        return print_json(&Resolved { schema_version: SCHEMA_VERSION, value }, &args.output);
    }
    print(&(plain(&value) + "\n"))
}

/// The one NIC that is associated with a serial. Serials need not be unique.
fn by_serial<'a, 'b>(relations: &'b Relations<'a>, serial: u32) -> Result<&'b NicView<'a>, Error> {
    let fits = |nic: &&NicView<'_>| {
        nic.association.and_then(|told| told.value).is_some_and(|told| told.0 == serial)
    };
    let all: Vec<_> = relations.nics.iter().filter(fits).collect();
    match all.as_slice() {
        [nic] => Ok(nic),
        [] => Err(Error::NoSuchDevice { name: format!("serial {serial}") }),
        several => {
            let names: Vec<_> = several.iter().map(|nic| nic.name()).collect();
            Err(Error::Ambiguous { name: format!("serial {serial}"), found: names.join(", ") })
        }
    }
}

/// `netvsc lsvmbus`.
///
/// # Errors
/// If the root cannot be used or the output not be written.
pub fn lsvmbus(args: &LsvmbusArgs) -> Result<(), Error> {
    let snapshot = snapshot(&args.source, Depth::Full)?;
    complain(&snapshot);
    if !snapshot.hyperv {
        crate::remark(NO_HYPERV);
    }
    if args.output.json() {
        return print_json(&lsvmbus::Devices::of(&snapshot), &args.output);
    }
    let style = Style::choose(args.output.color);
    match (&args.columns, args.brief) {
        (Some(columns), _) => print(&lsvmbus::listing(&snapshot, columns, true, style)),
        (None, true) => print(&lsvmbus::listing(&snapshot, &lsvmbus::BRIEF, false, style)),
        (None, false) => print(&lsvmbus::text(&snapshot, args.verbose)),
    }
}

//! `netvsc bind`: which driver has a NIC.

use std::collections::BTreeSet;
use std::path::Path;

use clap::{ArgGroup, Args};
use netvsc_linux::check::Guest;
use netvsc_linux::inventory::{Depth, take};
use netvsc_linux::relation::{NicView, Relations};
use netvsc_linux::uio::{
    BindError, Binding, Change, Journal, KERNEL_NIC_DRIVER, Record, Restored, UIO_DRIVER,
    restore_all,
};
use serde::Serialize;
use vmbus::Guid;

use crate::error::Error;
use crate::inspect::args::{OutputArgs, SourceArgs};
use crate::inspect::document::SCHEMA_VERSION;
use crate::inspect::page::{Found, find};
use crate::inspect::{print, print_json};
use crate::remote::unhush;
use crate::session::session;

/// Where records of taken devices are, below the root. It goes with the boot, as the bindings do.
pub(crate) const JOURNAL: &str = "run/netvsc/bind";

/// What is said at length about the verb.
pub const LONG: &str = "\
Give a NIC to user space (--uio) or back to the kernel (--kernel).

A NIC that user space has is no network interface any more, until it goes back. Which driver and which override it had is \
written to /run/netvsc/bind first, so that --recover can undo what a run that was killed left behind; its names and its MAC as \
well, by which it is still known here. The override keeps other drivers away until the host takes the NIC away: one that it \
offers again is a new device to the kernel, and has the kernel's driver. With --kernel, --recover or --restore the interface of a VF (netvsc \
run --vf-link, netvsc host --vf-peer) also gets back what a run that was killed has set of the kernel's IP, in this network namespace.

A NIC that a run drives stays with it: --kernel and --restore refuse it until that run has ended. They also give back what \
--uio left with user space; --recover does not, and where there is nothing for it to do it says nothing. A name that a NIC had \
before it was taken, and another one has got since, means neither: the GUID has to be given.

A NIC that carries a default route or the session that you are in is refused; --force takes it all the same.";

/// Examples and exit statuses of the verb.
pub const STATUS: &str = "\
Examples:
  netvsc bind --uio eth1 --dry-run
      show what would be written, and write nothing
  netvsc bind --uio eth1
  netvsc bind --kernel f8615163-0000-1000-2000-6045bd000001
  netvsc bind --recover
      give back what runs left that were killed
  netvsc bind --restore
      give back everything that was taken

Exit status:
  0  done, or shown
  1  refused, or the kernel did not do it; then all is as before
  2  the command line makes no sense

Needs root.";

/// Options of `netvsc bind`.
#[derive(Clone, Debug, Args)]
#[command(group = ArgGroup::new("to").required(true).args(["uio", "kernel", "recover", "restore"]))]
pub struct BindArgs {
    /// Give the NIC to user space (uio_hv_generic)
    #[arg(long, requires = "name")]
    pub uio: bool,

    /// Give the NIC back to the driver that it had, or to the kernel's own (hv_netvsc)
    #[arg(long, requires = "name")]
    pub kernel: bool,

    /// Give back what a run left that was killed, and nothing else: the NIC that is named, or all of them
    #[arg(long)]
    pub recover: bool,

    /// Give back every device that was taken, as it was, but for those that are driven
    #[arg(long, conflicts_with = "name")]
    pub restore: bool,

    /// Show every write and make none
    #[arg(long)]
    pub dry_run: bool,

    /// Take it although a default route or this session goes through it
    #[arg(long)]
    pub force: bool,

    /// Interface, GUID or MAC address of the NIC
    #[arg(value_name = "NAME")]
    pub name: Option<String>,

    /// Where to look.
    #[command(flatten)]
    pub source: SourceArgs,

    /// How to say what was done.
    #[command(flatten)]
    pub output: OutputArgs,
}

/// What became of a device.
#[derive(Debug, Default, Serialize)]
struct Outcome {
    /// Its GUID.
    device: String,
    /// The driver that it has now.
    driver: Option<String>,
    /// Whether something was written.
    done: bool,
    /// What was written, or would have been.
    changes: Vec<Written>,
    /// Why it is not done.
    error: Option<String>,
    /// The same for people.
    #[serde(skip)]
    text: String,
}

/// One write to an attribute.
#[derive(Debug, Serialize)]
struct Written {
    path: String,
    value: String,
}

/// What `netvsc bind` did, as JSON.
#[derive(Debug, Serialize)]
struct Bound<'a> {
    schema_version: u32,
    dry_run: bool,
    devices: &'a [Outcome],
}

/// `netvsc bind`.
///
/// # Errors
/// If the name is none of a NIC, the NIC is needed, the kernel refuses, or the output cannot be written.
pub fn run(args: &BindArgs) -> Result<(), Error> {
    let root = args.source.sysfs_root.as_deref().unwrap_or(Path::new("/"));
    let journal = Journal::new(root.join(JOURNAL));
    // A run that was killed may have left more than the NIC.
    let hushed = if args.uio { Ok(()) } else { unhush(root, args.dry_run) };
    let mut failed = None;
    let mut refusal = None;
    let outcomes = if args.restore {
        give_all_back(root, &journal, args.dry_run, &mut failed)?
    } else if args.recover {
        recover(args, root, &journal, &mut failed)?
    } else {
        let device = device(args, &mut refusal)?;
        let done = if args.uio { take_away } else { give_back };
        let mut outcome = done(root, device, journal, args.dry_run)?;
        if args.uio && args.dry_run && !outcome.changes.is_empty() {
            refusal = refusal.or_else(|| expect_driver(root).err());
            outcome.error = refusal.as_ref().map(Error::to_string);
            outcome.text.insert_str(0, &refusal.iter().map(would_be_refused).collect::<String>());
        }
        vec![outcome]
    };
    if args.output.json() {
        let devices = &outcomes;
        let bound = Bound { schema_version: SCHEMA_VERSION, dry_run: args.dry_run, devices };
        print_json(&bound, &args.output)?;
    } else {
        for outcome in &outcomes {
            print(&outcome.text)?;
        }
    }
    // A dry run ends as the real one would.
    refusal.or(failed.map(Error::from)).map_or(hushed, Err)
}

/// Gives a NIC to user space.
fn take_away(root: &Path, device: Guid, journal: Journal, dry: bool) -> Result<Outcome, Error> {
    let device = device.to_string();
    let record = Record::of(root, &device)?;
    if record.driver.as_deref() == Some(UIO_DRIVER) {
        let text = format!("{device} is user space's already\n");
        return Ok(Outcome { device, driver: record.driver, text, ..Outcome::default() });
    }
    let changes = record.changes_to(root, UIO_DRIVER);
    if dry {
        return Ok(shown(device, record.driver, &changes));
    }
    Binding::to(root, &device, UIO_DRIVER, journal)?.keep()?;
    let text = format!("{device} is user space's: {UIO_DRIVER}\n");
    let driver = Record::of(root, &device)?.driver;
    Ok(Outcome { device, driver, done: true, changes: written(&changes), error: None, text })
}

/// Gives a NIC back to the kernel.
fn give_back(root: &Path, device: Guid, journal: Journal, dry: bool) -> Result<Outcome, Error> {
    let driver = || Record::of(root, &device.to_string()).map(|has| has.driver);
    let record = match journal.record(device) {
        // Whatever it says, the kernel has the NIC.
        Err(error) if error.is_forbidden() && driver()?.as_deref() == Some(KERNEL_NIC_DRIVER) => {
            None
        }
        record => record?,
    };
    let Some(record) = before(root, device, record)? else {
        return Ok(untouched(device, driver()?));
    };
    if dry {
        let changes = record.changes_back(root);
        return Ok(match changes.as_slice() {
            [] => untouched(device, driver()?),
            changes => shown(device.to_string(), driver()?, changes),
        });
    }
    let hold = journal.hold(device)?;
    // Until then it may have been anybody's.
    let Some(record) = before(root, device, hold.record()?)? else {
        return Ok(untouched(device, driver()?));
    };
    Ok(given(root, device, &hold.restore(root, &record)?))
}

/// How a NIC was before it was taken. None if nobody took it: there is nothing to undo, and its interface is not to vanish for a moment.
fn before(root: &Path, device: Guid, record: Option<Record>) -> Result<Option<Record>, Error> {
    let has = Record::of(root, &device.to_string())?;
    let taken = has.driver.as_deref() != Some(KERNEL_NIC_DRIVER);
    // Somebody else took it; what he found is not known, so it gets what every NIC has.
    let driver = Some(KERNEL_NIC_DRIVER.to_owned());
    let usual = || Record { driver, driver_override: None, ..has };
    Ok(record.or_else(|| taken.then(usual)))
}

/// It was given back, by these writes.
fn given(root: &Path, device: Guid, changes: &[Change]) -> Outcome {
    let name = device.to_string();
    let Ok(has) = Record::of(root, &name) else {
        let text = format!("{device} is gone: nothing is to be given back\n");
        return Outcome { device: name, text, ..Outcome::default() };
    };
    if changes.is_empty() {
        return untouched(device, has.driver);
    }
    let back = has.driver.as_deref().unwrap_or("it had no driver");
    let (text, changes) = (format!("{device} is back: {back}\n"), written(changes));
    Outcome { device: name, driver: has.driver, done: true, changes, error: None, text }
}

/// It could not be given back. Others are to have their turn all the same; the last failure is kept.
fn refused(root: &Path, device: Guid, error: BindError, failed: &mut Option<BindError>) -> Outcome {
    crate::remark(format_args!("{device}: {error}"));
    let device = device.to_string();
    let driver = Record::of(root, &device).ok().and_then(|has| has.driver);
    let error = Some(failed.insert(error).to_string());
    Outcome { device, driver, error, ..Outcome::default() }
}

/// Nothing was to be done.
fn untouched(device: Guid, driver: Option<String>) -> Outcome {
    let text = match driver.as_deref() {
        Some(KERNEL_NIC_DRIVER) => format!("{device} is the kernel's already\n"),
        driver => format!("{device} has {} already\n", driver.unwrap_or("no driver")),
    };
    Outcome { device: device.to_string(), driver, text, ..Outcome::default() }
}

/// What would be done.
fn shown(device: String, driver: Option<String>, changes: &[Change]) -> Outcome {
    let text = changes.iter().map(|change| format!("{change}\n")).collect();
    Outcome { device, driver, done: false, changes: written(changes), error: None, text }
}

fn written(changes: &[Change]) -> Vec<Written> {
    let of = |change: &Change| Written {
        path: change.path.display().to_string(),
        value: change.value.clone(),
    };
    changes.iter().map(of).collect()
}

/// The GUID of the NIC that is meant, if it may be taken. A dry run goes on all the same, with the `refusal`.
fn device(args: &BindArgs, refusal: &mut Option<Error>) -> Result<Guid, Error> {
    let name = args.name.as_deref().unwrap_or_default();
    let snapshot = take(args.source.sysfs_root.as_deref(), Depth::Checks)?;
    let relations = Relations::of(&snapshot);
    let root = args.source.sysfs_root.as_deref().unwrap_or(Path::new("/"));
    let nic = find_nic(&relations, name, root)?;
    if args.uio && !args.force {
        let mut guest = Guest::new(&snapshot, &relations);
        guest.session = snapshot.live.then(session).flatten();
        match spare(nic, &guest) {
            Err(error) if args.dry_run => *refusal = Some(error),
            spared => spared?,
        }
    }
    Ok(nic.device.guid)
}

/// The NIC that `name` means: as everywhere, or, for one that has been taken from the kernel and has no interface, as it was called before.
///
/// A name that is free goes to the next NIC that comes. One that has it now and one that had it are two, and it is not for us to choose.
pub(crate) fn find_nic<'r, 's>(
    relations: &'r Relations<'s>,
    name: &str,
    root: &Path,
) -> Result<&'r NicView<'s>, Error> {
    let now = match find(relations, name) {
        Some(Found::Nic(at)) => relations.nics.get(at),
        _ => None,
    };
    if let Some(nic) = now.filter(|nic| is_guid(name, nic.device.guid)) {
        return Ok(nic);
    }
    let journal = Journal::new(root.join(JOURNAL));
    let (mut before, mut unread) = (Vec::new(), None);
    for nic in relations.nics.iter().filter(|nic| nic.link.is_none()) {
        match journal.record(nic.device.guid) {
            Ok(Some(record)) if record.is_called(name) => before.push(nic),
            Ok(_) => {}
            Err(error) if error.is_forbidden() => unread = Some(error),
            Err(error) => return Err(error.into()),
        }
    }
    before.retain(|nic| now.is_none_or(|now| now.device.guid != nic.device.guid));
    match (now, before.as_slice()) {
        // Who may not read what others were called can do no more than look.
        (Some(nic), []) | (None, &[nic]) => Ok(nic),
        (None, []) => {
            let name = name.to_owned();
            Err(match unread {
                Some(source) => Error::NamesUnread { name, source },
                None => Error::NoSuchDevice { name },
            })
        }
        (now, before) => {
            let now = now.map(|nic| format!("{}, which is called so now", nic.device.guid));
            let had =
                |nic: &&NicView<'_>| format!("{}, which was before it was taken", nic.device.guid);
            let found = now.into_iter().chain(before.iter().map(had)).collect();
            Err(Error::NamedTwice { name: name.to_owned(), found })
        }
    }
}

/// Whether `name` is the GUID of this device.
fn is_guid(name: &str, device: Guid) -> bool {
    name.trim_matches(['{', '}']).eq_ignore_ascii_case(&device.to_string())
}

/// Refuses a NIC whose interfaces carry what the operator needs.
pub(crate) fn spare(nic: &NicView<'_>, guest: &Guest<'_>) -> Result<(), Error> {
    let refused = |what: &str| Error::Needed { nic: nic.name(), what: what.to_owned() };
    if guest.snapshot.live && guest.snapshot.routes.is_none() {
        return Err(refused("perhaps the default route (the routes are not known)"));
    }
    let carriers = guest.carriers();
    let links = nic.link.into_iter().chain(guest.relations.vf(nic).map(|port| port.link));
    let needs: BTreeSet<_> = links.filter_map(|link| carriers.get(&link.index?)).copied().collect();
    match needs.into_iter().collect::<Vec<_>>().as_slice() {
        [] => Ok(()),
        needs => Err(refused(&needs.join(" and "))),
    }
}

/// Refuses where the kernel has no driver for user space, before anything is written.
pub(crate) fn expect_driver(root: &Path) -> Result<(), Error> {
    if root.join("sys/bus/vmbus/drivers").join(UIO_DRIVER).is_dir() {
        return Ok(());
    }
    Err(BindError::NoDriver { driver: UIO_DRIVER.to_owned() }.into())
}

/// What a dry run says where the real one ends with this error.
pub(crate) fn would_be_refused(error: &Error) -> String {
    format!("# would be refused: {error}\n")
}

/// Gives back everything that was taken; the last failure is kept, and none keeps the others from their turn.
fn give_all_back(
    root: &Path,
    journal: &Journal,
    dry_run: bool,
    failed: &mut Option<BindError>,
) -> Result<Vec<Outcome>, Error> {
    if dry_run {
        let show = |record: &Record| would_give(root, record);
        return Ok(journal.records()?.iter().map(show).collect());
    }
    let mut outcomes = Vec::new();
    for Restored { record, outcome } in restore_all(root, journal)? {
        outcomes.push(match outcome {
            Ok(changes) => given(root, record.device, &changes),
            Err(error) => refused(root, record.device, error, failed),
        });
    }
    Ok(outcomes)
}

/// Gives back what runs left that were killed: what the name means, or all of it. What is not there is nothing to be told: whoever calls this
/// after a run does not know how that ended.
fn recover(
    args: &BindArgs,
    root: &Path,
    journal: &Journal,
    failed: &mut Option<BindError>,
) -> Result<Vec<Outcome>, Error> {
    let mut left = journal.records()?;
    left.retain(|record| !record.kept);
    if let Some(name) = args.name.as_deref().filter(|_| !left.is_empty()) {
        let snapshot = take(args.source.sysfs_root.as_deref(), Depth::Checks)?;
        let relations = Relations::of(&snapshot);
        let called = |record: &Record| is_guid(name, record.device) || record.is_called(name);
        let there = |device| relations.nics.iter().any(|nic| nic.device.guid == device);
        let meant = match find_nic(&relations, name, root) {
            Ok(nic) => Some(nic.device.guid),
            Err(Error::NoSuchDevice { .. }) => None,
            // None of them is one that would be given back.
            Err(Error::NamedTwice { .. }) if !left.iter().any(called) => return Ok(Vec::new()),
            Err(error) => return Err(error),
        };
        // The host may have taken the NIC away: then its record is all that is left of it.
        let gone = |record: &Record| !there(record.device) && called(record);
        left.retain(|record| Some(record.device) == meant || gone(record));
    }
    let mut outcomes = Vec::new();
    for Record { device, .. } in left {
        match give_back_left(root, journal, device, args.dry_run) {
            Ok(outcome) => outcomes.extend(outcome),
            Err(error) => outcomes.push(refused(root, device, error, failed)),
        }
    }
    Ok(outcomes)
}

/// Gives back a device if a run that was killed left it.
fn give_back_left(
    root: &Path,
    journal: &Journal,
    device: Guid,
    dry: bool,
) -> Result<Option<Outcome>, BindError> {
    let hold = match journal.hold(device) {
        // Whoever lives has left nothing.
        Err(BindError::Driven { .. }) => return Ok(None),
        hold => hold?,
    };
    let Some(record) = hold.record()?.filter(|record| !record.kept) else { return Ok(None) };
    Ok(Some(match dry {
        true => would_give(root, &record),
        false => given(root, device, &hold.restore(root, &record)?),
    }))
}

/// What would be done to give it back.
fn would_give(root: &Path, record: &Record) -> Outcome {
    let device = record.device.to_string();
    let driver = Record::of(root, &device).ok().and_then(|has| has.driver);
    shown(device, driver, &record.changes_back(root))
}

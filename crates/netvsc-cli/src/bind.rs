//! `netvsc bind`: which driver has a NIC.

use std::collections::BTreeSet;
use std::path::Path;

use clap::{ArgGroup, Args};
use netvsc_linux::check::Guest;
use netvsc_linux::inventory::{Depth, take};
use netvsc_linux::relation::{NicView, Relations};
use netvsc_linux::uio::{
    Binding, Journal, KERNEL_NIC_DRIVER, Record, UIO_DRIVER, restore, restore_all,
};

use crate::error::Error;
use crate::inspect::args::SourceArgs;
use crate::inspect::page::{Found, find};
use crate::inspect::print;
use crate::session::session;

/// Where records of taken devices are, below the root. It goes with the boot, as the bindings do.
pub(crate) const JOURNAL: &str = "run/netvsc/bind";

/// What is said at length about the verb.
pub const LONG: &str = "\
Give a NIC to user space (--uio) or back to the kernel (--kernel).

A NIC that user space has is no network interface any more, until it goes back. Which driver and which override it had is \
written to /run/netvsc/bind first, so that --restore can undo what a run that was killed left behind. The override keeps other \
drivers away also when the host takes the NIC away and offers it again.

A NIC that carries a default route or the session that you are in is refused; --force takes it all the same.";

/// Examples and exit statuses of the verb.
pub const STATUS: &str = "\
Examples:
  netvsc bind --uio eth1 --dry-run
      show what would be written, and write nothing
  netvsc bind --uio eth1
  netvsc bind --kernel f8615163-0000-1000-2000-6045bd000001
  netvsc bind --restore
      give back everything that was taken

Exit status:
  0  done, or shown
  1  refused, or the kernel did not do it; then all is as before
  2  the command line makes no sense

Needs root.";

/// Options of `netvsc bind`.
#[derive(Clone, Debug, Args)]
#[command(group = ArgGroup::new("to").required(true).args(["uio", "kernel", "restore"]))]
pub struct BindArgs {
    /// Give the NIC to user space (uio_hv_generic)
    #[arg(long, requires = "name")]
    pub uio: bool,

    /// Give the NIC back to the driver that it had, or to the kernel's own (hv_netvsc)
    #[arg(long, requires = "name")]
    pub kernel: bool,

    /// Give back every device that was taken, as it was
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
}

/// `netvsc bind`.
///
/// # Errors
/// If the name is none of a NIC, the NIC is needed, the kernel refuses, or the output cannot be written.
pub fn run(args: &BindArgs) -> Result<(), Error> {
    let root = args.source.sysfs_root.as_deref().unwrap_or(Path::new("/"));
    let journal = Journal::new(root.join(JOURNAL));
    if args.restore {
        return give_all_back(root, &journal, args.dry_run);
    }
    let device = device(args)?;
    if args.uio {
        let record = Record::of(root, &device)?;
        if record.driver.as_deref() == Some(UIO_DRIVER) {
            return print(&format!("{device} is user space's already\n"));
        }
        if args.dry_run {
            return show(&record.changes_to(root, UIO_DRIVER));
        }
        Binding::to(root, &device, UIO_DRIVER, journal)?.keep();
        return print(&format!("{device} is user space's: {UIO_DRIVER}\n"));
    }
    let record = match journal.record(&device)? {
        Some(record) => record,
        // Without a record there is nothing to undo, and its interface is not to vanish for a moment.
        None if Record::of(root, &device)?.driver.as_deref() == Some(KERNEL_NIC_DRIVER) => {
            return print(&format!("{device} is the kernel's already\n"));
        }
        // Somebody else took it; what he found is not known, so it gets what every NIC has.
        None => Record {
            driver: Some(KERNEL_NIC_DRIVER.to_owned()),
            driver_override: None,
            ..Record::of(root, &device)?
        },
    };
    if args.dry_run {
        return show(&record.changes_back(root));
    }
    restore(root, &record, &journal)?;
    let driver = Record::of(root, &device)?.driver;
    print(&format!("{device} is back: {}\n", driver.as_deref().unwrap_or("it had no driver")))
}

/// The GUID of the NIC that is meant, if it may be taken.
fn device(args: &BindArgs) -> Result<String, Error> {
    let name = args.name.as_deref().unwrap_or_default();
    let snapshot = take(args.source.sysfs_root.as_deref(), Depth::Checks)?;
    let relations = Relations::of(&snapshot);
    let nic = match find(&relations, name) {
        Some(Found::Nic(at)) => relations.nics.get(at),
        _ => None,
    };
    let nic = nic.ok_or_else(|| Error::NoSuchDevice { name: name.to_owned() })?;
    if args.uio && !args.force && !args.dry_run {
        let mut guest = Guest::new(&snapshot, &relations);
        guest.session = snapshot.live.then(session).flatten();
        spare(nic, &guest)?;
    }
    Ok(nic.device.guid.to_string())
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

fn show(changes: &[netvsc_linux::uio::Change]) -> Result<(), Error> {
    let lines: String = changes.iter().map(|change| format!("{change}\n")).collect();
    print(&lines)
}

fn give_all_back(root: &Path, journal: &Journal, dry_run: bool) -> Result<(), Error> {
    if dry_run {
        let records = journal.records()?;
        let changes: Vec<_> = records.iter().flat_map(|record| record.changes_back(root)).collect();
        return show(&changes);
    }
    let mut failed = None;
    for restored in restore_all(root, journal)? {
        match restored.outcome {
            Ok(()) => print(&format!("{} is back\n", restored.record.device))?,
            Err(error) => {
                eprintln!("netvsc: {}: {error}", restored.record.device);
                failed = Some(error);
            }
        }
    }
    failed.map_or(Ok(()), |error| Err(error.into()))
}

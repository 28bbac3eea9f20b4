//! A guest as it is found: VMBus devices, PCI functions and slots, network devices, and what the kernel said about them.
//!
//! [`take`] reads a [`Snapshot`] of the running system, or of a directory that is laid out like one, such as what a
//! customer sent. Every read has a fixed path and a bound; nothing is walked. What is not there is `None`; what is
//! there and cannot be read is `None` as well, and a note in [`Snapshot::unreadable`]. No tree, however malformed, makes
//! this fail: only a root that cannot be opened does.
//!
//! Below a given root no path and no link leads out of it. What the kernel says by netlink is read there from files in
//! `netlink` ([`Table::file`](crate::netlink::Table::file)), with a folder `netlink/netns/NAME` for every other network
//! namespace; and packet counters at several moments from `netvsc/samples`, with lines `SAMPLE IFINDEX RX_PACKETS
//! TX_PACKETS`, and for NICs behind that the packets that they sent through their VFs.
//! What drivers count beside that is in `netvsc/statistics`, with lines `IFINDEX NAME VALUE`. What time it was on the clock of the kernel
//! log is in `netvsc/clock`, in seconds with nine digits behind the point, or `unknown`; without that file `/proc/uptime` counts, as long as
//! it is not more than a day ahead of the newest record of the log, as it is after a hibernation.

pub mod clock;
mod config;
mod log;
mod machine;
mod model;
mod record;
mod replay;
mod scan;
mod shares;
mod told;
pub(crate) mod tree;

use std::path::Path;

pub use self::config::{ConfigFile, ConfigKind, folders};
pub use self::log::{KernelLog, LogEvent, LogLine, LogStream, LogUnreadable, Subject};
pub use self::machine::{Interrupts, MODULES, Machine, Manager, Packets, Sample, sample};
pub use self::model::{
    Channel, Elsewhere, Function, NetDevice, Parent, PciAddress, Snapshot, SoftKind, Source,
    VmbusDevice,
};
pub(crate) use self::model::{bus_of, mac_hint, vmbus_instance};
pub use self::record::{Collection, Kept};
pub use self::tree::{RootError, Unreadable};

use self::told::Teller;
use self::tree::Tree;

/// How much is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Depth {
    /// What decides about pairs.
    Pairs,
    /// Channels, queues and counters as well.
    Full,
    /// Addresses, routes, other network namespaces, the machine and its configuration as well.
    Checks,
}

impl Depth {
    /// Whether channels, queues and counters are read.
    const fn full(self) -> bool {
        matches!(self, Self::Full | Self::Checks)
    }
}

/// Reads a snapshot of the running system (`None`), or of a tree below a directory.
///
/// # Errors
/// [`RootError`] if the directory cannot be used at all.
pub fn take(root: Option<&Path>, depth: Depth) -> Result<Snapshot, RootError> {
    gather(&mut Tree::open(root)?, root.is_none(), depth, true)
}

/// Reads a snapshot and counts the files, directories and links that were opened or read for it.
///
/// # Errors
/// As [`take`].
pub fn take_counting(root: Option<&Path>, depth: Depth) -> Result<(Snapshot, u32), RootError> {
    let mut tree = Tree::open(root)?;
    let snapshot = gather(&mut tree, root.is_none(), depth, true)?;
    Ok((snapshot, tree.touched()))
}

/// Reads all that there is to read, and gives that itself beside the snapshot: whoever [takes](take) a snapshot of a
/// directory that holds it gets the same one. Passwords and keys in configuration files are left out. `observe` may add to the
/// snapshot of a running system what takes time, as [`sample`] does.
///
/// # Errors
/// As [`take`].
pub fn collect(
    root: Option<&Path>,
    observe: impl FnOnce(&mut Snapshot),
) -> Result<(Snapshot, Collection), RootError> {
    let mut tree = Tree::open(root)?;
    tree.record();
    let mut snapshot = gather(&mut tree, root.is_none(), Depth::Checks, true)?;
    if snapshot.live {
        observe(&mut snapshot);
    }
    let mut collection = tree.collection();
    replay::finish(&mut collection, &snapshot);
    Ok((snapshot, collection))
}

/// Reads a snapshot of the running system without its kernel log, for those who follow that themselves.
///
/// # Errors
/// As [`take`].
pub fn take_without_log(depth: Depth) -> Result<Snapshot, RootError> {
    gather(&mut Tree::open(None)?, true, depth, false)
}

fn gather(
    tree_ref: &mut Tree,
    live: bool,
    depth: Depth,
    with_log: bool,
) -> Result<Snapshot, RootError> {
    let hyperv = tree_ref.exists("sys/bus/vmbus");
    let devices = if hyperv { scan::devices(tree_ref, depth) } else { Vec::new() };
    let slots = scan::slots(tree_ref);
    let functions = scan::functions(tree_ref, &devices, &slots, depth);
    let mut teller = Teller::new(tree_ref, live);
    let told = told::Links::ask(tree_ref, &mut teller);
    let mut links = scan::links(tree_ref, &told, &functions, depth);
    told.add(&mut links);
    let log = if hyperv && with_log { KernelLog::read(tree_ref) } else { KernelLog::default() };
    if depth.full() {
        shares::read(tree_ref, live, &mut links);
    }
    let mut snapshot = Snapshot {
        live,
        hyperv,
        release: scan::release(tree_ref),
        uptime: if live { Some(clock::now()) } else { clock::of_tree(tree_ref, &log) },
        devices,
        functions,
        slots,
        links,
        modules: scan::modules(tree_ref),
        namespaces: scan::namespaces(tree_ref),
        log,
        addresses: None,
        routes: None,
        neighbours: None,
        elsewhere: Vec::new(),
        machine: Machine::default(),
        unreadable: Vec::new(),
    };
    if depth == Depth::Checks {
        told::rest(tree_ref, &mut teller, &mut snapshot);
        snapshot.machine = machine::read(tree_ref, snapshot.release.as_deref());
    }
    if !live {
        snapshot.machine.samples = machine::samples(tree_ref);
        replay::refusals(tree_ref);
    }
    snapshot.unreadable = tree_ref.take_notes();
    Ok(snapshot)
}

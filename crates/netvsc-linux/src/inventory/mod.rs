//! A guest as it is found: VMBus devices, PCI functions and slots, network devices, and what the kernel said about them.
//!
//! [`take`] reads a [`Snapshot`] of the running system, or of a directory that is laid out like one, such as what a
//! customer sent. Every read has a fixed path and a bound; nothing is walked. What is not there is `None`; what is
//! there and cannot be read is `None` as well, and a note in [`Snapshot::unreadable`]. No tree, however malformed, makes
//! this fail: only a root that cannot be opened does.
//!
//! Below a given root no path and no link leads out of it.

mod log;
mod model;
mod scan;
pub(crate) mod tree;

use std::path::Path;

pub use self::log::{KernelLog, LogEvent, LogLine, Subject};
pub(crate) use self::model::mac_hint;
pub use self::model::{
    Channel, Function, NetDevice, Parent, PciAddress, Snapshot, SoftKind, Source, VmbusDevice,
};
pub use self::tree::{RootError, Unreadable};

use self::tree::Tree;

/// How much is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Depth {
    /// What decides about pairs.
    Pairs,
    /// Channels, queues and counters as well.
    Full,
}

/// Reads a snapshot of the running system (`None`), or of a tree below a directory.
///
/// # Errors
/// [`RootError`] if the directory cannot be used at all.
pub fn take(root: Option<&Path>, depth: Depth) -> Result<Snapshot, RootError> {
    let mut tree = Tree::open(root)?;
    let tree_ref = &mut tree;
    let hyperv = tree_ref.exists("sys/bus/vmbus");
    let devices = if hyperv { scan::devices(tree_ref, depth) } else { Vec::new() };
    let slots = scan::slots(tree_ref);
    let functions = scan::functions(tree_ref, &devices, &slots);
    let links = scan::links(tree_ref, depth);
    let log = if hyperv { KernelLog::read(tree_ref) } else { KernelLog::default() };
    Ok(Snapshot {
        live: root.is_none(),
        hyperv,
        release: scan::release(tree_ref),
        uptime: scan::uptime(tree_ref),
        devices,
        functions,
        slots,
        links,
        modules: scan::modules(tree_ref),
        namespaces: scan::namespaces(tree_ref),
        log,
        unreadable: tree.into_notes(),
    })
}

//! What the kernel says about its links, addresses, routes and neighbours, by rtnetlink.
//!
//! - [`Connection`] asks: one [`dump`](Connection::dump) per [`Table`], of this network namespace or of another one. A
//!   dump that the kernel interrupted because something changed meanwhile is asked for again.
//! - [`Monitor`] listens: links, addresses, routes and neighbours as they come and go. When the kernel had to drop events
//!   it says [`Event::Lost`], and whoever listens has to ask anew.
//! - [`Reply`] is what was answered, as bytes. It can be stored, and [`Reply::links`] and its sisters read it whether it
//!   came from the kernel a moment ago or from a file of somebody else's machine.
//!
//! An attribute that cannot be read costs that attribute, a message that cannot be read costs that message; both are
//! counted. Nothing here blocks for longer than [`PATIENCE`].

mod address;
mod answer;
mod change;
mod ethtool;
mod link;
mod monitor;
mod socket;

use std::io;
use std::path::PathBuf;
use std::time::Duration;

pub use self::address::{Address, Neighbour, Route};
pub use self::ethtool::{DriverTable, Ring};
pub use self::link::Link;
pub use self::monitor::{Event, Monitor, Topics};
pub use self::socket::{Connection, Reply, Table};

/// How long an answer of the kernel is waited for.
pub const PATIENCE: Duration = Duration::from_secs(5);

/// Why the kernel could not be asked, or did not answer.
#[derive(Debug, thiserror::Error)]
pub enum NetlinkError {
    /// There is no socket to ask with.
    #[error("cannot open a netlink socket: {0}")]
    Open(#[source] io::Error),
    /// The other network namespace cannot be entered.
    #[error("cannot enter the network namespace `{}`: {source}; it needs CAP_SYS_ADMIN", path.display())]
    Namespace {
        /// Its file.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// The question could not be sent, or its answer not be received.
    #[error("cannot talk to the kernel by netlink: {0}")]
    Talk(#[source] io::Error),
    /// The kernel refused.
    #[error("the kernel refuses to {doing}: {source}")]
    Refused {
        /// What it was asked to do.
        doing: &'static str,
        /// Its reason.
        source: io::Error,
    },
    /// Every dump was interrupted by changes.
    #[error(
        "{tries} dumps were all interrupted by changes; expected one that shows a single moment"
    )]
    Unsteady {
        /// How many were tried.
        tries: u32,
    },
}

//! What happens to the pairs of a guest, as it happens.
//!
//! [`Watch`] is a machine without I/O: it keeps a [`Snapshot`](crate::inventory::Snapshot), is [told](Watch::tell) news of links, devices and the
//! kernel log, and when it has been told all that there is, [`settle`](Watch::settle) compares what the rules and the
//! kernel make of the guest now with what they made of it before. The differences are [`Change`]s, each with how long
//! what ended had lasted. Where news is not enough to go by, it asks for a [look](Told::LookAgain) at everything.
//!
//! [`Ears`] brings the news: rtnetlink, uevents and the kernel log. When one of them was too slow and events were lost,
//! it says so, and the answer is a look at everything as well.

mod apply;
mod change;
mod ears;
mod history;
mod uevent;

pub use self::apply::Watch;
pub use self::change::{Change, Subject, What};
pub use self::ears::{Ears, Heard};
pub use self::history::history;
pub use self::uevent::Uevent;

use vmbus::Instant;

use crate::inventory::LogLine;
use crate::netlink::Link;

/// Something that happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum News {
    /// A link is there, or is other than it was.
    Link(Box<Link>),
    /// The link with this number is gone.
    LinkGone(u32),
    /// The kernel said something.
    Said(LogLine),
    /// So many records of the kernel log were overwritten before they were read.
    LogLost(u64),
    /// Devices on VMBus or on PCI buses came, went, or changed drivers.
    Devices,
}

/// What came of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Told {
    /// It was taken in.
    Taken,
    /// It says that something is other than it was, and not what: take a new snapshot.
    LookAgain,
}

/// A moment on the clock of the kernel log.
#[must_use]
pub fn moment(at: std::time::Duration) -> Instant {
    Instant::ZERO + at
}

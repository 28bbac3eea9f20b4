//! A guest and a host in two processes: the socket over which they find each other (`docs/SOCKET.md` in the repository).
//!
//! Over a Unix stream socket the guest hands the host its memory and a doorbell for each direction; everything else goes through
//! that memory. The socket stays open: when either process ends, however it ends, the other reads the end of it.
//!
//! - [`Message`] and [`Decoder`]: the bytes, bounded in size, number and descriptors;
//! - [`GuestSide`] and [`HostSide`]: who may say what when, without I/O, for any type of descriptor;
//! - [`Talk`]: the pages of shared memory through which control messages and signals go;
//! - [`Link`], [`Listener`], [`Bell`]: the system calls around them.

mod bell;
mod guest;
mod host;
mod link;
mod listen;
mod message;
mod talk;
#[cfg(test)]
mod tests;

pub use bell::Bell;
pub use guest::{GuestEvent, GuestSide};
pub use host::{HostEvent, HostSide, Offer};
pub use link::{Link, LinkError};
pub use listen::{ListenError, Listener, connect};
pub use message::{
    Account, Decoder, Features, MAX_DESCRIPTORS, MAX_MESSAGE, Message, MessageKind, Reason,
    Version, WireError,
};
pub use talk::{TALK_PAGES, Talk};

use vmbus::Guid;

/// Least pages of memory that a guest shares: those of [`Talk`] and one of its own.
pub const LEAST_PAGES: u64 = TALK_PAGES as u64 + 1;
/// Most pages of memory that a guest shares: 4 GiB.
pub const MOST_PAGES: u64 = 1 << 20;
/// Page frame numbers lie below this, so that addresses fit into 64 bits.
pub const FRAMES_END: u64 = 1 << 52;
/// Most pages of registers that a host shows, and so most ports of VFs at a time.
pub const MOST_WINDOWS: u32 = 1024;

/// A message that may not come now, or says what cannot be. The connection ends.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProtocolError {
    /// A message that is not the peer's turn, or not the peer's at all.
    #[error("{got} came while {expected} was expected")]
    Order {
        /// What may come.
        expected: &'static str,
        /// What came.
        got: MessageKind,
    },
    /// A host that chose a version that was not offered.
    #[error("the host chose version {got}, versions {lowest} to {highest} were offered")]
    Version {
        /// Lowest that was offered.
        lowest: Version,
        /// Highest that was offered.
        highest: Version,
        /// What it chose.
        got: Version,
    },
    /// A host that chose features that were not offered.
    #[error("the host chose features {got:?}, {offered:?} were offered")]
    Features {
        /// What was offered.
        offered: Features,
        /// What it chose.
        got: Features,
    },
    /// Memory of an impossible size or place.
    #[error(
        "{pages} pages of memory at page frame {first:#x}: expected {LEAST_PAGES} to {MOST_PAGES} pages below frame {FRAMES_END:#x}"
    )]
    Memory {
        /// How many pages.
        pages: u64,
        /// The first page frame number.
        first: u64,
    },
    /// A number of register pages that no host has.
    #[error("{0} pages of registers: expected 1 to {MOST_WINDOWS}")]
    WindowPages(u32),
    /// Registers outside the pages for them.
    #[error("registers on pages {first} to {first}+{ports}: expected 1 or more of {pages} pages")]
    Window {
        /// The first page.
        first: u32,
        /// How many.
        ports: u32,
        /// How many there are.
        pages: u32,
    },
    /// Registers on pages that another bus has.
    #[error(
        "registers of bus {instance} on page {page}, which another bus has, or of a bus that has some"
    )]
    WindowTaken {
        /// The bus.
        instance: Guid,
        /// The first page of the new registers.
        page: u32,
    },
    /// Registers gone that were never there.
    #[error("registers of bus {0} are gone, which had none")]
    NoWindow(Guid),
    /// Asked again before the answer came.
    #[error("the account was asked for again before it was given")]
    Impatient,
    /// An answer to nothing.
    #[error("an account that was not asked for")]
    Unasked,
}

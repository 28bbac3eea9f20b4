//! Ports of virtual functions that the kernel drives: its interface is the way of a NIC's frames.
//!
//! A [`PacketPort`] reaches any Ethernet interface by packet sockets. What the kernel knows of the interface is followed by
//! rtnetlink, under the interface's number: a new name changes nothing, and one that is set down, loses its carrier, or leaves
//! the namespace is a [`LinkState`], never a wait. The kernel's own stack sees the interface's frames, too; it should have no
//! address there.

mod batch;
mod frame;
mod membership;
mod namespace;
mod packet;
#[expect(
    unsafe_code,
    reason = "options of packet sockets take pointers; this is the one room for it"
)]
mod request;
mod ring;
mod watch;

use rustix::io::Errno;

use crate::netlink::NetlinkError;

pub(crate) use batch::pseudo_header;
pub(crate) use frame::{Layers, layers};
pub(crate) use membership::Memberships;
pub use namespace::NetworkNamespace;
pub use packet::{NotAlone, PacketConfig, PacketCounters, PacketPort, PortEars, Reception};
pub use watch::LinkState;
pub(crate) use watch::Watch;

/// Why an interface cannot be used as a port.
#[derive(Debug, thiserror::Error)]
pub enum VfError {
    /// There is none of this name.
    #[error("there is no interface {name} in this network namespace (ENODEV)")]
    Missing {
        /// The name.
        name: String,
    },
    /// It carries no Ethernet frames.
    #[error("interface {name} has hardware type {kind}: expected Ethernet (1)")]
    NotEthernet {
        /// The name.
        name: String,
        /// Its hardware type.
        kind: u16,
    },
    /// A size that makes no ring.
    #[error(
        "{blocks} blocks of {block_size} bytes: expected 2 to 1024 of 128 KiB to 4 MiB, a power of two"
    )]
    Ring {
        /// Bytes of a block.
        block_size: usize,
        /// Number of blocks.
        blocks: usize,
    },
    /// A number of frames that makes no ring.
    #[error("rings of {0} frames: expected a power of two from 64 to 4096")]
    Depth(u32),
    /// The caller may not do this.
    #[error(
        "not allowed to {doing} ({cause}): run as root or with the capabilities CAP_NET_RAW, CAP_NET_ADMIN and CAP_BPF"
    )]
    NotPermitted {
        /// What was tried.
        doing: &'static str,
        /// What the kernel said.
        cause: Errno,
    },
    /// The kernel says no.
    #[error("could not {doing}: {cause}")]
    Kernel {
        /// What was tried.
        doing: &'static str,
        /// What it said.
        cause: Errno,
    },
    /// The driver shares no memory with sockets, and copies are not wanted.
    #[error("could not do without copies: the driver shares no memory with sockets")]
    Copies,
    /// The kernel cannot be asked about links.
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
}

impl VfError {
    /// The error for what the kernel said to an attempt.
    pub(crate) fn from_attempt(doing: &'static str, cause: Errno) -> Self {
        match cause {
            Errno::PERM | Errno::ACCESS => Self::NotPermitted { doing, cause },
            cause => Self::Kernel { doing, cause },
        }
    }
}

fn failure(doing: &'static str) -> impl Fn(Errno) -> VfError {
    move |cause| VfError::from_attempt(doing, cause)
}

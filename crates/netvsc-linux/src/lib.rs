//! Linux as a Hyper-V guest.
//!
//! What needs the operating system lives here, so that the protocol crates stay free of it:
//!
//! - [`tap`]: the way to let the kernel's own network stack be the traffic of a NIC;
//! - [`inventory`]: what a guest consists of, read from sysfs, proc, the udev database and the kernel log;
//! - [`relation`]: which NIC belongs to which VF, by the kernel and by the rules;
//! - [`netlink`]: what the kernel says about links, addresses and routes, now and as they change;
//! - [`udev`]: what udev is told about a network device;
//! - [`check`]: what is wrong, by which evidence, and how to mend it;
//! - [`watch`]: what happens to the pairs of a guest, as it happens;
//! - [`statistics`]: what a driver counts beside its interface;
//! - [`mend`]: carries out what a check proposes;
//! - [`mapping`]: rings in which no packet wraps;
//! - [`memfd`]: memory that a guest and a host in two processes share;
//! - [`arena`]: that memory, dealt out in pieces;
//! - [`socket`]: how such a guest and such a host find each other;
//! - [`uio`]: devices of a real VMBus, driven from user space;
//! - [`vf`]: interfaces of the kernel as ports of virtual functions;
//! - [`xdp`]: the same past the kernel's stack.

pub mod arena;
pub mod check;
pub mod inventory;
mod lock;
#[expect(unsafe_code, reason = "mappings are made here and nowhere else")]
pub mod mapping;
pub mod memfd;
pub mod mend;
pub mod netlink;
pub mod relation;
pub mod socket;
pub mod statistics;
pub mod tap;
pub mod udev;
pub mod uio;
pub mod vf;
pub mod watch;
pub mod xdp;

#[cfg(test)]
#[path = "../tests/namespace/mod.rs"]
#[expect(dead_code, reason = "shared with tests that need more of it")]
mod namespace;

pub use lock::ForeignLock;
pub use memfd::{MemfdError, SharedFile};
pub use tap::{Offloaded, Tap, TapError, TapName, TapNameError};

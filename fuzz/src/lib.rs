//! Fuzz targets: whatever takes the bytes of a peer, against bytes that no peer should send.
//!
//! Each target is a plain function that takes bytes and panics if something is wrong. `checks/fuzz` looks for bytes that make
//! one panic; `tests/corpus.rs` runs all of them over the inputs in `corpus/`, on any compiler. What each asserts stands in
//! docs/FUZZING.md.

mod bus;
mod messages;
mod nic;
mod nvsp;
mod packets;
mod ring;
mod rndis;
mod script;
mod socket;
mod vpci_guest;

/// A fuzz target.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// Its name, that of its program and of its folder in `corpus/`.
    pub name: &'static str,
    /// What it does with an input. Panics if something is wrong.
    pub run: fn(&[u8]),
}

/// All of them.
pub const TARGETS: &[Target] = &[
    Target { name: "vmbus_messages", run: vmbus_messages },
    Target { name: "vmbus_packets", run: vmbus_packets },
    Target { name: "vmbus_ring", run: vmbus_ring },
    Target { name: "vmbus_guest", run: vmbus_guest },
    Target { name: "vpci_guest", run: vpci_guest },
    Target { name: "nvsp", run: nvsp },
    Target { name: "rndis", run: rndis },
    Target { name: "nic_guest", run: nic_guest },
    Target { name: "socket", run: socket },
];

pub use bus::vmbus_guest;
pub use messages::vmbus_messages;
pub use nic::{NicReach, nic_guest, nic_reach};
pub use nvsp::nvsp;
pub use packets::vmbus_packets;
pub use ring::vmbus_ring;
pub use rndis::rndis;
pub use socket::socket;
pub use vpci_guest::vpci_guest;

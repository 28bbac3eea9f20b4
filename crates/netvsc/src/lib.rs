//! The Hyper-V network card, as a guest sees it.
//!
//! [`Nic`] is the synthetic card on its channel, [`nic::QueuedNic`] the same with all its queues; [`pairing`] says which virtual function
//! belongs to which card, and [`Adapter`] makes one card of both that loses no frame when the function comes or goes. None of them
//! does I/O: bytes, events and the time go in, and what they want is polled.
//!
//! ```
//! use netvsc::adapter::AdapterConfig;
//! use netvsc::{NicConfig, nic::NicOffloads};
//!
//! // What a NIC is to be like; `Nic::new` takes it with a channel and two buffers, and `Adapter::new` the NIC.
//! let config = NicConfig { mtu: 9000, queues: 4, offloads: NicOffloads::ALL, ..NicConfig::default() };
//! let adapter = AdapterConfig { frame_size: 9018, ..AdapterConfig::default() };
//! assert!(config.mtu as usize <= adapter.frame_size - 18);
//! ```
//!
//! The crate `hyperv-host` has a NIC that comes up and sends a frame as its example.
#![no_std]
extern crate alloc;

/// Whether the bug of this name is the one that was put in: never, without the feature `seeded-bugs`.
#[cfg(not(feature = "seeded-bugs"))]
macro_rules! seeded {
    ($name:literal) => {
        false
    };
}
#[cfg(feature = "seeded-bugs")]
macro_rules! seeded {
    ($name:literal) => {
        vmbus::seeded::is(const { vmbus::seeded::number($name) })
    };
}

pub mod adapter;
pub mod failover;
pub mod mac;
pub mod nic;
pub mod nvsp;
pub mod pairing;
pub mod port;
pub mod rndis;
#[cfg(any(feature = "smoltcp", feature = "embassy"))]
pub mod stack;

pub use adapter::Adapter;
pub use mac::{MacAddress, MacAddressError};
pub use nic::{Nic, NicConfig, NicError, NicEvent, RxFrame, SharedBuffer, TransmitError};
pub use port::{Path, PathOffloads, PortError, PortLink, PortSettings, VfPort};

//! The Hyper-V network card, as a guest sees it.
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

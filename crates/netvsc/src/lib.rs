//! The Hyper-V network card, as a guest sees it.
#![no_std]
extern crate alloc;

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
pub use port::{Path, PortError, PortLink, VfPort};

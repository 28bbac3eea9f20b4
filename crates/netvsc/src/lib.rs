//! The Hyper-V network card, as a guest sees it.
//!
//! [`Nic`] is the synthetic card on its channel, [`nic::QueuedNic`] the same with all its queues; [`pairing`] says which virtual function
//! belongs to which card, and [`Adapter`] makes one card of both that loses no frame when the function comes or goes. None of them
//! does I/O: bytes, events and the time go in, and what they want is polled.
//!
//! Pairing takes facts, in any order, and says what is to be done and why:
//!
//! ```
//! use netvsc::MacAddress;
//! use netvsc::pairing::{Decision, FunctionKey, Pairing, PairingConfig, PermanentMac, Reason};
//! use vmbus::{Guid, Instant, Serial};
//!
//! # fn main() -> Result<(), netvsc::pairing::FactError> {
//! let (mac, now) = (MacAddress([0x00, 0x15, 0x5d, 0, 0, 1]), Instant::ZERO);
//! let mut pairing = Pairing::new(PairingConfig::default());
//! // The NIC is ready, and its host has said on its channel that a VF with serial 7 belongs to it.
//! let nic = pairing.nic_arrived_associated(Guid::from_u128(1), mac, Serial(7), now);
//! // A function with that serial came over vPCI, and its driver found a port.
//! let key = FunctionKey { bus: Guid::from_u128(2), slot: 0, vendor: 0x15b3, device: 0x101a, serial: Serial(7) };
//! let function = pairing.function_arrived(key, now);
//! pairing.port_arrived(function, 0, PermanentMac::Known(mac), now)?;
//!
//! let decision = pairing.poll_decision();
//! assert!(matches!(decision, Some(Decision::Bind { reason: Reason::SerialAndMac, .. })));
//! # Ok(())
//! # }
//! ```
//!
//! The crate `hyperv-host` has a NIC that comes up and sends a frame on its front page, and as an example, `guest`, all that a kernel writes around
//! these machines: bus, NIC, PCI bus, pairing, and a VF that comes and goes.
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

//! PCI over VMBus, as a guest sees it: functions with slot and serial number.
//!
//! One VMBus channel of class "virtual PCI bus" carries one bus, in practice with one function on it. [`PciBus`] speaks
//! the protocol and says which functions came, left, or shall be given up; it never looks at network devices. Whoever
//! wants to know which NIC a function belongs to joins the events of this crate with those of the NIC by
//! [`Serial`](vmbus::Serial).
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

pub mod assign;
pub mod bar;
pub mod bus;
pub mod config;
pub mod interrupt;
pub mod message;
pub mod msi;
pub mod naming;
pub mod slot;
pub mod window;

pub use bus::{Event, Function, FunctionId, PciBus, PciBusConfig};
pub use config::ConfigSpace;
pub use interrupt::{Interrupt, InterruptWish};
pub use slot::{BadSlot, DevFn, Slot};
pub use window::{MmioWindow, Width};

//! PCI over VMBus, as a guest sees it: functions with slot and serial number.
//!
//! One VMBus channel of class "virtual PCI bus" carries one bus, in practice with one function on it. [`PciBus`] speaks
//! the protocol and says which functions came, left, or shall be given up; it never looks at network devices. Whoever
//! wants to know which NIC a function belongs to joins the events of this crate with those of the NIC by
//! [`Serial`](vmbus::Serial).
//!
//! [`PciBus::new`] takes an open channel and the place that the platform has reserved for the bus's window. The shell calls [`PciBus::poll`] when
//! the host rang or a deadline has come, and takes its events: [`Event::FunctionArrived`], of which [`ConfigSpace`] reads and sets up the
//! device; [`Event::EjectRequested`], answered by [`PciBus::eject_complete`] once the driver has stopped; [`Event::FunctionLeft`]. The crate
//! `hyperv-host` has a PCI service to run it against, and an example, `guest`, that does all of this.
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

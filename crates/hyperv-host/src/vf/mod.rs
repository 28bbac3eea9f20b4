//! A virtual function that is a network card: the device of the host, and a driver for it in the guest.
//!
//! The device is the simplest that shows what matters about a VF: it reads and writes guest memory by itself, confirms
//! a frame only when the switch has it, and can vanish between any two accesses.
//!
//! # Layout
//! One page of 32-bit little-endian registers plays the BAR; [`layout`] has their offsets. The guest fills in [`DEPTH`]
//! and the addresses of two rings and of a report page, then writes [`CONTROL`]. Each ring is one page of 16-byte
//! [`Descriptor`]s: address u64, length u32, used u32. The device writes what it has done so far to the report page, not
//! to registers: memory of the guest keeps the last word of a device that is gone.
//!
//! Counts run freely over 32 bits, from what the guest wrote to the report page before it turned the device on. Their
//! differences are what matters, and each side checks those of the other:
//!
//! | count | written by | where | rule |
//! |---|---|---|---|
//! | [`TX_PRODUCED`] | guest | register | at most [`DEPTH`] before [`TX_DONE`] |
//! | [`TX_DONE`] | device | report page | never before [`TX_PRODUCED`] |
//! | [`RX_POSTED`] | guest | register | at most [`DEPTH`] before [`RX_DONE`] |
//! | [`RX_DONE`] | device | report page | never before [`RX_POSTED`] |
//!
//! After a write to [`CONTROL`] or to a count the guest rings the device's doorbell; the device raises its interrupt when
//! it has reported something or its [`STATUS`] changed. A guest that breaks a rule stops the device ([`STATUS_FAULT`]). A
//! device that is gone reads all ones in every register.
//!
//! A transmit descriptor is done when the switch has its frame: forwarded, or dropped and counted there. While the switch
//! is busy it stays undone, and the guest's ring fills up.
//!
//! While the link is down no frame moves in either direction; what was handed over goes on when it is up again. A driver
//! that has sent those frames elsewhere meanwhile says so in [`TX_FIRST`], and they are done without being sent.
//!
//! [`VfPace`] has a device fall behind on purpose: it leaves frames in the ring, or does not say that it has sent them.
//!
//! # Work for the device
//! [`FEATURES`] says what the device does to frames on their way out. A frame may have a [`Work`] in front of it that asks for
//! that, and may lie in several buffers, in successive descriptors. It is done, with all its descriptors, when the switch has all
//! of it. Frames longer than [`LONGEST_FRAME`] have to be cut; [`MTU`] and [`FILTER`] say what is received.
//!
//! [`DEPTH`]: layout::DEPTH
//! [`CONTROL`]: layout::CONTROL
//! [`STATUS`]: layout::STATUS
//! [`STATUS_FAULT`]: layout::STATUS_FAULT
//! [`TX_PRODUCED`]: layout::TX_PRODUCED
//! [`TX_DONE`]: layout::TX_DONE
//! [`TX_FIRST`]: layout::TX_FIRST
//! [`RX_POSTED`]: layout::RX_POSTED
//! [`RX_DONE`]: layout::RX_DONE
//! [`Descriptor`]: layout::Descriptor
//! [`FEATURES`]: layout::FEATURES
//! [`Work`]: layout::Work
//! [`MTU`]: layout::MTU
//! [`FILTER`]: layout::FILTER
//! [`LONGEST_FRAME`]: layout::LONGEST_FRAME

mod device;
pub mod layout;
mod port;
#[cfg(test)]
mod tests;
mod transmit;

pub use device::{VfConfig, VfCounters, VfDevice, VfFault, VfPace, VfWindow};
pub use port::{OpenError, SimulatedPort};
pub use transmit::VfFeatures;

use vmbus::Serial;
use vpci::Slot;
use vpci::message::{BARS, Description};

/// BAR masks of the device's function: one 64-bit memory BAR of one page.
pub const BAR_MASKS: [u32; BARS] = [0xffff_f004, 0xffff_ffff, 0, 0, 0, 0];

/// How the device's function appears on a virtual PCI bus: an Ethernet card under Microsoft's vendor number with a device
/// number that no product has.
#[must_use]
pub const fn description(slot: Slot, serial: Serial) -> Description {
    Description {
        slot,
        vendor: 0x1414,
        device: 0xf0f0,
        revision: 1,
        class: 2,
        subclass: 0,
        prog_if: 0,
        subsystem_vendor: 0x1414,
        subsystem: 0xf0f0,
        serial,
        numa_node: None,
    }
}

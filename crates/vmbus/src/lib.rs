//! Hyper-V's VMBus as a guest sees it.
//!
//! [`Bus`] makes contact with the host and learns what devices there are; a [`Channel`] is how one talks to a device: two rings in
//! shared memory and a doorbell. A channel needs no bus:
//!
//! ```
//! use vmbus::memory::SharedPages;
//! use vmbus::packet::Outgoing;
//! use vmbus::{Channel, Pfn, SignalFlag};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! // Two rings of a header page and a data page each, and a doorbell for either end.
//! let up = SharedPages::from_heap(&[Pfn(1), Pfn(2)]);
//! let down = SharedPages::from_heap(&[Pfn(3), Pfn(4)]);
//! let (to_host, to_guest) = (SignalFlag::new(), SignalFlag::new());
//! let mut guest = Channel::from_parts(up.clone(), down.clone(), to_host.clone())?;
//! let mut host = Channel::from_parts(down, up, to_guest)?;
//!
//! guest.stage(&Outgoing::InBand { transaction_id: 7, completion: true, payload: b"question" })?;
//! guest.commit()?;
//! assert!(to_host.take(), "the host was asleep, so that its doorbell rang");
//!
//! let mut buffer = [0; 64];
//! let packet = host.receive(&mut buffer)?.expect("a packet");
//! assert_eq!((packet.transaction_id, packet.payload), (7, &b"question"[..]));
//! # Ok(())
//! # }
//! ```
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
        $crate::seeded::is(const { $crate::seeded::number($name) })
    };
}

pub mod bus;
pub mod channel;
pub mod gpadl;
pub mod id;
#[expect(unsafe_code, reason = "pages become atomics here and nowhere else")]
pub mod memory;
pub mod message;
pub mod monitor;
pub mod packet;
pub mod platform;
pub mod ring;
#[cfg(feature = "seeded-bugs")]
pub mod seeded;
pub mod synic;
pub mod time;

pub use bus::Bus;
pub use channel::{Channel, Doorbell, SignalFlag};
pub use id::{ChannelId, ConnectionId, GpadlId, Pfn, Serial};
pub use platform::Platform;
pub use time::Instant;
pub use uuid::Uuid as Guid;

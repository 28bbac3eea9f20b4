//! Hyper-V's VMBus as a guest sees it.
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

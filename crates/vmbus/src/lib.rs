//! Hyper-V's VMBus as a guest sees it.
#![no_std]
extern crate alloc;

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
pub mod synic;
pub mod time;

pub use bus::Bus;
pub use channel::{Channel, Doorbell, SignalFlag};
pub use id::{ChannelId, ConnectionId, GpadlId, Pfn, Serial};
pub use platform::Platform;
pub use time::Instant;
pub use uuid::Uuid as Guid;

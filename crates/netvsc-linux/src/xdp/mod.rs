//! Ports of virtual functions by AF_XDP: frames go between the driver and memory that both have, past the kernel's stack.
//!
//! [`XdpPort`] is made by trying, never by assuming: memory that the driver reaches by itself (zero-copy) or copies by the kernel; a
//! program in the driver, or else in the stack; as many queues as the interface has, over which frames are spread by their flows. What stands in the way is said, and
//! [`PacketPort`](crate::vf::PacketPort) is there for every interface. The program goes with the port, also when the process is killed.

mod order;
mod port;
mod program;
#[expect(unsafe_code, reason = "bpf takes pointers; this is the one room for it")]
mod request;
mod ring;
mod socket;
mod unfinished;

pub use port::{XdpConfig, XdpCounters, XdpPort};
pub use program::Attachment;
pub(crate) use program::Discard;

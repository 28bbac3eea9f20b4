//! Linux as a Hyper-V guest.
//!
//! What needs the operating system lives here, so that the protocol crates stay free of it. Today that is
//! [`tap`]: the way to let the kernel's own network stack be the traffic of a NIC.

pub mod tap;

pub use tap::{Tap, TapError, TapName, TapNameError};

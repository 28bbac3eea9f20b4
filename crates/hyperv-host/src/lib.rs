//! A Hyper-V host to run guests against.

pub mod bus;
pub mod host;
pub mod memory;
pub mod nic;
pub mod pci;
pub mod switch;
pub mod vf;

pub use host::Host;

//! A Hyper-V host to run guests against.

pub mod memory;
pub mod pci;
pub mod switch;
pub mod vf;

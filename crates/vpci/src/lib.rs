//! PCI over VMBus, as a guest sees it.
#![no_std]
extern crate alloc;

//! NVSP and RNDIS from the host's end: what guests send is read here, what the host sends is built here.
//!
//! The host reads stricter than it would have to: a message without all its fields ends the channel.

pub(super) mod nvsp;
pub(super) mod rndis;

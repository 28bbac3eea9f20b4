//! The guest's bus against the host's, message by message.

mod chaos;
mod faults;
mod isolated;
mod life;
mod newest;
mod policy;
mod posts;
mod ring_faults;
mod strict;
mod wire;
mod world;

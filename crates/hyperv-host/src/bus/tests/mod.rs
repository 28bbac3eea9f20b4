//! The guest's bus against the host's, message by message.

mod chaos;
mod life;
mod strict;
mod world;

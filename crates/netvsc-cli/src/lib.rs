//! The program `netvsc`, as a library.

pub mod args;
pub mod error;
pub mod units;

//! The program `netvsc`, as a library: for its own tests and benches. Nothing here is promised to stay as it is; what
//! others build on are the crates `vmbus`, `vpci`, `netvsc` and `hyperv-host`.

use std::io::Write as _;

/// Whether the bug of this name is the one that was put in: never, without the feature `seeded-bugs`.
#[cfg(not(feature = "seeded-bugs"))]
macro_rules! seeded {
    ($name:literal) => {
        false
    };
}
#[cfg(feature = "seeded-bugs")]
macro_rules! seeded {
    ($name:literal) => {
        vmbus::seeded::is(const { vmbus::seeded::number($name) })
    };
}

pub mod archive;
pub mod args;
pub mod bind;
pub mod capture;
pub mod check;
pub mod collect;
pub mod embedded;
pub mod errand;
pub mod error;
pub mod event;
mod gathered;
pub mod guest;
pub mod host;
pub mod inspect;
pub mod install;
mod line;
pub mod live;
mod log;
pub mod manual;
pub mod metrics;
mod notify;
mod remote;
pub mod report;
pub mod run;
pub mod scenario;
mod service;
pub mod session;
pub mod sim;
mod stop;
mod timeline;
pub mod transfer;
pub mod udev;
pub mod units;
pub mod watch;

#[cfg(test)]
#[path = "../../netvsc-linux/tests/namespace/mod.rs"]
#[expect(dead_code, reason = "shared with tests that need more of it")]
mod namespace;

/// Says something on standard error, in the program's name. It does not matter if nobody reads it.
pub fn remark(what: impl std::fmt::Display) {
    let _ = writeln!(std::io::stderr(), "netvsc: {what}");
}

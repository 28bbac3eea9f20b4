//! The first NIC's VF is an interface of the kernel's: one end of a veth pair, whose other end the host joins to its switch. The
//! kernel's TCP goes over TAPs in two namespaces while the pair is tormented.
//!
//! With `NETVSC_LONG` set everything happens as often as it takes to say something about one time in a hundred.

#[path = "../../../netvsc-linux/tests/namespace/mod.rs"]
mod namespace;

mod captures;
mod drivers;
mod ends;
mod killed;
mod one_namespace;
mod processes;
mod settings;
mod setup;
mod streams;
mod switches;
mod torments;

use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// What a process of this test is to do; see [`helper`].
const ROLE: &str = "NETVSC_TEST_ROLE";
/// After this long without a byte the transfer is dead.
const SILENCE: Duration = Duration::from_secs(20);

/// Whether there is time for many.
fn long() -> bool {
    std::env::var_os("NETVSC_LONG").is_some()
}

/// In the long form those that take long go one after the other: what one measures is not what another does to the machine.
fn alone() -> Option<MutexGuard<'static, ()>> {
    static ALONE: Mutex<()> = Mutex::new(());
    long().then(|| ALONE.lock().unwrap_or_else(PoisonError::into_inner))
}

/// Not a test by itself: what processes of these tests run, each in its namespace.
#[test]
fn helper() {
    let Ok(role) = std::env::var(ROLE) else { return };
    match role.split_once(' ') {
        // Until somebody creates the file.
        Some(("send", until)) => ends::send(Path::new(until), Duration::ZERO),
        Some(("pace", until)) => ends::send(Path::new(until), Duration::from_millis(1)),
        Some(("capture", until)) => streams::capture(Path::new(until)),
        Some(("flood", count)) => ends::flood(count.parse().expect("a number")),
        Some(("datagrams", to)) => ends::datagrams(to.parse().expect("an address")),
        _ if role == "count" => ends::count(),
        _ => ends::receive(),
    }
}

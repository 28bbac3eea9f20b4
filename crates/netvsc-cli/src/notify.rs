//! What systemd is told: that a service is ready, that it is alive, and that it stops (sd_notify(3), sd_watchdog_enabled(3)).

use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

/// The variable that names systemd's socket.
const VARIABLE: &str = "NOTIFY_SOCKET";

/// The service does what it is for.
pub(crate) fn ready() {
    tell("READY=1");
}

/// The service is about to end.
pub(crate) fn stopping() {
    tell("STOPPING=1");
}

/// The service is alive.
pub(crate) fn alive() {
    tell("WATCHDOG=1");
}

/// How often the service has to say that it is alive, if anybody wants to know.
pub(crate) fn watchdog() -> Option<Duration> {
    let number = |name| std::env::var(name).ok()?.parse::<u64>().ok();
    // Children inherit what was meant for their parent.
    let meant = number("WATCHDOG_PID").is_none_or(|pid| pid == u64::from(std::process::id()));
    let patience = number("WATCHDOG_USEC").filter(|patience| meant && *patience > 0)?;
    Some(Duration::from_micros(patience))
}

/// Nobody has to listen: then nothing is said.
fn tell(state: &str) {
    let Some(name) = std::env::var_os(VARIABLE) else { return };
    let told = UnixDatagram::unbound().and_then(|socket| {
        let address = match name.as_bytes() {
            // A name that starts with @ is in the abstract namespace.
            [b'@', rest @ ..] => SocketAddr::from_abstract_name(rest)?,
            path => SocketAddr::from_pathname(std::ffi::OsStr::from_bytes(path))?,
        };
        socket.send_to_addr(state.as_bytes(), &address)
    });
    if let Err(error) = told {
        tracing::debug!(%error, "systemd does not listen");
    }
}

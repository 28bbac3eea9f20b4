//! What an adapter reports.

use core::fmt;
use core::time::Duration;

use crate::failover::Cause;
use crate::port::{Path, PortError};

/// What an adapter has to say.
#[derive(Debug)]
pub enum AdapterEvent<E, P> {
    /// The NIC said something.
    Nic(E),
    /// Frames leave on another path from now on.
    Path {
        /// The path.
        path: Path,
        /// Why.
        cause: Cause,
    },
    /// Frames that a VF had not confirmed go out again.
    Resending {
        /// How many.
        frames: usize,
    },
    /// A port is quiet and no longer the adapter's.
    Released {
        /// The port.
        port: P,
        /// Whether it let everything go in order.
        orderly: bool,
    },
    /// The host has not completed a switch in time.
    SwitchOverdue {
        /// To where.
        path: Path,
    },
    /// A switch, or several in a row, keep new frames waiting no longer.
    Resumed {
        /// Where they go now.
        path: Path,
        /// How long none was taken.
        blackout: Duration,
        /// How many were pushed back meanwhile; one that is tried twice counts twice.
        pushed_back: u64,
    },
    /// The host has left the VF by itself, and is asked for it again.
    Retrying {
        /// Which try this is, from 1.
        attempt: u32,
    },
    /// The port cannot carry what the NIC carries. It stays bound, and is not used until one of them is set up otherwise.
    Unfit {
        /// Why.
        error: PortError,
    },
    /// The path switches too often.
    Flapping {
        /// Switches within the window of the configuration, up to 1,000 or one more than the limit.
        switches: usize,
    },
}

impl<E, P> AdapterEvent<E, P> {
    /// The word for machines.
    #[must_use]
    pub const fn word(&self) -> &'static str {
        match self {
            Self::Nic(_) => "nic",
            Self::Path { .. } => "path",
            Self::Resending { .. } => "resending",
            Self::Released { .. } => "released",
            Self::SwitchOverdue { .. } => "switch-overdue",
            Self::Resumed { .. } => "resumed",
            Self::Retrying { .. } => "retrying",
            Self::Unfit { .. } => "unfit",
            Self::Flapping { .. } => "flapping",
        }
    }
}

impl<E: fmt::Display, P> fmt::Display for AdapterEvent<E, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Nic(event) => event.fmt(f),
            Self::Path { path, cause } => write!(f, "frames leave on the {path} path: {cause}"),
            Self::Resending { frames } => {
                write!(f, "{frames} frames that the VF never confirmed go out again")
            }
            Self::Released { orderly: true, .. } => f.write_str("the VF is quiet and given back"),
            Self::Released { orderly: false, .. } => {
                f.write_str("the VF is given back with frames unconfirmed")
            }
            Self::SwitchOverdue { path } => {
                write!(f, "the host has not completed the switch to the {path} path in time")
            }
            Self::Resumed { path, blackout, pushed_back } => {
                write!(
                    f,
                    "the {path} path takes frames after {blackout:?}, {pushed_back} were pushed back"
                )
            }
            Self::Retrying { attempt } => {
                write!(f, "the host is asked for the VF again, try {attempt}")
            }
            Self::Unfit { error } => write!(f, "the VF is not used: {error}"),
            Self::Flapping { switches } => {
                write!(f, "the path switches too often: {switches} times in the window")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use std::string::ToString;

    #[test]
    fn events_are_told_in_plain_words() {
        let told = |event: AdapterEvent<&str, ()>| (event.word(), event.to_string());
        let path = AdapterEvent::Path { path: Path::Synthetic, cause: Cause::Eject };
        let text = "frames leave on the synthetic path: the host asked for the VF back";
        assert_eq!(told(path), ("path", text.into()));
        let overdue = AdapterEvent::SwitchOverdue { path: Path::Vf };
        let text = "the host has not completed the switch to the vf path in time";
        assert_eq!(told(overdue), ("switch-overdue", text.into()));
        assert_eq!(told(AdapterEvent::Nic("ready")), ("nic", "ready".into()));
    }
}

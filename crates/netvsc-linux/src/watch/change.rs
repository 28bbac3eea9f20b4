//! What changed.

use std::fmt;
use std::time::Duration;

use netvsc::port::Path;
use vmbus::{Guid, Instant};

use crate::inventory::PciAddress;
use crate::relation::State;

/// Whom a change is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subject {
    /// Name of the interface, or the GUID of a NIC that has none.
    pub name: String,
    /// Instance of the NIC's offer; none for interfaces that are no NICs.
    pub guid: Option<Guid>,
    /// Number of the interface.
    pub index: Option<u32>,
}

/// A change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// When it was seen, on the clock of the kernel log.
    pub at: Instant,
    /// Whom it is about; none for the watch itself.
    pub subject: Option<Subject>,
    /// What changed.
    pub what: What,
}

/// What changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum What {
    /// A NIC that was there when the watch began.
    Present {
        /// Its state.
        state: State,
        /// Its VF, if they are joined.
        vf: Option<String>,
        /// Since when, as far as the kernel log tells.
        since: Option<Instant>,
    },
    /// A NIC came.
    Arrived {
        /// Its state.
        state: State,
    },
    /// A NIC went.
    Gone {
        /// The state that it had.
        state: State,
    },
    /// A NIC is in another state.
    State {
        /// The one before.
        from: State,
        /// The one now.
        to: State,
        /// How long it had been in the one before; none if that began before anybody watched.
        after: Option<Duration>,
        /// What stands between it and acceleration.
        obstacle: Option<String>,
    },
    /// Frames go another way.
    Path {
        /// The way now.
        to: Path,
        /// How long they had gone the other way.
        after: Option<Duration>,
    },
    /// The VF of a NIC is gone.
    VfGone {
        /// Its interface.
        vf: String,
        /// Its function.
        pci: Option<PciAddress>,
        /// How long it had been there.
        after: Option<Duration>,
    },
    /// A NIC has its VF, or has it again.
    VfBack {
        /// Its interface.
        vf: String,
        /// Its function.
        pci: Option<PciAddress>,
        /// How long the NIC had been without one.
        after: Option<Duration>,
    },
    /// The host associated the NIC with a serial, or (none) dissociated it.
    Associated {
        /// The serial.
        serial: Option<u32>,
    },
    /// An interface has another name.
    Renamed {
        /// The one before.
        from: String,
    },
    /// An interface that is no NIC came, possibly from another network namespace.
    LinkArrived,
    /// An interface that is no NIC went, possibly into another network namespace.
    LinkGone,
    /// An interface was set up or down.
    Up {
        /// Whether it is up now.
        up: bool,
    },
    /// Events were lost, and everything was looked at anew.
    Resynchronised {
        /// Which events.
        lost: &'static str,
    },
}

impl What {
    /// The word for machines.
    #[must_use]
    pub const fn word(&self) -> &'static str {
        match self {
            Self::Present { .. } => "present",
            Self::Arrived { .. } => "arrived",
            Self::Gone { .. } => "gone",
            Self::State { .. } => "state",
            Self::Path { .. } => "path",
            Self::VfGone { .. } => "vf-gone",
            Self::VfBack { .. } => "vf-back",
            Self::Associated { .. } => "associated",
            Self::Renamed { .. } => "renamed",
            Self::LinkArrived => "link-arrived",
            Self::LinkGone => "link-gone",
            Self::Up { .. } => "up",
            Self::Resynchronised { .. } => "resynchronised",
        }
    }

    /// How long what ended had lasted.
    #[must_use]
    pub const fn after(&self) -> Option<Duration> {
        match self {
            Self::State { after, .. }
            | Self::Path { after, .. }
            | Self::VfGone { after, .. }
            | Self::VfBack { after, .. } => *after,
            _ => None,
        }
    }
}

/// A span as people read it: 31.4 s, 2 h 3 min.
struct Span(Duration);

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.0.as_secs();
        match seconds {
            0..60 => write!(f, "{:.1} s", self.0.as_secs_f64()),
            60..3_600 => write!(f, "{} min {} s", seconds / 60, seconds % 60),
            3_600..86_400 => write!(f, "{} h {} min", seconds / 3_600, seconds / 60 % 60),
            _ => write!(f, "{} d {} h", seconds / 86_400, seconds / 3_600 % 24),
        }
    }
}

/// ` after 31.4 s`, or nothing.
struct After(Option<Duration>);

impl fmt::Display for After {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.map_or(Ok(()), |span| write!(f, " after {}", Span(span)))
    }
}

/// ` (927a:00:02.0)`, or nothing.
struct At(Option<PciAddress>);

impl fmt::Display for At {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.map_or(Ok(()), |at| write!(f, " ({at})"))
    }
}

impl fmt::Display for What {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Present { state, vf: Some(vf), .. } => write!(f, "{state}, VF {vf}"),
            Self::Present { state, vf: None, .. } => write!(f, "{state}"),
            Self::Arrived { state } => write!(f, "arrived, {state}"),
            Self::Gone { state } => write!(f, "gone, was {state}"),
            Self::State { from, to, after, obstacle } => {
                write!(f, "{from} -> {to}{}", After(*after))?;
                obstacle.as_ref().map_or(Ok(()), |obstacle| write!(f, ": {obstacle}"))
            }
            Self::Path { to, after } => write!(f, "path switched to {to}{}", After(*after)),
            Self::VfGone { vf, pci, after } => {
                write!(f, "VF {vf}{} is gone{}", At(*pci), After(*after))
            }
            Self::VfBack { vf, pci, after: Some(after) } => {
                write!(f, "VF {vf}{} is back, was gone for {}", At(*pci), Span(*after))
            }
            Self::VfBack { vf, pci, after: None } => write!(f, "VF {vf}{} is here", At(*pci)),
            Self::Associated { serial: Some(serial) } => {
                write!(f, "the host associates serial {serial}")
            }
            Self::Associated { serial: None } => {
                f.write_str("the host associates nothing any more")
            }
            Self::Renamed { from } => write!(f, "renamed, was {from}"),
            Self::LinkArrived => f.write_str("interface arrived"),
            Self::LinkGone => f.write_str("interface is gone"),
            Self::Up { up: true } => f.write_str("set up"),
            Self::Up { up: false } => f.write_str("set down"),
            Self::Resynchronised { lost } => {
                write!(f, "events of {lost} were lost; everything was looked at anew")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_are_as_long_as_they_need_to_be() {
        for (millis, text) in [
            (31_400, "31.4 s"),
            (0, "0.0 s"),
            (90_000, "1 min 30 s"),
            (7_380_000, "2 h 3 min"),
            (180_000_000, "2 d 2 h"),
        ] {
            assert_eq!(Span(Duration::from_millis(millis)).to_string(), text);
        }
    }
}

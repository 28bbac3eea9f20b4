//! What failover is told to be, and what it tells its owner.

use core::fmt;
use core::time::Duration;

use crate::port::{Path, SWITCH_DEADLINE};

/// How patient failover is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FailoverConfig {
    /// How long a switch may take before that is reported (F7).
    pub switch_deadline: Duration,
    /// How long a path that is left may take to send its last frames. What a VF has not confirmed then is sent again on
    /// synthetic; what is still on synthetic may be overtaken.
    pub drain_deadline: Duration,
    /// Switches within [`FailoverConfig::flap_window`] that are still normal (F10).
    pub flap_limit: usize,
    /// The window in which switches are counted.
    pub flap_window: Duration,
    /// How long a path that has switched too often stays on synthetic; `None` leaves it at a report (F10).
    pub damping: Option<Duration>,
    /// How long after the host has left the VF by itself, or is late with it, it is asked again; doubles with each try (F3, F7).
    pub retry_after: Duration,
    /// How often that is tried, until something changes or the host has let the VF be for [`FailoverConfig::flap_window`].
    pub retry_limit: u32,
}

impl Default for FailoverConfig {
    /// 5 seconds for a switch, 1 second to drain, 10 switches in an hour and no damping, 5 tries within 31 seconds.
    fn default() -> Self {
        Self {
            switch_deadline: SWITCH_DEADLINE,
            drain_deadline: Duration::from_secs(1),
            flap_limit: 10,
            flap_window: Duration::from_secs(3600),
            damping: None,
            retry_after: Duration::from_secs(1),
            retry_limit: 5,
        }
    }
}

/// Why the path changed, or why the port goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// The VF's port is bound and has carrier.
    PortUp,
    /// The VF's port has no carrier.
    LinkDown,
    /// The host asked for the VF back.
    Eject,
    /// Pairing took the port away.
    Unbound,
    /// The host withdrew the NIC's association.
    Disassociated,
    /// The port vanished.
    Gone,
    /// The host switched by itself.
    Host,
    /// The NIC's channel closed.
    ChannelClosed,
    /// The host was asked whether it is still on the VF, and has not answered.
    Unanswered,
}

impl Cause {
    /// The word for machines.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::PortUp => "port-up",
            Self::LinkDown => "link-down",
            Self::Eject => "eject",
            Self::Unbound => "unbound",
            Self::Disassociated => "disassociated",
            Self::Gone => "gone",
            Self::Host => "host",
            Self::ChannelClosed => "channel-closed",
            Self::Unanswered => "unanswered",
        }
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::PortUp => "the VF is up and the host has switched",
            Self::LinkDown => "the VF has no carrier",
            Self::Eject => "the host asked for the VF back",
            Self::Unbound => "the VF belongs to this NIC no longer",
            Self::Disassociated => "the host has no VF for this NIC any more",
            Self::Gone => "the VF vanished",
            Self::Host => "the host switched by itself",
            Self::ChannelClosed => "the NIC's channel closed",
            Self::Unanswered => "the host does not say whether it is still on the VF",
        })
    }
}

/// What is to be done now, in the order given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Ask the host to switch its data path.
    Switch(Path),
    /// Frames go out on this path from now on.
    Transmit {
        /// The path.
        path: Path,
        /// Why.
        cause: Cause,
    },
    /// Send what the VF has not confirmed again on the synthetic path, before anything newer.
    Resend,
    /// The port is quiet and can be given back. `true` if it let everything go in order.
    Release {
        /// Whether the port was still there and everything was confirmed.
        orderly: bool,
    },
    /// Say that the host has not completed a switch in time.
    ReportOverdue {
        /// The switch that is missing.
        path: Path,
    },
    /// Say that the VF is tried again although the host has left it by itself, or did not answer.
    ReportRetry {
        /// Which try this is, from 1.
        attempt: u32,
    },
    /// Say that the path switches too often.
    ReportFlapping {
        /// Switches within the window, up to 1,000 or one more than the limit.
        switches: usize,
    },
}

/// What a frame that is to be sent meets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outlet {
    /// It goes out on this path.
    Path(Path),
    /// It waits until the path that was left has sent what it has, so that no frame overtakes another (F6).
    Draining,
}

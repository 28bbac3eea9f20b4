//! What can go wrong with a TAP.

use netvsc::MacAddress;
use rustix::io::Errno;

use super::{DEVICE, OffloadError, TapName};

/// What went wrong with a TAP.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TapError {
    /// The kernel has no TUN/TAP driver here.
    #[error(
        "{DEVICE} cannot be opened ({cause}): load the driver with `modprobe tun`, or pass the device into the container"
    )]
    NoDriver {
        /// What the kernel said.
        cause: Errno,
    },
    /// The caller may not do this.
    #[error(
        "not allowed to {doing} for TAP {name} ({cause}): run as root or with the capability CAP_NET_ADMIN"
    )]
    NotPermitted {
        /// The interface.
        name: TapName,
        /// What was tried.
        doing: &'static str,
        /// What the kernel said.
        cause: Errno,
    },
    /// Someone else holds this TAP.
    #[error(
        "TAP {name} is in use by another program ({}): stop that one, or choose another name",
        Errno::BUSY
    )]
    Busy {
        /// The interface.
        name: TapName,
    },
    /// The name belongs to something else.
    #[error(
        "an interface {name} exists and is not a TAP with {} ({}): choose another name{}",
        if *several { "several queues" } else { "a single queue" },
        Errno::INVAL,
        if *several { ", or have it made with `multi_queue`" } else { "" }
    )]
    NotATap {
        /// The interface.
        name: TapName,
        /// One with several queues was wanted.
        several: bool,
    },
    /// A number of queues that no TAP has.
    #[error("TAP {name} with {queues} queues: expected 1 to 256")]
    Queues {
        /// The interface.
        name: TapName,
        /// How many were wanted.
        queues: u16,
    },
    /// The interface is down, so that the kernel takes no frames.
    #[error("TAP {name} is down and takes no frames: bring it up with `ip link set {name} up`")]
    Down {
        /// The interface.
        name: TapName,
    },
    /// The interface was deleted under us.
    #[error("TAP {name} was deleted while it was in use: start again")]
    Gone {
        /// The interface.
        name: TapName,
    },
    /// The interface is no longer in the namespace in which it was opened.
    #[error(
        "TAP {name} is no longer in the network namespace in which it was opened: {doing} there, with `ip netns exec`"
    )]
    Moved {
        /// The interface.
        name: TapName,
        /// What was tried.
        doing: &'static str,
    },
    /// A frame of the kernel did not fit.
    #[error(
        "a frame of TAP {name} filled the whole buffer of {buffer} bytes and may have been cut: give a buffer of more than MTU + 18 bytes"
    )]
    FrameTooLong {
        /// The interface.
        name: TapName,
        /// Size of the buffer.
        buffer: usize,
    },
    /// A frame that no Ethernet interface takes.
    #[error("TAP {name} takes frames of 14 to 65535 bytes, this one has {len}")]
    FrameLength {
        /// The interface.
        name: TapName,
        /// Length of the frame.
        len: usize,
    },
    /// The kernel does not want this address.
    #[error("TAP {name} cannot have the address {mac}: expected a unicast address other than zero")]
    Mac {
        /// The interface.
        name: TapName,
        /// The address that was refused.
        mac: MacAddress,
    },
    /// The kernel does not want this MTU.
    #[error("TAP {name} cannot have an MTU of {mtu}: expected 68 to 65521")]
    Mtu {
        /// The interface.
        name: TapName,
        /// The MTU that was refused.
        mtu: u32,
    },
    /// A header that the kernel should not give, in front of a frame that is lost with it; or there are none of them.
    #[error("TAP {name}: {why}")]
    Offloads {
        /// The interface.
        name: TapName,
        /// What is wrong.
        why: OffloadError,
    },
    /// Anything else.
    #[error("could not {doing} for TAP {name}: {cause}")]
    Other {
        /// The interface.
        name: TapName,
        /// What was tried.
        doing: &'static str,
        /// What the kernel said.
        cause: Errno,
    },
}

/// The error for `cause` where nothing more special is known.
pub(super) fn failure(name: &TapName, doing: &'static str, cause: Errno) -> TapError {
    let name = name.clone();
    match cause {
        Errno::PERM | Errno::ACCESS => TapError::NotPermitted { name, doing, cause },
        Errno::BADFD => TapError::Gone { name },
        cause => TapError::Other { name, doing, cause },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_say_what_to_do() {
        let name: TapName = "tap7".parse().unwrap();
        let refused = failure(&name, "open /dev/net/tun", Errno::ACCESS).to_string();
        assert!(refused.contains("CAP_NET_ADMIN") && refused.contains("tap7"), "{refused}");
        let missing = TapError::NoDriver { cause: Errno::NOENT }.to_string();
        assert!(missing.contains("modprobe tun"), "{missing}");
        let busy = TapError::Busy { name }.to_string();
        assert!(busy.contains("in use by another program"), "{busy}");
    }
}

//! How a port by packet sockets is made, and what it tells of itself.

use netvsc::MacAddress;
use rustix::io::Errno;

use crate::vf::VfError;
/// How frames come from the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reception {
    /// In blocks of a ring that both map. A block that is not full is shown a millisecond after its first frame.
    Ring {
        /// Bytes of each block: a power of two from 128 KiB to 4 MiB.
        block_size: usize,
        /// Number of blocks: 2 to 1024.
        blocks: usize,
    },
    /// Out of the socket's queue, at once: where what comes by another way must not overtake them.
    Queue,
}

impl Reception {
    pub(super) fn check(self) -> Result<(), VfError> {
        let Self::Ring { block_size, blocks } = self else { return Ok(()) };
        let sizes = (128 << 10)..=(4 << 20);
        let fits = sizes.contains(&block_size) && block_size.is_power_of_two();
        match fits && (2..=1024).contains(&blocks) {
            true => Ok(()),
            false => Err(VfError::Ring { block_size, blocks }),
        }
    }
}

/// How a port is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PacketConfig {
    /// The MAC that the function has from its host; the interface gets it if it has another. Without it the port has the
    /// interface's permanent one, or the present one if the driver tells none.
    pub mac: Option<MacAddress>,
    /// How frames come.
    pub reception: Reception,
    /// Whether the port asks for large sends and receives all there is (MTU-sized frames only, if not).
    pub large_sends: bool,
    /// Whether frames go past the queueing discipline. A segment that the kernel has to cut for the interface it only takes on
    /// the usual way: with the first one that it does not take, all frames go there.
    pub bypass: bool,
    /// Whether the kernel's stack is to get none of what is received, of which a packet socket has copies. Otherwise a stack that has the NIC's
    /// addresses as well would take it twice. Whether that could be had is told by [`PacketPort::alone`](super::PacketPort::alone).
    pub alone: bool,
}

impl Default for PacketConfig {
    /// A ring of 4 MiB, and what is received is for the port alone.
    fn default() -> Self {
        let reception = Reception::Ring { block_size: 128 << 10, blocks: 32 };
        Self { mac: None, reception, large_sends: true, bypass: true, alone: true }
    }
}

/// Why the kernel's stack gets what a port receives, too.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotAlone {
    /// Nobody wanted otherwise.
    #[error("it was not asked to be kept away")]
    NotAsked,
    /// The caller may not keep it away.
    #[error(
        "not allowed to attach a program at the interface's entrance ({cause}): run as root or with the capabilities CAP_BPF and CAP_NET_ADMIN"
    )]
    NotPermitted {
        /// What the kernel said.
        cause: Errno,
    },
    /// The kernel cannot keep it away.
    #[error(
        "the kernel has no programs at an interface's entrance ({cause}), which come with Linux 6.6"
    )]
    NoPrograms {
        /// What it said.
        cause: Errno,
    },
    /// The kernel does not keep it away.
    #[error("could not attach a program at the interface's entrance: {cause}")]
    Refused {
        /// What it said.
        cause: Errno,
    },
}

impl NotAlone {
    pub(super) fn of(cause: Errno) -> Self {
        match cause {
            Errno::PERM | Errno::ACCESS => Self::NotPermitted { cause },
            // A place or a command that it does not know, or an argument longer than it knows any.
            Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP | Errno::TOOBIG => {
                Self::NoPrograms { cause }
            }
            cause => Self::Refused { cause },
        }
    }
}

/// What a port has done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PacketCounters {
    /// Frames that the kernel took.
    pub sent: u64,
    /// Of frames that it refused for good, such as one longer than the interface's MTU.
    pub refused: u64,
    /// Times that it took no more for now.
    pub pushed_back: u64,
    /// Frames handed on.
    pub received: u64,
    /// Frames that were dropped here since they cannot be handed on: cut off, or with work that cannot be done.
    pub unusable: u64,
    /// Frames for which there was no room in the ring.
    pub dropped: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_capability_is_told_from_an_old_kernel() {
        let said = |cause: Errno| NotAlone::of(cause).to_string();
        for cause in [Errno::PERM, Errno::ACCESS] {
            assert!(said(cause).contains("CAP_BPF") && !said(cause).contains("6.6"));
        }
        for cause in [Errno::INVAL, Errno::NOSYS, Errno::TOOBIG] {
            assert!(said(cause).contains("Linux 6.6") && !said(cause).contains("CAP_BPF"));
        }
        let other = said(Errno::NOMEM);
        assert!(!other.contains("6.6") && !other.contains("CAP_BPF"), "{other}");
    }
}

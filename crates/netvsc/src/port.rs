//! What a port of a virtual function can do, as far as a NIC cares.
//!
//! The driver of the function is somebody else's: a simulated one, a kernel's, one of a unikernel. It implements
//! [`VfPort`]; everything here is about frames, never about registers.

use core::fmt;
use core::time::Duration;

use crate::mac::MacAddress;
use crate::nic::TxWork;
use crate::rndis::PacketFilter;
use crate::rndis::offload::{IpOffloads, LargeSendOptions};
use crate::rndis::packet::{LargeSend, TransmitChecksum};

/// How long a host may take for a switch of the path, unless configured otherwise.
pub(crate) const SWITCH_DEADLINE: Duration = Duration::from_secs(5);

/// A way a NIC's frames can go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Path {
    /// Through the host's virtual switch, by the synthetic NIC's channel.
    Synthetic,
    /// Through the virtual function.
    Vf,
}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Synthetic => "synthetic",
            Self::Vf => "vf",
        })
    }
}

/// The state of a port's link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PortLink {
    /// The port is up and has carrier.
    Up,
    /// The port is there, but has no carrier or is not up.
    Down,
    /// The device has vanished (surprise removal). Final.
    Gone,
}

impl fmt::Display for PortLink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Up => "up",
            Self::Down => "down",
            Self::Gone => "gone",
        })
    }
}

/// What a path does to frames that ask for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct PathOffloads {
    /// To IPv4.
    pub ipv4: IpOffloads,
    /// To IPv6.
    pub ipv6: IpOffloads,
    /// What large sends over IPv6 may have in their headers.
    pub large_send_ipv6: LargeSendOptions,
    /// Whether it puts 802.1Q tags in.
    pub vlan: bool,
}

impl PathOffloads {
    /// What both of two paths do.
    #[must_use]
    pub fn both(self, other: Self) -> Self {
        Self {
            ipv4: self.ipv4.both(other.ipv4),
            ipv6: self.ipv6.both(other.ipv6),
            large_send_ipv6: self.large_send_ipv6 & other.large_send_ipv6,
            vlan: self.vlan && other.vlan,
        }
    }

    /// Whether all the checksums are computed that are asked for, in a frame that begins with the headers in `head`: with options only if
    /// that is said too.
    #[must_use]
    pub fn computes(&self, head: &[u8], request: TransmitChecksum) -> bool {
        crate::nic::offload::computes(self, head, request)
    }

    /// Whether a segment of `len` bytes that begins with the headers in `head` is cut: it is not too long, makes as many pieces as
    /// there have to be, and has no options over IPv6 that are not among those that are cut.
    #[must_use]
    pub fn cuts(&self, head: &[u8], send: LargeSend, len: usize) -> bool {
        crate::nic::offload::cuts(self, head, send, len)
    }
}

/// How a port has to be set up to carry what its NIC carries (F2, F11).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PortSettings {
    /// Largest packet without Ethernet header, in bytes.
    pub mtu: u32,
    /// Which frames to receive.
    pub filter: PacketFilter,
}

/// Why a port did not take a frame. Nothing of the frame has been sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PortError {
    /// The queue is full; room comes back as the device confirms frames.
    #[error("the port's transmit queue is full: expected a free descriptor, found none")]
    Full,
    /// The device has vanished.
    #[error("the port's device is gone: expected its registers, read all ones")]
    Gone,
    /// The port never sends a frame of this length. Others still go.
    #[error("frame of {len} bytes: this port sends 1 to {most}")]
    Length {
        /// Bytes of the frame.
        len: usize,
        /// Most that the port sends.
        most: usize,
    },
    /// The port cannot carry packets of the NIC's size, so that it cannot be used.
    #[error("MTU of {mtu}: this port carries up to {most}")]
    Mtu {
        /// The MTU that the NIC has.
        mtu: u32,
        /// Most that the port has.
        most: u32,
    },
}

/// One Ethernet port of a virtual function.
pub trait VfPort {
    /// The address the port was made with; `None` if it is not known (yet).
    fn permanent_mac(&self) -> Option<MacAddress>;

    /// The state of the link right now. Once it is [`PortLink::Gone`] it stays so.
    fn link(&mut self) -> PortLink;

    /// Sets the port up. Comes before the first frame, and whenever the NIC's settings have changed.
    ///
    /// # Errors
    /// [`PortError::Mtu`] if it cannot carry such packets: it is not used then. [`PortError::Gone`].
    fn configure(&mut self, settings: PortSettings) -> Result<(), PortError>;

    /// What the device does to frames. What it does not is done before they are given to it.
    fn offloads(&self) -> PathOffloads {
        PathOffloads::default()
    }

    /// Queues one frame with work for the device, which is only asked for what [`offloads`](Self::offloads) names. A large
    /// send is one frame, also where frames are counted.
    ///
    /// # Errors
    /// [`PortError`]; the frame was not taken.
    fn transmit_with(&mut self, frame: &[u8], work: &TxWork) -> Result<(), PortError> {
        debug_assert!(work.is_none(), "this port states no offloads");
        self.transmit(frame)
    }

    /// Queues one frame. The device may wait with it until [`flush`](Self::flush).
    ///
    /// # Errors
    /// [`PortError`]; the frame was not taken.
    fn transmit(&mut self, frame: &[u8]) -> Result<(), PortError>;

    /// Tells the device about everything queued since the last flush.
    fn flush(&mut self);

    /// Hands every received frame to `sink`, in order, and returns how many there were.
    fn receive(&mut self, sink: &mut dyn FnMut(&[u8])) -> usize;

    /// The same for who takes TCP segments that are longer than frames, joined by the device or never cut: each comes with how it
    /// is to be cut, its headers say how long it is, and the field of its TCP checksum holds the sum of the pseudo-header. Its pieces
    /// are what is counted.
    fn receive_whole(&mut self, sink: &mut dyn FnMut(&[u8], Option<LargeSend>)) -> usize {
        self.receive(&mut |frame| sink(frame, None))
    }

    /// How many frames the device has confirmed as transmitted since the port was opened.
    ///
    /// Counts in the order of [`transmit`](Self::transmit) and never goes down. Keeps its last value once the device
    /// is gone.
    fn confirmed(&mut self) -> u64;
}

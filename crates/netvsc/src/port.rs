//! What a port of a virtual function can do, as far as a NIC cares.
//!
//! The driver of the function is somebody else's: a simulated one, a kernel's, one of a unikernel. It implements
//! [`VfPort`]; everything here is about frames, never about registers.

use core::fmt;

use crate::mac::MacAddress;

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
}

/// One Ethernet port of a virtual function.
pub trait VfPort {
    /// The address the port was made with; `None` if it is not known (yet).
    fn permanent_mac(&self) -> Option<MacAddress>;

    /// The state of the link right now. Once it is [`PortLink::Gone`] it stays so.
    fn link(&mut self) -> PortLink;

    /// Queues one frame. The device may wait with it until [`flush`](Self::flush).
    ///
    /// # Errors
    /// [`PortError`]; the frame was not taken.
    fn transmit(&mut self, frame: &[u8]) -> Result<(), PortError>;

    /// Tells the device about everything queued since the last flush.
    fn flush(&mut self);

    /// Hands every received frame to `sink`, in order, and returns how many there were.
    fn receive(&mut self, sink: &mut dyn FnMut(&[u8])) -> usize;

    /// How many frames the device has confirmed as transmitted since the port was opened.
    ///
    /// Counts in the order of [`transmit`](Self::transmit) and never goes down. Keeps its last value once the device
    /// is gone.
    fn confirmed(&mut self) -> u64;
}

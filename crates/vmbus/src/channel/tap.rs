//! Looking at the packets of a channel.

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::fmt;

use crate::Instant;
use crate::packet::Outgoing;

/// Which way a packet or a frame goes, as the owner of this end sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Direction {
    /// From the peer.
    In,
    /// To the peer.
    Out,
}

impl fmt::Display for Direction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::In => "in",
            Self::Out => "out",
        })
    }
}

/// Sees every packet of one end of a channel: those that were staged, when they are, and those that were read, when they are. One
/// that was skipped since it contradicts itself is not seen.
///
/// A channel that nobody looks at spends nothing on it: not even a comparison for the packets of the short way, since one that is
/// looked at takes the long way.
pub trait PacketTap: fmt::Debug + Send {
    /// A packet: descriptor, extra header and message with its padding, as they lie in the ring, without the trailer. `now` is what
    /// the owner of the channel said last ([`Channel::set_time`](super::Channel::set_time)).
    fn packet(&mut self, direction: Direction, now: Instant, packet: &[u8]);
}

/// A tap on one ring.
#[derive(Debug)]
pub(crate) struct Tapped {
    tap: Box<dyn PacketTap>,
    direction: Direction,
    pub(crate) now: Instant,
    /// Where a packet is put together.
    bytes: Vec<u8>,
}

impl Tapped {
    pub(crate) fn new(tap: Box<dyn PacketTap>, direction: Direction, now: Instant) -> Box<Self> {
        Box::new(Self { tap, direction, now, bytes: Vec::new() })
    }

    /// Shows a packet that is written.
    pub(crate) fn sent(&mut self, packet: &Outgoing<'_>, descriptor: [u64; 2]) {
        self.bytes.clear();
        for word in descriptor {
            self.bytes.extend_from_slice(&word.to_le_bytes());
        }
        let Ok(()) = packet.extra_words(|word| {
            self.bytes.extend_from_slice(&word.to_le_bytes());
            Ok::<_, core::convert::Infallible>(())
        });
        self.bytes.extend_from_slice(packet.payload());
        self.bytes.resize(self.bytes.len().next_multiple_of(8), 0);
        self.tap.packet(self.direction, self.now, &self.bytes);
    }

    /// Shows a packet whose parts were copied out of the ring.
    pub(crate) fn copied(&mut self, descriptor: [u64; 2], rest: &[u8]) {
        self.bytes.clear();
        for word in descriptor {
            self.bytes.extend_from_slice(&word.to_le_bytes());
        }
        self.bytes.extend_from_slice(rest);
        self.tap.packet(self.direction, self.now, &self.bytes);
    }

    /// Shows a packet of `len` bytes that `read` copies out of the ring.
    pub(crate) fn in_place<E>(
        &mut self,
        len: usize,
        read: impl FnOnce(&mut [u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        self.bytes.clear();
        self.bytes.resize(len, 0);
        read(&mut self.bytes)?;
        self.tap.packet(self.direction, self.now, &self.bytes);
        Ok(())
    }
}

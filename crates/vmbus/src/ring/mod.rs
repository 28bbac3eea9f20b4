//! Rings: one direction of a channel (PROTOCOL §5; Linux `ring_buffer.c`).
//!
//! A ring is a header page and data behind it. The writer owns the write index and `pending_send_sz`, the reader owns the
//! read index and the interrupt mask. Each side keeps its own index privately and publishes it once per batch; each
//! validates what it reads of the other's.
//!
//! # When a side tells the other
//! *Writer*: publish the write index, full barrier, then signal only if the reader's mask is clear and the ring was empty
//! before the batch. *Reader*: publish the read index, full barrier, then signal only if the writer waits for space
//! (`pending_send_sz`) and this batch of reads made that much free. One barrier per commit and side, none per packet.
//!
//! # Without copies
//! [`RingWriter::reserve`] builds a packet in the ring itself; [`RingReader::peek`] reads one where it lies. The peer can
//! change what lies there, so a [`PacketView`] gives every byte once and none twice.

use core::sync::atomic::{AtomicU64, Ordering};

use crate::memory::{OutOfRange, PAGE_SIZE, SharedMemory};
use crate::packet::{DESCRIPTOR_SIZE, Descriptor, PacketError, RANGES_OFFSET, TRAILER_SIZE};

mod reader;
mod slot;
mod view;
mod writer;

pub use reader::RingReader;
pub use slot::{Slot, SlotError};
pub use view::{GpaRangeHead, PacketView, ViewKind};
pub use writer::RingWriter;

/// Byte offset of the write index in the header page.
pub const WRITE_INDEX: usize = 0;
/// Byte offset of the read index in the header page.
pub const READ_INDEX: usize = 4;
/// Byte offset of the interrupt mask in the header page.
pub const INTERRUPT_MASK: usize = 8;
/// Byte offset of the size for which the writer waits in the header page.
pub const PENDING_SEND_SIZE: usize = 12;
/// Byte offset of the feature bits in the header page.
pub const FEATURE_BITS: usize = 64;
/// Feature bit: the writer of this ring uses `pending_send_sz`.
pub const FEATURE_PENDING_SEND_SIZE: u32 = 1;

/// A ring that cannot be used any further. The channel it belongs to is dead.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RingError {
    /// Memory too small for a ring, or larger than any.
    #[error("ring memory of {0} bytes: expected a header page and 1 to 262144 pages of data")]
    Size(usize),
    /// The peer's index is outside the ring or not a multiple of 8.
    #[error("peer's {which} index {value:#x} is not a multiple of 8 below the ring size {size:#x}")]
    Index {
        /// "write" or "read".
        which: &'static str,
        /// What the header holds.
        value: u32,
        /// Bytes of data in the ring.
        size: u32,
    },
    /// The peer's index moved backwards or past our own.
    #[error("peer's {which} index went from {from:#x} to {to:#x}, past our own at {own:#x}")]
    IndexJump {
        /// "write" or "read".
        which: &'static str,
        /// Where it was last.
        from: u32,
        /// Where it is now.
        to: u32,
        /// Our index.
        own: u32,
    },
    /// The length of a packet makes no sense, so that the next one cannot be found.
    #[error(
        "packet of {packet} bytes and trailer at {at:#x}, but {available} bytes are in the ring"
    )]
    PacketLength {
        /// Packet length from the descriptor, in bytes.
        packet: usize,
        /// Bytes between the indices.
        available: usize,
        /// Where the packet starts.
        at: u32,
    },
    /// Shared memory is smaller than it was. A defect of the [`SharedMemory`] implementation.
    #[error(transparent)]
    Memory(#[from] OutOfRange),
}

/// A packet that was not written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SendError {
    /// Not enough room now. Try again when the peer has signalled.
    #[error("the ring is full: {need} bytes are needed")]
    Full {
        /// Bytes that the packet takes, trailer included.
        need: usize,
    },
    /// Never enough room, or longer than a descriptor can say.
    #[error("packet of {len} bytes: this ring takes at most {most}")]
    TooLarge {
        /// Bytes that the packet takes, trailer included.
        len: usize,
        /// Most that would fit into the empty ring.
        most: usize,
    },
    /// The ring is broken.
    #[error(transparent)]
    Ring(#[from] RingError),
}

/// A packet that was not read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReceiveError {
    /// This packet is unusable and was skipped; the next one can be read.
    #[error(transparent)]
    Packet(#[from] PacketError),
    /// The ring is broken.
    #[error(transparent)]
    Ring(#[from] RingError),
}

/// Longest packet that a descriptor can describe, in words without trailer.
const LONGEST_PACKET: usize = u16::MAX as usize;

/// What went through one end of a ring.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Packets.
    pub packets: u64,
    /// Bytes in the ring: headers, messages, padding and trailers.
    pub bytes: u64,
    /// Packets that did not fit; of a reader, packets that were skipped.
    pub failed: u64,
}

/// Most bytes of data, so that an index and the length of a packet never overflow together.
const LARGEST_RING: usize = 1 << 30;

/// The part of a ring that both sides need: memory and geometry.
///
/// Places in the ring are counted in words of 8 bytes from the start of the data; only what stands in the header page, and what
/// callers see, is in bytes.
#[derive(Debug)]
struct Ring<M> {
    memory: M,
    /// Words of data.
    size: u32,
}

/// Words of a descriptor.
const DESCRIPTOR: usize = DESCRIPTOR_SIZE / 8;
/// Words of a trailer.
const TRAILER: usize = TRAILER_SIZE / 8;
/// Words before the data.
const DATA: usize = PAGE_SIZE / 8;

impl<M: SharedMemory> Ring<M> {
    fn new(memory: M) -> Result<Self, RingError> {
        let error = RingError::Size(memory.size());
        let data = memory.size().checked_sub(PAGE_SIZE).ok_or(error)?;
        if data == 0 || !data.is_multiple_of(PAGE_SIZE) || data > LARGEST_RING {
            return Err(error);
        }
        Ok(Self { memory, size: (data / 8) as u32 })
    }

    /// A field of the header page.
    #[inline(always)]
    fn load(&self, field: usize) -> Result<u32, RingError> {
        Ok(self.memory.load_u32(field)?)
    }

    #[inline(always)]
    fn store(&self, field: usize, value: u32) -> Result<(), RingError> {
        Ok(self.memory.store_u32(field, value)?)
    }

    /// Publishes an index of our own.
    #[inline(always)]
    fn store_index(&self, field: usize, at: u32) -> Result<(), RingError> {
        self.store(field, index(at))
    }

    /// The place that an index of the peer names, if a packet can start there.
    #[inline(always)]
    fn place(&self, value: u32) -> Option<u32> {
        let at = value / 8;
        (value.is_multiple_of(8) && at < self.size).then_some(at)
    }

    /// The same, or why not.
    #[inline]
    fn check_index(&self, value: u32, which: &'static str) -> Result<u32, RingError> {
        self.place(value).ok_or(RingError::Index { which, value, size: index(self.size) })
    }

    /// The peer's index, checked.
    #[inline]
    fn load_index(&self, field: usize, which: &'static str) -> Result<u32, RingError> {
        self.check_index(self.load(field)?, which)
    }

    /// Words from `from` forward to `to`.
    #[inline(always)]
    fn distance(&self, from: u32, to: u32) -> u32 {
        if to >= from { to - from } else { self.size - from + to }
    }

    /// The place `by` words behind `at`, where `by` is at most the size.
    #[inline(always)]
    fn advance(&self, at: u32, by: usize) -> u32 {
        let next = at + by as u32;
        if next >= self.size { next - self.size } else { next }
    }

    /// Bytes from `first` to `now` in so many laps.
    fn travelled(&self, first: u32, now: u32, laps: u64) -> u64 {
        (laps * u64::from(self.size) + u64::from(now) - u64::from(first)) * 8
    }

    /// The data from `at` on, to the end of the ring or of the piece of memory.
    #[inline]
    fn words(&self, at: u32) -> &[AtomicU64] {
        self.memory.words(PAGE_SIZE + at as usize * 8)
    }

    /// `words` words of data from `at` on, if the memory lies in one piece and they do not wrap around its end.
    #[inline(always)]
    fn straight(&self, at: u32, words: usize) -> Option<&[AtomicU64]> {
        let first = DATA + at as usize;
        self.memory.whole().get(first..first + words)
    }

    /// The data from `at` to `end`, if the memory lies in one piece.
    #[inline(always)]
    fn between(&self, at: u32, end: u32) -> &[AtomicU64] {
        self.memory.whole().get(DATA + at as usize..DATA + end as usize).unwrap_or_default()
    }

    /// The descriptor at `at`, read once.
    #[inline]
    fn descriptor(&self, at: u32) -> Result<Descriptor, RingError> {
        let first = self.read_word(at)?;
        Ok(Descriptor::from_words(first, self.read_word(self.advance(at, 1))?))
    }

    /// Bytes of data.
    #[inline]
    fn bytes(&self) -> usize {
        offset(self.size)
    }

    /// The byte offset `by` bytes behind `offset`, where `by` is at most the size.
    #[inline]
    fn behind(&self, offset: usize, by: usize) -> usize {
        let next = offset + by;
        if next >= self.bytes() { next - self.bytes() } else { next }
    }

    /// Writes bytes at a byte offset in the data, around the end of the ring if need be.
    #[inline]
    fn write(&self, offset: usize, bytes: &[u8]) -> Result<(), OutOfRange> {
        if bytes.len() <= self.bytes() - offset {
            return self.memory.write(PAGE_SIZE + offset, bytes);
        }
        self.write_around(offset, bytes)
    }

    #[cold]
    fn write_around(&self, offset: usize, bytes: &[u8]) -> Result<(), OutOfRange> {
        let (first, rest) = bytes.split_at(self.bytes() - offset);
        self.memory.write(PAGE_SIZE + offset, first)?;
        self.memory.write(PAGE_SIZE, rest)
    }

    /// Reads bytes at a byte offset in the data, around the end of the ring if need be.
    #[inline]
    fn read(&self, offset: usize, bytes: &mut [u8]) -> Result<(), OutOfRange> {
        if bytes.len() <= self.bytes() - offset {
            return self.memory.read(PAGE_SIZE + offset, bytes);
        }
        self.read_around(offset, bytes)
    }

    #[cold]
    fn read_around(&self, offset: usize, bytes: &mut [u8]) -> Result<(), OutOfRange> {
        let (first, rest) = bytes.split_at_mut(self.bytes() - offset);
        self.memory.read(PAGE_SIZE + offset, first)?;
        self.memory.read(PAGE_SIZE, rest)
    }

    /// The word at `at`, as a number.
    #[inline]
    fn read_word(&self, at: u32) -> Result<u64, OutOfRange> {
        if let Some([word]) = self.straight(at, 1) {
            return Ok(u64::from_le(word.load(Ordering::Relaxed)));
        }
        self.read_word_in_pieces(at)
    }

    #[inline(never)]
    fn read_word_in_pieces(&self, at: u32) -> Result<u64, OutOfRange> {
        let mut bytes = [0; 8];
        self.memory.read(PAGE_SIZE + offset(at), &mut bytes)?;
        Ok(u64::from_le_bytes(bytes))
    }

    /// Writes a number as the word at `at`.
    #[inline]
    fn write_word(&self, at: u32, value: u64) -> Result<(), OutOfRange> {
        if let Some([word]) = self.straight(at, 1) {
            word.store(value.to_le(), Ordering::Relaxed);
            return Ok(());
        }
        self.write_word_in_pieces(at, value)
    }

    #[inline(never)]
    fn write_word_in_pieces(&self, at: u32, value: u64) -> Result<(), OutOfRange> {
        self.memory.write(PAGE_SIZE + offset(at), &value.to_le_bytes())
    }
}

/// The index that stands for a place: its offset in bytes. It fits, since no ring is larger than [`LARGEST_RING`].
#[inline(always)]
fn index(at: u32) -> u32 {
    at * 8
}

/// The byte offset of a place in the data.
#[inline(always)]
fn offset(at: u32) -> usize {
    at as usize * 8
}

/// The trailer of a packet that starts at `start`.
#[inline(always)]
fn trailer(start: u32) -> u64 {
    u64::from(start) << 35
}

/// Bytes of header of a transfer-page packet with `ranges` ranges; for callers that size their buffers.
#[must_use]
pub const fn transfer_header_len(ranges: usize) -> usize {
    RANGES_OFFSET + 8 * ranges
}

#[cfg(test)]
mod tests;

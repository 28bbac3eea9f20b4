//! Packets to be written.

use super::{DESCRIPTOR_SIZE, FLAG_COMPLETION_REQUESTED, PacketType, RANGES_OFFSET, TRAILER_SIZE};
use crate::Pfn;

/// One range of guest memory in a GPA-direct packet, as a sender describes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GpaRange<'a> {
    /// Bytes of the range.
    pub byte_count: u32,
    /// Offset of its first byte in the first page; less than a page.
    pub byte_offset: u32,
    /// Its pages: as many as offset and count together touch.
    pub frames: &'a [Pfn],
}

/// One range of a transfer-page packet: bytes in a buffer that both sides know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TransferRange {
    /// Bytes of the range.
    pub byte_count: u32,
    /// Offset of its first byte in the buffer.
    pub byte_offset: u32,
}

/// A packet to be written.
#[derive(Clone, Copy, Debug)]
pub enum Outgoing<'a> {
    /// A message in the ring itself.
    InBand {
        /// Chosen by the sender, echoed in the completion. By habit never 0.
        transaction_id: u64,
        /// Whether the receiver shall answer with a completion.
        completion: bool,
        /// The message; padded with zeros to a multiple of 8.
        payload: &'a [u8],
    },
    /// The answer to a packet that asked for one.
    Completion {
        /// The id of the packet that is answered.
        transaction_id: u64,
        /// The answer; may be empty.
        payload: &'a [u8],
    },
    /// A message and ranges of guest memory. Always asks for a completion.
    GpaDirect {
        /// Chosen by the sender, echoed in the completion.
        transaction_id: u64,
        /// One range at least.
        ranges: &'a [GpaRange<'a>],
        /// The message.
        payload: &'a [u8],
    },
    /// A message and ranges of a buffer known to both. Always asks for a completion.
    TransferPages {
        /// Chosen by the sender, echoed in the completion.
        transaction_id: u64,
        /// Number of the buffer, agreed on beforehand.
        pageset: u16,
        /// One range at least.
        ranges: &'a [TransferRange],
        /// The message.
        payload: &'a [u8],
    },
}

impl Outgoing<'_> {
    /// Bytes of descriptor and extra header.
    #[inline]
    pub(crate) fn header_len(&self) -> usize {
        match self {
            Self::InBand { .. } | Self::Completion { .. } => DESCRIPTOR_SIZE,
            Self::GpaDirect { ranges, .. } => {
                ranges.iter().fold(RANGES_OFFSET, |len, range| len + 8 + 8 * range.frames.len())
            }
            Self::TransferPages { ranges, .. } => RANGES_OFFSET + 8 * ranges.len(),
        }
    }

    /// The message.
    #[inline]
    pub(crate) fn payload(&self) -> &[u8] {
        match self {
            Self::InBand { payload, .. }
            | Self::Completion { payload, .. }
            | Self::GpaDirect { payload, .. }
            | Self::TransferPages { payload, .. } => payload,
        }
    }

    /// Bytes that the packet takes in a ring, trailer included. A ring takes it only while more than this is free.
    #[inline]
    #[must_use]
    pub fn ring_len(&self) -> usize {
        self.header_len() + self.payload().len().next_multiple_of(8) + TRAILER_SIZE
    }

    /// Calls `word` with each word of the extra header, in order. Nothing for types without one.
    #[inline]
    pub(crate) fn extra_words<E>(
        &self,
        mut word: impl FnMut(u64) -> Result<(), E>,
    ) -> Result<(), E> {
        let pair = |low: u32, high: u32| u64::from(low) | u64::from(high) << 32;
        match *self {
            Self::InBand { .. } | Self::Completion { .. } => {}
            Self::GpaDirect { ranges, .. } => {
                word((ranges.len() as u64) << 32)?;
                for range in ranges {
                    word(pair(range.byte_count, range.byte_offset))?;
                    for frame in range.frames {
                        word(frame.0)?;
                    }
                }
            }
            Self::TransferPages { ranges, pageset, .. } => {
                word(u64::from(pageset) | (ranges.len() as u64) << 32)?;
                for range in ranges {
                    word(pair(range.byte_count, range.byte_offset))?;
                }
            }
        }
        Ok(())
    }

    /// The two words of the descriptor, for a packet of `len` bytes without trailer.
    #[inline]
    pub(crate) fn descriptor(&self, header: usize, len: usize) -> [u64; 2] {
        let (kind, flags, id) = match *self {
            Self::InBand { transaction_id, completion, .. } => {
                (PacketType::IN_BAND, u16::from(completion), transaction_id)
            }
            Self::Completion { transaction_id, .. } => (PacketType::COMPLETION, 0, transaction_id),
            Self::GpaDirect { transaction_id, .. } => {
                (PacketType::GPA_DIRECT, FLAG_COMPLETION_REQUESTED, transaction_id)
            }
            Self::TransferPages { transaction_id, .. } => {
                (PacketType::TRANSFER_PAGES, FLAG_COMPLETION_REQUESTED, transaction_id)
            }
        };
        let word = u64::from(kind.0)
            | (header as u64 / 8) << 16
            | (len as u64 / 8) << 32
            | u64::from(flags) << 48;
        [word, id]
    }
}

//! Packets: what stands between the indices of a ring (PROTOCOL §6; Linux `vmbus_packet.h`/`hyperv.h`).
//!
//! A packet is a 16-byte descriptor, for two of the four types an extra header, a body padded to 8 bytes, and an
//! 8-byte trailer that repeats where the packet started. The true length of a body is not on the wire: a reader gets up
//! to seven zero bytes more than the writer gave.

mod outgoing;
mod ranges;

#[cfg(test)]
mod tests;

pub use outgoing::{GpaRange, Outgoing, TransferRange};
pub use ranges::{GpaRangeRef, GpaRanges, TransferRanges};

use self::ranges::{u16_at, u64_at};
use crate::open_enum;

/// Bytes of a packet descriptor.
pub const DESCRIPTOR_SIZE: usize = 16;
/// Bytes of the trailer behind every packet.
pub const TRAILER_SIZE: usize = 8;
/// Bytes of descriptor and extra header before the first range of a GPA-direct or transfer-page packet.
pub const RANGES_OFFSET: usize = 24;
/// Descriptor flag: the receiver shall send a completion with this packet's transaction id.
pub const FLAG_COMPLETION_REQUESTED: u16 = 1;

open_enum! {
    /// Type of a packet. Other numbers exist in headers but are not used on any channel.
    pub struct PacketType(u16) {
        /// Body only.
        IN_BAND = 6,
        /// Ranges inside a buffer that both sides know (a NIC's receive buffer).
        TRANSFER_PAGES = 7,
        /// Ranges of guest memory, given by page frame number.
        GPA_DIRECT = 9,
        /// The answer to a packet that asked for one.
        COMPLETION = 0xb,
    }
}

/// A packet that cannot be used. It costs that packet; the ring goes on behind it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PacketError {
    /// A type that no channel uses.
    #[error("packet type {0:?} is not one of in-band, completion, GPA-direct and transfer-pages")]
    UnknownType(PacketType),
    /// Header shorter than the descriptor or longer than the packet.
    #[error(
        "packet header of {header} bytes does not fit: at least {DESCRIPTOR_SIZE}, at most the packet's {packet}"
    )]
    HeaderLength {
        /// Header length from the descriptor, in bytes.
        header: usize,
        /// Packet length from the descriptor, in bytes.
        packet: usize,
    },
    /// Flag bits other than "completion requested".
    #[error("packet flags {0:#x}: only bit 0 (completion requested) is defined")]
    Flags(u16),
    /// Fewer bytes of ranges than the count promises, or a count of zero.
    #[error(
        "{count} ranges do not fit into the {room} bytes of header that the packet has for them"
    )]
    Ranges {
        /// Number of ranges that the header claims.
        count: u32,
        /// Bytes available for them.
        room: usize,
    },
    /// Larger than the buffer of the reader.
    #[error("packet of {packet} bytes, the receive buffer takes {buffer}")]
    TooLarge {
        /// Packet length without trailer, in bytes.
        packet: usize,
        /// Size of the caller's buffer, in bytes.
        buffer: usize,
    },
    /// The trailer does not name the place where the packet starts. Only checked on request.
    #[error(
        "packet trailer {found:#x}, expected {expected:#x}: the packet's start in the upper half, zero below"
    )]
    Trailer {
        /// What the trailer should hold.
        expected: u64,
        /// What it holds.
        found: u64,
    },
}

/// A packet as read: copied out of the ring and checked.
#[derive(Clone, Copy, Debug)]
pub struct Packet<'b> {
    /// Its type, with the ranges of those that have some.
    pub kind: PacketKind<'b>,
    /// The sender's id, to be echoed in the completion.
    pub transaction_id: u64,
    /// Whether the sender waits for a completion.
    pub completion_requested: bool,
    /// The message, with up to seven zero bytes of padding.
    pub payload: &'b [u8],
}

/// The type of a packet as read, with what its extra header says.
#[derive(Clone, Copy, Debug)]
pub enum PacketKind<'b> {
    /// A message in the ring itself.
    InBand,
    /// The answer to a packet that asked for one.
    Completion,
    /// Ranges of guest memory.
    GpaDirect(GpaRanges<'b>),
    /// Ranges of a buffer known to both sides.
    TransferPages {
        /// Number of the buffer.
        pageset: u16,
        /// The ranges. Whether they lie inside the buffer is for the reader to check.
        ranges: TransferRanges<'b>,
    },
}

/// The fields of a descriptor, as they stand there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Descriptor {
    /// Type of the packet.
    pub kind: PacketType,
    /// Bytes of descriptor and extra header.
    pub header_len: usize,
    /// Bytes of header and body together, without trailer.
    pub packet_len: usize,
    /// Flag bits.
    pub flags: u16,
    /// Transaction id.
    pub transaction_id: u64,
}

impl Descriptor {
    /// Takes the 16 bytes apart. Nothing is checked.
    #[inline]
    #[must_use]
    pub fn decode(bytes: &[u8; DESCRIPTOR_SIZE]) -> Self {
        Self::from_words(u64_at(bytes, 0), u64_at(bytes, 8))
    }

    /// The two words that it is made of.
    #[inline]
    pub(crate) fn to_words(self) -> [u64; 2] {
        let words = |bytes: usize| (bytes / 8) as u64 & 0xffff;
        let word = u64::from(self.kind.0)
            | words(self.header_len) << 16
            | words(self.packet_len) << 32
            | u64::from(self.flags) << 48;
        [word, self.transaction_id]
    }

    /// The same from the two words, as numbers.
    #[inline]
    pub(crate) fn from_words(word: u64, transaction_id: u64) -> Self {
        let field = |shift: u32| (word >> shift) as u16;
        Self {
            kind: PacketType(field(0)),
            header_len: usize::from(field(16)) * 8,
            packet_len: usize::from(field(32)) * 8,
            flags: field(48),
            transaction_id,
        }
    }
}

/// First word of the descriptor of a packet without ranges, but for its length and the one flag there is.
#[inline(always)]
const fn plain(kind: PacketType) -> u64 {
    kind.0 as u64 | (DESCRIPTOR_SIZE as u64 / 8) << 16
}

/// Bits of the first word that differ between packets of one type without ranges: length, "completion requested".
const VARIABLE: u64 = 0xffff << 32 | (FLAG_COMPLETION_REQUESTED as u64) << 48;

/// The first word of the descriptor of a packet of `words` words without trailer.
#[inline(always)]
pub(crate) fn plain_word(kind: PacketType, completion: bool, words: usize) -> u64 {
    plain(kind) | (words as u64) << 32 | u64::from(completion) << 48
}

/// The other way round: type, whether a completion is asked for, and length in words. `None` if the packet has ranges or
/// something is wrong with it, the length excepted.
#[inline(always)]
pub(crate) fn plain_parts<'b>(word: u64) -> Option<(PacketKind<'b>, bool, usize)> {
    const IN_BAND: u64 = plain(PacketType::IN_BAND);
    const COMPLETION: u64 = plain(PacketType::COMPLETION);
    let kind = match word & !VARIABLE {
        IN_BAND => PacketKind::InBand,
        COMPLETION => PacketKind::Completion,
        _ => return None,
    };
    Some((kind, word & 1 << 48 != 0, usize::from((word >> 32) as u16)))
}

impl<'b> Packet<'b> {
    /// Takes a whole packet apart: descriptor, extra header and body, without trailer.
    ///
    /// # Errors
    /// Each way in which the bytes contradict themselves is a [`PacketError`].
    #[inline]
    pub fn parse(bytes: &'b [u8]) -> Result<Self, PacketError> {
        let Some(head) = bytes.first_chunk::<DESCRIPTOR_SIZE>() else {
            return Err(PacketError::HeaderLength { header: DESCRIPTOR_SIZE, packet: bytes.len() });
        };
        let descriptor = Descriptor::decode(head);
        Self::assemble(&descriptor, bytes.get(DESCRIPTOR_SIZE..).unwrap_or_default())
    }

    /// Joins a descriptor with what stands behind it.
    #[inline]
    pub(crate) fn assemble(descriptor: &Descriptor, rest: &'b [u8]) -> Result<Self, PacketError> {
        let header_len = descriptor.header_len;
        let error = PacketError::HeaderLength {
            header: header_len,
            packet: rest.len().saturating_add(DESCRIPTOR_SIZE),
        };
        let extra = header_len.checked_sub(DESCRIPTOR_SIZE).ok_or(error)?;
        let (header, payload) = rest.split_at_checked(extra).ok_or(error)?;
        if descriptor.flags & !FLAG_COMPLETION_REQUESTED != 0 {
            return Err(PacketError::Flags(descriptor.flags));
        }
        let kind = match descriptor.kind {
            PacketType::IN_BAND => PacketKind::InBand,
            PacketType::COMPLETION => PacketKind::Completion,
            PacketType::GPA_DIRECT => PacketKind::GpaDirect(GpaRanges::parse(header)?),
            PacketType::TRANSFER_PAGES => PacketKind::TransferPages {
                pageset: u16_at(header, 0),
                ranges: TransferRanges::parse(header)?,
            },
            other => return Err(PacketError::UnknownType(other)),
        };
        Ok(Self {
            kind,
            transaction_id: descriptor.transaction_id,
            completion_requested: descriptor.flags & FLAG_COMPLETION_REQUESTED != 0,
            payload,
        })
    }
}

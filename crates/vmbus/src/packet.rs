//! Packets: what stands between the indices of a ring (PROTOCOL §6; Linux `vmbus_packet.h`/`hyperv.h`).
//!
//! A packet is a 16-byte descriptor, for two of the four types an extra header, a body padded to 8 bytes, and an
//! 8-byte trailer that repeats where the packet started. The true length of a body is not on the wire: a reader gets up
//! to seven zero bytes more than the writer gave.

use core::fmt;

use crate::Pfn;
use crate::memory::PAGE_SIZE;
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

/// Little-endian u16 at `at`; zero beyond the end (callers have checked the length).
#[inline]
fn u16_at(bytes: &[u8], at: usize) -> u16 {
    bytes.get(at..at + 2).map_or(0, |b| u16::from_le_bytes([b[0], b[1]]))
}

/// Little-endian u32 at `at`; zero beyond the end.
#[inline]
fn u32_at(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..).and_then(|b| b.first_chunk()).map_or(0, |b| u32::from_le_bytes(*b))
}

/// Little-endian u64 at `at`; zero beyond the end.
#[inline]
fn u64_at(bytes: &[u8], at: usize) -> u64 {
    bytes.get(at..).and_then(|b| b.first_chunk()).map_or(0, |b| u64::from_le_bytes(*b))
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

/// Count of ranges and the bytes that hold them; `header` is the extra header, behind the descriptor.
fn range_list(header: &[u8]) -> Result<(u32, &[u8]), PacketError> {
    let Some(list) = header.get(RANGES_OFFSET - DESCRIPTOR_SIZE..) else {
        return Err(PacketError::Ranges { count: 0, room: 0 });
    };
    let count = u32_at(header, 4);
    if count == 0 {
        return Err(PacketError::Ranges { count, room: list.len() });
    }
    Ok((count, list))
}

/// The ranges of a transfer-page packet.
#[derive(Clone, Copy)]
pub struct TransferRanges<'b> {
    list: &'b [u8],
}

impl<'b> TransferRanges<'b> {
    fn parse(header: &'b [u8]) -> Result<Self, PacketError> {
        let (count, list) = range_list(header)?;
        let bytes = usize::try_from(count).ok().and_then(|count| count.checked_mul(8));
        match bytes.and_then(|bytes| list.get(..bytes)) {
            Some(list) => Ok(Self { list }),
            None => Err(PacketError::Ranges { count, room: list.len() }),
        }
    }

    /// Number of ranges; at least one.
    #[expect(
        clippy::len_without_is_empty,
        reason = "a transfer-page packet has one range at least"
    )]
    #[must_use]
    pub fn len(&self) -> usize {
        self.list.len() / 8
    }

    /// The ranges in their order.
    #[inline]
    pub fn iter(&self) -> impl Iterator<Item = TransferRange> + Clone + 'b {
        self.list.chunks_exact(8).map(|entry| TransferRange {
            byte_count: u32_at(entry, 0),
            byte_offset: u32_at(entry, 4),
        })
    }
}

impl fmt::Debug for TransferRanges<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

/// The ranges of a GPA-direct packet.
#[derive(Clone, Copy)]
pub struct GpaRanges<'b> {
    count: u32,
    list: &'b [u8],
}

/// One range of a GPA-direct packet as read.
#[derive(Clone, Copy)]
pub struct GpaRangeRef<'b> {
    /// Bytes of the range.
    pub byte_count: u32,
    /// Offset of its first byte in the first page; less than a page.
    pub byte_offset: u32,
    frames: &'b [u8],
}

impl<'b> GpaRangeRef<'b> {
    /// The pages of the range, in order.
    pub fn frames(&self) -> impl ExactSizeIterator<Item = Pfn> + Clone + 'b {
        self.frames.chunks_exact(8).map(|frame| Pfn(u64_at(frame, 0)))
    }
}

impl fmt::Debug for GpaRangeRef<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}+{} over {} pages", self.byte_offset, self.byte_count, self.frames.len() / 8)
    }
}

impl<'b> GpaRanges<'b> {
    fn parse(header: &'b [u8]) -> Result<Self, PacketError> {
        let (count, list) = range_list(header)?;
        let error = PacketError::Ranges { count, room: list.len() };
        let mut rest = list;
        for _ in 0..count {
            (_, rest) = split_gpa_range(rest).ok_or(error)?;
        }
        Ok(Self { count, list })
    }

    /// Number of ranges; at least one.
    #[must_use]
    pub fn count(&self) -> usize {
        self.count as usize
    }

    /// The ranges in their order.
    pub fn iter(&self) -> impl Iterator<Item = GpaRangeRef<'b>> + Clone + 'b {
        let mut rest = self.list;
        (0..self.count).map_while(move |_| {
            let (range, behind) = split_gpa_range(rest)?;
            rest = behind;
            Some(range)
        })
    }
}

impl fmt::Debug for GpaRanges<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

/// Takes the first range off a list; `None` if it is cut short or starts beyond its first page.
fn split_gpa_range(list: &[u8]) -> Option<(GpaRangeRef<'_>, &[u8])> {
    let (head, rest) = list.split_at_checked(8)?;
    let (byte_count, byte_offset) = (u32_at(head, 0), u32_at(head, 4));
    if byte_offset as usize >= PAGE_SIZE {
        return None;
    }
    let pages = (u64::from(byte_count) + u64::from(byte_offset)).div_ceil(PAGE_SIZE as u64);
    let (frames, rest) = rest.split_at_checked(usize::try_from(pages * 8).ok()?)?;
    Some((GpaRangeRef { byte_count, byte_offset, frames }, rest))
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use std::vec;
    use std::vec::Vec;

    /// A packet of `kind` whose header has `extra` behind the descriptor.
    fn bytes(kind: u16, flags: u16, extra: &[u8], body: &[u8]) -> Vec<u8> {
        let header = 16 + extra.len() as u16;
        let mut packet = Vec::new();
        for field in [kind, header / 8, (header + body.len() as u16) / 8, flags] {
            packet.extend(field.to_le_bytes());
        }
        packet.extend(9u64.to_le_bytes());
        packet.extend(extra);
        packet.extend(body);
        packet
    }

    fn ranges(count: u32, entries: &[u32]) -> Vec<u8> {
        let mut extra = vec![0xfe, 0xca, 0, 0];
        extra.extend(count.to_le_bytes());
        extra.extend(entries.iter().flat_map(|entry| entry.to_le_bytes()));
        extra
    }

    #[test]
    fn transfer_ranges_come_back_in_order() {
        let packet = bytes(7, 1, &ranges(2, &[10, 100, 20, 200]), &[1; 8]);
        let packet = Packet::parse(&packet).unwrap();
        let PacketKind::TransferPages { pageset, ranges } = packet.kind else {
            panic!("{packet:?}")
        };
        assert_eq!((pageset, ranges.len()), (0xcafe, 2));
        let second = ranges.iter().nth(1).unwrap();
        assert_eq!((second.byte_count, second.byte_offset), (20, 200));
        assert_eq!(packet.payload, [1; 8]);
        assert!(packet.completion_requested);
    }

    #[test]
    fn more_ranges_than_header_are_refused() {
        for count in [0, 3, u32::MAX] {
            let packet = bytes(7, 1, &ranges(count, &[10, 100, 20, 200]), &[]);
            assert_eq!(
                Packet::parse(&packet).unwrap_err(),
                PacketError::Ranges { count, room: 16 }
            );
        }
    }

    // HISTORY 69: one range over three pages, and three ranges, are the same frame.
    #[test]
    fn gpa_ranges_of_one_and_of_many_pages() {
        let whole = ranges(1, &[9000, 8, 1, 0, 2, 0, 3, 0]);
        let packet = bytes(9, 1, &whole, &[]);
        let PacketKind::GpaDirect(list) = Packet::parse(&packet).unwrap().kind else { panic!() };
        let range = list.iter().next().unwrap();
        assert_eq!(range.frames().collect::<Vec<_>>(), [Pfn(1), Pfn(2), Pfn(3)]);

        let split = ranges(3, &[4088, 8, 1, 0, 4096, 0, 2, 0, 816, 0, 3, 0]);
        let packet = bytes(9, 1, &split, &[]);
        let PacketKind::GpaDirect(list) = Packet::parse(&packet).unwrap().kind else { panic!() };
        assert_eq!(list.iter().map(|range| range.byte_count).sum::<u32>(), 9000);
        assert_eq!((list.count(), list.iter().count()), (3, 3));
    }

    #[test]
    fn gpa_ranges_that_lie_are_refused() {
        for entries in [
            &[8193, 0, 1, 0, 2, 0][..],
            &[u32::MAX, 0, 1, 0],
            &[1, 4096, 1, 0],
            &[1, u32::MAX, 1, 0],
            &[1],
        ] {
            let mut extra = ranges(1, entries);
            extra.resize(extra.len().next_multiple_of(8), 0);
            let packet = bytes(9, 1, &extra, &[]);
            assert!(matches!(Packet::parse(&packet), Err(PacketError::Ranges { count: 1, .. })));
        }
    }

    #[test]
    fn contradictions_are_refused() {
        assert_eq!(
            Packet::parse(&[0; 8]).unwrap_err(),
            PacketError::HeaderLength { header: 16, packet: 8 }
        );
        let mut packet = bytes(6, 0, &[], &[0; 8]);
        packet[2] = 1;
        assert_eq!(
            Packet::parse(&packet).unwrap_err(),
            PacketError::HeaderLength { header: 8, packet: 24 }
        );
        packet[2] = 4;
        assert!(matches!(Packet::parse(&packet), Err(PacketError::HeaderLength { .. })));
        assert_eq!(
            Packet::parse(&bytes(8, 0, &[], &[])).unwrap_err(),
            PacketError::UnknownType(PacketType(8))
        );
        assert_eq!(Packet::parse(&bytes(6, 2, &[], &[])).unwrap_err(), PacketError::Flags(2));
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_make_the_parser_panic(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..200)) {
            if let Ok(packet) = Packet::parse(&bytes) {
                match packet.kind {
                    PacketKind::GpaDirect(ranges) => {
                        proptest::prop_assert_eq!(ranges.iter().count(), ranges.count());
                    }
                    PacketKind::TransferPages { ranges, .. } => {
                        proptest::prop_assert_eq!(ranges.iter().count(), ranges.len());
                    }
                    _ => {}
                }
            }
        }
    }
}

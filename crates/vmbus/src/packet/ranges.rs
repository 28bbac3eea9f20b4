//! The ranges that packets of two types carry, as read.

use core::fmt;

use super::{DESCRIPTOR_SIZE, PacketError, RANGES_OFFSET, TransferRange};
use crate::Pfn;
use crate::memory::PAGE_SIZE;

/// Little-endian u16 at `at`; zero beyond the end (callers have checked the length).
#[inline]
pub(super) fn u16_at(bytes: &[u8], at: usize) -> u16 {
    bytes.get(at..at + 2).map_or(0, |b| u16::from_le_bytes([b[0], b[1]]))
}

/// Little-endian u32 at `at`; zero beyond the end.
#[inline]
pub(super) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..).and_then(|b| b.first_chunk()).map_or(0, |b| u32::from_le_bytes(*b))
}

/// Little-endian u64 at `at`; zero beyond the end.
#[inline]
pub(super) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    bytes.get(at..).and_then(|b| b.first_chunk()).map_or(0, |b| u64::from_le_bytes(*b))
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
    pub(super) fn parse(header: &'b [u8]) -> Result<Self, PacketError> {
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
    pub(super) fn parse(header: &'b [u8]) -> Result<Self, PacketError> {
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

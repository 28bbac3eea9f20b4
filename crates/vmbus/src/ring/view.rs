//! Packets read where they lie.

use super::{DESCRIPTOR, ReceiveError, Ring, RingError, RingReader, offset};
use crate::Pfn;
use crate::memory::{PAGE_SIZE, SharedMemory};
use crate::packet::{
    DESCRIPTOR_SIZE, Descriptor, FLAG_COMPLETION_REQUESTED, PacketError, PacketType, RANGES_OFFSET,
    TransferRange,
};

/// The type of a packet in a [`PacketView`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ViewKind {
    /// A message in the ring itself.
    InBand,
    /// The answer to a packet that asked for one.
    Completion,
    /// Ranges of guest memory: [`PacketView::next_gpa_range`].
    GpaDirect,
    /// Ranges of a buffer known to both sides: [`PacketView::next_range`].
    TransferPages {
        /// Number of the buffer.
        pageset: u16,
    },
}

/// The head of a range of guest memory; its frames follow, by [`PacketView::next_frame`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GpaRangeHead {
    /// Bytes of the range.
    pub byte_count: u32,
    /// Offset of its first byte in the first page; less than a page.
    pub byte_offset: u32,
    /// Pages of the range.
    pub frames: usize,
}

/// Bytes in the ring not yet given out, and the byte offset where they start.
#[derive(Clone, Copy, Debug)]
struct Cursor {
    at: usize,
    left: usize,
}

/// What a view knows before anything is taken from it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Parts {
    kind: ViewKind,
    ranges: u32,
    header: Cursor,
    payload: Cursor,
}

impl Parts {
    /// Checks the descriptor of the packet at `start`, and reads the count of its ranges.
    #[inline]
    pub(super) fn of<M: SharedMemory>(
        ring: &Ring<M>,
        start: u32,
        descriptor: &Descriptor,
    ) -> Result<Self, ReceiveError> {
        let &Descriptor { kind, header_len: header, packet_len: packet, flags, .. } = descriptor;
        if header < DESCRIPTOR_SIZE || header > packet {
            return Err(PacketError::HeaderLength { header, packet }.into());
        }
        if flags & !FLAG_COMPLETION_REQUESTED != 0 {
            return Err(PacketError::Flags(flags).into());
        }
        let mut parts = Self {
            kind: ViewKind::InBand,
            ranges: 0,
            header: Cursor { at: offset(start), left: 0 },
            payload: Cursor { at: ring.behind(offset(start), header), left: packet - header },
        };
        match kind {
            PacketType::IN_BAND => {}
            PacketType::COMPLETION => parts.kind = ViewKind::Completion,
            PacketType::GPA_DIRECT | PacketType::TRANSFER_PAGES => {
                let Some(room) = header.checked_sub(RANGES_OFFSET) else {
                    return Err(PacketError::Ranges { count: 0, room: 0 }.into());
                };
                let word = ring.read_word(ring.advance(start, DESCRIPTOR));
                let word = word.map_err(RingError::from)?;
                let count = (word >> 32) as u32;
                // A range takes 8 bytes at least, with guest memory behind it at least 8 more, but for ranges of no bytes.
                if count == 0 || count as usize > room / 8 {
                    return Err(PacketError::Ranges { count, room }.into());
                }
                parts.ranges = count;
                parts.header = Cursor { at: ring.behind(offset(start), RANGES_OFFSET), left: room };
                parts.kind = if kind == PacketType::GPA_DIRECT {
                    ViewKind::GpaDirect
                } else {
                    ViewKind::TransferPages { pageset: word as u16 }
                };
            }
            other => return Err(PacketError::UnknownType(other).into()),
        }
        Ok(parts)
    }
}

/// A packet looked at where it lies, in memory that the peer can change.
///
/// Every part can be taken once: ranges in order, then or meanwhile the message in order. So nothing can be validated and
/// then fetched again. Whoever needs a part twice keeps what was taken.
#[derive(Debug)]
pub struct PacketView<'r, M> {
    reader: &'r mut RingReader<M>,
    descriptor: Descriptor,
    parts: Parts,
    payload_len: usize,
    frames: usize,
}

impl<'r, M: SharedMemory> PacketView<'r, M> {
    #[inline]
    pub(super) fn new(reader: &'r mut RingReader<M>, descriptor: Descriptor, parts: Parts) -> Self {
        Self { reader, descriptor, parts, payload_len: parts.payload.left, frames: 0 }
    }

    /// The type of the packet.
    #[inline]
    #[must_use]
    pub fn kind(&self) -> ViewKind {
        self.parts.kind
    }

    /// The sender's id, to be echoed in the completion.
    #[inline]
    #[must_use]
    pub fn transaction_id(&self) -> u64 {
        self.descriptor.transaction_id
    }

    /// Whether the sender waits for a completion.
    #[inline]
    #[must_use]
    pub fn completion_requested(&self) -> bool {
        self.descriptor.flags & FLAG_COMPLETION_REQUESTED != 0
    }

    /// Bytes of the message, with up to seven bytes of padding.
    #[inline]
    #[must_use]
    pub fn payload_len(&self) -> usize {
        self.payload_len
    }

    /// Ranges not yet taken.
    #[inline]
    #[must_use]
    pub fn ranges_left(&self) -> usize {
        self.parts.ranges as usize
    }

    /// Takes the next range of a transfer-page packet. `None` behind the last, and for packets of another type.
    ///
    /// Whether it lies inside the buffer is for the caller to check.
    ///
    /// # Errors
    /// Only if the memory is no longer what it was.
    #[inline]
    pub fn next_range(&mut self) -> Result<Option<TransferRange>, RingError> {
        if self.parts.ranges == 0 || !matches!(self.parts.kind, ViewKind::TransferPages { .. }) {
            return Ok(None);
        }
        self.parts.ranges -= 1;
        let word = self.header_word()?;
        Ok(Some(TransferRange { byte_count: word as u32, byte_offset: (word >> 32) as u32 }))
    }

    /// Takes the head of the next range of a GPA-direct packet. `None` behind the last, and for packets of another type.
    /// Frames of the range before it that were not taken are passed over.
    ///
    /// # Errors
    /// [`ReceiveError::Packet`] if the range does not fit into the header: nothing more can be taken but the message.
    pub fn next_gpa_range(&mut self) -> Result<Option<GpaRangeHead>, ReceiveError> {
        if self.parts.ranges == 0 || self.parts.kind != ViewKind::GpaDirect {
            return Ok(None);
        }
        let passed = 8 * core::mem::take(&mut self.frames);
        self.parts.header.at = self.reader.ring.behind(self.parts.header.at, passed);
        self.parts.header.left -= passed;
        let room = self.parts.header.left;
        let count = core::mem::take(&mut self.parts.ranges);
        let error = PacketError::Ranges { count, room };
        if room < 8 {
            return Err(error.into());
        }
        let word = self.header_word()?;
        let (byte_count, byte_offset) = (word as u32, (word >> 32) as u32);
        let frames =
            (u64::from(byte_count) + u64::from(byte_offset)).div_ceil(PAGE_SIZE as u64) as usize;
        if byte_offset as usize >= PAGE_SIZE || frames > self.parts.header.left / 8 {
            return Err(error.into());
        }
        self.frames = frames;
        self.parts.ranges = count - 1;
        Ok(Some(GpaRangeHead { byte_count, byte_offset, frames }))
    }

    /// Takes the next frame of the range that [`PacketView::next_gpa_range`] gave last. `None` behind its last.
    ///
    /// # Errors
    /// Only if the memory is no longer what it was.
    #[inline]
    pub fn next_frame(&mut self) -> Result<Option<Pfn>, RingError> {
        if self.frames == 0 {
            return Ok(None);
        }
        self.frames -= 1;
        Ok(Some(Pfn(self.header_word()?)))
    }

    /// Takes a word of the extra header, where at least one is left.
    #[inline]
    fn header_word(&mut self) -> Result<u64, RingError> {
        let word = self.reader.ring.read_word((self.parts.header.at / 8) as u32)?;
        self.parts.header.at = self.reader.ring.behind(self.parts.header.at, 8);
        self.parts.header.left -= 8;
        Ok(word)
    }

    /// Takes the next bytes of the message, as many as there are and `out` holds. Returns how many.
    ///
    /// # Errors
    /// Only if the memory is no longer what it was.
    #[inline]
    pub fn take(&mut self, out: &mut [u8]) -> Result<usize, RingError> {
        let cursor = &mut self.parts.payload;
        let count = cursor.left.min(out.len());
        self.reader.ring.read(cursor.at, &mut out[..count])?;
        cursor.at = self.reader.ring.behind(cursor.at, count);
        cursor.left -= count;
        Ok(count)
    }

    /// Moves behind the packet. Its space is the writer's again after [`RingReader::commit`].
    #[inline]
    pub fn advance(self) {
        let start = self.reader.skip(self.descriptor.packet_len / 8);
        self.reader.packets += 1;
        if self.reader.tap.is_some() {
            self.reader.show_in_place(start, self.descriptor.packet_len);
        }
    }
}

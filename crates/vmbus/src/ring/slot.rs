//! Packets built in the ring itself.

use super::{DESCRIPTOR, RingError, RingWriter, SendError, TRAILER, trailer};
use crate::memory::{SharedMemory, words_for};
use crate::packet::Outgoing;

/// Bytes that did not go into a [`Slot`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SlotError {
    /// More than was reserved.
    #[error("{len} bytes for a slot that has room for {room} more")]
    Room {
        /// Bytes that were given.
        len: usize,
        /// Bytes still free in the slot.
        room: usize,
    },
    /// The ring is broken.
    #[error(transparent)]
    Ring(#[from] RingError),
}

/// A packet being built where the peer will read it. [`Slot::finish`] stages it; a slot that is dropped leaves the ring as
/// it was.
///
/// What was reserved is an upper bound: the packet becomes as long as what was written.
#[derive(Debug)]
pub struct Slot<'r, M> {
    writer: &'r mut RingWriter<M>,
    /// The descriptor, but for the length.
    descriptor: [u64; 2],
    /// Byte offset at which the next byte goes.
    at: usize,
    /// Bytes of descriptor, extra header and message so far.
    len: usize,
    /// Bytes still free.
    room: usize,
}

impl<'r, M: SharedMemory> Slot<'r, M> {
    #[inline]
    pub(super) fn new(
        writer: &'r mut RingWriter<M>,
        packet: &Outgoing<'_>,
        room: usize,
    ) -> Result<Self, SendError> {
        let header = packet.header_len();
        let len = header + packet.payload().len();
        let most = words_for(len.saturating_add(room).min(usize::MAX - 7));
        writer.claim(most.saturating_add(TRAILER))?;
        let start = writer.ring.advance(writer.write, DESCRIPTOR);
        let at = writer.put_message_in_pieces(packet, start)?;
        Ok(Self { descriptor: packet.descriptor(header, 0), writer, at, len, room })
    }

    /// Bytes that can still be appended.
    #[must_use]
    pub fn room(&self) -> usize {
        self.room
    }

    /// Appends to the message.
    ///
    /// # Errors
    /// [`SlotError::Room`] if that is more than was reserved; nothing is then written.
    #[inline]
    pub fn append(&mut self, bytes: &[u8]) -> Result<(), SlotError> {
        let room = self.room;
        self.room =
            room.checked_sub(bytes.len()).ok_or(SlotError::Room { len: bytes.len(), room })?;
        self.writer.ring.write(self.at, bytes).map_err(RingError::from)?;
        self.at = self.writer.ring.behind(self.at, bytes.len());
        self.len += bytes.len();
        Ok(())
    }

    /// Completes the packet. The reader sees it after [`RingWriter::commit`].
    ///
    /// # Errors
    /// Only if the memory is no longer what it was.
    #[inline]
    pub fn finish(self) -> Result<(), RingError> {
        let Self { writer, descriptor: [word, id], at, len, .. } = self;
        let words = words_for(len);
        let end = writer.pad(at)?;
        let start = writer.write;
        writer.ring.write_word(end, trailer(start))?;
        writer.ring.write_word(start, word | (words as u64) << 32)?;
        writer.ring.write_word(writer.ring.advance(start, 1), id)?;
        if writer.tap.is_some() {
            writer.show_in_place(start, words * 8)?;
        }
        writer.finish(words + TRAILER);
        Ok(())
    }
}

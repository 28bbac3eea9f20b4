//! The writing end of a ring.

use core::sync::atomic::{AtomicU64, Ordering};

use super::{
    FEATURE_BITS, FEATURE_PENDING_SEND_SIZE, INTERRUPT_MASK, LONGEST_PACKET, PENDING_SEND_SIZE,
    READ_INDEX, Ring, RingError, SendError, Slot, Traffic, WRITE_INDEX,
};
use crate::memory::{OutOfRange, SharedMemory, copy_in, full_barrier, words_for};
use crate::packet::{DESCRIPTOR_SIZE, Outgoing, PacketType, TRAILER_SIZE, plain_word};

/// The writing end of a ring.
#[derive(Debug)]
pub struct RingWriter<M> {
    pub(super) ring: Ring<M>,
    /// End of what is written, published or not.
    pub(super) write: u32,
    /// The write index as the reader sees it.
    published: u32,
    /// The reader's index as last seen.
    read: u32,
    /// Bytes from `write` on that can be used as far as `read` tells. Zero while `waiting`, so that the first packet that
    /// fits withdraws the wish.
    room: u32,
    /// Whether `pending_send_sz` is set.
    waiting: bool,
    /// Packets written.
    packets: u64,
    /// Packets that did not fit.
    full: u64,
    /// Where the writer started.
    first: u32,
    /// How often it passed the end.
    laps: u64,
}

impl<M: SharedMemory> RingWriter<M> {
    /// Takes the writing end where the header page says it is, and announces that it uses `pending_send_sz`.
    ///
    /// # Errors
    /// If the memory cannot be a ring or its indices are impossible.
    pub fn attach(memory: M) -> Result<Self, RingError> {
        let ring = Ring::new(memory)?;
        let write = ring.load_index(WRITE_INDEX, "write")?;
        let read = ring.load_index(READ_INDEX, "read")?;
        ring.store(PENDING_SEND_SIZE, 0)?;
        let features = ring.load(FEATURE_BITS)?;
        ring.store(FEATURE_BITS, features | FEATURE_PENDING_SEND_SIZE)?;
        let mut writer = Self {
            ring,
            write,
            published: write,
            read,
            room: 0,
            waiting: false,
            packets: 0,
            full: 0,
            first: write,
            laps: 0,
        };
        writer.room = writer.usable();
        Ok(writer)
    }

    /// Largest packet that fits into the empty ring, in bytes with trailer.
    #[must_use]
    pub fn capacity(&self) -> usize {
        (self.ring.size as usize - 8).min(LONGEST_PACKET + TRAILER_SIZE)
    }

    /// What was written since the ring was attached, published or not.
    #[must_use]
    pub fn traffic(&self) -> Traffic {
        let bytes = self.ring.travelled(self.first, self.write, self.laps);
        Traffic { packets: self.packets, bytes, failed: self.full }
    }

    /// Bytes that can be used as far as the reader's index is known: one word always stays free, and no packet is longer
    /// than its descriptor can say.
    fn usable(&self) -> u32 {
        let free = self.ring.size - self.ring.distance(self.read, self.write);
        (free - 8).min((LONGEST_PACKET + TRAILER_SIZE) as u32)
    }

    /// Looks at the reader's index anew, and returns how many bytes can be used.
    fn refresh(&mut self) -> Result<u32, RingError> {
        let read = self.ring.load_index(READ_INDEX, "read")?;
        // The reader can only have moved towards what was published.
        if self.ring.distance(read, self.published) > self.ring.distance(self.read, self.published)
        {
            return Err(RingError::IndexJump {
                which: "read",
                from: self.read,
                to: read,
                own: self.published,
            });
        }
        self.read = read;
        let usable = self.usable();
        self.room = if self.waiting { 0 } else { usable };
        Ok(usable)
    }

    /// Whether a packet of `len` bytes (trailer included) fits now.
    ///
    /// # Errors
    /// If the reader's index is impossible.
    #[inline]
    pub fn has_room(&mut self, len: usize) -> Result<bool, RingError> {
        Ok(len <= self.room as usize || len <= self.refresh()? as usize)
    }

    /// Makes sure that a packet of `total` bytes with trailer fits, and withdraws a wish for space if it does.
    #[inline]
    pub(super) fn claim(&mut self, total: usize) -> Result<(), SendError> {
        if total <= self.room as usize { Ok(()) } else { self.make_room(total) }
    }

    /// Looks for room for `total` bytes where there was none.
    #[cold]
    fn make_room(&mut self, total: usize) -> Result<(), SendError> {
        if total > self.capacity() {
            return Err(SendError::TooLarge { len: total, most: self.capacity() });
        }
        if self.refresh()? < total as u32 {
            self.full += 1;
            return Err(SendError::Full { need: total });
        }
        Ok(self.stop_waiting()?)
    }

    /// Withdraws a wish for space, if there is one.
    fn stop_waiting(&mut self) -> Result<(), RingError> {
        if self.waiting {
            self.waiting = false;
            self.room = self.usable();
            self.ring.store(PENDING_SEND_SIZE, 0)?;
        }
        Ok(())
    }

    /// Writes a packet behind those already there. The reader sees it after [`RingWriter::commit`].
    ///
    /// # Errors
    /// [`SendError`]; nothing is then written.
    #[inline(always)]
    pub fn stage(&mut self, packet: &Outgoing<'_>) -> Result<(), SendError> {
        match *packet {
            Outgoing::InBand { transaction_id, completion, payload } => {
                if self.stage_plain(PacketType::IN_BAND, completion, transaction_id, payload) {
                    return Ok(());
                }
                // Made anew, so that the caller's value need not exist in memory where all goes well.
                self.stage_any(&Outgoing::InBand { transaction_id, completion, payload })
            }
            Outgoing::Completion { transaction_id, payload } => {
                if self.stage_plain(PacketType::COMPLETION, false, transaction_id, payload) {
                    return Ok(());
                }
                self.stage_any(&Outgoing::Completion { transaction_id, payload })
            }
            _ => self.stage_any(packet),
        }
    }

    /// Writes a packet without ranges if that is short enough to be inlined: it fits as far as is known, and in one piece.
    #[inline(always)]
    fn stage_plain(&mut self, kind: PacketType, completion: bool, id: u64, payload: &[u8]) -> bool {
        let body = words_for(payload.len());
        let words = body + (DESCRIPTOR_SIZE + TRAILER_SIZE) / 8;
        if words * 8 > self.room as usize {
            return false;
        }
        let start = self.write;
        let Some([first, second, body @ .., trailer]) = self.ring.straight(start, words) else {
            return false;
        };
        first.store(plain_word(kind, completion, words - 1).to_le(), Ordering::Relaxed);
        second.store(id.to_le(), Ordering::Relaxed);
        trailer.store((u64::from(start) << 32).to_le(), Ordering::Relaxed);
        copy_in(body, payload);
        self.finish(words * 8);
        true
    }

    /// [`RingWriter::stage`] of any packet.
    #[inline(never)]
    fn stage_any(&mut self, packet: &Outgoing<'_>) -> Result<(), SendError> {
        let header = packet.header_len();
        let payload = packet.payload();
        let len = header + payload.len().next_multiple_of(8);
        let total = len + TRAILER_SIZE;
        self.claim(total)?;
        let start = self.write;
        let descriptor = packet.descriptor(header, len);
        if let Some([first, second, rest @ .., trailer]) = self.ring.words(start).get(..total / 8) {
            first.store(descriptor[0].to_le(), Ordering::Relaxed);
            second.store(descriptor[1].to_le(), Ordering::Relaxed);
            trailer.store((u64::from(start) << 32).to_le(), Ordering::Relaxed);
            copy_in(put_ranges(rest, packet), payload);
        } else {
            self.put_in_pieces(packet, descriptor)?;
        }
        self.finish(total);
        Ok(())
    }

    /// Counts a packet that was written.
    #[inline(always)]
    pub(super) fn finish(&mut self, total: usize) {
        self.write += total as u32;
        if self.write >= self.ring.size {
            self.write -= self.ring.size;
            self.laps += 1;
        }
        self.room -= total as u32;
        self.packets += 1;
    }

    /// Writes a packet that wraps around the end, or into memory in pieces.
    #[cold]
    fn put_in_pieces(
        &mut self,
        packet: &Outgoing<'_>,
        descriptor: [u64; 2],
    ) -> Result<(), RingError> {
        let mut at = self.write;
        for value in descriptor {
            self.ring.write_word(at, value)?;
            at = self.ring.advance(at, 8);
        }
        at = self.put_message_in_pieces(packet, at)?;
        let payload = packet.payload().len();
        if !payload.is_multiple_of(8) {
            let padding = 8 - payload % 8;
            self.ring.write(at, &[0; 8][..padding])?;
            at = self.ring.advance(at, padding);
        }
        Ok(self.ring.write_word(at, u64::from(self.write) << 32)?)
    }

    /// Writes extra header and payload from `at` on, and returns where they end.
    #[inline]
    pub(super) fn put_message_in_pieces(
        &mut self,
        packet: &Outgoing<'_>,
        mut at: u32,
    ) -> Result<u32, RingError> {
        packet.extra_words(|value| {
            self.ring.write_word(at, value)?;
            at = self.ring.advance(at, 8);
            Ok::<_, OutOfRange>(())
        })?;
        let payload = packet.payload();
        self.ring.write(at, payload)?;
        Ok(self.ring.advance(at, payload.len()))
    }

    /// Makes room for a packet that is built in the ring itself: `packet` with its payload, and up to `room` bytes more
    /// that the [`Slot`] takes.
    ///
    /// # Errors
    /// [`SendError`]; nothing is then written.
    #[inline]
    pub fn reserve(
        &mut self,
        packet: &Outgoing<'_>,
        room: usize,
    ) -> Result<Slot<'_, M>, SendError> {
        Slot::new(self, packet, room)
    }

    /// Shows the reader what was staged. True if it has to be signalled.
    ///
    /// # Errors
    /// Only if the memory is no longer what it was.
    #[inline(always)]
    pub fn commit(&mut self) -> Result<bool, RingError> {
        if self.write == self.published {
            return Ok(false);
        }
        let before = self.published;
        self.ring.store(WRITE_INDEX, self.write)?;
        self.published = self.write;
        // The index must be visible before the reader's mask is looked at, or both sides could rest.
        full_barrier();
        if self.ring.load(INTERRUPT_MASK)? != 0 {
            return Ok(false);
        }
        Ok(self.ring.load(READ_INDEX)? == before)
    }

    /// Asks the reader to signal once a packet of `need` bytes (trailer included) fits. True if it fits already; no signal
    /// will then come.
    ///
    /// # Errors
    /// If the reader's index is impossible.
    pub fn request_space(&mut self, need: usize) -> Result<bool, RingError> {
        // A quarter of the ring at least: to be woken for every single packet would cost more than it brings.
        let wanted = u32::try_from(need).unwrap_or(u32::MAX).max(self.ring.size / 4);
        self.ring.store(PENDING_SEND_SIZE, wanted.min(self.ring.size - 8))?;
        self.waiting = true;
        full_barrier();
        let fits = self.refresh()? as usize >= need;
        if fits {
            self.stop_waiting()?;
        }
        Ok(fits)
    }
}

/// Writes the extra header of a packet with ranges, and returns the words behind it.
fn put_ranges<'w>(words: &'w [AtomicU64], packet: &Outgoing<'_>) -> &'w [AtomicU64] {
    let mut left = words.iter();
    let done = packet.extra_words(|value| {
        if let Some(word) = left.next() {
            word.store(value.to_le(), Ordering::Relaxed);
        }
        Ok::<_, core::convert::Infallible>(())
    });
    match done {
        Ok(()) => left.as_slice(),
    }
}

//! The writing end of a ring.

use alloc::boxed::Box;
use core::sync::atomic::{AtomicU64, Ordering};

use super::{
    DESCRIPTOR, FEATURE_BITS, FEATURE_PENDING_SEND_SIZE, INTERRUPT_MASK, LONGEST_PACKET,
    PENDING_SEND_SIZE, READ_INDEX, Ring, RingError, SendError, Slot, TRAILER, Traffic, WRITE_INDEX,
    index, offset, trailer,
};
use crate::channel::tap::Tapped;
use crate::memory::{OutOfRange, SharedMemory, copy_in, full_barrier, words_for};
use crate::packet::{Outgoing, PacketType, plain_word};

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
    /// Where the place ends that can be written to without another look at anything: free as far as `read` tells, and before
    /// the end of the ring. Zero while `waiting`, so that the first packet that fits withdraws the wish, and while somebody looks.
    limit: u32,
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
    /// Who looks at the packets. Then all of them take the long way.
    pub(super) tap: Option<Box<Tapped>>,
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
            limit: 0,
            waiting: false,
            packets: 0,
            full: 0,
            first: write,
            laps: 0,
            tap: None,
        };
        writer.widen();
        Ok(writer)
    }

    /// Has every packet shown to `tap`, or to none.
    pub(crate) fn set_tap(&mut self, tap: Option<Box<Tapped>>) {
        self.tap = tap;
        self.widen();
    }

    /// Who looks at the packets.
    pub(crate) fn tap(&mut self) -> Option<&mut Tapped> {
        self.tap.as_deref_mut()
    }

    /// Largest packet that fits into the empty ring, in bytes with trailer.
    #[must_use]
    pub fn capacity(&self) -> usize {
        offset(self.most())
    }

    /// The same in words: one word always stays free, and no packet is longer than its descriptor can say.
    fn most(&self) -> u32 {
        (self.ring.size - 1).min((LONGEST_PACKET + TRAILER) as u32)
    }

    /// What was written since the ring was attached, published or not.
    #[must_use]
    pub fn traffic(&self) -> Traffic {
        let bytes = self.ring.travelled(self.first, self.write, self.laps);
        Traffic { packets: self.packets, bytes, failed: self.full }
    }

    /// Words that can be used as far as the reader's index is known.
    fn usable(&self) -> u32 {
        let used = self.ring.distance(self.read, self.write);
        (self.ring.size - used - 1).min(self.most())
    }

    /// Sets the limit anew, after `write`, `read` or `waiting` changed.
    #[inline]
    fn widen(&mut self) {
        self.limit = match self.waiting || self.tap.is_some() {
            true => 0,
            // The last word is left to the way around the end, so that the short way never has to look for it.
            false => (self.write + self.usable()).min(self.ring.size - 1),
        };
    }

    /// Looks at the reader's index anew, and returns how many words can be used.
    fn refresh(&mut self) -> Result<u32, RingError> {
        let read = self.ring.load_index(READ_INDEX, "read")?;
        // The reader can only have moved towards what was published.
        if self.ring.distance(read, self.published) > self.ring.distance(self.read, self.published)
        {
            return Err(RingError::IndexJump {
                which: "read",
                from: index(self.read),
                to: index(read),
                own: index(self.published),
            });
        }
        self.read = read;
        self.widen();
        Ok(self.usable())
    }

    /// Whether a packet of `len` bytes (trailer included) fits now.
    ///
    /// # Errors
    /// If the reader's index is impossible.
    #[inline]
    pub fn has_room(&mut self, len: usize) -> Result<bool, RingError> {
        Ok(len <= offset(self.usable()) || len <= offset(self.refresh()?))
    }

    /// Makes sure that a packet of `total` words with trailer fits, and withdraws a wish for space if it does.
    #[inline]
    pub(super) fn claim(&mut self, total: usize) -> Result<(), SendError> {
        let fits = total <= (self.limit as usize).saturating_sub(self.write as usize);
        if fits { Ok(()) } else { self.make_room(total) }
    }

    /// The same around the end, or where there was no room.
    #[cold]
    fn make_room(&mut self, total: usize) -> Result<(), SendError> {
        if !self.waiting && total <= self.usable() as usize {
            return Ok(());
        }
        let len = total.saturating_mul(8);
        if total > self.most() as usize {
            return Err(SendError::TooLarge { len, most: self.capacity() });
        }
        if (self.refresh()? as usize) < total {
            self.full += 1;
            return Err(SendError::Full { need: len });
        }
        Ok(self.stop_waiting()?)
    }

    /// Withdraws a wish for space, if there is one.
    fn stop_waiting(&mut self) -> Result<(), RingError> {
        if self.waiting {
            self.waiting = false;
            self.widen();
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
        let words = words_for(payload.len()) + DESCRIPTOR + TRAILER;
        let start = self.write;
        let end = start as usize + words;
        if end <= self.limit as usize
            && let Some([first, second, body @ .., last]) = self.ring.straight(start, words)
        {
            first.store(plain_word(kind, completion, words - TRAILER).to_le(), Ordering::Relaxed);
            second.store(id.to_le(), Ordering::Relaxed);
            last.store(trailer(start).to_le(), Ordering::Relaxed);
            copy_in(body, payload);
            self.write = end as u32;
            self.packets += 1;
            return true;
        }
        false
    }

    /// [`RingWriter::stage`] of any packet.
    #[inline(never)]
    fn stage_any(&mut self, packet: &Outgoing<'_>) -> Result<(), SendError> {
        let header = packet.header_len();
        let payload = packet.payload();
        let len = header / 8 + words_for(payload.len());
        let total = len + TRAILER;
        self.claim(total)?;
        let start = self.write;
        let [word, id] = packet.descriptor(header, len * 8);
        let words = self.ring.words(start).get(..total);
        if let Some([first, second, rest @ .., last]) = words {
            first.store(word.to_le(), Ordering::Relaxed);
            second.store(id.to_le(), Ordering::Relaxed);
            last.store(trailer(start).to_le(), Ordering::Relaxed);
            copy_in(put_ranges(rest, packet), payload);
        } else {
            self.put_in_pieces(packet, [word, id])?;
        }
        if self.tap.is_some() {
            self.show(packet, [word, id]);
        }
        self.finish(total);
        Ok(())
    }

    /// Shows a packet that was written.
    #[cold]
    #[inline(never)]
    fn show(&mut self, packet: &Outgoing<'_>, descriptor: [u64; 2]) {
        if let Some(tap) = &mut self.tap {
            tap.sent(packet, descriptor);
        }
    }

    /// Shows a packet of `len` bytes that was built where it lies.
    #[cold]
    #[inline(never)]
    pub(super) fn show_in_place(&mut self, start: u32, len: usize) -> Result<(), RingError> {
        let Self { tap: Some(tap), ring, .. } = self else { return Ok(()) };
        Ok(tap.in_place(len, |bytes| ring.read(offset(start), bytes))?)
    }

    /// Counts a packet that was written.
    #[inline]
    pub(super) fn finish(&mut self, total: usize) {
        self.write += total as u32;
        self.packets += 1;
        if self.write > self.limit {
            self.settle();
        }
    }

    /// Brings the place to write to back into the ring, and the limit in front of it.
    #[cold]
    fn settle(&mut self) {
        if self.write >= self.ring.size {
            self.write -= self.ring.size;
            self.laps += 1;
        }
        self.widen();
    }

    /// Writes a packet that wraps around the end, or into memory in pieces.
    #[cold]
    fn put_in_pieces(
        &mut self,
        packet: &Outgoing<'_>,
        [word, id]: [u64; 2],
    ) -> Result<(), RingError> {
        self.ring.write_word(self.write, word)?;
        let second = self.ring.advance(self.write, 1);
        self.ring.write_word(second, id)?;
        let end = self.put_message_in_pieces(packet, self.ring.advance(second, 1))?;
        let end = self.pad(end)?;
        Ok(self.ring.write_word(end, trailer(self.write))?)
    }

    /// Writes extra header and payload from `at` on, and returns the byte offset where they end.
    #[inline]
    pub(super) fn put_message_in_pieces(
        &mut self,
        packet: &Outgoing<'_>,
        mut at: u32,
    ) -> Result<usize, RingError> {
        packet.extra_words(|value| {
            self.ring.write_word(at, value)?;
            at = self.ring.advance(at, 1);
            Ok::<_, OutOfRange>(())
        })?;
        let payload = packet.payload();
        if payload.is_empty() {
            return Ok(offset(at));
        }
        self.ring.write(offset(at), payload)?;
        Ok(self.ring.behind(offset(at), payload.len()))
    }

    /// Fills with zeros up to the next whole word, and returns its place.
    #[inline]
    pub(super) fn pad(&self, offset: usize) -> Result<u32, RingError> {
        let padding = offset.wrapping_neg() % 8;
        if padding != 0 {
            self.ring.write(offset, &[0; 8][..padding])?;
        }
        Ok((self.ring.behind(offset, padding) / 8) as u32)
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

    /// Whether something was staged that the reader cannot see yet.
    #[inline(always)]
    #[must_use]
    pub fn has_staged(&self) -> bool {
        self.write != self.published
    }

    /// Shows the reader what was staged. True if it has to be signalled.
    ///
    /// # Errors
    /// Only if the memory is no longer what it was.
    #[inline(always)]
    pub fn commit(&mut self) -> Result<bool, RingError> {
        if !self.has_staged() {
            return Ok(false);
        }
        let before = self.published;
        self.ring.store_index(WRITE_INDEX, self.write)?;
        self.published = self.write;
        // The index must be visible before the reader's mask is looked at, or both sides could rest.
        full_barrier();
        if self.ring.load(INTERRUPT_MASK)? != 0 {
            return Ok(false);
        }
        Ok(self.ring.load(READ_INDEX)? == index(before))
    }

    /// Asks the reader to signal once a packet of `need` bytes (trailer included) fits. True if it fits already; no signal
    /// will then come.
    ///
    /// # Errors
    /// If the reader's index is impossible.
    pub fn request_space(&mut self, need: usize) -> Result<bool, RingError> {
        // A quarter of the ring at least: to be woken for every single packet would cost more than it brings.
        let wanted = need.max(self.ring.bytes() / 4).min(self.ring.bytes() - 8);
        self.ring.store(PENDING_SEND_SIZE, wanted as u32)?;
        self.waiting = true;
        full_barrier();
        let fits = offset(self.refresh()?) >= need;
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

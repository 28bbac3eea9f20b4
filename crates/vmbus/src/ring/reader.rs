//! The reading end of a ring.

use alloc::boxed::Box;
use core::sync::atomic::Ordering;

use super::{
    DESCRIPTOR, FEATURE_BITS, FEATURE_PENDING_SEND_SIZE, INTERRUPT_MASK, PENDING_SEND_SIZE,
    PacketView, READ_INDEX, ReceiveError, Ring, RingError, TRAILER, Traffic, WRITE_INDEX, index,
    offset, trailer, view,
};
use crate::channel::tap::Tapped;
use crate::memory::{OutOfRange, SharedMemory, copy_out, full_barrier};
use crate::packet::{DESCRIPTOR_SIZE, Descriptor, Packet, PacketError, TRAILER_SIZE, plain_parts};

/// The reading end of a ring.
#[derive(Debug)]
pub struct RingReader<M> {
    pub(super) ring: Ring<M>,
    /// End of what was read, published or not.
    read: u32,
    /// The read index as the writer sees it.
    published: u32,
    /// The writer's index as last seen.
    known: u32,
    /// Where the place ends that can be read without another look at anything: written as far as `known` tells, and before the
    /// end of the ring. Zero while trailers are checked, or somebody looks.
    limit: u32,
    /// Whether trailers are checked.
    strict: bool,
    /// Who looks at the packets.
    pub(super) tap: Option<Box<Tapped>>,
    /// Whether either is so: all packets take the long way.
    long_way: bool,
    /// Packets read, without those that were skipped.
    pub(super) packets: u64,
    /// Packets skipped because they contradict themselves.
    skipped: u64,
    /// Where the reader started.
    first: u32,
    /// How often it passed the end.
    laps: u64,
}

impl<M: SharedMemory> RingReader<M> {
    /// Takes the reading end where the header page says it is.
    ///
    /// # Errors
    /// If the memory cannot be a ring or its indices are impossible.
    pub fn attach(memory: M) -> Result<Self, RingError> {
        let ring = Ring::new(memory)?;
        let read = ring.load_index(READ_INDEX, "read")?;
        let write = ring.load_index(WRITE_INDEX, "write")?;
        let mut reader = Self {
            ring,
            read,
            published: read,
            known: write,
            limit: 0,
            strict: false,
            tap: None,
            long_way: false,
            packets: 0,
            skipped: 0,
            first: read,
            laps: 0,
        };
        reader.widen();
        Ok(reader)
    }

    /// Words from `read` to the writer's index as last seen.
    #[inline]
    fn available(&self) -> u32 {
        self.ring.distance(self.read, self.known)
    }

    /// Sets the limit anew, after `known` changed or `read` came around the end.
    #[inline(always)]
    fn widen(&mut self) {
        // The last word is left to the way around the end, so that the short way never has to look for it.
        self.limit = if self.known >= self.read { self.known } else { self.ring.size - 1 };
        if self.long_way {
            self.limit = 0;
        }
    }

    /// Whether the trailer of every packet is compared with the packet's start. No known driver does; a host that holds its
    /// guests to the protocol does.
    pub fn check_trailers(&mut self, strict: bool) {
        self.strict = strict;
        self.choose_way();
    }

    /// Has every packet that is read shown to `tap`, or to none.
    pub(crate) fn set_tap(&mut self, tap: Option<Box<Tapped>>) {
        self.tap = tap;
        self.choose_way();
    }

    /// Who looks at the packets.
    pub(crate) fn tap(&mut self) -> Option<&mut Tapped> {
        self.tap.as_deref_mut()
    }

    fn choose_way(&mut self) {
        self.long_way = self.strict || self.tap.is_some();
        self.widen();
    }

    /// What was read since the ring was attached. Packets that were skipped count as bytes only.
    #[must_use]
    pub fn traffic(&self) -> Traffic {
        let bytes = self.ring.travelled(self.first, self.read, self.laps);
        Traffic { packets: self.packets, bytes, failed: self.skipped }
    }

    /// Looks at the writer's index anew, where everything known of was read. True if there is something to read.
    #[inline(always)]
    fn refresh(&mut self) -> Result<bool, RingError> {
        let write = self.ring.load(WRITE_INDEX)?;
        if write == index(self.read) {
            return Ok(false);
        }
        // Where all that was read is published, any index inside the ring is possible.
        if self.read == self.published
            && let Some(place) = self.ring.place(write)
        {
            self.known = place;
            self.widen();
            return Ok(true);
        }
        self.moved(write)
    }

    /// Takes over an index of the writer. True if there is something to read.
    #[inline(never)]
    fn moved(&mut self, write: u32) -> Result<bool, RingError> {
        let place = self.ring.check_index(write, "write")?;
        // The writer can only have moved away from what was published as read.
        let known = self.ring.distance(self.published, self.read) + self.available();
        if self.ring.distance(self.published, place) < known {
            return Err(RingError::IndexJump {
                which: "write",
                from: index(self.known),
                to: write,
                own: index(self.published),
            });
        }
        self.known = place;
        self.widen();
        Ok(place != self.read)
    }

    /// Moves behind a packet of `words` words and its trailer, and returns where it started.
    #[inline(always)]
    pub(super) fn skip(&mut self, words: usize) -> u32 {
        let start = self.read;
        self.read += (words + TRAILER) as u32;
        if self.read >= self.ring.size {
            self.read -= self.ring.size;
            self.laps += 1;
            self.widen();
        }
        start
    }

    /// Copies the next packet into `buffer` and moves behind it. `None` if the ring is empty.
    ///
    /// # Errors
    /// [`ReceiveError::Packet`] for a packet that was skipped, [`ReceiveError::Ring`] for a broken ring.
    #[inline(always)]
    pub fn receive<'b>(
        &mut self,
        buffer: &'b mut [u8],
    ) -> Result<Option<Packet<'b>>, ReceiveError> {
        if self.read >= self.limit {
            if self.read != self.known {
                return self.receive_in_pieces(buffer);
            }
            if !self.refresh()? {
                return Ok(None);
            }
        }
        let start = self.read;
        let [first, second, rest @ ..] = self.ring.between(start, self.limit) else {
            return self.receive_in_pieces(buffer);
        };
        let word = u64::from_le(first.load(Ordering::Relaxed));
        let transaction_id = u64::from_le(second.load(Ordering::Relaxed));
        // What is short enough to be inlined: a packet without ranges that lies in one piece.
        if let Some((kind, completion_requested, words)) = plain_parts(word)
            && let Some(len) = words.checked_sub(DESCRIPTOR)
            && len < rest.len()
            && len * 8 <= buffer.len()
        {
            let payload = buffer.split_at_mut(len * 8).0;
            copy_out(&rest[..len], payload);
            self.read = start + (words + TRAILER) as u32;
            self.packets += 1;
            return Ok(Some(Packet { kind, transaction_id, completion_requested, payload }));
        }
        self.receive_any(word, transaction_id, buffer)
    }

    /// [`RingReader::receive`] at the end of the ring, from memory without words, or with a look at the trailer.
    #[inline(never)]
    fn receive_in_pieces<'b>(
        &mut self,
        buffer: &'b mut [u8],
    ) -> Result<Option<Packet<'b>>, ReceiveError> {
        let word = self.ring.read_word(self.read).map_err(RingError::from)?;
        let second = self.ring.advance(self.read, 1);
        let transaction_id = self.ring.read_word(second).map_err(RingError::from)?;
        self.receive_any(word, transaction_id, buffer)
    }

    /// [`RingReader::receive`] of any packet, whose descriptor was read.
    #[inline(never)]
    fn receive_any<'b>(
        &mut self,
        word: u64,
        transaction_id: u64,
        buffer: &'b mut [u8],
    ) -> Result<Option<Packet<'b>>, ReceiveError> {
        let descriptor = Descriptor::from_words(word, transaction_id);
        self.check_length(&descriptor)?;
        let start = self.skip(descriptor.packet_len / 8);
        let read = self.read_skipped(start, &descriptor, buffer);
        match &read {
            Ok(_) => self.packets += 1,
            Err(ReceiveError::Packet(error)) => self.note_skipped(*error),
            Err(ReceiveError::Ring(_)) => {}
        }
        read.map(Some)
    }

    /// Counts a packet that is unusable.
    #[cold]
    fn note_skipped(&mut self, error: PacketError) {
        self.skipped += 1;
        tracing::debug!(%error, "packet skipped");
    }

    /// Copies the packet at `start`, behind which the reader has moved, into `buffer`.
    #[inline]
    fn read_skipped<'b>(
        &mut self,
        start: u32,
        descriptor: &Descriptor,
        buffer: &'b mut [u8],
    ) -> Result<Packet<'b>, ReceiveError> {
        let len = descriptor.packet_len;
        if self.strict {
            self.check_trailer(start, len / 8)?;
        }
        let size = buffer.len();
        let Some(rest) = buffer.get_mut(..len - DESCRIPTOR_SIZE) else {
            return Err(PacketError::TooLarge { packet: len, buffer: size }.into());
        };
        // Only what stands behind the descriptor: a second read of that could see another one.
        match self.ring.words(start).get(DESCRIPTOR_SIZE / 8..len / 8) {
            Some(words) => copy_out(words, rest),
            None => self.copy_in_pieces(start, rest).map_err(RingError::from)?,
        }
        if self.tap.is_some() {
            self.show(descriptor.to_words(), rest)?;
        }
        Ok(Packet::assemble(descriptor, rest)?)
    }

    /// Shows a packet that was copied, unless it contradicts itself.
    #[cold]
    #[inline(never)]
    fn show(&mut self, [word, id]: [u64; 2], rest: &[u8]) -> Result<(), PacketError> {
        Packet::assemble(&Descriptor::from_words(word, id), rest)?;
        if let Some(tap) = &mut self.tap {
            tap.copied([word, id], rest);
        }
        Ok(())
    }

    /// Shows a packet of `len` bytes that was read where it lies, as it lies there now.
    #[cold]
    #[inline(never)]
    pub(super) fn show_in_place(&mut self, start: u32, len: usize) {
        let Self { tap: Some(tap), ring, .. } = self else { return };
        if let Err(error) = tap.in_place(len, |bytes| ring.read(offset(start), bytes)) {
            tracing::debug!(%error, "a packet is not shown");
        }
    }

    /// Whether the next packet lies in the ring with its trailer.
    #[inline]
    fn check_length(&self, descriptor: &Descriptor) -> Result<(), RingError> {
        let (packet, available) = (descriptor.packet_len, offset(self.available()));
        if packet < DESCRIPTOR_SIZE || packet + TRAILER_SIZE > available {
            return Err(RingError::PacketLength { packet, available, at: index(self.read) });
        }
        Ok(())
    }

    /// Copies what stands behind the descriptor at `start`, around the end or from memory in pieces.
    #[cold]
    fn copy_in_pieces(&self, start: u32, rest: &mut [u8]) -> Result<(), OutOfRange> {
        self.ring.read(offset(self.ring.advance(start, DESCRIPTOR)), rest)
    }

    /// Compares the trailer of the packet at `start`, `words` words long, with what it has to be.
    fn check_trailer(&self, start: u32, words: usize) -> Result<(), ReceiveError> {
        let at = self.ring.advance(start, words);
        let found = self.ring.read_word(at).map_err(RingError::from)?;
        let expected = trailer(start);
        if found != expected {
            return Err(PacketError::Trailer { expected, found }.into());
        }
        Ok(())
    }

    /// The next packet where it lies. `None` if the ring is empty.
    ///
    /// Nothing is copied but the descriptor and the count of ranges. The packet stays the next one until
    /// [`PacketView::advance`]. Whoever drops the view instead and looks again may see other bytes: the peer can write to
    /// them meanwhile.
    ///
    /// # Errors
    /// [`ReceiveError::Packet`] for a packet that was skipped, [`ReceiveError::Ring`] for a broken ring.
    #[inline]
    pub fn peek(&mut self) -> Result<Option<PacketView<'_, M>>, ReceiveError> {
        if self.read == self.known && !self.refresh()? {
            return Ok(None);
        }
        let start = self.read;
        let descriptor = self.ring.descriptor(start)?;
        self.check_length(&descriptor)?;
        let words = descriptor.packet_len / 8;
        let checked = if self.strict { self.check_trailer(start, words) } else { Ok(()) };
        let parts = match checked.and_then(|()| view::Parts::of(&self.ring, start, &descriptor)) {
            Ok(parts) => parts,
            Err(error) => {
                self.skip(words);
                if let ReceiveError::Packet(error) = error {
                    self.note_skipped(error);
                }
                return Err(error);
            }
        };
        Ok(Some(PacketView::new(self, descriptor, parts)))
    }

    /// Shows the writer what has been read. True if it waits for space and has to be signalled.
    ///
    /// # Errors
    /// If the writer's index is impossible.
    #[inline(always)]
    pub fn commit(&mut self) -> Result<bool, RingError> {
        if self.read == self.published {
            return Ok(false);
        }
        let before = self.published;
        self.ring.store_index(READ_INDEX, self.read)?;
        self.published = self.read;
        // The index must be visible before the writer's wish is looked at, or the writer could wait for ever.
        full_barrier();
        // Some writers store a size with the low bits set (PROTOCOL §5).
        match self.ring.load(PENDING_SEND_SIZE)? & !7 {
            0 => Ok(false),
            wanted => self.crossed(before, wanted),
        }
    }

    /// Whether the reads since `before` made more than `wanted` bytes free, and no more than that were free then.
    #[cold]
    fn crossed(&self, before: u32, wanted: u32) -> Result<bool, RingError> {
        if self.ring.load(FEATURE_BITS)? & FEATURE_PENDING_SEND_SIZE == 0 {
            return Ok(false);
        }
        let write = self.ring.load_index(WRITE_INDEX, "write")?;
        let free = |read| index(self.ring.size - self.ring.distance(read, write));
        Ok(free(before) <= wanted && free(self.read) > wanted)
    }

    /// Asks the writer not to signal: the reader is at work.
    ///
    /// # Errors
    /// Only if the memory is no longer what it was.
    pub fn mask(&mut self) -> Result<(), RingError> {
        self.ring.store(INTERRUPT_MASK, 1)
    }

    /// Asks the writer to signal again, and looks once more. True if something came meanwhile; the ring is then masked
    /// again and no signal may come for it.
    ///
    /// # Errors
    /// If the writer's index is impossible.
    pub fn unmask(&mut self) -> Result<bool, RingError> {
        self.ring.store(INTERRUPT_MASK, 0)?;
        full_barrier();
        let more = match self.read == self.known {
            true => self.refresh()?,
            false => self.moved(self.ring.load(WRITE_INDEX)?)?,
        };
        if more {
            self.mask()?;
        }
        Ok(more)
    }
}

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

use core::sync::atomic::{Ordering, fence};

use crate::memory::{OutOfRange, PAGE_SIZE, SharedMemory, copy_in, copy_out};
use crate::packet::{
    DESCRIPTOR_SIZE, Descriptor, Outgoing, Packet, PacketError, RANGES_OFFSET, TRAILER_SIZE,
};

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
    /// Memory too small for a ring, or larger than 32-bit indices reach.
    #[error("ring memory of {0} bytes: expected a header page and 1 to 1048574 pages of data")]
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

/// Longest packet that a descriptor can describe, in bytes without trailer.
const LONGEST_PACKET: usize = u16::MAX as usize * 8;

/// The part of a ring that both sides need: memory and geometry.
#[derive(Debug)]
struct Ring<M> {
    memory: M,
    /// Bytes of data.
    size: u32,
}

impl<M: SharedMemory> Ring<M> {
    fn new(memory: M) -> Result<Self, RingError> {
        let error = RingError::Size(memory.size());
        let data = memory.size().checked_sub(PAGE_SIZE).ok_or(error)?;
        if data == 0 || !data.is_multiple_of(PAGE_SIZE) {
            return Err(error);
        }
        // Two pages below 4 GiB, so that index plus length never overflows.
        let size = u32::try_from(data).ok().filter(|size| *size <= u32::MAX - 8191).ok_or(error)?;
        Ok(Self { memory, size })
    }

    #[inline]
    fn load(&self, field: usize) -> Result<u32, RingError> {
        Ok(self.memory.atomic_u32(field)?.load(Ordering::Acquire))
    }

    #[inline]
    fn store(&self, field: usize, value: u32) -> Result<(), RingError> {
        self.memory.atomic_u32(field)?.store(value, Ordering::Release);
        Ok(())
    }

    /// The peer's index, checked.
    #[inline]
    fn load_index(&self, field: usize, which: &'static str) -> Result<u32, RingError> {
        let value = self.load(field)?;
        if value >= self.size || !value.is_multiple_of(8) {
            return Err(RingError::Index { which, value, size: self.size });
        }
        Ok(value)
    }

    /// Bytes from `from` forward to `to`.
    #[inline]
    fn distance(&self, from: u32, to: u32) -> u32 {
        if to >= from { to - from } else { self.size - from + to }
    }

    #[inline]
    fn advance(&self, index: u32, by: u32) -> u32 {
        let next = index + by;
        if next >= self.size { next - self.size } else { next }
    }

    /// The descriptor at `at`, read once.
    #[inline]
    fn descriptor(&self, at: u32) -> Result<Descriptor, RingError> {
        if let Some([first, second]) = self.memory.words(PAGE_SIZE + at as usize, DESCRIPTOR_SIZE) {
            let words = [first.load(Ordering::Relaxed), second.load(Ordering::Relaxed)];
            return Ok(Descriptor::from_words(words.map(u64::from_le)));
        }
        let mut head = [0; DESCRIPTOR_SIZE];
        self.read(at, &mut head)?;
        Ok(Descriptor::decode(&head))
    }

    /// Compares the trailer of the packet at `start`, `len` bytes long, with what it has to be.
    fn check_trailer(&self, start: u32, len: usize) -> Result<(), ReceiveError> {
        let mut trailer = [0; TRAILER_SIZE];
        let at = self.advance(start, len as u32);
        self.read(at, &mut trailer).map_err(RingError::from)?;
        let (found, expected) = (u64::from_le_bytes(trailer), u64::from(start) << 32);
        if found != expected {
            return Err(PacketError::Trailer { expected, found }.into());
        }
        Ok(())
    }

    /// [`Ring::read`] of whole words.
    #[inline]
    fn read_words(&self, at: u32, bytes: &mut [u8]) -> Result<(), OutOfRange> {
        if at as usize + bytes.len() <= self.size as usize
            && let Some(words) = self.memory.words(PAGE_SIZE + at as usize, bytes.len())
        {
            copy_out(words, bytes);
            return Ok(());
        }
        self.read(at, bytes)
    }

    fn write(&self, at: u32, bytes: &[u8]) -> Result<(), OutOfRange> {
        let room = (self.size - at) as usize;
        if let Some((first, rest)) = bytes.split_at_checked(room) {
            self.memory.write(PAGE_SIZE + at as usize, first)?;
            self.memory.write(PAGE_SIZE, rest)
        } else {
            self.memory.write(PAGE_SIZE + at as usize, bytes)
        }
    }

    fn read(&self, at: u32, bytes: &mut [u8]) -> Result<(), OutOfRange> {
        let room = (self.size - at) as usize;
        if bytes.len() <= room {
            return self.memory.read(PAGE_SIZE + at as usize, bytes);
        }
        let (first, rest) = bytes.split_at_mut(room);
        self.memory.read(PAGE_SIZE + at as usize, first)?;
        self.memory.read(PAGE_SIZE, rest)
    }
}

/// Up to seven bytes as a word in memory order, zeros behind them.
#[inline]
fn padded(tail: &[u8]) -> u64 {
    let mut word = [0; 8];
    for (to, from) in word.iter_mut().zip(tail) {
        *to = *from;
    }
    u64::from_ne_bytes(word)
}

/// The writing end of a ring.
#[derive(Debug)]
pub struct RingWriter<M> {
    ring: Ring<M>,
    /// End of what is written, published or not.
    write: u32,
    /// The write index as the reader sees it.
    published: u32,
    /// The reader's index as last seen.
    read: u32,
    /// Bytes from `write` on that are free as far as `read` tells; one of them at least is never used.
    free: u32,
    /// Whether `pending_send_sz` is set.
    waiting: bool,
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
        let free = ring.size - ring.distance(read, write);
        Ok(Self { ring, write, published: write, read, free, waiting: false })
    }

    /// Largest packet that fits into the empty ring, in bytes with trailer.
    #[must_use]
    pub fn capacity(&self) -> usize {
        (self.ring.size as usize - 8).min(LONGEST_PACKET + TRAILER_SIZE)
    }

    /// Looks at the reader's index anew.
    fn refresh(&mut self) -> Result<(), RingError> {
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
        self.free = self.ring.size - self.ring.distance(read, self.write);
        Ok(())
    }

    /// Whether a packet of `len` bytes (trailer included) fits now.
    ///
    /// # Errors
    /// If the reader's index is impossible.
    #[inline]
    pub fn has_room(&mut self, len: usize) -> Result<bool, RingError> {
        if self.free as usize > len {
            return Ok(true);
        }
        self.refresh()?;
        Ok(self.free as usize > len)
    }

    /// Looks for room for `total` bytes where there was none.
    #[cold]
    fn make_room(&mut self, total: usize) -> Result<(), SendError> {
        if total > self.capacity() {
            return Err(SendError::TooLarge { len: total, most: self.capacity() });
        }
        if self.has_room(total)? { Ok(()) } else { Err(SendError::Full { need: total }) }
    }

    /// Writes a packet behind those already there. The reader sees it after [`RingWriter::commit`].
    ///
    /// # Errors
    /// [`SendError`]; nothing is then written.
    #[inline]
    pub fn stage(&mut self, packet: &Outgoing<'_>) -> Result<(), SendError> {
        let header = packet.header_len();
        let payload = packet.payload();
        let len = header + payload.len().next_multiple_of(8);
        let total = len + TRAILER_SIZE;
        // One comparison where there is room; what does not fit may be too large altogether.
        if self.free as usize <= total || len > LONGEST_PACKET {
            self.make_room(total)?;
        }
        self.put(packet, header, len)?;
        if self.waiting {
            self.waiting = false;
            self.ring.store(PENDING_SEND_SIZE, 0)?;
        }
        Ok(())
    }

    /// Writes header, body, padding and trailer; room has been checked.
    #[inline]
    fn put(&mut self, packet: &Outgoing<'_>, header: usize, len: usize) -> Result<(), RingError> {
        let start = self.write;
        let total = len + TRAILER_SIZE;
        let simple = header == DESCRIPTOR_SIZE;
        let next = start as usize + total;
        if simple
            && next < self.ring.size as usize
            && let Some(words) = self.ring.memory.words(PAGE_SIZE + start as usize, total)
            && let [first, second, body @ .., trailer] = words
        {
            let [descriptor, id] = packet.descriptor(header, len);
            first.store(descriptor.to_le(), Ordering::Relaxed);
            second.store(id.to_le(), Ordering::Relaxed);
            let payload = packet.payload();
            copy_in(body, payload);
            let tail = payload.len() & 7;
            if tail != 0
                && let Some(last) = body.last()
            {
                last.store(padded(&payload[payload.len() - tail..]), Ordering::Relaxed);
            }
            trailer.store((u64::from(start) << 32).to_le(), Ordering::Relaxed);
            self.write = next as u32;
            self.free -= total as u32;
            return Ok(());
        }
        self.put_in_pieces(packet, header, len)
    }

    /// The same for packets with ranges, packets that wrap around the end, and memory in pieces.
    fn put_in_pieces(
        &mut self,
        packet: &Outgoing<'_>,
        header: usize,
        len: usize,
    ) -> Result<(), RingError> {
        let start = self.write;
        let mut at = start;
        let mut word = |ring: &Ring<M>, value: u64| {
            ring.write(at, &value.to_le_bytes())?;
            at = ring.advance(at, 8);
            Ok::<_, OutOfRange>(())
        };
        for value in packet.descriptor(header, len) {
            word(&self.ring, value)?;
        }
        match *packet {
            Outgoing::InBand { .. } | Outgoing::Completion { .. } => {}
            Outgoing::GpaDirect { ranges, .. } => {
                word(&self.ring, (ranges.len() as u64) << 32)?;
                for range in ranges {
                    word(
                        &self.ring,
                        u64::from(range.byte_count) | u64::from(range.byte_offset) << 32,
                    )?;
                    for frame in range.frames {
                        word(&self.ring, frame.0)?;
                    }
                }
            }
            Outgoing::TransferPages { ranges, pageset, .. } => {
                word(&self.ring, u64::from(pageset) | (ranges.len() as u64) << 32)?;
                for range in ranges {
                    word(
                        &self.ring,
                        u64::from(range.byte_count) | u64::from(range.byte_offset) << 32,
                    )?;
                }
            }
        }
        let payload = packet.payload();
        let (words, tail) = payload.split_at(payload.len() & !7);
        self.ring.write(at, words)?;
        at = self.ring.advance(at, words.len() as u32);
        if !tail.is_empty() {
            self.ring.write(at, &padded(tail).to_ne_bytes())?;
            at = self.ring.advance(at, 8);
        }
        self.ring.write(at, &(u64::from(start) << 32).to_le_bytes())?;
        self.write = self.ring.advance(at, TRAILER_SIZE as u32);
        self.free -= (len + TRAILER_SIZE) as u32;
        Ok(())
    }

    /// Shows the reader what was staged. True if it has to be signalled.
    ///
    /// # Errors
    /// Only if the memory is no longer what it was.
    #[inline]
    pub fn commit(&mut self) -> Result<bool, RingError> {
        if self.write == self.published {
            return Ok(false);
        }
        let before = self.published;
        self.ring.store(WRITE_INDEX, self.write)?;
        self.published = self.write;
        // The index must be visible before the reader's mask is looked at, or both sides could rest.
        fence(Ordering::SeqCst);
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
        fence(Ordering::SeqCst);
        self.refresh()?;
        if self.free as usize > need {
            self.waiting = false;
            self.ring.store(PENDING_SEND_SIZE, 0)?;
            return Ok(true);
        }
        Ok(false)
    }
}

/// The reading end of a ring.
#[derive(Debug)]
pub struct RingReader<M> {
    ring: Ring<M>,
    /// End of what was read, published or not.
    read: u32,
    /// The read index as the writer sees it.
    published: u32,
    /// The writer's index as last seen.
    write: u32,
    /// Bytes from `read` to `write`.
    available: u32,
    /// Whether trailers are checked.
    strict: bool,
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
        let available = ring.distance(read, write);
        Ok(Self { ring, read, published: read, write, available, strict: false })
    }

    /// Whether the trailer of every packet is compared with the packet's start. No known driver does; a host that holds its
    /// guests to the protocol does.
    pub fn check_trailers(&mut self, strict: bool) {
        self.strict = strict;
    }

    /// Looks at the writer's index anew.
    fn refresh(&mut self) -> Result<(), RingError> {
        let write = self.ring.load_index(WRITE_INDEX, "write")?;
        // The writer can only have moved away from what was published as read.
        if self.ring.distance(self.published, write)
            < self.ring.distance(self.published, self.write)
        {
            return Err(RingError::IndexJump {
                which: "write",
                from: self.write,
                to: write,
                own: self.published,
            });
        }
        self.write = write;
        self.available = self.ring.distance(self.read, write);
        Ok(())
    }

    /// Copies the next packet into `buffer` and moves behind it. `None` if the ring is empty.
    ///
    /// # Errors
    /// [`ReceiveError::Packet`] for a packet that was skipped, [`ReceiveError::Ring`] for a broken ring.
    #[inline]
    pub fn receive<'b>(
        &mut self,
        buffer: &'b mut [u8],
    ) -> Result<Option<Packet<'b>>, ReceiveError> {
        if self.available == 0 {
            self.refresh()?;
            if self.available == 0 {
                return Ok(None);
            }
        }
        let available = self.available as usize;
        let start = self.read;
        if available < DESCRIPTOR_SIZE + TRAILER_SIZE {
            return Err(RingError::PacketLength { packet: 0, available, at: start }.into());
        }
        let descriptor = self.ring.descriptor(start)?;
        let len = descriptor.packet_len;
        if len < DESCRIPTOR_SIZE || len + TRAILER_SIZE > available {
            return Err(RingError::PacketLength { packet: len, available, at: start }.into());
        }
        self.read = self.ring.advance(start, (len + TRAILER_SIZE) as u32);
        self.available -= (len + TRAILER_SIZE) as u32;
        if self.strict {
            self.ring.check_trailer(start, len)?;
        }
        let size = buffer.len();
        let Some(rest) = buffer.get_mut(..len - DESCRIPTOR_SIZE) else {
            return Err(PacketError::TooLarge { packet: len, buffer: size }.into());
        };
        // Only what stands behind the descriptor: a second read of that could see another one.
        let at = self.ring.advance(start, DESCRIPTOR_SIZE as u32);
        self.ring.read_words(at, rest).map_err(RingError::from)?;
        Ok(Some(Packet::assemble(&descriptor, rest)?))
    }

    /// Shows the writer what has been read. True if it waits for space and has to be signalled.
    ///
    /// # Errors
    /// If the writer's index is impossible.
    #[inline]
    pub fn commit(&mut self) -> Result<bool, RingError> {
        if self.read == self.published {
            return Ok(false);
        }
        let before = self.published;
        self.ring.store(READ_INDEX, self.read)?;
        self.published = self.read;
        // The index must be visible before the writer's wish is looked at, or the writer could wait for ever.
        fence(Ordering::SeqCst);
        // Some writers store a size with the low bits set (PROTOCOL §5).
        let wanted = self.ring.load(PENDING_SEND_SIZE)? & !7;
        if wanted == 0 || self.ring.load(FEATURE_BITS)? & FEATURE_PENDING_SEND_SIZE == 0 {
            return Ok(false);
        }
        let write = self.ring.load_index(WRITE_INDEX, "write")?;
        let free_before = self.ring.size - self.ring.distance(before, write);
        let free_now = self.ring.size - self.ring.distance(self.read, write);
        Ok(free_before <= wanted && free_now > wanted)
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
        fence(Ordering::SeqCst);
        self.refresh()?;
        if self.available == 0 {
            return Ok(false);
        }
        self.mask()?;
        Ok(true)
    }
}

/// Bytes of header of a transfer-page packet with `ranges` ranges; for callers that size their buffers.
#[must_use]
pub const fn transfer_header_len(ranges: usize) -> usize {
    RANGES_OFFSET + 8 * ranges
}

#[cfg(test)]
#[path = "ring_tests.rs"]
mod tests;

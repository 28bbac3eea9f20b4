//! Channels: two rings and a doorbell, and nothing else.
//!
//! [`Channel::from_parts`] needs no bus: the same channel runs over a VMBus that this crate brought up, over the mappings
//! of a uio device, and over two pieces of memory in a test. Both ends of a channel are the same type; a host uses it
//! with [`PageList`](crate::memory::PageList) memory.
//!
//! # Sleeping
//! The owner of a channel looks at it when the peer's doorbell rang: [`Channel::mask`], [`Channel::receive`] until
//! there is nothing more, and then [`Channel::arm`], which must return `false` before the owner may rest until the next
//! doorbell.

use alloc::sync::Arc;
use core::sync::atomic::{AtomicBool, Ordering};

use crate::memory::{SharedMemory, SharedPages};
use crate::packet::{Outgoing, Packet};
use crate::ring::{PacketView, ReceiveError, RingError, RingReader, RingWriter, SendError, Slot};

/// Tells the peer to look at its rings: a hypercall, a bit in a monitor page, a write to an eventfd.
pub trait Doorbell {
    /// Rings. Must not block; rings that come close together may become one.
    fn ring(&self);
}

/// A doorbell that sets a flag, for shells that look at flags: simulations, tests, polled drivers.
///
/// Clones share the flag: one side rings, the other [takes](SignalFlag::take).
#[derive(Clone, Debug, Default)]
pub struct SignalFlag(Arc<AtomicBool>);

impl SignalFlag {
    /// A doorbell that has not rung.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Whether it rang since the last call.
    #[must_use]
    pub fn take(&self) -> bool {
        // The plain load keeps the common "no" free of a locked operation.
        self.0.load(Ordering::Relaxed) && self.0.swap(false, Ordering::AcqRel)
    }
}

impl Doorbell for SignalFlag {
    fn ring(&self) {
        self.0.store(true, Ordering::Release);
    }
}

/// What went over a channel, and how often it had to signal.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ChannelStats {
    /// Packets written.
    pub sent_packets: u64,
    /// Bytes written, headers, padding and trailers included.
    pub sent_bytes: u64,
    /// Packets read, without those that were skipped.
    pub received_packets: u64,
    /// Bytes read, headers, padding and trailers included, also those of packets that were skipped.
    pub received_bytes: u64,
    /// Packets that were skipped because they contradicted themselves.
    pub bad_packets: u64,
    /// Doorbells rung because the peer had nothing to read before.
    pub signals: u64,
    /// Commits of something that needed no doorbell.
    pub signals_suppressed: u64,
    /// Doorbells rung because the peer waited for space.
    pub space_signals: u64,
    /// Packets that did not fit.
    pub full: u64,
}

/// One end of a channel.
#[derive(Debug)]
pub struct Channel<M = SharedPages, D = SignalFlag> {
    tx: RingWriter<M>,
    rx: RingReader<M>,
    doorbell: D,
    /// Signals alone; the rest is counted by the rings.
    stats: ChannelStats,
}

impl<M: SharedMemory, D: Doorbell> Channel<M, D> {
    /// Joins two rings and a doorbell. `tx` and `rx` each hold a header page and the data behind it; a guest does this
    /// with zeroed memory before it opens the channel, a host when it is asked to open it.
    ///
    /// # Errors
    /// If a piece of memory cannot be a ring or its indices are impossible.
    pub fn from_parts(tx: M, rx: M, doorbell: D) -> Result<Self, RingError> {
        Ok(Self {
            tx: RingWriter::attach(tx)?,
            rx: RingReader::attach(rx)?,
            doorbell,
            stats: ChannelStats::default(),
        })
    }

    /// Whether the trailer of every packet read is checked; see [`RingReader::check_trailers`].
    pub fn check_trailers(&mut self, strict: bool) {
        self.rx.check_trailers(strict);
    }

    /// Writes a packet that the peer sees after the next [`Channel::commit`].
    ///
    /// # Errors
    /// [`SendError`]; nothing is then written. After [`SendError::Full`] call [`Channel::request_space`].
    #[inline(always)]
    pub fn stage(&mut self, packet: &Outgoing<'_>) -> Result<(), SendError> {
        self.tx.stage(packet)
    }

    /// Makes room for a packet that is built in the ring itself: `packet` with its payload, and up to `room` bytes more
    /// that the [`Slot`] takes. The peer sees it after [`Slot::finish`] and the next [`Channel::commit`].
    ///
    /// # Errors
    /// [`SendError`]; nothing is then written. After [`SendError::Full`] call [`Channel::request_space`].
    pub fn reserve(
        &mut self,
        packet: &Outgoing<'_>,
        room: usize,
    ) -> Result<Slot<'_, M>, SendError> {
        self.tx.reserve(packet, room)
    }

    /// Shows the peer what was staged, with one doorbell at most.
    ///
    /// # Errors
    /// Only if the memory is no longer what it was.
    #[inline]
    pub fn commit(&mut self) -> Result<(), RingError> {
        if !self.tx.has_staged() {
            return Ok(());
        }
        if self.tx.commit()? {
            self.stats.signals += 1;
            self.doorbell.ring();
        } else {
            self.stats.signals_suppressed += 1;
        }
        Ok(())
    }

    /// [`Channel::stage`] and [`Channel::commit`].
    ///
    /// # Errors
    /// [`SendError`]; nothing is then written.
    #[inline(always)]
    pub fn try_send(&mut self, packet: &Outgoing<'_>) -> Result<(), SendError> {
        self.stage(packet)?;
        Ok(self.commit()?)
    }

    /// Copies the next packet into `buffer`. `None` if there is none now.
    ///
    /// The packet borrows the buffer and not the channel, so that it can be answered while it is looked at.
    ///
    /// # Errors
    /// [`ReceiveError::Packet`] for a packet that was skipped: go on with the next. [`ReceiveError::Ring`] for a broken
    /// ring: the channel is dead.
    #[inline(always)]
    pub fn receive<'b>(
        &mut self,
        buffer: &'b mut [u8],
    ) -> Result<Option<Packet<'b>>, ReceiveError> {
        self.rx.receive(buffer)
    }

    /// The next packet where it lies, without a copy; see [`RingReader::peek`] for what that asks of the caller.
    ///
    /// # Errors
    /// As for [`Channel::receive`].
    #[inline]
    pub fn peek(&mut self) -> Result<Option<PacketView<'_, M>>, ReceiveError> {
        self.rx.peek()
    }

    /// Shows the peer what was read, and rings if it waited for that space.
    ///
    /// # Errors
    /// If the peer's index is impossible.
    #[inline]
    pub fn commit_read(&mut self) -> Result<(), RingError> {
        if self.rx.commit()? {
            self.stats.space_signals += 1;
            self.doorbell.ring();
        }
        Ok(())
    }

    /// Asks the peer not to signal: this end is at work.
    ///
    /// # Errors
    /// Only if the memory is no longer what it was.
    pub fn mask(&mut self) -> Result<(), RingError> {
        self.rx.mask()
    }

    /// Prepares for rest: shows what was read, asks for signals, and looks once more. True if there is more to read; the
    /// owner must then read on, since no signal may come for it.
    ///
    /// # Errors
    /// If the peer's index is impossible.
    pub fn arm(&mut self) -> Result<bool, RingError> {
        self.commit_read()?;
        if seeded!("forget-to-rearm") {
            return Ok(false);
        }
        self.rx.unmask()
    }

    /// Asks the peer to ring once `need` bytes fit. True if they fit already; no doorbell will then come for it.
    ///
    /// What is staged is committed first: the peer can only make room by reading it.
    ///
    /// # Errors
    /// If the peer's index is impossible.
    pub fn request_space(&mut self, need: usize) -> Result<bool, RingError> {
        self.commit()?;
        self.tx.request_space(need)
    }

    /// Whether a packet of `len` bytes (see [`Outgoing::ring_len`]) fits now.
    ///
    /// # Errors
    /// If the peer's index is impossible.
    pub fn writable(&mut self, len: usize) -> Result<bool, RingError> {
        self.tx.has_room(len)
    }

    /// Largest packet that fits into the empty ring, in bytes with trailer.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.tx.capacity()
    }

    /// What went over the channel so far.
    #[must_use]
    pub fn stats(&self) -> ChannelStats {
        let (sent, received) = (self.tx.traffic(), self.rx.traffic());
        ChannelStats {
            sent_packets: sent.packets,
            sent_bytes: sent.bytes,
            received_packets: received.packets,
            received_bytes: received.bytes,
            bad_packets: received.failed,
            full: sent.failed,
            ..self.stats
        }
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use crate::Pfn;
    use std::vec;

    fn ring() -> SharedPages {
        SharedPages::from_heap(&[Pfn(0), Pfn(1)])
    }

    fn pair() -> (Channel, SignalFlag, Channel, SignalFlag) {
        let (up, down) = (ring(), ring());
        let (to_host, to_guest) = (SignalFlag::new(), SignalFlag::new());
        let guest = Channel::from_parts(up.clone(), down.clone(), to_host.clone()).unwrap();
        let host = Channel::from_parts(down, up, to_guest.clone()).unwrap();
        (guest, to_host, host, to_guest)
    }

    #[test]
    fn a_batch_rings_once_and_only_into_an_empty_ring() {
        let (mut guest, to_host, mut host, _) = pair();
        for transaction_id in 1..=3 {
            guest
                .stage(&Outgoing::InBand { transaction_id, completion: false, payload: b"batch" })
                .unwrap();
        }
        assert!(!to_host.take(), "nothing is shown before the commit");
        guest.commit().unwrap();
        assert!(to_host.take());
        guest
            .try_send(&Outgoing::InBand { transaction_id: 4, completion: false, payload: b"" })
            .unwrap();
        assert!(!to_host.take(), "the host is still behind");
        let mut buffer = vec![0; 256];
        for expected in 1..=4 {
            assert_eq!(host.receive(&mut buffer).unwrap().unwrap().transaction_id, expected);
        }
        assert!(host.receive(&mut buffer).unwrap().is_none());
        assert!(!host.arm().unwrap());
        guest
            .try_send(&Outgoing::InBand { transaction_id: 5, completion: false, payload: b"" })
            .unwrap();
        assert!(to_host.take());
        guest.commit().unwrap();
        assert_eq!((guest.stats().signals, guest.stats().signals_suppressed), (2, 1));
        let sent = (guest.stats().sent_packets, guest.stats().sent_bytes);
        assert_eq!(sent, (5, 3 * 32 + 2 * 24));
        let received = (host.stats().received_packets, host.stats().received_bytes);
        assert_eq!(received, (4, 3 * 32 + 24));
    }

    // HISTORY 68: the mask is the reader's own, and whoever clears it looks once more.
    #[test]
    fn arm_finds_what_came_while_masked() {
        let (mut guest, to_host, mut host, _) = pair();
        let mut buffer = vec![0; 256];
        host.mask().unwrap();
        assert!(host.receive(&mut buffer).unwrap().is_none());
        guest
            .try_send(&Outgoing::InBand { transaction_id: 1, completion: false, payload: b"" })
            .unwrap();
        assert!(!to_host.take(), "masked");
        assert!(host.arm().unwrap(), "found without a signal");
        assert!(host.receive(&mut buffer).unwrap().is_some());
        assert!(!host.arm().unwrap());
    }

    #[test]
    fn a_waiting_writer_is_woken_once_there_is_room() {
        let (mut guest, to_host, mut host, to_guest) = pair();
        let packet = Outgoing::InBand { transaction_id: 1, completion: false, payload: &[7; 1000] };
        while guest.try_send(&packet).is_ok() {}
        assert!(!guest.request_space(packet.ring_len()).unwrap());
        assert!(to_host.take());
        let mut buffer = vec![0; 2048];
        let mut read = 0;
        while !to_guest.take() {
            host.receive(&mut buffer).unwrap().expect("a signal before the ring runs dry");
            host.commit_read().unwrap();
            read += 1;
        }
        assert_eq!(read, 1, "the first packet read makes more room than was asked for");
        assert!(guest.try_send(&packet).is_ok());
        host.receive(&mut buffer).unwrap().unwrap();
        host.commit_read().unwrap();
        assert!(!to_guest.take(), "the wish was withdrawn");
        assert_eq!((guest.stats().full, host.stats().space_signals), (1, 1));
    }
}

#[cfg(all(test, loom))]
mod loom_tests;

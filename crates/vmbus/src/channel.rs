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

pub(crate) mod tap;

use alloc::boxed::Box;
use alloc::sync::Arc;
use core::sync::atomic::{AtomicBool, Ordering};

use crate::Instant;
use crate::memory::{SharedMemory, SharedPages};
use crate::packet::{Outgoing, Packet};
use crate::ring::{PacketView, ReceiveError, RingError, RingReader, RingWriter, SendError, Slot};

use tap::Tapped;
pub use tap::{Direction, PacketTap};

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
    /// Whether somebody looks at the packets.
    tapped: bool,
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
            tapped: false,
        })
    }

    /// Whether the trailer of every packet read is checked; see [`RingReader::check_trailers`].
    pub fn check_trailers(&mut self, strict: bool) {
        self.rx.check_trailers(strict);
    }

    /// Has every packet shown to a tap from now on: those that are staged to the first, those that are read to the second. What is
    /// looked at costs a copy.
    pub fn set_taps(
        &mut self,
        sent: Option<Box<dyn PacketTap>>,
        received: Option<Box<dyn PacketTap>>,
    ) {
        self.tapped = sent.is_some() || received.is_some();
        let tapped = |tap, direction| Tapped::new(tap, direction, Instant::ZERO);
        self.tx.set_tap(sent.map(|tap| tapped(tap, Direction::Out)));
        self.rx.set_tap(received.map(|tap| tapped(tap, Direction::In)));
    }

    /// Signals the peer by another doorbell from now on, and returns the one before. Ring the new one once afterwards or
    /// before: what the old one rang for may be unheard.
    #[must_use = "the old doorbell may keep memory alive"]
    pub fn set_doorbell(&mut self, doorbell: D) -> D {
        core::mem::replace(&mut self.doorbell, doorbell)
    }

    /// Tells the taps what time it is; a channel has no clock.
    #[inline]
    pub fn set_time(&mut self, now: Instant) {
        if self.tapped {
            self.tell_time(now);
        }
    }

    #[cold]
    fn tell_time(&mut self, now: Instant) {
        for tap in [self.tx.tap(), self.rx.tap()].into_iter().flatten() {
            tap.now = now;
        }
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
    use crate::packet::{GpaRange, PacketKind, TransferRange};
    use std::sync::{Arc, Mutex};
    use std::vec;
    use std::vec::Vec;

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

    type Seen = (Direction, Instant, Vec<u8>);

    /// Keeps what it sees.
    #[derive(Clone, Debug, Default)]
    struct Log(Arc<Mutex<Vec<Seen>>>);

    impl Log {
        fn taken(&self) -> Vec<Seen> {
            core::mem::take(&mut self.0.lock().unwrap())
        }
    }

    impl PacketTap for Log {
        fn packet(&mut self, direction: Direction, now: Instant, packet: &[u8]) {
            self.0.lock().unwrap().push((direction, now, packet.to_vec()));
        }
    }

    fn tapped(channel: &mut Channel) -> Log {
        let log = Log::default();
        channel.set_taps(Some(Box::new(log.clone())), Some(Box::new(log.clone())));
        log
    }

    #[test]
    fn taps_see_the_bytes_of_every_packet_on_both_ends() {
        let (mut guest, to_host, mut host, _) = pair();
        let (at_guest, at_host) = (tapped(&mut guest), tapped(&mut host));
        let frames = [Pfn(0x77), Pfn(0x78)];
        let gpa = [GpaRange { byte_count: 5000, byte_offset: 7, frames: &frames }];
        let transfer = [TransferRange { byte_count: 60, byte_offset: 4096 }];
        // So many that they come around the end of the ring, where they lie in two pieces.
        for round in 0..200_u64 {
            let packets = [
                Outgoing::InBand { transaction_id: 1, completion: true, payload: b"in-band!" },
                Outgoing::Completion { transaction_id: 2, payload: b"" },
                Outgoing::GpaDirect { transaction_id: 3, ranges: &gpa, payload: b"gpa" },
                Outgoing::TransferPages {
                    transaction_id: 4,
                    pageset: 0xcafe,
                    ranges: &transfer,
                    payload: b"pages",
                },
            ];
            guest.set_time(Instant::from_nanos(round));
            host.set_time(Instant::from_nanos(1000 + round));
            for packet in &packets {
                guest.stage(packet).unwrap();
            }
            let slot = Outgoing::InBand { transaction_id: 5, completion: false, payload: b"in" };
            let mut slot = guest.reserve(&slot, 10).unwrap();
            slot.append(b" place").unwrap();
            slot.finish().unwrap();
            guest.commit().unwrap();
            assert!(to_host.take(), "signals are as ever");
            let sent = at_guest.taken();
            let kinds: Vec<u16> =
                sent.iter().map(|(_, _, bytes)| u16::from_le_bytes([bytes[0], bytes[1]])).collect();
            assert_eq!(kinds, [6, 11, 9, 7, 6]);
            assert_eq!(sent[0].2[16..], *b"in-band!");
            assert_eq!(sent[1].2.len(), 16);
            let list = [1 << 32, 5000 | 7 << 32, 0x77, 0x78].map(u64::to_le_bytes).concat();
            assert_eq!(sent[2].2[16..48], list);
            assert_eq!(sent[4].2[16..], *b"in place");
            assert!(sent.iter().all(|seen| seen.0 == Direction::Out && seen.1.as_nanos() == round));

            let mut buffer = vec![0; 256];
            for number in 0..5 {
                if number == 3 {
                    host.peek().unwrap().expect("the fourth").advance();
                    continue;
                }
                let packet = host.receive(&mut buffer).unwrap().expect("as many as were sent");
                assert_eq!(packet.transaction_id, number + 1);
                let direct = matches!(packet.kind, PacketKind::GpaDirect(_));
                assert_eq!(direct, number == 2);
            }
            host.commit_read().unwrap();
            let read = at_host.taken();
            assert!(
                read.iter()
                    .all(|seen| { seen.0 == Direction::In && seen.1.as_nanos() == 1000 + round })
            );
            let bytes =
                |log: Vec<Seen>| log.into_iter().map(|(_, _, bytes)| bytes).collect::<Vec<_>>();
            assert_eq!(bytes(read), bytes(sent), "what was sent is what was read");
        }
        guest.set_taps(None, None);
        guest.try_send(&Outgoing::Completion { transaction_id: 9, payload: b"" }).unwrap();
        assert_eq!(at_guest.taken(), []);
    }

    #[test]
    fn a_tap_does_not_see_what_was_skipped() {
        let (mut guest, _, mut host, _) = pair();
        let log = tapped(&mut host);
        let none =
            Outgoing::TransferPages { transaction_id: 1, pageset: 1, ranges: &[], payload: b"" };
        guest.try_send(&none).unwrap();
        guest
            .try_send(&Outgoing::InBand { transaction_id: 2, completion: false, payload: b"" })
            .unwrap();
        let mut buffer = vec![0; 256];
        assert!(matches!(host.receive(&mut buffer), Err(ReceiveError::Packet(_))));
        assert!(host.receive(&mut buffer).unwrap().is_some());
        assert_eq!(log.taken().len(), 1);
        assert_eq!((host.stats().received_packets, host.stats().bad_packets), (1, 1));
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

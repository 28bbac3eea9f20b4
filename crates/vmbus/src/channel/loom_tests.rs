//! Two threads and every order in which their accesses can take effect: no wake-up is lost, no packet is torn, none comes
//! twice. What runs here is what ships, orderings and barrier included; only the memory is loom's.
//!
//! `RUSTFLAGS="--cfg loom" cargo test -p vmbus --release --lib loom_tests`
//!
//! A lost wake-up shows as a deadlock, a packet that is read before it is visible as a concurrent access to its bytes.
//! `LOOM_MAX_PREEMPTIONS` bounds the search; without it some of these models take minutes.

extern crate std;
use std::vec::Vec;

use loom::cell::Cell;
use loom::sync::atomic::{AtomicU32, Ordering};
use loom::sync::{Arc, Notify};
use loom::thread;

use super::{Channel, Doorbell};
use crate::memory::{OutOfRange, PAGE_SIZE, SharedMemory};
use crate::packet::Outgoing;
use crate::ring::{
    FEATURE_BITS, INTERRUPT_MASK, PENDING_SEND_SIZE, READ_INDEX, SendError, WRITE_INDEX,
};

/// Bytes whose accesses are watched together. Packets are made as long, so that each has its own.
const CHUNK: usize = 1024;
/// A payload that makes a packet of one chunk.
const PAYLOAD: usize = CHUNK - 24;
/// Chunks of data. One of them always stays free.
const CHUNKS: usize = PAGE_SIZE / CHUNK;

const FIELDS: [usize; 5] =
    [WRITE_INDEX, READ_INDEX, INTERRUPT_MASK, PENDING_SEND_SIZE, FEATURE_BITS];

/// A ring of one page of data in loom's memory: atomic fields, and data that may not be accessed from both sides at once.
#[derive(Clone, Debug)]
struct Watched(Arc<Parts>);

#[derive(Debug)]
struct Parts {
    fields: [AtomicU32; FIELDS.len()],
    data: Vec<Cell<[u8; CHUNK]>>,
}

impl Watched {
    fn new() -> Self {
        let fields = FIELDS.map(|_| AtomicU32::new(0));
        let data = (0..CHUNKS).map(|_| Cell::new([0; CHUNK])).collect();
        Self(Arc::new(Parts { fields, data }))
    }

    fn field(&self, offset: usize) -> &AtomicU32 {
        let at = FIELDS.iter().position(|field| *field == offset);
        &self.0.fields[at.expect("a ring uses no other fields")]
    }

    /// Calls `part(chunk, offset in chunk, offset in the caller's bytes)` for each byte.
    fn each(
        offset: usize,
        len: usize,
        mut part: impl FnMut(usize, core::ops::Range<usize>, usize),
    ) {
        let mut at = offset - PAGE_SIZE;
        let mut done = 0;
        while done < len {
            let within = at % CHUNK;
            let count = (CHUNK - within).min(len - done);
            part(at / CHUNK, within..within + count, done);
            at += count;
            done += count;
        }
    }
}

impl SharedMemory for Watched {
    fn size(&self) -> usize {
        2 * PAGE_SIZE
    }

    fn read(&self, offset: usize, out: &mut [u8]) -> Result<(), OutOfRange> {
        Self::each(offset, out.len(), |chunk, range, to| {
            let bytes = self.0.data[chunk].get();
            out[to..to + range.len()].copy_from_slice(&bytes[range]);
        });
        Ok(())
    }

    fn write(&self, offset: usize, data: &[u8]) -> Result<(), OutOfRange> {
        Self::each(offset, data.len(), |chunk, range, from| {
            let mut bytes = self.0.data[chunk].get();
            let len = range.len();
            bytes[range].copy_from_slice(&data[from..from + len]);
            self.0.data[chunk].set(bytes);
        });
        Ok(())
    }

    fn load_u32(&self, offset: usize) -> Result<u32, OutOfRange> {
        Ok(self.field(offset).load(Ordering::Acquire))
    }

    fn store_u32(&self, offset: usize, value: u32) -> Result<(), OutOfRange> {
        self.field(offset).store(value, Ordering::Release);
        Ok(())
    }
}

/// A doorbell that wakes the one who waits for it, now or later.
#[derive(Clone)]
struct Bell(Arc<Notify>);

impl Bell {
    fn new() -> Self {
        Self(Arc::new(Notify::new()))
    }

    fn wait(&self) {
        self.0.wait();
    }
}

impl Doorbell for Bell {
    fn ring(&self) {
        self.0.notify();
    }
}

/// One end of a channel and the bell it is woken by.
struct End {
    channel: Channel<Watched, Bell>,
    woken: Bell,
}

fn pair() -> (End, End) {
    let (up, down) = (Watched::new(), Watched::new());
    let (to_host, to_guest) = (Bell::new(), Bell::new());
    let guest = Channel::from_parts(up.clone(), down.clone(), to_host.clone()).unwrap();
    let host = Channel::from_parts(down, up, to_guest.clone()).unwrap();
    (End { channel: guest, woken: to_guest }, End { channel: host, woken: to_host })
}

impl End {
    /// Stages a packet that fills one chunk; false if the ring is full.
    fn stage(&mut self, id: u64) -> bool {
        let payload = [id as u8; PAYLOAD];
        let packet = Outgoing::InBand { transaction_id: id, completion: false, payload: &payload };
        match self.channel.stage(&packet) {
            Ok(()) => true,
            Err(SendError::Full { need }) => {
                assert_eq!(need, CHUNK);
                false
            }
            Err(error) => panic!("{error}"),
        }
    }

    /// Sends the packets `ids`, `batch` to a commit, and waits for space as a machine does.
    fn send(&mut self, ids: core::ops::Range<u64>, batch: u64) {
        for id in ids.clone() {
            while !self.stage(id) {
                if !self.channel.request_space(CHUNK).unwrap() {
                    self.woken.wait();
                }
            }
            if (id - ids.start + 1).is_multiple_of(batch) {
                self.channel.commit().unwrap();
            }
        }
        self.channel.commit().unwrap();
    }

    /// The next packet, if there is one: as it was sent, and with the id that is due.
    fn receive(&mut self, due: &mut u64) -> bool {
        let mut buffer = [0xff; PAYLOAD];
        let Some(packet) = self.channel.receive(&mut buffer).unwrap() else { return false };
        assert_eq!(packet.transaction_id, *due);
        assert!(packet.payload.iter().all(|byte| *byte == *due as u8), "a torn packet");
        *due += 1;
        true
    }

    /// Receives the packets `ids` as a machine does: masks, drains, and rests only when `arm` says so.
    fn drain(&mut self, ids: core::ops::Range<u64>, mask: bool, commits: bool) {
        let mut due = ids.start;
        loop {
            if mask {
                self.channel.mask().unwrap();
            }
            while self.receive(&mut due) {
                if commits {
                    self.channel.commit_read().unwrap();
                }
            }
            if self.channel.arm().unwrap() {
                continue;
            }
            if due == ids.end {
                return;
            }
            self.woken.wait();
        }
    }
}

/// Fills the ring, then lets one thread send `more` packets while the other receives all of them.
fn model(first: u64, more: u64, batch: u64, mask: bool, commits: bool) {
    loom::model(move || {
        let (mut guest, mut host) = pair();
        guest.send(1..1 + first, 1);
        let all = 1..1 + first + more;
        let sender = thread::spawn(move || {
            guest.send(1 + first..1 + first + more, batch);
            guest.channel.stats()
        });
        host.drain(all.clone(), mask, commits);
        let stats = sender.join().unwrap();
        assert_eq!(stats.sent_packets, all.end - all.start);
        assert_eq!(host.channel.stats().received_bytes, stats.sent_bytes);
    });
}

#[test]
fn a_reader_that_rests_is_woken() {
    model(0, 2, 1, false, false);
}

#[test]
fn a_reader_that_masks_while_it_works_is_woken() {
    model(0, 2, 1, true, false);
}

#[test]
fn a_batch_wakes_a_reader_that_rests() {
    model(0, 3, 2, true, true);
}

#[test]
fn a_reader_that_finds_something_rests_only_after_all_of_it() {
    model(1, 2, 1, true, true);
}

#[test]
fn a_writer_that_waits_for_space_is_woken() {
    model(CHUNKS as u64 - 1, 1, 1, false, true);
}

#[test]
fn a_writer_that_waits_is_woken_by_one_commit_for_all() {
    model(CHUNKS as u64 - 1, 2, 1, true, false);
}

#[test]
fn around_the_end_with_waits_on_both_sides() {
    model(CHUNKS as u64 - 2, 3, 2, true, true);
}

//! What carries payloads from one place to another: a ring of this crate, and what it is compared with.

use std::collections::VecDeque;
use std::sync::Mutex;

use vmbus::Channel;
use vmbus::memory::SharedPages;
use vmbus::packet::Outgoing;

use crate::shared::{Floor, Silent, channels};

/// Carries payloads in order. `publish` and `release` end a batch of writes and of reads.
pub trait Carrier {
    fn put(&mut self, payload: &[u8]);
    fn publish(&mut self) {}
    fn take(&mut self, out: &mut [u8]);
    fn release(&mut self) {}
}

impl Carrier for Floor {
    #[inline(always)]
    fn put(&mut self, payload: &[u8]) {
        Floor::put(self, payload);
    }

    #[inline(always)]
    fn take(&mut self, out: &mut [u8]) {
        Floor::take(self, out);
    }
}

/// Two ends of a channel.
pub struct Ring {
    near: Channel<SharedPages, Silent>,
    far: Channel<SharedPages, Silent>,
}

impl Ring {
    pub fn new(bytes: usize) -> Self {
        let (near, far) = channels(bytes);
        Self { near, far }
    }
}

impl Carrier for Ring {
    #[inline(always)]
    fn put(&mut self, payload: &[u8]) {
        self.near
            .stage(&Outgoing::InBand { transaction_id: 1, completion: false, payload })
            .expect("there is room");
    }

    #[inline(always)]
    fn publish(&mut self) {
        self.near.commit().expect("the ring is sound");
    }

    #[inline(always)]
    fn take(&mut self, out: &mut [u8]) {
        let packet = self.far.receive(out).expect("the ring is sound").expect("it was sent");
        assert!(packet.transaction_id == 1, "what was sent");
    }

    #[inline(always)]
    fn release(&mut self) {
        self.far.commit_read().expect("the ring is sound");
    }
}

/// A queue of boxes behind a lock: what one writes without thinking about it.
#[derive(Default)]
pub struct Boxes(Mutex<VecDeque<Box<[u8]>>>);

impl Carrier for Boxes {
    #[inline(always)]
    fn put(&mut self, payload: &[u8]) {
        self.0.lock().expect("nobody panics").push_back(payload.into());
    }

    #[inline(always)]
    fn take(&mut self, out: &mut [u8]) {
        let payload = self.0.lock().expect("nobody panics").pop_front().expect("it was sent");
        out[..payload.len()].copy_from_slice(&payload);
    }
}

/// A lock-free ring of bytes. It knows no packets and no signals: both sides know the length.
pub struct Bytes {
    near: rtrb::Producer<u8>,
    far: rtrb::Consumer<u8>,
    len: usize,
}

impl Bytes {
    pub fn new(bytes: usize, len: usize) -> Self {
        let (near, far) = rtrb::RingBuffer::new(bytes);
        Self { near, far, len }
    }
}

impl Carrier for Bytes {
    #[inline(always)]
    fn put(&mut self, payload: &[u8]) {
        self.near.push_entire_slice(payload).expect("there is room");
    }

    #[inline(always)]
    fn take(&mut self, out: &mut [u8]) {
        self.far.pop_entire_slice(&mut out[..self.len]).expect("it was sent");
    }
}

/// One batch from end to end.
#[inline(always)]
pub fn carry<C: Carrier>(carrier: &mut C, payload: &[u8], out: &mut [u8], batch: usize) {
    for _ in 0..batch {
        carrier.put(payload);
    }
    carrier.publish();
    for _ in 0..batch {
        carrier.take(out);
    }
    carrier.release();
}

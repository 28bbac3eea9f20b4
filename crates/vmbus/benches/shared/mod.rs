//! What the benchmarks of rings have in common.

use vmbus::memory::{PAGE_SIZE, SharedPages};
use vmbus::packet::Outgoing;
use vmbus::{Channel, Doorbell, Pfn};

/// A doorbell nobody hears.
#[derive(Debug)]
pub struct Silent;

impl Doorbell for Silent {
    fn ring(&self) {}
}

/// Bytes that a packet with a payload of `len` bytes takes in a ring.
pub fn step(len: usize) -> usize {
    Outgoing::InBand { transaction_id: 0, completion: false, payload: &[] }.ring_len()
        + len.next_multiple_of(8)
}

/// Both ends of a channel whose rings have `bytes` bytes of data each. The second one polls: it asks for no signals.
pub fn channels(bytes: usize) -> (Channel<SharedPages, Silent>, Channel<SharedPages, Silent>) {
    let ring = || {
        let frames: Vec<_> = (0..=(bytes / PAGE_SIZE) as u64).map(Pfn).collect();
        SharedPages::from_heap(&frames)
    };
    let (up, down) = (ring(), ring());
    let near = Channel::from_parts(up.clone(), down.clone(), Silent).expect("both are rings");
    let mut far = Channel::from_parts(down, up, Silent).expect("both are rings");
    far.mask().expect("the memory is there");
    (near, far)
}

/// The floor: a payload copied into a ring and out of it, and nothing else.
#[derive(Debug)]
pub struct Floor {
    ring: Vec<u8>,
    write: usize,
    read: usize,
}

impl Floor {
    pub fn new(bytes: usize) -> Self {
        Self { ring: vec![0; bytes], write: 0, read: 0 }
    }

    #[inline(always)]
    pub fn put(&mut self, payload: &[u8]) {
        let at = self.write;
        self.ring[at..at + payload.len()].copy_from_slice(payload);
        self.write = self.behind(at, payload.len());
        std::hint::black_box(&mut self.ring);
    }

    #[inline(always)]
    pub fn take(&mut self, out: &mut [u8]) {
        let at = self.read;
        out.copy_from_slice(&self.ring[at..at + out.len()]);
        self.read = self.behind(at, out.len());
        std::hint::black_box(out);
    }

    /// The place behind a payload, from the start again where the next one would not fit.
    #[inline(always)]
    fn behind(&self, at: usize, len: usize) -> usize {
        let next = at + step(len);
        if next + len > self.ring.len() { 0 } else { next }
    }
}

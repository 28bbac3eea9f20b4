//! One of the rings that a socket and the kernel share: one side produces entries, the other consumes them.

use rustix::net::xdp::XdpRingOffset;
use vmbus::memory::{SharedMemory, SharedPages};

/// A ring, seen from one of its ends.
#[derive(Debug)]
pub(super) struct Ring {
    memory: SharedPages,
    producer: usize,
    consumer: usize,
    flags: Option<usize>,
    entries: usize,
    /// Bytes of an entry.
    entry: usize,
    size: u32,
    /// How far this end has got.
    own: u32,
    /// How far this end has said that it has got.
    said: u32,
}

/// Bytes that a ring takes, of so many entries of `entry` bytes each.
pub(super) fn bytes(offsets: &XdpRingOffset, size: u32, entry: usize) -> usize {
    usize::try_from(offsets.desc).unwrap_or(usize::MAX).saturating_add(size as usize * entry)
}

impl Ring {
    /// A ring of `size` entries, a power of two, of `entry` bytes each.
    pub(super) fn new(
        memory: SharedPages,
        offsets: &XdpRingOffset,
        size: u32,
        entry: usize,
    ) -> Self {
        let at = |offset: u64| usize::try_from(offset).unwrap_or(usize::MAX);
        Self {
            memory,
            producer: at(offsets.producer),
            consumer: at(offsets.consumer),
            flags: offsets.flags.map(at),
            entries: at(offsets.desc),
            entry,
            size,
            own: 0,
            said: 0,
        }
    }

    fn word(&self, at: usize) -> u32 {
        // Words of the kernel are in this machine's order, those of shared memory little-endian.
        u32::from_ne_bytes(self.memory.load_u32(at).unwrap_or(0).to_le_bytes())
    }

    fn say(&mut self, at: usize) {
        let value = u32::from_le_bytes(self.own.to_ne_bytes());
        if self.memory.store_u32(at, value).is_err() {
            tracing::debug!(at, "a place outside its ring");
        }
        self.said = self.own;
    }

    /// For the producer: entries that can be written.
    pub(super) fn room(&self) -> u32 {
        self.size.saturating_sub(self.own.wrapping_sub(self.word(self.consumer)))
    }

    /// For the producer: entries that it has announced, and that are not consumed.
    pub(super) fn unconsumed(&self) -> u32 {
        self.said.wrapping_sub(self.word(self.consumer)).min(self.size)
    }

    /// For the consumer: entries that can be read. More than there are places is nonsense, and none.
    pub(super) fn ready(&self) -> u32 {
        let ready = self.word(self.producer).wrapping_sub(self.own);
        if ready <= self.size { ready } else { 0 }
    }

    /// Writes the next entry.
    pub(super) fn write(&mut self, bytes: &[u8]) {
        if self.memory.write(self.place(self.own), bytes).is_err() {
            tracing::debug!("an entry outside its ring");
        }
        self.own = self.own.wrapping_add(1);
    }

    /// Reads the next entry.
    pub(super) fn read(&mut self, bytes: &mut [u8]) {
        if self.memory.read(self.place(self.own), bytes).is_err() {
            tracing::debug!("an entry outside its ring");
        }
        self.own = self.own.wrapping_add(1);
    }

    /// For the producer: shows what was written.
    pub(super) fn publish(&mut self) {
        self.say(self.producer);
    }

    /// For the consumer: gives back what was read.
    pub(super) fn release(&mut self) {
        self.say(self.consumer);
    }

    /// For the producer: takes back what nobody has consumed, newest first; the entries go to `take`. Nobody may consume meanwhile.
    pub(super) fn take_back(&mut self, mut take: impl FnMut(&[u8])) {
        let consumed = self.word(self.consumer);
        let mut entry = [0; 16];
        while self.own != consumed && self.own.wrapping_sub(consumed) <= self.size {
            self.own = self.own.wrapping_sub(1);
            let Some(bytes) = entry.get_mut(..self.entry) else { break };
            if self.memory.read(self.place(self.own), bytes).is_ok() {
                take(bytes);
            }
        }
        self.publish();
    }

    /// Whether the kernel wants to be woken before it looks at the ring.
    pub(super) fn wants_wakeup(&self) -> bool {
        self.flags.is_none_or(|at| self.word(at) & 1 != 0)
    }

    fn place(&self, number: u32) -> usize {
        let mask = self.size.saturating_sub(1);
        self.entries + (number & mask) as usize * self.entry
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vmbus::Pfn;

    /// Both ends of a ring of four entries.
    fn ends() -> (Ring, Ring) {
        let memory = SharedPages::from_heap(&[Pfn(0)]);
        let offsets = XdpRingOffset { producer: 0, consumer: 64, desc: 128, flags: Some(192) };
        let end = || Ring::new(memory.clone(), &offsets, 4, 8);
        (end(), end())
    }

    fn read(ring: &mut Ring) -> u64 {
        let mut bytes = [0; 8];
        ring.read(&mut bytes);
        u64::from_ne_bytes(bytes)
    }

    #[test]
    fn entries_come_out_in_order_around_and_around() {
        let (mut producer, mut consumer) = ends();
        for number in 0..50_u64 {
            assert_eq!((producer.room(), consumer.ready()), (4, 0));
            for more in 0..3 {
                producer.write(&(number + more).to_ne_bytes());
            }
            assert_eq!((producer.room(), consumer.ready()), (1, 0), "not shown yet");
            producer.publish();
            assert_eq!((producer.unconsumed(), consumer.ready()), (3, 3));
            for more in 0..3 {
                assert_eq!(read(&mut consumer), number + more);
            }
            assert_eq!(producer.room(), 1, "not given back yet");
            consumer.release();
        }
    }

    #[test]
    fn what_nobody_has_consumed_is_taken_back() {
        let (mut producer, mut consumer) = ends();
        for number in 0..4_u64 {
            producer.write(&number.to_ne_bytes());
        }
        producer.publish();
        read(&mut consumer);
        consumer.release();
        let mut back = Vec::new();
        producer.take_back(|bytes| back.push(bytes[0]));
        assert_eq!((back, producer.unconsumed(), consumer.ready()), (vec![3, 2, 1], 0, 0));
        producer.write(&9_u64.to_ne_bytes());
        producer.publish();
        assert_eq!((consumer.ready(), read(&mut consumer)), (1, 9));
    }

    #[test]
    fn a_kernel_that_is_ahead_of_itself_is_not_believed() {
        let (mut producer, consumer) = ends();
        producer.own = 5;
        producer.publish();
        assert_eq!(consumer.ready(), 0);
        assert!(!consumer.wants_wakeup());
        consumer.memory.write(192, &1_u32.to_ne_bytes()).unwrap();
        assert!(consumer.wants_wakeup());
    }
}

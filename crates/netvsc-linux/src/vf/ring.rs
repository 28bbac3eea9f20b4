//! A receive ring of a packet socket: blocks that the kernel fills one after the other (TPACKET_V3).
//!
//! Offsets and lengths are the kernel's word, and looked at like anybody else's: what does not fit costs the frame or the rest
//! of its block, and is counted.

use vmbus::memory::{SharedMemory, SharedPages};

use super::frame::{HEADER, Tag};

/// A block is the reader's: the lowest bit of its status.
const READY: u32 = 1;
/// Offsets in a block's head.
const BLOCK_STATUS: usize = 8;
const BLOCK_FRAMES: usize = 12;
const BLOCK_FIRST: usize = 16;
/// Bytes of a frame's head, as far as it is read.
const HEAD: usize = 38;

/// A frame in a block: where it lies, and what the kernel says of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    /// Where its bytes start, in the ring.
    pub(super) at: usize,
    /// Bytes that are there.
    pub(super) len: usize,
    /// Bytes that there were; more if it did not fit.
    pub(super) whole: usize,
    /// The tag that was taken out of it.
    pub(super) tag: Option<Tag>,
}

/// The blocks, and how far they have been read.
#[derive(Debug)]
pub(super) struct Ring {
    memory: SharedPages,
    block_size: usize,
    blocks: usize,
    /// The block that is read, or next to be.
    block: usize,
    /// Frames of it that are still to be read, and where the next one's head is, once it has been begun.
    open: Option<(u32, usize)>,
}

/// What is next in the ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// A frame.
    Frame(Entry),
    /// The kernel contradicts itself; the rest of a block was given back.
    Nonsense,
    /// Nothing.
    Empty,
}

impl Ring {
    /// The ring in `memory`, whose blocks have so many bytes each.
    pub(super) fn new(memory: SharedPages, block_size: usize) -> Self {
        let blocks = memory.size() / block_size.max(1);
        Self { memory, block_size, blocks, block: 0, open: None }
    }

    /// The memory, to copy frames out of.
    pub(super) fn memory(&self) -> &SharedPages {
        &self.memory
    }

    /// The next frame. The one before it is the kernel's again, at the latest when all of its block have been read.
    pub(super) fn next(&mut self) -> Next {
        loop {
            let base = self.block * self.block_size;
            match self.open {
                None => {
                    let status = self.word(base + BLOCK_STATUS);
                    if status & READY == 0 {
                        return Next::Empty;
                    }
                    let frames = self.word(base + BLOCK_FRAMES);
                    self.open = Some((frames, self.word(base + BLOCK_FIRST) as usize));
                }
                Some((0, _)) => self.give_back(),
                Some((frames, offset)) => {
                    let Some((entry, step)) = self.entry(base, offset) else {
                        self.give_back();
                        return Next::Nonsense;
                    };
                    self.open = Some((frames - 1, offset + step));
                    return Next::Frame(entry);
                }
            }
        }
    }

    /// A frame whose head is at `offset` of the block that starts at `base`, and how far behind it the next one's is.
    fn entry(&self, base: usize, offset: usize) -> Option<(Entry, usize)> {
        if !offset.is_multiple_of(4) || offset.checked_add(HEAD)? > self.block_size {
            return None;
        }
        let mut head = [0; HEAD];
        self.memory.read(base + offset, &mut head).ok()?;
        let word = |at: usize| {
            let bytes = head.get(at..).and_then(<[u8]>::first_chunk);
            bytes.map_or(0, |bytes| u32::from_ne_bytes(*bytes))
        };
        let half = |at: usize| {
            let bytes = head.get(at..).and_then(<[u8]>::first_chunk);
            bytes.map_or(0, |bytes| u16::from_ne_bytes(*bytes))
        };
        let (step, len, whole, status) = (word(0) as usize, word(12), word(16), word(20));
        let start = offset + usize::from(half(24));
        // The header of offloads lies before the frame.
        let inside = start >= offset + HEAD + HEADER && start + len as usize <= self.block_size;
        if !inside || !step.is_multiple_of(4) {
            return None;
        }
        let tag = Tag::of(status, half(36), word(32) as u16);
        let entry = Entry { at: base + start, len: len as usize, whole: whole as usize, tag };
        Some((entry, step))
    }

    /// The kernel may fill this block again.
    fn give_back(&mut self) {
        let status = self.block * self.block_size + BLOCK_STATUS;
        if self.memory.store_u32(status, 0).is_err() {
            tracing::debug!(status, "a block outside its ring");
        }
        self.open = None;
        self.block = (self.block + 1) % self.blocks.max(1);
    }

    fn word(&self, at: usize) -> u32 {
        // Words of the kernel are in this machine's order, those of shared memory little-endian.
        let value = self.memory.load_u32(at).unwrap_or(0);
        u32::from_ne_bytes(value.to_le_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vmbus::Pfn;

    const BLOCK: usize = 4096;

    fn ring() -> Ring {
        Ring::new(SharedPages::from_heap(&[Pfn(0), Pfn(1)]), BLOCK)
    }

    /// Writes a frame's head, and says how far it is to the next.
    fn put(ring: &Ring, at: usize, bytes: &[u8], step: u32, tag: Option<(u16, u16)>) {
        let start = 64_u16;
        let mut head = vec![0; HEAD];
        head[0..4].copy_from_slice(&step.to_ne_bytes());
        head[12..16].copy_from_slice(&(bytes.len() as u32).to_ne_bytes());
        head[16..20].copy_from_slice(&(bytes.len() as u32).to_ne_bytes());
        if let Some((kind, control)) = tag {
            head[20..24].copy_from_slice(&0x50_u32.to_ne_bytes());
            head[32..36].copy_from_slice(&u32::from(control).to_ne_bytes());
            head[36..38].copy_from_slice(&kind.to_ne_bytes());
        }
        head[24..26].copy_from_slice(&start.to_ne_bytes());
        ring.memory.write(at, &head).unwrap();
        ring.memory.write(at + usize::from(start), bytes).unwrap();
    }

    fn hand_over(ring: &Ring, block: usize, frames: u32, first: u32) {
        let base = block * BLOCK;
        ring.memory.write(base + BLOCK_FRAMES, &frames.to_ne_bytes()).unwrap();
        ring.memory.write(base + BLOCK_FIRST, &first.to_ne_bytes()).unwrap();
        ring.memory.write(base + BLOCK_STATUS, &READY.to_ne_bytes()).unwrap();
    }

    fn taken(ring: &mut Ring) -> Entry {
        match ring.next() {
            Next::Frame(entry) => entry,
            other => panic!("no frame: {other:?}"),
        }
    }

    #[test]
    fn frames_come_in_order_and_blocks_go_back_one_by_one() {
        let mut ring = ring();
        assert_eq!(ring.next(), Next::Empty);
        put(&ring, 48, b"first frame", 128, None);
        put(&ring, 176, b"second", 0, Some((0x88a8, 0x6005)));
        hand_over(&ring, 0, 2, 48);
        put(&ring, BLOCK + 48, b"third", 0, Some((0x8100, 7)));
        hand_over(&ring, 1, 1, 48);
        let entry = taken(&mut ring);
        assert_eq!((entry.at, entry.len, entry.whole, entry.tag), (112, 11, 11, None));
        let entry = taken(&mut ring);
        assert_eq!((entry.at, entry.tag), (240, Some(Tag { kind: 0x88a8, control: 0x6005 })));
        assert_eq!(ring.word(BLOCK_STATUS), READY, "not given back before all are read");
        let entry = taken(&mut ring);
        assert_eq!((entry.at, entry.tag), (BLOCK + 112, Some(Tag { kind: 0x8100, control: 7 })));
        assert_eq!(ring.word(BLOCK_STATUS), 0);
        assert_eq!(ring.next(), Next::Empty);
        assert_eq!(ring.word(BLOCK + BLOCK_STATUS), 0);
        // Around.
        put(&ring, 48, b"fourth", 0, None);
        hand_over(&ring, 0, 1, 48);
        assert_eq!(taken(&mut ring).len, 6);
    }

    #[test]
    fn a_block_without_frames_goes_back() {
        let mut ring = ring();
        hand_over(&ring, 0, 0, 48);
        assert_eq!(ring.next(), Next::Empty);
        assert_eq!(ring.word(BLOCK_STATUS), 0);
    }

    #[test]
    fn what_does_not_lie_in_its_block_costs_the_rest_of_it() {
        for (first, bytes, step) in
            [(4090_u32, 0, 0), (47, 1, 0), (u32::MAX - 3, 1, 0), (4000, 100, 0), (48, 1, 3)]
        {
            let mut ring = ring();
            if first < 4090 {
                put(&ring, first as usize, &vec![1; bytes], step, None);
            }
            hand_over(&ring, 0, 2, first);
            hand_over(&ring, 1, 0, 48);
            assert_eq!(ring.next(), Next::Nonsense, "{first} {bytes} {step}");
            assert_eq!((ring.word(BLOCK_STATUS), ring.next()), (0, Next::Empty));
        }
        // A frame may not begin before its own head ends.
        let mut ring = ring();
        put(&ring, 48, b"frame", 0, None);
        ring.memory.write(48 + 24, &40_u16.to_ne_bytes()).unwrap();
        hand_over(&ring, 0, 1, 48);
        assert_eq!(ring.next(), Next::Nonsense);
    }
}

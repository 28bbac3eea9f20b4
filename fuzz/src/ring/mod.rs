//! Rings: both ends among honest peers, and each end against a peer that changes what it likes, whenever it likes.

mod clean;
mod hostile;
mod memory;

use vmbus::Pfn;
use vmbus::packet::{GpaRange, Outgoing, TransferRange};

use crate::script::Script;

/// A byte that chooses between a pair of honest ends and one end with a hostile peer, then what is done, one byte each with
/// what belongs to it.
pub fn vmbus_ring(input: &[u8]) {
    let mut script = Script::new(input);
    let first = script.byte();
    let pages = 1 + usize::from(first >> 1 & 1);
    if first & 1 == 0 {
        clean::run(&mut script, pages, first & 4 != 0);
    } else {
        hostile::run(&mut script, pages, first & 4 != 0, first & 8 != 0);
    }
}

/// A packet to write, made of a few bytes of a script.
struct Draft {
    kind: u8,
    transaction_id: u64,
    frames: Vec<Pfn>,
    ranges: Vec<TransferRange>,
    payload: Vec<u8>,
}

impl Draft {
    /// Two bytes of form and length decide; the contents are numbered on, so that no two packets are alike.
    fn read(script: &mut Script<'_>, number: u64) -> Self {
        let form = script.byte();
        // Short ones mostly; now and then one as long as the ring.
        let len = match usize::from(script.byte()) {
            len @ 0..240 => len,
            len => (len - 239) * 300,
        };
        let count = 1 + usize::from(form >> 3);
        let payload = (0..len).map(|at| (number as usize + at) as u8).collect();
        let frames = (0..count as u64).map(|frame| Pfn(number << 8 | frame)).collect();
        let range = |at: usize| TransferRange { byte_count: at as u32, byte_offset: number as u32 };
        let ranges = (0..count).map(range).collect();
        Self { kind: form & 7, transaction_id: number, frames, ranges, payload }
    }

    fn range(&self) -> GpaRange<'_> {
        // From the second byte of the first page to the first byte of the last.
        let bytes = match self.frames.len() as u32 {
            1 => 1,
            pages => (pages - 2) * 4096 + 4096,
        };
        GpaRange { byte_count: bytes, byte_offset: 1, frames: &self.frames }
    }

    /// Bytes that the packet takes in a ring.
    fn ring_len(&self) -> usize {
        let mut len = 0;
        self.with(|packet| len = packet.ring_len());
        len
    }

    /// Hands the packet on: it borrows from a range that is made for it.
    fn with<T>(&self, act: impl FnOnce(&Outgoing<'_>) -> T) -> T {
        let Self { transaction_id, ref payload, ref ranges, .. } = *self;
        let range = [self.range()];
        act(&match self.kind {
            0..4 => Outgoing::InBand { transaction_id, completion: self.kind % 2 == 1, payload },
            4 => Outgoing::Completion { transaction_id, payload },
            5 => Outgoing::GpaDirect { transaction_id, ranges: &range, payload },
            _ => Outgoing::TransferPages { transaction_id, pageset: 0xcafe, ranges, payload },
        })
    }
}

//! How the send buffer is divided, and which parts of it one queue has under way.
//!
//! A slot is as many sections as the longest frame takes: one, unless the MTU is large. Behind the slots for frames there
//! may be some long ones for segments that the host cuts. Slot 0 is kept for control messages, so that they get through
//! whatever the frames do.
//!
//! A queue always keeps a few slots, so that it can go on by itself: if it has none free, some of its own are under way,
//! and their completion wakes it. What it has beyond that goes back to the [`Pool`] that all queues share.

use alloc::sync::Arc;
use alloc::vec::Vec;

use super::pool::Pool;

/// The slot of control messages.
pub(super) const CONTROL_SLOT: u32 = 0;
/// Slots that a queue always keeps.
const LEAST_KEPT: usize = 2;
/// Slots that a queue holds at most while they are free.
const MOST_KEPT: usize = 8;
/// Long slots at most, unless there are more queues: more segments than these are not on their way at once.
const MOST_LONG: usize = 32;
/// Of the sections, this share is left for long slots.
const LONG_SHARE: usize = 2;

/// How the buffer is divided. Offsets and sizes in bytes.
#[derive(Clone, Copy, Debug, Default)]
struct Division {
    section: usize,
    sections: usize,
    sections_per_slot: usize,
    /// Slots for frames and control messages.
    short: u32,
    sections_per_long: usize,
    /// Long slots, numbered behind the short ones.
    long: u32,
}

#[derive(Clone, Copy, Debug, Default)]
struct Slot {
    generation: u32,
    in_flight: bool,
}

/// The slots of one queue.
#[derive(Debug)]
pub(super) struct Slots {
    division: Division,
    /// Of every slot that there is, what this queue did with it.
    states: Vec<Slot>,
    in_flight: usize,
    free: Vec<u32>,
    pool: Arc<Pool>,
    free_long: Vec<u32>,
    long_pool: Arc<Pool>,
}

impl Slots {
    /// None, until the host has divided the buffer.
    pub(super) fn none() -> Self {
        Self {
            division: Division::default(),
            states: Vec::new(),
            in_flight: 0,
            free: Vec::new(),
            pool: Arc::new(Pool::new(0..0)),
            free_long: Vec::new(),
            long_pool: Arc::new(Pool::new(0..0)),
        }
    }

    /// A buffer of `buffer` bytes is divided into sections of this size, and `most` bytes are to fit into a slot.
    /// `scattered`: whether what is longer than a section can be sent.
    pub(super) fn divide(
        &mut self,
        buffer: usize,
        section: usize,
        most: usize,
        scattered: bool,
    ) -> Option<()> {
        let sections = buffer.checked_div(section)?;
        let sections_per_slot = most.div_ceil(section);
        let short = u32::try_from(sections / sections_per_slot).ok()?;
        if short < 2 || sections_per_slot > 1 && !scattered {
            return None;
        }
        let (sections_per_long, long) = (0, 0);
        self.division =
            Division { section, sections, sections_per_slot, short, sections_per_long, long };
        self.settle();
        Some(())
    }

    /// Leaves a share of the buffer for slots of `most` bytes, or of less, so that there is one for each of `queues`: a queue
    /// without any would wait for ever. Nothing may be under way but control messages.
    pub(super) fn make_long(&mut self, most: usize, queues: usize) {
        let Division { section, sections, sections_per_slot, .. } = self.division;
        let (queues, share) = (queues.max(1), sections / LONG_SHARE);
        let sections_per_long = most.div_ceil(section).min(share / queues);
        // What is no longer than a frame needs no slot of its own.
        if sections_per_long <= sections_per_slot {
            return;
        }
        let count = (share / sections_per_long).min(MOST_LONG.max(queues));
        let left = (sections - count * sections_per_long) / sections_per_slot;
        if left < 1 + LEAST_KEPT * queues || self.in_flight > usize::from(self.control_busy()) {
            return;
        }
        self.division.short = left as u32;
        (self.division.sections_per_long, self.division.long) = (sections_per_long, count as u32);
        self.settle();
    }

    /// Fills the pools by the division.
    fn settle(&mut self) {
        let Division { short, long, .. } = self.division;
        self.states.resize((short + long) as usize, Slot::default());
        self.pool = Arc::new(Pool::new(CONTROL_SLOT + 1..short));
        self.long_pool = Arc::new(Pool::new(short..short + long));
        self.keep();
    }

    /// Takes the slots that a queue always has.
    fn keep(&mut self) {
        self.free = Vec::with_capacity(MOST_KEPT);
        self.free_long = Vec::with_capacity(2);
        self.refill(LEAST_KEPT);
        self.long_pool.take(&mut self.free_long, 1);
    }

    /// Slots of the same buffer for another queue; `None` if there are not enough.
    pub(super) fn sibling(&self) -> Option<Self> {
        let mut slots = Self {
            division: self.division,
            states: alloc::vec![Slot::default(); self.states.len()],
            in_flight: 0,
            free: Vec::new(),
            pool: self.pool.clone(),
            free_long: Vec::new(),
            long_pool: self.long_pool.clone(),
        };
        slots.keep();
        if slots.free.is_empty() || slots.division.long > 0 && slots.free_long.is_empty() {
            slots.give_up();
            return None;
        }
        Some(slots)
    }

    /// Whether [`Slots::sibling`] would find enough.
    pub(super) fn can_share(&self) -> bool {
        self.pool.has_free() && (self.division.long == 0 || self.long_pool.has_free())
    }

    /// Gives everything that is free to the other queues, for good.
    pub(super) fn give_up(&mut self) {
        for slot in self.free.drain(..) {
            self.pool.give(slot);
        }
        for slot in self.free_long.drain(..) {
            self.long_pool.give(slot);
        }
    }

    /// A free slot for frames.
    #[inline]
    pub(super) fn take(&mut self) -> Option<u32> {
        if self.free.is_empty() {
            self.refill(MOST_KEPT / 2);
        }
        self.free.pop()
    }

    fn refill(&mut self, count: usize) {
        self.pool.take(&mut self.free, count);
        // The first of the buffer first.
        self.free.reverse();
    }

    /// A free long slot.
    pub(super) fn take_long(&mut self) -> Option<u32> {
        if self.free_long.is_empty() {
            self.long_pool.take(&mut self.free_long, 1);
        }
        self.free_long.pop()
    }

    /// A slot was taken and not used.
    #[inline]
    pub(super) fn put_back(&mut self, slot: u32) {
        let (free, pool, most) = if slot < self.division.short {
            (&mut self.free, &self.pool, MOST_KEPT)
        } else {
            (&mut self.free_long, &self.long_pool, 1)
        };
        if free.len() < most { free.push(slot) } else { pool.give(slot) }
    }

    /// Whether a frame would find a slot.
    pub(super) fn has_free(&self) -> bool {
        !self.free.is_empty() || self.pool.has_free()
    }

    /// Slots for frames that are neither free here nor in the pool: with frames under way, or with another queue.
    pub(super) fn busy(&self) -> usize {
        let frames = (self.division.short as usize).saturating_sub(1);
        frames.saturating_sub(self.free.len() + self.pool.count_free())
    }

    /// Slots that are kept although they are free.
    pub(super) fn kept(&self) -> usize {
        self.free.len()
    }

    /// Whether there are long slots, and how many bytes they have.
    pub(super) fn long_size(&self) -> usize {
        self.division.section * self.division.sections_per_long
    }

    /// Bytes of a section.
    pub(super) fn section(&self) -> usize {
        self.division.section
    }

    /// Bytes of a slot for frames.
    #[inline]
    pub(super) fn size(&self) -> usize {
        self.division.section * self.division.sections_per_slot
    }

    /// Number of the section that a slot starts with.
    #[inline]
    pub(super) fn section_of(&self, slot: u32) -> u32 {
        let Division { sections_per_slot, sections_per_long, short, .. } = self.division;
        match slot.checked_sub(short) {
            None if seeded!("share-sections") => (slot & !1) * sections_per_slot as u32,
            None => slot * sections_per_slot as u32,
            Some(long) => short * sections_per_slot as u32 + long * sections_per_long as u32,
        }
    }

    /// Byte offset of a slot.
    #[inline]
    pub(super) fn start_of(&self, slot: u32) -> usize {
        self.section_of(slot) as usize * self.division.section
    }

    /// Whether nothing is under way.
    pub(super) fn is_idle(&self) -> bool {
        self.in_flight == 0
    }

    /// Whether a control message is under way.
    pub(super) fn control_busy(&self) -> bool {
        self.states.first().is_some_and(|slot| slot.in_flight)
    }

    /// The transaction id for the next use of a slot: the slot's number plus one, with the slot's generation above it, so that
    /// a completion which comes twice is recognised.
    #[inline]
    pub(super) fn next_id(&self, slot: u32) -> u64 {
        let generation = self.states.get(slot as usize).map_or(0, |state| state.generation);
        // 31 bits, so that no id looks like one of a protocol message.
        let generation = generation.wrapping_add(1) & (u32::MAX >> 1);
        u64::from(generation) << 32 | (u64::from(slot) + 1)
    }

    /// A slot was sent under its next id.
    #[inline]
    pub(super) fn sent(&mut self, slot: u32, transaction_id: u64) {
        if let Some(state) = self.states.get_mut(slot as usize) {
            *state = Slot { generation: (transaction_id >> 32) as u32, in_flight: true };
            self.in_flight += 1;
        }
    }

    /// The host completed `transaction_id`. The slot, if it is one that was under way.
    #[inline]
    pub(super) fn completed(&mut self, transaction_id: u64) -> Option<u32> {
        let slot = (transaction_id as u32).checked_sub(1)?;
        let state = self.states.get_mut(slot as usize)?;
        if !state.in_flight || transaction_id >> 32 != u64::from(state.generation) {
            return None;
        }
        state.in_flight = false;
        self.in_flight -= 1;
        if slot != CONTROL_SLOT && !(transaction_id >> 34 & 1 == 1 && seeded!("leak-section")) {
            self.put_back(slot);
        }
        Some(slot)
    }
}

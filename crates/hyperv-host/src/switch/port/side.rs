//! One side of a port: whether anybody receives there, and the frames that wait for it.

use std::collections::VecDeque;

use super::super::Uncut;
use super::super::counters::SideCounters;

/// Whether frames can be delivered on a side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SideState {
    /// There is no such side: a VF that is not attached. Frames for it go to the synthetic side.
    Absent,
    /// The side is there and nobody receives: frames for it are dropped and counted.
    Down,
    /// Frames are queued for the guest.
    Up,
}

/// A frame that waited for the guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Queued {
    /// The frame. Give it back with [`SwitchPort::recycle`](super::SwitchPort::recycle).
    pub frame: Vec<u8>,
    /// The hash that chose its queue, if it has one.
    pub hash: Option<u32>,
    /// How it is to be cut, if it is a segment: for a VF whose driver cuts, or a NIC that gathers.
    pub uncut: Option<Uncut>,
}

#[derive(Debug, Default)]
struct SideQueue {
    frames: VecDeque<Queued>,
    bytes: usize,
}

impl SideQueue {
    fn pop(&mut self) -> Option<Queued> {
        let queued = self.frames.pop_front()?;
        self.bytes -= queued.frame.len();
        Some(queued)
    }

    fn is_full(&self, more: usize, capacity: usize) -> bool {
        !self.frames.is_empty() && self.bytes + more > capacity
    }
}

#[derive(Debug)]
pub(super) struct Side {
    pub(super) state: SideState,
    /// At least one.
    queues: Vec<SideQueue>,
    /// Frames in all queues.
    pub(super) waiting: usize,
    /// Something changed that this side's service should look at.
    pub(super) wake: bool,
    /// A frame of this side was turned away.
    pub(super) turned_away: bool,
    pub(super) counters: SideCounters,
}

impl Side {
    pub(super) fn new(state: SideState) -> Self {
        Self {
            state,
            queues: vec![SideQueue::default()],
            waiting: 0,
            wake: false,
            turned_away: false,
            counters: SideCounters {
                from_guest: 0,
                from_guest_segments: 0,
                from_guest_bytes: 0,
                to_guest: 0,
                to_guest_bytes: 0,
                busy: 0,
                queued: 0,
            },
        }
    }

    /// Frames for one queue wait in it as long as they have no more bytes than that together, or there is only one.
    pub(super) fn is_full(&self, queue: u16, more: usize, capacity: usize) -> bool {
        self.queues[self.number(queue)].is_full(more, capacity)
    }

    /// Has this many queues from now on, all empty. What waited in the old ones is the caller's.
    pub(super) fn set_queues(&mut self, count: usize) -> impl Iterator<Item = Queued> + use<> {
        let old = std::mem::take(&mut self.queues);
        self.queues.resize_with(count, SideQueue::default);
        self.waiting = 0;
        old.into_iter().flat_map(|queue| queue.frames)
    }

    /// The next frame in a queue, left in place.
    pub(super) fn front(&self, queue: u16) -> Option<&Queued> {
        self.queues.get(usize::from(queue))?.frames.front()
    }

    /// What happened so far.
    pub(super) fn counted(&self) -> SideCounters {
        SideCounters { queued: self.waiting as u64, ..self.counters }
    }

    /// A number of a queue that exists.
    fn number(&self, queue: u16) -> usize {
        usize::from(queue).min(self.queues.len() - 1)
    }

    pub(super) fn push(&mut self, queue: u16, queued: Queued) {
        let number = self.number(queue);
        let queue = &mut self.queues[number];
        queue.bytes += queued.frame.len();
        queue.frames.push_back(queued);
        self.waiting += 1;
        self.wake = true;
    }

    pub(super) fn push_front(&mut self, queue: u16, queued: Queued) {
        let number = self.number(queue);
        let queue = &mut self.queues[number];
        queue.bytes += queued.frame.len();
        queue.frames.push_front(queued);
        self.waiting += 1;
    }

    pub(super) fn pop_from(&mut self, queue: u16) -> Option<Queued> {
        let queued = self.queues.get_mut(usize::from(queue))?.pop()?;
        self.waiting -= 1;
        Some(queued)
    }

    /// Takes any frame; those of one queue in their order.
    pub(super) fn pop(&mut self) -> Option<Queued> {
        let queued = self.queues.iter_mut().find_map(SideQueue::pop)?;
        self.waiting -= 1;
        Some(queued)
    }
}

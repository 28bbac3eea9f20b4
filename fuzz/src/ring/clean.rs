//! Two honest ends: whatever they do, everything arrives, once, in order, and nobody sleeps through it.

use std::collections::VecDeque;

use vmbus::channel::SignalFlag;
use vmbus::memory::{PAGE_SIZE, PageList, SharedMemory, SharedPages};
use vmbus::packet::{Packet, PacketKind};
use vmbus::ring::{SendError, SlotError, ViewKind};
use vmbus::{Channel, Pfn};

use super::Draft;
use crate::script::Script;

/// One end of the channel, and what the other has sent it.
struct End<M> {
    channel: Channel<M>,
    bell: SignalFlag,
    /// Went to rest and has not been rung since.
    resting: bool,
    /// Waits for this much space and has not been rung since.
    waiting: Option<usize>,
    /// Written by the other end, and not shown yet.
    staged: VecDeque<Draft>,
    /// Shown by the other end, and not read yet.
    shown: VecDeque<Draft>,
    /// Bytes of packets to this end whose space is not the writer's again.
    used: usize,
    /// Bytes of packets that were read and not given back.
    unreturned: usize,
}

impl<M: SharedMemory> End<M> {
    fn new(tx: M, rx: M, rings: SignalFlag, bell: SignalFlag) -> Self {
        Self {
            channel: Channel::from_parts(tx, rx, rings).expect("rings"),
            bell,
            resting: false,
            waiting: None,
            staged: VecDeque::new(),
            shown: VecDeque::new(),
            used: 0,
            unreturned: 0,
        }
    }

    /// The doorbell wakes from rest and from the wait for space alike.
    fn hear(&mut self) {
        if self.bell.take() {
            self.resting = false;
            self.waiting = None;
        }
    }

    /// What a read gave is the oldest that was shown.
    fn took(&mut self, len: usize) -> Draft {
        self.unreturned += len;
        self.shown.pop_front().expect("nothing is read that was not shown")
    }

    fn returned(&mut self) {
        self.used -= std::mem::take(&mut self.unreturned);
    }
}

/// The pages with these frames, once as they lie, once one by one.
fn memory(pages: usize, first: u64) -> (SharedPages, PageList) {
    let frames: Vec<_> = (0..=pages as u64).map(|page| Pfn(first + page)).collect();
    let memory = SharedPages::from_heap(&frames);
    (memory.clone(), PageList::new([memory]))
}

pub(super) fn run(script: &mut Script<'_>, pages: usize, scattered: bool) {
    let (up, up_list) = memory(pages, 0);
    let (down, down_list) = memory(pages, 100);
    let (to_guest, to_host) = (SignalFlag::new(), SignalFlag::new());
    let guest = End::new(up.clone(), down.clone(), to_host.clone(), to_guest.clone());
    if scattered {
        let host = End::new(down_list, up_list, to_guest, to_host);
        play(script, guest, host, pages * PAGE_SIZE);
    } else {
        let host = End::new(down, up, to_guest, to_host);
        play(script, guest, host, pages * PAGE_SIZE);
    }
}

fn play<A: SharedMemory, B: SharedMemory>(
    script: &mut Script<'_>,
    mut guest: End<A>,
    mut host: End<B>,
    size: usize,
) {
    let mut number = 0;
    while !script.is_over() {
        let step = script.byte();
        number += 1;
        if step & 0x80 == 0 {
            act(script, step & 0x7f, &mut guest, &mut host, size, number);
        } else {
            act(script, step & 0x7f, &mut host, &mut guest, size, number);
        }
        guest.hear();
        host.hear();
        for (resting, shown) in [(guest.resting, &guest.shown), (host.resting, &host.shown)] {
            assert!(!resting || shown.is_empty(), "nobody rings though there is something to read");
        }
    }
    finish(&mut guest, &mut host, size);
    finish(&mut host, &mut guest, size);
}

/// One step of one end.
fn act<A: SharedMemory, B: SharedMemory>(
    script: &mut Script<'_>,
    step: u8,
    end: &mut End<A>,
    other: &mut End<B>,
    size: usize,
    number: u64,
) {
    match step % 10 {
        0 | 1 => stage(end, other, Draft::read(script, number), size),
        2 => {
            end.channel.commit().expect("an honest peer");
            other.shown.append(&mut other.staged);
        }
        3 => {
            receive(end);
        }
        4 => look(end, script.byte()),
        5 => {
            end.channel.commit_read().expect("an honest peer");
            end.returned();
        }
        6 => arm(end),
        7 => {
            end.channel.mask().expect("memory");
            end.resting = false;
        }
        8 => build(script, end, other, size, number),
        _ => wait(end, other, Draft::read(script, number), size),
    }
}

fn arm<M: SharedMemory>(end: &mut End<M>) {
    let more = end.channel.arm().expect("an honest peer");
    end.returned();
    assert_eq!(more, !end.shown.is_empty());
    end.resting = !more;
}

/// Whether a packet of this size fits between what is used and the one word that stays free.
fn fits<M>(other: &End<M>, len: usize, size: usize) -> bool {
    other.used + len + 8 <= size
}

fn stage<A: SharedMemory, B: SharedMemory>(
    end: &mut End<A>,
    other: &mut End<B>,
    draft: Draft,
    size: usize,
) {
    let (len, result) = draft.with(|packet| (packet.ring_len(), end.channel.stage(packet)));
    match result {
        Ok(()) => {
            assert!(fits(other, len, size));
            other.used += len;
            other.staged.push_back(draft);
            end.waiting = None;
        }
        Err(SendError::TooLarge { .. }) => assert!(len > size - 8),
        Err(SendError::Full { need }) => {
            assert_eq!(need, len);
            assert!(!fits(other, len, size), "{len} bytes beside {} in use", other.used);
        }
        Err(SendError::Ring(error)) => panic!("{error}"),
    }
}

/// Builds a packet in the ring, and drops it half-way now and then.
fn build<A: SharedMemory, B: SharedMemory>(
    script: &mut Script<'_>,
    end: &mut End<A>,
    other: &mut End<B>,
    size: usize,
    number: u64,
) {
    let mut draft = Draft::read(script, number);
    let (room, pieces, finish) = (script.byte(), script.below(4), script.byte() & 1 == 0);
    let sofar = draft.payload.clone();
    let head = draft.ring_len();
    let built = draft.with(|packet| {
        let mut slot = match end.channel.reserve(packet, room.into()) {
            Ok(slot) => slot,
            Err(error) => {
                assert!(!matches!(error, SendError::Ring(_)), "{error}");
                return None;
            }
        };
        // Room was found, whether it is used or not: nobody rings for it any more.
        end.waiting = None;
        let mut payload = sofar;
        for piece in 0..pieces {
            let left = slot.room();
            let more = vec![piece; left / 2 + 1];
            match slot.append(&more) {
                Ok(()) => payload.extend(more),
                Err(SlotError::Room { len, room }) => assert!(len > room && room == left),
                Err(SlotError::Ring(error)) => panic!("{error}"),
            }
        }
        if finish {
            slot.finish().expect("an honest peer");
            return Some(payload);
        }
        None
    });
    if let Some(payload) = built {
        draft.payload = payload;
        let len = draft.ring_len();
        assert!(len >= head && fits(other, len, size));
        other.used += len;
        other.staged.push_back(draft);
    }
}

/// Asks to be rung when there is room.
fn wait<A: SharedMemory, B: SharedMemory>(
    end: &mut End<A>,
    other: &mut End<B>,
    draft: Draft,
    size: usize,
) {
    let need = draft.ring_len();
    if need > size - 8 {
        return;
    }
    let there = end.channel.request_space(need).expect("an honest peer");
    other.shown.append(&mut other.staged);
    assert_eq!(there, fits(other, need, size));
    end.waiting = (!there).then_some(need);
}

fn receive<M: SharedMemory>(end: &mut End<M>) -> bool {
    let mut buffer = vec![0; 3 * PAGE_SIZE];
    let before = end.channel.stats().received_bytes;
    let packet = end.channel.receive(&mut buffer).expect("an honest peer");
    let Some(packet) = packet else {
        assert!(end.shown.is_empty(), "{} packets are shown", end.shown.len());
        return false;
    };
    let len = (end.channel.stats().received_bytes - before) as usize;
    let draft = end.took(len);
    assert_eq!(draft.ring_len(), len);
    check(&packet, &draft);
    true
}

fn check(packet: &Packet<'_>, draft: &Draft) {
    assert_eq!(packet.transaction_id, draft.transaction_id);
    match packet.kind {
        PacketKind::InBand => {
            assert!(draft.kind < 4);
            assert_eq!(packet.completion_requested, draft.kind % 2 == 1);
        }
        PacketKind::Completion => assert_eq!(draft.kind, 4),
        PacketKind::GpaDirect(ranges) => {
            assert_eq!(draft.kind, 5);
            let range = ranges.iter().next().expect("a range");
            assert_eq!(range.frames().collect::<Vec<_>>(), draft.frames);
        }
        PacketKind::TransferPages { pageset, ranges } => {
            assert!(draft.kind > 5 && pageset == 0xcafe);
            assert_eq!(ranges.iter().collect::<Vec<_>>(), draft.ranges);
        }
    }
    let (payload, padding) = packet.payload.split_at(draft.payload.len());
    assert_eq!(payload, draft.payload);
    assert!(padding.len() < 8 && padding.iter().all(|byte| *byte == 0));
}

/// Looks at a packet where it lies, takes some of it, and moves on or leaves it.
fn look<M: SharedMemory>(end: &mut End<M>, how: u8) {
    let before = end.channel.stats().received_bytes;
    let Some(mut view) = end.channel.peek().expect("an honest peer") else {
        assert!(end.shown.is_empty());
        return;
    };
    let draft = end.shown.front().expect("nothing is seen that was not shown");
    assert_eq!(view.transaction_id(), draft.transaction_id);
    let mut payload = vec![0; (draft.payload.len() + 7).min(usize::from(how) * 8)];
    let taken = view.take(&mut payload).expect("an honest peer").min(draft.payload.len());
    assert_eq!(payload[..taken], draft.payload[..taken]);
    if how & 2 != 0 {
        while let Some(range) = view.next_range().expect("an honest peer") {
            let left = view.ranges_left();
            assert_eq!(range, draft.ranges[draft.ranges.len() - 1 - left]);
        }
        while view.next_gpa_range().expect("an honest peer").is_some() {
            assert_eq!(view.next_frame(), Ok(Some(draft.frames[0])));
        }
    }
    assert_eq!(matches!(view.kind(), ViewKind::InBand), draft.kind < 4);
    if how & 1 == 0 {
        view.advance();
        let len = (end.channel.stats().received_bytes - before) as usize;
        let draft = end.took(len);
        assert_eq!(draft.ring_len(), len);
    }
}

/// Everything that one end sent arrives, and who waits for space is rung.
fn finish<A: SharedMemory, B: SharedMemory>(end: &mut End<A>, other: &mut End<B>, size: usize) {
    end.channel.commit().expect("an honest peer");
    other.shown.append(&mut other.staged);
    while receive(other) {}
    assert!(other.shown.is_empty());
    arm(other);
    assert_eq!(other.used, 0);
    end.hear();
    assert_eq!(end.waiting, None, "nobody rings though there is room");
    let stats = (end.channel.stats(), other.channel.stats());
    assert_eq!(stats.0.sent_bytes, stats.1.received_bytes);
    assert_eq!((stats.1.bad_packets, stats.0.sent_packets), (0, stats.1.received_packets));
    assert!(end.channel.writable(size - 8).expect("an honest peer"));
}

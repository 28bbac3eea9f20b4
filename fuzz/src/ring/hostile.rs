//! One end whose peer writes what it likes between any two of its accesses.

use std::rc::Rc;

use vmbus::channel::SignalFlag;
use vmbus::memory::{PAGE_SIZE, SharedPages};
use vmbus::packet::{Packet, PacketKind};
use vmbus::ring::{ReceiveError, RingError, SendError, SlotError};
use vmbus::{Channel, Pfn};

use super::Draft;
use super::memory::{Fickle, Peer};
use crate::script::Script;

/// A length, what this end does in so many bytes, and behind them what the peer does.
pub(super) fn run(script: &mut Script<'_>, pages: usize, words: bool, strict: bool) {
    let mut steps = Script::new(script.counted());
    let peer = Peer::new(script.take(usize::MAX));
    let ring = |first: u64| Fickle {
        pages: SharedPages::from_heap(
            &(0..=pages as u64).map(|page| Pfn(first + page)).collect::<Vec<_>>(),
        ),
        peer: Rc::clone(&peer),
        words,
    };
    let (tx, rx) = (ring(0), ring(100));
    let mut channel = match Channel::from_parts(tx.clone(), rx.clone(), SignalFlag::new()) {
        Ok(channel) => channel,
        Err(error) => return legal(&error),
    };
    channel.check_trailers(strict);
    let size = pages * PAGE_SIZE;
    let mut number = 0;
    peer.take_accesses();
    while !steps.is_over() {
        let step = steps.byte();
        number += 1;
        if step & 0x80 != 0 {
            tx.change();
        }
        if step & 0x40 != 0 {
            rx.change();
        }
        peer.take_fetched();
        act(&mut channel, &mut steps, step & 0x3f, number, size);
        read_once(&peer);
        // A packet of the size of the ring, here taken byte by byte, and the header page.
        let most = size + 64;
        let accesses = peer.take_accesses();
        assert!(accesses <= most, "{accesses} accesses for one step {step:#x}");
        let stats = channel.stats();
        assert!(stats.received_bytes <= number * size as u64, "{stats:?}");
        assert!(stats.sent_bytes <= number * size as u64, "{stats:?}");
    }
}

/// Memory does not shrink, so every error is one of the peer's.
fn legal(error: &RingError) {
    assert!(!matches!(error, RingError::Memory(_) | RingError::Size(_)), "{error}");
}

fn note<T>(result: Result<T, RingError>) -> Option<T> {
    result.inspect_err(legal).ok()
}

fn ignore<T>(result: Result<T, RingError>) {
    note(result);
}

/// What was fetched once, and maybe checked, must not be fetched again.
fn read_once(peer: &Peer<'_>) {
    let mut fetched = peer.take_fetched();
    fetched.sort_unstable();
    for pair in fetched.windows(2) {
        assert!(pair[0].0 + pair[0].1 <= pair[1].0, "read twice: {fetched:?}");
    }
}

fn act(
    channel: &mut Channel<Fickle<'_>>,
    steps: &mut Script<'_>,
    step: u8,
    number: u64,
    size: usize,
) {
    match step % 10 {
        0 => sent(Draft::read(steps, number).with(|packet| channel.stage(packet))),
        1 => sent(Draft::read(steps, number).with(|packet| channel.try_send(packet))),
        2 => ignore(channel.commit()),
        3 => {
            let mut buffer = vec![0; 64 << (step / 10)];
            match channel.receive(&mut buffer) {
                Ok(None) => {}
                Ok(Some(packet)) => whole(&packet, size),
                Err(ReceiveError::Packet(_)) => {}
                Err(ReceiveError::Ring(error)) => legal(&error),
            }
        }
        4 => look(channel, steps.byte()),
        5 => ignore(channel.commit_read()),
        6 => ignore(channel.arm()),
        7 => ignore(channel.mask()),
        8 => build(channel, steps, number),
        _ => {
            let need = usize::from(steps.u16());
            ignore(channel.request_space(need));
            ignore(channel.writable(need));
        }
    }
}

fn sent(result: Result<(), SendError>) {
    if let Err(SendError::Ring(error)) = result {
        legal(&error);
    }
}

/// A packet, however it came about, is no larger than the ring, and its ranges are all there.
fn whole(packet: &Packet<'_>, size: usize) {
    assert!(packet.payload.len() <= size);
    match packet.kind {
        PacketKind::InBand | PacketKind::Completion => {}
        PacketKind::GpaDirect(ranges) => {
            assert_eq!(ranges.iter().count(), ranges.count());
            let words = ranges.iter().map(|range| 1 + range.frames().len()).sum::<usize>();
            assert!(8 * words <= size);
            for range in ranges.iter() {
                let touched = u64::from(range.byte_offset) + u64::from(range.byte_count);
                assert_eq!(range.frames().len() as u64, touched.div_ceil(PAGE_SIZE as u64));
            }
        }
        PacketKind::TransferPages { ranges, .. } => {
            assert_eq!(ranges.iter().count(), ranges.len());
            assert!(8 * ranges.len() <= size);
        }
    }
}

/// Looks at a packet and takes it apart: as many ranges and frames as were announced, and no more.
fn look(channel: &mut Channel<Fickle<'_>>, how: u8) {
    let mut view = match channel.peek() {
        Ok(Some(view)) => view,
        Ok(None) | Err(ReceiveError::Packet(_)) => return,
        Err(ReceiveError::Ring(error)) => return legal(&error),
    };
    let announced = view.ranges_left();
    let mut ranges = 0;
    while let Some(Some(_)) = note(view.next_range()) {
        ranges += 1;
    }
    loop {
        match view.next_gpa_range() {
            Ok(Some(head)) => {
                ranges += 1;
                let mut frames = 0;
                while frames < usize::from(how) && note(view.next_frame()).flatten().is_some() {
                    frames += 1;
                }
                assert!(frames <= head.frames);
            }
            Ok(None) => break,
            Err(ReceiveError::Packet(_)) => {
                assert_eq!(view.ranges_left(), 0);
                assert_eq!(view.next_frame(), Ok(None));
                break;
            }
            Err(ReceiveError::Ring(error)) => return legal(&error),
        }
    }
    assert!(ranges <= announced);
    let len = view.payload_len();
    let mut taken = 0;
    let mut piece = vec![0; 1 + usize::from(how)];
    while let Some(count @ 1..) = note(view.take(&mut piece)) {
        taken += count;
    }
    assert_eq!(taken, len);
    if how & 1 == 0 {
        view.advance();
    }
}

fn build(channel: &mut Channel<Fickle<'_>>, steps: &mut Script<'_>, number: u64) {
    let draft = Draft::read(steps, number);
    let room = usize::from(steps.byte());
    draft.with(|packet| {
        let mut slot = match channel.reserve(packet, room) {
            Ok(slot) => slot,
            Err(SendError::Ring(error)) => return legal(&error),
            Err(_) => return,
        };
        for _ in 0..steps.below(4) {
            match slot.append(&[0x77; 20]) {
                Ok(()) | Err(SlotError::Room { .. }) => {}
                Err(SlotError::Ring(error)) => return legal(&error),
            }
        }
        ignore(slot.finish());
    });
}

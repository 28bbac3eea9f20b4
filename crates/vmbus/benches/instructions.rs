//! One path of the rings, so many times: `instructions PATH COUNT`. Without arguments it lists the paths.
//!
//! The difference between two counts under an instruction counter is what a packet costs; `checks/instructions` does that
//! and compares with the committed table.

use std::hint::black_box;

use vmbus::packet::{Outgoing, PacketKind};

#[path = "shared/ranges.rs"]
mod ranges;
mod shared;
use ranges::ranges;
use shared::{Floor, channels};

const RING: usize = 16 * 1024;
const BATCH: usize = 32;

/// Copies `count` payloads of `len` bytes into a ring and out of it, one by one.
fn floor_single(count: usize, len: usize) {
    let mut floor = Floor::new(RING);
    let (data, mut buffer) = black_box((vec![7; len], vec![0; len]));
    for _ in 0..count {
        floor.put(&data);
        floor.take(&mut buffer);
    }
}

/// The same in batches.
fn floor(count: usize, len: usize, batch: usize) {
    let mut floor = Floor::new(RING);
    let (data, mut buffer) = black_box((vec![7; len], vec![0; len]));
    for _ in 0..count / batch {
        for _ in 0..batch {
            floor.put(&data);
        }
        for _ in 0..batch {
            floor.take(&mut buffer);
        }
    }
}

/// Sends `count` packets through a channel, each published and read by itself.
fn in_band_single(count: usize, len: usize) {
    let (mut near, mut far) = channels(RING);
    let (data, mut buffer) = black_box((vec![7; len], vec![0; 4096]));
    for transaction_id in 0..count as u64 {
        near.try_send(&Outgoing::InBand { transaction_id, completion: false, payload: &data })
            .expect("there is room");
        let packet = far.receive(&mut buffer).expect("sound").expect("it was sent");
        assert!(packet.transaction_id == transaction_id, "in order");
        far.commit_read().expect("the ring is sound");
    }
}

/// Sends `count` packets through a channel in batches.
fn in_band(count: usize, len: usize, batch: usize) {
    let (mut near, mut far) = channels(RING);
    let (data, mut buffer) = black_box((vec![7; len], vec![0; 4096]));
    for first in 0..count / batch {
        for transaction_id in first as u64..(first + batch) as u64 {
            near.stage(&Outgoing::InBand { transaction_id, completion: false, payload: &data })
                .expect("there is room");
        }
        near.commit().expect("the ring is sound");
        for transaction_id in first as u64..(first + batch) as u64 {
            let packet = far.receive(&mut buffer).expect("sound").expect("it was sent");
            assert!(packet.transaction_id == transaction_id, "in order");
        }
        far.commit_read().expect("the ring is sound");
    }
}

/// The same, built in the ring and read where it lies.
fn in_place(count: usize, len: usize, batch: usize) {
    let (mut near, mut far) = channels(RING);
    let (data, mut buffer) = black_box((vec![7; len], vec![0; len.next_multiple_of(8)]));
    let head = Outgoing::InBand { transaction_id: 1, completion: false, payload: &[] };
    for _ in 0..count / batch {
        for _ in 0..batch {
            let mut slot = near.reserve(&head, len).expect("there is room");
            slot.append(&data).expect("as much as was reserved");
            slot.finish().expect("the ring is sound");
        }
        near.commit().expect("the ring is sound");
        for _ in 0..batch {
            let mut view = far.peek().expect("sound").expect("it was sent");
            view.take(&mut buffer).expect("the ring is sound");
            view.advance();
        }
        far.commit_read().expect("the ring is sound");
    }
}

/// Sends `count` ranges, `batch` in each packet, and looks at each; copied out or in place.
fn transfer(count: usize, batch: usize, copied: bool) {
    let (mut near, mut far) = channels(RING);
    let (ranges, mut buffer) = black_box((ranges(batch), vec![0; 4096]));
    let packet = Outgoing::TransferPages {
        transaction_id: 1,
        pageset: 7,
        ranges: &ranges,
        payload: &[1; 40],
    };
    let mut bytes = 0;
    for _ in 0..count / batch {
        near.try_send(&packet).expect("there is room");
        if copied {
            let packet = far.receive(&mut buffer).expect("sound").expect("it was sent");
            let PacketKind::TransferPages { ranges, .. } = packet.kind else {
                unreachable!("nothing else was sent");
            };
            bytes += ranges.iter().map(|range| u64::from(range.byte_count)).sum::<u64>();
        } else {
            let mut view = far.peek().expect("sound").expect("it was sent");
            while let Some(range) = view.next_range().expect("the ring is sound") {
                bytes += u64::from(range.byte_count);
            }
            view.advance();
        }
        far.commit_read().expect("the ring is sound");
    }
    black_box(bytes);
}

/// A request and its completion, both ends going to rest in between.
fn ping_pong(count: usize) {
    let (mut near, mut far) = channels(RING);
    let (data, mut buffer) = black_box((vec![7; 64], vec![0; 4096]));
    for transaction_id in 0..count as u64 {
        near.try_send(&Outgoing::InBand { transaction_id, completion: true, payload: &data })
            .expect("there is room");
        let request = far.receive(&mut buffer).expect("sound").expect("it was sent");
        let answer =
            Outgoing::Completion { transaction_id: request.transaction_id, payload: &data };
        far.try_send(&answer).expect("there is room");
        assert!(!far.arm().expect("the ring is sound"));
        let answer = near.receive(&mut buffer).expect("sound").expect("it was answered");
        assert!(answer.transaction_id == transaction_id, "in order");
        assert!(!near.arm().expect("the ring is sound"));
    }
}

type Path = (&'static str, fn(usize));

const PATHS: &[Path] = &[
    ("memcpy_64_single", |count| floor_single(count, 64)),
    ("memcpy_64_batch", |count| floor(count, 64, BATCH)),
    ("in_band_16_single", |count| in_band_single(count, 16)),
    ("in_band_16_batch", |count| in_band(count, 16, BATCH)),
    ("in_band_64_single", |count| in_band_single(count, 64)),
    ("in_band_64_batch", |count| in_band(count, 64, BATCH)),
    ("in_band_256_batch", |count| in_band(count, 256, BATCH)),
    ("in_band_1514_batch", |count| in_band(count, 1514, 8)),
    ("in_place_64_batch", |count| in_place(count, 64, BATCH)),
    ("in_place_1514_batch", |count| in_place(count, 1514, 8)),
    ("transfer_1_copied", |count| transfer(count, 1, true)),
    ("transfer_8_copied", |count| transfer(count, 8, true)),
    ("transfer_64_copied", |count| transfer(count, 64, true)),
    ("transfer_375_copied", |count| transfer(count, 375, true)),
    ("transfer_375_in_place", |count| transfer(count, 375, false)),
    ("ping_pong_64", ping_pong),
];

fn main() {
    let mut arguments = std::env::args().skip(1).filter(|argument| argument != "--bench");
    let (name, count) = (arguments.next(), arguments.next());
    let (Some(name), Some(count)) = (name, count) else {
        PATHS.iter().for_each(|(name, _)| println!("{name}"));
        return;
    };
    let path = PATHS.iter().find(|(path, _)| *path == name).map(|(_, path)| path);
    match (path, count.parse()) {
        (Some(path), Ok(count)) => path(count),
        _ => {
            eprintln!("usage: instructions [PATH COUNT]");
            std::process::exit(2);
        }
    }
}

//! Rings against a plain copy, a queue of boxes behind a lock and a lock-free ring of bytes, as a Markdown table:
//! `cargo bench -p vmbus --bench ratios`.
//!
//! All take turns, many short ones, and the median counts; so what else the machine does hits all of them alike.

use std::hint::black_box;
use std::time::Instant;

#[path = "shared/carriers.rs"]
mod carriers;
mod shared;
use carriers::{Boxes, Bytes, Carrier, Ring, carry};
use shared::Floor;

/// Turns of each; the median of their times counts.
const TURNS: usize = 41;
/// Packets in a turn.
const PACKETS: usize = 32_000;

/// Nanoseconds per packet in one turn.
#[inline(never)]
fn turn<C: Carrier>(carrier: &mut C, payload: &[u8], out: &mut [u8], batch: usize) -> f64 {
    let start = Instant::now();
    for _ in 0..PACKETS / batch {
        carry(carrier, payload, out, batch);
    }
    start.elapsed().as_nanos() as f64 / PACKETS as f64
}

/// The same packet by packet, as a loop of its own.
#[inline(never)]
fn single_turn<C: Carrier>(carrier: &mut C, payload: &[u8], out: &mut [u8]) -> f64 {
    let start = Instant::now();
    for _ in 0..PACKETS {
        carry(carrier, payload, out, 1);
    }
    start.elapsed().as_nanos() as f64 / PACKETS as f64
}

fn median(mut times: Vec<f64>) -> f64 {
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

fn row(size: &str, bytes: usize, len: usize, batch: usize) {
    let (payload, mut out) = black_box((vec![7u8; len], vec![0u8; len + 6]));
    let mut floor = Floor::new(bytes);
    let mut ring = Ring::new(bytes);
    let mut boxes = Boxes::default();
    let mut lock_free = Bytes::new(bytes, len);
    let mut times = [const { Vec::new() }; 4];
    fn one<C: Carrier>(carrier: &mut C, payload: &[u8], out: &mut [u8], batch: usize) -> f64 {
        match batch {
            1 => single_turn(carrier, payload, out),
            _ => turn(carrier, payload, out, batch),
        }
    }
    for _ in 0..TURNS {
        times[0].push(one(&mut floor, &payload, &mut out[..len], batch));
        times[1].push(one(&mut ring, &payload, &mut out, batch));
        times[2].push(one(&mut boxes, &payload, &mut out[..len], batch));
        times[3].push(one(&mut lock_free, &payload, &mut out[..len], batch));
    }
    let [floor, ring, boxes, lock_free] = times.map(median);
    println!(
        "| {size} | {len} | {batch} | {floor:.1} | {ring:.1} | **{:.2}** | {:.2} | {:.2} |",
        ring / floor,
        ring / boxes,
        ring / lock_free
    );
}

fn main() {
    println!(
        "| ring | payload | batch | memcpy, ns | vmbus, ns | vmbus / memcpy | vmbus / boxes | vmbus / rtrb |"
    );
    println!("|---|---|---|---|---|---|---|---|");
    for (size, bytes) in [("16 KiB", 16 << 10), ("128 KiB", 128 << 10), ("2 MiB", 2 << 20)] {
        for (len, batches) in [(16, [1, 32]), (64, [1, 32]), (256, [1, 32]), (1514, [1, 8])] {
            for batch in batches {
                row(size, bytes, len, batch);
            }
        }
    }
}

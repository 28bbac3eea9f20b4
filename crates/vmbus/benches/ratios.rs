//! Rings against a plain copy, a queue of boxes behind a lock and a lock-free ring of bytes, as a Markdown table:
//! `cargo bench -p vmbus --bench ratios [-- RING PAYLOAD BATCH]`, in KiB and bytes; 0 stands for all.
//!
//! All take turns, many short ones, and the first quartile of the times counts: of a machine that also does other things it tells what
//! it can do.

use std::hint::black_box;
use std::time::Instant;

#[path = "shared/carriers.rs"]
mod carriers;
mod shared;
use carriers::{Boxes, Bytes, Carrier, Ring, carry};
use shared::Floor;

/// Turns of each.
const TURNS: usize = 81;
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

/// The time that a quarter of the turns stayed below.
fn quartile(times: impl IntoIterator<Item = f64>) -> f64 {
    let mut times: Vec<f64> = times.into_iter().collect();
    times.sort_by(f64::total_cmp);
    times[times.len() / 4]
}

fn row(kib: usize, len: usize, batch: usize) {
    let bytes = kib << 10;
    let (payload, mut out) = black_box((vec![7u8; len], vec![0u8; len + 6]));
    let mut floor = Floor::new(bytes);
    let mut ring = Ring::new(bytes);
    let mut boxes = Boxes::default();
    let mut lock_free = Bytes::new(bytes, len);
    let mut times = Vec::new();
    fn one<C: Carrier>(carrier: &mut C, payload: &[u8], out: &mut [u8], batch: usize) -> f64 {
        match batch {
            1 => single_turn(carrier, payload, out),
            _ => turn(carrier, payload, out, batch),
        }
    }
    for _ in 0..TURNS {
        times.push([
            one(&mut floor, &payload, &mut out[..len], batch),
            one(&mut ring, &payload, &mut out, batch),
            one(&mut boxes, &payload, &mut out[..len], batch),
            one(&mut lock_free, &payload, &mut out[..len], batch),
        ]);
    }
    let [floor, ring, boxes, lock_free] =
        [0, 1, 2, 3].map(|which| quartile(times.iter().map(|turn: &[f64; 4]| turn[which])));
    println!(
        "| {kib} KiB | {len} | {batch} | {floor:.1} | {ring:.1} | **{:.2}** | {:.2} | {:.2} |",
        ring / floor,
        ring / boxes,
        ring / lock_free
    );
}

fn main() {
    let mut wanted = std::env::args().skip(1).filter_map(|argument| argument.parse().ok());
    let mut wanted = || match wanted.next().unwrap_or(0) {
        0 => None,
        number => Some(number),
    };
    let wanted: [Option<usize>; 3] = [wanted(), wanted(), wanted()];
    println!(
        "| ring | payload | batch | memcpy, ns | vmbus, ns | vmbus / memcpy | vmbus / boxes | vmbus / rtrb |"
    );
    println!("|---|---|---|---|---|---|---|---|");
    for kib in [16, 128, 2048] {
        for (len, batches) in [(16, [1, 32]), (64, [1, 32]), (256, [1, 32]), (1514, [1, 8])] {
            for batch in batches {
                let is = [kib, len, batch];
                if wanted
                    .iter()
                    .zip(is)
                    .all(|(wanted, is)| wanted.is_none_or(|wanted| wanted == is))
                {
                    row(kib, len, batch);
                }
            }
        }
    }
}

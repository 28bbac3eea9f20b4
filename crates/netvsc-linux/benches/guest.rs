//! What it costs to look at a guest: `cargo bench -p netvsc-linux --bench guest`, a Markdown table of times.
//!
//! `guest relate NICS ROUNDS` does nothing but relate, that many times, in the function `relate`, for
//! `checks/relation`, which counts its instructions.

#[path = "../tests/guest/mod.rs"]
#[expect(dead_code, reason = "shared with tests that need more of it")]
mod guest;

use std::hint::black_box;
use std::time::{Duration, Instant};

use guest::{Guest, kinds};
use netvsc_linux::check;
use netvsc_linux::inventory::{Depth, Snapshot, take};
use netvsc_linux::relation::{Relations, State};

const TURNS: usize = 41;

fn read(guest: &Guest, depth: Depth) -> Snapshot {
    take(Some(guest.root()), depth).expect("the root is a directory")
}

#[inline(never)]
fn relate(snapshot: &Snapshot) -> usize {
    let relations = Relations::of(snapshot);
    relations.nics.iter().filter(|nic| nic.state == State::Accelerated).count()
}

/// The first quartile of so many turns.
fn time(mut turn: impl FnMut()) -> Duration {
    let mut times: Vec<_> = (0..TURNS)
        .map(|_| {
            let start = Instant::now();
            turn();
            start.elapsed()
        })
        .collect();
    times.sort();
    times[TURNS / 4]
}

fn count(nics: u16, rounds: usize) {
    let guest = kinds::many(nics);
    let snapshot = read(&guest, Depth::Pairs);
    for _ in 0..rounds {
        assert_eq!(black_box(relate(black_box(&snapshot))), usize::from(nics));
    }
}

fn main() {
    let words: Vec<_> = std::env::args().skip(1).filter(|word| !word.starts_with('-')).collect();
    if let [verb, nics, rounds] = words.as_slice()
        && verb == "relate"
    {
        return count(nics.parse().expect("a number"), rounds.parse().expect("a number"));
    }
    println!("| NICs with VFs | read, ms | related, ms | read for checks, ms | checked, ms |");
    println!("|---|---|---|---|---|");
    for nics in [1, 8, 64, 256] {
        let guest = kinds::many(nics);
        let scan = time(|| _ = black_box(read(&guest, Depth::Pairs)));
        let snapshot = read(&guest, Depth::Pairs);
        let related = time(|| _ = black_box(relate(&snapshot)));
        let full = time(|| _ = black_box(read(&guest, Depth::Checks)));
        let snapshot = read(&guest, Depth::Checks);
        let relations = Relations::of(&snapshot);
        let checked = time(|| {
            let guest = check::Guest::new(&snapshot, &relations);
            assert_eq!(check::run(&guest, |_| true).findings, []);
        });
        let [scan, related, full, checked] =
            [scan, related, full, checked].map(|time| time.as_secs_f64() * 1e3);
        println!("| {nics} | {scan:.2} | {related:.3} | {full:.2} | {checked:.3} |");
    }
}

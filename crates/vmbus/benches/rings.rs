//! Rings by the clock: `cargo bench -p vmbus --bench rings [-- FILTER]`.
//!
//! In-band packets singly and in batches, transfer pages, and a request with its answer, each at three ring sizes. The
//! ratios in docs/PERFORMANCE.md come from `--bench ratios`, which takes turns between what it compares; these here are for
//! following one number over time.

use std::hint::black_box;
use std::time::Duration;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use vmbus::packet::{Outgoing, PacketKind};
use vmbus::{Channel, Pfn, SignalFlag, memory::SharedPages};

#[path = "shared/carriers.rs"]
mod carriers;
#[path = "shared/ranges.rs"]
mod ranges;
mod shared;
#[path = "shared/threads.rs"]
mod threads;
use carriers::{Boxes, Bytes, Carrier, Ring, carry};
use ranges::ranges;
use shared::{Floor, channels};

const RINGS: [(&str, usize); 3] = [("16KiB", 16 << 10), ("128KiB", 128 << 10), ("2MiB", 2 << 20)];

/// Packets of one batch: 32, or as many as the smallest ring takes.
fn batch_of(len: usize) -> usize {
    if len > 256 { 8 } else { 32 }
}

fn in_band(criterion: &mut Criterion) {
    for (size, bytes) in RINGS {
        for single in [true, false] {
            let mode = if single { "single" } else { "batch" };
            let mut group = criterion.benchmark_group(format!("ring_in_band_{mode}_{size}"));
            for len in [16, 64, 256, 1514] {
                let batch = if single { 1 } else { batch_of(len) };
                group.throughput(Throughput::Elements(batch as u64));
                let (payload, mut out) = black_box((vec![7u8; len], vec![0u8; len + 6]));
                fn turn<C: Carrier>(
                    group: &mut criterion::BenchmarkGroup<'_, criterion::measurement::WallTime>,
                    name: &str,
                    mut carrier: C,
                    payload: &[u8],
                    out: &mut [u8],
                    batch: usize,
                ) {
                    group.bench_function(BenchmarkId::new(name, payload.len()), |bencher| {
                        bencher.iter(|| carry(&mut carrier, payload, out, batch));
                    });
                }
                turn(&mut group, "vmbus", Ring::new(bytes), &payload, &mut out, batch);
                let exact = &mut out[..len];
                turn(&mut group, "memcpy", Floor::new(bytes), &payload, exact, batch);
                turn(&mut group, "boxes", Boxes::default(), &payload, exact, batch);
                turn(&mut group, "rtrb", Bytes::new(bytes, len), &payload, exact, batch);
            }
        }
    }
}

fn transfer_pages(criterion: &mut Criterion) {
    for (size, bytes) in RINGS {
        let mut group = criterion.benchmark_group(format!("ring_transfer_pages_{size}"));
        for count in [1, 8, 64, 375] {
            group.throughput(Throughput::Elements(count as u64));
            let (ranges, mut buffer) = black_box((ranges(count), vec![0; 4096]));
            let packet = Outgoing::TransferPages {
                transaction_id: 1,
                pageset: 7,
                ranges: &ranges,
                payload: &[1; 40],
            };
            let (mut near, mut far) = channels(bytes);
            group.bench_function(BenchmarkId::new("copied", count), |bencher| {
                bencher.iter(|| {
                    near.try_send(&packet).expect("there is room");
                    let packet = far.receive(&mut buffer).expect("sound").expect("it was sent");
                    let PacketKind::TransferPages { ranges, .. } = packet.kind else {
                        unreachable!("nothing else was sent");
                    };
                    let bytes: u64 = ranges.iter().map(|range| u64::from(range.byte_count)).sum();
                    far.commit_read().expect("the ring is sound");
                    bytes
                });
            });
            group.bench_function(BenchmarkId::new("in_place", count), |bencher| {
                bencher.iter(|| {
                    near.try_send(&packet).expect("there is room");
                    let mut view = far.peek().expect("sound").expect("it was sent");
                    let mut bytes = 0;
                    while let Some(range) = view.next_range().expect("the ring is sound") {
                        bytes += u64::from(range.byte_count);
                    }
                    view.advance();
                    far.commit_read().expect("the ring is sound");
                    bytes
                });
            });
        }
    }
}

/// Both ends of a channel, with the flags that wake them.
fn signalling(bytes: usize) -> [(Channel, SignalFlag); 2] {
    let ring = || {
        let frames: Vec<_> = (0..=(bytes / 4096) as u64).map(Pfn).collect();
        SharedPages::from_heap(&frames)
    };
    let (up, down) = (ring(), ring());
    let (to_far, to_near) = (SignalFlag::new(), SignalFlag::new());
    let near = Channel::from_parts(up.clone(), down.clone(), to_far.clone());
    let far = Channel::from_parts(down, up, to_near.clone());
    [(near.expect("both are rings"), to_near), (far.expect("both are rings"), to_far)]
}

/// A request and its answer on one thread: two doorbells, and both ends armed in between.
fn ping_pong(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("ring_ping_pong");
    for (size, bytes) in RINGS {
        let [(mut near, near_woken), (mut far, far_woken)] = signalling(bytes);
        let (payload, mut buffer) = black_box((vec![7; 64], vec![0; 256]));
        group.bench_function(BenchmarkId::new("64", size), |bencher| {
            bencher.iter(|| {
                let request =
                    Outgoing::InBand { transaction_id: 1, completion: true, payload: &payload };
                near.try_send(&request).expect("there is room");
                assert!(far_woken.take(), "the far end rested");
                let packet = far.receive(&mut buffer).expect("sound").expect("it was sent");
                let transaction_id = packet.transaction_id;
                far.try_send(&Outgoing::Completion { transaction_id, payload: &payload })
                    .expect("there is room");
                assert!(!far.arm().expect("the ring is sound"));
                assert!(near_woken.take(), "the near end rested");
                near.receive(&mut buffer).expect("sound").expect("it was answered");
                assert!(!near.arm().expect("the ring is sound"));
            });
        });
    }
}

/// The same between two threads, each of which looks for a while before it sleeps. Where they run decides more than what they
/// run on: compare inside one run only.
fn two_threads(criterion: &mut Criterion) {
    fn rounds<W: threads::Wire>(
        group: &mut criterion::BenchmarkGroup<'_, criterion::measurement::WallTime>,
        (name, size): (&str, &str),
        ends: [threads::End<W>; 2],
    ) {
        let mut echo = threads::Echo::new(ends);
        let payload = black_box([7; 64]);
        group.bench_function(BenchmarkId::new(name, size), |bencher| {
            bencher.iter(|| echo.round(&payload));
        });
        echo.stop();
    }
    let mut group = criterion.benchmark_group("ring_ping_pong_two_threads");
    for (size, bytes) in RINGS {
        rounds(&mut group, ("vmbus", size), threads::channels(bytes));
        rounds(&mut group, ("rtrb", size), threads::byte_rings(bytes));
    }
    rounds(&mut group, ("boxes", "no ring"), threads::queues());
}

criterion_group! {
    name = rings;
    config = Criterion::default()
        .warm_up_time(Duration::from_millis(200))
        .measurement_time(Duration::from_millis(800))
        .sample_size(40);
    targets = in_band, transfer_pages, ping_pong, two_threads
}
criterion_main!(rings);

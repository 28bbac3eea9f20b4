//! What it brings to map the data of a ring twice: `cargo bench -p netvsc-linux --bench doubly_mapped`, a Markdown table.
//!
//! One ring lies on the heap, the other in a file of `memfd_create`; they take turns; the first quartile of the times counts.

use std::hint::black_box;
use std::time::Instant;

use netvsc_linux::mapping::map_ring;
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use vmbus::memory::{DoublyMapped, PAGE_SIZE, SharedMemory, SharedPages};
use vmbus::packet::Outgoing;
use vmbus::{Channel, Pfn, SignalFlag};

const TURNS: usize = 81;
const PACKETS: usize = 32_000;
const DATA_PAGES: usize = 4;

fn doubly_mapped() -> DoublyMapped {
    let file = memfd_create("ring", MemfdFlags::CLOEXEC).expect("a file in memory");
    ftruncate(&file, ((1 + DATA_PAGES) * PAGE_SIZE) as u64).expect("room for a ring");
    map_ring(file, 0, DATA_PAGES).expect("a ring")
}

fn plain() -> SharedPages {
    SharedPages::from_heap(&(0..=DATA_PAGES as u64).map(Pfn).collect::<Vec<_>>())
}

type Ends<M> = (Channel<M, SignalFlag>, Channel<M, SignalFlag>);

fn ends<M: SharedMemory + Clone>(ring: impl Fn() -> M) -> Ends<M> {
    let (up, down) = (ring(), ring());
    let near = Channel::from_parts(up.clone(), down.clone(), SignalFlag::new());
    let mut far = Channel::from_parts(down, up, SignalFlag::new()).expect("both are rings");
    far.mask().expect("the memory is there");
    (near.expect("both are rings"), far)
}

/// Nanoseconds per packet in one turn.
#[inline(never)]
fn turn<M: SharedMemory>((near, far): &mut Ends<M>, len: usize, batch: usize) -> f64 {
    let (payload, mut buffer) = black_box((vec![7u8; len], vec![0u8; len + 8]));
    let start = Instant::now();
    for _ in 0..PACKETS / batch {
        for transaction_id in 0..batch as u64 {
            near.stage(&Outgoing::InBand { transaction_id, completion: false, payload: &payload })
                .expect("there is room");
        }
        near.commit().expect("the ring is sound");
        for _ in 0..batch {
            far.receive(&mut buffer).expect("the ring is sound").expect("it was sent");
        }
        far.commit_read().expect("the ring is sound");
    }
    start.elapsed().as_nanos() as f64 / PACKETS as f64
}

/// The time that a quarter of the turns stayed below.
fn quartile(times: impl IntoIterator<Item = f64>) -> f64 {
    let mut times: Vec<f64> = times.into_iter().collect();
    times.sort_by(f64::total_cmp);
    times[times.len() / 4]
}

fn main() {
    println!("| payload | batch | mapped once, ns | mapped twice, ns | twice / once |");
    println!("|---|---|---|---|---|");
    let (mut once, mut twice) = (ends(plain), ends(doubly_mapped));
    for (len, batch) in [(64, 1), (64, 32), (256, 32), (1514, 1), (1514, 8)] {
        let times: Vec<_> = (0..TURNS)
            .map(|_| [turn(&mut once, len, batch), turn(&mut twice, len, batch)])
            .collect();
        let [once, twice] =
            [0, 1].map(|which| quartile(times.iter().map(|turn: &[f64; 2]| turn[which])));
        println!("| {len} | {batch} | {once:.1} | {twice:.1} | **{:.2}** |", twice / once);
    }
}

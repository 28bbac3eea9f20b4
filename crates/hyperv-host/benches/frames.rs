//! What a frame costs a guest: `cargo bench -p hyperv-host --bench frames`.
//!
//! Guest and host in turn on one thread, bursts of 32 frames; only the guest's turns are measured: taking frames, publishing
//! them, hearing that they were sent; or reading frames, copying them out and giving their memory back. Beside it, the
//! copying alone.
//!
//! `frames PATH COUNT` sends or receives so many frames on one path and measures nothing: for counting instructions from
//! outside, as `checks/instructions` does. `frames --list` lists the paths.

use std::hint::black_box;
use std::time::{Duration, Instant as Clock};

use hyperv_host::nic::NicServiceConfig;
use hyperv_host::switch::Offered;
use netvsc::nic::{Lending, Nic, NicOffloads, NicQueue, PageSlice, PagedFrame, TxFrame, TxWork};
use netvsc::nvsp::Version;
use netvsc::rndis::packet::{LargeSend, TransmitChecksum};
use netvsc::rndis::scaling::Scaling;
use netvsc::{NicConfig, NicEvent, RxFrame};
use vmbus::memory::SharedMemory;

#[path = "../tests/nic/world.rs"]
#[expect(dead_code, reason = "the tests need more of it")]
mod world;
use world::{MAC, PEER, Sizes, World, frame, world_with};

/// Frames of one burst.
const BURST: usize = 32;
/// Bytes of Ethernet, IPv4 and TCP headers.
const HEADERS: usize = 54;
/// How long one path is measured.
const SPAN: Duration = Duration::from_millis(300);

/// One way to use a NIC.
#[derive(Clone, Copy)]
enum Path {
    /// Plain frames of this length, over so many queues.
    Send(usize, u16),
    /// Frames of this length whose checksums the host computes.
    SendChecksum(usize),
    /// Segments of this length that the host cuts, over so many queues.
    SendLarge(usize, u16),
    /// Frames of this length of which all but the headers lie in pages that the host reads.
    SendPages(usize),
    /// The same of segments that the host cuts.
    SendLargePages(usize),
    /// Frames of this length, over so many queues.
    Receive(usize, u16),
}

const PATHS: [(&str, Path); 31] = [
    ("nic_send_64", Path::Send(64, 1)),
    ("nic_send_64_2_queues", Path::Send(64, 2)),
    ("nic_send_64_4_queues", Path::Send(64, 4)),
    ("nic_send_512", Path::Send(512, 1)),
    ("nic_send_512_2_queues", Path::Send(512, 2)),
    ("nic_send_512_4_queues", Path::Send(512, 4)),
    ("nic_send_1514", Path::Send(1514, 1)),
    ("nic_send_1514_2_queues", Path::Send(1514, 2)),
    ("nic_send_1514_4_queues", Path::Send(1514, 4)),
    ("nic_send_9000", Path::Send(9000, 1)),
    ("nic_send_9000_2_queues", Path::Send(9000, 2)),
    ("nic_send_9000_4_queues", Path::Send(9000, 4)),
    ("nic_send_checksum_1514", Path::SendChecksum(1514)),
    ("nic_send_large_62000", Path::SendLarge(62_000, 1)),
    ("nic_send_large_62000_2_queues", Path::SendLarge(62_000, 2)),
    ("nic_send_large_62000_4_queues", Path::SendLarge(62_000, 4)),
    ("nic_send_pages_1514", Path::SendPages(1514)),
    ("nic_send_pages_9000", Path::SendPages(9000)),
    ("nic_send_large_pages_62000", Path::SendLargePages(62_000)),
    ("nic_receive_64", Path::Receive(64, 1)),
    ("nic_receive_64_2_queues", Path::Receive(64, 2)),
    ("nic_receive_64_4_queues", Path::Receive(64, 4)),
    ("nic_receive_512", Path::Receive(512, 1)),
    ("nic_receive_512_2_queues", Path::Receive(512, 2)),
    ("nic_receive_512_4_queues", Path::Receive(512, 4)),
    ("nic_receive_1514", Path::Receive(1514, 1)),
    ("nic_receive_1514_2_queues", Path::Receive(1514, 2)),
    ("nic_receive_1514_4_queues", Path::Receive(1514, 4)),
    ("nic_receive_9000", Path::Receive(9000, 1)),
    ("nic_receive_9000_2_queues", Path::Receive(9000, 2)),
    ("nic_receive_9000_4_queues", Path::Receive(9000, 4)),
];

/// A guest at work, and its host.
fn build(mtu: u32, queues: u16) -> World {
    let offloads = NicOffloads::ALL;
    // What it costs to lend shorter frames than one would is measured, too.
    let config = NicConfig { mtu, queues, offloads, lend_from: 0, ..NicConfig::default() };
    let mut service = NicServiceConfig::new(MAC);
    service.policy.versions = vec![Version::V6_1];
    let mut world = world_with(config, &Sizes { ring: 129, receive: 1024, send: 1024 }, service);
    world.settle();
    if queues > 1 {
        world.nic.request_queues(queues - 1, world.now).expect("it is ready");
        world.settle();
        for number in 1..queues {
            world.add_queue(number, 129);
        }
        let mut key = [0; 40];
        key.iter_mut().enumerate().for_each(|(at, byte)| *byte = (at * 37 + 11) as u8);
        let scaling = Scaling::even(queues, key);
        world.nic.set_scaling(Some(&scaling), world.now).expect("it can be set");
        world.settle();
    }
    assert!(world.events.iter().any(|event| matches!(event, NicEvent::Ready { .. })));
    world
}

/// What the guest does to send a burst. Found by its name in `checks/instructions`.
#[inline(never)]
fn guest_send(nic: &mut Nic, queues: &mut [NicQueue], frames: &[Vec<u8>]) {
    let share = frames.len() / (queues.len() + 1);
    let (mine, others) = frames.split_at(share);
    for frame in mine {
        nic.transmit(frame).expect("there is room");
    }
    nic.flush();
    for (queue, frames) in queues.iter_mut().zip(others.chunks(share.max(1))) {
        for frame in frames {
            queue.transmit(frame).expect("there is room");
        }
        queue.flush();
    }
}

/// The same with work for the host.
#[inline(never)]
fn guest_send_with(nic: &mut Nic, queues: &mut [NicQueue], frame: &TxFrame<'_>, count: usize) {
    let share = count / (queues.len() + 1);
    for _ in 0..share {
        nic.transmit_with(frame).expect("there is room");
    }
    nic.flush();
    for queue in queues {
        for _ in 0..share {
            queue.transmit_with(frame).expect("there is room");
        }
        queue.flush();
    }
}

/// The same out of pages.
#[inline(never)]
fn guest_send_pages(nic: &mut Nic, frame: &PagedFrame<'_>, count: usize) {
    for _ in 0..count {
        assert_eq!(nic.transmit_pages(frame).expect("there is room"), Lending::Lent);
    }
    nic.flush();
}

/// What the guest does when its host has rung. `sink` is made elsewhere: under a name of its own, it is counted here.
#[inline(never)]
fn guest_hear(world: &mut World, sink: &mut dyn FnMut(RxFrame<'_>)) {
    let World { nic, queues, now, .. } = world;
    nic.poll(*now, sink).expect("the NIC works");
    for queue in queues {
        queue.poll(sink).expect("the queue works");
    }
    while nic.poll_returned().is_some() {}
}

/// The copying that cannot be left out.
fn copy_only(frames: &[Vec<u8>], memory: &mut [u8]) {
    for frame in frames {
        let to = black_box(&mut memory[..frame.len()]);
        to.copy_from_slice(black_box(frame));
    }
}

/// A path with everything that it needs.
struct Course {
    path: Path,
    world: World,
    frames: Vec<Vec<u8>>,
    /// What follows the headers of the first, in pages.
    body: [PageSlice; 1],
    buffer: Vec<u8>,
}

impl Course {
    fn new(path: Path) -> Self {
        let (len, queues) = match path {
            Path::Send(len, queues) | Path::SendLarge(len, queues) | Path::Receive(len, queues) => {
                (len, queues)
            }
            Path::SendChecksum(len) | Path::SendPages(len) | Path::SendLargePages(len) => (len, 1),
        };
        let mtu = if len == 9000 { 9000 } else { 1500 };
        let (to, from) = if matches!(path, Path::Receive(..)) { (MAC, PEER) } else { (PEER, MAC) };
        let mut frames: Vec<_> = (0..BURST).map(|seed| frame(to, from, len, seed as u8)).collect();
        for (flow, frame) in frames.iter_mut().enumerate() {
            match path {
                Path::SendChecksum(_) | Path::SendLarge(..) | Path::SendLargePages(_) => {
                    headers(frame, 0);
                }
                // With one queue nobody looks for a flow.
                Path::Receive(_, 2..) => headers(frame, flow as u8),
                Path::Send(..) | Path::SendPages(_) | Path::Receive(..) => {}
            }
        }
        let world = build(mtu, queues);
        let memory = world.allocate(len.div_ceil(4096));
        memory.write(0, &frames[0]).expect("there is room");
        let body = PageSlice::new(memory, HEADERS, len.saturating_sub(HEADERS));
        let body = [body.unwrap_or_else(|_| unreachable!("inside"))];
        Self { path, world, frames, body, buffer: vec![0; 70_000] }
    }

    /// Frames of a burst on this path.
    fn burst(&self) -> usize {
        match self.path {
            Path::SendLarge(_, 4) => 4,
            Path::SendLarge(..) | Path::SendLargePages(_) => 2,
            _ => BURST,
        }
    }

    /// One burst; the time of the guest.
    fn turn(&mut self) -> Duration {
        let burst = self.burst();
        let Self { path, world, frames, body, buffer } = self;
        let mut time = Duration::ZERO;
        let pieces = [&frames[0][..]];
        let plain = TxFrame::plain(&pieces);
        let start = Clock::now();
        match *path {
            Path::Send(..) => guest_send(&mut world.nic, &mut world.queues, frames),
            Path::SendChecksum(_) => {
                let checksum = TransmitChecksum::IPV4 | TransmitChecksum::TCP;
                let frame = TxFrame { checksum: checksum.at(34), ..plain };
                guest_send_with(&mut world.nic, &mut world.queues, &frame, burst);
            }
            Path::SendLarge(..) => {
                let send = LargeSend { segment: 1460, layer4: 34, ipv6: false };
                let frame = TxFrame { large_send: Some(send), ..plain };
                guest_send_with(&mut world.nic, &mut world.queues, &frame, burst);
            }
            Path::SendPages(_) | Path::SendLargePages(_) => {
                let send = LargeSend { segment: 1460, layer4: 34, ipv6: false };
                let large_send = matches!(path, Path::SendLargePages(_)).then_some(send);
                let (head, work) = (&frames[0][..HEADERS], TxWork { large_send, ..TxWork::NONE });
                let frame = PagedFrame { head, body, work, token: 0 };
                guest_send_pages(&mut world.nic, &frame, burst);
            }
            Path::Receive(..) => {
                for frame in frames {
                    assert_ne!(world.port.peer_transmit(frame, world.now), Offered::Busy);
                }
            }
        }
        if !matches!(path, Path::Receive(..)) {
            time += start.elapsed();
        }
        let mut received = 0;
        let mut sink = |frame: RxFrame<'_>| received += usize::from(frame.copy_to(buffer) > 0);
        // The host may need several turns; it rings after each.
        loop {
            world.poll_host();
            while world.port.peer_receive(world.now).is_some() {}
            let start = Clock::now();
            guest_hear(world, &mut sink);
            time += start.elapsed();
            if !world.to_host.take() && !world.to_guest.take() {
                break;
            }
        }
        assert_eq!(received, if matches!(path, Path::Receive(..)) { BURST } else { 0 });
        time
    }
}

/// Makes a TCP segment over IPv4 of a frame.
fn headers(frame: &mut [u8], flow: u8) {
    let len = ((frame.len() - 14) as u16).to_be_bytes();
    frame[12..16].copy_from_slice(&[8, 0, 0x45, 0]);
    frame[16..18].copy_from_slice(&len);
    frame[18..34].copy_from_slice(&[0, 0, 0, 0, 64, 6, 0, 0, 10, 0, flow, 1, 10, 0, 0, 2]);
    frame[46..48].copy_from_slice(&[0x50, 0x10]);
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let [option] = &arguments[..]
        && option == "--list"
    {
        PATHS.iter().for_each(|(name, _)| println!("{name}"));
        return;
    }
    if let [name, count] = &arguments[..]
        && let Some((_, path)) = PATHS.iter().find(|(known, _)| known == name)
        && let Ok(count) = count.parse::<usize>()
    {
        let mut course = Course::new(*path);
        for _ in 0..count / course.burst() {
            course.turn();
        }
        return;
    }
    // `cargo test` runs benches too, without this; one short look at each is enough there.
    let span = if arguments.iter().any(|it| it == "--bench") { SPAN } else { Duration::ZERO };
    println!("path                     ns/frame  copy, ns  ratio  frames/s of one core");
    for (name, path) in PATHS {
        let mut course = Course::new(path);
        course.turn();
        let (mut guest, mut copies) = (vec![], vec![]);
        let end = Clock::now() + span;
        loop {
            guest.push(course.turn());
            let burst = course.burst();
            let start = Clock::now();
            copy_only(&course.frames[..burst], &mut course.buffer);
            copies.push(start.elapsed());
            if Clock::now() >= end {
                break;
            }
        }
        let burst = course.burst() as f64;
        let (guest, copy) = (median(&mut guest) / burst, median(&mut copies) / burst);
        let ratio = guest / copy.max(0.1);
        println!("{name:24} {guest:8.1}  {copy:8.1}  {ratio:5.1}  {:10.0}", 1e9 / guest.max(0.1));
    }
}

/// In nanoseconds.
fn median(times: &mut [Duration]) -> f64 {
    times.sort_unstable();
    times.get(times.len() / 2).map_or(0, Duration::as_nanos) as f64
}

//! Two threads that wake each other, over a channel and over what it is compared with.

use std::collections::VecDeque;
use std::hint::spin_loop;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::thread::{self, JoinHandle, Thread};

use vmbus::memory::SharedPages;
use vmbus::packet::Outgoing;
use vmbus::{Channel, Doorbell, Pfn};

/// Looks at the flag before the thread sleeps.
const SPINS: usize = 1_000;

/// A doorbell for a thread that first looks again and again and then sleeps.
#[derive(Clone, Debug, Default)]
pub struct Bell(Arc<Parts>);

#[derive(Debug, Default)]
struct Parts {
    rung: AtomicBool,
    sleeper: OnceLock<Thread>,
}

impl Bell {
    /// Waits until it rings, or rang since the last time.
    fn wait(&self) {
        self.0.sleeper.get_or_init(thread::current);
        for _ in 0..SPINS {
            if self.0.rung.load(Ordering::Relaxed) && self.0.rung.swap(false, Ordering::AcqRel) {
                return;
            }
            spin_loop();
        }
        while !self.0.rung.swap(false, Ordering::AcqRel) {
            thread::park();
        }
    }
}

impl Doorbell for Bell {
    fn ring(&self) {
        self.0.rung.store(true, Ordering::Release);
        if let Some(sleeper) = self.0.sleeper.get() {
            sleeper.unpark();
        }
    }
}

/// One end of something that carries payloads both ways.
pub trait Wire: Send + 'static {
    fn send(&mut self, payload: &[u8]);
    /// False if nothing is there.
    fn receive(&mut self, out: &mut [u8]) -> bool;
    /// Prepares for sleep. True if there is something after all.
    fn rest(&mut self) -> bool {
        false
    }
}

/// A wire and the bell that rings when something comes.
pub type End<W> = (W, Bell);

/// Waits for the next payload.
fn next<W: Wire>((wire, bell): &mut End<W>, out: &mut [u8]) {
    while !wire.receive(out) {
        if !wire.rest() {
            bell.wait();
        }
    }
}

/// The far end on a thread of its own, which answers until it is told to stop.
pub struct Echo<W: Wire> {
    near: End<W>,
    thread: JoinHandle<()>,
    out: [u8; 72],
}

impl<W: Wire> Echo<W> {
    pub fn new([near, mut far]: [End<W>; 2]) -> Self {
        let thread = thread::spawn(move || {
            let mut out = [0; 72];
            loop {
                next(&mut far, &mut out);
                if out[0] == 0 {
                    return;
                }
                far.0.send(&out[..64]);
            }
        });
        Self { near, thread, out: [0; 72] }
    }

    /// A request and its answer.
    pub fn round(&mut self, payload: &[u8; 64]) {
        self.near.0.send(payload);
        next(&mut self.near, &mut self.out);
        assert_eq!(self.out[..64], payload[..]);
    }

    pub fn stop(mut self) {
        self.near.0.send(&[0; 64]);
        self.thread.join().expect("the echo ended");
    }
}

impl Wire for Channel<SharedPages, Bell> {
    fn send(&mut self, payload: &[u8]) {
        self.try_send(&Outgoing::InBand { transaction_id: 1, completion: false, payload })
            .expect("there is room");
    }

    fn receive(&mut self, out: &mut [u8]) -> bool {
        Channel::receive(self, out).expect("the ring is sound").is_some()
    }

    fn rest(&mut self) -> bool {
        self.arm().expect("the ring is sound")
    }
}

pub fn channels(bytes: usize) -> [End<Channel<SharedPages, Bell>>; 2] {
    let ring = || SharedPages::from_heap(&(0..=(bytes / 4096) as u64).map(Pfn).collect::<Vec<_>>());
    let (up, down) = (ring(), ring());
    let (to_far, to_near) = (Bell::default(), Bell::default());
    let near = Channel::from_parts(up.clone(), down.clone(), to_far.clone());
    let far = Channel::from_parts(down, up, to_near.clone());
    [(near.expect("both are rings"), to_near), (far.expect("both are rings"), to_far)]
}

type Queue = Arc<Mutex<VecDeque<Box<[u8]>>>>;

/// Two queues of boxes behind locks. A doorbell for every payload.
pub struct Queues {
    out: Queue,
    r#in: Queue,
    peer: Bell,
}

impl Wire for Queues {
    fn send(&mut self, payload: &[u8]) {
        self.out.lock().expect("nobody panics").push_back(payload.into());
        self.peer.ring();
    }

    fn receive(&mut self, out: &mut [u8]) -> bool {
        let payload = self.r#in.lock().expect("nobody panics").pop_front();
        payload.is_some_and(|payload| {
            out[..payload.len()].copy_from_slice(&payload);
            true
        })
    }
}

pub fn queues() -> [End<Queues>; 2] {
    let (up, down) = (Queue::default(), Queue::default());
    let (to_far, to_near) = (Bell::default(), Bell::default());
    let near = Queues { out: up.clone(), r#in: down.clone(), peer: to_far.clone() };
    let far = Queues { out: down, r#in: up, peer: to_near.clone() };
    [(near, to_near), (far, to_far)]
}

/// Two lock-free rings of bytes. A doorbell for every payload.
pub struct ByteRings {
    out: rtrb::Producer<u8>,
    r#in: rtrb::Consumer<u8>,
    peer: Bell,
}

impl Wire for ByteRings {
    fn send(&mut self, payload: &[u8]) {
        self.out.push_entire_slice(payload).expect("there is room");
        self.peer.ring();
    }

    fn receive(&mut self, out: &mut [u8]) -> bool {
        self.r#in.pop_entire_slice(&mut out[..64]).is_ok()
    }
}

pub fn byte_rings(bytes: usize) -> [End<ByteRings>; 2] {
    let ((up, from_near), (down, from_far)) =
        (rtrb::RingBuffer::new(bytes), rtrb::RingBuffer::new(bytes));
    let (to_far, to_near) = (Bell::default(), Bell::default());
    let near = ByteRings { out: up, r#in: from_far, peer: to_far.clone() };
    let far = ByteRings { out: down, r#in: from_near, peer: to_near.clone() };
    [(near, to_near), (far, to_far)]
}

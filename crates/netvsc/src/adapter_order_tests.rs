//! Whatever comes and goes, every frame arrives, and none overtakes another (F5, F6), segments of large sends included (F11).

extern crate std;
use std::cell::RefCell;
use std::rc::Rc;
use std::vec;
use std::vec::Vec;

use proptest::prelude::*;

use super::*;
use crate::mac::MacAddress;
use crate::nic::{TxFrame, TxWork};
use crate::rndis::offload::IpOffloads;
use crate::rndis::packet::LargeSend;

/// A host: its end of the NIC's ring, its VF, and the wire behind both.
struct Host {
    /// Numbers of frames, in the order in which they arrived behind the host.
    wire: Vec<u32>,
    ring: VecDeque<Vec<u32>>,
    ring_room: usize,
    /// What the VF has not sent yet. The generation says which VF.
    queue: VecDeque<Vec<u32>>,
    confirmed: u64,
    generation: u32,
    link: PortLink,
    /// Which of NIC and VF cut large sends.
    cuts: [bool; 2],
    asked: VecDeque<Path>,
    signs: VecDeque<Sign>,
}

type Shared = Rc<RefCell<Host>>;

struct HostNic(Shared);

impl Synthetic for HostNic {
    type Event = Sign;
    type Error = ();

    fn poll(&mut self, _: Instant, _: &mut dyn FnMut(&dyn Frame)) -> Result<(), ()> {
        Ok(())
    }

    fn poll_event(&mut self) -> Option<Sign> {
        self.0.borrow_mut().signs.pop_front()
    }

    fn sign(event: &Sign) -> Option<Sign> {
        Some(*event)
    }

    fn poll_deadline(&self) -> Option<Instant> {
        None
    }

    fn transmit(&mut self, frame: &[u8]) -> Result<(), Refused> {
        let mut host = self.0.borrow_mut();
        if host.ring.len() == host.ring_room {
            return Err(Refused::Full(Lack::Ring));
        }
        host.ring.push_back(vec![number(frame)]);
        Ok(())
    }

    fn transmit_with(&mut self, frame: &TxFrame<'_>) -> Result<(), Refused> {
        let mut host = self.0.borrow_mut();
        if host.ring.len() == host.ring_room {
            return Err(Refused::Full(Lack::Ring));
        }
        assert!(frame.large_send.is_none() || host.cuts[0], "this host cuts nothing");
        host.ring.push_back(numbers(frame.pieces));
        Ok(())
    }

    fn offloads(&self) -> PathOffloads {
        offloads(self.0.borrow().cuts[0])
    }

    fn settings(&self) -> Option<PortSettings> {
        None
    }

    fn flush(&mut self) {}

    fn is_idle(&self) -> bool {
        self.0.borrow().ring.is_empty()
    }

    fn switch_data_path(&mut self, path: Path, _: Instant) {
        self.0.borrow_mut().asked.push_back(path);
    }
}

struct HostPort(Shared, u32);

impl HostPort {
    fn is_gone(&self) -> bool {
        self.0.borrow().generation != self.1
    }
}

impl VfPort for HostPort {
    fn permanent_mac(&self) -> Option<MacAddress> {
        None
    }

    fn link(&mut self) -> PortLink {
        if self.is_gone() { PortLink::Gone } else { self.0.borrow().link }
    }

    fn transmit(&mut self, frame: &[u8]) -> Result<(), PortError> {
        if self.is_gone() {
            return Err(PortError::Gone);
        }
        let mut host = self.0.borrow_mut();
        if host.queue.len() == 8 {
            return Err(PortError::Full);
        }
        host.queue.push_back(vec![number(frame)]);
        Ok(())
    }

    fn configure(&mut self, _: PortSettings) -> Result<(), PortError> {
        Ok(())
    }

    fn offloads(&self) -> PathOffloads {
        offloads(self.0.borrow().cuts[1])
    }

    fn transmit_with(&mut self, frame: &[u8], work: &TxWork) -> Result<(), PortError> {
        assert!(work.large_send.is_some(), "nothing else is asked for here");
        self.transmit(frame)?;
        let mut host = self.0.borrow_mut();
        *host.queue.back_mut().expect("the frame") = numbers(&[frame]);
        Ok(())
    }

    fn flush(&mut self) {}

    fn receive(&mut self, _: &mut dyn FnMut(&[u8])) -> usize {
        0
    }

    fn confirmed(&mut self) -> u64 {
        self.0.borrow().confirmed
    }
}

fn number(frame: &[u8]) -> u32 {
    u32::from_le_bytes(*frame.last_chunk().expect("four bytes"))
}

fn offloads(cuts: bool) -> PathOffloads {
    let large_send = if cuts { 1000 } else { 0 };
    let ipv4 = IpOffloads { large_send, ..IpOffloads::default() };
    PathOffloads { ipv4, ..PathOffloads::default() }
}

/// Bytes of the headers of a large send; each segment has four bytes of payload, a number.
const HEADERS: usize = 54;

/// What a large send that was handed over whole is about.
fn numbers(pieces: &[&[u8]]) -> Vec<u32> {
    let words = pieces.concat()[HEADERS..].to_vec();
    words.chunks(4).map(|word| u32::from_le_bytes(word.try_into().expect("a word"))).collect()
}

fn headers() -> [u8; HEADERS] {
    let mut bytes = [0; HEADERS];
    bytes[12..15].copy_from_slice(&[8, 0, 0x45]);
    bytes[23] = 6;
    bytes[46] = 0x50;
    bytes
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Send,
    SendLarge(u32),
    /// Another host, another VF: whether they cut.
    Cuts(bool, bool),
    Poll,
    HostTakes(usize),
    VfSends(usize),
    HostSwitches,
    HostLeavesVf,
    Associates(bool),
    Link(bool),
    Vanish,
    Bind,
    Release,
}

fn any_step() -> impl Strategy<Value = Step> {
    prop_oneof![
        24 => Just(Step::Send),
        6 => (1..9u32).prop_map(Step::SendLarge),
        1 => any::<(bool, bool)>().prop_map(|(nic, vf)| Step::Cuts(nic, vf)),
        12 => Just(Step::Poll),
        8 => (1..6usize).prop_map(Step::HostTakes),
        8 => (1..6usize).prop_map(Step::VfSends),
        8 => Just(Step::HostSwitches),
        1 => Just(Step::HostLeavesVf),
        3 => prop::bool::weighted(0.8).prop_map(Step::Associates),
        3 => prop::bool::weighted(0.7).prop_map(Step::Link),
        1 => Just(Step::Vanish),
        4 => Just(Step::Bind),
        1 => Just(Step::Release),
    ]
}

struct World {
    card: Adapter<HostNic, HostPort>,
    host: Shared,
    now: Instant,
    next: u32,
    accepted: u64,
}

impl World {
    fn new() -> Self {
        let host = Rc::new(RefCell::new(Host {
            wire: Vec::new(),
            ring: VecDeque::new(),
            ring_room: 6,
            queue: VecDeque::new(),
            confirmed: 0,
            generation: 0,
            link: PortLink::Up,
            cuts: [false; 2],
            asked: VecDeque::new(),
            signs: VecDeque::from([Sign::Ready, Sign::Associated]),
        }));
        let config =
            AdapterConfig { replay_frames: 12, frame_size: 60, large_send: 200, ..<_>::default() };
        let card = Adapter::new(HostNic(host.clone()), config);
        Self { card, host, now: Instant::ZERO, next: 0, accepted: 0 }
    }

    fn poll(&mut self) {
        self.card.poll(self.now, &mut |_, _| {}).expect("the channel lives");
        while self.card.poll_event().is_some() {}
    }

    fn send(&mut self) -> bool {
        let mut frame = [0; 60];
        frame[56..].copy_from_slice(&self.next.to_le_bytes());
        let sent = self.card.transmit(&frame, self.now).is_ok();
        self.next += u32::from(sent);
        self.accepted += u64::from(sent);
        sent
    }

    fn send_large(&mut self, segments: u32) {
        let data: Vec<u8> = (0..segments).flat_map(|at| (self.next + at).to_le_bytes()).collect();
        let (head, tail) = data.split_at(data.len() / 2);
        let pieces = [&headers()[..], head, tail];
        let large_send = Some(LargeSend { segment: 4, layer4: 34, ipv6: false });
        let frame = TxFrame { large_send, ..TxFrame::plain(&pieces) };
        match self.card.transmit_with(&frame, self.now) {
            Ok(()) => {
                self.next += segments;
                self.accepted += 1;
            }
            Err(error) => {
                let now = matches!(error, AdapterError::Full(_) | AdapterError::NotReady);
                assert!(now, "{error}");
            }
        }
    }

    fn step(&mut self, step: Step) {
        // Little enough that nothing is given up for lateness.
        self.now = self.now + core::time::Duration::from_millis(1);
        let mut host = self.host.borrow_mut();
        match step {
            Step::HostTakes(most) => {
                let count = most.min(host.ring.len());
                let frames: Vec<_> = host.ring.drain(..count).collect();
                host.wire.extend(frames.into_iter().flatten());
            }
            Step::VfSends(most) if host.link == PortLink::Up => {
                let count = most.min(host.queue.len());
                let frames: Vec<_> = host.queue.drain(..count).collect();
                host.confirmed += frames.len() as u64;
                host.wire.extend(frames.into_iter().flatten());
            }
            Step::HostSwitches => {
                let path = host.asked.pop_front();
                host.signs.extend(path.map(Sign::SwitchCompleted));
            }
            Step::HostLeavesVf => host.signs.push_back(Sign::HostSwitched(Path::Synthetic)),
            Step::Cuts(nic, vf) => {
                host.cuts[0] = nic;
                // A VF is what it is for as long as it is there.
                host.cuts[1] = if self.card.has_port() { host.cuts[1] } else { vf };
            }
            Step::Associates(true) => host.signs.push_back(Sign::Associated),
            Step::Associates(false) => host.signs.push_back(Sign::Disassociated),
            Step::Link(up) => host.link = if up { PortLink::Up } else { PortLink::Down },
            Step::Vanish => {
                // What the VF had and had not sent perishes with it.
                host.generation += 1;
                host.queue.clear();
            }
            _ => {}
        }
        let generation = host.generation;
        drop(host);
        match step {
            Step::Send => {
                self.send();
            }
            Step::SendLarge(segments) => self.send_large(segments),
            Step::Poll => self.poll(),
            Step::Bind if !self.card.has_port() => {
                // A new VF knows nothing of the old one's frames.
                self.host.borrow_mut().generation = generation + 1;
                self.host.borrow_mut().queue.clear();
                let port = HostPort(self.host.clone(), generation + 1);
                assert!(self.card.bind(port, self.now).is_ok());
            }
            Step::Release => self.card.release(Cause::Eject, self.now),
            _ => {}
        }
    }

    /// Lets everything that is under way arrive.
    fn rest(&mut self) {
        self.step(Step::Link(true));
        for _ in 0..1_000 {
            for step in [Step::Poll, Step::HostTakes(9), Step::VfSends(9), Step::HostSwitches] {
                self.step(step);
            }
            let host = self.host.borrow();
            if host.asked.is_empty() && host.ring.is_empty() && host.queue.is_empty() {
                drop(host);
                self.poll();
                let host = self.host.borrow();
                if self.card.is_quiet() && host.asked.is_empty() && host.ring.is_empty() {
                    return;
                }
            }
        }
        panic!("never at rest: {:?}", self.card.counters());
    }
}

/// The order in which frames arrived for the first time.
fn first_arrivals(wire: &[u32]) -> Vec<u32> {
    let mut seen = std::collections::BTreeSet::new();
    wire.iter().copied().filter(|number| seen.insert(*number)).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    #[test]
    fn every_frame_arrives_in_order_whatever_happens_to_the_vf(
        steps in prop::collection::vec(any_step(), 0..200),
    ) {
        let mut world = World::new();
        for step in steps {
            world.step(step);
        }
        world.rest();
        // And it still works.
        prop_assert!(world.send(), "a card at rest takes a frame");
        world.rest();
        let counters = world.card.counters();
        let arrived = first_arrivals(&world.host.borrow().wire);
        prop_assert_eq!(arrived, (0..world.next).collect::<Vec<_>>());
        prop_assert_eq!(counters.frames_accepted, world.accepted);
        prop_assert_eq!(
            counters.frames_accepted + counters.frames_cut + counters.frames_resent,
            counters.frames_vf + counters.frames_synthetic
        );
        prop_assert_eq!(counters.frames_lost, 0);
    }
}

/// Without surprises and lost carriers nothing arrives twice either.
#[test]
fn an_orderly_life_duplicates_nothing() {
    let mut world = World::new();
    world.poll();
    for round in 0..50 {
        let orderly = [
            Step::Bind,
            Step::Send,
            Step::HostSwitches,
            Step::Poll,
            Step::Send,
            Step::HostTakes(3),
            Step::Poll,
            Step::Send,
            Step::Send,
            Step::Release,
            Step::Send,
            Step::VfSends(1),
            Step::Send,
            Step::Poll,
            Step::VfSends(9),
            Step::Poll,
            Step::HostSwitches,
            Step::Poll,
            Step::Send,
        ];
        for step in orderly {
            world.step(step);
        }
        world.rest();
        assert!(!world.card.has_port(), "round {round}");
    }
    let counters = world.card.counters();
    assert_eq!((counters.switches_to_vf, counters.switches_to_synthetic), (50, 50));
    assert_eq!(world.host.borrow().wire, (0..world.next).collect::<Vec<_>>());
    assert!(counters.frames_vf > 50 && counters.frames_resent == 0);
}

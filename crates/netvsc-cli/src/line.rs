//! A TAP interface with what waits for it. The kernel leaves checksums and the cutting of long TCP segments to this side, and gets
//! segments that follow each other as one.

use std::collections::VecDeque;
use std::os::fd::BorrowedFd;

use hyperv_host::nic::coalesce::Segment;
use hyperv_host::nic::offload::{ChecksumRequest, LargeSend, Segments, fill_checksums};
use hyperv_host::switch::Uncut;
use netvsc::nic::flow_of;
use netvsc_linux::{Offloaded, Tap, TapError, TapName};
use rustix::event::PollFlags;

use crate::error::Error;
use crate::guest::Sending;

/// Longest frame that a TAP gives, and one byte more: an MTU of 65,521 and its header, or a segment of 64 KiB.
const BUFFER: usize = 65_536 + 64;
/// Frames taken from a TAP before the rest of the world gets its turn, and at least from each of its queues.
const BURST: usize = 64;
const EACH: usize = 16;
/// Frames that may wait for a TAP.
const BACKLOG: usize = 4096;
/// Longest segment that the kernel gets: an IP packet of 65,535 bytes with Ethernet header.
const LONGEST: usize = 65_535 + 14;

/// A frame that waits for the kernel.
#[derive(Default)]
struct Waiting {
    frame: Vec<u8>,
    /// The segment that it is, if it may be joined, and how long the payload of the first one is.
    segment: Option<(Segment, usize)>,
    /// No more may be joined to it.
    closed: bool,
    /// What was left to the kernel by whoever gave it.
    left: Offloaded,
}

impl Waiting {
    /// What is left to the kernel; the headers are made to say how long the frame is.
    fn finish(&mut self) -> Offloaded {
        let Some((segment, size)) = self.segment.take() else { return self.left };
        if !segment.is_joined() {
            return Offloaded::Done;
        }
        segment.leave_checksum(&mut self.frame);
        let (layer4, headers) = segment.headers();
        let number = |value| u16::try_from(value).unwrap_or(u16::MAX);
        Offloaded::Segments {
            layer4: number(layer4),
            headers: number(headers),
            size: number(size),
            ipv6: segment.is_ipv6(),
        }
    }
}

/// What a queue has for who reads it. A frame that cannot be sent is one of a burst all the same, so that nobody is kept by those alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Held {
    Frame,
    Unusable,
    Nothing,
}

/// What the kernel sends out of one queue of a TAP.
struct Inlet {
    queue: usize,
    /// The first `held` bytes are a frame that was refused for now.
    buffer: Vec<u8>,
    held: usize,
    left: Offloaded,
    /// Pieces of it that have been taken.
    taken: usize,
    /// Frames that the kernel gave in no state to be sent.
    unusable: u64,
}

impl Inlet {
    fn new(queue: usize) -> Self {
        Self {
            queue,
            buffer: vec![0; BUFFER],
            held: 0,
            left: Offloaded::Done,
            taken: 0,
            unusable: 0,
        }
    }

    /// Reads the next frame unless one is held.
    fn hold_next(&mut self, tap: &Tap) -> Result<Held, Error> {
        if self.held > 0 {
            return Ok(Held::Frame);
        }
        match tap.read_offloaded_from(self.queue, &mut self.buffer) {
            Ok(Some((len, left))) => {
                (self.held, self.left, self.taken) = (len, left, 0);
                Ok(Held::Frame)
            }
            Ok(None) => Ok(Held::Nothing),
            // Whatever somebody got the kernel to send costs that frame, and not the run.
            Err(error @ TapError::Offloads { .. }) => {
                tracing::debug!(%error, "a frame that cannot be sent");
                self.unusable += 1;
                Ok(Held::Unusable)
            }
            Err(error) => Err(error.into()),
        }
    }

    /// See [`Line::fetch`].
    fn fetch(
        &mut self,
        tap: &Tap,
        burst: usize,
        take: &mut dyn FnMut(&[u8], &Offloaded) -> Sending,
    ) -> Result<bool, Error> {
        let mut moved = false;
        for _ in 0..burst {
            match self.hold_next(tap)? {
                Held::Nothing => break,
                Held::Unusable => moved = true,
                Held::Frame => {
                    let frame = self.buffer.get(..self.held).unwrap_or_default();
                    if let Sending::Later = take(frame, &self.left) {
                        break;
                    }
                    self.held = 0;
                    moved = true;
                }
            }
        }
        Ok(moved)
    }
}

/// One TAP with the frames that wait for it, and of each of its queues the one frame that found no room.
pub(crate) struct Line {
    tap: Tap,
    /// For the kernel.
    waiting: VecDeque<Waiting>,
    /// What is left to be done to the first of them, once it has been tried.
    first: Option<Offloaded>,
    spare: Vec<Vec<u8>>,
    /// From the kernel, by queue.
    inlets: Vec<Inlet>,
    piece: Vec<u8>,
    /// Frames that the kernel did not take because the TAP was down or its backlog full.
    refused: u64,
}

impl Line {
    pub(crate) fn open(name: &TapName) -> Result<Self, Error> {
        Self::open_with_queues(name, 1)
    }

    /// A TAP with so many queues, over which the kernel spreads its flows.
    pub(crate) fn open_with_queues(name: &TapName, queues: u16) -> Result<Self, Error> {
        let tap = Tap::open_with_queues(name, queues)?;
        Ok(Self {
            inlets: (0..tap.queues()).map(Inlet::new).collect(),
            tap,
            waiting: VecDeque::new(),
            first: None,
            spare: Vec::new(),
            piece: Vec::new(),
            refused: 0,
        })
    }

    /// The same for a segment whose buffer can be had: another one is given for it.
    pub(crate) fn push_uncut(&mut self, segment: Vec<u8>, uncut: Uncut) -> Vec<u8> {
        self.queue_uncut(segment, uncut);
        self.spare.pop().unwrap_or_default()
    }

    /// A frame for the kernel, or a segment that is longer than a frame.
    pub(crate) fn push(&mut self, fill: impl FnOnce(&mut Vec<u8>) -> Option<Uncut>) {
        let mut frame = self.spare.pop().unwrap_or_default();
        frame.clear();
        if let Some(uncut) = fill(&mut frame) {
            self.queue_uncut(frame, uncut);
            return;
        }
        let segment = Segment::verified(&frame);
        let payload = segment.map_or(0, |segment| frame.len() - segment.headers().1);
        // The headers of one that was tried say already how long it is.
        let tried = self.waiting.len() == 1 && self.first.is_some();
        if let Some(last) = self.waiting.back_mut().filter(|last| !last.closed && !tried)
            && let Some((grown, size)) = &mut last.segment
            && (1..=*size).contains(&payload)
            && grown.join(&mut last.frame, &frame, LONGEST)
        {
            // Only the last piece may be shorter than the others.
            last.closed = payload < *size;
            self.spare.push(frame);
            return;
        }
        if self.waiting.len() >= BACKLOG {
            self.refused += 1;
            self.spare.push(frame);
            return;
        }
        let segment = segment.map(|segment| (segment, payload));
        let left = Offloaded::Done;
        self.waiting.push_back(Waiting { frame, segment, closed: false, left });
    }

    fn queue_uncut(&mut self, frame: Vec<u8>, uncut: Uncut) {
        if self.waiting.len() >= BACKLOG {
            self.refused += 1;
            self.spare.push(frame);
            return;
        }
        let number = |value| u16::try_from(value).unwrap_or(u16::MAX);
        let left = Offloaded::Segments {
            layer4: number(uncut.layer4),
            headers: number(uncut.headers),
            size: number(uncut.segment),
            ipv6: uncut.ipv6,
        };
        self.waiting.push_back(Waiting { frame, segment: None, closed: true, left });
    }

    /// Hands the kernel what waits for it.
    pub(crate) fn drain(&mut self) -> Result<bool, Error> {
        let mut moved = false;
        while let Some(next) = self.waiting.front_mut() {
            let left = *self.first.get_or_insert_with(|| next.finish());
            let queue = queue_of(&self.tap, &next.frame);
            match self.tap.write_offloaded_to(queue, &next.frame, &left) {
                Ok(true) => {}
                Ok(false) => break,
                // A TAP that is down, as while it moves to another namespace, is a cable that is not plugged in.
                Err(TapError::Down { .. } | TapError::FrameLength { .. }) => self.refused += 1,
                Err(error) => return Err(error.into()),
            }
            moved = true;
            self.first = None;
            self.spare.extend(self.waiting.pop_front().map(|done| done.frame));
        }
        Ok(moved)
    }

    /// Takes frames from the kernel, with what is left to be done to them, until there are no more, a burst is over, or `take`
    /// refuses one, which is then held; the other queues have their turn all the same.
    pub(crate) fn fetch(
        &mut self,
        mut take: impl FnMut(&[u8], &Offloaded) -> Sending,
    ) -> Result<bool, Error> {
        let burst = (BURST / self.inlets.len()).max(EACH);
        let mut moved = false;
        for inlet in &mut self.inlets {
            moved |= inlet.fetch(&self.tap, burst, &mut take)?;
        }
        Ok(moved)
    }

    /// The same for who wants frames as they go over a wire: with checksums, and none longer than the MTU; but segments as they are
    /// if they may be `whole`.
    pub(crate) fn fetch_plain(
        &mut self,
        whole: bool,
        mut take: impl FnMut(&[u8], Option<Uncut>) -> Sending,
    ) -> Result<bool, Error> {
        let Self { tap, inlets, piece, .. } = self;
        let burst = (BURST / inlets.len()).max(EACH);
        let mut moved = false;
        for inlet in inlets {
            for _ in 0..burst {
                match inlet.hold_next(tap)? {
                    Held::Nothing => break,
                    Held::Unusable => {
                        moved = true;
                        continue;
                    }
                    Held::Frame => {}
                }
                match inlet.give(whole, piece, &mut take) {
                    Given::Some => {
                        moved = true;
                        break;
                    }
                    Given::Nothing => break,
                    Given::All => moved = true,
                    Given::Unusable => inlet.unusable += 1,
                }
                (inlet.held, inlet.taken) = (0, 0);
            }
        }
        Ok(moved)
    }

    /// The interface.
    pub(crate) fn tap(&self) -> &Tap {
        &self.tap
    }

    /// What to wait for: `open` is whether frames of the kernel are wanted. One that found no room waits for the other side, not
    /// for the kernel.
    pub(crate) fn polls(&self, open: bool) -> impl Iterator<Item = (BorrowedFd<'_>, PollFlags)> {
        let blocked = self.waiting.front().map(|next| queue_of(&self.tap, &next.frame));
        self.inlets.iter().filter_map(move |inlet| {
            let mut flags = PollFlags::empty();
            flags.set(PollFlags::IN, open && inlet.held == 0);
            flags.set(PollFlags::OUT, blocked == Some(inlet.queue));
            (!flags.is_empty()).then(|| (self.tap.queue(inlet.queue), flags))
        })
    }

    /// Frames that the kernel did not take, or gave in no state to be sent.
    pub(crate) fn refused(&self) -> u64 {
        self.refused + self.inlets.iter().map(|inlet| inlet.unusable).sum::<u64>()
    }
}

/// The queue that all frames of this one's flow go through, so that the kernel sends the answers out of the same.
fn queue_of(tap: &Tap, frame: &[u8]) -> usize {
    if tap.queues() == 1 { 0 } else { flow_of(frame) as usize % tap.queues() }
}

/// What was taken of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Given {
    All,
    Some,
    Nothing,
    /// It cannot be sent in the state in which the kernel gave it.
    Unusable,
}

impl Inlet {
    /// Offers what is left of the held frame, as it goes over a wire.
    fn give(
        &mut self,
        whole: bool,
        piece: &mut Vec<u8>,
        take: &mut dyn FnMut(&[u8], Option<Uncut>) -> Sending,
    ) -> Given {
        let frame = self.buffer.get_mut(..self.held).unwrap_or_default();
        let mut uncut = None;
        match self.left {
            Offloaded::Done => {}
            Offloaded::Checksum { layer4, udp } => {
                let request = ChecksumRequest {
                    tcp: !udp,
                    udp,
                    layer4_offset: layer4.into(),
                    ..ChecksumRequest::default()
                };
                self.left = Offloaded::Done;
                if fill_checksums(frame, request).is_err() {
                    return Given::Unusable;
                }
            }
            Offloaded::Segments { layer4, size, ipv6, .. } => {
                let request = LargeSend { segment: size.into(), tcp_offset: layer4.into(), ipv6 };
                let Ok(segments) = Segments::new(frame, request) else { return Given::Unusable };
                if whole && self.taken == 0 {
                    uncut = Some(segments.leave(frame));
                } else {
                    let before = self.taken;
                    while self.taken < segments.count(frame) {
                        segments.write(frame, self.taken, piece);
                        if let Sending::Later = take(piece, None) {
                            return if self.taken > before { Given::Some } else { Given::Nothing };
                        }
                        self.taken += 1;
                    }
                    return Given::All;
                }
            }
        }
        match take(frame, uncut) {
            Sending::Later => Given::Nothing,
            _ => Given::All,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::namespace::{in_namespace, ip};
    use netvsc::VfPort as _;
    use netvsc::nic::TxWork;
    use netvsc::rndis::packet::LargeSend;
    use netvsc_linux::vf::{PacketConfig, PacketPort};

    #[test]
    fn frames_that_cannot_be_sent_are_part_of_a_burst() {
        in_namespace("line::tests::frames_that_cannot_be_sent_are_part_of_a_burst", || {
            std::fs::write("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1").expect("root may");
            let mut line = Line::open(&"nvt0".parse().expect("a name")).expect("a TAP");
            ip("link set nvt0 up");
            let config = PacketConfig { bypass: false, ..PacketConfig::default() };
            let mut port = PacketPort::open("nvt0", config).expect("a port");
            // TCP over IPv6 behind 1,200 bytes of options: the kernel takes that, and no card.
            let mut frame = vec![2; 12];
            frame.extend([0x86, 0xdd, 0x60, 0, 0, 0, 0x0f, 0xca, 60, 64]);
            frame.extend(1..=32);
            frame.extend([6, 149, 1, 250]);
            frame.resize(54 + 1200, 0);
            frame.extend([0; 12]);
            frame.extend([0x50, 0x10, 0, 0, 0, 0, 0, 0]);
            frame.resize(4096, 7);
            let send = LargeSend { segment: 1000, layer4: 1254, ipv6: true };
            for _ in 0..BURST * 3 + 1 {
                let work = TxWork { large_send: Some(send), ..TxWork::NONE };
                port.transmit_with(&frame, &work).expect("room");
                port.flush();
            }
            for round in 1..=3 {
                let moved = match round {
                    2 => line.fetch_plain(false, |_, _| panic!("a frame")),
                    _ => line.fetch(|_, _| panic!("a frame")),
                };
                assert!(moved.expect("it reads"));
                assert_eq!(line.refused(), (BURST * round) as u64);
            }
            assert!(line.fetch(|_, _| panic!("a frame")).expect("it reads"));
            assert!(!line.fetch(|_, _| panic!("a frame")).expect("it reads"), "no more");
            assert_eq!(line.refused(), BURST as u64 * 3 + 1);
        });
    }
}

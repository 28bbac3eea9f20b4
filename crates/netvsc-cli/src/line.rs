//! A TAP interface with what waits for it. The kernel leaves checksums and the cutting of long TCP segments to this side, and gets
//! segments that follow each other as one.

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd};

use hyperv_host::nic::coalesce::Segment;
use hyperv_host::nic::offload::{ChecksumRequest, LargeSend, Segments, fill_checksums};
use hyperv_host::switch::Uncut;
use netvsc_linux::{Offloaded, Tap, TapError, TapName};
use rustix::event::PollFlags;

use crate::error::Error;
use crate::guest::Sending;

/// Longest frame that a TAP gives, and one byte more: an MTU of 65,521 and its header, or a segment of 64 KiB.
const BUFFER: usize = 65_536 + 64;
/// Frames taken from a TAP before the rest of the world gets its turn.
const BURST: usize = 64;
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

/// One TAP with the frames that wait for it and the one frame of it that found no room.
pub(crate) struct Line {
    tap: Tap,
    /// For the kernel.
    waiting: VecDeque<Waiting>,
    /// What is left to be done to the first of them, once it has been tried.
    first: Option<Offloaded>,
    spare: Vec<Vec<u8>>,
    /// From the kernel; the first `held` bytes are a frame that was refused for now.
    buffer: Vec<u8>,
    held: usize,
    left: Offloaded,
    /// Pieces of it that have been taken.
    taken: usize,
    piece: Vec<u8>,
    /// Frames that the kernel did not take because the TAP was down or its backlog full, or that it gave in no state to be sent.
    refused: u64,
}

impl Line {
    pub(crate) fn open(name: &TapName) -> Result<Self, Error> {
        Ok(Self {
            tap: Tap::open_with_offloads(name)?,
            waiting: VecDeque::new(),
            first: None,
            spare: Vec::new(),
            buffer: vec![0; BUFFER],
            held: 0,
            left: Offloaded::Done,
            taken: 0,
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
            match self.tap.write_offloaded(&next.frame, &left) {
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
    /// refuses one, which is then held.
    pub(crate) fn fetch(
        &mut self,
        mut take: impl FnMut(&[u8], &Offloaded) -> Sending,
    ) -> Result<bool, Error> {
        let mut moved = false;
        for _ in 0..BURST {
            if !self.hold_next()? {
                break;
            }
            let frame = self.buffer.get(..self.held).unwrap_or_default();
            if let Sending::Later = take(frame, &self.left) {
                break;
            }
            self.held = 0;
            moved = true;
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
        let mut moved = false;
        for _ in 0..BURST {
            if !self.hold_next()? {
                break;
            }
            let frame = self.buffer.get_mut(..self.held).unwrap_or_default();
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
                        (self.held, self.refused) = (0, self.refused + 1);
                        continue;
                    }
                }
                Offloaded::Segments { layer4, size, ipv6, .. } => {
                    let request =
                        LargeSend { segment: size.into(), tcp_offset: layer4.into(), ipv6 };
                    let Ok(segments) = Segments::new(frame, request) else {
                        (self.held, self.refused) = (0, self.refused + 1);
                        continue;
                    };
                    if whole && self.taken == 0 {
                        let uncut = segments.leave(frame);
                        if let Sending::Later = take(frame, Some(uncut)) {
                            break;
                        }
                        self.held = 0;
                        moved = true;
                        continue;
                    }
                    let count = segments.count(frame);
                    while self.taken < count {
                        segments.write(frame, self.taken, &mut self.piece);
                        if let Sending::Later = take(&self.piece, None) {
                            return Ok(moved);
                        }
                        self.taken += 1;
                        moved = true;
                    }
                    (self.held, self.taken) = (0, 0);
                    continue;
                }
            }
            if let Sending::Later = take(frame, None) {
                break;
            }
            self.held = 0;
            moved = true;
        }
        Ok(moved)
    }

    /// Reads the next frame unless one is held. False if there is none.
    fn hold_next(&mut self) -> Result<bool, Error> {
        if self.held == 0 {
            let Some((len, left)) = self.tap.read_offloaded(&mut self.buffer)? else {
                return Ok(false);
            };
            (self.held, self.left, self.taken) = (len, left, 0);
        }
        Ok(self.held > 0)
    }

    /// The interface.
    pub(crate) fn tap(&self) -> &Tap {
        &self.tap
    }

    /// What to wait for: `open` is whether frames of the kernel are wanted. One that found no room waits for the other side, not
    /// for the kernel.
    pub(crate) fn wanted(&self, open: bool) -> PollFlags {
        let mut flags = PollFlags::empty();
        if open && self.held == 0 {
            flags |= PollFlags::IN;
        }
        if !self.waiting.is_empty() {
            flags |= PollFlags::OUT;
        }
        flags
    }

    /// Frames that the kernel did not take.
    pub(crate) fn refused(&self) -> u64 {
        self.refused
    }
}

impl AsFd for Line {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.tap.as_fd()
    }
}

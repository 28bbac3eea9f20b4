//! A TAP interface with what waits for it.

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd};

use netvsc_linux::{Tap, TapError, TapName};
use rustix::event::PollFlags;

use crate::error::Error;
use crate::guest::Sending;

/// Longest frame that a TAP without offloads gives, and one byte more: an MTU of 65,521 and its header.
const BUFFER: usize = 65_536 + 64;
/// Frames taken from a TAP before the rest of the world gets its turn.
const BURST: usize = 64;
/// Frames that may wait for a TAP.
const BACKLOG: usize = 4096;

/// One TAP with the frames that wait for it and the one frame of it that found no room.
pub(crate) struct Line {
    tap: Tap,
    /// For the kernel.
    waiting: VecDeque<Vec<u8>>,
    spare: Vec<Vec<u8>>,
    /// From the kernel, refused for now.
    held: Vec<u8>,
    /// Frames that the kernel did not take because the TAP was down or its backlog full.
    refused: u64,
}

impl Line {
    pub(crate) fn open(name: &TapName) -> Result<Self, Error> {
        let tap = Tap::open(name)?;
        let held = Vec::with_capacity(BUFFER);
        Ok(Self { tap, waiting: VecDeque::new(), spare: Vec::new(), held, refused: 0 })
    }

    /// A frame for the kernel.
    pub(crate) fn push(&mut self, fill: impl FnOnce(&mut Vec<u8>)) {
        if self.waiting.len() >= BACKLOG {
            self.refused += 1;
            return;
        }
        let mut buffer = self.spare.pop().unwrap_or_default();
        buffer.clear();
        fill(&mut buffer);
        self.waiting.push_back(buffer);
    }

    /// Hands the kernel what waits for it.
    pub(crate) fn drain(&mut self) -> Result<bool, Error> {
        let mut moved = false;
        while let Some(frame) = self.waiting.front() {
            match self.tap.write_frame(frame) {
                Ok(true) => {}
                Ok(false) => break,
                // A TAP that is down, as while it moves to another namespace, is a cable that is not plugged in.
                Err(TapError::Down { .. } | TapError::FrameLength { .. }) => self.refused += 1,
                Err(error) => return Err(error.into()),
            }
            moved = true;
            self.spare.extend(self.waiting.pop_front());
        }
        Ok(moved)
    }

    /// Takes frames from the kernel until there are no more, a burst is over, or `take` refuses one, which is then held.
    pub(crate) fn fetch(&mut self, mut take: impl FnMut(&[u8]) -> Sending) -> Result<bool, Error> {
        let mut moved = false;
        for _ in 0..BURST {
            if self.held.is_empty() {
                self.held.resize(BUFFER, 0);
                match self.tap.read_frame(&mut self.held)? {
                    Some(len) => self.held.truncate(len),
                    None => {
                        self.held.clear();
                        break;
                    }
                }
            }
            if let Sending::Later = take(&self.held) {
                break;
            }
            self.held.clear();
            moved = true;
        }
        Ok(moved)
    }

    /// The interface.
    pub(crate) fn tap(&self) -> &Tap {
        &self.tap
    }

    /// What to wait for: `open` is whether frames of the kernel are wanted. One that found no room waits for the other side, not
    /// for the kernel.
    pub(crate) fn wanted(&self, open: bool) -> PollFlags {
        let mut flags = PollFlags::empty();
        if open && self.held.is_empty() {
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

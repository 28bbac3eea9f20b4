//! Copies of frames that may have to go out again.

use alloc::boxed::Box;
use core::fmt;

/// Frames that a VF has and has not confirmed, oldest first. All memory is taken at the start.
pub struct Replay {
    bytes: Box<[u8]>,
    lengths: Box<[usize]>,
    frame_size: usize,
    first: usize,
    count: usize,
}

impl fmt::Debug for Replay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Replay({} of {})", self.count, self.lengths.len())
    }
}

impl Replay {
    /// Room for `frames` frames of up to `frame_size` bytes.
    #[must_use]
    pub fn new(frames: usize, frame_size: usize) -> Self {
        Self {
            bytes: alloc::vec![0; frames.saturating_mul(frame_size)].into(),
            lengths: alloc::vec![0; frames].into(),
            frame_size,
            first: 0,
            count: 0,
        }
    }

    /// Number of frames.
    #[must_use]
    pub fn len(&self) -> usize {
        self.count
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    pub(super) fn is_full(&self) -> bool {
        self.count == self.lengths.len()
    }

    /// Place of the frame `index` behind the oldest.
    fn place(&self, index: usize) -> usize {
        let place = self.first + index;
        if place < self.lengths.len() { place } else { place - self.lengths.len() }
    }

    /// Keeps a copy. The caller has looked for room and length.
    pub(super) fn push(&mut self, frame: &[u8]) {
        let place = self.place(self.count);
        let start = place * self.frame_size;
        let to = self.bytes.get_mut(start..start + frame.len());
        if let (Some(to), Some(length)) = (to, self.lengths.get_mut(place)) {
            to.copy_from_slice(frame);
            *length = frame.len();
            self.count += 1;
        }
    }

    /// The oldest frame.
    pub(super) fn front(&self) -> Option<&[u8]> {
        if self.count == 0 {
            return None;
        }
        let start = self.first * self.frame_size;
        self.bytes.get(start..start + self.lengths.get(self.first)?)
    }

    /// Forgets the oldest `frames` frames.
    pub(super) fn forget(&mut self, frames: usize) {
        let frames = frames.min(self.count);
        self.first = self.place(frames);
        self.count -= frames;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_replay_buffer_wraps() {
        let mut replay = Replay::new(3, 60);
        for number in 0..100 {
            replay.push(&[number; 60]);
            replay.push(&[number + 1; 60]);
            assert_eq!(replay.front(), Some(&[number; 60][..]));
            replay.forget(1);
            assert_eq!(replay.front(), Some(&[number + 1; 60][..]));
            replay.forget(5);
            assert!(replay.is_empty() && replay.front().is_none());
        }
    }
}

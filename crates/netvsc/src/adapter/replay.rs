//! Copies of frames that may have to go out again.

use alloc::boxed::Box;
use alloc::collections::VecDeque;
use core::fmt;
use core::ops::Range;

use crate::nic::TxWork;
use crate::nic::cut::Cut;

/// Large sends for which there is room, beside the other frames.
const LARGE_SENDS: usize = 4;

/// One frame, or one large send that goes out as several.
#[derive(Clone, Copy, Debug)]
pub(super) struct Record {
    start: usize,
    len: usize,
    /// What is still to be done to the bytes.
    pub(super) work: TxWork,
    /// How it is cut, if that is done here.
    pub(super) cut: Option<Cut>,
    /// As how many frames it goes out.
    pub(super) frames: usize,
    /// How many of them a VF has been given.
    pub(super) given: usize,
    /// How many of them need not go out any more.
    pub(super) done: usize,
}

/// What the upper layer has handed over and nobody has confirmed, oldest first: frames that a VF has, and behind them the rest of a
/// large send that it had no room for. All memory is taken at the start.
pub struct Replay {
    bytes: Box<[u8]>,
    records: VecDeque<Record>,
    most: usize,
    /// Frames that the VF has.
    with_port: usize,
    /// Records that it has completely.
    complete: usize,
}

impl fmt::Debug for Replay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Replay({} of {})", self.records.len(), self.most)
    }
}

impl Replay {
    /// Room for `frames` frames of up to `frame_size` bytes, or for fewer and a few of up to `large_send`.
    #[must_use]
    pub fn new(frames: usize, frame_size: usize, large_send: usize) -> Self {
        // One more, since a record that does not fit before the end goes to the beginning.
        let plain = frames.saturating_add(1).saturating_mul(frame_size);
        let large = large_send.saturating_mul(LARGE_SENDS);
        Self {
            bytes: alloc::vec![0; plain.saturating_add(large)].into(),
            records: VecDeque::with_capacity(frames),
            most: frames,
            with_port: 0,
            complete: 0,
        }
    }

    /// Number of frames that are still to be confirmed or sent.
    #[must_use]
    pub fn len(&self) -> usize {
        self.records.iter().map(|record| record.frames - record.done).sum()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.records.is_empty()
    }

    /// Frames that the VF has and has not confirmed.
    pub(super) fn with_port(&self) -> usize {
        self.with_port
    }

    /// Whether the VF has not been given everything.
    pub(super) fn is_waiting(&self) -> bool {
        self.complete < self.records.len()
    }

    /// Where so many bytes would go.
    fn place(&self, len: usize) -> Option<Range<usize>> {
        if self.records.len() >= self.most {
            return None;
        }
        let start = match (self.records.front(), self.records.back()) {
            (Some(first), Some(last)) => {
                let end = last.start + last.len;
                if first.start >= end {
                    // Wrapped already.
                    return (first.start - end >= len).then_some(end..end + len);
                }
                match self.bytes.len() - end >= len {
                    true => end,
                    false if first.start >= len => 0,
                    false => return None,
                }
            }
            _ => 0,
        };
        (len <= self.bytes.len()).then_some(start..start + len)
    }

    /// Whether so many bytes can be kept now.
    pub(super) fn has_room(&self, len: usize) -> bool {
        self.place(len).is_some()
    }

    /// Keeps the bytes that `pieces` make up, `len` together. The caller has looked for room. They are not with the VF yet.
    pub(super) fn push<'a>(
        &mut self,
        pieces: impl Iterator<Item = &'a [u8]>,
        len: usize,
    ) -> Option<(&mut Record, &mut [u8])> {
        let place = self.place(len)?;
        let start = place.start;
        let room = self.bytes.get_mut(place)?;
        let mut rest = &mut *room;
        for piece in pieces {
            let (now, later) = rest.split_at_mut_checked(piece.len())?;
            now.copy_from_slice(piece);
            rest = later;
        }
        self.records.push_back(Record {
            start,
            len,
            work: TxWork::NONE,
            cut: None,
            frames: 1,
            given: 0,
            done: 0,
        });
        Some((self.records.back_mut()?, room))
    }

    /// Keeps a frame that the VF has just taken as it is. The caller has looked for room.
    pub(super) fn push_given(&mut self, frame: &[u8]) {
        if let Some((record, _)) = self.push(core::iter::once(frame), frame.len()) {
            record.given = 1;
            self.with_port += 1;
            self.complete += 1;
        }
    }

    /// Takes back the newest record, of which the VF has nothing. Its frames.
    pub(super) fn withdraw(&mut self) -> Option<usize> {
        self.records.pop_back_if(|record| record.given == 0).map(|record| record.frames)
    }

    /// The oldest record that the VF does not have completely.
    pub(super) fn waiting(&self) -> Option<(&Record, &[u8])> {
        self.at(self.complete)
    }

    /// The oldest record.
    pub(super) fn front(&self) -> Option<(&Record, &[u8])> {
        self.at(0)
    }

    fn at(&self, index: usize) -> Option<(&Record, &[u8])> {
        let record = self.records.get(index)?;
        Some((record, self.bytes.get(record.start..record.start + record.len)?))
    }

    /// The oldest record is cut here from now on.
    pub(super) fn cut_front(&mut self, cut: Cut) {
        if let Some(record) = self.records.front_mut() {
            record.frames = cut.count(record.len);
            record.cut = Some(cut);
        }
    }

    /// The VF has been given one more frame of the record that waits.
    pub(super) fn gave(&mut self) {
        if let Some(record) = self.records.get_mut(self.complete) {
            record.given += 1;
            self.with_port += 1;
            self.complete += usize::from(record.given == record.frames);
        }
    }

    /// The VF has confirmed so many of the frames that it has.
    pub(super) fn confirmed(&mut self, frames: usize) {
        let mut left = frames.min(self.with_port);
        self.with_port -= left;
        while left > 0 {
            let Some(record) = self.records.front_mut() else { return };
            let open = record.given - record.done;
            let now = open.min(left);
            record.done += now;
            left -= now;
            if record.done < record.frames {
                return;
            }
            self.records.pop_front();
            self.complete = self.complete.saturating_sub(1);
        }
    }

    /// The VF has nothing of it any more.
    pub(super) fn take_back(&mut self) {
        self.with_port = 0;
        self.complete = 0;
    }

    /// The oldest frame needs not go out any more.
    pub(super) fn forget(&mut self) {
        if let Some(record) = self.records.front_mut() {
            record.done += 1;
            if record.done >= record.frames {
                self.records.pop_front();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use std::vec;
    use std::vec::Vec;

    #[test]
    fn the_replay_buffer_wraps() {
        let mut replay = Replay::new(3, 60, 0);
        for number in 0..100 {
            replay.push_given(&[number; 60]);
            replay.push_given(&[number + 1; 60]);
            assert_eq!(replay.front().unwrap().1, &[number; 60][..]);
            replay.confirmed(1);
            assert_eq!(replay.front().unwrap().1, &[number + 1; 60][..]);
            replay.confirmed(5);
            assert!(replay.is_empty() && replay.front().is_none());
        }
    }

    #[test]
    fn there_is_room_for_as_many_frames_as_were_asked_for_wherever_the_last_ended() {
        for first in 1..=60 {
            let mut replay = Replay::new(3, 60, 0);
            replay.push_given(&vec![0; first]);
            let mut kept = 1;
            for round in 0..50u8 {
                while kept < 3 {
                    assert!(replay.has_room(60), "first of {first} bytes, round {round}");
                    replay.push_given(&[round; 60]);
                    kept += 1;
                }
                assert!(!replay.has_room(1), "no more than three");
                replay.confirmed(1 + usize::from(round % 3));
                kept -= 1 + usize::from(round % 3);
                assert_eq!((replay.len(), replay.with_port()), (kept, kept));
            }
        }
    }

    #[test]
    fn records_of_any_length_keep_their_bytes() {
        let mut replay = Replay::new(8, 100, 1000);
        let mut kept: VecDeque<Vec<u8>> = VecDeque::new();
        for round in 0..2000usize {
            let len = [14, 100, 1000, 333, 60][round % 5];
            if replay.has_room(len) {
                let bytes = vec![round as u8; len];
                replay.push(core::iter::once(&bytes[..]), len).unwrap();
                kept.push_back(bytes);
            } else {
                assert!(!kept.is_empty(), "an empty buffer has room for anything");
            }
            if round % 3 != 1
                && let Some(bytes) = kept.pop_front()
            {
                assert_eq!(replay.front().unwrap().1, bytes);
                replay.forget();
            }
        }
    }
}

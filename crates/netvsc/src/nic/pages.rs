//! A frame most of which lies in the caller's own pages, where the host reads it: no copy of its data is made.
//!
//! What the host is given is a list of page frames for each stretch of bytes that follow each other (GPA-direct, PROTOCOL §6).
//! Hosts take only so many stretches with one packet, so that what can be one is one.

use alloc::vec::Vec;
use core::fmt;

use vmbus::Pfn;
use vmbus::memory::{OutOfRange, PAGE_SIZE, SharedMemory, SharedPages};
use vmbus::packet::GpaRange;

use super::frame::{Split, TxWork};
use super::types::TransmitError;
use crate::nvsp::Status;

/// Most ranges of page frames with one packet, whatever the host says: as many as other guests send.
pub(super) const MOST_RANGES: usize = 32;
/// Longest frame: the most that IPv6 has behind its header, that header, and Ethernet's.
pub(super) const MOST_LENT: usize = 65_535 + 40 + 14;

/// Bytes that follow each other in the caller's own memory, which the host can read.
///
/// A clone is another view of the same memory. A NIC that has been lent some keeps a view of its own, so that the memory is not
/// given back to whomever it came from while the host may read it.
#[derive(Clone, Debug)]
pub struct PageSlice {
    pages: SharedPages,
    offset: usize,
    len: usize,
}

impl PageSlice {
    /// `len` bytes from byte `offset` of `pages` on. They need not begin or end with a page; they may be none.
    ///
    /// # Errors
    /// [`OutOfRange`] if they do not all lie inside.
    pub fn new(pages: SharedPages, offset: usize, len: usize) -> Result<Self, OutOfRange> {
        match offset.checked_add(len) {
            Some(end) if end <= pages.size() => Ok(Self { pages, offset, len }),
            _ => Err(OutOfRange { offset, len, size: pages.size() }),
        }
    }

    /// Number of bytes.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The memory that the bytes are part of.
    #[must_use]
    pub const fn pages(&self) -> &SharedPages {
        &self.pages
    }

    /// The pages that the bytes touch, as the host knows them; none if nobody knows how.
    fn frames(&self) -> &[Pfn] {
        let pages = self.offset / PAGE_SIZE..(self.offset + self.len).div_ceil(PAGE_SIZE);
        self.pages.frames().get(pages).unwrap_or_default()
    }

    /// Calls `part` with the bytes, in order and a few at a time.
    pub(crate) fn read<E: From<OutOfRange>>(
        &self,
        mut part: impl FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut copy = [0; 512];
        let mut done = 0;
        while done < self.len {
            let count = (self.len - done).min(copy.len());
            let bytes = copy.get_mut(..count).unwrap_or_default();
            self.pages.read(self.offset + done, bytes)?;
            part(bytes)?;
            done += count;
        }
        Ok(())
    }
}

/// A frame whose data lies in pages that the host reads where they are.
#[derive(Clone, Copy, Debug)]
pub struct PagedFrame<'a> {
    /// The beginning of the frame, which is copied: the Ethernet header at least, and all headers up to the data of TCP or UDP if
    /// `work` asks for anything but a tag or a hash.
    pub head: &'a [u8],
    /// The rest of it. Nothing may write there before the frame [comes back](super::Nic::poll_returned), or other bytes may be
    /// sent than were meant.
    pub body: &'a [PageSlice],
    /// What the host shall do to it. What it does not offer is done here; that reads the body.
    pub work: TxWork,
    /// The caller's name for the frame, under which it comes back. The NIC makes nothing of it.
    pub token: u64,
}

impl<'a> PagedFrame<'a> {
    /// Bytes of the frame.
    #[must_use]
    #[expect(clippy::len_without_is_empty, reason = "what is empty is no frame")]
    pub fn len(&self) -> usize {
        self.head.len() + self.body_len()
    }

    pub(super) fn body_len(&self) -> usize {
        self.body.iter().map(PageSlice::len).sum()
    }

    /// The frame without the tag, if there is one among the bytes of the head.
    pub(super) fn split(&self) -> Result<Split<'a>, TransmitError> {
        let split = Split::new(self.head, &[], self.body, self.work.vlan);
        split.ok_or(TransmitError::TooShort(self.head.len()))
    }
}

/// What became of a frame that was taken out of pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Lending {
    /// The pages are the host's to read until [`Nic::poll_returned`](super::Nic::poll_returned) names the frame.
    Lent,
    /// The frame was copied, since it is short or lies in too many places. The pages are the caller's at once, and the frame does
    /// not come back.
    Copied,
}

/// The host is done with the pages of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Returned {
    /// The caller's name for the frame.
    pub token: u64,
    /// How the host completed it: anything but success means that it is lost. `None` if it never did, and never will: the
    /// channel has ended. The host may then read the pages until it has let go of the channel.
    pub status: Option<Status>,
}

/// Why a frame cannot be sent out of pages. It can be sent by [`Nic::transmit_with`](super::Nic::transmit_with).
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PagesError {
    /// The guest is kept apart from its host, which cannot read its pages.
    #[error("an isolated guest has no pages that its host can read: expected a frame to be copied")]
    Isolated,
    /// Nobody knows the page frames of the send buffer, so that those of other memory are not known either: a device of
    /// `uio_hv_generic`, for one.
    #[error("the numbers of page frames are not known here: expected a frame to be copied")]
    NoFrameNumbers,
    /// Nobody knows the page frames of this part of the frame.
    #[error(
        "part {0} of the frame has pages of unknown numbers: expected memory with one for each page"
    )]
    UnknownPages(usize),
    /// More places than the host takes with one packet, and too long to be copied.
    #[error(
        "a frame in {ranges} ranges of pages: expected at most {most}, as many as the host takes"
    )]
    Scattered {
        /// Ranges that it is, when those that follow each other are put together.
        ranges: usize,
        /// Most that the host takes.
        most: usize,
    },
    /// Headers that no section has room for.
    #[error("{len} bytes in front of what lies in pages: expected at most {most}")]
    Head {
        /// Bytes of the head.
        len: usize,
        /// Most that there is room for.
        most: usize,
    },
}

/// One range, with its part of the list's page frames.
#[derive(Clone, Copy, Debug)]
struct Range {
    byte_count: usize,
    byte_offset: usize,
    first: usize,
    frames: usize,
}

impl Range {
    /// Where its last page is left; 0 for at its end.
    fn end(&self) -> usize {
        (self.byte_offset + self.byte_count) % PAGE_SIZE
    }
}

/// The ranges of one frame. Serves one after the other, so that nothing is allocated for each.
#[derive(Default)]
pub(super) struct PageRanges {
    ranges: Vec<Range>,
    frames: Vec<Pfn>,
}

impl fmt::Debug for PageRanges {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(&self.ranges).finish()
    }
}

impl PageRanges {
    /// Lists `body` in as few ranges as can be, at most `most`. Returns how many it takes; if that is more, what is listed is
    /// of no use.
    ///
    /// # Errors
    /// [`PagesError::UnknownPages`].
    pub(super) fn list(&mut self, body: &[PageSlice], most: usize) -> Result<usize, PagesError> {
        self.ranges.clear();
        self.frames.clear();
        let mut count = 0;
        for (at, slice) in body.iter().enumerate().filter(|(_, slice)| !slice.is_empty()) {
            let frames = slice.frames();
            if frames.is_empty() {
                return Err(PagesError::UnknownPages(at));
            }
            let offset = slice.offset % PAGE_SIZE;
            let behind = self.ranges.last_mut().filter(|last| last.end() == offset);
            // In the middle of a page, it has to be the same one.
            let same = offset == 0 || self.frames.last() == frames.first();
            match behind.filter(|_| same) {
                Some(last) => {
                    let new =
                        if offset == 0 { frames } else { frames.get(1..).unwrap_or_default() };
                    last.byte_count += slice.len;
                    last.frames += new.len();
                    self.frames.extend_from_slice(new);
                }
                None => {
                    count += 1;
                    if count <= most {
                        let (byte_count, byte_offset) = (slice.len, offset);
                        let first = self.frames.len();
                        let range = Range { byte_count, byte_offset, first, frames: frames.len() };
                        self.ranges.push(range);
                        self.frames.extend_from_slice(frames);
                    }
                }
            }
        }
        Ok(count)
    }

    /// Calls `with` the ranges as a packet has them.
    pub(super) fn with<T>(&self, with: impl FnOnce(&[GpaRange<'_>]) -> T) -> T {
        let none = GpaRange { byte_count: 0, byte_offset: 0, frames: &[] };
        let mut list = [none; MOST_RANGES];
        for (to, range) in list.iter_mut().zip(&self.ranges) {
            let frames = self.frames.get(range.first..range.first + range.frames);
            *to = GpaRange {
                byte_count: range.byte_count as u32,
                byte_offset: range.byte_offset as u32,
                frames: frames.unwrap_or_default(),
            };
        }
        with(list.get(..self.ranges.len()).unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use std::vec;
    use std::vec::Vec;

    /// Pages with these numbers.
    fn memory(frames: &[u64]) -> SharedPages {
        SharedPages::from_heap(&frames.iter().copied().map(Pfn).collect::<Vec<_>>())
    }

    fn slice(pages: &SharedPages, offset: usize, len: usize) -> PageSlice {
        PageSlice::new(pages.clone(), offset, len).unwrap()
    }

    /// Offset, bytes and page frames of every range.
    fn listed(body: &[PageSlice]) -> Vec<(u32, u32, Vec<u64>)> {
        let mut ranges = PageRanges::default();
        assert_eq!(ranges.list(body, MOST_RANGES), Ok(ranges.ranges.len()));
        ranges.with(|list| {
            let frames = |range: &GpaRange<'_>| range.frames.iter().map(|frame| frame.0).collect();
            list.iter().map(|range| (range.byte_offset, range.byte_count, frames(range))).collect()
        })
    }

    #[test]
    fn what_follows_each_other_is_one_range() {
        let (a, b) = (memory(&[7, 3, 9]), memory(&[20, 21]));
        // Nine thousand bytes over three pages, whatever their numbers (HISTORY 69).
        assert_eq!(listed(&[slice(&a, 100, 9000)]), [(100, 9000, vec![7, 3, 9])]);
        assert_eq!(listed(&[slice(&a, 4096, 10)]), [(0, 10, vec![3])]);
        // Where a page ends and another begins, nothing is lost by putting them together.
        let whole = [slice(&a, 4000, 96), slice(&b, 0, 4096), slice(&a, 0, 5)];
        assert_eq!(listed(&whole), [(4000, 4197, vec![7, 20, 7])]);
        // In the middle of one and the same page, too.
        let halves = [slice(&a, 10, 90), slice(&a, 100, 5000)];
        assert_eq!(listed(&halves), [(10, 5090, vec![7, 3])]);
        // Nothing is nowhere.
        assert_eq!(
            listed(&[slice(&a, 5, 0), slice(&a, 4096, 1), slice(&b, 9, 0)]),
            [(0, 1, vec![3])]
        );
        assert_eq!(listed(&[]), []);
    }

    #[test]
    fn what_does_not_follow_is_another_range() {
        let (a, b) = (memory(&[7, 3]), memory(&[20]));
        let apart = [slice(&a, 10, 90), slice(&a, 101, 10), slice(&b, 111, 9), slice(&b, 0, 120)];
        let expected =
            [(10, 90, vec![7]), (101, 10, vec![7]), (111, 9, vec![20]), (0, 120, vec![20])];
        assert_eq!(listed(&apart), expected);
    }

    #[test]
    fn too_many_ranges_are_counted_and_what_is_not_inside_is_no_slice() {
        let a = memory(&[7]);
        let body: Vec<_> = (0..40).map(|at| slice(&a, at * 100, 50)).collect();
        let mut ranges = PageRanges::default();
        assert_eq!(ranges.list(&body, 32), Ok(40));
        assert_eq!(ranges.list(&body[..32], 32), Ok(32));
        assert_eq!(PageSlice::new(a.clone(), 4000, 97).unwrap_err().len, 97);
        assert!(PageSlice::new(a, usize::MAX, 2).is_err());
    }

    #[test]
    fn bytes_are_read_in_their_order() {
        let pages = memory(&[1, 2]);
        let bytes: Vec<u8> = (0..3000).map(|at| (at * 7) as u8).collect();
        pages.write(1000, &bytes).unwrap();
        let mut read = vec![];
        let outcome: Result<(), OutOfRange> = slice(&pages, 1000, 3000).read(|part| {
            read.extend_from_slice(part);
            Ok(())
        });
        assert_eq!((outcome, read), (Ok(()), bytes));
    }
}

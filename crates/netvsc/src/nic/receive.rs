//! Frames on their way in: transfer pages.
//!
//! The host writes into the receive buffer and names ranges of it. Each range is one RNDIS message. Its header is copied
//! out once and checked; the frame stays where it is until whoever receives it copies it to where it belongs. When all
//! ranges of a packet are done, one completion gives them back.
//!
//! A host that coalesces (RSC, version 6.1) sends one long segment as consecutive ranges of one packet. The places of its
//! parts are noted until the last, and then it is one frame like any other.

use alloc::vec::Vec;
use core::ops::Range;

use vmbus::memory::{OutOfRange, SharedMemory, SharedPages};
use vmbus::packet::TransferRange;

use super::stats::BadInput;
use super::transmit::{ADDRESSES, VLAN_TYPE};
use super::types::{ETHERNET_HEADER, NicError, SharedBuffer, VLAN_TAG};
use crate::nvsp::{HostMessage, ReceiveSection};
use crate::rndis::MessageType;
use crate::rndis::packet::{
    Layout, PACKET_HEADER, PartFlags, PpiType, Ppis, ReceiveChecksum, VlanTag,
};

/// The number by which transfer pages name the receive buffer. Any would do; Linux takes this one.
pub(super) const RECEIVE_BUFFER_ID: u16 = 0xcafe;
/// Smallest piece of a receive buffer: a header and a bit of frame.
const LEAST_PIECE: u32 = 68;
/// Most bytes of per-packet information that are looked at.
const MOST_INFO: usize = 256;
/// As many as there are with nearly every frame.
const USUAL_INFO: usize = 64;
/// Most bytes of a control message.
pub(super) const MOST_CONTROL: usize = 16 * 1024;
/// Most parts of a coalesced segment (PROTOCOL §9.5).
const MOST_PARTS: usize = 562;

/// A stretch of the receive buffer.
#[derive(Clone, Copy, Debug)]
struct Part {
    start: usize,
    len: usize,
}

/// Where the bytes of a frame are.
#[derive(Clone, Copy, Debug)]
enum Place<'a> {
    Whole(Part),
    Parts(&'a [Part]),
}

/// What the host says about a frame beside it. It may lie.
#[derive(Clone, Copy, Debug, Default)]
struct Said {
    tag: Option<VlanTag>,
    checksum: ReceiveChecksum,
    hash: Option<u32>,
    part: Option<PartFlags>,
}

/// A received frame, still in memory that the host can write to.
///
/// It is copied out by [`RxFrame::copy_to`], once, to wherever it belongs; look at the copy only. When the call that hands
/// it over returns, its memory goes back to the host.
#[derive(Clone, Copy, Debug)]
pub struct RxFrame<'a> {
    pages: &'a SharedPages,
    place: Place<'a>,
    len: usize,
    said: Said,
}

impl RxFrame<'_> {
    /// Bytes of the frame, from destination address to the end of the data, its 802.1Q tag included. A coalesced segment is
    /// longer than the MTU.
    #[must_use]
    #[inline]
    #[expect(clippy::len_without_is_empty, reason = "a frame has at least an Ethernet header")]
    pub fn len(&self) -> usize {
        self.len + if self.said.tag.is_some() { VLAN_TAG } else { 0 }
    }

    /// The tag, which the host hands over beside the frame; [`RxFrame::copy_to`] puts it where it belongs.
    #[must_use]
    pub fn vlan(&self) -> Option<VlanTag> {
        self.said.tag
    }

    /// What the host says about the frame's checksums. It may lie.
    #[must_use]
    pub fn checksum(&self) -> ReceiveChecksum {
        self.said.checksum
    }

    /// The hash by which the host chose the queue, if it tells. It may lie.
    #[must_use]
    pub fn hash(&self) -> Option<u32> {
        self.said.hash
    }

    /// Of how many parts the host put the frame together: 1 unless it was coalesced.
    #[must_use]
    pub fn parts(&self) -> usize {
        match self.place {
            Place::Whole(_) => 1,
            Place::Parts(parts) => parts.len(),
        }
    }

    /// Copies the frame, or as much of it as fits, and returns how much that is.
    #[inline]
    pub fn copy_to(&self, out: &mut [u8]) -> usize {
        let count = out.len().min(self.len());
        let out = out.get_mut(..count).unwrap_or_default();
        let copied = match self.said.tag {
            None => self.read(0, out),
            Some(tag) => self.copy_tagged(tag, out),
        };
        copied.map_or(0, |()| count)
    }

    /// Addresses, tag, the rest; any of them may not fit.
    #[inline(never)]
    fn copy_tagged(&self, tag: VlanTag, out: &mut [u8]) -> Result<(), OutOfRange> {
        let (addresses, behind) = out.split_at_mut(out.len().min(ADDRESSES));
        let (place, rest) = behind.split_at_mut(behind.len().min(VLAN_TAG));
        let [kind, value] = [VLAN_TYPE, tag.0.to_be_bytes()];
        for (byte, tag) in place.iter_mut().zip(kind.into_iter().chain(value)) {
            *byte = tag;
        }
        self.read(0, addresses)?;
        self.read(ADDRESSES, rest)
    }

    /// Copies the bytes from `offset` on, as they lie in the buffer.
    #[inline]
    fn read(&self, offset: usize, out: &mut [u8]) -> Result<(), OutOfRange> {
        match self.place {
            Place::Whole(part) => self.pages.read(part.start + offset, out),
            Place::Parts(parts) => self.read_parts(parts, offset, out),
        }
    }

    #[inline(never)]
    fn read_parts(
        &self,
        parts: &[Part],
        mut offset: usize,
        mut out: &mut [u8],
    ) -> Result<(), OutOfRange> {
        for part in parts {
            let Some(len) = part.len.checked_sub(offset) else {
                offset -= part.len;
                continue;
            };
            let (now, later) = out.split_at_mut(len.min(out.len()));
            self.pages.read(part.start + offset, now)?;
            (out, offset) = (later, 0);
        }
        Ok(())
    }
}

/// What a range holds.
#[derive(Clone, Copy, Debug)]
pub(super) enum Content<'a> {
    Frame(RxFrame<'a>),
    /// A part of a segment that is not complete yet.
    Part,
    /// A control message of so many bytes, copied to where the caller said.
    Control(usize),
}

/// The same before parts are put together.
enum Look {
    Frame(Part),
    Control(usize),
}

#[derive(Debug)]
pub(super) struct Receive {
    pub(super) buffer: SharedBuffer,
    /// Whether the host has been given the buffer.
    pub(super) given: bool,
    /// Bytes of a piece; 0 as long as the host has not divided the buffer.
    piece: usize,
    /// Bytes of all pieces.
    limit: usize,
    segment: Segment,
}

/// A coalesced segment of which not all parts have come.
#[derive(Debug, Default)]
struct Segment {
    parts: Vec<Part>,
    len: usize,
    /// What was said with the first part.
    said: Said,
    state: Gathering,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Gathering {
    /// No part has come.
    #[default]
    Nothing,
    /// Parts have come and more are due.
    Parts,
    /// One of its parts was bad: the others are dropped too.
    Broken,
}

impl Receive {
    pub(super) fn new(buffer: SharedBuffer) -> Self {
        Self { buffer, given: false, piece: 0, limit: 0, segment: Segment::default() }
    }

    /// The same buffer for another channel.
    pub(super) fn sibling(&self) -> Self {
        Self {
            buffer: self.buffer.clone(),
            given: self.given,
            piece: self.piece,
            limit: self.limit,
            segment: Segment::default(),
        }
    }

    /// The host may coalesce.
    pub(super) fn gather(&mut self) {
        self.segment.parts.reserve_exact(MOST_PARTS);
    }

    /// A packet ends. False if it ended in the middle of a segment, which is dropped.
    #[inline]
    pub(super) fn end_packet(&mut self, bad: &mut BadInput) -> bool {
        let state = core::mem::take(&mut self.segment.state);
        bad.coalesced += u64::from(state == Gathering::Parts);
        state == Gathering::Nothing
    }

    /// The host divided the buffer.
    pub(super) fn divide(
        &mut self,
        sections: u32,
        first: Option<ReceiveSection>,
    ) -> Result<(), NicError> {
        let section = first.unwrap_or(ReceiveSection {
            offset: 0,
            sub_alloc_size: 0,
            num_sub_allocs: 0,
            end_offset: 0,
        });
        let ReceiveSection { offset, sub_alloc_size: size, num_sub_allocs: count, .. } = section;
        let buffer = self.buffer.pages.size();
        let all = usize::try_from(u64::from(size) * u64::from(count)).ok();
        match all.filter(|all| *all <= buffer && count > 0) {
            Some(all) if sections == 1 && offset == 0 && size >= LEAST_PIECE => {
                self.piece = size as usize;
                self.limit = all;
                Ok(())
            }
            _ => Err(NicError::Division { buffer, sections, offset, size, count }),
        }
    }

    /// Number of pieces.
    pub(super) fn pieces(&self) -> usize {
        self.limit.checked_div(self.piece).unwrap_or(0)
    }

    /// Whether transfer pages of this buffer make sense, and what carries them.
    #[inline]
    pub(super) fn accepts(
        &self,
        pageset: u16,
        message: Result<HostMessage, crate::nvsp::DecodeError>,
        bad: &mut BadInput,
    ) -> bool {
        if self.piece == 0 || pageset != RECEIVE_BUFFER_ID {
            bad.buffer += 1;
            return false;
        }
        if !matches!(message, Ok(HostMessage::RndisPacket(_))) {
            bad.carrier += 1;
            return false;
        }
        true
    }

    /// What lies in a range; `None` if it is nothing of use, which is counted. A control message is copied to `scratch`.
    #[inline]
    pub(super) fn content(
        &mut self,
        range: TransferRange,
        scratch: &mut [u8],
        bad: &mut BadInput,
    ) -> Option<Content<'_>> {
        let mut said = Said::default();
        let part = match self.look(range, scratch, &mut said, bad) {
            Some(Look::Frame(part)) => part,
            Some(Look::Control(len)) => return Some(Content::Control(len)),
            None => {
                // If it was a part of a segment, that lacks something now.
                if self.segment.state == Gathering::Parts {
                    self.segment.state = Gathering::Broken;
                }
                return None;
            }
        };
        if let Some(flags) = said.part {
            return self.collect(part, said, flags, bad);
        }
        if self.segment.state == Gathering::Parts {
            // Something else in the middle of a segment: that is over, this is good.
            bad.coalesced += 1;
            self.segment.state = Gathering::Broken;
        }
        if part.len < ETHERNET_HEADER {
            bad.runt += 1;
            return None;
        }
        let pages = &self.buffer.pages;
        Some(Content::Frame(RxFrame { pages, place: Place::Whole(part), len: part.len, said }))
    }

    /// One part of a coalesced segment; the whole with the last one.
    fn collect(
        &mut self,
        part: Part,
        said: Said,
        flags: PartFlags,
        bad: &mut BadInput,
    ) -> Option<Content<'_>> {
        let segment = &mut self.segment;
        if flags.contains(PartFlags::FIRST) {
            bad.coalesced += u64::from(segment.state == Gathering::Parts);
            segment.parts.clear();
            (segment.len, segment.said, segment.state) = (0, said, Gathering::Parts);
        }
        if segment.state != Gathering::Parts
            || segment.parts.len() == segment.parts.capacity().min(MOST_PARTS)
        {
            // Told once per segment; nothing was gathered if the host was never asked for this.
            bad.coalesced += u64::from(segment.state != Gathering::Broken);
            segment.state = Gathering::Broken;
            return None;
        }
        segment.parts.push(part);
        segment.len += part.len;
        if !flags.contains(PartFlags::LAST) {
            return Some(Content::Part);
        }
        segment.state = Gathering::Nothing;
        if segment.parts.first().is_none_or(|first| first.len < ETHERNET_HEADER) {
            bad.runt += 1;
            return None;
        }
        Some(Content::Frame(RxFrame {
            pages: &self.buffer.pages,
            place: Place::Parts(&segment.parts),
            len: segment.len,
            said: segment.said,
        }))
    }

    #[inline]
    fn look(
        &self,
        range: TransferRange,
        scratch: &mut [u8],
        said: &mut Said,
        bad: &mut BadInput,
    ) -> Option<Look> {
        let (start, len) = (range.byte_offset as usize, range.byte_count as usize);
        if len > self.piece || start.checked_add(len).is_none_or(|end| end > self.limit) {
            bad.range += 1;
            return None;
        }
        let mut head = [0; PACKET_HEADER];
        let head = head.get_mut(..len.min(PACKET_HEADER))?;
        if self.buffer.pages.read(start, head).is_err() {
            bad.range += 1;
            return None;
        }
        let kind = head.first_chunk().map(|kind| MessageType(u32::from_le_bytes(*kind)));
        if kind == Some(MessageType::PACKET) {
            return self.frame(start, len, head, said, bad).map(Look::Frame);
        }
        self.control(start, scratch.get_mut(..len), bad)
    }

    #[inline]
    fn frame(
        &self,
        start: usize,
        len: usize,
        head: &[u8],
        said: &mut Said,
        bad: &mut BadInput,
    ) -> Option<Part> {
        let layout = match Layout::decode(head, len) {
            Ok(layout) => layout,
            Err(error) => {
                tracing::debug!(%error, "frame dropped");
                bad.header += 1;
                return None;
            }
        };
        if !layout.ppi.is_empty() {
            if layout.ppi.len() <= USUAL_INFO {
                self.read_info::<USUAL_INFO>(start, layout.ppi, said, bad)?;
            } else {
                self.read_long_info(start, layout.ppi, said, bad)?;
            }
        }
        Some(Part { start: start + layout.data.start, len: layout.data.len() })
    }

    /// For lists that are longer than usual.
    #[cold]
    fn read_long_info(
        &self,
        start: usize,
        ppi: Range<usize>,
        said: &mut Said,
        bad: &mut BadInput,
    ) -> Option<()> {
        self.read_info::<MOST_INFO>(start, ppi, said, bad)
    }

    /// Adds what the host says about the frame, in `ROOM` bytes at most. `None` if the frame is to be dropped.
    #[inline]
    fn read_info<const ROOM: usize>(
        &self,
        start: usize,
        ppi: Range<usize>,
        said: &mut Said,
        bad: &mut BadInput,
    ) -> Option<()> {
        let mut info = [0; ROOM];
        let list = info.get_mut(..ppi.len());
        let Some(list) = list.filter(|_| ppi.end <= self.piece) else {
            bad.info += 1;
            return None;
        };
        if self.buffer.pages.read(start + ppi.start, list).is_err() {
            bad.info += 1;
            return None;
        }
        for entry in Ppis::new(list) {
            let Ok(entry) = entry else {
                bad.info += 1;
                return None;
            };
            match entry.kind {
                PpiType::VLAN => said.tag = entry.word().map(VlanTag::from_ppi),
                PpiType::CHECKSUM => {
                    said.checksum =
                        ReceiveChecksum::from_bits_retain(entry.word().unwrap_or_default());
                }
                PpiType::HASH => said.hash = entry.word(),
                PpiType::PACKET_ID => {
                    // The only part is a whole segment, and a frame like any other.
                    let only = PartFlags::FIRST | PartFlags::LAST;
                    let part = entry.part().unwrap_or_default();
                    let of_many = part.contains(PartFlags::SUB_ALLOCATED) && !part.contains(only);
                    said.part = of_many.then_some(part);
                }
                _ => {}
            }
        }
        Some(())
    }

    fn control(
        &self,
        start: usize,
        scratch: Option<&mut [u8]>,
        bad: &mut BadInput,
    ) -> Option<Look> {
        let Some(message) = scratch else {
            bad.control += 1;
            return None;
        };
        if self.buffer.pages.read(start, message).is_err() {
            bad.range += 1;
            return None;
        }
        Some(Look::Control(message.len()))
    }
}

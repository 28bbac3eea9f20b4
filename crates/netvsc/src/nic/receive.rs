//! Frames on their way in: transfer pages.
//!
//! The host writes into the receive buffer and names ranges of it. Each range is one RNDIS message. Its header is copied
//! out once and checked; the frame stays where it is until whoever receives it copies it to where it belongs. When all
//! ranges of a packet are done, one completion gives them back.

use core::ops::Range;

use vmbus::memory::{SharedMemory, SharedPages};
use vmbus::packet::TransferRange;

use super::transmit::{ADDRESSES, VLAN_TYPE};
use super::types::{BadInput, ETHERNET_HEADER, NicError, SharedBuffer, VLAN_TAG};
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
/// Most bytes of a control message.
pub(super) const MOST_CONTROL: usize = 16 * 1024;

/// A received frame, still in memory that the host can write to.
///
/// It is copied out by [`RxFrame::copy_to`], once, to wherever it belongs; look at the copy only. When the call that hands
/// it over returns, its memory goes back to the host.
#[derive(Clone, Copy, Debug)]
pub struct RxFrame<'a> {
    pages: &'a SharedPages,
    start: usize,
    len: usize,
    tag: Option<VlanTag>,
    checksum: ReceiveChecksum,
}

impl RxFrame<'_> {
    /// Bytes of the frame, from destination address to the end of the data, its 802.1Q tag included.
    #[must_use]
    #[expect(clippy::len_without_is_empty, reason = "a frame has at least an Ethernet header")]
    pub fn len(&self) -> usize {
        self.len + if self.tag.is_some() { VLAN_TAG } else { 0 }
    }

    /// The tag, which the host hands over beside the frame; [`RxFrame::copy_to`] puts it where it belongs.
    #[must_use]
    pub fn vlan(&self) -> Option<VlanTag> {
        self.tag
    }

    /// What the host says about the frame's checksums. It may lie.
    #[must_use]
    pub fn checksum(&self) -> ReceiveChecksum {
        self.checksum
    }

    /// Copies the frame, or as much of it as fits, and returns how much that is.
    pub fn copy_to(&self, out: &mut [u8]) -> usize {
        let count = out.len().min(self.len());
        let out = out.get_mut(..count).unwrap_or_default();
        let copied = match (self.tag, out.split_at_mut_checked(ADDRESSES + VLAN_TAG)) {
            (None, _) => self.pages.read(self.start, out),
            (Some(tag), Some((head, rest))) => {
                let (addresses, place) = head.split_at_mut(ADDRESSES);
                let [kind, value] = [VLAN_TYPE, tag.0.to_be_bytes()];
                for (byte, tag) in place.iter_mut().zip(kind.into_iter().chain(value)) {
                    *byte = tag;
                }
                let first = self.pages.read(self.start, addresses);
                first.and_then(|()| self.pages.read(self.start + ADDRESSES, rest))
            }
            // Not even the tag fits.
            (Some(_), None) => {
                let count = count.min(ADDRESSES);
                let copied = self.pages.read(self.start, out.get_mut(..count).unwrap_or_default());
                return copied.map_or(0, |()| count);
            }
        };
        copied.map_or(0, |()| count)
    }
}

/// What a range holds.
#[derive(Clone, Copy, Debug)]
pub(super) enum Content<'a> {
    Frame(RxFrame<'a>),
    /// A control message of so many bytes, copied to where the caller said.
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
}

impl Receive {
    pub(super) fn new(buffer: SharedBuffer) -> Self {
        Self { buffer, given: false, piece: 0, limit: 0 }
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
        &self,
        range: TransferRange,
        scratch: &mut [u8],
        bad: &mut BadInput,
    ) -> Option<Content<'_>> {
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
            return self.frame(start, len, head, bad).map(Content::Frame);
        }
        self.control(start, scratch.get_mut(..len), bad)
    }

    #[inline]
    fn frame(
        &self,
        start: usize,
        len: usize,
        head: &[u8],
        bad: &mut BadInput,
    ) -> Option<RxFrame<'_>> {
        let layout = match Layout::decode(head, len) {
            Ok(layout) => layout,
            Err(error) => {
                tracing::debug!(%error, "frame dropped");
                bad.header += 1;
                return None;
            }
        };
        if layout.data.len() < ETHERNET_HEADER {
            bad.runt += 1;
            return None;
        }
        let mut frame = RxFrame {
            pages: &self.buffer.pages,
            start: start + layout.data.start,
            len: layout.data.len(),
            tag: None,
            checksum: ReceiveChecksum::empty(),
        };
        if !layout.ppi.is_empty() {
            self.read_info(start, layout.ppi, &mut frame, bad)?;
        }
        Some(frame)
    }

    /// Adds what the host says about the frame. `None` if the frame is to be dropped.
    #[inline]
    fn read_info(
        &self,
        start: usize,
        ppi: Range<usize>,
        frame: &mut RxFrame<'_>,
        bad: &mut BadInput,
    ) -> Option<()> {
        let mut info = [0; MOST_INFO];
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
                PpiType::VLAN => frame.tag = entry.word().map(VlanTag::from_ppi),
                PpiType::CHECKSUM => {
                    frame.checksum =
                        ReceiveChecksum::from_bits_retain(entry.word().unwrap_or_default());
                }
                PpiType::PACKET_ID => {
                    // The only part is a whole segment; everything else needs parts to be put together.
                    let only = PartFlags::FIRST | PartFlags::LAST;
                    let part = entry.part().unwrap_or_default();
                    if part.contains(PartFlags::SUB_ALLOCATED) && !part.contains(only) {
                        bad.coalesced += 1;
                        return None;
                    }
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
    ) -> Option<Content<'_>> {
        let Some(message) = scratch else {
            bad.control += 1;
            return None;
        };
        if self.buffer.pages.read(start, message).is_err() {
            bad.range += 1;
            return None;
        }
        Some(Content::Control(message.len()))
    }
}

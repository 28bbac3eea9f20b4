//! Frames and control messages on their way out: slots of the send buffer.
//!
//! A slot is as many sections as the longest frame takes: one, unless the MTU is large. What fits into one section is sent
//! by its number; a longer frame lies over several sections and is sent by its page frames. Slot 0 is kept for control
//! messages, so that they get through whatever the frames do. A transaction id is the slot's number plus one, with the
//! slot's generation above it, so that a completion which comes twice is recognised.

use alloc::vec::Vec;

use vmbus::channel::Doorbell;
use vmbus::memory::{PAGE_SIZE, SharedMemory};
use vmbus::packet::{GpaRange, Outgoing};

use super::link::{Link, Sent};
use super::types::{
    ETHERNET_HEADER, Lack, NicError, NicStats, SharedBuffer, TransmitError, VLAN_TAG,
};
use crate::nvsp::{ChannelType, SectionUse, Version, rndis_packet};
use crate::rndis::packet::{PACKET_HEADER, PpiType, VlanTag, WORD_PPI, write_header};

/// Bytes of the two addresses in front of a tag.
pub(super) const ADDRESSES: usize = 12;
/// Ethernet type of an 802.1Q tag.
pub(super) const VLAN_TYPE: [u8; 2] = [0x81, 0x00];
/// Most bytes in front of a frame.
const HEADERS: usize = PACKET_HEADER + WORD_PPI;
/// The slot of control messages.
pub(super) const CONTROL_SLOT: u32 = 0;
/// Largest alignment that is honoured: beyond a page, one frame per message.
const MOST_ALIGNMENT: u32 = 12;

#[derive(Clone, Copy, Debug, Default)]
struct Slot {
    generation: u32,
    in_flight: bool,
}

/// A message that more frames may join.
#[derive(Clone, Copy, Debug)]
struct Open {
    slot: u32,
    /// Bytes used.
    used: usize,
    /// Where the last frame's header starts, and its length.
    last: usize,
    last_len: usize,
    frames: u32,
}

#[derive(Debug)]
pub(super) struct Transmit {
    pub(super) buffer: SharedBuffer,
    /// Whether the host has been given the buffer.
    pub(super) given: bool,
    section: usize,
    sections_per_slot: usize,
    slots: Vec<Slot>,
    free: Vec<u32>,
    open: Option<Open>,
    message_size: usize,
    /// Longest frame, without tag.
    most: usize,
    alignment: usize,
    frames_per_message: u32,
    bytes_per_message: usize,
}

impl Transmit {
    pub(super) fn new(buffer: SharedBuffer) -> Self {
        Self {
            buffer,
            given: false,
            section: 0,
            sections_per_slot: 1,
            slots: Vec::new(),
            free: Vec::new(),
            open: None,
            message_size: Version::V1.message_size(),
            most: 0,
            alignment: 1,
            frames_per_message: 1,
            bytes_per_message: 0,
        }
    }

    /// The host divided the buffer into sections of this size.
    pub(super) fn divide(
        &mut self,
        section_size: u32,
        mtu: u32,
        version: Version,
    ) -> Result<(), NicError> {
        let frame = mtu as usize + ETHERNET_HEADER;
        let (section, buffer) = (section_size as usize, self.buffer.pages.size());
        let error = NicError::Sections { buffer, section: section_size, frame };
        if section == 0 {
            return Err(error);
        }
        let sections_per_slot = (frame + HEADERS).div_ceil(section);
        if sections_per_slot > 1 && self.buffer.pages.frames().is_empty() {
            return Err(error);
        }
        let slots = buffer / section / sections_per_slot;
        let slots = u32::try_from(slots).ok().filter(|slots| *slots >= 2).ok_or(error)?;
        self.section = section;
        self.sections_per_slot = sections_per_slot;
        self.slots.resize(slots as usize, Slot::default());
        self.free.extend((CONTROL_SLOT + 1..slots).rev());
        self.message_size = version.message_size();
        self.most = frame;
        Ok(())
    }

    /// The host takes several frames in one message.
    pub(super) fn share_messages(&mut self, frames: u32, bytes: u32, alignment_factor: u32) {
        if alignment_factor <= MOST_ALIGNMENT {
            self.alignment = 1 << alignment_factor;
            self.frames_per_message = frames.max(1);
        }
        self.bytes_per_message = bytes as usize;
    }

    /// The host takes no longer packets than this.
    pub(super) fn limit(&mut self, mtu: u32) {
        self.most = self.most.min(mtu as usize + ETHERNET_HEADER);
    }

    /// Whether a frame would find a slot.
    pub(super) fn has_slot(&self) -> bool {
        self.open.is_some() || !self.free.is_empty()
    }

    /// Whether nothing is under way.
    pub(super) fn is_idle(&self) -> bool {
        self.open.is_none() && self.slots.iter().all(|slot| !slot.in_flight)
    }

    /// Bytes of a slot.
    fn slot_size(&self) -> usize {
        self.section * self.sections_per_slot
    }

    /// Byte offset of a slot.
    fn start_of(&self, slot: u32) -> usize {
        slot as usize * self.slot_size()
    }

    /// Puts a control message into its slot and into the ring. The slot has to be free.
    pub(super) fn send_control<D: Doorbell>(
        &mut self,
        link: &mut Link<D>,
        message: &[u8],
    ) -> Result<Sent, NicError> {
        self.write(self.start_of(CONTROL_SLOT), message)?;
        self.send(link, CONTROL_SLOT, message.len(), ChannelType::CONTROL)
    }

    /// Most bytes of a control message.
    pub(super) fn control_size(&self) -> usize {
        self.section
    }

    /// Whether a control message is under way.
    pub(super) fn control_busy(&self) -> bool {
        self.slots.first().is_some_and(|slot| slot.in_flight)
    }

    fn write(&self, offset: usize, bytes: &[u8]) -> Result<(), NicError> {
        let pages = &self.buffer.pages;
        pages.write(offset, bytes).map_err(|error| NicError::Ring(error.into()))
    }

    /// Puts the message for the first `bytes` of a slot into the ring.
    fn send<D: Doorbell>(
        &mut self,
        link: &mut Link<D>,
        slot: u32,
        bytes: usize,
        channel_type: ChannelType,
    ) -> Result<Sent, NicError> {
        let start = self.start_of(slot);
        let Some(state) = self.slots.get_mut(slot as usize) else { return Ok(Sent::Yes) };
        // 31 bits, so that no id looks like one of a protocol message.
        let generation = state.generation.wrapping_add(1) & (u32::MAX >> 1);
        let transaction_id = u64::from(generation) << 32 | (u64::from(slot) + 1);
        let sent = if bytes <= self.section {
            let index = slot * self.sections_per_slot as u32;
            let section = Some(SectionUse { index, bytes: bytes as u32 });
            let message = rndis_packet(channel_type, section);
            let payload = message.get(..self.message_size).unwrap_or(&message);
            link.stage(&Outgoing::InBand { transaction_id, completion: true, payload })?
        } else {
            let message = rndis_packet(channel_type, None);
            let payload = message.get(..self.message_size).unwrap_or(&message);
            let pages = start / PAGE_SIZE..(start + bytes).div_ceil(PAGE_SIZE);
            let ranges = [GpaRange {
                byte_count: bytes as u32,
                byte_offset: (start % PAGE_SIZE) as u32,
                frames: self.buffer.pages.frames().get(pages).unwrap_or_default(),
            }];
            link.stage(&Outgoing::GpaDirect { transaction_id, ranges: &ranges, payload })?
        };
        if sent == Sent::Yes {
            *state = Slot { generation, in_flight: true };
        }
        Ok(sent)
    }

    /// The host completed `transaction_id`. The slot, if it is one that was under way.
    #[inline]
    pub(super) fn completed(&mut self, transaction_id: u64) -> Option<u32> {
        let slot = (transaction_id as u32).checked_sub(1)?;
        let state = self.slots.get_mut(slot as usize)?;
        if !state.in_flight || transaction_id >> 32 != u64::from(state.generation) {
            return None;
        }
        state.in_flight = false;
        if slot != CONTROL_SLOT {
            self.free.push(slot);
        }
        Some(slot)
    }

    /// Puts the open message into the ring, if there is one.
    #[inline]
    pub(super) fn close<D: Doorbell>(
        &mut self,
        link: &mut Link<D>,
        stats: &mut NicStats,
    ) -> Result<Sent, NicError> {
        let Some(open) = self.open else { return Ok(Sent::Yes) };
        let sent = self.send(link, open.slot, open.used, ChannelType::DATA)?;
        if sent == Sent::Yes {
            self.open = None;
            stats.tx_messages += 1;
        }
        Ok(sent)
    }

    /// Takes one frame. On [`TransmitError::Full`] what was taken before is shown to the host.
    pub(super) fn transmit<D: Doorbell>(
        &mut self,
        link: &mut Link<D>,
        frame: &[u8],
        stats: &mut NicStats,
    ) -> Result<(), TransmitError> {
        if frame.len() < ETHERNET_HEADER {
            return Err(TransmitError::TooShort(frame.len()));
        }
        let tag = tag_of(frame);
        let data_len = frame.len() - if tag.is_some() { VLAN_TAG } else { 0 };
        if data_len > self.most {
            let most = self.most + if tag.is_some() { VLAN_TAG } else { 0 };
            return Err(TransmitError::TooLong { len: frame.len(), most });
        }
        loop {
            if self.join(frame, data_len, tag)? {
                stats.tx_frames += 1;
                stats.tx_bytes += frame.len() as u64;
                return Ok(());
            }
            if let Sent::NoRoom(need) = self.close(link, stats)? {
                if link.channel.request_space(need).map_err(NicError::from)? {
                    continue;
                }
                stats.tx_ring_full += 1;
                return Err(TransmitError::Full(Lack::Ring));
            }
            let Some(slot) = self.free.pop() else {
                link.channel.commit().map_err(NicError::from)?;
                stats.tx_sections_full += 1;
                return Err(TransmitError::Full(Lack::Section));
            };
            self.open = Some(Open { slot, used: 0, last: 0, last_len: 0, frames: 0 });
        }
    }

    /// Appends a frame to the open message. False if there is none, or it has no room.
    #[inline]
    fn join(
        &mut self,
        frame: &[u8],
        data_len: usize,
        tag: Option<VlanTag>,
    ) -> Result<bool, NicError> {
        let Some(open) = self.open else { return Ok(false) };
        let start = open.used.next_multiple_of(self.alignment);
        let vlan = tag.map(|tag| (PpiType::VLAN, tag.to_ppi()));
        let ppis = vlan.as_slice();
        let header_len = PACKET_HEADER + ppis.len() * WORD_PPI;
        let used = start + header_len + data_len;
        if open.frames > 0
            && (open.frames >= self.frames_per_message
                || used > self.slot_size().min(self.bytes_per_message))
        {
            return Ok(false);
        }
        let base = self.start_of(open.slot);
        if start > open.used {
            // The next message starts where the last says it ends.
            let length = (open.last_len + start - open.used) as u32;
            self.write(base + open.last + 4, &length.to_le_bytes())?;
        }
        let mut header = [0; HEADERS];
        let Some(written) = write_header(&mut header, ppis, header_len, data_len) else {
            return Ok(false);
        };
        self.write(base + start, header.get(..written).unwrap_or_default())?;
        let at = base + start + header_len;
        match frame.split_at_checked(ADDRESSES) {
            Some((addresses, rest)) if tag.is_some() => {
                self.write(at, addresses)?;
                self.write(at + ADDRESSES, rest.get(VLAN_TAG..).unwrap_or_default())?;
            }
            _ => self.write(at, frame)?,
        }
        self.open = Some(Open {
            used,
            last: start,
            last_len: header_len + data_len,
            frames: open.frames + 1,
            ..open
        });
        Ok(true)
    }
}

/// The tag of a frame that has one and something behind it: it goes beside the frame.
#[inline]
fn tag_of(frame: &[u8]) -> Option<VlanTag> {
    let [a, b, c, d] = *frame.get(ADDRESSES..)?.first_chunk::<VLAN_TAG>()?;
    let whole = frame.len() >= ETHERNET_HEADER + VLAN_TAG;
    (whole && [a, b] == VLAN_TYPE).then(|| VlanTag(u16::from_be_bytes([c, d])))
}

//! Frames and control messages on their way out, through slots of the send buffer.
//!
//! What fits into one section is sent by its number; a longer frame lies over several sections and is sent by its page
//! frames. Small frames share a message.

use vmbus::channel::Doorbell;
use vmbus::memory::{OutOfRange, PAGE_SIZE, SharedMemory};
use vmbus::packet::{GpaRange, Outgoing};

use super::frame::{Split, TxFrame, TxWork, inner_tag};
use super::lend::Loans;
use super::link::{Link, Sent};
use super::offload::{self, Patches};
use super::pages::PagesError;
use super::slots::{CONTROL_SLOT, Slots};
use super::stats::NicStats;
use super::types::{ETHERNET_HEADER, Lack, NicError, SharedBuffer, TransmitError, VLAN_TAG};
use crate::nvsp::{ChannelType, SectionUse, Version, rndis_packet};
use crate::rndis::offload::OffloadCapabilities;
use crate::rndis::packet::{LargeSend, PACKET_HEADER, PpiType, VlanTag, WORD_PPI, write_header};

/// Bytes of the two addresses in front of a tag.
pub(super) const ADDRESSES: usize = 12;
/// Ethernet type of an 802.1Q tag.
pub(super) const VLAN_TYPE: [u8; 2] = [0x81, 0x00];
/// Most entries of per-packet information for one frame.
const MOST_INFO: usize = 4;
/// Bytes of a section at least: the longest control message, which sets scaling, takes 620. Hosts make them 6,144 bytes.
const LEAST_SECTION: usize = 1024;
/// Most bytes in front of a frame.
pub(super) const HEADERS: usize = PACKET_HEADER + MOST_INFO * WORD_PPI;
/// Largest alignment that is honoured: beyond a page, one frame per message.
const MOST_ALIGNMENT: u32 = 12;

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

/// Entries of per-packet information.
#[derive(Clone, Copy, Debug)]
pub(super) struct Info {
    entries: [(PpiType, u32); MOST_INFO],
    count: usize,
}

impl Info {
    const NONE: Self = Self { entries: [(PpiType::CHECKSUM, 0); MOST_INFO], count: 0 };

    fn add(&mut self, kind: PpiType, word: u32) {
        if let Some(entry) = self.entries.get_mut(self.count) {
            *entry = (kind, word);
            self.count += 1;
        }
    }

    #[inline]
    fn entries(&self) -> &[(PpiType, u32)] {
        self.entries.get(..self.count).unwrap_or_default()
    }
}

/// An access outside the send buffer, or outside pages that were lent: never, since all places are computed from their sizes.
fn outside(error: OutOfRange) -> NicError {
    NicError::Ring(error.into())
}

#[derive(Debug)]
pub(super) struct Transmit {
    pub(super) buffer: SharedBuffer,
    /// Whether the host has been given the buffer.
    pub(super) given: bool,
    pub(super) slots: Slots,
    open: Option<Open>,
    pub(super) message_size: usize,
    /// Longest frame, without tag.
    most: usize,
    /// Longest segment that the host cuts, without tag; 0 for none.
    most_large: usize,
    offloads: OffloadCapabilities,
    alignment: usize,
    frames_per_message: u32,
    bytes_per_message: usize,
    /// Most ranges of the caller's pages in one packet, or why there can be none.
    pub(super) lending: Result<usize, PagesError>,
    /// Fewer bytes than this are copied out of them.
    pub(super) lend_from: usize,
    pub(super) loans: Loans,
}

impl Transmit {
    pub(super) fn new(buffer: SharedBuffer) -> Self {
        Self {
            buffer,
            given: false,
            slots: Slots::none(),
            open: None,
            message_size: Version::V1.message_size(),
            most: 0,
            most_large: 0,
            offloads: OffloadCapabilities::default(),
            alignment: 1,
            frames_per_message: 1,
            bytes_per_message: 0,
            lending: Err(PagesError::NoFrameNumbers),
            lend_from: 0,
            loans: Loans::default(),
        }
    }

    /// The same buffer for another channel; `None` if it has no slots left.
    pub(super) fn sibling(&self) -> Option<Self> {
        Some(Self {
            buffer: self.buffer.clone(),
            slots: self.slots.sibling()?,
            open: None,
            loans: Loans::default(),
            ..*self
        })
    }

    /// Whether there is a slot for one more queue now.
    pub(super) fn can_share(&self) -> bool {
        self.slots.can_share()
    }

    /// The host divided the buffer into sections of this size.
    pub(super) fn divide(
        &mut self,
        section_size: u32,
        mtu: u32,
        version: Version,
    ) -> Result<(), NicError> {
        let frame = mtu as usize + ETHERNET_HEADER;
        let pages = &self.buffer.pages;
        let (section, buffer) = (section_size as usize, pages.size());
        let scattered = !pages.frames().is_empty();
        let divides = section >= LEAST_SECTION;
        let most = frame + HEADERS;
        let divided =
            divides.then(|| self.slots.divide(buffer, section, most, scattered)).flatten();
        divided.ok_or(NicError::Sections { buffer, section: section_size, frame })?;
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

    /// What the host does to frames, as far as that is wanted, on so many channels at most.
    pub(super) fn offload(&mut self, offloads: OffloadCapabilities, queues: u16) {
        self.offloads = offloads;
        let wanted = offloads.ipv4.large_send.max(offloads.ipv6.large_send) as usize;
        if wanted > 0 && !self.buffer.pages.frames().is_empty() {
            self.slots.make_long(wanted + HEADERS, queues.into());
            let room = self.slots.long_size().saturating_sub(HEADERS);
            self.most_large = wanted.min(room).min(self.most_message());
        }
    }

    /// Longest frame that the host takes in a message of its own (MaxTransferSize of REMOTE_NDIS_INITIALIZE_CMPLT).
    pub(super) fn most_message(&self) -> usize {
        self.bytes_per_message.saturating_sub(HEADERS)
    }

    /// Longest segment that the host cuts, in bytes with all headers; 0 for none.
    pub(super) fn most_large(&self) -> usize {
        self.most_large
    }

    /// Whether a frame would find a slot.
    pub(super) fn has_slot(&self) -> bool {
        self.open.is_some() || self.slots.has_free()
    }

    /// Slots with frames under way.
    pub(super) fn busy(&self) -> usize {
        self.slots.busy()
    }

    /// Slots that are kept although they are free.
    pub(super) fn kept(&self) -> usize {
        self.slots.kept()
    }

    /// Whether nothing is under way.
    pub(super) fn is_idle(&self) -> bool {
        self.open.is_none() && self.slots.is_idle()
    }

    /// Leaves all slots that are free to the other queues.
    pub(super) fn give_up(&mut self) {
        if let Some(open) = self.open.take() {
            self.slots.put_back(open.slot);
        }
        self.slots.give_up();
    }

    /// Puts a control message into its slot and into the ring. The slot has to be free.
    pub(super) fn send_control<D: Doorbell>(
        &mut self,
        link: &mut Link<D>,
        message: &[u8],
    ) -> Result<Sent, NicError> {
        self.write(self.slots.start_of(CONTROL_SLOT), message)?;
        self.send(link, CONTROL_SLOT, message.len(), ChannelType::CONTROL)
    }

    /// Most bytes of a control message.
    pub(super) fn control_size(&self) -> usize {
        self.slots.section()
    }

    /// Whether a control message is under way.
    pub(super) fn control_busy(&self) -> bool {
        self.slots.control_busy()
    }

    fn write(&self, offset: usize, bytes: &[u8]) -> Result<(), NicError> {
        let pages = &self.buffer.pages;
        pages.write(offset, bytes).map_err(outside)
    }

    /// Puts the message for the first `bytes` of a slot into the ring.
    fn send<D: Doorbell>(
        &mut self,
        link: &mut Link<D>,
        slot: u32,
        bytes: usize,
        channel_type: ChannelType,
    ) -> Result<Sent, NicError> {
        let transaction_id = self.slots.next_id(slot);
        let sent = if bytes <= self.slots.section() {
            let index = self.slots.section_of(slot);
            let section = Some(SectionUse { index, bytes: bytes as u32 });
            let message = rndis_packet(channel_type, section);
            let payload = message.get(..self.message_size).unwrap_or(&message);
            link.stage(&Outgoing::InBand { transaction_id, completion: true, payload })?
        } else {
            let start = self.slots.start_of(slot);
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
            self.slots.sent(slot, transaction_id);
        }
        Ok(sent)
    }

    /// The host completed `transaction_id`. The slot, if it is one that was under way.
    #[inline]
    pub(super) fn completed(&mut self, transaction_id: u64) -> Option<u32> {
        self.slots.completed(transaction_id)
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
        let mut info = Info::NONE;
        let tag = inner_tag(frame);
        let data_len = frame.len() - if tag.is_some() { VLAN_TAG } else { 0 };
        self.check_length(frame.len(), data_len, tag)?;
        if let Some(tag) = tag {
            info.add(PpiType::VLAN, tag.to_ppi());
        }
        loop {
            if let Some(at) = self.join(&info, data_len)? {
                match frame.split_at_checked(ADDRESSES) {
                    Some((addresses, rest)) if tag.is_some() => {
                        self.write(at, addresses)?;
                        self.write(at + ADDRESSES, rest.get(VLAN_TAG..).unwrap_or_default())?;
                    }
                    _ => self.write(at, frame)?,
                }
                stats.tx_frames += 1;
                stats.tx_bytes += frame.len() as u64;
                return Ok(());
            }
            self.open_slot(link, stats, false)?;
        }
    }

    /// The same with work for the host.
    pub(super) fn transmit_with<D: Doorbell>(
        &mut self,
        link: &mut Link<D>,
        frame: &TxFrame<'_>,
        stats: &mut NicStats,
    ) -> Result<(), TransmitError> {
        let split = frame.split()?;
        let data_len = split.len();
        let large = frame.large_send.map(|send| offload::moved_send(send, split.cut));
        match large {
            Some(send) => self.check_large(data_len, send, self.most_large)?,
            None => self.check_length(frame.len(), data_len, split.tag)?,
        }
        let (info, patches) = self.requests(&split, &frame.work(), large, stats)?;
        self.copy(link, &split, data_len, (&info, &patches), large.is_some(), stats)?;
        stats.tx_bytes += frame.len() as u64;
        Ok(())
    }

    /// Copies a frame of `data_len` bytes that was looked at into the open message, or the next.
    #[inline(always)]
    pub(super) fn copy<D: Doorbell>(
        &mut self,
        link: &mut Link<D>,
        split: &Split<'_>,
        data_len: usize,
        (info, patches): (&Info, &Patches),
        large: bool,
        stats: &mut NicStats,
    ) -> Result<(), TransmitError> {
        loop {
            if let Some(at) = self.join(info, data_len)? {
                self.write_pieces(at, split, patches)?;
                stats.tx_frames += 1;
                stats.tx_large += u64::from(large);
                if large {
                    // Nothing joins it: its slot is needed for another of its kind.
                    self.bound_large();
                }
                return Ok(());
            }
            self.open_slot(link, stats, large)?;
        }
    }

    pub(super) fn check_length(
        &self,
        len: usize,
        data_len: usize,
        tag: Option<VlanTag>,
    ) -> Result<(), TransmitError> {
        if data_len <= self.most {
            return Ok(());
        }
        Err(TransmitError::TooLong {
            len,
            most: self.most + if tag.is_some() { VLAN_TAG } else { 0 },
        })
    }

    /// `most`: the longest segment that there is room for.
    pub(super) fn check_large(
        &self,
        len: usize,
        send: LargeSend,
        most: usize,
    ) -> Result<(), TransmitError> {
        let offered = if send.ipv6 { self.offloads.ipv6 } else { self.offloads.ipv4 };
        let most = most.min(offered.large_send as usize);
        if send.segment == 0 || len > most {
            return Err(TransmitError::LargeSend { len, segment: send.segment, most });
        }
        Ok(())
    }

    /// What the host is asked to do, and what is done here.
    pub(super) fn requests(
        &self,
        split: &Split<'_>,
        work: &TxWork,
        large: Option<LargeSend>,
        stats: &mut NicStats,
    ) -> Result<(Info, Patches), TransmitError> {
        let (mut info, mut patches) = (Info::NONE, Patches::default());
        if let Some(tag) = split.tag {
            info.add(PpiType::VLAN, tag.to_ppi());
        }
        let checksum = offload::moved_checksum(work.checksum, split.cut);
        if let Some(send) = large {
            patches = offload::prepare_large_send(split, send, &self.offloads)?;
            info.add(PpiType::LARGE_SEND, send.to_ppi());
        } else if offload::asks(checksum) {
            if offload::offers(&self.offloads, split, checksum) {
                info.add(PpiType::CHECKSUM, checksum.bits());
            } else {
                patches = offload::compute(split, checksum)?;
                stats.tx_checksums += 1;
            }
        }
        if let Some(hash) = work.hash {
            info.add(PpiType::HASH, hash);
        }
        Ok((info, patches))
    }

    fn write_pieces(
        &self,
        start: usize,
        split: &Split<'_>,
        patches: &Patches,
    ) -> Result<(), NicError> {
        let mut at = start;
        for piece in split.pieces() {
            self.write(at, piece)?;
            at += piece.len();
        }
        if !split.body().is_empty() {
            self.write_body(at, split)?;
        }
        self.patch(start, patches)
    }

    /// Copies what lies in pages.
    #[cold]
    fn write_body(&self, mut at: usize, split: &Split<'_>) -> Result<(), NicError> {
        for slice in split.body() {
            slice
                .read(|part| {
                    self.buffer.pages.write(at, part)?;
                    at += part.len();
                    Ok(())
                })
                .map_err(outside)?;
        }
        Ok(())
    }

    #[inline(always)]
    fn patch(&self, start: usize, patches: &Patches) -> Result<(), NicError> {
        for (place, bytes) in patches.iter() {
            self.write(start + place, &bytes)?;
        }
        Ok(())
    }

    /// Puts the header of a message of its own, and what does not lie in pages, into a slot. Returns how many bytes that is.
    pub(super) fn fill(
        &self,
        slot: u32,
        info: &Info,
        split: &Split<'_>,
        patches: &Patches,
    ) -> Result<usize, NicError> {
        let base = self.slots.start_of(slot);
        let entries = info.entries();
        let header_len = PACKET_HEADER + entries.len() * WORD_PPI;
        let mut header = [0; HEADERS];
        let written = write_header(&mut header, entries, header_len, split.len()).unwrap_or(0);
        self.write(base, header.get(..written).unwrap_or_default())?;
        let mut at = base + header_len;
        for piece in split.pieces() {
            self.write(at, piece)?;
            at += piece.len();
        }
        self.patch(base + header_len, patches)?;
        Ok(at - base)
    }

    /// Sends the open message and opens the next in a free slot.
    fn open_slot<D: Doorbell>(
        &mut self,
        link: &mut Link<D>,
        stats: &mut NicStats,
        long: bool,
    ) -> Result<(), TransmitError> {
        let slot = self.next_slot(link, stats, long)?;
        self.open = Some(Open { slot, used: 0, last: 0, last_len: 0, frames: 0 });
        Ok(())
    }

    /// Sends the open message, and takes a free slot for the next.
    #[inline(always)]
    pub(super) fn next_slot<D: Doorbell>(
        &mut self,
        link: &mut Link<D>,
        stats: &mut NicStats,
        long: bool,
    ) -> Result<u32, TransmitError> {
        while let Sent::NoRoom(need) = self.close(link, stats)? {
            if !link.channel.request_space(need).map_err(NicError::from)? {
                stats.tx_ring_full += 1;
                return Err(TransmitError::Full(Lack::Ring));
            }
        }
        let slot = if long { self.slots.take_long() } else { self.slots.take() };
        let Some(slot) = slot else {
            link.channel.commit().map_err(NicError::from)?;
            stats.tx_sections_full += 1;
            return Err(TransmitError::Full(Lack::Section));
        };
        Ok(slot)
    }

    /// The open message takes no more frames.
    fn bound_large(&mut self) {
        if let Some(open) = &mut self.open {
            open.frames = self.frames_per_message;
        }
    }

    /// Makes room for a frame in the open message and writes its header. Where the frame goes, or `None` if there is no
    /// message, or it has no room.
    #[inline]
    fn join(&mut self, info: &Info, data_len: usize) -> Result<Option<usize>, NicError> {
        let Some(open) = self.open else { return Ok(None) };
        let start = open.used.next_multiple_of(self.alignment);
        let entries = info.entries();
        let header_len = PACKET_HEADER + entries.len() * WORD_PPI;
        let used = start + header_len + data_len;
        if open.frames > 0
            && (open.frames >= self.frames_per_message
                || used > self.slots.size().min(self.bytes_per_message))
        {
            return Ok(None);
        }
        let base = self.slots.start_of(open.slot);
        if start > open.used {
            // The next message starts where the last says it ends.
            let length = (open.last_len + start - open.used) as u32;
            self.write(base + open.last + 4, &length.to_le_bytes())?;
        }
        let mut header = [0; HEADERS];
        let Some(written) = write_header(&mut header, entries, header_len, data_len) else {
            return Ok(None);
        };
        self.write(base + start, header.get(..written).unwrap_or_default())?;
        self.open = Some(Open {
            used,
            last: start,
            last_len: header_len + data_len,
            frames: open.frames + 1,
            ..open
        });
        Ok(Some(base + start + header_len))
    }
}

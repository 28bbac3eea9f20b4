//! Frames from the guest: gathered from send section and guest memory, checked as a whole, then passed to the switch.

use netvsc::nvsp::{SectionUse, Status};
use netvsc::rndis::packet::VlanTag;
use vmbus::Instant;
use vmbus::Pfn;
use vmbus::memory::SharedMemory;
use vmbus::packet::GpaRanges;

use super::offload::{OffloadError, Segments, fill_checksums};
use super::packet::{PacketError, TransmitPacket};
use super::queue::Queue;
use super::setup::{Circumstances, Setup};
use super::{Link, NicCounters, NicService, NicServiceError, SourceError};
use crate::switch::{Offered, Path, SwitchPort};

/// Most bytes in one data message: eight large sends.
const LONGEST_MESSAGE: usize = 8 * 65_536;

/// Bytes of two addresses: where a VLAN tag goes.
const ADDRESSES: usize = 12;

/// One frame of the message under way.
#[derive(Clone, Copy, Debug)]
struct Planned {
    start: usize,
    end: usize,
    vlan: Option<VlanTag>,
    segments: Option<Segments>,
}

/// The data message under way, and buffers that serve all of them.
#[derive(Debug, Default)]
pub(super) struct Transmit {
    /// The message's bytes: section first, then ranges.
    stream: Vec<u8>,
    plan: Vec<Planned>,
    /// Next frame of the plan, and next segment of that frame.
    at: (usize, usize),
    /// Transaction id of the message; `None` while there is none under way.
    transaction: Option<u64>,
    /// A frame that is not in the stream as it goes out: segments, tagged frames.
    frame: Vec<u8>,
    tagged: Vec<u8>,
    frames: Vec<Pfn>,
}

impl Transmit {
    /// Copies the bytes of an RNDIS message out of the guest's memory.
    fn gather(
        &mut self,
        setup: &Setup,
        section: Option<SectionUse>,
        with: &Circumstances<'_, '_>,
    ) -> Result<(), SourceError> {
        self.stream.clear();
        if let Some(used) = section {
            let buffer = setup.send.as_ref().ok_or(SourceError::NoSendBuffer(used.index))?;
            buffer.read(used.index, used.bytes, &mut self.stream)?;
        }
        for range in with.ranges.iter().flat_map(GpaRanges::iter) {
            let start = self.stream.len();
            let end = start.saturating_add(range.byte_count as usize);
            if end > LONGEST_MESSAGE {
                return Err(SourceError::TooLong { bytes: end, most: LONGEST_MESSAGE });
            }
            self.frames.clear();
            self.frames.extend(range.frames());
            let pages = (with.guest.pages)(&self.frames).ok_or(SourceError::UnknownMemory)?;
            self.stream.resize(end, 0);
            pages
                .read(range.byte_offset as usize, &mut self.stream[start..])
                .map_err(|_| SourceError::UnknownMemory)?;
        }
        Ok(())
    }

    /// The same for a control message, whose bytes the caller keeps for a while: see [`Self::give_back`].
    pub(super) fn gather_apart(
        &mut self,
        setup: &Setup,
        section: Option<SectionUse>,
        with: &Circumstances<'_, '_>,
    ) -> Result<Vec<u8>, SourceError> {
        self.gather(setup, section, with)?;
        Ok(std::mem::take(&mut self.stream))
    }

    /// Takes the buffer of a control message for further use.
    pub(super) fn give_back(&mut self, stream: Vec<u8>) {
        self.stream = stream;
    }

    /// Checks every frame of the stream and plans its way out.
    fn plan(&mut self) -> Result<(), RefusedSend> {
        self.plan.clear();
        self.at = (0, 0);
        let mut start = 0;
        while start < self.stream.len() {
            let message = self.stream.get_mut(start..).unwrap_or_default();
            let packet = TransmitPacket::read(message)?;
            let frame = message.get_mut(packet.data.clone()).unwrap_or_default();
            let segments = match packet.large_send {
                Some(large) => Some(Segments::new(frame, large)?),
                None => None,
            };
            if let (Some(request), None) = (packet.checksum, segments) {
                fill_checksums(frame, request)?;
            }
            let data = start + packet.data.start..start + packet.data.end;
            let next = start + packet.length;
            let vlan = packet.vlan;
            self.plan.push(Planned { start: data.start, end: data.end, vlan, segments });
            start = next;
        }
        if self.plan.is_empty() { Err(RefusedSend::Empty) } else { Ok(()) }
    }

    /// Passes on what the wire takes. True if the whole plan went out.
    fn pass_on(&mut self, now: Instant, port: &mut SwitchPort, counters: &mut NicCounters) -> bool {
        while let Some(planned) = self.plan.get(self.at.0).copied() {
            let frame = self.stream.get(planned.start..planned.end).unwrap_or_default();
            let count = planned.segments.map_or(1, |segments| segments.count(frame));
            while self.at.1 < count {
                let mut bytes = frame;
                if let Some(segments) = planned.segments {
                    segments.write(frame, self.at.1, &mut self.frame);
                    bytes = &self.frame;
                }
                if let Some(tag) = planned.vlan {
                    insert_tag(bytes, tag, &mut self.tagged);
                    bytes = &self.tagged;
                }
                if port.accept_from_guest(Path::Synthetic, bytes, now) == Offered::Busy {
                    return false;
                }
                counters.transmit_frames += 1;
                self.at.1 += 1;
            }
            counters.large_sends += u64::from(planned.segments.is_some());
            self.at = (self.at.0 + 1, 0);
        }
        true
    }
}

/// Why a data message was refused. None of its frames goes out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
enum RefusedSend {
    #[error(transparent)]
    Source(#[from] SourceError),
    #[error(transparent)]
    Message(#[from] PacketError),
    #[error(transparent)]
    Offload(#[from] OffloadError),
    #[error("no frame in the message")]
    Empty,
    #[error("start-up is not finished, or the NIC is halted")]
    NotOperational,
}

impl NicService {
    /// A data message. Answered at once if it is refused, else when its last frame is on the wire.
    pub(super) fn handle_data(
        &mut self,
        link: &Link,
        queue: &mut Queue,
        transaction: u64,
        section: Option<SectionUse>,
        with: Circumstances<'_, '_>,
    ) -> Result<(), NicServiceError> {
        self.counters.transmit_messages += 1;
        let transmit = &mut queue.transmit;
        let outcome = if link.control.is_operational() {
            let gathered = transmit.gather(&link.setup, section, &with);
            gathered.map_err(RefusedSend::from).and_then(|()| transmit.plan())
        } else {
            Err(RefusedSend::NotOperational)
        };
        match outcome {
            Ok(()) => {
                transmit.transaction = Some(transaction);
                Ok(())
            }
            Err(error) => {
                tracing::debug!(%error, "data message refused");
                self.counters.transmit_refused += 1;
                transmit.plan.clear();
                queue.complete_send(&link.setup, transaction, Status::FAILURE)
            }
        }
    }

    /// Goes on with the data message under way. True if there is none left.
    pub(super) fn transmit(
        &mut self,
        link: &Link,
        queue: &mut Queue,
        now: Instant,
        port: &mut SwitchPort,
    ) -> Result<bool, NicServiceError> {
        let Some(transaction) = queue.transmit.transaction else { return Ok(true) };
        if !queue.transmit.pass_on(now, port, &mut self.counters) {
            self.counters.transmit_blocked += 1;
            return Ok(false);
        }
        queue.transmit.transaction = None;
        queue.complete_send(&link.setup, transaction, Status::SUCCESS)?;
        Ok(true)
    }
}

/// Puts an 802.1Q tag behind the addresses.
fn insert_tag(frame: &[u8], VlanTag(tag): VlanTag, out: &mut Vec<u8>) {
    let (addresses, rest) = frame.split_at(frame.len().min(ADDRESSES));
    out.clear();
    out.extend_from_slice(addresses);
    out.extend_from_slice(&[0x81, 0x00]);
    out.extend_from_slice(&tag.to_be_bytes());
    out.extend_from_slice(rest);
}

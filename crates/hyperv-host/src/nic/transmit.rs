//! Frames from the guest: gathered from send section and guest memory, checked as a whole, then passed to the switch.

use netvsc::nvsp::{SectionUse, Status};
use netvsc::rndis::packet::VlanTag;
use vmbus::Instant;
use vmbus::Pfn;
use vmbus::memory::SharedMemory;
use vmbus::packet::GpaRanges;

use super::control::{ALIGNMENT, PACKETS_PER_MESSAGE};
use super::offers::{LEAST_SEGMENTS, OffloadPolicy};
use super::offload::{OffloadError, Segments, fill_checksums};
use super::packet::{PacketError, TransmitPacket};
use super::policy::{NicPolicy, SendOrder};
use super::queue::Queue;
use super::setup::{Circumstances, Setup};
use super::{Link, NicCounters, NicService, NicServiceError, SourceError};
use crate::switch::{Offered, Path, SwitchPort};

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
    /// Bytes of the section, or of the first range if there is no section: headers do not reach beyond.
    first: usize,
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
        policy: &NicPolicy,
    ) -> Result<(), SourceError> {
        self.stream.clear();
        self.first = 0;
        let ranges = with.ranges.as_ref().map_or(0, GpaRanges::count);
        let (pieces, most) = (ranges + usize::from(section.is_some()), policy.mdl_chain as usize);
        if pieces > most {
            return Err(SourceError::Scattered { pieces, most });
        }
        let longest = policy.max_transfer as usize;
        if let Some(used) = section {
            let buffer = setup.send.as_ref().ok_or(SourceError::NoSendBuffer(used.index))?;
            let bytes = used.bytes as usize;
            if bytes > longest {
                return Err(SourceError::TooLong { bytes, most: longest });
            }
            buffer.read(used.index, used.bytes, &mut self.stream)?;
            self.first = self.stream.len();
        }
        for range in with.ranges.iter().flat_map(GpaRanges::iter) {
            let start = self.stream.len();
            let end = start.saturating_add(range.byte_count as usize);
            if end > longest {
                return Err(SourceError::TooLong { bytes: end, most: longest });
            }
            self.frames.clear();
            self.frames.extend(range.frames());
            let pages = (with.guest.pages)(&self.frames).ok_or(SourceError::UnknownMemory)?;
            self.stream.resize(end, 0);
            pages
                .read(range.byte_offset as usize, &mut self.stream[start..])
                .map_err(|_| SourceError::UnknownMemory)?;
            if self.first == 0 {
                self.first = self.stream.len();
            }
        }
        Ok(())
    }

    /// The same for a control message, whose bytes the caller keeps for a while: see [`Self::give_back`].
    pub(super) fn gather_apart(
        &mut self,
        setup: &Setup,
        section: Option<SectionUse>,
        with: &Circumstances<'_, '_>,
        policy: &NicPolicy,
    ) -> Result<Vec<u8>, SourceError> {
        self.gather(setup, section, with, policy)?;
        Ok(std::mem::take(&mut self.stream))
    }

    /// Takes the buffer of a control message for further use.
    pub(super) fn give_back(&mut self, stream: Vec<u8>) {
        self.stream = stream;
    }

    /// Checks every frame of the stream and plans its way out.
    fn plan(&mut self, offloads: &OffloadPolicy) -> Result<(), RefusedSend> {
        self.plan.clear();
        self.at = (0, 0);
        let mut start = 0;
        while start < self.stream.len() {
            if self.plan.len() >= PACKETS_PER_MESSAGE as usize {
                return Err(RefusedSend::TooMany);
            }
            if start % (1 << ALIGNMENT) != 0 {
                return Err(RefusedSend::Alignment(start));
            }
            let message = self.stream.get_mut(start..).unwrap_or_default();
            let packet = TransmitPacket::read(message)?;
            let (header, first) = (start + packet.header, self.first);
            if header > first {
                return Err(RefusedSend::Split { header, first });
            }
            let frame = message.get_mut(packet.data.clone()).unwrap_or_default();
            packet.check_offered(offloads, frame)?;
            let segments = match packet.large_send {
                Some(large) => Some(Segments::new(frame, large)?),
                None => None,
            };
            if let Some(count) = segments.map(|segments| segments.count(frame))
                && count < LEAST_SEGMENTS as usize
            {
                return Err(OffloadError::Segments { count, least: LEAST_SEGMENTS }.into());
            }
            let bytes = segments.map_or(0, |segments| segments.payload(frame));
            let most = offloads.large_send as usize;
            if segments.is_some() && bytes > most {
                return Err(OffloadError::TooLarge { bytes, most }.into());
            }
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

    /// Frames of the message under way that are not on the wire yet; segments count one by one.
    fn remaining(&self) -> u64 {
        let frames = self.plan.iter().enumerate().skip(self.at.0);
        let counts = frames.map(|(number, planned)| {
            let frame = self.stream.get(planned.start..planned.end).unwrap_or_default();
            let count = planned.segments.map_or(1, |segments| segments.count(frame));
            count - if number == self.at.0 { self.at.1 } else { 0 }
        });
        counts.sum::<usize>() as u64
    }

    /// Passes on what the wire takes. True if the whole plan went out.
    fn pass_on(&mut self, now: Instant, port: &mut SwitchPort, counters: &mut NicCounters) -> bool {
        while let Some(planned) = self.plan.get(self.at.0).copied() {
            if let (Some(segments), None, true, 0) =
                (planned.segments, planned.vlan, port.peer_cuts(), self.at.1)
            {
                let frame = self.stream.get_mut(planned.start..planned.end).unwrap_or_default();
                let uncut = segments.leave(frame);
                if port.accept_uncut(Path::Synthetic, frame, uncut, now) == Offered::Busy {
                    return false;
                }
                counters.transmit_frames += 1;
                counters.large_sends += 1;
                self.at = (self.at.0 + 1, 0);
                continue;
            }
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
    #[error(
        "more than {PACKETS_PER_MESSAGE} frames in the message, which is what the guest was told"
    )]
    TooMany,
    #[error("a PACKET at byte {0}; expected a multiple of {align}", align = 1 << ALIGNMENT)]
    Alignment(usize),
    #[error(
        "headers up to byte {header}; expected all of them in the first {first}, the first piece of memory"
    )]
    Split { header: usize, first: usize },
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
            let gathered = transmit.gather(&link.setup, section, &with, &self.config.policy);
            gathered
                .map_err(RefusedSend::from)
                .and_then(|()| transmit.plan(&self.config.policy.offloads))
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
        let Some(transaction) = queue.transmit.transaction else {
            return Ok(!queue.owes_too_much());
        };
        if !queue.transmit.pass_on(now, port, &mut self.counters) {
            self.counters.transmit_blocked += 1;
            return Ok(false);
        }
        queue.transmit.transaction = None;
        queue.owe(transaction, Status::SUCCESS, now, &self.config.policy);
        if self.config.policy.send_order == SendOrder::InOrder {
            self.pay(link, queue, now)?;
        }
        Ok(!queue.owes_too_much())
    }

    /// Completes what is due.
    pub(super) fn pay(
        &mut self,
        link: &Link,
        queue: &mut Queue,
        now: Instant,
    ) -> Result<(), NicServiceError> {
        while let Some((transaction, status)) = queue.owed.take(now, self.config.policy.send_order)
        {
            queue.complete_send(&link.setup, transaction, status)?;
        }
        Ok(())
    }

    /// The host's network starts anew. Frames that still waited for the wire are lost; whatever was accepted is completed
    /// with success all the same, as real hosts do. Poll afterwards.
    pub fn restart_endpoint(&mut self) {
        self.counters.restarts += 1;
        let Some(link) = &mut self.link else { return };
        for queue in link.queues.iter_mut().flatten() {
            if let Some(transaction) = queue.transmit.transaction.take() {
                self.counters.lost_in_restarts += queue.transmit.remaining();
                queue.transmit.plan.clear();
                queue.owed.push(transaction, Status::SUCCESS, Instant::ZERO);
            }
            queue.owed.hurry();
        }
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

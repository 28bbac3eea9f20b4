//! RNDIS requests of the guest, their answers, and what the host says unasked.

use std::collections::VecDeque;

use netvsc::MacAddress;
use netvsc::nvsp::{self, ChannelType, SectionUse};
use netvsc::rndis::{
    GuestMessage, HostMessage, InitializeComplete, MAJOR_VERSION, MessageType, Oid, Status,
};
use vmbus::Instant;
use vmbus::packet::{Outgoing, TransferRange};

use super::fault::Faults;
use super::outbox::Outbox;
use super::policy::ResetAnswer;
use super::queue::Queue;
use super::receive::Use;
use super::setup::Circumstances;
use super::{Link, NicService, NicServiceError, NicServiceEvent};
use crate::switch::SwitchPort;

/// Most PACKET messages in one data message, as the guest is told.
pub(super) const PACKETS_PER_MESSAGE: u32 = 8;
/// PACKET messages start at multiples of 2 to this power, as the guest is told.
pub(super) const ALIGNMENT: u32 = 3;

/// State of RNDIS on a channel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum State {
    #[default]
    Down,
    Operational,
    Halted,
}

#[derive(Debug)]
struct Reply {
    due: Instant,
    bytes: Vec<u8>,
    /// Start-up ends when this goes out.
    ends_startup: bool,
    /// It is a lie already.
    spoilt: bool,
}

/// RNDIS on one channel.
#[derive(Debug, Default)]
pub(super) struct Control {
    state: State,
    filter: u32,
    /// The address that the guest gave itself.
    address: Option<MacAddress>,
    /// Messages for the guest, in order.
    replies: VecDeque<Reply>,
    /// Bytes of these messages.
    bytes: usize,
    /// The guest was asked whether it is there, under this number, and has not answered.
    asked: Option<u32>,
}

impl Control {
    /// Whether the guest may send frames.
    pub(super) fn is_operational(&self) -> bool {
        self.state == State::Operational
    }

    /// Whether the guest wants frames.
    pub(super) fn receives(&self) -> bool {
        self.is_operational() && self.filter != 0
    }

    pub(super) const fn filter(&self) -> u32 {
        self.filter
    }

    pub(super) fn set_filter(&mut self, filter: u32) {
        self.filter = filter;
    }

    pub(super) const fn address(&self) -> Option<MacAddress> {
        self.address
    }

    pub(super) fn set_address(&mut self, address: Option<MacAddress>) {
        self.address = address;
    }

    /// Says something unasked, if the guest can hear it. `counted`: whether the message's length counts its buffer.
    pub(super) fn indicate(&mut self, status: Status, buffer: &[u8], counted: bool, now: Instant) {
        if !self.is_operational() {
            return;
        }
        self.push(HostMessage::Indicate { status, buffer }, now);
        if let Some(reply) = self.replies.back_mut().filter(|_| !counted) {
            let length = (reply.bytes.len() - buffer.len()) as u32;
            if let Some(field) = reply.bytes.get_mut(4..8) {
                field.copy_from_slice(&length.to_le_bytes());
            }
        }
    }

    /// Asks the guest whether it is there, under this number.
    pub(super) fn keep_alive(&mut self, request_id: u32, now: Instant) {
        self.asked = Some(request_id);
        self.push(HostMessage::KeepAlive { request_id }, now);
    }

    fn push(&mut self, message: HostMessage<'_>, due: Instant) {
        let mut bytes = Vec::new();
        message.encode(&mut bytes);
        self.bytes += bytes.len();
        // Answers keep their order, also if the delay gets shorter.
        let due = self.replies.back().map_or(due, |last| due.max(last.due));
        self.replies.push_back(Reply { due, bytes, ends_startup: false, spoilt: false });
    }

    /// Queues a message that is none of the protocol's, or not as it should be.
    fn push_bytes(&mut self, bytes: Vec<u8>, due: Instant) {
        self.bytes += bytes.len();
        let due = self.replies.back().map_or(due, |last| due.max(last.due));
        self.replies.push_back(Reply { due, bytes, ends_startup: false, spoilt: true });
    }

    /// Puts lies in the place of the message that is next, if that is wanted. True if another one is next now.
    fn spoil_next(&mut self, faults: &mut Faults) -> bool {
        let next = self.replies.front().filter(|next| !next.spoilt);
        let Some(lies) = next.and_then(|next| faults.reply(&next.bytes)) else { return false };
        let Some(Reply { due, mut ends_startup, .. }) = self.pop() else { return false };
        for bytes in lies.into_iter().rev() {
            self.bytes += bytes.len();
            self.replies.push_front(Reply { due, bytes, ends_startup, spoilt: true });
            ends_startup = false;
        }
        true
    }

    fn pop(&mut self) -> Option<Reply> {
        let reply = self.replies.pop_front()?;
        self.bytes -= reply.bytes.len();
        Some(reply)
    }

    /// Whether more may be asked.
    fn check(&self, most: usize) -> Result<(), NicServiceError> {
        let bytes = self.bytes;
        if bytes > most { Err(NicServiceError::ControlQueue { bytes, most }) } else { Ok(()) }
    }

    fn initialize(
        &mut self,
        request_id: u32,
        major: u32,
        max_transfer: u32,
        due: Instant,
    ) -> Result<(), NicServiceError> {
        if self.state != State::Down {
            return Err(NicServiceError::InitializedTwice);
        }
        let good = major == MAJOR_VERSION;
        let answer = InitializeComplete {
            request_id,
            status: if good { Status::SUCCESS } else { Status::BAD_VERSION },
            major: MAJOR_VERSION,
            minor: 0,
            device_flags: 1,
            medium: 0,
            max_packets: PACKETS_PER_MESSAGE,
            max_transfer,
            alignment_factor: ALIGNMENT,
        };
        self.push(HostMessage::InitializeComplete(answer), due);
        if good {
            self.state = State::Operational;
            if let Some(reply) = self.replies.back_mut() {
                reply.ends_startup = true;
            }
        }
        Ok(())
    }

    /// When the next message is due; none while it only waits for a free piece or room in the ring.
    pub(super) fn poll_deadline(&self, seen: Instant) -> Option<Instant> {
        let due = self.replies.front()?.due;
        (due > seen).then_some(due)
    }
}

impl NicService {
    /// A control message.
    pub(super) fn handle_control(
        &mut self,
        link: &mut Link,
        queue: &mut Queue,
        transaction: u64,
        section: Option<SectionUse>,
        with: Circumstances<'_, '_>,
        port: &mut SwitchPort,
    ) -> Result<(), NicServiceError> {
        self.counters.control_requests += 1;
        let policy = &self.config.policy;
        let bytes = queue.transmit.gather_apart(&link.setup, section, &with, policy)?;
        let request = GuestMessage::decode(&bytes)?;
        let initialize = matches!(request, GuestMessage::Initialize { .. });
        if link.control.state == State::Down && !initialize {
            return Err(NicServiceError::NotInitialized(kind(&bytes)));
        }
        queue.complete_send(&link.setup, transaction, nvsp::Status::SUCCESS)?;
        let due = with.now + self.config.policy.rndis_delay;
        match request {
            GuestMessage::Initialize { request_id, major, .. } => {
                let max_transfer = self.config.policy.max_transfer;
                link.control.initialize(request_id, major, max_transfer, due)?;
            }
            GuestMessage::Halt { .. } => {
                link.control.state = State::Halted;
                link.control.filter = 0;
                self.apply_filter(link, port);
                self.events.push_back(NicServiceEvent::Halted);
            }
            GuestMessage::Query { request_id, oid, info } => {
                let answer = self.query(link, oid, info);
                let status = *answer.as_ref().err().unwrap_or(&Status::SUCCESS);
                let info = &answer.unwrap_or_default();
                link.control.push(HostMessage::QueryComplete { request_id, status, info }, due);
            }
            GuestMessage::Set { request_id, oid, info } => {
                let status = self.set(link, oid, info, port);
                link.control.push(HostMessage::SetComplete { request_id, status }, due);
                if oid == Oid::OFFLOAD_PARAMETERS && status == Status::SUCCESS {
                    let config = self.offload_config(link);
                    let counted = !self.config.policy.uncounted_buffers;
                    link.control.indicate(Status::OFFLOAD_CURRENT_CONFIG, &config, counted, due);
                }
            }
            GuestMessage::KeepAlive { request_id } => {
                let status = Status::SUCCESS;
                link.control.push(HostMessage::KeepAliveComplete { request_id, status }, due);
            }
            GuestMessage::KeepAliveComplete { request_id, status } => {
                let asked = link.control.asked.take_if(|asked| *asked == request_id).is_some();
                self.counters.keep_alive_answers += u64::from(asked && status == Status::SUCCESS);
                self.counters.unasked_answers += u64::from(!asked);
            }
            GuestMessage::Reset => match self.config.policy.reset {
                ResetAnswer::Fail => return Err(NicServiceError::Reset),
                ResetAnswer::Complete => {
                    link.control.filter = 0;
                    link.control.address = None;
                    self.apply_filter(link, port);
                    let status = Status::SUCCESS;
                    let answer = HostMessage::ResetComplete { status, addressing_reset: true };
                    link.control.push(answer, due);
                }
            },
        }
        link.control.check(self.config.policy.control_queue)?;
        // The buffer serves the next message as well.
        queue.transmit.give_back(bytes);
        Ok(())
    }

    /// Sends what is due, as long as there are control pieces and room in the ring.
    pub(super) fn send_control(
        &mut self,
        link: &mut Link,
        queue: &mut Queue,
        now: Instant,
        port: &mut SwitchPort,
    ) -> Result<(), NicServiceError> {
        self.indicate_link(link, now);
        if link.control.is_operational()
            && let Some(fault) = self.misbehave(queue, link.setup.message_size())?
        {
            let lies = Faults::indications(fault);
            lies.into_iter().for_each(|bytes| link.control.push_bytes(bytes, now));
        }
        while link.control.replies.front().is_some_and(|reply| reply.due <= now) {
            if link.control.spoil_next(&mut queue.faults) {
                continue;
            }
            if !queue.outbox.is_empty() || !Outbox::room(&mut queue.channel, 128)? {
                return Ok(());
            }
            let message = nvsp::rndis_packet(ChannelType::CONTROL, None);
            let message = message.get(..link.setup.message_size()).unwrap_or(&message);
            let Some(buffer) = &mut link.setup.receive else { return Ok(()) };
            let Some(piece) = buffer.take(Use::Control, queue.number) else { return Ok(()) };
            let Some(reply) = link.control.pop() else { return Ok(()) };
            let bytes = reply.bytes.get(..buffer.piece_size).unwrap_or(&reply.bytes);
            buffer.write(piece, 0, bytes)?;
            let range =
                TransferRange { byte_count: bytes.len() as u32, byte_offset: piece.offset as u32 };
            let packet = Outgoing::TransferPages {
                transaction_id: buffer.send(&[piece], queue.number),
                pageset: buffer.id,
                ranges: &[range],
                payload: message,
            };
            queue.channel.stage(&packet)?;
            self.counters.control_messages += 1;
            if reply.ends_startup {
                self.operational(link, queue, now, port)?;
            }
        }
        Ok(())
    }

    /// The link has changed and the guest may be told.
    fn indicate_link(&mut self, link: &mut Link, now: Instant) {
        if !link.control.is_operational() {
            link.state.assume(self.link_up || self.config.policy.always_connected);
            return;
        }
        while let Some(up) = link.state.poll(now, self.config.policy.link_spacing) {
            let status = if up { Status::MEDIA_CONNECT } else { Status::MEDIA_DISCONNECT };
            link.control.indicate(status, &[], true, now);
            self.counters.link_indications += 1;
        }
    }

    /// Start-up is over: the association follows, ahead of any other answer.
    fn operational(
        &mut self,
        link: &mut Link,
        queue: &mut Queue,
        now: Instant,
        port: &mut SwitchPort,
    ) -> Result<(), NicServiceError> {
        let Some(version) = link.setup.version else { return Ok(()) };
        let sriov = link.setup.wants_sriov();
        self.events.push_back(NicServiceEvent::Operational { version, sriov });
        self.association.operational(sriov, &self.config.policy, now);
        self.association.handle_deadline(&mut self.config.policy, now);
        self.act(Some((link, queue)), port)
    }
}

/// The type of a message, for errors; 0 if there is none.
fn kind(bytes: &[u8]) -> MessageType {
    MessageType(bytes.first_chunk().map_or(0, |kind| u32::from_le_bytes(*kind)))
}

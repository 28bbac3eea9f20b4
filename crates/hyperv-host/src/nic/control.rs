//! RNDIS requests of the guest, their answers, and what the host says unasked.

use std::collections::VecDeque;

use netvsc::MacAddress;
use netvsc::nvsp::{self, ChannelType, SectionUse, Version};
use netvsc::rndis::{
    GuestMessage, HostMessage, InitializeComplete, MAJOR_VERSION, MessageType, Oid, Status,
};
use vmbus::Instant;
use vmbus::packet::{Outgoing, TransferRange};

use super::outbox::Outbox;
use super::receive::Use;
use super::setup::Circumstances;
use super::{Link, NicService, NicServiceError, NicServiceEvent};
use crate::switch::{Path, SideState, SwitchPort};

/// Most bytes in one transfer, as the guest is told: a large send with headers, several times over.
const MAX_TRANSFER: u32 = 0x40_0000;
/// Most PACKET messages in one data message, as the guest is told.
const PACKETS_PER_MESSAGE: u32 = 8;
/// PACKET messages start at multiples of 2 to this power, as the guest is told.
const ALIGNMENT: u32 = 3;

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
}

/// RNDIS on one channel.
#[derive(Debug, Default)]
pub(super) struct Control {
    state: State,
    filter: u32,
    /// Messages for the guest, in order.
    replies: VecDeque<Reply>,
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

    /// Tells the guest about the link, if it can hear it. What it asks later is answered by the state of that moment.
    pub(super) fn indicate_link(&mut self, up: bool, now: Instant) {
        if self.is_operational() {
            let status = if up { Status::MEDIA_CONNECT } else { Status::MEDIA_DISCONNECT };
            self.push(HostMessage::Indicate { status, buffer: &[] }, now);
        }
    }

    fn push(&mut self, message: HostMessage<'_>, due: Instant) {
        let mut bytes = Vec::new();
        message.encode(&mut bytes);
        self.replies.push_back(Reply { due, bytes, ends_startup: false });
    }

    fn initialize(
        &mut self,
        request_id: u32,
        major: u32,
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
            max_transfer: MAX_TRANSFER,
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
        transaction: u64,
        section: Option<SectionUse>,
        with: Circumstances<'_, '_>,
        port: &mut SwitchPort,
    ) -> Result<(), NicServiceError> {
        self.counters.control_requests += 1;
        let bytes = self.transmit.gather_apart(&link.setup, section, &with)?;
        let request = GuestMessage::decode(&bytes)?;
        let initialize = matches!(request, GuestMessage::Initialize { .. });
        if link.control.state == State::Down && !initialize {
            return Err(NicServiceError::NotInitialized(kind(&bytes)));
        }
        link.complete_send(transaction, nvsp::Status::SUCCESS)?;
        let due = with.now + self.config.policy.rndis_delay;
        match request {
            GuestMessage::Initialize { request_id, major, .. } => {
                link.control.initialize(request_id, major, due)?;
            }
            GuestMessage::Halt { .. } => {
                link.control.state = State::Halted;
                link.control.filter = 0;
                port.set_side(Path::Synthetic, SideState::Down);
                self.events.push_back(NicServiceEvent::Halted);
            }
            GuestMessage::Query { request_id, oid, .. } => {
                let answer = self.query(link, oid);
                let status = if answer.is_some() { Status::SUCCESS } else { Status::NOT_SUPPORTED };
                let info = &answer.unwrap_or_default();
                link.control.push(HostMessage::QueryComplete { request_id, status, info }, due);
            }
            GuestMessage::Set { request_id, oid, info } => {
                let status = set(link, oid, info, port);
                link.control.push(HostMessage::SetComplete { request_id, status }, due);
                if oid == Oid::OFFLOAD_PARAMETERS {
                    let (status, config) =
                        (Status::OFFLOAD_CURRENT_CONFIG, offload_config(link.setup.version));
                    link.control.push(HostMessage::Indicate { status, buffer: &config }, due);
                }
            }
            GuestMessage::KeepAlive { request_id } => {
                let status = Status::SUCCESS;
                link.control.push(HostMessage::KeepAliveComplete { request_id, status }, due);
            }
            GuestMessage::Reset => return Err(NicServiceError::Reset),
        }
        // The buffer serves the next message as well.
        self.transmit.give_back(bytes);
        Ok(())
    }

    /// The answer to a query; `None` for an OID that this host does not know.
    fn query(&self, link: &Link, oid: Oid) -> Option<Vec<u8>> {
        let word = |value: u32| Some(value.to_le_bytes().to_vec());
        let frame = link.setup.frame();
        match oid {
            Oid::MAXIMUM_FRAME_SIZE => word(frame.saturating_sub(14)),
            Oid::LINK_SPEED => {
                word(u32::try_from(self.config.link_speed / 100).unwrap_or(u32::MAX))
            }
            Oid::CURRENT_PACKET_FILTER => word(link.control.filter),
            Oid::MEDIA_CONNECT_STATUS => word(u32::from(!self.link_up)),
            Oid::LINK_STATE => Some(link_state(self.link_up, self.config.link_speed)),
            Oid::PERMANENT_ADDRESS | Oid::CURRENT_ADDRESS => {
                let MacAddress(bytes) = self.config.mac;
                Some(bytes.to_vec())
            }
            Oid::FRIENDLY_NAME => Some(friendly_name("Network Adapter")),
            Oid::OFFLOAD_CURRENT_CONFIG | Oid::OFFLOAD_HARDWARE_CAPABILITIES => {
                Some(offload_config(link.setup.version))
            }
            _ => None,
        }
    }

    /// Sends what is due, as long as there are control pieces and room in the ring.
    pub(super) fn send_control(
        &mut self,
        link: &mut Link,
        now: Instant,
        port: &mut SwitchPort,
    ) -> Result<(), NicServiceError> {
        while link.control.replies.front().is_some_and(|reply| reply.due <= now) {
            if !link.outbox.is_empty() || !Outbox::room(&mut link.channel, 128)? {
                return Ok(());
            }
            let message = nvsp::rndis_packet(ChannelType::CONTROL, None);
            let message = message.get(..link.setup.message_size()).unwrap_or(&message);
            let Some(buffer) = &mut link.setup.receive else { return Ok(()) };
            let Some(piece) = buffer.take(Use::Control) else { return Ok(()) };
            let Some(reply) = link.control.replies.pop_front() else { return Ok(()) };
            let bytes = reply.bytes.get(..buffer.piece_size).unwrap_or(&reply.bytes);
            buffer.write(piece, 0, bytes)?;
            let range =
                TransferRange { byte_count: bytes.len() as u32, byte_offset: piece.offset as u32 };
            let packet = Outgoing::TransferPages {
                transaction_id: buffer.send(&[piece]),
                pageset: buffer.id,
                ranges: &[range],
                payload: message,
            };
            link.channel.stage(&packet)?;
            self.counters.control_messages += 1;
            if reply.ends_startup {
                self.operational(link, now, port)?;
            }
        }
        Ok(())
    }

    /// Start-up is over: the association follows, ahead of any other answer.
    fn operational(
        &mut self,
        link: &mut Link,
        now: Instant,
        port: &mut SwitchPort,
    ) -> Result<(), NicServiceError> {
        let Some(version) = link.setup.version else { return Ok(()) };
        let sriov = link.setup.wants_sriov();
        self.events.push_back(NicServiceEvent::Operational { version, sriov });
        self.association.operational(sriov, &self.config.policy, now);
        self.association.handle_deadline(&mut self.config.policy, now);
        self.act(Some(link), port)
    }
}

/// The type of a message, for errors; 0 if there is none.
fn kind(bytes: &[u8]) -> MessageType {
    MessageType(bytes.first_chunk().map_or(0, |kind| u32::from_le_bytes(*kind)))
}

/// Carries out a SET; its status.
fn set(link: &mut Link, oid: Oid, data: &[u8], port: &mut SwitchPort) -> Status {
    match oid {
        Oid::CURRENT_PACKET_FILTER => {
            let Some(filter) = data.first_chunk().map(|bytes| u32::from_le_bytes(*bytes)) else {
                return Status::INVALID_DATA;
            };
            link.control.filter = filter;
            port.set_filter(filter);
            port.set_receive_limit(link.setup.frame() as usize + VLAN_TAG);
            let receives = link.control.receives();
            port.set_side(Path::Synthetic, if receives { SideState::Up } else { SideState::Down });
            Status::SUCCESS
        }
        // Taken, and without effect: there is one queue, every offload is always at hand, and the address is the host's.
        Oid::OFFLOAD_PARAMETERS | Oid::CONFIG_PARAMETER => Status::SUCCESS,
        _ => Status::NOT_SUPPORTED,
    }
}

/// Bytes of an 802.1Q tag, which a frame may have on the wire beyond its limit.
const VLAN_TAG: usize = 4;

/// NDIS_LINK_STATE: header, state, duplex, speeds, pause, autonegotiation.
fn link_state(up: bool, speed: u64) -> Vec<u8> {
    const FULL_DUPLEX: u32 = 2;
    let mut bytes = vec![0x80, 1, 40, 0];
    for word in [if up { 1 } else { 2 }, FULL_DUPLEX, 0] {
        bytes.extend(u32::to_le_bytes(word));
    }
    bytes.extend(speed.to_le_bytes());
    bytes.extend(speed.to_le_bytes());
    bytes.extend([0; 8]);
    bytes
}

/// A name in UTF-16, in its field of 512 bytes.
fn friendly_name(name: &str) -> Vec<u8> {
    let mut bytes: Vec<u8> = name.encode_utf16().flat_map(u16::to_le_bytes).collect();
    bytes.resize(512, 0);
    bytes
}

/// What the host's NIC can do for the guest's frames (PROTOCOL §9.3): checksums over TCP, UDP and IPv4 headers on the
/// way out, large sends. On the way in it promises nothing.
fn offload_config(version: Option<Version>) -> Vec<u8> {
    const ENCAPSULATION: u32 = 2;
    const CHECKSUM_V4: u32 = 0x1 | 0x4 | 0x10 | 0x40 | 0x100;
    const CHECKSUM_V6: u32 = 0x4 | 0x10 | 0x40;
    const LARGE_SEND_MAX: u32 = 0xf53c;
    const SEGMENTS_MIN: u32 = 2;
    const TCP_OPTIONS_V6: u32 = 0x4;
    let (revision, size) = match version {
        Some(version) if version >= Version::V5 => (3, 156),
        _ => (2, 144),
    };
    let mut bytes = vec![0xa7, revision, size, 0];
    bytes.resize(usize::from(size), 0);
    let mut put = |at: usize, value: u32| {
        if let Some(field) = bytes.get_mut(at..at + 4) {
            field.copy_from_slice(&value.to_le_bytes());
        }
    };
    put(4, ENCAPSULATION);
    put(8, CHECKSUM_V4);
    put(20, ENCAPSULATION);
    put(24, CHECKSUM_V6);
    for at in [80, 92] {
        put(at, ENCAPSULATION);
        put(at + 4, LARGE_SEND_MAX);
        put(at + 8, SEGMENTS_MIN);
    }
    put(104, TCP_OPTIONS_V6);
    bytes
}

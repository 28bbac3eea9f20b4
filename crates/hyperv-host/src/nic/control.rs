//! RNDIS requests of the guest, their answers, and what the host says unasked.

use std::collections::VecDeque;

use netvsc::MacAddress;
use vmbus::Instant;
use vmbus::packet::{Outgoing, TransferRange};

use super::outbox::Outbox;
use super::receive::Use;
use super::setup::Circumstances;
use super::wire::nvsp::{self, NvspVersion, RndisSource, Status};
use super::wire::rndis::{self, Request, status};
use super::{Link, NicService, NicServiceError, NicServiceEvent};
use crate::switch::{Path, SideState, SwitchPort};

/// Most bytes in one transfer, as the guest is told: a large send with headers, several times over.
const MAX_TRANSFER: u32 = 0x40_0000;

/// Object identifiers that guests ask for.
mod oid {
    pub(super) const MAXIMUM_FRAME_SIZE: u32 = 0x0001_0106;
    pub(super) const LINK_SPEED: u32 = 0x0001_0107;
    pub(super) const CURRENT_PACKET_FILTER: u32 = 0x0001_010e;
    pub(super) const MEDIA_CONNECT_STATUS: u32 = 0x0001_0114;
    pub(super) const LINK_STATE: u32 = 0x0001_0207;
    pub(super) const RNDIS_CONFIG_PARAMETER: u32 = 0x0001_021b;
    pub(super) const FRIENDLY_NAME: u32 = 0x0002_0216;
    pub(super) const PERMANENT_ADDRESS: u32 = 0x0101_0101;
    pub(super) const CURRENT_ADDRESS: u32 = 0x0101_0102;
    pub(super) const OFFLOAD_CURRENT_CONFIG: u32 = 0xfc01_020b;
    pub(super) const OFFLOAD_PARAMETERS: u32 = 0xfc01_020c;
    pub(super) const OFFLOAD_HARDWARE: u32 = 0xfc01_020d;
}

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
            let what = if up { status::CONNECT } else { status::DISCONNECT };
            self.push(rndis::indicate_status(what, &[]), now);
        }
    }

    fn push(&mut self, bytes: Vec<u8>, due: Instant) {
        self.replies.push_back(Reply { due, bytes, ends_startup: false });
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
        source: RndisSource,
        with: Circumstances<'_, '_>,
        port: &mut SwitchPort,
    ) -> Result<(), NicServiceError> {
        self.counters.control_requests += 1;
        let bytes = self.transmit.gather_apart(&link.setup, source, &with)?;
        let request = rndis::parse_request(&bytes)?;
        let initialize = matches!(request, Request::Initialize { .. });
        if link.control.state == State::Down && !initialize {
            return Err(NicServiceError::NotInitialized(nvsp::message_type(&bytes).0));
        }
        link.complete_send(transaction, Status::SUCCESS)?;
        let due = with.now + self.config.policy.rndis_delay;
        match request {
            Request::Initialize { id, major } => {
                if link.control.state != State::Down {
                    return Err(NicServiceError::InitializedTwice);
                }
                let good = major == 1;
                let answer = if good { status::SUCCESS } else { status::BAD_VERSION };
                let bytes = rndis::initialize_complete(id, answer, MAX_TRANSFER);
                if good {
                    link.control.state = State::Operational;
                }
                link.control.replies.push_back(Reply { due, bytes, ends_startup: good });
            }
            Request::Halt => {
                link.control.state = State::Halted;
                link.control.filter = 0;
                port.set_side(Path::Synthetic, SideState::Down);
                self.events.push_back(NicServiceEvent::Halted);
            }
            Request::Query { id, oid } => {
                let answer = self.query(link, oid);
                let bytes = match &answer {
                    Some(data) => rndis::query_complete(id, status::SUCCESS, data),
                    None => rndis::query_complete(id, status::NOT_SUPPORTED, &[]),
                };
                link.control.push(bytes, due);
            }
            Request::Set { id, oid, data } => {
                let answer = set(link, oid, data, port);
                link.control.push(rndis::set_complete(id, answer), due);
                if oid == oid::OFFLOAD_PARAMETERS && answer == status::SUCCESS {
                    let config = offload_config(link.setup.version);
                    link.control.push(rndis::indicate_status(status::OFFLOAD_CONFIG, &config), due);
                }
            }
            Request::KeepAlive { id } => link.control.push(rndis::keep_alive_complete(id), due),
            Request::Other(kind) => return Err(NicServiceError::UnexpectedRndis(kind)),
        }
        // The buffer serves the next message as well.
        self.transmit.give_back(bytes);
        Ok(())
    }

    /// The answer to a query; `None` for an OID that this host does not know.
    fn query(&self, link: &Link, oid: u32) -> Option<Vec<u8>> {
        let word = |value: u32| Some(value.to_le_bytes().to_vec());
        let frame = link.setup.frame();
        match oid {
            oid::MAXIMUM_FRAME_SIZE => word(frame.saturating_sub(14)),
            oid::LINK_SPEED => {
                word(u32::try_from(self.config.link_speed / 100).unwrap_or(u32::MAX))
            }
            oid::CURRENT_PACKET_FILTER => word(link.control.filter),
            oid::MEDIA_CONNECT_STATUS => word(u32::from(!self.link_up)),
            oid::LINK_STATE => Some(link_state(self.link_up, self.config.link_speed)),
            oid::PERMANENT_ADDRESS | oid::CURRENT_ADDRESS => {
                let MacAddress(bytes) = self.config.mac;
                Some(bytes.to_vec())
            }
            oid::FRIENDLY_NAME => Some(friendly_name("Network Adapter")),
            oid::OFFLOAD_CURRENT_CONFIG | oid::OFFLOAD_HARDWARE => {
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
            let message = nvsp::rndis_packet(true, link.setup.message_size());
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
                payload: message.as_bytes(),
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

/// Carries out a SET; its status.
fn set(link: &mut Link, oid: u32, data: &[u8], port: &mut SwitchPort) -> u32 {
    match oid {
        oid::CURRENT_PACKET_FILTER => {
            let Some(filter) = data.first_chunk().map(|bytes| u32::from_le_bytes(*bytes)) else {
                return status::INVALID_DATA;
            };
            link.control.filter = filter;
            port.set_filter(filter);
            port.set_receive_limit(link.setup.frame() as usize + VLAN_TAG);
            let receives = link.control.receives();
            port.set_side(Path::Synthetic, if receives { SideState::Up } else { SideState::Down });
            status::SUCCESS
        }
        // Taken, and without effect: there is one queue, every offload is always at hand, and the address is the host's.
        oid::OFFLOAD_PARAMETERS | oid::RNDIS_CONFIG_PARAMETER => status::SUCCESS,
        _ => status::NOT_SUPPORTED,
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
fn offload_config(version: Option<NvspVersion>) -> Vec<u8> {
    const ENCAPSULATION: u32 = 2;
    const CHECKSUM_V4: u32 = 0x1 | 0x4 | 0x10 | 0x40 | 0x100;
    const CHECKSUM_V6: u32 = 0x4 | 0x10 | 0x40;
    const LARGE_SEND_MAX: u32 = 0xf53c;
    const SEGMENTS_MIN: u32 = 2;
    const TCP_OPTIONS_V6: u32 = 0x4;
    let (revision, size) = match version {
        Some(version) if version >= NvspVersion::V5 => (3, 156),
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

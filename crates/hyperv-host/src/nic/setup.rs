//! NVSP from INIT to the buffers, and the buffers' way back. Every step in its order, once.

use netvsc::nvsp::{
    Capabilities, ChannelType, DecodeError, GuestMessage, HostMessage, MessageType, ReceiveSection,
    Status, Version,
};
use netvsc::rndis;
use vmbus::memory::{PageList, SharedMemory};
use vmbus::packet::{GpaRanges, Packet};
use vmbus::{GpadlId, Instant};

use super::queue::Queue;
use super::receive::{CONTROL_PIECES, ReceiveBuffer};
use super::{GuestView, Link, NicService, NicServiceError, SourceError};
use crate::switch::{Path, SideState, SwitchPort};

/// Bytes of one send section.
pub(super) const SECTION_SIZE: u32 = 6144;

/// Smallest and largest frame, Ethernet header included, that a guest may configure; others become the smallest.
const FRAME_SIZES: std::ops::RangeInclusive<u32> = 1514..=9216;

/// The type of a message, for errors; 0 if there is none.
pub(super) fn kind(payload: &[u8]) -> MessageType {
    MessageType(payload.first_chunk().map_or(0, |kind| u32::from_le_bytes(*kind)))
}

/// The guest's send buffer.
#[derive(Debug)]
pub(super) struct SendBuffer {
    pages: PageList,
    id: u16,
    sections: u32,
}

impl SendBuffer {
    /// Copies the first `bytes` of a section to the end of `out`.
    pub(super) fn read(
        &self,
        section: u32,
        bytes: u32,
        out: &mut Vec<u8>,
    ) -> Result<(), SourceError> {
        if section >= self.sections {
            return Err(SourceError::Section { section, sections: self.sections });
        }
        if bytes > SECTION_SIZE {
            return Err(SourceError::SectionBytes { bytes, size: SECTION_SIZE });
        }
        let start = out.len();
        out.resize(start + bytes as usize, 0);
        let offset = section as usize * SECTION_SIZE as usize;
        self.pages.read(offset, &mut out[start..]).map_err(|_| SourceError::UnknownMemory)
    }
}

/// What the guest configured with NDIS_CONFIG.
#[derive(Clone, Copy, Debug)]
pub(super) struct NdisConfig {
    /// Longest frame, Ethernet header included.
    pub frame: u32,
    /// What the guest says that it can do.
    pub capabilities: Capabilities,
}

/// What was agreed on over a channel so far.
#[derive(Debug, Default)]
pub(super) struct Setup {
    pub version: Option<Version>,
    pub config: Option<NdisConfig>,
    ndis_version: bool,
    pub receive: Option<ReceiveBuffer>,
    pub send: Option<SendBuffer>,
    /// The first RNDIS message has ended start-up.
    ended: bool,
}

impl Setup {
    /// The size of NVSP messages on this channel.
    pub(super) fn message_size(&self) -> usize {
        self.message_version().message_size()
    }

    /// The version whose message size counts: until one is agreed on, messages are short.
    pub(super) fn message_version(&self) -> Version {
        self.version.unwrap_or(Version::V1)
    }

    /// Longest frame, Ethernet header included.
    pub(super) fn frame(&self) -> u32 {
        self.config.map_or(*FRAME_SIZES.start(), |config| config.frame)
    }

    /// Whether the guest can do this, in a version that knows of it.
    pub(super) fn can(&self, capability: Capabilities, since: Version) -> bool {
        let said = self.config.is_some_and(|config| config.capabilities.contains(capability));
        said && self.version >= Some(since)
    }

    /// Whether the guest takes part in SR-IOV.
    pub(super) fn wants_sriov(&self) -> bool {
        self.can(Capabilities::SRIOV, Version::V4)
    }

    /// Whether NDIS_CONFIG is missing. Version 1 has none.
    fn lacks_config(&self) -> bool {
        self.config.is_none() && self.version >= Some(Version::V2)
    }

    /// Whether the version agreed on has this message.
    fn knows(&self, message: MessageType) -> Result<(), NicServiceError> {
        let version = self.version.ok_or(NicServiceError::BeforeInit(message))?;
        let since = match message {
            MessageType::SEND_NDIS_CONFIG => Version::V2,
            MessageType::SWITCH_DATA_PATH => Version::V4,
            MessageType::SUB_CHANNEL | MessageType::OID_QUERY_EX => Version::V5,
            _ => Version::V1,
        };
        if version < since {
            return Err(NicServiceError::NotInVersion { message, version });
        }
        Ok(())
    }

    /// A start-up message that may come once, before RNDIS starts.
    fn once(
        &self,
        message: MessageType,
        done: bool,
        tolerate: bool,
    ) -> Result<(), NicServiceError> {
        if self.version.is_none() {
            Err(NicServiceError::BeforeInit(message))
        } else if done && !tolerate {
            Err(NicServiceError::Repeated(message))
        } else if self.ended && !tolerate {
            Err(NicServiceError::TooLate(message))
        } else {
            Ok(())
        }
    }

    /// The first RNDIS message ends start-up, which must be complete by then.
    fn end(&mut self) -> Result<(), NicServiceError> {
        let message = MessageType::SEND_RNDIS_PACKET;
        if self.version.is_none() {
            return Err(NicServiceError::BeforeInit(message));
        }
        let missing = if self.lacks_config() {
            MessageType::SEND_NDIS_CONFIG
        } else if !self.ndis_version {
            MessageType::SEND_NDIS_VERSION
        } else if self.receive.is_none() {
            MessageType::SEND_RECEIVE_BUFFER
        } else {
            self.ended = true;
            return Ok(());
        };
        Err(NicServiceError::TooEarly { message, missing })
    }
}

/// What a message of the guest comes with.
pub(super) struct Circumstances<'a, 'b> {
    pub ranges: Option<GpaRanges<'b>>,
    pub now: Instant,
    pub guest: GuestView<'a>,
}

impl NicService {
    /// Anything of the guest that is not a completion.
    pub(super) fn handle_message(
        &mut self,
        link: &mut Link,
        queue: &mut Queue,
        packet: &Packet<'_>,
        with: Circumstances<'_, '_>,
        port: &mut SwitchPort,
    ) -> Result<(), NicServiceError> {
        let id = packet.transaction_id;
        let kind = kind(packet.payload);
        if packet.payload.len() < self.config.policy.shortest_message {
            self.counters.unheard += 1;
            return Ok(());
        }
        let message = GuestMessage::decode(packet.payload)?;
        if with.ranges.is_some() && kind != MessageType::SEND_RNDIS_PACKET {
            return Err(NicServiceError::GpaDirect(kind));
        }
        if must_be_answered(kind) && !packet.completion_requested {
            return Err(NicServiceError::NoCompletionRequested(kind));
        }
        match message {
            GuestMessage::RndisPacket(source) => {
                if !link.setup.ended {
                    link.setup.end()?;
                }
                return match source.channel_type {
                    ChannelType::CONTROL if !queue.is_primary() => {
                        Err(NicServiceError::OnSubChannel { message: kind, queue: queue.number })
                    }
                    ChannelType::CONTROL => {
                        self.handle_control(link, queue, id, source.section, with, port)
                    }
                    ChannelType::DATA => self.handle_data(link, queue, id, source.section, with),
                    other => Err(NicServiceError::ChannelType(other)),
                };
            }
            _ if !queue.is_primary() => {
                return Err(NicServiceError::OnSubChannel { message: kind, queue: queue.number });
            }
            GuestMessage::Init { min, max } => {
                return self.handle_init(link, queue, id, min, max);
            }
            _ => link.setup.knows(kind)?,
        }
        match message {
            GuestMessage::ReceiveBuffer { gpadl, id: buffer } => {
                return self.handle_receive_buffer(link, queue, id, gpadl, buffer, with.guest);
            }
            GuestMessage::SendBuffer { gpadl, id: buffer } => {
                return self.handle_send_buffer(link, queue, id, gpadl, buffer, with.guest);
            }
            GuestMessage::SwitchDataPath(wanted) => {
                self.counters.switch_requests += 1;
                let path = wanted.path().ok_or(NicServiceError::DataPath(wanted))?;
                let transaction = packet.completion_requested.then_some(id);
                let policy = &mut self.config.policy;
                self.association.switch_requested(path, transaction, policy, with.now);
                return Ok(());
            }
            GuestMessage::OidQueryEx { .. } => {
                let status = rndis::Status::NOT_SUPPORTED.0;
                let answer = HostMessage::OidQueryExComplete { status, bytes: 0 };
                return queue.answer(&link.setup, id, answer);
            }
            GuestMessage::SubChannels { operation, count } => {
                return self.handle_sub_channels(link, queue, id, operation, count, with.now);
            }
            silent => self.handle_silent(link, kind, silent, port)?,
        }
        // Nothing to say, but whoever asks for a completion gets one.
        if packet.completion_requested {
            queue.outbox.complete(&mut queue.channel, id, &[])?;
        }
        Ok(())
    }

    /// Messages without an answer of their own.
    fn handle_silent(
        &mut self,
        link: &mut Link,
        kind: MessageType,
        message: GuestMessage,
        port: &mut SwitchPort,
    ) -> Result<(), NicServiceError> {
        match message {
            GuestMessage::NdisVersion { .. } => {
                link.setup.once(kind, link.setup.ndis_version, self.tolerates())?;
                link.setup.ndis_version = true;
            }
            GuestMessage::NdisConfig { mtu, capabilities } => {
                link.setup.once(kind, link.setup.config.is_some(), self.tolerates())?;
                let frame = if FRAME_SIZES.contains(&mtu) { mtu } else { *FRAME_SIZES.start() };
                link.setup.config = Some(NdisConfig { frame, capabilities });
            }
            GuestMessage::RevokeReceiveBuffer { id } => {
                let buffer = link.setup.receive.take();
                let buffer = buffer.ok_or(NicServiceError::NoBuffer(kind))?;
                self.counters.leaked += buffer.lent() as u64;
                port.set_side(Path::Synthetic, SideState::Down);
                same_buffer(kind, id, buffer.id)?;
            }
            GuestMessage::RevokeSendBuffer { id } => {
                let buffer = link.setup.send.take();
                let buffer = buffer.ok_or(NicServiceError::NoBuffer(kind))?;
                same_buffer(kind, id, buffer.id)?;
            }
            _ => return Err(DecodeError::Unexpected(kind).into()),
        }
        Ok(())
    }

    const fn tolerates(&self) -> bool {
        self.config.policy.tolerate_repeats
    }

    fn handle_init(
        &mut self,
        link: &mut Link,
        queue: &mut Queue,
        id: u64,
        min: Version,
        max: Version,
    ) -> Result<(), NicServiceError> {
        if link.setup.version.is_some() {
            return Err(NicServiceError::Repeated(MessageType::INIT));
        }
        let accepted = min == max && self.config.policy.versions.contains(&max);
        queue.answer(
            &link.setup,
            id,
            HostMessage::InitComplete {
                // Real hosts name no version but the first.
                version: if accepted && max == Version::V1 { max.0 } else { u32::MAX },
                max_mdl_chain: self.config.policy.mdl_chain,
                status: if accepted { Status::SUCCESS } else { self.config.policy.version_refusal },
            },
        )?;
        link.setup.version = accepted.then_some(max);
        Ok(())
    }

    fn handle_receive_buffer(
        &mut self,
        link: &mut Link,
        queue: &mut Queue,
        id: u64,
        gpadl: GpadlId,
        buffer: u16,
        guest: GuestView<'_>,
    ) -> Result<(), NicServiceError> {
        let message = MessageType::SEND_RECEIVE_BUFFER;
        link.setup.once(message, link.setup.receive.is_some(), self.tolerates())?;
        if link.setup.lacks_config() {
            let missing = MessageType::SEND_NDIS_CONFIG;
            return Err(NicServiceError::TooEarly { message, missing });
        }
        let pages = (guest.gpadl)(gpadl).ok_or(NicServiceError::UnknownGpadl { message, gpadl })?;
        let status = self.config.policy.receive_buffer_answer;
        if status != Status::SUCCESS {
            let refusal = HostMessage::ReceiveBufferComplete { status, sections: 0, first: None };
            return queue.answer(&link.setup, id, refusal);
        }
        let size = pages.size();
        let frame = link.setup.frame() as usize;
        let Some(receive) = ReceiveBuffer::new(pages, buffer, frame) else {
            let needed = (CONTROL_PIECES as usize + 1) * ReceiveBuffer::piece_size_for(frame);
            return Err(NicServiceError::ReceiveBufferTooSmall { size, needed });
        };
        let (piece, count) = (receive.piece_size as u32, receive.pieces());
        let first = ReceiveSection {
            offset: 0,
            sub_alloc_size: piece,
            num_sub_allocs: count,
            end_offset: piece.saturating_mul(count),
        };
        link.setup.receive = Some(receive);
        queue.answer(
            &link.setup,
            id,
            HostMessage::ReceiveBufferComplete {
                status: Status::SUCCESS,
                sections: 1,
                first: Some(first),
            },
        )
    }

    fn handle_send_buffer(
        &mut self,
        link: &mut Link,
        queue: &mut Queue,
        id: u64,
        gpadl: GpadlId,
        buffer: u16,
        guest: GuestView<'_>,
    ) -> Result<(), NicServiceError> {
        let message = MessageType::SEND_SEND_BUFFER;
        link.setup.once(message, link.setup.send.is_some(), self.tolerates())?;
        let pages = (guest.gpadl)(gpadl).ok_or(NicServiceError::UnknownGpadl { message, gpadl })?;
        let status = self.config.policy.send_buffer_answer;
        if status != Status::SUCCESS {
            return queue.answer(
                &link.setup,
                id,
                HostMessage::SendBufferComplete { status, section_size: 0 },
            );
        }
        let (size, needed) = (pages.size(), SECTION_SIZE as usize);
        let sections = u32::try_from(size / needed).unwrap_or(u32::MAX);
        if sections == 0 {
            return Err(NicServiceError::SendBufferTooSmall { size, needed });
        }
        link.setup.send = Some(SendBuffer { pages, id: buffer, sections });
        let (status, section_size) = (Status::SUCCESS, SECTION_SIZE);
        queue.answer(&link.setup, id, HostMessage::SendBufferComplete { status, section_size })
    }
}

/// Messages that are useless without an answer.
fn must_be_answered(message: MessageType) -> bool {
    matches!(
        message,
        MessageType::INIT
            | MessageType::SEND_RECEIVE_BUFFER
            | MessageType::SEND_SEND_BUFFER
            | MessageType::SEND_RNDIS_PACKET
            | MessageType::SUB_CHANNEL
    )
}

/// A buffer is taken back under the number it was given with.
fn same_buffer(message: MessageType, found: u16, expected: u16) -> Result<(), NicServiceError> {
    if found == expected {
        Ok(())
    } else {
        Err(NicServiceError::WrongBuffer { message, found, expected })
    }
}

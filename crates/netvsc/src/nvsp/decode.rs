//! Bytes to messages, checked.

use vmbus::{GpadlId, Serial};
use zerocopy::FromBytes;

use super::structs::{self, Section};
use super::{
    Capabilities, ChannelType, DataPath, GuestMessage, HostMessage, MessageType, NO_SECTION,
    ReceiveSection, RndisPacket, SectionUse, Status, SubChannelOperation, TABLE_ENTRIES, Version,
};

/// A message that cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// Not even a message type.
    #[error("NVSP message of {0} bytes: expected at least the 4 of its type")]
    NoType(usize),
    /// A message type that this side never gets: unknown, or one that it sends itself.
    #[error("NVSP message {0:?}: expected one that this side receives")]
    Unexpected(MessageType),
    /// The fields of the type do not fit.
    #[error("NVSP {kind:?} of {found} bytes: expected at least {expected}")]
    TooShort {
        /// Type of the message.
        kind: MessageType,
        /// Bytes needed for the fields that are used.
        expected: usize,
        /// Bytes there.
        found: usize,
    },
    /// A VF association that is neither made nor withdrawn.
    #[error("VF association with allocated = {0}: expected 0 or 1")]
    Allocated(u32),
    /// An indirection table of another size.
    #[error("indirection table of {0} entries: expected {TABLE_ENTRIES}")]
    TableCount(u32),
    /// An indirection table that does not lie inside its message.
    #[error(
        "indirection table at offset {offset} of a message of {len} bytes: expected {size} bytes of entries inside, \
         behind the 12 of the header",
        size = 4 * TABLE_ENTRIES
    )]
    TableOffset {
        /// Offset from the message.
        offset: u32,
        /// Length of the message in bytes.
        len: usize,
    },
}

/// The type of the message.
fn kind(payload: &[u8]) -> Result<MessageType, DecodeError> {
    match payload.first_chunk() {
        Some(kind) => Ok(MessageType(u32::from_le_bytes(*kind))),
        None => Err(DecodeError::NoType(payload.len())),
    }
}

/// The fields at the start of the message.
fn fields<T: FromBytes>(payload: &[u8], kind: MessageType) -> Result<(T, &[u8]), DecodeError> {
    T::read_from_prefix(payload).map_err(|_| DecodeError::TooShort {
        kind,
        expected: size_of::<T>(),
        found: payload.len(),
    })
}

fn rndis(payload: &[u8], kind: MessageType) -> Result<RndisPacket, DecodeError> {
    let (message, _) = fields::<structs::RndisPacket>(payload, kind)?;
    let index = message.section_index.get();
    Ok(RndisPacket {
        channel_type: ChannelType(message.channel_type.get()),
        section: (index != NO_SECTION)
            .then(|| SectionUse { index, bytes: message.section_size.get() }),
    })
}

fn rndis_status(payload: &[u8], kind: MessageType) -> Result<Status, DecodeError> {
    Ok(Status(fields::<structs::RndisPacketComplete>(payload, kind)?.0.status.get()))
}

fn switch(payload: &[u8], kind: MessageType) -> Result<DataPath, DecodeError> {
    Ok(DataPath(fields::<structs::SwitchDataPath>(payload, kind)?.0.active.get()))
}

impl GuestMessage {
    /// Takes a message from a guest apart. Longer messages are accepted, shorter ones as long as the fields are there.
    ///
    /// # Errors
    /// Each way in which the bytes make no sense is a [`DecodeError`].
    pub fn decode(payload: &[u8]) -> Result<Self, DecodeError> {
        let kind = kind(payload)?;
        Ok(match kind {
            MessageType::INIT => {
                let (message, _) = fields::<structs::Init>(payload, kind)?;
                Self::Init {
                    min: Version(message.min_version.get()),
                    max: Version(message.max_version.get()),
                }
            }
            MessageType::SEND_NDIS_VERSION => {
                let (message, _) = fields::<structs::NdisVersion>(payload, kind)?;
                Self::NdisVersion { major: message.major.get(), minor: message.minor.get() }
            }
            MessageType::SEND_NDIS_CONFIG => {
                let (message, _) = fields::<structs::NdisConfig>(payload, kind)?;
                Self::NdisConfig {
                    mtu: message.mtu.get(),
                    capabilities: Capabilities::from_bits_retain(message.capabilities.get()),
                }
            }
            MessageType::SEND_RECEIVE_BUFFER => {
                let (message, _) = fields::<structs::Buffer>(payload, kind)?;
                Self::ReceiveBuffer { gpadl: GpadlId(message.gpadl.get()), id: message.id.get() }
            }
            MessageType::SEND_SEND_BUFFER => {
                let (message, _) = fields::<structs::Buffer>(payload, kind)?;
                Self::SendBuffer { gpadl: GpadlId(message.gpadl.get()), id: message.id.get() }
            }
            MessageType::REVOKE_RECEIVE_BUFFER => Self::RevokeReceiveBuffer {
                id: fields::<structs::Revoke>(payload, kind)?.0.id.get(),
            },
            MessageType::REVOKE_SEND_BUFFER => {
                Self::RevokeSendBuffer { id: fields::<structs::Revoke>(payload, kind)?.0.id.get() }
            }
            MessageType::SEND_RNDIS_PACKET => Self::RndisPacket(rndis(payload, kind)?),
            MessageType::SEND_RNDIS_PACKET_COMPLETE => {
                Self::RndisPacketComplete { status: rndis_status(payload, kind)? }
            }
            MessageType::SWITCH_DATA_PATH => Self::SwitchDataPath(switch(payload, kind)?),
            MessageType::OID_QUERY_EX => {
                let (message, _) = fields::<structs::OidQueryEx>(payload, kind)?;
                Self::OidQueryEx { header: message.header.get(), oid: message.oid.get() }
            }
            MessageType::SUB_CHANNEL => {
                let (message, _) = fields::<structs::SubChannel>(payload, kind)?;
                Self::SubChannels {
                    operation: SubChannelOperation(message.operation.get()),
                    count: message.count.get(),
                }
            }
            other => return Err(DecodeError::Unexpected(other)),
        })
    }
}

impl HostMessage {
    /// Takes a message from a host apart. Longer messages are accepted, shorter ones as long as the fields are there.
    ///
    /// `version` is the version in use: up to 6.0 the table offset of SEND_INDIRECTION_TABLE may be wrong.
    ///
    /// # Errors
    /// Each way in which the bytes make no sense is a [`DecodeError`].
    pub fn decode(payload: &[u8], version: Version) -> Result<Self, DecodeError> {
        let kind = kind(payload)?;
        Ok(match kind {
            MessageType::INIT_COMPLETE => {
                let (message, _) = fields::<structs::InitComplete>(payload, kind)?;
                Self::InitComplete {
                    version: message.version.get(),
                    max_mdl_chain: message.max_mdl_chain.get(),
                    status: Status(message.status.get()),
                }
            }
            MessageType::RECEIVE_BUFFER_COMPLETE => receive_buffer_complete(payload)?,
            MessageType::SEND_BUFFER_COMPLETE => {
                let (message, _) = fields::<structs::SendBufferComplete>(payload, kind)?;
                Self::SendBufferComplete {
                    status: Status(message.status.get()),
                    section_size: message.section_size.get(),
                }
            }
            MessageType::SEND_RNDIS_PACKET => Self::RndisPacket(rndis(payload, kind)?),
            MessageType::SEND_RNDIS_PACKET_COMPLETE => {
                Self::RndisPacketComplete { status: rndis_status(payload, kind)? }
            }
            MessageType::SEND_VF_ASSOCIATION => {
                let (message, _) = fields::<structs::VfAssociation>(payload, kind)?;
                let allocated = match message.allocated.get() {
                    0 => false,
                    1 => true,
                    other => return Err(DecodeError::Allocated(other)),
                };
                Self::VfAssociation { allocated, serial: Serial(message.serial.get()) }
            }
            MessageType::SWITCH_DATA_PATH => Self::SwitchDataPath(switch(payload, kind)?),
            MessageType::OID_QUERY_EX_COMPLETE => {
                let (message, _) = fields::<structs::OidQueryExComplete>(payload, kind)?;
                let (status, bytes) = (message.status.get(), message.bytes.get());
                Self::OidQueryExComplete { status, bytes }
            }
            MessageType::SUB_CHANNEL => {
                let (message, _) = fields::<structs::SubChannel>(payload, kind)?;
                Self::SubChannels {
                    status: Status(message.operation.get()),
                    count: message.count.get(),
                }
            }
            MessageType::SEND_INDIRECTION_TABLE => indirection_table(payload, version)?,
            other => return Err(DecodeError::Unexpected(other)),
        })
    }
}

fn receive_buffer_complete(payload: &[u8]) -> Result<HostMessage, DecodeError> {
    let kind = MessageType::RECEIVE_BUFFER_COMPLETE;
    let (message, rest) = fields::<structs::ReceiveBufferComplete>(payload, kind)?;
    let (status, sections) = (Status(message.status.get()), message.num_sections.get());
    if status != Status::SUCCESS || sections == 0 {
        return Ok(HostMessage::ReceiveBufferComplete { status, sections, first: None });
    }
    let (first, _) = Section::read_from_prefix(rest).map_err(|_| DecodeError::TooShort {
        kind,
        expected: size_of::<structs::ReceiveBufferComplete>() + size_of::<Section>(),
        found: payload.len(),
    })?;
    let first = ReceiveSection {
        offset: first.offset.get(),
        sub_alloc_size: first.sub_alloc_size.get(),
        num_sub_allocs: first.num_sub_allocs.get(),
        end_offset: first.end_offset.get(),
    };
    Ok(HostMessage::ReceiveBufferComplete { status, sections, first: Some(first) })
}

fn indirection_table(payload: &[u8], version: Version) -> Result<HostMessage, DecodeError> {
    const HEADER: usize = size_of::<structs::IndirectionTable>();
    let (message, _) =
        fields::<structs::IndirectionTable>(payload, MessageType::SEND_INDIRECTION_TABLE)?;
    let (count, mut offset) = (message.count.get(), message.offset.get());
    if usize::try_from(count) != Ok(TABLE_ENTRIES) {
        return Err(DecodeError::TableCount(count));
    }
    // Windows Server 2016 puts the table behind a message of full size and names another offset; Linux looks at the
    // length too.
    let full = Version::V6_1.message_size();
    if version <= Version::V6 && payload.len() >= full + 4 * TABLE_ENTRIES {
        offset = full as u32;
    }
    let entries = usize::try_from(offset)
        .ok()
        .filter(|offset| *offset >= HEADER)
        .and_then(|offset| payload.get(offset..))
        .and_then(|rest| rest.get(..4 * TABLE_ENTRIES))
        .ok_or(DecodeError::TableOffset { offset, len: payload.len() })?;
    let mut table = [0; TABLE_ENTRIES];
    for (entry, bytes) in table.iter_mut().zip(entries.as_chunks().0) {
        *entry = u32::from_le_bytes(*bytes);
    }
    Ok(HostMessage::IndirectionTable(table))
}

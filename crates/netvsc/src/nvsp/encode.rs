//! Messages to bytes.

use core::fmt;
use core::ops::Deref;

use zerocopy::{Immutable, IntoBytes};

use super::structs::{self, Section};
use super::{
    ChannelType, GuestMessage, HostMessage, MessageType, NO_SECTION, RndisPacket, SectionUse,
    Status, TABLE_ENTRIES, Version,
};

/// Bytes of the longest message: the indirection table.
const LONGEST: usize = size_of::<structs::IndirectionTable>() + 4 * TABLE_ENTRIES;

/// The bytes of a message.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Encoded {
    bytes: [u8; LONGEST],
    len: usize,
}

impl Encoded {
    /// `message`, padded with zeros to `size`.
    fn new(message: &(impl IntoBytes + Immutable), size: usize) -> Self {
        let mut encoded = Self { bytes: [0; LONGEST], len: 0 };
        encoded.append(message);
        encoded.len = encoded.len.max(size);
        encoded
    }

    /// Appends `part`; every message fits by the size of the array.
    fn append(&mut self, part: &(impl IntoBytes + Immutable)) {
        let part = part.as_bytes();
        if let Some(room) = self.bytes.get_mut(self.len..self.len + part.len()) {
            room.copy_from_slice(part);
            self.len += part.len();
        }
    }
}

impl Deref for Encoded {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.bytes.get(..self.len).unwrap_or_default()
    }
}

impl fmt::Debug for Encoded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&**self, f)
    }
}

/// The 8 bytes by which either side tells the other that an RNDIS message is dealt with. Guests send no more than these.
#[must_use]
#[inline]
pub fn rndis_complete(status: Status) -> [u8; 8] {
    zerocopy::transmute!(structs::RndisPacketComplete {
        kind: MessageType::SEND_RNDIS_PACKET_COMPLETE.0.into(),
        status: status.0.into(),
    })
}

/// A SEND_RNDIS_PACKET; the first `version.message_size()` bytes are the message.
#[must_use]
#[inline]
pub fn rndis_packet(channel_type: ChannelType, section: Option<SectionUse>) -> [u8; 40] {
    let (index, bytes) = section.map_or((NO_SECTION, 0), |used| (used.index, used.bytes));
    let mut message = [0; 40];
    let (head, _) = message.split_at_mut(size_of::<structs::RndisPacket>());
    head.copy_from_slice(
        structs::RndisPacket {
            kind: MessageType::SEND_RNDIS_PACKET.0.into(),
            channel_type: channel_type.0.into(),
            section_index: index.into(),
            section_size: bytes.into(),
        }
        .as_bytes(),
    );
    message
}

fn encode_rndis(packet: RndisPacket, size: usize) -> Encoded {
    let bytes = rndis_packet(packet.channel_type, packet.section);
    let mut encoded = Encoded::new(&bytes, 0);
    encoded.len = size;
    encoded
}

fn encode_buffer(kind: MessageType, gpadl: u32, id: u16, size: usize) -> Encoded {
    let message = structs::Buffer { kind: kind.0.into(), gpadl: gpadl.into(), id: id.into() };
    Encoded::new(&message, size)
}

fn encode_revoke(kind: MessageType, id: u16, size: usize) -> Encoded {
    Encoded::new(&structs::Revoke { kind: kind.0.into(), id: id.into() }, size)
}

fn encode_switch(active: u32, size: usize) -> Encoded {
    let kind = MessageType::SWITCH_DATA_PATH.0.into();
    Encoded::new(&structs::SwitchDataPath { kind, active: active.into() }, size)
}

fn encode_sub_channel(operation: u32, count: u32, size: usize) -> Encoded {
    let kind = MessageType::SUB_CHANNEL.0.into();
    Encoded::new(
        &structs::SubChannel { kind, operation: operation.into(), count: count.into() },
        size,
    )
}

impl GuestMessage {
    /// The bytes of the message in the size of `version`; for INIT, the version that it asks for.
    ///
    /// SEND_RNDIS_PACKET_COMPLETE is 8 bytes in every version.
    #[must_use]
    pub fn encode(&self, version: Version) -> Encoded {
        let size = version.message_size();
        match *self {
            Self::Init { min, max } => Encoded::new(
                &structs::Init {
                    kind: MessageType::INIT.0.into(),
                    min_version: min.0.into(),
                    max_version: max.0.into(),
                },
                size,
            ),
            Self::NdisVersion { major, minor } => Encoded::new(
                &structs::NdisVersion {
                    kind: MessageType::SEND_NDIS_VERSION.0.into(),
                    major: major.into(),
                    minor: minor.into(),
                },
                size,
            ),
            Self::NdisConfig { mtu, capabilities } => Encoded::new(
                &structs::NdisConfig {
                    kind: MessageType::SEND_NDIS_CONFIG.0.into(),
                    mtu: mtu.into(),
                    reserved: 0.into(),
                    capabilities: capabilities.bits().into(),
                },
                size,
            ),
            Self::ReceiveBuffer { gpadl, id } => {
                encode_buffer(MessageType::SEND_RECEIVE_BUFFER, gpadl.0, id, size)
            }
            Self::RevokeReceiveBuffer { id } => {
                encode_revoke(MessageType::REVOKE_RECEIVE_BUFFER, id, size)
            }
            Self::SendBuffer { gpadl, id } => {
                encode_buffer(MessageType::SEND_SEND_BUFFER, gpadl.0, id, size)
            }
            Self::RevokeSendBuffer { id } => {
                encode_revoke(MessageType::REVOKE_SEND_BUFFER, id, size)
            }
            Self::RndisPacket(packet) => encode_rndis(packet, size),
            Self::RndisPacketComplete { status } => Encoded::new(&rndis_complete(status), 0),
            Self::SwitchDataPath(path) => encode_switch(path.0, size),
            Self::OidQueryEx { header, oid } => {
                let kind = MessageType::OID_QUERY_EX.0.into();
                let message = structs::OidQueryEx { kind, header: header.into(), oid: oid.into() };
                Encoded::new(&message, size)
            }
            Self::SubChannels { operation, count } => encode_sub_channel(operation.0, count, size),
        }
    }
}

impl HostMessage {
    /// The bytes of the message in the size of `version`.
    ///
    /// The answer to the first INIT is in the size of the versions before 6.1, whatever was asked for.
    #[must_use]
    pub fn encode(&self, version: Version) -> Encoded {
        let size = version.message_size();
        match *self {
            Self::InitComplete { version, max_mdl_chain, status } => Encoded::new(
                &structs::InitComplete {
                    kind: MessageType::INIT_COMPLETE.0.into(),
                    version: version.into(),
                    max_mdl_chain: max_mdl_chain.into(),
                    status: status.0.into(),
                },
                size,
            ),
            Self::ReceiveBufferComplete { status, sections, first } => {
                let mut encoded = Encoded::new(
                    &structs::ReceiveBufferComplete {
                        kind: MessageType::RECEIVE_BUFFER_COMPLETE.0.into(),
                        status: status.0.into(),
                        num_sections: sections.into(),
                    },
                    0,
                );
                if let Some(first) = first {
                    encoded.append(&Section {
                        offset: first.offset.into(),
                        sub_alloc_size: first.sub_alloc_size.into(),
                        num_sub_allocs: first.num_sub_allocs.into(),
                        end_offset: first.end_offset.into(),
                    });
                }
                encoded.len = encoded.len.max(size);
                encoded
            }
            Self::SendBufferComplete { status, section_size } => Encoded::new(
                &structs::SendBufferComplete {
                    kind: MessageType::SEND_BUFFER_COMPLETE.0.into(),
                    status: status.0.into(),
                    section_size: section_size.into(),
                },
                size,
            ),
            Self::RndisPacket(packet) => encode_rndis(packet, size),
            Self::RndisPacketComplete { status } => Encoded::new(&rndis_complete(status), size),
            Self::VfAssociation { allocated, serial } => Encoded::new(
                &structs::VfAssociation {
                    kind: MessageType::SEND_VF_ASSOCIATION.0.into(),
                    allocated: u32::from(allocated).into(),
                    serial: serial.0.into(),
                },
                size,
            ),
            Self::SwitchDataPath(path) => encode_switch(path.0, size),
            Self::OidQueryExComplete { status, bytes } => {
                let kind = MessageType::OID_QUERY_EX_COMPLETE.0.into();
                let (status, bytes) = (status.into(), bytes.into());
                Encoded::new(&structs::OidQueryExComplete { kind, status, bytes }, size)
            }
            Self::SubChannels { status, count } => encode_sub_channel(status.0, count, size),
            Self::IndirectionTable(table) => {
                let mut encoded = Encoded::new(
                    &structs::IndirectionTable {
                        kind: MessageType::SEND_INDIRECTION_TABLE.0.into(),
                        count: (TABLE_ENTRIES as u32).into(),
                        offset: (size_of::<structs::IndirectionTable>() as u32).into(),
                    },
                    0,
                );
                encoded.append(&table.map(zerocopy::little_endian::U32::new));
                encoded
            }
        }
    }
}

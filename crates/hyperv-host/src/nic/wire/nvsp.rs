//! NVSP (PROTOCOL §7.2).

use thiserror::Error;
use vmbus::{GpadlId, open_enum};

open_enum! {
    /// NVSP message types that a host meets.
    pub struct MessageType(u32) {
        /// Version negotiation.
        INIT = 1,
        /// Its answer.
        INIT_COMPLETE = 2,
        /// NDIS version of the guest.
        SEND_NDIS_VERSION = 100,
        /// Receive buffer.
        SEND_RECEIVE_BUFFER = 101,
        /// Its answer.
        SEND_RECEIVE_BUFFER_COMPLETE = 102,
        /// The receive buffer's way back.
        REVOKE_RECEIVE_BUFFER = 103,
        /// Send buffer.
        SEND_SEND_BUFFER = 104,
        /// Its answer.
        SEND_SEND_BUFFER_COMPLETE = 105,
        /// The send buffer's way back.
        REVOKE_SEND_BUFFER = 106,
        /// RNDIS messages, either way.
        SEND_RNDIS_PACKET = 107,
        /// Their completion.
        SEND_RNDIS_PACKET_COMPLETE = 108,
        /// MTU and capabilities of the guest.
        SEND_NDIS_CONFIG = 125,
        /// Association with a VF.
        SEND_VF_ASSOCIATION = 128,
        /// Change of the data path.
        SWITCH_DATA_PATH = 129,
        /// An OID query outside RNDIS.
        OID_QUERY_EX = 131,
        /// Its answer.
        OID_QUERY_EX_COMPLETE = 132,
        /// Request for sub-channels, and its answer.
        SUB_CHANNEL = 133,
    }
}

/// NVSP version.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct NvspVersion(pub u32);

impl NvspVersion {
    /// 5.0.
    pub const V5: Self = Self(0x50000);
    /// 6.1.
    pub const V6_1: Self = Self(0x60001);
}

open_enum! {
    /// Status in NVSP answers.
    pub struct Status(u32) {
        /// Done.
        SUCCESS = 1,
        /// Not done.
        FAILURE = 2,
    }
}

/// A message that is too short for its fields, or of no known type.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum NvspError {
    /// Fewer bytes than the fields take.
    #[error("{message} of {len} bytes, at least {needed} are needed")]
    Short {
        /// What it is.
        message: MessageType,
        /// Bytes that came.
        len: usize,
        /// Bytes needed.
        needed: usize,
    },
    /// Not a message that a guest sends.
    #[error("{0} is not a message that a guest may send")]
    Unexpected(MessageType),
    /// A value outside its range.
    #[error("{message}: {field} is {value}, expected 0 or 1")]
    NotBoolean {
        /// What it is.
        message: MessageType,
        /// Which field.
        field: &'static str,
        /// What came.
        value: u32,
    },
}

/// Where the bytes of an RNDIS message are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::nic) struct RndisSource {
    pub control: bool,
    /// Send section and number of bytes in it.
    pub section: Option<(u32, u32)>,
}

/// An NVSP message of a guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::nic) enum GuestMessage {
    Init { minimum: NvspVersion, maximum: NvspVersion },
    NdisVersion,
    NdisConfig { mtu: u32, sriov: bool },
    ReceiveBuffer { gpadl: GpadlId, id: u16 },
    RevokeReceiveBuffer { id: u16 },
    SendBuffer { gpadl: GpadlId, id: u16 },
    RevokeSendBuffer { id: u16 },
    Rndis(RndisSource),
    SwitchDataPath { vf: bool },
    SubChannels,
    OidQuery,
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..).and_then(|b| b.first_chunk()).map_or(0, |b| u32::from_le_bytes(*b))
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    bytes.get(at..).and_then(|b| b.first_chunk()).map_or(0, |b| u16::from_le_bytes(*b))
}

/// The type of a message; 0 for none.
pub(in crate::nic) fn message_type(bytes: &[u8]) -> MessageType {
    MessageType(u32_at(bytes, 0))
}

/// Reads a message of a guest.
pub(in crate::nic) fn parse(bytes: &[u8]) -> Result<GuestMessage, NvspError> {
    let message = message_type(bytes);
    let needed = match message {
        MessageType::INIT | MessageType::SEND_NDIS_VERSION => 12,
        MessageType::SEND_RECEIVE_BUFFER | MessageType::SEND_SEND_BUFFER => 10,
        MessageType::REVOKE_RECEIVE_BUFFER | MessageType::REVOKE_SEND_BUFFER => 6,
        MessageType::SEND_RNDIS_PACKET => 16,
        MessageType::SEND_NDIS_CONFIG => 20,
        MessageType::SWITCH_DATA_PATH => 8,
        MessageType::SUB_CHANNEL | MessageType::OID_QUERY_EX => 12,
        other => return Err(NvspError::Unexpected(other)),
    };
    if bytes.len() < needed {
        return Err(NvspError::Short { message, len: bytes.len(), needed });
    }
    let (first, second) = (u32_at(bytes, 4), u32_at(bytes, 8));
    let boolean = |field, value| match value {
        0 => Ok(false),
        1 => Ok(true),
        value => Err(NvspError::NotBoolean { message, field, value }),
    };
    Ok(match message {
        MessageType::INIT => {
            GuestMessage::Init { minimum: NvspVersion(first), maximum: NvspVersion(second) }
        }
        MessageType::SEND_NDIS_VERSION => GuestMessage::NdisVersion,
        MessageType::SEND_NDIS_CONFIG => {
            GuestMessage::NdisConfig { mtu: first, sriov: u32_at(bytes, 12) & 4 != 0 }
        }
        MessageType::SEND_RECEIVE_BUFFER => {
            GuestMessage::ReceiveBuffer { gpadl: GpadlId(first), id: u16_at(bytes, 8) }
        }
        MessageType::REVOKE_RECEIVE_BUFFER => {
            GuestMessage::RevokeReceiveBuffer { id: u16_at(bytes, 4) }
        }
        MessageType::SEND_SEND_BUFFER => {
            GuestMessage::SendBuffer { gpadl: GpadlId(first), id: u16_at(bytes, 8) }
        }
        MessageType::REVOKE_SEND_BUFFER => GuestMessage::RevokeSendBuffer { id: u16_at(bytes, 4) },
        MessageType::SEND_RNDIS_PACKET => GuestMessage::Rndis(RndisSource {
            control: boolean("channel type", first)?,
            section: (second != NO_SECTION).then(|| (second, u32_at(bytes, 12))),
        }),
        MessageType::SWITCH_DATA_PATH => {
            GuestMessage::SwitchDataPath { vf: boolean("active path", first)? }
        }
        MessageType::SUB_CHANNEL => GuestMessage::SubChannels,
        _ => GuestMessage::OidQuery,
    })
}

/// Section index for "not in the send buffer".
pub(in crate::nic) const NO_SECTION: u32 = u32::MAX;
/// RNDIS status "not supported", in answer to an OID query outside RNDIS.
const STATUS_NOT_SUPPORTED: u32 = 0xc000_00bb;
/// Longest chain of memory descriptors, as real hosts report it in INIT_COMPLETE.
const MDL_CHAIN: u32 = 34;

/// A message of the host, at most 40 bytes long.
#[derive(Clone, Copy, Debug)]
pub(in crate::nic) struct HostMessage {
    bytes: [u8; 40],
    len: usize,
}

impl HostMessage {
    /// `words` behind the message type, padded to `len` bytes.
    fn new(message: MessageType, words: &[u32], len: usize) -> Self {
        let mut bytes = [0; 40];
        let all = std::iter::once(&message.0).chain(words);
        for (field, value) in bytes.chunks_exact_mut(4).zip(all) {
            field.copy_from_slice(&value.to_le_bytes());
        }
        Self { bytes, len: len.min(40) }
    }

    pub(in crate::nic) fn as_bytes(&self) -> &[u8] {
        self.bytes.get(..self.len).unwrap_or_default()
    }
}

/// Message size of a version: 28 bytes up to 6.0, 40 from 6.1 on.
pub(in crate::nic) const fn message_size(version: Option<NvspVersion>) -> usize {
    match version {
        Some(NvspVersion(version)) if version >= NvspVersion::V6_1.0 => 40,
        _ => 28,
    }
}

/// INIT_COMPLETE, always in the short form: the size changes only behind it.
pub(in crate::nic) fn init_complete(accepted: bool) -> HostMessage {
    // Hosts refuse with status 0, and name no version either way.
    let status = if accepted { Status::SUCCESS.0 } else { 0 };
    HostMessage::new(MessageType::INIT_COMPLETE, &[u32::MAX, MDL_CHAIN, status], 28)
}

pub(in crate::nic) fn receive_buffer_complete(piece: u32, count: u32, size: usize) -> HostMessage {
    let end = piece.saturating_mul(count);
    let words = [Status::SUCCESS.0, 1, 0, piece, count, end];
    HostMessage::new(MessageType::SEND_RECEIVE_BUFFER_COMPLETE, &words, size)
}

pub(in crate::nic) fn send_buffer_complete(section: u32, size: usize) -> HostMessage {
    let words = [Status::SUCCESS.0, section];
    HostMessage::new(MessageType::SEND_SEND_BUFFER_COMPLETE, &words, size)
}

/// SEND_RNDIS_PACKET for a transfer-page packet.
pub(in crate::nic) fn rndis_packet(control: bool, size: usize) -> HostMessage {
    let words = [u32::from(control), NO_SECTION, 0];
    HostMessage::new(MessageType::SEND_RNDIS_PACKET, &words, size)
}

pub(in crate::nic) fn rndis_packet_complete(status: Status, size: usize) -> HostMessage {
    HostMessage::new(MessageType::SEND_RNDIS_PACKET_COMPLETE, &[status.0], size)
}

pub(in crate::nic) fn vf_association(allocated: bool, serial: u32, size: usize) -> HostMessage {
    let words = [u32::from(allocated), serial];
    HostMessage::new(MessageType::SEND_VF_ASSOCIATION, &words, size)
}

pub(in crate::nic) fn switch_data_path(vf: bool, size: usize) -> HostMessage {
    HostMessage::new(MessageType::SWITCH_DATA_PATH, &[u32::from(vf)], size)
}

pub(in crate::nic) fn sub_channels_refused(size: usize) -> HostMessage {
    HostMessage::new(MessageType::SUB_CHANNEL, &[Status::FAILURE.0, 0], size)
}

pub(in crate::nic) fn oid_query_refused(size: usize) -> HostMessage {
    HostMessage::new(MessageType::OID_QUERY_EX_COMPLETE, &[STATUS_NOT_SUPPORTED, 0], size)
}

/// Status in a guest's completion of received frames. Linux sends 8 bytes for it.
pub(in crate::nic) fn completion_status(bytes: &[u8]) -> Result<Status, MessageType> {
    match message_type(bytes) {
        MessageType::SEND_RNDIS_PACKET_COMPLETE if bytes.len() >= 8 => Ok(Status(u32_at(bytes, 4))),
        other => Err(other),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_worked_bytes_of_init_are_read() {
        let mut bytes = vec![1, 0, 0, 0, 1, 0, 6, 0, 1, 0, 6, 0];
        bytes.resize(40, 0);
        let version = NvspVersion::V6_1;
        assert_eq!(parse(&bytes), Ok(GuestMessage::Init { minimum: version, maximum: version }));
    }

    #[test]
    fn the_worked_bytes_of_an_association_are_written() {
        let message = vf_association(true, 7, 40);
        let mut expected = vec![0x80, 0, 0, 0, 1, 0, 0, 0, 7, 0, 0, 0];
        expected.resize(40, 0);
        assert_eq!(message.as_bytes(), expected);
    }

    #[test]
    fn short_unknown_and_out_of_range_messages_are_refused() {
        for message in [1u32, 100, 101, 103, 104, 106, 107, 125, 129, 131, 133] {
            assert!(matches!(parse(&message.to_le_bytes()), Err(NvspError::Short { .. })));
        }
        for message in [0u32, 2, 102, 105, 108, 109, 124, 128, 130, 134, u32::MAX] {
            let bytes: Vec<u8> = message.to_le_bytes().into_iter().chain([0; 40]).collect();
            assert_eq!(parse(&bytes), Err(NvspError::Unexpected(MessageType(message))));
        }
        let bytes: Vec<u8> = [129u32, 2].iter().flat_map(|word| word.to_le_bytes()).collect();
        assert!(matches!(parse(&bytes), Err(NvspError::NotBoolean { value: 2, .. })));
        assert!(parse(&[]).is_err());
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_make_the_reader_panic(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..60)) {
            let _ = parse(&bytes);
            let _ = completion_status(&bytes);
        }
    }
}

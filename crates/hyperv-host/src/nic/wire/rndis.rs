//! RNDIS (PROTOCOL §9). Offsets inside a message count from its byte 8.

use thiserror::Error;

use crate::nic::offload::{ChecksumRequest, LargeSend};

const PACKET: u32 = 1;
const INITIALIZE: u32 = 2;
const HALT: u32 = 3;
const QUERY: u32 = 4;
const SET: u32 = 5;
const INDICATE_STATUS: u32 = 7;
const KEEPALIVE: u32 = 8;
/// Added to the type of a request in its answer.
const ANSWER: u32 = 0x8000_0000;

/// Where offsets count from.
const BASE: usize = 8;
/// Bytes of a PACKET header.
const PACKET_HEADER: usize = 44;
/// Bytes in front of the data of per-packet information.
const INFO_HEADER: usize = 12;

const INFO_CHECKSUM: u32 = 0;
const INFO_LARGE_SEND: u32 = 2;
const INFO_VLAN: u32 = 6;

/// Status values.
pub(in crate::nic) mod status {
    pub const SUCCESS: u32 = 0;
    pub const NOT_SUPPORTED: u32 = 0xc000_00bb;
    pub const INVALID_DATA: u32 = 0xc001_0015;
    pub const BAD_VERSION: u32 = 0xc001_0004;
    pub const CONNECT: u32 = 0x4001_000b;
    pub const DISCONNECT: u32 = 0x4001_000c;
    pub const OFFLOAD_CONFIG: u32 = 0x4002_0006;
}

/// An RNDIS message that cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum RndisError {
    /// Fewer bytes than the header takes, or than it says.
    #[error("RNDIS message {kind:#x} of {len} bytes, {needed} are needed")]
    Short {
        /// Type of the message.
        kind: u32,
        /// Bytes that came.
        len: usize,
        /// Bytes needed.
        needed: usize,
    },
    /// An offset or length that leads outside the message.
    #[error(
        "{field} at {offset} of {len} bytes does not lie within the message of {message} bytes"
    )]
    Outside {
        /// What it is.
        field: &'static str,
        /// Where it starts, from the start of the message.
        offset: usize,
        /// Its length.
        len: usize,
        /// Length of the message.
        message: usize,
    },
    /// Something else than PACKET among data.
    #[error("RNDIS message {0:#x} among data; only PACKET may come there")]
    NotPacket(u32),
    /// A field that must be zero.
    #[error("{field} is {value}, expected 0")]
    NotZero {
        /// Which field.
        field: &'static str,
        /// What came.
        value: u32,
    },
    /// A packet without data.
    #[error("PACKET without data")]
    Empty,
    /// A list of per-packet information that contradicts itself.
    #[error("per-packet information of {size} bytes with data at {offset}, {room} bytes are left")]
    Info {
        /// Size of the entry.
        size: usize,
        /// Offset of its data.
        offset: usize,
        /// Bytes left in the list.
        room: usize,
    },
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..).and_then(|b| b.first_chunk()).map_or(0, |b| u32::from_le_bytes(*b))
}

/// Offset (from byte 8) and length as fields say, as a range of the message.
fn part<'a>(
    message: &'a [u8],
    field: &'static str,
    offset: u32,
    len: u32,
) -> Result<(usize, &'a [u8]), RndisError> {
    let (start, len) = ((offset as usize).saturating_add(BASE), len as usize);
    match message.get(start..start.saturating_add(len)) {
        Some(bytes) => Ok((start, bytes)),
        None => Err(RndisError::Outside { field, offset: start, len, message: message.len() }),
    }
}

/// Type and the bytes of the message, cut to its length.
fn whole(bytes: &[u8], header: usize) -> Result<(u32, &[u8]), RndisError> {
    let (kind, length) = (u32_at(bytes, 0), u32_at(bytes, 4) as usize);
    let needed = length.max(header).max(BASE);
    match bytes.get(..length) {
        Some(message) if length >= header && length >= BASE => Ok((kind, message)),
        _ => Err(RndisError::Short { kind, len: bytes.len().min(length), needed }),
    }
}

/// A PACKET message of a guest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(in crate::nic) struct TransmitPacket {
    /// Bytes of the message; the next one starts there.
    pub message_len: usize,
    /// Where the frame starts.
    pub data_offset: usize,
    /// Its length.
    pub data_len: usize,
    pub checksum: Option<ChecksumRequest>,
    pub large_send: Option<LargeSend>,
    /// Tag control information.
    pub vlan: Option<u16>,
}

/// Reads the PACKET message at the start of `bytes`.
pub(in crate::nic) fn parse_packet(bytes: &[u8]) -> Result<TransmitPacket, RndisError> {
    let kind = u32_at(bytes, 0);
    if bytes.len() >= BASE && kind != PACKET {
        return Err(RndisError::NotPacket(kind));
    }
    let (_, message) = whole(bytes, PACKET_HEADER)?;
    let zeros = [
        ("out-of-band data offset", 16),
        ("out-of-band data length", 20),
        ("out-of-band data count", 24),
        ("virtual circuit", 36),
    ];
    for (field, at) in zeros {
        let value = u32_at(message, at);
        if value != 0 {
            return Err(RndisError::NotZero { field, value });
        }
    }
    let (data_offset, data) = part(message, "frame", u32_at(message, 8), u32_at(message, 12))?;
    if data.is_empty() {
        return Err(RndisError::Empty);
    }
    let mut packet = TransmitPacket {
        message_len: message.len(),
        data_offset,
        data_len: data.len(),
        ..TransmitPacket::default()
    };
    let info_len = u32_at(message, 32);
    if info_len != 0 {
        let (_, list) = part(message, "per-packet information", u32_at(message, 28), info_len)?;
        packet.read_info(list)?;
    }
    Ok(packet)
}

impl TransmitPacket {
    fn read_info(&mut self, mut list: &[u8]) -> Result<(), RndisError> {
        while !list.is_empty() {
            let size = u32_at(list, 0) as usize;
            let (kind, offset) = (u32_at(list, 4), u32_at(list, 8) as usize);
            if size < INFO_HEADER || size > list.len() || offset >= size {
                return Err(RndisError::Info { size, offset, room: list.len() });
            }
            let (entry, rest) = list.split_at(size);
            let data = entry.get(offset..).unwrap_or_default();
            list = rest;
            if data.len() < 4 {
                continue;
            }
            let word = u32_at(data, 0);
            match kind {
                INFO_CHECKSUM => {
                    self.checksum = Some(ChecksumRequest {
                        ipv4_header: word & 0x10 != 0,
                        tcp: word & 0x4 != 0,
                        udp: word & 0x8 != 0,
                        layer4_offset: (word >> 16 & 0x3ff) as usize,
                    });
                }
                INFO_LARGE_SEND => {
                    self.large_send = Some(LargeSend {
                        segment: (word & 0xf_ffff) as usize,
                        tcp_offset: (word >> 20 & 0x3ff) as usize,
                        ipv6: word & 0x8000_0000 != 0,
                    });
                }
                INFO_VLAN => self.vlan = Some(vlan_to_tag(word)),
                _ => {}
            }
        }
        Ok(())
    }
}

/// Priority, CFI and VID as RNDIS orders them, to tag control information.
fn vlan_to_tag(word: u32) -> u16 {
    ((word & 7) << 13 | (word >> 3 & 1) << 12 | word >> 4 & 0xfff) as u16
}

/// The other way round.
fn tag_to_vlan(tag: u16) -> u32 {
    let tag = u32::from(tag);
    tag >> 13 | (tag >> 12 & 1) << 3 | (tag & 0xfff) << 4
}

/// A control message of a guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::nic) enum Request<'a> {
    Initialize { id: u32, major: u32 },
    Halt,
    Query { id: u32, oid: u32 },
    Set { id: u32, oid: u32, data: &'a [u8] },
    KeepAlive { id: u32 },
    Other(u32),
}

/// Reads a control message.
pub(in crate::nic) fn parse_request(bytes: &[u8]) -> Result<Request<'_>, RndisError> {
    let needed = match u32_at(bytes, 0) {
        INITIALIZE => 24,
        HALT | KEEPALIVE => 12,
        QUERY | SET => 28,
        _ => BASE,
    };
    let (kind, message) = whole(bytes, needed)?;
    let id = u32_at(message, 8);
    let oid = u32_at(message, 12);
    let data = || {
        let (len, offset) = (u32_at(message, 16), u32_at(message, 20));
        if len == 0 {
            return Ok(&[][..]);
        }
        part(message, "information", offset, len).map(|(_, data)| data)
    };
    Ok(match kind {
        INITIALIZE => Request::Initialize { id, major: u32_at(message, 12) },
        HALT => Request::Halt,
        QUERY => {
            data()?;
            Request::Query { id, oid }
        }
        SET => Request::Set { id, oid, data: data()? },
        KEEPALIVE => Request::KeepAlive { id },
        other => Request::Other(other),
    })
}

fn message(kind: u32, words: &[u32], tail: &[u8]) -> Vec<u8> {
    let len = BASE + words.len() * 4 + tail.len();
    let mut bytes = Vec::with_capacity(len);
    for word in [kind, len as u32].iter().chain(words) {
        bytes.extend_from_slice(&word.to_le_bytes());
    }
    bytes.extend_from_slice(tail);
    bytes
}

/// Most PACKET messages in one data message.
const PACKETS_PER_MESSAGE: u32 = 8;
/// PACKET messages start at multiples of 2 to this power.
const ALIGNMENT: u32 = 3;

pub(in crate::nic) fn initialize_complete(id: u32, status: u32, max_transfer: u32) -> Vec<u8> {
    // Version 1.0, connectionless, 802.3, no address families.
    let words = [id, status, 1, 0, 1, 0, PACKETS_PER_MESSAGE, max_transfer, ALIGNMENT, 0, 0];
    message(INITIALIZE | ANSWER, &words, &[])
}

pub(in crate::nic) fn query_complete(id: u32, status: u32, data: &[u8]) -> Vec<u8> {
    let offset = if data.is_empty() { 0 } else { 16 };
    message(QUERY | ANSWER, &[id, status, data.len() as u32, offset], data)
}

pub(in crate::nic) fn set_complete(id: u32, status: u32) -> Vec<u8> {
    message(SET | ANSWER, &[id, status], &[])
}

pub(in crate::nic) fn keep_alive_complete(id: u32) -> Vec<u8> {
    message(KEEPALIVE | ANSWER, &[id, status::SUCCESS], &[])
}

pub(in crate::nic) fn indicate_status(status: u32, data: &[u8]) -> Vec<u8> {
    let offset = if data.is_empty() { 0 } else { 12 };
    message(INDICATE_STATUS, &[status, data.len() as u32, offset], data)
}

/// Bytes of a received PACKET's header with its per-packet information: checksum always, tag if there is one.
pub(in crate::nic) const RECEIVE_HEADER: usize = PACKET_HEADER + 2 * (INFO_HEADER + 4);

/// Header of a frame for the guest whose data starts at `data_offset` of the message.
///
/// The checksum entry says nothing about the frame: this host verifies none, so the guest has to.
pub(in crate::nic) fn receive_header(
    data_offset: usize,
    data_len: usize,
    tag: Option<u16>,
) -> [u8; RECEIVE_HEADER] {
    let entry = (INFO_HEADER + 4) as u32;
    let info_len = if tag.is_some() { 2 * entry } else { entry };
    let mut words = [0u32; RECEIVE_HEADER / 4];
    words[0] = PACKET;
    words[1] = (data_offset + data_len) as u32;
    words[2] = (data_offset - BASE) as u32;
    words[3] = data_len as u32;
    words[7] = (PACKET_HEADER - BASE) as u32;
    words[8] = info_len;
    words[11..15].copy_from_slice(&[entry, INFO_CHECKSUM, INFO_HEADER as u32, 0]);
    if let Some(tag) = tag {
        words[15..].copy_from_slice(&[entry, INFO_VLAN, INFO_HEADER as u32, tag_to_vlan(tag)]);
    }
    let mut bytes = [0; RECEIVE_HEADER];
    for (field, word) in bytes.chunks_exact_mut(4).zip(words) {
        field.copy_from_slice(&word.to_le_bytes());
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A PACKET with this information list in front of its data.
    fn packet(info: &[u32], data: &[u8]) -> Vec<u8> {
        let info_len = info.len() as u32 * 4;
        let mut words = vec![36 + info_len, data.len() as u32, 0, 0, 0, 36, info_len, 0, 0];
        words.extend(info);
        message(PACKET, &words, data)
    }

    #[test]
    fn a_packet_with_offloads_is_read() {
        let info = [16, INFO_CHECKSUM, 12, 0x0022_0015, 16, INFO_VLAN, 12, 0x0000_1235];
        let read = parse_packet(&packet(&info, &[7; 60])).unwrap();
        assert_eq!((read.data_offset, read.data_len, read.message_len), (76, 60, 136));
        let sum = ChecksumRequest { ipv4_header: true, tcp: true, udp: false, layer4_offset: 34 };
        assert_eq!(read.checksum, Some(sum));
        assert_eq!(read.vlan, Some(0xa123));
        assert_eq!(read.large_send, None);
        let info = [16, INFO_LARGE_SEND, 12, 0xc220_05b4];
        let read = parse_packet(&packet(&info, &[7; 60])).unwrap();
        let send = LargeSend { segment: 1460, tcp_offset: 34, ipv6: true };
        assert_eq!(read.large_send, Some(send));
    }

    #[test]
    fn tags_survive_both_ways() {
        for tag in [0, 1, 0xfff, 0x1000, 0xe000, 0xffff, 0xa123] {
            assert_eq!(vlan_to_tag(tag_to_vlan(tag)), tag);
        }
    }

    #[test]
    fn packets_that_lie_are_refused() {
        let good = packet(&[], &[7; 60]);
        let with = |at: usize, value: u32| {
            let mut bytes = good.clone();
            bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
            parse_packet(&bytes).unwrap_err()
        };
        assert_eq!(with(0, 2), RndisError::NotPacket(2));
        assert!(matches!(with(4, 43), RndisError::Short { needed: 44, .. }));
        assert!(matches!(with(4, 105), RndisError::Short { needed: 105, .. }));
        assert!(matches!(with(8, 37), RndisError::Outside { .. }));
        assert!(matches!(with(8, u32::MAX), RndisError::Outside { .. }));
        assert_eq!(with(12, 0), RndisError::Empty);
        for at in [16, 20, 24, 36] {
            assert!(matches!(with(at, 1), RndisError::NotZero { value: 1, .. }));
        }
        assert!(matches!(with(32, 1000), RndisError::Outside { .. }));
        for info in [[0, 0, 12, 0], [20, 0, 12, 0], [16, 0, 16, 0]] {
            assert!(matches!(
                parse_packet(&packet(&info, &[7])),
                Err(RndisError::Info { room: 16, .. })
            ));
        }
        assert!(parse_packet(&[]).is_err());
    }

    #[test]
    fn unknown_information_is_skipped() {
        let info = [16, 0x8000_0001, 12, 0, 16, 8, 12, 5];
        assert!(parse_packet(&packet(&info, &[7])).is_ok());
    }

    #[test]
    fn requests_are_read() {
        let query = message(QUERY, &[9, 0x10107, 0, 20, 0], &[]);
        assert_eq!(parse_request(&query), Ok(Request::Query { id: 9, oid: 0x10107 }));
        let set = message(SET, &[9, 0x1010e, 4, 20, 0], &[11, 0, 0, 0]);
        let expected = Request::Set { id: 9, oid: 0x1010e, data: &[11, 0, 0, 0] };
        assert_eq!(parse_request(&set), Ok(expected));
        let outside = message(SET, &[9, 0x1010e, 5, 20, 0], &[11, 0, 0, 0]);
        assert!(matches!(parse_request(&outside), Err(RndisError::Outside { .. })));
        assert!(parse_request(&message(INITIALIZE, &[1, 1], &[])).is_err());
        assert_eq!(parse_request(&message(6, &[], &[])), Ok(Request::Other(6)));
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_make_the_readers_panic(
            kind in 0u32..10, len in 0u32..200,
            rest in proptest::collection::vec(proptest::num::u8::ANY, 0..200),
        ) {
            let mut bytes = [kind.to_le_bytes(), len.to_le_bytes()].concat();
            bytes.extend(rest);
            let _ = parse_packet(&bytes);
            let _ = parse_request(&bytes);
        }
    }
}

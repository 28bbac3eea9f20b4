//! PACKET: the header in front of a frame, and what it says about that frame.
//!
//! A header is read in two steps, so that the memory it lies in need not be one piece nor trusted: [`Layout::decode`]
//! takes the first 44 bytes and how many bytes there are in all, and says where frame and per-packet information lie;
//! [`Ppis`] walks a copy of the latter.

use core::ops::Range;

use vmbus::open_enum;
use zerocopy::{FromBytes, IntoBytes};

use super::structs::{self, Ppi as PpiHeader};
use super::{BASE, DecodeError, MessageType};

/// Bytes of a header without per-packet information.
pub const PACKET_HEADER: usize = size_of::<structs::Packet>();
/// Bytes of an entry of per-packet information with one word of data.
pub const WORD_PPI: usize = size_of::<PpiHeader>() + 4;

open_enum! {
    /// What an entry of per-packet information is about. Bit 31: a namespace of its own.
    pub struct PpiType(u32) {
        /// Checksums: [`TransmitChecksum`] or [`ReceiveChecksum`].
        CHECKSUM = 0,
        /// A segment to be cut: [`LargeSend`].
        LARGE_SEND = 2,
        /// 802.1Q: [`VlanTag`].
        VLAN = 6,
        /// A hash of the flow.
        HASH = 8,
        /// Parts of a coalesced segment.
        PACKET_ID = 0x8000_0001,
    }
}

bitflags::bitflags! {
    /// What the host shall do to a frame's checksums.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
    pub struct TransmitChecksum: u32 {
        /// The frame is IPv4.
        const IPV4 = 1;
        /// The frame is IPv6.
        const IPV6 = 2;
        /// Fill in the TCP checksum.
        const TCP = 4;
        /// Fill in the UDP checksum.
        const UDP = 8;
        /// Fill in the IPv4 header's.
        const IP_HEADER = 16;
        /// Bits 16 to 25: where the layer 4 header starts.
        const _ = !0;
    }

    /// What the host found out about a frame's checksums.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
    pub struct ReceiveChecksum: u32 {
        /// TCP: wrong.
        const TCP_BAD = 1;
        /// UDP: wrong.
        const UDP_BAD = 2;
        /// IPv4 header: wrong.
        const IP_BAD = 4;
        /// TCP: right.
        const TCP_GOOD = 8;
        /// UDP: right.
        const UDP_GOOD = 0x10;
        /// IPv4 header: right.
        const IP_GOOD = 0x20;
        /// Came from a guest of the same host.
        const LOOPBACK = 0x40;
        /// TCP or UDP: right by other means; the field itself holds something else.
        const TCP_VALUE_INVALID = 0x80;
        /// IPv4 header: likewise.
        const IP_VALUE_INVALID = 0x100;
        /// Bits that are not known here.
        const _ = !0;
    }

    /// Which part of a coalesced segment a message is.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
    pub struct PartFlags: u8 {
        /// It is one at all.
        const SUB_ALLOCATED = 1;
        /// The first.
        const FIRST = 2;
        /// The last.
        const LAST = 4;
        /// Bits that are not known here.
        const _ = !0;
    }
}

/// Bits of an offset or a segment size in a request.
const OFFSET_BITS: u32 = 0x3ff;
const SEGMENT_BITS: u32 = 0xf_ffff;
/// A large send is LSOv2: the host computes checksums and lengths by itself.
const LARGE_SEND_V2: u32 = 1 << 30;
const LARGE_SEND_IPV6: u32 = 1 << 31;

impl TransmitChecksum {
    /// The same, with the TCP or UDP header starting at this byte of the frame, at most 1,023.
    #[must_use]
    pub const fn at(self, layer4: u16) -> Self {
        let flags = self.bits() & 0xffff;
        Self::from_bits_retain(flags | (layer4 as u32 & OFFSET_BITS) << 16)
    }

    /// Where the TCP or UDP header starts.
    #[must_use]
    pub const fn layer4(self) -> usize {
        (self.bits() >> 16 & OFFSET_BITS) as usize
    }
}

/// A TCP segment that the host shall cut (LSOv2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LargeSend {
    /// Most bytes of payload in each piece (MSS), 1 to 1,048,575.
    pub segment: u32,
    /// Where the TCP header starts in the frame, at most 1,023.
    pub layer4: u16,
    /// Over IPv6, otherwise over IPv4.
    pub ipv6: bool,
}

impl LargeSend {
    /// As it stands in per-packet information.
    #[must_use]
    pub const fn to_ppi(self) -> u32 {
        let ipv6 = if self.ipv6 { LARGE_SEND_IPV6 } else { 0 };
        self.segment & SEGMENT_BITS
            | (self.layer4 as u32 & OFFSET_BITS) << 20
            | LARGE_SEND_V2
            | ipv6
    }

    /// From per-packet information.
    #[must_use]
    pub const fn from_ppi(word: u32) -> Self {
        Self {
            segment: word & SEGMENT_BITS,
            layer4: (word >> 20 & OFFSET_BITS) as u16,
            ipv6: word & LARGE_SEND_IPV6 != 0,
        }
    }
}

/// An 802.1Q tag as it stands in a frame: priority in bits 13 to 15, CFI/DEI in bit 12, VLAN below.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct VlanTag(pub u16);

impl VlanTag {
    /// The tag in the order of RNDIS: priority in bits 0 to 2, CFI/DEI in bit 3, VLAN in bits 4 to 15.
    #[must_use]
    pub const fn to_ppi(self) -> u32 {
        (self.0 >> 13 | (self.0 >> 12 & 1) << 3 | self.0 << 4) as u32
    }

    /// From the order of RNDIS; bits beyond the 16 are ignored.
    #[must_use]
    pub const fn from_ppi(word: u32) -> Self {
        let word = word as u16;
        Self(word << 13 | (word >> 3 & 1) << 12 | word >> 4)
    }
}

/// Where things lie in a PACKET message, in bytes from its start. All of it lies inside what came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    /// The length that the message gives itself: where the next one starts, if there is one. At least
    /// [`PACKET_HEADER`], and not checked further: received messages claim more than they have.
    pub length: u32,
    /// The frame.
    pub data: Range<usize>,
    /// Per-packet information; empty if there is none.
    pub ppi: Range<usize>,
}

impl Layout {
    /// Takes the header of a PACKET message apart. `head` holds its first [`PACKET_HEADER`] bytes or more, `total` is the
    /// number of bytes that there are in all.
    ///
    /// # Errors
    /// Each way in which header and `total` contradict each other is a [`DecodeError`].
    #[inline]
    pub fn decode(head: &[u8], total: usize) -> Result<Self, DecodeError> {
        let kind = MessageType::PACKET;
        let Ok((header, _)) = structs::Packet::read_from_prefix(head) else {
            return Err(match structs::Header::read_from_prefix(head) {
                Ok((header, _)) => DecodeError::Length {
                    kind: MessageType(header.kind.get()),
                    length: header.length.get(),
                    least: PACKET_HEADER,
                    found: head.len().min(total),
                },
                Err(_) => DecodeError::NoHeader(head.len().min(total)),
            });
        };
        if header.kind.get() != kind.0 {
            return Err(DecodeError::Unexpected(MessageType(header.kind.get())));
        }
        let length = header.length.get();
        if (length as usize) < PACKET_HEADER || total < PACKET_HEADER {
            return Err(DecodeError::Length { kind, length, least: PACKET_HEADER, found: total });
        }
        let structs::Packet { oob_offset, oob_len, oob_count, vc_handle, .. } = header;
        if oob_offset.get() | oob_len.get() | oob_count.get() | vc_handle.get() != 0 {
            return Err(not_zero(head));
        }
        if header.data_len.get() == 0 {
            return Err(DecodeError::NoData);
        }
        Ok(Self {
            length,
            data: inside("frame", header.data_offset.get(), header.data_len.get(), total)?,
            ppi: inside(
                "per-packet information",
                header.ppi_offset.get(),
                header.ppi_len.get(),
                total,
            )?,
        })
    }
}

/// Which of the fields that are of no use is not zero. Reads the header anew: a reference to the copy would keep that in memory.
#[cold]
fn not_zero(head: &[u8]) -> DecodeError {
    let header =
        structs::Packet::read_from_prefix(head).map_or_else(|_| Default::default(), |it| it.0);
    let unused = [
        ("out-of-band offset", header.oob_offset.get()),
        ("out-of-band length", header.oob_len.get()),
        ("out-of-band count", header.oob_count.get()),
        ("virtual circuit", header.vc_handle.get()),
    ];
    let found = unused.into_iter().find(|(_, value)| *value != 0);
    let (field, value) = found.unwrap_or_default();
    DecodeError::NotZero { field, value }
}

/// The range `offset` behind byte 8, if all of it lies behind the header and inside `total`. Nothing lies anywhere.
#[inline]
fn inside(
    part: &'static str,
    offset: u32,
    len: u32,
    total: usize,
) -> Result<Range<usize>, DecodeError> {
    if len == 0 {
        return Ok(PACKET_HEADER..PACKET_HEADER);
    }
    let start = u64::from(offset) + BASE as u64;
    let end = start + u64::from(len);
    if start < PACKET_HEADER as u64 || end > total as u64 {
        let kind = MessageType::PACKET;
        return Err(DecodeError::Outside { kind, part, offset, len, found: total });
    }
    Ok(start as usize..end as usize)
}

/// Writes a PACKET header and entries of per-packet information of one word each to the start of `out`.
///
/// The frame has to follow at `data_at`, at or behind what is written. Returns the bytes written, or `None` if `out` is
/// too short for them or `data_at` lies among them.
#[inline]
pub fn write_header(
    out: &mut [u8],
    ppis: &[(PpiType, u32)],
    data_at: usize,
    data_len: usize,
) -> Option<usize> {
    let ppi_len = ppis.len() * WORD_PPI;
    let written = PACKET_HEADER + ppi_len;
    if data_at < written {
        return None;
    }
    let word = |value: usize| u32::try_from(value).ok().map(Into::into);
    let header = structs::Packet {
        kind: MessageType::PACKET.0.into(),
        length: word(data_at.checked_add(data_len)?)?,
        data_offset: word(data_at - BASE)?,
        data_len: word(data_len)?,
        ppi_offset: word(if ppis.is_empty() { 0 } else { PACKET_HEADER - BASE })?,
        ppi_len: word(ppi_len)?,
        ..structs::Packet::default()
    };
    let out = out.get_mut(..written)?;
    let (head, list) = out.split_at_mut(PACKET_HEADER);
    head.copy_from_slice(header.as_bytes());
    for (entry, (kind, value)) in list.chunks_exact_mut(WORD_PPI).zip(ppis) {
        let (head, data) = entry.split_at_mut(size_of::<PpiHeader>());
        let header = PpiHeader {
            size: (WORD_PPI as u32).into(),
            kind: kind.0.into(),
            data_offset: (size_of::<PpiHeader>() as u32).into(),
        };
        head.copy_from_slice(header.as_bytes());
        data.copy_from_slice(&value.to_le_bytes());
    }
    Some(written)
}

/// One entry of per-packet information.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ppi<'a> {
    /// What it is about.
    pub kind: PpiType,
    /// Its data.
    pub data: &'a [u8],
}

impl Ppi<'_> {
    /// The first word of the data, if there is one.
    #[must_use]
    #[inline]
    pub fn word(&self) -> Option<u32> {
        self.data.first_chunk().map(|bytes| u32::from_le_bytes(*bytes))
    }

    /// For [`PpiType::PACKET_ID`]: which part of a segment.
    #[must_use]
    pub fn part(&self) -> Option<PartFlags> {
        self.data.get(1).map(|flags| PartFlags::from_bits_retain(*flags))
    }
}

/// Per-packet information that contradicts itself. What came before it is good.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "per-packet information of {size} bytes with data at {data_offset}, expected at least 12 bytes, at most the {room} \
     that are left, and data inside"
)]
pub struct PpiError {
    /// Size of the entry as it says; 0 if not even that much is there.
    pub size: u32,
    /// Offset of its data as it says.
    pub data_offset: u32,
    /// Bytes left in the list.
    pub room: usize,
}

/// The entries of a list of per-packet information. Ends behind the first that contradicts itself.
#[derive(Clone, Debug)]
pub struct Ppis<'a> {
    rest: &'a [u8],
}

impl<'a> Ppis<'a> {
    /// The entries in `list`.
    #[must_use]
    #[inline]
    pub fn new(list: &'a [u8]) -> Self {
        Self { rest: list }
    }
}

impl<'a> Iterator for Ppis<'a> {
    type Item = Result<Ppi<'a>, PpiError>;

    #[inline]
    fn next(&mut self) -> Option<Self::Item> {
        let list = core::mem::take(&mut self.rest);
        if list.is_empty() {
            return None;
        }
        let room = list.len();
        let Ok((header, _)) = PpiHeader::read_from_prefix(list) else {
            return Some(Err(PpiError { size: 0, data_offset: 0, room }));
        };
        let (size, data_offset) = (header.size.get(), header.data_offset.get());
        let entry = list
            .split_at_checked(size as usize)
            .filter(|_| size as usize >= size_of::<PpiHeader>() && data_offset < size);
        match entry.and_then(|(entry, rest)| Some((entry.get(data_offset as usize..)?, rest))) {
            Some((data, rest)) => {
                self.rest = rest;
                Some(Ok(Ppi { kind: PpiType(header.kind.get()), data }))
            }
            None => Some(Err(PpiError { size, data_offset, room })),
        }
    }
}

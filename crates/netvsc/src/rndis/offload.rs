//! What a host's NIC can do for a guest's frames, and what of it shall be done: the values of
//! [`Oid::OFFLOAD_HARDWARE_CAPABILITIES`](super::Oid::OFFLOAD_HARDWARE_CAPABILITIES) and
//! [`Oid::OFFLOAD_PARAMETERS`](super::Oid::OFFLOAD_PARAMETERS) (PROTOCOL §9.3).

#[cfg(test)]
mod tests;

use alloc::vec;
use alloc::vec::Vec;

use crate::nvsp::Version;

/// NDIS object type of the capabilities.
const CAPABILITIES: u8 = 0xa7;
/// NDIS object type of the parameters.
const PARAMETERS: u8 = 0x80;
/// NDIS object type of the encapsulation.
const ENCAPSULATION: u8 = 0xa8;
/// Encapsulation: frames as they are on 802.3.
const ETHERNET: u32 = 2;
/// Bytes of the header of an Ethernet frame.
const ETHERNET_HEADER: u32 = 14;
/// Bytes of the shortest form of the capabilities, that of revision 1.
pub const LEAST_CAPABILITIES: usize = 112;
/// Bytes of the longest form of the parameters.
pub const MOST_PARAMETERS: usize = 28;
/// Bytes of the parameters up to the last field that was there from the beginning, the flags.
pub const LEAST_PARAMETERS: usize = 20;
/// Bytes of an [`Encapsulation`].
pub const ENCAPSULATION_SIZE: usize = 28;

bitflags::bitflags! {
    /// Checksums that are computed or checked, of one IP version and one direction.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
    pub struct ChecksumSet: u32 {
        /// Also with IPv4 options or IPv6 extension headers.
        const IP_OPTIONS = 0x1;
        /// Also with TCP options.
        const TCP_OPTIONS = 0x4;
        /// TCP.
        const TCP = 0x10;
        /// UDP.
        const UDP = 0x40;
        /// The IPv4 header's own.
        const IP_HEADER = 0x100;
        /// Bits that are not known here.
        const _ = !0;
    }

    /// What else large sends over IPv6 may have.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
    pub struct LargeSendOptions: u32 {
        /// Extension headers.
        const EXTENSION_HEADERS = 0x1;
        /// TCP options.
        const TCP_OPTIONS = 0x4;
        /// Bits that are not known here.
        const _ = !0;
    }
}

/// What can be done for frames of one IP version.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct IpOffloads {
    /// Checksums computed for frames of the guest.
    pub transmit: ChecksumSet,
    /// Checksums checked in frames for the guest.
    pub receive: ChecksumSet,
    /// Most bytes of a large send (LSOv2); 0 for none.
    pub large_send: u32,
    /// Fewest segments that a large send is to have.
    pub large_send_segments: u32,
    /// Whether received segments are coalesced (RSC).
    pub coalescing: bool,
}

/// What a NIC can do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct OffloadCapabilities {
    /// For IPv4.
    pub ipv4: IpOffloads,
    /// For IPv6.
    pub ipv6: IpOffloads,
    /// What large sends over IPv6 may have.
    pub large_send_ipv6: LargeSendOptions,
}

impl IpOffloads {
    /// What both of two can do.
    #[must_use]
    pub fn both(self, other: Self) -> Self {
        let large_send = self.large_send.min(other.large_send);
        let segments = self.large_send_segments.max(other.large_send_segments);
        Self {
            transmit: self.transmit & other.transmit,
            receive: self.receive & other.receive,
            large_send,
            large_send_segments: if large_send > 0 { segments } else { 0 },
            coalescing: self.coalescing && other.coalescing,
        }
    }
}

/// Capabilities, parameters or an encapsulation that cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OffloadDecodeError {
    /// Not this kind of object.
    #[error("offload capabilities with NDIS object type {0:#04x}: expected {CAPABILITIES:#04x}")]
    Kind(u8),
    /// Shorter than the oldest form, or than it says.
    #[error(
        "offload capabilities of {found} bytes that say {said}: expected at least {LEAST_CAPABILITIES}, all there"
    )]
    Length {
        /// Size in the object's header.
        said: u16,
        /// Bytes there.
        found: usize,
    },
    /// Not parameters.
    #[error("offload parameters with NDIS object type {0:#04x}: expected {PARAMETERS:#04x}")]
    ParametersKind(u8),
    /// Shorter than the oldest form of parameters, or than they say.
    #[error(
        "offload parameters of {found} bytes that say {said}: expected at least {LEAST_PARAMETERS}, all there"
    )]
    ParametersLength {
        /// Size in the object's header.
        said: u16,
        /// Bytes there.
        found: usize,
    },
    /// A field of the parameters has a value without a meaning.
    #[error("offload parameters with {value} at byte {at}: expected 0 to {most}")]
    Value {
        /// Where.
        at: usize,
        /// What.
        value: u8,
        /// The greatest that has a meaning.
        most: u8,
    },
    /// Not an encapsulation, or one of another size.
    #[error(
        "encapsulation of type {kind:#04x} that says {said} bytes, {found} there: expected {ENCAPSULATION:#04x} and {ENCAPSULATION_SIZE}"
    )]
    Encapsulation {
        /// NDIS object type.
        kind: u8,
        /// Size in the object's header.
        said: u16,
        /// Bytes there.
        found: usize,
    },
    /// An encapsulation that is not that of 802.3.
    #[error("encapsulation {kind} with headers of {header} bytes: expected 2 (802.3) with 14")]
    Foreign {
        /// Which.
        kind: u32,
        /// Bytes of its header.
        header: u32,
    },
}

impl OffloadCapabilities {
    /// Bytes and revision of the form that goes with a version.
    #[must_use]
    pub const fn form(version: Version) -> (u8, u16) {
        if version.0 >= Version::V5.0 {
            (3, 156)
        } else if version.0 >= Version::V4.0 {
            (2, 144)
        } else {
            (1, 112)
        }
    }

    /// The form that a guest of this version knows, as input of the query: a header, and nothing in as many bytes as that says
    /// (Linux `rndis_filter.c`, FreeBSD `hn_rndis.c`).
    #[must_use]
    pub fn question(version: Version) -> Vec<u8> {
        Self::default().encode(version)
    }

    /// Whether the input of a query is such a form, as long as it says at least.
    #[must_use]
    pub fn is_question(input: &[u8]) -> bool {
        is_object(input, CAPABILITIES)
    }

    /// Takes the value of the query apart. Newer and longer forms are read as far as they are known.
    ///
    /// # Errors
    /// Each way in which the bytes make no sense is an [`OffloadDecodeError`].
    pub fn decode(bytes: &[u8]) -> Result<Self, OffloadDecodeError> {
        let found = bytes.len();
        let Some([kind, _, low, high]) = bytes.first_chunk() else {
            return Err(OffloadDecodeError::Length { said: 0, found });
        };
        if *kind != CAPABILITIES {
            return Err(OffloadDecodeError::Kind(*kind));
        }
        let said = u16::from_le_bytes([*low, *high]);
        let object = bytes.get(..usize::from(said)).filter(|it| it.len() >= LEAST_CAPABILITIES);
        let object = object.ok_or(OffloadDecodeError::Length { said, found })?;
        let word = |at: usize| {
            let word = object.get(at..).and_then(|rest| rest.first_chunk());
            word.map_or(0, |bytes| u32::from_le_bytes(*bytes))
        };
        let sums = |at: usize| {
            let set = if word(at) & ETHERNET == 0 { 0 } else { word(at + 4) };
            ChecksumSet::from_bits_retain(set)
        };
        let version = |sum: usize, send: usize, coalescing: usize| IpOffloads {
            transmit: sums(sum),
            receive: sums(sum + 8),
            large_send: if word(send) & ETHERNET == 0 { 0 } else { word(send + 4) },
            large_send_segments: word(send + 8),
            coalescing: object.get(coalescing).is_some_and(|flag| *flag != 0),
        };
        let large_send_ipv6 = LargeSendOptions::from_bits_retain(word(104));
        Ok(Self { ipv4: version(4, 80, 144), ipv6: version(20, 92, 145), large_send_ipv6 })
    }

    /// The bytes in the form of a version. Coalescing is in that of versions from 5 on only.
    #[must_use]
    pub fn encode(&self, version: Version) -> Vec<u8> {
        let (revision, size) = Self::form(version);
        let mut bytes = vec![0; usize::from(size)];
        let mut put = |at: usize, field: &[u8]| {
            if let Some(place) = bytes.get_mut(at..at + field.len()) {
                place.copy_from_slice(field);
            }
        };
        let [low, high] = size.to_le_bytes();
        put(0, &[CAPABILITIES, revision, low, high]);
        for (ip, sum, send, coalescing) in [(&self.ipv4, 4, 80, 144), (&self.ipv6, 20, 92, 145)] {
            for (at, set) in [(sum, ip.transmit), (sum + 8, ip.receive)] {
                if !set.is_empty() {
                    put(at, &ETHERNET.to_le_bytes());
                    put(at + 4, &set.bits().to_le_bytes());
                }
            }
            if ip.large_send > 0 {
                put(send, &ETHERNET.to_le_bytes());
                put(send + 4, &ip.large_send.to_le_bytes());
                put(send + 8, &ip.large_send_segments.to_le_bytes());
            }
            put(coalescing, &[u8::from(ip.coalescing)]);
        }
        put(104, &self.large_send_ipv6.bits().to_le_bytes());
        bytes
    }
}

/// Whether bytes begin with the header of an NDIS object of this kind, and are as long as it says at least.
pub(super) fn is_object(bytes: &[u8], kind: u8) -> bool {
    let said = bytes.first_chunk().map(|[_, _, low, high]| u16::from_le_bytes([*low, *high]));
    bytes.first() == Some(&kind)
        && said.is_some_and(|said| (4..=bytes.len()).contains(&said.into()))
}

/// Whether something that has no direction is on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Switch {
    /// As before.
    #[default]
    Unchanged,
    /// Off.
    Off,
    /// On.
    On,
}

impl From<bool> for Switch {
    fn from(on: bool) -> Self {
        if on { Self::On } else { Self::Off }
    }
}

impl Switch {
    const ALL: [Self; 3] = [Self::Unchanged, Self::Off, Self::On];

    /// What is on after this, if `old` was before.
    #[must_use]
    pub const fn after(self, old: bool) -> bool {
        match self {
            Self::Unchanged => old,
            Self::Off => false,
            Self::On => true,
        }
    }
}

/// In which directions a checksum is left to the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Direction {
    /// As before.
    #[default]
    Unchanged,
    /// In none.
    Off,
    /// On the way out.
    Transmit,
    /// On the way in.
    Receive,
    /// In both.
    Both,
}

impl Direction {
    /// The one in which these are left to the host.
    #[must_use]
    pub const fn of(transmit: bool, receive: bool) -> Self {
        match (transmit, receive) {
            (false, false) => Self::Off,
            (true, false) => Self::Transmit,
            (false, true) => Self::Receive,
            (true, true) => Self::Both,
        }
    }

    const ALL: [Self; 5] = [Self::Unchanged, Self::Off, Self::Transmit, Self::Receive, Self::Both];

    /// What is left to the host after this, if `old` was before: on the way out, on the way in.
    #[must_use]
    pub const fn after(self, old: (bool, bool)) -> (bool, bool) {
        match self {
            Self::Unchanged => old,
            Self::Off => (false, false),
            Self::Transmit => (true, false),
            Self::Receive => (false, true),
            Self::Both => (true, true),
        }
    }
}

/// What shall be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct OffloadParameters {
    /// Checksums of IPv4 headers.
    pub ipv4_header: Direction,
    /// TCP over IPv4.
    pub tcp_ipv4: Direction,
    /// UDP over IPv4.
    pub udp_ipv4: Direction,
    /// TCP over IPv6.
    pub tcp_ipv6: Direction,
    /// UDP over IPv6.
    pub udp_ipv6: Direction,
    /// Large sends over IPv4.
    pub large_send_ipv4: Switch,
    /// Large sends over IPv6.
    pub large_send_ipv6: Switch,
    /// Coalescing of IPv4. Not in the form of versions up to 4.
    pub coalescing_ipv4: Switch,
    /// Coalescing of IPv6. Likewise.
    pub coalescing_ipv6: Switch,
}

impl OffloadParameters {
    /// The bytes, of which the first `len` are the value in the form of `version`: 22 up to 4, 28 after.
    #[must_use]
    pub fn encode(&self, version: Version) -> ([u8; MOST_PARAMETERS], usize) {
        const REVISION: u8 = 3;
        let len = if version > Version::V4 { MOST_PARAMETERS } else { 22 };
        let mut bytes = [0; MOST_PARAMETERS];
        let (head, tail) = bytes.split_at_mut(22);
        let way = |direction: Direction| direction as u8;
        let switch = |switch: Switch| switch as u8;
        let fields = [
            PARAMETERS,
            REVISION,
            len as u8,
            0,
            way(self.ipv4_header),
            way(self.tcp_ipv4),
            way(self.udp_ipv4),
            way(self.tcp_ipv6),
            way(self.udp_ipv6),
            0,
            0,
            switch(self.large_send_ipv4),
            switch(self.large_send_ipv6),
        ];
        head.iter_mut().zip(fields).for_each(|(byte, field)| *byte = field);
        let coalescing = [switch(self.coalescing_ipv4), switch(self.coalescing_ipv6)];
        tail.iter_mut().zip(coalescing).for_each(|(byte, field)| *byte = field);
        (bytes, len)
    }

    /// Takes parameters apart. Fields that a short form does not have are unchanged; revisions from 1 on are taken.
    ///
    /// # Errors
    /// Each way in which the bytes make no sense is an [`OffloadDecodeError`].
    pub fn decode(bytes: &[u8]) -> Result<Self, OffloadDecodeError> {
        let found = bytes.len();
        let Some([kind, _, low, high]) = bytes.first_chunk() else {
            return Err(OffloadDecodeError::ParametersLength { said: 0, found });
        };
        if *kind != PARAMETERS {
            return Err(OffloadDecodeError::ParametersKind(*kind));
        }
        let said = u16::from_le_bytes([*low, *high]);
        let fields = bytes.get(..usize::from(said)).filter(|it| it.len() >= LEAST_PARAMETERS);
        let fields = fields.ok_or(OffloadDecodeError::ParametersLength { said, found })?;
        let way = |at: usize| one_of(&Direction::ALL, fields, at);
        let switch = |at: usize| one_of(&Switch::ALL, fields, at);
        Ok(Self {
            ipv4_header: way(4)?,
            tcp_ipv4: way(5)?,
            udp_ipv4: way(6)?,
            tcp_ipv6: way(7)?,
            udp_ipv6: way(8)?,
            large_send_ipv4: switch(11)?,
            large_send_ipv6: switch(12)?,
            coalescing_ipv4: switch(22)?,
            coalescing_ipv6: switch(23)?,
        })
    }
}

/// The meaning of the byte at a place; a byte that is not there is 0.
fn one_of<T: Copy>(all: &[T], fields: &[u8], at: usize) -> Result<T, OffloadDecodeError> {
    let value = fields.get(at).copied().unwrap_or(0);
    let most = all.len().saturating_sub(1) as u8;
    all.get(usize::from(value)).copied().ok_or(OffloadDecodeError::Value { at, value, most })
}

/// The encapsulation that offloads deal with, as some guests say it before they set any: the value of
/// [`Oid::OFFLOAD_ENCAPSULATION`](super::Oid::OFFLOAD_ENCAPSULATION). Always 802.3, with headers of 14 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Encapsulation {
    /// Offloads over IPv4 are wanted.
    pub ipv4: bool,
    /// Offloads over IPv6 are wanted.
    pub ipv6: bool,
}

impl Encapsulation {
    /// Its bytes.
    #[must_use]
    pub fn encode(&self) -> [u8; ENCAPSULATION_SIZE] {
        let mut bytes = [0; ENCAPSULATION_SIZE];
        let mut words = bytes.chunks_exact_mut(4);
        let header = u32::from_le_bytes([ENCAPSULATION, 1, ENCAPSULATION_SIZE as u8, 0]);
        let way = |on: bool| [u32::from(on), ETHERNET, ETHERNET_HEADER];
        let fields = [header].into_iter().chain(way(self.ipv4)).chain(way(self.ipv6));
        for (place, field) in words.by_ref().zip(fields) {
            place.copy_from_slice(&field.to_le_bytes());
        }
        bytes
    }

    /// Takes an encapsulation apart.
    ///
    /// # Errors
    /// Each way in which the bytes make no sense, or speak of anything but 802.3, is an [`OffloadDecodeError`].
    pub fn decode(bytes: &[u8]) -> Result<Self, OffloadDecodeError> {
        let found = bytes.len();
        let word = |at: usize| {
            let word = bytes.get(at..).and_then(|rest| rest.first_chunk());
            word.map_or(0, |bytes| u32::from_le_bytes(*bytes))
        };
        let [kind, _, low, high] = word(0).to_le_bytes();
        let said = u16::from_le_bytes([low, high]);
        if kind != ENCAPSULATION
            || usize::from(said) < ENCAPSULATION_SIZE
            || found < usize::from(said)
        {
            return Err(OffloadDecodeError::Encapsulation { kind, said, found });
        }
        let way = |at: usize| {
            let (on, kind, header) = (word(at) == 1, word(at + 4), word(at + 8));
            if on && (kind, header) != (ETHERNET, ETHERNET_HEADER) {
                return Err(OffloadDecodeError::Foreign { kind, header });
            }
            Ok(on)
        };
        Ok(Self { ipv4: way(4)?, ipv6: way(16)? })
    }
}

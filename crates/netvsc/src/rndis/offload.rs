//! What a host's NIC can do for a guest's frames, and what of it shall be done: the values of
//! [`Oid::OFFLOAD_HARDWARE_CAPABILITIES`](super::Oid::OFFLOAD_HARDWARE_CAPABILITIES) and
//! [`Oid::OFFLOAD_PARAMETERS`](super::Oid::OFFLOAD_PARAMETERS) (PROTOCOL §9.3).

use crate::nvsp::Version;

/// NDIS object type of the capabilities.
const CAPABILITIES: u8 = 0xa7;
/// NDIS object type of the parameters.
const PARAMETERS: u8 = 0x80;
/// Encapsulation: frames as they are on 802.3.
const ETHERNET: u32 = 2;
/// Bytes of the shortest form of the capabilities, that of revision 1.
pub const LEAST_CAPABILITIES: usize = 112;
/// Bytes of the longest form of the parameters.
pub const MOST_PARAMETERS: usize = 28;

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

/// Capabilities that cannot be used.
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

    /// The header by which a guest of this version says, as input of the query, which form it knows.
    #[must_use]
    pub const fn question(version: Version) -> [u8; 4] {
        let (revision, size) = Self::form(version);
        let [low, high] = size.to_le_bytes();
        [CAPABILITIES, revision, low, high]
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
        Ok(Self { ipv4: version(4, 80, 144), ipv6: version(20, 92, 145) })
    }
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
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use std::vec;
    use std::vec::Vec;

    fn capabilities(size: u8, words: &[(usize, u32)]) -> Vec<u8> {
        let mut bytes = vec![0; usize::from(size)];
        bytes[..4].copy_from_slice(&[0xa7, 3, size, 0]);
        for (at, word) in words {
            bytes[*at..*at + 4].copy_from_slice(&word.to_le_bytes());
        }
        bytes
    }

    #[test]
    fn capabilities_stand_where_the_protocol_says() {
        let bytes = capabilities(
            156,
            &[
                (4, 2),
                (8, 0x155),
                (12, 2),
                (16, 0x110),
                (20, 2),
                (24, 0x54),
                (28, 2),
                (32, 0x10),
                (80, 2),
                (84, 0xf53c),
                (88, 2),
                (92, 2),
                (96, 0xf000),
                (100, 3),
                (104, 4),
                (144, 1),
            ],
        );
        let read = OffloadCapabilities::decode(&bytes).unwrap();
        let all = ChecksumSet::from_bits_retain(0x155);
        assert_eq!(
            read.ipv4,
            IpOffloads {
                transmit: all,
                receive: ChecksumSet::IP_HEADER | ChecksumSet::TCP,
                large_send: 0xf53c,
                large_send_segments: 2,
                coalescing: true,
            }
        );
        assert_eq!((read.ipv6.transmit.bits(), read.ipv6.receive.bits()), (0x54, 0x10));
        assert_eq!((read.ipv6.large_send, read.ipv6.coalescing), (0xf000, false));
    }

    #[test]
    fn what_is_not_for_ethernet_is_nothing() {
        let bytes = capabilities(112, &[(4, 1), (8, 0x155), (80, 0), (84, 0xf53c)]);
        assert_eq!(OffloadCapabilities::decode(&bytes).unwrap().ipv4, IpOffloads::default());
    }

    #[test]
    fn short_and_foreign_objects_are_refused() {
        let good = capabilities(112, &[]);
        for len in 0..112 {
            assert!(OffloadCapabilities::decode(&good[..len]).is_err(), "{len} bytes");
        }
        let wrong = |at: usize, value: u8| {
            let mut bytes = good.clone();
            bytes[at] = value;
            OffloadCapabilities::decode(&bytes)
        };
        assert_eq!(wrong(0, 0x80), Err(OffloadDecodeError::Kind(0x80)));
        assert_eq!(wrong(2, 113), Err(OffloadDecodeError::Length { said: 113, found: 112 }));
        assert_eq!(wrong(2, 111), Err(OffloadDecodeError::Length { said: 111, found: 112 }));
    }

    #[test]
    fn the_form_follows_the_version() {
        assert_eq!(OffloadCapabilities::question(Version::V6_1), [0xa7, 3, 156, 0]);
        assert_eq!(OffloadCapabilities::question(Version::V4), [0xa7, 2, 144, 0]);
        assert_eq!(OffloadCapabilities::question(Version::V2), [0xa7, 1, 112, 0]);
    }

    #[test]
    fn parameters_stand_where_the_protocol_says() {
        let parameters = OffloadParameters {
            ipv4_header: Direction::Both,
            tcp_ipv4: Direction::Transmit,
            udp_ipv4: Direction::Receive,
            tcp_ipv6: Direction::Off,
            udp_ipv6: Direction::Unchanged,
            large_send_ipv4: Switch::On,
            large_send_ipv6: Switch::Off,
            coalescing_ipv4: Switch::On,
            coalescing_ipv6: Switch::Off,
        };
        let (bytes, len) = parameters.encode(Version::V6_1);
        let mut expected = [0; 28];
        expected[..13].copy_from_slice(&[0x80, 3, 28, 0, 4, 2, 3, 1, 0, 0, 0, 2, 1]);
        expected[22..24].copy_from_slice(&[2, 1]);
        assert_eq!((bytes, len), (expected, 28));
        let (bytes, len) = parameters.encode(Version::V4);
        assert_eq!((bytes[2], len), (22, 22));
    }
}

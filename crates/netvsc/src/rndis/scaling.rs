//! Receive side scaling (RSS): how a host spreads the frames for a guest over its channels, the values of
//! [`Oid::RSS_CAPABILITIES`](super::Oid::RSS_CAPABILITIES) and [`Oid::RSS_PARAMETERS`](super::Oid::RSS_PARAMETERS)
//! (PROTOCOL §9.4).

use alloc::vec::Vec;

/// Bytes of a key.
pub const KEY_SIZE: usize = 40;
/// Most entries of an indirection table that are sent.
pub const MOST_ENTRIES: usize = 256;
/// NDIS object type of the capabilities.
const CAPABILITIES: u8 = 0x88;
/// NDIS object type of the parameters.
const PARAMETERS: u8 = 0x89;
/// Bytes of the fixed part of the parameters.
const FIXED: usize = 40;
/// Hash function: Toeplitz.
const TOEPLITZ: u32 = 1;
/// Flag of the parameters: no more scaling.
const DISABLE: u16 = 0x10;

bitflags::bitflags! {
    /// What of a frame is hashed.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
    pub struct HashTypes: u32 {
        /// IPv4 addresses.
        const IPV4 = 0x100;
        /// IPv4 addresses and TCP ports.
        const TCP_IPV4 = 0x200;
        /// IPv6 addresses.
        const IPV6 = 0x400;
        /// IPv6 addresses and TCP ports.
        const TCP_IPV6 = 0x1000;
        /// IPv4 addresses and UDP ports.
        const UDP_IPV4 = 0x4000;
        /// IPv6 addresses and UDP ports.
        const UDP_IPV6 = 0x8000;
    }
}

/// What a host can do of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct ScalingCapabilities {
    /// Channels that frames may be spread over, the primary one included.
    pub queues: u32,
    /// Entries of the host's table.
    pub entries: u16,
}

impl ScalingCapabilities {
    /// Takes the value of the query apart; `None` if it makes no sense.
    #[must_use]
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let half = |at: usize| Some(u16::from_le_bytes(*bytes.get(at..)?.first_chunk()?));
        let word = |at: usize| Some(u32::from_le_bytes(*bytes.get(at..)?.first_chunk()?));
        if *bytes.first()? != CAPABILITIES {
            return None;
        }
        Some(Self { queues: word(12)?, entries: half(16)? })
    }
}

/// How frames are to be spread.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scaling {
    /// What of a frame is hashed.
    pub types: HashTypes,
    /// The key of the Toeplitz hash.
    pub key: [u8; KEY_SIZE],
    /// Channel number by hash modulo the number of entries, a power of two up to [`MOST_ENTRIES`].
    pub table: Vec<u16>,
}

impl Scaling {
    /// Frames of TCP, and of everything else by their addresses, spread evenly over so many channels by a table of 128.
    #[must_use]
    pub fn even(queues: u16, key: [u8; KEY_SIZE]) -> Self {
        const ENTRIES: u16 = 128;
        let types = HashTypes::IPV4 | HashTypes::TCP_IPV4 | HashTypes::IPV6 | HashTypes::TCP_IPV6;
        Self { types, key, table: (0..ENTRIES).map(|at| at % queues.max(1)).collect() }
    }

    /// The value that sets it.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let table = self.table.len().min(MOST_ENTRIES) * 4;
        let mut bytes = fixed(0, self.types.bits() | TOEPLITZ, table, KEY_SIZE);
        for entry in self.table.iter().take(MOST_ENTRIES) {
            bytes.extend_from_slice(&u32::from(*entry).to_le_bytes());
        }
        bytes.extend_from_slice(&self.key);
        bytes
    }

    /// The value that ends all scaling. Some hosts take other parameters only after that.
    #[must_use]
    pub fn disabled() -> Vec<u8> {
        fixed(DISABLE, 0, 0, 0)
    }
}

/// The fixed part, with a table and a key of so many bytes behind it.
fn fixed(flags: u16, hash: u32, table: usize, key: usize) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(FIXED + table + key);
    let mut half = |value: u16| bytes.extend_from_slice(&value.to_le_bytes());
    half(u16::from_le_bytes([PARAMETERS, 2]));
    half(FIXED as u16);
    half(flags);
    half(0);
    half(hash as u16);
    half((hash >> 16) as u16);
    half(table as u16);
    half(0);
    half(FIXED as u16);
    half(0);
    half(key as u16);
    half(0);
    half((FIXED + table) as u16);
    bytes.resize(FIXED, 0);
    bytes
}

/// The Toeplitz hash of `input` under a key; what is hashed of a frame is its addresses and ports in the order in which they
/// stand there.
#[must_use]
pub fn toeplitz(key: &[u8; KEY_SIZE], input: &[u8]) -> u32 {
    let mut hash = 0;
    let mut window = u64::from_be_bytes(key.first_chunk().copied().unwrap_or_default());
    let mut rest = key.iter().skip(8);
    for byte in input {
        for bit in (0..8).rev() {
            if byte >> bit & 1 == 1 {
                hash ^= (window >> 32) as u32;
            }
            window <<= 1;
        }
        window |= rest.next().map_or(0, |next| u64::from(*next));
    }
    hash
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use std::vec;

    /// The key of the published verification suite for RSS.
    const KEY: [u8; KEY_SIZE] = [
        0x6d, 0x5a, 0x56, 0xda, 0x25, 0x5b, 0x0e, 0xc2, 0x41, 0x67, 0x25, 0x3d, 0x43, 0xa3, 0x8f,
        0xb0, 0xd0, 0xca, 0x2b, 0xcb, 0xae, 0x7b, 0x30, 0xb4, 0x77, 0xcb, 0x2d, 0xa3, 0x80, 0x30,
        0xf2, 0x0c, 0x6a, 0x42, 0xb7, 0x3b, 0xbe, 0xac, 0x01, 0xfa,
    ];

    #[test]
    fn the_hash_agrees_with_the_published_values() {
        let v4 = |from: [u8; 4], to: [u8; 4], ports: [u16; 2]| {
            let mut input = [from, to].concat();
            let addresses = toeplitz(&KEY, &input);
            input.extend(ports.iter().flat_map(|port| port.to_be_bytes()));
            (addresses, toeplitz(&KEY, &input))
        };
        let known = v4([66, 9, 149, 187], [161, 142, 100, 80], [2794, 1766]);
        assert_eq!(known, (0x323e_8fc2, 0x51cc_c178));
        let known = v4([199, 92, 111, 2], [65, 69, 140, 83], [14230, 4739]);
        assert_eq!(known, (0xd718_262a, 0xc626_b0ea));
        let known = v4([24, 19, 198, 95], [12, 22, 207, 184], [12898, 38024]);
        assert_eq!(known, (0xd2d0_a5de, 0x5c2b_394a));
    }

    #[test]
    fn parameters_stand_where_the_protocol_says() {
        let scaling = Scaling {
            types: HashTypes::IPV4 | HashTypes::TCP_IPV4,
            key: KEY,
            table: vec![0, 1, 2, 3],
        };
        let bytes = scaling.encode();
        let mut expected = vec![0x89, 2, 40, 0, 0, 0, 0, 0, 1, 3, 0, 0, 16, 0, 0, 0, 40, 0, 0, 0];
        expected.extend([40, 0, 0, 0, 56, 0, 0, 0]);
        expected.resize(40, 0);
        expected.extend([0, 0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0, 3, 0, 0, 0]);
        expected.extend(KEY);
        assert_eq!(bytes, expected);
        assert_eq!(Scaling::disabled()[4..6], [0x10, 0]);
        assert_eq!(Scaling::disabled().len(), 40);
    }

    #[test]
    fn an_even_table_names_every_channel() {
        let table = Scaling::even(3, KEY).table;
        assert_eq!((table.len(), &table[..4]), (128, &[0, 1, 2, 0][..]));
        assert!(Scaling::even(0, KEY).table.iter().all(|entry| *entry == 0));
    }

    #[test]
    fn capabilities_are_read_and_others_refused() {
        let mut bytes = vec![0x88, 2, 18, 0, 1, 3, 0, 0, 8, 0, 0, 0, 64, 0, 0, 0, 128, 0];
        let read = ScalingCapabilities::decode(&bytes);
        assert_eq!(read, Some(ScalingCapabilities { queues: 64, entries: 128 }));
        assert_eq!(ScalingCapabilities::decode(&bytes[..17]), None);
        bytes[0] = 0x89;
        assert_eq!(ScalingCapabilities::decode(&bytes), None);
    }
}

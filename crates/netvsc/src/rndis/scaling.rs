//! Receive side scaling (RSS): how a host spreads the frames for a guest over its channels, the values of
//! [`Oid::RSS_CAPABILITIES`](super::Oid::RSS_CAPABILITIES) and [`Oid::RSS_PARAMETERS`](super::Oid::RSS_PARAMETERS)
//! (PROTOCOL §9.4).

use alloc::vec;
use alloc::vec::Vec;

use super::offload::is_object;

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
/// Flag of the parameters: hash function and types are as before.
const HASH_UNCHANGED: u16 = 2;
/// Flag of the parameters: the table is as before.
const TABLE_UNCHANGED: u16 = 4;
/// Flag of the parameters: the key is as before.
const KEY_UNCHANGED: u16 = 8;
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

/// Bytes of the capabilities, and the header that says so: revision 2.
const SIZE: u16 = 18;
const HEADER: [u8; 4] = [CAPABILITIES, 2, SIZE as u8, 0];
/// Entries of a table of the usual size.
const ENTRIES: u16 = 128;
/// What of the host's hashing there is: the flags of the capabilities.
const HASHES: u32 = 0x1 | 0x100 | 0x200;

/// What a host can do of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct ScalingCapabilities {
    /// Interrupts that its channels have.
    pub interrupts: u32,
    /// Channels that frames may be spread over, the primary one included.
    pub queues: u32,
    /// Entries of the host's table.
    pub entries: u16,
}

impl ScalingCapabilities {
    /// What goes along with the query: the object without a value (Linux `rndis_filter.c`, FreeBSD `hn_rndis.c`).
    #[must_use]
    pub fn question() -> Vec<u8> {
        let mut bytes = vec![0; usize::from(SIZE)];
        bytes.splice(..4, HEADER);
        bytes
    }

    /// Whether the input of a query is such an object, as long as it says at least.
    #[must_use]
    pub fn is_question(input: &[u8]) -> bool {
        is_object(input, CAPABILITIES)
    }

    /// Takes the value of the query apart; `None` if it makes no sense. Older hosts do not say how many entries their table has: they
    /// are 128 then.
    #[must_use]
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let half = |at: usize| Some(u16::from_le_bytes(*bytes.get(at..)?.first_chunk()?));
        let word = |at: usize| Some(u32::from_le_bytes(*bytes.get(at..)?.first_chunk()?));
        if *bytes.first()? != CAPABILITIES {
            return None;
        }
        Some(Self { interrupts: word(8)?, queues: word(12)?, entries: half(16).unwrap_or(ENTRIES) })
    }

    /// The value of the query, of a host that hashes by Toeplitz, TCP over IPv4 and IPv6.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::from(HEADER);
        for word in [HASHES, self.interrupts, self.queues] {
            bytes.extend_from_slice(&word.to_le_bytes());
        }
        bytes.extend_from_slice(&self.entries.to_le_bytes());
        bytes
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

/// Parameters that cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ScalingError {
    /// Shorter than the fixed part.
    #[error("scaling parameters of {0} bytes: expected at least {FIXED}")]
    TooShort(usize),
    /// Another object, or one that says it is shorter than the fixed part.
    #[error(
        "scaling parameters of type {kind:#04x} that say {size} bytes: expected {PARAMETERS:#04x} and at least {FIXED}"
    )]
    Header {
        /// NDIS object type.
        kind: u8,
        /// Size in the object's header.
        size: u16,
    },
    /// A key of another size, or outside the value.
    #[error(
        "scaling key of {len} bytes at offset {offset}: expected {KEY_SIZE} bytes behind the first {FIXED} and inside the          {found} that came"
    )]
    Key {
        /// Offset from the start of the value.
        offset: u32,
        /// Bytes of the key.
        len: u16,
        /// Bytes there.
        found: usize,
    },
    /// A table that is empty, too long, in half an entry, or outside the value.
    #[error(
        "scaling table of {len} bytes at offset {offset}: expected 1 to {MOST_ENTRIES} entries of 4 bytes behind the first          {FIXED} and inside the {found} that came"
    )]
    Table {
        /// Offset from the start of the value.
        offset: u32,
        /// Bytes of the table.
        len: u16,
        /// Bytes there.
        found: usize,
    },
    /// A queue number beyond all that there can be.
    #[error("scaling table with queue {0}: expected at most 65535")]
    Entry(u32),
}

/// What parameters say is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ScalingChange {
    /// No more scaling. What else they say does not count.
    Off,
    /// Scaling with these; what is `None` stays as it was.
    On {
        /// What of a frame is hashed. If it is unchanged, scaling that is off stays off.
        types: Option<HashTypes>,
        /// The key.
        key: Option<[u8; KEY_SIZE]>,
        /// Channel numbers.
        table: Option<Vec<u16>>,
    },
}

impl ScalingChange {
    /// Takes parameters apart. Bits of hash types that are not known here are left out.
    ///
    /// # Errors
    /// Each way in which the bytes make no sense is a [`ScalingError`]. Whether the channels exist is not known here.
    pub fn decode(bytes: &[u8]) -> Result<Self, ScalingError> {
        let found = bytes.len();
        let Some(fixed) = bytes.first_chunk::<FIXED>() else {
            return Err(ScalingError::TooShort(found));
        };
        let (halves, _) = fixed.as_chunks();
        let half = |at: usize| halves.get(at / 2).map_or(0, |half| u16::from_le_bytes(*half));
        let word = |at: usize| u32::from(half(at)) | u32::from(half(at + 2)) << 16;
        let ([kind, _], size) = (half(0).to_le_bytes(), half(2));
        if kind != PARAMETERS || usize::from(size) < FIXED {
            return Err(ScalingError::Header { kind, size });
        }
        let (flags, hash) = (half(4), word(8));
        let types = (flags & HASH_UNCHANGED == 0).then(|| HashTypes::from_bits_truncate(hash));
        if flags & DISABLE != 0 || types.is_some() && hash & TOEPLITZ == 0 {
            return Ok(Self::Off);
        }
        let part = |offset: u32, len: u16| {
            let start = usize::try_from(offset).ok().filter(|start| *start >= FIXED)?;
            bytes.get(start..)?.get(..usize::from(len))
        };
        let key = if flags & KEY_UNCHANGED == 0 {
            let (offset, len) = (word(24), half(20));
            let key = part(offset, len).and_then(|key| key.try_into().ok());
            Some(key.ok_or(ScalingError::Key { offset, len, found })?)
        } else {
            None
        };
        let table = if flags & TABLE_UNCHANGED == 0 {
            let (offset, len) = (word(16), half(12));
            let entries = part(offset, len).and_then(entries);
            let entries = entries.ok_or(ScalingError::Table { offset, len, found })?;
            let number = |entry: &[u8; 4]| {
                let number = u32::from_le_bytes(*entry);
                u16::try_from(number).map_err(|_| ScalingError::Entry(number))
            };
            Some(entries.iter().map(number).collect::<Result<_, _>>()?)
        } else {
            None
        };
        Ok(Self::On { types, key, table })
    }
}

/// The entries of a table, if there is a number of them that can be.
fn entries(bytes: &[u8]) -> Option<&[[u8; 4]]> {
    let (entries, rest) = bytes.as_chunks();
    (rest.is_empty() && (1..=MOST_ENTRIES).contains(&entries.len())).then_some(entries)
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
    use proptest::prelude::*;
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
        let read = ScalingChange::On {
            types: Some(scaling.types),
            key: Some(KEY),
            table: Some(scaling.table),
        };
        assert_eq!(ScalingChange::decode(&expected), Ok(read));
        let mut off = vec![0x89, 2, 40, 0, 0x10, 0];
        off.resize(40, 0);
        off[16] = 40;
        off[24] = 40;
        assert_eq!(Scaling::disabled(), off);
        assert_eq!(ScalingChange::decode(&off), Ok(ScalingChange::Off));
        // No hash function is another way to say so.
        off[4] = 0;
        assert_eq!(ScalingChange::decode(&off), Ok(ScalingChange::Off));
    }

    #[test]
    fn parameters_leave_unchanged_what_they_flag() {
        let good = Scaling::even(2, KEY).encode();
        for flags in [0, 2, 4, 8, 14] {
            let mut bytes = good.clone();
            bytes[4] = flags;
            let Ok(ScalingChange::On { types, key, table }) = ScalingChange::decode(&bytes) else {
                panic!("flags {flags:#x}");
            };
            let said = [(2, types.is_some()), (4, table.is_some()), (8, key.is_some())];
            for (flag, is_there) in said {
                assert_eq!(flags & flag == 0, is_there, "flags {flags:#x}, {flag}");
            }
        }
    }

    #[test]
    fn parameters_that_lie_are_refused() {
        let scaling = Scaling { types: HashTypes::IPV4, key: KEY, table: vec![0, 1, 2] };
        let good = scaling.encode();
        let found = good.len();
        let with = |at: usize, value: &[u8]| {
            let mut bytes = good.clone();
            bytes[at..at + value.len()].copy_from_slice(value);
            ScalingChange::decode(&bytes).unwrap_err()
        };
        for len in 0..found {
            assert!(ScalingChange::decode(&good[..len]).is_err(), "{len} bytes");
        }
        assert_eq!(ScalingChange::decode(&good[..39]), Err(ScalingError::TooShort(39)));
        assert_eq!(with(0, &[0x88]), ScalingError::Header { kind: 0x88, size: 40 });
        assert_eq!(with(2, &[39]), ScalingError::Header { kind: 0x89, size: 39 });
        for len in [0, 5, 0xfffc] {
            let table = ScalingError::Table { offset: 40, len, found };
            assert_eq!(with(12, &len.to_le_bytes()), table);
        }
        for offset in [0, 39, 81, u32::MAX] {
            let table = ScalingError::Table { offset, len: 12, found };
            assert_eq!(with(16, &offset.to_le_bytes()), table);
            let key = ScalingError::Key { offset, len: 40, found };
            assert_eq!(with(24, &offset.to_le_bytes()), key);
        }
        for len in [0, 39, 41] {
            let key = ScalingError::Key { offset: 52, len, found };
            assert_eq!(with(20, &len.to_le_bytes()), key);
        }
        assert_eq!(with(44, &0x1_0000u32.to_le_bytes()), ScalingError::Entry(0x1_0000));
        let many = Scaling { table: vec![0; 300], ..scaling }.encode();
        assert!(ScalingChange::decode(&many).is_ok(), "more than {MOST_ENTRIES} are not sent");
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
        assert_eq!(read, Some(ScalingCapabilities { interrupts: 8, queues: 64, entries: 128 }));
        assert_eq!(read.unwrap().encode(), bytes);
        assert_eq!(ScalingCapabilities::decode(&bytes[..16]), read, "an older host's");
        assert_eq!(ScalingCapabilities::decode(&bytes[..15]), None);
        let question = ScalingCapabilities::question();
        assert_eq!((&question[..4], &question[4..]), (&bytes[..4], &[0; 14][..]));
        assert!(ScalingCapabilities::is_question(&question));
        assert!(!ScalingCapabilities::is_question(&question[..17]));
        bytes[0] = 0x89;
        assert_eq!(ScalingCapabilities::decode(&bytes), None);
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_decoders_panic(
            changes in proptest::collection::vec((0..212usize, any::<u8>()), 0..12),
            rest in proptest::collection::vec(any::<u8>(), 0..100),
            len in 0..300usize,
        ) {
            let mut bytes = Scaling::even(4, KEY).encode();
            bytes.truncate(len);
            for (at, value) in changes {
                if let Some(byte) = bytes.get_mut(at) {
                    *byte = value;
                }
            }
            for bytes in [bytes, rest] {
                let _ = ScalingChange::decode(&bytes);
                let _ = ScalingCapabilities::decode(&bytes);
            }
        }
    }
}

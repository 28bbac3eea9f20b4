//! Values of objects that are more than a number: a named parameter, the state of a link, the name of a card
//! (PROTOCOL §9.1).

use alloc::string::String;
use alloc::vec::Vec;

use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::mac::MacAddress;

/// Name of the parameter that sets the address of a card.
pub const ADDRESS_PARAMETER: &str = "NetworkAddress";
/// The only type of parameter that is in use: a string.
const STRING: u32 = 2;

/// A value that cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ObjectError {
    /// Shorter than its fields.
    #[error("{what} of {found} bytes: expected at least {expected}")]
    TooShort {
        /// What it is.
        what: &'static str,
        /// Bytes of the fields.
        expected: usize,
        /// Bytes there.
        found: usize,
    },
    /// A parameter that is no string.
    #[error("parameter of type {0}: expected 2, a string")]
    ParameterType(u32),
    /// A part of a parameter that lies outside of it, or is no UTF-16.
    #[error(
        "{part} of a parameter, {len} bytes at offset {offset}: expected UTF-16 inside its {found} bytes"
    )]
    Text {
        /// Name or value.
        part: &'static str,
        /// Offset from the start of the parameter.
        offset: u32,
        /// Length in bytes.
        len: u32,
        /// Bytes of the parameter.
        found: usize,
    },
    /// A header that is not that of a link state.
    #[error(
        "link state of type {kind:#x}, revision {revision}, size {size}: expected 0x80, 1 and 40"
    )]
    LinkHeader {
        /// Type.
        kind: u8,
        /// Revision.
        revision: u8,
        /// Size in bytes.
        size: u16,
    },
}

/// RNDIS_CONFIG_PARAMETER_INFO; name and value follow. Offsets count from its start.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct ParameterHeader {
    /// 0: where the name starts.
    name_offset: U32,
    /// 4: bytes of the name.
    name_len: U32,
    /// 8: 2, a string.
    kind: U32,
    /// 12: where the value starts.
    value_offset: U32,
    /// 16: bytes of the value.
    value_len: U32,
}

const _: () = assert!(size_of::<ParameterHeader>() == 20);

/// A named parameter of a card: the value of [`Oid::CONFIG_PARAMETER`](super::Oid::CONFIG_PARAMETER).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parameter {
    /// Its name.
    pub name: String,
    /// Its value.
    pub value: String,
}

impl Parameter {
    /// The parameter that gives a card this address: twelve hexadecimal digits.
    #[must_use]
    pub fn address(mac: MacAddress) -> Self {
        let mut value = String::with_capacity(12);
        for digit in mac.0.iter().flat_map(|byte| [byte >> 4, byte & 15]) {
            value.extend(char::from_digit(u32::from(digit), 16));
        }
        Self { name: ADDRESS_PARAMETER.into(), value }
    }

    /// The unicast address that its value is, in twelve hexadecimal digits; a zero may follow. `None` if it is none.
    #[must_use]
    pub fn mac(&self) -> Option<MacAddress> {
        let digits: &[u8; 12] = self.value.trim_end_matches('\0').as_bytes().try_into().ok()?;
        let mut mac = [0; 6];
        for (byte, [high, low]) in mac.iter_mut().zip(digits.as_chunks::<2>().0) {
            let digit = |digit: u8| char::from(digit).to_digit(16);
            *byte = (digit(*high)? << 4 | digit(*low)?) as u8;
        }
        Some(MacAddress(mac)).filter(|mac| mac.is_unicast())
    }

    /// Its bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let (name, value) = (utf16(&self.name), utf16(&self.value));
        let name_offset = size_of::<ParameterHeader>() as u32;
        let header = ParameterHeader {
            name_offset: name_offset.into(),
            name_len: (name.len() as u32).into(),
            kind: STRING.into(),
            value_offset: (name_offset + name.len() as u32).into(),
            value_len: (value.len() as u32).into(),
        };
        [header.as_bytes(), &name, &value].concat()
    }

    /// Takes a parameter apart.
    ///
    /// # Errors
    /// [`ObjectError`] if it is too short, of another type, or its parts lie outside.
    pub fn decode(bytes: &[u8]) -> Result<Self, ObjectError> {
        let (header, _) =
            ParameterHeader::read_from_prefix(bytes).map_err(|_| ObjectError::TooShort {
                what: "parameter",
                expected: size_of::<ParameterHeader>(),
                found: bytes.len(),
            })?;
        if header.kind.get() != STRING {
            return Err(ObjectError::ParameterType(header.kind.get()));
        }
        let text = |part, offset: U32, len: U32| {
            let (offset, len) = (offset.get(), len.get());
            let inside = bytes.get(offset as usize..).and_then(|rest| rest.get(..len as usize));
            inside.and_then(from_utf16).ok_or(ObjectError::Text {
                part,
                offset,
                len,
                found: bytes.len(),
            })
        };
        Ok(Self {
            name: text("name", header.name_offset, header.name_len)?,
            value: text("value", header.value_offset, header.value_len)?,
        })
    }
}

/// The name of a card as the administrator of the host gave it: the value of
/// [`Oid::FRIENDLY_NAME`](super::Oid::FRIENDLY_NAME), UTF-16 that ends at the first zero or with the value. `None` if it is
/// no UTF-16.
#[must_use]
pub fn friendly_name(value: &[u8]) -> Option<String> {
    let name = from_utf16(value.get(..value.len() & !1)?)?;
    name.split('\0').next().map(String::from)
}

/// The value of [`Oid::FRIENDLY_NAME`](super::Oid::FRIENDLY_NAME) for a name: 512 bytes, whatever its length. Longer
/// names are cut.
#[must_use]
pub fn encode_friendly_name(name: &str) -> Vec<u8> {
    const SIZE: usize = 512;
    let mut bytes = utf16(name);
    bytes.truncate(SIZE - 2);
    bytes.resize(SIZE, 0);
    bytes
}

fn utf16(text: &str) -> Vec<u8> {
    text.encode_utf16().flat_map(u16::to_le_bytes).collect()
}

fn from_utf16(bytes: &[u8]) -> Option<String> {
    let (units, rest) = bytes.as_chunks();
    let units = units.iter().map(|unit| u16::from_le_bytes(*unit));
    let text = char::decode_utf16(units).collect::<Result<String, _>>().ok();
    text.filter(|_| rest.is_empty())
}

/// NDIS_LINK_STATE.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct LinkStateBytes {
    /// 0: 0x80.
    kind: u8,
    /// 1: 1.
    revision: u8,
    /// 2: 40.
    size: zerocopy::little_endian::U16,
    /// 4: 1 connected, 2 disconnected.
    state: U32,
    /// 8: 1 half, 2 full.
    duplex: U32,
    /// 12: nothing.
    pad: U32,
    /// 16: bit/s.
    transmit: U64,
    /// 24: bit/s.
    receive: U64,
    /// 32: pause functions.
    pause: U32,
    /// 36: flags of autonegotiation.
    autonegotiation: U32,
}

const _: () = assert!(size_of::<LinkStateBytes>() == 40);

/// The state of a link: the value of [`Oid::LINK_STATE`](super::Oid::LINK_STATE).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LinkState {
    /// Whether there is a link.
    pub up: bool,
    /// Whether it is full duplex.
    pub full_duplex: bool,
    /// Speed of sending in bit/s.
    pub transmit: u64,
    /// Speed of receiving in bit/s.
    pub receive: u64,
}

impl LinkState {
    const CONNECTED: u32 = 1;
    const DISCONNECTED: u32 = 2;
    const HALF: u32 = 1;
    const FULL: u32 = 2;

    /// Its bytes.
    #[must_use]
    pub fn encode(&self) -> [u8; 40] {
        zerocopy::transmute!(LinkStateBytes {
            kind: 0x80,
            revision: 1,
            size: 40.into(),
            state: if self.up { Self::CONNECTED } else { Self::DISCONNECTED }.into(),
            duplex: if self.full_duplex { Self::FULL } else { Self::HALF }.into(),
            pad: 0.into(),
            transmit: self.transmit.into(),
            receive: self.receive.into(),
            pause: 0.into(),
            autonegotiation: 0.into(),
        })
    }

    /// Takes a link state apart. A newer revision may be longer.
    ///
    /// # Errors
    /// [`ObjectError`] if it is too short or of another type.
    pub fn decode(bytes: &[u8]) -> Result<Self, ObjectError> {
        let (state, _) =
            LinkStateBytes::read_from_prefix(bytes).map_err(|_| ObjectError::TooShort {
                what: "link state",
                expected: size_of::<LinkStateBytes>(),
                found: bytes.len(),
            })?;
        let LinkStateBytes { kind, revision, size, .. } = state;
        if kind != 0x80 || revision == 0 || size.get() < 40 {
            return Err(ObjectError::LinkHeader { kind, revision, size: size.get() });
        }
        Ok(Self {
            up: state.state.get() == Self::CONNECTED,
            full_duplex: state.duplex.get() == Self::FULL,
            transmit: state.transmit.get(),
            receive: state.receive.get(),
        })
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use proptest::prelude::*;
    use std::vec;

    const MAC: MacAddress = MacAddress([0, 0x15, 0x5d, 0xa, 0xb, 0xc]);

    #[test]
    fn the_parameter_of_an_address_has_the_bytes_of_the_protocol() {
        let bytes = Parameter::address(MAC).encode();
        let mut expected = vec![20, 0, 0, 0, 28, 0, 0, 0, 2, 0, 0, 0, 48, 0, 0, 0, 24, 0, 0, 0];
        for byte in b"NetworkAddress00155d0a0b0c" {
            expected.extend([*byte, 0]);
        }
        assert_eq!(bytes, expected);
        let read = Parameter { name: ADDRESS_PARAMETER.into(), value: "00155d0a0b0c".into() };
        assert_eq!(Parameter::decode(&expected), Ok(read));
    }

    #[test]
    fn addresses_are_twelve_digits_and_unicast() {
        let mac = |value: &str| Parameter { name: String::new(), value: value.into() }.mac();
        assert_eq!((mac("00155D0a0b0C"), mac("00155d0a0b0c\0")), (Some(MAC), Some(MAC)));
        assert_eq!(Parameter::address(MAC).mac(), Some(MAC));
        for wrong in
            ["", "00155d0a0b0", "00155d0a0b0g", "01155d0a0b0c", "000000000000", "\u{e9}0155d0a0b0"]
        {
            assert_eq!(mac(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn parameters_that_lie_are_refused() {
        let good = Parameter::address(MAC).encode();
        let with = |at: usize, value: u32| {
            let mut bytes = good.clone();
            bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
            Parameter::decode(&bytes).unwrap_err()
        };
        assert_eq!(
            Parameter::decode(&good[..19]),
            Err(ObjectError::TooShort { what: "parameter", expected: 20, found: 19 })
        );
        assert_eq!(with(8, 1), ObjectError::ParameterType(1));
        for (at, value) in [(0, 73), (0, u32::MAX), (4, 53), (4, u32::MAX), (4, 27)] {
            assert!(matches!(with(at, value), ObjectError::Text { part: "name", .. }));
        }
        let text = ObjectError::Text { part: "value", offset: 49, len: 24, found: 72 };
        assert_eq!(with(12, 49), text);
        let mut lone = good.clone();
        lone[20..22].copy_from_slice(&0xd800u16.to_le_bytes());
        assert!(Parameter::decode(&lone).is_err(), "half a pair is no text");
    }

    #[test]
    fn a_link_state_has_the_bytes_of_the_protocol() {
        let state = LinkState { up: true, full_duplex: true, transmit: 10_000_000_000, receive: 1 };
        let bytes = [
            0x80, 1, 40, 0, 1, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0xe4, 0xb, 0x54, 2, 0, 0, 0, 1,
            0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
        ];
        assert_eq!((state.encode(), LinkState::decode(&bytes)), (bytes, Ok(state)));
        let down = LinkState { up: false, full_duplex: false, ..state };
        assert_eq!((down.encode()[4], down.encode()[8]), (2, 1));
        assert_eq!(LinkState::decode(&down.encode()), Ok(down));
        assert_eq!(
            LinkState::decode(&bytes[..39]),
            Err(ObjectError::TooShort { what: "link state", expected: 40, found: 39 })
        );
        for (at, value) in [(0, 0x81), (1, 0), (2, 39)] {
            let mut wrong = bytes;
            wrong[at] = value;
            let header = LinkState::decode(&wrong);
            assert!(matches!(header, Err(ObjectError::LinkHeader { .. })), "{header:?}");
        }
    }

    #[test]
    fn a_name_ends_at_its_zero_and_takes_512_bytes() {
        let bytes = encode_friendly_name("Netz \u{e4}\u{1f980}");
        assert_eq!(bytes.len(), 512);
        assert_eq!(bytes[..12], [b'N', 0, b'e', 0, b't', 0, b'z', 0, b' ', 0, 0xe4, 0]);
        assert_eq!(friendly_name(&bytes).as_deref(), Some("Netz \u{e4}\u{1f980}"));
        assert_eq!(friendly_name(&[b'a', 0, b'b']).as_deref(), Some("a"));
        assert_eq!(friendly_name(&[]).as_deref(), Some(""));
        assert_eq!(friendly_name(&[0, 0xd8]), None);
        assert_eq!(encode_friendly_name(&"x".repeat(300)).len(), 512);
    }

    proptest! {
        #[test]
        fn parameters_come_back(name in ".{0,40}", value in ".{0,40}") {
            let parameter = Parameter { name, value };
            prop_assert_eq!(Parameter::decode(&parameter.encode()), Ok(parameter));
        }

        #[test]
        fn no_bytes_make_the_decoders_panic(bytes in proptest::collection::vec(any::<u8>(), 0..80)) {
            let _ = Parameter::decode(&bytes);
            let _ = LinkState::decode(&bytes);
            let _ = friendly_name(&bytes);
        }
    }
}

//! MAC addresses.

use core::fmt;
use core::str::FromStr;

/// An Ethernet address, in the order in which it is sent.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MacAddress(pub [u8; 6]);

/// A text that is not a MAC address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "expected six pairs of hexadecimal digits with colons or dashes between, such as 00:15:5d:00:00:07"
)]
pub struct MacAddressError;

impl MacAddress {
    /// All ones: every station.
    pub const BROADCAST: Self = Self([0xff; 6]);

    /// Whether it names a group of stations; broadcast is one.
    #[must_use]
    pub const fn is_multicast(self) -> bool {
        self.0[0] & 1 != 0
    }

    /// Whether it can be one station's own address: not a group, not zero.
    #[must_use]
    pub fn is_unicast(self) -> bool {
        !self.is_multicast() && self.0 != [0; 6]
    }
}

impl fmt::Display for MacAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Debug for MacAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for MacAddress {
    type Err = MacAddressError;

    fn from_str(text: &str) -> Result<Self, MacAddressError> {
        let separator = if text.contains('-') { '-' } else { ':' };
        let mut parts = text.split(separator);
        let mut bytes = [0; 6];
        for byte in &mut bytes {
            let part = parts.next().ok_or(MacAddressError)?;
            if part.len() != 2 || !part.bytes().all(|digit| digit.is_ascii_hexdigit()) {
                return Err(MacAddressError);
            }
            *byte = u8::from_str_radix(part, 16).map_err(|_| MacAddressError)?;
        }
        match parts.next() {
            None => Ok(Self(bytes)),
            Some(_) => Err(MacAddressError),
        }
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use proptest::prelude::*;
    use std::string::ToString;

    #[test]
    fn both_customs_of_writing_are_read() {
        let mac = MacAddress([0x00, 0x15, 0x5d, 0x0a, 0xff, 0x07]);
        assert_eq!("00:15:5d:0a:ff:07".parse(), Ok(mac));
        assert_eq!("00-15-5D-0A-FF-07".parse(), Ok(mac));
        assert_eq!(mac.to_string(), "00:15:5d:0a:ff:07");
    }

    #[test]
    fn anything_else_is_refused() {
        for text in [
            "",
            "00:15:5d:0a:ff",
            "00:15:5d:0a:ff:07:08",
            "00:15:5d:0a:ff:+7",
            "00:15:5d:0a:ff:0g",
            "0:15:5d:0a:ff:07",
            "00:15-5d:0a:ff:07",
            "00155d0aff07",
            "ää:15:5d:0a:ff:07",
        ] {
            assert_eq!(text.parse::<MacAddress>(), Err(MacAddressError), "{text}");
        }
    }

    #[test]
    fn groups_and_stations_are_told_apart() {
        assert!(MacAddress::BROADCAST.is_multicast());
        assert!(MacAddress([0x33, 0x33, 0, 0, 0, 1]).is_multicast());
        assert!(MacAddress([0x02, 0, 0, 0, 0, 1]).is_unicast());
        assert!(!MacAddress([0; 6]).is_unicast() && !MacAddress([0; 6]).is_multicast());
    }

    proptest! {
        #[test]
        fn what_is_printed_is_read_back(bytes: [u8; 6]) {
            let mac = MacAddress(bytes);
            prop_assert_eq!(mac.to_string().parse(), Ok(mac));
        }
    }
}

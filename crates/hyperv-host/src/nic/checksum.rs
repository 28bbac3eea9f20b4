//! Internet checksums, and where the headers lie that they are about.

use netvsc::rndis::packet::ReceiveChecksum;

pub(super) const ETHERTYPE_IPV4: [u8; 2] = [0x08, 0x00];
pub(super) const ETHERTYPE_IPV6: [u8; 2] = [0x86, 0xdd];
const ETHERTYPE_VLAN: [u8; 2] = [0x81, 0x00];
pub(super) const PROTOCOL_TCP: u8 = 6;
const PROTOCOL_UDP: u8 = 17;
const TCP_CHECKSUM: usize = 16;

/// Adds the 16-bit words of `bytes` to a sum.
pub(super) fn sum(bytes: &[u8], start: u32) -> u32 {
    // As they lie, two words at a time: the carry goes around the end, so that the order of bytes is set right afterwards. Sixteen
    // gigabytes of 0xff would overflow.
    let (pairs, rest) = bytes.as_chunks::<4>();
    let mut last = [0; 4];
    last[..rest.len()].copy_from_slice(rest);
    let native: u64 = pairs.iter().map(|pair| u64::from(u32::from_ne_bytes(*pair))).sum();
    let mut native = native + u64::from(u32::from_ne_bytes(last));
    while native > 0xffff {
        native = (native & 0xffff) + (native >> 16);
    }
    let total = u64::from(start) + u64::from(u16::from_be(native as u16));
    ((total & 0xffff_ffff) + (total >> 32)) as u32
}

/// The checksum of a sum.
pub(super) const fn fold(mut sum: u32) -> u16 {
    while sum > 0xffff {
        sum = (sum >> 16) + (sum & 0xffff);
    }
    !(sum as u16)
}

pub(super) fn put(frame: &mut [u8], at: usize, value: u16) {
    if let Some(field) = frame.get_mut(at..at + 2) {
        field.copy_from_slice(&value.to_be_bytes());
    }
}

pub(super) fn word(frame: &[u8], at: usize) -> Option<u16> {
    frame.get(at..at.checked_add(2)?)?.first_chunk().map(|bytes| u16::from_be_bytes(*bytes))
}

/// Offset of the network layer header: behind the Ethernet header and a tag, if there is one.
pub(super) fn ip_offset(frame: &[u8]) -> usize {
    if frame.get(12..14) == Some(&ETHERTYPE_VLAN) { 18 } else { 14 }
}

pub(super) fn ethertype(frame: &[u8]) -> Option<&[u8]> {
    let at = ip_offset(frame);
    frame.get(at - 2..at)
}

/// Where things lie in a frame with IPv4, or IPv6 without extension headers. All of it lies inside the frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub ip: usize,
    pub ipv6: bool,
    pub layer4: usize,
    /// End of the IP packet; what is behind it is padding.
    pub end: usize,
    pub fragment: bool,
    protocol: u8,
}

impl Place {
    pub(super) fn of(frame: &[u8]) -> Option<Self> {
        let ip = ip_offset(frame);
        let kind = ethertype(frame)?;
        let place = if kind == ETHERTYPE_IPV4 {
            let first = *frame.get(ip)?;
            let layer4 = ip + usize::from(first & 0xf) * 4;
            let end = ip + usize::from(word(frame, ip + 2)?);
            let fragment = word(frame, ip + 6)? & 0x3fff != 0;
            let protocol = *frame.get(ip + 9)?;
            let good = first >> 4 == 4 && layer4 >= ip + 20;
            good.then_some(Self { ip, ipv6: false, layer4, end, fragment, protocol })
        } else if kind == ETHERTYPE_IPV6 {
            let end = ip + 40 + usize::from(word(frame, ip + 4)?);
            let protocol = *frame.get(ip + 6)?;
            Some(Self { ip, ipv6: true, layer4: ip + 40, end, fragment: false, protocol })
        } else {
            None
        };
        place.filter(|place| place.layer4 <= place.end && place.end <= frame.len())
    }

    pub(super) const fn is_tcp(&self) -> bool {
        self.protocol == PROTOCOL_TCP && !self.fragment
    }

    const fn is_udp(&self) -> bool {
        self.protocol == PROTOCOL_UDP && !self.fragment
    }

    /// The sum over the pseudo-header.
    fn pseudo(&self, frame: &[u8]) -> u32 {
        let addresses =
            if self.ipv6 { self.ip + 8..self.ip + 40 } else { self.ip + 12..self.ip + 20 };
        let length = (self.end - self.layer4) as u32;
        sum(frame.get(addresses).unwrap_or_default(), u32::from(self.protocol) + length)
    }

    /// What is behind the IP header adds up, pseudo-header included.
    fn adds_up(&self, frame: &[u8]) -> bool {
        let bytes = frame.get(self.layer4..self.end).unwrap_or_default();
        fold(sum(bytes, self.pseudo(frame))) == 0
    }
}

/// Checks the checksums of a received frame. Says nothing of what has none.
pub(super) fn verify(frame: &[u8]) -> ReceiveChecksum {
    use ReceiveChecksum as C;
    let Some(place) = Place::of(frame) else { return C::empty() };
    let mut found = C::empty();
    if !place.ipv6 {
        let header = frame.get(place.ip..place.layer4).unwrap_or_default();
        found |= if fold(sum(header, 0)) == 0 { C::IP_GOOD } else { C::IP_BAD };
    }
    let length = place.end - place.layer4;
    if place.is_tcp() && length >= 20 {
        found |= if place.adds_up(frame) { C::TCP_GOOD } else { C::TCP_BAD };
    } else if place.is_udp() && length >= 8 {
        // Over IPv4 a sender may do without.
        let without = !place.ipv6 && word(frame, place.layer4 + 6) == Some(0);
        if !without {
            found |= if place.adds_up(frame) { C::UDP_GOOD } else { C::UDP_BAD };
        }
    }
    found
}

/// Fills in the checksum of an IPv4 header from `ip` to `end`.
pub(super) fn fill_ipv4(frame: &mut [u8], ip: usize, end: usize) {
    put(frame, ip + 10, 0);
    let value = fold(sum(frame.get(ip..end).unwrap_or_default(), 0));
    put(frame, ip + 10, value);
}

/// Fills in the checksum of the TCP segment from `tcp` to the end of the frame.
pub(super) fn fill_tcp(frame: &mut [u8], ip: usize, tcp: usize, ipv6: bool) {
    let (end, protocol) = (frame.len(), PROTOCOL_TCP);
    put(frame, tcp + TCP_CHECKSUM, 0);
    let place = Place { ip, ipv6, layer4: tcp, end, fragment: false, protocol };
    let value = fold(sum(frame.get(tcp..).unwrap_or_default(), place.pseudo(frame)));
    put(frame, tcp + TCP_CHECKSUM, value);
}

/// Puts the sum of the pseudo-header where the checksum of the TCP segment from `tcp` to the end of the frame goes.
pub(super) fn fill_pseudo(frame: &mut [u8], ip: usize, tcp: usize, ipv6: bool) {
    let (end, protocol) = (frame.len(), PROTOCOL_TCP);
    let place = Place { ip, ipv6, layer4: tcp, end, fragment: false, protocol };
    let value = !fold(place.pseudo(frame));
    put(frame, tcp + TCP_CHECKSUM, value);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nic::testing::{is_valid, tcp4, tcp6, udp4};

    #[test]
    fn good_frames_and_bad_ones_are_told_apart() {
        use ReceiveChecksum as C;
        let tcp = tcp4(7, 0x10, &[1, 2, 3]);
        assert!(is_valid(&tcp));
        assert_eq!(verify(&tcp), C::IP_GOOD | C::TCP_GOOD);
        let mut bad = tcp.clone();
        bad[54] ^= 1;
        assert_eq!(verify(&bad), C::IP_GOOD | C::TCP_BAD);
        bad[22] ^= 1;
        assert_eq!(verify(&bad), C::IP_BAD | C::TCP_BAD);
        let mut padded = tcp.clone();
        padded.extend([0xaa; 6]);
        assert_eq!(verify(&padded), C::IP_GOOD | C::TCP_GOOD, "padding does not count");
        assert_eq!(verify(&tcp6(7, 0x10, &[1])), C::TCP_GOOD);
        let mut udp = udp4(5, &[9; 30]);
        assert_eq!(verify(&udp), C::IP_GOOD | C::UDP_GOOD);
        udp[50] ^= 1;
        assert_eq!(verify(&udp), C::IP_GOOD | C::UDP_BAD);
        udp[40..42].fill(0);
        assert_eq!(verify(&udp), C::IP_GOOD, "none was sent");
        let mut tagged = tcp.clone();
        tagged.splice(12..12, [0x81, 0, 0, 7]);
        assert_eq!(verify(&tagged), C::IP_GOOD | C::TCP_GOOD);
        let mut fragment = tcp.clone();
        fragment[20] |= 0x20;
        fill_ipv4(&mut fragment, 14, 34);
        assert_eq!(verify(&fragment), C::IP_GOOD);
        assert_eq!(verify(&[2; 60]), C::empty());
        for len in 0..tcp.len() {
            assert_eq!(verify(&tcp[..len]), C::empty(), "{len} bytes");
        }
    }
}

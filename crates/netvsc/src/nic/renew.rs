//! Checksums of received frames whose fields hold anything: the host knows that the frame is right and did not sum it up.
//!
//! A frame of another guest of the same host, or one that was put together out of several, never had a checksum. The host says so by
//! both bits, "right" and "the value is invalid" (PROTOCOL §9.2): whoever hands the frame to somebody that looks at the field has to write it.

use super::cut;
use super::offload::{add, fold};
use super::types::{ETHERNET_HEADER, VLAN_TAG};
use crate::rndis::packet::ReceiveChecksum;

const TCP: u8 = 6;
const UDP: u8 = 17;
/// Bytes of an IPv6 header.
const IPV6: usize = 40;
/// Extension headers of IPv6 that say how long they are: hop-by-hop, routing, destination options.
const EXTENSIONS: [u8; 3] = [0, 43, 60];

/// What lies behind an IP header, and whose it is.
struct Layer4 {
    protocol: u8,
    /// Where the addresses are.
    addresses: core::ops::Range<usize>,
    /// Where it starts and ends.
    start: usize,
    end: usize,
}

/// Writes the checksums of IPv4, TCP and UDP that the host found right although their fields hold something else, into a frame of any
/// length. Everything else stays as it is, and so does what is no such packet.
///
/// There is one bit for a value that is invalid in TCP or UDP. In parts of a packet nothing is written: the sum would be that of the whole.
pub fn renew_checksums(frame: &mut [u8], known: ReceiveChecksum) {
    use ReceiveChecksum as C;
    let ip = known.contains(C::IP_GOOD | C::IP_VALUE_INVALID);
    let (tcp, udp) = (C::TCP_GOOD | C::TCP_VALUE_INVALID, C::UDP_GOOD | C::TCP_VALUE_INVALID);
    let (tcp, udp) = (known.contains(tcp), known.contains(udp));
    if !(ip || tcp || udp) {
        return;
    }
    let start = ETHERNET_HEADER + if cut::has_tag(frame) { VLAN_TAG } else { 0 };
    let found = match frame.get(start - 2..start) {
        Some([0x08, 0x00]) => ipv4(frame, start, ip),
        Some([0x86, 0xdd]) => ipv6(frame, start),
        _ => None,
    };
    let Some(found) = found else { return };
    match found.protocol {
        TCP if tcp => write_layer4(frame, &found, 16),
        UDP if udp => write_layer4(frame, &found, 6),
        _ => None,
    };
}

/// `write`: the header's own checksum is to be written. `None` if there is nothing behind the header that has one.
fn ipv4(frame: &mut [u8], at: usize, write: bool) -> Option<Layer4> {
    let packet = frame.get_mut(at..)?;
    let [first, _, high, low, _, _, flags, offset, _, protocol] = *packet.first_chunk()?;
    let header = usize::from(first & 15) * 4;
    if first >> 4 != 4 || header < 20 {
        return None;
    }
    if write {
        let header = packet.get_mut(..header)?;
        put(header, 10, 0);
        put(header, 10, !fold(add(0, header, false)));
    }
    let len = usize::from(u16::from_be_bytes([high, low]));
    let whole = flags & 0x3f == 0 && offset == 0;
    let (addresses, start, end) = (at + 12..at + 20, at + header, at + len);
    whole.then_some(Layer4 { protocol, addresses, start, end })
}

fn ipv6(frame: &[u8], at: usize) -> Option<Layer4> {
    let packet = frame.get(at..)?;
    let [first, _, _, _, high, low, mut protocol] = *packet.first_chunk()?;
    if first >> 4 != 6 {
        return None;
    }
    let end = at + IPV6 + usize::from(u16::from_be_bytes([high, low]));
    let mut start = at + IPV6;
    while EXTENSIONS.contains(&protocol) {
        let [following, eights] = *frame.get(start..)?.first_chunk()?;
        (protocol, start) = (following, start + (usize::from(eights) + 1) * 8);
    }
    Some(Layer4 { protocol, addresses: at + 8..at + 40, start, end })
}

/// `None` if it does not all lie in the frame.
fn write_layer4(frame: &mut [u8], found: &Layer4, field: usize) -> Option<()> {
    let Layer4 { protocol, start, end, .. } = *found;
    let mut len = end.checked_sub(start)?;
    if protocol == UDP {
        // What is behind the datagram is not part of it.
        len = len.min(usize::from(u16::from_be_bytes(*frame.get(start + 4..)?.first_chunk()?)));
    }
    let addresses = add(u32::from(protocol), frame.get(found.addresses.clone())?, false);
    let segment = frame.get_mut(start..start + len).filter(|it| it.len() >= field + 2)?;
    put(segment, field, 0);
    let sum = !fold(add(addresses + u32::try_from(len).ok()?, segment, false));
    // A UDP checksum of zero would say that there is none.
    put(segment, field, if protocol == UDP && sum == 0 { 0xffff } else { sum });
    Some(())
}

fn put(bytes: &mut [u8], at: usize, value: u16) {
    if let Some(field) = bytes.get_mut(at..).and_then(|rest| rest.first_chunk_mut()) {
        *field = value.to_be_bytes();
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use std::vec::Vec;

    use ReceiveChecksum as C;

    /// A packet of TCP or UDP with `data` bytes, and with 0xee in all checksum fields.
    fn packet(ipv6: bool, protocol: u8, data: usize) -> (Vec<u8>, usize) {
        let header = if protocol == TCP { 20 } else { 8 };
        let len = ((header + data) as u16).to_be_bytes();
        let mut frame = [2; 12].to_vec();
        if ipv6 {
            frame.extend([0x86, 0xdd, 0x60, 0, 0, 0, len[0], len[1], protocol, 64]);
            frame.extend([7; 32]);
        } else {
            let total = ((20 + header + data) as u16).to_be_bytes();
            frame.extend([8, 0, 0x45, 0, total[0], total[1], 0, 0, 0x40, 0, 64, protocol]);
            frame.extend([0xee, 0xee, 10, 0, 0, 1, 10, 0, 0, 2]);
        }
        let layer4 = frame.len();
        if protocol == TCP {
            frame
                .extend([0, 80, 0, 81, 0, 0, 0, 1, 0, 0, 0, 2, 0x50, 0x10, 1, 0, 0xee, 0xee, 0, 0]);
        } else {
            frame.extend([0, 80, 0, 81, len[0], len[1], 0xee, 0xee]);
        }
        frame.extend((0..data).map(|at| at as u8));
        (frame, layer4)
    }

    fn layer4_is_right(frame: &[u8], layer4: usize, ipv6: bool, protocol: u8) -> bool {
        let addresses = if ipv6 { layer4 - 32..layer4 } else { layer4 - 8..layer4 };
        let len = frame.len() - layer4;
        let sum = add(u32::from(protocol) + len as u32, &frame[addresses], false);
        fold(add(sum, &frame[layer4..], false)) == 0xffff
    }

    const ALL: C = C::IP_GOOD
        .union(C::IP_VALUE_INVALID)
        .union(C::TCP_GOOD)
        .union(C::UDP_GOOD)
        .union(C::TCP_VALUE_INVALID);

    #[test]
    fn fields_that_hold_nothing_are_written() {
        for (ipv6, protocol) in [(false, TCP), (false, UDP), (true, TCP), (true, UDP)] {
            for data in [0, 1, 9, 1460, 65_000] {
                let (mut frame, layer4) = packet(ipv6, protocol, data);
                assert!(!layer4_is_right(&frame, layer4, ipv6, protocol));
                renew_checksums(&mut frame, ALL);
                assert!(
                    layer4_is_right(&frame, layer4, ipv6, protocol),
                    "{ipv6} {protocol} {data}"
                );
                assert!(ipv6 || fold(add(0, &frame[14..34], false)) == 0xffff);
                // With a tag, and padding behind.
                let (mut tagged, _) = packet(ipv6, protocol, data);
                tagged.splice(12..12, [0x81, 0, 0, 7]);
                tagged.extend([0xaa; 4]);
                renew_checksums(&mut tagged, ALL);
                frame.splice(12..12, [0x81, 0, 0, 7]);
                frame.extend([0xaa; 4]);
                assert_eq!(tagged, frame);
            }
        }
    }

    #[test]
    fn only_what_is_said_to_be_right_and_invalid_is_written() {
        let (old, layer4) = packet(false, TCP, 9);
        for known in [
            C::empty(),
            C::IP_GOOD | C::TCP_GOOD,
            C::IP_VALUE_INVALID | C::TCP_VALUE_INVALID,
            C::UDP_GOOD | C::TCP_VALUE_INVALID,
        ] {
            let mut frame = old.clone();
            renew_checksums(&mut frame, known);
            assert_eq!(frame, old, "{known:?}");
        }
        let mut frame = old.clone();
        renew_checksums(&mut frame, C::IP_GOOD | C::IP_VALUE_INVALID);
        assert_eq!(frame[layer4..], old[layer4..]);
        assert_eq!(fold(add(0, &frame[14..34], false)), 0xffff);
    }

    #[test]
    fn parts_of_packets_and_what_is_none_stay_as_they_are() {
        for (ipv6, protocol) in [(false, TCP), (false, UDP), (true, TCP), (true, UDP)] {
            let (frame, layer4) = packet(ipv6, protocol, 9);
            for len in 0..frame.len() {
                let mut cut = frame[..len].to_vec();
                renew_checksums(&mut cut, ALL);
                assert_eq!(cut.get(layer4..), frame[..len].get(layer4..), "{len} bytes");
            }
            let mut part = frame.clone();
            if ipv6 {
                part[20] = 44;
            } else {
                part[20] = 0x20;
            }
            let before = part.clone();
            renew_checksums(&mut part, ALL);
            assert_eq!(part[layer4..], before[layer4..]);
        }
        // Behind an extension header it is found.
        let (mut frame, _) = packet(true, TCP, 9);
        frame.splice(54..54, [6, 0, 1, 4, 0, 0, 0, 0]);
        (frame[19], frame[20]) = (37, 0);
        renew_checksums(&mut frame, ALL);
        let sum = add(6 + 29, &frame[22..54], false);
        assert_eq!(fold(add(sum, &frame[62..], false)), 0xffff);
    }
}

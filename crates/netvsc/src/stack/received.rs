//! Checksums of received frames that a stack need not look at: the host has, or this does.

use crate::nic::offload::{add, fold};
use crate::rndis::packet::ReceiveChecksum;

const TCP: u8 = 6;
/// Bytes of an Ethernet header.
const ETHERNET: usize = 14;
/// Bytes of an IPv6 header.
const IPV6: usize = 40;
/// Extension headers of IPv6 that say how long they are: hop-by-hop, routing, destination options.
const EXTENSIONS: [u8; 3] = [0, 43, 60];
/// The one of a part of a packet.
const PART: u8 = 44;

/// Right, or right by other means while the field itself holds something else.
const IP_RIGHT: ReceiveChecksum = ReceiveChecksum::IP_GOOD.union(ReceiveChecksum::IP_VALUE_INVALID);
const TCP_RIGHT: ReceiveChecksum =
    ReceiveChecksum::TCP_GOOD.union(ReceiveChecksum::TCP_VALUE_INVALID);

/// Whether a stack that checks neither IPv4 headers nor TCP may have the frame: what the host did not find right is looked at here. A part
/// of a TCP segment may not: nobody would check the whole. What is no packet by its lengths may; stacks see that.
pub(super) fn may_pass(frame: &[u8], known: ReceiveChecksum) -> bool {
    let checked = match frame.get(12..ETHERNET) {
        Some([0x08, 0x00]) => ipv4(frame, known),
        Some([0x86, 0xdd]) => ipv6(frame, known),
        _ => return true,
    };
    checked.unwrap_or(true)
}

/// `None` if it is no packet.
fn ipv4(frame: &[u8], known: ReceiveChecksum) -> Option<bool> {
    let packet = frame.get(ETHERNET..)?;
    let header = usize::from(packet.first()? & 15) * 4;
    let bytes = packet.get(..header)?;
    let [_, _, high, low, _, _, flags, offset, _, protocol] = *bytes.first_chunk::<10>()?;
    if !known.intersects(IP_RIGHT) && fold(add(0, bytes, false)) != 0xffff {
        return Some(false);
    }
    if protocol != TCP {
        return Some(true);
    }
    if flags & 0x3f != 0 || offset != 0 {
        return Some(false);
    }
    let segment = packet.get(header..usize::from(u16::from_be_bytes([high, low])))?;
    Some(tcp(bytes.get(12..20)?, segment, known))
}

/// `None` if it is no packet.
fn ipv6(frame: &[u8], known: ReceiveChecksum) -> Option<bool> {
    let packet = frame.get(ETHERNET..)?;
    let [_, _, _, _, high, low, mut next] = *packet.first_chunk::<7>()?;
    let addresses = packet.get(8..IPV6)?;
    let len = usize::from(u16::from_be_bytes([high, low]));
    let mut rest = packet.get(IPV6..IPV6 + len)?;
    while EXTENSIONS.contains(&next) {
        let [following, eights] = *rest.first_chunk::<2>()?;
        (next, rest) = (following, rest.get((usize::from(eights) + 1) * 8..)?);
    }
    match next {
        TCP => Some(tcp(addresses, rest, known)),
        PART => Some(rest.first() != Some(&TCP)),
        _ => Some(true),
    }
}

fn tcp(addresses: &[u8], segment: &[u8], known: ReceiveChecksum) -> bool {
    if known.intersects(TCP_RIGHT) {
        return true;
    }
    let length = u32::try_from(segment.len()).unwrap_or(u32::MAX) & 0xffff;
    let sum = add(u32::from(TCP) + length, addresses, false);
    fold(add(sum, segment, false)) == 0xffff
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use crate::nic::{TxFrame, fill_checksums};
    use crate::rndis::packet::TransmitChecksum;
    use std::vec::Vec;

    const NOTHING: ReceiveChecksum = ReceiveChecksum::empty();

    /// A TCP segment of 9 bytes with the right sums.
    fn segment(ipv6: bool) -> Vec<u8> {
        let mut frame = [2; 12].to_vec();
        let layer4 = if ipv6 {
            frame.extend([0x86, 0xdd, 0x60, 0, 0, 0, 0, 29, 6, 64]);
            frame.extend([7; 32]);
            54
        } else {
            frame.extend([8, 0, 0x45, 0, 0, 49, 0, 0, 0x40, 0, 64, 6, 0, 0]);
            frame.extend([10, 0, 0, 1, 10, 0, 0, 2]);
            34
        };
        frame.extend([0, 80, 0, 81, 0, 0, 0, 1, 0, 0, 0, 2, 0x50, 0x10, 1, 0]);
        // The field holds the sum of the pseudo-header.
        let addresses = if ipv6 { 22..54 } else { 26..34 };
        let pseudo = fold(add(6 + 29, &frame[addresses], false)).to_be_bytes();
        frame.extend(pseudo);
        frame.extend([0, 0]);
        frame.extend(*b"ninebytes");
        let version = if ipv6 { TransmitChecksum::IPV6 } else { TransmitChecksum::IPV4 };
        let mut asked = version | TransmitChecksum::TCP;
        if !ipv6 {
            asked |= TransmitChecksum::IP_HEADER;
        }
        let copy = frame.clone();
        let pieces = [&copy[..]];
        let work = TxFrame { checksum: asked.at(layer4), ..TxFrame::plain(&pieces) };
        fill_checksums(&mut frame, work.checksum).expect("its headers are right");
        frame
    }

    #[test]
    fn what_nobody_checked_is_checked() {
        for ipv6 in [false, true] {
            let frame = segment(ipv6);
            assert!(may_pass(&frame, NOTHING), "{frame:?}");
            let from = if ipv6 { 22 } else { 14 };
            for at in from..frame.len() {
                let mut wrong = frame.clone();
                wrong[at] ^= 0x80;
                // A version, a length or a protocol that is wrong makes it something else, which is for the stack to see.
                let head = if ipv6 { at < 22 } else { matches!(at, 14 | 16 | 17 | 20 | 21 | 23) };
                assert!(head || !may_pass(&wrong, NOTHING), "byte {at}, IPv6 {ipv6}");
            }
        }
    }

    #[test]
    fn the_hosts_word_is_enough_for_what_it_names() {
        let mut frame = segment(false);
        let last = frame.len() - 1;
        frame[last] ^= 1;
        assert!(!may_pass(&frame, NOTHING));
        assert!(!may_pass(&frame, ReceiveChecksum::IP_GOOD | ReceiveChecksum::UDP_GOOD));
        assert!(may_pass(&frame, ReceiveChecksum::TCP_GOOD));
        assert!(may_pass(&frame, ReceiveChecksum::TCP_VALUE_INVALID));
        frame[24] ^= 1;
        assert!(!may_pass(&frame, ReceiveChecksum::TCP_GOOD));
        assert!(may_pass(&frame, ReceiveChecksum::TCP_GOOD | ReceiveChecksum::IP_GOOD));
    }

    #[test]
    fn parts_of_segments_stay_out_and_other_things_pass() {
        let mut part = segment(false);
        part[20] = 0x20;
        assert!(!may_pass(&part, ReceiveChecksum::IP_GOOD | ReceiveChecksum::TCP_GOOD));
        let mut datagram = segment(false);
        datagram[23] = 17;
        assert!(may_pass(&datagram, ReceiveChecksum::IP_GOOD), "UDP is the stack's to check");
        let mut part = segment(true);
        part[20] = 44;
        part[54] = 6;
        assert!(!may_pass(&part, NOTHING));
        part[54] = 17;
        assert!(may_pass(&part, NOTHING));
        // Behind an extension header, too.
        let mut behind = segment(true);
        behind.splice(54..54, [6, 0, 1, 4, 0, 0, 0, 0]);
        (behind[19], behind[20]) = (37, 0);
        assert!(may_pass(&behind, NOTHING));
        let last = behind.len() - 1;
        behind[last] ^= 1;
        assert!(!may_pass(&behind, NOTHING));
        for frame in [segment(false), segment(true)] {
            for len in 0..frame.len() {
                may_pass(&frame[..len], NOTHING);
            }
        }
    }
}

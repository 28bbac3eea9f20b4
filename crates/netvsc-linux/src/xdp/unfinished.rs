//! Checksums that a sender on this machine has left to a device: between two ends of a veth pair there is none.
//!
//! An AF_XDP socket is given the bytes of a frame and not what is left to be done to it. But one can see it: where the sum goes, there
//! is the sum of the pseudo-header, which is what a device starts from.

use netvsc::nic::fill_checksums;
use netvsc::rndis::packet::TransmitChecksum;

use crate::vf::{Layers, layers, pseudo_header};

const TCP: u8 = 6;
const UDP: u8 = 17;

/// Fills in the checksum of TCP or UDP if it was left open. Anything else stays as it is.
pub(super) fn finish_checksum(frame: &mut [u8]) {
    let _ = try_finish(frame);
}

fn try_finish(frame: &mut [u8]) -> Option<()> {
    let Layers { ip, ipv6, layer4: at, protocol } = layers(frame)?;
    let number = |at: usize| {
        let bytes = frame.get(at..).and_then(<[u8]>::first_chunk);
        bytes.map(|bytes| u16::from_be_bytes(*bytes))
    };
    let end = if ipv6 {
        ip + 40 + usize::from(number(ip + 4)?)
    } else {
        // A part of a datagram has no sum of its own.
        if number(ip + 6)? & 0x3fff != 0 {
            return None;
        }
        ip + usize::from(number(ip + 2)?)
    };
    let (request, field) = match protocol {
        TCP => (TransmitChecksum::TCP, at + 16),
        UDP => (TransmitChecksum::UDP, at + 6),
        _ => return None,
    };
    let left = number(field)?;
    // What is behind the packet is padding.
    let packet = frame.get_mut(..end)?;
    if left != pseudo_header(packet, at, protocol == UDP) {
        return None;
    }
    let over = if ipv6 { TransmitChecksum::IPV6 } else { TransmitChecksum::IPV4 };
    fill_checksums(packet, (over | request).at(u16::try_from(at).ok()?)).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sum_that_was_left_open_is_seen_behind_extension_headers_too() {
        for options in [0, 16] {
            let mut frame = vec![2; 12];
            frame.extend([0x86, 0xdd, 0x60, 0, 0, 0, 0, 20 + options]);
            frame.extend([if options > 0 { 60 } else { TCP }, 64]);
            frame.extend(1..=32);
            if options > 0 {
                frame.extend([TCP, 1, 1, 12]);
                frame.resize(frame.len() + 12, 0);
            }
            let at = frame.len();
            frame.extend([0; 12]);
            frame.extend([0x50, 0x10, 0, 0, 0, 0, 0, 0]);
            let pseudo = pseudo_header(&frame, at, false);
            frame[at + 16..at + 18].copy_from_slice(&pseudo.to_be_bytes());
            // Padding is no part of it.
            frame.extend([9; 6]);
            finish_checksum(&mut frame);
            let sum = u16::from_be_bytes([frame[at + 16], frame[at + 17]]);
            // What is summed up is the pseudo-header, which was in the field, and one word of TCP.
            let expected = u32::from(pseudo) + 0x5010;
            let expected = !((expected & 0xffff) + (expected >> 16)) as u16;
            assert_eq!(sum, expected, "{options} bytes of options");
        }
    }
}

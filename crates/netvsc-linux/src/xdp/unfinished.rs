//! Checksums that a sender on this machine has left to a device: between two ends of a veth pair there is none.
//!
//! An AF_XDP socket is given the bytes of a frame and not what is left to be done to it. But one can see it: where the sum goes, there
//! is the sum of the pseudo-header, which is what a device starts from.

use netvsc::nic::fill_checksums;
use netvsc::rndis::packet::TransmitChecksum;

use crate::vf::{layer4, pseudo_header};

const TCP: u8 = 6;
const UDP: u8 = 17;

/// Fills in the checksum of TCP or UDP if it was left open. Anything else stays as it is.
pub(super) fn finish_checksum(frame: &mut [u8]) {
    let _ = try_finish(frame);
}

fn try_finish(frame: &mut [u8]) -> Option<()> {
    let (at, ipv6) = layer4(frame)?;
    let number = |at: usize| {
        let bytes = frame.get(at..).and_then(<[u8]>::first_chunk);
        bytes.map(|bytes| u16::from_be_bytes(*bytes))
    };
    let (protocol, end) = if ipv6 {
        let ip = at.checked_sub(40)?;
        (*frame.get(ip + 6)?, at + usize::from(number(ip + 4)?))
    } else {
        let ip = if matches!(frame.get(12..14)?, [0x08, 0x00]) { 14 } else { 18 };
        // A part of a datagram has no sum of its own.
        if number(ip + 6)? & 0x3fff != 0 {
            return None;
        }
        (*frame.get(ip + 9)?, ip + usize::from(number(ip + 2)?))
    };
    let (request, field) = match protocol {
        TCP => (TransmitChecksum::TCP, at + 16),
        UDP => (TransmitChecksum::UDP, at + 6),
        _ => return None,
    };
    let left = number(field)?;
    // What is behind the packet is padding.
    let packet = frame.get_mut(..end)?;
    if left != pseudo_header(packet, at, protocol == UDP, ipv6) {
        return None;
    }
    let over = if ipv6 { TransmitChecksum::IPV6 } else { TransmitChecksum::IPV4 };
    fill_checksums(packet, (over | request).at(u16::try_from(at).ok()?)).ok()
}

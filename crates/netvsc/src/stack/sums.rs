//! Checksums that a stack leaves to the card.

use crate::nic::TxWork;
use crate::port::PathOffloads;
use crate::rndis::offload::ChecksumSet;
use crate::rndis::packet::TransmitChecksum;

const TCP: u8 = 6;
const UDP: u8 = 17;
/// Bytes of an Ethernet header.
const ETHERNET: usize = 14;

/// Which checksums a stack need not compute. It makes no difference between IPv4 and IPv6, so that both have to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub(super) struct Left {
    /// The IPv4 header's.
    pub(super) ipv4: bool,
    pub(super) tcp: bool,
    pub(super) udp: bool,
}

impl Left {
    pub(super) fn to(offloads: &PathOffloads) -> Self {
        let both = offloads.ipv4.transmit & offloads.ipv6.transmit;
        Self {
            ipv4: offloads.ipv4.transmit.contains(ChecksumSet::IP_HEADER),
            tcp: both.contains(ChecksumSet::TCP),
            udp: both.contains(ChecksumSet::UDP),
        }
    }

    /// What the card is asked for, for a frame of the stack; the sum of the pseudo-header is put where it belongs.
    pub(super) fn ask(self, frame: &mut [u8]) -> TxWork {
        let checksum = self.request(frame).unwrap_or(TransmitChecksum::empty());
        TxWork { checksum, ..TxWork::NONE }
    }

    fn request(self, frame: &mut [u8]) -> Option<TransmitChecksum> {
        let ipv6 = match frame.get(12..ETHERNET)? {
            [0x08, 0x00] => false,
            [0x86, 0xdd] => true,
            _ => return None,
        };
        let (layer4, protocol, addresses, version) = if ipv6 {
            let protocol = *frame.get(ETHERNET + 6)?;
            (ETHERNET + 40, protocol, ETHERNET + 8..ETHERNET + 40, TransmitChecksum::IPV6)
        } else {
            let header = usize::from(frame.get(ETHERNET)? & 15) * 4;
            // A part of a packet has no checksum of its own.
            let [high, low] = *frame.get(ETHERNET + 6..)?.first_chunk()?;
            let whole = high & 0x3f == 0 && low == 0;
            let protocol = if whole { *frame.get(ETHERNET + 9)? } else { 0 };
            let addresses = ETHERNET + 12..ETHERNET + 20;
            (ETHERNET + header, protocol, addresses, TransmitChecksum::IPV4)
        };
        let mut request = TransmitChecksum::empty();
        if self.ipv4 && !ipv6 {
            request |= TransmitChecksum::IP_HEADER;
        }
        let (kind, field) = match protocol {
            TCP if self.tcp => (TransmitChecksum::TCP, layer4 + 16),
            UDP if self.udp => (TransmitChecksum::UDP, layer4 + 6),
            _ => (TransmitChecksum::empty(), 0),
        };
        if !kind.is_empty() {
            let length = frame.len().checked_sub(layer4)? as u32;
            let words = frame.get(addresses)?.as_chunks().0.iter();
            let words = words.map(|word| u32::from(u16::from_be_bytes(*word)));
            let mut sum = words.sum::<u32>() + u32::from(protocol) + length;
            while sum > 0xffff {
                sum = (sum & 0xffff) + (sum >> 16);
            }
            *frame.get_mut(field..)?.first_chunk_mut()? = (sum as u16).to_be_bytes();
            request |= kind;
        }
        if request.is_empty() {
            return None;
        }
        Some((request | version).at(layer4 as u16))
    }
}

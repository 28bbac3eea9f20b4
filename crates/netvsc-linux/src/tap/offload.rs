//! What is left to be done to a frame of a TAP: the header that Linux shares with virtio (`struct virtio_net_hdr`).

use netvsc::nic::TxWork;
use netvsc::rndis::packet::{LargeSend, TransmitChecksum};

use crate::vf::{Layers, layers};

/// Bytes of the header: flags (u8), kind of segment (u8), bytes of all headers (u16), bytes of payload per segment (u16), where
/// the checksum starts (u16), where it goes from there (u16); numbers in the machine's order.
pub const VNET_HEADER: usize = 10;
/// Flag: the checksum is to be filled in.
const NEEDS_CHECKSUM: u8 = 1;
/// Kinds of segments: none, TCP over IPv4, TCP over IPv6. The kernel is asked for no others.
const WHOLE: u8 = 0;
const TCP4: u8 = 1;
const TCP6: u8 = 4;
/// Where checksum fields are in their headers.
const IN_TCP: u16 = 16;
const IN_UDP: u16 = 6;
/// Numbers of the protocols.
const TCP: u8 = 6;
const UDP: u8 = 17;
/// Longest header of a frame that has work left, well above any that Linux makes.
const MOST_HEADERS: usize = 1023;

/// A header that makes no sense.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OffloadError {
    /// The TAP was opened without offloads.
    #[error("it was opened without offloads")]
    None,
    /// A kind of segment that was not asked for.
    #[error("a segment of kind {0:#x}: expected TCP over IPv4 (1) or IPv6 (4)")]
    Kind(u8),
    /// A segment of no size, or one without a checksum to fill in.
    #[error(
        "segments of {size} bytes with flags {flags:#x}: expected 1 or more and a checksum to fill in"
    )]
    Segment {
        /// The size of each.
        size: u16,
        /// The flags.
        flags: u8,
    },
    /// A checksum that is not in the frame, or a segment's that is not TCP's.
    #[error(
        "a checksum from byte {start} at {offset} behind it in a frame of {len} bytes: expected it inside, and a segment's where TCP has it (16)"
    )]
    Checksum {
        /// Where it starts.
        start: u16,
        /// Where it goes, from there.
        offset: u16,
        /// Length of the frame.
        len: usize,
    },
}

/// What is left to be done to a frame.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Offloaded {
    /// Nothing.
    #[default]
    Done,
    /// The TCP or UDP checksum, whose field holds the sum of the pseudo-header.
    Checksum {
        /// Where the TCP or UDP header starts.
        layer4: u16,
        /// UDP, otherwise TCP.
        udp: bool,
    },
    /// A TCP segment is to be cut.
    Segments {
        /// Where the TCP header starts.
        layer4: u16,
        /// Bytes of all headers.
        headers: u16,
        /// Bytes of payload in each piece.
        size: u16,
        /// Over IPv6, otherwise over IPv4.
        ipv6: bool,
    },
}

impl Offloaded {
    /// Reads the header of a frame.
    ///
    /// The kernel may leave any sum to an interface that computes any (`NETIF_F_HW_CSUM`): that of a tunnel, or of what is within
    /// one. A card computes those of TCP and UDP right behind the IP header; all others are computed here.
    pub(super) fn take(header: [u8; VNET_HEADER], frame: &mut [u8]) -> Result<Self, OffloadError> {
        let [flags, kind, .., e, f, g, h] = header;
        let (start, offset) = (u16::from_ne_bytes([e, f]), u16::from_ne_bytes([g, h]));
        if flags & NEEDS_CHECKSUM == 0 || kind != WHOLE || is_a_cards(frame, start, offset) {
            return Self::decode(header, frame.len());
        }
        let wrong = OffloadError::Checksum { start, offset, len: frame.len() };
        write_sum(frame, start.into(), offset.into()).map(|()| Self::Done).ok_or(wrong)
    }

    /// Reads the header of a frame of `len` bytes.
    fn decode(header: [u8; VNET_HEADER], len: usize) -> Result<Self, OffloadError> {
        let [flags, kind, a, b, c, d, e, f, g, h] = header;
        let headers = u16::from_ne_bytes([a, b]);
        let size = u16::from_ne_bytes([c, d]);
        let (start, offset) = (u16::from_ne_bytes([e, f]), u16::from_ne_bytes([g, h]));
        let ipv6 = match kind {
            WHOLE if flags & NEEDS_CHECKSUM == 0 => return Ok(Self::Done),
            WHOLE | TCP4 => false,
            TCP6 => true,
            kind => return Err(OffloadError::Kind(kind)),
        };
        if kind != WHOLE && (size == 0 || flags & NEEDS_CHECKSUM == 0) {
            return Err(OffloadError::Segment { size, flags });
        }
        let wrong = OffloadError::Checksum { start, offset, len };
        let field = usize::from(start) + usize::from(offset);
        let inside = field + 2 <= len && field <= MOST_HEADERS;
        match (kind, offset) {
            _ if !inside => Err(wrong),
            (WHOLE, IN_TCP | IN_UDP) => Ok(Self::Checksum { layer4: start, udp: offset == IN_UDP }),
            (TCP4 | TCP6, IN_TCP) => Ok(Self::Segments { layer4: start, headers, size, ipv6 }),
            _ => Err(wrong),
        }
    }

    /// The header.
    pub(super) fn encode(&self) -> [u8; VNET_HEADER] {
        let (flags, kind, headers, size, start, offset) = match *self {
            Self::Done => (0, WHOLE, 0, 0, 0, 0),
            Self::Checksum { layer4, udp } => {
                (NEEDS_CHECKSUM, WHOLE, 0, 0, layer4, if udp { IN_UDP } else { IN_TCP })
            }
            Self::Segments { layer4, headers, size, ipv6 } => {
                let kind = if ipv6 { TCP6 } else { TCP4 };
                (NEEDS_CHECKSUM, kind, headers, size, layer4, IN_TCP)
            }
        };
        let [a, b] = u16::to_ne_bytes(headers);
        let [c, d] = u16::to_ne_bytes(size);
        let [e, f] = u16::to_ne_bytes(start);
        let [g, h] = u16::to_ne_bytes(offset);
        [flags, kind, a, b, c, d, e, f, g, h]
    }

    /// The same as a request to a card, for a frame with these bytes.
    #[must_use]
    pub fn work(&self, frame: &[u8]) -> TxWork {
        match *self {
            Self::Done => TxWork::NONE,
            Self::Checksum { layer4, udp } => {
                let over =
                    if is_ipv6(frame) { TransmitChecksum::IPV6 } else { TransmitChecksum::IPV4 };
                let field = if udp { TransmitChecksum::UDP } else { TransmitChecksum::TCP };
                TxWork { checksum: (over | field).at(layer4), ..TxWork::NONE }
            }
            Self::Segments { layer4, size, ipv6, .. } => {
                let large_send = Some(LargeSend { segment: size.into(), layer4, ipv6 });
                TxWork { large_send, ..TxWork::NONE }
            }
        }
    }
}

/// Whether a sum is that of the TCP or UDP that IP carries.
fn is_a_cards(frame: &[u8], start: u16, offset: u16) -> bool {
    let Some(Layers { ip, ipv6, layer4, protocol }) = layers(frame) else { return false };
    let fits = matches!((protocol, offset), (TCP, IN_TCP) | (UDP, IN_UDP));
    let extended = ipv6 && layer4 > ip + 40;
    fits && !extended && layer4 == usize::from(start)
}

/// Writes the sum of all from `start` on where it belongs. What is there already, the sum of a pseudo-header, counts.
fn write_sum(frame: &mut [u8], start: usize, offset: usize) -> Option<()> {
    let summed = frame.get_mut(start..)?;
    let words = summed.chunks(2).map(|word| match *word {
        [high, low] => u64::from(u16::from_be_bytes([high, low])),
        [high] => u64::from(high) << 8,
        _ => 0,
    });
    let mut sum: u64 = words.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    // Zero would say that there is none.
    let sum = match !(sum as u16) {
        0 => 0xffff,
        sum => sum,
    };
    *summed.get_mut(offset..)?.first_chunk_mut()? = sum.to_be_bytes();
    Some(())
}

/// Whether a frame is IPv6, with or without a tag.
fn is_ipv6(frame: &[u8]) -> bool {
    match frame.get(12..14) {
        Some([0x81, 0x00]) => frame.get(16..18) == Some(&[0x86, 0xdd]),
        kind => kind == Some(&[0x86, 0xdd]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn header(flags: u8, kind: u8, numbers: [u16; 4]) -> [u8; VNET_HEADER] {
        let mut bytes = vec![flags, kind];
        bytes.extend(numbers.iter().flat_map(|number| number.to_ne_bytes()));
        bytes.try_into().unwrap()
    }

    #[test]
    fn headers_lie_as_the_kernel_has_them() {
        let segments = Offloaded::Segments { layer4: 34, headers: 66, size: 1448, ipv6: false };
        let sums = Offloaded::Checksum { layer4: 54, udp: true };
        for (what, bytes) in [
            (Offloaded::Done, header(0, 0, [0, 0, 0, 0])),
            (segments, header(1, 1, [66, 1448, 34, 16])),
            (sums, header(1, 0, [0, 0, 54, 6])),
        ] {
            assert_eq!(what.encode(), bytes);
            assert_eq!(Offloaded::decode(bytes, 2000), Ok(what));
        }
        // "The checksum was looked at already" leaves nothing to do.
        assert_eq!(Offloaded::decode(header(2, 0, [9, 9, 9, 9]), 60), Ok(Offloaded::Done));
    }

    #[test]
    fn what_was_not_asked_for_is_an_error() {
        let refused = |flags, kind, numbers, len| {
            Offloaded::decode(header(flags, kind, numbers), len).unwrap_err()
        };
        assert_eq!(refused(1, 3, [0, 8, 34, 6], 100), OffloadError::Kind(3));
        assert_eq!(refused(1, 0x81, [0, 8, 34, 16], 100), OffloadError::Kind(0x81));
        let segment = |size, flags| OffloadError::Segment { size, flags };
        assert_eq!(refused(1, 1, [66, 0, 34, 16], 100), segment(0, 1));
        assert_eq!(refused(0, 4, [66, 9, 34, 16], 100), segment(9, 0));
        for (kind, start, offset, len) in [
            (0, 34, 7, 100),
            (1, 34, 6, 100),
            (4, 34, 16, 51),
            (0, u16::MAX, 16, 100),
            (0, 2000, 16, 9000),
        ] {
            let wrong = OffloadError::Checksum { start, offset, len };
            assert_eq!(refused(1, kind, [66, 9, start, offset], len), wrong);
        }
    }

    #[test]
    fn a_card_is_asked_for_what_is_left() {
        let mut frame = [0; 100];
        assert!(Offloaded::Done.work(&frame).is_none());
        let udp = Offloaded::Checksum { layer4: 34, udp: true };
        let expected = TransmitChecksum::IPV4 | TransmitChecksum::UDP;
        assert_eq!(udp.work(&frame).checksum, expected.at(34));
        frame[12..14].copy_from_slice(&[0x86, 0xdd]);
        let tcp = Offloaded::Checksum { layer4: 54, udp: false };
        let expected = TransmitChecksum::IPV6 | TransmitChecksum::TCP;
        assert_eq!(tcp.work(&frame).checksum, expected.at(54));
        frame[12..18].copy_from_slice(&[0x81, 0, 0, 7, 0x86, 0xdd]);
        let tagged = Offloaded::Checksum { layer4: 58, udp: false };
        assert_eq!(tagged.work(&frame).checksum, expected.at(58));
        let cut = Offloaded::Segments { layer4: 54, headers: 86, size: 1428, ipv6: true };
        let expected = LargeSend { segment: 1428, layer4: 54, ipv6: true };
        assert_eq!(cut.work(&frame).large_send, Some(expected));
        assert!(cut.work(&frame).checksum.is_empty());
    }

    /// The sum of these words and zero bytes, inverted, as it is written.
    fn sum_of(words: &[u16]) -> [u8; 2] {
        let sum: u32 = words.iter().copied().map(u32::from).sum();
        (!(((sum >> 16) + sum) as u16)).to_be_bytes()
    }

    #[test]
    fn sums_that_no_card_computes_are_written_here() {
        // GRE with a checksum: IP protocol 47, the sum four bytes behind its header.
        let mut gre = vec![0; 70];
        gre[12..14].copy_from_slice(&[0x08, 0]);
        (gre[14], gre[23]) = (0x45, 47);
        gre[34..38].copy_from_slice(&[0x80, 0, 0x08, 0]);
        gre[69] = 9;
        assert_eq!(Offloaded::take(header(1, 0, [0, 0, 34, 4]), &mut gre), Ok(Offloaded::Done));
        assert_eq!(gre[38..40], sum_of(&[0x8000, 0x0800, 9]));
        // TCP within VXLAN: what lies behind the outer IP header is UDP.
        let mut within = vec![0; 130];
        within[12..14].copy_from_slice(&[0x08, 0]);
        (within[14], within[23]) = (0x45, 17);
        // The inner pseudo-header's sum counts. One byte is left over at the end.
        within[100..102].copy_from_slice(&[0x12, 0x34]);
        within.push(7);
        let left = Offloaded::take(header(1, 0, [0, 0, 84, 16]), &mut within);
        assert_eq!(left, Ok(Offloaded::Done));
        assert_eq!(within[100..102], sum_of(&[0x1234, 0x0700]));
        // The outer UDP's own is the card's, and so is TCP's behind a tag.
        let card = Offloaded::take(header(1, 0, [0, 0, 34, 6]), &mut within);
        assert_eq!(card, Ok(Offloaded::Checksum { layer4: 34, udp: true }));
        let mut tagged = vec![0; 100];
        tagged[12..18].copy_from_slice(&[0x81, 0, 0, 7, 0x86, 0xdd]);
        tagged[24] = 6;
        let card = Offloaded::take(header(1, 0, [0, 0, 58, 16]), &mut tagged);
        assert_eq!(card, Ok(Offloaded::Checksum { layer4: 58, udp: false }));
        // None says that there is no sum; beside the frame there is no place.
        let mut all = vec![0xff; 40];
        assert_eq!(Offloaded::take(header(1, 0, [0, 0, 34, 4]), &mut all), Ok(Offloaded::Done));
        assert_eq!(all[38..], [0xff, 0xff]);
        for (start, offset) in [(34, 5), (41, 0), (u16::MAX, u16::MAX)] {
            let wrong = OffloadError::Checksum { start, offset, len: 40 };
            assert_eq!(Offloaded::take(header(1, 0, [0, 0, start, offset]), &mut all), Err(wrong));
        }
    }

    proptest! {
        #[test]
        fn whatever_a_header_holds_is_understood_or_refused(
            bytes in any::<[u8; VNET_HEADER]>(), len in 0_usize..70_000,
        ) {
            if let Ok(left) = Offloaded::decode(bytes, len) {
                prop_assert_eq!(Offloaded::decode(left.encode(), len), Ok(left));
            }
        }
    }
}

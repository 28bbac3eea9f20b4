//! Frames as a packet socket has them: with a header that says what is left to be done, and their tag apart.

use netvsc::nic::{Cut, fill_checksums};
use netvsc::rndis::packet::{LargeSend, TransmitChecksum};

use super::batch::pseudo_header;
use super::request::Along;

/// Bytes of `struct virtio_net_hdr`.
pub(super) const HEADER: usize = 10;

/// Bytes of both addresses, behind which a tag goes.
pub(super) const ADDRESSES: usize = 12;
/// Bytes of a tag.
pub(super) const TAG: usize = 4;

/// A frame's status says that there is a tag, and that its kind is told.
const TAG_VALID: u32 = 0x10;
const TAG_KIND_VALID: u32 = 0x40;
/// 802.1Q.
const TAG_KIND: u16 = 0x8100;

const NEEDS_CHECKSUM: u8 = 1;
/// The kind of a segment that is to be cut; the highest bit says that it has signs of congestion.
const KIND: u8 = 0x7f;
const WHOLE: u8 = 0;
const TCP4: u8 = 1;
const TCP6: u8 = 4;
/// Where the checksum is in TCP's and UDP's headers.
const IN_TCP: u16 = 16;
const IN_UDP: u16 = 6;
/// TCP behind IP.
const TCP: u8 = 6;
/// Extension headers of IPv6, and how many are stepped over: the kernel makes one of each kind, and options of the destination twice.
const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const DESTINATION: u8 = 60;
const MOST_EXTENSIONS: usize = 8;

/// A tag that the kernel has taken out of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Tag {
    /// 0x8100 or 0x88a8.
    pub(super) kind: u16,
    /// Priority, drop bit and VLAN.
    pub(super) control: u16,
}

impl Tag {
    /// The tag of a frame with this status.
    pub(super) fn of(status: u32, kind: u16, control: u16) -> Option<Self> {
        let kind = if status & TAG_KIND_VALID == 0 { TAG_KIND } else { kind };
        (status & TAG_VALID != 0).then_some(Self { kind, control })
    }

    /// The four bytes of it.
    pub(super) fn bytes(self) -> [u8; 4] {
        let [a, b] = self.kind.to_be_bytes();
        let [c, d] = self.control.to_be_bytes();
        [a, b, c, d]
    }
}

impl Along {
    /// The tag that was taken out of the frame.
    pub(super) fn tag(&self) -> Option<Tag> {
        Tag::of(self.status, self.tag_kind, self.tag)
    }
}

/// A header that asks for what cannot be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Unfinished;

/// What finished frames go through.
pub(super) struct Finish<'a> {
    /// Longest frame that may go on.
    pub(super) most: usize,
    /// Segments go on as they are, with how they are to be cut.
    pub(super) whole: bool,
    /// Where pieces are put together.
    pub(super) piece: &'a mut Vec<u8>,
}

/// Does what a header leaves to be done to a frame, and hands it to `sink`, in pieces if it is to be cut and may not stay whole. `tag`
/// is the length of a tag that was put into it after the header was made. The number of frames, each piece being one.
pub(super) fn finish(
    header: [u8; HEADER],
    frame: &mut [u8],
    tag: usize,
    with: Finish<'_>,
    sink: &mut dyn FnMut(&[u8], Option<LargeSend>),
) -> Result<usize, Unfinished> {
    let Finish { most, whole, piece } = with;
    let [flags, kind, _, _, c, d, e, f, g, h] = header;
    let size = u16::from_ne_bytes([c, d]);
    let start = usize::from(u16::from_ne_bytes([e, f])) + tag;
    let field = u16::from_ne_bytes([g, h]);
    match kind & KIND {
        WHOLE => {
            if flags & NEEDS_CHECKSUM != 0 {
                let layer4 = match field {
                    IN_TCP => TransmitChecksum::TCP,
                    IN_UDP => TransmitChecksum::UDP,
                    _ => return Err(Unfinished),
                };
                let over = match layer3(frame).ok_or(Unfinished)? {
                    (_, true) => TransmitChecksum::IPV6,
                    (_, false) => TransmitChecksum::IPV4,
                };
                let at = u16::try_from(start).map_err(|_| Unfinished)?;
                fill_checksums(frame, (over | layer4).at(at)).map_err(|_| Unfinished)?;
            }
            if frame.len() > most {
                return Err(Unfinished);
            }
            sink(frame, None);
            Ok(1)
        }
        TCP4 | TCP6 => {
            let ipv6 = kind & KIND == TCP6;
            let found = layers(frame).ok_or(Unfinished)?;
            let elsewhere = flags & NEEDS_CHECKSUM != 0 && found.layer4 != start;
            if found.ipv6 != ipv6 || found.protocol != TCP || elsewhere {
                return Err(Unfinished);
            }
            let layer4 = u16::try_from(found.layer4).map_err(|_| Unfinished)?;
            let send = LargeSend { segment: size.into(), layer4, ipv6 };
            let cut = Cut::new(frame, send).map_err(|_| Unfinished)?;
            if cut.longest(frame.len()) > most {
                return Err(Unfinished);
            }
            let count = cut.count(frame.len());
            if whole && count > 1 {
                if flags & NEEDS_CHECKSUM == 0 {
                    // It was there and right; whoever cuts the segment starts from the sum of the pseudo-header.
                    let sum = pseudo_header(frame, layer4.into(), false).to_be_bytes();
                    let place = usize::from(layer4) + usize::from(IN_TCP);
                    if let Some(place) = frame.get_mut(place..place + 2) {
                        place.copy_from_slice(&sum);
                    }
                }
                sink(frame, Some(send));
                return Ok(count);
            }
            for number in 0..count {
                cut.write(frame, number, piece);
                sink(piece, None);
            }
            Ok(count)
        }
        _ => Err(Unfinished),
    }
}

/// Where the IP header starts, and whether it is IPv6.
pub(crate) fn layer3(frame: &[u8]) -> Option<(usize, bool)> {
    let kind = |at: usize| frame.get(at..at + 2);
    let at = if matches!(kind(12), Some([0x81, 0x00] | [0x88, 0xa8])) { 16 } else { 12 };
    match kind(at)? {
        [0x08, 0x00] => Some((at + 2, false)),
        [0x86, 0xdd] => Some((at + 2, true)),
        _ => None,
    }
}

/// Where the headers of a packet are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Layers {
    /// Where IP's starts.
    pub(crate) ip: usize,
    /// Whether that is IPv6.
    pub(crate) ipv6: bool,
    /// Where the one behind IP starts, options and extension headers included.
    pub(crate) layer4: usize,
    /// What that is.
    pub(crate) protocol: u8,
}

/// Where the headers are. Of IPv6's extension headers those are stepped over behind which the kernel cuts segments: options hop by hop,
/// routing, and options of the destination.
pub(crate) fn layers(frame: &[u8]) -> Option<Layers> {
    let (ip, ipv6) = layer3(frame)?;
    if !ipv6 {
        let layer4 = ip + usize::from(frame.get(ip)? & 0xf) * 4;
        return Some(Layers { ip, ipv6, layer4, protocol: *frame.get(ip + 9)? });
    }
    let (mut protocol, mut layer4) = (*frame.get(ip + 6)?, ip + 40);
    for _ in 0..MOST_EXTENSIONS {
        if !matches!(protocol, HOP_BY_HOP | ROUTING | DESTINATION) {
            break;
        }
        let [next, eighths] = *frame.get(layer4..)?.first_chunk()?;
        (protocol, layer4) = (next, layer4 + (usize::from(eighths) + 1) * 8);
    }
    Some(Layers { ip, ipv6, layer4, protocol })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A TCP segment over IPv4 with so much payload and a sum of the pseudo-header only.
    fn segment(payload: usize) -> Vec<u8> {
        let mut frame = vec![2; 12];
        frame.extend([0x08, 0]);
        let len = (40 + payload) as u16;
        let mut ip = vec![0x45, 0, 0, 0, 0, 7, 0x40, 0, 64, 6, 0, 0, 192, 0, 2, 1, 192, 0, 2, 2];
        ip[2..4].copy_from_slice(&len.to_be_bytes());
        frame.extend(ip);
        frame.extend([0x13, 0x88, 0, 80, 0, 0, 0, 1, 0, 0, 0, 0, 0x50, 0x18, 1, 0, 0, 0, 0, 0]);
        frame.extend((0..payload).map(|byte| byte as u8));
        // 192.0.2.1 + 192.0.2.2 + protocol + length.
        let sum = 0x1_8403 + 6 + (20 + payload as u32);
        let sum = ((sum & 0xffff) + (sum >> 16)) as u16;
        frame[50..52].copy_from_slice(&sum.to_be_bytes());
        frame
    }

    fn header(flags: u8, kind: u8, size: u16, start: u16, field: u16) -> [u8; HEADER] {
        let mut bytes = [flags, kind, 0, 0, 0, 0, 0, 0, 0, 0];
        bytes[4..6].copy_from_slice(&size.to_ne_bytes());
        bytes[6..8].copy_from_slice(&start.to_ne_bytes());
        bytes[8..10].copy_from_slice(&field.to_ne_bytes());
        bytes
    }

    fn finished(
        header: [u8; HEADER],
        frame: &[u8],
        tag: usize,
    ) -> Result<Vec<Vec<u8>>, Unfinished> {
        let (mut frame, mut piece, mut out) = (frame.to_vec(), Vec::new(), Vec::new());
        let with = Finish { most: 1518, whole: false, piece: &mut piece };
        let count = finish(header, &mut frame, tag, with, &mut |frame, send| {
            assert_eq!(send, None);
            out.push(frame.to_vec());
        })?;
        assert_eq!(count, out.len());
        Ok(out)
    }

    /// The sum over pseudo-header and TCP segment, which is 0xffff if the checksum is right.
    fn sum(frame: &[u8], ip: usize) -> u32 {
        let tcp = &frame[ip + 20..];
        let mut bytes = frame[ip + 12..ip + 20].to_vec();
        bytes.extend([0, 6]);
        bytes.extend((tcp.len() as u16).to_be_bytes());
        bytes.extend(tcp);
        if bytes.len() % 2 == 1 {
            bytes.push(0);
        }
        let mut sum: u32 =
            bytes.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
        while sum > 0xffff {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        sum
    }

    #[test]
    fn a_whole_frame_goes_on_as_it_is() {
        let frame = segment(10);
        // "The checksum was looked at already" leaves nothing to do.
        for flags in [0, 2] {
            assert_eq!(finished(header(flags, 0, 0, 0, 0), &frame, 0), Ok(vec![frame.clone()]));
        }
    }

    #[test]
    fn checksums_that_were_left_open_are_filled_in_behind_a_tag_too() {
        let frame = segment(33);
        let plain = finished(header(1, 0, 0, 34, 16), &frame, 0).unwrap();
        assert_eq!((plain.len(), sum(&plain[0], 14)), (1, 0xffff));
        let mut tagged = frame;
        tagged.splice(12..12, Tag { kind: 0x8100, control: 5 }.bytes());
        let tagged = finished(header(1, 0, 0, 34, 16), &tagged, 4).unwrap();
        assert_eq!((tagged.len(), sum(&tagged[0], 18)), (1, 0xffff));
        assert_eq!(tagged[0][12..16], [0x81, 0, 0, 5]);
    }

    #[test]
    fn segments_are_cut_whether_or_not_their_checksum_is_open() {
        let frame = segment(3000);
        for (flags, kind) in [(1, 1), (2, 1), (0, 0x81)] {
            let pieces = finished(header(flags, kind, 1448, 34, 16), &frame, 0).unwrap();
            let lengths: Vec<_> = pieces.iter().map(Vec::len).collect();
            assert_eq!(lengths, [54 + 1448, 54 + 1448, 54 + 104]);
            assert!(pieces.iter().all(|piece| sum(piece, 14) == 0xffff));
            let payload: Vec<u8> = pieces.iter().flat_map(|piece| piece[54..].to_vec()).collect();
            assert_eq!(payload, frame[54..]);
        }
    }

    #[test]
    fn segments_stay_whole_for_who_takes_them_so_and_are_one_frame_for_each_piece() {
        let whole = segment(3000);
        for (flags, start) in [(1, 34), (2, 0)] {
            let (mut frame, mut piece, mut out) = (segment(3000), Vec::new(), Vec::new());
            if flags == 2 {
                // A checksum that is there already makes way for the sum that cutting starts from.
                frame[50..52].fill(0x11);
            }
            let with = Finish { most: 1518, whole: true, piece: &mut piece };
            let header = header(flags, 1, 1448, start, 16);
            let count = finish(header, &mut frame, 0, with, &mut |frame, send| {
                out.push((frame.to_vec(), send));
            });
            let send = LargeSend { segment: 1448, layer4: 34, ipv6: false };
            assert_eq!((count, &out), (Ok(3), &vec![(whole.clone(), Some(send))]));
        }
        // One that is no longer than a frame is a frame.
        let (mut frame, mut piece, mut lengths) = (segment(1000), Vec::new(), Vec::new());
        let with = Finish { most: 1518, whole: true, piece: &mut piece };
        let count = finish(header(1, 1, 1448, 34, 16), &mut frame, 0, with, &mut |frame, send| {
            lengths.push((sum(frame, 14), send));
        });
        assert_eq!((count, lengths), (Ok(1), vec![(0xffff, None)]));
    }

    /// The same over IPv6 with options of the destination before TCP.
    fn segment_behind_options(payload: usize) -> Vec<u8> {
        let mut frame = vec![2; 12];
        frame.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
        frame.extend((28 + payload as u16).to_be_bytes());
        frame.extend([DESTINATION, 64]);
        for host in [1, 2] {
            frame.extend([0x20, 1, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, host]);
        }
        frame.extend([TCP, 0, 1, 4, 0, 0, 0, 0]);
        frame.extend([0x13, 0x88, 0, 80, 0, 0, 0, 1, 0, 0, 0, 0, 0x50, 0x18, 1, 0, 0, 0, 0, 0]);
        frame.extend((0..payload).map(|byte| byte as u8));
        // 2001:db8::1 + 2001:db8::2 + protocol + length.
        let sum = 2 * (0x2001 + 0x0db8) + 3 + 6 + (20 + payload as u32);
        let sum = ((sum & 0xffff) + (sum >> 16)) as u16;
        frame[78..80].copy_from_slice(&sum.to_be_bytes());
        frame
    }

    /// Whether the checksum of such a segment is right.
    fn is_right_behind_options(frame: &[u8]) -> bool {
        let len = (frame.len() - 62) as u16;
        let mut bytes = frame[22..54].to_vec();
        bytes.extend([0, TCP]);
        bytes.extend(len.to_be_bytes());
        bytes.extend(&frame[62..]);
        bytes.resize(bytes.len().next_multiple_of(2), 0);
        let words = bytes.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]])));
        let sum: u32 = words.sum();
        (sum & 0xffff) + (sum >> 16) == 0xffff && frame[18..20] == (len + 8).to_be_bytes()
    }

    #[test]
    fn segments_behind_extension_headers_are_cut_and_stay_whole_like_others() {
        let whole = segment_behind_options(3000);
        for (flags, start) in [(1, 62), (2, 0)] {
            let pieces = finished(header(flags, 4, 1428, start, 16), &whole, 0).unwrap();
            let lengths: Vec<_> = pieces.iter().map(Vec::len).collect();
            assert_eq!(lengths, [82 + 1428, 82 + 1428, 82 + 144]);
            assert!(pieces.iter().all(|piece| is_right_behind_options(piece)));
            let (mut frame, mut piece, mut out) = (whole.clone(), Vec::new(), Vec::new());
            if flags == 2 {
                frame[78..80].fill(0x11);
            }
            let with = Finish { most: 1518, whole: true, piece: &mut piece };
            let header = header(flags, 4, 1428, start, 16);
            let count = finish(header, &mut frame, 0, with, &mut |frame, send| {
                out.push((frame.to_vec(), send));
            });
            let send = LargeSend { segment: 1428, layer4: 62, ipv6: true };
            assert_eq!((count, &out), (Ok(3), &vec![(whole.clone(), Some(send))]));
        }
        // UDP there, and headers without end.
        for (at, byte) in [(54, 17), (55, 255)] {
            let mut frame = whole.clone();
            frame[at] = byte;
            assert_eq!(finished(header(2, 4, 1428, 0, 16), &frame, 0), Err(Unfinished));
        }
        let mut endless = whole.clone();
        endless[54..].fill(0);
        assert_eq!(finished(header(2, 4, 1428, 0, 16), &endless, 0), Err(Unfinished));
    }

    #[test]
    fn what_cannot_be_done_is_refused() {
        let frame = segment(3000);
        for header in [
            header(0, 0, 0, 0, 0),      // longer than may go on
            header(1, 1, 2000, 34, 16), // so are its pieces
            header(1, 5, 1448, 34, 6),  // UDP
            header(1, 4, 1448, 34, 16), // no IPv6
            header(1, 1, 1448, 38, 16), // TCP elsewhere
            header(1, 1, 0, 34, 16),    // pieces of nothing
        ] {
            assert_eq!(finished(header, &frame, 0), Err(Unfinished), "{header:?}");
        }
        assert_eq!(finished(header(1, 0, 0, 34, 7), &segment(9), 0), Err(Unfinished));
        assert_eq!(finished(header(1, 0, 0, 9000, 16), &segment(9), 0), Err(Unfinished));
        assert_eq!(finished(header(1, 1, 9, 34, 16), &[0; 20], 0), Err(Unfinished));
    }

    proptest::proptest! {
        #[test]
        fn no_header_makes_it_fail(
            header in proptest::num::u8::ANY,
            rest in proptest::array::uniform9(proptest::num::u8::ANY),
            len in 0_usize..4000,
        ) {
            let mut bytes = [header; HEADER];
            bytes[1..].copy_from_slice(&rest);
            if let Ok(frames) = finished(bytes, &segment(4000)[..len], 0) {
                proptest::prop_assert!(frames.iter().all(|frame| frame.len() <= 1518));
            }
        }
    }
}

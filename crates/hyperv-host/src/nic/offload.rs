//! What a host's NIC does to frames on the way out: checksums and the cutting of large sends.

use thiserror::Error;

use super::checksum::{
    ETHERTYPE_IPV4, ETHERTYPE_IPV6, PROTOCOL_TCP, ethertype, fill_ipv4, fill_pseudo, fill_tcp,
    fold, ip_offset, put, sum, word,
};
use crate::switch::Uncut;

const TCP_FIN_PSH: u8 = 0x09;
const TCP_CWR: u8 = 0x80;

/// An offload request that the frame does not bear out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum OffloadError {
    /// The layer 4 header does not lie inside the frame.
    #[error("layer 4 header at byte {offset} does not lie within a frame of {frame} bytes")]
    HeaderOffset {
        /// Where the request says the header is.
        offset: usize,
        /// Length of the frame.
        frame: usize,
    },
    /// A large send without segment size.
    #[error("large send with a segment size of 0")]
    SegmentSize,
    /// A large send of something that is not TCP over the IP version requested.
    #[error("large send of a frame that is not the TCP over IP that the request says")]
    NotTcp,
    /// A large send longer than the NIC takes, which is 0 bytes if it takes none.
    #[error("large send of {bytes} bytes of payload, at most {most} are taken")]
    TooLarge {
        /// Bytes of payload.
        bytes: usize,
        /// Most that are taken.
        most: usize,
    },
    /// A checksum that the NIC does not compute.
    #[error("a checksum was asked for that this host does not offer to compute")]
    NotOffered,
    /// Headers longer than those that the NIC works on.
    #[error(
        "work was asked for on headers with IP options ({ip}) or TCP options ({tcp}), which this host does not offer"
    )]
    Options {
        /// IPv4 options or IPv6 extension headers.
        ip: bool,
        /// TCP options.
        tcp: bool,
    },
    /// A large send that need not be cut.
    #[error("large send that makes {count} segments, at least {least} are wanted")]
    Segments {
        /// How many it makes.
        count: usize,
        /// Fewest that are wanted.
        least: u32,
    },
}

/// A checksum request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ChecksumRequest {
    /// Compute the IPv4 header checksum.
    pub ipv4_header: bool,
    /// Compute the TCP checksum; the field holds the sum over the pseudo-header.
    pub tcp: bool,
    /// Compute the UDP checksum; the field holds the sum over the pseudo-header.
    pub udp: bool,
    /// Offset of the layer 4 header from the start of the frame; 0 to find it.
    pub layer4_offset: usize,
}

/// A large send request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LargeSend {
    /// Bytes of payload per segment.
    pub segment: usize,
    /// Offset of the TCP header from the start of the frame.
    pub tcp_offset: usize,
    /// Over IPv6 and not IPv4.
    pub ipv6: bool,
}

/// Where the layer 4 header lies, judging by the frame itself; IPv6 without extension headers.
fn find_layer4(frame: &[u8]) -> Option<usize> {
    let ip = ip_offset(frame);
    match ethertype(frame)? {
        kind if kind == ETHERTYPE_IPV4 => Some(ip + usize::from(frame.get(ip)? & 0xf) * 4),
        kind if kind == ETHERTYPE_IPV6 => Some(ip + 40),
        _ => None,
    }
}

/// Options in the headers of a frame with layer 4 at `offset`, 0 to find it: IPv4 options or IPv6 extension headers, and TCP options.
pub(super) fn options(frame: &[u8], offset: usize) -> (bool, bool) {
    let ip = ip_offset(frame);
    let is_ipv6 = ethertype(frame) == Some(&ETHERTYPE_IPV6);
    let offset = match offset {
        0 => find_layer4(frame).unwrap_or(usize::MAX),
        offset => offset,
    };
    let extended = match is_ipv6 {
        true => offset > ip + 40,
        false => frame.get(ip).is_some_and(|first| first & 0xf > 5),
    };
    let byte = offset.checked_add(12).and_then(|at| frame.get(at));
    (extended, byte.is_some_and(|byte| byte >> 4 > 5))
}

/// End of the IP packet: what is behind it is padding.
fn ip_end(frame: &[u8]) -> usize {
    let ip = ip_offset(frame);
    let len = match ethertype(frame) {
        Some(kind) if kind == ETHERTYPE_IPV4 => word(frame, ip + 2).map(usize::from),
        Some(kind) if kind == ETHERTYPE_IPV6 => {
            word(frame, ip + 4).map(|len| usize::from(len) + 40)
        }
        _ => None,
    };
    match len {
        Some(len) if len > 0 && ip + len <= frame.len() => ip + len,
        _ => frame.len(),
    }
}

/// Fills in the checksums that the guest left to the NIC.
///
/// # Errors
/// If the headers do not lie inside the frame.
pub fn fill_checksums(frame: &mut [u8], request: ChecksumRequest) -> Result<(), OffloadError> {
    if request.ipv4_header {
        let ip = ip_offset(frame);
        let end = frame.get(ip).map_or(ip, |first| ip + usize::from(first & 0xf) * 4);
        if frame.len() < end || end < ip + 20 {
            return Err(OffloadError::HeaderOffset { offset: ip, frame: frame.len() });
        }
        fill_ipv4(frame, ip, end);
    }
    if !request.tcp && !request.udp {
        return Ok(());
    }
    let offset = match request.layer4_offset {
        0 => find_layer4(frame).unwrap_or(usize::MAX),
        offset => offset,
    };
    let (field, header) = if request.tcp { (16, 20) } else { (6, 8) };
    let end = ip_end(frame);
    if offset.checked_add(header).is_none_or(|header_end| header_end > end) {
        return Err(OffloadError::HeaderOffset { offset, frame: frame.len() });
    }
    let mut value = fold(sum(&frame[offset..end], 0));
    if request.udp && !request.tcp && value == 0 {
        value = 0xffff;
    }
    put(frame, offset + field, value);
    Ok(())
}

/// A large send, checked: yields its segments one by one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segments {
    ip: usize,
    tcp: usize,
    payload: usize,
    segment: usize,
    ipv6: bool,
}

impl Segments {
    /// Checks a large send of `frame`.
    ///
    /// # Errors
    /// [`OffloadError`] if the frame is not what the request says.
    pub fn new(frame: &[u8], request: LargeSend) -> Result<Self, OffloadError> {
        let LargeSend { segment, tcp_offset: tcp, ipv6 } = request;
        if segment == 0 {
            return Err(OffloadError::SegmentSize);
        }
        let ip = ip_offset(frame);
        let header = frame.get(tcp + 12).map(|byte| usize::from(byte >> 4) * 4);
        let minimum = ip + if ipv6 { 40 } else { 20 };
        let payload = match header {
            Some(header) if header >= 20 && tcp >= minimum => tcp + header,
            _ => return Err(OffloadError::HeaderOffset { offset: tcp, frame: frame.len() }),
        };
        if payload > frame.len() {
            return Err(OffloadError::HeaderOffset { offset: tcp, frame: frame.len() });
        }
        let (kind, protocol) =
            if ipv6 { (ETHERTYPE_IPV6, None) } else { (ETHERTYPE_IPV4, frame.get(ip + 9)) };
        let is_tcp = protocol.is_none_or(|protocol| *protocol == PROTOCOL_TCP);
        if ethertype(frame) != Some(&kind) || !is_tcp {
            return Err(OffloadError::NotTcp);
        }
        Ok(Self { ip, tcp, payload, segment, ipv6 })
    }

    /// Number of segments; a send without payload is one.
    #[must_use]
    pub fn count(&self, frame: &[u8]) -> usize {
        frame.len().saturating_sub(self.payload).div_ceil(self.segment).max(1)
    }

    /// Bytes of payload in all segments.
    #[must_use]
    pub const fn payload(&self, frame: &[u8]) -> usize {
        frame.len().saturating_sub(self.payload)
    }

    /// Length of the longest segment, headers included.
    #[must_use]
    pub fn longest(&self) -> usize {
        self.payload + self.segment
    }

    /// Leaves `frame` uncut to somebody else: its headers say how long it is, and the field of its TCP checksum holds the sum of
    /// the pseudo-header. Doing it twice changes nothing.
    pub fn leave(&self, frame: &mut [u8]) -> Uncut {
        let Self { ip, tcp, payload, segment, ipv6 } = *self;
        let base = if ipv6 { ip + 40 } else { ip };
        let length = u16::try_from(frame.len().saturating_sub(base)).unwrap_or(u16::MAX);
        put(frame, if ipv6 { ip + 4 } else { ip + 2 }, length);
        if !ipv6 {
            fill_ipv4(frame, ip, tcp);
        }
        fill_pseudo(frame, ip, tcp, ipv6);
        Uncut { segment, headers: payload, layer4: tcp, ipv6 }
    }

    /// Writes segment number `index` into `out`, with lengths, sequence number, flags and checksums as they belong.
    pub fn write(&self, frame: &[u8], index: usize, out: &mut Vec<u8>) {
        let start = (self.payload + index * self.segment).min(frame.len());
        let end = (start + self.segment).min(frame.len());
        out.clear();
        out.extend_from_slice(&frame[..self.payload]);
        out.extend_from_slice(&frame[start..end]);
        let (ip, tcp) = (self.ip, self.tcp);
        let len = out.len();
        if self.ipv6 {
            put(out, ip + 4, (len - ip - 40) as u16);
        } else {
            put(out, ip + 2, (len - ip) as u16);
            let id = word(out, ip + 4).unwrap_or(0).wrapping_add(index as u16);
            put(out, ip + 4, id);
            fill_ipv4(out, ip, tcp);
        }
        let high = u32::from(word(out, tcp + 4).unwrap_or(0)) << 16;
        let sequence = (high | u32::from(word(out, tcp + 6).unwrap_or(0)))
            .wrapping_add((index * self.segment) as u32);
        put(out, tcp + 4, (sequence >> 16) as u16);
        put(out, tcp + 6, sequence as u16);
        if end < frame.len() {
            out[tcp + 13] &= !TCP_FIN_PSH;
        }
        if index > 0 {
            out[tcp + 13] &= !TCP_CWR;
        }
        fill_tcp(out, ip, tcp, self.ipv6);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nic::testing::{is_valid, tcp6, udp4};

    fn tcp4(payload: usize, tag: bool) -> Vec<u8> {
        let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];
        if tag {
            frame.extend([0x81, 0, 0, 7]);
        }
        frame.extend(ETHERTYPE_IPV4);
        let total = (40 + payload) as u16;
        frame.extend([0x45, 0]);
        frame.extend(total.to_be_bytes());
        frame.extend([0x12, 0x34, 0x40, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
        frame.extend([0x1f, 0x90, 0x00, 0x50, 0xff, 0xff, 0xff, 0x00, 0, 0, 0, 1]);
        frame.extend([0x50, 0x98 | TCP_FIN_PSH, 0x20, 0, 0, 0, 0, 0]);
        frame.extend((0..payload).map(|byte| byte as u8));
        frame
    }

    #[test]
    fn what_is_left_uncut_says_how_long_it_is_and_is_cut_to_the_same_pieces() {
        for (tag, payload) in [(false, 5000), (true, 5000), (false, 10), (false, 0)] {
            let tcp = if tag { 38 } else { 34 };
            let request = LargeSend { segment: 1460, tcp_offset: tcp, ipv6: false };
            let mut frame = tcp4(payload, tag);
            let pieces = |frame: &[u8]| {
                let segments = Segments::new(frame, request).unwrap();
                let piece = |index| {
                    let mut out = Vec::new();
                    segments.write(frame, index, &mut out);
                    out
                };
                (0..segments.count(frame)).map(piece).collect::<Vec<_>>()
            };
            let expected = pieces(&frame);
            // As guests give it: without length and checksums.
            frame[tcp - 18..tcp - 16].fill(0);
            frame[tcp - 10..tcp - 8].fill(0);
            let segments = Segments::new(&frame, request).unwrap();
            let left = segments.leave(&mut frame);
            let headers = tcp + 20;
            assert_eq!(left, Uncut { segment: 1460, headers, layer4: tcp, ipv6: false });
            assert_eq!(word(&frame, tcp - 18), Some((40 + payload) as u16));
            assert_eq!(pieces(&frame), expected);
            let once = frame.clone();
            segments.leave(&mut frame);
            assert_eq!(frame, once);
            // Whoever computes the checksum over the sum that is there gets the right one.
            let whole = ChecksumRequest { tcp: true, layer4_offset: tcp, ..Default::default() };
            fill_checksums(&mut frame, whole).unwrap();
            assert!(is_valid(&frame));
        }
    }

    #[test]
    fn checksums_are_filled_in_over_the_pseudo_header_sum() {
        for tag in [false, true] {
            let mut frame = tcp4(101, tag);
            let ip = ip_offset(&frame);
            let pseudo = !fold(sum(&frame[ip + 12..ip + 20], 6 + 20 + 101));
            put(&mut frame, ip + 20 + 16, pseudo);
            let request = ChecksumRequest { ipv4_header: true, tcp: true, ..Default::default() };
            fill_checksums(&mut frame, request).unwrap();
            assert!(is_valid(&frame));
        }
    }

    // As guests prepare them: lengths and header checksums 0, the pseudo-header's sum without length.
    #[test]
    fn large_sends_over_ipv6_become_valid_segments() {
        let data: Vec<u8> = (0..4321).map(|at| at as u8).collect();
        let mut frame = tcp6(0xffff_fff0, 0x18, &data);
        frame[18..20].fill(0);
        frame[70..72].fill(0x55);
        let request = LargeSend { segment: 1440, tcp_offset: 54, ipv6: true };
        let segments = Segments::new(&frame, request).unwrap();
        let (mut out, mut found) = (Vec::new(), Vec::new());
        for index in 0..segments.count(&frame) {
            segments.write(&frame, index, &mut out);
            assert!(is_valid(&out), "segment {index}");
            found.extend_from_slice(&out[74..]);
        }
        assert_eq!((found, segments.payload(&frame)), (data, 4321));
    }

    #[test]
    fn udp_checksums_are_filled_in() {
        for len in [0, 1, 30, 1472] {
            let good = udp4(7, &vec![0x5a; len]);
            let mut frame = good.clone();
            let pseudo = !fold(sum(&frame[26..34], 17 + 8 + len as u32));
            put(&mut frame, 40, pseudo);
            let request = ChecksumRequest { udp: true, ..Default::default() };
            fill_checksums(&mut frame, request).unwrap();
            assert_eq!(frame, good, "{len} bytes");
        }
    }

    #[test]
    fn padding_behind_the_ip_packet_is_not_summed() {
        let mut frame = tcp4(0, false);
        frame.extend([0xaa; 6]);
        let pseudo = !fold(sum(&frame[26..34], 6 + 20));
        put(&mut frame, 50, pseudo);
        let request = ChecksumRequest { ipv4_header: true, tcp: true, ..Default::default() };
        fill_checksums(&mut frame, request).unwrap();
        assert!(is_valid(&frame[..54]));
    }

    #[test]
    fn headers_outside_the_frame_are_refused() {
        let tcp = ChecksumRequest { tcp: true, layer4_offset: 60, ..Default::default() };
        assert_eq!(
            fill_checksums(&mut tcp4(0, false), tcp),
            Err(OffloadError::HeaderOffset { offset: 60, frame: 54 })
        );
        let ip = ChecksumRequest { ipv4_header: true, ..Default::default() };
        assert!(fill_checksums(&mut [0; 14], ip).is_err());
        let udp = ChecksumRequest { udp: true, ..Default::default() };
        assert!(fill_checksums(&mut [0; 60], udp).is_err(), "no IP at all");
    }

    #[test]
    fn a_large_send_becomes_valid_segments() {
        for tag in [false, true] {
            let frame = tcp4(3001, tag);
            let ip = ip_offset(&frame);
            let request = LargeSend { segment: 1000, tcp_offset: ip + 20, ipv6: false };
            let segments = Segments::new(&frame, request).unwrap();
            assert_eq!(segments.count(&frame), 4);
            let mut data = Vec::new();
            let mut out = Vec::new();
            for index in 0..4 {
                segments.write(&frame, index, &mut out);
                assert!(is_valid(&out), "segment {index}");
                assert!(out.len() <= segments.longest());
                let low = u32::from_be_bytes(*out[ip + 24..].first_chunk().unwrap());
                assert_eq!(low, 0xffff_ff00u32.wrapping_add(index as u32 * 1000));
                let flags = out[ip + 33];
                assert_eq!(flags & TCP_FIN_PSH != 0, index == 3, "FIN and PSH on the last");
                assert_eq!(flags & TCP_CWR != 0, index == 0, "CWR on the first");
                data.extend_from_slice(&out[ip + 40..]);
            }
            assert_eq!(data, frame[ip + 40..]);
        }
    }

    #[test]
    fn a_large_send_that_is_not_tcp_is_refused() {
        let frame = tcp4(100, false);
        let good = LargeSend { segment: 50, tcp_offset: 34, ipv6: false };
        assert!(Segments::new(&frame, good).is_ok());
        assert_eq!(
            Segments::new(&frame, LargeSend { segment: 0, ..good }),
            Err(OffloadError::SegmentSize)
        );
        assert_eq!(
            Segments::new(&frame, LargeSend { ipv6: true, tcp_offset: 54, ..good }),
            Err(OffloadError::HeaderOffset { offset: 54, frame: 154 })
        );
        for offset in [0, 20, 140, 500] {
            assert!(Segments::new(&frame, LargeSend { tcp_offset: offset, ..good }).is_err());
        }
        let mut udp = frame.clone();
        udp[23] = 17;
        assert_eq!(Segments::new(&udp, good), Err(OffloadError::NotTcp));
    }

    proptest::proptest! {
        #[test]
        fn no_frame_makes_offloads_panic(
            mut frame in proptest::collection::vec(proptest::num::u8::ANY, 0..200),
            segment in 0usize..300, tcp_offset in 0usize..1100, ipv6: bool, tcp: bool, udp: bool,
        ) {
            let request = ChecksumRequest { ipv4_header: true, tcp, udp, layer4_offset: tcp_offset };
            let _ = fill_checksums(&mut frame, request);
            if let Ok(segments) = Segments::new(&frame, LargeSend { segment, tcp_offset, ipv6 }) {
                let mut out = Vec::new();
                for index in 0..segments.count(&frame) {
                    segments.write(&frame, index, &mut out);
                }
            }
        }
    }
}

//! What a host's NIC does to frames on the way out: checksums and the cutting of large sends.

use thiserror::Error;

const ETHERTYPE_IPV4: [u8; 2] = [0x08, 0x00];
const ETHERTYPE_IPV6: [u8; 2] = [0x86, 0xdd];
const ETHERTYPE_VLAN: [u8; 2] = [0x81, 0x00];
const TCP_FIN_PSH: u8 = 0x09;
const TCP_CWR: u8 = 0x80;
const PROTOCOL_TCP: u8 = 6;

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

fn sum(bytes: &[u8], start: u32) -> u32 {
    let mut words = bytes.chunks_exact(2);
    // Four gigabytes of 0xffff would overflow; frames are 64 KiB at most, so a wide sum folded once is enough.
    let mut total = u64::from(start);
    for word in &mut words {
        total += u64::from(u16::from_be_bytes([word[0], word[1]]));
    }
    if let [last] = words.remainder() {
        total += u64::from(*last) << 8;
    }
    (total % 0xffff_ffff) as u32
}

const fn fold(mut sum: u32) -> u16 {
    while sum > 0xffff {
        sum = (sum >> 16) + (sum & 0xffff);
    }
    !(sum as u16)
}

fn put(frame: &mut [u8], at: usize, value: u16) {
    if let Some(field) = frame.get_mut(at..at + 2) {
        field.copy_from_slice(&value.to_be_bytes());
    }
}

fn word(frame: &[u8], at: usize) -> Option<u16> {
    frame.get(at..at.checked_add(2)?)?.first_chunk().map(|bytes| u16::from_be_bytes(*bytes))
}

/// Offset of the network layer header: behind the Ethernet header and a tag, if there is one.
fn ip_offset(frame: &[u8]) -> usize {
    if frame.get(12..14) == Some(&ETHERTYPE_VLAN) { 18 } else { 14 }
}

fn ethertype(frame: &[u8]) -> Option<&[u8]> {
    let at = ip_offset(frame);
    frame.get(at - 2..at)
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
        put(frame, ip + 10, 0);
        let value = fold(sum(&frame[ip..end], 0));
        put(frame, ip + 10, value);
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

    /// Length of the longest segment, headers included.
    #[must_use]
    pub fn longest(&self) -> usize {
        self.payload + self.segment
    }

    /// Writes segment number `index` into `out`, with lengths, sequence number, flags and checksums as they belong.
    pub fn write(&self, frame: &[u8], index: usize, out: &mut Vec<u8>) {
        let start = (self.payload + index * self.segment).min(frame.len());
        let end = (start + self.segment).min(frame.len());
        out.clear();
        out.extend_from_slice(&frame[..self.payload]);
        out.extend_from_slice(&frame[start..end]);
        let (ip, tcp) = (self.ip, self.tcp);
        let (len, layer4_len) = (out.len(), out.len() - tcp);
        if self.ipv6 {
            put(out, ip + 4, (len - ip - 40) as u16);
        } else {
            put(out, ip + 2, (len - ip) as u16);
            let id = word(out, ip + 4).unwrap_or(0).wrapping_add(index as u16);
            put(out, ip + 4, id);
            put(out, ip + 10, 0);
            let checksum = fold(sum(&out[ip..tcp], 0));
            put(out, ip + 10, checksum);
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
        let addresses = if self.ipv6 { ip + 8..ip + 40 } else { ip + 12..ip + 20 };
        let pseudo = sum(&out[addresses], u32::from(PROTOCOL_TCP) + layer4_len as u32);
        put(out, tcp + 16, 0);
        let checksum = fold(sum(&out[tcp..], pseudo));
        put(out, tcp + 16, checksum);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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

    /// Checks IPv4 header and TCP checksum of a frame as a receiver does.
    fn valid(frame: &[u8]) -> bool {
        let ip = ip_offset(frame);
        let tcp = ip + 20;
        let pseudo = sum(&frame[ip + 12..ip + 20], 6 + (frame.len() - tcp) as u32);
        fold(sum(&frame[ip..tcp], 0)) == 0 && fold(sum(&frame[tcp..], pseudo)) == 0
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
            assert!(valid(&frame));
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
        assert!(valid(&frame[..54]));
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
                assert!(valid(&out), "segment {index}");
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

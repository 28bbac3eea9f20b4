//! Receive segment coalescing: TCP segments of one flow that wait one behind the other become one.

use netvsc::rndis::packet::ReceiveChecksum;

use super::checksum::{Place, fill_ipv4, fill_pseudo, fill_tcp, verify};

/// Longest IP packet.
const LONGEST: usize = 0xffff;

const TCP_ACK: u8 = 0x10;
const TCP_PSH: u8 = 0x08;

/// Where things lie in a TCP segment that may be joined with others: data and nothing but ACK and PSH, no IP options, no
/// fragment, no padding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    place: Place,
    /// Where the payload starts.
    payload: usize,
    sequence: u32,
    /// Bytes of payload so far.
    length: usize,
    /// No more may follow.
    closed: bool,
    /// How many were joined.
    pub(super) frames: u32,
}

impl Segment {
    /// Looks at a frame; `None` if nothing can be joined to it.
    #[must_use]
    pub fn of(frame: &[u8]) -> Option<Self> {
        let place = Place::of(frame)?;
        let Place { ip, layer4: tcp, ipv6, end, .. } = place;
        let plain = ipv6 || frame.get(ip) == Some(&0x45);
        let payload = tcp + usize::from(frame.get(tcp + 12)? >> 4) * 4;
        let flags = *frame.get(tcp + 13)?;
        let joins = place.is_tcp()
            && plain
            && payload >= tcp + 20
            && payload < end
            && end == frame.len()
            && flags & !TCP_PSH == TCP_ACK;
        let sequence = u32::from_be_bytes(*frame.get(tcp + 4..)?.first_chunk()?);
        joins.then(|| Self {
            place,
            payload,
            sequence,
            length: end - payload,
            closed: flags & TCP_PSH != 0,
            frames: 1,
        })
    }

    /// Joins `next` to `first` if it is what follows and the whole stays within `most` bytes. True if it did.
    pub fn join(&mut self, first: &mut Vec<u8>, next: &[u8], most: usize) -> bool {
        let Some(other) = Self::of(next).filter(|_| !self.closed) else { return false };
        let whole = first.len() + other.length;
        let follows = other.payload == self.payload
            && other.place.ip == self.place.ip
            && other.place.layer4 == self.place.layer4
            && other.place.ipv6 == self.place.ipv6
            && other.sequence == self.sequence.wrapping_add(self.length as u32)
            && same_headers(first, next, self)
            && whole <= most
            && whole - self.place.ip <= LONGEST;
        if !follows {
            return false;
        }
        first.extend_from_slice(&next[other.payload..]);
        self.length += other.length;
        self.closed = other.closed;
        self.frames += 1;
        // The newest window, and whether somebody waits for this.
        let tcp = self.place.layer4;
        first[tcp + 13] |= next[tcp + 13];
        first[tcp + 14..tcp + 16].copy_from_slice(&next[tcp + 14..tcp + 16]);
        true
    }

    /// The same for a frame whose checksums are right.
    #[must_use]
    pub fn verified(frame: &[u8]) -> Option<Self> {
        let good = verify(frame);
        let right = good.contains(ReceiveChecksum::TCP_GOOD)
            && !good.intersects(ReceiveChecksum::IP_BAD | ReceiveChecksum::TCP_BAD);
        Self::of(frame).filter(|_| right)
    }

    /// Whether anything was joined to the first.
    #[must_use]
    pub const fn is_joined(&self) -> bool {
        self.frames > 1
    }

    /// Where the TCP header of the frame starts, and its payload.
    #[must_use]
    pub const fn headers(&self) -> (usize, usize) {
        (self.place.layer4, self.payload)
    }

    /// Whether it is IPv6.
    #[must_use]
    pub const fn is_ipv6(&self) -> bool {
        self.place.ipv6
    }

    /// Makes the headers of what was joined say so, and leaves the TCP checksum to somebody else: its field holds the sum of the
    /// pseudo-header.
    pub fn leave_checksum(&self, frame: &mut [u8]) {
        self.finish(frame, true);
        let Place { ip, layer4, ipv6, .. } = self.place;
        if !ipv6 {
            fill_ipv4(frame, ip, layer4);
        }
        fill_pseudo(frame, ip, layer4, ipv6);
    }

    /// Makes the headers of what was joined say so. `stale`: the TCP checksum stays that of the first segment, and the IPv4
    /// header's too.
    pub(super) fn finish(&self, frame: &mut [u8], stale: bool) {
        let Place { ip, layer4: tcp, ipv6, .. } = self.place;
        let base = if ipv6 { ip + 40 } else { ip };
        let length = (frame.len() - base) as u16;
        let at = if ipv6 { ip + 4 } else { ip + 2 };
        frame[at..at + 2].copy_from_slice(&length.to_be_bytes());
        if !stale {
            if !ipv6 {
                fill_ipv4(frame, ip, tcp);
            }
            fill_tcp(frame, ip, tcp, ipv6);
        }
    }
}

/// Whether all is equal but lengths, identification, sequence, PSH, window and checksums.
fn same_headers(first: &[u8], next: &[u8], segment: &Segment) -> bool {
    let Place { ip, layer4: tcp, ipv6, .. } = segment.place;
    let ip_parts = if ipv6 { [0..ip + 4, ip + 6..tcp] } else { [0..ip + 2, ip + 6..ip + 10] };
    let addresses = if ipv6 { tcp..tcp } else { ip + 12..tcp };
    let tcp_parts = [tcp..tcp + 4, tcp + 8..tcp + 13, tcp + 18..segment.payload];
    let mut parts = ip_parts.into_iter().chain([addresses]).chain(tcp_parts);
    parts.all(|part| first.get(part.clone()) == next.get(part))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nic::testing::{tcp4, tcp6};

    /// The parts of a stream of `len` bytes as segments of 1,000.
    fn stream(len: usize, ipv6: bool) -> Vec<Vec<u8>> {
        let data: Vec<u8> = (0..len).map(|at| (at / 7) as u8).collect();
        let parts = data.chunks(1000).enumerate();
        let frames = parts.map(|(at, part)| {
            let sequence = 0xffff_f000u32.wrapping_add(at as u32 * 1000);
            let last = (at + 1) * 1000 >= len;
            let flags = if last { TCP_ACK | TCP_PSH } else { TCP_ACK };
            if ipv6 { tcp6(sequence, flags, part) } else { tcp4(sequence, flags, part) }
        });
        frames.collect()
    }

    fn join(frames: &[Vec<u8>], most: usize) -> (Vec<u8>, u32) {
        let mut whole = frames[0].clone();
        let mut segment = Segment::of(&whole).unwrap();
        for next in &frames[1..] {
            if !segment.join(&mut whole, next, most) {
                break;
            }
        }
        segment.finish(&mut whole, false);
        (whole, segment.frames)
    }

    #[test]
    fn segments_that_follow_each_other_become_one() {
        for ipv6 in [false, true] {
            let frames = stream(7300, ipv6);
            let (whole, joined) = join(&frames, 1 << 20);
            assert_eq!(joined, 8);
            let headers = if ipv6 { 74 } else { 54 };
            let data: Vec<u8> = (0..7300).map(|at| (at / 7) as u8).collect();
            assert_eq!(whole[headers..], data);
            assert_eq!(whole[headers - 7] & TCP_PSH, TCP_PSH, "the last one's");
            assert!(crate::nic::testing::is_valid(&whole));
        }
    }

    #[test]
    fn the_checksum_can_be_left_to_somebody_else() {
        for ipv6 in [false, true] {
            let frames = stream(7300, ipv6);
            let mut whole = frames[0].clone();
            let mut segment = Segment::verified(&whole).unwrap();
            for next in &frames[1..] {
                assert!(
                    Segment::verified(next).is_some() && segment.join(&mut whole, next, 1 << 20)
                );
            }
            segment.leave_checksum(&mut whole);
            let (tcp, payload) = segment.headers();
            assert_eq!((segment.is_joined(), segment.is_ipv6(), payload), (true, ipv6, tcp + 20));
            let request = crate::nic::offload::ChecksumRequest {
                tcp: true,
                layer4_offset: tcp,
                ..Default::default()
            };
            crate::nic::offload::fill_checksums(&mut whole, request).unwrap();
            assert!(crate::nic::testing::is_valid(&whole));
            let mut wrong = frames[0].clone();
            wrong[80] ^= 1;
            assert_eq!(Segment::verified(&wrong), None);
        }
    }

    #[test]
    fn what_does_not_follow_is_not_joined() {
        let frames = stream(3000, false);
        let refused = |change: &dyn Fn(&mut Vec<u8>)| {
            let mut whole = frames[0].clone();
            let mut next = frames[1].clone();
            change(&mut next);
            let mut segment = Segment::of(&whole).unwrap();
            !segment.join(&mut whole, &next, 1 << 20) && whole == frames[0]
        };
        assert!(!refused(&|_| ()));
        for at in [0, 6, 13, 15, 22, 26, 33, 34, 36, 41, 42] {
            assert!(refused(&|next| next[at] ^= 1), "byte {at}");
        }
        assert!(refused(&|next| next[47] |= 1), "FIN");
        assert!(refused(&|next| next[20] = 0x20), "a fragment");
        assert!(refused(&|next| next.truncate(53)), "cut off");
        assert!(refused(&|next| next.push(0)), "padding");
        assert!(!refused(&|next| next[48] ^= 1), "another window");
        // Behind a segment that somebody waits for nothing follows.
        let mut whole = frames[0].clone();
        whole[47] |= TCP_PSH;
        let mut segment = Segment::of(&whole).unwrap();
        assert!(!segment.join(&mut whole, &frames[1], 1 << 20));
    }

    #[test]
    fn what_is_no_tcp_is_no_segment_whatever_stands_where_its_length_would_be() {
        for byte in [0, 0x50, 0xf0, 0xff] {
            assert_eq!(Segment::of(&crate::nic::testing::udp4(1000, &[byte; 6])), None);
        }
    }

    #[test]
    fn nothing_grows_beyond_its_limits() {
        let frames = stream(80_000, false);
        let (whole, joined) = join(&frames, 1 << 20);
        assert_eq!((whole.len(), joined), (65_054, 65), "the length field has 16 bits");
        let (whole, joined) = join(&frames, 3054);
        assert_eq!((whole.len(), joined), (3054, 3));
    }

    #[test]
    fn stale_checksums_stay() {
        let frames = stream(2000, false);
        let mut whole = frames[0].clone();
        let mut segment = Segment::of(&whole).unwrap();
        assert!(segment.join(&mut whole, &frames[1], 1 << 20));
        segment.finish(&mut whole, true);
        assert_eq!(whole[50..52], frames[0][50..52]);
        assert_eq!(whole[24..26], frames[0][24..26]);
        assert!(!crate::nic::testing::is_valid(&whole));
    }

    proptest::proptest! {
        #[test]
        fn no_frame_makes_it_panic(
            mut first in proptest::collection::vec(proptest::num::u8::ANY, 0..120),
            next in proptest::collection::vec(proptest::num::u8::ANY, 0..120),
            kind in 0..3usize,
        ) {
            let kinds = [[8, 0, 0x45], [0x86, 0xdd, 0x60], [0x81, 0, 0]];
            if let Some(start) = first.get_mut(12..15) {
                start.copy_from_slice(&kinds[kind]);
            }
            if let Some(mut segment) = Segment::of(&first) {
                let same = first.clone();
                let _ = segment.join(&mut first, &same, 1 << 20);
                let _ = segment.join(&mut first, &next, 1 << 20);
                segment.finish(&mut first, false);
            }
        }
    }
}

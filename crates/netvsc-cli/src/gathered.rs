//! Received segments that are longer than a frame: as a VF's driver says of them, or as the host's coalescing leaves them.

use hyperv_host::nic::coalesce::Segment;
use hyperv_host::switch::Uncut;
use netvsc::adapter::{Frame, append_as_received};
use netvsc::nic::renew_checksums;
use netvsc::rndis::packet::ReceiveChecksum;

/// Bytes of an Ethernet header, and of a tag in it.
const ETHERNET: usize = 14;
const TAG: usize = 4;

/// Appends a received frame. How it is cut again, if it is a segment longer than a frame of this MTU.
pub(crate) fn take(frame: &dyn Frame, buffer: &mut Vec<u8>, mtu: u32) -> Option<Uncut> {
    let start = buffer.len();
    append_as_received(frame, buffer);
    let bytes = buffer.get_mut(start..)?;
    if let Some(send) = frame.large() {
        return Some(Uncut::of(bytes, send));
    }
    let uncut = of_host(bytes, frame.checksum(), mtu as usize);
    if uncut.is_none() {
        // One that is no longer than a frame goes on as one, and somebody will look at its checksum.
        renew_checksums(bytes, frame.checksum());
    }
    uncut
}

/// What a host has put together does not say of how much. The pieces were full, but for the last one: that is what hosts join. Its
/// checksum may be that of no such frame, if the host says that all was right; otherwise it has to be.
fn of_host(frame: &mut [u8], said: ReceiveChecksum, mtu: usize) -> Option<Uncut> {
    if frame.len() <= mtu + ETHERNET + TAG {
        return None;
    }
    let vouched = said.contains(ReceiveChecksum::TCP_GOOD);
    let segment = if vouched { Segment::of(frame)? } else { Segment::verified(frame)? };
    let (layer4, headers) = segment.headers();
    let room = (mtu + ETHERNET).checked_sub(headers).filter(|room| *room > 0)?;
    segment.leave_checksum(frame);
    Some(Uncut { segment: room, headers, layer4, ipv6: segment.is_ipv6() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use hyperv_host::nic::offload::{LargeSend, Segments};

    /// A TCP segment of `len` bytes of data over IPv4, its checksums not filled in.
    fn segment(len: usize) -> Vec<u8> {
        let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 0];
        frame.extend([0x45, 0, 0, 0, 0, 1, 0x40, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
        frame
            .extend([0x13, 0x88, 0x13, 0x89, 0, 0, 0, 1, 0, 0, 0, 1, 0x50, 0x10, 1, 0, 0, 0, 0, 0]);
        frame.extend((0..len).map(|at| at as u8));
        let total = (frame.len() - 14) as u16;
        frame[16..18].copy_from_slice(&total.to_be_bytes());
        frame
    }

    #[test]
    fn what_the_host_vouches_for_is_cut_to_frames_of_the_mtu_whatever_its_checksum() {
        let mut frame = segment(4000);
        let uncut = of_host(&mut frame, ReceiveChecksum::TCP_GOOD, 1500).unwrap();
        assert_eq!(uncut, Uncut { segment: 1460, headers: 54, layer4: 34, ipv6: false });
        let send = LargeSend { segment: uncut.segment, tcp_offset: uncut.layer4, ipv6: false };
        let segments = Segments::new(&frame, send).unwrap();
        let mut data = Vec::new();
        for number in 0..segments.count(&frame) {
            let mut piece = Vec::new();
            segments.write(&frame, number, &mut piece);
            assert!(piece.len() <= 1514 && Segment::verified(&piece).is_some());
            data.extend_from_slice(&piece[54..]);
        }
        assert_eq!(data, frame[54..]);
    }

    #[test]
    fn without_the_hosts_word_the_checksum_has_to_be_right() {
        assert_eq!(of_host(&mut segment(4000), ReceiveChecksum::empty(), 1500), None);
        let mut frame = segment(4000);
        // Cut into one piece it has its checksums.
        let whole = LargeSend { segment: 4000, tcp_offset: 34, ipv6: false };
        let segments = Segments::new(&frame, whole).unwrap();
        let mut right = Vec::new();
        segments.write(&frame, 0, &mut right);
        assert!(of_host(&mut right, ReceiveChecksum::empty(), 1500).is_some());
        frame.truncate(1400);
        assert_eq!(
            of_host(&mut frame, ReceiveChecksum::TCP_GOOD, 1500),
            None,
            "no longer than a frame"
        );
    }

    /// A frame of which the host has said something.
    struct Said(Vec<u8>, ReceiveChecksum);

    impl Frame for Said {
        fn len(&self) -> usize {
            self.0.len()
        }

        fn copy_to(&self, out: &mut [u8]) -> usize {
            self.0.as_slice().copy_to(out)
        }

        fn checksum(&self) -> ReceiveChecksum {
            self.1
        }
    }

    // A peer with a small segment size: two of its segments are one frame that fits the MTU, and nobody has summed it up.
    #[test]
    fn a_short_frame_that_was_never_summed_up_gets_its_checksums() {
        let never = ReceiveChecksum::TCP_GOOD
            | ReceiveChecksum::TCP_VALUE_INVALID
            | ReceiveChecksum::IP_GOOD
            | ReceiveChecksum::IP_VALUE_INVALID;
        let mut buffer = vec![7; 3];
        let frame = segment(2 * 536);
        assert!(Segment::verified(&frame).is_none());
        assert_eq!(take(&Said(frame.clone(), never), &mut buffer, 1500), None);
        assert!(Segment::verified(&buffer[3..]).is_some(), "both checksums are right");
        assert_eq!((&buffer[..3], &buffer[3 + 54..]), (&[7; 3][..], &frame[54..]));
        // A longer one is the kernel's to cut and to sum up.
        buffer.clear();
        assert!(take(&Said(segment(4000), never), &mut buffer, 1500).is_some());
    }

    #[test]
    fn what_is_long_and_no_segment_is_left_as_it_is() {
        for (at, byte) in [(12, 0x86), (23, 17), (46, 0x20), (47, 0x11)] {
            let mut frame = segment(4000);
            frame[at] = byte;
            let before = frame.clone();
            assert_eq!(of_host(&mut frame, ReceiveChecksum::TCP_GOOD, 1500), None, "byte {at}");
            assert_eq!(frame, before);
        }
    }
}

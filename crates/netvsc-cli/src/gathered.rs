//! Received segments that are longer than a frame: as a VF's driver says of them, or as the host's coalescing leaves them.

use hyperv_host::nic::coalesce::Segment;
use hyperv_host::switch::Uncut;
use netvsc::adapter::{Frame, append};
use netvsc::rndis::packet::ReceiveChecksum;

/// Bytes of an Ethernet header, and of a tag in it.
const ETHERNET: usize = 14;
const TAG: usize = 4;

/// Appends a received frame. How it is cut again, if it is a segment longer than a frame of this MTU.
pub(crate) fn take(frame: &dyn Frame, buffer: &mut Vec<u8>, mtu: u32) -> Option<Uncut> {
    let start = buffer.len();
    append(frame, buffer);
    let bytes = buffer.get_mut(start..)?;
    match frame.large() {
        Some(send) => Some(Uncut::of(bytes, send)),
        None => of_host(bytes, frame.checksum(), mtu as usize),
    }
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

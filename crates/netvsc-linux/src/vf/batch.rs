//! Frames on their way to a packet socket: collected, handed over together, and kept until the kernel has taken them.

use std::os::fd::AsFd;

use netvsc::nic::TxWork;
use netvsc::rndis::packet::{LargeSend, TransmitChecksum};
use rustix::io::Errno;

use super::frame::{HEADER, layer3};
use super::request::{MOST_SENT, send_many};

/// Bytes that are collected at most.
const ROOM: usize = 256 << 10;

/// What became of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sent {
    /// The kernel has taken all of it.
    All,
    /// It takes no more for now.
    Later,
    /// It does not take anything, for this reason.
    Refused(Errno),
}

/// Frames that wait for the kernel.
#[derive(Debug)]
pub(super) struct Batch {
    bytes: Vec<u8>,
    /// For each: its header, and where it ends.
    frames: Vec<([u8; HEADER], usize)>,
    /// How many the kernel has taken already, and where the next begins.
    taken: usize,
    begin: usize,
}

impl Batch {
    pub(super) fn new() -> Self {
        let (bytes, frames) = (Vec::with_capacity(ROOM), Vec::with_capacity(MOST_SENT));
        Self { bytes, frames, taken: 0, begin: 0 }
    }

    /// Frames that the kernel has not taken.
    pub(super) fn len(&self) -> usize {
        self.frames.len() - self.taken
    }

    /// Whether the next frame is a segment that is to be cut.
    pub(super) fn is_to_be_cut(&self) -> bool {
        self.frames.get(self.taken).is_some_and(|([_, kind, ..], _)| *kind != 0)
    }

    /// Whether a frame of so many bytes can be collected.
    pub(super) fn has_room(&self, len: usize) -> bool {
        self.frames.len() < MOST_SENT && self.bytes.len() + len <= ROOM
    }

    /// Collects a frame, which has room.
    pub(super) fn push(&mut self, frame: &[u8], work: &TxWork) {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(frame);
        let header = self.bytes.get_mut(start..).map_or([0; HEADER], |frame| header(frame, work));
        self.frames.push((header, self.bytes.len()));
    }

    /// Hands over what was collected; `took` hears how many frames the kernel took each time.
    pub(super) fn send(&mut self, socket: impl AsFd, mut took: impl FnMut(usize)) -> Sent {
        while self.len() > 0 {
            let mut begin = self.begin;
            let waiting = self.frames.get(self.taken..).unwrap_or_default();
            let pieces = waiting.iter().map(|(header, end)| {
                let bytes = self.bytes.get(begin..*end).unwrap_or_default();
                begin = *end;
                (&header[..], bytes)
            });
            match send_many(&socket, pieces) {
                Ok(count) => {
                    took(count);
                    self.skip(count);
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN | Errno::NOBUFS | Errno::NOMEM) => return Sent::Later,
                Err(error) => return Sent::Refused(error),
            }
        }
        Sent::All
    }

    /// Lets go of the first frames that wait.
    pub(super) fn skip(&mut self, count: usize) {
        self.taken = (self.taken + count).min(self.frames.len());
        let last = self.taken.checked_sub(1).and_then(|last| self.frames.get(last));
        self.begin = last.map_or(0, |(_, end)| *end);
        if self.len() == 0 {
            self.clear();
        }
    }

    /// Forgets everything.
    pub(super) fn clear(&mut self) {
        (self.taken, self.begin) = (0, 0);
        self.bytes.clear();
        self.frames.clear();
    }
}

/// The header that asks the kernel for this work, as `struct virtio_net_hdr`; the checksum field gets the sum of the
/// pseudo-header, which is what the kernel starts from.
fn header(frame: &mut [u8], work: &TxWork) -> [u8; HEADER] {
    let (kind, size, layer4, udp) = match work.large_send {
        Some(LargeSend { segment, layer4, ipv6 }) => {
            let kind = if ipv6 { 4 } else { 1 };
            (kind, u16::try_from(segment).unwrap_or(u16::MAX), usize::from(layer4), false)
        }
        None => {
            let wanted = work.checksum;
            let udp = wanted.contains(TransmitChecksum::UDP);
            if !udp && !wanted.contains(TransmitChecksum::TCP) {
                return [0; HEADER];
            }
            (0, 0, wanted.layer4(), udp)
        }
    };
    let at = layer4;
    let field: u16 = if udp { 6 } else { 16 };
    let sum = pseudo_header(frame, at, udp).to_be_bytes();
    let place = at + usize::from(field);
    if let Some(place) = frame.get_mut(place..place + 2) {
        place.copy_from_slice(&sum);
    }
    // Headers up to the payload, a hint: those of TCP say how long they are.
    let tcp = frame.get(at + 12).map_or(0, |byte| usize::from(byte >> 4) * 4);
    let headers = if kind == 0 { 0 } else { u16::try_from(at + tcp).unwrap_or(0) };
    let mut header = [1, kind, 0, 0, 0, 0, 0, 0, 0, 0];
    let start = u16::try_from(layer4).unwrap_or(0);
    for (place, value) in header.chunks_exact_mut(2).skip(1).zip([headers, size, start, field]) {
        place.copy_from_slice(&value.to_ne_bytes());
    }
    header
}

/// The sum of the pseudo-header of what starts at `at` and goes to the end of the frame, folded and not inverted.
pub(crate) fn pseudo_header(frame: &[u8], at: usize, udp: bool) -> u16 {
    // The addresses are where IP's header has them; options or further headers may lie between them and `at`.
    let addresses = layer3(frame).map(|(ip, ipv6)| match ipv6 {
        true => ip + 8..ip + 40,
        false => ip + 12..ip + 20,
    });
    let bytes = addresses.and_then(|addresses| frame.get(addresses)).unwrap_or_default();
    let words = bytes.chunks_exact(2).map(|pair| match pair {
        [high, low] => u32::from(u16::from_be_bytes([*high, *low])),
        _ => 0,
    });
    let len = u32::try_from(frame.len().saturating_sub(at)).unwrap_or(0);
    let mut sum = words.sum::<u32>() + if udp { 17 } else { 6 } + len;
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A frame of TCP over IPv4 with options in both headers.
    fn frame() -> Vec<u8> {
        let mut frame = vec![2; 12];
        frame.extend([0x08, 0, 0x46, 0, 0, 0, 0, 0, 0, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
        frame.extend([1, 1, 1, 0]);
        frame.extend([0; 12]);
        frame.extend([0x60, 0x10, 0, 0, 9, 9, 0, 0, 1, 1, 1, 1]);
        frame.extend([7; 100]);
        frame
    }

    #[test]
    fn work_becomes_a_header_and_the_sum_that_it_starts_from() {
        let mut batch = Batch::new();
        batch.push(&frame(), &TxWork::NONE);
        let send = LargeSend { segment: 50, layer4: 38, ipv6: false };
        batch.push(&frame(), &TxWork { large_send: Some(send), ..TxWork::NONE });
        let checksum = (TransmitChecksum::IPV4 | TransmitChecksum::UDP).at(38);
        batch.push(&frame(), &TxWork { checksum, ..TxWork::NONE });
        assert_eq!(batch.frames[0].0, [0; HEADER]);
        let header = |flags: u8, kind: u8, numbers: [u16; 4]| {
            let mut bytes = vec![flags, kind];
            bytes.extend(numbers.iter().flat_map(|number| number.to_ne_bytes()));
            bytes
        };
        assert_eq!(batch.frames[1].0.to_vec(), header(1, 1, [62, 50, 38, 16]));
        assert_eq!(batch.frames[2].0.to_vec(), header(1, 0, [0, 0, 38, 6]));
        let len = frame().len();
        assert_eq!(batch.bytes[..len], frame());
        // 10.0.0.1 + 10.0.0.2 + protocol + 124 bytes.
        let sum = |protocol: u16| (0x0a00 + 1 + 0x0a00 + 2 + protocol + 124).to_be_bytes();
        assert_eq!(batch.bytes[len + 54..len + 56], sum(6));
        assert_eq!(batch.bytes[2 * len + 44..2 * len + 46], sum(17));
    }

    #[test]
    fn addresses_of_ipv6_are_found_whatever_follows_them() {
        let addresses: Vec<u8> = (1..=32).collect();
        for (tag, options) in [(false, 0), (false, 8), (true, 0), (true, 24)] {
            let mut frame = vec![2; 12];
            if tag {
                frame.extend([0x81, 0, 0, 5]);
            }
            frame.extend([0x86, 0xdd, 0x60, 0, 0, 0, 0, 0, if options > 0 { 60 } else { 6 }, 64]);
            frame.extend(&addresses);
            frame.extend(vec![0xee; options]);
            let layer4 = frame.len();
            frame.extend([0; 12]);
            frame.extend([0x50, 0x10, 0, 0, 9, 9, 0, 0]);
            frame.extend([7; 100]);
            let mut batch = Batch::new();
            let send = LargeSend { segment: 50, layer4: layer4 as u16, ipv6: true };
            batch.push(&frame, &TxWork { large_send: Some(send), ..TxWork::NONE });
            let words =
                addresses.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]])));
            let sum = words.sum::<u32>() + 6 + 120;
            let sum = ((sum & 0xffff) + (sum >> 16)) as u16;
            assert_eq!(batch.bytes[layer4 + 16..layer4 + 18], sum.to_be_bytes(), "{options}");
        }
    }

    #[test]
    fn what_the_kernel_took_is_not_sent_again() {
        // A pair of datagram sockets takes what a packet socket would, header and all, and keeps it.
        let (one, other) = std::os::unix::net::UnixDatagram::pair().unwrap();
        let mut batch = Batch::new();
        for number in 0..5_u8 {
            batch.push(&[number; 60], &TxWork::NONE);
        }
        batch.skip(2);
        assert_eq!(batch.len(), 3);
        let mut taken = 0;
        assert_eq!(batch.send(&one, |count| taken += count), Sent::All);
        assert_eq!((taken, batch.len(), batch.bytes.len()), (3, 0, 0));
        let mut got = [0; 100];
        for number in 2..5 {
            assert_eq!(other.recv(&mut got).unwrap(), HEADER + 60);
            assert_eq!(got[HEADER], number);
        }
    }

    #[test]
    fn one_that_is_full_keeps_its_frames() {
        let (one, other) = std::os::unix::net::UnixDatagram::pair().unwrap();
        let mut batch = Batch::new();
        let mut sent = 0;
        let kept = loop {
            while batch.has_room(60) {
                batch.push(&[1; 60], &TxWork::NONE);
            }
            match batch.send(&one, |count| sent += count) {
                Sent::All => {}
                Sent::Later => break batch.len(),
                Sent::Refused(error) => panic!("{error}"),
            }
        };
        assert!(kept > 0 && !batch.has_room(60));
        assert_eq!(other.recv(&mut [0; 100]).unwrap(), HEADER + 60);
        batch.send(&one, |count| sent += count);
        assert_eq!(batch.len(), kept - 1);
        drop(other);
        let refused = batch.send(&one, |_| {});
        assert_eq!(refused, Sent::Refused(Errno::CONNREFUSED));
    }
}

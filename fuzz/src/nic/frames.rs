//! Frames with headers that make sense.

use netvsc::nic::TxFrame;
use netvsc::rndis::packet::{LargeSend, TransmitChecksum, VlanTag};

/// Address of the NIC, and of who it talks to.
pub(super) const MAC: [u8; 6] = [0, 21, 93, 0, 0, 1];
pub(super) const PEER: [u8; 6] = [2, 0, 0, 0, 0, 9];
/// Where the TCP header starts over IPv4.
const TCP: usize = 34;

/// A frame of no protocol, or less than one.
pub(super) fn raw(from: &[u8; 6], to: &[u8; 6], len: usize, fill: u8) -> Vec<u8> {
    let header = to.iter().chain(from).chain(&[0x88, 0xb5]).copied();
    header.chain(core::iter::repeat(fill)).take(len).collect()
}

/// A TCP segment over IPv4 with data and right checksums, of at least 55 and at most 1,514 bytes.
pub(super) fn tcp(from: &[u8; 6], to: &[u8; 6], port: u16, sequence: u32, len: usize) -> Vec<u8> {
    let mut frame = headers(from, to, len.clamp(55, 1514));
    frame[TCP..TCP + 2].copy_from_slice(&port.to_be_bytes());
    frame[TCP + 4..TCP + 8].copy_from_slice(&sequence.to_be_bytes());
    frame[TCP + 16..TCP + 18].fill(0);
    let sum = !folded(pseudo(&frame) + sum(&frame[TCP..]));
    frame[TCP + 16..TCP + 18].copy_from_slice(&sum.to_be_bytes());
    frame
}

/// The same of any length, and without the TCP checksum: its field holds the sum of the pseudo-header.
fn headers(from: &[u8; 6], to: &[u8; 6], len: usize) -> Vec<u8> {
    let mut frame = raw(from, to, len, 0x22);
    frame[12..14].copy_from_slice(&[8, 0]);
    let total = u16::try_from(len - 14).unwrap_or(u16::MAX).to_be_bytes();
    let ip = [0x45, 0, total[0], total[1], 0, 0, 0, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2];
    frame[14..TCP].copy_from_slice(&ip);
    let check = !folded(sum(&frame[14..TCP]));
    frame[24..26].copy_from_slice(&check.to_be_bytes());
    frame[TCP + 12..TCP + 14].copy_from_slice(&[0x50, 0x10]);
    let check = folded(pseudo(&frame));
    frame[TCP + 16..TCP + 18].copy_from_slice(&check.to_be_bytes());
    frame
}

fn pseudo(frame: &[u8]) -> u32 {
    sum(&frame[26..TCP]) + 6 + (frame.len() - TCP) as u32
}

fn sum(bytes: &[u8]) -> u32 {
    let word = |pair: &[u8]| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0));
    bytes.chunks(2).map(word).sum()
}

fn folded(mut sum: u32) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

/// What the guest asks for, by the bits of a byte; the rest of the frame by its length.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wish(pub(super) u8);

impl Wish {
    /// Cut by the host.
    pub(super) fn is_large(self) -> bool {
        self.0 & 4 != 0
    }

    /// With its checksums filled in by whoever can.
    pub(super) fn asks_checksums(self) -> bool {
        self.0 & 2 != 0
    }

    /// From the guest's own pages, the part behind the headers.
    pub(super) fn is_paged(self) -> bool {
        self.0 & 0x90 == 0x90
    }

    /// Hands the frame to `send`.
    pub(super) fn with<T>(self, len: usize, send: impl FnOnce(&TxFrame<'_>) -> T) -> T {
        let Self(bits) = self;
        // Headers that are none are the guest's to find.
        let frame = if bits & 8 != 0 || len < 55 {
            raw(&MAC, &PEER, len, 0x45)
        } else {
            headers(&MAC, &PEER, len)
        };
        let cut = if bits & 16 != 0 { 54.min(frame.len()) } else { frame.len() };
        let (head, rest) = frame.split_at(cut);
        let checksum = TransmitChecksum::IPV4 | TransmitChecksum::TCP | TransmitChecksum::IP_HEADER;
        let large = LargeSend { segment: 1400, layer4: TCP as u16, ipv6: bits & 32 != 0 };
        send(&TxFrame {
            pieces: &[head, rest],
            vlan: (bits & 1 != 0).then_some(VlanTag(u16::from(bits))),
            checksum: if self.asks_checksums() {
                checksum.at(TCP as u16)
            } else {
                TransmitChecksum::empty()
            },
            large_send: self.is_large().then_some(large),
            hash: (bits & 64 != 0).then_some(u32::from(bits)),
        })
    }
}

//! What frames look like: their headers, the label behind them, and what fills the rest.

use netvsc::MacAddress;

/// EtherType of local experiments.
const EXPERIMENT: [u8; 2] = [0x88, 0xb5];
const IPV4: [u8; 2] = [0x08, 0x00];
const IPV6: [u8; 2] = [0x86, 0xdd];
const TCP: u8 = 6;
const UDP: u8 = 17;
/// Bytes of an Ethernet header.
const ETHERNET: usize = 14;
/// Bytes of the longest headers: Ethernet, IPv6, TCP.
const LONGEST: usize = ETHERNET + 40 + 20;
/// Bytes of a label: NIC, direction, flow, number.
const LABEL: usize = 2 + 1 + 1 + 8;

/// What a frame is above Ethernet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Raw,
    Udp4,
    Tcp4,
    Udp6,
    Tcp6,
}

impl Kind {
    const fn headers(self) -> usize {
        match self {
            Self::Raw => ETHERNET,
            Self::Udp4 => ETHERNET + 20 + 8,
            Self::Tcp4 => ETHERNET + 20 + 20,
            Self::Udp6 => ETHERNET + 40 + 8,
            Self::Tcp6 => LONGEST,
        }
    }

    const fn protocol(self) -> u8 {
        match self {
            Self::Tcp4 | Self::Tcp6 => TCP,
            Self::Raw | Self::Udp4 | Self::Udp6 => UDP,
        }
    }

    /// That of a frame, if it is one of ours.
    fn of(frame: &[u8]) -> Option<Self> {
        let kind: [u8; 2] = frame.get(12..14)?.try_into().ok()?;
        match kind {
            EXPERIMENT => Some(Self::Raw),
            IPV4 if frame.get(23) == Some(&TCP) => Some(Self::Tcp4),
            IPV4 => Some(Self::Udp4),
            IPV6 if frame.get(20) == Some(&TCP) => Some(Self::Tcp6),
            IPV6 => Some(Self::Udp6),
            _ => None,
        }
    }
}

/// The headers of a flow.
#[derive(Debug)]
pub(super) struct Headers {
    kind: Kind,
    /// As in every frame, without lengths, sequence number and checksum.
    bytes: [u8; LONGEST],
}

impl Headers {
    /// Those of the frames to and from these MACs. `hosts` are the last bytes of the IP addresses, likewise; so are `ports`.
    pub(super) fn new(
        kind: Kind,
        macs: [MacAddress; 2],
        hosts: [[u8; 2]; 2],
        ports: [u16; 2],
    ) -> Self {
        let mut bytes = [0; LONGEST];
        bytes[..6].copy_from_slice(&macs[0].0);
        bytes[6..12].copy_from_slice(&macs[1].0);
        let [to, from] = hosts;
        let layer4 = match kind {
            Kind::Raw => {
                bytes[12..14].copy_from_slice(&EXPERIMENT);
                return Self { kind, bytes };
            }
            Kind::Udp4 | Kind::Tcp4 => {
                bytes[12..14].copy_from_slice(&IPV4);
                (bytes[14], bytes[20], bytes[22]) = (0x45, 0x40, 64);
                bytes[23] = kind.protocol();
                bytes[26..30].copy_from_slice(&[10, 0, from[0], from[1]]);
                bytes[30..34].copy_from_slice(&[10, 0, to[0], to[1]]);
                34
            }
            Kind::Udp6 | Kind::Tcp6 => {
                bytes[12..14].copy_from_slice(&IPV6);
                (bytes[14], bytes[20], bytes[21]) = (0x60, kind.protocol(), 64);
                (bytes[22], bytes[38]) = (0xfd, 0xfd);
                bytes[36..38].copy_from_slice(&from);
                bytes[52..54].copy_from_slice(&to);
                54
            }
        };
        bytes[layer4..layer4 + 2].copy_from_slice(&ports[1].to_be_bytes());
        bytes[layer4 + 2..layer4 + 4].copy_from_slice(&ports[0].to_be_bytes());
        if kind.protocol() == TCP {
            // An acknowledgement: the first packet of a connection would go another way.
            bytes[layer4 + 12..layer4 + 16].copy_from_slice(&[0x50, 0x10, 0xff, 0xff]);
        }
        Self { kind, bytes }
    }

    /// The shortest frame that has room for headers and label.
    pub(super) const fn shortest(&self) -> usize {
        self.kind.headers() + LABEL
    }

    /// Those of a frame of so many bytes. Nobody on the way looks at the checksum of TCP or UDP.
    fn of_frame(&self, len: usize, number: u64) -> [u8; LONGEST] {
        let mut bytes = self.bytes;
        let beyond = |header: usize| (len.saturating_sub(header) as u16).to_be_bytes();
        let layer4 = match self.kind {
            Kind::Raw => return bytes,
            Kind::Udp4 | Kind::Tcp4 => {
                bytes[16..18].copy_from_slice(&beyond(ETHERNET));
                let (words, _) = bytes[14..34].as_chunks::<2>();
                let sum: u32 = words.iter().map(|word| u32::from(u16::from_be_bytes(*word))).sum();
                let folded = (sum & 0xffff) + (sum >> 16);
                let folded = (folded & 0xffff) + (folded >> 16);
                bytes[24..26].copy_from_slice(&(!(folded as u16)).to_be_bytes());
                34
            }
            Kind::Udp6 | Kind::Tcp6 => {
                bytes[18..20].copy_from_slice(&beyond(ETHERNET + 40));
                54
            }
        };
        if self.kind.protocol() == TCP {
            // No two segments follow each other, so that no host makes one of them.
            let sequence = (number as u32).wrapping_mul(0x1_0001);
            bytes[layer4 + 4..layer4 + 8].copy_from_slice(&sequence.to_be_bytes());
        } else {
            bytes[layer4 + 4..layer4 + 6].copy_from_slice(&beyond(layer4));
        }
        bytes
    }
}

/// Whose a frame is, and which.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Label {
    pub(super) nic: u16,
    pub(super) way: u8,
    pub(super) flow: u8,
    pub(super) number: u64,
}

impl Label {
    /// That of a frame, if it has one.
    pub(super) fn of(frame: &[u8]) -> Option<Self> {
        let at = Kind::of(frame)?.headers();
        let label: &[u8; LABEL] = frame.get(at..)?.first_chunk()?;
        let number = label[4..].iter().fold(0, |all, byte| all << 8 | u64::from(*byte));
        let nic = u16::from_be_bytes([label[0], label[1]]);
        Some(Self { nic, way: label[2], flow: label[3], number })
    }

    /// What the filling consists of, over and over; frames differ in it, and places within a frame by their number.
    fn filling(self) -> u64 {
        let whose = u64::from(self.nic) << 16 | u64::from(self.way) << 8 | u64::from(self.flow);
        self.number.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ whose
    }

    /// Makes the frame with this label, of `len` bytes.
    pub(super) fn write(self, headers: &Headers, len: usize, frame: &mut Vec<u8>) {
        let len = len.max(headers.shortest());
        frame.clear();
        frame.extend(&headers.of_frame(len, self.number)[..headers.kind.headers()]);
        frame.extend(self.nic.to_be_bytes());
        frame.extend([self.way, self.flow]);
        frame.extend(self.number.to_be_bytes());
        let filled = frame.len();
        frame.resize(len, 0);
        fill(&mut frame[filled..], self.filling());
    }

    /// Whether a frame with this label is as it was made.
    pub(super) fn is_on(self, headers: &Headers, frame: &[u8]) -> bool {
        let expected = headers.of_frame(frame.len(), self.number);
        let own = headers.kind.headers();
        frame.get(..own) == expected.get(..own)
            && frame.get(own + LABEL..).is_some_and(|rest| is_filled(rest, self.filling()))
    }
}

/// The eight bytes of a filling at their place.
fn word(filling: u64, place: usize) -> [u8; 8] {
    (filling ^ (place as u64).wrapping_mul(0x0101_0101_0101_0101)).to_le_bytes()
}

/// Fills a frame behind its label.
fn fill(rest: &mut [u8], filling: u64) {
    for (place, bytes) in rest.chunks_mut(8).enumerate() {
        bytes.copy_from_slice(&word(filling, place)[..bytes.len()]);
    }
}

/// Whether a frame is filled as it should be.
fn is_filled(rest: &[u8], filling: u64) -> bool {
    let (words, last) = rest.as_chunks::<8>();
    let right = words.iter().enumerate().all(|(place, bytes)| *bytes == word(filling, place));
    right && last == &word(filling, words.len())[..last.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_says_whose_it_is_and_every_changed_byte_of_it_is_noticed() {
        let label = Label { nic: 3, way: 1, flow: 4, number: 0x0102_0304_0506_0708 };
        for kind in [Kind::Raw, Kind::Udp4, Kind::Tcp4, Kind::Udp6, Kind::Tcp6] {
            let macs = [MacAddress([2; 6]), MacAddress([4; 6])];
            let headers = Headers::new(kind, macs, [[0, 1], [3, 2]], [80, 4096]);
            for len in [60, 101, 1514] {
                let mut frame = Vec::new();
                label.write(&headers, len, &mut frame);
                assert_eq!(frame.len(), len.max(headers.shortest()));
                assert_eq!(Label::of(&frame), Some(label), "{kind:?}");
                assert!(label.is_on(&headers, &frame), "{kind:?}");
                for at in 0..frame.len() {
                    frame[at] ^= 0x10;
                    let same = Label::of(&frame) == Some(label) && label.is_on(&headers, &frame);
                    assert!(!same, "{kind:?}, byte {at}");
                    frame[at] ^= 0x10;
                }
                assert_eq!(Label::of(&frame[..headers.shortest() - 1]), None);
            }
        }
    }
}

//! Which flow a frame belongs to, so that all of its frames take one queue.

use core::ops::Deref;

/// Bytes that a flow is known by at most: up to the ports of TCP over IPv6.
const HEAD: usize = 58;

/// The beginning of a frame that lies in pieces.
#[derive(Clone, Copy, Debug)]
pub(super) struct Head {
    bytes: [u8; HEAD],
    len: usize,
}

impl Head {
    pub(super) fn of(pieces: &[&[u8]]) -> Self {
        let mut head = Self { bytes: [0; HEAD], len: 0 };
        for piece in pieces {
            let Some(room) = head.bytes.get_mut(head.len..).filter(|room| !room.is_empty()) else {
                break;
            };
            for (to, from) in room.iter_mut().zip(*piece) {
                *to = *from;
                head.len += 1;
            }
        }
        head
    }
}

impl Deref for Head {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.bytes.get(..self.len).unwrap_or_default()
    }
}

/// A number that all frames of a flow share: that of addresses, protocol and ports where a frame is of IPv4 without options or
/// of IPv6, and that of its Ethernet header otherwise. FNV-1a, which nobody has to withstand: it chooses among own queues.
#[must_use]
pub fn of(frame: &[u8]) -> u32 {
    let kind = frame.get(12..14);
    let (protocol, addresses, ports) = match (kind, frame.get(14)) {
        (Some([0x08, 0x00]), Some(0x45)) => (23, 26..34, 34..38),
        (Some([0x86, 0xdd]), Some(0x60..=0x6f)) => (20, 22..54, 54..HEAD),
        _ => return fnv(frame.get(..14).unwrap_or(frame).iter()),
    };
    let protocol = frame.get(protocol..=protocol).unwrap_or_default();
    let addresses = frame.get(addresses).unwrap_or_default();
    // Pieces of a datagram have no ports, except the first; all go by their addresses.
    let whole = kind != Some(&[0x08, 0x00])
        || matches!(frame.get(20..22), Some([flags, 0]) if flags & 0x3f == 0);
    let ports = match protocol {
        [6 | 17] if whole => frame.get(ports).unwrap_or_default(),
        _ => &[],
    };
    fnv(protocol.iter().chain(addresses).chain(ports))
}

fn fnv<'a>(bytes: impl Iterator<Item = &'a u8>) -> u32 {
    let hash = bytes
        .fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193));
    // The low bits of the product are the weakest.
    hash ^ hash >> 16
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::collections::BTreeSet;
    use alloc::vec;
    use alloc::vec::Vec;

    fn tcp(port: u8, fragment: [u8; 2]) -> Vec<u8> {
        let mut frame = vec![2; 12];
        frame.extend([8, 0, 0x45, 0, 0, 40, 0, 0, fragment[0], fragment[1], 64, 6, 0, 0]);
        frame.extend([10, 0, 0, 1, 10, 0, 0, 2, 0x1f, port, 0, 80]);
        frame.extend([0; 16]);
        frame
    }

    #[test]
    fn a_flow_stays_together_and_flows_are_told_apart() {
        assert_eq!(of(&tcp(1, [0, 0])), of(&tcp(1, [0x40, 0])));
        let numbers: BTreeSet<u32> = (0..64).map(|port| of(&tcp(port, [0, 0])) % 4).collect();
        assert_eq!(numbers.len(), 4, "64 flows use all of 4 queues");
        // The pieces of one datagram stay together, though only the first has ports.
        assert_eq!(of(&tcp(1, [0x20, 0])), of(&tcp(2, [0, 9])));
        for len in 0..54 {
            let _ = of(&tcp(1, [0, 0])[..len]);
        }
    }

    #[test]
    fn where_a_frame_is_divided_makes_no_difference() {
        let frame = tcp(9, [0, 0]);
        for at in 0..frame.len() {
            let (first, second) = frame.split_at(at);
            assert_eq!(of(&Head::of(&[first, second])), of(&frame), "divided at {at}");
        }
        assert_eq!(of(&Head::of(&[])), of(&[]));
    }
}

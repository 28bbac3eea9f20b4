//! Receive side scaling: which of a guest's queues gets a frame, by a Toeplitz hash over its addresses and ports.

use netvsc::rndis::scaling::{HashTypes, KEY_SIZE};

use super::frame::{Flow, Transport};

/// Longest input of the hash: two IPv6 addresses and two ports.
const LONGEST_INPUT: usize = 36;

/// A hash with its key worked in: one table look-up per byte.
#[derive(Clone)]
pub struct Toeplitz {
    tables: Box<[[u32; 256]; LONGEST_INPUT]>,
}

impl std::fmt::Debug for Toeplitz {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Toeplitz")
    }
}

impl Toeplitz {
    /// The hash with this key.
    #[must_use]
    pub fn new(key: &[u8; KEY_SIZE]) -> Self {
        let mut tables = Box::new([[0; 256]; LONGEST_INPUT]);
        for (at, table) in tables.iter_mut().enumerate() {
            // The 40 bits of the key that meet the 8 bits of this byte.
            let bits = key[at..at + 5].iter().fold(0u64, |bits, byte| bits << 8 | u64::from(*byte));
            for (byte, entry) in table.iter_mut().enumerate() {
                for bit in (0..8).filter(|bit| byte & 0x80 >> bit != 0) {
                    *entry ^= (bits >> (8 - bit)) as u32;
                }
            }
        }
        Self { tables }
    }

    /// The hash over up to 36 bytes; those beyond do not count.
    #[must_use]
    pub fn hash(&self, input: &[u8]) -> u32 {
        let bytes = self.tables.iter().zip(input);
        bytes.fold(0, |hash, (table, byte)| hash ^ table[usize::from(*byte)])
    }
}

/// How frames are spread over queues.
#[derive(Clone, Debug)]
pub struct Spread {
    /// The hash.
    pub hash: Toeplitz,
    /// What it is taken over.
    pub types: HashTypes,
    /// Queue by hash, modulo the length of the table.
    pub table: Vec<u16>,
}

impl Spread {
    /// The queue of a frame, and its hash if it has one: what is neither TCP, UDP nor IP as far as asked for goes to
    /// queue 0.
    #[must_use]
    pub fn place(&self, frame: &[u8]) -> (u16, Option<u32>) {
        let Some(hash) = self.hash_of(frame) else { return (0, None) };
        let entry = hash as usize % self.table.len().max(1);
        (self.table.get(entry).copied().unwrap_or(0), Some(hash))
    }

    fn hash_of(&self, frame: &[u8]) -> Option<u32> {
        let flow = Flow::of(frame)?;
        let (addresses, tcp, udp) = if flow.ipv6 {
            (HashTypes::IPV6, HashTypes::TCP_IPV6, HashTypes::UDP_IPV6)
        } else {
            (HashTypes::IPV4, HashTypes::TCP_IPV4, HashTypes::UDP_IPV4)
        };
        let with_ports = match flow.transport {
            Transport::Tcp => self.types.contains(tcp),
            Transport::Udp => self.types.contains(udp),
            Transport::Other => false,
        };
        let mut input = [0; LONGEST_INPUT];
        let (head, rest) = input.split_at_mut(flow.addresses.len());
        head.copy_from_slice(flow.addresses);
        if with_ports {
            rest.get_mut(..4)?.copy_from_slice(flow.ports?);
            return Some(self.hash.hash(&input[..flow.addresses.len() + 4]));
        }
        self.types.contains(addresses).then(|| self.hash.hash(flow.addresses))
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr};

    use super::*;

    /// The key that comes with the published examples.
    const KEY: [u8; KEY_SIZE] = [
        0x6d, 0x5a, 0x56, 0xda, 0x25, 0x5b, 0x0e, 0xc2, 0x41, 0x67, 0x25, 0x3d, 0x43, 0xa3, 0x8f,
        0xb0, 0xd0, 0xca, 0x2b, 0xcb, 0xae, 0x7b, 0x30, 0xb4, 0x77, 0xcb, 0x2d, 0xa3, 0x80, 0x30,
        0xf2, 0x0c, 0x6a, 0x42, 0xb7, 0x3b, 0xbe, 0xac, 0x01, 0xfa,
    ];

    fn spread(types: HashTypes) -> Spread {
        Spread { hash: Toeplitz::new(&KEY), types, table: (0..16).collect() }
    }

    fn ipv4(protocol: u8, from: ([u8; 4], u16), to: ([u8; 4], u16)) -> Vec<u8> {
        let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 0, 0x45, 0, 0, 40];
        frame.extend([0, 0, 0, 0, 64, protocol, 0, 0]);
        frame.extend(from.0);
        frame.extend(to.0);
        frame.extend(from.1.to_be_bytes());
        frame.extend(to.1.to_be_bytes());
        frame.resize(frame.len() + 16, 0);
        frame
    }

    fn ipv6(protocol: u8, from: (Ipv6Addr, u16), to: (Ipv6Addr, u16)) -> Vec<u8> {
        let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 0x86, 0xdd, 0x60, 0, 0, 0, 0, 20];
        frame.extend([protocol, 64]);
        frame.extend(from.0.octets());
        frame.extend(to.0.octets());
        frame.extend(from.1.to_be_bytes());
        frame.extend(to.1.to_be_bytes());
        frame.resize(frame.len() + 16, 0);
        frame
    }

    // The examples that Microsoft publishes for verifying RSS.
    #[test]
    fn the_published_examples_hash_as_published() {
        for (from, to, bare, tcp) in [
            (("66.9.149.187", 2794), ("161.142.100.80", 1766), 0x323e_8fc2, 0x51cc_c178),
            (("199.92.111.2", 14230), ("65.69.140.83", 4739), 0xd718_262a, 0xc626_b0ea),
            (("24.19.198.95", 12898), ("12.22.207.184", 38024), 0xd2d0_a5de, 0x5c2b_394a),
            (("38.27.205.30", 48228), ("209.142.163.6", 2217), 0x8298_9176, 0xafc7_327f),
            (("153.39.163.191", 44251), ("202.188.127.2", 1303), 0x5d18_09c5, 0x10e8_28a2),
        ] {
            let address = |text: &str| text.parse::<Ipv4Addr>().unwrap().octets();
            let (from, to) = ((address(from.0), from.1), (address(to.0), to.1));
            let frame = ipv4(6, from, to);
            assert_eq!(spread(HashTypes::IPV4).place(&frame).1, Some(bare));
            assert_eq!(spread(HashTypes::all()).place(&frame), ((tcp % 16) as u16, Some(tcp)));
            assert_eq!(spread(HashTypes::UDP_IPV4).place(&ipv4(17, from, to)).1, Some(tcp));
            assert_eq!(spread(HashTypes::UDP_IPV4).place(&frame), (0, None));
            assert_eq!(spread(HashTypes::all()).place(&ipv4(50, from, to)).1, Some(bare));
        }
        for (from, to, bare, tcp) in [
            (
                ("3ffe:2501:200:1fff::7", 2794),
                ("3ffe:2501:200:3::1", 1766),
                0x2cc1_8cd5,
                0x4020_7d3d,
            ),
            (
                ("3ffe:501:8::260:97ff:fe40:efab", 14230),
                ("ff02::1", 4739),
                0x0f0c_461c,
                0xdde5_1bbf,
            ),
            (
                ("3ffe:1900:4545:3:200:f8ff:fe21:67cf", 44251),
                ("fe80::200:f8ff:fe21:67cf", 38024),
                0x4b61_e985,
                0x02d1_feef,
            ),
        ] {
            let address = |text: &str| text.parse::<Ipv6Addr>().unwrap();
            let (from, to) = ((address(from.0), from.1), (address(to.0), to.1));
            assert_eq!(spread(HashTypes::IPV6).place(&ipv6(6, from, to)).1, Some(bare));
            assert_eq!(spread(HashTypes::TCP_IPV6).place(&ipv6(6, from, to)).1, Some(tcp));
            assert_eq!(spread(HashTypes::UDP_IPV6).place(&ipv6(17, from, to)).1, Some(tcp));
        }
    }

    #[test]
    fn fragments_and_strangers_have_no_ports() {
        let (from, to) = (([10, 0, 0, 1], 5), ([10, 0, 0, 2], 6));
        let mut fragment = ipv4(6, from, to);
        let whole = spread(HashTypes::all()).place(&fragment).1;
        fragment[14 + 6] = 0x20;
        let hash = spread(HashTypes::all()).place(&fragment).1;
        assert_ne!(hash, whole);
        assert_eq!(hash, spread(HashTypes::IPV4).place(&fragment).1);
        assert_eq!(spread(HashTypes::TCP_IPV4).place(&fragment), (0, None));
        assert_eq!(spread(HashTypes::all()).place(&[2; 60]), (0, None));
        let frame = ipv4(6, from, to);
        for len in 0..frame.len() {
            let _ = spread(HashTypes::all()).place(&frame[..len]);
        }
        let none = Spread { table: Vec::new(), ..spread(HashTypes::all()) };
        assert_eq!(none.place(&frame).0, 0);
    }
}

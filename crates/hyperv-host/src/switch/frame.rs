//! What the switch needs to know about a frame to choose the side that gets it.

/// Bytes of an Ethernet header.
pub(super) const ETHERNET_HEADER: usize = 14;

const ETHERTYPE_IPV4: u16 = 0x0800;
const ETHERTYPE_IPV6: u16 = 0x86dd;
const ETHERTYPE_VLAN: u16 = 0x8100;
const ETHERTYPE_QINQ: u16 = 0x88a8;
const PROTOCOL_TCP: u8 = 6;
const PROTOCOL_UDP: u8 = 17;
const TCP_SYN: u8 = 0x02;
const TCP_ACK: u8 = 0x10;

/// Destination address.
pub(super) fn destination(frame: &[u8]) -> Option<[u8; 6]> {
    frame.first_chunk().copied()
}

/// Whether the destination is a group, the broadcast address included.
pub(super) fn is_group(frame: &[u8]) -> bool {
    frame.first().is_some_and(|first| first & 1 != 0)
}

/// Whether the host delivers this frame on the synthetic side although the VF is active: broadcast, multicast, and
/// the first packet of a TCP connection, which the host's software switch looks at before it hands a flow to the
/// hardware.
pub(super) fn always_synthetic(frame: &[u8]) -> bool {
    is_group(frame) || is_tcp_syn(frame)
}

/// Protocol above IP, as far as ports go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Transport {
    Tcp,
    Udp,
    /// Another one, or a fragment.
    Other,
}

/// What tells the packets of one conversation from others.
#[derive(Clone, Copy, Debug)]
pub(super) struct Flow<'a> {
    pub ipv6: bool,
    /// Source and destination address.
    pub addresses: &'a [u8],
    pub transport: Transport,
    /// Source and destination port, if they are there.
    pub ports: Option<&'a [u8]>,
    /// Where the header of the transport starts.
    pub layer4: usize,
}

impl<'a> Flow<'a> {
    /// Of a frame that is IPv4, or IPv6 without extension headers, with up to two VLAN tags.
    pub(super) fn of(frame: &'a [u8]) -> Option<Self> {
        let word = |at: usize| Some(u16::from_be_bytes(*frame.get(at..)?.first_chunk()?));
        let mut at = 12;
        while at < 20 && matches!(word(at)?, ETHERTYPE_VLAN | ETHERTYPE_QINQ) {
            at += 4;
        }
        let ip = at + 2;
        let (ipv6, layer4, protocol, addresses, fragment) = match word(at)? {
            ETHERTYPE_IPV4 => {
                let layer4 = ip + usize::from(frame.get(ip)? & 0xf) * 4;
                let fragment = word(ip + 6)? & 0x3fff != 0;
                (false, layer4, *frame.get(ip + 9)?, frame.get(ip + 12..ip + 20)?, fragment)
            }
            ETHERTYPE_IPV6 => {
                (true, ip + 40, *frame.get(ip + 6)?, frame.get(ip + 8..ip + 40)?, false)
            }
            _ => return None,
        };
        let transport = match protocol {
            PROTOCOL_TCP if !fragment => Transport::Tcp,
            PROTOCOL_UDP if !fragment => Transport::Udp,
            _ => Transport::Other,
        };
        let ports =
            if transport == Transport::Other { None } else { frame.get(layer4..layer4 + 4) };
        let transport = if ports.is_none() { Transport::Other } else { transport };
        Some(Self { ipv6, addresses, transport, ports, layer4 })
    }
}

/// Whether the frame opens a TCP connection: SYN without ACK.
fn is_tcp_syn(frame: &[u8]) -> bool {
    let Some(flow) = Flow::of(frame).filter(|flow| flow.transport == Transport::Tcp) else {
        return false;
    };
    frame.get(flow.layer4 + 13).is_some_and(|flags| flags & (TCP_SYN | TCP_ACK) == TCP_SYN)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ipv4_tcp(tags: usize, options: usize, flags: u8) -> Vec<u8> {
        let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];
        for _ in 0..tags {
            frame.extend([0x81, 0x00, 0x00, 0x05]);
        }
        frame.extend([0x08, 0x00]);
        let mut ip = vec![0; 20 + options];
        ip[0] = 0x40 | ((20 + options) / 4) as u8;
        ip[9] = PROTOCOL_TCP;
        frame.extend(ip);
        let mut tcp = [0; 20];
        tcp[13] = flags;
        frame.extend(tcp);
        frame
    }

    #[test]
    fn a_syn_is_found_behind_tags_and_options() {
        for tags in 0..=2 {
            for options in [0, 4, 40] {
                assert!(always_synthetic(&ipv4_tcp(tags, options, TCP_SYN)));
                assert!(!always_synthetic(&ipv4_tcp(tags, options, TCP_ACK)));
                assert!(!always_synthetic(&ipv4_tcp(tags, options, TCP_SYN | TCP_ACK)));
            }
        }
    }

    #[test]
    fn a_syn_over_ipv6_is_found() {
        let mut frame = vec![0; 14 + 40 + 20];
        frame[12..14].copy_from_slice(&[0x86, 0xdd]);
        frame[14 + 6] = PROTOCOL_TCP;
        frame[14 + 40 + 13] = TCP_SYN;
        assert!(always_synthetic(&frame));
        frame[14 + 6] = 17;
        assert!(!always_synthetic(&frame));
    }

    #[test]
    fn a_later_fragment_is_not_a_syn() {
        let mut frame = ipv4_tcp(0, 0, TCP_SYN);
        frame[14 + 7] = 1;
        assert!(!always_synthetic(&frame));
    }

    #[test]
    fn groups_are_always_synthetic() {
        assert!(always_synthetic(&[0xff; 14]));
        assert!(always_synthetic(&[1, 0, 0x5e, 0, 0, 1, 2, 0, 0, 0, 0, 1, 8, 0]));
    }

    #[test]
    fn short_frames_are_judged_without_looking_behind_their_end() {
        let frame = ipv4_tcp(1, 0, TCP_SYN);
        for len in 0..frame.len() {
            let _ = always_synthetic(&frame[..len]);
            let _ = destination(&frame[..len]);
        }
    }
}

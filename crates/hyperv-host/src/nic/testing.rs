//! Frames for tests, judged by an implementation that is not ours.

use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::*;

const MACS: [EthernetAddress; 2] =
    [EthernetAddress([0, 0x15, 0x5d, 0, 0, 1]), EthernetAddress([2, 0, 0, 0, 0, 9])];
const V4: [Ipv4Address; 2] = [Ipv4Address::new(10, 0, 0, 1), Ipv4Address::new(10, 0, 0, 2)];
const V6: [Ipv6Address; 2] =
    [Ipv6Address::new(0xfd00, 0, 0, 0, 0, 0, 0, 1), Ipv6Address::new(0xfd00, 0, 0, 0, 0, 0, 0, 2)];

fn ethernet(ethertype: EthernetProtocol, payload: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0; 14 + payload.len()];
    let mut frame = EthernetFrame::new_unchecked(&mut bytes[..]);
    frame.set_dst_addr(MACS[0]);
    frame.set_src_addr(MACS[1]);
    frame.set_ethertype(ethertype);
    frame.payload_mut().copy_from_slice(payload);
    bytes
}

fn ipv4(protocol: IpProtocol, payload: &[u8]) -> Vec<u8> {
    let repr = Ipv4Repr {
        src_addr: V4[0],
        dst_addr: V4[1],
        next_header: protocol,
        payload_len: payload.len(),
        hop_limit: 64,
    };
    let mut bytes = vec![0; 20 + payload.len()];
    let mut packet = Ipv4Packet::new_unchecked(&mut bytes[..]);
    repr.emit(&mut packet, &ChecksumCapabilities::default());
    packet.payload_mut().copy_from_slice(payload);
    ethernet(EthernetProtocol::Ipv4, &bytes)
}

fn ipv6(protocol: IpProtocol, payload: &[u8]) -> Vec<u8> {
    let repr = Ipv6Repr {
        src_addr: V6[0],
        dst_addr: V6[1],
        next_header: protocol,
        payload_len: payload.len(),
        hop_limit: 64,
    };
    let mut bytes = vec![0; 40 + payload.len()];
    let mut packet = Ipv6Packet::new_unchecked(&mut bytes[..]);
    repr.emit(&mut packet);
    packet.payload_mut().copy_from_slice(payload);
    ethernet(EthernetProtocol::Ipv6, &bytes)
}

fn tcp(sequence: u32, flags: u8, data: &[u8], from: IpAddress, to: IpAddress) -> Vec<u8> {
    let mut bytes = vec![0; 20 + data.len()];
    let mut segment = TcpPacket::new_unchecked(&mut bytes[..]);
    segment.set_src_port(4000);
    segment.set_dst_port(80);
    segment.set_seq_number(TcpSeqNumber(sequence as i32));
    segment.set_ack_number(TcpSeqNumber(1));
    segment.set_header_len(20);
    segment.set_window_len(0x2000);
    bytes[13] = flags;
    bytes[20..].copy_from_slice(data);
    TcpPacket::new_unchecked(&mut bytes[..]).fill_checksum(&from, &to);
    bytes
}

/// A TCP segment over IPv4 with these flags.
pub fn tcp4(sequence: u32, flags: u8, data: &[u8]) -> Vec<u8> {
    ipv4(IpProtocol::Tcp, &tcp(sequence, flags, data, V4[0].into(), V4[1].into()))
}

/// The same over IPv6.
pub fn tcp6(sequence: u32, flags: u8, data: &[u8]) -> Vec<u8> {
    ipv6(IpProtocol::Tcp, &tcp(sequence, flags, data, V6[0].into(), V6[1].into()))
}

/// A UDP datagram over IPv4 from this port.
pub fn udp4(port: u16, data: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0; 8 + data.len()];
    let mut datagram = UdpPacket::new_unchecked(&mut bytes[..]);
    datagram.set_src_port(port);
    datagram.set_dst_port(53);
    datagram.set_len(8 + data.len() as u16);
    datagram.payload_mut().copy_from_slice(data);
    datagram.fill_checksum(&V4[0].into(), &V4[1].into());
    ipv4(IpProtocol::Udp, &bytes)
}

/// Whether lengths and checksums of a frame with TCP or UDP are right.
pub fn is_valid(frame: &[u8]) -> bool {
    let tag = if frame[12..14] == [0x81, 0] { 4 } else { 0 };
    let (ethertype, packet) = (&frame[12 + tag..14 + tag], &frame[14 + tag..]);
    let (from, to, protocol, payload): (IpAddress, IpAddress, _, _) = if ethertype == [8, 0] {
        let Ok(packet) = Ipv4Packet::new_checked(packet) else { return false };
        if !packet.verify_checksum() || usize::from(packet.total_len()) != frame.len() - 14 - tag {
            return false;
        }
        let (from, to) = (packet.src_addr().into(), packet.dst_addr().into());
        (
            from,
            to,
            packet.next_header(),
            frame[14 + tag + usize::from(packet.header_len())..].to_vec(),
        )
    } else {
        let Ok(packet) = Ipv6Packet::new_checked(packet) else { return false };
        if usize::from(packet.payload_len()) != frame.len() - 54 - tag {
            return false;
        }
        let (from, to) = (packet.src_addr().into(), packet.dst_addr().into());
        (from, to, packet.next_header(), frame[54 + tag..].to_vec())
    };
    match protocol {
        IpProtocol::Tcp => {
            TcpPacket::new_checked(&payload[..]).is_ok_and(|tcp| tcp.verify_checksum(&from, &to))
        }
        IpProtocol::Udp => {
            UdpPacket::new_checked(&payload[..]).is_ok_and(|udp| udp.verify_checksum(&from, &to))
        }
        _ => false,
    }
}

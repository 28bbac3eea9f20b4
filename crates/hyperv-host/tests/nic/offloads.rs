//! Work that the guest leaves to the host, and the same work where the host does not do it.

use hyperv_host::nic::{NicServiceConfig, OffloadPolicy};
use netvsc::adapter::Synthetic;
use netvsc::nic::{NicOffloads, TransmitError, TxFrame};
use netvsc::nvsp::Version;
use netvsc::rndis::offload::OffloadCapabilities;
use netvsc::rndis::packet::{LargeSend, TransmitChecksum};
use netvsc::{NicConfig, NicEvent};
use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{
    EthernetAddress, EthernetFrame, EthernetProtocol, EthernetRepr, IpAddress, IpProtocol,
    Ipv4Address, Ipv4Packet, Ipv4Repr, Ipv6Address, Ipv6Packet, Ipv6Repr, TcpControl, TcpPacket,
    TcpRepr, TcpSeqNumber, UdpPacket, UdpRepr,
};

use crate::world::*;

pub const FROM4: Ipv4Address = Ipv4Address::new(10, 0, 0, 1);
pub const TO4: Ipv4Address = Ipv4Address::new(10, 0, 0, 2);
pub const FROM6: Ipv6Address = Ipv6Address::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);
pub const TO6: Ipv6Address = Ipv6Address::new(0xfe80, 0, 0, 0, 0, 0, 0, 2);
pub const ETHERNET: usize = 14;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Tcp,
    Udp,
}

/// Where the header of TCP or UDP starts.
pub fn layer4(ipv6: bool) -> u16 {
    if ipv6 { 54 } else { 34 }
}

/// A frame of the guest with all checksums right.
pub fn good_frame(kind: Kind, ipv6: bool, payload: &[u8]) -> Vec<u8> {
    let (from, to) = if ipv6 {
        (IpAddress::Ipv6(FROM6), IpAddress::Ipv6(TO6))
    } else {
        (IpAddress::Ipv4(FROM4), IpAddress::Ipv4(TO4))
    };
    let header = if kind == Kind::Tcp { 20 } else { 8 };
    let start = usize::from(layer4(ipv6));
    let mut frame = vec![0; start + header + payload.len()];
    EthernetRepr {
        src_addr: EthernetAddress(MAC.0),
        dst_addr: EthernetAddress(PEER.0),
        ethertype: if ipv6 { EthernetProtocol::Ipv6 } else { EthernetProtocol::Ipv4 },
    }
    .emit(&mut EthernetFrame::new_unchecked(&mut frame[..]));
    let protocol = if kind == Kind::Tcp { IpProtocol::Tcp } else { IpProtocol::Udp };
    let (payload_len, hop_limit) = (header + payload.len(), 64);
    if ipv6 {
        let repr = Ipv6Repr {
            src_addr: FROM6,
            dst_addr: TO6,
            next_header: protocol,
            payload_len,
            hop_limit,
        };
        repr.emit(&mut Ipv6Packet::new_unchecked(&mut frame[ETHERNET..]));
    } else {
        let repr = Ipv4Repr {
            src_addr: FROM4,
            dst_addr: TO4,
            next_header: protocol,
            payload_len,
            hop_limit,
        };
        let sums = ChecksumCapabilities::default();
        repr.emit(&mut Ipv4Packet::new_unchecked(&mut frame[ETHERNET..]), &sums);
    }
    let sums = ChecksumCapabilities::default();
    match kind {
        Kind::Tcp => TcpRepr {
            src_port: 1000,
            dst_port: 2000,
            control: TcpControl::None,
            seq_number: TcpSeqNumber(77),
            ack_number: Some(TcpSeqNumber(99)),
            window_len: 1024,
            window_scale: None,
            max_seg_size: None,
            sack_permitted: false,
            sack_ranges: [None; 3],
            timestamp: None,
            payload,
        }
        .emit(&mut TcpPacket::new_unchecked(&mut frame[start..]), &from, &to, &sums),
        Kind::Udp => UdpRepr { src_port: 1000, dst_port: 2000 }.emit(
            &mut UdpPacket::new_unchecked(&mut frame[start..]),
            &from,
            &to,
            payload.len(),
            |out| out.copy_from_slice(payload),
            &sums,
        ),
    }
    frame
}

/// The sum of the pseudo-header, as a stack leaves it in the checksum field.
fn pseudo_sum(frame: &[u8], kind: Kind, ipv6: bool) -> u16 {
    let addresses = if ipv6 {
        &frame[ETHERNET + 8..ETHERNET + 40]
    } else {
        &frame[ETHERNET + 12..ETHERNET + 20]
    };
    let length = frame.len() - usize::from(layer4(ipv6));
    let protocol = if kind == Kind::Tcp { 6 } else { 17 };
    let words = addresses.chunks(2).map(|word| u32::from(word[0]) << 8 | u32::from(word[1]));
    let mut sum = words.sum::<u32>() + length as u32 + protocol;
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

/// The frame with its checksums left to the host, and the request.
pub fn left_to_host(good: &[u8], kind: Kind, ipv6: bool) -> (Vec<u8>, TransmitChecksum) {
    let mut frame = good.to_vec();
    let start = usize::from(layer4(ipv6));
    let (field, what) = match kind {
        Kind::Tcp => (16, TransmitChecksum::TCP),
        Kind::Udp => (6, TransmitChecksum::UDP),
    };
    let sum = pseudo_sum(&frame, kind, ipv6).to_be_bytes();
    frame[start + field..start + field + 2].copy_from_slice(&sum);
    let mut request = what | if ipv6 { TransmitChecksum::IPV6 } else { TransmitChecksum::IPV4 };
    if !ipv6 {
        request |= TransmitChecksum::IP_HEADER;
        frame[ETHERNET + 10..ETHERNET + 12].fill(0);
    }
    (frame, request.at(layer4(ipv6)))
}

fn world_of(offloads: NicOffloads, policy: OffloadPolicy) -> World {
    let config = NicConfig { offloads, ..NicConfig::default() };
    let mut service = NicServiceConfig::new(MAC);
    service.policy.versions = Version::ALL.to_vec();
    service.policy.offloads = policy;
    let sizes = Sizes { ring: 33, receive: 256, send: 256 };
    let mut world = world_with(config, &sizes, service);
    world.settle();
    assert!(matches!(world.events.pop_front(), Some(NicEvent::Ready { .. })));
    world
}

const NOTHING: OffloadPolicy = OffloadPolicy {
    checksum: false,
    udp_checksum: false,
    ip_options: false,
    tcp_options: false,
    large_send: 0,
    coalescing: false,
    stale_checksums: false,
};

#[test]
fn every_version_comes_up_and_carries_frames() {
    for version in Version::ALL {
        let mut world = world(NicConfig::default(), &ROOMY, &[version]);
        world.settle();
        assert!(matches!(world.events[0], NicEvent::Ready { version: got, .. } if got == version));
        let (out, back) = (frame(PEER, MAC, 600, 1), frame(MAC, PEER, 900, 2));
        world.nic.transmit(&out).unwrap();
        world.nic.flush();
        world.peer_sends(&back);
        world.settle();
        assert_eq!((&world.at_peer, &world.received), (&vec![out], &vec![back]), "{version}");
        world.nic.shutdown(world.now);
        world.settle();
        assert_eq!(world.events.back(), Some(&NicEvent::Stopped), "{version}");
        assert_eq!(world.nic.stats().bad.total(), 0, "{version}");
    }
}

#[test]
fn checksums_are_right_whoever_computes_them() {
    for (policy, computed_here) in [(OffloadPolicy::default(), 0), (NOTHING, 1)] {
        for kind in [Kind::Tcp, Kind::Udp] {
            for ipv6 in [false, true] {
                for len in [0, 1, 37, 1000] {
                    let mut world = world_of(NicOffloads::default(), policy);
                    let payload: Vec<u8> = (0..len).map(|at| at as u8).collect();
                    let good = good_frame(kind, ipv6, &payload);
                    let (bytes, checksum) = left_to_host(&good, kind, ipv6);
                    // Cut in odd places behind the headers.
                    let (head, tail) = bytes.split_at(bytes.len() - len / 3);
                    let pieces = [head, tail];
                    world
                        .nic
                        .transmit_with(&TxFrame { checksum, ..TxFrame::plain(&pieces) })
                        .unwrap();
                    world.nic.flush();
                    world.settle();
                    assert_eq!(world.at_peer, [good], "{kind:?} IPv6 {ipv6} {len} {policy:?}");
                    assert_eq!(world.nic.stats().tx_checksums, computed_here);
                    assert_eq!(world.nic.stats().tx_refused, 0);
                }
            }
        }
    }
}

#[test]
fn a_long_segment_leaves_the_switch_in_pieces_that_are_right() {
    for ipv6 in [false, true] {
        let mut world = world_of(NicOffloads::ALL, OffloadPolicy::default());
        assert!(world.nic.info().large_send > 30_000, "{:?}", world.nic.info());
        let payload: Vec<u8> = (0..30_000u32).map(|at| (at % 251) as u8).collect();
        let long = good_frame(Kind::Tcp, ipv6, &payload);
        let send = LargeSend { segment: 1400, layer4: layer4(ipv6), ipv6 };
        let pieces = [&long[..]];
        let frame = TxFrame { large_send: Some(send), ..TxFrame::plain(&pieces) };
        world.nic.transmit_with(&frame).unwrap();
        world.nic.flush();
        world.settle();
        assert_eq!(world.at_peer.len(), 30_000usize.div_ceil(1400));
        let mut whole = vec![];
        for (number, frame) in world.at_peer.iter().enumerate() {
            let (from, to, packet) = if ipv6 {
                let ip = Ipv6Packet::new_checked(&frame[ETHERNET..]).unwrap();
                (IpAddress::Ipv6(FROM6), IpAddress::Ipv6(TO6), ip.payload())
            } else {
                let ip = Ipv4Packet::new_checked(&frame[ETHERNET..]).unwrap();
                assert!(ip.verify_checksum(), "segment {number}");
                (IpAddress::Ipv4(FROM4), IpAddress::Ipv4(TO4), ip.payload())
            };
            let tcp = TcpPacket::new_checked(packet).unwrap();
            assert!(tcp.verify_checksum(&from, &to), "segment {number}");
            assert_eq!(tcp.seq_number(), TcpSeqNumber(77) + number * 1400);
            whole.extend_from_slice(tcp.payload());
        }
        assert_eq!(whole, payload);
        let stats = world.nic.stats();
        assert_eq!((stats.tx_large, stats.tx_refused), (1, 0));
    }
}

/// A TCP segment with twelve bytes of options.
fn with_options(ipv6: bool, payload: &[u8]) -> Vec<u8> {
    let mut frame = good_frame(Kind::Tcp, ipv6, &[&[1; 12], payload].concat());
    let start = usize::from(layer4(ipv6));
    frame[start + 12] = 0x80;
    let (from, to) = match ipv6 {
        true => (IpAddress::Ipv6(FROM6), IpAddress::Ipv6(TO6)),
        false => (IpAddress::Ipv4(FROM4), IpAddress::Ipv4(TO4)),
    };
    TcpPacket::new_unchecked(&mut frame[start..]).fill_checksum(&from, &to);
    frame
}

#[test]
fn checksums_of_segments_with_options_are_left_to_hosts_that_offer_that() {
    let without = OffloadPolicy { tcp_options: false, ..OffloadPolicy::default() };
    for (policy, computed_here) in [(OffloadPolicy::default(), 0), (without, 1)] {
        for ipv6 in [false, true] {
            let mut world = world_of(NicOffloads::default(), policy);
            let good = with_options(ipv6, &[7; 500]);
            let (bytes, checksum) = left_to_host(&good, Kind::Tcp, ipv6);
            let plain = good_frame(Kind::Tcp, ipv6, &[7; 500]);
            let (others, other) = left_to_host(&plain, Kind::Tcp, ipv6);
            for (bytes, checksum) in [(bytes, checksum), (others, other)] {
                let pieces = [&bytes[..]];
                let frame = TxFrame { checksum, ..TxFrame::plain(&pieces) };
                world.nic.transmit_with(&frame).unwrap();
            }
            world.nic.flush();
            world.settle();
            assert_eq!(world.at_peer, [good, plain], "IPv6 {ipv6} {policy:?}");
            assert_eq!(world.nic.stats().tx_checksums, computed_here);
            assert_eq!(world.nic.stats().tx_refused, 0);
        }
    }
}

#[test]
fn headers_with_ip_options_are_summed_by_hosts_that_offer_that() {
    let without = OffloadPolicy { ip_options: false, ..OffloadPolicy::default() };
    for (policy, computed_here) in [(OffloadPolicy::default(), 0), (without, 1)] {
        let mut good = good_frame(Kind::Udp, false, &[7; 50]);
        good.splice(34..34, [1; 4]);
        (good[14], good[17]) = (0x46, good[17] + 4);
        Ipv4Packet::new_unchecked(&mut good[ETHERNET..]).fill_checksum();
        let mut bytes = good.clone();
        bytes[ETHERNET + 10..ETHERNET + 12].fill(0);
        let checksum = TransmitChecksum::IPV4 | TransmitChecksum::IP_HEADER;
        let mut world = world_of(NicOffloads::default(), policy);
        let pieces = [&bytes[..]];
        let frame = TxFrame { checksum: checksum.at(38), ..TxFrame::plain(&pieces) };
        world.nic.transmit_with(&frame).unwrap();
        world.nic.flush();
        world.settle();
        assert_eq!(world.at_peer, [good], "{policy:?}");
        assert_eq!(world.nic.stats().tx_checksums, computed_here);
    }
}

#[test]
fn large_sends_with_options_or_of_too_few_pieces_are_not_for_every_host() {
    let without = OffloadPolicy { tcp_options: false, ..OffloadPolicy::default() };
    for (policy, ipv6, taken) in [
        (OffloadPolicy::default(), true, true),
        (without, true, false),
        // Over IPv4 there is no bit for it.
        (without, false, true),
    ] {
        let mut world = world_of(NicOffloads::ALL, policy);
        let (long, layer4) = (with_options(ipv6, &[7; 3000]), layer4(ipv6));
        let send = LargeSend { segment: 1400, layer4, ipv6 };
        let pieces = [&long[..]];
        let frame = TxFrame { large_send: Some(send), ..TxFrame::plain(&pieces) };
        let expected = match taken {
            true => Ok(()),
            false => Err(TransmitError::Options { layer4: usize::from(layer4) }),
        };
        assert_eq!(world.nic.transmit_with(&frame), expected);
        // The caller could have known.
        assert_eq!(Synthetic::offloads(&world.nic).cuts(&long, send, long.len()), taken);
        let short = good_frame(Kind::Tcp, ipv6, &[7; 1400]);
        let pieces = [&short[..]];
        let frame = TxFrame { large_send: Some(send), ..TxFrame::plain(&pieces) };
        let error = TransmitError::Segments { count: 1, least: 2 };
        assert_eq!(world.nic.transmit_with(&frame), Err(error));
        assert!(!Synthetic::offloads(&world.nic).cuts(&short, send, short.len()));
        world.nic.flush();
        world.settle();
        assert_eq!(
            (world.at_peer.len(), world.nic.stats().tx_refused),
            (3 * usize::from(taken), 0)
        );
    }
}

#[test]
fn what_the_host_does_not_cut_is_refused_by_name() {
    let mut world = world_of(NicOffloads::ALL, NOTHING);
    let info = world.nic.info();
    assert_eq!((info.large_send, info.offloads), (0, OffloadCapabilities::default()));
    let long = good_frame(Kind::Tcp, false, &[1; 3000]);
    let send = LargeSend { segment: 1400, layer4: 34, ipv6: false };
    let pieces = [&long[..]];
    let frame = TxFrame { large_send: Some(send), ..TxFrame::plain(&pieces) };
    let error = TransmitError::LargeSend { len: long.len(), segment: 1400, most: 0 };
    assert_eq!(world.nic.transmit_with(&frame), Err(error));
    // Nor are headers that are not where they should be.
    let mut world = world_of(NicOffloads::ALL, OffloadPolicy::default());
    for (layer4, ipv6) in [(33, false), (34, true), (1000, false)] {
        let send = LargeSend { segment: 1400, layer4, ipv6 };
        let pieces = [&long[..]];
        let frame = TxFrame { large_send: Some(send), ..TxFrame::plain(&pieces) };
        let error = TransmitError::Headers { layer4: usize::from(layer4) };
        assert_eq!(world.nic.transmit_with(&frame), Err(error));
    }
    world.nic.flush();
    world.settle();
    assert!(world.at_peer.is_empty());
}

#[test]
fn received_segments_are_put_together_for_those_who_ask() {
    for (offloads, frames) in [(NicOffloads::ALL, 1), (NicOffloads::default(), 8)] {
        let mut world = world_of(offloads, OffloadPolicy::default());
        let mut whole = vec![];
        for number in 0..8u32 {
            let payload: Vec<u8> = (0..1400u32).map(|at| (at * 7 + number) as u8).collect();
            let mut frame = good_frame(Kind::Tcp, false, &payload);
            frame[..6].copy_from_slice(&MAC.0);
            frame[6..12].copy_from_slice(&PEER.0);
            let mut tcp = TcpPacket::new_unchecked(&mut frame[34..]);
            tcp.set_seq_number(TcpSeqNumber(5000) + (number as usize) * 1400);
            tcp.fill_checksum(&IpAddress::Ipv4(FROM4), &IpAddress::Ipv4(TO4));
            world.peer_sends(&frame);
            whole.extend(payload);
        }
        world.settle();
        assert_eq!(world.received.len(), frames, "{offloads:?}");
        let mut got = vec![];
        for frame in &world.received {
            let ip = Ipv4Packet::new_checked(&frame[ETHERNET..]).unwrap();
            assert!(ip.verify_checksum());
            let tcp = TcpPacket::new_checked(ip.payload()).unwrap();
            assert!(tcp.verify_checksum(&IpAddress::Ipv4(FROM4), &IpAddress::Ipv4(TO4)));
            got.extend_from_slice(tcp.payload());
        }
        assert_eq!(got, whole);
        assert_eq!(world.nic.stats().bad.total(), 0);
    }
}

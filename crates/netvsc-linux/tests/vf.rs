//! Interfaces of the kernel as ports of virtual functions, over veth pairs, each test in a network namespace of its own.
//!
//! See [`namespace`] for how that is done and what happens where it cannot be.

mod namespace;

use std::time::{Duration, Instant};

use netvsc::nic::TxWork;
use netvsc::rndis::PacketFilter;
use netvsc::rndis::packet::{LargeSend, TransmitChecksum};
use netvsc::{MacAddress, PortError, PortLink, PortSettings, VfPort};
use netvsc_linux::vf::{LinkState, PacketConfig, PacketPort, Reception, VfError};

use namespace::{Neighbour, exists, in_namespace, ip};

/// EtherType that no part of the kernel takes up.
const KIND: [u8; 2] = [0x88, 0xb5];
const A: MacAddress = MacAddress([0x02, 0x15, 0x5d, 0, 0, 1]);
const B: MacAddress = MacAddress([0x02, 0x15, 0x5d, 0, 0, 2]);

/// A pair of interfaces that are up and say nothing by themselves.
fn pair() {
    std::fs::write("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1").expect("root may");
    ip(&format!("link add va address {A} type veth peer name vb address {B}"));
    ip("link set vb up");
}

fn open(name: &str) -> PacketPort {
    PacketPort::open(name, PacketConfig::default()).expect("a port")
}

/// Both ends as ports, with carrier. The second receives out of its socket's queue.
fn ports() -> (PacketPort, PacketPort) {
    ports_with(Reception::Queue)
}

fn ports_with(reception: Reception) -> (PacketPort, PacketPort) {
    pair();
    let config = PacketConfig { reception, ..PacketConfig::default() };
    let (mut a, mut b) = (open("va"), PacketPort::open("vb", config).expect("a port"));
    for port in [&mut a, &mut b] {
        until("it is up", || port.link() == PortLink::Up);
        port.configure(settings(1500)).expect("it takes that");
    }
    (a, b)
}

fn settings(mtu: u32) -> PortSettings {
    let filter = PacketFilter::DIRECTED | PacketFilter::BROADCAST;
    PortSettings { mtu, filter }
}

fn frame(number: u32, len: usize) -> Vec<u8> {
    let mut frame = [B.0, A.0].concat();
    frame.extend(KIND);
    frame.extend(number.to_le_bytes());
    frame.resize(len, number as u8);
    frame
}

fn until(what: &str, mut so: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(10);
    while !so() {
        assert!(Instant::now() < end, "not within 10 s: {what}");
        std::thread::sleep(Duration::from_micros(200));
    }
}

/// Receives so many frames.
fn take(port: &mut PacketPort, count: usize) -> Vec<Vec<u8>> {
    let mut frames = Vec::new();
    until("all frames are there", || {
        port.receive(&mut |frame| frames.push(frame.to_vec()));
        frames.len() >= count
    });
    assert_eq!(frames.len(), count);
    frames
}

#[test]
fn frames_arrive_once_in_order_and_are_confirmed() {
    in_namespace("frames_arrive_once_in_order_and_are_confirmed", || {
        for reception in [Reception::Queue, PacketConfig::default().reception] {
            numbered(reception);
            ip("link del va");
        }
    });
}

fn numbered(reception: Reception) {
    let (mut a, mut b) = ports_with(reception);
    assert_eq!((a.permanent_mac(), b.permanent_mac()), (Some(A), Some(B)));
    let (mut sent, mut got) = (0_u32, Vec::new());
    while sent < 5_000 {
        for _ in 0..50 {
            let frame = frame(sent, 60 + sent as usize % 1455);
            a.transmit(&frame).expect("room");
            sent += 1;
        }
        a.flush();
        assert_eq!(a.confirmed(), u64::from(sent), "the kernel has taken them");
        b.receive(&mut |frame| got.push(frame.to_vec()));
    }
    until("all have arrived", || {
        b.receive(&mut |frame| got.push(frame.to_vec()));
        got.len() >= 5_000
    });
    for (number, got) in (0..).zip(&got) {
        assert_eq!(*got, frame(number, 60 + number as usize % 1455));
    }
    // Neither sees what it sent itself.
    assert_eq!(a.receive(&mut |_| {}), 0);
    let counters = b.counters();
    assert_eq!((counters.received, counters.unusable, counters.dropped), (5_000, 0, 0));
    assert_eq!((a.counters().sent, a.counters().refused), (5_000, 0));
}

#[test]
fn a_tag_that_the_kernel_took_out_is_put_back() {
    in_namespace("a_tag_that_the_kernel_took_out_is_put_back", || {
        // One receives by a ring, the other out of a queue.
        let (mut a, mut b) = ports();
        let mut tagged = frame(7, 100);
        tagged.splice(12..12, [0x81, 0x00, 0x60, 0x05]);
        for (from, to) in [(true, false), (false, true)] {
            let from = if from { &mut a } else { &mut b };
            from.transmit(&tagged).expect("room");
            from.flush();
            let to = if to { &mut a } else { &mut b };
            assert_eq!(take(to, 1), [tagged.clone()]);
        }
    });
}

/// A TCP segment over IPv4 with so much payload, without checksums but that of IP.
fn segment(payload: usize) -> Vec<u8> {
    let mut frame = [B.0, A.0].concat();
    frame.extend([0x08, 0]);
    let mut header = vec![0x45, 0, 0, 0, 0, 7, 0x40, 0, 64, 6, 0, 0, 192, 0, 2, 1, 192, 0, 2, 2];
    header[2..4].copy_from_slice(&((40 + payload) as u16).to_be_bytes());
    let sum = sum(&header);
    header[10..12].copy_from_slice(&(!sum).to_be_bytes());
    frame.extend(header);
    frame.extend([0x13, 0x88, 0, 80, 0, 0, 0, 1, 0, 0, 0, 0, 0x50, 0x18, 1, 0, 0, 0, 0, 0]);
    frame.extend((0..payload).map(|byte| (byte % 251) as u8));
    frame
}

fn sum(bytes: &[u8]) -> u16 {
    let word = |pair: &[u8]| u32::from(pair[0]) << 8 | pair.get(1).map_or(0, |low| u32::from(*low));
    let mut sum: u32 = bytes.chunks(2).map(word).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

/// Whether the checksum of a TCP segment over IPv4 is right.
fn is_right(frame: &[u8]) -> bool {
    let mut bytes = frame[26..34].to_vec();
    bytes.extend([0, 6]);
    bytes.extend(((frame.len() - 34) as u16).to_be_bytes());
    bytes.extend(&frame[34..]);
    sum(&bytes) == 0xffff && sum(&frame[14..34]) == 0xffff
}

#[test]
fn work_is_done_by_the_kernel_or_the_far_port() {
    in_namespace("work_is_done_by_the_kernel_or_the_far_port", || {
        let (mut a, mut b) = ports();
        let checksum = (TransmitChecksum::IPV4 | TransmitChecksum::TCP).at(34);
        a.transmit_with(&segment(500), &TxWork { checksum, ..TxWork::NONE }).expect("room");
        a.flush();
        let got = take(&mut b, 1);
        assert!(is_right(&got[0]) && got[0].len() == 554);

        let send = LargeSend { segment: 1448, layer4: 34, ipv6: false };
        let large = segment(40_000);
        a.transmit_with(&large, &TxWork { large_send: Some(send), ..TxWork::NONE }).expect("room");
        a.flush();
        assert_eq!(a.confirmed(), 2, "a large send is one frame");
        let got = take(&mut b, 40_000_usize.div_ceil(1448));
        assert!(got.iter().all(|piece| is_right(piece) && piece.len() <= 1514));
        let payload: Vec<u8> = got.iter().flat_map(|piece| piece[54..].to_vec()).collect();
        assert_eq!(payload, large[54..]);
    });
}

/// The same over IPv6 with options of the destination before TCP, and nothing in the field of the checksum.
fn segment_behind_options(payload: usize) -> Vec<u8> {
    let mut frame = [B.0, A.0].concat();
    frame.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
    frame.extend(((28 + payload) as u16).to_be_bytes());
    frame.extend([60, 64]);
    for host in [1, 2] {
        frame.extend([0x20, 1, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, host]);
    }
    frame.extend([6, 0, 1, 4, 0, 0, 0, 0]);
    frame.extend([0x13, 0x88, 0, 80, 0, 0, 0, 1, 0, 0, 0, 0, 0x50, 0x18, 1, 0, 0, 0, 0, 0]);
    frame.extend((0..payload).map(|byte| (byte % 251) as u8));
    frame
}

fn is_right_behind_options(frame: &[u8]) -> bool {
    let len = (frame.len() - 62) as u16;
    let mut bytes = frame[22..54].to_vec();
    bytes.extend([0, 6]);
    bytes.extend(len.to_be_bytes());
    bytes.extend(&frame[62..]);
    sum(&bytes) == 0xffff && frame[18..20] == (len + 8).to_be_bytes()
}

#[test]
fn segments_behind_extension_headers_have_right_checksums_whoever_cuts_them() {
    in_namespace(
        "segments_behind_extension_headers_have_right_checksums_whoever_cuts_them",
        || {
            let (mut a, mut b) = ports();
            let large = segment_behind_options(40_000);
            let send = LargeSend { segment: 1428, layer4: 62, ipv6: true };
            // The far port, and then the kernel.
            for (count, most) in [(1, 65_536), (2, 20_000)] {
                ip(&format!("link set va gso_max_size {most}"));
                let work = TxWork { large_send: Some(send), ..TxWork::NONE };
                a.transmit_with(&large, &work).expect("room");
                until("the kernel takes it", || {
                    a.flush();
                    a.confirmed() == count
                });
                let got = take(&mut b, 40_000_usize.div_ceil(1428));
                assert!(got.iter().all(|piece| is_right_behind_options(piece)));
                let payload: Vec<u8> = got.iter().flat_map(|piece| piece[82..].to_vec()).collect();
                assert_eq!(payload, large[82..]);
            }
            assert_eq!(b.counters().unusable, 0);
        },
    );
}

#[test]
fn segments_that_the_interface_does_not_cut_are_cut_by_the_kernel() {
    in_namespace("segments_that_the_interface_does_not_cut_are_cut_by_the_kernel", || {
        let (mut a, mut b) = ports();
        ip("link set va gso_max_size 20000");
        let send = LargeSend { segment: 1448, layer4: 34, ipv6: false };
        let large = segment(40_000);
        for count in 1..3 {
            let work = TxWork { large_send: Some(send), ..TxWork::NONE };
            a.transmit_with(&large, &work).expect("room");
            until("the kernel takes it", || {
                a.flush();
                a.confirmed() == count
            });
            let got = take(&mut b, 40_000_usize.div_ceil(1448));
            assert!(got.iter().all(|piece| is_right(piece) && piece.len() <= 1514));
            let payload: Vec<u8> = got.iter().flat_map(|piece| piece[54..].to_vec()).collect();
            assert_eq!(payload, large[54..]);
        }
    });
}

#[test]
fn mtu_and_filter_are_the_nics() {
    in_namespace("mtu_and_filter_are_the_nics", || {
        let (mut a, mut b) = ports();
        let long = frame(1, 9014);
        assert_eq!(a.transmit(&long), Err(PortError::Length { len: 9014, most: 1518 }));
        for port in [&mut a, &mut b] {
            port.configure(settings(9000)).expect("a veth takes that");
        }
        assert!(ip("link show va").contains("mtu 9000"));
        a.transmit(&long).expect("room");
        a.flush();
        assert_eq!(take(&mut b, 1), [long]);
        let refused = a.configure(settings(70_000));
        assert!(matches!(refused, Err(PortError::Mtu { mtu: 70_000, most: 9000 })), "{refused:?}");
        // A frame that has become too long since is refused by the kernel, and holds nothing up.
        a.configure(settings(9000)).expect("again");
        a.transmit(&frame(2, 5000)).expect("room");
        a.transmit(&frame(3, 60)).expect("room");
        ip("link set va mtu 1500");
        a.flush();
        assert_eq!((a.confirmed(), a.counters().refused), (3, 1));
        assert_eq!(take(&mut b, 1), [frame(3, 60)]);

        let shown = || ip("-d link show va");
        assert!(shown().contains("promiscuity 0"), "{}", shown());
        let filter = PacketFilter::PROMISCUOUS | PacketFilter::ALL_MULTICAST;
        a.configure(PortSettings { mtu: 1500, filter }).expect("it takes that");
        assert!(shown().contains("promiscuity 1") && shown().contains("allmulti 1"), "{}", shown());
        drop(a);
        assert!(shown().contains("promiscuity 0"), "left behind: {}", shown());
    });
}

#[test]
fn a_link_that_goes_down_keeps_nothing_for_later() {
    in_namespace("a_link_that_goes_down_keeps_nothing_for_later", || {
        let (mut a, mut b) = ports();
        a.transmit(&frame(0, 60)).expect("room");
        a.flush();
        a.transmit(&frame(1, 60)).expect("room");
        ip("link set va down");
        assert_eq!((a.link(), a.state()), (PortLink::Down, LinkState::Down));
        assert_eq!(a.confirmed(), 1, "the other one has to go elsewhere");
        assert_eq!(a.transmit(&frame(2, 60)), Err(PortError::Full));
        a.flush();
        ip("link set va up");
        until("it is up", || a.link() == PortLink::Up);
        assert_eq!(a.confirmed(), 2, "nobody waits for it any more");
        a.transmit(&frame(3, 60)).expect("room");
        a.flush();
        assert_eq!(take(&mut b, 2), [frame(0, 60), frame(3, 60)]);

        // The far end goes down: no carrier. And the other way round, frames are received after all that.
        ip("link set vb down");
        until("no carrier", || a.link() == PortLink::Down);
        assert_eq!(a.state(), LinkState::NoCarrier);
        ip("link set vb up");
        until("it is up", || a.link() == PortLink::Up && b.link() == PortLink::Up);
        b.transmit(&frame(4, 60)).expect("room");
        b.flush();
        assert_eq!(take(&mut a, 1), [frame(4, 60)]);
    });
}

#[test]
fn down_is_found_out_by_sending_too() {
    in_namespace("down_is_found_out_by_sending_too", || {
        let (mut a, _b) = ports();
        a.transmit(&frame(0, 60)).expect("room");
        ip("link set va down");
        a.flush();
        assert_eq!((a.state(), a.confirmed()), (LinkState::Down, 0));
        ip("link del va");
        // It does not know yet, and has nothing to send.
        a.flush();
        assert_eq!((a.link(), a.state()), (PortLink::Gone, LinkState::Gone));
    });
}

#[test]
fn what_waits_can_be_forgotten() {
    in_namespace("what_waits_can_be_forgotten", || {
        for reception in [Reception::Queue, PacketConfig::default().reception] {
            let (mut a, mut b) = ports_with(reception);
            let config = PacketConfig { reception: Reception::Queue, ..PacketConfig::default() };
            let mut seen = PacketPort::open("vb", config).expect("a port");
            // More than are handed on at once.
            for number in 0..6000 {
                a.transmit(&frame(number, 60)).expect("room");
                if number % 50 == 49 {
                    a.flush();
                }
            }
            // Another port there tells when they have arrived: it is given each frame at the same time, so when it has the last one, all
            // before that wait for this one, too.
            until("they have arrived", || {
                seen.receive(&mut |_| {});
                seen.counters().received >= 6000
            });
            let last = frame(6000, 60);
            a.transmit(&last).expect("room");
            a.flush();
            assert_eq!(take(&mut seen, 1), std::slice::from_ref(&last));
            a.transmit(&frame(6001, 60)).expect("room");
            a.forget();
            assert_eq!((a.confirmed(), a.counters().sent), (6002, 6001));
            b.forget();
            assert_eq!(b.counters().received, 0);
            a.transmit(&frame(7, 60)).expect("room");
            a.flush();
            let mut got = Vec::new();
            until("it comes", || {
                b.receive(&mut |frame| got.push(frame.to_vec()));
                got.contains(&frame(7, 60))
            });
            got.retain(|frame| *frame != last);
            assert_eq!(got, [frame(7, 60)]);
            ip("link del va");
        }
    });
}

#[test]
fn a_renamed_interface_is_the_same() {
    in_namespace("a_renamed_interface_is_the_same", || {
        let (mut a, mut b) = ports();
        ip("link set va down");
        ip("link set va name enP1s7");
        ip("link set enP1s7 up");
        until("it is up", || a.link() == PortLink::Up);
        assert_eq!(a.name(), "enP1s7");
        a.configure(settings(1400)).expect("by its number");
        a.transmit(&frame(9, 60)).expect("room");
        a.flush();
        assert_eq!(take(&mut b, 1), [frame(9, 60)]);
    });
}

#[test]
fn one_that_is_deleted_or_moved_away_is_gone_for_good() {
    in_namespace("one_that_is_deleted_or_moved_away_is_gone_for_good", || {
        let (mut a, mut b) = ports();
        a.transmit(&frame(0, 60)).expect("room");
        let elsewhere = Neighbour::new();
        ip(&format!("link set va netns {}", elsewhere.pid()));
        // Found out by sending.
        a.flush();
        assert_eq!(a.link(), PortLink::Gone);
        assert_eq!(a.confirmed(), 0, "it has to be sent again");
        assert_eq!(a.transmit(&frame(1, 60)), Err(PortError::Gone));
        assert_eq!(a.configure(settings(1500)), Err(PortError::Gone));
        assert_eq!((a.receive(&mut |_| {}), a.confirmed()), (0, 0));
        ip("link del vb");
        assert!(!exists("vb"));
        until("found out by listening", || b.link() == PortLink::Gone);
        // Another with its name is another.
        pair();
        assert_eq!((b.link(), a.link()), (PortLink::Gone, PortLink::Gone));
        let mut again = open("vb");
        until("it is up", || again.link() != PortLink::Gone);
    });
}

#[test]
fn one_that_waits_is_woken_by_frames_and_changes_and_by_nothing_else() {
    in_namespace("one_that_waits_is_woken_by_frames_and_changes_and_by_nothing_else", || {
        use rustix::event::{PollFd, PollFlags, Timespec, poll};
        let (mut a, mut b) = ports();
        let wait = |port: &PacketPort, millis: i64| {
            let ears = port.ears().descriptors();
            let mut fds: Vec<_> = ears.iter().map(|fd| PollFd::new(&**fd, PollFlags::IN)).collect();
            let limit = Timespec { tv_sec: 0, tv_nsec: millis * 1_000_000 };
            poll(&mut fds, Some(&limit)).expect("polling works") > 0
        };
        let rest = |port: &mut PacketPort| {
            while wait(port, 200) {
                port.link();
                port.receive(&mut |_| {});
            }
        };
        rest(&mut b);
        a.transmit(&frame(0, 60)).expect("room");
        a.flush();
        assert!(wait(&b, 900), "a frame");
        assert_eq!(take(&mut b, 1), [frame(0, 60)]);
        assert!(!wait(&b, 100), "nothing");
        ip("link set vb down");
        assert!(wait(&b, 900), "a change");
        rest(&mut b);
        ip("link del va");
        assert!(wait(&b, 900), "the end");
        rest(&mut b);
        assert_eq!(b.link(), PortLink::Gone);
        let ears = b.ears();
        drop(b);
        assert!(ears.descriptors().is_empty() && !ears.is_stuck());
    });
}

#[test]
fn what_cannot_be_a_port_is_refused() {
    in_namespace("what_cannot_be_a_port_is_refused", || {
        let refused = |name, config| PacketPort::open(name, config).expect_err("no port");
        let default = PacketConfig::default();
        assert!(matches!(refused("nowhere", default), VfError::Missing { .. }));
        assert!(matches!(refused("lo", default), VfError::NotEthernet { kind: 772, .. }));
        for (block_size, blocks) in [(4096, 8), (200_000, 8), (8 << 20, 8), (128 << 10, 1)] {
            let reception = Reception::Ring { block_size, blocks };
            let config = PacketConfig { reception, ..default };
            assert!(matches!(refused("lo", config), VfError::Ring { .. }));
        }
        pair();
        let port =
            PacketPort::open("va", PacketConfig { mac: Some(B), ..default }).expect("a port");
        assert_eq!(port.permanent_mac(), Some(B));
        assert!(ip("link show va").contains(&B.to_string()));
    });
}

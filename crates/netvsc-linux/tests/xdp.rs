//! Ports of virtual functions past the kernel's stack, over veth pairs, each test in a network namespace of its own.
//!
//! See [`namespace`] for how that is done and what happens where it cannot be. Where the kernel has no AF_XDP the tests say so.

#[expect(dead_code, reason = "shared with tests that need more of it")]
mod namespace;

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use netvsc::nic::TxWork;
use netvsc::rndis::PacketFilter;
use netvsc::rndis::packet::{LargeSend, TransmitChecksum};
use netvsc::{MacAddress, PortError, PortLink, PortSettings, VfPort};
use netvsc_linux::vf::{LinkState, PacketConfig, PacketPort, Reception, VfError};
use netvsc_linux::xdp::{Attachment, XdpConfig, XdpPort};
use rustix::io::Errno;

use namespace::{in_namespace, ip, skipped};

const A: MacAddress = MacAddress([0x02, 0x15, 0x5d, 0, 0, 1]);
const B: MacAddress = MacAddress([0x02, 0x15, 0x5d, 0, 0, 2]);
/// Set in a process that holds a port until it is killed.
const HOLD: &str = "NETVSC_TEST_HOLD";

fn pair() {
    pair_with("");
}

/// A pair each end of which has these options.
fn pair_with(options: &str) {
    std::fs::write("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1").expect("root may");
    ip(&format!("link add va address {A}{options} type veth peer name vb address {B}{options}"));
    ip("link set vb up");
}

/// Runs the body with a port over one end of a pair, and a packet port over the other; unless the kernel has no AF_XDP.
fn with_ports(test: &str, body: impl FnOnce(XdpPort, PacketPort)) {
    pair();
    with_ports_over(test, body);
}

/// The same over a pair that is there.
fn with_ports_over(test: &str, body: impl FnOnce(XdpPort, PacketPort)) {
    let mut port = match XdpPort::open("va", XdpConfig::default()) {
        Ok(port) => port,
        Err(VfError::Kernel { doing, cause: cause @ (Errno::NOSYS | Errno::AFNOSUPPORT) }) => {
            return skipped(test, &format!("this kernel does not {doing}: {cause}"));
        }
        Err(error) => panic!("{error}"),
    };
    let config = PacketConfig { reception: Reception::Queue, ..PacketConfig::default() };
    let mut far = PacketPort::open("vb", config).expect("a port");
    until("they are up", || port.link() == PortLink::Up && far.link() == PortLink::Up);
    port.configure(settings(1500)).expect("it takes that");
    far.configure(settings(1500)).expect("it takes that");
    body(port, far);
}

fn settings(mtu: u32) -> PortSettings {
    let filter = PacketFilter::DIRECTED | PacketFilter::BROADCAST;
    PortSettings { mtu, filter }
}

fn frame(number: u32, len: usize) -> Vec<u8> {
    let mut frame = [B.0, A.0].concat();
    frame.extend([0x88, 0xb5]);
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

fn take(port: &mut impl VfPort, count: usize) -> Vec<Vec<u8>> {
    let mut frames = Vec::new();
    until("all frames are there", || {
        port.receive(&mut |frame| frames.push(frame.to_vec()));
        frames.len() >= count
    });
    assert_eq!(frames.len(), count);
    frames
}

/// Sends numbered frames from one to the other; all arrive once and in order, and all are confirmed.
fn numbered(from: &mut dyn VfPort, to: &mut dyn VfPort) {
    numbered_up_to(1514, from, to);
}

/// The same with lengths up to `most`.
fn numbered_up_to(most: usize, from: &mut dyn VfPort, to: &mut dyn VfPort) {
    const COUNT: u32 = 5_000;
    // A number without common factors with the range goes through all of it.
    let len = |number: usize| 60 + number * 1009 % (most - 59);
    let before = from.confirmed();
    let (mut sent, mut got) = (0, Vec::new());
    until("all have arrived", || {
        for _ in 0..50 {
            if sent == COUNT || from.transmit(&frame(sent, len(sent as usize))).is_err() {
                break;
            }
            sent += 1;
        }
        from.flush();
        to.receive(&mut |frame| got.push(frame.to_vec()));
        got.len() >= COUNT as usize
    });
    for (number, got) in (0..).zip(&got) {
        assert_eq!(*got, frame(number, len(number as usize)));
    }
    until("all are confirmed", || {
        from.flush();
        from.confirmed() == before + u64::from(COUNT)
    });
}

#[test]
fn frames_go_both_ways_past_the_stack() {
    const NAME: &str = "frames_go_both_ways_past_the_stack";
    in_namespace(NAME, || {
        with_ports(NAME, |mut port, mut far| {
            assert_eq!((port.permanent_mac(), port.queues()), (Some(A), 1));
            assert_eq!(port.sending_queues(), 1);
            // A veth has native XDP, and no memory of others.
            assert_eq!((port.attachment(), port.is_zero_copy()), (Attachment::Native, false));
            numbered(&mut port, &mut far);
            numbered(&mut far, &mut port);
            let counters = port.counters();
            assert_eq!((counters.sent, counters.received, counters.unusable), (5_000, 5_000, 0));
        });
    });
}

/// A frame of 9,014 bytes lies in three pieces of memory.
#[test]
fn jumbo_frames_go_both_ways_in_several_pieces() {
    const NAME: &str = "jumbo_frames_go_both_ways_in_several_pieces";
    in_namespace(NAME, || {
        with_ports(NAME, |mut port, mut far| {
            ip("link set vb mtu 9000");
            match port.configure(settings(9000)) {
                Ok(()) => {}
                // Before Linux 6.6.
                Err(PortError::Mtu { mtu: 9000, most: 3822 }) => {
                    return skipped(NAME, "this kernel's AF_XDP has no frames of several pieces");
                }
                Err(error) => panic!("{error}"),
            }
            far.configure(settings(9000)).expect("it takes that");
            until("it has heard", || far.link() == PortLink::Up && far.mtu() == 9000);
            numbered_up_to(9014, &mut port, &mut far);
            numbered_up_to(9014, &mut far, &mut port);
            let counters = port.counters();
            assert_eq!((counters.sent, counters.received, counters.unusable), (5_000, 5_000, 0));
        });
    });
}

/// The other end leaves checksums and the cutting of segments to the interface, as a kernel's TCP does: there is no device that would.
#[test]
fn what_comes_has_checksums_and_the_length_of_a_frame() {
    const NAME: &str = "what_comes_has_checksums_and_the_length_of_a_frame";
    in_namespace(NAME, || {
        with_ports(NAME, |mut port, far| {
            drop(far);
            let config = PacketConfig { bypass: false, ..PacketConfig::default() };
            let mut far = PacketPort::open("vb", config).expect("a port");
            far.configure(settings(1500)).expect("it takes that");
            until("it is up", || far.link() == PortLink::Up);
            let payload: Vec<u8> = (0..20_000_u32).map(|byte| (byte / 3) as u8).collect();
            let segment = tcp(&payload);
            let send = LargeSend { segment: 1448, layer4: 34, ipv6: false };
            let work = TxWork { large_send: Some(send), ..TxWork::NONE };
            far.transmit_with(&segment, &work).expect("there is room");
            let checksum = (TransmitChecksum::IPV4 | TransmitChecksum::TCP).at(34);
            let work = TxWork { checksum, ..TxWork::NONE };
            far.transmit_with(&tcp(&payload[..100]), &work).expect("there is room");
            far.flush();
            let got = take(&mut port, 15);
            let sums: Vec<u32> = got.iter().map(|frame| sum(frame)).collect();
            assert_eq!(sums, [0xffff; 15]);
            let carried: Vec<u8> =
                got[..14].iter().flat_map(|frame| frame[54..].to_vec()).collect();
            assert_eq!((carried, &got[14][54..]), (payload.clone(), &payload[..100]));
        });
    });
}

/// A frame for a queue without socket would go to the kernel, which nobody listens to.
#[test]
fn every_queue_of_an_interface_is_served() {
    const NAME: &str = "every_queue_of_an_interface_is_served";
    in_namespace(NAME, || {
        pair_with(" numtxqueues 4 numrxqueues 4");
        with_ports_over(NAME, |mut port, mut far| {
            assert_eq!(port.queues(), 4);
            let mut used = [0_u64; 4];
            for connection in 0..32_u16 {
                // The kernel keeps a socket to one queue.
                let config = PacketConfig { reception: Reception::Queue, ..Default::default() };
                let mut far = PacketPort::open("vb", config).expect("a port");
                until("it is up", || far.link() == PortLink::Up);
                let mut frame = tcp(&[connection as u8; 100]);
                frame[34..36].copy_from_slice(&(40_000 + connection).to_be_bytes());
                far.transmit(&frame).expect("there is room");
                far.flush();
                assert_eq!(take(&mut port, 1)[0][54..], frame[54..]);
                used = port.received_by_queue().try_into().expect("one for each queue");
            }
            assert_eq!(used.iter().sum::<u64>(), 32);
            // Which queues the kernel chose is its own business.
            numbered(&mut port, &mut far);
        });
    });
}

/// Flows take their turns; each keeps its queue and with it its order, and what is confirmed is counted in the order of sending.
#[test]
fn every_queue_of_an_interface_sends() {
    const NAME: &str = "every_queue_of_an_interface_sends";
    const FLOWS: u16 = 16;
    const EACH: u32 = 200;
    in_namespace(NAME, || {
        pair_with(" numtxqueues 4 numrxqueues 4");
        with_ports_over(NAME, |mut port, mut far| {
            assert_eq!((port.queues(), port.sending_queues()), (4, 4));
            let mut next = [0; FLOWS as usize];
            let (mut sent, mut got, mut refused) = (0, 0, false);
            until("all have arrived", || {
                while sent < EACH * u32::from(FLOWS) {
                    let flow = (sent % u32::from(FLOWS)) as u16;
                    let mut frame = tcp(&(sent / u32::from(FLOWS)).to_le_bytes());
                    frame[34..36].copy_from_slice(&(40_000 + flow).to_be_bytes());
                    if port.transmit(&frame).is_err() {
                        refused = true;
                        break;
                    }
                    sent += 1;
                }
                port.flush();
                assert!(port.confirmed() <= u64::from(sent));
                far.receive(&mut |frame| {
                    let flow = usize::from(u16::from_be_bytes([frame[34], frame[35]]) - 40_000);
                    let number = u32::from_le_bytes(*frame[54..].first_chunk().unwrap());
                    assert_eq!(number, next[flow], "of flow {flow}");
                    next[flow] += 1;
                    got += 1;
                });
                got == EACH * u32::from(FLOWS)
            });
            until("all are confirmed", || {
                port.flush();
                port.confirmed() == u64::from(sent)
            });
            let used = port.sent_by_queue();
            assert!(used.len() == 4 && used.iter().all(|count| *count > 0), "{used:?} {refused}");
            assert_eq!(used.iter().sum::<u64>(), u64::from(sent));
        });
    });
}

/// A queue that only receives would never send what is put into it.
#[test]
fn queues_that_only_receive_are_not_sent_on() {
    const NAME: &str = "queues_that_only_receive_are_not_sent_on";
    in_namespace(NAME, || {
        pair_with(" numtxqueues 1 numrxqueues 4");
        with_ports_over(NAME, |mut port, mut far| {
            assert_eq!((port.queues(), port.sending_queues()), (4, 1));
            numbered(&mut port, &mut far);
            assert_eq!(port.sent_by_queue(), [5_000]);
        });
    });
}

/// A TCP segment over IPv4, its sum left open.
fn tcp(payload: &[u8]) -> Vec<u8> {
    let mut frame = [A.0, B.0].concat();
    frame.extend([0x08, 0, 0x45, 0]);
    frame.extend((40 + payload.len() as u16).to_be_bytes());
    frame.extend([0, 7, 0x40, 0, 64, 6, 0, 0, 192, 0, 2, 1, 192, 0, 2, 2]);
    frame.extend([0x13, 0x88, 0, 80, 0, 0, 0, 1, 0, 0, 0, 0, 0x50, 0x10, 1, 0, 0, 0, 0, 0]);
    frame.extend(payload);
    frame
}

/// The sum over pseudo-header and segment, which is 0xffff if the checksum is right.
fn sum(frame: &[u8]) -> u32 {
    let mut bytes = [&frame[26..34], &[0, 6], &(frame.len() as u16 - 34).to_be_bytes()].concat();
    bytes.extend(&frame[34..]);
    bytes.resize(bytes.len().next_multiple_of(2), 0);
    let words = bytes.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]])));
    let sum: u32 = words.sum();
    (sum & 0xffff) + (sum >> 16)
}

#[test]
fn what_stands_in_the_way_is_said() {
    const NAME: &str = "what_stands_in_the_way_is_said";
    in_namespace(NAME, || {
        with_ports(NAME, |mut port, _far| {
            let refused = |name, config| XdpPort::open(name, config).expect_err("no port");
            let default = XdpConfig::default();
            assert!(matches!(refused("nowhere", default), VfError::Missing { .. }));
            for depth in [0, 32, 100, 8192] {
                let config = XdpConfig { depth, ..default };
                assert!(matches!(refused("va", config), VfError::Depth(found) if found == depth));
            }
            // A program is there already, and it stays.
            let taken = refused("va", default);
            assert!(matches!(taken, VfError::Kernel { cause: Errno::BUSY, .. }), "{taken}");
            assert!(ip("link show va").contains("xdp"));
            let long = port.configure(settings(20_000));
            assert!(matches!(long, Err(PortError::Mtu { mtu: 20_000, most: 1500 })), "{long:?}");
            assert_eq!(
                port.transmit(&frame(0, 1600)),
                Err(PortError::Length { len: 1600, most: 1518 })
            );
            drop(port);
            assert!(!ip("link show va").contains("xdp"), "left behind");
            let copies = refused("va", XdpConfig { copies: false, ..default });
            let said = copies.to_string();
            assert!(said.contains("without copies"), "{said}");
            assert!(!ip("link show va").contains("xdp"), "left behind");
        });
    });
}

#[test]
fn an_interface_whose_driver_takes_no_program_has_it_in_the_stack() {
    const NAME: &str = "an_interface_whose_driver_takes_no_program_has_it_in_the_stack";
    in_namespace(NAME, || {
        pair();
        let made = Command::new("ip")
            .args(
                "link add mv link va address 02:15:5d:00:00:01 type macvlan mode passthru"
                    .split(' '),
            )
            .output()
            .expect("ip runs");
        if !made.status.success() {
            return skipped(NAME, "this kernel has no macvlan");
        }
        ip("link set va up");
        match XdpPort::open("mv", XdpConfig::default()) {
            Ok(port) => assert_eq!(port.attachment(), Attachment::Generic),
            Err(error) => skipped(NAME, &error.to_string()),
        }
    });
}

#[test]
fn a_link_that_goes_down_keeps_nothing_for_later() {
    const NAME: &str = "a_link_that_goes_down_keeps_nothing_for_later";
    in_namespace(NAME, || {
        with_ports(NAME, |mut port, mut far| {
            port.transmit(&frame(0, 60)).expect("room");
            port.flush();
            assert_eq!(take(&mut far, 1), [frame(0, 60)]);
            port.transmit(&frame(1, 60)).expect("room");
            ip("link set va down");
            assert_eq!((port.link(), port.state()), (PortLink::Down, LinkState::Down));
            assert_eq!(port.confirmed(), 1, "the other one has to go elsewhere");
            assert_eq!(port.transmit(&frame(2, 60)), Err(PortError::Full));
            port.flush();
            ip("link set va up");
            until("it is up", || port.link() == PortLink::Up);
            assert_eq!(port.confirmed(), 2, "nobody waits for it any more");
            port.transmit(&frame(3, 60)).expect("room");
            port.flush();
            assert_eq!(take(&mut far, 1), [frame(3, 60)]);
            until("both are up", || far.link() == PortLink::Up && port.link() == PortLink::Up);
            far.transmit(&frame(4, 60)).expect("room");
            far.flush();
            assert_eq!(take(&mut port, 1), [frame(4, 60)]);
        });
    });
}

#[test]
fn one_that_is_deleted_is_gone_for_good() {
    const NAME: &str = "one_that_is_deleted_is_gone_for_good";
    in_namespace(NAME, || {
        with_ports(NAME, |mut port, _far| {
            port.transmit(&frame(0, 60)).expect("room");
            ip("link del va");
            port.flush();
            until("it is gone", || port.link() == PortLink::Gone);
            assert_eq!(port.transmit(&frame(1, 60)), Err(PortError::Gone));
            assert_eq!(port.configure(settings(1500)), Err(PortError::Gone));
            assert_eq!((port.receive(&mut |_| {}), port.confirmed()), (0, 0));
        });
    });
}

#[test]
fn the_program_goes_with_a_process_that_is_killed() {
    const NAME: &str = "the_program_goes_with_a_process_that_is_killed";
    if std::env::var_os(HOLD).is_some() {
        let _port = XdpPort::open("va", XdpConfig::default()).expect("a port");
        std::thread::sleep(Duration::from_secs(60));
        return;
    }
    in_namespace(NAME, || {
        with_ports(NAME, |port, _far| {
            drop(port);
            let this = std::env::current_exe().expect("a test knows its own program");
            let mut holder = Command::new(this)
                .args(["--exact", NAME])
                .env(HOLD, "1")
                .stdout(Stdio::null())
                .spawn()
                .expect("it runs");
            until("the program is there", || ip("link show va").contains("xdp"));
            holder.kill().expect("it runs");
            holder.wait().expect("a child");
            until("the program is gone", || !ip("link show va").contains("xdp"));
        });
    });
}

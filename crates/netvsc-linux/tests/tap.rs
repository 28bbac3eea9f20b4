//! TAPs against the real kernel, each test in a network namespace of its own.
//!
//! See [`namespace`] for how that is done and what happens where it cannot be.

mod namespace;

use std::collections::BTreeSet;
use std::net::UdpSocket;
use std::process::Command;
use std::time::{Duration, Instant};

use netvsc::MacAddress;
use netvsc_linux::{Offloaded, Tap, TapError, TapName};

use namespace::{Neighbour, exists, in_namespace, ip, skipped};

fn name(text: &str) -> TapName {
    text.parse().expect("a legal name")
}

/// Waits for a frame that `wanted` likes; the kernel also sends frames of its own accord.
fn wait_for(tap: &Tap, wanted: impl Fn(&[u8]) -> bool) -> Vec<u8> {
    let end = Instant::now() + Duration::from_secs(10);
    let mut buffer = [0; 2048];
    while Instant::now() < end {
        match tap.read_frame(&mut buffer).expect("reading works") {
            Some(len) if wanted(&buffer[..len]) => return buffer[..len].to_vec(),
            Some(_) => {}
            None => {
                let mut fds = [rustix::event::PollFd::new(tap, rustix::event::PollFlags::IN)];
                let limit = rustix::event::Timespec { tv_sec: 0, tv_nsec: 100_000_000 };
                rustix::event::poll(&mut fds, Some(&limit)).expect("polling works");
            }
        }
    }
    panic!("the kernel did not send the frame within 10 s");
}

#[test]
fn a_new_tap_lives_as_long_as_its_value() {
    in_namespace("a_new_tap_lives_as_long_as_its_value", || {
        let tap = Tap::open(&name("nvt0")).expect("open");
        assert!(tap.created());
        assert!(exists("nvt0"));
        drop(tap);
        assert!(!exists("nvt0"));
    });
}

#[test]
fn a_second_opener_is_told_that_the_tap_is_busy() {
    in_namespace("a_second_opener_is_told_that_the_tap_is_busy", || {
        let first = Tap::open(&name("nvt0")).expect("open");
        let second = Tap::open(&name("nvt0")).expect_err("held by the first");
        assert_eq!(second, TapError::Busy { name: name("nvt0") });
        drop(first);
        Tap::open(&name("nvt0")).expect("free again");
    });
}

#[test]
fn a_name_of_something_else_is_refused() {
    in_namespace("a_name_of_something_else_is_refused", || {
        ip("tuntap add mode tun name nvtun");
        ip("tuntap add mode tap multi_queue name nvmany");
        for taken in ["lo", "nvtun", "nvmany"] {
            let error = Tap::open(&name(taken)).expect_err("not ours to take");
            assert_eq!(error, TapError::NotATap { name: name(taken), several: false });
            assert!(exists(taken));
        }
    });
}

/// A frame of UDP that answers one of 192.0.2.1's from this port.
fn answer(to: MacAddress, port: u16) -> Vec<u8> {
    let mut frame = to.0.to_vec();
    frame.extend([2, 0, 0, 0, 0, 9, 8, 0, 0x45, 0, 0, 28, 0, 7, 0x40, 0, 64, 17, 0xb6, 0xba]);
    frame.extend([192, 0, 2, 2, 192, 0, 2, 1, 0, 9]);
    frame.extend(port.to_be_bytes());
    frame.extend([0, 8, 0, 0]);
    frame
}

#[test]
fn a_flow_comes_out_of_the_queue_that_it_was_answered_through() {
    in_namespace("a_flow_comes_out_of_the_queue_that_it_was_answered_through", || {
        let tap = Tap::open_with_queues(&name("nvt0"), 4).expect("open");
        assert_eq!(tap.queues(), 4);
        let mac = MacAddress([0x02, 0x15, 0x5d, 0, 0, 0x07]);
        tap.set_mac(mac).expect("set the MAC");
        tap.set_up(true).expect("up");
        ip("addr add 192.0.2.1/24 dev nvt0");
        ip("neigh add 192.0.2.2 lladdr 02:00:00:00:00:09 dev nvt0");
        let sockets: Vec<_> = (0..16_u16)
            .map(|flow| UdpSocket::bind(("192.0.2.1", 5000 + flow)).expect("a port"))
            .collect();
        // Of each flow, the queue that its next frame comes out of.
        let come = |chosen: &mut [usize]| {
            for (flow, socket) in sockets.iter().enumerate() {
                socket.send_to(b"hello", "192.0.2.2:9").expect("sent");
                let end = Instant::now() + Duration::from_secs(10);
                chosen[flow] = 'found: loop {
                    assert!(Instant::now() < end, "flow {flow} has not come");
                    for queue in 0..4 {
                        let mut buffer = [0; 2048];
                        let read = tap.read_offloaded_from(queue, &mut buffer).expect("reading");
                        let port = (5000 + flow as u16).to_be_bytes();
                        if read.is_some() && buffer[12..14] == [8, 0] && buffer[34..36] == port {
                            break 'found queue;
                        }
                    }
                };
            }
        };
        let (mut at_first, mut then) = ([0; 16], [0; 16]);
        come(&mut at_first);
        let used: BTreeSet<_> = at_first.iter().collect();
        assert!(used.len() > 1, "{at_first:?}");
        for flow in 0..16_u16 {
            let frame = answer(mac, 5000 + flow);
            let queue = usize::from(flow % 4);
            assert_eq!(tap.write_offloaded_to(queue, &frame, &Offloaded::Done), Ok(true));
        }
        come(&mut then);
        assert_eq!(then, std::array::from_fn(|flow| flow % 4));
        drop(tap);
        assert!(!exists("nvt0"));
    });
}

#[test]
fn a_tap_with_several_queues_has_one_owner_too() {
    in_namespace("a_tap_with_several_queues_has_one_owner_too", || {
        let several = |taken: &str, queues| Tap::open_with_queues(&name(taken), queues);
        ip("tuntap add mode tap name nvone");
        let error = several("nvone", 2).expect_err("it has one queue");
        assert_eq!(error, TapError::NotATap { name: name("nvone"), several: true });
        for queues in [0, 257] {
            let error = several("nvt0", queues).expect_err("no such TAP");
            assert_eq!(error, TapError::Queues { name: name("nvt0"), queues });
        }
        // One that this program makes, and one that was there before.
        ip("tuntap add mode tap multi_queue name nvmany");
        ip("link set nvmany mtu 1400");
        for taken in ["nvmany", "nvt0"] {
            let first = several(taken, 3).expect("open");
            let error = several(taken, 2).expect_err("held by the first");
            assert_eq!(error, TapError::Busy { name: name(taken) });
            first.set_mtu(1500).expect("set the MTU");
            drop(first);
            several(taken, 2).expect("free again");
        }
        assert!(ip("link show nvmany").contains("mtu 1400"), "it has its looks back");
        assert!(!exists("nvt0"));
    });
}

#[test]
fn mac_mtu_and_state_can_be_set_and_read() {
    in_namespace("mac_mtu_and_state_can_be_set_and_read", || {
        let tap = Tap::open(&name("nvt0")).expect("open");
        let mac = MacAddress([0x02, 0x15, 0x5d, 0, 0, 0x07]);
        tap.set_mac(mac).expect("set the MAC");
        assert_eq!(tap.mac(), Ok(mac));
        tap.set_mtu(9000).expect("set the MTU");
        assert_eq!(tap.mtu(), Ok(9000));
        assert_eq!(tap.is_up(), Ok(false));
        tap.set_up(true).expect("up");
        assert_eq!(tap.is_up(), Ok(true));
        let shown = ip("link show nvt0");
        assert!(shown.contains("02:15:5d:00:00:07") && shown.contains("mtu 9000"), "{shown}");
        tap.set_up(false).expect("down");
        assert_eq!(tap.is_up(), Ok(false));
    });
}

#[test]
fn values_that_the_kernel_refuses_are_named() {
    in_namespace("values_that_the_kernel_refuses_are_named", || {
        let tap = Tap::open(&name("nvt0")).expect("open");
        let multicast = MacAddress([0x01, 0, 0x5e, 0, 0, 1]);
        assert!(
            matches!(tap.set_mac(multicast), Err(TapError::Mac { mac, .. }) if mac == multicast)
        );
        for mtu in [10, 1_000_000, u32::MAX] {
            assert_eq!(tap.set_mtu(mtu), Err(TapError::Mtu { name: name("nvt0"), mtu }));
        }
        assert_eq!(tap.write_frame(&[0; 60]), Err(TapError::Down { name: name("nvt0") }));
        tap.set_up(true).expect("up");
        assert_eq!(
            tap.write_frame(&[0; 5]),
            Err(TapError::FrameLength { name: name("nvt0"), len: 5 })
        );
    });
}

#[test]
fn a_tap_that_was_there_gets_its_looks_back() {
    in_namespace("a_tap_that_was_there_gets_its_looks_back", || {
        ip("tuntap add mode tap name nvt0");
        ip("link set nvt0 address 02:00:00:00:00:01 mtu 1400");
        let tap = Tap::open(&name("nvt0")).expect("attach");
        assert!(!tap.created());
        tap.set_mac(MacAddress([2, 0, 0, 0, 0, 2])).expect("set the MAC");
        tap.set_mtu(1500).expect("set the MTU");
        tap.set_up(true).expect("up");
        drop(tap);
        let shown = ip("link show nvt0");
        assert!(
            shown.contains("02:00:00:00:00:01")
                && shown.contains("mtu 1400")
                && !shown.contains("UP"),
            "{shown}"
        );
    });
}

#[test]
fn frames_go_both_ways_and_nothing_blocks() {
    in_namespace("frames_go_both_ways_and_nothing_blocks", || {
        ip("link set lo up");
        let tap = Tap::open(&name("nvt0")).expect("open");
        let mac = MacAddress([0x02, 0x15, 0x5d, 0, 0, 0x07]);
        tap.set_mac(mac).expect("set the MAC");
        assert_eq!(tap.read_frame(&mut [0; 2048]), Ok(None));
        tap.set_up(true).expect("up");
        ip("addr add 192.0.2.1/24 dev nvt0");

        // Who has 192.0.2.1? Tell 192.0.2.2.
        let peer = [0x02, 0, 0, 0, 0, 0x99];
        let mut question = vec![0xff; 6];
        question.extend(peer);
        question.extend([0x08, 0x06, 0, 1, 0x08, 0, 6, 4, 0, 1]);
        question.extend(peer);
        question.extend([192, 0, 2, 2, 0, 0, 0, 0, 0, 0, 192, 0, 2, 1]);
        assert_eq!(tap.write_frame(&question), Ok(true));
        let answer = wait_for(&tap, |frame| {
            frame.get(12..14) == Some(&[0x08, 0x06]) && frame.get(..6) == Some(&peer)
        });
        assert_eq!(answer[6..12], mac.0, "the kernel answers from the TAP's MAC");
        assert_eq!(answer[20..22], [0, 2], "an ARP reply");
    });
}

#[test]
fn a_frame_that_fills_the_buffer_is_reported() {
    in_namespace("a_frame_that_fills_the_buffer_is_reported", || {
        let tap = Tap::open(&name("nvt0")).expect("open");
        tap.set_up(true).expect("up");
        ip("addr add 192.0.2.1/24 dev nvt0");
        // The neighbour is entered by hand, so that the datagram goes out without a question before it.
        let mut neighbour = Command::new("ip")
            .args(["neigh", "replace", "192.0.2.2", "lladdr", "02:00:00:00:00:99", "dev", "nvt0"])
            .spawn()
            .expect("ip runs");
        assert!(neighbour.wait().expect("ip ends").success());
        let socket = std::net::UdpSocket::bind("192.0.2.1:0").expect("bind");
        socket.send_to(&[7; 600], "192.0.2.2:9").expect("send");
        let end = Instant::now() + Duration::from_secs(10);
        let mut buffer = [0; 200];
        loop {
            match tap.read_frame(&mut buffer) {
                Err(error) => {
                    assert_eq!(error, TapError::FrameTooLong { name: name("nvt0"), buffer: 200 });
                    break;
                }
                Ok(_) => assert!(Instant::now() < end, "the datagram never came"),
            }
        }
    });
}

#[test]
fn a_moved_tap_keeps_its_frames_and_refuses_requests_by_name() {
    in_namespace("a_moved_tap_keeps_its_frames_and_refuses_requests_by_name", || {
        let other = Neighbour::new();
        let tap = Tap::open(&name("nvt0")).expect("open");
        ip(&format!("link set nvt0 netns {}", other.pid()));
        assert!(tap.mac().is_ok(), "the MAC goes through the queue");
        assert!(matches!(tap.set_mtu(1400), Err(TapError::Moved { .. })));
        // Another interface that takes the name is left alone.
        ip("tuntap add mode tap name nvt0");
        ip("link set nvt0 mtu 1300");
        assert!(matches!(tap.set_mtu(1400), Err(TapError::Moved { .. })));
        assert!(ip("link show nvt0").contains("mtu 1300"));
        assert_eq!(tap.read_frame(&mut [0; 2048]), Ok(None));
    });
}

#[test]
fn a_renamed_tap_is_still_reached() {
    in_namespace("a_renamed_tap_is_still_reached", || {
        let tap = Tap::open(&name("nvt0")).expect("open");
        ip("link set nvt0 name nvt1");
        tap.set_mtu(1400).expect("reached by its new name");
        assert!(ip("link show nvt1").contains("mtu 1400"));
    });
}

#[test]
fn a_deleted_tap_is_reported_as_gone() {
    in_namespace("a_deleted_tap_is_reported_as_gone", || {
        let tap = Tap::open(&name("nvt0")).expect("open");
        ip("link del nvt0");
        assert_eq!(tap.read_frame(&mut [0; 2048]), Err(TapError::Gone { name: name("nvt0") }));
        assert_eq!(tap.mac(), Err(TapError::Gone { name: name("nvt0") }));
    });
}

#[test]
fn a_tunnels_sum_that_the_kernel_left_is_written_as_the_frame_is_read() {
    in_namespace("a_tunnels_sum_that_the_kernel_left_is_written_as_the_frame_is_read", || {
        ip("link add br0 type bridge");
        ip("link set br0 up");
        let [from, to] = ["nvt0", "nvt1"].map(|interface| {
            let tap = Tap::open_with_offloads(&name(interface)).expect("open");
            ip(&format!("link set {interface} master br0 up"));
            tap
        });
        // GRE with a checksum, which stands in the fifth and sixth byte of its header, and nothing in it.
        let mut frame = vec![2, 0, 0, 0, 0, 8, 2, 0, 0, 0, 0, 9, 8, 0, 0x45, 0, 0, 28];
        frame.extend([0, 7, 0x40, 0, 64, 47, 0xb6, 0xa8, 192, 0, 2, 2, 192, 0, 2, 1]);
        frame.extend([0x80, 0, 8, 0, 0, 0, 0, 0]);
        let [a, b] = 34_u16.to_ne_bytes();
        let [c, d] = 4_u16.to_ne_bytes();
        // There is a sum to compute, from the GRE header on, as an interface that computes any may be left with.
        let left = [1, 0, 0, 0, 0, 0, a, b, c, d];
        let whole = [&left[..], &frame].concat();
        let mut buffer = [0; 2048];
        let end = Instant::now() + Duration::from_secs(10);
        let taken = loop {
            assert!(Instant::now() < end, "the bridge did not forward it within 10 s");
            match to.read_offloaded(&mut buffer).expect("no frame ends anything") {
                Some((_, left)) if buffer[12..14] == [8, 0] && buffer[23] == 47 => break left,
                Some(_) => {}
                None => {
                    // A bridge forwards nothing before it has noticed that its ports are up.
                    assert_eq!(rustix::io::write(from.queue(0), &whole), Ok(whole.len()));
                    let mut fds = [rustix::event::PollFd::new(&to, rustix::event::PollFlags::IN)];
                    let limit = rustix::event::Timespec { tv_sec: 0, tv_nsec: 100_000_000 };
                    rustix::event::poll(&mut fds, Some(&limit)).expect("polling works");
                }
            }
        };
        assert_eq!(
            (taken, &buffer[34..42]),
            (Offloaded::Done, &[0x80, 0, 8, 0, 0x77, 0xff, 0, 0][..])
        );
    });
}

#[test]
fn without_privilege_the_message_names_the_capability() {
    const TEST: &str = "without_privilege_the_message_names_the_capability";
    in_namespace(TEST, || {
        if std::env::var_os("NETVSC_TEST_UNPRIVILEGED").is_some() {
            let error = Tap::open(&name("nvt0")).expect_err("nobody may not");
            assert!(error.to_string().contains("CAP_NET_ADMIN"), "{error}");
            return;
        }
        let this = std::env::current_exe().expect("a test knows its own program");
        // Capabilities are dropped but the user stays, so that the program can still be read and run.
        let output = Command::new("setpriv")
            .args(["--bounding-set=-all", "--inh-caps=-all", "--"])
            .arg(this)
            .args(["--exact", TEST, "--nocapture"])
            .env("NETVSC_TEST_UNPRIVILEGED", "1")
            .output();
        match output {
            Ok(output) => {
                assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            }
            Err(error) => skipped(TEST, &format!("setpriv cannot be run: {error}")),
        }
    });
}

//! By which means of the kernel's an interface is reached.

use std::process::Command;
use std::thread;
use std::time::Duration;

use crate::namespace::{in_namespace, ip};
use crate::processes::{PROGRAM, limited};
use crate::setup::{Setup, Transfer, make_pair, start_host, start_run};

#[test]
fn af_xdp_is_used_where_it_needs_no_copies_or_where_it_is_asked_for() {
    in_namespace(
        "drivers::af_xdp_is_used_where_it_needs_no_copies_or_where_it_is_asked_for",
        || {
            // A veth reaches nobody's memory.
            let mut setup = Setup::new("vf-auto", &[], &[]);
            assert_eq!(setup.run.has_said("AF_PACKET, no AF_XDP: could not do without copies"), 1);
            setup.transfer(|_| thread::sleep(Duration::from_millis(50)));
            setup.finish();
            ip("link del vfg");
            let mut setup = Setup::new("vf-xdp", &[], &["--vf-driver", "xdp"]);
            assert_eq!(setup.run.has_said("AF_XDP, native, copied, 1 queues in, 1 out"), 1);
            assert!(ip("link show vfg").contains("xdp"));
            let Transfer { bytes, .. } =
                setup.transfer(|_| thread::sleep(Duration::from_millis(300)));
            let summary = setup.finish();
            assert!(bytes > 1 << 20 && summary["frames_vf"].as_u64() > Some(1000), "{summary}");
            assert_eq!(summary["frames_lost_orderly"], 0, "{summary}");
            assert!(!ip("link show vfg").contains("xdp"), "left behind");
        },
    );
}

#[test]
fn af_xdp_names_the_capability_that_it_lacks() {
    in_namespace("drivers::af_xdp_names_the_capability_that_it_lacks", || {
        make_pair(1500);
        let (host, base) = start_host(Command::new(PROGRAM), "vf-less", &[]);
        let run = start_run(limited(), &base, 1500, &["--vf-driver", "xdp"]);
        let said = run.has_said("AF_PACKET, no AF_XDP: not allowed to attach a program");
        assert_eq!((said, run.has_said("CAP_NET_RAW, CAP_NET_ADMIN and CAP_BPF")), (1, 1));
        run.stop();
        host.stop();
    });
}

/// The kernel's own word on packet sockets, each with what it has.
fn packet_sockets() -> Vec<String> {
    let output = Command::new("ss").args(["-0", "-n", "-e"]).output().expect("it comes with ip");
    let text = String::from_utf8(output.stdout).expect("text");
    let mut sockets: Vec<String> = Vec::new();
    for line in text.lines() {
        match sockets.last_mut() {
            Some(socket) if line.starts_with(char::is_whitespace) => socket.push_str(line),
            _ => sockets.push(line.to_owned()),
        }
    }
    sockets
}

#[test]
fn frames_come_out_of_a_ring_where_that_is_asked_for_and_only_there() {
    in_namespace(
        "drivers::frames_come_out_of_a_ring_where_that_is_asked_for_and_only_there",
        || {
            let rings = || {
                let all = packet_sockets().into_iter();
                let (own, others): (Vec<_>, Vec<_>) = all
                    .filter(|socket| socket.contains("ring_"))
                    .partition(|socket| socket.contains(":vfg"));
                assert!(others.is_empty(), "{others:?}");
                own
            };
            for (driver, count) in [("packet", 0), ("packet-ring", 1)] {
                let mut setup = Setup::new("vf-ring", &[], &["--vf-driver", driver]);
                let found = rings();
                assert_eq!(found.len(), count, "{driver}: {found:?}");
                // TPACKET_V3, as a number from 0, and as many blocks as were wanted.
                let ring = "ring_rx(blk_size:131072,blk_nr:32,";
                let is_ours = |socket: &String| socket.contains("ver:2") && socket.contains(ring);
                assert!(found.iter().all(is_ours), "{found:?}");
                setup.flood(1000);
                let Transfer { bytes, .. } =
                    setup.transfer(|_| thread::sleep(Duration::from_millis(100)));
                let summary = setup.finish();
                assert!(bytes > 1 << 20 && summary["frames_vf"].as_u64() > Some(1000), "{summary}");
                // Answers came, and none of them on the synthetic path.
                let synthetic = &summary["counters"][0]["queues"][0];
                assert_eq!(
                    (&synthetic["rx_frames"], &synthetic["tx_frames"]),
                    (&0.into(), &0.into())
                );
                assert_eq!(summary["switches_to_synthetic"], 0, "{summary}");
                assert_eq!(summary["frames_lost_orderly"], 0, "{summary}");
                assert!(rings().is_empty(), "left behind");
                ip("link del vfg");
            }
        },
    );
}

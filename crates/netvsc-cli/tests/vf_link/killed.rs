//! Either process is killed.

use std::process::Command;
use std::thread;
use std::time::Duration;

use crate::ends::DATAGRAMS;
use crate::namespace::{Neighbour, exists, in_namespace, ip};
use crate::processes::{PROGRAM, helper_here, helper_in, inside, until};
use crate::setup::{ON_VF, Setup, make_pair, of_ip, settle, start_host, start_run};
use crate::{alone, long};

/// How often a process is killed, each of the two every other time.
fn kills() -> usize {
    if long() { 100 } else { 4 }
}

/// The settings that are changed on a VF's interface.
fn settings(name: &str) -> [String; 2] {
    [of_ip("ipv6", name, "disable_ipv6"), of_ip("ipv4", name, "rp_filter")]
}

#[test]
fn settings_come_back_after_a_run_and_a_host_that_were_killed() {
    in_namespace("killed::settings_come_back_after_a_run_and_a_host_that_were_killed", || {
        make_pair(1500);
        for name in ["vfg", "vfh"] {
            std::fs::write(format!("/proc/sys/net/ipv4/conf/{name}/rp_filter"), "0")
                .expect("root may");
            assert_eq!(settings(name), ["0", "0"], "nothing to see");
        }
        let (host, base) = start_host(Command::new(PROGRAM), "vf-killed", &[]);
        for _ in 0..2 {
            // Dropping it kills it.
            drop(start_run(Command::new(PROGRAM), &base, 1500, &[]));
            assert_eq!(settings("vfg"), ["1", "1"]);
        }
        start_run(Command::new(PROGRAM), &base, 1500, &[]).stop();
        assert_eq!(settings("vfg"), ["0", "0"]);
        drop(host);
        assert_eq!(settings("vfh"), ["1", "1"]);
        let _ = std::fs::remove_file(base.with_extension("sock"));
        start_host(Command::new(PROGRAM), "vf-killed", &[]).0.stop();
        assert_eq!(settings("vfh"), ["0", "0"]);
    });
}

#[test]
fn either_is_killed_in_the_middle_of_tcp_and_the_next_one_carries_on() {
    let _alone = alone();
    in_namespace(
        "killed::either_is_killed_in_the_middle_of_tcp_and_the_next_one_carries_on",
        || {
            make_pair(1500);
            let settings = || ["vfg", "vfh"].map(settings);
            let before = settings();
            assert!(before.iter().all(|[ipv6, _]| ipv6 == "0"), "nothing to see");
            let mut setup = Setup::new("vf-killed-tcp", &[], &["--vf-driver", "xdp"]);
            for round in 0..kills() {
                interrupt(&mut setup, round);
                // Who is left has a partner again, and all goes on.
                let transfer = setup.transfer(|_| thread::sleep(Duration::from_millis(20)));
                assert!(transfer.bytes > 0);
            }
            let Setup { run, host, guest, peer, .. } = setup;
            assert_ne!(settings(), before);
            run.stop();
            host.stop();
            // They are given back although those who changed them were killed.
            assert_eq!(settings(), before);
            for name in ["vfg", "vfh"] {
                assert!(packet_sockets(name) == 0 && !has_program(name), "left behind on {name}");
            }
            assert!(!exists_in(&guest, "nvt0") && !exists_in(&peer, "nvt1"), "left behind");
            carries_the_kernels_own(&peer);
        },
    );
}

/// Kills a process while TCP goes on, looks after what is left of it, and starts the next one.
fn interrupt(setup: &mut Setup, round: usize) {
    let (base, driver) = (setup.path("base"), ["xdp", "packet"][round / 2 % 2]);
    let listener = helper_in(&setup.peer, "receive");
    listener.wait_for("listening", 1);
    let sender = helper_in(&setup.guest, &format!("send {}", setup.path("never").display()));
    listener.wait_for("it comes", 1);
    let held = |name| packet_sockets(name) > 0 || has_program(name);
    assert!(held("vfg") && held("vfh"), "nothing to see");
    // At any point of a transfer.
    thread::sleep(Duration::from_millis([0, 3, 20, 70, 150][round % 5]));
    if round.is_multiple_of(2) {
        setup.run.kill();
        setup.host.wait_for(r#""event":"guest_left""#, 1);
        assert_eq!(setup.host.has_said(r#""clean":true"#), 1, "what was the guest's");
        gone("vfg", &setup.guest, "nvt0");
        drop((sender, listener));
        setup.run = start_run(Command::new(PROGRAM), &base, 1500, &["--vf-driver", driver]);
        settle(&setup.guest, "nvt0", "192.0.2.1");
    } else {
        let on_vf = setup.run.has_said(ON_VF);
        setup.host.kill();
        setup.run.wait_for(r#""pages_kept":0"#, 1);
        assert_eq!(setup.run.has_said(r#""event":"host_left""#), 1);
        gone("vfh", &setup.peer, "nvt1");
        drop((sender, listener));
        setup.host = start_host(Command::new(PROGRAM), "vf-killed-tcp", &[]).0;
        settle(&setup.peer, "nvt1", "192.0.2.2");
        setup.run.wait_for(ON_VF, on_vf + 1);
    }
}

/// Nothing is left of who had this interface and this TAP. The kernel takes a moment.
fn gone(interface: &str, namespace: &Neighbour, tap: &str) {
    until("its TAP goes", || !exists_in(namespace, tap));
    until("its sockets go", || packet_sockets(interface) == 0);
    until("its program goes", || !has_program(interface));
    assert!(exists(interface), "it is nobody's");
}

fn exists_in(namespace: &Neighbour, name: &str) -> bool {
    let output = inside(namespace, "ip").args(["link", "show", name]).output();
    output.expect("ip runs").status.success()
}

/// Packet sockets on an interface of this namespace.
fn packet_sockets(name: &str) -> usize {
    let link = ip(&format!("-o link show {name}"));
    let (index, _) = link.split_once(':').expect("a number");
    let sockets = std::fs::read_to_string("/proc/net/packet").expect("it is there");
    let interfaces = sockets.lines().filter_map(|line| line.split_whitespace().nth(4));
    interfaces.filter(|interface| *interface == index).count()
}

/// Whether frames of an interface go to a program before the kernel's stack.
fn has_program(name: &str) -> bool {
    ip(&format!("link show {name}")).contains("xdp")
}

/// The kernel's own IP goes over the pair both ways, which a program at either entrance would keep from it.
fn carries_the_kernels_own(peer: &Neighbour) {
    ip("link set lo up");
    ip("addr add 198.51.100.1/24 dev vfg");
    ip("link set vfg up");
    settle(peer, "vfh", "198.51.100.2");
    let counter = helper_in(peer, "count");
    counter.wait_for("listening", 1);
    helper_here("datagrams 198.51.100.2:5002").end();
    let result = format!("result: {}", DATAGRAMS + 1);
    let said = counter.end();
    assert!(said.iter().any(|line| line.ends_with(&result)), "{said:?}");
}

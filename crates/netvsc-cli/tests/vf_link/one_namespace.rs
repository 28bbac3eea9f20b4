//! TAP and VF are in one namespace, whose kernel has the NIC's addresses.

use std::process::Command;

use crate::ends::DATAGRAMS;
use crate::namespace::{Neighbour, in_namespace, ip};
use crate::processes::{LIMITED, Line, PROGRAM, helper_here, helper_in, inside, limited};
use crate::setup::{make_pair, of_ip, settle, start_host, start_run, summary};

#[test]
fn each_datagram_arrives_once_where_tap_and_vf_are_in_one_namespace() {
    in_namespace(
        "one_namespace::each_datagram_arrives_once_where_tap_and_vf_are_in_one_namespace",
        || {
            in_one_namespace("packet", false);
            in_one_namespace("xdp", false);
        },
    );
}

#[test]
fn each_datagram_arrives_once_without_programs_in_the_kernel_too() {
    in_namespace(
        "one_namespace::each_datagram_arrives_once_without_programs_in_the_kernel_too",
        || {
            // Also where the looser form of the filter outweighs the stricter one, since the interface has no address.
            for all in ["0", "2"] {
                std::fs::write("/proc/sys/net/ipv4/conf/all/rp_filter", all).expect("root may");
                in_one_namespace("packet", true);
                assert_eq!(of_ip("ipv4", "all", "rp_filter"), all, "it is everybody's");
            }
        },
    );
}

fn in_one_namespace(driver: &str, less: bool) {
    std::fs::write("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1").expect("root may");
    let filter = |name: &str| of_ip("ipv4", name, "rp_filter");
    let (peer, name) = (Neighbour::new(), format!("vf-one-{driver}-{less}"));
    make_pair(1500);
    let before = filter("vfg");
    assert_ne!(before, "1", "nothing to see");
    settle(&peer, "vfh", "198.51.100.1");
    let flush = inside(&peer, "ip").args(["addr", "flush", "dev", "vfh"]).status();
    assert!(flush.expect("ip runs").success());
    let mut host = inside(&peer, if less { LIMITED[0] } else { PROGRAM });
    if less {
        host.args(&LIMITED[1..]);
    }
    let (host, base) = start_host(host, &name, &[]);
    let run = if less { limited() } else { Command::new(PROGRAM) };
    let run = start_run(run, &base, 1500, &["--vf-driver", driver]);
    let notes = usize::from(less);
    for (process, name) in [(&run, "vfg"), (&host, "vfh")] {
        let note =
            format!("{name}: the kernel's stack gets what is received there, too: not allowed");
        assert_eq!(process.has_said(&note), notes, "{name}");
        assert_eq!(process.has_said("CAP_BPF"), notes, "{name}");
        assert_eq!(process.has_said("Linux 6.6"), 0, "{name}");
    }
    let loose = less && of_ip("ipv4", "all", "rp_filter") == "2";
    assert_eq!(run.has_said("net.ipv4.conf.all.rp_filter is 2"), usize::from(loose));
    ip("link set lo up");
    ip("addr add 192.0.2.1/24 dev nvt0");
    let script = "ip addr add 192.0.2.2/24 broadcast 192.0.2.255 dev nvt1 && ip link set nvt1 up";
    assert!(inside(&peer, "sh").args(["-c", script]).status().expect("sh runs").success());
    let once = |said: Vec<Line>| {
        let result = format!("result: {}", DATAGRAMS + 1);
        assert!(said.iter().any(|line| line.ends_with(&result)), "{driver}: {said:?}");
    };
    let counter = helper_here("count");
    counter.wait_for("listening", 1);
    helper_in(&peer, "datagrams 192.0.2.1:5002").end();
    once(counter.end());
    // At the host's end other interfaces than the VF's have its address: what is for all is for each of them.
    let counter = helper_in(&peer, "count");
    counter.wait_for("listening", 1);
    helper_here("datagrams 192.0.2.255:5002").end();
    once(counter.end());
    assert_eq!(filter("vfg"), "1");
    for step in ["set vfg down", "set vfg name enP9s1", "set enP9s1 up"] {
        ip(&format!("link {step}"));
    }
    let said = run.stop();
    let summary = summary(&said);
    assert!(summary["frames_vf"].as_u64() >= Some(DATAGRAMS.into()), "{summary}");
    assert_eq!(filter("enP9s1"), before, "given back under its new name");
    host.stop();
    ip("link del enP9s1");
}

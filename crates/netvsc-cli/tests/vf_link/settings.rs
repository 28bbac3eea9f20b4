//! The settings of the kernel's IP on the VF's interface.

use std::process::Command;

use crate::namespace::{in_namespace, ip};
use crate::processes::{PROGRAM, until};
use crate::setup::{ON_VF, make_pair, of_ip, start, start_host, start_run, summary};

#[test]
fn the_kernels_ipv6_keeps_silent_on_the_vf_while_the_run_has_it() {
    in_namespace("settings::the_kernels_ipv6_keeps_silent_on_the_vf_while_the_run_has_it", || {
        make_pair(1500);
        assert_eq!(of_ip("ipv6", "vfg", "disable_ipv6"), "0", "nothing to see");
        let of_host = ["--churn", "300ms"];
        let (run, host, _) = start(Command::new(PROGRAM), 1500, "vf-ipv6", &of_host, &[]);
        // The host has had it back twice.
        run.wait_for(ON_VF, 3);
        assert_eq!(greetings("vfg"), 0);
        assert_eq!(of_ip("ipv6", "vfg", "disable_ipv6"), "1");
        run.stop();
        host.stop();
        for name in ["vfg", "vfh"] {
            assert_eq!(of_ip("ipv6", name, "disable_ipv6"), "0", "given back");
        }
    });
}

/// Messages that the kernel's IPv6 has sent on an interface by itself.
fn greetings(name: &str) -> u64 {
    let said = std::fs::read_to_string(format!("/proc/net/dev_snmp6/{name}")).expect("it is there");
    let said = said.lines().find_map(|line| line.strip_prefix("Icmp6OutMsgs"));
    said.expect("a counter").trim().parse().expect("a number")
}

#[test]
fn what_the_kernel_says_between_two_runs_is_no_guests() {
    in_namespace("settings::what_the_kernel_says_between_two_runs_is_no_guests", || {
        for driver in ["packet", "xdp"] {
            make_pair(1500);
            assert_eq!(of_ip("ipv6", "vfg", "disable_ipv6"), "0", "nothing to see");
            let (host, base) =
                start_host(Command::new(PROGRAM), &format!("vf-again-{driver}"), &[]);
            for round in 0..3 {
                // The kernel greets its neighbours before the first run, too.
                ip("link set vfg up");
                let before = greetings("vfg");
                until("the kernel speaks", || greetings("vfg") >= before + 2);
                let run = start_run(Command::new(PROGRAM), &base, 1500, &["--vf-driver", driver]);
                let said = run.stop();
                let summary = summary(&said);
                for what in ["frames_lost_orderly", "frames_duplicated"] {
                    assert_eq!(summary[what], 0, "{driver}, round {round}: {summary}");
                }
            }
            host.stop();
            ip("link del vfg");
        }
    });
}

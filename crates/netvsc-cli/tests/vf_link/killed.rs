//! Either process is killed.

use std::process::Command;

use crate::namespace::in_namespace;
use crate::processes::PROGRAM;
use crate::setup::{make_pair, of_ip, start_host, start_run};

#[test]
fn settings_come_back_after_a_run_and_a_host_that_were_killed() {
    in_namespace("killed::settings_come_back_after_a_run_and_a_host_that_were_killed", || {
        make_pair(1500);
        let settings =
            |name| [of_ip("ipv6", name, "disable_ipv6"), of_ip("ipv4", name, "rp_filter")];
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

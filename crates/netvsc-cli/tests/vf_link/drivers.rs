//! Which means of the kernel's an interface is reached by.

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

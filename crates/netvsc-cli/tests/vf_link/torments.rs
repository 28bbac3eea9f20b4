//! TCP goes on whatever happens to the interface.

use std::thread;
use std::time::Duration;

use crate::long;
use crate::namespace::{Neighbour, in_namespace, ip};
use crate::processes::inside;
use crate::setup::{ON_SYNTHETIC, ON_VF, Setup, make_pair};

/// How often the interface is tormented.
fn torments() -> usize {
    if long() { 100 } else { 10 }
}

#[test]
fn tcp_survives_whatever_happens_to_the_interface() {
    in_namespace("torments::tcp_survives_whatever_happens_to_the_interface", || {
        tormented("vf-torment", 1500, "packet");
    });
}

#[test]
fn tcp_survives_it_past_the_kernels_stack_too() {
    in_namespace("torments::tcp_survives_it_past_the_kernels_stack_too", || {
        tormented("vf-torment-xdp", 1500, "xdp");
    });
}

#[test]
fn tcp_survives_it_with_large_frames() {
    in_namespace("torments::tcp_survives_it_with_large_frames", || {
        tormented("vf-torment-large", 9000, "xdp");
    });
}

fn tormented(name: &str, mtu: u32, driver: &str) {
    let mut setup = Setup::with_mtu(mtu, name, &["--churn", "700ms"], &["--vf-driver", driver]);
    let elsewhere = Neighbour::new();
    let (bytes, silence, stalls) = setup.transfer_with_stalls(|_| {
        for round in 0..torments() {
            torment(round, mtu, &elsewhere);
        }
    });
    // Whatever has happened, it is used again.
    let before = setup.run.has_said(ON_VF);
    setup.run.wait_for(ON_VF, before + 1);
    let count = setup.run.has_said(ON_SYNTHETIC);
    let summary = setup.finish();
    eprintln!(
        "{bytes} bytes, {count} times off the VF, {stalls} stalls, longest silence {silence:?}"
    );
    // About half the time the host has the VF, and what happens to the interface meanwhile moves nobody.
    assert!(bytes > 1 << 20 && count >= torments() / 4, "{bytes} bytes: {summary}");
    assert!(silence < Duration::from_secs(10), "silent for {silence:?}");
    assert_eq!(summary["frames_lost_orderly"], 0, "{summary}");
    for path in ["frames_vf", "frames_synthetic"] {
        assert!(summary[path].as_u64() > Some(0), "{summary}");
    }
}

fn torment(round: usize, mtu: u32, elsewhere: &Neighbour) {
    let rest = || thread::sleep(Duration::from_millis(120));
    match round % 5 {
        0 => {
            ip("link set vfg down");
            rest();
            ip("link set vfg up");
        }
        1 => {
            ip("link set vfh down");
            rest();
            ip("link set vfh up");
        }
        2 => {
            ip("link set vfg down");
            ip("link set vfg name enP9s1");
            ip("link set enP9s1 up");
            rest();
            ip("link set enP9s1 down");
            ip("link set enP9s1 name vfg");
            ip("link set vfg up");
        }
        3 => {
            ip(&format!("link set vfg netns {}", elsewhere.pid()));
            rest();
            let back = format!("link set vfg netns {}", std::process::id());
            let output = inside(elsewhere, "ip").args(back.split(' ')).output().expect("ip runs");
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        }
        _ => {
            ip("link del vfg");
            rest();
            make_pair(mtu);
        }
    }
    rest();
}

//! TCP goes on whatever happens to the interface.

use std::collections::BTreeMap;
use std::thread;
use std::time::Duration;

use crate::namespace::{Neighbour, in_namespace, ip};
use crate::processes::{Line, inside};
use crate::setup::{ON_SYNTHETIC, ON_VF, Setup, make_pair, summary};
use crate::switches::noticed;
use crate::{alone, long};

/// What happens to the interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Torment {
    Down,
    PeersCarrier,
    Renamed,
    Moved,
    Deleted,
}

impl Torment {
    const ALL: [Self; 5] =
        [Self::Down, Self::PeersCarrier, Self::Renamed, Self::Moved, Self::Deleted];

    fn begin(self, elsewhere: &Neighbour) {
        match self {
            Self::Down => drop(ip("link set vfg down")),
            Self::PeersCarrier => drop(ip("link set vfh down")),
            Self::Renamed => {
                ip("link set vfg down");
                ip("link set vfg name enP9s1");
                ip("link set enP9s1 up");
            }
            Self::Moved => drop(ip(&format!("link set vfg netns {}", elsewhere.pid()))),
            Self::Deleted => drop(ip("link del vfg")),
        }
    }

    /// As it was before, but that it does not carry frames yet.
    fn turn_back(self) {
        if self == Self::Renamed {
            ip("link set enP9s1 down");
            ip("link set enP9s1 name vfg");
        }
    }

    fn end(self, mtu: u32, elsewhere: &Neighbour) {
        match self {
            Self::Down | Self::Renamed => drop(ip("link set vfg up")),
            Self::PeersCarrier => drop(ip("link set vfh up")),
            Self::Moved => {
                let back = format!("link set vfg netns {}", std::process::id());
                let output = inside(elsewhere, "ip").args(back.split(' ')).output();
                let output = output.expect("ip runs");
                assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            }
            Self::Deleted => make_pair(mtu),
        }
    }
}

/// How often each of them hits the interface while frames go over it.
fn hits() -> usize {
    if long() { 20 } else { 2 }
}

/// What the guest says when frames leave the VF since its interface does not carry them. Nothing but a torment takes its carrier.
const NO_CARRIER: &str =
    r#""event":"path","nic":0,"path":"synthetic","why":"the VF has no carrier""#;

#[test]
fn tcp_survives_whatever_happens_to_the_interface() {
    let _alone = alone();
    in_namespace("torments::tcp_survives_whatever_happens_to_the_interface", || {
        tormented("vf-torment", 1500, "packet");
    });
}

#[test]
fn tcp_survives_it_past_the_kernels_stack_too() {
    let _alone = alone();
    in_namespace("torments::tcp_survives_it_past_the_kernels_stack_too", || {
        tormented("vf-torment-xdp", 1500, "xdp");
    });
}

#[test]
fn tcp_survives_it_with_large_frames() {
    let _alone = alone();
    in_namespace("torments::tcp_survives_it_with_large_frames", || {
        tormented("vf-torment-large", 9000, "xdp");
    });
}

fn tormented(name: &str, mtu: u32, driver: &str) {
    let mut setup = Setup::with_mtu(mtu, name, &["--churn", "700ms"], &["--vf-driver", driver]);
    let elsewhere = Neighbour::new();
    let (mut hit, mut tries) = (BTreeMap::new(), 0);
    let transfer = setup.transfer(|setup| {
        for torment in Torment::ALL.into_iter().cycle().take(hits() * Torment::ALL.len()) {
            // The host may ask for the VF at the same moment; then it is tried again.
            while !strike(torment, setup, mtu, &elsewhere) {
                tries += 1;
                assert!(tries <= hits() * 10, "{torment:?} meets the host's doing again and again");
            }
            *hit.entry(torment).or_insert(0) += 1;
        }
    });
    let said = setup.finish_with_events();
    let (bytes, silence, summary) = (transfer.bytes, transfer.longest(), summary(&said));
    eprintln!("{name}: {bytes} bytes, {hit:?} and {tries} that the host forestalled");
    let asked = noticed(&said, &transfer);
    // With the few orderly switches of the short form any of them may meet a busy machine.
    assert!(!long() || asked.stalls() <= 1, "{asked}");
    assert_eq!(hit, Torment::ALL.map(|torment| (torment, hits())).into());
    // Each of them is among what the guest told.
    let losses = said.iter().filter(|line| line.contains(NO_CARRIER)).count();
    assert!(losses >= hits() * Torment::ALL.len(), "{losses} times without carrier");
    assert!(bytes > 1 << 20, "{bytes} bytes: {summary}");
    assert!(silence < Duration::from_secs(10), "silent for {silence:?}");
    assert_eq!(summary["frames_lost_orderly"], 0, "{summary}");
    for path in ["frames_vf", "frames_synthetic"] {
        assert!(summary[path].as_u64() > Some(0), "{summary}");
    }
}

/// Waits until the last path that the guest told is this one; how many lines it had told then.
fn on(setup: &Setup, path: &'static str) -> usize {
    setup.run.wait_until(path, |said| {
        let is_path = |line: &&Line| line.contains(ON_VF) || line.contains(ON_SYNTHETIC);
        said.iter().rfind(is_path)?.contains(path).then_some(said.len())
    })
}

/// Torments the interface once the guest is on it, and waits until it is on it again. Whether it was this that took the guest off it.
fn strike(torment: Torment, setup: &Setup, mtu: u32, elsewhere: &Neighbour) -> bool {
    let before = on(setup, ON_VF);
    torment.begin(elsewhere);
    // As long as it takes to get used to it.
    thread::sleep(Duration::from_millis(120));
    torment.turn_back();
    // Otherwise what is told next could be of before.
    on(setup, ON_SYNTHETIC);
    torment.end(mtu, elsewhere);
    on(setup, ON_VF);
    setup.run.wait_until("a path", |said| {
        let off = said[before..].iter().find(|line| line.contains(ON_SYNTHETIC))?;
        Some(off.contains(NO_CARRIER))
    })
}

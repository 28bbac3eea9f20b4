//! Which link carries what, by captures on each of them: the guest's TAP, the VF's link, the run's synthetic path, the peer's TAP.

use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use crate::long;
use crate::namespace::{in_namespace, ip};
use crate::processes::{Process, helper_here, helper_in};
use crate::setup::{ON_SYNTHETIC, ON_VF, Setup, Transfer};
use crate::streams::{Stream, Streams};

/// How many echoes a flood of them has.
fn echoes() -> u16 {
    if long() { 50_000 } else { 1000 }
}

/// Captures of one transfer.
struct Captures {
    guest: Process,
    link: Process,
    peer: Process,
    until: PathBuf,
}

/// A transfer with what each link has seen of it.
struct Seen {
    bytes: u64,
    port: u16,
    /// The sequence number of its first byte.
    first: u32,
    link: Stream,
}

impl Captures {
    fn start(setup: &Setup) -> Self {
        let until = setup.path("captured");
        let _ = std::fs::remove_file(&until);
        let role = format!("capture {}", until.display());
        let [guest, peer] = [&setup.guest, &setup.peer].map(|end| helper_in(end, &role));
        let link = helper_here(&role);
        for capture in [&guest, &link, &peer] {
            capture.wait_for("listening", 1);
        }
        Self { guest, link, peer, until }
    }

    /// Both TAPs have seen all that arrived and nothing else; what the link has seen.
    fn end(self, transfer: &Transfer) -> Seen {
        std::fs::write(&self.until, "").expect("a file");
        let [mut guest, mut link, mut peer] =
            [self.guest, self.link, self.peer].map(|capture| Streams::told_by(&capture.end()).0);
        let _ = std::fs::remove_file(&self.until);
        let (port, sent) = guest.pop_first().expect("a connection");
        assert!(guest.is_empty(), "one connection");
        let (bytes, first) = (transfer.bytes, sent.first.expect("its beginning"));
        assert_eq!(sent.spans(first), [(0, bytes)], "at the guest's TAP");
        let arrived = peer.remove(&port).expect("the same connection");
        assert_eq!(arrived.spans(first), [(0, bytes)], "at the peer's TAP");
        Seen { bytes, port, first, link: link.remove(&port).unwrap_or_default() }
    }
}

/// A transfer that the captures can follow, with what goes on meanwhile.
fn captured(setup: &mut Setup, meanwhile: impl FnOnce(&mut Setup)) -> Seen {
    let captures = Captures::start(setup);
    let transfer = setup.paced_transfer(meanwhile);
    assert!(transfer.bytes > 1 << 20, "{} bytes", transfer.bytes);
    captures.end(&transfer)
}

fn moment() {
    thread::sleep(Duration::from_millis(200));
}

#[test]
fn frames_go_over_the_interface_while_it_is_the_vf_and_only_then() {
    in_namespace("captures::frames_go_over_the_interface_while_it_is_the_vf_and_only_then", || {
        frames_by_path("vf-capture", 1500, "packet");
    });
}

#[test]
fn frames_go_by_their_paths_past_the_kernels_stack_and_with_large_frames_too() {
    in_namespace(
        "captures::frames_go_by_their_paths_past_the_kernels_stack_and_with_large_frames_too",
        || {
            frames_by_path("vf-capture-xdp", 1500, "xdp");
            frames_by_path("vf-capture-large", 9000, "packet");
            frames_by_path("vf-capture-xdp-large", 9000, "xdp");
        },
    );
}

/// What holds of every byte of TCP, however often it was sent: it was seen at both TAPs; on the VF's link if the guest was on the VF all the
/// time, and not there if it never was; and if it was so for a part of the time, on the VF's link or on the synthetic path.
fn frames_by_path(name: &str, mtu: u32, driver: &str) {
    let file = std::env::temp_dir().join(format!("netvsc-{name}-{}.pcapng", std::process::id()));
    let of_run = ["--pcap", file.to_str().expect("a plain path"), "--vf-driver", driver];
    let mut setup = Setup::with_mtu(mtu, name, &[], &of_run);
    if driver == "xdp" {
        assert_eq!(setup.run.has_said("AF_XDP, native, copied"), 1);
    }
    let on_vf = captured(&mut setup, |_| moment());
    assert_eq!(on_vf.link.spans(on_vf.first), [(0, on_vf.bytes)], "on the VF's link");
    setup.flood(echoes());

    ip("link set vfg down");
    setup.run.wait_for(ON_SYNTHETIC, 1);
    let off_vf = captured(&mut setup, |_| moment());
    assert_eq!(off_vf.link, Stream::default(), "on the VF's link");
    setup.flood(echoes());

    let both = captured(&mut setup, |setup| {
        moment();
        ip("link set vfg up");
        setup.run.wait_for(ON_VF, 2);
        moment();
    });
    let summary = setup.finish();
    ip("link del vfg");
    for what in ["frames_lost_orderly", "frames_duplicated"] {
        assert_eq!(summary[what], 0, "{what}: {summary}");
    }
    // The run's own capture, which is whole now, knows the synthetic path, too.
    let of_run = Streams::of_run(&file);
    let _ = std::fs::remove_file(&file);
    let out = |path: &str, port: u16| {
        let streams = of_run.get(&format!("nic0-{path}-out"));
        streams.and_then(|streams| streams.0.get(&port)).cloned().unwrap_or_default()
    };
    for seen in [&on_vf, &off_vf, &both] {
        let Seen { bytes, port, first, link } = seen;
        let (vf, synthetic) = (out("vf", *port), out("synthetic", *port));
        assert_eq!(vf.spans(*first), link.spans(*first), "what left on the VF is on its link");
        assert_eq!(link.and(&synthetic).spans(*first), [(0, *bytes)], "on either");
    }
    assert!(out("synthetic", on_vf.port).spans(on_vf.first).is_empty(), "on the synthetic path");
    for stream in [&both.link, &out("synthetic", both.port)] {
        let spans = stream.spans(both.first);
        let carried: u64 = spans.iter().map(|(start, end)| end - start).sum();
        assert!(carried > 0 && carried < both.bytes, "{carried} of {} bytes", both.bytes);
    }
    for path in ["frames_vf", "frames_synthetic"] {
        assert!(summary[path].as_u64() > Some(0), "{summary}");
    }
}

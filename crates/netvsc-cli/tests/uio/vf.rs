//! With the kernel's VF beside the NIC.

use std::process::Command;
use std::thread;

use hyperv_host::nic::NicServiceConfig;
use rustix::process::Signal;
use serde_json::Value;

use crate::fake_uio::{Fake, Habits, MAC, NIC, OfVf, VF_END};
use crate::guest::MLX5;
use crate::namespace::{in_namespace, ip};
use crate::others;
use crate::setup::*;

const BUS: &str = "9970f259-1a65-4a22-bce2-500aee5b8543";
const VF: &str = "vfg";

fn make_vf() {
    ip(&format!("link add {VF} type veth peer name {VF_END}"));
    ip(&format!("link set {VF_END} up"));
}

impl Far {
    /// The same with an interface that sysfs calls the VF's, in a slot of this name; the host has not said so yet.
    fn with_vf(slot: &str, mac: &str) -> (Self, Fake) {
        Self::with_vf_and(slot, mac, Habits::default())
    }

    fn with_vf_and(slot: &str, mac: &str, habits: Habits) -> (Self, Fake) {
        for (setting, value) in
            [("ipv6/conf/default/disable_ipv6", "1"), ("ipv4/conf/default/rp_filter", "0")]
        {
            std::fs::write(format!("/proc/sys/net/{setting}"), value).expect("root may");
        }
        make_vf();
        let (far, mut fake) = Self::with(NicServiceConfig::new(MAC), 3000, habits);
        let function = fake.guest.function(BUS, slot, &MLX5);
        fake.guest.port(&function, VF, mac, 0);
        (far, fake)
    }
}

impl Run {
    fn wait_for_path(&mut self, path: &str) -> Value {
        loop {
            let event = self.wait_for("path");
            if event["path"] == path {
                return event;
            }
        }
    }
}

/// A NIC that the kernel knows nothing of is told of by the run itself; it is on its VF.
fn run_is_told_of(fake: &Fake, run: &Run) {
    let sent = |path: &str| {
        let series = format!("netvsc_transmit_packets_total{{device=\"nvt0\",path=\"{path}\"}}");
        metric(fake, &series).expect("a series")
    };
    // A large send counts as one frame.
    let least = |bytes| fewest(bytes, LARGE) as f64;
    let (vf, synthetic) = (sent("vf"), sent("synthetic"));
    assert!(vf >= least(4 << 20) && synthetic >= least(1 << 20), "{vf} {synthetic}");
    assert_eq!(metric(fake, "netvsc_datapath_vf{device=\"nvt0\"}"), Some(1.0));
    assert_eq!(metric(fake, "netvsc_run_lost_packets_total{device=\"nvt0\"}"), Some(0.0));
    let list: Value = serde_json::from_str(&told(fake, &["list", "--json"])).expect("JSON");
    let nics = list["nics"].as_array().expect("NICs");
    let nic = nics.iter().find(|nic| nic["guid"] == NIC).expect("the NIC");
    let pid = run.child.id();
    assert_eq!((&nic["path"], &nic["mac"]), (&"vf".into(), &MAC.to_string().into()), "{nic}");
    let by = &nic["run"];
    assert_eq!((&by["pid"], &by["ifname"], &by["vf"]), (&pid.into(), &"nvt0".into(), &VF.into()));
    let page = told(fake, &["show", NIC]);
    let line = format!("Driven from user space by process {pid}, as nvt0: vf path with {VF}");
    assert!(page.contains(&line), "{page}");
}

fn carries_what_the_host_gives_to_the_vf(driver: &str, habits: Habits) {
    let (_far, fake) = Far::with_vf_and("7", &MAC.to_string(), habits);
    let mut run = Run::start(&fake, &["--vf-link", VF, "--vf-driver", driver]);
    // By MAC alone, since the host has said nothing of a VF; such a pair carries nothing.
    assert_eq!(run.wait_for("paired")["reason"], "Mac");
    settle();
    converse(1 << 20);
    assert_eq!(fake.over_vf(), OfVf::default(), "before the host has said anything");
    fake.vf(Some(7));
    assert_eq!(run.wait_for("associated")["serial"], 7);
    run.wait_for_path("vf");
    converse(4 << 20);
    // A packet socket gets copies: the kernel's stack, which has the NIC's address as well, is not to take them, too.
    let filter = |name: &str| format!("/proc/sys/net/ipv4/conf/{name}/rp_filter");
    std::fs::write(filter("all"), "0").expect("root may");
    each_comes_back_once();
    run_is_told_of(&fake, &run);
    let first = fake.over_vf();
    // A host gives the first frames of a connection to the NIC.
    let least = fewest(4 << 20, SEGMENT);
    assert!(first.from_guest >= least && first.to_guest >= least / 2, "{first:?}");
    // Asked back: the host waits until nothing comes any more.
    fake.vf(None);
    run.wait_for("disassociated");
    run.wait_for_path("synthetic");
    converse(1 << 20);
    let before = fake.over_vf();
    converse(1 << 20);
    assert_eq!(fake.over_vf(), before, "nothing on the VF that is not the guest's");
    fake.vf(Some(7));
    run.wait_for_path("vf");
    // The link goes down, and away, under traffic.
    for torment in ["set vfg down", "del vfg"] {
        let before = fake.over_vf();
        let conversation = thread::spawn(|| converse(4 << 20));
        ip(&format!("link {torment}"));
        run.wait_for_path("synthetic");
        conversation.join().expect("every byte comes back");
        match torment {
            "del vfg" => make_vf(),
            _ => _ = ip("link set vfg up"),
        }
        run.wait_for_path("vf");
        converse(1 << 20);
        assert!(fake.over_vf().from_guest > before.from_guest + 100);
    }
    let strict = std::fs::read_to_string(filter(VF)).expect("it is there");
    run.signal(Signal::TERM);
    assert!(run.end().success());
    let after = std::fs::read_to_string(filter(VF)).expect("it is there");
    assert_eq!((strict.trim(), after.trim()), ("1", "0"), "as it was before the run");
    let account = fake.end();
    assert_heeded(&account, habits);
    let counters = account.counters;
    assert_eq!((counters.leaked, counters.lent, counters.failed), (0, 0, 0));
    assert!(!ip("link show vfg").contains("xdp"), "left behind");
}

#[test]
fn the_kernels_vf_is_the_fast_path_of_a_nic_driven_from_user_space() {
    in_namespace("vf::the_kernels_vf_is_the_fast_path_of_a_nic_driven_from_user_space", || {
        carries_what_the_host_gives_to_the_vf("packet", Habits::default());
    });
}

#[test]
fn so_it_is_with_a_monitor_page_and_an_old_kernel() {
    in_namespace("vf::so_it_is_with_a_monitor_page_and_an_old_kernel", || {
        carries_what_the_host_gives_to_the_vf("packet", OLD_KERNEL_MONITORED);
    });
}

#[test]
fn so_it_is_past_the_kernels_stack() {
    in_namespace("vf::so_it_is_past_the_kernels_stack", || {
        carries_what_the_host_gives_to_the_vf("xdp", Habits::default());
    });
}

#[test]
fn a_vf_hears_what_its_nic_hears() {
    in_namespace("vf::a_vf_hears_what_its_nic_hears", || {
        let (_far, fake) = Far::with_vf("7", &MAC.to_string());
        fake.vf(Some(7));
        let mut run = Run::start(&fake, &["--vf-link", VF]);
        run.wait_for_path("vf");
        settle();
        let wanted = || others::link(VF).promiscuity;
        assert_eq!(wanted(), Some(0));
        ip("link set nvt0 promisc on");
        until("the VF is promiscuous", || wanted() == Some(1));
        converse(64 << 10);
        ip("link set nvt0 promisc off");
        until("the VF is so no more", || wanted() == Some(0));
        run.signal(Signal::TERM);
        assert!(run.end().success());
        assert_eq!(fake.end().counters.failed, 0);
    });
}

#[test]
fn a_nic_that_begins_anew_takes_its_vf_along() {
    in_namespace("vf::a_nic_that_begins_anew_takes_its_vf_along", || {
        let (_far, fake) = Far::with_vf("7", &MAC.to_string());
        fake.vf(Some(7));
        let mut run = Run::start(&fake, &["--vf-link", VF]);
        run.wait_for_path("vf");
        settle();
        ip("link set vfh mtu 3000");
        for mtu in [3000, 1500] {
            ip(&format!("link set nvt0 mtu {mtu}"));
            run.wait_for("unpaired");
            assert_eq!(run.wait_for("nic_ready")["mtu"], mtu);
            run.wait_for_path("vf");
            let before = fake.over_vf();
            converse(1 << 20);
            assert!(fake.over_vf().from_guest > before.from_guest + 100);
        }
        run.signal(Signal::TERM);
        assert!(run.end().success());
        assert_eq!(fake.end().counters.failed, 0);
    });
}

#[test]
fn what_a_killed_run_has_set_on_its_vf_is_undone_when_the_nic_is_given_back() {
    const NAME: &str =
        "vf::what_a_killed_run_has_set_on_its_vf_is_undone_when_the_nic_is_given_back";
    in_namespace(NAME, || {
        let (_far, fake) = Far::with_vf("7", &MAC.to_string());
        fake.vf(Some(7));
        let filter = || {
            let text = std::fs::read_to_string("/proc/sys/net/ipv4/conf/vfg/rp_filter");
            text.expect("it is there").trim().to_owned()
        };
        assert_eq!(filter(), "0");
        let root = fake.guest.root().to_str().expect("a plain path").to_owned();
        let restore = |more: &[&str]| {
            let verb = ["bind", "--restore", "--sysfs-root", &root];
            let output = Command::new(PROGRAM).args(verb).args(more).output().expect("it runs");
            let said = String::from_utf8(output.stderr).expect("text");
            assert!(output.status.success(), "{said}");
            said
        };
        let mut run = Run::start(&fake, &["--vf-link", VF]);
        run.wait_for_path("vf");
        assert_eq!((filter(), restore(&[])), ("1".into(), String::new()), "a run has it");
        run.signal(Signal::KILL);
        run.end();
        assert_eq!(filter(), "1");
        let said = restore(&["--dry-run"]);
        assert!(said.contains("echo '0' > /proc/sys/net/ipv4/conf/vfg/rp_filter"), "{said}");
        assert_eq!(filter(), "1");
        assert!(restore(&[]).contains("vfg: the kernel's IP is as it was before"));
        assert_eq!((filter(), restore(&[])), ("0".into(), String::new()));
        fake.end();
    });
}

#[test]
fn an_interface_that_is_not_this_nics_vf_carries_nothing() {
    in_namespace("vf::an_interface_that_is_not_this_nics_vf_carries_nothing", || {
        // Another serial, and another MAC.
        let (_far, fake) = Far::with_vf("8", "00:15:5d:00:00:08");
        fake.vf(Some(7));
        let mut run = Run::start(&fake, &["--vf-link", VF]);
        run.wait_for("associated");
        settle();
        converse(64 << 10);
        assert_eq!(fake.over_vf(), OfVf::default());
        run.signal(Signal::TERM);
        assert!(run.end().success());
        fake.end();
    });
}

#[test]
fn an_emulated_card_with_the_nics_mac_is_no_vf_here_either() {
    in_namespace("vf::an_emulated_card_with_the_nics_mac_is_no_vf_here_either", || {
        make_vf();
        let (_far, mut fake) = Far::new(NicServiceConfig::new(MAC), 1500);
        fake.guest.emulated(VF, &MAC.to_string());
        fake.vf(Some(7));
        let mut run = Run::start(&fake, &["--vf-link", VF]);
        let ignored = run.wait_for("ignored");
        assert!(ignored["why"].as_str().is_some_and(|why| why.contains("P1")), "{ignored}");
        run.signal(Signal::TERM);
        assert!(run.end().success());
        fake.end();
    });
}

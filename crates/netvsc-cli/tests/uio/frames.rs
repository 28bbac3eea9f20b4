//! The NIC alone: frames, sub-channels, and what `ip link` does to its interface.

use std::thread;
use std::time::Duration;

use hyperv_host::nic::NicServiceConfig;
use netvsc_linux::Tap;
use rustix::process::Signal;

use crate::fake_uio::{Fake, Habits, MAC, NIC};
use crate::namespace::{exists, in_namespace, ip};
use crate::others::Ends;
use crate::setup::*;

fn the_kernels_frames_go_through(habits: Habits) {
    let (_far, fake) = Far::with(NicServiceConfig::new(MAC), 1500, habits);
    let mut run = Run::start(&fake, &["--stats-interval", "100ms"]);
    assert_eq!(run.wait_for("nic_offered")["instance"], NIC);
    let ready = run.wait_for("nic_ready");
    assert_eq!((&ready["mac"], &ready["mtu"]), (&MAC.to_string().into(), &1500.into()));
    until("the interface is up", || exists("nvt0") && link().contains(",UP"));
    settle();
    converse(8 << 20);
    // One frame at a time: whoever misses a single doorbell waits for ever.
    each_comes_back_once();
    let counted = run.wait_for("statistics");
    assert!(counted["tx_synthetic"].is_u64());
    run.signal(Signal::TERM);
    assert!(run.end().success());
    assert!(!exists("nvt0"), "left behind");
    let account = fake.end();
    assert_eq!((account.opened, account.closed), (1, 1));
    assert_heeded(&account, habits);
    let counters = account.counters;
    // How many of them came in one piece to a guest that coalesces is the kernel's doing.
    let to_guest = counters.receive_frames + counters.coalesced;
    let least = fewest(8 << 20, SEGMENT);
    assert!(to_guest >= least && account.from_guest >= least, "{counters:?}");
    assert_eq!((counters.leaked, counters.lent, counters.failed), (0, 0, 0));
}

#[test]
fn the_kernels_frames_go_through_a_uio_device_until_a_signal() {
    in_namespace("frames::the_kernels_frames_go_through_a_uio_device_until_a_signal", || {
        the_kernels_frames_go_through(Habits::default());
    });
}

#[test]
fn so_they_do_where_the_doorbell_is_a_bit_of_the_monitor_page() {
    in_namespace("frames::so_they_do_where_the_doorbell_is_a_bit_of_the_monitor_page", || {
        the_kernels_frames_go_through(MONITORED);
    });
}

#[test]
fn so_they_do_where_the_kernel_masks_at_every_interrupt() {
    in_namespace("frames::so_they_do_where_the_kernel_masks_at_every_interrupt", || {
        the_kernels_frames_go_through(OLD_KERNEL);
    });
}

#[test]
fn so_they_do_where_both_are_so() {
    in_namespace("frames::so_they_do_where_both_are_so", || {
        the_kernels_frames_go_through(OLD_KERNEL_MONITORED);
    });
}

fn sub_channels_are_used(habits: Habits) {
    let mut config = NicServiceConfig::new(MAC);
    config.policy.max_queues = 4;
    let (_far, fake) = Far::with(config, 1500, habits);
    fake.guest.write("proc/sys/kernel/osrelease", "6.16.0-1001-azure");
    let mut run = Run::start(&fake, &["--queues", "4"]);
    let told = run.wait_for("pairing");
    assert_eq!(told["why"], "4 channels are in use");
    let shown = ip("-d link show nvt0");
    assert!(shown.contains("multi_queue") && shown.contains("numqueues 4"), "{shown}");
    assert_eq!(metric(&fake, "netvsc_run_queues{device=\"nvt0\"}"), Some(4.0));
    settle();
    thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| converse(256 << 10));
        }
    });
    // Each on a flow of its own, so that every channel is one that is waited for.
    for _ in 0..8 {
        each_comes_back_once();
    }
    run.signal(Signal::TERM);
    assert!(run.end().success());
    let account = fake.end();
    assert_heeded(&account, habits);
    let counters = account.counters;
    assert_eq!((counters.queues_opened, counters.leaked, counters.failed), (3, 0, 0));
    assert!(counters.send_tables > 0);
}

#[test]
fn sub_channels_that_the_kernel_opens_are_used() {
    in_namespace("frames::sub_channels_that_the_kernel_opens_are_used", || {
        sub_channels_are_used(Habits::default());
    });
}

#[test]
fn none_is_asked_for_where_its_interrupts_would_crash_the_kernel() {
    in_namespace("frames::none_is_asked_for_where_its_interrupts_would_crash_the_kernel", || {
        let mut config = NicServiceConfig::new(MAC);
        config.policy.max_queues = 4;
        let (_far, fake) = Far::with(config, 1500, MONITORED);
        fake.guest.write("proc/sys/kernel/osrelease", "6.12.94-cloud");
        let mut run = Run::start(&fake, &["--queues", "4"]);
        let told = run.wait_for("pairing");
        let why = told["why"].as_str().expect("a reason");
        assert!(why.contains("one channel") && why.contains("Linux 6.16"), "{why}");
        settle();
        converse(256 << 10);
        assert_eq!(metric(&fake, "netvsc_run_queues{device=\"nvt0\"}"), Some(1.0));
        run.signal(Signal::TERM);
        assert!(run.end().success());
        assert_eq!(fake.end().counters.queues_opened, 0);
    });
}

#[test]
fn so_are_sub_channels_with_bits_of_their_own() {
    in_namespace("frames::so_are_sub_channels_with_bits_of_their_own", || {
        sub_channels_are_used(MONITORED);
    });
}

#[test]
fn so_are_those_of_a_kernel_that_masks_each() {
    in_namespace("frames::so_are_those_of_a_kernel_that_masks_each", || {
        sub_channels_are_used(OLD_KERNEL_MONITORED);
    });
}

#[test]
fn a_nic_that_the_host_takes_back_ends_the_run_in_order() {
    in_namespace("frames::a_nic_that_the_host_takes_back_ends_the_run_in_order", || {
        let (_far, fake) = Far::new(NicServiceConfig::new(MAC), 1500);
        let mut run = Run::start(&fake, &[]);
        run.wait_for("nic_ready");
        settle();
        converse(64 << 10);
        fake.rescind();
        assert_eq!(run.wait_for("nic_gone")["why"], "the host took it back");
        assert_eq!(run.end().code(), Some(1), "whoever started it may start it again");
        assert!(!exists("nvt0"), "left behind");
        assert_eq!(fake.end().closed, 1);
    });
}

#[test]
fn a_run_that_is_killed_leaves_a_device_that_the_next_one_opens() {
    in_namespace("frames::a_run_that_is_killed_leaves_a_device_that_the_next_one_opens", || {
        let (_far, fake) = Far::new(NicServiceConfig::new(MAC), 1500);
        for round in 1..=3 {
            let mut run = Run::start(&fake, &[]);
            run.wait_for("nic_ready");
            settle();
            converse(64 << 10);
            let queues = || metric(&fake, "netvsc_run_queues{device=\"nvt0\"}");
            assert_eq!(queues(), Some(1.0));
            run.signal(if round < 3 { Signal::KILL } else { Signal::INT });
            run.end();
            until("the interface is gone", || !exists("nvt0"));
            assert_eq!(queues(), None, "nobody tells of it any more");
        }
        let asked = fake.guest.root().join("run/netvsc/live");
        assert_eq!(std::fs::read_dir(asked).expect("a folder").count(), 0, "left behind");
        let account = fake.end();
        assert_eq!((account.opened, account.counters.failed), (3, 0));
    });
}

#[test]
fn the_nic_follows_what_ip_link_does_to_its_interface() {
    in_namespace("frames::the_nic_follows_what_ip_link_does_to_its_interface", || {
        let (_far, fake) = Far::new(NicServiceConfig::new(MAC), 4000);
        let mut run = Run::start(&fake, &[]);
        run.wait_for("nic_ready");
        settle();
        // The MTU: NIC and host begin anew, with longer frames.
        ip("link set nvt0 mtu 4000");
        assert_eq!(run.wait_for("nic_ready")["mtu"], 4000);
        converse(1 << 20);
        // The address: the host agrees, and frames to the new one arrive.
        ip("link set nvt0 address 02:15:5d:00:00:07");
        converse(64 << 10);
        // Down and up: whoever is down hears nothing, and afterwards everything again.
        ip("link set nvt0 down");
        thread::sleep(Duration::from_millis(50));
        ip("link set nvt0 up");
        converse(64 << 10);
        run.signal(Signal::TERM);
        assert!(run.end().success());
        let account = fake.end();
        assert_eq!((account.opened, account.closed, account.counters.failed), (2, 2, 0));
    });
}

/// A device whose host gives its NIC frames for the NIC's own address only, and whose far end is in this namespace.
fn choosy() -> Fake {
    let mut config = NicServiceConfig::new(MAC);
    config.policy.own_unicast = true;
    let far = Tap::open(&"far0".parse().expect("a name")).expect("a TAP");
    far.set_up(true).expect("root may");
    Fake::new(config, far, MONITORED)
}

#[test]
fn the_nic_hears_what_is_for_others_while_its_interface_is_a_bridges_port() {
    in_namespace(
        "frames::the_nic_hears_what_is_for_others_while_its_interface_is_a_bridges_port",
        || {
            let fake = choosy();
            let mut run = Run::start(&fake, &[]);
            run.wait_for("nic_ready");
            settle();
            Ends::open("far0", "nvt0").follow_what_is_wanted();
            // A NIC that begins anew hears it, too, and one whose interface was a port before.
            ip("link set nvt0 master br0");
            ip("link set nvt0 mtu 1400");
            assert_eq!(run.wait_for("nic_ready")["mtu"], 1400);
            Ends::open("far0", "nvt0").until_others(true, "after another start");
            run.signal(Signal::TERM);
            assert!(run.end().success());
            ip("tuntap add mode tap name nvt0 vnet_hdr");
            ip("link set nvt0 master br0");
            let mut run = Run::start(&fake, &[]);
            run.wait_for("nic_ready");
            settle();
            Ends::open("far0", "nvt0").until_others(true, "of a port that was there before");
            run.signal(Signal::TERM);
            assert!(run.end().success());
            assert_eq!(fake.end().counters.failed, 0);
        },
    );
}

#[test]
fn what_the_host_does_not_allow_is_taken_back() {
    in_namespace("frames::what_the_host_does_not_allow_is_taken_back", || {
        let mut config = NicServiceConfig::new(MAC);
        config.policy.mac_changes = false;
        let (_far, fake) = Far::new(config, 1500);
        let mut run = Run::start(&fake, &[]);
        run.wait_for("nic_ready");
        settle();
        ip("link set nvt0 address 02:15:5d:00:00:07");
        let failed = run.wait_for("failed");
        assert!(failed["what"].as_str().is_some_and(|what| what.contains("MAC")), "{failed}");
        until("the old address is back", || link().contains(&MAC.to_string()));
        // A section of the send buffer has no room for such frames, and pages cannot be named.
        ip("link set nvt0 mtu 9000");
        run.wait_for("failed");
        assert_eq!(run.wait_for("nic_ready")["mtu"], 1500);
        until("the old MTU is back", || link().contains("mtu 1500"));
        converse(64 << 10);
        run.signal(Signal::TERM);
        assert!(run.end().success());
    });
}

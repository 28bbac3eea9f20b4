//! What is refused, and what a dry run says; this needs no device.

use std::process::{Command, Output};

use crate::guest::{Guest, kinds};
use crate::setup::PROGRAM;

fn run(guest: &Guest, more: &[&str]) -> Output {
    let root = guest.root().to_str().expect("a plain path");
    let mut command = Command::new(PROGRAM);
    command.args(["run", "--host", "uio", "--sysfs-root", root]).args(more);
    command.output().expect("the program runs")
}

fn error(output: &Output) -> String {
    assert!(output.stdout.is_empty() && output.status.code() == Some(1), "{output:?}");
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(text.lines().count(), 1, "{text}");
    text
}

#[test]
fn without_a_nic_that_is_said_in_one_line() {
    let text = error(&run(&Guest::new(), &[]));
    assert!(text.contains("no synthetic NIC on this machine's VMBus"), "{text}");
    let text = error(&run(&Guest::without_hyperv(), &[]));
    assert!(text.contains("no synthetic NIC") && text.contains("no VMBus"), "{text}");
}

#[test]
fn a_nic_of_the_kernels_is_taken_only_by_name_and_only_if_nobody_needs_it() {
    let guest = kinds::worked_example();
    let text = error(&run(&guest, &[]));
    assert!(text.contains("--nic NIC") && text.contains("eth0, eth1"), "{text}");
    let text = error(&run(&guest, &["--nic", "nobody"]));
    assert!(text.contains("no such device: `nobody`"), "{text}");
    let index = std::fs::read_to_string(guest.path("sys/class/net/eth1/ifindex"));
    guest.route(index.expect("a number").trim().parse().expect("a number"), "default");
    let text = error(&run(&guest, &["--nic", "eth1"]));
    assert!(text.contains("eth1 carries the default route") && text.contains("--force"), "{text}");
    let text = error(&run(&guest, &["--nic", "eth0", "--nic", "eth1", "--tap", "x", "--force"]));
    assert!(text.contains("--tap x is one interface for 2 NICs"), "{text}");
}

/// Where the kernel has the driver for user space.
const UIO_FOLDER: &str = "sys/bus/vmbus/drivers/uio_hv_generic";

#[test]
fn a_dry_run_says_why_the_real_one_would_be_refused_and_ends_like_it() {
    let guest = kinds::worked_example();
    let index = std::fs::read_to_string(guest.path("sys/class/net/eth1/ifindex"));
    guest.route(index.expect("a number").trim().parse().expect("a number"), "default");
    let dry = |more: &[&str]| {
        let arguments = [&["--nic", "eth1"], more].concat();
        let (real, dry) =
            (run(&guest, &arguments), run(&guest, &[&arguments[..], &["--dry-run"]].concat()));
        assert_eq!((dry.status.code(), &dry.stderr), (real.status.code(), &real.stderr), "{dry:?}");
        let text = String::from_utf8(dry.stdout).expect("text");
        assert_eq!(text.lines().filter(|line| line.starts_with("echo ")).count(), 6, "{text}");
        let error = String::from_utf8(dry.stderr).expect("text");
        let why = error.trim_start_matches("netvsc: ");
        assert!(text.starts_with(&format!("# would be refused: {why}")), "{text}{error}");
        text
    };
    let text = dry(&[]);
    assert!(text.contains("eth1 carries the default route"), "{text}");
    assert!(text.contains("modprobe uio_hv_generic"), "what is refused next: {text}");
    let text = dry(&["--force"]);
    assert!(!text.contains("default route") && text.contains("modprobe"), "{text}");
    guest.folder(UIO_FOLDER);
    let forced = run(&guest, &["--nic", "eth1", "--force", "--dry-run"]);
    assert!(forced.status.success() && !forced.stdout.starts_with(b"#"), "{forced:?}");
}

#[test]
fn a_dry_run_shows_every_write_and_makes_none() {
    let guest = kinds::worked_example();
    guest.folder(UIO_FOLDER);
    // Twice the same NIC is one, by whatever name.
    let output = run(&guest, &["--nic", "eth1", "--nic", "enP6757s2", "--dry-run"]);
    assert!(output.status.success());
    let text = String::from_utf8(output.stdout).expect("text");
    let ends = [
        "driver_override",
        "driver/unbind",
        "drivers_probe",
        "# and at the end:",
        "driver_override",
        "driver/unbind",
        "drivers_probe",
    ];
    let lines: Vec<_> = text.lines().collect();
    assert_eq!(lines.len(), ends.len(), "{text}");
    assert!(lines.iter().zip(ends).all(|(line, end)| line.ends_with(end)), "{text}");
    assert!(lines[0].starts_with("echo 'uio_hv_generic'") && lines[4].starts_with("echo ''"));
    assert!(!guest.root().join("run/netvsc").exists());
}

//! `netvsc bind` on a tree: what it would write, and what it refuses. The binding itself is seen on a real VMBus (testbed/), with a device that is no NIC.

#[path = "../../netvsc-linux/tests/guest/mod.rs"]
#[expect(dead_code, reason = "shared with tests that need more of it")]
mod guest;
#[path = "../../netvsc-linux/tests/namespace/mod.rs"]
#[expect(dead_code, reason = "shared with tests that need more of it")]
mod namespace;
mod schema;

use std::fs::{Permissions, set_permissions};
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Output};

use guest::{Guest, kinds};
use namespace::{in_namespace, ip};
use netvsc_linux::uio::{Binding, Journal};
use vmbus::Guid;

/// The NIC of eth1.
const ETH1: &str = "7c1e5225-5ca6-7c1e-5225-5ca67c1e5225";
/// Where the kernel has the driver for user space.
const UIO_FOLDER: &str = "sys/bus/vmbus/drivers/uio_hv_generic";
/// What synthetic NICs are.
const CLASS: &str = "f8615163-df3e-46c5-913f-f2d2f965ed0e";

fn bind(guest: &Guest, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_netvsc"));
    command.arg("bind").args(arguments).arg("--sysfs-root").arg(guest.root());
    command.output().expect("the program runs")
}

fn error(output: &Output) -> String {
    assert!(output.stdout.is_empty() && !output.status.success());
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn a_dry_run_shows_the_three_writes_and_makes_none() {
    let guest = kinds::worked_example();
    guest.folder(UIO_FOLDER);
    let output = bind(&guest, &["--uio", "eth1", "--dry-run"]);
    let text = String::from_utf8(output.stdout).expect("text");
    let lines: Vec<_> = text.lines().collect();
    assert_eq!(lines.len(), 3, "{text}");
    assert!(lines[0].starts_with("echo 'uio_hv_generic' > "), "{text}");
    assert!(lines[1].ends_with("/driver/unbind") && lines[2].ends_with("/drivers_probe"), "{text}");
    assert!(!guest.root().join("run/netvsc").exists());
    let back = bind(&guest, &["--kernel", "eth1", "--dry-run"]);
    assert!(String::from_utf8_lossy(&back.stdout).ends_with(" is the kernel's already\n"));
    let bus = format!("sys/bus/vmbus/devices/{}", ETH1);
    guest.remove(&format!("{bus}/driver"));
    let back = bind(&guest, &["--kernel", ETH1, "--dry-run"]);
    assert!(String::from_utf8_lossy(&back.stdout).starts_with("echo '' > "));
    assert!(bind(&guest, &["--restore", "--dry-run"]).stdout.is_empty());
}

#[test]
fn json_says_of_each_device_what_is_written_and_what_it_has() {
    let guest = kinds::worked_example();
    guest.folder(UIO_FOLDER);
    let said = |arguments: &[&str]| {
        let output = bind(&guest, arguments);
        assert!(output.status.success(), "{output:?}");
        schema::valid(&String::from_utf8(output.stdout).expect("text"), "bind-1.json")
    };
    let value = said(&["--uio", "eth1", "--dry-run", "--json"]);
    let device = &value["devices"][0];
    assert_eq!((&value["dry_run"], &device["done"]), (&true.into(), &false.into()));
    assert_eq!((&device["device"], &device["driver"]), (&ETH1.into(), &"hv_netvsc".into()));
    let changes = device["changes"].as_array().expect("a list");
    assert_eq!((changes.len(), &changes[0]["value"]), (3, &"uio_hv_generic".into()));
    let value = said(&["--kernel", "eth1", "--json"]);
    assert_eq!(value["devices"][0]["changes"], serde_json::json!([]));
    let value = said(&["--restore", "--json"]);
    assert_eq!(value["devices"], serde_json::json!([]));
    // One that was taken, and cannot be given back: no kernel moves it to another driver here.
    let journal = guest.path("run/netvsc/bind");
    std::fs::create_dir_all(&journal).expect("a folder");
    let record = format!("device {ETH1}\ndriver other\noverride \n");
    std::fs::write(journal.join(ETH1), record).expect("a record");
    let output = bind(&guest, &["--restore", "--json"]);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let value = schema::valid(&String::from_utf8_lossy(&output.stdout), "bind-1.json");
    assert!(value["devices"][0]["error"].is_string(), "{value}");
}

#[test]
fn what_is_no_nic_and_drivers_that_are_missing_are_told() {
    let guest = kinds::worked_example();
    // A VF means the NIC that it belongs to, as for every verb.
    let of = |name| bind(&guest, &["--uio", name, "--dry-run"]).stdout;
    assert_eq!(of("enP6757s2"), of("eth1"));
    let text = error(&bind(&guest, &["--uio", "nobody"]));
    assert!(text.contains("no such device: `nobody`"), "{text}");
    let text = error(&bind(&guest, &["--uio", "eth1"]));
    assert!(text.contains("`modprobe uio_hv_generic`"), "{text}");
    for arguments in
        [&["eth1"][..], &["--uio"], &["--uio", "--kernel", "eth1"], &["--restore", "eth1"]]
    {
        assert_eq!(bind(&guest, arguments).status.code(), Some(2), "{arguments:?}");
    }
}

#[test]
fn a_nic_that_carries_the_default_route_is_spared_without_force() {
    let guest = kinds::worked_example();
    let index = std::fs::read_to_string(guest.root().join("sys/class/net/eth1/ifindex"));
    guest.route(index.expect("a number").trim().parse().expect("a number"), "default");
    let text = error(&bind(&guest, &["--uio", "eth1"]));
    assert!(text.contains("eth1 carries the default route") && text.contains("--force"), "{text}");
    // A dry run shows the writes all the same, says so, and ends as that did.
    let dry = bind(&guest, &["--uio", "eth1", "--dry-run"]);
    assert_eq!((dry.status.code(), String::from_utf8_lossy(&dry.stderr)), (Some(1), text.into()));
    let text = String::from_utf8(dry.stdout).expect("text");
    assert!(text.starts_with("# would be refused: eth1 carries the default route"), "{text}");
    assert_eq!(text.lines().filter(|line| line.starts_with("echo ")).count(), 3, "{text}");
    let dry = bind(&guest, &["--uio", "eth1", "--dry-run", "--json"]);
    let value = schema::valid(&String::from_utf8_lossy(&dry.stdout), "bind-1.json");
    let why = value["devices"][0]["error"].as_str().expect("why");
    assert!(dry.status.code() == Some(1) && why.contains("the default route"), "{value}");
    // Its turn comes then, and the other one's anyway.
    for arguments in [&["--uio", "eth1", "--force"][..], &["--uio", "eth0"]] {
        assert!(error(&bind(&guest, arguments)).contains("modprobe"), "{arguments:?}");
    }
}

// Only of the running system it is known that this is where the session goes: the tree stands in the place of its /sys.
#[test]
fn a_nic_that_carries_the_session_is_spared_without_force() {
    const TEST: &str = "a_nic_that_carries_the_session_is_spared_without_force";
    in_namespace(TEST, || {
        let guest = kinds::worked_example();
        let attribute = |name: &str| {
            let path = guest.path(&format!("sys/class/net/eth1/{name}"));
            std::fs::read_to_string(path).expect("it is there").trim().to_owned()
        };
        let (index, mac) = (attribute("ifindex"), attribute("address"));
        ip(&format!("link add eth1 index {index} address {mac} type veth peer name far"));
        ip("addr add 192.0.2.4/24 dev eth1");
        ip("link set eth1 up");
        let sys = guest.path("sys");
        let session = |ends: Option<&str>, arguments: &[&str]| {
            let mut command = Command::new("unshare");
            command.args(["--mount", "--", "sh", "-c", "mount --bind \"$0\" /sys && exec \"$@\""]);
            command.arg(&sys).arg(env!("CARGO_BIN_EXE_netvsc")).args(arguments);
            // Without one of its own the program looks at those above it.
            command.env("SSH_CONNECTION", ends.unwrap_or("198.51.100.9 50022 198.51.100.4 22"));
            error(&command.output().expect("unshare of util-linux"))
        };
        let (ours, bind) = (Some("192.0.2.9 50022 192.0.2.4 22"), &["bind", "--uio", "eth1"]);
        let run = &["run", "--host", "uio", "--nic", "eth1"];
        let carried = "eth1 carries the session that this runs in";
        for arguments in [&bind[..], run] {
            let text = session(ours, arguments);
            assert!(text.contains(carried) && text.contains("--force"), "{text}");
        }
        // The address alone may have moved: the way to the other end is enough.
        let text = session(Some("192.0.2.9 50022 198.51.100.4 22"), bind);
        assert!(text.contains(carried), "{text}");
        // Then it is the driver that is missing.
        for (ends, force) in [(None, &[][..]), (ours, &["--force"])] {
            let text = session(ends, &[&bind[..], force].concat());
            assert!(text.contains("modprobe uio_hv_generic"), "{text}");
        }
    });
}

/// A NIC that user space has, and that was called eth7 before; `kept` is the end of its record.
fn taken(kept: &str) -> Guest {
    let mut guest = Guest::new();
    guest.device(ETH1, CLASS, Some("uio_hv_generic"), 1);
    guest.folder("sys/bus/vmbus/drivers/hv_netvsc");
    record(&guest, ETH1, "eth7", "00:15:5d:00:00:07", kept);
    guest
}

/// Writes down that a NIC was taken from the kernel's driver.
fn record(guest: &Guest, device: &str, name: &str, mac: &str, kept: &str) {
    let journal = guest.path("run/netvsc/bind");
    std::fs::create_dir_all(&journal).expect("a folder");
    let record = format!(
        "device {device}\ndriver hv_netvsc\noverride \ninterface {name}\nmac {mac}\nkept {kept}\n"
    );
    std::fs::write(journal.join(device), record).expect("a record");
}

/// Drives a NIC, as a run does.
fn drive(guest: &Guest, device: &str) -> Binding {
    let journal = Journal::new(guest.path("run/netvsc/bind"));
    let device = Guid::try_parse(device).expect("a GUID");
    Binding::adopt(guest.root(), device, journal).expect("nobody drives it")
}

/// The override of the NIC of eth1.
fn driver_override(guest: &Guest) -> String {
    let path = guest.path(&format!("sys/bus/vmbus/devices/{ETH1}/driver_override"));
    std::fs::read_to_string(path).expect("an attribute")
}

#[test]
fn a_nic_is_not_taken_from_under_a_run() {
    // Whether that run took it itself or found it there.
    for kept in ["no", "yes"] {
        let guest = taken(kept);
        guest.write(&format!("sys/bus/vmbus/devices/{ETH1}/driver_override"), "uio_hv_generic");
        let run = drive(&guest, ETH1);
        for arguments in [&["--kernel", "eth7"][..], &["--kernel", ETH1], &["--restore"]] {
            let text = error(&bind(&guest, arguments));
            let told = format!("{ETH1} is driven by another run: stop that one first");
            assert!(text.contains(&told), "{arguments:?}: {text}");
        }
        assert_eq!(driver_override(&guest), "uio_hv_generic\n");
        // The run is killed. No kernel moves the NIC here; that it is tried is enough.
        std::mem::forget(run);
        std::fs::remove_file(guest.path(&format!("run/netvsc/bind/{ETH1}.lock"))).expect("a lock");
        let text = error(&bind(&guest, &["--kernel", "eth7"]));
        assert!(!text.contains("driven"), "{text}");
        // A plain file keeps what the write does not reach.
        assert!(driver_override(&guest).starts_with('\n'));
    }
}

/// What the unit does after a run of `nic`, however that ended.
fn after_a_run(guest: &Guest, nic: &str) -> Output {
    const UNIT: &str = include_str!("../assets/systemd/netvsc-run@.service");
    let mut lines = UNIT.lines().filter_map(|line| line.strip_prefix("ExecStopPost=-"));
    let line = lines.next().expect("it does something");
    assert_eq!(lines.next(), None);
    let words: Vec<_> = line.split(' ').map(|word| word.replace("%i", nic)).collect();
    let words: Vec<_> = words.iter().map(String::as_str).collect();
    let ["/usr/bin/netvsc", "bind", arguments @ ..] = &words[..] else { panic!("{line}") };
    bind(guest, arguments)
}

#[test]
fn after_a_run_only_what_it_left_is_given_back_and_nothing_else_is_said() {
    let nothing = |guest: &Guest, nic: &str| {
        let output = after_a_run(guest, nic);
        let silent = output.stdout.is_empty() && output.stderr.is_empty();
        assert!(silent && output.status.success(), "{nic}: {output:?}");
    };
    // A NIC that the kernel has, one that it never heard of, and no journal.
    let guest = kinds::worked_example();
    nothing(&guest, "eth1");
    nothing(&guest, "eth7");
    assert!(!guest.path("run/netvsc").exists());
    // One that was left with user space on purpose, with a run and without; and one that somebody drives who took it himself.
    for kept in ["yes", "no"] {
        let guest = taken(kept);
        guest.write(&format!("sys/bus/vmbus/devices/{ETH1}/driver_override"), "uio_hv_generic");
        let run = drive(&guest, ETH1);
        for name in ["eth7", ETH1, "eth8"] {
            nothing(&guest, name);
        }
        let value = bind(&guest, &["--recover", "--json"]);
        let value = schema::valid(&String::from_utf8_lossy(&value.stdout), "bind-1.json");
        assert_eq!(value["devices"], serde_json::json!([]));
        std::mem::forget(run);
        guest.remove(&format!("run/netvsc/bind/{ETH1}.lock"));
        if kept == "yes" {
            nothing(&guest, "eth7");
        }
        assert_eq!(driver_override(&guest), "uio_hv_generic\n");
    }
}

#[test]
fn what_a_killed_run_left_is_given_back_by_name_or_with_all_others() {
    for arguments in [&["--recover", "eth7"][..], &["--recover", ETH1], &["--recover"]] {
        let guest = taken("no");
        let dry = bind(&guest, &[arguments, &["--dry-run"]].concat());
        assert!(String::from_utf8_lossy(&dry.stdout).starts_with("echo '' > "), "{dry:?}");
        // No kernel moves it here; that it is tried is enough.
        let text = error(&bind(&guest, arguments));
        assert!(text.contains(ETH1) && driver_override(&guest).starts_with('\n'), "{text}");
        // It has its driver again, or the host has taken it away.
        let device = format!("sys/bus/vmbus/devices/{ETH1}");
        guest.write(&format!("{device}/driver_override"), "(null)");
        guest.remove(&format!("{device}/driver"));
        guest.symlink(&format!("{device}/driver"), "sys/bus/vmbus/drivers/hv_netvsc");
        let said = |output: Output| {
            assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
            String::from_utf8(output.stdout).expect("text")
        };
        assert_eq!(said(bind(&guest, arguments)), format!("{ETH1} is the kernel's already\n"));
        assert_eq!(said(bind(&guest, arguments)), "");
        record(&guest, ETH1, "eth7", "00:15:5d:00:00:07", "no");
        guest.remove(&device);
        let gone = format!("{ETH1} is gone: nothing is to be given back\n");
        assert_eq!(said(bind(&guest, arguments)), gone);
        assert!(!guest.path(&format!("run/netvsc/bind/{ETH1}")).exists());
    }
}

// The kernel gives a name that is free to the next NIC that comes.
#[test]
fn a_name_that_two_nics_have_or_had_is_refused_and_both_are_named() {
    const OTHER: &str = "f8615163-0000-1000-2000-00155d000008";
    const THIRD: &str = "f8615163-0000-1000-2000-00155d000009";
    let mut guest = taken("no");
    guest.nic(OTHER, "eth7", "00:15:5d:00:00:08");
    let root = guest.root().to_str().expect("a plain path").to_owned();
    let run = |nic: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_netvsc"));
        command.args(["run", "--host", "uio", "--dry-run", "--nic", nic, "--sysfs-root", &root]);
        command.output().expect("the program runs")
    };
    let told = |text: &str, nics: [&str; 2]| {
        assert!(text.contains("`eth7`") && text.contains("give the GUID of one"), "{text}");
        assert!(nics.iter().all(|nic| text.contains(nic)), "{text}");
    };
    let before = driver_override(&guest);
    for verb in ["--uio", "--kernel", "--recover"] {
        told(&error(&bind(&guest, &[verb, "eth7"])), [ETH1, OTHER]);
    }
    told(&error(&after_a_run(&guest, "eth7")), [ETH1, OTHER]);
    told(&error(&run("eth7")), [ETH1, OTHER]);
    assert_eq!(driver_override(&guest), before);
    // Its MAC and its GUID still mean the one that was taken, and so they do for the other one.
    for name in ["00:15:5d:00:00:07", ETH1, &format!("{{{}}}", ETH1.to_uppercase())] {
        let output = run(name);
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(text.contains(&format!("{ETH1} is user space's already")), "{name}: {output:?}");
    }
    let output = bind(&guest, &["--kernel", OTHER]);
    let text = String::from_utf8_lossy(&output.stdout);
    assert_eq!(text, format!("{OTHER} is the kernel's already\n"));
    // One that was left with user space on purpose is no matter of a run's end, whoever has the name now.
    record(&guest, ETH1, "eth7", "00:15:5d:00:00:07", "yes");
    record(&guest, THIRD, "eth8", "00:15:5d:00:00:09", "no");
    let output = after_a_run(&guest, "eth7");
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
    record(&guest, ETH1, "eth7", "00:15:5d:00:00:07", "no");
    // Two that had it, one after the other.
    guest.remove(&format!("sys/bus/vmbus/devices/{OTHER}"));
    guest.remove("sys/class/net/eth7");
    guest.device(THIRD, CLASS, Some("uio_hv_generic"), 1);
    record(&guest, THIRD, "eth7", "00:15:5d:00:00:09", "yes");
    told(&error(&bind(&guest, &["--kernel", "eth7"])), [ETH1, THIRD]);
    guest.remove(&format!("sys/bus/vmbus/devices/{THIRD}"));
    let dry = bind(&guest, &["--kernel", "eth7", "--dry-run"]);
    assert!(String::from_utf8_lossy(&dry.stdout).contains(ETH1), "{dry:?}");
}

/// The program, run by somebody who may read no more than what the modes of files say; or why it cannot be.
fn as_anybody() -> Result<Command, String> {
    let program = env!("CARGO_BIN_EXE_netvsc");
    if !rustix::process::geteuid().is_root() {
        return Ok(Command::new(program));
    }
    // Root without the capabilities to pass over modes.
    let without = || {
        let mut command = Command::new("setpriv");
        command.args(["--bounding-set", "-dac_override,-dac_read_search", "--"]);
        command
    };
    match without().arg("true").output() {
        Ok(output) if output.status.success() => {
            let mut command = without();
            command.arg(program);
            Ok(command)
        }
        Ok(output) => Err(String::from_utf8_lossy(&output.stderr).trim().to_owned()),
        Err(error) => Err(format!("`setpriv` cannot be run: {error}")),
    }
}

#[test]
fn a_journal_that_may_not_be_read_is_told_only_where_it_matters() {
    let name = "a_journal_that_may_not_be_read_is_told_only_where_it_matters";
    let anybody = |guest: &Guest, arguments: &[&str]| {
        let command = as_anybody().map(|mut command| {
            command.args(arguments).arg("--sysfs-root").arg(guest.root());
            command.output().expect("the program runs")
        });
        command.map_err(|reason| namespace::skipped(name, &reason)).ok()
    };
    let locked = |guest: &Guest| {
        guest.folder("run/netvsc/bind");
        let folder = guest.path("run/netvsc/bind");
        set_permissions(&folder, Permissions::from_mode(0o000)).expect("ours");
        folder
    };
    let run = ["run", "--host", "uio", "--dry-run", "--nic"];
    let bind = ["bind", "--kernel", "--dry-run"];
    // The kernel has every NIC.
    let guest = kinds::worked_example();
    guest.folder(UIO_FOLDER);
    let folder = locked(&guest);
    for verb in [&run[..], &bind] {
        let Some(output) = anybody(&guest, &[verb, &["nobody"]].concat()) else { return };
        let text = error(&output);
        assert!(text.contains("no such device: `nobody`"), "{text}");
        let output = anybody(&guest, &[verb, &["eth1"]].concat()).expect("as before");
        assert!(output.status.success(), "{output:?}");
    }
    set_permissions(&folder, Permissions::from_mode(0o700)).expect("ours");
    // One is user space's, and may have been called anything.
    let mut guest = taken("no");
    guest.nic("f8615163-0000-1000-2000-00155d000008", "eth0", "00:15:5d:00:00:08");
    guest.folder(UIO_FOLDER);
    let folder = locked(&guest);
    for verb in [&run[..], &bind] {
        let of = |name| anybody(&guest, &[verb, &[name]].concat()).expect("as before");
        let text = error(&of("eth7"));
        let place = folder.join(ETH1).display().to_string();
        assert!(text.contains("`eth7`") && text.contains(&place), "{text}");
        assert!(text.contains("as root") && text.contains("GUID"), "{text}");
        assert!(of("eth0").status.success());
    }
    let output = anybody(&guest, &[&run[..], &[ETH1]].concat()).expect("as before");
    assert!(output.status.success(), "{output:?}");
    // What it is to get back stands there.
    let text = error(&anybody(&guest, &[&bind[..], &[ETH1]].concat()).expect("as before"));
    assert!(text.contains("Permission denied"), "{text}");
    set_permissions(&folder, Permissions::from_mode(0o700)).expect("ours");
}

// Without the kernel's driver a NIC has no interface: what it was called stands in the journal.
#[test]
fn a_nic_that_was_taken_is_still_known_by_its_name_and_mac() {
    let guest = taken("no");
    for name in ["eth7", "00:15:5D:00:00:07", ETH1] {
        let back = bind(&guest, &["--kernel", name, "--dry-run"]);
        let text = String::from_utf8_lossy(&back.stdout);
        assert!(text.starts_with("echo '' > ") && text.lines().count() == 3, "{name}: {back:?}");
        let root = guest.root().to_str().expect("a plain path");
        let run = Command::new(env!("CARGO_BIN_EXE_netvsc"))
            .args(["run", "--host", "uio", "--dry-run", "--nic", name, "--sysfs-root", root])
            .output()
            .expect("the program runs");
        let text = String::from_utf8_lossy(&run.stdout);
        assert!(text.contains("is user space's already"), "{name}: {run:?}");
        // What a killed run had taken goes back at the end of the next one.
        let (_, end) = text.split_once("# and at the end:\n").expect("what is written then");
        assert_eq!(end, String::from_utf8_lossy(&back.stdout), "{name}");
    }
    let kept = taken("yes");
    let root = kept.root().to_str().expect("a plain path");
    let run = Command::new(env!("CARGO_BIN_EXE_netvsc"))
        .args(["run", "--host", "uio", "--dry-run", "--sysfs-root", root])
        .output()
        .expect("the program runs");
    let text = String::from_utf8_lossy(&run.stdout);
    assert!(text.ends_with(" is user space's already\n"), "it was left there on purpose: {text}");
    assert!(error(&bind(&guest, &["--kernel", "eth8"])).contains("no such device: `eth8`"));
}

//! `netvsc udev` as its users start it, and as udev does: with its real rules, on a guest that stands at /sys.

#[path = "../../netvsc-linux/tests/guest/mod.rs"]
#[expect(dead_code, reason = "shared with tests that need more of it")]
mod guest;
mod schema;

use std::fs;
use std::io::{Read, Write};
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use guest::{Guest, kinds};

const RULES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/assets/udev/60-netvsc.rules");

/// What such rules say that ask for the slave flag and for drivers by name.
const CLASSIC: &str = r#"SUBSYSTEM=="net", ACTION!="remove", DRIVERS=="mlx4_core|mlx5_core|mana", ATTR{flags}=="0x?[89abcdefABCDEF]??", ENV{AZURE_UNMANAGED_SRIOV}="1"
"#;

fn netvsc(guest: &Guest, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_netvsc"))
        .arg("udev")
        .args(arguments)
        .arg("--sysfs-root")
        .arg(guest.root())
        .env_remove("DEVPATH")
        .output()
        .expect("the program runs")
}

fn said(guest: &Guest, arguments: &[&str]) -> String {
    let output = netvsc(guest, arguments);
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
    String::from_utf8(output.stdout).expect("text")
}

#[test]
fn a_device_is_named_by_hand_or_by_the_environment() {
    let guest = kinds::worked_example();
    let text = said(&guest, &["enP37498s1"]);
    assert!(text.starts_with("NETVSC_ROLE=vf\nNETVSC_GUID=d3cbd5f3-"), "{text}");
    assert!(text.ends_with("NM_UNMANAGED=1\n"));
    let path = device(&guest, "enP37498s1");
    assert_eq!(said(&guest, &[&path]), text);
    let output = Command::new(env!("CARGO_BIN_EXE_netvsc"))
        .args(["udev", "--sysfs-root"])
        .arg(guest.root())
        .env("DEVPATH", &path)
        .output()
        .expect("the program runs");
    assert_eq!(String::from_utf8_lossy(&output.stdout), text);
    let json = schema::valid(&said(&guest, &["eth0", "--json"]), "udev-1.json");
    assert_eq!(
        (&json["schema_version"], &json["properties"]["NETVSC_SERIAL"]),
        (&1.into(), &"1".into())
    );
}

#[test]
fn what_is_none_of_its_business_gets_silence_and_success() {
    let guest = kinds::worked_example();
    for device in ["eth2", "lo", "eth9", "/devices/nowhere/net/eth0", "$(reboot)", ""] {
        assert_eq!(said(&guest, &[device]), "", "{device}");
        let json = schema::valid(&said(&guest, &[device, "--json"]), "udev-1.json");
        assert_eq!(json["properties"], serde_json::json!({}), "{device}");
    }
    assert_eq!(said(&guest, &[]), "", "without DEVPATH");
}

#[test]
fn the_vfs_of_a_late_nic_are_looked_at_again() {
    let guest = kinds::worked_example();
    assert_eq!(said(&guest, &["eth0", "--retrigger-peers"]), "");
    let event =
        |name: &str| fs::read_to_string(guest.path(&format!("sys/class/net/{name}/uevent")));
    assert!(event("enP37498s1").expect("a file").starts_with("change"));
    for other in ["enP6757s2", "eth0", "eth2"] {
        assert!(!event(other).expect("a file").starts_with("change"), "{other}");
    }
}

/// The device's path as udev knows it.
fn device(guest: &Guest, name: &str) -> String {
    let path = guest.path(&format!("sys/class/net/{name}")).canonicalize().expect("an interface");
    let root = guest.root().canonicalize().expect("a root").join("sys");
    format!("/{}", path.strip_prefix(root).expect("below the root").display())
}

/// Why udev cannot be tried here.
fn obstacle() -> Option<String> {
    let script = "mount -t tmpfs none /mnt && udevadm --version";
    match Command::new("unshare").args(["--mount", "--", "sh", "-c", script]).output() {
        Ok(output) if output.status.success() => None,
        Ok(output) => Some(String::from_utf8_lossy(&output.stderr).trim().to_owned()),
        Err(error) => Some(format!("`unshare` cannot be run: {error}")),
    }
}

fn skipped(test: &str) -> bool {
    let Some(reason) = obstacle() else { return false };
    assert!(std::env::var_os("NETVSC_NO_SKIP").is_none(), "{test} must run here, but: {reason}");
    eprintln!("skipped: {test}: {reason}");
    true
}

/// Adds what a device needs for libudev to take it for one.
fn complete(guest: &Guest) {
    let root = guest.root().canonicalize().expect("a root");
    for entry in fs::read_dir(guest.path("sys/class/net")).expect("interfaces") {
        let net = entry.expect("an entry").path().canonicalize().expect("a device");
        let path = |path: &Path| path.strip_prefix(&root).expect("below").display().to_string();
        guest.symlink(&format!("{}/subsystem", path(&net)), "sys/class/net");
        for above in net.ancestors().filter(|above| above.join("subsystem").is_symlink()) {
            if !above.join("uevent").exists() {
                fs::write(above.join("uevent"), "").expect("a file");
            }
        }
    }
}

/// What `udevadm test` makes of a device: its properties after these rules.
fn udevadm(guest: &Guest, name: &str, action: &str, rules: &str) -> String {
    let folder = tempfile::tempdir().expect("the temporary folder is writable");
    let lib = folder.path();
    fs::create_dir(lib.join("rules.d")).expect("a folder");
    fs::write(lib.join("rules.d/60-netvsc.rules"), rules).expect("a file");
    fs::copy(env!("CARGO_BIN_EXE_netvsc"), lib.join("netvsc")).expect("a copy");
    // udev's own folder holds our program and these rules only, the machine's rules and database are out of sight.
    let script = "set -e; mount --bind \"$1\" /usr/lib/udev; mkdir -p /run/udev
        for d in /etc/udev /run/udev; do [ ! -d $d ] || mount -t tmpfs none $d; done
        mount --bind \"$2/sys\" /sys; exec udevadm test --action \"$4\" \"/sys$3\"";
    let output = Command::new("unshare")
        .args(["--mount", "--propagation", "private", "--", "sh", "-c", script, "sh"])
        .args([lib, guest.root()])
        .args([&device(guest, name), action])
        // Ours is no sysfs by its magic number.
        .env("SYSTEMD_DEVICE_VERIFY_SYSFS", "0")
        .env("SYSTEMD_LOG_LEVEL", "info")
        .output()
        .expect("unshare worked a moment ago");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{text}\n{}", String::from_utf8_lossy(&output.stderr));
    text
}

#[test]
fn udev_learns_what_the_slave_flag_does_not_tell_yet() {
    if skipped("udev_learns_what_the_slave_flag_does_not_tell_yet") {
        return;
    }
    let rules = fs::read_to_string(RULES).expect("the rules");
    let mut guest = Guest::new();
    let (guid, mac) = ("7c1e5225-55d2-7c1e-5225-55d27c1e5225", "7c:1e:52:25:55:d2");
    let nic = guest.nic(guid, "eth0", mac);
    let function = guest.function("d3cbd5f3-927a-45ec-985d-2ddb43e90b83", "1", &guest::MLX5);
    let port = guest.port(&function, "eth1", mac, 0);
    complete(&guest);
    // HISTORY 62: the event comes, the flag does not.
    assert!(!udevadm(&guest, "eth1", "add", CLASSIC).contains("AZURE_UNMANAGED_SRIOV"));
    for action in ["add", "change", "move"] {
        let text = udevadm(&guest, "eth1", action, &rules);
        for property in [
            "NETVSC_ROLE=vf",
            "NETVSC_SERIAL=1",
            &format!("NETVSC_PEER_GUID={guid}"),
            "AZURE_UNMANAGED_SRIOV=1",
            "ID_NET_MANAGED_BY=unmanaged",
            "NM_UNMANAGED=1",
        ] {
            assert!(text.contains(property), "{property} is missing on {action} in:\n{text}");
        }
    }
    let text = udevadm(&guest, "eth0", "add", &rules);
    assert!(text.contains("NETVSC_ROLE=synthetic") && !text.contains("UNMANAGED"), "{text}");
    assert!(text.contains("run: '/usr/lib/udev/netvsc udev --retrigger-peers'"), "{text}");
    assert!(!udevadm(&guest, "lo", "add", &rules).contains("NETVSC"));
    // Once the kernel has joined them, both rules say the same.
    guest.enslave(&nic.net, "eth0", &port);
    assert!(udevadm(&guest, "eth1", "change", CLASSIC).contains("AZURE_UNMANAGED_SRIOV=1"));
    assert!(udevadm(&guest, "eth1", "change", &rules).contains("AZURE_UNMANAGED_SRIOV=1"));
}

/// A pipe that is full: whoever writes waits.
fn full_pipe() -> (std::io::PipeReader, std::io::PipeWriter) {
    let (reader, mut writer) = std::io::pipe().expect("a pipe");
    rustix::io::ioctl_fionbio(&writer, true).expect("a pipe that does not wait");
    while writer.write(&[0; 4096]).is_ok() {}
    rustix::io::ioctl_fionbio(&writer, false).expect("a pipe that waits");
    (reader, writer)
}

#[test]
fn udev_is_not_kept_waiting_whatever_hangs() {
    if skipped("udev_is_not_kept_waiting_whatever_hangs") {
        return;
    }
    let mut guest = Guest::new();
    kinds::one(&mut guest);
    let script = "mount --bind \"$1/sys\" /sys; exec \"$2\" udev";
    let ask = |output: Stdio| {
        let mut child = Command::new("unshare")
            .args(["--mount", "--propagation", "private", "--", "sh", "-c", script, "sh"])
            .arg(guest.root())
            .arg(env!("CARGO_BIN_EXE_netvsc"))
            .env("DEVPATH", device(&guest, "eth0"))
            .stdout(output)
            .spawn()
            .expect("unshare worked a moment ago");
        let end = Instant::now() + Duration::from_secs(30);
        loop {
            if let Some(status) = child.try_wait().expect("our own child") {
                return (child, status);
            }
            if Instant::now() > end {
                let _ = child.kill();
                panic!("it waits for ever");
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    };
    // It has something to say, and says it where somebody listens.
    let (child, status) = ask(Stdio::piped());
    let mut text = String::new();
    child.stdout.expect("a pipe").read_to_string(&mut text).expect("text");
    assert!(status.success() && text.starts_with("NETVSC_ROLE=synthetic\n"), "{text}");
    let (reader, writer) = full_pipe();
    let (_, status) = ask(writer.into());
    assert!(status.success(), "a device must not fail for it: {status}");
    drop(reader);
}

#[test]
fn udev_manages_a_vf_that_is_all_there_is() {
    if skipped("udev_manages_a_vf_that_is_all_there_is") {
        return;
    }
    let rules = fs::read_to_string(RULES).expect("the rules");
    let guest = kinds::mana_only();
    complete(&guest);
    let text = udevadm(&guest, "enP30832s1", "add", &rules);
    assert!(text.contains("NETVSC_ROLE=standalone") && !text.contains("UNMANAGED"), "{text}");
}

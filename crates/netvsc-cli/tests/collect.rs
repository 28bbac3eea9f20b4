//! `netvsc collect`, and what the other verbs say with `--from` of what it made.

#[path = "../../netvsc-linux/tests/guest/mod.rs"]
#[expect(dead_code, reason = "shared with tests that need more of it")]
mod guest;
#[path = "../../netvsc-linux/tests/namespace/mod.rs"]
#[expect(dead_code, reason = "shared with tests that need more of it")]
mod namespace;
mod schema;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use guest::complaints::COMPLAINTS;
use guest::{Guest, kinds};
use tar::{Builder, EntryType, Header};
use tempfile::TempDir;

const PROGRAM: &str = env!("CARGO_BIN_EXE_netvsc");

/// Root needs no users of its own, which not every machine lets it have.
fn as_root() -> &'static [&'static str] {
    if rustix::process::geteuid().is_root() { &[] } else { &["--user", "--map-root-user"] }
}

fn netvsc(arguments: &[&str], source: &str, place: &Path) -> Output {
    let mut command = Command::new(PROGRAM);
    command.args(arguments).arg(source).arg(place).env_remove("DEVPATH");
    // Archives are unpacked a thousand small files at a time: in memory, where the machine has such a place.
    if Path::new("/dev/shm").is_dir() {
        command.env("TMPDIR", "/dev/shm");
    }
    command.output().expect("the program runs")
}

fn folder() -> TempDir {
    let folder = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir());
    folder.expect("the temporary folder is writable")
}

/// Collects a guest into a file of this folder.
fn collect(guest: &Guest, folder: &Path) -> PathBuf {
    let archive = folder.join("guest.tar");
    let _ = fs::remove_file(&archive);
    let output = archive.to_str().expect("text");
    let output = netvsc(&["collect", "-o", output], "--sysfs-root", guest.root());
    assert!(output.status.success() && output.stdout.is_empty(), "{output:?}");
    archive
}

/// What a verb says, complains of and ends with.
fn said(output: &Output) -> (Option<i32>, String, String) {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code(), text(&output.stdout), text(&output.stderr))
}

fn same(guest: &Guest, archive: &Path) {
    let mut names: Vec<String> = fs::read_dir(guest.path("sys/class/net"))
        .expect("interfaces")
        .map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    let mut verbs: Vec<Vec<&str>> = vec![
        vec!["list"],
        vec!["list", "--json"],
        vec!["show", "--json"],
        vec!["show"],
        vec!["lsvmbus", "-vv"],
        vec!["lsvmbus", "--json"],
        vec!["check", "--json"],
        vec!["watch", "--all", "--json"],
        vec!["resolve", "--serial", "1"],
    ];
    for name in &names {
        verbs.push(vec!["udev", name]);
        verbs.push(vec!["explain", name]);
    }
    for verb in verbs {
        let direct = said(&netvsc(&verb, "--sysfs-root", guest.root()));
        let replayed = said(&netvsc(&verb, "--from", archive));
        assert_eq!(direct, replayed, "{verb:?} of {}", guest.root().display());
    }
}

#[test]
fn every_kind_of_guest_says_the_same_from_its_archive() {
    let folder = folder();
    for guest in [
        kinds::worked_example(),
        kinds::azure_mlx4(),
        kinds::azure_mlx5(),
        kinds::azure_mana(),
        kinds::mana_only(),
        kinds::on_prem(),
        kinds::emulated_beside(),
        kinds::synthetic_only(),
        kinds::mid_servicing(),
        kinds::after_hibernation(),
        kinds::driver_missing(),
        kinds::renamed_vf(),
        kinds::vf_in_namespace(),
        kinds::bonded(),
        kinds::duplicate_slot(),
        kinds::confidential(),
        kinds::uio_bound(),
        Guest::without_hyperv(),
    ] {
        same(&guest, &collect(&guest, folder.path()));
    }
}

#[test]
fn every_complaint_is_found_in_its_archive_as_in_the_guest() {
    let folder = folder();
    for complaint in COMPLAINTS {
        let guest = (complaint.build)();
        let archive = collect(&guest, folder.path());
        for verb in [["check", "--json"], ["list", "--json"]] {
            let direct = said(&netvsc(&verb, "--sysfs-root", guest.root()));
            let replayed = said(&netvsc(&verb, "--from", &archive));
            assert_eq!(direct, replayed, "{verb:?} of complaint {}", complaint.number);
        }
    }
}

#[test]
fn a_guest_of_which_not_all_can_be_read_says_the_same_as_well() {
    let guest = kinds::worked_example();
    guest.write("sys/class/net/eth0/mtu", "huge");
    guest.write("sys/class/net/eth1/operstate", &"x".repeat(5000));
    guest.write("sys/bus/pci/slots/x/address", "\u{1b}[31m");
    guest.remove("dev/kmsg");
    guest.folder("dev/kmsg");
    guest.symlink("sys/class/net/loop", "sys/class/net/loop");
    let folder = folder();
    same(&guest, &collect(&guest, folder.path()));
}

#[test]
fn the_same_guest_gives_the_same_bytes_also_from_its_archive() {
    let guest = kinds::worked_example();
    let folder = folder();
    let first = fs::read(collect(&guest, folder.path())).expect("a file");
    let archive = collect(&guest, folder.path());
    assert!(fs::read(&archive).expect("a file") == first);
    let again = netvsc(&["collect", "-o", "-"], "--from", &archive);
    assert!(again.status.success() && again.stdout == first, "{}", said(&again).2);
}

#[test]
fn an_archive_may_come_by_a_pipe() {
    let folder = folder();
    let archive = fs::File::open(collect(&kinds::azure_mlx4(), folder.path())).expect("a file");
    let output = Command::new(PROGRAM)
        .args(["list", "-br", "--from", "-"])
        .stdin(Stdio::from(archive))
        .output()
        .expect("the program runs");
    assert!(said(&output).1.starts_with("eth0  accelerated"), "{output:?}");
}

#[test]
fn passwords_stay_where_they_are() {
    let guest = kinds::worked_example();
    guest.write(
        "etc/NetworkManager/system-connections/wifi.nmconnection",
        "[wifi-security]\nkey-mgmt=wpa-psk\npsk=hunter2",
    );
    guest.write(
        "etc/netplan/50-wifi.yaml",
        "network:\n  wifis:\n    w0:\n      access-points:\n        x:\n          password: hunter2",
    );
    let folder = folder();
    let bytes = fs::read(collect(&guest, folder.path())).expect("a file");
    let text = String::from_utf8_lossy(&bytes);
    assert!(!text.contains("hunter2"));
    assert!(
        text.contains("key-mgmt=wpa-psk\npsk=<removed>\n")
            && text.contains("password: <removed>\n")
    );
}

#[test]
fn the_log_of_others_is_not_in_it() {
    let mut guest = Guest::new();
    let pair = kinds::one(&mut guest);
    guest.say(9_000, "somebody typed hunter2", None);
    guest.say_nic(9_100, &pair.nic, "Data path switched from VF: enP37498s1");
    let folder = folder();
    let bytes = fs::read(collect(&guest, folder.path())).expect("a file");
    let text = String::from_utf8_lossy(&bytes);
    assert!(text.contains("Data path switched from VF") && !text.contains("hunter2"));
}

#[test]
fn a_file_that_is_there_is_not_replaced() {
    let folder = folder();
    let archive = collect(&kinds::on_prem(), folder.path());
    let before = fs::read(&archive).expect("a file");
    let guest = kinds::azure_mana();
    let output = archive.to_str().expect("text");
    let output = netvsc(&["collect", "-o", output], "--sysfs-root", guest.root());
    assert_eq!(output.status.code(), Some(1));
    assert!(fs::read(&archive).expect("a file") == before);
}

#[test]
fn the_running_system_is_collected_wherever_this_runs() {
    let folder = folder();
    let archive = folder.path().join("live.tar");
    let output =
        Command::new(PROGRAM).arg("collect").arg("-o").arg(&archive).output().expect("it runs");
    assert!(output.status.success(), "{output:?}");
    let output = netvsc(&["list", "--json"], "--from", &archive);
    let value: serde_json::Value = serde_json::from_str(&said(&output).1).expect("JSON");
    assert_eq!(value["source"]["kind"], "snapshot");
}

/// An archive that nobody of ours made.
struct Forged(Builder<Vec<u8>>);

impl Forged {
    fn new() -> Self {
        let mut forged = Self(Builder::new(Vec::new()));
        forged.file("netvsc/collected", "netvsc collect 1\n");
        forged
    }

    /// With any path at all, which the writer of archives would not let through.
    fn raw(&mut self, kind: EntryType, path: &str, target: &str, bytes: &[u8]) {
        let mut header = Header::new_gnu();
        let name = &mut header.as_gnu_mut().expect("a GNU header").name;
        name[..path.len()].copy_from_slice(path.as_bytes());
        let link = &mut header.as_gnu_mut().expect("a GNU header").linkname;
        link[..target.len()].copy_from_slice(target.as_bytes());
        header.set_entry_type(kind);
        header.set_mode(0o644);
        header.set_size(bytes.len() as u64);
        header.set_cksum();
        self.0.append(&header, bytes).expect("memory");
    }

    fn file(&mut self, path: &str, text: &str) {
        self.raw(EntryType::Regular, path, "", text.as_bytes());
    }

    fn end(mut self, entries: usize) -> Vec<u8> {
        self.file("netvsc/whole", &format!("{entries}\n"));
        self.0.into_inner().expect("memory")
    }
}

/// What is said of an archive that is refused.
fn refused(bytes: &[u8]) -> String {
    let folder = folder();
    let archive = folder.path().join("forged.tar");
    fs::write(&archive, bytes).expect("a file");
    let output = netvsc(&["list"], "--from", &archive);
    let (status, text, errors) = said(&output);
    assert_eq!((status, text.as_str()), (Some(1), ""), "{errors}");
    assert!(errors.contains("forged.tar") && errors.lines().count() == 1, "{errors}");
    errors
}

#[test]
fn archives_that_would_do_harm_are_refused_and_do_none() {
    let outside = folder();
    let victim = outside.path().join("victim");
    let victim = victim.to_str().expect("text");
    let climbing = format!("../../../../../../../..{victim}");
    type Build<'a> = Box<dyn Fn(&mut Forged) + 'a>;
    let cases: [(&str, usize, Build<'_>); 11] = [
        ("leads out of it", 1, Box::new(|forged| forged.file(&climbing, "x"))),
        ("leads out of it", 1, Box::new(|forged| forged.file(victim, "x"))),
        ("leads out of it", 1, Box::new(|forged| forged.file("sys/../../x", "x"))),
        (
            "is below a link",
            2,
            Box::new(|forged| {
                forged.raw(EntryType::Symlink, "a", outside.path().to_str().expect("text"), b"");
                forged.raw(EntryType::Symlink, "a/victim", "x", b"");
            }),
        ),
        (
            "exists",
            2,
            Box::new(|forged| {
                forged.raw(EntryType::Symlink, "a", outside.path().to_str().expect("text"), b"");
                forged.file("a/victim", "x");
            }),
        ),
        (
            "exists",
            2,
            Box::new(|forged| {
                forged.file("a", "x");
                forged.file("a", "y");
            }),
        ),
        (
            "neither file",
            1,
            Box::new(|forged| forged.raw(EntryType::Link, "a", "/etc/passwd", b"")),
        ),
        ("neither file", 1, Box::new(|forged| forged.raw(EntryType::Fifo, "a", "", b""))),
        ("neither file", 1, Box::new(|forged| forged.raw(EntryType::Block, "a", "", b""))),
        ("links to no path", 1, Box::new(|forged| forged.raw(EntryType::Symlink, "a", "", b""))),
        ("says `7`", 7, Box::new(|forged| forged.file("a", "x"))),
    ];
    for (words, entries, build) in cases {
        let mut forged = Forged::new();
        build(&mut forged);
        let errors = refused(&forged.end(entries));
        assert!(errors.contains(words), "{words} is missing in: {errors}");
        assert!(fs::read_dir(outside.path()).expect("a folder").next().is_none());
    }
}

#[test]
fn archives_that_are_too_large_are_refused_before_they_fill_the_disk() {
    let huge = |length: u64| {
        let mut header = Header::new_gnu();
        header.set_path("sys/huge").expect("a path");
        header.set_entry_type(EntryType::Regular);
        header.set_size(length);
        header.set_cksum();
        let mut bytes = Forged::new().0.into_inner().expect("memory");
        // Without the two blocks that end it.
        bytes.truncate(bytes.len() - 1024);
        bytes.extend_from_slice(header.as_bytes());
        bytes.extend_from_slice(&[0; 4096]);
        bytes
    };
    assert!(refused(&huge(1 << 40)).contains("expected at most"));
    assert!(refused(&huge(60 << 20)).contains("cut off"));
}

#[test]
fn what_is_damaged_or_none_of_ours_is_refused() {
    let folder = folder();
    let whole = fs::read(collect(&kinds::azure_mlx4(), folder.path())).expect("a file");
    let length = whole.len();
    // Wherever it is cut: within a header, within a file, between two entries, before the end.
    for at in [1, 600, 1024, 5 * 512, length / 2, length / 2 / 512 * 512, length - 2048 - 512] {
        let errors = refused(&whole[..at]);
        let known = ["cut off", "is not one", "damaged"];
        assert!(known.iter().any(|words| errors.contains(words)), "{at}: {errors}");
    }
    for bytes in [&b""[..], b"PK\x03\x04 no tar", &[0; 10_240], &[0xff; 5_000]] {
        refused(bytes);
    }
    let mut other = Builder::new(Vec::new());
    let mut header = Header::new_gnu();
    header.set_size(0);
    other.append_data(&mut header, "sys/class", &b""[..]).expect("memory");
    assert!(refused(&other.into_inner().expect("memory")).contains("is not one"));
    let output = netvsc(&["list"], "--from", Path::new("/no/such/archive"));
    assert!(said(&output).2.contains("/no/such/archive"));
    let output = netvsc(&["list", "--from", "x"], "--sysfs-root", Path::new("/"));
    assert_eq!(output.status.code(), Some(2), "one guest at a time");
}

#[test]
fn the_clock_that_is_written_down_is_the_one_that_stands_still_in_sleep() {
    let test = "the_clock_that_is_written_down_is_the_one_that_stands_still_in_sleep";
    let folder = folder();
    let archive = folder.path().join("live.tar");
    let now = || {
        let time = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
        u64::try_from(time.tv_sec).expect("after boot")
    };
    let before = now();
    // As if this machine had slept for a week.
    let unshare = Command::new("unshare")
        .args(as_root())
        .args(["--time", "--boottime", "604800", PROGRAM])
        .args(["collect", "-o"])
        .arg(&archive)
        .output();
    let output = match unshare {
        Ok(output) => output,
        Err(error) => {
            return namespace::skipped(test, &format!("`unshare` cannot be run: {error}"));
        }
    };
    let errors = String::from_utf8_lossy(&output.stderr);
    if errors.contains("unshare: ") {
        return namespace::skipped(test, errors.trim());
    }
    assert!(output.status.success(), "{output:?}");
    let mut clock = String::new();
    let mut opened = tar::Archive::new(fs::File::open(&archive).expect("an archive"));
    for entry in opened.entries().expect("entries") {
        let mut entry = entry.expect("an entry");
        if entry.path_bytes().as_ref() == b"netvsc/clock" {
            std::io::Read::read_to_string(&mut entry, &mut clock).expect("text");
        }
    }
    let (seconds, _) = clock.split_once('.').expect("seconds");
    let seconds: u64 = seconds.parse().expect("a number");
    assert!((before..=now()).contains(&seconds), "{clock} is not between {before} and {}", now());
}

#[test]
fn an_archive_is_never_changed_and_what_would_mend_its_guest_names_that_guests_files() {
    let folder = folder();
    let complaint = COMPLAINTS.iter().find(|it| it.number == 6).expect("one with a safe fix");
    let archive = collect(&(complaint.build)(), folder.path());
    for (arguments, option, status) in [
        (&["check", "--fix"][..], "--fix is of no use with --from ARCHIVE", 3),
        (&["check", "--fix", "--force"], "--fix is of no use with --from ARCHIVE", 3),
        (&["bind", "--uio", "eth0"], "bind is of no use with --from ARCHIVE", 2),
        (&["bind", "--restore", "--dry-run"], "bind is of no use with --from ARCHIVE", 2),
        (&["udev", "--retrigger-peers", "eth0"], "--retrigger-peers is of no use with", 2),
        (&["watch", "--notify-udev"], "--notify-udev is of no use with", 2),
    ] {
        let output = netvsc(arguments, "--from", &archive);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(status), "{arguments:?}: {errors}");
        assert!(errors.contains(option) && output.stdout.is_empty(), "{arguments:?}: {output:?}");
    }
    let output = netvsc(&["check", "--fix", "--dry-run"], "--from", &archive);
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && text.contains("cat > /etc/NetworkManager/conf.d/"),
        "{output:?}"
    );
}

#[test]
fn nothing_is_left_of_what_was_unpacked() {
    let folder = folder();
    let archive = collect(&kinds::azure_mlx4(), folder.path());
    let temporary = folder.path().join("temporary");
    fs::create_dir(&temporary).expect("a folder");
    for arguments in [vec!["list"], vec!["show", "eth9"]] {
        Command::new(PROGRAM)
            .args(&arguments)
            .arg("--from")
            .arg(&archive)
            .env("TMPDIR", &temporary)
            .output()
            .expect("the program runs");
        assert!(fs::read_dir(&temporary).expect("a folder").next().is_none(), "{arguments:?}");
    }
}

#[test]
fn json_says_what_was_written_and_what_could_not_be_read() {
    let (guest, folder) = (kinds::worked_example(), folder());
    guest.remove("sys/bus/pci/slots/1/address");
    fs::create_dir(guest.path("sys/bus/pci/slots/1/address")).expect("a folder");
    let archive = folder.path().join("guest.tar");
    let asked = archive.to_str().expect("text");
    let place = guest.root();
    let output = netvsc(&["collect", "--json", "-o", asked], "--sysfs-root", place);
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
    let value = schema::valid(&String::from_utf8_lossy(&output.stdout), "collect-1.json");
    assert_eq!(value["path"], asked);
    assert!(value["entries"].as_u64().is_some_and(|entries| entries > 100), "{value}");
    let unreadable = value["unreadable"].as_array().expect("a list");
    let slot = |note: &&serde_json::Value| note["path"] == "/sys/bus/pci/slots/1/address";
    assert_eq!(unreadable.iter().filter(slot).count(), 1, "{value}");
    let output = netvsc(&["collect", "--json", "-o", "-"], "--sysfs-root", place);
    assert_eq!((output.status.code(), output.stdout.len()), (Some(2), 0));
    assert!(String::from_utf8_lossy(&output.stderr).contains("--output FILE"), "{output:?}");
}

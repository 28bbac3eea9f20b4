//! `netvsc watch` as its users start it: on recorded guests, and on a real kernel in a network namespace of its own.

#[path = "../../netvsc-linux/tests/guest/mod.rs"]
#[expect(dead_code, reason = "shared with tests that need more of it")]
mod guest;
mod idle;
#[path = "../../netvsc-linux/tests/namespace/mod.rs"]
#[expect(dead_code, reason = "shared with tests that need more of it")]
mod namespace;
mod schema;

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use guest::{Guest, kinds};
use serde_json::Value;

const PROGRAM: &str = env!("CARGO_BIN_EXE_netvsc");
/// Set in the process that runs inside the namespaces.
const INSIDE: &str = "NETVSC_TEST_INSIDE_NAMESPACE";
/// How long an event may take to be printed before the test gives up.
const PATIENCE: Duration = Duration::from_secs(20);

fn recorded(guest: &guest::Guest, arguments: &[&str]) -> String {
    let output = Command::new(PROGRAM)
        .arg("watch")
        .args(arguments)
        .arg("--sysfs-root")
        .arg(guest.root())
        .output()
        .expect("the program runs");
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
    String::from_utf8(output.stdout).expect("text")
}

#[test]
fn a_recorded_guest_tells_its_past_and_ends() {
    let text = recorded(&kinds::after_hibernation(), &[]);
    let lines: Vec<_> = text.lines().collect();
    assert_eq!(lines.len(), 9, "{text}");
    assert_eq!(lines[6], "[   91.000000] eth0: VF eth1 is back, was gone for 31.0 s");
    assert_eq!(lines[8], "[ 7200.000000] eth0: accelerated, VF enP6757s2");
}

#[test]
fn json_is_one_object_per_line_and_the_history_the_same() {
    let folder = tempfile::tempdir().expect("the temporary folder is writable");
    let log = folder.path().join("history");
    let arguments = ["--json", "--log", log.to_str().expect("text")];
    let text = recorded(&kinds::mid_servicing(), &arguments);
    assert_eq!(std::fs::read_to_string(&log).expect("a file"), text);
    let mut events = Vec::new();
    for line in text.lines() {
        let value = schema::valid(line, "watch-1.json");
        events.push(value["event"].as_str().expect("a word").to_owned());
        assert_eq!(value["ifname"], "eth0");
    }
    assert_eq!(events, ["associated", "path", "associated", "path", "vf-gone", "present"]);
    // Once more: it is appended to.
    recorded(&kinds::mid_servicing(), &arguments);
    assert_eq!(std::fs::read_to_string(&log).expect("a file").len(), 2 * text.len());
}

#[test]
fn nobody_waits_for_what_nothing_will_tell() {
    let until = |guest: &Guest| {
        Command::new(env!("CARGO_BIN_EXE_netvsc"))
            .args(["watch", "--until", "settled", "--sysfs-root"])
            .arg(guest.root())
            .output()
            .expect("the program runs")
    };
    let mut guest = Guest::new();
    let pair = kinds::one(&mut guest);
    for (log, words) in [
        (None, "the kernel log could not be read"),
        (Some("6,900,7000000000,-;something else"), "does not go back to the boot"),
    ] {
        guest.remove("dev/kmsg");
        if let Some(log) = log {
            guest.write("dev/kmsg", log);
        }
        guest.sample_vf(pair.nic.index, [70, 70, 70]);
        let output = until(&guest);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{errors}");
        assert!(errors.contains(words) && errors.contains("CAP_SYSLOG"), "{errors}");
        // Frames that go through the VF tell enough.
        guest.sample_vf(pair.nic.index, [70, 71, 75]);
        let output = until(&guest);
        assert!(output.status.success(), "{output:?}");
        guest.write("dev/kmsg", "");
    }
}

/// The guest in `$1` as if it were this machine, which has no kernel log to read, and `$2` in it.
const LIVE: &str = r#"
root=$1 program=$2
shift 2
mount --bind "$root/sys" /sys && mount -t tmpfs none /dev || exit 77
exec "$program" watch --until settled "$@"
"#;

/// Root needs no users of its own, which not every machine lets it have.
fn as_root() -> &'static [&'static str] {
    if rustix::process::geteuid().is_root() { &[] } else { &["--user", "--map-root-user"] }
}

/// The same as a command, with these options.
fn live(guest: &Guest, options: &[&str]) -> Command {
    let mut command = Command::new("unshare");
    command
        .args(as_root())
        .args(["--net", "--mount", "sh", "-c", LIVE, "sh"])
        .arg(guest.root())
        .arg(env!("CARGO_BIN_EXE_netvsc"))
        .args(options);
    command
}

#[test]
fn a_running_system_that_cannot_tell_is_waited_for_as_long_as_one_likes() {
    let test = "a_running_system_that_cannot_tell_is_waited_for_as_long_as_one_likes";
    let mut guest = Guest::new();
    kinds::one(&mut guest);
    for (options, least) in [(&[][..], 0), (&["--timeout", "3s"], 3)] {
        let began = Instant::now();
        let output = match live(&guest, options).output() {
            Ok(output) => output,
            Err(error) => {
                return namespace::skipped(test, &format!("`unshare` cannot be run: {error}"));
            }
        };
        let errors = String::from_utf8_lossy(&output.stderr);
        if output.status.code() == Some(77) || errors.contains("unshare: ") {
            return namespace::skipped(test, errors.trim());
        }
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        assert!(errors.contains("cannot tell whether eth0 waits for a VF"), "{errors}");
        assert!(began.elapsed() >= Duration::from_secs(least), "{:?}", began.elapsed());
    }
    // What comes meanwhile is seen, although nothing can be heard of it: here, that there is nothing to wait for.
    let mut command = live(&guest, &["--timeout", "600s"]);
    let mut child = command.stdout(Stdio::piped()).spawn().expect("it ran before");
    let mut line = String::new();
    BufReader::new(child.stdout.take().expect("piped")).read_line(&mut line).expect("a line");
    assert!(line.contains("eth0"), "{line}");
    std::fs::remove_dir_all(guest.path("sys/bus/vmbus")).expect("no bus any more");
    assert!(child.wait().expect("it ends").success());
}

#[test]
fn a_boot_can_wait_until_no_nic_waits_for_a_vf() {
    let settled = |guest: &guest::Guest| {
        let output = Command::new(PROGRAM)
            .args(["watch", "--until", "settled", "--timeout", "1s", "--sysfs-root"])
            .arg(guest.root())
            .output()
            .expect("the program runs");
        (output.status.code(), String::from_utf8(output.stderr).expect("text"))
    };
    for guest in [kinds::azure_mana(), kinds::synthetic_only(), guest::Guest::without_hyperv()] {
        assert_eq!(settled(&guest), (Some(0), String::new()));
    }
    let (status, errors) = settled(&kinds::driver_missing());
    assert!(status == Some(1) && errors.contains("eth0 is waiting"), "{errors}");
    // On the running system it ends at once where there is nothing to wait for, and in time where there is.
    let live = Command::new(PROGRAM)
        .args(["watch", "--until", "settled", "--timeout", "100ms"])
        .output()
        .expect("the program runs");
    assert!(live.status.code().is_some(), "it ends by itself");
    let usage = Command::new(PROGRAM).args(["watch", "--timeout", "1s"]).output();
    assert_eq!(usage.expect("the program runs").status.code(), Some(2));
}

#[test]
fn a_history_that_cannot_be_written_is_an_error() {
    let output = Command::new(PROGRAM)
        .args(["watch", "--log", "/no/such/folder/history"])
        .output()
        .expect("the program runs");
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("/no/such/folder/history"));
}

/// Runs `body` in fresh network and mount namespaces, with the sysfs that belongs to them.
fn in_namespaces(test: &str, body: fn()) {
    if std::env::var_os(INSIDE).is_some() {
        return body();
    }
    let enter = |command: &str| {
        let mut unshare = Command::new("unshare");
        let script = format!("mount -t sysfs none /sys && {command}");
        unshare.args(["--net", "--mount", "--propagation", "private", "--", "sh", "-c", &script]);
        unshare
    };
    let reason = match enter("ip link add v0 type veth peer v1").output() {
        Ok(output) if output.status.success() => None,
        Ok(output) => Some(String::from_utf8_lossy(&output.stderr).trim().to_owned()),
        Err(error) => Some(format!("`unshare` cannot be run: {error}")),
    };
    if let Some(reason) = reason {
        assert!(
            std::env::var_os("NETVSC_NO_SKIP").is_none(),
            "{test} must run here, but: {reason}"
        );
        return eprintln!("skipped: {test}: {reason}");
    }
    let output = enter("exec \"$0\" --exact \"$1\" --nocapture --test-threads=1")
        .arg(std::env::current_exe().expect("a test knows its own program"))
        .arg(test)
        .env(INSIDE, "1")
        .output()
        .expect("unshare worked a moment ago");
    let text = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && text.contains("1 passed"), "inside:\n{text}{errors}");
}

fn ip(arguments: &str) {
    let output = Command::new("ip").args(arguments.split(' ')).output().expect("ip runs");
    assert!(output.status.success(), "{arguments}: {}", String::from_utf8_lossy(&output.stderr));
}

/// A `netvsc watch` that runs.
struct Running {
    child: Child,
    lines: Receiver<String>,
}

impl Running {
    fn start(arguments: &[&str]) -> Self {
        let mut child = Command::new(PROGRAM)
            .args(["watch", "--json", "--all"])
            .args(arguments)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("the program runs");
        let output = BufReader::new(child.stdout.take().expect("a pipe"));
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            for line in output.lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    break;
                }
            }
        });
        let running = Self { child, lines };
        running.ready();
        running
    }

    /// Waits until it listens: from then on, an interface that comes is told.
    fn ready(&self) {
        let end = Instant::now() + PATIENCE;
        for attempt in 0.. {
            assert!(Instant::now() < end, "it never listened");
            ip(&format!("link add ready{attempt} type veth peer name peer{attempt}"));
            ip(&format!("link del ready{attempt}"));
            if self.lines.recv_timeout(Duration::from_millis(100)).is_ok() {
                break;
            }
        }
        while self.lines.recv_timeout(Duration::from_millis(200)).is_ok() {}
    }

    /// The next event about this interface.
    fn event(&self, event: &str, name: &str) -> Value {
        let end = Instant::now() + PATIENCE;
        let mut seen = Vec::new();
        loop {
            let left = end.saturating_duration_since(Instant::now());
            let line = self.lines.recv_timeout(left);
            let line = line.unwrap_or_else(|_| panic!("no {event} of {name} in {seen:#?}"));
            let value: Value = serde_json::from_str(&line).expect("JSON");
            if value["event"] == event && value["ifname"] == name {
                return value;
            }
            seen.push(line);
        }
    }

    fn pid(&self) -> String {
        self.child.id().to_string()
    }

    /// Asks it to stop, and says with which status it did.
    fn stop(mut self, signal: &str) -> Option<i32> {
        let sent = Command::new("kill").args([signal, &self.pid()]).status().expect("kill runs");
        assert!(sent.success());
        let end = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait().expect("our own child") {
                return status.code();
            }
            assert!(Instant::now() < end, "it does not stop");
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn the_kernels_events_are_told_as_they_happen() {
    in_namespaces("the_kernels_events_are_told_as_they_happen", || {
        let watch = Running::start(&[]);
        ip("link add v0 type veth peer v1");
        assert!(watch.event("link-arrived", "v0")["ifindex"].is_u64());
        ip("link set v0 name far");
        assert_eq!(watch.event("renamed", "far")["from"], "v0");
        ip("link set far up");
        assert_eq!(watch.event("up", "far")["up"], true);
        ip("link set far down");
        assert_eq!(watch.event("up", "far")["up"], false);
        let mut other = Command::new("unshare")
            .args(["--net", "--", "sh", "-c", "echo; cat"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("unshare runs");
        let mut line = String::new();
        let mut said = BufReader::new(other.stdout.take().expect("a pipe"));
        said.read_line(&mut line).expect("it has its namespace");
        ip(&format!("link set far netns {}", other.id()));
        watch.event("link-gone", "far");
        drop(other.stdin.take());
        other.wait().expect("our own child");
        ip("tuntap add tap0 mode tap");
        watch.event("link-arrived", "tap0");
        ip("link del tap0");
        watch.event("link-gone", "tap0");
        assert_eq!(watch.stop("-TERM"), Some(0));
        assert_eq!(Running::start(&[]).stop("-INT"), Some(0));
    });
}

#[test]
fn events_that_were_lost_are_made_up_for() {
    in_namespaces("events_that_were_lost_are_made_up_for", || {
        let watch = Running::start(&[]);
        // While it is not looking, more happens than the kernel keeps.
        let signal = |name: &str| {
            let sent = Command::new("kill").args([name, &watch.pid()]).status().expect("kill runs");
            assert!(sent.success());
        };
        signal("-STOP");
        ip("link add lost0 type veth peer name lost1");
        let batch = "link set lost0 up\nlink set lost0 down\n".repeat(3_000);
        let mut child = Command::new("ip")
            .args(["-batch", "-"])
            .stdin(Stdio::piped())
            .spawn()
            .expect("ip runs");
        let mut input = child.stdin.take().expect("a pipe");
        std::io::Write::write_all(&mut input, batch.as_bytes()).expect("ip reads");
        drop(input);
        assert!(child.wait().expect("our own child").success());
        ip("link set lost0 name found");
        signal("-CONT");
        let event = watch.event_of("resynchronised");
        assert_eq!(event["detail"], "links");
        watch.event_of_name("found");
        // It goes on as before.
        ip("link set found name again");
        assert_eq!(watch.event("renamed", "again")["from"], "found");
        assert_eq!(watch.stop("-TERM"), Some(0));
    });
}

impl Running {
    fn event_of(&self, event: &str) -> Value {
        self.first(|value| value["event"] == event)
    }

    fn event_of_name(&self, name: &str) -> Value {
        self.first(|value| value["ifname"] == name)
    }

    fn first(&self, fits: impl Fn(&Value) -> bool) -> Value {
        let end = Instant::now() + PATIENCE;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            let line = self.lines.recv_timeout(left).expect("it never came");
            let value = serde_json::from_str(&line).expect("JSON");
            if fits(&value) {
                return value;
            }
        }
    }
}

#[test]
fn nothing_but_a_round_each_minute_wakes_it_up_while_nothing_happens() {
    in_namespaces("nothing_but_a_round_each_minute_wakes_it_up_while_nothing_happens", || {
        let watch = Running::start(&[]);
        assert_eq!(idle::longest_sleep(watch.child.id()), Some(Duration::from_secs(60)));
    });
}

#[test]
fn a_reader_that_goes_away_ends_it() {
    in_namespaces("a_reader_that_goes_away_ends_it", || {
        let mut child = Command::new(PROGRAM)
            .args(["watch", "--all"])
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("the program runs");
        drop(child.stdout.take());
        let end = Instant::now() + PATIENCE;
        for attempt in 0.. {
            ip(&format!("link add gone{attempt} type veth peer name peer{attempt}"));
            if let Some(status) = child.try_wait().expect("our own child") {
                assert_eq!(status.code(), Some(0));
                break;
            }
            assert!(Instant::now() < end, "it goes on for nobody");
            std::thread::sleep(Duration::from_millis(50));
        }
    });
}

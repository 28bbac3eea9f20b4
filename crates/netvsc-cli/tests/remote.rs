//! `netvsc host` and `netvsc run --host unix:` as their users start them: two processes, either of which may be killed.

use std::io::{BufRead, BufReader, Read};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

const PROGRAM: &str = env!("CARGO_BIN_EXE_netvsc");
/// How long anything may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// A path for a socket that no other test has.
fn socket(name: &str) -> PathBuf {
    std::env::temp_dir().join(format!("netvsc-{name}-{}.sock", std::process::id()))
}

/// A running host. It is killed if the test dies before it.
struct Host {
    child: Child,
    lines: Receiver<String>,
    path: PathBuf,
}

impl Host {
    fn start(name: &str, more: &[&str]) -> Self {
        let path = socket(name);
        let mut child = Command::new(PROGRAM)
            .args(["host", "--json", "--listen", path.to_str().expect("a plain path")])
            .args(more)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the program runs");
        let stdout = BufReader::new(child.stdout.take().expect("a pipe"));
        let (sender, lines) = channel();
        thread::spawn(move || {
            for line in stdout.lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        let mut host = Self { child, lines, path };
        host.wait_for("listening");
        host
    }

    /// The next event of this name.
    fn wait_for(&mut self, name: &str) -> Value {
        let end = Instant::now() + PATIENCE;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            match self.lines.recv_timeout(left) {
                Ok(line) => {
                    let event: Value = serde_json::from_str(&line).expect("JSON");
                    assert_ne!(event["event"], "failed", "{event}");
                    if event["event"] == name {
                        return event;
                    }
                }
                Err(RecvTimeoutError::Timeout) => panic!("no {name} within {PATIENCE:?}"),
                Err(RecvTimeoutError::Disconnected) => panic!("the host ended before {name}"),
            }
        }
    }

    fn guest(&self, more: &[&str]) -> Command {
        let mut command = Command::new(PROGRAM);
        let host = format!("unix:{}", self.path.display());
        command.args(["run", "--json", "--host", &host]).args(more).stdin(Stdio::null());
        command
    }

    fn run(&self, more: &[&str]) -> Output {
        self.guest(more).output().expect("the program runs")
    }

    fn stop(mut self, signal: Signal) -> ExitStatus {
        kill_process(Pid::from_child(&self.child), signal).expect("it is running");
        self.child.wait().expect("a child")
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The last line of a run that was good.
fn summary(output: &Output) -> Value {
    let (text, errors) =
        (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{text}{errors}");
    let last = text.lines().last().expect("a line");
    let summary: Value = serde_json::from_str(last).expect("JSON");
    assert_eq!(summary["event"], "summary");
    summary
}

/// A transfer over two NICs, after which everything is as it should be.
fn clean_transfer(host: &mut Host) -> Value {
    let summary = summary(&host.run(&["--size", "2MiB"]));
    assert_eq!((&summary["digest_ok"], &summary["bytes"]), (&true.into(), &(4 << 20).into()));
    assert_eq!((&summary["nics"], &summary["frames_lost_orderly"]), (&2.into(), &0.into()));
    host.wait_for("guest_arrived");
    assert_eq!(host.wait_for("guest_left")["clean"], true);
    summary
}

#[test]
fn guests_come_and_go_and_the_socket_goes_with_the_host() {
    let mut host = Host::start("come-and-go", &[]);
    let file = std::fs::metadata(&host.path).expect("a socket");
    assert!(file.file_type().is_socket());
    assert_eq!(file.mode() & 0o7777, 0o600);
    for _ in 0..2 {
        clean_transfer(&mut host);
    }
    let path = host.path.clone();
    assert!(host.stop(Signal::TERM).success());
    assert!(!path.exists());
}

#[test]
fn vfs_carry_frames_between_two_processes_and_lose_none_when_they_leave_in_order() {
    // A NIC that starts late has sent much on its synthetic path: the transfer is long enough for both.
    let mut host = Host::start("vfs", &["--churn", "40ms"]);
    let summary = summary(&host.run(&["--size", "192MiB"]));
    assert_eq!((&summary["digest_ok"], &summary["frames_lost_orderly"]), (&true.into(), &0.into()));
    let number = |name: &str| summary[name].as_u64().expect("a number");
    assert!(number("frames_vf") > 0 && number("frames_synthetic") > 0, "{summary}");
    assert!(number("switches_to_synthetic") > 0, "VFs left: {summary}");
    assert_eq!(host.wait_for("host_action")["event"], "host_action");
    assert_eq!(host.wait_for("guest_left")["clean"], true);
}

#[test]
fn one_guest_at_a_time() {
    let mut host = Host::start("busy", &[]);
    let mut first = host.guest(&["--size", "16GiB"]).stdout(Stdio::null()).spawn().unwrap();
    host.wait_for("guest_arrived");
    let second = host.run(&[]);
    assert_eq!(second.status.code(), Some(1));
    let errors = String::from_utf8_lossy(&second.stderr);
    assert!(errors.contains("BUSY"), "{errors}");
    first.kill().unwrap();
    first.wait().unwrap();
    assert_eq!(host.wait_for("guest_left")["clean"], true);
    clean_transfer(&mut host);
}

#[test]
fn a_second_host_does_not_take_the_place_of_one_that_lives() {
    let mut host = Host::start("place", &[]);
    let path = host.path.to_str().expect("a plain path");
    let second = Command::new(PROGRAM).args(["host", "--listen", path]).output().unwrap();
    assert_eq!(second.status.code(), Some(1));
    let errors = String::from_utf8_lossy(&second.stderr);
    assert!(errors.contains("another host listens"), "{errors}");
    // What it tried looks like a guest that left at once.
    clean_transfer_after_noise(&mut host);
}

fn clean_transfer_after_noise(host: &mut Host) {
    let summary = summary(&host.run(&["--size", "1MiB"]));
    assert_eq!(summary["digest_ok"], true);
}

#[test]
fn without_a_host_it_is_said_what_to_do() {
    let path = socket("nobody");
    let host = format!("unix:{}", path.display());
    let output = Command::new(PROGRAM).args(["run", "--host", &host]).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(errors.contains("netvsc host --listen"), "{errors}");
}

/// How often each process is killed: 50 times where there is time for it.
fn kills() -> usize {
    if std::env::var_os("NETVSC_LONG").is_some() { 50 } else { 5 }
}

#[test]
fn a_guest_that_is_killed_leaves_nothing_and_the_next_one_is_served() {
    let mut host = Host::start("kill-guest", &["--churn", "20ms"]);
    for round in 0..kills() {
        let mut guest = host.guest(&["--size", "16GiB"]).stdout(Stdio::null()).spawn().unwrap();
        host.wait_for("guest_arrived");
        // At any point of its life: from the first message to traffic on the VF.
        thread::sleep(Duration::from_millis([0, 2, 15, 40, 120, 250][round % 6]));
        guest.kill().unwrap();
        let killed = Instant::now();
        let left = host.wait_for("guest_left");
        assert_eq!(left["clean"], true, "{left}");
        assert!(killed.elapsed() < Duration::from_secs(2), "noticed late");
        guest.wait().unwrap();
    }
    let summary = summary(&host.run(&["--size", "4MiB"]));
    assert_eq!((&summary["digest_ok"], &summary["frames_lost_orderly"]), (&true.into(), &0.into()));
    assert!(host.stop(Signal::TERM).success());
}

#[test]
fn a_host_that_is_killed_is_noticed_at_once_and_the_next_one_takes_its_place() {
    for round in 0..kills() {
        let mut host = Host::start("kill-host", &["--churn", "20ms"]);
        let mut guest = host
            .guest(&["--size", "16GiB"])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut said = guest.stdout.take().expect("a pipe");
        let said = thread::spawn(move || {
            let mut text = String::new();
            said.read_to_string(&mut text).map(|_| text)
        });
        host.wait_for("guest_arrived");
        thread::sleep(Duration::from_millis([0, 2, 15, 40, 120, 250][round % 6]));
        let path = host.path.clone();
        host.stop(Signal::KILL);
        assert!(path.exists(), "a killed host leaves its socket");
        let killed = Instant::now();
        let output = guest.wait_with_output().unwrap();
        assert!(killed.elapsed() < Duration::from_secs(2), "noticed late");
        assert_eq!(output.status.code(), Some(1));
        // One that was killed while they met leaves a guest that has nothing to give back.
        for line in said.join().unwrap().unwrap().lines() {
            let event: Value = serde_json::from_str(line).expect("JSON");
            if event["event"] == "host_left" {
                assert_eq!(event["pages_kept"], 0, "{event}");
            }
        }
    }
    let mut host = Host::start("kill-host", &[]);
    clean_transfer(&mut host);
    assert!(host.stop(Signal::TERM).success());
}

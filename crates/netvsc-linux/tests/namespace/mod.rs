//! Tests in a network namespace of their own.
//!
//! A test runs itself again under `unshare --net`, so that nothing it does is seen outside and nothing it forgets
//! stays. Where that is not possible it prints `skipped: <reason>`; with `NETVSC_NO_SKIP` set, as on machines where it is
//! known to be possible, it fails instead.

use std::fs;
use std::io::Write;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Set in the process that runs inside the namespace.
const INSIDE: &str = "NETVSC_TEST_INSIDE_NAMESPACE";

/// Runs `body` in a fresh network namespace. `test` is the path of the calling test.
pub fn in_namespace(test: &str, body: fn()) {
    if std::env::var_os(INSIDE).is_some() {
        return body();
    }
    if let Some(reason) = obstacle() {
        return skipped(test, &reason);
    }
    let this = std::env::current_exe().expect("a test knows its own program");
    let output = Command::new("unshare")
        .arg("--net")
        .arg("--")
        .arg(this)
        .args(["--exact", test, "--nocapture", "--test-threads=1"])
        .env(INSIDE, "1")
        .output()
        .expect("unshare worked a moment ago");
    let errors = String::from_utf8_lossy(&output.stderr);
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "inside the namespace:\n{text}{errors}");
    assert!(text.contains("1 passed"), "`{test}` is not the path of one test:\n{text}");
    for line in errors.lines() {
        match line.starts_with("skipped: ") {
            true => say(line),
            // Figures, for who runs it with `--nocapture`.
            false => eprintln!("{line}"),
        }
    }
}

/// Says that a test does not run, past the harness, which hides what passing tests print.
pub fn skipped(test: &str, reason: &str) {
    assert!(
        std::env::var_os("NETVSC_NO_SKIP").is_none(),
        "{test} must run on this machine, but: {reason}"
    );
    say(&format!("skipped: {test}: {reason}"));
}

fn say(line: &str) {
    // If standard error is closed there is nobody to tell.
    let _ = writeln!(std::io::stderr(), "{line}");
}

/// Why the kernel tests cannot run here.
fn obstacle() -> Option<String> {
    if !rustix::process::geteuid().is_root() {
        return Some("not root, so no network namespace can be made".into());
    }
    if let Err(error) = fs::OpenOptions::new().read(true).write(true).open("/dev/net/tun") {
        return Some(format!("/dev/net/tun cannot be opened: {error}"));
    }
    match Command::new("unshare").args(["--net", "--", "ip", "link"]).output() {
        Ok(output) if output.status.success() => None,
        Ok(output) => Some(format!(
            "`unshare --net -- ip link` failed: {}",
            String::from_utf8_lossy(&output.stderr).trim()
        )),
        Err(error) => Some(format!("`unshare` cannot be run: {error}")),
    }
}

/// Runs `ip` in this namespace and returns what it prints.
pub fn ip(arguments: &str) -> String {
    printed(Command::new("ip").args(arguments.split(' ')))
}

/// Whether this namespace has the interface `name`.
pub fn exists(name: &str) -> bool {
    succeeds(Command::new("ip").args(["link", "show", name]))
}

fn printed(command: &mut Command) -> String {
    let output = command.output().expect("the program is there");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {errors}");
    String::from_utf8(output.stdout).expect("it prints text")
}

fn succeeds(command: &mut Command) -> bool {
    command.output().expect("the program is there").status.success()
}

/// Another network namespace, which lives as long as this value (or the test, if that dies first).
#[derive(Debug)]
pub struct Neighbour {
    /// A process that does nothing but hold the namespace; it ends with its input.
    holder: Child,
}

impl Neighbour {
    /// Makes the namespace.
    pub fn new() -> Self {
        let holder = Command::new("unshare")
            .args(["--net", "--", "cat"])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .expect("unshare runs");
        let own = fs::read_link("/proc/self/ns/net").expect("namespaces are visible");
        let theirs = format!("/proc/{}/ns/net", holder.id());
        let neighbour = Self { holder };
        let end = Instant::now() + Duration::from_secs(10);
        while fs::read_link(&theirs).ok().is_none_or(|theirs| theirs == own) {
            assert!(Instant::now() < end, "unshare never made its namespace");
            std::thread::sleep(Duration::from_millis(1));
        }
        neighbour
    }

    /// The process by which `ip link set .. netns` and `/proc/PID/ns/net` know the namespace.
    pub fn pid(&self) -> u32 {
        self.holder.id()
    }
}

impl Drop for Neighbour {
    fn drop(&mut self) {
        drop(self.holder.stdin.take());
        let _ = self.holder.wait();
    }
}

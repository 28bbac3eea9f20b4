//! What runs on, as systemd and operators see it: readiness, a watchdog, its end, its log level, and how little it does while
//! there is nothing to do.

#[path = "../../netvsc-linux/tests/namespace/mod.rs"]
#[expect(dead_code, reason = "shared with tests that need more of it")]
mod namespace;

use std::fs;
use std::io::{BufRead, BufReader, Read as _};
use std::net::UdpSocket;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use namespace::{in_namespace, ip, skipped};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

const PROGRAM: &str = env!("CARGO_BIN_EXE_netvsc");
/// How long anything may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// The program, with what it prints as it comes. It is killed if the test dies before it.
struct Running {
    child: Child,
    lines: Receiver<String>,
    errors: Receiver<String>,
}

fn lines(from: impl std::io::Read + Send + 'static) -> Receiver<String> {
    let (sender, lines) = channel();
    thread::spawn(move || {
        for line in BufReader::new(from).lines().map_while(Result::ok) {
            if sender.send(line).is_err() {
                return;
            }
        }
    });
    lines
}

impl Running {
    fn start(command: &mut Command) -> Self {
        let command = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("the program runs");
        let errors = lines(child.stderr.take().expect("a pipe"));
        let lines = lines(child.stdout.take().expect("a pipe"));
        Self { child, lines, errors }
    }

    fn wait_for(&mut self, so: impl Fn(&Value) -> bool) -> Value {
        let json = |line: &String| serde_json::from_str(line).expect("JSON");
        loop {
            let line = next(&self.lines, "an event");
            let event: Value = json(&line);
            if so(&event) {
                return event;
            }
        }
    }

    fn wait_for_event(&mut self, name: &str) -> Value {
        self.wait_for(|event| event["event"] == name)
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).expect("it is running");
    }

    fn end(&mut self) -> ExitStatus {
        self.signal(Signal::TERM);
        self.child.wait().expect("a child")
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn next(lines: &Receiver<String>, what: &str) -> String {
    match lines.recv_timeout(PATIENCE) {
        Ok(line) => line,
        Err(RecvTimeoutError::Timeout) => panic!("no {what} within {PATIENCE:?}"),
        Err(RecvTimeoutError::Disconnected) => panic!("it ended before {what}"),
    }
}

fn host(socket: &Path, more: &[&str]) -> Command {
    let mut command = Command::new(PROGRAM);
    command.args(["host", "--json", "--listen", socket.to_str().expect("a plain path")]).args(more);
    command
}

fn guest(socket: &Path, more: &[&str]) -> Command {
    let mut command = Command::new(PROGRAM);
    let host = format!("unix:{}", socket.display());
    command.args(["run", "--json", "--host", &host]).args(more);
    command
}

/// What systemd hears.
struct Systemd {
    _folder: tempfile::TempDir,
    path: PathBuf,
    socket: UnixDatagram,
}

impl Systemd {
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("notify");
        let socket = UnixDatagram::bind(&path).expect("a socket");
        socket.set_read_timeout(Some(PATIENCE)).expect("a limit");
        Self { _folder: folder, path, socket }
    }

    fn hears(&self) -> String {
        let mut buffer = [0; 256];
        let len = self.socket.recv(&mut buffer).expect("a message");
        String::from_utf8_lossy(&buffer[..len]).into_owned()
    }

    /// A service with a watchdog: that is what `WatchdogSec=0.2` gives.
    fn runs(&self, command: &mut Command) -> Running {
        command.env("NOTIFY_SOCKET", &self.path).env("WATCHDOG_USEC", "200000");
        Running::start(command.env_remove("WATCHDOG_PID"))
    }

    /// From its readiness to its end, in between which it says often enough that it is alive.
    fn sees_a_good_life(&self, running: &mut Running) {
        let mut said = self.hears();
        assert_eq!(said, "READY=1");
        let mut last = Instant::now();
        for _ in 0..4 {
            said = self.hears();
            assert_eq!(said, "WATCHDOG=1");
            // Half of the time that it has, and much more than that on a busy machine is its own matter.
            assert!(last.elapsed() < Duration::from_millis(1000), "{:?}", last.elapsed());
            last = Instant::now();
        }
        assert!(running.end().success());
        while said == "WATCHDOG=1" {
            said = self.hears();
        }
        assert_eq!(said, "STOPPING=1");
    }
}

#[test]
fn systemd_hears_of_a_hosts_beginning_life_and_end() {
    let (systemd, folder) = (Systemd::new(), tempfile::tempdir().expect("a folder"));
    let mut running = systemd.runs(&mut host(&folder.path().join("s"), &[]));
    systemd.sees_a_good_life(&mut running);
    // A watchdog of somebody else is not fed, and without a socket nobody is told.
    let mut command = host(&folder.path().join("s"), &["--duration", "500ms"]);
    command.env("NOTIFY_SOCKET", &systemd.path).env("WATCHDOG_USEC", "100000");
    command.env("WATCHDOG_PID", "1");
    let mut running = Running::start(&mut command);
    assert!(running.child.wait().expect("a child").success());
    assert_eq!([systemd.hears(), systemd.hears()], ["READY=1", "STOPPING=1"]);
}

#[test]
fn systemd_hears_of_a_guests_beginning_life_and_end() {
    in_namespace("systemd_hears_of_a_guests_beginning_life_and_end", || {
        let (systemd, folder) = (Systemd::new(), tempfile::tempdir().expect("a folder"));
        let socket = folder.path().join("s");
        let mut host = Running::start(&mut host(&socket, &[]));
        host.wait_for_event("listening");
        let mut running = systemd.runs(&mut guest(&socket, &["--tap", "nvt0"]));
        systemd.sees_a_good_life(&mut running);
    });
}

#[test]
fn the_log_level_is_another_after_a_hang_up() {
    let folder = tempfile::tempdir().expect("a folder");
    let (socket, level) = (folder.path().join("s"), folder.path().join("level"));
    fs::write(&level, "error\n").expect("a file");
    let from = ["--log-level-from", level.to_str().expect("a plain path")];
    let mut running = Running::start(&mut host(&socket, &from));
    running.wait_for_event("listening");
    let transfer = || {
        let status = guest(&socket, &["--size", "64KiB"]).stdout(Stdio::null()).status();
        assert!(status.expect("the program runs").success());
    };
    transfer();
    fs::write(&level, "trace\n").expect("a file");
    running.signal(Signal::HUP);
    // The first line of all: at the old level there was nothing to say.
    let line = next(&running.errors, "a word on the new level");
    assert_eq!(line, "netvsc: log level trace, error before");
    transfer();
    let line = next(&running.errors, "a line of the log");
    assert!(line.contains("DEBUG") || line.contains("TRACE"), "{line}");
    fs::write(&level, "loud\n").expect("a file");
    running.signal(Signal::HUP);
    while !next(&running.errors, "a complaint").contains("`loud` is no level") {}
    transfer();
    assert!(running.end().success());
    // What is wrong at the start ends it.
    let output = host(&socket, &from).output().expect("the program runs");
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("`loud` is no level"));
}

/// Whether the stack behind the switch still answers who it is: frames go in both directions.
fn is_connected() -> bool {
    ip("neigh flush dev nvt0");
    let end = Instant::now() + PATIENCE;
    while Instant::now() < end {
        let socket = UdpSocket::bind("192.0.2.1:0").expect("our address");
        let _ = socket.send_to(b"?", "192.0.2.2:9");
        thread::sleep(Duration::from_millis(20));
        if ip("neigh show dev nvt0").contains("192.0.2.2 lladdr") {
            return true;
        }
    }
    false
}

/// Tells a test that it is to connect, and where.
const CONNECT: &str = "NETVSC_TEST_CONNECT";

/// Not a test by itself: connects to a host as the user that it runs as, and waits for what comes.
#[test]
fn caller() {
    let Some(path) = std::env::var_os(CONNECT) else { return };
    let mut stream = UnixStream::connect(path).expect("the file lets everybody in");
    stream.set_read_timeout(Some(PATIENCE)).expect("a limit");
    // A host says nothing before its guest does: what ends this is that it hangs up.
    let heard = stream.read(&mut [0; 64]);
    println!("heard: {heard:?}");
}

#[test]
fn another_user_is_hung_up_on_even_where_the_file_lets_him_in() {
    const TEST: &str = "another_user_is_hung_up_on_even_where_the_file_lets_him_in";
    in_namespace(TEST, || {
        let folder = tempfile::tempdir().expect("a folder");
        let socket = folder.path().join("s");
        let mut host = Running::start(&mut host(&socket, &["--without-vfs", "--nics", "1"]));
        host.wait_for_event("listening");
        // Everybody may go in and connect, and run a copy of this test: where it was built may be closed to him.
        let everybody = fs::Permissions::from_mode(0o777);
        let this = folder.path().join("caller");
        fs::copy(std::env::current_exe().expect("a test knows its own program"), &this)
            .expect("a copy");
        for path in [folder.path(), &socket, &this] {
            fs::set_permissions(path, everybody.clone()).expect("it is ours");
        }
        let call = |uid: &str| {
            let output = Command::new("setpriv")
                .args(["--reuid", uid, "--regid", uid, "--clear-groups", "--"])
                .arg(&this)
                .args(["--exact", "caller", "--nocapture"])
                .env(CONNECT, &socket)
                .stdin(Stdio::null())
                .output();
            let output = output.map_err(|error| format!("setpriv cannot be run: {error}"))?;
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            let errors = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success(), "{text}{errors}");
            Ok::<_, String>(text)
        };
        let text = match call("65534") {
            Ok(text) => text,
            Err(reason) => return skipped(TEST, &reason),
        };
        // That nothing came within the time limit would be an error.
        assert!(text.contains("heard: Ok(0)"), "{text}");
        let failed = host.wait_for_event("failed");
        let what = failed["what"].as_str().expect("text");
        assert!(what.contains("user 65534 is at the other end"), "{failed}");
        // It goes on, and serves who it is for.
        let mut running = Running::start(&mut guest(&socket, &["--tap", "nvt0"]));
        running.wait_for_event("nic_ready");
        host.wait_for_event("guest_arrived");
        assert!(running.end().success());
        assert!(host.end().success());
    });
}

#[test]
fn the_nic_of_another_process_follows_ip_link_too() {
    in_namespace("the_nic_of_another_process_follows_ip_link_too", || {
        let folder = tempfile::tempdir().expect("a folder");
        let socket = folder.path().join("s");
        let mut host = Running::start(&mut host(&socket, &["--without-vfs", "--nics", "1"]));
        host.wait_for_event("listening");
        let mut running = Running::start(&mut guest(&socket, &["--tap", "nvt0"]));
        running.wait_for_event("nic_ready");
        let up = || ip("-o link show nvt0").contains(",UP");
        while !up() {
            thread::sleep(Duration::from_millis(5));
        }
        ip("addr add 192.0.2.1/24 dev nvt0");
        assert!(is_connected());
        // No segment is longer than what the host cuts.
        assert!(
            ip("-d link show nvt0").contains("gso_max_size 62780 "),
            "{}",
            ip("-d link show nvt0")
        );
        ip("link set nvt0 mtu 4000");
        let ready = running.wait_for_event("nic_ready");
        assert_eq!(ready["mtu"], 4000);
        assert!(is_connected(), "after a change of the MTU");
        ip("link set nvt0 address 02:00:00:00:aa:01");
        let told = running.wait_for_event("address");
        assert_eq!((&told["mac"], &told["taken"]), (&"02:00:00:00:aa:01".into(), &true.into()));
        assert!(is_connected(), "after a change of the address");
        ip("link set nvt0 down");
        thread::sleep(Duration::from_millis(50));
        ip("link set nvt0 up");
        assert!(is_connected(), "after it was down");
        // All of it again stands with the next host, which has the NIC's own address to give.
        assert!(running.end().success());
        assert!(host.end().success());
    });
}

/// How often a process has waited so far, and the memory that is its own, in KiB.
fn status(process: u32) -> (u64, u64) {
    let text = fs::read_to_string(format!("/proc/{process}/status")).expect("it is running");
    let number = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name)).expect(name);
        let word = line.trim_start_matches(':').split_whitespace().next();
        word.and_then(|word| word.parse::<u64>().ok()).expect("a number")
    };
    (number("voluntary_ctxt_switches"), number("RssAnon") + number("RssFile"))
}

/// How long nothing is to happen: a minute where there is time for it.
fn rest() -> Duration {
    Duration::from_secs(if std::env::var_os("NETVSC_LONG").is_some() { 60 } else { 3 })
}

#[test]
fn a_host_and_a_guest_with_nothing_to_do_do_nothing_and_need_little() {
    in_namespace("a_host_and_a_guest_with_nothing_to_do_do_nothing_and_need_little", || {
        // The kernel itself would have something to say on a new interface.
        fs::write("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1").expect("ours");
        fs::write("/proc/sys/net/ipv6/conf/all/disable_ipv6", "1").expect("ours");
        let folder = tempfile::tempdir().expect("a folder");
        let socket = folder.path().join("s");
        let mut host = Running::start(&mut host(&socket, &["--peer-tap", "nvt1"]));
        host.wait_for_event("listening");
        let lonely = [host.child.id()];
        thread::sleep(Duration::from_millis(500));
        let before = lonely.map(status);
        thread::sleep(rest());
        assert_eq!(lonely.map(|process| status(process).0), before.map(|(waits, _)| waits));

        let mut running = Running::start(&mut guest(&socket, &["--tap", "nvt0"]));
        running.wait_for(|event| event["event"] == "path" && event["path"] == "vf");
        ip("addr add 192.0.2.1/24 dev nvt0");
        // Switches that are settling, and the last words of the kernel.
        thread::sleep(Duration::from_secs(3));
        let both = [host.child.id(), running.child.id()];
        let before = both.map(status);
        thread::sleep(rest());
        let after = both.map(status);
        for (name, (before, after)) in ["host", "guest"].iter().zip(before.iter().zip(&after)) {
            assert_eq!(before.0, after.0, "the {name} woke up");
            assert!(after.1 < 32 << 10, "the {name} needs {} KiB", after.1);
        }
        assert!(running.end().success() && host.end().success());
    });
}

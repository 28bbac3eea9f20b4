//! A run, the device with its host that it drives, and who answers at the far end.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpStream, UdpSocket};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use hyperv_host::nic::NicServiceConfig;
use netvsc_linux::Tap;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::fake_uio::{Account, Fake, Habits};
use crate::namespace::{Neighbour, exists, ip};

pub const PROGRAM: &str = env!("CARGO_BIN_EXE_netvsc");
/// Where the echo server listens, in its namespace.
pub const SERVER: &str = "NETVSC_TEST_ECHO";
pub const ADDRESS: &str = "192.0.2.2:5005";
/// The most bytes of a stream in one frame: by an MTU of 1500, and of a large send.
pub const SEGMENT: u64 = 1460;
pub const LARGE: u64 = 65_535;
/// How long anything may take.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// A running `netvsc run --host uio`. It is killed if the test dies before it.
pub struct Run {
    pub child: Child,
    lines: Receiver<String>,
}

impl Run {
    pub fn start(fake: &Fake, more: &[&str]) -> Self {
        let root = fake.guest.root().to_str().expect("a plain path");
        let mut child = Command::new(PROGRAM)
            .args(["run", "--json", "--host", "uio", "--sysfs-root", root, "--tap", "nvt0"])
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
        Self { child, lines }
    }

    pub fn wait_for(&mut self, name: &str) -> Value {
        let end = Instant::now() + PATIENCE;
        let mut seen = String::new();
        loop {
            match self.lines.recv_timeout(end.saturating_duration_since(Instant::now())) {
                Ok(line) => {
                    let event: Value = serde_json::from_str(&line).expect("JSON");
                    if event["event"] == name {
                        return event;
                    }
                    assert_ne!(event["event"], "failed", "before {name}: {event}");
                    seen.push_str(&format!("\n{event}"));
                }
                Err(RecvTimeoutError::Timeout) => panic!("no {name} within {PATIENCE:?}:{seen}"),
                Err(RecvTimeoutError::Disconnected) => panic!("it ended before {name}:{seen}"),
            }
        }
    }

    pub fn end(&mut self) -> ExitStatus {
        self.child.wait().expect("a child")
    }

    pub fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).expect("it is running");
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A NIC with a host, and behind its switch an echo server in a namespace of its own.
pub struct Far {
    _namespace: Neighbour,
    server: Child,
}

impl Far {
    pub fn new(config: NicServiceConfig, mtu: u32) -> (Self, Fake) {
        Self::with(config, mtu, Habits::default())
    }

    pub fn with(config: NicServiceConfig, mtu: u32, habits: Habits) -> (Self, Fake) {
        let tap = Tap::open(&"far0".parse().expect("a name")).expect("a TAP");
        let fake = Fake::new(config, tap, habits);
        let namespace = Neighbour::new();
        let pid = namespace.pid();
        ip(&format!("link set far0 mtu {mtu} netns {pid}"));
        let inside = |program: &str| {
            let mut command = Command::new("nsenter");
            command.arg(format!("--net=/proc/{pid}/ns/net")).arg("--").arg(program);
            command
        };
        for arguments in ["addr add 192.0.2.2/24 dev far0", "link set far0 up"] {
            let done = inside("ip").args(arguments.split(' ')).status().expect("ip runs");
            assert!(done.success(), "{arguments}");
        }
        let this = std::env::current_exe().expect("a test knows its own program");
        let mut server = inside(this.to_str().expect("a plain path"))
            .args(["--exact", "echo_server", "--nocapture"])
            .env(SERVER, "1")
            .stdout(Stdio::piped())
            .spawn()
            .expect("nsenter runs");
        let mut output = BufReader::new(server.stdout.take().expect("a pipe"));
        let mut line = String::new();
        while !line.contains("listening") {
            line.clear();
            assert_ne!(output.read_line(&mut line).expect("text"), 0, "it ended at once");
        }
        thread::spawn(move || std::io::copy(&mut output, &mut std::io::sink()));
        (Self { _namespace: namespace, server }, fake)
    }
}

impl Drop for Far {
    fn drop(&mut self) {
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}

/// Sends so many bytes to the server and gets them back.
pub fn converse(bytes: usize) {
    let address = ADDRESS.parse().expect("an address");
    let mut stream = TcpStream::connect_timeout(&address, PATIENCE).expect("it answers");
    stream.set_read_timeout(Some(PATIENCE)).expect("a limit");
    let byte = |at: usize| (at.wrapping_mul(2_654_435_761) >> 13) as u8;
    let data: Vec<u8> = (0..bytes).map(byte).collect();
    let mut writer = stream.try_clone().expect("a second handle");
    let sender = thread::spawn(move || {
        writer.write_all(&data).expect("it takes everything");
        writer.shutdown(Shutdown::Write).expect("it is alive");
        data
    });
    let mut back = Vec::new();
    stream.read_to_end(&mut back).expect("everything comes back");
    assert!(sender.join().expect("sent") == back, "{} of {bytes} bytes", back.len());
}

/// The fewest frames that so many bytes of a stream take, by the most of it that one carries.
pub fn fewest(bytes: u64, most: u64) -> u64 {
    bytes.div_ceil(most)
}

pub fn settle() {
    // What the host says of a VF may come before the NIC is ready.
    until("the interface is up", || exists("nvt0") && link().contains(",UP"));
    ip("addr add 192.0.2.1/24 dev nvt0");
}

/// The state of the interface, as `ip` prints it.
pub fn link() -> String {
    ip("-o link show nvt0")
}

pub fn until(what: &str, so: impl Fn() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !so() {
        assert!(Instant::now() < end, "never: {what}");
        thread::sleep(Duration::from_millis(5));
    }
}

// What hosts and kernels are like, but for what the tests have otherwise.
pub const MONITORED: Habits = Habits { monitor: true, old_kernel: false };
pub const OLD_KERNEL: Habits = Habits { monitor: false, old_kernel: true };
pub const OLD_KERNEL_MONITORED: Habits = Habits { monitor: true, old_kernel: true };

/// The device was used as its habits demand.
pub fn assert_heeded(account: &Account, habits: Habits) {
    assert!(account.unmasked > 0, "interrupts were let through by the device's file");
    assert_eq!(account.bits > 0, habits.monitor, "{} monitor bits", account.bits);
    assert_eq!(account.flags > 0, habits.monitor, "{} event flags", account.flags);
    assert_eq!(account.masked > 0, habits.old_kernel, "{} masks", account.masked);
}

/// What a verb says of the guest.
pub fn told(fake: &Fake, verb: &[&str]) -> String {
    let root = fake.guest.root().to_str().expect("a plain path");
    let output = Command::new(PROGRAM).args(verb).args(["--sysfs-root", root]).output();
    let output = output.expect("the program runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("text")
}

/// The value of a series in what `netvsc metrics` says of the guest.
pub fn metric(fake: &Fake, series: &str) -> Option<f64> {
    let text = told(fake, &["metrics"]);
    let line = text.lines().find_map(|line| line.strip_prefix(series));
    line.map(|value| value.trim().parse().expect("a number"))
}

/// Datagrams come back one by one; each of them once, or the second would be taken for the next.
pub fn each_comes_back_once() {
    let socket = UdpSocket::bind("192.0.2.1:0").expect("the address is there");
    socket.connect(ADDRESS).expect("a route");
    socket.set_read_timeout(Some(PATIENCE)).expect("a limit");
    for number in 0..100_u32 {
        let (sent, mut back) = (number.to_be_bytes(), [0; 8]);
        assert_eq!(socket.send(&sent).expect("it is sent"), 4);
        let len = socket.recv(&mut back).expect("it comes back");
        assert_eq!(back[..len], sent, "datagram {number}");
    }
}

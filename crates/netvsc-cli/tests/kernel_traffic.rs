//! The kernel's own TCP/IP across NIC, VF and virtual switch, while VFs come and go.
//!
//! Two TAP interfaces in two network namespaces; between them nothing but `netvsc run`.

#[path = "../../netvsc-linux/tests/namespace/mod.rs"]
mod namespace;

mod others;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::{Duration, Instant};

use namespace::{Neighbour, exists, in_namespace, ip};
use others::Ends;
use rustix::net::sockopt::Timeout;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketType, ipproto};
use serde_json::Value;
use sha2::{Digest, Sha256};

const PROGRAM: &str = env!("CARGO_BIN_EXE_netvsc");

/// What a helper process of this test is to do; see [`helper`].
const ROLE: &str = "NETVSC_TEST_ROLE";

/// Bytes from the guest to the peer: at least 100 MiB, and not a round number.
const OUT: usize = (100 << 20) + 4_321;
/// Bytes in the other direction at the same time.
const BACK: usize = (16 << 20) + 99;

/// After this long without a byte the transfer is dead.
const SILENCE: Duration = Duration::from_secs(30);

/// Bytes that look random and depend on nothing but `seed` and their place.
struct Noise(u64);

impl Noise {
    fn fill(&mut self, out: &mut [u8]) {
        for chunk in out.chunks_mut(8) {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            let bytes = self.0.to_le_bytes();
            let len = chunk.len();
            chunk.copy_from_slice(&bytes[..len]);
        }
    }
}

fn hex(digest: &[u8]) -> String {
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn send(stream: &mut TcpStream, seed: u64, mut len: usize) -> String {
    let (mut noise, mut digest) = (Noise(seed), Sha256::new());
    let mut buffer = vec![0; 64 << 10];
    while len > 0 {
        let take = len.min(buffer.len());
        noise.fill(&mut buffer[..take]);
        digest.update(&buffer[..take]);
        stream.write_all(&buffer[..take]).expect("the other side takes it");
        len -= take;
    }
    stream.shutdown(Shutdown::Write).expect("the connection is alive");
    hex(&digest.finalize())
}

fn receive(stream: &mut TcpStream) -> (String, usize) {
    let (mut digest, mut total) = (Sha256::new(), 0);
    let mut buffer = vec![0; 64 << 10];
    loop {
        let len = stream.read(&mut buffer).expect("data within the time limit");
        if len == 0 {
            return (hex(&digest.finalize()), total);
        }
        digest.update(&buffer[..len]);
        total += len;
    }
}

/// Sends and receives at the same time, then prints both digests.
fn exchange(stream: TcpStream, seed: u64, len: usize) {
    stream.set_read_timeout(Some(SILENCE)).expect("a limit");
    stream.set_write_timeout(Some(SILENCE)).expect("a limit");
    let mut outward = stream.try_clone().expect("a second handle");
    let sender = thread::spawn(move || send(&mut outward, seed, len));
    let (received, total) = receive(&mut { stream });
    let sent = sender.join().expect("sending works");
    println!("result: sent {sent} received {received} bytes {total}");
}

/// Sends ICMP echo requests one after the other and waits for the reply to each.
fn echo(to: SocketAddr) {
    const COUNT: u16 = 10;
    let socket = rustix::net::socket(AddressFamily::INET, SocketType::RAW, Some(ipproto::ICMP))
        .expect("root may open a raw socket");
    let limit = Some(Duration::from_secs(1));
    rustix::net::sockopt::set_socket_timeout(&socket, Timeout::Recv, limit).expect("a limit");
    let id = std::process::id().to_be_bytes();
    for sequence in 0..COUNT {
        let [high, low] = sequence.to_be_bytes();
        let mut request = vec![8, 0, 0, 0, id[2], id[3], high, low];
        request.extend(0..56);
        let sum = checksum(&request).to_be_bytes();
        request[2..4].copy_from_slice(&sum);
        let mut expected = request.clone();
        expected[0] = 0;
        // The first may meet a question for an address that is not answered yet; so each has a few tries.
        let answered = (0..5).any(|_| {
            let sent = rustix::net::sendto(&socket, &request, SendFlags::empty(), &to);
            assert_eq!(sent, Ok(request.len()));
            await_reply(&socket, &expected)
        });
        assert!(answered, "no reply to echo {sequence} within 5 s");
        thread::sleep(Duration::from_millis(100));
    }
}

/// Whether the reply comes before the socket's time limit.
fn await_reply(socket: &impl std::os::fd::AsFd, expected: &[u8]) -> bool {
    let mut buffer = [0; 2048];
    while let Ok((len, _)) = rustix::net::recv(socket, &mut buffer[..], RecvFlags::empty()) {
        // A raw socket shows the IP header, which has 20 bytes here; the checksum differs with the type.
        if len == 20 + expected.len()
            && buffer[20..22] == expected[..2]
            && buffer[24..len] == expected[4..]
        {
            return true;
        }
    }
    false
}

/// The Internet checksum (RFC 1071) over an even number of bytes.
fn checksum(bytes: &[u8]) -> u16 {
    let mut sum: u32 =
        bytes.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).expect("folded")
}

/// Not a test by itself: what the test's helper processes run, each in its namespace.
#[test]
fn helper() {
    let Ok(role) = std::env::var(ROLE) else { return };
    let (role, address) = role.split_once(' ').expect("a role and an address");
    let address: SocketAddr = address.parse().expect("an address");
    match role {
        "listen" => {
            let listener = TcpListener::bind(address).expect("the address is there");
            println!("listening");
            let (stream, _) = listener.accept().expect("someone calls");
            exchange(stream, 0x5eed_0002, BACK);
        }
        "call" => {
            let stream = TcpStream::connect_timeout(&address, SILENCE).expect("someone answers");
            exchange(stream, 0x5eed_0001, OUT);
        }
        "ping" => echo(address),
        other => panic!("no such role: {other}"),
    }
}

/// `program`, to be started in `namespace`.
fn inside(namespace: &Neighbour, program: &str) -> Command {
    let mut command = Command::new("nsenter");
    command.arg(format!("--net=/proc/{}/ns/net", namespace.pid())).arg("--").arg(program);
    command
}

fn start_helper(namespace: &Neighbour, role: &str) -> Child {
    let this = std::env::current_exe().expect("a test knows its own program");
    inside(namespace, this.to_str().expect("a plain path"))
        .args(["--exact", "helper", "--nocapture"])
        .env(ROLE, role)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("nsenter runs")
}

/// What a helper found out: the digests of what it sent and received, and how much that was.
fn result_of(output: &Output) -> (String, String, usize) {
    let text = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "a helper failed:\n{text}{errors}");
    let line = text.lines().find_map(|line| line.split_once("result: ")).expect("a result").1;
    let words: Vec<_> = line.split(' ').collect();
    let bytes = words[5].parse().expect("a number");
    (words[1].to_owned(), words[3].to_owned(), bytes)
}

/// The running program; killed if the test dies before it.
struct Run {
    child: Child,
    lines: Receiver<String>,
    errors: thread::JoinHandle<String>,
    seen: Vec<String>,
}

impl Run {
    fn start(arguments: &[&str]) -> Self {
        Self::start_as("run", arguments)
    }

    fn start_as(verb: &str, arguments: &[&str]) -> Self {
        let mut child = Command::new(PROGRAM)
            .arg(verb)
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the program runs");
        let stdout = BufReader::new(child.stdout.take().expect("a pipe"));
        let mut stderr = child.stderr.take().expect("a pipe");
        let (sender, lines) = channel();
        thread::spawn(move || {
            for line in stdout.lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        let errors = thread::spawn(move || {
            let mut text = String::new();
            let _ = stderr.read_to_string(&mut text);
            text
        });
        Self { child, lines, errors, seen: Vec::new() }
    }

    /// Waits until `ready`; fails if the program ends before.
    fn wait_until(&mut self, what: &str, ready: impl Fn() -> bool) {
        let end = Instant::now() + Duration::from_secs(20);
        while !ready() {
            assert!(Instant::now() < end, "{what} did not happen within 20 s");
            if let Some(status) = self.child.try_wait().expect("a child") {
                panic!("the program ended ({status}) before: {what}");
            }
            thread::sleep(Duration::from_millis(10));
        }
    }

    /// Sends `signal`, waits for the end and returns every line as JSON.
    fn stop(mut self, signal: rustix::process::Signal) -> Vec<Value> {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, signal).expect("it is running");
        let end = Instant::now() + Duration::from_secs(20);
        while Instant::now() < end {
            // Lines are read all the time, so that a full pipe is never what it waits for.
            self.seen.extend(self.lines.try_iter());
            if let Some(status) = self.child.try_wait().expect("a child") {
                self.seen.extend(self.lines.iter());
                let errors = self.errors.join().expect("standard error is text");
                let tail = self.seen.iter().rev().take(5).rev().cloned().collect::<Vec<_>>();
                assert!(status.success(), "{status}: {errors}\n{}", tail.join("\n"));
                let json = |line: &String| serde_json::from_str(line).expect("each line is JSON");
                return self.seen.iter().map(json).collect();
            }
            thread::sleep(Duration::from_millis(10));
        }
        let _ = self.child.kill();
        panic!("the program did not end within 20 s after {signal:?}");
    }
}

/// Puts the interface `name` into `namespace` with `address`, and brings it up.
fn settle(namespace: &Neighbour, name: &str, address: &str) {
    let pid = namespace.pid();
    ip(&format!("link set {name} netns {pid}"));
    for arguments in [
        "link set lo up".to_owned(),
        format!("addr add {address}/24 dev {name}"),
        format!("link set {name} up"),
    ] {
        let mut command = inside(namespace, "ip");
        let output = command.args(arguments.split(' ')).output().expect("ip runs");
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "ip {arguments}: {errors}");
    }
}

/// ICMP echoes from `from` to `to`, each answered.
fn ping(from: &Neighbour, to: &str) {
    let helper = start_helper(from, &format!("ping {to}:0"));
    let output = helper.wait_with_output().expect("the helper ends");
    let (text, errors) =
        (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "ping {to}:\n{text}{errors}");
}

/// Waits for a line that starts the helper's readiness, then gives the rest of its output back at the end.
fn wait_for_listener(child: &mut Child) -> BufReader<std::process::ChildStdout> {
    let mut output = BufReader::new(child.stdout.take().expect("a pipe"));
    let mut line = String::new();
    while !line.contains("listening") {
        line.clear();
        assert_ne!(output.read_line(&mut line).expect("text"), 0, "the listener ended at once");
    }
    output
}

#[test]
fn the_kernels_tcp_survives_vfs_that_come_and_go() {
    in_namespace("the_kernels_tcp_survives_vfs_that_come_and_go", || {
        let (guest, peer) = (Neighbour::new(), Neighbour::new());
        let options = ["--tap", "nvt0", "--peer-tap", "nvt1", "--json", "--churn", "300ms"];
        let mut run = Run::start(&options);
        run.wait_until("both TAPs are there", || exists("nvt0") && exists("nvt1"));
        settle(&guest, "nvt0", "192.0.2.1");
        settle(&peer, "nvt1", "192.0.2.2");
        ping(&guest, "192.0.2.2");
        ping(&peer, "192.0.2.1");

        transfer(&guest, &peer);
        check_summary(&run.stop(rustix::process::Signal::INT));
        for namespace in [&guest, &peer] {
            let links = inside(namespace, "ip").arg("link").output().expect("ip runs");
            let text = String::from_utf8_lossy(&links.stdout);
            assert!(!text.contains("nvt"), "left behind: {text}");
        }
        assert!(!ip("link").contains("nvt"), "left behind");
    });
}

/// Sends both ways at the same time, and compares the digests.
fn transfer(guest: &Neighbour, peer: &Neighbour) {
    let mut listener = start_helper(peer, "listen 192.0.2.2:5001");
    let mut rest = wait_for_listener(&mut listener);
    let caller = start_helper(guest, "call 192.0.2.2:5001");
    let caller = caller.wait_with_output().expect("the caller ends");
    let (sent, received, bytes) = result_of(&caller);
    let mut text = Vec::new();
    rest.read_to_end(&mut text).expect("text");
    let mut listened = listener.wait_with_output().expect("the listener ends");
    listened.stdout = text;
    let (sent_back, arrived, arrived_bytes) = result_of(&listened);
    assert_eq!((arrived_bytes, bytes), (OUT, BACK));
    assert_eq!((sent, sent_back), (arrived, received), "digests");
}

/// How often a process has given up its processor because it waited.
fn waits(run: &Run) -> u64 {
    let status =
        std::fs::read_to_string(format!("/proc/{}/status", run.child.id())).expect("it runs");
    let line = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
    line.expect("the kernel counts them").trim().parse().expect("a number")
}

/// The kernel's TCP between a host and a guest in two processes.
fn over_two_processes(mtu: u32) {
    // No chatter of IPv6, so that it can be seen who wakes up for nothing.
    std::fs::write("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1").expect("root may");
    let (guest, peer) = (Neighbour::new(), Neighbour::new());
    for namespace in [&guest, &peer] {
        let set = ["-c", "echo 1 >/proc/sys/net/ipv6/conf/default/disable_ipv6"];
        assert!(inside(namespace, "sh").args(set).status().expect("sh runs").success());
    }
    let path = std::env::temp_dir().join(format!("netvsc-tap-{mtu}-{}.sock", std::process::id()));
    let socket = path.to_str().expect("a plain path");
    let options = ["--listen", socket, "--peer-tap", "nvt1", "--json"];
    let mut host = Run::start_as("host", &options);
    host.wait_until("the host is there", || exists("nvt1") && path.exists());
    let at = format!("unix:{socket}");
    let mtu = mtu.to_string();
    let mut run = Run::start(&["--host", &at, "--tap", "nvt0", "--json", "--mtu", &mtu]);
    run.wait_until("the NIC is ready", || {
        exists("nvt0")
            && ip("link show nvt0").contains(&format!("mtu {mtu} "))
            && ip("link show nvt0").contains("LOWER_UP")
    });
    // The same address each time, so that nobody remembers another.
    ip(&format!("link set nvt1 address 02:00:00:00:00:02 mtu {mtu}"));
    settle(&guest, "nvt0", "192.0.2.1");
    settle(&peer, "nvt1", "192.0.2.2");
    ping(&guest, "192.0.2.2");
    transfer(&guest, &peer);

    // Nobody has anything to do now.
    thread::sleep(Duration::from_secs(2));
    let before = (waits(&run), waits(&host));
    thread::sleep(Duration::from_secs(3));
    let after = (waits(&run), waits(&host));
    let woken = (after.0 - before.0, after.1 - before.1);
    assert!(woken.0 <= 2 && woken.1 <= 2, "woken for nothing: {woken:?} times in 3 s");

    // The host dies; the interface stays, and the next host carries on.
    let _ = host.child.kill();
    let _ = host.child.wait();
    let mut host = Run::start_as("host", &options);
    host.wait_until("the next host is there", || exists("nvt1"));
    // The same address each time, so that nobody remembers another.
    ip(&format!("link set nvt1 address 02:00:00:00:00:02 mtu {mtu}"));
    settle(&peer, "nvt1", "192.0.2.2");
    ping(&guest, "192.0.2.2");
    transfer(&guest, &peer);

    let events = run.stop(rustix::process::Signal::TERM);
    let summary = events.last().expect("at least the summary");
    let count = |key: &str| summary[key].as_u64().unwrap_or_else(|| panic!("{key}: {summary}"));
    assert_eq!(count("frames_lost_orderly"), 0, "{summary}");
    let on_vf = count("frames_vf");
    // The registers of a simulated VF tell of frames of 2 KiB at most.
    assert_eq!(on_vf > 0, mtu == "1500", "{summary}");
    let left = events.iter().filter(|event| event["event"] == "host_left").collect::<Vec<_>>();
    assert_eq!((left.len(), &left[0]["pages_kept"]), (1, &0.into()), "{left:?}");
    host.stop(rustix::process::Signal::TERM);
    assert!(!path.exists() && !ip("link").contains("nvt"), "left behind");
}

#[test]
fn the_kernels_tcp_goes_over_two_processes_of_which_one_dies() {
    in_namespace("the_kernels_tcp_goes_over_two_processes_of_which_one_dies", || {
        over_two_processes(1500);
    });
}

#[test]
fn large_frames_of_the_kernel_go_over_two_processes() {
    in_namespace("large_frames_of_the_kernel_go_over_two_processes", || over_two_processes(9000));
}

#[test]
fn segments_of_the_peer_reach_a_guest_uncut() {
    in_namespace("segments_of_the_peer_reach_a_guest_uncut", || {
        let (guest, peer) = (Neighbour::new(), Neighbour::new());
        let path = std::env::temp_dir().join(format!("netvsc-uncut-{}.sock", std::process::id()));
        let socket = path.to_str().expect("a plain path");
        // With this seed its first NIC speaks version 6.1, the first one that coalesces.
        let options = ["--listen", socket, "--peer-tap", "nvt1", "--without-vfs", "--seed", "2"];
        let mut host = Run::start_as("host", &[&options[..], &["--json"]].concat());
        host.wait_until("the host is there", || exists("nvt1") && path.exists());
        let at = format!("unix:{socket}");
        let mut run = Run::start(&["--host", &at, "--tap", "nvt0", "--json"]);
        run.wait_until("the NIC is ready", || {
            exists("nvt0") && ip("link show nvt0").contains("LOWER_UP")
        });
        settle(&guest, "nvt0", "192.0.2.1");
        settle(&peer, "nvt1", "192.0.2.2");
        ping(&guest, "192.0.2.2");
        transfer(&guest, &peer);
        let events = run.stop(rustix::process::Signal::TERM);
        host.stop(rustix::process::Signal::TERM);
        let summary = events.last().expect("at least the summary");
        // Segments are counted as their frames on both sides, whoever cuts them.
        for what in ["frames_lost_orderly", "frames_duplicated"] {
            assert_eq!(summary[what], 0, "{what}: {summary}");
        }
        let queue = &summary["counters"][0]["queues"][0];
        let frames = queue["rx_frames"].as_u64().expect("a count");
        // Cut they would be twice as many at least.
        assert!(frames < BACK as u64 / 1460 / 2, "{frames} frames came: {summary}");
    });
}

#[test]
fn what_the_wire_brings_before_a_guest_listens_is_not_lost() {
    in_namespace("what_the_wire_brings_before_a_guest_listens_is_not_lost", || {
        // IPv6 greets its neighbours on an interface that has just come up; the guests come and go meanwhile.
        let path = std::env::temp_dir().join(format!("netvsc-early-{}.sock", std::process::id()));
        let socket = path.to_str().expect("a plain path");
        let mut host = Run::start_as("host", &["--listen", socket, "--peer-tap", "nvt1", "--json"]);
        host.wait_until("the host is there", || exists("nvt1") && path.exists());
        for _ in 0..3 {
            let at = format!("unix:{socket}");
            let mut run = Run::start(&["--host", &at, "--tap", "nvt0", "--json"]);
            run.wait_until("the NIC is ready", || {
                exists("nvt0") && ip("link show nvt0").contains("LOWER_UP")
            });
            ip("link set nvt1 down");
            ip("link set nvt1 up");
            thread::sleep(Duration::from_millis(800));
            let events = run.stop(rustix::process::Signal::TERM);
            let summary = events.last().expect("at least the summary");
            assert_eq!(summary["frames_lost_orderly"], 0, "{summary}");
        }
        host.stop(rustix::process::Signal::TERM);
    });
}

fn check_summary(events: &[Value]) {
    let summary = events.last().expect("at least the summary");
    assert_eq!(summary["event"], "summary", "the last line is the summary");
    let count = |key: &str| summary[key].as_u64().unwrap_or_else(|| panic!("{key}: {summary}"));
    assert_eq!(count("frames_lost_orderly"), 0, "{summary}");
    assert!(count("switches_to_vf") >= 2, "VFs came several times: {summary}");
    assert!(count("switches_to_synthetic") >= 1, "VFs left: {summary}");
    assert!(count("frames_vf") > 0 && count("frames_synthetic") > 0, "both paths: {summary}");
    assert!(summary["pairs"].is_array() && summary["wall_seconds"].is_number(), "{summary}");
}

#[test]
fn it_ends_by_itself_after_its_duration_and_at_sigterm() {
    in_namespace("it_ends_by_itself_after_its_duration_and_at_sigterm", || {
        let options = ["run", "--tap", "nvt0", "--peer-tap", "nvt1", "--json", "--duration", "1s"];
        let output = Command::new(PROGRAM).args(options).output().expect("the program runs");
        let text = String::from_utf8_lossy(&output.stdout);
        let last = text.lines().last().expect("a summary");
        assert!(output.status.success() && last.contains("\"summary\""), "{text}");
        assert!(!ip("link").contains("nvt"), "left behind");

        let mut run = Run::start(&["--tap", "nvt0", "--json"]);
        run.wait_until("the TAP is there", || exists("nvt0"));
        run.stop(rustix::process::Signal::TERM);
        assert!(!ip("link").contains("nvt"), "left behind");
    });
}

/// What is for others comes out of `nvt0` while somebody wants it.
fn follows_what_is_wanted(mut run: Run) {
    run.wait_until("both ends are up", || {
        let up = |name| exists(name) && ip(&format!("link show {name}")).contains("LOWER_UP");
        up("nvt0") && up("nvt1")
    });
    Ends::open("nvt1", "nvt0").follow_what_is_wanted();
    let events = run.stop(rustix::process::Signal::TERM);
    let summary = events.last().expect("at least the summary");
    // What nobody wanted is not lost.
    assert_eq!(summary["frames_lost_orderly"], 0, "{summary}");
}

#[test]
fn the_nic_of_an_embedded_host_hears_what_its_interface_wants() {
    in_namespace("the_nic_of_an_embedded_host_hears_what_its_interface_wants", || {
        let options = ["--tap", "nvt0", "--peer-tap", "nvt1", "--json", "--churn", "200ms"];
        follows_what_is_wanted(Run::start(&options));
    });
}

#[test]
fn so_does_that_of_another_process() {
    in_namespace("so_does_that_of_another_process", || {
        let path = std::env::temp_dir().join(format!("netvsc-others-{}.sock", std::process::id()));
        let socket = path.to_str().expect("a plain path");
        let mut host = Run::start_as("host", &["--listen", socket, "--peer-tap", "nvt1", "--json"]);
        host.wait_until("the host is there", || exists("nvt1") && path.exists());
        let at = format!("unix:{socket}");
        follows_what_is_wanted(Run::start(&["--host", &at, "--tap", "nvt0", "--json"]));
        host.stop(rustix::process::Signal::TERM);
    });
}

#[test]
fn a_tap_that_was_there_gets_its_looks_back() {
    in_namespace("a_tap_that_was_there_gets_its_looks_back", || {
        ip("tuntap add mode tap name nvt0");
        ip("link set nvt0 address 02:00:00:00:00:01 mtu 1400");
        let mut run = Run::start(&["--tap", "nvt0", "--json"]);
        run.wait_until("someone holds the TAP", || ip("link show nvt0").contains("LOWER_UP"));
        run.stop(rustix::process::Signal::INT);
        let shown = ip("link show nvt0");
        assert!(
            shown.contains("02:00:00:00:00:01")
                && shown.contains("mtu 1400")
                && !shown.contains("UP"),
            "{shown}"
        );
    });
}

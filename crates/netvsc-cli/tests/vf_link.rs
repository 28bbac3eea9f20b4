//! The first NIC's VF is an interface of the kernel's: one end of a veth pair, whose other end the host joins to its switch. The
//! kernel's TCP goes over TAPs in two namespaces while the pair is tormented.

#[path = "../../netvsc-linux/tests/namespace/mod.rs"]
mod namespace;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use namespace::{Neighbour, exists, in_namespace, ip};
use netvsc::VfPort as _;
use netvsc_linux::vf::{PacketConfig, PacketPort, Reception};
use pcap_file::pcapng::blocks::interface_description::InterfaceDescriptionOption;
use pcap_file::pcapng::{Block, PcapNgReader};
use rustix::net::sockopt::Timeout;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketType, ipproto};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use sha2::{Digest, Sha256};

const PROGRAM: &str = env!("CARGO_BIN_EXE_netvsc");
/// What a process of this test is to do; see [`helper`].
const ROLE: &str = "NETVSC_TEST_ROLE";
/// After this long without a byte the transfer is dead.
const SILENCE: Duration = Duration::from_secs(20);
/// What a connection may be silent for at an orderly switch.
const STALL: Duration = Duration::from_millis(200);
const PORT: &str = "192.0.2.2:5001";

/// How often the interface is tormented.
fn torments() -> usize {
    if std::env::var_os("NETVSC_LONG").is_some() { 100 } else { 10 }
}

/// How many echoes a flood of them has.
fn echoes() -> u16 {
    if std::env::var_os("NETVSC_LONG").is_some() { 50_000 } else { 1000 }
}

/// Not a test by itself: what processes of these tests run, each in its namespace.
#[test]
fn helper() {
    let Ok(role) = std::env::var(ROLE) else { return };
    match role.split_once(' ') {
        // Until somebody creates the file.
        Some(("send", until)) => send(Path::new(until)),
        Some(("flood", count)) => flood(count.parse().expect("a number")),
        Some(("datagrams", to)) => datagrams(to.parse().expect("an address")),
        _ if role == "count" => count(),
        _ => receive(),
    }
}

fn send(until: &Path) {
    let address = PORT.parse().expect("an address");
    let mut stream = TcpStream::connect_timeout(&address, SILENCE).expect("someone answers");
    stream.set_write_timeout(Some(SILENCE)).expect("a limit");
    let (mut state, mut digest, mut sent) = (0x5eed_u64, Sha256::new(), 0_usize);
    let mut buffer = vec![0; 32 << 10];
    while !until.exists() {
        for chunk in buffer.chunks_mut(8) {
            state = state.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
            chunk.copy_from_slice(&state.to_le_bytes());
        }
        digest.update(&buffer);
        stream.write_all(&buffer).expect("the other side takes it");
        sent += buffer.len();
    }
    stream.shutdown(Shutdown::Write).expect("the connection is alive");
    let mut end = [0; 1];
    assert_eq!(stream.read(&mut end).expect("the other side ends"), 0);
    println!("result: {:x?} {sent} 0 0", digest.finalize().as_slice());
}

fn receive() {
    let listener = TcpListener::bind(PORT).expect("the address is there");
    println!("listening");
    let (mut stream, _) = listener.accept().expect("someone calls");
    stream.set_read_timeout(Some(SILENCE)).expect("a limit");
    let (mut digest, mut total) = (Sha256::new(), 0);
    let (mut last, mut longest, mut stalls) = (Instant::now(), Duration::ZERO, 0);
    let mut buffer = vec![0; 256 << 10];
    loop {
        let len = stream.read(&mut buffer).expect("data within the time limit");
        if len == 0 {
            break;
        }
        longest = longest.max(last.elapsed());
        stalls += usize::from(total > 0 && last.elapsed() > STALL);
        last = Instant::now();
        digest.update(&buffer[..len]);
        total += len;
    }
    let digest = digest.finalize();
    println!("result: {:x?} {total} {} {stalls}", digest.as_slice(), longest.as_millis());
}

/// Echo requests as fast as they are answered, as `ping -f` sends them: no more than a window of them is under way.
fn flood(count: u16) {
    const WINDOW: u16 = 32;
    let to: SocketAddr = "192.0.2.2:0".parse().expect("an address");
    let socket = rustix::net::socket(AddressFamily::INET, SocketType::RAW, Some(ipproto::ICMP))
        .expect("root may open a raw socket");
    let limit = Some(Duration::from_secs(1));
    rustix::net::sockopt::set_socket_timeout(&socket, Timeout::Recv, limit).expect("a limit");
    let id = std::process::id().to_be_bytes();
    let (mut sent, mut answered, mut buffer) = (0, 0, [0; 2048]);
    let mut seen = vec![false; usize::from(count)];
    let end = Instant::now() + SILENCE;
    while answered < count {
        assert!(Instant::now() < end, "{answered} of {sent} echoes answered in time");
        while sent < count && sent - answered < WINDOW {
            let [high, low] = sent.to_be_bytes();
            let mut request = vec![8, 0, 0, 0, id[2], id[3], high, low];
            request.extend([sent as u8; 1000]);
            let words = request.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1]));
            let sum: u32 = words.sum();
            let sum = (sum & 0xffff) + (sum >> 16);
            let sum = !(sum + (sum >> 16)) as u16;
            request[2..4].copy_from_slice(&sum.to_be_bytes());
            let done = rustix::net::sendto(&socket, &request, SendFlags::empty(), &to);
            assert_eq!(done, Ok(request.len()));
            sent += 1;
        }
        let Ok((len, _)) = rustix::net::recv(&socket, &mut buffer[..], RecvFlags::empty()) else {
            panic!("{} of {sent} echoes are not answered within a second", sent - answered);
        };
        let reply = &buffer[20..len];
        if reply[0] == 0 && reply[4..6] == id[2..4] {
            let number = u16::from_be_bytes([reply[6], reply[7]]);
            // The kernel may let one overtake another when whoever sends over a veth changes its processor.
            let seen = &mut seen[usize::from(number)];
            assert!(!std::mem::replace(seen, true), "echo {number} is answered twice");
            assert!(reply.len() == 1008 && reply[8..].iter().all(|byte| *byte == number as u8));
            answered += 1;
        }
    }
    println!("result: {answered}");
}

/// How many datagrams are counted.
const DATAGRAMS: u32 = 200;

/// Sends datagrams with numbers, each when the one before was answered.
fn datagrams(to: SocketAddr) {
    let socket = UdpSocket::bind("0.0.0.0:0").expect("a port");
    socket.set_broadcast(true).expect("root may");
    socket.set_read_timeout(Some(SILENCE)).expect("a limit");
    let mut answer = [0; 4];
    for number in 0..=DATAGRAMS {
        socket.send_to(&number.to_be_bytes(), to).expect("sent");
        loop {
            assert_eq!(socket.recv(&mut answer).expect("it is answered"), 4);
            if answer == number.to_be_bytes() {
                break;
            }
        }
    }
}

/// Answers datagrams, and counts them up to the last one.
fn count() {
    let socket = UdpSocket::bind("0.0.0.0:5002").expect("the port is free");
    socket.set_read_timeout(Some(SILENCE)).expect("a limit");
    println!("listening");
    let (mut number, mut count) = ([0; 4], 0);
    while number != DATAGRAMS.to_be_bytes() {
        let (_, from) = socket.recv_from(&mut number).expect("it comes");
        socket.send_to(&number, from).expect("answered");
        count += 1;
    }
    println!("result: {count}");
}

/// A process that is killed if the test dies before it.
struct Process {
    child: Child,
    said: Arc<Mutex<Vec<String>>>,
    reader: Option<thread::JoinHandle<()>>,
}

impl Process {
    fn start(command: &mut Command) -> Self {
        let mut child =
            command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().expect("it runs");
        let stdout = BufReader::new(child.stdout.take().expect("a pipe"));
        let said = Arc::new(Mutex::new(Vec::new()));
        let lines = said.clone();
        let reader = thread::spawn(move || {
            for line in stdout.lines().map_while(Result::ok) {
                lines.lock().expect("nobody panics").push(line);
            }
        });
        Self { child, said, reader: Some(reader) }
    }

    fn has_said(&self, what: &str) -> usize {
        let said = self.said.lock().expect("nobody panics");
        said.iter().filter(|line| line.contains(what)).count()
    }

    fn wait_for(&mut self, what: &str, times: usize) {
        let end = Instant::now() + SILENCE;
        while self.has_said(what) < times {
            let ended = self.child.try_wait().expect("a child");
            let said = self.said.lock().expect("nobody panics").join("\n");
            assert!(Instant::now() < end && ended.is_none(), "no `{what}`, {ended:?}:\n{said}");
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// Everything that it said, once it has ended well.
    fn end(mut self) -> Vec<String> {
        let status = self.child.wait().expect("a child");
        self.reader.take().expect("once").join().expect("text");
        let said = std::mem::take(&mut *self.said.lock().expect("nobody panics"));
        let tail = said.iter().rev().take(5).rev().cloned().collect::<Vec<_>>().join("\n");
        assert!(status.success(), "{status}:\n{tail}");
        said
    }

    fn stop(self) -> Vec<String> {
        kill_process(Pid::from_child(&self.child), Signal::TERM).expect("it is running");
        self.end()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Host and guest with a veth pair between them, and the kernel's TCP over TAPs in two namespaces.
struct Setup {
    run: Process,
    host: Process,
    guest: Neighbour,
    peer: Neighbour,
    stop: PathBuf,
}

fn make_pair(mtu: u32) {
    ip(&format!("link add vfg mtu {mtu} type veth peer name vfh mtu {mtu}"));
    ip("link set vfh up");
}

/// This program with nothing of root's but what a packet socket needs, and so without programs in the kernel, as before Linux 6.6.
const LIMITED: [&str; 4] = ["setpriv", "--bounding-set", "-all,+net_admin,+net_raw", PROGRAM];

fn limited() -> Command {
    let mut command = Command::new(LIMITED[0]);
    command.args(&LIMITED[1..]);
    command
}

fn inside(namespace: &Neighbour, program: &str) -> Command {
    let mut command = Command::new("nsenter");
    command.arg(format!("--net=/proc/{}/ns/net", namespace.pid())).arg("--").arg(program);
    command
}

fn settle(namespace: &Neighbour, name: &str, address: &str) {
    ip(&format!("link set {name} netns {}", namespace.pid()));
    let script = format!(
        "echo 1 >/proc/sys/net/ipv6/conf/all/disable_ipv6; ip link set lo up && \
         ip addr add {address}/24 dev {name} && ip link set {name} up"
    );
    assert!(inside(namespace, "sh").args(["-c", &script]).status().expect("sh runs").success());
}

fn helper_in(namespace: &Neighbour, role: &str) -> Process {
    let this = std::env::current_exe().expect("a test knows its own program");
    Process::start(
        inside(namespace, this.to_str().expect("a plain path"))
            .args(["--exact", "helper", "--nocapture"])
            .env(ROLE, role),
    )
}

/// Starts a host by this command, and its guest; `run`, `host`, and the file that ends a transfer.
fn start(
    host: Command,
    mtu: u32,
    name: &str,
    of_host: &[&str],
    of_run: &[&str],
) -> (Process, Process, PathBuf) {
    let (host, base) = start_host(host, name, of_host);
    let stop = base.with_extension("stop");
    let _ = std::fs::remove_file(&stop);
    (start_run(Command::new(PROGRAM), &base, mtu, of_run), host, stop)
}

/// Starts a host by this command; it, and how the paths of its test begin.
fn start_host(mut host: Command, name: &str, of_host: &[&str]) -> (Process, PathBuf) {
    let base = std::env::temp_dir().join(format!("netvsc-{name}-{}", std::process::id()));
    let socket = base.with_extension("sock");
    let socket = socket.to_str().expect("a plain path");
    let options = ["host", "--json", "--listen", socket, "--peer-tap", "nvt1", "--vf-peer", "vfh"];
    let mut host = Process::start(host.args(options).args(of_host));
    host.wait_for("listening", 1);
    (host, base)
}

/// Starts a guest of that host by this command, and waits until it is on its VF.
fn start_run(mut run: Command, base: &Path, mtu: u32, of_run: &[&str]) -> Process {
    let at = format!("unix:{}", base.with_extension("sock").display());
    let options = ["run", "--json", "--host", &at, "--tap", "nvt0", "--vf-link", "vfg"];
    let more = ["--mtu", &mtu.to_string()];
    let mut run = Process::start(run.args(options).args(more).args(of_run));
    run.wait_for(ON_VF, 1);
    run
}

impl Setup {
    fn new(name: &str, of_host: &[&str], of_run: &[&str]) -> Self {
        Self::with_mtu(1500, name, of_host, of_run)
    }

    fn with_mtu(mtu: u32, name: &str, of_host: &[&str], of_run: &[&str]) -> Self {
        std::fs::write("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1").expect("root may");
        make_pair(mtu);
        let (run, host, stop) = start(Command::new(PROGRAM), mtu, name, of_host, of_run);
        let (guest, peer) = (Neighbour::new(), Neighbour::new());
        ip(&format!("link set nvt1 mtu {mtu}"));
        settle(&guest, "nvt0", "192.0.2.1");
        settle(&peer, "nvt1", "192.0.2.2");
        Self { run, host, guest, peer, stop }
    }

    /// Echoes from the guest to its peer, each of which is answered.
    fn flood(&self, count: u16) {
        let said = helper_in(&self.guest, &format!("flood {count}")).end();
        assert!(said.iter().any(|line| line.ends_with(&format!("result: {count}"))), "{said:?}");
    }

    /// Sends while `meanwhile` goes on; the bytes that arrived, whole, and the longest silence.
    fn transfer(&mut self, meanwhile: impl FnOnce(&mut Self)) -> (u64, Duration) {
        let (bytes, silence, _) = self.transfer_with_stalls(meanwhile);
        (bytes, silence)
    }

    /// The same, and how many silences were longer than [`STALL`].
    fn transfer_with_stalls(&mut self, meanwhile: impl FnOnce(&mut Self)) -> (u64, Duration, u64) {
        let _ = std::fs::remove_file(&self.stop);
        let mut listener = helper_in(&self.peer, "receive");
        listener.wait_for("listening", 1);
        let sender = helper_in(&self.guest, &format!("send {}", self.stop.display()));
        meanwhile(self);
        std::fs::write(&self.stop, "").expect("a file");
        let result = |said: Vec<String>| {
            let line = said.iter().find_map(|line| line.split_once("result: "));
            line.expect("a result").1.to_owned()
        };
        let (sent, received) = (result(sender.end()), result(listener.end()));
        let _ = std::fs::remove_file(&self.stop);
        let (sent, _) = sent.rsplit_once(' ').expect("words");
        let (sent, _) = sent.rsplit_once(' ').expect("words");
        let (received, stalls) = received.rsplit_once(' ').expect("words");
        let (whole, silence) = received.rsplit_once(' ').expect("words");
        assert_eq!(sent, whole, "digest and length");
        let bytes = whole.rsplit_once(' ').expect("words").1.parse().expect("a number");
        let silence = Duration::from_millis(silence.parse().expect("a number"));
        (bytes, silence, stalls.parse().expect("a number"))
    }

    /// Ends both; the guest's summary.
    fn finish(self) -> Value {
        let said = self.run.stop();
        self.host.stop();
        assert!(!exists("nvt0") && !exists("nvt1"), "left behind");
        serde_json::from_str(said.last().expect("a line")).expect("JSON")
    }
}

/// What the guest says when its first NIC is on the VF.
const ON_VF: &str = r#""event":"path","nic":0,"path":"vf""#;
const ON_SYNTHETIC: &str = r#""event":"path","nic":0,"path":"synthetic""#;

/// Bytes of TCP's payload that arrive at an interface while something goes on.
struct Capture {
    stop: Arc<AtomicBool>,
    thread: thread::JoinHandle<u64>,
}

impl Capture {
    fn on(name: &str) -> Self {
        let config = PacketConfig { reception: Reception::Queue, ..PacketConfig::default() };
        let mut port = PacketPort::open(name, config).expect("an interface");
        let stop = Arc::new(AtomicBool::new(false));
        let asked = stop.clone();
        let thread = thread::spawn(move || {
            let mut bytes = 0;
            loop {
                let last = asked.load(Ordering::Relaxed);
                port.receive(&mut |frame| bytes += payload(frame));
                if last {
                    assert_eq!(port.counters().dropped, 0, "the capture is whole");
                    return bytes;
                }
                thread::sleep(Duration::from_micros(100));
            }
        });
        Self { stop, thread }
    }

    fn end(self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().expect("the capture works")
    }
}

/// Bytes of TCP's payload that a capture of the run has by its interfaces, each of which is a path and a direction.
fn captured(file: &Path) -> BTreeMap<String, u64> {
    let mut reader = PcapNgReader::new(File::open(file).expect("a file")).expect("pcapng");
    let (mut names, mut bytes) = (Vec::new(), BTreeMap::new());
    while let Some(block) = reader.next_block() {
        match block.expect("a sound block") {
            Block::InterfaceDescription(interface) => {
                let name = interface.options.iter().find_map(|option| match option {
                    InterfaceDescriptionOption::IfName(name) => Some(name.to_string()),
                    _ => None,
                });
                names.push(name.expect("every interface has a name"));
            }
            Block::EnhancedPacket(packet) => {
                let name = names[packet.interface_id as usize].clone();
                *bytes.entry(name).or_default() += payload(&packet.data);
            }
            other => panic!("{other:?}"),
        }
    }
    bytes
}

#[test]
fn frames_go_over_the_interface_while_it_is_the_vf_and_only_then() {
    in_namespace("frames_go_over_the_interface_while_it_is_the_vf_and_only_then", || {
        let file = std::env::temp_dir().join(format!("netvsc-paths-{}", std::process::id()));
        let name = file.to_str().expect("a plain path");
        let mut setup = Setup::new("vf-capture", &[], &["--pcap", name]);
        let capture = Capture::on("vfh");
        let (over_vf, _) = setup.transfer(|_| thread::sleep(Duration::from_millis(300)));
        let seen = capture.end();
        assert!(over_vf > 1 << 20 && seen >= over_vf, "{seen} of {over_vf} bytes over the VF");
        setup.flood(echoes());

        ip("link set vfg down");
        setup.run.wait_for(ON_SYNTHETIC, 1);
        let capture = Capture::on("vfh");
        let (bytes, _) = setup.transfer(|_| thread::sleep(Duration::from_millis(300)));
        setup.flood(echoes());
        let seen = capture.end();
        assert!(bytes > 1 << 20 && seen == 0, "{seen} of {bytes} bytes over the VF");

        ip("link set vfg up");
        setup.run.wait_for(ON_VF, 2);
        let capture = Capture::on("vfh");
        setup.transfer(|_| thread::sleep(Duration::from_millis(100)));
        assert!(capture.end() > 0);
        let summary = setup.finish();
        for path in ["frames_vf", "frames_synthetic"] {
            assert!(summary[path].as_u64() > Some(0), "{summary}");
        }
        assert_eq!(summary["frames_lost_orderly"], 0, "{summary}");
        // The run's own capture knows the synthetic path, too.
        let by_path = captured(&file);
        let _ = std::fs::remove_file(&file);
        let out = |path: &str| by_path.get(&format!("nic0-{path}-out")).copied().unwrap_or(0);
        assert!(out("vf") >= over_vf && out("synthetic") >= bytes, "{by_path:?}");
        // What is sent again is little.
        assert!(out("synthetic") < bytes + bytes / 4, "{bytes} bytes sent: {by_path:?}");
    });
}

/// Bytes of payload of a frame to the receiver of a transfer.
fn payload(frame: &[u8]) -> u64 {
    if frame.get(23) != Some(&6) || frame.get(36..38) != Some(&[0x13, 0x89]) {
        return 0;
    }
    let headers = 34 + usize::from(frame[46] >> 4) * 4;
    let len = usize::from(u16::from_be_bytes([frame[16], frame[17]])) + 14;
    (len - headers) as u64
}

#[test]
fn nothing_is_lost_when_the_host_asks_for_the_vf() {
    in_namespace("nothing_is_lost_when_the_host_asks_for_the_vf", || {
        // The first two of three removals are orderly.
        let mut setup = Setup::new("vf-eject", &["--churn", "400ms"], &[]);
        let times = if torments() > 10 { 100 } else { 3 };
        let (_, silence, stalls) = setup.transfer_with_stalls(|setup| {
            for time in 2..=times {
                setup.run.wait_for(ON_VF, time);
            }
        });
        let summary = setup.finish();
        let [ejects, surprises] =
            ["ejects", "surprises"].map(|what| summary[what].as_u64().expect("a number"));
        eprintln!("{ejects} ejects, {surprises} surprises, {stalls} stalls, longest {silence:?}");
        assert!(ejects >= times as u64 / 2, "{summary}");
        // One in a hundred orderly switches may; and a machine that is busy with other things once.
        assert!(stalls <= surprises + ejects / 100 + 1, "{stalls} stalls: {summary}");
        assert_eq!(summary["frames_lost_orderly"], 0, "{summary}");
    });
}

#[test]
fn tcp_survives_whatever_happens_to_the_interface() {
    in_namespace("tcp_survives_whatever_happens_to_the_interface", || {
        tormented("vf-torment", 1500, "packet");
    });
}

#[test]
fn tcp_survives_it_past_the_kernels_stack_too() {
    in_namespace("tcp_survives_it_past_the_kernels_stack_too", || {
        tormented("vf-torment-xdp", 1500, "xdp");
    });
}

#[test]
fn tcp_survives_it_with_large_frames() {
    in_namespace("tcp_survives_it_with_large_frames", || {
        tormented("vf-torment-large", 9000, "xdp");
    });
}

#[test]
fn af_xdp_is_used_where_it_needs_no_copies_or_where_it_is_asked_for() {
    in_namespace("af_xdp_is_used_where_it_needs_no_copies_or_where_it_is_asked_for", || {
        // A veth reaches nobody's memory.
        let mut setup = Setup::new("vf-auto", &[], &[]);
        assert_eq!(setup.run.has_said("AF_PACKET, no AF_XDP: could not do without copies"), 1);
        setup.transfer(|_| thread::sleep(Duration::from_millis(50)));
        setup.finish();
        ip("link del vfg");
        let mut setup = Setup::new("vf-xdp", &[], &["--vf-driver", "xdp"]);
        assert_eq!(setup.run.has_said("AF_XDP, native, copied, 1 queues in, 1 out"), 1);
        assert!(ip("link show vfg").contains("xdp"));
        let (bytes, _) = setup.transfer(|_| thread::sleep(Duration::from_millis(300)));
        let summary = setup.finish();
        assert!(bytes > 1 << 20 && summary["frames_vf"].as_u64() > Some(1000), "{summary}");
        assert_eq!(summary["frames_lost_orderly"], 0, "{summary}");
        assert!(!ip("link show vfg").contains("xdp"), "left behind");
    });
}

#[test]
fn af_xdp_names_the_capability_that_it_lacks() {
    in_namespace("af_xdp_names_the_capability_that_it_lacks", || {
        make_pair(1500);
        let (host, base) = start_host(Command::new(PROGRAM), "vf-less", &[]);
        let run = start_run(limited(), &base, 1500, &["--vf-driver", "xdp"]);
        let said = run.has_said("AF_PACKET, no AF_XDP: not allowed to attach a program");
        assert_eq!((said, run.has_said("CAP_NET_RAW, CAP_NET_ADMIN and CAP_BPF")), (1, 1));
        run.stop();
        host.stop();
    });
}

#[test]
fn each_datagram_arrives_once_where_tap_and_vf_are_in_one_namespace() {
    in_namespace("each_datagram_arrives_once_where_tap_and_vf_are_in_one_namespace", || {
        in_one_namespace("packet", false);
        in_one_namespace("xdp", false);
    });
}

#[test]
fn each_datagram_arrives_once_without_programs_in_the_kernel_too() {
    in_namespace("each_datagram_arrives_once_without_programs_in_the_kernel_too", || {
        // Also where the looser form of the filter outweighs the stricter one, since the interface has no address.
        for all in ["0", "2"] {
            std::fs::write("/proc/sys/net/ipv4/conf/all/rp_filter", all).expect("root may");
            in_one_namespace("packet", true);
            assert_eq!(of_ip("ipv4", "all", "rp_filter"), all, "it is everybody's");
        }
    });
}

fn in_one_namespace(driver: &str, less: bool) {
    std::fs::write("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1").expect("root may");
    let filter = |name: &str| of_ip("ipv4", name, "rp_filter");
    let (peer, name) = (Neighbour::new(), format!("vf-one-{driver}-{less}"));
    make_pair(1500);
    let before = filter("vfg");
    assert_ne!(before, "1", "nothing to see");
    settle(&peer, "vfh", "198.51.100.1");
    let flush = inside(&peer, "ip").args(["addr", "flush", "dev", "vfh"]).status();
    assert!(flush.expect("ip runs").success());
    let mut host = inside(&peer, if less { LIMITED[0] } else { PROGRAM });
    if less {
        host.args(&LIMITED[1..]);
    }
    let (host, base) = start_host(host, &name, &[]);
    let run = if less { limited() } else { Command::new(PROGRAM) };
    let run = start_run(run, &base, 1500, &["--vf-driver", driver]);
    let notes = usize::from(less);
    for (process, name) in [(&run, "vfg"), (&host, "vfh")] {
        let note =
            format!("{name}: the kernel's stack gets what is received there, too: not allowed");
        assert_eq!(process.has_said(&note), notes, "{name}");
        assert_eq!(process.has_said("CAP_BPF"), notes, "{name}");
        assert_eq!(process.has_said("Linux 6.6"), 0, "{name}");
    }
    let loose = less && of_ip("ipv4", "all", "rp_filter") == "2";
    assert_eq!(run.has_said("net.ipv4.conf.all.rp_filter is 2"), usize::from(loose));
    ip("link set lo up");
    ip("addr add 192.0.2.1/24 dev nvt0");
    let script = "ip addr add 192.0.2.2/24 broadcast 192.0.2.255 dev nvt1 && ip link set nvt1 up";
    assert!(inside(&peer, "sh").args(["-c", script]).status().expect("sh runs").success());
    let this = std::env::current_exe().expect("a test knows its own program");
    let own = |role: &str| {
        Process::start(
            Command::new(&this).args(["--exact", "helper", "--nocapture"]).env(ROLE, role),
        )
    };
    let once = |said: Vec<String>| {
        let result = format!("result: {}", DATAGRAMS + 1);
        assert!(said.iter().any(|line| line.ends_with(&result)), "{driver}: {said:?}");
    };
    let mut counter = own("count");
    counter.wait_for("listening", 1);
    helper_in(&peer, "datagrams 192.0.2.1:5002").end();
    once(counter.end());
    // At the host's end other interfaces than the VF's have its address: what is for all is for each of them.
    let mut counter = helper_in(&peer, "count");
    counter.wait_for("listening", 1);
    own("datagrams 192.0.2.255:5002").end();
    once(counter.end());
    assert_eq!(filter("vfg"), "1");
    for step in ["set vfg down", "set vfg name enP9s1", "set enP9s1 up"] {
        ip(&format!("link {step}"));
    }
    let summary = run.stop();
    let summary: Value = serde_json::from_str(summary.last().expect("a line")).expect("JSON");
    assert!(summary["frames_vf"].as_u64() >= Some(DATAGRAMS.into()), "{summary}");
    assert_eq!(filter("enP9s1"), before, "given back under its new name");
    host.stop();
    ip("link del enP9s1");
}

/// A setting of the kernel's IP on an interface.
fn of_ip(family: &str, name: &str, setting: &str) -> String {
    let path = format!("/proc/sys/net/{family}/conf/{name}/{setting}");
    std::fs::read_to_string(path).expect("it is there").trim_end().to_owned()
}

#[test]
fn the_kernels_ipv6_keeps_silent_on_the_vf_while_the_run_has_it() {
    in_namespace("the_kernels_ipv6_keeps_silent_on_the_vf_while_the_run_has_it", || {
        make_pair(1500);
        assert_eq!(of_ip("ipv6", "vfg", "disable_ipv6"), "0", "nothing to see");
        let of_host = ["--churn", "300ms"];
        let (mut run, host, _) = start(Command::new(PROGRAM), 1500, "vf-ipv6", &of_host, &[]);
        // The host has had it back twice.
        run.wait_for(ON_VF, 3);
        assert_eq!(greetings("vfg"), 0);
        assert_eq!(of_ip("ipv6", "vfg", "disable_ipv6"), "1");
        run.stop();
        host.stop();
        for name in ["vfg", "vfh"] {
            assert_eq!(of_ip("ipv6", name, "disable_ipv6"), "0", "given back");
        }
    });
}

#[test]
fn settings_come_back_after_a_run_and_a_host_that_were_killed() {
    in_namespace("settings_come_back_after_a_run_and_a_host_that_were_killed", || {
        make_pair(1500);
        let settings =
            |name| [of_ip("ipv6", name, "disable_ipv6"), of_ip("ipv4", name, "rp_filter")];
        for name in ["vfg", "vfh"] {
            std::fs::write(format!("/proc/sys/net/ipv4/conf/{name}/rp_filter"), "0")
                .expect("root may");
            assert_eq!(settings(name), ["0", "0"], "nothing to see");
        }
        let (host, base) = start_host(Command::new(PROGRAM), "vf-killed", &[]);
        for _ in 0..2 {
            // Dropping it kills it.
            drop(start_run(Command::new(PROGRAM), &base, 1500, &[]));
            assert_eq!(settings("vfg"), ["1", "1"]);
        }
        start_run(Command::new(PROGRAM), &base, 1500, &[]).stop();
        assert_eq!(settings("vfg"), ["0", "0"]);
        drop(host);
        assert_eq!(settings("vfh"), ["1", "1"]);
        let _ = std::fs::remove_file(base.with_extension("sock"));
        start_host(Command::new(PROGRAM), "vf-killed", &[]).0.stop();
        assert_eq!(settings("vfh"), ["0", "0"]);
    });
}

/// Messages that the kernel's IPv6 has sent on an interface by itself.
fn greetings(name: &str) -> u64 {
    let said = std::fs::read_to_string(format!("/proc/net/dev_snmp6/{name}")).expect("it is there");
    let said = said.lines().find_map(|line| line.strip_prefix("Icmp6OutMsgs"));
    said.expect("a counter").trim().parse().expect("a number")
}

fn until(what: &str, mut so: impl FnMut() -> bool) {
    let end = Instant::now() + SILENCE;
    while !so() {
        assert!(Instant::now() < end, "not in time: {what}");
        thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn what_the_kernel_says_between_two_runs_is_no_guests() {
    in_namespace("what_the_kernel_says_between_two_runs_is_no_guests", || {
        for driver in ["packet", "xdp"] {
            make_pair(1500);
            assert_eq!(of_ip("ipv6", "vfg", "disable_ipv6"), "0", "nothing to see");
            let (host, base) =
                start_host(Command::new(PROGRAM), &format!("vf-again-{driver}"), &[]);
            for round in 0..3 {
                // The kernel greets its neighbours before the first run, too.
                ip("link set vfg up");
                let before = greetings("vfg");
                until("the kernel speaks", || greetings("vfg") >= before + 2);
                let run = start_run(Command::new(PROGRAM), &base, 1500, &["--vf-driver", driver]);
                let said = run.stop();
                let summary: Value =
                    serde_json::from_str(said.last().expect("a line")).expect("JSON");
                for what in ["frames_lost_orderly", "frames_duplicated"] {
                    assert_eq!(summary[what], 0, "{driver}, round {round}: {summary}");
                }
            }
            host.stop();
            ip("link del vfg");
        }
    });
}

fn tormented(name: &str, mtu: u32, driver: &str) {
    let mut setup = Setup::with_mtu(mtu, name, &["--churn", "700ms"], &["--vf-driver", driver]);
    let elsewhere = Neighbour::new();
    let (bytes, silence, stalls) = setup.transfer_with_stalls(|_| {
        for round in 0..torments() {
            torment(round, mtu, &elsewhere);
        }
    });
    // Whatever has happened, it is used again.
    let before = setup.run.has_said(ON_VF);
    setup.run.wait_for(ON_VF, before + 1);
    let count = setup.run.has_said(ON_SYNTHETIC);
    let summary = setup.finish();
    eprintln!(
        "{bytes} bytes, {count} times off the VF, {stalls} stalls, longest silence {silence:?}"
    );
    // About half the time the host has the VF, and what happens to the interface meanwhile moves nobody.
    assert!(bytes > 1 << 20 && count >= torments() / 4, "{bytes} bytes: {summary}");
    assert!(silence < Duration::from_secs(10), "silent for {silence:?}");
    assert_eq!(summary["frames_lost_orderly"], 0, "{summary}");
    for path in ["frames_vf", "frames_synthetic"] {
        assert!(summary[path].as_u64() > Some(0), "{summary}");
    }
}

fn torment(round: usize, mtu: u32, elsewhere: &Neighbour) {
    let rest = || thread::sleep(Duration::from_millis(120));
    match round % 5 {
        0 => {
            ip("link set vfg down");
            rest();
            ip("link set vfg up");
        }
        1 => {
            ip("link set vfh down");
            rest();
            ip("link set vfh up");
        }
        2 => {
            ip("link set vfg down");
            ip("link set vfg name enP9s1");
            ip("link set enP9s1 up");
            rest();
            ip("link set enP9s1 down");
            ip("link set enP9s1 name vfg");
            ip("link set vfg up");
        }
        3 => {
            ip(&format!("link set vfg netns {}", elsewhere.pid()));
            rest();
            let back = format!("link set vfg netns {}", std::process::id());
            let output = inside(elsewhere, "ip").args(back.split(' ')).output().expect("ip runs");
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        }
        _ => {
            ip("link del vfg");
            rest();
            make_pair(mtu);
        }
    }
    rest();
}

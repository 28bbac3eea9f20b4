//! `netvsc run --host uio` over a device that no kernel made, with the host's NIC service on its other end: the program is the one
//! that would run on a guest, and the frames are the kernel's.

#[path = "../../netvsc-linux/tests/guest/mod.rs"]
#[expect(dead_code, reason = "shared with tests that need more of it")]
mod guest;

#[path = "../../netvsc-linux/tests/namespace/mod.rs"]
mod namespace;

mod fake_uio;
mod others;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream, UdpSocket};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use fake_uio::{Account, Fake, Habits, MAC, NIC, OfVf, VF_END};
use guest::{Guest, MLX5, kinds};
use hyperv_host::nic::NicServiceConfig;
use namespace::{Neighbour, exists, in_namespace, ip};
use netvsc_linux::Tap;
use others::Ends;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

const PROGRAM: &str = env!("CARGO_BIN_EXE_netvsc");
/// Where the echo server listens, in its namespace.
const SERVER: &str = "NETVSC_TEST_ECHO";
const ADDRESS: &str = "192.0.2.2:5005";
/// The most bytes of a stream in one frame: by an MTU of 1500, and of a large send.
const SEGMENT: u64 = 1460;
const LARGE: u64 = 65_535;
/// How long anything may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// A running `netvsc run --host uio`. It is killed if the test dies before it.
struct Run {
    child: Child,
    lines: Receiver<String>,
}

impl Run {
    fn start(fake: &Fake, more: &[&str]) -> Self {
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

    fn wait_for(&mut self, name: &str) -> Value {
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

    fn end(&mut self) -> ExitStatus {
        self.child.wait().expect("a child")
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).expect("it is running");
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Not a test by itself: sends back what comes, one connection after the other.
#[test]
fn echo_server() {
    if std::env::var_os(SERVER).is_none() {
        return;
    }
    let listener = TcpListener::bind(ADDRESS).expect("the address is there");
    let datagrams = UdpSocket::bind(ADDRESS).expect("the address is there");
    thread::spawn(move || {
        let mut buffer = [0; 2048];
        while let Ok((len, from)) = datagrams.recv_from(&mut buffer) {
            let _ = datagrams.send_to(&buffer[..len], from);
        }
    });
    println!("listening");
    for stream in listener.incoming() {
        let mut stream = stream.expect("someone calls");
        thread::spawn(move || {
            let mut reader = stream.try_clone().expect("a second handle");
            let _ = std::io::copy(&mut reader, &mut stream);
            let _ = stream.shutdown(Shutdown::Write);
        });
    }
}

/// A NIC with a host, and behind its switch an echo server in a namespace of its own.
struct Far {
    _namespace: Neighbour,
    server: Child,
}

impl Far {
    fn new(config: NicServiceConfig, mtu: u32) -> (Self, Fake) {
        Self::with(config, mtu, Habits::default())
    }

    fn with(config: NicServiceConfig, mtu: u32, habits: Habits) -> (Self, Fake) {
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
fn converse(bytes: usize) {
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
fn fewest(bytes: u64, most: u64) -> u64 {
    bytes.div_ceil(most)
}

fn settle() {
    // What the host says of a VF may come before the NIC is ready.
    until("the interface is up", || exists("nvt0") && link().contains(",UP"));
    ip("addr add 192.0.2.1/24 dev nvt0");
}

/// The state of the interface, as `ip` prints it.
fn link() -> String {
    ip("-o link show nvt0")
}

fn until(what: &str, so: impl Fn() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !so() {
        assert!(Instant::now() < end, "never: {what}");
        thread::sleep(Duration::from_millis(5));
    }
}

// What hosts and kernels are like, but for what the tests have otherwise.
const MONITORED: Habits = Habits { monitor: true, old_kernel: false };
const OLD_KERNEL: Habits = Habits { monitor: false, old_kernel: true };
const OLD_KERNEL_MONITORED: Habits = Habits { monitor: true, old_kernel: true };

/// The device was used as its habits demand.
fn assert_heeded(account: &Account, habits: Habits) {
    assert!(account.unmasked > 0, "interrupts were let through by the device's file");
    assert_eq!(account.bits > 0, habits.monitor, "{} monitor bits", account.bits);
    assert_eq!(account.flags > 0, habits.monitor, "{} event flags", account.flags);
    assert_eq!(account.masked > 0, habits.old_kernel, "{} masks", account.masked);
}

fn the_kernels_frames_go_through(habits: Habits) {
    let (_far, fake) = Far::with(NicServiceConfig::new(MAC), 1500, habits);
    let mut run = Run::start(&fake, &["--stats-interval", "100ms"]);
    assert_eq!(run.wait_for("nic_offered")["instance"], NIC);
    let ready = run.wait_for("nic_ready");
    assert_eq!((&ready["mac"], &ready["mtu"]), (&MAC.to_string().into(), &1500.into()));
    until("the interface is up", || exists("nvt0") && link().contains(",UP"));
    settle();
    converse(8 << 20);
    // One frame at a time: whoever misses a single doorbell waits for ever.
    each_comes_back_once();
    let counted = run.wait_for("statistics");
    assert!(counted["tx_synthetic"].is_u64());
    run.signal(Signal::TERM);
    assert!(run.end().success());
    assert!(!exists("nvt0"), "left behind");
    let account = fake.end();
    assert_eq!((account.opened, account.closed), (1, 1));
    assert_heeded(&account, habits);
    let counters = account.counters;
    // How many of them came in one piece to a guest that coalesces is the kernel's doing.
    let to_guest = counters.receive_frames + counters.coalesced;
    let least = fewest(8 << 20, SEGMENT);
    assert!(to_guest >= least && account.from_guest >= least, "{counters:?}");
    assert_eq!((counters.leaked, counters.lent, counters.failed), (0, 0, 0));
}

#[test]
fn the_kernels_frames_go_through_a_uio_device_until_a_signal() {
    in_namespace("the_kernels_frames_go_through_a_uio_device_until_a_signal", || {
        the_kernels_frames_go_through(Habits::default());
    });
}

#[test]
fn so_they_do_where_the_doorbell_is_a_bit_of_the_monitor_page() {
    in_namespace("so_they_do_where_the_doorbell_is_a_bit_of_the_monitor_page", || {
        the_kernels_frames_go_through(MONITORED);
    });
}

#[test]
fn so_they_do_where_the_kernel_masks_at_every_interrupt() {
    in_namespace("so_they_do_where_the_kernel_masks_at_every_interrupt", || {
        the_kernels_frames_go_through(OLD_KERNEL);
    });
}

#[test]
fn so_they_do_where_both_are_so() {
    in_namespace("so_they_do_where_both_are_so", || {
        the_kernels_frames_go_through(OLD_KERNEL_MONITORED);
    });
}

fn sub_channels_are_used(habits: Habits) {
    let mut config = NicServiceConfig::new(MAC);
    config.policy.max_queues = 4;
    let (_far, fake) = Far::with(config, 1500, habits);
    let mut run = Run::start(&fake, &["--queues", "4"]);
    let told = run.wait_for("pairing");
    assert_eq!(told["why"], "4 channels are in use");
    let shown = ip("-d link show nvt0");
    assert!(shown.contains("multi_queue") && shown.contains("numqueues 4"), "{shown}");
    assert_eq!(metric(&fake, "netvsc_run_queues{device=\"nvt0\"}"), Some(4.0));
    settle();
    thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| converse(256 << 10));
        }
    });
    // Each on a flow of its own, so that every channel is one that is waited for.
    for _ in 0..8 {
        each_comes_back_once();
    }
    run.signal(Signal::TERM);
    assert!(run.end().success());
    let account = fake.end();
    assert_heeded(&account, habits);
    let counters = account.counters;
    assert_eq!((counters.queues_opened, counters.leaked, counters.failed), (3, 0, 0));
    assert!(counters.send_tables > 0);
}

#[test]
fn sub_channels_that_the_kernel_opens_are_used() {
    in_namespace("sub_channels_that_the_kernel_opens_are_used", || {
        sub_channels_are_used(Habits::default());
    });
}

#[test]
fn so_are_sub_channels_with_bits_of_their_own() {
    in_namespace("so_are_sub_channels_with_bits_of_their_own", || sub_channels_are_used(MONITORED));
}

#[test]
fn so_are_those_of_a_kernel_that_masks_each() {
    in_namespace("so_are_those_of_a_kernel_that_masks_each", || {
        sub_channels_are_used(OLD_KERNEL_MONITORED);
    });
}

#[test]
fn a_nic_that_the_host_takes_back_ends_the_run_in_order() {
    in_namespace("a_nic_that_the_host_takes_back_ends_the_run_in_order", || {
        let (_far, fake) = Far::new(NicServiceConfig::new(MAC), 1500);
        let mut run = Run::start(&fake, &[]);
        run.wait_for("nic_ready");
        settle();
        converse(64 << 10);
        fake.rescind();
        assert_eq!(run.wait_for("nic_gone")["why"], "the host took it back");
        assert_eq!(run.end().code(), Some(1), "whoever started it may start it again");
        assert!(!exists("nvt0"), "left behind");
        assert_eq!(fake.end().closed, 1);
    });
}

#[test]
fn a_run_that_is_killed_leaves_a_device_that_the_next_one_opens() {
    in_namespace("a_run_that_is_killed_leaves_a_device_that_the_next_one_opens", || {
        let (_far, fake) = Far::new(NicServiceConfig::new(MAC), 1500);
        for round in 1..=3 {
            let mut run = Run::start(&fake, &[]);
            run.wait_for("nic_ready");
            settle();
            converse(64 << 10);
            let queues = || metric(&fake, "netvsc_run_queues{device=\"nvt0\"}");
            assert_eq!(queues(), Some(1.0));
            run.signal(if round < 3 { Signal::KILL } else { Signal::INT });
            run.end();
            until("the interface is gone", || !exists("nvt0"));
            assert_eq!(queues(), None, "nobody tells of it any more");
        }
        let asked = fake.guest.root().join("run/netvsc/live");
        assert_eq!(std::fs::read_dir(asked).expect("a folder").count(), 0, "left behind");
        let account = fake.end();
        assert_eq!((account.opened, account.counters.failed), (3, 0));
    });
}

#[test]
fn the_nic_follows_what_ip_link_does_to_its_interface() {
    in_namespace("the_nic_follows_what_ip_link_does_to_its_interface", || {
        let (_far, fake) = Far::new(NicServiceConfig::new(MAC), 4000);
        let mut run = Run::start(&fake, &[]);
        run.wait_for("nic_ready");
        settle();
        // The MTU: NIC and host begin anew, with longer frames.
        ip("link set nvt0 mtu 4000");
        assert_eq!(run.wait_for("nic_ready")["mtu"], 4000);
        converse(1 << 20);
        // The address: the host agrees, and frames to the new one arrive.
        ip("link set nvt0 address 02:15:5d:00:00:07");
        converse(64 << 10);
        // Down and up: whoever is down hears nothing, and afterwards everything again.
        ip("link set nvt0 down");
        thread::sleep(Duration::from_millis(50));
        ip("link set nvt0 up");
        converse(64 << 10);
        run.signal(Signal::TERM);
        assert!(run.end().success());
        let account = fake.end();
        assert_eq!((account.opened, account.closed, account.counters.failed), (2, 2, 0));
    });
}

/// A device whose host gives its NIC frames for the NIC's own address only, and whose far end is in this namespace.
fn choosy() -> Fake {
    let mut config = NicServiceConfig::new(MAC);
    config.policy.own_unicast = true;
    let far = Tap::open(&"far0".parse().expect("a name")).expect("a TAP");
    far.set_up(true).expect("root may");
    Fake::new(config, far, MONITORED)
}

#[test]
fn the_nic_hears_what_is_for_others_while_its_interface_is_a_bridges_port() {
    in_namespace("the_nic_hears_what_is_for_others_while_its_interface_is_a_bridges_port", || {
        let fake = choosy();
        let mut run = Run::start(&fake, &[]);
        run.wait_for("nic_ready");
        settle();
        Ends::open("far0", "nvt0").follow_what_is_wanted();
        // A NIC that begins anew hears it, too, and one whose interface was a port before.
        ip("link set nvt0 master br0");
        ip("link set nvt0 mtu 1400");
        assert_eq!(run.wait_for("nic_ready")["mtu"], 1400);
        Ends::open("far0", "nvt0").until_others(true, "after another start");
        run.signal(Signal::TERM);
        assert!(run.end().success());
        ip("tuntap add mode tap name nvt0 vnet_hdr");
        ip("link set nvt0 master br0");
        let mut run = Run::start(&fake, &[]);
        run.wait_for("nic_ready");
        settle();
        Ends::open("far0", "nvt0").until_others(true, "of a port that was there before");
        run.signal(Signal::TERM);
        assert!(run.end().success());
        assert_eq!(fake.end().counters.failed, 0);
    });
}

#[test]
fn what_the_host_does_not_allow_is_taken_back() {
    in_namespace("what_the_host_does_not_allow_is_taken_back", || {
        let mut config = NicServiceConfig::new(MAC);
        config.policy.mac_changes = false;
        let (_far, fake) = Far::new(config, 1500);
        let mut run = Run::start(&fake, &[]);
        run.wait_for("nic_ready");
        settle();
        ip("link set nvt0 address 02:15:5d:00:00:07");
        let failed = run.wait_for("failed");
        assert!(failed["what"].as_str().is_some_and(|what| what.contains("MAC")), "{failed}");
        until("the old address is back", || link().contains(&MAC.to_string()));
        // A section of the send buffer has no room for such frames, and pages cannot be named.
        ip("link set nvt0 mtu 9000");
        run.wait_for("failed");
        assert_eq!(run.wait_for("nic_ready")["mtu"], 1500);
        until("the old MTU is back", || link().contains("mtu 1500"));
        converse(64 << 10);
        run.signal(Signal::TERM);
        assert!(run.end().success());
    });
}

// ---- with the kernel's VF beside it ----

const BUS: &str = "9970f259-1a65-4a22-bce2-500aee5b8543";
const VF: &str = "vfg";

fn make_vf() {
    ip(&format!("link add {VF} type veth peer name {VF_END}"));
    ip(&format!("link set {VF_END} up"));
}

impl Far {
    /// The same with an interface that sysfs calls the VF's, in a slot of this name; the host has not said so yet.
    fn with_vf(slot: &str, mac: &str) -> (Self, Fake) {
        Self::with_vf_and(slot, mac, Habits::default())
    }

    fn with_vf_and(slot: &str, mac: &str, habits: Habits) -> (Self, Fake) {
        for (setting, value) in
            [("ipv6/conf/default/disable_ipv6", "1"), ("ipv4/conf/default/rp_filter", "0")]
        {
            std::fs::write(format!("/proc/sys/net/{setting}"), value).expect("root may");
        }
        make_vf();
        let (far, mut fake) = Self::with(NicServiceConfig::new(MAC), 3000, habits);
        let function = fake.guest.function(BUS, slot, &MLX5);
        fake.guest.port(&function, VF, mac, 0);
        (far, fake)
    }
}

impl Run {
    fn wait_for_path(&mut self, path: &str) -> Value {
        loop {
            let event = self.wait_for("path");
            if event["path"] == path {
                return event;
            }
        }
    }
}

/// What a verb says of the guest.
fn told(fake: &Fake, verb: &[&str]) -> String {
    let root = fake.guest.root().to_str().expect("a plain path");
    let output = Command::new(PROGRAM).args(verb).args(["--sysfs-root", root]).output();
    let output = output.expect("the program runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("text")
}

/// The value of a series in what `netvsc metrics` says of the guest.
fn metric(fake: &Fake, series: &str) -> Option<f64> {
    let text = told(fake, &["metrics"]);
    let line = text.lines().find_map(|line| line.strip_prefix(series));
    line.map(|value| value.trim().parse().expect("a number"))
}

/// A NIC that the kernel knows nothing of is told of by the run itself; it is on its VF.
fn run_is_told_of(fake: &Fake, run: &Run) {
    let sent = |path: &str| {
        let series = format!("netvsc_transmit_packets_total{{device=\"nvt0\",path=\"{path}\"}}");
        metric(fake, &series).expect("a series")
    };
    // A large send counts as one frame.
    let least = |bytes| fewest(bytes, LARGE) as f64;
    let (vf, synthetic) = (sent("vf"), sent("synthetic"));
    assert!(vf >= least(4 << 20) && synthetic >= least(1 << 20), "{vf} {synthetic}");
    assert_eq!(metric(fake, "netvsc_datapath_vf{device=\"nvt0\"}"), Some(1.0));
    assert_eq!(metric(fake, "netvsc_run_lost_packets_total{device=\"nvt0\"}"), Some(0.0));
    let list: Value = serde_json::from_str(&told(fake, &["list", "--json"])).expect("JSON");
    let nics = list["nics"].as_array().expect("NICs");
    let nic = nics.iter().find(|nic| nic["guid"] == NIC).expect("the NIC");
    let pid = run.child.id();
    assert_eq!((&nic["path"], &nic["mac"]), (&"vf".into(), &MAC.to_string().into()), "{nic}");
    let by = &nic["run"];
    assert_eq!((&by["pid"], &by["ifname"], &by["vf"]), (&pid.into(), &"nvt0".into(), &VF.into()));
    let page = told(fake, &["show", NIC]);
    let line = format!("Driven from user space by process {pid}, as nvt0: vf path with {VF}");
    assert!(page.contains(&line), "{page}");
}

/// Datagrams come back one by one; each of them once, or the second would be taken for the next.
fn each_comes_back_once() {
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

fn carries_what_the_host_gives_to_the_vf(driver: &str, habits: Habits) {
    let (_far, fake) = Far::with_vf_and("7", &MAC.to_string(), habits);
    let mut run = Run::start(&fake, &["--vf-link", VF, "--vf-driver", driver]);
    // By MAC alone, since the host has said nothing of a VF; such a pair carries nothing.
    assert_eq!(run.wait_for("paired")["reason"], "Mac");
    settle();
    converse(1 << 20);
    assert_eq!(fake.over_vf(), OfVf::default(), "before the host has said anything");
    fake.vf(Some(7));
    assert_eq!(run.wait_for("associated")["serial"], 7);
    run.wait_for_path("vf");
    converse(4 << 20);
    // A packet socket gets copies: the kernel's stack, which has the NIC's address as well, is not to take them, too.
    let filter = |name: &str| format!("/proc/sys/net/ipv4/conf/{name}/rp_filter");
    std::fs::write(filter("all"), "0").expect("root may");
    each_comes_back_once();
    run_is_told_of(&fake, &run);
    let first = fake.over_vf();
    // A host gives the first frames of a connection to the NIC.
    let least = fewest(4 << 20, SEGMENT);
    assert!(first.from_guest >= least && first.to_guest >= least / 2, "{first:?}");
    // Asked back: the host waits until nothing comes any more.
    fake.vf(None);
    run.wait_for("disassociated");
    run.wait_for_path("synthetic");
    converse(1 << 20);
    let before = fake.over_vf();
    converse(1 << 20);
    assert_eq!(fake.over_vf(), before, "nothing on the VF that is not the guest's");
    fake.vf(Some(7));
    run.wait_for_path("vf");
    // The link goes down, and away, under traffic.
    for torment in ["set vfg down", "del vfg"] {
        let before = fake.over_vf();
        let conversation = thread::spawn(|| converse(4 << 20));
        ip(&format!("link {torment}"));
        run.wait_for_path("synthetic");
        conversation.join().expect("every byte comes back");
        match torment {
            "del vfg" => make_vf(),
            _ => _ = ip("link set vfg up"),
        }
        run.wait_for_path("vf");
        converse(1 << 20);
        assert!(fake.over_vf().from_guest > before.from_guest + 100);
    }
    let strict = std::fs::read_to_string(filter(VF)).expect("it is there");
    run.signal(Signal::TERM);
    assert!(run.end().success());
    let after = std::fs::read_to_string(filter(VF)).expect("it is there");
    assert_eq!((strict.trim(), after.trim()), ("1", "0"), "as it was before the run");
    let account = fake.end();
    assert_heeded(&account, habits);
    let counters = account.counters;
    assert_eq!((counters.leaked, counters.lent, counters.failed), (0, 0, 0));
    assert!(!ip("link show vfg").contains("xdp"), "left behind");
}

#[test]
fn the_kernels_vf_is_the_fast_path_of_a_nic_driven_from_user_space() {
    in_namespace("the_kernels_vf_is_the_fast_path_of_a_nic_driven_from_user_space", || {
        carries_what_the_host_gives_to_the_vf("packet", Habits::default());
    });
}

#[test]
fn so_it_is_with_a_monitor_page_and_an_old_kernel() {
    in_namespace("so_it_is_with_a_monitor_page_and_an_old_kernel", || {
        carries_what_the_host_gives_to_the_vf("packet", OLD_KERNEL_MONITORED);
    });
}

#[test]
fn so_it_is_past_the_kernels_stack() {
    in_namespace("so_it_is_past_the_kernels_stack", || {
        carries_what_the_host_gives_to_the_vf("xdp", Habits::default());
    });
}

#[test]
fn a_vf_hears_what_its_nic_hears() {
    in_namespace("a_vf_hears_what_its_nic_hears", || {
        let (_far, fake) = Far::with_vf("7", &MAC.to_string());
        fake.vf(Some(7));
        let mut run = Run::start(&fake, &["--vf-link", VF]);
        run.wait_for_path("vf");
        settle();
        let wanted = || others::link(VF).promiscuity;
        assert_eq!(wanted(), Some(0));
        ip("link set nvt0 promisc on");
        until("the VF is promiscuous", || wanted() == Some(1));
        converse(64 << 10);
        ip("link set nvt0 promisc off");
        until("the VF is so no more", || wanted() == Some(0));
        run.signal(Signal::TERM);
        assert!(run.end().success());
        assert_eq!(fake.end().counters.failed, 0);
    });
}

#[test]
fn a_nic_that_begins_anew_takes_its_vf_along() {
    in_namespace("a_nic_that_begins_anew_takes_its_vf_along", || {
        let (_far, fake) = Far::with_vf("7", &MAC.to_string());
        fake.vf(Some(7));
        let mut run = Run::start(&fake, &["--vf-link", VF]);
        run.wait_for_path("vf");
        settle();
        ip("link set vfh mtu 3000");
        for mtu in [3000, 1500] {
            ip(&format!("link set nvt0 mtu {mtu}"));
            run.wait_for("unpaired");
            assert_eq!(run.wait_for("nic_ready")["mtu"], mtu);
            run.wait_for_path("vf");
            let before = fake.over_vf();
            converse(1 << 20);
            assert!(fake.over_vf().from_guest > before.from_guest + 100);
        }
        run.signal(Signal::TERM);
        assert!(run.end().success());
        assert_eq!(fake.end().counters.failed, 0);
    });
}

#[test]
fn what_a_killed_run_has_set_on_its_vf_is_undone_when_the_nic_is_given_back() {
    const NAME: &str = "what_a_killed_run_has_set_on_its_vf_is_undone_when_the_nic_is_given_back";
    in_namespace(NAME, || {
        let (_far, fake) = Far::with_vf("7", &MAC.to_string());
        fake.vf(Some(7));
        let filter = || {
            let text = std::fs::read_to_string("/proc/sys/net/ipv4/conf/vfg/rp_filter");
            text.expect("it is there").trim().to_owned()
        };
        assert_eq!(filter(), "0");
        let root = fake.guest.root().to_str().expect("a plain path").to_owned();
        let restore = |more: &[&str]| {
            let verb = ["bind", "--restore", "--sysfs-root", &root];
            let output = Command::new(PROGRAM).args(verb).args(more).output().expect("it runs");
            let said = String::from_utf8(output.stderr).expect("text");
            assert!(output.status.success(), "{said}");
            said
        };
        let mut run = Run::start(&fake, &["--vf-link", VF]);
        run.wait_for_path("vf");
        assert_eq!((filter(), restore(&[])), ("1".into(), String::new()), "a run has it");
        run.signal(Signal::KILL);
        run.end();
        assert_eq!(filter(), "1");
        let said = restore(&["--dry-run"]);
        assert!(said.contains("echo '0' > /proc/sys/net/ipv4/conf/vfg/rp_filter"), "{said}");
        assert_eq!(filter(), "1");
        assert!(restore(&[]).contains("vfg: the kernel's IP is as it was before"));
        assert_eq!((filter(), restore(&[])), ("0".into(), String::new()));
        fake.end();
    });
}

#[test]
fn an_interface_that_is_not_this_nics_vf_carries_nothing() {
    in_namespace("an_interface_that_is_not_this_nics_vf_carries_nothing", || {
        // Another serial, and another MAC.
        let (_far, fake) = Far::with_vf("8", "00:15:5d:00:00:08");
        fake.vf(Some(7));
        let mut run = Run::start(&fake, &["--vf-link", VF]);
        run.wait_for("associated");
        settle();
        converse(64 << 10);
        assert_eq!(fake.over_vf(), OfVf::default());
        run.signal(Signal::TERM);
        assert!(run.end().success());
        fake.end();
    });
}

#[test]
fn an_emulated_card_with_the_nics_mac_is_no_vf_here_either() {
    in_namespace("an_emulated_card_with_the_nics_mac_is_no_vf_here_either", || {
        make_vf();
        let (_far, mut fake) = Far::new(NicServiceConfig::new(MAC), 1500);
        fake.guest.emulated(VF, &MAC.to_string());
        fake.vf(Some(7));
        let mut run = Run::start(&fake, &["--vf-link", VF]);
        let ignored = run.wait_for("ignored");
        assert!(ignored["why"].as_str().is_some_and(|why| why.contains("P1")), "{ignored}");
        run.signal(Signal::TERM);
        assert!(run.end().success());
        fake.end();
    });
}

// ---- what needs no device ----

fn run(guest: &Guest, more: &[&str]) -> Output {
    let root = guest.root().to_str().expect("a plain path");
    let mut command = Command::new(PROGRAM);
    command.args(["run", "--host", "uio", "--sysfs-root", root]).args(more);
    command.output().expect("the program runs")
}

fn error(output: &Output) -> String {
    assert!(output.stdout.is_empty() && output.status.code() == Some(1), "{output:?}");
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(text.lines().count(), 1, "{text}");
    text
}

#[test]
fn without_a_nic_that_is_said_in_one_line() {
    let text = error(&run(&Guest::new(), &[]));
    assert!(text.contains("no synthetic NIC on this machine's VMBus"), "{text}");
    let text = error(&run(&Guest::without_hyperv(), &[]));
    assert!(text.contains("no synthetic NIC") && text.contains("no VMBus"), "{text}");
}

#[test]
fn a_nic_of_the_kernels_is_taken_only_by_name_and_only_if_nobody_needs_it() {
    let guest = kinds::worked_example();
    let text = error(&run(&guest, &[]));
    assert!(text.contains("--nic NIC") && text.contains("eth0, eth1"), "{text}");
    let text = error(&run(&guest, &["--nic", "nobody"]));
    assert!(text.contains("no such device: `nobody`"), "{text}");
    let index = std::fs::read_to_string(guest.path("sys/class/net/eth1/ifindex"));
    guest.route(index.expect("a number").trim().parse().expect("a number"), "default");
    let text = error(&run(&guest, &["--nic", "eth1"]));
    assert!(text.contains("eth1 carries the default route") && text.contains("--force"), "{text}");
    let text = error(&run(&guest, &["--nic", "eth0", "--nic", "eth1", "--tap", "x", "--force"]));
    assert!(text.contains("--tap x is one interface for 2 NICs"), "{text}");
}

/// Where the kernel has the driver for user space.
const UIO_FOLDER: &str = "sys/bus/vmbus/drivers/uio_hv_generic";

#[test]
fn a_dry_run_says_why_the_real_one_would_be_refused_and_ends_like_it() {
    let guest = kinds::worked_example();
    let index = std::fs::read_to_string(guest.path("sys/class/net/eth1/ifindex"));
    guest.route(index.expect("a number").trim().parse().expect("a number"), "default");
    let dry = |more: &[&str]| {
        let arguments = [&["--nic", "eth1"], more].concat();
        let (real, dry) =
            (run(&guest, &arguments), run(&guest, &[&arguments[..], &["--dry-run"]].concat()));
        assert_eq!((dry.status.code(), &dry.stderr), (real.status.code(), &real.stderr), "{dry:?}");
        let text = String::from_utf8(dry.stdout).expect("text");
        assert_eq!(text.lines().filter(|line| line.starts_with("echo ")).count(), 6, "{text}");
        let error = String::from_utf8(dry.stderr).expect("text");
        let why = error.trim_start_matches("netvsc: ");
        assert!(text.starts_with(&format!("# would be refused: {why}")), "{text}{error}");
        text
    };
    let text = dry(&[]);
    assert!(text.contains("eth1 carries the default route"), "{text}");
    assert!(text.contains("modprobe uio_hv_generic"), "what is refused next: {text}");
    let text = dry(&["--force"]);
    assert!(!text.contains("default route") && text.contains("modprobe"), "{text}");
    guest.folder(UIO_FOLDER);
    let forced = run(&guest, &["--nic", "eth1", "--force", "--dry-run"]);
    assert!(forced.status.success() && !forced.stdout.starts_with(b"#"), "{forced:?}");
}

#[test]
fn a_dry_run_shows_every_write_and_makes_none() {
    let guest = kinds::worked_example();
    guest.folder(UIO_FOLDER);
    // Twice the same NIC is one, by whatever name.
    let output = run(&guest, &["--nic", "eth1", "--nic", "enP6757s2", "--dry-run"]);
    assert!(output.status.success());
    let text = String::from_utf8(output.stdout).expect("text");
    let ends = [
        "driver_override",
        "driver/unbind",
        "drivers_probe",
        "# and at the end:",
        "driver_override",
        "driver/unbind",
        "drivers_probe",
    ];
    let lines: Vec<_> = text.lines().collect();
    assert_eq!(lines.len(), ends.len(), "{text}");
    assert!(lines.iter().zip(ends).all(|(line, end)| line.ends_with(end)), "{text}");
    assert!(lines[0].starts_with("echo 'uio_hv_generic'") && lines[4].starts_with("echo ''"));
    assert!(!guest.root().join("run/netvsc").exists());
}

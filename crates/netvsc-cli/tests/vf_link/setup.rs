//! Host and guest with a veth pair between them, and the kernel's TCP over TAPs in two namespaces.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde_json::Value;

use crate::namespace::{Neighbour, exists, ip};
use crate::processes::{Line, PROGRAM, Process, helper_in, inside};

/// Host and guest with a veth pair between them, and the kernel's TCP over TAPs in two namespaces.
pub struct Setup {
    pub run: Process,
    pub host: Process,
    pub guest: Neighbour,
    pub peer: Neighbour,
    stop: PathBuf,
}

pub fn make_pair(mtu: u32) {
    ip(&format!("link add vfg mtu {mtu} type veth peer name vfh mtu {mtu}"));
    ip("link set vfh up");
}

pub fn settle(namespace: &Neighbour, name: &str, address: &str) {
    ip(&format!("link set {name} netns {}", namespace.pid()));
    let script = format!(
        "echo 1 >/proc/sys/net/ipv6/conf/all/disable_ipv6; ip link set lo up && \
         ip addr add {address}/24 dev {name} && ip link set {name} up"
    );
    assert!(inside(namespace, "sh").args(["-c", &script]).status().expect("sh runs").success());
}

/// Starts a host by this command, and its guest; `run`, `host`, and the file that ends a transfer.
pub fn start(
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
pub fn start_host(mut host: Command, name: &str, of_host: &[&str]) -> (Process, PathBuf) {
    let base = std::env::temp_dir().join(format!("netvsc-{name}-{}", std::process::id()));
    let socket = base.with_extension("sock");
    let socket = socket.to_str().expect("a plain path");
    let options = ["host", "--json", "--listen", socket, "--peer-tap", "nvt1", "--vf-peer", "vfh"];
    let host = Process::start(host.args(options).args(of_host));
    host.wait_for("listening", 1);
    (host, base)
}

/// Starts a guest of that host by this command, and waits until it is on its VF.
pub fn start_run(mut run: Command, base: &Path, mtu: u32, of_run: &[&str]) -> Process {
    let at = format!("unix:{}", base.with_extension("sock").display());
    let options = ["run", "--json", "--host", &at, "--tap", "nvt0", "--vf-link", "vfg"];
    let more = ["--mtu", &mtu.to_string()];
    let run = Process::start(run.args(options).args(more).args(of_run));
    run.wait_for(ON_VF, 1);
    run
}

impl Setup {
    pub fn new(name: &str, of_host: &[&str], of_run: &[&str]) -> Self {
        Self::with_mtu(1500, name, of_host, of_run)
    }

    pub fn with_mtu(mtu: u32, name: &str, of_host: &[&str], of_run: &[&str]) -> Self {
        std::fs::write("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1").expect("root may");
        // One that is there may have its own settings.
        if !exists("vfg") {
            make_pair(mtu);
        }
        let (run, host, stop) = start(Command::new(PROGRAM), mtu, name, of_host, of_run);
        let (guest, peer) = (Neighbour::new(), Neighbour::new());
        ip(&format!("link set nvt1 mtu {mtu}"));
        settle(&guest, "nvt0", "192.0.2.1");
        settle(&peer, "nvt1", "192.0.2.2");
        Self { run, host, guest, peer, stop }
    }

    /// Echoes from the guest to its peer, each of which is answered.
    pub fn flood(&self, count: u16) {
        let said = helper_in(&self.guest, &format!("flood {count}")).end();
        assert!(said.iter().any(|line| line.ends_with(&format!("result: {count}"))), "{said:?}");
    }

    /// A path that no other test has.
    pub fn path(&self, extension: &str) -> PathBuf {
        self.stop.with_extension(extension)
    }

    /// Sends while `meanwhile` goes on. What arrived is what was sent.
    pub fn transfer(&mut self, meanwhile: impl FnOnce(&mut Self)) -> Transfer {
        self.transfer_by("send", meanwhile)
    }

    /// The same at 32 MB a second at the most, which a capture can follow.
    pub fn paced_transfer(&mut self, meanwhile: impl FnOnce(&mut Self)) -> Transfer {
        self.transfer_by("pace", meanwhile)
    }

    fn transfer_by(&mut self, role: &str, meanwhile: impl FnOnce(&mut Self)) -> Transfer {
        let _ = std::fs::remove_file(&self.stop);
        let listener = helper_in(&self.peer, "receive");
        listener.wait_for("listening", 1);
        let sender = helper_in(&self.guest, &format!("{role} {}", self.stop.display()));
        // A connection that is not made yet waits a second for the next attempt.
        listener.wait_for("it comes", 1);
        meanwhile(self);
        std::fs::write(&self.stop, "").expect("a file");
        let (sent, received) = (sender.end(), listener.end());
        let _ = std::fs::remove_file(&self.stop);
        let [sent, whole] = [&sent, &received].map(|said| told(said, "result: ").next());
        assert_eq!(sent.expect("a result"), whole.expect("a result"), "digest and length");
        let (_, bytes) = whole.and_then(|whole| whole.rsplit_once(' ')).expect("words");
        let span = told(&received, "span: ").map(pair).next().expect("a span");
        let silences = told(&received, "silence: ").map(pair).collect();
        Transfer { bytes: bytes.parse().expect("a number"), span, silences }
    }

    /// Ends both; the guest's summary.
    pub fn finish(self) -> Value {
        summary(&self.finish_with_events())
    }

    /// The same, and all that the guest told before.
    pub fn finish_with_events(self) -> Vec<Line> {
        let said = self.run.stop();
        self.host.stop();
        assert!(!exists("nvt0") && !exists("nvt1"), "left behind");
        said
    }
}

/// A transfer over TCP. Times are those of [`clock`](crate::processes::clock).
pub struct Transfer {
    pub bytes: u64,
    /// When the first byte came, and the end.
    pub span: (u64, u64),
    /// From when to when the receiver got nothing.
    pub silences: Vec<(u64, u64)>,
}

impl Transfer {
    pub fn longest(&self) -> Duration {
        let spans = self.silences.iter().map(|(start, end)| end - start);
        Duration::from_micros(spans.max().unwrap_or(0))
    }
}

/// What stands behind this in lines that have it.
pub fn told<'a>(said: &'a [Line], what: &str) -> impl Iterator<Item = &'a str> {
    said.iter().filter_map(move |line| line.split_once(what).map(|(_, rest)| rest))
}

/// Two numbers.
pub fn pair(text: &str) -> (u64, u64) {
    let number = |text: &str| text.parse().expect("a number");
    let (one, other) = text.split_once(' ').expect("two words");
    (number(one), number(other))
}

/// What a guest tells last.
pub fn summary(said: &[Line]) -> Value {
    serde_json::from_str(said.last().expect("a line")).expect("JSON")
}

/// What the guest says when its first NIC is on the VF.
pub const ON_VF: &str = r#""event":"path","nic":0,"path":"vf""#;
pub const ON_SYNTHETIC: &str = r#""event":"path","nic":0,"path":"synthetic""#;

/// A setting of the kernel's IP on an interface.
pub fn of_ip(family: &str, name: &str, setting: &str) -> String {
    let path = format!("/proc/sys/net/{family}/conf/{name}/{setting}");
    std::fs::read_to_string(path).expect("it is there").trim_end().to_owned()
}

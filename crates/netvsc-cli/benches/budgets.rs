//! What the tool may cost on a guest, against what it costs here: `cargo bench -p netvsc-cli --bench budgets`.
//!
//! Times are those of whole processes, the best of many, since machines are busy; a budget that is not kept ends this with
//! an error.

#[path = "../../netvsc-linux/tests/guest/mod.rs"]
#[expect(dead_code, reason = "shared with tests that need more of it")]
mod guest;
#[path = "../tests/idle/mod.rs"]
mod idle;

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use guest::complaints::COMPLAINTS;
use guest::{Guest, kinds};
use netvsc_linux::Tap;
use netvsc_linux::check;
use netvsc_linux::inventory::{Depth, take};
use netvsc_linux::netlink::Connection;
use netvsc_linux::relation::Relations;

const PROGRAM: &str = env!("CARGO_BIN_EXE_netvsc");
const RUNS: usize = 200;

/// A guest with so many pairs, and the name of the last one's VF.
fn pairs(number: u32) -> (Guest, String) {
    let mut guest = Guest::new();
    let mut last = String::new();
    for number in 0..number {
        let guid = format!("2d0e6c1a-93f4-4b5e-8a77-0c1d2e3f{number:04x}");
        let bus = format!("4f1c9b02-{:04x}-4a7b-9c8d-1e2f3a4b{number:04x}", number + 0x1000);
        let mac = format!("00:15:5d:01:02:{number:02x}");
        let (name, vf, serial) =
            (format!("eth{number}"), format!("vf{number}"), number.to_string());
        let nic = (guid.as_str(), name.as_str(), mac.as_str());
        kinds::pair(&mut guest, nic, &bus, &serial, &vf, &kinds::IXGBEVF);
        last = vf;
    }
    guest.tell_links();
    (guest, last)
}

/// The shortest time that a process takes from its start to its end.
fn shortest(guest: Option<&Guest>, arguments: &[&str]) -> Duration {
    let mut command = Command::new(PROGRAM);
    command.args(arguments).stdout(Stdio::null()).stderr(Stdio::null());
    if let Some(guest) = guest {
        command.arg("--sysfs-root").arg(guest.root());
    }
    let mut run = || {
        let start = Instant::now();
        let status = command.status().expect("the program runs");
        assert!(status.success(), "{arguments:?}");
        start.elapsed()
    };
    (0..RUNS).map(|_| run()).min().unwrap_or_default()
}

/// A figure beside its budget.
fn report(what: &str, found: f64, budget: f64, unit: &str) -> bool {
    let kept = found <= budget;
    println!(
        "{what:<46} {found:>8.2} {unit}  (at most {budget} {unit}){}",
        if kept { "" } else { "  TOO MUCH" }
    );
    kept
}

fn millis(span: Duration) -> f64 {
    span.as_secs_f64() * 1000.0
}

/// The time that a scan takes inside a process: what pairs are made of, of all NICs.
fn scanned(guest: &Guest) -> Duration {
    let scan = || {
        let start = Instant::now();
        let snapshot = take(Some(guest.root()), Depth::Pairs).expect("a guest");
        assert!(Relations::of(&snapshot).nics.len() == 64);
        start.elapsed()
    };
    (0..RUNS).map(|_| scan()).min().unwrap_or_default()
}

/// What a program that goes on and on has resident, in MiB, when it waits; `meanwhile` is done before that.
fn resident(arguments: &[&str], meanwhile: impl FnOnce()) -> f64 {
    let mut child = Command::new(PROGRAM)
        .args(arguments)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("the program runs");
    std::thread::sleep(Duration::from_secs(1));
    meanwhile();
    let sleep = idle::longest_sleep(child.id());
    let text = std::fs::read_to_string(format!("/proc/{}/status", child.id())).expect("proc");
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("a line");
    let kibibytes: f64 =
        line.split_whitespace().next().and_then(|word| word.parse().ok()).expect("a number");
    let _ = child.kill();
    let _ = child.wait();
    let words = sleep.map_or_else(|| "for ever".to_owned(), |sleep| format!("{sleep:?}"));
    println!("{:<46} {words:>8}", format!("{}, sleeps if nothing happens", arguments[0]));
    kibibytes / 1024.0
}

/// A listener of metrics that was asked a few times.
fn serving() -> f64 {
    let folder = tempfile::tempdir().expect("a folder");
    let socket = folder.path().join("metrics.sock");
    resident(&["metrics", "--listen", &format!("unix:{}", socket.display())], || {
        for _ in 0..8 {
            let mut stream = UnixStream::connect(&socket).expect("a listener");
            stream.write_all(b"GET /metrics HTTP/1.0\r\n\r\n").expect("a listener");
            let mut answer = String::new();
            stream.read_to_string(&mut answer).expect("an answer");
            assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
        }
    })
}

/// What one guest takes that is read whole and checked, on average over those of the public complaints.
fn checked() -> Duration {
    let guests: Vec<_> = COMPLAINTS.iter().map(|complaint| (complaint.build)()).collect();
    let round = || {
        let start = Instant::now();
        for guest in &guests {
            let snapshot = take(Some(guest.root()), Depth::Checks).expect("a guest");
            let relations = Relations::of(&snapshot);
            std::hint::black_box(check::run(&check::Guest::new(&snapshot, &relations), |_| true));
        }
        start.elapsed()
    };
    let best = (0..5).map(|_| round()).min().unwrap_or_default();
    best / u32::try_from(guests.len()).unwrap_or(u32::MAX)
}

/// Set in the process that runs in a network namespace of its own.
const INSIDE: &str = "NETVSC_BENCH_INSIDE_NAMESPACE";

/// From a change of a link, when the kernel has made it, to the line about it: the middle of many. None where that cannot be tried.
fn event() -> Option<f64> {
    let this = std::env::current_exe().ok()?;
    let output = Command::new("unshare").args(["--net", "--"]).arg(this).env(INSIDE, "1").output();
    let told = match output {
        Ok(output) if output.status.success() => String::from_utf8(output.stdout).ok(),
        _ => None,
    };
    told.and_then(|told| told.trim().parse().ok())
}

/// The same, inside the namespace: prints it, in milliseconds.
fn event_inside() -> ExitCode {
    let tap = Tap::open(&"bench0".parse().expect("a name")).expect("a TAP of its own");
    let mut kernel = Connection::open().expect("netlink");
    let links = kernel.links().expect("links");
    let index = links.iter().find(|link| link.name == "bench0").expect("it was made").index;
    let mut child = Command::new(PROGRAM)
        .args(["watch", "--all", "--json"])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("the program runs");
    let mut lines = BufReader::new(child.stdout.take().expect("a pipe")).lines();
    std::thread::sleep(Duration::from_secs(1));
    let mut times: Vec<_> = (0..RUNS)
        .map(|turn| {
            let up = turn % 2 == 0;
            kernel.set_up(index, up).expect("a link of its own");
            let start = Instant::now();
            let wanted = format!("\"up\":{up}");
            let seen =
                |line: std::io::Result<String>| line.is_ok_and(|line| line.contains(&wanted));
            assert!(lines.by_ref().any(seen), "it ended");
            start.elapsed()
        })
        .collect();
    times.sort();
    let _ = child.kill();
    let _ = child.wait();
    drop(tap);
    println!("{}", millis(times[RUNS / 2]));
    ExitCode::SUCCESS
}

fn main() -> ExitCode {
    if std::env::var_os(INSIDE).is_some() {
        return event_inside();
    }
    let (one, vf) = pairs(1);
    let (many, last) = pairs(64);
    let start = shortest(None, &["--version"]);
    let mut kept = report("start of the program", millis(start), 10.0, "ms");
    let udev = shortest(Some(&one), &["udev", &vf]);
    kept &= report("udev helper, 1 NIC", millis(udev), 2.0, "ms");
    let udev = shortest(Some(&many), &["udev", &last]);
    kept &= report("udev helper, 64 NICs", millis(udev), 5.0, "ms");
    let list = shortest(Some(&one), &["list"]);
    kept &= report("list, 1 NIC, start to end", millis(list), 10.0, "ms");
    let list = shortest(Some(&many), &["list"]);
    kept &= report("list, 64 NICs, start to end", millis(list), 10.0, "ms");
    kept &= report("scan of 64 NICs", millis(scanned(&many)), 5.0, "ms");
    kept &= report("watch, resident memory", resident(&["watch", "--json"], || {}), 8.0, "MiB");
    kept &= report("metrics --listen, resident memory", serving(), 8.0, "MiB");
    // 5,000 a minute.
    kept &= report("a guest read whole and checked", millis(checked()), 12.0, "ms");
    match event() {
        Some(event) => kept &= report("a change of a link to its line", event, 10.0, "ms"),
        None => {
            println!("skipped: a change of a link to its line: no network namespace can be made");
        }
    }
    if kept { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

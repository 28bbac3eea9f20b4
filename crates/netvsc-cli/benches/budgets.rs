//! What the tool may cost on a guest, against what it costs here: `cargo bench -p netvsc-cli --bench budgets`.
//!
//! Times are those of whole processes, the best of many, since machines are busy; a budget that is not kept ends this with
//! an error.

#[path = "../../netvsc-linux/tests/guest/mod.rs"]
#[expect(dead_code, reason = "shared with tests that need more of it")]
mod guest;

use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use guest::{Guest, kinds};

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

/// Resident memory in MiB and wake-ups in some seconds of a `netvsc watch` on this machine.
fn watching() -> (f64, u64) {
    let mut child = Command::new(PROGRAM)
        .args(["watch", "--json"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("the program runs");
    std::thread::sleep(Duration::from_secs(1));
    let status = |key: &str| -> u64 {
        let text = std::fs::read_to_string(format!("/proc/{}/status", child.id())).expect("proc");
        let line = text.lines().find_map(|line| line.strip_prefix(key)).expect("a line");
        line.split_whitespace().next().and_then(|word| word.parse().ok()).expect("a number")
    };
    let before = status("voluntary_ctxt_switches:");
    std::thread::sleep(Duration::from_secs(5));
    let woken = status("voluntary_ctxt_switches:") - before;
    #[expect(clippy::cast_precision_loss, reason = "kibibytes of one process")]
    let resident = status("VmRSS:") as f64 / 1024.0;
    let _ = child.kill();
    let _ = child.wait();
    (resident, woken)
}

fn main() -> ExitCode {
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
    kept &= report("list, 64 NICs, start to end", millis(list), 20.0, "ms");
    let (resident, woken) = watching();
    kept &= report("watch, resident memory", resident, 8.0, "MiB");
    println!("watch, wake-ups in 5 s (kernel log of this machine) {woken:>3}");
    if kept { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

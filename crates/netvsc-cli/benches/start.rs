//! From the start of the program to the first byte that it says: `cargo bench -p netvsc-cli --bench start`, a Markdown table.
//!
//! Beside it the same for `/bin/true`, which says nothing: what starting any program costs here.

#[path = "../../netvsc-linux/tests/guest/mod.rs"]
#[expect(dead_code, reason = "shared with tests that need more of it")]
mod guest;

use std::io::Read;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use guest::{Guest, kinds};

const TURNS: usize = 41;

/// The time to the first byte, or to the end of one that says nothing.
fn first_byte(command: &mut Command) -> Duration {
    let start = Instant::now();
    let mut child = command.stdout(Stdio::piped()).spawn().expect("it starts");
    let mut byte = [0];
    let mut out = child.stdout.take().expect("a pipe");
    let _ = out.read(&mut byte).expect("a pipe is read");
    let time = start.elapsed();
    drop(out);
    let _ = child.wait();
    time
}

fn quartile(mut turn: impl FnMut() -> Duration) -> f64 {
    let mut times: Vec<_> = (0..TURNS).map(|_| turn()).collect();
    times.sort();
    times[TURNS / 4].as_secs_f64() * 1e3
}

fn start(guest: &Guest, verb: &str) -> f64 {
    quartile(|| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_netvsc"));
        first_byte(command.args([verb, "--sysfs-root"]).arg(guest.root()))
    })
}

fn main() {
    println!("| guest | list, ms | check, ms | /bin/true, ms |");
    println!("|---|---|---|---|");
    for nics in [1, 2, 8, 64] {
        let guest = kinds::many(nics);
        let nothing = quartile(|| first_byte(&mut Command::new("true")));
        let (list, check) = (start(&guest, "list"), start(&guest, "check"));
        println!("| {nics} NICs with VFs | {list:.2} | {check:.2} | {nothing:.2} |");
    }
}

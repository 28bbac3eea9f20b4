//! What a process that has nothing to do waits for, as the kernel tells it.

use std::fs::{read_dir, read_link, read_to_string};
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

/// `ppoll`, by the number that it has here (`asm/unistd.h`).
const PPOLL: &str = if cfg!(target_arch = "x86_64") { "271" } else { "73" };
/// How long a process may be busy before the test gives up.
const PATIENCE: Duration = Duration::from_secs(20);

/// How long a process sleeps if nobody has anything to say to it: for ever, or so long. It has one thread, and no timer that
/// would wake it up earlier.
pub fn longest_sleep(pid: u32) -> Option<Duration> {
    let end = Instant::now() + PATIENCE;
    let place = loop {
        let text = read_to_string(format!("/proc/{pid}/syscall")).expect("the process of a test");
        let mut words = text.split_whitespace();
        if words.next() == Some(PPOLL) {
            break words.nth(2).map(str::to_owned).expect("three arguments");
        }
        assert!(Instant::now() < end, "it does not wait in ppoll: {text}");
        std::thread::yield_now();
    };
    let threads = read_dir(format!("/proc/{pid}/task")).expect("the process of a test").count();
    assert_eq!(threads, 1, "other threads may wake up");
    for entry in read_dir(format!("/proc/{pid}/fd")).expect("the process of a test").flatten() {
        let file = read_link(entry.path()).unwrap_or_default();
        assert!(!file.to_string_lossy().contains("timerfd"), "a timer: {}", file.display());
    }
    let place = u64::from_str_radix(place.trim_start_matches("0x"), 16).expect("an address");
    if place == 0 {
        return None;
    }
    let memory = std::fs::File::open(format!("/proc/{pid}/mem")).expect("the process of a test");
    let mut span = [0; 16];
    memory.read_exact_at(&mut span, place).expect("what it waits with");
    let [seconds, nanos] = [&span[..8], &span[8..]]
        .map(|bytes| u64::from_ne_bytes(bytes.try_into().expect("eight bytes")));
    Some(Duration::new(seconds, u32::try_from(nanos).expect("less than a second")))
}

//! What time it is on the clock of the kernel log.
//!
//! That clock stands still while the machine sleeps. `/proc/uptime` does not: after a hibernation the two are as far apart as that
//! lasted, and a moment ago would be days ago.

use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

use super::log::KernelLog;
use super::tree::{ATTRIBUTE_LIMIT, Tree};

/// Where a collected guest says what time it was: seconds, or [`UNKNOWN`].
pub(super) const FILE: &str = "netvsc/clock";
/// What is there where nobody knew.
const UNKNOWN: &str = "unknown";
/// By how much `/proc/uptime` may be ahead of the newest record where the log does not tell whether the kernel was silent or asleep.
const SILENCE: Duration = Duration::from_secs(24 * 3600);

/// Now, on the clock of the kernel log.
#[must_use]
pub fn now() -> Duration {
    let time = clock_gettime(ClockId::Monotonic);
    let (seconds, nanos) = (u64::try_from(time.tv_sec), u32::try_from(time.tv_nsec));
    Duration::new(seconds.unwrap_or_default(), nanos.unwrap_or_default())
}

/// What time it was when a tree was made: what it says of that itself, or else its uptime, if that can be of the same clock.
pub(super) fn of_tree(tree: &mut Tree, log: &KernelLog) -> Option<Duration> {
    // Both are read always, so that a tree and what is collected of it are the same.
    let uptime = tree.contents("proc/uptime", ATTRIBUTE_LIMIT);
    if let Some(text) = tree.contents(FILE, ATTRIBUTE_LIMIT) {
        return parse(&text);
    }
    let text = uptime?;
    let seconds: f64 = text.split_whitespace().next()?.parse().ok()?;
    let uptime = Duration::try_from_secs_f64(seconds).ok()?;
    let silent = log.newest.is_some_and(|newest| uptime.saturating_sub(newest) > SILENCE);
    // A whole log that says nothing of sleep is one of a machine on which nothing happened.
    let asleep = silent && (log.slept || !log.complete);
    (!asleep).then_some(uptime)
}

/// What [`of_tree`] reads.
pub(super) fn recorded(now: Option<Duration>) -> String {
    match now {
        Some(now) => format!("{}.{:09}\n", now.as_secs(), now.subsec_nanos()),
        None => format!("{UNKNOWN}\n"),
    }
}

fn parse(text: &str) -> Option<Duration> {
    let (seconds, nanos) = text.trim().split_once('.')?;
    let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    let good = nanos.len() == 9 && digits(seconds) && digits(nanos);
    good.then(|| Some(Duration::new(seconds.parse().ok()?, nanos.parse().ok()?)))?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_recorded_is_read_again() {
        for now in [Some(Duration::ZERO), Some(Duration::new(7_200, 5_000_001)), None] {
            assert_eq!(parse(&recorded(now)), now);
        }
        for bad in [
            "",
            "1",
            "1.5",
            "-1.000000000",
            "+1.000000000",
            "1.00000000x",
            "99999999999999999999.000000000",
        ] {
            assert_eq!(parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn the_clock_is_that_of_the_kernel_log() {
        let before = now();
        assert!(now() >= before && before > Duration::ZERO);
    }
}

//! `netvsc check`: what is wrong, and what mends it.

pub mod args;
pub mod document;
pub mod fixing;
mod text;

use std::net::IpAddr;
use std::process::ExitCode;

use netvsc_linux::check::{self, Guest, Report, Severity};
use netvsc_linux::inventory::{Depth, Snapshot, sample, take};
use netvsc_linux::relation::{Relations, State};

use self::args::{CheckArgs, ExitStyle};
use self::document::Checked;
use crate::error::Error;
use crate::inspect::table::Style;
use crate::inspect::{NO_HYPERV, complain, print, print_json};

/// Exit status where the command line makes no sense, or there is nothing to look at: what Nagios calls unknown.
pub const UNKNOWN: u8 = 3;
/// How many processes above this one are asked for the session.
const ANCESTORS: usize = 16;
/// How many samples of the counters are taken.
const SAMPLES: usize = 3;

/// `netvsc check`.
///
/// # Errors
/// If the root cannot be used or the output not be written.
pub fn run(args: &CheckArgs) -> Result<ExitCode, Error> {
    if args.list {
        print(&text::catalogue(Style::choose(args.output.color)))?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut snapshot = take(args.source.sysfs_root.as_deref(), Depth::Checks)?;
    if args.wants("path.frozen") {
        watch_counters(&mut snapshot, args);
    }
    let relations = Relations::of(&snapshot);
    let mut guest = Guest::new(&snapshot, &relations);
    guest.session = snapshot.live.then(session).flatten();
    let report = check::run(&guest, |id| args.wants(id));
    let fixes = args.fix.then(|| mend(&guest, &report, args)).transpose()?;
    let good = fixes.as_ref().map(|fixes| fixes.iter().all(fixing::Outcome::good));
    if args.output.json() {
        if !snapshot.hyperv {
            eprintln!("netvsc: {NO_HYPERV}");
        }
        let status = status(&report);
        print_json(&Checked::of(&snapshot, &report, status, fixes), &args.output)?;
    } else if !args.fix {
        say(&snapshot, &report, args)?;
    }
    Ok(match good {
        Some(good) => ExitCode::from(u8::from(!good)),
        None => ExitCode::from(exit_status(&report, args)),
    })
}

fn say(snapshot: &Snapshot, report: &Report, args: &CheckArgs) -> Result<(), Error> {
    if args.exit_style == ExitStyle::Npd {
        return print(&text::npd(report));
    }
    complain(snapshot);
    if !snapshot.hyperv {
        return print(&format!("NETVSC OK - {NO_HYPERV}\n"));
    }
    print(&text::report(report, status(report), Style::choose(args.output.color)))
}

/// Carries out what is safe, and says so as it goes.
fn mend(
    guest: &Guest<'_>,
    report: &Report,
    args: &CheckArgs,
) -> Result<Vec<fixing::Outcome>, Error> {
    let quiet = args.output.json();
    let fixes = fixing::fix(guest, report, args, |finding| {
        if quiet { Ok(()) } else { print(&text::planned(finding)) }
    })?;
    if !quiet {
        print(&text::mended(&fixes, report, args.dry_run))?;
    }
    Ok(fixes)
}

/// Takes samples of the counters, if anything depends on them.
fn watch_counters(snapshot: &mut Snapshot, args: &CheckArgs) {
    let accelerated = {
        let relations = Relations::of(snapshot);
        relations.nics.iter().any(|nic| nic.state == State::Accelerated)
    };
    if !snapshot.live || !accelerated {
        return;
    }
    for number in 0..SAMPLES {
        if number > 0 {
            std::thread::sleep(args.interval.0);
        }
        sample(snapshot);
    }
}

/// The word for all of it.
fn status(report: &Report) -> &'static str {
    match report.worst() {
        Some(Severity::Critical) => "critical",
        Some(Severity::Warn) => "warn",
        _ if report.undecided.is_empty() => "ok",
        _ => "unknown",
    }
}

fn exit_status(report: &Report, args: &CheckArgs) -> u8 {
    let status = status(report);
    match (args.exit_style, status) {
        (ExitStyle::Bool, _) => {
            u8::from(report.worst().is_some_and(|worst| worst >= args.threshold.severity()))
        }
        (_, "ok") => 0,
        (ExitStyle::Nagios, "warn") | (ExitStyle::Npd, "warn" | "critical") => 1,
        (ExitStyle::Nagios, "critical") | (ExitStyle::Npd, _) => 2,
        (ExitStyle::Nagios, _) => UNKNOWN,
    }
}

/// The addresses of the other end and of this end of the session that this runs in. `sudo` takes the variable away, so
/// that the processes above this one are asked as well.
fn session() -> Option<(IpAddr, IpAddr)> {
    if let Some(own) = std::env::var("SSH_CONNECTION").ok().as_deref().and_then(addresses) {
        return Some(own);
    }
    let mut process = std::process::id();
    for _ in 0..ANCESTORS {
        let status = std::fs::read_to_string(format!("/proc/{process}/status")).ok()?;
        let parent = status.lines().find_map(|line| line.strip_prefix("PPid:"))?;
        process = parent.trim().parse().ok()?;
        let variables = std::fs::read(format!("/proc/{process}/environ")).unwrap_or_default();
        let variables = String::from_utf8_lossy(&variables).into_owned();
        let found = variables.split('\0').find_map(|entry| entry.strip_prefix("SSH_CONNECTION="));
        if let Some(ends) = found.and_then(addresses) {
            return Some(ends);
        }
    }
    None
}

/// Reads `192.0.2.7 50022 10.0.0.4 22`.
fn addresses(connection: &str) -> Option<(IpAddr, IpAddr)> {
    let mut words = connection.split_whitespace();
    let theirs = words.next()?;
    // A link-local address carries the name of its interface.
    let plain = |word: &str| word.split('%').next().unwrap_or_default().parse().ok();
    Some((plain(theirs)?, plain(words.nth(1)?)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_ends_of_a_session_are_read() {
        let ends = addresses("192.0.2.7 50022 10.0.0.4 22").unwrap();
        assert_eq!(ends, ("192.0.2.7".parse().unwrap(), "10.0.0.4".parse().unwrap()));
        let ends = addresses("fe80::1%eth0 50022 fe80::2%eth0 22").unwrap();
        assert_eq!(ends.1, "fe80::2".parse::<IpAddr>().unwrap());
        for bad in ["", "x 1 y 2", "192.0.2.7 1"] {
            assert_eq!(addresses(bad), None, "{bad}");
        }
    }
}

//! `netvsc check`: what is wrong, and what mends it.

pub mod args;
pub mod columns;
pub mod document;
pub mod fixing;
mod text;

use std::process::ExitCode;

use netvsc_linux::check::{self, Guest, Report, Severity};
use netvsc_linux::inventory::{Depth, Snapshot, take};
use netvsc_linux::relation::{Relations, State, wants_samples};

use self::args::{CheckArgs, ExitStyle};
use self::document::Checked;
use crate::error::Error;
use crate::inspect::table::Style;
use crate::inspect::{NO_HYPERV, complain, print, print_json, watch_counters};
use crate::session::session;

/// Exit status where the command line makes no sense, or there is nothing to look at: what Nagios calls unknown.
pub const UNKNOWN: u8 = 3;

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
    if snapshot.live
        && (wants_samples(&snapshot) || args.wants("path.frozen") && accelerated(&snapshot))
    {
        watch_counters(&mut snapshot, args.interval.0);
    }
    let relations = Relations::of(&snapshot);
    let mut guest = Guest::new(&snapshot, &relations);
    guest.session = snapshot.live.then(session).flatten();
    let report = check::run(&guest, |id| args.wants(id));
    let fixes = args.fix.then(|| mend(&guest, &report, args)).transpose()?;
    let good = fixes.as_ref().map(|fixes| fixes.iter().all(fixing::Outcome::good));
    if args.output.json() {
        if !snapshot.hyperv {
            crate::remark(NO_HYPERV);
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
    let style = Style::choose(args.output.color);
    if let Some(columns) = args.columns() {
        return print(&columns::listing(report, columns, !args.brief, style));
    }
    if !snapshot.hyperv {
        return print(&format!("NETVSC OK - {NO_HYPERV}\n"));
    }
    print(&text::report(report, status(report), style))
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

/// Whether a NIC says that it sends through its VF, which its counters then have to show.
fn accelerated(snapshot: &Snapshot) -> bool {
    Relations::of(snapshot).nics.iter().any(|nic| nic.state == State::Accelerated)
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

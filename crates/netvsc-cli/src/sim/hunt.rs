//! The hunt: every bug that was put in on purpose has to be found.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use clap::ValueEnum;
use serde::Serialize;

use super::args::{Profile, SimArgs};
use super::bugs::{self, BUGS, Bug};
use super::{line, one};
use crate::error::Error;
use crate::report::json;

/// One bug and what came of the hunt, as a line of JSON.
#[derive(Debug, Serialize)]
#[serde(tag = "event", rename = "bug")]
struct BugLine {
    bug: &'static str,
    file: &'static str,
    what: &'static str,
    /// The first profile and seed that fail, and how.
    found: Option<Found>,
}

/// Where a bug was found.
#[derive(Clone, Debug, Serialize)]
struct Found {
    profile: &'static str,
    seed: u64,
    /// What was wrong.
    by: String,
    /// Systems that ran before and showed nothing.
    before: usize,
}

/// Carries out `netvsc sim --hunt`.
pub(super) fn run(args: &SimArgs) -> Result<ExitCode, Error> {
    bugs::choose(args.bug.as_deref())?;
    // A bug may make the code panic; that is one way of being found, and told as such.
    std::panic::set_hook(Box::new(|_| {}));
    let wanted = |bug: &&Bug| args.bug.as_deref().is_none_or(|name| name == bug.name);
    let (mut hunted, mut survivors) = (0, Vec::new());
    for bug in BUGS.iter().filter(wanted) {
        bugs::choose(Some(bug.name))?;
        let found = hunt(args);
        hunted += 1;
        if found.is_none() {
            survivors.push(bug.name);
        }
        let told = BugLine { bug: bug.name, file: bug.file, what: bug.what, found };
        line(&if args.json { json(&told)? } else { told.text() })?;
    }
    bugs::choose(None)?;
    if survivors.is_empty() {
        return Ok(ExitCode::SUCCESS);
    }
    let survivors = survivors.join(", ");
    Err(Error::Run(format!("of {hunted} bugs these were not found: {survivors}")))
}

/// The first system that shows the bug: seed by seed, of each seed profile by profile. Which one that is does not depend on how
/// many run at a time.
fn hunt(args: &SimArgs) -> Option<Found> {
    let seeds = args.seeds.first..args.seeds.end;
    let all = || {
        seeds
            .clone()
            .flat_map(|seed| Profile::value_variants().iter().map(move |profile| (seed, *profile)))
    };
    let count = all().count();
    let (next, end) = (AtomicUsize::new(0), AtomicUsize::new(count));
    let first: Mutex<Option<Found>> = Mutex::new(None);
    let jobs = args.jobs.map_or_else(super::processors, std::num::NonZeroUsize::get);
    thread::scope(|scope| {
        for _ in 0..jobs {
            scope.spawn(|| {
                loop {
                    let place = next.fetch_add(1, Ordering::Relaxed);
                    if place >= end.load(Ordering::Relaxed) {
                        return;
                    }
                    let Some((seed, profile)) = all().nth(place) else { return };
                    let Some(by) = shows(seed, profile) else { continue };
                    end.fetch_min(place, Ordering::Relaxed);
                    let Ok(mut first) = first.lock() else { return };
                    if first.as_ref().is_none_or(|first| place < first.before) {
                        *first = Some(Found { profile: profile.word(), seed, by, before: place });
                    }
                }
            });
        }
    });
    first.into_inner().ok().flatten()
}

/// What is wrong with this system, if anything.
fn shows(seed: u64, profile: Profile) -> Option<String> {
    let run = || one(seed, profile, usize::MAX, &mut |_| {});
    match catch_unwind(AssertUnwindSafe(run)) {
        Ok(outcome) => outcome.failure.map(|failure| failure.what),
        Err(_) => Some("the program panicked".into()),
    }
}

impl BugLine {
    fn text(&self) -> String {
        match &self.found {
            Some(Found { profile, seed, by, .. }) => {
                format!("{:<28} {profile} {seed}: {by}", self.bug)
            }
            None => format!("{:<28} NOT FOUND: {}", self.bug, self.what),
        }
    }
}

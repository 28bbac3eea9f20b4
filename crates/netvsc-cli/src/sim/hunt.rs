//! The hunt: every bug that was put in on purpose has to be found.

use std::fmt;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use clap::ValueEnum;
use serde::Serialize;

use super::args::{Profile, SimArgs};
use super::bugs::{self, BUGS, Bug};
use super::{line, one, scenario};
use crate::error::Error;
use crate::report::json;

/// One bug and what came of the hunt, as a line of JSON.
#[derive(Debug, Serialize)]
#[serde(tag = "event", rename = "bug")]
struct BugLine {
    bug: &'static str,
    file: &'static str,
    what: &'static str,
    /// The scenario that has to show it.
    expected: &'static str,
    /// The first system that fails, and how; the expected one is the first to be tried.
    found: Option<Found>,
}

/// Where a bug was found.
#[derive(Clone, Debug, Serialize)]
struct Found {
    /// The scenario, or the profile with its seed.
    #[serde(flatten)]
    place: Place,
    /// What was wrong.
    by: String,
    /// Systems that ran before and showed nothing.
    before: usize,
}

/// A system in which to look.
#[derive(Clone, Copy, Debug, Serialize)]
#[serde(untagged)]
enum Place {
    /// A scenario.
    Named { scenario: &'static str },
    /// A seed of a profile.
    Seed { profile: &'static str, seed: u64 },
}

/// All of them: the scenarios unless they do not count, then seed by seed the profiles.
fn places(seeds: Range<u64>, by_seeds: bool) -> Vec<Place> {
    let named = scenario::all().filter(|_| !by_seeds);
    let named = named.map(|scenario| Place::Named { scenario: scenario.name });
    let profiles = |seed| {
        let all = Profile::value_variants().iter();
        all.map(move |profile| Place::Seed { profile: profile.word(), seed })
    };
    named.chain(seeds.flat_map(profiles)).collect()
}

/// Carries out `netvsc sim --hunt`.
pub(super) fn run(args: &SimArgs) -> Result<ExitCode, Error> {
    bugs::choose(args.bug.as_deref())?;
    // A bug may make the code panic; that is one way of being found, and told as such.
    std::panic::set_hook(Box::new(|_| {}));
    let wanted = |bug: &&Bug| args.bug.as_deref().is_none_or(|name| name == bug.name);
    let (mut hunted, mut survivors, mut moved) = (0, Vec::new(), Vec::new());
    let places = places(args.seeds.first..args.seeds.end, args.by_seeds);
    let jobs = args.jobs.map_or_else(super::processors, std::num::NonZeroUsize::get);
    for bug in BUGS.iter().filter(wanted) {
        bugs::choose(Some(bug.name))?;
        let expected = Place::Named { scenario: bug.found_by };
        let at_once = if args.by_seeds { None } else { expected.shows() };
        let at_once = at_once.map(|by| Found { place: expected, by, before: 0 });
        let as_expected = at_once.is_some();
        let found = at_once.or_else(|| hunt(&places, jobs));
        hunted += 1;
        match found {
            None => survivors.push(bug.name),
            Some(_) if !as_expected && !args.by_seeds => moved.push(bug.name),
            Some(_) => {}
        }
        let Bug { name, file, what, found_by } = *bug;
        let told = BugLine { bug: name, file, what, expected: found_by, found };
        line(&if args.json { json(&told)? } else { told.text() })?;
    }
    bugs::choose(None)?;
    if !survivors.is_empty() {
        let survivors = survivors.join(", ");
        return Err(Error::Run(format!("of {hunted} bugs these were not found: {survivors}")));
    }
    if !moved.is_empty() {
        let moved = moved.join(", ");
        let what =
            "not by the scenario that the table of bugs names, but by another; correct it for";
        return Err(Error::Run(format!("all {hunted} bugs were found, some {what} {moved}")));
    }
    Ok(ExitCode::SUCCESS)
}

/// The first system that shows the bug. Which one that is does not depend on how many run at a time.
fn hunt(places: &[Place], jobs: usize) -> Option<Found> {
    let (next, end) = (AtomicUsize::new(0), AtomicUsize::new(places.len()));
    let first: Mutex<Option<Found>> = Mutex::new(None);
    thread::scope(|scope| {
        for _ in 0..jobs {
            scope.spawn(|| {
                loop {
                    let before = next.fetch_add(1, Ordering::Relaxed);
                    if before >= end.load(Ordering::Relaxed) {
                        return;
                    }
                    let Some(place) = places.get(before).copied() else { return };
                    let Some(by) = place.shows() else { continue };
                    end.fetch_min(before, Ordering::Relaxed);
                    let Ok(mut first) = first.lock() else { return };
                    if first.as_ref().is_none_or(|first| before < first.before) {
                        *first = Some(Found { place, by, before });
                    }
                }
            });
        }
    });
    first.into_inner().ok().flatten()
}

impl Place {
    /// What is wrong with this system, if anything.
    fn shows(self) -> Option<String> {
        let run = || match self {
            Self::Named { scenario } => {
                let scenario = scenario::all().find(|known| known.name == scenario)?;
                scenario.play(None, &mut |_| {}).failure
            }
            Self::Seed { profile, seed } => {
                let profile = Profile::from_str(profile, false).ok()?;
                one(seed, profile, usize::MAX, &mut |_| {}).failure.map(|failure| failure.what)
            }
        };
        catch_unwind(AssertUnwindSafe(run)).unwrap_or_else(|_| Some("the program panicked".into()))
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Named { scenario } => f.write_str(scenario),
            Self::Seed { profile, seed } => write!(f, "{profile} {seed}"),
        }
    }
}

impl BugLine {
    fn text(&self) -> String {
        match &self.found {
            Some(Found { place, by, .. }) => format!("{:<28} {place}: {by}", self.bug),
            None => format!("{:<28} NOT FOUND: {}", self.bug, self.what),
        }
    }
}

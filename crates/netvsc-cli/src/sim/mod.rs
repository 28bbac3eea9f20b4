//! `netvsc sim`: whole systems from seeds, with what a host may do and what must hold all the same.

pub mod args;
#[cfg(any(test, feature = "seeded-bugs"))]
mod bugs;
mod deed;
#[cfg(feature = "seeded-bugs")]
mod hunt;
mod invariant;
mod merge;
mod outcome;
pub(crate) mod results;
mod scenario;
mod script;
mod system;
#[cfg(test)]
mod tests;
mod traffic;

use std::collections::BTreeMap;
use std::io::{IsTerminal, Write};
use std::num::NonZeroUsize;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::Instant as Clock;

use indicatif::ProgressBar;

use crate::error::Error;
use crate::event::Event;
use crate::report::json;
use crate::timeline::{Heading, Recorder, Target};
use args::{Profile, SimArgs, SimVerb};
use merge::OutFile;
use outcome::{Failure, Outcome, SeedLine, Totals, TotalsLine};
use results::{Range, Results};
use script::Script;
use system::System;

/// Carries out `netvsc sim`.
///
/// # Errors
/// If a seed failed, or the output could not be written.
pub fn run(args: &SimArgs) -> Result<ExitCode, Error> {
    if let Some(SimVerb::Merge(args)) = &args.verb {
        return merge::run(args);
    }
    #[cfg(feature = "seeded-bugs")]
    if args.hunt {
        return hunt::run(args);
    }
    #[cfg(feature = "seeded-bugs")]
    bugs::choose(args.bug.as_deref())?;
    if args.list {
        return scenario::list(args.json);
    }
    if let Some(name) = &args.scenario {
        return scenario::run(name, args);
    }
    match args.replay {
        Some(seed) => replay(args, seed),
        None => sweep(args),
    }
}

/// One seed; the host follows the first `acts` acts of its script.
fn one(seed: u64, profile: Profile, acts: usize, tell: &mut dyn FnMut(&Event)) -> Outcome {
    one_drawn(seed, profile, acts, None, tell)
}

/// The same; what happens is recorded if there is a place for it.
fn one_drawn(
    seed: u64,
    profile: Profile,
    acts: usize,
    recorder: Option<&mut Option<Recorder>>,
    tell: &mut dyn FnMut(&Event),
) -> Outcome {
    let script = Script::new(seed, profile);
    let told: Vec<String> = script.acts.iter().take(acts).map(ToString::to_string).collect();
    let failed = |what| Some(Failure { what, acts: told });
    match System::new(script, acts) {
        Ok(mut system) => {
            if recorder.is_some() {
                system.record();
            }
            let run = system.run(tell);
            if let Some(recorder) = recorder {
                *recorder = system.recorded();
            }
            let figures = system.figures();
            let failure = run.and_then(|()| system.leave()).err().and_then(failed);
            Outcome { seed, figures, failure }
        }
        Err(what) => Outcome { seed, figures: outcome::Figures::default(), failure: failed(what) },
    }
}

/// One seed, and if it fails, the same with as few acts as still fail.
fn judge(seed: u64, profile: Profile) -> Outcome {
    let whole = one(seed, profile, usize::MAX, &mut |_| {});
    shortest(whole, |acts| one(seed, profile, acts, &mut |_| {}))
}

/// What fails with the fewest first acts, if it fails; `run` runs the same system with the first so many. Every number is tried
/// from 0 on: a system with one act more is another one, and may pass where a shorter one fails.
fn shortest(whole: Outcome, run: impl FnMut(usize) -> Outcome) -> Outcome {
    let Some(failure) = &whole.failure else { return whole };
    let mut shorter = (0..failure.acts.len()).map(run);
    shorter.find(|outcome| outcome.failure.is_some()).unwrap_or(whole)
}

fn line(text: &str) -> Result<(), Error> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{text}").map_err(Error::Output)
}

/// What the head of a replay's picture says.
fn heading(outcome: &Outcome, profile: Profile) -> Heading {
    let Outcome { seed, figures, failure } = outcome;
    let title = format!("netvsc sim --profile {} --replay {seed}", profile.word());
    headed(title, figures, failure.as_ref().map(|failure| failure.what.as_str()))
}

/// The same for any system.
fn headed(title: String, figures: &outcome::Figures, failure: Option<&str>) -> Heading {
    let verdict = failure.map_or(Ok(()), |what| Err(what.into()));
    let frames = format!(
        "{} NICs, {} acts of the host, {} switches; frames: {} of the guest, {} for it, {} sent again, {} arrived twice",
        figures.nics,
        figures.acts,
        figures.switches,
        figures.frames_out,
        figures.frames_in,
        figures.frames_resent,
        figures.frames_twice
    );
    Heading { title, verdict, figures: vec![frames, figures.blackouts.line().to_string()] }
}

fn replay(args: &SimArgs, seed: u64) -> Result<ExitCode, Error> {
    let acts = args.acts.unwrap_or(usize::MAX);
    let mut written = Ok(());
    let picture = args.timeline.as_deref().map(Target::create).transpose()?;
    let mut recorder = None;
    let wanted = picture.is_some().then_some(&mut recorder);
    let outcome = one_drawn(seed, args.profile, acts, wanted, &mut |event| {
        if written.is_ok() {
            written = if args.json { json(event) } else { Ok(event.to_string()) }
                .and_then(|text| line(&text));
        }
    });
    written?;
    if let (Some(target), Some(recorder)) = (picture, recorder) {
        target.write(&recorder, &heading(&outcome, args.profile))?;
    }
    if args.json {
        line(&json(&SeedLine::new(&outcome, args.profile))?)?;
    } else {
        let mut totals = Totals::default();
        totals.add(&outcome);
        let seconds = outcome.figures.virtual_micros as f64 / 1e6;
        line(&format!("seed {seed}: {} steps, {seconds:.3} s", outcome.figures.steps))?;
    }
    match outcome.failure {
        Some(failure) => Err(Error::Run(failure.what)),
        None => Ok(ExitCode::SUCCESS),
    }
}

/// The seeds that were asked for, by their place in the row; `None` behind the last.
fn seed_at(args: &SimArgs, place: u64) -> Option<u64> {
    let (step, offset) = args.shard.map_or((1, 0), |shard| (shard.count, shard.index));
    let seed = place.checked_mul(step)?.checked_add(offset)?.checked_add(args.seeds.first)?;
    (args.until_failure || seed < args.seeds.end).then_some(seed)
}

/// As many as run at a time without being told.
fn processors() -> usize {
    thread::available_parallelism().map_or(1, NonZeroUsize::get)
}

fn sweep(args: &SimArgs) -> Result<ExitCode, Error> {
    let file = args.out.as_deref().map(OutFile::create).transpose()?;
    let started = Clock::now();
    let jobs = args.jobs.map_or_else(processors, NonZeroUsize::get);
    let (next, stop) = (AtomicU64::new(0), AtomicBool::new(false));
    let (sender, receiver) = mpsc::sync_channel(4 * jobs);
    let mut totals = Totals::default();
    thread::scope(|scope| {
        for _ in 0..jobs {
            let (sender, next, stop) = (sender.clone(), &next, &stop);
            scope.spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    let place = next.fetch_add(1, Ordering::Relaxed);
                    let Some(seed) = seed_at(args, place) else { return };
                    // Nobody listens any more once the output is broken.
                    if sender.send((place, judge(seed, args.profile))).is_err() {
                        return;
                    }
                }
            });
        }
        drop(sender);
        let told = tell_in_order(args, &receiver, &stop, &mut totals);
        stop.store(true, Ordering::Relaxed);
        drop(receiver);
        told
    })?;
    let wall_seconds = started.elapsed().as_secs_f64();
    let range = Range::new(args.seeds, args.shard);
    let results = totals.results(args.profile, range, wall_seconds);
    let summary = TotalsLine::new(&results);
    line(&if args.json { json(&summary)? } else { summary.text() })?;
    if let Some(file) = file {
        file.write(&Results::new(results))?;
    }
    match totals.failed.len() {
        0 => Ok(ExitCode::SUCCESS),
        count => Err(Error::Run(format!("{count} of {} seeds failed", totals.seeds))),
    }
}

/// Tells what came of the seeds in the order of the seeds, whatever the order in which they were done.
fn tell_in_order(
    args: &SimArgs,
    receiver: &mpsc::Receiver<(u64, Outcome)>,
    stop: &AtomicBool,
    totals: &mut Totals,
) -> Result<(), Error> {
    let count = (0..).take_while(|place| seed_at(args, *place).is_some());
    let bar = match (args.json || !std::io::stderr().is_terminal(), args.until_failure) {
        (true, _) => ProgressBar::hidden(),
        (false, true) => ProgressBar::new_spinner(),
        (false, false) => ProgressBar::new(count.count() as u64),
    };
    let (mut early, mut place) = (BTreeMap::new(), 0);
    for (at, outcome) in receiver {
        early.insert(at, outcome);
        while let Some(outcome) = early.remove(&place) {
            place += 1;
            bar.inc(1);
            totals.add(&outcome);
            if args.json {
                line(&json(&SeedLine::new(&outcome, args.profile))?)?;
            } else if let Some(failure) = &outcome.failure {
                bar.suspend(|| tell_failure(args.profile, outcome.seed, failure))?;
            }
            if args.until_failure && outcome.failure.is_some() {
                stop.store(true, Ordering::Relaxed);
                return Ok(());
            }
        }
    }
    bar.finish_and_clear();
    Ok(())
}

fn tell_failure(profile: Profile, seed: u64, failure: &Failure) -> Result<(), Error> {
    line(&format!("seed {seed} FAILED: {}", failure.what))?;
    line(&format!("  with no more than {} acts of the host:", failure.acts.len()))?;
    for act in &failure.acts {
        line(&format!("    {act}"))?;
    }
    line(&format!("  again: {}", failure.command(seed, profile)))
}

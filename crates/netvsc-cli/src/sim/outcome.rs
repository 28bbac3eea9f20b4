//! What came of a seed, and of all of them.

use std::collections::BTreeMap;

use serde::Serialize;

use super::args::Profile;
use super::results::{FailedSeed, ProfileResults, Range, WaitingLine};
use crate::guest::{BlackoutLine, Blackouts, Tally};

/// What one system did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Figures {
    pub(super) nics: usize,
    /// Acts of the host that were possible at their moment.
    pub(super) acts: usize,
    /// The same by kind.
    pub(super) fired: BTreeMap<&'static str, u64>,
    pub(super) steps: u64,
    pub(super) frames_out: u64,
    pub(super) frames_in: u64,
    pub(super) frames_resent: u64,
    pub(super) frames_twice: u64,
    pub(super) switches: u64,
    pub(super) blackouts: Blackouts,
    /// Frames of the guest that waited at the end of each blackout.
    pub(super) waiting: Tally,
    pub(super) virtual_micros: u64,
    /// A hash of all events with their times.
    pub(super) trace: u64,
}

/// What came of one seed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Outcome {
    pub(super) seed: u64,
    pub(super) figures: Figures,
    pub(super) failure: Option<Failure>,
}

/// A seed that failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Failure {
    /// What was wrong.
    pub(super) what: String,
    /// The fewest first acts with which something is wrong, and these acts.
    pub(super) acts: Vec<String>,
}

impl Failure {
    /// The command that shows it again.
    pub(super) fn command(&self, seed: u64, profile: Profile) -> String {
        let (profile, acts) = (profile.word(), self.acts.len());
        format!("netvsc sim --profile {profile} --replay {seed} --acts {acts}")
    }
}

/// One seed as a line of JSON.
#[derive(Debug, Serialize)]
#[serde(tag = "event", rename = "seed")]
pub(super) struct SeedLine<'a> {
    seed: u64,
    profile: &'static str,
    ok: bool,
    failure: Option<&'a str>,
    acts_needed: Option<&'a [String]>,
    replay: Option<String>,
    nics: usize,
    acts: usize,
    steps: u64,
    frames: u64,
    frames_resent: u64,
    frames_twice: u64,
    switches: u64,
    blackouts: BlackoutLine,
    frames_waiting: WaitingLine,
    virtual_seconds: f64,
    trace: String,
}

impl<'a> SeedLine<'a> {
    pub(super) fn new(outcome: &'a Outcome, profile: Profile) -> Self {
        let Outcome { seed, figures, failure } = outcome;
        let failure = failure.as_ref();
        Self {
            seed: *seed,
            profile: profile.word(),
            ok: failure.is_none(),
            failure: failure.map(|failure| &*failure.what),
            acts_needed: failure.map(|failure| &*failure.acts),
            replay: failure.map(|failure| failure.command(*seed, profile)),
            nics: figures.nics,
            acts: figures.acts,
            steps: figures.steps,
            frames: figures.frames_out + figures.frames_in,
            frames_resent: figures.frames_resent,
            frames_twice: figures.frames_twice,
            switches: figures.switches,
            blackouts: figures.blackouts.line(),
            frames_waiting: WaitingLine::of(&figures.waiting),
            virtual_seconds: figures.virtual_micros as f64 / 1e6,
            trace: format!("{:016x}", figures.trace),
        }
    }
}

/// All seeds together.
#[derive(Debug, Default)]
pub(super) struct Totals {
    pub(super) seeds: u64,
    pub(super) failed: Vec<(u64, Failure)>,
    figures: Figures,
}

/// All seeds together, as a line of JSON.
#[derive(Debug, Serialize)]
#[serde(tag = "event", rename = "summary")]
pub(super) struct TotalsLine {
    profile: &'static str,
    seeds: u64,
    failed: Vec<u64>,
    nics: u64,
    acts: u64,
    acts_by_kind: BTreeMap<String, u64>,
    frames: u64,
    frames_resent: u64,
    frames_twice: u64,
    switches: u64,
    blackouts: BlackoutLine,
    frames_waiting: WaitingLine,
    virtual_seconds: f64,
    wall_seconds: f64,
    seeds_per_second: f64,
}

impl Totals {
    pub(super) fn add(&mut self, outcome: &Outcome) {
        self.seeds += 1;
        if let Some(failure) = &outcome.failure {
            self.failed.push((outcome.seed, failure.clone()));
        }
        let (sum, one) = (&mut self.figures, &outcome.figures);
        sum.nics += one.nics;
        sum.acts += one.acts;
        for (kind, count) in &one.fired {
            *sum.fired.entry(kind).or_default() += count;
        }
        sum.frames_out += one.frames_out;
        sum.frames_in += one.frames_in;
        sum.frames_resent += one.frames_resent;
        sum.frames_twice += one.frames_twice;
        sum.switches += one.switches;
        sum.blackouts.merge(&one.blackouts);
        sum.waiting.merge(&one.waiting);
        sum.virtual_micros += one.virtual_micros;
    }

    /// In the form that can be written down and added up.
    pub(super) fn results(
        &self,
        profile: Profile,
        range: Range,
        wall_seconds: f64,
    ) -> ProfileResults {
        let figures = &self.figures;
        let failed = self.failed.iter().map(|(seed, failure)| FailedSeed {
            seed: *seed,
            failure: failure.what.clone(),
            acts_needed: failure.acts.clone(),
            replay: failure.command(*seed, profile),
        });
        ProfileResults {
            profile,
            ranges: vec![range],
            missing: range.others(),
            seeds: self.seeds,
            failed: failed.collect(),
            nics: figures.nics as u64,
            acts: figures.acts as u64,
            acts_by_kind: figures.fired.iter().map(|(kind, n)| ((*kind).into(), *n)).collect(),
            frames: figures.frames_out + figures.frames_in,
            frames_resent: figures.frames_resent,
            frames_twice: figures.frames_twice,
            switches: figures.switches,
            blackouts: figures.blackouts.line(),
            blackout_lengths: figures.blackouts.lengths().collect(),
            frames_waiting: WaitingLine::of(&figures.waiting),
            waiting_counts: figures.waiting.counts().collect(),
            virtual_micros: figures.virtual_micros,
            wall_seconds,
        }
    }
}

impl TotalsLine {
    pub(super) fn new(results: &ProfileResults) -> Self {
        Self {
            profile: results.profile.word(),
            seeds: results.seeds,
            failed: results.failed.iter().map(|failed| failed.seed).collect(),
            nics: results.nics,
            acts: results.acts,
            acts_by_kind: results.acts_by_kind.clone(),
            frames: results.frames,
            frames_resent: results.frames_resent,
            frames_twice: results.frames_twice,
            switches: results.switches,
            blackouts: results.blackouts,
            frames_waiting: results.frames_waiting,
            virtual_seconds: results.virtual_micros as f64 / 1e6,
            wall_seconds: results.wall_seconds,
            seeds_per_second: results.seeds as f64 / results.wall_seconds.max(1e-9),
        }
    }

    /// The same for people.
    pub(super) fn text(&self) -> String {
        let Self { profile, seeds, nics, acts, frames, switches, blackouts, .. } = self;
        let failed = match self.failed.len() {
            0 => "all passed".into(),
            count => format!("{count} FAILED"),
        };
        format!(
            "{seeds} seeds of the profile {profile}: {failed}\n\
             {nics} NICs, {acts} acts of their hosts, {frames} frames, {switches} switches; {} frames sent again, {} of them arrived twice\n\
             frames waited for a switch: median {} us, p99 {} us, longest {} us\n\
             so many of them waited at its end: median {}, p99 {}, most {}\n\
             time: {:.1} s of the systems, {:.1} s on the clock, {:.1} seeds per second",
            self.frames_resent,
            self.frames_twice,
            blackouts.p50_us,
            blackouts.p99_us,
            blackouts.max_us,
            self.frames_waiting.p50,
            self.frames_waiting.p99,
            self.frames_waiting.max,
            self.virtual_seconds,
            self.wall_seconds,
            self.seeds_per_second,
        )
    }
}

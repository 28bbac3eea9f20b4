//! What a run of seeds writes down, so that runs of several machines or days become one: `docs/schema/sim-1.json`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::args::{Profile, Seeds, Shard};
use crate::guest::{BlackoutLine, Blackouts, Tally};

/// The version of the form. Keys are not renamed or retyped within one.
const SCHEMA: u32 = 1;

/// Why results cannot be used, or not together.
#[derive(Debug, thiserror::Error)]
pub enum ResultsError {
    /// The file cannot be read.
    #[error("cannot read `{}`: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// The file cannot be written.
    #[error("cannot write `{}`: {source}; give --out a file that you can write", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// The file is something else.
    #[error("`{}` has no results of `netvsc sim --out`: {why}", path.display())]
    Form {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// The results are of another program.
    #[error(
        "`{}` is of netvsc {found}, `{}` of netvsc {expected}: expected results of one version, since a seed is another \
         system in another version",
        path.display(), first.display()
    )]
    Version {
        /// The file that differs.
        path: PathBuf,
        /// Its version.
        found: String,
        /// The first file.
        first: PathBuf,
        /// The version of that.
        expected: String,
    },
    /// A seed ran twice.
    #[error("seed {seed} of the profile {profile} is in `{}` and in `{}`: expected each seed once", first.display(), second.display())]
    Overlap {
        /// The profile.
        profile: &'static str,
        /// The first such seed that was found.
        seed: u64,
        /// A file with it.
        first: PathBuf,
        /// The other one; the same, if a file contradicts itself.
        second: PathBuf,
    },
}

/// All results of a file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Results {
    schema_version: u32,
    /// The program's.
    version: String,
    /// In the order of the command line's help, each at most once.
    pub(super) profiles: Vec<ProfileResults>,
}

/// What one profile's seeds came to.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ProfileResults {
    pub(super) profile: Profile,
    /// Which seeds these are.
    pub(super) ranges: Vec<Range>,
    /// Shares of the same seeds that are not among them.
    pub(super) missing: Vec<Range>,
    pub(super) seeds: u64,
    pub(super) failed: Vec<FailedSeed>,
    pub(super) nics: u64,
    pub(super) acts: u64,
    pub(super) acts_by_kind: BTreeMap<String, u64>,
    pub(super) frames: u64,
    pub(super) frames_resent: u64,
    pub(super) frames_twice: u64,
    pub(super) switches: u64,
    pub(super) blackouts: BlackoutLine,
    /// Blackouts by their length in microseconds: pairs of a length and how many were that long.
    pub(super) blackout_lengths: Vec<(u64, u64)>,
    pub(super) frames_waiting: WaitingLine,
    /// Blackouts by the frames that waited at their end: pairs of a number and how often it was that.
    pub(super) waiting_counts: Vec<(u64, u64)>,
    pub(super) virtual_micros: u64,
    /// On the clock of the machines, one after the other.
    pub(super) wall_seconds: f64,
}

/// How many frames of the guest waited at the end of a blackout.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct WaitingLine {
    /// Half of the time no more.
    pub(super) p50: u64,
    /// 99 times of 100 no more.
    pub(super) p99: u64,
    /// Never more.
    pub(super) max: u64,
}

impl WaitingLine {
    pub(super) fn of(tally: &Tally) -> Self {
        let [p50, p99, max] = [50, 99, 100].map(|of_hundred| tally.percentile(of_hundred));
        Self { p50, p99, max }
    }
}

/// Seeds from `first` to the one before `end`, or a share of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Range {
    first: u64,
    end: u64,
    /// Which share, from 0, of how many.
    shard: u64,
    shards: u64,
}

/// A seed that failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct FailedSeed {
    pub(super) seed: u64,
    /// What was wrong.
    pub(super) failure: String,
    /// The fewest first acts of the host with which something is wrong.
    pub(super) acts_needed: Vec<String>,
    /// The command that shows it again.
    pub(super) replay: String,
}

impl Range {
    pub(super) fn new(seeds: Seeds, shard: Option<Shard>) -> Self {
        let Shard { index, count } = shard.unwrap_or(Shard { index: 0, count: 1 });
        Self { first: seeds.first, end: seeds.end, shard: index, shards: count }
    }

    /// The other shares of the same seeds.
    pub(super) fn others(&self) -> Vec<Self> {
        missing(&[*self])
    }

    fn is_sound(&self) -> bool {
        self.first < self.end && self.shard < self.shards
    }

    /// The first seed that is in it; not below `end` if there is none.
    fn start(&self) -> u128 {
        u128::from(self.first) + u128::from(self.shard)
    }

    fn count(&self) -> u64 {
        let start = u64::try_from(self.start()).unwrap_or(u64::MAX);
        self.end.saturating_sub(start).div_ceil(self.shards)
    }

    /// The first seed that is in both.
    fn common(&self, other: &Self) -> Option<u64> {
        // Through the seeds of the one with the longer steps; after as many as the other's step all that can happen has.
        let (long, short) = if self.shards >= other.shards { (self, other) } else { (other, self) };
        let (step, other_step) = (u128::from(long.shards), u128::from(short.shards));
        let low = long.start().max(short.start());
        let first = long.start() + (low - long.start()).div_ceil(step) * step;
        let end = u128::from(self.end.min(other.end));
        (0..other_step)
            .map(|n| first + n * step)
            .take_while(|seed| *seed < end)
            .find(|seed| (seed - short.start()).is_multiple_of(other_step))
            .and_then(|seed| u64::try_from(seed).ok())
    }
}

impl std::fmt::Display for Range {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { first, end, shard, shards } = self;
        write!(f, "{first}..{end}")?;
        if *shards > 1 { write!(f, " share {shard}/{shards}") } else { Ok(()) }
    }
}

/// Shares that belong to those that are here and are not.
fn missing(ranges: &[Range]) -> Vec<Range> {
    let mut missing = Vec::new();
    let mut here: Vec<_> = ranges.to_vec();
    here.sort_unstable_by_key(|range| (range.first, range.end, range.shards, range.shard));
    for same in here.chunk_by(|a, b| (a.first, a.end, a.shards) == (b.first, b.end, b.shards)) {
        let Some(range) = same.first() else { continue };
        let lacks = |shard: &u64| !same.iter().any(|range| range.shard == *shard);
        missing.extend(
            (0..range.shards)
                .filter(lacks)
                .map(|shard| Range { shard, ..*range })
                .filter(|range| range.count() > 0),
        );
    }
    missing
}

impl ProfileResults {
    fn blackouts(&self) -> Blackouts {
        Blackouts::counted(self.blackout_lengths.iter().copied(), self.blackouts.pushed_back)
    }

    /// Adds other seeds of the same profile.
    fn add(&mut self, other: Self) {
        let mut blackouts = self.blackouts();
        blackouts.merge(&other.blackouts());
        self.blackouts = blackouts.line();
        self.blackout_lengths = blackouts.lengths().collect();
        self.waiting_counts.extend(other.waiting_counts);
        let waiting = Tally::counted(self.waiting_counts.iter().copied());
        self.frames_waiting = WaitingLine::of(&waiting);
        self.waiting_counts = waiting.counts().collect();
        self.ranges.extend(other.ranges);
        self.ranges.sort_unstable();
        self.missing = missing(&self.ranges);
        self.seeds += other.seeds;
        self.failed.extend(other.failed);
        self.failed.sort_by_key(|failed| failed.seed);
        self.nics += other.nics;
        self.acts += other.acts;
        for (kind, count) in other.acts_by_kind {
            *self.acts_by_kind.entry(kind).or_default() += count;
        }
        self.frames += other.frames;
        self.frames_resent += other.frames_resent;
        self.frames_twice += other.frames_twice;
        self.switches += other.switches;
        self.virtual_micros += other.virtual_micros;
        self.wall_seconds += other.wall_seconds;
    }

    /// What cannot be so, if anything.
    fn contradiction(&self) -> Option<String> {
        let profile = self.profile.word();
        if let Some(range) = self.ranges.iter().find(|range| !range.is_sound()) {
            return Some(format!("{range} of the profile {profile} is no range of seeds"));
        }
        let expected: u128 = self.ranges.iter().map(|range| u128::from(range.count())).sum();
        (u128::from(self.seeds) != expected)
            .then(|| format!("{} seeds of the profile {profile}, expected {expected}", self.seeds))
    }
}

impl Results {
    /// Of one profile, by this program.
    pub(super) fn new(results: ProfileResults) -> Self {
        let version = env!("CARGO_PKG_VERSION").into();
        Self { schema_version: SCHEMA, version, profiles: vec![results] }
    }

    /// Reads a file.
    ///
    /// # Errors
    /// If it cannot be read, or is something else.
    pub(super) fn read(path: &Path) -> Result<Self, ResultsError> {
        let text = std::fs::read_to_string(path);
        let text = text.map_err(|source| ResultsError::Read { path: path.into(), source })?;
        let form = |why: String| ResultsError::Form { path: path.into(), why };
        let results: Self = serde_json::from_str(&text).map_err(|error| form(error.to_string()))?;
        if results.schema_version != SCHEMA {
            let found = results.schema_version;
            return Err(form(format!("its form has version {found}, expected {SCHEMA}")));
        }
        let wrong = results.profiles.iter().find_map(ProfileResults::contradiction);
        wrong.map_or(Ok(results), |why| Err(form(why)))
    }

    /// All results as one.
    ///
    /// # Errors
    /// If they are of different programs, or a seed is in two of them.
    pub(super) fn merged(files: Vec<(PathBuf, Self)>) -> Result<Self, ResultsError> {
        let first = files.first().map(|(path, results)| (path.clone(), results.version.clone()));
        let (first, expected) = first.unwrap_or_default();
        let mut seen: Vec<(PathBuf, Profile, Range)> = Vec::new();
        let mut all: BTreeMap<Profile, ProfileResults> = BTreeMap::new();
        for (path, results) in files {
            if results.version != expected {
                let found = results.version;
                return Err(ResultsError::Version { path, found, first, expected });
            }
            for one in results.profiles {
                for range in &one.ranges {
                    apart(&seen, one.profile, range, &path)?;
                    seen.push((path.clone(), one.profile, *range));
                }
                match all.get_mut(&one.profile) {
                    Some(sum) => sum.add(one),
                    None => {
                        all.insert(one.profile, one);
                    }
                }
            }
        }
        let profiles = all.into_values().collect();
        Ok(Self { schema_version: SCHEMA, version: expected, profiles })
    }
}

/// That no seed of a range was seen before.
fn apart(
    seen: &[(PathBuf, Profile, Range)],
    profile: Profile,
    range: &Range,
    path: &Path,
) -> Result<(), ResultsError> {
    for (first, _, before) in seen.iter().filter(|(_, other, _)| *other == profile) {
        if let Some(seed) = before.common(range) {
            let (first, second) = (first.clone(), path.into());
            return Err(ResultsError::Overlap { profile: profile.word(), seed, first, second });
        }
    }
    Ok(())
}

#[cfg(test)]
#[path = "results/tests.rs"]
mod tests;

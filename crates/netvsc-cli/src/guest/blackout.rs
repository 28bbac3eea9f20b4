//! How long switches kept new frames waiting.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// How often each number came.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    by_number: BTreeMap<u64, u64>,
}

impl Tally {
    /// Counts a number once more.
    pub fn add(&mut self, number: u64) {
        *self.by_number.entry(number).or_default() += 1;
    }

    /// Counts those of another tally, too.
    pub fn merge(&mut self, other: &Self) {
        for (number, count) in &other.by_number {
            *self.by_number.entry(*number).or_default() += count;
        }
    }

    /// Those that were counted before: numbers, each with how often it came.
    pub fn counted(numbers: impl Iterator<Item = (u64, u64)>) -> Self {
        let mut by_number = BTreeMap::new();
        for (number, count) in numbers {
            *by_number.entry(number).or_default() += count;
        }
        Self { by_number }
    }

    /// Numbers from the least, each with how often it came.
    pub fn counts(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        self.by_number.iter().map(|(number, count)| (*number, *count))
    }

    /// How many were counted.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.by_number.values().sum()
    }

    /// The number that so many of a hundred do not exceed.
    #[must_use]
    pub fn percentile(&self, of_hundred: u64) -> u64 {
        let wanted = (self.total() * of_hundred).div_ceil(100);
        let mut passed = 0;
        for (number, count) in &self.by_number {
            passed += count;
            if passed >= wanted {
                return *number;
            }
        }
        0
    }
}

/// Blackouts of switches, counted by their length to the microsecond.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Blackouts {
    by_micros: Tally,
    pushed_back: u64,
}

/// What there is to say about blackouts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlackoutLine {
    /// Switches.
    pub switches: u64,
    /// Half of them took no longer, in microseconds of the run's time.
    pub p50_us: u64,
    /// 99 of 100 took no longer.
    pub p99_us: u64,
    /// None took longer.
    pub max_us: u64,
    /// Times that a frame was pushed back during one; a frame that is tried twice counts twice.
    pub pushed_back: u64,
}

impl fmt::Display for BlackoutLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { switches, p50_us, p99_us, max_us, .. } = self;
        write!(
            f,
            "frames waited for {switches} switches: median {p50_us} us, p99 {p99_us} us, longest {max_us} us"
        )
    }
}

impl Blackouts {
    /// Counts one.
    pub fn add(&mut self, length: Duration, pushed_back: u64) {
        self.by_micros.add(u64::try_from(length.as_micros()).unwrap_or(u64::MAX));
        self.pushed_back += pushed_back;
    }

    /// Counts those of another guest, too.
    pub fn merge(&mut self, other: &Self) {
        self.by_micros.merge(&other.by_micros);
        self.pushed_back += other.pushed_back;
    }

    /// Those that were counted before: lengths in microseconds, each with how many were that long.
    pub fn counted(lengths: impl Iterator<Item = (u64, u64)>, pushed_back: u64) -> Self {
        Self { by_micros: Tally::counted(lengths), pushed_back }
    }

    /// Lengths in microseconds from the shortest, each with how many were that long.
    pub fn lengths(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        self.by_micros.counts()
    }

    /// In figures.
    #[must_use]
    pub fn line(&self) -> BlackoutLine {
        BlackoutLine {
            switches: self.by_micros.total(),
            p50_us: self.by_micros.percentile(50),
            p99_us: self.by_micros.percentile(99),
            max_us: self.by_micros.percentile(100),
            pushed_back: self.pushed_back,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_lengths_that_occurred() {
        let mut blackouts = Blackouts::default();
        assert_eq!(blackouts.line(), BlackoutLine::default());
        for micros in 1..=200 {
            blackouts.add(Duration::from_micros(micros), 1);
        }
        let mut other = Blackouts::default();
        other.add(Duration::from_secs(1), 0);
        blackouts.merge(&other);
        let line = blackouts.line();
        assert_eq!((line.switches, line.pushed_back), (201, 200));
        assert_eq!((line.p50_us, line.p99_us, line.max_us), (101, 199, 1_000_000));
    }
}

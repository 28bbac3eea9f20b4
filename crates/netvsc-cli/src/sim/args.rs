//! The command line of `netvsc sim`.

use std::fmt;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::str::FromStr;

use clap::{Args, Subcommand, ValueEnum};
use serde::{Deserialize, Serialize};

/// What `netvsc sim --help` says.
pub const LONG: &str = "\
Run whole systems from seeds: a guest, a host that does what a profile allows, traffic in both directions, on a clock of \
their own. The same seed gives the same system, byte for byte.

At every step it is checked that no frame is lost, overtaken, changed, or delivered to another NIC; that none arrives twice \
but those a VF had sent and not confirmed; that nothing waits without a deadline. In the end, once the host behaves again, \
every NIC has to use its VF, host and guest have to agree on every path, and all memory has to be given back.

A seed that fails is run again with fewer and fewer of the host's acts, until none can be left out at the end, and the \
command that repeats it is printed.";

/// Examples for `netvsc sim --help`.
pub const EXAMPLES: &str = "\
Examples:
  netvsc sim
      seeds 0 to 99 of the profile smoke, on all processors
  netvsc sim --profile flapping --seeds 0..1000 --json
      one JSON object per seed, and a summary as the last line
  netvsc sim --profile hostile --until-failure
      one seed after the other until one fails
  netvsc sim --profile servicing --replay 7
      every event of one seed
  netvsc sim --profile flapping --replay 7 --timeline run.svg
      the same, and a picture of it
  netvsc sim --profile storm --seeds 0..10000 --shard 1/4 --out storm-1.json
  netvsc sim merge storm-*.json
      a quarter of the seeds on each of four machines, and what they come to together
  netvsc sim --list
      the scenarios that have names
  netvsc sim --scenario eject-during-join
      every event of one of them

Exit status:
  0  every seed passed
  1  a seed failed
  2  the command line makes no sense";

const MERGE_STATUS: &str = "\
Exit status:
  0  every seed passed; shares that are missing are named
  1  a seed failed, a seed is in two of the files, or the files are of different versions or no results
  2  the command line makes no sense";

/// What a host does to its guest, and how many NICs there are.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    ValueEnum,
    Serialize,
    Deserialize,
)]
#[serde(rename_all = "kebab-case")]
pub enum Profile {
    /// 1 to 4 NICs; VFs are ejected, torn away, and come back, links go down: a little of everything
    #[default]
    Smoke,
    /// 1 to 8 NICs that come up, with long delays and everything in any order, and nothing after that
    AzureBoot,
    /// 2 to 8 NICs; all VFs leave and come back with the serials dealt out anew
    Servicing,
    /// 1 to 4 NICs; links and VFs come and go far more often than is good
    Flapping,
    /// 1 to 4 NICs; switches fail, are lost, are answered twice or not at all, the host switches by itself, serials collide
    Hostile,
    /// 1 to 3 ports of one function, for as many NICs, by serial and MAC or, as with MANA, by MAC alone
    Ports,
    /// 16 to 64 NICs
    Scale,
    /// 1 to 4 NICs that are taken away and come back; functions with strange MACs, twins of VFs, disks; a bus that repeats itself
    Hotplug,
    /// 1 to 4 NICs; the machine stands still, the guest's clock jumps
    Clocks,
    /// 1 to 3 NICs; the guest is replaced by another one, with its VFs in place
    Kexec,
    /// 1 to 4 NICs; allocations of the guest fail
    Famine,
    /// 1 to 4 NICs that the guest resets, also while they are on their VFs, alone or all of them around a pause of the machine
    Reset,
    /// 1 to 4 NICs with rings of a page or two, and a host that is slow and completes wrongly
    Storm,
    /// 1 to 4 NICs; what the host says by itself gets lost, VFs stall, or send and do not confirm
    Lossy,
    /// 1 to 4 NICs; people in the guest change MTUs and MACs, move VFs' ports, reset NICs, and have the guest sleep
    Operators,
    /// 1 to 4 NICs at hosts that speak NVSP 1 to 6.1, with MTUs of all sizes; the older half uses no VFs
    OldHosts,
}

impl Profile {
    /// The word for machines, as on the command line.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Smoke => "smoke",
            Self::AzureBoot => "azure-boot",
            Self::Servicing => "servicing",
            Self::Flapping => "flapping",
            Self::Hostile => "hostile",
            Self::Ports => "ports",
            Self::Scale => "scale",
            Self::Hotplug => "hotplug",
            Self::Clocks => "clocks",
            Self::Kexec => "kexec",
            Self::Famine => "famine",
            Self::Reset => "reset",
            Self::Storm => "storm",
            Self::Lossy => "lossy",
            Self::Operators => "operators",
            Self::OldHosts => "old-hosts",
        }
    }
}

/// Seeds from the first to the one before the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seeds {
    /// The first.
    pub first: u64,
    /// The one behind the last.
    pub end: u64,
}

/// Why a text is not a range of seeds or a share of them.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RangeError {
    /// Not two numbers with two points between.
    #[error("expected two numbers with `..` between, such as 0..1000")]
    Seeds,
    /// Nothing between the two.
    #[error("no seed from {first} to before {end}; expected the second number to be greater")]
    Empty {
        /// The first number.
        first: u64,
        /// The second.
        end: u64,
    },
    /// Not two numbers with a slash between, the first smaller.
    #[error("expected a share and the number of shares, from 0/N to N-1/N, such as 0/4")]
    Shard,
}

impl FromStr for Seeds {
    type Err = RangeError;

    fn from_str(text: &str) -> Result<Self, RangeError> {
        let (first, end) = text.split_once("..").ok_or(RangeError::Seeds)?;
        let number = |text: &str| text.trim().parse::<u64>().map_err(|_| RangeError::Seeds);
        let (first, end) = (number(first)?, number(end)?);
        if first >= end {
            return Err(RangeError::Empty { first, end });
        }
        Ok(Self { first, end })
    }
}

impl fmt::Display for Seeds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}..{}", self.first, self.end)
    }
}

/// One of several equal shares of the seeds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shard {
    /// Which, from 0.
    pub index: u64,
    /// Of how many.
    pub count: u64,
}

impl FromStr for Shard {
    type Err = RangeError;

    fn from_str(text: &str) -> Result<Self, RangeError> {
        let (index, count) = text.split_once('/').ok_or(RangeError::Shard)?;
        let number = |text: &str| text.trim().parse::<u64>().map_err(|_| RangeError::Shard);
        let (index, count) = (number(index)?, number(count)?);
        if index >= count {
            return Err(RangeError::Shard);
        }
        Ok(Self { index, count })
    }
}

/// Options of `netvsc sim`.
#[derive(Clone, Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
#[command(group = clap::ArgGroup::new("one_system").args(["replay", "scenario"]))]
pub struct SimArgs {
    /// What else to do with seeds.
    #[command(subcommand)]
    pub verb: Option<SimVerb>,

    /// Which seeds: from the first to the one before the second
    #[arg(long, value_name = "A..B", default_value = "0..100")]
    pub seeds: Seeds,

    /// What the host does, and to how many NICs
    #[arg(long, value_enum, value_name = "PROFILE", default_value_t = Profile::Smoke)]
    pub profile: Profile,

    /// How many seeds run at a time; without it, one per processor
    #[arg(long, value_name = "N")]
    pub jobs: Option<NonZeroUsize>,

    /// Only this share of the seeds, such as 0/4 for every fourth
    #[arg(long, value_name = "I/N")]
    pub shard: Option<Shard>,

    /// From the first seed on, without an end, until one fails
    #[arg(long)]
    pub until_failure: bool,

    /// One seed, with all its events
    #[arg(long, value_name = "SEED", conflicts_with_all = ["seeds", "until_failure", "shard", "jobs"])]
    pub replay: Option<u64>,

    /// Only so many of the host's acts, then it behaves
    #[arg(long, value_name = "N", requires = "replay")]
    pub acts: Option<usize>,

    /// Name the scenarios, with the known edge cases that they come from
    #[arg(long, conflicts_with_all = ["seeds", "profile", "until_failure", "shard", "jobs", "replay"])]
    pub list: bool,

    /// Play one scenario, with all its events
    #[arg(long, value_name = "NAME", conflicts_with_all = ["list", "seeds", "profile", "until_failure", "shard", "jobs", "replay"])]
    pub scenario: Option<String>,

    /// Put a bug in on purpose; see `--hunt` for their names
    #[cfg(feature = "seeded-bugs")]
    #[arg(long, value_name = "NAME")]
    pub bug: Option<String>,

    /// Look for each bug (or only `--bug`) in the scenario that is to show it, in the others, and in all profiles with these
    /// seeds, until it is found
    #[cfg(feature = "seeded-bugs")]
    #[arg(long, conflicts_with_all = ["profile", "until_failure", "shard", "replay"])]
    pub hunt: bool,

    /// Look for them in seeds only, not in scenarios
    #[cfg(feature = "seeded-bugs")]
    #[arg(long, requires = "hunt")]
    pub by_seeds: bool,

    /// Draw what happened into this file, as SVG for a browser
    #[arg(long, value_name = "FILE", requires = "one_system")]
    pub timeline: Option<PathBuf>,

    /// Write what all seeds came to into this file, for `netvsc sim merge`
    #[arg(long, value_name = "FILE", conflicts_with_all = ["until_failure", "replay", "list", "scenario"])]
    pub out: Option<PathBuf>,

    /// Print one JSON object per seed (or per event of a replay); the last line is the summary
    #[arg(long)]
    pub json: bool,
}

/// What else there is to do with seeds.
#[derive(Clone, Debug, Subcommand)]
pub enum SimVerb {
    /// Add up what `--out` wrote: shares of the same seeds, other seeds, other profiles
    #[command(after_long_help = MERGE_STATUS)]
    Merge(MergeArgs),
}

/// Options of `netvsc sim merge`.
#[derive(Clone, Debug, Args)]
pub struct MergeArgs {
    /// Files that `--out` wrote
    #[arg(required = true, value_name = "FILE")]
    pub files: Vec<PathBuf>,

    /// Write the sum into this file, which can be merged again
    #[arg(long, value_name = "FILE")]
    pub out: Option<PathBuf>,

    /// Print the sum as JSON
    #[arg(long)]
    pub json: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_and_shares_are_read_and_refused_with_a_reason() {
        assert_eq!("3..17".parse(), Ok(Seeds { first: 3, end: 17 }));
        assert_eq!("5..5".parse::<Seeds>(), Err(RangeError::Empty { first: 5, end: 5 }));
        for bad in ["", "5", "a..b", "..", "1..", "-1..2"] {
            assert_eq!(bad.parse::<Seeds>(), Err(RangeError::Seeds), "{bad}");
        }
        assert_eq!("1/4".parse(), Ok(Shard { index: 1, count: 4 }));
        for bad in ["", "4/4", "1", "a/4", "0/0"] {
            assert_eq!(bad.parse::<Shard>(), Err(RangeError::Shard), "{bad}");
        }
    }
}

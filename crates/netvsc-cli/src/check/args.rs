//! Options of `netvsc check`.

use std::str::FromStr;

use clap::{Args, ValueEnum};
use netvsc_linux::check::{self, Severity};

use super::columns::{BRIEF, FindingColumn};
use crate::inspect::args::{OutputArgs, SourceArgs};
use crate::units::Span;

/// What is said at length about checking.
pub const LONG: &str = "\
Look for what is wrong with the NICs and VFs of this Linux guest. Every finding says on which facts it rests, where each \
was read and how sure it is, and which command or file mends it. A check that lacks a fact says `unknown` and what it \
needs; it never guesses.

With --fix the safe fixes are carried out, each after it was shown, and what undoes them is printed. An interface that \
carries the session this runs in or the default route is left alone without --force.";

/// Exit statuses.
pub const STATUS: &str = "\
Exit status:
  --exit-style nagios   0 nothing wrong, 1 warnings, 2 something critical, 3 nothing found but some checks could not decide
  --exit-style npd      0 nothing wrong, 1 warnings or worse, 2 some checks could not decide
  --exit-style bool     0 nothing at or above --threshold, 1 otherwise
  with --fix            0 all that is safe was done, 1 something was refused or failed
  3 in every style      the command line makes no sense, or the root cannot be used

What is only informative (info) is nothing wrong. A machine that is no Hyper-V guest has nothing wrong.

No privilege is needed. CAP_SYSLOG lets it read the kernel log, CAP_SYS_ADMIN look into other network namespaces, \
CAP_DAC_READ_SEARCH read configuration that is not for everybody; --fix needs CAP_NET_ADMIN and may need more.

Examples:
  netvsc check
  netvsc check --only own,pair.unpaired --json
  netvsc check --fix --dry-run
  netvsc check --list";

/// How the exit status says what was found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum ExitStyle {
    /// 0 ok, 1 warning, 2 critical, 3 unknown; for Nagios and its kin
    #[default]
    Nagios,
    /// 0 ok, 1 problem, 2 unknown, and one line of at most 80 characters; for node-problem-detector
    Npd,
    /// 0 nothing at or above --threshold, 1 otherwise; for scripts
    Bool,
}

/// From which severity on something counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Threshold {
    /// Everything
    Info,
    /// Warnings and worse
    Warn,
    /// Critical only
    Critical,
}

impl Threshold {
    /// As a severity.
    #[must_use]
    pub const fn severity(self) -> Severity {
        match self {
            Self::Info => Severity::Info,
            Self::Warn => Severity::Warn,
            Self::Critical => Severity::Critical,
        }
    }
}

/// A check, or a family of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted(String);

impl Wanted {
    /// Whether it means a check.
    #[must_use]
    pub fn means(&self, id: &str) -> bool {
        id.strip_prefix(self.0.as_str())
            .is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
    }
}

impl FromStr for Wanted {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wanted = Self(text.trim_end_matches(".*").to_owned());
        if check::checks().any(|check| wanted.means(check.id)) {
            return Ok(wanted);
        }
        let ids: Vec<_> = check::checks().map(|check| check.id).collect();
        Err(format!("there is no check and no family `{text}`; there are {}", ids.join(", ")))
    }
}

/// Options of `netvsc check`.
#[derive(Clone, Debug, Args)]
pub struct CheckArgs {
    /// Run these checks only; a family such as own stands for all of its checks
    #[arg(long, value_name = "ID,..", value_delimiter = ',', num_args = 1..)]
    pub only: Vec<Wanted>,

    /// List the checks instead of running them
    #[arg(long, conflicts_with_all = ["fix", "only"])]
    pub list: bool,

    /// How the exit status says what was found
    #[arg(long, value_enum, value_name = "STYLE", default_value_t = ExitStyle::Nagios, help_heading = "Output")]
    pub exit_style: ExitStyle,

    /// What counts for --exit-style bool
    #[arg(long, value_enum, value_name = "SEVERITY", default_value_t = Threshold::Warn, help_heading = "Output")]
    pub threshold: Threshold,

    /// A table of these columns, in this order, instead of the text
    #[arg(
        short = 'o',
        long = "columns",
        value_name = "COL,..",
        value_enum,
        value_delimiter = ',',
        conflicts_with_all = ["fix", "list"],
        help_heading = "Output"
    )]
    pub columns: Option<Vec<FindingColumn>>,

    /// One line per finding, without header: severity, check, subject (also -br)
    #[arg(long, conflicts_with_all = ["columns", "fix", "list"], help_heading = "Output")]
    pub brief: bool,

    /// How far apart the three samples of the counters are, on the running system
    #[arg(long, value_name = "SPAN", default_value = "200ms")]
    pub interval: Span,

    /// Carry out the safe fixes, and print what undoes them
    #[arg(long, help_heading = "Mending")]
    pub fix: bool,

    /// Only show what --fix would do
    #[arg(long, requires = "fix", help_heading = "Mending")]
    pub dry_run: bool,

    /// Touch also what carries this session or the default route
    #[arg(long, requires = "fix", help_heading = "Mending")]
    pub force: bool,

    /// Where to look.
    #[command(flatten)]
    pub source: SourceArgs,

    /// How to say it.
    #[command(flatten)]
    pub output: OutputArgs,
}

impl CheckArgs {
    /// The columns of the table that is wanted instead of the text.
    #[must_use]
    pub fn columns(&self) -> Option<&[FindingColumn]> {
        self.columns.as_deref().or(self.brief.then_some(&BRIEF))
    }

    /// Whether a check is wanted.
    #[must_use]
    pub fn wants(&self, id: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|wanted| wanted.means(id))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checks_are_chosen_by_id_or_family() {
        let own: Wanted = "own".parse().unwrap();
        assert!(own.means("own.netns") && !own.means("obs.double"));
        let one: Wanted = "own.rule-old".parse().unwrap();
        assert!(one.means("own.rule-old") && !one.means("own.rule-dup"));
        assert_eq!("own.*".parse::<Wanted>().unwrap(), own);
        for bad in ["ow", "own.", "", "own.rule"] {
            let error = bad.parse::<Wanted>().unwrap_err();
            assert!(error.contains("pair.orphan-pci"), "{bad}: {error}");
        }
    }
}

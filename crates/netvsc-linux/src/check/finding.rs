//! What checks say.

use std::fmt;
use std::time::Duration;

use super::fix::Fix;
use crate::inventory::Source;

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// Not bad at all, but worth knowing.
    Ok,
    /// Nothing to do.
    Info,
    /// To be mended.
    Warn,
    /// To be mended now.
    Critical,
}

impl Severity {
    /// The word for machines.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Info => "info",
            Self::Warn => "warn",
            Self::Critical => "critical",
        }
    }
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

/// From where a fact of a finding comes; how sure it is follows from that.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Label {
    /// A fact about a pair, with its own order of strength.
    Pair(Source),
    /// An attribute in sysfs: the kernel's word.
    Sysfs,
    /// rtnetlink: the kernel's word.
    Netlink,
    /// A file in proc: the kernel's word.
    Proc,
    /// The udev database: what udev decided at the last event.
    Udev,
    /// The file in which a manager keeps its state.
    State,
    /// A configuration file, as this program reads it.
    Config,
    /// Counters compared over time.
    Counters,
    /// The name or presence of a file.
    File,
    /// Concluded from other facts; a hypothesis.
    Inferred,
}

impl Label {
    /// The word for machines.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Pair(source) => source.word(),
            Self::Sysfs => "sysfs",
            Self::Netlink => "netlink",
            Self::Proc => "proc",
            Self::Udev => "udev",
            Self::State => "state",
            Self::Config => "config",
            Self::Counters => "counters",
            Self::File => "file",
            Self::Inferred => "inferred",
        }
    }
}

/// A fact that a finding rests on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Evidence {
    /// The fact, in words.
    pub fact: String,
    /// From where it is known.
    pub label: Label,
    /// What was read: a path, or the name of a table of netlink.
    pub path: String,
}

/// Something that is wrong, or worth knowing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// The check that found it.
    pub id: &'static str,
    /// How bad it is.
    pub severity: Severity,
    /// What it is about: an interface, a PCI address, a file.
    pub subject: String,
    /// What is wrong, in a sentence.
    pub text: String,
    /// The facts.
    pub evidence: Vec<Evidence>,
    /// Since when, on the clock of the kernel log; none if nobody can tell.
    pub since: Option<Duration>,
    /// How to mend it.
    pub fix: Fix,
}

impl Finding {
    pub(super) fn new(
        severity: Severity,
        subject: impl Into<String>,
        text: impl Into<String>,
    ) -> Self {
        Self {
            id: "",
            severity,
            subject: subject.into(),
            text: text.into(),
            evidence: Vec::new(),
            since: None,
            fix: Fix::default(),
        }
    }

    pub(super) fn because(
        mut self,
        fact: impl Into<String>,
        label: Label,
        path: impl Into<String>,
    ) -> Self {
        self.evidence.push(Evidence { fact: fact.into(), label, path: path.into() });
        self
    }

    /// A line of the kernel log as evidence.
    pub(super) fn logged(self, fact: impl Into<String>) -> Self {
        self.because(fact, Label::Pair(Source::KernelLog), "/dev/kmsg")
    }

    pub(super) fn since(mut self, since: Option<Duration>) -> Self {
        self.since = since;
        self
    }

    pub(super) fn fix(mut self, fix: Fix) -> Self {
        self.fix = fix;
        self
    }
}

/// A check that could not decide.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Undecided {
    /// The check.
    pub id: &'static str,
    /// What it lacked, and what would be needed for it.
    pub reason: String,
}

/// What one check says.
#[derive(Debug, Default)]
pub(super) struct Outcome {
    findings: Vec<Finding>,
    undecided: Option<String>,
}

impl Outcome {
    pub(super) fn find(&mut self, finding: Finding) {
        self.findings.push(finding);
    }

    /// Says what is lacking. What was found all the same counts.
    pub(super) fn undecided(&mut self, reason: impl Into<String>) {
        self.undecided.get_or_insert(reason.into());
    }
}

/// What all checks say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// What is wrong, the worst first.
    pub findings: Vec<Finding>,
    /// What is worth knowing and not wrong: severity [`Severity::Ok`].
    pub notes: Vec<Finding>,
    /// Checks that found nothing and lacked something.
    pub undecided: Vec<Undecided>,
}

impl Report {
    /// The worst of it; none if nothing was found.
    #[must_use]
    pub fn worst(&self) -> Option<Severity> {
        self.findings.iter().map(|finding| finding.severity).max()
    }

    pub(super) fn add(&mut self, id: &'static str, outcome: Outcome) {
        if outcome.findings.is_empty() {
            self.undecided.extend(outcome.undecided.map(|reason| Undecided { id, reason }));
        }
        for finding in outcome.findings {
            let finding = Finding { id, ..finding };
            if finding.severity == Severity::Ok {
                self.notes.push(finding);
            } else {
                self.findings.push(finding);
            }
        }
    }

    pub(super) fn sort(&mut self) {
        self.findings.sort_by_key(|finding| std::cmp::Reverse(finding.severity));
    }
}

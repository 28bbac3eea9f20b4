//! What `netvsc check` prints as JSON; `docs/schema/check-1.json` describes it.

use netvsc_linux::check::{Finding, Fix, Report};
use netvsc_linux::inventory::Snapshot;
use serde::Serialize;

use super::fixing::Outcome;
use crate::inspect::document::{Origin, SCHEMA_VERSION, Unread, generated_at};

/// The findings.
#[derive(Debug, Serialize)]
pub struct Checked {
    /// [`SCHEMA_VERSION`].
    pub schema_version: u32,
    /// When the guest was read; null for a snapshot, which has no clock.
    pub generated_at: Option<String>,
    /// From where.
    pub source: Origin,
    /// Whether there is a VMBus.
    pub hyperv: bool,
    /// Release of the kernel.
    pub kernel: Option<String>,
    /// `ok`, `warn`, `critical`, or `unknown` if nothing was found and some checks could not decide.
    pub status: &'static str,
    /// What is wrong, the worst first.
    pub findings: Vec<Found>,
    /// What is worth knowing and not wrong.
    pub notes: Vec<Found>,
    /// Checks that could not decide.
    pub undecided: Vec<Open>,
    /// What was done, with `--fix`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fixes: Option<Vec<Outcome>>,
    /// What could not be read.
    pub unreadable: Vec<Unread>,
}

/// A finding.
#[derive(Debug, Serialize)]
pub struct Found {
    /// The check.
    pub id: &'static str,
    /// `ok`, `info`, `warn` or `critical`.
    pub severity: &'static str,
    /// What it is about.
    pub subject: String,
    /// What is wrong, in a sentence.
    pub text: String,
    /// Since when, in seconds since boot.
    pub since: Option<f64>,
    /// On what it rests.
    pub evidence: Vec<Proof>,
    /// How to mend it.
    pub fix: Mending,
}

/// A fact.
#[derive(Debug, Serialize)]
pub struct Proof {
    /// The fact, in words.
    pub fact: String,
    /// From where it is known; how sure it is follows from that.
    pub source: &'static str,
    /// What was read.
    pub path: String,
}

/// How to mend something.
#[derive(Debug, Serialize)]
pub struct Mending {
    /// In words.
    pub text: String,
    /// Whether `--fix` does it.
    pub safe: bool,
    /// The commands, in order.
    pub steps: Vec<Command>,
}

/// A command, and the one that takes it back.
#[derive(Clone, Debug, Serialize)]
pub struct Command {
    /// Does it.
    pub command: String,
    /// Takes it back; null where there is nothing to take back.
    pub undo: Option<String>,
}

/// A check that could not decide.
#[derive(Debug, Serialize)]
pub struct Open {
    /// The check.
    pub id: &'static str,
    /// What it lacks.
    pub reason: String,
}

impl Mending {
    /// What a fix says.
    #[must_use]
    pub fn of(fix: &Fix) -> Self {
        let steps = fix.steps.iter();
        let steps = steps.map(|step| Command { command: step.to_string(), undo: step.undo() });
        Self { text: fix.text.clone(), safe: fix.safe, steps: steps.collect() }
    }
}

impl Found {
    fn of(finding: &Finding) -> Self {
        let evidence = finding.evidence.iter().map(|evidence| Proof {
            fact: evidence.fact.clone(),
            source: evidence.label.word(),
            path: evidence.path.clone(),
        });
        Self {
            id: finding.id,
            severity: finding.severity.word(),
            subject: finding.subject.clone(),
            text: finding.text.clone(),
            since: finding.since.map(|since| since.as_secs_f64()),
            evidence: evidence.collect(),
            fix: Mending::of(&finding.fix),
        }
    }
}

impl Checked {
    /// Everything that the checks said.
    #[must_use]
    pub fn of(
        snapshot: &Snapshot,
        report: &Report,
        status: &'static str,
        fixes: Option<Vec<Outcome>>,
    ) -> Self {
        let open = |open: &netvsc_linux::check::Undecided| Open {
            id: open.id,
            reason: open.reason.clone(),
        };
        Self {
            schema_version: SCHEMA_VERSION,
            generated_at: generated_at(snapshot),
            source: Origin::of(snapshot),
            hyperv: snapshot.hyperv,
            kernel: snapshot.release.clone(),
            status,
            findings: report.findings.iter().map(Found::of).collect(),
            notes: report.notes.iter().map(Found::of).collect(),
            undecided: report.undecided.iter().map(open).collect(),
            fixes,
            unreadable: Unread::all(snapshot),
        }
    }
}

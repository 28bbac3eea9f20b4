//! `netvsc check --fix`: the safe fixes, one after another.

use std::borrow::Cow;
use std::path::Path;

use netvsc_linux::check::{Finding, Guest, Report};
use netvsc_linux::mend::Mender;
use serde::Serialize;

use super::args::CheckArgs;
use super::document::{Command, Mending};
use crate::error::Error;

/// What became of a fix.
#[derive(Debug, Serialize)]
pub struct Outcome {
    /// The check that proposed it.
    pub id: &'static str,
    /// What it is about.
    pub subject: String,
    /// `done`, `planned` (with `--dry-run`), `refused` or `failed`.
    pub state: &'static str,
    /// Why it was refused, or failed.
    pub why: Option<String>,
    /// The commands that it stands for. Where it failed, those that had been carried out.
    pub steps: Vec<Command>,
}

impl Outcome {
    /// Whether all is as it was asked for.
    #[must_use]
    pub fn good(&self) -> bool {
        matches!(self.state, "done" | "planned")
    }
}

/// Carries out, or with `--dry-run` plans, what is safe. `show` sees each fix before anything of it is done.
///
/// # Errors
/// If the root cannot be used, or what is to be done not be shown.
pub fn fix(
    guest: &Guest<'_>,
    report: &Report,
    args: &CheckArgs,
    mut show: impl FnMut(&Finding) -> Result<(), Error>,
) -> Result<Vec<Outcome>, Error> {
    let mut mender = Mender::open(args.source.sysfs_root.as_deref())?;
    // A copy of a machine that is elsewhere is shown what to do there; a tree is changed here, and what is printed has to change it too.
    let root = args.source.changeable_root();
    let mut outcomes = Vec::new();
    for finding in report.findings.iter().filter(|finding| finding.fix.safe) {
        let guarded = guest.guarded(&finding.fix).filter(|_| !args.force);
        let named = named(finding, root);
        let mut outcome = Outcome {
            id: finding.id,
            subject: finding.subject.clone(),
            state: "planned",
            why: None,
            steps: Mending::of(&named.fix).steps,
        };
        if let Some((link, what)) = guarded {
            outcome.state = "refused";
            outcome.why = Some(format!("{link} carries {what}; --force does it all the same"));
        } else {
            show(&named)?;
            if !args.dry_run {
                carry_out(&mut mender, finding, &mut outcome);
            }
        }
        outcomes.push(outcome);
    }
    Ok(outcomes)
}

/// A finding with the files that its steps are about named as they are to be found from here.
fn named<'a>(finding: &'a Finding, root: Option<&Path>) -> Cow<'a, Finding> {
    let Some(root) = root else { return Cow::Borrowed(finding) };
    // Who reads it may be in another directory by then.
    let root = std::path::absolute(root).unwrap_or_else(|_| root.to_owned());
    let mut finding = finding.clone();
    for step in &mut finding.fix.steps {
        *step = step.below(&root);
    }
    Cow::Owned(finding)
}

fn carry_out(mender: &mut Mender, finding: &Finding, outcome: &mut Outcome) {
    outcome.state = "done";
    for (number, step) in finding.fix.steps.iter().enumerate() {
        if let Err(error) = mender.take(step) {
            outcome.state = "failed";
            outcome.why = Some(error.to_string());
            outcome.steps.truncate(number);
            return;
        }
    }
}

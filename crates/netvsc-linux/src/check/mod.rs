//! What is wrong with a guest, why, and how to mend it.
//!
//! A check is an entry of [`CATALOGUE`]: an id, a sentence, and a pure function over the [`Guest`]. It says what it found
//! with the facts that it used and where each was read, or that it cannot decide for want of a fact. Nothing here reads
//! a file or changes anything.

mod config;
mod finding;
mod fix;
mod guest;
mod manager;
mod marks;
mod name;
mod obs;
mod own;
mod pair;
mod path;
mod rules;
mod stanza;
mod sys;
mod tune;
mod uio;
mod xdp;

pub use self::finding::{Evidence, Finding, Label, Report, Severity, Undecided};
pub use self::fix::{Fix, LinkName, Step};
pub use self::guest::{Guest, Thresholds};

use self::finding::Outcome;

/// A check.
#[derive(Debug)]
pub struct Check {
    /// Its id, `family.name`; never renamed.
    pub id: &'static str,
    /// What it finds, in a phrase.
    pub finds: &'static str,
    /// How bad that is.
    pub severity: &'static str,
    run: fn(&Guest<'_>, &mut Outcome),
}

impl Check {
    const fn new(
        id: &'static str,
        severity: &'static str,
        finds: &'static str,
        run: fn(&Guest<'_>, &mut Outcome),
    ) -> Self {
        Self { id, finds, severity, run }
    }
}

/// All checks, by family.
pub const CATALOGUE: [&[Check]; 9] = [
    &pair::CHECKS,
    &path::CHECKS,
    &own::CHECKS,
    &name::CHECKS,
    &tune::CHECKS,
    &xdp::CHECKS,
    &uio::CHECKS,
    &sys::CHECKS,
    &obs::CHECKS,
];

/// Every check of the catalogue.
pub fn checks() -> impl Iterator<Item = &'static Check> {
    CATALOGUE.into_iter().flatten()
}

/// Runs the checks that `wanted` lets through. A machine without VMBus has nothing to find.
#[must_use]
pub fn run(guest: &Guest<'_>, wanted: impl Fn(&str) -> bool) -> Report {
    let mut report = Report::default();
    if !guest.snapshot.hyperv {
        return report;
    }
    for check in checks().filter(|check| wanted(check.id)) {
        let mut outcome = Outcome::default();
        (check.run)(guest, &mut outcome);
        report.add(check.id, outcome);
    }
    report.sort();
    report
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_id_is_there_once_and_names_its_family() {
        let ids: std::collections::BTreeSet<_> = checks().map(|check| check.id).collect();
        assert_eq!(ids.len(), checks().count());
        assert!(ids.iter().all(|id| id.split_once('.').is_some()));
        assert_eq!(ids.len(), 35);
    }
}

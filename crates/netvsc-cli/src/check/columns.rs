//! Findings as a table, for scripts and narrow eyes.

use clap::ValueEnum;
use netvsc_linux::check::{Finding, Report};

use crate::inspect::table::{Style, plain, table};

/// A column of a table of findings.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum FindingColumn {
    /// How bad it is; unknown for a check that could not decide
    Severity,
    /// The check
    Check,
    /// What it is about
    Subject,
    /// What is wrong, or why a check could not decide
    Text,
    /// How to mend it
    Fix,
    /// Whether --fix mends it: yes or no
    Safe,
    /// Since when, in seconds after boot
    Since,
}

/// The columns of one line that says what was found.
pub const BRIEF: [FindingColumn; 3] =
    [FindingColumn::Severity, FindingColumn::Check, FindingColumn::Subject];

impl FindingColumn {
    fn header(self) -> String {
        self.to_possible_value().map_or_else(String::new, |value| value.get_name().to_uppercase())
    }

    /// What it shows of a finding; `-` for what is not known.
    fn of(self, finding: &Finding) -> String {
        match self {
            Self::Severity => finding.severity.word().to_owned(),
            Self::Check => finding.id.to_owned(),
            Self::Subject => one_line(&finding.subject),
            Self::Text => one_line(&finding.text),
            Self::Fix => one_line(&finding.fix.text),
            Self::Safe => if finding.fix.safe { "yes" } else { "no" }.to_owned(),
            Self::Since => {
                let seconds = |since: std::time::Duration| format!("{:.3}", since.as_secs_f64());
                finding.since.map_or_else(|| "-".to_owned(), seconds)
            }
        }
    }

    /// What it shows of a check that could not decide.
    fn of_undecided(self, id: &str, reason: &str) -> String {
        match self {
            Self::Severity => "unknown".to_owned(),
            Self::Check => id.to_owned(),
            Self::Text => one_line(reason),
            Self::Subject | Self::Fix | Self::Safe | Self::Since => "-".to_owned(),
        }
    }
}

fn one_line(text: &str) -> String {
    plain(text).replace('\n', " ")
}

/// A table of the findings, the notes and what could not be decided, with or without header.
pub fn listing(report: &Report, columns: &[FindingColumn], header: bool, style: Style) -> String {
    let found = report.findings.iter().chain(&report.notes);
    let mut rows: Vec<Vec<String>> =
        found.map(|finding| columns.iter().map(|column| column.of(finding)).collect()).collect();
    rows.extend(report.undecided.iter().map(|open| {
        columns.iter().map(|column| column.of_undecided(open.id, &open.reason)).collect()
    }));
    let headers: Vec<_> = columns.iter().map(|column| column.header()).collect();
    table(if header { &headers } else { &[] }, &rows, style)
}

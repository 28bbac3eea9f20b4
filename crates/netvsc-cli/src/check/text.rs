//! What people, Nagios and node-problem-detector read.

use std::fmt::Write;

use netvsc_linux::check::{Finding, Report, Severity, checks};

use super::fixing::Outcome;
use crate::inspect::table::{Style, paint, plain, table};

/// Longest line that node-problem-detector takes, in characters.
const NPD_LINE: usize = 80;

/// The catalogue.
pub fn catalogue(style: Style) -> String {
    let rows: Vec<_> = checks()
        .map(|check| [check.id, check.severity, check.finds].map(str::to_owned).to_vec())
        .collect();
    table(&["CHECK", "SEVERITY", "FINDS"].map(str::to_owned), &rows, style)
}

/// The first line, as Nagios wants it, and then everything.
pub fn report(report: &Report, status: &str, style: Style) -> String {
    let mut text = summary(report, status);
    for finding in report.findings.iter().chain(&report.notes) {
        text.push('\n');
        text.push_str(&page(finding, style));
    }
    if !report.undecided.is_empty() {
        text.push_str("\nCould not decide:\n");
        let rows: Vec<_> = report
            .undecided
            .iter()
            .map(|open| vec!["unknown".to_owned(), open.id.to_owned(), plain(&open.reason)])
            .collect();
        text.push_str(&table(&[], &rows, style));
    }
    text
}

fn summary(report: &Report, status: &str) -> String {
    let word = match status {
        "warn" => "WARNING",
        "critical" => "CRITICAL",
        "ok" => "OK",
        _ => "UNKNOWN",
    };
    let counted = |severity| report.findings.iter().filter(|f| f.severity == severity).count();
    let counts = [Severity::Critical, Severity::Warn, Severity::Info]
        .map(|severity| (counted(severity), severity.word()));
    let mut parts: Vec<_> = counts
        .iter()
        .filter(|(number, _)| *number > 0)
        .map(|(number, word)| format!("{number} {word}"))
        .collect();
    if !report.undecided.is_empty() {
        parts.push(format!("{} undecided", report.undecided.len()));
    }
    let what = if parts.is_empty() { "nothing is wrong".to_owned() } else { parts.join(", ") };
    let worst = report.findings.first().map(|f| format!(": {} on {}", f.id, plain(&f.subject)));
    format!("NETVSC {word} - {what}{}\n", worst.unwrap_or_default())
}

fn page(finding: &Finding, style: Style) -> String {
    let severity = paint(finding.severity.word(), style);
    let mut text = format!("{severity} {} {}\n", finding.id, plain(&finding.subject));
    _ = writeln!(text, "  {}", plain(&finding.text));
    if let Some(since) = finding.since {
        _ = writeln!(text, "  since {:.3} s after boot", since.as_secs_f64());
    }
    for evidence in &finding.evidence {
        let (fact, path) = (plain(&evidence.fact), plain(&evidence.path));
        _ = writeln!(text, "  because: {fact} ({}, {path})", evidence.label.word());
    }
    _ = writeln!(text, "  to mend: {}", plain(&finding.fix.text).replace('\n', "\n    "));
    for step in &finding.fix.steps {
        indented(&mut text, &step.to_string());
    }
    text
}

fn indented(text: &mut String, command: &str) {
    for line in plain(command).lines() {
        _ = writeln!(text, "    {line}");
    }
}

/// A fix, before it is carried out.
pub fn planned(finding: &Finding) -> String {
    let mut text =
        format!("{} {}: {}\n", finding.id, plain(&finding.subject), plain(&finding.text));
    for step in &finding.fix.steps {
        indented(&mut text, &step.to_string());
    }
    text
}

/// What became of all fixes, and what undoes them.
pub fn mended(fixes: &[Outcome], report: &Report, dry_run: bool) -> String {
    let mut text = String::new();
    for fix in fixes.iter().filter(|fix| !fix.good()) {
        let why = plain(fix.why.as_deref().unwrap_or_default());
        _ = writeln!(
            text,
            "{} {} was {}: {why}",
            fix.id,
            plain(&fix.subject),
            match fix.state {
                "failed" => "not done",
                state => state,
            }
        );
    }
    let by_hand: Vec<_> = report.findings.iter().filter(|f| !f.fix.safe).collect();
    for finding in by_hand.iter().filter(|finding| finding.severity > Severity::Info) {
        _ = writeln!(
            text,
            "{} {} is left to you: {}",
            finding.id,
            plain(&finding.subject),
            plain(&finding.fix.text)
        );
    }
    let done = fixes.iter().filter(|fix| fix.good()).count();
    if done == 0 {
        text.push_str("nothing was changed\n");
        return text;
    }
    // What was done last is taken back first.
    let steps = fixes.iter().filter(|fix| fix.state != "refused").flat_map(|fix| &fix.steps);
    let undo: Vec<_> = steps.filter_map(|step| step.undo.as_deref()).collect();
    text.push_str(if dry_run {
        "nothing was changed (--dry-run); this would undo it:\n"
    } else {
        "done; this undoes it:\n"
    });
    for command in undo.iter().rev() {
        indented(&mut text, command);
    }
    text
}

/// Why node-problem-detector should say that acceleration is degraded.
fn condition(id: &str) -> &'static str {
    match id {
        "pair.orphan-pci" | "sys.module" => "VFUnbound",
        "pair.assoc-no-vf" | "own.netns" => "VFMissing",
        "path.flap" => "Flapping",
        id if id.starts_with("own.") || id.starts_with("sys.") || id.starts_with("name.") => {
            "VFManaged"
        }
        _ => "DatapathStuck",
    }
}

/// One line of at most 80 characters.
pub fn npd(report: &Report) -> String {
    let bad = report.findings.iter().find(|finding| finding.severity >= Severity::Warn);
    let line = match bad {
        Some(finding) => {
            let subject = plain(&finding.subject);
            format!("{}: {} {subject}", condition(finding.id), finding.id)
        }
        None if report.undecided.is_empty() => "accelerated networking is as it should be".into(),
        None => format!("{} checks could not decide", report.undecided.len()),
    };
    let short: String = line.chars().take(NPD_LINE).collect();
    short + "\n"
}

//! `docs/HISTORY.md` against the code: every known edge case has its row, and every row a test that exists, a scenario that says the
//! same of itself, or why the case cannot happen here.

use std::collections::{BTreeMap, BTreeSet};

use crate::tables::{missing, read, rows, section, sources, tests_in};

/// The last edge case of the table.
const LAST: u32 = 71;
/// The sections behind it, and how many rows each has.
const SECTIONS: [(&str, usize); 6] = [
    ("Edge cases", LAST as usize),
    ("How Linux decides, step by step", 7),
    ("How DPDK and FreeBSD do", 10),
    ("States of a VF at the host", 16),
    ("What the tests of that host try", 12),
    ("What nobody had tried", 8),
];

fn document(name: &str) -> String {
    read(&format!("docs/{name}"))
}

/// What stands in backquotes and can be the name of a scenario: words joined by hyphens.
fn hyphenated(text: &str) -> impl Iterator<Item = &str> {
    text.split('`').skip(1).step_by(2).filter(|word| {
        let is_name = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        word.contains('-') && word.chars().all(is_name)
    })
}

/// The scenarios with the rows that they give for themselves.
fn scenarios(simulation: &str) -> BTreeMap<&str, BTreeSet<&str>> {
    let rows = rows(section(simulation, "Scenarios with names"));
    rows.into_iter().map(|row| (row[0], row[1].split(", ").collect())).collect()
}

fn scenarios_in<'a>(row: &'a str, known: &BTreeMap<&str, BTreeSet<&str>>) -> Vec<&'a str> {
    let words = row.split('`').skip(1).step_by(2);
    words.filter(|word| known.contains_key(word)).collect()
}

/// The rows of all sections: what a row is called by scenarios, and its text.
fn all(history: &str) -> Vec<(String, String)> {
    let mut all = Vec::new();
    for (number, (heading, count)) in (1..).zip(SECTIONS) {
        let rows = rows(section(history, heading));
        assert_eq!(rows.len(), count, "rows under {heading:?}");
        for (place, row) in (1..).zip(rows) {
            let (name, text) = (row[0], row[1..].join(" | "));
            match number {
                1 => assert_eq!(name, place.to_string(), "a row is missing or out of order"),
                4 | 6 => assert_eq!(name, format!("S{number}.{place}")),
                _ => {}
            }
            // Scenarios name cases, the items of section 6, and sections 4 and 5 as a whole.
            all.push((if number == 5 { "S5".into() } else { name.to_owned() }, text));
        }
    }
    all
}

#[test]
fn every_case_has_a_test_a_scenario_or_a_reason() {
    let (history, simulation) = (document("HISTORY.md"), document("SIMULATION.md"));
    let known = scenarios(&simulation);
    for (name, row) in all(&history) {
        let shown = !tests_in(&row).is_empty() || !scenarios_in(&row, &known).is_empty();
        assert!(shown || row.contains("cannot happen: "), "neither test nor reason: {name}: {row}");
    }
}

#[test]
fn every_test_and_scenario_that_is_named_exists() {
    let (history, simulation, sources) =
        (document("HISTORY.md"), document("SIMULATION.md"), sources());
    let (missing, named) = (missing(&history, &sources), tests_in(&history).len());
    assert!(missing.is_empty(), "docs/HISTORY.md names tests that do not exist: {missing:?}");
    assert!(named > 150, "the tables have lost their rows: {named}");
    let known = scenarios(&simulation);
    let missing: Vec<_> = hyphenated(&history).filter(|name| !known.contains_key(name)).collect();
    assert!(missing.is_empty(), "docs/HISTORY.md names scenarios that do not exist: {missing:?}");
}

#[test]
fn scenarios_and_rows_name_each_other() {
    let (history, simulation) = (document("HISTORY.md"), document("SIMULATION.md"));
    let (known, all) = (scenarios(&simulation), all(&history));
    let mut wrong = Vec::new();
    for (scenario, rows) in &known {
        for claimed in rows {
            let is_it = |name: &str| name == *claimed || name.starts_with(&format!("{claimed}."));
            let mut named = all.iter().filter(|(name, _)| is_it(name));
            if !named.any(|(_, row)| scenarios_in(row, &known).contains(scenario)) {
                wrong.push(format!("{scenario} gives row {claimed}, which does not name it"));
            }
        }
    }
    for (name, row) in &all {
        // Behind a reason stands what is like the case and is not it.
        if row.contains("cannot happen: ") {
            continue;
        }
        let section = name.split('.').next().unwrap_or_default();
        for scenario in scenarios_in(row, &known) {
            let claims = &known[scenario];
            if !claims.contains(name.as_str()) && !claims.contains(section) {
                wrong.push(format!("row {name} names {scenario}, which does not give it"));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// Whether some line names a case, as in `// HISTORY 16, 23: why`, or behind the rule that it led to.
fn is_named(sources: &str, case: &str) -> bool {
    sources.lines().any(|line| {
        let comment = line.trim().strip_prefix("//");
        let cases =
            comment.and_then(|line| line.split_once("HISTORY ")).map_or("", |split| split.1);
        let cases = cases.split(':').next().unwrap_or_default();
        cases.split([',', ' ']).any(|word| word.trim_end_matches('.') == case)
    })
}

#[test]
fn tests_name_the_cases_that_they_are_for() {
    let (history, simulation, sources) =
        (document("HISTORY.md"), document("SIMULATION.md"), sources());
    let known = scenarios(&simulation);
    let mut unnamed = Vec::new();
    for (name, row) in all(&history).iter().take(LAST as usize) {
        let of_scenario = !scenarios_in(row, &known).is_empty();
        if !row.contains("cannot happen: ") && !of_scenario && !is_named(&sources, name) {
            unnamed.push(name.clone());
        }
    }
    assert!(unnamed.is_empty(), "no test says `// HISTORY n` for {unnamed:?}");
}

// HISTORY 16 to 28, 40, 54 to 56: each row that concerns functions has a test that names it, whatever scenarios it has.
#[test]
fn the_rows_about_functions_are_named_by_tests() {
    let sources = sources();
    let functions = (16..=28).chain([40, 54, 55, 56]).map(|row: u32| row.to_string());
    let missing: Vec<_> = functions.filter(|row| !is_named(&sources, row)).collect();
    assert!(missing.is_empty(), "no test names row {missing:?}");
}

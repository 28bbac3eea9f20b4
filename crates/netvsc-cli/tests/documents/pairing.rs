//! `docs/PAIRING.md` against the code: every rule has its rows, and every row tests that exist.

use crate::tables::{missing, read, sources, tests_in};

fn document() -> String {
    read("docs/PAIRING.md")
}

/// The rows of all tables, by what stands in their first cell.
fn rows(document: &str) -> Vec<(&str, &str)> {
    let rows = document.lines().filter_map(|line| line.strip_prefix("| "));
    let rows = rows.filter_map(|row| row.split_once(" | "));
    rows.filter(|(name, _)| name.chars().any(|c| c.is_ascii_digit())).collect()
}

#[test]
fn every_rule_of_pairing_and_failover_has_its_rows_with_tests() {
    let document = document();
    let rows = rows(&document);
    let pairing = (1..=15).map(|number| format!("P{number}"));
    for rule in pairing.chain((1..=13).map(|number| format!("F{number}"))) {
        let proofs: Vec<_> = rows.iter().filter(|(name, _)| *name == rule).collect();
        assert!(!proofs.is_empty(), "{rule} has no row");
        for (_, row) in proofs {
            assert!(!tests_in(row).is_empty(), "no test proves {rule}: {row}");
        }
    }
}

#[test]
fn every_test_that_the_document_names_exists() {
    let document = document();
    let (missing, named) = (missing(&document, &sources()), tests_in(&document).len());
    assert!(missing.is_empty(), "docs/PAIRING.md names tests that do not exist: {missing:?}");
    assert!(named > 90, "the tables have lost their rows");
}

//! `docs/PAIRING.md` against the code: every rule has its rows, and every row tests that exist.

use std::path::{Path, PathBuf};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn document() -> String {
    std::fs::read_to_string(root().join("docs/PAIRING.md")).expect("the table of rules")
}

/// Names in backquotes that can be those of tests: with two underscores or more.
fn tests_in(text: &str) -> Vec<&str> {
    let is_name = |word: &&str| {
        word.matches('_').count() >= 2
            && word.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_')
    };
    text.split('`').skip(1).step_by(2).filter(is_name).collect()
}

/// All Rust sources.
fn sources() -> String {
    fn walk(folder: &Path, text: &mut String) {
        for entry in std::fs::read_dir(folder).expect("a folder") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                walk(&path, text);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                text.push_str(&std::fs::read_to_string(&path).expect("a source is text"));
            }
        }
    }
    let mut text = String::new();
    walk(&root().join("crates"), &mut text);
    text
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
    let (document, sources) = (document(), sources());
    let named = tests_in(&document);
    let exists = |name: &&&str| {
        sources.contains(&format!("    fn {name}(")) || sources.contains(&format!("\nfn {name}("))
    };
    let missing: Vec<_> = named.iter().filter(|name| !exists(name)).collect();
    assert!(missing.is_empty(), "docs/PAIRING.md names tests that do not exist: {missing:?}");
    assert!(named.len() > 90, "the tables have lost their rows");
}

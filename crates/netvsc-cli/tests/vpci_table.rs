//! `docs/VPCI.md` against the code: its rows are those of the protocol's table, and the tests that it names exist.

use std::path::{Path, PathBuf};

use vpci::message::{MESSAGES, Sender, Version};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn document() -> String {
    std::fs::read_to_string(root().join("docs/VPCI.md")).expect("the table of messages")
}

/// The cells of a line of a table.
fn cells(line: &str) -> Vec<&str> {
    line.trim_matches('|').split('|').map(str::trim).collect()
}

/// Names in backquotes that can be those of tests: with two underscores or more.
fn tests_in(text: &str) -> Vec<&str> {
    let is_name = |word: &&str| {
        word.matches('_').count() >= 2
            && word.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_')
    };
    text.split('`').skip(1).step_by(2).filter(is_name).collect()
}

/// All Rust sources of the three crates that speak vPCI.
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
    for folder in ["vpci/src", "hyperv-host/src", "netvsc-cli/tests"] {
        walk(&root().join("crates").join(folder), &mut text);
    }
    text
}

/// The version as the document writes it.
fn short(version: Version) -> String {
    format!("{}.{}", version.0 >> 16, version.0 & 0xffff)
}

#[test]
fn every_message_of_the_protocol_has_its_row_with_bytes_and_a_scenario() {
    let document = document();
    let rows: Vec<_> =
        document.lines().filter(|line| line.starts_with("| 0x")).map(cells).collect();
    assert_eq!(rows.len(), MESSAGES.len());
    for (number, (row, message)) in rows.iter().zip(&MESSAGES).enumerate() {
        let from = match message.sender {
            Sender::Guest => "guest",
            Sender::Host => "host",
        };
        let name = message.kind.to_string();
        let since = short(message.since);
        assert_eq!(row[..4], [&format!("{number:#04x}"), &name, from, &since], "{row:?}");
        assert!(!tests_in(row[4]).is_empty(), "{name} has no byte test");
        assert!(!tests_in(row[5]).is_empty(), "{name} has no scenario");
    }
}

#[test]
fn every_test_that_the_document_names_exists() {
    let (document, sources) = (document(), sources());
    let named = tests_in(&document);
    let missing: Vec<_> =
        named.iter().filter(|name| !sources.contains(&format!("fn {name}("))).collect();
    assert!(missing.is_empty(), "docs/VPCI.md names tests that do not exist: {missing:?}");
    assert!(named.len() > 80, "the tables have lost their rows");
}

#[test]
fn every_scenario_names_a_test() {
    let document = document();
    let scenarios = document.split("## Scenarios").nth(1).expect("scenarios");
    let rows =
        scenarios.lines().filter(|line| line.starts_with("| ") && !line.starts_with("| scenario"));
    for row in rows {
        assert!(!tests_in(row).is_empty(), "no test proves: {row}");
    }
}

// HISTORY 16 to 28, 40, 54 to 56: each row that concerns functions has a test that names it.
#[test]
fn the_rows_of_history_about_functions_are_named_by_tests() {
    let mut sources = sources();
    for folder in ["netvsc/src", "netvsc-linux/src"] {
        let pairing = root().join("crates").join(folder);
        let mut all = vec![pairing];
        while let Some(path) = all.pop() {
            if path.is_dir() {
                all.extend(
                    std::fs::read_dir(path).expect("a folder").map(|it| it.expect("one").path()),
                );
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                sources.push_str(&std::fs::read_to_string(path).expect("a source is text"));
            }
        }
    }
    // Lines that name rows look like `// HISTORY 16, 23: why`; this test's own line does not count.
    let named = |row: u32| {
        sources.lines().filter(|line| !line.contains(" to ")).any(|line| {
            let rows = line.trim().strip_prefix("// HISTORY ").unwrap_or_default();
            let rows = rows.split(':').next().unwrap_or_default();
            rows.split([',', ' ']).any(|word| word.trim_end_matches('.').parse() == Ok(row))
        })
    };
    let missing: Vec<u32> = (16..=28).chain([40, 54, 55, 56]).filter(|row| !named(*row)).collect();
    assert!(missing.is_empty(), "no test names row {missing:?}");
}

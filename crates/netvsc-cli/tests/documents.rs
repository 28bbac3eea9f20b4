//! The documents that map protocols to tests, against the code: the tests that they name exist, no row is without one, and
//! their rows are exactly what the code has.

use std::path::{Path, PathBuf};

use vpci::message::{MESSAGES, Sender, Version};

/// The documents, and how many tests each names at the least: with fewer its tables have lost rows.
const DOCUMENTS: [(&str, usize); 4] = [
    ("docs/VMBUS.md", 80),
    ("docs/VPCI.md", 80),
    ("docs/NVSP.md", 100),
    ("docs/ACCEPTANCE.md", 50),
];

/// The tables of `docs/NVSP.md` whose rows are the constants of an open enumeration: section, source, enumeration.
const ENUMERATIONS: [(&str, &str, &str); 5] = [
    ("NVSP messages", "netvsc/src/nvsp/mod.rs", "MessageType"),
    ("RNDIS messages", "netvsc/src/rndis/mod.rs", "MessageType"),
    ("Objects", "netvsc/src/rndis/oid.rs", "Oid"),
    ("Per-packet information", "netvsc/src/rndis/packet.rs", "PpiType"),
    ("Statuses and indications", "netvsc/src/rndis/mod.rs", "Status"),
];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn read(path: &str) -> String {
    std::fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// All Rust sources of the workspace in one text.
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
    walk(&root().join("fuzz"), &mut text);
    text
}

/// Names in backquotes that can be those of tests: with two underscores or more.
fn tests_in(text: &str) -> Vec<&str> {
    let is_name = |word: &&str| {
        word.matches('_').count() >= 2
            && word.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_')
    };
    text.split('`').skip(1).step_by(2).filter(is_name).collect()
}

/// The rows of all tables in a text, each as its cells. The first row of a table is its header and none of them.
fn rows(text: &str) -> Vec<Vec<&str>> {
    let lines: Vec<_> = text.lines().collect();
    let mut rows = Vec::new();
    for (at, line) in lines.iter().enumerate() {
        let is_header = lines.get(at + 1).is_some_and(|next| next.starts_with("|---"));
        let inside = line.strip_prefix("| ").and_then(|line| line.strip_suffix('|'));
        if let Some(inside) = inside.filter(|_| !is_header) {
            rows.push(inside.split('|').map(str::trim).collect());
        }
    }
    rows
}

/// The part of a document under a heading, up to the next.
fn section<'a>(document: &'a str, heading: &str) -> &'a str {
    let start = document.split(&format!("\n## {heading}\n")).nth(1);
    start.and_then(|rest| rest.split("\n## ").next()).unwrap_or_else(|| panic!("no {heading}"))
}

/// A number as documents and code write it.
fn number(text: &str) -> Option<u64> {
    let digits = text.replace('_', "");
    match digits.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16).ok(),
        None => digits.parse().ok(),
    }
}

/// The constants of an open enumeration, by number.
fn constants(source: &str, name: &str) -> Vec<(u64, String)> {
    let body = source.split(&format!("pub struct {name}(u32) {{")).nth(1).expect("an enumeration");
    let body = body.split('}').next().unwrap_or_default();
    let lines = body.lines().filter_map(|line| line.trim().strip_suffix(',')?.split_once(" = "));
    let constant = |(name, value): (&str, &str)| {
        (number(value).unwrap_or_else(|| panic!("{name} = {value}")), name.to_owned())
    };
    let mut constants: Vec<_> = lines.map(constant).collect();
    constants.sort();
    constants
}

#[test]
fn every_test_that_a_document_names_exists() {
    let sources = sources();
    for (path, least) in DOCUMENTS {
        let document = read(path);
        let named = tests_in(&document);
        let missing: Vec<_> =
            named.iter().filter(|name| !sources.contains(&format!("fn {name}("))).collect();
        assert!(missing.is_empty(), "{path} names tests that do not exist: {missing:?}");
        assert!(named.len() > least, "{path} names {} tests only", named.len());
    }
}

#[test]
fn every_row_names_a_test() {
    for (path, _) in DOCUMENTS {
        for row in rows(&read(path)) {
            assert!(!tests_in(&row.join(" ")).is_empty(), "{path}: no test proves {row:?}");
        }
    }
}

#[test]
fn every_message_object_and_status_of_a_nic_has_its_row_with_bytes() {
    let document = read("docs/NVSP.md");
    for (heading, path, name) in ENUMERATIONS {
        let rows = rows(section(&document, heading));
        let source = read(&format!("crates/{path}"));
        let written: Vec<_> =
            rows.iter().map(|row| (number(row[0]).expect("a number"), row[1].to_owned())).collect();
        let mut sorted = written.clone();
        sorted.sort();
        assert_eq!(sorted, constants(&source, name), "{heading}");
        for row in rows {
            assert!(!tests_in(row[2]).is_empty(), "{heading}: {} has no byte test", row[1]);
        }
    }
}

/// A version of vPCI as its document writes it.
fn short(version: Version) -> String {
    format!("{}.{}", version.0 >> 16, version.0 & 0xffff)
}

#[test]
fn every_message_of_vpci_has_its_row_with_bytes_and_a_scenario() {
    let document = read("docs/VPCI.md");
    let rows = rows(section(&document, "Messages"));
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

/// Whether some line names a row of the history, as in `// HISTORY 16, 23: why`. Ranges do not count.
fn named(sources: &str, row: u32) -> bool {
    sources.lines().filter(|line| !line.contains(" to ")).any(|line| {
        let rows = line.trim().strip_prefix("// HISTORY ").unwrap_or_default();
        let rows = rows.split(':').next().unwrap_or_default();
        rows.split([',', ' ']).any(|word| word.trim_end_matches('.').parse() == Ok(row))
    })
}

// HISTORY 16 to 28, 40, 54 to 56: each row that concerns functions has a test that names it.
#[test]
fn the_rows_of_history_about_functions_are_named_by_tests() {
    let sources = sources();
    let missing: Vec<u32> =
        (16..=28).chain([40, 54, 55, 56]).filter(|row| !named(&sources, *row)).collect();
    assert!(missing.is_empty(), "no test names row {missing:?}");
}

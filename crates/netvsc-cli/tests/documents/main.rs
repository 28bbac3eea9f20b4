//! The documents that map protocols to tests, against the code: the tests that they name exist, no row is without one, and
//! their rows are exactly what the code has.

mod history;
mod pairing;
mod tables;

use vpci::message::{MESSAGES, Sender, Version};

use tables::{missing, read, rows, section, sources, tests_in};

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
        let (missing, named) = (missing(&document, &sources), tests_in(&document).len());
        assert!(missing.is_empty(), "{path} names tests that do not exist: {missing:?}");
        assert!(named > least, "{path} names {named} tests only");
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

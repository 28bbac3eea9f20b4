//! What all tests of documents do: read a document, its tables, and the sources that it speaks of.

use std::path::{Path, PathBuf};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// A file of the workspace.
pub fn read(path: &str) -> String {
    std::fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// All Rust sources of the workspace in one text.
pub fn sources() -> String {
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
pub fn tests_in(text: &str) -> Vec<&str> {
    let is_name = |word: &&str| {
        word.matches('_').count() >= 2
            && word.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_')
    };
    text.split('`').skip(1).step_by(2).filter(is_name).collect()
}

/// The rows of all tables in a text, each as its cells. The first row of a table is its header and none of them.
pub fn rows(text: &str) -> Vec<Vec<&str>> {
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
pub fn section<'a>(document: &'a str, heading: &str) -> &'a str {
    let start = document.split(&format!("\n## {heading}\n")).nth(1);
    start.and_then(|rest| rest.split("\n## ").next()).unwrap_or_else(|| panic!("no {heading}"))
}

/// The tests that a text names and that do not exist.
pub fn missing<'a>(text: &'a str, sources: &str) -> Vec<&'a str> {
    let exists = |name: &&str| {
        sources.contains(&format!(" fn {name}(")) || sources.contains(&format!("\nfn {name}("))
    };
    tests_in(text).into_iter().filter(|name| !exists(name)).collect()
}

//! The house as it was designed: who may depend on whom, and where `unsafe` may live.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

/// External crates that the guest crates may depend on, and no others.
const ALLOWED: [&str; 5] = ["bitflags", "thiserror", "tracing", "uuid", "zerocopy"];

/// What those bring along at run time (macros run at build time and do not count).
const BROUGHT_ALONG: [&str; 2] = ["pin-project-lite", "tracing-core"];

/// The crates that build without std.
const GUEST: [&str; 3] = ["netvsc", "vmbus", "vpci"];

/// Workspace crates each crate may know. An edge that is missing here is an edge that must not be.
const DIRECTIONS: [(&str, &[&str]); 7] = [
    ("vmbus", &[]),
    ("vpci", &["vmbus"]),
    ("netvsc", &["vmbus"]),
    ("hyperv-host", &["netvsc", "vmbus", "vpci"]),
    ("netvsc-linux", &["netvsc", "vmbus", "vpci"]),
    ("netvsc-cli", &["hyperv-host", "netvsc", "netvsc-linux", "vmbus", "vpci"]),
    ("netvsc-fuzz", &["hyperv-host", "netvsc", "netvsc-linux", "vmbus", "vpci"]),
];

/// Sources with `unsafe` in them.
const UNSAFE_ROOMS: [&str; 6] = [
    "vmbus/src/memory/",
    "netvsc-linux/src/mapping.rs",
    "netvsc-linux/src/statistics/request.rs",
    "netvsc-linux/src/tap/request.rs",
    "netvsc-linux/src/vf/request.rs",
    "netvsc-linux/src/xdp/request.rs",
];

/// Modules that lift the ban on `unsafe`, each for one room.
const DOORS: [&str; 6] = [
    "vmbus/src/lib.rs",
    "netvsc-linux/src/lib.rs",
    "netvsc-linux/src/statistics/mod.rs",
    "netvsc-linux/src/tap.rs",
    "netvsc-linux/src/vf/mod.rs",
    "netvsc-linux/src/xdp/mod.rs",
];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn cargo(arguments: &[&str]) -> String {
    let program = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(program)
        .args(arguments)
        .args(["--offline", "--locked"])
        .current_dir(root())
        .output()
        .expect("cargo runs");
    assert!(
        output.status.success(),
        "cargo {arguments:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).expect("cargo prints text")
}

/// Every workspace crate with its dependencies, those for tests left out.
fn manifests() -> BTreeMap<String, BTreeSet<String>> {
    let text = cargo(&["metadata", "--no-deps", "--format-version", "1"]);
    let metadata: serde_json::Value = serde_json::from_str(&text).expect("metadata is JSON");
    let packages = metadata["packages"].as_array().expect("packages");
    packages.iter().map(|package| (name_of(package), dependencies(package))).collect()
}

fn name_of(value: &serde_json::Value) -> String {
    value["name"].as_str().expect("a name").to_owned()
}

fn dependencies(package: &serde_json::Value) -> BTreeSet<String> {
    let all = package["dependencies"].as_array().expect("dependencies");
    // What is optional is not there by default, and no default feature asks for it.
    let optional = |dependency: &serde_json::Value| dependency["optional"] == true;
    assert!(package["features"]["default"].is_null(), "no default features");
    all.iter().filter(|d| d["kind"] != "dev" && !optional(d)).map(name_of).collect()
}

fn set<'a>(names: impl IntoIterator<Item = &'a &'a str>) -> BTreeSet<String> {
    names.into_iter().map(|name| (*name).to_owned()).collect()
}

#[test]
fn the_workspace_has_exactly_the_crates_of_the_design() {
    let expected = set(DIRECTIONS.iter().map(|(name, _)| name));
    assert_eq!(manifests().into_keys().collect::<BTreeSet<_>>(), expected);
}

// HISTORY 4: pairing cannot reach into a driver of functions, since its crate does not know any.
#[test]
fn dependencies_point_one_way() {
    let manifests = manifests();
    for (name, allowed) in DIRECTIONS {
        let ours: BTreeSet<_> = manifests[name]
            .iter()
            .filter(|dependency| manifests.contains_key(*dependency))
            .cloned()
            .collect();
        let allowed = set(allowed);
        let forbidden: Vec<_> = ours.difference(&allowed).collect();
        assert!(forbidden.is_empty(), "{name} must not depend on {forbidden:?}");
    }
}

#[test]
fn the_guest_crates_depend_on_what_was_agreed_and_nothing_else() {
    let manifests = manifests();
    let ours = set(&GUEST);
    for name in GUEST {
        let foreign: BTreeSet<_> = manifests[name].difference(&ours).cloned().collect();
        assert!(
            foreign.is_subset(&set(&ALLOWED)),
            "{name} depends on {foreign:?}, allowed are {ALLOWED:?}"
        );
    }
}

#[test]
fn nothing_comes_along_with_those_unseen() {
    let allowed: BTreeSet<_> = set(&ALLOWED).union(&set(&BROUGHT_ALONG)).cloned().collect();
    for name in GUEST {
        let edges = "normal,no-proc-macro";
        let tree = cargo(&["tree", "-p", name, "-e", edges, "--prefix", "none", "-f", "{p}"]);
        let foreign: BTreeSet<_> = tree
            .lines()
            .filter_map(|line| line.split_whitespace().next())
            .filter(|dependency| !GUEST.contains(dependency))
            .map(str::to_owned)
            .collect();
        assert!(foreign.is_subset(&allowed), "{name} brings {foreign:?}, expected {allowed:?}");
    }
}

/// Where a crate lives, from the root.
fn folder(name: &str) -> PathBuf {
    match name {
        "netvsc-fuzz" => "fuzz".into(),
        name => Path::new("crates").join(name),
    }
}

/// Every Rust source of the workspace, as a path from `crates/`, or from the root for the fuzz targets.
fn sources() -> Vec<(String, String)> {
    fn walk(folder: &Path, found: &mut Vec<PathBuf>) {
        for entry in std::fs::read_dir(folder).expect("a folder") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                walk(&path, found);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                found.push(path);
            }
        }
    }
    let crates = root().join("crates");
    let mut found = Vec::new();
    walk(&crates, &mut found);
    walk(&root().join("fuzz/src"), &mut found);
    walk(&root().join("fuzz/fuzz_targets"), &mut found);
    walk(&root().join("fuzz/tests"), &mut found);
    found.sort();
    found
        .into_iter()
        .map(|path| {
            let text = std::fs::read_to_string(&path).expect("a source is text");
            let short = path.strip_prefix(&crates).or_else(|_| path.strip_prefix(root()));
            let short = short.expect("inside").to_string_lossy().into_owned();
            (short, text)
        })
        .collect()
}

/// Whether a line of code uses the keyword. Comments and words that merely contain it do not count.
fn uses_unsafe(line: &str) -> bool {
    let code = line.split("//").next().unwrap_or_default();
    code.match_indices("unsafe").any(|(at, word)| {
        let before = code[..at].chars().next_back();
        let after = code[at + word.len()..].trim_start();
        let starts = ["{", "(", "fn ", "impl", "extern ", "trait "];
        before.is_none_or(|c| !c.is_alphanumeric() && c != '_' && c != '"')
            && starts.iter().any(|start| after.starts_with(start))
    })
}

#[test]
fn the_scan_knows_the_keyword_when_it_sees_it() {
    let forms = [
        "unsafe { x }",
        "    let y = unsafe{ x };",
        "unsafe impl Send for X {}",
        "unsafe impl<T> Sync for X<T> {}",
        "pub unsafe fn f() {}",
        "#[unsafe(no_mangle)]",
        "unsafe extern \"C\" {",
        "pub unsafe trait T {",
    ];
    for form in forms {
        assert!(uses_unsafe(form), "{form}");
    }
    for other in ["// unsafe { x }", "unsafe_code = 1", "fn is_unsafe() {}", "an unsafe thing"] {
        assert!(!uses_unsafe(other), "{other}");
    }
}

#[test]
fn unsafe_lives_in_its_rooms_only() {
    let used: BTreeSet<String> = sources()
        .into_iter()
        // This file talks about the keyword.
        .filter(|(path, _)| path != "netvsc-cli/tests/house.rs")
        .filter(|(_, text)| text.lines().any(uses_unsafe))
        .map(|(path, _)| path)
        .map(|path| match UNSAFE_ROOMS.iter().find(|room| path.starts_with(**room)) {
            Some(room) => (*room).to_owned(),
            None => path,
        })
        .collect();
    assert_eq!(used, set(&UNSAFE_ROOMS));
}

/// Whether a line mentions the lint other than to forbid it once more.
fn lifts_the_ban(line: &str) -> bool {
    line.contains("unsafe_code") && !line.contains("forbid(") && !line.contains("deny(")
}

#[test]
fn the_compiler_enforces_the_ban_everywhere_else() {
    let ban = std::fs::read_to_string(root().join("Cargo.toml")).expect("the workspace manifest");
    assert!(ban.contains("unsafe_code = \"deny\""), "the workspace must deny unsafe code");
    for (name, _) in DIRECTIONS {
        let path = root().join(folder(name)).join("Cargo.toml");
        let text = std::fs::read_to_string(&path).expect("a manifest");
        assert!(
            text.contains("[lints]\nworkspace = true"),
            "{name} must take the workspace's lints"
        );
    }
    let doors: BTreeSet<String> = sources()
        .into_iter()
        .filter(|(path, _)| path != "netvsc-cli/tests/house.rs")
        .filter(|(_, text)| text.lines().any(lifts_the_ban))
        .map(|(path, _)| path)
        .collect();
    assert_eq!(doors, set(&DOORS));
}

#[test]
fn the_guest_crates_do_without_std() {
    for name in GUEST {
        let path = root().join("crates").join(name).join("src/lib.rs");
        let text = std::fs::read_to_string(path).expect("a source");
        assert!(text.lines().any(|line| line == "#![no_std]"), "{name} must be no_std");
    }
}

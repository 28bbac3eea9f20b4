//! Whoever uses these crates takes on no licence but permissive ones: what is compiled here is looked at, crate by crate.

use std::path::Path;
use std::process::Command;

use spdx::{Expression, LicenseReq, ParseMode};

/// Licences that any crate may have.
const ALLOWED: [&str; 6] = ["MIT", "Apache-2.0", "BSD-2-Clause", "BSD-3-Clause", "0BSD", "Zlib"];

/// What single crates may have besides, and why.
const EXCEPTIONS: [(&str, &str, &str); 2] = [
    (
        "borrow-or-share",
        "MIT-0",
        "MIT without the duty to name the author; comes with the tests' jsonschema",
    ),
    (
        "unicode-ident",
        "Unicode-3.0",
        "tables of Unicode, at build time; what it generates is not in the program",
    ),
];

fn permitted(name: &str, requirement: &LicenseReq) -> bool {
    let Some(id) = requirement.license.id() else { return false };
    let excepted = EXCEPTIONS.iter().any(|(of, licence, _)| (*of, *licence) == (name, id.name));
    // An exception to a licence, as LLVM's, only allows more.
    ALLOWED.contains(&id.name) || excepted
}

/// Whether a crate with this licence may be used.
fn may_be_used(name: &str, licence: &str) -> Result<bool, String> {
    let expression = Expression::parse_mode(licence, ParseMode::LAX)
        .map_err(|error| format!("{name}: `{licence}` is no SPDX expression: {error}"))?;
    Ok(expression.evaluate(|requirement| permitted(name, requirement)))
}

fn run(program: &str, arguments: &[&str]) -> String {
    let program = std::env::var_os(program.to_uppercase()).unwrap_or_else(|| program.into());
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let output = Command::new(program).args(arguments).current_dir(root).output().expect("runs");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{arguments:?}: {said}");
    String::from_utf8(output.stdout).expect("text")
}

/// Name and licence of everything that is compiled on this machine, for tests too.
fn compiled() -> Vec<(String, Option<String>)> {
    let about = run("rustc", &["-vV"]);
    let host = about.lines().find_map(|line| line.strip_prefix("host: ")).expect("a host");
    let arguments =
        ["metadata", "--format-version", "1", "--offline", "--locked", "--filter-platform", host];
    let metadata: serde_json::Value =
        serde_json::from_str(&run("cargo", &arguments)).expect("metadata is JSON");
    let packages = metadata["packages"].as_array().expect("packages");
    let text = |value: &serde_json::Value| value.as_str().map(str::to_owned);
    packages.iter().map(|p| (text(&p["name"]).expect("a name"), text(&p["license"]))).collect()
}

#[test]
fn every_dependency_has_a_permissive_licence() {
    let compiled = compiled();
    assert!(compiled.len() > 50, "only {} crates", compiled.len());
    for (name, licence) in &compiled {
        let licence = licence.as_deref().unwrap_or_else(|| panic!("{name} names no licence"));
        assert_eq!(may_be_used(name, licence), Ok(true), "{name}: {licence}");
    }
    for (name, ..) in EXCEPTIONS {
        assert!(
            compiled.iter().any(|(other, _)| other == name),
            "{name} needs no exception any more"
        );
    }
}

#[test]
fn licences_that_bind_others_are_refused() {
    for licence in [
        "GPL-2.0-only",
        "LGPL-2.1-or-later",
        "MPL-2.0",
        "EUPL-1.2",
        "MIT AND GPL-3.0-only",
        "Unicode-3.0",
    ] {
        assert_eq!(may_be_used("any", licence), Ok(false), "{licence}");
    }
    for licence in [
        "MIT/Apache-2.0",
        "MIT OR GPL-2.0-only",
        "Apache-2.0 WITH LLVM-exception",
        "Unlicense OR MIT",
    ] {
        assert_eq!(may_be_used("any", licence), Ok(true), "{licence}");
    }
    assert!(may_be_used("any", "see the file").is_err());
}

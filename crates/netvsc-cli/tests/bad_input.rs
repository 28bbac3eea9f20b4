//! The program against people who err: a clear message, the right exit status, nothing left behind.

#[path = "../../netvsc-linux/tests/namespace/mod.rs"]
#[expect(dead_code, reason = "shared with tests that need more of it")]
mod namespace;

use std::path::PathBuf;
use std::process::{Command, Output};

use namespace::{exists, in_namespace, ip, skipped};
use netvsc_linux::Tap;

const PROGRAM: &str = env!("CARGO_BIN_EXE_netvsc");

/// What the program said on standard error, after checking its exit status and that it printed nothing else.
fn complaint(arguments: &[&str], status: i32) -> String {
    let output = Command::new(PROGRAM).args(arguments).output().expect("the program runs");
    check(&output, status)
}

fn check(output: &Output, status: i32) -> String {
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(status), "{text}");
    assert!(output.stdout.is_empty(), "{}", String::from_utf8_lossy(&output.stdout));
    assert!(!text.contains("panicked"), "{text}");
    text
}

/// A file of this test's own that goes with the value.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str, content: &[u8]) -> Self {
        let path = std::env::temp_dir().join(format!("netvsc-{}-{name}", std::process::id()));
        std::fs::write(&path, content).expect("the temporary folder is writable");
        Self(path)
    }

    fn path(&self) -> &str {
        self.0.to_str().expect("a plain path")
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

#[test]
fn no_command_shows_the_help_and_is_a_usage_error() {
    assert!(complaint(&[], 2).contains("Usage: netvsc"));
}

#[test]
fn an_unknown_flag_is_a_usage_error_that_names_it() {
    let text = complaint(&["run", "--frobnicate"], 2);
    assert!(text.contains("--frobnicate") && text.contains("--help"), "{text}");
}

#[test]
fn an_unknown_command_is_a_usage_error_that_names_it() {
    assert!(complaint(&["fly"], 2).contains("fly"));
}

#[test]
fn a_name_that_is_too_long_is_a_usage_error_that_tells_the_limit() {
    let text = complaint(&["run", "--tap", "sixteen-bytes-xx"], 2);
    assert!(text.contains("at most 15 bytes"), "{text}");
}

#[test]
fn a_missing_file_is_named() {
    let text = complaint(&["run", "--transfer", "/no/such/file"], 1);
    assert!(text.contains("/no/such/file") && text.contains("--transfer"), "{text}");
}

#[test]
fn a_folder_is_not_a_file() {
    let text = complaint(&["run", "--transfer", "/"], 1);
    assert!(text.contains("directory"), "{text}");
}

#[test]
fn an_empty_file_is_refused() {
    let file = Scratch::new("empty", b"");
    let text = complaint(&["run", "--transfer", file.path()], 1);
    assert!(text.contains("empty") && text.contains(file.path()), "{text}");
}

#[test]
fn a_tap_that_someone_holds_is_refused_and_left_alone() {
    in_namespace("a_tap_that_someone_holds_is_refused_and_left_alone", || {
        let holder = Tap::open(&"nvt0".parse().expect("a name")).expect("open");
        let text = complaint(&["run", "--tap", "nvt0"], 1);
        assert!(text.contains("nvt0") && text.contains("in use"), "{text}");
        // The first TAP is free, the second is not: the first must not stay.
        let text = complaint(&["run", "--tap", "nvt1", "--peer-tap", "nvt0"], 1);
        assert!(text.contains("nvt0") && text.contains("in use"), "{text}");
        assert!(!exists("nvt1"), "nothing may be left behind");
        assert!(holder.mac().is_ok());
    });
}

#[test]
fn a_name_of_another_interface_is_refused() {
    in_namespace("a_name_of_another_interface_is_refused", || {
        ip("link set lo up");
        let text = complaint(&["run", "--tap", "lo"], 1);
        assert!(text.contains("not a TAP"), "{text}");
        assert!(ip("link show lo").contains("LOOPBACK,UP"));
    });
}

#[test]
fn without_privilege_the_capability_is_named() {
    const TEST: &str = "without_privilege_the_capability_is_named";
    in_namespace(TEST, || {
        // Capabilities go, the user stays, so that the program can still be read.
        let output = Command::new("setpriv")
            .args(["--bounding-set=-all", "--inh-caps=-all", "--", PROGRAM, "run", "--tap", "nvt0"])
            .output();
        match output {
            Ok(output) => {
                let text = check(&output, 1);
                assert!(text.contains("CAP_NET_ADMIN") && text.contains("root"), "{text}");
                assert!(!exists("nvt0"));
            }
            Err(error) => skipped(TEST, &format!("setpriv cannot be run: {error}")),
        }
    });
}

#[test]
fn a_scenario_that_there_is_not_is_a_command_line_that_makes_no_sense() {
    let text = complaint(&["sim", "--scenario", "nope"], 2);
    assert_eq!(text, "netvsc: no scenario is called `nope`; `netvsc sim --list` names them\n");
}

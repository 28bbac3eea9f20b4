//! Results of simulations that are written down and added up, as their users do it.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use clap::ValueEnum;
use netvsc_cli::sim::args::Profile;
use serde_json::Value;

/// A folder that goes with the test.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("netvsc-sim-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&path).expect("a folder");
        Self(path)
    }

    fn file(&self, name: &str) -> String {
        self.0.join(name).display().to_string()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn sim(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_netvsc")).arg("sim").args(arguments).output().expect("it runs")
}

fn good(arguments: &[&str]) -> String {
    let output = sim(arguments);
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("text")
}

fn refused(arguments: &[&str], status: i32) -> String {
    let output = sim(arguments);
    assert_eq!(output.status.code(), Some(status), "{arguments:?}");
    String::from_utf8(output.stderr).expect("text")
}

/// The schema, closed: no other keys may stand there than those it knows.
fn schema() -> Value {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/schema/sim-1.json");
    let schema = std::fs::read_to_string(path).expect("a schema");
    let mut schema = serde_json::from_str(&schema).expect("a schema is JSON");
    close(&mut schema);
    schema
}

fn close(schema: &mut Value) {
    match schema {
        Value::Object(map) => {
            map.values_mut().for_each(close);
            if map.contains_key("properties") && map.contains_key("required") {
                map.entry("additionalProperties").or_insert(Value::Bool(false));
            }
        }
        Value::Array(all) => all.iter_mut().for_each(close),
        _ => {}
    }
}

fn valid(text: &str) -> Value {
    let value: Value = serde_json::from_str(text).expect("JSON");
    let validator = jsonschema::validator_for(&schema()).expect("a schema that is one");
    let errors: Vec<_> =
        validator.iter_errors(&value).map(|e| format!("{}: {e}", e.instance_path())).collect();
    assert!(errors.is_empty(), "{errors:#?}\n{text}");
    value
}

#[test]
fn shares_are_written_added_up_and_come_to_the_same_as_all_seeds_at_once() {
    let folder = Folder::new("shares");
    let files = ["0", "1", "2", "all", "sum"].map(|name| folder.file(name));
    for (shard, file) in ["0/3", "1/3", "2/3"].into_iter().zip(&files) {
        good(&["--profile", "flapping", "--seeds", "3..9", "--shard", shard, "--out", file]);
    }
    good(&["--profile", "flapping", "--seeds", "3..9", "--out", &files[3]]);
    let text = good(&["merge", &files[0], &files[2]]);
    assert!(text.contains("4 seeds of the profile flapping: all passed"), "{text}");
    assert!(text.contains("missing: seeds 3..9 share 1/3 of the profile flapping"), "{text}");
    let text = good(&["merge", &files[0], &files[1], &files[2], "--out", &files[4], "--json"]);
    let written = std::fs::read_to_string(&files[4]).expect("it was written");
    assert_eq!(text, written);
    let all = std::fs::read_to_string(&files[3]).expect("it was written");
    let (mut sum, mut all) = (valid(&written), valid(&all));
    assert_eq!(sum["profiles"][0]["ranges"].as_array().map(Vec::len), Some(3));
    // What may differ: the time it took, and by which shares.
    for results in [&mut sum, &mut all] {
        let one = results["profiles"][0].as_object_mut().expect("results of a profile");
        one.remove("wall_seconds");
        one.remove("ranges");
    }
    assert_eq!(sum, all);
    let error = refused(&["merge", &files[3], &files[4]], 1);
    assert!(error.contains("seed 3 of the profile flapping is in"), "{error}");
}

#[test]
fn what_cannot_be_read_written_or_asked_for_is_said_at_once() {
    let folder = Folder::new("bad");
    let (gone, other) = (folder.file("gone"), folder.file("other"));
    assert!(refused(&["merge", &gone], 1).contains("cannot read"));
    std::fs::write(&other, "{}").expect("a file");
    assert!(refused(&["merge", &other], 1).contains("has no results of `netvsc sim --out`"));
    let nowhere = folder.file("no/such/folder");
    assert!(refused(&["--out", &nowhere], 1).contains("--out a file that you can write"));
    refused(&["merge"], 2);
    refused(&["--seeds", "0..4", "merge", &other], 2);
    refused(&["--until-failure", "--out", &other], 2);
    refused(&["--replay", "4", "--out", &other], 2);
}

#[test]
fn the_schema_knows_every_profile() {
    let schema = schema();
    let known = &schema["properties"]["profiles"]["items"]["properties"]["profile"]["enum"];
    let words: Vec<_> = Profile::value_variants().iter().map(|profile| profile.word()).collect();
    assert_eq!(*known, serde_json::json!(words));
    for profile in Profile::value_variants() {
        assert_eq!(serde_json::to_value(profile).expect("JSON"), profile.word());
    }
}

//! Every fuzz target over the committed inputs, and over random bytes that are the same each time.

use std::fs;
use std::panic;
use std::path::{Path, PathBuf};

use netvsc_fuzz::{TARGETS, Target};
use rand_core::{Rng, SeedableRng};
use rand_xoshiro::Xoshiro256PlusPlus;

/// Random inputs per target.
const RANDOM: u64 = 400;
/// The longest of them.
const LONGEST: u64 = 600;

fn corpus() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus")
}

/// The inputs of a target, by name.
fn inputs(target: &Target) -> Vec<(PathBuf, Vec<u8>)> {
    let entries = fs::read_dir(corpus().join(target.name)).expect("a folder for each target");
    let mut paths: Vec<_> = entries.map(|entry| entry.expect("an entry").path()).collect();
    paths.sort();
    let read = |path: PathBuf| (path.clone(), fs::read(path).expect("a file"));
    paths.into_iter().map(read).collect()
}

/// Runs a target and, if it panics, says with what.
fn run(target: &Target, input: &[u8], origin: &str) {
    if let Err(cause) = panic::catch_unwind(|| (target.run)(input)) {
        eprintln!("{} panics over {origin}: {input:02x?}", target.name);
        panic::resume_unwind(cause);
    }
}

#[test]
fn every_committed_input_passes() {
    for target in TARGETS {
        let inputs = inputs(target);
        assert!(inputs.len() >= 10, "{} has {} inputs", target.name, inputs.len());
        for (path, input) in inputs {
            run(target, &input, &path.display().to_string());
        }
    }
}

#[test]
fn inputs_cut_short_anywhere_pass() {
    for target in TARGETS {
        for (path, input) in inputs(target) {
            let step = input.len() / 8 + 1;
            for len in (0..input.len()).step_by(step) {
                run(target, &input[..len], &format!("the first {len} bytes of {}", path.display()));
            }
        }
    }
}

#[test]
fn random_bytes_pass() {
    for target in TARGETS {
        for seed in 0..RANDOM {
            let mut rng = Xoshiro256PlusPlus::seed_from_u64(seed);
            let mut input = vec![0; (rng.next_u64() % LONGEST) as usize];
            rng.fill_bytes(&mut input);
            run(target, &input, &format!("seed {seed}"));
        }
    }
}

/// A committed input with some bytes changed is closer to what a target understands than random bytes are.
#[test]
fn committed_inputs_with_changed_bytes_pass() {
    for target in TARGETS {
        for (index, (path, mut input)) in inputs(target).into_iter().enumerate() {
            let mut rng = Xoshiro256PlusPlus::seed_from_u64(index as u64);
            for change in 0..8 {
                let Some(at) = rng.next_u64().checked_rem(input.len() as u64) else { break };
                input[at as usize] = rng.next_u64() as u8;
                run(target, &input, &format!("{} after {} changes", path.display(), change + 1));
            }
        }
    }
}

#[test]
fn the_corpus_is_small_and_belongs_to_targets() {
    let mut bytes = 0;
    for target in TARGETS {
        bytes += inputs(target).iter().map(|(_, input)| input.len()).sum::<usize>();
    }
    assert!(bytes < 1 << 20, "the corpus has {bytes} bytes");
    for entry in fs::read_dir(corpus()).expect("a folder") {
        let name = entry.expect("an entry").file_name();
        assert!(TARGETS.iter().any(|target| *target.name == *name), "{name:?} is no target");
    }
}

#[test]
fn each_target_has_its_program() {
    let manifest = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml"));
    let manifest = manifest.expect("a manifest");
    for target in TARGETS {
        assert!(manifest.contains(&format!("name = \"{}\"", target.name)), "{}", target.name);
    }
    assert_eq!(manifest.matches("[[bin]]").count(), TARGETS.len());
}

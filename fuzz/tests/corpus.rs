//! Every fuzz target over the committed inputs, and over random bytes that are the same each time.

use std::fs;
use std::panic;
use std::path::{Path, PathBuf};

use netvsc_fuzz::{NicReach, TARGETS, Target, nic_reach};
use rand_core::{Rng, SeedableRng};
use rand_xoshiro::Xoshiro256PlusPlus;

/// Something that an input may reach.
type Mark = fn(&NicReach) -> bool;

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

/// A change to the protocol of start-up makes old inputs fall behind without any of them failing: how far they come is counted.
#[test]
fn committed_inputs_bring_the_nic_to_where_it_is_deep() {
    let target = TARGETS.iter().find(|target| target.name == "nic_guest").expect("the target");
    let reached: Vec<_> = inputs(target).iter().map(|(_, input)| nic_reach(input)).collect();
    let count = |there: Mark| reached.iter().filter(|reach| there(reach)).count();
    let deep: [(&str, Mark); 14] = [
        ("ready", |reach| reach.ready),
        ("failed", |reach| reach.failed),
        ("stopped", |reach| reach.stopped),
        ("received", |reach| reach.received[0] > 0),
        ("received on sub-channels", |reach| reach.received[1] > 0),
        ("coalesced", |reach| reach.coalesced > 0),
        ("tagged", |reach| reach.tagged > 0),
        ("sent", |reach| reach.sent[0] > 0),
        ("sent on sub-channels", |reach| reach.sent[1] > 0),
        ("cut by the host", |reach| reach.large > 0),
        ("checksums by the host", |reach| reach.checksums > 0),
        ("from memory by page", |reach| reach.gpa_direct > 0),
        ("lent", |reach| reach.lent > 0),
        ("given back", |reach| reach.returned > 0),
    ];
    let counts = deep.map(|(what, there)| (what, count(there)));
    eprintln!("of {} inputs: {counts:?}", reached.len());
    for (what, count) in counts {
        assert!(count >= 2, "{what}: {counts:?}");
    }
    assert!(counts[0].1 * 3 >= reached.len(), "a third becomes ready: {counts:?}");
}

use std::time::Duration;

use super::super::outcome::{Failure, Figures, Outcome, Totals};
use super::*;

fn range(first: u64, end: u64, shard: u64, shards: u64) -> Range {
    Range { first, end, shard, shards }
}

fn seeds_of(range: &Range) -> Vec<u64> {
    (range.first..range.end).skip(range.shard as usize).step_by(range.shards as usize).collect()
}

/// Results of seeds that never ran, each with a blackout of as many microseconds as its number.
fn made(profile: Profile, of: Range) -> Results {
    let mut totals = Totals::default();
    for seed in seeds_of(&of) {
        let mut figures = Figures { nics: 2, acts: 3, frames_out: 5, ..Figures::default() };
        figures.fired.insert("eject", 1);
        figures.blackouts.add(Duration::from_micros(seed), 1);
        figures.waiting.add(seed / 2);
        let failure =
            seed.is_multiple_of(10).then(|| Failure { what: "lost".into(), acts: vec![] });
        totals.add(&Outcome { seed, figures, failure });
    }
    let profiles = vec![totals.results(profile, of, 1.5)];
    Results { schema_version: SCHEMA, version: "1".into(), profiles }
}

fn named(all: Vec<Results>) -> Vec<(PathBuf, Results)> {
    (0..).zip(all).map(|(n, results): (u32, _)| (format!("{n}.json").into(), results)).collect()
}

#[test]
fn shares_add_up_to_what_one_run_of_all_seeds_comes_to() {
    let shares = (0..3).map(|shard| made(Profile::Storm, range(5, 105, shard, 3)));
    let merged = Results::merged(named(shares.collect())).expect("they fit");
    let whole = made(Profile::Storm, range(5, 105, 0, 1));
    let (merged, whole) = (&merged.profiles[0], &whole.profiles[0]);
    assert_eq!((merged.ranges.len(), merged.missing.len()), (3, 0));
    assert_eq!((merged.seeds, merged.nics, merged.acts, merged.frames), (100, 200, 300, 500));
    assert_eq!(merged.blackouts, whole.blackouts);
    assert_eq!((merged.blackouts.p50_us, merged.blackouts.max_us), (54, 104));
    assert_eq!(merged.blackout_lengths, whole.blackout_lengths);
    assert_eq!(merged.frames_waiting, WaitingLine { p50: 27, p99: 51, max: 52 });
    assert_eq!(merged.frames_waiting, whole.frames_waiting);
    assert_eq!(merged.waiting_counts, whole.waiting_counts);
    assert_eq!(merged.failed, whole.failed);
    assert_eq!(merged.failed.len(), 10);
    assert_eq!(merged.acts_by_kind, whole.acts_by_kind);
    assert_eq!(merged.wall_seconds, 4.5);
}

#[test]
fn shares_that_are_missing_are_named_and_merging_can_go_on() {
    let share = |shard| made(Profile::Smoke, range(0, 8, shard, 4));
    let two = Results::merged(named(vec![share(3), share(1)])).expect("they fit");
    assert_eq!(two.profiles[0].missing, [range(0, 8, 0, 4), range(0, 8, 2, 4)]);
    assert_eq!(two.profiles[0].missing[0].to_string(), "0..8 share 0/4");
    let other = made(Profile::Ports, range(0, 2, 0, 1));
    let all = Results::merged(named(vec![share(0), two, other, share(2)])).expect("they fit");
    let profiles: Vec<_> = all.profiles.iter().map(|one| (one.profile, one.seeds)).collect();
    assert_eq!(profiles, [(Profile::Smoke, 8), (Profile::Ports, 2)]);
    assert!(all.profiles.iter().all(|one| one.missing.is_empty()));
    // More shares than seeds: those without a seed are not missed.
    let one = made(Profile::Smoke, range(0, 2, 1, 9));
    assert_eq!(one.profiles[0].missing, [range(0, 2, 0, 9)]);
}

#[test]
fn a_seed_that_ran_twice_and_results_of_another_program_are_refused() {
    let share = |shard| made(Profile::Smoke, range(0, 100, shard, 4));
    let twice =
        Results::merged(named(vec![share(0), share(1), made(Profile::Smoke, range(97, 98, 0, 1))]));
    let error = twice.expect_err("seed 97 is in two").to_string();
    assert_eq!(
        error,
        "seed 97 of the profile smoke is in `1.json` and in `2.json`: expected each seed once"
    );
    let other = Results { version: "2".into(), ..share(1) };
    let error = Results::merged(named(vec![share(0), other])).expect_err("another version");
    assert!(
        matches!(&error, ResultsError::Version { found, expected, .. } if found == "2" && expected == "1")
    );
    assert!(error.to_string().contains("`1.json` is of netvsc 2, `0.json` of netvsc 1"));
}

#[test]
fn what_is_no_file_of_results_is_refused_with_a_reason() {
    let folder = std::env::temp_dir().join(format!("netvsc-results-{}", std::process::id()));
    std::fs::create_dir_all(&folder).expect("a folder");
    let path = folder.join("results.json");
    let read = |text: String| {
        std::fs::write(&path, text).expect("a file");
        Results::read(&path).map_err(|error| error.to_string())
    };
    let good = made(Profile::Smoke, range(0, 4, 0, 1));
    let text = serde_json::to_string(&good).expect("JSON");
    assert_eq!(read(text.clone()), Ok(good));
    for (from, to, why) in [
        ("{", "[", "invalid type"),
        ("\"schema_version\":1", "\"schema_version\":2", "its form has version 2, expected 1"),
        ("\"smoke\"", "\"steam\"", "unknown variant"),
        ("\"seeds\":4", "\"seeds\":5", "5 seeds of the profile smoke, expected 4"),
        ("\"end\":4", "\"end\":0", "0..0 of the profile smoke is no range of seeds"),
        ("\"shards\":1", "\"shards\":0", "is no range of seeds"),
        ("\"acts\"", "\"deeds\"", "unknown field"),
    ] {
        let error = read(text.replacen(from, to, 1)).expect_err(to);
        assert!(error.contains(why) && error.contains("results.json"), "{error}");
    }
    std::fs::remove_dir_all(&folder).expect("it is there");
    let gone = Results::read(&path).expect_err("it is gone");
    assert!(matches!(gone, ResultsError::Read { .. }));
}

#[test]
fn a_common_seed_is_found_if_there_is_one() {
    let mut all = Vec::new();
    for (first, len) in [(0, 1), (0, 7), (3, 9), (5, 2), (8, 20)] {
        for shards in 1..6 {
            all.extend((0..shards).map(|shard| range(first, first + len, shard, shards)));
        }
    }
    for a in &all {
        assert_eq!(a.count(), seeds_of(a).len() as u64, "{a}");
        for b in &all {
            let first = seeds_of(a).into_iter().find(|seed| seeds_of(b).contains(seed));
            assert_eq!(a.common(b), first, "{a} and {b}");
        }
    }
}

#[test]
fn ranges_at_the_end_of_all_numbers_overflow_nothing() {
    const END: u64 = u64::MAX;
    let ranges = [
        range(END - 2, END, 0, 1),
        range(0, END, 0, 1),
        range(0, END, END - 1, END),
        range(END - 1, END, 7, 9),
        range(END - 1, END, END - 1, END),
    ];
    assert_eq!(ranges.map(|range| range.count()), [2, END, 1, 0, 0]);
    let all = ranges.iter().flat_map(|a| ranges.iter().map(|b| a.common(b)));
    let common: Vec<_> = all.map(|seed| seed.map(|seed| END - seed)).collect();
    assert_eq!(common[..5], [Some(2), Some(2), Some(1), None, None]);
    assert_eq!(common[5..10], [Some(2), Some(END), Some(1), None, None]);
    assert_eq!(common[10..15], [Some(1), Some(1), Some(1), None, None]);
    assert!(common[15..].iter().all(Option::is_none));
}

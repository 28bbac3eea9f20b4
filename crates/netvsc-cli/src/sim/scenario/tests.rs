use std::collections::BTreeSet;
use std::path::Path;

use super::*;

#[test]
fn every_scenario_ends_as_it_should() {
    let failed: Vec<_> = all()
        .filter_map(|scenario| Some((scenario.name, scenario.play(None, &mut |_| {}).failure?)))
        .collect();
    assert!(failed.is_empty(), "{failed:#?}");
}

#[test]
fn no_expectation_is_met_where_nothing_happens() {
    let quiet = Script {
        plan: setup::plan(&[]),
        acts: Vec::new(),
        rings: None,
        mtu: None,
        final_as_is: false,
    };
    let (played, told) = play(quiet, None, &mut |_| {});
    assert_eq!(played.failure, None);
    let met =
        |scenario: &&Scenario| scenario.expect.iter().all(|expect| expect.missed(&told).is_none());
    let met: Vec<_> = all().filter(met).map(|scenario| scenario.name).collect();
    assert!(met.is_empty(), "a system in which nothing happens meets {met:?}");
}

#[test]
fn a_state_that_is_not_so_is_noticed() {
    for scenario in all() {
        for (place, (_, _, deed)) in scenario.steps.iter().enumerate() {
            let Deed::See(state) = deed else { continue };
            let mut script = scenario.script();
            let wrong = if *state == "accelerated" { "waiting" } else { "accelerated" };
            script.acts[place].deed = Deed::See(wrong);
            let failure = play(script, None, &mut |_| {}).0.failure.unwrap_or_default();
            assert!(failure.contains(wrong), "{}: {failure}", scenario.name);
        }
    }
}

#[test]
fn there_are_scenarios_enough_and_each_has_its_name_and_its_row() {
    assert!(all().count() >= 40, "{}", all().count());
    let names: BTreeSet<_> = all().map(|scenario| scenario.name).collect();
    assert_eq!(names.len(), all().count(), "a name stands twice");
    for Scenario { name, rows, .. } in all() {
        let known = |row: &&str| match row.strip_prefix('S') {
            None => row.parse().is_ok_and(|row: u32| (1..=71).contains(&row)),
            Some(section) => section.starts_with(['4', '5', '6']),
        };
        assert!(!rows.is_empty() && rows.iter().all(known), "{name}: {rows:?}");
    }
}

#[test]
fn the_document_lists_the_scenarios() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/SIMULATION.md");
    let text = std::fs::read_to_string(path).expect("the document");
    for Scenario { name, rows, what, .. } in all() {
        let row = format!("| {name} | {} | {what} |", rows.join(", "));
        assert!(text.lines().any(|line| line == row), "docs/SIMULATION.md lacks: {row}");
    }
    let listed = text.lines().skip_while(|line| !line.starts_with("| scenario |"));
    let listed = listed.skip(2).take_while(|line| line.starts_with('|')).count();
    assert_eq!(listed, all().count());
}

#[test]
fn a_scenario_can_be_drawn() {
    let scenario = all().find(|scenario| scenario.name == "torn-away-under-load").expect("it");
    let mut recorder = None;
    let played = scenario.play(Some(&mut recorder), &mut |_| {});
    let heading = headed("one".into(), &played.figures, None);
    let text = recorder.expect("a recording").picture(&heading);
    let tree = roxmltree::Document::parse(&text).expect("well-formed");
    let lanes = tree.descendants().filter(|node| node.attribute("class") == Some("lane")).count();
    assert_eq!(lanes, played.figures.nics);
    assert!(text.contains("the VF vanished"));
}

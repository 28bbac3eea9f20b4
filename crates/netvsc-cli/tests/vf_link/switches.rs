//! What TCP notices when the host asks for the VF.

use crate::long;
use crate::namespace::in_namespace;
use crate::setup::{ON_VF, Setup};

#[test]
fn nothing_is_lost_when_the_host_asks_for_the_vf() {
    in_namespace("switches::nothing_is_lost_when_the_host_asks_for_the_vf", || {
        // The first two of three removals are orderly.
        let mut setup = Setup::new("vf-eject", &["--churn", "400ms"], &[]);
        let times = if long() { 100 } else { 3 };
        let (_, silence, stalls) = setup.transfer_with_stalls(|setup| {
            for time in 2..=times {
                setup.run.wait_for(ON_VF, time);
            }
        });
        let summary = setup.finish();
        let [ejects, surprises] =
            ["ejects", "surprises"].map(|what| summary[what].as_u64().expect("a number"));
        eprintln!("{ejects} ejects, {surprises} surprises, {stalls} stalls, longest {silence:?}");
        assert!(ejects >= times as u64 / 2, "{summary}");
        // One in a hundred orderly switches may; and a machine that is busy with other things once.
        assert!(stalls <= surprises + ejects / 100 + 1, "{stalls} stalls: {summary}");
        assert_eq!(summary["frames_lost_orderly"], 0, "{summary}");
    });
}

//! The scenarios.

mod hosts;
mod pairs;
mod starts;
mod vfs;

use std::time::Duration;

use super::Scenario;

const fn millis(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

const ON_VF: &str = "nic0: frames leave on the vf path";
const OFF_VF: &str = "nic0: frames leave on the synthetic path";
const BY_BOTH: &str = "(SerialAndMac)";
const BY_MAC: &str = "(Mac)";

/// What is not said otherwise: nothing is changed, nothing is done, nothing told, and in the end everything is on its VF.
const PLAIN: Scenario = Scenario {
    name: "",
    rows: &[],
    what: "",
    setup: &[],
    steps: &[],
    expect: &[],
    final_as_is: false,
};

/// All of them.
pub(in crate::sim) fn all() -> impl Iterator<Item = &'static Scenario> {
    [pairs::ALL, vfs::ALL, hosts::ALL, starts::ALL].into_iter().flatten()
}

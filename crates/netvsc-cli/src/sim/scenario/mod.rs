//! Named scenarios: what went wrong elsewhere, played on the real machines of guest and host.
//!
//! A [`Scenario`] is data: how the system is set up, what happens when, and what has to be told of it. It is played under the
//! same invariants as a seed.

mod catalogue;
mod expect;
mod setup;
#[cfg(test)]
mod tests;

use std::process::ExitCode;
use std::time::Duration;

use serde::Serialize;
use vmbus::Instant;

use super::args::SimArgs;
use super::deed::{Act, Deed};
use super::outcome::Figures;
use super::script::Script;
use super::system::System;
use super::{headed, line};
use crate::error::Error;
use crate::event::Event;
use crate::report::json;
use crate::timeline::{Recorder, Target};
pub(super) use catalogue::all;
use expect::Expect;
use setup::Set;

/// One scenario.
#[derive(Debug)]
pub(super) struct Scenario {
    pub(super) name: &'static str,
    /// Where the case comes from: rows of the table of known edge cases, or `S6.1` for item 1 of its section 6.
    pub(super) rows: &'static [&'static str],
    /// What happens, and what has to come of it.
    pub(super) what: &'static str,
    setup: &'static [Set],
    steps: &'static [Step],
    expect: &'static [Expect],
    /// Whether nothing is mended in the end, because what it ends in is right.
    final_as_is: bool,
}

/// What is done to whom, this many milliseconds after the start.
type Step = (u64, usize, Deed);

/// A scenario as a line of JSON.
#[derive(Debug, Serialize)]
#[serde(tag = "event", rename = "scenario")]
struct ListLine {
    name: &'static str,
    rows: &'static [&'static str],
    what: &'static str,
}

/// What came of one, as a line of JSON.
#[derive(Debug, Serialize)]
#[serde(tag = "event", rename = "summary")]
struct PlayLine<'a> {
    scenario: &'static str,
    ok: bool,
    failure: Option<&'a str>,
    frames: u64,
    frames_resent: u64,
    frames_twice: u64,
    switches: u64,
    virtual_seconds: f64,
}

/// What came of one.
#[derive(Debug)]
pub(super) struct Played {
    pub(super) figures: Figures,
    pub(super) failure: Option<String>,
}

impl Scenario {
    fn script(&self) -> Script {
        let mut at = 0;
        let acts = self.steps.iter().map(|(when, nic, deed)| {
            let after = Duration::from_millis(when.saturating_sub(at));
            at = *when;
            Act { after, nic: *nic, deed: *deed }
        });
        let acts = acts.collect();
        let (plan, rings) = (setup::plan(self.setup), setup::rings(self.setup));
        Script { plan, acts, rings, mtu: None, final_as_is: self.final_as_is }
    }

    /// Plays it; `tell` hears of every event. What happens is recorded if there is a place for it.
    pub(super) fn play(
        &self,
        recorder: Option<&mut Option<Recorder>>,
        tell: &mut dyn FnMut(&Event),
    ) -> Played {
        let (played, told) = play(self.script(), recorder, tell);
        let missed = || self.expect.iter().find_map(|expect| expect.missed(&told));
        let failure = played.failure.or_else(missed);
        Played { failure, ..played }
    }
}

/// Plays a script; the events as they were told, too.
fn play(
    script: Script,
    recorder: Option<&mut Option<Recorder>>,
    tell: &mut dyn FnMut(&Event),
) -> (Played, Vec<(Instant, String)>) {
    let mut told = Vec::new();
    let played = match System::new(script, usize::MAX) {
        Ok(mut system) => {
            if recorder.is_some() {
                system.record();
            }
            let run = system.run(&mut |event| {
                told.push((event.at, event.what.to_string()));
                tell(event);
            });
            if let Some(recorder) = recorder {
                *recorder = system.recorded();
            }
            let figures = system.figures();
            Played { figures, failure: run.and_then(|()| system.leave()).err() }
        }
        Err(what) => Played { figures: Figures::default(), failure: Some(what) },
    };
    (played, told)
}

/// Carries out `netvsc sim --list`.
pub(super) fn list(as_json: bool) -> Result<ExitCode, Error> {
    if !as_json {
        line(&format!("{:<34} {:<8} what happens", "scenario", "row"))?;
    }
    for Scenario { name, rows, what, .. } in all() {
        line(&if as_json {
            json(&ListLine { name, rows, what })?
        } else {
            format!("{name:<34} {:<8} {what}", rows.join(","))
        })?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Carries out `netvsc sim --scenario NAME`.
pub(super) fn run(name: &str, args: &SimArgs) -> Result<ExitCode, Error> {
    let as_json = args.json;
    let scenario = all().find(|scenario| scenario.name == name);
    let scenario = scenario.ok_or_else(|| Error::NoScenario(name.to_owned()))?;
    let mut written = Ok(());
    let picture = args.timeline.as_deref().map(Target::create).transpose()?;
    let mut recorder = None;
    let wanted = picture.is_some().then_some(&mut recorder);
    let played = scenario.play(wanted, &mut |event| {
        if written.is_ok() {
            written = if as_json { json(event) } else { Ok(event.to_string()) }
                .and_then(|text| line(&text));
        }
    });
    written?;
    if let (Some(target), Some(recorder)) = (picture, recorder) {
        let title = format!("netvsc sim --scenario {name}");
        target.write(&recorder, &headed(title, &played.figures, played.failure.as_deref()))?;
    }
    let Figures { frames_out, frames_in, switches, .. } = played.figures;
    let virtual_seconds = played.figures.virtual_micros as f64 / 1e6;
    if as_json {
        line(&json(&PlayLine {
            scenario: scenario.name,
            ok: played.failure.is_none(),
            failure: played.failure.as_deref(),
            frames: frames_out + frames_in,
            frames_resent: played.figures.frames_resent,
            frames_twice: played.figures.frames_twice,
            switches,
            virtual_seconds,
        })?)?;
    } else {
        let frames = frames_out + frames_in;
        line(&format!("{name}: {frames} frames, {switches} switches, {virtual_seconds:.3} s"))?;
    }
    played.failure.map_or(Ok(ExitCode::SUCCESS), |what| Err(Error::Run(what)))
}

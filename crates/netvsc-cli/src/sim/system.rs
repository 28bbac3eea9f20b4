//! One system from one seed: guest, host, traffic, and the checks of every step.

mod acts;
mod checks;
mod ending;
mod lanes;

use std::collections::BTreeMap;
use std::time::Duration;

use netvsc::MacAddress;
use netvsc::nvsp::Version;
use rand_core::{Rng, SeedableRng};
use rand_xoshiro::Xoshiro256PlusPlus;
use vmbus::time::earliest;
use vmbus::{Guid, Instant};

use super::deed::{Act, Deed};
use super::outcome::Figures;
use super::script::Script;
use super::traffic::{Flows, Way};
use crate::event::{Event, What};
use crate::guest::Tally;
use crate::run::NicPlan;
use crate::run::stage::Stage;
use crate::scenario::Script as Quiet;
use crate::timeline::Recorder;
use lanes::Lane;

/// How often everything may be polled at one moment before that counts as never coming to rest.
const ROUNDS: usize = 10_000;
/// How long after the host's last act every NIC may take to be on its VF.
const LIVENESS: Duration = Duration::from_secs(180);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// The host follows its script; the next act is due then.
    Acting {
        next: usize,
        due: Instant,
    },
    /// It behaves; since then.
    Behaving {
        since: Instant,
        burst: bool,
    },
    Over,
}

/// Whether the guest is to sleep, or sleeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Nap {
    None,
    /// It goes to sleep, for so long.
    Wanted(Duration),
    /// It sleeps until then.
    Until(Instant),
}

/// One system.
#[derive(Debug)]
pub(super) struct System {
    stage: Stage,
    acts: Vec<Act>,
    shared: bool,
    lanes: Vec<Lane>,
    random: Xoshiro256PlusPlus,
    now: Instant,
    tick: Instant,
    phase: Phase,
    /// Pages, pieces of memory and channels in use when every NIC was on its VF for the first time.
    in_use: Option<[usize; 3]>,
    final_as_is: bool,
    /// What was to be seen and was not so.
    unseen: Option<String>,
    nap: Nap,
    done: usize,
    /// What happened, by kind.
    fired: BTreeMap<&'static str, u64>,
    /// Functions that are no NIC's VF, with their MACs, and how many there were ever.
    strangers: Vec<(Guid, MacAddress)>,
    strangers_made: u8,
    /// Failures of the guest that were for want of memory.
    starved: usize,
    /// Messages of the host that the guest may refuse.
    nonsense: usize,
    rings: Option<usize>,
    mtu: Option<u32>,
    steps: u64,
    trace: u64,
    buffer: Vec<u8>,
    recorder: Option<Recorder>,
    /// Frames of the guest that waited at the end of each blackout.
    waiting: Tally,
}

fn peer_mac(nic: usize) -> MacAddress {
    MacAddress([0x02, 0, 0, 0, 1, nic as u8])
}

/// Whether guest and host of a NIC speak a version in which the guest asks for VFs. Version 4 has the messages, and no guest asks then.
fn knows_vfs(planned: &NicPlan) -> bool {
    planned.nic.policy.versions.iter().any(|spoken| *spoken >= Version::V5)
}

impl System {
    /// The system of a script, of which the host follows the first `acts` acts.
    ///
    /// # Errors
    /// If the host refuses a step of the set-up.
    pub(super) fn new(script: Script, acts: usize) -> Result<Self, String> {
        let Script { mut plan, acts: mut all, rings, mtu, final_as_is } = script;
        all.truncate(acts);
        let now = Instant::ZERO;
        // The ports and the host's key differ from seed to seed, and with them the queues that flows take.
        let ports = u16::from_be_bytes([plan.key[0], plan.key[1]]);
        let lanes = plan.nics.iter().enumerate().map(|(nic, planned)| Lane {
            out: Flows::new(nic, Way::Out, [peer_mac(nic), planned.nic.mac], ports),
            back: Flows::new(nic, Way::In, [planned.nic.mac, peer_mac(nic)], ports),
            group: Flows::new(nic, Way::Group, [MacAddress::BROADCAST, peer_mac(nic)], ports),
            ready: false,
            spoilt: false,
            mac: planned.nic.mac,
            mtu: 0,
            narrowed: false,
            knows_vfs: knows_vfs(planned),
            sees_vfs: planned.vf.offer_first || knows_vfs(planned),
            answers: planned.nic.policy.switch_script.iter().copied().collect(),
            told_lies: false,
            resent_before: 0,
            resent: 0,
            away: false,
            turns: 0,
        });
        let lanes = lanes.collect();
        let random = Xoshiro256PlusPlus::seed_from_u64(plan.random.next_u64());
        let shared = plan.shared;
        let stage = Stage::new(plan, now, |nic, plan| Quiet::quiet(plan.nics[nic].vf.serial));
        let first = all.first().map_or(Duration::ZERO, |act| act.after);
        Ok(Self {
            stage: stage.map_err(|error| error.to_string())?,
            acts: all,
            shared,
            lanes,
            random,
            now,
            tick: now,
            phase: Phase::Acting { next: 0, due: now + first },
            in_use: None,
            final_as_is,
            unseen: None,
            nap: Nap::None,
            done: 0,
            fired: BTreeMap::new(),
            strangers: Vec::new(),
            strangers_made: 0,
            starved: 0,
            nonsense: 0,
            rings,
            mtu,
            steps: 0,
            trace: 0xcbf2_9ce4_8422_2325,
            buffer: Vec::new(),
            recorder: None,
            waiting: Tally::default(),
        })
    }

    /// Has a picture drawn of all that happens from now on.
    pub(super) fn record(&mut self) {
        self.recorder = Some(self.stage.recorder());
    }

    /// What was recorded.
    pub(super) fn recorded(&mut self) -> Option<Recorder> {
        self.recorder.take()
    }

    /// Runs to the end; `tell` hears of every event.
    ///
    /// # Errors
    /// What was wrong first.
    pub(super) fn run(&mut self, tell: &mut dyn FnMut(&Event)) -> Result<(), String> {
        self.equip();
        let started = self.stage.world.guest.start(self.now);
        started.map_err(|error| error.to_string())?;
        loop {
            self.steps += 1;
            self.settle(tell)?;
            self.stage.count_into(self.recorder.as_mut(), self.now);
            self.check_step()?;
            if self.phase == Phase::Over {
                return self.check_end();
            }
            if self.go_on()? {
                continue;
            }
            let next = self.deadline().ok_or_else(|| {
                format!("nothing happens any more, and nobody waits; {}", self.standing())
            })?;
            self.now = next.max(self.now + Duration::from_micros(1));
        }
    }

    fn deadline(&self) -> Option<Instant> {
        let mut at = self.stage.deadline(self.now);
        if let Nap::Until(end) = self.nap {
            at = earliest(at, Some(end));
        }
        match self.phase {
            Phase::Acting { due, .. } => earliest(at, earliest(Some(due), Some(self.tick))),
            Phase::Behaving { since, .. } => earliest(at, Some(since + LIVENESS)),
            Phase::Over => at,
        }
    }

    /// Does all that can be done at this moment.
    fn settle(&mut self, tell: &mut dyn FnMut(&Event)) -> Result<(), String> {
        for _ in 0..ROUNDS {
            let now = self.now;
            self.note_turns();
            let Self { lanes, buffer, stage, nap, .. } = self;
            let mut wrong = Ok(());
            stage.world.settle(now, &mut |nic, fill| {
                buffer.clear();
                fill(buffer);
                if let (Some(lane), true) = (lanes.get_mut(nic), wrong.is_ok()) {
                    let to_all = Flows::is_to_all(buffer);
                    wrong = if to_all { &mut lane.group } else { &mut lane.back }.arrived(buffer);
                }
            });
            wrong?;
            let ready = |nic: usize| {
                // One that gets ready while the guest goes to sleep stops at once.
                if let (Some(lane), Nap::None | Nap::Until(_)) = (lanes.get_mut(nic), *nap) {
                    lane.ready = true;
                }
                Ok(())
            };
            let mut moved = stage.handle_events(now, ready).map_err(|error| error.to_string())?;
            self.take_events(tell)?;
            for nic in 0..self.lanes.len() {
                moved |= self.carry(nic)?;
            }
            if !moved {
                return Ok(());
            }
        }
        Err(format!("{ROUNDS} rounds at one moment, and no rest; {}", self.standing()))
    }

    fn take_events(&mut self, tell: &mut dyn FnMut(&Event)) -> Result<(), String> {
        while let Some(event) = self.stage.events.pop_front() {
            for byte in event.to_string().bytes() {
                self.trace = (self.trace ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3);
            }
            tell(&event);
            if let Some(recorder) = &mut self.recorder {
                recorder.event(&event);
            }
            match event.what {
                What::NicReady { nic, mtu, .. } => {
                    self.lanes.get_mut(nic).into_iter().for_each(|lane| lane.set_mtu(mtu));
                }
                What::NicGone { nic, .. } => {
                    self.lanes.get_mut(nic).into_iter().for_each(Lane::carrier_gone);
                }
                What::Resumed { nic, .. } => {
                    self.waiting.add(self.lanes.get(nic).map_or(0, |lane| lane.out.waiting()));
                }
                _ => {}
            }
            self.check_answered(&event.what)?;
            if let What::Failed { what } = event.what {
                if self.starved < self.stage.world.starved() {
                    self.starved += 1;
                    continue;
                }
                if self.nonsense > 0 && what.starts_with("message of the host: ") {
                    self.nonsense -= 1;
                    continue;
                }
                return Err(format!("something failed: {what}"));
            }
        }
        Ok(())
    }

    /// What the run itself does at this moment; `true` if there may be more to do at once.
    fn go_on(&mut self) -> Result<bool, String> {
        if self.nap_goes_on() {
            return Ok(true);
        }
        match self.phase {
            Phase::Acting { next, due } => {
                if self.now >= self.tick {
                    self.feed();
                }
                if self.now < due {
                    return Ok(false);
                }
                if let Some(act) = self.acts.get(next).copied() {
                    self.act(act)?;
                    self.unseen.take().map_or(Ok(()), Err)?;
                    let after = self.acts.get(next + 1).map_or(Duration::ZERO, |act| act.after);
                    self.phase = Phase::Acting { next: next + 1, due: self.now + after };
                    // A burst meets what happens at the same moment before anybody has had a turn.
                    if matches!(act.deed, Deed::Burst(_)) && after.is_zero() {
                        return self.go_on();
                    }
                } else if self.final_as_is {
                    self.phase = Phase::Behaving { since: self.now, burst: true };
                } else {
                    self.behave();
                }
                self.check_memory()?;
                // A stranger, or what a guest still has of one, is not there in the end.
                if self.in_use.is_none() && self.strangers_made == 0 && self.is_complete() {
                    self.in_use = Some(self.in_use());
                }
                Ok(true)
            }
            Phase::Behaving { since, burst } => self.come_to_rest(since, burst),
            Phase::Over => Ok(false),
        }
    }

    /// Figures, whatever the end.
    pub(super) fn figures(&self) -> Figures {
        let (account, _) = self.stage.totals(self.now);
        Figures {
            nics: self.lanes.len(),
            acts: self.done,
            fired: self.fired(),
            steps: self.steps,
            frames_out: self.lanes.iter().map(|lane| lane.out.sent()).sum(),
            frames_in: self.lanes.iter().map(|lane| lane.back.sent() + lane.group.sent()).sum(),
            frames_resent: account.frames_resent,
            frames_twice: self.lanes.iter().map(|lane| lane.out.duplicates()).sum(),
            switches: account.switches_to_vf + account.switches_to_synthetic,
            blackouts: account.blackouts,
            waiting: self.waiting.clone(),
            virtual_micros: self.now.as_nanos() / 1000,
            trace: self.trace,
        }
    }
}

//! The default run: TCP transfers over the embedded host on a stepped clock, while VFs come and go.

use std::time::Duration;

use hyperv_host::host::VfPlace;
use hyperv_host::switch::Offered;
use netvsc::{MacAddress, PathOffloads};
use smoltcp::wire::Ipv4Address;
use vmbus::Instant;
use vmbus::time::earliest;

use super::account::{Account, Facts};
use super::plan::Plan;
use super::stage::Stage;
use crate::capture::Capture;
use crate::error::Error;
use crate::event::{Summary, What};
use crate::guest::Sending;
use crate::report::{NicView, Report};
use crate::scenario::Script;
use crate::timeline::Recorder;
use crate::transfer::{Endpoint, Source, Transfer};

/// A run that has not ended by then stands still, or something is very slow.
const LONGEST: Duration = Duration::from_secs(3600);
/// How long everything may take to come to rest after the last step.
const REST: Duration = Duration::from_secs(30);
/// Virtual time between two looks of the live view.
const VIEW: Duration = Duration::from_millis(20);

/// The traffic of one NIC.
#[derive(Debug)]
struct Lane {
    local: Endpoint,
    peer: Endpoint,
    /// Starts when the NIC is ready.
    transfer: Option<Transfer>,
    source: Option<Source>,
    /// Whether the guest sends. Otherwise its peer does.
    upload: bool,
    told: bool,
}

/// A run in progress.
#[derive(Debug)]
pub struct Simulation {
    stage: Stage,
    lanes: Vec<Lane>,
    now: Instant,
    next_view: Instant,
    recorder: Option<Recorder>,
}

fn address(nic: usize, host: u8) -> Ipv4Address {
    Ipv4Address::new(10, 0, nic as u8, host)
}

/// MAC of the peer behind the port of NIC number `nic`.
fn peer_mac(nic: usize) -> MacAddress {
    MacAddress([0x02, 0, 0, 0, 1, nic as u8])
}

impl Simulation {
    /// Sets up host, guest and traffic. `sources` holds what is sent over each NIC of the plan.
    ///
    /// # Errors
    /// If the host refuses a step of the set-up.
    pub fn new(plan: Plan, sources: Vec<Source>) -> Result<Self, Error> {
        let now = Instant::ZERO;
        let lanes = plan.nics.iter().zip(sources).enumerate().map(|(number, (nic, source))| {
            let seed = nic.data_seed;
            Lane {
                local: Endpoint::new(nic.nic.mac, address(number, 1), seed, now),
                peer: Endpoint::new(peer_mac(number), address(number, 2), seed ^ 1, now),
                transfer: None,
                source: Some(source),
                upload: number.is_multiple_of(2),
                told: false,
            }
        });
        let lanes = lanes.collect();
        let stage = Stage::new(plan, now, |nic, plan| {
            let script = Script::default_run(nic, plan.nics[nic].vf.serial, &mut plan.random);
            // What happens to a shared function happens to all NICs at once.
            if plan.shared && nic > 0 { Script::quiet(script.serial()) } else { script }
        })?;
        Ok(Self { stage, lanes, now, next_view: now, recorder: None })
    }

    /// Has every frame written to a file.
    pub fn capture_into(&mut self, capture: Capture) {
        self.stage.world.guest.capture_into(capture);
    }

    /// Has a picture drawn of all that happens from now on.
    pub(crate) fn record(&mut self) {
        self.recorder = Some(self.stage.recorder());
    }

    /// What was recorded.
    pub(crate) fn recorded(&mut self) -> Option<Recorder> {
        self.recorder.take()
    }

    /// Adds an event of the caller's to the stream.
    pub fn tell(&mut self, what: What) {
        self.stage.tell(self.now, what);
    }

    /// Runs until every transfer is complete, every script at its end, and everything at rest.
    ///
    /// # Errors
    /// If the run stands still, the traffic breaks, or the report cannot be written.
    pub fn run(&mut self, report: &mut Report) -> Result<Outcome, Error> {
        self.stage.world.guest.start(self.now)?;
        let mut rest_by = None;
        loop {
            self.settle()?;
            for event in self.stage.events.drain(..) {
                if let Some(recorder) = &mut self.recorder {
                    recorder.event(&event);
                }
                report.event(&event)?;
            }
            self.stage.count_into(self.recorder.as_mut(), self.now);
            if report.is_live() && self.now >= self.next_view {
                report.nics(&self.views());
                self.next_view = self.now + VIEW;
            }
            if self.finished() {
                if self.at_rest() {
                    report.nics(&self.views());
                    return Ok(self.outcome());
                }
                let by = *rest_by.get_or_insert(self.now + REST);
                if self.now > by {
                    return Ok(self.outcome());
                }
            }
            let next = self.deadline().ok_or_else(|| {
                Error::Run(format!(
                    "nothing happens any more at {} s; {}",
                    self.now,
                    self.standing()
                ))
            })?;
            self.now = next;
            if self.now.since(Instant::ZERO) > LONGEST {
                let standing = self.standing();
                return Err(Error::Run(format!("not at its end after {LONGEST:?}; {standing}")));
            }
        }
    }

    /// Does all that can be done at this moment.
    fn settle(&mut self) -> Result<(), Error> {
        loop {
            let now = self.now;
            let lanes = &mut self.lanes;
            self.stage.world.settle(now, &mut |nic, fill| {
                if let Some(lane) = lanes.get_mut(nic) {
                    lane.local.push(|buffer| _ = fill(buffer));
                }
            });
            let mut ready = Vec::new();
            let mut moved = self.stage.handle_events(now, |nic| {
                ready.push(nic);
                Ok(())
            })?;
            for nic in ready {
                let offloads = self.stage.world.guest.offloads(nic);
                if let Some(lane) = lanes.get_mut(nic) {
                    lane.start(nic, offloads, now)?;
                }
            }
            moved |= self.stage.follow_scripts(now, |nic| lanes[nic].progress())?;
            for nic in 0..self.lanes.len() {
                moved |= self.carry(nic)?;
            }
            if !moved {
                return Ok(());
            }
        }
    }

    /// Moves the traffic of one NIC as far as it goes.
    fn carry(&mut self, nic: usize) -> Result<bool, Error> {
        let now = self.now;
        let lane = &mut self.lanes[nic];
        let mut moved = lane.step()?;
        lane.local.poll(now);
        lane.peer.poll(now);
        let mut sent = false;
        while let Some(frame) = lane.local.front() {
            let work = lane.local.front_work();
            match self.stage.world.guest.transmit_with(nic, &work.of(&[frame]), now) {
                Sending::Taken => sent = true,
                Sending::Later => break,
            }
            lane.local.pop();
        }
        if sent {
            self.stage.world.guest.flush(nic);
            moved = true;
        }
        while let Some(frame) = lane.peer.front() {
            match self.stage.world.host.peer_transmit(nic, frame, now) {
                Offered::Busy => break,
                Offered::Accepted | Offered::Dropped(_) => lane.peer.pop(),
            }
            moved = true;
        }
        while let Some(frame) = self.stage.world.host.peer_receive(nic, now) {
            lane.peer.push(|buffer| buffer.extend_from_slice(&frame));
            self.stage.world.host.recycle(nic, frame);
            moved = true;
        }
        if let Some(transfer) = lane.transfer.as_ref().filter(|transfer| transfer.done())
            && !std::mem::replace(&mut lane.told, true)
        {
            let what = What::TransferDone {
                nic,
                bytes: transfer.received_bytes(),
                digest: transfer.digest(),
                digest_ok: transfer.digest_ok(),
            };
            self.tell(what);
            moved = true;
        }
        Ok(moved)
    }

    fn deadline(&mut self) -> Option<Instant> {
        let now = self.now;
        let mut at = self.stage.deadline(now);
        for lane in &mut self.lanes {
            at = earliest(at, earliest(lane.local.deadline(now), lane.peer.deadline(now)));
        }
        // What is due already was done as far as it goes; the smallest step keeps time moving.
        at.map(|at| at.max(now + Duration::from_micros(1)))
    }

    fn finished(&self) -> bool {
        let transferred = |lane: &Lane| lane.transfer.as_ref().is_some_and(Transfer::done);
        self.lanes.iter().all(transferred) && self.stage.scripts_finished()
    }

    /// Whether every VF is in use again and no frame is on its way.
    fn at_rest(&self) -> bool {
        let host = &self.stage.world.host;
        (0..self.lanes.len())
            .all(|nic| self.stage.is_quiet(nic) && host.vf_place(nic) == VfPlace::InUse)
    }

    /// How the NICs stand, for messages.
    fn standing(&self) -> String {
        let nics = self.views();
        let words = nics.iter().enumerate().map(|(number, nic)| {
            let (done, total) = nic.progress.unwrap_or_default();
            format!(
                "nic{number} is {} on the {} path with {done} of {total} bytes",
                nic.state, nic.path
            )
        });
        words.collect::<Vec<_>>().join(", ")
    }

    fn views(&self) -> Vec<NicView> {
        let mut views = self.stage.views();
        for (view, lane) in views.iter_mut().zip(&self.lanes) {
            let transfer = lane.transfer.as_ref();
            view.progress =
                transfer.map(|transfer| (transfer.received_bytes(), transfer.total_bytes()));
        }
        views
    }

    fn outcome(&self) -> Outcome {
        let (account, mut facts) = self.stage.totals(self.now);
        let transfers = self.lanes.iter().filter_map(|lane| lane.transfer.as_ref());
        facts.bytes = transfers.map(Transfer::received_bytes).sum();
        let good = |lane: &Lane| lane.transfer.as_ref().is_some_and(Transfer::digest_ok);
        facts.digest_ok = Some(self.lanes.iter().all(good));
        let host = &self.stage.world.host;
        let serials_ok = facts
            .pairs
            .iter()
            .all(|pair| host.vf_serial(pair.nic).is_some_and(|serial| serial.0 == pair.serial));
        Outcome { account, at_rest: self.at_rest(), serials_ok, facts }
    }
}

impl Lane {
    /// The NIC is ready: the transfer begins, unless it has begun before.
    fn start(&mut self, nic: usize, offloads: PathOffloads, now: Instant) -> Result<(), Error> {
        let Some(source) = self.source.take() else { return Ok(()) };
        self.local.leave(offloads, now);
        let transfer = if self.upload {
            Transfer::start(source, &mut self.local, &mut self.peer, address(nic, 2))
        } else {
            Transfer::start(source, &mut self.peer, &mut self.local, address(nic, 1))
        };
        self.transfer = Some(transfer?);
        Ok(())
    }

    fn step(&mut self) -> Result<bool, Error> {
        let Some(transfer) = &mut self.transfer else { return Ok(false) };
        if self.upload {
            transfer.step(&mut self.local, &mut self.peer)
        } else {
            transfer.step(&mut self.peer, &mut self.local)
        }
    }

    /// In thousandths.
    fn progress(&self) -> u32 {
        let Some(transfer) = &self.transfer else { return 0 };
        let thousandths = u128::from(transfer.received_bytes()) * 1000
            / u128::from(transfer.total_bytes().max(1));
        u32::try_from(thousandths).unwrap_or(1000)
    }
}

/// How a run ended.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// The account of frames.
    pub account: Account,
    /// What else the summary says.
    pub facts: Facts,
    /// Whether all VFs were in use and no frame on its way.
    pub at_rest: bool,
    /// Whether each pair's serial is the one that the host gave both sides.
    pub serials_ok: bool,
}

impl Outcome {
    /// The totals.
    #[must_use]
    pub fn summary(&self, wall: Duration) -> Summary {
        self.account.summary(self.facts.clone(), wall)
    }

    /// Whether the run was good.
    ///
    /// # Errors
    /// Everything that was not, in words.
    pub fn verdict(&self) -> Result<(), String> {
        let mut faults = Vec::new();
        if self.facts.digest_ok == Some(false) {
            faults.push("a digest differs from what was sent".to_owned());
        }
        let lost = self.account.lost();
        if lost > 0 {
            faults.push(format!("{lost} frames were lost by orderly switches"));
        }
        if !self.serials_ok {
            faults.push("a pair's serial is not the one that the host gave its NIC".to_owned());
        }
        if self.facts.pairs.len() != self.facts.nics {
            faults.push(format!(
                "{} of {} NICs are paired",
                self.facts.pairs.len(),
                self.facts.nics
            ));
        }
        if !self.at_rest {
            faults.push("not every NIC came back to its VF".to_owned());
        }
        if faults.is_empty() { Ok(()) } else { Err(faults.join("; ")) }
    }
}

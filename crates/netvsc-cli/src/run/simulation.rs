//! The default run: TCP transfers over the embedded host on a stepped clock, while VFs come and go.

use std::time::Duration;

use hyperv_host::host::VfPlace;
use hyperv_host::switch::Offered;
use netvsc::{MacAddress, PathOffloads};
use smoltcp::wire::Ipv4Address;
use vmbus::Instant;
use vmbus::time::earliest;

use super::account::{Account, Facts};
use super::plan::{NicPlan, Plan};
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

/// One flow of a NIC's traffic.
#[derive(Debug)]
struct Lane {
    /// Its number among those of its NIC.
    flow: usize,
    local: Endpoint,
    peer: Endpoint,
    /// Starts when the NIC is ready.
    transfer: Option<Transfer>,
    source: Option<Source>,
    /// Address of the end that receives.
    to: Ipv4Address,
    /// Whether the guest sends. Otherwise its peer does.
    upload: bool,
    told: bool,
}

/// A run in progress.
#[derive(Debug)]
pub struct Simulation {
    stage: Stage,
    /// By NIC.
    lanes: Vec<Vec<Lane>>,
    /// A received frame whose flow is being looked for.
    frame: Vec<u8>,
    now: Instant,
    next_view: Instant,
    recorder: Option<Recorder>,
}

/// Address of the guest's end of a flow.
fn near(nic: usize, flow: usize) -> Ipv4Address {
    Ipv4Address::new(10, 0, nic as u8, 1 + 2 * flow as u8)
}

/// Address of the other end.
fn far(nic: usize, flow: usize) -> Ipv4Address {
    Ipv4Address::new(10, 0, nic as u8, 2 + 2 * flow as u8)
}

/// The flow that a frame of IPv4 or ARP is for, by the address it goes to; `None` for frames that are for all.
fn flow_of(frame: &[u8]) -> Option<usize> {
    let to = match frame.get(12..14)? {
        [0x08, 0x00] => frame.get(33)?,
        [0x08, 0x06] => frame.get(41)?,
        _ => return None,
    };
    usize::from(*to).checked_sub(1).map(|host| host / 2)
}

/// MAC of the peer behind the port of NIC number `nic`.
fn peer_mac(nic: usize) -> MacAddress {
    MacAddress([0x02, 0, 0, 0, 1, nic as u8])
}

impl Simulation {
    /// Sets up host, guest and traffic. `sources` holds what each flow of each NIC of the plan sends, NIC by NIC.
    ///
    /// # Errors
    /// If the host refuses a step of the set-up.
    pub fn new(plan: Plan, sources: Vec<Source>) -> Result<Self, Error> {
        let now = Instant::ZERO;
        let mut sources = sources.into_iter();
        let flows = usize::from(plan.queues);
        let lanes = plan.nics.iter().enumerate().map(|(number, nic)| {
            let lane = |(flow, source)| Lane::new(number, flow, nic, source, now);
            sources.by_ref().take(flows).enumerate().map(lane).collect()
        });
        let lanes = lanes.collect();
        let stage = Stage::new(plan, now, |nic, plan| {
            let script = Script::default_run(nic, plan.nics[nic].vf.serial, &mut plan.random);
            // What happens to a shared function happens to all NICs at once.
            if plan.shared && nic > 0 { Script::quiet(script.serial()) } else { script }
        })?;
        Ok(Self { stage, lanes, frame: Vec::new(), now, next_view: now, recorder: None })
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
            let Self { lanes, frame, .. } = self;
            self.stage.world.settle(now, &mut |nic, fill| match lanes.get_mut(nic) {
                Some(lanes) if lanes.len() > 1 => {
                    frame.clear();
                    _ = fill(frame);
                    for lane in for_flow(lanes, frame) {
                        lane.local.push(|buffer| buffer.extend_from_slice(frame));
                    }
                }
                lanes => {
                    if let Some(lane) = lanes.and_then(|lanes| lanes.first_mut()) {
                        lane.local.push(|buffer| _ = fill(buffer));
                    }
                }
            });
            let mut ready = Vec::new();
            let mut moved = self.stage.handle_events(now, |nic| {
                ready.push(nic);
                Ok(())
            })?;
            for nic in ready {
                let offloads = self.stage.world.guest.offloads(nic);
                for lane in self.lanes.get_mut(nic).into_iter().flatten() {
                    lane.start(offloads, now)?;
                }
            }
            let lanes = &self.lanes;
            let progress = |nic: usize| lanes.get(nic).map_or(0, |lanes| thousandths(lanes));
            moved |= self.stage.follow_scripts(now, progress)?;
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
        let world = &mut self.stage.world;
        let Some(lanes) = self.lanes.get_mut(nic) else { return Ok(false) };
        let mut moved = false;
        let mut sent = false;
        for lane in lanes.iter_mut() {
            moved |= lane.step()?;
            lane.local.poll(now);
            lane.peer.poll(now);
            while let Some(frame) = lane.local.front() {
                let work = lane.local.front_work();
                match world.guest.transmit_with(nic, &work.of(&[frame]), now) {
                    Sending::Taken => sent = true,
                    Sending::Later => break,
                }
                lane.local.pop();
            }
        }
        if sent {
            world.guest.flush(nic);
            moved = true;
        }
        for lane in lanes.iter_mut() {
            while let Some(frame) = lane.peer.front() {
                match world.host.peer_transmit(nic, frame, now) {
                    Offered::Busy => break,
                    Offered::Accepted | Offered::Dropped(_) => lane.peer.pop(),
                }
                moved = true;
            }
        }
        while let Some(frame) = world.host.peer_receive(nic, now) {
            for lane in for_flow(lanes, &frame) {
                lane.peer.push(|buffer| buffer.extend_from_slice(&frame));
            }
            world.host.recycle(nic, frame);
            moved = true;
        }
        Ok(self.tell_done(nic) || moved)
    }

    /// Tells which transfers of a NIC are complete. True if there are some that were not told of.
    fn tell_done(&mut self, nic: usize) -> bool {
        let mut done = Vec::new();
        let lanes = self.lanes.get_mut(nic).into_iter().flatten();
        let several = self.stage.queues() > 1;
        for lane in lanes {
            if let Some(transfer) = lane.transfer.as_ref().filter(|transfer| transfer.done())
                && !std::mem::replace(&mut lane.told, true)
            {
                done.push(What::TransferDone {
                    nic,
                    flow: several.then_some(lane.flow),
                    bytes: transfer.received_bytes(),
                    digest: transfer.digest(),
                    digest_ok: transfer.digest_ok(),
                });
            }
        }
        let any = !done.is_empty();
        done.into_iter().for_each(|what| self.tell(what));
        any
    }

    fn deadline(&mut self) -> Option<Instant> {
        let now = self.now;
        let mut at = self.stage.deadline(now);
        for lane in self.lanes.iter_mut().flatten() {
            at = earliest(at, earliest(lane.local.deadline(now), lane.peer.deadline(now)));
        }
        // What is due already was done as far as it goes; the smallest step keeps time moving.
        at.map(|at| at.max(now + Duration::from_micros(1)))
    }

    fn finished(&self) -> bool {
        let transferred = |lane: &Lane| lane.transfer.as_ref().is_some_and(Transfer::done);
        self.lanes.iter().flatten().all(transferred) && self.stage.scripts_finished()
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
        for (view, lanes) in views.iter_mut().zip(&self.lanes) {
            view.progress = progress(lanes);
        }
        views
    }

    fn outcome(&self) -> Outcome {
        let (account, mut facts) = self.stage.totals(self.now);
        let lanes = || self.lanes.iter().flatten();
        let transfers = lanes().filter_map(|lane| lane.transfer.as_ref());
        facts.bytes = transfers.map(Transfer::received_bytes).sum();
        let good = |lane: &Lane| lane.transfer.as_ref().is_some_and(Transfer::digest_ok);
        facts.digest_ok = Some(lanes().all(good));
        let host = &self.stage.world.host;
        let serials_ok = facts
            .pairs
            .iter()
            .all(|pair| host.vf_serial(pair.nic).is_some_and(|serial| serial.0 == pair.serial));
        Outcome { account, at_rest: self.at_rest(), serials_ok, facts }
    }
}

/// The flows that a frame is for.
fn for_flow<'a>(lanes: &'a mut [Lane], frame: &[u8]) -> impl Iterator<Item = &'a mut Lane> {
    let flow = flow_of(frame).filter(|_| lanes.len() > 1);
    lanes.iter_mut().filter(move |lane| flow.is_none_or(|flow| lane.flow == flow))
}

/// Bytes that a NIC's transfers have carried and will carry in all, once they have begun.
fn progress(lanes: &[Lane]) -> Option<(u64, u64)> {
    let begun = lanes.iter().filter_map(|lane| lane.transfer.as_ref());
    begun.fold(None, |sum, transfer| {
        let (done, total) = sum.unwrap_or((0, 0));
        Some((done + transfer.received_bytes(), total + transfer.total_bytes()))
    })
}

/// The same in thousandths.
fn thousandths(lanes: &[Lane]) -> u32 {
    let (done, total) = progress(lanes).unwrap_or((0, 1));
    let thousandths = u128::from(done) * 1000 / u128::from(total.max(1));
    u32::try_from(thousandths).unwrap_or(1000)
}

impl Lane {
    fn new(nic: usize, flow: usize, plan: &NicPlan, source: Source, now: Instant) -> Self {
        let seed = plan.data_seed ^ (flow as u64) << 32;
        // Even ones send, odd ones receive; so both directions of each NIC are used if it has several.
        let upload = (nic + flow).is_multiple_of(2);
        Self {
            flow,
            local: Endpoint::new(plan.nic.mac, near(nic, flow), seed, now),
            peer: Endpoint::new(peer_mac(nic), far(nic, flow), seed ^ 1, now),
            transfer: None,
            source: Some(source),
            to: if upload { far(nic, flow) } else { near(nic, flow) },
            upload,
            told: false,
        }
    }

    /// The NIC is ready: the transfer begins, unless it has begun before.
    fn start(&mut self, offloads: PathOffloads, now: Instant) -> Result<(), Error> {
        let Some(source) = self.source.take() else { return Ok(()) };
        self.local.leave(offloads, now);
        let transfer = if self.upload {
            Transfer::start(source, &mut self.local, &mut self.peer, self.to)
        } else {
            Transfer::start(source, &mut self.peer, &mut self.local, self.to)
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

//! One system from one seed: guest, host, traffic, and the checks of every step.

use std::time::Duration;

use hyperv_host::host::{Disassociation, VfPlace};
use hyperv_host::nic::SwitchAnswer;
use hyperv_host::switch::Offered;
use netvsc::{MacAddress, Path};
use rand_core::{Rng, SeedableRng};
use rand_xoshiro::Xoshiro256PlusPlus;
use vmbus::time::earliest;
use vmbus::{Instant, Serial};

use super::outcome::Figures;
use super::script::{Act, Deed, Script};
use super::traffic::{Flow, Way};
use crate::event::{Event, What};
use crate::guest::Sending;
use crate::run::stage::Stage;
use crate::scenario::Script as Quiet;

/// How often everything may be polled at one moment before that counts as never coming to rest.
const ROUNDS: usize = 10_000;
/// How long after the host's last act every NIC may take to be on its VF.
const LIVENESS: Duration = Duration::from_secs(180);
/// Frames of one NIC that may be on the switch at once, by far.
const QUEUED: u64 = 50_000;
/// Frames in each direction at the end, over the VFs.
const LAST_BURST: u64 = 8;
/// How far the serials of the end are from all others.
const LAST_SERIALS: u32 = 1 << 20;

/// One NIC's traffic.
#[derive(Debug)]
struct Lane {
    out: Flow,
    back: Flow,
    ready: bool,
    /// The VF was taken and given once more in the end.
    renewed: bool,
    given: bool,
}

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

/// One system.
#[derive(Debug)]
pub(super) struct System {
    stage: Stage,
    acts: Vec<Act>,
    lies: bool,
    shared: bool,
    lanes: Vec<Lane>,
    random: Xoshiro256PlusPlus,
    now: Instant,
    tick: Instant,
    phase: Phase,
    /// Pages shared when every NIC was on its VF for the first time.
    pages: Option<usize>,
    done: usize,
    steps: u64,
    trace: u64,
    buffer: Vec<u8>,
}

fn peer_mac(nic: usize) -> MacAddress {
    MacAddress([0x02, 0, 0, 0, 1, nic as u8])
}

impl System {
    /// The system of a script, of which the host follows the first `acts` acts.
    ///
    /// # Errors
    /// If the host refuses a step of the set-up.
    pub(super) fn new(script: Script, acts: usize) -> Result<Self, String> {
        let Script { mut plan, acts: mut all, lies } = script;
        all.truncate(acts);
        let now = Instant::ZERO;
        let lanes = plan.nics.iter().enumerate().map(|(nic, planned)| Lane {
            out: Flow::new(nic, Way::Out, peer_mac(nic), planned.nic.mac),
            back: Flow::new(nic, Way::In, planned.nic.mac, peer_mac(nic)),
            ready: false,
            renewed: false,
            given: false,
        });
        let lanes = lanes.collect();
        let random = Xoshiro256PlusPlus::seed_from_u64(plan.random.next_u64());
        let shared = plan.shared;
        let stage = Stage::new(plan, now, |nic, plan| Quiet::quiet(plan.nics[nic].vf.serial));
        let first = all.first().map_or(Duration::ZERO, |act| act.after);
        Ok(Self {
            stage: stage.map_err(|error| error.to_string())?,
            acts: all,
            lies,
            shared,
            lanes,
            random,
            now,
            tick: now,
            phase: Phase::Acting { next: 0, due: now + first },
            pages: None,
            done: 0,
            steps: 0,
            trace: 0xcbf2_9ce4_8422_2325,
            buffer: Vec::new(),
        })
    }

    /// Runs to the end; `tell` hears of every event.
    ///
    /// # Errors
    /// What was wrong first.
    pub(super) fn run(&mut self, tell: &mut dyn FnMut(&Event)) -> Result<(), String> {
        let started = self.stage.world.guest.start(self.now);
        started.map_err(|error| error.to_string())?;
        loop {
            self.steps += 1;
            self.settle(tell)?;
            self.check_switch()?;
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
        let at = self.stage.deadline(self.now);
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
            let Self { lanes, buffer, stage, .. } = self;
            let mut wrong = Ok(());
            stage.world.settle(now, &mut |nic, fill| {
                buffer.clear();
                fill(buffer);
                if let (Some(lane), true) = (lanes.get_mut(nic), wrong.is_ok()) {
                    wrong = lane.back.arrived(buffer, false);
                }
            });
            wrong?;
            let ready = |nic: usize| {
                if let Some(lane) = lanes.get_mut(nic) {
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
            if let What::Failed { what } = event.what {
                return Err(format!("something failed: {what}"));
            }
        }
        Ok(())
    }

    /// Moves the traffic of one NIC as far as it goes.
    fn carry(&mut self, nic: usize) -> Result<bool, String> {
        let Self { lanes, stage, random, now, lies, .. } = self;
        let Some(lane) = lanes.get_mut(nic) else { return Ok(false) };
        let (mut moved, mut sent) = (false, false);
        while lane.ready
            && let Some(frame) = lane.out.front(random)
        {
            let before = stage.world.guest.counters(nic).frames_accepted;
            if stage.world.guest.transmit(nic, frame, *now) == Sending::Later {
                break;
            }
            if stage.world.guest.counters(nic).frames_accepted == before {
                return Err(format!("nic{nic} refuses a frame of {} bytes", frame.len()));
            }
            lane.out.taken();
            sent = true;
        }
        if sent {
            stage.world.guest.flush(nic);
            moved = true;
        }
        while lane.ready
            && let Some(frame) = lane.back.front(random)
        {
            match stage.world.host.peer_transmit(nic, frame, *now) {
                Offered::Busy => break,
                Offered::Accepted => {}
                Offered::Dropped(cause) => {
                    return Err(format!("the switch dropped a frame for nic{nic}: {cause}"));
                }
            }
            lane.back.taken();
            moved = true;
        }
        while let Some(frame) = stage.world.host.peer_receive(nic, *now) {
            lane.out.arrived(&frame, !*lies)?;
            stage.world.host.recycle(nic, frame);
            moved = true;
        }
        Ok(moved)
    }

    /// The switch knows where every frame is, and holds no more than it may.
    fn check_switch(&self) -> Result<(), String> {
        for nic in 0..self.lanes.len() {
            let Some(port) = self.stage.world.host.port_counters(nic) else { continue };
            if port.unaccounted() != (0, 0) {
                return Err(format!("nic{nic}: the switch lost count: {:?}", port.unaccounted()));
            }
            if port.in_flight() > QUEUED {
                return Err(format!("nic{nic}: {} frames queue up", port.in_flight()));
            }
        }
        Ok(())
    }

    /// What the run itself does at this moment; `true` if there may be more to do at once.
    fn go_on(&mut self) -> Result<bool, String> {
        match self.phase {
            Phase::Acting { next, due } => {
                if self.now >= self.tick {
                    self.feed();
                }
                if self.now < due {
                    return Ok(false);
                }
                if let Some(act) = self.acts.get(next).copied() {
                    self.act(act);
                    let after = self.acts.get(next + 1).map_or(Duration::ZERO, |act| act.after);
                    self.phase = Phase::Acting { next: next + 1, due: self.now + after };
                } else {
                    self.behave();
                }
                if self.pages.is_none() && self.all_on_vf() {
                    self.pages = Some(self.stage.world.shared_pages());
                }
                Ok(true)
            }
            Phase::Behaving { since, burst } => self.come_to_rest(since, burst),
            Phase::Over => Ok(false),
        }
    }

    /// New frames for everybody.
    fn feed(&mut self) {
        for lane in &mut self.lanes {
            let draw = self.random.next_u64();
            if lane.ready {
                // A few at a time, sometimes a burst; a lane that has not kept up gets no more.
                let most = if draw.is_multiple_of(8) { 128 } else { 6 };
                if lane.out.is_idle() {
                    lane.out.want((draw >> 8) % most);
                }
                if lane.back.is_idle() {
                    lane.back.want((draw >> 32) % most);
                }
            }
        }
        let gap = 200 + self.random.next_u64() % 8_000;
        self.tick = self.now + Duration::from_micros(gap);
    }

    fn act(&mut self, act: Act) {
        let (nic, now) = (if self.shared { 0 } else { act.nic }, self.now);
        let host = &mut self.stage.world.host;
        let done = match act.deed {
            Deed::Eject(then) => host.eject_vf(nic, then, now).is_ok(),
            Deed::TearAway(then) => host.tear_away_vf(nic, then, now).is_ok(),
            Deed::Link(up) => host.set_vf_link(act.nic, up).is_ok(),
            Deed::Notice => match host.nic_mut(act.nic) {
                Some(service) => {
                    service.send_notice(Path::Synthetic);
                    true
                }
                None => false,
            },
            Deed::Give(serial) => {
                host.vf_place(nic) == VfPlace::Absent
                    && self.stage.give_vf(nic, serial, now).is_ok()
            }
            Deed::Rest => true,
        };
        if done {
            self.done += 1;
            self.stage.tell(now, What::HostAction { nic: act.nic, action: act.to_string() });
        }
    }

    /// From here on the host does everything right.
    fn behave(&mut self) {
        for nic in 0..self.lanes.len() {
            if let Some(service) = self.stage.world.host.nic_mut(nic) {
                let policy = service.policy_mut();
                policy.switch_script.clear();
                policy.switch_answer = SwitchAnswer::Complete(Duration::from_millis(1));
            }
            // There may be no VF now; the next one has a link.
            let _ = self.stage.world.host.set_vf_link(nic, true);
        }
        self.phase = Phase::Behaving { since: self.now, burst: false };
    }

    fn come_to_rest(&mut self, since: Instant, burst: bool) -> Result<bool, String> {
        let vfs = if self.shared { 1 } else { self.lanes.len() };
        let mut moved = false;
        for nic in 0..vfs {
            moved |= self.restore(nic)?;
        }
        if moved {
            return Ok(true);
        }
        let idle = |lane: &Lane| lane.out.is_idle() && lane.back.is_idle();
        let quiet = (0..self.lanes.len()).all(|nic| self.stage.is_quiet(nic));
        if quiet && self.lanes.iter().all(idle) && self.all_on_vf() {
            if burst {
                self.phase = Phase::Over;
                return Ok(true);
            }
            for lane in &mut self.lanes {
                lane.out.want(LAST_BURST);
                lane.back.want(LAST_BURST);
            }
            self.phase = Phase::Behaving { since, burst: true };
            return Ok(true);
        }
        if self.now >= since + LIVENESS {
            let standing = self.standing();
            return Err(format!("{LIVENESS:?} after the last act: {standing}"));
        }
        Ok(false)
    }

    /// Sees to it that a NIC has a VF; after lies it gets a new one, since only a change undoes them.
    fn restore(&mut self, nic: usize) -> Result<bool, String> {
        let (lies, now) = (self.lies, self.now);
        let Some(lane) = self.lanes.get_mut(nic) else { return Ok(false) };
        match self.stage.world.host.vf_place(nic) {
            VfPlace::Absent => {
                lane.renewed = true;
                lane.given = true;
                let serial = Serial(LAST_SERIALS + nic as u32);
                self.stage.give_vf(nic, serial, now).map_err(|error| error.to_string())?;
                Ok(true)
            }
            VfPlace::Offered | VfPlace::InUse if lies && !lane.renewed => {
                lane.renewed = true;
                let ejected = self.stage.world.host.eject_vf(nic, Disassociation::First, now);
                ejected.map_err(|error| error.to_string())?;
                Ok(true)
            }
            _ => Ok(false),
        }
    }

    fn all_on_vf(&self) -> bool {
        (0..self.lanes.len()).all(|nic| {
            self.stage.world.host.vf_place(nic) == VfPlace::InUse
                && self.stage.world.guest.view(nic).state == "accelerated"
        })
    }

    fn standing(&self) -> String {
        let nics = self.stage.views().into_iter().enumerate().map(|(nic, view)| {
            let host = &self.stage.world.host;
            let (place, path) = (host.vf_place(nic), host.data_path(nic));
            format!(
                "nic{nic} is {} ({}), its VF {place:?}, host on {path:?}",
                view.state, view.pair
            )
        });
        nics.collect::<Vec<_>>().join("; ")
    }

    /// What has to be so in the end.
    fn check_end(&self) -> Result<(), String> {
        let (host, guest) = (&self.stage.world.host, &self.stage.world.guest);
        for (nic, lane) in self.lanes.iter().enumerate() {
            let lost = lane.out.lacking();
            if lost > 0 && !self.lies {
                return Err(format!("{lost} frames of nic{nic} never arrived"));
            }
            let not_switched = host.port_counters(nic).map_or(0, |port| port.dropped());
            if lost > not_switched {
                return Err(format!(
                    "{lost} frames of nic{nic} are missing, {not_switched} dropped"
                ));
            }
            // A host that lies about the path gives frames to a VF that the guest has left on its word; they go down with it.
            let torn = host.perished(nic).received_surprise;
            if lane.back.lacking() > torn && !self.lies {
                let lost = lane.back.lacking();
                return Err(format!(
                    "{lost} frames for nic{nic} are missing, {torn} were torn away"
                ));
            }
            let (twice, resent) = (lane.out.duplicates(), guest.counters(nic).frames_resent);
            if twice > resent || lane.back.duplicates() > 0 {
                let back = lane.back.duplicates();
                return Err(format!(
                    "nic{nic}: {twice} frames arrived twice, {resent} were sent again; {back} came twice"
                ));
            }
            if host.data_path(nic) != Some(Path::Vf) {
                return Err(format!("host and guest disagree; {}", self.standing()));
            }
        }
        let pairs = guest.pairs();
        let right = |pair: &crate::event::PairLine| {
            host.vf_serial(pair.nic).is_some_and(|serial| serial.0 == pair.serial)
        };
        if pairs.len() != self.lanes.len() || !pairs.iter().all(right) {
            return Err(format!("wrong pairs in the end: {pairs:?}"));
        }
        match (self.pages, self.stage.world.shared_pages()) {
            (Some(before), after) if before != after => {
                Err(format!("{before} pages were shared at first, {after} in the end"))
            }
            _ => Ok(()),
        }
    }

    /// Figures, whatever the end.
    pub(super) fn figures(&self) -> Figures {
        let (account, _) = self.stage.totals(self.now);
        Figures {
            nics: self.lanes.len(),
            acts: self.done,
            steps: self.steps,
            frames_out: self.lanes.iter().map(|lane| lane.out.sent()).sum(),
            frames_in: self.lanes.iter().map(|lane| lane.back.sent()).sum(),
            frames_resent: account.frames_resent,
            frames_twice: self.lanes.iter().map(|lane| lane.out.duplicates()).sum(),
            switches: account.switches_to_vf + account.switches_to_synthetic,
            blackouts: account.blackouts,
            virtual_micros: self.now.as_nanos() / 1000,
            trace: self.trace,
        }
    }
}

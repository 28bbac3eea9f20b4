//! What every run has: a world set up by a plan, scripts that the host follows, and the stream of events.

use std::collections::VecDeque;

use hyperv_host::host::{Departure, HostEvent, VfSpec};
use netvsc::MacAddress;
use vmbus::{Instant, Serial};

use super::account::{Account, Facts};
use super::counters::NicLine;
use super::plan::Plan;
use crate::embedded::World;
use crate::error::Error;
use crate::event::{Event, What};
use crate::report::NicView;
use crate::scenario::{Order, Removal, Script};
use crate::timeline::Recorder;

/// World, scripts and events.
#[derive(Debug)]
pub(crate) struct Stage {
    pub(crate) world: World,
    pub(crate) events: VecDeque<Event>,
    plan: Plan,
    scripts: Vec<Script>,
    ejects: u64,
    surprises: u64,
    /// What guests counted that had the machine before the one that has it now.
    former: Account,
}

impl Stage {
    /// Sets up host and guest by the plan; `script` says what happens to the VF of each NIC.
    pub(crate) fn new(
        mut plan: Plan,
        now: Instant,
        mut script: impl FnMut(usize, &mut Plan) -> Script,
    ) -> Result<Self, Error> {
        let seed = rand_core::Rng::next_u64(&mut plan.random);
        let mut world = World::for_nics(plan.nics.len(), plan.bus.clone(), plan.pci.clone(), seed);
        for nic in &plan.nics {
            world.host.add_nic(nic.nic.clone(), now);
        }
        let scripts = (0..plan.nics.len()).map(|nic| script(nic, &mut plan)).collect();
        let events = VecDeque::new();
        let mut stage = Self {
            world,
            events,
            plan,
            scripts,
            ejects: 0,
            surprises: 0,
            former: Account::default(),
        };
        let vfs = if stage.plan.shared { 1 } else { stage.nics() };
        for nic in 0..vfs.min(stage.nics()) {
            stage.add_vf(nic, stage.plan.nics[nic].vf, None, now)?;
        }
        for device in std::mem::take(&mut stage.plan.devices) {
            let added = stage.world.host.add_device(device, now);
            added.map_err(|error| Error::Run(error.to_string()))?;
        }
        stage.prepare_guest();
        Ok(stage)
    }

    /// What a new guest knows from elsewhere.
    fn prepare_guest(&mut self) {
        let guest = &mut self.world.guest;
        guest.number_nics(self.plan.nics.iter().map(|nic| nic.nic.instance));
        guest.see_emulated(self.plan.emulated);
        guest.set_queues(self.plan.queues, self.plan.key);
    }

    /// Another guest takes over the machine and makes contact; with `farewell`, the old one says good-bye to the host before.
    pub(crate) fn restart_guest(&mut self, farewell: bool, now: Instant) -> Result<(), Error> {
        let guest_now = self.world.guest_time(now);
        let mut old = self.world.restart_guest();
        self.former.add_guest(&Account::of_guest(&old));
        // One that has no connection has nothing to say.
        if farewell && old.unload(guest_now).is_ok() {
            while let Some(post) = old.poll_outgoing() {
                self.world.host.handle_message(post.connection, &post.payload, now);
            }
        }
        self.prepare_guest();
        self.world.guest.start(guest_now)
    }

    /// Number of NICs.
    pub(crate) fn nics(&self) -> usize {
        self.plan.nics.len()
    }

    /// Channels that NICs use, and flows of the run over each NIC.
    pub(crate) fn queues(&self) -> usize {
        usize::from(self.plan.queues)
    }

    /// A recorder for this stage.
    pub(crate) fn recorder(&self) -> Recorder {
        Recorder::new(self.plan.nics.iter().map(|nic| nic.vf.instance).collect())
    }

    /// Tells a recorder, if there is one, how many frames every NIC has sent.
    pub(crate) fn count_into(&self, recorder: Option<&mut Recorder>, now: Instant) {
        let Some(recorder) = recorder else { return };
        for nic in 0..self.nics() {
            let counters = self.world.guest.counters(nic);
            recorder.sent(nic, now, counters.frames_vf, counters.frames_synthetic);
        }
    }

    /// Adds an event of the run's own to the stream.
    pub(crate) fn tell(&mut self, at: Instant, what: What) {
        self.events.push_back(Event { at, what });
    }

    fn add_vf(
        &mut self,
        nic: usize,
        spec: VfSpec,
        mac: Option<MacAddress>,
        now: Instant,
    ) -> Result<(), Error> {
        let added = if let Some(mac) = mac {
            self.world.host.add_strange_vf(nic, spec, mac, now)
        } else if self.plan.shared {
            let nics: Vec<usize> = (0..self.nics()).collect();
            self.world.host.add_shared_vf(&nics, spec, now)
        } else {
            self.world.host.add_vf(nic, spec, now)
        };
        added.map_err(|error| Error::Run(error.to_string()))?;
        self.world.map_vf(spec.instance);
        Ok(())
    }

    /// Gives a NIC that has none a VF with this serial, or all of them if they share one; `mac` if it is not the NIC's.
    pub(crate) fn give_vf(
        &mut self,
        nic: usize,
        serial: Serial,
        mac: Option<MacAddress>,
        now: Instant,
    ) -> Result<(), Error> {
        let Some(planned) = self.plan.nics.get_mut(nic) else { return Ok(()) };
        planned.vf.serial = serial;
        let spec = planned.vf;
        self.add_vf(nic, spec, mac, now)
    }

    /// Takes up what host and guest have to say; `ready` hears of each NIC that can carry frames. True if there was anything.
    pub(crate) fn handle_events(
        &mut self,
        now: Instant,
        mut ready: impl FnMut(usize) -> Result<(), Error>,
    ) -> Result<bool, Error> {
        let mut moved = false;
        while let Some(event) = self.world.host.poll_event() {
            moved = true;
            match event {
                // A shared function is gone for all NICs, and counted once.
                HostEvent::VfGone { nic, .. } if self.plan.shared && nic > 0 => {}
                HostEvent::VfGone { nic, departure } => {
                    match departure {
                        Departure::Orderly => self.ejects += 1,
                        Departure::Surprise => self.surprises += 1,
                    }
                    self.world.unmap_vf(self.plan.nics[nic].vf.instance);
                }
                HostEvent::Failed { nic, why } => {
                    let what = format!("the host's service of nic{nic}: {why}");
                    self.tell(now, What::Failed { what });
                }
                HostEvent::DeviceFailed { instance, why } => {
                    let what = format!("the host's service of pci {instance}: {why}");
                    self.tell(now, What::Failed { what });
                }
                HostEvent::DeviceGone { instance, .. } => self.world.unmap_vf(instance),
                HostEvent::NicGone { .. }
                | HostEvent::NicOperational { .. }
                | HostEvent::VfOffered { .. }
                | HostEvent::DataPath { .. } => {}
            }
        }
        while let Some(what) = self.world.guest.poll_event() {
            moved = true;
            if let What::NicReady { nic, .. } = &what {
                ready(*nic)?;
            }
            self.tell(now, what);
        }
        Ok(moved)
    }

    /// Lets the host do what its scripts say; `progress` is that of a NIC's transfer, in thousandths. True if it did anything.
    pub(crate) fn follow_scripts(
        &mut self,
        now: Instant,
        progress: impl Fn(usize) -> u32,
    ) -> Result<bool, Error> {
        let mut moved = false;
        for nic in 0..self.scripts.len() {
            let place = self.world.host.vf_place(nic);
            let Some(order) = self.scripts[nic].poll(now, progress(nic), place) else { continue };
            moved = true;
            let then = self.plan.nics[nic].disassociation;
            let host = &mut self.world.host;
            let (action, done) = match order {
                Order::Remove(Removal::Eject) => {
                    ("asks for the VF back".into(), host.eject_vf(nic, then, now))
                }
                Order::Remove(Removal::TearAway) => {
                    ("tears the VF away".into(), host.tear_away_vf(nic, then, now))
                }
                Order::Add(serial) => {
                    self.give_vf(nic, serial, None, now)?;
                    (format!("gives a VF with serial {serial}"), Ok(()))
                }
            };
            done.map_err(|error| Error::Run(error.to_string()))?;
            self.tell(now, What::HostAction { nic, action });
        }
        Ok(moved)
    }

    /// Whether every script is at its end.
    pub(crate) fn scripts_finished(&self) -> bool {
        self.scripts.iter().all(Script::finished)
    }

    /// When something happens next although nobody does anything.
    pub(crate) fn deadline(&self, now: Instant) -> Option<Instant> {
        let scripts = crate::scenario::deadline(&self.scripts, now);
        vmbus::time::earliest(self.world.deadline(), scripts)
    }

    /// Whether no frame of a NIC is on its way, in the guest, on the host or between.
    pub(crate) fn is_quiet(&self, nic: usize) -> bool {
        let port = self.world.host.port_counters(nic);
        self.world.guest.is_quiet(nic) && port.is_some_and(|port| port.in_flight() == 0)
    }

    /// How the NICs stand.
    pub(crate) fn views(&self) -> Vec<NicView> {
        (0..self.nics()).map(|nic| self.world.guest.view(nic)).collect()
    }

    /// The account of frames, and what the stage knows of the summary's other facts.
    pub(crate) fn totals(&self, end: Instant) -> (Account, Facts) {
        let facts = Facts {
            nics: self.world.guest.nics(),
            pairs: self.world.guest.pairs(),
            counters: NicLine::all(&self.world.guest),
            ejects: self.ejects,
            surprises: self.surprises,
            end,
            ..Facts::default()
        };
        let mut account = Account::take(&self.world.host, &self.world.guest);
        account.add_guest(&self.former);
        (account, facts)
    }
}

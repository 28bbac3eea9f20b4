//! The kernel's VF beside NICs that user space drives: an interface that is a port of a function on a virtual PCI bus. Whose it is, is
//! for [`Pairing`] to say, from the serial of the function's slot in sysfs, the permanent MAC, and what the host says to the NICs.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use netvsc::MacAddress;
use netvsc::pairing::{
    Decision, FunctionId, NicId, NicRef, Pairing, PairingConfig, Parting, Party, PermanentMac,
    PortId, PortRef, Reason, Refusal,
};
use netvsc_linux::inventory::{Depth, LogEvent, Snapshot, take};
use netvsc_linux::relation::Relations;
use vmbus::time::earliest;
use vmbus::{Guid, Instant, Serial};

use super::nic::UioNic;
use crate::error::Error;
use crate::event::What;
use crate::remote::{Change, KernelLink, VfInterface};

/// What a NIC says that bears on its pair.
#[derive(Clone, Copy, Debug)]
pub(super) enum Fact {
    /// It is at work, with this permanent MAC.
    Arrived(MacAddress),
    /// The host has a VF with this serial for it. It may be said before it is at work.
    Associated(Serial),
    /// The host has none any more.
    Disassociated,
    /// It stops.
    Left,
    /// It has no port any more.
    Released,
}

/// What is known of a NIC.
#[derive(Clone, Copy, Debug)]
struct Known {
    instance: Guid,
    /// Its name in pairing, while it is at work.
    id: Option<NicId>,
    /// What it was associated with before that.
    early: Option<Serial>,
    bound: Option<PortId>,
    /// It is to let go of its port, by these names.
    unbinding: Option<(NicId, PortId)>,
}

/// The interface, and the rules by which it finds its NIC.
pub(super) struct Vf {
    root: PathBuf,
    link: KernelLink,
    pairing: Pairing,
    nics: Vec<Known>,
    /// The interface as pairing knows it, while it is there.
    port: Option<(FunctionId, PortId)>,
    /// It could not be taken, or is none that could be; it is looked at again once it has gone.
    unfit: bool,
    events: Vec<What>,
}

impl Vf {
    /// Looks for the interface in the tree below `root`, whose kernel is this one; it may come later.
    pub(super) fn new(
        root: &Path,
        interface: &VfInterface,
        nics: &[Guid],
        now: Instant,
    ) -> Result<Self, Error> {
        let wrong = |error| Error::Run(format!("{}: {error}", interface.name));
        let link = KernelLink::new(interface, root).map_err(wrong)?;
        let known = |instance: &Guid| Known {
            instance: *instance,
            id: None,
            early: None,
            bound: None,
            unbinding: None,
        };
        let snapshot = look_around(root)?;
        let isolated = snapshot.log.lines.iter().any(|line| line.event == LogEvent::Isolated);
        let config = PairingConfig { isolated, ..PairingConfig::default() };
        let mut vf = Self {
            root: root.to_owned(),
            link,
            pairing: Pairing::new(config),
            nics: nics.iter().map(known).collect(),
            port: None,
            unfit: false,
            events: Vec::new(),
        };
        vf.find(&snapshot, now);
        Ok(vf)
    }

    /// The interface's name, if this NIC has it.
    pub(super) fn of(&self, nic: usize) -> Option<&str> {
        self.nics.get(nic)?.bound.map(|_| self.link.name())
    }

    /// What to wait for.
    pub(super) fn ears(&self) -> Vec<Arc<OwnedFd>> {
        self.link.ears()
    }

    /// When to poll at the latest.
    pub(super) fn deadline(&self) -> Option<Instant> {
        earliest(self.pairing.poll_deadline(), self.link.deadline())
    }

    pub(super) fn take_events(&mut self) -> Vec<What> {
        let nic = self.nics.iter().position(|nic| nic.bound.is_some());
        let notes = self.link.take_notes();
        self.events.extend(notes.into_iter().map(|why| What::Pairing { nic, why }));
        std::mem::take(&mut self.events)
    }

    /// Does what can be done now. True if anything was done.
    pub(super) fn poll(&mut self, now: Instant, nics: &mut [UioNic]) -> Result<bool, Error> {
        let mut moved = false;
        for change in self.link.look(now) {
            moved = true;
            match change {
                Change::Work => {
                    let bound = self.nics.iter().position(|nic| nic.bound.is_some());
                    if let Some(nic) = bound.and_then(|number| nics.get_mut(number)) {
                        nic.ring();
                    }
                }
                Change::Gone | Change::Left => self.lose(now),
                Change::There if self.unfit => {}
                Change::There => {
                    let snapshot = look_around(&self.root)?;
                    self.find(&snapshot, now);
                }
            }
        }
        for (number, nic) in nics.iter_mut().enumerate() {
            for fact in nic.take_facts() {
                moved = true;
                self.heed(number, fact, now);
            }
        }
        self.pairing.handle_deadline(now);
        while let Some(decision) = self.pairing.poll_decision() {
            moved = true;
            self.carry_out(decision, nics, now);
        }
        Ok(moved)
    }

    /// Looks whether the interface is there, and what it is.
    fn find(&mut self, snapshot: &Snapshot, now: Instant) {
        let relations = Relations::of(snapshot);
        let name = self.link.name();
        if let Some(port) = relations.ports.iter().find(|port| port.link.name == name) {
            // Without a serial there is no slot yet.
            let Some(key) = port.key else { return };
            let function = self.pairing.function_arrived(key, now);
            let mac = port.link.permanent.map_or(PermanentMac::NotYet, PermanentMac::Known);
            // The function was named just now.
            let port = self.pairing.port_arrived(function, port.link.port, mac, now).ok();
            self.port = port.map(|port| (function, port));
            return;
        }
        let other = relations.others.iter().find(|(link, _)| link.name == name);
        if let Some(&(_, Refusal::NotVpci(kind, mac))) = other {
            self.pairing.ignored(kind, mac);
            self.unfit = true;
        } else if snapshot.links.iter().any(|link| link.name == name) {
            let why = format!("{name} is no port of a function on a virtual PCI bus");
            self.events.push(What::Pairing { nic: None, why });
            self.unfit = true;
        }
    }

    /// The interface is gone.
    fn lose(&mut self, now: Instant) {
        self.unfit = false;
        if let Some((function, _)) = self.port.take()
            && let Err(stale) = self.pairing.function_left(function, now)
        {
            tracing::debug!(%stale, "a function that has left");
        }
    }

    fn heed(&mut self, number: usize, fact: Fact, now: Instant) {
        let Some(nic) = self.nics.get_mut(number) else { return };
        let told = match (fact, nic.id) {
            (Fact::Arrived(mac), _) => {
                let pairing = &mut self.pairing;
                nic.id = Some(match nic.early.take() {
                    Some(serial) => pairing.nic_arrived_associated(nic.instance, mac, serial, now),
                    None => pairing.nic_arrived(nic.instance, mac, now),
                });
                Ok(())
            }
            (Fact::Associated(serial), Some(id)) => self.pairing.associated(id, serial, now),
            (Fact::Associated(serial), None) => {
                nic.early = Some(serial);
                Ok(())
            }
            (Fact::Disassociated, id) => {
                nic.early = None;
                id.map_or(Ok(()), |id| self.pairing.disassociated(id, now))
            }
            (Fact::Left, id) => {
                (nic.id, nic.early) = (None, None);
                id.map_or(Ok(()), |id| self.pairing.nic_left(id, now))
            }
            (Fact::Released, _) => {
                nic.bound = None;
                self.link.closed();
                match nic.unbinding.take() {
                    Some((nic, port)) => self.pairing.unbound(nic, port, now),
                    None => {
                        self.lose(now);
                        Ok(())
                    }
                }
            }
        };
        if let Err(stale) = told {
            self.events.push(What::Failed { what: format!("nic{number}: {stale}") });
        }
    }

    fn carry_out(&mut self, decision: Decision, nics: &mut [UioNic], now: Instant) {
        match decision {
            Decision::Bind { nic, port, reason, facts } => {
                if self.bind(nic, port, facts.nic_mac, nics, now)
                    && let Some(nic) = self.number(nic)
                {
                    let (serial, mac) = (port.key.function.serial, facts.nic_mac);
                    let (reason, why) = (Reason::word(reason), facts.to_string());
                    self.events.push(What::Paired { nic, serial, mac, reason, why });
                }
            }
            Decision::Unbind { nic, port, why } => {
                if let Some(nic) = self.number(nic) {
                    self.events.push(What::Unpaired { nic, why: why.to_string() });
                }
                self.unbind(nic, port, why, nics, now);
            }
            Decision::Refused {
                party: Party::Stranger,
                refusal: refusal @ Refusal::NotVpci(kind, mac),
            } => {
                let (device, why) = (kind.to_string(), refusal.to_string());
                self.events.push(What::Ignored { device, mac, why });
            }
            Decision::Overdue(what) => self.events.push(What::Overdue { what: what.to_string() }),
            Decision::Reexamined { nic, .. } => {
                let (nic, why) = (self.number(nic), decision.to_string());
                self.events.push(What::Pairing { nic, why });
            }
            other => self.events.push(What::Pairing { nic: None, why: other.to_string() }),
        }
    }

    fn number(&self, nic: NicRef) -> Option<usize> {
        self.nics.iter().position(|known| known.instance == nic.instance)
    }

    /// Gives the interface to a NIC. False if that cannot be done.
    fn bind(
        &mut self,
        nic: NicRef,
        port: PortRef,
        mac: MacAddress,
        nics: &mut [UioNic],
        now: Instant,
    ) -> bool {
        let Some(number) = self.number(nic) else { return false };
        let Some(device) = nics.get_mut(number) else { return false };
        match self.link.open(port.key.function.bus, device.address().unwrap_or(mac)) {
            Ok(opened) => {
                let bound = device.bind(opened, now);
                if let Some(known) = self.nics.get_mut(number).filter(|_| bound) {
                    known.bound = Some(port.id);
                } else {
                    // A NIC that stops says so by itself.
                    self.link.closed();
                }
                bound
            }
            Err(why) => {
                self.events.push(What::Pairing { nic: Some(number), why });
                self.lose(now);
                self.unfit = true;
                false
            }
        }
    }

    /// Takes it from a NIC. What has gone already is let go at once.
    fn unbind(
        &mut self,
        nic: NicRef,
        port: PortRef,
        why: Parting,
        nics: &mut [UioNic],
        now: Instant,
    ) {
        let number = self.number(nic);
        let known = number.and_then(|number| self.nics.get_mut(number));
        let device = number.and_then(|number| nics.get_mut(number));
        if let (Some(known), Some(device)) = (known, device)
            && known.bound.take_if(|bound| *bound == port.id).is_some()
        {
            if device.release(why == Parting::PortLeft, now) {
                known.bound = Some(port.id);
                known.unbinding = Some((nic.id, port.id));
                return;
            }
            self.link.closed();
        }
        if let Err(stale) = self.pairing.unbound(nic.id, port.id, now) {
            tracing::debug!(%stale, "a pair that has come apart");
        }
    }
}

/// What the kernel shows of this machine, or of the one below a directory.
fn look_around(root: &Path) -> Result<Snapshot, Error> {
    let root = (root != Path::new("/")).then_some(root);
    Ok(take(root, Depth::Pairs)?)
}

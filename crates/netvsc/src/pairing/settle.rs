//! Bringing the pairs in line with the facts, and saying what changed.

use alloc::collections::BTreeSet;
use alloc::vec::Vec;

use vmbus::{Instant, Serial};

use super::decision::{
    Decision, Dispute, Facts, NicRef, Overdue, Parting, Party, PortRef, Reason, Refusal,
};
use super::explain::Standing;
use super::facts::{FunctionId, NicId, PermanentMac, PortId, PortKey};
use super::rules::{Claim, Granted, Verdict};
use super::{Pairing, Port};

/// A NIC that has a port.
#[derive(Clone, Copy, Debug)]
pub(super) struct Hold {
    pub(super) nic: NicRef,
    pub(super) port: PortRef,
    pub(super) reason: Reason,
    /// It is being unbound.
    pub(super) parting: bool,
    pub(super) watch: Watch,
}

/// Whether something is being waited for.
#[derive(Clone, Copy, Debug, Default)]
pub(super) enum Watch {
    #[default]
    Off,
    Until(Instant),
    /// It took too long, and that has been said.
    Said,
}

impl Watch {
    pub(super) const fn due(self) -> Option<Instant> {
        match self {
            Self::Until(due) => Some(due),
            Self::Off | Self::Said => None,
        }
    }
}

/// Where a port was last said to stand: a [`Standing`] without the names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Told {
    Matched(NicId, Reason),
    Standby(NicId, Reason, PortId),
    Pending,
    MacMismatch(NicId, usize),
    Conflict(Dispute),
    Alone,
    Refused(Refusal),
}

/// Who waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Waiter {
    Nic(NicId),
    Port(PortId),
    Hold(PortId),
}

/// What a fact may have changed.
#[derive(Debug, Default)]
pub(super) struct Dirty {
    /// Ports whose claim may be another one.
    pub(super) ports: BTreeSet<PortId>,
    /// NICs that may grant another claim.
    pub(super) nics: BTreeSet<NicId>,
    /// Conflicts whose parties may be others.
    pub(super) disputes: BTreeSet<Dispute>,
}

impl Pairing {
    /// Marks a NIC, everything that may claim it, and every conflict it may be in.
    pub(super) fn touch_nic(&self, nic: NicId, dirty: &mut Dirty) {
        let Some(record) = self.nics.get(nic.0) else { return };
        dirty.nics.insert(nic);
        dirty.ports.extend(self.index.by_mac.ports(record.mac));
        dirty.ports.extend(record.claims.iter().map(|claim| claim.port));
        dirty.disputes.insert(Dispute::Mac(record.mac));
        if let Some(serial) = record.associated {
            dirty.ports.extend(self.index.by_serial.ports(serial));
            dirty.disputes.insert(Dispute::Serial(serial));
            dirty.disputes.insert(Dispute::SerialAndMac(serial, record.mac));
        }
    }

    pub(super) fn associate(&mut self, nic: NicId, serial: Option<Serial>, now: Instant) {
        let mut dirty = Dirty::default();
        if self.note_association(nic, serial, &mut dirty, now) {
            self.settle(dirty, now);
        }
    }

    /// The same, with what follows from it left to the caller. False if nothing does.
    pub(super) fn note_association(
        &mut self,
        nic: NicId,
        serial: Option<Serial>,
        dirty: &mut Dirty,
        now: Instant,
    ) -> bool {
        self.touch_nic(nic, dirty);
        let Some(record) = self.nics.get_mut(nic.0) else { return false };
        let (mac, old) = (record.mac, record.associated);
        let named = NicRef { instance: record.instance, id: nic };
        if old == serial || serial.is_none() && seeded!("keep-serial") {
            return false;
        }
        record.associated = serial;
        if let Some(old) = old {
            self.index.by_serial.remove_nic(old, named);
        }
        if let Some(new) = serial {
            self.index.by_serial.insert_nic(new, named);
        }
        self.index.by_mac.remove_nic(mac, (old, nic));
        self.index.by_mac.insert_nic(mac, (serial, nic));
        self.watch(Waiter::Nic(nic), false, now);
        self.touch_nic(nic, dirty);
        true
    }

    pub(super) fn remove_nic(&mut self, nic: NicId, dirty: &mut Dirty) {
        self.touch_nic(nic, dirty);
        self.part(nic, Parting::NicLeft);
        let Some(record) = self.nics.remove(nic.0) else { return };
        if let Some(due) = record.watch.due() {
            self.deadlines.remove(&(due, Waiter::Nic(nic)));
        }
        self.index.instances.remove(record.instance);
        self.index.by_mac.remove_nic(record.mac, (record.associated, nic));
        if let Some(serial) = record.associated {
            let named = NicRef { instance: record.instance, id: nic };
            self.index.by_serial.remove_nic(serial, named);
        }
    }

    pub(super) fn insert_port(
        &mut self,
        function: FunctionId,
        key: PortKey,
        mac: PermanentMac,
        dirty: &mut Dirty,
    ) -> PortId {
        let (verdict, watch) = (Verdict::Alone, Watch::Off);
        let record = Port { function, key, mac, verdict, told: None, watch };
        let port = PortId(self.ports.insert(record));
        if let Some(home) = self.functions.get_mut(function.0) {
            home.ports.insert((key.index, port));
            home.touch_siblings(2, dirty);
        }
        self.index.by_serial.insert_port(key.function.serial, port);
        if let Some(mac) = mac.known() {
            self.index.by_mac.insert_port(mac, port);
        }
        dirty.ports.insert(port);
        port
    }

    pub(super) fn remove_port(&mut self, port: PortId, dirty: &mut Dirty) {
        if let Some(hold) = self.holds.get(port.0) {
            self.part(hold.nic.id, Parting::PortLeft);
        }
        let Some(record) = self.ports.remove(port.0) else { return };
        if let Some(due) = record.watch.due() {
            self.deadlines.remove(&(due, Waiter::Port(port)));
        }
        self.index.by_serial.remove_port(record.key.function.serial, port);
        if let Some(mac) = record.mac.known() {
            self.index.by_mac.remove_port(mac, port);
        }
        if let Some(home) = self.functions.get_mut(record.function.0) {
            home.ports.remove((record.key.index, port));
            home.touch_siblings(1, dirty);
        }
        if let Some(Told::Conflict(dispute)) = record.told {
            self.index.settle(dispute, port);
            dirty.disputes.insert(dispute);
        }
        self.withdraw(port, record.key, record.verdict, &mut dirty.nics);
    }

    pub(super) fn remove_function(&mut self, function: FunctionId, dirty: &mut Dirty) {
        let Some(record) = self.functions.get(function.0) else { return };
        let (bus, slot) = (record.key.bus, record.key.slot);
        let ports: Vec<_> = record.all_ports().collect();
        for port in ports {
            self.remove_port(port, dirty);
        }
        self.functions.remove(function.0);
        self.index.slots.remove((bus, slot));
    }

    /// Brings the pairs in line with the facts: first judge, then part, then join, then explain.
    pub(super) fn settle(&mut self, mut dirty: Dirty, now: Instant) {
        for &port in &dirty.ports {
            self.rejudge(port, &mut dirty.nics);
        }
        for &nic in &dirty.nics {
            self.part_if_wrong(nic);
        }
        for &nic in &dirty.nics {
            self.join(nic);
        }
        let claimants = |nic: &NicId| self.nics.get(nic.0).map(|record| &record.claims);
        let on_nics = dirty.nics.iter().filter_map(claimants).flatten().map(|claim| claim.port);
        let mut explain: BTreeSet<PortId> = on_nics.collect();
        explain.extend(&dirty.ports);
        for &port in &explain {
            self.publish(port, &mut dirty.disputes);
        }
        for &dispute in &dirty.disputes {
            self.report(dispute);
        }
        for &nic in &dirty.nics {
            self.watch_nic(nic, now);
        }
        for &port in &explain {
            self.watch_port(port, now);
        }
    }

    fn withdraw(
        &mut self,
        port: PortId,
        key: PortKey,
        verdict: Verdict,
        nics: &mut BTreeSet<NicId>,
    ) {
        if let Verdict::Claims(nic, reason) = verdict {
            if let Some(record) = self.nics.get_mut(nic.0) {
                record.claims.remove(Claim { reason, key, port });
            }
            nics.insert(nic);
        }
    }

    /// Judges a port anew and moves its claim.
    fn rejudge(&mut self, port: PortId, nics: &mut BTreeSet<NicId>) {
        let Some(record) = self.ports.get(port.0) else { return };
        self.examined += 1;
        let (key, old, new) = (record.key, record.verdict, self.judge(record));
        if old == new {
            return;
        }
        self.withdraw(port, key, old, nics);
        if let Verdict::Claims(nic, reason) = new {
            if let Some(record) = self.nics.get_mut(nic.0) {
                record.claims.insert(Claim { reason, key, port });
            }
            nics.insert(nic);
        }
        if let Some(record) = self.ports.get_mut(port.0) {
            record.verdict = new;
        }
    }

    /// Asks for a port back.
    fn part(&mut self, nic: NicId, why: Parting) {
        let Some(hold) = self.held(nic).and_then(|port| self.holds.get_mut(port.0)) else {
            return;
        };
        if !hold.parting {
            hold.parting = true;
            let (nic, port) = (hold.nic, hold.port);
            self.decisions.push_back(Decision::Unbind { nic, port, why });
        }
    }

    /// The port that a NIC has, also while it is being unbound.
    pub(super) fn held(&self, nic: NicId) -> Option<PortId> {
        self.nics.get(nic.0)?.held
    }

    fn part_if_wrong(&mut self, nic: NicId) {
        let Some(hold) = self.held(nic).and_then(|port| self.holds.get(port.0)) else {
            return;
        };
        let (port, granted) = (hold.port.id, self.granted(nic));
        match granted {
            Granted::To(claim) if claim.port == port => {}
            _ if hold.parting => {}
            _ => {
                let why = self.why_part(nic, port, granted);
                self.part(nic, why);
            }
        }
    }

    fn why_part(&self, nic: NicId, port: PortId, granted: Granted) -> Parting {
        let Some(record) = self.ports.get(port.0) else { return Parting::PortLeft };
        match (record.verdict, granted) {
            (Verdict::Claims(other, reason), _) if other != nic => {
                self.nic_ref(other).map_or(Parting::NoMatch, |nic| Parting::BetterNic(nic, reason))
            }
            (Verdict::Disputed(dispute), _) | (Verdict::Claims(..), Granted::Disputed(dispute)) => {
                Parting::Conflict(dispute)
            }
            (Verdict::Mismatch(..), _) => Parting::MacMismatch,
            (Verdict::Refused(refusal), _) => Parting::Refused(refusal),
            (_, Granted::To(Claim { reason, key, port })) => {
                Parting::BetterPort(PortRef { key, id: port }, reason)
            }
            _ => Parting::NoMatch,
        }
    }

    /// Grants a claim, if neither side is held.
    fn join(&mut self, nic: NicId) {
        let Granted::To(claim) = self.granted(nic) else { return };
        let (Some(nic), Some(facts)) = (self.nic_ref(nic), self.facts(nic, claim.port)) else {
            return;
        };
        let Claim { reason, key, port } = claim;
        let port = PortRef { key, id: port };
        let free = self.held(nic.id).is_none();
        match self.holds.get_mut(port.id.0) {
            Some(hold) if hold.nic.id == nic.id && !hold.parting && hold.reason != reason => {
                let was = core::mem::replace(&mut hold.reason, reason);
                self.decisions.push_back(Decision::Reexamined { nic, port, was, reason, facts });
            }
            None if free || seeded!("rebind-before-unbind") => {
                let hold = Hold { nic, port, reason, parting: false, watch: Watch::Off };
                self.holds.insert(port.id.0, hold);
                if let Some(record) = self.nics.get_mut(nic.id.0) {
                    record.held = Some(port.id);
                }
                self.decisions.push_back(Decision::Bind { nic, port, reason, facts });
            }
            _ => {}
        }
    }

    fn nic_ref(&self, nic: NicId) -> Option<NicRef> {
        self.nics.get(nic.0).map(|record| NicRef { instance: record.instance, id: nic })
    }

    fn port_ref(&self, port: PortId) -> Option<PortRef> {
        self.ports.get(port.0).map(|record| PortRef { key: record.key, id: port })
    }

    fn facts(&self, nic: NicId, port: PortId) -> Option<Facts> {
        let (nic, port) = (self.nics.get(nic.0)?, self.ports.get(port.0)?);
        Some(Facts {
            associated: nic.associated,
            serial: port.key.function.serial,
            nic_mac: nic.mac,
            port_mac: port.mac.known(),
        })
    }

    fn standing_now(&self, port: PortId, record: &Port) -> Told {
        match record.verdict {
            Verdict::Claims(nic, reason) => match self.granted(nic) {
                Granted::To(claim) if claim.port == port => Told::Matched(nic, reason),
                Granted::To(claim) => Told::Standby(nic, reason, claim.port),
                Granted::Disputed(dispute) => Told::Conflict(dispute),
                Granted::Nothing => Told::Alone,
            },
            Verdict::Pending => Told::Pending,
            Verdict::Mismatch(nic, count) => Told::MacMismatch(nic, count),
            Verdict::Disputed(dispute) => Told::Conflict(dispute),
            Verdict::Alone => Told::Alone,
            Verdict::Refused(refusal) => Told::Refused(refusal),
        }
    }

    /// The same with the names of the parties. They are here: whenever one leaves, whoever was told of it is told anew.
    pub(super) fn in_full(&self, told: Told) -> Option<Standing> {
        Some(match told {
            Told::Matched(nic, reason) => Standing::Matched(self.nic_ref(nic)?, reason),
            Told::Standby(nic, reason, behind) => {
                Standing::Standby(self.nic_ref(nic)?, reason, self.port_ref(behind)?)
            }
            Told::Pending => Standing::Pending,
            Told::MacMismatch(nic, count) => Standing::MacMismatch(self.nic_ref(nic)?, count),
            Told::Conflict(dispute) => Standing::Conflict(dispute),
            Told::Alone => Standing::Alone,
            Told::Refused(refusal) => Standing::Refused(refusal),
        })
    }

    /// Says where a port stands, if that changed.
    fn publish(&mut self, port: PortId, disputes: &mut BTreeSet<Dispute>) {
        let Some(record) = self.ports.get(port.0) else { return };
        self.examined += 1;
        let (old, new) = (record.told, self.standing_now(port, record));
        if old == Some(new) {
            return;
        }
        if let Some(Told::Conflict(dispute)) = old {
            self.index.settle(dispute, port);
            disputes.insert(dispute);
        }
        if let Told::Conflict(dispute) = new {
            self.index.dispute(dispute, port);
            disputes.insert(dispute);
        }
        if let Some(decision) = self.decision(PortRef { key: record.key, id: port }, new) {
            self.decisions.push_back(decision);
        }
        if let Some(record) = self.ports.get_mut(port.0) {
            record.told = Some(new);
        }
    }

    /// How a standing is told. Pairs and conflicts are told elsewhere.
    fn decision(&self, port: PortRef, told: Told) -> Option<Decision> {
        Some(match self.in_full(told)? {
            Standing::Matched(..) | Standing::Conflict(_) => return None,
            Standing::Standby(nic, reason, behind) => {
                Decision::Standby { nic, port, reason, behind }
            }
            Standing::Pending => Decision::Pending { port },
            Standing::MacMismatch(nic, nics) => Decision::MacMismatch {
                port,
                mac: self.ports.get(port.id.0)?.mac.known()?,
                nic,
                nic_mac: self.nics.get(nic.id.0)?.mac,
                nics,
            },
            Standing::Alone => Decision::Alone { port },
            Standing::Refused(refusal) => Decision::Refused { party: Party::Port(port), refusal },
        })
    }

    /// Reports a conflict if its parties changed, and its end.
    fn report(&mut self, over: Dispute) {
        let port_ref = |id| self.port_ref(id);
        let disputed = self.index.disputed.get(&over).into_iter().flatten();
        let mut ports: Vec<_> = disputed.copied().filter_map(port_ref).collect();
        let nic_ref = |id| self.nic_ref(id);
        let mut nics: Vec<_> = match over {
            _ if ports.is_empty() => Vec::new(),
            Dispute::SerialAndMac(serial, mac) => {
                self.index.by_mac.with(serial, mac).filter_map(nic_ref).collect()
            }
            Dispute::Serial(serial) => self.index.by_serial.nics(serial).collect(),
            Dispute::Mac(mac) => {
                self.index.by_mac.nics(mac).filter_map(|(_, nic)| nic_ref(nic)).collect()
            }
        };
        self.examined += (nics.len() + ports.len()) as u64;
        ports.sort_unstable();
        nics.sort_unstable();
        if ports.is_empty() {
            if self.reported.remove(&over).is_some() {
                self.decisions.push_back(Decision::Settled { over });
            }
        } else if self.reported.get(&over).is_none_or(|said| (&said.0, &said.1) != (&nics, &ports))
        {
            self.reported.insert(over, (nics.clone(), ports.clone()));
            self.decisions.push_back(Decision::Conflict { over, nics, ports });
        }
    }

    fn watch_nic(&mut self, nic: NicId, now: Instant) {
        if let Some(port) = self.held(nic) {
            let parting = self.holds.get(port.0).is_some_and(|hold| hold.parting);
            self.watch(Waiter::Hold(port), parting, now);
        }
        let waits = self.nics.get(nic.0).is_some_and(|record| record.associated.is_some());
        self.watch(Waiter::Nic(nic), waits && self.held(nic).is_none(), now);
    }

    fn watch_port(&mut self, port: PortId, now: Instant) {
        let told = self.ports.get(port.0).and_then(|record| record.told);
        let waits = matches!(told, Some(Told::Alone | Told::Pending));
        self.watch(Waiter::Port(port), waits, now);
    }

    fn watch_of(&mut self, waiter: Waiter) -> Option<&mut Watch> {
        match waiter {
            Waiter::Nic(NicId(nic)) => self.nics.get_mut(nic).map(|record| &mut record.watch),
            Waiter::Port(PortId(port)) => self.ports.get_mut(port).map(|record| &mut record.watch),
            Waiter::Hold(port) => self.holds.get_mut(port.0).map(|hold| &mut hold.watch),
        }
    }

    fn watch(&mut self, waiter: Waiter, waits: bool, now: Instant) {
        let due = now + self.config.patience;
        let Some(watch) = self.watch_of(waiter) else { return };
        match (*watch, waits) {
            (Watch::Off, true) if !seeded!("wait-in-silence") => {
                *watch = Watch::Until(due);
                self.deadlines.insert((due, waiter));
            }
            (Watch::Until(due), false) => {
                *watch = Watch::Off;
                self.deadlines.remove(&(due, waiter));
            }
            (Watch::Said, false) => *watch = Watch::Off,
            (Watch::Off, _) | (Watch::Until(_) | Watch::Said, true) => {}
        }
    }

    /// Reports what has been waited for too long (P12). Each thing once.
    pub fn handle_deadline(&mut self, now: Instant) {
        while let Some(&(due, waiter)) = self.deadlines.first().filter(|(due, _)| *due <= now) {
            self.deadlines.remove(&(due, waiter));
            if let Some(watch) = self.watch_of(waiter) {
                *watch = Watch::Said;
            }
            self.decisions.extend(self.overdue(waiter).map(Decision::Overdue));
        }
    }

    fn overdue(&self, waiter: Waiter) -> Option<Overdue> {
        Some(match waiter {
            Waiter::Nic(nic) => {
                Overdue::Association(self.nic_ref(nic)?, self.nics.get(nic.0)?.associated?)
            }
            Waiter::Port(id) => Overdue::Port(self.port_ref(id)?),
            Waiter::Hold(port) => {
                let hold = self.holds.get(port.0)?;
                Overdue::Unbinding(hold.nic, hold.port)
            }
        })
    }
}

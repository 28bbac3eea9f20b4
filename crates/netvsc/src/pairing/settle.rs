//! Bringing the pairs in line with the facts, and saying what changed.

use alloc::collections::BTreeSet;
use alloc::vec::Vec;

use vmbus::{Instant, Serial};

use super::decision::{Decision, Dispute, Facts, NicRef, Overdue, Parting, Party, PortRef, Reason};
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
        dirty.ports.extend(self.index.ports_by_mac.get(record.mac));
        dirty.ports.extend(record.claims.iter().map(|claim| claim.port));
        dirty.disputes.insert(Dispute::Mac(record.mac));
        if let Some(serial) = record.associated {
            dirty.ports.extend(self.index.ports_by_serial.get(serial));
            dirty.disputes.insert(Dispute::Serial(serial));
            dirty.disputes.insert(Dispute::SerialAndMac(serial, record.mac));
        }
    }

    pub(super) fn associate(&mut self, nic: NicId, serial: Option<Serial>, now: Instant) {
        let mut dirty = Dirty::default();
        self.touch_nic(nic, &mut dirty);
        let Some(record) = self.nics.get_mut(nic.0) else { return };
        let (mac, old) = (record.mac, record.associated);
        let named = NicRef { instance: record.instance, id: nic };
        if old == serial || serial.is_none() && seeded!("keep-serial") {
            return;
        }
        record.associated = serial;
        if let Some(old) = old {
            self.index.nics_by_serial.remove(old, named);
            self.index.nics_by_both.remove((old, mac), nic);
        }
        if let Some(new) = serial {
            self.index.nics_by_serial.insert(new, named);
            self.index.nics_by_both.insert((new, mac), nic);
        }
        self.watch(Waiter::Nic(nic), false, now);
        self.touch_nic(nic, &mut dirty);
        self.settle(dirty, now);
    }

    pub(super) fn remove_nic(&mut self, nic: NicId, dirty: &mut Dirty) {
        self.touch_nic(nic, dirty);
        self.part(nic, Parting::NicLeft);
        let Some(record) = self.nics.remove(nic.0) else { return };
        if let Some(due) = record.watch.due() {
            self.deadlines.remove(&(due, Waiter::Nic(nic)));
        }
        self.index.instances.remove(&record.instance);
        self.index.nics_by_mac.remove(record.mac, nic);
        if let Some(serial) = record.associated {
            let named = NicRef { instance: record.instance, id: nic };
            self.index.nics_by_serial.remove(serial, named);
            self.index.nics_by_both.remove((serial, record.mac), nic);
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
        let record = Port { function, key, mac, verdict, standing: None, watch };
        let port = PortId(self.ports.insert(record));
        if let Some(home) = self.functions.get_mut(function.0) {
            dirty.ports.extend(home.ports.values().copied());
            home.ports.insert(key.index, port);
        }
        self.index.ports_by_serial.insert(key.function.serial, port);
        if let Some(mac) = mac.known() {
            self.index.ports_by_mac.insert(mac, port);
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
        self.index.ports_by_serial.remove(record.key.function.serial, port);
        if let Some(mac) = record.mac.known() {
            self.index.ports_by_mac.remove(mac, port);
        }
        if let Some(home) = self.functions.get_mut(record.function.0) {
            home.ports.remove(&record.key.index);
            dirty.ports.extend(home.ports.values().copied());
        }
        if let Some(Standing::Conflict(dispute)) = record.standing {
            self.index.disputed.remove(dispute, port);
            dirty.disputes.insert(dispute);
        }
        self.withdraw(port, record.key, record.verdict, &mut dirty.nics);
    }

    pub(super) fn remove_function(&mut self, function: FunctionId, dirty: &mut Dirty) {
        let Some(record) = self.functions.get(function.0) else { return };
        let (bus, slot) = (record.key.bus, record.key.slot);
        let ports: Vec<_> = record.ports.values().copied().collect();
        for port in ports {
            self.remove_port(port, dirty);
        }
        self.functions.remove(function.0);
        self.index.slots.remove(&(bus, slot));
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
        let Some(hold) = self.held.get(nic.0).and_then(|port| self.holds.get_mut(port.0)) else {
            return;
        };
        if !hold.parting {
            hold.parting = true;
            let (nic, port) = (hold.nic, hold.port);
            self.decisions.push_back(Decision::Unbind { nic, port, why });
        }
    }

    fn part_if_wrong(&mut self, nic: NicId) {
        let Some(hold) = self.held.get(nic.0).and_then(|port| self.holds.get(port.0)) else {
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
        match self.holds.get_mut(port.id.0) {
            Some(hold) if hold.nic.id == nic.id && !hold.parting && hold.reason != reason => {
                let was = core::mem::replace(&mut hold.reason, reason);
                self.decisions.push_back(Decision::Reexamined { nic, port, was, reason, facts });
            }
            None if !self.held.contains(nic.id.0) || seeded!("rebind-before-unbind") => {
                let hold = Hold { nic, port, reason, parting: false, watch: Watch::Off };
                self.holds.insert(port.id.0, hold);
                self.held.insert(nic.id.0, port.id);
                self.decisions.push_back(Decision::Bind { nic, port, reason, facts });
            }
            _ => {}
        }
    }

    fn nic_ref(&self, nic: NicId) -> Option<NicRef> {
        self.nics.get(nic.0).map(|record| NicRef { instance: record.instance, id: nic })
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

    fn standing_now(&self, port: PortId, record: &Port) -> Standing {
        let serial = record.key.function.serial;
        match record.verdict {
            Verdict::Claims(nic, reason) => match (self.granted(nic), self.nic_ref(nic)) {
                (Granted::To(claim), Some(nic)) if claim.port == port => {
                    Standing::Matched(nic, reason)
                }
                (Granted::To(Claim { key, port, .. }), Some(nic)) => {
                    Standing::Standby(nic, reason, PortRef { key, id: port })
                }
                (Granted::Disputed(dispute), _) => Standing::Conflict(dispute),
                _ => Standing::Alone,
            },
            Verdict::Pending => Standing::Pending,
            Verdict::Mismatch(nic, count) => match self.nic_ref(nic) {
                Some(nic) => Standing::MacMismatch(nic, count),
                None => Standing::Conflict(Dispute::Serial(serial)),
            },
            Verdict::Disputed(dispute) => Standing::Conflict(dispute),
            Verdict::Alone => Standing::Alone,
            Verdict::Refused(refusal) => Standing::Refused(refusal),
        }
    }

    /// Says where a port stands, if that changed.
    fn publish(&mut self, port: PortId, disputes: &mut BTreeSet<Dispute>) {
        let Some(record) = self.ports.get(port.0) else { return };
        self.examined += 1;
        let (old, new) = (record.standing, self.standing_now(port, record));
        if old == Some(new) {
            return;
        }
        if let Some(Standing::Conflict(dispute)) = old {
            self.index.disputed.remove(dispute, port);
            disputes.insert(dispute);
        }
        if let Standing::Conflict(dispute) = new {
            self.index.disputed.insert(dispute, port);
            disputes.insert(dispute);
        }
        if let Some(decision) = self.decision(PortRef { key: record.key, id: port }, new) {
            self.decisions.push_back(decision);
        }
        if let Some(record) = self.ports.get_mut(port.0) {
            record.standing = Some(new);
        }
    }

    /// How a standing is told. Pairs and conflicts are told elsewhere.
    fn decision(&self, port: PortRef, standing: Standing) -> Option<Decision> {
        Some(match standing {
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
        let port_ref = |id: PortId| Some(PortRef { key: self.ports.get(id.0)?.key, id });
        let mut ports: Vec<_> = self.index.disputed.get(over).filter_map(port_ref).collect();
        let nic_ref = |id| self.nic_ref(id);
        let mut nics: Vec<_> = match over {
            _ if ports.is_empty() => Vec::new(),
            Dispute::SerialAndMac(serial, mac) => {
                self.index.nics_by_both.get((serial, mac)).filter_map(nic_ref).collect()
            }
            Dispute::Serial(serial) => self.index.nics_by_serial.get(serial).collect(),
            Dispute::Mac(mac) => self.index.nics_by_mac.get(mac).filter_map(nic_ref).collect(),
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
        if let Some(port) = self.held.get(nic.0).copied() {
            let parting = self.holds.get(port.0).is_some_and(|hold| hold.parting);
            self.watch(Waiter::Hold(port), parting, now);
        }
        let waits = self.nics.get(nic.0).is_some_and(|record| record.associated.is_some());
        self.watch(Waiter::Nic(nic), waits && !self.held.contains(nic.0), now);
    }

    fn watch_port(&mut self, port: PortId, now: Instant) {
        let standing = self.ports.get(port.0).and_then(|record| record.standing);
        let waits = matches!(standing, Some(Standing::Alone | Standing::Pending));
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
            Waiter::Port(id) => Overdue::Port(PortRef { key: self.ports.get(id.0)?.key, id }),
            Waiter::Hold(port) => {
                let hold = self.holds.get(port.0)?;
                Overdue::Unbinding(hold.nic, hold.port)
            }
        })
    }
}

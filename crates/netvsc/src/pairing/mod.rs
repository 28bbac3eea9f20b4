//! Which port of a virtual function belongs to which NIC: rules P1 to P15.
//!
//! A join of facts that come from different sides in any order: what the host says about NICs (their channel), about
//! functions (their virtual PCI bus), and what drivers say about ports. [`Pairing`] takes the facts and yields
//! [`Decision`]s, each with its reason. It never waits for anybody.
//!
//! After every fact the pairs are those that the facts so far call for, whatever their order: the rules (in `rules`)
//! look at facts only, not at what was decided before. Two pairs can need the same NIC or port one after the other; so
//! [`Decision::Bind`] is held back until [`Pairing::unbound`] has confirmed every [`Decision::Unbind`] in its way.
//!
//! The handles that facts return carry generations. A fact about something that has left is an error value.

mod arena;
mod decision;
mod explain;
mod facts;
mod few;
mod index;
mod rules;
mod settle;
mod table;
#[cfg(test)]
mod tests;

use alloc::collections::{BTreeMap, BTreeSet, VecDeque};

use vmbus::{Guid, Instant, Serial};

use self::arena::{Arena, ByHandle, Handle};
use self::few::Few;
use self::index::Indexes;
use self::rules::{Claim, Verdict};
use self::settle::{Dirty, Hold, Told, Waiter, Watch};
use crate::mac::MacAddress;

pub use self::decision::{
    Decision, Dispute, Facts, NicRef, Overdue, Parting, Party, PortRef, Reason, Refusal,
};
pub use self::explain::{Conflict, Explanation, NicState, PortExplanation, Standing};
pub use self::facts::{
    DeviceKind, FactError, FunctionId, FunctionKey, MacPolicy, NicId, PairingConfig, PermanentMac,
    PortId, PortKey,
};

#[derive(Clone, Debug)]
struct Nic {
    instance: Guid,
    mac: MacAddress,
    /// The serial, while `allocated` is 1 (P2).
    associated: Option<Serial>,
    /// Claims of ports on this NIC, the strongest first.
    claims: Few<Claim>,
    /// The port it has, also while it is being unbound.
    held: Option<PortId>,
    watch: Watch,
}

#[derive(Clone, Debug)]
struct Function {
    key: FunctionKey,
    /// By the driver's count.
    ports: Few<(u32, PortId)>,
}

impl Function {
    fn port(&self, index: u32) -> Option<PortId> {
        let (found, port) = *self.ports.from((index, PortId(Handle::LEAST))).next()?;
        (found == index).then_some(port)
    }

    /// Ports ask only whether they are their function's only one. Now that there are `few`, that may be another answer.
    fn touch_siblings(&self, few: usize, dirty: &mut Dirty) {
        if self.ports.len() == few {
            dirty.ports.extend(self.all_ports());
        }
    }

    fn all_ports(&self) -> impl Iterator<Item = PortId> + '_ {
        self.ports.iter().map(|(_, port)| *port)
    }
}

#[derive(Clone, Debug)]
struct Port {
    function: FunctionId,
    key: PortKey,
    mac: PermanentMac,
    verdict: Verdict,
    /// What was last said about it.
    told: Option<Told>,
    watch: Watch,
}

/// Pairs NICs with ports.
#[derive(Clone, Debug)]
pub struct Pairing {
    config: PairingConfig,
    nics: Arena<Nic>,
    functions: Arena<Function>,
    ports: Arena<Port>,
    index: Indexes,
    /// Who has which port, also while it is being unbound, also after either has left.
    holds: ByHandle<Hold>,
    /// The conflicts that were reported, with their parties.
    reported: BTreeMap<Dispute, (alloc::vec::Vec<NicRef>, alloc::vec::Vec<PortRef>)>,
    deadlines: BTreeSet<(Instant, Waiter)>,
    decisions: VecDeque<Decision>,
    examined: u64,
}

impl Pairing {
    /// Nothing is here yet.
    #[must_use]
    pub const fn new(config: PairingConfig) -> Self {
        Self {
            config,
            nics: Arena::new(),
            functions: Arena::new(),
            ports: Arena::new(),
            index: Indexes::new(),
            holds: ByHandle::new(),
            reported: BTreeMap::new(),
            deadlines: BTreeSet::new(),
            decisions: VecDeque::new(),
            examined: 0,
        }
    }

    /// A synthetic NIC is here, with its permanent MAC.
    ///
    /// Saying it again changes nothing. With another MAC it is another NIC: the old one has left.
    pub fn nic_arrived(&mut self, instance: Guid, mac: MacAddress, now: Instant) -> NicId {
        self.arrive(instance, mac, None, now)
    }

    /// A synthetic NIC is here, and its host has already said which VF is allocated to it: the same as [`nic_arrived`] and
    /// [`associated`], but nothing is decided before both are known.
    ///
    /// Hosts send the association right behind the buffers, so that a driver often has it before it knows the MAC.
    ///
    /// [`nic_arrived`]: Self::nic_arrived
    /// [`associated`]: Self::associated
    pub fn nic_arrived_associated(
        &mut self,
        instance: Guid,
        mac: MacAddress,
        serial: Serial,
        now: Instant,
    ) -> NicId {
        self.arrive(instance, mac, Some(serial), now)
    }

    fn arrive(
        &mut self,
        instance: Guid,
        mac: MacAddress,
        serial: Option<Serial>,
        now: Instant,
    ) -> NicId {
        let mut dirty = Dirty::default();
        if let Some(&known) = self.index.instances.get(instance) {
            if self.nics.get(known.0).is_some_and(|nic| nic.mac == mac) {
                if let Some(serial) = self.heard(known, instance, serial) {
                    self.associate(known, Some(serial), now);
                }
                return known;
            }
            self.remove_nic(known, &mut dirty);
        }
        let watch = Watch::default();
        let record = Nic { instance, mac, associated: None, claims: Few::None, held: None, watch };
        let nic = NicId(self.nics.insert(record));
        self.index.instances.insert(instance, nic);
        self.index.by_mac.insert_nic(mac, (None, nic));
        self.touch_nic(nic, &mut dirty);
        if let Some(serial) = self.heard(nic, instance, serial) {
            self.note_association(nic, Some(serial), &mut dirty, now);
        }
        self.settle(dirty, now);
        nic
    }

    /// What counts of an association that the host speaks of: nothing if the guest is isolated from it (P14).
    fn heard(&mut self, nic: NicId, instance: Guid, serial: Option<Serial>) -> Option<Serial> {
        let serial = serial?;
        if self.config.isolated {
            let party = Party::Nic(NicRef { instance, id: nic });
            self.decisions.push_back(Decision::Refused { party, refusal: Refusal::Isolated });
            return None;
        }
        if serial.0 == 0 && seeded!("zero-serial-is-none") {
            return None;
        }
        Some(serial)
    }

    /// A NIC has left. Its port, if it has one, is to be unbound.
    ///
    /// # Errors
    /// [`FactError::NicLeft`] if it had already.
    pub fn nic_left(&mut self, nic: NicId, now: Instant) -> Result<(), FactError> {
        self.nics.get(nic.0).ok_or(FactError::NicLeft(nic))?;
        let mut dirty = Dirty::default();
        self.remove_nic(nic, &mut dirty);
        self.settle(dirty, now);
        Ok(())
    }

    /// The host says on the NIC's channel that a VF with this serial is allocated to it.
    ///
    /// # Errors
    /// [`FactError::NicLeft`] for a stale handle.
    pub fn associated(
        &mut self,
        nic: NicId,
        serial: Serial,
        now: Instant,
    ) -> Result<(), FactError> {
        let instance = self.nics.get(nic.0).ok_or(FactError::NicLeft(nic))?.instance;
        let Some(serial) = self.heard(nic, instance, Some(serial)) else { return Ok(()) };
        self.associate(nic, Some(serial), now);
        Ok(())
    }

    /// The host says that no VF is allocated to the NIC (any more).
    ///
    /// # Errors
    /// [`FactError::NicLeft`] for a stale handle.
    pub fn disassociated(&mut self, nic: NicId, now: Instant) -> Result<(), FactError> {
        self.nics.get(nic.0).ok_or(FactError::NicLeft(nic))?;
        self.associate(nic, None, now);
        Ok(())
    }

    /// A function came over vPCI.
    ///
    /// Saying it again changes nothing. If the slot held a function with another identity, that one has left with all
    /// its ports, and the new one has arrived (P13).
    pub fn function_arrived(&mut self, key: FunctionKey, now: Instant) -> FunctionId {
        let mut dirty = Dirty::default();
        if let Some(&known) = self.index.slots.get((key.bus, key.slot))
            && let Some(old) = self.functions.get(known.0).map(|function| function.key)
        {
            if old == key {
                return known;
            }
            self.decisions.push_back(Decision::Replaced { old, new: key });
            self.remove_function(known, &mut dirty);
        }
        let function = FunctionId(self.functions.insert(Function { key, ports: Few::None }));
        self.index.slots.insert((key.bus, key.slot), function);
        self.settle(dirty, now);
        function
    }

    /// A function has left, with all its ports.
    ///
    /// # Errors
    /// [`FactError::FunctionLeft`] if it had already.
    pub fn function_left(&mut self, function: FunctionId, now: Instant) -> Result<(), FactError> {
        self.functions.get(function.0).ok_or(FactError::FunctionLeft(function))?;
        let mut dirty = Dirty::default();
        self.remove_function(function, &mut dirty);
        self.settle(dirty, now);
        Ok(())
    }

    /// The driver of a function reports a port.
    ///
    /// Saying it again adds what was not known: a MAC that has become known, or that never will be. A *known* permanent
    /// MAC that differs makes it another port: the old one has left.
    ///
    /// # Errors
    /// [`FactError::FunctionLeft`] for a stale handle.
    pub fn port_arrived(
        &mut self,
        function: FunctionId,
        index: u32,
        mac: PermanentMac,
        now: Instant,
    ) -> Result<PortId, FactError> {
        let home = self.functions.get(function.0).ok_or(FactError::FunctionLeft(function))?;
        let key = PortKey { function: home.key, index };
        let mut dirty = Dirty::default();
        if let Some(known) = home.port(index)
            && let Some(record) = self.ports.get_mut(known.0)
        {
            match (record.mac.known(), mac.known()) {
                (Some(old), Some(new)) if old != new => self.remove_port(known, &mut dirty),
                (None, Some(new)) => {
                    record.mac = mac;
                    self.index.by_mac.insert_port(new, known);
                    dirty.ports.insert(known);
                    self.settle(dirty, now);
                    return Ok(known);
                }
                (None, None) if mac == PermanentMac::Never => {
                    record.mac = mac;
                    dirty.ports.insert(known);
                    self.settle(dirty, now);
                    return Ok(known);
                }
                _ => return Ok(known),
            }
        }
        let port = self.insert_port(function, key, mac, &mut dirty);
        self.settle(dirty, now);
        Ok(port)
    }

    /// A port has left.
    ///
    /// # Errors
    /// [`FactError::PortLeft`] if it had already.
    pub fn port_left(&mut self, port: PortId, now: Instant) -> Result<(), FactError> {
        self.ports.get(port.0).ok_or(FactError::PortLeft(port))?;
        let mut dirty = Dirty::default();
        self.remove_port(port, &mut dirty);
        self.settle(dirty, now);
        Ok(())
    }

    /// A network device that did not come over vPCI was seen. It is never a candidate; the refusal says so (P1).
    pub fn ignored(&mut self, kind: DeviceKind, mac: MacAddress) {
        let refusal = Refusal::NotVpci(kind, mac);
        self.decisions.push_back(Decision::Refused { party: Party::Stranger, refusal });
    }

    /// A [`Decision::Unbind`] has been carried out: the NIC has let go of the port. Handles of parties that have left
    /// are still good for this.
    ///
    /// # Errors
    /// [`FactError::NotUnbinding`] if these two were not being unbound.
    pub fn unbound(&mut self, nic: NicId, port: PortId, now: Instant) -> Result<(), FactError> {
        let hold = self.holds.get(port.0).filter(|hold| hold.nic.id == nic && hold.parting);
        let Some(hold) = hold else { return Err(FactError::NotUnbinding { nic, port }) };
        if let Some(due) = hold.watch.due() {
            self.deadlines.remove(&(due, Waiter::Hold(port)));
        }
        self.holds.remove(port.0);
        if let Some(record) = self.nics.get_mut(nic.0) {
            record.held = None;
        }
        let mut dirty = Dirty::default();
        if seeded!("forget-standby") {
            return Ok(());
        }
        dirty.nics.insert(nic);
        if let Some(Verdict::Claims(claimed, _)) = self.ports.get(port.0).map(|port| port.verdict) {
            dirty.nics.insert(claimed);
        }
        self.settle(dirty, now);
        Ok(())
    }

    /// The next decision, in the order in which they are to be carried out.
    pub fn poll_decision(&mut self) -> Option<Decision> {
        self.decisions.pop_front()
    }

    /// When [`handle_deadline`](Self::handle_deadline) wants to be called.
    #[must_use]
    pub fn poll_deadline(&self) -> Option<Instant> {
        self.deadlines.first().map(|(due, _)| *due)
    }

    /// The pairs that are bound and not being unbound.
    pub fn pairs(&self) -> impl Iterator<Item = (NicRef, PortRef, Reason)> + '_ {
        self.holds.values().filter(|hold| !hold.parting).map(|h| (h.nic, h.port, h.reason))
    }

    /// The port a NIC is bound to and why, unless it is being unbound.
    #[must_use]
    pub fn bound(&self, nic: NicId) -> Option<(PortRef, Reason)> {
        let hold = self.holds.get(self.held(nic)?.0)?;
        (!hold.parting).then_some((hold.port, hold.reason))
    }

    /// The NIC with this instance, if it is here.
    #[must_use]
    pub fn nic(&self, instance: Guid) -> Option<NicId> {
        self.index.instances.get(instance).copied()
    }

    /// The function in this slot, if one is here.
    #[must_use]
    pub fn function(&self, bus: Guid, slot: u32) -> Option<FunctionId> {
        self.index.slots.get((bus, slot)).copied()
    }

    /// All NICs that are here.
    pub fn nics(&self) -> impl Iterator<Item = NicRef> + '_ {
        self.nics.iter().map(|(id, nic)| NicRef { instance: nic.instance, id: NicId(id) })
    }

    /// All ports that are here.
    pub fn ports(&self) -> impl Iterator<Item = PortRef> + '_ {
        self.ports.iter().map(|(id, port)| PortRef { key: port.key, id: PortId(id) })
    }

    /// How many NICs, functions and ports are here.
    #[must_use]
    pub fn counts(&self) -> (usize, usize, usize) {
        (self.nics.len(), self.functions.len(), self.ports.len())
    }

    /// How many parties have been looked at since the beginning. One fact costs as many as share its serial or MAC.
    #[must_use]
    pub const fn examined(&self) -> u64 {
        self.examined
    }
}

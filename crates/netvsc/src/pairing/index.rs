//! Who has which serial and which MAC.

use alloc::collections::BTreeMap;

use vmbus::{Guid, Serial};

use super::arena::Handle;
use super::decision::{Dispute, NicRef};
use super::facts::{FunctionId, NicId, PortId};
use super::few::Few;
use super::table::{Key, Table};
use crate::mac::MacAddress;

/// NICs and ports that have something in common.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Parties<N> {
    nics: Few<N>,
    ports: Few<PortId>,
}

/// Who has what in common, NICs and ports side by side: whoever asks for the one mostly asks for the other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Shared<K: Key, N>(Table<K, Parties<N>>);

impl<K: Key, N: Ord + Copy> Shared<K, N> {
    const fn new() -> Self {
        Self(Table::new())
    }

    pub(super) fn insert_nic(&mut self, key: K, nic: N) {
        match self.0.get_mut(key) {
            Some(parties) => parties.nics.insert(nic),
            None => self.0.insert_new(key, Parties { nics: Few::One(nic), ports: Few::None }),
        }
    }

    pub(super) fn insert_port(&mut self, key: K, port: PortId) {
        match self.0.get_mut(key) {
            Some(parties) => parties.ports.insert(port),
            None => self.0.insert_new(key, Parties { nics: Few::None, ports: Few::One(port) }),
        }
    }

    pub(super) fn remove_nic(&mut self, key: K, nic: N) {
        self.change(key, |parties| parties.nics.remove(nic));
    }

    pub(super) fn remove_port(&mut self, key: K, port: PortId) {
        self.change(key, |parties| parties.ports.remove(port));
    }

    fn change(&mut self, key: K, change: impl FnOnce(&mut Parties<N>)) {
        if let Some(parties) = self.0.get_mut(key) {
            change(parties);
            if parties.nics.is_empty() && parties.ports.is_empty() {
                self.0.remove(key);
            }
        }
    }

    /// The NICs, in order.
    pub(super) fn nics(&self, key: K) -> impl Iterator<Item = N> + '_ {
        self.0.get(key).into_iter().flat_map(|parties| &parties.nics).copied()
    }

    /// The ports, in order.
    pub(super) fn ports(&self, key: K) -> impl Iterator<Item = PortId> + '_ {
        self.0.get(key).into_iter().flat_map(|parties| &parties.ports).copied()
    }

    pub(super) fn count_nics(&self, key: K) -> usize {
        self.0.get(key).map_or(0, |parties| parties.nics.len())
    }

    /// The one NIC under the key, or how many there are instead.
    pub(super) fn only_nic(&self, key: K) -> Result<N, usize> {
        match self.0.get(key).map(|parties| &parties.nics) {
            Some(Few::One(nic)) => Ok(*nic),
            Some(nics) => Err(nics.len()),
            None => Err(0),
        }
    }
}

impl Shared<MacAddress, (Option<Serial>, NicId)> {
    /// NICs with this MAC that are associated with this serial.
    pub(super) fn with(&self, serial: Serial, mac: MacAddress) -> impl Iterator<Item = NicId> + '_ {
        let least = (Some(serial), NicId(Handle::LEAST));
        let from = self.0.get(mac).into_iter().flat_map(move |parties| parties.nics.from(least));
        from.take_while(move |(of, _)| *of == Some(serial)).map(|(_, nic)| *nic)
    }
}

/// All indexes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Indexes {
    /// NICs by the instance of their offer.
    pub(super) instances: Table<Guid, NicId>,
    /// Functions by bus and slot.
    pub(super) slots: Table<(Guid, u32), FunctionId>,
    /// By serial, associated NICs and all ports; the first of the NICs is the same one whatever the order in which they came.
    pub(super) by_serial: Shared<Serial, NicRef>,
    /// By permanent MAC, all NICs, those associated with one serial beside each other, and the ports whose MAC is known.
    pub(super) by_mac: Shared<MacAddress, (Option<Serial>, NicId)>,
    /// Ports in conflict, by what the conflict is about.
    pub(super) disputed: BTreeMap<Dispute, Few<PortId>>,
}

impl Indexes {
    pub(super) const fn new() -> Self {
        Self {
            instances: Table::new(),
            slots: Table::new(),
            by_serial: Shared::new(),
            by_mac: Shared::new(),
            disputed: BTreeMap::new(),
        }
    }

    pub(super) fn dispute(&mut self, over: Dispute, port: PortId) {
        self.disputed.entry(over).or_default().insert(port);
    }

    pub(super) fn settle(&mut self, over: Dispute, port: PortId) {
        if let Some(ports) = self.disputed.get_mut(&over) {
            ports.remove(port);
            if ports.is_empty() {
                self.disputed.remove(&over);
            }
        }
    }
}

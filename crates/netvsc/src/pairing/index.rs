//! Who has which serial and which MAC.
//!
//! Ordered maps, not hashed ones: the keys are chosen by the host, and an ordered map cannot be flooded with colliding
//! ones; it needs no random numbers either, so that every run is the same. A look-up costs the logarithm of the number
//! of keys, 16 steps for 65,536 NICs, instead of one.

use alloc::collections::BTreeMap;

use vmbus::{Guid, Serial};

use super::decision::{Dispute, NicRef};
use super::facts::{FunctionId, NicId, PortId};
use super::few::Few;
use crate::mac::MacAddress;

/// Several values under each key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Multi<K, V>(BTreeMap<K, Few<V>>);

impl<K: Ord + Copy, V: Ord + Copy> Multi<K, V> {
    const fn new() -> Self {
        Self(BTreeMap::new())
    }

    pub(super) fn insert(&mut self, key: K, value: V) {
        self.0.entry(key).or_default().insert(value);
    }

    pub(super) fn remove(&mut self, key: K, value: V) {
        if let Some(values) = self.0.get_mut(&key) {
            values.remove(value);
            if values.is_empty() {
                self.0.remove(&key);
            }
        }
    }

    pub(super) fn get(&self, key: K) -> impl Iterator<Item = V> + '_ {
        self.0.get(&key).into_iter().flatten().copied()
    }

    pub(super) fn count(&self, key: K) -> usize {
        self.0.get(&key).map_or(0, Few::len)
    }

    pub(super) fn contains(&self, key: K) -> bool {
        self.0.contains_key(&key)
    }

    /// The one value under the key, or how many there are instead.
    pub(super) fn only(&self, key: K) -> Result<V, usize> {
        match self.0.get(&key) {
            Some(Few::One(value)) => Ok(*value),
            Some(values) => Err(values.len()),
            None => Err(0),
        }
    }
}

/// All indexes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Indexes {
    /// NICs by the instance of their offer.
    pub(super) instances: BTreeMap<Guid, NicId>,
    /// Functions by bus and slot.
    pub(super) slots: BTreeMap<(Guid, u32), FunctionId>,
    /// Associated NICs by serial; the first of them is the same one whatever the order in which they came.
    pub(super) nics_by_serial: Multi<Serial, NicRef>,
    /// Associated NICs by serial and permanent MAC.
    pub(super) nics_by_both: Multi<(Serial, MacAddress), NicId>,
    /// All NICs by permanent MAC.
    pub(super) nics_by_mac: Multi<MacAddress, NicId>,
    /// All ports by the serial of their function.
    pub(super) ports_by_serial: Multi<Serial, PortId>,
    /// Ports by permanent MAC, where it is known.
    pub(super) ports_by_mac: Multi<MacAddress, PortId>,
    /// Ports in conflict, by what the conflict is about.
    pub(super) disputed: Multi<Dispute, PortId>,
}

impl Indexes {
    pub(super) const fn new() -> Self {
        Self {
            instances: BTreeMap::new(),
            slots: BTreeMap::new(),
            nics_by_serial: Multi::new(),
            nics_by_both: Multi::new(),
            nics_by_mac: Multi::new(),
            ports_by_serial: Multi::new(),
            ports_by_mac: Multi::new(),
            disputed: Multi::new(),
        }
    }
}

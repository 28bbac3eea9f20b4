//! Where to find whom, so that relating one NIC takes as long in a guest with many as in a guest with few.

use std::collections::BTreeMap;
use std::time::Duration;

use vmbus::{Guid, Serial};

use super::VfPort;
use crate::inventory::{Function, LogEvent, NetDevice, Parent, PciAddress, Snapshot, Subject};

/// Where to find whom in a snapshot, so that nobody has to look through everybody.
pub(super) struct Places<'a> {
    pub(super) snapshot: &'a Snapshot,
    /// Interfaces by their names.
    names: BTreeMap<&'a str, &'a NetDevice>,
    /// Interfaces of VMBus devices.
    pub(super) nics: BTreeMap<Guid, &'a NetDevice>,
    /// Interfaces of functions.
    ports: BTreeMap<PciAddress, Vec<&'a NetDevice>>,
    /// Who has a link of this name below it.
    above: BTreeMap<&'a str, Vec<&'a NetDevice>>,
    /// The Ethernet function on a virtual bus with a serial.
    pub(super) serials: BTreeMap<Serial, &'a Function>,
    /// The newest word about the association of a NIC.
    pub(super) associations: BTreeMap<Guid, Option<Serial>>,
    /// The newest confirmed switch of a NIC: whether to the VF, and when.
    pub(super) switches: BTreeMap<Guid, (bool, Duration)>,
    pub(super) isolated: bool,
}

impl<'a> Places<'a> {
    pub(super) fn of(snapshot: &'a Snapshot) -> Self {
        let mut places = Self {
            snapshot,
            names: BTreeMap::new(),
            nics: BTreeMap::new(),
            ports: BTreeMap::new(),
            above: BTreeMap::new(),
            serials: BTreeMap::new(),
            associations: BTreeMap::new(),
            switches: BTreeMap::new(),
            isolated: false,
        };
        for link in &snapshot.links {
            places.names.entry(&link.name).or_insert(link);
            match link.parent {
                Parent::Vmbus(guid) => _ = places.nics.entry(guid).or_insert(link),
                Parent::Pci(address) => places.ports.entry(address).or_default().push(link),
                Parent::Other(..) | Parent::None => {}
            }
            for lower in &link.lowers {
                places.above.entry(lower).or_default().push(link);
            }
        }
        for function in snapshot.functions.iter().filter(|f| f.bus.is_some() && f.is_ethernet()) {
            if let Some(serial) = function.serial() {
                places.serials.entry(serial).or_insert(function);
            }
        }
        for line in &snapshot.log.lines {
            places.isolated |= line.event == LogEvent::Isolated;
            let Subject::Vmbus(nic) = line.subject else { continue };
            match &line.event {
                LogEvent::Associated(serial) => _ = places.associations.insert(nic, Some(*serial)),
                LogEvent::Dissociated(_) => _ = places.associations.insert(nic, None),
                LogEvent::SwitchedToVf => _ = places.switches.insert(nic, (true, line.at)),
                LogEvent::SwitchedFromVf | LogEvent::Unregistering(_) => {
                    places.switches.insert(nic, (false, line.at));
                }
                _ => {}
            }
        }
        places
    }

    /// The interfaces of a function, by port.
    pub(super) fn ports_of(&self, address: PciAddress) -> impl Iterator<Item = &'a NetDevice> {
        self.ports.get(&address).into_iter().flatten().copied()
    }

    /// The NIC whose interface is a port's master, by either end of the link.
    pub(super) fn joined(&self, port: &NetDevice) -> Option<Guid> {
        let nic = |link: &&NetDevice| match link.parent {
            Parent::Vmbus(guid) => self.snapshot.device(guid).filter(|d| d.is_nic()).map(|_| guid),
            _ => None,
        };
        let named = port.master.iter().chain(&port.uppers);
        let named = named.filter_map(|name| self.names.get(name.as_str()));
        let below = self.above.get(port.name.as_str()).into_iter().flatten();
        named.chain(below).find_map(nic)
    }
}

/// The ports of NICs, by what was done and by what should be.
pub(super) struct Owned {
    pub(super) did: BTreeMap<Guid, usize>,
    pub(super) should: BTreeMap<Guid, usize>,
}

impl Owned {
    pub(super) fn of(ports: &[VfPort<'_>]) -> Self {
        let mut owned = Self { did: BTreeMap::new(), should: BTreeMap::new() };
        for (at, port) in ports.iter().enumerate() {
            if let Some(nic) = port.did {
                owned.did.entry(nic).or_insert(at);
            }
            if let Some((nic, _)) = port.should {
                owned.should.entry(nic).or_insert(at);
            }
        }
        owned
    }
}

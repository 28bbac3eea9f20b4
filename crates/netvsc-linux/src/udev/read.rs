//! Reads what decides, and nothing else.

use std::path::Path;

use netvsc::mac::MacAddress;
use vmbus::message::{NIC_CLASS, VPCI_CLASS};
use vmbus::{Guid, Serial};

use super::place::{Parent, Place};
use super::{AskMac, Identity, LINKED, Role};
use crate::inventory::tree::{Folder, Tree};
use crate::inventory::{PciAddress, RootError, Source, bus_of, mac_hint};
use crate::relation::Sourced;

const VMBUS: &str = "sys/bus/vmbus/devices";
const SLOTS: &str = "sys/bus/pci/slots";
/// How many slots are looked at. A guest has one per function.
const SLOT_LIMIT: usize = 256;
/// How many VMBus devices are looked at.
const DEVICE_LIMIT: usize = 1024;

/// What is known of the MAC of a NIC on VMBus.
enum NicMac {
    /// It is this one.
    Known(MacAddress),
    /// Its GUID holds this one, and no driver says otherwise yet.
    Hint(MacAddress),
    /// Nobody can tell yet.
    NotYet,
}

/// One look at a device.
pub(super) struct Reader<'a, 'b> {
    tree: Tree,
    ask: &'a mut AskMac<'b>,
}

impl<'a, 'b> Reader<'a, 'b> {
    pub(super) fn new(root: Option<&Path>, ask: &'a mut AskMac<'b>) -> Result<Self, RootError> {
        Ok(Self { tree: Tree::open(root)?, ask })
    }

    pub(super) fn touched(&self) -> u32 {
        self.tree.touched()
    }

    pub(super) fn identify(&mut self, device: &str) -> Option<Identity> {
        let place = self.place(device)?;
        let folder = self.tree.folder(&place.path)?;
        // Only Ethernet: an InfiniBand VF may carry the MAC of a NIC as well.
        if self.tree.small(&folder, "type") != Some(1) {
            return None;
        }
        match place.parent {
            Parent::Vmbus(guid) => {
                (self.class(guid)? == NIC_CLASS).then(|| self.synthetic(guid, &folder))
            }
            Parent::Vpci(bus, address) => {
                (self.class(bus)? == VPCI_CLASS).then(|| self.vf(bus, address, &folder))
            }
        }
    }

    /// Writes `change` for every VF that has the MAC of this NIC.
    pub(super) fn retrigger(&mut self, device: &str) -> usize {
        let Some(Place { path, parent: Parent::Vmbus(nic) }) = self.place(device) else { return 0 };
        if self.class(nic) != Some(NIC_CLASS) {
            return 0;
        }
        let folder = self.tree.folder(&path);
        let Some(mac) = folder.and_then(|folder| self.permanent(&folder)) else { return 0 };
        let mut told = 0;
        for name in self.tree.names_at("sys/class/net") {
            let path = format!("sys/class/net/{name}");
            let Some(folder) = self.tree.folder(&path) else { continue };
            let bus = self.tree.link(&folder, "device").and_then(|name| PciAddress::parse(&name));
            if bus.is_none() || self.permanent(&folder) != Some(mac) {
                continue;
            }
            // On a virtual bus, or just a card with the same MAC.
            let vpci = self.place(&name).map(|place| place.parent);
            let Some(Parent::Vpci(bus, _)) = vpci else { continue };
            if self.class(bus) == Some(VPCI_CLASS) {
                told += usize::from(self.tree.put(&format!("{path}/uevent"), b"change").is_ok());
            }
        }
        told
    }

    /// Where a device is, by its path or its name.
    fn place(&mut self, device: &str) -> Option<Place> {
        if device.contains('/') {
            return Place::parse(device);
        }
        let class = self.tree.folder("sys/class/net")?;
        let target = self.tree.target(&class, device)?;
        let from_root = target.trim_start_matches("../");
        Place::parse(&format!("/{from_root}"))
    }

    fn class(&mut self, guid: Guid) -> Option<Guid> {
        let folder = self.tree.folder(&format!("{VMBUS}/{guid}"))?;
        self.class_in(&folder)
    }

    fn class_in(&mut self, folder: &Folder) -> Option<Guid> {
        let text = self.tree.text(folder, "class_id")?;
        text.trim_matches(['{', '}']).parse().ok()
    }

    /// The permanent MAC of an interface.
    fn permanent(&mut self, folder: &Folder) -> Option<MacAddress> {
        let own = self.tree.small(folder, "addr_assign_type") == Some(0);
        let mac = if own {
            self.tree.text(folder, "address").and_then(|text| text.parse().ok())
        } else {
            let index = self.tree.small(folder, "ifindex")?;
            (self.ask)(index)
        };
        mac.filter(|mac| mac.is_unicast())
    }

    fn synthetic(&mut self, guid: Guid, folder: &Folder) -> Identity {
        let lowers = self.tree.names(folder);
        let lowers = lowers.iter().filter(|name| name.starts_with("lower_"));
        let vf = lowers.filter_map(|name| self.lower(folder, name)).next();
        let slot = vf.and_then(|(_, address, _)| self.slot(address));
        let serial = slot.as_deref().and_then(vpci::naming::serial_of);
        Identity {
            role: Role::Synthetic,
            guid,
            nic_index: index(guid),
            slot: None,
            serial: serial.map(|value| Sourced { value, source: LINKED }),
            peer: vf.map(|(bus, ..)| bus),
            peer_mac: vf.and_then(|(.., mac)| mac),
        }
    }

    /// The VF that a link of a NIC leads to.
    fn lower(
        &mut self,
        folder: &Folder,
        name: &str,
    ) -> Option<(Guid, PciAddress, Option<MacAddress>)> {
        let target = self.tree.target(folder, name)?;
        let parts: Vec<&str> = target.split('/').collect();
        let [ancestors @ .., function, "net", _] = parts.as_slice() else { return None };
        let address = PciAddress::parse(function)?;
        let bus = bus_of(ancestors, address)?;
        if self.class(bus)? != VPCI_CLASS {
            return None;
        }
        let lower = self.tree.folder(&format!("{}/{name}", folder.path.trim_start_matches('/')));
        Some((bus, address, lower.and_then(|lower| self.permanent(&lower))))
    }

    fn vf(&mut self, bus: Guid, address: PciAddress, folder: &Folder) -> Identity {
        let slot = self.slot(address);
        let serial: Option<Serial> = slot.as_deref().and_then(vpci::naming::serial_of);
        let (role, peer) = self.decide(folder);
        Identity {
            role,
            guid: bus,
            nic_index: peer.and_then(|(guid, _)| index(guid)),
            slot,
            serial: serial.map(|value| Sourced { value, source: Source::Slot }),
            peer: peer.map(|(guid, _)| guid),
            peer_mac: peer.and_then(|(_, mac)| mac),
        }
    }

    /// The part of a VF's port, and the NIC that it belongs to.
    fn decide(&mut self, folder: &Folder) -> (Role, Option<(Guid, Option<MacAddress>)>) {
        let nics = self.nics();
        let Some(mac) = self.permanent(folder) else {
            // Nothing to compare. If the kernel has joined it, that says enough.
            let linked = self.linked(folder);
            let linked = linked.filter(|guid| nics.iter().any(|(nic, _)| nic == guid));
            return match linked {
                Some(guid) => (Role::Vf, Some((guid, None))),
                None if nics.is_empty() => (Role::Standalone, None),
                None => (Role::Pending, None),
            };
        };
        let same =
            |known: &NicMac| matches!(known, NicMac::Known(nic) | NicMac::Hint(nic) if *nic == mac);
        let mut matching = nics.iter().filter(|(_, known)| same(known)).map(|(guid, _)| *guid);
        match (matching.next(), matching.next()) {
            (Some(guid), None) => (Role::Vf, Some((guid, Some(mac)))),
            // Several NICs with one MAC: the VF of one of them, and only the link can say of which.
            (Some(_), Some(_)) => (Role::Vf, self.linked(folder).map(|guid| (guid, Some(mac)))),
            (None, _) if nics.iter().any(|(_, known)| matches!(known, NicMac::NotYet)) => {
                (Role::Pending, None)
            }
            (None, _) => (Role::Standalone, None),
        }
    }

    /// The VMBus device whose interface is an interface's master.
    fn linked(&mut self, folder: &Folder) -> Option<Guid> {
        let target = self.tree.target(folder, "master")?;
        let parts: Vec<&str> = target.split('/').collect();
        match parts.as_slice() {
            [.., parent, "net", _] => parent.parse().ok(),
            _ => None,
        }
    }

    /// The NICs on VMBus.
    fn nics(&mut self) -> Vec<(Guid, NicMac)> {
        let mut nics = Vec::new();
        for name in self.tree.names_at(VMBUS).into_iter().take(DEVICE_LIMIT) {
            let Ok(guid) = name.parse::<Guid>() else { continue };
            let Some(folder) = self.tree.folder(&format!("{VMBUS}/{name}")) else { continue };
            if self.class_in(&folder) != Some(NIC_CLASS) {
                continue;
            }
            let mac = self.interface(&folder).and_then(|link| self.permanent(&link));
            let mac = match (mac, mac_hint(guid)) {
                (Some(mac), _) => NicMac::Known(mac),
                (None, Some(mac)) => NicMac::Hint(mac),
                (None, None) => NicMac::NotYet,
            };
            nics.push((guid, mac));
        }
        nics
    }

    /// The interface of a NIC, if a driver made one here.
    fn interface(&mut self, nic: &Folder) -> Option<Folder> {
        let net = self.tree.below(nic, "net")?;
        let name = self.tree.names(&net).into_iter().next()?;
        self.tree.below(&net, &name)
    }

    /// The name of the slot in which a function sits.
    fn slot(&mut self, address: PciAddress) -> Option<String> {
        let slots = self.tree.folder(SLOTS)?;
        let names = self.tree.names(&slots);
        names.into_iter().take(SLOT_LIMIT).find(|name| {
            let place = self.tree.text(&slots, &format!("{name}/address"));
            place.and_then(|text| PciAddress::parse_place(&text)) == Some(address.place())
        })
    }
}

/// The index that the GUID of a NIC holds: f8615163-NNNN-1000-2000-aabbccddeeff.
fn index(guid: Guid) -> Option<u16> {
    let bytes = guid.as_bytes();
    let numbered = bytes.get(..4) == Some(&[0xf8, 0x61, 0x51, 0x63])
        && bytes.get(6..10) == Some(&[0x10, 0, 0x20, 0]);
    let index = bytes.get(4..6).and_then(|bytes| bytes.try_into().ok());
    index.filter(|_| numbered).map(u16::from_be_bytes)
}

//! The life of a NIC's VF on the host: announced, offered, asked back or torn away, gone.

use std::time::Duration;

use netvsc::MacAddress;
use vmbus::{Guid, Instant, Serial};
use vpci::Slot;
use vpci::slot::DevFn;

use super::device::{HostPci, HostPort};
use super::{ActError, Host};
use crate::pci::{FunctionSpec, MOST_PORTS, PciService};
use crate::switch::{Offered, Path, SwitchPort, Uncut};
use crate::vf::{self, VfConfig, VfCounters, VfDevice, VfFeatures, VfPace};

/// A VF to be given to a NIC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VfSpec {
    /// Identity of its virtual PCI bus.
    pub instance: Guid,
    /// The serial of the function, and of the NIC's association if that has no other.
    pub serial: Serial,
    /// What the association carries instead, where a host numbers the two differently, as with MANA.
    pub associated: Option<Serial>,
    /// Whether the PCI device is offered at once, so that it can come before the association. Otherwise it is offered when
    /// the NIC service says so.
    pub offer_first: bool,
}

/// Where a NIC's VF is, as the host sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VfPlace {
    /// There is none, and the last one is gone altogether.
    Absent,
    /// On its way in or out.
    Moving,
    /// Offered to the guest.
    Offered,
    /// Offered, and the data path is on it.
    InUse,
}

/// How a VF went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Departure {
    /// The guest was asked and let it go.
    Orderly,
    /// It was torn away, or the guest's time was over.
    Surprise,
}

/// When the NIC hears that its VF is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Disassociation {
    /// Before the PCI device goes, as paravisors do.
    First,
    /// This long after it.
    After(Duration),
}

/// The sum of two sets of counters.
pub(super) fn sum(a: VfCounters, b: VfCounters) -> VfCounters {
    VfCounters {
        tx_seen: a.tx_seen + b.tx_seen,
        tx_confirmed: a.tx_confirmed + b.tx_confirmed,
        tx_dropped: a.tx_dropped + b.tx_dropped,
        tx_perished: a.tx_perished + b.tx_perished,
        tx_taken_back: a.tx_taken_back + b.tx_taken_back,
        rx_handed: a.rx_handed + b.rx_handed,
        rx_perished: a.rx_perished + b.rx_perished,
        rx_too_long: a.rx_too_long + b.rx_too_long,
        rx_filtered: a.rx_filtered + b.rx_filtered,
        tx_checksums: a.tx_checksums + b.tx_checksums,
        tx_large: a.tx_large + b.tx_large,
        tx_tags: a.tx_tags + b.tx_tags,
        faults: a.faults + b.faults,
        starts: a.starts + b.starts,
    }
}

impl Host {
    /// Gives a NIC a VF.
    ///
    /// # Errors
    /// [`ActError`].
    pub fn add_vf(&mut self, nic: usize, spec: VfSpec, now: Instant) -> Result<(), ActError> {
        let function = FunctionSpec::new(vf::description(slot(), spec.serial), vf::BAR_MASKS);
        self.add_ports(&[nic], spec, None, function, now)
    }

    /// Gives a NIC a VF whose port has another MAC than the NIC, which no host should do.
    ///
    /// # Errors
    /// [`ActError`].
    pub fn add_strange_vf(
        &mut self,
        nic: usize,
        spec: VfSpec,
        mac: MacAddress,
        now: Instant,
    ) -> Result<(), ActError> {
        let function = FunctionSpec::new(vf::description(slot(), spec.serial), vf::BAR_MASKS);
        self.add_ports(&[nic], spec, Some(mac), function, now)
    }

    /// Gives several NICs a VF together: one function with a port for each, in their order, as MANA has it. All of them hear
    /// of the same serial, and the function goes for all of them at once.
    ///
    /// # Errors
    /// [`ActError`].
    pub fn add_shared_vf(
        &mut self,
        nics: &[usize],
        spec: VfSpec,
        now: Instant,
    ) -> Result<(), ActError> {
        let mac = |nic: &usize| Some(self.nics.get(*nic)?.service.mac());
        let macs: Vec<MacAddress> = nics.iter().filter_map(mac).collect();
        let function = FunctionSpec::multi_port(slot(), spec.serial, &macs);
        self.add_ports(nics, spec, None, function, now)
    }

    fn add_ports(
        &mut self,
        nics: &[usize],
        spec: VfSpec,
        mac: Option<MacAddress>,
        function: FunctionSpec,
        now: Instant,
    ) -> Result<(), ActError> {
        if !(1..=MOST_PORTS).contains(&nics.len()) {
            return Err(ActError::Ports(nics.len()));
        }
        if self.device(spec.instance).is_some() {
            return Err(ActError::DevicePresent(spec.instance));
        }
        let mut ports: Vec<HostPort> = Vec::new();
        for nic in nics {
            let entry = self.nic(*nic)?;
            if entry.vf.is_some() || ports.iter().any(|port| port.nic == *nic) {
                return Err(ActError::VfPresent(*nic));
            }
            let mac = mac.unwrap_or(entry.service.mac());
            let features = match self.elsewhere_of == Some(*nic) {
                true => VfFeatures::ELSEWHERE,
                false => self.vf_features,
            };
            let config = VfConfig { mac, link: true, features };
            let device = match &mut self.registers {
                None => VfDevice::new(config, self.memory.clone()),
                Some(pool) => {
                    let taken = self.devices.iter().flat_map(|device| &device.ports).chain(&ports);
                    let page = pool.page(taken.map(|port| port.device.window().registers));
                    let page = page.ok_or(ActError::NoRegisters)?;
                    VfDevice::with_registers(config, self.memory.clone(), page)
                }
            };
            ports.push(HostPort { nic: *nic, device });
        }
        let mut service = PciService::new(self.pci_policy.clone());
        service.add_device(function, now)?;
        self.devices.push(HostPci::new(spec.instance, service, ports));
        for nic in nics {
            let Some(entry) = self.nics.get_mut(*nic) else { continue };
            if let Some(port) = self.switch.port_mut(entry.port) {
                port.set_vf_cuts(self.elsewhere_of == Some(*nic));
            }
            entry.vf = Some(spec.instance);
            entry.service.vf_added(spec.associated.unwrap_or(spec.serial), now);
            entry.dirty = true;
        }
        if spec.offer_first {
            self.offer_device(spec.instance, now);
        }
        Ok(())
    }

    /// Offers the PCI device of a NIC's VF, if that has not happened yet.
    pub(super) fn offer_vf(&mut self, nic: usize, now: Instant) {
        if let Some(bus) = self.nics.get(nic).and_then(|nic| nic.vf) {
            self.offer_device(bus, now);
        }
    }

    /// Where in the list of devices the VF of a NIC is.
    fn vf_at(&self, nic: usize) -> Result<usize, ActError> {
        let bus = self.nics.get(nic).ok_or(ActError::NoNic(nic))?.vf.ok_or(ActError::NoVf(nic))?;
        let at = self.devices.iter().position(|device| device.instance == bus);
        at.ok_or(ActError::NoVf(nic))
    }

    /// Asks the guest for a NIC's VF, and takes it once the guest has let it go or its time is over. If others share it,
    /// they lose it, too.
    ///
    /// # Errors
    /// [`ActError`].
    pub fn eject_vf(
        &mut self,
        nic: usize,
        then: Disassociation,
        now: Instant,
    ) -> Result<(), ActError> {
        let at = self.vf_at(nic)?;
        let device = self.devices.get_mut(at).ok_or(ActError::NoVf(nic))?;
        device.eject(then, now).ok_or(ActError::NoVf(nic))?;
        if then == Disassociation::First {
            self.disassociate(at);
        }
        Ok(())
    }

    /// Tears a NIC's VF away without a word before, also from those that share it.
    ///
    /// # Errors
    /// [`ActError`].
    pub fn tear_away_vf(
        &mut self,
        nic: usize,
        then: Disassociation,
        now: Instant,
    ) -> Result<(), ActError> {
        let at = self.vf_at(nic)?;
        self.tear_away(at, then, now).ok_or(ActError::NoVf(nic))
    }

    /// A frame that the guest sent over the interface that carries its VF's frames
    /// ([`VfFeatures::ELSEWHERE`](crate::vf::VfFeatures::ELSEWHERE)). One whose VF is gone meanwhile goes on like any other of the NIC's:
    /// for how long, is the caller's to say.
    pub fn vf_transmit(&mut self, nic: usize, frame: &[u8], now: Instant) -> Offered {
        if let Some(port) = self.elsewhere(nic) {
            return port.accept_from_guest(Path::Vf, frame, now);
        }
        let port = self.nics.get(nic).and_then(|nic| self.switch.port_mut(nic.port));
        port.map_or(Offered::Busy, |port| port.accept_from_guest(Path::Synthetic, frame, now))
    }

    /// The same for a TCP segment that the guest has not cut, where the peer of the NIC's port does so
    /// ([`Host::set_peer_cuts`]).
    pub fn vf_transmit_uncut(
        &mut self,
        nic: usize,
        segment: &[u8],
        uncut: Uncut,
        now: Instant,
    ) -> Offered {
        if let Some(port) = self.elsewhere(nic) {
            return port.accept_uncut(Path::Vf, segment, uncut, now);
        }
        let port = self.nics.get(nic).and_then(|nic| self.switch.port_mut(nic.port));
        port.map_or(Offered::Busy, |port| port.accept_uncut(Path::Synthetic, segment, uncut, now))
    }

    /// The next frame for the guest on such a VF, and how it is to be cut if it is a segment of the peer's. Give the buffer back
    /// with [`Host::recycle`].
    pub fn vf_receive(&mut self, nic: usize, now: Instant) -> Option<(Vec<u8>, Option<Uncut>)> {
        self.elsewhere(nic)?.next_for_vf(now).map(|queued| (queued.frame, queued.uncut))
    }

    /// Whether a NIC has such a VF, offered or on its way out.
    #[must_use]
    pub fn has_vf_elsewhere(&mut self, nic: usize) -> bool {
        self.elsewhere(nic).is_some()
    }

    fn elsewhere(&mut self, nic: usize) -> Option<&mut SwitchPort> {
        let at = self.vf_at(nic).ok()?;
        let device = self.devices.get(at)?.port_of(nic)?;
        let there = device.is_elsewhere() && !device.is_gone();
        let port = self.nics.get(nic).filter(|_| there)?.port;
        self.switch.port_mut(port)
    }

    /// Sets the link of a NIC's VF.
    ///
    /// # Errors
    /// [`ActError::NoVf`] if it has none.
    pub fn set_vf_link(&mut self, nic: usize, up: bool) -> Result<(), ActError> {
        let at = self.vf_at(nic)?;
        let port = self.devices.get_mut(at).and_then(|device| device.port_of_mut(nic));
        port.ok_or(ActError::NoVf(nic))?.set_link(up);
        Ok(())
    }

    /// Sets how a NIC's VF deals with what it is to send.
    ///
    /// # Errors
    /// [`ActError::NoVf`] if it has none.
    pub fn set_vf_pace(&mut self, nic: usize, pace: VfPace) -> Result<(), ActError> {
        let at = self.vf_at(nic)?;
        let port = self.devices.get_mut(at).and_then(|device| device.port_of_mut(nic));
        port.ok_or(ActError::NoVf(nic))?.set_pace(pace);
        Ok(())
    }
}

/// Where a VF sits on its bus.
fn slot() -> Slot {
    DevFn(0).slot()
}

//! A PCI bus of the host with what is on it, from its offer to its end; and devices that belong to no NIC.

use vmbus::message::VPCI_CLASS;
use vmbus::time::earliest;
use vmbus::{Guid, Instant, Serial};
use vpci::Slot;

use super::vf::{Departure, Disassociation, sum};
use super::{ActError, Host, HostEvent, Owner};
use crate::bus::{DeviceId, HostChannel, OfferSpec};
use crate::pci::{FunctionSpec, PciEvent, PciService};
use crate::switch::Path;
use crate::vf::{VfDevice, VfWindow};

/// A PCI device that belongs to no NIC: a bus and the functions on it.
#[derive(Clone, Debug)]
pub struct DeviceSpec {
    /// Identity of its bus.
    pub instance: Guid,
    /// Its functions, each in a slot of its own.
    pub functions: Vec<FunctionSpec>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// Made; it is not offered yet.
    Announced,
    /// Offered.
    Offered { device: DeviceId },
    /// The guest was asked for it.
    Ejecting { device: DeviceId, then: Disassociation },
    /// Rescinded.
    Leaving { departure: Departure },
}

/// A port of a network function, and whose it is.
pub(super) struct HostPort {
    pub(super) nic: usize,
    pub(super) device: VfDevice,
}

/// A PCI bus, with the ports of the network function on it if there is one.
pub(super) struct HostPci {
    pub(super) instance: Guid,
    /// Serial of its first function.
    pub(super) serial: Serial,
    pub(super) service: PciService,
    pub(super) ports: Vec<HostPort>,
    pub(super) phase: Phase,
    /// When the NICs hear of its end, if that is still to come.
    pub(super) disassociate_at: Option<Instant>,
    pub(super) released: bool,
    pub(super) dirty: bool,
    /// The guest did not give a function up in time.
    overdue: bool,
}

impl HostPci {
    pub(super) fn new(instance: Guid, service: PciService, ports: Vec<HostPort>) -> Self {
        let serial = service.functions().next().map_or(Serial(0), |first| first.serial);
        Self {
            instance,
            serial,
            service,
            ports,
            phase: Phase::Announced,
            disassociate_at: None,
            released: false,
            dirty: true,
            overdue: false,
        }
    }

    /// The device of a NIC's port.
    pub(super) fn port_of(&self, nic: usize) -> Option<&VfDevice> {
        self.ports.iter().find(|port| port.nic == nic).map(|port| &port.device)
    }

    pub(super) fn port_of_mut(&mut self, nic: usize) -> Option<&mut VfDevice> {
        self.ports.iter_mut().find(|port| port.nic == nic).map(|port| &mut port.device)
    }

    pub(super) fn is_offered(&self) -> bool {
        matches!(self.phase, Phase::Offered { .. })
    }

    /// The windows of ports that are there.
    pub(super) fn windows(&self) -> Vec<VfWindow> {
        let there = self.ports.iter().filter(|port| !port.device.is_gone());
        there.map(|port| port.device.window()).collect()
    }

    pub(super) fn opened(&mut self, channel: HostChannel) {
        self.service.open(channel);
        self.dirty = true;
    }

    pub(super) fn closed(&mut self) {
        self.service.close();
        self.dirty = true;
    }

    pub(super) fn poll_deadline(&self) -> Option<Instant> {
        earliest(self.service.poll_deadline(), self.disassociate_at)
    }

    /// Asks the guest for every function. The device it was offered as, or `None` if it is not offered.
    pub(super) fn eject(&mut self, then: Disassociation, now: Instant) -> Option<()> {
        let Phase::Offered { device } = self.phase else { return None };
        self.phase = Phase::Ejecting { device, then };
        let slots: Vec<Slot> = self.service.functions().map(|function| function.slot).collect();
        for slot in slots {
            self.service.eject(slot, now);
        }
        self.dirty = true;
        Some(())
    }

    /// Takes up what the service has to say; what a guest broke, if it did.
    fn poll_service(&mut self, now: Instant) -> Option<String> {
        let due = self.service.poll_deadline().is_some_and(|at| at <= now);
        if due || std::mem::take(&mut self.dirty) {
            self.service.poll(now);
        }
        let mut broken = None;
        while let Some(event) = self.service.poll_event() {
            match event {
                PciEvent::EjectOverdue { .. } => self.overdue = true,
                PciEvent::Failed(error) => broken = Some(error.to_string()),
                _ => {}
            }
        }
        broken
    }

    /// How the guest gave the functions up that it was asked for, once none is left.
    fn ejected(&self) -> Option<(DeviceId, Departure, Disassociation)> {
        let Phase::Ejecting { device, then } = self.phase else { return None };
        let empty = self.service.functions().next().is_none();
        let departure = if self.overdue { Departure::Surprise } else { Departure::Orderly };
        empty.then_some((device, departure, then))
    }
}

impl Host {
    /// Offers a PCI device that belongs to no NIC.
    ///
    /// # Errors
    /// [`ActError::DevicePresent`], [`ActError::Slot`].
    pub fn add_device(&mut self, spec: DeviceSpec, now: Instant) -> Result<(), ActError> {
        if self.device(spec.instance).is_some() {
            return Err(ActError::DevicePresent(spec.instance));
        }
        let mut service = PciService::new(self.pci_policy.clone());
        for function in spec.functions {
            service.add_device(function, now)?;
        }
        self.devices.push(HostPci::new(spec.instance, service, Vec::new()));
        self.offer_device(spec.instance, now);
        Ok(())
    }

    /// Asks the guest for all functions of a PCI device that belongs to no NIC, and takes it once the guest has let them
    /// go or its time is over.
    ///
    /// # Errors
    /// [`ActError::NoDevice`].
    pub fn eject_device(&mut self, instance: Guid, now: Instant) -> Result<(), ActError> {
        let device = self.device_mut(instance).filter(|device| device.ports.is_empty());
        let ejected = device.and_then(|device| device.eject(Disassociation::First, now));
        ejected.ok_or(ActError::NoDevice(instance))
    }

    /// Tears a PCI device that belongs to no NIC away without a word before.
    ///
    /// # Errors
    /// [`ActError::NoDevice`].
    pub fn tear_away_device(&mut self, instance: Guid, now: Instant) -> Result<(), ActError> {
        let at = self.devices.iter().position(|it| it.instance == instance && it.ports.is_empty());
        let at = at.ok_or(ActError::NoDevice(instance))?;
        self.tear_away(at, Disassociation::First, now).ok_or(ActError::NoDevice(instance))
    }

    /// Whether a PCI device is there, on its way in or out included.
    #[must_use]
    pub fn has_device(&self, instance: Guid) -> bool {
        self.device(instance).is_some()
    }

    /// Offers a PCI device, if that has not happened yet.
    pub(super) fn offer_device(&mut self, instance: Guid, now: Instant) {
        let offer = OfferSpec::new(VPCI_CLASS, instance, 1);
        let Some(it) = self.devices.iter_mut().find(|device| device.instance == instance) else {
            return;
        };
        if it.phase != Phase::Announced {
            return;
        }
        let device = self.bus.offer(offer, now);
        it.phase = Phase::Offered { device };
        self.owners.insert(device, Owner::Pci(instance));
        for port in &it.ports {
            self.events.push_back(HostEvent::VfOffered { nic: port.nic });
        }
    }

    /// Takes the device at a place without asking; `None` if it is not offered.
    pub(super) fn tear_away(
        &mut self,
        at: usize,
        then: Disassociation,
        now: Instant,
    ) -> Option<()> {
        let Phase::Offered { device } = self.devices.get(at)?.phase else { return None };
        self.take(at, device, Departure::Surprise, then, now);
        Some(())
    }

    /// A device goes: its ports, its PCI bus, and at some time the association of its NICs.
    fn take(
        &mut self,
        at: usize,
        bus: DeviceId,
        departure: Departure,
        then: Disassociation,
        now: Instant,
    ) {
        let Some(device) = self.devices.get_mut(at) else { return };
        device.phase = Phase::Leaving { departure };
        for HostPort { nic, device } in &mut device.ports {
            let port = self.nics.get(*nic).map(|nic| nic.port);
            if let Some(port) = port.and_then(|port| self.switch.port_mut(port)) {
                device.tear_away(port);
            }
        }
        device.service.close();
        match (departure, then) {
            // Already done when the guest was asked.
            (Departure::Orderly, Disassociation::First) => {}
            (Departure::Surprise, Disassociation::First) => self.disassociate(at),
            (_, Disassociation::After(span)) => device.disassociate_at = Some(now + span),
        }
        self.bus.rescind(bus, now);
    }

    /// The NICs of a device hear that they have no VF any more.
    pub(super) fn disassociate(&mut self, at: usize) {
        let Some(device) = self.devices.get(at) else { return };
        for port in &device.ports {
            if let Some(nic) = self.nics.get_mut(port.nic) {
                nic.service.vf_lost();
                nic.dirty = true;
            }
        }
    }

    pub(super) fn poll_device(&mut self, at: usize, now: Instant) {
        let Some(it) = self.devices.get_mut(at) else { return };
        if it.disassociate_at.is_some_and(|due| due <= now) {
            it.disassociate_at = None;
            self.disassociate(at);
        }
        let Self { devices, nics, switch, events, .. } = self;
        let Some(it) = devices.get_mut(at) else { return };
        for HostPort { nic, device } in &mut it.ports {
            let port = nics.get(*nic).and_then(|nic| switch.port_mut(nic.port));
            let Some(port) = port else { continue };
            let rang = device.take_doorbell();
            if rang || port.take_wake(Path::Vf, now) {
                device.poll(now, port);
            }
        }
        if let Some(why) = it.poll_service(now) {
            events.push_back(match it.ports.first() {
                Some(port) => HostEvent::Failed { nic: port.nic, why },
                None => HostEvent::DeviceFailed { instance: it.instance, why },
            });
        }
        if let Some((device, departure, then)) = it.ejected() {
            self.take(at, device, departure, then, now);
        }
    }

    /// Forgets devices of which neither the bus nor an association is left.
    pub(super) fn forget_devices(&mut self) {
        let Self { devices, nics, events, .. } = self;
        devices.retain(|device| {
            let Phase::Leaving { departure } = device.phase else { return true };
            if !device.released || device.disassociate_at.is_some() {
                return true;
            }
            if device.ports.is_empty() {
                let instance = device.instance;
                events.push_back(HostEvent::DeviceGone { instance, departure });
            }
            for port in &device.ports {
                let Some(nic) = nics.get_mut(port.nic) else { continue };
                let counters = port.device.counters();
                match departure {
                    Departure::Orderly => {
                        nic.perished.sent_orderly += counters.tx_perished;
                        nic.perished.received_orderly += counters.rx_perished;
                    }
                    Departure::Surprise => {
                        nic.perished.sent_surprise += counters.tx_perished;
                        nic.perished.received_surprise += counters.rx_perished;
                    }
                }
                nic.past_vfs = sum(nic.past_vfs, counters);
                nic.vf = None;
                events.push_back(HostEvent::VfGone { nic: port.nic, departure });
            }
            false
        });
    }
}

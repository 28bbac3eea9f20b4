//! The life of a NIC's VF on the host: announced, offered, asked back or torn away, gone.

use std::time::Duration;

use vmbus::message::VPCI_CLASS;
use vmbus::time::earliest;
use vmbus::{Guid, Instant, Serial};
use vpci::Slot;
use vpci::message::Description;
use vpci::slot::DevFn;

use super::{ActError, Host, HostEvent, Owner};
use crate::bus::{DeviceId, HostChannel, OfferSpec};
use crate::pci::{PciEvent, PciService};
use crate::vf::{self, VfConfig, VfCounters, VfDevice, VfWindow};

/// A VF to be given to a NIC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VfSpec {
    /// Identity of its virtual PCI bus.
    pub instance: Guid,
    /// The serial that both the NIC's association and the function carry.
    pub serial: Serial,
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

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// The NIC knows of it; its PCI device is not offered yet.
    Announced,
    /// Its PCI device is offered.
    Offered { device: DeviceId },
    /// The guest was asked for it.
    Ejecting { device: DeviceId, then: Disassociation },
    /// Its PCI device is rescinded.
    Leaving { departure: Departure },
}

/// A VF and its PCI bus.
pub(super) struct HostVf {
    spec: VfSpec,
    slot: Slot,
    service: PciService,
    device: VfDevice,
    phase: Phase,
    /// When the NIC hears of its end, if that is still to come.
    disassociate_at: Option<Instant>,
    released: bool,
    pub(super) dirty: bool,
}

impl HostVf {
    pub(super) fn instance(&self) -> Guid {
        self.spec.instance
    }

    pub(super) fn serial(&self) -> Serial {
        self.spec.serial
    }

    pub(super) fn counters(&self) -> VfCounters {
        self.device.counters()
    }

    pub(super) fn is_offered(&self) -> bool {
        matches!(self.phase, Phase::Offered { .. })
    }

    /// The window of a device that is there.
    pub(super) fn window(&self) -> Option<VfWindow> {
        (!self.device.is_gone()).then(|| self.device.window())
    }

    pub(super) fn opened(&mut self, channel: HostChannel) {
        self.service.open(channel);
        self.dirty = true;
    }

    pub(super) fn closed(&mut self) {
        self.service.close();
    }

    pub(super) fn poll_deadline(&self) -> Option<Instant> {
        earliest(self.service.poll_deadline(), self.disassociate_at)
    }
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
        let policy = self.pci_policy.clone();
        let memory = self.memory.clone();
        let entry = self.nics.get_mut(nic).ok_or(ActError::NoNic(nic))?;
        if entry.vf.is_some() {
            return Err(ActError::VfPresent(nic));
        }
        let config = VfConfig { mac: entry.service.mac(), link: true };
        let description: Description = vf::description(DevFn(0).slot(), spec.serial);
        let mut service = PciService::new(policy);
        // A bus without functions has every slot free.
        let added = service.add_function(description, vf::BAR_MASKS, now);
        debug_assert!(added.is_ok());
        entry.vf = Some(HostVf {
            slot: description.slot,
            service,
            device: VfDevice::new(config, memory),
            phase: Phase::Announced,
            disassociate_at: None,
            released: false,
            dirty: true,
            spec,
        });
        entry.service.vf_added(spec.serial, now);
        entry.dirty = true;
        if spec.offer_first {
            self.offer_vf(nic, now);
        }
        Ok(())
    }

    /// Offers the PCI device of a NIC's VF, if that has not happened yet.
    pub(super) fn offer_vf(&mut self, nic: usize, now: Instant) {
        let Some(vf) = self.nics.get_mut(nic).and_then(|nic| nic.vf.as_mut()) else { return };
        if vf.phase != Phase::Announced {
            return;
        }
        let spec = OfferSpec::new(VPCI_CLASS, vf.spec.instance, 1);
        let device = self.bus.offer(spec, now);
        vf.phase = Phase::Offered { device };
        self.owners.insert(device, Owner::Vf(nic));
        self.events.push_back(HostEvent::VfOffered { nic });
    }

    /// Asks the guest for a NIC's VF, and takes it once the guest has let it go or its time is over.
    ///
    /// # Errors
    /// [`ActError`].
    pub fn eject_vf(
        &mut self,
        nic: usize,
        then: Disassociation,
        now: Instant,
    ) -> Result<(), ActError> {
        let entry = self.nics.get_mut(nic).ok_or(ActError::NoNic(nic))?;
        let vf = entry.vf.as_mut().ok_or(ActError::NoVf(nic))?;
        let Phase::Offered { device } = vf.phase else { return Err(ActError::NoVf(nic)) };
        vf.phase = Phase::Ejecting { device, then };
        vf.service.eject(vf.slot, now);
        vf.dirty = true;
        if then == Disassociation::First {
            entry.service.vf_lost();
            entry.dirty = true;
        }
        Ok(())
    }

    /// Tears a NIC's VF away without a word before.
    ///
    /// # Errors
    /// [`ActError`].
    pub fn tear_away_vf(
        &mut self,
        nic: usize,
        then: Disassociation,
        now: Instant,
    ) -> Result<(), ActError> {
        let entry = self.nics.get(nic).ok_or(ActError::NoNic(nic))?;
        let vf = entry.vf.as_ref().ok_or(ActError::NoVf(nic))?;
        let Phase::Offered { device } = vf.phase else { return Err(ActError::NoVf(nic)) };
        self.take_vf(nic, device, Departure::Surprise, then, now);
        Ok(())
    }

    /// Sets the link of a NIC's VF.
    ///
    /// # Errors
    /// [`ActError::NoVf`] if it has none.
    pub fn set_vf_link(&mut self, nic: usize, up: bool) -> Result<(), ActError> {
        let entry = self.nics.get_mut(nic).ok_or(ActError::NoNic(nic))?;
        entry.vf.as_mut().ok_or(ActError::NoVf(nic))?.device.set_link(up);
        Ok(())
    }

    /// The VF goes: device, PCI bus, and at some time the association.
    fn take_vf(
        &mut self,
        nic: usize,
        bus: DeviceId,
        departure: Departure,
        then: Disassociation,
        now: Instant,
    ) {
        let Some(entry) = self.nics.get_mut(nic) else { return };
        let Some(vf) = &mut entry.vf else { return };
        vf.phase = Phase::Leaving { departure };
        if let Some(port) = self.switch.port_mut(entry.port) {
            vf.device.tear_away(port);
        }
        vf.service.close();
        match (departure, then) {
            // Already done when the guest was asked.
            (Departure::Orderly, Disassociation::First) => {}
            (Departure::Surprise, Disassociation::First) => {
                entry.service.vf_lost();
                entry.dirty = true;
            }
            (_, Disassociation::After(span)) => vf.disassociate_at = Some(now + span),
        }
        self.bus.rescind(bus, now);
    }

    pub(super) fn poll_vf(&mut self, number: usize, now: Instant) {
        let Some(nic) = self.nics.get_mut(number) else { return };
        let Some(port) = self.switch.port_mut(nic.port) else { return };
        let Some(vf) = &mut nic.vf else { return };
        if vf.disassociate_at.is_some_and(|at| at <= now) {
            vf.disassociate_at = None;
            nic.service.vf_lost();
            nic.dirty = true;
        }
        let rang = vf.device.take_doorbell();
        if rang || port.take_wake(netvsc::Path::Vf, now) {
            vf.device.poll(now, port);
        }
        let due = vf.service.poll_deadline().is_some_and(|at| at <= now);
        if due || std::mem::take(&mut vf.dirty) {
            vf.service.poll(now);
        }
        let mut ejected = None;
        while let Some(event) = vf.service.poll_event() {
            let outcome = match event {
                PciEvent::EjectCompleted { .. } => Departure::Orderly,
                PciEvent::EjectOverdue { .. } => Departure::Surprise,
                PciEvent::Failed(error) => {
                    let why = error.to_string();
                    self.events.push_back(HostEvent::Failed { nic: number, why });
                    continue;
                }
                _ => continue,
            };
            if let Phase::Ejecting { device, then } = vf.phase {
                ejected = Some((device, outcome, then));
            }
        }
        if let Some((device, departure, then)) = ejected {
            self.take_vf(number, device, departure, then, now);
        }
        self.forget_vf(number);
    }

    /// The guest has released the channel of a VF's bus.
    pub(super) fn vf_released(&mut self, nic: usize) {
        if let Some(vf) = self.nics.get_mut(nic).and_then(|nic| nic.vf.as_mut()) {
            vf.released = true;
        }
        self.forget_vf(nic);
    }

    /// Forgets a VF of which neither its bus nor its association is left.
    fn forget_vf(&mut self, number: usize) {
        let Some(nic) = self.nics.get_mut(number) else { return };
        let Some(vf) = &nic.vf else { return };
        let Phase::Leaving { departure } = vf.phase else { return };
        if !vf.released || vf.disassociate_at.is_some() {
            return;
        }
        let counters = vf.counters();
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
        self.events.push_back(HostEvent::VfGone { nic: number, departure });
    }
}

//! A guest that goes to sleep and wakes up: it lets go of its VFs, stops its NICs, turns its PCI buses off, and takes leave of the host;
//! later it makes contact again, and its devices go on with what they had (PROTOCOL §5).
//!
//! What the host does not offer again was taken away meanwhile. A device that was just being started, and one whose host does not
//! answer in time, is started from its beginning.

use std::time::Duration;

use netvsc::failover::Cause;
use vmbus::bus::Offer;
use vmbus::memory::SharedPages;
use vmbus::{Channel, ChannelId, Guid, Instant};
use vpci::bus::Function;

use super::nic::NicDevice;
use super::pci::{NETWORK, PciDevice};
use super::{Guest, Machine};

/// How long NICs and buses may take to stop: longer than a NIC waits for a host that does not let go, and then once more.
const PATIENCE: Duration = Duration::from_secs(25);

/// How far a guest is on its way to sleep and back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Sleep {
    #[default]
    Awake,
    /// NICs let go of their VFs, until then.
    LettingGo {
        until: Instant,
    },
    /// NICs and buses stop and their channels close, until then.
    Stopping {
        until: Instant,
    },
    /// The host has been told farewell.
    Leaving,
    Asleep,
    /// Contact was made again; devices that are not offered again are gone.
    Waking,
}

impl<M: Machine> Guest<M> {
    /// Goes to sleep. False if there is no connection, or it is on its way already. [`Guest::is_asleep`] tells when it is there.
    pub fn suspend(&mut self, now: Instant) -> bool {
        if self.sleep != Sleep::Awake || self.bus.version().is_none() {
            return false;
        }
        for nic in &mut self.nics {
            if nic.bound.is_some()
                && let Some(adapter) = nic.adapter_mut()
            {
                adapter.release(Cause::Unbound, now);
                nic.rung = true;
            }
        }
        self.sleep = Sleep::LettingGo { until: now + PATIENCE };
        true
    }

    /// Whether it sleeps: the host knows nothing of it, and nothing wakes it but [`Guest::resume`].
    #[must_use]
    pub fn is_asleep(&self) -> bool {
        self.sleep == Sleep::Asleep
    }

    /// Whether it is on its way to sleep or back.
    #[must_use]
    pub fn is_drowsy(&self) -> bool {
        self.sleep != Sleep::Awake
    }

    /// Whether it takes no VF into use because it is to let go of all.
    pub(super) fn lets_go(&self) -> bool {
        matches!(self.sleep, Sleep::LettingGo { .. } | Sleep::Stopping { .. })
    }

    /// Wakes up. False if it does not sleep.
    pub fn resume(&mut self, now: Instant) -> bool {
        if self.sleep != Sleep::Asleep {
            return false;
        }
        self.sleep = Sleep::Waking;
        if let Err(error) = self.bus.restart(now) {
            self.fail(format!("no contact after the sleep: {error}"));
        }
        true
    }

    /// When going to sleep has taken too long.
    pub(super) fn sleep_deadline(&self) -> Option<Instant> {
        match self.sleep {
            Sleep::LettingGo { until } | Sleep::Stopping { until } => Some(until),
            Sleep::Awake | Sleep::Leaving | Sleep::Asleep | Sleep::Waking => None,
        }
    }

    /// Goes on with going to sleep. True if anything was done.
    pub(super) fn drowse(&mut self, now: Instant) -> bool {
        match self.sleep {
            Sleep::LettingGo { until } => {
                let held = self.nics.iter().any(|nic| nic.bound.is_some());
                if held && now < until {
                    return false;
                }
                self.stop_devices(now);
                self.sleep = Sleep::Stopping { until: now + PATIENCE };
            }
            Sleep::Stopping { until } => {
                let stopping = self.nics.iter().any(NicDevice::is_drowsy)
                    || self.buses.values().any(PciDevice::is_drowsy);
                if stopping && now < until {
                    return false;
                }
                self.take_leave(now);
            }
            Sleep::Awake | Sleep::Leaving | Sleep::Asleep | Sleep::Waking => return false,
        }
        true
    }

    /// No NIC has a VF any more: everything stops.
    fn stop_devices(&mut self, now: Instant) {
        for number in 0..self.nics.len() {
            let Some(nic) = self.nics.get_mut(number) else { continue };
            let Some(id) = nic.fall_asleep(now).then_some(nic.id).flatten() else { continue };
            // What the host said on the channel it says again on the next one.
            let stale = self.pairing.disassociated(id, now).err();
            self.note_stale(stale);
        }
        let names: Vec<Guid> = self.buses.keys().copied().collect();
        for name in names {
            self.leave_ports(name, now);
            let Some(device) = self.buses.get_mut(&name) else { continue };
            if !device.fall_asleep(now) {
                self.bus_rescinded(name, now);
            }
        }
    }

    /// Everything has stopped, or has had its time: the connection ends.
    fn take_leave(&mut self, now: Instant) {
        for number in 0..self.nics.len() {
            let Some(nic) = self.nics.get_mut(number) else { continue };
            if !nic.is_asleep() && nic.has_channel() {
                self.nic_rescinded(number, now);
            }
            if let Some(nic) = self.nics.get_mut(number) {
                nic.lose_channel();
            }
        }
        let names: Vec<Guid> = self.buses.keys().copied().collect();
        for name in names {
            if self.buses.get(&name).is_some_and(|device| !device.is_asleep()) {
                self.bus_rescinded(name, now);
            }
        }
        for (_, (_, connection)) in std::mem::take(&mut self.owners) {
            self.machine.forget_doorbell(connection);
        }
        self.sleep = Sleep::Leaving;
        if let Err(error) = self.bus.unload(now) {
            self.fail(format!("no farewell before the sleep: {error}"));
        }
    }

    /// The host has forgotten the guest, or is past its time to say so.
    pub(super) fn left_host(&mut self) {
        if self.sleep == Sleep::Leaving {
            self.sleep = Sleep::Asleep;
        }
    }

    /// All devices were offered that there are: those that slept and were not are gone.
    pub(super) fn all_offered(&mut self, now: Instant) {
        if self.sleep != Sleep::Waking {
            return;
        }
        self.sleep = Sleep::Awake;
        for number in 0..self.nics.len() {
            if self.nics.get(number).is_some_and(NicDevice::is_asleep) {
                self.nic_rescinded(number, now);
            }
        }
        let names: Vec<Guid> = self.buses.keys().copied().collect();
        for name in names {
            if self.buses.get(&name).is_some_and(PciDevice::is_asleep) {
                self.bus_rescinded(name, now);
            }
        }
    }

    /// A device that slept is offered again, and its channel is being opened: it goes on with that. Gives the link back if it did not
    /// sleep.
    pub(super) fn wake_nic(
        &mut self,
        number: usize,
        channel: ChannelId,
        link: Channel<SharedPages, M::Doorbell>,
    ) -> Option<Channel<SharedPages, M::Doorbell>> {
        match self.nics.get_mut(number) {
            Some(nic) if nic.is_asleep() => {
                nic.wake(channel, link);
                None
            }
            _ => Some(link),
        }
    }

    /// The same for a PCI bus.
    pub(super) fn wake_bus(
        &mut self,
        offer: &Offer,
        link: Channel<SharedPages, M::Doorbell>,
    ) -> Option<Channel<SharedPages, M::Doorbell>> {
        match self.buses.get_mut(&offer.instance) {
            Some(device) if device.is_asleep() => {
                device.wake(offer.channel, link);
                None
            }
            _ => Some(link),
        }
    }

    /// The drivers of a bus stop: their ports leave.
    fn leave_ports(&mut self, name: Guid, now: Instant) {
        let Some(device) = self.buses.get_mut(&name) else { return };
        for port in device.take_ports() {
            let stale = self.pairing.port_left(port, now).err();
            self.note_stale(stale);
        }
    }

    /// A bus is off: its channel closes.
    pub(super) fn bus_suspended(&mut self, name: Guid, now: Instant) {
        let Some(channel) = self.buses.get(&name).map(PciDevice::channel) else { return };
        if let Err(error) = self.bus.close(channel, now) {
            tracing::debug!(%error, "the channel of a bus that sleeps");
        }
    }

    /// A channel is closed.
    pub(super) fn bus_closed(&mut self, name: Guid) {
        if let Some(device) = self.buses.get_mut(&name) {
            device.closed();
        }
    }

    /// A function is there again after the sleep: its driver starts.
    pub(super) fn function_resumed(&mut self, bus: Guid, function: &Function, now: Instant) {
        let known = self.buses.get(&bus).and_then(|device| device.name_of(function.id));
        let Some(id) = known.filter(|_| function.description.class == NETWORK) else { return };
        let ports = self.open_ports(bus, function, id, now);
        if let Some(device) = self.buses.get_mut(&bus) {
            device.set_ports(function.id, ports);
        }
    }
}

//! The life of a virtual PCI bus in the guest, and of the functions on it: from their arrival to their last frame.

use std::collections::BTreeMap;

use netvsc::VfPort;
use netvsc::failover::Cause;
use netvsc::pairing::{FunctionId as PairingFunction, FunctionKey, PermanentMac, PortId};
use vmbus::memory::SharedPages;
use vmbus::{Channel, ChannelId, Doorbell, Guid, Instant};
use vpci::bus::{Event, Function, FunctionId, PciBus, PciBusConfig};

use super::nic::Bound;
use super::{Guest, Machine};
use crate::event::What;

/// Pages of each ring of a PCI channel, header page included: 16 KiB of data, as Linux takes.
pub(super) const RING_PAGES: usize = 5;

/// Where the windows of the buses lie in the guest's MMIO space, one after the other by channel.
const WINDOWS: u64 = 0xf_e000_0000;
/// Bytes of one window.
const WINDOW_SIZE: u64 = 0x2000;

/// How far a bus is.
enum Stage<D> {
    /// The channel is being opened.
    Opening(Box<Channel<SharedPages, D>>),
    /// The bus is at work, or starting up.
    Running(Box<PciBus<D>>),
    /// Its channel is gone.
    Gone,
}

/// A function that arrived and has not left.
struct Present<P> {
    /// Its name in pairing.
    id: PairingFunction,
    /// The name of its port in pairing, if there is a driver for it.
    port_id: Option<PortId>,
    /// Its port, while no NIC has it.
    port: Option<P>,
    /// Whether the host waits for it.
    ejecting: bool,
}

/// One bus.
pub(super) struct PciDevice<D, P> {
    channel: ChannelId,
    stage: Stage<D>,
    functions: BTreeMap<FunctionId, Present<P>>,
    /// The host rang.
    pub(super) rung: bool,
}

impl<D: Doorbell, P: VfPort> PciDevice<D, P> {
    pub(super) fn new(channel: ChannelId, link: Channel<SharedPages, D>) -> Self {
        Self {
            channel,
            stage: Stage::Opening(Box::new(link)),
            functions: BTreeMap::new(),
            rung: false,
        }
    }

    /// The channel is open: the bus starts up.
    pub(super) fn opened(&mut self, now: Instant) {
        self.stage = match std::mem::replace(&mut self.stage, Stage::Gone) {
            Stage::Opening(link) => {
                let window = WINDOWS + u64::from(self.channel.0) * WINDOW_SIZE;
                self.rung = true;
                Stage::Running(Box::new(PciBus::new(*link, PciBusConfig::new(window), now)))
            }
            other => other,
        };
    }

    fn bus(&mut self) -> Option<&mut PciBus<D>> {
        match &mut self.stage {
            Stage::Running(bus) => Some(bus),
            Stage::Opening(_) | Stage::Gone => None,
        }
    }

    pub(super) fn deadline(&self) -> Option<Instant> {
        match &self.stage {
            Stage::Running(bus) => bus.poll_deadline(),
            Stage::Opening(_) | Stage::Gone => None,
        }
    }

    fn has_port(&self, port: PortId) -> Option<FunctionId> {
        self.functions.iter().find(|(_, present)| present.port_id == Some(port)).map(|(id, _)| *id)
    }
}

impl<M: Machine> Guest<M> {
    /// Polls every bus that rang or whose time has come. True if anything was done.
    pub(super) fn poll_buses(&mut self, now: Instant) -> bool {
        let mut moved = false;
        let names: Vec<Guid> = self.buses.keys().copied().collect();
        for name in names {
            let Some(device) = self.buses.get_mut(&name) else { continue };
            let due = device.deadline().is_some_and(|at| at <= now);
            let rung = std::mem::take(&mut device.rung);
            let Some(bus) = device.bus() else { continue };
            if rung || due {
                moved = true;
                if let Err(error) = bus.poll(now) {
                    self.fail(format!("pci {name}: {error}"));
                }
            }
            while let Some(event) =
                self.buses.get_mut(&name).and_then(|device| device.bus()?.poll_event())
            {
                self.handle_pci_event(name, event, now);
                moved = true;
            }
        }
        moved
    }

    fn handle_pci_event(&mut self, bus: Guid, event: Event, now: Instant) {
        match event {
            Event::FunctionArrived(function) => self.function_arrived(bus, &function, now),
            Event::FunctionLeft(function) => {
                self.function_left(bus, &function, "the host took it off the bus", now);
            }
            Event::EjectRequested { function } => self.eject_requested(bus, function, now),
            Event::FunctionFailed { function, why } => {
                self.fail(format!("pci {bus} slot {}: {why}", function.slot()));
            }
            Event::Overdue { step, .. } => {
                let what = format!("pci {bus}: the host has not answered {step}");
                self.events.push_back(What::Overdue { what });
            }
            Event::Failed(why) => self.fail(format!("pci {bus}: {why}")),
            other => tracing::debug!(?other, "event of a PCI bus without meaning here"),
        }
    }

    fn function_arrived(&mut self, bus: Guid, function: &Function, now: Instant) {
        let description = &function.description;
        self.events.push_back(What::FunctionArrived {
            bus,
            slot: function.slot().to_string(),
            serial: function.serial(),
            id: format!("{:04x}:{:04x}", description.vendor, description.device),
        });
        let id = self.pairing.function_arrived(
            FunctionKey {
                bus,
                slot: function.slot().to_wire(),
                vendor: description.vendor,
                device: description.device,
                serial: function.serial(),
            },
            now,
        );
        let mut present = Present { id, port_id: None, port: None, ejecting: false };
        match self.machine.open_port(bus, function) {
            Ok(port) => {
                let mac = port.permanent_mac().map_or(PermanentMac::NotYet, PermanentMac::Known);
                match self.pairing.port_arrived(id, 0, mac, now) {
                    Ok(port_id) => present.port_id = Some(port_id),
                    Err(error) => self.fail(error.to_string()),
                }
                present.port = Some(port);
            }
            Err(why) => {
                let slot = function.slot();
                self.fail(format!("pci {bus} slot {slot}: no driver took the function: {why}"));
            }
        }
        if let Some(device) = self.buses.get_mut(&bus) {
            device.functions.insert(function.id, present);
        }
    }

    fn function_left(&mut self, bus: Guid, function: &Function, why: &str, now: Instant) {
        let Some(device) = self.buses.get_mut(&bus) else { return };
        let Some(present) = device.functions.remove(&function.id) else { return };
        self.events.push_back(What::FunctionLeft {
            bus,
            slot: function.slot().to_string(),
            serial: function.serial(),
            why: if present.ejecting { "as the host had asked".into() } else { why.into() },
        });
        for nic in &mut self.nics {
            if nic.bound.is_some_and(|bound| bound.function == function.id && bound.bus == bus)
                && let Some(adapter) = nic.adapter_mut()
            {
                adapter.port_gone(now);
            }
        }
        let stale = self.pairing.function_left(present.id, now).err();
        self.note_stale(stale);
    }

    fn eject_requested(&mut self, bus: Guid, function: FunctionId, now: Instant) {
        let slot = function.slot().to_string();
        self.events.push_back(What::EjectRequested { bus, slot });
        let Some(device) = self.buses.get_mut(&bus) else { return };
        let Some(present) = device.functions.get_mut(&function) else { return };
        present.ejecting = true;
        for nic in &mut self.nics {
            if nic.bound.is_some_and(|bound| bound.function == function && bound.bus == bus)
                && let Some(adapter) = nic.adapter_mut()
            {
                // The answer follows when the port is quiet.
                return adapter.release(Cause::Eject, now);
            }
        }
        self.let_go(bus, function, now);
    }

    /// Nobody uses a function any more that the host wants back.
    fn let_go(&mut self, bus: Guid, function: FunctionId, now: Instant) {
        let Some(device) = self.buses.get_mut(&bus) else { return };
        let Some(present) = device.functions.get_mut(&function) else { return };
        // The driver turns the device off before the host hears that it may have it.
        present.port = None;
        if let Some(port) = present.port_id.take() {
            let stale = self.pairing.port_left(port, now).err();
            self.note_stale(stale);
        }
        let slot = function.slot().to_string();
        let answered = self.buses.get_mut(&bus).and_then(|device| {
            let bus = device.bus()?;
            Some(bus.eject_complete(function))
        });
        match answered {
            Some(Ok(())) => self.events.push_back(What::EjectAnswered { bus, slot }),
            Some(Err(error)) => self.fail(format!("pci {bus}: {error}")),
            None => {}
        }
        if let Some(device) = self.buses.get_mut(&bus) {
            device.rung = true;
        }
    }

    /// A NIC has let go of its port.
    pub(super) fn port_released(&mut self, number: usize, port: M::Port, now: Instant) {
        let Some(nic) = self.nics.get_mut(number) else { return };
        let Some(bound) = nic.bound.take() else { return };
        let unbinding = nic.unbinding.take();
        let id = nic.id;
        self.keep_port(bound, port);
        if let (Some(id), Some(port)) = (id, unbinding) {
            let stale = self.pairing.unbound(id, port, now).err();
            self.note_stale(stale);
        }
        let device = self.buses.get(&bound.bus);
        if device
            .and_then(|device| device.functions.get(&bound.function))
            .is_some_and(|it| it.ejecting)
        {
            self.let_go(bound.bus, bound.function, now);
        }
    }

    /// Puts a port back to its function. If that has left, the port goes, too.
    pub(super) fn keep_port(&mut self, bound: Bound, port: M::Port) {
        if let Some(device) = self.buses.get_mut(&bound.bus)
            && let Some(present) = device.functions.get_mut(&bound.function)
        {
            present.port = Some(port);
        }
    }

    /// Takes the port with this name from its function, for a NIC.
    pub(super) fn take_port(&mut self, port: PortId) -> Option<(Bound, M::Port)> {
        self.buses.iter_mut().find_map(|(bus, device)| {
            let function = device.has_port(port)?;
            let present = device.functions.get_mut(&function)?;
            if present.ejecting {
                return None;
            }
            Some((Bound { bus: *bus, function, port }, present.port.take()?))
        })
    }

    /// The channel of a bus is gone.
    pub(super) fn bus_rescinded(&mut self, name: Guid, now: Instant) {
        if let Some(bus) = self.buses.get_mut(&name).and_then(PciDevice::bus) {
            bus.rescinded();
        }
        while let Some(event) =
            self.buses.get_mut(&name).and_then(|device| device.bus()?.poll_event())
        {
            match event {
                Event::FunctionLeft(function) => {
                    self.function_left(name, &function, "its bus is gone", now);
                }
                other => tracing::debug!(?other, "last words of a PCI bus"),
            }
        }
        self.buses.remove(&name);
    }
}

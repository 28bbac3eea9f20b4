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
    /// It slept, and its channel is being opened again.
    Waking { bus: Box<PciBus<D>>, link: Box<Channel<SharedPages, D>> },
    /// Its channel is gone.
    Gone,
}

/// Whether a bus sleeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Rest {
    Awake,
    /// It is being turned off.
    Suspending,
    /// It is off, and its channel closes.
    Closing,
    Asleep,
}

/// A function that arrived and has not left.
struct Present<P> {
    /// Its name in pairing.
    id: PairingFunction,
    function: Function,
    /// Its ports, if there is a driver for it.
    ports: Vec<PresentPort<P>>,
    /// Whether the host waits for it.
    ejecting: bool,
}

/// A port of a function.
pub(super) struct PresentPort<P> {
    /// Its name in pairing.
    id: PortId,
    /// The port, while no NIC has it.
    port: Option<P>,
}

/// PCI class of network devices.
pub(super) const NETWORK: u8 = 2;

/// One bus.
pub(super) struct PciDevice<D, P> {
    channel: ChannelId,
    /// Its window, counted from the first.
    place: u64,
    stage: Stage<D>,
    rest: Rest,
    functions: BTreeMap<FunctionId, Present<P>>,
    /// The host rang.
    pub(super) rung: bool,
}

impl<D: Doorbell, P: VfPort> PciDevice<D, P> {
    pub(super) fn new(channel: ChannelId, place: u64, link: Channel<SharedPages, D>) -> Self {
        Self {
            channel,
            place,
            rest: Rest::Awake,
            stage: Stage::Opening(Box::new(link)),
            functions: BTreeMap::new(),
            rung: false,
        }
    }

    /// The channel is open: the bus starts up.
    pub(super) fn opened(&mut self, now: Instant) {
        self.stage = match std::mem::replace(&mut self.stage, Stage::Gone) {
            Stage::Opening(link) => {
                let window = WINDOWS + self.place * WINDOW_SIZE;
                self.rung = true;
                Stage::Running(Box::new(PciBus::new(*link, PciBusConfig::new(window), now)))
            }
            Stage::Waking { mut bus, link } => {
                self.rung = true;
                if bus.resume(*link, now).is_err() {
                    tracing::debug!("a bus wakes that did not sleep");
                }
                Stage::Running(bus)
            }
            other => other,
        };
    }

    pub(super) fn place(&self) -> u64 {
        self.place
    }

    pub(super) fn channel(&self) -> ChannelId {
        self.channel
    }

    /// Turns the bus off for a sleep. False if it is not on: it is to be started from its beginning then.
    pub(super) fn fall_asleep(&mut self, now: Instant) -> bool {
        let off = self.bus().is_some_and(|bus| bus.suspend(now).is_ok());
        if off {
            (self.rest, self.rung) = (Rest::Suspending, true);
        }
        off
    }

    /// Whether it is on its way to sleep.
    pub(super) fn is_drowsy(&self) -> bool {
        matches!(self.rest, Rest::Suspending | Rest::Closing)
    }

    /// Whether it waits to be offered again.
    pub(super) fn is_asleep(&self) -> bool {
        self.rest == Rest::Asleep
    }

    /// Its channel is closed.
    pub(super) fn closed(&mut self) {
        if self.rest == Rest::Closing {
            self.rest = Rest::Asleep;
        }
    }

    /// It is offered again, and its channel is being opened.
    pub(super) fn wake(&mut self, channel: ChannelId, link: Channel<SharedPages, D>) {
        (self.channel, self.rest) = (channel, Rest::Awake);
        self.stage = match std::mem::replace(&mut self.stage, Stage::Gone) {
            Stage::Running(bus) => Stage::Waking { bus, link: Box::new(link) },
            other => other,
        };
    }

    /// The name of a function in pairing.
    pub(super) fn name_of(&self, function: FunctionId) -> Option<PairingFunction> {
        self.functions.get(&function).map(|present| present.id)
    }

    /// The drivers of its functions stop; what pairing calls their ports. Nobody waits for a function any more.
    pub(super) fn take_ports(&mut self) -> Vec<PortId> {
        let present = self.functions.values_mut();
        let ports = present.flat_map(|present| {
            present.ejecting = false;
            std::mem::take(&mut present.ports)
        });
        ports.map(|port| port.id).collect()
    }

    /// The driver of a function has started again.
    pub(super) fn set_ports(&mut self, function: FunctionId, ports: Vec<PresentPort<P>>) {
        if let Some(present) = self.functions.get_mut(&function) {
            present.ports = ports;
        }
    }

    fn bus(&mut self) -> Option<&mut PciBus<D>> {
        match &mut self.stage {
            Stage::Running(bus) | Stage::Waking { bus, .. } => Some(bus),
            Stage::Opening(_) | Stage::Gone => None,
        }
    }

    pub(super) fn deadline(&self) -> Option<Instant> {
        match &self.stage {
            Stage::Running(bus) => bus.poll_deadline(),
            Stage::Opening(_) | Stage::Waking { .. } | Stage::Gone => None,
        }
    }

    /// Whether it is on its way somewhere and nobody is asked for anything.
    pub(super) fn waits_forever(&self) -> bool {
        matches!(&self.stage, Stage::Running(bus) if bus.waits_forever())
    }

    fn has_port(&self, port: PortId) -> Option<FunctionId> {
        let has = |present: &Present<P>| present.ports.iter().any(|it| it.id == port);
        self.functions.iter().find(|(_, present)| has(present)).map(|(id, _)| *id)
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
            Event::Suspended => {
                if let Some(device) = self.buses.get_mut(&bus) {
                    device.rest = Rest::Closing;
                }
                self.bus_suspended(bus, now);
            }
            Event::FunctionResumed(function) => self.function_resumed(bus, &function, now),
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
        let mut present = Present { id, function: *function, ports: Vec::new(), ejecting: false };
        // Disks and the like have drivers of their own; they are known here so that their serials are.
        if description.class == NETWORK {
            present.ports = self.open_ports(bus, function, id, now);
        }
        if let Some(device) = self.buses.get_mut(&bus) {
            device.functions.insert(function.id, present);
        }
    }

    /// Hands a network function to its driver, and its ports to pairing.
    pub(super) fn open_ports(
        &mut self,
        bus: Guid,
        function: &Function,
        id: PairingFunction,
        now: Instant,
    ) -> Vec<PresentPort<M::Port>> {
        let mut ports = Vec::new();
        match self.machine.open_ports(bus, function) {
            Ok(opened) => {
                for (number, port) in (0..).zip(opened) {
                    let mac =
                        port.permanent_mac().map_or(PermanentMac::NotYet, PermanentMac::Known);
                    match self.pairing.port_arrived(id, number, mac, now) {
                        Ok(id) => ports.push(PresentPort { id, port: Some(port) }),
                        Err(error) => self.fail(error.to_string()),
                    }
                }
            }
            Err(why) => {
                let slot = function.slot();
                self.fail(format!("pci {bus} slot {slot}: no driver took the function: {why}"));
            }
        }
        ports
    }

    /// The driver of a bus's functions has lost their device to something else than the host: its ports are gone.
    pub fn driver_stopped(&mut self, bus: Guid, now: Instant) {
        for nic in &mut self.nics {
            if nic.bound.is_some_and(|bound| bound.bus == bus)
                && let Some(adapter) = nic.adapter_mut()
            {
                adapter.port_gone(now);
                nic.rung = true;
            }
        }
        let Some(device) = self.buses.get_mut(&bus) else { return };
        let functions = device.functions.values_mut();
        let ports: Vec<_> =
            functions.flat_map(|present| std::mem::take(&mut present.ports)).collect();
        for PresentPort { id, .. } in ports {
            let stale = self.pairing.port_left(id, now).err();
            self.note_stale(stale);
        }
    }

    /// The driver of a bus's functions can start: those without ports are handed to it. True if it took any.
    pub fn driver_started(&mut self, bus: Guid, now: Instant) -> bool {
        let Some(device) = self.buses.get(&bus) else { return false };
        let idle = |present: &&Present<_>| {
            let network = present.function.description.class == NETWORK;
            network && present.ports.is_empty() && !present.ejecting
        };
        let idle = device.functions.values().filter(idle);
        let idle: Vec<_> = idle.map(|present| (present.id, present.function)).collect();
        let mut any = false;
        for (id, function) in idle {
            let ports = self.open_ports(bus, &function, id, now);
            any |= !ports.is_empty();
            if let Some(device) = self.buses.get_mut(&bus) {
                device.set_ports(function.id, ports);
            }
        }
        any
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
            if nic.has_bound(bus, function.id)
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
            if nic.has_bound(bus, function)
                && let Some(adapter) = nic.adapter_mut()
            {
                adapter.release(Cause::Eject, now);
                nic.rung = true;
            }
        }
        self.let_go_if_free(bus, function, now);
    }

    /// Answers for a function that the host wants back once no NIC has a port of it any more.
    fn let_go_if_free(&mut self, bus: Guid, function: FunctionId, now: Instant) {
        let used = self.nics.iter().any(|nic| nic.has_bound(bus, function));
        let device = self.buses.get(&bus);
        let present = device.and_then(|device| device.functions.get(&function));
        if (!used || seeded!("answer-eject-at-once"))
            && present.is_some_and(|present| present.ejecting)
        {
            self.let_go(bus, function, now);
        }
    }

    /// Nobody uses a function any more that the host wants back.
    fn let_go(&mut self, bus: Guid, function: FunctionId, now: Instant) {
        let Some(device) = self.buses.get_mut(&bus) else { return };
        let Some(present) = device.functions.get_mut(&function) else { return };
        // The driver turns the device off before the host hears that it may have it.
        for PresentPort { id, port } in std::mem::take(&mut present.ports) {
            drop(port);
            let stale = self.pairing.port_left(id, now).err();
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
        let (id, moving) = (nic.id, std::mem::take(&mut nic.moving));
        self.keep_port(bound, port);
        if let (Some(id), Some(port)) = (id, unbinding)
            && !seeded!("forget-unbound")
        {
            let stale = self.pairing.unbound(id, port, now).err();
            self.note_stale(stale);
        }
        if moving {
            self.register_anew(bound, now);
        }
        self.let_go_if_free(bound.bus, bound.function, now);
    }

    /// The port of a NIC's VF leaves and arrives anew, and its function does not: the driver starts again, or the port moves into
    /// another network namespace. False if the NIC has none.
    pub fn move_port(&mut self, number: usize, now: Instant) -> bool {
        let Some(nic) = self.nics.get_mut(number).filter(|nic| nic.bound.is_some()) else {
            return false;
        };
        let Some(adapter) = nic.adapter_mut() else { return false };
        adapter.release(Cause::Unbound, now);
        (nic.moving, nic.rung) = (true, true);
        true
    }

    /// A port that nobody has leaves, and arrives as another.
    fn register_anew(&mut self, bound: Bound, now: Instant) {
        let Some(device) = self.buses.get_mut(&bound.bus) else { return };
        let Some(present) = device.functions.get_mut(&bound.function) else { return };
        let function = present.id;
        for (number, place) in (0..).zip(&mut present.ports) {
            let Some(port) = place.port.as_ref().filter(|_| place.id == bound.port) else {
                continue;
            };
            let mac = port.permanent_mac().map_or(PermanentMac::NotYet, PermanentMac::Known);
            let left = self.pairing.port_left(place.id, now);
            match left.and_then(|()| self.pairing.port_arrived(function, number, mac, now)) {
                Ok(id) => place.id = id,
                Err(error) => self.events.push_back(What::Failed { what: error.to_string() }),
            }
        }
    }

    /// Puts a port back to its function. If that has left, the port goes, too.
    pub(super) fn keep_port(&mut self, bound: Bound, port: M::Port) {
        if let Some(device) = self.buses.get_mut(&bound.bus)
            && let Some(present) = device.functions.get_mut(&bound.function)
            && let Some(place) = present.ports.iter_mut().find(|it| it.id == bound.port)
        {
            place.port = Some(port);
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
            let place = present.ports.iter_mut().find(|it| it.id == port)?;
            Some((Bound { bus: *bus, function, port }, place.port.take()?))
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

//! A whole host: bus, NIC services, PCI services with VFs, and the switch between them and the peers.
//!
//! [`Host`] joins the machines of this crate and is one itself: messages, doorbells and `now` go in, messages and interrupts
//! come out. On top stand the acts of whoever runs the host: adding NICs and VFs, asking VFs back, tearing them away.

mod device;
mod nic;
mod registers;
mod vf;

pub use device::DeviceSpec;
pub use vf::{Departure, Disassociation, VfPlace, VfSpec};

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use netvsc::{MacAddress, Path};
use vmbus::bus::PostStatus;
use vmbus::memory::SharedPages;
use vmbus::message::{NIC_CLASS, Payload};
use vmbus::time::earliest;
use vmbus::{ChannelId, ConnectionId, GpadlId, Guid, Instant, Pfn, Serial};

use crate::bus::{BusEvent, BusPolicy, BusServer, DeviceId, HostChannel, LeftBehind, OfferSpec};
use crate::memory::GuestMemory;
use crate::nic::{GuestView, NicPolicy, NicService, NicServiceConfig, NicServiceEvent};
use crate::pci::{MOST_PORTS, PciPolicy, PciService, SlotTaken};
use crate::switch::{Offered, PortConfig, PortCounters, PortId, Switch, SwitchPort, Uncut};
use crate::vf::{VfCounters, VfFeatures, VfWindow};
use device::HostPci;
use registers::RegisterPool;

/// A NIC to be offered.
#[derive(Clone, Debug)]
pub struct NicSpec {
    /// Its identity.
    pub instance: Guid,
    /// Its permanent MAC.
    pub mac: MacAddress,
    /// How its service behaves.
    pub policy: NicPolicy,
    /// Its port on the switch.
    pub port: PortConfig,
}

/// Something that happened on the host. `nic` is the number that [`Host::add_nic`] gave.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HostEvent {
    /// The guest finished a NIC's start-up.
    NicOperational {
        /// Which NIC.
        nic: usize,
    },
    /// A VF's PCI device is offered to the guest.
    VfOffered {
        /// The NIC it belongs to.
        nic: usize,
    },
    /// The data path of a NIC changed.
    DataPath {
        /// Which NIC.
        nic: usize,
        /// To where.
        path: Path,
    },
    /// A NIC is gone altogether: its channel is released. No other NIC gets its number.
    NicGone {
        /// Which NIC.
        nic: usize,
    },
    /// A VF is gone altogether: its channel is released.
    VfGone {
        /// The NIC it belonged to.
        nic: usize,
        /// Whether the guest had let it go before.
        departure: Departure,
    },
    /// A PCI device that belongs to no NIC is gone altogether: its channel is released.
    DeviceGone {
        /// Identity of its bus.
        instance: Guid,
        /// Whether the guest had let it go before.
        departure: Departure,
    },
    /// The service of such a device gave up its channel because the guest broke the protocol.
    DeviceFailed {
        /// Identity of its bus.
        instance: Guid,
        /// What happened.
        why: String,
    },
    /// A service gave up a channel because the guest broke the protocol.
    Failed {
        /// Which NIC it concerns.
        nic: usize,
        /// What happened.
        why: String,
    },
}

/// Frames that went down with VFs, by the way the VFs went.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Perished {
    /// From the guest, in VFs that were torn away.
    pub sent_surprise: u64,
    /// For the guest, in VFs that were torn away.
    pub received_surprise: u64,
    /// From the guest, in VFs that it had let go.
    pub sent_orderly: u64,
    /// For the guest, in VFs that it had let go.
    pub received_orderly: u64,
}

/// Why an act of the host's owner is not possible now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ActError {
    /// There is no NIC with this number.
    #[error("there is no NIC {0}")]
    NoNic(usize),
    /// The NIC has a VF already, or the last one is not gone yet.
    #[error("NIC {0} has a VF already, or its last one has not gone yet")]
    VfPresent(usize),
    /// The NIC has no VF that the guest was offered.
    #[error("NIC {0} has no VF that could be taken away")]
    NoVf(usize),
    /// There is no PCI device with this identity that the guest was offered.
    #[error("there is no PCI device {0} that could be taken away")]
    NoDevice(Guid),
    /// There is a PCI device with this identity, or the last one has not gone yet.
    #[error("there is a PCI device {0} already, or the last one has not gone yet")]
    DevicePresent(Guid),
    /// Two functions in one slot.
    #[error(transparent)]
    Slot(#[from] SlotTaken),
    /// More NICs than a function of several ports has ports, or none.
    #[error("{0} ports on one function: expected 1 to {MOST_PORTS}")]
    Ports(usize),
    /// Every page that the host was given for registers is in use.
    #[error("no page is left for the registers of another port")]
    NoRegisters,
}

#[derive(Clone, Copy, Debug)]
enum Owner {
    Nic(usize),
    /// A sub-channel: which NIC, which number.
    Queue(usize, u16),
    /// The PCI bus with this identity.
    Pci(Guid),
}

struct HostNic {
    device: DeviceId,
    /// Its sub-channels, as far as they are not released.
    queues: Vec<DeviceId>,
    port: PortId,
    service: NicService,
    /// The bus of its VF.
    vf: Option<Guid>,
    perished: Perished,
    /// Frames handed to and taken from VFs that are gone, so that totals survive them.
    past_vfs: VfCounters,
    /// Whether the service has to be polled although nothing rang.
    dirty: bool,
    /// It was taken away.
    leaving: bool,
    /// Identity of its channel.
    instance: Guid,
    /// It was taken away, and the guest has let go of it.
    gone: bool,
}

/// A host with its devices.
pub struct Host {
    memory: Arc<dyn GuestMemory>,
    bus: BusServer,
    switch: Switch,
    nics: Vec<HostNic>,
    /// PCI buses, those of VFs included.
    devices: Vec<HostPci>,
    owners: BTreeMap<DeviceId, Owner>,
    events: VecDeque<HostEvent>,
    pci_policy: PciPolicy,
    vf_features: VfFeatures,
    /// The NIC whose VFs' frames go over an interface.
    elsewhere_of: Option<usize>,
    /// Where the registers of VFs are, if the guest has to find them in other memory than this process's own.
    registers: Option<RegisterPool>,
}

impl std::fmt::Debug for Host {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Host").field("nics", &self.nics.len()).finish_non_exhaustive()
    }
}

impl Host {
    /// A host without devices for the guest that owns `memory`.
    #[must_use]
    pub fn new(bus: BusPolicy, pci: PciPolicy, memory: Arc<dyn GuestMemory>) -> Self {
        Self {
            bus: BusServer::new(bus, memory.clone()),
            memory,
            switch: Switch::new(),
            nics: Vec::new(),
            devices: Vec::new(),
            owners: BTreeMap::new(),
            events: VecDeque::new(),
            pci_policy: pci,
            vf_features: VfFeatures::WORK,
            elsewhere_of: None,
            registers: None,
        }
    }

    /// Puts the registers of VFs that come from now on into these pages, one for each port. A page is known by its frame
    /// number; the registers of a port that is gone are used again as late as can be.
    pub fn put_registers_into(&mut self, pages: SharedPages) {
        self.registers = Some(RegisterPool::new(pages));
    }

    /// Has the frames of VFs that this NIC gets from now on go over an interface ([`Host::vf_transmit`], [`Host::vf_receive`]), as
    /// they do where a kernel drives the function.
    pub fn carry_vf_elsewhere(&mut self, nic: usize) {
        self.elsewhere_of = Some(nic);
    }

    /// Chooses what VFs that come from now on do to frames: everything, unless it is said.
    pub fn set_vf_features(&mut self, features: VfFeatures) {
        self.vf_features = features;
    }

    /// Offers a NIC. Returns its number: 0 for the first.
    pub fn add_nic(&mut self, spec: NicSpec, now: Instant) -> usize {
        let nic = self.nics.len();
        let device = self.bus.offer(OfferSpec::new(NIC_CLASS, spec.instance, 0), now);
        self.owners.insert(device, Owner::Nic(nic));
        let config = NicServiceConfig { policy: spec.policy, ..NicServiceConfig::new(spec.mac) };
        self.nics.push(HostNic {
            device,
            queues: Vec::new(),
            port: self.switch.add_port(spec.port),
            service: NicService::new(config),
            vf: None,
            perished: Perished::default(),
            past_vfs: VfCounters::default(),
            dirty: false,
            leaving: false,
            instance: spec.instance,
            gone: false,
        });
        nic
    }

    /// A message that the guest posted.
    pub fn handle_message(&mut self, connection: ConnectionId, payload: &[u8], now: Instant) {
        if let Err(error) = self.bus.handle_message(connection, payload, now) {
            // The bus counts it; a guest that errs gets no answer, as on real hosts.
            tracing::debug!(%error, "message of the guest refused");
        }
    }

    /// A control message that the guest posts, as [`Host::handle_message`] and with what the hypervisor says to it
    /// ([`BusServer::post`](crate::bus::BusServer::post)).
    pub fn post(&mut self, connection: ConnectionId, payload: &[u8], now: Instant) -> PostStatus {
        self.bus.post(connection, payload, now)
    }

    /// The next message for the guest.
    pub fn poll_message(&mut self) -> Option<Payload> {
        self.bus.poll_message()
    }

    /// The channels whose doorbell in the guest has to ring, since the last call.
    pub fn interrupts(&mut self) -> impl Iterator<Item = ChannelId> + '_ {
        self.bus.interrupts()
    }

    /// The next event for whoever runs the host.
    pub fn poll_event(&mut self) -> Option<HostEvent> {
        self.events.pop_front()
    }

    /// The guest rang a doorbell.
    pub fn signalled(&mut self, connection: ConnectionId) {
        let Some(device) = self.bus.signalled(connection) else { return };
        match self.owners.get(&device) {
            Some(Owner::Nic(nic) | Owner::Queue(nic, _)) => {
                if let Some(nic) = self.nics.get_mut(*nic) {
                    nic.dirty = true;
                }
            }
            Some(&Owner::Pci(instance)) => {
                if let Some(device) = self.device_mut(instance) {
                    device.dirty = true;
                }
            }
            None => {}
        }
    }

    /// Does all that can be done at `now`.
    pub fn poll(&mut self, now: Instant) {
        self.bus.handle_deadline(now);
        while let Some(event) = self.bus.poll_event() {
            self.handle_bus_event(event, now);
        }
        self.switch.forward_arrived(now);
        loop {
            for nic in 0..self.nics.len() {
                self.poll_nic(nic, now);
            }
            for device in 0..self.devices.len() {
                self.poll_device(device, now);
            }
            // What one NIC sent may be for another.
            if !self.switch.forward_arrived(now) {
                break;
            }
        }
        self.forget_devices();
    }

    fn poll_nic(&mut self, number: usize, now: Instant) {
        let Self { nics, bus, switch, memory, events, .. } = self;
        let Some(nic) = nics.get_mut(number) else { return };
        let Some(port) = switch.port_mut(nic.port) else { return };
        let due = nic.service.poll_deadline().is_some_and(|at| at <= now);
        let woken = port.take_wake(Path::Synthetic, now);
        if !(due || woken || nic.dirty) {
            return;
        }
        nic.dirty = false;
        let device = nic.device;
        let gpadl = |id: GpadlId| bus.gpadl(device, id);
        let pages = |frames: &[Pfn]| memory.map(frames).ok();
        nic.service.poll(now, GuestView { gpadl: &gpadl, pages: &pages }, port);
        let mut offer = false;
        let mut more_queues = 0;
        while let Some(event) = nic.service.poll_event() {
            match event {
                NicServiceEvent::Operational { .. } => {
                    events.push_back(HostEvent::NicOperational { nic: number });
                }
                NicServiceEvent::OfferVf => offer = true,
                NicServiceEvent::OfferSubChannels { count } => more_queues += count,
                NicServiceEvent::DataPath(path) => {
                    events.push_back(HostEvent::DataPath { nic: number, path });
                }
                NicServiceEvent::Halted => {}
                NicServiceEvent::Failed(error) => {
                    events.push_back(HostEvent::Failed { nic: number, why: error.to_string() });
                }
            }
        }
        if more_queues > 0 {
            self.offer_queues(number, more_queues, now);
        }
        if offer {
            self.offer_vf(number, now);
        }
    }

    fn offer_queues(&mut self, number: usize, count: u16, now: Instant) {
        let Some(nic) = self.nics.get_mut(number) else { return };
        for device in self.bus.offer_sub_channels(nic.device, count, now) {
            let Some((_, queue)) = self.bus.sub_channel(device) else { continue };
            self.owners.insert(device, Owner::Queue(number, queue));
            nic.queues.push(device);
        }
    }

    fn handle_bus_event(&mut self, event: BusEvent, now: Instant) {
        match event {
            BusEvent::Opened { device, channel } => self.opened(device, channel),
            BusEvent::Closing { device } => {
                self.closing(device, now);
                self.bus.closed(device, now);
            }
            BusEvent::Released { device } => match self.owners.remove(&device) {
                Some(Owner::Pci(instance)) => {
                    if let Some(device) = self.device_mut(instance) {
                        device.released = true;
                    }
                }
                Some(Owner::Queue(nic, _)) => {
                    if let Some(nic) = self.nics.get_mut(nic) {
                        nic.queues.retain(|queue| *queue != device);
                        nic.service.queue_released();
                    }
                }
                Some(Owner::Nic(nic)) => {
                    if let Some(nic) = self.nics.get_mut(nic) {
                        nic.gone = true;
                    }
                    self.events.push_back(HostEvent::NicGone { nic });
                }
                None => {}
            },
            BusEvent::Connected { .. } | BusEvent::Disconnected | BusEvent::GivenUp { .. } => {}
        }
    }

    fn opened(&mut self, device: DeviceId, channel: HostChannel) {
        let owner = self.owners.get(&device).copied();
        if let Some(Owner::Pci(instance)) = owner {
            if let Some(device) = self.device_mut(instance) {
                device.opened(channel);
            }
            return;
        }
        let Some(Owner::Nic(number) | Owner::Queue(number, _)) = owner else { return };
        let Some(nic) = self.nics.get_mut(number) else { return };
        let Some(port) = self.switch.port_mut(nic.port) else { return };
        match owner {
            Some(Owner::Queue(_, queue)) => nic.service.open_queue(queue, channel, port),
            _ => nic.service.open(channel, port),
        }
        nic.dirty = true;
    }

    fn closing(&mut self, device: DeviceId, now: Instant) {
        match self.owners.get(&device) {
            Some(&(Owner::Nic(number) | Owner::Queue(number, _))) => {
                let Some(nic) = self.nics.get_mut(number) else { return };
                let Some(port) = self.switch.port_mut(nic.port) else { return };
                // Its events still have to be fetched.
                nic.dirty = true;
                if let Some(&Owner::Queue(_, queue)) = self.owners.get(&device) {
                    nic.service.close_queue(queue, port);
                    return;
                }
                nic.service.close(port);
                // Sub-channels do not outlive the primary channel; a later opening asks for new ones.
                for queue in nic.queues.clone() {
                    self.bus.rescind(queue, now);
                }
            }
            Some(&Owner::Pci(instance)) => {
                if let Some(device) = self.device_mut(instance) {
                    device.closed();
                }
            }
            None => {}
        }
    }

    /// When to poll at the latest.
    #[must_use]
    pub fn poll_deadline(&self) -> Option<Instant> {
        let own = earliest(self.bus.poll_deadline(), self.switch.poll_deadline());
        let nics = self.nics.iter().map(|nic| nic.service.poll_deadline());
        let devices = self.devices.iter().map(HostPci::poll_deadline);
        nics.chain(devices).fold(own, earliest)
    }

    /// Offers a frame of the peer behind a NIC's port to the switch.
    pub fn peer_transmit(&mut self, nic: usize, frame: &[u8], now: Instant) -> Offered {
        match self.nics.get(nic) {
            Some(nic) => self.switch.peer_transmit(nic.port, frame, now),
            None => Offered::Busy,
        }
    }

    /// The same for a TCP segment that the peer has not cut: see [`Host::wants_uncut`]. It is cut where the guest takes no such.
    pub fn peer_transmit_uncut(
        &mut self,
        nic: usize,
        segment: &[u8],
        uncut: Uncut,
        now: Instant,
    ) -> Offered {
        let port = self.nics.get(nic).and_then(|nic| self.switch.port_mut(nic.port));
        port.map_or(Offered::Busy, |port| port.peer_transmit_uncut(segment, uncut, now))
    }

    /// Whether segments of the peer behind a NIC's port reach the guest as they are now.
    #[must_use]
    pub fn wants_uncut(&self, nic: usize) -> bool {
        let port = self.nics.get(nic).and_then(|nic| self.switch.port(nic.port));
        port.is_some_and(SwitchPort::wants_uncut)
    }

    /// The next frame that has reached the peer behind a NIC's port. Give the buffer back with [`Host::recycle`].
    pub fn peer_receive(&mut self, nic: usize, now: Instant) -> Option<Vec<u8>> {
        self.switch.peer_receive(self.nics.get(nic)?.port, now)
    }

    /// Whether the peer behind a NIC's port takes TCP segments that are longer than frames: see
    /// [`Host::peer_receive_uncut`].
    pub fn set_peer_cuts(&mut self, nic: usize, cuts: bool) {
        if let Some(port) = self.nics.get(nic).and_then(|nic| self.switch.port_mut(nic.port)) {
            port.set_peer_cuts(cuts);
        }
    }

    /// Whether it does.
    #[must_use]
    pub fn peer_cuts(&self, nic: usize) -> bool {
        let port = self.nics.get(nic).and_then(|nic| self.switch.port(nic.port));
        port.is_some_and(SwitchPort::peer_cuts)
    }

    /// [`Host::peer_receive`] for a peer that cuts for itself: what is left to it goes with the frame.
    pub fn peer_receive_uncut(
        &mut self,
        nic: usize,
        now: Instant,
    ) -> Option<(Vec<u8>, Option<Uncut>)> {
        self.switch.peer_receive_uncut(self.nics.get(nic)?.port, now)
    }

    /// Takes back the buffer of a frame that was received.
    pub fn recycle(&mut self, nic: usize, buffer: Vec<u8>) {
        if let Some(port) = self.nics.get(nic).and_then(|nic| self.switch.port_mut(nic.port)) {
            port.recycle(buffer);
        }
    }

    /// The data path of a NIC as the host knows it.
    #[must_use]
    pub fn data_path(&self, nic: usize) -> Option<Path> {
        Some(self.nics.get(nic)?.service.data_path())
    }

    /// The service of a NIC, to change how it behaves or to make it speak out of turn. It is polled next.
    pub fn nic_mut(&mut self, nic: usize) -> Option<&mut NicService> {
        let nic = self.nics.get_mut(nic)?;
        nic.dirty = true;
        Some(&mut nic.service)
    }

    /// Counters of a NIC's port on the switch.
    #[must_use]
    pub fn port_counters(&self, nic: usize) -> Option<PortCounters> {
        Some(self.switch.port(self.nics.get(nic)?.port)?.counters())
    }

    /// Frames that went down with the VFs of a NIC.
    #[must_use]
    pub fn perished(&self, nic: usize) -> Perished {
        self.nics.get(nic).map_or_else(Perished::default, |nic| nic.perished)
    }

    /// Counters of the VFs that a NIC had, the present one included.
    #[must_use]
    pub fn vf_counters(&self, number: usize) -> VfCounters {
        let Some(nic) = self.nics.get(number) else { return VfCounters::default() };
        let present = nic.vf.and_then(|bus| self.device(bus)?.port_of(number));
        match present {
            Some(port) => vf::sum(nic.past_vfs, port.counters()),
            None => nic.past_vfs,
        }
    }

    /// How the guest's driver reaches the ports of a PCI device, in their order: what mapping its BAR gives on real
    /// hardware. None if the device has no ports or is gone.
    #[must_use]
    pub fn map_ports(&self, bus: Guid) -> Vec<VfWindow> {
        self.device(bus).map(HostPci::windows).unwrap_or_default()
    }

    /// The service of a PCI device's bus, to let it do more than the acts of this host: announce, misbehave, change its
    /// policy, add functions.
    pub fn pci_mut(&mut self, bus: Guid) -> Option<&mut PciService> {
        let device = self.device_mut(bus)?;
        device.dirty = true;
        Some(&mut device.service)
    }

    /// The service of a PCI device's bus, to look at.
    #[must_use]
    pub fn pci(&self, bus: Guid) -> Option<&PciService> {
        self.device(bus).map(|device| &device.service)
    }

    /// A port of a PCI device by its number: its MAC, and the NIC whose port it is. `None` if it is gone.
    #[must_use]
    pub fn port_of_device(&self, bus: Guid, port: usize) -> Option<(MacAddress, usize)> {
        let port = self.device(bus)?.ports.get(port).filter(|port| !port.device.is_gone())?;
        Some((port.device.mac(), port.nic))
    }

    /// Pieces of guest memory that guests have shared over channels and not taken back.
    #[must_use]
    pub fn gpadls(&self) -> usize {
        self.bus.gpadls()
    }

    /// What the guest had not given back when it took its leave, the last time that it did.
    #[must_use]
    pub const fn left_behind(&self) -> LeftBehind {
        self.bus.left_behind()
    }

    fn device(&self, instance: Guid) -> Option<&HostPci> {
        self.devices.iter().find(|device| device.instance == instance)
    }

    fn device_mut(&mut self, instance: Guid) -> Option<&mut HostPci> {
        self.devices.iter_mut().find(|device| device.instance == instance)
    }

    /// Where the VF of a NIC is.
    #[must_use]
    pub fn vf_place(&self, nic: usize) -> VfPlace {
        let Some(nic) = self.nics.get(nic) else { return VfPlace::Absent };
        match nic.vf.and_then(|bus| self.device(bus)) {
            None => VfPlace::Absent,
            Some(vf) if !vf.is_offered() => VfPlace::Moving,
            Some(_) if nic.service.data_path() == Path::Vf => VfPlace::InUse,
            Some(_) => VfPlace::Offered,
        }
    }

    /// The serial of a NIC's VF, as its function has it.
    #[must_use]
    pub fn vf_serial(&self, nic: usize) -> Option<Serial> {
        Some(self.device(self.nics.get(nic)?.vf?)?.serial)
    }
}

//! A guest of one NIC with a VF, out of the crates `vmbus`, `vpci` and `netvsc`. This is what a kernel or a unikernel writes around the
//! machines, and nothing of it is hidden: where memory comes from, who rings whom, and the way of a port from the PCI bus to its NIC and
//! back.
//!
//! A guest of several NICs has a table where this one has a field; the program's own shell (`crates/netvsc-cli/src/guest`) also resets,
//! suspends and adds queues.

use std::collections::BTreeMap;
use std::error::Error;
use std::sync::Arc;

use hyperv_host::Host;
use hyperv_host::bus::BusPolicy;
use hyperv_host::host::{NicSpec, VfSpec};
use hyperv_host::memory::GuestRam;
use hyperv_host::nic::NicPolicy;
use hyperv_host::pci::PciPolicy;
use hyperv_host::switch::PortConfig;
use hyperv_host::vf::SimulatedPort;
use netvsc::adapter::{AdapterConfig, AdapterEvent};
use netvsc::failover::Cause;
use netvsc::pairing::{self, Decision, FunctionKey, Pairing, PairingConfig, PermanentMac};
use netvsc::stack::{Frames, FramesConfig};
use netvsc::{Adapter, MacAddress, Nic, NicConfig, NicEvent, SharedBuffer, VfPort};
use vmbus::bus::{Bus, BusConfig, Event as BusEvent, Offer};
use vmbus::memory::SharedPages;
use vmbus::message::{NIC_CLASS, VPCI_CLASS};
use vmbus::time::earliest;
use vmbus::{Channel, ChannelId, ConnectionId, Guid, Instant, Platform, Serial, SignalFlag};
use vpci::bus::{Event as PciEvent, FunctionId, PciBus, PciBusConfig};

pub type Outcome<T> = Result<T, Box<dyn Error>>;

/// The NIC's address.
pub const MAC: MacAddress = MacAddress([0x00, 0x15, 0x5d, 0, 0, 1]);
/// The first VF that the host gives to it.
pub const VF: VfSpec =
    VfSpec { instance: VF_BUS, serial: Serial(7), associated: None, offer_first: false };
const NIC: Guid = Guid::from_u128(0x1111);
const VF_BUS: Guid = Guid::from_u128(0x2222);
/// Pages of each ring, and of each buffer.
const RING: usize = 17;
const BUFFER: usize = 256;
/// Where the guest maps the window of the PCI bus.
const WINDOW: u64 = 0xf_e000_0000;

/// A guest that makes contact with a host, which has one NIC for it.
pub fn start(now: Instant) -> Outcome<(Host, Guest)> {
    let ram = GuestRam::new(1, 4096);
    let mut host = Host::new(BusPolicy::default(), PciPolicy::default(), Arc::new(ram.clone()));
    let (policy, port) = (NicPolicy::default(), PortConfig::default());
    host.add_nic(NicSpec { instance: NIC, mac: MAC, policy, port }, now);
    let mut guest = Guest::new(ram);
    guest.bus.start(now)?;
    Ok((host, guest))
}

/// A channel from its offer to its work.
enum Stage<T> {
    Absent,
    Opening(Channel),
    /// The host is told of two buffers; so many of them it has not confirmed.
    Sharing(Channel, [SharedBuffer; 2], usize),
    Running(T),
}

impl<T> Stage<T> {
    fn take(&mut self) -> Self {
        std::mem::replace(self, Self::Absent)
    }
}

/// The VF as the guest knows it.
struct Vf {
    function: FunctionId,
    /// Its names in pairing.
    in_pairing: pairing::FunctionId,
    port_in_pairing: pairing::PortId,
    /// What the device raises when frames have come.
    interrupt: SignalFlag,
    /// The driver's port, while the NIC does not have it.
    port: Option<SimulatedPort>,
    ejecting: bool,
}

pub struct Guest {
    ram: GuestRam,
    bus: Bus,
    /// Who rings for which channel.
    doorbells: BTreeMap<ConnectionId, SignalFlag>,
    nic_channel: Option<ChannelId>,
    pci_channel: Option<ChannelId>,
    nic: Stage<Adapter<Nic, SimulatedPort>>,
    pci: Stage<PciBus>,
    pairing: Pairing,
    nic_in_pairing: Option<pairing::NicId>,
    /// An association that came before the NIC was ready.
    early: Option<Serial>,
    vf: Option<Vf>,
    /// Pairing waits to hear that the NIC has let its port go.
    unbinding: Option<(pairing::NicId, pairing::PortId)>,
    /// What came for the stack, and what it sends.
    pub frames: Frames,
}

impl Guest {
    fn new(ram: GuestRam) -> Self {
        Self {
            ram,
            bus: Bus::new(BusConfig::default()),
            doorbells: BTreeMap::new(),
            nic_channel: None,
            pci_channel: None,
            nic: Stage::Absent,
            pci: Stage::Absent,
            pairing: Pairing::new(PairingConfig::default()),
            nic_in_pairing: None,
            early: None,
            vf: None,
            unbinding: None,
            frames: Frames::new(FramesConfig { mac: MAC, trust: true, ..FramesConfig::default() }),
        }
    }

    /// The card, once its NIC has its channel.
    pub fn adapter(&mut self) -> Option<&mut Adapter<Nic, SimulatedPort>> {
        if let Stage::Running(adapter) = &mut self.nic { Some(adapter) } else { None }
    }

    /// Whether the NIC is at work.
    pub fn is_ready(&self) -> bool {
        self.nic_in_pairing.is_some()
    }

    /// Whether the guest knows of a VF.
    pub fn has_vf(&self) -> bool {
        self.vf.is_some()
    }

    /// Polls every machine once and heeds what it says. True if there may be more to do.
    fn poll(&mut self, host: &Host, now: Instant) -> Outcome<bool> {
        let mut moved = false;
        self.bus.handle_deadline(now);
        self.pairing.handle_deadline(now);
        while let Some(event) = self.bus.poll_event() {
            self.bus_event(event, now)?;
            moved = true;
        }
        let frames = &mut self.frames;
        if let Stage::Running(adapter) = &mut self.nic {
            adapter.poll(now, &mut |_path, frame| frames.push_frame(frame))?;
            moved |= frames.send(adapter, now);
        }
        while let Some(event) = self.adapter().and_then(Adapter::poll_event) {
            self.nic_event(event, now)?;
            moved = true;
        }
        if let Stage::Running(pci) = &mut self.pci {
            pci.poll(now)?;
        }
        while let Some(event) =
            if let Stage::Running(pci) = &mut self.pci { pci.poll_event() } else { None }
        {
            self.pci_event(event, host, now)?;
            moved = true;
        }
        while let Some(decision) = self.pairing.poll_decision() {
            println!("{now} pairing: {decision}");
            self.carry_out(&decision, now)?;
            moved = true;
        }
        Ok(moved)
    }

    /// When to poll although nobody rang.
    pub fn deadline(&self) -> Option<Instant> {
        let bus = earliest(self.bus.poll_deadline(), self.pairing.poll_deadline());
        let nic = if let Stage::Running(nic) = &self.nic { nic.poll_deadline() } else { None };
        let pci = if let Stage::Running(pci) = &self.pci { pci.poll_deadline() } else { None };
        earliest(bus, earliest(nic, pci))
    }

    fn bus_event(&mut self, event: BusEvent, now: Instant) -> Outcome<()> {
        match event {
            BusEvent::Offered(offer) if offer.class == NIC_CLASS => {
                self.nic_channel = Some(offer.channel);
                self.nic = Stage::Opening(self.open(&offer, now)?);
            }
            BusEvent::Offered(offer) if offer.class == VPCI_CLASS => {
                self.pci_channel = Some(offer.channel);
                self.pci = Stage::Opening(self.open(&offer, now)?);
            }
            BusEvent::Opened { channel } if self.nic_channel == Some(channel) => {
                let Stage::Opening(link) = self.nic.take() else { return Ok(()) };
                let mut share = || -> Outcome<SharedBuffer> {
                    let pages = self.ram.allocate(BUFFER)?;
                    let gpadl = self.bus.share(channel, &pages, now)?;
                    Ok(SharedBuffer { gpadl, pages })
                };
                let buffers = [share()?, share()?];
                self.nic = Stage::Sharing(link, buffers, 2);
            }
            BusEvent::Shared { .. } => {
                let Stage::Sharing(link, [receive, send], waiting) = self.nic.take() else {
                    return Ok(());
                };
                self.nic = if waiting > 1 {
                    Stage::Sharing(link, [receive, send], waiting - 1)
                } else {
                    let nic = Nic::new(link, receive, Some(send), NicConfig::default(), now)?;
                    Stage::Running(Adapter::new(nic, AdapterConfig::default()))
                };
            }
            BusEvent::Opened { channel } if self.pci_channel == Some(channel) => {
                let Stage::Opening(link) = self.pci.take() else { return Ok(()) };
                self.pci = Stage::Running(PciBus::new(link, PciBusConfig::new(WINDOW), now));
            }
            // A bus that goes takes along what is on it. Its channel's number is given back when nobody uses it any more.
            BusEvent::Rescinded { channel } => {
                if self.pci_channel == Some(channel) {
                    (self.pci_channel, self.pci) = (None, Stage::Absent);
                    self.vf_left(now)?;
                }
                self.bus.release(channel, now)?;
            }
            other => println!("{now} bus: {other:?}"),
        }
        Ok(())
    }

    /// Two rings, and a doorbell that tells the host of them.
    fn open(&mut self, offer: &Offer, now: Instant) -> Outcome<Channel> {
        let rings: SharedPages = self.ram.allocate(2 * RING)?;
        let (up, down) = rings.slice(0, RING).zip(rings.slice(RING, RING)).ok_or("no rings")?;
        let doorbell = self.doorbells.entry(offer.connection).or_default().clone();
        self.bus.open(offer.channel, &rings, RING as u32, 0, now)?;
        Ok(Channel::from_parts(up, down, doorbell)?)
    }

    fn nic_event(
        &mut self,
        event: AdapterEvent<NicEvent, SimulatedPort>,
        now: Instant,
    ) -> Outcome<()> {
        match event {
            AdapterEvent::Nic(NicEvent::Ready { mac, .. }) => {
                // What the host does to frames, a stack need not do; the adapter does it for a VF that does not.
                if let Stage::Running(adapter) = &self.nic {
                    self.frames.set_offloads(adapter.offloads());
                }
                let pairing = &mut self.pairing;
                self.nic_in_pairing = Some(match self.early.take() {
                    Some(serial) => pairing.nic_arrived_associated(NIC, mac, serial, now),
                    None => pairing.nic_arrived(NIC, mac, now),
                });
            }
            AdapterEvent::Nic(NicEvent::Associated { serial }) => match self.nic_in_pairing {
                Some(nic) => self.pairing.associated(nic, serial, now)?,
                None => self.early = Some(serial),
            },
            AdapterEvent::Nic(NicEvent::Disassociated { .. }) => match self.nic_in_pairing {
                Some(nic) => self.pairing.disassociated(nic, now)?,
                None => self.early = None,
            },
            AdapterEvent::Released { port, .. } => {
                if let Some(vf) = &mut self.vf {
                    vf.port = Some(port);
                }
                if let Some((nic, port)) = self.unbinding.take() {
                    self.pairing.unbound(nic, port, now)?;
                }
                self.give_back(now)?;
            }
            AdapterEvent::Nic(event) => println!("{now} nic: {event:?}"),
            AdapterEvent::Path { path, cause } => {
                println!("{now} nic: frames leave on the {path} path: {cause}");
            }
            other => println!("{now} nic: {}", other.word()),
        }
        Ok(())
    }

    fn pci_event(&mut self, event: PciEvent, host: &Host, now: Instant) -> Outcome<()> {
        match event {
            PciEvent::FunctionArrived(function) => {
                let description = &function.description;
                let key = FunctionKey {
                    bus: VF_BUS,
                    slot: function.slot().to_wire(),
                    vendor: description.vendor,
                    device: description.device,
                    serial: function.serial(),
                };
                let in_pairing = self.pairing.function_arrived(key, now);
                // The driver of the function. A kernel maps its BARs; here the host hands the registers over.
                let registers = host.map_ports(VF_BUS).pop().ok_or("no registers")?;
                let interrupt = registers.interrupt.clone();
                let port = SimulatedPort::open(registers, &self.ram, 64)?;
                let mac = port.permanent_mac().map_or(PermanentMac::NotYet, PermanentMac::Known);
                let port_in_pairing = self.pairing.port_arrived(in_pairing, 0, mac, now)?;
                let (function, port) = (function.id, Some(port));
                self.vf = Some(Vf {
                    function,
                    in_pairing,
                    port_in_pairing,
                    interrupt,
                    port,
                    ejecting: false,
                });
            }
            PciEvent::EjectRequested { .. } => {
                let Some(vf) = &mut self.vf else { return Ok(()) };
                vf.ejecting = true;
                // Stop, switch, wait for the host, drain; `Released` follows.
                match self.adapter().filter(|adapter| adapter.has_port()) {
                    Some(adapter) => adapter.release(Cause::Eject, now),
                    None => self.give_back(now)?,
                }
            }
            PciEvent::FunctionLeft(_) => self.vf_left(now)?,
            other => println!("{now} pci: {other:?}"),
        }
        Ok(())
    }

    /// Torn away, if nobody had let it go before: what it took along is sent again.
    fn vf_left(&mut self, now: Instant) -> Outcome<()> {
        let Some(vf) = self.vf.take() else { return Ok(()) };
        if let Some(adapter) = self.adapter() {
            adapter.port_gone(now);
        }
        Ok(self.pairing.function_left(vf.in_pairing, now)?)
    }

    /// The host gets the function that it wants back, once its driver has stopped.
    fn give_back(&mut self, now: Instant) -> Outcome<()> {
        let Some(vf) = self.vf.as_mut().filter(|vf| vf.ejecting) else { return Ok(()) };
        drop(vf.port.take());
        self.pairing.port_left(vf.port_in_pairing, now)?;
        if let Stage::Running(pci) = &mut self.pci {
            pci.eject_complete(vf.function)?;
        }
        Ok(())
    }

    fn carry_out(&mut self, decision: &Decision, now: Instant) -> Outcome<()> {
        match decision {
            Decision::Bind { .. } => {
                let port = self.vf.as_mut().and_then(|vf| vf.port.take()).ok_or("no port")?;
                let adapter = self.adapter().ok_or("no NIC")?;
                adapter.bind(port, now).map_err(|_| "the NIC has a port already")?;
            }
            Decision::Unbind { nic, port, .. } => {
                let (nic, port) = (nic.id, port.id);
                match self.adapter().filter(|adapter| adapter.has_port()) {
                    Some(adapter) => {
                        adapter.release(Cause::Unbound, now);
                        self.unbinding = Some((nic, port));
                    }
                    None => self.pairing.unbound(nic, port, now)?,
                }
            }
            _ => {}
        }
        Ok(())
    }
}

/// Carries messages, doorbells and interrupts between the two until neither has anything more to do now.
pub fn settle(host: &mut Host, guest: &mut Guest, now: Instant) -> Outcome<()> {
    // A kernel polls what rang. With two channels all of them may be polled each time.
    for _ in 0..100 {
        let mut moved = guest.poll(host, now)?;
        while let Some(post) = guest.bus.poll_outgoing() {
            host.handle_message(post.connection, &post.payload, now);
            moved = true;
        }
        for (connection, doorbell) in &guest.doorbells {
            if doorbell.take() {
                host.signalled(*connection);
                moved = true;
            }
        }
        host.poll(now);
        while let Some(message) = host.poll_message() {
            guest.bus.handle_message(&message, now)?;
            moved = true;
        }
        moved |= host.interrupts().count() > 0;
        moved |= guest.vf.as_ref().is_some_and(|vf| vf.interrupt.take());
        if !moved {
            return Ok(());
        }
    }
    Err("they talk for ever".into())
}

/// Lets time go on, step by step from one deadline to the next, until something is so.
pub fn until(
    host: &mut Host,
    guest: &mut Guest,
    now: &mut Instant,
    so: impl Fn(&mut Host, &mut Guest) -> bool,
) -> Outcome<()> {
    for _ in 0..1000 {
        settle(host, guest, *now)?;
        if so(host, guest) {
            return Ok(());
        }
        let next = earliest(host.poll_deadline(), guest.deadline());
        *now = next.ok_or("nobody waits for anything")?.max(*now);
    }
    Err("it never came to that".into())
}

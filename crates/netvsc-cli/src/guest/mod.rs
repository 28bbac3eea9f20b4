//! The guest's shell: it joins the machines of `vmbus`, `vpci` and `netvsc` and gives them what they need.
//!
//! Everything a kernel would do around them is here: memory for rings and buffers, the order in which a NIC comes up, the way
//! of a VF's port from the PCI bus to the NIC it belongs to, and back. It has no clock and no thread.

mod blackout;
mod messages;
mod nic;
mod pair;
mod pci;
mod queue;
mod renew;
mod sleep;

use std::collections::{BTreeMap, VecDeque};

use hyperv_host::switch::Uncut;
use netvsc::adapter::{AdapterConfig, AdapterCounters, AdapterError};
use netvsc::nic::{NicOffloads, TxFrame};
use netvsc::pairing::{DeviceKind, Pairing, PairingConfig};
use netvsc::rndis::scaling::KEY_SIZE;
use netvsc::{MacAddress, NicConfig, PathOffloads, VfPort};
use vmbus::bus::{Bus, BusConfig, Error as BusError, Event as BusEvent, Offer, Wait};
use vmbus::memory::SharedPages;
use vmbus::message::{NIC_CLASS, VPCI_CLASS};
use vmbus::platform::Platform;
use vmbus::time::earliest;
use vmbus::{Channel, ChannelId, ConnectionId, Doorbell, Guid, Instant};
use vpci::bus::Function;

use crate::capture::Capture;
use crate::error::Error;
use crate::event::{PairLine, What};
use crate::report::NicView;
pub use blackout::{BlackoutLine, Blackouts, Tally};
use nic::NicDevice;
pub(crate) use nic::nvsp_name;
use pci::PciDevice;
use sleep::Sleep;

/// What the guest runs on.
pub trait Machine: Platform {
    /// How it tells the host to look at a channel.
    type Doorbell: Doorbell;
    /// Ports of virtual functions.
    type Port: VfPort;

    /// A doorbell for the channel with this connection id.
    fn doorbell(&mut self, connection: ConnectionId) -> Self::Doorbell;

    /// The channel with this connection id is gone.
    fn forget_doorbell(&mut self, connection: ConnectionId);

    /// The driver of a network function takes it into use: its ports, in the order of their numbers.
    ///
    /// # Errors
    /// Why it could not, in words.
    fn open_ports(&mut self, bus: Guid, function: &Function) -> Result<Vec<Self::Port>, String>;
}

/// Where frames that were received go: the number of their NIC, and how to append the frame to a buffer, which tells if it is a
/// segment longer than a frame.
pub type Sink<'a> = dyn FnMut(usize, &mut dyn FnMut(&mut Vec<u8>) -> Option<Uncut>) + 'a;

/// What became of a frame that was to be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sending {
    /// The NIC has it, or it can never be sent and was counted.
    Taken,
    /// Not now.
    Later,
}

/// Who uses a channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Owner {
    /// The NIC with this number.
    Nic(usize),
    /// The NIC with this number, for its sub-channel with that one.
    Queue(usize, u16),
    /// The PCI bus with this instance GUID.
    Pci(Guid),
}

/// A guest.
pub struct Guest<M: Machine> {
    machine: M,
    bus: Bus,
    nics: Vec<NicDevice<M::Doorbell, M::Port>>,
    buses: BTreeMap<Guid, PciDevice<M::Doorbell, M::Port>>,
    owners: BTreeMap<ChannelId, (Owner, ConnectionId)>,
    pairing: Pairing,
    events: VecDeque<What>,
    capture: Option<Capture>,
    nic_config: NicConfig,
    /// Segments are taken as they come.
    whole: bool,
    blackouts: Blackouts,
    /// Pages of each ring of a NIC's channel.
    nic_rings: usize,
    /// The key by which hosts spread frames over the channels of NICs.
    spread_key: [u8; KEY_SIZE],
    sleep: Sleep,
}

impl<M: Machine> std::fmt::Debug for Guest<M> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Guest").field("nics", &self.nics.len()).finish_non_exhaustive()
    }
}

impl<M: Machine> Guest<M> {
    /// A guest that has not made contact with its host.
    #[must_use]
    pub fn new(machine: M) -> Self {
        Self {
            machine,
            bus: Bus::new(BusConfig::default()),
            nics: Vec::new(),
            buses: BTreeMap::new(),
            owners: BTreeMap::new(),
            pairing: Pairing::new(PairingConfig::default()),
            events: VecDeque::new(),
            capture: None,
            nic_config: NicConfig::default(),
            whole: false,
            blackouts: Blackouts::default(),
            nic_rings: nic::RING_PAGES,
            spread_key: [0; KEY_SIZE],
            sleep: Sleep::default(),
        }
    }

    /// Has the frames of all NICs that start from now on written to a file.
    pub fn capture_into(&mut self, capture: Capture) {
        self.capture = Some(capture);
    }

    /// Numbers NICs before they are offered; those that are not named here follow in the order of their offers.
    pub fn number_nics(&mut self, instances: impl IntoIterator<Item = Guid>) {
        self.nics.extend(instances.into_iter().map(NicDevice::new));
    }

    /// Has NICs that are offered from now on take rings of so many pages each, header page included: at least two.
    pub fn set_nic_rings(&mut self, pages: usize) {
        self.nic_rings = pages.max(2);
    }

    /// Takes leave of the host, which forgets everything that was shared with it.
    ///
    /// # Errors
    /// If there is no connection.
    pub fn unload(&mut self, now: Instant) -> Result<(), Error> {
        self.bus.unload(now).map_err(|error| Error::Run(error.to_string()))
    }

    /// Makes contact with the host.
    ///
    /// # Errors
    /// If it has been made before.
    pub fn start(&mut self, now: Instant) -> Result<(), Error> {
        self.bus.start(now).map_err(|error| Error::Run(error.to_string()))
    }

    /// An emulated network card was seen. It is never paired.
    pub fn see_emulated(&mut self, mac: MacAddress) {
        if seeded!("emulated-is-a-nic") {
            self.pairing.nic_arrived(Guid::nil(), mac, Instant::ZERO);
        }
        self.pairing.ignored(DeviceKind::Emulated, mac);
    }

    /// The host rang for a channel. An unknown one is no error: it may have been released just now.
    pub fn interrupt(&mut self, channel: ChannelId) {
        match self.owners.get(&channel) {
            Some((Owner::Nic(nic) | Owner::Queue(nic, _), _)) => {
                if let Some(nic) = self.nics.get_mut(*nic) {
                    nic.rung = true;
                }
            }
            Some((Owner::Pci(bus), _)) => {
                if let Some(bus) = self.buses.get_mut(bus) {
                    bus.rung = true;
                }
            }
            None => {}
        }
    }

    /// A VF on this bus raised its interrupt.
    pub fn port_interrupt(&mut self, bus: Guid) {
        for nic in &mut self.nics {
            if nic.bound.is_some_and(|bound| bound.bus == bus) {
                nic.rung = true;
            }
        }
    }

    /// The next event.
    pub fn poll_event(&mut self) -> Option<What> {
        self.events.pop_front()
    }

    /// Does all that can be done at `now`. True if anything was done.
    pub fn poll(&mut self, now: Instant, sink: &mut Sink<'_>) -> bool {
        let mut any = false;
        self.bus.handle_deadline(now);
        self.pairing.handle_deadline(now);
        loop {
            let mut moved = false;
            self.bus.conceal(&self.machine);
            while let Some(event) = self.bus.poll_event() {
                self.handle_bus_event(event, now);
                moved = true;
            }
            for nic in 0..self.nics.len() {
                moved |= self.poll_nic(nic, now, sink);
            }
            moved |= self.poll_buses(now);
            moved |= self.drowse(now);
            while let Some(decision) = self.pairing.poll_decision() {
                self.carry_out(decision, now);
                moved = true;
            }
            if !moved {
                return any;
            }
            any = true;
        }
    }

    /// When to poll at the latest.
    #[must_use]
    pub fn deadline(&self) -> Option<Instant> {
        let mut at = earliest(self.bus.poll_deadline(), self.pairing.poll_deadline());
        at = earliest(at, self.sleep_deadline());
        for nic in &self.nics {
            at = earliest(at, nic.deadline());
        }
        for bus in self.buses.values() {
            at = earliest(at, bus.deadline());
        }
        at
    }

    fn handle_bus_event(&mut self, event: BusEvent, now: Instant) {
        match event {
            BusEvent::Connected { version, .. } => {
                self.events.push_back(What::Connected { version: version.to_string() });
            }
            BusEvent::ContactFailed(why) => self.fail(format!("no contact with the host: {why:?}")),
            BusEvent::Offered(offer) => self.offered(&offer, now),
            BusEvent::Opened { channel } => match self.owner(channel) {
                Some(Owner::Nic(nic)) => self.share_buffers(nic, now),
                Some(Owner::Queue(nic, number)) => self.queue_opened(nic, number, channel, now),
                Some(Owner::Pci(bus)) => {
                    if let Some(bus) = self.buses.get_mut(&bus) {
                        bus.opened(now);
                    }
                }
                None => {}
            },
            BusEvent::Shared { channel, gpadl } => {
                if let Some(Owner::Nic(nic)) = self.owner(channel) {
                    self.buffer_shared(nic, gpadl, now);
                }
            }
            BusEvent::OpenFailed { channel, step, status } => {
                self.fail(format!("channel {channel} did not open: {step:?}, status {status:#x}"));
                match self.owner(channel) {
                    Some(Owner::Nic(nic)) => self.give_up_opening(nic, now),
                    Some(Owner::Queue(nic, number)) => self.queue_gone(nic, number, now),
                    Some(Owner::Pci(_)) | None => {}
                }
            }
            BusEvent::ShareFailed { channel, gpadl, status } => {
                self.fail(format!(
                    "channel {channel}: the host refused {gpadl}, status {status:#x}"
                ));
                if let Some(Owner::Nic(nic)) = self.owner(channel) {
                    self.give_up_opening(nic, now);
                }
            }
            BusEvent::Closed { channel } => match self.owner(channel) {
                Some(Owner::Nic(nic)) => self.nic_closed(nic, channel, now),
                Some(Owner::Queue(nic, number)) => self.queue_gone(nic, number, now),
                Some(Owner::Pci(bus)) => self.bus_closed(bus),
                None => {}
            },
            BusEvent::Rescinded { channel } => self.rescinded(channel, now),
            BusEvent::Released { channel } => {
                if let Some((_, connection)) = self.owners.remove(&channel) {
                    self.machine.forget_doorbell(connection);
                }
            }
            BusEvent::Overdue(wait) => {
                self.events.push_back(What::Overdue { what: format!("bus: {wait:?}") });
                if wait == Wait::Unload {
                    self.left_host();
                }
            }
            BusEvent::Unloaded => self.left_host(),
            BusEvent::AllOffersDelivered => self.all_offered(now),
            BusEvent::Unshared { .. }
            | BusEvent::Retargeted { .. }
            | BusEvent::ConnectionModified { .. }
            | BusEvent::Paused => {}
        }
    }

    fn owner(&self, channel: ChannelId) -> Option<Owner> {
        self.owners.get(&channel).map(|(owner, _)| *owner)
    }

    fn fail(&mut self, what: String) {
        self.events.push_back(What::Failed { what });
    }

    fn offered(&mut self, offer: &Offer, now: Instant) {
        if offer.sub_channel != 0 {
            self.sub_channel_offered(offer, now);
            return;
        }
        let pages = match offer.class {
            NIC_CLASS => self.nic_rings,
            VPCI_CLASS => pci::RING_PAGES,
            _ => return,
        };
        match self.open(offer, pages, now) {
            // The host took it back at once; that event follows.
            Ok(None) => self.machine.forget_doorbell(offer.connection),
            Ok(Some(link)) if offer.class == NIC_CLASS => {
                let number = self.nics.iter().position(|nic| nic.instance == offer.instance);
                let number = number.unwrap_or(self.nics.len());
                self.owners.insert(offer.channel, (Owner::Nic(number), offer.connection));
                let instance = offer.instance;
                if number == self.nics.len() {
                    self.nics.push(NicDevice::new(instance));
                }
                let link = self.wake_nic(number, offer.channel, link);
                if let (Some(nic), Some(link)) = (self.nics.get_mut(number), link) {
                    nic.opening(offer.channel, link);
                }
                self.events.push_back(What::NicOffered { nic: number, instance });
            }
            Ok(Some(link)) => {
                let owner = Owner::Pci(offer.instance);
                self.owners.insert(offer.channel, (owner, offer.connection));
                if let Some(link) = self.wake_bus(offer, link) {
                    let taken = |place| self.buses.values().any(|device| device.place() == place);
                    let place = (0..).find(|place| !taken(*place)).unwrap_or_default();
                    let device = PciDevice::new(offer.channel, place, link);
                    self.buses.insert(offer.instance, device);
                }
            }
            Err(why) => {
                self.machine.forget_doorbell(offer.connection);
                self.fail(format!("device {}: {why}", offer.instance));
            }
        }
    }

    /// Allocates rings of `pages` pages each, joins them to a channel and asks the host to open it. `None` if the channel is
    /// rescinded already.
    fn open(
        &mut self,
        offer: &Offer,
        pages: usize,
        now: Instant,
    ) -> Result<Option<Channel<SharedPages, M::Doorbell>>, String> {
        let rings = self.machine.allocate(2 * pages).map_err(|error| error.to_string())?;
        self.bus.reveal(&self.machine, &rings).map_err(|error| error.to_string())?;
        let halves = rings.slice(0, pages).zip(rings.slice(pages, pages));
        let (tx, rx) = halves.ok_or("rings of no pages")?;
        let doorbell = self.machine.doorbell(offer.connection);
        let link = Channel::from_parts(tx, rx, doorbell).map_err(|error| error.to_string())?;
        let downstream = u32::try_from(pages).map_err(|error| error.to_string())?;
        match self.bus.open(offer.channel, &rings, downstream, 0, now) {
            Ok(()) => Ok(Some(link)),
            Err(BusError::Rescinded { .. }) => Ok(None),
            Err(error) => Err(error.to_string()),
        }
    }

    fn rescinded(&mut self, channel: ChannelId, now: Instant) {
        match self.owner(channel) {
            Some(Owner::Nic(nic)) => self.nic_rescinded(nic, now),
            Some(Owner::Queue(nic, number)) => self.queue_gone(nic, number, now),
            Some(Owner::Pci(bus)) => self.bus_rescinded(bus, now),
            None => self.unused_rescinded(channel),
        }
        if let Err(error) = self.bus.release(channel, now) {
            self.fail(format!("channel {channel} could not be released: {error}"));
        }
    }

    /// Number of NICs that were ever offered.
    #[must_use]
    pub fn nics(&self) -> usize {
        self.nics.len()
    }

    /// Hands a frame to a NIC; it leaves with the next [`Guest::flush`].
    pub fn transmit(&mut self, nic: usize, frame: &[u8], now: Instant) -> Sending {
        let Some(adapter) = self.nics.get_mut(nic).and_then(NicDevice::adapter_mut) else {
            return Sending::Taken;
        };
        sending(adapter.transmit(frame, now))
    }

    /// The same for a frame that leaves work to the card.
    pub fn transmit_with(&mut self, nic: usize, frame: &TxFrame<'_>, now: Instant) -> Sending {
        let Some(adapter) = self.nics.get_mut(nic).and_then(NicDevice::adapter_mut) else {
            return Sending::Taken;
        };
        sending(adapter.transmit_with(frame, now))
    }

    /// What a NIC does to frames, on both of its paths if it has a VF.
    #[must_use]
    pub fn offloads(&self, nic: usize) -> PathOffloads {
        let adapter = self.nics.get(nic).and_then(NicDevice::adapter);
        adapter.map_or_else(PathOffloads::default, netvsc::Adapter::offloads)
    }

    /// Chooses what NICs that start from now on leave to the host.
    pub fn leave_to_host(&mut self, offloads: NicOffloads) {
        self.nic_config.offloads = offloads;
    }

    /// Chooses whether segments that VFs received as one reach the sink as one, with NICs that start from now on.
    pub fn take_whole(&mut self, whole: bool) {
        self.whole = whole;
    }

    /// Chooses the MTU of NICs that start from now on; the host may make it smaller.
    pub fn set_mtu(&mut self, mtu: u32) {
        self.nic_config.mtu = mtu;
    }

    /// Sends what a NIC was handed.
    pub fn flush(&mut self, nic: usize) {
        if let Some(adapter) = self.nics.get_mut(nic).and_then(NicDevice::adapter_mut) {
            adapter.flush();
        }
    }

    /// What a NIC did, over all its openings.
    #[must_use]
    pub fn counters(&self, nic: usize) -> AdapterCounters {
        self.nics.get(nic).map_or_else(AdapterCounters::default, NicDevice::counters)
    }

    /// The instance of a NIC's offer.
    #[must_use]
    pub fn instance(&self, nic: usize) -> Option<Guid> {
        self.nics.get(nic).map(|nic| nic.instance)
    }

    /// The path on which a NIC's frames leave, once it is at work.
    #[must_use]
    pub fn path(&self, nic: usize) -> Option<netvsc::Path> {
        self.nics.get(nic)?.adapter().map(netvsc::Adapter::path)
    }

    /// How long switches kept frames waiting.
    #[must_use]
    pub fn blackouts(&self) -> &Blackouts {
        &self.blackouts
    }

    /// Whether no frame and no switch of a NIC is under way, and no queue of it on its way.
    #[must_use]
    pub fn is_quiet(&self, nic: usize) -> bool {
        let Some(nic) = self.nics.get(nic) else { return true };
        nic.unopened.is_empty() && nic.adapter().is_none_or(netvsc::Adapter::is_quiet)
    }

    /// The port that a NIC is paired with: the bus of its function and its number there.
    #[must_use]
    pub fn paired_port(&self, nic: usize) -> Option<(Guid, u32)> {
        let (port, _) = self.pairing.bound(self.nics.get(nic)?.id?)?;
        Some((port.key.function.bus, port.key.index))
    }

    /// Frames of a NIC that its VF has not confirmed.
    #[must_use]
    pub fn unconfirmed(&self, nic: usize) -> usize {
        let adapter = self.nics.get(nic).and_then(NicDevice::adapter);
        adapter.map_or(0, netvsc::Adapter::unconfirmed)
    }

    /// Slots of a NIC's send buffer with frames under way.
    #[must_use]
    pub fn busy_slots(&self, nic: usize) -> usize {
        let adapter = self.nics.get(nic).and_then(NicDevice::adapter);
        adapter.map_or(0, |adapter| adapter.nic().busy_slots())
    }

    /// The path that the host confirmed last for a NIC, if none was asked for since.
    #[must_use]
    pub fn settled_path(&self, nic: usize) -> Option<netvsc::Path> {
        let adapter = self.nics.get(nic)?.adapter()?;
        (!adapter.is_switching()).then(|| adapter.host_path())
    }

    /// Something of a NIC that is under way and has no deadline. There should never be any.
    #[must_use]
    pub fn waits_forever(&self, nic: usize) -> Option<&'static str> {
        if self.buses.values().any(PciDevice::waits_forever) {
            return Some("a PCI bus");
        }
        if self.is_drowsy() && !self.is_asleep() && self.deadline().is_none() {
            return Some("the way to sleep or back");
        }
        let nic = self.nics.get(nic)?;
        if nic.is_opening() && self.bus.poll_deadline().is_none() {
            return Some("the opening of a channel");
        }
        let adapter = nic.adapter()?;
        // One on its way to sleep or back may have stopped before it was ever ready: what is to come is the guest's or the bus's, above.
        let elsewhere = nic.is_drowsy() || nic.is_asleep() || nic.is_opening();
        if nic.mac.is_none() && nic.deadline().is_none() && !elsewhere {
            return Some("the start of a NIC");
        }
        adapter.waits_forever().then_some("a switch, or the last frames of a path")
    }

    /// How often something did not fit into the ring of a NIC, since it was opened.
    #[must_use]
    pub fn ring_full(&self, nic: usize) -> u64 {
        let adapter = self.nics.get(nic).and_then(NicDevice::adapter);
        adapter.map_or(0, |adapter| {
            adapter.nic().totals().iter().map(|queue| queue.tx_ring_full).sum()
        })
    }

    /// Channels that are in use.
    #[must_use]
    pub fn channels(&self) -> usize {
        self.owners.len()
    }

    /// The pairs that there are.
    #[must_use]
    pub fn pairs(&self) -> Vec<PairLine> {
        let mut pairs: Vec<_> = self
            .pairing
            .pairs()
            .filter_map(|(nic, port, reason)| {
                let number = self.nics.iter().position(|known| known.id == Some(nic.id))?;
                let view = self.view(number);
                Some(PairLine {
                    nic: number,
                    serial: port.key.function.serial.0,
                    mac: view.mac,
                    reason: reason.word(),
                    state: view.state,
                    path: view.path,
                })
            })
            .collect();
        pairs.sort_by_key(|pair| pair.nic);
        pairs
    }

    /// How a NIC stands.
    #[must_use]
    pub fn view(&self, nic: usize) -> NicView {
        let Some(device) = self.nics.get(nic) else { return NicView::default() };
        let path = device.adapter().map_or(netvsc::Path::Synthetic, netvsc::Adapter::path);
        let state = device.id.and_then(|id| self.pairing.state(id).ok());
        let bound = device.id.and_then(|id| self.pairing.bound(id));
        NicView {
            mac: device.mac.map_or_else(String::new, |mac| mac.to_string()),
            state: state.map_or("starting", |state| state.on(path).word()).into(),
            path: crate::event::path_word(path),
            pair: bound.map_or_else(String::new, |(port, reason)| {
                format!("serial {} ({})", port.key.function.serial, reason.word())
            }),
            progress: None,
        }
    }
}

pub(crate) fn sending(result: Result<(), AdapterError>) -> Sending {
    match result {
        Err(AdapterError::Full(_)) => Sending::Later,
        Ok(()) | Err(AdapterError::NotReady | AdapterError::Refused { .. }) => Sending::Taken,
    }
}

/// How adapters are made here: a NIC may begin anew with the largest MTU that any host gives.
pub(crate) fn adapter_config() -> AdapterConfig {
    // Ethernet header and tag.
    AdapterConfig { frame_size: 9216 + 18, ..AdapterConfig::default() }
}

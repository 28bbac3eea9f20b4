//! A guest and a host in one place, stepped one message at a time.

use std::collections::BTreeMap;
use std::sync::Arc;

use vmbus::bus::{Bus, BusConfig, ChannelState, Event, Offer};
use vmbus::memory::{SharedMemory, SharedPages};
use vmbus::message::{NIC_CLASS, Version};
use vmbus::packet::Outgoing;
use vmbus::{Channel, ChannelId, GpadlId, Guid, Instant, Platform, SignalFlag};

use crate::bus::{BusEvent, BusPolicy, BusServer, DeviceId, HostChannel, OfferSpec};
use crate::memory::GuestRam;

/// Pages of both rings of a channel.
pub const RING_PAGES: usize = 8;

/// What a driver in the guest holds.
pub struct Driver {
    pub offer: Offer,
    pub open: Option<Channel>,
    pub bell: SignalFlag,
    pub shared: Vec<GpadlId>,
    /// How often it was opened.
    pub opened: usize,
}

/// What drivers do with offers.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Habit {
    /// Open the channel, share this many pages, and stay.
    Stay { pages: usize },
    /// The same, then close, open again and so on, this many times.
    Cycle { pages: usize, times: usize },
    /// Nothing.
    Watch,
}

pub struct World {
    pub ram: GuestRam,
    pub bus: Bus,
    pub host: BusServer,
    pub now: Instant,
    pub habit: Habit,
    pub drivers: BTreeMap<ChannelId, Driver>,
    pub services: BTreeMap<DeviceId, HostChannel>,
    /// Services that were told to stop and are slow about it.
    pub stopping: Vec<DeviceId>,
    pub slow_services: bool,
    pub guest_log: Vec<Event>,
    pub host_log: Vec<BusEvent>,
}

pub fn spec(instance: u128) -> OfferSpec {
    OfferSpec::new(NIC_CLASS, Guid::from_u128(instance), 8)
}

impl World {
    pub fn new(versions: &[Version], policy: BusPolicy, habit: Habit) -> Self {
        let ram = GuestRam::new(7, 3 * 4096);
        let host = BusServer::new(policy, Arc::new(ram.clone()));
        Self {
            bus: Bus::new(BusConfig { versions: versions.to_vec(), ..BusConfig::default() }),
            ram,
            host,
            now: Instant::ZERO,
            habit,
            drivers: BTreeMap::new(),
            services: BTreeMap::new(),
            stopping: Vec::new(),
            slow_services: false,
            guest_log: Vec::new(),
            host_log: Vec::new(),
        }
    }

    /// A connected guest that stays on every channel it is offered.
    pub fn usual() -> Self {
        let habit = Habit::Stay { pages: 40 };
        let mut world = Self::new(&Version::RECOMMENDED, BusPolicy::default(), habit);
        world.bus.start(world.now).unwrap();
        world
    }

    /// Delivers one message to the host, if there is one.
    pub fn post_one(&mut self) -> bool {
        let Some(post) = self.bus.poll_outgoing() else { return false };
        let result = self.host.handle_message(post.connection, &post.payload, self.now);
        assert_eq!(result, Ok(()), "{post:?}");
        self.host_events();
        true
    }

    /// Delivers one message to the guest, if there is one.
    pub fn answer_one(&mut self) -> bool {
        let Some(message) = self.host.poll_message() else { return false };
        self.bus.handle_message(&message, self.now).unwrap();
        self.guest_events();
        true
    }

    /// One step of whatever can move; `false` if nothing can.
    pub fn step(&mut self) -> bool {
        self.post_one() || self.answer_one() || self.stop_one() || self.pass_time()
    }

    pub fn run(&mut self) {
        while self.step() {}
    }

    /// Jumps to the next message that is under way.
    fn pass_time(&mut self) -> bool {
        let Some(next) = self.host.poll_deadline() else { return false };
        self.now = self.now.max(next);
        self.host.handle_deadline(self.now);
        true
    }

    /// Lets one slow service stop.
    pub fn stop_one(&mut self) -> bool {
        let Some(device) = self.stopping.pop() else { return false };
        self.services.remove(&device);
        self.host.closed(device, self.now);
        self.host_events();
        true
    }

    pub fn host_events(&mut self) {
        while let Some(event) = self.host.poll_event() {
            match event {
                BusEvent::Opened { device, channel } => {
                    assert!(self.services.insert(device, channel).is_none(), "opened twice");
                }
                BusEvent::Closing { device } => {
                    assert!(self.services.contains_key(&device), "closed without being open");
                    self.stopping.push(device);
                    if !self.slow_services {
                        self.stop_one();
                    }
                }
                event => self.host_log.push(event),
            }
        }
    }

    pub fn guest_events(&mut self) {
        while let Some(event) = self.bus.poll_event() {
            self.react(&event);
            self.guest_log.push(event);
        }
    }

    fn react(&mut self, event: &Event) {
        let now = self.now;
        match event {
            Event::Offered(offer) => {
                let (shared, bell) = (Vec::new(), SignalFlag::new());
                let driver = Driver { offer: offer.clone(), open: None, bell, shared, opened: 0 };
                assert!(self.drivers.insert(offer.channel, driver).is_none(), "offered twice");
                self.open(offer.channel);
            }
            Event::Opened { channel } => {
                if let Habit::Stay { pages } | Habit::Cycle { pages, .. } = self.habit {
                    let memory = self.ram.allocate(pages).unwrap();
                    let gpadl = self.bus.share(*channel, &memory, now).unwrap();
                    self.drivers.get_mut(channel).unwrap().shared.push(gpadl);
                }
            }
            Event::Shared { channel, .. } => {
                if matches!(self.habit, Habit::Cycle { .. }) {
                    self.drivers.get_mut(channel).unwrap().open = None;
                    self.bus.close(*channel, now).unwrap();
                }
            }
            Event::Unshared { channel, gpadl } => {
                self.drivers.get_mut(channel).unwrap().shared.retain(|id| id != gpadl);
            }
            Event::Closed { channel } => {
                let driver = &self.drivers[channel];
                assert!(driver.shared.is_empty());
                if matches!(self.habit, Habit::Cycle { times, .. } if driver.opened < times) {
                    self.open(*channel);
                }
            }
            Event::Rescinded { channel } => {
                self.drivers.remove(channel);
                self.bus.release(*channel, now).unwrap();
            }
            Event::Unloaded => self.drivers.clear(),
            _ => {}
        }
    }

    /// Opens a channel as a driver does.
    pub fn open(&mut self, channel: ChannelId) {
        if self.habit == Habit::Watch {
            return;
        }
        let rings = self.ram.allocate(RING_PAGES).unwrap();
        let driver = self.drivers.get_mut(&channel).unwrap();
        driver.open = Some(guest_end(&rings, &driver.bell));
        driver.opened += 1;
        self.bus.open(channel, &rings, RING_PAGES as u32 / 2, 0, self.now).unwrap();
    }

    /// The channel under which the guest holds the device of this instance.
    pub fn channel(&self, instance: u128) -> Option<ChannelId> {
        let instance = Guid::from_u128(instance);
        let of = |driver: &Driver| driver.offer.instance == instance;
        self.drivers.iter().find(|(_, driver)| of(driver)).map(|(id, _)| *id)
    }

    /// Whether a device is of full use: open, with its shared memory, and packets go both ways.
    pub fn works(&mut self, device: DeviceId) -> bool {
        let Some(channel) = self.host.channel_of(device) else { return false };
        let Some(driver) = self.drivers.get_mut(&channel) else { return false };
        let confirmed =
            |gpadl: &GpadlId| self.guest_log.contains(&Event::Shared { channel, gpadl: *gpadl });
        if self.bus.channel_state(channel) != Some(ChannelState::Open)
            || driver.shared.is_empty()
            || !driver.shared.iter().all(confirmed)
        {
            return false;
        }
        let (Some(guest), Some(host)) = (&mut driver.open, self.services.get_mut(&device)) else {
            return false;
        };
        pass(guest, host) && pass(host, guest)
    }

    /// Nothing of a former life is left anywhere.
    pub fn assert_clean(&self) {
        assert!(self.services.is_empty(), "a service still holds a channel");
        assert_eq!(self.host.gpadls(), 0, "the host still knows memory");
        assert_eq!(self.bus.shared_pages(), 0, "the guest still waits for memory");
        assert_eq!(self.ram.allocated(), 0, "pages leaked");
        assert_eq!(self.bus.poll_deadline(), None, "the guest still waits for something");
    }

    pub fn released(&self) -> usize {
        self.host_log.iter().filter(|event| matches!(event, BusEvent::Released { .. })).count()
    }
}

/// Whether a packet goes from one end to the other. What lies in the ring before is read.
fn pass<A: SharedMemory, B: SharedMemory>(
    from: &mut Channel<A, SignalFlag>,
    to: &mut Channel<B, SignalFlag>,
) -> bool {
    let packet = Outgoing::InBand { transaction_id: 0x77, completion: false, payload: b"works" };
    let mut buffer = [0; 256];
    while let Ok(Some(_)) = to.receive(&mut buffer) {}
    from.try_send(&packet).is_ok()
        && matches!(to.receive(&mut buffer), Ok(Some(packet)) if packet.transaction_id == 0x77)
        && to.commit_read().is_ok()
}

pub fn guest_end(rings: &SharedPages, bell: &SignalFlag) -> Channel {
    let half = RING_PAGES / 2;
    let (tx, rx) = (rings.slice(0, half).unwrap(), rings.slice(half, half).unwrap());
    Channel::from_parts(tx, rx, bell.clone()).unwrap()
}

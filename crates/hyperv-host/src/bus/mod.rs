//! The host's side of a VMBus connection.
//!
//! [`BusServer`] keeps the devices, offers them to whatever guest makes contact, and hands the rings of an opened channel
//! to whoever serves the device. It checks what a guest does and says what was wrong ([`GuestError`]), and it behaves as
//! slowly, in whatever order and as unfriendly as its [`BusPolicy`] says, within what a host may do.
//!
//! # The life of a device
//! [`BusServer::offer`] → [`BusEvent::Opened`] → [`BusEvent::Closing`] → [`BusServer::closed`] → [`BusEvent::Opened`] …
//! [`BusServer::rescind`] → [`BusEvent::Released`]. A rescinded device that was open gets [`BusEvent::Closing`], too. A
//! device offered with the instance of one that the guest still holds waits until the guest has let go.

mod connection;
mod device;
mod family;
mod fault;
mod guest;
mod monitor;
mod ring_fault;
mod types;

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::sync::Arc;

pub use fault::Fault;
use rand_core::{Rng, SeedableRng};
use rand_xoshiro::Xoshiro256PlusPlus;
pub use ring_fault::RingFault;
pub use types::*;
use vmbus::memory::PageList;
use vmbus::message::{
    AllOffersDelivered, Body, Features, GpadlCreated, GpadlTorndown, InitiateContact,
    MAX_CHANNEL_ID, OfferChannel, OfferFlags, Payload, RescindOffer, STATUS_REFUSED,
    UnloadResponse, Version, VersionResponse,
};
use vmbus::monitor::MonitorPage;
use vmbus::time::earliest;
use vmbus::{ChannelId, ConnectionId, GpadlId, Guid, Instant};
use zerocopy::little_endian::{U16, U32};

use self::device::{Device, signal_connection};
use self::fault::Faults;
use crate::memory::GuestMemory;

/// How many refused pieces of memory are remembered. A guest has one or two on their way at a time.
const REFUSED_REMEMBERED: usize = 64;

/// A connection with a guest.
#[derive(Clone, Copy, Debug)]
struct Link {
    version: Version,
    connection: ConnectionId,
    offers_requested: bool,
    features: Features,
    /// Guest physical addresses of the monitor pages, that from host to guest first.
    monitor_pages: Option<(u64, u64)>,
    /// The guest wants no messages for now.
    paused: bool,
    /// The guest's virtual trust level.
    vtl: u8,
}

/// What follows when all devices have stopped.
#[derive(Clone, Copy, Debug)]
enum After {
    Unload,
    Contact(InitiateContact, Option<Guid>),
}

/// The host's bus machine.
pub struct BusServer {
    policy: BusPolicy,
    memory: Arc<dyn GuestMemory>,
    link: Option<Link>,
    resetting: Option<After>,
    devices: BTreeMap<DeviceId, Device>,
    next_device: u32,
    last_channel: u32,
    /// Messages under way, with the moment of arrival.
    delayed: VecDeque<(Instant, Payload)>,
    ready: VecDeque<Payload>,
    events: VecDeque<BusEvent>,
    /// Memory refused before all of its description had come; the rest is on its way. The newest come last.
    refused: VecDeque<GpadlId>,
    counters: BusCounters,
    left_behind: LeftBehind,
    faults: Faults,
    /// What was done to rings.
    ring_faults: BTreeMap<RingFault, u64>,
    /// Messages held back by a pause.
    paused: VecDeque<Payload>,
    client_id: Option<Guid>,
    /// The monitor page from guest to host.
    guest_page: Option<MonitorPage>,
    /// When that was looked at last.
    looked: Instant,
}

impl BusServer {
    /// A bus without devices, for a guest with this memory.
    #[must_use]
    pub fn new(policy: BusPolicy, memory: Arc<dyn GuestMemory>) -> Self {
        Self {
            policy,
            memory,
            link: None,
            resetting: None,
            devices: BTreeMap::new(),
            next_device: 0,
            last_channel: 0,
            delayed: VecDeque::new(),
            ready: VecDeque::new(),
            events: VecDeque::new(),
            refused: VecDeque::new(),
            counters: BusCounters::default(),
            left_behind: LeftBehind::default(),
            faults: Faults::default(),
            ring_faults: BTreeMap::new(),
            paused: VecDeque::new(),
            client_id: None,
            guest_page: None,
            looked: Instant::ZERO,
        }
    }

    /// Adds a device. It is offered as soon as a guest has asked for offers and holds no other of the same instance.
    pub fn offer(&mut self, spec: OfferSpec, now: Instant) -> DeviceId {
        let id = DeviceId(self.next_device);
        self.next_device += 1;
        self.devices.insert(id, Device::new(spec));
        self.offer_waiting(now);
        id
    }

    /// Takes a device away. Ends in [`BusEvent::Released`], when the guest has let go of it.
    pub fn rescind(&mut self, id: DeviceId, now: Instant) {
        let subs = self.sub_devices(id);
        if self.policy.primary_first {
            self.rescind_one(id, now);
        }
        for sub in subs {
            self.rescind_one(sub, now);
        }
        if !self.policy.primary_first {
            self.rescind_one(id, now);
        }
    }

    fn rescind_one(&mut self, id: DeviceId, now: Instant) {
        let resetting = self.resetting.is_some();
        let Some(device) = self.devices.get_mut(&id) else { return };
        match device.state {
            // The guest will hear of nothing but the end of the connection.
            _ if resetting => device.rescind_wanted = true,
            DeviceState::Waiting | DeviceState::GivenUp => self.remove(id, now),
            // What the guest asked back is answered before the rescind, and that is when the device has stopped.
            DeviceState::Closing => device.rescind_wanted = true,
            DeviceState::Offered => self.revoke(id, now),
            DeviceState::Open => {
                device.stopping = true;
                device.modify_due = None;
                self.events.push_back(BusEvent::Closing { device: id });
                self.revoke(id, now);
            }
            DeviceState::Revoked => {}
        }
    }

    /// A device's service has stopped and holds no guest memory any more; the answer to [`BusEvent::Closing`].
    pub fn closed(&mut self, id: DeviceId, now: Instant) {
        let Some(device) = self.devices.get_mut(&id).filter(|device| device.stopping) else {
            return;
        };
        device.stopping = false;
        if self.resetting.is_some() {
            self.finish_reset(now);
            return;
        }
        device.ring = None;
        let reopen = device.reopen.take();
        if device.state == DeviceState::Closing {
            device.state = DeviceState::Offered;
        }
        let (rescind, release) = (device.rescind_wanted, device.release_wanted);
        for gpadl in device.asked_back() {
            self.return_gpadl(id, gpadl, now);
        }
        if release {
            self.let_go(id, now);
        } else if rescind {
            self.revoke(id, now);
        } else if let Some(open) = reopen {
            // Nobody is there any more to tell of an error; the answer has said no.
            if self.open_channel(id, &open, now).is_err() {
                self.counters.guest_errors += 1;
            }
        }
    }

    /// The next message to the guest, in order.
    pub fn poll_message(&mut self) -> Option<Payload> {
        self.ready.pop_front()
    }

    /// The next event.
    pub fn poll_event(&mut self) -> Option<BusEvent> {
        self.events.pop_front()
    }

    /// When to call [`BusServer::handle_deadline`].
    #[must_use]
    pub fn poll_deadline(&self) -> Option<Instant> {
        let modified = self.devices.values().filter_map(|device| device.modify_due).min();
        earliest(self.delayed.front().map(|(due, _)| *due), modified)
    }

    /// Delivers the messages whose time has come.
    pub fn handle_deadline(&mut self, now: Instant) {
        self.answer_modified(now);
        while self.delayed.front().is_some_and(|(due, _)| *due <= now) {
            self.ready.extend(self.delayed.pop_front().map(|(_, payload)| payload));
        }
    }

    /// Memory that the guest shared on a device's channel, if it is whole pages.
    #[must_use]
    pub fn gpadl(&self, device: DeviceId, gpadl: GpadlId) -> Option<PageList> {
        self.devices.get(&device)?.gpadls.get(&gpadl)?.pages().cloned()
    }

    /// The number of pieces of memory that the guest shares, over all devices.
    #[must_use]
    pub fn gpadls(&self) -> usize {
        self.devices.values().map(|device| device.gpadls.len()).sum()
    }

    /// What the guest had not given back when it took its leave, the last time that it did.
    #[must_use]
    pub const fn left_behind(&self) -> LeftBehind {
        self.left_behind
    }

    /// Which open device a guest's signal to `connection` is for. `None` is a spurious signal, which is harmless.
    #[must_use]
    pub fn signalled(&self, connection: ConnectionId) -> Option<DeviceId> {
        let open = |device: &Device| device.state == DeviceState::Open;
        self.devices
            .iter()
            .find(|(_, device)| open(device) && device.connection() == Some(connection))
            .map(|(id, _)| *id)
    }

    /// The channels that signalled the guest since the last call.
    pub fn interrupts(&mut self) -> impl Iterator<Item = ChannelId> + '_ {
        self.devices
            .values()
            .filter(|device| device.bell.take())
            .filter_map(|device| device.channel)
    }

    /// The id under which a device is offered now.
    #[must_use]
    pub fn channel_of(&self, device: DeviceId) -> Option<ChannelId> {
        self.devices.get(&device)?.channel
    }

    /// What a device's channel does; `None` once it is gone.
    #[must_use]
    pub fn state(&self, device: DeviceId) -> Option<DeviceState> {
        self.devices.get(&device).map(|device| device.state)
    }

    /// The version agreed on with a guest, while connected.
    #[must_use]
    pub fn version(&self) -> Option<Version> {
        self.link.map(|link| link.version)
    }

    /// How the host behaves; changes count from now on.
    pub fn policy_mut(&mut self) -> &mut BusPolicy {
        &mut self.policy
    }

    /// What went over the bus.
    #[must_use]
    pub fn counters(&self) -> BusCounters {
        self.counters
    }

    fn send<B: Body>(&mut self, body: &B, now: Instant) {
        self.send_with(body, &[], now);
    }

    fn send_with<B: Body>(&mut self, body: &B, data: &[u8], now: Instant) {
        if self.policy.withheld.contains(&B::KIND) {
            self.counters.withheld += 1;
            return;
        }
        let payload = Payload::new(body).with(data);
        self.send_faulty(payload, now);
    }

    fn send_payload(&mut self, payload: Payload, now: Instant) {
        self.counters.sent += 1;
        if self.link.is_some_and(|link| link.paused) {
            self.paused.push_back(payload);
            return;
        }
        let last = self.delayed.back().map_or(Instant::ZERO, |(due, _)| *due);
        let due = last.max(now + self.policy.reply_delay);
        if self.delayed.is_empty() && due <= now {
            self.ready.push_back(payload);
        } else {
            self.delayed.push_back((due, payload));
        }
    }

    /// The first offers, and the end of them.
    fn request_offers(&mut self, now: Instant) {
        self.offer_waiting(now);
        self.send(&AllOffersDelivered {}, now);
    }

    /// Offers every device that waits and may be offered.
    fn offer_waiting(&mut self, now: Instant) {
        if self.resetting.is_some() || !self.link.is_some_and(|link| link.offers_requested) {
            return;
        }
        let waiting = |device: &Device| device.state == DeviceState::Waiting;
        let mut ids: Vec<_> =
            self.devices.iter().filter(|(_, device)| waiting(device)).map(|(id, _)| *id).collect();
        match self.policy.order {
            OfferOrder::AsAdded => {}
            OfferOrder::Reversed => ids.reverse(),
            OfferOrder::ByClass => ids.sort_by_key(|id| self.devices.get(id).map(|d| d.spec.class)),
            OfferOrder::Shuffled(seed) => shuffle(&mut ids, seed),
        }
        for id in ids {
            self.offer_one(id, now);
        }
    }

    fn offer_one(&mut self, id: DeviceId, now: Instant) {
        let Some(channel) = self.free_channel() else { return };
        let Some((spec, sub)) =
            self.devices.get(&id).map(|device| (device.spec.clone(), device.sub))
        else {
            return;
        };
        let held = |device: &Device| {
            device.channel.is_some()
                && device.sub.map(|(number, _)| number) == sub.map(|(number, _)| number)
                && (device.spec.class, device.spec.instance) == (spec.class, spec.instance)
        };
        if self.devices.values().any(held) {
            return;
        }
        self.last_channel = channel.0;
        let monitor = self.free_monitor();
        let offer = OfferChannel {
            class: spec.class.into(),
            instance: spec.instance.into(),
            reserved: [0; 16],
            flags: U16::new((spec.flags & OfferFlags::meaningful(self.features())).bits()),
            mmio_megabytes: U16::new(spec.mmio_megabytes),
            user_defined: spec.user_defined,
            sub_channel: U16::new(sub.map_or(0, |(number, _)| number)),
            mmio_megabytes_optional: U16::new(0),
            channel: U32::new(channel.0),
            monitor: monitor.unwrap_or(0),
            monitor_allocated: u8::from(monitor.is_some()),
            dedicated_interrupt: U16::new(1),
            connection: U32::new(signal_connection(channel).0),
        };
        if let Some(device) = self.devices.get_mut(&id) {
            device.channel = Some(channel);
            device.monitor = monitor;
            device.state = DeviceState::Offered;
        }
        self.counters.offers += 1;
        self.send(&offer, now);
    }

    fn free_channel(&self) -> Option<ChannelId> {
        let start = match self.policy.ids {
            IdPolicy::Fresh => self.last_channel,
            IdPolicy::Lowest => 0,
        };
        let ids = (0..MAX_CHANNEL_ID).map(|step| (start + step) % MAX_CHANNEL_ID + 1);
        ids.map(ChannelId).find(|id| !self.is_taken(*id))
    }

    /// Whether the guest may hold a channel of this id.
    fn is_taken(&self, id: ChannelId) -> bool {
        let used = self.devices.values().any(|device| device.channel == Some(id));
        used || self.faults.made_up.contains(&id)
    }

    /// Tells the guest that a device is gone; what it still waits for is answered first.
    fn revoke(&mut self, id: DeviceId, now: Instant) {
        let Some(device) = self.devices.get_mut(&id) else { return };
        let Some(channel) = device.channel else { return };
        device.state = DeviceState::Revoked;
        device.rescind_wanted = false;
        device.reopen = None;
        for gpadl in device.assembling() {
            self.refuse_gpadl(channel, gpadl, now);
        }
        self.counters.rescinds += 1;
        self.send(&RescindOffer { channel: U32::new(channel.0) }, now);
    }

    /// The guest has let go of a device's channel.
    fn let_go(&mut self, id: DeviceId, now: Instant) {
        let Some(device) = self.devices.get_mut(&id) else { return };
        self.counters.gpadls_dropped += device.gpadls.len() as u64;
        let gone = device.is_gone();
        device.reset();
        if gone {
            self.remove(id, now);
        } else {
            device.state = DeviceState::GivenUp;
            self.events.push_back(BusEvent::GivenUp { device: id });
            self.offer_waiting(now);
        }
    }

    fn remove(&mut self, id: DeviceId, now: Instant) {
        self.devices.remove(&id);
        self.events.push_back(BusEvent::Released { device: id });
        self.offer_waiting(now);
    }

    fn refuse_gpadl(&mut self, channel: ChannelId, gpadl: GpadlId, now: Instant) {
        let device = self.devices.values_mut().find(|device| device.channel == Some(channel));
        if let Some(device) = device {
            device.gpadls.remove(&gpadl);
        }
        self.expect_remains(gpadl);
        self.answer_gpadl(channel, gpadl, STATUS_REFUSED, now);
    }

    /// The rest of a refused GPADL is no error of the guest, who could not know.
    fn expect_remains(&mut self, gpadl: GpadlId) {
        if self.refused.len() >= REFUSED_REMEMBERED {
            self.refused.pop_front();
        }
        self.refused.push_back(gpadl);
    }

    fn answer_gpadl(&mut self, channel: ChannelId, gpadl: GpadlId, status: u32, now: Instant) {
        let answer = GpadlCreated {
            channel: U32::new(channel.0),
            gpadl: U32::new(gpadl.0),
            status: U32::new(status),
        };
        self.send(&answer, now);
    }

    fn return_gpadl(&mut self, id: DeviceId, gpadl: GpadlId, now: Instant) {
        let Some(device) = self.devices.get_mut(&id) else { return };
        if device.gpadls.remove(&gpadl).is_some() {
            self.counters.gpadls_torn_down += 1;
            self.send(&GpadlTorndown { gpadl: U32::new(gpadl.0) }, now);
        }
    }

    /// Stops every device; the connection ends when all have.
    fn reset(&mut self, after: After, now: Instant) {
        if matches!(after, After::Unload) {
            let count = |state| self.devices.values().filter(|it| it.state == state).count();
            self.left_behind = LeftBehind {
                channels: count(DeviceState::Open),
                gpadls: self.gpadls(),
                ids: count(DeviceState::Revoked),
            };
        }
        self.resetting = Some(after);
        for (id, device) in &mut self.devices {
            if device.state == DeviceState::Open && !device.stopping {
                device.stopping = true;
                device.modify_due = None;
                self.events.push_back(BusEvent::Closing { device: *id });
            }
        }
        self.finish_reset(now);
    }

    fn finish_reset(&mut self, now: Instant) {
        if self.devices.values().any(|device| device.stopping) {
            return;
        }
        let Some(after) = self.resetting.take() else { return };
        let connected = self.link.take().is_some();
        self.guest_page = None;
        self.refused.clear();
        self.paused.clear();
        self.faults.made_up.clear();
        let events = &mut self.events;
        self.devices.retain(|id, device| {
            let gone = device.is_gone();
            if gone {
                events.push_back(BusEvent::Released { device: *id });
            }
            device.reset();
            !gone
        });
        if connected {
            self.events.push_back(BusEvent::Disconnected);
        }
        match after {
            After::Unload => self.send(&UnloadResponse {}, now),
            After::Contact(contact, client) => {
                self.client_id = client;
                self.contact(&contact, now);
            }
        }
    }

    /// Answers the request for a version, with nothing left of an earlier connection.
    fn contact(&mut self, contact: &InitiateContact, now: Instant) {
        let version = Version(contact.version.get());
        let mut answer = VersionResponse {
            supported: 0,
            state: 0,
            reserved: U16::new(0),
            connection: U32::new(0),
        };
        let mut features = Features::empty();
        if self.policy.versions.contains(&version) {
            let modern = version >= Version::V5_0;
            let connection =
                if modern { self.policy.connection } else { guest::connection_of(version) };
            answer.supported = 1;
            answer.connection = U32::new(if modern { connection.0 } else { version.0 });
            let asked = guest::features_of(contact);
            features = asked & self.policy.features;
            answer.state = match self.policy.connection_state {
                0 if !guest::contact_is_sound(contact) => 2,
                state => state,
            };
            if answer.state == 0 {
                let pages = (contact.monitor_to_guest.get(), contact.monitor_to_host.get());
                self.link = Some(Link {
                    version,
                    connection,
                    offers_requested: false,
                    features,
                    monitor_pages: Some(pages).filter(|pages| pages.0 != 0),
                    paused: false,
                    vtl: guest::vtl_of(contact),
                });
                self.looked = now;
                self.map_monitor_page();
                self.events.push_back(BusEvent::Connected { version });
            }
        }
        let long = version >= Version::V6_0 && answer.supported != 0;
        let tail = if long { self.version_tail(features) } else { Vec::new() };
        self.send_with(&answer, &tail, now);
    }
}

/// Puts `ids` in an order that follows from `seed`.
fn shuffle(ids: &mut [DeviceId], seed: u64) {
    let mut rng = Xoshiro256PlusPlus::seed_from_u64(seed);
    for end in (1..ids.len()).rev() {
        let other = rng.next_u64() % (end as u64 + 1);
        ids.swap(end, usize::try_from(other).unwrap_or(end));
    }
}

impl fmt::Debug for BusServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BusServer")
            .field("link", &self.link)
            .field("resetting", &self.resetting)
            .field("devices", &self.devices)
            .field("counters", &self.counters)
            .finish_non_exhaustive()
    }
}

//! The guest's side of a VMBus connection: contact, offers, channels, memory, farewell.
//!
//! [`Bus`] takes the host's control messages and the wishes of drivers, and yields messages to post, events and
//! deadlines. It never waits: whatever takes time ends in an [`Event`], and every wait also ends when the host rescinds
//! the channel it is about. An answer that is overdue is reported once; when it comes after all, it counts.
//!
//! # Memory
//! Pages that the host was told about are kept alive by the bus until the host has said that it uses them no longer,
//! whatever the driver does with its own views. Memory whose return the host never confirms stays alive until the
//! connection ends. A guest that is isolated from its host [reveals](Bus::reveal) memory before it tells of it, and
//! [conceals](Bus::conceal) it when it came back.
//!
//! # The life of a channel
//! [`Event::Offered`] → [`Bus::open`] → [`Event::Opened`] → [`Bus::share`] … [`Bus::close`] → [`Event::Closed`], and
//! from anywhere [`Event::Rescinded`] → [`Bus::release`] → [`Event::Released`]. A channel's id means nothing afterwards.

mod channels;
mod connection;
mod family;
mod memory;
mod retarget;
mod retry;
mod types;
mod visible;

#[cfg(test)]
mod tests;

use alloc::collections::{BTreeMap, VecDeque};

pub use retry::{PostRetry, PostStatus, PostVerdict};
use tracing::debug;
pub use types::*;
use zerocopy::little_endian::{U32, U64};

use self::channels::Slot;
use self::connection::{Accepted, MonitorPages};
use self::memory::Gpadl;
use self::visible::Visible;
use crate::message::{
    Body, CONTACT_CONNECTION, Features, InitiateContact, LEGACY_CONNECTION, Message, MessageError,
    PARAVISOR_VTL, Payload, REDIRECTED_CONNECTION, RequestOffers, Side, Unload, VMBUS_SINT,
    Version, VersionResponse, WireGuid,
};
use crate::{ChannelId, ConnectionId, GpadlId, Instant};

/// Where the connection stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Idle,
    /// Asked for the version with this index.
    Contacting(usize),
    OffersRequested,
    Running,
    Unloading,
}

/// The guest's bus machine.
#[derive(Debug)]
pub struct Bus {
    config: BusConfig,
    phase: Phase,
    /// The agreed version, or the one asked for.
    version: Version,
    /// Where messages go.
    connection: ConnectionId,
    channels: BTreeMap<ChannelId, Slot>,
    /// Memory that the host may use.
    gpadls: BTreeMap<GpadlId, Gpadl>,
    next_gpadl: Option<GpadlId>,
    /// Answers awaited, with the moment when to report them as overdue; `None` once reported.
    waits: BTreeMap<Wait, Option<Instant>>,
    events: VecDeque<Event>,
    outgoing: VecDeque<Post>,
    stats: BusStats,
    /// What the host accepted with version 6.0.
    features: Features,
    /// Addresses of the monitor pages that the host provides, the one from host to guest first.
    host_monitor_pages: Option<(u64, u64)>,
    /// The host sends nothing.
    paused: bool,
    monitor_pages: MonitorPages,
    visible: Visible,
    /// The version of the last connection.
    last_version: Option<Version>,
    /// The one version to ask for, after a suspend.
    only: Option<Version>,
    /// Contact is made on the connection for redirected messages.
    redirected: bool,
}

impl Bus {
    /// A bus without a connection.
    #[must_use]
    pub fn new(config: BusConfig) -> Self {
        Self {
            phase: Phase::Idle,
            version: Version::ANY,
            connection: LEGACY_CONNECTION,
            channels: BTreeMap::new(),
            gpadls: BTreeMap::new(),
            next_gpadl: Some(GpadlId(config.first_gpadl.0.max(1))),
            waits: BTreeMap::new(),
            events: VecDeque::new(),
            outgoing: VecDeque::new(),
            stats: BusStats::default(),
            features: Features::empty(),
            host_monitor_pages: None,
            paused: false,
            monitor_pages: MonitorPages::default(),
            visible: Visible::default(),
            last_version: None,
            only: None,
            redirected: false,
            config,
        }
    }

    /// Makes contact. Ends in [`Event::Connected`] or [`Event::ContactFailed`].
    ///
    /// A guest whose host does not answer [`Bus::unload`] may start over, too: contact makes a host forget everything
    /// before. So may one whose contact is [overdue](Event::Overdue).
    ///
    /// # Errors
    /// If there is a connection already, or an answer may still come in time.
    pub fn start(&mut self, now: Instant) -> Result<(), Error> {
        self.begin(None, now)
    }

    /// Makes contact, with one version only if that is given.
    fn begin(&mut self, only: Option<Version>, now: Instant) -> Result<(), Error> {
        let overdue = self.waits.get(&Wait::Contact { version: self.version }) == Some(&None);
        let free = match self.phase {
            Phase::Idle | Phase::Unloading => true,
            Phase::Contacting(_) => overdue,
            Phase::OffersRequested | Phase::Running => false,
        };
        if !free {
            return Err(Error::AlreadyStarted { state: self.state() });
        }
        if self.config.versions.is_empty() {
            return Err(Error::NoVersions);
        }
        self.waits.clear();
        self.channels.clear();
        self.only = only;
        self.redirected = self.config.vtl == PARAVISOR_VTL;
        if self.contact(0, now) { Ok(()) } else { Err(Error::NoVersions) }
    }

    /// Ends the connection: open channels are closed and all memory comes back. Ends in [`Event::Unloaded`]. Events that were
    /// not taken are void and are dropped; none but [`Event::Overdue`] with [`Wait::Unload`] comes before the end, and nothing
    /// can be asked of the bus meanwhile.
    ///
    /// Hosts before 3.0 are not told, as Linux does not tell them either, so that [`Event::Unloaded`] is there at once and
    /// nothing is closed or comes back by it: what [`Bus::shared_pages`] counts then is the host's until it answers the
    /// next contact, and devices that were open may go on writing to it. On such a host close all channels before, take
    /// back what was shared without one, and wait for both.
    ///
    /// # Errors
    /// If there is no connection.
    pub fn unload(&mut self, now: Instant) -> Result<(), Error> {
        self.connected()?;
        self.waits.clear();
        self.channels.clear();
        self.events.clear();
        if self.version < Version::V3_0 {
            // Such a host may not answer. It forgets at the next contact, and until then it keeps the memory.
            self.phase = Phase::Idle;
            self.events.push_back(Event::Unloaded);
        } else {
            self.post(&Unload {});
            self.phase = Phase::Unloading;
            self.arm(Wait::Unload, now);
        }
        Ok(())
    }

    /// Takes one control message of the host, without the header of the slot it came in.
    ///
    /// # Errors
    /// [`HostError`] if the message is wrong in itself. It is then ignored and counted; nothing else has to be done.
    /// Messages that are late, repeated or unknown are no errors, only counted.
    pub fn handle_message(&mut self, payload: &[u8], now: Instant) -> Result<(), HostError> {
        self.stats.received += 1;
        // Without a connection, what comes may belong to an earlier one of any version.
        let version = match self.phase {
            Phase::Idle | Phase::Contacting(_) => Version(u32::MAX),
            _ => self.version,
        };
        let (message, rest) = match Message::parse(payload, Side::Host, version) {
            Ok(parsed) => parsed,
            Err(MessageError::Unknown { kind }) => {
                debug!(%kind, "unknown control message ignored");
                self.stats.unknown += 1;
                return Ok(());
            }
            Err(error) => {
                self.stats.malformed += 1;
                return Err(error.into());
            }
        };
        match (self.phase, message) {
            (Phase::Contacting(index), Message::VersionResponse(answer)) => {
                return self.contact_answered(index, answer, rest, now);
            }
            (Phase::OffersRequested, Message::AllOffersDelivered(_)) => {
                self.phase = Phase::Running;
                self.disarm(Wait::Offers);
                self.events.push_back(Event::AllOffersDelivered);
            }
            (Phase::Unloading, Message::UnloadResponse(_)) => {
                self.phase = Phase::Idle;
                self.waits.clear();
                self.forget_memory(false);
                self.events.push_back(Event::Unloaded);
            }
            (
                Phase::OffersRequested | Phase::Running,
                Message::ModifyConnectionResponse(_) | Message::PauseResponse(_),
            ) => self.connection_message(message),
            (Phase::OffersRequested | Phase::Running, message) => {
                return self.handle_channel_message(message, now);
            }
            (_, message) => {
                debug!(kind = %message.kind(), phase = ?self.phase, "control message ignored");
                self.stats.out_of_state += 1;
            }
        }
        Ok(())
    }

    /// The next message to post, in order.
    pub fn poll_outgoing(&mut self) -> Option<Post> {
        self.outgoing.pop_front()
    }

    /// Takes back a message that could not be posted for now; it comes first at the next [`Bus::poll_outgoing`]. One that can
    /// never be posted goes to [`Bus::post_failed`].
    pub fn put_back(&mut self, post: Post) {
        self.outgoing.push_front(post);
    }

    /// The next event. None while an isolated guest owes a [`Bus::conceal`].
    pub fn poll_event(&mut self) -> Option<Event> {
        if self.visible.owes() { None } else { self.events.pop_front() }
    }

    /// When to call [`Bus::handle_deadline`].
    #[must_use]
    pub fn poll_deadline(&self) -> Option<Instant> {
        self.waits.values().flatten().min().copied()
    }

    /// Reports the answers that are overdue at `now`.
    pub fn handle_deadline(&mut self, now: Instant) {
        let due = |at: &Option<Instant>| at.is_some_and(|at| at <= now);
        while let Some((&wait, at)) = self.waits.iter_mut().find(|(_, at)| due(at)) {
            *at = None;
            self.stats.overdue += 1;
            self.events.push_back(Event::Overdue(wait));
            if let Wait::Share { channel, gpadl } | Wait::Unshare { channel, gpadl } = wait {
                self.abandon_if_released(channel, gpadl);
            }
        }
    }

    /// What the bus does.
    #[must_use]
    pub fn state(&self) -> BusState {
        match self.phase {
            Phase::Idle => BusState::Idle,
            Phase::Contacting(_) => BusState::Contacting,
            Phase::OffersRequested => BusState::OffersRequested,
            Phase::Running => BusState::Running,
            Phase::Unloading => BusState::Unloading,
        }
    }

    /// The agreed version, while connected.
    #[must_use]
    pub fn version(&self) -> Option<Version> {
        self.connected().ok().map(|()| self.version)
    }

    /// What came from the host and was of no use.
    #[must_use]
    pub fn stats(&self) -> BusStats {
        self.stats
    }

    /// Pages that the host may use, rings included.
    #[must_use]
    pub fn shared_pages(&self) -> usize {
        self.gpadls.values().map(Gpadl::pages).sum()
    }

    fn connected(&self) -> Result<(), Error> {
        match self.phase {
            Phase::OffersRequested | Phase::Running => Ok(()),
            _ => Err(Error::NotConnected { state: self.state() }),
        }
    }

    /// Asks for the version with this index; `false` if there is none.
    fn contact(&mut self, index: usize, now: Instant) -> bool {
        let usable = |version: &Version| {
            (!self.config.isolated || *version >= Version::V5_2)
                && self.only.is_none_or(|only| only == *version)
        };
        let mut left = self.config.versions.iter().enumerate().skip(index);
        let Some((index, version)) = left.find(|(_, version)| usable(version)) else {
            return false;
        };
        let version = *version;
        self.version = version;
        let modern = version >= Version::V5_0;
        self.connection = match (modern, self.redirected) {
            (false, _) => LEGACY_CONNECTION,
            (true, false) => CONTACT_CONNECTION,
            (true, true) => REDIRECTED_CONNECTION,
        };
        self.phase = Phase::Contacting(index);
        // Before 5.0 the target is the address of the interrupt page, which versions from 2.4 on can do without.
        let sint = if modern { u64::from(VMBUS_SINT) } else { 0 };
        let vtl = if version >= Version::V5_1 { u64::from(self.config.vtl) } else { 0 };
        let asked = self.asked_features();
        let (to_guest, to_host) = self.offer_monitor_pages();
        let contact = Payload::new(&InitiateContact {
            version: U32::new(version.0),
            target_vp: U32::new(self.config.target_vp),
            target: U64::new(sint | vtl << 8 | u64::from(asked.bits()) << 32),
            monitor_to_guest: U64::new(to_guest),
            monitor_to_host: U64::new(to_host),
        });
        let client = WireGuid::from(self.config.client_id);
        let named = asked.contains(Features::CLIENT_ID);
        self.post_payload(if named { contact.with(&client.0) } else { contact });
        self.arm(Wait::Contact { version }, now);
        true
    }

    fn contact_answered(
        &mut self,
        index: usize,
        answer: &VersionResponse,
        rest: &[u8],
        now: Instant,
    ) -> Result<(), HostError> {
        let version = self.version;
        let connects = answer.supported != 0 && answer.state == 0;
        let accepted = if connects { self.read_features(rest)? } else { Accepted::default() };
        self.disarm(Wait::Contact { version });
        // Contact makes the host forget everything before, whatever it answers.
        self.forget_memory(connects);
        if answer.supported == 0 {
            if !self.contact(index.saturating_add(1), now) {
                self.fail_contact(ContactFailure::NoCommonVersion);
            }
        } else if answer.state != 0 {
            self.fail_contact(ContactFailure::Refused { version, state: answer.state });
        } else {
            if version >= Version::V5_0 {
                self.connection = ConnectionId(answer.connection.get());
            }
            self.phase = Phase::OffersRequested;
            self.accept(accepted);
            self.events.push_back(Event::Connected { version });
            self.post(&RequestOffers {});
            self.arm(Wait::Offers, now);
        }
        Ok(())
    }

    fn fail_contact(&mut self, failure: ContactFailure) {
        self.phase = Phase::Idle;
        self.events.push_back(Event::ContactFailed(failure));
    }

    fn post<B: Body>(&mut self, body: &B) {
        self.post_payload(Payload::new(body));
    }

    fn post_payload(&mut self, payload: Payload) {
        self.outgoing.push_back(Post { connection: self.connection, payload });
    }

    fn arm(&mut self, wait: Wait, now: Instant) {
        self.waits.insert(wait, Some(now + self.config.deadline));
    }

    fn disarm(&mut self, wait: Wait) {
        self.waits.remove(&wait);
    }
}

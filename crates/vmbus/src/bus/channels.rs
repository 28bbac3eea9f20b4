//! Channels and the memory that belongs to them.

use alloc::vec::Vec;

use tracing::debug;
use zerocopy::IntoBytes;
use zerocopy::little_endian::{U16, U32};

use super::retarget::Target;
use super::{
    Bus, ChannelState, Error, Event, HostError, Offer, OpenOptions, OpenStep, SignalParameters,
    Wait,
};
use crate::gpadl::{EncodeError, GpadlMessages};
use crate::memory::{PAGE_SIZE, SharedMemory, SharedPages};
use crate::message::{
    CloseChannel, Features, GpadlCreated, GpadlTeardown, MAX_CHANNEL_ID, Message, OpenChannel,
    OpenResult, OpenSignal, Payload, ReleaseChannel, Version,
};
use crate::packet::GpaRange;
use crate::{ChannelId, GpadlId, Instant};

/// A channel that the guest holds.
#[derive(Debug)]
pub(super) struct Slot {
    pub(super) offer: Offer,
    pub(super) state: ChannelState,
    /// The memory of its rings, from `open` until the host has returned it.
    ring: Option<GpadlId>,
    options: OpenOptions,
    /// Why an open failed, while its ring memory comes back.
    failed: Option<(OpenStep, u32)>,
    /// Closed before it was open.
    pub(super) close_wanted: bool,
    /// A primary channel that closes when its sub-channels are closed.
    pub(super) close_after_subs: bool,
    pub(super) target: Target,
    rescinded: bool,
    /// Released by its driver; the id goes back when all memory came back.
    releasing: bool,
    /// An offer with the same id that came before the release.
    next: Option<Offer>,
}

impl Slot {
    fn new(offer: Offer) -> Self {
        Self {
            offer,
            state: ChannelState::Offered,
            ring: None,
            options: OpenOptions::default(),
            failed: None,
            close_wanted: false,
            close_after_subs: false,
            target: Target::default(),
            rescinded: false,
            releasing: false,
            next: None,
        }
    }

    /// Whether nobody awaits events of this channel any more.
    pub(super) fn is_dead(&self) -> bool {
        self.rescinded || self.releasing
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum GpadlState {
    /// The host has not answered yet; it must not be asked for the memory before.
    Creating {
        /// Ask for it as soon as the answer came.
        unwanted: bool,
    },
    Ready,
    TearingDown,
}

/// Memory that the host was told about.
#[derive(Debug)]
pub(super) struct Gpadl {
    channel: ChannelId,
    /// Kept so that it stays alive.
    memory: SharedPages,
    state: GpadlState,
    /// Belongs to a channel whose id went back before the host returned the memory.
    orphaned: bool,
}

impl Gpadl {
    pub(super) fn pages(&self) -> usize {
        self.memory.size() / PAGE_SIZE
    }
}

impl Bus {
    /// Opens a channel. Ends in [`Event::Opened`] or [`Event::OpenFailed`].
    ///
    /// `rings` holds both rings, that from guest to host first; the other begins at page `downstream_page`. Make the
    /// [`Channel`](crate::Channel) before, and be ready for signals: the host may send before the answer comes.
    /// `target_vp` is the virtual processor that gets the channel's signals.
    ///
    /// # Errors
    /// If the channel is not offered and idle, or its rings do not fit the memory.
    pub fn open(
        &mut self,
        channel: ChannelId,
        rings: &SharedPages,
        downstream_page: u32,
        target_vp: u32,
        now: Instant,
    ) -> Result<(), Error> {
        let options = OpenOptions { downstream_page, target_vp, ..OpenOptions::default() };
        self.open_with(channel, rings, options, now)
    }

    /// As [`Bus::open`], with all that can be said.
    ///
    /// # Errors
    /// As [`Bus::open`], or if signal parameters are chosen that the host lets nobody choose.
    pub fn open_with(
        &mut self,
        channel: ChannelId,
        rings: &SharedPages,
        options: OpenOptions,
        now: Instant,
    ) -> Result<(), Error> {
        let pages = rings.pages();
        let downstream_page = options.downstream_page;
        let offer = &self.live(channel, ChannelState::Offered)?.offer;
        if offer.sub_channel != 0 {
            let primary = self.primary(offer.instance).and_then(|id| self.channel_state(id));
            if primary != Some(ChannelState::Open) {
                return Err(Error::PrimaryNotOpen { channel });
            }
        }
        let needed = options.signal.map_or(Features::empty(), |signal| {
            let redirect = signal.redirect_interrupt;
            let redirect =
                if redirect { Features::INTERRUPT_REDIRECTION } else { Features::empty() };
            Features::GUEST_SIGNAL_PARAMETERS | redirect
        });
        if !self.features().contains(needed) {
            return Err(Error::NoFeature { needed, accepted: self.features() });
        }
        let downstream = downstream_page as usize;
        if downstream < 2 || pages.saturating_sub(downstream) < 2 {
            return Err(Error::BadRings { pages, downstream_page });
        }
        let gpadl = self.describe(channel, rings, now)?;
        if let Some(slot) = self.channels.get_mut(&channel) {
            slot.state = ChannelState::Opening;
            slot.ring = Some(gpadl);
            slot.options = options;
            slot.failed = None;
            slot.close_wanted = false;
        }
        Ok(())
    }

    /// Closes a channel and takes back all memory that was shared on it. Ends in [`Event::Closed`], with an
    /// [`Event::Unshared`] for each shared piece before it. A channel that is still being opened may be closed, too.
    ///
    /// # Errors
    /// If the channel is not open.
    pub fn close(&mut self, channel: ChannelId, now: Instant) -> Result<(), Error> {
        let state = self.live_slot(channel)?.state;
        match state {
            // Sub-channels go first, and the primary channel when the last of them is closed.
            ChannelState::Open if self.close_sub_channels(channel, now) => {
                if let Some(slot) = self.channels.get_mut(&channel) {
                    slot.state = ChannelState::Closing;
                    slot.close_after_subs = true;
                }
            }
            ChannelState::Open => self.start_closing(channel, true, now),
            ChannelState::Opening => {
                if let Some(slot) = self.channels.get_mut(&channel) {
                    slot.close_wanted = true;
                }
            }
            ChannelState::Offered | ChannelState::Closing => {
                return Err(Error::WrongState { channel, state, expected: ChannelState::Open });
            }
        }
        Ok(())
    }

    /// Tells the host of memory for use on a channel. Ends in [`Event::Shared`] or [`Event::ShareFailed`].
    ///
    /// # Errors
    /// If the channel is gone or closing, or the memory cannot be described.
    pub fn share(
        &mut self,
        channel: ChannelId,
        memory: &SharedPages,
        now: Instant,
    ) -> Result<GpadlId, Error> {
        let state = self.live_slot(channel)?.state;
        if state == ChannelState::Closing {
            return Err(Error::WrongState { channel, state, expected: ChannelState::Open });
        }
        self.describe(channel, memory, now)
    }

    /// Takes back memory that was shared. Ends in [`Event::Unshared`]; asking twice is harmless.
    ///
    /// # Errors
    /// If there is no such memory, or it holds the rings of a channel.
    pub fn unshare(&mut self, gpadl: GpadlId, now: Instant) -> Result<(), Error> {
        self.connected()?;
        let unknown = Error::UnknownGpadl { gpadl };
        let entry = self.gpadls.get(&gpadl).filter(|entry| !entry.orphaned).ok_or(unknown)?;
        let slot = self.live_slot(entry.channel)?;
        if slot.ring == Some(gpadl) {
            return Err(Error::RingGpadl { gpadl });
        }
        self.take_back(gpadl, now);
        Ok(())
    }

    /// Gives a channel's id back: a rescinded channel that its driver has let go of, or an offer that nobody wants.
    /// Ends in [`Event::Released`], when all memory of the channel came back.
    ///
    /// # Errors
    /// If the channel is neither rescinded nor idle, or was released before.
    pub fn release(&mut self, channel: ChannelId, now: Instant) -> Result<(), Error> {
        self.connected()?;
        let slot = self.channels.get_mut(&channel).ok_or(Error::UnknownChannel { channel })?;
        if slot.releasing {
            return Err(Error::Released { channel });
        }
        if !slot.rescinded && slot.state != ChannelState::Offered {
            let expected = ChannelState::Offered;
            return Err(Error::WrongState { channel, state: slot.state, expected });
        }
        slot.releasing = true;
        self.disarm(Wait::Retarget { channel });
        self.take_back_all(channel, now);
        self.finish_release(channel);
        Ok(())
    }

    /// The offer of a channel that the guest holds.
    #[must_use]
    pub fn offer(&self, channel: ChannelId) -> Option<&Offer> {
        self.channels.get(&channel).map(|slot| &slot.offer)
    }

    /// What a channel does; `None` if it is gone.
    #[must_use]
    pub fn channel_state(&self, channel: ChannelId) -> Option<ChannelState> {
        self.live_slot(channel).ok().map(|slot| slot.state)
    }

    pub(super) fn handle_channel_message(
        &mut self,
        message: Message<'_>,
        now: Instant,
    ) -> Result<(), HostError> {
        match message {
            Message::OfferChannel(offer) => return self.offered(Offer::from(offer)),
            Message::RescindOffer(body) => {
                self.rescinded(ChannelId(body.channel.get()));
                self.close_waiting_primaries(now);
            }
            Message::OpenResult(result) => self.open_answered(result, now),
            Message::GpadlCreated(result) => self.share_answered(result, now),
            Message::GpadlTorndown(body) => self.torn_down(GpadlId(body.gpadl.get()), now),
            Message::ModifyChannelResponse(answer) => self.retarget_answered(answer, now),
            Message::AllOffersDelivered(_) => self.stats.late += 1,
            _ => self.stats.out_of_state += 1,
        }
        Ok(())
    }

    /// Stops waiting for memory of a released channel: its id goes back, the memory stays alive.
    pub(super) fn abandon_if_released(&mut self, channel: ChannelId, gpadl: GpadlId) {
        if self.channels.get(&channel).is_some_and(|slot| slot.releasing)
            && let Some(entry) = self.gpadls.get_mut(&gpadl)
        {
            entry.orphaned = true;
            self.disarm(Wait::Share { channel, gpadl });
            self.disarm(Wait::Unshare { channel, gpadl });
            self.finish_release(channel);
        }
    }

    pub(super) fn live_slot(&self, channel: ChannelId) -> Result<&Slot, Error> {
        self.connected()?;
        let slot = self.channels.get(&channel).ok_or(Error::UnknownChannel { channel })?;
        if slot.releasing {
            Err(Error::Released { channel })
        } else if slot.rescinded {
            Err(Error::Rescinded { channel })
        } else {
            Ok(slot)
        }
    }

    pub(super) fn live(&self, channel: ChannelId, expected: ChannelState) -> Result<&Slot, Error> {
        let slot = self.live_slot(channel)?;
        if slot.state == expected {
            Ok(slot)
        } else {
            Err(Error::WrongState { channel, state: slot.state, expected })
        }
    }

    /// Queues the messages that tell the host of memory.
    fn describe(
        &mut self,
        channel: ChannelId,
        memory: &SharedPages,
        now: Instant,
    ) -> Result<GpadlId, Error> {
        if memory.frames().is_empty() {
            return Err(Error::NoFrames { pages: memory.pages() });
        }
        let gpadl = self.next_gpadl.ok_or(Error::NoGpadlIds)?;
        let too_large = EncodeError::TooLarge { bytes: memory.pages().saturating_mul(8) };
        let byte_count = u32::try_from(memory.size()).map_err(|_| too_large)?;
        let ranges = [GpaRange { byte_count, byte_offset: 0, frames: memory.frames() }];
        for payload in GpadlMessages::new(channel, gpadl, &ranges)? {
            self.post_payload(payload);
        }
        self.next_gpadl = gpadl.0.checked_add(1).map(GpadlId);
        let state = GpadlState::Creating { unwanted: false };
        let memory = memory.clone();
        self.gpadls.insert(gpadl, Gpadl { channel, memory, state, orphaned: false });
        self.arm(Wait::Share { channel, gpadl }, now);
        Ok(gpadl)
    }

    fn offered(&mut self, offer: Offer) -> Result<(), HostError> {
        let channel = offer.channel;
        if channel.0 == 0 || channel.0 > MAX_CHANNEL_ID {
            self.stats.bad_offers += 1;
            return Err(HostError::ChannelIdOutOfRange { channel });
        }
        if !self.channels.contains_key(&channel) {
            self.check_family(&offer)?;
        }
        match self.channels.get_mut(&channel) {
            None => {
                self.channels.insert(channel, Slot::new(offer.clone()));
                self.events.push_back(Event::Offered(offer));
                Ok(())
            }
            // The device is back under the same id before its former channel was released. New after the release.
            Some(slot) if slot.is_dead() && slot.next.is_none() => {
                slot.next = Some(offer);
                Ok(())
            }
            Some(_) => {
                self.stats.bad_offers += 1;
                Err(HostError::ChannelHeld { channel })
            }
        }
    }

    fn rescinded(&mut self, channel: ChannelId) {
        match self.channels.get_mut(&channel) {
            Some(slot) if slot.next.is_some() => {
                // That was the newer offer, which the driver never saw.
                slot.next = None;
            }
            Some(slot) if !slot.is_dead() => {
                slot.rescinded = true;
                self.disarm(Wait::Open { channel });
                self.disarm(Wait::Retarget { channel });
                for gpadl in self.gpadls_of(channel) {
                    self.disarm(Wait::Share { channel, gpadl });
                    self.disarm(Wait::Unshare { channel, gpadl });
                }
                self.events.push_back(Event::Rescinded { channel });
            }
            _ => self.stats.repeated_rescinds += 1,
        }
    }

    fn open_answered(&mut self, result: &OpenResult, now: Instant) {
        let channel = ChannelId(result.channel.get());
        let awaited = self.waits.contains_key(&Wait::Open { channel });
        let Some(slot) = self.channels.get_mut(&channel) else {
            self.stats.late += 1;
            return;
        };
        if !awaited || result.open_id.get() != channel.0 {
            self.stats.late += 1;
            return;
        }
        let (ring, status) = (slot.ring, result.status.get());
        match (status, slot.close_wanted) {
            (0, false) => {
                slot.state = ChannelState::Open;
                self.events.push_back(Event::Opened { channel });
            }
            (status, true) => self.start_closing(channel, status == 0, now),
            (status, false) => {
                slot.failed = Some((OpenStep::Open, status));
                if let Some(ring) = ring {
                    self.take_back(ring, now);
                }
            }
        }
        self.disarm(Wait::Open { channel });
    }

    fn share_answered(&mut self, result: &GpadlCreated, now: Instant) {
        let (channel, gpadl) = (ChannelId(result.channel.get()), GpadlId(result.gpadl.get()));
        let (unwanted, orphaned) = match self.gpadls.get_mut(&gpadl) {
            Some(entry) if entry.channel == channel => match entry.state {
                GpadlState::Creating { unwanted } => {
                    entry.state = GpadlState::Ready;
                    (unwanted, entry.orphaned)
                }
                _ => return self.stats.late += 1,
            },
            _ => return self.stats.late += 1,
        };
        self.disarm(Wait::Share { channel, gpadl });
        match result.status.get() {
            // Its channel is released, so there is nobody to ask for it any more.
            0 if orphaned => {}
            0 if unwanted => self.take_back(gpadl, now),
            0 => self.shared(channel, gpadl, now),
            status => self.share_refused(channel, gpadl, status, now),
        }
    }

    fn shared(&mut self, channel: ChannelId, gpadl: GpadlId, now: Instant) {
        let Some(slot) = self.channels.get(&channel).filter(|slot| !slot.is_dead()) else {
            return;
        };
        if slot.ring != Some(gpadl) {
            self.events.push_back(Event::Shared { channel, gpadl });
        } else if slot.close_wanted {
            self.start_closing(channel, false, now);
        } else {
            let open = OpenChannel {
                channel: U32::new(channel.0),
                open_id: U32::new(channel.0),
                ring_gpadl: U32::new(gpadl.0),
                target_vp: U32::new(slot.options.target_vp),
                downstream_page: U32::new(slot.options.downstream_page),
                user_data: slot.options.user_data,
            };
            let payload = Payload::new(&open);
            let signal = slot.options.signal.unwrap_or(SignalParameters {
                connection: slot.offer.connection,
                // Offers have ids of 11 bits.
                event_flag: channel.0 as u16,
                redirect_interrupt: false,
            });
            let chosen = Features::GUEST_SIGNAL_PARAMETERS.union(Features::INTERRUPT_REDIRECTION);
            let signal = OpenSignal {
                connection: U32::new(signal.connection.0),
                event_flag: U16::new(signal.event_flag),
                flags: U16::new(u16::from(signal.redirect_interrupt)),
            };
            let long = self.features().intersects(chosen);
            self.post_payload(if long { payload.with(signal.as_bytes()) } else { payload });
            self.arm(Wait::Open { channel }, now);
        }
    }

    fn share_refused(&mut self, channel: ChannelId, gpadl: GpadlId, status: u32, now: Instant) {
        debug!(%channel, %gpadl, status, "the host refused memory");
        let orphaned = self.gpadls.remove(&gpadl).is_some_and(|entry| entry.orphaned);
        let Some(slot) = self.channels.get_mut(&channel).filter(|_| !orphaned) else { return };
        if slot.ring == Some(gpadl) {
            slot.ring = None;
            slot.failed = Some((OpenStep::Rings, status));
            self.ring_is_back(channel, now);
        } else if !slot.is_dead() {
            self.events.push_back(Event::ShareFailed { channel, gpadl, status });
        }
        self.finish(channel, now);
    }

    fn torn_down(&mut self, gpadl: GpadlId, now: Instant) {
        let Some(entry) = self.gpadls.get(&gpadl) else {
            self.stats.late += 1;
            return;
        };
        if entry.state != GpadlState::TearingDown {
            self.stats.late += 1;
            return;
        }
        let (channel, orphaned) = (entry.channel, entry.orphaned);
        self.gpadls.remove(&gpadl);
        self.disarm(Wait::Unshare { channel, gpadl });
        // The id of an orphan's channel may belong to another channel by now.
        let Some(slot) = self.channels.get_mut(&channel).filter(|_| !orphaned) else { return };
        if slot.ring == Some(gpadl) {
            slot.ring = None;
            self.ring_is_back(channel, now);
        } else if !slot.is_dead() {
            self.events.push_back(Event::Unshared { channel, gpadl });
        }
        self.finish(channel, now);
    }

    /// The rings of a channel are the guest's again; what follows depends on why.
    fn ring_is_back(&mut self, channel: ChannelId, now: Instant) {
        let Some(slot) = self.channels.get_mut(&channel).filter(|slot| !slot.is_dead()) else {
            return;
        };
        if slot.state != ChannelState::Opening {
            return;
        }
        if slot.close_wanted {
            self.start_closing(channel, false, now);
        } else if let Some((step, status)) = slot.failed.take() {
            slot.state = ChannelState::Offered;
            self.events.push_back(Event::OpenFailed { channel, step, status });
        }
    }

    /// Leaves the open state, or the way to it.
    pub(super) fn start_closing(&mut self, channel: ChannelId, tell_host: bool, now: Instant) {
        let Some(slot) = self.channels.get_mut(&channel) else { return };
        slot.state = ChannelState::Closing;
        slot.close_wanted = false;
        slot.failed = None;
        let ring = slot.ring;
        let close = CloseChannel { channel: U32::new(channel.0) };
        // Before 4.0 other memory goes back first and the rings last; since then the close comes first of all.
        if tell_host && self.version >= Version::V4_0 {
            self.post(&close);
            self.take_back_all(channel, now);
        } else {
            for gpadl in self.gpadls_of(channel).into_iter().filter(|id| Some(*id) != ring) {
                self.take_back(gpadl, now);
            }
            if tell_host {
                self.post(&close);
            }
            self.take_back_all(channel, now);
        }
        self.finish(channel, now);
    }

    /// Ends a close or a release that has nothing left to wait for.
    fn finish(&mut self, channel: ChannelId, now: Instant) {
        self.finish_release(channel);
        let idle = self.gpadls_of(channel).is_empty();
        if let Some(slot) = self.channels.get_mut(&channel)
            && slot.state == ChannelState::Closing
            && !slot.close_after_subs
            && !slot.is_dead()
            && idle
        {
            slot.state = ChannelState::Offered;
            self.events.push_back(Event::Closed { channel });
        }
        self.close_waiting_primaries(now);
    }

    fn finish_release(&mut self, channel: ChannelId) {
        if !self.channels.get(&channel).is_some_and(|slot| slot.releasing)
            || !self.gpadls_of(channel).is_empty()
        {
            return;
        }
        let next = self.channels.remove(&channel).and_then(|slot| slot.next);
        self.post(&ReleaseChannel { channel: U32::new(channel.0) });
        self.events.push_back(Event::Released { channel });
        if let Some(offer) = next {
            self.channels.insert(channel, Slot::new(offer.clone()));
            self.events.push_back(Event::Offered(offer));
        }
    }

    /// The memory that belongs to a channel.
    fn gpadls_of(&self, channel: ChannelId) -> Vec<GpadlId> {
        let belongs = |gpadl: &Gpadl| gpadl.channel == channel && !gpadl.orphaned;
        self.gpadls.iter().filter(|(_, gpadl)| belongs(gpadl)).map(|(id, _)| *id).collect()
    }

    fn take_back_all(&mut self, channel: ChannelId, now: Instant) {
        for gpadl in self.gpadls_of(channel) {
            self.take_back(gpadl, now);
        }
    }

    /// Asks the host for memory, at once or when it may be asked.
    fn take_back(&mut self, gpadl: GpadlId, now: Instant) {
        let Some(entry) = self.gpadls.get_mut(&gpadl) else { return };
        let channel = entry.channel;
        match entry.state {
            GpadlState::Creating { .. } => {
                entry.state = GpadlState::Creating { unwanted: true };
                // The wait may have ended with a rescind.
                let wait = Wait::Share { channel, gpadl };
                if !self.waits.contains_key(&wait) {
                    self.arm(wait, now);
                }
            }
            GpadlState::Ready => {
                entry.state = GpadlState::TearingDown;
                let teardown =
                    GpadlTeardown { channel: U32::new(channel.0), gpadl: U32::new(gpadl.0) };
                self.post(&teardown);
                self.arm(Wait::Unshare { channel, gpadl }, now);
            }
            GpadlState::TearingDown => {
                let wait = Wait::Unshare { channel, gpadl };
                if !self.waits.contains_key(&wait) {
                    self.arm(wait, now);
                }
            }
        }
    }
}

//! Channels: offered, opened, closed, taken away and given back.

use zerocopy::IntoBytes;
use zerocopy::little_endian::{U16, U32};

use super::retarget::Target;
use super::{
    Bus, ChannelState, Error, Event, HostError, Offer, OpenOptions, OpenStep, SignalParameters,
    Wait,
};
use crate::memory::SharedPages;
use crate::message::{
    CloseChannel, Features, MAX_CHANNEL_ID, Message, OfferFlags, OpenChannel, OpenResult,
    OpenSignal, Payload, ReleaseChannel, Version,
};
use crate::{ChannelId, GpadlId, Instant};

/// A channel that the guest holds.
#[derive(Debug)]
pub(super) struct Slot {
    pub(super) offer: Offer,
    pub(super) state: ChannelState,
    /// The memory of its rings, from `open` until the host has returned it.
    pub(super) ring: Option<GpadlId>,
    options: OpenOptions,
    /// Why an open failed, while its ring memory comes back.
    pub(super) failed: Option<(OpenStep, u32)>,
    /// Closed before it was open.
    pub(super) close_wanted: bool,
    /// A primary channel that closes when its sub-channels are closed.
    pub(super) close_after_subs: bool,
    pub(super) target: Target,
    rescinded: bool,
    /// Released by its driver; the id goes back when all memory came back.
    pub(super) releasing: bool,
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

impl Bus {
    /// Opens a channel. Ends in [`Event::Opened`] or [`Event::OpenFailed`].
    ///
    /// `rings` holds both rings, that from guest to host first; the other begins at page `downstream_page`. Make the
    /// [`Channel`](crate::Channel) before, and be ready for signals: the host may send before the answer comes.
    /// `target_vp` is the virtual processor that gets the channel's signals.
    ///
    /// # Errors
    /// If the channel is not offered and idle, its rings do not fit the memory, or that is not [revealed](Bus::reveal).
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
        let private = offer.flags.contains(OfferFlags::CONFIDENTIAL_RING);
        if offer.sub_channel != 0 {
            let primary = self.primary(offer.instance).and_then(|id| self.channel_state(id));
            if primary != Some(ChannelState::Open) {
                return Err(Error::PrimaryNotOpen { channel });
            }
        }
        let mut needed = Features::empty();
        needed.set(Features::GUEST_SIGNAL_PARAMETERS, options.signal.is_some());
        needed.set(Features::INTERRUPT_REDIRECTION, options.redirect_interrupt);
        if !self.features().contains(needed) {
            return Err(Error::NoFeature { needed, accepted: self.features() });
        }
        let downstream = downstream_page as usize;
        if downstream < 2 || pages.saturating_sub(downstream) < 2 {
            return Err(Error::BadRings { pages, downstream_page });
        }
        let gpadl = self.describe(channel, rings, private, now)?;
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
        self.abandon_overdue(channel);
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
            Message::OfferChannel(offer) => {
                return self.offered(Offer::from_wire(offer, self.features));
            }
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

    fn offered(&mut self, offer: Offer) -> Result<(), HostError> {
        let channel = offer.channel;
        if channel.0 == 0 || channel.0 > MAX_CHANNEL_ID {
            self.stats.bad_offers += 1;
            return Err(HostError::ChannelIdOutOfRange { channel });
        }
        if !self.channels.contains_key(&channel) && !self.check_family(&offer)? {
            return Ok(());
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
        if seeded!("ignore-rescind") {
            return;
        }
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

    /// The rings of a channel are the guest's again; what follows depends on why.
    pub(super) fn ring_is_back(&mut self, channel: ChannelId, now: Instant) {
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

    /// Asks the host to open a channel whose rings it knows.
    pub(super) fn ask_open(&mut self, channel: ChannelId, ring: GpadlId, now: Instant) {
        let Some(slot) = self.channels.get(&channel) else { return };
        let options = &slot.options;
        let payload = Payload::new(&OpenChannel {
            channel: U32::new(channel.0),
            open_id: U32::new(channel.0),
            ring_gpadl: U32::new(ring.0),
            target_vp: U32::new(options.target_vp),
            downstream_page: U32::new(options.downstream_page),
            user_data: options.user_data,
        });
        // What the offer says, where the guest has no choice or does not make one. Offers have ids of 11 bits.
        let offered =
            SignalParameters { connection: slot.offer.connection, event_flag: channel.0 as u16 };
        let chosen = options.signal.unwrap_or(offered);
        let signal = OpenSignal {
            connection: U32::new(chosen.connection.0),
            event_flag: U16::new(chosen.event_flag),
            flags: U16::new(if options.redirect_interrupt {
                OpenSignal::REDIRECT_INTERRUPT
            } else {
                0
            }),
        };
        let long = self.features.intersects(Features::LONG_OPEN);
        self.post_payload(if long { payload.with(signal.as_bytes()) } else { payload });
        self.arm(Wait::Open { channel }, now);
    }

    /// Leaves the open state, or the way to it.
    pub(super) fn start_closing(&mut self, channel: ChannelId, tell_host: bool, now: Instant) {
        let Some(slot) = self.channels.get_mut(&channel) else { return };
        slot.state = ChannelState::Closing;
        slot.close_wanted = false;
        slot.failed = None;
        // The answer to a wish of before may never come: OpenVMM sends none for a channel that is closed meanwhile. One
        // that comes does so before the rings come back, and finds that nobody waits.
        slot.target = Target::default();
        let ring = slot.ring;
        let close = CloseChannel { channel: U32::new(channel.0) };
        self.disarm(Wait::Retarget { channel });
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
    pub(super) fn finish(&mut self, channel: ChannelId, now: Instant) {
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

    pub(super) fn finish_release(&mut self, channel: ChannelId) {
        if !self.channels.get(&channel).is_some_and(|slot| slot.releasing)
            || !self.gpadls_of(channel).is_empty()
        {
            return;
        }
        let next = self.channels.remove(&channel).and_then(|slot| slot.next);
        if !seeded!("forget-release") {
            self.post(&ReleaseChannel { channel: U32::new(channel.0) });
        }
        self.events.push_back(Event::Released { channel });
        if let Some(offer) = next {
            self.channels.insert(channel, Slot::new(offer.clone()));
            self.events.push_back(Event::Offered(offer));
        }
    }
}

//! A driver that asks for anything at any time, and remembers what it was told.

use std::collections::{BTreeMap, BTreeSet};

use hyperv_host::memory::GuestRam;
use vmbus::bus::{Bus, BusState, ChannelState, Error, Event, OpenOptions, SignalParameters, Wait};
use vmbus::memory::SharedPages;
use vmbus::message::{Message, MessageType, Payload, Side, Version};
use vmbus::{ChannelId, ConnectionId, GpadlId, Instant, Platform};

use crate::script::Script;

/// A channel that the driver was offered.
#[derive(Debug)]
struct Held {
    /// Where it stands, as far as was said.
    state: ChannelState,
    sub: bool,
    rescinded: bool,
    releasing: bool,
    /// Answers to come to wishes for another processor: one to that which was asked, one to the newest after it.
    retargeting: u8,
}

impl Held {
    fn is_dead(&self) -> bool {
        self.rescinded || self.releasing
    }
}

/// Memory that the driver shared.
#[derive(Debug)]
struct Piece {
    channel: ChannelId,
    shared: bool,
    unwanted: bool,
}

/// The driver, as the one on the other side of events.
#[derive(Debug)]
pub(super) struct Driver {
    ram: GuestRam,
    versions: Vec<Version>,
    held: BTreeMap<ChannelId, Held>,
    pieces: BTreeMap<GpadlId, Piece>,
    /// Waits that were reported as overdue, and may go on.
    overdue: BTreeSet<Wait>,
    contacting: bool,
    unloading: bool,
    modifying: bool,
    pausing: bool,
    /// Ids that were given back, as events say and as messages say.
    released: (u64, u64),
}

impl Driver {
    pub(super) fn new(ram: GuestRam, versions: Vec<Version>) -> Self {
        Self {
            ram,
            versions,
            held: BTreeMap::new(),
            pieces: BTreeMap::new(),
            overdue: BTreeSet::new(),
            contacting: false,
            unloading: false,
            modifying: false,
            pausing: false,
            released: (0, 0),
        }
    }

    /// Everything of the connection is void.
    fn forget(&mut self) {
        let (versions, released) = (std::mem::take(&mut self.versions), self.released);
        *self = Self { released, ..Self::new(self.ram.clone(), versions) };
    }

    /// A message for the host is one, and complete.
    pub(super) fn posted(&mut self, payload: &Payload) {
        let parsed = Message::parse(payload, Side::Guest, Version(u32::MAX));
        let (message, rest) = parsed.expect("the guest's messages are legal");
        let open_ended = [
            MessageType::GPADL_HEADER,
            MessageType::GPADL_BODY,
            MessageType::INITIATE_CONTACT,
            MessageType::OPEN_CHANNEL,
        ];
        assert!(rest.is_empty() || open_ended.contains(&message.kind()), "{message:?}");
        self.released.1 += u64::from(message.kind() == MessageType::RELID_RELEASED);
    }

    /// Takes all events; each must fit what was asked and said before.
    pub(super) fn hear(&mut self, bus: &mut Bus) {
        bus.conceal(&self.ram);
        while let Some(event) = bus.poll_event() {
            self.event(event);
            bus.conceal(&self.ram);
        }
    }

    fn event(&mut self, event: Event) {
        match event {
            Event::Connected { version } => {
                assert!(std::mem::take(&mut self.contacting));
                assert!(self.versions.contains(&version));
                assert!(self.held.is_empty());
            }
            Event::ContactFailed(_) => assert!(std::mem::take(&mut self.contacting)),
            Event::Unloaded => {
                assert!(std::mem::take(&mut self.unloading));
                self.forget();
            }
            Event::AllOffersDelivered => {
                self.overdue.remove(&Wait::Offers);
            }
            Event::Offered(offer) => {
                assert!((1..=2047).contains(&offer.channel.0), "{offer:?}");
                let held = Held {
                    state: ChannelState::Offered,
                    sub: offer.sub_channel != 0,
                    rescinded: false,
                    releasing: false,
                    retargeting: 0,
                };
                let before = self.held.insert(offer.channel, held);
                assert!(before.is_none(), "offered while {before:?}");
            }
            Event::Rescinded { channel } => {
                self.alive(channel).rescinded = true;
                // All its waits have ended; those of the release are new ones.
                self.overdue.retain(|wait| !is_of(wait, channel));
            }
            Event::Released { channel } => {
                let held = self.held.remove(&channel).expect("a channel that was held");
                assert!(held.releasing);
                self.pieces.retain(|_, piece| piece.channel != channel);
                self.forget_overdue(channel);
                self.released.0 += 1;
            }
            Event::Overdue(wait) => {
                assert!(self.overdue.insert(wait), "{wait:?} is overdue twice");
            }
            Event::ConnectionModified { .. } => assert!(std::mem::take(&mut self.modifying)),
            Event::Paused => assert!(std::mem::take(&mut self.pausing)),
            event => self.channel_event(event),
        }
    }

    fn channel_event(&mut self, event: Event) {
        match event {
            Event::Opened { channel } => {
                let held = self.alive(channel);
                assert_eq!(held.state, ChannelState::Opening);
                held.state = ChannelState::Open;
            }
            Event::OpenFailed { channel, status, .. } => {
                let held = self.alive(channel);
                assert!(held.state == ChannelState::Opening && status != 0);
                held.state = ChannelState::Offered;
            }
            Event::Closed { channel } => {
                let held = self.alive(channel);
                // Sub-channels close with their primary channel.
                assert!(held.state == ChannelState::Closing || held.sub, "{held:?}");
                held.state = ChannelState::Offered;
                held.retargeting = 0;
                let left = self.pieces.values().filter(|piece| piece.channel == channel).count();
                assert_eq!(left, 0, "memory of a closed channel");
                self.forget_overdue(channel);
            }
            Event::Shared { channel, gpadl } => {
                self.alive(channel);
                let piece = self.pieces.get_mut(&gpadl).expect("memory that was shared");
                assert!(piece.channel == channel && !piece.shared);
                piece.shared = true;
                self.overdue.remove(&Wait::Share { channel, gpadl });
            }
            Event::ShareFailed { channel, gpadl, status } => {
                self.alive(channel);
                let piece = self.pieces.remove(&gpadl).expect("memory that was shared");
                assert!(piece.channel == channel && !piece.shared && status != 0);
            }
            Event::Unshared { channel, gpadl } => {
                let held = self.alive(channel);
                let closing = held.sub || held.state != ChannelState::Open;
                let piece = self.pieces.remove(&gpadl).expect("memory that was shared");
                assert!(piece.channel == channel && (piece.unwanted || closing), "{piece:?}");
            }
            Event::Retargeted { channel, .. } => {
                let held = self.alive(channel);
                assert_eq!(held.state, ChannelState::Open);
                held.retargeting = held.retargeting.checked_sub(1).expect("a wish");
                self.overdue.remove(&Wait::Retarget { channel });
            }
            event => panic!("{event:?}"),
        }
    }

    /// A channel of which there may be news.
    fn alive(&mut self, channel: ChannelId) -> &mut Held {
        let held = self.held.get_mut(&channel).expect("a channel that was offered");
        assert!(!held.is_dead(), "news of {channel}, which is {held:?}");
        held
    }

    /// What was overdue of a channel is no more; a request begins anew. Memory has ids of its own.
    fn forget_overdue(&mut self, channel: ChannelId) {
        let pieces = &self.pieces;
        self.overdue.retain(|wait| match wait {
            Wait::Share { channel: of, gpadl } | Wait::Unshare { channel: of, gpadl } => {
                *of != channel || pieces.contains_key(gpadl)
            }
            Wait::Open { channel: of } | Wait::Retarget { channel: of } => *of != channel,
            _ => true,
        });
    }

    /// The bus says the same as its events did.
    pub(super) fn check(&self, bus: &Bus) {
        for (channel, held) in &self.held {
            let connected = bus.version().is_some();
            let state = bus.channel_state(*channel);
            assert!(bus.offer(*channel).is_some());
            if held.is_dead() || !connected {
                assert_eq!(state, None);
                continue;
            }
            let state = state.expect("alive");
            let fits = match held.state {
                ChannelState::Offered => state == ChannelState::Offered,
                ChannelState::Opening => {
                    state == ChannelState::Opening || held.sub && state == ChannelState::Closing
                }
                ChannelState::Open => {
                    state == ChannelState::Open || held.sub && state == ChannelState::Closing
                }
                // It may have to be open before it can close.
                ChannelState::Closing => {
                    matches!(state, ChannelState::Opening | ChannelState::Closing)
                }
            };
            assert!(fits, "channel {channel} is {state:?} and {held:?}");
        }
    }

    /// Time passes; whatever is due is said to be overdue.
    pub(super) fn pass(&mut self, bus: &mut Bus, now: Instant) {
        bus.handle_deadline(now);
        self.hear(bus);
        assert!(bus.poll_deadline().is_none_or(|due| due > now), "due and not reported");
    }

    /// Every wait that has no end was reported.
    pub(super) fn check_waits(&self, bus: &Bus) {
        assert_eq!(bus.poll_deadline(), None);
        let reported = |test: &dyn Fn(&Wait) -> bool| self.overdue.iter().any(test);
        let state_known = match bus.state() {
            BusState::Idle | BusState::Running => true,
            BusState::Contacting => reported(&|wait| matches!(wait, Wait::Contact { .. })),
            BusState::OffersRequested => reported(&|wait| *wait == Wait::Offers),
            BusState::Unloading => reported(&|wait| *wait == Wait::Unload),
        };
        assert!(state_known, "{:?} and nothing of it in {:?}", bus.state(), self.overdue);
        assert!(!self.modifying || self.overdue.contains(&Wait::ModifyConnection));
        assert!(!self.pausing || self.overdue.contains(&Wait::Pause));
        for (&channel, held) in &self.held {
            assert!(!held.releasing, "channel {channel} is not given back");
            if held.rescinded {
                continue;
            }
            let waits = matches!(held.state, ChannelState::Opening | ChannelState::Closing);
            let family = |wait: &Wait| {
                is_of(wait, channel) || bus.sub_channels(channel).iter().any(|id| is_of(wait, *id))
            };
            assert!(!waits || reported(&family), "{channel} {held:?}: {:?}", self.overdue);
            let retarget = Wait::Retarget { channel };
            // A sub-channel closes with its primary, and with it goes whatever was wished of it.
            let open = bus.channel_state(channel) == Some(ChannelState::Open);
            let retargeting = held.retargeting > 0 && held.state == ChannelState::Open && open;
            assert!(!retargeting || self.overdue.contains(&retarget), "{channel} {held:?}");
        }
        for (&gpadl, piece) in &self.pieces {
            let Piece { channel, shared, unwanted } = *piece;
            if self.held[&channel].is_dead() || shared && !unwanted {
                continue;
            }
            let waits = [Wait::Share { channel, gpadl }, Wait::Unshare { channel, gpadl }];
            assert!(waits.iter().any(|wait| self.overdue.contains(wait)), "{gpadl} {piece:?}");
        }
    }

    /// As many ids were given back as was said.
    pub(super) fn check_released(&self) {
        assert!(self.released.1 >= self.released.0, "{:?}", self.released);
    }

    /// The channel that the script means: one that was offered, mostly.
    fn channel(&self, script: &mut Script<'_>) -> ChannelId {
        let which = script.byte();
        match usize::from(which).checked_rem(self.held.len()) {
            Some(at) if which < 0xf0 => self.held.keys().copied().nth(at).unwrap_or(ChannelId(0)),
            _ => ChannelId(u32::from(which & 7)),
        }
    }

    /// Memory that the host may be told of, while there is some.
    fn memory(&self, bus: &mut Bus, pages: usize) -> Option<SharedPages> {
        let memory = self.ram.allocate(pages).ok()?;
        bus.reveal(&self.ram, &memory).expect("memory that can be revealed");
        Some(memory)
    }

    /// Asks the bus for something.
    pub(super) fn request(
        &mut self,
        what: u8,
        script: &mut Script<'_>,
        bus: &mut Bus,
        now: Instant,
    ) {
        match what {
            23 => {
                if bus.start(now).is_ok() {
                    self.forget();
                    self.contacting = true;
                }
            }
            24 => {
                if bus.restart(now).is_ok() {
                    self.forget();
                    self.contacting = true;
                }
            }
            25 => self.unload(bus, now),
            26..29 => self.open(script, bus, now),
            29 | 30 => self.close(script, bus, now),
            31 | 32 => self.share(script, bus, now),
            33 => self.unshare(script, bus, now),
            34 => {
                let channel = self.channel(script);
                if bus.retarget(channel, script.byte().into(), now).is_ok() {
                    let answered = bus.version() >= Some(Version::V5_3);
                    let held = self.alive(channel);
                    assert_eq!(held.state, ChannelState::Open);
                    held.retargeting = if answered { (held.retargeting + 1).min(2) } else { 0 };
                }
            }
            35 | 36 => {
                let channel = self.channel(script);
                if bus.release(channel, now).is_ok() {
                    let held = self.held.get_mut(&channel).expect("a channel that was offered");
                    assert!(!held.releasing);
                    assert!(held.rescinded || held.state == ChannelState::Offered);
                    held.releasing = true;
                }
            }
            37 => {
                let pages = (script.byte() & 1 == 0).then(|| self.memory(bus, 2)).flatten();
                if bus.modify_connection(pages.as_ref(), now).is_ok() {
                    self.overdue.remove(&Wait::ModifyConnection);
                    self.modifying = true;
                } else if let Some(pages) = pages {
                    bus.give_up(&pages);
                }
            }
            38 => {
                if bus.pause(now).is_ok() {
                    self.overdue.remove(&Wait::Pause);
                    self.pausing = true;
                }
            }
            _ => {
                if bus.unpause().is_ok() {
                    self.pausing = false;
                }
            }
        }
    }

    pub(super) fn unload(&mut self, bus: &mut Bus, now: Instant) {
        if bus.unload(now).is_ok() {
            self.forget();
            self.unloading = true;
        }
    }

    pub(super) fn start(&mut self, bus: &mut Bus, now: Instant) -> Result<(), Error> {
        bus.start(now)?;
        self.forget();
        self.contacting = true;
        Ok(())
    }

    fn open(&mut self, script: &mut Script<'_>, bus: &mut Bus, now: Instant) {
        let channel = self.channel(script);
        let form = script.byte();
        let pages = 3 + usize::from(form & 7);
        let Some(rings) = self.memory(bus, pages) else { return };
        let signal = SignalParameters { connection: ConnectionId(7), event_flag: 9 };
        let options = OpenOptions {
            downstream_page: u32::from(form >> 3 & 7),
            signal: (form & 0x40 != 0).then_some(signal),
            redirect_interrupt: form & 0x80 != 0,
            ..OpenOptions::default()
        };
        let split = options.downstream_page as usize;
        let plain = split >= 2 && split + 2 <= pages && form & 0xc0 == 0;
        let result = bus.open_with(channel, &rings, options, now);
        if result.is_err() {
            bus.give_up(&rings);
        }
        let held = self.held.get_mut(&channel);
        let allowed =
            held.as_ref().is_some_and(|h| !h.is_dead() && h.state == ChannelState::Offered);
        match (result, held) {
            (Ok(()), Some(held)) => {
                assert!(allowed, "{held:?}");
                held.state = ChannelState::Opening;
                held.retargeting = 0;
                self.forget_overdue(channel);
            }
            (Ok(()), None) => panic!("a channel that was not offered opens"),
            (Err(error), Some(held)) if allowed && plain && !held.sub => {
                assert!(bus.version().is_none() || error == Error::NoGpadlIds, "{error}");
            }
            (Err(_), _) => {}
        }
    }

    fn close(&mut self, script: &mut Script<'_>, bus: &mut Bus, now: Instant) {
        let channel = self.channel(script);
        if bus.close(channel, now).is_ok() {
            let held = self.alive(channel);
            assert!(held.state != ChannelState::Offered, "{held:?}");
            // A channel that is being opened waits for that first, and that is said once.
            let opening = held.state != ChannelState::Open;
            held.state = ChannelState::Closing;
            held.retargeting = 0;
            if !opening {
                self.forget_overdue(channel);
            }
        }
    }

    fn share(&mut self, script: &mut Script<'_>, bus: &mut Bus, now: Instant) {
        let channel = self.channel(script);
        let pages = 1 + usize::from(script.byte() & 0x7f);
        let Some(memory) = self.memory(bus, pages) else { return };
        if let Ok(gpadl) = bus.share(channel, &memory, now) {
            assert!(gpadl.0 != 0);
            self.alive(channel);
            let piece = Piece { channel, shared: false, unwanted: false };
            assert!(self.pieces.insert(gpadl, piece).is_none(), "an id twice");
        } else {
            bus.give_up(&memory);
        }
    }

    fn unshare(&mut self, script: &mut Script<'_>, bus: &mut Bus, now: Instant) {
        let which = script.byte();
        let known = usize::from(which)
            .checked_rem(self.pieces.len())
            .and_then(|at| self.pieces.keys().copied().nth(at));
        // Now and then memory that the driver does not know: rings, or none at all.
        let gpadl =
            known.filter(|_| which < 0xf0).unwrap_or(GpadlId(0xe1e10 + u32::from(which & 7)));
        if bus.unshare(gpadl, now).is_ok() {
            let piece = self.pieces.get_mut(&gpadl).expect("memory that was shared");
            piece.unwanted = true;
            let channel = piece.channel;
            self.alive(channel);
        }
    }
}

/// Whether a wait is for an answer about a channel.
fn is_of(wait: &Wait, id: ChannelId) -> bool {
    match wait {
        Wait::Share { channel, .. }
        | Wait::Unshare { channel, .. }
        | Wait::Open { channel }
        | Wait::Retarget { channel } => *channel == id,
        _ => false,
    }
}

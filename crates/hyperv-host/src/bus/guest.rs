//! What the guest asks for.

use tracing::debug;
use vmbus::channel::Channel;
use vmbus::gpadl::{GpadlAssembler, Range};
use vmbus::memory::PageList;
use vmbus::message::{
    CONTACT_CONNECTION, CloseChannel, Features, GpadlBody, GpadlHeader, GpadlTeardown,
    InitiateContact, LEGACY_CONNECTION, Message, MessageType, ModifyChannel, ModifyChannelResponse,
    OpenResult, ReleaseChannel, STATUS_REFUSED, Side, VMBUS_SINT, Version, WireGuid,
};
use vmbus::{ChannelId, ConnectionId, GpadlId, Instant, Pfn, SignalFlag};
use zerocopy::FromBytes;
use zerocopy::little_endian::U32;

use super::device::{Device, HostGpadl, OpenRequest};
use super::{After, BusEvent, BusServer, DeviceId, DeviceState, GuestError, RescindMoment};

/// Where the first message of a connection of this version goes, and all others before 5.0.
pub(super) fn connection_of(version: Version) -> ConnectionId {
    if version >= Version::V5_0 { CONTACT_CONNECTION } else { LEGACY_CONNECTION }
}

/// The features that a guest asks for with a version.
pub(super) fn features_of(contact: &InitiateContact) -> Features {
    let known = contact.version.get() >= Version::V6_0.0;
    let bits = if known { (contact.target.get() >> 32) as u32 } else { 0 };
    Features::from_bits_truncate(bits)
}

/// The virtual trust level of a guest that asks for a version.
pub(super) fn vtl_of(contact: &InitiateContact) -> u8 {
    let [_, vtl, ..] = contact.target.get().to_le_bytes();
    if contact.version.get() >= Version::V5_1.0 { vtl } else { 0 }
}

/// Whether a request for a version is in itself right: both monitor pages or none, and an interrupt source that exists.
pub(super) fn contact_is_sound(contact: &InitiateContact) -> bool {
    let pages = (contact.monitor_to_guest.get() == 0) == (contact.monitor_to_host.get() == 0);
    let modern = contact.version.get() >= Version::V5_0.0;
    pages && (!modern || contact.target.get().to_le_bytes()[0] == VMBUS_SINT)
}

impl BusServer {
    /// Takes a message that the guest posted to `connection`.
    ///
    /// # Errors
    /// [`GuestError`] says what the guest did wrong; it is counted, and the guest gets a refusal where there is one.
    pub fn handle_message(
        &mut self,
        connection: ConnectionId,
        payload: &[u8],
        now: Instant,
    ) -> Result<(), GuestError> {
        self.counters.received += 1;
        let result = self.dispatch(connection, payload, now);
        if let Err(error) = &result {
            debug!(%error, "the guest is wrong");
            self.counters.guest_errors += 1;
        }
        result
    }

    fn dispatch(
        &mut self,
        connection: ConnectionId,
        payload: &[u8],
        now: Instant,
    ) -> Result<(), GuestError> {
        let link = self.link.filter(|_| self.resetting.is_none());
        let version = link.map_or(Version(u32::MAX), |link| link.version);
        let (message, data) = Message::parse(payload, Side::Guest, version)?;
        let kind = message.kind();
        let expected = match (&message, link) {
            (Message::InitiateContact(contact), _) => {
                self.contact_connection(Version(contact.version.get()), connection)
            }
            (_, Some(link)) => link.connection,
            (_, None) => return Err(GuestError::NotConnected { kind }),
        };
        if connection != expected {
            return Err(GuestError::WrongConnection { kind, expected, got: connection });
        }
        let device = named(&message).and_then(|channel| self.find(kind, channel).ok());
        self.rescind_at(RescindMoment::Before(kind), device, now);
        self.carry_out(message, data, now)?;
        self.rescind_at(RescindMoment::After(kind), device, now);
        Ok(())
    }

    /// Takes a device away if the policy says that this is the moment.
    fn rescind_at(&mut self, moment: RescindMoment, device: Option<DeviceId>, now: Instant) {
        if let Some(device) = device.filter(|_| self.policy.rescind == Some(moment)) {
            self.policy.rescind = None;
            self.rescind(device, now);
        }
    }

    /// Does what a message asks for, on a connection where it may come.
    fn carry_out(
        &mut self,
        message: Message<'_>,
        data: &[u8],
        now: Instant,
    ) -> Result<(), GuestError> {
        match message {
            Message::InitiateContact(contact) => {
                let named = features_of(contact).contains(Features::CLIENT_ID);
                let client = WireGuid::read_from_prefix(data).ok().filter(|_| named);
                self.reset(After::Contact(*contact, client.map(|(id, _)| id.into())), now);
            }
            Message::Unload(_) => self.reset(After::Unload, now),
            Message::RequestOffers(_) => self.offers_requested(now)?,
            Message::GpadlHeader(header) => self.gpadl_header(header, data, now)?,
            Message::GpadlBody(body) => self.gpadl_body(body, data, now)?,
            Message::GpadlTeardown(body) => self.gpadl_teardown(body, now)?,
            Message::OpenChannel(open) => {
                let request = OpenRequest::new(open, data, self.features())?;
                self.open_requested(&request, now)?;
            }
            Message::CloseChannel(close) => self.close_requested(close, now)?,
            Message::ModifyConnection(modify) => self.modify_connection(modify, now)?,
            Message::Pause(_) => self.pause(now)?,
            Message::Resume(_) => self.unpause(now)?,
            Message::ModifyChannel(modify) => self.modify_requested(modify, now)?,
            Message::ReleaseChannel(release) => self.release_requested(release, now)?,
            _ => return Err(GuestError::NotServed { kind: message.kind() }),
        }
        Ok(())
    }

    fn offers_requested(&mut self, now: Instant) -> Result<(), GuestError> {
        match &mut self.link {
            Some(link) if !link.offers_requested => link.offers_requested = true,
            _ => return Err(GuestError::OffersRequestedAgain),
        }
        self.request_offers(now);
        Ok(())
    }

    fn find(&self, kind: MessageType, channel: ChannelId) -> Result<DeviceId, GuestError> {
        let mut devices = self.devices.iter();
        let found = devices.find(|(_, device)| device.channel == Some(channel));
        found.map(|(id, _)| *id).ok_or(GuestError::UnknownChannel { kind, channel })
    }

    fn find_mut(
        &mut self,
        kind: MessageType,
        channel: ChannelId,
    ) -> Result<(DeviceId, &mut Device), GuestError> {
        let mut devices = self.devices.iter_mut();
        let found = devices.find(|(_, device)| device.channel == Some(channel));
        found.map(|(id, device)| (*id, device)).ok_or(GuestError::UnknownChannel { kind, channel })
    }

    fn gpadl_header(
        &mut self,
        header: &GpadlHeader,
        data: &[u8],
        now: Instant,
    ) -> Result<(), GuestError> {
        let channel = ChannelId(header.channel.get());
        let gpadl = GpadlId(header.gpadl.get());
        let started = self.start_gpadl(channel, gpadl, header, data);
        match started {
            Ok(id) => self.complete_gpadl(id, gpadl, now),
            Err(error) => {
                self.expect_remains(gpadl);
                self.answer_gpadl(channel, gpadl, STATUS_REFUSED, now);
                Err(error)
            }
        }
    }

    fn start_gpadl(
        &mut self,
        channel: ChannelId,
        gpadl: GpadlId,
        header: &GpadlHeader,
        data: &[u8],
    ) -> Result<DeviceId, GuestError> {
        // Bodies name no channel, so an unfinished id must be unique over all of them.
        let unfinished =
            |device: &Device| matches!(device.gpadls.get(&gpadl), Some(HostGpadl::Assembling(_)));
        let taken = self.devices.values().any(unfinished);
        let (id, device) = self.find_mut(MessageType::GPADL_HEADER, channel)?;
        if taken || device.gpadls.contains_key(&gpadl) {
            return Err(GuestError::GpadlExists { gpadl });
        }
        let assembler = GpadlAssembler::new(header, data)
            .map_err(|error| GuestError::BadGpadl { gpadl, error })?;
        device.gpadls.insert(gpadl, HostGpadl::Assembling(assembler));
        self.refused.retain(|id| *id != gpadl);
        Ok(id)
    }

    fn gpadl_body(
        &mut self,
        body: &GpadlBody,
        data: &[u8],
        now: Instant,
    ) -> Result<(), GuestError> {
        let gpadl = GpadlId(body.gpadl.get());
        let unknown = GuestError::UnknownGpadl { kind: MessageType::GPADL_BODY, gpadl };
        let mut unfinished = None;
        for (id, device) in &mut self.devices {
            if let Some(HostGpadl::Assembling(assembler)) = device.gpadls.get_mut(&gpadl) {
                unfinished = Some((*id, device.channel, assembler));
            }
        }
        if unfinished.is_none() && self.refused.contains(&gpadl) {
            self.counters.ignored += 1;
            return Ok(());
        }
        let (id, channel, assembler) = unfinished.ok_or(unknown)?;
        match (assembler.add(data), channel) {
            (Ok(()), _) => self.complete_gpadl(id, gpadl, now),
            (Err(error), channel) => {
                if let Some(channel) = channel {
                    self.refuse_gpadl(channel, gpadl, now);
                }
                Err(GuestError::BadGpadl { gpadl, error })
            }
        }
    }

    /// Answers a GPADL if all of it has come.
    fn complete_gpadl(
        &mut self,
        id: DeviceId,
        gpadl: GpadlId,
        now: Instant,
    ) -> Result<(), GuestError> {
        let Some(device) = self.devices.get_mut(&id) else { return Ok(()) };
        let Some(channel) = device.channel else { return Ok(()) };
        let Some(HostGpadl::Assembling(assembler)) = device.gpadls.get(&gpadl) else {
            return Ok(());
        };
        let ranges = match assembler.ranges() {
            Ok(None) => return Ok(()),
            Ok(Some(ranges)) => ranges,
            Err(error) => {
                self.refuse_gpadl(channel, gpadl, now);
                return Err(GuestError::BadGpadl { gpadl, error });
            }
        };
        let pages = match self.memory.map(&frames(&ranges)) {
            Ok(pages) => pages,
            Err(error) => {
                self.refuse_gpadl(channel, gpadl, now);
                return Err(GuestError::NotMemory { gpadl, error });
            }
        };
        let status = self.policy.gpadl_status;
        if status == 0 {
            let ready = HostGpadl::Ready { ranges, pages, asked_back: false };
            device.gpadls.insert(gpadl, ready);
            self.counters.gpadls_created += 1;
        } else {
            device.gpadls.remove(&gpadl);
        }
        self.answer_gpadl(channel, gpadl, status, now);
        Ok(())
    }

    fn gpadl_teardown(&mut self, body: &GpadlTeardown, now: Instant) -> Result<(), GuestError> {
        let kind = MessageType::GPADL_TEARDOWN;
        let (channel, gpadl) = (ChannelId(body.channel.get()), GpadlId(body.gpadl.get()));
        let (id, device) = self.find_mut(kind, channel)?;
        let ring = device.ring == Some(gpadl);
        match device.gpadls.get_mut(&gpadl) {
            None => return Err(GuestError::UnknownGpadl { kind, gpadl }),
            Some(HostGpadl::Assembling(_)) => return Err(GuestError::TornDownEarly { gpadl }),
            Some(HostGpadl::Ready { asked_back: true, .. }) => {
                return Err(GuestError::TornDownTwice { gpadl });
            }
            Some(HostGpadl::Ready { asked_back, .. }) => {
                if ring && device.state == DeviceState::Open {
                    return Err(GuestError::RingTornDown { channel, gpadl });
                }
                *asked_back = true;
            }
        }
        // A device that is stopping may still use the memory: the answer is the proof that it does not.
        if !device.stopping {
            self.return_gpadl(id, gpadl, now);
        }
        Ok(())
    }

    fn open_requested(&mut self, request: &OpenRequest, now: Instant) -> Result<(), GuestError> {
        let kind = MessageType::OPEN_CHANNEL;
        let channel = ChannelId(request.open.channel.get());
        let (id, device) = self.find_mut(kind, channel)?;
        match device.state {
            DeviceState::Offered => self.open_channel(id, request, now),
            DeviceState::Closing if device.reopen.is_none() => {
                device.reopen = Some(*request);
                Ok(())
            }
            DeviceState::Revoked => {
                self.counters.ignored += 1;
                Ok(())
            }
            state => Err(GuestError::WrongState { kind, channel, state }),
        }
    }

    /// Opens the channel of an idle device, or says no.
    pub(super) fn open_channel(
        &mut self,
        id: DeviceId,
        request: &OpenRequest,
        now: Instant,
    ) -> Result<(), GuestError> {
        let open = &request.open;
        let policy = self.policy.open_status;
        let result = if policy == 0 { self.attach(id, request) } else { Ok(()) };
        let status = if result.is_ok() { policy } else { STATUS_REFUSED };
        let answer =
            OpenResult { channel: open.channel, open_id: open.open_id, status: U32::new(status) };
        self.send(&answer, now);
        result
    }

    fn attach(&mut self, id: DeviceId, request: &OpenRequest) -> Result<(), GuestError> {
        let open = &request.open;
        let (channel, gpadl) = (ChannelId(open.channel.get()), GpadlId(open.ring_gpadl.get()));
        let downstream_page = open.downstream_page.get();
        let Some(device) = self.devices.get_mut(&id) else { return Ok(()) };
        let kind = MessageType::OPEN_CHANNEL;
        let unknown = GuestError::UnknownGpadl { kind, gpadl };
        let memory = match device.gpadls.get(&gpadl) {
            Some(memory @ HostGpadl::Ready { asked_back: false, .. }) => memory,
            _ => return Err(unknown),
        };
        let (tx, rx) = rings(memory, downstream_page)
            .ok_or(GuestError::BadRings { gpadl, downstream_page })?;
        let bell = SignalFlag::new();
        let mut end = Channel::from_parts(tx, rx, bell.clone())
            .map_err(|error| GuestError::Ring { channel, error })?;
        end.check_trailers(true);
        device.bell = bell;
        device.ring = Some(gpadl);
        device.downstream_page = downstream_page;
        device.target_vp = open.target_vp.get();
        device.signal = request.signal;
        device.redirected = request.redirected;
        device.state = DeviceState::Open;
        self.events.push_back(BusEvent::Opened { device: id, channel: end });
        self.watch(id);
        Ok(())
    }

    fn close_requested(&mut self, close: &CloseChannel, now: Instant) -> Result<(), GuestError> {
        let kind = MessageType::CLOSE_CHANNEL;
        let channel = ChannelId(close.channel.get());
        let (id, device) = self.find_mut(kind, channel)?;
        match device.state {
            DeviceState::Open => {
                device.state = DeviceState::Closing;
                device.stopping = true;
                device.modify_due = None;
                self.events.push_back(BusEvent::Closing { device: id });
                // Sub-channels exist at the request of the open primary channel's driver, and go with it.
                for sub in self.sub_devices(id) {
                    self.rescind(sub, now);
                }
            }
            DeviceState::Revoked => self.counters.ignored += 1,
            state => return Err(GuestError::WrongState { kind, channel, state }),
        }
        Ok(())
    }

    fn modify_requested(&mut self, modify: &ModifyChannel, now: Instant) -> Result<(), GuestError> {
        let kind = MessageType::MODIFY_CHANNEL;
        let channel = ChannelId(modify.channel.get());
        let result = self.find(kind, channel).and_then(|id| match self.state(id) {
            // A rescinded channel has its answer, and the guest could not know.
            Some(DeviceState::Open | DeviceState::Revoked) | None => Ok(id),
            Some(state) => Err(GuestError::WrongState { kind, channel, state }),
        });
        let answered = self.link.is_some_and(|link| link.version >= Version::V5_3);
        let delay = self.policy.modify_delay;
        let mut revoked = false;
        if let Some(device) = result.as_ref().ok().and_then(|id| self.devices.get_mut(id)) {
            if device.modify_due.is_some() {
                return Err(GuestError::ModifyUnderWay { channel });
            }
            device.target_vp = modify.target_vp.get();
            revoked = device.state == DeviceState::Revoked;
            if answered && !revoked && !delay.is_zero() {
                device.modify_due = Some(now + delay);
                return Ok(());
            }
        }
        self.counters.ignored += u64::from(revoked);
        if answered {
            let status = if result.is_ok() && !revoked { 0 } else { STATUS_REFUSED };
            let status = U32::new(status);
            self.send(&ModifyChannelResponse { channel: modify.channel, status }, now);
        }
        result.map(drop)
    }

    /// Says yes to the wishes for another processor whose devices have followed them.
    pub(super) fn answer_modified(&mut self, now: Instant) {
        let mut followed = Vec::new();
        for device in self.devices.values_mut() {
            if device.modify_due.is_some_and(|due| due <= now) {
                device.modify_due = None;
                followed.extend(device.channel);
            }
        }
        for channel in followed {
            let (channel, status) = (U32::new(channel.0), U32::new(0));
            self.send(&ModifyChannelResponse { channel, status }, now);
        }
    }

    fn release_requested(
        &mut self,
        release: &ReleaseChannel,
        now: Instant,
    ) -> Result<(), GuestError> {
        let kind = MessageType::RELID_RELEASED;
        let channel = ChannelId(release.channel.get());
        if self.faults.made_up.remove(&channel) {
            return Ok(());
        }
        let (id, device) = self.find_mut(kind, channel)?;
        match device.state {
            DeviceState::Offered | DeviceState::Closing | DeviceState::Revoked
                if !device.release_wanted => {}
            state => return Err(GuestError::WrongState { kind, channel, state }),
        }
        let stopping = device.stopping;
        device.release_wanted = true;
        self.counters.releases += 1;
        if !stopping {
            self.let_go(id, now);
        }
        Ok(())
    }
}

/// The channel that a message is about.
fn named(message: &Message<'_>) -> Option<ChannelId> {
    let channel = match message {
        Message::OpenChannel(body) => body.channel,
        Message::CloseChannel(body) => body.channel,
        Message::GpadlHeader(body) => body.channel,
        Message::GpadlTeardown(body) => body.channel,
        Message::ModifyChannel(body) => body.channel,
        _ => return None,
    };
    Some(ChannelId(channel.get()))
}

fn frames(ranges: &[Range]) -> Vec<Pfn> {
    ranges.iter().flat_map(|range| range.frames.iter().copied()).collect()
}

/// The host's rings, the one it writes first, in memory that holds the guest's first.
pub(super) fn rings(memory: &HostGpadl, downstream_page: u32) -> Option<(PageList, PageList)> {
    let HostGpadl::Ready { ranges, .. } = memory else { return None };
    let pages = memory.pages().filter(|_| ranges.len() == 1)?;
    let split = usize::try_from(downstream_page).ok()?;
    let rest = pages.pages().checked_sub(split)?;
    if split < 2 || rest < 2 {
        return None;
    }
    Some((pages.slice(split, rest)?, pages.slice(0, split)?))
}

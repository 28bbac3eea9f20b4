//! RNDIS on a NIC: requests that wait for replies, and what the host says unasked.

use alloc::collections::VecDeque;
use alloc::vec::Vec;

use vmbus::channel::Doorbell;

use super::flaps::Flaps;
use super::link::Sent;
use super::stop::Stopping;
use super::{Nic, NicError, NicEvent, Stage, Step};
use crate::mac::MacAddress;
use crate::nvsp;
use crate::rndis::object::friendly_name;
use crate::rndis::offload::OffloadCapabilities;
use crate::rndis::scaling::ScalingCapabilities;
use crate::rndis::{
    GuestMessage, HostMessage, InitializeComplete, MAJOR_VERSION, MAX_TRANSFER, Oid, PacketFilter,
    Status,
};

/// What is asked of the host before frames flow. All at once; only the first has to be known to every host.
const QUESTIONS: [Oid; 5] = [
    Oid::PERMANENT_ADDRESS,
    Oid::MAXIMUM_FRAME_SIZE,
    Oid::MEDIA_CONNECT_STATUS,
    Oid::LINK_SPEED,
    Oid::FRIENDLY_NAME,
];
/// Nothing waits for the answer to this question: a name is not worth it.
const NAME: Step = Step::Query(Oid::FRIENDLY_NAME);
/// Bytes of a name that are looked at: as many as hosts send.
const MOST_NAME: usize = 512;
/// Requests for the same thing that are remembered while the host answers none of them.
const MOST_UNANSWERED: usize = 4;
/// Unit of link speeds, in bit/s.
const SPEED_UNIT: u64 = 100;

#[derive(Clone, Copy, Debug)]
struct Request {
    id: u32,
    step: Step,
    /// The address that the NIC has if the host agrees.
    address: Option<MacAddress>,
}

/// A message that waits for the control slot.
#[derive(Debug)]
struct Queued {
    /// What it asks for, if it is a request.
    request: Option<u32>,
    bytes: Vec<u8>,
}

/// Requests under way.
#[derive(Debug)]
pub(super) struct Control {
    queue: VecDeque<Queued>,
    requests: Vec<Request>,
    next_id: u32,
    /// The link as an indication told it: that counts more than the answer to a question.
    indicated: Option<bool>,
}

impl Control {
    pub(super) fn new() -> Self {
        Self { queue: VecDeque::new(), requests: Vec::new(), next_id: 0, indicated: None }
    }

    fn next_id(&mut self) -> u32 {
        self.next_id = self.next_id.wrapping_add(1);
        self.next_id
    }

    fn push(&mut self, message: &GuestMessage<'_>) {
        let mut bytes = Vec::new();
        message.encode(&mut bytes);
        self.queue.push_back(Queued { request: None, bytes });
    }

    /// Queues the answer to a question of the host, unless so many messages wait already.
    fn answer(&mut self, message: &GuestMessage<'_>, most: usize) -> bool {
        let taken = self.queue.len() < most;
        if taken {
            self.push(message);
        }
        taken
    }

    /// Whether every message is in the ring.
    pub(super) fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    /// Of requests for the same thing that the host has never answered only the newest few are remembered.
    fn forget_oldest(&mut self, step: Step) {
        let same = |request: &Request| request.step == step;
        if self.requests.iter().filter(|request| same(request)).count() < MOST_UNANSWERED {
            return;
        }
        let oldest = (0..).zip(&self.requests).filter(|(_, request)| same(request));
        let age = |request: &Request| self.next_id.wrapping_sub(request.id);
        if let Some((place, _)) = oldest.max_by_key(|(_, request)| age(request)) {
            self.requests.swap_remove(place);
        }
    }

    /// A request for the same thing that has not been sent yet is not sent any more: the newest counts.
    fn forget_unsent(&mut self, step: Step) {
        let Self { queue, requests, .. } = self;
        queue.retain(|queued| {
            let same =
                |request: &Request| request.step == step && queued.request == Some(request.id);
            let Some(place) = requests.iter().position(same) else { return true };
            requests.swap_remove(place);
            false
        });
    }

    fn take(&mut self, id: u32) -> Option<Request> {
        let place = self.requests.iter().position(|request| request.id == id)?;
        Some(self.requests.swap_remove(place))
    }

    /// The last request is for this address.
    pub(super) fn asks_for(&mut self, address: MacAddress) {
        if let Some(request) = self.requests.last_mut() {
            request.address = Some(address);
        }
    }
}

impl<D: Doorbell> Nic<D> {
    /// Puts the next control message into its slot, if that is free.
    pub(super) fn send_control(&mut self) -> Result<Sent, NicError> {
        if self.transmit.control_busy() {
            return Ok(Sent::Yes);
        }
        let Some(Queued { bytes, .. }) = self.control.queue.front() else { return Ok(Sent::Yes) };
        debug_assert!(bytes.len() <= self.transmit.control_size());
        let sent = self.transmit.send_control(&mut self.link, bytes)?;
        if sent == Sent::Yes {
            self.control.queue.pop_front();
        }
        Ok(sent)
    }

    /// The host is done with a control message; its reply is another matter.
    pub(super) fn control_sent(&mut self, status: nvsp::Status) -> Result<(), NicError> {
        match (self.stage, status) {
            (_, nvsp::Status::SUCCESS) | (Stage::Stopping(_), _) => Ok(()),
            (_, status) => Err(NicError::ControlRefused(status)),
        }
    }

    fn request(&mut self, step: Step, message: impl FnOnce(u32) -> Vec<u8>) {
        let id = self.control.next_id();
        self.control.forget_unsent(step);
        self.control.forget_oldest(step);
        self.control.queue.push_back(Queued { request: Some(id), bytes: message(id) });
        self.control.requests.push(Request { id, step, address: None });
        self.waits.begin(step, self.now);
    }

    /// The buffers are in place: RNDIS begins.
    pub(super) fn initialize(&mut self) {
        self.stage = Stage::Initializing;
        self.request(Step::Initialize, |request_id| {
            encode(&GuestMessage::Initialize {
                request_id,
                major: MAJOR_VERSION,
                minor: 0,
                max_transfer: MAX_TRANSFER,
            })
        });
    }

    fn query(&mut self, oid: Oid, info: &[u8]) {
        self.request(Step::Query(oid), |request_id| {
            encode(&GuestMessage::Query { request_id, oid, info })
        });
    }

    /// Asks for an object to have this value.
    pub(super) fn set(&mut self, oid: Oid, info: &[u8]) {
        self.request(Step::Set(oid), |request_id| {
            encode(&GuestMessage::Set { request_id, oid, info })
        });
    }

    /// Asks the host whether it is still there.
    pub(super) fn ask_alive(&mut self) {
        self.request(Step::KeepAlive, |request_id| encode(&GuestMessage::KeepAlive { request_id }));
    }

    /// Tells the host that the guest is there. False if too many such answers wait.
    pub(super) fn answer_alive(&mut self, request_id: u32, most: usize) -> bool {
        let answer = GuestMessage::KeepAliveComplete { request_id, status: Status::SUCCESS };
        self.control.answer(&answer, most)
    }

    /// Asks the host to begin anew. Its answer names no request: only one is under way at a time.
    pub(super) fn ask_reset(&mut self) {
        self.control.push(&GuestMessage::Reset);
        self.waits.begin(Step::Reset, self.now);
    }

    /// Says which frames are wanted.
    pub(super) fn set_filter(&mut self, filter: PacketFilter) {
        let info = filter.bits().to_le_bytes();
        self.request(Step::Filter, |request_id| {
            let oid = Oid::CURRENT_PACKET_FILTER;
            encode(&GuestMessage::Set { request_id, oid, info: &info })
        });
    }

    /// Says that this is all.
    pub(super) fn halt(&mut self) {
        let request_id = self.control.next_id();
        self.control.push(&GuestMessage::Halt { request_id });
    }

    pub(super) fn handle_rndis(&mut self, message: &HostMessage<'_>) -> Result<(), NicError> {
        let (id, status) = match *message {
            HostMessage::Indicate { status, buffer } => {
                self.handle_indication(status, buffer);
                return Ok(());
            }
            HostMessage::InitializeComplete(InitializeComplete { request_id, status, .. })
            | HostMessage::QueryComplete { request_id, status, .. }
            | HostMessage::KeepAliveComplete { request_id, status, .. }
            | HostMessage::SetComplete { request_id, status, .. } => (request_id, status),
            HostMessage::KeepAlive { request_id } => {
                self.handle_keep_alive(request_id);
                return Ok(());
            }
            HostMessage::ResetComplete { status, addressing_reset } => {
                self.handle_reset(status, addressing_reset);
                return Ok(());
            }
        };
        let Some(Request { step, address, .. }) = self.control.take(id) else {
            self.stats.bad.reply += 1;
            return Ok(());
        };
        self.stats.replied(status);
        // Whether it is the newest or not: it is the one that the host uses.
        if status == Status::SUCCESS && address.is_some() {
            self.config.address = address;
        }
        // The same may have been asked for again meanwhile, because the answer was overdue or the NIC goes down: what counts is the
        // answer to the newest.
        let newer = |it: &Request| it.step == step && it.id.wrapping_sub(id) as i32 > 0;
        if self.control.requests.iter().any(newer) {
            self.stats.late += 1;
            return Ok(());
        }
        self.answer_came(step);
        match (self.stage, step, *message) {
            (Stage::Stopping(stopping), step, _) => {
                if (stopping, step) == (Stopping::Filter, Step::Filter) {
                    self.begin_way_back();
                }
                Ok(())
            }
            (_, Step::Initialize, HostMessage::InitializeComplete(said)) => self.initialized(&said),
            (_, Step::Query(oid), HostMessage::QueryComplete { status, info, .. }) => {
                self.learned(oid, status, info)
            }
            (Stage::Ready, Step::Filter, HostMessage::SetComplete { status, .. }) => {
                self.was_set(Oid::CURRENT_PACKET_FILTER, status);
                Ok(())
            }
            (_, Step::Filter, HostMessage::SetComplete { status, .. }) => self.filtered(status),
            (_, Step::Set(oid), HostMessage::SetComplete { status, .. }) => {
                self.was_set(oid, status);
                Ok(())
            }
            (_, Step::KeepAlive, HostMessage::KeepAliveComplete { .. }) => Ok(()),
            (_, step, _) => Err(NicError::WrongReply { step }),
        }
    }

    fn initialized(&mut self, said: &InitializeComplete) -> Result<(), NicError> {
        let InitializeComplete { status, major, medium, .. } = *said;
        if status != Status::SUCCESS {
            return Err(NicError::RequestRefused { step: Step::Initialize, status });
        }
        if major != MAJOR_VERSION || medium != 0 {
            return Err(NicError::Rndis { major, medium });
        }
        self.transmit.share_messages(said.max_packets, said.max_transfer, said.alignment_factor);
        self.stage = Stage::Querying;
        for oid in QUESTIONS {
            self.query(oid, &[]);
        }
        let version = self.version();
        if self.config.offloads.any() {
            let form = OffloadCapabilities::question(version);
            self.query(Oid::OFFLOAD_HARDWARE_CAPABILITIES, &form);
        }
        if self.config.queues > 1 && version >= nvsp::Version::V5 {
            self.query(Oid::RSS_CAPABILITIES, &ScalingCapabilities::question());
        }
        Ok(())
    }

    fn learned(&mut self, oid: Oid, status: Status, info: &[u8]) -> Result<(), NicError> {
        if status != Status::SUCCESS {
            if oid == Oid::PERMANENT_ADDRESS {
                return Err(NicError::RequestRefused { step: Step::Query(oid), status });
            }
        } else {
            self.learned_value(oid, info)?;
        }
        self.go_on();
        Ok(())
    }

    /// Sets the packet filter, if everything before it is answered.
    pub(super) fn go_on(&mut self) {
        let answered = self.control.requests.iter().all(|request| request.step == NAME);
        if self.stage == Stage::Querying && answered {
            self.stage = Stage::Filtering;
            self.set_filter(self.config.filter);
        }
    }

    fn learned_value(&mut self, oid: Oid, info: &[u8]) -> Result<(), NicError> {
        match oid {
            Oid::PERMANENT_ADDRESS => {
                let mac = MacAddress(value(oid, info)?);
                if !mac.is_unicast() {
                    return Err(NicError::Mac(mac));
                }
                self.info.mac = Some(mac);
            }
            // What cannot be read is not used.
            Oid::OFFLOAD_HARDWARE_CAPABILITIES => match OffloadCapabilities::decode(info) {
                Ok(offered) => self.choose_offloads(offered),
                Err(error) => {
                    tracing::debug!(%error, "offloads not used");
                    self.stats.bad.value += 1;
                }
            },
            Oid::RSS_CAPABILITIES => {
                self.info.scaling = ScalingCapabilities::decode(info);
                self.stats.bad.value += u64::from(self.info.scaling.is_none());
            }
            Oid::FRIENDLY_NAME => {
                let name = friendly_name(info.get(..MOST_NAME).unwrap_or(info));
                self.stats.bad.value += u64::from(name.is_none());
                self.name = name.map(|name| name.chars().filter(|it| !it.is_control()).collect());
            }
            oid => match info.first_chunk() {
                Some(number) => self.learned_number(oid, u32::from_le_bytes(*number))?,
                None => self.stats.bad.value += 1,
            },
        }
        Ok(())
    }

    fn learned_number(&mut self, oid: Oid, number: u32) -> Result<(), NicError> {
        match oid {
            Oid::MAXIMUM_FRAME_SIZE => {
                self.info.mtu = NicError::check_mtu(number)?.min(self.config.mtu);
                self.transmit.limit(self.info.mtu);
            }
            Oid::MEDIA_CONNECT_STATUS => {
                self.info.link = self.control.indicated.unwrap_or(number == 0);
            }
            Oid::LINK_SPEED if self.info.speed.is_none() => {
                self.info.speed = Some(u64::from(number) * SPEED_UNIT);
            }
            _ => {}
        }
        Ok(())
    }

    fn filtered(&mut self, status: Status) -> Result<(), NicError> {
        if status != Status::SUCCESS {
            return Err(NicError::RequestRefused { step: Step::Filter, status });
        }
        let (Stage::Filtering, Some(mac), Some(version)) =
            (self.stage, self.info.mac, self.info.version)
        else {
            return Ok(());
        };
        self.stage = Stage::Ready;
        self.info.ready = true;
        self.flaps = Flaps::new(self.info.link);
        self.restore_address();
        let (mtu, link) = (self.info.mtu, self.info.link);
        self.events.push_back(NicEvent::Ready { mac, mtu, version, link });
        Ok(())
    }

    fn handle_indication(&mut self, status: Status, buffer: &[u8]) {
        self.stats.indications.count(status);
        match status {
            Status::MEDIA_CONNECT => self.set_link(true),
            Status::MEDIA_DISCONNECT => self.set_link(false),
            Status::NETWORK_CHANGE if self.info.link => {
                // Another network behind the same link: whoever looks at the link has to notice.
                self.set_link(false);
                self.set_link(true);
            }
            Status::LINK_SPEED_CHANGE => match buffer.first_chunk() {
                Some(speed) => {
                    self.info.speed = Some(u64::from(u32::from_le_bytes(*speed)) * SPEED_UNIT);
                }
                None => self.stats.bad.value += 1,
            },
            status => tracing::debug!(?status, "indication passed over"),
        }
    }

    fn set_link(&mut self, up: bool) {
        self.control.indicated = Some(up);
        if self.info.link == up {
            return;
        }
        self.info.link = up;
        if self.info.ready {
            self.stats.link_changes += 1;
            self.flaps.changed(up);
            self.tell_link();
        }
    }

    /// Tells the owner about the link, as fast as that is good for anybody.
    pub(super) fn tell_link(&mut self) {
        while let Some(up) = self.flaps.poll(self.now) {
            self.events.push_back(NicEvent::Link { up });
        }
    }
}

fn encode(message: &GuestMessage<'_>) -> Vec<u8> {
    let mut bytes = Vec::new();
    message.encode(&mut bytes);
    bytes
}

/// The value of an object that has exactly `N` bytes, or more: some hosts pad.
fn value<const N: usize>(oid: Oid, info: &[u8]) -> Result<[u8; N], NicError> {
    let error = NicError::ValueLength { oid, len: info.len(), expected: N };
    info.first_chunk().copied().ok_or(error)
}

//! The guest's side of one synthetic NIC.
//!
//! [`Nic`] agrees with the host on a version, gives it the buffers, brings RNDIS up and carries frames; it hears of virtual
//! functions and asks the host to switch the data path. It never waits: whatever the host says is understood at any
//! moment and in any order that makes sense, every answer that is due has a deadline, and one that does not come in
//! time is reported as [`NicEvent::Overdue`] and still understood later.
//!
//! | module | what it is about |
//! |---|---|
//! | `link` | the channel, and what waits for room in it |
//! | `start` | from INIT to the packet filter |
//! | `control` | RNDIS requests, replies and indications |
//! | `alive` | whether the other side is still there |
//! | `settings` | what can be changed at work, and what is left to the host |
//! | `flaps` | the link, told with restraint |
//! | `frame`, `offload`, `cut` | a frame to be sent, and work on its headers and pieces |
//! | `send` | what its owner gives it to be sent |
//! | `transmit` | frames into the send buffer |
//! | `pages`, `lend` | frames out of the caller's own pages, without a copy |
//! | `slots`, `pool` | how the send buffer is divided, also among queues |
//! | `receive`, `renew` | frames out of transfer pages, and checksums that they never had |
//! | `queue` | sub-channels |
//! | `queued`, `flow` | all queues in one hand, and which of them a frame takes |
//! | `path` | associations and switches |
//! | `stop` | the way down |
//! | `restart` | the same NIC on another channel |
//! | `stats`, `tally` | what is counted |
//!
//! Its owner calls [`Nic::poll`] when the host's doorbell rang, when [`Nic::poll_deadline`] has come, and after any other
//! call but [`Nic::transmit`] and [`Nic::flush`]; then takes the events.
//!
//! What the host may do wrong costs as little as possible: a bad range or packet is counted and passed over; a wrong
//! answer during start-up, or a broken ring, ends the NIC with a [`NicError`].

mod alive;
mod control;
pub(crate) mod cut;
mod flaps;
mod flow;
mod frame;
mod lend;
mod link;
pub(crate) mod offload;
mod pages;
mod path;
mod pool;
mod queue;
mod queued;
mod receive;
mod renew;
mod restart;
mod send;
mod settings;
mod slots;
mod start;
mod stats;
mod stop;
mod synthetic;
mod tally;
#[cfg(test)]
mod tests;
mod transmit;
mod types;
mod waits;

use alloc::boxed::Box;
use alloc::collections::VecDeque;
use alloc::string::String;
use alloc::vec;

use vmbus::Instant;
use vmbus::channel::{Channel, ChannelStats, Doorbell, SignalFlag};
use vmbus::memory::SharedPages;
use vmbus::packet::{Packet, PacketKind, TransferRanges};
use vmbus::ring::ReceiveError;
use vmbus::time::earliest;

use crate::nvsp::{self, HostMessage, Status, Version};
use crate::rndis;
use alive::Alive;
use control::Control;
use flaps::Flaps;
use link::{Link, Sent};
use path::Switching;
use receive::{Content, MOST_CONTROL, Receive};
use transmit::Transmit;
use waits::Waits;

pub use cut::{Cut, fill_checksums};
pub use flow::of as flow_of;
pub use frame::{TxFrame, TxWork};
pub use pages::{Lending, PageSlice, PagedFrame, PagesError, Returned};
pub use queue::{NicQueue, QueueError};
pub use queued::QueuedNic;
pub use receive::RxFrame;
pub use renew::renew_checksums;
pub use restart::{Remains, RestartError};
pub use settings::{NicOffloads, SettingError};
pub use stats::{BadInput, NicStats, QueueTotals};
pub use tally::{Indications, NvspStatuses, RndisStatuses};
pub use types::{
    ConfigError, Lack, NicConfig, NicError, NicEvent, NicInfo, SharedBuffer, Step, TransmitError,
};

/// Longest packet of a host: 562 ranges, and room to spare.
const RECEIVE_BUFFER: usize = 8192;
/// Packets read in one call of [`Nic::poll`], so that a host that never stops talking cannot hold a guest for ever.
const PACKETS_PER_POLL: usize = 1024;
/// Events kept for the owner. While there are so many, nothing more is read.
const MOST_EVENTS: usize = 256;

/// How far the NIC is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// A version was offered: the one at this place of the list.
    Negotiating(usize),
    /// The receive buffer was sent.
    ReceiveBuffer,
    /// The send buffer was sent.
    SendBuffer,
    /// RNDIS INITIALIZE was sent.
    Initializing,
    /// The objects were asked for.
    Querying,
    /// The packet filter was set.
    Filtering,
    /// At work.
    Ready,
    /// On the way down.
    Stopping(stop::Stopping),
    /// Down.
    Stopped,
    /// Out of order.
    Failed(NicError),
}

/// Why reading ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Drained {
    /// There was no more.
    All,
    /// It was enough for one call.
    Enough,
    /// No more completions can be owed.
    NoRoom,
}

/// One synthetic NIC.
#[derive(Debug)]
pub struct Nic<D = SignalFlag> {
    link: Link<D>,
    config: NicConfig,
    stage: Stage,
    /// The start-up message whose completion is due.
    awaited: Option<(u64, Step)>,
    transmit: Transmit,
    receive: Receive,
    control: Control,
    switching: Switching,
    alive: Alive,
    flaps: Flaps,
    waits: Waits,
    events: VecDeque<NicEvent>,
    info: NicInfo,
    /// What the host's administrator calls the card.
    name: Option<String>,
    /// Sub-channels that the host has granted.
    granted: u16,
    stats: NicStats,
    /// Packets of the host are copied here.
    packet: Box<[u8]>,
    /// And its control messages here.
    message: Box<[u8]>,
    /// The latest moment that is known.
    now: Instant,
    /// There is more to read than one call takes.
    more: bool,
    /// The open message is to go out.
    flushing: bool,
}

impl<D: Doorbell> Nic<D> {
    /// A NIC on a channel that has just been opened; start-up begins at once.
    ///
    /// `receive` and `send` are known to the host already, by the numbers they come with. Without a send buffer there is
    /// nothing to send from, so it is not optional yet; the type leaves room for NICs that do without.
    ///
    /// # Errors
    /// [`ConfigError`] if the configuration makes no sense or the channel does not work.
    pub fn new(
        channel: Channel<SharedPages, D>,
        receive: SharedBuffer,
        send: Option<SharedBuffer>,
        config: NicConfig,
        now: Instant,
    ) -> Result<Self, ConfigError> {
        config.check()?;
        let send = send.ok_or(ConfigError::NoSendBuffer)?;
        let mut nic = Self {
            link: Link::new(channel),
            stage: Stage::Negotiating(0),
            awaited: None,
            transmit: Transmit::new(send),
            receive: Receive::new(receive),
            control: Control::new(),
            switching: Switching::new(),
            alive: Alive::new(now),
            flaps: Flaps::new(true),
            waits: Waits::new(config.deadline),
            events: VecDeque::new(),
            info: restart::blank(&config),
            name: None,
            granted: 0,
            stats: NicStats::default(),
            packet: vec![0; RECEIVE_BUFFER].into(),
            message: vec![0; MOST_CONTROL].into(),
            now,
            more: false,
            flushing: false,
            config,
        };
        nic.negotiate(0, None)?;
        nic.pump()?;
        Ok(nic)
    }

    /// Reads what the host has sent, hands received frames to `sink`, completes what is done and sends what has waited for
    /// room. Reads a bounded number of packets; if there are more, [`Nic::poll_deadline`] is due at once.
    ///
    /// # Errors
    /// Why the NIC does not work any more; again on every later call. [`NicEvent::Failed`] tells it once.
    pub fn poll(
        &mut self,
        now: Instant,
        sink: &mut dyn FnMut(RxFrame<'_>),
    ) -> Result<(), NicError> {
        self.now = now.max(self.now);
        self.link.channel.set_time(self.now);
        self.more = false;
        match self.stage {
            Stage::Failed(error) => return Err(error),
            Stage::Stopped => return Ok(()),
            _ => {}
        }
        while let Some(step) = self.waits.expire(self.now) {
            self.report_overdue(step);
        }
        self.tell_link();
        self.ask_when_silent();
        let outcome = self.work(sink);
        outcome.inspect_err(|error| self.fail(*error))
    }

    fn report_overdue(&mut self, step: Step) {
        self.stats.overdue += 1;
        if let Step::Switch(path) = step {
            self.switch_overdue(path);
        }
        self.events.push_back(NicEvent::Overdue { step });
    }

    fn work(&mut self, sink: &mut dyn FnMut(RxFrame<'_>)) -> Result<(), NicError> {
        let mut budget = PACKETS_PER_POLL;
        self.link.channel.mask()?;
        loop {
            let drained = self.drain(&mut budget, sink)?;
            self.advance_stop();
            self.pump()?;
            self.finish_stop();
            let unread = self.link.channel.arm()?;
            match drained {
                Drained::All if !unread => return Ok(()),
                Drained::All => {}
                Drained::Enough => {
                    self.more = true;
                    return Ok(());
                }
                // The ring is full of what was sent; the host rings when it has made room.
                Drained::NoRoom if !self.link.can_owe() => return Ok(()),
                Drained::NoRoom => {}
            }
            if self.stage == Stage::Stopped {
                return Ok(());
            }
            self.link.channel.mask()?;
        }
    }

    /// Reads until there is nothing more, or it is enough.
    fn drain(
        &mut self,
        budget: &mut usize,
        sink: &mut dyn FnMut(RxFrame<'_>),
    ) -> Result<Drained, NicError> {
        let mut buffer = core::mem::take(&mut self.packet);
        let drained = loop {
            if *budget == 0 || self.events.len() >= MOST_EVENTS {
                break Ok(Drained::Enough);
            }
            if !self.link.can_owe() {
                break Ok(Drained::NoRoom);
            }
            *budget -= 1;
            match self.link.channel.receive(&mut buffer) {
                Ok(Some(packet)) => {
                    if let Err(error) = self.handle_packet(&packet, sink) {
                        break Err(error);
                    }
                }
                Ok(None) => break Ok(Drained::All),
                Err(ReceiveError::Packet(_)) => self.stats.bad.packet += 1,
                Err(ReceiveError::Ring(error)) => break Err(error.into()),
            }
        };
        self.packet = buffer;
        drained
    }

    #[inline]
    fn handle_packet(
        &mut self,
        packet: &Packet<'_>,
        sink: &mut dyn FnMut(RxFrame<'_>),
    ) -> Result<(), NicError> {
        let id = packet.transaction_id;
        let status = match packet.kind {
            PacketKind::TransferPages { pageset, ranges } => {
                self.stats.rx_packets += 1;
                Some(self.handle_transfer(pageset, ranges, packet.payload, sink)?)
            }
            PacketKind::Completion => return self.handle_completion(id, packet.payload),
            PacketKind::InBand => {
                self.handle_in_band(packet.payload);
                None
            }
            PacketKind::GpaDirect(_) => {
                self.stats.bad.gpa_direct += 1;
                Some(Status::FAILURE)
            }
        };
        if packet.completion_requested && !self.link.complete(id, status)? {
            self.stats.completions_delayed += 1;
        }
        Ok(())
    }

    #[inline]
    fn handle_transfer(
        &mut self,
        pageset: u16,
        ranges: TransferRanges<'_>,
        payload: &[u8],
        sink: &mut dyn FnMut(RxFrame<'_>),
    ) -> Result<Status, NicError> {
        let message = HostMessage::decode(payload, self.version());
        if !self.receive.accepts(pageset, message, &mut self.stats.bad) {
            return Ok(Status::FAILURE);
        }
        let wanted = self.wants_frames();
        let mut status = Status::SUCCESS;
        for range in ranges.iter() {
            match self.receive.content(range, &mut self.message, &mut self.stats.bad) {
                Some(Content::Frame(frame)) if wanted => {
                    self.stats.rx_frames += 1;
                    self.stats.rx_bytes += frame.len() as u64;
                    sink(frame);
                }
                Some(Content::Frame(_)) => self.stats.rx_early += 1,
                Some(Content::Part) => {}
                Some(Content::Control(len)) => {
                    if !self.handle_control(len)? {
                        status = Status::FAILURE;
                    }
                }
                None => status = Status::FAILURE,
            }
        }
        if !self.receive.end_packet(&mut self.stats.bad) {
            status = Status::FAILURE;
        }
        Ok(status)
    }

    /// Whether frames have been asked for.
    fn wants_frames(&self) -> bool {
        matches!(self.stage, Stage::Filtering | Stage::Ready | Stage::Stopping(_))
    }

    /// A control message that was copied out. False if it makes no sense.
    fn handle_control(&mut self, len: usize) -> Result<bool, NicError> {
        let copy = core::mem::take(&mut self.message);
        let handled = match rndis::HostMessage::decode(copy.get(..len).unwrap_or_default()) {
            Ok(message) => {
                let handled = self.handle_rndis(&message).map(|()| true);
                self.hear();
                handled
            }
            Err(error) => {
                tracing::debug!(%error, "control message dropped");
                self.stats.bad.control += 1;
                Ok(false)
            }
        };
        self.message = copy;
        handled
    }

    fn handle_in_band(&mut self, payload: &[u8]) {
        self.hear();
        match HostMessage::decode(payload, self.version()) {
            Ok(HostMessage::VfAssociation { allocated, serial }) => {
                self.handle_association(allocated, serial);
            }
            Ok(HostMessage::SwitchDataPath(path)) => self.handle_switch_notice(path),
            Ok(HostMessage::IndirectionTable(table)) => self.handle_table(table),
            Ok(message) => {
                tracing::debug!(?message, "message of the host that nobody asked for");
                self.stats.bad.unexpected += 1;
            }
            Err(error) => {
                tracing::debug!(%error, "message of the host dropped");
                self.stats.bad.message += 1;
            }
        }
    }

    fn handle_completion(&mut self, id: u64, payload: &[u8]) -> Result<(), NicError> {
        if let Some(slot) = self.transmit.completed(id) {
            return self.handle_sent(slot, payload);
        }
        if let Some((awaited, step)) = self.awaited
            && awaited == id
        {
            self.awaited = None;
            self.answer_came(step);
            if step == Step::SubChannels {
                self.handle_granted(payload);
                return Ok(());
            }
            return self.handle_answer(step, payload);
        }
        if !self.handle_switch_completion(id) {
            tracing::debug!(id, "completion of nothing that is under way");
            self.stats.bad.completion += 1;
        }
        Ok(())
    }

    /// The host is done with a message of ours.
    fn handle_sent(&mut self, slot: u32, payload: &[u8]) -> Result<(), NicError> {
        let status = match HostMessage::decode(payload, self.version()) {
            Ok(HostMessage::RndisPacketComplete { status }) => {
                self.stats.sent(status);
                status
            }
            _ => {
                self.stats.bad.answer += 1;
                Status::NONE
            }
        };
        if slot == slots::CONTROL_SLOT {
            return self.control_sent(status);
        }
        if self.transmit.loans.any() {
            self.transmit.loans.give_back(slot, status);
        }
        self.stats.tx_completed += 1;
        self.stats.tx_refused += u64::from(status != Status::SUCCESS);
        Ok(())
    }

    /// Puts everything that waits into the ring, as far as there is room, and shows it to the host.
    fn pump(&mut self) -> Result<(), NicError> {
        loop {
            match self.stage_waiting()? {
                Sent::Yes => break,
                Sent::NoRoom(need) => {
                    if !self.link.channel.request_space(need)? {
                        return Ok(());
                    }
                }
            }
        }
        Ok(self.link.channel.commit()?)
    }

    fn stage_waiting(&mut self) -> Result<Sent, NicError> {
        if let full @ Sent::NoRoom(_) = self.link.pump()? {
            return Ok(full);
        }
        if let full @ Sent::NoRoom(_) = self.send_control()? {
            return Ok(full);
        }
        if let full @ Sent::NoRoom(_) = self.send_switch()? {
            return Ok(full);
        }
        if self.flushing {
            let sent = self.transmit.close(&mut self.link, &mut self.stats)?;
            self.flushing = sent != Sent::Yes;
            return Ok(sent);
        }
        Ok(Sent::Yes)
    }

    /// The next event.
    pub fn poll_event(&mut self) -> Option<NicEvent> {
        self.events.pop_front()
    }

    /// When [`Nic::poll`] has to be called at the latest; a moment that has passed means at once.
    #[must_use]
    pub fn poll_deadline(&self) -> Option<Instant> {
        let flaps = self.flaps.deadline().filter(|_| self.stage == Stage::Ready);
        let own = earliest(self.silence_deadline(), flaps);
        if self.more { Some(self.now) } else { earliest(self.waits.deadline(), own) }
    }

    /// What is known of the NIC.
    #[must_use]
    pub fn info(&self) -> NicInfo {
        self.info
    }

    /// What the host's administrator calls the card, if the host told, which it does during start-up. At most 256
    /// characters and none of them a control character; otherwise whatever the host likes.
    #[must_use]
    pub fn friendly_name(&self) -> Option<&str> {
        self.name.as_deref()
    }

    /// Slots of the send buffer that have frames under way, or that other queues of this NIC keep. None before the buffer is divided.
    #[must_use]
    pub fn busy_slots(&self) -> usize {
        self.transmit.busy()
    }

    /// What the NIC did.
    #[must_use]
    pub fn stats(&self) -> NicStats {
        self.stats
    }

    /// What went over the channel.
    #[must_use]
    pub fn channel_stats(&self) -> ChannelStats {
        self.link.channel.stats()
    }

    /// Signals the host by another doorbell from now on, and returns the one before; see [`Channel::set_doorbell`]. The new one is to be
    /// rung once.
    #[must_use = "the old doorbell may keep memory alive"]
    pub fn set_doorbell(&mut self, doorbell: D) -> D {
        self.link.channel.set_doorbell(doorbell)
    }

    /// The version agreed on, or the oldest.
    fn version(&self) -> Version {
        self.info.version.unwrap_or(Version::V1)
    }

    /// Queues a message that wants an answer, and begins to wait for it.
    fn ask(&mut self, step: Step, message: &nvsp::GuestMessage, version: Version) {
        let id = self.link.ask(message.encode(version));
        self.awaited = Some((id, step));
        self.waits.begin(step, self.now);
    }

    /// The host has answered, if late then that is counted.
    fn answer_came(&mut self, step: Step) {
        self.stats.late += u64::from(self.waits.is_overdue(step));
        self.waits.end(step);
    }

    /// Nothing goes on from here.
    fn fail(&mut self, error: NicError) {
        tracing::debug!(%error, "NIC failed");
        if matches!(self.stage, Stage::Failed(_)) {
            return;
        }
        self.stage = Stage::Failed(error);
        self.transmit.loans.lose();
        self.info.ready = false;
        self.waits.clear();
        self.more = false;
        self.events.push_back(NicEvent::Failed(error));
    }
}

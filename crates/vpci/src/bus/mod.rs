//! The guest's side of one virtual PCI bus.
//!
//! [`PciBus`] negotiates the version, asks which functions there are, turns the bus on and brings up each function; then
//! it keeps in step with the host's snapshots and requests. It never waits: every answer that is due has a deadline,
//! and one that does not come in time is reported as [`Event::Overdue`].
//!
//! Its owner calls [`PciBus::poll`] when the host's doorbell rang, when [`PciBus::poll_deadline`] has come, and after any
//! other call; then takes the events.

mod children;
mod event;
mod outbox;
mod request;
mod resources;
mod steps;
mod suspend;
#[cfg(test)]
mod tests;

use alloc::boxed::Box;
use alloc::collections::{BTreeMap, VecDeque};
use alloc::vec;
use alloc::vec::Vec;
use core::time::Duration;

use vmbus::channel::{Channel, Doorbell, SignalFlag};
use vmbus::memory::SharedPages;
use vmbus::packet::PacketKind;
use vmbus::ring::{ReceiveError, RingError};
use vmbus::time::earliest;
use vmbus::{Instant, Serial};

use crate::message::{Description, HostMessage, MessageType, Version};
use crate::slot::Slot;
use children::{Child, Children, Eject, State};
pub use event::{
    BadPacket, BusStats, ChannelError, Event, Failure, Function, FunctionId, NotEjecting, Step,
    StopNotice,
};
use outbox::Outbox;
use request::Interrupts;
pub use request::{BlockData, RequestError, RequestId};
use resources::Extras;
pub use suspend::{NotOn, NotSuspended};

/// Longest message from a host: a snapshot of 256 functions, with its packet header.
const RECEIVE_BUFFER: usize = 8192;
/// Packets read in one call of [`PciBus::poll`], so that a host that never stops talking cannot hold a guest for ever.
const PACKETS_PER_POLL: usize = 1024;
/// Answers to what the host says of its own accord that wait for room in the ring; beyond this nothing more is read that might
/// need another. What the owner asks for does not count, nor what follows from the host's completions of that: a host that has
/// to be rid of those before it takes more requests would wait for a guest that waits for it. Nor do the questions about new
/// functions: a slot has one at a time, and an answer counts only once its question was sent, so that a host that reads
/// nothing is asked nothing further.
const MOST_ANSWERS: usize = 1024;

/// How a bus is driven.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PciBusConfig {
    /// Guest physical address of the window through which configuration space is reached: two pages that the guest
    /// takes from the MMIO space that it was given for such buses.
    pub window_base: u64,
    /// Versions to offer, most wanted first.
    pub versions: Vec<Version>,
    /// How long the host may take for each answer before that is reported.
    pub deadline: Duration,
    /// Say which resources a function has in form 3 where the version has it. Linux stays with form 2, so that is what
    /// hosts have seen most.
    pub resources_form3: bool,
    /// Give interrupts back in form 2 where the version has it. Linux stays with form 1 whatever the version.
    pub delete_interrupt_form2: bool,
}

impl PciBusConfig {
    /// Versions 1.4 to 1.1, as Linux has them; ten seconds for each answer, and the forms that Linux uses.
    #[must_use]
    pub fn new(window_base: u64) -> Self {
        Self {
            window_base,
            versions: vec![Version::V1_4, Version::V1_3, Version::V1_2, Version::V1_1],
            deadline: Duration::from_secs(10),
            resources_form3: false,
            delete_interrupt_form2: false,
        }
    }
}

/// What the bus as a whole is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// A version was offered: the one at this place of the list.
    Negotiating(usize),
    /// The first snapshot has been asked for.
    Discovering,
    /// FDO_D0_ENTRY has been sent, `again` if for the second time.
    Entering { again: bool },
    /// FDO_D0_EXIT has been sent, to try the entry again after it.
    Recovering,
    /// On.
    Running,
    /// FDO_D0_EXIT has been sent, for good.
    Stopping,
    /// FDO_D0_EXIT has been sent, for a while.
    Suspending,
    /// Off for a while: nothing is sent or read until there is a new channel.
    Suspended,
    /// Off, failed or rescinded: nothing is sent or read any more.
    Over,
}

/// Why reading ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Drained {
    /// There was no more.
    All,
    /// It was enough for one call.
    Enough,
    /// Too many answers wait already.
    NoRoom,
}

#[derive(Clone, Copy, Debug)]
struct Pending {
    step: Step,
    /// When its absence is to be reported; `None` once it was, or if nobody waits for it any more.
    due: Option<Instant>,
}

/// One virtual PCI bus.
#[derive(Debug)]
pub struct PciBus<D = SignalFlag> {
    channel: Channel<SharedPages, D>,
    config: PciBusConfig,
    stage: Stage,
    version: Option<Version>,
    children: Children,
    interrupts: Interrupts,
    /// The newest snapshot, if it was not acted upon yet. Kept to be filled again.
    snapshot: Vec<Description>,
    snapshot_is_new: bool,
    /// When the absence of a snapshot is to be reported, if one was asked for.
    relations: Option<Pending>,
    /// Requests without answer, by transaction id.
    pending: BTreeMap<u64, Pending>,
    last_id: u64,
    /// Vectors of the interrupts that were asked for with resources, and answers to security commands, by request.
    extras: Extras,
    outgoing: Outbox,
    events: VecDeque<Event>,
    buffer: Box<[u8]>,
    /// There is something to do before the next doorbell or deadline.
    urgent: bool,
    stats: BusStats,
}

impl<D: Doorbell> PciBus<D> {
    /// A bus on a channel that was just opened. The first packet is sent by the first [`PciBus::poll`].
    #[must_use]
    pub fn new(channel: Channel<SharedPages, D>, config: PciBusConfig, now: Instant) -> Self {
        let mut bus = Self {
            channel,
            config,
            stage: Stage::Negotiating(0),
            version: None,
            children: Children::default(),
            interrupts: Interrupts::default(),
            snapshot: Vec::new(),
            snapshot_is_new: false,
            relations: None,
            pending: BTreeMap::new(),
            last_id: 0,
            extras: Extras::default(),
            outgoing: Outbox::default(),
            events: VecDeque::new(),
            buffer: vec![0; RECEIVE_BUFFER].into(),
            urgent: true,
            stats: BusStats::default(),
        };
        bus.offer_version(0, now);
        bus
    }

    /// Does what can be done now: reads what the host sent, sends what waits, looks at the deadlines.
    ///
    /// # Errors
    /// The channel is broken. The bus is then over, which [`Event::Failed`] says too.
    pub fn poll(&mut self, now: Instant) -> Result<(), ChannelError> {
        self.urgent = false;
        if matches!(self.stage, Stage::Over | Stage::Suspended) {
            return Ok(());
        }
        let result = self.work(now);
        if let Err(error) = result {
            self.fail(Failure::Channel(error));
        }
        result
    }

    fn work(&mut self, now: Instant) -> Result<(), ChannelError> {
        self.channel.mask()?;
        let drained = self.drain(now)?;
        self.apply_snapshot();
        self.start_functions(now);
        self.flush()?;
        self.report_overdue(now);
        self.urgent = match drained {
            Drained::All => self.channel.arm()?,
            Drained::Enough => true,
            // If there still is none, the host rings when it has made some.
            Drained::NoRoom => self.outgoing.answers() < MOST_ANSWERS,
        };
        Ok(())
    }

    /// The oldest event not yet taken.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// When [`PciBus::poll`] is to be called even if no doorbell rings; at once if it lies in the past.
    #[must_use]
    pub fn poll_deadline(&self) -> Option<Instant> {
        if matches!(self.stage, Stage::Over | Stage::Suspended) {
            return None;
        }
        let urgent = self.urgent.then_some(Instant::ZERO);
        let waits = self.pending.values().chain(&self.relations);
        waits.fold(urgent, |first, wait| earliest(first, wait.due))
    }

    /// Whether the bus or one of its functions is on its way somewhere and nothing is asked of the host for it. Never the case; for
    /// those who watch. What the host has not answered in time counts as asked: it was reported, and a late answer is understood.
    #[must_use]
    pub fn waits_forever(&self) -> bool {
        if !self.pending.is_empty() || self.relations.is_some() || self.urgent {
            return false;
        }
        match self.stage {
            Stage::Over | Stage::Suspended => false,
            Stage::Running => {
                let starting =
                    |child: &Child| matches!(child.state, State::Starting | State::Resuming);
                self.children.iter().any(starting)
            }
            _ => true,
        }
    }

    /// The serial number of the function in a slot. `None` if no function that can be used is there.
    #[must_use]
    pub fn serial(&self, slot: Slot) -> Option<Serial> {
        let child = self.children.get(slot)?;
        child.state.is_visible().then(|| child.function.serial())
    }

    /// The functions that have arrived and not left.
    pub fn functions(&self) -> impl Iterator<Item = &Function> {
        self.children.iter().filter(|child| child.state.is_visible()).map(|child| &child.function)
    }

    /// The version spoken, once it is agreed.
    #[must_use]
    pub fn version(&self) -> Option<Version> {
        self.version
    }

    /// What the bus has seen so far.
    #[must_use]
    pub fn stats(&self) -> BusStats {
        self.stats
    }

    /// Signals the host by another doorbell from now on, and returns the one before; see [`Channel::set_doorbell`]. The new one is to be
    /// rung once.
    #[must_use = "the old doorbell may keep memory alive"]
    pub fn set_doorbell(&mut self, doorbell: D) -> D {
        self.channel.set_doorbell(doorbell)
    }

    /// Tells the host that a function it asked back is no longer in use. The function leaves with that.
    ///
    /// # Errors
    /// [`NotEjecting`] if it was not asked back, was answered for before, or is gone; nothing is sent. The wire names
    /// functions by slot only, so an answer that comes too late could hit a newer one.
    pub fn eject_complete(&mut self, function: FunctionId) -> Result<(), NotEjecting> {
        let child = self
            .children
            .by_id(function)
            .filter(|child| child.state == State::Ejecting)
            .ok_or(NotEjecting(function))?;
        child.state = State::Ejected;
        let left = Event::FunctionLeft(child.function);
        self.events.push_back(left);
        self.delete_interrupts(Some(function));
        if !seeded!("forget-eject-complete") {
            self.send_eject_complete(function.slot());
        }
        Ok(())
    }

    /// Turns the bus off. Its functions leave at once, so their users must be gone; [`Event::Stopped`] comes when the
    /// host has agreed.
    pub fn shutdown(&mut self, now: Instant) {
        match self.stage {
            Stage::Over => self.events.push_back(Event::Stopped),
            Stage::Stopping => {}
            Stage::Negotiating(_) | Stage::Discovering | Stage::Suspended => {
                self.end();
                self.events.push_back(Event::Stopped);
            }
            Stage::Suspending => {
                self.children
                    .clear(|function| self.events.push_back(Event::FunctionLeft(function)));
                self.stage = Stage::Stopping;
            }
            Stage::Entering { .. } | Stage::Recovering | Stage::Running => {
                self.delete_interrupts(None);
                self.release_resources();
                self.children
                    .clear(|function| self.events.push_back(Event::FunctionLeft(function)));
                self.forget_waits();
                self.snapshot_is_new = false;
                self.stage = Stage::Stopping;
                self.request_bare(Step::D0Exit, MessageType::FDO_D0_EXIT, now);
            }
        }
        self.urgent = self.stage != Stage::Over;
    }

    /// The host took the whole bus away. Its functions leave, every wait ends, and nothing is sent any more.
    pub fn rescinded(&mut self) {
        if self.stage != Stage::Over {
            self.end();
            self.events.push_back(Event::Stopped);
        }
    }

    /// Gives the channel back.
    #[must_use]
    pub fn into_channel(self) -> Channel<SharedPages, D> {
        self.channel
    }
}

/// Reading.
impl<D: Doorbell> PciBus<D> {
    fn drain(&mut self, now: Instant) -> Result<Drained, RingError> {
        let mut buffer = core::mem::take(&mut self.buffer);
        let result = self.drain_into(&mut buffer, now);
        self.buffer = buffer;
        result
    }

    fn drain_into(&mut self, buffer: &mut [u8], now: Instant) -> Result<Drained, RingError> {
        for _ in 0..PACKETS_PER_POLL {
            if matches!(self.stage, Stage::Over | Stage::Suspended) {
                return Ok(Drained::All);
            }
            if self.outgoing.answers() >= MOST_ANSWERS {
                return Ok(Drained::NoRoom);
            }
            let packet = match self.channel.receive(buffer) {
                Ok(Some(packet)) => packet,
                Ok(None) => return Ok(Drained::All),
                Err(ReceiveError::Packet(error)) => {
                    self.bad_packet(error.into());
                    continue;
                }
                Err(ReceiveError::Ring(error)) => return Err(error),
            };
            match packet.kind {
                PacketKind::InBand => match HostMessage::parse(packet.payload) {
                    Ok(message) => {
                        self.outgoing.set_answering(true);
                        self.message(message, now);
                        self.outgoing.set_answering(false);
                    }
                    Err(error) => self.bad_packet(error.into()),
                },
                PacketKind::Completion => {
                    self.completion(packet.transaction_id, packet.payload, now);
                }
                PacketKind::GpaDirect(_) | PacketKind::TransferPages { .. } => {
                    self.bad_packet(BadPacket::Ranges);
                }
            }
        }
        Ok(Drained::Enough)
    }

    fn bad_packet(&mut self, error: BadPacket) {
        tracing::debug!(%error, "packet on a PCI bus ignored");
        self.stats.bad_packets += 1;
        self.stats.last_bad_packet = Some(error);
    }

    fn message(&mut self, message: HostMessage<'_>, now: Instant) {
        if matches!(self.stage, Stage::Stopping | Stage::Suspending) {
            self.stats.ignored += 1;
            return;
        }
        match message {
            HostMessage::Relations(list) => {
                self.stats.snapshots += 1;
                if self.snapshot_is_new {
                    self.stats.snapshots_superseded += 1;
                    self.children.pass_over(&self.snapshot);
                }
                self.snapshot.clear();
                self.snapshot.extend(list.iter());
                self.snapshot_is_new = true;
                self.relations = None;
                if self.stage == Stage::Discovering {
                    self.enter_d0(false, now);
                }
            }
            HostMessage::Eject(slot) => {
                // A function that this request is about may be known from the snapshot before it only.
                self.apply_snapshot();
                self.eject(slot);
            }
            HostMessage::InvalidateBus | HostMessage::InvalidateDevice(_) => {
                if !matches!(self.stage, Stage::Negotiating(_)) && self.relations.is_none() {
                    self.query_relations(now);
                }
            }
            HostMessage::InvalidateBlock { slot, mask } => {
                self.apply_snapshot();
                match self.children.get(slot).filter(|child| child.state.is_visible()) {
                    Some(child) => {
                        let function = child.function.id;
                        self.events.push_back(Event::BlocksInvalidated { function, mask });
                    }
                    None => self.stats.ignored += 1,
                }
            }
            HostMessage::Stop(kind, slot) => {
                self.apply_snapshot();
                let notice = match kind {
                    MessageType::QUERY_STOP => StopNotice::Wanted,
                    MessageType::QUERY_STOP_FAILED => StopNotice::Cancelled,
                    _ => StopNotice::Over,
                };
                match self.children.get(slot).filter(|child| child.state.is_visible()) {
                    Some(child) => {
                        let function = child.function.id;
                        self.events.push_back(Event::StopNotice { function, notice });
                    }
                    None => self.stats.ignored += 1,
                }
            }
        }
    }

    fn eject(&mut self, slot: Slot) {
        self.stats.ejects += 1;
        match self.children.eject(slot) {
            Eject::Ignore => self.stats.ejects_ignored += 1,
            Eject::Ask(function) => self.events.push_back(Event::EjectRequested { function }),
            Eject::Answer => self.send_eject_complete(slot),
        }
    }

    /// Acts upon the newest snapshot.
    fn apply_snapshot(&mut self) {
        if core::mem::take(&mut self.snapshot_is_new) {
            self.children.apply(&self.snapshot, |function| {
                self.events.push_back(Event::FunctionLeft(function));
            });
            self.forget_the_gone();
        }
    }
}

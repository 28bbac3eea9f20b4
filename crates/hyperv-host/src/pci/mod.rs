//! The host's side of one virtual PCI bus.
//!
//! [`PciService`] holds the functions of one bus and speaks the protocol of PROTOCOL §10 on its channel. It is strict
//! about order where the host it stands for is: the first packet after an open has to be a version query and there is no
//! second one after a version was agreed. What it does beyond the plain protocol is in [`PciPolicy`].
//!
//! The bus's VMBus offer is not its business: whoever owns it offers and rescinds the device, hands the channel in with
//! [`PciService::open`], and reads [`PciEvent`]s.

mod device;
mod misbehave;
mod mmio;
mod serial;
mod serve;
#[cfg(test)]
mod tests;
mod types;

use std::collections::{BTreeMap, VecDeque};

use vmbus::packet::Outgoing;
use vmbus::ring::{ReceiveError, SendError};
use vmbus::time::earliest;
use vmbus::{Instant, Serial};
use vpci::Slot;
use vpci::message::{
    BARS, Description, InvalidateBlock, MessageType, Slotted, Version, encode_relations,
};
use zerocopy::IntoBytes;

use crate::bus::HostChannel;
use device::Hardware;
pub use device::{
    FunctionSpec, MOST_PORTS, MULTI_PORT_COUNT, MULTI_PORT_ID, MULTI_PORT_MACS, MULTI_PORT_STRIDE,
    MsixSpec, Raised,
};
pub use misbehave::Misbehaviour;
pub use mmio::HostMemory;
pub use serial::SerialPolicy;
pub use types::{BadPacket, PciError, PciEvent, PciPolicy, PciStats, SlotTaken};

/// Longest request of a guest: resources with 494 interrupts of form 3.
const RECEIVE_BUFFER: usize = 64 * 1024;
/// Answers that wait for their time or for room; beyond this nothing more is read.
const MOST_WAITING: usize = 256;
/// Packets read in one call of [`PciService::poll`].
const PACKETS_PER_POLL: usize = 1024;

/// A function on the bus.
#[derive(Clone, Debug)]
struct Function {
    description: Description,
    hardware: Hardware,
    /// When the guest's time to give it up ends.
    eject: Option<Instant>,
    /// The guest has brought it up and not released it.
    assigned: bool,
}

/// How far the guest on the channel is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Closed,
    /// Waiting for a version that can be spoken; `first` until anything came.
    Connecting {
        first: bool,
    },
    Connected(Version),
}

/// A packet that waits for its time or for room.
#[derive(Clone, Debug)]
struct Waiting {
    at: Instant,
    /// The request's id for a completion, `None` for a message.
    answers: Option<u64>,
    payload: Vec<u8>,
}

/// One virtual PCI bus, as its host.
#[derive(Debug)]
pub struct PciService {
    policy: PciPolicy,
    channel: Option<HostChannel>,
    state: State,
    /// Address of the window while the bus is on. Stays when a channel is closed without D0 exit.
    window: Option<u64>,
    /// The guest has asked for a snapshot, so it is told of every change.
    follows: bool,
    functions: BTreeMap<Slot, Function>,
    /// Interrupts handed out: what the device writes, and for which function.
    interrupts: BTreeMap<u32, (Slot, u16)>,
    last_interrupt: u32,
    /// Slots whose function was asked back and taken without an answer, which may still be on its way: how many answers.
    crossing: BTreeMap<Slot, u32>,
    /// The slot that the guest has selected in its window.
    select: Option<Slot>,
    outgoing: VecDeque<Waiting>,
    events: VecDeque<PciEvent>,
    /// What is to be done wrongly with the next answers.
    armed: Vec<Misbehaviour>,
    misdeeds: BTreeMap<Misbehaviour, u64>,
    buffer: Box<[u8]>,
    /// There is something to do before the next doorbell or deadline.
    urgent: bool,
    /// Latest moment at which [`PciService::poll`] looked.
    seen: Instant,
    stats: PciStats,
}

impl PciService {
    /// A bus without functions and without a channel.
    #[must_use]
    pub fn new(policy: PciPolicy) -> Self {
        Self {
            policy,
            channel: None,
            state: State::Closed,
            window: None,
            follows: false,
            functions: BTreeMap::new(),
            interrupts: BTreeMap::new(),
            last_interrupt: 0,
            crossing: BTreeMap::new(),
            select: None,
            outgoing: VecDeque::new(),
            events: VecDeque::new(),
            armed: Vec::new(),
            misdeeds: BTreeMap::new(),
            buffer: vec![0; RECEIVE_BUFFER].into(),
            urgent: false,
            seen: Instant::ZERO,
            stats: PciStats::default(),
        }
    }

    /// Changes how the service behaves from now on.
    pub fn policy_mut(&mut self) -> &mut PciPolicy {
        &mut self.policy
    }

    /// The guest has opened the bus's channel.
    pub fn open(&mut self, channel: HostChannel) {
        self.close();
        self.channel = Some(channel);
        self.state = State::Connecting { first: true };
        self.urgent = true;
    }

    /// The channel is closed or about to be; it is not touched any more. What the guest was asked back counts as
    /// given up.
    pub fn close(&mut self) {
        self.channel = None;
        self.state = State::Closed;
        self.follows = false;
        self.outgoing.clear();
        self.interrupts.clear();
        self.crossing.clear();
        for function in self.functions.values_mut() {
            function.assigned = false;
        }
        let asked = self.functions.iter().filter(|(_, function)| function.eject.is_some());
        let asked: Vec<_> = asked.map(|(slot, _)| *slot).collect();
        for slot in asked {
            self.functions.remove(&slot);
            self.events.push_back(PciEvent::EjectCompleted { slot });
        }
    }

    /// Puts a function on the bus and tells a guest that listens.
    ///
    /// # Errors
    /// [`SlotTaken`].
    pub fn add_function(
        &mut self,
        description: Description,
        bars: [u32; BARS],
        now: Instant,
    ) -> Result<(), SlotTaken> {
        self.add_device(FunctionSpec::new(description, bars), now)
    }

    /// Puts a function with all that it has on the bus and tells a guest that listens.
    ///
    /// # Errors
    /// [`SlotTaken`].
    pub fn add_device(&mut self, spec: FunctionSpec, now: Instant) -> Result<(), SlotTaken> {
        let description = spec.description;
        let slot = description.slot;
        if self.functions.contains_key(&slot) {
            return Err(SlotTaken(slot));
        }
        let hardware = Hardware::new(spec);
        let function = Function { description, hardware, eject: None, assigned: false };
        self.functions.insert(slot, function);
        self.announce(now);
        Ok(())
    }

    /// Asks the guest politely for a function; calling again asks again. The outcome is an event:
    /// [`PciEvent::EjectCompleted`] or, when the guest's time is over, [`PciEvent::EjectOverdue`]. False if there is no
    /// such function.
    pub fn eject(&mut self, slot: Slot, now: Instant) -> bool {
        let Some(function) = self.functions.get_mut(&slot) else { return false };
        if !self.follows {
            // The guest does not know of it.
            self.functions.remove(&slot);
            self.events.push_back(PciEvent::EjectCompleted { slot });
            return true;
        }
        function.eject.get_or_insert(now + self.policy.eject_patience);
        let message = Slotted { kind: MessageType::EJECT.0.into(), slot: slot.to_wire().into() };
        self.send(message.as_bytes().to_vec(), now);
        true
    }

    /// Takes a function off the bus without asking, and tells a guest that listens. False if there is no such function.
    pub fn remove(&mut self, slot: Slot, now: Instant) -> bool {
        let removed = self.take_off(slot);
        if removed {
            self.announce(now);
        }
        removed
    }

    /// Takes a function off the bus, with its interrupts. False if there is none.
    fn take_off(&mut self, slot: Slot) -> bool {
        let Some(function) = self.functions.remove(&slot) else { return false };
        self.interrupts.retain(|_, (of, _)| *of != slot);
        if function.eject.is_some() {
            *self.crossing.entry(slot).or_default() += 1;
        }
        true
    }

    /// Takes all functions off the bus at once.
    pub fn remove_all(&mut self, now: Instant) {
        let slots: Vec<_> = self.functions.keys().copied().collect();
        for slot in slots {
            self.take_off(slot);
        }
        self.announce(now);
    }

    /// Tells the guest that configuration blocks of a function have changed: bit n of `mask` for block n.
    pub fn invalidate_blocks(&mut self, slot: Slot, mask: u64, now: Instant) {
        let message = InvalidateBlock {
            kind: MessageType::INVALIDATE_BLOCK.0.into(),
            slot: slot.to_wire().into(),
            mask: mask.into(),
        };
        self.send(message.as_bytes().to_vec(), now);
    }

    /// Tells the guest to look at the whole bus again.
    pub fn invalidate_bus(&mut self, now: Instant) {
        self.send(MessageType::INVALIDATE_BUS.0.to_le_bytes().to_vec(), now);
    }

    /// Sends a message that has a slot and nothing else: INVALIDATE_DEVICE, QUERY_STOP, RE_ENABLE, QUERY_STOP_FAILED.
    pub fn notify(&mut self, kind: MessageType, slot: Slot, now: Instant) {
        let message = Slotted { kind: kind.0.into(), slot: slot.to_wire().into() };
        self.send(message.as_bytes().to_vec(), now);
    }

    /// A configuration block of a function, as the guest last wrote it.
    #[must_use]
    pub fn block(&self, slot: Slot, block: u32) -> Option<&[u8]> {
        let function = self.functions.get(&slot)?;
        function.hardware.spec().blocks.get(&block).map(Vec::as_slice)
    }

    /// Sends a message of the caller's making, for hosts that lie.
    pub fn send(&mut self, message: Vec<u8>, now: Instant) {
        if self.is_open() {
            self.outgoing.push_back(Waiting { at: now, answers: None, payload: message });
            self.urgent = true;
        }
    }

    /// The functions on the bus.
    pub fn functions(&self) -> impl Iterator<Item = &Description> {
        self.functions.values().map(|function| &function.description)
    }

    /// The serial number of the function in a slot.
    #[must_use]
    pub fn serial(&self, slot: Slot) -> Option<Serial> {
        self.functions.get(&slot).map(|function| function.description.serial)
    }

    /// Whether a channel is open.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.state != State::Closed
    }

    /// Where the guest's MMIO window lies, while the bus is on.
    #[must_use]
    pub fn window(&self) -> Option<u64> {
        self.window
    }

    /// Functions that the guest has brought up and not released.
    #[must_use]
    pub fn assigned(&self) -> usize {
        self.functions.values().filter(|function| function.assigned).count()
    }

    /// Interrupts that were created and not deleted.
    #[must_use]
    pub fn interrupts(&self) -> usize {
        self.interrupts.len()
    }

    /// What the service has seen so far.
    #[must_use]
    pub fn stats(&self) -> PciStats {
        self.stats
    }

    /// The oldest event not yet taken.
    pub fn poll_event(&mut self) -> Option<PciEvent> {
        self.events.pop_front()
    }

    /// When [`PciService::poll`] is to be called even if no doorbell rings; at once if it lies in the past.
    #[must_use]
    pub fn poll_deadline(&self) -> Option<Instant> {
        let ejects = self.functions.values().filter_map(|function| function.eject).min();
        if !self.is_open() {
            return ejects;
        }
        let urgent = self.urgent.then_some(Instant::ZERO);
        // What was due and is still here waits for room, and the guest rings when it has made some.
        let answers = self.outgoing.iter().map(|waiting| waiting.at).filter(|at| *at > self.seen);
        earliest(earliest(urgent, ejects), answers.min())
    }
}

/// Reading and writing.
impl PciService {
    /// Does what can be done now. Call it when the guest's doorbell rang, when [`PciService::poll_deadline`] has come,
    /// and after any other call.
    pub fn poll(&mut self, now: Instant) {
        self.seen = self.seen.max(now);
        self.urgent = false;
        if let Err(error) = self.work(now) {
            tracing::debug!(%error, "PCI service gives its channel up");
            self.close();
            self.events.push_back(PciEvent::Failed(error));
        }
        self.end_patience(now);
    }

    fn work(&mut self, now: Instant) -> Result<(), PciError> {
        // The channel is out of the way while its messages are handled, and goes back unless that ended it.
        let Some(mut channel) = self.channel.take() else { return Ok(()) };
        channel.mask()?;
        let all = self.drain(&mut channel, now)?;
        let stuck = self.flush(&mut channel, now)?;
        self.urgent =
            if all { channel.arm()? } else { !stuck && self.outgoing.len() < MOST_WAITING };
        self.channel = Some(channel);
        Ok(())
    }

    /// Reads what is there; false if it stopped before the end.
    fn drain(&mut self, channel: &mut HostChannel, now: Instant) -> Result<bool, PciError> {
        let mut buffer = std::mem::take(&mut self.buffer);
        let result = self.drain_into(&mut buffer, channel, now);
        self.buffer = buffer;
        result
    }

    fn drain_into(
        &mut self,
        buffer: &mut [u8],
        channel: &mut HostChannel,
        now: Instant,
    ) -> Result<bool, PciError> {
        for _ in 0..PACKETS_PER_POLL {
            if self.outgoing.len() >= MOST_WAITING {
                return Ok(false);
            }
            match channel.receive(buffer) {
                Ok(None) => return Ok(true),
                Ok(Some(packet)) => self.packet(&packet, now)?,
                Err(ReceiveError::Packet(error)) => self.bad_packet(BadPacket::Packet(error))?,
                Err(ReceiveError::Ring(error)) => return Err(error.into()),
            }
        }
        Ok(false)
    }

    /// Writes what is due. True if there was no room for all of it.
    fn flush(&mut self, channel: &mut HostChannel, now: Instant) -> Result<bool, PciError> {
        while let Some(place) = self.outgoing.iter().position(|waiting| waiting.at <= now) {
            let Some(waiting) = self.outgoing.get(place) else { break };
            let payload = &waiting.payload[..];
            let packet = match waiting.answers {
                Some(transaction_id) => Outgoing::Completion { transaction_id, payload },
                None => Outgoing::InBand { transaction_id: 0, completion: false, payload },
            };
            match channel.stage(&packet) {
                Ok(()) => drop(self.outgoing.remove(place)),
                Err(SendError::Full { need }) => {
                    if !channel.request_space(need)? {
                        return Ok(true);
                    }
                }
                Err(error) => return Err(error.into()),
            }
        }
        channel.commit()?;
        Ok(false)
    }

    /// Sends the guest the whole list, if it follows.
    fn announce(&mut self, now: Instant) {
        let State::Connected(version) = self.state else { return };
        if self.follows {
            let list: Vec<_> = self.functions().copied().collect();
            self.stats.snapshots += 1;
            self.send(encode_relations(version, &list), now);
        }
    }

    /// Takes functions that a guest was asked for and did not give up in time.
    fn end_patience(&mut self, now: Instant) {
        let over = |function: &Function| function.eject.is_some_and(|end| end <= now);
        let over: Vec<_> = self
            .functions
            .iter()
            .filter(|(_, function)| over(function))
            .map(|(slot, _)| *slot)
            .collect();
        for slot in over {
            self.take_off(slot);
            self.events.push_back(PciEvent::EjectOverdue { slot });
        }
    }
}

//! What the owner of a bus can ask for a function: interrupts, configuration blocks, power.
//!
//! Every request is answered by an event, or ends with the function: one that leaves takes what was asked for it along. A
//! suspend ends those that are not answered, with an event for each.

use alloc::collections::BTreeSet;
use alloc::vec::Vec;
use core::fmt;

use vmbus::Instant;
use vmbus::channel::Doorbell;
use zerocopy::{FromBytes, IntoBytes};

use super::children::State;
use super::{Event, Failure, FunctionId, PciBus, Stage, Step};
use crate::interrupt::{Interrupt, InterruptWish, WishError};
use crate::message::{
    Block, CreateInterruptReply, DeleteInterrupt, MAX_BLOCK, MessageError, MessageType, PowerState,
    PowerStateChange, RemappedMsi, Status, Version,
};

/// One request, to tell its answer from others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestId(pub(super) u64);

/// A request that was not sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    /// The bus is not on.
    #[error("the bus is not on")]
    NotOn,
    /// The function is gone, was given up, or is being brought up again after a resume.
    #[error("function {0} cannot be used now")]
    NotUsable(FunctionId),
    /// An interrupt that cannot be.
    #[error(transparent)]
    Wish(#[from] WishError),
    /// An interrupt that this function does not have.
    #[error("function {0} does not have that interrupt")]
    NoInterrupt(FunctionId),
    /// The host speaks a version that does not have this request.
    #[error("this needs version {needed}: the bus speaks {spoken}")]
    NotInVersion {
        /// The first version that has it.
        needed: Version,
        /// The version spoken.
        spoken: Version,
    },
    /// More interrupts than fit into one message, or none.
    #[error("{interrupts} interrupts in one message: expected 1 to {most}")]
    Interrupts {
        /// Interrupts asked for.
        interrupts: usize,
        /// How many fit.
        most: usize,
    },
    /// A security command that does not fit into a message.
    #[error("security command of {len} bytes: expected at most {most}")]
    CommandTooLong {
        /// Its length.
        len: usize,
        /// How many bytes fit.
        most: usize,
    },
    /// A configuration block longer than any.
    #[error("configuration block of {0} bytes: expected at most {MAX_BLOCK}")]
    BlockTooLong(usize),
}

/// The content of a configuration block.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct BlockData {
    bytes: [u8; MAX_BLOCK],
    len: u8,
}

impl BlockData {
    fn new(data: &[u8]) -> Option<Self> {
        let mut bytes = [0; MAX_BLOCK];
        bytes.get_mut(..data.len())?.copy_from_slice(data);
        Some(Self { bytes, len: u8::try_from(data.len()).ok()? })
    }

    /// The bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        self.bytes.get(..self.len.into()).unwrap_or(&self.bytes)
    }
}

impl fmt::Debug for BlockData {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("BlockData").field(&self.as_bytes()).finish()
    }
}

/// The interrupts that functions have.
#[derive(Debug, Default)]
pub(super) struct Interrupts(BTreeSet<(FunctionId, Interrupt)>);

impl Interrupts {
    /// Takes away those of functions that are no more.
    fn retain(&mut self, mut lives: impl FnMut(FunctionId) -> bool) {
        self.0.retain(|(function, _)| lives(*function));
    }
}

impl<D: Doorbell> PciBus<D> {
    /// Asks for an interrupt with one or more vectors. The answer is [`Event::InterruptCreated`], with what the function
    /// has to write to raise it, or [`Event::RequestFailed`].
    ///
    /// # Errors
    /// [`RequestError`]; nothing is sent then.
    pub fn create_interrupt(
        &mut self,
        function: FunctionId,
        wish: &InterruptWish<'_>,
        now: Instant,
    ) -> Result<RequestId, RequestError> {
        let version = self.usable(function)?;
        let message = wish.encode(function.slot(), version)?;
        let step = Step::CreateInterrupt { function, vectors: wish.vectors };
        Ok(self.ask(step, &message, now))
    }

    /// Gives an interrupt back. The function must not raise it any more. The host is told and not waited for.
    ///
    /// # Errors
    /// [`RequestError`]; nothing is sent then.
    pub fn delete_interrupt(
        &mut self,
        function: FunctionId,
        interrupt: Interrupt,
    ) -> Result<(), RequestError> {
        self.usable(function)?;
        if !self.interrupts.0.remove(&(function, interrupt)) {
            return Err(RequestError::NoInterrupt(function));
        }
        self.send_delete_interrupt(function, interrupt);
        Ok(())
    }

    /// The interrupts that a function has.
    pub fn interrupts(&self, function: FunctionId) -> impl Iterator<Item = Interrupt> {
        self.interrupts.0.iter().filter(move |(of, _)| *of == function).map(|(_, it)| *it)
    }

    /// Reads a configuration block that the driver of the physical function keeps for this one. The answer is
    /// [`Event::BlockRead`] or [`Event::RequestFailed`].
    ///
    /// # Errors
    /// [`RequestError`]; nothing is sent then.
    pub fn read_block(
        &mut self,
        function: FunctionId,
        block: u32,
        bytes: usize,
        now: Instant,
    ) -> Result<RequestId, RequestError> {
        self.usable(function)?;
        let length = block_length(bytes)?;
        let message = block_head(MessageType::READ_BLOCK, function, block, length);
        let step = Step::ReadBlock { function, block, bytes: length };
        Ok(self.ask(step, message.as_bytes(), now))
    }

    /// Writes such a block. The answer is [`Event::BlockWritten`] or [`Event::RequestFailed`].
    ///
    /// # Errors
    /// [`RequestError`]; nothing is sent then.
    pub fn write_block(
        &mut self,
        function: FunctionId,
        block: u32,
        data: &[u8],
        now: Instant,
    ) -> Result<RequestId, RequestError> {
        self.usable(function)?;
        let length = block_length(data.len())?;
        let head = block_head(MessageType::WRITE_BLOCK, function, block, length);
        let mut message = head.as_bytes().to_vec();
        message.extend_from_slice(data);
        Ok(self.ask(Step::WriteBlock { function, block }, &message, now))
    }

    /// Tells the host that a function goes to another power state. The answer is [`Event::PowerChanged`] or
    /// [`Event::RequestFailed`].
    ///
    /// # Errors
    /// [`RequestError`]; nothing is sent then.
    pub fn set_power(
        &mut self,
        function: FunctionId,
        state: PowerState,
        now: Instant,
    ) -> Result<RequestId, RequestError> {
        self.usable(function)?;
        let message = PowerStateChange {
            kind: MessageType::DEVICE_POWER_STATE_CHANGE.0.into(),
            slot: function.slot().to_wire().into(),
            state: state.0.into(),
            reserved: 0.into(),
        };
        Ok(self.ask(Step::Power { function, state }, message.as_bytes(), now))
    }

    /// The version spoken, if something can be asked for this function now.
    pub(super) fn usable(&self, function: FunctionId) -> Result<Version, RequestError> {
        let version = self.version.filter(|_| self.stage == Stage::Running);
        let version = version.ok_or(RequestError::NotOn)?;
        let child = self.children.get(function.slot()).filter(|it| it.function.id == function);
        match child.map(|child| child.state) {
            Some(State::Arrived | State::Ejecting) => Ok(version),
            _ => Err(RequestError::NotUsable(function)),
        }
    }

    pub(super) fn ask(&mut self, step: Step, message: &[u8], now: Instant) -> RequestId {
        self.request(step, message, now);
        RequestId(self.last_id)
    }

    /// The host answered one of these requests.
    pub(super) fn request_answered(&mut self, id: u64, step: Step, status: Status, reply: &[u8]) {
        let Some(function) = step.function() else { return };
        if self.usable(function).is_err() {
            self.extras.forget(id);
            // The function has left meanwhile or the bus is being suspended, and its owner knows. The host has taken back
            // what it gave: with the function, or with the resources that were given back after the request.
            self.stats.late_answers += 1;
            return;
        }
        let request = RequestId(id);
        let result = match step {
            _ if status.is_failure() => Err(Failure::Refused { step, status }),
            Step::AssignInterrupts { function, .. }
            | Step::Resources(function)
            | Step::Reset(function)
            | Step::Tdisp(function) => self.resources_answered(function, request, step, reply),
            Step::CreateInterrupt { function, vectors } => self
                .interrupt_created(function, reply, vectors)
                .map(|interrupt| Event::InterruptCreated { function, request, interrupt }),
            Step::ReadBlock { function, block, bytes } => block_read(step, reply, bytes)
                .map(|data| Event::BlockRead { function, request, block, data }),
            Step::WriteBlock { block, .. } => Ok(Event::BlockWritten { function, request, block }),
            Step::Power { state, .. } => Ok(Event::PowerChanged { function, request, state }),
            _ => return,
        };
        self.extras.forget(id);
        let failed = |why| Event::RequestFailed { function, request, why };
        self.events.push_back(result.unwrap_or_else(failed));
    }

    /// The answer to one of these requests could not be understood, or will not come.
    pub(super) fn request_failed(&mut self, id: u64, step: Step, why: Failure) {
        self.extras.forget(id);
        if let Some(function) = step.function().filter(|it| self.usable(*it).is_ok()) {
            let request = RequestId(id);
            self.events.push_back(Event::RequestFailed { function, request, why });
        }
    }

    /// No request will be answered any more: the bus is turned off for a while.
    pub(super) fn fail_requests(&mut self, why: Failure) {
        let requests = self.pending.iter().filter(|(_, wait)| wait.step.is_request());
        let requests: Vec<_> = requests.map(|(id, wait)| (*id, wait.step)).collect();
        for (id, step) in requests {
            self.request_failed(id, step, why);
        }
    }

    fn interrupt_created(
        &mut self,
        function: FunctionId,
        reply: &[u8],
        asked: u16,
    ) -> Result<Interrupt, Failure> {
        let step = Step::CreateInterrupt { function, vectors: asked };
        let (wire, _) = CreateInterruptReply::ref_from_prefix(reply).map_err(|_| {
            let request = self.request_type(step);
            let expected = size_of::<CreateInterruptReply>();
            let error = MessageError::ReplyTooShort { request, len: reply.len(), expected };
            Failure::Answer { step, error }
        })?;
        let interrupt = Interrupt::from_wire(&wire.interrupt);
        if interrupt.vectors < asked {
            self.send_delete_interrupt(function, interrupt);
            return Err(Failure::TooFewVectors { asked, got: interrupt.vectors });
        }
        self.keep_interrupt(function, interrupt);
        Ok(interrupt)
    }

    pub(super) fn keep_interrupt(&mut self, function: FunctionId, interrupt: Interrupt) {
        self.interrupts.0.insert((function, interrupt));
    }

    /// Gives back the interrupts of one function, or of all.
    pub(super) fn delete_interrupts(&mut self, of: Option<FunctionId>) {
        let listed = self.interrupts.0.iter();
        let gone: Vec<_> =
            listed.filter(|(function, _)| of.is_none_or(|of| of == *function)).copied().collect();
        for (function, interrupt) in gone {
            self.interrupts.0.remove(&(function, interrupt));
            self.send_delete_interrupt(function, interrupt);
        }
    }

    /// Forgets what belongs to functions that are no longer there.
    pub(super) fn forget_the_gone(&mut self) {
        let children = &self.children;
        let lives = |id: FunctionId| {
            children
                .get(id.slot())
                .is_some_and(|child| child.function.id == id && child.state.is_visible())
        };
        self.interrupts.retain(lives);
        self.extras.retain(lives);
    }

    /// Both forms have the same content.
    pub(super) fn send_delete_interrupt(&mut self, function: FunctionId, interrupt: Interrupt) {
        let two = self.config.delete_interrupt_form2 && self.version >= Some(Version::V1_2);
        let kind = if two { MessageType::DELETE_INTERRUPT2 } else { MessageType::DELETE_INTERRUPT };
        let message = DeleteInterrupt {
            kind: kind.0.into(),
            slot: function.slot().to_wire().into(),
            interrupt: RemappedMsi {
                reserved: 0.into(),
                count: interrupt.vectors.into(),
                data: interrupt.data.into(),
                address: interrupt.address.into(),
            },
        };
        self.queue(0, false, message.as_bytes());
    }
}

fn block_length(bytes: usize) -> Result<u32, RequestError> {
    let fits = bytes <= MAX_BLOCK;
    fits.then_some(bytes as u32).ok_or(RequestError::BlockTooLong(bytes))
}

fn block_head(kind: MessageType, function: FunctionId, block: u32, bytes: u32) -> Block {
    Block {
        kind: kind.0.into(),
        block: block.into(),
        slot: function.slot().to_wire().into(),
        bytes: bytes.into(),
    }
}

fn block_read(step: Step, reply: &[u8], bytes: u32) -> Result<BlockData, Failure> {
    let expected = size_of::<Status>() + bytes as usize;
    let data = reply.get(size_of::<Status>()..expected).and_then(BlockData::new);
    data.ok_or(Failure::Answer {
        step,
        error: MessageError::ReplyTooShort {
            request: MessageType::READ_BLOCK,
            len: reply.len(),
            expected,
        },
    })
}

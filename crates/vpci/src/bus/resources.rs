//! What few guests ask for: resources with interrupts in one message, the resources that the host knows of, resets, and
//! commands for confidential devices.

use alloc::collections::BTreeMap;
use alloc::vec::Vec;

use vmbus::Instant;
use vmbus::channel::Doorbell;
use zerocopy::{FromBytes, IntoBytes};

use super::steps::slotted;
use super::{Event, Failure, FunctionId, PciBus, RECEIVE_BUFFER, RequestError, RequestId, Step};
use crate::interrupt::{Interrupt, InterruptWish};
use crate::message::{
    AssignedInterrupts, AssignedResources, GetResources, MAX_ASSIGNED, MessageType, RemappedMsi,
    Status, Tdisp, Version, assigned_of, resources_of,
};

/// Bytes of a packet beside its message: header, padding, trailer.
const PACKET: usize = 16 + 8 + 8;

/// What belongs to single requests and has no place in their step.
#[derive(Debug, Default)]
pub(super) struct Extras {
    /// Vectors of each interrupt that was asked for.
    vectors: BTreeMap<u64, Vec<u16>>,
    /// Answers to security commands that the owner has not fetched.
    answers: BTreeMap<u64, (FunctionId, Vec<u8>)>,
}

impl Extras {
    /// Takes away what belongs to functions that are no more.
    pub(super) fn retain(&mut self, mut lives: impl FnMut(FunctionId) -> bool) {
        self.answers.retain(|_, (function, _)| lives(*function));
    }

    /// Nobody waits for this request any more.
    pub(super) fn forget(&mut self, request: u64) {
        self.vectors.remove(&request);
    }
}

impl<D: Doorbell> PciBus<D> {
    /// Says once more which resources a function has, still none for its BARs, and asks for interrupts in the same
    /// message. The answer is an [`Event::InterruptCreated`] for each and [`Event::ResourcesAssigned`], or
    /// [`Event::RequestFailed`]. Linux asks for each interrupt by itself instead
    /// ([`create_interrupt`](Self::create_interrupt)).
    ///
    /// # Errors
    /// [`RequestError`]; nothing is sent then.
    pub fn assign_with_interrupts(
        &mut self,
        function: FunctionId,
        wishes: &[InterruptWish<'_>],
        now: Instant,
    ) -> Result<RequestId, RequestError> {
        let version = self.usable(function)?;
        let interrupts = wishes.len() as u16;
        let step = Step::AssignInterrupts { function, interrupts };
        let kind = self.request_type(step);
        let stride = AssignedInterrupts::stride(kind);
        let room = self.largest_message().saturating_sub(size_of::<AssignedResources>()) / stride;
        let most = room.min(MAX_ASSIGNED);
        if !(1..=most).contains(&wishes.len()) {
            return Err(RequestError::Interrupts { interrupts: wishes.len(), most });
        }
        let form = match kind {
            MessageType::ASSIGNED_RESOURCES => MessageType::CREATE_INTERRUPT,
            MessageType::ASSIGNED_RESOURCES2 => MessageType::CREATE_INTERRUPT2,
            _ => MessageType::CREATE_INTERRUPT3,
        };
        let mut message = slotted(kind, function.slot()).as_bytes().to_vec();
        message.resize(size_of::<AssignedResources>() - 2 * size_of::<u32>(), 0);
        message.extend_from_slice(&u32::from(interrupts).to_le_bytes());
        message.extend_from_slice(&[0; 4]);
        for wish in wishes {
            let start = message.len();
            message.extend(wish.describe(form, version)?);
            message.resize(start + stride, 0);
        }
        let request = self.ask(step, &message, now);
        let vectors = wishes.iter().map(|wish| wish.vectors).collect();
        self.extras.vectors.insert(request.0, vectors);
        Ok(request)
    }

    /// Asks which resources a function has, in the host's opinion. The answer is [`Event::Resources`] or
    /// [`Event::RequestFailed`]. An older way than the question for BAR masks that every start-up asks.
    ///
    /// # Errors
    /// [`RequestError`]; nothing is sent then.
    pub fn query_resources(
        &mut self,
        function: FunctionId,
        now: Instant,
    ) -> Result<RequestId, RequestError> {
        self.usable(function)?;
        let message = GetResources {
            kind: MessageType::GET_RESOURCES.0.into(),
            slot: function.slot().to_wire().into(),
            reserved: [0; 24],
        };
        Ok(self.ask(Step::Resources(function), message.as_bytes(), now))
    }

    /// Resets a function. The answer is [`Event::FunctionReset`] or [`Event::RequestFailed`]. OpenVMM refuses it in every
    /// version.
    ///
    /// # Errors
    /// [`RequestError`], of which [`RequestError::NotInVersion`] before version 1.5; nothing is sent then.
    pub fn reset(&mut self, function: FunctionId, now: Instant) -> Result<RequestId, RequestError> {
        let (spoken, needed) = (self.usable(function)?, Version::V1_5);
        if spoken < needed {
            return Err(RequestError::NotInVersion { needed, spoken });
        }
        let message = slotted(MessageType::RESET_DEVICE, function.slot());
        Ok(self.ask(Step::Reset(function), message.as_bytes(), now))
    }

    /// Sends a command to the security interface of a confidential device. Its format is that of TDISP and nothing to
    /// this protocol. The answer is [`Event::TdispAnswered`] or [`Event::RequestFailed`].
    ///
    /// # Errors
    /// [`RequestError`]; nothing is sent then.
    pub fn tdisp(
        &mut self,
        function: FunctionId,
        command: &[u8],
        now: Instant,
    ) -> Result<RequestId, RequestError> {
        self.usable(function)?;
        let most = self.largest_message().saturating_sub(size_of::<Tdisp>());
        if command.len() > most {
            return Err(RequestError::CommandTooLong { len: command.len(), most });
        }
        let head = Tdisp {
            kind: MessageType::TDISP.0.into(),
            slot: function.slot().to_wire().into(),
            length: (command.len() as u64).into(),
        };
        let mut message = head.as_bytes().to_vec();
        message.extend_from_slice(command);
        Ok(self.ask(Step::Tdisp(function), &message, now))
    }

    /// What the host answered to a security command, behind the status and with the padding of the ring; once for each
    /// [`Event::TdispAnswered`]. `None` if there is nothing, or if its function has left.
    pub fn take_tdisp_answer(&mut self, request: RequestId) -> Option<Vec<u8>> {
        self.extras.answers.remove(&request.0).map(|(_, answer)| answer)
    }

    /// Longest message that fits into the ring, and whose answer of the same length can be read.
    fn largest_message(&self) -> usize {
        self.channel.capacity().min(RECEIVE_BUFFER).saturating_sub(PACKET)
    }

    /// The host has done what was asked.
    pub(super) fn resources_answered(
        &mut self,
        function: FunctionId,
        request: RequestId,
        step: Step,
        reply: &[u8],
    ) -> Result<Event, Failure> {
        match step {
            Step::AssignInterrupts { .. } => {
                self.interrupts_assigned(function, request, step, reply)
            }
            Step::Resources(_) => match resources_of(reply) {
                Ok(Ok(resources)) => Ok(Event::Resources { function, request, resources }),
                Ok(Err(status)) => Err(Failure::Refused { step, status }),
                Err(error) => Err(Failure::Answer { step, error }),
            },
            Step::Tdisp(_) => {
                let answer = reply.get(size_of::<Status>()..).unwrap_or_default().to_vec();
                self.extras.answers.insert(request.0, (function, answer));
                Ok(Event::TdispAnswered { function, request })
            }
            _ => Ok(Event::FunctionReset { function, request }),
        }
    }

    fn interrupts_assigned(
        &mut self,
        function: FunctionId,
        request: RequestId,
        step: Step,
        reply: &[u8],
    ) -> Result<Event, Failure> {
        let vectors = self.extras.vectors.remove(&request.0).unwrap_or_default();
        let assigned = assigned_of(self.request_type(step), reply)
            .map_err(|error| Failure::Answer { step, error })?;
        let granted: Vec<Interrupt> = assigned
            .iter()
            .filter_map(|one| RemappedMsi::ref_from_prefix(one).ok())
            .map(|(wire, _)| Interrupt::from_wire(wire))
            .collect();
        let asked = vectors.len() as u16;
        let few = granted.iter().zip(&vectors).find(|(got, asked)| got.vectors < **asked);
        let wrong = match few {
            _ if granted.len() != vectors.len() => {
                Some(Failure::InterruptCount { asked, got: granted.len() })
            }
            Some((got, asked)) => Some(Failure::TooFewVectors { asked: *asked, got: got.vectors }),
            None => None,
        };
        for interrupt in granted {
            if wrong.is_some() {
                self.send_delete_interrupt(function, interrupt);
            } else {
                self.keep_interrupt(function, interrupt);
                self.events.push_back(Event::InterruptCreated { function, request, interrupt });
            }
        }
        wrong.map_or(Ok(Event::ResourcesAssigned { function, request }), Err)
    }
}

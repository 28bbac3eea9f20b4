//! The order in which things are asked, and what each answer leads to.

use alloc::collections::btree_map::Entry;
use alloc::vec::Vec;

use vmbus::Instant;
use vmbus::channel::Doorbell;
use vmbus::packet::Outgoing;
use vmbus::ring::SendError;
use zerocopy::IntoBytes;

use super::children::{Child, State};
use super::{
    BadPacket, ChannelError, Event, Extras, Failure, FunctionId, PciBus, Pending, Stage, Step,
};
use crate::interrupt;
use crate::message::{
    AssignedResources, Bare, D0Entry, EjectComplete, MSI3_STRIDE, MessageType, QueryVersion,
    Slotted, Status, Version, requirements_of, status_of,
};
use crate::slot::Slot;

/// Answers.
impl<D: Doorbell> PciBus<D> {
    pub(super) fn completion(&mut self, id: u64, reply: &[u8], now: Instant) {
        let Entry::Occupied(pending) = self.pending.entry(id) else {
            self.bad_packet(BadPacket::UnknownCompletion(id));
            return;
        };
        // Otherwise a host that guesses ids has the next step queued behind this one, and so on, and reads none of them.
        if !self.outgoing.has_sent(id) {
            self.bad_packet(BadPacket::UnsentCompletion(id));
            return;
        }
        let Pending { step, .. } = pending.remove();
        let status = match status_of(self.request_type(step), reply) {
            Ok(status) => status,
            Err(error) => {
                self.bad_packet(error.into());
                self.answer_failed(id, step, Failure::Answer { step, error });
                return;
            }
        };
        let refused = Failure::Refused { step, status };
        match step {
            Step::Version(version) => self.version_answered(version, status, now),
            Step::D0Entry => self.entry_answered(status, now),
            Step::D0Exit => self.exit_answered(now),
            Step::Requirements(id) => self.requirements_answered(id, reply, now),
            Step::Assign(id) if status.is_failure() => self.function_failed(id, refused),
            Step::Assign(id) => self.function_ready(id),
            Step::CreateInterrupt { .. }
            | Step::ReadBlock { .. }
            | Step::WriteBlock { .. }
            | Step::Power { .. }
            | Step::AssignInterrupts { .. }
            | Step::Resources(_)
            | Step::Reset(_)
            | Step::Tdisp(_) => self.request_answered(id, step, status, reply),
            // Snapshots are messages of their own; no request with this step is ever entered.
            Step::Relations => {}
        }
    }

    /// An answer could not be understood.
    fn answer_failed(&mut self, request: u64, step: Step, why: Failure) {
        match step {
            Step::Requirements(id) | Step::Assign(id) => self.function_failed(id, why),
            _ if step.function().is_some() => self.request_failed(request, step, why),
            _ if self.stage == Stage::Stopping => {
                if step == Step::D0Exit {
                    self.stopped();
                }
            }
            _ if self.stage == Stage::Suspending => {
                if step == Step::D0Exit {
                    self.suspended();
                }
            }
            _ => self.fail(why),
        }
    }

    fn version_answered(&mut self, version: Version, status: Status, now: Instant) {
        let Stage::Negotiating(offered) = self.stage else { return };
        if status == Status::REVISION_MISMATCH {
            self.offer_version(offered + 1, now);
        } else if status.is_failure() {
            self.fail(Failure::Refused { step: Step::Version(version), status });
        } else {
            // Whatever version the reply names: the one in force is the one that was asked for.
            self.version = Some(version);
            self.stage = Stage::Discovering;
            self.query_relations(now);
        }
    }

    fn entry_answered(&mut self, status: Status, now: Instant) {
        match self.stage {
            Stage::Entering { .. } if !status.is_failure() => {
                self.stage = Stage::Running;
                if let Some(version) = self.version {
                    self.events.push_back(Event::Ready { version });
                }
            }
            Stage::Entering { again: true } => {
                self.fail(Failure::Refused { step: Step::D0Entry, status });
            }
            Stage::Entering { again: false } => {
                // A kernel that ran here before this one may have left the bus on, as one that crashed does.
                tracing::debug!(%status, "D0 entry refused; trying again after D0 exit");
                self.apply_snapshot();
                self.release_resources();
                self.stage = Stage::Recovering;
                self.request_bare(Step::D0Exit, MessageType::FDO_D0_EXIT, now);
            }
            _ => {}
        }
    }

    fn exit_answered(&mut self, now: Instant) {
        // Refused or not: there is no other way to turn a bus off.
        match self.stage {
            Stage::Recovering => self.enter_d0(true, now),
            Stage::Stopping if !self.waits_for(Step::D0Exit) => self.stopped(),
            Stage::Suspending if !self.waits_for(Step::D0Exit) => self.suspended(),
            _ => {}
        }
    }

    fn waits_for(&self, step: Step) -> bool {
        self.pending.values().any(|wait| wait.step == step)
    }

    fn requirements_answered(&mut self, id: FunctionId, reply: &[u8], now: Instant) {
        let step = Step::Requirements(id);
        match requirements_of(reply) {
            Ok(Ok(bars)) => {
                if let Some(child) = self.starting(id) {
                    child.function.bar_masks = bars;
                    self.assign_resources(id, now);
                }
            }
            Ok(Err(status)) => self.function_failed(id, Failure::Refused { step, status }),
            Err(error) => {
                self.bad_packet(error.into());
                self.function_failed(id, Failure::Answer { step, error });
            }
        }
    }

    /// The function, if it is still there and still being brought up.
    fn starting(&mut self, id: FunctionId) -> Option<&mut Child> {
        self.children
            .by_id(id)
            .filter(|child| matches!(child.state, State::Starting | State::Resuming))
    }

    fn function_ready(&mut self, id: FunctionId) {
        if let Some(child) = self.starting(id) {
            let again = core::mem::replace(&mut child.state, State::Arrived) == State::Resuming;
            let function = child.function;
            self.events.push_back(if again {
                Event::FunctionResumed(function)
            } else {
                Event::FunctionArrived(function)
            });
        }
    }

    fn function_failed(&mut self, id: FunctionId, why: Failure) {
        if let Some(child) = self.starting(id) {
            let known = core::mem::replace(&mut child.state, State::Failed).is_visible();
            let function = child.function;
            if known {
                self.events.push_back(Event::FunctionLeft(function));
            }
            self.events.push_back(Event::FunctionFailed { function, why });
        }
    }

    pub(super) fn fail(&mut self, why: Failure) {
        self.end();
        self.events.push_back(Event::Failed(why));
    }

    fn stopped(&mut self) {
        self.end();
        self.events.push_back(Event::Stopped);
    }

    /// Nothing is sent, read or waited for any more.
    pub(super) fn end(&mut self) {
        self.children.clear(|function| self.events.push_back(Event::FunctionLeft(function)));
        self.stage = Stage::Over;
        self.snapshot_is_new = false;
        self.relations = None;
        self.pending.clear();
        self.extras = Extras::default();
        self.outgoing.clear();
        self.forget_the_gone();
    }

    /// Nobody waits for what was asked; what comes all the same is still known.
    pub(super) fn forget_waits(&mut self) {
        self.relations = None;
        for wait in self.pending.values_mut() {
            wait.due = None;
        }
    }

    pub(super) fn report_overdue(&mut self, now: Instant) {
        let waited = self.config.deadline;
        for wait in self.pending.values_mut().chain(&mut self.relations) {
            if wait.due.is_some_and(|due| due <= now) {
                wait.due = None;
                if wait.step.function().is_some_and(|id| !self.children.has(id)) {
                    continue;
                }
                self.events.push_back(Event::Overdue { step: wait.step, waited });
            }
        }
    }
}

/// Asking.
impl<D: Doorbell> PciBus<D> {
    pub(super) fn offer_version(&mut self, place: usize, now: Instant) {
        let Some(&version) = self.config.versions.get(place) else {
            self.fail(Failure::NoCommonVersion);
            return;
        };
        self.stage = Stage::Negotiating(place);
        let kind = MessageType::QUERY_PROTOCOL_VERSION.0.into();
        let message = QueryVersion { kind, version: version.0.into() };
        self.request(Step::Version(version), message.as_bytes(), now);
    }

    pub(super) fn query_relations(&mut self, now: Instant) {
        let message = Bare { kind: MessageType::QUERY_BUS_RELATIONS.0.into() };
        self.queue(0, false, message.as_bytes());
        self.relations =
            Some(Pending { step: Step::Relations, due: Some(now + self.config.deadline) });
    }

    pub(super) fn enter_d0(&mut self, again: bool, now: Instant) {
        self.stage = Stage::Entering { again };
        let message = D0Entry {
            kind: MessageType::FDO_D0_ENTRY.0.into(),
            reserved: 0.into(),
            window: self.config.window_base.into(),
        };
        self.request(Step::D0Entry, message.as_bytes(), now);
    }

    /// Asks for what each new function needs, one question per slot at a time: a slot that is used again while the
    /// answer for its earlier function is still out has to wait for it, so that a host cannot make questions pile up. It
    /// cannot answer them before they are sent either (see [`completion`](Self::completion)).
    pub(super) fn start_functions(&mut self, now: Instant) {
        if self.stage != Stage::Running || !self.children.unstarted {
            return;
        }
        let mut busy = [false; 256];
        for wait in self.pending.values() {
            if let Step::Requirements(id) | Step::Assign(id) = wait.step
                && let Some(busy) = busy.get_mut(id.slot().to_wire() as usize)
            {
                *busy = true;
            }
        }
        let (mut ready, mut held_up) = (Vec::new(), false);
        for child in self.children.iter() {
            if matches!(child.state, State::Listed | State::Suspended) {
                let id = child.function.id;
                match busy.get(id.slot().to_wire() as usize) {
                    Some(false) => ready.push(id),
                    _ => held_up = true,
                }
            }
        }
        self.children.unstarted = held_up;
        for id in ready {
            if let Some(child) = self.children.by_id(id) {
                child.state = match child.state {
                    State::Suspended => State::Resuming,
                    _ => State::Starting,
                };
                let kind = MessageType::QUERY_RESOURCE_REQUIREMENTS;
                self.request(Step::Requirements(id), slotted(kind, id.slot()).as_bytes(), now);
            }
        }
    }

    /// Says that a function has no resources of its own: its BARs are set through configuration space, its interrupts
    /// are made later. Linux does the same, and its lengths are used.
    fn assign_resources(&mut self, id: FunctionId, now: Instant) {
        let kind = self.request_type(Step::Assign(id));
        let len = match kind {
            MessageType::ASSIGNED_RESOURCES => 148,
            MessageType::ASSIGNED_RESOURCES2 => 202,
            _ => size_of::<AssignedResources>() + MSI3_STRIDE,
        };
        let mut message = slotted(kind, id.slot()).as_bytes().to_vec();
        message.resize(len, 0);
        self.request(Step::Assign(id), &message, now);
    }

    /// Gives back the resources of every function on the list, whether they were assigned by us or by someone before.
    pub(super) fn release_resources(&mut self) {
        let slots: Vec<_> = self.children.iter().map(|child| child.function.slot()).collect();
        for slot in slots {
            self.queue(0, false, slotted(MessageType::RELEASE_RESOURCES, slot).as_bytes());
        }
    }

    /// The message that asks for a step.
    pub(super) fn request_type(&self, step: Step) -> MessageType {
        match step {
            Step::Version(_) => MessageType::QUERY_PROTOCOL_VERSION,
            Step::Relations => MessageType::QUERY_BUS_RELATIONS,
            Step::D0Entry => MessageType::FDO_D0_ENTRY,
            Step::D0Exit => MessageType::FDO_D0_EXIT,
            Step::Requirements(_) => MessageType::QUERY_RESOURCE_REQUIREMENTS,
            Step::Assign(_) | Step::AssignInterrupts { .. } => {
                if self.config.resources_form3 && self.version >= Some(Version::V1_4) {
                    MessageType::ASSIGNED_RESOURCES3
                } else if self.version >= Some(Version::V1_2) {
                    MessageType::ASSIGNED_RESOURCES2
                } else {
                    MessageType::ASSIGNED_RESOURCES
                }
            }
            Step::CreateInterrupt { .. } => {
                interrupt::message_type(self.version.unwrap_or(Version::V1_1))
            }
            Step::ReadBlock { .. } => MessageType::READ_BLOCK,
            Step::WriteBlock { .. } => MessageType::WRITE_BLOCK,
            Step::Power { .. } => MessageType::DEVICE_POWER_STATE_CHANGE,
            Step::Resources(_) => MessageType::GET_RESOURCES,
            Step::Reset(_) => MessageType::RESET_DEVICE,
            Step::Tdisp(_) => MessageType::TDISP,
        }
    }

    pub(super) fn send_eject_complete(&mut self, slot: Slot) {
        let message = EjectComplete {
            kind: MessageType::EJECT_COMPLETE.0.into(),
            slot: slot.to_wire().into(),
            status: Status::SUCCESS.0.into(),
        };
        self.queue(0, false, message.as_bytes());
    }

    pub(super) fn request_bare(&mut self, step: Step, kind: MessageType, now: Instant) {
        self.request(step, Bare { kind: kind.0.into() }.as_bytes(), now);
    }

    pub(super) fn request(&mut self, step: Step, message: &[u8], now: Instant) {
        self.last_id += 1;
        let due = Some(now + self.config.deadline);
        self.pending.insert(self.last_id, Pending { step, due });
        self.queue(self.last_id, true, message);
    }

    pub(super) fn queue(&mut self, transaction_id: u64, completion: bool, message: &[u8]) {
        self.outgoing.push(transaction_id, completion, message);
        self.urgent = true;
    }

    /// Writes what fits. What does not is written when the host has made room and rung.
    pub(super) fn flush(&mut self) -> Result<(), ChannelError> {
        while let Some(waiting) = self.outgoing.front() {
            let packet = Outgoing::InBand {
                transaction_id: waiting.transaction_id,
                completion: waiting.completion,
                payload: &waiting.message,
            };
            match self.channel.stage(&packet) {
                Ok(()) => self.outgoing.sent(),
                Err(SendError::Full { need }) => {
                    if !self.channel.request_space(need)? {
                        return Ok(());
                    }
                }
                Err(error) => return Err(error.into()),
            }
        }
        Ok(self.channel.commit()?)
    }
}

pub(super) fn slotted(kind: MessageType, slot: Slot) -> Slotted {
    Slotted { kind: kind.0.into(), slot: slot.to_wire().into() }
}

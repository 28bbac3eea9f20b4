//! What each request of the guest does.

use vmbus::Instant;
use vmbus::packet::{Packet, PacketKind};
use vpci::Slot;
use vpci::message::{
    AssignedInterrupts, AssignedResources, BARS, CreateInterruptReply, GuestMessage, MessageType,
    PowerState, RemappedMsi, Resource, ResourceRequirementsReply, ResourcesReply, Status, Version,
    VersionReply,
};
use zerocopy::IntoBytes;

use super::{BadPacket, Function, Misbehaviour, PciError, PciEvent, PciService, State, Waiting};

/// Most vectors that one request may ask for.
const MOST_VECTORS: u16 = 32;
/// Where interrupts are written to: the local interrupt controller's address on x86.
pub(super) const INTERRUPT_ADDRESS: u64 = 0xfee0_0000;

/// Who waits for an answer.
#[derive(Clone, Copy)]
struct Asked {
    kind: MessageType,
    /// The request's id, if it wants an answer.
    id: Option<u64>,
    now: Instant,
}

impl PciService {
    /// Handles one packet.
    pub(super) fn packet(&mut self, packet: &Packet<'_>, now: Instant) -> Result<(), PciError> {
        let id = packet.completion_requested.then_some(packet.transaction_id);
        if !matches!(packet.kind, PacketKind::InBand) {
            return self.bad_packet(BadPacket::NotInBand);
        }
        let kind = packet.payload.first_chunk().map_or(0, |kind| u32::from_le_bytes(*kind));
        let asked = Asked { kind: MessageType(kind), id, now };
        match GuestMessage::parse(packet.payload) {
            Ok(message) => {
                self.stats.requests += 1;
                self.request(message, asked)
            }
            Err(error) => {
                self.bad_packet(error.into())?;
                self.answer(asked, Status::BAD_DATA.0.as_bytes());
                Ok(())
            }
        }
    }

    /// A packet of no use costs that packet, or the channel if it is the first.
    pub(super) fn bad_packet(&mut self, error: BadPacket) -> Result<(), PciError> {
        self.stats.bad_packets += 1;
        self.stats.last_bad_packet = Some(error);
        if self.state == (State::Connecting { first: true }) {
            return Err(PciError::FirstUnusable(error));
        }
        Ok(())
    }

    fn request(&mut self, message: GuestMessage<'_>, asked: Asked) -> Result<(), PciError> {
        if let GuestMessage::QueryVersion(version) = message {
            return self.query_version(version, asked);
        }
        let State::Connected(version) = self.state else {
            // Whatever comes between a refused and an accepted version is as wrong as before the first query.
            return Err(PciError::FirstPacket(asked.kind));
        };
        if let Some((_, status)) =
            self.policy.refused.iter().find(|(refused, _)| *refused == asked.kind)
        {
            let status = *status;
            self.answer_status(asked, status);
            return Ok(());
        }
        match message {
            GuestMessage::QueryRelations => {
                self.answer_status(asked, Status::SUCCESS);
                if !self.policy.unanswered.contains(&asked.kind) {
                    self.follows = true;
                    self.announce(asked.now);
                }
            }
            GuestMessage::D0Entry { window } => self.d0_entry(window, asked),
            GuestMessage::D0Exit => self.d0_exit(asked),
            GuestMessage::QueryRequirements(slot) => self.query_requirements(slot, asked),
            GuestMessage::GetResources(slot) => self.get_resources(slot, asked),
            GuestMessage::AssignedResources { slot, resources, interrupts } => {
                self.assign(slot, resources, interrupts, asked);
            }
            GuestMessage::ReleaseResources(slot) => {
                let status = self.with_function(slot, |function| function.assigned = false);
                self.interrupts.retain(|_, (of, _)| *of != slot);
                self.answer_status(asked, status);
            }
            GuestMessage::EjectComplete(slot) => self.eject_completed(slot),
            GuestMessage::PowerStateChange { slot, state } => {
                let on = PowerState(state) == PowerState::D0;
                let status = self.with_function(slot, |function| function.hardware.set_memory(on));
                self.answer_status(asked, status);
            }
            GuestMessage::CreateInterrupt { kind, slot, descriptor } => {
                self.create_interrupt(kind, slot, descriptor, asked);
            }
            GuestMessage::DeleteInterrupt { slot, interrupt } => {
                self.delete_interrupt(slot, &interrupt, asked);
            }
            GuestMessage::Reset(_) if version < Version::V1_5 => {
                self.answer_status(asked, Status::BAD_DATA);
            }
            GuestMessage::Reset(slot) if self.policy.resets => {
                let status = self.with_function(slot, |function| function.hardware.reset());
                self.answer_status(asked, status);
            }
            GuestMessage::Tdisp { slot, command } => self.tdisp(slot, command, asked),
            GuestMessage::ReadBlock { slot, block, bytes } => {
                self.read_block(slot, block, bytes, asked);
            }
            GuestMessage::WriteBlock { slot, block, data } => {
                let kept = self.block_mut(slot, block).map(|kept| *kept = data.to_vec());
                let status = if kept.is_some() { Status::SUCCESS } else { Status::NOT_SUPPORTED };
                self.answer_status(asked, status);
            }
            GuestMessage::Reset(_) | GuestMessage::QueryVersion(_) => {
                self.answer_status(asked, Status::NOT_SUPPORTED);
            }
        }
        Ok(())
    }

    fn query_version(&mut self, version: Version, asked: Asked) -> Result<(), PciError> {
        if let State::Connected(agreed) = self.state {
            return Err(PciError::SecondVersionQuery(agreed));
        }
        if asked.id.is_none() {
            return self.bad_packet(BadPacket::NoCompletion(asked.kind));
        }
        let taken = (self.policy.oldest..=self.policy.newest).contains(&version);
        let status = if taken { Status::SUCCESS } else { Status::REVISION_MISMATCH };
        let named = self.policy.named.unwrap_or(version);
        let reply = VersionReply { status: status.0.into(), version: named.0.into() };
        self.answer(asked, reply.as_bytes());
        if taken {
            self.state = State::Connected(version);
            self.events.push_back(PciEvent::Connected(version));
        } else {
            self.state = State::Connecting { first: false };
        }
        Ok(())
    }

    fn d0_entry(&mut self, window: u64, asked: Asked) {
        if self.window.is_some() {
            self.stats.order_errors += 1;
            self.answer_status(asked, Status::BAD_DATA);
            return;
        }
        if let Some(left) = self.policy.refuse_d0_entries.checked_sub(1) {
            self.policy.refuse_d0_entries = left;
            self.answer_status(asked, Status::BAD_DATA);
            return;
        }
        self.window = Some(window);
        if self.policy.relations_at_d0 {
            self.follows = true;
            self.announce(asked.now);
        }
        self.answer_status(asked, Status::SUCCESS);
        self.events.push_back(PciEvent::D0Entered { window });
    }

    fn d0_exit(&mut self, asked: Asked) {
        if self.window.take().is_some() {
            self.events.push_back(PciEvent::D0Exited);
        }
        self.answer_status(asked, Status::SUCCESS);
    }

    fn block_mut(&mut self, slot: Slot, block: u32) -> Option<&mut Vec<u8>> {
        self.functions.get_mut(&slot)?.hardware.spec_mut().blocks.get_mut(&block)
    }

    /// A block shorter than what is asked for is filled up with zeros.
    fn read_block(&mut self, slot: Slot, block: u32, bytes: u32, asked: Asked) {
        let Some(kept) = self.block_mut(slot, block) else {
            self.answer_status(asked, Status::NOT_SUPPORTED);
            return;
        };
        let mut reply = Status::SUCCESS.0.to_le_bytes().to_vec();
        reply.extend_from_slice(kept);
        reply.resize(size_of::<Status>() + bytes as usize, 0);
        self.answer(asked, &reply);
    }

    fn query_requirements(&mut self, slot: Slot, asked: Asked) {
        // A guest that asks this knows of the function that is there now, so it has no answer left for one before.
        self.crossing.remove(&slot);
        match self.functions.get(&slot).map(|function| function.hardware.spec().bars) {
            Some(bars) => {
                let reply = ResourceRequirementsReply {
                    status: Status::SUCCESS.0.into(),
                    bars: bars.map(Into::into),
                };
                self.answer(asked, reply.as_bytes());
            }
            None => self.unknown_slot(asked),
        }
    }

    /// No device here is confidential; a host that is to have some answers with what the policy says.
    fn tdisp(&mut self, slot: Slot, command: &[u8], asked: Asked) {
        if !self.functions.contains_key(&slot) {
            self.unknown_slot(asked);
            return;
        }
        match &self.policy.tdisp_answer {
            Some(answer) => {
                let reply = [&Status::SUCCESS.0.to_le_bytes()[..], answer].concat();
                self.answer(asked, &reply);
            }
            None => self.answer_status(asked, Status::NOT_SUPPORTED),
        }
        self.events.push_back(PciEvent::Tdisp { slot, bytes: command.len() });
    }

    fn get_resources(&mut self, slot: Slot, asked: Asked) {
        if !self.functions.contains_key(&slot) {
            self.unknown_slot(asked);
            return;
        }
        let reply = ResourcesReply {
            version: 1.into(),
            revision: 1.into(),
            count: (BARS as u32).into(),
            resources: [NO_RESOURCE; BARS],
        };
        self.answer(asked, reply.as_bytes());
    }

    fn assign(
        &mut self,
        slot: Slot,
        resources: [Resource; BARS],
        interrupts: AssignedInterrupts<'_>,
        asked: Asked,
    ) {
        if self.window.is_none() {
            self.stats.order_errors += 1;
            self.answer_status(asked, Status::BAD_DATA);
            return;
        }
        let counts: Vec<u16> = interrupts.iter().map(|one| vectors_of(asked.kind, one)).collect();
        if counts.iter().any(|count| !(1..=MOST_VECTORS).contains(count)) {
            self.answer_status(asked, Status::BAD_DATA);
            return;
        }
        if self.with_function(slot, |function| function.assigned = true).is_failure() {
            self.answer_status(asked, Status::BAD_DATA);
            return;
        }
        let head = AssignedResources {
            kind: Status::SUCCESS.0.into(),
            slot: slot.to_wire().into(),
            resources,
            msi_count: (counts.len() as u32).into(),
            reserved: 0.into(),
        };
        let shape = match asked.kind {
            MessageType::ASSIGNED_RESOURCES3 if self.policy.assigned3_as_2 => {
                MessageType::ASSIGNED_RESOURCES2
            }
            kind => kind,
        };
        let mut reply = head.as_bytes().to_vec();
        for count in counts {
            let start = reply.len();
            reply.extend_from_slice(self.grant(slot, count).as_bytes());
            reply.resize(start + AssignedInterrupts::stride(shape), 0);
        }
        self.answer(asked, &reply);
        self.events.push_back(PciEvent::Assigned { slot });
    }

    /// Creates an interrupt for a function.
    fn grant(&mut self, slot: Slot, count: u16) -> RemappedMsi {
        let data = self.last_interrupt;
        self.last_interrupt = self.last_interrupt.wrapping_add(u32::from(count));
        self.interrupts.insert(data, (slot, count));
        let count = if self.take_armed(Misbehaviour::FewerVectors) { count - 1 } else { count };
        RemappedMsi {
            reserved: 0.into(),
            count: count.into(),
            data: data.into(),
            address: INTERRUPT_ADDRESS.into(),
        }
    }

    fn eject_completed(&mut self, slot: Slot) {
        let asked_back = self.functions.get(&slot).is_some_and(|function| function.eject.is_some());
        if let Some(answers) = self.crossing.get_mut(&slot) {
            *answers -= 1;
            if *answers == 0 {
                self.crossing.remove(&slot);
            }
            self.stats.crossed_eject_completes += 1;
        } else if asked_back {
            self.functions.remove(&slot);
            self.interrupts.retain(|_, (of, _)| *of != slot);
            self.events.push_back(PciEvent::EjectCompleted { slot });
        } else {
            self.stats.unexpected_eject_completes += 1;
            self.events.push_back(PciEvent::UnexpectedEjectComplete { slot });
        }
    }

    fn create_interrupt(&mut self, kind: MessageType, slot: Slot, descriptor: &[u8], asked: Asked) {
        let count = vectors_of(kind, descriptor);
        if !self.functions.contains_key(&slot) {
            self.unknown_slot(asked);
            return;
        }
        if !(1..=MOST_VECTORS).contains(&count) {
            self.answer_status(asked, Status::BAD_DATA);
            return;
        }
        let interrupt = self.grant(slot, count);
        let reply = CreateInterruptReply {
            status: Status::SUCCESS.0.into(),
            reserved: 0.into(),
            interrupt,
        };
        self.answer(asked, reply.as_bytes());
    }

    fn delete_interrupt(&mut self, slot: Slot, interrupt: &RemappedMsi, asked: Asked) {
        let data = interrupt.data.get();
        let status = match self.interrupts.get(&data) {
            Some((of, _)) if *of == slot => {
                self.interrupts.remove(&data);
                Status::SUCCESS
            }
            _ => Status::BAD_DATA,
        };
        self.answer_status(asked, status);
    }

    fn with_function(&mut self, slot: Slot, change: impl FnOnce(&mut Function)) -> Status {
        match self.functions.get_mut(&slot) {
            Some(function) => {
                change(function);
                Status::SUCCESS
            }
            None => {
                self.stats.unknown_slots += 1;
                Status::BAD_DATA
            }
        }
    }

    fn unknown_slot(&mut self, asked: Asked) {
        self.stats.unknown_slots += 1;
        self.answer_status(asked, Status::BAD_DATA);
    }

    fn answer_status(&mut self, asked: Asked, status: Status) {
        self.answer(asked, status.0.to_le_bytes().as_bytes());
    }

    /// Answers a request that wants it, as the policy has it.
    fn answer(&mut self, asked: Asked, payload: &[u8]) {
        let Some(id) = asked.id else { return };
        if self.policy.unanswered.contains(&asked.kind) {
            return;
        }
        let empty = self.policy.empty_answers.contains(&asked.kind)
            || self.take_armed(Misbehaviour::AnswerShort);
        let waiting = Waiting {
            at: asked.now + self.policy.reply_delay,
            answers: Some(id),
            payload: if empty { Vec::new() } else { payload.to_vec() },
        };
        if self.take_armed(Misbehaviour::AnswerTwice) {
            self.outgoing.push_back(waiting.clone());
        }
        self.outgoing.push_back(waiting);
    }
}

/// How many vectors an interrupt's descriptor asks for, in the form of the message in which it stands.
fn vectors_of(kind: MessageType, descriptor: &[u8]) -> u16 {
    let three = [MessageType::CREATE_INTERRUPT3, MessageType::ASSIGNED_RESOURCES3].contains(&kind);
    let at = if three { 6 } else { 2 };
    let count = descriptor.get(at..).and_then(|rest| rest.first_chunk());
    count.map_or(0, |count| u16::from_le_bytes(*count))
}

const NO_RESOURCE: Resource = Resource {
    kind: 0,
    share: 0,
    flags: zerocopy::little_endian::U16::ZERO,
    address: zerocopy::little_endian::U64::ZERO,
    length: zerocopy::little_endian::U32::ZERO,
    reserved: zerocopy::little_endian::U32::ZERO,
};

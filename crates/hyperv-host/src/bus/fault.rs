//! Misbehaviour on request, in control messages. What happens in rings is in [`RingFault`](super::RingFault).

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use vmbus::message::{HEADER_SIZE, MAX_CHANNEL_ID, MessageType, Payload};
use vmbus::{ChannelId, Instant};

use super::BusServer;

/// A way to misbehave. Each happens once per [`BusServer::inject`], at the next message that it can happen to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Fault {
    /// A message ends before its fields do.
    Truncated,
    /// A message has no bytes at all, before the right one.
    Empty,
    /// A message has bytes behind its fields. Guests must accept it.
    TrailingGarbage,
    /// A message with a number that stands for nothing, before the right one.
    UnknownType,
    /// A message that only guests send, before the right one.
    WrongDirection,
    /// An answer comes twice.
    AnswersTwice,
    /// An answer never comes.
    NeverAnswers,
    /// Answers that nobody asked for come before the right message.
    Unsolicited,
    /// Memory is answered for under another id.
    WrongGpadl,
    /// Memory is answered for on another channel.
    WrongGpadlChannel,
    /// An open is answered for under another open id.
    WrongOpenId,
    /// A second offer with id 0 comes before an offer.
    OfferedAsZero,
    /// A second offer with an id above all ids comes before an offer.
    OfferedTooHigh,
    /// An offer comes twice.
    OfferedTwice,
    /// A sub-channel that nobody asked for is offered before an offer.
    UnaskedSubChannel,
    /// A rescind comes three times.
    RescindedRepeatedly,
    /// A channel that was never offered is rescinded before the right message.
    RescindedUnknown,
}

impl Fault {
    /// All of them.
    pub const ALL: [Self; 17] = [
        Self::Truncated,
        Self::Empty,
        Self::TrailingGarbage,
        Self::UnknownType,
        Self::WrongDirection,
        Self::AnswersTwice,
        Self::NeverAnswers,
        Self::Unsolicited,
        Self::WrongGpadl,
        Self::WrongGpadlChannel,
        Self::WrongOpenId,
        Self::OfferedAsZero,
        Self::OfferedTooHigh,
        Self::OfferedTwice,
        Self::UnaskedSubChannel,
        Self::RescindedRepeatedly,
        Self::RescindedUnknown,
    ];

    /// Whether it can happen to a message.
    #[must_use]
    pub fn fits(self, kind: MessageType) -> bool {
        match self {
            Self::Truncated
            | Self::Empty
            | Self::TrailingGarbage
            | Self::UnknownType
            | Self::WrongDirection
            | Self::Unsolicited
            | Self::RescindedUnknown => true,
            Self::AnswersTwice | Self::NeverAnswers => {
                ![MessageType::OFFER_CHANNEL, MessageType::RESCIND_CHANNEL_OFFER].contains(&kind)
            }
            Self::WrongGpadl => {
                [MessageType::GPADL_CREATED, MessageType::GPADL_TORNDOWN].contains(&kind)
            }
            Self::WrongGpadlChannel => kind == MessageType::GPADL_CREATED,
            Self::WrongOpenId => kind == MessageType::OPEN_CHANNEL_RESULT,
            Self::OfferedAsZero
            | Self::OfferedTooHigh
            | Self::OfferedTwice
            | Self::UnaskedSubChannel => kind == MessageType::OFFER_CHANNEL,
            Self::RescindedRepeatedly => kind == MessageType::RESCIND_CHANNEL_OFFER,
        }
    }

    /// What is sent instead of one message. `spare` is an id that no channel has.
    fn distort(self, payload: Payload, spare: ChannelId) -> Vec<Payload> {
        let bytes = payload.to_vec();
        let last = Payload::from_bytes(bytes.get(..bytes.len() - 1).unwrap_or_default());
        match self {
            Self::Truncated => vec![last],
            Self::Empty => vec![Payload::from_bytes(&[]), payload],
            Self::TrailingGarbage => vec![payload.with(&[0xa5; 17])],
            Self::UnknownType => vec![message(0x7777_7777, &[0xff; 8]), payload],
            Self::WrongDirection => {
                vec![message(MessageType::OPEN_CHANNEL.0, &[0; 35]), payload]
            }
            Self::AnswersTwice | Self::OfferedTwice => vec![payload, payload],
            Self::NeverAnswers => Vec::new(),
            Self::Unsolicited => unsolicited(spare).chain([payload]).collect(),
            // TORNDOWN names the memory first, CREATED the channel.
            Self::WrongGpadl if payload.kind() == MessageType::GPADL_TORNDOWN => {
                vec![changed(&payload, 8)]
            }
            Self::WrongGpadl | Self::WrongOpenId => vec![changed(&payload, 12)],
            Self::WrongGpadlChannel => vec![changed(&payload, 8)],
            Self::OfferedAsZero => vec![patched(&payload, 184, &[0; 4]), payload],
            Self::OfferedTooHigh => {
                let id = (MAX_CHANNEL_ID + 1).to_le_bytes();
                vec![patched(&payload, 184, &id), payload]
            }
            Self::UnaskedSubChannel => {
                let offer = patched(&payload, 184, &spare.0.to_le_bytes());
                vec![patched(&offer, 180, &[9, 0]), payload]
            }
            Self::RescindedRepeatedly => vec![payload; 3],
            Self::RescindedUnknown => {
                vec![message(MessageType::RESCIND_CHANNEL_OFFER.0, &[spare.0]), payload]
            }
        }
    }
}

/// Misbehaviour that waits for its moment.
#[derive(Clone, Copy, Debug)]
pub(super) struct Plan {
    fault: Fault,
    /// Messages that fit and pass unharmed before.
    skip: usize,
}

/// What was planned and what was done.
#[derive(Debug, Default)]
pub(super) struct Faults {
    plans: VecDeque<Plan>,
    done: BTreeMap<Fault, u64>,
    last: Option<(Fault, MessageType)>,
    /// Ids of channels that exist in offers only, until the guest gives them back.
    pub(super) made_up: BTreeSet<ChannelId>,
}

impl Faults {
    /// What happens to a message of this kind, if anything.
    fn pick(&mut self, kind: MessageType) -> Option<Fault> {
        let mut due = None;
        for (index, plan) in self.plans.iter_mut().enumerate() {
            if !plan.fault.fits(kind) {
                continue;
            }
            match plan.skip.checked_sub(1) {
                Some(left) => plan.skip = left,
                None => {
                    due = Some(index);
                    break;
                }
            }
        }
        let Plan { fault, .. } = self.plans.remove(due?)?;
        *self.done.entry(fault).or_default() += 1;
        self.last = Some((fault, kind));
        Some(fault)
    }
}

impl BusServer {
    /// Misbehaves once, at the next message that fits.
    pub fn inject(&mut self, fault: Fault) {
        self.inject_after(fault, 0);
    }

    /// Misbehaves once, when so many messages that fit have passed unharmed.
    pub fn inject_after(&mut self, fault: Fault, skip: usize) {
        self.faults.plans.push_back(Plan { fault, skip });
    }

    /// How often the bus misbehaved like this.
    #[must_use]
    pub fn faults(&self, fault: Fault) -> u64 {
        self.faults.done.get(&fault).copied().unwrap_or(0)
    }

    /// How the bus misbehaved last, and the message that it happened to.
    #[must_use]
    pub fn last_fault(&self) -> Option<(Fault, MessageType)> {
        self.faults.last
    }

    /// The highest id that no channel has.
    fn spare_channel(&self) -> ChannelId {
        let spare = (1..=MAX_CHANNEL_ID).rev().map(ChannelId).find(|id| !self.is_taken(*id));
        spare.unwrap_or(ChannelId(MAX_CHANNEL_ID))
    }

    pub(super) fn send_faulty(&mut self, payload: Payload, now: Instant) {
        let Some(fault) = self.faults.pick(payload.kind()) else {
            self.send_payload(payload, now);
            return;
        };
        let spare = self.spare_channel();
        if fault == Fault::UnaskedSubChannel {
            self.faults.made_up.insert(spare);
        }
        for payload in fault.distort(payload, spare) {
            self.send_payload(payload, now);
        }
    }
}

fn message(kind: u32, words: &[u32]) -> Payload {
    let words = [kind, 0].into_iter().chain(words.iter().copied());
    Payload::from_bytes(&words.flat_map(u32::to_le_bytes).collect::<Vec<_>>())
}

/// The same message with other bytes at an offset.
fn patched(payload: &Payload, offset: usize, new: &[u8]) -> Payload {
    let mut bytes = payload.to_vec();
    for (slot, byte) in bytes.iter_mut().skip(offset.max(HEADER_SIZE)).zip(new) {
        *slot = *byte;
    }
    Payload::from_bytes(&bytes)
}

/// The same message with another number at an offset.
fn changed(payload: &Payload, offset: usize) -> Payload {
    let old = payload.get(offset).copied().unwrap_or(0);
    patched(payload, offset, &[old ^ 0x5a])
}

/// Answers to requests that no guest makes.
fn unsolicited(ChannelId(spare): ChannelId) -> impl Iterator<Item = Payload> {
    [
        message(MessageType::OPEN_CHANNEL_RESULT.0, &[spare, spare, 0]),
        message(MessageType::GPADL_CREATED.0, &[spare, 0x7fff_0000, 0]),
        message(MessageType::GPADL_TORNDOWN.0, &[0x7fff_0000]),
        message(MessageType::UNLOAD_RESPONSE.0, &[]),
    ]
    .into_iter()
}

//! Misbehaviour on request.

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

    /// What is sent instead of one message.
    fn distort(self, payload: Payload) -> Vec<Payload> {
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
            Self::Unsolicited => unsolicited().chain([payload]).collect(),
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
                let id = MAX_CHANNEL_ID.to_le_bytes();
                let offer = patched(&payload, 184, &id);
                vec![patched(&offer, 180, &[9, 0]), payload]
            }
            Self::RescindedRepeatedly => vec![payload; 3],
            Self::RescindedUnknown => {
                vec![message(MessageType::RESCIND_CHANNEL_OFFER.0, &[2046]), payload]
            }
        }
    }
}

impl BusServer {
    /// Misbehaves once, at the next message that fits.
    pub fn inject(&mut self, fault: Fault) {
        self.faults.push_back(fault);
    }

    /// How often the bus misbehaved like this.
    #[must_use]
    pub fn faults(&self, fault: Fault) -> u64 {
        self.faulted.get(&fault).copied().unwrap_or(0)
    }

    /// Guests give ids back that were never theirs to hold; those of misbehaviour belong to nobody.
    pub(super) fn is_made_up(&self, channel: ChannelId) -> bool {
        channel.0 == MAX_CHANNEL_ID && self.faults(Fault::UnaskedSubChannel) > 0
    }

    pub(super) fn send_faulty(&mut self, payload: Payload, now: Instant) {
        let kind = payload.kind();
        let Some(index) = self.faults.iter().position(|fault| fault.fits(kind)) else {
            self.send_payload(payload, now);
            return;
        };
        let Some(fault) = self.faults.remove(index) else { return };
        *self.faulted.entry(fault).or_default() += 1;
        for payload in fault.distort(payload) {
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
fn unsolicited() -> impl Iterator<Item = Payload> {
    [
        message(MessageType::OPEN_CHANNEL_RESULT.0, &[2000, 2000, 0]),
        message(MessageType::GPADL_CREATED.0, &[2000, 0x7fff_0000, 0]),
        message(MessageType::GPADL_TORNDOWN.0, &[0x7fff_0000]),
        message(MessageType::UNLOAD_RESPONSE.0, &[]),
    ]
    .into_iter()
}

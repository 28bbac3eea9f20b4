//! Hosts that do what they must not do, by name.

use vmbus::Instant;
use vpci::Slot;
use vpci::message::{MessageType, RelationsHeader, Version, encode_relations};
use zerocopy::IntoBytes;

use super::{PciService, State, Waiting};

/// One thing that a host must not do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Misbehaviour {
    /// The next answer comes twice.
    AnswerTwice,
    /// An answer to nothing that was asked.
    AnswerUnasked,
    /// The next answer lacks even its status.
    AnswerShort,
    /// The next interrupt has one vector less than was asked for.
    FewerVectors,
    /// A snapshot that says it lists more functions than it does.
    SnapshotCutShort,
    /// A snapshot with more functions than a bus has slots.
    SnapshotTooLarge,
    /// A snapshot with the same slot twice.
    SlotTwice,
    /// A snapshot with a slot number that is none.
    SlotBeyondAByte,
    /// The same snapshot, ten times over.
    SnapshotFlood,
    /// A message of a type that the protocol does not have.
    UnknownMessage,
    /// A message that only guests send.
    GuestsMessage,
    /// A message without a type.
    EmptyMessage,
    /// An eject of a slot that is empty.
    EjectEmptySlot,
}

impl Misbehaviour {
    /// All of them.
    pub const ALL: [Self; 13] = [
        Self::AnswerTwice,
        Self::AnswerUnasked,
        Self::AnswerShort,
        Self::FewerVectors,
        Self::SnapshotCutShort,
        Self::SnapshotTooLarge,
        Self::SlotTwice,
        Self::SlotBeyondAByte,
        Self::SnapshotFlood,
        Self::UnknownMessage,
        Self::GuestsMessage,
        Self::EmptyMessage,
        Self::EjectEmptySlot,
    ];
}

impl PciService {
    /// Does this once: at once, or with the next answer if it is about one. Nothing happens before the guest has agreed
    /// on a version.
    pub fn misbehave(&mut self, kind: Misbehaviour, now: Instant) {
        let State::Connected(version) = self.state else { return };
        let message = match kind {
            Misbehaviour::AnswerTwice | Misbehaviour::AnswerShort | Misbehaviour::FewerVectors => {
                self.armed.push(kind);
                self.urgent = true;
                return;
            }
            Misbehaviour::AnswerUnasked => {
                self.answer_unasked(now);
                return self.count(kind);
            }
            Misbehaviour::SnapshotFlood => {
                for _ in 0..10 {
                    let list: Vec<_> = self.functions().copied().collect();
                    self.send(encode_relations(version, &list), now);
                }
                return self.count(kind);
            }
            Misbehaviour::SnapshotCutShort => snapshot_of(version, 5),
            Misbehaviour::SnapshotTooLarge => snapshot_of(version, 257),
            Misbehaviour::SlotTwice => self.snapshot_with(version, 0),
            Misbehaviour::SlotBeyondAByte => self.snapshot_with(version, 0x100),
            Misbehaviour::UnknownMessage => {
                (MessageType::BUS_RELATIONS.0 + 0xff).to_le_bytes().to_vec()
            }
            Misbehaviour::GuestsMessage => MessageType::FDO_D0_EXIT.0.to_le_bytes().to_vec(),
            Misbehaviour::EmptyMessage => Vec::new(),
            Misbehaviour::EjectEmptySlot => {
                let mut free = (0..=255).filter_map(|slot| Slot::from_wire(slot).ok());
                let free = free.rfind(|slot| !self.functions.contains_key(slot));
                let slot = free.map_or(255, Slot::to_wire);
                [MessageType::EJECT.0.to_le_bytes(), slot.to_le_bytes()].concat()
            }
        };
        self.send(message, now);
        self.count(kind);
    }

    /// How often it was done.
    #[must_use]
    pub fn misbehaved(&self, kind: Misbehaviour) -> u64 {
        self.misdeeds.get(&kind).copied().unwrap_or(0)
    }

    /// Whether this is to be done now, with an answer.
    pub(super) fn take_armed(&mut self, kind: Misbehaviour) -> bool {
        let Some(place) = self.armed.iter().position(|armed| *armed == kind) else { return false };
        self.armed.remove(place);
        self.count(kind);
        true
    }

    fn count(&mut self, kind: Misbehaviour) {
        *self.misdeeds.entry(kind).or_insert(0) += 1;
    }

    fn answer_unasked(&mut self, now: Instant) {
        let payload = vec![0; 28];
        self.outgoing.push_back(Waiting { at: now, answers: Some(u64::MAX), payload });
        self.urgent = true;
    }

    /// A snapshot of two functions that look like the first on the bus: both in its slot, and `more` added to the number
    /// of the second one's.
    fn snapshot_with(&self, version: Version, more: u32) -> Vec<u8> {
        let Some(first) = self.functions().next().copied() else { return snapshot_of(version, 1) };
        let mut message = encode_relations(version, &[first, first]);
        let head = size_of::<RelationsHeader>();
        let size = (message.len() - head) / 2;
        let slot = first.slot.to_wire() + more;
        message[head + size + 12..][..4].copy_from_slice(&slot.to_le_bytes());
        message
    }
}

/// The head of a snapshot, and nothing behind it.
fn snapshot_of(version: Version, count: u32) -> Vec<u8> {
    let two = version >= Version::V1_3;
    let kind = if two { MessageType::BUS_RELATIONS2 } else { MessageType::BUS_RELATIONS };
    RelationsHeader { kind: kind.0.into(), count: count.into() }.as_bytes().to_vec()
}

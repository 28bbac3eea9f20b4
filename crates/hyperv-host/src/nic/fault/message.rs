//! NVSP messages that lie.

use netvsc::nvsp::MessageType;

use super::{Faults, Moment, NicFault, put};
use crate::nic::queue::Queue;
use crate::nic::{NicService, NicServiceError};

/// A transaction id that no guest uses.
const NOBODYS: u64 = 0xdead_0000_0000_0001;
/// A number of a message that does not exist.
const UNKNOWN: u32 = 0x7777;

/// What becomes of an answer: the packets that are sent instead, each with its transaction id.
pub(in crate::nic) type Answers = Vec<(u64, Vec<u8>)>;

impl Faults {
    /// What to send instead of an answer; `None` to send it as it is.
    pub(in crate::nic) fn answer(&mut self, transaction: u64, payload: &[u8]) -> Option<Answers> {
        let kind = MessageType(payload.first_chunk().map_or(0, |kind| u32::from_le_bytes(*kind)));
        let fault = self.take(Moment::Answer(kind))?;
        let with = |at: usize, words: &[u32]| {
            let mut bytes = payload.to_vec();
            put(&mut bytes, at, words);
            vec![(transaction, bytes)]
        };
        let cut = |len: usize| vec![(transaction, payload.get(..len).unwrap_or_default().to_vec())];
        let right = (transaction, payload.to_vec());
        Some(match fault {
            NicFault::VersionStatusUnknown => with(12, &[99]),
            NicFault::VersionAnswerShort | NicFault::SendCompletedShort => cut(4),
            NicFault::BufferInTwoSections => with(8, &[2]),
            NicFault::BufferBeyondItself => with(20, &[u32::MAX]),
            NicFault::BufferInCrumbs => with(16, &[4]),
            NicFault::BufferWithoutPieces => with(20, &[0]),
            NicFault::SectionsEmpty => with(8, &[0]),
            NicFault::SectionsTooLarge => with(8, &[u32::MAX]),
            NicFault::SendCompletedTwice => vec![right.clone(), right],
            NicFault::SendNeverCompleted => Vec::new(),
            NicFault::SendCompletedUnsent => vec![(NOBODYS, payload.to_vec()), right],
            NicFault::SendCompletedEmpty => cut(0),
            NicFault::SendCompletedAsOther => with(0, &[MessageType::SEND_BUFFER_COMPLETE.0]),
            NicFault::SendCompletedAsUnknown => with(0, &[UNKNOWN]),
            NicFault::SendReportedFailed => with(4, &[2]),
            _ => vec![right],
        })
    }

    /// Messages that nobody asked for; each has the size of its version unless it lies about that.
    fn unasked(fault: NicFault, size: usize) -> Vec<Vec<u8>> {
        let message = |words: &[u32]| {
            let mut bytes = vec![0; size.max(words.len() * 4)];
            put(&mut bytes, 0, words);
            bytes
        };
        let short = |words: &[u32]| words.iter().flat_map(|word| word.to_le_bytes()).collect();
        const TABLE: u32 = MessageType::SEND_INDIRECTION_TABLE.0;
        const ASSOCIATION: u32 = MessageType::SEND_VF_ASSOCIATION.0;
        const SWITCH: u32 = MessageType::SWITCH_DATA_PATH.0;
        let table = |count: u32, offset: u32| {
            let mut words = vec![TABLE, count, offset];
            words.extend([63; 16]);
            vec![message(&words)]
        };
        match fault {
            NicFault::TableOfStrangers => table(16, 12),
            NicFault::TableOfFifteen => table(15, 12),
            NicFault::TableOutside => table(16, 0x7fff_fff0),
            NicFault::MessageShort => vec![short(&[SWITCH])],
            NicFault::MessageEmpty => vec![Vec::new()],
            NicFault::MessageUnknown => vec![message(&[UNKNOWN, 1, 2, 3])],
            NicFault::MessageOfGuests => {
                vec![message(&[MessageType::SEND_RECEIVE_BUFFER.0, 1, 0xcafe])]
            }
            NicFault::AnswersToNobody => [
                [MessageType::INIT_COMPLETE.0, u32::MAX, 34, 1],
                [MessageType::RECEIVE_BUFFER_COMPLETE.0, 1, 1, 0],
                [MessageType::SEND_BUFFER_COMPLETE.0, 1, 6144, 0],
                [MessageType::SEND_RNDIS_PACKET_COMPLETE.0, 1, 0, 0],
                [MessageType::SUB_CHANNEL.0, 1, 5, 0],
                [MessageType::SEND_RNDIS_PACKET.0, 0, u32::MAX, 0],
            ]
            .iter()
            .map(|words| message(words))
            .collect(),
            NicFault::AssociationFlips => {
                (0..20).map(|turn| message(&[ASSOCIATION, 1 - turn % 2, 0xdead])).collect()
            }
            NicFault::AssociationOfNeither => vec![message(&[ASSOCIATION, 2, 7])],
            NicFault::AssociationShort => vec![short(&[ASSOCIATION, 1])],
            NicFault::SwitchedToVf => vec![message(&[SWITCH, 1])],
            NicFault::SwitchedNowhere => vec![message(&[SWITCH, 9])],
            _ => Vec::new(),
        }
    }
}

impl NicService {
    /// Misbehaves without being asked, if that is wanted.
    pub(in crate::nic) fn misbehave(
        &mut self,
        primary: &mut Queue,
        size: usize,
    ) -> Result<Option<NicFault>, NicServiceError> {
        let Some(fault) = primary.faults.take(Moment::Unasked) else { return Ok(None) };
        for message in Faults::unasked(fault, size) {
            let Queue { channel, outbox, .. } = primary;
            outbox.send(channel, NOBODYS, false, &message)?;
        }
        Ok(Some(fault))
    }
}

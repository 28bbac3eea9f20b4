//! RNDIS replies and indications that lie.

use netvsc::rndis::{MessageType, Status};

use super::{Faults, Moment, NicFault, put};

/// A number of a request that no guest makes.
const NOBODYS: u32 = 0xdead_beef;

impl Faults {
    /// What to send instead of a reply; `None` to send it as it is. Indications are no replies.
    pub(in crate::nic) fn reply(&mut self, message: &[u8]) -> Option<Vec<Vec<u8>>> {
        let kind = message.first_chunk().map(|kind| MessageType(u32::from_le_bytes(*kind)))?;
        if kind == MessageType::INDICATE_STATUS {
            return None;
        }
        let fault = self.take(Moment::Reply)?;
        let with = |at: usize, words: &[u32]| {
            let mut bytes = message.to_vec();
            put(&mut bytes, at, words);
            bytes
        };
        let right = message.to_vec();
        Some(match fault {
            NicFault::ReplyTwice => vec![right.clone(), right],
            NicFault::ReplyNever => Vec::new(),
            NicFault::ReplyToNobody => vec![with(8, &[NOBODYS]), right],
            NicFault::ReplyShort => {
                let mut bytes = with(4, &[10]);
                bytes.truncate(10);
                vec![bytes]
            }
            NicFault::ReplyLengthLies => vec![with(4, &[u32::MAX])],
            NicFault::ReplyOfOtherKind => {
                let other = if kind == MessageType::KEEPALIVE_CMPLT {
                    MessageType::SET_CMPLT
                } else {
                    MessageType::KEEPALIVE_CMPLT
                };
                vec![with(0, &[other.0])]
            }
            NicFault::ReplyValueOutside if kind == MessageType::QUERY_CMPLT => {
                vec![with(16, &[0x1000, 0x7fff_fff0])]
            }
            // Where there is no value, the status is the last thing that can be outside.
            NicFault::ReplyValueOutside => {
                let mut bytes = with(4, &[12]);
                bytes.truncate(12);
                vec![bytes]
            }
            NicFault::ReplyRefuses => vec![with(12, &[Status::RESOURCES.0])],
            _ => vec![right],
        })
    }

    /// Indications that belong to a misbehaviour that happens unasked.
    pub(in crate::nic) fn indications(fault: NicFault) -> Vec<Vec<u8>> {
        let indication = |words: &[u32]| {
            let mut bytes = vec![0; words.len() * 4];
            put(&mut bytes, 0, words);
            bytes
        };
        const KIND: u32 = MessageType::INDICATE_STATUS.0;
        match fault {
            NicFault::IndicationFlood => {
                let states = [Status::MEDIA_DISCONNECT, Status::MEDIA_CONNECT];
                (0..100).map(|turn| indication(&[KIND, 20, states[turn % 2].0, 0, 0])).collect()
            }
            NicFault::IndicationUnknown => vec![indication(&[KIND, 20, 0x4007_7777, 0, 0])],
            NicFault::IndicationBufferOutside => {
                let speed = Status::LINK_SPEED_CHANGE.0;
                vec![indication(&[KIND, 20, speed, 4, 0x7fff_fff0])]
            }
            _ => Vec::new(),
        }
    }
}

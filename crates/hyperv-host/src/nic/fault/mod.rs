//! Misbehaviour on request: what a NIC's host must not say, by name.
//!
//! What goes wrong with rings and packets as such is [`crate::bus::RingFault`]; here are messages that lie.

mod control;
mod data;
mod message;

use std::collections::{BTreeMap, VecDeque};

use netvsc::nvsp::MessageType;

/// When a [`NicFault`] can happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moment {
    /// When the host answers an NVSP message of this type.
    Answer(MessageType),
    /// When the host delivers frames.
    Data,
    /// When the host answers an RNDIS request.
    Reply,
    /// As soon as RNDIS is up.
    Unasked,
}

macro_rules! faults {
    ($($(#[$doc:meta])* $name:ident at $moment:expr,)*) => {
        /// A way to misbehave. Each happens once per [`super::NicService::inject`], the next time that it can.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[non_exhaustive]
        pub enum NicFault {
            $($(#[$doc])* $name,)*
        }

        impl NicFault {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$name),*];

            /// When it can happen.
            #[must_use]
            pub const fn moment(self) -> Moment {
                match self {
                    $(Self::$name => $moment,)*
                }
            }
        }
    };
}

use Moment::{Answer, Data, Reply, Unasked};

faults! {
    /// INIT is answered with a status that stands for nothing.
    VersionStatusUnknown at Answer(MessageType::INIT_COMPLETE),
    /// The answer to INIT ends before its status.
    VersionAnswerShort at Answer(MessageType::INIT_COMPLETE),
    /// The receive buffer is cut into two sections.
    BufferInTwoSections at Answer(MessageType::RECEIVE_BUFFER_COMPLETE),
    /// The receive buffer has more pieces than memory.
    BufferBeyondItself at Answer(MessageType::RECEIVE_BUFFER_COMPLETE),
    /// The pieces of the receive buffer are too small for any message.
    BufferInCrumbs at Answer(MessageType::RECEIVE_BUFFER_COMPLETE),
    /// The receive buffer has no pieces.
    BufferWithoutPieces at Answer(MessageType::RECEIVE_BUFFER_COMPLETE),
    /// The send buffer has sections of no bytes.
    SectionsEmpty at Answer(MessageType::SEND_BUFFER_COMPLETE),
    /// The send buffer has sections larger than itself.
    SectionsTooLarge at Answer(MessageType::SEND_BUFFER_COMPLETE),
    /// A sent message is completed twice.
    SendCompletedTwice at Answer(MessageType::SEND_RNDIS_PACKET_COMPLETE),
    /// A sent message is never completed.
    SendNeverCompleted at Answer(MessageType::SEND_RNDIS_PACKET_COMPLETE),
    /// Before a sent message is completed, one is that was never sent.
    SendCompletedUnsent at Answer(MessageType::SEND_RNDIS_PACKET_COMPLETE),
    /// A sent message is completed without a status.
    SendCompletedShort at Answer(MessageType::SEND_RNDIS_PACKET_COMPLETE),
    /// A sent message is completed with nothing at all.
    SendCompletedEmpty at Answer(MessageType::SEND_RNDIS_PACKET_COMPLETE),
    /// A sent message is completed with the answer to something else.
    SendCompletedAsOther at Answer(MessageType::SEND_RNDIS_PACKET_COMPLETE),
    /// A sent message is completed with a message that does not exist.
    SendCompletedAsUnknown at Answer(MessageType::SEND_RNDIS_PACKET_COMPLETE),
    /// A sent message that went out is reported as failed.
    SendReportedFailed at Answer(MessageType::SEND_RNDIS_PACKET_COMPLETE),

    /// A range of received data lies behind the receive buffer.
    RangeOutside at Data,
    /// A range starts inside the receive buffer and is longer than a piece.
    RangeTooLong at Data,
    /// A range of no bytes.
    RangeEmpty at Data,
    /// The same range twice.
    RangeTwice at Data,
    /// A second range overlaps the first.
    RangesOverlap at Data,
    /// Transfer pages of a buffer that does not exist.
    BufferUnknown at Data,
    /// Transfer pages with a message that is not about RNDIS.
    CarrierWrong at Data,
    /// Transfer pages without a message.
    CarrierEmpty at Data,
    /// Transfer pages about neither data nor control.
    ChannelTypeUnknown at Data,
    /// A frame's message says that it is shorter than its header.
    FrameLengthLies at Data,
    /// A frame starts behind its range.
    FrameOffsetLies at Data,
    /// A frame starts inside its own header.
    FrameInHeader at Data,
    /// A frame ends behind its range.
    FrameEndLies at Data,
    /// A frame of no bytes.
    FrameEmpty at Data,
    /// A frame shorter than an Ethernet header.
    FrameRunt at Data,
    /// A frame with out-of-band data, which nobody has.
    FrameOutOfBand at Data,
    /// A frame whose message has a type that does not exist.
    FrameTypeUnknown at Data,
    /// Per-packet information behind the range.
    InfoOutside at Data,
    /// Per-packet information longer than the range.
    InfoTooLong at Data,
    /// An entry of per-packet information of size 0: a list without end.
    InfoEndless at Data,
    /// An entry of per-packet information that is longer than the list.
    InfoEntryTooLong at Data,
    /// An entry of per-packet information whose data lie behind it.
    InfoDataOutside at Data,
    /// A part of a segment that never began.
    PartWithoutFirst at Data,
    /// A segment that never ends.
    PartWithoutLast at Data,
    /// Parts and parts of a segment, as many as there are pieces, without first or last.
    PartsEndless at Data,

    /// A reply comes twice.
    ReplyTwice at Reply,
    /// A reply never comes.
    ReplyNever at Reply,
    /// Before a reply comes one to a request that nobody made.
    ReplyToNobody at Reply,
    /// A reply ends before its fields.
    ReplyShort at Reply,
    /// A reply says that it is longer than it is.
    ReplyLengthLies at Reply,
    /// A reply of the kind that answers another request.
    ReplyOfOtherKind at Reply,
    /// A reply whose value lies outside it.
    ReplyValueOutside at Reply,
    /// A reply that says no.
    ReplyRefuses at Reply,

    /// A table for sent frames with channels that do not exist.
    TableOfStrangers at Unasked,
    /// A table for sent frames with fifteen entries.
    TableOfFifteen at Unasked,
    /// A table for sent frames outside its message.
    TableOutside at Unasked,
    /// A message that ends before its fields.
    MessageShort at Unasked,
    /// A message without a type.
    MessageEmpty at Unasked,
    /// A message that does not exist.
    MessageUnknown at Unasked,
    /// A message that only guests send.
    MessageOfGuests at Unasked,
    /// Answers to requests that nobody made.
    AnswersToNobody at Unasked,
    /// A virtual function comes and goes ten times, in one breath.
    AssociationFlips at Unasked,
    /// An association that is neither made nor withdrawn.
    AssociationOfNeither at Unasked,
    /// An association that ends before its serial.
    AssociationShort at Unasked,
    /// The data path is said to be on the virtual function.
    SwitchedToVf at Unasked,
    /// The data path is said to be on a path that does not exist.
    SwitchedNowhere at Unasked,
    /// A hundred indications of the link.
    IndicationFlood at Unasked,
    /// An indication that stands for nothing.
    IndicationUnknown at Unasked,
    /// An indication whose buffer lies outside it.
    IndicationBufferOutside at Unasked,
}

/// Misbehaviour that waits for its moment, and what was done of it.
#[derive(Debug, Default)]
pub(super) struct Faults {
    waiting: VecDeque<NicFault>,
    done: BTreeMap<NicFault, u64>,
}

impl Faults {
    pub(super) fn inject(&mut self, fault: NicFault) {
        self.waiting.push_back(fault);
    }

    pub(super) fn done(&self, fault: NicFault) -> u64 {
        self.done.get(&fault).copied().unwrap_or(0)
    }

    /// The first that can happen at this moment; it is counted as done.
    fn take(&mut self, moment: Moment) -> Option<NicFault> {
        if self.waiting.is_empty() {
            return None;
        }
        let at = self.waiting.iter().position(|fault| fault.moment() == moment)?;
        let fault = self.waiting.remove(at)?;
        *self.done.entry(fault).or_default() += 1;
        Some(fault)
    }
}

/// Puts words over the bytes at an offset, as far as there are any.
fn put(bytes: &mut [u8], at: usize, words: &[u32]) {
    let words = words.iter().flat_map(|word| word.to_le_bytes());
    bytes.iter_mut().skip(at).zip(words).for_each(|(byte, new)| *byte = new);
}

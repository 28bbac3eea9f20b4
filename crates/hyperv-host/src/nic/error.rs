//! Why a NIC service gave a channel up.

use netvsc::nvsp::{self, ChannelType, DataPath, MessageType, SubChannelOperation};
use netvsc::rndis;
use thiserror::Error;
use vmbus::GpadlId;
use vmbus::memory::OutOfRange;
use vmbus::packet::PacketError;
use vmbus::ring::{RingError, SendError};

/// What the guest did that ended the use of its channel. It has to close and open it again.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum NicServiceError {
    /// A ring is broken.
    #[error(transparent)]
    Ring(#[from] RingError),
    /// A packet that contradicts itself.
    #[error(transparent)]
    Packet(#[from] PacketError),
    /// An answer that can never be sent.
    #[error("the ring to the guest cannot take an answer: {0}")]
    Send(SendError),
    /// A message that cannot be read.
    #[error(transparent)]
    Message(#[from] nvsp::DecodeError),
    /// A control message that cannot be read.
    #[error(transparent)]
    Rndis(#[from] rndis::DecodeError),
    /// Transfer-page packets go from host to guest only.
    #[error("the guest sent a transfer-page packet; only the host does that")]
    TransferPages,
    /// Only RNDIS messages may come with ranges of guest memory.
    #[error("{0} came as GPA-direct packet; only SEND_RNDIS_PACKET may")]
    GpaDirect(MessageType),
    /// Anything but INIT before a version was agreed on.
    #[error("{0} before a version was agreed on; expected INIT")]
    BeforeInit(MessageType),
    /// A message that the version agreed on does not have.
    #[error("{message} in version {version}, which does not have it")]
    NotInVersion {
        /// What came.
        message: MessageType,
        /// What was agreed on.
        version: nvsp::Version,
    },
    /// Only frames travel on sub-channels.
    #[error("{message} on sub-channel {queue}; only frames may come there")]
    OnSubChannel {
        /// What came.
        message: MessageType,
        /// Where.
        queue: u16,
    },
    /// A request for something other than more channels.
    #[error("SUB_CHANNEL request {0}, expected ALLOCATE")]
    SubChannelOperation(SubChannelOperation),
    /// A message that may come once came again.
    #[error("{0} came a second time on this connection")]
    Repeated(MessageType),
    /// A start-up message behind the end of start-up.
    #[error("{0} after the first RNDIS message, which ends start-up")]
    TooLate(MessageType),
    /// A message came before one that it needs.
    #[error("{message} came before {missing}")]
    TooEarly {
        /// What came.
        message: MessageType,
        /// What had to come first.
        missing: MessageType,
    },
    /// An RNDIS message that is about neither data nor control.
    #[error("RNDIS message of channel type {0}, expected DATA or CONTROL")]
    ChannelType(ChannelType),
    /// A path that does not exist.
    #[error("switch to data path {0}, expected SYNTHETIC or VF")]
    DataPath(DataPath),
    /// A message that must ask for a completion did not.
    #[error("{0} without asking for a completion")]
    NoCompletionRequested(MessageType),
    /// A buffer that was never described, or is described no longer.
    #[error("{message} names GPADL {gpadl}, which is not established on this channel")]
    UnknownGpadl {
        /// What named it.
        message: MessageType,
        /// The number.
        gpadl: GpadlId,
    },
    /// A receive buffer without room for one data piece behind the control pieces.
    #[error("receive buffer of {size} bytes, at least {needed} are needed")]
    ReceiveBufferTooSmall {
        /// Bytes of the buffer.
        size: usize,
        /// Bytes needed.
        needed: usize,
    },
    /// A send buffer without room for one section.
    #[error("send buffer of {size} bytes, at least {needed} are needed")]
    SendBufferTooSmall {
        /// Bytes of the buffer.
        size: usize,
        /// Bytes of a section.
        needed: usize,
    },
    /// Something was taken back under a number it does not have.
    #[error("{message} for buffer {found:#x}; the buffer is {expected:#x}")]
    WrongBuffer {
        /// The message.
        message: MessageType,
        /// The number in it.
        found: u16,
        /// The number that the buffer was given with.
        expected: u16,
    },
    /// A buffer was taken back that the host does not have.
    #[error("{0} although there is no such buffer")]
    NoBuffer(MessageType),
    /// A completion for a packet that is not outstanding on this channel: a double completion, an invented one, or one
    /// that should have come on another channel.
    #[error("completion for transaction {0:#x}, which is not outstanding")]
    NotOutstanding(u64),
    /// A completion of received frames that is not SEND_RNDIS_PACKET_COMPLETE.
    #[error("received frames were completed with {0}; expected SEND_RNDIS_PACKET_COMPLETE")]
    WrongCompletion(MessageType),
    /// An RNDIS control message in a place that cannot be read.
    #[error("control message cannot be read: {0}")]
    ControlSource(#[from] SourceError),
    /// The first RNDIS message was not INITIALIZE.
    #[error("RNDIS {0} before INITIALIZE")]
    NotInitialized(rndis::MessageType),
    /// A second INITIALIZE.
    #[error("a second RNDIS INITIALIZE on this connection")]
    InitializedTwice,
    /// RESET, which hosts take for an error.
    #[error("RNDIS RESET, which this host does not do")]
    Reset,
    /// The guest asks on and on and takes no answers.
    #[error("{bytes} bytes of RNDIS messages wait for the guest, at most {most} may")]
    ControlQueue {
        /// Bytes that would wait.
        bytes: usize,
        /// Most that may.
        most: usize,
    },
    /// Guest memory that was there is not there any more.
    #[error(transparent)]
    Memory(#[from] OutOfRange),
}

impl From<SendError> for NicServiceError {
    fn from(error: SendError) -> Self {
        match error {
            SendError::Ring(error) => Self::Ring(error),
            error => Self::Send(error),
        }
    }
}

/// Why the bytes of an RNDIS message could not be gathered. For a data message this costs that message (status 2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum SourceError {
    /// A section was named and there is no send buffer.
    #[error("send section {0} was named and there is no send buffer")]
    NoSendBuffer(u32),
    /// The section does not exist.
    #[error("send section {section} does not exist; there are {sections}")]
    Section {
        /// Index that came.
        section: u32,
        /// Number of sections.
        sections: u32,
    },
    /// More bytes than a section has.
    #[error("{bytes} bytes in a send section of {size}")]
    SectionBytes {
        /// Bytes claimed.
        bytes: u32,
        /// Bytes of a section.
        size: u32,
    },
    /// A page that is not the guest's.
    #[error("a range names memory that the guest does not have")]
    UnknownMemory,
    /// More pieces than one message may have.
    #[error("message in {pieces} pieces of memory, at most {most} are taken")]
    Scattered {
        /// Its ranges, and its section if it has one.
        pieces: usize,
        /// Most that is taken, as the guest was told.
        most: usize,
    },
    /// More bytes than one message may have.
    #[error("message of {bytes} bytes, at most {most} are taken")]
    TooLong {
        /// Bytes of the message.
        bytes: usize,
        /// Most that is taken.
        most: usize,
    },
}

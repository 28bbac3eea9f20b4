//! What a bus tells its owner.

use core::fmt;
use core::time::Duration;

use vmbus::Serial;
use vmbus::packet::PacketError;
use vmbus::ring::{RingError, SendError};

use super::request::{BlockData, RequestId};
use crate::bar::{self, Bar, BarError};
use crate::interrupt::Interrupt;
use crate::message::{BARS, Description, MessageError, PowerState, Resource, Status, Version};
use crate::slot::Slot;

/// One function, for as long as it is there.
///
/// A slot may be used again, also by a function that looks the same; the id of the earlier one then names nothing any
/// more. So an answer for a function that has gone can never reach the one that came after it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FunctionId {
    pub(crate) slot: Slot,
    pub(crate) generation: u64,
}

impl FunctionId {
    /// Where the function sits.
    #[must_use]
    pub const fn slot(self) -> Slot {
        self.slot
    }
}

impl fmt::Display for FunctionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}#{}", self.slot, self.generation)
    }
}

/// A function on the bus.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Function {
    /// Which one; never the same for two functions of one bus.
    pub id: FunctionId,
    /// What the host says about it.
    pub description: Description,
    /// Per BAR, what it reads after all ones were written to it; 0 if there is none. Known once it has arrived.
    pub bar_masks: [u32; BARS],
}

impl Function {
    /// Where it sits.
    #[must_use]
    pub const fn slot(&self) -> Slot {
        self.description.slot
    }

    /// The number that a NIC's VF association names.
    #[must_use]
    pub const fn serial(&self) -> Serial {
        self.description.serial
    }

    /// What its BARs are.
    ///
    /// # Errors
    /// [`BarError`] if the host's masks make no sense.
    pub fn bars(&self) -> Result<impl Iterator<Item = Bar> + use<>, BarError> {
        bar::decode(&self.bar_masks)
    }
}

/// Something that the host has to do before the bus can go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Step {
    /// Accept or refuse a version.
    Version(Version),
    /// Send a snapshot after it was asked for one.
    Relations,
    /// Turn the bus on.
    D0Entry,
    /// Turn the bus off.
    D0Exit,
    /// Say which BARs a function has.
    Requirements(FunctionId),
    /// Take note of a function's resources.
    Assign(FunctionId),
    /// Create an interrupt.
    CreateInterrupt {
        /// For this function.
        function: FunctionId,
        /// With so many vectors.
        vectors: u16,
    },
    /// Read a configuration block.
    ReadBlock {
        /// Of this function.
        function: FunctionId,
        /// Which.
        block: u32,
        /// So many bytes.
        bytes: u32,
    },
    /// Write a configuration block.
    WriteBlock {
        /// Of this function.
        function: FunctionId,
        /// Which.
        block: u32,
    },
    /// Take note of a function's power state.
    Power {
        /// Of this function.
        function: FunctionId,
        /// The new state.
        state: PowerState,
    },
    /// Take note of a function's resources and create interrupts with that.
    AssignInterrupts {
        /// Of this function.
        function: FunctionId,
        /// So many interrupts.
        interrupts: u16,
    },
    /// Say which resources a function has.
    Resources(FunctionId),
    /// Reset a function.
    Reset(FunctionId),
    /// Carry out a command of a confidential device's security interface.
    Tdisp(FunctionId),
}

impl Step {
    /// The function that the step is about, if it is about one.
    #[must_use]
    pub const fn function(self) -> Option<FunctionId> {
        match self {
            Self::Requirements(function)
            | Self::Assign(function)
            | Self::CreateInterrupt { function, .. }
            | Self::ReadBlock { function, .. }
            | Self::WriteBlock { function, .. }
            | Self::Power { function, .. }
            | Self::AssignInterrupts { function, .. }
            | Self::Resources(function)
            | Self::Reset(function)
            | Self::Tdisp(function) => Some(function),
            Self::Version(_) | Self::Relations | Self::D0Entry | Self::D0Exit => None,
        }
    }
}

impl Step {
    /// Whether the owner asked for it and waits for an event.
    pub(super) const fn is_request(self) -> bool {
        match self {
            Self::CreateInterrupt { .. }
            | Self::ReadBlock { .. }
            | Self::WriteBlock { .. }
            | Self::Power { .. }
            | Self::AssignInterrupts { .. }
            | Self::Resources(_)
            | Self::Reset(_)
            | Self::Tdisp(_) => true,
            Self::Version(_)
            | Self::Relations
            | Self::D0Entry
            | Self::D0Exit
            | Self::Requirements(_)
            | Self::Assign(_) => false,
        }
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Version(version) => write!(f, "answer to version {version}"),
            Self::Relations => write!(f, "list of functions"),
            Self::D0Entry => write!(f, "D0 entry"),
            Self::D0Exit => write!(f, "D0 exit"),
            Self::Requirements(id) => write!(f, "resource requirements of function {id}"),
            Self::Assign(id) => write!(f, "assignment of resources to function {id}"),
            Self::CreateInterrupt { function, vectors } => {
                write!(f, "interrupt with {vectors} vectors for function {function}")
            }
            Self::ReadBlock { function, block, .. } => {
                write!(f, "reading of block {block} of function {function}")
            }
            Self::WriteBlock { function, block } => {
                write!(f, "writing of block {block} of function {function}")
            }
            Self::Power { function, state } => {
                write!(f, "power state {state} of function {function}")
            }
            Self::AssignInterrupts { function, interrupts } => {
                write!(f, "assignment of {interrupts} interrupts to function {function}")
            }
            Self::Resources(id) => write!(f, "resources of function {id}"),
            Self::Reset(id) => write!(f, "reset of function {id}"),
            Self::Tdisp(id) => write!(f, "security command for function {id}"),
        }
    }
}

/// Why a bus, or a function on it, cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// The host knows none of the versions that were offered.
    #[error("the host refused every version offered")]
    NoCommonVersion,
    /// The host refused a step.
    #[error("{step} failed with status {status}")]
    Refused {
        /// The step.
        step: Step,
        /// What the host said.
        status: Status,
    },
    /// The host's answer could not be understood.
    #[error("{step}: {error}")]
    Answer {
        /// The step.
        step: Step,
        /// What was wrong with the answer.
        error: MessageError,
    },
    /// An interrupt that is less than what was asked for. It was given back.
    #[error("interrupt with {got} vectors: expected {asked}")]
    TooFewVectors {
        /// Vectors asked for.
        asked: u16,
        /// Vectors that the host gave.
        got: u16,
    },
    /// Another number of interrupts than was asked for. Those that came were given back.
    #[error("{got} interrupts were assigned: expected {asked}")]
    InterruptCount {
        /// Interrupts asked for.
        asked: u16,
        /// Interrupts that the host lists.
        got: usize,
    },
    /// The bus is suspended, and the host had not answered yet.
    #[error("the bus was suspended before the host answered")]
    Suspended,
    /// The channel broke.
    #[error(transparent)]
    Channel(#[from] ChannelError),
}

/// The channel cannot be used any further.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ChannelError {
    /// One of its rings is broken.
    #[error(transparent)]
    Ring(#[from] RingError),
    /// It is too small for the protocol's messages.
    #[error(transparent)]
    Send(#[from] SendError),
}

/// What happened on the bus.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// The bus is on. Functions arrive from now on.
    Ready {
        /// The version spoken.
        version: Version,
    },
    /// A function can be used.
    FunctionArrived(Function),
    /// A function that had arrived can no longer be used.
    FunctionLeft(Function),
    /// A function is there but the host did not let it be used. It may leave and come again.
    FunctionFailed {
        /// The function; it did not arrive.
        function: Function,
        /// What stood in the way.
        why: Failure,
    },
    /// The host wants a function back. Once nobody uses it any more, call [`eject_complete`]; the host's patience ends
    /// after about 60 seconds.
    ///
    /// [`eject_complete`]: super::PciBus::eject_complete
    EjectRequested {
        /// The function.
        function: FunctionId,
    },
    /// Configuration blocks that the host's driver keeps for a function have changed. A host may say so as often as it
    /// likes, and the bus does not bound what its owner asks for: who reads blocks for it waits for one answer before the
    /// next question.
    BlocksInvalidated {
        /// The function.
        function: FunctionId,
        /// Bit n set: block n changed.
        mask: u64,
    },
    /// The host announces something about stopping a function, or takes it back. There is no answer to it.
    StopNotice {
        /// The function.
        function: FunctionId,
        /// What is announced.
        notice: StopNotice,
    },
    /// The function can be used again after a resume of the bus. Its BARs and interrupts are to be set up anew.
    FunctionResumed(Function),
    /// There is an interrupt.
    InterruptCreated {
        /// Whose.
        function: FunctionId,
        /// The request for it.
        request: RequestId,
        /// What the function has to write to raise it.
        interrupt: Interrupt,
    },
    /// A configuration block was read.
    BlockRead {
        /// Of this function.
        function: FunctionId,
        /// The request for it.
        request: RequestId,
        /// Which block.
        block: u32,
        /// Its content.
        data: BlockData,
    },
    /// A configuration block was written.
    BlockWritten {
        /// Of this function.
        function: FunctionId,
        /// The request for it.
        request: RequestId,
        /// Which block.
        block: u32,
    },
    /// The host has taken note of a function's power state.
    PowerChanged {
        /// The function.
        function: FunctionId,
        /// The request for it.
        request: RequestId,
        /// The state.
        state: PowerState,
    },
    /// The host has taken note of a function's resources; an [`Event::InterruptCreated`] for each interrupt, in the order
    /// in which they were asked for, came just before.
    ResourcesAssigned {
        /// The function.
        function: FunctionId,
        /// The request for it.
        request: RequestId,
    },
    /// The resources that a function has, as the host knows them: one for each BAR.
    Resources {
        /// The function.
        function: FunctionId,
        /// The request for it.
        request: RequestId,
        /// The resources.
        resources: [Resource; BARS],
    },
    /// A function was reset. Its configuration space is as new:
    /// [`ConfigSpace::restore`](crate::ConfigSpace::restore) mends that, and interrupts are to be programmed again.
    FunctionReset {
        /// The function.
        function: FunctionId,
        /// The request for it.
        request: RequestId,
    },
    /// A security command was carried out. [`take_tdisp_answer`] has what the host said.
    ///
    /// [`take_tdisp_answer`]: super::PciBus::take_tdisp_answer
    TdispAnswered {
        /// The function.
        function: FunctionId,
        /// The request.
        request: RequestId,
    },
    /// A request for a function did not succeed.
    RequestFailed {
        /// The function.
        function: FunctionId,
        /// The request.
        request: RequestId,
        /// What stood in the way.
        why: Failure,
    },
    /// The host has not done its part in time. The wait goes on: an answer that comes late still counts.
    Overdue {
        /// What is missing.
        step: Step,
        /// For how long it was waited.
        waited: Duration,
    },
    /// The bus cannot be used. All its functions have left.
    Failed(Failure),
    /// The bus is off; its channel may be closed.
    Stopped,
    /// The bus is off and its channel may be closed; its functions are remembered until [`resume`] or the end.
    ///
    /// [`resume`]: super::PciBus::resume
    Suspended,
}

/// What a host announces about stopping a function, to move resources.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StopNotice {
    /// It would like to stop it.
    Wanted,
    /// It will not after all.
    Cancelled,
    /// The function may be used again.
    Over,
}

/// A packet from the host that was of no use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadPacket {
    /// The packet contradicts itself.
    #[error(transparent)]
    Packet(#[from] PacketError),
    /// The message in it does.
    #[error(transparent)]
    Message(#[from] MessageError),
    /// An answer to nothing that was asked, or a second answer.
    #[error("completion with id {0}: no request with that id waits for one")]
    UnknownCompletion(u64),
    /// An answer to a request that still waits for room in the ring, so that no host can have read it.
    #[error("completion with id {0}: the request with that id was not sent yet")]
    UnsentCompletion(u64),
    /// A packet with ranges of memory, which this protocol does not use.
    #[error("packet with memory ranges: expected only in-band packets and completions")]
    Ranges,
}

/// [`eject_complete`](super::PciBus::eject_complete) for a function that the host does not wait for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("function {0} was not asked back, has been answered for, or is gone")]
pub struct NotEjecting(pub FunctionId);

/// What a bus has seen so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BusStats {
    /// Snapshots read.
    pub snapshots: u64,
    /// Snapshots that were overtaken by a newer one before anything was done with them.
    pub snapshots_superseded: u64,
    /// Requests to give a function up, repetitions included.
    pub ejects: u64,
    /// Of these, those that named no function or one that had been asked back already.
    pub ejects_ignored: u64,
    /// Messages that guests have no use for.
    pub ignored: u64,
    /// Answers to requests for functions that had left, or that had ended with a suspend.
    pub late_answers: u64,
    /// Packets that were of no use.
    pub bad_packets: u64,
    /// The latest of them.
    pub last_bad_packet: Option<BadPacket>,
}

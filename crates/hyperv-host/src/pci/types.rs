//! What goes into the service of a PCI bus and what comes out of it.

use std::time::Duration;

use vmbus::packet::PacketError;
use vmbus::ring::{RingError, SendError};
use vpci::Slot;
use vpci::message::{MessageError, MessageType, Status, Version};

/// How the service behaves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PciPolicy {
    /// Oldest version accepted.
    pub oldest: Version,
    /// Newest version accepted.
    pub newest: Version,
    /// The version that every answer to a version query names, whatever was asked. OpenVMM always says 1.3.
    pub named: Option<Version>,
    /// Send a snapshot before the answer to FDO_D0_ENTRY too.
    pub relations_at_d0: bool,
    /// Refuse this many FDO_D0_ENTRYs.
    pub refuse_d0_entries: u32,
    /// How long a guest may take to give a function up before it is taken.
    pub eject_patience: Duration,
    /// How long every answer takes.
    pub reply_delay: Duration,
    /// Requests that fail, with their status.
    pub refused: Vec<(MessageType, Status)>,
    /// Requests that are never answered.
    pub unanswered: Vec<MessageType>,
    /// Requests whose answer lacks even the status.
    pub empty_answers: Vec<MessageType>,
    /// Functions can be reset, from version 1.5 on. OpenVMM refuses that.
    pub resets: bool,
    /// Resources of form 3 are answered in the shape of form 2, as OpenVMM does.
    pub assigned3_as_2: bool,
    /// What every security command is answered with; `None`: no device is confidential.
    pub tdisp_answer: Option<Vec<u8>>,
    /// Configuration space does not give back what was written to BARs and memory-enable, as with some hosts.
    pub forgetful_config: bool,
}

impl Default for PciPolicy {
    /// Versions 1.2 to 1.4, answers at once, snapshot at D0 entry, 60 seconds of patience, no faults.
    fn default() -> Self {
        Self {
            oldest: Version::V1_2,
            newest: Version::V1_4,
            named: Some(Version::V1_3),
            relations_at_d0: true,
            refuse_d0_entries: 0,
            eject_patience: Duration::from_secs(60),
            reply_delay: Duration::ZERO,
            refused: Vec::new(),
            unanswered: Vec::new(),
            empty_answers: Vec::new(),
            resets: false,
            assigned3_as_2: false,
            tdisp_answer: None,
            forgetful_config: false,
        }
    }
}

/// What happened on the bus.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PciEvent {
    /// The guest speaks this version.
    Connected(Version),
    /// The guest turned the bus on.
    D0Entered {
        /// Guest physical address of its MMIO window.
        window: u64,
    },
    /// The guest turned the bus off.
    D0Exited,
    /// The guest has brought this function up.
    Assigned {
        /// Which one.
        slot: Slot,
    },
    /// The guest gave a function up that was asked back, or had none to give. It is no longer on the bus; the device
    /// can be rescinded.
    EjectCompleted {
        /// Which one.
        slot: Slot,
    },
    /// The guest's time is over. The function is no longer on the bus; the device can be rescinded.
    EjectOverdue {
        /// Which one.
        slot: Slot,
    },
    /// The guest sent a security command.
    Tdisp {
        /// For this function.
        slot: Slot,
        /// So long.
        bytes: usize,
    },
    /// The guest gave up what it was not asked for: it has lost count, or its answers crossed more than one change of the
    /// slot, which a host cannot tell apart.
    UnexpectedEjectComplete {
        /// Which one.
        slot: Slot,
    },
    /// The guest broke a rule that ends the channel. The service is closed.
    Failed(PciError),
}

/// Why the service gave a channel up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PciError {
    /// The rings.
    #[error(transparent)]
    Ring(#[from] RingError),
    /// The rings are too small.
    #[error(transparent)]
    Send(#[from] SendError),
    /// Something else came first.
    #[error("first packet: {0:?}, expected QUERY_PROTOCOL_VERSION")]
    FirstPacket(MessageType),
    /// Something that could not be understood came first.
    #[error("first packet: {0}, expected QUERY_PROTOCOL_VERSION")]
    FirstUnusable(BadPacket),
    /// The version was agreed already.
    #[error("second QUERY_PROTOCOL_VERSION, expected none after version {0} was agreed")]
    SecondVersionQuery(Version),
}

/// A packet from the guest that is of no use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadPacket {
    /// The packet contradicts itself.
    #[error(transparent)]
    Packet(#[from] PacketError),
    /// The message in it does.
    #[error(transparent)]
    Message(#[from] MessageError),
    /// A completion, or a packet with ranges of memory.
    #[error("packet that is not in-band: expected only in-band packets from a guest")]
    NotInBand,
    /// A request that makes no sense without an answer, but does not ask for one.
    #[error("{0:?} does not ask for a completion")]
    NoCompletion(MessageType),
}

/// A function cannot be added.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("slot {0} is taken")]
pub struct SlotTaken(pub Slot);

/// What the service has seen since it was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PciStats {
    /// Requests understood.
    pub requests: u64,
    /// Packets that were of no use.
    pub bad_packets: u64,
    /// The latest of them.
    pub last_bad_packet: Option<BadPacket>,
    /// Requests that came at the wrong time: a second D0 entry, resources before it.
    pub order_errors: u64,
    /// Requests that name a slot without a function.
    pub unknown_slots: u64,
    /// EJECT_COMPLETEs for functions that were not asked back. A guest that sends one has lost count.
    pub unexpected_eject_completes: u64,
    /// EJECT_COMPLETEs for functions that were asked back and that the host took before the answer came. Both were on
    /// their way at the same time, which is nobody's mistake.
    pub crossed_eject_completes: u64,
    /// Snapshots sent.
    pub snapshots: u64,
    /// Reads and writes of device memory, wherever they went.
    pub memory_accesses: u64,
    /// Interrupts that functions wrote to where none was granted to them.
    pub stray_interrupts: u64,
}

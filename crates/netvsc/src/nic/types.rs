//! What a NIC is told, what it says, and what it counts.

use alloc::vec::Vec;
use core::fmt;
use core::time::Duration;

use vmbus::memory::SharedPages;
use vmbus::ring::RingError;
use vmbus::{GpadlId, Serial};

use super::pages::PagesError;
use super::settings::NicOffloads;
use crate::mac::MacAddress;
use crate::nvsp::{self, TABLE_ENTRIES, Version};
use crate::port::{Path, SWITCH_DEADLINE};
use crate::rndis::offload::OffloadCapabilities;
use crate::rndis::scaling::ScalingCapabilities;
use crate::rndis::{self, Oid, PacketFilter};

/// Bytes of an Ethernet header.
pub(super) const ETHERNET_HEADER: usize = 14;
/// Bytes of an 802.1Q tag in a frame.
pub(super) const VLAN_TAG: usize = 4;
/// Smallest and largest MTU: what IPv4 needs, and the most that any host gives.
const MTUS: core::ops::RangeInclusive<u32> = 68..=9216;

/// Fewest and most channels of a NIC.
const QUEUES: core::ops::RangeInclusive<u16> = 1..=64;

/// Bytes that are rather lent than copied, unless somebody knows better (docs/PERFORMANCE.md).
const LEND_FROM: usize = 4096;

/// Memory that the host has been told about: by the bus, or by whoever set up the channel.
#[derive(Clone, Debug)]
pub struct SharedBuffer {
    /// The list by which the host knows it.
    pub gpadl: GpadlId,
    /// The memory.
    pub pages: SharedPages,
}

/// How a NIC is driven.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NicConfig {
    /// Versions to ask for, most wanted first.
    pub versions: Vec<Version>,
    /// Largest packet without Ethernet header. The host may make it smaller.
    pub mtu: u32,
    /// Whether a virtual function is welcome. If not, the host is not told so, and associations are ignored.
    pub sriov: bool,
    /// Whether this guest is kept apart from its host (a confidential VM): no virtual function whatever `sriov` says, and
    /// no version before 6.1.
    pub isolated: bool,
    /// Which frames to receive.
    pub filter: PacketFilter,
    /// Work that is left to the host, as far as it offers it.
    pub offloads: NicOffloads,
    /// Channels that may be used, the primary one included, 1 to 64. More than one are asked for by
    /// [`Nic::request_queues`](super::Nic::request_queues).
    pub queues: u16,
    /// How long the host may take for each answer before that is reported.
    pub deadline: Duration,
    /// How long the host may take for a switch of the path before that is reported, and another one is sent without its answer. No
    /// longer than [`FailoverConfig::switch_deadline`](crate::failover::FailoverConfig::switch_deadline), or failover gives a switch
    /// up that waits here to be sent.
    pub switch_deadline: Duration,
    /// How long the host may be silent on the control channel before it is asked whether it is there
    /// ([`Step::KeepAlive`]). Received frames do not count. `None` for never.
    pub keep_alive: Option<Duration>,
    /// The address to ask for as soon as the NIC is ready, instead of the permanent one.
    pub address: Option<MacAddress>,
    /// Bytes in a caller's own pages from which on the host reads them there ([`Nic::transmit_pages`](super::Nic::transmit_pages));
    /// fewer are copied, since that costs less than to say where they are.
    pub lend_from: usize,
}

impl Default for NicConfig {
    /// Every version, an MTU of 1,500, virtual functions welcome, checksums left to the host, one channel, ten seconds for
    /// each answer, no questions whether the host is there.
    fn default() -> Self {
        Self {
            versions: Version::ALL.into(),
            mtu: 1500,
            sriov: true,
            isolated: false,
            filter: PacketFilter::DIRECTED | PacketFilter::ALL_MULTICAST | PacketFilter::BROADCAST,
            offloads: NicOffloads::default(),
            queues: 1,
            deadline: Duration::from_secs(10),
            switch_deadline: SWITCH_DEADLINE,
            keep_alive: None,
            address: None,
            lend_from: LEND_FROM,
        }
    }
}

impl NicConfig {
    /// What is wrong with it.
    pub(super) fn check(&self) -> Result<(), ConfigError> {
        if !self.versions.iter().any(|version| self.allows(*version)) {
            return Err(ConfigError::NoVersion { isolated: self.isolated });
        }
        check_mtu(self.mtu)?;
        if let Some(mac) = self.address.filter(|mac| !mac.is_unicast()) {
            return Err(ConfigError::Address(mac));
        }
        check_queues(self.queues)
    }

    /// Whether this guest may speak `version`.
    pub(super) fn allows(&self, version: Version) -> bool {
        !self.isolated || version >= Version::V6_1
    }

    /// Whether the host may put received segments together.
    pub(super) fn coalesces(&self, version: Version) -> bool {
        self.offloads.coalescing && version >= Version::V6_1
    }

    /// Whether an association means something.
    pub(super) fn wants_vf(&self) -> bool {
        self.sriov && !self.isolated
    }
}

/// Whether any host gives this MTU.
pub(super) fn check_mtu(mtu: u32) -> Result<(), ConfigError> {
    if MTUS.contains(&mtu) { Ok(()) } else { Err(ConfigError::Mtu(mtu)) }
}

/// Why a NIC was not made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// Nothing to ask the host for.
    #[error(
        "no NVSP version to ask for: expected at least one{}",
        if *isolated { ", 6.1 or newer since the guest is isolated" } else { "" }
    )]
    NoVersion {
        /// Whether versions before 6.1 did not count.
        isolated: bool,
    },
    /// An MTU that cannot be.
    #[error("MTU of {0}: expected {least} to {most}", least = MTUS.start(), most = MTUS.end())]
    Mtu(u32),
    /// A number of channels that cannot be.
    #[error("{0} channels: expected {least} to {most}", least = QUEUES.start(), most = QUEUES.end())]
    Queues(u16),
    /// An address that no station can have.
    #[error("MAC address {0}: expected one of a single station")]
    Address(MacAddress),
    /// The NIC is at work: it can be started anew when it was stopped or has failed.
    #[error("the NIC is at work: expected one that was stopped or has failed")]
    AtWork,
    /// No send buffer: this NIC sends from nothing else.
    #[error("no send buffer: expected one, since messages and frames are sent from its sections")]
    NoSendBuffer,
    /// The channel is unusable.
    #[error(transparent)]
    Channel(#[from] NicError),
}

pub(super) fn check_queues(queues: u16) -> Result<(), ConfigError> {
    if QUEUES.contains(&queues) { Ok(()) } else { Err(ConfigError::Queues(queues)) }
}

/// Something that the host owes an answer for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Step {
    /// INIT for this version.
    Version(Version),
    /// SEND_RECEIVE_BUFFER.
    ReceiveBuffer,
    /// SEND_SEND_BUFFER.
    SendBuffer,
    /// RNDIS INITIALIZE.
    Initialize,
    /// RNDIS QUERY of this object.
    Query(Oid),
    /// RNDIS SET of the packet filter.
    Filter,
    /// RNDIS SET of this object.
    Set(Oid),
    /// RNDIS KEEPALIVE.
    KeepAlive,
    /// RNDIS RESET.
    Reset,
    /// SUB_CHANNEL.
    SubChannels,
    /// SWITCH_DATA_PATH to this path.
    Switch(Path),
    /// RNDIS HALT: the completion of its transport.
    Halt,
    /// At the end: everything that was sent and not completed.
    Drain,
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Version(version) => write!(f, "INIT for version {version}"),
            Self::ReceiveBuffer => f.write_str("SEND_RECEIVE_BUFFER"),
            Self::SendBuffer => f.write_str("SEND_SEND_BUFFER"),
            Self::Initialize => f.write_str("RNDIS INITIALIZE"),
            Self::Query(oid) => write!(f, "RNDIS QUERY of {oid}"),
            Self::Filter => f.write_str("RNDIS SET of the packet filter"),
            Self::Set(oid) => write!(f, "RNDIS SET of {oid}"),
            Self::KeepAlive => f.write_str("RNDIS KEEPALIVE"),
            Self::Reset => f.write_str("RNDIS RESET"),
            Self::SubChannels => f.write_str("SUB_CHANNEL"),
            Self::Switch(path) => write!(f, "SWITCH_DATA_PATH to {path}"),
            Self::Halt => f.write_str("RNDIS HALT"),
            Self::Drain => f.write_str("what was sent"),
        }
    }
}

/// Why a NIC does not work, or no longer. Nothing more is sent or read after it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NicError {
    /// The ring is broken.
    #[error(transparent)]
    Ring(#[from] RingError),
    /// The ring is too small for a message of the protocol.
    #[error("a ring that takes {most} bytes at most: expected at least {len}")]
    RingTooSmall {
        /// Bytes of the message.
        len: usize,
        /// Most that fits.
        most: usize,
    },
    /// The host took none of the versions.
    #[error(
        "the host refused every NVSP version, {last} as the last with status {status}: expected 1"
    )]
    VersionsRefused {
        /// The last one.
        last: Version,
        /// How it was refused.
        status: nvsp::Status,
    },
    /// An answer that cannot be read.
    #[error("answer to {step}: {error}")]
    BadAnswer {
        /// What it should have answered.
        step: Step,
        /// What is wrong with it.
        error: nvsp::DecodeError,
    },
    /// An answer to something else.
    #[error("answer to {step}: expected its own completion, got {found}")]
    WrongAnswer {
        /// What it should have answered.
        step: Step,
        /// Type of the message that came.
        found: nvsp::MessageType,
    },
    /// An RNDIS reply of another kind than the request.
    #[error("RNDIS reply to {step}: expected its own completion, got another kind")]
    WrongReply {
        /// What it should have answered.
        step: Step,
    },
    /// The host says no.
    #[error("the host refused {step} with status {status}: expected 1")]
    Refused {
        /// What it refused.
        step: Step,
        /// How.
        status: nvsp::Status,
    },
    /// The host says no to a request of RNDIS.
    #[error("the host refused {step} with status {status}: expected 0")]
    RequestRefused {
        /// What it refused.
        step: Step,
        /// How.
        status: rndis::Status,
    },
    /// The host did not take a control message at all.
    #[error("the host did not take an RNDIS message: status {0}, expected 1")]
    ControlRefused(nvsp::Status),
    /// A receive buffer divided in a way that nobody does.
    #[error(
        "receive buffer of {buffer} bytes divided into {sections} sections, the first at {offset} with {count} times \
         {size} bytes: expected one section at 0, pieces of 68 bytes or more, all inside"
    )]
    Division {
        /// Bytes of the buffer.
        buffer: usize,
        /// Number of sections.
        sections: u32,
        /// Where the first starts.
        offset: u32,
        /// Bytes of a piece.
        size: u32,
        /// Number of pieces.
        count: u32,
    },
    /// Send sections that are too few or too small.
    #[error(
        "send buffer of {buffer} bytes in sections of {section}: expected sections of 1024 bytes at least, and room for two frames of \
         {frame} bytes with their headers, each in one section unless the buffer's page frames are known"
    )]
    Sections {
        /// Bytes of the buffer.
        buffer: usize,
        /// Bytes of a section.
        section: u32,
        /// Bytes of the longest frame.
        frame: usize,
    },
    /// RNDIS of another kind.
    #[error("RNDIS version {major} for medium {medium}: expected version 1 for medium 0 (802.3)")]
    Rndis {
        /// Major version.
        major: u32,
        /// Medium.
        medium: u32,
    },
    /// The value of an object has another length.
    #[error("value of {oid} has {len} bytes: expected {expected}")]
    ValueLength {
        /// The object.
        oid: Oid,
        /// Bytes that came.
        len: usize,
        /// Bytes that there have to be.
        expected: usize,
    },
    /// A permanent address that no station can have.
    #[error("permanent MAC address {0}: expected one of a single station")]
    Mac(MacAddress),
    /// A frame size that is of no use.
    #[error("the host takes packets of {0} bytes: expected at least {least}", least = MTUS.start())]
    Mtu(u32),
}

impl NicError {
    /// Smallest MTU that is of any use.
    pub(super) fn check_mtu(mtu: u32) -> Result<u32, Self> {
        if mtu < *MTUS.start() { Err(Self::Mtu(mtu)) } else { Ok(mtu) }
    }
}

/// Something that happened to a NIC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NicEvent {
    /// Start-up is finished; frames go.
    Ready {
        /// The permanent address.
        mac: MacAddress,
        /// Largest packet without Ethernet header.
        mtu: u32,
        /// The version agreed on.
        version: Version,
        /// Whether the link is up.
        link: bool,
    },
    /// A virtual function with this serial number belongs to the NIC. May come before [`NicEvent::Ready`], and again with the same
    /// number: it may be another function with the number of one that has gone unheard.
    Associated {
        /// The number.
        serial: Serial,
    },
    /// No virtual function belongs to the NIC any more.
    Disassociated {
        /// The number of the last one.
        serial: Serial,
    },
    /// The link went up or down, after [`NicEvent::Ready`]. Told once in two seconds at most; a bounce in between is told as
    /// one.
    Link {
        /// Whether it is up.
        up: bool,
    },
    /// The host completed a switch that was asked for. It does not say whether the switch succeeded; if not,
    /// [`NicEvent::HostSwitched`] follows.
    SwitchCompleted {
        /// Where to.
        path: Path,
    },
    /// The host says that this is the path now. That is the truth, whatever was asked for.
    HostSwitched {
        /// The path.
        path: Path,
    },
    /// The host has dealt with something that was to be set.
    Set {
        /// The object.
        oid: Oid,
        /// Success, or why it is as before.
        status: rndis::Status,
    },
    /// The host has reset its side of RNDIS, or not.
    Reset {
        /// Success, or why not.
        status: rndis::Status,
    },
    /// The host will offer so many sub-channels, one after the other, none if it refused.
    /// [`Nic::add_queue`](super::Nic::add_queue) takes each when it is open.
    QueuesGranted {
        /// How many.
        count: u16,
    },
    /// The host has sent the table by which frames are to be spread over the channels: [`NicInfo::send_table`].
    SendTable,
    /// The host has not answered in time. Its answer is still understood when it comes.
    Overdue {
        /// What it has not answered.
        step: Step,
    },
    /// The NIC does not work, or no longer.
    Failed(NicError),
    /// Shut down: the host has let go of the buffers as far as it can be told.
    Stopped,
}

/// What is known of a NIC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NicInfo {
    /// The version agreed on.
    pub version: Option<Version>,
    /// The permanent address.
    pub mac: Option<MacAddress>,
    /// Largest packet without Ethernet header: what was configured, or less if the host says so.
    pub mtu: u32,
    /// Whether the link is up. Up until the host says otherwise.
    pub link: bool,
    /// Speed in bit/s, if the host told.
    pub speed: Option<u64>,
    /// The serial number of the virtual function that belongs to the NIC.
    pub association: Option<Serial>,
    /// The path as the host last confirmed or announced it.
    pub path: Path,
    /// Which channel for which transmit hash, if the host told; see [`NicInfo::send_queue`].
    pub send_table: Option<[u32; TABLE_ENTRIES]>,
    /// Work that is left to the host.
    pub offloads: OffloadCapabilities,
    /// Longest segment that is copied for the host to cut, in bytes with all headers but a tag; 0 for none. One out of the caller's
    /// pages ([`Nic::transmit_pages`](super::Nic::transmit_pages)) may be as long as `offloads` and the host's MaxTransferSize allow.
    pub large_send: u32,
    /// Most ranges of a caller's pages that the host takes with one frame ([`Nic::transmit_pages`](super::Nic::transmit_pages));
    /// 0 if there can be none.
    pub page_ranges: u16,
    /// What the host can do of receive side scaling, if more than one channel is configured and it told.
    pub scaling: Option<ScalingCapabilities>,
    /// Channels in use, the primary one included.
    pub queues: u16,
    /// Whether start-up is finished and nothing has ended it.
    pub ready: bool,
}

impl NicInfo {
    /// The channel that a frame of a flow with this hash belongs on: as the host's table says, or evenly as long as there is
    /// none. All frames of a flow on one channel keep their order.
    #[must_use]
    pub fn send_queue(&self, hash: u32) -> u16 {
        let entry =
            self.send_table.and_then(|table| table.get(hash as usize % TABLE_ENTRIES).copied());
        let queue = entry.and_then(|entry| u16::try_from(entry).ok());
        let even = u16::try_from(hash % u32::from(self.queues.max(1))).unwrap_or(0);
        queue.filter(|queue| *queue < self.queues).unwrap_or(even)
    }
}

/// Why a frame was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TransmitError {
    /// No room in the ring or no free section. What was taken before is on its way; a doorbell of the host will make
    /// [`Nic::poll`](super::Nic::poll) find room.
    #[error("no room for a frame: expected {0}")]
    Full(Lack),
    /// Start-up is not finished, or the NIC is shut down or dead.
    #[error("the NIC is not ready for frames")]
    NotReady,
    /// Not a whole Ethernet header.
    #[error("frame of {0} bytes: expected at least the {ETHERNET_HEADER} of its header")]
    TooShort(usize),
    /// Longer than the MTU allows.
    #[error("frame of {len} bytes: expected at most {most}")]
    TooLong {
        /// Its bytes.
        len: usize,
        /// Most that is taken.
        most: usize,
    },
    /// Not a segment that the host cuts.
    #[error(
        "large send of {len} bytes in pieces of {segment}: expected at most {most} bytes (0: the host cuts none) and \
         pieces of at least 1"
    )]
    LargeSend {
        /// Bytes of the frame.
        len: usize,
        /// Bytes of payload per piece.
        segment: u32,
        /// Most bytes of a frame that the host cuts.
        most: usize,
    },
    /// A segment over IPv6 whose headers are longer than those that the host cuts.
    #[error(
        "large send with IPv6 extension headers or TCP options, the TCP header at byte {layer4}: expected none that the \
         host does not offer to cut"
    )]
    Options {
        /// Where the TCP header starts.
        layer4: usize,
    },
    /// A segment that makes fewer pieces than the host cuts one for.
    #[error("large send that makes {count} pieces: expected at least {least}")]
    Segments {
        /// How many it makes.
        count: usize,
        /// Fewest that the host wants.
        least: u32,
    },
    /// Headers that are not what the request says.
    #[error(
        "work for the host on a TCP or UDP header at byte {layer4}: expected it there, in the first piece, behind an IP \
         header of the version that the request names"
    )]
    Headers {
        /// Where the header should start.
        layer4: usize,
    },
    /// It cannot be sent out of the caller's pages.
    #[error(transparent)]
    Pages(#[from] PagesError),
    /// The ring is broken. The next [`Nic::poll`](super::Nic::poll) says so too.
    #[error(transparent)]
    Failed(#[from] NicError),
}

/// What a frame has to wait for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lack {
    /// Room in the ring.
    Ring,
    /// A send section.
    Section,
    /// A place among the frames that have come back ([`Nic::poll_returned`](super::Nic::poll_returned)).
    Return,
    /// The completion of everything that is under way, since the queues of flows are about to change.
    Order,
    /// The end of what is under way on the other path, which it would overtake. Of an [`Adapter`](crate::Adapter), as all that follows.
    Drain,
    /// The end of older frames that wait themselves: those that a VF took down with it, or pieces of a segment.
    Backlog,
    /// Confirmations of the VF: no more copies are kept of what it has not confirmed.
    Confirmation,
    /// Room in the VF's queue.
    Port,
}

impl fmt::Display for Lack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ring => "room in the ring",
            Self::Section => "a free send section",
            Self::Order => "nothing under way while frames are spread anew",
            Self::Return => "the frames that have come back to be asked for",
            Self::Drain => "nothing under way on the other path any more",
            Self::Backlog => "older frames to go first",
            Self::Confirmation => "the VF to confirm more of what it has",
            Self::Port => "room in the queue of the VF",
        })
    }
}

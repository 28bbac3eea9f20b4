//! NVSP: what a NIC and its host say to each other on a channel (PROTOCOL §7).
//!
//! [`GuestMessage`] goes from the guest to the host, [`HostMessage`] the other way; both can be encoded and decoded, since
//! a simulated host speaks the same types. RNDIS is not here: a SEND_RNDIS_PACKET only says where the RNDIS message lies.

mod decode;
mod encode;
pub mod structs;
#[cfg(test)]
mod tests;

use vmbus::{GpadlId, Serial, open_enum};

pub use decode::DecodeError;
pub use encode::{Encoded, rndis_complete, rndis_packet};

use crate::port::Path;

/// Entries of an indirection table.
pub const TABLE_ENTRIES: usize = 16;
/// Section index of a SEND_RNDIS_PACKET that uses no send section.
pub const NO_SECTION: u32 = u32::MAX;

open_enum! {
    /// A version of NVSP. A guest asks for one after the other, newest first.
    pub struct Version(u32) {
        /// Windows Server 2008.
        V1 = 2,
        /// Windows Server 2008 R2.
        V2 = 0x3_0002,
        /// Windows Server 2012: virtual functions.
        V4 = 0x4_0000,
        /// Windows Server 2012 R2: sub-channels.
        V5 = 0x5_0000,
        /// Windows Server 2016.
        V6 = 0x6_0000,
        /// Windows Server 2019: larger messages, receive coalescing.
        V6_1 = 0x6_0001,
    }
}

impl Version {
    /// Every version that is known here, newest first.
    pub const ALL: [Self; 6] = [Self::V6_1, Self::V6, Self::V5, Self::V4, Self::V2, Self::V1];

    /// Bytes of a message that carries no more than its version makes it.
    #[must_use]
    pub const fn message_size(self) -> usize {
        if self.0 > Self::V6.0 { 40 } else { 28 }
    }

    /// The NDIS version that a guest announces with this version.
    #[must_use]
    pub const fn ndis(self) -> (u32, u32) {
        if self.0 > Self::V4.0 { (6, 30) } else { (6, 1) }
    }
}

open_enum! {
    /// Type of a message.
    pub struct MessageType(u32) {
        /// Guest: is this version right?
        INIT = 1,
        /// Host: yes or no.
        INIT_COMPLETE = 2,
        /// Guest: the NDIS version.
        SEND_NDIS_VERSION = 100,
        /// Guest: here is the receive buffer.
        SEND_RECEIVE_BUFFER = 101,
        /// Host: and this is how it is divided.
        RECEIVE_BUFFER_COMPLETE = 102,
        /// Guest: the receive buffer is no longer yours.
        REVOKE_RECEIVE_BUFFER = 103,
        /// Guest: here is the send buffer.
        SEND_SEND_BUFFER = 104,
        /// Host: and this is how it is divided.
        SEND_BUFFER_COMPLETE = 105,
        /// Guest: the send buffer is no longer yours.
        REVOKE_SEND_BUFFER = 106,
        /// Both: an RNDIS message.
        SEND_RNDIS_PACKET = 107,
        /// Both: done with it.
        SEND_RNDIS_PACKET_COMPLETE = 108,
        /// Guest: frame size and capabilities.
        SEND_NDIS_CONFIG = 125,
        /// Host: a virtual function belongs to this NIC, or does no longer.
        SEND_VF_ASSOCIATION = 128,
        /// Both: frames go this way.
        SWITCH_DATA_PATH = 129,
        /// Guest: what is the value of this object? No guest asks this way; RNDIS has its own.
        OID_QUERY_EX = 131,
        /// Host: the value.
        OID_QUERY_EX_COMPLETE = 132,
        /// Both: more channels.
        SUB_CHANNEL = 133,
        /// Host: which channel for which transmit hash.
        SEND_INDIRECTION_TABLE = 134,
    }
}

open_enum! {
    /// What became of a request.
    pub struct Status(u32) {
        /// Nothing yet. Also the answer of OpenVMM to an unknown version.
        NONE = 0,
        /// Done.
        SUCCESS = 1,
        /// Not done.
        FAILURE = 2,
        /// The version is too new.
        TOO_NEW = 3,
        /// The version is too old.
        TOO_OLD = 4,
        /// The RNDIS message makes no sense.
        INVALID_RNDIS_PACKET = 5,
        /// Not now.
        BUSY = 6,
        /// The version is not supported.
        UNSUPPORTED_VERSION = 7,
    }
}

open_enum! {
    /// What an RNDIS message is about.
    pub struct ChannelType(u32) {
        /// Frames.
        DATA = 0,
        /// Requests, replies, indications.
        CONTROL = 1,
    }
}

open_enum! {
    /// A way for frames, as it stands in SWITCH_DATA_PATH.
    pub struct DataPath(u32) {
        /// Through the switch.
        SYNTHETIC = 0,
        /// Through the virtual function.
        VF = 1,
    }
}

impl DataPath {
    /// The path, if the number is one of the two.
    #[must_use]
    pub const fn path(self) -> Option<Path> {
        match self {
            Self::SYNTHETIC => Some(Path::Synthetic),
            Self::VF => Some(Path::Vf),
            _ => None,
        }
    }
}

impl From<Path> for DataPath {
    fn from(path: Path) -> Self {
        match path {
            Path::Synthetic => Self::SYNTHETIC,
            Path::Vf => Self::VF,
        }
    }
}

open_enum! {
    /// What a SUB_CHANNEL request is about.
    pub struct SubChannelOperation(u32) {
        /// Offer more channels.
        ALLOCATE = 1,
    }
}

bitflags::bitflags! {
    /// What a guest can do, in NDIS_CONFIG.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
    pub struct Capabilities: u64 {
        /// Virtual machine queues.
        const VMQ = 1 << 0;
        /// TCP chimney.
        const CHIMNEY = 1 << 1;
        /// A virtual function may be associated.
        const SRIOV = 1 << 2;
        /// 802.1Q tags out of band.
        const IEEE8021Q = 1 << 3;
        /// Correlation ids.
        const CORRELATION_ID = 1 << 4;
        /// Teaming; without it hosts send no link-speed indications.
        const TEAMING = 1 << 5;
        /// Virtual subnet ids.
        const VIRTUAL_SUBNET_ID = 1 << 6;
        /// Receive coalescing over VMBus (6.1).
        const RSC = 1 << 7;
        /// Bits that are not known here.
        const _ = !0;
    }
}

/// Where an RNDIS message lies, in SEND_RNDIS_PACKET.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RndisPacket {
    /// What it is about.
    pub channel_type: ChannelType,
    /// The send section that holds it, and how many bytes of it; `None` if it lies in the packet's ranges.
    pub section: Option<SectionUse>,
}

/// A used part of a send section, from its start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SectionUse {
    /// Number of the section; it starts at this times the section size.
    pub index: u32,
    /// Bytes used.
    pub bytes: u32,
}

/// How a host divides a receive buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReceiveSection {
    /// Byte offset in the buffer.
    pub offset: u32,
    /// Bytes of a sub-allocation.
    pub sub_alloc_size: u32,
    /// Number of sub-allocations.
    pub num_sub_allocs: u32,
    /// Byte offset of the end.
    pub end_offset: u32,
}

/// A message from the guest to the host, or the guest's answer to one of the host's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GuestMessage {
    /// INIT: is this version right? Answered by [`HostMessage::InitComplete`].
    Init {
        /// Oldest version that is wanted.
        min: Version,
        /// Newest version that is wanted; the same, by habit.
        max: Version,
    },
    /// SEND_NDIS_VERSION; no answer.
    NdisVersion {
        /// Major number.
        major: u32,
        /// Minor number.
        minor: u32,
    },
    /// SEND_NDIS_CONFIG; no answer.
    NdisConfig {
        /// Largest frame, Ethernet header included.
        mtu: u32,
        /// What the guest can do.
        capabilities: Capabilities,
    },
    /// SEND_RECEIVE_BUFFER. Answered by [`HostMessage::ReceiveBufferComplete`].
    ReceiveBuffer {
        /// The memory.
        gpadl: GpadlId,
        /// Its number in transfer pages.
        id: u16,
    },
    /// REVOKE_RECEIVE_BUFFER; no answer.
    RevokeReceiveBuffer {
        /// The number it was sent with.
        id: u16,
    },
    /// SEND_SEND_BUFFER. Answered by [`HostMessage::SendBufferComplete`].
    SendBuffer {
        /// The memory.
        gpadl: GpadlId,
        /// Its number.
        id: u16,
    },
    /// REVOKE_SEND_BUFFER; no answer.
    RevokeSendBuffer {
        /// The number it was sent with.
        id: u16,
    },
    /// SEND_RNDIS_PACKET. Answered by [`HostMessage::RndisPacketComplete`].
    RndisPacket(RndisPacket),
    /// SEND_RNDIS_PACKET_COMPLETE: the ranges of a transfer-page packet are the host's again.
    RndisPacketComplete {
        /// Whether they made sense.
        status: Status,
    },
    /// SWITCH_DATA_PATH. Answered by an empty completion that says nothing about success.
    SwitchDataPath(DataPath),
    /// OID_QUERY_EX. Answered by [`HostMessage::OidQueryExComplete`].
    OidQueryEx {
        /// The NDIS object header of the question: type, revision, and size in the upper half.
        header: u32,
        /// The object.
        oid: u32,
    },
    /// SUB_CHANNEL. Answered by [`HostMessage::SubChannels`].
    SubChannels {
        /// What to do.
        operation: SubChannelOperation,
        /// How many.
        count: u32,
    },
}

/// A message from the host to the guest, or the host's answer to one of the guest's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HostMessage {
    /// INIT_COMPLETE.
    InitComplete {
        /// 2 if version 1 was asked for, all ones otherwise.
        version: u32,
        /// 34 by habit.
        max_mdl_chain: u32,
        /// Success, or the version is refused.
        status: Status,
    },
    /// RECEIVE_BUFFER_COMPLETE.
    ReceiveBufferComplete {
        /// Success, or the buffer is refused.
        status: Status,
        /// Number of sections, 1 on every known host; 0 if the buffer is refused.
        sections: u32,
        /// The first of them.
        first: Option<ReceiveSection>,
    },
    /// SEND_BUFFER_COMPLETE.
    SendBufferComplete {
        /// Success, or the buffer is refused.
        status: Status,
        /// Bytes of a section; 0 if the buffer is refused.
        section_size: u32,
    },
    /// SEND_RNDIS_PACKET, with the message in the transfer pages of the packet that carries this.
    RndisPacket(RndisPacket),
    /// SEND_RNDIS_PACKET_COMPLETE: the send section is the guest's again.
    RndisPacketComplete {
        /// Whether the frames went out.
        status: Status,
    },
    /// SEND_VF_ASSOCIATION.
    VfAssociation {
        /// Whether a virtual function belongs to the NIC.
        allocated: bool,
        /// Its serial number, or that of the last one.
        serial: Serial,
    },
    /// SWITCH_DATA_PATH: the path is this one now, whatever the guest believed.
    SwitchDataPath(DataPath),
    /// OID_QUERY_EX_COMPLETE. Known hosts refuse.
    OidQueryExComplete {
        /// An NDIS status, as in RNDIS.
        status: u32,
        /// Bytes of the value.
        bytes: u32,
    },
    /// SUB_CHANNEL, the reply.
    SubChannels {
        /// Success, or none are granted.
        status: Status,
        /// How many will be offered.
        count: u32,
    },
    /// SEND_INDIRECTION_TABLE: channel number by transmit hash modulo 16.
    IndirectionTable([u32; TABLE_ENTRIES]),
}

//! What goes over a virtual PCI bus's channel (PROTOCOL §10).
//!
//! Every message is an in-band packet that starts with its 32-bit type; a request that asks for a completion gets one
//! whose first 32 bits are a [`Status`]. [`MESSAGES`] lists them all. The structures beside it are the bytes;
//! [`HostMessage`] and [`GuestMessage`] take received bytes apart for the one side and the other.
//!
//! All integers are little-endian. Offsets are from the start of the message, type included.

#[cfg(test)]
mod bytes_tests;
mod decode;
mod reply;
mod structs;
#[cfg(test)]
mod tests;

pub use decode::{
    AssignedInterrupts, Description, Descriptions, GuestMessage, HostMessage, MessageError,
    encode_relations,
};
pub use reply::{assigned_of, requirements_of, resources_of, status_of};
pub use structs::*;

use vmbus::open_enum;

/// Upper half of every message type.
const BASE: u32 = 0x4249_0000;

open_enum! {
    /// Type of a message, at offset 0.
    pub struct MessageType(u32) {
        /// Host: every function on the bus, a full snapshot.
        BUS_RELATIONS = BASE,
        /// Guest: send a snapshot.
        QUERY_BUS_RELATIONS = BASE + 0x01,
        /// Host: look at this function again.
        INVALIDATE_DEVICE = BASE + 0x02,
        /// Host: look at the whole bus again.
        INVALIDATE_BUS = BASE + 0x03,
        /// Guest: a function's power state changed.
        DEVICE_POWER_STATE_CHANGE = BASE + 0x04,
        /// Guest: which BARs does this function have?
        QUERY_RESOURCE_REQUIREMENTS = BASE + 0x05,
        /// Guest: which resources does this function have? (older form)
        GET_RESOURCES = BASE + 0x06,
        /// Guest: the bus is in use; here is the MMIO window.
        FDO_D0_ENTRY = BASE + 0x07,
        /// Guest: the bus is no longer in use.
        FDO_D0_EXIT = BASE + 0x08,
        /// Guest: read a configuration block that the physical function's driver keeps.
        READ_BLOCK = BASE + 0x09,
        /// Guest: write such a block.
        WRITE_BLOCK = BASE + 0x0a,
        /// Host: please give this function up.
        EJECT = BASE + 0x0b,
        /// Host: could this function be stopped?
        QUERY_STOP = BASE + 0x0c,
        /// Host: use this function again.
        RE_ENABLE = BASE + 0x0d,
        /// Host: stopping failed, go on.
        QUERY_STOP_FAILED = BASE + 0x0e,
        /// Guest: the function that was to be ejected is given up.
        EJECT_COMPLETE = BASE + 0x0f,
        /// Guest: resources the function got, interrupts in form 1.
        ASSIGNED_RESOURCES = BASE + 0x10,
        /// Guest: the function's resources are given back.
        RELEASE_RESOURCES = BASE + 0x11,
        /// Host: these configuration blocks changed.
        INVALIDATE_BLOCK = BASE + 0x12,
        /// Guest: do you speak this version? The first packet after every open.
        QUERY_PROTOCOL_VERSION = BASE + 0x13,
        /// Guest: create an interrupt, form 1.
        CREATE_INTERRUPT = BASE + 0x14,
        /// Guest: delete an interrupt, form 1.
        DELETE_INTERRUPT = BASE + 0x15,
        /// Guest: resources the function got, interrupts in form 2.
        ASSIGNED_RESOURCES2 = BASE + 0x16,
        /// Guest: create an interrupt, form 2.
        CREATE_INTERRUPT2 = BASE + 0x17,
        /// Guest: delete an interrupt, form 2.
        DELETE_INTERRUPT2 = BASE + 0x18,
        /// Host: every function on the bus, with NUMA nodes.
        BUS_RELATIONS2 = BASE + 0x19,
        /// Guest: resources the function got, interrupts in form 3.
        ASSIGNED_RESOURCES3 = BASE + 0x1a,
        /// Guest: create an interrupt, form 3.
        CREATE_INTERRUPT3 = BASE + 0x1b,
        /// Guest: reset a function.
        RESET_DEVICE = BASE + 0x1c,
        /// Guest: commands for the security interface of confidential devices.
        TDISP = BASE + 0x1d,
    }
}

open_enum! {
    /// Version of the protocol: major in the upper, minor in the lower half.
    pub struct Version(u32) {
        /// Never offered by a guest of today.
        V1_0 = 0x1_0000,
        /// Windows 10.
        V1_1 = 0x1_0001,
        /// Windows 10 "RS1": interrupts for more than 64 processors.
        V1_2 = 0x1_0002,
        /// "Vibranium": BUS_RELATIONS2 with NUMA nodes.
        V1_3 = 0x1_0003,
        /// "Iron": interrupts with 32-bit vectors.
        V1_4 = 0x1_0004,
        /// Adds RESET_DEVICE.
        V1_5 = 0x1_0005,
        /// Newest known.
        V1_6 = 0x1_0006,
    }
}

open_enum! {
    /// Outcome of a request, at offset 0 of its completion. Negative as a signed number means failure.
    pub struct Status(u32) {
        /// Done.
        SUCCESS = 0,
        /// Another version of the protocol is spoken here.
        REVISION_MISMATCH = 0xc000_0059,
        /// Not done by this host.
        NOT_SUPPORTED = 0xc000_00bb,
        /// The request made no sense.
        BAD_DATA = 0xc000_090b,
    }
}

open_enum! {
    /// Power state of a function in DEVICE_POWER_STATE_CHANGE.
    pub struct PowerState(u32) {
        /// Working.
        D0 = 1,
        /// Off.
        D3 = 4,
    }
}

impl Status {
    /// Whether the request was refused or failed.
    #[must_use]
    pub const fn is_failure(self) -> bool {
        self.0 >> 31 != 0
    }
}

/// Who sends a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sender {
    /// The guest.
    Guest,
    /// The host.
    Host,
}

/// What is known of a message without looking at its bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MessageInfo {
    /// Its type.
    pub kind: MessageType,
    /// Who sends it.
    pub sender: Sender,
    /// First version that has it.
    pub since: Version,
    /// Fewest bytes it can have, type included.
    pub min_len: usize,
    /// Fewest bytes of its completion; 0 if it has none or one without content.
    pub reply_len: usize,
}

const fn guest(kind: MessageType, since: Version, min_len: usize, reply_len: usize) -> MessageInfo {
    MessageInfo { kind, sender: Sender::Guest, since, min_len, reply_len }
}

const fn host(kind: MessageType, since: Version, min_len: usize) -> MessageInfo {
    MessageInfo { kind, sender: Sender::Host, since, min_len, reply_len: 0 }
}

const BARE: usize = size_of::<Bare>();
const SLOTTED: usize = size_of::<Slotted>();
const STATUS: usize = size_of::<StatusReply>();

/// All messages, in the order of their numbers.
///
/// Lengths are what a receiver may insist on. Linux leaves out the reserved tail of interrupt forms 2 and 3, and
/// OpenVMM's guest the status of EJECT_COMPLETE, so these are shorter than the structures.
pub const MESSAGES: [MessageInfo; 30] = {
    use MessageType as T;
    use Version as V;
    [
        host(T::BUS_RELATIONS, V::V1_0, size_of::<RelationsHeader>()),
        guest(T::QUERY_BUS_RELATIONS, V::V1_0, BARE, 0),
        host(T::INVALIDATE_DEVICE, V::V1_0, SLOTTED),
        host(T::INVALIDATE_BUS, V::V1_0, BARE),
        guest(T::DEVICE_POWER_STATE_CHANGE, V::V1_0, size_of::<PowerStateChange>(), STATUS),
        guest(
            T::QUERY_RESOURCE_REQUIREMENTS,
            V::V1_0,
            SLOTTED,
            size_of::<ResourceRequirementsReply>(),
        ),
        guest(T::GET_RESOURCES, V::V1_0, SLOTTED, size_of::<ResourcesReply>()),
        guest(T::FDO_D0_ENTRY, V::V1_0, size_of::<D0Entry>(), STATUS),
        guest(T::FDO_D0_EXIT, V::V1_0, BARE, STATUS),
        guest(T::READ_BLOCK, V::V1_0, size_of::<Block>(), STATUS),
        guest(T::WRITE_BLOCK, V::V1_0, size_of::<Block>(), STATUS),
        host(T::EJECT, V::V1_0, SLOTTED),
        host(T::QUERY_STOP, V::V1_0, SLOTTED),
        host(T::RE_ENABLE, V::V1_0, SLOTTED),
        host(T::QUERY_STOP_FAILED, V::V1_0, SLOTTED),
        guest(T::EJECT_COMPLETE, V::V1_0, SLOTTED, 0),
        guest(T::ASSIGNED_RESOURCES, V::V1_0, size_of::<AssignedResources>(), STATUS),
        guest(T::RELEASE_RESOURCES, V::V1_0, SLOTTED, 0),
        host(T::INVALIDATE_BLOCK, V::V1_0, size_of::<InvalidateBlock>()),
        guest(
            T::QUERY_PROTOCOL_VERSION,
            V::V1_0,
            size_of::<QueryVersion>(),
            size_of::<VersionReply>(),
        ),
        guest(
            T::CREATE_INTERRUPT,
            V::V1_0,
            SLOTTED + size_of::<Msi1>(),
            size_of::<CreateInterruptReply>(),
        ),
        guest(T::DELETE_INTERRUPT, V::V1_0, size_of::<DeleteInterrupt>(), 0),
        guest(T::ASSIGNED_RESOURCES2, V::V1_2, size_of::<AssignedResources>(), STATUS),
        guest(
            T::CREATE_INTERRUPT2,
            V::V1_2,
            SLOTTED + MSI2_SHORT,
            size_of::<CreateInterruptReply>(),
        ),
        guest(T::DELETE_INTERRUPT2, V::V1_2, size_of::<DeleteInterrupt>(), 0),
        host(T::BUS_RELATIONS2, V::V1_3, size_of::<RelationsHeader>()),
        guest(T::ASSIGNED_RESOURCES3, V::V1_4, size_of::<AssignedResources>(), STATUS),
        guest(
            T::CREATE_INTERRUPT3,
            V::V1_4,
            SLOTTED + MSI3_SHORT,
            size_of::<CreateInterruptReply>(),
        ),
        guest(T::RESET_DEVICE, V::V1_5, SLOTTED, STATUS),
        guest(T::TDISP, V::V1_0, size_of::<Tdisp>(), STATUS),
    ]
};

/// The table's line for a message type, if it is one of the protocol.
#[must_use]
pub fn info(kind: MessageType) -> Option<&'static MessageInfo> {
    let index = kind.0.checked_sub(BASE)?;
    MESSAGES.get(usize::try_from(index).ok()?)
}

//! RNDIS: requests, indications and frames of a network card, whatever carries them (PROTOCOL §9).
//!
//! [`GuestMessage`] and [`HostMessage`] are the control messages, each with encoder and decoder for both ends.
//! [`packet`] is the header of frames. Nothing here knows of channels, sections or transfer pages: bytes in, bytes out.
//!
//! All offsets inside a message count from its byte 8; the types of this module hold them as they are on the wire only
//! in [`structs`].

mod control;
pub mod object;
pub mod offload;
pub mod oid;
pub mod packet;
pub mod scaling;
pub mod structs;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod wire_tests;

use vmbus::open_enum;

pub use control::{GuestMessage, HostMessage, InitializeComplete};
pub use oid::{Oid, PacketFilter};

/// Offsets in a message count from here.
pub const BASE: usize = 8;
/// Bytes of a message with nothing but its type and length.
pub const HEADER: usize = 8;
/// The major version that everybody speaks.
pub const MAJOR_VERSION: u32 = 1;
/// Most bytes that a guest takes in one message, as guests say by habit.
pub const MAX_TRANSFER: u32 = 0x4000;

open_enum! {
    /// Type of a message.
    pub struct MessageType(u32) {
        /// Both: a frame.
        PACKET = 1,
        /// Guest: let us begin.
        INITIALIZE = 2,
        /// Guest: that is all. No reply.
        HALT = 3,
        /// Guest: what is the value of this object?
        QUERY = 4,
        /// Guest: this is the value of this object.
        SET = 5,
        /// Guest: start anew.
        RESET = 6,
        /// Host: something has changed.
        INDICATE_STATUS = 7,
        /// Either: still there?
        KEEPALIVE = 8,
        /// Host: what it can do.
        INITIALIZE_CMPLT = 0x8000_0002,
        /// Host: the value.
        QUERY_CMPLT = 0x8000_0004,
        /// Host: set.
        SET_CMPLT = 0x8000_0005,
        /// Host: anew.
        RESET_CMPLT = 0x8000_0006,
        /// Either: still here.
        KEEPALIVE_CMPLT = 0x8000_0008,
    }
}

open_enum! {
    /// What became of a request, or what an indication is about.
    pub struct Status(u32) {
        /// Done.
        SUCCESS = 0,
        /// To be done.
        PENDING = 0x103,
        /// Not done.
        FAILURE = 0xc000_0001,
        /// No memory or the like.
        RESOURCES = 0xc000_009a,
        /// Not a thing that this host does.
        NOT_SUPPORTED = 0xc000_00bb,
        /// Not a version that this host knows.
        BAD_VERSION = 0xc001_0004,
        /// The value makes no sense.
        INVALID_DATA = 0xc001_0015,
        /// The value is too short.
        BUFFER_TOO_SHORT = 0xc001_0016,
        /// No such object.
        INVALID_OID = 0xc001_0017,
        /// Indication: the link is up.
        MEDIA_CONNECT = 0x4001_000b,
        /// Indication: the link is down.
        MEDIA_DISCONNECT = 0x4001_000c,
        /// Indication: the link has another speed.
        LINK_SPEED_CHANGE = 0x4001_0013,
        /// Indication: another network; a guest behaves as if the link had gone down and up.
        NETWORK_CHANGE = 0x4001_0018,
        /// Indication: other offloads are in use now.
        OFFLOAD_CURRENT_CONFIG = 0x4002_0006,
    }
}

/// A message that cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// Not even type and length.
    #[error("RNDIS message of {0} bytes: expected at least {HEADER}")]
    NoHeader(usize),
    /// A message type that this side never gets: unknown, or one that it sends itself.
    #[error("RNDIS message {0:?}: expected one that this side receives")]
    Unexpected(MessageType),
    /// The message says that it is longer than what came, or shorter than its fields.
    #[error("RNDIS {kind:?} says it has {length} bytes: expected {least} to the {found} that came")]
    Length {
        /// Type of the message.
        kind: MessageType,
        /// Length that it gives itself.
        length: u32,
        /// Bytes of its fields.
        least: usize,
        /// Bytes there.
        found: usize,
    },
    /// A part of the message lies outside it.
    #[error(
        "RNDIS {kind:?}: {part} of {len} bytes at offset {offset} (from byte 8), expected inside a message of {found} bytes"
    )]
    Outside {
        /// Type of the message.
        kind: MessageType,
        /// What it is.
        part: &'static str,
        /// Offset as on the wire.
        offset: u32,
        /// Length in bytes.
        len: u32,
        /// Bytes there.
        found: usize,
    },
    /// A field that no one uses is in use.
    #[error("RNDIS PACKET with {field} = {value}: expected 0")]
    NotZero {
        /// The field.
        field: &'static str,
        /// Its value.
        value: u32,
    },
    /// A packet without a frame.
    #[error("RNDIS PACKET without data: expected at least one byte")]
    NoData,
}

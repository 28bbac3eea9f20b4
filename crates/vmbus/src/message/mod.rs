//! Control messages: what guest and host say to each other about channels.
//!
//! One table holds number, name, direction, first version and size of every message; parser, names and compile-time
//! checks all come from it. [`Message::parse`] accepts messages longer than defined, as both sides must, and hands the
//! rest out; it refuses those that are too short, that the agreed version does not know or that come from the wrong side.

mod body;
mod version;

#[cfg(test)]
mod bytes_tests;
#[cfg(test)]
mod tests;

use core::fmt;
use core::ops::Deref;

pub use body::*;
pub use version::{Features, OfferFlags, Version};
use zerocopy::little_endian::U32;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::{ConnectionId, Guid};

/// Bytes of the largest control message.
pub const MAX_MESSAGE: usize = 240;
/// Bytes of the header of every control message.
pub const HEADER_SIZE: usize = size_of::<Header>();
/// The highest channel id: one bit of the 256 bytes of event flags each, bit 0 unused.
pub const MAX_CHANNEL_ID: u32 = 2047;
/// The interrupt source that VMBus uses.
pub const VMBUS_SINT: u8 = 2;
/// Where all messages go before version 5.0.
pub const LEGACY_CONNECTION: ConnectionId = ConnectionId(1);
/// Where `INITIATE_CONTACT` goes from version 5.0 on.
pub const CONTACT_CONNECTION: ConnectionId = ConnectionId(4);
/// Where a guest in [VTL 2](PARAVISOR_VTL) asks for a version from 5.0 on, before it tries [`CONTACT_CONNECTION`]; messages are
/// redirected between the trust levels of one machine there. Linux tries it in that level alone.
pub const REDIRECTED_CONNECTION: ConnectionId = ConnectionId(0x0080_0074);
/// The trust level in which a paravisor runs.
pub const PARAVISOR_VTL: u8 = 2;
/// The status by which hosts refuse a request (`E_UNEXPECTED`).
pub const STATUS_REFUSED: u32 = 0x8000_ffff;

/// Offers of synthetic network cards.
pub const NIC_CLASS: Guid = Guid::from_u128(0xf8615163_df3e_46c5_913f_f2d2f965ed0e);
/// Offers of PCI buses with functions assigned to the guest.
pub const VPCI_CLASS: Guid = Guid::from_u128(0x44c4f61d_4444_4400_9d52_802e27ede19f);

/// The start of every control message.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct Header {
    /// 0: the number of the message.
    pub kind: U32,
    /// 4: padding, 0.
    pub reserved: U32,
}

/// Who sends a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The guest, to the host.
    Guest,
    /// The host, to the guest.
    Host,
}

impl fmt::Display for Side {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Guest => "guest",
            Self::Host => "host",
        })
    }
}

/// One row of the table of messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Spec {
    /// Number.
    pub kind: MessageType,
    /// Who sends it.
    pub sender: Side,
    /// The first version that knows it.
    pub since: Version,
    /// Its smallest size, header included.
    pub size: usize,
}

/// The fields of a control message.
pub trait Body: FromBytes + IntoBytes + Immutable + KnownLayout + Unaligned {
    /// The message they belong to.
    const KIND: MessageType;
}

/// Why bytes are not a control message that may come now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MessageError {
    /// Longer than any message.
    #[error("a control message has at most 240 bytes, this one has {len}")]
    TooLong {
        /// Its length.
        len: usize,
    },
    /// No room for the header.
    #[error("a control message has at least 8 bytes, this one has {len}")]
    NoHeader {
        /// Its length.
        len: usize,
    },
    /// A number that stands for no message.
    #[error("there is no control message {kind}")]
    Unknown {
        /// The number.
        kind: MessageType,
    },
    /// Shorter than its fields.
    #[error("{kind} has at least {need} bytes, this one has {len}")]
    TooShort {
        /// The message.
        kind: MessageType,
        /// Its length.
        len: usize,
        /// The bytes its fields take.
        need: usize,
    },
    /// From the wrong side.
    #[error("{kind} was sent by the {sender}, which never sends it")]
    WrongSender {
        /// The message.
        kind: MessageType,
        /// Who sent it.
        sender: Side,
    },
    /// Not part of the agreed version.
    #[error("{kind} exists since version {since}, and the agreed version is {version}")]
    TooNew {
        /// The message.
        kind: MessageType,
        /// The first version that knows it.
        since: Version,
        /// The agreed version.
        version: Version,
    },
}

macro_rules! messages {
    ($($number:literal $kind:ident $name:ident $sender:ident $since:ident $size:literal)*) => {
        crate::open_enum! {
            /// The number of a control message.
            pub struct MessageType(u32) {
                $(#[doc = concat!("[`", stringify!($name), "`].")] $kind = $number,)*
            }
        }

        /// All control messages, by number.
        pub const TABLE: &[Spec] = &[
            $(Spec {
                kind: MessageType::$kind,
                sender: Side::$sender,
                since: Version::$since,
                size: $size,
            },)*
        ];

        $(
            const _: () = assert!(size_of::<$name>() + HEADER_SIZE == $size);
            impl Body for $name {
                const KIND: MessageType = MessageType::$kind;
            }
        )*

        /// A control message, its fields still where they were received.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Message<'a> {
            $(#[doc = concat!("Message ", stringify!($number), ".")] $name(&'a $name),)*
        }

        impl<'a> Message<'a> {
            /// The number of this message.
            #[must_use]
            pub fn kind(&self) -> MessageType {
                match self {
                    $(Self::$name(_) => MessageType::$kind,)*
                }
            }

            fn split(spec: &Spec, payload: &'a [u8]) -> Result<(Self, &'a [u8]), MessageError> {
                let short =
                    MessageError::TooShort { kind: spec.kind, len: payload.len(), need: spec.size };
                let rest = payload.get(HEADER_SIZE..).ok_or(short)?;
                match spec.kind {
                    $(MessageType::$kind => {
                        let (body, rest) = $name::ref_from_prefix(rest).map_err(|_| short)?;
                        Ok((Self::$name(body), rest))
                    })*
                    kind => Err(MessageError::Unknown { kind }),
                }
            }
        }
    };
}

messages! {
    1 OFFER_CHANNEL OfferChannel Host ANY 196
    2 RESCIND_CHANNEL_OFFER RescindOffer Host ANY 12
    3 REQUEST_OFFERS RequestOffers Guest ANY 8
    4 ALL_OFFERS_DELIVERED AllOffersDelivered Host ANY 8
    5 OPEN_CHANNEL OpenChannel Guest ANY 148
    6 OPEN_CHANNEL_RESULT OpenResult Host ANY 20
    7 CLOSE_CHANNEL CloseChannel Guest ANY 12
    8 GPADL_HEADER GpadlHeader Guest ANY 20
    9 GPADL_BODY GpadlBody Guest ANY 16
    10 GPADL_CREATED GpadlCreated Host ANY 20
    11 GPADL_TEARDOWN GpadlTeardown Guest ANY 16
    12 GPADL_TORNDOWN GpadlTorndown Host ANY 12
    13 RELID_RELEASED ReleaseChannel Guest ANY 12
    14 INITIATE_CONTACT InitiateContact Guest ANY 40
    15 VERSION_RESPONSE VersionResponse Host ANY 16
    16 UNLOAD Unload Guest V1_1 8
    17 UNLOAD_RESPONSE UnloadResponse Host V1_1 8
    18 OPEN_RESERVED_CHANNEL OpenReserved Guest V4_0 28
    19 CLOSE_RESERVED_CHANNEL CloseReserved Guest V4_0 20
    20 CLOSE_RESERVED_RESPONSE CloseReservedResponse Host V4_0 12
    21 TL_CONNECT_REQUEST SocketConnect Guest V4_0 40
    22 MODIFY_CHANNEL ModifyChannel Guest V4_1 16
    23 TL_CONNECT_RESULT SocketConnectResult Host V4_1 44
    24 MODIFY_CHANNEL_RESPONSE ModifyChannelResponse Host V5_3 16
    25 MODIFY_CONNECTION ModifyConnection Guest V6_0 24
    26 MODIFY_CONNECTION_RESPONSE ModifyConnectionResponse Host V6_0 9
    27 PAUSE Pause Guest V6_0 8
    28 PAUSE_RESPONSE PauseResponse Host V6_0 8
    29 RESUME Resume Guest V6_0 8
}

// The longer forms of messages of version 6.0: with a client id, with features, with monitor pages, with signals.
const _: () = {
    assert!(TABLE[13].size + size_of::<WireGuid>() == 56);
    assert!(TABLE[14].size + size_of::<VersionFeatures>() == 20);
    assert!(TABLE[14].size + size_of::<VersionFeatures>() + size_of::<VersionMonitorPages>() == 40);
    assert!(TABLE[4].size + size_of::<OpenSignal>() == 156);
};

impl MessageType {
    /// The row of this message in the [`TABLE`].
    #[must_use]
    pub fn spec(self) -> Option<&'static Spec> {
        TABLE.get(usize::try_from(self.0).ok()?.checked_sub(1)?)
    }
}

impl<'a> Message<'a> {
    /// Parses a message from `sender` on a connection of `version`; returns it and the bytes behind its fields.
    ///
    /// Before a version is agreed on, pass [`Version::ANY`].
    ///
    /// # Errors
    /// [`MessageError`]; none of them is a reason to give the connection up.
    pub fn parse(
        payload: &'a [u8],
        sender: Side,
        version: Version,
    ) -> Result<(Self, &'a [u8]), MessageError> {
        let len = payload.len();
        if len > MAX_MESSAGE {
            return Err(MessageError::TooLong { len });
        }
        let (header, _) =
            Header::ref_from_prefix(payload).map_err(|_| MessageError::NoHeader { len })?;
        let kind = MessageType(header.kind.get());
        let spec = kind.spec().ok_or(MessageError::Unknown { kind })?;
        if spec.sender != sender {
            return Err(MessageError::WrongSender { kind, sender });
        }
        if spec.since > version {
            return Err(MessageError::TooNew { kind, since: spec.since, version });
        }
        Self::split(spec, payload)
    }
}

/// The bytes of one control message.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Payload {
    len: u8,
    bytes: [u8; MAX_MESSAGE],
}

impl Payload {
    /// A message with these fields.
    #[must_use]
    pub fn new<B: Body>(body: &B) -> Self {
        const { assert!(HEADER_SIZE + size_of::<B>() <= MAX_MESSAGE) }
        let mut payload = Self { len: 0, bytes: [0; MAX_MESSAGE] };
        payload.append(&B::KIND.0.to_le_bytes());
        payload.append(&[0; 4]);
        payload.append(body.as_bytes());
        payload
    }

    /// These bytes, whatever they are, as far as there is room.
    #[must_use]
    pub fn from_bytes(bytes: &[u8]) -> Self {
        let mut payload = Self { len: 0, bytes: [0; MAX_MESSAGE] };
        payload.append(bytes);
        payload
    }

    /// The same message with `data` behind its fields, as far as there is room.
    #[must_use]
    pub fn with(mut self, data: &[u8]) -> Self {
        self.append(data);
        self
    }

    /// Bytes that can still be appended.
    #[must_use]
    pub fn room(&self) -> usize {
        MAX_MESSAGE - usize::from(self.len)
    }

    /// Number of the message.
    #[must_use]
    pub fn kind(&self) -> MessageType {
        let [a, b, c, d, ..] = self.bytes;
        MessageType(u32::from_le_bytes([a, b, c, d]))
    }

    /// The fields, if it is the message that they belong to and not cut short.
    #[must_use]
    pub fn body<B: Body>(&self) -> Option<&B> {
        let fields = self.get(HEADER_SIZE..).filter(|_| self.kind() == B::KIND)?;
        B::ref_from_prefix(fields).ok().map(|(body, _)| body)
    }

    fn append(&mut self, data: &[u8]) {
        let start = usize::from(self.len);
        for (slot, byte) in self.bytes.iter_mut().skip(start).zip(data) {
            *slot = *byte;
        }
        // 240 fits in a byte.
        self.len = (start + data.len()).min(MAX_MESSAGE) as u8;
    }
}

impl Deref for Payload {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.bytes.get(..usize::from(self.len)).unwrap_or_default()
    }
}

impl AsRef<[u8]> for Payload {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl fmt::Debug for Payload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}[{}]", self.kind(), self.len)
    }
}

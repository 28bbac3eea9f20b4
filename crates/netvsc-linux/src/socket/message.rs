//! The bytes on the socket.

use std::collections::VecDeque;

use bitflags::bitflags;
use vmbus::{Guid, open_enum};
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Most bytes of a message, header included.
pub const MAX_MESSAGE: usize = 64;
/// Most descriptors that go with a message.
pub const MAX_DESCRIPTORS: usize = 3;
/// Bytes of a header: kind and size of what follows, 32 bits each.
const HEADER: usize = 8;
/// First word of a HELLO: "netvsc" and two zeros.
const MAGIC: u64 = u64::from_le_bytes(*b"netvsc\0\0");

open_enum! {
    /// What a message is. Those of a host have bit 8 set.
    pub struct MessageKind(u32) {
        /// The guest's first.
        HELLO = 1,
        /// The guest's memory and doorbells.
        SHARE = 2,
        /// The guest wants to know what became of its frames.
        ASK_ACCOUNT = 3,
        /// The host's answer to HELLO.
        WELCOME = 0x101,
        /// The host has taken over what was shared.
        READY = 0x102,
        /// Registers of a VF's ports.
        WINDOW = 0x103,
        /// Registers that are no longer there.
        WINDOW_GONE = 0x104,
        /// What became of the frames.
        ACCOUNT = 0x105,
        /// The host does not want this guest; its last message.
        REFUSED = 0x106,
    }
}

open_enum! {
    /// Why a host does not want a guest.
    pub struct Reason(u32) {
        /// No version in common; the detail is the host's highest.
        VERSION = 1,
        /// Another guest is there.
        BUSY = 2,
        /// The memory or a doorbell cannot be used.
        SHARED = 3,
        /// The guest broke the protocol.
        PROTOCOL = 4,
        /// The guest took too long.
        LATE = 5,
        /// Neither root nor the user that the host runs as.
        USER = 6,
    }
}

/// A version of the protocol on the socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version(pub u16);

impl Version {
    /// The first.
    pub const V1: Self = Self(1);
}

impl std::fmt::Display for Version {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

bitflags! {
    /// What both sides have to know to use it.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct Features: u64 {
        /// The registers of simulated VFs are shown to the guest.
        const WINDOWS = 1;
    }
}

/// What became of a guest's frames, as the host counted: over all its NICs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Account {
    /// Frames of the guest that arrived at the switch.
    pub arrived: u64,
    /// Frames that the switch handed to the guest.
    pub given: u64,
    /// Frames that the switch dropped.
    pub dropped: u64,
    /// Frames of the guest that went down with VFs that were torn away.
    pub sent_surprise: u64,
    /// Frames for the guest that did.
    pub received_surprise: u64,
    /// Frames of the guest that went down with VFs that went in order.
    pub sent_orderly: u64,
    /// Frames for the guest that did.
    pub received_orderly: u64,
}

/// A message without its descriptors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Message {
    /// The guest's first.
    Hello {
        /// Lowest version that it speaks.
        lowest: Version,
        /// Highest version that it speaks.
        highest: Version,
        /// What it knows.
        features: Features,
    },
    /// The guest's memory. With it go three descriptors: the memory, the host's doorbell, the guest's.
    Share {
        /// Pages of 4,096 bytes.
        pages: u64,
        /// The page frame number of the first; the others follow.
        first: u64,
    },
    /// A question, answered by [`Message::Account`].
    AskAccount,
    /// The host's answer to [`Message::Hello`].
    Welcome {
        /// The version that is spoken from here on.
        version: Version,
        /// The features that are used.
        features: Features,
    },
    /// The host has taken over what was shared; talk goes through it from here on. With it goes one descriptor: the registers of
    /// VFs.
    Ready {
        /// Pages of registers.
        windows: u32,
    },
    /// The ports of a bus's function have their registers on these pages. Comes before the bus is offered.
    Window {
        /// Instance GUID of the bus.
        instance: Guid,
        /// Page of the first port.
        first: u32,
        /// Number of ports, one page each.
        ports: u32,
    },
    /// The registers of a bus's function are no longer there.
    WindowGone {
        /// Instance GUID of the bus.
        instance: Guid,
    },
    /// An answer.
    Account(Account),
    /// The host's last message.
    Refused {
        /// Why.
        why: Reason,
        /// More about it, or 0.
        detail: u32,
    },
}

/// Bytes that make no message. The connection ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// A kind that there is none of.
    #[error("a message of kind {0}, which there is none of")]
    Kind(MessageKind),
    /// A size that messages of this kind do not have.
    #[error("{kind} has {expected} bytes after its header, this one says {got}")]
    Size {
        /// What it is.
        kind: MessageKind,
        /// The size that it has.
        expected: usize,
        /// The size that it says.
        got: u32,
    },
    /// A HELLO of something else.
    #[error("HELLO starts with `netvsc`, this one with {0:#018x}")]
    Magic(u64),
    /// Versions the wrong way round.
    #[error("HELLO offers versions {lowest} to {highest}: expected a range")]
    Versions {
        /// Said to be the lowest.
        lowest: Version,
        /// Said to be the highest.
        highest: Version,
    },
    /// Too few or too many descriptors with a message.
    #[error("{kind} comes with {expected} descriptors, this one with {got}")]
    Descriptors {
        /// What it is.
        kind: MessageKind,
        /// How many there should be.
        expected: usize,
        /// How many there are.
        got: usize,
    },
    /// More descriptors than any message has.
    #[error("{0} descriptors wait for their message: expected at most {MAX_DESCRIPTORS}")]
    Flood(usize),
}

macro_rules! wire {
    ($(#[$doc:meta])* struct $name:ident: $size:literal { $($field:ident: $type:ty,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
        #[repr(C)]
        struct $name { $($field: $type,)* }
        const _: () = assert!(size_of::<$name>() == $size && HEADER + $size <= MAX_MESSAGE);
    };
}

wire! {
    /// Magic (0), lowest (8) and highest version (10), reserved (12), features (16).
    struct HelloWire: 24 { magic: U64, lowest: U16, highest: U16, reserved: U32, features: U64, }
}
wire! {
    /// Pages (0), first page frame number (8).
    struct ShareWire: 16 { pages: U64, first: U64, }
}
wire! {
    /// Version (0), reserved (2), features (8).
    struct WelcomeWire: 16 { version: U16, reserved: [u8; 6], features: U64, }
}
wire! {
    /// Pages of registers (0), reserved (4).
    struct ReadyWire: 8 { windows: U32, reserved: U32, }
}
wire! {
    /// Instance GUID (0), first page (16), ports (20).
    struct WindowWire: 24 { instance: [u8; 16], first: U32, ports: U32, }
}
wire! {
    /// Instance GUID (0).
    struct WindowGoneWire: 16 { instance: [u8; 16], }
}
wire! {
    /// The seven counters in the order of [`Account`].
    struct AccountWire: 56 { counters: [U64; 7], }
}
wire! {
    /// Reason (0), detail (4).
    struct RefusedWire: 8 { why: U32, detail: U32, }
}

impl MessageKind {
    /// Bytes after the header, and descriptors, of messages of this kind.
    fn shape(self) -> Option<(usize, usize)> {
        Some(match self {
            Self::HELLO => (size_of::<HelloWire>(), 0),
            Self::SHARE => (size_of::<ShareWire>(), 3),
            Self::ASK_ACCOUNT => (0, 0),
            Self::WELCOME => (size_of::<WelcomeWire>(), 0),
            Self::READY => (size_of::<ReadyWire>(), 1),
            Self::WINDOW => (size_of::<WindowWire>(), 0),
            Self::WINDOW_GONE => (size_of::<WindowGoneWire>(), 0),
            Self::ACCOUNT => (size_of::<AccountWire>(), 0),
            Self::REFUSED => (size_of::<RefusedWire>(), 0),
            _ => return None,
        })
    }
}

impl Message {
    /// What it is.
    #[must_use]
    pub const fn kind(&self) -> MessageKind {
        match self {
            Self::Hello { .. } => MessageKind::HELLO,
            Self::Share { .. } => MessageKind::SHARE,
            Self::AskAccount => MessageKind::ASK_ACCOUNT,
            Self::Welcome { .. } => MessageKind::WELCOME,
            Self::Ready { .. } => MessageKind::READY,
            Self::Window { .. } => MessageKind::WINDOW,
            Self::WindowGone { .. } => MessageKind::WINDOW_GONE,
            Self::Account(_) => MessageKind::ACCOUNT,
            Self::Refused { .. } => MessageKind::REFUSED,
        }
    }

    /// How many descriptors go with it.
    #[must_use]
    pub fn descriptors(&self) -> usize {
        self.kind().shape().map_or(0, |(_, descriptors)| descriptors)
    }

    /// Its bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = vec![0; HEADER];
        match *self {
            Self::Hello { lowest, highest, features } => bytes.extend(
                HelloWire {
                    magic: U64::new(MAGIC),
                    lowest: U16::new(lowest.0),
                    highest: U16::new(highest.0),
                    reserved: U32::new(0),
                    features: U64::new(features.bits()),
                }
                .as_bytes(),
            ),
            Self::Share { pages, first } => bytes
                .extend(ShareWire { pages: U64::new(pages), first: U64::new(first) }.as_bytes()),
            Self::AskAccount => {}
            Self::Welcome { version, features } => bytes.extend(
                WelcomeWire {
                    version: U16::new(version.0),
                    reserved: [0; 6],
                    features: U64::new(features.bits()),
                }
                .as_bytes(),
            ),
            Self::Ready { windows } => bytes
                .extend(ReadyWire { windows: U32::new(windows), reserved: U32::new(0) }.as_bytes()),
            Self::Window { instance, first, ports } => bytes.extend(
                WindowWire {
                    instance: *instance.as_bytes(),
                    first: U32::new(first),
                    ports: U32::new(ports),
                }
                .as_bytes(),
            ),
            Self::WindowGone { instance } => {
                bytes.extend(WindowGoneWire { instance: *instance.as_bytes() }.as_bytes());
            }
            Self::Account(account) => {
                bytes.extend(AccountWire { counters: account.counters().map(U64::new) }.as_bytes());
            }
            Self::Refused { why, detail } => bytes
                .extend(RefusedWire { why: U32::new(why.0), detail: U32::new(detail) }.as_bytes()),
        }
        let size = (bytes.len() - HEADER) as u32;
        bytes[..4].copy_from_slice(&self.kind().0.to_le_bytes());
        bytes[4..HEADER].copy_from_slice(&size.to_le_bytes());
        bytes
    }

    /// Reads what follows a header. `body` has the size of its kind.
    fn decode(kind: MessageKind, body: &[u8]) -> Result<Self, WireError> {
        let size = WireError::Size { kind, expected: 0, got: body.len() as u32 };
        Ok(match kind {
            MessageKind::HELLO => {
                let hello: HelloWire = read(body).ok_or(size)?;
                if hello.magic.get() != MAGIC {
                    return Err(WireError::Magic(hello.magic.get()));
                }
                let (lowest, highest) = (Version(hello.lowest.get()), Version(hello.highest.get()));
                if lowest > highest {
                    return Err(WireError::Versions { lowest, highest });
                }
                // Features that only a newer guest knows are not used with it.
                let features = Features::from_bits_truncate(hello.features.get());
                Self::Hello { lowest, highest, features }
            }
            MessageKind::SHARE => {
                let share: ShareWire = read(body).ok_or(size)?;
                Self::Share { pages: share.pages.get(), first: share.first.get() }
            }
            MessageKind::ASK_ACCOUNT => Self::AskAccount,
            MessageKind::WELCOME => {
                let welcome: WelcomeWire = read(body).ok_or(size)?;
                // All bits are kept: a host that chooses what was not offered has to be found out.
                let features = Features::from_bits_retain(welcome.features.get());
                Self::Welcome { version: Version(welcome.version.get()), features }
            }
            MessageKind::READY => {
                let ready: ReadyWire = read(body).ok_or(size)?;
                Self::Ready { windows: ready.windows.get() }
            }
            MessageKind::WINDOW => {
                let window: WindowWire = read(body).ok_or(size)?;
                let instance = Guid::from_bytes(window.instance);
                let (first, ports) = (window.first.get(), window.ports.get());
                Self::Window { instance, first, ports }
            }
            MessageKind::WINDOW_GONE => {
                let gone: WindowGoneWire = read(body).ok_or(size)?;
                Self::WindowGone { instance: Guid::from_bytes(gone.instance) }
            }
            MessageKind::ACCOUNT => {
                let account: AccountWire = read(body).ok_or(size)?;
                Self::Account(Account::from_counters(account.counters.map(U64::get)))
            }
            MessageKind::REFUSED => {
                let refused: RefusedWire = read(body).ok_or(size)?;
                Self::Refused { why: Reason(refused.why.get()), detail: refused.detail.get() }
            }
            kind => return Err(WireError::Kind(kind)),
        })
    }
}

impl Account {
    const fn counters(&self) -> [u64; 7] {
        [
            self.arrived,
            self.given,
            self.dropped,
            self.sent_surprise,
            self.received_surprise,
            self.sent_orderly,
            self.received_orderly,
        ]
    }

    const fn from_counters(counters: [u64; 7]) -> Self {
        let [
            arrived,
            given,
            dropped,
            sent_surprise,
            received_surprise,
            sent_orderly,
            received_orderly,
        ] = counters;
        Self {
            arrived,
            given,
            dropped,
            sent_surprise,
            received_surprise,
            sent_orderly,
            received_orderly,
        }
    }
}

fn read<T: FromBytes>(body: &[u8]) -> Option<T> {
    T::read_from_bytes(body).ok()
}

/// Takes a stream of bytes and descriptors apart into messages. `F` is a descriptor.
///
/// It never holds more than a message's bytes and descriptors beyond what it was handed last.
#[derive(Debug)]
pub struct Decoder<F> {
    bytes: Vec<u8>,
    descriptors: VecDeque<F>,
}

impl<F> Default for Decoder<F> {
    fn default() -> Self {
        Self { bytes: Vec::new(), descriptors: VecDeque::new() }
    }
}

impl<F> Decoder<F> {
    /// Takes what was received together. Call [`Decoder::next_message`] until it has no more before the next.
    pub fn push(&mut self, bytes: &[u8], descriptors: impl IntoIterator<Item = F>) {
        self.bytes.extend_from_slice(bytes);
        self.descriptors.extend(descriptors);
    }

    /// The next message with its descriptors, if it is there in full.
    ///
    /// # Errors
    /// [`WireError`]; what comes after makes no sense then.
    pub fn next_message(&mut self) -> Result<Option<(Message, Vec<F>)>, WireError> {
        let waiting = self.descriptors.len();
        if waiting > MAX_DESCRIPTORS {
            return Err(WireError::Flood(waiting));
        }
        let Some((&[a, b, c, d, e, f, g, h], rest)) = self.bytes.split_first_chunk::<HEADER>()
        else {
            return Ok(None);
        };
        let kind = MessageKind(u32::from_le_bytes([a, b, c, d]));
        let got = u32::from_le_bytes([e, f, g, h]);
        let (expected, descriptors) = kind.shape().ok_or(WireError::Kind(kind))?;
        if usize::try_from(got) != Ok(expected) {
            return Err(WireError::Size { kind, expected, got });
        }
        let Some(body) = rest.get(..expected) else { return Ok(None) };
        let message = Message::decode(kind, body)?;
        self.bytes.drain(..HEADER + expected);
        // Descriptors come with the first byte of their message at the latest; those of the next one may be here already.
        if waiting < descriptors || (self.bytes.is_empty() && waiting > descriptors) {
            return Err(WireError::Descriptors { kind, expected: descriptors, got: waiting });
        }
        Ok(Some((message, self.descriptors.drain(..descriptors).collect())))
    }
}

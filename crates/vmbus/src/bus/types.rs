//! What goes in and out of the bus machine.

use alloc::vec::Vec;
use core::time::Duration;

use super::PostStatus;
use crate::gpadl::EncodeError;
use crate::memory::SharedPages;
use crate::message::{
    Features, MessageError, MessageType, OfferChannel, OfferFlags, Payload, Version,
};
use crate::{ChannelId, ConnectionId, GpadlId, Guid};

/// How a guest brings its bus up.
#[derive(Clone, Debug)]
pub struct BusConfig {
    /// Versions to ask for, in this order; newest first.
    pub versions: Vec<Version>,
    /// Virtual processor that gets the host's control messages.
    pub target_vp: u32,
    /// After how long a missing answer is reported. The wait itself goes on.
    pub deadline: Duration,
    /// Id of the first GPADL; the following ones count up.
    pub first_gpadl: GpadlId,
    /// What is asked for with version 6.0; older versions have none of it.
    pub features: Features,
    /// Who the guest says it is, with [`Features::CLIENT_ID`].
    pub client_id: Guid,
    /// Two pages for signals without hypercalls, the one from host to guest first; told to the host at contact.
    pub monitor_pages: Option<SharedPages>,
    /// The guest is isolated from its host: versions before 5.2 are not asked for, and the host is told of no memory
    /// that was not [revealed](super::Bus::reveal), the monitor pages included.
    pub isolated: bool,
    /// The virtual trust level that the guest runs in, which versions from 5.1 on are told of. A guest in
    /// [VTL 2](crate::message::PARAVISOR_VTL) makes contact on the connection for redirected messages
    /// ([`REDIRECTED_CONNECTION`](crate::message::REDIRECTED_CONNECTION)) where there is one.
    pub vtl: u8,
}

/// How a channel is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OpenOptions {
    /// Number of pages before the ring from host to guest.
    pub downstream_page: u32,
    /// Virtual processor that gets the channel's signals.
    pub target_vp: u32,
    /// Depends on the class; zeroes for NIC and PCI.
    pub user_data: [u8; 120],
    /// How both sides signal each other, where the guest may choose
    /// ([`Features::GUEST_SIGNAL_PARAMETERS`]); else what the offer says.
    pub signal: Option<SignalParameters>,
    /// Whether the channel's interrupt is redirected ([`Features::INTERRUPT_REDIRECTION`]).
    pub redirect_interrupt: bool,
}

impl Default for OpenOptions {
    fn default() -> Self {
        Self {
            downstream_page: 0,
            target_vp: 0,
            user_data: [0; 120],
            signal: None,
            redirect_interrupt: false,
        }
    }
}

/// How both sides signal each other on a channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SignalParameters {
    /// Where the guest signals the host.
    pub connection: ConnectionId,
    /// By which event flag the host signals the guest.
    pub event_flag: u16,
}

impl Default for BusConfig {
    fn default() -> Self {
        Self {
            versions: Version::RECOMMENDED.to_vec(),
            target_vp: 0,
            deadline: Duration::from_secs(10),
            // Far from 0 and from small numbers that could be something else; where Linux starts, too.
            first_gpadl: GpadlId(0xe1e10),
            features: Features::empty(),
            client_id: Guid::nil(),
            monitor_pages: None,
            isolated: false,
            vtl: 0,
        }
    }
}

/// A control message for the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Post {
    /// Where to post it.
    pub connection: ConnectionId,
    /// Its bytes.
    pub payload: Payload,
}

/// A channel that the host offers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Offer {
    /// Its id, until the guest releases it.
    pub channel: ChannelId,
    /// What kind of device.
    pub class: Guid,
    /// Which device; stable when it is offered again.
    pub instance: Guid,
    /// 0 for a primary channel, else the number of the sub-channel.
    pub sub_channel: u16,
    /// Where to signal the host.
    pub connection: ConnectionId,
    /// Megabytes of memory-mapped I/O space that the device needs.
    pub mmio_megabytes: u16,
    /// Megabytes of memory-mapped I/O space that the device could use.
    pub mmio_megabytes_optional: u16,
    /// Number in the monitor pages, if the channel is signalled there.
    pub monitor: Option<u8>,
    /// Whether the channel has an interrupt of its own.
    pub dedicated_interrupt: bool,
    /// Further properties; those that need a feature only where it is agreed on.
    pub flags: OfferFlags,
    /// What the host says to the device's driver, in a form that depends on the class. Of a pipe
    /// ([`OfferFlags::NAMED_PIPE`]) the first 32 bits are its mode, 0 for bytes and 4 for messages; of a socket
    /// ([`OfferFlags::SOCKET`]) the byte after that is not 0 if it is the host that connects (Linux, `hvs_open_connection`).
    /// NIC and PCI have zeroes.
    pub user_defined: [u8; 120],
}

impl Offer {
    /// What an offer says on a connection with these features.
    #[must_use]
    pub fn from_wire(wire: &OfferChannel, features: Features) -> Self {
        let flags = OfferFlags::from_bits_truncate(wire.flags.get());
        Self {
            channel: ChannelId(wire.channel.get()),
            class: wire.class.into(),
            instance: wire.instance.into(),
            sub_channel: wire.sub_channel.get(),
            connection: ConnectionId(wire.connection.get()),
            mmio_megabytes: wire.mmio_megabytes.get(),
            mmio_megabytes_optional: wire.mmio_megabytes_optional.get(),
            monitor: (wire.monitor_allocated & 1 != 0).then_some(wire.monitor),
            dedicated_interrupt: wire.dedicated_interrupt.get() & 1 != 0,
            flags: flags & OfferFlags::meaningful(features),
            user_defined: wire.user_defined,
        }
    }
}

/// What the bus did or learned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// The host agreed to a version; offers follow.
    Connected {
        /// The version.
        version: Version,
    },
    /// There is no connection.
    ContactFailed(ContactFailure),
    /// A device is there.
    Offered(Offer),
    /// The offers that existed when the guest asked were all sent. More may come at any time.
    AllOffersDelivered,
    /// A channel is open.
    Opened {
        /// The channel.
        channel: ChannelId,
    },
    /// A channel did not open; its ring memory is the guest's again. It may be opened anew.
    OpenFailed {
        /// The channel.
        channel: ChannelId,
        /// At which step.
        step: OpenStep,
        /// The host's status.
        status: u32,
    },
    /// A channel is closed and all its memory is the guest's again. It may be opened anew.
    Closed {
        /// The channel.
        channel: ChannelId,
    },
    /// The host knows a piece of memory.
    Shared {
        /// The channel it belongs to.
        channel: ChannelId,
        /// Its id.
        gpadl: GpadlId,
    },
    /// The host refused a piece of memory; it is the guest's again.
    ShareFailed {
        /// The channel it was to belong to.
        channel: ChannelId,
        /// Its id, now void.
        gpadl: GpadlId,
        /// The host's status.
        status: u32,
    },
    /// A piece of memory is the guest's again.
    Unshared {
        /// The channel it belonged to.
        channel: ChannelId,
        /// Its id, now void.
        gpadl: GpadlId,
    },
    /// A device is gone. Whatever was awaited for its channel will not come; once its driver has let go, call
    /// [`Bus::release`](super::Bus::release).
    Rescinded {
        /// The channel.
        channel: ChannelId,
    },
    /// A released channel's memory is the guest's again, and its id is free.
    Released {
        /// The channel, now void.
        channel: ChannelId,
    },
    /// The host answered the wish for another virtual processor; 5.3 and later. `status` 0: its signals go there now.
    Retargeted {
        /// The channel.
        channel: ChannelId,
        /// The virtual processor asked for.
        target_vp: u32,
        /// The host's status.
        status: u32,
    },
    /// The host answered the wish for other monitor pages; `state` 0: it uses them now, and doorbells in the former ones are
    /// to be replaced.
    ConnectionModified {
        /// The host's answer: 0, 1 low resources, 2 unknown failure.
        state: u8,
    },
    /// The host sends no messages until [`Bus::unpause`](super::Bus::unpause).
    Paused,
    /// The connection is gone, and all memory is the guest's again. With versions before 3.0 the latter goes only for what had
    /// come back before: such a host is not told, and forgets at the next contact ([`Bus::unload`](super::Bus::unload)).
    Unloaded,
    /// An answer is late. The wait goes on; this is said once per wait.
    Overdue(Wait),
}

/// What ended an open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OpenStep {
    /// The host refused the memory of the rings.
    Rings,
    /// The host refused to open the channel.
    Open,
}

/// Why there is no connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ContactFailure {
    /// The host knows none of the versions asked for.
    #[error("the host accepts none of the versions asked for")]
    NoCommonVersion,
    /// The host accepts the version and cannot connect all the same.
    #[error("the host accepts version {version} and cannot connect (state {state})")]
    Refused {
        /// The version.
        version: Version,
        /// The host's reason: 1 low resources, 2 unknown.
        state: u8,
    },
    /// The hypervisor does not take the message that asks for a version, and there is no older version to ask for.
    #[error("the message that asks for version {version} cannot be posted ({status})")]
    NotPosted {
        /// The version.
        version: Version,
        /// What the hypervisor says.
        status: PostStatus,
    },
}

/// An answer that the bus waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Wait {
    /// Yes or no to a version.
    Contact {
        /// The version.
        version: Version,
    },
    /// The end of the first offers.
    Offers,
    /// The host's knowledge of a piece of memory.
    Share {
        /// The channel it belongs to.
        channel: ChannelId,
        /// The memory.
        gpadl: GpadlId,
    },
    /// The result of an open.
    Open {
        /// The channel.
        channel: ChannelId,
    },
    /// A piece of memory back.
    Unshare {
        /// The channel it belongs to.
        channel: ChannelId,
        /// The memory.
        gpadl: GpadlId,
    },
    /// The end of the connection.
    Unload,
    /// Another virtual processor for a channel's signals.
    Retarget {
        /// The channel.
        channel: ChannelId,
    },
    /// Other monitor pages.
    ModifyConnection,
    /// The last message before a pause.
    Pause,
}

/// Why a request to the bus cannot be followed. Nothing has changed then.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// There is already a connection, or one is being made.
    #[error(
        "a connection is started while idle or unloading, or when contact is overdue; the bus is {state:?}"
    )]
    AlreadyStarted {
        /// What the bus does.
        state: BusState,
    },
    /// No versions were configured.
    #[error("a guest asks for at least one version")]
    NoVersions,
    /// There is no connection.
    #[error("this needs a connection; the bus is {state:?}")]
    NotConnected {
        /// What the bus does.
        state: BusState,
    },
    /// A channel that was never offered or is released.
    #[error("channel {channel} is not offered")]
    UnknownChannel {
        /// The channel.
        channel: ChannelId,
    },
    /// The host took the channel back.
    #[error("channel {channel} is rescinded; it can only be released")]
    Rescinded {
        /// The channel.
        channel: ChannelId,
    },
    /// The channel was released and the host has not returned all memory.
    #[error("channel {channel} is released already")]
    Released {
        /// The channel.
        channel: ChannelId,
    },
    /// The channel is in the wrong state.
    #[error("channel {channel} is {state:?}; this needs a channel that is {expected:?}")]
    WrongState {
        /// The channel.
        channel: ChannelId,
        /// What it does.
        state: ChannelState,
        /// What it would have to do.
        expected: ChannelState,
    },
    /// The rings of a channel do not fit their memory.
    #[error(
        "two rings of at least 2 pages each are needed; {pages} pages split at {downstream_page}"
    )]
    BadRings {
        /// Pages of both rings.
        pages: usize,
        /// Where the second begins.
        downstream_page: u32,
    },
    /// Memory without page frame numbers cannot be described.
    #[error("{pages} pages have no page frame numbers to tell the host")]
    NoFrames {
        /// The pages.
        pages: usize,
    },
    /// The memory cannot be described.
    #[error(transparent)]
    Encode(#[from] EncodeError),
    /// An id that stands for no memory, or no longer.
    #[error("GPADL {gpadl} does not exist")]
    UnknownGpadl {
        /// The id.
        gpadl: GpadlId,
    },
    /// The memory of an open channel's rings.
    #[error("GPADL {gpadl} holds the rings of a channel and goes when that is closed")]
    RingGpadl {
        /// The id.
        gpadl: GpadlId,
    },
    /// All GPADL ids are used up.
    #[error("there are no more GPADL ids")]
    NoGpadlIds,
    /// The agreed version does not have what is asked for.
    #[error("{kind} exists since version {since}, and the agreed version is {version}")]
    TooOld {
        /// The message it would take.
        kind: MessageType,
        /// The first version that knows it.
        since: Version,
        /// The agreed version.
        version: Version,
    },
    /// The host has not accepted the feature.
    #[error("this needs {needed:?}, and the host accepted {accepted:?}")]
    NoFeature {
        /// What it takes.
        needed: Features,
        /// What there is.
        accepted: Features,
    },
    /// The same was asked before and is not answered yet, or the connection is paused already, or not paused.
    #[error("this is under way or done already: {wait:?}")]
    UnderWay {
        /// What is awaited.
        wait: Wait,
    },
    /// A sub-channel without an open primary channel.
    #[error("sub-channel {channel} opens only while its primary channel is open")]
    PrimaryNotOpen {
        /// The sub-channel.
        channel: ChannelId,
    },
    /// Monitor pages are two pages with frames.
    #[error("monitor pages are two pages with page frame numbers, not {pages}")]
    BadMonitorPages {
        /// How many there are.
        pages: usize,
    },
    /// Memory that the host of an isolated guest cannot read.
    #[error("{pages} pages are not revealed, and the guest is isolated from its host")]
    NotRevealed {
        /// How many there are.
        pages: usize,
    },
    /// The platform could not make memory readable for the host.
    #[error("{pages} pages cannot be revealed to the host and are lost")]
    RevealFailed {
        /// How many there are.
        pages: usize,
    },
    /// There was no connection before.
    #[error("no version was agreed on before")]
    NothingToResume,
}

/// What is wrong with a message from the host. The message is ignored; the connection lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HostError {
    /// It is no message that may come.
    #[error(transparent)]
    Message(#[from] MessageError),
    /// An offer with an id that no channel can have.
    #[error("offers have channel ids 1 to 2047, this one has {channel}")]
    ChannelIdOutOfRange {
        /// The id.
        channel: ChannelId,
    },
    /// A yes to version 6.0 with features that nobody asked for.
    #[error("the host accepts {accepted:?}, asked for were {asked:?}")]
    UnaskedFeatures {
        /// What the host says.
        accepted: Features,
        /// What was asked.
        asked: Features,
    },
    /// A sub-channel whose primary channel is not open: nobody can have asked for it. Its id goes back.
    #[error(
        "channel {channel} is offered as sub-channel {sub_channel} of {instance}, which is not open"
    )]
    NoPrimary {
        /// The id.
        channel: ChannelId,
        /// Its number.
        sub_channel: u16,
        /// The device.
        instance: Guid,
    },
    /// A sub-channel with the number of one that the guest holds. Its id goes back.
    #[error(
        "channel {channel} is offered as sub-channel {sub_channel} of {instance}, as {held} was"
    )]
    SubChannelHeld {
        /// The id.
        channel: ChannelId,
        /// Its number.
        sub_channel: u16,
        /// The device.
        instance: Guid,
        /// Who has that number.
        held: ChannelId,
    },
    /// An offer with the id of a channel that the guest still holds.
    #[error("channel {channel} is offered again, and the guest has not released it")]
    ChannelHeld {
        /// The id.
        channel: ChannelId,
    },
}

/// What the bus does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BusState {
    /// Nothing.
    Idle,
    /// Waits for yes or no to a version.
    Contacting,
    /// Connected, and receives the first offers.
    OffersRequested,
    /// Connected.
    Running,
    /// Waits for the end of the connection.
    Unloading,
}

/// What a channel does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChannelState {
    /// Offered, not open.
    Offered,
    /// Being opened.
    Opening,
    /// Open.
    Open,
    /// Being closed.
    Closing,
}

/// What came from the host and was of no use, by cause; and what did not come, or did not go.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BusStats {
    /// Messages received.
    pub received: u64,
    /// Answers that nobody waits for, late or given twice, and sub-channels offered as their primary channel closes.
    pub late: u64,
    /// Rescinds of channels that are gone or rescinded already.
    pub repeated_rescinds: u64,
    /// Offers with an id in use or out of range.
    pub bad_offers: u64,
    /// Messages with numbers that stand for nothing.
    pub unknown: u64,
    /// Messages that are malformed, from the wrong side or of another version.
    pub malformed: u64,
    /// Messages that have no use in this state of the connection.
    pub out_of_state: u64,
    /// Waits that lasted longer than their deadline.
    pub overdue: u64,
    /// Messages that the hypervisor never took.
    pub unposted: u64,
}

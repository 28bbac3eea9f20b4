//! What goes in and out of the host's bus, and how it behaves.

use std::collections::VecDeque;
use std::fmt;
use std::time::Duration;

use vmbus::bus::PostStatus;
use vmbus::channel::{Channel, SignalFlag};
use vmbus::gpadl::DecodeError;
use vmbus::memory::PageList;
use vmbus::message::{Features, MessageError, MessageType, OfferFlags, Version};
use vmbus::ring::RingError;
use vmbus::{ChannelId, ConnectionId, GpadlId, Guid};

use crate::memory::UnknownFrame;

/// The host's end of a channel.
pub type HostChannel = Channel<PageList, SignalFlag>;

/// Names a device of a [`BusServer`](super::BusServer), over all its offers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DeviceId(pub(super) u32);

impl fmt::Display for DeviceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// A device to offer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OfferSpec {
    /// What kind of device.
    pub class: Guid,
    /// Which device.
    pub instance: Guid,
    /// Megabytes of memory-mapped I/O space that it needs.
    pub mmio_megabytes: u16,
    /// Further properties; those that need a feature are told only where it is agreed on.
    pub flags: OfferFlags,
    /// What the device's driver in the guest is told, in a form that depends on the class.
    pub user_defined: [u8; 120],
}

impl OfferSpec {
    /// A device with the properties that most have.
    #[must_use]
    pub fn new(class: Guid, instance: Guid, mmio_megabytes: u16) -> Self {
        let (flags, user_defined) = (OfferFlags::ENUMERATE_INTERFACE, [0; 120]);
        Self { class, instance, mmio_megabytes, flags, user_defined }
    }
}

/// In which order a guest hears of the devices that exist when it asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum OfferOrder {
    /// As they were added.
    #[default]
    AsAdded,
    /// The other way round.
    Reversed,
    /// By class, then as they were added.
    ByClass,
    /// In an order that follows from this seed.
    Shuffled(u64),
}

/// Which ids channels get.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum IdPolicy {
    /// Each the next after the last one; a used one comes again after all others.
    #[default]
    Fresh,
    /// The lowest that is free, so that a device that comes back often has the id of one that went.
    Lowest,
}

/// When a host takes a device away: at a message of the guest that names its channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RescindMoment {
    /// Before the message is looked at.
    Before(MessageType),
    /// After it was answered.
    After(MessageType),
}

/// How the host behaves.
#[derive(Clone, Debug)]
pub struct BusPolicy {
    /// Versions that it accepts.
    pub versions: Vec<Version>,
    /// Where guests of version 5.0 and later post their messages after contact.
    pub connection: ConnectionId,
    /// Contact may be made on the connection for redirected messages, too, as guests in VTL 2 do.
    pub redirected: bool,
    /// Answers to an accepted version: 0, or the reason why it does not connect all the same.
    pub connection_state: u8,
    /// How long every message to the guest takes. Their order is kept.
    pub reply_delay: Duration,
    /// The order of the first offers.
    pub order: OfferOrder,
    /// The ids of channels.
    pub ids: IdPolicy,
    /// Answer to every GPADL that is in order: 0, or a refusal.
    pub gpadl_status: u32,
    /// Answer to every open that is in order: 0, or a refusal.
    pub open_status: u32,
    /// Messages that it never sends though it should.
    pub withheld: Vec<MessageType>,
    /// Features of version 6.0 that it accepts.
    pub features: Features,
    /// Addresses of its own monitor pages, with [`Features::SERVER_MONITOR_PAGES`]: that from host to guest first.
    pub server_monitor_pages: (u64, u64),
    /// Whether channels get numbers in the monitor pages of a guest that has some.
    pub monitor_ids: bool,
    /// Within which time it looks after those, in units of 100 ns.
    pub monitor_latency: u16,
    /// Takes a device away once, at this moment of its life.
    pub rescind: Option<RescindMoment>,
    /// How long the answer to `MODIFY_CHANNEL` waits for the device, with versions that have one. It never comes if the
    /// channel is closed or taken away meanwhile, as with OpenVMM.
    pub modify_delay: Duration,
    /// Answer to other monitor pages: 0, or a refusal.
    pub modify_connection_state: u8,
    /// Takes a device's primary channel away before its sub-channels, which hosts should not do.
    pub primary_first: bool,
    /// What the hypervisor says to the next posts ([`BusServer::post`](super::BusServer::post)), one after the other.
    pub post_failures: VecDeque<PostStatus>,
}

impl Default for BusPolicy {
    fn default() -> Self {
        Self {
            versions: Version::RECOMMENDED.to_vec(),
            // Neither 1 nor 4, so that a guest that does not listen is found out.
            connection: ConnectionId(0x40),
            redirected: false,
            connection_state: 0,
            reply_delay: Duration::ZERO,
            order: OfferOrder::default(),
            ids: IdPolicy::default(),
            gpadl_status: 0,
            open_status: 0,
            withheld: Vec::new(),
            features: Features::all(),
            server_monitor_pages: (0, 0),
            monitor_ids: false,
            // 100 us, as hosts have it.
            monitor_latency: 1000,
            rescind: None,
            modify_delay: Duration::ZERO,
            modify_connection_state: 0,
            primary_first: false,
            post_failures: VecDeque::new(),
        }
    }
}

/// What happened on the bus.
#[expect(clippy::large_enum_variant, reason = "events are few, and each is moved once")]
#[derive(Debug)]
pub enum BusEvent {
    /// A guest made contact.
    Connected {
        /// The agreed version.
        version: Version,
    },
    /// The guest opened a device's channel.
    Opened {
        /// The device.
        device: DeviceId,
        /// The channel. Drop it after [`BusEvent::Closing`].
        channel: HostChannel,
    },
    /// The device's channel closes: stop, let go of all guest memory, and say so with
    /// [`BusServer::closed`](super::BusServer::closed).
    Closing {
        /// The device.
        device: DeviceId,
    },
    /// The guest does not want this device; it is not offered again on this connection.
    GivenUp {
        /// The device.
        device: DeviceId,
    },
    /// A rescinded device is gone for good, and its id with it.
    Released {
        /// The device, now void.
        device: DeviceId,
    },
    /// The guest said good-bye, or another one takes over.
    Disconnected,
}

/// What a guest did wrong. The message is ignored; where the protocol has an answer, it says no.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GuestError {
    /// It is no message that may come.
    #[error(transparent)]
    Message(#[from] MessageError),
    /// A message outside a connection.
    #[error("{kind} was posted without a connection")]
    NotConnected {
        /// The message.
        kind: MessageType,
    },
    /// A message posted elsewhere.
    #[error("{kind} goes to connection {expected}, it was posted to {got}")]
    WrongConnection {
        /// The message.
        kind: MessageType,
        /// Where it belongs.
        expected: ConnectionId,
        /// Where it came.
        got: ConnectionId,
    },
    /// Offers were asked for twice.
    #[error("offers are asked for once per connection")]
    OffersRequestedAgain,
    /// A message about a channel that is not offered.
    #[error("{kind} names channel {channel}, which is not offered")]
    UnknownChannel {
        /// The message.
        kind: MessageType,
        /// The channel.
        channel: ChannelId,
    },
    /// A message that does not fit the channel's state.
    #[error("{kind} does not fit channel {channel}, which is {state}")]
    WrongState {
        /// The message.
        kind: MessageType,
        /// The channel.
        channel: ChannelId,
        /// Its state.
        state: DeviceState,
    },
    /// An id that already stands for memory.
    #[error("GPADL {gpadl} exists already")]
    GpadlExists {
        /// The id.
        gpadl: GpadlId,
    },
    /// An id that stands for no memory, or for none of this channel.
    #[error("{kind} names GPADL {gpadl}, which does not exist")]
    UnknownGpadl {
        /// The message.
        kind: MessageType,
        /// The id.
        gpadl: GpadlId,
    },
    /// A description of memory that is not right.
    #[error("GPADL {gpadl}: {error}")]
    BadGpadl {
        /// The id.
        gpadl: GpadlId,
        /// What is wrong.
        error: DecodeError,
    },
    /// A description of memory that is none.
    #[error("GPADL {gpadl}: {error}")]
    NotMemory {
        /// The id.
        gpadl: GpadlId,
        /// What is wrong.
        error: UnknownFrame,
    },
    /// Memory is asked back before it was accepted.
    #[error("GPADL {gpadl} is torn down while it is made")]
    TornDownEarly {
        /// The id.
        gpadl: GpadlId,
    },
    /// Memory is asked back twice.
    #[error("GPADL {gpadl} is torn down twice")]
    TornDownTwice {
        /// The id.
        gpadl: GpadlId,
    },
    /// The memory of an open channel's rings is asked back.
    #[error("GPADL {gpadl} holds the rings of channel {channel}, which is open")]
    RingTornDown {
        /// The channel.
        channel: ChannelId,
        /// The id.
        gpadl: GpadlId,
    },
    /// Memory that cannot hold two rings.
    #[error(
        "GPADL {gpadl} is not one range of whole pages with 2 or more before and after page {downstream_page}"
    )]
    BadRings {
        /// The id.
        gpadl: GpadlId,
        /// Where the second ring begins.
        downstream_page: u32,
    },
    /// The rings do not look like rings.
    #[error("the rings of channel {channel}: {error}")]
    Ring {
        /// The channel.
        channel: ChannelId,
        /// What is wrong.
        error: RingError,
    },
    /// A message whose feature is not agreed on.
    #[error("{kind} needs {needed:?}, and accepted are {accepted:?}")]
    NoFeature {
        /// The message.
        kind: MessageType,
        /// What it takes.
        needed: Features,
        /// What was accepted.
        accepted: Features,
    },
    /// Another virtual processor was asked for before the last wish was answered, which guests do not since 5.3.
    #[error(
        "channel {channel} is to have another processor, and the last wish is not answered yet"
    )]
    ModifyUnderWay {
        /// The channel.
        channel: ChannelId,
    },
    /// A message that this host has no use for.
    #[error("{kind} is not served by this host")]
    NotServed {
        /// The message.
        kind: MessageType,
    },
}

/// What a device's channel does, as the host sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceState {
    /// Not offered yet.
    Waiting,
    /// Offered, not open.
    Offered,
    /// Open.
    Open,
    /// Closed by the guest; the device has not stopped yet.
    Closing,
    /// Taken back; the guest has not let go yet.
    Revoked,
    /// The guest does not want it.
    GivenUp,
}

impl fmt::Display for DeviceState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Waiting => "not offered",
            Self::Offered => "offered",
            Self::Open => "open",
            Self::Closing => "closing",
            Self::Revoked => "rescinded",
            Self::GivenUp => "given up",
        })
    }
}

/// What a guest that takes its leave has not given back. One that goes in order leaves nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LeftBehind {
    /// Channels that are open.
    pub channels: usize,
    /// Pieces of memory that are shared.
    pub gpadls: usize,
    /// Ids of channels that are gone.
    pub ids: usize,
}

/// What went over the bus.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BusCounters {
    /// Messages from the guest.
    pub received: u64,
    /// Messages to the guest.
    pub sent: u64,
    /// Messages that should have been sent and were withheld by policy.
    pub withheld: u64,
    /// Messages from the guest that were wrong.
    pub guest_errors: u64,
    /// Messages about rescinded channels, which the guest could not know.
    pub ignored: u64,
    /// Offers sent.
    pub offers: u64,
    /// Offers taken back.
    pub rescinds: u64,
    /// Ids given back by the guest.
    pub releases: u64,
    /// Pieces of memory accepted.
    pub gpadls_created: u64,
    /// Pieces of memory returned at the guest's request.
    pub gpadls_torn_down: u64,
    /// Pieces of memory that a guest never asked back before it let go of the channel.
    pub gpadls_dropped: u64,
}

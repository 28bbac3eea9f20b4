//! One device on the bus, and the guest memory that belongs to it.

use std::collections::BTreeMap;

use vmbus::bus::SignalParameters;
use vmbus::channel::SignalFlag;
use vmbus::gpadl::{GpadlAssembler, Range};
use vmbus::memory::PageList;
use vmbus::message::{Features, HEADER_SIZE, MessageError, MessageType, OpenChannel, OpenSignal};
use vmbus::{ChannelId, ConnectionId, GpadlId, Instant};
use zerocopy::FromBytes;

use super::{DeviceId, DeviceState, OfferSpec};

/// Guest memory as far as it is known.
#[derive(Debug)]
pub(super) enum HostGpadl {
    /// Messages are missing.
    Assembling(GpadlAssembler),
    /// Usable.
    Ready {
        ranges: Vec<Range>,
        pages: PageList,
        /// Asked back; answered when the device has stopped.
        asked_back: bool,
    },
}

impl HostGpadl {
    /// The memory as one piece, if it is whole pages.
    pub(super) fn pages(&self) -> Option<&PageList> {
        match self {
            Self::Ready { ranges, pages, .. } => {
                ranges.iter().all(Range::is_whole_pages).then_some(pages)
            }
            Self::Assembling(_) => None,
        }
    }
}

/// What a guest asks for when it opens a channel.
#[derive(Clone, Copy, Debug)]
pub(super) struct OpenRequest {
    pub(super) open: OpenChannel,
    /// How both sides signal each other, where the guest may choose.
    pub(super) signal: Option<SignalParameters>,
    pub(super) redirected: bool,
}

impl OpenRequest {
    /// An open as posted on a connection with these features, one of which may make it longer.
    pub(super) fn new(
        open: &OpenChannel,
        data: &[u8],
        features: Features,
    ) -> Result<Self, MessageError> {
        let mut request = Self { open: *open, signal: None, redirected: false };
        if features.intersects(Features::LONG_OPEN) {
            let kind = MessageType::OPEN_CHANNEL;
            let fields = HEADER_SIZE + size_of::<OpenChannel>();
            let (len, need) = (fields + data.len(), fields + size_of::<OpenSignal>());
            let (longer, _) = OpenSignal::read_from_prefix(data)
                .map_err(|_| MessageError::TooShort { kind, len, need })?;
            let signal = SignalParameters {
                connection: ConnectionId(longer.connection.get()),
                event_flag: longer.event_flag.get(),
            };
            let chooses = features.contains(Features::GUEST_SIGNAL_PARAMETERS);
            request.signal = Some(signal).filter(|_| chooses);
            request.redirected = features.contains(Features::INTERRUPT_REDIRECTION)
                && longer.flags.get() & OpenSignal::REDIRECT_INTERRUPT != 0;
        }
        Ok(request)
    }
}

#[derive(Debug)]
pub(super) struct Device {
    pub(super) spec: OfferSpec,
    /// Its number and its primary device, for a sub-channel.
    pub(super) sub: Option<(u16, DeviceId)>,
    /// Number in the monitor pages.
    pub(super) monitor: Option<u8>,
    /// Virtual processor that gets its signals, while open.
    pub(super) target_vp: u32,
    /// When the wish for that one is answered.
    pub(super) modify_due: Option<Instant>,
    /// How both sides signal each other, where the guest chose.
    pub(super) signal: Option<SignalParameters>,
    /// The guest wants the channel's interrupt redirected.
    pub(super) redirected: bool,
    pub(super) state: DeviceState,
    /// Its id on this connection, from the offer until the guest lets go.
    pub(super) channel: Option<ChannelId>,
    /// The service was told to stop and has not said that it has.
    pub(super) stopping: bool,
    /// The bell of the open channel.
    pub(super) bell: SignalFlag,
    pub(super) gpadls: BTreeMap<GpadlId, HostGpadl>,
    /// The memory of its rings, while they are in use.
    pub(super) ring: Option<GpadlId>,
    /// Pages in there before the ring from host to guest.
    pub(super) downstream_page: u32,
    /// An open that came while the device was stopping.
    pub(super) reopen: Option<OpenRequest>,
    /// To be taken back when it has stopped.
    pub(super) rescind_wanted: bool,
    /// Let go of by the guest while the device was stopping.
    pub(super) release_wanted: bool,
}

impl Device {
    pub(super) fn new(spec: OfferSpec) -> Self {
        Self {
            spec,
            sub: None,
            monitor: None,
            target_vp: 0,
            modify_due: None,
            signal: None,
            redirected: false,
            state: DeviceState::Waiting,
            channel: None,
            stopping: false,
            bell: SignalFlag::new(),
            gpadls: BTreeMap::new(),
            ring: None,
            downstream_page: 0,
            reopen: None,
            rescind_wanted: false,
            release_wanted: false,
        }
    }

    /// Forgets the connection. The device can be offered to the next guest.
    pub(super) fn reset(&mut self) {
        *self = Self::new(self.spec.clone());
    }

    /// Where a guest signals this device.
    pub(super) fn connection(&self) -> Option<ConnectionId> {
        let chosen = self.signal.map(|signal| signal.connection);
        chosen.or_else(|| self.channel.map(signal_connection))
    }

    /// Whether it goes for good when the guest lets go.
    pub(super) fn is_gone(&self) -> bool {
        self.state == DeviceState::Revoked || self.rescind_wanted || self.sub.is_some()
    }

    pub(super) fn asked_back(&self) -> Vec<GpadlId> {
        let asked = |gpadl: &HostGpadl| matches!(gpadl, HostGpadl::Ready { asked_back: true, .. });
        self.gpadls.iter().filter(|(_, gpadl)| asked(gpadl)).map(|(id, _)| *id).collect()
    }

    pub(super) fn assembling(&self) -> Vec<GpadlId> {
        let open = |gpadl: &HostGpadl| matches!(gpadl, HostGpadl::Assembling(_));
        self.gpadls.iter().filter(|(_, gpadl)| open(gpadl)).map(|(id, _)| *id).collect()
    }
}

/// Where a guest signals a channel. Guests must not see through this.
pub(super) fn signal_connection(channel: ChannelId) -> ConnectionId {
    ConnectionId(0x2000 | channel.0)
}

//! The host's side of a synthetic NIC: NVSP and RNDIS server, data path, and the association with a virtual function.
//!
//! [`NicService`] is a machine without I/O. It is handed the channel when the guest opens it, is polled when the guest's
//! doorbell rang, when a deadline passed, when the switch has something for it or after a call that queues work, and
//! yields events. It is strict: an illegal order of messages, a double completion or a malformed control message ends
//! the use of the channel ([`NicServiceEvent::Failed`]), as on the hosts it plays.
//!
//! - `setup`: NVSP from INIT to the buffers, and their way back
//! - `control`, `object`, `link`: RNDIS requests, what they ask for, and indications
//! - `transmit`, `offload`: frames from the guest
//! - `receive`, `deliver`: frames to the guest
//! - `association`: the VF and the data path

mod association;
mod control;
mod counters;
mod deliver;
mod error;
mod link;
mod object;
pub mod offload;
mod outbox;
mod packet;
mod policy;
mod receive;
mod setup;
mod transmit;

pub use association::VfState;
pub use counters::NicCounters;
pub use error::{NicServiceError, SourceError};
pub use policy::{NicPolicy, NicServiceConfig, ResetAnswer, SwitchAnswer};
pub use receive::CONTROL_PIECES;

use std::collections::VecDeque;

use netvsc::nvsp::{self, Capabilities};
use netvsc::rndis;
use vmbus::memory::PageList;
use vmbus::packet::{Packet, PacketKind, TransferRange};
use vmbus::ring::ReceiveError;
use vmbus::time::earliest;
use vmbus::{GpadlId, Instant, Pfn, Serial};

use crate::bus::HostChannel;
use crate::switch::{Path, SideState, SwitchPort};
use association::{Action, Association};
use control::Control;
use link::LinkState;
use outbox::Outbox;
use receive::ReceiveBuffer;
use setup::{Circumstances, Setup};
use transmit::Transmit;

/// Transaction id of the host's VF_ASSOCIATION messages.
pub const ASSOCIATION_TRANSACTION: u64 = 0x8000_0000_0000_0000;
/// Transaction id of the host's SWITCH_DATA_PATH notices.
pub const NOTICE_TRANSACTION: u64 = 0x8000_0000_0000_0001;

/// Longest packet that a guest sends, descriptor included.
const PACKET_BUFFER: usize = 64 * 1024;

/// How the service reaches the guest's memory, for the time of one poll.
#[derive(Clone, Copy)]
pub struct GuestView<'a> {
    /// The memory of a GPADL of this channel.
    pub gpadl: &'a dyn Fn(GpadlId) -> Option<PageList>,
    /// Pages of the guest by number.
    pub pages: &'a dyn Fn(&[Pfn]) -> Option<PageList>,
}

impl std::fmt::Debug for GuestView<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("GuestView")
    }
}

/// What a NIC service has to say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NicServiceEvent {
    /// RNDIS is up: the guest finished start-up.
    Operational {
        /// NVSP version agreed on.
        version: nvsp::Version,
        /// The guest takes part in SR-IOV.
        sriov: bool,
    },
    /// Now is the time to offer the VF's PCI device.
    OfferVf,
    /// The data path changed.
    DataPath(Path),
    /// The guest halted the NIC.
    Halted,
    /// The guest broke the protocol; the channel is not served any more.
    Failed(NicServiceError),
}

/// An open channel and what was agreed on over it.
struct Link {
    channel: HostChannel,
    outbox: Outbox,
    setup: Setup,
    control: Control,
    /// Whether the link is up, and what the guest was told of it.
    state: LinkState,
    /// Host messages whose completion the guest may send: associations, notices.
    unconfirmed: [u32; 2],
}

impl Link {
    fn lent(&self) -> usize {
        self.setup.receive.as_ref().map_or(0, ReceiveBuffer::lent)
    }
}

/// The service of one NIC.
pub struct NicService {
    config: NicServiceConfig,
    link_up: bool,
    link: Option<Link>,
    association: Association,
    transmit: Transmit,
    events: VecDeque<NicServiceEvent>,
    counters: NicCounters,
    /// One packet of the guest.
    packet: Vec<u8>,
    pieces: Vec<receive::Piece>,
    ranges: Vec<TransferRange>,
    /// Latest moment at which the service was polled.
    seen: Instant,
}

impl std::fmt::Debug for NicService {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NicService")
            .field("mac", &self.config.mac)
            .field("open", &self.link.is_some())
            .field("association", &self.association)
            .finish_non_exhaustive()
    }
}

impl NicService {
    /// The service of a NIC that nobody has opened yet and that has no VF.
    #[must_use]
    pub fn new(config: NicServiceConfig) -> Self {
        Self {
            link_up: config.link_up,
            config,
            link: None,
            association: Association::new(),
            transmit: Transmit::default(),
            events: VecDeque::new(),
            counters: NicCounters::default(),
            packet: vec![0; PACKET_BUFFER],
            pieces: Vec::new(),
            ranges: Vec::new(),
            seen: Instant::ZERO,
        }
    }

    /// The guest has opened the channel. An earlier one is forgotten.
    pub fn open(&mut self, mut channel: HostChannel, port: &mut SwitchPort) {
        self.close(port);
        channel.check_trailers(true);
        self.counters.opened += 1;
        self.link = Some(Link {
            channel,
            outbox: Outbox::default(),
            setup: Setup::default(),
            control: Control::default(),
            state: LinkState::new(self.link_up),
            unconfirmed: [0; 2],
        });
    }

    /// The channel is closed, by the guest or because the NIC is taken away. Frames already accepted stay in the switch.
    pub fn close(&mut self, port: &mut SwitchPort) {
        if let Some(link) = self.link.take() {
            self.end(&link, port);
        }
    }

    fn end(&mut self, link: &Link, port: &mut SwitchPort) {
        self.counters.leaked += link.lent() as u64;
        self.counters.ring_full += link.outbox.full;
        self.transmit.forget();
        port.set_side(Path::Synthetic, SideState::Down);
        self.association.closed(&self.config.policy);
        self.act_without_link(port);
    }

    /// A virtual function belongs to the NIC from now on. Poll afterwards.
    pub fn vf_added(&mut self, serial: Serial, now: Instant) {
        self.association.vf_added(serial, &self.config.policy, now);
    }

    /// The virtual function is gone. Poll afterwards.
    pub fn vf_lost(&mut self) {
        self.association.vf_lost();
    }

    /// The link goes up or down; the guest is told, as fast as [`NicPolicy::link_spacing`] lets it. Poll afterwards.
    pub fn set_link(&mut self, up: bool) {
        self.link_up = up;
        if let Some(link) = &mut self.link {
            link.state.set(up);
        }
    }

    /// The link has another speed, in bits per second; a guest that has the teaming capability is told. Poll afterwards.
    pub fn set_speed(&mut self, speed: u64, now: Instant) {
        self.config.link_speed = speed;
        let counted = !self.config.policy.uncounted_buffers;
        if let Some(link) = &mut self.link
            && link.setup.can(Capabilities::TEAMING, nvsp::Version::V2)
        {
            let buffer = object::hundreds(speed).to_le_bytes();
            link.control.indicate(rndis::Status::LINK_SPEED_CHANGE, &buffer, counted, now);
        }
    }

    /// The NIC is in another network: guests behave as if the link had gone down and up. Poll afterwards.
    pub fn change_network(&mut self, now: Instant) {
        if let Some(link) = &mut self.link {
            link.control.indicate(rndis::Status::NETWORK_CHANGE, &[], true, now);
        }
    }

    /// Tells the guest, out of turn, that the data path is `path`. No real host says "VF". Poll afterwards.
    pub fn send_notice(&mut self, path: Path) {
        self.association.notice(path);
    }

    /// Behaviour; may be changed at any moment.
    pub fn policy_mut(&mut self) -> &mut NicPolicy {
        &mut self.config.policy
    }

    /// The NIC's permanent address.
    #[must_use]
    pub const fn mac(&self) -> netvsc::MacAddress {
        self.config.mac
    }

    /// State of the association.
    #[must_use]
    pub const fn vf_state(&self) -> VfState {
        self.association.state()
    }

    /// Whether a switch request is under way.
    #[must_use]
    pub const fn is_switching(&self) -> bool {
        self.association.is_pending()
    }

    /// The data path.
    #[must_use]
    pub const fn data_path(&self) -> Path {
        self.association.path()
    }

    /// Whether a guest has the channel open and has not broken the protocol.
    #[must_use]
    pub const fn is_open(&self) -> bool {
        self.link.is_some()
    }

    /// What happened so far.
    #[must_use]
    pub fn counters(&self) -> NicCounters {
        let link = self.link.as_ref();
        NicCounters {
            lent: link.map_or(0, |link| link.lent() as u64),
            ring_full: self.counters.ring_full + link.map_or(0, |link| link.outbox.full),
            ..self.counters
        }
    }

    /// The next event.
    pub fn poll_event(&mut self) -> Option<NicServiceEvent> {
        self.events.pop_front()
    }

    /// When to poll at the latest.
    #[must_use]
    pub fn poll_deadline(&self) -> Option<Instant> {
        let control = self.link.as_ref().and_then(|link| link.control.poll_deadline(self.seen));
        let told = self.link.as_ref().filter(|link| link.control.is_operational());
        let told = told.and_then(|link| link.state.poll_deadline());
        earliest(self.association.poll_deadline(), earliest(control, told))
    }

    /// Does all that can be done now: answers the guest, moves frames between its channel and its port, and does what is
    /// due. At its end the guest has been asked to ring for whatever the service waits for from it.
    pub fn poll(&mut self, now: Instant, guest: GuestView<'_>, port: &mut SwitchPort) {
        self.seen = self.seen.max(now);
        self.association.handle_deadline(&mut self.config.policy, now);
        let Some(mut link) = self.link.take() else {
            self.act_without_link(port);
            return;
        };
        let mut packet = std::mem::take(&mut self.packet);
        let outcome = self.serve(&mut link, &mut packet, now, guest, port);
        self.packet = packet;
        match outcome {
            Ok(()) => self.link = Some(link),
            Err(error) => {
                tracing::debug!(%error, mac = %self.config.mac, "channel given up");
                // What was answered before the error is still the guest's to see.
                let _ = link.channel.commit();
                self.counters.failed += 1;
                self.end(&link, port);
                self.events.push_back(NicServiceEvent::Failed(error));
            }
        }
    }

    fn serve(
        &mut self,
        link: &mut Link,
        packet: &mut [u8],
        now: Instant,
        guest: GuestView<'_>,
        port: &mut SwitchPort,
    ) -> Result<(), NicServiceError> {
        link.channel.mask()?;
        loop {
            self.act(Some(link), port)?;
            self.send_control(link, now, port)?;
            if !link.outbox.flush(&mut link.channel)? || !self.transmit(link, now, port)? {
                // The guest's ring or the wire is full: nothing is read until there is room.
                link.channel.arm()?;
                break;
            }
            match link.channel.receive(packet) {
                Ok(Some(packet)) => self.handle_packet(link, &packet, now, guest, port)?,
                Ok(None) if link.channel.arm()? => link.channel.mask()?,
                Ok(None) => break,
                Err(ReceiveError::Packet(error)) => return Err(error.into()),
                Err(ReceiveError::Ring(error)) => return Err(error.into()),
            }
        }
        self.deliver(link, now, port)?;
        link.channel.commit()?;
        Ok(())
    }

    fn handle_packet(
        &mut self,
        link: &mut Link,
        packet: &Packet<'_>,
        now: Instant,
        guest: GuestView<'_>,
        port: &mut SwitchPort,
    ) -> Result<(), NicServiceError> {
        match &packet.kind {
            PacketKind::Completion => self.handle_completion(link, packet),
            PacketKind::TransferPages { .. } => Err(NicServiceError::TransferPages),
            PacketKind::InBand => {
                let with = Circumstances { ranges: None, now, guest };
                self.handle_message(link, packet, with, port)
            }
            PacketKind::GpaDirect(ranges) => {
                let with = Circumstances { ranges: Some(*ranges), now, guest };
                self.handle_message(link, packet, with, port)
            }
        }
    }

    /// Carries out what the association machine decided.
    fn act(
        &mut self,
        mut link: Option<&mut Link>,
        port: &mut SwitchPort,
    ) -> Result<(), NicServiceError> {
        while let Some(action) = self.association.poll_action() {
            match action {
                Action::Offer => self.events.push_back(NicServiceEvent::OfferVf),
                Action::DataPath(path) => {
                    port.set_data_path(path);
                    self.counters.switches += 1;
                    self.events.push_back(NicServiceEvent::DataPath(path));
                }
                message => {
                    if let Some(link) = link.as_deref_mut() {
                        self.tell(link, message)?;
                    }
                }
            }
        }
        Ok(())
    }

    /// The same while there is nobody to tell: what is left cannot fail.
    fn act_without_link(&mut self, port: &mut SwitchPort) {
        let _ = self.act(None, port);
    }
}

#[cfg(test)]
mod tests;

//! The host's side of a synthetic NIC: NVSP and RNDIS server, data path, and the association with a virtual function.
//!
//! [`NicService`] is a machine without I/O. It is handed the channel when the guest opens it, is polled when the guest's
//! doorbell rang, when a deadline passed, when the switch has something for it or after a call that queues work, and
//! yields events. It is strict: an illegal order of messages, a double completion or a malformed control message ends
//! the use of the channel ([`NicServiceEvent::Failed`]), as on the hosts it plays.
//!
//! - `setup`: NVSP from INIT to the buffers, and their way back
//! - `control`, `object`, `link`: RNDIS requests, what they ask for, and indications
//! - `queue`, `scaling`: the channels, and how frames are spread over them
//! - `transmit`, `offload`: frames from the guest
//! - `receive`, `deliver`, `batch`, `coalesce`: frames to the guest
//! - `offers`, `checksum`: what the NIC does to frames, and what of it is switched on
//! - `fault`: misbehaviour on request
//! - `association`: the VF and the data path

mod association;
mod batch;
mod checksum;
pub mod coalesce;
mod control;
mod counters;
mod deliver;
mod error;
mod fault;
mod link;
mod object;
mod offers;
pub mod offload;
mod outbox;
mod owed;
mod packet;
mod policy;
mod queue;
mod receive;
mod scaling;
mod setup;
mod transmit;

pub use association::VfState;
pub use counters::NicCounters;
pub use error::{NicServiceError, SourceError};
pub use fault::{Moment, NicFault};
pub use offers::OffloadPolicy;
pub use policy::{
    NicPolicy, NicServiceConfig, Notice, ResetAnswer, SendOrder, SendTable, SwitchAnswer,
};
pub use receive::CONTROL_PIECES;
pub use scaling::RECEIVE_TABLE;

use std::collections::VecDeque;

use netvsc::nvsp::{self, Capabilities};
use netvsc::rndis;
use vmbus::memory::PageList;
use vmbus::time::earliest;
use vmbus::{GpadlId, Instant, Pfn, Serial};

use crate::bus::HostChannel;
use crate::switch::{Path, SideState, SwitchPort};
use association::{Action, Association};
use batch::Batch;
use control::Control;
use fault::Faults;
use link::LinkState;
use offers::Offloads;
use queue::Queue;
use receive::ReceiveBuffer;
use scaling::Scaling;
use setup::Setup;

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
    /// Now is the time to offer this many more channels of the NIC.
    OfferSubChannels {
        /// How many.
        count: u16,
    },
    /// The data path changed.
    DataPath(Path),
    /// The guest halted the NIC.
    Halted,
    /// The guest broke the protocol; the channel is not served any more.
    Failed(NicServiceError),
}

/// An open channel and what was agreed on over it.
struct Link {
    /// By number; the primary channel is number 0. The place of a queue is empty while it is served.
    queues: Vec<Option<Queue>>,
    scaling: Scaling,
    setup: Setup,
    control: Control,
    /// What the guest has switched on.
    offloads: Offloads,
    /// Whether the link is up, and what the guest was told of it.
    state: LinkState,
    /// Host messages whose completion the guest may send: associations, notices.
    unconfirmed: [u32; 2],
}

impl Link {
    fn lent(&self) -> usize {
        self.setup.receive.as_ref().map_or(0, ReceiveBuffer::lent)
    }

    /// Times a message waited for room in a ring.
    fn ring_full(&self) -> u64 {
        self.queues.iter().flatten().map(|queue| queue.outbox.full).sum()
    }
}

/// The service of one NIC.
pub struct NicService {
    config: NicServiceConfig,
    link_up: bool,
    link: Option<Link>,
    association: Association,
    events: VecDeque<NicServiceEvent>,
    counters: NicCounters,
    /// One packet of the guest.
    packet: Vec<u8>,
    batch: Batch,
    /// Latest moment at which the service was polled.
    seen: Instant,
    /// The last poll left something in the rings.
    more: bool,
    faults: Faults,
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
            events: VecDeque::new(),
            counters: NicCounters::default(),
            packet: vec![0; PACKET_BUFFER],
            batch: Batch::default(),
            seen: Instant::ZERO,
            more: false,
            faults: Faults::default(),
        }
    }

    /// The guest has opened the channel. An earlier one is forgotten.
    pub fn open(&mut self, channel: HostChannel, port: &mut SwitchPort) {
        self.close(port);
        self.counters.opened += 1;
        self.link = Some(Link {
            queues: vec![Some(Queue::new(0, channel))],
            scaling: Scaling::default(),
            setup: Setup::default(),
            control: Control::default(),
            offloads: Offloads::default(),
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
        self.counters.ring_full += link.ring_full();
        port.set_queues(1, None);
        port.set_nic_gathers(false);
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

    /// Asks the guest whether it is there, as RNDIS lets either side ask. A guest that is not up is not asked. Poll
    /// afterwards; [`NicCounters::keep_alive_answers`] counts the answer.
    pub fn keep_alive(&mut self, now: Instant) {
        if let Some(link) = &mut self.link
            && link.control.is_operational()
        {
            self.counters.keep_alives += 1;
            link.control.keep_alive(self.counters.keep_alives as u32, now);
        }
    }

    /// Tells the guest, out of turn, that the data path is `path`. No real host says "VF". Poll afterwards.
    pub fn send_notice(&mut self, path: Path) {
        self.association.notice(path);
    }

    /// Says again whether there is a VF, and with which serial, to a guest that has heard of it. Poll afterwards.
    pub fn repeat_association(&mut self) {
        self.association.repeat();
    }

    /// Misbehaves once, the next time that it can. Poll afterwards.
    pub fn inject(&mut self, fault: NicFault) {
        self.faults.inject(fault);
    }

    /// How often the service misbehaved like this.
    #[must_use]
    pub fn faults(&self, fault: NicFault) -> u64 {
        self.faults.done(fault)
    }

    /// Behaviour.
    #[must_use]
    pub const fn policy(&self) -> &NicPolicy {
        &self.config.policy
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
            ring_full: self.counters.ring_full + link.map_or(0, Link::ring_full),
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
        let offers = self.link.as_ref().and_then(|link| link.scaling.poll_deadline());
        let more = self.more.then_some(self.seen);
        let queues = self.link.iter().flat_map(|link| link.queues.iter().flatten());
        let owed = queues.filter_map(|queue| queue.owed.poll_deadline(self.seen)).min();
        let own = earliest(earliest(control, told), earliest(offers, earliest(more, owed)));
        earliest(self.association.poll_deadline(), own)
    }

    /// Does all that can be done now: answers the guest, moves frames between its channel and its port, and does what is
    /// due. At its end the guest has been asked to ring for whatever the service waits for from it.
    pub fn poll(&mut self, now: Instant, guest: GuestView<'_>, port: &mut SwitchPort) {
        self.seen = self.seen.max(now);
        // Of a channel that has been closed there is no more.
        self.more = false;
        self.association.handle_deadline(&mut self.config.policy, now);
        let Some(mut link) = self.link.take() else {
            self.act_without_link(port);
            return;
        };
        port.poll(now);
        for queue in link.queues.iter_mut().flatten() {
            queue.channel.set_time(now);
        }
        let mut packet = std::mem::take(&mut self.packet);
        let outcome = self.serve_all(&mut link, &mut packet, now, guest, port);
        self.packet = packet;
        match outcome {
            Ok(()) => self.link = Some(link),
            Err(error) => {
                tracing::debug!(%error, mac = %self.config.mac, "channel given up");
                // What was answered before the error is still the guest's to see.
                for queue in link.queues.iter_mut().flatten() {
                    let _ = queue.channel.commit();
                }
                self.counters.failed += 1;
                self.end(&link, port);
                self.events.push_back(NicServiceEvent::Failed(error));
            }
        }
    }

    fn serve_all(
        &mut self,
        link: &mut Link,
        packet: &mut [u8],
        now: Instant,
        guest: GuestView<'_>,
        port: &mut SwitchPort,
    ) -> Result<(), NicServiceError> {
        for number in 0..link.queues.len() {
            let Some(mut queue) = link.queues.get_mut(number).and_then(Option::take) else {
                continue;
            };
            queue.faults = std::mem::take(&mut self.faults);
            let outcome = self.serve(link, &mut queue, packet, now, guest, port);
            self.faults = std::mem::take(&mut queue.faults);
            if let Some(place) = link.queues.get_mut(number) {
                *place = Some(queue);
            }
            outcome?;
        }
        Ok(())
    }

    /// Carries out what the association machine decided.
    fn act(
        &mut self,
        mut primary: Option<(&mut Link, &mut Queue)>,
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
                    if let Some((link, queue)) = &mut primary {
                        self.tell(link, queue, message)?;
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
mod testing;
#[cfg(test)]
mod tests;

//! The port.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use netvsc::MacAddress;
use netvsc::nic::flow_of;
use netvsc::port::{PortError, PortLink, PortSettings, VfPort};
use rustix::io::Errno;

use super::order::Order;
use super::program::{Attachment, Redirection};
use super::socket::{CHUNK, Lane, Obstacle};
use super::unfinished::finish_checksum;
use crate::netlink::Connection;
use crate::vf::{LinkState, Memberships, PortEars, VfError, Watch};

/// Bytes before a frame that are the kernel's.
const HEADROOM: usize = 256;
/// Longest frame in one piece.
const LONGEST: usize = CHUNK - HEADROOM;
/// Pieces of a frame at most, where there may be several.
const PIECES: usize = 4;
/// Bytes of an Ethernet header with tag.
const ETHERNET_AND_TAG: usize = 18;
/// Queues that are served at most. An interface with more has to be left to the kernel's stack: frames of the others would be lost.
const MOST_QUEUES: u32 = 64;

/// How a port is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct XdpConfig {
    /// The MAC that the function has from its host; the interface gets it if it has another. Without it the port has the
    /// interface's permanent one, or the present one if the driver tells none.
    pub mac: Option<MacAddress>,
    /// Frames in each ring: a power of two from 64 to 4096. Each queue takes 8 KiB of memory for each.
    pub depth: u32,
    /// Whether frames may be copied between memory and driver. Otherwise a driver that cannot do without is an obstacle.
    pub copies: bool,
}

impl Default for XdpConfig {
    /// 1,024 frames, copied if need be.
    fn default() -> Self {
        Self { mac: None, depth: 1024, copies: true }
    }
}

/// What a port has done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct XdpCounters {
    /// Frames that the driver has confirmed.
    pub sent: u64,
    /// Times that there was no room.
    pub pushed_back: u64,
    /// Frames handed on.
    pub received: u64,
    /// Descriptors of received frames that described none.
    pub unusable: u64,
}

/// An interface of the kernel as the port of a virtual function, past the kernel's stack. See the [module](super).
#[derive(Debug)]
pub struct XdpPort {
    watch: Watch,
    mac: Option<MacAddress>,
    /// First, so that no frames come any more when the sockets go.
    redirection: Redirection,
    /// By queue.
    lanes: Vec<Lane>,
    /// How many of them send, the first ones.
    senders: usize,
    memberships: Memberships,
    stuck: Arc<AtomicBool>,
    mtu: u32,
    /// Longest frame.
    longest: usize,
    /// Whoever sends there leaves checksums to a device that there is not.
    unfinished: bool,
    /// Which queue has which frame. Those that were not sent when the link went down are sent elsewhere; they count as confirmed
    /// when it is up again.
    order: Order,
    counters: XdpCounters,
    frame: Vec<u8>,
}

impl XdpPort {
    /// Takes the interface of this name, in the network namespace of this thread, as a port. It is set up.
    ///
    /// # Errors
    /// [`VfError`]: what stands in the way. Nothing is left behind then.
    pub fn open(name: &str, config: XdpConfig) -> Result<Self, VfError> {
        if !(64..=4096).contains(&config.depth) || !config.depth.is_power_of_two() {
            return Err(VfError::Depth(config.depth));
        }
        let mut watch = Watch::open(name)?;
        watch.prepare(config.mac)?;
        let index = watch.link().index;
        let obstacle = |(doing, cause)| VfError::from_attempt(doing, cause);
        let redirection = Redirection::attach(index, MOST_QUEUES)
            .map_err(|cause| obstacle(("attach a program that hands frames over", cause)))?;
        // A driver may take sockets without copies for a program of its own only (mlx5), and would send nothing under one of the kernel's.
        let copied = redirection.attachment == Attachment::Generic;
        let lanes = open_lanes(index, config.depth, copied).map_err(obstacle)?;
        if !config.copies && lanes.iter().any(|lane| !lane.joint.zero_copy) {
            return Err(VfError::Copies);
        }
        for (queue, lane) in (0..).zip(&lanes) {
            redirection
                .put(queue, &*lane.socket)
                .map_err(|cause| obstacle(("hand the frames of a queue over", cause)))?;
        }
        let mac = config.mac.or(watch.link().permanent).or(watch.link().mac);
        let several = redirection.takes_pieces && lanes.iter().all(|lane| lane.joint.several);
        let longest = if several { LONGEST * PIECES } else { LONGEST };
        let unfinished = watch.link().made.is_some();
        // A driver that does not tell has one at least.
        let senders = Connection::transmit_queues(index).unwrap_or_default().unwrap_or(1);
        let senders = (senders as usize).clamp(1, lanes.len());
        Ok(Self {
            watch,
            mac,
            redirection,
            order: Order::new(lanes.len()),
            lanes,
            senders,
            memberships: Memberships::new()?,
            stuck: Arc::default(),
            mtu: 1500,
            longest,
            unfinished,
            counters: XdpCounters::default(),
            frame: vec![0; longest + HEADROOM],
        })
    }

    /// The interface's number, which outlives its names.
    #[must_use]
    pub fn index(&self) -> u32 {
        self.watch.link().index
    }

    /// The interface's name now.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.watch.link().name
    }

    /// How the interface stood when it was last looked at, by [`VfPort::link`].
    #[must_use]
    pub fn state(&self) -> LinkState {
        self.watch.state()
    }

    /// Where the program is.
    #[must_use]
    pub fn attachment(&self) -> Attachment {
        self.redirection.attachment
    }

    /// Whether the driver reaches the memory of all queues by itself.
    #[must_use]
    pub fn is_zero_copy(&self) -> bool {
        self.lanes.iter().all(|lane| lane.joint.zero_copy)
    }

    /// Queues that are served.
    #[must_use]
    pub fn queues(&self) -> usize {
        self.lanes.len()
    }

    /// Queues that frames are sent on: as many as the driver has for that, among those that are served.
    #[must_use]
    pub fn sending_queues(&self) -> usize {
        self.senders
    }

    /// Frames that the driver has confirmed, by queue.
    #[must_use]
    pub fn sent_by_queue(&self) -> Vec<u64> {
        self.lanes.iter().take(self.senders).map(|lane| lane.confirmed).collect()
    }

    /// Frames that each queue has handed on.
    #[must_use]
    pub fn received_by_queue(&self) -> Vec<u64> {
        self.lanes.iter().map(|lane| lane.handed_on).collect()
    }

    /// What has happened so far.
    #[must_use]
    pub fn counters(&self) -> XdpCounters {
        self.counters
    }

    /// What to wait for on its behalf.
    #[must_use]
    pub fn ears(&self) -> PortEars {
        let sockets = self.lanes.iter().map(|lane| &lane.socket);
        PortEars::of(sockets.chain([self.watch.ear()]), &self.stuck)
    }

    /// Takes note of how the interface stands now.
    fn stand(&mut self) {
        for lane in &self.lanes {
            // What a socket remembers of the last change would wake up whoever waits for it, again and again.
            let _ = rustix::net::sockopt::socket_error(&*lane.socket);
        }
        let stopped = self.watch.state() == LinkState::Down;
        match self.watch.state() {
            LinkState::Up => self.order.settle(),
            LinkState::Gone => {}
            LinkState::NoCarrier | LinkState::Down => {
                // It shall not be sent later, as the caller sends it elsewhere.
                self.reap();
                for (queue, lane) in self.lanes.iter_mut().take(self.senders).enumerate() {
                    self.order.cut(queue, lane.take_back(stopped));
                }
            }
        }
        self.stuck.store(false, Ordering::Relaxed);
    }

    fn reap(&mut self) {
        if self.watch.state() == LinkState::Gone {
            return;
        }
        for (queue, lane) in self.lanes.iter_mut().take(self.senders).enumerate() {
            let done = lane.reap();
            self.order.done(queue, done);
            self.counters.sent += done;
        }
    }

    /// The queue that all frames of this one's flow take, so that none overtakes another.
    fn queue_of(&self, frame: &[u8]) -> usize {
        if self.senders == 1 { 0 } else { flow_of(frame) as usize % self.senders }
    }
}

/// A socket for each queue of an interface.
fn open_lanes(index: u32, depth: u32, copied: bool) -> Result<Vec<Lane>, Obstacle> {
    let mut lanes = Vec::new();
    for queue in 0..MOST_QUEUES {
        match Lane::open(index, queue, depth, copied) {
            Ok(lane) => lanes.push(lane),
            // There are no more queues.
            Err((_, Errno::INVAL)) if queue > 0 => return Ok(lanes),
            Err(other) => return Err(other),
        }
    }
    match Lane::open(index, MOST_QUEUES, 64, true) {
        Err((_, Errno::INVAL)) => Ok(lanes),
        Err(other) => Err(other),
        Ok(_) => Err(("serve more than 64 queues", Errno::TOOMANYREFS)),
    }
}

impl VfPort for XdpPort {
    fn permanent_mac(&self) -> Option<MacAddress> {
        self.mac
    }

    fn link(&mut self) -> PortLink {
        if self.watch.follow() {
            self.stand();
        }
        self.watch.state().port()
    }

    fn configure(&mut self, settings: PortSettings) -> Result<(), PortError> {
        if self.watch.state() == LinkState::Gone {
            return Err(PortError::Gone);
        }
        let most = (self.longest - ETHERNET_AND_TAG) as u32;
        let (mtu, set) = (settings.mtu, settings.mtu <= most && self.watch.set_mtu(settings.mtu));
        if self.watch.state() == LinkState::Gone {
            return Err(PortError::Gone);
        }
        let has = self.watch.link().mtu.unwrap_or(0).min(most);
        if !set && has < mtu {
            return Err(PortError::Mtu { mtu, most: has });
        }
        self.mtu = mtu;
        self.memberships.follow(self.watch.link().index, settings.filter);
        Ok(())
    }

    fn transmit(&mut self, frame: &[u8]) -> Result<(), PortError> {
        let most = self.mtu as usize + ETHERNET_AND_TAG;
        if frame.is_empty() || frame.len() > most {
            return Err(PortError::Length { len: frame.len(), most });
        }
        match self.watch.state() {
            LinkState::Gone => return Err(PortError::Gone),
            LinkState::Up => {}
            LinkState::NoCarrier | LinkState::Down => return Err(PortError::Full),
        }
        let queue = self.queue_of(frame);
        for again in [false, true] {
            if self.lanes.get_mut(queue).is_some_and(|lane| lane.push(frame)) {
                self.order.took(queue);
                return Ok(());
            }
            if !again {
                self.flush();
                self.reap();
            }
        }
        self.counters.pushed_back += 1;
        Err(PortError::Full)
    }

    fn flush(&mut self) {
        if self.watch.state() != LinkState::Up {
            return;
        }
        let mut unsent = 0;
        for lane in self.lanes.iter_mut().take(self.senders) {
            if let Err(error) = lane.send() {
                tracing::debug!(%error, "an interface takes no frames");
                self.watch.look();
                self.stand();
                return;
            }
            unsent += lane.unsent();
        }
        self.reap();
        self.stuck.store(unsent > 0, Ordering::Relaxed);
    }

    fn receive(&mut self, sink: &mut dyn FnMut(&[u8])) -> usize {
        if self.watch.state() == LinkState::Gone {
            return 0;
        }
        let Self { lanes, frame, counters, unfinished, .. } = self;
        let mut all = 0;
        for lane in lanes {
            let received = lane.receive(frame, &mut |frame| {
                if *unfinished {
                    finish_checksum(frame);
                }
                sink(frame);
            });
            counters.received += received.good;
            counters.unusable += received.bad;
            all += received.good;
        }
        usize::try_from(all).unwrap_or(usize::MAX)
    }

    fn confirmed(&mut self) -> u64 {
        self.reap();
        self.order.confirmed()
    }
}

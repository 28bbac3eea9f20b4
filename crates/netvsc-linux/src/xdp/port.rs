//! The port.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use netvsc::MacAddress;
use netvsc::port::{PortError, PortLink, PortSettings, VfPort};
use rustix::io::Errno;

use super::program::{Attachment, Redirection};
use super::socket::{CHUNK, Lane};
use super::unfinished::finish_checksum;
use crate::vf::{LinkState, Memberships, PortEars, VfError, Watch};

/// Bytes before a frame that are the kernel's.
const HEADROOM: usize = 256;
/// Longest frame in one piece.
const LONGEST: usize = CHUNK - HEADROOM;
/// Pieces of a frame at most, where there may be several.
const PIECES: usize = 4;
/// Bytes of an Ethernet header with tag.
const ETHERNET_AND_TAG: usize = 18;
/// Queues that are served at most.
const MOST_QUEUES: u32 = 8;

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
    /// By queue; the first sends.
    lanes: Vec<Lane>,
    memberships: Memberships,
    stuck: Arc<AtomicBool>,
    mtu: u32,
    /// Longest frame.
    longest: usize,
    /// Whoever sends there leaves checksums to a device that there is not.
    unfinished: bool,
    confirmed: u64,
    /// Frames that were not sent when the link went down. They are sent elsewhere; they count as confirmed when it is up again.
    cut_off: u64,
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
        let mut lanes = Vec::new();
        for queue in 0..MOST_QUEUES {
            match Lane::open(index, queue, config.depth, false) {
                Ok(lane) => lanes.push(lane),
                // There are no more queues.
                Err((_, Errno::INVAL)) if queue > 0 => break,
                Err(other) => return Err(obstacle(other)),
            }
        }
        if !config.copies && lanes.iter().any(|lane| !lane.joint.zero_copy) {
            return Err(obstacle(("do without copies", Errno::OPNOTSUPP)));
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
        Ok(Self {
            watch,
            mac,
            redirection,
            lanes,
            memberships: Memberships::new()?,
            stuck: Arc::default(),
            mtu: 1500,
            longest,
            unfinished,
            confirmed: 0,
            cut_off: 0,
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
            LinkState::Up => self.confirmed += std::mem::take(&mut self.cut_off),
            LinkState::Gone => {}
            LinkState::NoCarrier | LinkState::Down => {
                // It shall not be sent later, as the caller sends it elsewhere.
                self.reap();
                self.cut_off += self.lanes.first_mut().map_or(0, |lane| lane.take_back(stopped));
            }
        }
        self.stuck.store(false, Ordering::Relaxed);
    }

    fn reap(&mut self) {
        if self.watch.state() == LinkState::Gone {
            return;
        }
        let done = self.lanes.first_mut().map_or(0, Lane::reap);
        self.confirmed += done;
        self.counters.sent += done;
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
        for again in [false, true] {
            if self.lanes.first_mut().is_some_and(|lane| lane.push(frame)) {
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
        let Some(lane) = self.lanes.first_mut() else { return };
        if self.watch.state() != LinkState::Up {
            return;
        }
        let sent = lane.send();
        let unsent = lane.unsent();
        if let Err(error) = sent {
            tracing::debug!(%error, "an interface takes no frames");
            self.watch.look();
            self.stand();
            return;
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
        self.confirmed
    }
}

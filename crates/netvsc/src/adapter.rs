//! One network card out of two: a synthetic NIC and, while there is one, the port of its VF.
//!
//! [`Adapter`] owns both and the [`Failover`] between them. Its owner hands it frames, polls it when either side rang, and binds
//! and releases ports as [`Pairing`](crate::pairing::Pairing) says; the upper layer never notices which path is in use.
//!
//! No frame is lost by a switch. A frame that goes out on the VF stays in a [`Replay`] buffer until the VF confirms it; if the VF
//! vanishes first, it goes out again on the synthetic path, in order and before anything newer. When a path is left in order,
//! new frames wait until it has sent what it has, so that none overtakes another. Both paths are always received from.

mod counters;
mod event;
mod frame;
mod pages;
mod replay;
mod send;
mod synthetic;
mod tap;

use alloc::boxed::Box;
use alloc::collections::VecDeque;
use alloc::vec::Vec;

use vmbus::Instant;
use vmbus::time::earliest;

use crate::failover::{Action, Cause, Failover, FailoverConfig, Outlet};
use crate::nic::Lack;
use crate::port::{Path, PathOffloads, PortError, PortLink, PortSettings, VfPort};

pub use self::counters::AdapterCounters;
pub use self::event::AdapterEvent;
pub use self::frame::{Frame, append, append_as_received};
pub use self::replay::Replay;
pub use self::synthetic::{Refused, Sign, Synthetic};
pub use self::tap::{Direction, Tap};

use self::frame::OfPort;

/// Bytes of an Ethernet header without tag.
const ETHERNET: usize = 14;

/// How an adapter is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AdapterConfig {
    /// Patience of failover.
    pub failover: FailoverConfig,
    /// Frames that a VF may have unconfirmed; beyond this it is treated as full.
    pub replay_frames: usize,
    /// Longest frame, Ethernet header and tag included.
    pub frame_size: usize,
    /// Longest TCP segment to be cut, all headers included.
    pub large_send: usize,
}

impl Default for AdapterConfig {
    /// 512 unconfirmed frames of 1,518 bytes, and the longest segment that IPv4 has, with Ethernet header and tag.
    fn default() -> Self {
        Self {
            failover: FailoverConfig::default(),
            replay_frames: 512,
            frame_size: 1518,
            large_send: 65_535 + 18,
        }
    }
}

/// A frame was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AdapterError {
    /// No room now; try again after the next poll, of the card or of whoever has what it lacks.
    #[error("no room for a frame now: expected {0}; try again after the next poll")]
    Full(Lack),
    /// The NIC is not at work: try again after [`Sign::Ready`].
    #[error("the NIC is not at work: expected its start-up to be finished")]
    NotReady,
    /// It can never be sent.
    #[error("a frame of {len} bytes cannot be sent: expected 14 to {most}")]
    Refused {
        /// Its length.
        len: usize,
        /// The longest that is taken.
        most: usize,
    },
}

/// One network card out of two.
#[derive(Debug)]
pub struct Adapter<N: Synthetic, P> {
    nic: N,
    port: Option<P>,
    failover: Failover,
    replay: Replay,
    /// Frames that the port will have confirmed when it has confirmed everything. The last ones of them are in `replay`, unless
    /// they are, or were, sent again.
    expected: u64,
    /// What is in `replay` has to go out on the synthetic path, before anything newer.
    backlog: bool,
    frame_size: usize,
    /// Longest frame without tag: less than `frame_size` if the NIC's MTU says so.
    most: usize,
    large_send: usize,
    /// Segments of the port's are passed up as they come.
    whole: bool,
    /// What the port does to frames.
    port_offloads: PathOffloads,
    /// How the port was set up last.
    settings: Option<PortSettings>,
    /// Why it cannot be used, if it cannot.
    unfit: Option<PortError>,
    /// A frame that the VF did not take has gone out on the synthetic path, and may still be there.
    detour: bool,
    /// The VF did not take what waits, and never will.
    unwanted: bool,
    /// Where a segment is put together.
    segment: Vec<u8>,
    /// Where a frame is put together that cannot be lent.
    gathered: Vec<u8>,
    /// The port has frames that were not flushed.
    unflushed: bool,
    /// Since when no new frame is taken because of a switch, and what had been pushed back until then.
    paused: Option<(Instant, u64)>,
    events: VecDeque<AdapterEvent<N::Event, P>>,
    counters: AdapterCounters,
    tap: Option<Box<dyn Tap>>,
}

impl<N: Synthetic, P: VfPort> Adapter<N, P> {
    /// A card with a NIC that is starting up, and no VF.
    #[must_use]
    pub fn new(nic: N, config: AdapterConfig) -> Self {
        Self {
            nic,
            port: None,
            failover: Failover::new(config.failover),
            replay: Replay::new(config.replay_frames, config.frame_size, config.large_send),
            expected: 0,
            backlog: false,
            frame_size: config.frame_size,
            most: config.frame_size,
            large_send: config.large_send,
            whole: false,
            port_offloads: PathOffloads::default(),
            settings: None,
            unfit: None,
            detour: false,
            unwanted: false,
            segment: Vec::with_capacity(config.frame_size),
            gathered: Vec::new(),
            unflushed: false,
            paused: None,
            events: VecDeque::new(),
            counters: AdapterCounters::default(),
            tap: None,
        }
    }

    /// Has every frame shown to `tap`, or to none.
    pub fn set_tap(&mut self, tap: Option<Box<dyn Tap>>) {
        self.tap = tap;
    }

    /// The NIC.
    #[must_use]
    pub fn nic(&self) -> &N {
        &self.nic
    }

    /// The NIC, for what concerns it alone. Its path is the adapter's.
    pub fn nic_mut(&mut self) -> &mut N {
        &mut self.nic
    }

    /// The card's parts. A port that is still there is dropped by the caller's choice.
    #[must_use]
    pub fn into_parts(self) -> (N, Option<P>) {
        (self.nic, self.port)
    }

    /// What happened so far.
    #[must_use]
    pub fn counters(&self) -> AdapterCounters {
        self.counters
    }

    /// Where the next frame goes, or would go if nothing had to be waited for.
    #[must_use]
    pub fn path(&self) -> Path {
        self.failover.path()
    }

    /// The path as the host confirmed it last.
    #[must_use]
    pub fn host_path(&self) -> Path {
        self.failover.host_path()
    }

    /// Whether the NIC carries frames.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.failover.is_open()
    }

    /// Whether a switch was asked for and not completed.
    #[must_use]
    pub fn is_switching(&self) -> bool {
        self.failover.is_switching()
    }

    /// Whether a port is bound, also one that is on its way out.
    #[must_use]
    pub fn has_port(&self) -> bool {
        self.port.is_some()
    }

    /// Whether nothing is under way here: no frame unconfirmed, no switch open.
    #[must_use]
    pub fn is_quiet(&self) -> bool {
        self.replay.is_empty()
            && !self.failover.is_switching()
            && self.failover.outlet() != Outlet::Draining
    }

    /// Frames that the VF has not confirmed, and those that are to be sent again.
    #[must_use]
    pub fn unconfirmed(&self) -> usize {
        self.replay.len()
    }

    /// Whether frames, or a switch that is not late yet, are waited for without a deadline. Never the case.
    #[must_use]
    pub fn waits_forever(&self) -> bool {
        self.failover.waits_forever()
    }

    /// Gives the card a port. It is used once it is up and the host has switched.
    ///
    /// # Errors
    /// The port, if there is one already: release that first.
    pub fn bind(&mut self, mut port: P, now: Instant) -> Result<(), P> {
        if self.port.is_some() {
            return Err(port);
        }
        self.expected = port.confirmed();
        self.port_offloads = port.offloads();
        let link = port.link();
        self.port = Some(port);
        (self.settings, self.unfit) = (None, None);
        self.configure();
        self.failover.port_bound(link == PortLink::Up && self.unfit.is_none(), now);
        if link == PortLink::Gone {
            self.failover.port_gone(now);
        }
        self.act(now);
        Ok(())
    }

    /// Sets the port up as the NIC is. A port that cannot be is not used.
    fn configure(&mut self) {
        let Some(settings) = self.nic.settings() else { return };
        self.most = self.frame_size.min(settings.mtu as usize + ETHERNET);
        let Some(port) = &mut self.port else { return };
        if self.settings == Some(settings) {
            return;
        }
        self.settings = Some(settings);
        self.unfit = match port.configure(settings) {
            // One that is gone says so by its link.
            Ok(()) | Err(PortError::Gone) => None,
            Err(error) => {
                self.events.push_back(AdapterEvent::Unfit { error });
                Some(error)
            }
        };
    }

    /// What frames can be given to the card to be done for nothing: what both paths do, or the NIC alone while there is no
    /// VF. Everything else is done too, by this guest; so a connection may rely on what it was told, whatever comes.
    #[must_use]
    pub fn offloads(&self) -> PathOffloads {
        let nic = self.nic.offloads();
        if self.port.is_some() { nic.both(self.port_offloads) } else { nic }
    }

    /// Longest TCP segment that [`Adapter::transmit_with`] has cut, in bytes with all headers.
    #[must_use]
    pub fn large_send(&self) -> usize {
        self.large_send
    }

    /// Takes the port back: it leaves the path, is drained, and comes back as [`AdapterEvent::Released`].
    pub fn release(&mut self, cause: Cause, now: Instant) {
        self.failover.port_leaving(cause, now);
        self.reap();
        self.act(now);
    }

    /// Chooses whether what a VF received as one TCP segment, longer than a frame, is passed up as one: [`Frame::large`].
    pub fn take_whole(&mut self, whole: bool) {
        self.whole = whole;
    }

    /// The port's function is gone: nothing is waited for.
    pub fn port_gone(&mut self, now: Instant) {
        if self.port.is_some() {
            self.reap();
            self.failover.port_gone(now);
            self.act(now);
        }
    }

    /// The NIC's channel is gone or about to be closed.
    pub fn channel_closed(&mut self, now: Instant) {
        self.failover.channel_closed(now);
        self.act(now);
    }

    /// Does what can be done now, and passes up what came on either path (F1). Call it when the NIC's or the port's doorbell rang,
    /// and at [`Adapter::poll_deadline`].
    ///
    /// # Errors
    /// The NIC's channel is dead. The adapter is on synthetic then, and waits for a new channel.
    pub fn poll(
        &mut self,
        now: Instant,
        sink: &mut dyn FnMut(Path, &dyn Frame),
    ) -> Result<(), N::Error> {
        let on_vf = self.failover.path() == Path::Vf;
        let Self { counters, tap, .. } = self;
        let polled = self.nic.poll(now, &mut |frame| {
            if on_vf && seeded!("deaf-to-synthetic") {
                return;
            }
            counters.frames_received += 1;
            if let Some(tap) = tap {
                tap.frame(Path::Synthetic, frame.queue(), Direction::In, now, frame);
            }
            sink(Path::Synthetic, frame);
        });
        if let Some(port) = &mut self.port
            && (on_vf || !seeded!("deaf-to-vf"))
        {
            let mut take = |frame: OfPort<'_>| {
                let count = frame.count();
                counters.frames_received += count;
                counters.frames_received_vf += count;
                if let Some(tap) = tap {
                    tap.frame(Path::Vf, 0, Direction::In, now, &frame);
                }
                sink(Path::Vf, &frame);
            };
            match self.whole {
                true => port.receive_whole(&mut |frame, send| take(OfPort(frame, send))),
                false => port.receive(&mut |frame| take(OfPort(frame, None))),
            };
        }
        self.reap();
        // Before anything that leads to a switch.
        self.configure();
        self.look_at_port(now);
        while let Some(event) = self.nic.poll_event() {
            self.heed(N::sign(&event), now);
            self.events.push_back(AdapterEvent::Nic(event));
        }
        if polled.is_err() {
            self.failover.channel_closed(now);
        }
        self.act(now);
        self.failover.handle_deadline(now);
        self.act(now);
        self.resend(now);
        if self.failover.outlet() == Outlet::Path(Path::Vf) && !self.backlog {
            self.give(now);
        }
        self.watch_pause(now);
        self.flush();
        polled
    }

    fn heed(&mut self, sign: Option<Sign>, now: Instant) {
        match sign {
            Some(Sign::Ready) => self.failover.channel_opened(now),
            Some(Sign::Closed) => self.failover.channel_closed(now),
            Some(Sign::Associated) => self.failover.associated(now),
            Some(Sign::Disassociated) => self.failover.disassociated(now),
            Some(Sign::SwitchCompleted(path)) => self.failover.switch_completed(path, now),
            Some(Sign::HostSwitched(path)) => self.failover.host_switched(path, now),
            None => {}
        }
    }

    /// Follows the port's carrier.
    fn look_at_port(&mut self, now: Instant) {
        let Some(port) = &mut self.port else { return };
        match port.link() {
            PortLink::Up => self.failover.port_link(self.unfit.is_none(), now),
            PortLink::Down => self.failover.port_link(false, now),
            PortLink::Gone => self.failover.port_gone(now),
        }
    }

    /// Carries out what failover decided.
    fn act(&mut self, now: Instant) {
        while let Some(action) = self.failover.poll_action() {
            match action {
                Action::Switch(path) => self.nic.switch_data_path(path, now),
                Action::Transmit { path, cause } => {
                    match path {
                        Path::Vf => self.counters.switches_to_vf += 1,
                        Path::Synthetic => self.counters.switches_to_synthetic += 1,
                    }
                    self.paused.get_or_insert((now, self.counters.pushed_back));
                    // What the path that is left has must go out, or it would be waited for in vain.
                    self.flush();
                    self.reap();
                    self.events.push_back(AdapterEvent::Path { path, cause });
                }
                Action::Resend => {
                    self.begin_resend();
                }
                Action::Release { orderly } => {
                    if let Some(port) = self.port.take() {
                        self.events.push_back(AdapterEvent::Released { port, orderly });
                    }
                }
                Action::ReportOverdue { path } => {
                    self.events.push_back(AdapterEvent::SwitchOverdue { path });
                }
                Action::ReportRetry { attempt } => {
                    self.counters.switch_retries += 1;
                    self.events.push_back(AdapterEvent::Retrying { attempt });
                }
                Action::ReportFlapping { switches } => {
                    self.events.push_back(AdapterEvent::Flapping { switches });
                }
            }
        }
        self.watch_pause(now);
    }

    /// Tells how long a switch kept new frames waiting, once it does so no longer.
    fn watch_pause(&mut self, now: Instant) {
        let Outlet::Path(path) = self.failover.outlet() else { return };
        if !self.backlog
            && let Some((since, before)) = self.paused.take()
        {
            let pushed_back = self.counters.pushed_back - before;
            self.events.push_back(AdapterEvent::Resumed {
                path,
                blackout: now.since(since),
                pushed_back,
            });
        }
    }

    /// The next event.
    pub fn poll_event(&mut self) -> Option<AdapterEvent<N::Event, P>> {
        self.events.pop_front()
    }

    /// When to poll at the latest.
    #[must_use]
    pub fn poll_deadline(&self) -> Option<Instant> {
        earliest(self.nic.poll_deadline(), self.failover.poll_deadline())
    }
}

#[cfg(test)]
#[path = "adapter_order_tests.rs"]
mod order_tests;
#[cfg(test)]
#[path = "adapter_tests.rs"]
mod tests;

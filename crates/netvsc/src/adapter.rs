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
mod replay;
mod tap;

use alloc::boxed::Box;
use alloc::collections::VecDeque;
use alloc::vec::Vec;

use vmbus::Instant;
use vmbus::time::earliest;

use crate::failover::{Action, Cause, Failover, FailoverConfig, Outlet};
use crate::port::{Path, PortError, PortLink, VfPort};

pub use self::counters::AdapterCounters;
pub use self::event::AdapterEvent;
pub use self::replay::Replay;
pub use self::tap::{Direction, Tap};

/// A received frame, wherever it lies.
pub trait Frame {
    /// Its length in bytes, Ethernet header included.
    fn len(&self) -> usize;

    /// Whether it has no bytes at all.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Copies it into `out`; the number of bytes copied is the smaller of both lengths.
    fn copy_to(&self, out: &mut [u8]) -> usize;
}

impl Frame for &[u8] {
    fn len(&self) -> usize {
        <[u8]>::len(self)
    }

    fn copy_to(&self, out: &mut [u8]) -> usize {
        let len = <[u8]>::len(self).min(out.len());
        if let (Some(to), Some(from)) = (out.get_mut(..len), self.get(..len)) {
            to.copy_from_slice(from);
        }
        len
    }
}

/// What a synthetic NIC says that bears on the path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sign {
    /// It can carry frames and switch messages.
    Ready,
    /// Its channel is closed or dead.
    Closed,
    /// The host associated it with a serial.
    Associated,
    /// The host has no VF for it any more.
    Disassociated,
    /// The host completed a switch.
    SwitchCompleted(Path),
    /// The host switched by itself.
    HostSwitched(Path),
}

/// Why the synthetic NIC did not take a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// No room now; after its doorbell rang and it was polled, there may be.
    Full,
    /// The NIC is not at work (yet, or any more). When it is, the frame may be taken.
    NotReady,
    /// It cannot be sent at all: the frame is too long or too short.
    Never,
}

/// The synthetic NIC as the adapter sees it. [`Nic`](crate::nic::Nic) is the one that there is.
pub trait Synthetic {
    /// Everything it has to say.
    type Event;
    /// Why it cannot go on.
    type Error;

    /// Does what can be done now; received frames go to `sink`.
    ///
    /// # Errors
    /// The channel is dead.
    fn poll(&mut self, now: Instant, sink: &mut dyn FnMut(&dyn Frame)) -> Result<(), Self::Error>;

    /// The next event.
    fn poll_event(&mut self) -> Option<Self::Event>;

    /// What an event means for the path.
    fn sign(event: &Self::Event) -> Option<Sign>;

    /// When to poll at the latest.
    fn poll_deadline(&self) -> Option<Instant>;

    /// Takes a frame to be sent with the next [`flush`](Synthetic::flush).
    ///
    /// # Errors
    /// [`Refused`]; nothing was taken.
    fn transmit(&mut self, frame: &[u8]) -> Result<(), Refused>;

    /// Sends what was taken.
    fn flush(&mut self);

    /// Whether the host has taken every frame that was sent.
    fn is_idle(&self) -> bool;

    /// Asks the host for a data path. If there is no room for that now, it is done later, and the newest wish wins (F8).
    fn switch_data_path(&mut self, path: Path, now: Instant);
}

/// How an adapter is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AdapterConfig {
    /// Patience of failover.
    pub failover: FailoverConfig,
    /// Frames that a VF may have unconfirmed; beyond this it is treated as full.
    pub replay_frames: usize,
    /// Longest frame, Ethernet header included.
    pub frame_size: usize,
}

impl Default for AdapterConfig {
    /// 512 unconfirmed frames of 1,518 bytes.
    fn default() -> Self {
        Self { failover: FailoverConfig::default(), replay_frames: 512, frame_size: 1518 }
    }
}

/// A frame was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AdapterError {
    /// No room now; try again after the next poll.
    #[error("no room for a frame now: try again after the next poll")]
    Full,
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
    /// Of `replay`, frames that have to go out on the synthetic path first.
    backlog: usize,
    frame_size: usize,
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
            replay: Replay::new(config.replay_frames, config.frame_size),
            expected: 0,
            backlog: 0,
            frame_size: config.frame_size,
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

    /// Shows the tap a frame that a path took.
    #[inline]
    fn show(tap: &mut Option<Box<dyn Tap>>, path: Path, now: Instant, frame: &[u8]) {
        if let Some(tap) = tap {
            tap.frame(path, Direction::Out, now, &frame);
        }
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
        let link = port.link();
        self.port = Some(port);
        self.failover.port_bound(link == PortLink::Up, now);
        if link == PortLink::Gone {
            self.failover.port_gone(now);
        }
        self.act(now);
        Ok(())
    }

    /// Takes the port back: it leaves the path, is drained, and comes back as [`AdapterEvent::Released`].
    pub fn release(&mut self, cause: Cause, now: Instant) {
        self.failover.port_leaving(cause, now);
        self.reap();
        self.act(now);
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

    /// Takes a frame to be sent with the next [`Adapter::flush`].
    ///
    /// # Errors
    /// [`AdapterError`]; nothing was taken.
    pub fn transmit(&mut self, frame: &[u8], now: Instant) -> Result<(), AdapterError> {
        if frame.len() > self.frame_size {
            self.counters.refused += 1;
            return Err(AdapterError::Refused { len: frame.len(), most: self.frame_size });
        }
        if self.failover.outlet() == Outlet::Draining {
            self.reap();
            self.act(now);
        }
        let result = match self.failover.outlet() {
            Outlet::Draining => Err(Refused::Full),
            Outlet::Path(Path::Vf) => self.transmit_vf(frame, now),
            Outlet::Path(Path::Synthetic) => self.transmit_synthetic(frame, now),
        };
        match result {
            Ok(()) => {
                self.counters.frames_accepted += 1;
                Ok(())
            }
            Err(Refused::Full) => {
                self.counters.pushed_back += 1;
                Err(AdapterError::Full)
            }
            Err(Refused::NotReady) => {
                self.counters.pushed_back += 1;
                Err(AdapterError::NotReady)
            }
            Err(Refused::Never) => {
                self.counters.refused += 1;
                Err(AdapterError::Refused { len: frame.len(), most: self.frame_size })
            }
        }
    }

    fn transmit_vf(&mut self, frame: &[u8], now: Instant) -> Result<(), Refused> {
        if self.replay.is_full() {
            self.reap();
            if self.replay.is_full() {
                return Err(Refused::Full);
            }
        }
        // What an earlier VF left behind goes first, on the path that is safe.
        self.resend(now);
        if self.backlog > 0 {
            return Err(Refused::Full);
        }
        let Some(port) = &mut self.port else { return self.transmit_synthetic(frame, now) };
        match port.transmit(frame) {
            Ok(()) => {
                Self::show(&mut self.tap, Path::Vf, now, frame);
                self.replay.push(frame);
                self.expected = self.expected.saturating_add(1);
                self.unflushed = true;
                self.counters.frames_vf += 1;
                Ok(())
            }
            Err(PortError::Full) => {
                // The port may wait for its doorbell before it can confirm anything.
                port.flush();
                self.unflushed = false;
                self.reap();
                Err(Refused::Full)
            }
            Err(PortError::Gone) => {
                self.port_gone(now);
                self.transmit_synthetic(frame, now)
            }
            Err(PortError::Length { .. }) => {
                self.counters.too_long_for_vf += 1;
                self.transmit_synthetic(frame, now)
            }
        }
    }

    fn transmit_synthetic(&mut self, frame: &[u8], now: Instant) -> Result<(), Refused> {
        if !seeded!("resend-behind-newer") {
            self.resend(now);
            if self.backlog > 0 {
                return Err(Refused::Full);
            }
        }
        self.nic.transmit(frame)?;
        Self::show(&mut self.tap, Path::Synthetic, now, frame);
        self.counters.frames_synthetic += 1;
        Ok(())
    }

    /// Sends what was taken.
    pub fn flush(&mut self) {
        self.nic.flush();
        if core::mem::take(&mut self.unflushed)
            && let Some(port) = &mut self.port
        {
            port.flush();
        }
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
                tap.frame(Path::Synthetic, Direction::In, now, frame);
            }
            sink(Path::Synthetic, frame);
        });
        if let Some(port) = &mut self.port
            && (on_vf || !seeded!("deaf-to-vf"))
        {
            port.receive(&mut |frame| {
                counters.frames_received += 1;
                counters.frames_received_vf += 1;
                if let Some(tap) = tap {
                    tap.frame(Path::Vf, Direction::In, now, &frame);
                }
                sink(Path::Vf, &frame);
            });
        }
        self.reap();
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
        self.watch_pause(now);
        self.nic.flush();
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
            PortLink::Up => self.failover.port_link(true, now),
            PortLink::Down => self.failover.port_link(false, now),
            PortLink::Gone => self.failover.port_gone(now),
        }
    }

    /// Forgets frames that the VF has confirmed, and notices when the path that was left has sent everything.
    fn reap(&mut self) {
        if let Some(port) = &mut self.port
            && self.backlog == 0
        {
            // Counted from the end: of what the port has not confirmed, the oldest may have been sent again long ago.
            let unconfirmed = self.expected.saturating_sub(port.confirmed());
            let unconfirmed = unconfirmed.saturating_sub(u64::from(seeded!("confirm-too-many")));
            let unconfirmed = usize::try_from(unconfirmed).unwrap_or(usize::MAX);
            self.replay.forget(self.replay.len().saturating_sub(unconfirmed));
        }
        if self.failover.outlet() == Outlet::Draining {
            let sent = match self.failover.path() {
                Path::Synthetic => self.replay.is_empty(),
                Path::Vf => self.backlog == 0 && self.nic.is_idle(),
            };
            if sent {
                self.failover.drained();
            }
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
                    self.reap();
                    self.backlog = self.replay.len();
                    if self.backlog > 0 {
                        self.events.push_back(AdapterEvent::Resending { frames: self.backlog });
                    }
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
        if self.backlog == 0
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

    /// Sends what has to go out again, as far as there is room. Without a channel it waits for the next one.
    fn resend(&mut self, now: Instant) {
        while self.backlog > 0 && self.failover.is_open() {
            let Some(frame) = self.replay.front() else {
                self.backlog = 0;
                return;
            };
            match self.nic.transmit(frame) {
                Ok(()) => {
                    Self::show(&mut self.tap, Path::Synthetic, now, frame);
                    self.counters.frames_synthetic += 1;
                    self.counters.frames_resent += 1;
                }
                Err(Refused::Full | Refused::NotReady) => return,
                Err(Refused::Never) => self.counters.frames_lost += 1,
            }
            self.replay.forget(1);
            self.backlog -= 1;
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

/// Frames of a sink as bytes, for callers that keep them.
pub fn append(frame: &dyn Frame, to: &mut Vec<u8>) {
    let start = to.len();
    to.resize(start + frame.len(), 0);
    if let Some(room) = to.get_mut(start..) {
        let copied = frame.copy_to(room);
        to.truncate(start + copied);
    }
}

#[cfg(test)]
#[path = "adapter_order_tests.rs"]
mod order_tests;
#[cfg(test)]
#[path = "adapter_tests.rs"]
mod tests;

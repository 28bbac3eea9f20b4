//! One network card out of two: a synthetic NIC and, while there is one, the port of its VF.
//!
//! [`Adapter`] owns both and the [`Failover`] between them. Its owner hands it frames, polls it when either side rang, and binds
//! and releases ports as [`Pairing`](crate::pairing::Pairing) says; the upper layer never notices which path is in use.
//!
//! No frame is lost by a switch. A frame that goes out on the VF stays in a [`Replay`] buffer until the VF confirms it; if the VF
//! vanishes first, it goes out again on the synthetic path, in order and before anything newer. When a VF is left in order,
//! new frames wait until it has confirmed what it has, so that none overtakes another. Both paths are always received from.

use alloc::boxed::Box;
use alloc::collections::VecDeque;
use alloc::vec::Vec;
use core::fmt;

use vmbus::Instant;
use vmbus::time::earliest;

use crate::failover::{Action, Cause, Failover, FailoverConfig, Outlet};
use crate::port::{Path, PortError, PortLink, VfPort};

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
    /// The host says that it has no VF any more.
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
    /// It cannot be sent at all: the NIC is not ready, or the frame is too long or too short.
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

    /// Asks the host for a data path.
    fn switch_data_path(&mut self, path: Path, now: Instant);
}

/// Frames that a VF has and has not confirmed, oldest first. All memory is taken at the start.
pub struct Replay {
    bytes: Box<[u8]>,
    lengths: Box<[usize]>,
    frame_size: usize,
    first: usize,
    count: usize,
}

impl fmt::Debug for Replay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Replay({} of {})", self.count, self.lengths.len())
    }
}

impl Replay {
    /// Room for `frames` frames of up to `frame_size` bytes.
    #[must_use]
    pub fn new(frames: usize, frame_size: usize) -> Self {
        Self {
            bytes: alloc::vec![0; frames.saturating_mul(frame_size)].into(),
            lengths: alloc::vec![0; frames].into(),
            frame_size,
            first: 0,
            count: 0,
        }
    }

    /// Number of frames.
    #[must_use]
    pub fn len(&self) -> usize {
        self.count
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    fn is_full(&self) -> bool {
        self.count == self.lengths.len()
    }

    /// Place of the frame `index` behind the oldest.
    fn place(&self, index: usize) -> usize {
        let place = self.first + index;
        if place < self.lengths.len() { place } else { place - self.lengths.len() }
    }

    /// Keeps a copy. The caller has looked for room and length.
    fn push(&mut self, frame: &[u8]) {
        let place = self.place(self.count);
        let start = place * self.frame_size;
        let to = self.bytes.get_mut(start..start + frame.len());
        if let (Some(to), Some(length)) = (to, self.lengths.get_mut(place)) {
            to.copy_from_slice(frame);
            *length = frame.len();
            self.count += 1;
        }
    }

    /// The oldest frame.
    fn front(&self) -> Option<&[u8]> {
        if self.count == 0 {
            return None;
        }
        let start = self.first * self.frame_size;
        self.bytes.get(start..start + self.lengths.get(self.first)?)
    }

    /// Forgets the oldest `frames` frames.
    fn forget(&mut self, frames: usize) {
        let frames = frames.min(self.count);
        self.first = self.place(frames);
        self.count -= frames;
    }
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

/// What an adapter did. Every frame taken is in exactly one of `frames_vf` and `frames_synthetic`, and once more in
/// `frames_resent` if it had to go out again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AdapterCounters {
    /// Frames taken from the upper layer.
    pub frames_accepted: u64,
    /// Frames sent on VFs.
    pub frames_vf: u64,
    /// Frames sent on the synthetic path, those sent again included.
    pub frames_synthetic: u64,
    /// Frames sent again since a VF never confirmed them.
    pub frames_resent: u64,
    /// Frames passed up.
    pub frames_received: u64,
    /// Of these, frames from VFs.
    pub frames_received_vf: u64,
    /// Times that the path went to a VF.
    pub switches_to_vf: u64,
    /// Times that the path went back to synthetic.
    pub switches_to_synthetic: u64,
    /// Frames that could not be taken now.
    pub pushed_back: u64,
    /// Frames that can never be sent.
    pub refused: u64,
    /// Frames that a VF did not take for their length and that went out on the synthetic path.
    pub too_long_for_vf: u64,
}

impl core::ops::Add for AdapterCounters {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            frames_accepted: self.frames_accepted + other.frames_accepted,
            frames_vf: self.frames_vf + other.frames_vf,
            frames_synthetic: self.frames_synthetic + other.frames_synthetic,
            frames_resent: self.frames_resent + other.frames_resent,
            frames_received: self.frames_received + other.frames_received,
            frames_received_vf: self.frames_received_vf + other.frames_received_vf,
            switches_to_vf: self.switches_to_vf + other.switches_to_vf,
            switches_to_synthetic: self.switches_to_synthetic + other.switches_to_synthetic,
            pushed_back: self.pushed_back + other.pushed_back,
            refused: self.refused + other.refused,
            too_long_for_vf: self.too_long_for_vf + other.too_long_for_vf,
        }
    }
}

/// What an adapter has to say.
#[derive(Debug)]
pub enum AdapterEvent<E, P> {
    /// The NIC said something.
    Nic(E),
    /// Frames leave on another path from now on.
    Path {
        /// The path.
        path: Path,
        /// Why.
        cause: Cause,
    },
    /// Frames that a VF had not confirmed go out again.
    Resending {
        /// How many.
        frames: usize,
    },
    /// A port is quiet and no longer the adapter's.
    Released {
        /// The port.
        port: P,
        /// Whether it let everything go in order.
        orderly: bool,
    },
    /// The host has not completed a switch in time.
    SwitchOverdue {
        /// To where.
        path: Path,
    },
    /// The path switches too often.
    Flapping {
        /// Switches within the window of the configuration.
        switches: usize,
    },
}

/// A frame was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AdapterError {
    /// No room now; try again after the next poll.
    #[error("no room for a frame now: try again after the next poll")]
    Full,
    /// It can never be sent.
    #[error(
        "a frame of {len} bytes cannot be sent: the NIC is not ready, or takes 14 to {most} bytes"
    )]
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
    /// Frames that the port had confirmed when it was last asked.
    confirmed: u64,
    /// Of `replay`, frames that have to go out on the synthetic path first.
    backlog: usize,
    frame_size: usize,
    /// The port has frames that were not flushed.
    unflushed: bool,
    events: VecDeque<AdapterEvent<N::Event, P>>,
    counters: AdapterCounters,
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
            confirmed: 0,
            backlog: 0,
            frame_size: config.frame_size,
            unflushed: false,
            events: VecDeque::new(),
            counters: AdapterCounters::default(),
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
        match self.failover.outlet() {
            Outlet::Path(path) => path,
            Outlet::Draining => Path::Synthetic,
        }
    }

    /// The path as the host confirmed it last.
    #[must_use]
    pub fn host_path(&self) -> Path {
        self.failover.host_path()
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

    /// Gives the card a port. It is used once it is up and the host has switched.
    ///
    /// # Errors
    /// The port, if there is one already: release that first.
    pub fn bind(&mut self, mut port: P, now: Instant) -> Result<(), P> {
        if self.port.is_some() {
            return Err(port);
        }
        self.confirmed = port.confirmed();
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
        let result = match self.failover.outlet() {
            Outlet::Draining => {
                self.reap();
                self.act(now);
                Err(Refused::Full)
            }
            Outlet::Path(Path::Vf) => self.transmit_vf(frame, now),
            Outlet::Path(Path::Synthetic) => self.transmit_synthetic(frame),
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
        self.resend();
        if self.backlog > 0 {
            return Err(Refused::Full);
        }
        let Some(port) = &mut self.port else { return self.transmit_synthetic(frame) };
        match port.transmit(frame) {
            Ok(()) => {
                self.replay.push(frame);
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
                self.transmit_synthetic(frame)
            }
            Err(PortError::Length { .. }) => {
                self.counters.too_long_for_vf += 1;
                self.transmit_synthetic(frame)
            }
        }
    }

    fn transmit_synthetic(&mut self, frame: &[u8]) -> Result<(), Refused> {
        self.resend();
        if self.backlog > 0 {
            return Err(Refused::Full);
        }
        self.nic.transmit(frame)?;
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
        let counters = &mut self.counters;
        let polled = self.nic.poll(now, &mut |frame| {
            counters.frames_received += 1;
            sink(Path::Synthetic, frame);
        });
        if let Some(port) = &mut self.port {
            port.receive(&mut |frame| {
                counters.frames_received += 1;
                counters.frames_received_vf += 1;
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
        self.failover.handle_deadline(now);
        self.act(now);
        self.resend();
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

    /// Forgets frames that the VF has confirmed.
    fn reap(&mut self) {
        let Some(port) = &mut self.port else { return };
        let confirmed = port.confirmed();
        let frames = confirmed.saturating_sub(self.confirmed);
        self.confirmed = confirmed;
        if self.backlog == 0 {
            self.replay.forget(usize::try_from(frames).unwrap_or(usize::MAX));
        }
        if self.replay.is_empty() && self.failover.outlet() == Outlet::Draining {
            self.failover.drained();
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
                    if path == Path::Synthetic {
                        // What the port has must go out, or it would never be confirmed.
                        self.flush();
                        self.reap();
                    }
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
                Action::ReportFlapping { switches } => {
                    self.events.push_back(AdapterEvent::Flapping { switches });
                }
            }
        }
    }

    /// Sends what has to go out again, as far as there is room.
    fn resend(&mut self) {
        while self.backlog > 0 {
            let Some(frame) = self.replay.front() else { break };
            if self.nic.transmit(frame) == Err(Refused::Full) {
                return;
            }
            self.counters.frames_synthetic += 1;
            self.counters.frames_resent += 1;
            self.replay.forget(1);
            self.backlog -= 1;
        }
        self.backlog = 0;
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
#[path = "adapter_tests.rs"]
mod tests;

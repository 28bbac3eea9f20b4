//! embassy-net's driver, and the runner that moves its frames.
//!
//! `embassy_net::new` keeps its driver, so that the card cannot be part of it: somebody has to poll it. [`Device::split`] makes two ends of
//! a device. The [`StackDriver`] is what `embassy_net::new` is given; the [`Runner`] has the card, and a task of the card's owner
//! polls it:
//!
//! ```text
//! let (mut runner, driver) = Device::new(nic, config).split();
//! let (stack, stack_runner) = embassy_net::new(driver, net_config, resources, seed);
//! // One task: stack_runner.run(). Another:
//! loop {
//!     runner.poll(now())?;
//!     while let Some(event) = runner.poll_event() { /* whatever is of interest */ }
//!     select3(doorbell.wait(), Timer::at(runner.poll_deadline()), runner.queued()).await;
//! }
//! ```
//!
//! A shell that keeps its cards elsewhere takes [`Frames::share`] and carries the frames itself.
//!
//! Each end wakes the other's task: the stack's when frames come, room comes back or the link changes, the card's when the stack has queued
//! frames. Both ends share the queues by reference count and without a lock, so that neither is `Send`: their tasks run on one executor, as
//! those of embassy's thread mode do, and what a doorbell's interrupt does is to wake the card's task.

use alloc::rc::Rc;
use alloc::vec::Vec;
use core::cell::RefCell;
use core::future::poll_fn;
use core::task::{Context, Poll, Waker};

use embassy_net_driver::{Capabilities, Checksum, Driver, HardwareAddress, LinkState};
use vmbus::Instant;

use super::driven::Driven;
use super::{Card, Device, Frames};

/// Has a task woken.
fn register(place: &mut Option<Waker>, context: &Context<'_>) {
    match place {
        Some(waker) => waker.clone_from(context.waker()),
        none => *none = Some(context.waker().clone()),
    }
}

impl Frames {
    /// Makes two ends of the queues: one for who carries the frames, one for the stack.
    #[must_use]
    pub fn share(self) -> (SharedFrames, StackDriver) {
        let frames = Rc::new(RefCell::new(self));
        (SharedFrames(frames.clone()), StackDriver(frames))
    }
}

impl<C: Card> Device<C> {
    /// Makes two ends of the device: one for the task that runs the card, one for the stack.
    #[must_use]
    pub fn split(self) -> (Runner<C>, StackDriver) {
        let (frames, driver) = self.frames.share();
        (Runner { driven: self.driven, frames }, driver)
    }
}

/// The queues of a stack that has the other end of them. When this is dropped, the stack's link is down.
#[derive(Debug)]
pub struct SharedFrames(Rc<RefCell<Frames>>);

impl SharedFrames {
    /// Shows the queues to `f`, which carries frames, tells of the link, or counts. It must not run the stack.
    ///
    /// # Panics
    /// If `f` uses the stack's end of the same queues.
    pub fn with<R>(&self, f: impl FnOnce(&mut Frames) -> R) -> R {
        f(&mut self.0.borrow_mut())
    }

    /// Ready if the stack has queued frames since this was asked last, or since [`Frames::send`]; otherwise the task is woken when it does.
    /// Frames that the card had no room for do not count: they wait for the card.
    pub fn poll_queued(&mut self, context: &mut Context<'_>) -> Poll<()> {
        let mut frames = self.0.borrow_mut();
        if core::mem::take(&mut frames.queued) {
            return Poll::Ready(());
        }
        register(&mut frames.card_waker, context);
        Poll::Pending
    }

    /// Waits for [`SharedFrames::poll_queued`]. Nothing is lost if it is dropped before.
    pub async fn queued(&mut self) {
        poll_fn(|context| self.poll_queued(context)).await;
    }
}

impl Drop for SharedFrames {
    fn drop(&mut self) {
        self.0.borrow_mut().set_link(false);
    }
}

/// A card whose stack has the other end of its queues. A task of its own polls it.
#[derive(Debug)]
pub struct Runner<C: Card> {
    driven: Driven<C>,
    frames: SharedFrames,
}

impl<C: Card> Runner<C> {
    /// The card.
    #[must_use]
    pub fn card(&self) -> &C {
        &self.driven.card
    }

    /// The card, for what is not about frames: a port to bind, a setting. Its events come out of [`Runner::poll_event`].
    pub fn card_mut(&mut self) -> &mut C {
        &mut self.driven.card
    }

    /// The card again; the stack's link is down.
    #[must_use]
    pub fn into_card(self) -> C {
        self.driven.card
    }

    /// The queues, to count or to say what has become known only now. Their link is the card's as of the last poll.
    #[must_use]
    pub fn frames(&self) -> &SharedFrames {
        &self.frames
    }

    /// Carries frames both ways as far as they go now, and wakes the stack if it has something to do. To be called when the host rang, when
    /// [`Runner::poll_deadline`] has come, and when the stack has [queued](Runner::queued) frames.
    ///
    /// # Errors
    /// The card's: its channel is dead. The stack's link is down then.
    pub fn poll(&mut self, now: Instant) -> Result<(), C::Error> {
        let Self { driven, frames } = self;
        frames.with(|frames| driven.poll(frames, now)).map(|_| ())
    }

    /// The next event of the card, as of [`Device::poll_event`].
    pub fn poll_event(&mut self) -> Option<C::Event> {
        self.driven.events.pop_front()
    }

    /// Events that nobody took in time.
    #[must_use]
    pub fn events_lost(&self) -> u64 {
        self.driven.lost
    }

    /// When to poll although nobody rang.
    #[must_use]
    pub fn poll_deadline(&self) -> Option<Instant> {
        self.driven.card.poll_deadline()
    }

    /// Ready if the stack has queued frames since the last poll; otherwise the task is woken when it does.
    pub fn poll_queued(&mut self, context: &mut Context<'_>) -> Poll<()> {
        self.frames.poll_queued(context)
    }

    /// Waits for [`Runner::poll_queued`]. Nothing is lost if it is dropped before.
    pub async fn queued(&mut self) {
        self.frames.queued().await;
    }
}

/// The stack's end: what `embassy_net::new` is given.
#[derive(Debug)]
pub struct StackDriver(Rc<RefCell<Frames>>);

/// A frame that the stack takes in; its buffer goes back to the spare ones.
#[derive(Debug)]
pub struct RxToken<'a> {
    frame: Vec<u8>,
    frames: &'a RefCell<Frames>,
}

impl embassy_net_driver::RxToken for RxToken<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(mut self, f: F) -> R {
        // The stack may answer in there, through the other token.
        let result = f(&mut self.frame);
        self.frames.borrow_mut().ends().1.give(self.frame);
        result
    }
}

/// Room for a frame that the stack sends.
#[derive(Debug)]
pub struct TxToken<'a> {
    frames: &'a RefCell<Frames>,
}

impl embassy_net_driver::TxToken for TxToken<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        let mut buffer = {
            let mut frames = self.frames.borrow_mut();
            let (_, spare, size) = frames.ends();
            spare.take(size)
        };
        buffer.resize(len, 0);
        let result = f(&mut buffer);
        let mut frames = self.frames.borrow_mut();
        let work = frames.left().ask(&mut buffer);
        frames.outgoing.push_back((buffer, work));
        frames.queued = true;
        if let Some(waker) = frames.card_waker.take() {
            waker.wake();
        }
        result
    }
}

impl Driver for StackDriver {
    type RxToken<'a> = RxToken<'a>;
    type TxToken<'a> = TxToken<'a>;

    fn receive(&mut self, context: &mut Context<'_>) -> Option<(RxToken<'_>, TxToken<'_>)> {
        let mut frames = self.0.borrow_mut();
        if frames.is_full() || frames.to_receive() == 0 {
            register(&mut frames.waker, context);
            return None;
        }
        let frame = frames.incoming.pop_front()?;
        let frames = &*self.0;
        Some((RxToken { frame, frames }, TxToken { frames }))
    }

    fn transmit(&mut self, context: &mut Context<'_>) -> Option<TxToken<'_>> {
        let mut frames = self.0.borrow_mut();
        if frames.is_full() {
            register(&mut frames.waker, context);
            return None;
        }
        Some(TxToken { frames: &self.0 })
    }

    fn link_state(&mut self, context: &mut Context<'_>) -> LinkState {
        let mut frames = self.0.borrow_mut();
        register(&mut frames.waker, context);
        if frames.has_link() { LinkState::Up } else { LinkState::Down }
    }

    fn capabilities(&self) -> Capabilities {
        let frames = self.0.borrow();
        let mut capabilities = Capabilities::default();
        capabilities.max_transmission_unit = frames.config.frame_size;
        capabilities.max_burst_size = frames.burst();
        let (left, trust) = (frames.left(), frames.config.trust);
        let sums = |left, trust| match (left, trust) {
            (false, false) => Checksum::Both,
            (true, false) => Checksum::Rx,
            (false, true) => Checksum::Tx,
            (true, true) => Checksum::None,
        };
        capabilities.checksum.ipv4 = sums(left.ipv4, trust);
        capabilities.checksum.tcp = sums(left.tcp, trust);
        capabilities.checksum.udp = sums(left.udp, false);
        capabilities
    }

    fn hardware_address(&self) -> HardwareAddress {
        HardwareAddress::Ethernet(self.0.borrow().config.mac.0)
    }
}

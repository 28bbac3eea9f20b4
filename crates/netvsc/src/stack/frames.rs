//! The queues between a stack and a card.

use alloc::collections::VecDeque;
use alloc::vec::Vec;
use core::cell::RefCell;
#[cfg(feature = "embassy")]
use core::task::Waker;

use vmbus::Instant;

use super::sums::Left;
use super::{Card, received};
use crate::MacAddress;
use crate::adapter::{Frame, Refused, append_as_received};
use crate::nic::{TxWork, renew_checksums};
use crate::port::PathOffloads;
use crate::rndis::packet::ReceiveChecksum;

/// Checksums that are wrong.
const WRONG: ReceiveChecksum =
    ReceiveChecksum::TCP_BAD.union(ReceiveChecksum::UDP_BAD).union(ReceiveChecksum::IP_BAD);

/// How large the queues are, and what the stack is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FramesConfig {
    /// The card's address. Only embassy-net asks for it here.
    pub mac: MacAddress,
    /// Longest frame, in bytes, Ethernet header included.
    pub frame_size: usize,
    /// What the card does to frames, so that the stack need not: all that [`Adapter::offloads`](crate::Adapter::offloads) says,
    /// or less.
    pub offloads: PathOffloads,
    /// Whether IPv4 headers and TCP segments that the host found right are not checked again. The stack is told to check none; what
    /// nothing is said of, as of a VF's frames, is checked here, and TCP in parts is dropped. UDP stays with the stack.
    pub trust: bool,
    /// Frames that the stack may have waiting to go out.
    pub send: usize,
    /// Frames that may wait for the stack. Beyond that they are dropped, as by any card whose owner does not keep up.
    pub receive: usize,
}

impl Default for FramesConfig {
    /// Frames of 1,514 bytes, 64 out and 1,024 in, no address, nothing left to the card, and nothing believed.
    fn default() -> Self {
        let offloads = PathOffloads::default();
        let mac = MacAddress([0; 6]);
        Self { mac, frame_size: 1514, offloads, trust: false, send: 64, receive: 1024 }
    }
}

/// Frames on their way into and out of a stack, in buffers that are used again: once as many as are needed at a time have been
/// made, nothing is allocated.
#[derive(Debug)]
pub struct Frames {
    pub(super) config: FramesConfig,
    pub(super) incoming: VecDeque<Vec<u8>>,
    pub(super) outgoing: VecDeque<(Vec<u8>, TxWork)>,
    spare: Spare,
    dropped: u64,
    corrupt: u64,
    refused: u64,
    link_up: bool,
    /// Of the task that runs the stack.
    #[cfg(feature = "embassy")]
    pub(super) waker: Option<Waker>,
    /// Of the task that runs the card.
    #[cfg(feature = "embassy")]
    pub(super) card_waker: Option<Waker>,
    /// The stack has queued frames since the card was last given any.
    #[cfg(feature = "embassy")]
    pub(super) queued: bool,
}

/// Buffers that no frame is in. A stack has a frame and room for its answer at the same time, and takes the buffer of the answer only when
/// there is one.
#[derive(Debug, Default)]
pub(super) struct Spare(RefCell<Vec<Vec<u8>>>);

impl Spare {
    pub(super) fn take(&self, size: usize) -> Vec<u8> {
        let spare = self.0.borrow_mut().pop();
        let mut buffer = spare.unwrap_or_else(|| Vec::with_capacity(size));
        buffer.clear();
        buffer
    }

    pub(super) fn give(&self, buffer: Vec<u8>) {
        self.0.borrow_mut().push(buffer);
    }
}

impl Frames {
    /// Empty queues, with the link up.
    #[must_use]
    pub fn new(config: FramesConfig) -> Self {
        Self {
            config,
            incoming: VecDeque::new(),
            outgoing: VecDeque::new(),
            spare: Spare::default(),
            dropped: 0,
            corrupt: 0,
            refused: 0,
            link_up: true,
            #[cfg(feature = "embassy")]
            waker: None,
            #[cfg(feature = "embassy")]
            card_waker: None,
            #[cfg(feature = "embassy")]
            queued: false,
        }
    }

    /// The queue to the card, and the buffers, with the size that one needs.
    pub(super) fn ends(&mut self) -> (&mut VecDeque<(Vec<u8>, TxWork)>, &Spare, usize) {
        (&mut self.outgoing, &self.spare, self.config.frame_size)
    }

    /// Hands a received frame to the stack. One whose checksums are wrong, as the host found, is dropped: the stack would do
    /// the same. What the host found right is checked once more, since a VF says nothing and a host may lie; unless the configuration
    /// says to [trust](FramesConfig::trust) it. What it found right and did not sum up ([`renew_checksums`]) gets its checksums here,
    /// or the stack would find them wrong.
    pub fn push_frame(&mut self, frame: &dyn Frame) {
        if frame.checksum().intersects(WRONG) {
            self.corrupt += 1;
            return;
        }
        self.take_in(frame.checksum(), |buffer| append_as_received(frame, buffer));
    }

    /// The same for a frame of which nothing is known; `fill` appends it to an empty buffer.
    pub fn push(&mut self, fill: impl FnOnce(&mut Vec<u8>)) {
        self.take_in(ReceiveChecksum::empty(), fill);
    }

    fn take_in(&mut self, known: ReceiveChecksum, fill: impl FnOnce(&mut Vec<u8>)) {
        if self.incoming.len() >= self.config.receive {
            self.dropped += 1;
            return;
        }
        let mut buffer = self.spare.take(self.config.frame_size);
        fill(&mut buffer);
        renew_checksums(&mut buffer, known);
        if self.config.trust && !received::may_pass(&buffer, known) {
            self.corrupt += 1;
            self.spare.give(buffer);
            return;
        }
        self.incoming.push_back(buffer);
        self.wake();
    }

    /// The next frame that the stack sends, if any.
    #[must_use]
    pub fn front(&self) -> Option<&[u8]> {
        self.outgoing.front().map(|(frame, _)| frame.as_slice())
    }

    /// What the card is asked to do to that frame.
    #[must_use]
    pub fn front_work(&self) -> TxWork {
        self.outgoing.front().map_or(TxWork::NONE, |(_, work)| *work)
    }

    /// The card's address has become known. embassy-net asks for it whenever it is polled.
    pub fn set_mac(&mut self, mac: MacAddress) {
        self.config.mac = mac;
    }

    /// What the card does to frames has become known. Stacks ask for it once, at their beginning.
    pub fn set_offloads(&mut self, offloads: PathOffloads) {
        self.config.offloads = offloads;
    }

    /// What the stack leaves to the card.
    pub(super) fn left(&self) -> Left {
        Left::to(&self.config.offloads)
    }

    /// Frames that can come in one go and find room, as far as stacks can count them.
    pub(super) fn burst(&self) -> Option<usize> {
        u16::try_from(self.config.receive).ok().map(usize::from)
    }

    /// Removes the frame that [`Frames::front`] showed.
    pub fn pop(&mut self) {
        if let Some((buffer, _)) = self.outgoing.pop_front() {
            self.spare.give(buffer);
            self.wake();
        }
    }

    /// Gives the card what the stack sends, as far as it has room. True if any frame went.
    pub fn send(&mut self, card: &mut impl Card, now: Instant) -> bool {
        #[cfg(feature = "embassy")]
        {
            self.queued = false;
        }
        let mut any = false;
        while let Some(frame) = self.front() {
            let work = self.front_work();
            let result = match work.is_none() {
                true => card.transmit(frame, now),
                false => card.transmit_with(&work.of(&[frame]), now),
            };
            match result {
                Ok(()) => {}
                Err(Refused::Full(_)) => break,
                // A card that is not at work is a cable that is not plugged in.
                Err(Refused::Never | Refused::NotReady) => self.refused += 1,
            }
            self.pop();
            any = true;
        }
        if any {
            card.flush();
        }
        any
    }

    /// Frames that wait for the stack.
    #[must_use]
    pub fn to_receive(&self) -> usize {
        self.incoming.len()
    }

    /// Whether the stack can send nothing more until [`Frames::send`] or [`Frames::pop`].
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.outgoing.len() >= self.config.send
    }

    /// Received frames for which the stack had no room.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.dropped
    }

    /// Received frames that were found to be damaged, by the host or here.
    #[must_use]
    pub fn corrupt(&self) -> u64 {
        self.corrupt
    }

    /// Frames of the stack that the card could not send: it was not at work, or they are too short or too long.
    #[must_use]
    pub fn refused(&self) -> u64 {
        self.refused
    }

    /// Whether the stack is told that there is a link.
    #[must_use]
    pub fn has_link(&self) -> bool {
        self.link_up
    }

    /// Tells the stack whether there is a link.
    pub fn set_link(&mut self, up: bool) {
        if self.link_up != up {
            self.link_up = up;
            self.wake();
        }
    }

    #[cfg(feature = "embassy")]
    fn wake(&mut self) {
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }

    #[cfg(not(feature = "embassy"))]
    #[expect(clippy::unused_self, reason = "with embassy there is a task to wake")]
    fn wake(&mut self) {}
}

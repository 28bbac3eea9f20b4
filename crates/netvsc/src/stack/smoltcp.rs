//! smoltcp's `phy::Device`.

use alloc::collections::VecDeque;
use alloc::vec::Vec;

use ::smoltcp::phy::{Checksum, Device as Phy, DeviceCapabilities, Medium, RxToken, TxToken};
use ::smoltcp::time::Instant;

use super::frames::Spare;
use super::sums::Left;
use super::{Card, Device, Frames};
use crate::nic::TxWork;

impl Frames {
    /// The next frame for the stack, with room for an answer.
    fn take(&mut self) -> Option<(Received<'_>, Room<'_>)> {
        if self.is_full() {
            return None;
        }
        let frame = self.incoming.pop_front()?;
        let left = self.left();
        let (queue, spare, size) = self.ends();
        Some((Received { frame, spare }, Room { queue, spare, size, left }))
    }

    /// Room for a frame of the stack.
    fn room(&mut self) -> Option<Room<'_>> {
        if self.is_full() {
            return None;
        }
        let left = self.left();
        let (queue, spare, size) = self.ends();
        Some(Room { queue, spare, size, left })
    }
}

/// A frame that the stack takes in; its buffer goes back to the spare ones.
#[derive(Debug)]
pub struct Received<'a> {
    frame: Vec<u8>,
    spare: &'a Spare,
}

/// Room for a frame that the stack sends.
#[derive(Debug)]
pub struct Room<'a> {
    queue: &'a mut VecDeque<(Vec<u8>, TxWork)>,
    spare: &'a Spare,
    size: usize,
    left: Left,
}

impl RxToken for Received<'_> {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        let result = f(&self.frame);
        self.spare.give(self.frame);
        result
    }
}

impl TxToken for Room<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        let mut buffer = self.spare.take(self.size);
        buffer.resize(len, 0);
        let result = f(&mut buffer);
        let work = self.left.ask(&mut buffer);
        self.queue.push_back((buffer, work));
        result
    }
}

impl Phy for Frames {
    type RxToken<'a> = Received<'a>;
    type TxToken<'a> = Room<'a>;

    fn receive(&mut self, _: Instant) -> Option<(Received<'_>, Room<'_>)> {
        self.take()
    }

    fn transmit(&mut self, _: Instant) -> Option<Room<'_>> {
        self.room()
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ethernet;
        capabilities.max_transmission_unit = self.config.frame_size;
        capabilities.max_burst_size = self.burst();
        // What was received is checked unless that is done before, and what is left to the card is not computed.
        let left = self.left();
        let sums = |left, trust| match (left, trust) {
            (false, false) => Checksum::Both,
            (true, false) => Checksum::Rx,
            (false, true) => Checksum::Tx,
            (true, true) => Checksum::None,
        };
        capabilities.checksum.ipv4 = sums(left.ipv4, self.config.trust);
        capabilities.checksum.tcp = sums(left.tcp, self.config.trust);
        capabilities.checksum.udp = sums(left.udp, false);
        capabilities
    }
}

impl<C: Card> Phy for Device<C> {
    type RxToken<'a>
        = Received<'a>
    where
        C: 'a;
    type TxToken<'a>
        = Room<'a>
    where
        C: 'a;

    fn receive(&mut self, now: Instant) -> Option<(Received<'_>, Room<'_>)> {
        Phy::receive(&mut self.frames, now)
    }

    fn transmit(&mut self, now: Instant) -> Option<Room<'_>> {
        Phy::transmit(&mut self.frames, now)
    }

    fn capabilities(&self) -> DeviceCapabilities {
        Phy::capabilities(&self.frames)
    }
}

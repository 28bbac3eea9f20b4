//! smoltcp's `phy::Device`.

use ::smoltcp::phy::{Checksum, Device as Phy, DeviceCapabilities, Medium, RxToken, TxToken};
use ::smoltcp::time::Instant;

use super::{Device, Frames, Received, Room};

impl RxToken for Received<'_> {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        self.take(|frame| f(frame))
    }
}

impl TxToken for Room<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        self.fill(len, f)
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

impl<C> Phy for Device<C> {
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

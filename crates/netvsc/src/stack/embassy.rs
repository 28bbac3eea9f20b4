//! embassy-net's driver.

use core::task::Context;

use embassy_net_driver::{
    Capabilities, Checksum, Driver, HardwareAddress, LinkState, RxToken, TxToken,
};

use super::{Device, Frames, Received, Room};

impl RxToken for Received<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, f: F) -> R {
        self.take(f)
    }
}

impl TxToken for Room<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        self.fill(len, f)
    }
}

impl Frames {
    /// Has the task woken when frames come, room comes back, or the link changes.
    fn register(&mut self, context: &Context<'_>) {
        match &mut self.waker {
            Some(waker) => waker.clone_from(context.waker()),
            none => *none = Some(context.waker().clone()),
        }
    }
}

impl Driver for Frames {
    type RxToken<'a> = Received<'a>;
    type TxToken<'a> = Room<'a>;

    fn receive(&mut self, context: &mut Context<'_>) -> Option<(Received<'_>, Room<'_>)> {
        if self.is_full() || self.to_receive() == 0 {
            self.register(context);
        }
        self.take()
    }

    fn transmit(&mut self, context: &mut Context<'_>) -> Option<Room<'_>> {
        if self.is_full() {
            self.register(context);
        }
        self.room()
    }

    fn link_state(&mut self, context: &mut Context<'_>) -> LinkState {
        self.register(context);
        if self.link_up { LinkState::Up } else { LinkState::Down }
    }

    fn capabilities(&self) -> Capabilities {
        let mut capabilities = Capabilities::default();
        capabilities.max_transmission_unit = self.config.frame_size;
        capabilities.max_burst_size = self.burst();
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

    fn hardware_address(&self) -> HardwareAddress {
        HardwareAddress::Ethernet(self.config.mac.0)
    }
}

impl<C> Driver for Device<C> {
    type RxToken<'a>
        = Received<'a>
    where
        C: 'a;
    type TxToken<'a>
        = Room<'a>
    where
        C: 'a;

    fn receive(&mut self, context: &mut Context<'_>) -> Option<(Received<'_>, Room<'_>)> {
        Driver::receive(&mut self.frames, context)
    }

    fn transmit(&mut self, context: &mut Context<'_>) -> Option<Room<'_>> {
        Driver::transmit(&mut self.frames, context)
    }

    fn link_state(&mut self, context: &mut Context<'_>) -> LinkState {
        self.frames.link_state(context)
    }

    fn capabilities(&self) -> Capabilities {
        Driver::capabilities(&self.frames)
    }

    fn hardware_address(&self) -> HardwareAddress {
        self.frames.hardware_address()
    }
}

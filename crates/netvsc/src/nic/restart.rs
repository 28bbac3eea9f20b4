//! The same NIC on another channel: after a change of the MTU, after a pause of the whole guest, after a host that came back.
//!
//! What its owner set stays: filter, address, MTU, the configured offloads and queues, and the counts. What the host said does
//! not: a version, a division of the buffers, granted queues and an association hold as long as their channel. A host repeats the association of a virtual function that is
//! still there, so that the function need not leave (PROTOCOL §8.2).

use alloc::boxed::Box;
use alloc::vec::Vec;

use vmbus::Instant;
use vmbus::channel::{Channel, Doorbell};
use vmbus::memory::SharedPages;

use super::alive::Alive;
use super::control::Control;
use super::flaps::Flaps;
use super::link::Link;
use super::path::Switching;
use super::receive::Receive;
use super::transmit::Transmit;
use super::types::{check_mtu, check_queues};
use super::{ConfigError, Nic, NicConfig, NicInfo, SharedBuffer, Stage};
use crate::port::Path;
use crate::rndis::offload::OffloadCapabilities;

/// What is known before a host said anything.
pub(super) fn blank(config: &NicConfig) -> NicInfo {
    NicInfo {
        version: None,
        mac: None,
        mtu: config.mtu,
        link: true,
        speed: None,
        association: None,
        path: Path::Synthetic,
        send_table: None,
        offloads: OffloadCapabilities::default(),
        large_send: 0,
        page_ranges: 0,
        scaling: None,
        queues: 1,
        ready: false,
    }
}

/// What a NIC leaves behind that was started anew or taken apart: its last channel and buffers, and what it had lent. Unless it was stopped
/// in order, the host may still use the buffers and read what was lent: keep all of it until it has let go of the channel and of the buffers' lists.
#[derive(Debug)]
pub struct Remains<D> {
    /// The channel.
    pub channel: Channel<SharedPages, D>,
    /// The receive buffer.
    pub receive: SharedBuffer,
    /// The send buffer.
    pub send: Option<SharedBuffer>,
    /// Pages of frames that the host has not completed ([`Nic::transmit_pages`]), on any of the NIC's channels.
    pub lent: Vec<SharedPages>,
}

/// A NIC was not started anew.
#[derive(Debug, thiserror::Error)]
#[error("{error}")]
pub struct RestartError<D> {
    /// Why.
    pub error: ConfigError,
    /// What is the caller's now: what the NIC had before if the new channel does not work, otherwise what it was given for it.
    pub remains: Box<Remains<D>>,
}

impl<D: Doorbell> Nic<D> {
    /// Sets the largest packet. Hosts learn of it at the beginning only: it holds from the next [`Nic::restart`] on.
    ///
    /// # Errors
    /// [`ConfigError::Mtu`] if it is outside of what any host gives.
    pub fn set_mtu(&mut self, mtu: u32) -> Result<(), ConfigError> {
        check_mtu(mtu)?;
        self.config.mtu = mtu;
        Ok(())
    }

    /// Sets how many channels the NIC wants, the primary one included, for the next [`Nic::restart`]: what of the send buffer each has is
    /// settled at the beginning.
    ///
    /// # Errors
    /// [`ConfigError::AtWork`] unless the NIC was stopped or has failed, [`ConfigError::Queues`] if there cannot be so many.
    pub fn set_queues(&mut self, queues: u16) -> Result<(), ConfigError> {
        if !matches!(self.stage, Stage::Stopped | Stage::Failed(_)) {
            return Err(ConfigError::AtWork);
        }
        check_queues(queues)?;
        self.config.queues = queues;
        Ok(())
    }

    /// The configuration as it is now, run-time changes included.
    #[must_use]
    pub fn config(&self) -> &NicConfig {
        &self.config
    }

    /// Starts a NIC that was stopped or has failed on a channel that has just been opened, with what its owner has set since
    /// it was made. Everything else is as with [`Nic::new`]; [`NicEvent::Ready`](super::NicEvent::Ready) follows. Queues are
    /// asked for and scaling is set anew: the sub-channels went with the channel, and their
    /// [`NicQueue`](super::NicQueue)s are of no more use.
    ///
    /// # Errors
    /// [`RestartError`] if the NIC is at work, there is no send buffer, or the channel does not work. After the last the NIC
    /// has failed and can be started anew once more; it has the new channel and buffers then, and the old ones come with the error.
    pub fn restart(
        &mut self,
        channel: Channel<SharedPages, D>,
        receive: SharedBuffer,
        send: Option<SharedBuffer>,
        now: Instant,
    ) -> Result<Remains<D>, RestartError<D>> {
        let stopped = matches!(self.stage, Stage::Stopped | Stage::Failed(_));
        let error = if stopped { ConfigError::NoSendBuffer } else { ConfigError::AtWork };
        let (Some(send), true) = (&send, stopped) else {
            let remains = Remains { channel, receive, send, lent: Vec::new() };
            return Err(RestartError { error, remains: Box::new(remains) });
        };
        let (old, new) = (&mut self.transmit, Transmit::new(send.clone()));
        let link = core::mem::replace(&mut self.link, Link::new(channel));
        let receive = core::mem::replace(&mut self.receive, Receive::new(receive));
        let mut transmit = core::mem::replace(old, new);
        self.transmit.loans.take_over(&mut transmit.loans);
        let remains = Remains {
            channel: link.channel,
            receive: receive.buffer,
            lent: transmit.loans.take_lent(),
            send: Some(transmit.buffer),
        };
        self.control = Control::new();
        self.switching = Switching::new();
        self.flaps = Flaps::new(true);
        self.granted = 0;
        self.waits.clear();
        self.awaited = None;
        self.more = false;
        self.flushing = false;
        self.info = blank(&self.config);
        self.name = None;
        self.now = now.max(self.now);
        self.alive = Alive::new(self.now);
        self.stats.restarts += 1;
        self.stage = Stage::Negotiating(0);
        let begun = self.negotiate(0, None).and_then(|()| self.pump());
        if let Err(error) = begun {
            self.fail(error);
            return Err(RestartError { error: error.into(), remains: Box::new(remains) });
        }
        Ok(remains)
    }
}

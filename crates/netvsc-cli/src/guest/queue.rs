//! Sub-channels of NICs: each becomes a queue as soon as it is open.
//!
//! One for whose rings there is no memory is tried again, less and less often: a NIC goes on with the queues that it has, and is not
//! to stay slow for ever because memory was short when it started.

use std::time::Duration;

use netvsc::nic::{NicStats, QueueTotals};
use netvsc::rndis::scaling::KEY_SIZE;
use vmbus::bus::Offer;
use vmbus::{ChannelId, Instant};

use super::nic::NicDevice;
use super::{Guest, Machine, Owner};

/// How long after the first attempt a sub-channel that could not be opened is tried again, and how long at most after the later ones,
/// each of which doubles it.
const AGAIN: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));

/// A sub-channel for whose rings there was no memory.
#[derive(Clone, Debug)]
pub(super) struct Unopened {
    offer: Offer,
    pause: Duration,
    /// When it is tried again.
    pub(super) at: Instant,
}

impl<M: Machine> Guest<M> {
    /// Chooses how many channels NICs use that start from now on, 1 to 64, as far as the host grants them, and the key by which it
    /// spreads frames over them.
    pub fn set_queues(&mut self, queues: u16, key: [u8; KEY_SIZE]) {
        (self.nic_config.queues, self.spread_key) = (queues, key);
    }

    /// Channels that a NIC uses, the primary one included.
    #[must_use]
    pub fn queues(&self, nic: usize) -> usize {
        let adapter = self.nics.get(nic).and_then(NicDevice::adapter);
        adapter.map_or(0, |adapter| adapter.nic().channels())
    }

    /// Whether a NIC is still to have more queues than it has now: they are being opened, or tried again for want of memory.
    #[must_use]
    pub fn lacks_queues(&self, nic: usize) -> bool {
        let nic = self.nics.get(nic);
        nic.is_some_and(|nic| !nic.opening_queues.is_empty() || !nic.unopened.is_empty())
    }

    /// What each channel of a NIC did, by its number, over all openings.
    #[must_use]
    pub fn queue_totals(&self, nic: usize) -> Vec<QueueTotals> {
        self.nics.get(nic).map(NicDevice::queue_totals).unwrap_or_default()
    }

    /// What a NIC counted since the host offered it last.
    #[must_use]
    pub fn nic_stats(&self, nic: usize) -> NicStats {
        let adapter = self.nics.get(nic).and_then(NicDevice::adapter);
        adapter.map_or_else(NicStats::default, |adapter| adapter.nic().stats())
    }

    /// The host offers a sub-channel. It is opened if its NIC has asked for it, and is still at work.
    pub(super) fn sub_channel_offered(&mut self, offer: &Offer, now: Instant) {
        let Some(nic) = self.nics.iter().position(|nic| nic.instance == offer.instance) else {
            return;
        };
        let number = offer.sub_channel;
        let adapter = self.nics.get(nic).and_then(NicDevice::adapter);
        let asked = adapter.map_or(0, |adapter| adapter.nic().nic().queues_wanted());
        if number > asked {
            self.fail(format!(
                "message of the host: sub-channel {number} of nic{nic} is offered, it has asked for {asked}"
            ));
            return;
        }
        if adapter.is_some_and(|adapter| adapter.nic().nic().info().ready) {
            self.open_sub_channel(nic, offer, AGAIN.0, now);
        }
    }

    fn open_sub_channel(&mut self, nic: usize, offer: &Offer, pause: Duration, now: Instant) {
        match self.open(offer, self.nic_rings, now) {
            Ok(None) => self.machine.forget_doorbell(offer.connection),
            Ok(Some(link)) => {
                let owner = Owner::Queue(nic, offer.sub_channel);
                self.owners.insert(offer.channel, (owner, offer.connection));
                if let Some(device) = self.nics.get_mut(nic) {
                    device.opening_queues.insert(offer.sub_channel, link);
                }
            }
            Err(why) => {
                self.machine.forget_doorbell(offer.connection);
                self.fail(format!("nic{nic}, sub-channel {}: {why}", offer.sub_channel));
                if let Some(device) = self.nics.get_mut(nic) {
                    let unopened = Unopened { offer: offer.clone(), pause, at: now + pause };
                    device.unopened.insert(offer.sub_channel, unopened);
                }
            }
        }
    }

    /// Tries to open the sub-channels of a NIC whose time has come once more. True if there were any.
    pub(super) fn open_again(&mut self, nic: usize, now: Instant) -> bool {
        let Some(device) = self.nics.get_mut(nic) else { return false };
        let due: Vec<Unopened> = device
            .unopened
            .extract_if(.., |_, unopened| unopened.at <= now)
            .map(|it| it.1)
            .collect();
        for Unopened { offer, pause, .. } in &due {
            self.open_sub_channel(nic, offer, (*pause * 2).min(AGAIN.1), now);
        }
        !due.is_empty()
    }

    /// A channel that nobody uses is taken back.
    pub(super) fn unused_rescinded(&mut self, channel: ChannelId) {
        for nic in &mut self.nics {
            nic.unopened.retain(|_, unopened| unopened.offer.channel != channel);
        }
    }

    /// A sub-channel is open.
    pub(super) fn queue_opened(
        &mut self,
        nic: usize,
        number: u16,
        channel: ChannelId,
        now: Instant,
    ) {
        let Some(device) = self.nics.get_mut(nic) else { return };
        let link = device.opening_queues.remove(&number);
        let (Some(adapter), Some(link)) = (device.adapter_mut(), link) else { return };
        match adapter.nic_mut().add_queue(number, link) {
            Ok(()) => device.rung = true,
            Err(error) => {
                tracing::debug!(%error, nic, "a sub-channel stays unused");
                // It may be closing with its primary channel already.
                if let Err(error) = self.bus.close(channel, now) {
                    tracing::debug!(%error, "a sub-channel that closes already");
                }
            }
        }
    }

    /// A sub-channel is gone, or did not open.
    pub(super) fn queue_gone(&mut self, nic: usize, number: u16, now: Instant) {
        let Some(device) = self.nics.get_mut(nic) else { return };
        device.opening_queues.remove(&number);
        device.rung = true;
        if let Some(adapter) = device.adapter_mut() {
            adapter.nic_mut().remove_queue(number, now);
        }
    }
}

//! Sub-channels of NICs: each becomes a queue as soon as it is open.

use netvsc::nic::{NicStats, QueueTotals};
use netvsc::rndis::scaling::KEY_SIZE;
use vmbus::bus::Offer;
use vmbus::{ChannelId, Instant};

use super::nic::NicDevice;
use super::{Guest, Machine, Owner};

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

    /// The host offers a sub-channel. It is opened if it is one of a NIC; others nobody asked for.
    pub(super) fn sub_channel_offered(&mut self, offer: &Offer, now: Instant) {
        let Some(nic) = self.nics.iter().position(|nic| nic.instance == offer.instance) else {
            return;
        };
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
            }
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

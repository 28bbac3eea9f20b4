//! Primary channels and their sub-channels.

use alloc::vec::Vec;

use zerocopy::little_endian::U32;

use super::{Bus, ChannelState, HostError, Offer};
use crate::message::ReleaseChannel;
use crate::{ChannelId, Guid, Instant};

impl Bus {
    /// The primary channel of a device, found by its instance.
    #[must_use]
    pub fn primary(&self, instance: Guid) -> Option<ChannelId> {
        let primary = |offer: &Offer| offer.sub_channel == 0 && offer.instance == instance;
        let mut slots = self.channels.iter();
        slots.find(|(_, slot)| !slot.is_dead() && primary(&slot.offer)).map(|(id, _)| *id)
    }

    /// The primary channel that a sub-channel belongs to; `None` for a primary channel, or if that is gone.
    #[must_use]
    pub fn primary_of(&self, channel: ChannelId) -> Option<ChannelId> {
        let offer = self.offer(channel).filter(|offer| offer.sub_channel != 0)?;
        self.primary(offer.instance)
    }

    /// The sub-channels of a primary channel that the guest holds, by their numbers.
    #[must_use]
    pub fn sub_channels(&self, primary: ChannelId) -> Vec<ChannelId> {
        let Some(of) = self.offer(primary).filter(|offer| offer.sub_channel == 0) else {
            return Vec::new();
        };
        let mut found: Vec<_> = self
            .channels
            .iter()
            .filter(|(_, slot)| !slot.is_dead())
            .filter(|(_, slot)| slot.offer.sub_channel != 0 && slot.offer.instance == of.instance)
            .map(|(id, slot)| (slot.offer.sub_channel, *id))
            .collect();
        found.sort_unstable();
        found.into_iter().map(|(_, id)| id).collect()
    }

    /// Whether an offer can be taken. A sub-channel's needs its open primary channel; its id goes back where that is not so,
    /// since nobody will ever use it. No mistake of the host if its offer crossed the close of the primary channel.
    pub(super) fn check_family(&mut self, offer: &Offer) -> Result<bool, HostError> {
        let Offer { channel, sub_channel, instance, .. } = *offer;
        if sub_channel == 0 {
            return Ok(true);
        }
        let primary = self.primary(instance);
        let error = match primary.and_then(|id| Some((id, self.channel_state(id)?))) {
            Some((primary, ChannelState::Open)) => {
                let number = |id: &ChannelId| self.offer(*id).map(|offer| offer.sub_channel);
                let held = self.sub_channels(primary).into_iter();
                match held.filter(|id| number(id) == Some(sub_channel)).min() {
                    None => return Ok(true),
                    Some(held) => {
                        Some(HostError::SubChannelHeld { channel, sub_channel, instance, held })
                    }
                }
            }
            Some((_, ChannelState::Closing)) => None,
            _ => Some(HostError::NoPrimary { channel, sub_channel, instance }),
        };
        self.post(&ReleaseChannel { channel: U32::new(channel.0) });
        match error {
            Some(error) => {
                self.stats.bad_offers += 1;
                Err(error)
            }
            None => {
                self.stats.late += 1;
                Ok(false)
            }
        }
    }

    /// Begins to close the sub-channels of a primary channel; `true` if there is something to wait for.
    pub(super) fn close_sub_channels(&mut self, primary: ChannelId, now: Instant) -> bool {
        for channel in self.sub_channels(primary) {
            match self.channel_state(channel) {
                Some(ChannelState::Open) => self.start_closing(channel, true, now),
                Some(ChannelState::Opening) => {
                    if let Some(slot) = self.channels.get_mut(&channel) {
                        slot.close_wanted = true;
                    }
                }
                _ => {}
            }
        }
        self.sub_channels_busy(primary)
    }

    pub(super) fn sub_channels_busy(&self, primary: ChannelId) -> bool {
        let idle = |id: ChannelId| self.channel_state(id) == Some(ChannelState::Offered);
        self.sub_channels(primary).into_iter().any(|id| !idle(id))
    }

    /// Closes the primary channels that waited for their last sub-channel.
    pub(super) fn close_waiting_primaries(&mut self, now: Instant) {
        let waiting: Vec<_> = self
            .channels
            .iter()
            .filter(|(_, slot)| slot.close_after_subs)
            .map(|(id, _)| *id)
            .filter(|id| !self.sub_channels_busy(*id))
            .collect();
        for channel in waiting {
            let Some(slot) = self.channels.get_mut(&channel) else { continue };
            slot.close_after_subs = false;
            if !slot.is_dead() {
                self.start_closing(channel, true, now);
            }
        }
    }
}

//! Another virtual processor for a channel's signals.

use tracing::debug;
use zerocopy::little_endian::U32;

use super::{Bus, ChannelState, Error, Event, Wait};
use crate::message::{MessageType, ModifyChannel, ModifyChannelResponse, Payload, Version};
use crate::{ChannelId, Instant};

/// Where a channel's signals go.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Target {
    /// Asked for and not answered yet.
    in_flight: Option<u32>,
    /// The newest wish after that.
    next: Option<u32>,
}

impl Bus {
    /// Wishes a channel's signals to go to another virtual processor.
    ///
    /// From version 5.3 on it ends in [`Event::Retargeted`]; of several wishes while one is unanswered only the newest
    /// is asked for, after the answer. Older hosts do not answer, and a wish that was not posted yet is replaced. Closing the
    /// channel ends all wishes, without an event.
    ///
    /// # Errors
    /// If the channel is not open, or the version is older than 4.1.
    pub fn retarget(
        &mut self,
        channel: ChannelId,
        target_vp: u32,
        now: Instant,
    ) -> Result<(), Error> {
        self.live(channel, ChannelState::Open)?;
        let version = self.version;
        if version < Version::V4_1 {
            let (kind, since) = (MessageType::MODIFY_CHANNEL, Version::V4_1);
            return Err(Error::TooOld { kind, since, version });
        }
        if version < Version::V5_3 {
            self.post_or_replace(channel, target_vp);
            return Ok(());
        }
        let Some(slot) = self.channels.get_mut(&channel) else { return Ok(()) };
        if slot.target.in_flight.is_some() {
            slot.target.next = Some(target_vp);
        } else {
            self.ask_target(channel, target_vp, now);
        }
        Ok(())
    }

    pub(super) fn retarget_answered(&mut self, answer: &ModifyChannelResponse, now: Instant) {
        let channel = ChannelId(answer.channel.get());
        // An answer does not say to what. One to a request that was not even posted is to one before.
        let early = self.outgoing.iter().any(|post| is_about(&post.payload, channel));
        let slot = self.channels.get_mut(&channel).filter(|slot| !slot.is_dead() && !early);
        let Some((slot, target_vp)) = slot.and_then(|slot| {
            let asked = slot.target.in_flight.take()?;
            Some((slot, asked))
        }) else {
            self.stats.late += 1;
            return;
        };
        let next = slot.target.next.take().filter(|_| slot.state == ChannelState::Open);
        let open = slot.state == ChannelState::Open;
        self.disarm(Wait::Retarget { channel });
        if open {
            let status = answer.status.get();
            self.events.push_back(Event::Retargeted { channel, target_vp, status });
        }
        if let Some(target_vp) = next {
            self.ask_target(channel, target_vp, now);
        }
    }

    fn ask_target(&mut self, channel: ChannelId, target_vp: u32, now: Instant) {
        if let Some(slot) = self.channels.get_mut(&channel) {
            slot.target.in_flight = Some(target_vp);
        }
        self.post(&modify(channel, target_vp));
        self.arm(Wait::Retarget { channel }, now);
    }

    fn post_or_replace(&mut self, channel: ChannelId, target_vp: u32) {
        let payload = Payload::new(&modify(channel, target_vp));
        // Only if nothing was asked of the bus since: order counts.
        match self.outgoing.back_mut().filter(|post| is_about(&post.payload, channel)) {
            Some(post) => {
                debug!(%channel, target_vp, "an unposted wish is replaced");
                post.payload = payload;
            }
            None => self.post_payload(payload),
        }
    }
}

/// Whether a message asks for another processor for this channel.
fn is_about(payload: &Payload, channel: ChannelId) -> bool {
    payload.body().is_some_and(|wish: &ModifyChannel| wish.channel.get() == channel.0)
}

fn modify(channel: ChannelId, target_vp: u32) -> ModifyChannel {
    ModifyChannel { channel: U32::new(channel.0), target_vp: U32::new(target_vp) }
}

//! Memory that belongs to channels: GPADLs from the first message to the return.

use alloc::vec::Vec;

use tracing::debug;
use zerocopy::little_endian::U32;

use super::channels::Slot;
use super::{Bus, ChannelState, Error, Event, OpenStep, Wait};
use crate::gpadl::{EncodeError, GpadlMessages};
use crate::memory::{PAGE_SIZE, SharedMemory, SharedPages};
use crate::message::{GpadlCreated, GpadlTeardown, OfferFlags};
use crate::packet::GpaRange;
use crate::{ChannelId, GpadlId, Instant};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum GpadlState {
    /// The host has not answered yet; it must not be asked for the memory before.
    Creating {
        /// Ask for it as soon as the answer came.
        unwanted: bool,
    },
    Ready,
    TearingDown,
}

/// Memory that the host was told about.
#[derive(Debug)]
pub(super) struct Gpadl {
    channel: ChannelId,
    /// Kept so that it stays alive.
    memory: SharedPages,
    state: GpadlState,
    /// Belongs to a channel whose id went back before the host returned the memory.
    orphaned: bool,
}

impl Gpadl {
    pub(super) fn pages(&self) -> usize {
        self.memory.size() / PAGE_SIZE
    }
}

impl Bus {
    /// Tells the host of memory for use on a channel. Ends in [`Event::Shared`] or [`Event::ShareFailed`].
    ///
    /// # Errors
    /// If the channel is gone or closing, or the memory cannot be described or is not [revealed](Bus::reveal).
    pub fn share(
        &mut self,
        channel: ChannelId,
        memory: &SharedPages,
        now: Instant,
    ) -> Result<GpadlId, Error> {
        let Slot { state, offer, .. } = self.live_slot(channel)?;
        let (state, flags) = (*state, offer.flags);
        if state == ChannelState::Closing {
            return Err(Error::WrongState { channel, state, expected: ChannelState::Open });
        }
        let private = flags.contains(OfferFlags::CONFIDENTIAL_EXTERNAL_MEMORY);
        self.describe(channel, memory, private, now)
    }

    /// Takes back memory that was shared. Ends in [`Event::Unshared`]; asking twice is harmless.
    ///
    /// # Errors
    /// If there is no such memory, or it holds the rings of a channel.
    pub fn unshare(&mut self, gpadl: GpadlId, now: Instant) -> Result<(), Error> {
        self.connected()?;
        let unknown = Error::UnknownGpadl { gpadl };
        let entry = self.gpadls.get(&gpadl).filter(|entry| !entry.orphaned).ok_or(unknown)?;
        let slot = self.live_slot(entry.channel)?;
        if slot.ring == Some(gpadl) {
            return Err(Error::RingGpadl { gpadl });
        }
        self.take_back(gpadl, now);
        Ok(())
    }

    /// Stops waiting for memory of a released channel: its id goes back, the memory stays alive.
    pub(super) fn abandon_if_released(&mut self, channel: ChannelId, gpadl: GpadlId) {
        if self.channels.get(&channel).is_some_and(|slot| slot.releasing)
            && let Some(entry) = self.gpadls.get_mut(&gpadl)
        {
            entry.orphaned = true;
            self.disarm(Wait::Share { channel, gpadl });
            self.disarm(Wait::Unshare { channel, gpadl });
            self.finish_release(channel);
        }
    }

    /// The same for memory with which the host was late before the release: nobody would say so again.
    pub(super) fn abandon_overdue(&mut self, channel: ChannelId) {
        for gpadl in self.gpadls_of(channel) {
            let late = |wait: Wait| self.waits.get(&wait) == Some(&None);
            if late(Wait::Share { channel, gpadl }) || late(Wait::Unshare { channel, gpadl }) {
                self.abandon_if_released(channel, gpadl);
            }
        }
    }

    /// Queues the messages that tell the host of memory; `private`: it need not be able to read it.
    pub(super) fn describe(
        &mut self,
        channel: ChannelId,
        memory: &SharedPages,
        private: bool,
        now: Instant,
    ) -> Result<GpadlId, Error> {
        if memory.frames().is_empty() {
            return Err(Error::NoFrames { pages: memory.pages() });
        }
        let gpadl = self.next_gpadl.ok_or(Error::NoGpadlIds)?;
        let too_large = EncodeError::TooLarge { bytes: memory.pages().saturating_mul(8) };
        let byte_count = u32::try_from(memory.size()).map_err(|_| too_large)?;
        let ranges = [GpaRange { byte_count, byte_offset: 0, frames: memory.frames() }];
        let messages = GpadlMessages::new(channel, gpadl, &ranges)?;
        self.tell(memory, private)?;
        for payload in messages {
            self.post_payload(payload);
        }
        self.next_gpadl = gpadl.0.checked_add(1).map(GpadlId);
        let state = GpadlState::Creating { unwanted: false };
        let memory = memory.clone();
        self.gpadls.insert(gpadl, Gpadl { channel, memory, state, orphaned: false });
        self.arm(Wait::Share { channel, gpadl }, now);
        Ok(gpadl)
    }

    pub(super) fn share_answered(&mut self, result: &GpadlCreated, now: Instant) {
        let (channel, gpadl) = (ChannelId(result.channel.get()), GpadlId(result.gpadl.get()));
        let (unwanted, orphaned) = match self.gpadls.get_mut(&gpadl) {
            Some(entry) if entry.channel == channel => match entry.state {
                GpadlState::Creating { unwanted } => {
                    entry.state = GpadlState::Ready;
                    (unwanted, entry.orphaned)
                }
                _ => return self.stats.late += 1,
            },
            _ => return self.stats.late += 1,
        };
        self.disarm(Wait::Share { channel, gpadl });
        match result.status.get() {
            // Its channel is released, so there is nobody to ask for it any more.
            0 if orphaned => {}
            0 if unwanted => self.take_back(gpadl, now),
            0 => self.shared(channel, gpadl, now),
            status => self.share_refused(channel, gpadl, status, now),
        }
    }

    fn shared(&mut self, channel: ChannelId, gpadl: GpadlId, now: Instant) {
        let Some(slot) = self.channels.get(&channel).filter(|slot| !slot.is_dead()) else {
            return;
        };
        if slot.ring != Some(gpadl) {
            self.events.push_back(Event::Shared { channel, gpadl });
        } else if slot.close_wanted {
            self.start_closing(channel, false, now);
        } else {
            self.ask_open(channel, gpadl, now);
        }
    }

    fn share_refused(&mut self, channel: ChannelId, gpadl: GpadlId, status: u32, now: Instant) {
        debug!(%channel, %gpadl, status, "the host refused memory");
        let orphaned = self.forget_gpadl(gpadl).is_some_and(|entry| entry.orphaned);
        let Some(slot) = self.channels.get_mut(&channel).filter(|_| !orphaned) else { return };
        if slot.ring == Some(gpadl) {
            slot.ring = None;
            slot.failed = Some((OpenStep::Rings, status));
            self.ring_is_back(channel, now);
        } else if !slot.is_dead() {
            self.events.push_back(Event::ShareFailed { channel, gpadl, status });
        }
        self.finish(channel, now);
    }

    /// The host uses this memory no longer.
    fn forget_gpadl(&mut self, gpadl: GpadlId) -> Option<Gpadl> {
        let entry = self.gpadls.remove(&gpadl)?;
        self.came_back(&entry.memory);
        Some(entry)
    }

    /// The host uses no memory of channels any longer.
    pub(super) fn forget_gpadls(&mut self) {
        for entry in core::mem::take(&mut self.gpadls).into_values() {
            self.came_back(&entry.memory);
        }
    }

    pub(super) fn torn_down(&mut self, gpadl: GpadlId, now: Instant) {
        let Some(entry) = self.gpadls.get(&gpadl) else {
            self.stats.late += 1;
            return;
        };
        if entry.state != GpadlState::TearingDown || seeded!("lose-gpadl-teardown") {
            self.stats.late += 1;
            return;
        }
        let (channel, orphaned) = (entry.channel, entry.orphaned);
        self.forget_gpadl(gpadl);
        self.disarm(Wait::Unshare { channel, gpadl });
        // The id of an orphan's channel may belong to another channel by now.
        let Some(slot) = self.channels.get_mut(&channel).filter(|_| !orphaned) else { return };
        if slot.ring == Some(gpadl) {
            slot.ring = None;
            self.ring_is_back(channel, now);
        } else if !slot.is_dead() {
            self.events.push_back(Event::Unshared { channel, gpadl });
        }
        self.finish(channel, now);
    }

    /// The memory that belongs to a channel.
    pub(super) fn gpadls_of(&self, channel: ChannelId) -> Vec<GpadlId> {
        let belongs = |gpadl: &Gpadl| gpadl.channel == channel && !gpadl.orphaned;
        self.gpadls.iter().filter(|(_, gpadl)| belongs(gpadl)).map(|(id, _)| *id).collect()
    }

    pub(super) fn take_back_all(&mut self, channel: ChannelId, now: Instant) {
        for gpadl in self.gpadls_of(channel) {
            self.take_back(gpadl, now);
        }
    }

    /// Asks the host for memory, at once or when it may be asked.
    pub(super) fn take_back(&mut self, gpadl: GpadlId, now: Instant) {
        let Some(entry) = self.gpadls.get_mut(&gpadl) else { return };
        let channel = entry.channel;
        match entry.state {
            GpadlState::Creating { .. } => {
                entry.state = GpadlState::Creating { unwanted: true };
                // The wait may have ended with a rescind.
                let wait = Wait::Share { channel, gpadl };
                if !self.waits.contains_key(&wait) {
                    self.arm(wait, now);
                }
            }
            GpadlState::Ready => {
                entry.state = GpadlState::TearingDown;
                let teardown =
                    GpadlTeardown { channel: U32::new(channel.0), gpadl: U32::new(gpadl.0) };
                self.post(&teardown);
                self.arm(Wait::Unshare { channel, gpadl }, now);
            }
            GpadlState::TearingDown => {
                let wait = Wait::Unshare { channel, gpadl };
                if !self.waits.contains_key(&wait) {
                    self.arm(wait, now);
                }
            }
        }
    }
}

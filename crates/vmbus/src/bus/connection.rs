//! What belongs to the connection as a whole: features, monitor pages, pauses, and coming back.

use alloc::vec::Vec;

use zerocopy::FromBytes;
use zerocopy::little_endian::U64;

use super::{Bus, Error, Event, HostError, Wait};
use crate::memory::{PAGE_SIZE, SharedPages};
use crate::message::{
    Features, Message, MessageError, MessageType, ModifyConnection, Pause, Resume, Version,
    VersionFeatures, VersionMonitorPages,
};
use crate::monitor::{MonitorDoorbell, MonitorPage};
use crate::{ChannelId, Instant};

/// What the host accepted with a version.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Accepted {
    features: Features,
    monitor_pages: Option<(u64, u64)>,
}

/// The monitor pages of which the host knows, or may know.
#[derive(Debug, Default)]
pub(super) struct MonitorPages {
    /// Those of the contact, or the last that the host agreed to.
    current: Option<SharedPages>,
    /// Those that it is asked to use instead.
    wished: Option<SharedPages>,
    /// Those of connections whose end it has not confirmed.
    former: Vec<SharedPages>,
}

impl MonitorPages {
    /// The host learns of these by a contact, and may still know of all others.
    fn replace(&mut self, pages: Option<SharedPages>) {
        self.former.extend(self.wished.take());
        self.former.extend(core::mem::replace(&mut self.current, pages));
    }

    /// The host has forgotten everything but the pages of a contact that it accepts. Returns what it has forgotten.
    fn forget(&mut self, accepted: bool) -> Vec<SharedPages> {
        let mut forgotten = core::mem::take(&mut self.former);
        forgotten.extend(self.wished.take());
        if !accepted {
            forgotten.extend(self.current.take());
        }
        forgotten
    }
}

impl Bus {
    /// Makes contact again after [`Bus::unload`], with the version of the connection before and no other: what a guest
    /// does that was suspended. Its devices are offered anew; [`Bus::primary`] finds them by instance.
    ///
    /// # Errors
    /// As [`Bus::start`], or if there was no connection before.
    pub fn restart(&mut self, now: Instant) -> Result<(), Error> {
        let version = self.last_version.ok_or(Error::NothingToResume)?;
        self.begin(Some(version), now)
    }

    /// What the host accepted of the features asked for.
    #[must_use]
    pub fn features(&self) -> Features {
        self.features
    }

    /// Guest physical addresses of the monitor pages that the host provides, that from host to guest first
    /// ([`Features::SERVER_MONITOR_PAGES`]).
    #[must_use]
    pub fn host_monitor_pages(&self) -> Option<(u64, u64)> {
        self.host_monitor_pages
    }

    /// The doorbell of a channel that is signalled through the guest's monitor pages. None if it has no bit there, or one
    /// that does not exist, or if the pages are the host's: then it is signalled by its connection, as all others are.
    #[must_use]
    pub fn monitor_doorbell(&self, channel: ChannelId) -> Option<MonitorDoorbell> {
        if self.host_monitor_pages.is_some() {
            return None;
        }
        let number = self.offer(channel)?.monitor?;
        let to_host = self.monitor_pages.current.as_ref()?.slice(1, 1)?;
        MonitorPage::new(to_host).ok()?.doorbell(number).ok()
    }

    /// Gives the host other monitor pages, or takes them away. Ends in [`Event::ConnectionModified`].
    ///
    /// Once that says that the host uses them, it looks at the former pages no more. Every open channel with a doorbell in
    /// there needs another, [`Bus::monitor_doorbell`] or that of its connection
    /// ([`Channel::set_doorbell`](crate::Channel::set_doorbell), and the method of that name of whoever has the channel), and a ring of that for what the old one may have rung for
    /// meanwhile. A channel that is being opened takes its doorbell after the event, too.
    ///
    /// # Errors
    /// If the host has not accepted [`Features::MODIFY_CONNECTION`], or the last wish is not answered yet.
    pub fn modify_connection(
        &mut self,
        pages: Option<&SharedPages>,
        now: Instant,
    ) -> Result<(), Error> {
        self.feature(Features::MODIFY_CONNECTION)?;
        self.not_under_way(Wait::ModifyConnection)?;
        let (to_guest, to_host) = match pages {
            Some(pages) => {
                addresses(pages).ok_or(Error::BadMonitorPages { pages: pages.pages() })?
            }
            None => (0, 0),
        };
        if let Some(pages) = pages {
            self.tell(pages, false)?;
        }
        // Both are the host's until it answers.
        self.monitor_pages.wished = pages.cloned();
        self.post(&ModifyConnection {
            monitor_to_guest: U64::new(to_guest),
            monitor_to_host: U64::new(to_host),
        });
        self.arm(Wait::ModifyConnection, now);
        Ok(())
    }

    /// Asks the host to send no messages for a while. Ends in [`Event::Paused`].
    ///
    /// # Errors
    /// If the host has not accepted [`Features::PAUSE_RESUME`], or a pause is asked for already.
    pub fn pause(&mut self, now: Instant) -> Result<(), Error> {
        self.feature(Features::PAUSE_RESUME)?;
        self.not_under_way(Wait::Pause)?;
        if self.paused {
            return Err(Error::UnderWay { wait: Wait::Pause });
        }
        self.post(&Pause {});
        self.arm(Wait::Pause, now);
        Ok(())
    }

    /// Ends a pause: the host may send messages again. A pause that is not confirmed may be ended, too; the host may
    /// have begun it.
    ///
    /// # Errors
    /// If no pause was asked for.
    pub fn unpause(&mut self) -> Result<(), Error> {
        self.feature(Features::PAUSE_RESUME)?;
        if !self.paused && !self.waits.contains_key(&Wait::Pause) {
            return Err(Error::UnderWay { wait: Wait::Pause });
        }
        self.paused = false;
        self.disarm(Wait::Pause);
        self.post(&Resume {});
        Ok(())
    }

    pub(super) fn connection_message(&mut self, message: Message<'_>) {
        match message {
            Message::ModifyConnectionResponse(answer)
                if self.waits.contains_key(&Wait::ModifyConnection) =>
            {
                self.disarm(Wait::ModifyConnection);
                let state = answer.state;
                let wished = self.monitor_pages.wished.take();
                let returned = if state == 0 {
                    self.config.monitor_pages.clone_from(&wished);
                    core::mem::replace(&mut self.monitor_pages.current, wished)
                } else {
                    wished
                };
                if let Some(pages) = returned {
                    self.came_back(&pages);
                }
                self.events.push_back(Event::ConnectionModified { state });
            }
            Message::PauseResponse(_) if self.waits.contains_key(&Wait::Pause) => {
                self.disarm(Wait::Pause);
                self.paused = true;
                self.events.push_back(Event::Paused);
            }
            _ => self.stats.late += 1,
        }
    }

    /// The features to ask for with the version that is asked for.
    pub(super) fn asked_features(&self) -> Features {
        if self.version >= Version::V6_0 { self.config.features } else { Features::empty() }
    }

    /// The addresses of the monitor pages, which the host knows from now on.
    pub(super) fn offer_monitor_pages(&mut self) -> (u64, u64) {
        let pages = self.config.monitor_pages.clone();
        let found = pages.and_then(|pages| addresses(&pages).map(|found| (pages, found)));
        // Those that are not revealed are of no use: the host could not read them.
        let found = found.filter(|(pages, _)| self.tell(pages, false).is_ok());
        let (pages, found) = found.map_or((None, (0, 0)), |(pages, found)| (Some(pages), found));
        self.monitor_pages.replace(pages);
        found
    }

    /// The host uses no memory of this guest any more, but for the monitor pages of a contact that it accepts.
    pub(super) fn forget_memory(&mut self, accepted: bool) {
        self.forget_gpadls();
        for pages in self.monitor_pages.forget(accepted) {
            self.came_back(&pages);
        }
        self.features = Features::empty();
        self.host_monitor_pages = None;
        self.paused = false;
    }

    pub(super) fn read_features(&self, rest: &[u8]) -> Result<Accepted, HostError> {
        let asked = self.asked_features();
        if self.version < Version::V6_0 {
            return Ok(Accepted::default());
        }
        let short = |need| MessageError::TooShort {
            kind: MessageType::VERSION_RESPONSE,
            len: rest.len().saturating_add(16),
            need,
        };
        let (fields, rest) = VersionFeatures::read_from_prefix(rest).map_err(|_| short(20))?;
        let features = Features::from_bits_retain(fields.features.get());
        if !asked.contains(features) {
            return Err(HostError::UnaskedFeatures { accepted: features, asked });
        }
        let mut monitor_pages = None;
        if features.contains(Features::SERVER_MONITOR_PAGES) {
            let (pages, _) = VersionMonitorPages::read_from_prefix(rest).map_err(|_| short(40))?;
            monitor_pages = Some((pages.monitor_to_guest.get(), pages.monitor_to_host.get()));
        }
        Ok(Accepted { features, monitor_pages })
    }

    pub(super) fn accept(&mut self, accepted: Accepted) {
        self.features = accepted.features;
        self.host_monitor_pages = accepted.monitor_pages;
        self.last_version = Some(self.version);
    }

    fn feature(&self, needed: Features) -> Result<(), Error> {
        self.connected()?;
        if self.features.contains(needed) {
            Ok(())
        } else {
            Err(Error::NoFeature { needed, accepted: self.features })
        }
    }

    fn not_under_way(&self, wait: Wait) -> Result<(), Error> {
        if self.waits.contains_key(&wait) { Err(Error::UnderWay { wait }) } else { Ok(()) }
    }
}

/// The guest physical addresses of two monitor pages.
fn addresses(pages: &SharedPages) -> Option<(u64, u64)> {
    let &[to_guest, to_host] = pages.frames() else { return None };
    let page = PAGE_SIZE as u64;
    Some((to_guest.0.checked_mul(page)?, to_host.0.checked_mul(page)?))
}

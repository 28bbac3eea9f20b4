//! What somebody does to a TAP interface with `ip link`, so that its NIC can follow.

use std::os::fd::{AsFd, BorrowedFd};

use netvsc::MacAddress;
use netvsc_linux::Tap;
use netvsc_linux::netlink::{Event, Monitor, NetlinkError, Topics};

/// How an interface stands. What cannot be read, as when it is in another network namespace, is unknown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Settings {
    pub(super) mac: Option<MacAddress>,
    pub(super) mtu: Option<u32>,
    pub(super) up: Option<bool>,
}

impl Settings {
    pub(super) fn of(tap: &Tap) -> Self {
        Self { mac: tap.mac().ok(), mtu: tap.mtu().ok(), up: tap.is_up().ok() }
    }
}

/// An ear for changes of one interface. Those that are made in another network namespace are not heard.
#[derive(Debug)]
pub(super) struct Follow {
    monitor: Monitor,
    last: Settings,
}

impl Follow {
    /// Listens. What the interface is like now is no news.
    pub(super) fn new(tap: &Tap) -> Result<Self, NetlinkError> {
        let monitor = Monitor::open(Topics::LINKS)?;
        Ok(Self { monitor, last: Settings::of(tap) })
    }

    /// How the interface stands, if that has changed since the last call.
    pub(super) fn poll(&mut self, tap: &Tap) -> Result<Option<Settings>, NetlinkError> {
        let links = self.monitor.poll()?;
        let news = |event: &Event| matches!(event, Event::Link(_) | Event::Lost);
        // Which interface an event is about is not asked: they are few, and the TAP itself says how it is.
        if !links.iter().any(news) {
            return Ok(None);
        }
        let found = Settings::of(tap);
        let changed = found != self.last;
        self.last = found;
        Ok(changed.then_some(found))
    }

    /// The interface was set to what it is now by this program: no news.
    pub(super) fn note(&mut self, tap: &Tap) {
        self.last = Settings::of(tap);
    }
}

impl AsFd for Follow {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.monitor.as_fd()
    }
}

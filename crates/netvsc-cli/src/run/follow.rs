//! What somebody does to a TAP interface with `ip link`, so that its NIC can follow.

use std::os::fd::{AsFd, BorrowedFd};

use netvsc::rndis::PacketFilter;
use netvsc::{MacAddress, NicConfig};
use netvsc_linux::Tap;
use netvsc_linux::netlink::{Connection, Event, Monitor, NetlinkError, Topics};

/// How an interface stands. What cannot be read, as when it is in another network namespace, is unknown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Settings {
    pub(super) mac: Option<MacAddress>,
    pub(super) mtu: Option<u32>,
    pub(super) up: Option<bool>,
    /// Somebody wants every frame: a bridge that it is a port of, a VLAN or the like with another address, or a tracer.
    pub(super) promiscuous: Option<bool>,
}

impl Settings {
    fn of(tap: &Tap, kernel: &mut Connection) -> Self {
        // Among the flags is only what was set with `ip link`.
        let link = tap.index().ok().and_then(|index| kernel.link(index).ok().flatten());
        let promiscuous = link.and_then(|link| link.promiscuity).map(|number| number > 0);
        Self { mac: tap.mac().ok(), mtu: tap.mtu().ok(), up: tap.is_up().ok(), promiscuous }
    }

    /// What the NIC is to hear. Every group in any case, whether or not the kernel is in it.
    pub(super) fn filter(&self) -> PacketFilter {
        let mut filter = NicConfig::default().filter;
        filter.set(PacketFilter::PROMISCUOUS, self.promiscuous == Some(true));
        if self.up == Some(false) { PacketFilter::empty() } else { filter }
    }
}

/// Has the kernel give a TAP no longer segments than its NIC has cut by the host, so that none has to be cut here. What cannot be
/// set, as that of an interface in another network namespace, costs time and nothing else.
pub(super) fn fit_segments(tap: &Tap, longest: u32) {
    if longest == 0 {
        return;
    }
    let fitted = tap.index().map_err(|error| error.to_string()).and_then(|index| {
        let mut connection = Connection::open().map_err(|error| error.to_string())?;
        connection.set_longest_segment(index, longest).map_err(|error| error.to_string())
    });
    if let Err(error) = fitted {
        tracing::debug!(%error, "segments are cut here");
    }
}

/// An ear for changes of one interface. Those that are made in another network namespace are not heard.
#[derive(Debug)]
pub(super) struct Follow {
    monitor: Monitor,
    kernel: Connection,
    last: Settings,
}

impl Follow {
    /// Listens. What the interface is like now is no news.
    pub(super) fn new(tap: &Tap) -> Result<Self, NetlinkError> {
        let (monitor, mut kernel) = (Monitor::open(Topics::LINKS)?, Connection::open()?);
        let last = Settings::of(tap, &mut kernel);
        Ok(Self { monitor, kernel, last })
    }

    /// How the interface stood when it was looked at last.
    pub(super) fn last(&self) -> &Settings {
        &self.last
    }

    /// How the interface stands, if that has changed since the last call.
    pub(super) fn poll(&mut self, tap: &Tap) -> Result<Option<Settings>, NetlinkError> {
        let links = self.monitor.poll()?;
        let news = |event: &Event| matches!(event, Event::Link(_) | Event::Lost);
        // Which interface an event is about is not asked: they are few, and the TAP itself says how it is.
        if !links.iter().any(news) {
            return Ok(None);
        }
        let found = Settings::of(tap, &mut self.kernel);
        let changed = found != self.last;
        self.last = found;
        Ok(changed.then_some(found))
    }

    /// The interface was set to what it is now by this program: no news. Who wants its frames is others' doing, and remains news.
    pub(super) fn note(&mut self, tap: &Tap) {
        let promiscuous = self.last.promiscuous;
        self.last = Settings { promiscuous, ..Settings::of(tap, &mut self.kernel) };
    }
}

impl AsFd for Follow {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.monitor.as_fd()
    }
}

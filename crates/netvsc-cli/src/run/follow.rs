//! What somebody does to a TAP interface with `ip link`, so that its NIC can follow.

use std::os::fd::{AsFd, BorrowedFd};

use netvsc::MacAddress;
use netvsc_linux::Tap;
use netvsc_linux::netlink::{Connection, Event, Monitor, NetlinkError, Topics};
use rustix::io::Errno;
use rustix::net::netdevice::name_to_index;
use rustix::net::{AddressFamily, SocketType};

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

/// Has the kernel give a TAP no longer segments than its NIC has cut by the host, so that none has to be cut here. What cannot be
/// set, as that of an interface in another network namespace, costs time and nothing else.
pub(super) fn fit_segments(tap: &Tap, longest: u32) {
    if longest == 0 {
        return;
    }
    let fitted = index_of(tap).map_err(|error| error.to_string()).and_then(|index| {
        let mut connection = Connection::open().map_err(|error| error.to_string())?;
        connection.set_longest_segment(index, longest).map_err(|error| error.to_string())
    });
    if let Err(error) = fitted {
        tracing::debug!(%error, "segments are cut here");
    }
}

fn index_of(tap: &Tap) -> Result<u32, Errno> {
    // Any socket of this namespace may ask.
    let socket = rustix::net::socket(AddressFamily::UNIX, SocketType::DGRAM, None)?;
    name_to_index(socket, tap.name().as_str())
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

//! How an interface stands, followed by rtnetlink: by its number, so that a new name is nothing new.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use netvsc::MacAddress;
use netvsc::port::PortLink;

use super::VfError;
use crate::netlink::{Connection, Event, Link, Monitor, Topics};

/// IFF_UP, IFF_RUNNING, IFF_LOWER_UP.
const UP: u32 = 1;
const RUNNING: u32 = 0x40;
const LOWER_UP: u32 = 0x1_0000;
/// ARPHRD_ETHER.
const ETHERNET: u16 = 1;

/// How an interface stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LinkState {
    /// Up, with carrier.
    Up,
    /// Up, and nobody at the other end.
    NoCarrier,
    /// Set down: frames are refused with ENETDOWN.
    Down,
    /// Not in this network namespace any more: deleted, moved, or without driver (ENODEV). Final.
    Gone,
}

impl LinkState {
    fn of(link: &Link) -> Self {
        match link.flags {
            flags if flags & UP == 0 => Self::Down,
            flags if flags & (RUNNING | LOWER_UP) == RUNNING | LOWER_UP => Self::Up,
            _ => Self::NoCarrier,
        }
    }

    /// The same for who only asks whether frames go.
    #[must_use]
    pub const fn port(self) -> PortLink {
        match self {
            Self::Up => PortLink::Up,
            Self::NoCarrier | Self::Down => PortLink::Down,
            Self::Gone => PortLink::Gone,
        }
    }
}

impl std::fmt::Display for LinkState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Up => "up",
            Self::NoCarrier => "up without carrier",
            Self::Down => "down (ENETDOWN)",
            Self::Gone => "gone from this network namespace (ENODEV)",
        })
    }
}

/// An ear for one interface.
#[derive(Debug)]
pub(crate) struct Watch {
    monitor: Monitor,
    connection: Connection,
    link: Link,
    state: LinkState,
}

impl Watch {
    /// The interface of this name, here and now.
    pub(crate) fn open(name: &str) -> Result<Self, VfError> {
        // First the ear, so that nothing happens unheard.
        let monitor = Monitor::open(Topics::LINKS)?;
        let mut connection = Connection::open()?;
        let named = |link: &Link| link.name == name || link.altnames.iter().any(|it| it == name);
        let link = connection.links()?.into_iter().find(named);
        let link = link.ok_or_else(|| VfError::Missing { name: name.into() })?;
        if link.kind != ETHERNET {
            return Err(VfError::NotEthernet { name: name.into(), kind: link.kind });
        }
        let state = LinkState::of(&link);
        Ok(Self { monitor, connection, link, state })
    }

    /// Looks at what happened since the last call. True if it concerned this interface.
    pub(crate) fn follow(&mut self) -> bool {
        let events = match self.monitor.poll() {
            Ok(events) => events,
            Err(error) => {
                tracing::debug!(%error, "links cannot be followed");
                return false;
            }
        };
        let mut concerned = false;
        for event in events {
            match event {
                Event::Link(link) if link.index == self.link.index => {
                    concerned = true;
                    self.take(link);
                }
                Event::LinkGone(link) if link.index == self.link.index => {
                    concerned = true;
                    self.state = LinkState::Gone;
                }
                Event::Lost => {
                    concerned = true;
                    self.look();
                }
                _ => {}
            }
        }
        concerned
    }

    /// Asks the kernel how the interface stands.
    pub(crate) fn look(&mut self) {
        match self.connection.link(self.link.index) {
            Ok(Some(link)) => self.take(link),
            Ok(None) => self.state = LinkState::Gone,
            Err(error) => tracing::debug!(%error, "a link cannot be asked for"),
        }
    }

    fn take(&mut self, link: Link) {
        // The number of one that has gone may be another's by now.
        if self.state != LinkState::Gone {
            self.state = LinkState::of(&link);
            self.link = link;
        }
    }

    /// What is readable when something has happened.
    pub(crate) fn ear(&self) -> &Arc<OwnedFd> {
        self.monitor.ear()
    }

    pub(crate) fn state(&self) -> LinkState {
        self.state
    }

    pub(crate) fn link(&self) -> &Link {
        &self.link
    }

    /// Sets it up and gives it a MAC, if it has another.
    pub(crate) fn prepare(&mut self, mac: Option<MacAddress>) -> Result<(), VfError> {
        if let Some(mac) = mac.filter(|mac| self.link.mac != Some(*mac)) {
            self.connection.set_mac(self.link.index, mac)?;
        }
        if !self.link.is_up() {
            self.connection.set_up(self.link.index, true)?;
        }
        self.look();
        Ok(())
    }

    /// Gives it this MTU, if it has another.
    pub(crate) fn set_mtu(&mut self, mtu: u32) -> bool {
        if self.link.mtu == Some(mtu) {
            return true;
        }
        let set = self.connection.set_mtu(self.link.index, mtu);
        if let Err(error) = &set {
            tracing::debug!(%error, mtu, "an interface keeps its MTU");
        }
        self.look();
        set.is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_is_up_when_frames_can_go() {
        let state = |flags| LinkState::of(&Link { flags, ..Link::default() });
        assert_eq!(state(UP | RUNNING | LOWER_UP), LinkState::Up);
        assert_eq!(state(UP | RUNNING), LinkState::NoCarrier);
        assert_eq!(state(UP), LinkState::NoCarrier);
        assert_eq!(state(RUNNING | LOWER_UP), LinkState::Down);
        assert_eq!(LinkState::Gone.port(), PortLink::Gone);
        assert_eq!(LinkState::NoCarrier.port(), PortLink::Down);
        assert!(LinkState::Down.to_string().contains("ENETDOWN"));
    }
}

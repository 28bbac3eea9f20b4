//! Links, addresses, routes and neighbours as they come and go.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::io::Errno;
use rustix::net::RecvFlags;

use super::socket::{Messages, open, receive};
use super::{Address, Link, Neighbour, NetlinkError, Route};

/// Longest datagram of events, in bytes.
const DATAGRAM: usize = 64 << 10;

bitflags::bitflags! {
    /// What to listen to. The bits are the kernel's groups.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Topics: u32 {
        /// Links.
        const LINKS = 1;
        /// Neighbours.
        const NEIGHBOURS = 1 << 2;
        /// Addresses, of both families.
        const ADDRESSES = 1 << 4 | 1 << 8;
        /// Routes, of both families.
        const ROUTES = 1 << 6 | 1 << 10;
    }
}

/// Something that happened. The kernel sends a link whole whenever anything about it changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A link is there, or is other than it was: name, state, MTU, master, altnames.
    Link(Link),
    /// A link is gone, or went into another network namespace.
    LinkGone(Link),
    /// An address is there.
    Address(Address),
    /// An address is gone.
    AddressGone(Address),
    /// A route is there.
    Route(Route),
    /// A route is gone.
    RouteGone(Route),
    /// A neighbour is there, or is other than it was.
    Neighbour(Neighbour),
    /// A neighbour is gone.
    NeighbourGone(Neighbour),
    /// Events were dropped because they came faster than they were read: everything may be other than it seems.
    Lost,
}

/// An ear for events. It is ready when its descriptor is readable.
#[derive(Debug)]
pub struct Monitor {
    fd: Arc<OwnedFd>,
    buffer: Vec<u8>,
}

impl AsFd for Monitor {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Monitor {
    /// Its descriptor, for those who wait and do not have it.
    pub(crate) fn ear(&self) -> &Arc<OwnedFd> {
        &self.fd
    }

    /// Another handle of its descriptor, for those who wait.
    #[must_use]
    pub fn handle(&self) -> Arc<OwnedFd> {
        self.fd.clone()
    }

    /// Listens in the network namespace of this thread. No privilege is needed. To miss nothing, listen first and ask for
    /// what is there afterwards.
    ///
    /// # Errors
    /// [`NetlinkError::Open`] if there is no netlink here.
    pub fn open(topics: Topics) -> Result<Self, NetlinkError> {
        let fd = open(topics.bits()).map_err(|error| NetlinkError::Open(error.into()))?;
        Ok(Self { fd: Arc::new(fd), buffer: vec![0; DATAGRAM] })
    }

    /// Everything that has happened since the last call; does not wait. What cannot be read is left out.
    ///
    /// # Errors
    /// [`NetlinkError::Talk`] if the socket is no longer one.
    pub fn poll(&mut self) -> Result<Vec<Event>, NetlinkError> {
        let mut events = Vec::new();
        loop {
            match receive(self.fd.as_fd(), &mut self.buffer, RecvFlags::DONTWAIT) {
                Ok(datagram) => {
                    for message in Messages(datagram).flatten() {
                        read(message.message_type(), message.payload(), &mut events);
                    }
                }
                Err(Errno::AGAIN) => return Ok(events),
                Err(Errno::NOBUFS | Errno::MSGSIZE) => events.push(Event::Lost),
                Err(error) => return Err(NetlinkError::Talk(error.into())),
            }
        }
    }
}

/// The messages of the kernel come in pairs of numbers: it is there, it is gone.
fn read(kind: u16, payload: &[u8], events: &mut Vec<Event>) {
    match kind {
        16 => events.extend(Link::parse(payload).map(Event::Link)),
        17 => events.extend(Link::parse(payload).map(Event::LinkGone)),
        20 => events.extend(Address::parse(payload).map(Event::Address)),
        21 => events.extend(Address::parse(payload).map(Event::AddressGone)),
        24 => events.extend(Route::parse(payload).into_iter().flatten().map(Event::Route)),
        25 => events.extend(Route::parse(payload).into_iter().flatten().map(Event::RouteGone)),
        28 => events.extend(Neighbour::parse(payload).map(Event::Neighbour)),
        29 => events.extend(Neighbour::parse(payload).map(Event::NeighbourGone)),
        _ => {}
    }
}

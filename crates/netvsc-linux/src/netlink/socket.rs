//! The socket, the question, and the answer as bytes.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NetlinkBuffer, NetlinkHeader, NetlinkMessage,
    NetlinkPayload,
};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::address::AddressMessage;
use netlink_packet_route::link::{LinkAttribute, LinkExtentMask, LinkMessage};
use netlink_packet_route::neighbour::NeighbourMessage;
use netlink_packet_route::route::RouteMessage;
use rustix::io::Errno;
use rustix::net::netlink::{GENERIC, SocketAddrNetlink};
use rustix::net::sockopt::{Timeout, set_socket_recv_buffer_size, set_socket_timeout};
use rustix::net::{
    AddressFamily, Protocol, RecvFlags, SendFlags, SocketAddrAny, SocketFlags, SocketType, bind,
    recvfrom, sendto, socket_with,
};

use super::answer::{Answer, Collected, steady};
use super::{Address, Link, Neighbour, NetlinkError, PATIENCE, Route};

/// Longest datagram that the kernel sends; it fills what it is given, up to 32 KiB.
const DATAGRAM: usize = 64 << 10;

const RTM_NEWLINK: u16 = 16;
const RTM_NEWADDR: u16 = 20;
const RTM_NEWROUTE: u16 = 24;
const RTM_NEWNEIGH: u16 = 28;

/// What can be asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Table {
    /// Interfaces.
    Links,
    /// Addresses of interfaces, of both families.
    Addresses,
    /// Routes, of both families and in all tables.
    Routes,
    /// Neighbours.
    Neighbours,
}

impl Table {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Links, Self::Addresses, Self::Routes, Self::Neighbours];

    /// The name of the file that holds a recorded answer, in the folder `netlink` of a guest's tree; for a network
    /// namespace with a name, in `netlink/netns/NAME`.
    #[must_use]
    pub const fn file(self) -> &'static str {
        match self {
            Self::Links => "links",
            Self::Addresses => "addresses",
            Self::Routes => "routes",
            Self::Neighbours => "neighbours",
        }
    }

    fn question(self) -> RouteNetlinkMessage {
        match self {
            Self::Links => {
                let mut message = LinkMessage::default();
                // Without the counters, which nobody reads here, an answer is half as long.
                let mask = vec![LinkExtentMask::SkipStats];
                message.attributes.push(LinkAttribute::ExtMask(mask));
                RouteNetlinkMessage::GetLink(message)
            }
            Self::Addresses => RouteNetlinkMessage::GetAddress(AddressMessage::default()),
            Self::Routes => RouteNetlinkMessage::GetRoute(RouteMessage::default()),
            Self::Neighbours => RouteNetlinkMessage::GetNeighbour(NeighbourMessage::default()),
        }
    }
}

/// What the kernel answered: messages one after another, as it sent them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reply {
    bytes: Vec<u8>,
}

impl Reply {
    /// An answer that was stored. Any bytes may be given; what is no message is skipped.
    #[must_use]
    pub const fn from_bytes(bytes: Vec<u8>) -> Self {
        Self { bytes }
    }

    /// The bytes, to store them.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The links in it, and how many messages could not be read.
    #[must_use]
    pub fn links(&self) -> (Vec<Link>, usize) {
        self.read(RTM_NEWLINK, Link::parse)
    }

    /// The addresses in it, and how many messages could not be read.
    #[must_use]
    pub fn addresses(&self) -> (Vec<Address>, usize) {
        self.read(RTM_NEWADDR, Address::parse)
    }

    /// The routes in it, one for each next hop, and how many messages could not be read.
    #[must_use]
    pub fn routes(&self) -> (Vec<Route>, usize) {
        let (routes, bad) = self.read(RTM_NEWROUTE, Route::parse);
        (routes.into_iter().flatten().collect(), bad)
    }

    /// The neighbours in it, and how many messages could not be read.
    #[must_use]
    pub fn neighbours(&self) -> (Vec<Neighbour>, usize) {
        self.read(RTM_NEWNEIGH, Neighbour::parse)
    }

    /// Every message's kind and what is after its header.
    pub(super) fn payloads(&self) -> impl Iterator<Item = (u16, &[u8])> {
        Messages(&self.bytes).flatten().map(|message| (message.message_type(), message.payload()))
    }

    fn read<T>(&self, kind: u16, parse: impl Fn(&[u8]) -> Option<T>) -> (Vec<T>, usize) {
        let (mut good, mut bad) = (Vec::new(), 0);
        for message in Messages(&self.bytes) {
            match message {
                Some(message) if message.message_type() == kind => match parse(message.payload()) {
                    Some(value) => good.push(value),
                    None => bad += 1,
                },
                Some(_) => {}
                None => bad += 1,
            }
        }
        (good, bad)
    }
}

/// The messages in a run of bytes; none for a rest that is no message, which ends it.
pub(super) struct Messages<'a>(pub(super) &'a [u8]);

impl<'a> Iterator for Messages<'a> {
    type Item = Option<NetlinkBuffer<&'a [u8]>>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let Ok(whole) = NetlinkBuffer::new_checked(self.0) else {
            self.0 = &[];
            return Some(None);
        };
        let length = usize::try_from(whole.length()).unwrap_or(usize::MAX).min(self.0.len());
        let message = self.0.get(..length).and_then(|bytes| NetlinkBuffer::new_checked(bytes).ok());
        let next = length.saturating_add(3) & !3;
        self.0 = self.0.get(next..).unwrap_or_default();
        Some(message)
    }
}

/// Opens a socket that hears these groups (a bit each) beside its own answers.
pub(super) fn open(groups: u32) -> Result<OwnedFd, Errno> {
    // Protocol 0, the default one, is NETLINK_ROUTE.
    open_protocol(None, groups)
}

fn open_protocol(protocol: Option<Protocol>, groups: u32) -> Result<OwnedFd, Errno> {
    let flags = SocketFlags::CLOEXEC;
    let fd = socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, protocol)?;
    bind(&fd, &SocketAddrNetlink::new(0, groups))?;
    set_socket_timeout(&fd, Timeout::Recv, Some(PATIENCE))?;
    if groups != 0 {
        // Bursts of events are large; what the limit of the system cuts off is no failure.
        let _ = set_socket_recv_buffer_size(&fd, 1 << 20);
    }
    Ok(fd)
}

/// Receives one datagram of the kernel's. What others send is dropped.
pub(super) fn receive<'a>(
    fd: BorrowedFd<'_>,
    buffer: &'a mut [u8],
    flags: RecvFlags,
) -> Result<&'a [u8], Errno> {
    loop {
        let (_, length, from) = match recvfrom(fd, &mut *buffer, flags | RecvFlags::TRUNC) {
            Err(Errno::INTR) => continue,
            other => other?,
        };
        if !from.is_some_and(from_kernel) {
            continue;
        }
        if length > buffer.len() {
            return Err(Errno::MSGSIZE);
        }
        return Ok(&buffer[..length]);
    }
}

fn from_kernel(from: SocketAddrAny) -> bool {
    SocketAddrNetlink::try_from(from).is_ok_and(|from| from.pid() == 0)
}

/// A way to ask the kernel.
#[derive(Debug)]
pub struct Connection {
    fd: OwnedFd,
    sequence: u32,
    buffer: Vec<u8>,
}

impl Connection {
    /// Asks about the network namespace of this thread. No privilege is needed.
    ///
    /// # Errors
    /// [`NetlinkError::Open`] if there is no netlink here, as in some sandboxes.
    pub fn open() -> Result<Self, NetlinkError> {
        let fd = open(0).map_err(|error| NetlinkError::Open(error.into()))?;
        Ok(Self { fd, sequence: 0, buffer: vec![0; DATAGRAM] })
    }

    /// Asks by generic netlink.
    pub(super) fn generic() -> Result<Self, NetlinkError> {
        let fd = open_protocol(Some(GENERIC), 0);
        let fd = fd.map_err(|error| NetlinkError::Open(error.into()))?;
        Ok(Self { fd, sequence: 0, buffer: vec![0; DATAGRAM] })
    }

    /// Asks one question of any family, whose answer is one message or (`dump`) many.
    pub(super) fn ask(
        &mut self,
        family: u16,
        question: &[u8],
        dump: bool,
    ) -> Result<Reply, NetlinkError> {
        let flags = NLM_F_REQUEST | if dump { NLM_F_DUMP } else { NLM_F_ACK };
        steady("tell about drivers", || {
            self.sequence = self.sequence.wrapping_add(1);
            let length = u32::try_from(16 + question.len()).unwrap_or(u32::MAX);
            let mut bytes = length.to_ne_bytes().to_vec();
            bytes.extend_from_slice(&family.to_ne_bytes());
            bytes.extend_from_slice(&flags.to_ne_bytes());
            bytes.extend_from_slice(&self.sequence.to_ne_bytes());
            bytes.extend_from_slice(&[0; 4]);
            bytes.extend_from_slice(question);
            self.send_bytes(&bytes)?;
            self.collect()
        })
    }

    /// Asks about the network namespace that a file stands for: `/run/netns/NAME` or `/proc/PID/ns/net`. Needs
    /// CAP_SYS_ADMIN. The calling thread stays where it is.
    ///
    /// # Errors
    /// [`NetlinkError::Namespace`] if it cannot be entered, [`NetlinkError::Open`] if there is no netlink in it.
    pub fn open_in(namespace: &Path) -> Result<Self, NetlinkError> {
        let failed = |source| NetlinkError::Namespace { path: namespace.to_owned(), source };
        let file = File::open(namespace).map_err(failed)?;
        // A thread enters it, opens the socket, and ends; a socket stays where it was opened.
        let enter = move || {
            let kind = rustix::thread::LinkNameSpaceType::Network;
            rustix::thread::move_into_link_name_space(file.as_fd(), Some(kind))
                .map_err(|error| Err(error.into()))?;
            Self::open().map_err(Ok)
        };
        let ended = std::thread::scope(|scope| scope.spawn(enter).join());
        match ended {
            Ok(outcome) => outcome.map_err(|error: Result<NetlinkError, _>| match error {
                Ok(error) => error,
                Err(source) => failed(source),
            }),
            Err(_) => Err(failed(std::io::ErrorKind::Other.into())),
        }
    }

    /// Everything that a table holds, at one moment.
    ///
    /// # Errors
    /// [`NetlinkError::Talk`] if the kernel cannot be reached, [`NetlinkError::Refused`] if it refuses, and
    /// [`NetlinkError::Unsteady`] if changes interrupted every attempt.
    pub fn dump(&mut self, table: Table) -> Result<Reply, NetlinkError> {
        steady("list them", || {
            self.send(table.question(), NLM_F_REQUEST | NLM_F_DUMP)?;
            self.collect()
        })
    }

    /// The links, in the order of their numbers.
    ///
    /// # Errors
    /// As [`dump`](Self::dump).
    pub fn links(&mut self) -> Result<Vec<Link>, NetlinkError> {
        let (mut links, _) = self.dump(Table::Links)?.links();
        links.sort_by_key(|link| link.index);
        Ok(links)
    }

    /// One link, by its number; none if there is no such one (any more).
    ///
    /// # Errors
    /// As [`dump`](Self::dump).
    pub fn link(&mut self, index: u32) -> Result<Option<Link>, NetlinkError> {
        let mut message = LinkMessage::default();
        message.header.index = index;
        message.attributes.push(LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats]));
        self.send(RouteNetlinkMessage::GetLink(message), NLM_F_REQUEST | NLM_F_ACK)?;
        match self.collect()? {
            Collected::Whole(bytes) => Ok(Reply { bytes }.links().0.pop()),
            Collected::Refused(_) | Collected::Interrupted => Ok(None),
        }
    }

    /// The addresses.
    ///
    /// # Errors
    /// As [`dump`](Self::dump).
    pub fn addresses(&mut self) -> Result<Vec<Address>, NetlinkError> {
        Ok(self.dump(Table::Addresses)?.addresses().0)
    }

    /// The routes, one for each next hop.
    ///
    /// # Errors
    /// As [`dump`](Self::dump).
    pub fn routes(&mut self) -> Result<Vec<Route>, NetlinkError> {
        Ok(self.dump(Table::Routes)?.routes().0)
    }

    /// The neighbours.
    ///
    /// # Errors
    /// As [`dump`](Self::dump).
    pub fn neighbours(&mut self) -> Result<Vec<Neighbour>, NetlinkError> {
        Ok(self.dump(Table::Neighbours)?.neighbours().0)
    }

    /// Asks for a change and waits for the kernel's word.
    pub(super) fn change(
        &mut self,
        doing: &'static str,
        message: RouteNetlinkMessage,
        flags: u16,
    ) -> Result<(), NetlinkError> {
        self.send(message, NLM_F_REQUEST | NLM_F_ACK | flags)?;
        match self.collect()? {
            Collected::Refused(source) => Err(NetlinkError::Refused { doing, source }),
            Collected::Whole(_) => Ok(()),
            // Perhaps it was done, perhaps not.
            Collected::Interrupted => {
                Err(NetlinkError::Refused { doing, source: Errno::AGAIN.into() })
            }
        }
    }

    fn send(&mut self, message: RouteNetlinkMessage, flags: u16) -> Result<(), NetlinkError> {
        self.sequence = self.sequence.wrapping_add(1);
        let mut header = NetlinkHeader::default();
        header.flags = flags;
        header.sequence_number = self.sequence;
        let mut packet = NetlinkMessage::new(header, NetlinkPayload::from(message));
        packet.finalize();
        let mut bytes = vec![0; packet.buffer_len()];
        packet.serialize(&mut bytes);
        self.send_bytes(&bytes)
    }

    fn send_bytes(&self, bytes: &[u8]) -> Result<(), NetlinkError> {
        sendto(&self.fd, bytes, SendFlags::empty(), &SocketAddrNetlink::new(0, 0))
            .map_err(|error| NetlinkError::Talk(error.into()))?;
        Ok(())
    }

    /// Receives until the answer ends.
    fn collect(&mut self) -> Result<Collected, NetlinkError> {
        let mut answer = Answer::to(self.sequence);
        loop {
            match receive(self.fd.as_fd(), &mut self.buffer, RecvFlags::empty()) {
                Ok(datagram) => {
                    if let Some(collected) = answer.take(datagram) {
                        return Ok(collected);
                    }
                }
                Err(Errno::NOBUFS) => answer.missed(),
                Err(error) => return Err(NetlinkError::Talk(error.into())),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_that_are_no_messages_are_counted_and_end() {
        for bytes in [vec![1], vec![0; 16], vec![255; 100], vec![3, 0, 0, 0, 0, 0, 0, 0]] {
            let reply = Reply::from_bytes(bytes.clone());
            assert_eq!(reply.links(), (vec![], 1), "{bytes:?}");
        }
        assert_eq!(Reply::default().routes(), (vec![], 0));
    }

    #[test]
    fn a_message_that_lies_about_its_contents_costs_itself() {
        let mut bytes = vec![20, 0, 0, 0, 16, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 2, 3, 4];
        bytes.extend_from_slice(&bytes.clone());
        assert_eq!(Reply::from_bytes(bytes).links(), (vec![], 2));
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_make_it_fail(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..300)) {
            let reply = Reply::from_bytes(bytes);
            let _ = (reply.links(), reply.addresses(), reply.routes(), reply.neighbours());
        }
    }
}

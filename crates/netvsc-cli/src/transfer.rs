//! The traffic of a run: one TCP transfer per NIC between two smoltcp stacks, with a digest taken at both ends.
//!
//! An [`Endpoint`] is a TCP/IP stack with two frame queues; whoever owns it moves frames between the queues and a NIC or
//! the virtual switch. A [`Transfer`] sends a [`Source`] from one endpoint to the other.

use std::fs::File;
use std::io::{BufReader, Read, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};
use std::time::Duration;

use netvsc::nic::TxWork;
use netvsc::stack::{Frames, FramesConfig};
use netvsc::{MacAddress, PathOffloads};
use rand_core::{Rng, SeedableRng};
use rand_xoshiro::Xoshiro256PlusPlus;
use sha2::{Digest, Sha256};
use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::socket::tcp;
use smoltcp::time::Instant as StackInstant;
use smoltcp::wire::{EthernetAddress, HardwareAddress, IpAddress, IpCidr, Ipv4Address};
use vmbus::Instant;

use crate::error::Error;

/// TCP port at which the receiving end listens.
pub(crate) const PORT: u16 = 5201;
/// Send and receive buffer of a TCP socket, in bytes: enough for the wire's rate times its round trip.
const SOCKET_BUFFER: usize = 256 * 1024;
/// Frames that a stack may have waiting to go out.
const SEND_QUEUE: usize = 64;
/// Longest frame without VLAN tag and checksum, in bytes.
pub const FRAME_SIZE: usize = 1514;

pub(crate) fn stack_error(error: impl std::fmt::Display) -> Error {
    Error::Run(format!("the TCP stack refuses: {error}"))
}

fn stack_time(now: Instant) -> StackInstant {
    StackInstant::from_micros(i64::try_from(now.as_nanos() / 1000).unwrap_or(i64::MAX))
}

fn interface(
    mac: MacAddress,
    address: Ipv4Address,
    seed: u64,
    frames: &mut Frames,
    now: Instant,
) -> Interface {
    let mut config = Config::new(HardwareAddress::Ethernet(EthernetAddress(mac.0)));
    config.random_seed = seed;
    let mut interface = Interface::new(config, frames, stack_time(now));
    interface.update_ip_addrs(|addresses| {
        // The list holds at least one address; it is empty before.
        let _ = addresses.push(IpCidr::new(IpAddress::Ipv4(address), 24));
    });
    interface
}

/// A TCP/IP stack with one address and, at most, one connection.
pub struct Endpoint {
    mac: MacAddress,
    address: Ipv4Address,
    seed: u64,
    interface: Interface,
    sockets: SocketSet<'static>,
    socket: SocketHandle,
    frames: Frames,
}

impl std::fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Endpoint").field("frames", &self.frames).finish_non_exhaustive()
    }
}

impl Endpoint {
    /// A stack at `address`/24 behind the Ethernet address `mac`. `seed` chooses its sequence numbers.
    #[must_use]
    pub fn new(mac: MacAddress, address: Ipv4Address, seed: u64, now: Instant) -> Self {
        // Nothing is dropped between the NIC and the stack: the account of frames is about what is between the NICs.
        let (frame_size, send) = (FRAME_SIZE, SEND_QUEUE);
        let receive = usize::MAX;
        let config = FramesConfig { mac, frame_size, send, receive, ..FramesConfig::default() };
        let mut frames = Frames::new(config);
        let interface = interface(mac, address, seed, &mut frames, now);
        let buffer = || tcp::SocketBuffer::new(vec![0; SOCKET_BUFFER]);
        let mut sockets = SocketSet::new(Vec::new());
        let socket = sockets.add(tcp::Socket::new(buffer(), buffer()));
        Self { mac, address, seed, interface, sockets, socket, frames }
    }

    /// Leaves to the card what it does to frames. Comes before there is a connection.
    pub fn leave(&mut self, offloads: PathOffloads, now: Instant) {
        self.frames.set_offloads(offloads);
        self.interface = interface(self.mac, self.address, self.seed, &mut self.frames, now);
    }

    pub(crate) fn socket(&mut self) -> &mut tcp::Socket<'static> {
        self.sockets.get_mut(self.socket)
    }

    /// Calls the stack at `address`.
    pub(crate) fn connect(&mut self, address: Ipv4Address) -> Result<(), Error> {
        let context = self.interface.context();
        self.sockets
            .get_mut::<tcp::Socket<'_>>(self.socket)
            .connect(context, (IpAddress::Ipv4(address), PORT), 49152)
            .map_err(stack_error)
    }

    /// Gives the stack one more address, with the same width.
    pub(crate) fn also_at(&mut self, address: Ipv4Address) {
        self.interface.update_ip_addrs(|addresses| {
            // The list holds at least two addresses.
            let _ = addresses.push(IpCidr::new(IpAddress::Ipv4(address), 24));
        });
    }

    /// Lets the stack take in what came and send what it has to.
    pub fn poll(&mut self, now: Instant) {
        self.interface.poll(stack_time(now), &mut self.frames, &mut self.sockets);
    }

    /// When the stack wants to be polled again although nothing came.
    pub fn deadline(&mut self, now: Instant) -> Option<Instant> {
        let at = self.interface.poll_at(stack_time(now), &self.sockets)?;
        let at = Instant::from_nanos(u64::try_from(at.total_micros()).unwrap_or(0) * 1000);
        if self.frames.is_full() {
            // Held up by its full queue; it is polled when that drains.
            return None;
        }
        // Some of its timers fire only once their time is past.
        Some(at.max(now + Duration::from_micros(1)))
    }

    /// Hands a frame to the stack.
    pub fn push(&mut self, fill: impl FnOnce(&mut Vec<u8>)) {
        self.frames.push(fill);
    }

    /// The next frame that the stack sends, if any.
    #[must_use]
    pub fn front(&self) -> Option<&[u8]> {
        self.frames.front()
    }

    /// What the card is asked to do to that frame.
    #[must_use]
    pub fn front_work(&self) -> TxWork {
        self.frames.front_work()
    }

    /// Removes the frame that [`Endpoint::front`] showed.
    pub fn pop(&mut self) {
        self.frames.pop();
    }
}

/// Where the data of a transfer comes from.
#[derive(Debug)]
pub enum Source {
    /// A given number of bytes that follow from a seed.
    Seeded {
        /// The generator.
        random: Box<Xoshiro256PlusPlus>,
        /// Bytes still to come.
        left: u64,
    },
    /// A file.
    File {
        /// Its name, for messages.
        path: PathBuf,
        /// The open file.
        reader: BufReader<File>,
        /// Bytes still to come; fixed when the file is opened.
        left: u64,
    },
}

impl Source {
    /// `size` bytes that follow from `seed`.
    #[must_use]
    pub fn seeded(seed: u64, size: u64) -> Self {
        Self::Seeded { random: Box::new(Xoshiro256PlusPlus::seed_from_u64(seed)), left: size }
    }

    /// The content of the file at `path`.
    ///
    /// # Errors
    /// If it cannot be opened or is not a regular file.
    pub fn file(path: &Path) -> Result<Self, Error> {
        Self::part_of_file(path, 0, 1)
    }

    /// One of `parts` parts of the file at `path`, which follow each other.
    ///
    /// # Errors
    /// As [`Source::file`].
    pub fn part_of_file(path: &Path, at: u64, parts: u64) -> Result<Self, Error> {
        let failed = |source| Error::Transfer { path: path.to_owned(), source };
        let mut file = File::open(path).map_err(failed)?;
        let metadata = file.metadata().map_err(failed)?;
        if !metadata.is_file() {
            let what = if metadata.is_dir() { "a directory" } else { "a device or a pipe" };
            return Err(Error::NotAFile { path: path.to_owned(), what });
        }
        if metadata.len() == 0 {
            return Err(Error::EmptyFile { path: path.to_owned() });
        }
        let (start, left) = part(metadata.len(), at, parts);
        file.seek(SeekFrom::Start(start)).map_err(failed)?;
        let reader = BufReader::with_capacity(SOCKET_BUFFER, file);
        Ok(Self::File { path: path.to_owned(), reader, left })
    }

    /// Bytes still to come.
    #[must_use]
    pub fn left(&self) -> u64 {
        match self {
            Self::Seeded { left, .. } | Self::File { left, .. } => *left,
        }
    }

    /// Fills `buffer`, or as much of it as there is data for.
    pub(crate) fn read(&mut self, buffer: &mut [u8]) -> Result<usize, Error> {
        let room = usize::try_from(self.left()).unwrap_or(usize::MAX).min(buffer.len());
        let buffer = &mut buffer[..room];
        match self {
            Self::Seeded { random, left } => {
                random.fill_bytes(buffer);
                *left -= room as u64;
            }
            Self::File { path, reader, left } => {
                reader
                    .read_exact(buffer)
                    .map_err(|source| Error::Transfer { path: path.clone(), source })?;
                *left -= room as u64;
            }
        }
        Ok(room)
    }
}

/// Where part number `at` of `parts` begins in `size` bytes, and how long it is.
pub(crate) fn part(size: u64, at: u64, parts: u64) -> (u64, u64) {
    let cut = |at: u64| {
        let place = u128::from(size) * u128::from(at) / u128::from(parts.max(1));
        u64::try_from(place).unwrap_or(size)
    };
    (cut(at), cut(at + 1) - cut(at))
}

/// One TCP transfer between two endpoints.
#[derive(Debug)]
pub struct Transfer {
    source: Source,
    total: u64,
    sent: Sha256,
    received: Sha256,
    received_bytes: u64,
    done: bool,
}

impl Transfer {
    /// Connects `sender` with `receiver` at `address` and prepares to send `source`.
    ///
    /// # Errors
    /// If one of the endpoints has a connection already.
    pub fn start(
        source: Source,
        sender: &mut Endpoint,
        receiver: &mut Endpoint,
        address: Ipv4Address,
    ) -> Result<Self, Error> {
        receiver.socket().listen(PORT).map_err(stack_error)?;
        sender.connect(address)?;
        Ok(Self {
            total: source.left(),
            source,
            sent: Sha256::new(),
            received: Sha256::new(),
            received_bytes: 0,
            done: false,
        })
    }

    /// Moves data into the sender's and out of the receiver's socket. True if anything moved.
    ///
    /// # Errors
    /// If the source cannot be read or the connection is lost.
    pub fn step(&mut self, sender: &mut Endpoint, receiver: &mut Endpoint) -> Result<bool, Error> {
        if self.done {
            return Ok(false);
        }
        let fed = self.feed(sender.socket())?;
        let drained = self.drain(receiver.socket())?;
        Ok(fed || drained)
    }

    fn feed(&mut self, socket: &mut tcp::Socket<'_>) -> Result<bool, Error> {
        let mut moved = false;
        while self.source.left() > 0 && socket.can_send() {
            let (source, digest) = (&mut self.source, &mut self.sent);
            let count = socket
                .send(|room| match source.read(room) {
                    Ok(count) => {
                        digest.update(&room[..count]);
                        (count, Ok(count))
                    }
                    Err(error) => (0, Err(error)),
                })
                .map_err(stack_error)??;
            moved |= count > 0;
        }
        if socket.state() == tcp::State::Closed {
            return Err(self.lost());
        }
        Ok(moved)
    }

    fn drain(&mut self, socket: &mut tcp::Socket<'_>) -> Result<bool, Error> {
        let mut moved = false;
        while socket.can_recv() {
            let digest = &mut self.received;
            let count = socket
                .recv(|data| {
                    digest.update(&*data);
                    (data.len(), data.len())
                })
                .map_err(stack_error)?;
            self.received_bytes += count as u64;
            moved = true;
        }
        if socket.state() == tcp::State::Closed {
            return Err(self.lost());
        }
        // The length is known, so that nothing depends on how the connection is closed.
        if self.received_bytes >= self.total {
            self.done = true;
            moved = true;
        }
        Ok(moved)
    }

    fn lost(&self) -> Error {
        Error::Run(format!("a TCP connection was lost after {} bytes", self.received_bytes))
    }

    /// Whether the receiver has all of the data.
    #[must_use]
    pub fn done(&self) -> bool {
        self.done
    }

    /// Bytes that the receiver has.
    #[must_use]
    pub fn received_bytes(&self) -> u64 {
        self.received_bytes
    }

    /// Bytes to be sent in all.
    #[must_use]
    pub fn total_bytes(&self) -> u64 {
        self.total
    }

    /// Whether everything arrived as it was sent: the same number of bytes with the same digest.
    #[must_use]
    pub fn digest_ok(&self) -> bool {
        self.done
            && self.received_bytes == self.total
            && self.sent.clone().finalize() == self.received.clone().finalize()
    }

    /// SHA-256 of what the receiver got so far.
    #[must_use]
    pub fn digest(&self) -> String {
        self.received.clone().finalize().iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SENDER: MacAddress = MacAddress([2, 0, 0, 0, 0, 1]);
    const RECEIVER: MacAddress = MacAddress([2, 0, 0, 0, 0, 2]);

    /// Moves all frames from one stack to the other; `spoil` may change or drop them.
    fn carry(
        from: &mut Endpoint,
        to: &mut Endpoint,
        mut spoil: impl FnMut(&mut Vec<u8>) -> bool,
    ) -> bool {
        let mut moved = false;
        while let Some(frame) = from.front().map(<[u8]>::to_vec) {
            from.pop();
            let mut frame = frame;
            if spoil(&mut frame) {
                to.push(|buffer| buffer.extend_from_slice(&frame));
            }
            moved = true;
        }
        moved
    }

    fn run(source: Source, lose_every: usize) -> Transfer {
        let mut now = Instant::ZERO;
        let mut sender = Endpoint::new(SENDER, Ipv4Address::new(10, 0, 0, 1), 1, now);
        let mut receiver = Endpoint::new(RECEIVER, Ipv4Address::new(10, 0, 0, 2), 2, now);
        let mut transfer =
            Transfer::start(source, &mut sender, &mut receiver, Ipv4Address::new(10, 0, 0, 2))
                .unwrap();
        let mut count = 0;
        while !transfer.done() {
            let mut moved = transfer.step(&mut sender, &mut receiver).unwrap();
            sender.poll(now);
            receiver.poll(now);
            moved |= carry(&mut sender, &mut receiver, |_| {
                count += 1;
                lose_every == 0 || count % lose_every != 0
            });
            moved |= carry(&mut receiver, &mut sender, |_| true);
            if !moved {
                now = vmbus::time::earliest(sender.deadline(now), receiver.deadline(now))
                    .expect("a deadline");
            }
        }
        transfer
    }

    #[test]
    fn a_transfer_arrives_as_it_was_sent() {
        let transfer = run(Source::seeded(7, 3_000_001), 0);
        assert!(transfer.digest_ok());
        assert_eq!(transfer.received_bytes(), 3_000_001);
    }

    #[test]
    fn lost_frames_are_sent_again() {
        assert!(run(Source::seeded(7, 1_000_000), 50).digest_ok());
    }

    #[test]
    fn parts_follow_each_other_and_are_the_whole() {
        for (size, parts) in [(0, 1), (1, 4), (10, 3), (u64::MAX, 64)] {
            let mut at = 0;
            for number in 0..parts {
                let (start, len) = part(size, number, parts);
                assert_eq!(start, at, "{size} bytes in {parts}");
                at += len;
            }
            assert_eq!(at, size);
        }
    }

    #[test]
    fn nothing_is_a_transfer_too() {
        let transfer = run(Source::seeded(7, 0), 0);
        assert!(transfer.digest_ok());
        assert!(transfer.digest().starts_with("e3b0c442"), "SHA-256 of nothing");
    }

    #[test]
    fn a_transfer_that_is_not_over_has_no_good_digest() {
        let now = Instant::ZERO;
        let mut sender = Endpoint::new(SENDER, Ipv4Address::new(10, 0, 0, 1), 1, now);
        let mut receiver = Endpoint::new(RECEIVER, Ipv4Address::new(10, 0, 0, 2), 2, now);
        let source = Source::seeded(1, 10);
        let transfer =
            Transfer::start(source, &mut sender, &mut receiver, Ipv4Address::new(10, 0, 0, 2))
                .unwrap();
        assert!(!transfer.digest_ok());
    }

    #[test]
    fn a_file_that_is_not_there_says_so() {
        let error = Source::file(Path::new("/no/such/file")).unwrap_err().to_string();
        assert!(error.contains("/no/such/file"), "{error}");
        assert!(Source::file(Path::new("/")).is_err());
    }
}

//! A port by packet sockets (AF_PACKET).
//!
//! Frames come out of a ring that the kernel fills (TPACKET_V3). They go to the kernel in batches, past its queues
//! (PACKET_QDISC_BYPASS), by `sendmmsg` and not by a ring: a device on which a frame changes hands, as on a veth, calls a slot of the
//! ring free while the frame is still read, so that it would be overwritten. What the kernel has taken is copied, and that is
//! what is confirmed.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use netvsc::MacAddress;
use netvsc::nic::TxWork;
use netvsc::port::{PathOffloads, PortError, PortLink, PortSettings, VfPort};
use netvsc::rndis::PacketFilter;
use netvsc::rndis::offload::{ChecksumSet, IpOffloads};
use rustix::event::PollFlags;
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};
use vmbus::memory::SharedMemory;

use super::batch::{Batch, Sent};
use super::frame::{HEADER, finish};
use super::request::{self, Membership, RingRequest, Setting};
use super::ring::{Entry, Next, Ring};
use super::watch::{LinkState, Watch};
use super::{VfError, failure};
use crate::mapping::map_file;

/// ETH_P_ALL: frames of every protocol.
const EVERYTHING: u16 = 3;
/// TPACKET_V3.
const VERSION: i32 = 2;
/// Longest frame that is taken in one piece, to be cut by the kernel or after it: an IP packet of 64 KiB.
const LONGEST: usize = 65_535 + 18;
/// Bytes of an Ethernet header with tag.
const ETHERNET_AND_TAG: usize = 18;
/// Milliseconds after which frames are shown though their block is not full. Less there is not.
const PATIENCE: u32 = 1;
/// Frames that are handed on before whoever receives them gets to do something else.
const BURST: usize = 1024;
/// PACKET_MR_PROMISC and PACKET_MR_ALLMULTI.
const PROMISCUOUS: u16 = 1;
const ALL_MULTICAST: u16 = 2;

/// How a port is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PacketConfig {
    /// The MAC that the function has from its host; the interface gets it if it has another. Without it the port has the
    /// interface's permanent one, or the present one if the driver tells none.
    pub mac: Option<MacAddress>,
    /// Bytes of each block of the receive ring: a power of two from 128 KiB to 4 MiB.
    pub block_size: usize,
    /// Blocks of the receive ring: 2 to 1024.
    pub blocks: usize,
    /// Whether the port asks for large sends and receives all there is (MTU-sized frames only, if not).
    pub large_sends: bool,
}

impl Default for PacketConfig {
    /// A ring of 4 MiB.
    fn default() -> Self {
        Self { mac: None, block_size: 128 << 10, blocks: 32, large_sends: true }
    }
}

/// What a port has done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PacketCounters {
    /// Frames that the kernel took.
    pub sent: u64,
    /// Of frames that it refused for good, such as one longer than the interface's MTU.
    pub refused: u64,
    /// Times that it took no more for now.
    pub pushed_back: u64,
    /// Frames handed on.
    pub received: u64,
    /// Frames that were dropped here since they cannot be handed on: cut off, or with work that cannot be done.
    pub unusable: u64,
    /// Frames for which there was no room in the ring.
    pub dropped: u64,
}

/// An interface of the kernel as the port of a virtual function. See the [module](super).
#[derive(Debug)]
pub struct PacketPort {
    watch: Watch,
    mac: Option<MacAddress>,
    receiver: OwnedFd,
    ring: Ring,
    sender: OwnedFd,
    batch: Batch,
    large_sends: bool,
    /// MTU that the NIC has.
    mtu: u32,
    /// Memberships that are held, by their kinds.
    held: [(u16, bool); 2],
    confirmed: u64,
    /// Frames that were not sent when the link went down. They are sent elsewhere; they count as confirmed when it is up again.
    cut_off: u64,
    counters: PacketCounters,
    frame: Vec<u8>,
    piece: Vec<u8>,
}

impl PacketPort {
    /// Takes the interface of this name, in the network namespace of this thread, as a port. It is set up.
    ///
    /// # Errors
    /// [`VfError`].
    pub fn open(name: &str, config: PacketConfig) -> Result<Self, VfError> {
        let PacketConfig { mac, block_size, blocks, large_sends } = config;
        let sizes = (128 << 10)..=(4 << 20);
        if !sizes.contains(&block_size)
            || !block_size.is_power_of_two()
            || !(2..=1024).contains(&blocks)
        {
            return Err(VfError::Ring { block_size, blocks });
        }
        let mut watch = Watch::open(name)?;
        watch.prepare(mac)?;
        let index = watch.link().index as i32;
        let (receiver, sender) = (packet_socket()?, packet_socket()?);
        set(&receiver, Setting::Version, VERSION, "choose the layout of the ring")?;
        set(&receiver, Setting::Header, 1, "ask for offloads")?;
        set(&receiver, Setting::IgnoreOutgoing, 1, "ignore frames of its own")?;
        let request = RingRequest {
            block_size: block_size as u32,
            blocks: blocks as u32,
            frame_size: 2048,
            frames: (block_size / 2048 * blocks) as u32,
            patience: PATIENCE,
            private_size: 0,
            features: 0,
        };
        request::set(&receiver, Setting::ReceiveRing, &request)
            .map_err(failure("make a receive ring"))?;
        let pages = block_size * blocks / vmbus::memory::PAGE_SIZE;
        let memory = map_file(&receiver, 0, pages, &[]).map_err(failure("map the receive ring"))?;
        request::bind(&receiver, index, EVERYTHING).map_err(failure("bind to the interface"))?;
        set(&sender, Setting::Header, 1, "ask for offloads")?;
        set(&sender, Setting::Bypass, 1, "go past the queues")?;
        request::bind(&sender, index, 0).map_err(failure("bind to the interface"))?;
        let mac = mac.or(watch.link().permanent).or(watch.link().mac);
        Ok(Self {
            watch,
            mac,
            receiver,
            ring: Ring::new(memory, block_size),
            sender,
            batch: Batch::new(),
            large_sends,
            mtu: 1500,
            held: [(PROMISCUOUS, false), (ALL_MULTICAST, false)],
            confirmed: 0,
            cut_off: 0,
            counters: PacketCounters::default(),
            frame: Vec::with_capacity(LONGEST),
            piece: Vec::with_capacity(LONGEST),
        })
    }

    /// The interface's number, which outlives its names.
    #[must_use]
    pub fn index(&self) -> u32 {
        self.watch.link().index
    }

    /// The interface's name now.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.watch.link().name
    }

    /// How the interface stood when it was last looked at, by [`VfPort::link`].
    #[must_use]
    pub fn state(&self) -> LinkState {
        self.watch.state()
    }

    /// What has happened so far.
    #[must_use]
    pub fn counters(&mut self) -> PacketCounters {
        if let Ok(more) = request::statistics(&self.receiver) {
            self.counters.dropped += u64::from(more.dropped);
        }
        self.counters
    }

    /// Frames that wait until the kernel takes more: try again a little later, by [`VfPort::flush`].
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.batch.len()
    }

    /// What to wait for: frames, and changes of the interface.
    #[must_use]
    pub fn descriptors(&self) -> [(BorrowedFd<'_>, PollFlags); 2] {
        [(self.receiver.as_fd(), PollFlags::IN), (self.watch.as_fd(), PollFlags::IN)]
    }

    /// Takes note of how the interface stands now.
    fn stand(&mut self) {
        // What a socket remembers of the last change would wake up whoever waits for it, again and again.
        let _ = rustix::net::sockopt::socket_error(&self.receiver);
        if self.watch.state() == LinkState::Up {
            self.confirmed += std::mem::take(&mut self.cut_off);
        } else {
            // It shall not be sent later, as the caller sends it elsewhere.
            if self.watch.state() != LinkState::Gone {
                self.cut_off += self.batch.len() as u64;
            }
            self.batch.clear();
        }
    }

    fn push(&mut self, frame: &[u8], work: &TxWork) -> Result<(), PortError> {
        if self.watch.state() == LinkState::Gone {
            return Err(PortError::Gone);
        }
        let large = work.large_send.is_some();
        let most = if large { LONGEST } else { self.mtu as usize + ETHERNET_AND_TAG };
        if frame.is_empty() || frame.len() > most {
            return Err(PortError::Length { len: frame.len(), most });
        }
        if self.watch.state() != LinkState::Up {
            return Err(PortError::Full);
        }
        if !self.batch.has_room(frame.len()) {
            self.hand_over();
            if self.watch.state() == LinkState::Gone {
                return Err(PortError::Gone);
            }
            if !self.batch.has_room(frame.len()) {
                return Err(PortError::Full);
            }
        }
        self.batch.push(frame, work);
        Ok(())
    }

    fn hand_over(&mut self) {
        loop {
            let Self { batch, sender, confirmed, counters, .. } = self;
            let sent = batch.send(&*sender, |count| {
                *confirmed += count as u64;
                counters.sent += count as u64;
            });
            match sent {
                Sent::All => return,
                Sent::Later => {
                    counters.pushed_back += 1;
                    return;
                }
                Sent::Refused(error @ (Errno::NETDOWN | Errno::NXIO | Errno::NODEV)) => {
                    tracing::debug!(%error, "an interface takes no frames");
                    self.watch.look();
                    self.stand();
                    return;
                }
                Sent::Refused(error) => {
                    // Nobody will ever take this one.
                    tracing::debug!(%error, "an interface refuses a frame");
                    counters.refused += 1;
                    *confirmed += 1;
                    batch.skip(1);
                }
            }
        }
    }

    /// Copies a frame out of the ring, and hands it on with everything done that was left to be done to it.
    fn hand_on(&mut self, entry: Entry, sink: &mut dyn FnMut(&[u8])) {
        let Self { ring, frame, piece, counters, mtu, .. } = self;
        let mut header = [0; HEADER];
        let memory = ring.memory();
        frame.clear();
        frame.resize(entry.len, 0);
        let copied =
            memory.read(entry.at - HEADER, &mut header).and_then(|()| memory.read(entry.at, frame));
        if copied.is_err() || entry.whole != entry.len || frame.len() < 14 {
            counters.unusable += 1;
            return;
        }
        let tag = entry.tag.map(super::frame::Tag::bytes);
        if let Some(tag) = tag {
            frame.splice(12..12, tag);
        }
        let most = *mtu as usize + ETHERNET_AND_TAG;
        match finish(header, frame, tag.map_or(0, |tag| tag.len()), most, piece, sink) {
            Ok(count) => counters.received += count as u64,
            Err(super::frame::Unfinished) => counters.unusable += 1,
        }
    }

    /// Joins or leaves what the filter asks for.
    fn listen(&mut self, filter: PacketFilter) {
        let wanted = [PacketFilter::PROMISCUOUS, PacketFilter::ALL_MULTICAST];
        for ((kind, held), wanted) in self.held.iter_mut().zip(wanted) {
            let wanted = filter.contains(wanted);
            if wanted == *held {
                continue;
            }
            let index = self.watch.link().index as i32;
            let membership = Membership { index, kind: *kind, address_length: 0, address: [0; 8] };
            let setting = if wanted { Setting::Join } else { Setting::Leave };
            match request::set(&self.receiver, setting, &membership) {
                Ok(()) => *held = wanted,
                Err(error) => tracing::debug!(%error, kind, "a filter that is not set"),
            }
        }
    }
}

impl VfPort for PacketPort {
    fn permanent_mac(&self) -> Option<MacAddress> {
        self.mac
    }

    fn link(&mut self) -> PortLink {
        if self.watch.follow() {
            self.stand();
        }
        self.watch.state().port()
    }

    fn configure(&mut self, settings: PortSettings) -> Result<(), PortError> {
        if self.watch.state() == LinkState::Gone {
            return Err(PortError::Gone);
        }
        let set = self.watch.set_mtu(settings.mtu);
        if self.watch.state() == LinkState::Gone {
            return Err(PortError::Gone);
        }
        let has = self.watch.link().mtu.unwrap_or(0);
        if !set && has < settings.mtu {
            return Err(PortError::Mtu { mtu: settings.mtu, most: has });
        }
        self.mtu = settings.mtu;
        self.listen(settings.filter);
        Ok(())
    }

    /// Checksums of TCP and UDP, and segments that are to be cut: what the device does not, the kernel does.
    fn offloads(&self) -> PathOffloads {
        let transmit = ChecksumSet::TCP | ChecksumSet::UDP;
        let large_send = if self.large_sends { LONGEST as u32 } else { 0 };
        let each = IpOffloads { transmit, large_send, ..IpOffloads::default() };
        PathOffloads { ipv4: each, ipv6: each, vlan: false }
    }

    fn transmit_with(&mut self, frame: &[u8], work: &TxWork) -> Result<(), PortError> {
        self.push(frame, work)
    }

    fn transmit(&mut self, frame: &[u8]) -> Result<(), PortError> {
        self.push(frame, &TxWork::NONE)
    }

    fn flush(&mut self) {
        self.hand_over();
    }

    fn receive(&mut self, sink: &mut dyn FnMut(&[u8])) -> usize {
        let before = self.counters.received;
        for _ in 0..BURST {
            match self.ring.next() {
                Next::Frame(entry) => self.hand_on(entry, sink),
                Next::Nonsense => self.counters.unusable += 1,
                Next::Empty => break,
            }
        }
        usize::try_from(self.counters.received - before).unwrap_or(usize::MAX)
    }

    fn confirmed(&mut self) -> u64 {
        self.confirmed
    }
}

/// A packet socket that receives nothing yet.
fn packet_socket() -> Result<OwnedFd, VfError> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    socket_with(AddressFamily::PACKET, SocketType::RAW, flags, None)
        .map_err(failure("open a packet socket"))
}

fn set(socket: &OwnedFd, setting: Setting, value: i32, doing: &'static str) -> Result<(), VfError> {
    request::set(socket, setting, &value).map_err(failure(doing))
}

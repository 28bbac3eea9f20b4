//! A port by packet sockets (AF_PACKET).
//!
//! Frames come out of a ring that the kernel fills (TPACKET_V3), or of the socket's queue: see [`Reception`]. They go to the kernel in batches, past its queues
//! (PACKET_QDISC_BYPASS), by `sendmmsg` and not by a ring: a device on which a frame changes hands, as on a veth, calls a slot of the
//! ring free while the frame is still read, so that it would be overwritten. What the kernel has taken is copied, and that is
//! what is confirmed.

mod config;
mod ears;

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use netvsc::MacAddress;
use netvsc::nic::TxWork;
use netvsc::port::{PathOffloads, PortError, PortLink, PortSettings, VfPort};
use netvsc::rndis::offload::{ChecksumSet, IpOffloads, LargeSendOptions};
use netvsc::rndis::packet::LargeSend;
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};
use vmbus::memory::SharedMemory;

use super::batch::{Batch, Sent};
use super::frame::{ADDRESSES, Finish, HEADER, TAG, Unfinished, finish};
use super::membership::Memberships;
use super::request::{self, RingRequest, Setting, Slot};
use super::ring::{Next, Ring};
use super::watch::{LinkState, Watch};
use super::{VfError, failure};
use crate::mapping::map_file;
use crate::xdp::Discard;

pub use config::{NotAlone, PacketConfig, PacketCounters, Reception};
pub use ears::PortEars;

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
const BURST: usize = 4096;

/// How often in a row a segment is not taken before it goes the usual way.
const INSISTENCE: u32 = 16;
/// Frames taken out of a socket's queue at once.
const SLOTS: usize = 32;
/// Bytes that may wait in a socket's queue, of which the kernel counts about half for itself.
const QUEUE: usize = 8 << 20;
/// Bytes that a frame takes there at least, or in a ring, with what the kernel keeps beside it.
const LEAST: usize = 128;

/// An interface of the kernel as the port of a virtual function. See the [module](super).
#[derive(Debug)]
pub struct PacketPort {
    watch: Watch,
    mac: Option<MacAddress>,
    /// Keeps the kernel's stack away.
    discard: Result<Discard, NotAlone>,
    receiver: Arc<OwnedFd>,
    source: Source,
    sender: Arc<OwnedFd>,
    batch: Batch,
    /// Frames wait in it that the kernel did not take.
    stuck: Arc<AtomicBool>,
    large_sends: bool,
    /// Frames go past the queueing discipline.
    bypass: bool,
    /// How often in a row the next frame, a segment, was not taken.
    insisted: u32,
    /// MTU that the NIC has.
    mtu: u32,
    memberships: Memberships,
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
        let PacketConfig { mac, reception, large_sends, bypass, alone } = config;
        reception.check()?;
        let mut watch = Watch::open(name)?;
        // Before it is set up, so that nothing gets past.
        let discard = match alone {
            true => Discard::attach(watch.link().index).map_err(NotAlone::of),
            false => Err(NotAlone::NotAsked),
        };
        if let Err(why) = &discard {
            tracing::debug!(%why, "the kernel's stack gets frames, too");
        }
        watch.prepare(mac)?;
        let index = watch.link().index as i32;
        let (receiver, sender) = (packet_socket()?, packet_socket()?);
        set(&receiver, Setting::Header, 1, "ask for offloads")?;
        set(&receiver, Setting::IgnoreOutgoing, 1, "ignore frames of its own")?;
        let source = Source::make(&receiver, reception)?;
        request::bind(&receiver, index, EVERYTHING).map_err(failure("bind to the interface"))?;
        set(&sender, Setting::Header, 1, "ask for offloads")?;
        if bypass {
            set(&sender, Setting::Bypass, 1, "go past the queues")?;
        }
        request::bind(&sender, index, 0).map_err(failure("bind to the interface"))?;
        let mac = mac.or(watch.link().permanent).or(watch.link().mac);
        Ok(Self {
            watch,
            mac,
            discard,
            receiver: Arc::new(receiver),
            source,
            sender: Arc::new(sender),
            batch: Batch::new(),
            stuck: Arc::default(),
            large_sends,
            bypass,
            insisted: 0,
            mtu: 1500,
            memberships: Memberships::new()?,
            confirmed: 0,
            cut_off: 0,
            counters: PacketCounters::default(),
            frame: Vec::with_capacity(LONGEST),
            piece: Vec::with_capacity(LONGEST),
        })
    }

    /// Whether the kernel's stack gets none of what is received ([`PacketConfig::alone`]): needs Linux 6.6 and the capability `CAP_BPF`.
    #[must_use]
    pub fn is_alone(&self) -> bool {
        self.discard.is_ok()
    }

    /// The same with the reason if it gets it, too.
    ///
    /// # Errors
    /// [`NotAlone`].
    pub fn alone(&self) -> Result<(), NotAlone> {
        self.discard.as_ref().map(|_| ()).map_err(|why| *why)
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

    /// The interface's MTU now, in bytes; 0 if it tells none.
    #[must_use]
    pub fn mtu(&self) -> u32 {
        self.watch.link().mtu.unwrap_or(0)
    }

    /// The MTU that the port was set up with last, in bytes: 1500 at first.
    #[must_use]
    pub fn settled_mtu(&self) -> u32 {
        self.mtu
    }

    /// How the interface stood when it was last looked at, by [`VfPort::link`].
    #[must_use]
    pub fn state(&self) -> LinkState {
        self.watch.state()
    }

    /// What has happened so far.
    #[must_use]
    pub fn counters(&mut self) -> PacketCounters {
        if let Ok(more) = request::statistics(&*self.receiver) {
            self.counters.dropped += u64::from(more.dropped);
        }
        self.counters
    }

    /// What to wait for on its behalf.
    #[must_use]
    pub fn ears(&self) -> PortEars {
        PortEars::of([&self.receiver, self.watch.ear()], &self.stuck)
    }

    /// Drops what waits: frames that nobody has taken from the port so far, and those that the kernel has not taken, which count as
    /// confirmed. For who goes on with somebody else, to whom all of them are nothing. What comes meanwhile may stay.
    pub fn forget(&mut self) {
        self.confirmed += self.batch.len() as u64;
        self.batch.clear();
        self.insisted = 0;
        self.stuck.store(false, Ordering::Relaxed);
        let (kept, most) = (self.counters.received, self.source.most());
        let taken = |counters: &PacketCounters| counters.received + counters.unusable;
        let mut dropped = 0;
        while dropped < most {
            let before = taken(&self.counters);
            self.receive_all(true, &mut |_, _| {});
            let now = taken(&self.counters) - before;
            if now == 0 {
                break;
            }
            dropped += now;
        }
        // They were handed to nobody.
        self.counters.received = kept;
    }

    /// Takes note of how the interface stands now.
    fn stand(&mut self) {
        // What a socket remembers of the last change would wake up whoever waits for it, again and again.
        let _ = rustix::net::sockopt::socket_error(&*self.receiver);
        if self.watch.state() == LinkState::Up {
            self.confirmed += std::mem::take(&mut self.cut_off);
        } else {
            // It shall not be sent later, as the caller sends it elsewhere.
            if self.watch.state() != LinkState::Gone {
                self.cut_off += self.batch.len() as u64;
            }
            self.batch.clear();
            self.stuck.store(false, Ordering::Relaxed);
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
        self.try_hand_over();
        self.stuck.store(self.batch.len() > 0, Ordering::Relaxed);
    }

    fn try_hand_over(&mut self) {
        loop {
            let Self { batch, sender, confirmed, counters, insisted, .. } = self;
            let sent = batch.send(&**sender, |count| {
                *confirmed += count as u64;
                counters.sent += count as u64;
                *insisted = 0;
            });
            match sent {
                Sent::All => return,
                Sent::Later => {
                    counters.pushed_back += 1;
                    if !self.goes_the_usual_way() {
                        return;
                    }
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

    /// Whether frames go on the usual way from now on. Past it the kernel says of a segment that the interface cannot cut what it
    /// says when there is no room, however often one asks.
    fn goes_the_usual_way(&mut self) -> bool {
        if !self.bypass || !self.batch.is_to_be_cut() {
            return false;
        }
        self.insisted += 1;
        if self.insisted < INSISTENCE {
            return false;
        }
        self.insisted = 0;
        match set(&self.sender, Setting::Bypass, 0, "go through the queues") {
            Ok(()) => self.bypass = false,
            Err(error) => tracing::debug!(%error, "segments that nobody cuts"),
        }
        !self.bypass
    }

    /// Hands on what there is, segments as they are or in pieces; how many frames that is.
    fn receive_all(
        &mut self,
        whole: bool,
        sink: &mut dyn FnMut(&[u8], Option<LargeSend>),
    ) -> usize {
        let before = self.counters.received;
        self.receive_ring(whole, sink);
        self.receive_queue(whole, sink);
        usize::try_from(self.counters.received - before).unwrap_or(usize::MAX)
    }

    /// Hands on what is in the ring.
    fn receive_ring(&mut self, whole: bool, sink: &mut dyn FnMut(&[u8], Option<LargeSend>)) {
        let Self { source: Source::Ring(ring), frame, piece, counters, mtu, .. } = self else {
            return;
        };
        for _ in 0..BURST {
            let entry = match ring.next() {
                Next::Frame(entry) => entry,
                Next::Nonsense => {
                    counters.unusable += 1;
                    continue;
                }
                Next::Empty => return,
            };
            let mut header = [0; HEADER];
            let memory = ring.memory();
            frame.clear();
            frame.resize(entry.len, 0);
            let at = entry.at;
            let copied =
                memory.read(at - HEADER, &mut header).and_then(|()| memory.read(at, frame));
            if copied.is_err() || entry.whole != entry.len {
                counters.unusable += 1;
                continue;
            }
            let tag = entry.tag.map_or(0, |_| TAG);
            if let Some(tag) = entry.tag.filter(|_| frame.len() >= ADDRESSES) {
                frame.splice(ADDRESSES..ADDRESSES, tag.bytes());
            }
            let with = Finish { most: *mtu as usize + ETHERNET_AND_TAG, whole, piece };
            counters.hand_on(header, frame, tag, with, sink);
        }
    }

    /// Hands on what is in the socket's queue.
    fn receive_queue(&mut self, whole: bool, sink: &mut dyn FnMut(&[u8], Option<LargeSend>)) {
        let Self { source: Source::Queue(slots), receiver, piece, counters, mtu, .. } = self else {
            return;
        };
        for _ in 0..BURST / SLOTS {
            let count = match request::receive_many(&**receiver, slots) {
                Ok(count) => count,
                Err(error) => {
                    // An interface that went down: how it stands is followed elsewhere.
                    tracing::debug!(%error, "a socket has no frames");
                    return;
                }
            };
            for slot in slots.iter_mut().take(count) {
                let len = slot.len.saturating_sub(HEADER);
                let tag = slot.along.tag();
                let room = slot.bytes.len();
                let with_tag = len + tag.map_or(0, |_| TAG);
                if len < ADDRESSES || with_tag > room {
                    counters.unusable += 1;
                    continue;
                }
                if let Some(tag) = tag {
                    slot.bytes.copy_within(ADDRESSES..len, ADDRESSES + TAG);
                    if let Some(place) = slot.bytes.get_mut(ADDRESSES..ADDRESSES + TAG) {
                        place.copy_from_slice(&tag.bytes());
                    }
                }
                let frame = slot.bytes.get_mut(..with_tag).unwrap_or_default();
                let with = Finish { most: *mtu as usize + ETHERNET_AND_TAG, whole, piece };
                counters.hand_on(slot.header, frame, with_tag - len, with, sink);
            }
            if count < slots.len() {
                return;
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
        self.memberships.follow(self.watch.link().index, settings.filter);
        Ok(())
    }

    /// Checksums of TCP and UDP, and segments that are to be cut: what the device does not, the kernel does.
    fn offloads(&self) -> PathOffloads {
        let options = ChecksumSet::IP_OPTIONS | ChecksumSet::TCP_OPTIONS;
        let transmit = ChecksumSet::TCP | ChecksumSet::UDP | options;
        let large_send = if self.large_sends { LONGEST as u32 } else { 0 };
        let each = IpOffloads { transmit, large_send, ..IpOffloads::default() };
        let large_send_ipv6 = LargeSendOptions::all();
        PathOffloads { ipv4: each, ipv6: each, large_send_ipv6, vlan: false }
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
        self.receive_all(false, &mut |frame, _| sink(frame))
    }

    fn receive_whole(&mut self, sink: &mut dyn FnMut(&[u8], Option<LargeSend>)) -> usize {
        self.receive_all(true, sink)
    }

    fn confirmed(&mut self) -> u64 {
        self.confirmed
    }
}

/// Where frames come from.
#[derive(Debug)]
enum Source {
    Ring(Ring),
    Queue(Box<[Slot]>),
}

impl Source {
    /// Frames that can wait, at most.
    fn most(&self) -> u64 {
        let bytes = match self {
            Self::Ring(ring) => ring.memory().pages() * vmbus::memory::PAGE_SIZE,
            // The kernel doubles what is asked for.
            Self::Queue(_) => 2 * QUEUE,
        };
        (bytes / LEAST) as u64
    }

    /// Prepares a socket that is not bound yet.
    fn make(receiver: &OwnedFd, reception: Reception) -> Result<Self, VfError> {
        let Reception::Ring { block_size, blocks } = reception else {
            set(receiver, Setting::Along, 1, "ask for tags")?;
            // Beyond what any process may have, if this one may; as far as it may, otherwise.
            if rustix::net::sockopt::set_socket_recv_buffer_size_force(receiver, QUEUE).is_err() {
                rustix::net::sockopt::set_socket_recv_buffer_size(receiver, QUEUE)
                    .map_err(failure("make a receive queue"))?;
            }
            return Ok(Self::Queue((0..SLOTS).map(|_| Slot::new(LONGEST + TAG)).collect()));
        };
        set(receiver, Setting::Version, VERSION, "choose the layout of the ring")?;
        let request = RingRequest {
            block_size: block_size as u32,
            blocks: blocks as u32,
            frame_size: 2048,
            frames: (block_size / 2048 * blocks) as u32,
            patience: PATIENCE,
            private_size: 0,
            features: 0,
        };
        request::set(receiver, Setting::ReceiveRing, &request)
            .map_err(failure("make a receive ring"))?;
        let pages = block_size * blocks / vmbus::memory::PAGE_SIZE;
        let memory = map_file(receiver, 0, pages, &[]).map_err(failure("map the receive ring"))?;
        Ok(Self::Ring(Ring::new(memory, block_size)))
    }
}

impl PacketCounters {
    /// Hands on a frame with everything done that was left to be done to it.
    fn hand_on(
        &mut self,
        header: [u8; HEADER],
        frame: &mut [u8],
        tag: usize,
        with: Finish<'_>,
        sink: &mut dyn FnMut(&[u8], Option<LargeSend>),
    ) {
        match finish(header, frame, tag, with, sink) {
            Ok(count) => self.received += count as u64,
            Err(Unfinished) => self.unusable += 1,
        }
    }
}

/// A packet socket that receives nothing yet.
pub(super) fn packet_socket() -> Result<OwnedFd, VfError> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    socket_with(AddressFamily::PACKET, SocketType::RAW, flags, None)
        .map_err(failure("open a packet socket"))
}

fn set(socket: &OwnedFd, setting: Setting, value: i32, doing: &'static str) -> Result<(), VfError> {
    request::set(socket, setting, &value).map_err(failure(doing))
}

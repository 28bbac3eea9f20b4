//! One queue of an interface: memory, four rings, and the socket that joins them.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::sockopt::{
    set_xdp_rx_ring_size, set_xdp_tx_ring_size, set_xdp_umem_completion_ring_size,
    set_xdp_umem_fill_ring_size, set_xdp_umem_reg, xdp_mmap_offsets, xdp_options,
};
use rustix::net::xdp::{
    SocketAddrXdp, SocketAddrXdpFlags, XDP_PGOFF_RX_RING, XDP_PGOFF_TX_RING,
    XDP_UMEM_PGOFF_COMPLETION_RING, XDP_UMEM_PGOFF_FILL_RING, XdpOptionsFlags, XdpRingOffset,
    XdpUmemReg, XdpUmemRegFlags,
};
use rustix::net::{AddressFamily, SendFlags, SocketFlags, SocketType, bind, socket_with};
use vmbus::memory::{PAGE_SIZE, SharedMemory, SharedPages};

use super::ring::{self, Ring};
use crate::mapping::map_file;
use crate::memfd::SharedFile;

/// Bytes of the piece of memory that a frame has.
pub(super) const CHUNK: usize = PAGE_SIZE;
/// Bytes of an entry that describes a frame: where it is, its length, and nothing.
const DESCRIPTOR: usize = 16;
/// How often a queue is tried that is somebody's, and how long between two tries.
const TRIES: u32 = 10;
const BETWEEN: Duration = Duration::from_millis(2);
/// `XDP_PKT_CONTD`: the frame goes on in the next entry.
const CONTINUED: u32 = 1;
/// `XDP_USE_SG`, from Linux 6.6: frames may have several pieces.
const PIECES: SocketAddrXdpFlags = SocketAddrXdpFlags::from_bits_retain(1 << 4);
/// And of one that only says where.
const ADDRESS: usize = 8;

/// One queue.
#[derive(Debug)]
pub(super) struct Lane {
    pub(super) socket: Arc<OwnedFd>,
    memory: SharedPages,
    fill: Ring,
    completed: Ring,
    received: Ring,
    sent: Ring,
    /// Pieces for frames that are to be sent.
    free: Vec<u64>,
    /// Pieces from here on are for sending.
    sending: u64,
    /// By piece: the frame that is to be sent ends in it.
    ends: Vec<bool>,
    /// What has come of a frame whose other pieces have not, and whether it is worth nothing.
    begun: usize,
    spoilt: bool,
    /// Frames handed on since the beginning.
    pub(super) handed_on: u64,
    /// Frames that the driver has confirmed since the beginning.
    pub(super) confirmed: u64,
    /// How the socket was joined to the queue.
    pub(super) joint: Joint,
}

/// How a socket is joined to a queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Joint {
    /// Frames are not copied on their way between memory and driver, as the kernel says (`XDP_OPTIONS`).
    pub(super) zero_copy: bool,
    /// A frame may have several pieces.
    pub(super) several: bool,
}

/// What has been received.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Received {
    /// Frames handed on.
    pub(super) good: u64,
    /// Descriptors that were none.
    pub(super) bad: u64,
}

/// Why a lane could not be made: what was tried, and what the kernel said.
pub(super) type Obstacle = (&'static str, Errno);

fn at(doing: &'static str) -> impl Fn(Errno) -> Obstacle {
    move |error| (doing, error)
}

impl Lane {
    /// Opens a queue of an interface, with rings of `depth` frames, a power of two. Frames are copied only if there is no other way,
    /// or if `copy` asks for it.
    pub(super) fn open(index: u32, queue: u32, depth: u32, copy: bool) -> Result<Self, Obstacle> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = socket_with(AddressFamily::XDP, SocketType::RAW, flags, None)
            .map_err(at("open an AF_XDP socket"))?;
        // In a file, so that whoever gets this memory next in this process does not share it with a driver.
        let chunks = 2 * depth as usize;
        let file = SharedFile::create("netvsc frames", chunks * CHUNK / PAGE_SIZE);
        let memory = file.and_then(|file| file.map(&[]));
        let memory = memory.map_err(|_| ("make memory for frames", Errno::NOMEM))?;
        let base = memory.whole().as_ptr() as usize as u64;
        let area = XdpUmemReg {
            addr: base,
            len: memory.size() as u64,
            chunk_size: CHUNK as u32,
            headroom: 0,
            flags: XdpUmemRegFlags::empty(),
            tx_metadata_len: 0,
        };
        set_xdp_umem_reg(&socket, area)
            .map_err(at("share memory for frames, which counts as locked (RLIMIT_MEMLOCK)"))?;
        let ask = "make rings";
        set_xdp_umem_fill_ring_size(&socket, depth).map_err(at(ask))?;
        set_xdp_umem_completion_ring_size(&socket, depth).map_err(at(ask))?;
        set_xdp_rx_ring_size(&socket, depth).map_err(at(ask))?;
        set_xdp_tx_ring_size(&socket, depth).map_err(at(ask))?;
        let offsets = xdp_mmap_offsets(&socket).map_err(at(ask))?;
        let map = |offset: u64, places: &XdpRingOffset, entry: usize| {
            let pages = ring::bytes(places, depth, entry).div_ceil(PAGE_SIZE);
            let memory = map_file(&socket, offset, pages, &[]).map_err(at("map rings"))?;
            Ok(Ring::new(memory, places, depth, entry))
        };
        let fill = map(XDP_UMEM_PGOFF_FILL_RING, &offsets.fr, ADDRESS)?;
        let completed = map(XDP_UMEM_PGOFF_COMPLETION_RING, &offsets.cr, ADDRESS)?;
        let received = map(XDP_PGOFF_RX_RING, &offsets.rx, DESCRIPTOR)?;
        let sent = map(XDP_PGOFF_TX_RING, &offsets.tx, DESCRIPTOR)?;
        let joint = join(&socket, index, queue, copy)?;
        let sending = u64::from(depth) * CHUNK as u64;
        let mut lane = Self {
            socket: Arc::new(socket),
            memory,
            fill,
            completed,
            received,
            sent,
            free: (0..u64::from(depth)).map(|number| sending + number * CHUNK as u64).collect(),
            sending,
            ends: vec![false; chunks],
            begun: 0,
            spoilt: false,
            handed_on: 0,
            confirmed: 0,
            joint,
        };
        for number in 0..u64::from(depth) {
            lane.fill.write(&(number * CHUNK as u64).to_ne_bytes());
        }
        lane.fill.publish();
        Ok(lane)
    }

    /// Puts a frame into the ring, in as many pieces as it takes. False if there is no room.
    pub(super) fn push(&mut self, frame: &[u8]) -> bool {
        let pieces = frame.len().div_ceil(CHUNK).max(1);
        if (self.sent.room() as usize) < pieces || self.free.len() < pieces {
            return false;
        }
        for (number, piece) in (1..).zip(frame.chunks(CHUNK)) {
            let Some(address) = self.free.pop() else { return false };
            // A piece lies within the memory, as all that were ever free do.
            let _ = self.memory.write(address as usize, piece);
            let last = number == pieces;
            if let Some(end) = self.ends.get_mut(address as usize / CHUNK) {
                *end = last;
            }
            let mut entry = [0; DESCRIPTOR];
            let options = if last { 0 } else { CONTINUED };
            let [len, options] = [(piece.len() as u32).to_ne_bytes(), options.to_ne_bytes()];
            for (place, from) in entry.chunks_exact_mut(4).skip(2).zip([len, options]) {
                place.copy_from_slice(&from);
            }
            if let Some(place) = entry.first_chunk_mut() {
                *place = address.to_ne_bytes();
            }
            self.sent.write(&entry);
        }
        true
    }

    /// Shows the kernel what was put into the ring, and has it look, as long as it takes any.
    pub(super) fn send(&mut self) -> Result<(), Errno> {
        self.sent.publish();
        let mut left = self.sent.unconsumed();
        while left > 0 && self.sent.wants_wakeup() {
            let woken = rustix::net::send(&*self.socket, &[], SendFlags::DONTWAIT);
            let now = self.sent.unconsumed();
            match woken {
                Ok(_) | Err(Errno::INTR | Errno::AGAIN | Errno::BUSY | Errno::NOBUFS) => {
                    if now == left {
                        return Ok(());
                    }
                }
                Err(error) => return Err(error),
            }
            left = now;
        }
        Ok(())
    }

    /// Frames that the kernel has not looked at.
    pub(super) fn unsent(&self) -> u32 {
        self.sent.unconsumed()
    }

    /// Takes back pieces that have gone; how many frames they were.
    pub(super) fn reap(&mut self) -> u64 {
        let ready = self.completed.ready();
        let mut done = 0;
        for _ in 0..ready {
            let mut bytes = [0; ADDRESS];
            self.completed.read(&mut bytes);
            let address = u64::from_ne_bytes(bytes) / CHUNK as u64 * CHUNK as u64;
            if address >= self.sending && address < self.memory.size() as u64 {
                self.free.push(address);
                done += u64::from(self.ends.get(address as usize / CHUNK) == Some(&true));
            }
        }
        if ready > 0 {
            self.completed.release();
        }
        self.confirmed += done;
        done
    }

    /// Takes back frames that the kernel has not looked at: the interface is down, and nobody does. How many. A driver that reaches
    /// the memory by itself may look at any time until the interface is `stopped`; what it has not sent then is left to it.
    pub(super) fn take_back(&mut self, stopped: bool) -> u64 {
        if self.joint.zero_copy && !stopped {
            return 0;
        }
        let Self { sent, free, ends, .. } = self;
        let mut count = 0;
        sent.take_back(|entry| {
            let address = entry.first_chunk().map_or(0, |bytes| u64::from_ne_bytes(*bytes));
            free.push(address);
            count += u64::from(ends.get(address as usize / CHUNK) == Some(&true));
        });
        count
    }

    /// Hands on received frames. They are put together in `frame`, which has room for the longest.
    pub(super) fn receive(
        &mut self,
        frame: &mut [u8],
        sink: &mut dyn FnMut(&mut [u8]),
    ) -> Received {
        let ready = self.received.ready();
        if ready == 0 {
            return Received::default();
        }
        let (mut good, mut bad) = (0, 0);
        for _ in 0..ready {
            let mut entry = [0; DESCRIPTOR];
            self.received.read(&mut entry);
            let address = entry.first_chunk().map_or(0, |bytes| u64::from_ne_bytes(*bytes));
            let number = |at: usize| {
                let bytes = entry.get(at..).and_then(<[u8]>::first_chunk);
                bytes.map_or(0, |bytes| u32::from_ne_bytes(*bytes))
            };
            let (len, last) = (number(8) as usize, number(12) & CONTINUED == 0);
            let place = usize::try_from(address).unwrap_or(usize::MAX);
            let end = self.begun.saturating_add(len);
            let room = frame.get_mut(self.begun..end).unwrap_or_default();
            match !room.is_empty() && self.memory.read(place, room).is_ok() {
                true => self.begun = end,
                false => self.spoilt = true,
            }
            if last {
                match std::mem::take(&mut self.spoilt) {
                    true => bad += 1,
                    false => {
                        sink(frame.get_mut(..self.begun).unwrap_or_default());
                        good += 1;
                    }
                }
                self.begun = 0;
            }
            // There is room: as many pieces as places.
            let chunk = address / CHUNK as u64 * CHUNK as u64;
            if chunk < self.sending {
                self.fill.write(&chunk.to_ne_bytes());
            }
        }
        self.received.release();
        self.fill.publish();
        if self.fill.wants_wakeup() {
            let none = Timespec { tv_sec: 0, tv_nsec: 0 };
            // Asking is what wakes the driver.
            let _ = poll(&mut [PollFd::new(&*self.socket, PollFlags::IN)], Some(&none));
        }
        self.handed_on += good;
        Received { good, bad }
    }
}

/// Binds a socket. One that was closed leaves its queue a little later.
fn bind_in_time(socket: &OwnedFd, address: &SocketAddrXdp) -> Result<(), Errno> {
    for _ in 0..TRIES {
        match bind(socket, address) {
            Err(Errno::BUSY) => std::thread::sleep(BETWEEN),
            done => return done,
        }
    }
    bind(socket, address)
}

/// Binds a socket to a queue: the best that kernel and driver have.
fn join(socket: &OwnedFd, index: u32, queue: u32, copy: bool) -> Result<Joint, Obstacle> {
    let wakeup = SocketAddrXdpFlags::XDP_USE_NEED_WAKEUP;
    let mut last = Errno::OPNOTSUPP;
    for zero_copy in [true, false] {
        let means = match zero_copy {
            true if copy => continue,
            true => SocketAddrXdpFlags::XDP_ZEROCOPY,
            false => SocketAddrXdpFlags::XDP_COPY,
        };
        for several in [true, false] {
            let more = if several { PIECES } else { SocketAddrXdpFlags::empty() };
            let address = SocketAddrXdp::new(means | wakeup | more, index, queue);
            match bind_in_time(socket, &address) {
                Ok(()) => {
                    let options = xdp_options(socket).map_err(at("ask how it is joined"))?;
                    let zero_copy = options.contains(XdpOptionsFlags::XDP_OPTIONS_ZEROCOPY);
                    return Ok(Joint { zero_copy, several });
                }
                Err(error) => {
                    tracing::debug!(%error, queue, zero_copy, several, "not joined to a queue");
                    last = error;
                }
            }
        }
    }
    Err(("bind to a queue", last))
}

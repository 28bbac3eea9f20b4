//! One port of the switch: a NIC's two sides on one end, the wire to its peer on the other.

mod side;
mod whole;

use super::{Path, Uncut};
use netvsc::MacAddress;
use vmbus::Instant;
use vmbus::time::earliest;

use super::counters::{DropCause, PortCounters};
use super::frame::{self, ETHERNET_HEADER};
use super::spread::Spread;
use super::wire::{Wire, WireConfig};

use self::side::Side;
pub use self::side::{Queued, SideState};

/// Frame buffers kept for reuse per port.
const SPARE_BUFFERS: usize = 1024;

/// When the host forwards what a VF sends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum VfTransmit {
    /// Always.
    Always,
    /// From the first switch of the data path to this VF on: a guest that sends on a VF it has not switched to loses
    /// its frames, one that drains the VF after switching back does not.
    #[default]
    AfterFirstSwitch,
    /// Only while the data path is on the VF.
    WhileSwitched,
}

/// How a port behaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PortConfig {
    /// The wire from the guest to the peer.
    pub to_peer: WireConfig,
    /// The wire from the peer to the guest.
    pub from_peer: WireConfig,
    /// Bytes that may wait for the guest in each queue of each side. Frames beyond that wait on the wire.
    pub side_capacity: usize,
    /// Longest frame, Ethernet header included. Large sends travel in one piece, so this is not the MTU.
    pub max_frame: usize,
    /// When the host forwards what the VF sends.
    pub vf_transmit: VfTransmit,
}

impl Default for PortConfig {
    fn default() -> Self {
        Self {
            to_peer: WireConfig::default(),
            from_peer: WireConfig::default(),
            side_capacity: 1 << 20,
            max_frame: 65_550,
            vf_transmit: VfTransmit::default(),
        }
    }
}

/// What became of a frame handed to the switch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "a busy switch has not taken the frame"]
pub enum Offered {
    /// It is on its way.
    Accepted,
    /// No room. Nothing was taken; [`SwitchPort::take_wake`] tells when to try again.
    Busy,
    /// Taken, dropped and counted.
    Dropped(DropCause),
}

/// One port: what the NIC service and the VF device of one NIC share.
///
/// Both feed it through [`Self::accept_from_guest`] and take frames with [`Self::next_for_guest`], each for its own
/// path. The peer's end is [`Self::peer_transmit`] and [`Self::peer_receive`].
#[derive(Debug)]
pub struct SwitchPort {
    config: PortConfig,
    to_peer: Wire,
    from_peer: Wire,
    synthetic: Side,
    vf: Side,
    data_path: Path,
    /// The data path has been on the VF since it was attached.
    vf_was_active: bool,
    /// NDIS packet filter of the NIC.
    filter: u32,
    /// Address of the NIC, if frames for others are not for it.
    address: Option<MacAddress>,
    /// Longest frame that the guest can take.
    receive_limit: usize,
    /// How frames are spread over the queues of the synthetic side.
    spread: Option<Spread>,
    /// The peer takes segments that are longer than frames.
    peer_cuts: bool,
    /// So does the VF's driver.
    vf_cuts: bool,
    /// So does the guest's NIC.
    nic_gathers: bool,
    spare: Vec<Vec<u8>>,
    counters: PortCounters,
    /// Latest moment at which somebody looked.
    seen: Instant,
}

/// NDIS packet filter bits.
mod filter {
    pub(super) const DIRECTED: u32 = 0x1;
    pub(super) const MULTICAST: u32 = 0x2;
    pub(super) const ALL_MULTICAST: u32 = 0x4;
    pub(super) const BROADCAST: u32 = 0x8;
    pub(super) const PROMISCUOUS: u32 = 0x20;
}

impl SwitchPort {
    /// A port with nothing attached: the synthetic side is down, there is no VF, the data path is synthetic.
    #[must_use]
    pub fn new(config: PortConfig) -> Self {
        Self {
            config,
            to_peer: Wire::new(config.to_peer),
            from_peer: Wire::new(config.from_peer),
            synthetic: Side::new(SideState::Down),
            vf: Side::new(SideState::Absent),
            data_path: Path::Synthetic,
            vf_was_active: false,
            filter: 0,
            address: None,
            receive_limit: config.max_frame,
            spread: None,
            peer_cuts: false,
            vf_cuts: false,
            nic_gathers: false,
            spare: Vec::new(),
            counters: PortCounters::default(),
            seen: Instant::ZERO,
        }
    }

    /// Whether the wire to the peer takes a frame of `len` bytes now.
    #[must_use]
    pub fn has_room(&self, len: usize) -> bool {
        self.to_peer.has_room(len)
    }

    /// Whether the peer takes TCP segments that are longer than frames, and does with them what it likes. A port that is
    /// connected to others has no such peer.
    pub fn set_peer_cuts(&mut self, cuts: bool) {
        self.peer_cuts = cuts;
    }

    /// Whether [`Self::accept_uncut`] may be used.
    #[must_use]
    pub const fn peer_cuts(&self) -> bool {
        self.peer_cuts
    }

    /// A frame sent by the guest on `path`.
    pub fn accept_from_guest(&mut self, path: Path, frame: &[u8], now: Instant) -> Offered {
        self.accept(path, frame, None, now)
    }

    /// A TCP segment sent by the guest on `path` for a peer that cuts for itself. It counts as one frame.
    pub fn accept_uncut(
        &mut self,
        path: Path,
        frame: &[u8],
        uncut: Uncut,
        now: Instant,
    ) -> Offered {
        self.accept(path, frame, Some(uncut), now)
    }

    fn accept(&mut self, path: Path, frame: &[u8], uncut: Option<Uncut>, now: Instant) -> Offered {
        self.seen = self.seen.max(now);
        // Its pieces are what has to fit.
        let cause = self.refusal(path, longest(frame, uncut));
        let room = self.to_peer.has_room(frame.len());
        let side = self.side_mut(path);
        if cause.is_none() && !room {
            side.turned_away = true;
            side.counters.busy += 1;
            return Offered::Busy;
        }
        side.counters.from_guest += 1;
        let pieces = uncut.map_or(1, |uncut| uncut.pieces(frame.len()));
        side.counters.from_guest_segments += pieces as u64 - 1;
        side.counters.from_guest_bytes += frame.len() as u64;
        if let Some(cause) = cause {
            self.counters.dropped_from_guest.count(cause);
            return Offered::Dropped(cause);
        }
        let copy = self.copy(frame);
        self.to_peer.push(copy, uncut, now);
        Offered::Accepted
    }

    fn refusal(&self, path: Path, len: usize) -> Option<DropCause> {
        let forwards = path == Path::Synthetic
            || match self.config.vf_transmit {
                VfTransmit::Always => true,
                VfTransmit::AfterFirstSwitch => self.vf_was_active,
                VfTransmit::WhileSwitched => self.data_path == Path::Vf,
            };
        if !forwards {
            return Some(DropCause::NotSwitched);
        }
        self.wrong_size(len)
    }

    fn wrong_size(&self, len: usize) -> Option<DropCause> {
        match len {
            0..ETHERNET_HEADER => Some(DropCause::Runt),
            len if len > self.config.max_frame => Some(DropCause::Oversize),
            _ => None,
        }
    }

    /// The next frame for the guest on `path`, left in place: that of queue 0 on the synthetic path.
    #[must_use]
    pub fn peek_for_guest(&mut self, path: Path, now: Instant) -> Option<&[u8]> {
        self.poll(now);
        self.side(path).front(0).map(|queued| queued.frame.as_slice())
    }

    /// Takes the next frame for the guest on `path`, from queue 0. From here on it is the caller's.
    #[must_use]
    pub fn next_for_guest(&mut self, path: Path, now: Instant) -> Option<Vec<u8>> {
        self.poll(now);
        self.take_from(path, 0).map(|queued| queued.frame)
    }

    /// The same on the VF's path, for a driver that cuts for itself ([`Self::set_vf_cuts`]): with what is left to it.
    #[must_use]
    pub fn next_for_vf(&mut self, now: Instant) -> Option<Queued> {
        self.poll(now);
        self.take_from(Path::Vf, 0)
    }

    /// The next frame in a queue of the synthetic side, left in place.
    #[must_use]
    pub fn peek_queue(&self, queue: u16) -> Option<&Queued> {
        self.synthetic.front(queue)
    }

    /// Takes the next frame of a queue of the synthetic side. From here on it is the caller's. Only [`Self::poll`] moves
    /// what arrives to the queues.
    #[must_use]
    pub fn next_in_queue(&mut self, queue: u16) -> Option<Queued> {
        self.take_from(Path::Synthetic, queue)
    }

    fn take_from(&mut self, path: Path, queue: u16) -> Option<Queued> {
        let side = self.side_mut(path);
        let queued = side.pop_from(queue)?;
        side.counters.to_guest += 1;
        side.counters.to_guest_bytes += queued.frame.len() as u64;
        Some(queued)
    }

    /// Gives the synthetic side this many queues, at least one, and a way to spread frames over them; without one, and
    /// where it names a queue that does not exist, frames go to queue 0. Frames that wait already are spread anew; those
    /// of one conversation keep their order.
    pub fn set_queues(&mut self, count: u16, spread: Option<Spread>) {
        let count = usize::from(count.max(1));
        let waiting = self.synthetic.set_queues(count);
        self.spread = spread.map(|mut spread| {
            let exists = |queue: u16| usize::from(queue) < count;
            spread.table.iter_mut().filter(|queue| !exists(**queue)).for_each(|queue| *queue = 0);
            spread
        });
        for queued in waiting {
            let (queue, hash) = self.place(Path::Synthetic, &queued.frame);
            self.synthetic.push(queue, Queued { hash, ..queued });
        }
    }

    /// The queue of a frame on a side, and its hash.
    fn place(&self, path: Path, frame: &[u8]) -> (u16, Option<u32>) {
        match (&self.spread, path) {
            (Some(spread), Path::Synthetic) => spread.place(frame),
            _ => (0, None),
        }
    }

    /// Frames that wait for the guest on `path`, in all queues.
    #[must_use]
    pub fn waiting(&self, path: Path) -> usize {
        self.side(path).waiting
    }

    /// Gives a frame's buffer back, to be used for another frame. Optional.
    pub fn recycle(&mut self, mut buffer: Vec<u8>) {
        if self.spare.len() < SPARE_BUFFERS {
            buffer.clear();
            self.spare.push(buffer);
        }
    }

    /// Whether something happened since the last call that the service of this side should look at: a frame arrived
    /// for it, or there is room again for a frame that was turned away.
    ///
    /// Told once. A service that cannot take a frame now comes back by itself when it can.
    pub fn take_wake(&mut self, path: Path, now: Instant) -> bool {
        self.poll(now);
        std::mem::take(&mut self.side_mut(path).wake)
    }

    /// Says whether the guest receives on a side. [`SideState::Absent`] is for a VF that is not attached; the
    /// synthetic side can only be down.
    pub fn set_side(&mut self, path: Path, state: SideState) {
        let state = match (path, state) {
            (Path::Synthetic, SideState::Absent) => SideState::Down,
            _ => state,
        };
        if path == Path::Vf && state == SideState::Absent {
            self.vf_was_active = false;
        }
        let absent = |state| state == SideState::Absent;
        if path == Path::Vf && absent(state) != absent(self.vf.state) {
            self.counters.turns += 1;
        }
        if path == Path::Vf && state != SideState::Absent && self.data_path == Path::Vf {
            self.vf_was_active = true;
        }
        self.side_mut(path).state = state;
        self.settle();
    }

    /// Whether the guest receives on a side.
    #[must_use]
    pub fn side_state(&self, path: Path) -> SideState {
        self.side(path).state
    }

    /// Sets the NDIS packet filter of the NIC. It decides which group frames are delivered, and with [`Self::set_address`]
    /// which others; whether anything is delivered at all is [`Self::set_side`].
    pub fn set_filter(&mut self, filter: u32) {
        self.filter = filter;
    }

    /// Sets the address of the NIC: frames for others are delivered to one that is promiscuous only. With `None`, as at first,
    /// the NIC gets every frame that is not for a group.
    pub fn set_address(&mut self, address: Option<MacAddress>) {
        self.address = address;
    }

    /// Sets the longest frame, Ethernet header included, that the guest takes on either side: its MTU. Longer ones are
    /// dropped as [`DropCause::Oversize`] when they arrive.
    pub fn set_receive_limit(&mut self, bytes: usize) {
        self.receive_limit = bytes.min(self.config.max_frame);
    }

    /// Sets the data path as the host knows it. Frames that wait for the VF when the path leaves it are delivered on
    /// the synthetic side, ahead of everything that arrives later.
    pub fn set_data_path(&mut self, path: Path) {
        self.counters.turns += u64::from(self.data_path != path);
        self.data_path = path;
        if path == Path::Vf && self.vf.state != SideState::Absent {
            self.vf_was_active = true;
        }
        self.settle();
    }

    /// The data path as the host knows it.
    #[must_use]
    pub const fn data_path(&self) -> Path {
        self.data_path
    }

    /// Looks again at frames that wait on a side which no longer gets them.
    fn settle(&mut self) {
        if self.data_path != Path::Vf || self.vf.state == SideState::Absent {
            while let Some(queued) = self.vf.pop() {
                self.counters.resteered += 1;
                self.deliver(Path::Synthetic, queued.frame, queued.uncut);
            }
        }
        for path in [Path::Synthetic, Path::Vf] {
            if self.side(path).state != SideState::Up {
                while let Some(queued) = self.side_mut(path).pop() {
                    self.deliver(path, queued.frame, queued.uncut);
                }
            }
        }
    }

    /// Queues a frame on a side, or drops it if nobody receives there.
    fn deliver(&mut self, path: Path, frame: Vec<u8>, uncut: Option<Uncut>) {
        if let Some(uncut) = uncut.filter(|_| !self.takes_uncut(path)) {
            return self.deliver_pieces(path, frame, uncut);
        }
        let cause = match (self.side(path).state, path) {
            (SideState::Up, _) => {
                let (queue, hash) = self.place(path, &frame);
                self.side_mut(path).push(queue, Queued { frame, hash, uncut });
                return;
            }
            (_, Path::Synthetic) => DropCause::SyntheticDown,
            (_, Path::Vf) => DropCause::VfDown,
        };
        self.counters.dropped_from_peer.count(cause);
        self.recycle(frame);
    }

    /// Moves what has arrived to the sides. Other methods that take `now` do it as well.
    pub fn poll(&mut self, now: Instant) {
        self.seen = self.seen.max(now);
        while let Some((frame, uncut)) = self.from_peer.arrived(now) {
            let path = self.route(frame);
            let len = frame.len();
            let cause = if longest(frame, uncut) > self.receive_limit {
                Some(DropCause::Oversize)
            } else {
                self.unwanted(frame)
            };
            let (queue, hash) = self.place(path, frame);
            let side = self.side(path);
            let up = side.state == SideState::Up;
            let full = side.is_full(queue, len, self.config.side_capacity);
            if up && full {
                return;
            }
            let Some((frame, uncut)) = self.from_peer.take(now) else {
                return;
            };
            match cause {
                Some(cause) if up => {
                    self.counters.dropped_from_peer.count(cause);
                    self.recycle(frame);
                }
                None if up && uncut.is_none() => {
                    self.side_mut(path).push(queue, Queued { frame, hash, uncut });
                }
                _ => self.deliver(path, frame, uncut),
            }
        }
    }

    fn route(&self, frame: &[u8]) -> Path {
        let vf = self.data_path == Path::Vf && self.vf.state != SideState::Absent;
        if vf && !frame::always_synthetic(frame) { Path::Vf } else { Path::Synthetic }
    }

    /// Why the NIC does not want a frame.
    fn unwanted(&self, frame: &[u8]) -> Option<DropCause> {
        let to = frame::destination(frame).map(MacAddress);
        let (wanted, cause) = match (frame::is_group(frame), self.address) {
            (true, _) if to == Some(MacAddress([0xff; 6])) => {
                (filter::BROADCAST, DropCause::Filtered)
            }
            (true, _) => (filter::MULTICAST | filter::ALL_MULTICAST, DropCause::Filtered),
            (false, None) => return None,
            (false, own) if own == to => (filter::DIRECTED, DropCause::Filtered),
            (false, _) => (0, DropCause::Foreign),
        };
        (self.filter & (wanted | filter::PROMISCUOUS) == 0).then_some(cause)
    }

    /// A frame sent by the peer.
    pub fn peer_transmit(&mut self, frame: &[u8], now: Instant) -> Offered {
        self.offer(frame, None, now)
    }

    fn offer(&mut self, frame: &[u8], uncut: Option<Uncut>, now: Instant) -> Offered {
        self.poll(now);
        let cause = self.wrong_size(longest(frame, uncut));
        if cause.is_none() && !self.from_peer.has_room(frame.len()) {
            self.counters.peer_busy += 1;
            return Offered::Busy;
        }
        self.counters.from_peer += 1;
        self.counters.from_peer_bytes += frame.len() as u64;
        if let Some(cause) = cause {
            self.counters.dropped_from_peer.count(cause);
            return Offered::Dropped(cause);
        }
        let copy = self.copy(frame);
        self.from_peer.push(copy, uncut, now);
        self.poll(now);
        Offered::Accepted
    }

    /// Whether the wire from the peer takes a frame of `len` bytes now.
    #[must_use]
    pub fn peer_has_room(&self, len: usize) -> bool {
        self.from_peer.has_room(len)
    }

    /// Takes the next frame that has reached the peer.
    #[must_use]
    pub fn peer_receive(&mut self, now: Instant) -> Option<Vec<u8>> {
        self.peer_receive_uncut(now).map(|(frame, _)| frame)
    }

    /// The same for a peer that cuts for itself ([`Self::set_peer_cuts`]): with what is left to it, if anything is.
    #[must_use]
    pub fn peer_receive_uncut(&mut self, now: Instant) -> Option<(Vec<u8>, Option<Uncut>)> {
        self.seen = self.seen.max(now);
        let (frame, uncut) = self.to_peer.take(now)?;
        self.counters.to_peer += 1;
        self.counters.to_peer_bytes += frame.len() as u64;
        for side in [&mut self.synthetic, &mut self.vf] {
            side.wake |= std::mem::take(&mut side.turned_away);
        }
        Some((frame, uncut))
    }

    /// When the next frame arrives at either end; `None` while nothing is on its way. A frame that already waits to
    /// be taken causes no deadline.
    #[must_use]
    pub fn poll_deadline(&self) -> Option<Instant> {
        earliest(self.to_peer.next_arrival(self.seen), self.from_peer.next_arrival(self.seen))
    }

    /// Changes how the wires behave from the next frame on.
    pub fn set_wires(&mut self, to_peer: WireConfig, from_peer: WireConfig) {
        self.config.to_peer = to_peer;
        self.config.from_peer = from_peer;
        self.to_peer.configure(to_peer);
        self.from_peer.configure(from_peer);
    }

    /// What happened so far.
    #[must_use]
    pub fn counters(&self) -> PortCounters {
        PortCounters {
            synthetic: self.synthetic.counted(),
            vf: self.vf.counted(),
            wire_to_peer: self.to_peer.len() as u64,
            wire_from_peer: self.from_peer.len() as u64,
            ..self.counters
        }
    }

    fn copy(&mut self, frame: &[u8]) -> Vec<u8> {
        let mut copy = self.spare.pop().unwrap_or_default();
        copy.extend_from_slice(frame);
        copy
    }

    const fn side(&self, path: Path) -> &Side {
        match path {
            Path::Synthetic => &self.synthetic,
            Path::Vf => &self.vf,
        }
    }

    const fn side_mut(&mut self, path: Path) -> &mut Side {
        match path {
            Path::Synthetic => &mut self.synthetic,
            Path::Vf => &mut self.vf,
        }
    }
}

/// Bytes of a frame, or of the longest piece of a segment.
fn longest(frame: &[u8], uncut: Option<Uncut>) -> usize {
    uncut.map_or(frame.len(), |uncut| uncut.longest(frame.len()))
}

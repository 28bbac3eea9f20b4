//! The host's side: the device itself.

use std::fmt;
use std::sync::Arc;

use netvsc::MacAddress;
use netvsc::rndis::PacketFilter;
use vmbus::channel::Doorbell;
use vmbus::memory::{PAGE_SIZE, PageList, SharedMemory, SharedPages};
use vmbus::{Instant, Pfn, SignalFlag};

use super::layout::{
    CONTROL, CONTROL_ON, DEPTH, DEVICE_ID, Descriptor, FEATURES, FILTER, GONE, ID, LARGEST_SEND,
    LONGEST_FRAME, MAC_HIGH, MAC_LOW, MAX_FRAME, MOST_DESCRIPTORS, MTU, REPORT, RX_DONE, RX_POSTED,
    RX_RING, STATUS, STATUS_FAULT, STATUS_LINK, STATUS_RUNNING, TX_DONE, TX_FIRST, TX_PRODUCED,
    TX_RING, load, load_address, place, store, wipe,
};
use super::transmit::VfFeatures;
use crate::memory::{GuestMemory, UnknownFrame};
use crate::nic::offload::OffloadError;
use crate::switch::{Path, SideState, SwitchPort};

/// What a device is made with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VfConfig {
    /// Its permanent MAC address.
    pub mac: MacAddress,
    /// Whether its link is up from the start.
    pub link: bool,
    /// What it does to frames.
    pub features: VfFeatures,
}

/// How a device deals with what it is to send.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum VfPace {
    /// It sends as fast as the switch takes frames, and confirms at once.
    #[default]
    Prompt,
    /// It sends nothing: frames stay in its ring.
    Stalled,
    /// It sends, and confirms nothing. If it goes like this, the guest cannot know what was sent.
    Unconfirmed,
}

/// What a driver in the guest needs: the registers, a doorbell to ring and an interrupt to look at.
#[derive(Clone, Debug)]
pub struct VfWindow {
    /// The page of registers.
    pub registers: SharedPages,
    /// Rung by the guest.
    pub doorbell: SignalFlag,
    /// Raised by the device.
    pub interrupt: SignalFlag,
}

/// A rule that the guest broke. It stops the device until the guest turns it off.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum VfFault {
    /// The number of descriptors per ring.
    #[error("{0} descriptors per ring: expected a power of two from 2 to {MOST_DESCRIPTORS}")]
    Depth(u32),
    /// The address of a ring or of the report page.
    #[error("address {0:#x} of a ring or report page: expected a multiple of {PAGE_SIZE}")]
    Unaligned(u64),
    /// An address where there is no memory.
    #[error(transparent)]
    Unmapped(#[from] UnknownFrame),
    /// A count that went too far or backwards.
    #[error("{which} went {ahead} beyond what is done: expected at most {depth}")]
    Count {
        /// Which count.
        which: &'static str,
        /// How far it is ahead.
        ahead: u32,
        /// How far it may be.
        depth: u32,
    },
    /// Descriptors of a frame that do not make one: it does not end, or asks for work without saying which.
    #[error(
        "a frame in descriptors up to {end}: expected it to end before that, and to start with its work"
    )]
    Chain {
        /// The running number behind the last descriptor that was handed over.
        end: u32,
    },
    /// A frame that is longer than the device sends in one piece, and is not to be cut; or too long for that, too.
    #[error(
        "frame of {length} bytes: expected at most {LONGEST_FRAME}, or {LARGEST_SEND} if it is to be cut"
    )]
    Length {
        /// Its length.
        length: usize,
    },
    /// Work that the device has not offered, or that the frame's headers do not bear out.
    #[error("work on a frame: {0}")]
    Work(#[from] OffloadError),
    /// A buffer that crosses a page, or is empty or too long to send.
    #[error(
        "buffer of {length} bytes at {address:#x}: expected 1 to {LONGEST_FRAME} within a page"
    )]
    Buffer {
        /// Its guest physical address.
        address: u64,
        /// Its length.
        length: u32,
    },
}

/// What became of the frames. What is handed over and done is counted in descriptors, of which a frame that is to be cut takes
/// several.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VfCounters {
    /// Frames that the guest has handed over.
    pub tx_seen: u64,
    /// Of these, frames that the switch took on.
    pub tx_confirmed: u64,
    /// Of these, frames that the switch dropped; it counts the causes.
    pub tx_dropped: u64,
    /// Of these, frames that went down with the device or with its being turned off.
    pub tx_perished: u64,
    /// Of these, frames that the driver took back while the link was down.
    pub tx_taken_back: u64,
    /// Frames written to the guest's memory.
    pub rx_handed: u64,
    /// Of these, frames that the guest had not read when the device went or was turned off.
    pub rx_perished: u64,
    /// Frames that were too long for the guest's buffers or its MTU and were dropped.
    pub rx_too_long: u64,
    /// Frames that the guest's filter does not let through.
    pub rx_filtered: u64,
    /// Frames whose checksums the device computed.
    pub tx_checksums: u64,
    /// Frames that it cut.
    pub tx_large: u64,
    /// Frames that it put a tag into.
    pub tx_tags: u64,
    /// Times that the guest broke a rule.
    pub faults: u64,
    /// Times that a queue of the device was taken into use.
    pub starts: u64,
}

impl VfCounters {
    /// Frames handed over whose fate is still open.
    #[must_use]
    pub fn tx_open(&self) -> u64 {
        let done = self.tx_confirmed + self.tx_dropped + self.tx_perished + self.tx_taken_back;
        self.tx_seen - done
    }
}

/// A buffer's page, kept so that each is looked up once and not for every frame.
pub(super) type Mapped = Option<(Pfn, PageList)>;

/// The rings while the device runs.
#[derive(Debug)]
pub(super) struct Queues {
    pub(super) depth: u32,
    pub(super) tx_ring: PageList,
    rx_ring: PageList,
    pub(super) report: PageList,
    /// What `TX_PRODUCED` was when last looked at.
    pub(super) tx_seen: u32,
    pub(super) tx_done: u32,
    /// Segments of the next frame that the switch has already.
    pub(super) tx_segments: usize,
    rx_first: u32,
    rx_done: u32,
    pub(super) tx_buffers: Vec<Mapped>,
    rx_buffers: Vec<Mapped>,
}

/// Whether there is a device, and what it is about.
#[derive(Debug)]
enum State {
    Off,
    Running(Queues),
    Faulted(VfFault),
    Gone,
}

/// A virtual function that is a network card.
pub struct VfDevice {
    config: VfConfig,
    memory: Arc<dyn GuestMemory>,
    window: VfWindow,
    state: State,
    link: bool,
    pace: VfPace,
    /// The value of `CONTROL` that was acted upon last.
    control: u32,
    counters: VfCounters,
    /// Where a frame is put together, and one of its segments.
    frame: Vec<u8>,
    segment: Vec<u8>,
}

impl VfDevice {
    /// A device that is turned off. `memory` is what it may read and write.
    #[must_use]
    pub fn new(config: VfConfig, memory: Arc<dyn GuestMemory>) -> Self {
        Self::with_registers(config, memory, SharedPages::from_heap(&[Pfn(0)]))
    }

    /// The same with registers on a page that is the device's from here on, where a guest in another process can map it.
    #[must_use]
    pub fn with_registers(
        config: VfConfig,
        memory: Arc<dyn GuestMemory>,
        registers: SharedPages,
    ) -> Self {
        registers.fill(0);
        let [a, b, c, d, e, f] = config.mac.0;
        store(&registers, ID, DEVICE_ID);
        store(&registers, MAC_LOW, u32::from_le_bytes([a, b, c, d]));
        store(&registers, MAC_HIGH, u32::from_le_bytes([e, f, 0, 0]));
        store(&registers, MAX_FRAME, LONGEST_FRAME as u32);
        store(&registers, FEATURES, config.features.bits());
        store(&registers, MTU, LONGEST_FRAME as u32);
        store(&registers, FILTER, u32::MAX);
        store(&registers, DEPTH, MOST_DESCRIPTORS);
        let window =
            VfWindow { registers, doorbell: SignalFlag::new(), interrupt: SignalFlag::new() };
        let device = Self {
            config,
            memory,
            window,
            state: State::Off,
            link: config.link,
            pace: VfPace::default(),
            control: 0,
            counters: VfCounters::default(),
            frame: Vec::with_capacity(LONGEST_FRAME),
            segment: Vec::with_capacity(LONGEST_FRAME),
        };
        device.show_status();
        if device.is_elsewhere() {
            // No driver will ring.
            device.window.doorbell.ring();
        }
        device
    }

    /// What a driver in the guest needs.
    #[must_use]
    pub fn window(&self) -> VfWindow {
        self.window.clone()
    }

    /// The permanent MAC address.
    #[must_use]
    pub fn mac(&self) -> MacAddress {
        self.config.mac
    }

    /// Sets the link. While it is down, frames stay where they are: the guest's in its ring, the peer's in the switch.
    pub fn set_link(&mut self, up: bool) {
        if self.link != up {
            self.link = up;
            self.show_status();
            self.interrupt();
            // Nobody rings again for what has waited for the link.
            self.window.doorbell.ring();
        }
    }

    /// Sets how the device deals with what it is to send. What it has not confirmed so far, it confirms as soon as it is
    /// prompt again.
    pub fn set_pace(&mut self, pace: VfPace) {
        if self.pace != pace {
            self.pace = pace;
            // Nobody rings again for what has waited.
            self.window.doorbell.ring();
        }
    }

    /// How the device deals with what it is to send.
    #[must_use]
    pub fn pace(&self) -> VfPace {
        self.pace
    }

    /// Whether the link is up.
    #[must_use]
    pub fn link(&self) -> bool {
        self.link
    }

    /// Whether frames go over an interface instead.
    #[must_use]
    pub fn is_elsewhere(&self) -> bool {
        self.config.features.contains(VfFeatures::ELSEWHERE)
    }

    /// Whether the guest's doorbell rang since the last call.
    #[must_use]
    pub fn take_doorbell(&self) -> bool {
        self.window.doorbell.take()
    }

    /// What became of the frames.
    #[must_use]
    pub fn counters(&self) -> VfCounters {
        self.counters
    }

    /// The rule that the guest broke, if it did.
    #[must_use]
    pub fn fault(&self) -> Option<VfFault> {
        match self.state {
            State::Faulted(fault) => Some(fault),
            _ => None,
        }
    }

    /// Whether the device works on the guest's rings.
    #[must_use]
    pub fn is_running(&self) -> bool {
        matches!(self.state, State::Running(_))
    }

    /// Whether the device has been torn away.
    #[must_use]
    pub fn is_gone(&self) -> bool {
        matches!(self.state, State::Gone)
    }

    /// Whether nothing is under way: every frame handed over by the guest is confirmed, every frame handed to it is
    /// read. True while the device is off.
    #[must_use]
    pub fn quiesced(&self) -> bool {
        let State::Running(queues) = &self.state else { return true };
        self.unsent(queues) == 0 && self.unread(queues) == 0
    }

    /// Does what can be done now: a ring's worth of frames in each direction at most. Call it when the doorbell rang
    /// ([`VfDevice::take_doorbell`]) and when the switch port has something for the VF ([`SwitchPort::take_wake`]).
    pub fn poll(&mut self, now: Instant, port: &mut SwitchPort) {
        if self.is_gone() {
            return;
        }
        let control = load(&self.window.registers, CONTROL);
        if control != self.control {
            self.control = control;
            self.stop(port, State::Off);
            if control & CONTROL_ON != 0 && !self.config.features.contains(VfFeatures::ELSEWHERE) {
                self.start(port);
            }
        } else if port.side_state(Path::Vf) == SideState::Absent {
            port.set_side(Path::Vf, SideState::Down);
        }
        if self.config.features.contains(VfFeatures::ELSEWHERE) {
            let side = if self.link { SideState::Up } else { SideState::Down };
            if port.side_state(Path::Vf) != side {
                port.set_side(Path::Vf, side);
            }
            return;
        }
        let State::Running(queues) = &mut self.state else { return };
        let mut queues = AtWork {
            queues,
            registers: &self.window.registers,
            memory: &*self.memory,
            counters: &mut self.counters,
            frame: &mut self.frame,
            segment: &mut self.segment,
            features: self.config.features,
            link: self.link,
            pace: self.pace,
        };
        let caught_up = queues.confirm();
        let moved = queues.transmit(port, now).and_then(|sent| {
            let received = queues.receive(port, now)?;
            Ok((sent, received))
        });
        match moved {
            Ok((sent, received)) => {
                if sent + received > 0 || caught_up {
                    self.interrupt();
                }
            }
            Err(fault) => self.break_down(port, fault),
        }
    }

    /// The device vanishes, with everything that is under way. Its registers read all ones from here on, and it never
    /// touches the guest's memory again.
    pub fn tear_away(&mut self, port: &mut SwitchPort) {
        if self.is_gone() {
            return;
        }
        self.stop(port, State::Gone);
        wipe(&self.window.registers);
        port.set_side(Path::Vf, SideState::Absent);
        // No real device would raise this one; it stands for the bus telling the driver.
        self.interrupt();
    }

    fn start(&mut self, port: &mut SwitchPort) {
        match self.map_queues() {
            Ok(queues) => {
                self.counters.starts += 1;
                self.state = State::Running(queues);
                port.set_side(Path::Vf, SideState::Up);
                self.show_status();
                self.interrupt();
            }
            Err(fault) => self.break_down(port, fault),
        }
    }

    fn map_queues(&self) -> Result<Queues, VfFault> {
        let registers = &self.window.registers;
        let depth = load(registers, DEPTH);
        if !(2..=MOST_DESCRIPTORS).contains(&depth) || !depth.is_power_of_two() {
            return Err(VfFault::Depth(depth));
        }
        let map = |register| {
            let address = load_address(registers, register);
            if !address.is_multiple_of(PAGE_SIZE as u64) {
                return Err(VfFault::Unaligned(address));
            }
            Ok(self.memory.map(&[Pfn(address / PAGE_SIZE as u64)])?)
        };
        let report = map(REPORT)?;
        let (tx_done, rx_done) = (load(&report, TX_DONE), load(&report, RX_DONE));
        Ok(Queues {
            depth,
            tx_ring: map(TX_RING)?,
            rx_ring: map(RX_RING)?,
            report,
            tx_seen: tx_done,
            tx_done,
            tx_segments: 0,
            rx_first: rx_done,
            rx_done,
            tx_buffers: vec![None; depth as usize],
            rx_buffers: vec![None; depth as usize],
        })
    }

    /// Lets go of the rings; what is under way perishes.
    fn stop(&mut self, port: &mut SwitchPort, state: State) {
        let old = std::mem::replace(&mut self.state, state);
        if let State::Running(queues) = &old {
            // Frames that were handed over and not looked at yet are lost as well.
            let unsent = self.unsent(queues);
            self.counters.tx_seen +=
                u64::from(queues.tx_done.wrapping_add(unsent).wrapping_sub(queues.tx_seen));
            self.counters.tx_perished += u64::from(unsent);
            self.counters.rx_perished += u64::from(self.unread(queues));
            // Frames that wait for a device that goes are delivered on the synthetic side, so it must not be merely
            // down in between, which would drop them.
            let side = if self.is_gone() { SideState::Absent } else { SideState::Down };
            port.set_side(Path::Vf, side);
        }
        self.show_status();
    }

    fn break_down(&mut self, port: &mut SwitchPort, fault: VfFault) {
        tracing::debug!(%fault, "VF stops");
        self.counters.faults += 1;
        self.stop(port, State::Faulted(fault));
        self.interrupt();
    }

    /// Frames handed over and not yet done; only as many as are possible.
    fn unsent(&self, queues: &Queues) -> u32 {
        let produced = load(&self.window.registers, TX_PRODUCED);
        match produced.wrapping_sub(queues.tx_done) {
            ahead if ahead <= queues.depth => ahead,
            _ => queues.tx_seen.wrapping_sub(queues.tx_done),
        }
    }

    /// Frames in the guest's memory that it has not given back the descriptor of; only as many as are possible.
    fn unread(&self, queues: &Queues) -> u32 {
        let posted = load(&self.window.registers, RX_POSTED);
        let free = posted.wrapping_sub(queues.rx_done);
        queues.depth.saturating_sub(free).min(queues.rx_done.wrapping_sub(queues.rx_first))
    }

    fn show_status(&self) {
        let bit = |set, bit| if set { bit } else { 0 };
        let status = bit(self.link, STATUS_LINK)
            | bit(self.is_running(), STATUS_RUNNING)
            | bit(self.fault().is_some(), STATUS_FAULT);
        let status = if self.is_gone() { GONE } else { status };
        store(&self.window.registers, STATUS, status);
    }

    fn interrupt(&self) {
        self.window.interrupt.ring();
    }
}

impl fmt::Debug for VfDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VfDevice")
            .field("mac", &self.config.mac)
            .field("link", &self.link)
            .field("running", &self.is_running())
            .field("counters", &self.counters)
            .finish_non_exhaustive()
    }
}

/// A running device at work: everything it touches, borrowed apart.
pub(super) struct AtWork<'a> {
    pub(super) queues: &'a mut Queues,
    pub(super) registers: &'a SharedPages,
    pub(super) memory: &'a dyn GuestMemory,
    pub(super) counters: &'a mut VfCounters,
    pub(super) frame: &'a mut Vec<u8>,
    pub(super) segment: &'a mut Vec<u8>,
    pub(super) features: VfFeatures,
    pub(super) link: bool,
    pub(super) pace: VfPace,
}

impl AtWork<'_> {
    /// Passes over the frames that the driver has taken back, of `waiting` ones; their number.
    pub(super) fn skip(&mut self, waiting: u32) -> u32 {
        let first = load(self.registers, TX_FIRST).wrapping_sub(self.queues.tx_done);
        if first == 0 || first > waiting {
            return 0;
        }
        self.queues.tx_segments = 0;
        self.counters.tx_taken_back += u64::from(first);
        self.queues.tx_done = self.queues.tx_done.wrapping_add(first);
        self.confirm();
        first
    }

    /// Tells the guest what is done, if the device does; `true` if that is news.
    pub(super) fn confirm(&mut self) -> bool {
        let Queues { tx_done, report, .. } = &*self.queues;
        let news = self.pace != VfPace::Unconfirmed && load(report, TX_DONE) != *tx_done;
        if news {
            store(report, TX_DONE, *tx_done);
        }
        news
    }

    /// Writes frames to the guest until there are no more or it has no more buffers; the number of descriptors filled.
    fn receive(&mut self, port: &mut SwitchPort, now: Instant) -> Result<usize, VfFault> {
        let depth = self.queues.depth;
        let posted = load(self.registers, RX_POSTED);
        let free = ahead("RX_POSTED", posted, self.queues.rx_done, depth)?;
        let mut done = 0;
        while self.link && done < free as usize {
            let Some(frame) = port.peek_for_guest(Path::Vf, now) else { break };
            let place = place(self.queues.rx_done, depth);
            let descriptor = Descriptor::read(&self.queues.rx_ring, place);
            let Some(buffer) = self.queues.rx_buffers.get_mut(place) else { break };
            let (page, offset) = buffer_page(buffer, self.memory, &descriptor)?;
            let mtu = load(self.registers, MTU) as usize;
            let fits = frame.len() <= (descriptor.length as usize).min(mtu.saturating_add(18));
            if !passes(frame, load(self.registers, FILTER)) {
                self.counters.rx_filtered += 1;
            } else if fits && page.write(offset, frame).is_ok() {
                let used = Descriptor { used: frame.len() as u32, ..descriptor };
                used.write(&self.queues.rx_ring, place);
                self.queues.rx_done = self.queues.rx_done.wrapping_add(1);
                store(&self.queues.report, RX_DONE, self.queues.rx_done);
                self.counters.rx_handed += 1;
                done += 1;
            } else {
                self.counters.rx_too_long += 1;
            }
            if let Some(frame) = port.next_for_guest(Path::Vf, now) {
                port.recycle(frame);
            }
        }
        Ok(done)
    }
}

/// Whether a filter lets a frame through.
fn passes(frame: &[u8], filter: u32) -> bool {
    let filter = PacketFilter::from_bits_retain(filter);
    let wanted = match frame.get(..6) {
        Some([0xff, 0xff, 0xff, 0xff, 0xff, 0xff]) => PacketFilter::BROADCAST,
        Some([first, ..]) if first & 1 == 1 => {
            PacketFilter::MULTICAST | PacketFilter::ALL_MULTICAST
        }
        _ => PacketFilter::DIRECTED,
    };
    filter.intersects(wanted | PacketFilter::PROMISCUOUS)
}

/// How far a count of the guest is ahead of what is done.
pub(super) fn ahead(
    which: &'static str,
    count: u32,
    done: u32,
    depth: u32,
) -> Result<u32, VfFault> {
    match count.wrapping_sub(done) {
        ahead if ahead <= depth => Ok(ahead),
        ahead => Err(VfFault::Count { which, ahead, depth }),
    }
}

/// The page of a descriptor's buffer and the offset in it. A guest that uses the same buffer for the same place every
/// time has it looked up once.
pub(super) fn buffer_page<'a>(
    known: &'a mut Mapped,
    memory: &dyn GuestMemory,
    descriptor: &Descriptor,
) -> Result<(&'a PageList, usize), VfFault> {
    let Descriptor { address, length, .. } = *descriptor;
    let page = PAGE_SIZE as u64;
    let offset = (address % page) as usize;
    if length as usize > PAGE_SIZE - offset {
        return Err(VfFault::Buffer { address, length });
    }
    let frame = Pfn(address / page);
    if known.as_ref().is_none_or(|(there, _)| *there != frame) {
        *known = Some((frame, memory.map(&[frame])?));
    }
    match known {
        Some((_, pages)) => Ok((pages, offset)),
        None => Err(VfFault::Unmapped(UnknownFrame { frame })),
    }
}

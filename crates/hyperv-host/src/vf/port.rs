//! The guest's side: a driver for the device.

use std::collections::VecDeque;
use std::fmt;

use netvsc::MacAddress;
use netvsc::nic::TxWork;
use netvsc::port::{PathOffloads, PortError, PortLink, PortSettings, VfPort};
use netvsc::rndis::offload::{ChecksumSet, IpOffloads, LargeSendOptions};
use netvsc::rndis::packet::LargeSend;
use vmbus::channel::Doorbell;
use vmbus::memory::{PAGE_SIZE, SharedMemory, SharedPages};
use vmbus::platform::{AllocError, Platform};

use super::device::VfWindow;
use super::layout::{
    CONTROL, CONTROL_ON, DEPTH, DEVICE_ID, Descriptor, FEATURES, FILTER, GONE, ID, LARGEST_SEND,
    LONGEST_FRAME, MAC_HIGH, MAC_LOW, MOST_DESCRIPTORS, MTU, REPORT, RX_DONE, RX_POSTED, RX_RING,
    STATUS, STATUS_FAULT, STATUS_LINK, STATUS_RUNNING, TX_DONE, TX_FIRST, TX_MORE, TX_PRODUCED,
    TX_RING, TX_WORK, WORK, WORK_TAG, Work, load, place, store, store_address,
};
use super::transmit::VfFeatures;

/// Bytes of an Ethernet header with tag.
const ETHERNET_AND_TAG: usize = 18;

/// Buffers that share a page.
const BUFFERS_PER_PAGE: usize = PAGE_SIZE / LONGEST_FRAME;

/// Where all counts start: shortly before they wrap, so that wrapping is nothing special.
const FIRST: u32 = u32::MAX - 99;

impl VfWindow {
    /// The permanent MAC of the device with these registers, and its features.
    #[must_use]
    pub fn describe(&self) -> (MacAddress, VfFeatures) {
        let [a, b, c, d] = load(&self.registers, MAC_LOW).to_le_bytes();
        let [e, f, ..] = load(&self.registers, MAC_HIGH).to_le_bytes();
        let features = VfFeatures::from_bits_truncate(load(&self.registers, FEATURES));
        (MacAddress([a, b, c, d, e, f]), features)
    }
}

/// A driver that could not take the device into use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// The registers do not belong to such a device, or it is gone.
    #[error("device id {0:#010x}: expected {DEVICE_ID:#010x}")]
    NotThere(u32),
    /// Its frames go over an interface.
    #[error("the device has no rings: its frames go over an interface of the kernel's")]
    Elsewhere,
    /// The wished number of descriptors per ring.
    #[error("{0} descriptors per ring: expected a power of two from 2 to {MOST_DESCRIPTORS}")]
    Depth(u32),
    /// No memory for rings and buffers.
    #[error(transparent)]
    Memory(#[from] AllocError),
}

/// The port of a [`VfDevice`](super::VfDevice), as a driver in the guest gives it to `netvsc`.
///
/// Everything the device writes is checked: one that contradicts itself counts as gone. After the device has gone,
/// [`confirmed`](VfPort::confirmed) still knows exactly which frames the switch got, and nothing more is received.
pub struct SimulatedPort {
    window: VfWindow,
    mac: MacAddress,
    depth: u32,
    tx_ring: SharedPages,
    rx_ring: SharedPages,
    report: SharedPages,
    tx_buffers: SharedPages,
    rx_buffers: SharedPages,
    /// Frames put into the ring, and how many of them the device was told of.
    tx_produced: u32,
    tx_published: u32,
    tx_done: u32,
    /// Frames that the switch got, over all time.
    confirmed: u64,
    /// For each frame that is not done, the running number behind its last descriptor.
    ends: VecDeque<u32>,
    features: VfFeatures,
    rx_read: u32,
    frame: Box<[u8]>,
    /// The link was down when last looked at, and what the device had not sent by then was taken back.
    cut_off: bool,
    /// The device is gone or has lied.
    gone: bool,
}

impl SimulatedPort {
    /// Takes a device into use, with `depth` descriptors per ring. It needs three pages for rings and report, and one for
    /// each descriptor.
    ///
    /// # Errors
    /// [`OpenError`].
    pub fn open(window: VfWindow, platform: &dyn Platform, depth: u32) -> Result<Self, OpenError> {
        let id = load(&window.registers, ID);
        if id != DEVICE_ID {
            return Err(OpenError::NotThere(id));
        }
        if !(2..=MOST_DESCRIPTORS).contains(&depth) || !depth.is_power_of_two() {
            return Err(OpenError::Depth(depth));
        }
        let (mac, features) = window.describe();
        if features.contains(VfFeatures::ELSEWHERE) {
            return Err(OpenError::Elsewhere);
        }
        let buffer_pages = (depth as usize).div_ceil(BUFFERS_PER_PAGE);
        let mut port = Self {
            mac,
            depth,
            tx_ring: platform.allocate(1)?,
            rx_ring: platform.allocate(1)?,
            report: platform.allocate(1)?,
            tx_buffers: platform.allocate(buffer_pages)?,
            rx_buffers: platform.allocate(buffer_pages)?,
            tx_produced: FIRST,
            tx_published: FIRST,
            tx_done: FIRST,
            confirmed: 0,
            ends: VecDeque::with_capacity(depth as usize),
            features,
            rx_read: FIRST,
            frame: vec![0; LONGEST_FRAME].into(),
            cut_off: false,
            gone: false,
            window,
        };
        port.start();
        Ok(port)
    }

    fn start(&mut self) {
        for number in 0..self.depth {
            self.post(FIRST.wrapping_add(number));
        }
        store(&self.report, TX_DONE, FIRST);
        store(&self.report, RX_DONE, FIRST);
        let registers = &self.window.registers;
        store(registers, DEPTH, self.depth);
        for (register, memory) in
            [(TX_RING, &self.tx_ring), (RX_RING, &self.rx_ring), (REPORT, &self.report)]
        {
            store_address(registers, register, address_of(memory, 0));
        }
        store(registers, TX_PRODUCED, FIRST);
        store(registers, TX_FIRST, FIRST);
        store(registers, RX_POSTED, FIRST.wrapping_add(self.depth));
        // On, with another number than the driver before this one used.
        let control = (load(registers, CONTROL) | CONTROL_ON).wrapping_add(2);
        store(registers, CONTROL, control);
        self.window.doorbell.ring();
    }

    /// Whether the device's interrupt was raised since the last call: something was received, confirmed, or changed.
    #[must_use]
    pub fn take_interrupt(&self) -> bool {
        self.window.interrupt.take()
    }

    /// Gives the receive descriptor with this running number to the device.
    fn post(&self, number: u32) {
        let place = place(number, self.depth);
        let address = address_of(&self.rx_buffers, place * LONGEST_FRAME);
        Descriptor { address, length: LONGEST_FRAME as u32, used: 0 }.write(&self.rx_ring, place);
    }

    /// Looks whether the device is still there.
    fn is_gone(&mut self) -> bool {
        let status = load(&self.window.registers, STATUS);
        self.gone |= status == GONE || status & STATUS_FAULT != 0;
        self.gone
    }

    /// The link is down: what the device has not sent so far it shall not send later, as the caller sends it elsewhere.
    /// It counts as confirmed when the link is up again, which is when nobody waits for it any more.
    fn cut_off(&mut self) {
        self.flush();
        self.read_confirmations();
        self.cut_off = true;
        store(&self.window.registers, TX_FIRST, self.tx_published);
        self.window.doorbell.ring();
    }

    /// Takes note of what the device has sent.
    fn read_confirmations(&mut self) {
        if self.cut_off {
            return;
        }
        let done = load(&self.report, TX_DONE);
        let newly = done.wrapping_sub(self.tx_done);
        if newly <= self.tx_published.wrapping_sub(self.tx_done) {
            while self.ends.front().is_some_and(|end| end.wrapping_sub(self.tx_done) <= newly) {
                self.ends.pop_front();
                self.confirmed += 1;
            }
            self.tx_done = done;
        } else {
            tracing::debug!(done, known = self.tx_done, "VF confirms what it was never given");
            self.gone = true;
        }
    }

    /// Looks for this many free descriptors.
    fn make_room(&mut self, descriptors: u32) -> Result<(), PortError> {
        let free = |port: &Self| port.depth - port.tx_produced.wrapping_sub(port.tx_done);
        if free(self) < descriptors {
            self.read_confirmations();
            if free(self) < descriptors {
                return Err(PortError::Full);
            }
        }
        Ok(())
    }

    /// Fills the next transmit descriptor and its buffer.
    fn fill(&mut self, work: &[u8], bytes: &[u8], flags: u32) -> Option<()> {
        let place = place(self.tx_produced, self.depth);
        let at = place * LONGEST_FRAME;
        self.tx_buffers.write(at, work).ok()?;
        self.tx_buffers.write(at + work.len(), bytes).ok()?;
        let length = (work.len() + bytes.len()) as u32;
        let address = address_of(&self.tx_buffers, at);
        Descriptor { address, length, used: flags }.write(&self.tx_ring, place);
        self.tx_produced = self.tx_produced.wrapping_add(1);
        Some(())
    }

    /// Copies a received frame out of shared memory; `None` if the device wrote an impossible length.
    fn take_frame(&mut self) -> Option<usize> {
        let place = place(self.rx_read, self.depth);
        let used = Descriptor::read(&self.rx_ring, place).used as usize;
        let frame = self.frame.get_mut(..used)?;
        self.rx_buffers.read(place * LONGEST_FRAME, frame).ok()?;
        Some(used)
    }
}

impl VfPort for SimulatedPort {
    fn permanent_mac(&self) -> Option<MacAddress> {
        Some(self.mac)
    }

    fn link(&mut self) -> PortLink {
        if self.is_gone() {
            return PortLink::Gone;
        }
        let status = load(&self.window.registers, STATUS);
        let wanted = STATUS_LINK | STATUS_RUNNING;
        if status & wanted == wanted {
            self.cut_off = false;
            return PortLink::Up;
        }
        if status & STATUS_RUNNING != 0 && !self.cut_off {
            self.cut_off();
        }
        PortLink::Down
    }

    fn transmit(&mut self, frame: &[u8]) -> Result<(), PortError> {
        if self.is_gone() {
            return Err(PortError::Gone);
        }
        let wrong_length = PortError::Length { len: frame.len(), most: LONGEST_FRAME };
        if frame.is_empty() || frame.len() > LONGEST_FRAME {
            return Err(wrong_length);
        }
        self.make_room(1)?;
        self.fill(&[], frame, 0).ok_or(wrong_length)?;
        self.ends.push_back(self.tx_produced);
        Ok(())
    }

    fn configure(&mut self, settings: PortSettings) -> Result<(), PortError> {
        if self.is_gone() {
            return Err(PortError::Gone);
        }
        let most = (LONGEST_FRAME - ETHERNET_AND_TAG) as u32;
        if settings.mtu > most {
            return Err(PortError::Mtu { mtu: settings.mtu, most });
        }
        store(&self.window.registers, MTU, settings.mtu);
        store(&self.window.registers, FILTER, settings.filter.bits());
        Ok(())
    }

    fn offloads(&self) -> PathOffloads {
        let has = |feature| self.features.contains(feature);
        let options = ChecksumSet::IP_OPTIONS | ChecksumSet::TCP_OPTIONS;
        let sums = match has(VfFeatures::CHECKSUM) {
            true => ChecksumSet::TCP | ChecksumSet::UDP | options,
            false => ChecksumSet::empty(),
        };
        // One that needs more than half of the ring would wait for it to be empty.
        let room = (self.depth as usize / 2 * LONGEST_FRAME).saturating_sub(WORK).min(LARGEST_SEND);
        let large_send = if has(VfFeatures::LARGE_SEND) { room as u32 } else { 0 };
        let ipv6 = IpOffloads { transmit: sums, large_send, ..IpOffloads::default() };
        let own = if sums.is_empty() { sums } else { ChecksumSet::IP_HEADER };
        let ipv4 = IpOffloads { transmit: sums | own, ..ipv6 };
        let large_send_ipv6 = LargeSendOptions::all();
        PathOffloads { ipv4, ipv6, large_send_ipv6, vlan: has(VfFeatures::TAG) }
    }

    fn transmit_with(&mut self, frame: &[u8], work: &TxWork) -> Result<(), PortError> {
        if self.is_gone() {
            return Err(PortError::Gone);
        }
        let most = if work.large_send.is_some() { LARGEST_SEND } else { LONGEST_FRAME };
        let wrong_length = PortError::Length { len: frame.len(), most };
        let first = frame.len().min(LONGEST_FRAME - WORK);
        let Some((head, rest)) = frame.split_at_checked(first).filter(|_| frame.len() <= most)
        else {
            return Err(wrong_length);
        };
        let pieces = rest.len().div_ceil(LONGEST_FRAME);
        if frame.is_empty() || pieces >= self.depth as usize {
            return Err(wrong_length);
        }
        self.make_room(1 + pieces as u32)?;
        let work = Work {
            checksum: match work.large_send {
                Some(_) => 0,
                None => work.checksum.bits(),
            },
            large_send: work.large_send.map_or(0, LargeSend::to_ppi),
            tag: work.vlan.map_or(0, |tag| WORK_TAG | u32::from(tag.0)),
        };
        let more = |last: bool| if last { 0 } else { TX_MORE };
        let flags = TX_WORK | more(rest.is_empty());
        self.fill(&work.encode(), head, flags).ok_or(wrong_length)?;
        for (number, piece) in rest.chunks(LONGEST_FRAME).enumerate() {
            self.fill(&[], piece, more(number + 1 == pieces)).ok_or(wrong_length)?;
        }
        self.ends.push_back(self.tx_produced);
        Ok(())
    }

    fn flush(&mut self) {
        if self.tx_published != self.tx_produced && !self.is_gone() {
            self.tx_published = self.tx_produced;
            store(&self.window.registers, TX_PRODUCED, self.tx_produced);
            self.window.doorbell.ring();
        }
    }

    fn receive(&mut self, sink: &mut dyn FnMut(&[u8])) -> usize {
        if self.is_gone() {
            return 0;
        }
        let done = load(&self.report, RX_DONE);
        let waiting = done.wrapping_sub(self.rx_read);
        if waiting > self.depth {
            tracing::debug!(done, read = self.rx_read, "VF received more than it had room for");
            self.gone = true;
            return 0;
        }
        for read in 0..waiting {
            let Some(used) = self.take_frame() else {
                tracing::debug!("VF received a frame longer than its buffer");
                self.gone = true;
                return read as usize;
            };
            sink(self.frame.get(..used).unwrap_or_default());
            self.post(self.rx_read);
            self.rx_read = self.rx_read.wrapping_add(1);
        }
        if waiting > 0 {
            store(&self.window.registers, RX_POSTED, self.rx_read.wrapping_add(self.depth));
            self.window.doorbell.ring();
        }
        waiting as usize
    }

    fn confirmed(&mut self) -> u64 {
        self.read_confirmations();
        self.confirmed
    }
}

impl Drop for SimulatedPort {
    /// Turns the device off, if it is still there.
    fn drop(&mut self) {
        if load(&self.window.registers, ID) == DEVICE_ID {
            let control = load(&self.window.registers, CONTROL);
            store(&self.window.registers, CONTROL, control & !CONTROL_ON);
            self.window.doorbell.ring();
        }
    }
}

impl fmt::Debug for SimulatedPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SimulatedPort")
            .field("mac", &self.mac)
            .field("depth", &self.depth)
            .field("unconfirmed", &self.tx_produced.wrapping_sub(self.tx_done))
            .field("gone", &self.gone)
            .finish_non_exhaustive()
    }
}

/// Guest physical address of the byte at `offset`.
fn address_of(memory: &SharedPages, offset: usize) -> u64 {
    let frame = memory.frames().get(offset / PAGE_SIZE).map_or(0, |frame| frame.0);
    frame * PAGE_SIZE as u64 + (offset % PAGE_SIZE) as u64
}

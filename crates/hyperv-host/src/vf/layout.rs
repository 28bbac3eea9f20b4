//! The device's registers and rings; see the [module](super) for the layout.

use std::sync::atomic::{Ordering, fence};

use vmbus::memory::{PAGE_SIZE, SharedMemory, SharedPages};

/// [`ID`] of this device.
pub const DEVICE_ID: u32 = u32::from_le_bytes(*b"NVF1");
/// What every register reads once the device is gone.
pub const GONE: u32 = u32::MAX;

/// Read only: [`DEVICE_ID`].
pub const ID: usize = 0x00;
/// Read only: [`STATUS_LINK`], [`STATUS_RUNNING`], [`STATUS_FAULT`].
pub const STATUS: usize = 0x04;
/// Read only: first four bytes of the permanent MAC address, first byte lowest.
pub const MAC_LOW: usize = 0x08;
/// Read only: its last two bytes, in the low half.
pub const MAC_HIGH: usize = 0x0c;
/// Read only: longest frame in bytes, Ethernet header included.
pub const MAX_FRAME: usize = 0x10;
/// Read only: what the device does to frames, as [`VfFeatures`](super::VfFeatures).
pub const FEATURES: usize = 0x14;
/// Descriptors per ring: a power of two, 2 to [`MOST_DESCRIPTORS`].
pub const DEPTH: usize = 0x18;
/// [`CONTROL_ON`] and, in the other bits, a number that each driver changes. Any change turns the device off first, so
/// that a new driver never meets the queues of the one before.
pub const CONTROL: usize = 0x20;
/// Transmit descriptors filled so far. Runs freely over 32 bits.
pub const TX_PRODUCED: usize = 0x24;
/// Receive descriptors given to the device so far. Runs freely over 32 bits. A descriptor is given back once its frame
/// was read.
pub const RX_POSTED: usize = 0x28;
/// Transmit descriptors before this running number are to be done without sending them: what a driver does with frames
/// that it sends elsewhere because the link is down. Counts only while it lies between [`TX_DONE`] and [`TX_PRODUCED`].
pub const TX_FIRST: usize = 0x2c;
/// Guest physical address of the transmit ring, low half first; on a page boundary.
pub const TX_RING: usize = 0x30;
/// Guest physical address of the receive ring.
pub const RX_RING: usize = 0x38;
/// Guest physical address of the page that the device reports to.
pub const REPORT: usize = 0x40;
/// Largest packet without Ethernet header: longer frames are not received. As much as fits, unless it is set.
pub const MTU: usize = 0x48;
/// Which frames are received: bits as of an NDIS packet filter. All of them, unless it is set.
pub const FILTER: usize = 0x4c;

/// [`CONTROL`]: the device is to work on the rings.
pub const CONTROL_ON: u32 = 1;

/// [`STATUS`]: the link is up.
pub const STATUS_LINK: u32 = 1;
/// [`STATUS`]: the device has taken the rings over.
pub const STATUS_RUNNING: u32 = 2;
/// [`STATUS`]: the guest broke a rule; the device is stopped until [`CONTROL`] changes.
pub const STATUS_FAULT: u32 = 4;

/// In the report page: transmit descriptors done so far, their frames having been taken by the switch.
pub const TX_DONE: usize = 0x00;
/// In the report page: receive descriptors filled so far.
pub const RX_DONE: usize = 0x40;

/// In a transmit descriptor's `used`: the frame goes on in the next one.
pub const TX_MORE: u32 = 1;
/// In the `used` of a frame's first transmit descriptor: its buffer starts with a [`Work`] of [`WORK`] bytes.
pub const TX_WORK: u32 = 2;
/// Bytes of a [`Work`].
pub const WORK: usize = 16;
/// Longest frame that is to be cut, all headers and a tag included.
pub const LARGEST_SEND: usize = 65_535 + 18;

/// What the device shall do to a frame, in front of its bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Work {
    /// 0: checksums, as in RNDIS per-packet information; 0 for none.
    pub checksum: u32,
    /// 4: how to cut it, likewise; 0 for not at all.
    pub large_send: u32,
    /// 8: the tag to put in, with [`WORK_TAG`] set; 0 for none.
    pub tag: u32,
}

/// [`Work::tag`]: there is one, in the low half.
pub const WORK_TAG: u32 = 0x1_0000;

impl Work {
    pub(super) fn decode(bytes: [u8; WORK]) -> Self {
        let [a, b, c, d, e, f, g, h, i, j, k, l, ..] = bytes;
        Self {
            checksum: u32::from_le_bytes([a, b, c, d]),
            large_send: u32::from_le_bytes([e, f, g, h]),
            tag: u32::from_le_bytes([i, j, k, l]),
        }
    }

    pub(super) fn encode(self) -> [u8; WORK] {
        let mut bytes = [0; WORK];
        bytes[..4].copy_from_slice(&self.checksum.to_le_bytes());
        bytes[4..8].copy_from_slice(&self.large_send.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.tag.to_le_bytes());
        bytes
    }
}

/// Bytes of a descriptor.
pub const DESCRIPTOR: usize = 16;
/// Most descriptors of a ring: it takes one page.
pub const MOST_DESCRIPTORS: u32 = (PAGE_SIZE / DESCRIPTOR) as u32;
/// Longest frame of this device, and most bytes of one buffer. A buffer lies within one page, and two share a page.
pub const LONGEST_FRAME: usize = PAGE_SIZE / 2;

/// One entry of a ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Descriptor {
    /// 0: guest physical address of the buffer, which lies within one page.
    pub address: u64,
    /// 8: bytes to send, or bytes that the buffer takes.
    pub length: u32,
    /// 12: in the receive ring, written by the device: bytes of the frame. In the transmit ring, by the guest: [`TX_MORE`]
    /// and [`TX_WORK`].
    pub used: u32,
}

/// Where the descriptor with this running number stands. `depth` is a power of two.
pub(super) const fn place(number: u32, depth: u32) -> usize {
    (number & (depth - 1)) as usize
}

impl Descriptor {
    /// Reads the descriptor at a place of a ring; all zero if that lies outside.
    pub(super) fn read(ring: &impl SharedMemory, place: usize) -> Self {
        let mut bytes = [0; DESCRIPTOR];
        // Places stay below the depth, and the depth below a page.
        let inside = ring.read(place * DESCRIPTOR, &mut bytes);
        debug_assert!(inside.is_ok());
        let [a, b, c, d, e, f, g, h, l0, l1, l2, l3, u0, u1, u2, u3] = bytes;
        Self {
            address: u64::from_le_bytes([a, b, c, d, e, f, g, h]),
            length: u32::from_le_bytes([l0, l1, l2, l3]),
            used: u32::from_le_bytes([u0, u1, u2, u3]),
        }
    }

    /// Writes the descriptor to a place of a ring.
    pub(super) fn write(&self, ring: &impl SharedMemory, place: usize) {
        let mut bytes = [0; DESCRIPTOR];
        bytes[..8].copy_from_slice(&self.address.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.length.to_le_bytes());
        bytes[12..].copy_from_slice(&self.used.to_le_bytes());
        let inside = ring.write(place * DESCRIPTOR, &bytes);
        debug_assert!(inside.is_ok());
    }
}

/// Reads one 32-bit word that the other side writes; everything it wrote before is visible after that.
pub(super) fn load(memory: &impl SharedMemory, at: usize) -> u32 {
    memory.load_u32(at).unwrap_or(GONE)
}

/// Writes one 32-bit word for the other side; everything written before is visible to it by then.
pub(super) fn store(memory: &impl SharedMemory, at: usize, value: u32) {
    let stored = memory.store_u32(at, value);
    debug_assert!(stored.is_ok(), "registers lie inside their pages");
}

/// Reads the 64-bit register at `at`.
pub(super) fn load_address(memory: &impl SharedMemory, at: usize) -> u64 {
    u64::from(load(memory, at)) | u64::from(load(memory, at + 4)) << 32
}

/// Writes the 64-bit register at `at`.
pub(super) fn store_address(memory: &impl SharedMemory, at: usize, value: u64) {
    store(memory, at, value as u32);
    store(memory, at + 4, (value >> 32) as u32);
}

/// Makes every register read all ones, as of a device that is no longer there.
pub(super) fn wipe(registers: &SharedPages) {
    registers.fill(0xff);
    fence(Ordering::SeqCst);
}

//! Ranges of a receive buffer.

use vmbus::packet::TransferRange;

/// Ranges as a NIC's host sends them: one frame each.
pub fn ranges(count: usize) -> Vec<TransferRange> {
    let range = |at: u32| TransferRange { byte_count: 1554, byte_offset: at * 1806 };
    (0..count as u32).map(range).collect()
}

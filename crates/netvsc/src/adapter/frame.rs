//! A received frame, of whatever path.

use alloc::vec::Vec;

use crate::nic::{Cut, renew_checksums};
use crate::rndis::packet::{LargeSend, ReceiveChecksum};

/// A received frame, wherever it lies.
pub trait Frame {
    /// Its length in bytes, Ethernet header included.
    fn len(&self) -> usize;

    /// Whether it has no bytes at all.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Copies it into `out`; the number of bytes copied is the smaller of both lengths.
    fn copy_to(&self, out: &mut [u8]) -> usize;

    /// The frame itself, if it lies in memory of its own and in one piece.
    fn as_bytes(&self) -> Option<&[u8]> {
        None
    }

    /// What the host found of the frame's checksums, if it looked. It may lie. Nothing for frames of a VF.
    fn checksum(&self) -> ReceiveChecksum {
        ReceiveChecksum::empty()
    }

    /// The hash by which the host chose the queue, if it told. It may lie.
    fn hash(&self) -> Option<u32> {
        None
    }

    /// Number of the NIC's channel on which it came; 0 is the primary one. 0 for frames of a VF.
    fn queue(&self) -> u16 {
        0
    }

    /// How it is to be cut, if it is a TCP segment that is longer than a frame: see [`VfPort::receive_whole`](crate::port::VfPort::receive_whole). Only for who has
    /// asked for such ([`Adapter::take_whole`](super::Adapter::take_whole)).
    fn large(&self) -> Option<LargeSend> {
        None
    }
}

/// What a VF has received.
pub(super) struct OfPort<'a>(pub(super) &'a [u8], pub(super) Option<LargeSend>);

impl OfPort<'_> {
    /// Frames that it is.
    pub(super) fn count(&self) -> u64 {
        let cut = self.1.and_then(|send| Cut::new(self.0, send).ok());
        cut.map_or(1, |cut| cut.count(self.0.len()) as u64)
    }
}

impl Frame for OfPort<'_> {
    fn len(&self) -> usize {
        self.0.len()
    }

    fn copy_to(&self, out: &mut [u8]) -> usize {
        self.0.copy_to(out)
    }

    fn as_bytes(&self) -> Option<&[u8]> {
        Some(self.0)
    }

    fn large(&self) -> Option<LargeSend> {
        self.1
    }
}

impl Frame for &[u8] {
    fn len(&self) -> usize {
        <[u8]>::len(self)
    }

    fn copy_to(&self, out: &mut [u8]) -> usize {
        let len = <[u8]>::len(self).min(out.len());
        if let (Some(to), Some(from)) = (out.get_mut(..len), self.get(..len)) {
            to.copy_from_slice(from);
        }
        len
    }
}

/// Frames of a sink as bytes, for callers that keep them. What the host found right and did not sum up gets its checksums
/// ([`renew_checksums`]), so that whoever gets the frame next may look at them.
pub fn append(frame: &dyn Frame, to: &mut Vec<u8>) {
    let start = to.len();
    append_as_received(frame, to);
    if let Some(bytes) = to.get_mut(start..) {
        renew_checksums(bytes, frame.checksum());
    }
}

/// The same, byte for byte as the host gave them: for who writes checksums by himself, or leaves them to somebody else.
pub fn append_as_received(frame: &dyn Frame, to: &mut Vec<u8>) {
    if let Some(bytes) = frame.as_bytes() {
        to.extend_from_slice(bytes);
        return;
    }
    let start = to.len();
    to.resize(start + frame.len(), 0);
    if let Some(room) = to.get_mut(start..) {
        let copied = frame.copy_to(room);
        to.truncate(start + copied);
    }
}

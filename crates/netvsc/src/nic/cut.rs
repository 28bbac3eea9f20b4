//! What a NIC would do to a frame, done here: cutting a large send, computing checksums, putting in a tag. For a path that lacks it.

use alloc::vec::Vec;

use super::frame::{TxFrame, inner_tag};
use super::offload::{self, add, fold};
use super::transmit::{ADDRESSES, VLAN_TYPE};
use super::types::{ETHERNET_HEADER, TransmitError, VLAN_TAG};
use crate::rndis::packet::{LargeSend, TransmitChecksum, VlanTag};

const TCP: u8 = 6;
const TCP_FIN_PSH: u8 = 0x09;
const TCP_CWR: u8 = 0x80;

/// A large send that was checked: its segments, one by one.
///
/// For drivers of ports whose device hands over, or takes, longer segments than go over a wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cut {
    ip: usize,
    tcp: usize,
    /// Where the payload starts.
    payload: usize,
    /// Bytes of payload in each segment.
    segment: usize,
    ipv6: bool,
}

impl Cut {
    /// Looks at the headers, all of which lie in `head`, the beginning of the frame.
    ///
    /// # Errors
    /// [`TransmitError`] if they are not those of a TCP segment where `send` says.
    pub fn new(head: &[u8], send: LargeSend) -> Result<Self, TransmitError> {
        let tcp = usize::from(send.layer4);
        let wrong = TransmitError::Headers { layer4: tcp };
        if send.segment == 0 {
            return Err(TransmitError::LargeSend { len: head.len(), segment: 0, most: 0 });
        }
        let pieces = [head];
        let split = TxFrame::plain(&pieces).split()?;
        let moved = if split.cut { VLAN_TAG } else { 0 };
        let layer4 = tcp.checked_sub(moved).ok_or(wrong)?;
        offload::check_headers(&split, send.ipv6, layer4, TCP)?;
        let header = head.get(tcp + 12).map(|byte| usize::from(byte >> 4) * 4);
        let payload = header.filter(|len| *len >= 20).map(|len| tcp + len);
        let payload = payload.filter(|at| *at <= head.len()).ok_or(wrong)?;
        let ip = ETHERNET_HEADER + moved;
        Ok(Self { ip, tcp, payload, segment: send.segment as usize, ipv6: send.ipv6 })
    }

    /// Number of segments of a frame of `len` bytes; one without payload is one.
    #[must_use]
    pub fn count(&self, len: usize) -> usize {
        len.saturating_sub(self.payload).div_ceil(self.segment).max(1)
    }

    /// Bytes of the longest segment of a frame of `len` bytes.
    #[must_use]
    pub fn longest(&self, len: usize) -> usize {
        self.payload.saturating_add(self.segment).min(len)
    }

    /// Writes segment number `index` of `frame`: lengths, identification, sequence number, flags and checksums as they belong.
    pub fn write(&self, frame: &[u8], index: usize, out: &mut Vec<u8>) {
        let done = index.saturating_mul(self.segment);
        let start = self.payload.saturating_add(done).min(frame.len());
        let end = start.saturating_add(self.segment).min(frame.len());
        out.clear();
        out.extend_from_slice(frame.get(..self.payload).unwrap_or_default());
        out.extend_from_slice(frame.get(start..end).unwrap_or_default());
        let len = out.len();
        if self.ipv6 {
            put(out, self.ip + 4, (len - (self.ip + 40).min(len)) as u16);
        } else {
            put(out, self.ip + 2, (len - self.ip.min(len)) as u16);
            let id = word(out, self.ip + 4).wrapping_add(index as u16);
            put(out, self.ip + 4, id);
            put(out, self.ip + 10, 0);
            let sum = add(0, out.get(self.ip..self.tcp).unwrap_or_default(), false);
            put(out, self.ip + 10, !fold(sum));
        }
        let number = u32::from(word(out, self.tcp + 4)) << 16 | u32::from(word(out, self.tcp + 6));
        let number = number.wrapping_add(done as u32);
        put(out, self.tcp + 4, (number >> 16) as u16);
        put(out, self.tcp + 6, number as u16);
        if let Some(flags) = out.get_mut(self.tcp + 13) {
            if end < frame.len() {
                *flags &= !TCP_FIN_PSH;
            }
            if index > 0 {
                *flags &= !TCP_CWR;
            }
        }
        self.fill_checksum(out);
    }

    fn fill_checksum(&self, out: &mut [u8]) {
        put(out, self.tcp + 16, 0);
        let addresses = match self.ipv6 {
            true => self.ip + 8..self.ip + 40,
            false => self.ip + 12..self.ip + 20,
        };
        let segment = out.get(self.tcp..).unwrap_or_default();
        let len = segment.len() as u16;
        let pseudo = add(0, out.get(addresses).unwrap_or_default(), false);
        let pseudo = add(add(pseudo, &[0, TCP], false), &len.to_be_bytes(), false);
        let sum = !fold(add(pseudo, segment, false));
        put(out, self.tcp + 16, sum);
    }
}

fn word(bytes: &[u8], at: usize) -> u16 {
    let word = bytes.get(at..).and_then(|rest| rest.first_chunk());
    word.map_or(0, |word| u16::from_be_bytes(*word))
}

fn put(bytes: &mut [u8], at: usize, value: u16) {
    if let Some(field) = bytes.get_mut(at..).and_then(|rest| rest.first_chunk_mut()) {
        *field = value.to_be_bytes();
    }
}

/// Whether what a frame asks for can be done to it at all, by whomever.
pub(crate) fn check(frame: &TxFrame<'_>) -> Result<(), TransmitError> {
    if let Some(send) = frame.large_send {
        let head = frame.pieces.first().copied().unwrap_or_default();
        return Cut::new(head, send).map(|_| ());
    }
    let split = frame.split()?;
    if offload::asks(frame.checksum) {
        offload::check(&split, offload::moved_checksum(frame.checksum, split.cut))?;
    }
    Ok(())
}

/// Computes the checksums that are asked for, in a frame that lies in one piece.
///
/// # Errors
/// [`TransmitError`] if the frame has not the headers that the request tells of.
pub fn fill_checksums(frame: &mut [u8], request: TransmitChecksum) -> Result<(), TransmitError> {
    let (patches, moved) = {
        let pieces = [&*frame];
        let split = TxFrame::plain(&pieces).split()?;
        let request = offload::moved_checksum(request, split.cut);
        (offload::compute(&split, request)?, if split.cut { VLAN_TAG } else { 0 })
    };
    for (at, bytes) in patches.iter() {
        if let Some(field) = frame.get_mut(at + moved..).and_then(|rest| rest.first_chunk_mut()) {
            *field = bytes;
        }
    }
    Ok(())
}

/// Where a tag goes, and its bytes.
pub(crate) fn tag_bytes(tag: VlanTag) -> (usize, [u8; VLAN_TAG]) {
    let ([a, b], [c, d]) = (VLAN_TYPE, tag.0.to_be_bytes());
    (ADDRESSES, [a, b, c, d])
}

/// Bytes of a tag.
pub(crate) const TAG: usize = VLAN_TAG;

/// Whether a frame has a tag among its bytes.
pub(crate) fn has_tag(frame: &[u8]) -> bool {
    inner_tag(frame).is_some()
}

//! One transfer-page packet in the making: frames with their headers, in pieces of the receive buffer.

use netvsc::rndis::packet::{
    PACKET_HEADER, PartFlags, PpiType, ReceiveChecksum, VlanTag, WORD_PPI, write_header,
};
use vmbus::memory::OutOfRange;
use vmbus::packet::TransferRange;

use super::checksum::{self, Place};
use super::coalesce::Segment;
use super::offers::Offloads;
use super::receive::{FRAME_OFFSET, Piece, ReceiveBuffer, Use};
use crate::switch::{Queued, SwitchPort};

/// Most parts of one frame that was put together; guests give up beyond that.
pub(super) const PARTS: usize = 562;

/// Where the ethertype of a frame is, and bytes of an 802.1Q tag.
const ETHERTYPE: usize = 12;
const VLAN_TAG: usize = 4;

/// Header of a frame with checksum, tag, hash and part.
const LONGEST_HEADER: usize = PACKET_HEADER + 4 * WORD_PPI;

/// How frames are delivered.
#[derive(Clone, Copy, Debug)]
pub(super) struct Delivery {
    pub offloads: Offloads,
    /// Checksum fields of what was put together are not filled in.
    pub stale: bool,
    /// Most parts of a frame that the ring takes.
    pub most_parts: usize,
}

/// A frame on its way to the guest.
#[derive(Debug)]
pub(super) struct Taken {
    /// Without tag.
    pub frame: Vec<u8>,
    tag: Option<VlanTag>,
    hash: Option<u32>,
    checks: ReceiveChecksum,
    /// How many frames it was put together from.
    pub joined: u32,
    /// It is a segment longer than a frame.
    long: bool,
}

impl Taken {
    /// Whether it is a segment that nobody has cut.
    pub(super) const fn is_uncut(&self) -> bool {
        self.long && self.joined == 1
    }
}

/// Takes the next frame of a queue, and those that can be joined to it; or a segment that was not cut. `None` if there is none, or
/// too few pieces are free for all of a segment. There is a free piece.
pub(super) fn take(
    queue: u16,
    buffer: &ReceiveBuffer,
    port: &mut SwitchPort,
    with: &Delivery,
) -> Option<Taken> {
    match uncut(queue, buffer, port, with) {
        Next::Frame => take_frame(queue, buffer, port, with),
        Next::Uncut(taken) => Some(taken),
        Next::Later => None,
    }
}

/// What comes next.
enum Next {
    Frame,
    Uncut(Taken),
    /// A segment, once enough pieces have come back.
    Later,
}

/// Takes the next segment of a queue as it is, or cuts it if the guest cannot have it so.
fn uncut(queue: u16, buffer: &ReceiveBuffer, port: &mut SwitchPort, with: &Delivery) -> Next {
    use ReceiveChecksum as C;
    let (segment, ipv6, parts) = loop {
        let Some(Queued { frame, uncut: Some(uncut), .. }) = port.peek_queue(queue) else {
            return Next::Frame;
        };
        let parts = frame.len().div_ceil(buffer.frame_room().max(1));
        let possible = parts <= with.most_parts.min(buffer.share())
            && with.offloads.coalesces(uncut.ipv6)
            && frame.get(ETHERTYPE) != Some(&0x81);
        match Segment::of(frame).filter(|_| possible) {
            Some(segment) => break (segment, uncut.ipv6, parts),
            None => port.cut_next(queue),
        }
    };
    if parts > buffer.available(queue) {
        return Next::Later;
    }
    let Some(queued) = port.next_in_queue(queue) else { return Next::Frame };
    let mut frame = queued.frame;
    segment.finish(&mut frame, with.stale);
    let mut checks = C::TCP_GOOD | if ipv6 { C::empty() } else { C::IP_GOOD };
    if with.stale {
        checks |= stale(ipv6);
    }
    Next::Uncut(Taken { frame, tag: None, hash: queued.hash, checks, joined: 1, long: true })
}

/// What is told of checksums that were right and are not those of the whole.
fn stale(ipv6: bool) -> ReceiveChecksum {
    use ReceiveChecksum as C;
    let tcp = C::TCP_GOOD | C::TCP_VALUE_INVALID;
    tcp | if ipv6 { C::empty() } else { C::IP_GOOD | C::IP_VALUE_INVALID }
}

fn take_frame(
    queue: u16,
    buffer: &ReceiveBuffer,
    port: &mut SwitchPort,
    with: &Delivery,
) -> Option<Taken> {
    let queued = port.next_in_queue(queue)?;
    let mut frame = queued.frame;
    let offloads = &with.offloads;
    let mut checks = ReceiveChecksum::empty();
    let mut joined = 1;
    if offloads.checks() || offloads.coalesces_any() {
        let found = checksum::verify(&frame);
        let ipv6 = Place::of(&frame).is_some_and(|place| place.ipv6);
        checks = found & offloads.wanted(ipv6);
        if offloads.coalesces(ipv6)
            && let Some(mut segment) = Segment::of(&frame).filter(|_| is_good(found))
        {
            let parts = buffer.available(queue).min(with.most_parts);
            let most = parts * buffer.frame_room();
            while let Some(next) = port.peek_queue(queue).filter(|next| next.uncut.is_none()) {
                let good = is_good(checksum::verify(&next.frame));
                if !good || !segment.join(&mut frame, &next.frame, most) {
                    break;
                }
                if let Some(next) = port.next_in_queue(queue) {
                    port.recycle(next.frame);
                }
            }
            joined = segment.frames;
            if joined > 1 {
                segment.finish(&mut frame, with.stale);
            }
            if joined > 1 && with.stale {
                checks |= stale(ipv6);
            }
        }
    }
    let tag = match frame.get(ETHERTYPE..ETHERTYPE + VLAN_TAG) {
        Some([0x81, 0x00, high, low]) => Some(VlanTag(u16::from_be_bytes([*high, *low]))),
        _ => None,
    };
    if tag.is_some() {
        // It travels outside the frame.
        frame.drain(ETHERTYPE..ETHERTYPE + VLAN_TAG);
    }
    Some(Taken { frame, tag, hash: queued.hash, checks, joined, long: joined > 1 })
}

/// Only what is right is joined.
fn is_good(found: ReceiveChecksum) -> bool {
    use ReceiveChecksum as C;
    found.contains(C::TCP_GOOD) && !found.contains(C::IP_BAD)
}

/// The packet in the making.
#[derive(Debug, Default)]
pub(super) struct Batch {
    pub pieces: Vec<Piece>,
    pub ranges: Vec<TransferRange>,
    /// Number of the last frame that was put together.
    number: u16,
}

impl Batch {
    pub(super) fn clear(&mut self) {
        self.pieces.clear();
        self.ranges.clear();
    }

    /// Writes a frame into as many pieces as it takes.
    pub(super) fn write(
        &mut self,
        buffer: &mut ReceiveBuffer,
        queue: u16,
        taken: &Taken,
    ) -> Result<(), OutOfRange> {
        // The checksum entry is always there; it says nothing of what nobody asked to check.
        let entries = [
            Some((PpiType::CHECKSUM, taken.checks.bits())),
            taken.tag.map(|tag| (PpiType::VLAN, tag.to_ppi())),
            taken.hash.map(|hash| (PpiType::HASH, hash)),
        ];
        if !taken.long {
            // The port lets no longer frame through than the guest's frame and a tag.
            let len = taken.frame.len().min(buffer.frame_room());
            return self.write_part(
                buffer,
                queue,
                entries.into_iter().flatten(),
                &taken.frame[..len],
            );
        }
        self.number = self.number.wrapping_add(1);
        let mut at = 0;
        let room = buffer.frame_room();
        while at < taken.frame.len() {
            let end = (at + room).min(taken.frame.len());
            let mut flags = PartFlags::SUB_ALLOCATED;
            flags.set(PartFlags::FIRST, at == 0);
            flags.set(PartFlags::LAST, end == taken.frame.len());
            let part = 1 | u32::from(flags.bits()) << 8 | u32::from(self.number) << 16;
            let entries = entries.into_iter().filter(|_| at == 0).flatten();
            let entries = entries.chain([(PpiType::PACKET_ID, part)]);
            self.write_part(buffer, queue, entries, &taken.frame[at..end])?;
            at = end;
        }
        Ok(())
    }

    /// Writes a header with these entries and data into the next piece.
    fn write_part(
        &mut self,
        buffer: &mut ReceiveBuffer,
        queue: u16,
        entries: impl Iterator<Item = (PpiType, u32)>,
        data: &[u8],
    ) -> Result<(), OutOfRange> {
        let Some(piece) = buffer.take(Use::Data, queue) else { return Ok(()) };
        let mut info = [(PpiType::CHECKSUM, 0); 4];
        let mut count = 0;
        for (slot, entry) in info.iter_mut().zip(entries) {
            *slot = entry;
            count += 1;
        }
        let mut header = [0; LONGEST_HEADER];
        let written = write_header(&mut header, &info[..count], FRAME_OFFSET, data.len());
        buffer.write(piece, 0, header.get(..written.unwrap_or_default()).unwrap_or_default())?;
        buffer.write(piece, FRAME_OFFSET, data)?;
        self.pieces.push(piece);
        let byte_count = (FRAME_OFFSET + data.len()) as u32;
        self.ranges.push(TransferRange { byte_count, byte_offset: piece.offset as u32 });
        Ok(())
    }
}

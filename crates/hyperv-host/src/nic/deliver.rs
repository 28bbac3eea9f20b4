//! Frames to the guest: into free pieces of the receive buffer, many per transfer-page packet; and the pieces' way back.

use netvsc::nvsp::{self, ChannelType, GuestMessage, HostMessage, Status};
use netvsc::rndis::packet::{PACKET_HEADER, PpiType, VlanTag, WORD_PPI, write_header};
use vmbus::memory::OutOfRange;
use vmbus::packet::{Outgoing, Packet, TransferRange};

use super::association::Action;
use super::outbox::Outbox;
use super::queue::Queue;
use super::receive::{FRAME_OFFSET, Piece, ReceiveBuffer, Use};
use super::setup;
use super::{ASSOCIATION_TRANSACTION, Link, NOTICE_TRANSACTION, NicService, NicServiceError};
use crate::switch::{Queued, SwitchPort};

/// Room in the ring that delivery leaves for answers.
const RESERVE: usize = 512;

/// Where the ethertype of a frame is, and bytes of an 802.1Q tag.
const ETHERTYPE: usize = 12;
const VLAN_TAG: usize = 4;

/// Header of a frame with checksum, tag and hash.
const LONGEST_HEADER: usize = PACKET_HEADER + 3 * WORD_PPI;

impl NicService {
    /// Delivers what waits in a queue of the port, as far as pieces and ring allow.
    pub(super) fn deliver(
        &mut self,
        link: &mut Link,
        queue: &mut Queue,
        port: &mut SwitchPort,
    ) -> Result<(), NicServiceError> {
        let most = self.config.policy.frames_per_packet.max(1);
        while link.control.receives()
            && queue.outbox.is_empty()
            && port.peek_queue(queue.number).is_some()
        {
            let message = nvsp::rndis_packet(ChannelType::DATA, None);
            let message = message.get(..link.setup.message_size()).unwrap_or(&message);
            let Some(buffer) = &mut link.setup.receive else { break };
            if !buffer.has_free(queue.number) {
                self.counters.receive_starved += 1;
                break;
            }
            let room = RESERVE + most * size_of::<TransferRange>();
            if !Outbox::room(&mut queue.channel, room)? {
                self.counters.ring_full += 1;
                break;
            }
            self.pieces.clear();
            self.ranges.clear();
            while self.pieces.len() < most && port.peek_queue(queue.number).is_some() {
                let Some(piece) = buffer.take(Use::Data, queue.number) else { break };
                let Some(queued) = port.next_in_queue(queue.number) else {
                    buffer.put_back(piece);
                    break;
                };
                let byte_count = write_frame(buffer, piece, &queued)?;
                port.recycle(queued.frame);
                self.pieces.push(piece);
                self.ranges.push(TransferRange { byte_count, byte_offset: piece.offset as u32 });
            }
            let packet = Outgoing::TransferPages {
                transaction_id: buffer.send(&self.pieces, queue.number),
                pageset: buffer.id,
                ranges: &self.ranges,
                payload: message,
            };
            queue.channel.stage(&packet)?;
            self.counters.receive_messages += 1;
            self.counters.receive_frames += self.pieces.len() as u64;
        }
        Ok(())
    }

    /// A completion of the guest: for received frames, or for something that the host said of itself.
    pub(super) fn handle_completion(
        &mut self,
        link: &mut Link,
        number: u16,
        packet: &Packet<'_>,
    ) -> Result<(), NicServiceError> {
        let id = packet.transaction_id;
        if let ASSOCIATION_TRANSACTION | NOTICE_TRANSACTION = id
            && number == 0
        {
            let unconfirmed = &mut link.unconfirmed[usize::from(id == NOTICE_TRANSACTION)];
            *unconfirmed = unconfirmed.checked_sub(1).ok_or(NicServiceError::NotOutstanding(id))?;
            return Ok(());
        }
        let Some(buffer) = &mut link.setup.receive else {
            return Err(NicServiceError::NotOutstanding(id));
        };
        let freed = buffer.complete(id, number).map_err(|_| NicServiceError::NotOutstanding(id))?;
        let message = GuestMessage::decode(packet.payload)?;
        let GuestMessage::RndisPacketComplete { status } = message else {
            return Err(NicServiceError::WrongCompletion(setup::kind(packet.payload)));
        };
        if status != Status::SUCCESS {
            self.counters.refused_by_guest += u64::from(freed);
        }
        Ok(())
    }

    /// Sends what the association machine wants said.
    pub(super) fn tell(
        &mut self,
        link: &mut Link,
        primary: &mut Queue,
        action: Action,
    ) -> Result<(), NicServiceError> {
        let version = link.setup.message_version();
        let unconfirmed = &mut link.unconfirmed;
        let Queue { channel, outbox, .. } = primary;
        match action {
            Action::Associate { allocated, serial } => {
                let completion = self.config.policy.association_completion;
                let message = HostMessage::VfAssociation { allocated, serial }.encode(version);
                outbox.send(channel, ASSOCIATION_TRANSACTION, completion, &message)?;
                unconfirmed[0] += u32::from(completion);
                self.counters.associations += 1;
            }
            Action::Notice(path) => {
                let message = HostMessage::SwitchDataPath(path.into()).encode(version);
                outbox.send(channel, NOTICE_TRANSACTION, true, &message)?;
                unconfirmed[1] += 1;
                self.counters.notices += 1;
            }
            Action::Complete(transaction) => outbox.complete(channel, transaction, &[])?,
            // Not messages.
            Action::Offer | Action::DataPath(_) => {}
        }
        Ok(())
    }
}

/// Writes a frame with its header into a piece; a tag travels outside the frame. Returns the bytes of the range.
fn write_frame(buffer: &ReceiveBuffer, piece: Piece, queued: &Queued) -> Result<u32, OutOfRange> {
    let frame = &queued.frame[..];
    let tag = match frame.get(ETHERTYPE..ETHERTYPE + VLAN_TAG) {
        Some([0x81, 0x00, high, low]) => Some(VlanTag(u16::from_be_bytes([*high, *low]))),
        _ => None,
    };
    let skipped = if tag.is_some() { VLAN_TAG } else { 0 };
    // The port lets no longer frame through than the guest's frame and a tag.
    let len = (frame.len() - skipped).min(buffer.frame_room());
    // The checksum entry is always there and says nothing: this host verifies none, so the guest has to.
    let mut info = [(PpiType::CHECKSUM, 0); 3];
    let mut entries = 1;
    let tag_info = tag.map(|tag| (PpiType::VLAN, tag.to_ppi()));
    let hash_info = queued.hash.map(|hash| (PpiType::HASH, hash));
    for (slot, entry) in info[1..].iter_mut().zip(tag_info.into_iter().chain(hash_info)) {
        *slot = entry;
        entries += 1;
    }
    let mut header = [0; LONGEST_HEADER];
    let written =
        write_header(&mut header, &info[..entries], FRAME_OFFSET, len).unwrap_or_default();
    buffer.write(piece, 0, header.get(..written).unwrap_or_default())?;
    if skipped == 0 {
        buffer.write(piece, FRAME_OFFSET, frame.get(..len).unwrap_or_default())?;
    } else {
        buffer.write(piece, FRAME_OFFSET, &frame[..ETHERTYPE])?;
        let rest = frame.get(ETHERTYPE + VLAN_TAG..len + VLAN_TAG).unwrap_or_default();
        buffer.write(piece, FRAME_OFFSET + ETHERTYPE, rest)?;
    }
    Ok((FRAME_OFFSET + len) as u32)
}

//! Frames to the guest: into free pieces of the receive buffer, many per transfer-page packet; and the pieces' way back.

use netvsc::nvsp::{self, ChannelType, GuestMessage, HostMessage, Status};
use vmbus::packet::{Outgoing, Packet, TransferRange};

use super::association::Action;
use super::batch::{Delivery, PARTS, take};
use super::outbox::Outbox;
use super::policy::Notice;
use super::queue::Queue;
use super::setup;
use super::{ASSOCIATION_TRANSACTION, Link, NOTICE_TRANSACTION, NicService, NicServiceError};
use crate::switch::SwitchPort;

/// Room in the ring that delivery leaves for answers.
const RESERVE: usize = 512;

impl NicService {
    /// Delivers what waits in a queue of the port, as far as pieces and ring allow.
    pub(super) fn deliver(
        &mut self,
        link: &mut Link,
        queue: &mut Queue,
        port: &mut SwitchPort,
    ) -> Result<(), NicServiceError> {
        let most = self.config.policy.frames_per_packet.max(1);
        let with = Delivery {
            offloads: self.offloads(link),
            stale: self.config.policy.offloads.stale_checksums,
            most_parts: (queue.channel.capacity() / 2 / size_of::<TransferRange>()).clamp(1, PARTS),
        };
        port.set_nic_gathers(with.offloads.coalesces_any());
        while link.control.receives()
            && queue.outbox.is_empty()
            && port.peek_queue(queue.number).is_some()
        {
            let message = nvsp::rndis_packet(ChannelType::DATA, None);
            let message = message.get(..link.setup.message_size()).unwrap_or(&message);
            let Some(buffer) = &mut link.setup.receive else { break };
            if buffer.available(queue.number) == 0 {
                self.counters.receive_starved += 1;
                break;
            }
            // A frame of many parts may come last.
            let ranges = most + if with.offloads.coalesces_any() { with.most_parts } else { 0 };
            if !Outbox::room(&mut queue.channel, RESERVE + ranges * size_of::<TransferRange>())? {
                self.counters.ring_full += 1;
                break;
            }
            self.batch.clear();
            while self.batch.pieces.len() < most && buffer.available(queue.number) > 0 {
                let Some(taken) = take(queue.number, buffer, port, &with) else { break };
                self.counters.receive_frames += 1;
                self.counters.coalesced += u64::from(taken.joined) - 1;
                self.counters.receive_uncut += u64::from(taken.is_uncut());
                self.batch.write(buffer, queue.number, &taken)?;
                port.recycle(taken.frame);
            }
            if self.batch.pieces.is_empty() {
                // A segment waits for more pieces than are free.
                self.counters.receive_starved += 1;
                break;
            }
            let lies = queue.faults.data(&mut self.batch, buffer, queue.number, message)?;
            let packet = Outgoing::TransferPages {
                transaction_id: buffer.send(&self.batch.pieces, queue.number),
                pageset: lies.as_ref().map_or(buffer.id, |carrier| carrier.pageset),
                ranges: &self.batch.ranges,
                payload: lies.as_ref().map_or(message, |carrier| &carrier.message),
            };
            queue.channel.stage(&packet)?;
            self.counters.receive_messages += 1;
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
        if self.is_lost(action) {
            return Ok(());
        }
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

    /// Whether policy wants this message to get lost; it is counted and asked for no more then.
    fn is_lost(&mut self, action: Action) -> bool {
        let kind = match action {
            Action::Associate { allocated: true, .. } => Notice::Association,
            Action::Associate { allocated: false, .. } => Notice::Disassociation,
            Action::Notice(_) => Notice::Path,
            Action::Complete(_) | Action::Offer | Action::DataPath(_) => return false,
        };
        let lost = &mut self.config.policy.lost_notices;
        let Some(at) = lost.iter().position(|it| *it == kind) else { return false };
        lost.remove(at);
        self.counters.notices_lost += 1;
        true
    }
}

//! One channel of a NIC with what is under way on it, and how it is served.

use netvsc::nvsp::{HostMessage, Status};
use vmbus::Instant;
use vmbus::packet::{Packet, PacketKind};
use vmbus::ring::ReceiveError;

use super::fault::Faults;
use super::outbox::Outbox;
use super::owed::Owed;
use super::policy::NicPolicy;
use super::setup::{Circumstances, Setup};
use super::transmit::Transmit;
use super::{GuestView, Link, NicService, NicServiceError};
use crate::bus::HostChannel;
use crate::switch::SwitchPort;

/// Data messages of one channel that may wait for their completion.
const MOST_OWED: usize = 4096;

/// The primary channel (number 0) or a sub-channel.
#[derive(Debug)]
pub(super) struct Queue {
    pub number: u16,
    pub channel: HostChannel,
    pub outbox: Outbox,
    pub transmit: Transmit,
    /// Completions of data messages.
    pub owed: Owed,
    /// Misbehaviour that waits for its moment; lent by the service while the queue is served.
    pub faults: Faults,
}

impl Queue {
    pub(super) fn new(number: u16, mut channel: HostChannel) -> Self {
        channel.check_trailers(true);
        Self {
            number,
            channel,
            outbox: Outbox::default(),
            transmit: Transmit::default(),
            owed: Owed::default(),
            faults: Faults::default(),
        }
    }

    /// Notes that a data message is to be completed.
    pub(super) fn owe(
        &mut self,
        transaction: u64,
        status: Status,
        now: Instant,
        policy: &NicPolicy,
    ) {
        self.owed.push(transaction, status, now + policy.send_delay);
    }

    /// Whether the guest has to wait for completions before more of its messages are read.
    pub(super) fn owes_too_much(&self) -> bool {
        self.owed.len() >= MOST_OWED
    }

    pub(super) const fn is_primary(&self) -> bool {
        self.number == 0
    }

    /// Completes a message of the guest with a message.
    pub(super) fn answer(
        &mut self,
        setup: &Setup,
        transaction: u64,
        message: HostMessage,
    ) -> Result<(), NicServiceError> {
        let message = message.encode(setup.message_version());
        match self.faults.answer(transaction, &message) {
            None => self.complete(transaction, &message),
            Some(lies) => {
                lies.iter().try_for_each(|(transaction, lie)| self.complete(*transaction, lie))
            }
        }
    }

    fn complete(&mut self, transaction: u64, message: &[u8]) -> Result<(), NicServiceError> {
        Ok(self.outbox.complete(&mut self.channel, transaction, message)?)
    }

    /// Completes a SEND_RNDIS_PACKET.
    pub(super) fn complete_send(
        &mut self,
        setup: &Setup,
        transaction: u64,
        status: Status,
    ) -> Result<(), NicServiceError> {
        self.answer(setup, transaction, HostMessage::RndisPacketComplete { status })
    }
}

impl NicService {
    /// Serves one channel: what is to be said, what came, what is to be delivered.
    pub(super) fn serve(
        &mut self,
        link: &mut Link,
        queue: &mut Queue,
        packet: &mut [u8],
        now: Instant,
        guest: GuestView<'_>,
        port: &mut SwitchPort,
    ) -> Result<(), NicServiceError> {
        queue.channel.mask()?;
        let mut left = self.config.policy.packets_per_poll.max(1);
        loop {
            if queue.is_primary() {
                self.act(Some((link, queue)), port)?;
                self.send_control(link, queue, now, port)?;
                self.poll_sub_channels(link, queue, now)?;
            }
            let ready = queue.outbox.flush(&mut queue.channel)?;
            if !ready || !self.transmit(link, queue, now, port)? {
                // The guest's ring or the wire is full: nothing is read until there is room.
                queue.channel.arm()?;
                break;
            }
            if left == 0 {
                self.more = true;
                break;
            }
            left -= 1;
            match queue.channel.receive(packet) {
                Ok(Some(packet)) => self.handle_packet(link, queue, &packet, now, guest, port)?,
                Ok(None) if queue.channel.arm()? => queue.channel.mask()?,
                Ok(None) => break,
                Err(ReceiveError::Packet(error)) => return Err(error.into()),
                Err(ReceiveError::Ring(error)) => return Err(error.into()),
            }
        }
        let waited = queue.owes_too_much();
        self.pay(link, queue, now)?;
        self.more |= waited && !queue.owes_too_much();
        self.deliver(link, queue, port)?;
        queue.channel.commit()?;
        Ok(())
    }

    fn handle_packet(
        &mut self,
        link: &mut Link,
        queue: &mut Queue,
        packet: &Packet<'_>,
        now: Instant,
        guest: GuestView<'_>,
        port: &mut SwitchPort,
    ) -> Result<(), NicServiceError> {
        match &packet.kind {
            PacketKind::Completion => self.handle_completion(link, queue.number, packet),
            PacketKind::TransferPages { .. } => Err(NicServiceError::TransferPages),
            PacketKind::InBand => {
                let with = Circumstances { ranges: None, now, guest };
                self.handle_message(link, queue, packet, with, port)
            }
            PacketKind::GpaDirect(ranges) => {
                let with = Circumstances { ranges: Some(*ranges), now, guest };
                self.handle_message(link, queue, packet, with, port)
            }
        }
    }
}

//! More channels: sub-channels of a NIC, each a queue of its own (PROTOCOL §7.5).
//!
//! The primary channel stays with the [`Nic`], which does all the talking; on a sub-channel only frames go. A [`NicQueue`] is
//! a value of its own and belongs to one thread. All queues receive into the one receive buffer, of which the host gives
//! each its pieces, and share the slots of the send buffer by a bitmap without locks.

use alloc::boxed::Box;
use alloc::vec;
use alloc::vec::Vec;

use vmbus::Instant;
use vmbus::channel::{Channel, ChannelStats, Doorbell, SignalFlag};
use vmbus::memory::SharedPages;
use vmbus::packet::{Packet, PacketKind};
use vmbus::ring::ReceiveError;

use super::frame::TxFrame;
use super::lend::Loans;
use super::link::{Link, Sent};
use super::pages::{Lending, PagedFrame, Returned};
use super::receive::{Content, Receive, RxFrame};
use super::settings::SettingError;
use super::stats::NicStats;
use super::transmit::Transmit;
use super::types::{NicError, NicEvent, Step, TransmitError};
use super::{Nic, PACKETS_PER_POLL, RECEIVE_BUFFER, Stage};
use crate::nvsp::{GuestMessage, HostMessage, Status, SubChannelOperation, TABLE_ENTRIES, Version};

/// A sub-channel was not made a queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum QueueError {
    /// Not a sub-channel that the host granted.
    #[error("sub-channel {number}: expected 1 to {granted}, as many as the host granted")]
    Number {
        /// Its number.
        number: u16,
        /// Sub-channels that were granted.
        granted: u16,
    },
    /// All slots of the send buffer are in use.
    #[error("no slot of the send buffer is left for another queue: expected at least one")]
    NoSlot,
    /// The NIC is not at work.
    #[error("the NIC is not at work: expected start-up to be finished")]
    NotReady,
}

impl<D: Doorbell> Nic<D> {
    /// Asks the host for so many channels more. [`NicEvent::QueuesGranted`] follows; the host then offers
    /// them one by one, maybe slowly, maybe fewer. The bus tells of the offers, with the number of each.
    ///
    /// # Errors
    /// [`SettingError`] if it cannot be asked for now, the last answer has not come yet, or the version is older than 5.0.
    pub fn request_queues(&mut self, count: u16, now: Instant) -> Result<(), SettingError> {
        self.begin_setting(Step::SubChannels, now)?;
        self.check_version(Step::SubChannels)?;
        let operation = SubChannelOperation::ALLOCATE;
        let message = GuestMessage::SubChannels { operation, count: u32::from(count) };
        self.ask(Step::SubChannels, &message, self.version());
        self.show();
        Ok(())
    }

    /// Sub-channels that the NIC asks its host for at most. What a host offers with a higher number nobody has asked for, and none of
    /// it needs to be opened; the answer of the host that says how many there will be may come after the offers.
    #[must_use]
    pub fn queues_wanted(&self) -> u16 {
        self.config.queues.saturating_sub(1)
    }

    /// The answer to that. What makes no sense is a refusal: the NIC goes on with the channels that it has.
    pub(super) fn handle_granted(&mut self, payload: &[u8]) {
        let granted = match HostMessage::decode(payload, self.version()) {
            Ok(HostMessage::SubChannels { status: Status::SUCCESS, count }) => {
                let most = self.config.queues.saturating_sub(1 + self.granted);
                u16::try_from(count).ok().filter(|count| *count <= most)
            }
            Ok(HostMessage::SubChannels { status, .. }) => {
                self.stats.answers.count(status);
                Some(0)
            }
            _ => None,
        };
        self.stats.bad.answer += u64::from(granted.is_none());
        let count = granted.unwrap_or(0);
        self.granted += count;
        if matches!(self.stage, Stage::Ready) {
            self.events.push_back(NicEvent::QueuesGranted { count });
        }
    }

    /// Makes a queue of sub-channel `number`, which has just been opened.
    ///
    /// # Errors
    /// [`QueueError`]. The channel is then still to be closed, for which the bus needs nothing more than its number.
    pub fn add_queue(
        &mut self,
        number: u16,
        channel: Channel<SharedPages, D>,
    ) -> Result<NicQueue<D>, QueueError> {
        let granted = self.granted;
        if number == 0 || number > granted {
            return Err(QueueError::Number { number, granted });
        }
        if self.stage != Stage::Ready {
            return Err(QueueError::NotReady);
        }
        let transmit = self.transmit.sibling().ok_or(QueueError::NoSlot)?;
        let mut receive = self.receive.sibling();
        if self.info.offloads.ipv4.coalescing || self.info.offloads.ipv6.coalescing {
            receive.gather();
        }
        let mut link = Link::new(channel);
        link.expect_pieces(receive.pieces());
        self.info.queues = self.info.queues.max(number + 1);
        Ok(NicQueue {
            number,
            version: self.version(),
            link,
            transmit,
            receive,
            stats: NicStats::default(),
            packet: vec![0; RECEIVE_BUFFER].into(),
            state: State::Working,
            flushing: false,
            more: false,
        })
    }

    /// The queues with this number and above are gone: frames are spread over the others.
    pub fn queues_removed(&mut self, from: u16) {
        self.info.queues = self.info.queues.min(from).max(1);
        self.granted = self.granted.min(self.info.queues - 1);
    }

    /// The last queue is gone, which had this number. The host may have granted more, that are still to come.
    pub(super) fn last_queue_removed(&mut self, number: u16) {
        if number >= self.granted {
            self.queues_removed(number);
        } else {
            self.info.queues = number;
        }
    }

    /// The host has said how sent frames are to be spread. A table that names channels which there are not is of no use.
    pub(super) fn handle_table(&mut self, table: [u32; TABLE_ENTRIES]) {
        if table.iter().all(|channel| *channel <= u32::from(self.granted)) {
            self.info.send_table = Some(table);
            self.events.push_back(NicEvent::SendTable);
        } else {
            self.stats.bad.table += 1;
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Working,
    /// No new frames are taken.
    Stopping,
    Failed(NicError),
}

/// One sub-channel of a NIC: a queue each way.
///
/// Its owner calls [`NicQueue::poll`] when the host's doorbell for this channel rang, and when [`NicQueue::has_more`].
#[derive(Debug)]
pub struct NicQueue<D = SignalFlag> {
    number: u16,
    version: Version,
    link: Link<D>,
    transmit: Transmit,
    receive: Receive,
    stats: NicStats,
    packet: Box<[u8]>,
    state: State,
    flushing: bool,
    more: bool,
}

impl<D: Doorbell> NicQueue<D> {
    /// The number of the sub-channel, from 1.
    #[must_use]
    pub fn number(&self) -> u16 {
        self.number
    }

    /// Reads what the host has sent, hands received frames to `sink`, completes what is done and sends what has waited for
    /// room. Reads a bounded number of packets.
    ///
    /// # Errors
    /// Why the queue does not work any more; again on every later call.
    pub fn poll(&mut self, sink: &mut dyn FnMut(RxFrame<'_>)) -> Result<(), NicError> {
        self.more = false;
        if let State::Failed(error) = self.state {
            return Err(error);
        }
        self.work(sink).inspect_err(|error| self.fail(*error))
    }

    /// Tells the taps of its channel what time it is ([`Channel::set_time`]).
    pub fn set_time(&mut self, now: Instant) {
        self.link.channel.set_time(now);
    }

    fn fail(&mut self, error: NicError) {
        self.state = State::Failed(error);
        self.transmit.loans.lose();
    }

    fn work(&mut self, sink: &mut dyn FnMut(RxFrame<'_>)) -> Result<(), NicError> {
        let mut budget = PACKETS_PER_POLL;
        loop {
            self.link.channel.mask()?;
            while budget > 0 && self.link.can_owe() && self.read(sink)? {
                budget -= 1;
            }
            self.pump()?;
            let unread = self.link.channel.arm()?;
            if !unread {
                return Ok(());
            }
            if budget == 0 {
                self.more = true;
                return Ok(());
            }
            if !self.link.can_owe() {
                // The ring is full of what was sent; the host rings when it has made room.
                return Ok(());
            }
        }
    }

    /// Reads one packet. False if there is none.
    fn read(&mut self, sink: &mut dyn FnMut(RxFrame<'_>)) -> Result<bool, NicError> {
        let mut buffer = core::mem::take(&mut self.packet);
        let read = match self.link.channel.receive(&mut buffer) {
            Ok(Some(packet)) => self.handle_packet(&packet, sink).map(|()| true),
            Ok(None) => Ok(false),
            Err(ReceiveError::Packet(_)) => {
                self.stats.bad.packet += 1;
                Ok(true)
            }
            Err(ReceiveError::Ring(error)) => Err(error.into()),
        };
        self.packet = buffer;
        read
    }

    fn handle_packet(
        &mut self,
        packet: &Packet<'_>,
        sink: &mut dyn FnMut(RxFrame<'_>),
    ) -> Result<(), NicError> {
        let id = packet.transaction_id;
        let status = match packet.kind {
            PacketKind::TransferPages { pageset, ranges } => {
                self.stats.rx_packets += 1;
                let message = HostMessage::decode(packet.payload, self.version);
                let mut good = self.receive.accepts(pageset, message, &mut self.stats.bad);
                if good {
                    for range in ranges.iter() {
                        good &= self.handle_range(range, sink);
                    }
                    good &= self.receive.end_packet(&mut self.stats.bad);
                }
                Some(if good { Status::SUCCESS } else { Status::FAILURE })
            }
            PacketKind::Completion => {
                self.handle_completion(id, packet.payload);
                return Ok(());
            }
            PacketKind::InBand => {
                self.stats.bad.unexpected += 1;
                None
            }
            PacketKind::GpaDirect(_) => {
                self.stats.bad.gpa_direct += 1;
                Some(Status::FAILURE)
            }
        };
        if packet.completion_requested && !self.link.complete(id, status)? {
            self.stats.completions_delayed += 1;
        }
        Ok(())
    }

    fn handle_range(
        &mut self,
        range: vmbus::packet::TransferRange,
        sink: &mut dyn FnMut(RxFrame<'_>),
    ) -> bool {
        match self.receive.content(range, &mut [], &mut self.stats.bad) {
            Some(Content::Frame(frame)) => {
                self.stats.rx_frames += 1;
                self.stats.rx_bytes += frame.len() as u64;
                sink(frame);
                true
            }
            Some(Content::Part) => true,
            // Control messages belong on the primary channel.
            Some(Content::Control(_)) => {
                self.stats.bad.control += 1;
                false
            }
            None => false,
        }
    }

    fn handle_completion(&mut self, id: u64, payload: &[u8]) {
        let Some(slot) = self.transmit.completed(id) else {
            self.stats.bad.completion += 1;
            return;
        };
        self.stats.tx_completed += 1;
        let status = match HostMessage::decode(payload, self.version) {
            Ok(HostMessage::RndisPacketComplete { status }) => {
                self.stats.sent(status);
                status
            }
            _ => {
                self.stats.bad.answer += 1;
                Status::NONE
            }
        };
        self.stats.tx_refused += u64::from(status != Status::SUCCESS);
        if self.transmit.loans.any() {
            self.transmit.loans.give_back(slot, status);
        }
    }

    /// Puts everything that waits into the ring, as far as there is room, and shows it to the host.
    fn pump(&mut self) -> Result<(), NicError> {
        while let Sent::NoRoom(need) = self.stage_waiting()? {
            if !self.link.channel.request_space(need)? {
                return Ok(());
            }
        }
        Ok(self.link.channel.commit()?)
    }

    fn stage_waiting(&mut self) -> Result<Sent, NicError> {
        if let full @ Sent::NoRoom(_) = self.link.pump()? {
            return Ok(full);
        }
        if !self.flushing {
            return Ok(Sent::Yes);
        }
        let sent = self.transmit.close(&mut self.link, &mut self.stats)?;
        self.flushing = sent != Sent::Yes;
        Ok(sent)
    }

    /// Takes a frame to be sent. The host may see it only after [`NicQueue::flush`].
    ///
    /// # Errors
    /// [`TransmitError`]; the frame was then not taken.
    #[inline]
    pub fn transmit(&mut self, frame: &[u8]) -> Result<(), TransmitError> {
        self.check()?;
        let taken = self.transmit.transmit(&mut self.link, frame, &mut self.stats);
        self.taken(taken)
    }

    /// Takes a frame with work for the host. Otherwise like [`NicQueue::transmit`].
    ///
    /// # Errors
    /// [`TransmitError`]; the frame was then not taken.
    pub fn transmit_with(&mut self, frame: &TxFrame<'_>) -> Result<(), TransmitError> {
        self.check()?;
        let taken = self.transmit.transmit_with(&mut self.link, frame, &mut self.stats);
        self.taken(taken)
    }

    /// Takes a frame most of which lies in the caller's own pages; see [`Nic::transmit_pages`].
    ///
    /// # Errors
    /// [`TransmitError`]; the frame was then not taken.
    pub fn transmit_pages(&mut self, frame: &PagedFrame<'_>) -> Result<Lending, TransmitError> {
        self.check()?;
        let taken = self.transmit.transmit_pages(&mut self.link, frame, &mut self.stats);
        if let Err(TransmitError::Failed(error)) = taken {
            self.fail(error);
        }
        taken
    }

    /// The next frame whose pages are the caller's again; see [`Nic::poll_returned`].
    pub fn poll_returned(&mut self) -> Option<Returned> {
        self.transmit.loans.poll_returned()
    }

    /// The channel has ended, or will: nothing more is sent or read, and what was lent comes back without a status.
    pub fn abandon(&mut self) {
        if self.state == State::Working {
            self.state = State::Stopping;
        }
        self.transmit.loans.lose();
    }

    /// What is lent on this queue. The queue is at its end.
    pub(super) fn loans(&mut self) -> &mut Loans {
        &mut self.transmit.loans
    }

    fn check(&self) -> Result<(), TransmitError> {
        if self.state == State::Working { Ok(()) } else { Err(TransmitError::NotReady) }
    }

    fn taken(&mut self, taken: Result<(), TransmitError>) -> Result<(), TransmitError> {
        if let Err(TransmitError::Failed(error)) = taken {
            self.fail(error);
        }
        taken
    }

    /// Shows the host everything taken so far, with one doorbell at most. What finds no room in the ring goes out in a later
    /// [`NicQueue::poll`].
    pub fn flush(&mut self) {
        if matches!(self.state, State::Failed(_)) {
            return;
        }
        self.flushing = true;
        if let Err(error) = self.pump() {
            self.fail(error);
        }
    }

    /// Whether there is more to read than one poll takes: poll again at once.
    #[must_use]
    pub fn has_more(&self) -> bool {
        self.more
    }

    /// Takes no more frames; what was taken goes out. When [`NicQueue::is_idle`], the channel can be closed.
    pub fn stop(&mut self) {
        self.flush();
        if self.state == State::Working {
            self.state = State::Stopping;
        }
    }

    /// Whether the host has dealt with everything that was sent.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.transmit.is_idle() && self.link.is_empty()
    }

    /// Slots of the send buffer that it keeps although they are free.
    pub(super) fn kept_slots(&self) -> usize {
        self.transmit.kept()
    }

    /// What the queue did.
    #[must_use]
    pub fn stats(&self) -> NicStats {
        self.stats
    }

    /// What went over the channel.
    #[must_use]
    pub fn channel_stats(&self) -> ChannelStats {
        self.link.channel.stats()
    }

    /// Signals the host by another doorbell from now on, and returns the one before; see [`Channel::set_doorbell`]. The new one is to be
    /// rung once.
    #[must_use = "the old doorbell may keep memory alive"]
    pub fn set_doorbell(&mut self, doorbell: D) -> D {
        self.link.channel.set_doorbell(doorbell)
    }

    /// Takes the queue apart. Slots of the send buffer that the host has not given back stay out of use; the others go to the
    /// other queues. What was lent and is still to come back has to be asked for before ([`NicQueue::abandon`]). With the channel come
    /// the pages of frames that the host has not completed: it may still read them until it has let go of the channel.
    #[must_use]
    pub fn into_parts(mut self) -> (Channel<SharedPages, D>, Vec<SharedPages>) {
        let lent = self.transmit.loans.take_lent();
        self.transmit.give_up();
        (self.link.channel, lent)
    }
}

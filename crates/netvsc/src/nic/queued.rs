//! A NIC with all its queues in one hand: for guests that drive a card from one thread.
//!
//! [`QueuedNic`] asks the host for as many channels as its NIC is configured for, makes queues of them as they are opened, has the
//! host spread what it delivers, and spreads what is sent: by the host's table if it sent one, evenly otherwise. All frames of a
//! flow take one queue. When the way they are spread changes, new frames wait until the host has dealt with the older ones,
//! so that none overtakes another.

use alloc::boxed::Box;
use alloc::collections::VecDeque;
use alloc::vec::Vec;
use core::time::Duration;

use vmbus::Instant;
use vmbus::channel::{Channel, Doorbell, SignalFlag};
use vmbus::memory::SharedPages;
use vmbus::time::earliest;

use super::flow::{self, Head};
use super::frame::TxFrame;
use super::pages::{Lending, PagedFrame, Returned};
use super::queue::{NicQueue, QueueError};
use super::receive::RxFrame;
use super::restart::{Remains, RestartError};
use super::settings::SettingError;
use super::stats::{NicStats, QueueTotals};
use super::synthetic::refused;
use super::types::{Lack, NicError, NicEvent, Step, TransmitError};
use super::{ConfigError, Nic, SharedBuffer, Stage};
use crate::adapter::{Frame, Refused, Sign, Synthetic};
use crate::nvsp::TABLE_ENTRIES;
use crate::port::{Path, PathOffloads, PortSettings};
use crate::rndis::Oid;
use crate::rndis::packet::ReceiveChecksum;
use crate::rndis::scaling::{KEY_SIZE, Scaling};

/// How long the sub-channels that the host has granted are waited for before frames are spread over those that there are.
const PATIENCE: Duration = Duration::from_secs(5);

/// A NIC and its queues. With a single queue it is the NIC and costs nothing more.
#[derive(Debug)]
pub struct QueuedNic<D = SignalFlag> {
    nic: Nic<D>,
    /// By their numbers.
    queues: Vec<NicQueue<D>>,
    /// Sub-channels that wait until a slot of the send buffer is free for their queue.
    waiting: Vec<(u16, Channel<SharedPages, D>)>,
    /// The key by which the host spreads frames.
    key: Box<[u8; KEY_SIZE]>,
    /// The host is told to spread frames once all granted queues are there, or then.
    scale_by: Option<Instant>,
    /// It is to be told once it has answered what it was told before.
    scale_after: bool,
    /// The host's table by which frames are spread, if it sent one.
    table: Option<[u32; TABLE_ENTRIES]>,
    /// Channels that frames are spread over, unless the table says so.
    spread_over: usize,
    /// The way frames are spread is to change once none is under way.
    respread: bool,
    /// It goes down once the queues are idle.
    leaving: bool,
    /// When it is reported that they are not yet.
    leave_by: Option<Instant>,
    /// The channel that took the last frame.
    last: u16,
    /// What queues did that are gone, by their numbers.
    past: Vec<QueueTotals>,
    /// What came back from queues that are gone.
    returned: VecDeque<Returned>,
}

impl<D: Doorbell> QueuedNic<D> {
    /// A NIC that is starting up. The host spreads what it delivers by a hash with this key.
    #[must_use]
    pub fn new(nic: Nic<D>, key: [u8; KEY_SIZE]) -> Self {
        Self {
            nic,
            queues: Vec::new(),
            waiting: Vec::new(),
            key: Box::new(key),
            scale_by: None,
            scale_after: false,
            table: None,
            spread_over: 1,
            respread: false,
            leaving: false,
            leave_by: None,
            last: 0,
            past: Vec::new(),
            returned: VecDeque::new(),
        }
    }

    /// The NIC, for what concerns all queues.
    #[must_use]
    pub fn nic(&self) -> &Nic<D> {
        &self.nic
    }

    /// The NIC, for what can be set at work. Frames, the way down and a new beginning are not for it alone.
    pub fn nic_mut(&mut self) -> &mut Nic<D> {
        &mut self.nic
    }

    /// Channels in use, the primary one included.
    #[must_use]
    pub fn channels(&self) -> usize {
        1 + self.queues.len()
    }

    /// Whether sub-channel `number` is a queue, or about to become one.
    #[must_use]
    pub fn has_queue(&self, number: u16) -> bool {
        let waiting = self.waiting.iter().map(|(number, _)| *number);
        self.queues.iter().map(NicQueue::number).chain(waiting).any(|known| known == number)
    }

    /// Signals the host by another doorbell on sub-channel `number`, or on the primary channel, which is number 0; see
    /// [`Channel::set_doorbell`].
    ///
    /// # Errors
    /// The doorbell again, if no queue has that number.
    pub fn set_doorbell(&mut self, number: u16, doorbell: D) -> Result<D, D> {
        if number == 0 {
            return Ok(self.nic.set_doorbell(doorbell));
        }
        let waiting = self.waiting.iter_mut().find(|(waiting, _)| *waiting == number);
        match (self.queues.iter_mut().find(|queue| queue.number() == number), waiting) {
            (Some(queue), _) => Ok(queue.set_doorbell(doorbell)),
            (None, Some((_, channel))) => Ok(channel.set_doorbell(doorbell)),
            (None, None) => Err(doorbell),
        }
    }

    /// What each channel did since the NIC was made, by its number, also those that are gone.
    #[must_use]
    pub fn totals(&self) -> Vec<QueueTotals> {
        let last = self.queues.last().map_or(0, NicQueue::number);
        let mut totals = self.past.clone();
        totals.resize(totals.len().max(1 + usize::from(last)), QueueTotals::default());
        if let Some(first) = totals.first_mut() {
            *first = *first + QueueTotals::from(self.nic.stats());
        }
        for queue in &self.queues {
            if let Some(total) = totals.get_mut(usize::from(queue.number())) {
                *total = *total + QueueTotals::from(queue.stats());
            }
        }
        totals
    }

    /// What the NIC did. Work on frames is that of all queues that there are; messages and what was wrong with them are those of the
    /// primary channel, and of the others in [`QueuedNic::totals`].
    #[must_use]
    pub fn stats(&self) -> NicStats {
        let mut sum = self.nic.stats();
        for stats in self.queues.iter().map(NicQueue::stats) {
            sum.tx_large = sum.tx_large.saturating_add(stats.tx_large);
            sum.tx_checksums = sum.tx_checksums.saturating_add(stats.tx_checksums);
        }
        sum
    }

    /// Slots of the send buffer that have frames under way on any channel.
    #[must_use]
    pub fn busy_slots(&self) -> usize {
        let kept = self.queues.iter().map(NicQueue::kept_slots).sum();
        self.nic.busy_slots().saturating_sub(kept)
    }

    /// Makes a queue of sub-channel `number`, which has just been opened. If all slots of the send buffer are in use, that is done in
    /// a later poll.
    ///
    /// # Errors
    /// [`QueueError`]. The channel is then still to be closed.
    pub fn add_queue(
        &mut self,
        number: u16,
        channel: Channel<SharedPages, D>,
    ) -> Result<(), QueueError> {
        if self.leaving {
            return Err(QueueError::NotReady);
        }
        if self.nic.stage == Stage::Ready && !self.nic.transmit.can_share() {
            self.waiting.push((number, channel));
            return Ok(());
        }
        let queue = self.nic.add_queue(number, channel)?;
        self.drop_queue(number);
        let at = self.queues.partition_point(|other| other.number() < number);
        self.queues.insert(at, queue);
        self.respread = true;
        // One that comes after the host was told gets its share, too.
        self.scale_by.get_or_insert(self.nic.now);
        Ok(())
    }

    /// The host has taken a sub-channel back. What it had not dealt with is lost. The others go on.
    pub fn remove_queue(&mut self, number: u16, now: Instant) {
        self.waiting.retain(|(waiting, _)| *waiting != number);
        if !self.drop_queue(number) {
            return;
        }
        let last = self.queues.last().is_none_or(|last| last.number() < number);
        if last {
            self.nic.last_queue_removed(number);
        }
        self.respread = true;
        self.scale_by.get_or_insert(now);
    }

    fn drop_queue(&mut self, number: u16) -> bool {
        let Some(at) = self.queues.iter().position(|queue| queue.number() == number) else {
            return false;
        };
        let mut queue = self.queues.remove(at);
        self.keep_totals(&queue);
        self.keep_returned(&mut queue);
        // The free slots of the send buffer go to the others. Of a channel that is taken back the host reads nothing any more.
        drop(queue.into_parts());
        true
    }

    fn keep_totals(&mut self, queue: &NicQueue<D>) {
        let number = usize::from(queue.number());
        self.past.resize(self.past.len().max(number + 1), QueueTotals::default());
        if let Some(total) = self.past.get_mut(number) {
            *total = *total + QueueTotals::from(queue.stats());
        }
    }

    fn keep_returned(&mut self, queue: &mut NicQueue<D>) {
        queue.abandon();
        self.returned.extend(core::iter::from_fn(|| queue.poll_returned()));
    }

    /// Takes a frame most of which lies in the caller's own pages, on the queue of its flow; see [`Nic::transmit_pages`]. The host may
    /// see it after the next flush.
    ///
    /// # Errors
    /// [`TransmitError`]; the frame was then not taken.
    pub fn transmit_pages(&mut self, frame: &PagedFrame<'_>) -> Result<Lending, TransmitError> {
        self.check()?;
        let place = self.place(flow::of(frame.head));
        let queue = place.and_then(|at| self.queues.get_mut(at));
        self.last = queue.as_ref().map_or(0, |queue| queue.number());
        match queue {
            Some(queue) => queue.transmit_pages(frame),
            None => self.nic.transmit_pages(frame),
        }
    }

    /// The next frame whose pages are the caller's again, of whatever queue; see [`Nic::poll_returned`].
    pub fn poll_returned(&mut self) -> Option<Returned> {
        self.returned
            .pop_front()
            .or_else(|| self.nic.poll_returned())
            .or_else(|| self.queues.iter_mut().find_map(NicQueue::poll_returned))
    }

    /// The channels are closed or about to be: nothing is left of the queues but what they did.
    fn forget_queues(&mut self) {
        for mut queue in core::mem::take(&mut self.queues) {
            self.keep_totals(&queue);
            self.keep_returned(&mut queue);
            self.nic.transmit.loans.adopt(queue.loans());
        }
        self.waiting.clear();
        (self.table, self.spread_over, self.respread) = (None, 1, false);
        (self.scale_by, self.scale_after) = (None, false);
        (self.leaving, self.leave_by) = (false, None);
    }

    /// Begins the way down: the queues first, and when the host has dealt with what they sent, the NIC ([`Nic::shutdown`]). New frames
    /// are not taken. If the host takes its time, [`NicEvent::Overdue`] says so, and [`QueuedNic::abandon`] goes on without it.
    pub fn shutdown(&mut self, now: Instant) {
        if self.leaving {
            return;
        }
        self.queues.iter_mut().for_each(NicQueue::stop);
        (self.leaving, self.leave_by) = (true, Some(now + self.nic.config().deadline));
        self.leave(now);
    }

    /// Goes on with the way down without what the host owes on any channel ([`Nic::abandon`]); begins it if nobody has.
    pub fn abandon(&mut self, now: Instant) {
        self.queues.iter_mut().for_each(NicQueue::abandon);
        (self.leaving, self.leave_by) = (false, None);
        self.nic.abandon(now);
    }

    fn leave(&mut self, now: Instant) {
        let failed = matches!(self.nic.stage, Stage::Failed(_));
        if failed || self.queues.iter().all(NicQueue::is_idle) {
            (self.leaving, self.leave_by) = (false, None);
            self.nic.shutdown(now);
        } else if self.leave_by.is_some_and(|by| by <= now) {
            self.leave_by = None;
            self.nic.report_overdue(Step::Drain);
        }
    }

    /// Starts the NIC on another channel ([`Nic::restart`]); its queues follow as they did the first time.
    ///
    /// # Errors
    /// [`RestartError`], as there.
    pub fn restart(
        &mut self,
        channel: Channel<SharedPages, D>,
        receive: SharedBuffer,
        send: Option<SharedBuffer>,
        now: Instant,
    ) -> Result<Remains<D>, RestartError<D>> {
        let outcome = self.nic.restart(channel, receive, send, now);
        match outcome {
            // As it was.
            Err(RestartError {
                error: ConfigError::AtWork | ConfigError::NoSendBuffer, ..
            }) => outcome,
            Ok(mut remains) => {
                remains.lent.append(&mut self.take_queues_lent());
                Ok(remains)
            }
            Err(mut failed) => {
                failed.remains.lent.append(&mut self.take_queues_lent());
                Err(failed)
            }
        }
    }

    /// Takes the NIC and its queues apart. The channels of the queues are closed with the first.
    #[must_use]
    pub fn into_parts(mut self) -> Remains<D> {
        self.forget_queues();
        self.nic.into_parts()
    }

    /// The queues are at their end: what the host has not completed of what was lent on them.
    fn take_queues_lent(&mut self) -> Vec<SharedPages> {
        self.forget_queues();
        self.nic.transmit.loans.take_orphans()
    }

    fn read(&mut self, now: Instant, sink: &mut dyn FnMut(&dyn Frame)) -> Result<(), NicError> {
        self.nic.poll(now, &mut |frame| sink(&frame))?;
        for queue in &mut self.queues {
            let number = queue.number();
            queue.set_time(now);
            queue.poll(&mut |frame| sink(&OnQueue { frame, number }))?;
        }
        Ok(())
    }

    /// The place among the queues of the one that a flow takes; `None` for the primary channel.
    fn place(&self, flow: u32) -> Option<usize> {
        let number = match &self.table {
            Some(table) => *table.get(flow as usize % TABLE_ENTRIES)?,
            None => flow % u32::try_from(self.spread_over).ok()?.max(1),
        };
        let at = usize::try_from(number).ok()?.checked_sub(1)?;
        let is = |queue: &NicQueue<D>| u32::from(queue.number()) == number;
        // Mostly all are there; a number that is missing sends its flows to the primary channel.
        if self.queues.get(at).is_some_and(is) { Some(at) } else { self.queues.iter().position(is) }
    }

    /// Whether no frame is under way on any channel.
    fn all_idle(&self) -> bool {
        self.nic.transmit.is_idle() && self.queues.iter().all(NicQueue::is_idle)
    }

    /// Whether frames are taken now. If the way they are spread has changed, that waits until none is under way.
    fn check(&mut self) -> Result<(), TransmitError> {
        if self.leaving || self.nic.stage != Stage::Ready {
            return Err(TransmitError::NotReady);
        }
        if self.respread {
            self.flush_all();
            if !self.all_idle() {
                return Err(TransmitError::Full(Lack::Order));
            }
            self.respread = false;
            self.table = self.nic.info.send_table;
            self.spread_over = self.channels();
        }
        Ok(())
    }

    fn flush_all(&mut self) {
        self.nic.flush();
        self.queues.iter_mut().for_each(NicQueue::flush);
    }

    /// Has the host spread frames over the channels that there are, once all of them are there.
    fn scale(&mut self, now: Instant) {
        let complete = self.queues.len() >= usize::from(self.nic.granted);
        if !self.scale_by.is_some_and(|by| complete || by <= now) {
            return;
        }
        let numbers: Vec<u16> =
            core::iter::once(0).chain(self.queues.iter().map(NicQueue::number)).collect();
        let count = u16::try_from(numbers.len()).unwrap_or(u16::MAX);
        let mut scaling = Scaling::even(count, *self.key);
        for entry in &mut scaling.table {
            *entry = numbers.get(usize::from(*entry)).copied().unwrap_or(0);
        }
        match self.nic.set_scaling(Some(&scaling), now) {
            // Again when that has been answered, or is overdue.
            Err(SettingError::UnderWay(_)) => (self.scale_by, self.scale_after) = (None, true),
            Ok(()) => self.scale_by = None,
            Err(error) => {
                tracing::debug!(%error, "frames are not spread");
                self.scale_by = None;
            }
        }
    }

    /// Asks the host for the queues that the NIC is configured for, as many as it says it has.
    fn ask_for_queues(&mut self) {
        let offered = self.nic.info.scaling.map_or(1, |scaling| scaling.queues);
        let wanted = u32::from(self.nic.config.queues).min(offered).saturating_sub(1);
        let wanted = u16::try_from(wanted).unwrap_or(u16::MAX);
        if wanted > 0
            && let Err(error) = self.nic.request_queues(wanted, self.nic.now)
        {
            tracing::debug!(%error, "no more queues");
        }
    }

    fn add_waiting(&mut self) {
        while self.nic.transmit.can_share()
            && let Some((number, channel)) = self.waiting.pop()
        {
            if let Err(error) = self.add_queue(number, channel) {
                tracing::debug!(%error, "a sub-channel stays unused");
            }
        }
    }
}

/// A frame of a sub-channel.
struct OnQueue<'a> {
    frame: RxFrame<'a>,
    number: u16,
}

impl Frame for OnQueue<'_> {
    fn len(&self) -> usize {
        self.frame.len()
    }

    fn copy_to(&self, out: &mut [u8]) -> usize {
        self.frame.copy_to(out)
    }

    fn checksum(&self) -> ReceiveChecksum {
        self.frame.checksum()
    }

    fn hash(&self) -> Option<u32> {
        self.frame.hash()
    }

    fn queue(&self) -> u16 {
        self.number
    }
}

impl<D: Doorbell> Synthetic for QueuedNic<D> {
    type Event = NicEvent;
    type Error = NicError;

    fn poll(&mut self, now: Instant, sink: &mut dyn FnMut(&dyn Frame)) -> Result<(), NicError> {
        if let Err(error) = self.read(now, sink) {
            // One queue that does not work any more takes the NIC with it.
            self.nic.fail(error);
            self.queues.iter_mut().for_each(NicQueue::abandon);
            (self.scale_by, self.leaving, self.leave_by) = (None, false, None);
            return Err(error);
        }
        self.add_waiting();
        self.scale(now);
        if self.leaving {
            self.leave(now);
        }
        Ok(())
    }

    fn poll_event(&mut self) -> Option<NicEvent> {
        let event = self.nic.poll_event()?;
        match event {
            NicEvent::Ready { .. } => self.ask_for_queues(),
            NicEvent::QueuesGranted { count: 1.. } => self.scale_by = Some(self.nic.now + PATIENCE),
            NicEvent::SendTable => self.respread = true,
            NicEvent::Set { oid: Oid::RSS_PARAMETERS, .. }
            | NicEvent::Overdue { step: Step::Set(Oid::RSS_PARAMETERS) }
                if self.scale_after =>
            {
                (self.scale_by, self.scale_after) = (Some(self.nic.now), false);
            }
            NicEvent::Stopped => self.forget_queues(),
            _ => {}
        }
        Some(event)
    }

    fn sign(event: &NicEvent) -> Option<Sign> {
        <Nic<D> as Synthetic>::sign(event)
    }

    fn poll_deadline(&self) -> Option<Instant> {
        let more = self.queues.iter().any(NicQueue::has_more).then_some(self.nic.now);
        let own = earliest(earliest(self.scale_by, self.leave_by), more);
        earliest(self.nic.poll_deadline(), own)
    }

    fn transmit(&mut self, frame: &[u8]) -> Result<(), Refused> {
        if self.queues.is_empty() && !self.respread && !self.leaving {
            return self.nic.transmit(frame).map_err(refused);
        }
        self.check().map_err(refused)?;
        let place = self.place(flow::of(frame));
        let queue = place.and_then(|at| self.queues.get_mut(at));
        self.last = queue.as_ref().map_or(0, |queue| queue.number());
        match queue {
            Some(queue) => queue.transmit(frame).map_err(refused),
            None => self.nic.transmit(frame).map_err(refused),
        }
    }

    fn transmit_with(&mut self, frame: &TxFrame<'_>) -> Result<(), Refused> {
        if self.queues.is_empty() && !self.respread && !self.leaving {
            return self.nic.transmit_with(frame).map_err(refused);
        }
        self.check().map_err(refused)?;
        let place = self.place(flow::of(&Head::of(frame.pieces)));
        let queue = place.and_then(|at| self.queues.get_mut(at));
        self.last = queue.as_ref().map_or(0, |queue| queue.number());
        match queue {
            Some(queue) => queue.transmit_with(frame).map_err(refused),
            None => self.nic.transmit_with(frame).map_err(refused),
        }
    }

    fn transmit_pages(&mut self, frame: &PagedFrame<'_>) -> Result<Lending, Refused> {
        QueuedNic::transmit_pages(self, frame).map_err(refused)
    }

    fn poll_returned(&mut self) -> Option<Returned> {
        QueuedNic::poll_returned(self)
    }

    fn last_queue(&self) -> u16 {
        if self.queues.is_empty() { 0 } else { self.last }
    }

    fn offloads(&self) -> PathOffloads {
        Synthetic::offloads(&self.nic)
    }

    fn settings(&self) -> Option<PortSettings> {
        Synthetic::settings(&self.nic)
    }

    fn flush(&mut self) {
        self.flush_all();
    }

    fn is_idle(&self) -> bool {
        self.all_idle()
    }

    fn switch_data_path(&mut self, path: Path, now: Instant) {
        self.nic.switch_data_path(path, now);
    }
}

//! Frames out of the caller's pages on their way out, and the pages on their way back.
//!
//! The RNDIS header and the head of the frame go into a send section, and behind it the packet names the pages (PROTOCOL §7.4,
//! form b), so that nothing of the caller's is written to. The slot of that section stands for the frame until the host has
//! completed it: what is lent is limited by what the send buffer has room for.

use alloc::collections::VecDeque;
use alloc::vec::Vec;

use vmbus::channel::Doorbell;
use vmbus::memory::SharedPages;
use vmbus::packet::Outgoing;

use super::frame::Split;
use super::link::{Link, Sent};
use super::offload;
use super::pages::{Lending, MOST_LENT, PageRanges, PageSlice, PagedFrame, PagesError, Returned};
use super::stats::NicStats;
use super::transmit::{HEADERS, Transmit};
use super::types::{Lack, NicError, TransmitError};
use crate::nvsp::{ChannelType, SectionUse, Status, rndis_packet};
use crate::rndis::packet::LargeSend;

/// Frames at most that are lent, or have come back and were not asked for.
const MOST_OUT: usize = 1024;

/// A frame whose pages the host may read.
#[derive(Debug)]
struct Loan {
    token: u64,
    /// Views of the pages, so that nobody gets the memory meanwhile.
    pages: Vec<SharedPages>,
    /// The caller was told that it is lost.
    told: bool,
}

/// The frames of one queue that are lent or have come back.
#[derive(Debug, Default)]
pub(super) struct Loans {
    /// By slot.
    out: Vec<Option<Loan>>,
    count: usize,
    returned: VecDeque<Returned>,
    /// Lists for the next loans, so that none has to be allocated.
    spare: Vec<Vec<SharedPages>>,
    ranges: PageRanges,
    /// Views of what is lent on queues that are no more.
    orphans: Vec<SharedPages>,
}

impl Loans {
    fn has_room(&self) -> bool {
        self.count + self.returned.len() < MOST_OUT
    }

    fn lend(&mut self, slot: u32, token: u64, body: &[PageSlice]) {
        let slot = slot as usize;
        if self.out.len() <= slot {
            self.out.resize_with(slot + 1, || None);
        }
        let mut pages = self.spare.pop().unwrap_or_default();
        pages.extend(body.iter().map(|slice| slice.pages().clone()));
        if let Some(out) = self.out.get_mut(slot) {
            *out = Some(Loan { token, pages, told: false });
            self.count += 1;
        }
    }

    /// Whether anything is lent.
    #[inline]
    pub(super) fn any(&self) -> bool {
        self.count > 0
    }

    /// The host has completed what a slot stood for.
    pub(super) fn give_back(&mut self, slot: u32, status: Status) {
        let loan = self.out.get_mut(slot as usize).and_then(Option::take);
        let Some(Loan { token, mut pages, told }) = loan else { return };
        pages.clear();
        self.spare.push(pages);
        self.count -= 1;
        if !told {
            self.returned.push_back(Returned { token, status: Some(status) });
        }
    }

    /// Nothing is completed any more. The views are kept: the host may still read.
    pub(super) fn lose(&mut self) {
        for loan in self.out.iter_mut().flatten().filter(|loan| !loan.told) {
            loan.told = true;
            self.returned.push_back(Returned { token: loan.token, status: None });
        }
    }

    pub(super) fn poll_returned(&mut self) -> Option<Returned> {
        self.returned.pop_front()
    }

    /// What came back to another queue is told of here.
    pub(super) fn take_over(&mut self, other: &mut Self) {
        other.lose();
        self.returned.append(&mut other.returned);
    }

    /// Keeps views of what another queue has lent, for the host may still read it.
    pub(super) fn adopt(&mut self, other: &mut Self) {
        self.orphans.append(&mut other.take_lent());
    }

    /// Views of what is lent on queues that are no more.
    pub(super) fn take_orphans(&mut self) -> Vec<SharedPages> {
        core::mem::take(&mut self.orphans)
    }

    /// Views of everything that the host has not completed, and may still read.
    pub(super) fn take_lent(&mut self) -> Vec<SharedPages> {
        self.lose();
        let mut lent = self.take_orphans();
        for loan in self.out.iter_mut().filter_map(Option::take) {
            lent.extend(loan.pages);
        }
        self.count = 0;
        lent
    }
}

impl Transmit {
    /// What pages may be lent: in how many ranges, or why none, and from how many bytes on.
    pub(super) fn allow_lending(&mut self, ranges: Result<usize, PagesError>, from: usize) {
        self.lending = ranges;
        self.lend_from = from;
    }

    /// Takes one frame, most of which lies in pages. On [`TransmitError::Full`] what was taken before is shown to the host.
    pub(super) fn transmit_pages<D: Doorbell>(
        &mut self,
        link: &mut Link<D>,
        frame: &PagedFrame<'_>,
        stats: &mut NicStats,
    ) -> Result<Lending, TransmitError> {
        let most = self.lending?;
        let split = frame.split()?;
        let large = frame.work.large_send.map(|send| offload::moved_send(send, split.cut));
        let copies = self.check_pages(frame, &split, large)?;
        let body_len = frame.body_len();
        let ranges = self.loans.ranges.list(frame.body, most)?;
        let lends = ranges > 0 && ranges <= most && (body_len >= self.lend_from || !copies);
        if !lends {
            if !copies {
                return Err(PagesError::Scattered { ranges, most }.into());
            }
            let (info, patches) = self.requests(&split, &frame.work, large, stats)?;
            let (len, request) = (split.len(), (&info, &patches));
            self.copy(link, &split, len, request, large.is_some(), stats)?;
            stats.tx_bytes += frame.len() as u64;
            return Ok(Lending::Copied);
        }
        let room = self.slots.section().saturating_sub(HEADERS);
        if split.head_len() > room {
            return Err(PagesError::Head { len: frame.head.len(), most: room }.into());
        }
        let (info, patches) = self.requests(&split, &frame.work, large, stats)?;
        if !self.loans.has_room() {
            link.channel.commit().map_err(NicError::from)?;
            return Err(TransmitError::Full(Lack::Return));
        }
        let slot = self.next_slot(link, stats, false)?;
        let filled = self.fill(slot, &info, &split, &patches).map_err(TransmitError::from);
        let sent = filled.and_then(|head| self.send_pages(link, slot, head, stats));
        match sent {
            Ok(()) => self.loans.lend(slot, frame.token, frame.body),
            Err(error) => {
                self.slots.put_back(slot);
                return Err(error);
            }
        }
        stats.tx_frames += 1;
        stats.tx_bytes += frame.len() as u64;
        stats.tx_large += u64::from(large.is_some());
        stats.tx_messages += 1;
        stats.tx_lent += 1;
        Ok(Lending::Lent)
    }

    /// Whether the frame could be copied as well; an error if it is too long even to be lent.
    fn check_pages(
        &self,
        frame: &PagedFrame<'_>,
        split: &Split<'_>,
        large: Option<LargeSend>,
    ) -> Result<bool, TransmitError> {
        let len = split.len();
        let Some(send) = large else {
            self.check_length(frame.len(), len, split.tag)?;
            return Ok(true);
        };
        self.check_large(len, send, MOST_LENT.min(self.most_message()))?;
        Ok(len <= self.most_large())
    }

    /// Puts the message for the head in a slot and the listed ranges into the ring.
    fn send_pages<D: Doorbell>(
        &mut self,
        link: &mut Link<D>,
        slot: u32,
        head: usize,
        stats: &mut NicStats,
    ) -> Result<(), TransmitError> {
        let transaction_id = self.slots.next_id(slot);
        let section = SectionUse { index: self.slots.section_of(slot), bytes: head as u32 };
        let message = rndis_packet(ChannelType::DATA, Some(section));
        let payload = message.get(..self.message_size).unwrap_or(&message);
        loop {
            let sent = self.loans.ranges.with(|ranges| {
                link.stage(&Outgoing::GpaDirect { transaction_id, ranges, payload })
            })?;
            let Sent::NoRoom(need) = sent else { break };
            if !link.channel.request_space(need).map_err(NicError::from)? {
                stats.tx_ring_full += 1;
                return Err(TransmitError::Full(Lack::Ring));
            }
        }
        self.slots.sent(slot, transaction_id);
        Ok(())
    }
}

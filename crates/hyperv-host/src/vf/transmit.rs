//! The device's way out: frames in one buffer or several, and what the device does to them.

use netvsc::rndis::packet::{LargeSend as Request, TransmitChecksum};
use vmbus::Instant;
use vmbus::memory::SharedMemory;

use super::device::{AtWork, VfFault, VfPace, ahead, buffer_page};
use super::layout::{
    Descriptor, LARGEST_SEND, LONGEST_FRAME, TX_MORE, TX_PRODUCED, TX_WORK, WORK, WORK_TAG, Work,
    load, place,
};
use crate::nic::offload::{ChecksumRequest, LargeSend, OffloadError, Segments, fill_checksums};
use crate::switch::{Offered, Path, SwitchPort};

/// Bytes of the addresses of a frame.
const ADDRESSES: usize = 12;

bitflags::bitflags! {
    /// What a device does to frames on their way out, and whether it carries them at all.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
    pub struct VfFeatures: u32 {
        /// It computes checksums: the IPv4 header's, TCP's and UDP's.
        const CHECKSUM = 1;
        /// It cuts TCP segments of up to [`LARGEST_SEND`] bytes.
        const LARGE_SEND = 2;
        /// It puts 802.1Q tags in.
        const TAG = 4;
        /// It has no rings: frames go over an interface that guest and host both have, and which is theirs to find.
        const ELSEWHERE = 8;
        /// All that it can do to frames.
        const WORK = Self::CHECKSUM.bits() | Self::LARGE_SEND.bits() | Self::TAG.bits();
    }
}

impl AtWork<'_> {
    /// Forwards frames until there are no more or the switch takes no more; the number of descriptors done.
    pub(super) fn transmit(
        &mut self,
        port: &mut SwitchPort,
        now: Instant,
    ) -> Result<usize, VfFault> {
        let depth = self.queues.depth;
        let produced = load(self.registers, TX_PRODUCED);
        let waiting = ahead("TX_PRODUCED", produced, self.queues.tx_done, depth)?;
        self.counters.tx_seen += u64::from(produced.wrapping_sub(self.queues.tx_seen));
        self.queues.tx_seen = produced;
        let mut done = self.skip(waiting);
        while self.link && self.pace != VfPace::Stalled && done < waiting {
            let (descriptors, work) = self.gather(waiting - done, produced)?;
            let Some(offered) = self.forward(work, port, now)? else { break };
            match offered {
                Offered::Accepted => self.counters.tx_confirmed += u64::from(descriptors),
                Offered::Dropped(_) => self.counters.tx_dropped += u64::from(descriptors),
                Offered::Busy => break,
            }
            self.queues.tx_segments = 0;
            self.queues.tx_done = self.queues.tx_done.wrapping_add(descriptors);
            self.confirm();
            done += descriptors;
        }
        Ok(done as usize)
    }

    /// Puts the next frame together; how many descriptors it takes, and what is asked for it.
    fn gather(&mut self, waiting: u32, end: u32) -> Result<(u32, Work), VfFault> {
        self.frame.clear();
        let mut work = Work::default();
        for number in 0..waiting {
            let place = place(self.queues.tx_done.wrapping_add(number), self.queues.depth);
            let descriptor = Descriptor::read(&self.queues.tx_ring, place);
            let Descriptor { address, length, used: flags } = descriptor;
            let wrong = VfFault::Buffer { address, length };
            if length == 0 || length as usize > LONGEST_FRAME {
                return Err(wrong);
            }
            let start = self.frame.len();
            self.frame.resize(start + length as usize, 0);
            let Some(buffer) = self.queues.tx_buffers.get_mut(place) else { return Err(wrong) };
            let (page, offset) = buffer_page(buffer, self.memory, &descriptor)?;
            page.read(offset, &mut self.frame[start..]).map_err(|_| wrong)?;
            if number == 0 && flags & TX_WORK != 0 {
                let head = self.frame.first_chunk::<WORK>().ok_or(VfFault::Chain { end })?;
                work = Work::decode(*head);
                self.frame.drain(..WORK);
            }
            if self.frame.len() > LARGEST_SEND {
                return Err(VfFault::Length { length: self.frame.len() });
            }
            if flags & TX_MORE == 0 {
                return Ok((number + 1, work));
            }
        }
        Err(VfFault::Chain { end })
    }

    /// Does what is asked for and hands the frame on, or as many of its segments as are taken.
    fn forward(
        &mut self,
        work: Work,
        port: &mut SwitchPort,
        now: Instant,
    ) -> Result<Option<Offered>, VfFault> {
        let first = self.queues.tx_segments == 0;
        if work.large_send != 0 {
            return self.cut(Request::from_ppi(work.large_send), work.tag, first, port, now);
        }
        if self.frame.len() > LONGEST_FRAME {
            return Err(VfFault::Length { length: self.frame.len() });
        }
        if work.checksum != 0 {
            if !self.features.contains(VfFeatures::CHECKSUM) {
                return Err(OffloadError::NotOffered.into());
            }
            let asked = TransmitChecksum::from_bits_retain(work.checksum);
            let request = ChecksumRequest {
                ipv4_header: asked.contains(TransmitChecksum::IP_HEADER),
                tcp: asked.contains(TransmitChecksum::TCP),
                udp: asked.contains(TransmitChecksum::UDP),
                layer4_offset: asked.layer4(),
            };
            fill_checksums(self.frame, request)?;
        }
        self.put_tag(work.tag)?;
        let offered = port.accept_from_guest(Path::Vf, self.frame, now);
        if offered != Offered::Busy {
            self.counters.tx_checksums += u64::from(work.checksum != 0);
            self.counters.tx_tags += u64::from(work.tag != 0);
        }
        Ok(Some(offered))
    }

    fn cut(
        &mut self,
        request: Request,
        tag: u32,
        first: bool,
        port: &mut SwitchPort,
        now: Instant,
    ) -> Result<Option<Offered>, VfFault> {
        if !self.features.contains(VfFeatures::LARGE_SEND) {
            return Err(OffloadError::NotOffered.into());
        }
        self.put_tag(tag)?;
        let moved = if tag == 0 { 0 } else { 4 };
        let send = LargeSend {
            segment: request.segment as usize,
            tcp_offset: usize::from(request.layer4) + moved,
            ipv6: request.ipv6,
        };
        let segments = Segments::new(self.frame, send)?;
        self.counters.tx_large += u64::from(first);
        self.counters.tx_tags += u64::from(first && tag != 0);
        for index in self.queues.tx_segments..segments.count(self.frame) {
            segments.write(self.frame, index, self.segment);
            match port.accept_from_guest(Path::Vf, self.segment, now) {
                Offered::Busy => return Ok(None),
                Offered::Accepted | Offered::Dropped(_) => self.queues.tx_segments = index + 1,
            }
        }
        Ok(Some(Offered::Accepted))
    }

    fn put_tag(&mut self, tag: u32) -> Result<(), VfFault> {
        if tag & WORK_TAG == 0 {
            return Ok(());
        }
        if !self.features.contains(VfFeatures::TAG) || self.frame.len() < ADDRESSES {
            return Err(OffloadError::NotOffered.into());
        }
        let [high, low] = (tag as u16).to_be_bytes();
        self.frame.splice(ADDRESSES..ADDRESSES, [0x81, 0x00, high, low]);
        Ok(())
    }
}

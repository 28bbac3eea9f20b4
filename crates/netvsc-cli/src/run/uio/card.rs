//! The machine of a NIC over its uio device.

use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;
use std::time::Duration;

use netvsc::adapter::{Adapter, append};
use netvsc::nic::{Nic, NicError, NicQueue, SharedBuffer, TransmitError};
use netvsc::port::{PortLink, PortSettings};
use netvsc::rndis::scaling::{KEY_SIZE, Scaling};
use netvsc::{MacAddress, NicConfig, PortError, VfPort};
use netvsc_linux::uio::{Device, Interrupt, UioDoorbell, UioError};
use vmbus::time::earliest;
use vmbus::{Guid, Instant};

use crate::error::Error;
use crate::guest::{Sending, adapter_config, sending};
use crate::line::Line;

/// How often the kernel is asked for sub-channels that it has not opened yet.
const LOOK: Duration = Duration::from_millis(20);
/// And for how long, after the host has granted them.
const PATIENCE: Duration = Duration::from_secs(5);

/// The port of a NIC that takes no VF.
#[derive(Debug)]
pub(super) enum NoPort {}

impl VfPort for NoPort {
    fn permanent_mac(&self) -> Option<MacAddress> {
        match *self {}
    }

    fn link(&mut self) -> PortLink {
        match *self {}
    }

    fn configure(&mut self, _: PortSettings) -> Result<(), PortError> {
        match *self {}
    }

    fn transmit(&mut self, _: &[u8]) -> Result<(), PortError> {
        match *self {}
    }

    fn flush(&mut self) {
        match *self {}
    }

    fn receive(&mut self, _: &mut dyn FnMut(&[u8])) -> usize {
        match *self {}
    }

    fn confirmed(&mut self) -> u64 {
        match *self {}
    }
}

/// Sub-channels that the host has granted and the kernel opens, sooner or later.
#[derive(Clone, Copy, Debug)]
struct Search {
    granted: u16,
    next: Instant,
    until: Instant,
}

/// An open device and what drives it. With it go all views of the device's memory, and only then does the kernel close the
/// channel.
pub(super) struct Card {
    adapter: Adapter<Nic<UioDoorbell>, NoPort>,
    queues: Vec<NicQueue<UioDoorbell>>,
    search: Option<Search>,
    /// The key by which the host spreads frames.
    key: [u8; KEY_SIZE],
    device: Device,
}

impl Card {
    /// Opens the device and begins the start-up of its NIC.
    pub(super) fn open(
        root: &Path,
        guid: Guid,
        config: NicConfig,
        key: [u8; KEY_SIZE],
        now: Instant,
    ) -> Result<Self, Error> {
        let device = Device::open(root, &guid.to_string())?;
        let shared = |(gpadl, pages)| SharedBuffer { gpadl, pages };
        let receive = shared(device.receive_buffer()?);
        let send = shared(device.send_buffer()?);
        let channel = device.channel()?;
        // From here on masks are the NIC's, in the header of the ring.
        device.unmask().map_err(|source| Error::System { doing: "unmask a NIC", source })?;
        let nic = Nic::new(channel, receive, Some(send), config, now);
        let nic = nic.map_err(|error| Error::Run(format!("{guid}: {error}")))?;
        let adapter = Adapter::new(nic, adapter_config());
        Ok(Self { adapter, queues: Vec::new(), search: None, key, device })
    }

    pub(super) fn adapter(&mut self) -> &mut Adapter<Nic<UioDoorbell>, NoPort> {
        &mut self.adapter
    }

    pub(super) fn nic(&mut self) -> &mut Nic<UioDoorbell> {
        self.adapter.nic_mut()
    }

    /// Frames out and in so far.
    pub(super) fn frames(&self) -> (u64, u64) {
        let counters = self.adapter.counters();
        let own = (counters.frames_synthetic, counters.frames_received);
        self.queues.iter().fold(own, |(out, into), queue| {
            let stats = queue.stats();
            (out + stats.tx_frames, into + stats.rx_frames)
        })
    }

    /// Takes the interrupts, of which there are some, or the news that the device is gone.
    pub(super) fn take_interrupt(&self) -> Result<Interrupt, Error> {
        let taken = self.device.take();
        taken.map_err(|source| Error::System { doing: "read interrupts", source })
    }

    /// Reads what came on all channels.
    pub(super) fn poll(&mut self, now: Instant, line: &mut Line) -> Result<(), NicError> {
        self.adapter.poll(now, &mut |_, frame| {
            line.push(|buffer| {
                append(frame, buffer);
                None
            });
        })?;
        for queue in &mut self.queues {
            queue.poll(&mut |frame| {
                line.push(|buffer| {
                    append(&frame, buffer);
                    None
                });
            })?;
        }
        Ok(())
    }

    /// When to poll at the latest.
    pub(super) fn deadline(&self, now: Instant) -> Option<Instant> {
        let more = self.queues.iter().any(NicQueue::has_more).then_some(now);
        let search = self.search.map(|search| search.next);
        earliest(earliest(self.adapter.poll_deadline(), more), search)
    }

    /// The host has granted so many sub-channels more.
    pub(super) fn expect_queues(&mut self, granted: u16, now: Instant) {
        if granted > 0 {
            self.search = Some(Search { granted, next: now, until: now + PATIENCE });
        }
    }

    /// Looks for granted sub-channels if it is time to. What could not be taken into use.
    pub(super) fn look_for_queues(&mut self, now: Instant) -> Result<bool, UioError> {
        let Some(mut search) = self.search.filter(|search| search.next <= now) else {
            return Ok(false);
        };
        for sub in self.device.sub_channels()? {
            let Ok(number) = u16::try_from(sub.index) else { continue };
            if self.queues.iter().any(|queue| queue.number() == number) {
                continue;
            }
            let channel = self.device.sub_channel(&sub)?;
            match self.adapter.nic_mut().add_queue(number, channel) {
                Ok(queue) => self.queues.push(queue),
                Err(error) => tracing::debug!(%error, "a sub-channel stays unused"),
            }
        }
        search.next = now + LOOK;
        let complete = self.queues.len() >= usize::from(search.granted) || now >= search.until;
        self.search = (!complete).then_some(search);
        if complete && !self.queues.is_empty() {
            self.spread(now);
        }
        Ok(complete)
    }

    /// Has the host spread frames over the channels that there are.
    fn spread(&mut self, now: Instant) {
        let numbers: Vec<u16> =
            std::iter::once(0).chain(self.queues.iter().map(NicQueue::number)).collect();
        let count = u16::try_from(numbers.len()).unwrap_or(u16::MAX);
        let mut scaling = Scaling::even(count, self.key);
        for entry in &mut scaling.table {
            *entry = numbers.get(usize::from(*entry)).copied().unwrap_or(0);
        }
        if let Err(error) = self.adapter.nic_mut().set_scaling(Some(&scaling), now) {
            tracing::debug!(%error, "frames are not spread");
        }
    }

    /// Sub-channels in use.
    pub(super) fn queues(&self) -> usize {
        self.queues.len()
    }

    /// Takes frames from the kernel and sends them. True if there were any.
    pub(super) fn send_from(&mut self, line: &mut Line, now: Instant) -> Result<bool, Error> {
        let Self { adapter, queues, .. } = self;
        let moved = if queues.is_empty() {
            line.fetch(|frame, left| {
                sending(adapter.transmit_with(&left.work(frame).of(&[frame]), now))
            })?
        } else {
            let table = adapter.nic().info().send_table;
            line.fetch_plain(false, |frame, _| {
                let hash = flow(frame);
                let number = match &table {
                    Some(table) => table[hash as usize % table.len()],
                    None => hash % (queues.len() as u32 + 1),
                };
                match queues.iter_mut().find(|queue| u32::from(queue.number()) == number) {
                    Some(queue) => queue_sending(queue.transmit(frame)),
                    None => sending(adapter.transmit(frame, now)),
                }
            })?
        };
        if moved {
            adapter.flush();
            queues.iter_mut().for_each(NicQueue::flush);
        }
        Ok(moved)
    }
}

impl AsFd for Card {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.device.as_fd()
    }
}

fn queue_sending(result: Result<(), TransmitError>) -> Sending {
    match result {
        Err(TransmitError::Full(_)) => Sending::Later,
        _ => Sending::Taken,
    }
}

/// A number that all frames of a flow share: that of addresses, protocol and ports where a frame is of IPv4 without options or
/// of IPv6, and that of its Ethernet header otherwise. FNV-1a, which nobody has to withstand: it chooses among own queues.
fn flow(frame: &[u8]) -> u32 {
    let kind = frame.get(12..14);
    let (protocol, addresses, ports) = match (kind, frame.get(14)) {
        (Some([0x08, 0x00]), Some(0x45)) => (23, 26..34, 34..38),
        (Some([0x86, 0xdd]), Some(0x60..=0x6f)) => (20, 22..54, 54..58),
        _ => return fnv(frame.get(..14).unwrap_or(frame).iter()),
    };
    let protocol = frame.get(protocol..=protocol).unwrap_or_default();
    let addresses = frame.get(addresses).unwrap_or_default();
    // Pieces of a datagram have no ports, except the first; all go by their addresses.
    let whole = kind != Some(&[0x08, 0x00])
        || frame.get(20..22).is_some_and(|at| at[0] & 0x3f == 0 && at[1] == 0);
    let ports = match protocol {
        [6 | 17] if whole => frame.get(ports).unwrap_or_default(),
        _ => &[],
    };
    fnv(protocol.iter().chain(addresses).chain(ports))
}

fn fnv<'a>(bytes: impl Iterator<Item = &'a u8>) -> u32 {
    let hash = bytes
        .fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193));
    // The low bits of the product are the weakest.
    hash ^ hash >> 16
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tcp(port: u8, fragment: [u8; 2]) -> Vec<u8> {
        let mut frame = vec![2; 12];
        frame.extend([8, 0, 0x45, 0, 0, 40, 0, 0, fragment[0], fragment[1], 64, 6, 0, 0]);
        frame.extend([10, 0, 0, 1, 10, 0, 0, 2, 0x1f, port, 0, 80]);
        frame.extend([0; 16]);
        frame
    }

    #[test]
    fn a_flow_stays_together_and_flows_are_told_apart() {
        assert_eq!(flow(&tcp(1, [0, 0])), flow(&tcp(1, [0x40, 0])));
        let numbers: std::collections::BTreeSet<u32> =
            (0..64).map(|port| flow(&tcp(port, [0, 0])) % 4).collect();
        assert_eq!(numbers.len(), 4, "64 flows use all of 4 queues");
        // The pieces of one datagram stay together, though only the first has ports.
        assert_eq!(flow(&tcp(1, [0x20, 0])), flow(&tcp(2, [0, 9])));
        for len in 0..60 {
            flow(&tcp(1, [0, 0])[..len.min(54)]);
        }
    }
}

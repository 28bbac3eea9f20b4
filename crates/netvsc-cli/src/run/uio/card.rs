//! The machine of a NIC over its uio device.

use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;
use std::time::Duration;

use netvsc::NicConfig;
use netvsc::adapter::{Adapter, AdapterCounters};
use netvsc::nic::{Nic, NicError, QueuedNic, SharedBuffer};
use netvsc::rndis::scaling::KEY_SIZE;
use netvsc_linux::uio::{Device, Interrupt, UioDoorbell, UioError};
use vmbus::time::earliest;
use vmbus::{Guid, Instant};

use crate::error::Error;
use crate::gathered;
use crate::guest::{adapter_config, sending};
use crate::line::Line;
use crate::remote::RemotePort;

/// How often the kernel is asked for sub-channels that it has not opened yet.
const LOOK: Duration = Duration::from_millis(20);
/// And for how long, after the host has granted them.
const PATIENCE: Duration = Duration::from_secs(5);

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
    adapter: Adapter<QueuedNic<UioDoorbell>, RemotePort>,
    search: Option<Search>,
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
        let queues = if device.serves_sub_channels() { config.queues } else { 1 };
        let config = NicConfig { queues, ..config };
        let nic = Nic::new(channel, receive, Some(send), config, now);
        let nic = nic.map_err(|error| Error::Run(format!("{guid}: {error}")))?;
        let mut adapter = Adapter::new(QueuedNic::new(nic, key), adapter_config());
        // The kernel takes segments as they are.
        adapter.take_whole(true);
        Ok(Self { adapter, search: None, device })
    }

    /// Whether the kernel can bear more channels than one.
    pub(super) fn serves_sub_channels(&self) -> bool {
        self.device.serves_sub_channels()
    }

    pub(super) fn adapter(&mut self) -> &mut Adapter<QueuedNic<UioDoorbell>, RemotePort> {
        &mut self.adapter
    }

    pub(super) fn nic(&mut self) -> &mut Nic<UioDoorbell> {
        self.adapter.nic_mut().nic_mut()
    }

    /// Begins the way down.
    pub(super) fn shutdown(&mut self, now: Instant) {
        self.adapter.nic_mut().shutdown(now);
    }

    /// What went out and came in so far.
    pub(super) fn counters(&self) -> AdapterCounters {
        self.adapter.counters()
    }

    /// Takes the interrupts, of which there are some, or the news that the device is gone.
    pub(super) fn take_interrupt(&self) -> Result<Interrupt, Error> {
        let taken = self.device.take();
        taken.map_err(|source| Error::System { doing: "read interrupts", source })
    }

    /// Reads what came on all channels.
    pub(super) fn poll(&mut self, now: Instant, line: &mut Line) -> Result<(), NicError> {
        let mtu = self.adapter.nic().nic().info().mtu;
        self.adapter.poll(now, &mut |_, frame| {
            line.push(|buffer| gathered::take(frame, buffer, mtu));
        })
    }

    /// When to poll at the latest.
    pub(super) fn deadline(&self) -> Option<Instant> {
        earliest(self.adapter.poll_deadline(), self.search.map(|search| search.next))
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
            if self.adapter.nic().has_queue(number) {
                continue;
            }
            let Some(channel) = self.device.sub_channel(&sub)? else { continue };
            if let Err(error) = self.adapter.nic_mut().add_queue(number, channel) {
                tracing::debug!(%error, "a sub-channel stays unused");
            }
        }
        search.next = now + LOOK;
        let complete = self.queues() >= usize::from(search.granted) || now >= search.until;
        self.search = (!complete).then_some(search);
        Ok(complete)
    }

    /// The path on which frames leave.
    pub(super) fn path(&self) -> netvsc::Path {
        self.adapter.path()
    }

    /// Sub-channels in use.
    pub(super) fn queues(&self) -> usize {
        self.adapter.nic().channels() - 1
    }

    /// Takes frames from the kernel and sends them. True if there were any.
    pub(super) fn send_from(&mut self, line: &mut Line, now: Instant) -> Result<bool, Error> {
        let adapter = &mut self.adapter;
        let moved = line.fetch(|frame, left| {
            sending(adapter.transmit_with(&left.work(frame).of(&[frame]), now))
        })?;
        if moved {
            adapter.flush();
        }
        Ok(moved)
    }
}

impl AsFd for Card {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.device.as_fd()
    }
}

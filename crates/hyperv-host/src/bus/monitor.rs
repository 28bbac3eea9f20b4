//! Looking after the monitor pages of a guest, which sets bits there instead of signalling.

use std::time::Duration;

use vmbus::memory::{PAGE_SIZE, SharedPages};
use vmbus::monitor::{MonitorPage, Parameter};
use vmbus::{Instant, Pfn};

use super::{BusServer, DeviceId, DeviceState};

/// One unit of the latencies in a monitor page.
const UNIT: Duration = Duration::from_nanos(100);

impl BusServer {
    /// When to [look](BusServer::look) after the bits of the guest at the latest: so soon that no channel waits longer than
    /// it was promised. None while no open channel has a bit.
    #[must_use]
    pub fn poll_look(&self) -> Option<Instant> {
        let monitored = |device: &super::device::Device| {
            device.state == DeviceState::Open && device.monitor.is_some()
        };
        let any = self.guest_page.is_some() && self.devices.values().any(monitored);
        any.then(|| self.looked + UNIT.saturating_mul(u32::from(self.policy.monitor_latency)))
    }

    /// Looks after the bits of the guest, and returns the open devices that it signalled.
    pub fn look(&mut self, now: Instant) -> Vec<DeviceId> {
        self.looked = self.looked.max(now);
        let Some(page) = &self.guest_page else { return Vec::new() };
        let numbers: Vec<u8> = page.take().collect();
        let open = self.devices.iter().filter(|(_, device)| device.state == DeviceState::Open);
        open.filter(|(_, device)| device.monitor.is_some_and(|number| numbers.contains(&number)))
            .map(|(id, _)| *id)
            .collect()
    }

    /// The page from guest to host, where the guest has one that is its memory. Nothing that it holds is lost.
    pub(super) fn map_monitor_page(&mut self) {
        let frame = self.monitor_pages().map(|(_, to_host)| Pfn(to_host / PAGE_SIZE as u64));
        let page = frame.and_then(|frame| self.memory.map(&[frame]).ok());
        let page: Option<SharedPages> = page.and_then(|list| list.page(0).cloned());
        self.guest_page = page.and_then(|page| MonitorPage::new(page).ok());
        let open = self.devices.iter().filter(|(_, device)| device.state == DeviceState::Open);
        for id in open.map(|(id, _)| *id).collect::<Vec<_>>() {
            self.watch(id);
        }
    }

    /// Promises to look after the bit of a device that was just opened.
    pub(super) fn watch(&mut self, id: DeviceId) {
        let Some(device) = self.devices.get(&id) else { return };
        let (Some(number), Some(page)) = (device.monitor, &self.guest_page) else { return };
        let Some(connection) = device.connection() else { return };
        // Numbers are below 128, which is what each of these could complain about.
        let _ = page.set_latency(number, self.policy.monitor_latency);
        let _ = page.set_parameter(number, Parameter { connection, flag: 0 });
        let _ = page.enable(number / vmbus::monitor::GROUP_BITS, true);
    }
}

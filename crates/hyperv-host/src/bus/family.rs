//! Sub-channels: further channels of a device, at the wish of its driver.

use vmbus::Instant;

use super::device::Device;
use super::{BusServer, DeviceId, DeviceState};

impl BusServer {
    /// Offers `count` more channels of a device whose channel is open, as its service was asked to; they are devices of
    /// their own to the service. None if the device is not open.
    pub fn offer_sub_channels(
        &mut self,
        primary: DeviceId,
        count: u16,
        now: Instant,
    ) -> Vec<DeviceId> {
        let Some(device) = self.devices.get(&primary) else { return Vec::new() };
        if device.state != DeviceState::Open || device.sub.is_some() {
            return Vec::new();
        }
        let spec = device.spec.clone();
        let taken = self.sub_devices(primary);
        let number = |id: &DeviceId| Some(self.devices.get(id)?.sub?.0);
        let taken: Vec<_> = taken.iter().filter_map(number).collect();
        let free = (1..=u16::MAX).filter(|number| !taken.contains(number));
        let mut ids = Vec::new();
        for number in free.take(usize::from(count)) {
            let id = DeviceId(self.next_device);
            self.next_device += 1;
            let mut device = Device::new(spec.clone());
            device.sub = Some((number, primary));
            self.devices.insert(id, device);
            ids.push(id);
        }
        self.offer_waiting(now);
        ids
    }

    /// The primary device of a sub-channel, and its number.
    #[must_use]
    pub fn sub_channel(&self, device: DeviceId) -> Option<(DeviceId, u16)> {
        let (number, primary) = self.devices.get(&device)?.sub?;
        Some((primary, number))
    }

    pub(super) fn sub_devices(&self, primary: DeviceId) -> Vec<DeviceId> {
        let of = |device: &Device| device.sub.is_some_and(|(_, id)| id == primary);
        self.devices.iter().filter(|(_, device)| of(device)).map(|(id, _)| *id).collect()
    }
}

//! What belongs to the connection as a whole: features, monitor pages, pauses, and posts that fail.

use vmbus::bus::PostStatus;
use vmbus::message::{
    CONTACT_CONNECTION, Features, MessageType, ModifyConnection, ModifyConnectionResponse,
    PauseResponse, REDIRECTED_CONNECTION, Version, VersionFeatures, VersionMonitorPages,
};
use vmbus::{ConnectionId, Guid, Instant};
use zerocopy::IntoBytes;
use zerocopy::little_endian::{U32, U64};

use super::{BusServer, DeviceId, GuestError};

/// Numbers in the monitor pages: four groups of 32.
const MONITORS: u8 = 128;

impl BusServer {
    /// Takes a message as the hypervisor does, which may say no; nothing has happened then. It says what
    /// [`BusPolicy::post_failures`] has for it, and it knows no connection that a host of these versions does not have: 4 came
    /// with version 5.0, and that for redirected messages is [`BusPolicy::redirected`]'s. What the bus thinks of a message that it took is counted and the guest does not learn it.
    ///
    /// [`BusPolicy::post_failures`]: super::BusPolicy::post_failures
    /// [`BusPolicy::redirected`]: super::BusPolicy::redirected
    pub fn post(&mut self, connection: ConnectionId, payload: &[u8], now: Instant) -> PostStatus {
        match self.policy.post_failures.pop_front() {
            None | Some(PostStatus::SUCCESS) if !self.has_connection(connection) => {
                PostStatus::INVALID_CONNECTION_ID
            }
            None | Some(PostStatus::SUCCESS) => {
                // The error is counted there.
                let _ = self.handle_message(connection, payload, now);
                PostStatus::SUCCESS
            }
            Some(status) => status,
        }
    }

    /// Whether messages can be posted to a connection that guests make contact on. Of others nothing is said.
    fn has_connection(&self, connection: ConnectionId) -> bool {
        let modern = || self.policy.versions.iter().any(|version| *version >= Version::V5_0);
        match connection {
            CONTACT_CONNECTION => modern(),
            REDIRECTED_CONNECTION => self.policy.redirected && modern(),
            _ => true,
        }
    }

    /// Where contact with this version is made, of the connections that there are for it the one that was used.
    pub(super) fn contact_connection(&self, version: Version, used: ConnectionId) -> ConnectionId {
        match super::guest::connection_of(version) {
            CONTACT_CONNECTION if self.policy.redirected && used == REDIRECTED_CONNECTION => used,
            expected => expected,
        }
    }

    /// The virtual trust level that a guest says it runs in.
    #[must_use]
    pub fn vtl(&self) -> u8 {
        self.link.map_or(0, |link| link.vtl)
    }

    /// The features agreed on with a guest.
    #[must_use]
    pub fn features(&self) -> Features {
        self.link.map_or(Features::empty(), |link| link.features)
    }

    /// Who the guest says it is.
    #[must_use]
    pub fn client_id(&self) -> Option<Guid> {
        self.client_id
    }

    /// Guest physical addresses of the guest's monitor pages, that from host to guest first.
    #[must_use]
    pub fn monitor_pages(&self) -> Option<(u64, u64)> {
        self.link?.monitor_pages
    }

    /// A device's number in the monitor pages.
    #[must_use]
    pub fn monitor(&self, device: DeviceId) -> Option<u8> {
        self.devices.get(&device)?.monitor
    }

    /// The virtual processor that gets a device's signals.
    #[must_use]
    pub fn target_vp(&self, device: DeviceId) -> Option<u32> {
        self.devices.get(&device).map(|device| device.target_vp)
    }

    /// The event flag of a device: what the guest chose at open, or the id of its channel.
    #[must_use]
    pub fn event_flag(&self, device: DeviceId) -> Option<u16> {
        let device = self.devices.get(&device)?;
        let chosen = device.signal.map(|signal| signal.event_flag);
        chosen.or_else(|| u16::try_from(device.channel?.0).ok())
    }

    /// Whether the guest wants the interrupt of a device's channel redirected.
    #[must_use]
    pub fn interrupt_redirected(&self, device: DeviceId) -> bool {
        self.devices.get(&device).is_some_and(|device| device.redirected)
    }

    pub(super) fn version_tail(&self, features: Features) -> Vec<u8> {
        let fields = VersionFeatures { features: U32::new(features.bits()) };
        let mut tail = fields.as_bytes().to_vec();
        if features.contains(Features::SERVER_MONITOR_PAGES) {
            let (to_guest, to_host) = self.policy.server_monitor_pages;
            let pages = VersionMonitorPages {
                reserved: U32::new(0),
                monitor_to_guest: U64::new(to_guest),
                monitor_to_host: U64::new(to_host),
            };
            tail.extend_from_slice(pages.as_bytes());
        }
        tail
    }

    pub(super) fn free_monitor(&self) -> Option<u8> {
        let server = self.features().contains(Features::SERVER_MONITOR_PAGES);
        if !self.policy.monitor_ids || !(server || self.monitor_pages().is_some()) {
            return None;
        }
        let used = |id: u8| self.devices.values().any(|device| device.monitor == Some(id));
        (0..MONITORS).find(|id| !used(*id))
    }

    pub(super) fn modify_connection(
        &mut self,
        modify: &ModifyConnection,
        now: Instant,
    ) -> Result<(), GuestError> {
        self.agreed(MessageType::MODIFY_CONNECTION, Features::MODIFY_CONNECTION)?;
        let pages = (modify.monitor_to_guest.get(), modify.monitor_to_host.get());
        let sound = (pages.0 == 0) == (pages.1 == 0);
        let state = if sound { self.policy.modify_connection_state } else { 2 };
        if let Some(link) = self.link.as_mut().filter(|_| state == 0) {
            link.monitor_pages = Some(pages).filter(|pages| pages.0 != 0);
            self.map_monitor_page();
        }
        self.send(&ModifyConnectionResponse { state }, now);
        Ok(())
    }

    pub(super) fn pause(&mut self, now: Instant) -> Result<(), GuestError> {
        self.agreed(MessageType::PAUSE, Features::PAUSE_RESUME)?;
        self.send(&PauseResponse {}, now);
        if let Some(link) = &mut self.link {
            link.paused = true;
        }
        Ok(())
    }

    pub(super) fn unpause(&mut self, now: Instant) -> Result<(), GuestError> {
        self.agreed(MessageType::RESUME, Features::PAUSE_RESUME)?;
        if let Some(link) = &mut self.link {
            link.paused = false;
        }
        for payload in std::mem::take(&mut self.paused) {
            self.counters.sent -= 1;
            self.send_payload(payload, now);
        }
        Ok(())
    }

    fn agreed(&self, kind: MessageType, needed: Features) -> Result<(), GuestError> {
        let accepted = self.features();
        if accepted.contains(needed) {
            Ok(())
        } else {
            Err(GuestError::NoFeature { kind, needed, accepted })
        }
    }
}

//! What can be changed while the NIC is at work, and what is left to the host.

use vmbus::Instant;
use vmbus::channel::Doorbell;

use super::{Nic, NicConfig, NicEvent, Stage, Step};
use crate::mac::MacAddress;
use crate::nvsp::Version;
use crate::rndis::object::Parameter;
use crate::rndis::offload::{
    ChecksumSet, Direction, IpOffloads, OffloadCapabilities, OffloadParameters,
};
use crate::rndis::scaling::Scaling;
use crate::rndis::{Oid, PacketFilter, Status};

/// Which work is left to the host, as far as the host offers it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NicOffloads {
    /// Checksums of frames that ask for them, and checks of received frames.
    pub checksum: bool,
    /// Segments longer than the MTU are cut by the host. Half of the send buffer is kept for them.
    pub large_send: bool,
    /// Received segments of one flow are put together by the host (version 6.1): frames longer than the MTU arrive.
    pub coalescing: bool,
}

impl NicOffloads {
    /// Nothing is.
    pub const NONE: Self = Self { checksum: false, large_send: false, coalescing: false };
    /// Everything is.
    pub const ALL: Self = Self { checksum: true, large_send: true, coalescing: true };

    pub(super) const fn any(self) -> bool {
        self.checksum || self.large_send || self.coalescing
    }
}

impl Default for NicOffloads {
    /// Checksums, which change nothing for whoever does not ask for them.
    fn default() -> Self {
        Self { checksum: true, ..Self::NONE }
    }
}

/// Something cannot be set now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SettingError {
    /// Start-up is not finished, or the NIC is on its way down.
    #[error("the NIC is not at work: expected start-up to be finished")]
    NotReady,
    /// The same is being set already, and the host's answer is not [overdue](NicEvent::Overdue); or it is one that cannot be told
    /// from a second (RESET, sub-channels).
    #[error("{0} is under way: expected the host's answer to it first")]
    UnderWay(Step),
    /// Not an address of a single station.
    #[error("MAC address {0}: expected one of a single station")]
    Mac(MacAddress),
    /// The version in use knows no such thing.
    #[error("{step} in version {version}: expected version 5.0 or newer")]
    Version {
        /// What was wanted.
        step: Step,
        /// The version in use.
        version: Version,
    },
}

/// What remains of an offer for one IP version.
fn chosen(offered: IpOffloads, config: &NicConfig, version: Version) -> IpOffloads {
    let wanted = config.offloads;
    let mut sums = if wanted.checksum { ChecksumSet::all() } else { ChecksumSet::empty() };
    if version < Version::V5 {
        // Older hosts offer it and do it wrong.
        sums.remove(ChecksumSet::UDP);
    }
    IpOffloads {
        transmit: offered.transmit & sums,
        receive: offered.receive & sums,
        large_send: if wanted.large_send { offered.large_send } else { 0 },
        large_send_segments: offered.large_send_segments,
        coalescing: offered.coalescing && config.coalesces(version),
    }
}

fn direction(offloads: &IpOffloads, kind: ChecksumSet) -> Direction {
    Direction::of(offloads.transmit.contains(kind), offloads.receive.contains(kind))
}

impl<D: Doorbell> Nic<D> {
    /// The host has said what it can do: what is wanted of it is switched on, everything else off.
    pub(super) fn choose_offloads(&mut self, offered: OffloadCapabilities) {
        let version = self.version();
        let ipv4 = chosen(offered.ipv4, &self.config, version);
        let ipv6 = chosen(offered.ipv6, &self.config, version);
        self.info.offloads = OffloadCapabilities { ipv4, ipv6, ..offered };
        let parameters = OffloadParameters {
            ipv4_header: direction(&ipv4, ChecksumSet::IP_HEADER),
            tcp_ipv4: direction(&ipv4, ChecksumSet::TCP),
            udp_ipv4: direction(&ipv4, ChecksumSet::UDP),
            tcp_ipv6: direction(&ipv6, ChecksumSet::TCP),
            udp_ipv6: direction(&ipv6, ChecksumSet::UDP),
            large_send_ipv4: (ipv4.large_send > 0).into(),
            large_send_ipv6: (ipv6.large_send > 0).into(),
            coalescing_ipv4: ipv4.coalescing.into(),
            coalescing_ipv6: ipv6.coalescing.into(),
        };
        let (bytes, len) = parameters.encode(version);
        self.set(Oid::OFFLOAD_PARAMETERS, bytes.get(..len).unwrap_or_default());
    }

    /// The host has dealt with a SET.
    pub(super) fn was_set(&mut self, oid: Oid, status: Status) {
        if self.stage != Stage::Querying {
            self.events.push_back(NicEvent::Set { oid, status });
            return;
        }
        // Offloads are the only thing that is set before the filter.
        if status == Status::SUCCESS {
            self.use_offloads();
        } else {
            self.info.offloads = OffloadCapabilities::default();
        }
        self.go_on();
    }

    fn use_offloads(&mut self) {
        let offloads = self.info.offloads;
        self.transmit.offload(offloads, self.config.queues);
        self.info.large_send = self.transmit.most_large() as u32;
        if offloads.ipv4.coalescing || offloads.ipv6.coalescing {
            self.receive.gather();
        }
    }

    /// Chooses which frames to receive from now on. [`NicEvent::Set`] of
    /// [`Oid::CURRENT_PACKET_FILTER`] follows.
    ///
    /// # Errors
    /// [`SettingError`] if it cannot be set now.
    pub fn set_packet_filter(
        &mut self,
        filter: PacketFilter,
        now: Instant,
    ) -> Result<(), SettingError> {
        self.begin_setting(Step::Filter, now)?;
        self.config.filter = filter;
        self.set_filter(filter);
        self.show();
        Ok(())
    }

    /// Spreads received frames over the channels, or not any more. [`NicEvent::Set`] of [`Oid::RSS_PARAMETERS`] follows.
    /// Some hosts take other parameters only after scaling has been ended.
    ///
    /// # Errors
    /// [`SettingError`] if it cannot be set now.
    pub fn set_scaling(
        &mut self,
        scaling: Option<&Scaling>,
        now: Instant,
    ) -> Result<(), SettingError> {
        let step = Step::Set(Oid::RSS_PARAMETERS);
        self.begin_setting(step, now)?;
        self.check_version(step)?;
        let value = scaling.map_or_else(Scaling::disabled, Scaling::encode);
        self.set(Oid::RSS_PARAMETERS, &value);
        self.show();
        Ok(())
    }

    /// Gives the NIC another address. [`NicEvent::Set`] of [`Oid::CONFIG_PARAMETER`] follows; the host refuses unless its
    /// administrator allows it. What it agreed to is asked for again when the NIC is started anew. The permanent address, by
    /// which a VF is found, stays.
    ///
    /// # Errors
    /// [`SettingError`] if it cannot be set now, or is not an address of a single station.
    pub fn set_mac(&mut self, mac: MacAddress, now: Instant) -> Result<(), SettingError> {
        if !mac.is_unicast() {
            return Err(SettingError::Mac(mac));
        }
        self.begin_setting(Step::Set(Oid::CONFIG_PARAMETER), now)?;
        self.ask_address(mac);
        self.show();
        Ok(())
    }

    /// Asks for an address.
    pub(super) fn ask_address(&mut self, mac: MacAddress) {
        let value = Parameter::address(mac).encode();
        self.set(Oid::CONFIG_PARAMETER, &value);
        self.control.asks_for(mac);
    }

    /// Asks once more for the address that was set, if one was and it is not being asked for already.
    pub(super) fn restore_address(&mut self) {
        if let Some(mac) = self.config.address
            && !self.is_asked(Step::Set(Oid::CONFIG_PARAMETER))
        {
            self.ask_address(mac);
        }
    }

    /// Asks the host whether it is still there; [`NicEvent::Overdue`] if it does not answer.
    ///
    /// # Errors
    /// [`SettingError`] if the NIC is not at work, or the last question was not answered and is not overdue.
    pub fn keep_alive(&mut self, now: Instant) -> Result<(), SettingError> {
        self.begin_setting(Step::KeepAlive, now)?;
        self.ask_alive();
        self.show();
        Ok(())
    }

    /// Asks the host to reset its side of RNDIS. [`NicEvent::Reset`] follows; what the host has forgotten is set again.
    /// Some hosts take this for an error and end the channel.
    ///
    /// # Errors
    /// [`SettingError`] if the NIC is not at work, or the last one was not answered, however long ago that was: the answer names none.
    pub fn reset(&mut self, now: Instant) -> Result<(), SettingError> {
        self.begin_setting(Step::Reset, now)?;
        self.ask_reset();
        self.show();
        Ok(())
    }

    /// The host has begun anew, or not.
    pub(super) fn handle_reset(&mut self, status: Status, addressing_reset: bool) {
        if !self.waits.has(Step::Reset) {
            self.stats.bad.reply += 1;
            return;
        }
        self.answer_came(Step::Reset);
        self.stats.replied(status);
        if self.stage != Stage::Ready {
            return;
        }
        if status == Status::SUCCESS && addressing_reset {
            self.restore_address();
            self.set_filter(self.config.filter);
        }
        self.events.push_back(NicEvent::Reset { status });
    }

    pub(super) fn begin_setting(&mut self, step: Step, now: Instant) -> Result<(), SettingError> {
        self.now = now.max(self.now);
        if self.stage != Stage::Ready {
            return Err(SettingError::NotReady);
        }
        if self.is_asked(step) { Err(SettingError::UnderWay(step)) } else { Ok(()) }
    }

    /// Whether the host was asked for this and may not be asked again yet. What it has let wait for too long may: its answer may be lost.
    /// But not where a second answer would be taken for the first: an answer to RESET names no request, and sub-channels would be
    /// allocated twice.
    fn is_asked(&self, step: Step) -> bool {
        let once = matches!(step, Step::Reset | Step::SubChannels);
        self.waits.has(step) && (once || !self.waits.is_overdue(step))
    }

    pub(super) fn check_version(&self, step: Step) -> Result<(), SettingError> {
        let version = self.version();
        if version < Version::V5 { Err(SettingError::Version { step, version }) } else { Ok(()) }
    }

    /// Puts what was queued into the ring.
    pub(super) fn show(&mut self) {
        if let Err(error) = self.pump() {
            self.fail(error);
        }
    }
}

//! The objects (OIDs) that a guest asks for and sets.

use netvsc::nvsp::{Capabilities, Version};
use netvsc::rndis::object::{ADDRESS_PARAMETER, LinkState, Parameter, encode_friendly_name};
use netvsc::rndis::offload::{Encapsulation, OffloadCapabilities};
use netvsc::rndis::scaling::ScalingCapabilities;
use netvsc::rndis::{Oid, Status};

use super::offers::{self, Offloads};
use super::{Link, NicService};
use crate::switch::{Path, SideState, SwitchPort};

/// Bytes of an 802.1Q tag, which a frame may have on the wire beyond its limit.
const VLAN_TAG: usize = 4;

impl NicService {
    /// The status that policy refuses an object with, if it does.
    pub(super) fn refusal(&self, oid: Oid) -> Option<Status> {
        let refused = &self.config.policy.refused_objects;
        refused.iter().find(|(refused, _)| *refused == oid).map(|(_, status)| *status)
    }

    /// The answer to a query, or the status that says why there is none.
    pub(super) fn query(&self, link: &Link, oid: Oid, input: &[u8]) -> Result<Vec<u8>, Status> {
        if let Some(status) = self.refusal(oid) {
            return Err(status);
        }
        // A guest says with these which form of the object it knows, and has room for.
        let known = match oid {
            Oid::OFFLOAD_HARDWARE_CAPABILITIES => OffloadCapabilities::is_question(input),
            Oid::RSS_CAPABILITIES => ScalingCapabilities::is_question(input),
            _ => true,
        };
        if !known {
            return Err(Status::INVALID_DATA);
        }
        let word = |value: u32| Ok(value.to_le_bytes().to_vec());
        let frame = link.setup.frame();
        match oid {
            Oid::MAXIMUM_FRAME_SIZE => word(frame.saturating_sub(14)),
            Oid::LINK_SPEED => word(hundreds(self.config.link_speed)),
            Oid::CURRENT_PACKET_FILTER => word(link.control.filter()),
            Oid::MEDIA_CONNECT_STATUS => {
                word(u32::from(!self.link_up && !self.config.policy.always_connected))
            }
            Oid::LINK_STATE => {
                let up = self.link_up || self.config.policy.always_connected;
                let speed = self.config.link_speed;
                let state = LinkState { up, full_duplex: true, transmit: speed, receive: speed };
                Ok(state.encode().to_vec())
            }
            Oid::PERMANENT_ADDRESS => Ok(self.config.mac.0.to_vec()),
            Oid::CURRENT_ADDRESS => {
                Ok(link.control.address().unwrap_or(self.config.mac).0.to_vec())
            }
            Oid::FRIENDLY_NAME => {
                let name = self.config.name.as_deref().ok_or(Status::NOT_SUPPORTED)?;
                Ok(encode_friendly_name(name))
            }
            Oid::OFFLOAD_CURRENT_CONFIG => Ok(self.offload_config(link)),
            Oid::OFFLOAD_HARDWARE_CAPABILITIES => {
                let policy = &self.config.policy.offloads;
                Ok(offers::capabilities(link.setup.version, policy, link.takes_coalesced()))
            }
            Oid::RSS_CAPABILITIES => self.scaling_capabilities(link.setup.version),
            _ => Err(Status::NOT_SUPPORTED),
        }
    }

    /// Carries out a SET; its status.
    pub(super) fn set(
        &self,
        link: &mut Link,
        oid: Oid,
        data: &[u8],
        port: &mut SwitchPort,
    ) -> Status {
        if let Some(status) = self.refusal(oid) {
            return status;
        }
        match oid {
            Oid::CURRENT_PACKET_FILTER => {
                let Some(filter) = data.first_chunk().map(|bytes| u32::from_le_bytes(*bytes))
                else {
                    return Status::INVALID_DATA;
                };
                link.control.set_filter(filter);
                self.apply_filter(link, port);
                Status::SUCCESS
            }
            Oid::CONFIG_PARAMETER => {
                let Ok(parameter) = Parameter::decode(data) else { return Status::INVALID_DATA };
                if parameter.name != ADDRESS_PARAMETER {
                    return Status::NOT_SUPPORTED;
                }
                match parameter.mac() {
                    None => Status::INVALID_DATA,
                    Some(_) if !self.config.policy.mac_changes => Status::FAILURE,
                    Some(address) => {
                        link.control.set_address(Some(address));
                        self.apply_filter(link, port);
                        Status::SUCCESS
                    }
                }
            }
            Oid::RSS_PARAMETERS => self.set_scaling(link, data, port),
            Oid::OFFLOAD_PARAMETERS => match link.offloads.set(data) {
                Ok(()) => Status::SUCCESS,
                Err(status) => status,
            },
            // Without effect: it is Ethernet anyway.
            Oid::OFFLOAD_ENCAPSULATION => match Encapsulation::decode(data) {
                Ok(_) => Status::SUCCESS,
                Err(_) => Status::INVALID_DATA,
            },
            _ => Status::NOT_SUPPORTED,
        }
    }
}

impl NicService {
    /// The offloads that are in use.
    pub(super) fn offloads(&self, link: &Link) -> Offloads {
        link.offloads.within(&self.config.policy.offloads, link.takes_coalesced())
    }

    /// The same as NDIS_OFFLOAD.
    pub(super) fn offload_config(&self, link: &Link) -> Vec<u8> {
        let policy = &self.config.policy.offloads;
        offers::config(link.setup.version, policy, self.offloads(link))
    }
}

impl Link {
    /// Whether the guest can take segments that were put together.
    fn takes_coalesced(&self) -> bool {
        self.setup.can(Capabilities::RSC, Version::V6_1)
    }
}

impl NicService {
    /// The port delivers what the guest's packet filter says.
    pub(super) fn apply_filter(&self, link: &Link, port: &mut SwitchPort) {
        let address = link.control.address().unwrap_or(self.config.mac);
        port.set_filter(link.control.filter());
        port.set_address(self.config.policy.own_unicast.then_some(address));
        port.set_receive_limit(link.setup.frame() as usize + VLAN_TAG);
        let receives = link.control.receives();
        port.set_side(Path::Synthetic, if receives { SideState::Up } else { SideState::Down });
    }
}

/// A speed in units of 100 bit/s, as it stands in messages.
pub(super) fn hundreds(bits: u64) -> u32 {
    u32::try_from(bits / 100).unwrap_or(u32::MAX)
}

//! The objects (OIDs) that a guest asks for and sets.

use netvsc::MacAddress;
use netvsc::nvsp::{Capabilities, Version};
use netvsc::rndis::{Oid, Status};

use super::offers::{self, Offloads};
use super::{Link, NicService};
use crate::switch::{Path, SideState, SwitchPort};

/// Bytes of an 802.1Q tag, which a frame may have on the wire beyond its limit.
const VLAN_TAG: usize = 4;

/// The parameter that sets the address.
const ADDRESS_PARAMETER: &str = "NetworkAddress";

impl NicService {
    /// The status that policy refuses an object with, if it does.
    pub(super) fn refusal(&self, oid: Oid) -> Option<Status> {
        let refused = &self.config.policy.refused_objects;
        refused.iter().find(|(refused, _)| *refused == oid).map(|(_, status)| *status)
    }

    /// The answer to a query, or the status that says why there is none.
    pub(super) fn query(&self, link: &Link, oid: Oid) -> Result<Vec<u8>, Status> {
        if let Some(status) = self.refusal(oid) {
            return Err(status);
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
                Ok(link_state(up, self.config.link_speed))
            }
            Oid::PERMANENT_ADDRESS => Ok(self.config.mac.0.to_vec()),
            Oid::CURRENT_ADDRESS => {
                Ok(link.control.address().unwrap_or(self.config.mac).0.to_vec())
            }
            Oid::FRIENDLY_NAME => Ok(friendly_name("Network Adapter")),
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
                apply_filter(link, port);
                Status::SUCCESS
            }
            Oid::CONFIG_PARAMETER => {
                let Some((name, value)) = parameter(data) else { return Status::INVALID_DATA };
                if name != ADDRESS_PARAMETER {
                    return Status::NOT_SUPPORTED;
                }
                match address(&value) {
                    None => Status::INVALID_DATA,
                    Some(_) if !self.config.policy.mac_changes => Status::FAILURE,
                    Some(address) => {
                        link.control.set_address(Some(address));
                        Status::SUCCESS
                    }
                }
            }
            Oid::RSS_PARAMETERS => self.set_scaling(link, data, port),
            Oid::OFFLOAD_PARAMETERS => match link.offloads.set(data) {
                Ok(()) => Status::SUCCESS,
                Err(status) => status,
            },
            // Taken, and without effect: it is Ethernet anyway.
            Oid::OFFLOAD_ENCAPSULATION => Status::SUCCESS,
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

/// The port delivers what the guest's packet filter says.
pub(super) fn apply_filter(link: &Link, port: &mut SwitchPort) {
    port.set_filter(link.control.filter());
    port.set_receive_limit(link.setup.frame() as usize + VLAN_TAG);
    let receives = link.control.receives();
    port.set_side(Path::Synthetic, if receives { SideState::Up } else { SideState::Down });
}

/// A speed in units of 100 bit/s, as it stands in messages.
pub(super) fn hundreds(bits: u64) -> u32 {
    u32::try_from(bits / 100).unwrap_or(u32::MAX)
}

/// Name and value of a parameter that is a string. Offsets count from the start of `data`.
fn parameter(data: &[u8]) -> Option<(String, String)> {
    const STRING: u32 = 2;
    let word = |at: usize| Some(u32::from_le_bytes(*data.get(at..)?.first_chunk()?));
    let text = |offset: u32, len: u32| {
        let bytes = data.get(offset as usize..)?.get(..len as usize)?;
        let (units, rest) = bytes.as_chunks();
        let text =
            String::from_utf16(&units.iter().copied().map(u16::from_le_bytes).collect::<Vec<_>>());
        text.ok().filter(|_| rest.is_empty())
    };
    if word(8)? != STRING {
        return None;
    }
    Some((text(word(0)?, word(4)?)?, text(word(12)?, word(16)?)?))
}

/// A unicast address in twelve hexadecimal digits.
fn address(text: &str) -> Option<MacAddress> {
    let digits = text.trim_end_matches('\0').as_bytes();
    let mut mac = [0; 6];
    if digits.len() != 12 {
        return None;
    }
    for (byte, pair) in mac.iter_mut().zip(digits.as_chunks().0) {
        let [high, low]: [u8; 2] = *pair;
        let digit = |digit: u8| char::from(digit).to_digit(16);
        *byte = (digit(high)? << 4 | digit(low)?) as u8;
    }
    (mac[0] & 1 == 0 && mac != [0; 6]).then_some(MacAddress(mac))
}

/// NDIS_LINK_STATE: header, state, duplex, speeds, pause, autonegotiation.
fn link_state(up: bool, speed: u64) -> Vec<u8> {
    const FULL_DUPLEX: u32 = 2;
    let mut bytes = vec![0x80, 1, 40, 0];
    for word in [if up { 1 } else { 2 }, FULL_DUPLEX, 0] {
        bytes.extend(u32::to_le_bytes(word));
    }
    bytes.extend(speed.to_le_bytes());
    bytes.extend(speed.to_le_bytes());
    bytes.extend([0; 8]);
    bytes
}

/// A name in UTF-16, in its field of 512 bytes.
fn friendly_name(name: &str) -> Vec<u8> {
    let mut bytes: Vec<u8> = name.encode_utf16().flat_map(u16::to_le_bytes).collect();
    bytes.resize(512, 0);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn utf16(text: &str) -> Vec<u8> {
        text.encode_utf16().flat_map(u16::to_le_bytes).collect()
    }

    #[test]
    fn a_parameter_is_read_by_its_offsets() {
        let (name, value) = (utf16("NetworkAddress"), utf16("00155d0a0b0c"));
        let mut data = Vec::new();
        for word in [20, 28, 2, 48, 24u32] {
            data.extend(word.to_le_bytes());
        }
        data.extend(&name);
        data.extend(&value);
        let read = parameter(&data).unwrap();
        assert_eq!(read, ("NetworkAddress".into(), "00155d0a0b0c".into()));
        for (at, byte) in [(0, 60), (4, 27), (8, 1), (12, 49), (16, 25)] {
            let mut wrong = data.clone();
            wrong[at] = byte;
            assert_eq!(parameter(&wrong), None, "byte {at}");
        }
        for len in 0..data.len() {
            assert_eq!(parameter(&data[..len]), None, "{len} bytes");
        }
    }

    #[test]
    fn addresses_are_twelve_digits_and_unicast() {
        assert_eq!(address("00155D0a0b0C"), Some(MacAddress([0, 0x15, 0x5d, 10, 11, 12])));
        assert_eq!(address("00155d0a0b0c\0"), Some(MacAddress([0, 0x15, 0x5d, 10, 11, 12])));
        for wrong in
            ["", "00155d0a0b0", "00155d0a0b0g", "01155d0a0b0c", "000000000000", "é0155d0a0b0"]
        {
            assert_eq!(address(wrong), None, "{wrong}");
        }
    }
}

//! Addresses, routes and neighbours.

use std::net::IpAddr;

use netlink_packet_core::Parseable;
use netlink_packet_route::address::{AddressAttribute, AddressMessage};
use netlink_packet_route::neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourMessage};
use netlink_packet_route::route::{RouteAddress, RouteAttribute, RouteMessage, RouteType};

/// An address of an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Address {
    /// Number of the interface.
    pub index: u32,
    /// The address.
    pub address: IpAddr,
    /// Length of its network's prefix, in bits.
    pub prefix: u8,
    /// Whether it is good on this link only: `fe80::` and its like.
    pub link_local: bool,
}

impl Address {
    pub(super) fn parse(payload: &[u8]) -> Option<Self> {
        let message = AddressMessage::parse(payload).ok()?;
        let mut address = None;
        for attribute in &message.attributes {
            match attribute {
                // With a peer, `Address` is the peer's.
                AddressAttribute::Local(local) => address = Some(*local),
                AddressAttribute::Address(other) if address.is_none() => address = Some(*other),
                _ => {}
            }
        }
        let address = address?;
        let link_local = match address {
            IpAddr::V4(address) => address.is_link_local(),
            IpAddr::V6(address) => address.is_unicast_link_local(),
        };
        let header = message.header;
        Some(Self { index: header.index, address, prefix: header.prefix_len, link_local })
    }
}

/// A way to a network, by one next hop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Route {
    /// Number of the interface; none for routes that lead nowhere.
    pub index: Option<u32>,
    /// The network; none for the default route.
    pub destination: Option<IpAddr>,
    /// Length of the network's prefix, in bits.
    pub prefix: u8,
    /// Whether it is of IPv6.
    pub v6: bool,
    /// The router; none for what is on the link.
    pub gateway: Option<IpAddr>,
    /// Number of the routing table; 254 is the main one, 255 the kernel's own of local addresses.
    pub table: u32,
    /// Its metric; smaller ones win.
    pub metric: u32,
    /// Whether it sends frames out, rather than naming an address of this machine or refusing.
    pub unicast: bool,
}

impl Route {
    /// Whether it is a default route.
    #[must_use]
    pub const fn is_default(&self) -> bool {
        self.prefix == 0 && self.unicast
    }

    /// Whether an address is in its network.
    #[must_use]
    pub fn covers(&self, address: IpAddr) -> bool {
        let bits = |address: IpAddr| match address {
            IpAddr::V4(address) => (u128::from(address.to_bits()) << 96, false),
            IpAddr::V6(address) => (address.to_bits(), true),
        };
        let (wanted, v6) = bits(address);
        if v6 != self.v6 {
            return false;
        }
        let Some(network) = self.destination else { return self.prefix == 0 };
        let (network, _) = bits(network);
        let rest = 128_u32.saturating_sub(self.prefix.into());
        (wanted ^ network).checked_shr(rest).unwrap_or(0) == 0
    }

    pub(super) fn parse(payload: &[u8]) -> Option<Vec<Self>> {
        let message = RouteMessage::parse(payload).ok()?;
        let header = &message.header;
        let mut route = Self {
            index: None,
            destination: None,
            prefix: header.destination_prefix_length,
            v6: u8::from(header.address_family) == 10,
            gateway: None,
            table: header.table.into(),
            metric: 0,
            unicast: header.kind == RouteType::Unicast,
        };
        let mut hops = Vec::new();
        for attribute in &message.attributes {
            match attribute {
                RouteAttribute::Oif(index) => route.index = Some(*index),
                RouteAttribute::Destination(address) => route.destination = ip(address),
                RouteAttribute::Gateway(address) => route.gateway = ip(address),
                RouteAttribute::Table(table) => route.table = *table,
                RouteAttribute::Priority(metric) => route.metric = *metric,
                RouteAttribute::MultiPath(several) => hops.extend(several),
                _ => {}
            }
        }
        if hops.is_empty() {
            return Some(vec![route]);
        }
        let routes = hops.into_iter().map(|hop| {
            let gateway = hop.attributes.iter().find_map(|attribute| match attribute {
                RouteAttribute::Gateway(address) => ip(address),
                _ => None,
            });
            Self { index: Some(hop.interface_index), gateway, ..route }
        });
        Some(routes.collect())
    }
}

fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(address) => Some((*address).into()),
        RouteAddress::Inet6(address) => Some((*address).into()),
        _ => None,
    }
}

/// Somebody on the link whom the kernel knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Neighbour {
    /// Number of the interface.
    pub index: u32,
    /// The address.
    pub address: IpAddr,
    /// Whether the kernel learned or asked for it; not so for multicast and loopback, which need no asking.
    pub asked: bool,
}

impl Neighbour {
    pub(super) fn parse(payload: &[u8]) -> Option<Self> {
        let message = NeighbourMessage::parse(payload).ok()?;
        let address = message.attributes.iter().find_map(|attribute| match attribute {
            NeighbourAttribute::Destination(NeighbourAddress::Inet(address)) => {
                Some(IpAddr::from(*address))
            }
            NeighbourAttribute::Destination(NeighbourAddress::Inet6(address)) => {
                Some(IpAddr::from(*address))
            }
            _ => None,
        })?;
        // NUD_NOARP is 0x40, and 0 is an entry without any state.
        let state = u16::from(message.header.state);
        let asked = state & 0x40 == 0 && state != 0;
        Some(Self { index: message.header.ifindex, address, asked })
    }
}

//! The few changes that mend a pair.

use std::net::IpAddr;

use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::address::{AddressAttribute, AddressMessage};
use netlink_packet_route::link::{LinkAttribute, LinkFlags, LinkMessage};
use netvsc::MacAddress;

use super::{Address, Connection, NetlinkError};

impl Connection {
    /// Sets the MTU of a link, in bytes.
    ///
    /// # Errors
    /// [`NetlinkError::Refused`] if the kernel refuses: no CAP_NET_ADMIN, no such link, an MTU out of the driver's range.
    pub fn set_mtu(&mut self, index: u32, mtu: u32) -> Result<(), NetlinkError> {
        self.set_link("set the MTU", index, |link| link.attributes.push(LinkAttribute::Mtu(mtu)))
    }

    /// Sets the length of the longest segment that the kernel gives a link uncut, in bytes, headers included.
    ///
    /// # Errors
    /// [`NetlinkError::Refused`] if the kernel refuses: no CAP_NET_ADMIN, no such link, more than its driver takes.
    pub fn set_longest_segment(&mut self, index: u32, bytes: u32) -> Result<(), NetlinkError> {
        self.set_link("set the longest segment", index, |link| {
            link.attributes.push(LinkAttribute::GsoMaxSize(bytes));
        })
    }

    /// Sets a link up or down.
    ///
    /// # Errors
    /// [`NetlinkError::Refused`] if the kernel refuses.
    pub fn set_up(&mut self, index: u32, up: bool) -> Result<(), NetlinkError> {
        self.set_link("set the link up or down", index, |link| {
            link.header.change_mask = LinkFlags::Up;
            link.header.flags = if up { LinkFlags::Up } else { LinkFlags::empty() };
        })
    }

    /// Gives a link a MAC.
    ///
    /// # Errors
    /// [`NetlinkError::Refused`] if the kernel refuses: no CAP_NET_ADMIN, no such link, a driver that keeps its own.
    pub fn set_mac(&mut self, index: u32, mac: MacAddress) -> Result<(), NetlinkError> {
        self.set_link("set the MAC", index, |link| {
            link.attributes.push(LinkAttribute::Address(mac.0.to_vec()));
        })
    }

    /// Makes a link a port of another one, or (0) of none.
    ///
    /// # Errors
    /// [`NetlinkError::Refused`] if the kernel refuses.
    pub fn set_master(&mut self, index: u32, master: u32) -> Result<(), NetlinkError> {
        self.set_link("change the link's master", index, |link| {
            link.attributes.push(LinkAttribute::Controller(master));
        })
    }

    /// Gives a link another name. It has to be down on kernels before 6.3.
    ///
    /// # Errors
    /// [`NetlinkError::Refused`] if the kernel refuses.
    pub fn rename(&mut self, index: u32, name: &str) -> Result<(), NetlinkError> {
        self.set_link("rename the link", index, |link| {
            link.attributes.push(LinkAttribute::IfName(name.to_owned()));
        })
    }

    /// Takes an address from a link.
    ///
    /// # Errors
    /// [`NetlinkError::Refused`] if the kernel refuses.
    pub fn remove_address(&mut self, address: &Address) -> Result<(), NetlinkError> {
        let mut message = AddressMessage::default();
        let v6 = matches!(address.address, IpAddr::V6(_));
        message.header.family = if v6 { 10.into() } else { 2.into() };
        message.header.prefix_len = address.prefix;
        message.header.index = address.index;
        message.attributes.push(AddressAttribute::Local(address.address));
        self.change("take the address away", RouteNetlinkMessage::DelAddress(message), 0)
    }

    fn set_link(
        &mut self,
        doing: &'static str,
        index: u32,
        set: impl FnOnce(&mut LinkMessage),
    ) -> Result<(), NetlinkError> {
        let mut message = LinkMessage::default();
        message.header.index = index;
        set(&mut message);
        self.change(doing, RouteNetlinkMessage::SetLink(message), 0)
    }
}

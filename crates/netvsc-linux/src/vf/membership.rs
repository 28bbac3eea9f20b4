//! Frames that an interface takes beyond its own, as long as somebody wants them.

use std::os::fd::OwnedFd;

use netvsc::rndis::PacketFilter;

use super::VfError;
use super::packet::packet_socket;
use super::request::{self, Membership, Setting};

/// PACKET_MR_PROMISC and PACKET_MR_ALLMULTI.
const PROMISCUOUS: u16 = 1;
const ALL_MULTICAST: u16 = 2;

/// What a filter asks of the interface. It ends with this value.
#[derive(Debug)]
pub(crate) struct Memberships {
    /// A socket that receives nothing.
    socket: OwnedFd,
    held: [(u16, bool); 2],
}

impl Memberships {
    pub(crate) fn new() -> Result<Self, VfError> {
        let held = [(PROMISCUOUS, false), (ALL_MULTICAST, false)];
        Ok(Self { socket: packet_socket()?, held })
    }

    /// Joins or leaves what the filter asks for, on the interface with this number.
    pub(crate) fn follow(&mut self, index: u32, filter: PacketFilter) {
        let wanted = [PacketFilter::PROMISCUOUS, PacketFilter::ALL_MULTICAST];
        for ((kind, held), wanted) in self.held.iter_mut().zip(wanted) {
            let wanted = filter.contains(wanted);
            if wanted == *held {
                continue;
            }
            let index = index as i32;
            let membership = Membership { index, kind: *kind, address_length: 0, address: [0; 8] };
            let setting = if wanted { Setting::Join } else { Setting::Leave };
            match request::set(&self.socket, setting, &membership) {
                Ok(()) => *held = wanted,
                Err(error) => tracing::debug!(%error, kind, "a filter that is not set"),
            }
        }
    }
}

//! A virtual switch: a port per NIC, two sides per port, and a wire from each port to a peer of its own or to the bridge
//! that joins ports and uplinks ([`Switch::connect`]).
//!
//! A NIC's port has a *synthetic* side, served by [`crate::nic::NicService`], and a *VF* side, served by the VF device. Which
//! side gets a frame is decided when the frame arrives at the switch, by the NIC's data path as the host knows it at that
//! moment; broadcast, multicast and the first packet of a TCP connection go to the synthetic side always.
//!
//! The synthetic side has as many queues as its NIC has channels; a [`Spread`] decides which one gets a frame.
//!
//! Nothing is lost silently. A full queue pushes back ([`Offered::Busy`]) up to whoever sends, every drop has a
//! [`DropCause`], and [`PortCounters::unaccounted`] is zero at any moment.
//!
//! Time is stepped: arrivals lie on multiples of [`WireConfig::tick`], and [`Switch::poll_deadline`] names the next one.

mod bridge;
mod counters;
mod frame;
mod port;
mod spread;
mod wire;

pub use bridge::{Bridge, BridgeConfig, BridgeCounters, PartyId, VlanMode};
pub use counters::{DropCause, Drops, PortCounters, SideCounters};
pub use netvsc::rndis::scaling::{HashTypes, KEY_SIZE};
pub use port::{Offered, PortConfig, Queued, SideState, SwitchPort, VfTransmit};
pub use spread::{Spread, Toeplitz};
pub use wire::WireConfig;

use std::collections::VecDeque;

pub use netvsc::Path;
use netvsc::rndis::packet::LargeSend;
use vmbus::Instant;
use vmbus::time::earliest;

/// Names one port of a [`Switch`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PortId(usize);

/// A TCP segment that is longer than a frame of the link, and that whoever gets it cuts, or takes as it is. Its headers say how
/// long it is; the field of its TCP checksum holds the sum of the pseudo-header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Uncut {
    /// Bytes of payload in each piece.
    pub segment: usize,
    /// Bytes of all headers.
    pub headers: usize,
    /// Where the TCP header starts.
    pub layer4: usize,
    /// Over IPv6, otherwise over IPv4.
    pub ipv6: bool,
}

impl Uncut {
    /// What a driver says of a segment that it has not cut, with the headers that the segment has.
    #[must_use]
    pub fn of(segment: &[u8], send: LargeSend) -> Self {
        let layer4 = usize::from(send.layer4);
        let header = segment.get(layer4 + 12).map_or(0, |byte| usize::from(byte >> 4) * 4);
        Self { segment: send.segment as usize, headers: layer4 + header, layer4, ipv6: send.ipv6 }
    }

    /// The same for a driver that is to cut it.
    #[must_use]
    pub fn request(&self) -> LargeSend {
        LargeSend {
            segment: u32::try_from(self.segment).unwrap_or(u32::MAX),
            layer4: u16::try_from(self.layer4).unwrap_or(u16::MAX),
            ipv6: self.ipv6,
        }
    }

    /// Bytes of the longest piece of a segment of `len` bytes.
    #[must_use]
    pub fn longest(&self, len: usize) -> usize {
        self.headers.saturating_add(self.segment).min(len)
    }

    /// Pieces of a segment of `len` bytes: one at least.
    #[must_use]
    pub fn pieces(&self, len: usize) -> usize {
        len.saturating_sub(self.headers).div_ceil(self.segment.max(1)).max(1)
    }
}

/// Frames of one port that the bridge takes at a time.
const FRAMES_PER_TURN: usize = 256;

/// Names one uplink of a [`Switch`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct UplinkId(usize);

/// What is behind a party of the bridge.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Behind {
    Port(usize),
    Uplink(usize),
}

/// A way out of the host: frames that wait for whoever is there.
#[derive(Debug)]
struct Uplink {
    party: PartyId,
    frames: VecDeque<Vec<u8>>,
    bytes: usize,
    capacity: usize,
}

/// The ports of one host.
#[derive(Debug, Default)]
pub struct Switch {
    ports: Vec<SwitchPort>,
    bridge: Bridge,
    /// By party; what is behind it.
    behind: Vec<Behind>,
    /// By port: its party, if its wire ends at the bridge.
    parties: Vec<Option<PartyId>>,
    uplinks: Vec<Uplink>,
}

impl Switch {
    /// A switch without ports.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Joins a port to the bridge. From now on its wire has no peer of its own.
    pub fn connect(&mut self, id: PortId, vlans: VlanMode) {
        let Some(place) = self.parties.get_mut(id.0) else { return };
        match *place {
            Some(party) => self.bridge.set_vlans(party, vlans),
            None => {
                *place = Some(self.bridge.join(vlans));
                self.behind.push(Behind::Port(id.0));
            }
        }
    }

    /// Takes a port from the bridge, if it is there.
    pub fn disconnect(&mut self, id: PortId) {
        if let Some(party) = self.parties.get_mut(id.0).and_then(Option::take) {
            self.bridge.leave(party);
        }
    }

    /// Joins a way out to the bridge, on which this many bytes may wait to be taken.
    pub fn add_uplink(&mut self, vlans: VlanMode, capacity: usize) -> UplinkId {
        let party = self.bridge.join(vlans);
        self.behind.push(Behind::Uplink(self.uplinks.len()));
        self.uplinks.push(Uplink { party, frames: VecDeque::new(), bytes: 0, capacity });
        UplinkId(self.uplinks.len() - 1)
    }

    /// A frame from outside. Where there is no room for it, it is dropped and counted.
    pub fn uplink_transmit(&mut self, id: UplinkId, frame: &[u8], now: Instant) {
        if let Some(party) = self.uplinks.get(id.0).map(|uplink| uplink.party) {
            self.forward(party, frame, now);
        }
    }

    /// The next frame that goes outside.
    pub fn uplink_receive(&mut self, id: UplinkId) -> Option<Vec<u8>> {
        let uplink = self.uplinks.get_mut(id.0)?;
        let frame = uplink.frames.pop_front()?;
        uplink.bytes -= frame.len();
        Some(frame)
    }

    /// What the bridge did.
    #[must_use]
    pub const fn bridge_counters(&self) -> BridgeCounters {
        self.bridge.counters()
    }

    fn forward(&mut self, from: PartyId, frame: &[u8], now: Instant) {
        let Self { ports, bridge, behind, uplinks, .. } = self;
        bridge.forward(from, frame, now, |party, copy| match behind.get(party.0) {
            Some(Behind::Port(port)) => ports
                .get_mut(*port)
                .is_some_and(|port| port.peer_transmit(copy, now) != Offered::Busy),
            Some(Behind::Uplink(uplink)) => {
                let Some(uplink) = uplinks.get_mut(*uplink) else { return false };
                let room = uplink.frames.is_empty() || uplink.bytes + copy.len() <= uplink.capacity;
                if room {
                    uplink.bytes += copy.len();
                    uplink.frames.push_back(copy.to_vec());
                }
                room
            }
            None => false,
        });
    }

    /// Moves frames that have reached the bridge. True if there were any.
    pub fn forward_arrived(&mut self, now: Instant) -> bool {
        let mut any = false;
        for at in 0..self.parties.len() {
            let Some(party) = self.parties.get(at).copied().flatten() else { continue };
            for _ in 0..FRAMES_PER_TURN {
                let Some(frame) = self.ports.get_mut(at).and_then(|port| port.peer_receive(now))
                else {
                    break;
                };
                any = true;
                self.forward(party, &frame, now);
                if let Some(port) = self.ports.get_mut(at) {
                    port.recycle(frame);
                }
            }
        }
        any
    }

    /// Adds a port. Ports stay for the life of the switch, as their counters do.
    pub fn add_port(&mut self, config: PortConfig) -> PortId {
        self.ports.push(SwitchPort::new(config));
        self.parties.push(None);
        PortId(self.ports.len() - 1)
    }

    /// A port. `None` for a name that comes from another switch.
    #[must_use]
    pub fn port(&self, id: PortId) -> Option<&SwitchPort> {
        self.ports.get(id.0)
    }

    /// A port. `None` for a name that comes from another switch.
    #[must_use]
    pub fn port_mut(&mut self, id: PortId) -> Option<&mut SwitchPort> {
        self.ports.get_mut(id.0)
    }

    /// The ports with their names.
    pub fn ports(&self) -> impl Iterator<Item = (PortId, &SwitchPort)> {
        self.ports.iter().enumerate().map(|(at, port)| (PortId(at), port))
    }

    /// A frame sent by the peer behind a port; `Busy` for a port that does not exist, as nothing is taken.
    pub fn peer_transmit(&mut self, id: PortId, frame: &[u8], now: Instant) -> Offered {
        self.port_mut(id).map_or(Offered::Busy, |port| port.peer_transmit(frame, now))
    }

    /// The next frame that has reached the peer behind a port.
    #[must_use]
    pub fn peer_receive(&mut self, id: PortId, now: Instant) -> Option<Vec<u8>> {
        self.port_mut(id)?.peer_receive(now)
    }

    /// The same behind a port whose peer cuts for itself ([`SwitchPort::set_peer_cuts`]).
    #[must_use]
    pub fn peer_receive_uncut(
        &mut self,
        id: PortId,
        now: Instant,
    ) -> Option<(Vec<u8>, Option<Uncut>)> {
        self.port_mut(id)?.peer_receive_uncut(now)
    }

    /// Moves what has arrived to the sides of every port, through the bridge where there is one.
    pub fn poll(&mut self, now: Instant) {
        while self.forward_arrived(now) {}
        for port in &mut self.ports {
            port.poll(now);
        }
    }

    /// When the next frame arrives anywhere.
    #[must_use]
    pub fn poll_deadline(&self) -> Option<Instant> {
        self.ports.iter().map(SwitchPort::poll_deadline).fold(None, earliest)
    }
}

#[cfg(test)]
mod tests;

//! A virtual switch: a port per NIC, two sides per port, and a wire from each port to a peer of its own.
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

mod counters;
mod frame;
mod port;
mod spread;
mod wire;

pub use counters::{DropCause, Drops, PortCounters, SideCounters};
pub use port::{Offered, PortConfig, Queued, SideState, SwitchPort, VfTransmit};
pub use spread::{HashTypes, KEY_SIZE, Spread, Toeplitz};
pub use wire::WireConfig;

pub use netvsc::Path;
use vmbus::Instant;
use vmbus::time::earliest;

/// Names one port of a [`Switch`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PortId(usize);

/// The ports of one host.
#[derive(Debug, Default)]
pub struct Switch {
    ports: Vec<SwitchPort>,
}

impl Switch {
    /// A switch without ports.
    #[must_use]
    pub const fn new() -> Self {
        Self { ports: Vec::new() }
    }

    /// Adds a port. Ports stay for the life of the switch, as their counters do.
    pub fn add_port(&mut self, config: PortConfig) -> PortId {
        self.ports.push(SwitchPort::new(config));
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

    /// Moves what has arrived to the sides of every port.
    pub fn poll(&mut self, now: Instant) {
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

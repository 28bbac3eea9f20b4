//! The host's end of an interface that carries the frames of a VF: joined to the virtual switch by packet sockets.

use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use hyperv_host::Host;
use hyperv_host::switch::Offered;
use netvsc::rndis::PacketFilter;
use netvsc::{PortError, PortLink, PortSettings, VfPort};
use netvsc_linux::netlink::{Event, Monitor, Topics};
use netvsc_linux::vf::{PacketConfig, PacketPort, Reception};
use vmbus::Instant;

use crate::error::Error;

/// How long frames are still on their way that were sent before their VF went.
const ON_THE_WAY: Duration = Duration::from_millis(50);
/// How soon frames are tried again that the kernel did not take.
const AGAIN: Duration = Duration::from_micros(500);
/// The NIC whose VF it is.
const NIC: usize = 0;

/// One end of an interface. It may go and come back, under the same name.
pub(crate) struct VfLink {
    name: String,
    monitor: Monitor,
    port: Option<PacketPort>,
    /// Frames of the guest's for which the switch had no room.
    arrived: VecDeque<Vec<u8>>,
    /// A frame for the guest for which the kernel had no room.
    held: Option<Vec<u8>>,
    /// When the VF was there last.
    seen: Option<Instant>,
}

impl VfLink {
    /// The interface of this name, which has to be there.
    pub(crate) fn open(name: &str) -> Result<Self, Error> {
        let wrong = |error: &dyn std::fmt::Display| Error::Run(format!("{name}: {error}"));
        let monitor = Monitor::open(Topics::LINKS).map_err(|error| wrong(&error))?;
        let (arrived, held, seen) = (VecDeque::new(), None, None);
        let mut link = Self { name: name.into(), monitor, port: None, arrived, held, seen };
        link.port = Some(link.take().map_err(|error| wrong(&error))?);
        Ok(link)
    }

    fn take(&self) -> Result<PacketPort, Box<dyn std::error::Error>> {
        let config = PacketConfig { reception: Reception::Queue, ..PacketConfig::default() };
        let mut port = PacketPort::open(&self.name, config)?;
        let switch = format!("/proc/sys/net/ipv6/conf/{}/disable_ipv6", port.name());
        if let Err(error) = std::fs::write(switch, "1") {
            tracing::debug!(%error, "IPv6 may greet its neighbours on the VF's interface");
        }
        settle(&mut port);
        Ok(port)
    }

    /// Moves frames between the guest's VF and the switch. True if any moved.
    pub(crate) fn carry(&mut self, host: &mut Host, now: Instant) -> bool {
        self.follow();
        let there = host.has_vf_elsewhere(NIC);
        if there {
            self.seen = Some(now);
        }
        let on_the_way = self.seen.is_some_and(|seen| now.since(seen) < ON_THE_WAY);
        let mut moved = false;
        if let Some(port) = &mut self.port
            && self.arrived.is_empty()
        {
            let arrived = &mut self.arrived;
            moved |= port.receive(&mut |frame| {
                let offered = if !arrived.is_empty() {
                    Offered::Busy
                } else if on_the_way {
                    host.vf_transmit(NIC, frame, now)
                } else {
                    // Nobody has a VF: what the kernel says there by itself is for nobody.
                    Offered::Accepted
                };
                if let Offered::Busy = offered {
                    arrived.push_back(frame.to_vec());
                }
            }) > 0;
        }
        while let Some(frame) = self.arrived.front() {
            if let Offered::Busy = host.vf_transmit(NIC, frame, now) {
                break;
            }
            self.arrived.pop_front();
            moved = true;
        }
        moved | self.send(host, now)
    }

    fn send(&mut self, host: &mut Host, now: Instant) -> bool {
        let Some(port) = self.port.as_mut() else { return false };
        let mut moved = false;
        if port.link() == PortLink::Up {
            while let Some(frame) = self.held.take().or_else(|| host.vf_receive(NIC, now)) {
                if let Err(PortError::Full) = port.transmit(&frame) {
                    self.held = Some(frame);
                    break;
                }
                host.recycle(NIC, frame);
                moved = true;
            }
        }
        port.flush();
        moved
    }

    /// Notices that the interface goes, and that it is back.
    fn follow(&mut self) {
        if let Some(port) = &mut self.port
            && port.link() == PortLink::Gone
        {
            self.port = None;
        }
        if let Some(port) = self.port.as_mut().filter(|port| port.mtu() != port.settled_mtu()) {
            settle(port);
        }
        let events = self.monitor.poll().unwrap_or_default();
        let named = |event: &Event| match event {
            Event::Link(link) => link.name == self.name,
            Event::Lost => true,
            _ => false,
        };
        if self.port.is_none() && events.iter().any(named) {
            match self.take() {
                Ok(port) => self.port = Some(port),
                Err(error) => tracing::debug!(%error, "an interface that is not taken again"),
            }
        }
    }

    /// What to wait for.
    pub(crate) fn ears(&self) -> Vec<Arc<OwnedFd>> {
        let ears = self.port.as_ref().map(|port| port.ears().descriptors());
        ears.unwrap_or_default().into_iter().chain([self.monitor.handle()]).collect()
    }

    /// When to try again what somebody did not take.
    pub(crate) fn deadline(&self, now: Instant) -> Option<Instant> {
        let stuck = self.port.as_ref().is_some_and(|port| port.ears().is_stuck());
        (stuck || self.held.is_some()).then(|| now + AGAIN)
    }
}

/// Has the port carry whatever its interface can: the MTU is its owner's to choose.
fn settle(port: &mut PacketPort) {
    let filter = PacketFilter::PROMISCUOUS | PacketFilter::ALL_MULTICAST;
    // The MTU that it has cannot be refused; one that is gone says so by its link.
    let _ = port.configure(PortSettings { mtu: port.mtu(), filter });
}

//! The port of a VF in a guest whose host is another process: registers in shared memory, or an interface of the kernel's.

mod closing;

use std::path::Path;
use std::time::Duration;

use hyperv_host::vf::SimulatedPort;
use netvsc::nic::TxWork;
use netvsc::rndis::packet::LargeSend;
use netvsc::{MacAddress, PathOffloads, PortError, PortLink, PortSettings, VfPort};
use netvsc_linux::netlink::{Connection, Event, Link, Monitor, NetlinkError, Topics};
use netvsc_linux::vf::{PacketConfig, PacketPort, PortEars, Reception, VfError};
use netvsc_linux::xdp::{XdpConfig, XdpPort};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use vmbus::{Guid, Instant};

use super::hush::{self, Hush};
use closing::Closing;

/// How soon frames are tried again that the kernel did not take.
const AGAIN: Duration = Duration::from_micros(500);

/// A port of any kind. One over an interface of the kernel's is closed behind the back of whoever drops it.
#[derive(Debug)]
pub struct RemotePort {
    /// There until it is dropped.
    kind: Option<Kind>,
    closing: Closing,
}

#[derive(Debug)]
enum Kind {
    /// Of the simulated device.
    Simulated(Box<SimulatedPort>),
    /// An interface, through the kernel's stack.
    Packet(Box<PacketPort>),
    /// An interface, past it.
    Xdp(Box<XdpPort>),
}

impl RemotePort {
    /// The port of a simulated device.
    pub(super) fn simulated(port: SimulatedPort) -> Self {
        Self { kind: Some(Kind::Simulated(Box::new(port))), closing: Closing::default() }
    }

    fn port(&mut self) -> Option<&mut dyn VfPort> {
        match &mut self.kind {
            Some(Kind::Simulated(port)) => Some(&mut **port),
            Some(Kind::Packet(port)) => Some(&mut **port),
            Some(Kind::Xdp(port)) => Some(&mut **port),
            None => None,
        }
    }
}

impl Drop for RemotePort {
    fn drop(&mut self) {
        match self.kind.take() {
            Some(Kind::Packet(port)) => self.closing.close(port),
            Some(Kind::Xdp(port)) => self.closing.close(port),
            Some(Kind::Simulated(_)) | None => {}
        }
    }
}

impl VfPort for RemotePort {
    fn permanent_mac(&self) -> Option<MacAddress> {
        match self.kind.as_ref()? {
            Kind::Simulated(port) => port.permanent_mac(),
            Kind::Packet(port) => port.permanent_mac(),
            Kind::Xdp(port) => port.permanent_mac(),
        }
    }

    fn link(&mut self) -> PortLink {
        self.port().map_or(PortLink::Gone, VfPort::link)
    }

    fn configure(&mut self, settings: PortSettings) -> Result<(), PortError> {
        self.port().ok_or(PortError::Gone)?.configure(settings)
    }

    fn offloads(&self) -> PathOffloads {
        match &self.kind {
            Some(Kind::Simulated(port)) => port.offloads(),
            Some(Kind::Packet(port)) => port.offloads(),
            Some(Kind::Xdp(port)) => port.offloads(),
            None => PathOffloads::default(),
        }
    }

    fn transmit_with(&mut self, frame: &[u8], work: &TxWork) -> Result<(), PortError> {
        self.port().ok_or(PortError::Gone)?.transmit_with(frame, work)
    }

    fn transmit(&mut self, frame: &[u8]) -> Result<(), PortError> {
        match &mut self.kind {
            Some(Kind::Simulated(port)) => port.transmit(frame),
            Some(Kind::Packet(port)) => port.transmit(frame),
            Some(Kind::Xdp(port)) => port.transmit(frame),
            None => Err(PortError::Gone),
        }
    }

    fn flush(&mut self) {
        if let Some(port) = self.port() {
            port.flush();
        }
    }

    fn receive(&mut self, sink: &mut dyn FnMut(&[u8])) -> usize {
        self.port().map_or(0, |port| port.receive(sink))
    }

    fn receive_whole(&mut self, sink: &mut dyn FnMut(&[u8], Option<LargeSend>)) -> usize {
        self.port().map_or(0, |port| port.receive_whole(sink))
    }

    fn confirmed(&mut self) -> u64 {
        self.port().map_or(0, VfPort::confirmed)
    }
}

/// How the frames of an interface are reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum VfDriver {
    /// AF_XDP if the driver needs no copies for it, otherwise AF_PACKET
    Auto,
    /// AF_PACKET
    Packet,
    /// AF_PACKET with a ring to receive (TPACKET_V3): fewer system calls, frames up to a millisecond later
    PacketRing,
    /// AF_XDP with copies if need be, or AF_PACKET where there is none
    Xdp,
}

/// An interface, and how its frames are reached.
#[derive(Clone, Debug)]
pub struct VfInterface {
    /// Its name.
    pub name: String,
    /// How its frames are reached.
    pub driver: VfDriver,
}

/// What happened to an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    /// The port over it has something to do.
    Work,
    /// It is gone, and the port over it with it.
    Gone,
    /// It is gone, and no port was over it.
    Left,
    /// It is there, and no port is over it.
    There,
}

/// The interface over which the frames of a VF go, whether or not it is there.
#[derive(Debug)]
pub struct KernelLink {
    interface: VfInterface,
    /// What whoever runs the guest should know.
    notes: Vec<String>,
    monitor: Monitor,
    /// The bus of the function that it belongs to, once one is there that needs it.
    pub(super) bus: Option<Guid>,
    /// The port over it: number of the interface, and what to wait for.
    open: Option<(u32, PortEars)>,
    /// Those over it before.
    closing: Closing,
    /// The number of the one whose driver cannot do without copies: trying costs as much as a switch, so it is not tried again.
    copies: Option<u32>,
    /// The kernel's IP is kept off it.
    hush: Hush,
    /// When frames are tried again.
    again: Option<Instant>,
    /// How often it went, or lost its carrier, by itself.
    pub(super) losses: u64,
    up: bool,
}

impl KernelLink {
    /// The interface of this description. What has to be known after a run that was killed is written down below this root.
    pub(crate) fn new(interface: &VfInterface, root: &Path) -> Result<Self, NetlinkError> {
        let monitor = Monitor::open(Topics::LINKS)?;
        let (interface, notes) = (interface.clone(), Vec::new());
        let (bus, open, copies, hush, again) = (None, None, None, Hush::new(root), None);
        let (closing, losses, up) = (Closing::default(), 0, true);
        Ok(Self { interface, notes, monitor, bus, open, closing, copies, hush, again, losses, up })
    }

    /// The name under which it comes.
    pub(crate) fn name(&self) -> &str {
        &self.interface.name
    }

    /// Whether a port is over it.
    pub(crate) fn is_open(&self) -> bool {
        self.open.is_some()
    }

    /// What has become known since the last call.
    pub(crate) fn take_notes(&mut self) -> Vec<String> {
        std::mem::take(&mut self.notes)
    }

    /// Keeps the kernel's IP off it from now on, if it is there, although no port is over it yet. For who knows that it is a VF's: until
    /// the port is open the host takes what the kernel says there for the guest's.
    pub(crate) fn hush(&mut self) {
        self.hush.over(&self.interface.name);
    }

    /// Takes the interface as the port of a function whose host gave it this MAC.
    pub(crate) fn open(&mut self, bus: Guid, mac: MacAddress) -> Result<RemotePort, String> {
        self.bus = Some(bus);
        self.closing.wait();
        self.hush();
        let (kind, index, ears) = self.drive(mac)?;
        self.open = Some((index, ears));
        Ok(RemotePort { kind: Some(kind), closing: self.closing.clone() })
    }

    /// Takes the interface by the best means that there are.
    fn drive(&mut self, mac: MacAddress) -> Result<(Kind, u32, PortEars), String> {
        let VfInterface { name, driver } = &self.interface;
        let hopeless =
            *driver == VfDriver::Auto && self.copies.is_some() && self.copies == index_of(name);
        if matches!(driver, VfDriver::Auto | VfDriver::Xdp) && !hopeless {
            let copies = *driver == VfDriver::Xdp;
            match XdpPort::open(name, XdpConfig { mac: Some(mac), copies, ..XdpConfig::default() })
            {
                Ok(port) => {
                    let copied = if port.is_zero_copy() { "zero-copy" } else { "copied" };
                    let (place, queues, senders) =
                        (port.attachment(), port.queues(), port.sending_queues());
                    self.notes.push(format!(
                        "{name}: AF_XDP, {place}, {copied}, {queues} queues in, {senders} out"
                    ));
                    let (index, ears) = (port.index(), port.ears());
                    return Ok((Kind::Xdp(Box::new(port)), index, ears));
                }
                Err(why) => {
                    self.copies = matches!(why, VfError::Copies).then(|| index_of(name)).flatten();
                    self.notes.push(format!("{name}: AF_PACKET, no AF_XDP: {why}"));
                }
            }
        }
        // Frames out of a ring come later than what the host says meanwhile on the synthetic path: only for who asks for it.
        let of_ring = PacketConfig::default().reception;
        let reception = if *driver == VfDriver::PacketRing { of_ring } else { Reception::Queue };
        let config = PacketConfig { mac: Some(mac), reception, ..PacketConfig::default() };
        let port = PacketPort::open(name, config).map_err(|error| error.to_string())?;
        self.notes.extend(hush::note(&port));
        let (index, ears) = (port.index(), port.ears());
        Ok((Kind::Packet(Box::new(port)), index, ears))
    }

    /// Its function is gone.
    pub(super) fn forget(&mut self, bus: Guid) {
        if self.bus == Some(bus) {
            (self.bus, self.open) = (None, None);
        }
    }

    /// The port over it has gone with its interface.
    pub(crate) fn closed(&mut self) {
        self.open = None;
    }

    /// What to wait for.
    pub(crate) fn ears(&self) -> Vec<std::sync::Arc<std::os::fd::OwnedFd>> {
        let ears = self.open.as_ref().map(|(_, ears)| ears.descriptors());
        ears.unwrap_or_default().into_iter().chain([self.monitor.handle()]).collect()
    }

    /// When to try again what the kernel did not take.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.again
    }

    /// What has happened since the last call.
    pub(crate) fn look(&mut self, now: Instant) -> Vec<Change> {
        let ears = self.ears();
        let mut fds: Vec<_> = ears.iter().map(|fd| PollFd::new(&**fd, PollFlags::IN)).collect();
        let none = Timespec { tv_sec: 0, tv_nsec: 0 };
        let ready = poll(&mut fds, Some(&none)).is_ok_and(|ready| ready > 0);
        let due = self.again.is_some_and(|at| at <= now);
        let stuck = self.open.as_ref().is_some_and(|(_, ears)| ears.is_stuck());
        if self.again.is_none() || due {
            self.again = stuck.then(|| now + AGAIN);
        }
        let mut changes = Vec::new();
        if ready || due {
            changes.push(Change::Work);
            self.hear(&mut changes);
        }
        changes
    }

    fn hear(&mut self, changes: &mut Vec<Change>) {
        let events = self.monitor.poll().unwrap_or_else(|error| {
            tracing::debug!(%error, "what the kernel says of interfaces is not heard");
            vec![Event::Lost]
        });
        let mut lost = false;
        for event in events {
            let own = self.open.as_ref().map(|(index, _)| *index);
            match event {
                Event::LinkGone(link) if own == Some(link.index) => self.lose(changes),
                Event::Link(link) if own == Some(link.index) => self.stand(&link),
                Event::Link(link) if own.is_none() && link.name == self.interface.name => {
                    changes.push(Change::There);
                }
                Event::LinkGone(link) if own.is_none() && link.name == self.interface.name => {
                    changes.push(Change::Left);
                }
                Event::Lost => lost = true,
                _ => {}
            }
        }
        // The kernel says first that it lost some, and then what came before those.
        if lost {
            self.look_again(changes);
        }
    }

    /// The interface of the port is gone.
    fn lose(&mut self, changes: &mut Vec<Change>) {
        self.losses += 1;
        changes.push(Change::Gone);
        self.closed();
    }

    /// How the interface of the port stands now.
    fn stand(&mut self, link: &Link) {
        let up = link.flags & 0x1_0041 == 0x1_0041;
        self.losses += u64::from(self.up && !up);
        self.up = up;
    }

    /// Whatever the kernel could not tell: how the interface stands now is what counts.
    fn look_again(&mut self, changes: &mut Vec<Change>) {
        let links = Connection::open().and_then(|mut kernel| kernel.links());
        let Ok(links) = links.inspect_err(|error| {
            tracing::debug!(%error, "interfaces cannot be looked at");
        }) else {
            return;
        };
        if let Some((index, _)) = self.open {
            match links.iter().find(|link| link.index == index) {
                Some(link) => return self.stand(link),
                None => self.lose(changes),
            }
        }
        let named = links.iter().any(|link| link.name == self.interface.name);
        changes.push(if named { Change::There } else { Change::Left });
    }
}

/// The number of the interface of this name, if there is one.
fn index_of(name: &str) -> Option<u32> {
    let links = Connection::open().and_then(|mut kernel| kernel.links()).ok()?;
    links.iter().find(|link| link.name == name).map(|link| link.index)
}

#[cfg(test)]
mod tests;

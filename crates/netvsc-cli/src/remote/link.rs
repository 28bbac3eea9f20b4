//! The host's end of an interface that carries the frames of a VF: joined to the virtual switch by packet sockets.

use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use hyperv_host::Host;
use hyperv_host::switch::{Offered, Uncut};
use netvsc::nic::TxWork;
use netvsc::rndis::PacketFilter;
use netvsc::{PortError, PortLink, PortSettings, VfPort};
use netvsc_linux::netlink::{Event, Monitor, Topics};
use netvsc_linux::vf::{PacketConfig, PacketPort, Reception};
use vmbus::Instant;

use super::hush::{self, Hush};
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
    arrived: VecDeque<(Vec<u8>, Option<Uncut>)>,
    /// A frame for the guest for which the kernel had no room.
    held: Option<(Vec<u8>, Option<Uncut>)>,
    /// Frames that segments for the guest were beyond the first of each. The switch counts each segment as one.
    given_segments: u64,
    /// When the VF was there last.
    seen: Option<Instant>,
    hush: Hush,
    /// What whoever runs the host should know.
    notes: Vec<String>,
}

impl VfLink {
    /// The interface of this name, which has to be there.
    pub(crate) fn open(name: &str) -> Result<Self, Error> {
        let wrong = |error: &dyn std::fmt::Display| Error::Run(format!("{name}: {error}"));
        let monitor = Monitor::open(Topics::LINKS).map_err(|error| wrong(&error))?;
        let (arrived, held, seen) = (VecDeque::new(), None, None);
        let (name, port, given_segments) = (name.into(), None, 0);
        let (hush, notes) = (Hush::new(Path::new("/")), Vec::new());
        let mut link =
            Self { name, monitor, port, arrived, held, given_segments, seen, hush, notes };
        let taken = link.take();
        link.port = Some(taken.map_err(|error| Error::Run(format!("{}: {error}", link.name)))?);
        Ok(link)
    }

    fn take(&mut self) -> Result<PacketPort, Box<dyn std::error::Error>> {
        let config = PacketConfig {
            reception: Reception::Queue,
            // Whoever has the other end may have the kernel cut the segments for it.
            bypass: false,
            ..PacketConfig::default()
        };
        self.hush.over(&self.name);
        let mut port = PacketPort::open(&self.name, config)?;
        settle(&mut port);
        self.notes.extend(hush::note(&port));
        Ok(port)
    }

    /// What has become known since the last call.
    pub(crate) fn take_notes(&mut self) -> Vec<String> {
        std::mem::take(&mut self.notes)
    }

    /// Moves frames between the guest's VF and the switch. True if any moved.
    pub(crate) fn carry(&mut self, host: &mut Host, now: Instant) -> bool {
        self.follow();
        let there = host.has_vf_elsewhere(NIC);
        if there {
            self.seen = Some(now);
        }
        let whole = host.peer_cuts(NIC);
        let on_the_way = self.seen.is_some_and(|seen| now.since(seen) < ON_THE_WAY);
        let mut moved = false;
        if let Some(port) = &mut self.port
            && self.arrived.is_empty()
        {
            let arrived = &mut self.arrived;
            let mut take = |frame: &[u8], uncut: Option<Uncut>| {
                let offered = if !arrived.is_empty() {
                    Offered::Busy
                } else if on_the_way {
                    hand_on(host, frame, uncut, now)
                } else {
                    // Nobody has a VF: what the kernel says there by itself is for nobody.
                    Offered::Accepted
                };
                if let Offered::Busy = offered {
                    arrived.push_back((frame.to_vec(), uncut));
                }
            };
            moved |= match whole {
                true => port.receive_whole(&mut |frame, send| {
                    take(frame, send.map(|send| Uncut::of(frame, send)));
                }),
                false => port.receive(&mut |frame| take(frame, None)),
            } > 0;
        }
        while let Some((frame, uncut)) = self.arrived.front() {
            if let Offered::Busy = hand_on(host, frame, *uncut, now) {
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
            while let Some((frame, uncut)) = self.held.take().or_else(|| host.vf_receive(NIC, now))
            {
                let large_send = uncut.map(|uncut| uncut.request());
                let work = TxWork { large_send, ..TxWork::NONE };
                if let Err(PortError::Full) = port.transmit_with(&frame, &work) {
                    self.held = Some((frame, uncut));
                    break;
                }
                let pieces = uncut.map_or(1, |uncut| uncut.pieces(frame.len()));
                self.given_segments += pieces as u64 - 1;
                host.recycle(NIC, frame);
                moved = true;
            }
        }
        port.flush();
        moved
    }

    /// Notices that the interface goes, and that it is back.
    fn follow(&mut self) {
        // First, so that what comes back after the port was looked at is heard the next time.
        let events = self.monitor.poll().unwrap_or_else(|_| vec![Event::Lost]);
        if let Some(port) = &mut self.port
            && port.link() == PortLink::Gone
        {
            self.port = None;
        }
        if let Some(port) = &mut self.port
            && port.mtu() != port.settled_mtu()
        {
            settle(port);
        }
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

    /// Another guest, which has no VF yet. What waits here is none of its frames: the guest before had sent it, or was to have it, or the
    /// kernel said it by itself while nobody was there.
    pub(crate) fn renew(&mut self) {
        self.given_segments = 0;
        self.arrived.clear();
        (self.held, self.seen) = (None, None);
        if let Some(port) = &mut self.port {
            port.forget();
        }
    }

    /// Frames for the guest that the switch has not counted, since a segment is one for it.
    pub(crate) fn given_segments(&self) -> u64 {
        self.given_segments
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

/// A frame of the guest's goes on.
fn hand_on(host: &mut Host, frame: &[u8], uncut: Option<Uncut>, now: Instant) -> Offered {
    match uncut {
        Some(uncut) => host.vf_transmit_uncut(NIC, frame, uncut, now),
        None => host.vf_transmit(NIC, frame, now),
    }
}

/// Has the port carry whatever its interface can: the MTU is its owner's to choose.
fn settle(port: &mut PacketPort) {
    let filter = PacketFilter::PROMISCUOUS | PacketFilter::ALL_MULTICAST;
    // The MTU that it has cannot be refused; one that is gone says so by its link.
    let _ = port.configure(PortSettings { mtu: port.mtu(), filter });
}

//! What is behind the switch of `netvsc host`, for each NIC.

use std::os::fd::BorrowedFd;

use hyperv_host::Host;
use hyperv_host::switch::Offered;
use netvsc_linux::TapName;
use rustix::event::PollFlags;
use smoltcp::wire::Ipv4Address;
use vmbus::Instant;
use vmbus::time::earliest;

use crate::errand::{Service, address, service_mac};
use crate::error::Error;
use crate::guest::Sending;
use crate::line::Line;
use crate::transfer::Endpoint;

/// Where kernels find the stack behind the first NIC.
const PEER: Ipv4Address = Ipv4Address::new(192, 0, 2, 2);

/// The far sides of all NICs.
pub(super) struct Peers {
    /// That of the first NIC, if it is the kernel.
    line: Option<Line>,
    /// The guest's first NIC takes frames. Before that, the kernel keeps what it has: this is a cable that is not plugged in.
    plugged: bool,
    /// By NIC; `None` where there is a TAP.
    services: Vec<Option<Service>>,
}

impl Peers {
    /// Far sides for so many NICs, with the TAP of this name behind the first.
    pub(super) fn open(tap: Option<&TapName>, nics: usize) -> Result<Self, Error> {
        let line = tap.map(Line::open).transpose()?;
        if let Some(line) = &line {
            line.tap().set_up(true)?;
        }
        Ok(Self { line, plugged: false, services: (0..nics).map(|_| None).collect() })
    }

    /// A new guest: the stacks know nothing of the last one.
    pub(super) fn renew(&mut self, seed: u64, now: Instant) {
        let kernel = self.line.is_some();
        self.plugged = false;
        for (nic, service) in self.services.iter_mut().enumerate() {
            let mut endpoint = Endpoint::new(service_mac(nic), address(nic, 2), seed, now);
            if nic == 0 {
                endpoint.also_at(PEER);
            }
            *service = (nic > 0 || !kernel).then(|| Service::new(endpoint));
        }
    }

    /// A NIC of the guest has started.
    pub(super) fn nic_started(&mut self, nic: usize) {
        self.plugged |= nic == 0;
    }

    /// Moves frames between the host and the far sides. True if any moved.
    pub(super) fn carry(&mut self, host: &mut Host, now: Instant) -> Result<bool, Error> {
        let mut moved = false;
        for (nic, service) in self.services.iter_mut().enumerate() {
            let Some(service) = service else { continue };
            while let Some(frame) = host.peer_receive(nic, now) {
                service.endpoint().push(|buffer| buffer.extend_from_slice(&frame));
                host.recycle(nic, frame);
                moved = true;
            }
            service.poll(now);
            while let Some(frame) = service.endpoint().front() {
                if let Offered::Busy = host.peer_transmit(nic, frame, now) {
                    break;
                }
                service.endpoint().pop();
                moved = true;
            }
        }
        let Some(line) = &mut self.line else { return Ok(moved) };
        if self.plugged {
            moved |= line.fetch_plain(host.wants_uncut(0), |frame, uncut| {
                let offered = match uncut {
                    Some(uncut) => host.peer_transmit_uncut(0, frame, uncut, now),
                    None => host.peer_transmit(0, frame, now),
                };
                match offered {
                    Offered::Busy => Sending::Later,
                    Offered::Accepted | Offered::Dropped(_) => Sending::Taken,
                }
            })?;
        }
        while let Some((frame, uncut)) = host.peer_receive_uncut(0, now) {
            let buffer = match uncut {
                Some(uncut) => line.push_uncut(frame, uncut),
                None => {
                    line.push(|buffer| {
                        buffer.extend_from_slice(&frame);
                        None
                    });
                    frame
                }
            };
            host.recycle(0, buffer);
            moved = true;
        }
        Ok(moved | line.drain()?)
    }

    /// Whether there is a TAP.
    pub(super) fn has_line(&self) -> bool {
        self.line.is_some()
    }

    /// What to wait for on its behalf.
    pub(super) fn polls(&self) -> impl Iterator<Item = (BorrowedFd<'_>, PollFlags)> {
        self.line.iter().flat_map(|line| line.polls(self.plugged))
    }

    /// Frames that the kernel did not take.
    pub(super) fn refused(&self) -> u64 {
        self.line.as_ref().map_or(0, Line::refused)
    }

    /// When a stack wants to be polled although nothing came.
    pub(super) fn deadline(&mut self, now: Instant) -> Option<Instant> {
        let services = self.services.iter_mut().flatten();
        services.map(|service| service.endpoint().deadline(now)).fold(None, earliest)
    }
}

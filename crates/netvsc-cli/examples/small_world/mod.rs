//! A guest with one NIC on the embedded host, and somebody behind the virtual switch.

use std::time::Duration;

use hyperv_host::bus::BusPolicy;
use hyperv_host::host::NicSpec;
use hyperv_host::nic::NicPolicy;
use hyperv_host::pci::PciPolicy;
use hyperv_host::switch::{Offered, PortConfig};
use netvsc::MacAddress;
use netvsc::stack::{Frames, FramesConfig};
use netvsc_cli::embedded::World;
use netvsc_cli::event::What;
use netvsc_cli::guest::Sending;
use vmbus::time::earliest;
use vmbus::{Guid, Instant};

/// MAC of the NIC.
pub const GUEST: MacAddress = MacAddress([0x00, 0x15, 0x5d, 0, 0, 1]);
/// MAC of whoever is behind the switch.
pub const PEER: MacAddress = MacAddress([0x02, 0, 0, 0, 0, 2]);

/// Host, guest and peer on one stepped clock.
pub struct SmallWorld {
    pub world: World,
    pub now: Instant,
}

impl SmallWorld {
    /// A guest with a NIC that has no VF yet.
    pub fn new() -> Result<Self, Box<dyn std::error::Error>> {
        let now = Instant::ZERO;
        let mut world = World::new(BusPolicy::default(), PciPolicy::default(), 1);
        let (policy, port) = (NicPolicy::default(), PortConfig::default());
        world.host.add_nic(NicSpec { instance: Guid::from_u128(1), mac: GUEST, policy, port }, now);
        world.guest.start(now)?;
        Ok(Self { world, now })
    }

    /// Queues for a stack.
    pub fn frames(mac: MacAddress) -> Frames {
        Frames::new(FramesConfig { mac, trust: true, ..FramesConfig::default() })
    }

    /// Carries frames between the stacks as far as they go now. True if any went.
    pub fn carry(&mut self, guest: &mut Frames, peer: &mut Frames) -> bool {
        let now = self.now;
        let mut moved = false;
        self.world.settle(now, &mut |_, fill| {
            guest.push(|buffer| _ = fill(buffer));
            moved = true;
        });
        while let Some(event) = self.world.guest.poll_event() {
            if let What::Path { path, why, .. } = event {
                println!("{now} s: frames take the {path} path: {why}");
            }
            moved = true;
        }
        while self.world.host.poll_event().is_some() {}
        while let Some(frame) = guest.front() {
            if self.world.guest.transmit(0, frame, now) == Sending::Later {
                break;
            }
            guest.pop();
            moved = true;
        }
        self.world.guest.flush(0);
        while let Some(frame) = peer.front() {
            if matches!(self.world.host.peer_transmit(0, frame, now), Offered::Busy) {
                break;
            }
            peer.pop();
            moved = true;
        }
        while let Some(frame) = self.world.host.peer_receive(0, now) {
            peer.push(|buffer| buffer.extend_from_slice(&frame));
            self.world.host.recycle(0, frame);
            moved = true;
        }
        moved
    }

    /// Goes on to the next moment at which something happens, to `stacks` at the latest. An error if that is a minute away from
    /// the start: then something stands still.
    pub fn step(&mut self, stacks: Option<Instant>) -> Result<(), Box<dyn std::error::Error>> {
        let next = earliest(self.world.deadline(), stacks).ok_or("nothing happens any more")?;
        self.now = next.max(self.now + Duration::from_micros(1));
        match self.now.since(Instant::ZERO) < Duration::from_secs(60) {
            true => Ok(()),
            false => Err("not done after a minute".into()),
        }
    }
}

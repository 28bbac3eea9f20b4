//! A host and a guest with NICs on wires that take no time, and numbered frames between each NIC and its peer.

use std::time::Duration;

use hyperv_host::bus::BusPolicy;
use hyperv_host::host::{Departure, DeviceSpec, HostEvent, NicSpec, VfSpec};
use hyperv_host::nic::NicPolicy;
use hyperv_host::pci::{FunctionSpec, PciPolicy};
use hyperv_host::switch::{Offered, PortConfig, WireConfig};
use netvsc::MacAddress;
use netvsc_cli::embedded::World;
use netvsc_cli::event::What;
use netvsc_cli::guest::Sending;
use vmbus::{Guid, Instant, Serial};
use vpci::Slot;

/// Virtual time after which whoever waits for something gives up.
const LONGEST: Duration = Duration::from_secs(600);

/// One NIC's frames.
#[derive(Default)]
struct Lane {
    sent: u32,
    peer_sent: u32,
    peer_got: Vec<u32>,
    guest_got: Vec<u32>,
}

pub struct System {
    pub world: World,
    pub now: Instant,
    /// What the guest told, and has not been taken.
    pub told: Vec<What>,
    /// VFs that are gone, and how they went.
    pub gone: Vec<(usize, Departure)>,
    /// Other devices that are gone, and how they went.
    pub gone_devices: Vec<(Guid, Departure)>,
    /// NICs that are gone.
    pub gone_nics: Vec<usize>,
    lanes: Vec<Lane>,
}

pub fn mac(nic: usize) -> MacAddress {
    MacAddress([0x00, 0x15, 0x5d, 0, 0, nic as u8 + 1])
}

/// Instance GUID of a virtual bus.
pub fn bus(number: u32) -> Guid {
    Guid::from_u128(0x4750_5500_0000_0000_3130_0000_0000_0000 | u128::from(number))
}

/// A VF on a bus of its own, to be offered when its NIC's service says so.
pub fn vf(nic: usize, serial: u32) -> VfSpec {
    let (instance, serial) = (bus(nic as u32), Serial(serial));
    VfSpec { instance, serial, associated: None, offer_first: false }
}

fn frame(number: u32) -> Vec<u8> {
    let mut frame = vec![0x02; 60];
    frame[6..12].fill(0x06);
    frame[14..18].copy_from_slice(&number.to_le_bytes());
    frame
}

fn number(frame: &[u8]) -> u32 {
    u32::from_le_bytes(*frame[14..].first_chunk().expect("frames have 60 bytes"))
}

/// A NIC on wires that take no time.
fn nic_spec(nic: usize, policy: &NicPolicy) -> NicSpec {
    let wire = WireConfig::instant();
    let port = PortConfig { to_peer: wire, from_peer: wire, ..PortConfig::default() };
    let instance = Guid::from_u128(0xf8f8_0000 + nic as u128);
    NicSpec { instance, mac: mac(nic), policy: policy.clone(), port }
}

impl System {
    /// A system with so many NICs and no functions, not started.
    pub fn with_nics(nics: usize) -> Self {
        Self::with_policy(nics, PciPolicy::default())
    }

    pub fn with_policy(nics: usize, pci: PciPolicy) -> Self {
        Self::with_policies(nics, BusPolicy::default(), pci, &NicPolicy::default())
    }

    pub fn with_policies(nics: usize, bus: BusPolicy, pci: PciPolicy, policy: &NicPolicy) -> Self {
        let mut world = World::new(bus, pci, 5);
        for nic in 0..nics {
            world.host.add_nic(nic_spec(nic, policy), Instant::ZERO);
        }
        world.guest.start(Instant::ZERO).expect("for the first time");
        let lanes = (0..nics).map(|_| Lane::default()).collect();
        let (told, gone, gone_devices) = (Vec::new(), Vec::new(), Vec::new());
        let gone_nics = Vec::new();
        Self { world, now: Instant::ZERO, told, gone, gone_devices, gone_nics, lanes }
    }

    /// Offers another NIC, which has the identity that this number had at first. Its own number.
    pub fn add_nic(&mut self, identity: usize) -> usize {
        let spec = nic_spec(identity, &NicPolicy::default());
        self.lanes.push(Lane::default());
        self.world.host.add_nic(spec, self.now)
    }

    /// The numbers of the frames that the peer of a NIC of the host got.
    pub fn peer_got(&self, nic: usize) -> &[u32] {
        &self.lanes[nic].peer_got
    }

    /// The numbers of the frames that a NIC of the guest got.
    pub fn guest_got(&self, nic: usize) -> &[u32] {
        &self.lanes[nic].guest_got
    }

    /// Gives a NIC a VF of its own.
    pub fn add_vf(&mut self, nic: usize, serial: u32) {
        let spec = vf(nic, serial);
        self.world.host.add_vf(nic, spec, self.now).expect("it has none");
        self.world.map_vf(spec.instance);
    }

    /// Gives all NICs a VF together, on the bus of the first. The associations name `associated`.
    pub fn add_shared_vf(&mut self, serial: u32, associated: u32) {
        let nics: Vec<usize> = (0..self.lanes.len()).collect();
        let spec = VfSpec { associated: Some(Serial(associated)), ..vf(0, serial) };
        self.world.host.add_shared_vf(&nics, spec, self.now).expect("they have none");
        self.world.map_vf(spec.instance);
    }

    /// Offers an NVMe disk.
    pub fn add_disk(&mut self, number: u32, serial: u32) {
        let slot = Slot::new(0, 0).expect("a slot");
        let functions = vec![FunctionSpec::nvme(slot, Serial(serial))];
        let spec = DeviceSpec { instance: bus(number), functions };
        self.world.host.add_device(spec, self.now).expect("a new one");
    }

    /// How many NICs there are.
    pub fn nics(&self) -> usize {
        self.lanes.len()
    }

    /// What was told of some kind since the last call.
    pub fn take_told<T>(&mut self, kind: impl Fn(&What) -> Option<T>) -> Vec<T> {
        self.told.drain(..).filter_map(|what| kind(&what)).collect()
    }

    /// Does all that can be done at this moment.
    pub fn settle(&mut self) {
        loop {
            let lanes = &mut self.lanes;
            self.world.settle(self.now, &mut |nic, fill| {
                let mut buffer = Vec::new();
                fill(&mut buffer);
                lanes[nic].guest_got.push(number(&buffer));
            });
            let mut moved = false;
            for nic in 0..self.lanes.len() {
                while let Some(frame) = self.world.host.peer_receive(nic, self.now) {
                    self.lanes[nic].peer_got.push(number(&frame));
                    self.world.host.recycle(nic, frame);
                    moved = true;
                }
            }
            while let Some(event) = self.world.host.poll_event() {
                match event {
                    HostEvent::VfGone { nic, departure } => self.gone.push((nic, departure)),
                    HostEvent::NicGone { nic } => self.gone_nics.push(nic),
                    HostEvent::DeviceGone { instance, departure } => {
                        self.gone_devices.push((instance, departure));
                    }
                    HostEvent::Failed { nic, why } => panic!("service of nic{nic}: {why}"),
                    _ => {}
                }
            }
            while let Some(what) = self.world.guest.poll_event() {
                if let What::Failed { what } = &what {
                    panic!("{what}");
                }
                self.told.push(what);
            }
            if !moved {
                return;
            }
        }
    }

    /// Goes to the next deadline, but not past `end`; false once that is reached.
    fn step(&mut self, end: Instant) -> bool {
        self.settle();
        let next = self.world.deadline().unwrap_or(end).max(self.now + Duration::from_micros(1));
        self.now = next.min(end);
        self.settle();
        next < end
    }

    /// Goes to the moment at which something happens next.
    pub fn run_to_next(&mut self) {
        let end = self.now + LONGEST;
        self.step(end);
    }

    /// Lets virtual time go by.
    pub fn run(&mut self, span: Duration) {
        let end = self.now + span;
        while self.step(end) {}
    }

    /// Lets virtual time go by until something is so.
    pub fn run_until(&mut self, what: &str, mut so: impl FnMut(&Self) -> bool) {
        let end = self.now + LONGEST;
        self.settle();
        while !so(self) {
            assert!(self.step(end), "never so: {what}; {:?}", self.told.last());
        }
    }

    pub fn path(&self, nic: usize) -> &'static str {
        self.world.guest.view(nic).path
    }

    pub fn run_until_on_vf(&mut self, nic: usize) {
        self.run_until("the NIC is on its VF", |system| system.path(nic) == "vf");
    }

    /// Sends frames from the guest through a NIC, numbered on.
    pub fn send(&mut self, nic: usize, frames: u32) {
        for _ in 0..frames {
            let next = frame(self.lanes[nic].sent);
            while self.world.guest.transmit(nic, &next, self.now) == Sending::Later {
                self.world.guest.flush(nic);
                let end = self.now + Duration::from_millis(1);
                self.step(end);
            }
            self.lanes[nic].sent += 1;
        }
        self.world.guest.flush(nic);
    }

    /// Sends frames from the peer of a NIC, numbered on.
    pub fn peer_sends(&mut self, nic: usize, frames: u32) {
        for _ in 0..frames {
            let next = frame(self.lanes[nic].peer_sent);
            assert_eq!(self.world.host.peer_transmit(nic, &next, self.now), Offered::Accepted);
            self.lanes[nic].peer_sent += 1;
        }
    }

    /// Everything that was sent in either direction has arrived, once and in order.
    pub fn check(&self, nic: usize) {
        let lane = &self.lanes[nic];
        assert_eq!(lane.peer_got, (0..lane.sent).collect::<Vec<_>>(), "from nic{nic}");
        assert_eq!(lane.guest_got, (0..lane.peer_sent).collect::<Vec<_>>(), "to nic{nic}");
    }
}

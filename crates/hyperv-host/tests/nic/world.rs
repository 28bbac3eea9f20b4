//! A guest's NIC and a host's NIC service with rings between them and a wire behind.

use std::collections::VecDeque;

use hyperv_host::memory::{GuestMemory, GuestRam};
use hyperv_host::nic::{GuestView, NicService, NicServiceConfig, NicServiceEvent};
use hyperv_host::switch::{Offered, PortConfig, SwitchPort, WireConfig};
use netvsc::nic::{NicError, NicQueue};
use netvsc::nvsp::Version;
use netvsc::{MacAddress, Nic, NicConfig, NicEvent, Path, SharedBuffer};
use vmbus::channel::{Channel, SignalFlag};
use vmbus::memory::{PageList, SharedPages};
use vmbus::time::earliest;
use vmbus::{GpadlId, Instant, Pfn, Platform};

pub const MAC: MacAddress = MacAddress([0x00, 0x15, 0x5d, 0, 0, 7]);
pub const PEER: MacAddress = MacAddress([0x02, 0, 0, 0, 0, 1]);
const RECEIVE: GpadlId = GpadlId(0xe1e10);
const SEND: GpadlId = GpadlId(0xe1e11);

pub struct World {
    ram: GuestRam,
    pub service: NicService,
    pub port: SwitchPort,
    pub nic: Nic,
    /// Sub-channels, and what came on them.
    pub queues: Vec<NicQueue>,
    pub received_by_queue: Vec<(u16, Vec<u8>)>,
    pub to_host: SignalFlag,
    pub to_guest: SignalFlag,
    buffers: [(GpadlId, PageList); 2],
    pub now: Instant,
    pub received: Vec<Vec<u8>>,
    pub at_peer: Vec<Vec<u8>>,
    pub events: VecDeque<NicEvent>,
    pub host_events: Vec<NicServiceEvent>,
    /// Why the NIC gave its channel up. Tests that expect that take it away; the others fail.
    pub guest_error: Option<NicError>,
    /// The NIC has come up, and was not shut down since.
    pub ready: bool,
    /// Errors of the NIC, and channels that the service gives up, are noted and not failures of the test.
    pub tolerant: bool,
}

pub struct Sizes {
    pub ring: usize,
    pub receive: usize,
    pub send: usize,
}

pub const ROOMY: Sizes = Sizes { ring: 33, receive: 256, send: 64 };

/// The host's end of a channel.
pub type HostChannel = Channel<PageList, SignalFlag>;

/// The guest's end of a new channel to `service`, with what the host sees of its buffers, and the buffers.
pub type Connection =
    (Channel<SharedPages, SignalFlag>, [(GpadlId, PageList); 2], [SharedBuffer; 2]);

pub fn connect(
    ram: &GuestRam,
    service: &mut NicService,
    port: &mut SwitchPort,
    signals: [&SignalFlag; 2],
    sizes: &Sizes,
) -> Connection {
    connect_watched(ram, service, port, signals, sizes, |_, _| {})
}

/// The same, with somebody who looks at both ends before anything is said.
fn connect_watched(
    ram: &GuestRam,
    service: &mut NicService,
    port: &mut SwitchPort,
    signals: [&SignalFlag; 2],
    sizes: &Sizes,
    watch: impl FnOnce(&mut Channel, &mut HostChannel),
) -> Connection {
    let [to_host, to_guest] = signals;
    let map = |pages: &SharedPages| ram.map(pages.frames()).unwrap();
    let rings = ram.allocate(2 * sizes.ring).unwrap();
    let (up, down) = (rings.slice(0, sizes.ring).unwrap(), rings.slice(sizes.ring, sizes.ring));
    let down = down.unwrap();
    let (receive, send) = (ram.allocate(sizes.receive).unwrap(), ram.allocate(sizes.send).unwrap());
    let mut host = Channel::from_parts(map(&down), map(&up), to_guest.clone()).unwrap();
    let mut guest = Channel::from_parts(up, down, to_host.clone()).unwrap();
    watch(&mut guest, &mut host);
    let buffers = [(RECEIVE, map(&receive)), (SEND, map(&send))];
    service.open(host, port);
    let receive = SharedBuffer { gpadl: RECEIVE, pages: receive };
    let send = SharedBuffer { gpadl: SEND, pages: send };
    (guest, buffers, [receive, send])
}

pub fn world(config: NicConfig, sizes: &Sizes, versions: &[Version]) -> World {
    let mut service_config = NicServiceConfig::new(MAC);
    service_config.policy.versions = versions.to_vec();
    world_with(config, sizes, service_config)
}

pub fn world_with(config: NicConfig, sizes: &Sizes, service_config: NicServiceConfig) -> World {
    world_watched(config, sizes, service_config, |_, _| {})
}

pub fn world_watched(
    config: NicConfig,
    sizes: &Sizes,
    service_config: NicServiceConfig,
    watch: impl FnOnce(&mut Channel, &mut HostChannel),
) -> World {
    let ram = GuestRam::new(7, 4096);
    let mut service = NicService::new(service_config);
    let mut port = SwitchPort::new(PortConfig {
        to_peer: WireConfig::instant(),
        from_peer: WireConfig::instant(),
        ..PortConfig::default()
    });
    let (to_host, to_guest) = (SignalFlag::new(), SignalFlag::new());
    let now = Instant::ZERO;
    let signals = [&to_host, &to_guest];
    let (channel, buffers, [receive, send]) =
        connect_watched(&ram, &mut service, &mut port, signals, sizes, watch);
    let nic = Nic::new(channel, receive, Some(send), config, now).unwrap();
    World {
        ram,
        service,
        port,
        nic,
        queues: Vec::new(),
        received_by_queue: Vec::new(),
        to_host,
        to_guest,
        buffers,
        now,
        received: Vec::new(),
        at_peer: Vec::new(),
        events: VecDeque::new(),
        host_events: Vec::new(),
        guest_error: None,
        ready: false,
        tolerant: false,
    }
}

pub fn ready() -> World {
    let mut world = world(NicConfig::default(), &ROOMY, &[Version::V6_1, Version::V5]);
    world.settle();
    assert!(matches!(world.events.pop_front(), Some(NicEvent::Ready { mac: MAC, .. })));
    world
}

impl World {
    /// Memory of the guest that belongs to nobody yet.
    pub fn allocate(&self, pages: usize) -> SharedPages {
        self.ram.allocate(pages).unwrap()
    }

    /// Closes the channel and opens it again, with other memory and another NIC.
    pub fn reopen(&mut self, config: NicConfig, sizes: &Sizes) {
        self.service.close(&mut self.port);
        let signals = [&self.to_host, &self.to_guest];
        let Self { ram, service, port, now, .. } = self;
        let (channel, buffers, [receive, send]) = connect(ram, service, port, signals, sizes);
        self.nic = Nic::new(channel, receive, Some(send), config, *now).unwrap();
        self.buffers = buffers;
        self.guest_error = None;
        self.ready = false;
        self.events.clear();
    }

    /// Closes the channel and opens it again for the same NIC, which was stopped.
    pub fn restart(&mut self, sizes: &Sizes) {
        self.queues.drain(..).for_each(|queue| drop(queue.into_parts()));
        self.service.close(&mut self.port);
        let signals = [&self.to_host, &self.to_guest];
        let Self { ram, service, port, now, .. } = self;
        let (channel, buffers, [receive, send]) = connect(ram, service, port, signals, sizes);
        self.nic.restart(channel, receive, Some(send), *now).unwrap();
        self.buffers = buffers;
        self.events.clear();
    }

    /// One side looks at what the other said, if it said anything. False if neither has anything to do.
    pub fn step(&mut self) -> bool {
        if self.to_host.take() {
            self.poll_host();
        } else if self.to_guest.take() {
            self.poll_guest();
        } else {
            return false;
        }
        true
    }

    /// The host's and the guest's end of a new channel.
    pub fn channel(
        &self,
        ring: usize,
    ) -> (Channel<PageList, SignalFlag>, Channel<SharedPages, SignalFlag>) {
        let rings = self.ram.allocate(2 * ring).unwrap();
        let (up, down) = (rings.slice(0, ring).unwrap(), rings.slice(ring, ring).unwrap());
        let map = |pages: &SharedPages| self.ram.map(pages.frames()).unwrap();
        let host = Channel::from_parts(map(&down), map(&up), self.to_guest.clone()).unwrap();
        let guest = Channel::from_parts(up, down, self.to_host.clone()).unwrap();
        (host, guest)
    }

    /// Opens a sub-channel on both sides.
    pub fn add_queue(&mut self, number: u16, ring: usize) {
        let (host, guest) = self.channel(ring);
        self.service.open_queue(number, host, &mut self.port);
        self.queues.push(self.nic.add_queue(number, guest).unwrap());
        self.poll_host();
        self.settle();
    }

    fn poll_queues(&mut self) {
        for queue in &mut self.queues {
            let (number, received) = (queue.number(), &mut self.received_by_queue);
            let polled = queue.poll(&mut |frame| {
                let mut copy = vec![0; frame.len()];
                assert_eq!(frame.copy_to(&mut copy), copy.len());
                received.push((number, copy));
            });
            polled.unwrap();
            assert!(!queue.has_more());
        }
    }

    pub fn poll_host(&mut self) {
        let Self { service, port, buffers, ram, now, .. } = self;
        let gpadl =
            |id| buffers.iter().find(|(known, _)| *known == id).map(|(_, pages)| pages.clone());
        let pages = |frames: &[Pfn]| ram.map(frames).ok();
        service.poll(*now, GuestView { gpadl: &gpadl, pages: &pages }, port);
        while let Some(event) = self.service.poll_event() {
            let failed = matches!(event, NicServiceEvent::Failed(_));
            assert!(self.tolerant || !failed, "{event:?}");
            self.host_events.push(event);
        }
    }

    pub fn poll_guest(&mut self) {
        let Self { nic, received, now, .. } = self;
        let outcome = nic.poll(*now, &mut |frame| {
            let mut copy = vec![0; frame.len()];
            assert_eq!(frame.copy_to(&mut copy), copy.len());
            received.push(copy);
        });
        if let Err(error) = outcome {
            assert!(self.tolerant, "{error}");
            self.guest_error = Some(error);
        }
        while let Some(event) = self.nic.poll_event() {
            match event {
                NicEvent::Ready { .. } => self.ready = true,
                NicEvent::Stopped => self.ready = false,
                _ => {}
            }
            self.events.push_back(event);
        }
    }

    /// Lets everybody talk until nobody has anything to do; time passes only when all wait for it.
    pub fn settle(&mut self) {
        for _ in 0..100_000 {
            let woken = self.port.take_wake(Path::Synthetic, self.now);
            let due = |at: Option<Instant>| at.is_some_and(|at| at <= self.now);
            let host = self.to_host.take() | woken | due(self.service.poll_deadline());
            if host {
                self.poll_host();
            }
            let due = self.nic.poll_deadline().is_some_and(|at| at <= self.now);
            let guest = (self.to_guest.take() | due) && self.guest_error.is_none();
            if guest {
                self.poll_guest();
                self.poll_queues();
            }
            let before = self.at_peer.len();
            self.at_peer.extend(std::iter::from_fn(|| self.port.peer_receive(self.now)));
            if host || guest || self.at_peer.len() > before {
                continue;
            }
            let next = earliest(self.service.poll_deadline(), self.port.poll_deadline());
            match next {
                Some(next) if next > self.now => self.now = next,
                _ => return,
            }
        }
        panic!("they never stop");
    }

    /// The peer sends a frame; its wire has room.
    pub fn peer_sends(&mut self, frame: &[u8]) {
        assert_ne!(self.port.peer_transmit(frame, self.now), Offered::Busy);
    }

    /// The host's own acts are followed by a poll.
    pub fn host(&mut self, act: impl FnOnce(&mut NicService, Instant)) {
        act(&mut self.service, self.now);
        self.poll_host();
        self.settle();
    }
}

pub fn frame(to: MacAddress, from: MacAddress, len: usize, seed: u8) -> Vec<u8> {
    let mut frame: Vec<u8> = (0..len).map(|at| (at as u8).wrapping_mul(31) ^ seed).collect();
    frame[..6].copy_from_slice(&to.0);
    frame[6..12].copy_from_slice(&from.0);
    frame[12..14].copy_from_slice(&[0x88, 0xb5]);
    frame
}

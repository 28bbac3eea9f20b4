//! A NIC with a stack on it, whose owner takes no events.

use std::task::{Context, Waker};
use std::time::Duration;

use embassy_net_driver::{Driver, LinkState, RxToken, TxToken};
use hyperv_host::memory::{GuestMemory, GuestRam};
use hyperv_host::nic::{GuestView, NicService, NicServiceConfig};
use hyperv_host::switch::{Offered, PortConfig, SwitchPort, WireConfig};
use netvsc::stack::embassy::{Runner, StackDriver};
use netvsc::stack::{Device, FramesConfig};
use netvsc::{Nic, NicConfig, NicEvent, Path};
use vmbus::channel::SignalFlag;
use vmbus::memory::PageList;
use vmbus::{GpadlId, Instant, Pfn, Serial};

use crate::world::{MAC, PEER, ROOMY, connect, frame};

/// A device in two halves, and its host.
struct Halves {
    ram: GuestRam,
    service: NicService,
    port: SwitchPort,
    runner: Runner<Nic>,
    driver: StackDriver,
    to_host: SignalFlag,
    to_guest: SignalFlag,
    buffers: [(GpadlId, PageList); 2],
    now: Instant,
}

fn halves() -> Halves {
    let ram = GuestRam::new(7, 1024);
    let mut service = NicService::new(NicServiceConfig::new(MAC));
    let wire = WireConfig::instant();
    let config = PortConfig { to_peer: wire, from_peer: wire, ..PortConfig::default() };
    let mut port = SwitchPort::new(config);
    let (to_host, to_guest) = (SignalFlag::new(), SignalFlag::new());
    let signals = [&to_host, &to_guest];
    let (channel, buffers, [receive, send]) =
        connect(&ram, &mut service, &mut port, signals, &ROOMY);
    let now = Instant::ZERO;
    let nic = Nic::new(channel, receive, Some(send), NicConfig::default(), now).unwrap();
    let (runner, driver) = Device::new(nic, FramesConfig::default()).split();
    Halves { ram, service, port, runner, driver, to_host, to_guest, buffers, now }
}

impl Halves {
    fn host(&mut self) {
        let Self { service, port, buffers, ram, now, .. } = self;
        let gpadl =
            |id| buffers.iter().find(|(known, _)| *known == id).map(|(_, pages)| pages.clone());
        let pages = |frames: &[Pfn]| ram.map(frames).ok();
        service.poll(*now, GuestView { gpadl: &gpadl, pages: &pages }, port);
        while self.service.poll_event().is_some() {}
    }

    /// Both sides are polled for no other reason than that they were rung or are due.
    fn settle(&mut self) {
        for _ in 0..10_000 {
            let due = |at: Option<Instant>| at.is_some_and(|at| at <= self.now);
            let woken = self.port.take_wake(Path::Synthetic, self.now);
            let host = self.to_host.take() | woken | due(self.service.poll_deadline());
            let mut context = Context::from_waker(Waker::noop());
            let queued = self.runner.poll_queued(&mut context).is_ready();
            let guest = self.to_guest.take() | queued | due(self.runner.poll_deadline());
            if host {
                self.host();
            }
            if guest {
                self.runner.poll(self.now).unwrap();
            }
            if !host && !guest {
                return;
            }
        }
        panic!("they never stop");
    }

    fn link(&mut self) -> LinkState {
        self.driver.link_state(&mut Context::from_waker(Waker::noop()))
    }
}

#[test]
fn a_card_whose_events_nobody_takes_goes_on() {
    let mut halves = halves();
    halves.settle();
    for _ in 0..300 {
        halves.service.vf_added(Serial(1), halves.now);
        halves.host();
        halves.service.vf_lost();
        halves.host();
        halves.settle();
    }
    let arriving = frame(MAC, PEER, 100, 1);
    assert_ne!(halves.port.peer_transmit(&arriving, halves.now), Offered::Busy);
    halves.settle();
    let mut context = Context::from_waker(Waker::noop());
    let (received, room) = halves.driver.receive(&mut context).expect("a frame");
    assert_eq!(received.consume(|bytes| bytes.to_vec()), arriving);
    let answer = frame(PEER, MAC, 100, 2);
    room.consume(100, |bytes| bytes.copy_from_slice(&answer));
    halves.settle();
    assert_eq!(halves.port.peer_receive(halves.now), Some(answer));
    // 600 associations and that it is ready; the newest are still there.
    assert_eq!(halves.runner.events_lost(), 601 - 256);
    let last = std::iter::from_fn(|| halves.runner.poll_event()).last();
    assert_eq!(last, Some(NicEvent::Disassociated { serial: Serial(1) }));
}

#[test]
fn the_link_of_a_stack_is_that_of_its_nic() {
    let mut halves = halves();
    assert!(halves.link() == LinkState::Down, "start-up is not finished");
    halves.settle();
    assert!(halves.link() == LinkState::Up);
    for up in [false, true] {
        halves.service.set_link(up);
        halves.host();
        halves.settle();
        // Changes are told with restraint.
        halves.now = halves.now + Duration::from_secs(10);
        halves.settle();
        assert_eq!(halves.link() == LinkState::Up, up);
    }
    halves.runner.card_mut().shutdown(halves.now);
    halves.settle();
    assert!(halves.link() == LinkState::Down, "it is down");
}

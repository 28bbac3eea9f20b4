//! A guest's whole NIC, with the real service of a host behind it, and somebody between them.

mod between;

use std::time::Duration;

use hyperv_host::memory::GuestRam;
use netvsc::Path;
use netvsc::nic::{Nic, NicConfig, NicEvent, RxFrame, SharedBuffer};
use netvsc::nvsp::Version;
use vmbus::channel::{Channel, SignalFlag};
use vmbus::{GpadlId, Instant, Platform};

use self::between::Between;
use crate::script::Script;

/// Steps of one input; more teach nothing new.
const STEPS: usize = 300;
const RECEIVE: GpadlId = GpadlId(0xe1e10);
const SEND: GpadlId = GpadlId(0xe1e11);

/// A byte that configures the guest, then what happens, one byte each with what belongs to it. Packets of the host's service
/// arrive as they are, changed, twice, late or never, with ranges and contents that lie, among others that nobody sent;
/// the guest sends frames, switches, and goes down.
pub fn nic_guest(input: &[u8]) {
    let mut script = Script::new(input);
    let ram = GuestRam::new(7, 96);
    let mut world = World::new(&mut script, &ram);
    for _ in 0..STEPS {
        if script.is_over() {
            break;
        }
        world.step(&mut script);
    }
    world.finish();
    assert_eq!(ram.allocated(), 0, "pages are lost");
}

struct World {
    nic: Nic,
    between: Between,
    now: Instant,
    /// Told once.
    failed: bool,
    stopped: bool,
    ready: bool,
    /// Largest frame with its header.
    most: usize,
    /// Frames taken for sending.
    sent: u64,
    overdue: u64,
}

impl World {
    fn new(script: &mut Script<'_>, ram: &GuestRam) -> Self {
        let form = script.byte();
        let pages = |count| ram.allocate(count).expect("memory");
        let rings = |count| (pages(count), pages(count));
        let (up, down) = rings(if form & 1 == 0 { 5 } else { 2 });
        let guest = Channel::from_parts(up.clone(), down.clone(), SignalFlag::new());
        let buffer = |gpadl, count| SharedBuffer { gpadl, pages: pages(count) };
        let (receive, send) = (buffer(RECEIVE, 16), buffer(SEND, 12));
        let config = NicConfig {
            versions: if form & 2 == 0 {
                vec![Version::V6_1, Version::V5]
            } else {
                vec![Version::V5]
            },
            sriov: form & 4 == 0,
            isolated: form & 10 == 8,
            ..NicConfig::default()
        };
        let most = config.mtu as usize + 14;
        let between = Between::new(rings(5), (down, up), [receive.clone(), send.clone()]);
        let guest = guest.expect("empty rings");
        let nic = Nic::new(guest, receive, Some(send), config, Instant::ZERO);
        Self {
            nic: nic.expect("a sound configuration"),
            between,
            now: Instant::ZERO,
            failed: false,
            stopped: false,
            ready: false,
            most,
            sent: 0,
            overdue: 0,
        }
    }

    fn step(&mut self, script: &mut Script<'_>) {
        match script.below(32) {
            0 | 1 => self.poll(),
            2..5 => {
                let count = script.byte();
                self.exchange(count.into());
            }
            5 => {
                let count = 1 + (script.byte() & 7);
                for _ in 0..count {
                    let len = usize::from(script.byte()) * 7;
                    self.transmit(&vec![0x11; len]);
                }
                self.nic.flush();
            }
            6 => {
                let path = if script.byte() & 1 == 0 { Path::Synthetic } else { Path::Vf };
                self.nic.switch_data_path(path, self.now);
            }
            7 => {
                // Only now and then, since little can follow.
                if script.byte() == 0x77 {
                    // A dead NIC can be put down, too.
                    self.failed = false;
                    self.nic.shutdown(self.now);
                }
            }
            8 => {
                self.now = self.now + Duration::from_millis(100 * u64::from(script.byte()));
                self.poll();
            }
            what => self.between.step(what, script, self.now),
        }
    }

    /// So many rounds of both sides, with everything delivered as it is.
    fn exchange(&mut self, rounds: usize) {
        for _ in 0..rounds {
            self.poll();
            let up = self.between.hand_up();
            self.between.serve(self.now);
            if !self.between.hand_down() && !up {
                break;
            }
        }
    }

    fn transmit(&mut self, frame: &[u8]) {
        let can = self.nic.can_transmit();
        match self.nic.transmit(frame) {
            Ok(()) => {
                assert!(can && self.ready && !self.failed && !self.stopped);
                assert!((14..=self.most).contains(&frame.len()));
                self.sent += 1;
            }
            Err(error) => assert!(!error.to_string().is_empty()),
        }
    }

    fn poll(&mut self) {
        let most = self.between.receive_bytes();
        let mut frames = 0_u64;
        let before = self.nic.stats().rx_frames;
        let outcome = self.nic.poll(self.now, &mut |frame: RxFrame<'_>| {
            frames += 1;
            assert!((14..=most).contains(&frame.len()), "{} bytes", frame.len());
            let mut out = vec![0; frame.len() + 1];
            assert_eq!(frame.copy_to(&mut out), frame.len());
            assert_eq!(frame.copy_to(&mut out[..13]), 13);
        });
        assert_eq!(self.nic.stats().rx_frames - before, frames);
        assert!(frames == 0 || self.ready || !self.events_over(), "frames before it is ready");
        self.events();
        assert_eq!(outcome.is_err(), self.failed, "{outcome:?}");
        if let Err(error) = outcome {
            assert_eq!(
                self.nic.poll(self.now, &mut |_| panic!("a frame after {error}")),
                Err(error)
            );
            assert!(self.between.tampered, "{error}");
        }
        let stats = self.nic.stats();
        assert!(self.between.tampered || stats.bad.total() == 0, "{:?}", stats.bad);
        assert!(stats.tx_frames == self.sent && stats.tx_completed <= stats.tx_messages);
    }

    /// Whether there is nothing more to be told.
    fn events_over(&self) -> bool {
        self.failed || self.stopped
    }

    fn events(&mut self) {
        while let Some(event) = self.nic.poll_event() {
            assert!(!self.events_over(), "{event:?} after the end");
            match event {
                NicEvent::Ready { mac, mtu, .. } => {
                    assert!(!self.ready && !mac.is_multicast() && mtu >= 68);
                    self.most = self.most.min(mtu as usize + 14);
                    self.ready = true;
                }
                NicEvent::Failed(_) => self.failed = true,
                NicEvent::Stopped => self.stopped = true,
                NicEvent::Overdue { .. } => self.overdue += 1,
                NicEvent::Link { .. } => assert!(self.ready),
                _ => {}
            }
        }
    }

    /// Nothing is awaited for ever, and nothing is held when the NIC is gone.
    fn finish(mut self) {
        self.poll();
        for round in 0.. {
            assert!(round < 10_000, "deadlines without end");
            let Some(due) = self.nic.poll_deadline() else { break };
            if self.events_over() {
                break;
            }
            self.now = self.now.max(due);
            self.poll();
        }
        let idle = self.ready || self.events_over();
        assert!(idle || self.overdue > 0, "start-up waits for ever");
        let Self { nic, between, .. } = self;
        let (_, receive, send) = nic.into_parts();
        assert!(send.is_some_and(|send| send.gpadl == SEND));
        assert_eq!(receive.gpadl, RECEIVE);
        drop(between);
    }
}

//! The guest's PCI bus, with the real service of a host behind it, and somebody between them.

mod owner;

use std::collections::VecDeque;
use std::time::Duration;

use hyperv_host::pci::{PciEvent, PciPolicy, PciService};
use vmbus::channel::{Channel, SignalFlag};
use vmbus::memory::{PageList, SharedMemory, SharedPages};
use vmbus::packet::{Outgoing, PacketKind};
use vmbus::{Instant, Pfn, Serial};
use vpci::message::{Description, MessageType};
use vpci::{PciBus, PciBusConfig, Slot};

use self::owner::Owner;
use crate::script::Script;

/// Steps of one input; more teach nothing new.
const STEPS: usize = 300;
/// Notices with a slot and nothing else.
const NOTICES: [MessageType; 4] = [
    MessageType::INVALIDATE_DEVICE,
    MessageType::QUERY_STOP,
    MessageType::RE_ENABLE,
    MessageType::QUERY_STOP_FAILED,
];

/// What happens, one byte each with what belongs to it: functions come and go, their owner makes requests, and the packets
/// of the host's service arrive as they are, changed, twice, late or never, among others that nobody sent.
///
/// When the steps are over, everything that is awaited must become overdue, and nothing may be left.
pub fn vpci_guest(input: &[u8]) {
    let mut script = Script::new(input);
    let mut world = World::new();
    for _ in 0..STEPS {
        if script.is_over() {
            break;
        }
        world.step(&mut script);
        world.listen();
    }
    world.finish();
}

/// A packet on its way to the guest.
#[derive(Clone, Debug)]
struct Parcel {
    completion: bool,
    id: u64,
    payload: Vec<u8>,
}

struct World {
    bus: PciBus,
    owner: Owner,
    service: PciService,
    /// The end that the service's guest would have.
    inner: Channel,
    /// The end that the guest's host would have.
    outer: Channel,
    /// The ring in which the guest reads.
    down: SharedPages,
    now: Instant,
    /// Whether anything was not as the service wanted it.
    tampered: bool,
    /// For the guest, not delivered yet.
    parcels: VecDeque<Parcel>,
    /// Kept back, to come late.
    late: Vec<Parcel>,
}

/// A pair of rings.
fn rings() -> (SharedPages, SharedPages) {
    let ring = |first: u64| SharedPages::from_heap(&[0, 1, 2].map(|page| Pfn(first + page)));
    (ring(0), ring(3))
}

/// Both ends of a channel, and the ring of the second.
fn pair() -> (Channel, Channel, SharedPages) {
    let (up, down) = rings();
    let end = |tx: &SharedPages, rx: &SharedPages| {
        Channel::from_parts(tx.clone(), rx.clone(), SignalFlag::new()).expect("empty rings")
    };
    (end(&up, &down), end(&down, &up), down)
}

impl World {
    fn new() -> Self {
        let (guest, outer, down) = pair();
        let bus = PciBus::new(guest, PciBusConfig::new(0x1000), Instant::ZERO);
        let mut service = PciService::new(PciPolicy::default());
        let inner = serve_on_new_rings(&mut service);
        Self {
            bus,
            owner: Owner::default(),
            service,
            inner,
            outer,
            down,
            now: Instant::ZERO,
            tampered: false,
            parcels: VecDeque::new(),
            late: Vec::new(),
        }
    }

    fn step(&mut self, script: &mut Script<'_>) {
        let now = self.now;
        match script.below(32) {
            0 => self.poll(),
            1..4 => self.exchange(script.byte().into()),
            4 | 5 => {
                let [slot, serial] = [script.byte(), script.byte()];
                let bars = [0xffff_f00c, 0xffff_ffff, 0, 0, 0, 0];
                // Slots may be taken.
                let _ = self.service.add_function(function(slot, serial), bars, now);
            }
            6 => {
                self.service.remove(slot(script.byte()), now);
            }
            7 => {
                self.service.eject(slot(script.byte()), now);
            }
            8 => self.service.invalidate_blocks(slot(script.byte()), script.byte().into(), now),
            9 => self.service.invalidate_bus(now),
            10 => {
                let kind = NOTICES[usize::from(script.below(4))];
                self.service.notify(kind, slot(script.byte()), now);
            }
            what @ 11..18 => self.owner.request(what, script, &mut self.bus, now),
            18 => self.resume(),
            19 => match script.byte() {
                0x77 => self.bus.shutdown(now),
                0x66 => {
                    self.tampered = true;
                    self.bus.rescinded();
                }
                _ => {}
            },
            20 => {
                self.now = now + Duration::from_millis(200 * u64::from(script.byte()));
                self.poll();
            }
            21 => self.hand_up(),
            22 => self.serve(),
            23 => self.hand_down(),
            what => {
                self.tampered = true;
                self.tamper(what, script);
            }
        }
    }

    fn poll(&mut self) {
        let outcome = self.bus.poll(self.now);
        self.listen();
        assert!(self.tampered || outcome.is_ok(), "{outcome:?}");
        if let Err(error) = outcome {
            assert!(!error.to_string().is_empty());
            assert_eq!(self.bus.functions().count(), 0, "functions of a dead bus");
        }
        let stats = self.bus.stats();
        assert!(self.tampered || stats.bad_packets == 0, "{stats:?}");
    }

    fn listen(&mut self) {
        self.owner.listen(&mut self.bus);
    }

    /// So many rounds of both sides, with everything delivered as it is.
    fn exchange(&mut self, rounds: usize) {
        for _ in 0..rounds {
            self.poll();
            self.hand_up();
            self.serve();
            if self.parcels.is_empty() {
                break;
            }
            self.hand_down();
        }
    }

    /// Hands on what the guest sent.
    fn hand_up(&mut self) {
        let mut buffer = vec![0; 8192];
        // A ring that was tampered with may be of no use.
        while let Ok(Some(packet)) = self.outer.receive(&mut buffer) {
            assert!(matches!(packet.kind, PacketKind::InBand), "{packet:?}");
            let (transaction_id, completion) = (packet.transaction_id, packet.completion_requested);
            let payload = packet.payload;
            let number = payload.first_chunk().expect("a type");
            assert!(MessageType(u32::from_le_bytes(*number)).name().is_some(), "{payload:02x?}");
            // The service may have given up, and then reads no more.
            let _ = self.inner.try_send(&Outgoing::InBand { transaction_id, completion, payload });
        }
        let _ = self.outer.commit_read();
    }

    /// Lets the service work, and takes what it sends.
    fn serve(&mut self) {
        self.service.poll(self.now);
        while let Some(event) = self.service.poll_event() {
            let wrong = matches!(event, PciEvent::Failed(_));
            assert!(self.tampered || !wrong, "{event:?}");
        }
        let mut buffer = vec![0; 8192];
        while let Ok(Some(packet)) = self.inner.receive(&mut buffer) {
            self.parcels.push_back(Parcel {
                completion: matches!(packet.kind, PacketKind::Completion),
                id: packet.transaction_id,
                payload: packet.payload.to_vec(),
            });
        }
        let _ = self.inner.arm();
    }

    /// Delivers everything as it is.
    fn hand_down(&mut self) {
        while let Some(parcel) = self.parcels.pop_front() {
            if !self.deliver(&parcel) {
                self.parcels.push_front(parcel);
                break;
            }
        }
    }

    /// `false` if there is no room.
    fn deliver(&mut self, parcel: &Parcel) -> bool {
        let &Parcel { completion, id: transaction_id, ref payload } = parcel;
        let outgoing = if completion {
            Outgoing::Completion { transaction_id, payload }
        } else {
            Outgoing::InBand { transaction_id, completion: false, payload }
        };
        self.outer.try_send(&outgoing).is_ok()
    }

    /// A suspended bus goes on with new rings on both sides.
    fn resume(&mut self) {
        let (guest, outer, down) = pair();
        if self.bus.resume(guest, self.now).is_ok() {
            self.owner.resumed();
            self.parcels.clear();
            (self.outer, self.down) = (outer, down);
            self.inner = serve_on_new_rings(&mut self.service);
        }
    }

    fn tamper(&mut self, what: u8, script: &mut Script<'_>) {
        match what {
            24 => match script.below(4) {
                0 => drop(self.parcels.pop_front()),
                1 => self.late.extend(self.parcels.pop_front()),
                2 => {
                    if let Some(parcel) = self.late.pop() {
                        self.deliver(&parcel);
                    }
                }
                _ => {
                    if let Some(parcel) = self.parcels.pop_front() {
                        self.deliver(&parcel);
                        self.deliver(&parcel);
                    }
                }
            },
            25 | 26 => self.with_next(|parcel| {
                let (at, flip) = (usize::from(script.byte()), script.byte());
                if let Some(at) = at.checked_rem(parcel.payload.len()) {
                    parcel.payload[at] ^= flip;
                }
            }),
            27 => self.with_next(|parcel| parcel.payload.resize(script.byte().into(), 0)),
            28 => self.with_next(|parcel| match script.below(2) {
                0 => parcel.id ^= 1 << (script.byte() & 63),
                _ => parcel.completion = !parcel.completion,
            }),
            29 => {
                let at = (usize::from(script.u16()) % self.down.size()) & !3;
                self.down.store_u32(at, script.u32()).expect("inside");
            }
            // A message of the right kind of number; an answer to a request with a small id.
            _ => {
                let (kind, id) = (script.byte(), u64::from(script.byte()));
                let mut payload = script.counted().to_vec();
                if what == 30 {
                    payload.splice(..0, [kind, 0, 0x49, 0x42]);
                }
                self.deliver(&Parcel { completion: what == 31, id, payload });
            }
        }
    }

    /// Delivers the next packet with something changed.
    fn with_next(&mut self, change: impl FnOnce(&mut Parcel)) {
        if let Some(mut parcel) = self.parcels.pop_front() {
            change(&mut parcel);
            self.deliver(&parcel);
        }
    }

    /// Nothing is awaited for ever, and a bus that is over has no functions.
    fn finish(mut self) {
        for round in 0.. {
            assert!(round < 10_000, "deadlines without end");
            let Some(due) = self.bus.poll_deadline() else { break };
            self.now = self.now.max(due);
            self.poll();
        }
        self.owner.check(&self.bus);
        self.owner.check_waits();
        self.bus.rescinded();
        self.listen();
        self.owner.check_over(&self.bus);
        let channel = self.bus.into_channel();
        drop((self.service, self.inner, self.outer, channel));
    }
}

/// Opens the service's channel, and returns its guest's end.
fn serve_on_new_rings(service: &mut PciService) -> Channel {
    let (up, down) = rings();
    let list = |pages: &SharedPages| PageList::new([pages.clone()]);
    let host = Channel::from_parts(list(&down), list(&up), SignalFlag::new());
    service.open(host.expect("empty rings"));
    Channel::from_parts(up, down, SignalFlag::new()).expect("empty rings")
}

/// One of four slots, so that they are used again.
fn slot(number: u8) -> Slot {
    Slot::from_wire(u32::from(number & 3)).expect("a slot")
}

fn function(number: u8, serial: u8) -> Description {
    Description {
        slot: slot(number),
        vendor: 0x1414,
        device: u16::from(number >> 2),
        revision: 1,
        class: 2,
        subclass: 0,
        prog_if: 0,
        subsystem_vendor: 0,
        subsystem: 0,
        serial: Serial(serial.into()),
        numa_node: None,
    }
}

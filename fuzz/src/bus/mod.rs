//! The guest's whole bus, with a driver that does what it likes and a host that is honest from time to time.

mod driver;
mod finish;

use std::sync::Arc;
use std::time::Duration;

use hyperv_host::bus::{BusEvent, BusPolicy, BusServer, DeviceId, Fault, HostChannel, OfferSpec};
use hyperv_host::memory::GuestRam;
use vmbus::bus::{Bus, BusConfig, BusState};
use vmbus::message::{Features, Message, NIC_CLASS, Payload, Side, Version};
use vmbus::{Guid, Instant, Platform};

use self::driver::Driver;
use crate::script::Script;

/// Pages of the guest; it never holds as many.
const PAGES: usize = 2048;
/// Steps of one input; more teach nothing new.
const STEPS: usize = 400;

/// Four bytes that configure guest and host, then what happens, one byte each with what belongs to it: messages delivered as
/// they are, changed, twice or never, messages that nobody sent, and requests of the driver.
///
/// When the steps are over, everything that is awaited must become overdue, and a host that answers the farewell
/// gets the guest all its memory back.
pub fn vmbus_guest(input: &[u8]) {
    let mut script = Script::new(input);
    let mut world = World::new(&mut script);
    for _ in 0..STEPS {
        if script.is_over() {
            break;
        }
        world.step(&mut script);
        world.driver.hear(&mut world.bus);
        world.driver.check(&world.bus);
    }
    world.finish();
}

struct World {
    ram: GuestRam,
    bus: Bus,
    driver: Driver,
    host: BusServer,
    devices: Vec<DeviceId>,
    services: Vec<(DeviceId, HostChannel)>,
    now: Instant,
    /// Whether the host has said anything but the truth.
    tampered: bool,
}

impl World {
    fn new(script: &mut Script<'_>) -> Self {
        let ram = GuestRam::new(7, PAGES);
        let versions = match script.below(8) {
            0 | 1 => Version::ALL.to_vec(),
            2 => vec![Version::V6_0],
            3 => vec![Version::V2_4],
            4 => vec![Version::V3_0],
            5 => vec![Version::V5_3, Version::V4_0],
            6 => vec![Version::V4_1],
            _ => Version::RECOMMENDED.to_vec(),
        };
        let flags = script.byte();
        let monitor_pages = (flags & 1 != 0).then(|| ram.allocate(2).expect("memory"));
        let isolated = flags & 2 != 0;
        let features = Features::from_bits_truncate(script.byte().into());
        let config = BusConfig {
            versions: versions.clone(),
            features,
            monitor_pages,
            isolated,
            client_id: Guid::from_u128(1),
            deadline: Duration::from_secs(10),
            ..BusConfig::default()
        };
        let accepted = match script.below(4) {
            0 => vec![Version::V2_4],
            1 => vec![Version::V4_0, Version::V5_3],
            _ => Version::ALL.to_vec(),
        };
        let policy = BusPolicy {
            versions: accepted,
            server_monitor_pages: (0x1000, 0x2000),
            monitor_ids: flags & 4 != 0,
            primary_first: flags & 8 != 0,
            ..BusPolicy::default()
        };
        Self {
            bus: Bus::new(config),
            driver: Driver::new(ram.clone(), versions),
            host: BusServer::new(policy, Arc::new(ram.clone())),
            ram,
            devices: Vec::new(),
            services: Vec::new(),
            now: Instant::ZERO,
            tampered: false,
        }
    }

    fn step(&mut self, script: &mut Script<'_>) {
        let now = self.now;
        match script.below(40) {
            0 | 1 => drop(self.post()),
            2 | 3 => self.answer(),
            4 => self.run(usize::from(script.byte())),
            5 => self.changed(script),
            6 => self.resized(script),
            7 => self.twice(),
            8 => self.lost(),
            9 => {
                let bytes = script.counted();
                self.tell(bytes);
            }
            10..14 => self.forged(script),
            14 | 15 => {
                let instance = Guid::from_u128(1 + u128::from(script.below(3)));
                self.devices.push(self.host.offer(OfferSpec::new(NIC_CLASS, instance, 8), now));
            }
            16 => {
                if let Some(device) = self.device(script) {
                    self.devices.extend(self.host.offer_sub_channels(device, 2, now));
                }
            }
            17 => {
                if let Some(device) = self.device(script) {
                    self.host.rescind(device, now);
                }
            }
            18 => {
                let fault = Fault::ALL[usize::from(script.byte()) % Fault::ALL.len()];
                self.tampered = true;
                self.host.inject(fault);
            }
            19 => {
                if let Some((device, channel)) = self.services.pop() {
                    drop(channel);
                    self.host.closed(device, now);
                }
            }
            20 => {
                self.now = now + Duration::from_millis(u64::from(script.byte()) * 100);
                self.driver.pass(&mut self.bus, self.now);
            }
            21 => {
                if let Some(due) = self.bus.poll_deadline() {
                    self.now = now.max(due);
                    self.driver.pass(&mut self.bus, self.now);
                }
            }
            // A post that the hypervisor does not take comes again.
            22 => {
                if let Some(post) = self.bus.poll_outgoing() {
                    self.bus.put_back(post);
                    assert_eq!(self.bus.poll_outgoing(), Some(post));
                    self.bus.put_back(post);
                }
            }
            request => {
                // An answer does not say to which contact it belongs; of two contacts nobody can tell.
                self.tampered |= self.bus.state() == BusState::Contacting && request < 25;
                self.driver.request(request, script, &mut self.bus, now);
            }
        }
        self.serve();
    }

    fn device(&self, script: &mut Script<'_>) -> Option<DeviceId> {
        let at = usize::from(script.byte()).checked_rem(self.devices.len())?;
        self.devices.get(at).copied()
    }

    /// Delivers one message to the host, if there is one.
    fn post(&mut self) -> bool {
        let Some(post) = self.bus.poll_outgoing() else { return false };
        self.driver.posted(&post.payload);
        let result = self.host.handle_message(post.connection, &post.payload, self.now);
        assert!(self.tampered || result.is_ok(), "{result:?} to {post:?}");
        self.serve();
        true
    }

    /// What the host's devices do; they let go of their channels when the script says so.
    fn serve(&mut self) {
        while let Some(event) = self.host.poll_event() {
            if let BusEvent::Opened { device, channel } = event {
                self.services.push((device, channel));
            }
        }
    }

    /// The next honest message, not delivered yet.
    fn next(&mut self) -> Option<Payload> {
        self.host.handle_deadline(self.now);
        self.host.poll_message()
    }

    fn answer(&mut self) {
        if let Some(message) = self.next() {
            let result = self.bus.handle_message(&message, self.now);
            assert!(self.tampered || result.is_ok(), "{result:?}");
            self.driver.hear(&mut self.bus);
        }
    }

    /// So many messages either way, as they should go.
    fn run(&mut self, steps: usize) {
        for _ in 0..steps {
            if !self.post() {
                self.answer();
            }
            self.driver.hear(&mut self.bus);
        }
    }

    /// A message that no honest host would send, or not now.
    fn tell(&mut self, bytes: &[u8]) {
        self.tampered = true;
        let before = self.bus.stats();
        let result = self.bus.handle_message(bytes, self.now);
        let after = self.bus.stats();
        assert_eq!(after.received, before.received + 1);
        if result.is_err() {
            let noted = |stats: vmbus::bus::BusStats| stats.malformed + stats.bad_offers;
            assert!(noted(after) <= noted(before) + 1);
        } else {
            assert_eq!(after.malformed, before.malformed);
        }
        if Message::parse(bytes, Side::Host, Version(u32::MAX)).is_err() {
            let unknown = after.unknown == before.unknown + 1;
            assert!(unknown || result.is_err(), "garbage was taken: {bytes:02x?}");
        }
    }

    /// The next message with one byte changed.
    fn changed(&mut self, script: &mut Script<'_>) {
        let (at, flip) = (usize::from(script.byte()), script.byte());
        if let Some(message) = self.next() {
            let mut bytes = message.to_vec();
            if let Some(at) = at.checked_rem(bytes.len()) {
                bytes[at] ^= flip;
            }
            self.tell(&bytes);
        }
    }

    /// The next message cut short, or with something behind it.
    fn resized(&mut self, script: &mut Script<'_>) {
        let len = usize::from(script.byte());
        if let Some(message) = self.next() {
            let mut bytes = message.to_vec();
            bytes.resize(len, 0x5a);
            self.tell(&bytes);
        }
    }

    fn twice(&mut self) {
        if let Some(message) = self.next() {
            self.tell(&message);
            self.driver.hear(&mut self.bus);
            self.tell(&message);
        }
    }

    fn lost(&mut self) {
        self.tampered |= self.next().is_some();
    }

    /// A message made of small numbers, so that it may name what exists.
    fn forged(&mut self, script: &mut Script<'_>) {
        let kind = 1 + u32::from(script.below(29));
        let mut bytes = [kind, 0].into_iter().flat_map(u32::to_le_bytes).collect::<Vec<_>>();
        let count = script.below(6);
        for _ in 0..count {
            let word = match script.byte() {
                channel @ 0..0xc0 => u32::from(channel),
                // The ids of memory count up from a large number.
                memory => 0xe1e10 + u32::from(memory - 0xc0),
            };
            bytes.extend(word.to_le_bytes());
        }
        if kind == 1 {
            // An offer names its channel at the end.
            bytes.truncate(8);
            bytes.resize(196, 0);
            bytes[24] = script.below(4);
            bytes[180] = script.below(3);
            bytes[184] = script.below(8);
        }
        self.tell(&bytes);
    }
}

//! A harness that is not part of this project: it has the public interface and the protocol, and nothing else.
//!
//! A channel is made from two pieces of memory and a doorbell that this crate has never heard of; the bus is driven with
//! messages that were written down byte by byte.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use vmbus::bus::{Bus, BusConfig, BusState, Event, HostError};
use vmbus::channel::{Channel, Doorbell};
use vmbus::memory::{OutOfRange, SharedMemory, SharedPages};
use vmbus::message::{Features, Version};
use vmbus::packet::{Outgoing, PacketKind, TransferRange};
use vmbus::ring::SendError;
use vmbus::{ChannelId, ConnectionId, Guid, Instant, Pfn};

/// Memory of somebody else: words in a vector, reached through single atomics only.
#[derive(Clone)]
struct Region(Arc<Vec<AtomicU64>>);

impl Region {
    fn new(bytes: usize) -> Self {
        Self(Arc::new((0..bytes / 8).map(|_| AtomicU64::new(0)).collect()))
    }

    fn check(&self, offset: usize, len: usize) -> Result<(), OutOfRange> {
        let size = self.size();
        match offset.checked_add(len) {
            Some(end) if end <= size => Ok(()),
            _ => Err(OutOfRange { offset, len, size }),
        }
    }

    fn change(&self, at: usize, byte: u8) {
        let shift = at % 8 * 8;
        let change = |word: u64| Some(word & !(0xff << shift) | u64::from(byte) << shift);
        let _ = self.0[at / 8].fetch_update(Ordering::SeqCst, Ordering::SeqCst, change);
    }

    fn byte(&self, at: usize) -> u8 {
        (self.0[at / 8].load(Ordering::SeqCst) >> (at % 8 * 8)) as u8
    }
}

impl SharedMemory for Region {
    fn size(&self) -> usize {
        self.0.len() * 8
    }

    fn read(&self, offset: usize, out: &mut [u8]) -> Result<(), OutOfRange> {
        self.check(offset, out.len())?;
        for (at, byte) in out.iter_mut().enumerate() {
            *byte = self.byte(offset + at);
        }
        Ok(())
    }

    fn write(&self, offset: usize, data: &[u8]) -> Result<(), OutOfRange> {
        self.check(offset, data.len())?;
        for (at, byte) in data.iter().enumerate() {
            self.change(offset + at, *byte);
        }
        Ok(())
    }

    fn load_u32(&self, offset: usize) -> Result<u32, OutOfRange> {
        self.check(offset, 4)?;
        Ok((self.0[offset / 8].load(Ordering::SeqCst) >> (offset % 8 * 8)) as u32)
    }

    fn store_u32(&self, offset: usize, value: u32) -> Result<(), OutOfRange> {
        self.check(offset, 4)?;
        let shift = offset % 8 * 8;
        let change = |word: u64| Some(word & !(0xffff_ffff << shift) | u64::from(value) << shift);
        let _ = self.0[offset / 8].fetch_update(Ordering::SeqCst, Ordering::SeqCst, change);
        Ok(())
    }
}

/// A doorbell of somebody else, which counts.
#[derive(Clone, Default)]
struct Gong(Rc<Cell<u32>>);

impl Doorbell for Gong {
    fn ring(&self) {
        self.0.set(self.0.get() + 1);
    }
}

type Foreign = Channel<Region, Gong>;

/// Both ends of a channel with rings of this many bytes of data, and their doorbells.
fn pair(up: usize, down: usize) -> (Foreign, Gong, Foreign, Gong) {
    let (up, down) = (Region::new(4096 + up), Region::new(4096 + down));
    let (to_host, to_guest) = (Gong::default(), Gong::default());
    let guest = Channel::from_parts(up.clone(), down.clone(), to_host.clone()).unwrap();
    let host = Channel::from_parts(down, up, to_guest.clone()).unwrap();
    (guest, to_host, host, to_guest)
}

#[test]
fn a_channel_runs_over_any_memory_and_any_doorbell() {
    let (mut guest, to_host, mut host, to_guest) = pair(4096, 3 * 4096);
    let mut buffer = vec![0; 4096];
    for round in 1..=1_000_u64 {
        let payload = vec![round as u8; (round % 700) as usize];
        let question =
            Outgoing::InBand { transaction_id: round, completion: true, payload: &payload };
        guest.try_send(&question).unwrap();
        assert_eq!(u64::from(to_host.0.get()), round, "the host was at rest");
        let packet = host.receive(&mut buffer).unwrap().unwrap();
        assert_eq!((packet.transaction_id, packet.completion_requested), (round, true));
        assert_eq!(packet.payload[..payload.len()], payload);
        assert!(packet.payload[payload.len()..].iter().all(|byte| *byte == 0));
        let ranges = [TransferRange { byte_count: round as u32, byte_offset: 64 }];
        host.stage(&Outgoing::TransferPages {
            transaction_id: round,
            pageset: 0xcafe,
            ranges: &ranges,
            payload: b"here",
        })
        .unwrap();
        host.stage(&Outgoing::Completion { transaction_id: round, payload: &[] }).unwrap();
        host.commit().unwrap();
        assert!(!host.arm().unwrap());
        assert_eq!(u64::from(to_guest.0.get()), round, "one ring for both");
        let packet = guest.receive(&mut buffer).unwrap().unwrap();
        let PacketKind::TransferPages { pageset, ranges: got } = packet.kind else { panic!() };
        assert_eq!((pageset, got.iter().collect::<Vec<_>>()), (0xcafe, ranges.to_vec()));
        let packet = guest.receive(&mut buffer).unwrap().unwrap();
        assert!(matches!(packet.kind, PacketKind::Completion));
        assert!(!guest.arm().unwrap());
    }
    assert_eq!((guest.stats().sent_packets, guest.stats().received_packets), (1000, 2000));
}

#[test]
fn a_full_ring_says_so_and_rings_when_there_is_room() {
    let (mut guest, _, mut host, to_guest) = pair(4096, 4096);
    let packet = Outgoing::InBand { transaction_id: 1, completion: false, payload: &[7; 500] };
    let need = packet.ring_len();
    while guest.try_send(&packet).is_ok() {}
    assert_eq!(guest.try_send(&packet), Err(SendError::Full { need }));
    assert!(!guest.request_space(need).unwrap());
    let mut buffer = vec![0; 1024];
    while to_guest.0.get() == 0 {
        assert!(host.receive(&mut buffer).unwrap().is_some(), "the guest was not rung for");
        host.commit_read().unwrap();
    }
    guest.try_send(&packet).unwrap();
}

/// Bytes as they are written down: two digits each, spaces and line breaks as one likes; `*n` repeats the byte before up to
/// a length of `n`.
fn bytes(text: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    for word in text.split_whitespace() {
        match word.strip_prefix('*') {
            Some(len) => bytes.resize(len.parse().unwrap(), *bytes.last().unwrap()),
            None => bytes.push(u8::from_str_radix(word, 16).unwrap()),
        }
    }
    bytes
}

fn says(bus: &mut Bus, text: &str) {
    bus.handle_message(&bytes(text), Instant::ZERO).unwrap();
}

fn posts(bus: &mut Bus, connection: u32, text: &str) {
    let post = bus.poll_outgoing().expect("a message to post");
    assert_eq!((post.connection, post.payload.to_vec()), (ConnectionId(connection), bytes(text)));
}

fn pages(first: u64, count: u64) -> SharedPages {
    SharedPages::from_heap(&(first..first + count).map(Pfn).collect::<Vec<_>>())
}

#[test]
fn a_bus_is_driven_by_bytes_alone() {
    let versions = vec![Version::V5_3, Version::V4_1];
    let mut bus = Bus::new(BusConfig { versions, target_vp: 3, ..BusConfig::default() });
    let now = Instant::ZERO;
    let channel = ChannelId(0x15);
    bus.start(now).unwrap();
    posts(&mut bus, 4, "0e 00 *8 03 00 05 00  03 00 00 00  02 00 *40");
    says(&mut bus, "0f 00 *8 01 00 00 00  40 00 00 00");
    assert_eq!(bus.poll_event(), Some(Event::Connected { version: Version::V5_3 }));
    posts(&mut bus, 0x40, "03 00 *8");

    // A network card on channel 0x15, with 8 MiB of I/O space, signalled by connection 0x2015.
    says(
        &mut bus,
        "01 00 *8  63 51 61 f8 3e df c5 46 91 3f f2 d2 f9 65 ed 0e
         0f 0e 0d 0c 0b 0a 09 08 07 06 05 04 03 02 01 00  00 *56
         01 00 08 00  00 *180  00 00 00 00  15 00 00 00  00 00 01 00  15 20 00 00",
    );
    says(&mut bus, "04 00 *8");
    let Some(Event::Offered(offer)) = bus.poll_event() else { panic!("no offer") };
    assert_eq!((offer.channel, offer.connection), (channel, ConnectionId(0x2015)));
    assert_eq!(offer.instance, Guid::from_u128(0x0c0d_0e0f_0a0b_0809_0706_0504_0302_0100));
    assert_eq!((offer.mmio_megabytes, offer.sub_channel, offer.monitor), (8, 0, None));
    assert_eq!(bus.poll_event(), Some(Event::AllOffersDelivered));

    // Rings of four pages, memory of two, a doorbell for another processor; then the same backwards.
    bus.open(channel, &pages(0x100, 4), 2, 3, now).unwrap();
    posts(
        &mut bus,
        0x40,
        "08 00 *8 15 00 00 00  10 1e 0e 00  28 00 01 00  00 40 00 00  00 00 00 00
         00 01 00 00 00 00 00 00  01 01 00 00 00 00 00 00
         02 01 00 00 00 00 00 00  03 01 00 00 00 00 00 00",
    );
    says(&mut bus, "0a 00 *8 15 00 00 00  10 1e 0e 00  00 00 00 00");
    posts(
        &mut bus,
        0x40,
        "05 00 *8 15 00 00 00  15 00 00 00  10 1e 0e 00  03 00 00 00  02 00 00 00  00 *148",
    );
    says(&mut bus, "06 00 *8 15 00 00 00  15 00 00 00  00 00 00 00");
    assert_eq!(bus.poll_event(), Some(Event::Opened { channel }));
    let gpadl = bus.share(channel, &pages(0x200, 1), now).unwrap();
    posts(
        &mut bus,
        0x40,
        "08 00 *8 15 00 00 00  11 1e 0e 00  10 00 01 00  00 10 00 00  00 00 00 00
         00 02 00 00 00 00 00 00",
    );
    says(&mut bus, "0a 00 *8 15 00 00 00  11 1e 0e 00  00 00 00 00");
    assert_eq!(bus.poll_event(), Some(Event::Shared { channel, gpadl }));
    bus.retarget(channel, 5, now).unwrap();
    posts(&mut bus, 0x40, "16 00 *8 15 00 00 00  05 00 00 00");
    says(&mut bus, "18 00 *8 15 00 00 00  00 00 00 00");
    assert_eq!(bus.poll_event(), Some(Event::Retargeted { channel, target_vp: 5, status: 0 }));
    bus.close(channel, now).unwrap();
    posts(&mut bus, 0x40, "07 00 *8 15 00 00 00");
    posts(&mut bus, 0x40, "0b 00 *8 15 00 00 00  10 1e 0e 00");
    posts(&mut bus, 0x40, "0b 00 *8 15 00 00 00  11 1e 0e 00");
    says(&mut bus, "0c 00 *8 10 1e 0e 00");
    says(&mut bus, "0c 00 *8 11 1e 0e 00");
    assert_eq!(bus.poll_event(), Some(Event::Unshared { channel, gpadl }));
    assert_eq!(bus.poll_event(), Some(Event::Closed { channel }));
    says(&mut bus, "02 00 *8 15 00 00 00");
    assert_eq!(bus.poll_event(), Some(Event::Rescinded { channel }));
    bus.release(channel, now).unwrap();
    posts(&mut bus, 0x40, "0d 00 *8 15 00 00 00");
    assert_eq!(bus.poll_event(), Some(Event::Released { channel }));
    bus.unload(now).unwrap();
    posts(&mut bus, 0x40, "10 00 *8");
    says(&mut bus, "11 00 *8");
    assert_eq!((bus.poll_event(), bus.state()), (Some(Event::Unloaded), BusState::Idle));
    assert_eq!((bus.poll_outgoing(), bus.poll_event(), bus.poll_deadline()), (None, None, None));
}

#[test]
fn the_longer_forms_of_6_0_are_bytes_as_well() {
    let now = Instant::ZERO;
    let mut bus = Bus::new(BusConfig {
        versions: vec![Version::V6_0],
        features: Features::all(),
        client_id: Guid::from_u128(0x0c0d_0e0f_0a0b_0809_0706_0504_0302_0100),
        monitor_pages: Some(pages(0x55, 2)),
        ..BusConfig::default()
    });
    bus.start(now).unwrap();
    posts(
        &mut bus,
        4,
        "0e 00 *8 00 00 06 00  00 00 00 00  02 00 00 00 ff 00 00 00
         00 50 05 00 00 00 00 00  00 60 05 00 00 00 00 00
         0f 0e 0d 0c 0b 0a 09 08 07 06 05 04 03 02 01 00",
    );
    // A yes that is shorter than it says is none; the right one says more than was defined and is taken.
    let short = bytes("0f 00 *8 01 00 00 00  41 00 00 00  40 00 00 00");
    assert!(matches!(bus.handle_message(&short, now), Err(HostError::Message(_))));
    says(
        &mut bus,
        "0f 00 *8 01 00 00 00  41 00 00 00  64 00 00 00  00 00 00 00
         00 70 00 00 01 00 00 00  00 80 00 00 01 00 00 00  ee ee",
    );
    assert_eq!(bus.features().bits(), 0x64);
    assert_eq!(bus.host_monitor_pages(), Some((0x1_0000_7000, 0x1_0000_8000)));
    posts(&mut bus, 0x41, "03 00 *8");
    bus.modify_connection(Some(&pages(0x99, 2)), now).unwrap();
    posts(&mut bus, 0x41, "19 00 *8 00 90 09 00 00 00 00 00  00 a0 09 00 00 00 00 00");
    says(&mut bus, "1a 00 *8 00");
    bus.pause(now).unwrap();
    posts(&mut bus, 0x41, "1b 00 *8");
    says(&mut bus, "1c 00 *8");
    bus.unpause().unwrap();
    posts(&mut bus, 0x41, "1d 00 *8");
    let events: Vec<_> = std::iter::from_fn(|| bus.poll_event()).collect();
    let version = Version::V6_0;
    let connected = Event::Connected { version };
    assert_eq!(events, [connected, Event::ConnectionModified { state: 0 }, Event::Paused]);
}

#[test]
fn no_bytes_of_a_host_are_more_than_an_error() {
    let mut bus = Bus::new(BusConfig::default());
    bus.start(Instant::ZERO).unwrap();
    says(&mut bus, "0f 00 *8 01 00 00 00  40 00 00 00");
    for (text, expected) in [
        ("", "a control message has at least 8 bytes, this one has 0"),
        ("06 00 *8 15", "OPEN_CHANNEL_RESULT has at least 20 bytes, this one has 9"),
        ("05 00 *148", "OPEN_CHANNEL was sent by the host, which never sends it"),
        ("01 00 *196", "offers have channel ids 1 to 2047, this one has 0"),
        ("00 *241", "a control message has at most 240 bytes, this one has 241"),
    ] {
        let error = bus.handle_message(&bytes(text), Instant::ZERO).unwrap_err();
        assert_eq!(error.to_string(), expected);
    }
    assert_eq!(bus.state(), BusState::OffersRequested);
}

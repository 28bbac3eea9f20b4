//! Work that a caller leaves to the card, while VFs come and go: whichever path a frame takes, and whatever host and VF do of the
//! work, it arrives as its caller meant it, once and in order (PAIRING F6, F11). smoltcp judges what arrives.

use std::time::Duration;

use hyperv_host::bus::BusPolicy;
use hyperv_host::host::{Disassociation, NicSpec, VfSpec};
use hyperv_host::nic::{NicPolicy, OffloadPolicy};
use hyperv_host::pci::PciPolicy;
use hyperv_host::switch::{PortConfig, WireConfig};
use hyperv_host::vf::VfFeatures;
use netvsc::nic::{NicOffloads, TxFrame};
use netvsc::rndis::packet::{LargeSend, TransmitChecksum, VlanTag};
use netvsc::{MacAddress, PathOffloads};
use netvsc_cli::embedded::World;
use netvsc_cli::event::What;
use netvsc_cli::guest::Sending;
use rand_core::{Rng, SeedableRng};
use rand_xoshiro::Xoshiro256PlusPlus;
use smoltcp::wire::{
    EthernetFrame, IpAddress, Ipv4Address, Ipv4Packet, TcpPacket, TcpSeqNumber, UdpPacket,
};
use vmbus::{Guid, Instant, Serial};

const MAC: MacAddress = MacAddress([0x00, 0x15, 0x5d, 0, 0, 1]);
const PEER: [u8; 6] = [0x02, 0, 0, 0, 0, 9];
const HEADERS: usize = 54;
const TCP_AT: u16 = 34;
const SEGMENT: usize = 1460;

/// What host and VF do of the work.
#[derive(Clone, Copy, Debug)]
struct Able {
    host: OffloadPolicy,
    guest: NicOffloads,
    vf: VfFeatures,
}

struct System {
    world: World,
    now: Instant,
    serial: u32,
    /// Sequence number of the next byte of the TCP stream.
    next: u32,
    datagrams: u16,
    tagged: bool,
    wire: Vec<Vec<u8>>,
    taken: u32,
}

fn byte(at: u32) -> u8 {
    (at.wrapping_mul(2_654_435_761) >> 24) as u8
}

fn vf(serial: u32) -> VfSpec {
    let instance = Guid::from_u128(0x4750_5500 << 64);
    VfSpec { instance, serial: Serial(serial), associated: None, offer_first: false }
}

/// Ethernet and IPv4 in front of `layer4` bytes, with what is left to the card left open.
fn headers(protocol: u8, layer4: usize) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(HEADERS);
    bytes.extend(PEER);
    bytes.extend(MAC.0);
    bytes.extend([8, 0, 0x45, 0]);
    bytes.extend(((20 + layer4) as u16).to_be_bytes());
    bytes.extend([0x12, 0x34, 0x40, 0, 64, protocol, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
    bytes
}

fn pseudo_sum(protocol: u8, layer4: usize) -> [u8; 2] {
    // 10.0.0.1 and 10.0.0.2
    let sum = 0x0a00 + 1 + 0x0a00 + 2 + u32::from(protocol) + layer4 as u32;
    (((sum >> 16) + (sum & 0xffff)) as u16).to_be_bytes()
}

impl System {
    fn new(able: Able, wire: WireConfig) -> Self {
        let mut world = World::new(BusPolicy::default(), PciPolicy::default(), 5);
        let policy = NicPolicy { offloads: able.host, ..NicPolicy::default() };
        let from_peer = WireConfig::instant();
        let port = PortConfig { to_peer: wire, from_peer, ..PortConfig::default() };
        let spec = NicSpec { instance: Guid::from_u128(0xf8f8), mac: MAC, policy, port };
        world.host.add_nic(spec, Instant::ZERO);
        world.host.set_vf_features(able.vf);
        world.guest.leave_to_host(able.guest);
        world.guest.start(Instant::ZERO).expect("for the first time");
        let (now, wire) = (Instant::ZERO, Vec::new());
        let mut system =
            Self { world, now, serial: 0, next: 0, datagrams: 0, tagged: false, wire, taken: 0 };
        system.until("ready", |told| matches!(told, What::NicReady { .. }));
        system
    }

    fn settle(&mut self) -> Vec<What> {
        let mut told = Vec::new();
        loop {
            self.world.settle(self.now, &mut |_, _| {});
            let mut moved = false;
            while let Some(frame) = self.world.host.peer_receive(0, self.now) {
                self.wire.push(frame);
                moved = true;
            }
            while self.world.host.poll_event().is_some() {}
            while let Some(what) = self.world.guest.poll_event() {
                assert!(!matches!(what, What::Failed { .. }), "{what:?}");
                told.push(what);
            }
            if !moved {
                return told;
            }
        }
    }

    fn step(&mut self) -> Vec<What> {
        let mut told = self.settle();
        let soon = self.now + Duration::from_micros(10);
        self.now = self.world.deadline().map_or(soon, |at| at.clamp(soon, soon + SECOND));
        told.extend(self.settle());
        told
    }

    fn until(&mut self, what: &str, so: impl Fn(&What) -> bool) {
        let end = self.now + SECOND * 100;
        while !self.step().iter().any(&so) {
            assert!(self.now < end, "never {what}");
        }
    }

    fn path(&self) -> &'static str {
        self.world.guest.view(0).path
    }

    /// Goes on until the path is this one.
    fn until_on(&mut self, path: &str) {
        let end = self.now + SECOND * 100;
        while self.path() != path {
            self.step();
            assert!(self.now < end, "never on {path}");
        }
    }

    fn add_vf(&mut self) {
        self.serial += 1;
        let spec = vf(self.serial);
        // The last one may be on its way out still.
        let end = self.now + SECOND * 100;
        while self.world.host.add_vf(0, spec, self.now).is_err() {
            self.step();
            assert!(self.now < end, "the last VF never goes");
        }
        self.world.map_vf(spec.instance);
    }

    fn give(&mut self, frame: &TxFrame<'_>) {
        let end = self.now + SECOND * 100;
        while self.world.guest.transmit_with(0, frame, self.now) == Sending::Later {
            self.world.guest.flush(0);
            self.step();
            assert!(self.now < end, "never any room");
        }
        self.taken += 1;
    }

    fn tag(&self) -> Option<VlanTag> {
        self.tagged.then_some(VlanTag(7))
    }

    /// Sends so many bytes of the stream as one segment to be cut.
    fn send_large(&mut self, bytes: usize) {
        let mut head = headers(6, 20 + bytes);
        head.extend([0x1f, 0x90, 0, 80]);
        head.extend(self.next.to_be_bytes());
        head.extend([0, 0, 0, 1, 0x50, 0x18, 0x20, 0, 0, 0, 0, 0]);
        let data: Vec<u8> = (0..bytes as u32).map(|at| byte(self.next.wrapping_add(at))).collect();
        let (a, b) = data.split_at(bytes / 3);
        let segment = SEGMENT as u32;
        let large_send = Some(LargeSend { segment, layer4: TCP_AT, ipv6: false });
        let pieces = [&head[..], a, b];
        let vlan = self.tag();
        self.give(&TxFrame { large_send, vlan, ..TxFrame::plain(&pieces) });
        self.next = self.next.wrapping_add(bytes as u32);
    }

    /// Sends a piece of the stream as a segment whose checksums are left to the card.
    fn send_small(&mut self, bytes: usize) {
        let mut frame = headers(6, 20 + bytes);
        frame.extend([0x1f, 0x90, 0, 80]);
        frame.extend(self.next.to_be_bytes());
        frame.extend([0, 0, 0, 1, 0x50, 0x10, 0x20, 0]);
        frame.extend(pseudo_sum(6, 20 + bytes));
        frame.extend([0, 0]);
        frame.extend((0..bytes as u32).map(|at| byte(self.next.wrapping_add(at))));
        let request = TransmitChecksum::IPV4 | TransmitChecksum::TCP | TransmitChecksum::IP_HEADER;
        let vlan = self.tag();
        let checksum = request.at(TCP_AT);
        self.give(&TxFrame { checksum, vlan, ..TxFrame::plain(&[&frame]) });
        self.next = self.next.wrapping_add(bytes as u32);
    }

    fn send_datagram(&mut self, bytes: usize) {
        let mut frame = headers(17, 8 + bytes);
        frame.extend(self.datagrams.to_be_bytes());
        frame.extend([0, 53]);
        frame.extend(((8 + bytes) as u16).to_be_bytes());
        frame.extend(pseudo_sum(17, 8 + bytes));
        frame.extend(std::iter::repeat_n(0x5a, bytes));
        let request = TransmitChecksum::IPV4 | TransmitChecksum::UDP | TransmitChecksum::IP_HEADER;
        let checksum = request.at(TCP_AT);
        let vlan = self.tag();
        self.give(&TxFrame { checksum, vlan, ..TxFrame::plain(&[&frame]) });
        self.datagrams += 1;
    }

    /// Lets everything arrive, and has smoltcp look at every frame.
    fn check(&mut self, duplicates: bool) {
        self.world.guest.flush(0);
        let end = self.now + SECOND * 100;
        while !self.world.guest.is_quiet(0) || self.in_flight() {
            self.step();
            assert!(self.now < end, "never quiet");
        }
        self.step();
        let (mut stream, mut datagrams) = (0u32, 0u16);
        for frame in &self.wire {
            let mut frame = frame.clone();
            assert!(frame.len() <= 1518, "{} bytes on the wire", frame.len());
            if frame[12..14] == [0x81, 0] {
                assert_eq!(frame[14..16], [0, 7], "the tag");
                frame.drain(12..16);
            }
            let frame = EthernetFrame::new_checked(&frame[..]).expect("Ethernet");
            let packet = Ipv4Packet::new_checked(frame.payload()).expect("IPv4");
            assert!(packet.verify_checksum(), "IPv4 header");
            assert_eq!(usize::from(packet.total_len()), frame.payload().len());
            let (from, to): (IpAddress, IpAddress) =
                (packet.src_addr().into(), packet.dst_addr().into());
            assert_eq!(to, IpAddress::Ipv4(Ipv4Address::new(10, 0, 0, 2)));
            if packet.next_header() == smoltcp::wire::IpProtocol::Tcp {
                let segment = TcpPacket::new_checked(packet.payload()).expect("TCP");
                assert!(segment.verify_checksum(&from, &to), "TCP");
                let TcpSeqNumber(number) = segment.seq_number();
                let number = number as u32;
                let data = segment.payload();
                for (at, found) in (0..).zip(data) {
                    assert_eq!(*found, byte(number.wrapping_add(at)), "data");
                }
                if duplicates && number < stream {
                    continue;
                }
                assert_eq!(number, stream, "the next of the stream");
                stream += data.len() as u32;
            } else {
                let datagram = UdpPacket::new_checked(packet.payload()).expect("UDP");
                assert!(datagram.verify_checksum(&from, &to) && datagram.checksum() != 0, "UDP");
                if duplicates && datagram.src_port() < datagrams {
                    continue;
                }
                assert_eq!(datagram.src_port(), datagrams, "in order");
                datagrams += 1;
            }
        }
        assert_eq!((stream, datagrams), (self.next, self.datagrams), "everything has arrived");
    }

    fn in_flight(&self) -> bool {
        self.world.host.port_counters(0).is_none_or(|port| port.in_flight() > 0)
    }
}

const SECOND: Duration = Duration::from_secs(1);

const NO_HOST: OffloadPolicy = OffloadPolicy {
    checksum: false,
    udp_checksum: false,
    ip_options: false,
    tcp_options: false,
    large_send: 0,
    coalescing: false,
    stale_checksums: false,
};

fn able(host: bool, vf: VfFeatures) -> Able {
    let policy = OffloadPolicy::default();
    let host = if host { policy } else { NO_HOST };
    Able { host, guest: NicOffloads { coalescing: false, ..NicOffloads::ALL }, vf }
}

/// Slow enough that a segment takes its time: it is on its way when things happen.
fn slow() -> WireConfig {
    let tick = Duration::from_micros(50);
    WireConfig { rate: Some(100_000_000), latency: tick, capacity: 8 * 1024, tick }
}

fn everybody() -> impl Iterator<Item = Able> {
    let features = [
        VfFeatures::empty(),
        VfFeatures::CHECKSUM,
        VfFeatures::LARGE_SEND,
        VfFeatures::TAG,
        VfFeatures::WORK,
    ];
    features.into_iter().flat_map(|vf| [able(false, vf), able(true, vf)])
}

#[test]
fn frames_leave_either_path_as_their_caller_meant_them_whoever_does_the_work() {
    for able in everybody() {
        for tagged in [false, true] {
            let mut system = System::new(able, WireConfig::instant());
            system.tagged = tagged;
            for path in ["synthetic", "vf"] {
                if path == "vf" {
                    system.add_vf();
                    system.until_on("vf");
                }
                for bytes in [1, 1459, 1460, 1461, 20_000, 60_000] {
                    system.send_large(bytes);
                    system.send_small(bytes.min(SEGMENT));
                    system.send_datagram(bytes.min(1472));
                }
                system.check(false);
            }
            let counters = system.world.host.vf_counters(0);
            let did = |count: u64, feature| assert_eq!(count > 0, able.vf.contains(feature));
            did(counters.tx_checksums, VfFeatures::CHECKSUM);
            did(counters.tx_large, VfFeatures::LARGE_SEND);
            assert_eq!(counters.tx_tags > 0, tagged && able.vf.contains(VfFeatures::TAG));
            assert_eq!(counters.faults, 0);
        }
    }
}

// The VF leaves and comes back while a segment is half-way out.
#[test]
fn a_switch_in_the_middle_of_a_large_send_breaks_and_reorders_nothing() {
    for able in everybody() {
        let mut system = System::new(able, slow());
        for round in 0..3 {
            system.add_vf();
            for _ in 0..4 {
                system.send_large(30_000);
                system.send_small(100);
            }
            system.until_on("vf");
            system.send_large(50_000);
            system.send_small(700);
            system.world.guest.flush(0);
            system.step();
            system.world.host.eject_vf(0, Disassociation::First, system.now).expect("a VF");
            for _ in 0..4 {
                system.send_large(30_000);
                system.send_small(100 + round);
                system.send_datagram(50);
            }
            system.until_on("synthetic");
            system.check(false);
        }
        let counters = system.world.guest.counters(0);
        assert_eq!((counters.frames_resent, counters.frames_lost), (0, 0));
        assert!(counters.switches_to_vf >= 3 && counters.frames_vf > 0);
    }
}

// F5: what a VF had goes out again with all that was asked for it.
#[test]
fn what_a_vanished_vf_had_goes_out_again_with_its_work() {
    for able in everybody() {
        let mut system = System::new(able, slow());
        system.tagged = true;
        for _ in 0..3 {
            system.add_vf();
            system.until_on("vf");
            for _ in 0..3 {
                system.send_large(40_000);
                system.send_small(1000);
                system.send_datagram(300);
            }
            system.world.guest.flush(0);
            system.step();
            let first = Disassociation::First;
            system.world.host.tear_away_vf(0, first, system.now).expect("a VF");
            system.send_large(5_000);
            system.until_on("synthetic");
            system.check(true);
        }
        let counters = system.world.guest.counters(0);
        assert!(counters.frames_resent > 0 && counters.frames_lost == 0, "{counters:?}");
        assert_eq!(
            counters.frames_accepted + counters.frames_cut + counters.frames_resent,
            counters.frames_vf + counters.frames_synthetic
        );
    }
}

// F11: what is told is what both paths do.
// HISTORY 31: what the VF does and the NIC does not is not promised.
#[test]
fn a_card_tells_what_both_of_its_paths_do() {
    let told = |able, with_vf| {
        let mut system = System::new(able, WireConfig::instant());
        if with_vf {
            system.add_vf();
            system.until_on("vf");
        }
        system.world.guest.offloads(0)
    };
    let (all, none) = (VfFeatures::WORK, VfFeatures::empty());
    let both = told(able(true, all), true);
    assert!(both.vlan && both.ipv4.large_send > 30_000 && !both.ipv4.transmit.is_empty());
    let nic = told(able(true, none), false);
    assert!(nic.ipv4.large_send > 0, "alone it is the NIC's");
    let nothing = told(able(true, none), true);
    assert_eq!((nothing.ipv4.large_send, nothing.ipv4.transmit.is_empty()), (0, true));
    let host = told(able(false, all), true);
    assert_eq!(host, PathOffloads { vlan: true, ..PathOffloads::default() });
}

/// Any work, in any order, over any host and VF, while the VF comes and goes in any way.
#[test]
fn any_work_survives_any_life_of_the_vf() {
    for seed in 0..24 {
        let mut random = Xoshiro256PlusPlus::seed_from_u64(seed);
        let mut below = |end: u64| random.next_u64() % end;
        let features = VfFeatures::from_bits_truncate(below(8) as u32);
        let mut system = System::new(able(below(2) == 0, features), slow());
        system.tagged = below(2) == 0;
        let (mut has_vf, mut surprised) = (false, false);
        for _ in 0..30 {
            let bytes = below(60_000) as usize + 1;
            let first = Disassociation::First;
            match below(8) {
                0 | 1 => system.send_large(bytes),
                2 => system.send_small(bytes % SEGMENT + 1),
                3 => system.send_datagram(bytes % 1400 + 1),
                4 if !has_vf => {
                    system.add_vf();
                    system.until_on("vf");
                    has_vf = true;
                }
                5 if has_vf => {
                    system.world.host.eject_vf(0, first, system.now).expect("a VF");
                    has_vf = false;
                }
                6 if has_vf => {
                    system.world.host.tear_away_vf(0, first, system.now).expect("a VF");
                    (has_vf, surprised) = (false, true);
                }
                _ => {
                    system.world.guest.flush(0);
                    system.step();
                }
            }
        }
        system.check(surprised);
        assert_eq!(system.world.guest.counters(0).frames_lost, 0, "seed {seed}");
    }
}

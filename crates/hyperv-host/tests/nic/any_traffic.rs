//! Any frames, with any work left to the host, over any version and any number of queues: all arrive, once, unchanged and in the
//! order of their flow, and nothing is left behind.
//!
//! `PROPTEST_CASES=20000 cargo test --release -p hyperv-host --test nic any_traffic` is the long form.

use std::collections::BTreeSet;
use std::time::Duration;

use hyperv_host::nic::{NicServiceConfig, NicServiceEvent, OffloadPolicy, SendOrder, SendTable};
use netvsc::nic::{Lending, NicOffloads, PageSlice, PagedFrame, TransmitError, TxFrame, TxWork};
use netvsc::nvsp::{Status, Version};
use netvsc::rndis::packet::{LargeSend, TransmitChecksum, VlanTag};
use netvsc::rndis::scaling::Scaling;
use netvsc::{NicConfig, NicEvent};
use proptest::collection::vec;
use proptest::prelude::*;
use smoltcp::wire::{IpAddress, Ipv4Packet, Ipv6Packet, TcpPacket, TcpSeqNumber, UdpPacket};

use vmbus::memory::SharedMemory;

use crate::offloads::{ETHERNET, FROM4, FROM6, Kind, TO4, TO6, good_frame, layer4, left_to_host};
use crate::world::*;

/// Flows: the rest of three says what is in it, then IPv4 or 6, then without or with a tag.
const FLOWS: u8 = 12;
/// The first EtherType of flows of neither TCP nor UDP; nobody else uses these.
const RAW: u16 = 0x9000;
const TAG: usize = 4;

/// A frame to be sent.
#[derive(Clone, Debug)]
struct Item {
    /// From the guest to the peer.
    up: bool,
    flow: u8,
    /// Bytes behind the headers, as far as they fit.
    len: usize,
    /// Checksums are left to the host, and TCP longer than the MTU is left to it to cut.
    left: bool,
    /// The tag is among the bytes, not beside them.
    inner_tag: bool,
    /// Where the frame is cut into two pieces, behind the headers.
    cut: usize,
    /// What follows the headers lies in pages of the guest's, so many bytes in each place; 0: it is copied.
    paged: usize,
}

#[derive(Clone, Debug)]
struct Case {
    version: Version,
    mtu: u32,
    asks: NicOffloads,
    policy: OffloadPolicy,
    order: SendOrder,
    delay: Duration,
    frames_per_packet: usize,
    packets_per_poll: usize,
    /// Pages of the primary channel's rings, header included.
    ring: usize,
    /// Sub-channels.
    queues: u16,
    spread: bool,
    table: SendTable,
    /// Pieces of memory that the host takes with one message.
    mdl_chain: u32,
    /// Bytes that are lent rather than copied.
    lend_from: usize,
    /// Frames that are sent before anybody answers.
    burst: usize,
    items: Vec<Item>,
}

fn items() -> impl Strategy<Value = Vec<Item>> {
    let len = prop_oneof![
        4 => 0..200_usize,
        4 => 0..1600_usize,
        2 => 1400..9300_usize,
        1 => 9_000..65_550_usize,
    ];
    let paged =
        prop_oneof![2 => Just(0_usize), 1 => 1..5000_usize, 1 => Just(4096), 1 => Just(70_000)];
    let item = (any::<bool>(), 0..FLOWS, len, any::<bool>(), any::<bool>(), 0..2000_usize, paged);
    let item = item.prop_map(|(up, flow, len, left, inner_tag, cut, paged)| Item {
        up,
        flow,
        len,
        left,
        inner_tag,
        cut,
        paged,
    });
    vec(item, 1..80)
}

fn case() -> impl Strategy<Value = Case> {
    let policy = (
        any::<bool>(),
        any::<bool>(),
        any::<bool>(),
        prop_oneof![Just(0), Just(0xf53c), Just(65_550_u32)],
        any::<bool>(),
    );
    let policy = policy.prop_map(|(checksum, udp_checksum, options, large_send, coalescing)| {
        OffloadPolicy {
            checksum,
            udp_checksum,
            ip_options: options,
            tcp_options: options,
            large_send,
            coalescing,
            stale_checksums: false,
        }
    });
    let order = prop_oneof![
        Just(SendOrder::InOrder),
        Just(SendOrder::NewestFirst),
        any::<u64>().prop_map(SendOrder::Shuffled),
    ];
    let asks = prop_oneof![Just(NicOffloads::ALL), Just(NicOffloads::default())];
    let nic = (
        0..Version::ALL.len(),
        prop_oneof![2 => Just(1500_u32), 2 => 576..9217_u32, 1 => 68..576_u32],
        asks,
        policy,
    );
    let host = (order, 0..50_u64, 1..33_usize, prop_oneof![Just(1_usize), Just(7), Just(4096)]);
    let table =
        prop_oneof![Just(SendTable::Right), Just(SendTable::WrongOffset), Just(SendTable::Never)];
    let shape = (2..20_usize, 0..4_u16, any::<bool>(), table, 1..24_usize);
    let lending = (prop_oneof![3 => Just(34_u32), 2 => 0..8_u32], prop_oneof![Just(0), Just(1024)]);
    (nic, host, shape, lending, items()).prop_map(|(nic, host, shape, lending, items)| Case {
        mdl_chain: lending.0,
        lend_from: lending.1,
        version: Version::ALL[nic.0],
        mtu: nic.1,
        asks: nic.2,
        policy: nic.3,
        order: host.0,
        delay: Duration::from_micros(host.1),
        frames_per_packet: host.2,
        packets_per_poll: host.3,
        ring: shape.0,
        queues: shape.1,
        spread: shape.2,
        table: shape.3,
        burst: shape.4,
        items,
    })
}

/// What is in a flow.
fn kind(flow: u8) -> Option<Kind> {
    match flow % 3 {
        0 => None,
        1 => Some(Kind::Udp),
        _ => Some(Kind::Tcp),
    }
}

fn ipv6(flow: u8) -> bool {
    flow / 3 % 2 == 1
}

fn tag(flow: u8) -> Option<VlanTag> {
    (flow >= 6).then(|| VlanTag(100 + u16::from(flow)))
}

fn addresses(ipv6: bool) -> (IpAddress, IpAddress) {
    if ipv6 {
        (IpAddress::Ipv6(FROM6), IpAddress::Ipv6(TO6))
    } else {
        (IpAddress::Ipv4(FROM4), IpAddress::Ipv4(TO4))
    }
}

fn with_tag(frame: &[u8], tag: Option<VlanTag>) -> Vec<u8> {
    let mut whole = frame.to_vec();
    if let Some(tag) = tag {
        let [high, low] = tag.0.to_be_bytes();
        whole.splice(12..12, [0x81, 0, high, low]);
    }
    whole
}

/// A frame of a flow without its tag, all checksums right by smoltcp's computation.
fn build(flow: u8, payload: &[u8], sequence: u32) -> Vec<u8> {
    let Some(kind) = kind(flow) else {
        let mut frame = PEER.0.to_vec();
        frame.extend(MAC.0);
        frame.extend((RAW + u16::from(flow)).to_be_bytes());
        frame.extend(payload);
        return frame;
    };
    let ipv6 = ipv6(flow);
    let mut frame = good_frame(kind, ipv6, payload);
    let (from, to) = addresses(ipv6);
    let packet = &mut frame[usize::from(layer4(ipv6))..];
    match kind {
        Kind::Tcp => {
            let mut tcp = TcpPacket::new_unchecked(packet);
            tcp.set_src_port(1000 + u16::from(flow));
            tcp.set_seq_number(TcpSeqNumber(sequence as i32));
            tcp.fill_checksum(&from, &to);
        }
        Kind::Udp => {
            let mut udp = UdpPacket::new_unchecked(packet);
            udp.set_src_port(1000 + u16::from(flow));
            udp.fill_checksum(&from, &to);
        }
    }
    frame
}

/// What one direction of a flow has sent and got.
#[derive(Debug, Default)]
struct Flow {
    /// Whole frames, except of TCP.
    sent: Vec<Vec<u8>>,
    got: Vec<Vec<u8>>,
    /// The bytes of TCP, which may be cut and put together on the way.
    sent_stream: Vec<u8>,
    got_stream: Vec<u8>,
}

/// The flow that a frame belongs to, and the frame without its tag. Checks whatever can be checked of it.
fn look(frame: &[u8]) -> (u8, Vec<u8>) {
    let mut bare = frame.to_vec();
    let tagged = bare[12..14] == [0x81, 0];
    let value = tagged.then(|| {
        let value = VlanTag(u16::from_be_bytes([bare[14], bare[15]]));
        bare.drain(12..12 + TAG);
        value
    });
    let kind = u16::from_be_bytes([bare[12], bare[13]]);
    let flow = match kind {
        0x0800 | 0x86dd => {
            let start = usize::from(layer4(kind == 0x86dd));
            (u16::from_be_bytes([bare[start], bare[start + 1]]) - 1000) as u8
        }
        kind => (kind - RAW) as u8,
    };
    assert_eq!(value, tag(flow), "the tag of flow {flow}");
    (flow, bare)
}

impl Flow {
    fn send(&mut self, flow: u8, frame: &[u8], payload: &[u8]) {
        if kind(flow) == Some(Kind::Tcp) {
            self.sent_stream.extend(payload);
        } else {
            self.sent.push(frame.to_vec());
        }
    }

    fn get(&mut self, flow: u8, frame: Vec<u8>) {
        if kind(flow) != Some(Kind::Tcp) {
            self.got.push(frame);
            return;
        }
        let (from, to) = addresses(ipv6(flow));
        let payload = if ipv6(flow) {
            Ipv6Packet::new_checked(&frame[ETHERNET..]).expect("IPv6").payload().to_vec()
        } else {
            let packet = Ipv4Packet::new_checked(&frame[ETHERNET..]).expect("IPv4");
            assert!(packet.verify_checksum(), "the IPv4 header of flow {flow}");
            packet.payload().to_vec()
        };
        let tcp = TcpPacket::new_checked(&payload[..]).expect("TCP");
        assert!(tcp.verify_checksum(&from, &to), "the TCP checksum of flow {flow}");
        let expected = TcpSeqNumber(self.got_stream.len() as i32);
        assert_eq!(tcp.seq_number(), expected, "flow {flow} goes on where it was");
        self.got_stream.extend(tcp.payload());
    }

    fn check(&self, what: &str) {
        assert_eq!(self.sent.len(), self.got.len(), "{what}: as many as were sent");
        assert!(self.sent == self.got, "{what}: unchanged and in order");
        assert!(self.sent_stream == self.got_stream, "{what}: the whole stream");
    }
}

/// A frame for a queue.
#[derive(Debug)]
enum Offer<'a> {
    Bytes(TxFrame<'a>),
    Pages(PagedFrame<'a>),
}

struct Run {
    world: World,
    /// Frames whose pages are with the host, by their tokens.
    lent: BTreeSet<u64>,
    up: [Flow; FLOWS as usize],
    down: [Flow; FLOWS as usize],
    offered: u64,
}

impl Run {
    fn new(case: &Case) -> Self {
        let config = NicConfig {
            queues: 4,
            mtu: case.mtu,
            offloads: case.asks,
            lend_from: case.lend_from,
            ..NicConfig::default()
        };
        let mut service = NicServiceConfig::new(MAC);
        let policy = &mut service.policy;
        policy.versions = vec![case.version];
        // A chain that has no room for a section has none for anything.
        policy.mdl_chain = case.mdl_chain.max(1);
        policy.offloads = case.policy;
        policy.send_order = case.order;
        policy.send_delay = case.delay;
        policy.frames_per_packet = case.frames_per_packet;
        policy.packets_per_poll = case.packets_per_poll;
        policy.max_queues = 8;
        policy.send_table = case.table;
        // Half of it is for long segments: one of the longest for each queue.
        let sizes = Sizes { ring: case.ring, receive: 256, send: 256 };
        let mut world = world_with(config, &sizes, service);
        world.settle();
        assert!(matches!(world.events.pop_front(), Some(NicEvent::Ready { .. })));
        if case.queues > 0 && case.version >= Version::V5 {
            Self::widen(&mut world, case);
        }
        let (up, down) = Default::default();
        Self { world, lent: BTreeSet::new(), up, down, offered: 0 }
    }

    fn widen(world: &mut World, case: &Case) {
        world.nic.request_queues(case.queues, world.now).expect("queues can be asked for");
        world.settle();
        let offer = NicServiceEvent::OfferSubChannels { count: case.queues };
        assert_eq!(world.host_events.pop(), Some(offer));
        for number in 1..=case.queues {
            world.add_queue(number, case.ring);
        }
        if case.spread {
            let mut scaling = Scaling::even(case.queues + 1, [0; 40]);
            for (at, byte) in scaling.key.iter_mut().enumerate() {
                *byte = (at * 37 + 11) as u8;
            }
            world.nic.set_scaling(Some(&scaling), world.now).expect("a host with RSS");
            world.settle();
        }
    }

    fn flush(&mut self) {
        self.world.nic.flush();
        self.world.queues.iter_mut().for_each(netvsc::nic::NicQueue::flush);
        self.world.settle();
        self.take_back();
        for frame in std::mem::take(&mut self.world.at_peer) {
            let (flow, bare) = look(&frame);
            self.up[usize::from(flow)].get(flow, bare);
        }
        let by_queue = std::mem::take(&mut self.world.received_by_queue);
        let received = std::mem::take(&mut self.world.received);
        for frame in received.into_iter().chain(by_queue.into_iter().map(|(_, frame)| frame)) {
            // The builder makes frames of the guest; those for it have their addresses the other way round.
            let (flow, mut bare) = look(&frame);
            bare[..6].copy_from_slice(&PEER.0);
            bare[6..12].copy_from_slice(&MAC.0);
            self.down[usize::from(flow)].get(flow, bare);
        }
    }

    fn down(&mut self, item: &Item, fill: u8) {
        let flow = item.flow;
        let mtu = self.world.nic.info().mtu as usize;
        let payload = self.payload(item, mtu, fill);
        let state = &mut self.down[usize::from(flow)];
        let frame = build(flow, &payload, state.sent_stream.len() as u32);
        state.send(flow, &frame, &payload);
        let mut frame = with_tag(&frame, tag(flow));
        frame[..6].copy_from_slice(&MAC.0);
        frame[6..12].copy_from_slice(&PEER.0);
        if !self.world.port.peer_has_room(frame.len()) {
            self.flush();
        }
        self.world.peer_sends(&frame);
    }

    fn payload(&self, item: &Item, most: usize, fill: u8) -> Vec<u8> {
        let headers = match kind(item.flow) {
            None => 0,
            Some(kind) => {
                usize::from(layer4(ipv6(item.flow))) - ETHERNET
                    + if kind == Kind::Tcp { 20 } else { 8 }
            }
        };
        let len = item.len.min(most - headers);
        (0..len).map(|at| (at as u8).wrapping_mul(29) ^ (at >> 8) as u8 ^ fill).collect()
    }

    fn up(&mut self, item: &Item, fill: u8) {
        let flow = item.flow;
        let info = self.world.nic.info();
        let mtu = info.mtu as usize;
        let long = kind(flow) == Some(Kind::Tcp) && item.left && info.large_send as usize > mtu;
        // The longest IP packet that there is; many more pieces teach nothing new.
        let most = if long { (info.large_send as usize - ETHERNET).min(65_535) } else { mtu };
        let most = most.min(200 * mtu);
        let payload = self.payload(item, most, fill);
        let state = &mut self.up[usize::from(flow)];
        let good = build(flow, &payload, state.sent_stream.len() as u32);
        state.send(flow, &good, &payload);

        let (mut bytes, mut checksum) = (good.clone(), TransmitChecksum::empty());
        let mut large_send = None;
        if let (Some(kind), true) = (kind(flow), item.left) {
            (bytes, checksum) = left_to_host(&good, kind, ipv6(flow));
            if good.len() > mtu + ETHERNET {
                let (layer4, ipv6) = (layer4(ipv6(flow)), ipv6(flow));
                let segment = mtu as u32 - 60;
                (large_send, checksum) =
                    (Some(LargeSend { segment, layer4, ipv6 }), TransmitChecksum::empty());
                bytes = good;
            }
        }
        let mut vlan = tag(flow);
        // Headers are where the request says that they are: so with work beside, the tag is beside, too.
        if item.inner_tag && checksum.is_empty() && large_send.is_none() {
            bytes = with_tag(&bytes, vlan.take());
        }
        let headers = bytes.len() - payload.len();
        let work = TxWork { vlan, checksum, large_send, hash: None };
        if item.paged > 0 {
            let (head, tail) = bytes.split_at(headers);
            let body = self.place(tail, item.paged);
            let token = self.offered;
            self.transmit(flow, &Offer::Pages(PagedFrame { head, body: &body, work, token }));
            return;
        }
        let (head, tail) = bytes.split_at((headers + item.cut).min(bytes.len()));
        self.transmit(flow, &Offer::Bytes(work.of(&[head, tail])));
    }

    /// Puts bytes into memory of the guest's, so many in each place.
    fn place(&self, bytes: &[u8], in_each: usize) -> Vec<PageSlice> {
        let chunks = bytes.len().div_ceil(in_each);
        let room = bytes.len() + 100 * chunks;
        let memory = self.world.allocate(room.div_ceil(4096).max(1));
        // Where a place is as long as a page, the next follows it at once.
        let gap = if in_each == 4096 { 0 } else { 100 };
        let place = |(number, chunk): (usize, &[u8])| {
            let at = number * (in_each + gap);
            memory.write(at, chunk).expect("there is room");
            PageSlice::new(memory.clone(), at, chunk.len()).expect("inside")
        };
        bytes.chunks(in_each).enumerate().map(place).collect()
    }

    /// Pages that were lent come back once, and all of them have been sent.
    fn take_back(&mut self) {
        let World { nic, queues, .. } = &mut self.world;
        let queues = queues.iter_mut();
        let more = queues.flat_map(|queue| std::iter::from_fn(|| queue.poll_returned()));
        for returned in std::iter::from_fn(|| nic.poll_returned()).chain(more) {
            assert_eq!(returned.status, Some(Status::SUCCESS));
            assert!(self.lent.remove(&returned.token), "{returned:?} comes back once");
        }
    }

    fn transmit(&mut self, flow: u8, frame: &Offer<'_>) {
        let hash = u32::from(flow).wrapping_mul(0x9e37_79b9);
        for _ in 0..10_000 {
            let world = &mut self.world;
            let number = world.nic.info().send_queue(hash);
            let queue = usize::from(number).checked_sub(1).and_then(|at| world.queues.get_mut(at));
            let outcome = match (queue, frame) {
                (None, Offer::Bytes(frame)) => world.nic.transmit_with(frame).map(|()| None),
                (Some(queue), Offer::Bytes(frame)) => queue.transmit_with(frame).map(|()| None),
                (None, Offer::Pages(frame)) => world.nic.transmit_pages(frame).map(Some),
                (Some(queue), Offer::Pages(frame)) => queue.transmit_pages(frame).map(Some),
            };
            match outcome {
                Ok(lending) => {
                    if lending == Some(Lending::Lent) {
                        self.lent.insert(self.offered);
                    }
                    self.offered += 1;
                    return;
                }
                Err(TransmitError::Full(_)) => self.flush(),
                Err(error) => panic!("{error}: {frame:?}"),
            }
        }
        panic!("no room, for ever");
    }

    fn finish(mut self) {
        self.flush();
        for flow in 0..FLOWS {
            self.up[usize::from(flow)].check(&format!("flow {flow} to the peer"));
            self.down[usize::from(flow)].check(&format!("flow {flow} to the guest"));
        }
        assert!(self.lent.is_empty(), "all pages have come back");
        let world = &mut self.world;
        let mut stats = vec![world.nic.stats()];
        stats.extend(world.queues.iter().map(netvsc::nic::NicQueue::stats));
        assert_eq!(stats.iter().map(|stats| stats.tx_frames).sum::<u64>(), self.offered);
        assert!(stats.iter().all(|stats| stats.bad.total() == 0 && stats.tx_refused == 0));
        assert!(world.queues.iter().all(netvsc::nic::NicQueue::is_idle));
        world.nic.shutdown(world.now);
        world.settle();
        assert_eq!(world.events.back(), Some(&NicEvent::Stopped));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(
        std::env::var("PROPTEST_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(64),
    ))]

    #[test]
    fn arrives_once_unchanged_and_in_order(case in case()) {
        play(&case);
    }
}

fn play(case: &Case) {
    let mut run = Run::new(case);
    for (number, item) in case.items.iter().enumerate() {
        if item.up {
            run.up(item, number as u8);
        } else {
            run.down(item, number as u8);
        }
        if number % case.burst == 0 {
            run.flush();
        }
    }
    run.finish();
}

#[test]
fn every_queue_has_room_for_a_long_segment() {
    // Half of this buffer holds three of the longest; there are four queues, and flows that use each of them.
    let item =
        |flow| Item { up: true, flow, len: 60_000, left: true, inner_tag: false, cut: 0, paged: 0 };
    play(&Case {
        version: Version::V6_1,
        mtu: 1500,
        asks: NicOffloads::ALL,
        policy: OffloadPolicy::default(),
        order: SendOrder::InOrder,
        delay: Duration::ZERO,
        frames_per_packet: 1,
        packets_per_poll: 1,
        ring: 2,
        queues: 3,
        spread: false,
        table: SendTable::Never,
        mdl_chain: 34,
        lend_from: 1024,
        burst: 1,
        items: (0..FLOWS).map(item).collect(),
    });
}

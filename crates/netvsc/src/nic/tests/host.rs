//! A host that does what the protocol says, as long as a test does not tell it otherwise.

extern crate std;
use std::collections::VecDeque;
use std::time::Duration;
use std::vec;
use std::vec::Vec;

use vmbus::channel::{Channel, SignalFlag};
use vmbus::memory::{SharedMemory, SharedPages};
use vmbus::packet::{GpaRanges, Outgoing, PacketKind, TransferRange};
use vmbus::{GpadlId, Instant, Pfn, Serial};

use crate::mac::MacAddress;
use crate::nic::{Nic, NicConfig, NicEvent, Remains, RestartError, SharedBuffer};
use crate::nvsp::{
    ChannelType, GuestMessage, HostMessage, ReceiveSection, RndisPacket, SectionUse, Status,
    Version,
};
use crate::rndis::object::encode_friendly_name;
use crate::rndis::packet::{Layout, PpiType, Ppis, VlanTag, write_header};
use crate::rndis::{self, InitializeComplete, Oid};

pub const MAC: MacAddress = MacAddress([0, 0x15, 0x5d, 1, 2, 3]);
pub const SECTION: usize = 6144;
pub const PIECE: usize = 1806;
/// First number of the send buffer's pages.
const SEND_FRAME: u64 = 5000;

pub fn pages(first: u64, count: u64) -> SharedPages {
    SharedPages::from_heap(&(first..first + count).map(Pfn).collect::<Vec<_>>())
}

/// A frame as the host got it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Got {
    pub data: Vec<u8>,
    pub tag: Option<VlanTag>,
    /// Number of the message it came in.
    pub message: usize,
}

/// Offset, bytes and page frames.
pub type PageRange = (u32, u32, Vec<u64>);

/// What the host will not do of itself.
#[derive(Clone, Copy, Debug, Default)]
pub struct Held {
    /// Complete frames.
    pub frames: bool,
    /// Complete switches.
    pub switches: bool,
    /// Answer RNDIS requests.
    pub rndis: bool,
    /// Answer NVSP requests.
    pub nvsp: bool,
}

pub struct Rig {
    pub nic: Nic,
    pub host: Channel,
    pub to_host: SignalFlag,
    pub to_guest: SignalFlag,
    pub up: SharedPages,
    pub down: SharedPages,
    pub receive: SharedPages,
    pub send: SharedPages,
    pub now: Instant,
    /// What the guest received.
    pub received: Vec<Vec<u8>>,
    /// What the host got.
    pub got: Vec<Got>,
    /// Messages with frames.
    pub messages: usize,
    /// Of them, those by page frames.
    pub direct: usize,
    /// Memory beside the buffers that the host can read.
    pub memory: Vec<SharedPages>,
    /// Of messages whose head lies in a section: offset, bytes and page frames of every range.
    pub lists: Vec<Vec<PageRange>>,
    /// Most pieces of memory in one packet, as the guest is told.
    pub chain: u32,
    /// Everything in-band that the guest said, in order.
    pub said: Vec<GuestMessage>,
    /// The control messages it sent, by type, and the objects.
    pub asked: Vec<(rndis::MessageType, Option<Oid>, Vec<u8>)>,
    /// Completions of the guest.
    pub completions: Vec<(u64, Vec<u8>)>,
    pub held: Held,
    /// Transaction ids that were not completed since they are held.
    pub waiting: VecDeque<u64>,
    /// Versions that the host knows.
    pub versions: Vec<Version>,
    pub version: Option<Version>,
    /// What the host says of the sub-allocations.
    pub section: ReceiveSection,
    pub section_size: u32,
    pub max_packets: u32,
    pub mtu: u32,
    /// Status of the queries that may fail.
    pub query_status: rndis::Status,
    /// Value of the friendly name.
    pub name: Vec<u8>,
    /// The ring of the next channel is broken from the beginning.
    pub break_next: bool,
    /// Id of the last request.
    request: u32,
    next_id: u64,
}

pub struct Shape {
    pub config: NicConfig,
    pub up_pages: u64,
    pub down_pages: u64,
    pub send_pages: u64,
    /// The guest knows the page frames of its buffers.
    pub numbered: bool,
}

impl Default for Shape {
    fn default() -> Self {
        Self {
            config: NicConfig::default(),
            up_pages: 5,
            down_pages: 5,
            send_pages: 12,
            numbered: true,
        }
    }
}

pub fn rig() -> Rig {
    rig_of(Shape::default())
}

pub fn rig_of(shape: Shape) -> Rig {
    let (up, down) = (pages(0, shape.up_pages), pages(100, shape.down_pages));
    let (receive, send) = (pages(1000, 32), pages(SEND_FRAME, shape.send_pages));
    let (to_host, to_guest) = (SignalFlag::new(), SignalFlag::new());
    let guest = Channel::from_parts(up.clone(), down.clone(), to_host.clone()).unwrap();
    let mut host = Channel::from_parts(down.clone(), up.clone(), to_guest.clone()).unwrap();
    host.check_trailers(true);
    let nic = Nic::new(
        guest,
        SharedBuffer { gpadl: GpadlId(0xe1e10), pages: receive.clone() },
        Some(SharedBuffer {
            gpadl: GpadlId(0xe1e11),
            pages: if shape.numbered { send.clone() } else { send.without_frames() },
        }),
        shape.config,
        Instant::ZERO,
    )
    .unwrap();
    Rig {
        nic,
        host,
        to_host,
        to_guest,
        up,
        down,
        receive,
        send,
        now: Instant::ZERO,
        received: vec![],
        got: vec![],
        messages: 0,
        direct: 0,
        memory: vec![],
        lists: vec![],
        chain: 34,
        said: vec![],
        asked: vec![],
        completions: vec![],
        held: Held::default(),
        waiting: VecDeque::new(),
        versions: vec![Version::V6_1, Version::V5],
        version: None,
        section: ReceiveSection {
            offset: 0,
            sub_alloc_size: PIECE as u32,
            num_sub_allocs: 72,
            end_offset: 72 * PIECE as u32,
        },
        section_size: SECTION as u32,
        max_packets: 8,
        mtu: 1500,
        query_status: rndis::Status::SUCCESS,
        name: encode_friendly_name("Netz"),
        break_next: false,
        request: 0,
        next_id: 0,
    }
}

pub fn ready() -> Rig {
    ready_of(Shape::default())
}

pub fn ready_of(shape: Shape) -> Rig {
    let mut rig = rig_of(shape);
    rig.settle();
    assert!(matches!(rig.events()[..], [NicEvent::Ready { .. }]));
    rig.said.clear();
    rig
}

pub fn frame(len: usize, seed: u8) -> Vec<u8> {
    let mut frame: Vec<u8> = (0..len).map(|at| (at as u8).wrapping_mul(7) ^ seed).collect();
    frame[12..14].copy_from_slice(&[8, 0]);
    frame
}

impl Rig {
    /// Lets both sides talk until neither has anything to do. Either looks only when the other rang, as in life.
    pub fn settle(&mut self) {
        for _ in 0..10_000 {
            let host = self.to_host.take();
            if host {
                self.serve();
            }
            let guest = self.to_guest.take();
            if guest {
                self.poll();
            }
            if !host && !guest {
                return;
            }
        }
        panic!("they never stop");
    }

    pub fn poll(&mut self) {
        self.try_poll().unwrap();
    }

    pub fn try_poll(&mut self) -> Result<(), crate::nic::NicError> {
        let Self { nic, received, .. } = self;
        nic.poll(self.now, &mut |frame| {
            let mut copy = vec![0; frame.len()];
            assert_eq!(frame.copy_to(&mut copy), copy.len());
            received.push(copy);
        })
    }

    pub fn events(&mut self) -> Vec<NicEvent> {
        std::iter::from_fn(|| self.nic.poll_event()).collect()
    }

    pub fn pass(&mut self, time: Duration) {
        self.now = self.now + time;
        self.poll();
    }

    /// The guest's NIC begins anew on another channel, with the same buffers.
    pub fn restart(&mut self) -> Result<Remains<SignalFlag>, RestartError<SignalFlag>> {
        let (up, down) = (pages(200, 5), pages(300, 5));
        let broken = std::mem::take(&mut self.break_next);
        if broken {
            // Full from the beginning, and when the guest looks at how far the host is, that cannot be.
            up.store_u32(4, 8).unwrap();
        }
        let guest = Channel::from_parts(up.clone(), down.clone(), self.to_host.clone()).unwrap();
        self.host = Channel::from_parts(down.clone(), up.clone(), self.to_guest.clone()).unwrap();
        (self.up, self.down, self.version) = (up, down, None);
        if broken {
            self.up.store_u32(4, 5).unwrap();
        }
        let receive = SharedBuffer { gpadl: GpadlId(0xe1e10), pages: self.receive.clone() };
        let send = SharedBuffer { gpadl: GpadlId(0xe1e11), pages: self.send.clone() };
        self.nic.restart(guest, receive, Some(send), self.now)
    }

    pub fn version(&self) -> Version {
        self.version.unwrap_or(Version::V5)
    }

    /// The host reads and answers everything.
    pub fn serve(&mut self) {
        loop {
            let mut buffer = vec![0; 16 * 1024];
            self.host.mask().unwrap();
            while let Some(packet) = self.host.receive(&mut buffer).unwrap() {
                let (id, payload) = (packet.transaction_id, packet.payload.to_vec());
                match packet.kind {
                    PacketKind::Completion => self.completions.push((id, payload)),
                    PacketKind::InBand => self.handle(id, packet.completion_requested, &payload),
                    PacketKind::GpaDirect(ranges) if section_of(&payload).is_some() => {
                        self.take_pages(&ranges, &payload);
                        self.sent(id);
                    }
                    PacketKind::GpaDirect(ranges) => {
                        let range = ranges.iter().next().unwrap();
                        assert_eq!(ranges.count(), 1, "one range for one stretch of memory");
                        let frames: Vec<_> = range.frames().collect();
                        let first = frames[0].0 - SEND_FRAME;
                        assert!(frames.windows(2).all(|pair| pair[1].0 == pair[0].0 + 1));
                        let start = first as usize * 4096 + range.byte_offset as usize;
                        self.direct += 1;
                        self.take_frames(start, range.byte_count as usize);
                        self.sent(id);
                    }
                    PacketKind::TransferPages { .. } => panic!("a guest has no transfer pages"),
                }
            }
            if !self.host.arm().unwrap() {
                return;
            }
        }
    }

    fn handle(&mut self, id: u64, completion: bool, payload: &[u8]) {
        let message = GuestMessage::decode(payload).unwrap();
        self.said.push(message);
        if let GuestMessage::Init { max, .. } = message {
            let known = self.versions.contains(&max);
            let status = if known { Status::SUCCESS } else { Status::NONE };
            self.version = known.then_some(max);
            let max_mdl_chain = self.chain;
            let answer = HostMessage::InitComplete { version: u32::MAX, max_mdl_chain, status };
            self.answer(id, &answer.encode(Version::V5));
            return;
        }
        assert!(payload.len() >= self.version().message_size(), "{payload:?}");
        match message {
            GuestMessage::ReceiveBuffer { gpadl, .. } => {
                assert_eq!(gpadl, GpadlId(0xe1e10));
                let first = Some(self.section);
                self.reply(
                    id,
                    HostMessage::ReceiveBufferComplete {
                        status: Status::SUCCESS,
                        sections: 1,
                        first,
                    },
                );
            }
            GuestMessage::SendBuffer { gpadl, .. } => {
                assert_eq!(gpadl, GpadlId(0xe1e11));
                let section_size = self.section_size;
                let status = Status::SUCCESS;
                self.reply(id, HostMessage::SendBufferComplete { status, section_size });
            }
            GuestMessage::RndisPacket(RndisPacket { channel_type, section }) => {
                assert!(completion);
                let used = section.unwrap();
                let start = used.index as usize * SECTION;
                if channel_type == ChannelType::CONTROL {
                    let mut bytes = vec![0; used.bytes as usize];
                    self.send.read(start, &mut bytes).unwrap();
                    self.complete_send(id, Status::SUCCESS);
                    self.handle_control(&bytes);
                } else {
                    self.take_frames(start, used.bytes as usize);
                    self.sent(id);
                }
            }
            GuestMessage::SwitchDataPath(_) => {
                assert!(completion);
                if self.held.switches {
                    self.waiting.push_back(id);
                } else {
                    self.complete(id, &[]);
                }
            }
            GuestMessage::SubChannels { .. } => {
                assert!(completion);
                self.waiting.push_back(id);
            }
            _ => assert!(!completion),
        }
    }

    fn answer(&mut self, id: u64, bytes: &[u8]) {
        if self.held.nvsp {
            self.waiting.push_back(id);
        } else {
            self.complete(id, bytes);
        }
    }

    fn reply(&mut self, id: u64, message: HostMessage) {
        self.answer(id, &message.encode(self.version()));
    }

    fn sent(&mut self, id: u64) {
        if self.held.frames {
            self.waiting.push_back(id);
        } else {
            self.complete_send(id, Status::SUCCESS);
        }
    }

    pub fn complete_send(&mut self, id: u64, status: Status) {
        let done = HostMessage::RndisPacketComplete { status }.encode(self.version());
        self.complete(id, &done);
    }

    pub fn complete(&mut self, transaction_id: u64, payload: &[u8]) {
        self.host.try_send(&Outgoing::Completion { transaction_id, payload }).unwrap();
    }

    /// The requests for sub-channels that came, not yet answered.
    pub fn ask_sub_channels(&mut self) -> Vec<u64> {
        self.settle();
        self.waiting.drain(..).collect()
    }

    /// The id of the RNDIS request that came last.
    pub fn last_request(&self) -> u32 {
        self.request
    }

    /// Says something unasked.
    pub fn tell(&mut self, message: HostMessage, completion: bool) {
        let payload = message.encode(self.version());
        let transaction_id = 1 << 63;
        self.host
            .try_send(&Outgoing::InBand { transaction_id, completion, payload: &payload })
            .unwrap();
    }

    pub fn associate(&mut self, allocated: bool, serial: u32) {
        self.tell(HostMessage::VfAssociation { allocated, serial: Serial(serial) }, true);
    }

    /// Takes the frames out of a message in the send buffer.
    fn take_frames(&mut self, start: usize, len: usize) {
        let mut bytes = vec![0; len];
        self.send.read(start, &mut bytes).unwrap();
        self.take_message(&bytes);
    }

    /// Takes the frame of a message that begins in a section and goes on in other memory.
    fn take_pages(&mut self, ranges: &GpaRanges<'_>, payload: &[u8]) {
        let used = section_of(payload).unwrap();
        let mut bytes = vec![0; used.bytes as usize];
        self.send.read(used.index as usize * SECTION, &mut bytes).unwrap();
        let mut list = vec![];
        for range in ranges.iter() {
            let frames: Vec<_> = range.frames().collect();
            let end = (range.byte_offset + range.byte_count) as usize;
            let mut whole = vec![];
            for frame in &frames {
                let mut known = self.memory.iter();
                let (pages, at) = known
                    .find_map(|pages| {
                        Some((pages, pages.frames().iter().position(|f| f == frame)?))
                    })
                    .unwrap();
                let start = whole.len();
                whole.resize(start + 4096, 0);
                pages.read(at * 4096, &mut whole[start..]).unwrap();
            }
            bytes.extend_from_slice(&whole[range.byte_offset as usize..end]);
            let frames = frames.iter().map(|frame| frame.0).collect();
            list.push((range.byte_offset, range.byte_count, frames));
        }
        self.lists.push(list);
        self.direct += 1;
        self.take_message(&bytes);
    }

    /// Takes the frames out of a message, exactly as they stand there.
    fn take_message(&mut self, bytes: &[u8]) {
        let mut rest = bytes;
        while !rest.is_empty() {
            let layout = Layout::decode(rest, rest.len()).unwrap();
            let (message, next) = rest.split_at(layout.length as usize);
            let tag = Ppis::new(&message[layout.ppi]).map(Result::unwrap).find_map(|ppi| {
                (ppi.kind == PpiType::VLAN).then(|| VlanTag::from_ppi(ppi.word().unwrap()))
            });
            let data = message[layout.data].to_vec();
            self.got.push(Got { data, tag, message: self.messages });
            assert!(next.is_empty() || message.len().is_multiple_of(8), "next is aligned");
            rest = next;
        }
        self.messages += 1;
    }

    fn handle_control(&mut self, bytes: &[u8]) {
        let kind = rndis::MessageType(u32::from_le_bytes(*bytes.first_chunk().unwrap()));
        let message = rndis::GuestMessage::decode(bytes).unwrap();
        let (oid, info) = match message {
            rndis::GuestMessage::Query { oid, info, .. }
            | rndis::GuestMessage::Set { oid, info, .. } => (Some(oid), info.to_vec()),
            _ => (None, vec![]),
        };
        self.asked.push((kind, oid, info));
        if let Some(id) = bytes.get(8..12).filter(|_| kind != rndis::MessageType::RESET) {
            self.request = u32::from_le_bytes(id.try_into().unwrap());
        }
        if self.held.rndis {
            return;
        }
        match message {
            rndis::GuestMessage::Initialize { request_id, .. } => {
                let max_packets = self.max_packets;
                self.say(&rndis::HostMessage::InitializeComplete(InitializeComplete {
                    request_id,
                    status: rndis::Status::SUCCESS,
                    major: 1,
                    minor: 0,
                    device_flags: 1,
                    medium: 0,
                    max_packets,
                    max_transfer: 0x4_0000,
                    alignment_factor: 3,
                }));
            }
            rndis::GuestMessage::Query { request_id, oid, .. } => {
                let (mtu, name) = (self.mtu.to_le_bytes(), self.name.clone());
                let (status, info) = match oid {
                    Oid::PERMANENT_ADDRESS => (rndis::Status::SUCCESS, &MAC.0[..]),
                    Oid::MAXIMUM_FRAME_SIZE => (self.query_status, &mtu[..]),
                    Oid::MEDIA_CONNECT_STATUS => (self.query_status, &[0; 4][..]),
                    Oid::LINK_SPEED => (self.query_status, &[0, 225, 245, 5][..]),
                    Oid::FRIENDLY_NAME => (self.query_status, &name[..]),
                    _ => (rndis::Status::NOT_SUPPORTED, &[][..]),
                };
                self.say(&rndis::HostMessage::QueryComplete { request_id, status, info });
            }
            rndis::GuestMessage::Set { request_id, .. } => {
                let status = rndis::Status::SUCCESS;
                self.say(&rndis::HostMessage::SetComplete { request_id, status });
            }
            _ => {}
        }
    }

    /// Sends a control message in one of the last pieces of the receive buffer.
    pub fn say(&mut self, message: &rndis::HostMessage<'_>) {
        let mut bytes = vec![];
        message.encode(&mut bytes);
        let piece = 71 - self.next_id as usize % 16;
        self.deliver(ChannelType::CONTROL, &[(piece * PIECE, &bytes)]);
    }

    /// Sends transfer pages, each range at its offset.
    pub fn deliver(&mut self, channel_type: ChannelType, ranges: &[(usize, &[u8])]) -> u64 {
        for (at, bytes) in ranges {
            self.receive.write(*at, bytes).unwrap();
        }
        let ranges: Vec<_> = ranges
            .iter()
            .map(|(at, bytes)| TransferRange {
                byte_count: bytes.len() as u32,
                byte_offset: *at as u32,
            })
            .collect();
        self.transfer(channel_type, 0xcafe, &ranges)
    }

    pub fn transfer(
        &mut self,
        channel_type: ChannelType,
        pageset: u16,
        ranges: &[TransferRange],
    ) -> u64 {
        self.next_id += 1;
        let packet = HostMessage::RndisPacket(RndisPacket { channel_type, section: None });
        let payload = packet.encode(self.version());
        let transaction_id = self.next_id;
        self.host
            .try_send(&Outgoing::TransferPages {
                transaction_id,
                pageset,
                ranges,
                payload: &payload,
            })
            .unwrap();
        transaction_id
    }

    /// Sends frames, one per piece from the second on, the data at byte 256 as OpenVMM puts it.
    pub fn send_frames(&mut self, frames: &[&[u8]], tag: Option<VlanTag>) -> u64 {
        let mut messages = vec![];
        for (place, frame) in frames.iter().enumerate() {
            messages.push(((place + 1) * PIECE, message(frame, tag)));
        }
        let ranges: Vec<_> = messages.iter().map(|(at, bytes)| (*at, &bytes[..])).collect();
        self.deliver(ChannelType::DATA, &ranges)
    }
}

/// The section that a message with frames begins in.
fn section_of(payload: &[u8]) -> Option<SectionUse> {
    match GuestMessage::decode(payload) {
        Ok(GuestMessage::RndisPacket(RndisPacket { section, .. })) => section,
        other => panic!("{other:?}"),
    }
}

/// A PACKET message with the data at byte 256.
pub fn message(frame: &[u8], tag: Option<VlanTag>) -> Vec<u8> {
    let mut bytes = vec![0; 256 + frame.len()];
    let mut ppis = vec![(PpiType::CHECKSUM, 0)];
    ppis.extend(tag.map(|tag| (PpiType::VLAN, tag.to_ppi())));
    write_header(&mut bytes, &ppis, 256, frame.len()).unwrap();
    bytes[256..].copy_from_slice(frame);
    bytes
}

pub fn put(bytes: &mut [u8], at: usize, value: u32) {
    bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
}

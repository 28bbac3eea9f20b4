//! A guest that does what it is told, message by message.

use std::time::Duration;

use netvsc::MacAddress;
use vmbus::channel::{Channel, SignalFlag};
use vmbus::memory::{PAGE_SIZE, PageList, SharedMemory, SharedPages};
use vmbus::packet::{GpaRange, Outgoing, PacketKind};
use vmbus::{GpadlId, Instant, Pfn};

use crate::nic::*;
use crate::switch::{Offered, Path, PortConfig, SwitchPort, WireConfig};

pub const RECEIVE: GpadlId = GpadlId(0xe1e10);
pub const SEND: GpadlId = GpadlId(0xe1e11);
pub const MAC: MacAddress = MacAddress([0, 0x15, 0x5d, 0, 0, 1]);

/// A packet of the host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Heard {
    Message {
        id: u64,
        completion: bool,
        words: Vec<u32>,
    },
    Completion {
        id: u64,
        words: Vec<u32>,
    },
    /// Ranges of the receive buffer, copied out. `control`: the channel type.
    Frames {
        id: u64,
        control: bool,
        ranges: Vec<Vec<u8>>,
    },
}

pub struct Rig {
    pub service: NicService,
    pub port: SwitchPort,
    pub guest: Channel<SharedPages, SignalFlag>,
    /// Sub-channels that the guest has opened, by number from 1 on.
    pub subs: Vec<Channel<SharedPages, SignalFlag>>,
    pub to_host: SignalFlag,
    pub to_guest: SignalFlag,
    pub receive: SharedPages,
    pub send: SharedPages,
    /// Other memory of the guest: page n has number 100 + n.
    pub ram: SharedPages,
    pub now: Instant,
    next_id: u64,
}

fn pages(first: u64, count: u64) -> SharedPages {
    SharedPages::from_heap(&(first..first + count).map(Pfn).collect::<Vec<_>>())
}

fn words(bytes: &[u8]) -> Vec<u32> {
    bytes.chunks_exact(4).map(|word| u32::from_le_bytes(*word.first_chunk().unwrap())).collect()
}

pub fn bytes(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

pub fn rig() -> Rig {
    rig_with(|_| (), 16)
}

pub fn rig_with(change: impl FnOnce(&mut NicServiceConfig), receive_pages: u64) -> Rig {
    let mut config = NicServiceConfig::new(MAC);
    change(&mut config);
    let port = SwitchPort::new(PortConfig {
        to_peer: WireConfig::instant(),
        from_peer: WireConfig::instant(),
        ..PortConfig::default()
    });
    let mut rig = Rig {
        service: NicService::new(config),
        port,
        guest: Channel::from_parts(pages(0, 2), pages(2, 2), SignalFlag::new()).unwrap(),
        subs: Vec::new(),
        to_host: SignalFlag::new(),
        to_guest: SignalFlag::new(),
        receive: pages(1000, receive_pages),
        send: pages(2000, 12),
        ram: pages(100, 64),
        now: Instant::ZERO,
        next_id: 1,
    };
    rig.open();
    rig
}

impl Rig {
    /// Opens the channel with new, empty rings.
    pub fn open(&mut self) {
        let (up, down) = (pages(10, 5), pages(20, 5));
        self.to_host = SignalFlag::new();
        self.to_guest = SignalFlag::new();
        self.guest = Channel::from_parts(up.clone(), down.clone(), self.to_host.clone()).unwrap();
        let host =
            Channel::from_parts(PageList::new([down]), PageList::new([up]), self.to_guest.clone());
        self.service.open(host.unwrap(), &mut self.port);
    }

    /// Polls the service once.
    pub fn poll(&mut self) {
        let (receive, send, ram) = (self.receive.clone(), self.send.clone(), self.ram.clone());
        let gpadl = |id| match id {
            RECEIVE => Some(PageList::new([receive.clone()])),
            SEND => Some(PageList::new([send.clone()])),
            _ => None,
        };
        let map = |frames: &[Pfn]| {
            let page = |frame: &Pfn| ram.slice(frame.0.checked_sub(100)? as usize, 1);
            let pages: Option<Vec<_>> = frames.iter().map(page).collect();
            Some(PageList::new(pages?))
        };
        self.service.poll(self.now, GuestView { gpadl: &gpadl, pages: &map }, &mut self.port);
    }

    pub fn wait(&mut self, span: Duration) {
        self.now = self.now + span;
        self.poll();
    }

    pub fn id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id
    }

    pub fn send(&mut self, packet: &Outgoing<'_>) {
        self.guest.try_send(packet).unwrap();
    }

    /// Sends an NVSP message of these words, in 40 bytes, and polls.
    pub fn say(&mut self, message: &[u32], completion: bool) -> u64 {
        let id = self.id();
        let mut payload = bytes(message);
        payload.resize(40, 0);
        self.send(&Outgoing::InBand { transaction_id: id, completion, payload: &payload });
        self.poll();
        id
    }

    pub fn complete(&mut self, id: u64, words: &[u32]) {
        let payload = bytes(words);
        self.send(&Outgoing::Completion { transaction_id: id, payload: &payload });
    }

    /// Everything that the host sent on the primary channel.
    pub fn hear(&mut self) -> Vec<Heard> {
        listen(&mut self.guest, &self.receive)
    }

    /// Opens the next sub-channel with rings of its own.
    pub fn open_sub(&mut self) {
        let (up, down) = (pages(10, 5), pages(20, 5));
        let guest = Channel::from_parts(up.clone(), down.clone(), self.to_host.clone());
        let host =
            Channel::from_parts(PageList::new([down]), PageList::new([up]), self.to_guest.clone());
        self.subs.push(guest.unwrap());
        self.service.open_queue(self.subs.len() as u16, host.unwrap(), &mut self.port);
        self.poll();
    }

    /// Everything that the host sent on a sub-channel.
    pub fn hear_on(&mut self, number: usize) -> Vec<Heard> {
        listen(&mut self.subs[number - 1], &self.receive)
    }

    /// What the host sent, with everything that is due completed.
    pub fn hear_and_complete(&mut self) -> Vec<Heard> {
        let heard = self.hear();
        for packet in &heard {
            if let Heard::Frames { id, .. } = packet {
                self.complete(*id, &[108, 1]);
            }
        }
        self.poll();
        heard
    }

    /// The words of the one completion that must be there.
    pub fn answer(&mut self, id: u64) -> Vec<u32> {
        match &self.hear()[..] {
            [Heard::Completion { id: found, words }] if *found == id => words.clone(),
            other => panic!("expected one completion of {id}, got {other:?}"),
        }
    }

    /// Start-up as far as the buffers.
    pub fn buffers(&mut self) {
        let id = self.say(&[1, 0x60001, 0x60001], true);
        assert_eq!(self.answer(id)[3], 1);
        self.say(&[125, 1514, 0, 4, 0], false);
        self.say(&[100, 6, 0x1e], false);
        let id = self.say(&[101, RECEIVE.0, 0xcafe], true);
        assert_eq!(self.answer(id)[1], 1);
        let id = self.say(&[104, SEND.0, 0], true);
        assert_eq!(self.answer(id)[1..3], [1, 6144]);
    }

    /// A control message through send section 0.
    pub fn control(&mut self, message: &[u32]) -> u64 {
        let mut whole = vec![message[0], message.len() as u32 * 4 + 4];
        whole.extend(&message[1..]);
        let whole = bytes(&whole);
        self.send.write(0, &whole).unwrap();
        self.say(&[107, 1, 0, whole.len() as u32], true)
    }

    /// Start-up as far as RNDIS, without looking at what comes of it.
    pub fn initialize(&mut self) {
        self.buffers();
        self.control(&[2, 1, 1, 0, 0x4000]);
    }

    /// The whole start-up with packet filter 0xb; everything heard is completed.
    pub fn start(&mut self) {
        self.initialize();
        self.hear_and_complete();
        self.filter(0xb);
        while let Some(event) = self.service.poll_event() {
            assert!(!matches!(event, NicServiceEvent::Failed(_)), "{event:?}");
        }
    }

    pub fn filter(&mut self, filter: u32) {
        self.control(&[5, 7, 0x1010e, 4, 20, 0, filter]);
        let heard = self.hear_and_complete();
        assert!(matches!(
            &heard[..],
            [Heard::Completion { .. }, Heard::Frames { control: true, .. }]
        ));
    }

    /// An RNDIS PACKET message around a frame.
    pub fn packet(info: &[u32], frame: &[u8]) -> Vec<u8> {
        let info_len = info.len() as u32 * 4;
        let len = 44 + info_len + frame.len() as u32;
        let mut message = bytes(&[1, len, 36 + info_len, frame.len() as u32, 0, 0, 0, 36]);
        message.extend(bytes(&[info_len, 0, 0]));
        message.extend(bytes(info));
        message.extend(frame);
        message
    }

    /// Sends bytes as data message through a send section; the transaction id.
    pub fn transmit(&mut self, section: u32, message: &[u8]) -> u64 {
        self.send.write(section as usize * 6144, message).unwrap();
        self.say(&[107, 0, section, message.len() as u32], true)
    }

    /// Sends bytes as data message from guest memory, in ranges of these lengths, each starting on a page of its own.
    pub fn transmit_direct(&mut self, message: &[u8], lengths: &[usize]) -> u64 {
        let frames: Vec<_> = (0..64).map(|page| Pfn(100 + page)).collect();
        let mut ranges = Vec::new();
        let (mut page, mut done) = (0, 0);
        for len in lengths {
            self.ram.write(page * PAGE_SIZE, &message[done..done + len]).unwrap();
            let count = len.div_ceil(PAGE_SIZE);
            ranges.push(GpaRange {
                byte_count: *len as u32,
                byte_offset: 0,
                frames: &frames[page..page + count],
            });
            page += count;
            done += len;
        }
        assert_eq!(done, message.len());
        let id = self.id();
        let mut payload = bytes(&[107, 0, u32::MAX, 0]);
        payload.resize(40, 0);
        self.send(&Outgoing::GpaDirect { transaction_id: id, ranges: &ranges, payload: &payload });
        self.poll();
        id
    }

    pub fn peer_sends(&mut self, frame: &[u8]) {
        assert_eq!(self.port.peer_transmit(frame, self.now), Offered::Accepted);
    }

    pub fn peer_hears(&mut self) -> Vec<Vec<u8>> {
        std::iter::from_fn(|| self.port.peer_receive(self.now)).collect()
    }

    pub fn events(&mut self) -> Vec<NicServiceEvent> {
        std::iter::from_fn(|| self.service.poll_event()).collect()
    }

    /// The error that ended the channel.
    pub fn failure(&mut self) -> NicServiceError {
        let error = self.events().into_iter().find_map(|event| match event {
            NicServiceEvent::Failed(error) => Some(error),
            _ => None,
        });
        assert!(!self.service.is_open());
        error.expect("the channel failed")
    }

    /// Nothing is lost in the switch, and the guest holds this many pieces.
    pub fn settled(&mut self, lent: u64) {
        assert_eq!(self.port.counters().unaccounted(), (0, 0));
        assert_eq!(self.service.counters().lent, lent);
    }
}

fn listen(channel: &mut Channel<SharedPages, SignalFlag>, receive: &SharedPages) -> Vec<Heard> {
    let mut buffer = vec![0; 16 * 1024];
    let mut heard = Vec::new();
    while let Some(packet) = channel.receive(&mut buffer).unwrap() {
        let id = packet.transaction_id;
        heard.push(match packet.kind {
            PacketKind::InBand => Heard::Message {
                id,
                completion: packet.completion_requested,
                words: words(packet.payload),
            },
            PacketKind::Completion => Heard::Completion { id, words: words(packet.payload) },
            PacketKind::TransferPages { pageset, ranges } => {
                assert_eq!(pageset, 0xcafe);
                let words = words(packet.payload);
                assert_eq!((words[0], words[2]), (107, u32::MAX));
                let ranges = ranges.iter().map(|range| {
                    let mut bytes = vec![0; range.byte_count as usize];
                    receive.read(range.byte_offset as usize, &mut bytes).unwrap();
                    bytes
                });
                Heard::Frames { id, control: words[1] == 1, ranges: ranges.collect() }
            }
            PacketKind::GpaDirect(_) => panic!("hosts send no GPA-direct packets"),
        });
    }
    assert!(!channel.arm().unwrap());
    heard
}

/// A unicast frame of `len` bytes, filled with a number.
pub fn frame(number: u8, len: usize) -> Vec<u8> {
    let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 9, 8, 0];
    frame.resize(len, number);
    frame
}

/// The frame in a received RNDIS message.
pub fn unpack(message: &[u8]) -> Vec<u8> {
    let header = words(&message[..44]);
    assert_eq!(header[0], 1);
    assert_eq!(header[1] as usize, message.len());
    let start = header[2] as usize + 8;
    message[start..start + header[3] as usize].to_vec()
}

/// The frames among what was heard.
pub fn frames(heard: &[Heard]) -> Vec<Vec<u8>> {
    let ranges = heard.iter().filter_map(|packet| match packet {
        Heard::Frames { control: false, ranges, .. } => Some(ranges),
        _ => None,
    });
    ranges.flatten().map(|message| unpack(message)).collect()
}

pub const SYNTHETIC: Path = Path::Synthetic;

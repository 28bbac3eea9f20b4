//! A guest and its host in two processes, over memory that both have mapped.
//!
//! The test starts itself once more. The second process is the host: it inherits the memory and two pipes and knows nothing
//! else. Messages go through slots in that memory, signals through event flags; a byte in a pipe says "look".

use std::collections::{BTreeMap, VecDeque};
use std::fs::OpenOptions;
use std::io::{PipeReader, PipeWriter, Read, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::process::{Command, Stdio};
use std::sync::Arc;

use hyperv_host::bus::{BusEvent, BusPolicy, BusServer, DeviceId, HostChannel, OfferSpec};
use hyperv_host::memory::Regions;
use netvsc_linux::memfd::SharedFile;
use rustix::io::{FdFlags, fcntl_setfd};
use vmbus::bus::{Bus, BusConfig, BusState, Event, Post};
use vmbus::channel::{Channel, SignalFlag};
use vmbus::memory::{PAGE_SIZE, SharedMemory, SharedPages};
use vmbus::message::{MessageType, NIC_CLASS, Payload};
use vmbus::packet::{Outgoing, PacketKind};
use vmbus::synic::{EventFlags, MessageSlot, SynicError};
use vmbus::{ChannelId, ConnectionId, GpadlId, Guid, Instant, Pfn};

/// Pages of the memory: four for messages and signals, the rest the guest's own.
const PAGES: usize = 256;
/// The frame of the first page.
const FIRST: u64 = 0x4000;
/// Where the host process finds what it inherits: memory, the pipe to it, the pipe from it.
const INHERITED: &str = "NETVSC_TEST_INHERITED";
const PACKETS: u64 = 6_000;
const NOW: Instant = Instant::ZERO;

/// What both sides have: the memory, and the pages through which they talk.
struct Wire {
    memory: SharedPages,
    /// Host to guest.
    messages: MessageSlot,
    events: EventFlags,
    /// Guest to host: messages with the connection before them, and signals by the number of the channel.
    posts: MessageSlot,
    signals: EventFlags,
}

impl Wire {
    fn new(file: &SharedFile) -> Self {
        let frames: Vec<Pfn> = (FIRST..).take(file.pages()).map(Pfn).collect();
        let memory = file.map(&frames).unwrap();
        let page = |at| memory.slice(at, 1).unwrap();
        Self {
            messages: MessageSlot::new(page(0)).unwrap(),
            events: EventFlags::new(page(1)).unwrap(),
            posts: MessageSlot::new(page(2)).unwrap(),
            signals: EventFlags::new(page(3)).unwrap(),
            memory,
        }
    }
}

/// Waits until the other process rings; `false` if it is gone.
fn wait(bell: &mut impl Read) -> bool {
    bell.read(&mut [0; 64]).unwrap() > 0
}

/// Payload of packet `id`, and the host's answer to it: the sum of its bytes.
fn payload(id: u64) -> Vec<u8> {
    (0..id % 300).map(|at| (at * 7 + id) as u8).collect()
}

fn sum(bytes: &[u8]) -> u64 {
    bytes.iter().map(|byte| u64::from(*byte)).sum()
}

// ---- the host's process ----

struct Host<W> {
    wire: Wire,
    ring: W,
    bus: BusServer,
    waiting: VecDeque<Payload>,
    open: BTreeMap<DeviceId, HostChannel>,
    unloaded: bool,
}

impl<W: Write> Host<W> {
    fn ring(&mut self) {
        self.ring.write_all(&[1]).unwrap();
    }

    /// Does all that there is to do.
    fn work(&mut self) {
        loop {
            let mut moved = false;
            if let Some(taken) = self.wire.posts.take() {
                let message = taken.payload.expect("a post");
                // Where it was posted: contact to one place, all else where the host said.
                let contact = message.kind() == MessageType::INITIATE_CONTACT;
                let connection =
                    if contact { ConnectionId(4) } else { BusPolicy::default().connection };
                self.bus.handle_message(connection, &message, NOW).unwrap();
                if taken.end_of_message {
                    self.ring();
                }
                moved = true;
            }
            while let Some(event) = self.bus.poll_event() {
                match event {
                    BusEvent::Opened { device, channel } => {
                        self.open.insert(device, channel);
                    }
                    BusEvent::Closing { device } => {
                        self.open.remove(&device);
                        self.bus.closed(device, NOW);
                    }
                    BusEvent::Disconnected => self.unloaded = true,
                    _ => {}
                }
            }
            self.wire.signals.take(|_| {});
            for (device, channel) in &mut self.open {
                moved |= serve(&self.bus, *device, channel);
            }
            self.signal();
            while let Some(message) = self.bus.poll_message() {
                self.waiting.push_back(message);
            }
            moved |= self.deliver();
            if !moved {
                return;
            }
        }
    }

    /// Raises the event flags of the channels that rang.
    fn signal(&mut self) {
        let rang: Vec<ChannelId> = self.bus.interrupts().collect();
        for channel in rang {
            if self.wire.events.set(channel.0 as u16).unwrap() {
                self.ring();
            }
        }
    }

    /// Puts the next message into the slot, if that is free.
    fn deliver(&mut self) -> bool {
        let Some(message) = self.waiting.front() else { return false };
        match self.wire.messages.post(message) {
            Ok(()) => {
                self.waiting.pop_front();
                self.ring();
                true
            }
            Err(SynicError::Busy) => false,
            Err(error) => panic!("{error}"),
        }
    }
}

/// Answers every packet with a sum: of the packet, or of the memory that it names.
fn serve(bus: &BusServer, device: DeviceId, channel: &mut HostChannel) -> bool {
    let mut buffer = [0; 1024];
    let mut any = false;
    loop {
        // Room for the answer before the question is taken; the guest reads before it asks on.
        if !channel.writable(64).unwrap() && !channel.request_space(64).unwrap() {
            break;
        }
        let Some(packet) = channel.receive(&mut buffer).unwrap() else {
            if channel.arm().unwrap() {
                continue;
            }
            break;
        };
        let answer = match packet.payload.first_chunk::<8>() {
            Some(b"MEMORY\0\0") => {
                let gpadl =
                    GpadlId(u32::from_le_bytes(*packet.payload[8..].first_chunk().unwrap()));
                let pages = bus.gpadl(device, gpadl).unwrap();
                let mut bytes = vec![0; pages.size()];
                pages.read(0, &mut bytes).unwrap();
                sum(&bytes)
            }
            _ => sum(packet.payload),
        };
        let (transaction_id, answer) = (packet.transaction_id, answer.to_le_bytes());
        channel.stage(&Outgoing::Completion { transaction_id, payload: &answer }).unwrap();
        any = true;
    }
    channel.commit().unwrap();
    channel.commit_read().unwrap();
    any
}

fn be_the_host(inherited: &str) {
    let paths: Vec<_> =
        inherited.split(' ').map(|number| format!("/proc/self/fd/{number}")).collect();
    let open = |at: usize, read, write| {
        OpenOptions::new().read(read).write(write).open(&paths[at]).unwrap()
    };
    let (memory, mut bell, ring) =
        (open(0, true, true), open(1, true, false), open(2, false, true));
    let wire = Wire::new(&SharedFile::adopt(memory.into()).unwrap());
    let mut regions = Regions::new();
    regions.insert(wire.memory.clone()).unwrap();
    let mut bus = BusServer::new(BusPolicy::default(), Arc::new(regions));
    bus.offer(OfferSpec::new(NIC_CLASS, Guid::from_u128(7), 0), NOW);
    let mut host =
        Host { wire, ring, bus, waiting: VecDeque::new(), open: BTreeMap::new(), unloaded: false };
    while wait(&mut bell) {
        host.work();
    }
    assert!(host.unloaded && host.open.is_empty(), "the guest left without a word");
    assert_eq!((host.bus.gpadls(), host.bus.counters().guest_errors), (0, 0));
}

// ---- the guest's process ----

struct Guest {
    wire: Wire,
    bell: PipeReader,
    ring: PipeWriter,
    bus: Bus,
    put_off: Option<Post>,
    /// Signals of the channel for the host.
    to_host: SignalFlag,
    /// Pages of the guest that are not in use, from here on.
    free: usize,
}

impl Guest {
    fn allocate(&mut self, pages: usize) -> SharedPages {
        self.free += pages;
        self.wire.memory.slice(self.free - pages, pages).unwrap()
    }

    /// Hands on what there is to hand on, and waits until the host rings.
    fn rest(&mut self) {
        self.exchange();
        assert!(wait(&mut self.bell), "the host is gone");
        self.exchange();
    }

    /// Whoever calls this looks at the channel afterwards: its flag is taken here.
    fn exchange(&mut self) {
        self.wire.events.take(|flag| assert_eq!(flag, 1));
        while let Some(taken) = self.wire.messages.take() {
            self.bus.handle_message(&taken.payload.expect("a message"), NOW).unwrap();
            if taken.end_of_message {
                self.ring.write_all(&[1]).unwrap();
            }
        }
        while let Some(post) = self.put_off.take().or_else(|| self.bus.poll_outgoing()) {
            match self.wire.posts.post(&post.payload) {
                Ok(()) => self.ring.write_all(&[1]).unwrap(),
                Err(SynicError::Busy) => {
                    self.put_off = Some(post);
                    break;
                }
                Err(error) => panic!("{error}"),
            }
        }
        if self.to_host.take() && self.wire.signals.set(1).unwrap() {
            self.ring.write_all(&[1]).unwrap();
        }
    }

    /// The next event, whenever it comes.
    fn event(&mut self) -> Event {
        loop {
            if let Some(event) = self.bus.poll_event() {
                return event;
            }
            self.rest();
        }
    }
}

/// Sends all packets, in batches as large as the ring takes, and checks every answer.
fn converse(guest: &mut Guest, channel: &mut Channel) {
    let mut buffer = [0; 1024];
    let (mut sent, mut answered) = (0, 0);
    while answered < PACKETS {
        let mut full = false;
        while sent < PACKETS && !full {
            let payload = payload(sent + 1);
            let packet =
                Outgoing::InBand { transaction_id: sent + 1, completion: true, payload: &payload };
            match channel.stage(&packet) {
                Ok(()) => sent += 1,
                Err(vmbus::ring::SendError::Full { need }) => {
                    full = !channel.request_space(need).unwrap();
                }
                Err(error) => panic!("{error}"),
            }
        }
        channel.commit().unwrap();
        while let Some(packet) = channel.receive(&mut buffer).unwrap() {
            answered += 1;
            assert!(matches!(packet.kind, PacketKind::Completion));
            assert_eq!(packet.transaction_id, answered, "in order");
            let expected = sum(&payload(answered));
            assert_eq!(packet.payload, expected.to_le_bytes(), "packet {answered}");
        }
        if !channel.arm().unwrap() && answered < PACKETS {
            guest.rest();
        }
    }
    assert_eq!((channel.stats().received_packets, channel.stats().bad_packets), (PACKETS, 0));
}

fn ask_about_memory(guest: &mut Guest, channel: &mut Channel, gpadl: GpadlId) -> u64 {
    let mut question = b"MEMORY\0\0".to_vec();
    question.extend(gpadl.0.to_le_bytes());
    let packet = Outgoing::InBand { transaction_id: 1, completion: true, payload: &question };
    channel.try_send(&packet).unwrap();
    let mut buffer = [0; 1024];
    loop {
        if let Some(packet) = channel.receive(&mut buffer).unwrap() {
            return u64::from_le_bytes(*packet.payload.first_chunk().unwrap());
        }
        if !channel.arm().unwrap() {
            guest.rest();
        }
    }
}

fn be_the_guest(file: &SharedFile, bell: PipeReader, ring: PipeWriter) {
    let mut guest = Guest {
        wire: Wire::new(file),
        bell,
        ring,
        bus: Bus::new(BusConfig::default()),
        put_off: None,
        to_host: SignalFlag::new(),
        free: 4,
    };
    guest.bus.start(NOW).unwrap();
    assert!(matches!(guest.event(), Event::Connected { .. }));
    let Event::Offered(offer) = guest.event() else { panic!("no offer") };
    assert_eq!(guest.event(), Event::AllOffersDelivered);
    let id = offer.channel;

    // Open, talk and close, twice; the second time with rings elsewhere.
    for _ in 0..2 {
        let rings = guest.allocate(16);
        let (tx, rx) = (rings.slice(0, 8).unwrap(), rings.slice(8, 8).unwrap());
        let mut channel = Channel::from_parts(tx, rx, guest.to_host.clone()).unwrap();
        guest.bus.open(id, &rings, 8, 0, NOW).unwrap();
        assert_eq!(guest.event(), Event::Opened { channel: id });
        converse(&mut guest, &mut channel);

        // Memory of 70 pages: described in several messages, read by the host where it lies.
        let memory = guest.allocate(70);
        for page in 0..70 {
            memory.write(page * PAGE_SIZE + page, &[page as u8]).unwrap();
        }
        let gpadl = guest.bus.share(id, &memory, NOW).unwrap();
        assert_eq!(guest.event(), Event::Shared { channel: id, gpadl });
        assert_eq!(ask_about_memory(&mut guest, &mut channel, gpadl), (0..70).sum());
        drop(channel);
        guest.bus.close(id, NOW).unwrap();
        assert_eq!(guest.event(), Event::Unshared { channel: id, gpadl });
        assert_eq!(guest.event(), Event::Closed { channel: id });
        assert_eq!(guest.bus.shared_pages(), 0);
    }
    guest.bus.unload(NOW).unwrap();
    assert_eq!((guest.event(), guest.bus.state()), (Event::Unloaded, BusState::Idle));
}

#[test]
fn a_guest_and_its_host_live_in_two_processes() {
    if let Ok(inherited) = std::env::var(INHERITED) {
        return be_the_host(&inherited);
    }
    let file = SharedFile::create("two processes", PAGES).unwrap();
    let (bell, host_ring) = std::io::pipe().unwrap();
    let (host_bell, ring) = std::io::pipe().unwrap();
    let handed = [file.as_fd(), host_bell.as_fd(), host_ring.as_fd()];
    for descriptor in handed {
        fcntl_setfd(descriptor, FdFlags::empty()).unwrap();
    }
    let numbers = handed.map(|descriptor| descriptor.as_raw_fd().to_string()).join(" ");
    let host = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "a_guest_and_its_host_live_in_two_processes", "--nocapture"])
        .env(INHERITED, numbers)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop((host_bell, host_ring));
    // Whatever happens here, the host's end of the pipe closes and it goes.
    let guest = std::panic::catch_unwind(|| be_the_guest(&file, bell, ring));
    let output = host.wait_with_output().unwrap();
    let said = format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    assert!(guest.is_ok() && output.status.success(), "the host said: {said}");
}

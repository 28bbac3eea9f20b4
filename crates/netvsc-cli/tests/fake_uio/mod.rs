//! A synthetic NIC behind a uio device that no kernel made: a tree with what sysfs shows, files for the memory, a socket of packets
//! for the device's file, and on the other end of all of them what the kernel and the host would do. The host is the NIC service
//! of `hyperv-host`; behind its switch is a TAP interface. It looks at its rings when the guest has rung, and not before.

use std::collections::{BTreeMap, VecDeque};
use std::fs;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::symlink;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant as Clock};

use hyperv_host::nic::{GuestView, NicCounters, NicService, NicServiceConfig, NicServiceEvent};
use hyperv_host::switch::{Offered, Path, PortConfig, SideState, SwitchPort, WireConfig};
use netvsc::rndis::PacketFilter;
use netvsc::{MacAddress, PortError, PortLink, PortSettings, VfPort as _};
use netvsc_linux::vf::{PacketConfig, PacketPort, Reception};
use netvsc_linux::{SharedFile, Tap};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketAddrUnix, SocketFlags, SocketType, recv, send,
};
use vmbus::channel::{Channel, SignalFlag};
use vmbus::memory::{PAGE_SIZE, PageList, SharedMemory, SharedPages};
use vmbus::monitor::MonitorPage;
use vmbus::time::earliest;
use vmbus::{GpadlId, Instant, Pfn, Serial};

use crate::guest::Guest;

pub const NIC: &str = "f8615163-0000-1000-2000-00155d000007";
pub const MAC: MacAddress = MacAddress([0x00, 0x15, 0x5d, 0, 0, 7]);
const CLASS: &str = "f8615163-df3e-46c5-913f-f2d2f965ed0e";
/// The host's end of the VF's interface, if there is one.
pub const VF_END: &str = "vfh";
const RECEIVE: GpadlId = GpadlId(0xe1e10);
const SEND: GpadlId = GpadlId(0xe1e11);
/// Pages of both rings of a channel.
const RINGS: usize = 2 * 128;
/// How often the host looks whether its end of the VF's interface is back.
const LOOK: Duration = Duration::from_millis(50);
/// Byte of a ring's header at which the mask is.
const MASK: usize = 8;

/// How often a host that has given monitor bits looks at them.
const MONITOR_LATENCY: Duration = Duration::from_micros(200);
/// The monitor bit of the primary channel, the last one of its group; those of sub-channels follow it.
const FIRST_BIT: u8 = 63;
/// The number of the primary channel, as the tree has it for its first device, and what those of sub-channels are counted from.
const PRIMARY: u32 = 14;
const SUB_CHANNELS: u32 = 100;

/// How the host and the kernel are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Habits {
    /// The host has given every channel a bit in the monitor page, as real ones do. A write to the device's file does not ring it then.
    pub monitor: bool,
    /// The kernel is older than 6.16: it masks a channel at each of its interrupts, before the count can be read, and a write to
    /// the device's file is for the primary channel only.
    pub old_kernel: bool,
}

/// What the host does on request.
enum Order {
    /// Takes the NIC back.
    Rescind,
    /// Has a VF with this serial for the NIC from now on, or none.
    Vf(Option<Serial>),
    /// Says what went over the VF so far.
    Count(Sender<OfVf>),
    /// Says what it counted, and ends.
    End,
}

/// Frames that went over the VF.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OfVf {
    pub from_guest: u64,
    pub to_guest: u64,
}

/// What a host has to tell in the end.
pub struct Account {
    pub counters: NicCounters,
    /// The mask was opened by the device's file.
    pub unmasked: u64,
    /// Interrupts at which the kernel masked a channel.
    pub masked: u64,
    /// Monitor bits that the host found, and event flags that were set for them.
    pub bits: u64,
    pub flags: u64,
    /// How often the device was opened, and closed again.
    pub opened: u64,
    pub closed: u64,
    /// Frames that came from the guest's NIC, or its VF.
    pub from_guest: u64,
}

/// The host's end of the VF's interface. It may go and come back.
struct VfEnd {
    name: &'static str,
    port: Option<PacketPort>,
    /// Frames that the switch had no room for, and one that the kernel had none for.
    arrived: VecDeque<Vec<u8>>,
    held: Option<Vec<u8>>,
    wanted: bool,
    count: OfVf,
}

impl VfEnd {
    fn new(name: &'static str) -> Self {
        let (arrived, count) = (VecDeque::new(), OfVf::default());
        let mut end = Self { name, port: None, arrived, held: None, wanted: false, count };
        end.look();
        end
    }

    /// Takes the interface if it is there, and lets it go once it is not.
    fn look(&mut self) {
        if self.port.as_mut().is_some_and(|port| port.link() == PortLink::Gone) {
            self.port = None;
        }
        if self.port.is_none() {
            let config = PacketConfig { reception: Reception::Queue, ..PacketConfig::default() };
            self.port = PacketPort::open(self.name, config).ok();
        }
        if let Some(port) = self.port.as_mut().filter(|port| port.mtu() != port.settled_mtu()) {
            let filter = PacketFilter::PROMISCUOUS | PacketFilter::ALL_MULTICAST;
            let _ = port.configure(PortSettings { mtu: port.mtu(), filter });
        }
    }

    /// Moves frames between the interface and the VF's side of the switch.
    fn exchange(&mut self, switch: &mut SwitchPort, now: Instant) -> bool {
        self.look();
        match (self.wanted, switch.data_path()) {
            (true, _) => switch.set_side(Path::Vf, SideState::Up),
            // One that is asked back goes when the guest has left it.
            (false, Path::Synthetic) => switch.set_side(Path::Vf, SideState::Absent),
            (false, Path::Vf) => {}
        }
        let Self { port: Some(port), arrived, held, count, .. } = self else { return false };
        let mut moved = false;
        port.receive(&mut |frame| arrived.push_back(frame.to_vec()));
        while let Some(frame) = arrived.front() {
            if switch.accept_from_guest(Path::Vf, frame, now) == Offered::Busy {
                break;
            }
            arrived.pop_front();
            (moved, count.from_guest) = (true, count.from_guest + 1);
        }
        while let Some(frame) = held.take().or_else(|| switch.next_for_guest(Path::Vf, now)) {
            if port.transmit(&frame) == Err(PortError::Full) {
                *held = Some(frame);
                break;
            }
            (moved, count.to_guest) = (true, count.to_guest + 1);
            switch.recycle(frame);
        }
        port.flush();
        moved
    }
}

/// The device, and the thread that is kernel and host.
pub struct Fake {
    pub guest: Guest,
    orders: Sender<Order>,
    wake: OwnedFd,
    thread: Option<JoinHandle<Account>>,
}

impl Fake {
    /// A device whose NIC talks to `far`.
    pub fn new(config: NicServiceConfig, far: Tap, habits: Habits) -> Self {
        let mut guest = Guest::new();
        let folder = guest.device(NIC, CLASS, Some("uio_hv_generic"), 1);
        if habits.monitor {
            let id = format!("{folder}/channels/{PRIMARY}/monitor_id");
            guest.write(&id, &FIRST_BIT.to_string());
        }
        let uio = format!("{folder}/uio/uio0");
        let sizes = [RINGS, 1, 1, 1024, 512];
        let names = ["txrx_rings", "int_page", "monitor_page"].map(str::to_owned);
        let buffers = [format!("recv:{}", RECEIVE.0), format!("send:{}", SEND.0)];
        let mut files = Vec::new();
        for (index, (name, pages)) in names.iter().chain(&buffers).zip(sizes).enumerate() {
            let file = SharedFile::create("fake uio", pages).expect("memory");
            guest.write(&format!("{uio}/maps/map{index}/name"), name);
            let size = format!("{:#x}", pages * PAGE_SIZE);
            guest.write(&format!("{uio}/maps/map{index}/size"), &size);
            symlink(place(&file), guest.path(&format!("{uio}/maps/map{index}/memory")))
                .expect("a link");
            files.push(file);
        }
        guest.folder("dev");
        let listener = socket();
        let path = SocketAddrUnix::new(guest.path("dev/uio0")).expect("a short path");
        rustix::net::bind(&listener, &path).expect("a free name");
        rustix::net::listen(&listener, 1).expect("a socket");
        let (wake, woken) = rustix::net::socketpair(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::NONBLOCK,
            None,
        )
        .expect("a pair");
        let (orders, taken) = channel();
        let channels = guest.path(&format!("{folder}/channels"));
        let thread = std::thread::spawn(move || {
            let memory: Vec<SharedPages> =
                files.iter().map(|file| file.map(&[]).expect("mapped")).collect();
            let port = PortConfig {
                to_peer: WireConfig::instant(),
                from_peer: WireConfig::instant(),
                ..PortConfig::default()
            };
            let mut host = Host {
                service: NicService::new(config),
                port: SwitchPort::new(port),
                vf: VfEnd::new(VF_END),
                memory,
                channels,
                habits,
                ends: BTreeMap::new(),
                rung: false,
                far,
                started: Clock::now(),
                account: Account {
                    counters: NicCounters::default(),
                    unmasked: 0,
                    masked: 0,
                    bits: 0,
                    flags: 0,
                    opened: 0,
                    closed: 0,
                    from_guest: 0,
                },
                buffer: vec![0; 65_536],
            };
            for group in 0..4 {
                host.monitor().enable(group, habits.monitor).expect("a group");
            }
            host.wait_for_guests(&listener, &woken, &taken);
            host.account.counters = host.service.counters();
            drop(files);
            host.account
        });
        Self { guest, orders, wake, thread: Some(thread) }
    }

    fn order(&self, order: Order) {
        self.orders.send(order).expect("the host lives");
        send(&self.wake, &[1], SendFlags::empty()).expect("the host lives");
    }

    /// Has a VF with this serial for the NIC, or takes it away in order.
    pub fn vf(&self, serial: Option<u32>) {
        self.order(Order::Vf(serial.map(Serial)));
    }

    /// What went over the VF so far.
    pub fn over_vf(&self) -> OfVf {
        let (sender, answer) = channel();
        self.order(Order::Count(sender));
        answer.recv().expect("the host lives")
    }

    /// Takes the NIC back, as a host does.
    pub fn rescind(&self) {
        self.order(Order::Rescind);
    }

    /// Ends the host.
    pub fn end(mut self) -> Account {
        self.order(Order::End);
        self.thread.take().expect("not ended yet").join().expect("the host is well")
    }
}

/// By which path another process can open the file.
fn place(file: &SharedFile) -> String {
    format!("/proc/{}/fd/{}", std::process::id(), file.as_fd().as_raw_fd())
}

fn socket() -> OwnedFd {
    let flags = SocketFlags::CLOEXEC;
    rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)
        .expect("a socket")
}

/// The host's end of a channel.
struct End {
    rings: SharedPages,
    to_guest: SignalFlag,
    /// The rings of a sub-channel lie in a file of their own.
    _file: Option<SharedFile>,
}

impl End {
    fn set_mask(&self, on: bool) {
        let down = self.rings.pages() / 2 * PAGE_SIZE;
        self.rings.write(down + MASK, &u32::from(on).to_ne_bytes()).expect("inside");
    }
}

struct Host {
    service: NicService,
    port: SwitchPort,
    vf: VfEnd,
    /// By map.
    memory: Vec<SharedPages>,
    /// The folder of channels.
    channels: std::path::PathBuf,
    habits: Habits,
    /// Of the open channels, by their numbers as queues.
    ends: BTreeMap<u16, End>,
    /// There is a reason to look at the rings: the guest has rung, or there is something for it.
    rung: bool,
    far: Tap,
    started: Clock,
    account: Account,
    buffer: Vec<u8>,
}

/// The number of a channel on the bus, by that of its queue.
fn channel_id(number: u16) -> u32 {
    if number == 0 { PRIMARY } else { SUB_CHANNELS + u32::from(number) }
}

fn list(pages: &SharedPages) -> PageList {
    PageList::new(vec![pages.clone()])
}

impl Host {
    fn now(&self) -> Instant {
        Instant::from_nanos(self.started.elapsed().as_nanos() as u64)
    }

    /// Opens a channel over these rings, which are empty, as the kernel does: with its interrupts masked.
    fn open(
        &mut self,
        number: u16,
        rings: SharedPages,
        file: Option<SharedFile>,
    ) -> Channel<PageList, SignalFlag> {
        let half = rings.pages() / 2;
        let (up, down) = (rings.slice(0, half).unwrap(), rings.slice(half, half).unwrap());
        let end = End { rings, to_guest: SignalFlag::new(), _file: file };
        end.set_mask(true);
        let to_guest = end.to_guest.clone();
        self.ends.insert(number, end);
        self.rung = true;
        Channel::from_parts(list(&down), list(&up), to_guest).expect("rings")
    }

    fn monitor(&self) -> MonitorPage {
        MonitorPage::new(self.memory[2].clone()).expect("one page")
    }

    /// Looks at the monitor page, as a host does from time to time.
    fn look_at_bits(&mut self) {
        for bit in self.monitor().take() {
            let number = bit.checked_sub(FIRST_BIT).map(u16::from);
            let number = number.filter(|number| self.ends.contains_key(number));
            let number = number.unwrap_or_else(|| panic!("no open channel has bit {bit}"));
            self.account.bits += 1;
            self.rung = true;
            // Whom it is about stands in the guest's half of the interrupt page. It may have been taken with the bit before.
            let id = channel_id(number);
            let word = PAGE_SIZE / 2 + id as usize / 32 * 4;
            let flags = self.memory[1].atomic_u32(word).expect("inside");
            let flag = (1_u32 << (id % 32)).to_le();
            let found = flags.fetch_and(!flag, Ordering::SeqCst) & flag != 0;
            self.account.flags += u64::from(found);
        }
    }

    /// Interrupts the guest, if the host has rung for one of its channels: what the kernel makes of it.
    fn interrupt(&mut self, guest: &OwnedFd) {
        let mut rang = false;
        for end in self.ends.values().filter(|end| end.to_guest.take()) {
            rang = true;
            if self.habits.old_kernel {
                end.set_mask(true);
                self.account.masked += 1;
            }
        }
        if rang {
            // An eventful device has a packet that was not read: that is enough.
            let _ = send(guest, &1_u32.to_ne_bytes(), SendFlags::DONTWAIT);
        }
    }

    fn wait_for_guests(&mut self, listener: &OwnedFd, woken: &OwnedFd, orders: &Receiver<Order>) {
        let mut taken_back = false;
        loop {
            let mut fds = [
                PollFd::new(listener, if taken_back { PollFlags::empty() } else { PollFlags::IN }),
                PollFd::new(woken, PollFlags::IN),
            ];
            poll(&mut fds, None).expect("poll");
            let called = !fds[0].revents().is_empty();
            while recv(woken, &mut [0; 8][..], RecvFlags::empty()).is_ok_and(|(len, _)| len > 0) {}
            match self.next_order(orders) {
                Some(Order::Rescind) => taken_back = true,
                Some(_) => return,
                None => {}
            }
            if !called {
                continue;
            }
            let guest = rustix::net::accept_with(listener, SocketFlags::CLOEXEC).expect("a guest");
            rustix::io::ioctl_fionbio(&guest, true).expect("a socket");
            // What the kernel does when the file is opened: a channel with empty rings that is masked.
            let rings = self.memory[0].clone();
            rings.fill(0);
            self.account.opened += 1;
            let channel = self.open(0, rings, None);
            self.service.open(channel, &mut self.port);
            send(&guest, &0_u32.to_ne_bytes(), SendFlags::DONTWAIT).expect("there is room");
            let order = self.serve(&guest, woken, orders);
            // And when it is closed.
            self.service.close(&mut self.port);
            for number in std::mem::take(&mut self.ends).into_keys().filter(|number| *number > 0) {
                fs::remove_dir_all(self.channels.join(channel_id(number).to_string())).unwrap();
            }
            // What the guest rang last is nobody's any more.
            self.monitor().take().for_each(drop);
            self.account.closed += 1;
            match order {
                Some(Order::Rescind) => taken_back = true,
                Some(_) => return,
                None => {}
            }
        }
    }

    /// Serves one guest until it closes the device, or something else is wanted.
    fn serve(
        &mut self,
        guest: &OwnedFd,
        woken: &OwnedFd,
        orders: &Receiver<Order>,
    ) -> Option<Order> {
        loop {
            let now = self.now();
            let moved = self.exchange(now);
            self.interrupt(guest);
            if let Some(order) = self.next_order(orders) {
                return Some(order);
            }
            if !self.wait(guest, woken, if moved { Some(now) } else { None }) {
                return None;
            }
        }
    }

    /// Carries out orders, up to one that ends or takes away.
    fn next_order(&mut self, orders: &Receiver<Order>) -> Option<Order> {
        while let Ok(order) = orders.try_recv() {
            match order {
                Order::Vf(serial) => {
                    self.rung = true;
                    self.vf.wanted = serial.is_some();
                    match serial {
                        Some(serial) => self.service.vf_added(serial, self.now()),
                        None => self.service.vf_lost(),
                    }
                }
                Order::Count(answer) => answer.send(self.vf.count).expect("it is waited for"),
                order => return Some(order),
            }
        }
        None
    }

    /// Frames in both directions. True if there were any.
    fn exchange(&mut self, now: Instant) -> bool {
        let mut moved = false;
        for _ in 0..64 {
            if !self.port.peer_has_room(9018) {
                break;
            }
            let Ok(Some(len)) = self.far.read_frame(&mut self.buffer) else { break };
            let _ = self.port.peer_transmit(&self.buffer[..len], now);
            moved = true;
        }
        if self.habits.monitor {
            self.look_at_bits();
        }
        let due = self.service.poll_deadline().is_some_and(|at| at <= now);
        if std::mem::take(&mut self.rung) || moved || due {
            self.poll(now);
        }
        while let Some(event) = self.service.poll_event() {
            match event {
                NicServiceEvent::Failed(error) => panic!("the guest broke the protocol: {error}"),
                NicServiceEvent::OfferSubChannels { count } => self.offer(count),
                _ => {}
            }
        }
        let over_vf = self.vf.exchange(&mut self.port, now);
        self.rung |= over_vf;
        moved |= over_vf;
        while let Some(frame) = self.port.peer_receive(now) {
            let _ = self.far.write_frame(&frame);
            self.account.from_guest += 1;
            self.port.recycle(frame);
            moved = true;
        }
        moved
    }

    /// The host looks at its rings.
    fn poll(&mut self, now: Instant) {
        let Self { service, port, memory, .. } = self;
        let gpadl = |id| match id {
            RECEIVE => Some(list(&memory[3])),
            SEND => Some(list(&memory[4])),
            _ => None,
        };
        service.poll(now, GuestView { gpadl: &gpadl, pages: &|_: &[Pfn]| None }, port);
    }

    /// Offers sub-channels, which the kernel opens at once.
    fn offer(&mut self, count: u16) {
        for number in 1..=count {
            let file = SharedFile::create("fake ring", RINGS).expect("memory");
            let folder = self.channels.join(channel_id(number).to_string());
            fs::create_dir_all(&folder).expect("a folder");
            fs::write(folder.join("subchannel_id"), format!("{number}\n")).expect("a file");
            if self.habits.monitor {
                let bit = u16::from(FIRST_BIT) + number;
                fs::write(folder.join("monitor_id"), format!("{bit}\n")).expect("a file");
            }
            let (rings, place) = (file.map(&[]).expect("mapped"), place(&file));
            let channel = self.open(number, rings, Some(file));
            self.service.open_queue(number, channel, &mut self.port);
            symlink(place, folder.join("ring")).expect("a link");
        }
    }

    /// Sleeps until something happens. False if the guest has closed the device.
    fn wait(&mut self, guest: &OwnedFd, woken: &OwnedFd, at: Option<Instant>) -> bool {
        let now = self.now();
        let due = earliest(self.service.poll_deadline(), self.port.poll_deadline());
        let wake = self.port.take_wake(Path::Synthetic, now).then_some(now);
        self.rung |= wake.is_some();
        let look = if self.habits.monitor { MONITOR_LATENCY } else { LOOK };
        let at = earliest(earliest(earliest(at, wake), due), Some(now + look)).unwrap_or(now);
        let limit = Timespec::try_from(at.since(now)).expect("soon");
        let fds = [
            PollFd::new(guest, PollFlags::IN),
            PollFd::new(&self.far, PollFlags::IN),
            PollFd::new(woken, PollFlags::IN),
        ];
        let ears = self.vf.port.as_ref().map(|port| port.ears().descriptors()).unwrap_or_default();
        let mut fds: Vec<_> = fds.into_iter().collect();
        fds.extend(ears.iter().map(|ear| PollFd::new(&**ear, PollFlags::IN)));
        poll(&mut fds, Some(&limit)).expect("poll");
        while recv(woken, &mut [0; 8][..], RecvFlags::empty()).is_ok_and(|(len, _)| len > 0) {}
        loop {
            let mut word = [0; 4];
            match recv(guest, &mut word[..], RecvFlags::DONTWAIT) {
                Ok((4, _)) => self.control(u32::from_ne_bytes(word)),
                Ok(_) | Err(rustix::io::Errno::CONNRESET) => return false,
                Err(rustix::io::Errno::AGAIN) => return true,
                Err(error) => panic!("{error}"),
            }
        }
    }

    /// What the kernel makes of a write to the device's file: masks, and the doorbell of a host that has given no monitor bits.
    fn control(&mut self, on: u32) {
        self.account.unmasked += u64::from(on);
        let own = if self.habits.old_kernel { 1 } else { usize::MAX };
        self.ends.values().take(own).for_each(|end| end.set_mask(on == 0));
        self.rung |= on == 1 && !self.habits.monitor;
    }
}

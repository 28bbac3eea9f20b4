//! The guest's side: a guest whose host is another process.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::rc::Rc;
use std::time::Instant as Clock;

use hyperv_host::vf::{SimulatedPort, VfFeatures, VfWindow};
use netvsc_linux::SharedFile;
use netvsc_linux::arena::Arena;
use netvsc_linux::socket::{
    Account, Bell, Features, GuestEvent, GuestSide, Link, LinkError, TALK_PAGES, Talk, connect,
};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use vmbus::bus::Post;
use vmbus::memory::SharedPages;
use vmbus::platform::{AllocError, Platform};
use vmbus::synic::{EventFlags, SynicError};
use vmbus::{ChannelId, ConnectionId, Doorbell, Guid, Instant, SignalFlag};
use vpci::bus::Function;

use super::port::{Change, KernelLink, RemotePort, VfInterface};
use super::{FIRST_FRAME, PATIENCE};
use crate::error::Error;
use crate::guest::{Guest, Machine, Sink};

/// Descriptors of each ring of a VF.
const VF_DEPTH: u32 = 256;

/// Why there is no host any more, or none yet.
#[derive(Debug, thiserror::Error)]
pub enum Gone {
    /// It has hung up, or talks nonsense.
    #[error(transparent)]
    Link(#[from] LinkError),
    /// It does not keep to the protocol.
    #[error("the host: {0}")]
    Protocol(#[from] netvsc_linux::socket::ProtocolError),
    /// It does not want this guest.
    #[error("the host refuses: {why} (detail {detail})")]
    Refused {
        /// Why.
        why: netvsc_linux::socket::Reason,
        /// More about it.
        detail: u32,
    },
    /// It is not there.
    #[error(transparent)]
    Listen(#[from] netvsc_linux::socket::ListenError),
    /// It says nothing.
    #[error("the host has said nothing for {PATIENCE:?}")]
    Silent,
    /// Its memory cannot be used, or no memory can be had.
    #[error(transparent)]
    Memory(#[from] netvsc_linux::MemfdError),
    /// Interfaces cannot be followed.
    #[error(transparent)]
    Netlink(#[from] netvsc_linux::netlink::NetlinkError),
    /// The system says no.
    #[error(transparent)]
    System(#[from] io::Error),
}

impl From<Gone> for Error {
    fn from(gone: Gone) -> Self {
        Self::Remote(gone.to_string())
    }
}

/// Tells the host to look at a channel.
#[derive(Clone, Debug)]
pub struct RemoteDoorbell {
    signals: EventFlags,
    /// `None`: a connection that no flag stands for; nobody would hear it.
    flag: Option<u16>,
    bell: Rc<Bell>,
}

impl Doorbell for RemoteDoorbell {
    fn ring(&self) {
        if self.flag.is_some_and(|flag| self.signals.set(flag) == Ok(true)) {
            self.bell.ring();
        }
    }
}

/// A port whose registers are in the host's memory.
#[derive(Debug)]
struct Window {
    bus: Guid,
    page: u16,
    doorbell: SignalFlag,
    interrupt: SignalFlag,
}

/// What the guest's machine and whoever moves the messages both know.
#[derive(Debug, Default)]
struct Wiring {
    /// The host's file of registers, once it is there.
    registers: Option<SharedFile>,
    /// By bus: first page and ports.
    windows: BTreeMap<Guid, (u32, u32)>,
    /// Ports that are open.
    open: Vec<Window>,
    /// The interface for a VF whose frames go over one.
    link: Option<KernelLink>,
}

/// The guest's machine on a host in another process.
#[derive(Debug)]
pub struct RemoteMachine {
    arena: Rc<Arena>,
    signals: EventFlags,
    bell: Rc<Bell>,
    wiring: Rc<RefCell<Wiring>>,
}

impl Platform for RemoteMachine {
    fn allocate(&self, pages: usize) -> Result<SharedPages, AllocError> {
        self.arena.allocate(pages)
    }
}

impl Machine for RemoteMachine {
    type Doorbell = RemoteDoorbell;
    type Port = RemotePort;

    fn doorbell(&mut self, connection: ConnectionId) -> RemoteDoorbell {
        let flag = Talk::flag_of(connection.0);
        RemoteDoorbell { signals: self.signals.clone(), flag, bell: self.bell.clone() }
    }

    fn forget_doorbell(&mut self, _: ConnectionId) {}

    fn open_ports(&mut self, bus: Guid, _: &Function) -> Result<Vec<RemotePort>, String> {
        let mut wiring = self.wiring.borrow_mut();
        let Wiring { registers, windows, open, link } = &mut *wiring;
        let missing = "its registers cannot be mapped";
        let (first, ports) = *windows.get(&bus).ok_or(missing)?;
        let file = registers.as_ref().ok_or(missing)?;
        let mut opened = Vec::new();
        open.retain(|window| window.bus != bus);
        for page in first..first.saturating_add(ports) {
            let at = u16::try_from(page).map_err(|error| error.to_string())?;
            let registers = file.map_part(at.into(), 1, &[]).map_err(|error| error.to_string())?;
            let (doorbell, interrupt) = (SignalFlag::new(), SignalFlag::new());
            let window =
                VfWindow { registers, doorbell: doorbell.clone(), interrupt: interrupt.clone() };
            let (mac, features) = window.describe();
            if features.contains(VfFeatures::ELSEWHERE) {
                let name = "its frames go over an interface of the kernel's: say which (--vf-link)";
                opened.push(link.as_mut().ok_or(name)?.open(bus, mac)?);
                continue;
            }
            let port = SimulatedPort::open(window, &*self.arena, VF_DEPTH);
            opened.push(RemotePort::simulated(port.map_err(|error| error.to_string())?));
            open.push(Window { bus, page: at, doorbell, interrupt });
        }
        Ok(opened)
    }
}

/// A guest whose host is another process.
pub struct RemoteGuest {
    /// The guest.
    pub guest: Guest<RemoteMachine>,
    side: GuestSide<OwnedFd>,
    link: Link,
    talk: Talk,
    arena: Rc<Arena>,
    wiring: Rc<RefCell<Wiring>>,
    to_host: Rc<Bell>,
    to_guest: Bell,
    put_off: Option<Post>,
    account: Option<Account>,
}

impl RemoteGuest {
    /// Connects to the host that listens at `path` and shares `pages` pages of memory with it. Contact over the bus has not been
    /// made yet. `vf` is the interface for a VF whose frames go over one.
    pub fn connect(path: &Path, pages: usize, vf: Option<&VfInterface>) -> Result<Self, Gone> {
        let link = Link::new(connect(path)?)?;
        let file = SharedFile::create("netvsc guest", pages)?;
        let arena = Rc::new(Arena::new(file, FIRST_FRAME, TALK_PAGES));
        let talk = Talk::new(&arena.reserved()?).ok_or(netvsc_linux::MemfdError::Pages(pages))?;
        let (to_host, to_guest) = (Rc::new(Bell::new()?), Bell::new()?);
        let mut interface = vf.map(|vf| KernelLink::new(vf, Path::new("/"))).transpose()?;
        // Before the host hears of this guest: it drops what came before.
        if let Some(link) = &mut interface {
            link.hush();
        }
        let wiring = Rc::new(RefCell::new(Wiring { link: interface, ..Wiring::default() }));
        let machine = RemoteMachine {
            arena: arena.clone(),
            signals: talk.signals.clone(),
            bell: to_host.clone(),
            wiring: wiring.clone(),
        };
        let mut remote = Self {
            guest: Guest::new(machine),
            side: GuestSide::new(Features::all()),
            link,
            talk,
            arena,
            wiring,
            to_host,
            to_guest,
            put_off: None,
            account: None,
        };
        remote.meet()?;
        Ok(remote)
    }

    /// Goes through the first messages until the host is ready.
    fn meet(&mut self) -> Result<(), Gone> {
        let by = Clock::now() + PATIENCE;
        while self.wiring.borrow().registers.is_none() {
            // A host that refuses says so and hangs up: what it said is worth more than that nobody listens.
            let sent = self.send();
            self.hear()?;
            sent?;
            let left = by.saturating_duration_since(Clock::now());
            if left.is_zero() {
                return Err(Gone::Silent);
            }
            if self.wiring.borrow().registers.is_none() {
                let timeout = Timespec::try_from(left).ok();
                let mut fds = [PollFd::new(&self.link, PollFlags::IN)];
                if let Err(error) = poll(&mut fds, timeout.as_ref())
                    && error != rustix::io::Errno::INTR
                {
                    return Err(io::Error::from(error).into());
                }
            }
        }
        Ok(())
    }

    fn send(&mut self) -> Result<(), Gone> {
        while let Some((message, descriptors)) = self.side.poll_outgoing() {
            self.link.send(&message, descriptors)?;
        }
        Ok(self.link.flush()?)
    }

    /// Takes what came over the socket.
    fn hear(&mut self) -> Result<(), Gone> {
        for (message, descriptors) in self.link.receive()? {
            self.side.handle(message, descriptors)?;
        }
        while let Some(event) = self.side.poll_event() {
            match event {
                GuestEvent::Welcome { .. } => {
                    let pages = self.arena.file().pages() as u64;
                    let memory = self.arena.file().handle()?;
                    let (host, guest) = (self.to_host.handle()?, self.to_guest.handle()?);
                    self.side.share(pages, self.arena.first_frame(), memory, host, guest);
                    self.send()?;
                }
                GuestEvent::Ready { registers, pages } => {
                    let file = SharedFile::adopt(registers)?;
                    if file.pages() != pages as usize {
                        return Err(netvsc_linux::MemfdError::Pages(file.pages()).into());
                    }
                    self.wiring.borrow_mut().registers = Some(file);
                }
                GuestEvent::Window { instance, first, ports } => {
                    self.wiring.borrow_mut().windows.insert(instance, (first, ports));
                }
                GuestEvent::WindowGone { instance } => {
                    let mut wiring = self.wiring.borrow_mut();
                    wiring.windows.remove(&instance);
                    wiring.open.retain(|window| window.bus != instance);
                    if let Some(link) = &mut wiring.link {
                        link.forget(instance);
                    }
                }
                GuestEvent::Account(account) => self.account = Some(account),
                GuestEvent::Refused { why, detail } => return Err(Gone::Refused { why, detail }),
            }
        }
        Ok(())
    }

    /// Carries messages and signals until there is nothing more to do at `now`. Frames go to `sink` with the number of their NIC.
    /// True if anything was done.
    ///
    /// # Errors
    /// [`Gone`]: there is no host any more.
    pub fn settle(&mut self, now: Instant, sink: &mut Sink<'_>) -> Result<bool, Gone> {
        self.hear()?;
        let _ = self.to_guest.take();
        let mut any = self.follow_link(now);
        loop {
            let mut moved = self.take_in(now);
            moved |= self.guest.poll(now, sink);
            moved |= self.hand_out();
            if !moved {
                self.send()?;
                return Ok(any);
            }
            any = true;
        }
    }

    /// Does what an interface of the kernel's asks for. True if there was anything.
    fn follow_link(&mut self, now: Instant) -> bool {
        let (changes, bus) = match &mut self.wiring.borrow_mut().link {
            Some(link) => (link.look(now), link.bus),
            None => return false,
        };
        let Some(bus) = bus else { return !changes.is_empty() };
        for change in &changes {
            match change {
                Change::Work => self.guest.port_interrupt(bus),
                Change::Gone => self.guest.driver_stopped(bus, now),
                // Its function has no driver as it is.
                Change::Left => {}
                Change::There => {
                    self.guest.driver_started(bus, now);
                }
            }
        }
        !changes.is_empty()
    }

    /// How often an interface of the kernel's went, or lost its carrier, by itself.
    pub fn link_losses(&self) -> u64 {
        self.wiring.borrow().link.as_ref().map_or(0, |link| link.losses)
    }

    /// The name under which such an interface is the port of a VF now.
    pub fn vf_interface(&self) -> Option<String> {
        let wiring = self.wiring.borrow();
        wiring.link.as_ref().filter(|link| link.is_open()).map(|link| link.name().to_owned())
    }

    /// What has become known of such an interface.
    pub fn take_notes(&mut self) -> Vec<String> {
        let link = &mut self.wiring.borrow_mut().link;
        link.as_mut().map(KernelLink::take_notes).unwrap_or_default()
    }

    /// What to wait for on behalf of such an interface.
    pub fn ears(&self) -> Vec<std::sync::Arc<OwnedFd>> {
        self.wiring.borrow().link.as_ref().map(KernelLink::ears).unwrap_or_default()
    }

    /// When to do something although nothing came.
    pub fn deadline(&self) -> Option<Instant> {
        let link = self.wiring.borrow().link.as_ref().and_then(KernelLink::deadline);
        vmbus::time::earliest(self.guest.deadline(), link)
    }

    fn take_in(&mut self, now: Instant) -> bool {
        let Self { guest, talk, wiring, to_host, .. } = self;
        let mut moved = false;
        while let Some(taken) = talk.messages.take() {
            if let Some(payload) = taken.payload {
                guest.handle_message(&payload, now);
            }
            if taken.end_of_message {
                to_host.ring();
            }
            moved = true;
        }
        talk.events.take(|flag| {
            guest.interrupt(ChannelId(flag.into()));
            moved = true;
        });
        let wiring = wiring.borrow();
        talk.interrupts.take(|flag| {
            if let Some(window) = wiring.open.iter().find(|window| window.page == flag) {
                window.interrupt.ring();
                guest.port_interrupt(window.bus);
                moved = true;
            }
        });
        moved
    }

    /// Posts messages and rings. True if anything was posted.
    fn hand_out(&mut self) -> bool {
        let mut moved = false;
        while let Some(post) = self.put_off.take().or_else(|| self.guest.poll_outgoing()) {
            match self.talk.posts.post(&post.payload) {
                Ok(()) => moved = true,
                Err(SynicError::Busy) => {
                    self.put_off = Some(post);
                    break;
                }
                // Messages of the bus have at most 240 bytes.
                Err(error) => tracing::debug!(%error, "a message that cannot be posted"),
            }
        }
        let mut rung = moved;
        for window in &self.wiring.borrow().open {
            // Nobody else looks at the interrupt here: the NIC is polled as a whole.
            let _ = window.interrupt.take();
            if window.doorbell.take() && self.talk.doorbells.set(window.page) == Ok(true) {
                rung = true;
            }
        }
        if rung {
            self.to_host.ring();
        }
        moved
    }

    /// Asks the host what became of the frames; [`RemoteGuest::take_account`] has the answer later.
    pub fn ask_account(&mut self) {
        self.account = None;
        self.side.ask_account();
    }

    /// The host's answer, once it is there.
    pub fn take_account(&mut self) -> Option<Account> {
        self.account.take()
    }

    /// Takes leave of the host.
    pub fn leave(&mut self, now: Instant) {
        if self.guest.unload(now).is_ok() {
            self.hand_out();
        }
    }

    /// What to wait for: the socket, and whether there has to be room in it; the doorbell.
    pub fn descriptors(&self) -> [(BorrowedFd<'_>, PollFlags); 2] {
        let mut flags = PollFlags::IN;
        if self.link.wants_to_write() {
            flags |= PollFlags::OUT;
        }
        [(self.link.as_fd(), flags), (self.to_guest.as_fd(), PollFlags::IN)]
    }

    /// Lets go of everything. The number of pages that somebody still holds: there should be none.
    pub fn dissolve(self) -> usize {
        let Self { guest, arena, .. } = self;
        drop(guest);
        arena.allocated()
    }
}

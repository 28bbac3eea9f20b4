//! The host's side: one guest that is another process, from its connection to its end.

use std::collections::{BTreeMap, VecDeque};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use hyperv_host::Host;
use hyperv_host::bus::{BusPolicy, IdPolicy};
use hyperv_host::memory::Regions;
use hyperv_host::vf::VfWindow;
use netvsc_linux::SharedFile;
use netvsc_linux::socket::{
    Bell, Features, HostEvent as SocketEvent, HostSide, Link, LinkError, Offer, ProtocolError,
    Reason, TALK_PAGES, Talk,
};
use rustix::event::PollFlags;
use vmbus::channel::Doorbell as _;
use vmbus::memory::{SharedPages, WeakPages};
use vmbus::message::{MessageType, Payload, Version};
use vmbus::synic::SynicError;
use vmbus::{ConnectionId, Guid, Instant, Pfn};

use super::REGISTER_PAGES;
use crate::run::Plan;

/// Where first messages are posted by guests of version 5.0 and later.
const CONTACT: ConnectionId = ConnectionId(4);
/// And by older ones.
const OLD_CONTACT: ConnectionId = ConnectionId(1);

/// Why a guest is gone.
#[derive(Debug, thiserror::Error)]
pub enum Left {
    /// It hung up, or talked nonsense.
    #[error(transparent)]
    Link(#[from] LinkError),
    /// It did not keep to the protocol.
    #[error("the guest: {0}")]
    Protocol(#[from] ProtocolError),
    /// What it shared cannot be used.
    #[error("what the guest shares cannot be used: {0}")]
    Shared(String),
    /// It was sent away.
    #[error("the guest took too long to share its memory")]
    Late,
}

/// Something about the guest that whoever runs the host has to know.
#[derive(Debug)]
pub enum Attention {
    /// Its memory is there, and the devices can be.
    Ready {
        /// Pages of its memory.
        pages: usize,
    },
    /// It wants to know what became of its frames.
    AccountAsked,
}

/// The guest's memory and what is reached through it.
struct Running {
    host: Host,
    talk: Talk,
    to_host: Bell,
    to_guest: Bell,
    /// Does not keep the guest's memory.
    memory: WeakPages,
    /// Registers of VFs by bus; a port is known by the page of its registers.
    windows: BTreeMap<Guid, Vec<VfWindow>>,
    waiting: VecDeque<Payload>,
    /// Where the guest was told to post its messages.
    connection: ConnectionId,
}

/// One guest.
pub struct RemoteHost {
    link: Link,
    side: HostSide<OwnedFd>,
    running: Option<Running>,
    attention: VecDeque<Attention>,
}

impl RemoteHost {
    /// A guest that has just connected.
    pub fn new(stream: UnixStream, now: Instant) -> std::io::Result<Self> {
        let side = HostSide::new(Features::all(), now);
        Ok(Self { link: Link::new(stream)?, side, running: None, attention: VecDeque::new() })
    }

    /// Tells a guest that there is another.
    pub fn turn_away(stream: UnixStream) {
        if let Ok(mut link) = Link::new(stream) {
            // Its first message may have come already; whether it reads the answer is its own business.
            let _ = link.receive();
            let refusal = netvsc_linux::socket::Message::Refused { why: Reason::BUSY, detail: 0 };
            let _ = link.send(&refusal, Vec::new());
        }
    }

    /// The host that serves this guest, once there is one.
    pub fn host(&mut self) -> Option<&mut Host> {
        self.running.as_mut().map(|running| &mut running.host)
    }

    /// What whoever runs the host has to know.
    pub fn poll_attention(&mut self) -> Option<Attention> {
        self.attention.pop_front()
    }

    /// Answers the guest's question.
    pub fn account(&mut self, account: netvsc_linux::socket::Account) {
        self.side.account(account);
    }

    /// Takes what came over the socket. `plan` is what a host for a new guest is made by.
    ///
    /// # Errors
    /// [`Left`]: the guest is gone.
    pub fn hear(&mut self, plan: &Plan, now: Instant) -> Result<(), Left> {
        let heard = self.try_hear(plan, now);
        // What it was told last it may still read.
        let said = self.say();
        heard?;
        said?;
        if self.side.is_refused() { Err(Left::Late) } else { Ok(()) }
    }

    fn try_hear(&mut self, plan: &Plan, now: Instant) -> Result<(), Left> {
        self.side.handle_deadline(now);
        for (message, descriptors) in self.link.receive()? {
            self.side.handle(message, descriptors)?;
        }
        while let Some(event) = self.side.poll_event() {
            match event {
                SocketEvent::Shared(offer) => {
                    let pages = usize::try_from(offer.pages).unwrap_or(usize::MAX);
                    match Running::new(offer, plan) {
                        Ok((running, registers)) => {
                            self.running = Some(running);
                            self.side.ready(registers, REGISTER_PAGES);
                            self.attention.push_back(Attention::Ready { pages });
                        }
                        Err(why) => {
                            self.side.refuse(Reason::SHARED, 0);
                            return Err(Left::Shared(why));
                        }
                    }
                }
                SocketEvent::AccountAsked => self.attention.push_back(Attention::AccountAsked),
            }
        }
        Ok(())
    }

    /// Says what there is to say.
    ///
    /// # Errors
    /// [`Left`]: the guest is gone.
    pub fn say(&mut self) -> Result<(), Left> {
        while let Some((message, descriptors)) = self.side.poll_outgoing() {
            self.link.send(&message, descriptors)?;
        }
        Ok(self.link.flush()?)
    }

    /// Shows the guest the registers of a VF that is about to be offered.
    pub fn map_vf(&mut self, bus: Guid) {
        let Some(running) = &mut self.running else { return };
        let windows = running.host.map_ports(bus);
        // Ports of one function have neighbouring pages unless the pages have begun anew in between: then it is shown as none.
        let pages: Vec<u64> = windows.iter().map(page_of).collect();
        let Some(first) = pages.first().copied() else { return };
        if pages.iter().zip(first..).any(|(page, expected)| *page != expected) {
            return;
        }
        running.windows.insert(bus, windows);
        self.side.window(bus, first as u32, pages.len() as u32);
    }

    /// Takes back the registers of a VF that is gone.
    pub fn unmap_vf(&mut self, bus: Guid) {
        let Some(running) = &mut self.running else { return };
        if running.windows.remove(&bus).is_some() {
            self.side.window_gone(bus);
        }
    }

    /// Carries messages and signals until there is nothing more to do at `now`. True if anything was done.
    pub fn settle(&mut self, now: Instant) -> bool {
        let Some(running) = &mut self.running else { return false };
        let _ = running.to_host.take();
        let mut any = false;
        loop {
            let mut moved = running.take_in(now);
            running.host.poll(now);
            moved |= running.hand_out();
            if !moved {
                return any;
            }
            any = true;
        }
    }

    /// When to do something although nothing came.
    pub fn deadline(&self) -> Option<Instant> {
        let host = self.running.as_ref().and_then(|running| running.host.poll_deadline());
        vmbus::time::earliest(host, self.side.poll_deadline())
    }

    /// What to wait for: the socket, and whether there has to be room in it; the doorbell.
    pub fn descriptors(&self) -> Vec<(BorrowedFd<'_>, PollFlags)> {
        let mut flags = PollFlags::IN;
        if self.link.wants_to_write() {
            flags |= PollFlags::OUT;
        }
        let bell = self.running.as_ref().map(|running| running.to_host.as_fd());
        let bell = bell.map(|bell| (bell, PollFlags::IN));
        [(self.link.as_fd(), flags)].into_iter().chain(bell).collect()
    }

    /// Lets go of everything that was the guest's. False if something of its memory is still mapped, which should not be.
    pub fn dissolve(self) -> bool {
        let memory = self.running.as_ref().map(|running| running.memory.clone());
        drop(self);
        memory.is_none_or(|memory| !memory.is_alive())
    }
}

/// The page of the file of registers on which a port has its own.
fn page_of(window: &VfWindow) -> u64 {
    window.registers.frames().first().map_or(u64::MAX, |frame| frame.0)
}

impl Running {
    /// Maps what a guest shares and makes a host for it; and the file of registers, to be handed to the guest.
    fn new(offer: Offer<OwnedFd>, plan: &Plan) -> Result<(Self, OwnedFd), String> {
        let text = |error: &dyn std::fmt::Display| error.to_string();
        let to_host = Bell::adopt(offer.to_host).map_err(|error| text(&error))?;
        let to_guest = Bell::adopt(offer.to_guest).map_err(|error| text(&error))?;
        // The seals are looked at here, before anything is mapped.
        let file = SharedFile::adopt(offer.memory).map_err(|error| text(&error))?;
        if file.pages() as u64 != offer.pages {
            return Err(format!("{} pages were announced, it has {}", offer.pages, file.pages()));
        }
        let frames: Vec<Pfn> = (offer.first..).take(file.pages()).map(Pfn).collect();
        let memory = file.map(&frames).map_err(|error| text(&error))?;
        let talk = Talk::new(&memory).ok_or("too few pages")?;
        let own = memory.slice(TALK_PAGES, memory.pages() - TALK_PAGES).ok_or("too few pages")?;
        let mut regions = Regions::new();
        regions.insert(own).map_err(|error| text(&error))?;
        let (registers, pages) = registers().map_err(|error| text(&error))?;
        // Low ids, as the flags by which guests signal are 2,048.
        let bus = BusPolicy { ids: IdPolicy::Lowest, ..plan.bus.clone() };
        let connection = bus.connection;
        let mut host = Host::new(bus, plan.pci.clone(), Arc::new(regions));
        host.put_registers_into(pages);
        let running = Self {
            host,
            talk,
            to_host,
            to_guest,
            memory: memory.downgrade(),
            windows: BTreeMap::new(),
            waiting: VecDeque::new(),
            connection,
        };
        Ok((running, registers))
    }

    fn take_in(&mut self, now: Instant) -> bool {
        let Self { host, talk, to_guest, windows, connection, .. } = self;
        let mut moved = false;
        while let Some(taken) = talk.posts.take() {
            if let Some(message) = taken.payload {
                host.handle_message(posted_to(&message, *connection), &message, now);
            }
            if taken.end_of_message {
                to_guest.ring();
            }
            moved = true;
        }
        talk.signals.take(|flag| {
            host.signalled(ConnectionId(Talk::CONNECTIONS + u32::from(flag)));
            moved = true;
        });
        talk.doorbells.take(|flag| {
            let mut all = windows.values().flatten();
            if let Some(window) = all.find(|window| page_of(window) == u64::from(flag)) {
                window.doorbell.ring();
                moved = true;
            }
        });
        moved
    }

    /// Posts messages and signals. True if a message was posted.
    fn hand_out(&mut self) -> bool {
        while let Some(message) = self.host.poll_message() {
            self.waiting.push_back(message);
        }
        let mut posted = false;
        while let Some(message) = self.waiting.front() {
            match self.talk.messages.post(message) {
                Err(SynicError::Busy) => break,
                Ok(()) => posted = true,
                // Messages of the bus have at most 240 bytes.
                Err(error) => tracing::debug!(%error, "a message that cannot be posted"),
            }
            self.waiting.pop_front();
        }
        let mut rung = posted;
        for channel in self.host.interrupts() {
            // Ids are low; one beyond the flags could not be signalled.
            let flag = u16::try_from(channel.0).ok();
            rung |= flag.is_some_and(|flag| self.talk.events.set(flag) == Ok(true));
        }
        for window in self.windows.values().flatten() {
            if window.interrupt.take() {
                let flag = u16::try_from(page_of(window)).ok();
                rung |= flag.is_some_and(|flag| self.talk.interrupts.set(flag) == Ok(true));
            }
        }
        if rung {
            self.to_guest.ring();
        }
        posted
    }
}

/// Where a guest posts this message, which the memory does not say.
fn posted_to(message: &Payload, agreed: ConnectionId) -> ConnectionId {
    if message.kind() != MessageType::INITIATE_CONTACT {
        return agreed;
    }
    // The version follows the header of 8 bytes.
    let version = message.get(8..).and_then(|rest| rest.first_chunk());
    let version = version.map_or(Version(0), |bytes| Version(u32::from_le_bytes(*bytes)));
    if version >= Version::V5_0 { CONTACT } else { OLD_CONTACT }
}

/// A file of registers: a descriptor for the guest, and its pages, known by their numbers.
fn registers() -> Result<(OwnedFd, SharedPages), netvsc_linux::MemfdError> {
    let file = SharedFile::create("netvsc registers", REGISTER_PAGES as usize)?;
    let numbers: Vec<Pfn> = (0..REGISTER_PAGES.into()).map(Pfn).collect();
    Ok((file.handle()?, file.map(&numbers)?))
}

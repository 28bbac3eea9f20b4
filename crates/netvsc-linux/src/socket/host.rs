//! The host's side: what it says and hears, without I/O.

use std::collections::VecDeque;
use std::time::Duration;

use vmbus::{Guid, Instant};

use super::message::{Account, Features, Message, Reason, Version};
use super::{FRAMES_END, LEAST_PAGES, MOST_PAGES, ProtocolError};

/// Versions that hosts speak.
const VERSIONS: (Version, Version) = (Version::V1, Version::V1);
/// How long a guest may take until it has shared its memory.
const PATIENCE: Duration = Duration::from_secs(5);

/// What a guest shares.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Offer<F> {
    /// Pages of its memory.
    pub pages: u64,
    /// Page frame number of the first; the others follow.
    pub first: u64,
    /// The memory: a file.
    pub memory: F,
    /// The host's doorbell.
    pub to_host: F,
    /// The guest's doorbell.
    pub to_guest: F,
}

/// Something that the host's shell has to take up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HostEvent<F> {
    /// The guest shares memory: [`HostSide::ready`] or [`HostSide::refuse`] comes next.
    Shared(Offer<F>),
    /// The guest wants to know: [`HostSide::account`] comes next.
    AccountAsked,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// HELLO is to come by then, and SHARE.
    Greeting {
        by: Instant,
    },
    Welcomed {
        by: Instant,
    },
    Shared,
    Ready,
    Refused,
}

/// The host's side of the socket, for one guest. `F` is a descriptor.
#[derive(Debug)]
pub struct HostSide<F> {
    state: State,
    features: Features,
    outgoing: VecDeque<(Message, Vec<F>)>,
    events: VecDeque<HostEvent<F>>,
    asked: bool,
}

impl<F> HostSide<F> {
    /// A host to whom a guest has connected at `now`, and that has these features.
    #[must_use]
    pub fn new(features: Features, now: Instant) -> Self {
        Self {
            state: State::Greeting { by: now + PATIENCE },
            features,
            outgoing: VecDeque::new(),
            events: VecDeque::new(),
            asked: false,
        }
    }

    /// The next message for the guest, with its descriptors.
    pub fn poll_outgoing(&mut self) -> Option<(Message, Vec<F>)> {
        self.outgoing.pop_front()
    }

    /// What happened.
    pub fn poll_event(&mut self) -> Option<HostEvent<F>> {
        self.events.pop_front()
    }

    /// When the guest's time is over, if it has not shared its memory by then.
    #[must_use]
    pub fn poll_deadline(&self) -> Option<Instant> {
        match self.state {
            State::Greeting { by } | State::Welcomed { by } => Some(by),
            _ => None,
        }
    }

    /// Refuses a guest whose time is over.
    pub fn handle_deadline(&mut self, now: Instant) {
        if self.poll_deadline().is_some_and(|by| by <= now) {
            self.refuse(Reason::LATE, 0);
        }
    }

    /// Whether the guest was refused: hang up once what is outgoing has gone out.
    #[must_use]
    pub fn is_refused(&self) -> bool {
        self.state == State::Refused
    }

    /// Whether the guest has got what it needs to talk through its memory.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.state == State::Ready
    }

    /// A message of the guest with the descriptors that belong to it.
    ///
    /// # Errors
    /// [`ProtocolError`]; the guest is refused.
    pub fn handle(&mut self, message: Message, descriptors: Vec<F>) -> Result<(), ProtocolError> {
        let handled = self.try_handle(message, descriptors);
        if handled.is_err() {
            self.refuse(Reason::PROTOCOL, 0);
        }
        handled
    }

    fn try_handle(&mut self, message: Message, descriptors: Vec<F>) -> Result<(), ProtocolError> {
        let order = |expected| ProtocolError::Order { expected, got: message.kind() };
        match (self.state, message) {
            (State::Refused, _) => {}
            (State::Greeting { by }, Message::Hello { lowest, highest, features }) => {
                let version = highest.min(VERSIONS.1);
                if version < lowest || version < VERSIONS.0 {
                    self.refuse(Reason::VERSION, u32::from(VERSIONS.1.0));
                    return Ok(());
                }
                self.features &= features;
                self.state = State::Welcomed { by };
                let features = self.features;
                self.outgoing.push_back((Message::Welcome { version, features }, Vec::new()));
            }
            (State::Greeting { .. }, _) => return Err(order("HELLO")),
            (State::Welcomed { .. }, Message::Share { pages, first }) => {
                let end = first.checked_add(pages).filter(|end| *end <= FRAMES_END);
                if end.is_none() || !(LEAST_PAGES..=MOST_PAGES).contains(&pages) {
                    return Err(ProtocolError::Memory { pages, first });
                }
                let mut descriptors = descriptors.into_iter();
                let mut next = || descriptors.next().ok_or(order("SHARE"));
                let (memory, to_host, to_guest) = (next()?, next()?, next()?);
                self.state = State::Shared;
                let offer = Offer { pages, first, memory, to_host, to_guest };
                self.events.push_back(HostEvent::Shared(offer));
            }
            (State::Welcomed { .. }, _) => return Err(order("SHARE")),
            (State::Shared, _) => return Err(order("nothing")),
            (State::Ready, Message::AskAccount) => {
                if std::mem::replace(&mut self.asked, true) {
                    return Err(ProtocolError::Impatient);
                }
                self.events.push_back(HostEvent::AccountAsked);
            }
            (State::Ready, _) => return Err(order("ASK_ACCOUNT")),
        }
        Ok(())
    }

    /// What the guest shared is in use. `registers` is the file with the registers of VFs, which has so many pages.
    pub fn ready(&mut self, registers: F, pages: u32) {
        if self.state == State::Shared {
            self.state = State::Ready;
            self.outgoing.push_back((Message::Ready { windows: pages }, vec![registers]));
        }
    }

    /// Sends the guest away.
    pub fn refuse(&mut self, why: Reason, detail: u32) {
        if self.state != State::Refused {
            self.state = State::Refused;
            self.outgoing.push_back((Message::Refused { why, detail }, Vec::new()));
        }
    }

    /// Shows the guest the registers of a bus's function, `ports` pages from page `first`. Nothing is said to a guest that does
    /// not know about them.
    pub fn window(&mut self, instance: Guid, first: u32, ports: u32) {
        self.tell_windows(Message::Window { instance, first, ports });
    }

    /// Those registers are gone.
    pub fn window_gone(&mut self, instance: Guid) {
        self.tell_windows(Message::WindowGone { instance });
    }

    fn tell_windows(&mut self, message: Message) {
        if self.is_ready() && self.features.contains(Features::WINDOWS) {
            self.outgoing.push_back((message, Vec::new()));
        }
    }

    /// Answers the guest's question.
    pub fn account(&mut self, account: Account) {
        if std::mem::take(&mut self.asked) {
            self.outgoing.push_back((Message::Account(account), Vec::new()));
        }
    }
}

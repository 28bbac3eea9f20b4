//! The guest's side: what it says and hears, without I/O.

use std::collections::{BTreeMap, VecDeque};

use vmbus::Guid;

use super::message::{Account, Features, Message, Reason, Version};
use super::{MOST_WINDOWS, ProtocolError};

/// Versions that guests offer.
const VERSIONS: (Version, Version) = (Version::V1, Version::V1);

/// Something that the guest's shell has to take up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum GuestEvent<F> {
    /// The host is there: [`GuestSide::share`] comes next.
    Welcome {
        /// The version that is spoken.
        version: Version,
        /// The features that are used.
        features: Features,
    },
    /// The host has the memory; make contact over it.
    Ready {
        /// The registers of VFs: a file.
        registers: F,
        /// Its pages.
        pages: u32,
    },
    /// Registers of a bus's function: pages in that file.
    Window {
        /// Instance GUID of the bus.
        instance: Guid,
        /// Page of the first port; the others follow.
        first: u32,
        /// Number of ports.
        ports: u32,
    },
    /// Those registers are gone.
    WindowGone {
        /// Instance GUID of the bus.
        instance: Guid,
    },
    /// What became of the frames.
    Account(Account),
    /// The host does not want this guest.
    Refused {
        /// Why.
        why: Reason,
        /// More about it, or 0.
        detail: u32,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Greeted,
    Welcomed,
    Shared,
    Ready { pages: u32 },
    Refused,
}

/// The guest's side of the socket. `F` is a descriptor.
#[derive(Debug)]
pub struct GuestSide<F> {
    state: State,
    offered: Features,
    outgoing: VecDeque<(Message, Vec<F>)>,
    events: VecDeque<GuestEvent<F>>,
    /// By bus: first page and ports.
    windows: BTreeMap<Guid, (u32, u32)>,
    asked: bool,
}

impl<F> GuestSide<F> {
    /// A guest that greets its host.
    #[must_use]
    pub fn new(features: Features) -> Self {
        let (lowest, highest) = VERSIONS;
        let hello = Message::Hello { lowest, highest, features };
        Self {
            state: State::Greeted,
            offered: features,
            outgoing: VecDeque::from([(hello, Vec::new())]),
            events: VecDeque::new(),
            windows: BTreeMap::new(),
            asked: false,
        }
    }

    /// Hands the host memory and doorbells: `pages` pages that the file `memory` has, the first known as page frame `first`.
    /// Only after [`GuestEvent::Welcome`]; before that, and twice, nothing is done.
    pub fn share(&mut self, pages: u64, first: u64, memory: F, to_host: F, to_guest: F) {
        if self.state == State::Welcomed {
            self.state = State::Shared;
            let descriptors = vec![memory, to_host, to_guest];
            self.outgoing.push_back((Message::Share { pages, first }, descriptors));
        }
    }

    /// Asks what became of the frames. Nothing is done before the host is ready, or while the last answer is still to come.
    pub fn ask_account(&mut self) {
        if matches!(self.state, State::Ready { .. }) && !self.asked {
            self.asked = true;
            self.outgoing.push_back((Message::AskAccount, Vec::new()));
        }
    }

    /// The next message for the host, with its descriptors.
    pub fn poll_outgoing(&mut self) -> Option<(Message, Vec<F>)> {
        self.outgoing.pop_front()
    }

    /// What happened.
    pub fn poll_event(&mut self) -> Option<GuestEvent<F>> {
        self.events.pop_front()
    }

    /// Whether the host refused.
    #[must_use]
    pub fn is_refused(&self) -> bool {
        self.state == State::Refused
    }

    /// A message of the host with the descriptors that belong to it.
    ///
    /// # Errors
    /// [`ProtocolError`]: hang up.
    pub fn handle(&mut self, message: Message, descriptors: Vec<F>) -> Result<(), ProtocolError> {
        let order = |expected| ProtocolError::Order { expected, got: message.kind() };
        let event = match (self.state, message) {
            (State::Refused, _) => return Err(order("nothing")),
            (_, Message::Refused { why, detail }) => {
                self.state = State::Refused;
                GuestEvent::Refused { why, detail }
            }
            (State::Greeted, Message::Welcome { version, features }) => {
                self.welcomed(version, features)?
            }
            (State::Greeted, _) => return Err(order("WELCOME")),
            (State::Welcomed, _) => return Err(order("nothing")),
            (State::Shared, Message::Ready { windows }) => {
                let registers = descriptors.into_iter().next().ok_or(order("READY"))?;
                if !(1..=MOST_WINDOWS).contains(&windows) {
                    return Err(ProtocolError::WindowPages(windows));
                }
                self.state = State::Ready { pages: windows };
                GuestEvent::Ready { registers, pages: windows }
            }
            (State::Shared, _) => return Err(order("READY")),
            (State::Ready { pages }, Message::Window { instance, first, ports }) => {
                self.window(instance, first, ports, pages)?
            }
            (State::Ready { .. }, Message::WindowGone { instance }) => {
                self.windows.remove(&instance).ok_or(ProtocolError::NoWindow(instance))?;
                GuestEvent::WindowGone { instance }
            }
            (State::Ready { .. }, Message::Account(account)) => {
                if !std::mem::take(&mut self.asked) {
                    return Err(ProtocolError::Unasked);
                }
                GuestEvent::Account(account)
            }
            (State::Ready { .. }, _) => return Err(order("WINDOW, WINDOW_GONE or ACCOUNT")),
        };
        self.events.push_back(event);
        Ok(())
    }

    fn welcomed(
        &mut self,
        version: Version,
        features: Features,
    ) -> Result<GuestEvent<F>, ProtocolError> {
        let (lowest, highest) = VERSIONS;
        if !(lowest..=highest).contains(&version) {
            return Err(ProtocolError::Version { lowest, highest, got: version });
        }
        if !self.offered.contains(features) {
            return Err(ProtocolError::Features { offered: self.offered, got: features });
        }
        self.state = State::Welcomed;
        Ok(GuestEvent::Welcome { version, features })
    }

    fn window(
        &mut self,
        instance: Guid,
        first: u32,
        ports: u32,
        pages: u32,
    ) -> Result<GuestEvent<F>, ProtocolError> {
        let end = first.checked_add(ports).filter(|end| ports > 0 && *end <= pages);
        let end = end.ok_or(ProtocolError::Window { first, ports, pages })?;
        let overlaps = |(at, count): &(u32, u32)| *at < end && first < at + count;
        if self.windows.contains_key(&instance) || self.windows.values().any(overlaps) {
            return Err(ProtocolError::WindowTaken { instance, page: first });
        }
        self.windows.insert(instance, (first, ports));
        Ok(GuestEvent::Window { instance, first, ports })
    }
}

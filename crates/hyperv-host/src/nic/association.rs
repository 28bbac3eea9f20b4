//! Association of a NIC with its virtual function, and the data path between them, as the host sees them.
//!
//! A pure machine: facts in, actions out (PROTOCOL §8.3). It knows neither messages nor rings.
//!
//! | state | entered when |
//! |---|---|
//! | `Initializing` | the channel is closed, or its guest has not finished start-up |
//! | `Silent` | the guest cannot hear of a VF: no SR-IOV bit, or NVSP below 4 |
//! | `Unavailable` | there is no VF |
//! | `Available` | there is one and the association is due |
//! | `Advertised` | the guest was told |
//! | `Ready` | the PCI device was offered as well |
//! | `Switched` | the data path is on the VF |
//!
//! A switch under way is no state of its own but a pending request beside the state it would leave.

use std::collections::VecDeque;
use std::time::Duration;

use vmbus::time::earliest;
use vmbus::{Instant, Serial};

use super::policy::{NicPolicy, SwitchAnswer};
use crate::switch::Path;

/// State of the association.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VfState {
    /// The guest has not finished start-up.
    Initializing,
    /// The guest does not take part in SR-IOV on this connection.
    Silent,
    /// There is no VF.
    Unavailable,
    /// There is a VF and the guest is about to hear of it.
    Available,
    /// The guest was told of the VF.
    Advertised,
    /// The VF's PCI device was offered.
    Ready,
    /// The data path is on the VF.
    Switched,
}

/// Something to be done, in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Action {
    /// Send VF_ASSOCIATION.
    Associate { allocated: bool, serial: Serial },
    /// Offer the VF's PCI device.
    Offer,
    /// Complete the switch request with this transaction id, with an empty completion.
    Complete(u64),
    /// Tell the guest the data path.
    Notice(Path),
    /// The data path is now this one.
    DataPath(Path),
}

#[derive(Clone, Copy, Debug)]
struct Request {
    path: Path,
    /// `None` if the guest asked for no completion.
    transaction: Option<u64>,
}

#[derive(Clone, Copy, Debug)]
struct Pending {
    request: Request,
    answer: SwitchAnswer,
    due: Instant,
}

/// The machine.
#[derive(Debug)]
pub(super) struct Association {
    state: VfState,
    /// The guest takes part in SR-IOV on this connection.
    listening: bool,
    vf: Option<Serial>,
    /// Serial of the last association sent on this connection.
    last_serial: Serial,
    /// The PCI device of the present VF was offered.
    offered: bool,
    association_due: Option<Instant>,
    offer_due: Option<Instant>,
    pending: Option<Pending>,
    /// Requests behind the pending one.
    waiting: VecDeque<Request>,
    path: Path,
    actions: VecDeque<Action>,
}

impl Association {
    pub(super) fn new() -> Self {
        Self {
            state: VfState::Initializing,
            listening: false,
            vf: None,
            last_serial: Serial(0),
            offered: false,
            association_due: None,
            offer_due: None,
            pending: None,
            waiting: VecDeque::new(),
            path: Path::Synthetic,
            actions: VecDeque::new(),
        }
    }

    pub(super) const fn state(&self) -> VfState {
        self.state
    }

    pub(super) const fn path(&self) -> Path {
        self.path
    }

    /// Whether a switch request is under way.
    pub(super) const fn is_pending(&self) -> bool {
        self.pending.is_some()
    }

    pub(super) fn poll_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    pub(super) fn poll_deadline(&self) -> Option<Instant> {
        let timers = earliest(self.association_due, self.offer_due);
        earliest(timers, self.pending.map(|pending| pending.due))
    }

    /// The guest has finished RNDIS start-up. `listening`: NVSP 4 or newer, and the guest asked for SR-IOV.
    pub(super) fn operational(&mut self, listening: bool, policy: &NicPolicy, now: Instant) {
        self.listening = listening;
        if !listening {
            self.state = VfState::Silent;
        } else if self.vf.is_some() {
            self.become_available(policy, now);
        } else {
            self.state = VfState::Unavailable;
        }
    }

    fn become_available(&mut self, policy: &NicPolicy, now: Instant) {
        self.state = VfState::Available;
        self.association_due = Some(now + policy.association_delay);
    }

    /// The channel was closed. Nobody waits for an answer any more; the VF stays in the guest.
    pub(super) fn closed(&mut self, policy: &NicPolicy) {
        self.state = VfState::Initializing;
        self.listening = false;
        self.association_due = None;
        self.offer_due = None;
        self.pending = None;
        self.waiting.clear();
        // Offers and path changes are not messages on the channel: they still count.
        self.actions.retain(|action| matches!(action, Action::Offer | Action::DataPath(_)));
        self.last_serial = Serial(0);
        if !policy.keep_path_over_close {
            self.set_path(Path::Synthetic);
        }
    }

    /// A VF belongs to the NIC from now on.
    pub(super) fn vf_added(&mut self, serial: Serial, policy: &NicPolicy, now: Instant) {
        if self.vf.is_some() {
            self.vf_lost();
        }
        self.vf = Some(serial);
        self.offered = false;
        if self.state == VfState::Unavailable {
            self.become_available(policy, now);
        }
    }

    /// The VF is gone.
    pub(super) fn vf_lost(&mut self) {
        if self.vf.take().is_none() {
            return;
        }
        self.offered = false;
        self.association_due = None;
        self.offer_due = None;
        let mut notice = self.state == VfState::Switched;
        self.set_path(Path::Synthetic);
        if let Some(pending) = self.pending.take() {
            notice = pending.request.path == Path::Vf;
            self.complete(pending.request, pending.answer);
        }
        // Requests that waited behind the pending one find nothing to switch.
        while let Some(request) = self.waiting.pop_front() {
            self.complete(request, SwitchAnswer::default());
        }
        if notice {
            self.actions.push_back(Action::Notice(Path::Synthetic));
        }
        match self.state {
            VfState::Advertised | VfState::Ready | VfState::Switched => {
                let serial = self.last_serial;
                self.actions.push_back(Action::Associate { allocated: false, serial });
                self.state = VfState::Unavailable;
            }
            VfState::Available => self.state = VfState::Unavailable,
            VfState::Initializing | VfState::Silent | VfState::Unavailable => {}
        }
    }

    /// Says again whether there is a VF, and with which serial.
    pub(super) fn repeat(&mut self) {
        let serial = self.last_serial;
        match self.state {
            VfState::Advertised | VfState::Ready | VfState::Switched => {
                self.actions.push_back(Action::Associate { allocated: true, serial });
            }
            VfState::Unavailable => {
                self.actions.push_back(Action::Associate { allocated: false, serial });
            }
            VfState::Initializing | VfState::Silent | VfState::Available => {}
        }
    }

    /// Tells the guest a data path out of turn.
    pub(super) fn notice(&mut self, path: Path) {
        self.actions.push_back(Action::Notice(path));
    }

    /// The guest asks for a data path. `transaction`: to be completed, if it asked for that.
    pub(super) fn switch_requested(
        &mut self,
        path: Path,
        transaction: Option<u64>,
        policy: &mut NicPolicy,
        now: Instant,
    ) {
        self.waiting.push_back(Request { path, transaction });
        self.start_requests(policy, now);
    }

    fn start_requests(&mut self, policy: &mut NicPolicy, now: Instant) {
        while self.pending.is_none() {
            let Some(request) = self.waiting.pop_front() else { return };
            let leads_on = matches!(
                (self.state, request.path),
                (VfState::Advertised | VfState::Ready, Path::Vf)
                    | (VfState::Switched, Path::Synthetic)
            );
            if !leads_on {
                self.complete(request, SwitchAnswer::default());
                continue;
            }
            let answer = policy.switch_script.pop_front().unwrap_or(policy.switch_answer);
            let delay = match answer {
                SwitchAnswer::Complete(delay)
                | SwitchAnswer::Fail(delay)
                | SwitchAnswer::Silent(delay)
                | SwitchAnswer::CompleteTwice(delay) => delay,
                SwitchAnswer::Lose => {
                    tracing::debug!(path = ?request.path, "switch request lost on purpose");
                    continue;
                }
            };
            if request.path == Path::Vf {
                self.offer();
            }
            self.pending = Some(Pending { request, answer, due: now + delay });
            self.finish_if_due(now);
        }
    }

    fn finish_if_due(&mut self, now: Instant) {
        let Some(pending) = self.pending else { return };
        if pending.due > now {
            return;
        }
        self.pending = None;
        let failed = matches!(pending.answer, SwitchAnswer::Fail(_));
        match (pending.request.path, failed) {
            (Path::Vf, false) => {
                self.state = VfState::Switched;
                self.set_path(Path::Vf);
            }
            (Path::Synthetic, false) => {
                self.state = VfState::Ready;
                self.set_path(Path::Synthetic);
            }
            (Path::Vf, true) => self.state = VfState::Ready,
            (Path::Synthetic, true) => {}
        }
        self.complete(pending.request, pending.answer);
        if failed && pending.request.path == Path::Vf {
            self.actions.push_back(Action::Notice(Path::Synthetic));
        }
    }

    fn complete(&mut self, request: Request, answer: SwitchAnswer) {
        let Some(transaction) = request.transaction else { return };
        let times = match answer {
            SwitchAnswer::Complete(_) | SwitchAnswer::Fail(_) => 1,
            SwitchAnswer::CompleteTwice(_) => 2,
            SwitchAnswer::Silent(_) | SwitchAnswer::Lose => 0,
        };
        for _ in 0..times {
            self.actions.push_back(Action::Complete(transaction));
        }
    }

    fn offer(&mut self) {
        self.offer_due = None;
        if !self.offered {
            self.offered = true;
            self.actions.push_back(Action::Offer);
        }
        if self.state == VfState::Advertised {
            self.state = VfState::Ready;
        }
    }

    fn set_path(&mut self, path: Path) {
        if self.path != path {
            self.path = path;
            self.actions.push_back(Action::DataPath(path));
        }
    }

    /// Does what is due.
    pub(super) fn handle_deadline(&mut self, policy: &mut NicPolicy, now: Instant) {
        if self.association_due.is_some_and(|due| due <= now) {
            self.association_due = None;
            if let Some(serial) = self.vf {
                self.advertise(serial, policy.offer_delay, now);
            }
        }
        if self.offer_due.is_some_and(|due| due <= now) {
            self.offer();
        }
        self.finish_if_due(now);
        self.start_requests(policy, now);
    }

    fn advertise(&mut self, serial: Serial, offer_delay: Duration, now: Instant) {
        self.last_serial = serial;
        self.actions.push_back(Action::Associate { allocated: true, serial });
        if self.path == Path::Vf {
            // Only after a reopening with the path kept.
            self.state = VfState::Switched;
        } else {
            self.state = VfState::Advertised;
            self.offer_due = Some(now + offer_delay);
        }
    }
}

#[cfg(test)]
#[path = "association_tests.rs"]
mod tests;

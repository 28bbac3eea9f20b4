//! Which path a NIC's frames take: the sequence of rules F1 to F10 and F12, as a machine without I/O.
//!
//! [`Failover`] decides; whoever owns NIC and port carries out ([`Adapter`](crate::adapter::Adapter)). One value holds the
//! state of the path, so guest and host cannot come to differ in more than a message that is under way.
//!
//! | on | then |
//! |---|---|
//! | port bound, up, with carrier, and the NIC associated | [`Action::Switch`] to the VF; frames follow only after the host's completion (F2) |
//! | carrier lost, port asked back, association withdrawn, NIC closing | frames stop on the VF at once, [`Action::Switch`] to synthetic, drain, release (F4) |
//! | any change of path | frames wait until the path that was left has sent what it had, so that none overtakes another (F6) |
//! | port vanished | what it never confirmed goes out again before anything newer (F5) |
//! | the host says "synthetic" | obeyed at once, answered with nothing (F3); the VF is tried again later, a bounded number of times |
//! | the host names the VF again while it is in use | asked once more for it: if the host has left it unheard, it comes back (F3) |
//! | a completion does not come | said once; the path in use stays synthetic; the late one still counts; asked again by way of synthetic (F7) |
//! | the NIC's channel closed and opened | synthetic, then the VF again if it is still bound (F9) |

mod types;

use alloc::collections::VecDeque;

use vmbus::Instant;
use vmbus::time::earliest;

use crate::port::Path;
pub use types::{Action, Cause, FailoverConfig, Outlet};

/// Switches that are remembered, so that one can say how often the path flaps.
const MOST_REMEMBERED: usize = 1000;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Port {
    /// There is none.
    Absent,
    /// There is one.
    Bound { up: bool },
    /// It is to go as soon as it is quiet.
    Leaving,
}

/// A switch that the host has not completed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Request {
    path: Path,
    /// When the completion is late; `None` once that has been said.
    due: Option<Instant>,
    /// The host has left the VF by itself meanwhile, so that the completion no longer tells where the host is.
    void: bool,
}

/// The path of one NIC.
#[derive(Clone, Debug)]
pub struct Failover {
    config: FailoverConfig,
    /// Whether the NIC can carry switch messages.
    open: bool,
    /// Whether the host has a VF for the NIC. Without, nothing is switched, even if a MAC alone has made a pair.
    associated: bool,
    port: Port,
    /// Where frames go.
    transmit: Path,
    /// When the path that was left has to have sent what it has, while that is waited for.
    draining: Option<Instant>,
    /// What the host was asked for and has not completed. One request at a time: hosts complete a second one without effect.
    request: Option<Request>,
    /// What the host said last.
    confirmed: Path,
    /// The host left the VF by itself: nothing is asked until something changes or the time has come to try again.
    overruled: bool,
    /// When to try again.
    retry: Option<Instant>,
    /// Tries so far, and when the host last left the VF by itself.
    retries: (u32, Option<Instant>),
    /// The path has switched too often and stays on synthetic until then.
    damped: Option<Instant>,
    /// Times of the last switches, oldest first.
    recent: VecDeque<Instant>,
    actions: VecDeque<Action>,
    /// Whether everything the port had was confirmed or is being sent again.
    orderly: bool,
}

impl Failover {
    /// A NIC without port whose channel is not ready yet.
    #[must_use]
    pub fn new(config: FailoverConfig) -> Self {
        Self {
            recent: VecDeque::new(),
            config,
            open: false,
            associated: false,
            port: Port::Absent,
            transmit: Path::Synthetic,
            draining: None,
            request: None,
            confirmed: Path::Synthetic,
            overruled: false,
            retry: None,
            retries: (0, None),
            damped: None,
            actions: VecDeque::new(),
            orderly: true,
        }
    }

    /// The next thing to do.
    pub fn poll_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    /// When [`Failover::handle_deadline`] has something to say.
    #[must_use]
    pub fn poll_deadline(&self) -> Option<Instant> {
        let answers = earliest(self.request.and_then(|request| request.due), self.draining);
        earliest(answers, earliest(self.retry, self.damped))
    }

    /// Where a frame goes now.
    #[must_use]
    pub fn outlet(&self) -> Outlet {
        match self.draining {
            Some(_) => Outlet::Draining,
            None => Outlet::Path(self.transmit),
        }
    }

    /// Where frames go, at once or when nothing has to be waited for any more.
    #[must_use]
    pub fn path(&self) -> Path {
        self.transmit
    }

    /// Whether the NIC's channel carries frames.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.open
    }

    /// The path as the host confirmed it last.
    #[must_use]
    pub fn host_path(&self) -> Path {
        self.confirmed
    }

    /// Whether a switch is under way.
    #[must_use]
    pub fn is_switching(&self) -> bool {
        self.request.is_some()
    }

    /// Whether something is waited for that has no deadline: a switch that was not reported as late, or a path's last frames.
    /// Never the case; for those who watch.
    #[must_use]
    pub fn waits_forever(&self) -> bool {
        let waits = self.outlet() == Outlet::Draining
            || self.request.is_some_and(|request| request.due.is_some());
        waits && self.poll_deadline().is_none()
    }

    /// The NIC is ready: its channel is open and it can carry switch messages (F9).
    pub fn channel_opened(&mut self, now: Instant) {
        self.open = true;
        self.begin_anew();
        self.advance(Cause::PortUp, now);
    }

    /// The NIC's channel is closed or being reset: the host is on synthetic, and no message can change that. What it said on the
    /// channel, it will say again on the next one (F9).
    pub fn channel_closed(&mut self, now: Instant) {
        self.open = false;
        self.retry = None;
        self.associated = false;
        self.request = None;
        self.confirmed = Path::Synthetic;
        self.leave_vf(Cause::ChannelClosed, now);
        self.settle();
    }

    /// A port was bound to the NIC; `up` is whether it has carrier.
    pub fn port_bound(&mut self, up: bool, now: Instant) {
        self.port = Port::Bound { up };
        self.begin_anew();
        self.orderly = true;
        self.advance(Cause::PortUp, now);
    }

    /// The port's carrier.
    pub fn port_link(&mut self, up: bool, now: Instant) {
        match self.port {
            Port::Bound { .. } if !up && seeded!("ignore-carrier") => return,
            Port::Bound { up: was } if was != up => {
                self.port = Port::Bound { up };
                self.begin_anew();
                self.advance(Cause::LinkDown, now);
            }
            Port::Bound { .. } | Port::Leaving | Port::Absent => {}
        }
        // Without carrier nothing will be confirmed.
        if !up
            && self.port != Port::Absent
            && self.transmit == Path::Synthetic
            && let Some(draining) = &mut self.draining
        {
            *draining = now.min(*draining);
        }
    }

    /// The port is to go, and still works: the host asked for it, or pairing took it away (F4, F12).
    pub fn port_leaving(&mut self, cause: Cause, now: Instant) {
        if let Port::Bound { .. } = self.port {
            self.port = Port::Leaving;
            self.retry = None;
            self.advance(cause, now);
        }
    }

    /// The port vanished (F5).
    pub fn port_gone(&mut self, now: Instant) {
        if self.port == Port::Absent {
            return;
        }
        self.port = Port::Absent;
        self.retry = None;
        if self.transmit == Path::Vf {
            self.move_to(Path::Synthetic, Cause::Gone, now);
        }
        self.draining = None;
        if !seeded!("skip-resend") {
            self.actions.push_back(Action::Resend);
        }
        self.actions.push_back(Action::Release { orderly: false });
        self.advance(Cause::Gone, now);
    }

    /// The path that was left has sent every frame that it had.
    pub fn drained(&mut self) {
        self.draining = None;
        self.settle();
    }

    /// The host completed a switch. One that is not waited for any more is left alone.
    pub fn switch_completed(&mut self, path: Path, now: Instant) {
        let Some(request) = self.request.filter(|request| request.path == path) else { return };
        self.request = None;
        if !self.overruled {
            self.retry = None;
        }
        self.confirmed = path;
        if path == Path::Synthetic && seeded!("switch-with-transmit-on") {
            self.move_to(path, Cause::Unbound, now);
        }
        if request.void && path == Path::Vf && self.wants_vf() {
            // Which came first, this switch or the host's own? Only a new answer can tell.
            self.confirmed = Path::Synthetic;
        }
        self.follow(now);
    }

    /// The host says by itself where the data path is. It is the truth, and is not answered (F3).
    pub fn host_switched(&mut self, path: Path, now: Instant) {
        if seeded!("ignore-host-override") {
            return;
        }
        self.confirmed = path;
        self.overruled = path == Path::Synthetic;
        self.retry = None;
        match path {
            Path::Vf => self.follow(now),
            Path::Synthetic => {
                if self.could_use_vf() {
                    self.plan_retry(now);
                }
                if let Some(request) = &mut self.request {
                    request.void = true;
                }
                self.leave_vf(Cause::Host, now);
                self.settle();
            }
        }
    }

    /// Something has changed: what the host did by itself before counts no longer.
    fn begin_anew(&mut self) {
        self.overruled = false;
        self.retry = None;
        self.retries = (0, None);
    }

    /// The host has left the VF by itself, or not answered. It is asked again after a while, less and less often, and then no more.
    fn plan_retry(&mut self, now: Instant) {
        let (tries, last) = self.retries;
        let calm = last.is_some_and(|last| now.since(last) > self.config.flap_window);
        let tries = if calm { 0 } else { tries };
        self.retries = (tries, Some(now));
        if tries < self.config.retry_limit && !seeded!("never-retry") {
            let factor = 1u32.checked_shl(tries).unwrap_or(u32::MAX);
            self.retry = Some(now + self.config.retry_after.saturating_mul(factor));
        }
    }

    /// Tries again what the host has undone, and what was damped.
    fn try_again(&mut self, now: Instant) {
        if self.damped.is_some_and(|at| at <= now) {
            self.damped = None;
            self.advance(Cause::PortUp, now);
        }
        if self.retry.is_some_and(|at| at <= now) {
            self.retry = None;
            self.overruled = false;
            if self.wants_vf() {
                self.retries.0 = self.retries.0.saturating_add(1);
                self.actions.push_back(Action::ReportRetry { attempt: self.retries.0 });
                let late = |request: Request| request.path == Path::Vf && request.due.is_none();
                if self.request.is_some_and(late) {
                    // A second request for the VF could be confused with the first. One for synthetic ends the first.
                    self.request_path(Path::Synthetic, now);
                }
            }
            self.advance(Cause::PortUp, now);
        }
    }

    /// Goes where the host is, if that is what is wanted and nothing else was asked for; otherwise asks for what is wanted.
    fn follow(&mut self, now: Instant) {
        let other = self.request.is_some_and(|request| request.path == Path::Synthetic);
        if self.confirmed == Path::Vf && self.wants_vf() && !other {
            self.move_to(Path::Vf, Cause::PortUp, now);
        }
        self.ask(now);
        self.settle();
    }

    /// The host associated the NIC with a serial: what it said before counts no longer.
    ///
    /// One that is on its VF already may hear that again, and be right. Or the VF was gone and is back, which the guest was not
    /// told, and the host is on synthetic: only an answer can tell, and one that is on the VF has nothing to do for it.
    pub fn associated(&mut self, now: Instant) {
        self.associated = true;
        self.begin_anew();
        self.advance(Cause::PortUp, now);
        let doubtful = self.confirmed == Path::Vf && !seeded!("trust-old-switch");
        if doubtful && self.wants_vf() && self.request.is_none() {
            self.request_path(Path::Vf, now);
        }
    }

    /// The host has no VF for the NIC any more (F4).
    pub fn disassociated(&mut self, now: Instant) {
        self.associated = false;
        self.retry = None;
        self.advance(Cause::Disassociated, now);
    }

    /// Says what is late.
    pub fn handle_deadline(&mut self, now: Instant) {
        if let Some(request) = &mut self.request
            && request.due.is_some_and(|at| at <= now)
        {
            request.due = None;
            let path = request.path;
            self.actions.push_back(Action::ReportOverdue { path });
            if path == Path::Vf && self.confirmed == Path::Vf {
                // It was asked once more where it is, and does not say.
                self.confirmed = Path::Synthetic;
                self.leave_vf(Cause::Unanswered, now);
            }
            self.ask(now);
        }
        if self.draining.is_some_and(|at| at <= now) {
            self.draining = None;
            if self.transmit == Path::Synthetic {
                self.orderly = false;
                self.actions.push_back(Action::Resend);
            }
        }
        self.try_again(now);
        self.settle();
    }

    fn wants_vf(&self) -> bool {
        self.could_use_vf() && !self.overruled && self.damped.is_none()
    }

    /// Whether there is all that the VF needs.
    fn could_use_vf(&self) -> bool {
        let associated = self.associated || seeded!("switch-without-association");
        self.open && associated && self.port == (Port::Bound { up: true })
    }

    /// Takes the next step towards the path that is wanted.
    fn advance(&mut self, cause: Cause, now: Instant) {
        if !self.wants_vf() {
            self.leave_vf(cause, now);
        }
        self.ask(now);
        self.settle();
    }

    /// Asks the host for the path that is wanted, unless it is there or an answer is still to come. The newest wish wins, one
    /// request after the other (F8). Only a host that is late is asked for the other path meanwhile; the NIC knows which
    /// request an answer is to, and says nothing of one for which a newer request for the same path is under way.
    fn ask(&mut self, now: Instant) {
        let path = if self.wants_vf() { Path::Vf } else { Path::Synthetic };
        let ask = match self.request {
            None => path != self.confirmed,
            Some(request) => request.due.is_none() && request.path != path,
        };
        if self.open && ask {
            self.request_path(path, now);
        }
        let late = |request: Request| request.path == path && request.due.is_none();
        if path == Path::Vf && self.retry.is_none() && self.request.is_some_and(late) {
            self.plan_retry(now);
        }
    }

    fn request_path(&mut self, path: Path, now: Instant) {
        let patience =
            self.config.switch_deadline * if seeded!("never-time-out") { 1 << 20 } else { 1 };
        let due = Some(now + patience);
        self.request = Some(Request { path, due, void: false });
        self.actions.push_back(Action::Switch(path));
        if path == Path::Vf && seeded!("transmit-before-completion") {
            self.move_to(path, Cause::PortUp, now);
        }
    }

    /// Stops transmitting on the VF; what it has is waited for, unless it has no carrier to send it with.
    fn leave_vf(&mut self, cause: Cause, now: Instant) {
        if self.transmit == Path::Vf && !(self.open && seeded!("switch-with-transmit-on")) {
            self.move_to(Path::Synthetic, cause, now);
            if cause == Cause::LinkDown {
                self.draining = Some(now);
            }
        }
    }

    fn move_to(&mut self, path: Path, cause: Cause, now: Instant) {
        if self.transmit == path {
            return;
        }
        self.transmit = path;
        self.draining = (!seeded!("skip-drain")).then(|| now + self.config.drain_deadline);
        self.actions.push_back(Action::Transmit { path, cause });
        self.recent.push_back(now);
        while self.recent.front().is_some_and(|at| now.since(*at) > self.config.flap_window)
            || self.recent.len() > self.config.flap_limit.saturating_add(1).max(MOST_REMEMBERED)
        {
            self.recent.pop_front();
        }
        if self.recent.len() > self.config.flap_limit {
            self.actions.push_back(Action::ReportFlapping { switches: self.recent.len() });
            if path == Path::Synthetic {
                self.damped = self.config.damping.map(|span| now + span);
            }
        }
    }

    /// Gives a port back that is to go, once it is quiet: nothing on the VF, nothing unconfirmed, and the host on synthetic or
    /// too late to be waited for.
    fn settle(&mut self) {
        let quiet = self.transmit == Path::Synthetic && self.draining.is_none();
        let host_left = match self.request {
            None => self.confirmed == Path::Synthetic,
            // An answer that is late is not waited for any longer, so that the host never waits for us (F12).
            Some(request) => request.due.is_none() || seeded!("release-before-completion"),
        };
        if self.port == Port::Leaving && quiet && (host_left || !self.open) {
            self.port = Port::Absent;
            self.actions.push_back(Action::Release { orderly: self.orderly });
        }
    }
}

#[cfg(test)]
#[path = "failover_tests.rs"]
mod tests;
#[cfg(test)]
#[path = "failover_world_tests.rs"]
mod world_tests;

//! Guest and host with a slow ring between them: whatever happens, they agree in the end.

extern crate std;
use core::time::Duration;
use std::vec;

use super::*;

fn at(millis: u64) -> Instant {
    Instant::from_nanos(millis * 1_000_000)
}

/// What the host tells the guest.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Word {
    Completed(Path),
    Notice(Path),
    Associated(bool),
}

/// A guest and a host with a slow ring between them. The host answers in order, sometimes refuses, and sometimes switches
/// by itself.
#[derive(Clone)]
struct World {
    failover: Failover,
    now: Instant,
    host: Path,
    asked: VecDeque<Path>,
    said: VecDeque<Word>,
    open: bool,
    bound: bool,
    up: bool,
    associated: bool,
    /// The last word on the path that reached the guest.
    heard: Path,
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Open,
    Close,
    Bind(bool),
    Link(bool),
    Leave,
    Gone,
    Drained,
    HostAnswers,
    HostRefuses,
    HostSwitches(Path),
    HostAssociates(bool),
    GuestHears,
    Deadline,
}

impl World {
    fn new() -> Self {
        Self {
            failover: Failover::new(FailoverConfig::default()),
            now: at(0),
            host: Path::Synthetic,
            asked: VecDeque::new(),
            said: VecDeque::new(),
            open: false,
            bound: false,
            up: false,
            associated: false,
            heard: Path::Synthetic,
        }
    }

    fn step(&mut self, step: Step) {
        let now = self.now;
        match step {
            Step::Open if !self.open => {
                self.open = true;
                self.failover.channel_opened(now);
            }
            Step::Close if self.open => {
                (self.open, self.associated) = (false, false);
                (self.host, self.heard) = (Path::Synthetic, Path::Synthetic);
                self.asked.clear();
                self.said.clear();
                self.failover.channel_closed(now);
            }
            Step::Bind(up) if !self.bound => {
                (self.bound, self.up) = (true, up);
                self.failover.port_bound(up, now);
            }
            Step::Link(up) => {
                self.up = up;
                self.failover.port_link(up, now);
            }
            Step::Leave => self.failover.port_leaving(Cause::Eject, now),
            Step::Gone => self.failover.port_gone(now),
            Step::Drained => self.failover.drained(),
            Step::Deadline => {
                if let Some(due) = self.failover.poll_deadline() {
                    self.now = now.max(due);
                    self.failover.handle_deadline(self.now);
                }
            }
            Step::GuestHears => self.hear(),
            _ if self.open => self.host(step),
            _ => {}
        }
        self.carry_out();
    }

    fn host(&mut self, step: Step) {
        match step {
            Step::HostAnswers | Step::HostRefuses => {
                let Some(path) = self.asked.pop_front() else { return };
                self.said.push_back(Word::Completed(path));
                self.host = path;
                if matches!(step, Step::HostRefuses) && path == Path::Vf {
                    self.host = Path::Synthetic;
                    self.said.push_back(Word::Notice(Path::Synthetic));
                }
            }
            Step::HostSwitches(path) if path != self.host => {
                self.host = path;
                self.said.push_back(Word::Notice(path));
            }
            Step::HostAssociates(is) => self.said.push_back(Word::Associated(is)),
            _ => {}
        }
    }

    fn hear(&mut self) {
        match self.said.pop_front() {
            Some(Word::Completed(path)) => {
                self.heard = path;
                // As the NIC does, which knows answers by their ids: a newer request for the same path hides an older answer.
                let again = |word: &Word| *word == Word::Completed(path);
                if !self.asked.contains(&path) && !self.said.iter().any(again) {
                    self.failover.switch_completed(path, self.now);
                }
            }
            Some(Word::Notice(path)) => {
                self.heard = path;
                self.failover.host_switched(path, self.now);
            }
            Some(Word::Associated(true)) => {
                self.associated = true;
                self.failover.associated(self.now);
            }
            Some(Word::Associated(false)) => {
                self.associated = false;
                self.failover.disassociated(self.now);
            }
            None => {}
        }
    }

    fn carry_out(&mut self) {
        while let Some(action) = self.failover.poll_action() {
            match action {
                Action::Switch(path) => {
                    assert!(self.open, "no message without a channel");
                    self.asked.push_back(path);
                    assert!(self.asked.len() + self.said.len() < 1000);
                }
                Action::Release { .. } => {
                    assert!(self.bound, "released once");
                    assert_eq!(self.failover.path(), Path::Synthetic);
                    self.bound = false;
                }
                Action::Transmit { path: Path::Vf, .. } => {
                    // HISTORY 37: only when the host's last word is that it has switched.
                    assert_eq!(self.heard, Path::Vf);
                    assert!(self.bound && self.open && self.up && self.associated);
                }
                _ => {}
            }
        }
    }

    /// Everything that is under way arrives.
    fn quiesce(&mut self) {
        for _ in 0..100_000 {
            self.step(Step::Drained);
            if !self.said.is_empty() {
                self.step(Step::GuestHears);
            } else if !self.asked.is_empty() {
                self.step(Step::HostAnswers);
            } else {
                return;
            }
        }
        panic!("guest and host talk for ever");
    }
}

fn any_step() -> impl proptest::strategy::Strategy<Value = Step> {
    use proptest::prelude::*;
    prop_oneof![
        4 => Just(Step::Open),
        1 => Just(Step::Close),
        6 => any::<bool>().prop_map(Step::Bind),
        6 => any::<bool>().prop_map(Step::Link),
        2 => Just(Step::Leave),
        2 => Just(Step::Gone),
        6 => Just(Step::Drained),
        8 => Just(Step::HostAnswers),
        1 => Just(Step::HostRefuses),
        1 => Just(Step::HostSwitches(Path::Synthetic)),
        1 => Just(Step::HostSwitches(Path::Vf)),
        4 => prop::bool::weighted(0.8).prop_map(Step::HostAssociates),
        16 => Just(Step::GuestHears),
        2 => Just(Step::Deadline),
    ]
}

proptest::proptest! {
    #![proptest_config(proptest::test_runner::Config::with_cases(1_000))]

    // HISTORY 10: whatever happens, guest and host agree once everything has come to rest.
    #[test]
    fn guest_and_host_agree_at_rest(steps in proptest::collection::vec((any_step(), 0u64..500), 0..80)) {
        let mut world = World::new();
        for (step, millis) in steps {
            world.now = world.now + Duration::from_millis(millis);
            world.step(step);
        }
        world.quiesce();
        proptest::prop_assert_eq!(world.failover.host_path(), world.host);
        proptest::prop_assert_eq!(world.failover.outlet(), Outlet::Path(world.host));
        proptest::prop_assert!(!world.failover.is_switching());

        // And a VF that is there, up and associated is used in the end, if the host has not left it by itself.
        world.step(Step::Open);
        world.step(Step::Bind(true));
        world.step(Step::Link(true));
        world.step(Step::HostAssociates(true));
        world.quiesce();
        proptest::prop_assert_eq!(world.failover.outlet(), Outlet::Path(Path::Vf));
        proptest::prop_assert_eq!(world.host, Path::Vf);
    }
}

/// One of the things that can be waited for is late, and nothing else is: whichever it is, it may be the first.
#[derive(Clone, Copy, Debug)]
enum Late {
    Answer,
    Drain,
    Retry,
}

impl World {
    /// Everything that decides the future, without the times: any of the deadlines may come first.
    fn written(&self) -> std::string::String {
        let Failover { open, associated, port, transmit, draining, request, confirmed, .. } =
            &self.failover;
        let Failover { overruled, retry, retries, orderly, .. } = &self.failover;
        let request = request.map(|request| (request.path, request.due.is_some(), request.void));
        let waits = (draining.is_some(), retry.is_some(), retries.0);
        let guest = (open, associated, port, transmit, request, confirmed, overruled, orderly);
        let world = (self.host, &self.asked, &self.said, self.open, self.bound, self.up);
        std::format!("{guest:?}{waits:?}{world:?}{:?}", (self.associated, self.heard))
    }

    /// Lets one deadline come before all others; `false` if nobody waits for it.
    fn late(&mut self, late: Late) -> bool {
        let far = self.now + Duration::from_secs(1_000_000);
        let Failover { draining, request, retry, .. } = &mut self.failover;
        let mut due = request.as_mut().and_then(|request| request.due.as_mut());
        for at in [draining.as_mut(), due.as_deref_mut(), retry.as_mut()].into_iter().flatten() {
            *at = far;
        }
        let first = match late {
            Late::Answer => due,
            Late::Drain => draining.as_mut(),
            Late::Retry => retry.as_mut(),
        };
        let Some(first) = first else { return false };
        *first = self.now;
        self.failover.handle_deadline(self.now);
        self.carry_out();
        true
    }
}

/// Every order of everything that can happen to one NIC, with up to three messages under way and up to one retry: every state
/// is visited once and every step taken from it. In each, guest and host agree once everything has come to rest, and a VF that is
/// there is used in the end.
#[test]
fn guest_and_host_agree_after_every_order_of_events() {
    use std::collections::BTreeSet;
    const STEPS: [Step; 16] = [
        Step::Open,
        Step::Close,
        Step::Bind(true),
        Step::Bind(false),
        Step::Link(true),
        Step::Link(false),
        Step::Leave,
        Step::Gone,
        Step::Drained,
        Step::HostAnswers,
        Step::HostRefuses,
        Step::HostSwitches(Path::Synthetic),
        Step::HostSwitches(Path::Vf),
        Step::HostAssociates(true),
        Step::HostAssociates(false),
        Step::GuestHears,
    ];
    let mut start = World::new();
    start.failover.config.retry_limit = 1;
    let mut seen = BTreeSet::from([start.written()]);
    let (mut open, mut states) = (vec![start], 0);
    while let Some(world) = open.pop() {
        states += 1;
        world.check_retry();
        world.clone().check_at_rest();
        let mut next: vec::Vec<World> = vec![];
        for step in &STEPS {
            let mut world = world.clone();
            world.step(*step);
            next.push(world);
        }
        for late in [Late::Answer, Late::Drain, Late::Retry] {
            let mut world = world.clone();
            if world.late(late) {
                next.push(world);
            }
        }
        for mut world in next {
            world.failover.recent.clear();
            if world.asked.len() + world.said.len() <= 3 && seen.insert(world.written()) {
                open.push(world);
            }
        }
    }
    assert!(states > 1_000, "{states}");
}

impl World {
    /// Whoever could use a VF and does not has a reason that ends: a deadline, or the tries are used up.
    fn check_retry(&self) {
        let Failover { overruled, retry, retries, request, config, .. } = &self.failover;
        let late = request.is_some_and(|r| r.path == Path::Vf && r.due.is_none());
        if self.failover.could_use_vf() && (*overruled || late) {
            assert!(retry.is_some() || retries.0 >= config.retry_limit, "{:?}", self.failover);
        }
    }

    /// Once everything has come to rest, guest and host agree; and a VF that is there, up and associated is used in the end.
    fn check_at_rest(mut self) {
        self.quiesce();
        assert_eq!(self.failover.host_path(), self.host);
        assert_eq!(self.failover.outlet(), Outlet::Path(self.host));
        assert!(!self.failover.is_switching());
        for step in [Step::Open, Step::Bind(true), Step::Link(true), Step::HostAssociates(true)] {
            self.step(step);
        }
        self.quiesce();
        assert_eq!(self.failover.outlet(), Outlet::Path(Path::Vf));
        assert_eq!(self.host, Path::Vf);
    }
}

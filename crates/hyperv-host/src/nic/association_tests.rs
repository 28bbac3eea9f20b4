//! The table of HISTORY section 4, row by row, and what it leaves open.

use std::time::Duration;

use vmbus::{Instant, Serial};

use super::Action::*;
use super::*;

const SERIAL: Serial = Serial(7);
const SECOND: Duration = Duration::from_secs(1);

const ASSOC: Action = Associate { allocated: true, serial: SERIAL };
const GONE: Action = Associate { allocated: false, serial: SERIAL };

fn at(millis: u64) -> Instant {
    Instant::from_nanos(millis * 1_000_000)
}

struct World {
    machine: Association,
    policy: NicPolicy,
    now: Instant,
}

impl World {
    fn new() -> Self {
        let mut world =
            Self { machine: Association::new(), policy: NicPolicy::default(), now: at(0) };
        world.machine.vf_added(SERIAL, &world.policy, world.now);
        world
    }

    /// A machine in this state, its actions so far taken.
    fn in_state(state: From) -> Self {
        let mut world = Self::new();
        if state == From::Available {
            world.policy.association_delay = 5 * SECOND;
            world.apply(Event::Operational);
            world.actions();
            return world;
        }
        world.apply(if state == From::Silent {
            Event::OperationalSilent
        } else {
            Event::Operational
        });
        match state {
            From::Ready => world.apply(Event::Wait(SECOND)),
            From::Switched => world.apply(Event::Switch(Path::Vf)),
            From::PendingVf => {
                world.policy.switch_answer = SwitchAnswer::Complete(10 * SECOND);
                world.apply(Event::Switch(Path::Vf));
            }
            From::PendingSynthetic => {
                world.apply(Event::Switch(Path::Vf));
                world.policy.switch_answer = SwitchAnswer::Complete(10 * SECOND);
                world.apply(Event::Switch(Path::Synthetic));
            }
            From::Unavailable => world.apply(Event::Lost),
            _ => {}
        }
        world.actions();
        world
    }

    fn apply(&mut self, event: Event) {
        let (machine, policy) = (&mut self.machine, &mut self.policy);
        match event {
            Event::Operational => machine.operational(true, policy, self.now),
            Event::OperationalSilent => machine.operational(false, policy, self.now),
            Event::Wait(span) => self.now = self.now + span,
            Event::Switch(path) => machine.switch_requested(path, Some(1), policy, self.now),
            Event::SwitchFails(path) => {
                policy.switch_script.push_back(SwitchAnswer::Fail(Duration::ZERO));
                machine.switch_requested(path, Some(1), policy, self.now);
            }
            Event::Lost => machine.vf_lost(),
            Event::Back(serial) => machine.vf_added(serial, policy, self.now),
            Event::Reopened => {
                machine.closed(policy);
                machine.operational(true, policy, self.now);
            }
        }
        self.machine.handle_deadline(&mut self.policy, self.now);
    }

    fn actions(&mut self) -> Vec<Action> {
        std::iter::from_fn(|| self.machine.poll_action()).collect()
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum From {
    Silent,
    Unavailable,
    Available,
    Advertised,
    Ready,
    Switched,
    PendingVf,
    PendingSynthetic,
}

#[derive(Clone, Copy, Debug)]
enum Event {
    Operational,
    OperationalSilent,
    Wait(Duration),
    Switch(Path),
    SwitchFails(Path),
    Lost,
    Back(Serial),
    Reopened,
}

// HISTORY section 4: every row of the host's state table.
#[test]
fn the_oracle_table_holds_row_by_row() {
    use Path::{Synthetic, Vf};
    let back = Serial(8);
    let advertised_again = Associate { allocated: true, serial: back };
    let synthetic = Notice(Synthetic);
    let rows: &[(From, Event, VfState, &[Action])] = &[
        (From::Available, Event::Wait(5 * SECOND), VfState::Advertised, &[ASSOC]),
        (From::Silent, Event::Wait(60 * SECOND), VfState::Silent, &[]),
        (From::Silent, Event::Lost, VfState::Silent, &[]),
        (From::Silent, Event::Switch(Vf), VfState::Silent, &[Complete(1)]),
        (From::Advertised, Event::Wait(SECOND), VfState::Ready, &[Offer]),
        (
            From::Advertised,
            Event::Switch(Vf),
            VfState::Switched,
            &[Offer, DataPath(Vf), Complete(1)],
        ),
        (From::Ready, Event::Switch(Vf), VfState::Switched, &[DataPath(Vf), Complete(1)]),
        (
            From::Advertised,
            Event::SwitchFails(Vf),
            VfState::Ready,
            &[Offer, Complete(1), synthetic],
        ),
        (From::Ready, Event::SwitchFails(Vf), VfState::Ready, &[Complete(1), synthetic]),
        (From::Advertised, Event::Switch(Synthetic), VfState::Advertised, &[Complete(1)]),
        (From::Ready, Event::Switch(Synthetic), VfState::Ready, &[Complete(1)]),
        (
            From::Switched,
            Event::Switch(Synthetic),
            VfState::Ready,
            &[DataPath(Synthetic), Complete(1)],
        ),
        (From::Switched, Event::SwitchFails(Synthetic), VfState::Switched, &[Complete(1)]),
        (From::Switched, Event::Switch(Vf), VfState::Switched, &[Complete(1)]),
        (From::Advertised, Event::Lost, VfState::Unavailable, &[GONE]),
        (From::Ready, Event::Lost, VfState::Unavailable, &[GONE]),
        (From::Available, Event::Lost, VfState::Unavailable, &[]),
        (
            From::Switched,
            Event::Lost,
            VfState::Unavailable,
            &[DataPath(Synthetic), synthetic, GONE],
        ),
        (From::PendingVf, Event::Lost, VfState::Unavailable, &[Complete(1), synthetic, GONE]),
        (
            From::PendingSynthetic,
            Event::Lost,
            VfState::Unavailable,
            &[DataPath(Synthetic), Complete(1), GONE],
        ),
        (From::Unavailable, Event::Back(back), VfState::Advertised, &[advertised_again]),
        (From::Unavailable, Event::Switch(Vf), VfState::Unavailable, &[Complete(1)]),
        (From::Available, Event::Switch(Vf), VfState::Available, &[Complete(1)]),
        (From::Advertised, Event::Reopened, VfState::Advertised, &[ASSOC]),
        (From::Switched, Event::Reopened, VfState::Advertised, &[DataPath(Synthetic), ASSOC]),
        (
            From::PendingVf,
            Event::Wait(10 * SECOND),
            VfState::Switched,
            &[DataPath(Vf), Complete(1)],
        ),
        (
            From::PendingSynthetic,
            Event::Wait(10 * SECOND),
            VfState::Ready,
            &[DataPath(Synthetic), Complete(1)],
        ),
    ];
    for (from, event, to, actions) in rows {
        let mut world = World::in_state(*from);
        world.apply(*event);
        assert_eq!(world.actions(), *actions, "{from:?} + {event:?}");
        assert_eq!(world.machine.state(), *to, "{from:?} + {event:?}");
        let path = if *to == VfState::Switched { Vf } else { Synthetic };
        assert_eq!(world.machine.path(), path, "{from:?} + {event:?}");
    }
}

#[test]
fn a_vf_that_was_offered_is_not_offered_again_after_reopening() {
    let mut world = World::in_state(From::Switched);
    world.apply(Event::Reopened);
    assert_eq!(world.actions(), [DataPath(Path::Synthetic), ASSOC]);
    world.apply(Event::Wait(60 * SECOND));
    assert_eq!(world.actions(), []);
    world.apply(Event::Switch(Path::Vf));
    assert_eq!(world.actions(), [DataPath(Path::Vf), Complete(1)]);
}

#[test]
fn a_path_kept_over_closing_needs_no_switch_afterwards() {
    let mut world = World::in_state(From::Switched);
    world.policy.keep_path_over_close = true;
    world.apply(Event::Reopened);
    assert_eq!(world.actions(), [ASSOC]);
    assert_eq!((world.machine.state(), world.machine.path()), (VfState::Switched, Path::Vf));
    world.apply(Event::Switch(Path::Vf));
    assert_eq!(world.actions(), [Complete(1)]);
}

// HISTORY 66: however slowly the host paces the offer, it comes once, and the end is the same.
#[test]
fn offers_are_paced() {
    for delay in [0, 1, 60] {
        let mut world = World::new();
        world.policy.offer_delay = delay * SECOND;
        world.apply(Event::Operational);
        if delay > 0 {
            assert_eq!(world.actions(), [ASSOC]);
            assert_eq!(world.machine.poll_deadline(), Some(at(1000 * u64::from(delay))));
            world.apply(Event::Wait(delay * SECOND));
            assert_eq!(world.actions(), [Offer]);
        } else {
            assert_eq!(world.actions(), [ASSOC, Offer]);
        }
        assert_eq!(world.machine.state(), VfState::Ready);
        assert_eq!(world.machine.poll_deadline(), None);
    }
}

#[test]
fn a_request_behind_a_pending_one_waits_its_turn() {
    let mut world = World::in_state(From::PendingVf);
    world.apply(Event::Switch(Path::Synthetic));
    assert_eq!(world.actions(), []);
    world.apply(Event::Wait(10 * SECOND));
    assert_eq!(world.actions(), [DataPath(Path::Vf), Complete(1)]);
    world.apply(Event::Wait(10 * SECOND));
    assert_eq!(world.actions(), [DataPath(Path::Synthetic), Complete(1)]);
    assert_eq!(world.machine.state(), VfState::Ready);
}

#[test]
fn lost_silent_and_doubled_answers() {
    let answers: &[(SwitchAnswer, &[Action])] = &[
        (SwitchAnswer::Lose, &[]),
        (SwitchAnswer::Silent(Duration::ZERO), &[DataPath(Path::Vf)]),
        (
            SwitchAnswer::CompleteTwice(Duration::ZERO),
            &[DataPath(Path::Vf), Complete(1), Complete(1)],
        ),
    ];
    for (answer, actions) in answers {
        let mut world = World::in_state(From::Ready);
        world.policy.switch_answer = *answer;
        world.apply(Event::Switch(Path::Vf));
        assert_eq!(world.actions(), *actions, "{answer:?}");
        assert!(!world.machine.is_pending());
    }
}

#[test]
fn a_switch_without_completion_request_is_not_completed() {
    let mut world = World::in_state(From::Ready);
    world.machine.switch_requested(Path::Vf, None, &mut world.policy, world.now);
    assert_eq!(world.actions(), [DataPath(Path::Vf)]);
}

#[test]
fn a_vf_replaced_in_place_is_taken_away_first() {
    let mut world = World::in_state(From::Ready);
    world.apply(Event::Back(Serial(9)));
    assert_eq!(world.actions(), [GONE, Associate { allocated: true, serial: Serial(9) }]);
    world.apply(Event::Wait(SECOND));
    assert_eq!(world.actions(), [Offer]);
}

#[test]
fn nothing_is_said_to_a_closed_channel() {
    let mut world = World::in_state(From::Switched);
    world.machine.closed(&world.policy);
    world.machine.vf_lost();
    assert_eq!(world.actions(), [DataPath(Path::Synthetic)]);
    world.apply(Event::Back(Serial(8)));
    world.apply(Event::Wait(60 * SECOND));
    assert_eq!(world.actions(), []);
    assert_eq!(world.machine.poll_deadline(), None);
}

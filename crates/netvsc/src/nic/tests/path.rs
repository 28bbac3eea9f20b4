//! Virtual functions and the data path.

extern crate std;
use std::time::Duration;

use vmbus::Serial;

use super::host::*;
use crate::nic::*;
use crate::nvsp::{DataPath, GuestMessage, HostMessage};
use crate::port::Path;

const VF: GuestMessage = GuestMessage::SwitchDataPath(DataPath::VF);
const SYNTHETIC: GuestMessage = GuestMessage::SwitchDataPath(DataPath::SYNTHETIC);

#[test]
fn associations_are_told_and_completed_and_their_end_is_told_once() {
    let mut rig = ready();
    rig.completions.clear();
    rig.associate(true, 7);
    rig.associate(true, 7);
    rig.associate(false, 7);
    rig.associate(false, 7);
    rig.associate(true, 0);
    rig.associate(true, 8);
    rig.settle();
    assert_eq!(
        rig.events(),
        [
            NicEvent::Associated { serial: Serial(7) },
            NicEvent::Associated { serial: Serial(7) },
            NicEvent::Disassociated { serial: Serial(7) },
            NicEvent::Associated { serial: Serial(0) },
            NicEvent::Associated { serial: Serial(8) },
        ]
    );
    assert_eq!(rig.nic.info().association, Some(Serial(8)));
    assert_eq!(rig.completions.len(), 6);
    assert!(rig.completions.iter().all(|(id, payload)| *id == 1 << 63 && payload.is_empty()));
}

#[test]
fn an_association_that_wants_no_completion_gets_none() {
    let mut rig = ready();
    rig.completions.clear();
    rig.tell(HostMessage::VfAssociation { allocated: true, serial: Serial(1) }, false);
    rig.settle();
    assert!(rig.completions.is_empty());
}

#[test]
fn taking_back_what_was_never_given_is_nothing() {
    let mut rig = ready();
    rig.associate(false, 0);
    rig.settle();
    assert!(rig.events().is_empty());
}

// HISTORY 37: the switch is complete when the host says so, and not before.
#[test]
fn a_switch_is_complete_when_its_completion_comes() {
    let mut rig = ready();
    rig.held.switches = true;
    rig.nic.switch_data_path(Path::Vf, rig.now);
    rig.settle();
    rig.pass(Duration::from_secs(1));
    assert_eq!(rig.said, [VF]);
    assert!(rig.events().is_empty());
    assert_eq!(rig.nic.info().path, Path::Synthetic);
    let id = rig.waiting.pop_front().unwrap();
    rig.complete(id, &[]);
    rig.settle();
    assert_eq!(rig.events(), [NicEvent::SwitchCompleted { path: Path::Vf }]);
    assert_eq!(rig.nic.info().path, Path::Vf);
}

// HISTORY 38
#[test]
fn an_association_before_the_completion_of_a_switch_keeps_its_place() {
    let mut rig = ready();
    rig.associate(true, 7);
    rig.settle();
    rig.held.switches = true;
    rig.nic.switch_data_path(Path::Vf, rig.now);
    rig.settle();
    rig.associate(false, 7);
    let id = rig.waiting.pop_front().unwrap();
    rig.complete(id, &[]);
    rig.tell(HostMessage::SwitchDataPath(DataPath::SYNTHETIC), true);
    rig.settle();
    assert_eq!(
        rig.events()[1..],
        [
            NicEvent::Disassociated { serial: Serial(7) },
            NicEvent::SwitchCompleted { path: Path::Vf },
            NicEvent::HostSwitched { path: Path::Synthetic },
        ]
    );
    assert_eq!(rig.nic.info().path, Path::Synthetic);
    assert_eq!(rig.said, [VF], "a notice is obeyed and not answered with a switch");
}

#[test]
fn the_newest_wish_wins() {
    let mut rig = ready();
    rig.held.switches = true;
    rig.nic.switch_data_path(Path::Vf, rig.now);
    rig.nic.switch_data_path(Path::Synthetic, rig.now);
    rig.nic.switch_data_path(Path::Vf, rig.now);
    rig.nic.switch_data_path(Path::Synthetic, rig.now);
    rig.settle();
    assert_eq!(rig.said, [VF], "one at a time");
    rig.held.switches = false;
    let id = rig.waiting.pop_front().unwrap();
    rig.complete(id, &[]);
    rig.settle();
    assert_eq!(rig.said, [VF, SYNTHETIC]);
    assert_eq!(
        rig.events(),
        [
            NicEvent::SwitchCompleted { path: Path::Vf },
            NicEvent::SwitchCompleted { path: Path::Synthetic },
        ]
    );
    // Wishing for what is under way takes the other wish back.
    rig.held.switches = true;
    rig.nic.switch_data_path(Path::Vf, rig.now);
    rig.nic.switch_data_path(Path::Synthetic, rig.now);
    rig.nic.switch_data_path(Path::Vf, rig.now);
    rig.settle();
    let id = rig.waiting.pop_front().unwrap();
    rig.complete(id, &[]);
    rig.settle();
    assert_eq!(rig.said, [VF, SYNTHETIC, VF]);
}

// HISTORY 36: no switch is sent before everything is up.
#[test]
fn a_wish_waits_for_the_end_of_start_up() {
    let mut rig = rig();
    rig.nic.switch_data_path(Path::Vf, rig.now);
    rig.settle();
    let events = rig.events();
    assert!(matches!(events[0], NicEvent::Ready { .. }));
    assert_eq!(rig.said.last(), Some(&VF));
    assert_eq!(events[1..], [NicEvent::SwitchCompleted { path: Path::Vf }]);
}

#[test]
fn a_switch_that_is_never_completed_is_reported_and_does_not_block_the_next() {
    let mut rig = ready();
    let patience = NicConfig::default().deadline;
    rig.held.switches = true;
    rig.nic.switch_data_path(Path::Vf, rig.now);
    rig.nic.switch_data_path(Path::Synthetic, rig.now);
    rig.settle();
    rig.pass(patience);
    assert_eq!(rig.events(), [NicEvent::Overdue { step: Step::Switch(Path::Vf) }]);
    rig.settle();
    assert_eq!(rig.said, [VF, SYNTHETIC], "the way to safety is not closed");
    let (late, next) = (rig.waiting[0], rig.waiting[1]);
    rig.complete(late, &[]);
    rig.complete(next, &[]);
    rig.settle();
    assert_eq!(
        rig.events(),
        [
            NicEvent::SwitchCompleted { path: Path::Vf },
            NicEvent::SwitchCompleted { path: Path::Synthetic },
        ]
    );
    assert_eq!(rig.nic.poll_deadline(), None);
}

// HISTORY 41
#[test]
fn a_switch_does_not_get_lost_in_a_full_ring() {
    let mut rig = ready();
    // The host reads nothing, and the ring is full of frames.
    while rig.nic.transmit(&frame(1514, 1)).is_ok() {
        rig.nic.flush();
    }
    fill(&mut rig);
    rig.nic.switch_data_path(Path::Vf, rig.now);
    rig.nic.switch_data_path(Path::Synthetic, rig.now);
    rig.nic.switch_data_path(Path::Vf, rig.now);
    assert_eq!(rig.nic.stats().switches, 0, "there was no room");
    rig.settle();
    let switches: std::vec::Vec<_> =
        rig.said.iter().filter(|said| matches!(said, GuestMessage::SwitchDataPath(_))).collect();
    assert_eq!(switches, [&VF]);
    assert_eq!(rig.events(), [NicEvent::SwitchCompleted { path: Path::Vf }]);
}

/// Fills the outgoing ring with completions of notices, and leaves the host waiting for nothing.
pub fn fill(rig: &mut Rig) {
    while rig.nic.stats().completions_delayed == 0 {
        rig.tell(HostMessage::VfAssociation { allocated: false, serial: Serial(0) }, true);
        rig.poll();
    }
}

#[test]
fn the_link_is_told_when_it_changes() {
    use crate::rndis::{HostMessage as Rndis, Status};
    let mut rig = ready();
    let indicate = |rig: &mut Rig, status, buffer: &[u8]| {
        rig.say(&Rndis::Indicate { status, buffer });
        rig.settle();
    };
    indicate(&mut rig, Status::MEDIA_CONNECT, &[]);
    assert!(rig.events().is_empty(), "it was up");
    indicate(&mut rig, Status::MEDIA_DISCONNECT, &[]);
    indicate(&mut rig, Status::NETWORK_CHANGE, &[]);
    indicate(&mut rig, Status::MEDIA_CONNECT, &[]);
    // Fast toggles are told one at a time, none is swallowed.
    assert_eq!(rig.events(), [NicEvent::Link { up: false }]);
    assert!(rig.nic.info().link, "what is known is not held back");
    let spacing = std::time::Duration::from_secs(2);
    rig.now = rig.nic.poll_deadline().unwrap();
    assert_eq!(rig.now, vmbus::Instant::ZERO + spacing);
    rig.poll();
    assert_eq!(rig.events(), [NicEvent::Link { up: true }]);
    indicate(&mut rig, Status::NETWORK_CHANGE, &[]);
    assert!(rig.events().is_empty());
    rig.pass(spacing);
    assert_eq!(rig.events(), [NicEvent::Link { up: false }]);
    rig.pass(spacing);
    assert_eq!(rig.events(), [NicEvent::Link { up: true }]);
    assert_eq!(rig.nic.poll_deadline(), None);
    indicate(&mut rig, Status::LINK_SPEED_CHANGE, &250_000_000u32.to_le_bytes());
    indicate(&mut rig, Status(0x4001_ffff), &[1, 2, 3]);
    assert!(rig.events().is_empty());
    assert_eq!(rig.nic.info().speed, Some(25_000_000_000));
    assert_eq!(rig.nic.stats().link_changes, 4);
}

#[test]
fn an_answer_says_nothing_while_a_newer_request_for_the_same_path_is_under_way() {
    let mut rig = ready();
    let patience = NicConfig::default().deadline;
    rig.held.switches = true;
    for path in [Path::Vf, Path::Synthetic, Path::Vf] {
        rig.nic.switch_data_path(path, rig.now);
        rig.settle();
        rig.pass(patience);
    }
    assert_eq!(rig.said, [VF, SYNTHETIC, VF]);
    rig.events();
    let ids: std::vec::Vec<_> = rig.waiting.drain(..).collect();
    let mut told = |id| {
        rig.complete(id, &[]);
        rig.settle();
        rig.events()
    };
    assert_eq!(told(ids[0]), [], "the host has two more to carry out");
    assert_eq!(told(ids[1]), [NicEvent::SwitchCompleted { path: Path::Synthetic }]);
    assert_eq!(told(ids[2]), [NicEvent::SwitchCompleted { path: Path::Vf }]);
}

#[test]
fn however_many_switches_are_lost_the_next_one_is_sent() {
    let mut rig = ready();
    rig.held.switches = true;
    for path in [Path::Vf, Path::Synthetic].into_iter().cycle().take(20) {
        rig.nic.switch_data_path(path, rig.now);
        rig.settle();
        rig.pass(NicConfig::default().switch_deadline);
    }
    assert_eq!((rig.said.len(), rig.nic.stats().switches), (20, 20));
    rig.events();
    let (first, last) = (rig.waiting[0], rig.waiting[19]);
    rig.complete(last, &[]);
    rig.settle();
    assert_eq!(rig.events(), [NicEvent::SwitchCompleted { path: Path::Synthetic }]);
    assert_eq!(rig.nic.poll_deadline(), None);
    // One that nobody remembers has nothing to say.
    rig.complete(first, &[]);
    rig.settle();
    assert_eq!((rig.events(), rig.nic.info().path), ([].to_vec(), Path::Synthetic));
}

#[test]
fn a_switch_that_was_lost_can_be_asked_for_again_once_a_later_one_is_completed() {
    let mut rig = ready();
    rig.held.switches = true;
    rig.nic.switch_data_path(Path::Vf, rig.now);
    rig.settle();
    rig.pass(NicConfig::default().deadline);
    rig.nic.switch_data_path(Path::Synthetic, rig.now);
    rig.settle();
    rig.events();
    let (lost, answered) = (rig.waiting[0], rig.waiting[1]);
    rig.complete(answered, &[]);
    rig.settle();
    assert_eq!(rig.events(), [NicEvent::SwitchCompleted { path: Path::Synthetic }]);
    assert_eq!(rig.nic.poll_deadline(), None);
    rig.nic.switch_data_path(Path::Vf, rig.now);
    rig.settle();
    assert_eq!(rig.said, [VF, SYNTHETIC, VF]);
    // Should the lost one be answered after all, nobody takes it for the newest.
    rig.complete(lost, &[]);
    rig.settle();
    assert_eq!(rig.events(), []);
}

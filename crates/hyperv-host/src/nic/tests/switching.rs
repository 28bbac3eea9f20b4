//! Association and data path on the wire. The machine behind them has its own tests.

use std::time::Duration;

use vmbus::Serial;

use super::guest::*;
use crate::nic::*;
use crate::switch::{Path, SideState};

const SECOND: Duration = Duration::from_secs(1);

fn association(allocated: u32, serial: u32) -> Heard {
    let mut words = vec![128, allocated, serial];
    words.resize(10, 0);
    Heard::Message { id: ASSOCIATION_TRANSACTION, completion: true, words }
}

fn notice() -> Heard {
    let mut words = vec![129, 0];
    words.resize(10, 0);
    Heard::Message { id: NOTICE_TRANSACTION, completion: true, words }
}

fn done(id: u64) -> Heard {
    Heard::Completion { id, words: vec![] }
}

fn with_vf(change: impl FnOnce(&mut NicPolicy)) -> Rig {
    let mut rig = rig_with(|config| change(&mut config.policy), 16);
    rig.service.vf_added(Serial(7), rig.now);
    rig.port.set_side(Path::Vf, SideState::Up);
    rig.start();
    rig
}

#[test]
fn the_association_follows_initialize_cmplt_before_any_other_answer() {
    let mut rig = rig();
    rig.service.vf_added(Serial(7), rig.now);
    rig.buffers();
    // INITIALIZE and a query in one go.
    let initialize = bytes(&[2, 24, 1, 1, 0, 0x4000]);
    let query = bytes(&[4, 28, 2, 0x10106, 0, 0, 0]);
    use vmbus::memory::SharedMemory;
    rig.send.write(0, &initialize).unwrap();
    rig.send.write(6144, &query).unwrap();
    for (section, len) in [(0, 24), (1, 28)] {
        let payload = bytes(&[107, 1, section, len]);
        let id = rig.id();
        rig.send(&vmbus::packet::Outgoing::InBand {
            transaction_id: id,
            completion: true,
            payload: &payload,
        });
    }
    rig.poll();
    let heard = rig.hear();
    let at = heard.iter().position(|packet| *packet == association(1, 7)).unwrap();
    assert!(matches!(heard[at - 1], Heard::Frames { control: true, .. }));
    let answers = heard[at..].iter().filter(|packet| matches!(packet, Heard::Frames { .. }));
    assert_eq!(answers.count(), 1, "the query's answer comes behind");
}

#[test]
fn notices_get_lost_one_by_one_and_the_host_goes_on_as_if_they_had_not() {
    let mut rig = with_vf(|policy| {
        policy.lost_notices = vec![Notice::Path, Notice::Association, Notice::Disassociation];
    });
    assert!(!rig.hear().contains(&association(1, 7)));
    assert_eq!(rig.service.vf_state(), VfState::Advertised);
    rig.wait(SECOND);
    assert_eq!(rig.events(), [NicServiceEvent::OfferVf]);
    rig.service.repeat_association();
    rig.poll();
    assert_eq!(rig.hear(), [association(1, 7)], "only one was to get lost");
    let id = rig.say(&[129, 1], true);
    assert_eq!(rig.hear(), [done(id)]);
    rig.service.vf_lost();
    rig.poll();
    assert_eq!(rig.hear(), [], "neither the path nor that there is no VF");
    assert_eq!(
        (rig.service.vf_state(), rig.port.data_path()),
        (VfState::Unavailable, Path::Synthetic)
    );
    assert_eq!((rig.service.counters().notices_lost, rig.service.counters().notices), (3, 0));
}

#[test]
fn a_vf_is_associated_offered_and_switched_to() {
    let mut rig = with_vf(|_| ());
    assert_eq!(rig.service.vf_state(), VfState::Advertised);
    rig.wait(SECOND);
    assert_eq!(rig.events(), [NicServiceEvent::OfferVf]);
    let id = rig.say(&[129, 1], true);
    assert_eq!(rig.hear(), [done(id)]);
    assert_eq!(rig.events(), [NicServiceEvent::DataPath(Path::Vf)]);
    assert_eq!(rig.port.data_path(), Path::Vf);
    rig.peer_sends(&frame(1, 60));
    assert_eq!(rig.port.waiting(Path::Vf), 1);
    let id = rig.say(&[129, 0], true);
    let heard = rig.hear();
    assert_eq!(heard[0], done(id));
    assert_eq!(frames(&heard), [frame(1, 60)], "what waited for the VF comes this way");
    assert_eq!(rig.port.data_path(), Path::Synthetic);
}

#[test]
fn no_sriov_bit_no_association() {
    let mut rig = rig();
    rig.service.vf_added(Serial(7), rig.now);
    let id = rig.say(&[1, 0x60001, 0x60001], true);
    rig.answer(id);
    rig.say(&[125, 1514, 0, 3, 0], false);
    rig.say(&[100, 6, 0x1e], false);
    rig.say(&[101, RECEIVE.0, 0xcafe], true);
    rig.say(&[104, SEND.0, 0], true);
    rig.control(&[2, 1, 1, 0, 0x4000]);
    rig.wait(60 * SECOND);
    assert!(rig.hear().iter().all(|packet| !matches!(packet, Heard::Message { .. })));
    assert_eq!(rig.service.vf_state(), VfState::Silent);
    let id = rig.say(&[129, 1], true);
    assert_eq!(rig.hear(), [done(id)], "completed, without effect");
    assert_eq!(rig.service.data_path(), Path::Synthetic);
}

#[test]
fn losing_the_vf_under_a_pending_switch_takes_three_messages() {
    let mut rig = with_vf(|policy| policy.switch_answer = SwitchAnswer::Complete(SECOND));
    let id = rig.say(&[129, 1], true);
    assert!(rig.service.is_switching());
    assert_eq!(rig.hear(), []);
    rig.service.vf_lost();
    rig.poll();
    assert_eq!(rig.hear(), [done(id), notice(), association(0, 7)]);
    assert_eq!(rig.service.poll_deadline(), None);
}

#[test]
fn a_failed_switch_is_completed_and_then_taken_back() {
    let mut rig = with_vf(|policy| policy.switch_answer = SwitchAnswer::Fail(SECOND));
    let id = rig.say(&[129, 1], true);
    rig.wait(SECOND);
    assert_eq!(rig.hear(), [done(id), notice()]);
    assert_eq!(rig.port.data_path(), Path::Synthetic);
}

// HISTORY 38: the completion is late and an association comes in between; both arrive, in the order in which they
// happened.
#[test]
fn a_late_completion_does_not_hold_up_other_messages() {
    let mut rig = with_vf(|policy| {
        policy.switch_script.push_back(SwitchAnswer::Complete(Duration::ZERO));
        policy.switch_answer = SwitchAnswer::Complete(5 * SECOND);
    });
    rig.say(&[129, 1], true);
    rig.hear();
    rig.events();
    let back = rig.say(&[129, 0], true);
    rig.wait(SECOND);
    rig.service.send_notice(Path::Synthetic);
    rig.poll();
    assert_eq!(rig.hear(), [notice()], "the switch is still pending");
    let data = rig.transmit(0, &Rig::packet(&[], &frame(1, 60)));
    assert_eq!(rig.answer(data)[..2], [108, 1], "and frames go on");
    rig.wait(4 * SECOND);
    assert_eq!(rig.hear(), [done(back)]);
    assert_eq!(rig.events(), [NicServiceEvent::DataPath(Path::Synthetic)]);
}

#[test]
fn a_lost_request_is_never_answered_and_the_next_one_is() {
    let mut rig = with_vf(|policy| policy.switch_script.push_back(SwitchAnswer::Lose));
    rig.say(&[129, 1], true);
    rig.wait(600 * SECOND);
    assert_eq!(rig.hear(), []);
    let id = rig.say(&[129, 1], true);
    assert_eq!(rig.hear(), [done(id)]);
    assert_eq!(rig.port.data_path(), Path::Vf);
}

// HISTORY 66: delays of 0, 1 s and 60 s end in the same state.
#[test]
fn the_pace_of_the_host_does_not_change_the_end() {
    for delay in [0, 1, 60] {
        let mut rig = with_vf(|policy| {
            policy.association_delay = delay * SECOND;
            policy.offer_delay = delay * SECOND;
        });
        rig.wait(delay * SECOND);
        rig.wait(delay * SECOND);
        let events = rig.events();
        let offers = events.iter().filter(|event| **event == NicServiceEvent::OfferVf).count();
        assert!(offers == 1 || delay == 0, "{delay}: {events:?}");
        assert_eq!(rig.service.vf_state(), VfState::Ready);
        rig.hear();
        let id = rig.say(&[129, 1], true);
        assert_eq!(rig.hear(), [done(id)]);
        assert_eq!(rig.service.vf_state(), VfState::Switched);
    }
}

#[test]
fn associations_may_be_completed_once_each() {
    let mut rig = with_vf(|_| ());
    rig.complete(ASSOCIATION_TRANSACTION, &[]);
    rig.poll();
    assert!(rig.service.is_open());
    rig.complete(ASSOCIATION_TRANSACTION, &[]);
    rig.poll();
    assert_eq!(rig.failure(), NicServiceError::NotOutstanding(ASSOCIATION_TRANSACTION));
}

#[test]
fn a_reopened_channel_hears_of_the_vf_again() {
    let mut rig = with_vf(|_| ());
    rig.wait(SECOND);
    rig.say(&[129, 1], true);
    rig.events();
    rig.service.close(&mut rig.port);
    assert_eq!(rig.events(), [NicServiceEvent::DataPath(Path::Synthetic)]);
    rig.open();
    rig.initialize();
    assert!(rig.hear_and_complete().contains(&association(1, 7)));
    rig.wait(60 * SECOND);
    assert!(!rig.events().contains(&NicServiceEvent::OfferVf), "it was offered before");
}

#[test]
fn a_failed_channel_returns_the_path_to_synthetic() {
    let mut rig = with_vf(|_| ());
    rig.say(&[129, 1], true);
    rig.complete(4711, &[108, 1]);
    rig.poll();
    assert_eq!(rig.failure(), NicServiceError::NotOutstanding(4711));
    assert_eq!(rig.port.data_path(), Path::Synthetic);
}

// HISTORY 39: an orderly switch loses no frame, whatever is on its way meanwhile.
#[test]
fn switching_under_load_loses_nothing() {
    let mut rig = with_vf(|policy| {
        policy.switch_answer = SwitchAnswer::Complete(Duration::from_micros(300));
    });
    let mut sent = 0u32;
    let mut received = Vec::new();
    for round in 0..200u32 {
        for _ in 0..3 {
            let mut frame = frame(0, 64);
            frame[20..24].copy_from_slice(&sent.to_le_bytes());
            rig.peer_sends(&frame);
            sent += 1;
        }
        if round % 10 == 0 {
            rig.say(&[129, u32::from(round % 20 == 0)], true);
        }
        // The VF's driver is slower than the switch.
        if round % 3 == 0 {
            received.extend(rig.port.next_for_guest(Path::Vf, rig.now));
        }
        rig.wait(Duration::from_micros(100));
        received.extend(frames(&rig.hear_and_complete()));
    }
    while let Some(frame) = rig.port.next_for_guest(Path::Vf, rig.now) {
        received.push(frame);
    }
    let mut numbers: Vec<_> =
        received.iter().map(|f| u32::from_le_bytes(*f[20..].first_chunk().unwrap())).collect();
    numbers.sort_unstable();
    assert_eq!(numbers, (0..sent).collect::<Vec<_>>());
    assert!(rig.service.counters().switches >= 19);
    assert_eq!(rig.port.counters().dropped(), 0);
    rig.settled(0);
}

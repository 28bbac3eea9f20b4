//! The way down.

extern crate std;
use std::vec::Vec;

use super::host::*;
use crate::nic::*;
use crate::nvsp::{DataPath, GuestMessage};
use crate::port::Path;
use crate::rndis::{MessageType, Oid};

const REVOKE: [GuestMessage; 2] =
    [GuestMessage::RevokeReceiveBuffer { id: 0xcafe }, GuestMessage::RevokeSendBuffer { id: 0 }];

#[test]
fn a_nic_goes_down_in_the_order_of_the_protocol() {
    let mut rig = ready();
    rig.nic.switch_data_path(Path::Vf, rig.now);
    rig.settle();
    rig.events();
    rig.said.clear();
    rig.asked.clear();
    rig.nic.transmit(&frame(60, 1)).unwrap();
    rig.nic.shutdown(rig.now);
    rig.settle();
    let asked: Vec<_> =
        rig.asked.iter().map(|(kind, oid, info)| (*kind, *oid, info.clone())).collect();
    assert_eq!(
        asked,
        [
            (MessageType::SET, Some(Oid::CURRENT_PACKET_FILTER), [0; 4].to_vec()),
            (MessageType::HALT, None, [].to_vec()),
        ]
    );
    let said: Vec<_> =
        rig.said.iter().filter(|said| !matches!(said, GuestMessage::RndisPacket(_))).collect();
    let back = GuestMessage::SwitchDataPath(DataPath::SYNTHETIC);
    assert_eq!(said, [&back, &REVOKE[0], &REVOKE[1]]);
    assert_eq!(rig.got.len(), 1, "what was taken goes out");
    assert_eq!(
        rig.events(),
        [NicEvent::SwitchCompleted { path: Path::Synthetic }, NicEvent::Stopped]
    );
    assert_eq!((rig.try_poll(), rig.nic.poll_deadline()), (Ok(()), None));
    rig.nic.shutdown(rig.now);
    assert!(rig.events().is_empty(), "once");
    let Remains { receive, send, .. } = rig.nic.into_parts();
    assert_eq!((receive.pages.pages(), send.unwrap().pages.pages()), (32, 12));
}

#[test]
fn buffers_are_revoked_only_when_everything_is_completed() {
    let mut rig = ready();
    rig.held.frames = true;
    rig.nic.transmit(&frame(60, 1)).unwrap();
    rig.nic.flush();
    rig.settle();
    rig.nic.shutdown(rig.now);
    rig.settle();
    assert!(rig.events().is_empty());
    rig.pass(NicConfig::default().deadline);
    assert_eq!(rig.events(), [NicEvent::Overdue { step: Step::Drain }]);
    let id = rig.waiting.pop_front().unwrap();
    rig.complete_send(id, crate::nvsp::Status::SUCCESS);
    rig.settle();
    assert_eq!(rig.events(), [NicEvent::Stopped]);
    assert_eq!(rig.said[rig.said.len() - 2..], REVOKE);
}

#[test]
fn a_nic_goes_down_from_the_middle_of_start_up() {
    for polls in 0..6 {
        let mut rig = rig();
        for _ in 0..polls {
            rig.serve();
            rig.poll();
        }
        rig.nic.shutdown(rig.now);
        rig.settle();
        assert_eq!(rig.events(), [NicEvent::Stopped], "after {polls}");
        let given = rig.said.iter().any(|said| matches!(said, GuestMessage::ReceiveBuffer { .. }));
        let revoked = rig.said.contains(&REVOKE[0]);
        assert_eq!(given, revoked);
        let last = rig.said.last().unwrap();
        assert!(*last == REVOKE[1] || !rig.said.contains(&REVOKE[1]));
    }
}

#[test]
fn a_silent_host_is_reported_on_the_way_down_too() {
    let patience = NicConfig::default().deadline;
    let mut rig = ready();
    rig.held.rndis = true;
    rig.nic.shutdown(rig.now);
    rig.settle();
    rig.pass(patience);
    assert_eq!(rig.events(), [NicEvent::Overdue { step: Step::Filter }]);
}

#[test]
fn a_switch_that_is_not_completed_is_reported_on_the_way_down_too() {
    let patience = NicConfig::default().switch_deadline;
    let back = GuestMessage::SwitchDataPath(DataPath::SYNTHETIC);
    let overdue = |path| NicEvent::Overdue { step: Step::Switch(path) };
    for late_before in [false, true] {
        let mut rig = ready();
        rig.held.switches = true;
        rig.nic.switch_data_path(Path::Vf, rig.now);
        rig.settle();
        if late_before {
            rig.pass(patience);
            assert_eq!(rig.events(), [overdue(Path::Vf)]);
        }
        rig.nic.shutdown(rig.now);
        rig.settle();
        assert_eq!(rig.said.last() == Some(&back), late_before, "one at a time, unless it is late");
        if !late_before {
            rig.pass(patience);
            assert_eq!(rig.events(), [overdue(Path::Vf)]);
            rig.settle();
            assert_eq!(rig.said.last(), Some(&back));
        }
        rig.pass(patience);
        assert_eq!(rig.events(), [overdue(Path::Synthetic)]);
        // It answers after all.
        while let Some(id) = rig.waiting.pop_front() {
            rig.complete(id, &[]);
        }
        rig.settle();
        assert_eq!(rig.events().last(), Some(&NicEvent::Stopped));
    }
}

#[test]
fn the_way_back_does_not_wait_for_switches_that_are_late() {
    let patience = NicConfig::default().switch_deadline;
    let mut rig = ready();
    rig.held.switches = true;
    for path in [Path::Synthetic, Path::Vf] {
        rig.nic.switch_data_path(path, rig.now);
        rig.settle();
        rig.pass(patience);
        assert_eq!(rig.events(), [NicEvent::Overdue { step: Step::Switch(path) }]);
    }
    rig.said.clear();
    rig.nic.shutdown(rig.now);
    rig.settle();
    let back = GuestMessage::SwitchDataPath(DataPath::SYNTHETIC);
    assert_eq!(rig.said.last(), Some(&back), "as soon as the filter is answered");
    rig.pass(patience);
    assert_eq!(rig.events(), [NicEvent::Overdue { step: Step::Switch(Path::Synthetic) }]);
    let last = rig.waiting.pop_back().unwrap();
    rig.complete(last, &[]);
    rig.settle();
    assert_eq!(rig.events().last(), Some(&NicEvent::Stopped));
}

#[test]
fn a_way_back_that_finds_no_room_in_the_ring_is_reported_too() {
    let mut rig = ready();
    rig.nic.switch_data_path(Path::Vf, rig.now);
    rig.settle();
    rig.nic.shutdown(rig.now);
    // The host answers the filter, and reads nothing more.
    rig.serve();
    super::path::fill(&mut rig);
    rig.events();
    rig.pass(NicConfig::default().switch_deadline);
    assert_eq!(rig.events(), [NicEvent::Overdue { step: Step::Switch(Path::Synthetic) }]);
    rig.settle();
    assert_eq!(rig.events().last(), Some(&NicEvent::Stopped));
}

#[test]
fn frames_are_received_and_completed_until_the_end() {
    let mut rig = ready();
    rig.completions.clear();
    rig.nic.shutdown(rig.now);
    rig.send_frames(&[&frame(60, 1)], None);
    rig.settle();
    assert_eq!(rig.received.len(), 1);
    assert_eq!(rig.completions.len(), 2, "the frame and the reply to the filter");
    assert_eq!(rig.events(), [NicEvent::Stopped]);
}

#[test]
fn the_answer_to_an_earlier_filter_is_not_taken_for_that_of_the_last() {
    let mut rig = ready();
    rig.held.rndis = true;
    rig.asked.clear();
    rig.nic.set_packet_filter(crate::rndis::PacketFilter::PROMISCUOUS, rig.now).unwrap();
    rig.nic.shutdown(rig.now);
    rig.settle();
    assert_eq!(rig.asked.len(), 2, "both filters were set, and nothing after them");
    let answer = |rig: &mut Rig, request_id| {
        let status = crate::rndis::Status::SUCCESS;
        rig.say(&crate::rndis::HostMessage::SetComplete { request_id, status });
        rig.settle();
    };
    let last = rig.last_request();
    answer(&mut rig, last - 1);
    assert_eq!(rig.asked.len(), 2, "the empty filter is still to be answered");
    answer(&mut rig, last);
    assert_eq!(rig.events().last(), Some(&NicEvent::Stopped));
}

#[test]
fn an_earlier_filter_that_is_never_answered_holds_nothing_up() {
    let mut rig = ready();
    rig.held.rndis = true;
    rig.nic.set_packet_filter(crate::rndis::PacketFilter::PROMISCUOUS, rig.now).unwrap();
    rig.nic.shutdown(rig.now);
    rig.settle();
    let status = crate::rndis::Status::SUCCESS;
    let request_id = rig.last_request();
    rig.say(&crate::rndis::HostMessage::SetComplete { request_id, status });
    rig.settle();
    assert_eq!(rig.events().last(), Some(&NicEvent::Stopped));
}

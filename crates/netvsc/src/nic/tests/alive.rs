//! Whether the other side is still there, and what it calls the card.

extern crate std;
use std::time::Duration;
use std::vec;

use super::host::*;
use crate::mac::MacAddress;
use crate::nic::*;
use crate::nvsp::{self, HostMessage};
use crate::rndis::object::encode_friendly_name;
use crate::rndis::{self, Oid, PacketFilter};

const SILENCE: Duration = Duration::from_secs(30);

fn asking() -> Rig {
    let config = NicConfig { keep_alive: Some(SILENCE), ..NicConfig::default() };
    let mut rig = ready_of(Shape { config, ..Shape::default() });
    rig.asked.clear();
    rig
}

fn kinds(rig: &Rig) -> std::vec::Vec<rndis::MessageType> {
    rig.asked.iter().map(|(kind, ..)| *kind).collect()
}

#[test]
fn a_silent_host_is_asked_whether_it_is_there_and_not_more_often_than_it_answers() {
    let mut rig = asking();
    assert_eq!(rig.nic.poll_deadline(), Some(rig.now + SILENCE));
    rig.pass(SILENCE - Duration::from_nanos(1));
    rig.settle();
    assert_eq!(kinds(&rig), [], "it is not time yet");
    rig.held.rndis = true;
    rig.pass(Duration::from_nanos(1));
    rig.settle();
    assert_eq!(kinds(&rig), [rndis::MessageType::KEEPALIVE]);
    assert_eq!(rig.nic.keep_alive(rig.now), Err(SettingError::UnderWay(Step::KeepAlive)));
    let deadline = NicConfig::default().deadline;
    assert_eq!(rig.nic.poll_deadline(), Some(rig.now + deadline), "only the answer is due");
    // It never answers: that is told once, and nothing more is asked.
    rig.pass(deadline);
    rig.pass(10 * SILENCE);
    rig.settle();
    assert_eq!(rig.events(), [NicEvent::Overdue { step: Step::KeepAlive }]);
    assert_eq!((rig.asked.len(), rig.nic.poll_deadline()), (1, None));
    // The answer comes late: that is counted, and the next silence is noticed like the first.
    let (request_id, status) = (rig.last_request(), rndis::Status::SUCCESS);
    rig.say(&rndis::HostMessage::KeepAliveComplete { request_id, status });
    rig.settle();
    let stats = rig.nic.stats();
    assert_eq!((stats.keep_alives, stats.overdue, stats.late, stats.bad.total()), (1, 1, 1, 0));
    assert_eq!(rig.nic.poll_deadline(), Some(rig.now + SILENCE));
    rig.held.rndis = false;
    rig.pass(SILENCE);
    rig.settle();
    assert_eq!((rig.nic.stats().keep_alives, rig.events()), (2, vec![]));
    // A second answer to the same question is one that nobody waits for.
    let request_id = rig.last_request();
    rig.say(&rndis::HostMessage::KeepAliveComplete { request_id, status });
    rig.say(&rndis::HostMessage::KeepAliveComplete { request_id, status });
    rig.settle();
    assert_eq!((rig.nic.stats().bad.reply, rig.nic.stats().bad.total()), (1, 1));
}

#[test]
fn what_the_host_says_is_a_sign_of_life_and_frames_are_none() {
    let mut rig = asking();
    let half = SILENCE / 2;
    rig.pass(half);
    rig.say(&rndis::HostMessage::Indicate { status: rndis::Status::MEDIA_CONNECT, buffer: &[] });
    rig.settle();
    assert_eq!(rig.nic.poll_deadline(), Some(rig.now + SILENCE));
    rig.pass(half);
    rig.associate(true, 7);
    rig.settle();
    assert_eq!(rig.nic.poll_deadline(), Some(rig.now + SILENCE));
    rig.pass(half);
    rig.send_frames(&[&frame(60, 1)], None);
    rig.settle();
    assert_eq!(rig.nic.poll_deadline(), Some(rig.now + half));
    assert_eq!(kinds(&rig), []);
    rig.pass(half);
    rig.settle();
    assert_eq!(kinds(&rig), [rndis::MessageType::KEEPALIVE]);
}

#[test]
fn an_answer_that_got_lost_does_not_keep_the_next_silence_unnoticed() {
    let mut rig = asking();
    rig.held.rndis = true;
    rig.pass(SILENCE);
    rig.pass(NicConfig::default().deadline);
    rig.settle();
    assert_eq!(rig.events(), [NicEvent::Overdue { step: Step::KeepAlive }]);
    // The host is there after all, and has forgotten the question.
    rig.say(&rndis::HostMessage::Indicate { status: rndis::Status::MEDIA_CONNECT, buffer: &[] });
    rig.settle();
    assert_eq!(rig.nic.poll_deadline(), Some(rig.now + SILENCE));
    rig.pass(SILENCE);
    rig.settle();
    assert_eq!((kinds(&rig).len(), rig.nic.stats().keep_alives), (2, 2));
    // An answer to the first question is none to the second.
    let (request_id, status) = (rig.last_request() - 1, rndis::Status::SUCCESS);
    rig.say(&rndis::HostMessage::KeepAliveComplete { request_id, status });
    rig.settle();
    rig.pass(NicConfig::default().deadline);
    assert_eq!(rig.events(), [NicEvent::Overdue { step: Step::KeepAlive }]);
}

#[test]
fn what_the_host_has_not_answered_in_time_may_be_asked_for_again() {
    let mut rig = ready();
    rig.held.rndis = true;
    let filters = [PacketFilter::DIRECTED, PacketFilter::PROMISCUOUS];
    rig.nic.set_packet_filter(filters[0], rig.now).unwrap();
    let refused = rig.nic.set_packet_filter(filters[1], rig.now);
    assert_eq!(refused, Err(SettingError::UnderWay(Step::Filter)));
    rig.settle();
    rig.pass(NicConfig::default().deadline);
    assert_eq!(rig.events(), [NicEvent::Overdue { step: Step::Filter }]);
    rig.nic.set_packet_filter(filters[1], rig.now).unwrap();
    rig.settle();
    let answer = |rig: &mut Rig, request_id, status| {
        rig.say(&rndis::HostMessage::SetComplete { request_id, status });
        rig.settle();
        rig.events()
    };
    // The answer to the first says nothing of the second.
    let last = rig.last_request();
    assert_eq!(answer(&mut rig, last - 1, rndis::Status::FAILURE), []);
    let status = rndis::Status::SUCCESS;
    let oid = rndis::Oid::CURRENT_PACKET_FILTER;
    assert_eq!(answer(&mut rig, last, status), [NicEvent::Set { oid, status }]);
    assert_eq!((rig.nic.stats().late, rig.nic.stats().bad.total()), (1, 0));
    // However often the host stays silent, what is remembered of it is bounded.
    for _ in 0..20 {
        rig.nic.set_packet_filter(filters[0], rig.now).unwrap();
        rig.settle();
        rig.pass(NicConfig::default().deadline);
    }
    let last = rig.last_request();
    for old in 5..20 {
        answer(&mut rig, last - old, status);
    }
    assert_eq!(rig.nic.stats().bad.reply, 15);
}

#[test]
fn where_a_second_answer_would_be_taken_for_the_first_nothing_is_asked_twice() {
    let late = NicConfig::default().deadline;
    let config = NicConfig { queues: 4, ..NicConfig::default() };
    let mut rig = ready_of(Shape { config, ..Shape::default() });
    rig.nic.request_queues(3, rig.now).unwrap();
    let [id] = rig.ask_sub_channels()[..] else { panic!("asked once") };
    rig.pass(late);
    assert_eq!(rig.events(), [NicEvent::Overdue { step: Step::SubChannels }]);
    let again = rig.nic.request_queues(3, rig.now);
    assert_eq!(again, Err(SettingError::UnderWay(Step::SubChannels)));
    let granted = HostMessage::SubChannels { status: nvsp::Status::SUCCESS, count: 3 };
    rig.complete(id, &granted.encode(rig.version()));
    rig.settle();
    assert_eq!(rig.events(), [NicEvent::QueuesGranted { count: 3 }]);
    rig.nic.reset(rig.now).unwrap();
    rig.settle();
    rig.pass(late);
    assert_eq!(rig.events(), [NicEvent::Overdue { step: Step::Reset }]);
    assert_eq!(rig.nic.reset(rig.now), Err(SettingError::UnderWay(Step::Reset)));
    let status = rndis::Status::SUCCESS;
    rig.say(&rndis::HostMessage::ResetComplete { status, addressing_reset: false });
    rig.settle();
    assert_eq!(rig.events(), [NicEvent::Reset { status }]);
    assert_eq!(rig.nic.reset(rig.now), Ok(()));
    assert_eq!((rig.nic.stats().late, rig.nic.stats().bad.total()), (2, 0));
}

#[test]
fn the_address_is_what_the_host_agreed_to_last_however_late_it_said_so() {
    let [first, second] = [2, 4].map(|last| MacAddress([2, 0, 0, 0, 0, last]));
    let status = |good| if good { rndis::Status::SUCCESS } else { rndis::Status::FAILURE };
    for (first_good, second_good, address) in [
        (true, true, Some(second)),
        (true, false, Some(first)),
        (false, true, Some(second)),
        (false, false, None),
    ] {
        let mut rig = ready();
        rig.held.rndis = true;
        rig.nic.set_mac(first, rig.now).unwrap();
        rig.settle();
        let asked = rig.last_request();
        rig.pass(NicConfig::default().deadline);
        rig.nic.set_mac(second, rig.now).unwrap();
        rig.settle();
        for (request_id, good) in [(asked, first_good), (rig.last_request(), second_good)] {
            rig.say(&rndis::HostMessage::SetComplete { request_id, status: status(good) });
        }
        rig.settle();
        assert_eq!(rig.nic.config().address, address);
        let set = NicEvent::Set { oid: Oid::CONFIG_PARAMETER, status: status(second_good) };
        assert_eq!(rig.events().last(), Some(&set));
    }
}

#[test]
fn an_address_is_restored_although_another_was_asked_for_in_vain() {
    let [first, second] = [2, 4].map(|last| MacAddress([2, 0, 0, 0, 0, last]));
    let mut rig = ready();
    rig.nic.set_mac(first, rig.now).unwrap();
    rig.settle();
    rig.held.rndis = true;
    rig.nic.set_mac(second, rig.now).unwrap();
    rig.settle();
    rig.pass(NicConfig::default().deadline);
    rig.held.rndis = false;
    rig.asked.clear();
    rig.nic.reset(rig.now).unwrap();
    rig.settle();
    let status = rndis::Status::SUCCESS;
    rig.say(&rndis::HostMessage::ResetComplete { status, addressing_reset: true });
    rig.settle();
    let set: vec::Vec<_> = rig.asked.iter().filter_map(|(_, oid, _)| *oid).collect();
    assert_eq!(set, [Oid::CONFIG_PARAMETER, Oid::CURRENT_PACKET_FILTER]);
    assert_eq!(rig.nic.config().address, Some(first));
}

// Nothing that waits is sent either: the host has never completed the last message.
#[test]
fn what_waits_for_a_host_that_takes_no_control_messages_is_bounded() {
    let mut rig = asking();
    rig.asked.clear();
    rig.held.rndis = true;
    let filters = [PacketFilter::DIRECTED, PacketFilter::PROMISCUOUS];
    for round in 0..100 {
        rig.nic.set_packet_filter(filters[round % 2], rig.now).unwrap();
        rig.nic.set_mac(MacAddress([2, 0, 0, 0, 0, round as u8]), rig.now).unwrap();
        rig.pass(NicConfig::default().deadline.max(SILENCE));
    }
    rig.settle();
    // The first went at once; of the others the newest are left.
    let filter = |wanted: PacketFilter| wanted.bits().to_le_bytes().to_vec();
    let kinds: vec::Vec<_> = rig.asked.iter().map(|(_, oid, _)| *oid).collect();
    let set = Some(Oid::CURRENT_PACKET_FILTER);
    assert_eq!(kinds, [set, None, set, Some(Oid::CONFIG_PARAMETER)]);
    assert_eq!(rig.asked[0].2, filter(filters[0]));
    assert_eq!(rig.asked[2].2, filter(filters[1]));
}

#[test]
fn nobody_is_asked_without_a_wish_or_before_and_after_work() {
    let mut rig = ready();
    rig.asked.clear();
    rig.pass(Duration::from_secs(1_000_000));
    assert_eq!((kinds(&rig), rig.nic.poll_deadline()), (vec![], None));
    let config = NicConfig { keep_alive: Some(SILENCE), ..NicConfig::default() };
    let mut rig = rig_of(Shape { config, ..Shape::default() });
    rig.held.rndis = true;
    rig.settle();
    rig.pass(2 * SILENCE);
    rig.settle();
    assert_eq!(kinds(&rig), [rndis::MessageType::INITIALIZE], "start-up has its own deadlines");
    let mut rig = asking();
    rig.nic.shutdown(rig.now);
    rig.settle();
    rig.asked.clear();
    rig.pass(2 * SILENCE);
    assert_eq!((kinds(&rig), rig.nic.poll_deadline()), (vec![], None));
}

#[test]
fn an_owner_may_ask_at_any_time_at_work() {
    let mut rig = ready();
    rig.asked.clear();
    rig.nic.keep_alive(rig.now).unwrap();
    // The host answers with a failure: it is there all the same.
    rig.held.rndis = true;
    rig.settle();
    assert_eq!(kinds(&rig), [rndis::MessageType::KEEPALIVE]);
    let (request_id, status) = (rig.last_request(), rndis::Status::FAILURE);
    rig.say(&rndis::HostMessage::KeepAliveComplete { request_id, status });
    rig.settle();
    assert_eq!((rig.nic.stats().replies.failure, rig.nic.stats().keep_alives), (1, 0));
    assert_eq!(rig.nic.keep_alive(rig.now), Ok(()), "and may be asked again");
    rig.nic.shutdown(rig.now);
    assert_eq!(rig.nic.keep_alive(rig.now), Err(SettingError::NotReady));
}

#[test]
fn a_host_that_asks_is_answered_with_its_number() {
    let mut rig = ready();
    rig.asked.clear();
    for request_id in [0, 7, u32::MAX] {
        rig.say(&rndis::HostMessage::KeepAlive { request_id });
        rig.settle();
        assert_eq!(rig.last_request(), request_id);
    }
    assert_eq!(kinds(&rig), [rndis::MessageType::KEEPALIVE_CMPLT; 3]);
    let stats = rig.nic.stats();
    assert_eq!((stats.keep_alives_answered, stats.bad.total()), (3, 0));
    assert!(rig.events().is_empty());
}

#[test]
fn a_host_that_asks_faster_than_it_takes_answers_does_not_make_the_guest_grow() {
    let mut rig = ready();
    rig.asked.clear();
    for request_id in 0..200 {
        rig.say(&rndis::HostMessage::KeepAlive { request_id });
        rig.poll();
    }
    let stats = rig.nic.stats();
    assert_eq!((stats.keep_alives_answered, stats.bad.unexpected), (17, 183), "one is on its way");
    rig.settle();
    assert_eq!((rig.asked.len(), rig.last_request()), (17, 16), "the first are answered, in order");
}

#[test]
fn the_name_of_the_card_is_asked_for_at_start_up() {
    let mut rig = rig();
    assert_eq!(rig.nic.friendly_name(), None);
    rig.name = encode_friendly_name("Netz \u{e4}\u{1f980}\n\u{1b}[1m");
    rig.settle();
    assert!(matches!(rig.events()[..], [NicEvent::Ready { .. }]));
    assert_eq!(rig.nic.friendly_name(), Some("Netz \u{e4}\u{1f980}[1m"), "nothing for a terminal");
    // Much too long: no more than hosts send is looked at.
    let mut rig = super::host::rig();
    rig.name = encode_friendly_name(&"x".repeat(300));
    rig.name.truncate(510);
    rig.name.extend([b'y', 0, b'z', 0]);
    rig.settle();
    assert_eq!(rig.nic.friendly_name().map(str::len), Some(256));
    // No UTF-16, and nothing at all.
    for (name, bad, expected) in [(vec![0, 0xd8], 1, None), (vec![], 0, Some(""))] {
        let mut rig = super::host::rig();
        rig.name = name;
        rig.settle();
        assert!(rig.nic.info().ready);
        assert_eq!((rig.nic.stats().bad.value, rig.nic.friendly_name()), (bad, expected));
    }
}

#[test]
fn a_card_without_a_name_works_and_so_does_one_whose_name_never_comes() {
    let mut rig = rig();
    rig.query_status = rndis::Status::NOT_SUPPORTED;
    rig.settle();
    assert!(matches!(rig.events()[..], [NicEvent::Ready { .. }]));
    assert_eq!((rig.nic.friendly_name(), rig.nic.stats().bad.total()), (None, 0));
    // An answer that is cut off is none: everything else goes on.
    let mut rig = super::host::rig();
    rig.name = vec![b'x'; PIECE];
    rig.settle();
    assert!(matches!(rig.events()[..], [NicEvent::Ready { .. }]));
    assert_eq!((rig.nic.friendly_name(), rig.nic.stats().bad.range), (None, 1));
    rig.pass(NicConfig::default().deadline);
    let step = Step::Query(Oid::FRIENDLY_NAME);
    assert_eq!(rig.events(), [NicEvent::Overdue { step }]);
    // A name does not outlive the channel that it came on.
    let mut rig = ready();
    assert_eq!(rig.nic.friendly_name(), Some("Netz"));
    rig.nic.shutdown(rig.now);
    rig.settle();
    rig.restart().unwrap();
    assert_eq!(rig.nic.friendly_name(), None);
    rig.settle();
    assert_eq!(rig.nic.friendly_name(), Some("Netz"));
}

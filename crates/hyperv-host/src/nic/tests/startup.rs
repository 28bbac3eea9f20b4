//! NVSP and RNDIS start-up, in order and out of order.

use std::time::Duration;

use netvsc::nvsp::{self, MessageType, Version};
use netvsc::rndis;
use vmbus::GpadlId;
use vmbus::packet::Outgoing;

use super::guest::*;
use crate::nic::*;
use crate::switch::{Path, SideState};

#[test]
fn a_guest_starts_up() {
    let mut rig = rig();
    rig.initialize();
    let heard = rig.hear_and_complete();
    let [Heard::Completion { words, .. }, Heard::Frames { control: true, ranges, .. }] = &heard[..]
    else {
        panic!("{heard:?}")
    };
    assert_eq!(words[..2], [108, 1]);
    assert_eq!(ranges[0][..16], bytes(&[0x8000_0002, 52, 1, 0]));
    let expected = NicServiceEvent::Operational { version: Version::V6_1, sriov: true };
    assert_eq!(rig.events(), [expected]);
    rig.settled(0);
}

#[test]
fn versions_are_negotiated_on_one_channel() {
    let mut rig = rig_with(|config| config.policy.versions = vec![Version::V5], 16);
    for version in [0x60001, 0x60000, 0x40000] {
        let id = rig.say(&[1, version, version], true);
        let answer = rig.answer(id);
        // The short form: 28 bytes, 32 on the ring.
        assert_eq!((answer.len(), answer[0], answer[3]), (8, 2, 0), "{version:#x}");
    }
    let id = rig.say(&[1, 0x50000, 0x60001], true);
    assert_eq!(rig.answer(id)[3], 0, "a range is not a version");
    let id = rig.say(&[1, 0x50000, 0x50000], true);
    assert_eq!(rig.answer(id)[3], 1);
    rig.say(&[125, 1514, 0, 4, 0], false);
    let id = rig.say(&[101, RECEIVE.0, 0xcafe], true);
    assert_eq!(rig.answer(id).len(), 8, "28 bytes up to version 6.0");
}

#[test]
fn the_receive_buffer_is_cut_for_the_configured_frame() {
    for (mtu, piece) in [(1514, 1806), (9014, 9306), (100, 1806), (9217, 1806)] {
        let mut rig = rig_with(|_| (), 64);
        let id = rig.say(&[1, 0x60001, 0x60001], true);
        rig.answer(id);
        rig.say(&[125, mtu, 0, 4, 0], false);
        let id = rig.say(&[101, RECEIVE.0, 0xcafe], true);
        let count = 64 * 4096 / piece;
        assert_eq!(rig.answer(id)[..7], [102, 1, 1, 0, piece, count, piece * count]);
    }
}

#[test]
fn whoever_asks_for_a_completion_gets_one() {
    let mut rig = rig();
    let id = rig.say(&[1, 0x60001, 0x60001], true);
    rig.answer(id);
    for message in [&[125, 1514, 0, 4, 0][..], &[100, 6, 0x1e]] {
        let id = rig.say(message, true);
        assert_eq!(rig.answer(id), [0u32; 0]);
    }
}

/// Messages, and the error of the last one.
fn ends_with(script: &[(&[u32], bool)], error: &NicServiceError) {
    let mut rig = rig();
    for (at, (message, completion)) in script.iter().enumerate() {
        assert!(rig.service.is_open(), "ended before message {at} of {script:?}");
        rig.say(message, *completion);
    }
    assert_eq!(rig.failure(), *error, "{script:?}");
    assert_eq!(rig.service.counters().failed, 1);
}

#[test]
fn an_illegal_order_ends_the_channel() {
    use MessageType as M;
    use NicServiceError as E;
    const INIT: (&[u32], bool) = (&[1, 0x60001, 0x60001], true);
    const CONFIG: (&[u32], bool) = (&[125, 1514, 0, 4, 0], false);
    const NDIS: (&[u32], bool) = (&[100, 6, 0x1e], false);
    const RECEIVE_BUFFER: (&[u32], bool) = (&[101, RECEIVE.0, 0xcafe], true);
    const SEND_BUFFER: (&[u32], bool) = (&[104, SEND.0, 0], true);
    const RNDIS: (&[u32], bool) = (&[107, 1, 0, 12], true);
    let early = |missing| E::TooEarly { message: M::SEND_RNDIS_PACKET, missing };
    ends_with(&[CONFIG], &E::BeforeInit(M::SEND_NDIS_CONFIG));
    ends_with(&[RNDIS], &E::BeforeInit(M::SEND_RNDIS_PACKET));
    ends_with(&[(&[129, 1], true)], &E::BeforeInit(M::SWITCH_DATA_PATH));
    ends_with(&[INIT, INIT], &E::Repeated(M::INIT));
    ends_with(&[INIT, CONFIG, CONFIG], &E::Repeated(M::SEND_NDIS_CONFIG));
    ends_with(&[INIT, NDIS, NDIS], &E::Repeated(M::SEND_NDIS_VERSION));
    ends_with(
        &[INIT, CONFIG, RECEIVE_BUFFER, RECEIVE_BUFFER],
        &E::Repeated(M::SEND_RECEIVE_BUFFER),
    );
    ends_with(&[INIT, SEND_BUFFER, SEND_BUFFER], &E::Repeated(M::SEND_SEND_BUFFER));
    ends_with(
        &[INIT, RECEIVE_BUFFER],
        &E::TooEarly { message: M::SEND_RECEIVE_BUFFER, missing: M::SEND_NDIS_CONFIG },
    );
    ends_with(&[INIT, RNDIS], &early(M::SEND_NDIS_CONFIG));
    ends_with(&[INIT, CONFIG, RNDIS], &early(M::SEND_NDIS_VERSION));
    ends_with(&[INIT, CONFIG, NDIS, RNDIS], &early(M::SEND_RECEIVE_BUFFER));
    ends_with(&[INIT, (&[103, 0xcafe], false)], &E::NoBuffer(M::REVOKE_RECEIVE_BUFFER));
    ends_with(&[INIT, (&[106, 0], false)], &E::NoBuffer(M::REVOKE_SEND_BUFFER));
    ends_with(
        &[INIT, CONFIG, RECEIVE_BUFFER, (&[103, 0xbeef], false)],
        &E::WrongBuffer { message: M::REVOKE_RECEIVE_BUFFER, found: 0xbeef, expected: 0xcafe },
    );
    ends_with(
        &[INIT, CONFIG, (&[101, 77, 0xcafe], true)],
        &E::UnknownGpadl { message: M::SEND_RECEIVE_BUFFER, gpadl: GpadlId(77) },
    );
    ends_with(
        &[INIT, (&[104, 77, 0], true)],
        &E::UnknownGpadl { message: M::SEND_SEND_BUFFER, gpadl: GpadlId(77) },
    );
    let answer_in_band = nvsp::DecodeError::Unexpected(M::SEND_RNDIS_PACKET_COMPLETE);
    ends_with(&[INIT, (&[108, 1], false)], &E::Message(answer_in_band));
    ends_with(&[INIT, (&[129, 2], true)], &E::DataPath(nvsp::DataPath(2)));
    ends_with(
        &[INIT, CONFIG, NDIS, RECEIVE_BUFFER, (&[107, 2, 0, 12], true)],
        &E::ChannelType(nvsp::ChannelType(2)),
    );
    ends_with(&[(&[1, 0x60001, 0x60001], false)], &E::NoCompletionRequested(M::INIT));
    let unexpected = nvsp::DecodeError::Unexpected(M::SEND_VF_ASSOCIATION);
    ends_with(&[INIT, (&[128, 1, 7], false)], &E::Message(unexpected));
}

#[test]
fn buffers_that_are_too_small_end_the_channel() {
    let mut rig = rig_with(|_| (), 7);
    let id = rig.say(&[1, 0x60001, 0x60001], true);
    rig.answer(id);
    rig.say(&[125, 1514, 0, 4, 0], false);
    rig.say(&[101, RECEIVE.0, 0xcafe], true);
    let expected = NicServiceError::ReceiveBufferTooSmall { size: 7 * 4096, needed: 17 * 1806 };
    assert_eq!(rig.failure(), expected);
    let mut rig = rig_with(|_| (), 16);
    rig.send = rig.send.slice(0, 1).unwrap();
    let id = rig.say(&[1, 0x60001, 0x60001], true);
    rig.answer(id);
    rig.say(&[104, SEND.0, 0], true);
    let expected = NicServiceError::SendBufferTooSmall { size: 4096, needed: 6144 };
    assert_eq!(rig.failure(), expected);
}

#[test]
fn repeats_are_answered_where_policy_says_so() {
    let mut rig = rig_with(|config| config.policy.tolerate_repeats = true, 16);
    rig.initialize();
    rig.hear_and_complete();
    rig.say(&[125, 1514, 0, 4, 0], false);
    let id = rig.say(&[101, RECEIVE.0, 0xcafe], true);
    assert_eq!(rig.answer(id)[..2], [102, 1]);
}

#[test]
fn packets_of_the_wrong_kind_end_the_channel() {
    let mut rig = rig();
    let range = vmbus::packet::TransferRange { byte_count: 8, byte_offset: 0 };
    rig.send(&Outgoing::TransferPages {
        transaction_id: 1,
        pageset: 1,
        ranges: &[range],
        payload: &[],
    });
    rig.poll();
    assert_eq!(rig.failure(), NicServiceError::TransferPages);
    rig.open();
    let payload = bytes(&[1, 0x60001, 0x60001]);
    let frames = [vmbus::Pfn(100)];
    let range = vmbus::packet::GpaRange { byte_count: 8, byte_offset: 0, frames: &frames };
    rig.send(&Outgoing::GpaDirect { transaction_id: 1, ranges: &[range], payload: &payload });
    rig.poll();
    assert_eq!(rig.failure(), NicServiceError::GpaDirect(MessageType::INIT));
    rig.open();
    rig.complete(17, &[108, 1]);
    rig.poll();
    assert_eq!(rig.failure(), NicServiceError::NotOutstanding(17));
    rig.open();
    rig.say(&[1, 0x60001, 0x60001], true);
    assert!(rig.service.is_open(), "every opening starts anew");
}

#[test]
fn rndis_starts_once_and_first() {
    let mut rig = rig();
    rig.buffers();
    rig.control(&[8, 1]);
    assert_eq!(rig.failure(), NicServiceError::NotInitialized(rndis::MessageType::KEEPALIVE));
    rig.open();
    rig.initialize();
    rig.control(&[2, 1, 1, 0, 0x4000]);
    assert_eq!(rig.failure(), NicServiceError::InitializedTwice);
    rig.open();
    rig.initialize();
    rig.control(&[6, 0]);
    assert_eq!(rig.failure(), NicServiceError::Reset);
    rig.open();
    rig.initialize();
    rig.control(&[4, 1]);
    assert!(matches!(rig.failure(), NicServiceError::Rndis(rndis::DecodeError::Length { .. })));
}

#[test]
fn another_rndis_version_is_refused_by_status() {
    let mut rig = rig();
    rig.buffers();
    rig.control(&[2, 1, 2, 0, 0x4000]);
    let heard = rig.hear_and_complete();
    let Heard::Frames { ranges, .. } = &heard[1] else { panic!("{heard:?}") };
    assert_eq!(ranges[0][12..16], 0xc001_0004u32.to_le_bytes());
    assert_eq!(rig.events(), []);
    rig.control(&[2, 1, 1, 0, 0x4000]);
    assert_eq!(rig.events().len(), 1);
}

/// The information in a QUERY answer, and its status.
fn query(rig: &mut Rig, oid: u32) -> (u32, Vec<u8>) {
    query_with(rig, oid, &[])
}

/// The same with these words as its input.
fn query_with(rig: &mut Rig, oid: u32, input: &[u32]) -> (u32, Vec<u8>) {
    rig.control(&[&[4, 9, oid, input.len() as u32 * 4, 20, 0], input].concat());
    let heard = rig.hear_and_complete();
    let Some(Heard::Frames { control: true, ranges, .. }) = heard.last() else {
        panic!("{heard:?}")
    };
    let word = |at: usize| u32::from_le_bytes(*ranges[0][at..].first_chunk().unwrap());
    assert_eq!((word(0), word(8)), (0x8000_0004, 9));
    let data = ranges[0][word(20) as usize + 8..][..word(16) as usize].to_vec();
    (word(12), data)
}

#[test]
fn queries_are_answered() {
    let mut rig = rig();
    rig.start();
    assert_eq!(query(&mut rig, 0x0101_0101), (0, MAC.0.to_vec()));
    assert_eq!(query(&mut rig, 0x0101_0102), (0, MAC.0.to_vec()));
    assert_eq!(query(&mut rig, 0x0001_0106), (0, 1500u32.to_le_bytes().to_vec()));
    assert_eq!(query(&mut rig, 0x0001_0107), (0, 100_000_000u32.to_le_bytes().to_vec()));
    assert_eq!(query(&mut rig, 0x0001_010e), (0, 0xbu32.to_le_bytes().to_vec()));
    assert_eq!(query(&mut rig, 0x0001_0114), (0, 0u32.to_le_bytes().to_vec()));
    assert_eq!(query(&mut rig, 0x0001_0207).1.len(), 40);
    let (status, name) = query(&mut rig, 0x0002_0216);
    assert_eq!((status, name.len(), &name[..8]), (0, 512, &b"N\0e\0t\0w\0"[..]));
    // The guest has to say which form of these it knows, and to have room for it.
    let form = [&[0x009c_03a7][..], &[0; 38]].concat();
    for input in [&[][..], &form[..1], &form[..38], &[0x009c_0388][..]] {
        assert_eq!(query_with(&mut rig, 0xfc01_020d, input), (0xc001_0015, vec![]), "{input:?}");
    }
    let (status, offload) = query_with(&mut rig, 0xfc01_020d, &form);
    assert_eq!((status, offload.len(), &offload[..4]), (0, 156, &[0xa7, 3, 156, 0][..]));
    let form = [0x0012_0288, 0, 0, 0, 0];
    for input in [&[][..], &form[..4]] {
        assert_eq!(query_with(&mut rig, 0x0001_0203, input), (0xc001_0015, vec![]), "{input:?}");
    }
    let (status, scaling) = query_with(&mut rig, 0x0001_0203, &form);
    assert_eq!((status, &scaling[..4]), (0, &[0x88, 2, 18, 0][..]));
    assert_eq!(scaling[12..18], [64, 0, 0, 0, 128, 0], "queues and entries");
    rig.service.policy_mut().max_queues = 1;
    assert_eq!(query_with(&mut rig, 0x0001_0203, &form).0, 0xc000_00bb, "no RSS: one queue");
    rig.settled(0);
}

#[test]
fn sets_are_answered() {
    let mut rig = rig();
    rig.start();
    assert_eq!(rig.port.side_state(Path::Synthetic), SideState::Up);
    rig.filter(0);
    assert_eq!(rig.port.side_state(Path::Synthetic), SideState::Down);
    for (message, status) in [
        (&[5, 7, 0x1010e, 0, 0, 0][..], 0xc001_0015),
        (&[5, 7, 0x10204, 4, 20, 0, 1], 0xc001_0015),
        (&[5, 7, 0x10205, 4, 20, 0, 1], 0xc000_00bb),
        (&[5, 7, 0x1021b, 4, 20, 0, 1], 0xc001_0015),
        (&[5, 7, 0x0101_010a, 4, 20, 0, 1], 0xc001_0015),
        (&[5, 7, 0x0101_010a, 28, 20, 0, 0x001c_01a8, 1, 2, 14, 1, 2, 14], 0),
    ] {
        rig.control(message);
        let heard = rig.hear_and_complete();
        let Some(Heard::Frames { ranges, .. }) = heard.last() else { panic!("{heard:?}") };
        assert_eq!(ranges[0], bytes(&[0x8000_0005, 16, 7, status]), "{message:?}");
    }
    // A change of offloads is told back.
    rig.control(&[5, 7, 0xfc01_020c, 4, 20, 0, 1]);
    assert_eq!(rig.hear_and_complete().len(), 2, "none is told of what makes no sense");
    rig.control(&[5, 7, 0xfc01_020c, 28, 20, 0, 0x001c_0380, 0, 0, 0, 0, 0, 0]);
    let heard = rig.hear_and_complete();
    assert_eq!(heard.len(), 3);
    let Some(Heard::Frames { ranges, .. }) = heard.last() else { panic!("{heard:?}") };
    assert_eq!(ranges[0][8..12], 0x4002_0006u32.to_le_bytes());
    rig.control(&[8, 5]);
    let heard = rig.hear_and_complete();
    let Some(Heard::Frames { ranges, .. }) = heard.last() else { panic!("{heard:?}") };
    assert_eq!(ranges[0], bytes(&[0x8000_0008, 16, 5, 0]));
}

#[test]
fn the_name_is_what_the_administrator_says_or_nothing() {
    let mut rig = rig_with(|config| config.name = Some("a\u{e4}".into()), 16);
    rig.start();
    let (status, name) = query(&mut rig, 0x0002_0216);
    assert_eq!((status, name.len(), &name[..6]), (0, 512, &[b'a', 0, 0xe4, 0, 0, 0][..]));
    let mut rig = rig_with(|config| config.name = None, 16);
    rig.start();
    assert_eq!(query(&mut rig, 0x0002_0216), (0xc000_00bb, vec![]));
    rig.settled(0);
}

#[test]
fn a_guest_is_asked_whether_it_is_there() {
    let mut rig = rig();
    rig.service.keep_alive(rig.now);
    rig.poll();
    assert_eq!(rig.service.counters().keep_alives, 0, "a guest that is not up is not asked");
    rig.start();
    for number in 1..3 {
        rig.service.keep_alive(rig.now);
        rig.poll();
        let heard = rig.hear_and_complete();
        let Some(Heard::Frames { ranges, .. }) = heard.last() else { panic!("{heard:?}") };
        assert_eq!(ranges[0], bytes(&[8, 12, number]));
        rig.control(&[0x8000_0008, number, 0]);
        rig.hear();
    }
    let counters = rig.service.counters();
    assert_eq!((counters.keep_alives, counters.keep_alive_answers), (2, 2));
    // An answer to nothing, and one that says no.
    rig.control(&[0x8000_0008, 2, 0]);
    rig.hear();
    rig.service.keep_alive(rig.now);
    rig.poll();
    rig.hear_and_complete();
    rig.control(&[0x8000_0008, 3, 0xc000_0001]);
    rig.hear();
    let counters = rig.service.counters();
    assert_eq!((counters.keep_alive_answers, counters.unasked_answers), (2, 1));
    assert!(rig.service.is_open());
}

#[test]
fn answers_wait_for_their_time_and_keep_their_order() {
    let mut rig = rig_with(|config| config.policy.rndis_delay = Duration::from_millis(5), 16);
    rig.initialize();
    assert_eq!(rig.hear().len(), 1, "the transport answers at once");
    assert_eq!(rig.service.poll_deadline(), Some(rig.now + Duration::from_millis(5)));
    rig.wait(Duration::from_millis(5));
    assert_eq!(rig.hear_and_complete().len(), 1);
    assert_eq!(rig.service.poll_deadline(), None);
}

#[test]
fn answers_wait_for_free_control_pieces() {
    let mut rig = rig();
    rig.start();
    for id in 0..20 {
        rig.control(&[8, id]);
    }
    let heard = rig.hear();
    let replies: Vec<_> = heard
        .iter()
        .filter_map(|packet| match packet {
            Heard::Frames { id, .. } => Some(*id),
            _ => None,
        })
        .collect();
    assert_eq!(replies.len(), CONTROL_PIECES as usize);
    rig.settled(u64::from(CONTROL_PIECES));
    for id in replies {
        rig.complete(id, &[108, 1]);
    }
    rig.poll();
    assert_eq!(rig.hear_and_complete().len(), 4);
    rig.settled(0);
}

#[test]
fn the_link_is_told_and_asked_for() {
    let mut rig = rig();
    rig.service.set_link(false);
    rig.start();
    assert_eq!(query(&mut rig, 0x0001_0114).1, 1u32.to_le_bytes());
    for (up, status) in [(true, 0x4001_000bu32), (false, 0x4001_000c)] {
        rig.service.set_link(up);
        rig.poll();
        let heard = rig.hear_and_complete();
        let [Heard::Frames { control: true, ranges, .. }] = &heard[..] else { panic!("{heard:?}") };
        assert_eq!(ranges[0], bytes(&[7, 20, status, 0, 0]));
    }
}

#[test]
fn a_guest_leaves_in_order_and_comes_back() {
    let mut rig = rig();
    for _ in 0..3 {
        rig.start();
        rig.filter(0);
        rig.control(&[3, 1]);
        assert_eq!(rig.hear().len(), 1, "HALT has no RNDIS answer");
        assert_eq!(rig.events(), [NicServiceEvent::Halted]);
        rig.say(&[103, 0xcafe], false);
        rig.say(&[106, 0], false);
        assert_eq!(rig.hear(), []);
        rig.service.close(&mut rig.port);
        rig.open();
    }
    assert_eq!((rig.service.counters().leaked, rig.service.counters().failed), (0, 0));
    assert_eq!(rig.service.counters().opened, 4);
}

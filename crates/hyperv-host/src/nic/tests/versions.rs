//! What each NVSP version lets a guest do, and how hosts answer RNDIS requests by policy.

use std::time::Duration;

use netvsc::nvsp::{MessageType, Status, Version};
use netvsc::rndis::{self, Oid};
use vmbus::Serial;

use super::guest::*;
use crate::nic::*;

const ALL: [Version; 6] =
    [Version::V1, Version::V2, Version::V4, Version::V5, Version::V6, Version::V6_1];

/// A guest that has agreed on a version.
fn agreed(version: Version, change: impl FnOnce(&mut NicServiceConfig)) -> Rig {
    let mut rig = rig_with(
        |config| {
            config.policy.versions = ALL.to_vec();
            change(config);
        },
        16,
    );
    let id = rig.say(&[1, version.0, version.0], true);
    let answer = rig.answer(id);
    assert_eq!(answer[3], 1);
    // Only the first version is named.
    assert_eq!(answer[1], if version == Version::V1 { 2 } else { u32::MAX });
    rig
}

/// A guest that has finished start-up in a version.
fn started(version: Version, change: impl FnOnce(&mut NicServiceConfig)) -> Rig {
    let mut rig = agreed(version, change);
    if version >= Version::V2 {
        rig.say(&[125, 1514, 0, 0xff, 0], false);
    }
    rig.say(&[100, 6, 1], false);
    let id = rig.say(&[101, RECEIVE.0, 0xcafe], true);
    assert_eq!(rig.answer(id).len(), if version == Version::V6_1 { 10 } else { 8 });
    let id = rig.say(&[104, SEND.0, 0], true);
    rig.answer(id);
    rig.control(&[2, 1, 1, 0, 0x4000]);
    rig.hear_and_complete();
    rig.filter(0xb);
    rig
}

/// The control message that was heard last.
fn reply_bytes(rig: &mut Rig) -> Vec<u8> {
    let heard = rig.hear_and_complete();
    let Some(Heard::Frames { control: true, ranges, .. }) = heard.last() else {
        panic!("{heard:?}")
    };
    ranges[0].clone()
}

/// The same in words.
fn reply(rig: &mut Rig) -> Vec<u32> {
    let words = reply_bytes(rig);
    words.chunks(4).map(|word| u32::from_le_bytes(word.try_into().unwrap())).collect()
}

#[test]
fn every_version_carries_frames_both_ways() {
    for version in ALL {
        let mut rig = started(version, |_| ());
        let sriov = version >= Version::V4;
        assert_eq!(rig.events(), [NicServiceEvent::Operational { version, sriov }]);
        let id = rig.transmit(0, &Rig::packet(&[], &frame(1, 60)));
        assert_eq!(rig.answer(id)[..2], [108, 1]);
        assert_eq!(rig.peer_hears(), [frame(1, 60)]);
        rig.peer_sends(&frame(2, 80));
        rig.poll();
        let heard = rig.hear_and_complete();
        assert_eq!(frames(&heard), [frame(2, 80)]);
        rig.settled(0);
    }
}

#[test]
fn messages_that_a_version_does_not_have_end_the_channel() {
    for version in ALL {
        for (message, since) in [
            (&[125, 1514, 0, 4, 0][..], Version::V2),
            (&[129, 0], Version::V4),
            (&[133, 1, 1], Version::V5),
        ] {
            let mut rig = agreed(version, |_| ());
            rig.say(message, true);
            if version >= since {
                assert!(rig.service.is_open(), "{version} {message:?}");
                assert_eq!(rig.hear().len(), 1);
            } else {
                let message = MessageType(message[0]);
                assert_eq!(rig.failure(), NicServiceError::NotInVersion { message, version });
            }
        }
    }
}

#[test]
fn no_virtual_function_is_announced_below_version_4_or_to_a_guest_that_does_not_ask() {
    for version in ALL {
        let mut rig = started(version, |_| ());
        rig.service.vf_added(Serial(7), rig.now);
        rig.poll();
        let heard = rig.hear_and_complete();
        assert_eq!(heard.len(), usize::from(version >= Version::V4), "{version}");
        let expected = if version >= Version::V4 { VfState::Advertised } else { VfState::Silent };
        assert_eq!(rig.service.vf_state(), expected);
    }
}

#[test]
fn the_receive_buffer_needs_no_configuration_in_version_1() {
    let mut rig = agreed(Version::V1, |_| ());
    let id = rig.say(&[101, RECEIVE.0, 0xcafe], true);
    assert_eq!(rig.answer(id)[4], 1806, "the frames are of 1,514 bytes");
}

#[test]
fn versions_are_refused_with_the_status_of_the_host() {
    for status in [Status::NONE, Status::FAILURE, Status::TOO_NEW] {
        let mut rig = rig_with(|config| config.policy.version_refusal = status, 16);
        let id = rig.say(&[1, 0x7_0000, 0x7_0000], true);
        assert_eq!(rig.answer(id)[3], status.0);
    }
}

#[test]
fn messages_that_are_too_short_are_not_heard() {
    let mut rig = rig_with(|config| config.policy.shortest_message = 32, 16);
    let id = rig.id();
    let payload = bytes(&[1, 0x60001, 0x60001]);
    rig.send(&vmbus::packet::Outgoing::InBand {
        transaction_id: id,
        completion: true,
        payload: &payload,
    });
    rig.poll();
    assert_eq!((rig.hear(), rig.service.counters().unheard), (vec![], 1));
    rig.buffers();
}

// HISTORY 34: the host refuses the buffer at the reopening behind a change of the MTU; the next opening is good.
#[test]
fn buffers_are_refused_by_status_and_taken_the_next_time() {
    let mut rig = rig();
    rig.start();
    rig.service.close(&mut rig.port);
    rig.service.policy_mut().receive_buffer_answer = Status::FAILURE;
    rig.service.policy_mut().send_buffer_answer = Status::BUSY;
    rig.open();
    let id = rig.say(&[1, 0x60001, 0x60001], true);
    rig.answer(id);
    rig.say(&[125, 9014, 0, 4, 0], false);
    let id = rig.say(&[101, RECEIVE.0, 0xcafe], true);
    assert_eq!(rig.answer(id)[..3], [102, 2, 0]);
    let id = rig.say(&[104, SEND.0, 0], true);
    assert_eq!(rig.answer(id)[..3], [105, 6, 0]);
    rig.say(&[103, 0xcafe], false);
    let nothing = NicServiceError::NoBuffer(MessageType::REVOKE_RECEIVE_BUFFER);
    assert_eq!(rig.failure(), nothing, "what was refused cannot be taken back");
    let policy = rig.service.policy_mut();
    policy.receive_buffer_answer = Status::SUCCESS;
    policy.send_buffer_answer = Status::SUCCESS;
    rig.open();
    rig.start();
    rig.settled(0);
}

#[test]
fn reset_is_answered_where_policy_says_so() {
    let mut rig = rig_with(|config| config.policy.reset = ResetAnswer::Complete, 16);
    rig.start();
    rig.control(&[6, 0]);
    assert_eq!(reply(&mut rig), [0x8000_0006, 16, 0, 1]);
    rig.control(&[4, 9, Oid::CURRENT_PACKET_FILTER.0, 0, 20, 0]);
    assert_eq!(reply(&mut rig)[6..], [0], "the filter has to be set again");
    rig.filter(0xb);
    rig.settled(0);
}

#[test]
fn refused_objects_have_the_status_of_the_policy() {
    let refused = vec![
        (Oid::FRIENDLY_NAME, rndis::Status::INVALID_OID),
        (Oid::CURRENT_PACKET_FILTER, rndis::Status::RESOURCES),
    ];
    let mut rig = rig_with(|config| config.policy.refused_objects = refused, 16);
    rig.initialize();
    rig.hear_and_complete();
    rig.control(&[4, 9, Oid::FRIENDLY_NAME.0, 0, 20, 0]);
    assert_eq!(reply(&mut rig), [0x8000_0004, 24, 9, 0xc001_0017, 0, 16]);
    rig.control(&[5, 9, Oid::CURRENT_PACKET_FILTER.0, 4, 20, 0, 0xb]);
    assert_eq!(reply(&mut rig), [0x8000_0005, 16, 9, 0xc000_009a]);
    assert_eq!(rig.port.side_state(SYNTHETIC), crate::switch::SideState::Down);
}

#[test]
fn a_question_for_an_object_by_nvsp_is_refused_and_costs_nothing() {
    for version in [Version::V5, Version::V6, Version::V6_1] {
        let mut rig = started(version, |_| ());
        for oid in [Oid::PERMANENT_ADDRESS, Oid::FRIENDLY_NAME, Oid(0)] {
            let id = rig.say(&[131, 0x0008_0180, oid.0], true);
            assert_eq!(rig.answer(id)[..3], [132, 0xc000_00bb, 0], "version {version}");
        }
        rig.control(&[4, 9, Oid::MAXIMUM_FRAME_SIZE.0, 0, 20, 0]);
        assert_eq!(reply(&mut rig)[6..], [1500], "RNDIS is the way to ask");
    }
    for version in [Version::V1, Version::V2, Version::V4] {
        let mut rig = started(version, |_| ());
        rig.say(&[131, 0x0008_0180, Oid::PERMANENT_ADDRESS.0], true);
        let message = MessageType::OID_QUERY_EX;
        assert_eq!(rig.failure(), NicServiceError::NotInVersion { message, version });
    }
}

/// A SET of the address.
fn set_address(rig: &mut Rig, address: &str) -> u32 {
    let units = |text: &str| text.encode_utf16().flat_map(u16::to_le_bytes).collect::<Vec<_>>();
    let (name, value) = (units("NetworkAddress"), units(address));
    let len = value.len() as u32;
    let mut info = bytes(&[20, 28, 2, 48, len]);
    info.extend(name);
    info.extend(value);
    let mut message = vec![5, 9, Oid::CONFIG_PARAMETER.0, info.len() as u32, 20, 0];
    message.extend(info.chunks(4).map(|word| u32::from_le_bytes(word.try_into().unwrap())));
    rig.control(&message);
    reply(rig)[3]
}

#[test]
fn the_guest_changes_its_address_until_it_closes() {
    let mut rig = rig();
    rig.start();
    assert_eq!(set_address(&mut rig, "02a0b0c0d0e0"), 0);
    rig.control(&[4, 9, Oid::CURRENT_ADDRESS.0, 0, 20, 0]);
    assert_eq!(reply_bytes(&mut rig)[24..], [2, 0xa0, 0xb0, 0xc0, 0xd0, 0xe0]);
    assert_eq!(set_address(&mut rig, "03a0b0c0d0e0"), 0xc001_0015, "a group");
    rig.service.policy_mut().mac_changes = false;
    assert_eq!(set_address(&mut rig, "02a0b0c0d0e1"), 0xc000_0001);
    rig.open();
    rig.start();
    rig.control(&[4, 9, Oid::CURRENT_ADDRESS.0, 0, 20, 0]);
    assert_eq!(reply_bytes(&mut rig)[24..], MAC.0);
}

#[test]
fn a_guest_that_takes_no_answers_is_given_up() {
    let mut rig = rig_with(|config| config.policy.control_queue = 5000, 16);
    rig.start();
    // Sixteen answers lie in control pieces; 536 bytes each is what the name takes.
    for asked in 0..40 {
        rig.control(&[4, asked, Oid::FRIENDLY_NAME.0, 0, 20, 0]);
        rig.hear();
        if !rig.service.is_open() {
            break;
        }
    }
    let expected = NicServiceError::ControlQueue { bytes: 10 * 536, most: 5000 };
    assert_eq!(rig.failure(), expected);
}

#[test]
fn a_careful_host_spaces_link_changes() {
    let mut rig = rig_with(
        |config| {
            config.policy.link_spacing = Duration::from_secs(5);
            config.policy.always_connected = true;
            config.link_up = false;
        },
        16,
    );
    rig.initialize();
    let heard = rig.hear_and_complete();
    assert_eq!(heard.len(), 3, "that the link is down is only ever indicated");
    rig.control(&[4, 9, Oid::MEDIA_CONNECT_STATUS.0, 0, 20, 0]);
    assert_eq!(reply(&mut rig)[6], 0);
    rig.service.set_link(true);
    rig.poll();
    assert_eq!(rig.hear(), []);
    let due = rig.service.poll_deadline().unwrap();
    assert_eq!(due, rig.now + Duration::from_secs(5));
    rig.now = due;
    rig.poll();
    assert_eq!(reply(&mut rig), [7, 20, 0x4001_000b, 0, 0]);
    assert_eq!(rig.service.counters().link_indications, 2);
    assert_eq!(rig.service.poll_deadline(), None);
}

#[test]
fn speed_and_network_changes_are_indicated() {
    for uncounted in [false, true] {
        let mut rig = started(Version::V6_1, |config| config.policy.uncounted_buffers = uncounted);
        rig.service.set_speed(40_000_000_000, rig.now);
        rig.poll();
        let length = if uncounted { 20 } else { 24 };
        assert_eq!(reply(&mut rig), [7, length, 0x4001_0013, 4, 12, 400_000_000]);
        rig.service.change_network(rig.now);
        rig.poll();
        assert_eq!(reply(&mut rig), [7, 20, 0x4001_0018, 0, 0]);
    }
    // Without the teaming capability nobody hears of speeds.
    let mut rig = rig();
    rig.start();
    rig.service.set_speed(40_000_000_000, rig.now);
    rig.poll();
    assert_eq!(rig.hear(), []);
}

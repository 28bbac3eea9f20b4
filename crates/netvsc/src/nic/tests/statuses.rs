//! What the host answers, counted by what it is.

extern crate std;
use std::vec;
use std::vec::Vec;

use super::host::*;
use crate::mac::MacAddress;
use crate::nic::*;
use crate::nvsp::{self, HostMessage, Version};
use crate::rndis::{self, Oid, PacketFilter};

#[test]
fn completions_of_frames_are_counted_by_status() {
    let mut rig = ready();
    rig.held.frames = true;
    // HISTORY 69
    let statuses = [
        nvsp::Status::FAILURE,
        nvsp::Status::INVALID_RNDIS_PACKET,
        nvsp::Status(77),
        nvsp::Status::SUCCESS,
        nvsp::Status::BUSY,
        nvsp::Status::NONE,
    ];
    for status in statuses {
        rig.nic.transmit(&frame(60, 1)).unwrap();
        rig.nic.flush();
        rig.settle();
        let id = rig.waiting.pop_front().unwrap();
        rig.complete_send(id, status);
        rig.settle();
    }
    let stats = rig.nic.stats();
    let expected = NvspStatuses {
        none: 1,
        failure: 1,
        invalid_rndis_packet: 1,
        busy: 1,
        other: 1,
        last_other: Some(nvsp::Status(77)),
        ..NvspStatuses::default()
    };
    assert_eq!((stats.sent, stats.tx_completed, stats.tx_refused), (expected, 6, 5));
    assert_eq!((stats.bad.total(), stats.answers.total()), (0, 0));
}

#[test]
fn refused_versions_and_channels_are_counted_by_status() {
    let config = NicConfig { queues: 4, ..NicConfig::default() };
    let mut rig = rig_of(Shape { config, ..Shape::default() });
    rig.versions = vec![Version::V5];
    rig.settle();
    assert_eq!(rig.nic.stats().answers, NvspStatuses { none: 2, ..NvspStatuses::default() });
    let before = rig.nic.stats().answers;
    rig.nic.request_queues(3, rig.now).unwrap();
    let [id] = rig.ask_sub_channels()[..] else { panic!("asked once") };
    let refused = HostMessage::SubChannels { status: nvsp::Status::FAILURE, count: 0 };
    rig.complete(id, &refused.encode(Version::V5));
    rig.settle();
    assert_eq!(rig.nic.stats().answers, NvspStatuses { failure: 1, ..before });
    assert_eq!(rig.events().last(), Some(&NicEvent::QueuesGranted { count: 0 }));
}

#[test]
fn a_buffer_is_refused_with_a_status_that_is_counted() {
    let mut rig = rig();
    rig.held.nvsp = true;
    rig.settle();
    let init = rig.waiting.pop_front().unwrap();
    let (status, version) = (nvsp::Status::SUCCESS, u32::MAX);
    let answer = HostMessage::InitComplete { version, max_mdl_chain: 34, status };
    rig.complete(init, &answer.encode(Version::V5));
    rig.settle();
    let buffer = rig.waiting.pop_front().unwrap();
    let status = nvsp::Status(9);
    let answer = HostMessage::ReceiveBufferComplete { status, sections: 0, first: None };
    rig.complete(buffer, &answer.encode(Version::V6_1));
    rig.serve();
    let error = NicError::Refused { step: Step::ReceiveBuffer, status };
    assert_eq!(rig.try_poll(), Err(error));
    let expected = NvspStatuses { other: 1, last_other: Some(status), ..NvspStatuses::default() };
    assert_eq!(rig.nic.stats().answers, expected);
}

#[test]
fn replies_are_counted_by_status_and_told_with_it() {
    let mut rig = ready();
    rig.events();
    let before = rig.nic.stats().replies;
    rig.held.rndis = true;
    let statuses = [
        rndis::Status::INVALID_DATA,
        rndis::Status::SUCCESS,
        rndis::Status::BUFFER_TOO_SHORT,
        rndis::Status::PENDING,
        rndis::Status::INVALID_OID,
        rndis::Status::RESOURCES,
        rndis::Status(0xc000_0022),
    ];
    for status in statuses {
        rig.nic.set_packet_filter(PacketFilter::PROMISCUOUS, rig.now).unwrap();
        rig.settle();
        let request_id = rig.last_request();
        rig.say(&rndis::HostMessage::SetComplete { request_id, status });
        rig.settle();
        let oid = Oid::CURRENT_PACKET_FILTER;
        assert_eq!(rig.events(), [NicEvent::Set { oid, status }]);
    }
    let expected = RndisStatuses {
        invalid_data: 1,
        buffer_too_short: 1,
        pending: 1,
        invalid_oid: 1,
        resources: 1,
        other: 1,
        last_other: Some(rndis::Status(0xc000_0022)),
        ..before
    };
    assert_eq!(rig.nic.stats().replies, expected);
    assert_eq!(rig.nic.stats().refused(), 6 + before.total());
}

#[test]
fn a_refused_address_is_told_and_the_old_one_stays() {
    let mut rig = ready();
    rig.events();
    rig.held.rndis = true;
    rig.nic.set_mac(MacAddress([2, 0, 0, 0, 0, 9]), rig.now).unwrap();
    rig.settle();
    let (request_id, status) = (rig.last_request(), rndis::Status::FAILURE);
    rig.say(&rndis::HostMessage::SetComplete { request_id, status });
    rig.settle();
    assert_eq!(rig.events(), [NicEvent::Set { oid: Oid::CONFIG_PARAMETER, status }]);
    assert_eq!((rig.nic.stats().replies.failure, rig.nic.config().address), (1, None));
}

#[test]
fn indications_are_counted_known_or_not() {
    let mut rig = ready();
    let speed = 100_000u32.to_le_bytes();
    let said: [(rndis::Status, &[u8]); 8] = [
        (rndis::Status::MEDIA_DISCONNECT, &[]),
        (rndis::Status::MEDIA_CONNECT, &[]),
        (rndis::Status::NETWORK_CHANGE, &[]),
        (rndis::Status::LINK_SPEED_CHANGE, &speed),
        (rndis::Status::LINK_SPEED_CHANGE, &[1, 2]),
        (rndis::Status::OFFLOAD_CURRENT_CONFIG, &[0; 156]),
        (rndis::Status(0x4001_0006), &[]),
        (rndis::Status(0x4003_0001), &[1; 40]),
    ];
    for (status, buffer) in said {
        rig.say(&rndis::HostMessage::Indicate { status, buffer });
        rig.settle();
    }
    let stats = rig.nic.stats();
    let expected = Indications {
        connected: 1,
        disconnected: 1,
        speed: 2,
        network: 1,
        offloads: 1,
        other: 2,
        last_other: Some(rndis::Status(0x4003_0001)),
    };
    assert_eq!(stats.indications, expected);
    let bad = BadInput { value: 1, ..BadInput::default() };
    assert_eq!(stats.bad, bad, "a speed of two bytes says nothing");
    assert_eq!(rig.nic.info().speed, Some(10_000_000));
    let ids: Vec<_> = rig.completions.iter().map(|(id, _)| *id).collect();
    assert!(ids.windows(2).all(|pair| pair[0] < pair[1]), "each completed once, in order");
}

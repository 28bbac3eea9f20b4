//! From INIT to the packet filter.

extern crate std;
use std::vec;
use std::vec::Vec;

use vmbus::channel::{Channel, SignalFlag};
use vmbus::{GpadlId, Instant, Serial};

use super::host::*;
use crate::mac::MacAddress;
use crate::nic::*;
use crate::nvsp::Version;
use crate::nvsp::{Capabilities, GuestMessage, HostMessage, MessageType, ReceiveSection, Status};
use crate::port::Path;
use crate::rndis::offload::OffloadCapabilities;
use crate::rndis::{self, Oid};

fn config(config: NicConfig) -> Shape {
    Shape { config, ..Shape::default() }
}

#[test]
fn start_up_follows_the_order_of_the_protocol() {
    let mut rig = rig();
    rig.settle();
    let said = &rig.said;
    assert!(matches!(said[0], GuestMessage::Init { max: Version::V6_1, .. }));
    let capabilities = Capabilities::SRIOV | Capabilities::IEEE8021Q | Capabilities::TEAMING;
    assert_eq!(said[1], GuestMessage::NdisConfig { mtu: 1514, capabilities });
    assert_eq!(said[2], GuestMessage::NdisVersion { major: 6, minor: 30 });
    assert_eq!(said[3], GuestMessage::ReceiveBuffer { gpadl: GpadlId(0xe1e10), id: 0xcafe });
    assert_eq!(said[4], GuestMessage::SendBuffer { gpadl: GpadlId(0xe1e11), id: 0 });
    assert!(said[5..].iter().all(|said| matches!(said, GuestMessage::RndisPacket(_))));
    let asked: Vec<_> = rig.asked.iter().map(|(kind, oid, _)| (*kind, *oid)).collect();
    assert_eq!(
        asked,
        [
            (rndis::MessageType::INITIALIZE, None),
            (rndis::MessageType::QUERY, Some(Oid::PERMANENT_ADDRESS)),
            (rndis::MessageType::QUERY, Some(Oid::MAXIMUM_FRAME_SIZE)),
            (rndis::MessageType::QUERY, Some(Oid::MEDIA_CONNECT_STATUS)),
            (rndis::MessageType::QUERY, Some(Oid::LINK_SPEED)),
            (rndis::MessageType::QUERY, Some(Oid::FRIENDLY_NAME)),
            (rndis::MessageType::QUERY, Some(Oid::OFFLOAD_HARDWARE_CAPABILITIES)),
            (rndis::MessageType::SET, Some(Oid::CURRENT_PACKET_FILTER)),
        ]
    );
    let form = OffloadCapabilities::question(Version::V6_1);
    assert_eq!(rig.asked[6].2, form, "the form that is known, at its length");
    assert_eq!(rig.asked[7].2, 13u32.to_le_bytes());
    assert_eq!(
        rig.events(),
        [NicEvent::Ready { mac: MAC, mtu: 1500, version: Version::V6_1, link: true }]
    );
    let info = rig.nic.info();
    assert_eq!((info.speed, info.ready, info.path), (Some(10_000_000_000), true, Path::Synthetic));
    assert_eq!(rig.completions.len(), 8, "each reply once");
    let stats = rig.nic.stats();
    assert_eq!((stats.bad.total(), stats.refused()), (0, 1), "this host has no offloads");
    assert_eq!(rig.nic.poll_deadline(), None);
}

#[test]
fn older_versions_are_asked_for_until_one_is_taken() {
    let versions = vec![Version::V6_1, Version::V6, Version::V5, Version::V4, Version::V1];
    let mut rig = rig_of(config(NicConfig { versions, ..NicConfig::default() }));
    rig.versions = vec![Version::V4];
    rig.settle();
    let inits = rig.said.iter().filter(|said| matches!(said, GuestMessage::Init { .. })).count();
    assert_eq!(inits, 4);
    assert!(rig.said.contains(&GuestMessage::NdisVersion { major: 6, minor: 1 }));
    assert!(
        rig.said.contains(&GuestMessage::NdisConfig {
            mtu: 1514,
            capabilities: Capabilities::IEEE8021Q
        }),
        "no virtual functions before version 5"
    );
    assert!(matches!(rig.events()[..], [NicEvent::Ready { version: Version::V4, .. }]));
}

#[test]
fn the_first_version_has_no_configuration() {
    let versions = vec![Version::V1];
    let mut rig = rig_of(config(NicConfig { versions, ..NicConfig::default() }));
    rig.versions = vec![Version::V1];
    rig.settle();
    assert!(!rig.said.iter().any(|said| matches!(said, GuestMessage::NdisConfig { .. })));
    assert!(rig.nic.info().ready);
}

#[test]
fn a_host_that_takes_no_version_is_reported() {
    let mut rig = rig();
    rig.versions.clear();
    for _ in 1..Version::ALL.len() {
        rig.serve();
        rig.poll();
    }
    rig.serve();
    let error = NicError::VersionsRefused { last: Version::V1, status: Status::NONE };
    assert_eq!(rig.try_poll(), Err(error));
    assert_eq!(rig.events(), [NicEvent::Failed(error)]);
    assert_eq!(rig.try_poll(), Err(error), "and remains so");
    assert!(rig.events().is_empty(), "but is told once");
}

// HISTORY 42
#[test]
fn an_isolated_guest_wants_no_virtual_function_and_no_old_version() {
    let mut rig = rig_of(config(NicConfig { isolated: true, ..NicConfig::default() }));
    rig.settle();
    assert!(rig.said.contains(&GuestMessage::NdisConfig {
        mtu: 1514,
        capabilities: Capabilities::IEEE8021Q | Capabilities::TEAMING
    }));
    rig.events();
    rig.associate(true, 7);
    rig.settle();
    assert!(rig.events().is_empty());
    assert_eq!(rig.nic.stats().associations_ignored, 1);
    assert_eq!(rig.nic.info().association, None);

    let mut old = rig_of(config(NicConfig { isolated: true, ..NicConfig::default() }));
    old.versions = vec![Version::V5];
    old.serve();
    let error = NicError::VersionsRefused { last: Version::V6_1, status: Status::NONE };
    assert_eq!(old.try_poll(), Err(error));
}

// HISTORY 53: what the host says before anything else is heard.
#[test]
fn an_association_before_everything_else_is_heard() {
    let mut rig = rig();
    rig.associate(true, 7);
    rig.settle();
    let events = rig.events();
    assert_eq!(events[0], NicEvent::Associated { serial: Serial(7) });
    assert!(matches!(events[1..], [NicEvent::Ready { .. }]));
}

#[test]
fn anything_between_two_replies_is_understood() {
    let mut rig = rig();
    rig.held.rndis = true;
    rig.settle();
    rig.associate(true, 3);
    rig.say(&rndis::HostMessage::Indicate { status: rndis::Status::MEDIA_DISCONNECT, buffer: &[] });
    rig.tell(HostMessage::IndirectionTable([0; 16]), false);
    rig.held.rndis = false;
    let said = rndis::InitializeComplete {
        request_id: 1,
        status: rndis::Status::SUCCESS,
        major: 1,
        minor: 0,
        device_flags: 1,
        medium: 0,
        max_packets: 8,
        max_transfer: 0x4000,
        alignment_factor: 3,
    };
    rig.say(&rndis::HostMessage::InitializeComplete(said));
    rig.settle();
    // The indication counts more than the later answer "connected", which some hosts always give.
    assert_eq!(
        rig.events(),
        [
            NicEvent::Associated { serial: Serial(3) },
            NicEvent::SendTable,
            NicEvent::Ready { mac: MAC, mtu: 1500, version: Version::V6_1, link: false }
        ]
    );
    assert_eq!(rig.nic.info().send_table, Some([0; 16]));
}

#[test]
fn the_host_may_make_packets_smaller_but_not_useless() {
    let mut rig = rig();
    rig.mtu = 1400;
    rig.settle();
    assert_eq!(rig.nic.info().mtu, 1400);
    assert!(rig.nic.transmit(&frame(1414, 1)).is_ok());
    assert_eq!(
        rig.nic.transmit(&frame(1415, 1)),
        Err(TransmitError::TooLong { len: 1415, most: 1414 })
    );
    let mut rig = super::host::rig();
    rig.mtu = 67;
    assert_eq!(failure(&mut rig), NicError::Mtu(67));
}

#[test]
fn only_the_address_has_to_be_known() {
    let mut rig = rig();
    rig.query_status = rndis::Status::NOT_SUPPORTED;
    rig.settle();
    let info = rig.nic.info();
    assert_eq!((info.mtu, info.link, info.speed, info.ready), (1500, true, None, true));
}

/// Lets both talk until the NIC fails.
fn failure(rig: &mut Rig) -> NicError {
    for _ in 0..50 {
        rig.serve();
        if let Err(error) = rig.try_poll() {
            assert!(rig.events().contains(&NicEvent::Failed(error)));
            assert!(!rig.nic.info().ready);
            return error;
        }
    }
    panic!("the NIC works");
}

#[test]
fn buffers_divided_in_ways_that_nobody_does_are_refused() {
    let good = rig().section;
    for section in [
        ReceiveSection { offset: 8, ..good },
        ReceiveSection { sub_alloc_size: 67, ..good },
        ReceiveSection { num_sub_allocs: 73, ..good },
        ReceiveSection { num_sub_allocs: 0, ..good },
        ReceiveSection { sub_alloc_size: u32::MAX, num_sub_allocs: u32::MAX, ..good },
    ] {
        let mut rig = rig();
        rig.section = section;
        assert!(matches!(failure(&mut rig), NicError::Division { sections: 1, .. }), "{section:?}");
    }
    // Control messages need their room, too.
    for section_size in [0, 16, 1023, 12 * 4096] {
        let mut rig = rig();
        rig.section_size = section_size;
        assert_eq!(
            failure(&mut rig),
            NicError::Sections { buffer: 12 * 4096, section: section_size, frame: 1514 }
        );
    }
}

/// A NIC that has sent `before` messages that want an answer, and the id of the last.
fn held(before: usize) -> (Rig, u64) {
    let mut rig = rig();
    for step in 0.. {
        rig.held.nvsp = step + 1 == before;
        rig.serve();
        if rig.held.nvsp {
            break;
        }
        rig.poll();
    }
    let id = rig.waiting.pop_front().unwrap();
    (rig, id)
}

#[test]
fn wrong_answers_end_start_up() {
    let steps = [Step::Version(Version::V6_1), Step::ReceiveBuffer, Step::SendBuffer];
    for (place, step) in steps.into_iter().enumerate() {
        let (mut rig, id) = held(place + 1);
        let other = HostMessage::SubChannels { status: Status::SUCCESS, count: 1 };
        rig.complete(id, &other.encode(Version::V6_1));
        let error = NicError::WrongAnswer { step, found: MessageType::SUB_CHANNEL };
        assert_eq!(rig.try_poll(), Err(error));

        let (mut rig, id) = held(place + 1);
        rig.complete(id, &[]);
        assert!(matches!(rig.try_poll(), Err(NicError::BadAnswer { step: s, .. }) if s == step));
    }
    let refusals = [
        HostMessage::ReceiveBufferComplete { status: Status::FAILURE, sections: 0, first: None },
        HostMessage::SendBufferComplete { status: Status::FAILURE, section_size: 0 },
    ];
    for (place, refusal) in refusals.into_iter().enumerate() {
        let (mut rig, id) = held(place + 2);
        rig.complete(id, &refusal.encode(Version::V6_1));
        let error = NicError::Refused { step: steps[place + 1], status: Status::FAILURE };
        assert_eq!(rig.try_poll(), Err(error));
    }
}

#[test]
fn a_completion_of_something_else_is_passed_over() {
    let (mut rig, id) = held(2);
    rig.complete(id + 1, &[1, 2, 3]);
    rig.complete(7, &[]);
    rig.poll();
    assert_eq!(rig.nic.stats().bad.completion, 2);
    assert_eq!(rig.events(), []);
}

#[test]
fn wrong_rndis_replies_end_start_up() {
    type Reply = fn(u32) -> rndis::HostMessage<'static>;
    let initialize: Reply = |request_id| {
        rndis::HostMessage::InitializeComplete(rndis::InitializeComplete {
            request_id,
            status: rndis::Status::SUCCESS,
            major: 1,
            minor: 0,
            device_flags: 1,
            medium: 0,
            max_packets: 1,
            max_transfer: 0x4000,
            alignment_factor: 0,
        })
    };
    let wrong: Reply =
        |request_id| rndis::HostMessage::SetComplete { request_id, status: rndis::Status::SUCCESS };
    let refused: Reply = |request_id| rndis::HostMessage::QueryComplete {
        request_id,
        status: rndis::Status::FAILURE,
        info: &[],
    };
    let short: Reply = |request_id| rndis::HostMessage::QueryComplete {
        request_id,
        status: rndis::Status::SUCCESS,
        info: &[1, 2, 3, 4, 5],
    };
    let group: Reply = |request_id| rndis::HostMessage::QueryComplete {
        request_id,
        status: rndis::Status::SUCCESS,
        info: &[1, 2, 3, 4, 5, 6],
    };
    let step = Step::Query(Oid::PERMANENT_ADDRESS);
    let cases: [(&[Reply], NicError); 5] = [
        (&[wrong], NicError::WrongReply { step: Step::Initialize }),
        (&[initialize, wrong], NicError::WrongReply { step }),
        (&[initialize, refused], NicError::RequestRefused { step, status: rndis::Status::FAILURE }),
        (
            &[initialize, short],
            NicError::ValueLength { oid: Oid::PERMANENT_ADDRESS, len: 5, expected: 6 },
        ),
        (&[initialize, group], NicError::Mac(MacAddress([1, 2, 3, 4, 5, 6]))),
    ];
    for (replies, error) in cases {
        let mut rig = rig();
        rig.held.rndis = true;
        rig.settle();
        let (last, first) = replies.split_last().unwrap();
        for (at, reply) in first.iter().enumerate() {
            rig.say(&reply(at as u32 + 1));
            rig.settle();
        }
        rig.say(&last(first.len() as u32 + 1));
        assert_eq!(rig.try_poll(), Err(error));
    }
}

// As Linux does, who takes a number only if it has its length.
#[test]
fn a_number_that_is_too_short_is_as_good_as_none() {
    let mut rig = rig();
    rig.held.rndis = true;
    rig.settle();
    rig.say(&rndis::HostMessage::InitializeComplete(rndis::InitializeComplete {
        request_id: 1,
        status: rndis::Status::SUCCESS,
        major: 1,
        minor: 0,
        device_flags: 1,
        medium: 0,
        max_packets: 1,
        max_transfer: 0x4000,
        alignment_factor: 0,
    }));
    rig.settle();
    let questions: Vec<_> = rig.asked[1..].iter().map(|(_, oid, _)| *oid).collect();
    for (request_id, oid) in (2..).zip(questions) {
        let info = if oid == Some(Oid::PERMANENT_ADDRESS) { &MAC.0[..] } else { &[1, 2, 3] };
        let status = rndis::Status::SUCCESS;
        rig.say(&rndis::HostMessage::QueryComplete { request_id, status, info });
        rig.settle();
    }
    let request_id = rig.asked.len() as u32;
    rig.say(&rndis::HostMessage::SetComplete { request_id, status: rndis::Status::SUCCESS });
    rig.settle();
    let ready = |event: &NicEvent| matches!(event, NicEvent::Ready { mac: MAC, mtu: 1500, .. });
    assert!(rig.events().iter().any(ready));
    assert_eq!(rig.nic.info().speed, None);
    // The MTU, link, speed and offloads; a name has any length.
    assert_eq!(rig.nic.stats().bad.value, 4);
}

#[test]
fn replies_that_nobody_waits_for_are_passed_over() {
    let mut rig = ready();
    let status = rndis::Status::SUCCESS;
    rig.say(&rndis::HostMessage::SetComplete { request_id: 1, status });
    rig.say(&rndis::HostMessage::SetComplete { request_id: 99, status });
    rig.say(&rndis::HostMessage::KeepAliveComplete { request_id: 1, status });
    rig.settle();
    assert_eq!(rig.nic.stats().bad.reply, 3);
    assert!(rig.nic.info().ready);
}

#[test]
fn a_silent_host_is_reported_with_the_step_and_understood_later() {
    let mut rig = rig();
    rig.held.nvsp = true;
    rig.settle();
    let patience = NicConfig::default().deadline;
    assert_eq!(rig.nic.poll_deadline(), Some(Instant::ZERO + patience));
    rig.pass(patience);
    assert_eq!(rig.events(), [NicEvent::Overdue { step: Step::Version(Version::V6_1) }]);
    assert_eq!(rig.nic.poll_deadline(), None, "once");
    rig.pass(patience);
    assert!(rig.events().is_empty());
    rig.held.nvsp = false;
    rig.version = Some(Version::V6_1);
    let id = rig.waiting.pop_front().unwrap();
    let yes =
        HostMessage::InitComplete { version: u32::MAX, max_mdl_chain: 34, status: Status::SUCCESS };
    rig.complete(id, &yes.encode(Version::V5));
    rig.settle();
    assert!(matches!(rig.events()[..], [NicEvent::Ready { .. }]));

    let mut rig = super::host::rig();
    rig.held.rndis = true;
    rig.settle();
    rig.pass(patience);
    assert_eq!(rig.events(), [NicEvent::Overdue { step: Step::Initialize }]);
}

#[test]
fn nothing_is_made_of_a_configuration_that_makes_no_sense() {
    let make = |config, send: bool| {
        let channel = Channel::from_parts(pages(0, 2), pages(10, 2), SignalFlag::new()).unwrap();
        let buffer = |first| SharedBuffer { gpadl: GpadlId(1), pages: pages(first, 12) };
        Nic::new(channel, buffer(20), send.then(|| buffer(40)), config, Instant::ZERO).unwrap_err()
    };
    let versions = vec![Version::V5];
    assert_eq!(
        make(NicConfig { versions: vec![], ..NicConfig::default() }, true),
        ConfigError::NoVersion { isolated: false }
    );
    assert_eq!(
        make(NicConfig { versions, isolated: true, ..NicConfig::default() }, true),
        ConfigError::NoVersion { isolated: true }
    );
    assert_eq!(make(NicConfig { mtu: 67, ..NicConfig::default() }, true), ConfigError::Mtu(67));
    assert_eq!(make(NicConfig::default(), false), ConfigError::NoSendBuffer);
}

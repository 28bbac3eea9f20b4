//! The same NIC on another channel, and every version from beginning to end.

extern crate std;
use std::vec;

use vmbus::Serial;

use super::host::*;
use super::path::fill;
use crate::nic::*;
use crate::nvsp::{Capabilities, GuestMessage, Status, Version};
use crate::port::Path;
use crate::rndis::{Oid, PacketFilter};

fn stop(rig: &mut Rig) {
    rig.nic.shutdown(rig.now);
    rig.settle();
    assert_eq!(rig.events().last(), Some(&NicEvent::Stopped));
    rig.said.clear();
    rig.asked.clear();
}

#[test]
fn another_mtu_holds_when_the_nic_has_begun_anew() {
    let mut rig = ready();
    rig.mtu = 9000;
    for mtu in [67, 9217, u32::MAX] {
        assert_eq!(rig.nic.set_mtu(mtu), Err(ConfigError::Mtu(mtu)));
    }
    rig.nic.set_mtu(4000).unwrap();
    assert_eq!(rig.nic.info().mtu, 1500);
    let refused = rig.restart().expect_err("it is at work");
    assert_eq!(refused.error, ConfigError::AtWork);
    assert_eq!((refused.remains.receive.pages.pages(), refused.remains.lent.len()), (32, 0));
    let mut rig = ready();
    rig.mtu = 9000;
    rig.nic.set_mtu(4000).unwrap();
    stop(&mut rig);
    let remains = rig.restart().unwrap();
    assert_eq!(remains.receive.pages.pages(), 32);
    rig.settle();
    assert!(matches!(rig.events()[..], [NicEvent::Ready { mtu: 4000, .. }]));
    let config = rig.said.iter().find(|said| matches!(said, GuestMessage::NdisConfig { .. }));
    assert!(matches!(config, Some(GuestMessage::NdisConfig { mtu: 4014, .. })));
    rig.nic.transmit(&frame(4014, 1)).unwrap();
    rig.nic.flush();
    rig.settle();
    assert_eq!(rig.got.len(), 1);
    assert_eq!(rig.nic.stats().restarts, 1);
}

// HISTORY 34: a host that refuses a buffer on the way back up costs this attempt and nothing else.
#[test]
fn a_refusal_after_a_change_of_the_mtu_is_clean_and_the_next_attempt_is_good() {
    let mut rig = ready();
    rig.nic.set_mtu(4000).unwrap();
    stop(&mut rig);
    rig.restart().unwrap();
    rig.section.sub_alloc_size = 1;
    let error = loop {
        rig.serve();
        if let Err(error) = rig.try_poll() {
            break error;
        }
    };
    assert!(matches!(error, NicError::Division { size: 1, .. }));
    assert_eq!(rig.events(), [NicEvent::Failed(error)]);
    assert_eq!(rig.nic.transmit(&frame(60, 1)), Err(TransmitError::NotReady));
    rig.section.sub_alloc_size = PIECE as u32;
    rig.nic.set_mtu(1500).unwrap();
    rig.restart().unwrap();
    rig.settle();
    assert!(matches!(rig.events()[..], [NicEvent::Ready { mtu: 1500, .. }]));
    rig.nic.transmit(&frame(60, 1)).unwrap();
    rig.nic.flush();
    rig.settle();
    assert_eq!(rig.got.len(), 1);
}

#[test]
fn what_the_owner_set_stays_and_what_the_host_said_does_not() {
    let mut rig = ready();
    let address = crate::mac::MacAddress([2, 0, 0, 0, 0, 9]);
    rig.nic.set_packet_filter(PacketFilter::PROMISCUOUS, rig.now).unwrap();
    rig.nic.set_mac(address, rig.now).unwrap();
    rig.associate(true, 7);
    rig.settle();
    rig.nic.switch_data_path(Path::Vf, rig.now);
    rig.settle();
    stop(&mut rig);
    let sent = rig.nic.stats().tx_frames;
    rig.versions = vec![Version::V5];
    rig.restart().unwrap();
    let info = rig.nic.info();
    assert_eq!((info.version, info.association, info.path), (None, None, Path::Synthetic));
    rig.settle();
    let config = rig.nic.config();
    assert_eq!((config.filter, config.address), (PacketFilter::PROMISCUOUS, Some(address)));
    let filters: std::vec::Vec<_> =
        rig.asked.iter().filter(|asked| asked.1 == Some(Oid::CURRENT_PACKET_FILTER)).collect();
    assert_eq!((filters.len(), &filters[0].2[..]), (1, &[0x20, 0, 0, 0][..]));
    let info = rig.nic.info();
    assert_eq!((info.version, rig.nic.stats().tx_frames), (Some(Version::V5), sent));
    assert!(rig.asked.iter().any(|asked| asked.1 == Some(Oid::CONFIG_PARAMETER)));
}

// HISTORY 36: after a pause of the guest the path is synthetic, and the function that stayed is named anew, so that its
// owner hears of it and switches when its link is up.
#[test]
fn after_a_pause_the_path_is_synthetic_until_it_is_switched_again() {
    let mut rig = ready();
    rig.associate(true, 7);
    rig.nic.switch_data_path(Path::Vf, rig.now);
    rig.settle();
    assert_eq!(rig.nic.info().path, Path::Vf);
    stop(&mut rig);
    rig.restart().unwrap();
    rig.settle();
    assert_eq!(rig.nic.info().path, Path::Synthetic);
    assert!(matches!(rig.events()[..], [NicEvent::Ready { .. }]));
    rig.associate(true, 7);
    rig.settle();
    assert_eq!(rig.events(), [NicEvent::Associated { serial: Serial(7) }]);
    let switched = rig.said.iter().any(|said| matches!(said, GuestMessage::SwitchDataPath(_)));
    assert!(!switched, "the owner decides when");
}

// HISTORY 9: frames that the host never completes do not keep a NIC from going down.
#[test]
fn completions_that_never_come_can_be_given_up() {
    let mut rig = ready();
    rig.held.frames = true;
    rig.nic.transmit(&frame(60, 1)).unwrap();
    rig.nic.flush();
    rig.settle();
    rig.nic.shutdown(rig.now);
    rig.settle();
    rig.pass(NicConfig::default().deadline);
    assert_eq!(rig.events(), [NicEvent::Overdue { step: Step::Drain }]);
    rig.said.clear();
    rig.nic.abandon(rig.now);
    rig.settle();
    assert_eq!(rig.events(), [NicEvent::Stopped]);
    assert_eq!(
        rig.said,
        [
            GuestMessage::RevokeReceiveBuffer { id: 0xcafe },
            GuestMessage::RevokeSendBuffer { id: 0 }
        ]
    );
    let stats = rig.nic.stats();
    assert_eq!(stats.tx_messages - stats.tx_completed, 1);
    // A completion that comes after all changes nothing, and another life is another life.
    let id = rig.waiting.pop_front().unwrap();
    rig.complete_send(id, Status::SUCCESS);
    rig.settle();
    rig.held.frames = false;
    rig.restart().unwrap();
    rig.settle();
    assert!(matches!(rig.events()[..], [NicEvent::Ready { .. }]));
    assert_eq!(rig.nic.stats().bad.total(), 0);
}

#[test]
fn a_host_that_does_not_read_its_ring_does_not_keep_a_nic_from_going_down() {
    let mut rig = ready();
    fill(&mut rig);
    rig.events();
    rig.nic.abandon(rig.now);
    assert_eq!(rig.events(), [NicEvent::Stopped]);
    rig.said.clear();
    rig.serve();
    let revokes = |said: &GuestMessage| {
        matches!(
            said,
            GuestMessage::RevokeReceiveBuffer { .. } | GuestMessage::RevokeSendBuffer { .. }
        )
    };
    assert!(!rig.said.iter().any(revokes), "there was no room to say so");
    rig.restart().unwrap();
    rig.settle();
    assert!(matches!(rig.events()[..], [NicEvent::Ready { .. }]));
}

#[test]
fn a_nic_is_given_up_from_anywhere() {
    for polls in 0..12 {
        let mut rig = rig();
        for _ in 0..polls {
            rig.serve();
            rig.poll();
        }
        rig.nic.abandon(rig.now);
        let events = rig.events();
        assert_eq!(events.last(), Some(&NicEvent::Stopped), "after {polls}");
        rig.serve();
        rig.restart().unwrap();
        rig.settle();
        assert!(matches!(rig.events()[..], [NicEvent::Ready { .. }]), "after {polls}");
    }
}

#[test]
fn every_version_from_beginning_to_end() {
    for version in Version::ALL {
        let mut rig = rig();
        rig.versions = vec![version];
        rig.settle();
        assert!(
            matches!(rig.events()[..], [NicEvent::Ready { version: agreed, .. }] if agreed == version)
        );
        let inits: std::vec::Vec<_> = rig
            .said
            .iter()
            .filter_map(|said| match said {
                GuestMessage::Init { min, max } => Some((*min, *max)),
                _ => None,
            })
            .collect();
        let newer = Version::ALL.iter().position(|known| *known == version).unwrap();
        let asked: std::vec::Vec<_> =
            Version::ALL[..=newer].iter().map(|asked| (*asked, *asked)).collect();
        assert_eq!(inits, asked, "newest first, one at a time");
        let config = rig.said.iter().find_map(|said| match said {
            GuestMessage::NdisConfig { capabilities, .. } => Some(*capabilities),
            _ => None,
        });
        assert_eq!(config.is_some(), version >= Version::V2, "{version}");
        let can = |bit| config.unwrap_or_default().contains(bit);
        assert_eq!(can(Capabilities::SRIOV), version >= Version::V5);
        assert_eq!(can(Capabilities::TEAMING), version >= Version::V5);
        assert_eq!(can(Capabilities::IEEE8021Q), version >= Version::V2);
        let ndis = if version >= Version::V5 { (6, 30) } else { (6, 1) };
        let (major, minor) = ndis;
        assert!(rig.said.contains(&GuestMessage::NdisVersion { major, minor }));
        rig.nic.transmit(&frame(60, 1)).unwrap();
        rig.nic.flush();
        rig.send_frames(&[&frame(70, 2)], None);
        rig.settle();
        assert_eq!((rig.got.len(), rig.received.len()), (1, 1));
        stop(&mut rig);
        rig.restart().unwrap();
        rig.settle();
        assert!(rig.nic.info().ready);
    }
}

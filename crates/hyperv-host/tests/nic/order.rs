//! Things that come in the middle of others: a NIC that is taken away at every step, begun anew with its queues, reset.

use std::time::Duration;

use hyperv_host::nic::{NicServiceConfig, NicServiceEvent, ResetAnswer};
use netvsc::nvsp::{HostMessage, Version};
use netvsc::{NicConfig, NicEvent, Path};
use vmbus::Serial;
use vmbus::packet::{Outgoing, PacketKind};

use crate::world::*;

/// Frames go both ways, on the primary channel.
fn check_traffic(world: &mut World) {
    world.at_peer.clear();
    world.received.clear();
    let (out, back) = (frame(PEER, MAC, 300, 1), frame(MAC, PEER, 400, 2));
    world.nic.transmit(&out).unwrap();
    world.nic.flush();
    world.peer_sends(&back);
    world.settle();
    assert_eq!((&world.at_peer[..], &world.received[..]), (&[out][..], &[back][..]));
}

#[test]
fn a_nic_that_is_taken_away_at_any_step_of_start_up_comes_back_whole() {
    for version in [Version::V6_1, Version::V5, Version::V4, Version::V2, Version::V1] {
        let mut steps = 0;
        loop {
            let mut world = world(NicConfig::default(), &ROOMY, &[version]);
            let taken = (0..steps).filter(|_| world.step()).count();
            let up = world.ready;
            world.reopen(NicConfig::default(), &ROOMY);
            world.settle();
            assert!(world.ready, "version {version}, after {taken} steps");
            check_traffic(&mut world);
            let counters = world.service.counters();
            assert_eq!((counters.failed, counters.lent), (0, 0), "after {taken} steps");
            if up {
                break;
            }
            steps += 1;
        }
        assert!(steps > 6, "{steps} steps only");
    }
}

#[test]
fn a_nic_that_is_taken_away_at_any_step_of_a_switch_comes_back_on_the_synthetic_path() {
    for steps in 0.. {
        let mut world = ready();
        world.host(|service, now| service.vf_added(Serial(7), now));
        world.nic.switch_data_path(Path::Vf, world.now);
        let taken = (0..steps).filter(|_| world.step()).count();
        world.reopen(NicConfig::default(), &ROOMY);
        assert_eq!(world.service.data_path(), Path::Synthetic, "after {taken} steps");
        world.settle();
        let told = NicEvent::Associated { serial: Serial(7) };
        let tellings = world.events.iter().filter(|event| **event == told).count();
        assert!(world.ready && tellings == 1, "the function is still there: {:?}", world.events);
        assert_eq!(world.nic.info().path, Path::Synthetic);
        check_traffic(&mut world);
        world.nic.switch_data_path(Path::Vf, world.now);
        world.settle();
        assert_eq!(world.service.data_path(), Path::Vf);
        if taken < steps {
            assert!(steps > 2);
            return;
        }
    }
}

/// A NIC with three sub-channels, all open.
fn with_queues(config: NicServiceConfig) -> World {
    let guest = NicConfig { queues: 4, ..NicConfig::default() };
    let mut world = world_with(guest, &Sizes { ring: 33, receive: 256, send: 128 }, config);
    world.settle();
    open_queues(&mut world);
    world
}

fn open_queues(world: &mut World) {
    world.nic.request_queues(3, world.now).unwrap();
    world.settle();
    assert_eq!(world.host_events.pop(), Some(NicServiceEvent::OfferSubChannels { count: 3 }));
    (1..=3).for_each(|number| world.add_queue(number, 17));
    world.events.clear();
}

/// A frame on each sub-channel.
fn check_queues(world: &mut World) {
    world.at_peer.clear();
    assert_eq!((world.nic.info().queues, world.queues.len()), (4, 3));
    for queue in &mut world.queues {
        queue.transmit(&frame(PEER, MAC, 200, queue.number() as u8)).unwrap();
        queue.flush();
    }
    world.poll_host();
    world.settle();
    assert_eq!(world.at_peer.len(), 3);
    assert!(world.queues.iter().all(|queue| queue.is_idle() && queue.stats().sent.total() == 0));
}

#[test]
fn queues_go_with_the_channel_and_are_asked_for_again_after_a_pause() {
    let mut world = with_queues(NicServiceConfig::new(MAC));
    check_queues(&mut world);
    world.host(|service, now| service.vf_added(Serial(7), now));
    world.nic.switch_data_path(Path::Vf, world.now);
    world.settle();
    world.nic.shutdown(world.now);
    world.settle();
    assert_eq!(world.events.back(), Some(&NicEvent::Stopped));
    assert_eq!(world.service.data_path(), Path::Synthetic, "back before the end");
    world.restart(&Sizes { ring: 33, receive: 256, send: 128 });
    world.settle();
    assert!(world.nic.info().ready);
    assert_eq!((world.nic.info().queues, world.nic.info().send_table), (1, None));
    assert!(world.events.contains(&NicEvent::Associated { serial: Serial(7) }));
    open_queues(&mut world);
    check_queues(&mut world);
    check_traffic(&mut world);
    let counters = world.service.counters();
    assert_eq!((counters.leaked, counters.lent, counters.failed), (0, 0, 0));
}

#[test]
fn a_reset_leaves_queues_and_path_as_they_are() {
    let mut config = NicServiceConfig::new(MAC);
    config.policy.reset = ResetAnswer::Complete;
    let mut world = with_queues(config);
    world.host(|service, now| service.vf_added(Serial(7), now));
    world.nic.switch_data_path(Path::Vf, world.now);
    world.settle();
    world.events.clear();
    world.nic.reset(world.now).unwrap();
    world.settle();
    assert!(matches!(world.events.front(), Some(NicEvent::Reset { .. })), "{:?}", world.events);
    assert_eq!((world.service.data_path(), world.nic.info().path), (Path::Vf, Path::Vf));
    assert_eq!(world.nic.info().association, Some(Serial(7)));
    world.nic.switch_data_path(Path::Synthetic, world.now);
    world.settle();
    check_queues(&mut world);
    check_traffic(&mut world);
    assert_eq!(world.service.counters().failed, 0);
}

#[test]
fn a_host_whose_network_starts_anew_completes_everything_and_the_path_stays() {
    for path in [Path::Synthetic, Path::Vf] {
        let mut world = ready();
        world.host(|service, now| service.vf_added(Serial(7), now));
        world.nic.switch_data_path(path, world.now);
        world.settle();
        for seed in 0..20 {
            world.nic.transmit(&frame(PEER, MAC, 700, seed)).unwrap();
        }
        world.nic.flush();
        world.service.restart_endpoint();
        world.poll_host();
        world.settle();
        let (stats, counters) = (world.nic.stats(), world.service.counters());
        assert_eq!((stats.tx_completed, stats.sent.total()), (stats.tx_messages, 0), "{path}");
        assert_eq!((counters.restarts, world.service.data_path()), (1, path));
        world.nic.switch_data_path(Path::Synthetic, world.now);
        world.settle();
        check_traffic(&mut world);
    }
}

// HISTORY 15: a host that is slow to offer channels holds nothing else up.
#[test]
fn an_association_is_heard_while_channels_are_still_to_be_offered() {
    let mut config = NicServiceConfig::new(MAC);
    config.policy.sub_channel_delay = Duration::from_secs(10);
    let guest = NicConfig { queues: 4, ..NicConfig::default() };
    let mut world = world_with(guest, &Sizes { ring: 33, receive: 256, send: 128 }, config);
    world.settle();
    world.events.clear();
    world.nic.request_queues(3, world.now).unwrap();
    world.service.vf_added(Serial(7), world.now);
    while world.step() {}
    assert!(world.events.contains(&NicEvent::Associated { serial: Serial(7) }));
    let offer = NicServiceEvent::OfferSubChannels { count: 3 };
    assert!(!world.host_events.contains(&offer), "that comes in ten seconds");
    world.nic.switch_data_path(Path::Vf, world.now);
    while world.step() {}
    assert_eq!((world.service.data_path(), world.nic.info().path), (Path::Vf, Path::Vf));
    assert!(!world.host_events.contains(&offer));
    world.settle();
    assert!(world.host_events.contains(&offer));
}

// HISTORY section 6 item 4: what the host says of VFs it says on the primary channel.
#[test]
fn an_association_on_a_sub_channel_counts_for_nobody() {
    let guest = NicConfig { queues: 2, ..NicConfig::default() };
    let mut world = world_with(guest, &ROOMY, NicServiceConfig::new(MAC));
    world.settle();
    world.nic.request_queues(1, world.now).unwrap();
    world.settle();
    let (mut host, guest) = world.channel(17);
    let mut queue = world.nic.add_queue(1, guest).unwrap();
    world.events.clear();
    let said = HostMessage::VfAssociation { allocated: true, serial: Serial(9) };
    let payload = said.encode(Version::V6_1);
    let packet = Outgoing::InBand { transaction_id: 5, completion: true, payload: &payload };
    host.try_send(&packet).unwrap();
    queue.poll(&mut |_| panic!("it is no frame")).unwrap();
    world.poll_guest();
    assert!(world.events.is_empty(), "{:?}", world.events);
    assert_eq!((world.nic.info().association, queue.stats().bad.unexpected), (None, 1));
    let mut buffer = [0; 64];
    let answer = host.receive(&mut buffer).unwrap().expect("an answer");
    assert!(matches!(answer.kind, PacketKind::Completion), "{answer:?}");
    assert_eq!(answer.transaction_id, 5);
}

// HISTORY 13: whatever queue a VF with more of them would choose, the NIC has it.
#[test]
fn every_hash_leads_to_a_channel_that_there_is() {
    let mut world = with_queues(NicServiceConfig::new(MAC));
    for removed_from in [4, 2, 1] {
        world.nic.queues_removed(removed_from);
        let info = world.nic.info();
        assert!(info.send_table.is_some() && info.queues == removed_from);
        for hash in (0..64).chain([u32::MAX, 0x8000_0000]) {
            assert!(info.send_queue(hash) < removed_from, "hash {hash:#x} of {removed_from}");
        }
    }
}

//! Version 6.0 with its features, sub-channels, other processors for signals, and coming back.

use std::sync::Arc;
use std::time::Duration;

use vmbus::bus::{
    Bus, BusConfig, Error, Event, OpenOptions, PostRetry, PostStatus, PostVerdict, SignalParameters,
};
use vmbus::message::{Features, MessageType, Version};
use vmbus::{ConnectionId, Guid, Instant, Platform};

use super::world::{Habit, RING_PAGES, World, spec};
use crate::bus::{BusEvent, BusPolicy, BusServer};
use crate::memory::GuestRam;

fn newest(features: Features, accepted: Features) -> World {
    let policy = BusPolicy {
        versions: Version::ALL.to_vec(),
        features: accepted,
        monitor_ids: true,
        server_monitor_pages: (0x1000, 0x2000),
        ..BusPolicy::default()
    };
    let mut world = World::new(&Version::ALL, policy, Habit::Watch);
    let config = BusConfig {
        versions: Version::ALL.to_vec(),
        features,
        client_id: Guid::from_u128(0x77),
        monitor_pages: Some(world.ram.allocate(2).unwrap()),
        ..BusConfig::default()
    };
    world.bus = Bus::new(config);
    world.bus.start(Instant::ZERO).unwrap();
    world
}

#[test]
fn guest_and_host_agree_on_the_features_both_know() {
    for accepted in [Features::empty(), Features::MODIFY_CONNECTION, Features::all()] {
        for asked in [Features::empty(), Features::CLIENT_ID, Features::all()] {
            let mut world = newest(asked, accepted);
            let contact = world.bus.poll_outgoing().unwrap();
            assert_eq!(contact.payload.len(), if asked.is_empty() { 40 } else { 56 });
            world.bus.put_back(contact);
            world.post_one();
            let answer = world.host.poll_message().unwrap();
            let server = (asked & accepted).contains(Features::SERVER_MONITOR_PAGES);
            assert_eq!(answer.len(), if server { 40 } else { 20 });
            world.bus.handle_message(&answer, world.now).unwrap();
            world.run();
            assert_eq!(world.bus.version(), Some(Version::V6_0));
            assert_eq!(world.bus.features(), asked & accepted);
            assert_eq!(world.host.features(), asked & accepted);
            assert_eq!(world.bus.host_monitor_pages(), server.then_some((0x1000, 0x2000)));
            let client = asked.contains(Features::CLIENT_ID).then_some(Guid::from_u128(0x77));
            assert_eq!(world.host.client_id(), client);
        }
    }
}

#[test]
fn channels_get_numbers_in_the_monitor_pages_of_the_guest() {
    let mut world = newest(Features::empty(), Features::all());
    let device = world.host.offer(spec(1), world.now);
    world.run();
    assert!(world.host.monitor_pages().is_some());
    assert_eq!(world.host.monitor(device), Some(0));
    assert_eq!(world.drivers.values().next().unwrap().offer.monitor, Some(0));
}

#[test]
fn the_guest_chooses_how_a_channel_is_signalled() {
    let mut world = newest(Features::GUEST_SIGNAL_PARAMETERS, Features::all());
    let device = world.host.offer(spec(1), world.now);
    world.run();
    let channel = *world.drivers.keys().next().unwrap();
    let rings = world.ram.allocate(RING_PAGES).unwrap();
    let signal = SignalParameters {
        connection: ConnectionId(0x999),
        event_flag: 77,
        redirect_interrupt: false,
    };
    let options = OpenOptions {
        downstream_page: RING_PAGES as u32 / 2,
        target_vp: 3,
        signal: Some(signal),
        ..OpenOptions::default()
    };
    let _end = super::world::guest_end(&rings, &vmbus::SignalFlag::new());
    world.bus.open_with(channel, &rings, options, world.now).unwrap();
    world.run();
    assert_eq!(world.host.signalled(ConnectionId(0x999)), Some(device));
    assert_eq!(world.host.event_flag(device), Some(77));
    assert_eq!(world.host.target_vp(device), Some(3));
    let redirected = SignalParameters { redirect_interrupt: true, ..signal };
    let options = OpenOptions { signal: Some(redirected), ..options };
    world.bus.close(channel, world.now).unwrap();
    world.run();
    let refused = world.bus.open_with(channel, &rings, options, world.now);
    assert!(matches!(refused, Err(Error::NoFeature { .. })));
}

#[test]
fn monitor_pages_change_and_messages_pause_where_agreed() {
    let mut world = newest(Features::all(), Features::all());
    world.run();
    let pages = world.ram.allocate(2).unwrap();
    world.bus.modify_connection(Some(&pages), world.now).unwrap();
    let again = world.bus.modify_connection(None, world.now);
    assert!(matches!(again, Err(Error::UnderWay { .. })));
    world.run();
    assert_eq!(world.guest_log.last(), Some(&Event::ConnectionModified { state: 0 }));
    assert_eq!(
        world.host.monitor_pages(),
        Some((pages.frames()[0].0 * 4096, pages.frames()[1].0 * 4096,))
    );
    world.bus.pause(world.now).unwrap();
    world.run();
    assert_eq!(world.guest_log.last(), Some(&Event::Paused));
    world.host.offer(spec(9), world.now);
    world.run();
    assert!(world.drivers.is_empty());
    world.bus.unpause().unwrap();
    world.run();
    assert_eq!(world.drivers.len(), 1);
    let mut old = World::usual();
    old.run();
    assert!(matches!(old.bus.pause(old.now), Err(Error::NoFeature { .. })));
}

/// A world with an open primary channel and two open sub-channels.
fn family(policy: BusPolicy) -> (World, crate::bus::DeviceId) {
    let mut world = World::new(&Version::RECOMMENDED, policy, Habit::Stay { pages: 4 });
    world.bus.start(Instant::ZERO).unwrap();
    let primary = world.host.offer(spec(1), world.now);
    world.run();
    assert_eq!(world.host.offer_sub_channels(primary, 2, world.now).len(), 2);
    world.run();
    assert_eq!(world.services.len(), 3);
    (world, primary)
}

#[test]
fn sub_channels_belong_to_their_primary_and_close_before_it() {
    let (mut world, _) = family(BusPolicy::default());
    let primary = world.bus.primary(Guid::from_u128(1)).unwrap();
    let subs = world.bus.sub_channels(primary);
    assert_eq!(subs.len(), 2);
    assert!(subs.iter().all(|sub| world.bus.primary_of(*sub) == Some(primary)));
    let before = world.guest_log.len();
    world.bus.close(primary, world.now).unwrap();
    world.run();
    let closed: Vec<_> = world.guest_log[before..]
        .iter()
        .filter_map(|event| match event {
            Event::Closed { channel } => Some(*channel),
            _ => None,
        })
        .collect();
    assert_eq!(closed, [subs[0], subs[1], primary]);
    assert!(world.bus.sub_channels(primary).is_empty(), "they go with the open channel");
    world.drivers.clear();
    world.assert_clean();
}

#[test]
fn sub_channels_may_go_before_or_after_their_primary() {
    for primary_first in [false, true] {
        let (mut world, device) = family(BusPolicy { primary_first, ..BusPolicy::default() });
        world.host.rescind(device, world.now);
        world.run();
        assert_eq!(world.released(), 3);
        world.assert_clean();
    }
}

#[test]
fn another_processor_is_asked_for_once_at_a_time_from_5_3_on() {
    let mut world = World::usual();
    let device = world.host.offer(spec(1), world.now);
    world.run();
    let channel = *world.drivers.keys().next().unwrap();
    for target in [1, 2, 3] {
        world.bus.retarget(channel, target, world.now).unwrap();
    }
    let post = world.bus.poll_outgoing().unwrap();
    assert_eq!(world.bus.poll_outgoing(), None, "never two at a time");
    world.bus.put_back(post);
    world.run();
    assert_eq!(world.host.target_vp(device), Some(3));
    let answered = world.guest_log.iter().filter_map(|event| match event {
        Event::Retargeted { target_vp, .. } => Some(*target_vp),
        _ => None,
    });
    let answered: Vec<_> = answered.collect();
    assert_eq!(answered, [1, 3], "of the wishes between, the newest");
}

#[test]
fn unposted_wishes_for_a_processor_are_replaced_before_5_3_and_refused_before_4_1() {
    for (version, known) in [(Version::V5_0, true), (Version::V4_1, true), (Version::V4_0, false)] {
        let mut world = World::new(&[version], BusPolicy::default(), Habit::Stay { pages: 1 });
        world.bus.start(world.now).unwrap();
        let device = world.host.offer(spec(1), world.now);
        world.run();
        let channel = *world.drivers.keys().next().unwrap();
        let first = world.bus.retarget(channel, 1, world.now);
        assert_eq!(first.is_ok(), known);
        if known {
            world.bus.retarget(channel, 2, world.now).unwrap();
            let post = world.bus.poll_outgoing().unwrap();
            assert_eq!(post.payload.kind(), MessageType::MODIFY_CHANNEL);
            assert_eq!(world.bus.poll_outgoing(), None);
            world.bus.put_back(post);
            world.run();
            assert_eq!(world.host.target_vp(device), Some(2));
            assert_eq!(world.bus.poll_deadline(), None, "nobody answers");
        }
    }
}

#[test]
fn a_suspended_guest_comes_back_with_the_same_version_and_finds_its_devices() {
    let mut world = World::usual();
    world.host.offer(spec(5), world.now);
    world.run();
    let before = world.bus.primary(Guid::from_u128(5)).unwrap();
    world.bus.unload(world.now).unwrap();
    world.run();
    world.assert_clean();
    // The host learned newer versions meanwhile; the guest does not ask for them.
    world.host.policy_mut().versions = Version::ALL.to_vec();
    world.bus.restart(world.now).unwrap();
    world.run();
    assert_eq!(world.bus.version(), Some(Version::V5_3));
    assert_ne!(world.bus.primary(Guid::from_u128(5)), Some(before), "ids change");
    assert!(world.bus.primary(Guid::from_u128(5)).is_some());
    // Where the host has forgotten the version, there is no other.
    world.bus.unload(world.now).unwrap();
    world.run();
    world.host.policy_mut().versions = vec![Version::V5_2];
    world.bus.restart(world.now).unwrap();
    world.run();
    assert!(matches!(world.guest_log.last(), Some(Event::ContactFailed(_))));
}

#[test]
fn isolated_guests_ask_for_nothing_before_5_2_and_share_no_monitor_pages() {
    let ram = GuestRam::new(3, 64);
    let config = BusConfig {
        isolated: true,
        monitor_pages: Some(ram.allocate(2).unwrap()),
        ..BusConfig::default()
    };
    let mut bus = Bus::new(config);
    let policy = BusPolicy { versions: vec![Version::V5_0], ..BusPolicy::default() };
    let mut host = BusServer::new(policy, Arc::new(ram));
    let now = Instant::ZERO;
    bus.start(now).unwrap();
    let mut asked = Vec::new();
    while let Some(post) = bus.poll_outgoing() {
        asked.push(u32::from_le_bytes(post.payload[8..12].try_into().unwrap()));
        assert_eq!(post.payload[24..40], [0; 16]);
        host.handle_message(post.connection, &post.payload, now).unwrap();
        bus.handle_message(&host.poll_message().unwrap(), now).unwrap();
    }
    assert_eq!(asked, [Version::V5_3.0, Version::V5_2.0]);
    assert!(matches!(bus.poll_event(), Some(Event::ContactFailed(_))));
}

#[test]
fn posts_that_fail_for_now_are_tried_again_with_growing_delay() {
    let ram = GuestRam::new(3, 64);
    let failures = [
        PostStatus::INSUFFICIENT_BUFFERS,
        PostStatus::INSUFFICIENT_MEMORY,
        PostStatus::INSUFFICIENT_BUFFERS,
    ];
    let policy = BusPolicy { post_failures: failures.into(), ..BusPolicy::default() };
    let mut host = BusServer::new(policy, Arc::new(ram));
    let mut bus = Bus::new(BusConfig::default());
    let mut retry = PostRetry::default();
    let mut now = Instant::ZERO;
    bus.start(now).unwrap();
    let mut waits = Vec::new();
    while let Some(post) = bus.poll_outgoing() {
        match retry.result(host.post(post.connection, &post.payload, now), false, now) {
            PostVerdict::Sent => {}
            PostVerdict::RetryAt(at) => {
                bus.put_back(post);
                assert!(!retry.ready(now) && retry.poll_deadline() == Some(at));
                waits.push(at - now);
                now = at;
            }
            PostVerdict::GiveUp(status) => panic!("{status}"),
        }
    }
    assert_eq!(waits, [1, 2, 4].map(Duration::from_micros));
    assert!(matches!(host.poll_event(), Some(BusEvent::Connected { .. })));
    // Without a connection, a missing one is the end; with one, it is passing. And all tries end.
    let missing = PostStatus::INVALID_CONNECTION_ID;
    assert_eq!(retry.result(missing, false, now), PostVerdict::GiveUp(missing));
    for _ in 0..99 {
        assert!(matches!(retry.result(missing, true, now), PostVerdict::RetryAt(_)));
    }
    assert_eq!(retry.result(missing, true, now), PostVerdict::GiveUp(missing));
}

//! Version 6.0 with its features, sub-channels, other processors for signals, and coming back.

use std::sync::Arc;
use std::time::Duration;

use vmbus::bus::{
    Bus, BusConfig, Error, Event, OpenOptions, PostRetry, PostStatus, PostVerdict, SignalParameters,
};
use vmbus::memory::SharedPages;
use vmbus::message::{
    CloseChannel, Features, MessageError, MessageType, OfferFlags, Payload, Version,
};
use vmbus::{ChannelId, ConnectionId, Guid, Instant, Platform};
use zerocopy::little_endian::U32;

use super::world::{Habit, RING_PAGES, World, spec};
use crate::bus::{BusEvent, BusPolicy, BusServer, DeviceId, DeviceState, GuestError, OfferSpec};
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

/// A world of version 6.0 with these features and one device, not opened yet; rings for it, with their guest's end.
fn with_rings(features: Features) -> (World, DeviceId, ChannelId, SharedPages) {
    let mut world = newest(features, Features::all());
    let device = world.host.offer(spec(1), world.now);
    world.run();
    let channel = *world.drivers.keys().next().unwrap();
    let rings = world.ram.allocate(RING_PAGES).unwrap();
    let _end = super::world::guest_end(&rings, &vmbus::SignalFlag::new());
    (world, device, channel, rings)
}

const OPEN: OpenOptions = OpenOptions {
    downstream_page: RING_PAGES as u32 / 2,
    target_vp: 3,
    user_data: [0; 120],
    signal: None,
    redirect_interrupt: false,
};
const CHOICE: SignalParameters =
    SignalParameters { connection: ConnectionId(0x999), event_flag: 77 };

#[test]
fn the_guest_chooses_how_a_channel_is_signalled() {
    let (mut world, device, channel, rings) = with_rings(Features::GUEST_SIGNAL_PARAMETERS);
    let options = OpenOptions { signal: Some(CHOICE), ..OPEN };
    world.bus.open_with(channel, &rings, options, world.now).unwrap();
    world.run();
    assert_eq!(world.host.signalled(ConnectionId(0x999)), Some(device));
    assert_eq!(world.host.event_flag(device), Some(77));
    assert_eq!(world.host.target_vp(device), Some(3));
    assert!(!world.host.interrupt_redirected(device));
    world.bus.close(channel, world.now).unwrap();
    world.run();
    assert_eq!(world.host.signalled(ConnectionId(0x999)), None);
    let redirected = OpenOptions { redirect_interrupt: true, ..options };
    let refused = world.bus.open_with(channel, &rings, redirected, world.now);
    let (needed, accepted) = (Features::LONG_OPEN, Features::GUEST_SIGNAL_PARAMETERS);
    assert_eq!(refused, Err(Error::NoFeature { needed, accepted }));
}

#[test]
fn an_interrupt_is_redirected_also_where_nothing_else_may_be_chosen() {
    let (mut world, device, channel, rings) = with_rings(Features::INTERRUPT_REDIRECTION);
    let options = OpenOptions { redirect_interrupt: true, ..OPEN };
    world.bus.open_with(channel, &rings, options, world.now).unwrap();
    world.run();
    assert!(world.host.interrupt_redirected(device));
    assert_eq!(world.host.event_flag(device), Some(channel.0 as u16), "what the offer says");
    world.bus.close(channel, world.now).unwrap();
    world.run();
    let chosen = OpenOptions { signal: Some(CHOICE), ..OPEN };
    let refused = world.bus.open_with(channel, &rings, chosen, world.now);
    assert!(matches!(refused, Err(Error::NoFeature { .. })));
}

#[test]
fn an_open_that_waits_for_the_device_to_stop_keeps_its_signal_parameters() {
    let (mut world, device, channel, rings) = with_rings(Features::LONG_OPEN);
    world.slow_services = true;
    world.bus.open_with(channel, &rings, OPEN, world.now).unwrap();
    while world.post_one() || world.answer_one() {}
    let connection = world.host.policy_mut().connection;
    let mut long = [0; 156];
    long[0] = 5;
    let words = [channel.0, channel.0, 0xe1e10, 9, RING_PAGES as u32 / 2];
    for (at, word) in words.into_iter().enumerate() {
        long[8 + 4 * at..][..4].copy_from_slice(&word.to_le_bytes());
    }
    long[148..].copy_from_slice(&[0x99, 9, 0, 0, 77, 0, 1, 0]);
    let close = Payload::new(&CloseChannel { channel: U32::new(channel.0) });
    world.host.handle_message(connection, &close, world.now).unwrap();
    // Without its last byte it is no open of this connection.
    let error = world.host.handle_message(connection, &long[..155], world.now).unwrap_err();
    let kind = MessageType::OPEN_CHANNEL;
    assert_eq!(error, MessageError::TooShort { kind, len: 155, need: 156 }.into());
    world.host.handle_message(connection, &long, world.now).unwrap();
    assert_eq!(world.host.event_flag(device), Some(channel.0 as u16), "not before it opens");
    world.host_events();
    world.stop_one();
    assert_eq!(world.host.state(device), Some(DeviceState::Open));
    assert_eq!(world.host.event_flag(device), Some(77));
    assert_eq!(world.host.signalled(ConnectionId(0x999)), Some(device));
    assert!(world.host.interrupt_redirected(device));
    assert_eq!(world.host.target_vp(device), Some(9));
}

#[test]
fn offers_say_what_memory_they_need_only_where_that_is_agreed_on() {
    let special = OfferFlags::CONFIDENTIAL_RING
        | OfferFlags::CONFIDENTIAL_EXTERNAL_MEMORY
        | OfferFlags::REQUIRE_PINNED_MEMORY;
    let pinned = OfferFlags::REQUIRE_PINNED_MEMORY;
    for (features, told) in [
        (Features::empty(), OfferFlags::empty()),
        (Features::CONFIDENTIAL_CHANNELS, special - pinned),
        (Features::GPADL_PINNING, pinned),
        (Features::all(), special),
    ] {
        let mut world = newest(features, Features::all());
        let usual = OfferFlags::ENUMERATE_INTERFACE;
        world.host.offer(OfferSpec { flags: usual | special, ..spec(1) }, world.now);
        world.run();
        assert_eq!(world.drivers.values().next().unwrap().offer.flags, usual | told);
    }
}

#[test]
fn what_a_device_says_to_its_driver_arrives_with_every_offer() {
    // A pipe of messages, with bytes of its own behind the mode.
    let mut user_defined = [0; 120];
    (user_defined[0], user_defined[4], user_defined[119]) = (4, 0xaa, 0xbb);
    let flags = OfferFlags::ENUMERATE_INTERFACE | OfferFlags::NAMED_PIPE;
    let mut world = World::usual();
    let primary = world.host.offer(OfferSpec { flags, user_defined, ..spec(1) }, world.now);
    world.host.offer(spec(2), world.now);
    world.run();
    world.host.offer_sub_channels(primary, 1, world.now);
    world.run();
    let told = |world: &World, instance, sub_channel| {
        let mut drivers = world.drivers.values().map(|driver| &driver.offer);
        let of = |offer: &&vmbus::bus::Offer| {
            offer.instance == Guid::from_u128(instance) && offer.sub_channel == sub_channel
        };
        drivers.find(of).map(|offer| offer.user_defined)
    };
    assert_eq!(told(&world, 1, 0), Some(user_defined));
    assert_eq!(told(&world, 1, 1), Some(user_defined), "and with that of a sub-channel");
    assert_eq!(told(&world, 2, 0), Some([0; 120]));
}

#[test]
fn monitor_pages_that_the_host_refuses_are_not_told_again() {
    let mut world = newest(Features::MODIFY_CONNECTION, Features::all());
    world.run();
    let first = world.host.monitor_pages().unwrap();
    world.host.policy_mut().modify_connection_state = 1;
    let pages = world.ram.allocate(2).unwrap();
    world.bus.modify_connection(Some(&pages), world.now).unwrap();
    drop(pages);
    assert_eq!(world.ram.allocated(), 4, "the host may write to either");
    world.run();
    assert_eq!(world.guest_log.last(), Some(&Event::ConnectionModified { state: 1 }));
    assert_eq!(world.ram.allocated(), 2, "refused pages are the guest's");
    assert_eq!(world.host.monitor_pages(), Some(first));
    world.bus.unload(world.now).unwrap();
    world.run();
    world.bus.start(world.now).unwrap();
    world.run();
    assert_eq!(world.host.monitor_pages(), Some(first), "those that were agreed on");
    // An answer that never comes leaves both with the host until the connection has ended.
    world.host.policy_mut().withheld = vec![MessageType::MODIFY_CONNECTION_RESPONSE];
    let pages = world.ram.allocate(2).unwrap();
    world.bus.modify_connection(Some(&pages), world.now).unwrap();
    drop(pages);
    world.run();
    assert_eq!(world.ram.allocated(), 4);
    world.bus.unload(world.now).unwrap();
    world.run();
    assert_eq!(world.ram.allocated(), 2, "what is configured for the next contact");
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
fn family(policy: BusPolicy) -> (World, DeviceId) {
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
fn sub_channels_offered_as_their_primary_closes_are_nobodys_mistake() {
    let (mut world, device) = family(BusPolicy::default());
    let primary = world.bus.primary(Guid::from_u128(1)).unwrap();
    let offers = world.guest_log.iter().filter(|event| matches!(event, Event::Offered(_))).count();
    world.bus.close(primary, world.now).unwrap();
    assert_eq!(world.host.offer_sub_channels(device, 2, world.now).len(), 2);
    // Offers that are not wrong pass the world's own checks.
    world.run();
    let after = world.guest_log.iter().filter(|event| matches!(event, Event::Offered(_))).count();
    assert_eq!((after, world.bus.stats().bad_offers), (offers, 0), "nobody hears of them");
    assert_eq!(world.host.counters().guest_errors, 0);
    assert_eq!(world.released(), 4, "all four ids came back");
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
fn a_wish_for_a_processor_that_is_never_answered_ends_with_the_channel() {
    // How far the first wish comes before the close: posted and never answered, or answered and the answer on its way.
    for (delay, answered) in [(Duration::from_secs(1), 0), (Duration::ZERO, 1)] {
        let mut world = World::usual();
        let device = world.host.offer(spec(1), world.now);
        world.run();
        let channel = *world.drivers.keys().next().unwrap();
        world.host.policy_mut().modify_delay = delay;
        world.bus.retarget(channel, 1, world.now).unwrap();
        world.bus.retarget(channel, 2, world.now).unwrap();
        world.post_one();
        world.drivers.get_mut(&channel).unwrap().open = None;
        world.bus.close(channel, world.now).unwrap();
        world.run();
        assert_eq!(world.guest_log.last(), Some(&Event::Closed { channel }));
        assert_eq!(world.bus.poll_deadline(), None, "nobody waits");
        assert_eq!(world.bus.stats().late, answered);
        world.open(channel);
        world.run();
        let before = world.guest_log.len();
        world.bus.retarget(channel, 3, world.now).unwrap();
        world.run();
        let done = Event::Retargeted { channel, target_vp: 3, status: 0 };
        assert_eq!(world.guest_log[before..], [done]);
        assert_eq!(world.host.target_vp(device), Some(3));
        // A second one before the answer is not for guests of this version.
        world.host.policy_mut().modify_delay = Duration::from_secs(1);
        world.bus.retarget(channel, 4, world.now).unwrap();
        let post = world.bus.poll_outgoing().unwrap();
        let mut twice = || world.host.handle_message(post.connection, &post.payload, world.now);
        assert_eq!((twice(), twice()), (Ok(()), Err(GuestError::ModifyUnderWay { channel })));
        world.host.rescind(device, world.now);
        world.run();
        world.assert_clean();
    }
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
        let status = host.post(post.connection, &post.payload, now);
        match retry.result(status, post.payload.kind(), now) {
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
    // To contact, a missing connection is the end; to anything else, it is passing. And all tries end.
    let missing = PostStatus::INVALID_CONNECTION_ID;
    let contact = retry.result(missing, MessageType::INITIATE_CONTACT, now);
    assert_eq!(contact, PostVerdict::GiveUp(missing));
    for _ in 0..99 {
        let unload = retry.result(missing, MessageType::UNLOAD, now);
        assert!(matches!(unload, PostVerdict::RetryAt(_)));
    }
    assert_eq!(retry.result(missing, MessageType::UNLOAD, now), PostVerdict::GiveUp(missing));
}

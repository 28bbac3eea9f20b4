//! Whole lives of connections and channels.

use std::time::Duration;

use vmbus::bus::{BusState, ContactFailure, Event, Wait};
use vmbus::memory::{PAGE_SIZE, SharedMemory};
use vmbus::message::{MessageType, STATUS_REFUSED, VPCI_CLASS, Version};
use vmbus::packet::Outgoing;
use vmbus::{ChannelId, ConnectionId, Guid, Platform};

use super::world::{Habit, World, spec};
use crate::bus::{BusEvent, BusPolicy, DeviceState, IdPolicy, OfferOrder, OfferSpec};

const PACKET: Outgoing<'static> =
    Outgoing::InBand { transaction_id: 1, completion: false, payload: b"across the bus! " };

#[test]
fn a_channel_opens_carries_packets_closes_and_leaves_nothing() {
    let mut world = World::usual();
    let device = world.host.offer(spec(1), world.now);
    world.run();
    let channel = world.host.channel_of(device).unwrap();
    let driver = world.drivers.get_mut(&channel).unwrap();
    let service = world.services.get_mut(&device).unwrap();
    let mut buffer = [0; 256];

    driver.open.as_mut().unwrap().try_send(&PACKET).unwrap();
    assert!(driver.bell.take());
    assert_eq!(world.host.signalled(driver.offer.connection), Some(device));
    assert_eq!(service.receive(&mut buffer).unwrap().unwrap().payload, b"across the bus! ");

    service.try_send(&PACKET).unwrap();
    assert_eq!(world.host.interrupts().collect::<Vec<_>>(), [channel]);
    assert_eq!(world.host.interrupts().count(), 0);
    let guest = driver.open.as_mut().unwrap();
    assert_eq!(guest.receive(&mut buffer).unwrap().unwrap().payload, b"across the bus! ");

    driver.open = None;
    world.bus.close(channel, world.now).unwrap();
    assert_eq!(world.host.state(device), Some(DeviceState::Open), "the message is on its way");
    world.run();
    assert_eq!(world.host.state(device), Some(DeviceState::Offered));
    assert_eq!(world.host.signalled(ConnectionId(0x2000 | channel.0)), None);
    world.assert_clean();
    world.bus.unload(world.now).unwrap();
    world.run();
    assert_eq!(world.guest_log.last(), Some(&Event::Unloaded));
}

// HISTORY 53
#[test]
fn what_the_host_sends_at_the_moment_of_opening_is_seen() {
    let mut world = World::usual();
    let device = world.host.offer(spec(1), world.now);
    while !world.services.contains_key(&device) {
        assert!(world.step());
    }
    world.services.get_mut(&device).unwrap().try_send(&PACKET).unwrap();
    let channel = world.host.channel_of(device).unwrap();
    assert_eq!(world.host.interrupts().collect::<Vec<_>>(), [channel]);
    let opened = |world: &World| world.guest_log.contains(&Event::Opened { channel });
    assert!(!opened(&world), "the signal comes before the answer");
    world.run();
    assert!(opened(&world));
    let guest = world.drivers.get_mut(&channel).unwrap().open.as_mut().unwrap();
    assert!(guest.receive(&mut [0; 256]).unwrap().is_some());
}

// HISTORY 70
#[test]
fn indices_from_the_host_that_point_nowhere_kill_the_channel_and_nothing_else() {
    for index in [3 * PAGE_SIZE as u32, 3, u32::MAX] {
        let mut world = World::usual();
        let device = world.host.offer(spec(1), world.now);
        world.run();
        // The host's view of the ring from host to guest, wherever its pages lie.
        let ring = world.bus.offer(ChannelId(1)).map(|offer| offer.channel).unwrap();
        let first = vmbus::bus::BusConfig::default().first_gpadl;
        let pages = world.host.gpadl(device, first).unwrap();
        pages.write(4 * PAGE_SIZE, &index.to_le_bytes()).unwrap();
        drop(pages);
        let guest = world.drivers.get_mut(&ring).unwrap().open.as_mut().unwrap();
        assert!(guest.receive(&mut [0; 256]).is_err(), "{index}");
        world.drivers.get_mut(&ring).unwrap().open = None;
        world.bus.close(ring, world.now).unwrap();
        world.run();
        world.assert_clean();
    }
}

#[test]
fn memory_of_every_size_arrives_page_by_page() {
    let mut world = World::usual();
    world.habit = Habit::Watch;
    let device = world.host.offer(spec(1), world.now);
    world.run();
    for pages in [1, 26, 27, 54, 55, 4096, vmbus::gpadl::MAX_PAGES] {
        let memory = world.ram.allocate(pages).unwrap();
        for page in 0..pages {
            memory.write(page * PAGE_SIZE, &(page as u32).to_le_bytes()).unwrap();
        }
        let gpadl = world.bus.share(ChannelId(1), &memory, world.now).unwrap();
        world.run();
        assert!(world.guest_log.contains(&Event::Shared { channel: ChannelId(1), gpadl }));
        let seen = world.host.gpadl(device, gpadl).unwrap();
        assert_eq!(seen.pages(), pages);
        for page in 0..pages {
            let mut word = [0; 4];
            seen.read(page * PAGE_SIZE, &mut word).unwrap();
            assert_eq!(u32::from_le_bytes(word), page as u32);
        }
        drop((memory, seen));
        assert_eq!(world.ram.allocated(), pages, "the host may still write there");
        world.bus.unshare(gpadl, world.now).unwrap();
        world.run();
        world.assert_clean();
    }
}

#[test]
fn guest_and_host_meet_at_the_newest_version_both_know() {
    for version in [Version::V6_0].into_iter().chain(Version::RECOMMENDED) {
        let policy = BusPolicy { versions: vec![Version::V1_1, version], ..BusPolicy::default() };
        let asked: Vec<_> = [Version::V6_0].into_iter().chain(Version::RECOMMENDED).collect();
        let mut world = World::new(&asked, policy, Habit::Cycle { pages: 60, times: 2 });
        world.host.offer(spec(1), world.now);
        world.bus.start(world.now).unwrap();
        world.run();
        assert_eq!((world.bus.version(), world.host.version()), (Some(version), Some(version)));
        assert_eq!(world.drivers[&ChannelId(1)].opened, 2, "{version}");
        world.assert_clean();
        assert_eq!(world.host.counters().guest_errors, 0);
    }
}

#[test]
fn contact_fails_where_the_host_says_no() {
    let old = BusPolicy { versions: vec![Version::V1_1], ..BusPolicy::default() };
    let full = BusPolicy { connection_state: 1, ..BusPolicy::default() };
    let refused = ContactFailure::Refused { version: Version::V5_3, state: 1 };
    for (policy, failure) in [(old, ContactFailure::NoCommonVersion), (full, refused)] {
        let mut world = World::new(&Version::RECOMMENDED, policy, Habit::Watch);
        world.bus.start(world.now).unwrap();
        world.run();
        world.guest_events();
        assert_eq!(world.guest_log, [Event::ContactFailed(failure)]);
        assert_eq!((world.bus.state(), world.host.version()), (BusState::Idle, None));
    }
}

#[test]
fn offers_come_in_the_order_of_the_policy() {
    let order_of = |order| {
        let policy = BusPolicy { order, ..BusPolicy::default() };
        let mut world = World::new(&Version::RECOMMENDED, policy, Habit::Watch);
        for instance in 0..6 {
            let class = if instance % 2 == 0 { spec(0).class } else { VPCI_CLASS };
            world.host.offer(OfferSpec { class, ..spec(instance) }, world.now);
        }
        world.bus.start(world.now).unwrap();
        world.run();
        assert_eq!(world.guest_log.last(), Some(&Event::AllOffersDelivered));
        world.drivers.values().map(|driver| driver.offer.instance.as_u128()).collect::<Vec<_>>()
    };
    assert_eq!(order_of(OfferOrder::AsAdded), [0, 1, 2, 3, 4, 5]);
    assert_eq!(order_of(OfferOrder::Reversed), [5, 4, 3, 2, 1, 0]);
    assert_eq!(order_of(OfferOrder::ByClass), [1, 3, 5, 0, 2, 4]);
    assert_ne!(order_of(OfferOrder::Shuffled(1)), order_of(OfferOrder::Shuffled(2)));
    assert_eq!(order_of(OfferOrder::Shuffled(1)), order_of(OfferOrder::Shuffled(1)));
}

// HISTORY 67, and section 6 item 2
#[test]
fn a_device_comes_back_with_a_new_id_once_the_guest_has_let_go() {
    for (ids, expected) in [(IdPolicy::Fresh, 2), (IdPolicy::Lowest, 1)] {
        let mut world = World::usual();
        world.host.policy_mut().ids = ids;
        let first = world.host.offer(spec(1), world.now);
        world.run();
        world.host.rescind(first, world.now);
        world.host_events();
        let second = world.host.offer(spec(1), world.now);
        assert_eq!(world.host.state(second), Some(DeviceState::Waiting));
        world.run();
        assert_eq!((world.host.state(first), world.released()), (None, 1));
        assert_eq!(world.host.channel_of(second), Some(ChannelId(expected)));
        assert!(world.services.contains_key(&second), "served again");
        assert_eq!(world.host.counters().gpadls_dropped, 0);
    }
}

// HISTORY section 6 item 2
#[test]
fn servicing_takes_all_devices_and_brings_them_back_whatever_the_order() {
    for order in [[0, 1], [1, 0]] {
        let mut world = World::usual();
        let specs = [spec(1), OfferSpec { class: VPCI_CLASS, ..spec(2) }];
        let devices = specs.clone().map(|spec| world.host.offer(spec, world.now));
        world.run();
        for at in order {
            world.host.rescind(devices[at], world.now);
        }
        world.host_events();
        let back = specs.map(|spec| world.host.offer(spec, world.now));
        world.run();
        let channels = back.map(|device| world.host.channel_of(device).unwrap().0);
        assert!(channels.iter().all(|channel| *channel > 2), "{channels:?}");
        let seen: Vec<Guid> = world.drivers.values().map(|driver| driver.offer.instance).collect();
        assert_eq!(world.released(), 2);
        assert_eq!(seen.len(), 2);
        assert_eq!(world.services.len(), 2);
    }
}

#[test]
fn a_device_may_come_and_go_a_hundred_times() {
    let mut world = World::usual();
    for _ in 0..100 {
        let device = world.host.offer(spec(1), world.now);
        world.run();
        world.host.rescind(device, world.now);
        world.host_events();
        world.run();
        world.assert_clean();
    }
    assert_eq!((world.released(), world.drivers.len()), (100, 0));
}

#[test]
fn an_offer_given_up_is_not_repeated_on_this_connection() {
    let mut world = World::usual();
    world.habit = Habit::Watch;
    let device = world.host.offer(spec(1), world.now);
    world.run();
    world.bus.release(ChannelId(1), world.now).unwrap();
    world.run();
    assert_eq!(world.host.state(device), Some(DeviceState::GivenUp));
    assert!(matches!(world.host_log.last(), Some(BusEvent::GivenUp { .. })));
    world.drivers.clear();
    world.bus.unload(world.now).unwrap();
    world.run();
    world.bus.start(world.now).unwrap();
    world.run();
    assert_eq!(world.host.state(device), Some(DeviceState::Offered));
}

#[test]
fn unload_stops_everything_and_the_next_contact_starts_afresh() {
    let mut world = World::usual();
    for instance in 0..3 {
        world.host.offer(spec(instance), world.now);
    }
    world.run();
    world.slow_services = true;
    for _ in 0..3 {
        world.bus.unload(world.now).unwrap();
        while world.post_one() {}
        assert!(!world.answer_one(), "not before the devices have stopped");
        world.run();
        assert_eq!(world.guest_log.last(), Some(&Event::Unloaded));
        world.assert_clean();
        world.bus.start(world.now).unwrap();
        world.run();
        assert_eq!((world.drivers.len(), world.services.len()), (3, 3));
    }
    assert_eq!(world.host.counters().guest_errors, 0);
}

#[test]
fn another_guest_takes_over_without_a_word_from_the_first() {
    let mut world = World::usual();
    world.host.offer(spec(1), world.now);
    let revoked = world.host.offer(spec(2), world.now);
    world.run();
    world.host.rescind(revoked, world.now);
    world.host_events();
    let next = World::usual();
    world.bus = next.bus;
    world.drivers.clear();
    world.run();
    assert_eq!((world.drivers.len(), world.released()), (1, 1));
    assert!(matches!(world.host_log[..], [.., BusEvent::Disconnected, BusEvent::Connected { .. }]));
    world.bus.unload(world.now).unwrap();
    world.run();
    world.assert_clean();
}

#[test]
fn memory_stays_the_hosts_until_the_device_has_stopped() {
    let mut world = World::usual();
    let device = world.host.offer(spec(1), world.now);
    world.run();
    world.slow_services = true;
    world.drivers.get_mut(&ChannelId(1)).unwrap().open = None;
    world.bus.close(ChannelId(1), world.now).unwrap();
    while world.post_one() {}
    assert!(!world.answer_one());
    assert_eq!(world.bus.shared_pages(), 48);
    world.run();
    assert_eq!(world.guest_log.last(), Some(&Event::Closed { channel: ChannelId(1) }));
    assert_eq!(world.host.state(device), Some(DeviceState::Offered));
    world.assert_clean();
}

#[test]
fn refusals_of_the_host_leave_a_channel_that_can_be_opened_later() {
    for rings in [true, false] {
        let mut world = World::usual();
        let policy = world.host.policy_mut();
        *(if rings { &mut policy.gpadl_status } else { &mut policy.open_status }) = STATUS_REFUSED;
        world.host.offer(spec(1), world.now);
        world.run();
        assert!(matches!(world.guest_log.last(), Some(Event::OpenFailed { .. })));
        world.drivers.get_mut(&ChannelId(1)).unwrap().open = None;
        world.assert_clean();
    }
}

#[test]
fn slow_hosts_answer_in_order_and_are_reported_when_too_slow() {
    let delay = Duration::from_secs(3);
    let policy = BusPolicy { reply_delay: delay, ..BusPolicy::default() };
    let habit = Habit::Cycle { pages: 30, times: 2 };
    let mut world = World::new(&Version::RECOMMENDED, policy, habit);
    world.host.offer(spec(1), world.now);
    world.bus.start(world.now).unwrap();
    world.run();
    assert_eq!(world.drivers[&ChannelId(1)].opened, 2);
    assert!(world.now.as_nanos() >= 10 * delay.as_nanos() as u64);
    world.assert_clean();
}

#[test]
fn an_answer_that_never_comes_is_reported_once() {
    let mut world = World::usual();
    world.host.policy_mut().withheld = vec![MessageType::OPEN_CHANNEL_RESULT];
    let device = world.host.offer(spec(1), world.now);
    world.run();
    let deadline = world.bus.poll_deadline().unwrap();
    world.bus.handle_deadline(deadline);
    world.guest_events();
    let channel = ChannelId(1);
    assert_eq!(world.guest_log.last(), Some(&Event::Overdue(Wait::Open { channel })));
    assert_eq!(world.host.counters().withheld, 1);
    // Every wait also ends on rescind.
    world.host.rescind(device, world.now);
    world.host_events();
    world.run();
    assert_eq!(world.guest_log.last(), Some(&Event::Released { channel }));
    world.assert_clean();
}

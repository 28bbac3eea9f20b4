//! Each policy of a host, guests that come one after another, and monitor pages between both.

use std::time::Duration;

use vmbus::bus::{Bus, BusConfig, BusState, Event, OpenStep};
use vmbus::channel::{Channel, Doorbell};
use vmbus::message::{Features, MessageType, Version};
use vmbus::monitor::{GROUP_BITS, MonitorDoorbell, MonitorPage, Parameter};
use vmbus::packet::Outgoing;
use vmbus::{ChannelId, ConnectionId, Guid, Instant, Platform, SignalFlag};

use super::world::{Habit, RING_PAGES, World, spec};
use crate::bus::{BusEvent, BusPolicy, DeviceState, IdPolicy, RescindMoment};

// HISTORY 25: each way to go frees everything.
#[test]
fn a_device_goes_at_the_chosen_step_and_comes_back() {
    let kinds = [
        MessageType::GPADL_HEADER,
        MessageType::OPEN_CHANNEL,
        MessageType::MODIFY_CHANNEL,
        MessageType::CLOSE_CHANNEL,
        MessageType::GPADL_TEARDOWN,
    ];
    for version in [Version::V3_0, Version::V4_1, Version::V5_3] {
        for kind in kinds {
            for moment in [RescindMoment::Before(kind), RescindMoment::After(kind)] {
                let policy = BusPolicy { rescind: Some(moment), ..BusPolicy::default() };
                let mut world = World::new(&[version], policy, Habit::Stay { pages: 30 });
                let device = world.host.offer(spec(1), world.now);
                world.bus.start(world.now).unwrap();
                world.run();
                // What goes at its first message is gone by now; all else is asked for.
                let _ = world.bus.retarget(ChannelId(1), 1, world.now);
                world.run();
                if let Some(driver) = world.drivers.get_mut(&ChannelId(1)) {
                    driver.open = None;
                    world.bus.close(ChannelId(1), world.now).unwrap();
                    world.run();
                }
                let known = version >= Version::V4_1 || kind != MessageType::MODIFY_CHANNEL;
                assert_eq!(world.released(), usize::from(known), "{version} {moment:?}");
                if known {
                    assert_eq!(world.host.state(device), None);
                }
                world.assert_clean();
                assert_eq!(world.host.counters().guest_errors, 0);
                let back = world.host.offer(spec(2), world.now);
                world.run();
                assert!(world.works(back), "{version} {moment:?}");
            }
        }
    }
}

// HISTORY section 5, VMBus: release, revoke, offer again.
#[test]
fn a_release_and_a_rescind_that_cross_are_one_farewell() {
    for ids in [IdPolicy::Fresh, IdPolicy::Lowest] {
        let policy = BusPolicy { ids, ..BusPolicy::default() };
        let mut world = World::new(&Version::RECOMMENDED, policy, Habit::Watch);
        let device = world.host.offer(spec(1), world.now);
        world.bus.start(world.now).unwrap();
        world.run();
        world.bus.release(ChannelId(1), world.now).unwrap();
        world.host.rescind(device, world.now);
        world.drivers.clear();
        world.habit = Habit::Stay { pages: 2 };
        let back = world.host.offer(spec(1), world.now);
        world.run();
        assert_eq!((world.released(), world.bus.stats().repeated_rescinds), (1, 1));
        assert!(world.works(back));
        assert_eq!(world.host.counters().guest_errors, 0);
    }
}

#[test]
fn every_status_of_the_host_reaches_the_driver() {
    for status in [1, 0x103, 0xc000_009a, 0xc000_0022, 0x8000_ffff, u32::MAX] {
        for (open, step) in [(false, OpenStep::Rings), (true, OpenStep::Open)] {
            let mut policy = BusPolicy::default();
            *(if open { &mut policy.open_status } else { &mut policy.gpadl_status }) = status;
            let mut world = World::new(&Version::RECOMMENDED, policy, Habit::Stay { pages: 1 });
            world.host.offer(spec(1), world.now);
            world.bus.start(world.now).unwrap();
            world.run();
            let channel = ChannelId(1);
            let failed = Event::OpenFailed { channel, step, status };
            assert_eq!(world.guest_log.last(), Some(&failed));
            world.drivers.clear();
            world.assert_clean();
        }
    }
}

#[test]
fn guests_of_all_versions_are_served_one_after_another() {
    let policy = BusPolicy { versions: Version::ALL.to_vec(), ..BusPolicy::default() };
    let mut world = World::new(&[], policy, Habit::Stay { pages: 30 });
    let devices = [1, 2, 3].map(|instance| world.host.offer(spec(instance), world.now));
    let versions = Version::ALL.into_iter().chain(Version::ALL.into_iter().rev());
    for (turn, version) in versions.enumerate() {
        world.bus = Bus::new(BusConfig { versions: vec![version], ..BusConfig::default() });
        world.drivers.clear();
        world.bus.start(world.now).unwrap();
        world.run();
        assert_eq!((world.bus.version(), world.host.version()), (Some(version), Some(version)));
        for device in devices {
            assert!(world.works(device), "{version}, turn {turn}");
        }
        // Every second one leaves without a word, as a kernel that crashed.
        if turn % 2 == 0 && version >= Version::V3_0 {
            world.bus.unload(world.now).unwrap();
            world.run();
            world.assert_clean();
        }
    }
    let connected = |event: &&BusEvent| matches!(event, BusEvent::Connected { .. });
    assert_eq!(world.host_log.iter().filter(connected).count(), 18);
    assert_eq!(world.host.counters().guest_errors, 0);
}

// kexec: the first kernel is gone, its channels are open, and what it was told is still on its way.
#[test]
fn a_new_kernel_is_not_misled_by_what_its_predecessor_was_told() {
    let delay = Duration::from_secs(1);
    let policy = BusPolicy { ids: IdPolicy::Lowest, reply_delay: delay, ..BusPolicy::default() };
    let mut world = World::new(&Version::RECOMMENDED, policy, Habit::Stay { pages: 30 });
    let device = world.host.offer(spec(1), world.now);
    world.bus.start(world.now).unwrap();
    world.run();
    assert!(world.works(device));
    // An offer and a rescind, which the first kernel never takes.
    let other = world.host.offer(spec(2), world.now);
    world.host.rescind(device, world.now);
    world.host_events();
    world.bus = Bus::new(BusConfig::default());
    world.drivers.clear();
    world.guest_log.clear();
    world.bus.start(world.now).unwrap();
    world.run();
    assert_eq!(world.bus.stats().out_of_state, 2, "offer and rescind of before");
    assert_eq!((world.bus.state(), world.released()), (BusState::Running, 1));
    assert!(world.works(other));
    let offered = |event: &&Event| matches!(event, Event::Offered(_));
    assert_eq!(world.guest_log.iter().filter(offered).count(), 1);
    world.bus.unload(world.now).unwrap();
    world.run();
    world.assert_clean();
}

#[test]
fn after_a_farewell_the_same_devices_come_under_the_same_ids() {
    let mut world = World::usual();
    world.host.policy_mut().ids = IdPolicy::Lowest;
    let devices = [1, 2, 3].map(|instance| world.host.offer(spec(instance), world.now));
    world.run();
    let ids = |world: &World| [1, 2, 3].map(|id| world.bus.primary(Guid::from_u128(id)));
    let first = ids(&world);
    assert_eq!(first, [1, 2, 3].map(|id| Some(ChannelId(id))));
    for _ in 0..3 {
        world.bus.unload(world.now).unwrap();
        world.run();
        world.assert_clean();
        assert_eq!(ids(&world), [None; 3], "ids mean nothing between connections");
        world.bus.start(world.now).unwrap();
        world.run();
        assert_eq!(ids(&world), first);
        assert!(devices.into_iter().all(|device| world.works(device)));
    }
}

/// A doorbell wherever the bus says.
enum Bell {
    Page(MonitorDoorbell),
    Call(SignalFlag),
}

impl Doorbell for Bell {
    fn ring(&self) {
        match self {
            Self::Page(bell) => bell.ring(),
            Self::Call(bell) => bell.ring(),
        }
    }
}

#[test]
fn doorbells_follow_the_monitor_pages() {
    let versions = vec![Version::V6_0];
    let policy =
        BusPolicy { versions: versions.clone(), monitor_ids: true, ..BusPolicy::default() };
    let mut world = World::new(&[], policy, Habit::Watch);
    let features = Features::MODIFY_CONNECTION;
    let monitor_pages = Some(world.ram.allocate(2).unwrap());
    world.bus = Bus::new(BusConfig { versions, features, monitor_pages, ..BusConfig::default() });
    let device = world.host.offer(spec(1), world.now);
    world.bus.start(world.now).unwrap();
    world.run();
    let channel = world.channel(1).unwrap();
    let rings = world.ram.allocate(RING_PAGES).unwrap();
    let half = RING_PAGES / 2;
    let (tx, rx) = (rings.slice(0, half).unwrap(), rings.slice(half, half).unwrap());
    let bell = |world: &World| world.bus.monitor_doorbell(channel).map(Bell::Page);
    let mut guest = Channel::from_parts(tx, rx, bell(&world).unwrap()).unwrap();
    world.bus.open(channel, &rings, half as u32, 0, world.now).unwrap();
    world.run();

    let pages = world.ram.allocate(2).unwrap();
    world.bus.modify_connection(Some(&pages), world.now).unwrap();
    world.run();
    assert_eq!(world.guest_log.last(), Some(&Event::ConnectionModified { state: 0 }));
    let packet = Outgoing::InBand { transaction_id: 1, completion: false, payload: b"ding" };
    let mut buffer = [0; 64];
    guest.try_send(&packet).unwrap();
    assert_eq!(world.host.look(world.now), [], "nobody looks at the former page");
    let new = bell(&world).unwrap();
    new.ring();
    drop(guest.set_doorbell(new));
    assert_eq!(world.ram.allocated(), 2 + RING_PAGES, "the former pages are free");
    for _ in 0..3 {
        assert_eq!(world.host.look(world.now), [device]);
        let host = world.services.get_mut(&device).unwrap();
        assert!(host.receive(&mut buffer).unwrap().is_some());
        assert!(!host.arm().unwrap());
        guest.try_send(&packet).unwrap();
    }

    // Without pages a channel is signalled by its connection.
    world.bus.modify_connection(None, world.now).unwrap();
    world.run();
    assert!(bell(&world).is_none());
    let call = SignalFlag::new();
    call.ring();
    drop(guest.set_doorbell(Bell::Call(call.clone())));
    for _ in 0..3 {
        assert!(call.take());
        let host = world.services.get_mut(&device).unwrap();
        assert!(host.receive(&mut buffer).unwrap().is_some());
        assert!(!host.arm().unwrap());
        guest.try_send(&packet).unwrap();
    }
}

#[test]
fn a_monitored_channel_signals_through_the_page_and_the_host_looks_in_time() {
    let policy = BusPolicy { monitor_ids: true, monitor_latency: 250, ..BusPolicy::default() };
    let mut world = World::new(&[], policy, Habit::Watch);
    let pages = world.ram.allocate(2).unwrap();
    world.bus = Bus::new(BusConfig { monitor_pages: Some(pages.clone()), ..BusConfig::default() });
    let devices = [1, 2].map(|instance| world.host.offer(spec(instance), world.now));
    world.bus.start(world.now).unwrap();
    world.run();
    assert_eq!(world.host.poll_look(), None, "nothing is open");
    // The second device has number 1.
    let channel = world.channel(2).unwrap();
    let rings = world.ram.allocate(RING_PAGES).unwrap();
    let half = RING_PAGES / 2;
    let (tx, rx) = (rings.slice(0, half).unwrap(), rings.slice(half, half).unwrap());
    let bell = world.bus.monitor_doorbell(channel).expect("a bit");
    let mut guest = Channel::from_parts(tx, rx, bell).unwrap();
    world.bus.open(channel, &rings, half as u32, 0, world.now).unwrap();
    world.run();
    let to_host = MonitorPage::new(pages.slice(1, 1).unwrap()).unwrap();
    assert!(to_host.is_enabled(1) && !to_host.is_enabled(GROUP_BITS));
    assert_eq!(to_host.latency(1), Ok(250));
    let connection = ConnectionId(0x2000 | channel.0);
    assert_eq!(to_host.parameter(1), Ok(Parameter { connection, flag: 0 }));

    let packet = Outgoing::InBand { transaction_id: 1, completion: false, payload: b"ding" };
    let mut buffer = [0; 64];
    for _ in 0..3 {
        let rung = world.now;
        guest.try_send(&packet).unwrap();
        let due = world.host.poll_look().unwrap();
        assert!(due <= rung + Duration::from_micros(25), "no bit waits longer than was promised");
        world.now = world.now.max(due);
        assert_eq!(world.host.look(world.now), [devices[1]]);
        assert_eq!(world.host.look(world.now), [], "once");
        let host = world.services.get_mut(&devices[1]).unwrap();
        assert!(host.receive(&mut buffer).unwrap().is_some());
        assert!(!host.arm().unwrap());
    }
    // Closed channels signal nobody, and a farewell ends the looking.
    guest.try_send(&packet).unwrap();
    world.bus.close(channel, world.now).unwrap();
    world.run();
    assert_eq!((world.host.look(world.now), world.host.poll_look()), (vec![], None));
    assert_eq!(world.host.state(devices[1]), Some(DeviceState::Offered));
    drop((guest, rings, pages, to_host));
    world.bus.unload(world.now).unwrap();
    world.run();
    assert_eq!(world.ram.allocated(), 2, "the pages for the next contact");
    assert!(world.host.look(Instant::ZERO).is_empty());
}

//! Rescinds, unloads and slow devices at every point of a life, and in random orders.

use proptest::prelude::*;
use vmbus::bus::{BusState, Event};
use vmbus::message::Version;

use super::world::{Habit, World, spec};
use crate::bus::{BusPolicy, IdPolicy, OfferOrder};

fn world(version: Version, slow_services: bool) -> World {
    let policy = BusPolicy { ids: IdPolicy::Lowest, ..BusPolicy::default() };
    let mut world = World::new(&[version], policy, Habit::Cycle { pages: 60, times: 2 });
    world.slow_services = slow_services;
    world.bus.start(world.now).unwrap();
    world
}

// HISTORY 25, 26 for channels
#[test]
fn a_rescind_at_any_point_leaves_nothing_behind() {
    for version in [Version::V2_4, Version::V5_3] {
        for slow in [false, true] {
            let mut steps = 0;
            loop {
                let mut world = world(version, slow);
                let device = world.host.offer(spec(1), world.now);
                let mut taken = 0;
                while taken < steps && world.step() {
                    taken += 1;
                }
                world.host.rescind(device, world.now);
                world.host_events();
                world.run();
                assert_eq!((world.released(), world.drivers.len()), (1, 0), "after {steps} steps");
                assert_eq!(world.host.counters().guest_errors, 0);
                world.assert_clean();
                let back = world.host.offer(spec(1), world.now);
                world.run();
                assert!(world.host.channel_of(back).is_some());
                world.assert_clean();
                if taken < steps {
                    break;
                }
                steps += 1;
            }
            assert!(steps > 30, "the whole life was covered, in {steps} steps");
        }
    }
}

// HISTORY 54, the contact
#[test]
fn an_unload_or_a_new_guest_at_any_point_leaves_nothing_behind() {
    for take_over in [false, true] {
        for steps in 0..80 {
            let mut world = world(Version::V5_3, steps % 2 == 0);
            for instance in 1..3 {
                world.host.offer(spec(instance), world.now);
            }
            for _ in 0..steps {
                world.step();
            }
            if take_over {
                // The memory of the first guest goes with it; what is left must be the host's mistake.
                world.bus = self::world(Version::V5_3, false).bus;
                world.drivers.clear();
            } else if world.bus.unload(world.now).is_ok() {
                world.run();
                assert_eq!(world.guest_log.last(), Some(&Event::Unloaded));
                world.assert_clean();
                world.bus.start(world.now).unwrap();
            }
            world.run();
            assert_eq!((world.drivers.len(), world.bus.state()), (2, BusState::Running));
            assert!(world.drivers.values().all(|driver| driver.opened == 2));
            world.assert_clean();
        }
    }
}

#[derive(Clone, Copy, Debug)]
enum Deed {
    ToHost,
    ToGuest,
    StopService,
    Offer(u8),
    Rescind(u8),
    Unload,
}

fn deed() -> impl Strategy<Value = Deed> {
    prop_oneof![
        8 => Just(Deed::ToHost),
        8 => Just(Deed::ToGuest),
        3 => Just(Deed::StopService),
        2 => (0..4_u8).prop_map(Deed::Offer),
        2 => (0..8_u8).prop_map(Deed::Rescind),
        1 => Just(Deed::Unload),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(192))]

    // HISTORY 23, 24 for channels
    #[test]
    fn whatever_the_order_all_devices_work_in_the_end_and_nothing_leaks(
        deeds in proptest::collection::vec(deed(), 0..400),
        lowest in any::<bool>(), seed in any::<u64>(), old in any::<bool>(),
    ) {
        let ids = if lowest { IdPolicy::Lowest } else { IdPolicy::Fresh };
        let policy = BusPolicy { ids, order: OfferOrder::Shuffled(seed), ..BusPolicy::default() };
        let version = if old { Version::V3_0 } else { Version::V5_3 };
        let mut world = World::new(&[version], policy, Habit::Cycle { pages: 60, times: 2 });
        world.slow_services = true;
        world.bus.start(world.now).unwrap();
        let mut devices = Vec::new();
        for deed in deeds {
            match deed {
                Deed::ToHost => { world.post_one(); }
                Deed::ToGuest => { world.answer_one(); }
                Deed::StopService => { world.stop_one(); }
                Deed::Offer(instance) => {
                    devices.push(world.host.offer(spec(u128::from(instance)), world.now));
                }
                Deed::Rescind(at) => {
                    if let Some(at) = usize::from(at).checked_rem(devices.len()) {
                        world.host.rescind(devices.swap_remove(at), world.now);
                        world.host_events();
                    }
                }
                Deed::Unload => {
                    let _ = world.bus.unload(world.now);
                }
            }
            if world.bus.state() == BusState::Idle {
                world.bus.start(world.now).unwrap();
            }
        }
        world.run();
        if world.bus.state() == BusState::Idle {
            world.bus.start(world.now).unwrap();
            world.run();
        }
        // Of several devices with one instance only one can be offered.
        for device in devices.drain(..) {
            world.host.rescind(device, world.now);
            world.host_events();
            world.run();
            world.assert_clean();
        }
        prop_assert_eq!(world.drivers.len(), 0);
        prop_assert_eq!(world.host.counters().guest_errors, 0);
        prop_assert_eq!(world.bus.stats().malformed + world.bus.stats().bad_offers, 0);
    }
}

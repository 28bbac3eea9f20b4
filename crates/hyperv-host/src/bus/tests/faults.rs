//! A guest against a host that misbehaves in every way it knows.

use std::time::Duration;

use vmbus::Instant;
use vmbus::bus::{BusState, Event};
use vmbus::message::Version;

use super::world::{Habit, World, spec};
use crate::bus::{BusPolicy, Fault};

/// As [`World::run`], with a guest that is told of wrong messages and of deadlines.
fn run(world: &mut World) -> usize {
    let mut errors = 0;
    for _ in 0..10_000 {
        if let Some(post) = world.bus.poll_outgoing() {
            // What follows from a fault may look wrong to the host.
            let _ = world.host.handle_message(post.connection, &post.payload, world.now);
            world.host_events();
        } else if let Some(message) = world.host.poll_message() {
            errors += usize::from(world.bus.handle_message(&message, world.now).is_err());
            world.guest_events();
        } else if !world.stop_one() {
            return errors;
        }
    }
    panic!("guest and host never come to rest");
}

fn world() -> World {
    World::new(&Version::RECOMMENDED, BusPolicy::default(), Habit::Stay { pages: 40 })
}

/// Everything that a guest goes through, with a fault that begins after `before` of these steps.
fn live(fault: Fault, before: usize) -> World {
    let mut world = world();
    let mut devices = Vec::new();
    for step in 0..6 {
        if step == before {
            world.host.inject(fault);
        }
        let now = world.now;
        match step {
            0 => {
                devices.push(world.host.offer(spec(1), now));
                world.bus.start(now).unwrap();
            }
            1 => devices.push(world.host.offer(spec(2), now)),
            2 => {
                let open: Vec<_> = world.drivers.keys().copied().collect();
                for channel in open {
                    // A channel that never opened cannot be closed; that is the one that is lost.
                    let _ = world.bus.close(channel, now);
                }
            }
            3 => world.host.rescind(devices[0], now),
            4 => devices.push(world.host.offer(spec(3), now)),
            _ => {}
        }
        run(&mut world);
        world.now = world.now + Duration::from_secs(60);
        world.bus.handle_deadline(world.now);
        world.guest_events();
        run(&mut world);
    }
    world
}

#[test]
fn every_misbehaviour_costs_at_most_one_step_and_leaves_nothing_behind() {
    for fault in Fault::ALL {
        for before in 0..6 {
            let mut world = live(fault, before);
            let failed = format!("{fault:?} at {before}: {:?}", world.guest_log);
            let stats = world.bus.stats();
            let seen = stats.malformed
                + stats.unknown
                + stats.late
                + stats.overdue
                + stats.bad_offers
                + stats.repeated_rescinds
                + stats.out_of_state;
            if world.host.faults(fault) > 0 {
                // Bytes behind a message are allowed; all else leaves a trace in the counters.
                let harmless = fault == Fault::TrailingGarbage;
                assert!(harmless || seen > 0, "unseen {failed}");
            }
            // Whatever happened: contact again is possible, and devices work then.
            let now = world.now;
            match world.bus.state() {
                BusState::Contacting => continue,
                BusState::Idle => {}
                _ => {
                    world.bus.unload(now).unwrap();
                    run(&mut world);
                    if world.bus.state() == BusState::Unloading {
                        // The fault waited for this answer. Contact ends the wait, too.
                        assert_eq!(world.host.faults(fault), 1, "{failed}");
                    }
                }
            }
            world.drivers.clear();
            world.bus.start(now).unwrap();
            run(&mut world);
            if world.bus.state() == BusState::Contacting {
                continue;
            }
            let opened = world.drivers.values().filter(|driver| driver.open.is_some()).count();
            assert!(opened >= 1, "nothing works any more: {failed}");
            world.bus.unload(now).unwrap();
            run(&mut world);
            if world.bus.state() == BusState::Idle {
                world.assert_clean();
            }
        }
    }
}

#[test]
fn a_misbehaviour_that_hits_contact_is_overdue_and_nothing_more() {
    for fault in [Fault::NeverAnswers, Fault::Truncated] {
        let mut world = world();
        world.host.inject(fault);
        world.bus.start(world.now).unwrap();
        run(&mut world);
        world.now = Instant::ZERO + Duration::from_secs(60);
        world.bus.handle_deadline(world.now);
        world.guest_events();
        assert!(matches!(world.guest_log[..], [Event::Overdue(_)]), "{fault:?}");
        assert_eq!(world.bus.shared_pages(), 0);
        assert_eq!(world.ram.allocated(), 0);
    }
}

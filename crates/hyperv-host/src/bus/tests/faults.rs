//! A guest against a host that misbehaves in every way it knows, at every message that it can happen to.

use std::collections::BTreeSet;
use std::time::Duration;

use vmbus::bus::{Bus, BusConfig, BusState, Event, Wait};
use vmbus::message::{Features, MessageType, Version};

use super::world::{Habit, World, spec};
use crate::bus::{BusPolicy, DeviceId, Fault};

/// As [`World::run`], with a guest that is told of wrong messages, and a host that is told what follows from them.
fn run(world: &mut World) {
    for _ in 0..10_000 {
        if let Some(post) = world.bus.poll_outgoing() {
            let _ = world.host.handle_message(post.connection, &post.payload, world.now);
            world.host_events();
        } else if let Some(message) = world.host.poll_message() {
            let _ = world.bus.handle_message(&message, world.now);
            world.guest_events();
        } else if !world.stop_one() {
            return;
        }
    }
    panic!("guest and host never come to rest");
}

/// Lets everything happen that will, and all deadlines pass.
fn settle(world: &mut World) {
    run(world);
    world.now = world.now + Duration::from_secs(60);
    world.bus.handle_deadline(world.now);
    world.guest_events();
    run(world);
}

fn world() -> World {
    let policy = BusPolicy { versions: Version::ALL.to_vec(), ..BusPolicy::default() };
    let mut world = World::new(&[], policy, Habit::Stay { pages: 40 });
    world.bus = Bus::new(BusConfig {
        versions: Version::ALL.to_vec(),
        features: Features::MODIFY_CONNECTION | Features::PAUSE_RESUME,
        ..BusConfig::default()
    });
    world
}

/// What became of a life.
struct Life {
    world: World,
    devices: Vec<DeviceId>,
    /// Instances that were without use at some point at which they should not have been.
    lost: BTreeSet<u128>,
}

impl Life {
    /// Notes which of these instances do not work.
    fn check(&mut self, expected: &[u128]) {
        for instance in expected {
            let device = self.devices[*instance as usize];
            if self.world.bus.version().is_some() && !self.world.works(device) {
                self.lost.insert(*instance);
            }
        }
    }
}

/// Everything that a guest goes through, up to but not including its farewell; with a fault at the message that comes
/// after so many that could be hit as well.
fn live(fault: Fault, skip: usize) -> Life {
    let mut world = world();
    world.host.inject_after(fault, skip);
    let devices = (0..3).map(|instance| world.host.offer(spec(instance), world.now)).collect();
    let mut life = Life { world, devices, lost: BTreeSet::new() };
    life.world.bus.start(life.world.now).unwrap();
    settle(&mut life.world);
    life.check(&[0, 1, 2]);

    let now = life.world.now;
    life.devices.push(life.world.host.offer(spec(3), now));
    settle(&mut life.world);
    life.check(&[0, 1, 2, 3]);

    // One closes and opens again, one is asked to signal another processor.
    if let Some(channel) = life.world.channel(1) {
        let driver = life.world.drivers.get_mut(&channel).unwrap();
        driver.open = None;
        let _ = life.world.bus.close(channel, life.world.now);
        settle(&mut life.world);
        if life.world.bus.channel_state(channel) == Some(vmbus::bus::ChannelState::Offered) {
            life.world.open(channel);
        }
    }
    if let Some(channel) = life.world.channel(2) {
        let _ = life.world.bus.retarget(channel, 1, life.world.now);
    }
    settle(&mut life.world);
    life.check(&[0, 1, 2, 3]);

    // One goes and comes back.
    let now = life.world.now;
    life.world.host.rescind(life.devices[0], now);
    settle(&mut life.world);
    life.devices[0] = life.world.host.offer(spec(0), now);
    settle(&mut life.world);
    life.check(&[0, 1, 2, 3]);

    // The connection as a whole.
    let now = life.world.now;
    let _ = life.world.bus.modify_connection(None, now);
    settle(&mut life.world);
    let _ = life.world.bus.pause(now);
    settle(&mut life.world);
    let _ = life.world.bus.unpause();
    settle(&mut life.world);
    life.check(&[0, 1, 2, 3]);
    life
}

/// Whether a fault costs nothing at all: the right message comes all the same, and what comes besides is ignored.
fn is_harmless(fault: Fault) -> bool {
    match fault {
        Fault::Truncated | Fault::NeverAnswers => false,
        Fault::WrongGpadl | Fault::WrongGpadlChannel | Fault::WrongOpenId => false,
        Fault::Empty | Fault::TrailingGarbage | Fault::UnknownType | Fault::WrongDirection => true,
        Fault::AnswersTwice | Fault::Unsolicited | Fault::OfferedAsZero => true,
        Fault::OfferedTooHigh | Fault::OfferedTwice | Fault::UnaskedSubChannel => true,
        Fault::RescindedRepeatedly | Fault::RescindedUnknown => true,
    }
}

fn overdue(world: &World) -> Vec<Wait> {
    let mut waits = Vec::new();
    for event in &world.guest_log {
        if let Event::Overdue(wait) = event {
            waits.push(*wait);
        }
    }
    waits
}

/// The guest noticed: something is counted, or an answer is overdue.
fn trace(world: &World) -> u64 {
    let stats = world.bus.stats();
    stats.malformed
        + stats.unknown
        + stats.late
        + stats.overdue
        + stats.bad_offers
        + stats.repeated_rescinds
        + stats.out_of_state
}

fn assert_cost(life: &Life, fault: Fault, kind: MessageType, at: &str) {
    let Life { world, lost, .. } = life;
    let overdue = overdue(world);
    // Bytes behind a message are allowed; all else leaves a trace in the counters.
    assert!(fault == Fault::TrailingGarbage || trace(world) > 0, "unseen {at}");
    if is_harmless(fault) {
        assert!(lost.is_empty() && overdue.is_empty(), "{at}: lost {lost:?}, {overdue:?}");
        return;
    }
    match kind {
        MessageType::VERSION_RESPONSE => {
            assert!(matches!(overdue[..], [Wait::Contact { .. }]), "{at}: {overdue:?}");
            assert_eq!((world.bus.state(), world.bus.shared_pages()), (BusState::Contacting, 0));
        }
        // What concerns no channel costs none.
        MessageType::ALL_OFFERS_DELIVERED
        | MessageType::MODIFY_CHANNEL_RESPONSE
        | MessageType::MODIFY_CONNECTION_RESPONSE
        | MessageType::PAUSE_RESPONSE => {
            assert!(lost.is_empty(), "{at}: lost {lost:?}");
            assert_eq!(overdue.len(), 1, "{at}: {overdue:?}");
        }
        // The memory of a channel that has gone: nobody misses it.
        MessageType::GPADL_TORNDOWN if lost.is_empty() => {
            assert!(matches!(overdue[..], [Wait::Unshare { .. }]), "{at}: {overdue:?}");
            assert!(world.bus.shared_pages() > 4 * 48 || world.ram.allocated() > 4 * 48, "{at}");
        }
        _ => assert_eq!(lost.len(), 1, "{at}: lost {lost:?}, {overdue:?}"),
    }
}

#[test]
fn every_misbehaviour_at_every_message_costs_one_channel_at_most_and_all_comes_back() {
    for fault in Fault::ALL {
        let mut hit = BTreeSet::new();
        for skip in 0.. {
            let mut life = live(fault, skip);
            let last = life.world.host.last_fault();
            let at = format!("{fault:?} after {skip}, at {last:?}");
            let Some((_, kind)) = last else { break };
            assert_eq!(life.world.host.faults(fault), 1, "{at}");
            hit.insert(kind);
            assert_cost(&life, fault, kind, &at);

            // Whatever happened: the connection ends in order, a new contact brings everything back, and nothing is left.
            let world = &mut life.world;
            if world.bus.version().is_some() {
                world.bus.unload(world.now).unwrap();
                run(world);
                assert_eq!(world.bus.state(), BusState::Idle, "{at}");
                assert_eq!((world.ram.allocated(), world.bus.shared_pages()), (0, 0), "{at}");
            }
            world.drivers.clear();
            world.bus.start(world.now).unwrap();
            run(world);
            for device in life.devices.clone() {
                assert!(life.world.works(device), "{at}: device {device} never works again");
            }
            life.world.bus.unload(life.world.now).unwrap();
            run(&mut life.world);
            life.world.assert_clean();
        }
        let possible = |kind: &MessageType| fault.fits(*kind);
        let expected: BTreeSet<_> = sent_in_a_life().into_iter().filter(possible).collect();
        assert_eq!(hit, expected, "{fault:?} was not fired everywhere");
    }
}

/// All messages of a host but the answer to an unload, and what no bus of ours answers.
fn sent_in_a_life() -> Vec<MessageType> {
    vec![
        MessageType::VERSION_RESPONSE,
        MessageType::OFFER_CHANNEL,
        MessageType::ALL_OFFERS_DELIVERED,
        MessageType::GPADL_CREATED,
        MessageType::OPEN_CHANNEL_RESULT,
        MessageType::GPADL_TORNDOWN,
        MessageType::MODIFY_CHANNEL_RESPONSE,
        MessageType::RESCIND_CHANNEL_OFFER,
        MessageType::MODIFY_CONNECTION_RESPONSE,
        MessageType::PAUSE_RESPONSE,
    ]
}

#[test]
fn a_farewell_that_goes_wrong_ends_with_the_next_contact() {
    for fault in Fault::ALL.into_iter().filter(|fault| fault.fits(MessageType::UNLOAD_RESPONSE)) {
        let mut world = world();
        let device = world.host.offer(spec(1), world.now);
        world.bus.start(world.now).unwrap();
        settle(&mut world);
        world.host.inject(fault);
        world.bus.unload(world.now).unwrap();
        settle(&mut world);
        assert_eq!(world.host.last_fault(), Some((fault, MessageType::UNLOAD_RESPONSE)));
        let answered = is_harmless(fault);
        let (state, held) = if answered { (BusState::Idle, 0) } else { (BusState::Unloading, 48) };
        assert_eq!((world.bus.state(), world.bus.shared_pages()), (state, held), "{fault:?}");
        assert_eq!(overdue(&world).is_empty(), answered);
        world.drivers.clear();
        world.bus.start(world.now).unwrap();
        run(&mut world);
        assert!(world.works(device), "{fault:?}");
        world.bus.unload(world.now).unwrap();
        run(&mut world);
        world.assert_clean();
    }
}

#[test]
fn an_unasked_sub_channel_has_an_id_of_its_own_which_comes_back() {
    let mut world = world();
    // An id that somebody has is not made up.
    world.host.policy_mut().ids = crate::bus::IdPolicy::Lowest;
    world.host.inject(Fault::UnaskedSubChannel);
    let device = world.host.offer(spec(1), world.now);
    world.bus.start(world.now).unwrap();
    run(&mut world);
    assert!(world.works(device));
    assert_eq!(world.bus.stats().bad_offers, 1);
    assert_eq!(
        (world.host.faults(Fault::UnaskedSubChannel), world.host.counters().guest_errors),
        (1, 0)
    );
    // Once given back, it cannot be given back again.
    let release =
        vmbus::message::ReleaseChannel { channel: zerocopy::little_endian::U32::new(2047) };
    let payload = vmbus::message::Payload::new(&release);
    let connection = world.host.policy_mut().connection;
    assert!(world.host.handle_message(connection, &payload, world.now).is_err());
}

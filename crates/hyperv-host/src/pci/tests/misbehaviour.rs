//! Hosts that do what they must not do, each kind against the real guest: what the guest reports, and that nothing is left.

use vpci::bus::BadPacket as GuestBadPacket;
use vpci::interrupt::Delivery;
use vpci::message::PowerState;
use vpci::{BadSlot, InterruptWish};

use super::*;
use crate::pci::serve::UNKNOWN_STATUS;

const WISH: InterruptWish<'_> =
    InterruptWish { vector: 1, vectors: 2, delivery: Delivery::LowestPriority, processors: &[0] };

/// How a guest notices.
#[derive(Debug, PartialEq)]
enum Notice {
    /// A packet of no use.
    Packet(GuestBadPacket),
    /// The request that was under way failed.
    Failed(Failure),
    /// The request was reported as overdue.
    Overdue,
    /// So many snapshots were overtaken.
    Superseded(u64),
    /// An eject was ignored.
    EjectIgnored,
}

fn message(error: MessageError) -> Notice {
    Notice::Packet(GuestBadPacket::Message(error))
}

/// What the guest has to report. `request` is its request for an interrupt, the next to be answered.
fn expected(kind: Misbehaviour, function: FunctionId, last_id: u64) -> Notice {
    let step = Step::CreateInterrupt { function, vectors: 2 };
    let relations = MessageType::BUS_RELATIONS2;
    match kind {
        Misbehaviour::AnswerTwice => Notice::Packet(GuestBadPacket::UnknownCompletion(last_id)),
        Misbehaviour::AnswerUnasked => Notice::Packet(GuestBadPacket::UnknownCompletion(u64::MAX)),
        Misbehaviour::AnswerShort => Notice::Failed(Failure::Answer {
            step,
            error: MessageError::ReplyTooShort {
                request: MessageType::CREATE_INTERRUPT3,
                len: 0,
                expected: 4,
            },
        }),
        Misbehaviour::AnswerNever => Notice::Overdue,
        Misbehaviour::AnswerRefused => {
            Notice::Failed(Failure::Refused { step, status: UNKNOWN_STATUS })
        }
        Misbehaviour::FewerVectors => Notice::Failed(Failure::TooFewVectors { asked: 2, got: 1 }),
        Misbehaviour::SnapshotCutShort => {
            message(MessageError::TooShort { kind: relations, len: 8, expected: 8 + 5 * 28 })
        }
        Misbehaviour::SnapshotTooLarge => {
            message(MessageError::TooManyFunctions { kind: relations, count: 257 })
        }
        Misbehaviour::SlotTwice => {
            message(MessageError::SlotTwice { kind: relations, slot: function.slot() })
        }
        Misbehaviour::SlotBeyondAByte => {
            message(MessageError::Slot { kind: relations, error: BadSlot(0x100) })
        }
        Misbehaviour::SnapshotFlood => Notice::Superseded(9),
        Misbehaviour::UnknownMessage => {
            message(MessageError::UnknownType(MessageType(0x4249_00ff)))
        }
        Misbehaviour::GuestsMessage => message(MessageError::WrongSide(MessageType::FDO_D0_EXIT)),
        Misbehaviour::EmptyMessage => message(MessageError::NoType(0)),
        Misbehaviour::EjectEmptySlot => Notice::EjectIgnored,
    }
}

/// What the guest did report.
fn noticed(world: &World) -> Notice {
    for event in &world.guest_events {
        match event {
            Event::RequestFailed { why, .. } => return Notice::Failed(*why),
            Event::Overdue { .. } => return Notice::Overdue,
            _ => {}
        }
    }
    let stats = world.guest.stats();
    match stats.last_bad_packet {
        Some(error) if stats.bad_packets == 1 => Notice::Packet(error),
        _ if stats.ejects_ignored == 1 => Notice::EjectIgnored,
        _ => Notice::Superseded(stats.snapshots_superseded),
    }
}

#[test]
fn no_misbehaviour_of_the_host_costs_the_guest_its_bus() {
    for kind in Misbehaviour::ALL {
        let mut world = World::new(PciPolicy::default(), &[function(0, 1)]);
        world.run();
        let id = world.arrived()[0];
        assert_eq!(world.host.misbehaved(kind), 0, "{kind:?}");
        world.host.misbehave(kind, world.now);
        world.guest.create_interrupt(id, &WISH, world.now).unwrap();
        world.run();
        assert_eq!(world.host.misbehaved(kind), 1, "{kind:?} was done once");
        // Version, D0 entry, requirements, resources, interrupt.
        assert_eq!(noticed(&world), expected(kind, id, 5), "{kind:?}");

        // The bus lives: the function is the same one and can be used, nothing else is overdue.
        assert_eq!(world.guest.functions().next().unwrap().id, id, "{kind:?}");
        world.guest_events.clear();
        let request = world.guest.set_power(id, PowerState::D0, world.now).unwrap();
        world.run();
        let state = PowerState::D0;
        assert_eq!(
            world.guest_events,
            [Event::PowerChanged { function: id, request, state }],
            "{kind:?}"
        );

        // Everything goes back: what the guest knows of, and what it does not.
        world.guest.shutdown(world.now);
        world.run();
        assert_eq!(world.guest_events.last(), Some(&Event::Stopped), "{kind:?}");
        assert_eq!(world.guest.interrupts(id).count(), 0);
        let left = (world.host.interrupts(), world.host.assigned(), world.host.window());
        assert_eq!(left, (0, 0, None), "{kind:?}");
        world.host.close();
        drop(world.guest);
        assert_eq!(world.ram.allocated(), 0, "{kind:?}");
    }
}

// The same while the guest starts up. It may fail then, but not hang: a rescind ends everything.
#[test]
fn misbehaviour_during_start_up_ends_in_a_bus_that_works_or_in_a_report() {
    for kind in Misbehaviour::ALL {
        for moment in 1..6 {
            let policy = PciPolicy { reply_delay: Duration::from_secs(1), ..PciPolicy::default() };
            let mut world = World::new(policy, &[function(0, 1)]);
            world.settle();
            for _ in 0..moment {
                world.step();
            }
            world.host.misbehave(kind, world.now);
            world.run();
            let works = world.guest.functions().count() == 1;
            let reported = world.guest_events.iter().any(|event| {
                matches!(
                    event,
                    Event::Failed(_) | Event::FunctionFailed { .. } | Event::Overdue { .. }
                )
            });
            assert!(works || reported, "{kind:?} at {moment}: {:?}", world.guest_events);
            world.host.close();
            world.guest.rescinded();
            assert_eq!(world.guest.poll_deadline(), None, "{kind:?} at {moment}");
            drop(world.guest);
            assert_eq!(world.ram.allocated(), 0, "{kind:?} at {moment}");
        }
    }
}

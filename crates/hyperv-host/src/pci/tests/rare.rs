//! Messages that few guests send, each in a scenario of its own; and hosts that fall silent.

use vpci::config::{COMMAND_MASTER, COMMAND_MEMORY};
use vpci::interrupt::Delivery;
use vpci::message::PowerState;
use vpci::msi::Msix;
use vpci::{ConfigSpace, InterruptWish, MmioWindow, Width};

use super::*;

const WISH: InterruptWish<'_> =
    InterruptWish { vector: 0x40, vectors: 1, delivery: Delivery::Fixed, processors: &[0] };

/// A guest that uses the newest forms of a version, on a bus with one function.
fn newest(version: Version, policy: PciPolicy, spec: FunctionSpec) -> World {
    let policy = PciPolicy { oldest: version, newest: version, ..policy };
    let mut world = World::new(policy, &[]);
    world.host.add_device(spec, Instant::ZERO).unwrap();
    let (channel, host_channel) = connect(&world.ram, &world.to_guest, &world.to_host);
    world.host.open(host_channel);
    let config = PciBusConfig {
        versions: vec![version],
        resources_form3: true,
        delete_interrupt_form2: true,
        ..PciBusConfig::new(WINDOW)
    };
    world.guest = PciBus::new(channel, config, Instant::ZERO);
    world.run();
    assert_eq!(world.guest.functions().count(), 1);
    world
}

fn disk() -> FunctionSpec {
    FunctionSpec::nvme(slot(0), Serial(1))
}

#[test]
fn interrupts_come_with_resources_and_go_one_by_one_in_the_forms_of_every_version() {
    for version in [Version::V1_1, Version::V1_2, Version::V1_3, Version::V1_4] {
        for assigned3_as_2 in [false, true] {
            let policy = PciPolicy { assigned3_as_2, ..PciPolicy::default() };
            let mut world = newest(version, policy, disk());
            let id = world.guest.functions().next().unwrap().id;
            world.guest_events.clear();
            let wishes = [WISH, InterruptWish { vectors: 4, ..WISH }, WISH];
            let request = world.guest.assign_with_interrupts(id, &wishes, world.now).unwrap();
            world.settle();
            let assigned = Event::ResourcesAssigned { function: id, request };
            assert_eq!(world.guest_events.last(), Some(&assigned), "{version}");
            let granted: Vec<_> = world.guest.interrupts(id).collect();
            let mut vectors: Vec<_> = granted.iter().map(|one| one.vectors).collect();
            vectors.sort_unstable();
            assert_eq!((vectors, world.host.interrupts()), (vec![1, 1, 4], 3), "{version}");
            for (left, interrupt) in (0..3).rev().zip(granted) {
                world.guest.delete_interrupt(id, interrupt).unwrap();
                world.settle();
                assert_eq!(world.host.interrupts(), left, "{version}");
            }
            assert_eq!(world.host.stats().bad_packets + world.guest.stats().bad_packets, 0);
            world.guest.shutdown(world.now);
            world.run();
            assert_eq!((world.host.assigned(), world.host.window()), (0, None));
        }
    }
}

// RELEASE_RESOURCES takes the interrupts with it, also those that the guest forgot.
#[test]
fn resources_that_are_released_take_their_interrupts_along() {
    let mut world = newest(Version::V1_4, PciPolicy::default(), disk());
    let id = world.guest.functions().next().unwrap().id;
    world.guest.assign_with_interrupts(id, &[WISH; 3], world.now).unwrap();
    world.settle();
    let (channel, host_channel) = connect(&world.ram, &world.to_guest, &world.to_host);
    // The kernel crashes; the next one finds the bus on, releases everything, and starts anew.
    world.host.open(host_channel);
    world.guest = PciBus::new(channel, PciBusConfig::new(WINDOW), world.now);
    world.run();
    assert_eq!((world.host.interrupts(), world.host.assigned()), (0, 1));
}

#[test]
fn a_reset_makes_a_function_as_new_and_restoring_makes_it_work_again() {
    let policy = PciPolicy { resets: true, ..PciPolicy::default() };
    let mut world = newest(Version::V1_5, policy, disk());
    let function = *world.guest.functions().next().unwrap();
    let mut config = ConfigSpace::new(&function);
    let mut space = vpci::assign::AddressSpace::new(std::iter::once(0xf800_0000..0xf900_0000));
    let placed = space.place(function.bars().unwrap()).unwrap();
    let window = &mut world.host.memory(WINDOW);
    config.place_bars(window, &placed).unwrap();
    config.set_command(window, COMMAND_MEMORY | COMMAND_MASTER);
    let msix = Msix::find(&config, window).unwrap().unwrap();
    msix.enable(&mut config, window, true).unwrap();
    let version = |world: &mut World| world.host.memory(placed[0].address).read(8, Width::Word);
    assert_eq!(version(&mut world), 0x0001_0400);

    world.guest_events.clear();
    let request = world.guest.reset(function.id, world.now).unwrap();
    world.settle();
    assert_eq!(world.guest_events, [Event::FunctionReset { function: function.id, request }]);
    assert_eq!(version(&mut world), u32::MAX, "its BARs are where they were at power-on");
    assert_eq!(world.host.raise(slot(0), 0), Some(Raised::Off));

    config.restore(&mut world.host.memory(WINDOW), COMMAND_MEMORY | COMMAND_MASTER);
    assert_eq!(version(&mut world), 0x0001_0400);
    msix.enable(&mut config, &mut world.host.memory(WINDOW), true).unwrap();
    assert_eq!(
        world.host.raise(slot(0), 0),
        Some(Raised::Masked),
        "entries are masked as at first"
    );
}

#[test]
fn a_host_that_does_not_reset_says_so() {
    let mut world = newest(Version::V1_6, PciPolicy::default(), disk());
    let id = world.guest.functions().next().unwrap().id;
    world.guest.reset(id, world.now).unwrap();
    world.settle();
    let why = Failure::Refused { step: Step::Reset(id), status: Status::NOT_SUPPORTED };
    let failed =
        |event: &Event| matches!(event, Event::RequestFailed { why: it, .. } if *it == why);
    assert!(world.guest_events.iter().any(failed));
}

#[test]
fn the_host_is_asked_for_the_resources_that_it_knows_of() {
    let mut world = newest(Version::V1_4, PciPolicy::default(), disk());
    let id = world.guest.functions().next().unwrap().id;
    world.guest.query_resources(id, world.now).unwrap();
    world.settle();
    // As every guest leaves them zero, that is what there is.
    let zero = |event: &Event| {
        matches!(event, Event::Resources { resources, .. }
            if resources.iter().all(|one| one.kind == 0 && one.length.get() == 0))
    };
    assert!(world.guest_events.iter().any(zero));
}

#[test]
fn security_commands_reach_a_host_with_confidential_devices_and_no_other() {
    for answer in [None, Some(vec![1, 2, 3, 4])] {
        let policy = PciPolicy { tdisp_answer: answer.clone(), ..PciPolicy::default() };
        let mut world = newest(Version::V1_4, policy, disk());
        let id = world.guest.functions().next().unwrap().id;
        world.host_events();
        world.guest_events.clear();
        let request = world.guest.tdisp(id, &[7; 300], world.now).unwrap();
        world.settle();
        assert_eq!(world.host_events(), [PciEvent::Tdisp { slot: slot(0), bytes: 300 }]);
        let why = Failure::Refused { step: Step::Tdisp(id), status: Status::NOT_SUPPORTED };
        let expected = match &answer {
            Some(_) => Event::TdispAnswered { function: id, request },
            None => Event::RequestFailed { function: id, request, why },
        };
        assert_eq!(world.guest_events, [expected]);
        assert_eq!(world.guest.take_tdisp_answer(request), answer);
    }
}

// Both messages that say "look again", and what they are for: a host whose snapshot got lost.
#[test]
fn a_host_that_invalidates_a_device_or_the_bus_is_asked_for_its_functions_again() {
    let mut world = World::new(PciPolicy::default(), &[function(0, 1)]);
    world.run();
    for device in [true, false] {
        let before = world.guest.stats().snapshots;
        match device {
            true => world.host.notify(MessageType::INVALIDATE_DEVICE, slot(0), world.now),
            false => world.host.invalidate_bus(world.now),
        }
        world.run();
        assert_eq!(world.guest.stats().snapshots, before + 1);
        assert_eq!(world.guest.functions().count(), 1, "and nothing has changed");
    }
}

#[test]
fn a_host_that_wants_to_stop_a_function_is_heard_and_the_function_stays() {
    use vpci::bus::StopNotice;
    let mut world = World::new(PciPolicy::default(), &[function(0, 1)]);
    world.run();
    let id = world.arrived()[0];
    for (kind, notice) in [
        (MessageType::QUERY_STOP, StopNotice::Wanted),
        (MessageType::QUERY_STOP_FAILED, StopNotice::Cancelled),
        (MessageType::RE_ENABLE, StopNotice::Over),
    ] {
        world.host.notify(kind, slot(0), world.now);
        world.settle();
        let told = std::mem::take(&mut world.guest_events);
        assert_eq!(told, [Event::StopNotice { function: id, notice }]);
    }
    assert_eq!(world.guest.functions().count(), 1);
}

/// Something that a guest asks of a host, and the message with which it does.
type Ask = (MessageType, fn(&mut World, FunctionId));

// A host that falls silent at any step is reported once, with the step, after ten seconds; what comes late still counts for
// the bus, and a rescind ends every wait.
#[test]
fn a_host_that_falls_silent_is_reported_with_the_step_whatever_the_step() {
    let start_up = [
        MessageType::QUERY_PROTOCOL_VERSION,
        MessageType::QUERY_BUS_RELATIONS,
        MessageType::FDO_D0_ENTRY,
        MessageType::QUERY_RESOURCE_REQUIREMENTS,
        MessageType::ASSIGNED_RESOURCES3,
    ];
    let asked: [Ask; 9] = [
        (MessageType::CREATE_INTERRUPT3, |world, id| {
            world.guest.create_interrupt(id, &WISH, world.now).unwrap();
        }),
        (MessageType::ASSIGNED_RESOURCES3, |world, id| {
            world.guest.assign_with_interrupts(id, &[WISH], world.now).unwrap();
        }),
        (MessageType::READ_BLOCK, |world, id| {
            world.guest.read_block(id, 1, 4, world.now).unwrap();
        }),
        (MessageType::WRITE_BLOCK, |world, id| {
            world.guest.write_block(id, 1, &[1], world.now).unwrap();
        }),
        (MessageType::DEVICE_POWER_STATE_CHANGE, |world, id| {
            world.guest.set_power(id, PowerState::D3, world.now).unwrap();
        }),
        (MessageType::GET_RESOURCES, |world, id| {
            world.guest.query_resources(id, world.now).unwrap();
        }),
        (MessageType::RESET_DEVICE, |world, id| {
            world.guest.reset(id, world.now).unwrap();
        }),
        (MessageType::TDISP, |world, id| {
            world.guest.tdisp(id, &[1], world.now).unwrap();
        }),
        (MessageType::FDO_D0_EXIT, |world, _| world.guest.suspend(world.now).unwrap()),
    ];
    let nothing: fn(&mut World, FunctionId) = |_, _| {};
    for (kind, ask) in start_up.map(|kind| (kind, nothing)).into_iter().chain(asked) {
        let starting = start_up.contains(&kind) && std::ptr::fn_addr_eq(ask, nothing);
        let mut world = newest(Version::V1_6, PciPolicy::default(), disk());
        world.host.policy_mut().unanswered = vec![kind];
        if starting {
            world.guest.shutdown(world.now);
            world.run();
            let (channel, host_channel) = connect(&world.ram, &world.to_guest, &world.to_host);
            world.host.open(host_channel);
            let mut config = PciBusConfig::new(WINDOW);
            (config.versions, config.resources_form3) = (vec![Version::V1_6], true);
            world.guest = PciBus::new(channel, config, world.now);
        } else {
            let id = world.guest.functions().next().unwrap().id;
            ask(&mut world, id);
        }
        world.settle();
        world.guest_events.clear();
        let since = world.now;
        assert!(world.step(), "{kind}: there is a deadline");
        assert_eq!(world.now - since, Duration::from_secs(10), "{kind}");
        let [Event::Overdue { step, waited }] = world.guest_events[..] else {
            panic!("{kind}: {:?}", world.guest_events);
        };
        assert_eq!(waited, Duration::from_secs(10), "{kind}");
        assert_eq!(message_of(step), kind, "{step}");
        assert!(!world.step(), "{kind}: reported once");
        world.host.close();
        world.guest.rescinded();
        assert_eq!(world.guest.poll_deadline(), None, "{kind}: a rescind ends every wait");
    }
}

/// The message whose answer a step waits for, in the newest version.
fn message_of(step: Step) -> MessageType {
    match step {
        Step::Version(_) => MessageType::QUERY_PROTOCOL_VERSION,
        Step::Relations => MessageType::QUERY_BUS_RELATIONS,
        Step::D0Entry => MessageType::FDO_D0_ENTRY,
        Step::D0Exit => MessageType::FDO_D0_EXIT,
        Step::Requirements(_) => MessageType::QUERY_RESOURCE_REQUIREMENTS,
        Step::Assign(_) | Step::AssignInterrupts { .. } => MessageType::ASSIGNED_RESOURCES3,
        Step::CreateInterrupt { .. } => MessageType::CREATE_INTERRUPT3,
        Step::ReadBlock { .. } => MessageType::READ_BLOCK,
        Step::WriteBlock { .. } => MessageType::WRITE_BLOCK,
        Step::Power { .. } => MessageType::DEVICE_POWER_STATE_CHANGE,
        Step::Resources(_) => MessageType::GET_RESOURCES,
        Step::Reset(_) => MessageType::RESET_DEVICE,
        Step::Tdisp(_) => MessageType::TDISP,
    }
}

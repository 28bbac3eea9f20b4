//! The real guest bus against the service, woken only by doorbells and deadlines.

mod devices;
mod rare;
mod raw;
mod scenarios;

use std::time::Duration;

use vmbus::platform::Platform;
use vmbus::{Channel, SignalFlag};
use vpci::bus::{Failure, Step};
use vpci::message::{
    D0Entry, EjectComplete, MSI3_SHORT, MessageError, Msi1, Msi3, QueryVersion, RemappedMsi,
    Status, WINDOW_SIZE,
};
use vpci::{Event, FunctionId, PciBus, PciBusConfig};

use super::*;
use crate::memory::{GuestMemory, GuestRam};

const WINDOW: u64 = 0xf_e000_0000;
const BAR: [u32; BARS] = [0xffff_f00c, 0xffff_ffff, 0, 0, 0, 0];

/// A guest, a host, and a clock that only ever moves to the next deadline.
struct World {
    ram: GuestRam,
    guest: PciBus,
    host: PciService,
    to_guest: SignalFlag,
    to_host: SignalFlag,
    now: Instant,
    guest_events: Vec<Event>,
    host_events: Vec<PciEvent>,
    /// Times that either side was polled.
    looks: u64,
}

fn connect(ram: &GuestRam, to_guest: &SignalFlag, to_host: &SignalFlag) -> (Channel, HostChannel) {
    let (up, down) = (ram.allocate(5).unwrap(), ram.allocate(5).unwrap());
    let map = |pages: &vmbus::memory::SharedPages| ram.map(pages.frames()).unwrap();
    let host = Channel::from_parts(map(&down), map(&up), to_guest.clone()).unwrap();
    (Channel::from_parts(up, down, to_host.clone()).unwrap(), host)
}

impl World {
    fn new(policy: PciPolicy, functions: &[Description]) -> Self {
        let ram = GuestRam::new(1, 64);
        let (to_guest, to_host) = (SignalFlag::new(), SignalFlag::new());
        let (channel, host_channel) = connect(&ram, &to_guest, &to_host);
        let mut host = PciService::new(policy);
        for function in functions {
            host.add_function(*function, BAR, Instant::ZERO).unwrap();
        }
        host.open(host_channel);
        let guest = PciBus::new(channel, PciBusConfig::new(WINDOW), Instant::ZERO);
        Self {
            ram,
            guest,
            host,
            to_guest,
            to_host,
            now: Instant::ZERO,
            guest_events: Vec::new(),
            host_events: Vec::new(),
            looks: 0,
        }
    }

    /// Runs until nobody has anything to do at this moment.
    fn settle(&mut self) {
        let due = |deadline: Option<Instant>, now| deadline.is_some_and(|deadline| deadline <= now);
        for _ in 0..10_000 {
            let guest = self.to_guest.take() | due(self.guest.poll_deadline(), self.now);
            let host = self.to_host.take() | due(self.host.poll_deadline(), self.now);
            self.looks += u64::from(guest) + u64::from(host);
            if guest {
                self.guest.poll(self.now).unwrap();
            }
            if host {
                self.host.poll(self.now);
            }
            self.guest_events.extend(core::iter::from_fn(|| self.guest.poll_event()));
            self.host_events.extend(core::iter::from_fn(|| self.host.poll_event()));
            if !guest && !host {
                return;
            }
        }
        panic!("never at rest");
    }

    /// Goes to the next deadline; false if there is none.
    fn step(&mut self) -> bool {
        let next = earliest(self.guest.poll_deadline(), self.host.poll_deadline());
        let Some(next) = next else { return false };
        self.now = self.now.max(next);
        self.settle();
        true
    }

    fn run(&mut self) {
        self.settle();
        while self.step() {}
    }

    fn arrived(&mut self) -> Vec<FunctionId> {
        let events = std::mem::take(&mut self.guest_events).into_iter();
        events
            .filter_map(|event| match event {
                Event::FunctionArrived(function) => Some(function.id),
                _ => None,
            })
            .collect()
    }

    /// The guest does what a shell does: gives back at once what it is asked for.
    fn obey(&mut self) {
        for event in std::mem::take(&mut self.guest_events) {
            if let Event::EjectRequested { function } = event {
                self.guest.eject_complete(function).unwrap();
            }
        }
    }

    fn host_events(&mut self) -> Vec<PciEvent> {
        std::mem::take(&mut self.host_events)
    }
}

fn function(slot: u32, serial: u32) -> Description {
    Description {
        slot: Slot::from_wire(slot).unwrap(),
        vendor: 0x1414,
        device: 0x00ff,
        revision: 1,
        class: 2,
        subclass: 0,
        prog_if: 0,
        subsystem_vendor: 0,
        subsystem: 0,
        serial: Serial(serial),
        numa_node: Some(1),
    }
}

fn slot(number: u32) -> Slot {
    Slot::from_wire(number).unwrap()
}

#[test]
fn a_guest_finds_its_functions() {
    // HISTORY section 6, 8: function 7.
    let list = [function(0, 1), function(0xe0, 1), function(0x1f, 0)];
    let mut world = World::new(PciPolicy::default(), &list);
    world.run();
    let there: Vec<_> = world.guest.functions().map(|f| (f.description, f.bar_masks)).collect();
    assert_eq!(there, [(list[0], BAR), (list[2], BAR), (list[1], BAR)]);
    assert_eq!((world.host.window(), world.host.assigned()), (Some(WINDOW), 3));
    assert_eq!(world.host.stats().bad_packets + world.host.stats().order_errors, 0);
    assert_eq!(
        world.host_events()[..2],
        [PciEvent::Connected(Version::V1_4), PciEvent::D0Entered { window: WINDOW }]
    );
    world.guest.shutdown(world.now);
    world.run();
    assert_eq!(world.guest_events.last(), Some(&Event::Stopped));
    assert_eq!((world.host.window(), world.host.assigned()), (None, 0));
    world.host.close();
    drop(world.guest);
    assert_eq!(world.ram.allocated(), 0);
}

// HISTORY section 6, 8: hosts of one version only.
#[test]
fn every_version_both_sides_know_is_found() {
    for (only, node) in [
        (Version::V1_1, None),
        (Version::V1_2, None),
        (Version::V1_3, Some(1)),
        (Version::V1_4, Some(1)),
    ] {
        let policy = PciPolicy { oldest: only, newest: only, ..PciPolicy::default() };
        let mut world = World::new(policy, &[function(0, 5)]);
        world.run();
        assert_eq!(world.guest.version(), Some(only));
        let there = world.guest.functions().next().unwrap();
        assert_eq!(there.description.numa_node, node, "{only}");
    }
    let policy = PciPolicy { oldest: Version::V1_5, newest: Version::V1_6, ..PciPolicy::default() };
    let mut world = World::new(policy, &[]);
    world.run();
    assert_eq!(world.guest_events, [Event::Failed(Failure::NoCommonVersion)]);
}

// HISTORY 54
#[test]
fn one_refused_d0_entry_is_mended_and_two_are_not() {
    for (refused, works) in [(1, true), (2, false)] {
        let policy = PciPolicy { refuse_d0_entries: refused, ..PciPolicy::default() };
        let mut world = World::new(policy, &[function(0, 1)]);
        world.run();
        assert_eq!(world.guest.functions().count(), usize::from(works));
        let status = Status::BAD_DATA;
        let failed = Event::Failed(Failure::Refused { step: Step::D0Entry, status });
        assert_eq!(world.guest_events.contains(&failed), !works);
    }
}

// HISTORY 54: a kernel that crashed left the bus on; the next one finds it so.
#[test]
fn a_bus_left_on_by_an_earlier_kernel_is_taken_over() {
    let mut world = World::new(PciPolicy::default(), &[function(0, 1)]);
    world.run();
    let (channel, host_channel) = connect(&world.ram, &world.to_guest, &world.to_host);
    world.host.open(host_channel);
    world.guest = PciBus::new(channel, PciBusConfig::new(WINDOW + WINDOW_SIZE), world.now);
    world.arrived();
    world.run();
    assert_eq!(world.arrived().len(), 1);
    assert_eq!(world.host.window(), Some(WINDOW + WINDOW_SIZE));
    assert_eq!(world.host.stats().order_errors, 1);
}

#[test]
fn functions_come_and_go_while_the_bus_is_on() {
    let mut world = World::new(PciPolicy::default(), &[]);
    world.run();
    for serial in 0..20 {
        world.host.add_function(function(2, serial), BAR, world.now).unwrap();
        world.settle();
        assert_eq!(world.guest.serial(slot(2)), Some(Serial(serial)));
        assert!(world.host.remove(slot(2), world.now));
        world.settle();
        assert_eq!(world.guest.serial(slot(2)), None);
    }
    assert!(!world.host.remove(slot(2), world.now));
    world.host.add_function(function(2, 0), BAR, world.now).unwrap();
    let taken = world.host.add_function(function(2, 1), BAR, world.now);
    assert_eq!(taken, Err(SlotTaken(slot(2))));
}

#[test]
fn a_function_replaced_in_its_slot_is_a_new_one_even_if_the_snapshots_are_read_together() {
    let mut world = World::new(PciPolicy::default(), &[function(0, 1)]);
    world.run();
    let old = world.arrived()[0];
    world.host.remove(slot(0), world.now);
    world.host.add_function(function(0, 2), BAR, world.now).unwrap();
    world.settle();
    assert!(
        matches!(
            world.guest_events[..],
            [Event::FunctionLeft(left), Event::FunctionArrived(new)]
                if left.id == old && new.serial() == Serial(2)
        ),
        "{:?}",
        world.guest_events
    );
}

#[test]
fn an_eject_ends_with_the_guests_answer() {
    let mut world = World::new(PciPolicy::default(), &[function(0, 1)]);
    world.run();
    world.host_events();
    assert!(world.host.eject(slot(0), world.now));
    assert!(world.host.eject(slot(0), world.now));
    world.settle();
    assert!(world.host_events().is_empty(), "the guest has not answered yet");
    world.obey();
    world.settle();
    assert_eq!(world.host_events(), [PciEvent::EjectCompleted { slot: slot(0) }]);
    assert_eq!(world.host.stats().unexpected_eject_completes, 0);
    assert!(!world.host.eject(slot(0), world.now));
    assert!(!world.step(), "nothing is waited for any more");
}

// HISTORY section 6, 1: an eject that is never answered.
#[test]
fn patience_with_an_eject_ends_after_a_minute() {
    let mut world = World::new(PciPolicy::default(), &[function(0, 1)]);
    world.run();
    world.host_events();
    let start = world.now;
    world.host.eject(slot(0), world.now);
    world.settle();
    assert!(world.step());
    assert_eq!(world.now - start, Duration::from_secs(60));
    assert_eq!(world.host_events(), [PciEvent::EjectOverdue { slot: slot(0) }]);
    assert_eq!(world.host.functions().count(), 0);
}

// HISTORY section 6, 1: an eject, and the device is gone before the guest can answer.
#[test]
fn a_rescind_right_after_an_eject_leaves_nothing_to_answer() {
    let mut world = World::new(PciPolicy::default(), &[function(0, 1)]);
    world.run();
    let id = world.arrived()[0];
    world.host.eject(slot(0), world.now);
    world.settle();
    world.host.close();
    world.guest.rescinded();
    world.settle();
    assert!(world.guest.eject_complete(id).is_err());
    world.run();
    assert_eq!(world.host_events.last(), Some(&PciEvent::EjectCompleted { slot: slot(0) }));
    assert_eq!(world.guest_events.last(), Some(&Event::Stopped));
    drop(world.guest);
    assert_eq!(world.ram.allocated(), 0);
}

// HISTORY 26
#[test]
fn an_eject_overtaken_by_a_removal_is_answered_by_nobody() {
    let mut world = World::new(PciPolicy::default(), &[function(0, 1)]);
    world.run();
    world.host.eject(slot(0), world.now);
    world.host.remove(slot(0), world.now);
    world.settle();
    world.guest_events.retain(|event| !matches!(event, Event::EjectRequested { .. }));
    world.obey();
    world.run();
    assert_eq!(world.host.stats().unexpected_eject_completes, 0);
    assert_eq!(world.guest.functions().count(), 0);
}

#[test]
fn slow_answers_change_nothing_but_the_time() {
    let delay = Duration::from_secs(9);
    let policy = PciPolicy { reply_delay: delay, ..PciPolicy::default() };
    let mut world = World::new(policy, &[function(0, 1)]);
    world.settle();
    while world.guest.functions().count() == 0 {
        assert!(world.step());
    }
    assert_eq!(world.now.since(Instant::ZERO), delay * 4, "version, D0, requirements, resources");
    assert!(!world.guest_events.iter().any(|event| matches!(event, Event::Overdue { .. })));
}

#[test]
fn answers_that_never_come_are_reported_by_step() {
    for (kind, step) in [
        (MessageType::QUERY_PROTOCOL_VERSION, Step::Version(Version::V1_4)),
        (MessageType::FDO_D0_ENTRY, Step::D0Entry),
    ] {
        let policy = PciPolicy { unanswered: vec![kind], ..PciPolicy::default() };
        let mut world = World::new(policy, &[function(0, 1)]);
        world.run();
        let waited = Duration::from_secs(10);
        assert_eq!(world.guest_events, [Event::Overdue { step, waited }]);
    }
}

// HISTORY section 6, 8: replies shorter than their status.
#[test]
fn refusals_and_empty_answers_fail_the_function_and_not_the_bus() {
    let kind = MessageType::QUERY_RESOURCE_REQUIREMENTS;
    for policy in [
        PciPolicy { refused: vec![(kind, Status::NOT_SUPPORTED)], ..PciPolicy::default() },
        PciPolicy { empty_answers: vec![kind], ..PciPolicy::default() },
    ] {
        let mut world = World::new(policy, &[function(0, 1)]);
        world.run();
        assert_eq!(world.guest.functions().count(), 0);
        assert!(matches!(world.guest_events.last(), Some(Event::FunctionFailed { .. })));
        *world.host.policy_mut() = PciPolicy::default();
        world.host.add_function(function(1, 2), BAR, world.now).unwrap();
        world.run();
        assert_eq!(world.arrived().len(), 1);
    }
}

#[test]
fn messages_that_lie_do_not_move_the_guest() {
    let mut world = World::new(PciPolicy::default(), &[function(0, 1)]);
    world.run();
    world.arrived();
    for message in
        [&[][..], &[0x19, 0, 0x49, 0x42, 0xff, 0, 0, 0], &[0x1e, 0, 0x49, 0x42], &[0; 64]]
    {
        world.host.send(message.to_vec(), world.now);
    }
    world.run();
    assert_eq!(world.guest.stats().bad_packets, 4);
    assert_eq!((world.guest.functions().count(), world.guest_events.len()), (1, 0));
}

proptest::proptest! {
    // Whatever the host does to the bus, step by step: the guest ends with the functions that the host has, and never
    // answers for one that was not asked back.
    #[test]
    fn guest_and_host_end_with_the_same_functions(
        steps in proptest::collection::vec((0_u8..5, 0_u32..4), 0..60),
        delay in 0_u64..3,
    ) {
        let reply_delay = Duration::from_secs(delay);
        let policy = PciPolicy { reply_delay, ..PciPolicy::default() };
        let mut world = World::new(policy, &[]);
        world.run();
        for (serial, (step, number)) in (0..).zip(steps) {
            match step {
                0 => drop(world.host.add_function(function(number, serial), BAR, world.now)),
                1 => drop(world.host.remove(slot(number), world.now)),
                2 => drop(world.host.eject(slot(number), world.now)),
                3 => drop(world.step()),
                _ => {}
            }
            world.settle();
            // A guest that has forgotten the function by now must not answer for its slot.
            for event in std::mem::take(&mut world.guest_events) {
                if let Event::EjectRequested { function } = event
                    && number != 3
                {
                    let _ = world.guest.eject_complete(function);
                }
            }
            world.settle();
        }
        world.run();
        // What was taken when the guest's time was over is still listed in its last snapshot.
        world.host.add_function(function(9, 9), BAR, world.now).unwrap();
        world.run();
        let there: Vec<_> = world.guest.functions().map(|f| f.description).collect();
        proptest::prop_assert_eq!(there, world.host.functions().copied().collect::<Vec<_>>());
        proptest::prop_assert_eq!(world.host.stats().unexpected_eject_completes, 0);
        proptest::prop_assert_eq!(world.host.stats().bad_packets, 0);
        proptest::prop_assert_eq!(world.guest.stats().bad_packets, 0);
    }
}

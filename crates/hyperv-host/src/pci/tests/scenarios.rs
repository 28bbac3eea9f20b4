//! A bus that goes at every moment of its life, and comes back.

use vmbus::Guid;
use vpci::interrupt::Delivery;
use vpci::naming::{Domains, SlotNames};
use vpci::{FunctionId, InterruptWish};

use super::*;

/// How a function goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Removal {
    /// It is no longer listed.
    Unlisted,
    /// Nothing is listed any more.
    AllUnlisted,
    /// It is asked back, and given.
    Eject,
    /// It is asked back, and the guest never answers.
    EjectUnanswered,
    /// It is asked back, and its bus is gone before the guest can answer.
    EjectThenRescind,
    /// It is asked back and unlisted in one batch.
    EjectAndUnlisted,
    /// Its bus is gone.
    Rescind,
}

const REMOVALS: [Removal; 7] = [
    Removal::Unlisted,
    Removal::AllUnlisted,
    Removal::Eject,
    Removal::EjectUnanswered,
    Removal::EjectThenRescind,
    Removal::EjectAndUnlisted,
    Removal::Rescind,
];

impl World {
    fn rescind(&mut self) {
        self.host.close();
        self.guest.rescinded();
    }

    fn take(&mut self, removal: Removal) {
        let (at, now) = (slot(0), self.now);
        match removal {
            Removal::Unlisted => drop(self.host.remove(at, now)),
            Removal::AllUnlisted => self.host.remove_all(now),
            Removal::Eject | Removal::EjectUnanswered => drop(self.host.eject(at, now)),
            Removal::EjectThenRescind => {
                self.host.eject(at, now);
                self.settle();
                self.rescind();
            }
            Removal::EjectAndUnlisted => {
                self.host.eject(at, now);
                self.host.remove(at, now);
            }
            Removal::Rescind => self.rescind(),
        }
    }

    /// Runs to the end as a guest that keeps a balance of its functions; asks are answered if `obey`.
    fn finish(&mut self, obey: bool, known: &mut Vec<FunctionId>) {
        loop {
            self.settle();
            for event in std::mem::take(&mut self.guest_events) {
                match event {
                    Event::FunctionArrived(function) => {
                        assert!(!known.contains(&function.id));
                        known.push(function.id);
                        let wish = InterruptWish {
                            vector: 3,
                            vectors: 1,
                            delivery: Delivery::Fixed,
                            processors: &[0],
                        };
                        // It may be gone again already.
                        let _ = self.guest.create_interrupt(function.id, &wish, self.now);
                    }
                    Event::FunctionLeft(function) => {
                        let before = known.len();
                        known.retain(|id| *id != function.id);
                        assert_eq!(known.len() + 1, before, "left once");
                    }
                    Event::EjectRequested { function } if obey => {
                        // Ejected and unlisted in one batch: there is nothing to give any more.
                        let _ = self.guest.eject_complete(function);
                    }
                    Event::Overdue { step, .. } => panic!("{step} overdue"),
                    _ => {}
                }
            }
            if !self.step() && self.guest_events.is_empty() {
                return;
            }
        }
    }
}

// HISTORY 25, 26, 54: every way to go, at every step of the start-up and after it. Nothing is left, nothing is waited
// for, nothing is answered twice.
#[test]
fn a_function_may_go_in_any_way_at_any_step() {
    for removal in REMOVALS {
        for moment in 0..12 {
            let policy = PciPolicy { reply_delay: Duration::from_secs(1), ..PciPolicy::default() };
            let mut world = World::new(policy, &[function(0, 1)]);
            world.settle();
            for _ in 0..moment {
                world.step();
            }
            let mut known = Vec::new();
            // What arrived so far is taken note of, and asks for an interrupt that the removal may overtake.
            for event in std::mem::take(&mut world.guest_events) {
                if let Event::FunctionArrived(function) = event {
                    known.push(function.id);
                    let wish = InterruptWish {
                        vector: 3,
                        vectors: 1,
                        delivery: Delivery::Fixed,
                        processors: &[0],
                    };
                    world.guest.create_interrupt(function.id, &wish, world.now).unwrap();
                }
            }
            world.take(removal);
            world.finish(removal != Removal::EjectUnanswered, &mut known);
            if removal == Removal::EjectUnanswered {
                // The host has taken it; the guest learns it from the next list, or from the rescind that follows.
                world.rescind();
                world.finish(true, &mut known);
            }
            let at = format!("{removal:?} after {moment} steps");
            assert!(known.is_empty(), "{at}");
            assert_eq!(world.guest.functions().count(), 0, "{at}");
            assert_eq!(world.host.functions().count(), usize::from(removal == Removal::Rescind));
            assert_eq!((world.host.assigned(), world.host.interrupts()), (0, 0), "{at}");
            let stats = world.host.stats();
            assert_eq!(stats.bad_packets, 0, "{at}");
            // A guest that does not use the function yet answers at once, and that crosses the list without it.
            let crossing = u64::from(removal == Removal::EjectAndUnlisted);
            assert!(stats.crossed_eject_completes <= crossing, "{at}");
            assert_eq!(stats.unexpected_eject_completes, 0, "{at}");
            world.host.close();
            drop(world.guest);
            assert_eq!(world.ram.allocated(), 0, "{at}");
        }
    }
}

// HISTORY 28, section 6, 2: gone for 30 seconds, then there is the same bus again, with the serial number that it had or
// with another. Nothing was stored that could contradict it.
#[test]
fn servicing_brings_the_function_back_with_any_serial() {
    let instance = Guid::from_u128(0x4750_5500_6b31_0000_3130_4445_3133_4632);
    for (serials, expected) in [
        (SerialPolicy::Ordinals, [1, 1, 1]),
        (SerialPolicy::Changing, [1, 2, 3]),
        (SerialPolicy::Constant(Serial(0)), [0, 0, 0]),
        (SerialPolicy::Instance, [0x4750_5500; 3]),
    ] {
        let (mut domains, mut names) = (Domains::new(), SlotNames::new());
        let serial = |returns| serials.serial(0, &instance, returns);
        let mut world = World::new(PciPolicy::default(), &[function(0, serial(0).0)]);
        for returns in 0..3 {
            world.run();
            assert_eq!(world.arrived().len(), 1);
            let found = world.guest.serial(slot(0)).unwrap();
            assert_eq!(found, Serial(expected[returns as usize]), "{serials:?}");
            // HISTORY 23, 24: the name goes before the function's bus does.
            let domain = domains.claim(&instance).unwrap();
            assert_eq!(domain.number(), 0x6b31, "the same after every return");
            assert_eq!(names.add(&domain, slot(0), found), found.to_string());
            world.rescind();
            assert!(names.remove(&domain, slot(0)));
            domains.release(domain).unwrap();
            world.run();
            world.host.remove_all(world.now);
            world.now = world.now + Duration::from_secs(30);
            let next = function(0, serial(returns + 1).0);
            world.host.add_function(next, BAR, world.now).unwrap();
            let (channel, host_channel) = connect(&world.ram, &world.to_guest, &world.to_host);
            world.host.open(host_channel);
            world.guest = PciBus::new(channel, PciBusConfig::new(WINDOW), world.now);
        }
        assert_eq!((domains.taken(), names.len()), (0, 0));
    }
}

// HISTORY 56: whatever start-up step fails, the bus's domain is given back once.
#[test]
fn a_bus_that_fails_at_any_step_gives_its_domain_back_once() {
    let instance = Guid::from_u128(0x4750_5500_0007_0000_3130_4445_3133_4632);
    let mut domains = Domains::new();
    for refused in [
        MessageType::QUERY_BUS_RELATIONS,
        MessageType::FDO_D0_ENTRY,
        MessageType::QUERY_RESOURCE_REQUIREMENTS,
        MessageType::ASSIGNED_RESOURCES2,
    ] {
        for policy in [
            PciPolicy { refused: vec![(refused, Status::BAD_DATA)], ..PciPolicy::default() },
            PciPolicy { empty_answers: vec![refused], ..PciPolicy::default() },
        ] {
            let mut held = Some(domains.claim(&instance).unwrap());
            let mut world = World::new(policy, &[function(0, 1)]);
            world.run();
            world.guest.shutdown(world.now);
            world.run();
            for event in &world.guest_events {
                if matches!(event, Event::Failed(_) | Event::Stopped)
                    && let Some(domain) = held.take()
                {
                    domains.release(domain).unwrap();
                }
            }
            assert!(held.is_none(), "{refused}");
            assert_eq!(domains.taken(), 0);
        }
    }
}

// HISTORY 16: a disk and a NIC's function with the same number, each on a bus of its own.
#[test]
fn a_disk_and_a_network_function_with_one_serial_are_both_found() {
    let mut disks = World::new(PciPolicy::default(), &[]);
    disks.host.add_device(FunctionSpec::nvme(slot(0), Serial(1)), Instant::ZERO).unwrap();
    let mut nics = World::new(PciPolicy::default(), &[crate::vf::description(slot(0), Serial(1))]);
    for world in [&mut disks, &mut nics] {
        world.run();
        assert_eq!(world.guest.serial(slot(0)), Some(Serial(1)));
    }
    assert_eq!(disks.guest.functions().next().unwrap().description.class, 1);
    assert_eq!(nics.guest.functions().next().unwrap().description.class, 2);
}

#[test]
fn a_suspended_bus_finds_its_functions_again_and_sees_which_have_changed() {
    let list: Vec<_> = (0..4).map(|number| function(number, number)).collect();
    let mut world = World::new(PciPolicy::default(), &list);
    world.run();
    let before = world.arrived();
    world.guest.suspend(world.now).unwrap();
    world.run();
    assert_eq!(world.guest_events, [Event::Suspended]);
    assert_eq!((world.host.window(), world.host.assigned()), (None, 0));
    world.host.close();
    world.host.remove(slot(1), world.now);
    world.host.add_function(function(1, 77), BAR, world.now).unwrap();
    world.host.remove(slot(2), world.now);
    world.host.add_function(function(9, 9), BAR, world.now).unwrap();
    let (channel, host_channel) = connect(&world.ram, &world.to_guest, &world.to_host);
    world.host.open(host_channel);
    drop(world.guest.resume(channel, world.now).unwrap());
    world.guest_events.clear();
    world.run();
    let mut resumed = Vec::new();
    let (mut left, mut arrived) = (Vec::new(), Vec::new());
    for event in std::mem::take(&mut world.guest_events) {
        match event {
            Event::FunctionResumed(function) => resumed.push(function.id),
            Event::FunctionLeft(function) => left.push(function.id),
            Event::FunctionArrived(function) => arrived.push(function.serial().0),
            _ => {}
        }
    }
    assert_eq!((resumed, left), (vec![before[0], before[3]], vec![before[1], before[2]]));
    assert_eq!(arrived, [77, 9]);
    assert_eq!(world.host.assigned(), 4);
}

/// What it takes to find all functions of some buses: requests, snapshots, and times that a side looked.
fn effort(buses: usize, functions: u32) -> u64 {
    (0..buses)
        .map(|_| {
            let list: Vec<_> = (0..functions).map(|number| function(number, number)).collect();
            let mut world = World::new(PciPolicy::default(), &list);
            world.settle();
            assert_eq!(world.guest.functions().count(), list.len());
            let (host, guest) = (world.host.stats(), world.guest.stats());
            assert_eq!(guest.bad_packets, 0);
            host.requests + host.snapshots + world.looks
        })
        .sum()
}

#[test]
fn finding_functions_takes_messages_in_proportion_to_their_number() {
    let per_function = |buses: usize, functions: u32| {
        effort(buses, functions) as f64 / (buses as f64 * f64::from(functions))
    };
    let few = per_function(1, 8);
    let many = per_function(64, 8);
    assert!((many / few - 1.0).abs() <= 0.2, "{few} then {many} for each function");
    // On one bus it can only become less: its own start is shared by more functions.
    assert!(per_function(1, 256) <= few);
}

//! Order never matters (P11).

extern crate std;

use std::vec;
use std::vec::Vec;

use proptest::prelude::*;

use super::reference::Truth;
use super::*;

/// A fact about one of a few parties, so that most of them have something in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fact {
    Nic(u32, MacAddress),
    NicLeft(u32),
    Associated(u32, u32),
    Disassociated(u32),
    Function(u32, u32),
    FunctionLeft(u32),
    Port(u32, u32, PermanentMac),
    PortLeft(u32, u32),
}

/// Parties by the names that the facts use.
#[derive(Clone, Default)]
pub(super) struct Names {
    nics: BTreeMap<u32, NicId>,
    functions: BTreeMap<u32, FunctionId>,
    ports: BTreeMap<(u32, u32), PortId>,
}

/// Tells a fact to the pairing and to the truth; `false` if it is about nobody yet.
pub(super) fn tell(
    fact: Fact,
    pairing: &mut Pairing,
    names: &mut Names,
    truth: &mut Truth,
) -> bool {
    match fact {
        Fact::Nic(n, mac) => {
            if truth.nics.get(&instance(n)).is_none_or(|nic| nic.0 != mac) {
                truth.nics.insert(instance(n), (mac, None));
            }
            names.nics.insert(n, pairing.nic_arrived(instance(n), mac, T0));
        }
        Fact::NicLeft(n) => {
            let Some(nic) = names.nics.remove(&n) else { return false };
            truth.nics.remove(&instance(n));
            pairing.nic_left(nic, T0).expect("it is here");
        }
        Fact::Associated(n, serial) => {
            let Some(nic) = names.nics.get(&n) else { return false };
            truth.nics.get_mut(&instance(n)).expect("it is here").1 = Some(Serial(serial));
            pairing.associated(*nic, Serial(serial), T0).expect("it is here");
        }
        Fact::Disassociated(n) => {
            let Some(nic) = names.nics.get(&n) else { return false };
            truth.nics.get_mut(&instance(n)).expect("it is here").1 = None;
            pairing.disassociated(*nic, T0).expect("it is here");
        }
        _ => return tell_of_function(fact, pairing, names, truth),
    }
    true
}

fn tell_of_function(
    fact: Fact,
    pairing: &mut Pairing,
    names: &mut Names,
    truth: &mut Truth,
) -> bool {
    match fact {
        Fact::Function(slot, serial) => {
            let key = key(slot, serial);
            if !truth.functions.contains(&key) {
                truth.functions.retain(|function| function.slot != slot);
                truth.functions.insert(key);
                truth.ports.retain(|port| port.0.function.slot != slot);
                names.ports.retain(|port, _| port.0 != slot);
            }
            names.functions.insert(slot, pairing.function_arrived(key, T0));
        }
        Fact::FunctionLeft(slot) => {
            let Some(function) = names.functions.remove(&slot) else { return false };
            truth.functions.retain(|function| function.slot != slot);
            truth.ports.retain(|port| port.0.function.slot != slot);
            names.ports.retain(|port, _| port.0 != slot);
            pairing.function_left(function, T0).expect("it is here");
        }
        Fact::Port(slot, index, mac) => {
            let Some(function) = names.functions.get(&slot) else { return false };
            let home = *truth.functions.iter().find(|f| f.slot == slot).expect("it is here");
            let key = PortKey { function: home, index };
            match truth.ports.iter_mut().find(|port| port.0 == key) {
                None => truth.ports.push((key, mac)),
                // Knowledge only grows.
                Some((_, known)) => match (*known, mac) {
                    (_, PermanentMac::Known(_)) | (PermanentMac::NotYet, _) => *known = mac,
                    _ => {}
                },
            }
            let port = pairing.port_arrived(*function, index, mac, T0).expect("it is here");
            names.ports.insert((slot, index), port);
        }
        Fact::PortLeft(slot, index) => {
            let Some(port) = names.ports.remove(&(slot, index)) else { return false };
            truth.ports.retain(|port| (port.0.function.slot, port.0.index) != (slot, index));
            pairing.port_left(port, T0).expect("it is here");
        }
        _ => return false,
    }
    true
}

/// Tells facts in this order; one that is about nobody yet waits until its party is there.
fn tell_all(facts: &[Fact], world: &mut World, mut after: impl FnMut(&mut World)) -> Truth {
    let (mut names, mut truth) = (Names::default(), Truth::default());
    let mut waiting = facts.to_vec();
    while !waiting.is_empty() {
        let before = waiting.len();
        let mut i = 0;
        while i < waiting.len() {
            if tell(waiting[i], &mut world.pairing, &mut names, &mut truth) {
                waiting.remove(i);
                world.take();
                after(world);
            } else {
                i += 1;
            }
        }
        assert!(waiting.len() < before, "facts about nobody: {waiting:?}");
    }
    truth
}

/// The shortest list of facts that makes this true.
fn facts_of(truth: &Truth) -> Vec<Fact> {
    let mut facts = Vec::new();
    let number = |nic: &Guid| (nic.as_u128() - instance(0).as_u128()) as u32;
    for (nic, (mac, serial)) in &truth.nics {
        facts.push(Fact::Nic(number(nic), *mac));
        facts.extend(serial.map(|serial| Fact::Associated(number(nic), serial.0)));
    }
    facts.extend(truth.functions.iter().map(|f| Fact::Function(f.slot, f.serial.0)));
    facts.extend(truth.ports.iter().map(|(k, m)| Fact::Port(k.function.slot, k.index, *m)));
    facts
}

fn permutations(items: &[Fact], visit: &mut dyn FnMut(&[Fact])) {
    fn go(items: &mut Vec<Fact>, from: usize, visit: &mut dyn FnMut(&[Fact])) {
        if from == items.len() {
            return visit(items);
        }
        for i in from..items.len() {
            items.swap(from, i);
            go(items, from + 1, visit);
            items.swap(from, i);
        }
    }
    go(&mut items.to_vec(), 0, visit);
}

/// Two NICs, two functions with one port each, two associations: every order.
#[test]
fn two_nics_and_two_ports_in_every_order() {
    let (a, b) = (PermanentMac::Known(mac(1)), PermanentMac::Known(mac(2)));
    for (serials, functions, ports) in [
        ([5, 5], [5, 5], [a, b]),
        ([5, 6], [6, 5], [b, a]),
        ([5, 6], [5, 6], [a, a]),
        ([5, 5], [5, 5], [a, a]),
        ([0, u32::MAX], [0, 7], [a, b]),
        ([5, 5], [5, 5], [a, PermanentMac::Never]),
        ([5, 6], [5, 6], [PermanentMac::NotYet, PermanentMac::Never]),
    ] {
        let facts = [
            Fact::Nic(0, mac(1)),
            Fact::Nic(1, mac(2)),
            Fact::Associated(0, serials[0]),
            Fact::Associated(1, serials[1]),
            Fact::Function(0, functions[0]),
            Fact::Function(1, functions[1]),
            Fact::Port(0, 0, ports[0]),
            Fact::Port(1, 0, ports[1]),
        ];
        let mut orders = 0;
        let mut expected = None;
        permutations(&facts, &mut |order| {
            // Nobody can be spoken of before being introduced.
            let place = |fact: usize| order.iter().position(|other| *other == facts[fact]);
            if [(0, 2), (1, 3), (4, 6), (5, 7)].iter().any(|(a, b)| place(*a) > place(*b)) {
                return;
            }
            let mut world = World::new();
            let truth = tell_all(order, &mut world, World::run);
            let want = expected.get_or_insert_with(|| truth.pairs(MacPolicy::Allow));
            assert_eq!(&world.pairs(), want, "{order:?}");
            orders += 1;
        });
        assert_eq!(orders, 2_520, "8! orders, and four introductions that halve them");
    }
}

fn any_mac() -> impl Strategy<Value = PermanentMac> {
    prop_oneof![
        6 => (0..3u32).prop_map(|n| PermanentMac::Known(mac(n))),
        1 => Just(PermanentMac::NotYet),
        1 => Just(PermanentMac::Never),
    ]
}

fn any_fact() -> impl Strategy<Value = Fact> {
    let (nic, slot, index, serial) = (0..4u32, 0..4u32, 0..2u32, 0..3u32);
    prop_oneof![
        4 => (nic.clone(), (0..3u32).prop_map(mac)).prop_map(|(n, mac)| Fact::Nic(n, mac)),
        1 => nic.clone().prop_map(Fact::NicLeft),
        4 => (nic.clone(), serial.clone()).prop_map(|(n, s)| Fact::Associated(n, s)),
        2 => nic.prop_map(Fact::Disassociated),
        4 => (slot.clone(), serial).prop_map(|(slot, s)| Fact::Function(slot, s)),
        1 => slot.clone().prop_map(Fact::FunctionLeft),
        6 => (slot.clone(), index.clone(), any_mac()).prop_map(|(s, i, m)| Fact::Port(s, i, m)),
        2 => (slot, index).prop_map(|(slot, index)| Fact::PortLeft(slot, index)),
    ]
}

fn any_policy() -> impl Strategy<Value = MacPolicy> {
    prop_oneof![3 => Just(MacPolicy::Allow), 1 => Just(MacPolicy::Deny)]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1_000))]

    /// After every single fact, withdrawals included, the pairs are what the reference says; and a fresh start with
    /// only what is true in the end, in another order and with unbinding delayed at will, ends the same.
    #[test]
    fn pairs_follow_from_facts_whatever_their_order(
        facts in prop::collection::vec(any_fact(), 1..60),
        policy in any_policy(),
        choices in prop::collection::vec(any::<u8>(), 64),
    ) {
        let config = PairingConfig { mac_policy: policy, ..PairingConfig::default() };
        let mut world = World::with(config);
        let (mut names, mut truth) = (Names::default(), Truth::default());
        for fact in facts {
            tell(fact, &mut world.pairing, &mut names, &mut truth);
            world.run();
            prop_assert_eq!(world.pairs(), truth.pairs(policy), "after {:?}", fact);
        }

        let mut rest = facts_of(&truth);
        let mut choice = choices.iter().cycle().map(|byte| usize::from(*byte));
        for i in (1..rest.len()).rev() {
            rest.swap(i, choice.next().unwrap_or(0) % (i + 1));
        }
        let mut fresh = World::with(config);
        let again = tell_all(&rest, &mut fresh, |world| {
            if choice.next().is_some_and(|choice| choice % 3 == 0) {
                world.confirm(choice.next().unwrap_or(0));
            }
        });
        fresh.run();
        prop_assert_eq!(&again.nics, &truth.nics);
        prop_assert_eq!(fresh.pairs(), world.pairs());
        // What is shown about a NIC follows from the facts as well.
        for nic in world.pairing.nics() {
            let other = fresh.pairing.nic(nic.instance).expect("the same NICs");
            prop_assert_eq!(world.state(nic.id), fresh.state(other));
        }
    }

    /// A pair is never formed only to come apart again for the same fact.
    #[test]
    fn one_fact_never_binds_what_it_unbinds(facts in prop::collection::vec(any_fact(), 1..60)) {
        let mut world = World::new();
        let (mut names, mut truth) = (Names::default(), Truth::default());
        for fact in facts {
            tell(fact, &mut world.pairing, &mut names, &mut truth);
            world.run();
            let mut bound = vec![];
            for decision in world.log.drain(..) {
                match decision {
                    Decision::Bind { nic, port, .. } => bound.push((nic, port)),
                    Decision::Unbind { nic, port, .. } => {
                        prop_assert!(!bound.contains(&(nic, port)), "{:?}", fact);
                    }
                    _ => {}
                }
            }
        }
    }
}

/// A fact about one of a dozen NICs and a dozen functions.
fn fact_among_many() -> impl Strategy<Value = Fact> {
    let (nic, slot, index, serial) = (0..12u32, 0..12u32, 0..2u32, 0..8u32);
    let known = (0..8u32).prop_map(|n| PermanentMac::Known(mac(n)));
    let port_mac =
        prop_oneof![8 => known, 1 => Just(PermanentMac::NotYet), 1 => Just(PermanentMac::Never)];
    prop_oneof![
        3 => (nic.clone(), (0..8u32).prop_map(mac)).prop_map(|(n, mac)| Fact::Nic(n, mac)),
        1 => nic.clone().prop_map(Fact::NicLeft),
        4 => (nic.clone(), serial.clone()).prop_map(|(n, s)| Fact::Associated(n, s)),
        2 => nic.prop_map(Fact::Disassociated),
        3 => (slot.clone(), serial).prop_map(|(slot, s)| Fact::Function(slot, s)),
        1 => slot.clone().prop_map(Fact::FunctionLeft),
        6 => (slot.clone(), index.clone(), port_mac).prop_map(|(s, i, m)| Fact::Port(s, i, m)),
        2 => (slot, index).prop_map(|(slot, index)| Fact::PortLeft(slot, index)),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(6))]

    /// Long histories of many parties. Unbindings are confirmed late, in any order; whenever none is open, the pairs are those of
    /// the reference, and meanwhile there is none that the reference does not know.
    #[test]
    fn ten_thousand_events_later_the_pairs_still_follow_from_the_facts(
        facts in prop::collection::vec((fact_among_many(), any::<u8>()), 5_000..10_000),
        policy in any_policy(),
    ) {
        let mut world = World::with(PairingConfig { mac_policy: policy, ..PairingConfig::default() });
        let (mut names, mut truth) = (Names::default(), Truth::default());
        for (fact, choice) in facts {
            tell(fact, &mut world.pairing, &mut names, &mut truth);
            world.take();
            world.log.clear();
            let choice = usize::from(choice);
            for _ in 0..choice % 4 {
                world.confirm(choice);
            }
            if choice.is_multiple_of(8) {
                world.run();
                prop_assert_eq!(world.pairs(), truth.pairs(policy), "after {:?}", fact);
            } else if choice.is_multiple_of(3) {
                let called_for = truth.pairs(policy);
                prop_assert!(world.pairs().iter().all(|pair| called_for.contains(pair)), "after {:?}", fact);
            }
        }
    }
}

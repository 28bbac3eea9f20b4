//! Every order once more, links included: pairing, a failover for each NIC, and a host that answers at once, joined as their owner
//! joins them.
//!
//! A link is no fact of pairing, and what a pair is worth depends on it: the NIC's frames leave on the VF if it is paired, its host has
//! associated it, and the port has carrier, and on the synthetic path otherwise. That is checked in every state that there is, as
//! in `exhaustive`, and that there is one state for every set of facts: neither pairs nor paths remember how they came about.

extern crate std;

use std::collections::{BTreeMap, BTreeSet};
use std::format;
use std::string::String;
use std::vec;
use std::vec::Vec;

use super::confluence::{Fact, Names, tell};
use super::exhaustive::{A, B, C, Card, Ports, Universe, written};
use super::reference::Truth;
use super::*;
use crate::failover::{Action, Cause, Failover, FailoverConfig, Outlet};

#[derive(Clone, Copy, Debug)]
enum Step {
    Fact(Fact),
    /// The link of a port, by slot and number.
    Link(u32, u32, bool),
}

/// Pairing with the path of every NIC.
#[derive(Clone)]
struct Joint {
    pairing: Pairing,
    names: Names,
    truth: Truth,
    links: BTreeMap<(u32, u32), bool>,
    paths: BTreeMap<NicId, (Failover, Option<PortRef>)>,
}

fn place(port: PortRef) -> (u32, u32) {
    (port.key.function.slot, port.key.index)
}

impl Joint {
    fn new() -> Self {
        Self {
            pairing: Pairing::new(PairingConfig::default()),
            names: Names::default(),
            truth: Truth::default(),
            links: BTreeMap::new(),
            paths: BTreeMap::new(),
        }
    }

    /// What happens next; `false` if it is about nobody.
    fn step(&mut self, step: Step) -> bool {
        match step {
            Step::Link(slot, index, up) => {
                let Some(link) = self.links.get_mut(&(slot, index)) else { return false };
                *link = up;
                for (failover, port) in self.paths.values_mut() {
                    if port.is_some_and(|port| place(port) == (slot, index)) {
                        failover.port_link(up, T0);
                    }
                }
            }
            Step::Fact(fact) => {
                if let Fact::NicLeft(n) = fact
                    && let Some(nic) = self.pairing.nic(instance(n))
                {
                    self.paths.remove(&nic);
                }
                if !tell(fact, &mut self.pairing, &mut self.names, &mut self.truth) {
                    return false;
                }
                self.follow(fact);
            }
        }
        self.settle();
        true
    }

    /// What a fact means to a path, and to links.
    fn follow(&mut self, fact: Fact) {
        let nic = |n| self.pairing.nic(instance(n)).expect("it is here");
        match fact {
            Fact::Nic(n, _) => {
                self.paths.entry(nic(n)).or_insert_with(|| {
                    let mut failover = Failover::new(FailoverConfig::default());
                    failover.channel_opened(T0);
                    (failover, None)
                });
            }
            Fact::Associated(n, _) => {
                self.paths.get_mut(&nic(n)).expect("it is here").0.associated(T0);
            }
            Fact::Disassociated(n) => {
                self.paths.get_mut(&nic(n)).expect("it is here").0.disassociated(T0);
            }
            // A port is without carrier when it comes.
            Fact::Port(slot, index, _) => {
                self.links.entry((slot, index)).or_insert(false);
            }
            Fact::PortLeft(slot, index) => {
                self.links.remove(&(slot, index));
            }
            Fact::FunctionLeft(slot) => self.links.retain(|(of, _), _| *of != slot),
            Fact::NicLeft(_) | Fact::Function(..) => {}
        }
    }

    /// Carries out what is decided, until nobody wants anything any more. The host answers at once, and nothing is under way.
    fn settle(&mut self) {
        loop {
            let mut moved = false;
            while let Some(decision) = self.pairing.poll_decision() {
                moved = true;
                self.carry_out(&decision);
            }
            for nic in self.paths.keys().copied().collect::<Vec<_>>() {
                moved |= self.act(nic);
            }
            if !moved {
                return;
            }
        }
    }

    fn carry_out(&mut self, decision: &Decision) {
        match decision {
            Decision::Bind { nic, port, .. } => {
                let up = self.links[&place(*port)];
                let (failover, bound) = self.paths.get_mut(&nic.id).expect("it is here");
                assert_eq!(bound.replace(*port), None, "{decision}");
                failover.port_bound(up, T0);
            }
            Decision::Unbind { nic, port, .. } => match self.paths.get_mut(&nic.id) {
                // The NIC has left, and its path with it.
                None => self.pairing.unbound(nic.id, port.id, T0).expect("it was being unbound"),
                Some((failover, bound)) => {
                    assert_eq!(*bound, Some(*port), "{decision}");
                    match self.pairing.standing(port.id) {
                        Ok(_) => failover.port_leaving(Cause::Unbound, T0),
                        Err(_) => failover.port_gone(T0),
                    }
                }
            },
            _ => {}
        }
    }

    /// What a path wants done; `false` if nothing.
    fn act(&mut self, nic: NicId) -> bool {
        let (failover, bound) = self.paths.get_mut(&nic).expect("it is here");
        let Some(action) = failover.poll_action() else { return false };
        match action {
            Action::Switch(path) => failover.switch_completed(path, T0),
            Action::Transmit { .. } => failover.drained(),
            Action::Release { .. } => {
                let port = bound.take().expect("it has one");
                self.pairing.unbound(nic, port.id, T0).expect("it was being unbound");
            }
            _ => {}
        }
        true
    }

    /// What has to be so.
    fn check(&self) {
        let pairs = self.truth.pairs(MacPolicy::Allow);
        for nic in self.pairing.nics() {
            let (failover, bound) = &self.paths[&nic.id];
            let pair = pairs.iter().find(|(instance, ..)| *instance == nic.instance);
            assert_eq!(bound.map(|port| port.key), pair.map(|(_, port, _)| *port));
            let up = bound.is_some_and(|port| self.links[&place(port)]);
            let associated = self.truth.nics[&nic.instance].1.is_some();
            let path = if up && associated { crate::Path::Vf } else { crate::Path::Synthetic };
            assert_eq!(failover.outlet(), Outlet::Path(path), "{:?} {:?}", self.truth, self.links);
            assert_eq!((failover.host_path(), failover.is_switching()), (path, false));
        }
    }

    /// Everything that decides the future. When paths have switched decides only what is reported.
    fn written(&self) -> (Vec<u8>, String) {
        let names = self.pairing.nics().map(|nic| (nic.instance, &self.paths[&nic.id]));
        let mut paths: Vec<_> = names
            .map(|(instance, (failover, bound))| {
                let text = format!("{failover:?}");
                let (before, rest) = text.split_once("recent: [").expect("the times of switches");
                let (_, behind) = rest.split_once(']').expect("their end");
                (instance, format!("{before}{behind}{:?}", bound.map(place)))
            })
            .collect();
        paths.sort();
        (written(&self.pairing), format!("{:?}{paths:?}", self.links))
    }
}

/// How many states there are.
fn visit(nics: &[Card<'_>], functions: &[Ports<'_>]) -> usize {
    let mut steps: Vec<_> =
        Universe::new(nics, functions).events.into_iter().map(Step::Fact).collect();
    for (slot, (_, ports)) in (0u32..).zip(functions) {
        for index in 0..ports.len() as u32 {
            steps.extend([true, false].map(|up| Step::Link(slot, index, up)));
        }
    }
    let start = Joint::new();
    let mut seen = BTreeSet::from([start.written()]);
    let mut open = vec![start];
    while let Some(joint) = open.pop() {
        joint.check();
        for step in &steps {
            let mut next = joint.clone();
            if next.step(*step) && seen.insert(next.written()) {
                open.push(next);
            }
        }
    }
    seen.len()
}

#[test]
fn three_nics_and_three_ports_with_links_in_every_order() {
    // A NIC is away, here, or associated; a function is away, here, or has a port without or with a MAC, whose link is down or up.
    let states = 27 * 6usize.pow(3);
    let own: [Card<'_>; 3] = [(1, &[1]), (2, &[2]), (3, &[3])];
    assert_eq!(visit(&own, &[(1, &[&[A]]), (2, &[&[B]]), (3, &[&[C]])]), states);
    // Three ports for one NIC, by serial and by MAC alone: two stand by, and take over. The others have none.
    let one: [Card<'_>; 3] = [(1, &[7]), (2, &[8]), (3, &[9])];
    assert_eq!(visit(&one, &[(7, &[&[A]]), (7, &[&[A]]), (5, &[&[A]])]), states);
}

#[test]
fn three_ports_of_one_function_with_links_in_every_order() {
    // One function, which is away, or here with each of its ports.
    let states = 27 * (1 + 5usize.pow(3));
    let ports: &[&[PermanentMac]] = &[&[A], &[B], &[C]];
    for serial in [7, 30] {
        // The serial of the associations, or another one.
        let nics: [Card<'_>; 3] = [(1, &[7]), (2, &[7]), (3, &[7])];
        assert_eq!(visit(&nics, &[(serial, ports)]), states);
    }
}

//! Every order of every event, by visiting every state that there is.
//!
//! An order is a path through a graph: its nodes are the states of [`Pairing`], its edges the events that can happen in them.
//! Two orders that lead to the same state have the same future, so it is enough to visit each state once and to follow each
//! edge once; all orders of all lengths, repetitions and withdrawals included, are then accounted for. A state is written down
//! in full (`written`), with the names of the parties instead of handles; that the indexes hold just what the records say
//! is checked in every state, so that nothing is left out of what is written down.
//!
//! In every state, once all that is being unbound has been let go, the pairs are those of the naive reference; and what is
//! shown about a NIC is the same in all states with the same facts.
//!
//! What is enumerated: arrival and departure of NICs, functions and ports, association and disassociation, a port whose MAC
//! becomes known later or never, a function replaced in its slot, and the moment at which an unbinding is confirmed, unless it
//! says that this is done at once. Links are no facts of pairing; `paths` enumerates them together with these, and `failover` together
//! with what a host may answer and when. Handles are renamed, and with them the order in which the decisions of one event come.

extern crate std;

use std::collections::{BTreeMap, BTreeSet};
use std::format;
use std::vec;
use std::vec::Vec;

use super::confluence::{Fact, Names, tell};
use super::reference::Truth;
use super::*;

/// When an unbinding is confirmed.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Confirmed {
    AtOnce,
    /// At any moment: an event of its own. At most so many wait for theirs; without a bound there would be states without end.
    Sometime(usize),
}

/// What can happen in a universe, and to whom.
pub(super) struct Universe {
    pub(super) events: Vec<Fact>,
    policy: MacPolicy,
    confirmed: Confirmed,
}

#[derive(Clone)]
struct Node {
    world: World,
    names: Names,
    truth: Truth,
}

/// What was visited.
#[derive(Clone, Copy, Debug, Default)]
struct Visited {
    states: usize,
    edges: usize,
}

/// A function of a universe: its serial, and for each of its ports the MACs that may become known.
pub(super) type Ports<'a> = (u32, &'a [&'a [PermanentMac]]);
/// The same with a list of its own.
type Home<'a> = (u32, Vec<&'a [PermanentMac]>);
/// A NIC of a universe: its MAC and the serials it may be associated with.
pub(super) type Card<'a> = (u32, &'a [u32]);

impl Universe {
    /// NICs by MAC and the serials they may be associated with; functions by slot.
    pub(super) fn new(nics: &[Card<'_>], functions: &[Ports<'_>]) -> Self {
        let mut events = Vec::new();
        for (n, (address, serials)) in (0u32..).zip(nics) {
            events.extend([Fact::Nic(n, mac(*address)), Fact::NicLeft(n), Fact::Disassociated(n)]);
            events.extend(serials.iter().map(|serial| Fact::Associated(n, *serial)));
        }
        for (slot, (serial, ports)) in (0u32..).zip(functions) {
            events.extend([Fact::Function(slot, *serial), Fact::FunctionLeft(slot)]);
            for (index, macs) in (0u32..).zip(*ports) {
                events.push(Fact::Port(slot, index, PermanentMac::NotYet));
                events.push(Fact::PortLeft(slot, index));
                events.extend(macs.iter().map(|mac| Fact::Port(slot, index, *mac)));
            }
        }
        Self { events, policy: MacPolicy::Allow, confirmed: Confirmed::AtOnce }
    }

    /// Visits every state and follows every edge.
    fn visit(&self) -> Visited {
        let config = PairingConfig { mac_policy: self.policy, ..PairingConfig::default() };
        let start =
            Node { world: World::with(config), names: Names::default(), truth: Truth::default() };
        let mut seen = BTreeSet::from([written(&start.world.pairing)]);
        let mut shown = BTreeMap::new();
        let (mut visited, mut open) = (Visited::default(), vec![start]);
        while let Some(node) = open.pop() {
            visited.states += 1;
            self.check(&node, &mut shown);
            for next in self.edges(&node) {
                visited.edges += 1;
                if seen.insert(written(&next.world.pairing)) {
                    open.push(next);
                }
            }
        }
        visited
    }

    fn edges(&self, node: &Node) -> Vec<Node> {
        let mut nodes = Vec::new();
        for fact in &self.events {
            let mut next = node.clone();
            if tell(*fact, &mut next.world.pairing, &mut next.names, &mut next.truth) {
                match self.confirmed {
                    Confirmed::AtOnce => next.world.run(),
                    Confirmed::Sometime(most) => {
                        next.world.take();
                        if next.world.parting.len() > most {
                            continue;
                        }
                    }
                }
                nodes.push(next);
            }
        }
        for choice in 0..node.world.parting.len() {
            let mut next = node.clone();
            next.world.confirm(choice);
            nodes.push(next);
        }
        for node in &mut nodes {
            node.world.log.clear();
        }
        nodes
    }

    /// What has to be so in a state.
    fn check(&self, node: &Node, shown: &mut BTreeMap<std::string::String, Vec<&'static str>>) {
        assert_eq!(node.world.pairing.index, rebuilt(&node.world.pairing));
        let mut rested = node.clone().world;
        rested.run();
        assert_eq!(rested.pairs(), node.truth.pairs(self.policy), "{:?}", node.truth);
        let mut nics: Vec<_> = rested.pairing.nics().collect();
        nics.sort();
        let words = nics.iter().map(|nic| rested.state(nic.id)).collect();
        let before = shown.entry(format!("{:?}", sorted(&node.truth))).or_insert(words);
        assert_eq!(nics.iter().map(|nic| rested.state(nic.id)).collect::<Vec<_>>(), *before);
    }
}

fn sorted(truth: &Truth) -> Truth {
    let mut truth = truth.clone();
    truth.ports.sort_by_key(|port| port.0);
    truth
}

/// The indexes that the records call for.
fn rebuilt(pairing: &Pairing) -> Indexes {
    let mut index = Indexes::new();
    for (id, nic) in pairing.nics.iter() {
        let id = NicId(id);
        index.instances.insert(nic.instance, id);
        index.by_mac.insert_nic(nic.mac, (nic.associated, id));
        if let Some(serial) = nic.associated {
            index.by_serial.insert_nic(serial, NicRef { instance: nic.instance, id });
        }
    }
    for (id, function) in pairing.functions.iter() {
        index.slots.insert((function.key.bus, function.key.slot), FunctionId(id));
    }
    for (id, port) in pairing.ports.iter() {
        let id = PortId(id);
        index.by_serial.insert_port(port.key.function.serial, id);
        if let Some(mac) = port.mac.known() {
            index.by_mac.insert_port(mac, id);
        }
        if let Some(Told::Conflict(dispute)) = port.told {
            index.dispute(dispute, id);
        }
    }
    index
}

/// A state in full, with names for handles: equal texts behave alike for ever.
pub(super) fn written(pairing: &Pairing) -> Vec<u8> {
    let mut text = Writer { pairing, bytes: Vec::new() };
    let mut nics: Vec<_> = pairing.nics.iter().collect();
    nics.sort_by_key(|(_, nic)| nic.instance);
    for (_, nic) in nics {
        text.guid(nic.instance);
        text.bytes.extend(nic.mac.0);
        text.serial(nic.associated);
        text.watch(nic.watch);
        for claim in &nic.claims {
            text.bytes.push(claim.reason as u8);
            text.port(claim.port, claim.key);
        }
        text.end();
    }
    text.end();
    let mut functions: Vec<_> = pairing.functions.iter().collect();
    functions.sort_by_key(|(_, function)| function.key);
    for (_, function) in functions {
        text.serial(Some(function.key.serial));
        text.bytes.push(function.key.slot as u8);
        text.bytes.extend(function.ports.iter().map(|(index, _)| *index as u8));
        text.end();
    }
    text.end();
    let mut ports: Vec<_> = pairing.ports.iter().collect();
    ports.sort_by_key(|(_, port)| port.key);
    for (id, port) in ports {
        text.port(PortId(id), port.key);
        match port.mac {
            PermanentMac::Known(mac) => text.bytes.extend(mac.0),
            PermanentMac::NotYet => text.bytes.push(b'?'),
            PermanentMac::Never => text.bytes.push(b'!'),
        }
        text.verdict(port.verdict);
        text.standing(port.told.and_then(|told| pairing.in_full(told)));
        text.watch(port.watch);
    }
    text.end();
    text.holds();
    text.end();
    for (dispute, (nics, ports)) in &pairing.reported {
        text.dispute(*dispute);
        let mut nics: Vec<_> = nics.iter().map(|nic| text.name(*nic)).collect();
        nics.sort();
        text.bytes.extend(nics.concat());
        let mut ports: Vec<_> = ports.clone();
        ports.sort();
        ports.iter().for_each(|port| text.port(port.id, port.key));
    }
    text.bytes
}

struct Writer<'a> {
    pairing: &'a Pairing,
    bytes: Vec<u8>,
}

impl Writer<'_> {
    fn end(&mut self) {
        self.bytes.push(b';');
    }

    fn guid(&mut self, guid: Guid) {
        self.bytes.push(guid.as_u128() as u8);
    }

    fn serial(&mut self, serial: Option<Serial>) {
        self.bytes.push(serial.map_or(b'-', |serial| serial.0 as u8));
    }

    fn watch(&mut self, watch: Watch) {
        self.bytes.push(match watch {
            Watch::Off => 0,
            Watch::Until(_) => 1,
            Watch::Said => 2,
        });
    }

    fn name(&self, nic: NicRef) -> [u8; 2] {
        let here = self.pairing.nics.get(nic.id.0).is_some();
        [nic.instance.as_u128() as u8, u8::from(here)]
    }

    fn nic(&mut self, nic: NicId) {
        let record = self.pairing.nics.get(nic.0);
        let instance = record.map_or(0xff, |record| record.instance.as_u128() as u8);
        self.bytes.push(instance);
    }

    fn port(&mut self, port: PortId, key: PortKey) {
        let here = self.pairing.ports.get(port.0).is_some();
        let serial = key.function.serial.0 as u8;
        self.bytes.extend([key.function.slot as u8, serial, key.index as u8, u8::from(here)]);
    }

    fn dispute(&mut self, dispute: Dispute) {
        match dispute {
            Dispute::SerialAndMac(serial, mac) => {
                self.bytes.push(b'b');
                self.serial(Some(serial));
                self.bytes.extend(mac.0);
            }
            Dispute::Serial(serial) => {
                self.bytes.push(b's');
                self.serial(Some(serial));
            }
            Dispute::Mac(mac) => {
                self.bytes.push(b'm');
                self.bytes.extend(mac.0);
            }
        }
    }

    fn verdict(&mut self, verdict: Verdict) {
        match verdict {
            Verdict::Claims(nic, reason) => {
                self.bytes.extend([b'c', reason as u8]);
                self.nic(nic);
            }
            Verdict::Pending => self.bytes.push(b'p'),
            Verdict::Mismatch(nic, count) => {
                self.bytes.extend([b'm', count as u8]);
                self.nic(nic);
            }
            Verdict::Disputed(dispute) => {
                self.bytes.push(b'd');
                self.dispute(dispute);
            }
            Verdict::Alone => self.bytes.push(b'a'),
            Verdict::Refused(_) => self.bytes.push(b'r'),
        }
    }

    fn standing(&mut self, standing: Option<Standing>) {
        match standing {
            None => self.bytes.push(b'-'),
            Some(Standing::Matched(nic, reason)) => {
                let name = self.name(nic);
                self.bytes.extend([b'M', reason as u8, name[0], name[1]]);
            }
            Some(Standing::Standby(nic, reason, behind)) => {
                let name = self.name(nic);
                self.bytes.extend([b'S', reason as u8, name[0], name[1]]);
                self.port(behind.id, behind.key);
            }
            Some(Standing::Pending) => self.bytes.push(b'P'),
            Some(Standing::MacMismatch(nic, count)) => {
                let name = self.name(nic);
                self.bytes.extend([b'X', count as u8, name[0], name[1]]);
            }
            Some(Standing::Conflict(dispute)) => {
                self.bytes.push(b'C');
                self.dispute(dispute);
            }
            Some(Standing::Alone) => self.bytes.push(b'A'),
            Some(Standing::Refused(_)) => self.bytes.push(b'R'),
        }
    }

    fn holds(&mut self) {
        let mut holds = Vec::new();
        for hold in self.pairing.holds.values() {
            let mut one = Writer { pairing: self.pairing, bytes: Vec::new() };
            one.bytes.extend(one.name(hold.nic));
            one.port(hold.port.id, hold.port.key);
            one.bytes.extend([hold.reason as u8, u8::from(hold.parting)]);
            one.watch(hold.watch);
            holds.push(one.bytes);
        }
        holds.sort();
        self.bytes.extend(holds.concat());
    }
}

pub(super) const A: PermanentMac = PermanentMac::Known(MacAddress([0, 0x15, 0, 0, 0, 1]));
pub(super) const B: PermanentMac = PermanentMac::Known(MacAddress([0, 0x15, 0, 0, 0, 2]));
pub(super) const C: PermanentMac = PermanentMac::Known(MacAddress([0, 0x15, 0, 0, 0, 3]));

const NEVER: PermanentMac = PermanentMac::Never;

/// The MACs that ports of these universes may turn out to have.
const MACS: [&[PermanentMac]; 3] = [&[A], &[B], &[C]];

// HISTORY 45, 47: also with functions and ports there before their NICs.
#[test]
fn three_nics_and_three_ports_in_every_order() {
    let macs = [&[A][..], &[B], &[C]];
    let each = |serials: [u32; 3], macs: [&'static [PermanentMac]; 3]| {
        [0, 1, 2].map(|slot| (serials[slot], vec![macs[slot]]))
    };
    let universes: [(&[Card<'_>], [Home<'_>; 3]); 8] = [
        // One serial each, as it should be, and crosswise.
        (&[(1, &[1]), (2, &[2]), (3, &[3])], each([1, 2, 3], macs)),
        (&[(1, &[3]), (2, &[1]), (3, &[2])], each([1, 2, 3], macs)),
        // One serial for everybody: the MAC decides.
        (&[(1, &[7]), (2, &[7]), (3, &[7])], each([7, 7, 7], macs)),
        // One MAC for everybody: the serial decides.
        (&[(1, &[1]), (1, &[2]), (1, &[3])], each([1, 2, 3], [&[A], &[A], &[A]])),
        // Neither decides.
        (&[(1, &[7]), (1, &[7]), (1, &[7])], each([7, 7, 7], [&[A], &[A], &[A]])),
        // Serials that nobody is associated with: the MAC alone, and one port that nobody knows.
        (&[(1, &[10]), (2, &[20]), (3, &[3])], each([1, 2, 3], macs)),
        // Three ports for one NIC, and two NICs without.
        (&[(1, &[7]), (2, &[8]), (3, &[9])], each([7, 7, 5], [&[A], &[A], &[A]])),
        // A port whose MAC can never be known, or turns out to be another one's.
        (&[(1, &[7]), (2, &[8]), (3, &[8])], each([7, 8, 7], [&[NEVER], &[NEVER], &[A]])),
    ];
    for (nics, functions) in &universes {
        let functions = functions.each_ref().map(|(serial, ports)| (*serial, &ports[..]));
        let visited = Universe::new(nics, &functions).visit();
        // 3 things that a NIC can be (away, here, associated), and 4 that a function can (away, here, with a port, with a MAC).
        assert_eq!(visited.states, 27 * 64, "one state for every set of facts");
    }
}

#[test]
fn three_ports_of_one_function_and_three_nics_in_every_order() {
    for nics in [
        [(1, &[7][..]), (2, &[7]), (3, &[7])],
        [(1, &[1]), (2, &[2]), (3, &[3])],
        [(1, &[7]), (1, &[7]), (2, &[7])],
    ] {
        let visited = Universe::new(&nics, &[(7, &MACS)]).visit();
        assert_eq!(visited.states, 27 * (1 + 27), "one state for every set of facts");
    }
    let visited =
        Universe::new(&[(1, &[7]), (2, &[8]), (3, &[7])], &[(7, &MACS[..2]), (8, &[&[C]])]);
    assert_eq!(visited.visit().states, 27 * (1 + 9) * 4);
}

/// All ways of giving numbers to four parties, up to renaming the numbers: each is new or that of an earlier party.
fn numberings() -> Vec<[u32; 4]> {
    let mut all = Vec::new();
    for second in 0..2 {
        for third in 0..=second + 1 {
            for fourth in 0..=third.max(second) + 1 {
                all.push([0, second, third, fourth].map(|number| number + 1));
            }
        }
    }
    all
}

/// Every way in which the serials and MACs of two NICs and two ports can agree, 225 of them, each in every order, under both policies.
#[test]
fn two_nics_and_two_ports_of_any_serials_and_macs_in_every_order() {
    let mut universes = 0;
    for serials in numberings() {
        for macs in numberings() {
            let known = [macs[2], macs[3]].map(|n| [PermanentMac::Known(mac(n))]);
            for policy in [MacPolicy::Allow, MacPolicy::Deny] {
                let universe = Universe::new(
                    &[(macs[0], &[serials[0]]), (macs[1], &[serials[1]])],
                    &[(serials[2], &[&known[0]]), (serials[3], &[&known[1]])],
                );
                let visited = Universe { policy, ..universe }.visit();
                assert_eq!(visited.states, 9 * 16, "one state for every set of facts");
            }
            universes += 1;
        }
    }
    assert_eq!(universes, 225);
}

/// Unbindings take their time, and things go on meanwhile: parties leave, come back, and change their minds.
#[test]
fn two_nics_and_two_ports_in_every_order_with_unbindings_confirmed_at_any_moment() {
    let universes: [(&[Card<'_>], &[Ports<'_>], usize); 4] = [
        (&[(1, &[7]), (1, &[7])], &[(7, &[&[A]]), (7, &[&[A, NEVER]])], 1),
        (&[(1, &[7, 8]), (2, &[7])], &[(7, &[&[A]]), (8, &[&[A]])], 1),
        (&[(1, &[7]), (2, &[7])], &[(7, &[&[A], &[B]])], 2),
        (&[(1, &[7, 8])], &[(7, &[&[A, NEVER]]), (8, &[&[A]])], 2),
    ];
    for (nics, functions, most) in universes {
        let confirmed = Confirmed::Sometime(most);
        let visited = Universe { confirmed, ..Universe::new(nics, functions) }.visit();
        assert!(visited.edges > visited.states && visited.states > 100, "{visited:?}");
    }
}

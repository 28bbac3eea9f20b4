//! Every way of the host to misbehave, before and after start-up. It costs a packet, or the channel, and the guest says so.

use std::collections::BTreeMap;
use std::time::Duration;

use hyperv_host::nic::{Moment, NicFault, NicServiceEvent};
use netvsc::nvsp::Version;
use netvsc::{NicConfig, NicEvent};

use super::world::*;

/// What it came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Outcome {
    /// The NIC went on as if nothing had happened, or noted it.
    WentOn,
    /// The NIC gave the channel up.
    GaveUp,
}

/// Frames both ways; whether both arrived.
fn frames_arrive(world: &mut World, seed: u8) -> bool {
    let (out, back) = (frame(PEER, MAC, 100, seed), frame(MAC, PEER, 100, seed));
    let _ = world.nic.transmit(&out);
    world.nic.flush();
    world.settle();
    world.peer_sends(&back);
    world.settle();
    world.at_peer.contains(&out) && world.received.contains(&back)
}

/// Everything that gives the host the occasion to misbehave.
fn go_through_the_motions(world: &mut World) {
    world.settle();
    if world.guest_error.is_none() {
        frames_arrive(world, 1);
    }
    // Whatever the guest waits for in vain is overdue some time.
    world.now = world.now + Duration::from_secs(60);
    world.settle();
}

fn misbehave(fault: NicFault, at_start: bool) -> (World, Option<Outcome>) {
    let mut world = world(NicConfig::default(), &ROOMY, &[Version::V6_1]);
    world.tolerant = true;
    if !at_start {
        world.settle();
        assert!(matches!(world.events.pop_front(), Some(NicEvent::Ready { .. })));
    }
    world.service.inject(fault);
    world.poll_host();
    go_through_the_motions(&mut world);
    if world.service.faults(fault) == 0 && world.guest_error.is_none() {
        // Replies are to requests, and this NIC makes some at its end only.
        world.nic.shutdown(world.now);
        world.ready = false;
        world.settle();
    }
    let happened = world.service.faults(fault);
    assert!(happened <= 1);
    let outcome = if world.guest_error.is_some() { Outcome::GaveUp } else { Outcome::WentOn };
    (world, (happened == 1).then_some(outcome))
}

/// What is wrong with the way in which the NIC took it.
fn complaint(world: &mut World, fault: NicFault, outcome: Outcome) -> Option<String> {
    let broke = |event: &&NicServiceEvent| matches!(event, NicServiceEvent::Failed(_));
    // Whoever is told that a version is not taken asks for another one.
    let misled = fault == NicFault::VersionStatusUnknown;
    if let Some(event) = world.host_events.iter().find(broke).filter(|_| !misled) {
        return Some(format!("the guest broke the protocol in turn: {event:?}"));
    }
    if outcome == Outcome::WentOn && world.ready {
        if world.service.counters().lent > 0 {
            return Some("pieces do not come back".into());
        }
        if !frames_arrive(world, 9) {
            return Some("it is up and nothing arrives".into());
        }
    }
    // Close and open again: everything is as it was at first.
    world.reopen(NicConfig::default(), &ROOMY);
    world.settle();
    if !world.ready || !frames_arrive(world, 77) {
        return Some(format!(
            "it does not come up again: {:?} {:?}",
            world.guest_error, world.events
        ));
    }
    (world.port.counters().unaccounted() != (0, 0)).then(|| "the switch lost a frame".into())
}

#[test]
fn every_misbehaviour_costs_a_packet_or_the_channel() {
    let mut outcomes = BTreeMap::new();
    let mut complaints = Vec::new();
    for fault in NicFault::ALL.iter().copied() {
        for at_start in [true, false] {
            let (mut world, outcome) = misbehave(fault, at_start);
            let Some(outcome) = outcome else { continue };
            outcomes.entry(fault).or_insert_with(Vec::new).push((at_start, outcome));
            if let Some(complaint) = complaint(&mut world, fault, outcome) {
                complaints.push(format!("{fault:?}, at start {at_start}: {complaint}"));
            }
        }
    }
    assert!(complaints.is_empty(), "{complaints:#?}");
    for fault in NicFault::ALL {
        assert!(outcomes.contains_key(fault), "{fault:?} never happened");
    }
    // What comes with data or unasked is never worth a channel.
    for (fault, outcomes) in &outcomes {
        if let Moment::Data | Moment::Unasked = fault.moment() {
            let went_on = outcomes.iter().all(|(_, outcome)| *outcome == Outcome::WentOn);
            assert!(went_on, "{fault:?}: {outcomes:?}");
        }
    }
}

#[test]
fn misbehaviour_with_data_is_counted_by_the_guest_and_costs_its_frame() {
    let mut complaints = Vec::new();
    for fault in NicFault::ALL.iter().copied().filter(|fault| fault.moment() == Moment::Data) {
        let mut world = ready();
        world.service.inject(fault);
        let (bad, good) = (frame(MAC, PEER, 300, 1), frame(MAC, PEER, 300, 2));
        world.peer_sends(&bad);
        world.settle();
        world.peer_sends(&good);
        world.settle();
        assert_eq!(world.service.faults(fault), 1, "{fault:?}");
        if world.received.last() != Some(&good) {
            complaints.push(format!("{fault:?}: the next one does not arrive"));
        }
        let counted = world.nic.stats().bad.total();
        // Nothing is wrong with a second look at the same bytes, nor with a frame under a number that says nothing.
        let harmless = matches!(fault, NicFault::RangeTwice | NicFault::ChannelTypeUnknown);
        // The first of two ranges that overlap is a good one.
        let delivered = harmless || fault == NicFault::RangesOverlap;
        if harmless != (counted == 0) || delivered != (world.received.first() == Some(&bad)) {
            complaints.push(format!("{fault:?}: counted {counted}: {:?}", world.nic.stats().bad));
        }
        if world.service.counters().lent > 0 {
            complaints.push(format!("{fault:?}: not every piece came back"));
        }
    }
    assert!(complaints.is_empty(), "{complaints:#?}");
}

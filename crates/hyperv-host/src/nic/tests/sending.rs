//! Completions that come late, in another order, or after the host's network has started anew; and strictness about how
//! the guest lays its messages out.

use std::time::Duration;

use super::guest::*;
use crate::nic::*;
use crate::switch::{PortConfig, SwitchPort, WireConfig};

/// Ids in the order in which they were completed with success.
fn completed(rig: &mut Rig) -> Vec<u64> {
    let ids = rig.hear().into_iter().map(|packet| match packet {
        Heard::Completion { id, words } => {
            assert_eq!(words[..2], [108, 1]);
            id
        }
        other => panic!("{other:?}"),
    });
    ids.collect()
}

#[test]
fn completions_come_late() {
    let mut rig = rig_with(|config| config.policy.send_delay = Duration::from_millis(3), 16);
    rig.start();
    let message = Rig::packet(&[], &frame(1, 60));
    let first = rig.transmit(0, &message);
    rig.wait(Duration::from_millis(1));
    let second = rig.transmit(1, &message);
    assert_eq!(rig.peer_hears().len(), 2, "the frames are long gone");
    assert_eq!(rig.hear(), []);
    assert_eq!(rig.service.poll_deadline(), Some(rig.now + Duration::from_millis(2)));
    rig.wait(Duration::from_millis(2));
    assert_eq!(completed(&mut rig), [first]);
    rig.wait(Duration::from_millis(1));
    assert_eq!(completed(&mut rig), [second]);
    assert_eq!(rig.service.poll_deadline(), None);
}

#[test]
fn completions_come_in_another_order() {
    for order in [SendOrder::NewestFirst, SendOrder::Shuffled(5)] {
        let mut rig = rig_with(
            |config| {
                config.policy.send_order = order;
                config.policy.send_delay = Duration::from_millis(1);
            },
            16,
        );
        rig.start();
        let message = Rig::packet(&[], &frame(1, 60));
        let ids: Vec<_> = (0..8).map(|section| rig.transmit(section, &message)).collect();
        rig.wait(Duration::from_millis(1));
        let mut found = completed(&mut rig);
        assert_ne!(found, ids, "{order:?}");
        found.sort_unstable();
        assert_eq!(found, ids, "each once");
    }
}

#[test]
fn a_restart_completes_what_is_in_flight_and_counts_what_it_loses() {
    let mut rig = rig_with(|config| config.policy.send_delay = Duration::from_secs(1), 16);
    // A wire for two frames of this length.
    let wire = WireConfig { capacity: 200, ..WireConfig::instant() };
    rig.port = SwitchPort::new(PortConfig {
        to_peer: wire,
        from_peer: WireConfig::instant(),
        ..PortConfig::default()
    });
    rig.start();
    let mut message = Vec::new();
    for number in 0..4 {
        let mut packet = Rig::packet(&[], &frame(number, 100));
        packet[4] = 144;
        packet.resize(144, 0);
        message.extend(packet);
    }
    let first = rig.transmit(0, &Rig::packet(&[], &frame(9, 100)));
    let second = rig.transmit(1, &message);
    assert_eq!(rig.hear(), []);
    rig.service.restart_endpoint();
    rig.poll();
    assert_eq!(completed(&mut rig), [first, second]);
    let counters = rig.service.counters();
    assert_eq!((counters.restarts, counters.lost_in_restarts), (1, 3));
    assert_eq!(rig.peer_hears(), [frame(9, 100), frame(0, 100)]);
    rig.poll();
    assert_eq!(rig.peer_hears(), [0u8; 0].map(|_| Vec::new()), "what is lost does not come");
    rig.service.policy_mut().send_delay = Duration::ZERO;
    let id = rig.transmit(2, &Rig::packet(&[], &frame(8, 100)));
    assert_eq!(completed(&mut rig), [id], "and it goes on");
    rig.settled(0);
}

#[test]
fn messages_are_laid_out_as_the_guest_was_told() {
    let mut rig = rig();
    rig.start();
    let refused = |rig: &mut Rig, message: &[u8], lengths: Option<&[usize]>| {
        let id = match lengths {
            Some(lengths) => rig.transmit_direct(message, lengths),
            None => rig.transmit(0, message),
        };
        rig.answer(id)[1] == 2
    };
    let mut packet = Rig::packet(&[], &frame(1, 60));
    packet[4] = 104;
    let eight: Vec<u8> = packet.iter().copied().cycle().take(8 * 104).collect();
    let nine: Vec<u8> = packet.iter().copied().cycle().take(9 * 104).collect();
    assert!(!refused(&mut rig, &eight, None));
    assert!(refused(&mut rig, &nine, None), "eight at most");
    let mut crooked = Rig::packet(&[], &frame(1, 61));
    crooked.extend(&packet);
    assert!(refused(&mut rig, &crooked, None), "a packet starts at a multiple of 8");
    assert!(!refused(&mut rig, &packet, Some(&[44, 60])));
    assert!(refused(&mut rig, &packet, Some(&[40, 64])), "headers lie in the first range");
    let tagged = Rig::packet(&[16, 6, 12, 0x10], &frame(1, 60));
    assert!(!refused(&mut rig, &tagged, Some(&[60, 60])));
    assert!(refused(&mut rig, &tagged, Some(&[44, 76])), "what belongs to them too");
    assert_eq!(rig.service.counters().transmit_refused, 4);
}

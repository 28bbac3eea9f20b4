//! Doorbells, full rings, and hosts that never stop talking.

extern crate std;
use std::vec::Vec;

use super::host::*;
use super::path::fill;
use crate::nic::*;
use crate::nvsp::{HostMessage, Status, rndis_complete};
use vmbus::Serial;
use vmbus::channel::SignalFlag;

// The host fills the outgoing ring with what it does not read, and sends more and more.
#[test]
fn owed_completions_wait_for_room_and_none_is_lost_or_sent_twice() {
    let mut rig = ready();
    rig.completions.clear();
    fill(&mut rig);
    let mut ids = Vec::new();
    for _ in 0..50 {
        ids.push(rig.send_frames(&[&frame(60, 1)], None));
        rig.poll();
    }
    assert_eq!(rig.received.len(), 50, "frames come although nothing can be completed");
    assert!(rig.nic.stats().completions_delayed > 50);
    rig.settle();
    let done = rndis_complete(Status::SUCCESS).to_vec();
    let expected: Vec<_> = ids.into_iter().map(|id| (id, done.clone())).collect();
    let last = rig.completions.len() - 50;
    assert_eq!(rig.completions[last..], expected, "each once, in order");
}

#[test]
fn another_doorbell_is_rung_instead_of_the_first() {
    let mut rig = ready();
    let new = SignalFlag::new();
    drop(rig.nic.set_doorbell(new.clone()));
    assert!(!rig.to_host.take() && !new.take());
    rig.nic.transmit(&frame(60, 1)).unwrap();
    rig.nic.flush();
    assert!(!rig.to_host.take() && new.take());
    rig.serve();
    assert_eq!(rig.got.len(), 1);
}

#[test]
fn beyond_what_can_be_owed_nothing_more_is_read_until_there_is_room() {
    let mut rig = ready();
    rig.completions.clear();
    fill(&mut rig);
    let mut told = 0;
    let message = HostMessage::VfAssociation { allocated: false, serial: Serial(0) };
    let payload = message.encode(Version::V6_1);
    let packet =
        vmbus::packet::Outgoing::InBand { transaction_id: 77, completion: true, payload: &payload };
    // Until the guest stops reading.
    loop {
        match rig.host.try_send(&packet) {
            Ok(()) => told += 1,
            Err(_) => {
                let before = rig.nic.channel_stats().received_packets;
                rig.poll();
                assert_eq!(rig.nic.poll_deadline(), None, "it waits for room, not for time");
                if rig.nic.channel_stats().received_packets == before {
                    break;
                }
            }
        }
    }
    assert!(told >= 1024);
    rig.settle();
    let mine = rig.completions.iter().filter(|(id, _)| *id == 77).count();
    assert_eq!(mine, told, "every one completed");
}

#[test]
fn a_full_ring_is_a_value_and_a_doorbell_comes_when_there_is_room() {
    // Many sections, so that the ring is what is full first.
    let mut rig = ready_of(Shape { up_pages: 2, send_pages: 300, ..Shape::default() });
    let mut sent = 0;
    let error = loop {
        match rig.nic.transmit(&frame(1514, sent as u8)) {
            Ok(()) => sent += 1,
            Err(error) => break error,
        }
        rig.nic.flush();
    };
    assert_eq!(error, TransmitError::Full(Lack::Ring));
    assert!(!rig.to_guest.take());
    // Reading all of it makes room; completions come with it.
    assert!(rig.to_host.take());
    rig.serve();
    rig.settle();
    assert_eq!(rig.got.len(), sent);
    assert!(rig.nic.transmit(&frame(60, 0)).is_ok());
    rig.nic.flush();
    rig.settle();
    assert_eq!(rig.got.len(), sent + 1);
    let stats = rig.nic.stats();
    assert_eq!((stats.tx_ring_full, stats.tx_frames), (1, sent as u64 + 1));
}

#[test]
fn a_flush_into_a_full_ring_happens_when_there_is_room() {
    let mut rig = ready();
    rig.nic.transmit(&frame(60, 1)).unwrap();
    fill(&mut rig);
    rig.nic.flush();
    assert!(!rig.nic.can_transmit());
    assert!(rig.got.is_empty());
    rig.settle();
    assert_eq!(rig.got.len(), 1);
    assert!(rig.nic.can_transmit());
}

#[test]
fn what_comes_while_the_nic_is_at_work_is_found_without_a_doorbell() {
    let mut rig = ready();
    rig.send_frames(&[&frame(60, 1)], None);
    assert!(rig.to_guest.take());
    let Rig { nic, host, now, .. } = &mut rig;
    let mut frames = 0;
    let payload = HostMessage::VfAssociation { allocated: true, serial: Serial(4) };
    nic.poll(*now, &mut |_| {
        frames += 1;
        let payload = payload.encode(Version::V6_1);
        host.try_send(&vmbus::packet::Outgoing::InBand {
            transaction_id: 1,
            completion: false,
            payload: &payload,
        })
        .unwrap();
    })
    .unwrap();
    assert_eq!(frames, 1);
    assert_eq!(nic.poll_event(), Some(NicEvent::Associated { serial: Serial(4) }));
    assert!(!rig.to_guest.take(), "the host saw that the guest was at work");
    rig.associate(false, 4);
    assert!(rig.to_guest.take(), "and rings when it rests");
}

#[test]
fn one_call_reads_a_bounded_number_of_packets_and_asks_for_another() {
    let mut rig = ready_of(Shape { down_pages: 33, ..Shape::default() });
    for _ in 0..1500 {
        rig.tell(HostMessage::VfAssociation { allocated: false, serial: Serial(0) }, false);
    }
    rig.poll();
    assert_eq!(rig.nic.stats().associations, 1024);
    assert_eq!(rig.nic.poll_deadline(), Some(rig.now), "at once");
    rig.poll();
    assert_eq!(rig.nic.stats().associations, 1500);
    assert_eq!(rig.nic.poll_deadline(), None);
}

#[test]
fn events_that_nobody_takes_stop_the_reading_and_are_not_lost() {
    let mut rig = ready();
    let mut told = 0;
    for _ in 0..20 {
        for _ in 0..50 {
            told += 1;
            let message = HostMessage::VfAssociation { allocated: true, serial: Serial(told) };
            let payload = message.encode(Version::V6_1);
            let packet = vmbus::packet::Outgoing::InBand {
                transaction_id: 1,
                completion: false,
                payload: &payload,
            };
            if rig.host.try_send(&packet).is_err() {
                told -= 1;
            }
        }
        rig.poll();
    }
    assert_eq!(rig.nic.poll_deadline(), Some(rig.now), "more to read as soon as events are taken");
    let mut serials = Vec::new();
    while rig.nic.poll_deadline() == Some(rig.now) || rig.to_guest.take() {
        serials.extend(rig.events());
        rig.poll();
    }
    serials.extend(rig.events());
    let expected: Vec<_> =
        (1..=told).map(|serial| NicEvent::Associated { serial: Serial(serial) }).collect();
    assert_eq!(serials, expected);
}

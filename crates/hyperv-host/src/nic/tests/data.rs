//! Frames in both directions.

use netvsc::nvsp;
use vmbus::packet::Outgoing;

use super::guest::*;
use crate::nic::*;
use crate::switch::{Offered, PortConfig, SideState, SwitchPort, WireConfig};

#[test]
fn a_frame_from_a_send_section_reaches_the_peer() {
    let mut rig = rig();
    rig.start();
    let id = rig.transmit(3, &Rig::packet(&[], &frame(5, 100)));
    assert_eq!(rig.answer(id)[..2], [108, 1]);
    assert_eq!(rig.peer_hears(), [frame(5, 100)]);
    assert_eq!(rig.service.counters().transmit_frames, 1);
    rig.settled(0);
}

// HISTORY 69: a frame of 9000 bytes over three pages, in one range and in three.
#[test]
fn a_large_frame_in_one_range_and_in_three_is_the_same_frame() {
    let mut rig = rig();
    rig.start();
    let message = Rig::packet(&[], &frame(5, 9000));
    for lengths in [&[9044][..], &[4096, 4096, 852], &[44, 4096, 4096, 808]] {
        let id = rig.transmit_direct(&message, lengths);
        assert_eq!(rig.answer(id)[..2], [108, 1]);
        assert_eq!(rig.peer_hears(), [frame(5, 9000)], "{lengths:?}");
    }
}

#[test]
fn header_in_a_section_and_frame_in_memory_is_one_message() {
    let mut rig = rig();
    rig.start();
    let message = Rig::packet(&[], &frame(5, 2000));
    let (header, body) = message.split_at(44);
    use vmbus::memory::SharedMemory;
    rig.send.write(6144, header).unwrap();
    rig.ram.write(0, body).unwrap();
    let frames = [vmbus::Pfn(100)];
    let range = vmbus::packet::GpaRange { byte_count: 2000, byte_offset: 0, frames: &frames };
    let payload = bytes(&[107, 0, 1, 44]);
    rig.send(&Outgoing::GpaDirect { transaction_id: 9, ranges: &[range], payload: &payload });
    rig.poll();
    assert_eq!(rig.answer(9)[..2], [108, 1]);
    assert_eq!(rig.peer_hears(), [frame(5, 2000)]);
}

#[test]
fn a_message_in_more_pieces_than_the_guest_was_told_is_refused() {
    let mut rig = rig();
    rig.start();
    rig.service.policy_mut().mdl_chain = 3;
    let message = Rig::packet(&[], &frame(5, 156));
    let id = rig.transmit_direct(&message, &[100, 50, 50]);
    assert_eq!(rig.answer(id)[..2], [108, 1]);
    assert_eq!(rig.peer_hears(), [frame(5, 156)]);
    let id = rig.transmit_direct(&message, &[100, 50, 25, 25]);
    assert_eq!(rig.answer(id)[..2], [108, 2]);
    assert_eq!(rig.peer_hears(), [[0u8; 0]; 0]);
    assert_eq!(rig.service.counters().transmit_refused, 1);
}

#[test]
fn several_packets_travel_in_one_message() {
    let mut rig = rig();
    rig.start();
    let mut message = Rig::packet(&[], &frame(1, 60));
    let mut padded = Rig::packet(&[], &frame(2, 1514));
    padded[4..6].copy_from_slice(&1560u16.to_le_bytes());
    padded.resize(1560, 0);
    message.extend(padded);
    message.extend(Rig::packet(&[], &frame(3, 61)));
    let id = rig.transmit(0, &message);
    assert_eq!(rig.answer(id)[..2], [108, 1]);
    assert_eq!(rig.peer_hears(), [frame(1, 60), frame(2, 1514), frame(3, 61)]);
}

// HISTORY 69: a refused message has status 2, and nothing of it goes out.
#[test]
fn a_bad_message_is_refused_whole() {
    let mut rig = rig();
    rig.start();
    let mut message = Rig::packet(&[], &frame(1, 60));
    let good = message.clone();
    message.extend(bytes(&[3, 12, 0]));
    for (message, section) in [(&message[..], 0), (&good[..50], 0), (&[], 0), (&[], 99)] {
        let id = if section == 0 {
            rig.transmit(0, message)
        } else {
            rig.say(&[107, 0, section, 60], true)
        };
        assert_eq!(rig.answer(id)[..2], [108, 2]);
    }
    let id = rig.say(&[107, 0, 0, 6145], true);
    assert_eq!(rig.answer(id)[..2], [108, 2], "more than a section");
    let payload = bytes(&[107, 0, u32::MAX, 0]);
    let frames = [vmbus::Pfn(5)];
    let range = vmbus::packet::GpaRange { byte_count: 60, byte_offset: 0, frames: &frames };
    rig.send(&Outgoing::GpaDirect { transaction_id: 77, ranges: &[range], payload: &payload });
    rig.poll();
    assert_eq!(rig.answer(77)[..2], [108, 2], "memory that is not the guest's");
    assert_eq!(rig.peer_hears(), [[0u8; 0]; 0]);
    assert!(rig.service.is_open());
    assert_eq!(rig.service.counters().transmit_refused, 6);
}

#[test]
fn data_after_halt_is_refused() {
    let mut rig = rig();
    rig.start();
    rig.control(&[3, 1]);
    rig.hear();
    let id = rig.transmit(0, &Rig::packet(&[], &frame(1, 60)));
    assert_eq!(rig.answer(id)[..2], [108, 2]);
}

#[test]
fn tags_travel_outside_the_frame_in_both_directions() {
    let mut rig = rig();
    rig.start();
    // Priority 5, VID 0x123.
    let id = rig.transmit(0, &Rig::packet(&[16, 6, 12, 0x1235], &frame(1, 60)));
    assert_eq!(rig.answer(id)[..2], [108, 1]);
    let mut tagged = frame(1, 60);
    tagged.splice(12..12, [0x81, 0x00, 0xa1, 0x23]);
    assert_eq!(rig.peer_hears(), [tagged.clone()]);
    rig.peer_sends(&tagged);
    rig.poll();
    let heard = rig.hear_and_complete();
    assert_eq!(frames(&heard), [frame(1, 60)]);
    let Heard::Frames { ranges, .. } = &heard[0] else { panic!() };
    assert_eq!(ranges[0][60..76], bytes(&[16, 6, 12, 0x1235]));
}

#[test]
fn large_sends_are_cut_and_checksums_filled_in() {
    let mut rig = rig();
    rig.start();
    let mut large = frame(0, 14);
    large.extend([0x45, 0, 0, 0, 0, 1, 0x40, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
    large.extend([0, 80, 0, 81, 0, 0, 0, 1, 0, 0, 0, 1, 0x50, 0x18, 1, 0, 0, 0, 0, 0]);
    large.extend([0xab; 4000]);
    let lso = 1460 | 34 << 20 | 1 << 30;
    let message = Rig::packet(&[16, 2, 12, lso], &large);
    let id = rig.transmit_direct(&message, &[message.len()]);
    assert_eq!(rig.answer(id)[..2], [108, 1]);
    let heard = rig.peer_hears();
    assert_eq!(heard.iter().map(Vec::len).collect::<Vec<_>>(), [1514, 1514, 54 + 1080]);
    assert_eq!(rig.service.counters().large_sends, 1);
    // A header offset that is none: refused.
    let message = Rig::packet(&[16, 2, 12, 1460 | 10 << 20 | 1 << 30], &large);
    let id = rig.transmit_direct(&message, &[message.len()]);
    assert_eq!(rig.answer(id)[..2], [108, 2]);
}

#[test]
fn a_full_wire_stops_reading_and_loses_nothing() {
    let mut rig = rig();
    rig.port = SwitchPort::new(PortConfig {
        to_peer: WireConfig { capacity: 200, ..WireConfig::instant() },
        from_peer: WireConfig::instant(),
        ..PortConfig::default()
    });
    rig.start();
    let ids: Vec<_> =
        (0..6).map(|at| rig.transmit(at, &Rig::packet(&[], &frame(at as u8, 90)))).collect();
    assert_eq!(rig.hear().len(), 2, "the others wait unanswered");
    let mut heard = rig.peer_hears();
    let mut rounds = 0;
    while rig.port.take_wake(SYNTHETIC, rig.now) {
        rig.poll();
        heard.extend(rig.peer_hears());
        rounds += 1;
    }
    assert_eq!(rounds, 2, "woken by the switch, not by the guest");
    assert_eq!(heard, (0..6).map(|at| frame(at, 90)).collect::<Vec<_>>());
    assert_eq!(rig.hear().len(), ids.len() - 2);
    assert!(rig.service.counters().transmit_blocked > 0);
    rig.settled(0);
}

#[test]
fn frames_of_the_peer_arrive_in_batches() {
    let mut rig = rig();
    rig.start();
    for number in 0..5 {
        rig.peer_sends(&frame(number, 60 + usize::from(number)));
    }
    assert!(rig.port.take_wake(SYNTHETIC, rig.now));
    rig.poll();
    assert!(rig.to_guest.take());
    let heard = rig.hear();
    assert_eq!(heard.len(), 1, "one packet");
    assert_eq!(
        frames(&heard),
        (0..5).map(|at| frame(at, 60 + usize::from(at))).collect::<Vec<_>>()
    );
    rig.settled(5);
    let Heard::Frames { id, .. } = heard[0] else { panic!() };
    rig.complete(id, &[108, 1]);
    rig.poll();
    rig.settled(0);
}

#[test]
fn the_guest_says_what_it_refused() {
    let mut rig = rig();
    rig.start();
    rig.peer_sends(&frame(1, 60));
    rig.poll();
    let Heard::Frames { id, .. } = rig.hear()[0] else { panic!() };
    rig.complete(id, &[108, 2]);
    rig.poll();
    assert_eq!(rig.service.counters().refused_by_guest, 1);
    rig.settled(0);
}

#[test]
fn double_and_malformed_completions_end_the_channel() {
    let mut rig = rig();
    rig.start();
    rig.peer_sends(&frame(1, 60));
    rig.poll();
    let Heard::Frames { id, .. } = rig.hear()[0] else { panic!() };
    rig.complete(id, &[108, 1]);
    rig.complete(id, &[108, 1]);
    rig.poll();
    assert_eq!(rig.failure(), NicServiceError::NotOutstanding(id));
    rig.open();
    rig.start();
    rig.peer_sends(&frame(1, 60));
    rig.poll();
    let Heard::Frames { id, .. } = rig.hear()[0] else { panic!() };
    rig.complete(id, &[]);
    rig.poll();
    assert_eq!(rig.failure(), NicServiceError::Message(nvsp::DecodeError::NoType(0)));
    rig.open();
    rig.start();
    rig.peer_sends(&frame(1, 60));
    rig.poll();
    let Heard::Frames { id, .. } = rig.hear()[0] else { panic!() };
    rig.complete(id, &[129, 1]);
    rig.poll();
    let expected = NicServiceError::WrongCompletion(nvsp::MessageType::SWITCH_DATA_PATH);
    assert_eq!(rig.failure(), expected);
}

#[test]
fn a_guest_without_free_pieces_holds_the_frames_back() {
    let mut rig = rig_with(|_| (), 8); // 18 pieces, 2 of them for data
    rig.start();
    for number in 0..5 {
        rig.peer_sends(&frame(number, 60));
    }
    rig.poll();
    let mut seen = Vec::new();
    let mut rounds = 0;
    while seen.len() < 5 {
        let heard = rig.hear_and_complete();
        assert!(frames(&heard).len() <= 2);
        seen.extend(frames(&heard));
        rounds += 1;
        assert!(rounds < 10);
    }
    assert_eq!(seen, (0..5).map(|at| frame(at, 60)).collect::<Vec<_>>());
    assert!(rig.service.counters().receive_starved > 0);
    rig.settled(0);
    assert_eq!(rig.port.counters().dropped(), 0);
}

#[test]
fn a_full_ring_holds_the_frames_back_until_the_guest_reads() {
    let mut rig = rig_with(|config| config.policy.frames_per_packet = 1, 2048);
    rig.start();
    let total = 400u32;
    for number in 0..total {
        rig.peer_sends(&frame(number as u8, 60));
    }
    rig.poll();
    let mut seen = 0;
    let mut rounds = 0;
    while seen < total {
        let heard = rig.hear();
        assert!(!heard.is_empty(), "stuck at {seen}");
        seen += frames(&heard).len() as u32;
        for packet in heard {
            let Heard::Frames { id, .. } = packet else { continue };
            rig.complete(id, &[108, 1]);
            if rig.to_host.take() {
                rig.poll();
            }
        }
        rounds += 1;
    }
    assert!(rounds > 1, "the ring was never full");
    assert!(rig.service.counters().ring_full > 0);
    rig.settled(0);
}

#[test]
fn what_a_guest_does_not_give_back_is_counted() {
    let mut rig = rig();
    rig.start();
    for number in 0..3 {
        rig.peer_sends(&frame(number, 60));
    }
    rig.poll();
    rig.say(&[103, 0xcafe], false);
    assert_eq!(rig.service.counters().leaked, 3);
    rig.open();
    rig.start();
    rig.peer_sends(&frame(1, 60));
    rig.poll();
    rig.service.close(&mut rig.port);
    assert_eq!(rig.service.counters().leaked, 4);
    assert_eq!(rig.port.side_state(SYNTHETIC), SideState::Down);
    assert_eq!(rig.port.peer_transmit(&frame(1, 60), rig.now), Offered::Accepted);
    rig.settled(0);
}

#[test]
fn frames_longer_than_the_mtu_are_dropped_and_counted() {
    let mut rig = rig();
    rig.start();
    rig.peer_sends(&frame(1, 1518));
    rig.peer_sends(&frame(2, 1519));
    assert_eq!(rig.port.counters().dropped_from_peer.total(), 1);
}

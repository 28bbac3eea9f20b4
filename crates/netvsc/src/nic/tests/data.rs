//! Frames, both ways.

extern crate std;
use std::vec;
use std::vec::Vec;

use proptest::prelude::*;
use vmbus::memory::SharedMemory;

use super::host::*;
use crate::nic::*;
use crate::nvsp::{ChannelType, GuestMessage, RndisPacket, SectionUse, Status, rndis_complete};
use crate::rndis::packet::{PpiType, ReceiveChecksum, VlanTag, write_header};

fn sent(rig: &mut Rig, frames: &[Vec<u8>]) {
    for frame in frames {
        rig.nic.transmit(frame).unwrap();
    }
    rig.nic.flush();
    rig.settle();
}

#[test]
fn a_frame_goes_out_in_a_send_section() {
    let mut rig = ready();
    let frame = frame(60, 1);
    sent(&mut rig, std::slice::from_ref(&frame));
    assert_eq!(rig.got, [Got { data: frame, tag: None, message: 0 }]);
    let [GuestMessage::RndisPacket(RndisPacket { channel_type, section })] = rig.said[..] else {
        panic!("{:?}", rig.said)
    };
    assert_eq!(channel_type, ChannelType::DATA);
    assert_eq!(section, Some(SectionUse { index: 1, bytes: 104 }), "0 is for control messages");
    let stats = rig.nic.stats();
    assert_eq!(
        (stats.tx_frames, stats.tx_bytes, stats.tx_messages, stats.tx_completed),
        (1, 60, 1, 1)
    );
    // The header, as it lies in the section.
    let mut header = [0; 44];
    rig.send.read(SECTION, &mut header).unwrap();
    let words: Vec<_> = header.as_chunks().0.iter().map(|w| u32::from_le_bytes(*w)).collect();
    assert_eq!(words, [1, 104, 36, 60, 0, 0, 0, 0, 0, 0, 0]);
}

#[test]
fn nothing_goes_out_before_the_flush_and_then_with_one_doorbell() {
    let mut rig = ready();
    let before = rig.nic.channel_stats().signals;
    for seed in 0..20 {
        rig.nic.transmit(&frame(1000, seed)).unwrap();
    }
    assert!(!rig.to_host.take());
    rig.nic.flush();
    assert!(rig.to_host.take());
    assert_eq!(rig.nic.channel_stats().signals, before + 1);
    rig.serve();
    assert_eq!(rig.got.len(), 20);
}

#[test]
fn small_frames_share_a_message_and_keep_their_order() {
    let mut rig = ready();
    let frames: Vec<_> = (0..20).map(|seed| frame(60 + usize::from(seed), seed)).collect();
    sent(&mut rig, &frames);
    let data: Vec<_> = rig.got.iter().map(|got| got.data.clone()).collect();
    assert_eq!(data, frames);
    let messages: Vec<_> = rig.got.iter().map(|got| got.message).collect();
    assert_eq!(messages[..9], [0, 0, 0, 0, 0, 0, 0, 0, 1], "eight, as the host says");
    assert_eq!(rig.nic.stats().tx_messages, 3);
}

#[test]
fn a_host_that_takes_one_frame_per_message_gets_one() {
    let mut rig = rig();
    rig.max_packets = 1;
    rig.settle();
    let frames: Vec<_> = (0..3).map(|seed| frame(60, seed)).collect();
    sent(&mut rig, &frames);
    assert_eq!(rig.nic.stats().tx_messages, 3);
    assert_eq!(rig.got.len(), 3);
}

#[test]
fn a_tag_goes_beside_its_frame() {
    let mut rig = ready();
    let mut tagged = frame(100, 1);
    tagged[12..16].copy_from_slice(&[0x81, 0, 0x60, 0x07]);
    sent(&mut rig, std::slice::from_ref(&tagged));
    let plain = [&tagged[..12], &tagged[16..]].concat();
    assert_eq!(rig.got, [Got { data: plain, tag: Some(VlanTag(0x6007)), message: 0 }]);
    // A full frame and its tag.
    let mut longest = frame(1518, 1);
    longest[12..16].copy_from_slice(&[0x81, 0, 0, 1]);
    assert!(rig.nic.transmit(&longest).is_ok());
    longest[12..16].copy_from_slice(&[8, 0, 0, 1]);
    assert_eq!(rig.nic.transmit(&longest), Err(TransmitError::TooLong { len: 1518, most: 1514 }));
    assert_eq!(rig.nic.transmit(&[0; 13]), Err(TransmitError::TooShort(13)));
}

// HISTORY 69: 9,000 bytes, more than a section has.
#[test]
fn a_frame_longer_than_a_section_goes_out_by_its_pages() {
    let config = NicConfig { mtu: 9000, ..NicConfig::default() };
    let mut rig = rig_of(Shape { config, send_pages: 60, ..Shape::default() });
    rig.mtu = 9000;
    rig.settle();
    rig.said.clear();
    let frames = [frame(9014, 3), frame(60, 4), frame(9014, 5)];
    for frame in &frames {
        sent(&mut rig, std::slice::from_ref(frame));
    }
    let data: Vec<_> = rig.got.iter().map(|got| got.data.clone()).collect();
    assert_eq!(data, frames);
    assert_eq!(rig.direct, 2, "the small one fits into a section");
    let RndisPacket { section, .. } = rndis_of(&rig.said[0]);
    assert_eq!(section.unwrap().index % 2, 0, "two sections each");
    assert_eq!(rig.nic.stats().tx_completed, 3);
}

fn rndis_of(said: &GuestMessage) -> RndisPacket {
    let GuestMessage::RndisPacket(packet) = said else { panic!("{said:?}") };
    *packet
}

#[test]
fn without_free_sections_frames_wait_for_the_host() {
    let mut rig = ready();
    rig.held.frames = true;
    let mut taken = 0;
    while rig.nic.can_transmit() {
        match rig.nic.transmit(&frame(1514, taken)) {
            Ok(()) => taken += 1,
            Err(error) => {
                assert_eq!(error, TransmitError::Full(Lack::Section));
                break;
            }
        }
    }
    assert_eq!(taken, 7 * 3, "eight sections of which one is kept for control, three in each");
    assert!(rig.to_host.take(), "a full NIC shows what it has without a flush");
    rig.serve();
    assert!(!rig.nic.can_transmit());
    assert!(!rig.to_guest.take());
    let id = rig.waiting.pop_front().unwrap();
    rig.complete_send(id, Status::SUCCESS);
    assert!(rig.to_guest.take());
    rig.poll();
    assert!(rig.nic.can_transmit());
    assert!(rig.nic.transmit(&frame(60, 1)).is_ok());
    assert_eq!(rig.nic.stats().tx_sections_full, 1);
}

// HISTORY 69
#[test]
fn a_refused_frame_is_counted_and_its_section_is_free_again() {
    let mut rig = ready();
    rig.held.frames = true;
    for round in 0..30 {
        rig.nic.transmit(&frame(60, round)).unwrap();
        rig.nic.flush();
        rig.settle();
        let id = rig.waiting.pop_front().unwrap();
        rig.complete_send(id, Status::FAILURE);
        rig.settle();
    }
    let stats = rig.nic.stats();
    assert_eq!((stats.tx_completed, stats.tx_refused), (30, 30));
    assert_eq!(stats.bad.total(), 0);
}

#[test]
fn a_section_is_given_back_once_however_often_the_host_says_so() {
    let mut rig = ready();
    rig.held.frames = true;
    rig.nic.transmit(&frame(60, 1)).unwrap();
    rig.nic.flush();
    rig.settle();
    let id = rig.waiting.pop_front().unwrap();
    rig.complete_send(id, Status::SUCCESS);
    rig.complete_send(id, Status::SUCCESS);
    rig.settle();
    assert_eq!(rig.nic.stats().bad.completion, 1);
    // The same section again: the old id is still not its own.
    rig.nic.transmit(&frame(60, 2)).unwrap();
    rig.nic.flush();
    rig.settle();
    assert_eq!(rig.waiting[0] as u32, id as u32);
    rig.complete_send(id, Status::SUCCESS);
    rig.settle();
    assert_eq!(rig.nic.stats().bad.completion, 2);
    assert_eq!(rig.nic.stats().tx_completed, 1);
}

#[test]
fn a_completion_that_says_nothing_frees_the_section_too() {
    let mut rig = ready();
    rig.held.frames = true;
    rig.nic.transmit(&frame(60, 1)).unwrap();
    rig.nic.flush();
    rig.settle();
    let id = rig.waiting.pop_front().unwrap();
    rig.complete(id, &[]);
    rig.settle();
    let stats = rig.nic.stats();
    assert_eq!((stats.bad.answer, stats.tx_completed, stats.tx_refused), (1, 1, 1));
}

#[test]
fn frames_before_start_up_and_after_the_end_are_refused() {
    let mut rig = rig();
    assert_eq!(rig.nic.transmit(&frame(60, 1)), Err(TransmitError::NotReady));
    assert!(!rig.nic.can_transmit());
    rig.settle();
    assert!(rig.nic.can_transmit());
    rig.nic.shutdown(rig.now);
    assert_eq!(rig.nic.transmit(&frame(60, 1)), Err(TransmitError::NotReady));
}

#[test]
fn received_frames_come_once_and_each_packet_is_completed_once() {
    let mut rig = ready();
    rig.completions.clear();
    let frames: Vec<_> = (0..5).map(|seed| frame(60 + usize::from(seed) * 300, seed)).collect();
    let parts: Vec<_> = frames.iter().map(|frame| &frame[..]).collect();
    let first = rig.send_frames(&parts, None);
    let second = rig.send_frames(&parts[..1], None);
    rig.settle();
    assert_eq!(rig.received[..5], frames);
    assert_eq!(rig.received[5], frames[0]);
    let done = rndis_complete(Status::SUCCESS).to_vec();
    assert_eq!(rig.completions, [(first, done.clone()), (second, done)]);
    let stats = rig.nic.stats();
    assert_eq!((stats.rx_frames, stats.bad.total()), (6, 0));
}

// HISTORY 29: however often a frame is copied out, each copy is the same; the buffer is not changed.
#[test]
fn a_tag_beside_a_frame_is_put_back_into_it() {
    let mut rig = ready();
    let plain = frame(60, 1);
    rig.send_frames(&[&plain], Some(VlanTag(0x6007)));
    let mut seen = vec![];
    let now = rig.now;
    rig.nic
        .poll(now, &mut |frame| {
            assert_eq!((frame.len(), frame.vlan()), (64, Some(VlanTag(0x6007))));
            assert_eq!(frame.checksum(), ReceiveChecksum::empty());
            for room in 0..70 {
                let mut copy = vec![0xee; room];
                let copied = frame.copy_to(&mut copy);
                copy.truncate(copied);
                seen.push(copy);
            }
        })
        .unwrap();
    let tagged = [&plain[..12], &[0x81, 0, 0x60, 0x07], &plain[12..]].concat();
    for (room, copy) in seen.iter().enumerate() {
        assert_eq!(copy, &tagged[..room.min(64)], "room for {room}");
    }
}

#[test]
fn frames_that_nobody_asked_for_yet_are_dropped_and_completed() {
    let mut rig = rig();
    rig.held.rndis = true;
    rig.settle();
    rig.completions.clear();
    rig.send_frames(&[&frame(60, 1)], None);
    rig.settle();
    assert!(rig.received.is_empty());
    assert_eq!((rig.nic.stats().rx_early, rig.completions.len()), (1, 1));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn frames_of_every_size_and_number_arrive_in_order(
        lengths in proptest::collection::vec(14..1515usize, 1..60),
        flushes in proptest::collection::vec(any::<bool>(), 60),
    ) {
        let mut rig = ready();
        let frames: Vec<_> =
            lengths.iter().enumerate().map(|(at, len)| frame((*len).max(18), at as u8)).collect();
        for (frame, flush) in frames.iter().zip(flushes) {
            while let Err(error) = rig.nic.transmit(frame) {
                prop_assert!(matches!(error, TransmitError::Full(_)));
                rig.settle();
            }
            if flush {
                rig.nic.flush();
            }
        }
        rig.nic.flush();
        rig.settle();
        let data: Vec<_> = rig.got.iter().map(|got| got.data.clone()).collect();
        prop_assert_eq!(data, frames);
        prop_assert_eq!(rig.nic.stats().tx_completed, rig.nic.stats().tx_messages);
    }
}

#[test]
fn what_the_host_found_goes_with_the_frame_to_whoever_takes_it() {
    use crate::adapter::{Frame, Synthetic};
    let mut rig = ready();
    let found = ReceiveChecksum::TCP_GOOD | ReceiveChecksum::IP_GOOD;
    let infos: [&[(PpiType, u32)]; 2] =
        [&[(PpiType::CHECKSUM, found.bits()), (PpiType::HASH, 0x1234_5678)], &[]];
    for info in infos {
        let mut bytes = vec![0; 200];
        write_header(&mut bytes, info, 100, 100).unwrap();
        rig.deliver(ChannelType::DATA, &[(PIECE, &bytes)]);
        let mut seen = vec![];
        let note = &mut |frame: &dyn Frame| seen.push((frame.checksum(), frame.hash()));
        Synthetic::poll(&mut rig.nic, rig.now, note).unwrap();
        let told = if info.is_empty() { ReceiveChecksum::empty() } else { found };
        assert_eq!(seen, [(told, (!info.is_empty()).then_some(0x1234_5678))]);
    }
}

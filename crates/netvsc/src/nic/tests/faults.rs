//! What hosts do wrong. Each costs what it is about, and nothing more.

extern crate std;
use std::sync::atomic::Ordering;
use std::vec;
use std::vec::Vec;

use proptest::prelude::*;
use vmbus::memory::SharedMemory;
use vmbus::packet::{GpaRange, Outgoing, TransferRange};
use vmbus::ring::{READ_INDEX, RingError, WRITE_INDEX};
use vmbus::{Pfn, Serial};

use super::host::*;
use crate::nic::*;
use crate::nvsp::{ChannelType, DataPath, HostMessage, Status, rndis_complete};
use crate::rndis::packet::{PpiType, write_header};

fn failed() -> Vec<u8> {
    rndis_complete(Status::FAILURE).to_vec()
}

/// Delivers the ranges and returns the counts of what was wrong, after checking that the packet was completed once with
/// failure and that the good range of it was delivered.
fn bad_ranges(ranges: &[TransferRange]) -> BadInput {
    let mut rig = ready();
    rig.completions.clear();
    let good = message(&frame(60, 9), None);
    rig.receive.write(PIECE, &good).unwrap();
    let mut all = ranges.to_vec();
    all.push(TransferRange { byte_count: good.len() as u32, byte_offset: PIECE as u32 });
    let id = rig.transfer(ChannelType::DATA, 0xcafe, &all);
    rig.settle();
    assert_eq!(rig.completions, [(id, failed())]);
    assert_eq!(rig.received, [frame(60, 9)]);
    rig.nic.stats().bad
}

/// The same with one range that holds `bytes`.
fn bad_message(bytes: &[u8]) -> BadInput {
    let mut rig = ready();
    rig.completions.clear();
    let good = message(&frame(60, 9), None);
    let id = rig.deliver(ChannelType::DATA, &[(3 * PIECE, bytes), (PIECE, &good)]);
    rig.settle();
    assert_eq!(rig.completions, [(id, failed())]);
    assert_eq!(rig.received, [frame(60, 9)], "the other is delivered");
    rig.nic.stats().bad
}

#[test]
fn ranges_outside_the_buffer_are_passed_over() {
    let all = 72 * PIECE as u32;
    for (byte_count, byte_offset) in
        [(PIECE as u32 + 1, 0), (100, all - 99), (100, all), (100, u32::MAX), (u32::MAX, 8)]
    {
        let bad = bad_ranges(&[TransferRange { byte_count, byte_offset }]);
        assert_eq!(bad, BadInput { range: 1, ..BadInput::default() });
    }
}

#[test]
fn headers_that_lie_cost_their_frame() {
    let good = message(&frame(60, 1), None);
    for (at, value) in [(4, 43), (8, 249), (8, u32::MAX), (12, 61), (12, 0), (16, 1), (36, 1)] {
        let mut bytes = good.clone();
        put(&mut bytes, at, value);
        let bad = bad_message(&bytes);
        assert_eq!(bad, BadInput { header: 1, ..BadInput::default() }, "{value} at {at}");
    }
    assert_eq!(bad_message(&good[..43]).header, 1);
    assert_eq!(bad_message(&good[..315]).header, 1, "cut off");
}

#[test]
fn information_that_lies_costs_its_frame() {
    let good = message(&frame(60, 1), None);
    for (at, value) in [(44, 0), (44, 11), (44, 17), (52, 16), (52, u32::MAX)] {
        let mut bytes = good.clone();
        put(&mut bytes, at, value);
        assert_eq!(bad_message(&bytes), BadInput { info: 1, ..BadInput::default() });
    }
    // More of it than anybody needs.
    let mut bytes = vec![0; 1000];
    write_header(&mut bytes, &[(PpiType::HASH, 1); 17], 900, 100).unwrap();
    assert_eq!(bad_message(&bytes).info, 1);
}

#[test]
fn parts_of_segments_and_runts_cost_their_frame() {
    let mut bytes = vec![0; 200];
    for flags in [1, 3, 5] {
        write_header(&mut bytes, &[(PpiType::PACKET_ID, flags << 8 | 1)], 100, 100).unwrap();
        assert_eq!(bad_message(&bytes), BadInput { coalesced: 1, ..BadInput::default() });
    }
    let mut runt = vec![0; 57];
    write_header(&mut runt, &[], 44, 13).unwrap();
    assert_eq!(bad_message(&runt), BadInput { runt: 1, ..BadInput::default() });
}

#[test]
fn a_whole_segment_that_calls_itself_a_part_is_delivered() {
    let mut rig = ready();
    let mut bytes = vec![0; 200];
    write_header(&mut bytes, &[(PpiType::PACKET_ID, 7 << 8 | 1)], 100, 100).unwrap();
    rig.deliver(ChannelType::DATA, &[(0, &bytes)]);
    rig.settle();
    assert_eq!(rig.received.len(), 1);
}

#[test]
fn control_messages_that_make_no_sense_are_passed_over() {
    for bytes in [&[][..], &[7, 0, 0], &[7, 0, 0, 0, 200, 0, 0, 0], &[99; 60]] {
        assert_eq!(bad_message(bytes), BadInput { control: 1, ..BadInput::default() });
    }
}

#[test]
fn transfer_pages_of_another_buffer_or_before_there_is_one_are_refused() {
    let mut rig = ready();
    rig.completions.clear();
    let range = TransferRange { byte_count: 100, byte_offset: 0 };
    let id = rig.transfer(ChannelType::DATA, 0xcaff, &[range]);
    rig.settle();
    assert_eq!(rig.completions, [(id, failed())]);
    assert_eq!(rig.nic.stats().bad.buffer, 1);

    let mut rig = super::host::rig();
    let id = rig.transfer(ChannelType::DATA, 0xcafe, &[range]);
    rig.settle();
    assert_eq!(rig.completions[0], (id, failed()));
    assert_eq!(rig.nic.stats().bad.buffer, 1);
    assert!(rig.nic.info().ready);
}

#[test]
fn transfer_pages_that_carry_something_else_are_refused() {
    let mut rig = ready();
    rig.completions.clear();
    let ranges = [TransferRange { byte_count: 100, byte_offset: 0 }];
    let payload = HostMessage::SwitchDataPath(DataPath::VF).encode(rig.version());
    for payload in [&payload[..], &[]] {
        rig.host
            .try_send(&Outgoing::TransferPages {
                transaction_id: 5,
                pageset: 0xcafe,
                ranges: &ranges,
                payload,
            })
            .unwrap();
    }
    rig.settle();
    assert_eq!(rig.completions, [(5, failed()), (5, failed())]);
    assert_eq!(rig.nic.stats().bad.carrier, 2);
    assert!(rig.events().is_empty());
}

#[test]
fn messages_that_make_no_sense_are_passed_over() {
    let mut rig = ready();
    rig.completions.clear();
    let mut send = |payload: &[u8]| {
        let packet = Outgoing::InBand { transaction_id: 5, completion: true, payload };
        rig.host.try_send(&packet).unwrap();
    };
    send(&[]);
    send(&[99; 40]);
    // An association that is neither made nor withdrawn, and one cut off.
    send(&[128, 0, 0, 0, 2, 0, 0, 0, 7, 0, 0, 0, 0, 0, 0, 0]);
    send(&[128, 0, 0, 0, 1, 0, 0, 0]);
    let unasked = HostMessage::SubChannels { status: Status::SUCCESS, count: 1 };
    send(&unasked.encode(Version::V6_1));
    send(&HostMessage::SwitchDataPath(DataPath(2)).encode(Version::V6_1));
    // HISTORY 32: there is one channel, and its number is 0.
    let mut table = [0; 16];
    table[15] = 1;
    send(&HostMessage::IndirectionTable(table).encode(Version::V6_1));
    let ranges = [GpaRange { byte_count: 8, byte_offset: 0, frames: &[Pfn(1)] }];
    let direct = Outgoing::GpaDirect { transaction_id: 6, ranges: &ranges, payload: &[] };
    rig.host.try_send(&direct).unwrap();
    rig.settle();
    assert!(rig.events().is_empty());
    assert_eq!(rig.nic.info().send_table, None);
    assert_eq!(
        rig.nic.stats().bad,
        BadInput {
            message: 4,
            unexpected: 1,
            path: 1,
            table: 1,
            gpa_direct: 1,
            ..BadInput::default()
        }
    );
    assert_eq!(rig.completions.len(), 8, "whoever asks for a completion gets one");
    rig.associate(true, 9);
    rig.settle();
    assert_eq!(rig.events(), [NicEvent::Associated { serial: Serial(9) }], "and life goes on");
}

// HISTORY 70
#[test]
fn impossible_indices_end_the_nic() {
    for value in [0x4000, 3, u32::MAX] {
        let mut rig = ready();
        rig.down.atomic_u32(WRITE_INDEX).unwrap().store(value, Ordering::Release);
        let error = rig.try_poll().unwrap_err();
        assert!(matches!(
            error,
            NicError::Ring(RingError::Index { which: "write", value: found, .. }) if found == value
        ));
        assert_eq!(rig.events(), [NicEvent::Failed(error)]);
        assert_eq!(rig.nic.transmit(&frame(60, 1)), Err(TransmitError::NotReady));
        rig.nic.shutdown(rig.now);
        assert_eq!(rig.events(), [NicEvent::Stopped]);

        let mut rig = ready_of(Shape { up_pages: 2, send_pages: 300, ..Shape::default() });
        rig.up.atomic_u32(READ_INDEX).unwrap().store(value, Ordering::Release);
        let error = loop {
            match rig.nic.transmit(&frame(1514, 1)) {
                Ok(()) => rig.nic.flush(),
                Err(error) => break error,
            }
        };
        let failure = rig.try_poll().unwrap_err();
        assert!(matches!(failure, NicError::Ring(RingError::Index { which: "read", .. })));
        assert!([TransmitError::Failed(failure), TransmitError::NotReady].contains(&error));
        assert_eq!(rig.events(), [NicEvent::Failed(failure)]);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    // Whatever the host writes: no panic, and one completion for each packet.
    #[test]
    fn no_bytes_in_the_receive_buffer_do_harm(
        bytes in proptest::collection::vec(
            prop_oneof![Just(0u8), Just(1), Just(12), Just(36), any::<u8>()], 0..400),
        ranges in proptest::collection::vec((0..2000u32, 0..2500u32), 1..8),
        kind in prop_oneof![Just(1u32), Just(7), 0x8000_0002u32..0x8000_0009],
        in_band in proptest::collection::vec(any::<u8>(), 0..90),
    ) {
        let mut rig = ready();
        rig.completions.clear();
        rig.receive.write(0, &bytes).unwrap();
        rig.receive.write(0, &kind.to_le_bytes()).unwrap();
        let ranges: Vec<_> = ranges
            .iter()
            .map(|(byte_count, byte_offset)| TransferRange {
                byte_count: *byte_count,
                byte_offset: byte_offset.saturating_sub(500),
            })
            .collect();
        let id = rig.transfer(ChannelType::DATA, 0xcafe, &ranges);
        let packet = Outgoing::InBand { transaction_id: 5, completion: true, payload: &in_band };
        rig.host.try_send(&packet).unwrap();
        rig.settle();
        let ids: Vec<_> = rig.completions.iter().map(|(id, _)| *id).collect();
        prop_assert_eq!(ids, [id, 5]);
        for frame in &rig.received {
            prop_assert!(frame.len() <= PIECE);
        }
    }
}

//! Checksums, large sends, coalescing and tags, judged by an implementation that is not ours.

use netvsc::nvsp::Version;
use netvsc::rndis::packet::{Layout, PartFlags, PpiType, Ppis, ReceiveChecksum};
use proptest::prelude::*;

use super::guest::*;
use crate::nic::offload::{LargeSend, Segments};
use crate::nic::testing::{is_valid, tcp4, tcp6, udp4};
use crate::nic::*;
use crate::switch::{Offered, Path, Uncut};

const ACK: u8 = 0x10;

/// A guest whose NDIS configuration has these capabilities and whose offload parameters have these bytes.
fn started(
    capabilities: u32,
    parameters: &[(usize, u8)],
    change: impl FnOnce(&mut NicServiceConfig),
) -> Rig {
    start(rig_with(change, 64), capabilities, parameters)
}

/// A guest that coalesces, with a receive buffer of so many pages.
fn rig_of(pages: u64) -> Rig {
    start(rig_with(|_| (), pages), RSC, ON)
}

fn start(mut rig: Rig, capabilities: u32, parameters: &[(usize, u8)]) -> Rig {
    let id = rig.say(&[1, Version::V6_1.0, Version::V6_1.0], true);
    rig.answer(id);
    rig.say(&[125, 1514, 0, capabilities, 0], false);
    rig.say(&[100, 6, 0x1e], false);
    rig.say(&[101, RECEIVE.0, 0xcafe], true);
    rig.say(&[104, SEND.0, 0], true);
    rig.control(&[2, 1, 1, 0, 0x4000]);
    rig.hear_and_complete();
    set(&mut rig, parameters);
    rig.filter(0xb);
    rig
}

fn set(rig: &mut Rig, parameters: &[(usize, u8)]) {
    let mut info = vec![0x80, 3, 28, 0];
    info.resize(28, 0);
    parameters.iter().for_each(|(at, value)| info[*at] = *value);
    let mut message = vec![5, 7, 0xfc01_020c, 28, 20, 0];
    message.extend(info.chunks(4).map(|word| u32::from_le_bytes(word.try_into().unwrap())));
    rig.control(&message);
    assert_eq!(rig.hear_and_complete().len(), 3);
}

/// A message of the host taken apart: frame, entries.
fn apart(message: &[u8]) -> (Vec<u8>, Vec<(PpiType, u32)>) {
    let layout = Layout::decode(message, message.len()).unwrap();
    let entries = Ppis::new(&message[layout.ppi]).map(|entry| {
        let entry = entry.unwrap();
        (entry.kind, entry.word().unwrap())
    });
    (message[layout.data].to_vec(), entries.collect())
}

/// What is told of a frame's checksums.
fn told(rig: &mut Rig, frame: &[u8]) -> ReceiveChecksum {
    rig.peer_sends(frame);
    rig.poll();
    let heard = rig.hear_and_complete();
    let [Heard::Frames { ranges, .. }] = &heard[..] else { panic!("{heard:?}") };
    let (_, entries) = apart(&ranges[0]);
    assert_eq!(entries[0].0, PpiType::CHECKSUM, "always there");
    ReceiveChecksum::from_bits_retain(entries[0].1)
}

#[test]
fn results_of_checks_are_told_to_whoever_wants_them() {
    use ReceiveChecksum as C;
    let (good, mut bad) = (tcp4(7, ACK, &[1; 40]), tcp4(7, ACK, &[1; 40]));
    bad[60] ^= 1;
    let mut rig = started(0, &[], |_| ());
    assert_eq!(told(&mut rig, &good), C::empty(), "nobody asked");
    let mut rig = started(0, &[(4, 4), (5, 3), (6, 2), (7, 4), (8, 4)], |_| ());
    assert_eq!(told(&mut rig, &good), C::IP_GOOD | C::TCP_GOOD);
    assert_eq!(told(&mut rig, &bad), C::IP_GOOD | C::TCP_BAD, "and it is delivered");
    assert_eq!(told(&mut rig, &udp4(9, &[3; 9])), C::IP_GOOD, "UDP on the way out only");
    assert_eq!(told(&mut rig, &tcp6(7, ACK, &[1; 40])), C::TCP_GOOD);
    assert_eq!(told(&mut rig, &frame(1, 60)), C::empty());
    rig.service.policy_mut().offloads.checksum = false;
    assert_eq!(told(&mut rig, &good), C::empty(), "a NIC without");
}

/// A stream of segments from the peer, and the message that the guest gets for it put together again.
fn coalesced(rig: &mut Rig, segments: &[Vec<u8>]) -> Vec<(Vec<u8>, Vec<u32>, ReceiveChecksum)> {
    for segment in segments {
        rig.peer_sends(segment);
    }
    rig.poll();
    let heard = rig.hear_and_complete();
    let mut frames: Vec<(Vec<u8>, Vec<u32>, ReceiveChecksum)> = Vec::new();
    for packet in &heard {
        let Heard::Frames { control: false, ranges, .. } = packet else { panic!("{packet:?}") };
        let mut open = false;
        for message in ranges {
            let (data, entries) = apart(message);
            let find =
                |kind| entries.iter().find(|(found, _)| *found == kind).map(|(_, word)| *word);
            let checks = ReceiveChecksum::from_bits_retain(find(PpiType::CHECKSUM).unwrap_or(0));
            let Some(part) = find(PpiType::PACKET_ID) else {
                assert!(!open);
                frames.push((data, Vec::new(), checks));
                continue;
            };
            let flags = PartFlags::from_bits_retain((part >> 8) as u8);
            assert_eq!(part & 0xff, 1, "the version of the entry");
            assert!(flags.contains(PartFlags::SUB_ALLOCATED));
            assert_eq!(flags.contains(PartFlags::FIRST), !open);
            if open {
                assert_eq!(entries.len(), 1, "only the first says more");
                let last = frames.last_mut().unwrap();
                last.0.extend(data);
                last.1.push(part);
            } else {
                frames.push((data, vec![part], checks));
            }
            open = !flags.contains(PartFlags::LAST);
        }
        assert!(!open, "a frame ends in the packet that it starts in");
    }
    frames
}

fn segments(len: usize, ipv6: bool) -> (Vec<u8>, Vec<Vec<u8>>) {
    let data: Vec<u8> = (0..len).map(|at| (at / 5) as u8).collect();
    let segment = |(at, part): (usize, &[u8])| {
        let sequence = 5000 + at as u32 * 1400;
        if ipv6 { tcp6(sequence, ACK, part) } else { tcp4(sequence, ACK, part) }
    };
    let segments = data.chunks(1400).enumerate().map(segment).collect();
    (data, segments)
}

const RSC: u32 = 0x80;
const ON: &[(usize, u8)] = &[(4, 4), (5, 4), (7, 4), (22, 2), (23, 2)];

#[test]
fn segments_are_put_together_for_guests_that_ask_for_it() {
    for ipv6 in [false, true] {
        let (data, stream) = segments(21_000, ipv6);
        let mut rig = started(RSC, ON, |_| ());
        let frames = coalesced(&mut rig, &stream);
        let [(whole, parts, checks)] = &frames[..] else { panic!("{} frames", frames.len()) };
        let headers = if ipv6 { 74 } else { 54 };
        assert_eq!(whole[headers..], data);
        assert_eq!(parts.len(), whole.len().div_ceil(1514));
        assert!(is_valid(whole), "headers and checksums are those of the whole");
        assert!(checks.contains(ReceiveChecksum::TCP_GOOD));
        assert_eq!(
            (rig.service.counters().coalesced, rig.service.counters().receive_frames),
            (14, 1)
        );
        rig.settled(0);
        // A guest that does not ask, cannot, or a host that does not.
        for (capabilities, parameters) in [(RSC, &[][..]), (0, ON)] {
            let mut rig = started(capabilities, parameters, |_| ());
            assert_eq!(coalesced(&mut rig, &stream).len(), 15);
        }
        let mut rig = started(RSC, ON, |config| config.policy.offloads.coalescing = false);
        assert_eq!(coalesced(&mut rig, &stream).len(), 15);
    }
}

/// A stream as the one segment that somebody would cut into it.
fn long(len: usize, ipv6: bool) -> (Vec<u8>, Vec<u8>, Uncut) {
    let (data, stream) = segments(len, ipv6);
    let headers = if ipv6 { 74 } else { 54 };
    let mut long = stream[0][..headers].to_vec();
    long.extend(&data);
    let request = LargeSend { segment: 1400, tcp_offset: headers - 20, ipv6 };
    let uncut = Segments::new(&long, request).unwrap().leave(&mut long);
    (data, long, uncut)
}

#[test]
fn a_segment_of_the_peer_reaches_a_guest_that_coalesces_uncut() {
    for ipv6 in [false, true] {
        let (data, segment, uncut) = long(21_000, ipv6);
        for stale in [false, true] {
            let mut rig = started(RSC, ON, |config| config.policy.offloads.stale_checksums = stale);
            assert!(rig.port.wants_uncut());
            let sent = rig.port.peer_transmit_uncut(&segment, uncut, rig.now);
            assert_eq!(sent, Offered::Accepted);
            let frames = coalesced(&mut rig, &[]);
            let [(whole, parts, checks)] = &frames[..] else { panic!("{} frames", frames.len()) };
            assert_eq!((&whole[uncut.headers..], parts.len()), (&data[..], 14));
            assert_eq!(
                (is_valid(whole), checks.contains(ReceiveChecksum::TCP_GOOD)),
                (!stale, true)
            );
            assert_eq!(checks.contains(ReceiveChecksum::TCP_VALUE_INVALID), stale);
            let counters = rig.service.counters();
            assert_eq!((counters.receive_uncut, counters.coalesced), (1, 0));
            rig.settled(0);
        }
        // One that came while the NIC still coalesced, which it does no more.
        let mut rig = started(RSC, ON, |_| ());
        assert_eq!(rig.port.peer_transmit_uncut(&segment, uncut, rig.now), Offered::Accepted);
        rig.service.policy_mut().offloads.coalescing = false;
        let cut = coalesced(&mut rig, &[]);
        assert!(!rig.port.wants_uncut());
        assert_eq!((cut.len(), rig.service.counters().receive_uncut), (15, 0));
        assert!(cut.iter().all(|(frame, ..)| is_valid(frame)));
        rig.settled(0);
    }
}

#[test]
fn a_segment_waits_for_pieces_and_is_cut_if_there_are_never_enough() {
    let (data, segment, uncut) = long(21_000, false);
    let mut rig = started(RSC, ON, |_| ());
    let total = 64 * 4096 / 1806 - 16;
    for number in 0..total - 5 {
        rig.peer_sends(&frame(number as u8, 60));
    }
    rig.poll();
    let held = rig.hear();
    assert_eq!(rig.port.peer_transmit_uncut(&segment, uncut, rig.now), Offered::Accepted);
    rig.poll();
    assert_eq!((rig.hear().len(), rig.port.waiting(Path::Synthetic)), (0, 1), "five are too few");
    for packet in held {
        let Heard::Frames { id, .. } = packet else { panic!("{packet:?}") };
        rig.complete(id, &[108, 1]);
    }
    let frames = coalesced(&mut rig, &[]);
    assert_eq!((frames.len(), &frames[0].0[54..]), (1, &data[..]));
    rig.settled(0);
    // A buffer that has no room for it even when it is empty.
    let (data, segment, uncut) = long(60_000, false);
    let mut rig = rig_of(24);
    assert_eq!(rig.port.peer_transmit_uncut(&segment, uncut, rig.now), Offered::Accepted);
    let mut found = Vec::new();
    loop {
        let frames = coalesced(&mut rig, &[]);
        if frames.is_empty() {
            break;
        }
        found.extend(frames.iter().flat_map(|(frame, ..)| frame[54..].to_vec()));
    }
    assert_eq!((found, rig.service.counters().receive_uncut), (data, 0));
    rig.settled(0);
}

#[test]
fn stale_checksums_are_told() {
    use ReceiveChecksum as C;
    let (_, stream) = segments(2800, false);
    let mut rig = started(RSC, ON, |config| config.policy.offloads.stale_checksums = true);
    let frames = coalesced(&mut rig, &stream);
    let expected = C::IP_GOOD | C::TCP_GOOD | C::IP_VALUE_INVALID | C::TCP_VALUE_INVALID;
    assert_eq!(frames[0].2, expected);
    assert!(!is_valid(&frames[0].0));
}

#[test]
fn bad_segments_and_other_flows_stay_alone() {
    let (_, mut stream) = segments(7000, false);
    stream[2][100] ^= 1;
    stream.insert(4, udp4(5, &[1; 20]));
    let mut rig = started(RSC, ON, |_| ());
    let frames = coalesced(&mut rig, &stream);
    let lengths: Vec<_> = frames.iter().map(|(frame, ..)| frame.len()).collect();
    assert_eq!(lengths, [2854, 1454, 1454, 62, 1454]);
}

#[test]
fn tagged_segments_keep_their_tag_outside() {
    let (data, mut stream) = segments(4200, false);
    stream.iter_mut().for_each(|frame| drop(frame.splice(12..12, [0x81, 0, 0x20, 7])));
    let mut rig = started(RSC, ON, |_| ());
    let frames = coalesced(&mut rig, &stream);
    assert_eq!(frames.len(), 1);
    assert_eq!(frames[0].0[54..], data);
    assert!(is_valid(&frames[0].0));
}

#[test]
fn coalescing_stops_where_pieces_end() {
    let (data, stream) = segments(60_000, false);
    let mut rig = started(RSC, ON, |_| ());
    // All but five data pieces are with the guest.
    let mut held = Vec::new();
    let total = 64 * 4096 / 1806 - 16;
    for number in 0..total - 5 {
        rig.peer_sends(&frame(number as u8, 60));
    }
    rig.poll();
    held.extend(rig.hear());
    let mut found = Vec::new();
    let mut frames = coalesced(&mut rig, &stream);
    while !frames.is_empty() {
        found.extend(frames.iter().flat_map(|(frame, ..)| frame[54..].to_vec()));
        assert!(frames.iter().all(|(frame, parts, _)| is_valid(frame) && parts.len() <= 5));
        frames = coalesced(&mut rig, &[]);
    }
    assert_eq!(found, data);
}

#[test]
fn a_nic_without_offloads_refuses_them() {
    let frame = tcp4(7, ACK, &[1; 3000]);
    let send = |rig: &mut Rig, info: &[u32], frame: &[u8]| {
        let id = rig.transmit(0, &Rig::packet(info, frame));
        rig.answer(id)[1]
    };
    let checksum = [16, 0, 12, 0x0022_0015];
    let large_send = [16, 2, 12, 0x4220_03e8];
    let mut rig = rig();
    rig.start();
    assert_eq!(send(&mut rig, &checksum, &frame[..1054]), 1);
    assert_eq!(send(&mut rig, &large_send, &frame), 1);
    rig.service.policy_mut().offloads.large_send = 2999;
    assert_eq!(send(&mut rig, &large_send, &frame), 2, "longer than offered");
    rig.service.policy_mut().offloads.checksum = false;
    assert_eq!(send(&mut rig, &checksum, &frame[..1054]), 2);
    assert_eq!(rig.peer_hears().len(), 1 + 3);
}

#[test]
fn a_nic_refuses_work_on_options_that_it_does_not_offer() {
    // Twelve bytes of what was the payload become options.
    let longer = |mut frame: Vec<u8>, tcp: usize| {
        frame[tcp + 12] = 0x80;
        frame
    };
    let (plain, tcp4, tcp6) =
        (tcp4(7, ACK, &[1; 900]), longer(tcp4(7, ACK, &[1; 900]), 34), tcp6(7, ACK, &[1; 900]));
    let tcp6 = longer(tcp6, 54);
    let (sums4, sums6) = ([16, 0, 12, 0x0022_0015], [16, 0, 12, 0x0036_0006]);
    let (large4, large6) = ([16, 2, 12, 0x4220_0190], [16, 2, 12, 0xc360_0190]);
    let mut rig = rig();
    rig.start();
    let send = |rig: &mut Rig, info: &[u32], frame: &[u8]| {
        let id = rig.transmit(0, &Rig::packet(info, frame));
        rig.answer(id)[1]
    };
    for (info, frame) in [(&sums4, &tcp4), (&sums6, &tcp6), (&large4, &tcp4), (&large6, &tcp6)] {
        assert_eq!(send(&mut rig, info, frame), 1);
    }
    rig.service.policy_mut().offloads.tcp_options = false;
    for (info, frame) in [(&sums4, &tcp4), (&sums6, &tcp6), (&large6, &tcp6)] {
        assert_eq!(send(&mut rig, info, frame), 2);
    }
    assert_eq!(send(&mut rig, &large4, &tcp4), 1, "there is no bit for it");
    assert_eq!(send(&mut rig, &sums4, &plain), 1);
    // The IPv4 header's own has nothing to do with TCP's options; but with its own.
    let own = [16, 0, 12, 0x0022_0011];
    assert_eq!(send(&mut rig, &own, &tcp4), 1);
    let mut extended = plain.clone();
    extended.splice(34..34, [1; 4]);
    (extended[14], extended[17]) = (0x46, extended[17].wrapping_add(4));
    let own = [16, 0, 12, 0x0026_0011];
    assert_eq!(send(&mut rig, &own, &extended), 1);
    rig.service.policy_mut().offloads.ip_options = false;
    assert_eq!(send(&mut rig, &own, &extended), 2);
    assert_eq!(rig.service.counters().transmit_refused, 4);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    // What leaves the switch for large sends is right, and is what the guest sent.
    #[test]
    fn large_sends_of_any_size_leave_right(
        len in 1..5500usize, segment in 100..1461u32, ipv6: bool, tag in prop::option::of(0..4096u32),
    ) {
        let data: Vec<u8> = (0..len).map(|at| (at / 3) as u8).collect();
        let frame = if ipv6 { tcp6(9, 0x18, &data) } else { tcp4(9, 0x18, &data) };
        let tcp = if ipv6 { 54 } else { 34 };
        let kind = if ipv6 { 1 << 31 } else { 0 } | 1 << 30 | tcp << 20;
        let mut info = vec![16, 2, 12, kind | segment];
        info.extend(tag.iter().flat_map(|tag| [16, 6, 12, tag << 4]));
        let mut rig = rig();
        rig.start();
        let id = rig.transmit(0, &Rig::packet(&info, &frame));
        if len <= segment as usize {
            prop_assert_eq!(rig.answer(id)[1], 2, "nothing to cut");
            prop_assert_eq!(rig.peer_hears().len(), 0);
            return Ok(());
        }
        prop_assert_eq!(rig.answer(id)[1], 1);
        let mut found = Vec::new();
        let headers = tcp as usize + 20;
        for mut out in rig.peer_hears() {
            prop_assert!(is_valid(&out));
            if let Some(tag) = tag {
                prop_assert_eq!(&out[12..16], &[0x81, 0, (tag >> 8) as u8, tag as u8][..]);
                out.drain(12..16);
            }
            prop_assert!(out.len() <= headers + segment as usize);
            found.extend_from_slice(&out[headers..]);
        }
        prop_assert_eq!(found, data);
    }
}

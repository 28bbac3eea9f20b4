//! Work that is left to the card, and how a port is set up to carry what the NIC carries (F2, F11).

use vmbus::memory::{SharedMemory, SharedPages};

use super::*;
use crate::nic::PageSlice;
use crate::rndis::PacketFilter;
use crate::rndis::offload::{ChecksumSet, IpOffloads};
use crate::rndis::packet::{LargeSend, TransmitChecksum, VlanTag};

fn settings(mtu: u32, filter: PacketFilter) -> Option<PortSettings> {
    Some(PortSettings { mtu, filter })
}

// F2, F11, HISTORY 14: MTU and filter of the NIC hold on the VF before the host is asked to switch, and follow every change.
#[test]
fn a_port_is_set_up_as_the_nic_is_before_the_switch_and_after_every_change() {
    let wire = Shared::default();
    wire.borrow_mut().signs.extend([Sign::Ready, Sign::Associated]);
    wire.borrow_mut().settings = settings(1400, PacketFilter::DIRECTED);
    let mut card = Adapter::new(FakeNic(wire.clone()), AdapterConfig::default());
    poll(&mut card, at(0));
    assert!(card.bind(FakePort(wire.clone()), at(1)).is_ok());
    let first = PortSettings { mtu: 1400, filter: PacketFilter::DIRECTED };
    assert_eq!(wire.borrow().configured, [(first, None)], "no switch was asked for by then");
    complete(&mut card, &wire, Path::Vf, at(2));
    assert_eq!(wire.borrow().configured.len(), 1, "nothing has changed");
    let both = PacketFilter::DIRECTED | PacketFilter::BROADCAST;
    wire.borrow_mut().settings = settings(1400, both);
    poll(&mut card, at(3));
    assert_eq!(wire.borrow().configured[1].0.filter, both);
    assert_eq!(card.path(), Path::Vf);
}

// F11: a card has one MTU, so that no frame fits one path only.
#[test]
fn a_port_that_cannot_carry_the_nics_mtu_is_not_used_until_it_can() {
    let wire = Shared::default();
    wire.borrow_mut().room = 100;
    wire.borrow_mut().signs.extend([Sign::Ready, Sign::Associated]);
    wire.borrow_mut().settings = settings(9000, PacketFilter::DIRECTED);
    let mut card = Adapter::new(FakeNic(wire.clone()), AdapterConfig::default());
    poll(&mut card, at(0));
    assert!(card.bind(FakePort(wire.clone()), at(1)).is_ok());
    poll(&mut card, at(2));
    assert!(card.has_port() && wire.borrow().switches.is_empty());
    let error = PortError::Mtu { mtu: 9000, most: 1500 };
    let told = core::iter::from_fn(|| card.poll_event())
        .any(|event| matches!(event, AdapterEvent::Unfit { error: why } if why == error));
    assert!(told);
    // The NIC is restarted with another MTU, the VF stays.
    wire.borrow_mut().signs.push_back(Sign::Closed);
    poll(&mut card, at(3));
    wire.borrow_mut().settings = settings(1500, PacketFilter::DIRECTED);
    wire.borrow_mut().signs.extend([Sign::Ready, Sign::Associated]);
    poll(&mut card, at(4));
    assert_eq!(wire.borrow().switches, [Path::Vf]);
    complete(&mut card, &wire, Path::Vf, at(5));
    assert_eq!(card.path(), Path::Vf);
    let long = vec![0; 1515];
    let refused = Err(AdapterError::Refused { len: 1515, most: 1514 });
    assert_eq!(card.transmit(&long, at(6)), refused, "neither path would take it");
    let mut tagged = vec![0; 1518];
    tagged[12..14].copy_from_slice(&[0x81, 0]);
    card.transmit(&tagged, at(6)).unwrap();
}

/// A large send over IPv4 or IPv6 of `data`, with nothing filled in that the card fills in.
fn large(ipv6: bool, data: &[u8]) -> (Vec<u8>, LargeSend) {
    let mut frame = vec![2; 12];
    let layer4 = if ipv6 {
        frame.extend([0x86, 0xdd, 0x60, 0, 0, 0, 0, 0, 6, 64]);
        frame.extend([0xfd; 32]);
        54
    } else {
        frame.extend([8, 0, 0x45, 0, 0, 0, 0, 9, 0x40, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
        34
    };
    frame.extend([0, 1, 0, 2, 0xff, 0xff, 0xff, 0xf0, 0, 0, 0, 0, 0x50, 0x89, 1, 0, 7, 7, 0, 0]);
    frame.extend(data);
    (frame, LargeSend { segment: 100, layer4, ipv6 })
}

fn ones_sum(bytes: &[u8], start: u32) -> u32 {
    let words =
        bytes.chunks(2).map(|it| u32::from(it[0]) << 8 | it.get(1).map_or(0, |b| (*b).into()));
    let mut sum = words.sum::<u32>() + start;
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum
}

// F11: where neither path cuts, the card does.
#[test]
fn segments_that_are_cut_here_are_whole_frames_with_right_headers() {
    for ipv6 in [false, true] {
        let (mut card, wire) = on_vf();
        let data: Vec<u8> = (0..250).collect();
        let (frame, send) = large(ipv6, &data);
        let work = TxWork { large_send: Some(send), ..TxWork::NONE };
        card.transmit_with(&work.of(&[&frame]), at(3)).unwrap();
        wire.borrow_mut().confirm(3);
        let (ip, tcp) = (14, usize::from(send.layer4));
        let sent = wire.borrow().sent.clone();
        let mut found = Vec::new();
        for (number, (path, segment)) in (0..).zip(&sent) {
            assert_eq!(*path, Path::Vf);
            let len = (segment.len() - tcp) as u32;
            let word = |at: usize| u32::from(segment[at]) << 8 | u32::from(segment[at + 1]);
            let addresses =
                if ipv6 { &segment[ip + 8..ip + 40] } else { &segment[ip + 12..ip + 20] };
            assert_eq!(ones_sum(&segment[tcp..], ones_sum(addresses, 6 + len)), 0xffff, "TCP");
            if ipv6 {
                assert_eq!(word(ip + 4), len);
            } else {
                assert_eq!(ones_sum(&segment[ip..tcp], 0), 0xffff, "IPv4");
                assert_eq!((word(ip + 2), word(ip + 4)), (20 + len, 9 + number));
            }
            let sequence = word(tcp + 4) << 16 | word(tcp + 6);
            assert_eq!(sequence, 0xffff_fff0u32.wrapping_add(number * 100));
            // FIN and PSH on the last, CWR on the first.
            assert_eq!(segment[tcp + 13], [0x80, 0, 0x09][number as usize]);
            found.extend_from_slice(&segment[tcp + 20..]);
        }
        assert_eq!((found, sent.len()), (data, 3));
        let counters = card.counters();
        assert_eq!((counters.frames_accepted, counters.frames_cut), (1, 2));
        assert_eq!(counters.segments_accepted, 2);
    }
}

// F5, F11: what a VF was asked for, the host is asked for when it goes out again.
#[test]
fn work_for_a_vf_that_vanished_becomes_work_for_the_host() {
    let all = IpOffloads { transmit: ChecksumSet::all(), large_send: 60_000, ..<_>::default() };
    let offloads = PathOffloads { ipv4: all, ipv6: all, vlan: true, ..<_>::default() };
    let wire = Shared::default();
    wire.borrow_mut().room = 100;
    wire.borrow_mut().offloads = [offloads; 2];
    wire.borrow_mut().signs.extend([Sign::Ready, Sign::Associated]);
    let mut card = Adapter::new(FakeNic(wire.clone()), AdapterConfig::default());
    poll(&mut card, at(0));
    assert!(card.bind(FakePort(wire.clone()), at(1)).is_ok());
    complete(&mut card, &wire, Path::Vf, at(2));
    assert_eq!(card.offloads(), offloads);

    let (frame, send) = large(false, &[5; 250]);
    let work = TxWork { vlan: Some(VlanTag(3)), large_send: Some(send), ..TxWork::NONE };
    card.transmit_with(&work.of(&[&frame]), at(3)).unwrap();
    let checksum = (TransmitChecksum::IPV4 | TransmitChecksum::TCP).at(34);
    let sums = TxWork { checksum, ..TxWork::NONE };
    card.transmit_with(&sums.of(&[&frame]), at(3)).unwrap();
    assert_eq!(wire.borrow().work, [work, sums]);
    wire.borrow_mut().link = Some(PortLink::Gone);
    poll(&mut card, at(4));
    assert_eq!(wire.borrow().work[2..], [work, sums], "asked for again");
    assert!(
        wire.borrow().sent.iter().all(|(path, sent)| (*path, sent) == (Path::Synthetic, &frame))
    );
    assert_eq!(card.counters().frames_resent, 2);
}

#[test]
fn work_that_a_frame_does_not_bear_out_is_refused_on_either_path() {
    let (mut card, _) = on_vf();
    let (frame, send) = large(false, &[5; 250]);
    let wrong = [
        TxWork { large_send: Some(LargeSend { layer4: 30, ..send }), ..TxWork::NONE },
        TxWork { large_send: Some(LargeSend { segment: 0, ..send }), ..TxWork::NONE },
        TxWork { large_send: Some(LargeSend { segment: 9000, ..send }), ..TxWork::NONE },
        TxWork { large_send: Some(LargeSend { ipv6: true, ..send }), ..TxWork::NONE },
        TxWork {
            checksum: (TransmitChecksum::IPV4 | TransmitChecksum::UDP).at(34),
            ..TxWork::NONE
        },
    ];
    let long = vec![0; 1600];
    let jumbo = [&frame[..], &long].concat();
    for (number, work) in wrong.into_iter().enumerate() {
        let bytes = if number == 2 { &jumbo } else { &frame };
        let result = card.transmit_with(&work.of(&[bytes]), at(3));
        assert!(matches!(result, Err(AdapterError::Refused { .. })), "{work:?}");
    }
    assert_eq!(card.counters().refused, 5);
}

/// Forty bytes of a frame whose last twenty lie in pages.
fn paged(send: impl FnOnce(&PagedFrame<'_>)) {
    let memory = SharedPages::from_heap(&[vmbus::Pfn(7)]);
    memory.write(4000, &[9; 20]).unwrap();
    let body = [
        PageSlice::new(memory.clone(), 4000, 5).unwrap(),
        PageSlice::new(memory, 4005, 15).unwrap(),
    ];
    send(&PagedFrame { head: &[8; 20], body: &body, work: TxWork::NONE, token: 3 });
}

// A VF gets a copy, since its frames may have to go out again; so does a host that cannot read the guest's pages.
#[test]
fn pages_are_lent_to_the_host_and_copied_for_everybody_else() {
    let (mut card, wire) = on_vf();
    wire.borrow_mut().lends = true;
    let whole = [[8; 20], [9; 20]].concat();
    paged(|frame| assert_eq!(card.transmit_pages(frame, at(3)), Ok(Lending::Copied)));
    assert_eq!(wire.borrow().queued, core::slice::from_ref(&whole));
    // The VF goes down with it.
    card.port_gone(at(4));
    poll(&mut card, at(4));
    assert_eq!(wire.borrow().sent, [(Path::Synthetic, whole.clone())]);
    paged(|frame| assert_eq!(card.transmit_pages(frame, at(5)), Ok(Lending::Lent)));
    assert_eq!(wire.borrow().sent[1], (Path::Synthetic, vec![8; 20]), "the rest lies in pages");
    assert_eq!(card.poll_returned(), Some(Returned { token: 3, status: None }));
    assert_eq!(card.poll_returned(), None);
    wire.borrow_mut().lends = false;
    paged(|frame| assert_eq!(card.transmit_pages(frame, at(6)), Ok(Lending::Copied)));
    assert_eq!(wire.borrow().sent[2], (Path::Synthetic, whole));
    wire.borrow_mut().lends = true;
    wire.borrow_mut().room = 0;
    paged(|frame| {
        assert_eq!(card.transmit_pages(frame, at(7)), Err(AdapterError::Full(Lack::Ring)));
    });
    let counters = card.counters();
    assert_eq!((counters.frames_accepted, counters.pushed_back), (3, 1));
    let memory = SharedPages::from_heap(&[vmbus::Pfn(7)]);
    let body = [PageSlice::new(memory, 0, 1600).unwrap()];
    let long = PagedFrame { head: &[8; 20], body: &body, work: TxWork::NONE, token: 3 };
    let refused = AdapterError::Refused { len: 1620, most: 1518 };
    assert_eq!(card.transmit_pages(&long, at(8)), Err(refused));
}

// A path that cuts segments, and computes checksums, may not do so to all of them.
#[test]
fn what_a_path_does_not_do_to_headers_with_options_is_done_here() {
    let sums = ChecksumSet::TCP | ChecksumSet::IP_HEADER;
    let each = IpOffloads {
        transmit: sums,
        large_send: 60_000,
        large_send_segments: 3,
        ..IpOffloads::default()
    };
    let without = PathOffloads { ipv4: each, ipv6: each, vlan: true, ..<_>::default() };
    for ipv6 in [false, true] {
        let wire = Shared::default();
        wire.borrow_mut().room = 100;
        wire.borrow_mut().offloads = [without; 2];
        wire.borrow_mut().signs.extend([Sign::Ready]);
        let mut card = Adapter::<_, FakePort>::new(FakeNic(wire.clone()), AdapterConfig::default());
        poll(&mut card, at(0));
        let (mut frame, send) = large(ipv6, &[5; 300]);
        let layer4 = usize::from(send.layer4);
        let work = TxWork { large_send: Some(send), ..TxWork::NONE };
        card.transmit_with(&work.of(&[&frame]), at(1)).unwrap();
        assert_eq!((wire.borrow().sent.len(), card.counters().frames_cut), (1, 0), "three pieces");
        assert_eq!(card.counters().segments_accepted, 2, "whoever cuts it");
        card.transmit_with(&work.of(&[&frame[..frame.len() - 100]]), at(1)).unwrap();
        assert_eq!((wire.borrow().sent.len(), card.counters().frames_cut), (3, 1), "only two");
        // With options.
        frame[layer4 + 12] = 0x80;
        card.transmit_with(&work.of(&[&frame]), at(1)).unwrap();
        let cut = if ipv6 { 3 } else { 1 };
        assert_eq!(wire.borrow().sent.len(), 3 + cut, "over IPv4 there is no bit for it");
        let version = if ipv6 { TransmitChecksum::IPV6 } else { TransmitChecksum::IPV4 };
        let request = (version | TransmitChecksum::TCP).at(send.layer4);
        assert!(!without.computes(&frame, request));
        frame[layer4 + 12] = 0x50;
        assert!(without.computes(&frame, request));
        // Behind a tag it is the same.
        frame.splice(12..12, [0x81, 0, 0, 7]);
        assert!(without.computes(&frame, request.at(send.layer4 + 4)));
        frame[layer4 + 16] = 0x80;
        assert!(!without.computes(&frame, request.at(send.layer4 + 4)));
    }
}

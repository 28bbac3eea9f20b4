//! Frames that the host reads in the guest's own pages: what any traffic does not happen to show.

use std::time::Duration;

use hyperv_host::nic::{NicServiceConfig, OffloadPolicy};
use netvsc::nic::{
    Lack, Lending, NicOffloads, PageSlice, PagedFrame, PagesError, Returned, TransmitError,
    TxFrame, TxWork,
};
use netvsc::nvsp::{Status, Version};
use netvsc::rndis::packet::{LargeSend, VlanTag};
use netvsc::{NicConfig, NicEvent};
use smoltcp::wire::{IpAddress, Ipv4Packet, Ipv6Packet, TcpPacket};
use vmbus::memory::{SharedMemory, SharedPages};

use crate::offloads::*;
use crate::world::*;

/// A NIC at work that lends whatever it is given.
fn lender(sizes: &Sizes, change: impl FnOnce(&mut NicServiceConfig)) -> World {
    let offloads = NicOffloads::ALL;
    let config = NicConfig { lend_from: 0, queues: 2, offloads, ..NicConfig::default() };
    let mut service = NicServiceConfig::new(MAC);
    service.policy.versions = vec![Version::V6_1];
    change(&mut service);
    let mut world = world_with(config, sizes, service);
    world.settle();
    assert!(matches!(world.events.pop_front(), Some(NicEvent::Ready { .. })));
    world
}

/// Memory with these bytes from byte 50 on.
fn memory_of(world: &World, bytes: &[u8]) -> SharedPages {
    let memory = world.allocate((50 + bytes.len()).div_ceil(4096));
    memory.write(50, bytes).unwrap();
    memory
}

fn slice(memory: &SharedPages, offset: usize, len: usize) -> PageSlice {
    PageSlice::new(memory.clone(), offset, len).unwrap()
}

fn done(token: u64) -> Option<Returned> {
    Some(Returned { token, status: Some(Status::SUCCESS) })
}

// The longest that there is, out of pages that a send buffer of a few sections never has room for.
#[test]
fn a_segment_longer_than_the_send_buffer_is_cut_by_the_host_out_of_pages() {
    for ipv6 in [false, true] {
        let mut world = lender(&Sizes { ring: 3, receive: 32, send: 8 }, |_| {});
        let info = world.nic.info();
        let (most, slots) = (info.offloads.ipv4.large_send as usize, info.large_send as usize);
        assert!(most > 60_000 && slots < 20_000, "{info:?}");
        let payload: Vec<u8> = (0..most - 100).map(|at| (at % 251) as u8).collect();
        let long = good_frame(Kind::Tcp, ipv6, &payload);
        let headers = long.len() - payload.len();
        let (head, memory) = (&long[..headers], memory_of(&world, &payload));
        let vlan = Some(VlanTag(0x2005));
        let large_send = Some(LargeSend { segment: 1400, layer4: layer4(ipv6), ipv6 });
        let work = TxWork { vlan, large_send, ..TxWork::NONE };
        let pieces = [&long[..]];
        let error = TransmitError::LargeSend { len: long.len(), segment: 1400, most: slots };
        assert_eq!(world.nic.transmit_with(&work.of(&pieces)), Err(error), "not as a copy");
        let body = [slice(&memory, 50, payload.len())];
        let frame = PagedFrame { head, body: &body, work, token: 5 };
        assert_eq!(world.nic.transmit_pages(&frame), Ok(Lending::Lent));
        world.nic.flush();
        world.settle();
        assert_eq!(world.nic.poll_returned(), done(5));
        assert_eq!(world.at_peer.len(), payload.len().div_ceil(1400));
        let mut whole = vec![];
        for frame in &mut world.at_peer {
            assert_eq!(frame.drain(12..16).as_slice(), [0x81, 0, 0x20, 5]);
            let (from, to, packet) = if ipv6 {
                let ip = Ipv6Packet::new_checked(&frame[ETHERNET..]).unwrap();
                (IpAddress::Ipv6(FROM6), IpAddress::Ipv6(TO6), ip.payload())
            } else {
                let ip = Ipv4Packet::new_checked(&frame[ETHERNET..]).unwrap();
                assert!(ip.verify_checksum());
                (IpAddress::Ipv4(FROM4), IpAddress::Ipv4(TO4), ip.payload())
            };
            let tcp = TcpPacket::new_checked(packet).unwrap();
            assert!(tcp.verify_checksum(&from, &to));
            whole.extend_from_slice(tcp.payload());
        }
        assert!(whole == payload);
        // In too many places for the host, and too long to be copied.
        let scattered = (0..40).map(|at| slice(&memory, 100 * at, 99));
        let body: Vec<_> = scattered.chain(body.clone()).collect();
        let frame = PagedFrame { body: &body, token: 6, ..frame };
        let too_long = world.nic.transmit_pages(&frame);
        assert!(matches!(too_long, Err(TransmitError::LargeSend { .. })), "{too_long:?}");
        let body: Vec<_> = (0..40).map(|at| slice(&memory, 1000 * at, 900)).collect();
        let error = PagesError::Scattered { ranges: 40, most: 32 };
        let frame = PagedFrame { body: &body, token: 6, ..frame };
        assert_eq!(world.nic.transmit_pages(&frame), Err(error.into()));
        assert_eq!(world.nic.poll_returned(), None);
    }
}

// RNDIS: MaxTransferSize is for one message, whatever it lies in.
#[test]
fn a_segment_longer_than_the_host_takes_in_a_message_is_refused_here() {
    let mut world = lender(&ROOMY, |service| service.policy.max_transfer = 20_000);
    let info = world.nic.info();
    let (offered, most) = (info.offloads.ipv4.large_send as usize, info.large_send as usize);
    assert!(offered > 60_000 && (19_000..20_000).contains(&most), "{info:?}");
    for (over, expected) in [(0, true), (1, false)] {
        let mut payload = vec![7; most];
        let headers = good_frame(Kind::Tcp, false, &payload).len() - payload.len();
        payload.truncate(most + over - headers);
        let long = good_frame(Kind::Tcp, false, &payload);
        let memory = memory_of(&world, &payload);
        let large_send = Some(LargeSend { segment: 1400, layer4: layer4(false), ipv6: false });
        let work = TxWork { large_send, ..TxWork::NONE };
        let body = [slice(&memory, 50, payload.len())];
        let frame = PagedFrame { head: &long[..headers], body: &body, work, token: 5 };
        let error = TransmitError::LargeSend { len: long.len(), segment: 1400, most };
        let outcome = world.nic.transmit_pages(&frame);
        assert_eq!(outcome, if expected { Ok(Lending::Lent) } else { Err(error) });
        let outcome = world.nic.transmit_with(&work.of(&[&long[..]]));
        assert_eq!(outcome, if expected { Ok(()) } else { Err(error) });
    }
    world.nic.flush();
    world.settle();
    assert_eq!(world.nic.poll_returned(), done(5));
    assert_eq!(world.service.counters().transmit_refused, 0);
    assert!(world.at_peer.len() > 26);
}

#[test]
fn nothing_is_written_to_pages_that_are_lent() {
    let nothing =
        OffloadPolicy { checksum: false, udp_checksum: false, ..OffloadPolicy::default() };
    for (policy, computed_here) in [(OffloadPolicy::default(), 0), (nothing, 1)] {
        let mut world = lender(&ROOMY, |service| service.policy.offloads = policy);
        let payload: Vec<u8> = (0..1201).map(|at| (at * 7) as u8).collect();
        let good = good_frame(Kind::Udp, false, &payload);
        let (bytes, checksum) = left_to_host(&good, Kind::Udp, false);
        let (head, tail) = bytes.split_at(42);
        let memory = memory_of(&world, tail);
        let mut before = vec![0; memory.size()];
        memory.read(0, &mut before).unwrap();
        // Odd lengths: a sum goes on in the middle of a word.
        let body = [slice(&memory, 50, 601), slice(&memory, 651, 600)];
        let work = TxWork { checksum, ..TxWork::NONE };
        let frame = PagedFrame { head, body: &body, work, token: 1 };
        assert_eq!(world.nic.transmit_pages(&frame), Ok(Lending::Lent));
        world.nic.flush();
        world.settle();
        assert_eq!(world.at_peer, [good]);
        let mut after = vec![0; memory.size()];
        memory.read(0, &mut after).unwrap();
        assert_eq!(after, before);
        assert_eq!(world.nic.stats().tx_checksums, computed_here);
    }
}

#[test]
fn a_host_whose_network_starts_anew_gives_pages_back_once() {
    let mut world = lender(&ROOMY, |service| {
        service.policy.send_delay = Duration::from_millis(5);
    });
    let memory = memory_of(&world, &[1; 900]);
    let whole = frame(PEER, MAC, 14, 0);
    let body = [slice(&memory, 50, 900)];
    for token in 0..10 {
        let frame = PagedFrame { head: &whole, body: &body, work: TxWork::NONE, token };
        assert_eq!(world.nic.transmit_pages(&frame), Ok(Lending::Lent));
    }
    world.nic.flush();
    world.poll_host();
    assert_eq!(world.nic.poll_returned(), None, "nothing is completed yet");
    world.service.restart_endpoint();
    world.poll_host();
    world.settle();
    for token in 0..10 {
        assert_eq!(world.nic.poll_returned(), done(token));
    }
    assert_eq!((world.nic.poll_returned(), world.nic.busy_slots()), (None, 0));
}

#[test]
fn queues_lend_for_themselves() {
    let mut world = lender(&ROOMY, |_| {});
    world.nic.request_queues(1, world.now).unwrap();
    world.settle();
    world.add_queue(1, 17);
    let memory = memory_of(&world, &[1; 900]);
    let whole = frame(PEER, MAC, 14, 0);
    let body = [slice(&memory, 50, 900)];
    let paged = |token| PagedFrame { head: &whole, body: &body, work: TxWork::NONE, token };
    assert_eq!(world.nic.transmit_pages(&paged(1)), Ok(Lending::Lent));
    assert_eq!(world.queues[0].transmit_pages(&paged(2)), Ok(Lending::Lent));
    world.nic.flush();
    world.queues[0].flush();
    world.settle();
    let returned = [world.nic.poll_returned(), world.queues[0].poll_returned()];
    assert_eq!(returned, [done(1), done(2)]);
    // One that is taken back says what it had.
    assert_eq!(world.queues[0].transmit_pages(&paged(3)), Ok(Lending::Lent));
    world.queues[0].flush();
    world.queues[0].abandon();
    assert_eq!(world.queues[0].poll_returned(), Some(Returned { token: 3, status: None }));
    assert_eq!(world.queues[0].poll_returned(), None);
    assert_eq!(world.queues[0].transmit_pages(&paged(4)), Err(TransmitError::NotReady));
    let pieces = [&whole[..]];
    let taken = world.queues[0].transmit_with(&TxFrame::plain(&pieces));
    assert_eq!(taken, Err(TransmitError::NotReady));
}

#[test]
fn what_waits_for_room_goes_on_when_the_host_has_made_some() {
    // A ring of one page, and frames in many places.
    let mut world = lender(&Sizes { ring: 2, receive: 32, send: 64 }, |_| {});
    let memory = memory_of(&world, &[7; 20_000]);
    let whole = frame(PEER, MAC, 14, 0);
    let body: Vec<_> = (0..30).map(|at| slice(&memory, 100 * at, 40)).collect();
    let (mut taken, mut full) = (0, 0);
    for token in 0..200 {
        let frame = PagedFrame { head: &whole, body: &body, work: TxWork::NONE, token };
        loop {
            match world.nic.transmit_pages(&frame) {
                Ok(lending) => break assert_eq!(lending, Lending::Lent),
                Err(TransmitError::Full(Lack::Ring)) => full += 1,
                Err(error) => panic!("{error}"),
            }
            world.settle();
        }
        taken += 1;
    }
    world.nic.flush();
    world.settle();
    assert_eq!((taken, world.at_peer.len()), (200, 200));
    assert!(full > 10, "{full} times the ring was full");
    for token in 0..200 {
        assert_eq!(world.nic.poll_returned(), done(token), "in their order");
    }
}

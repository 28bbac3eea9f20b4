//! Once a NIC is at work, frames allocate nothing in the guest.

use allocation_counter::measure;
use hyperv_host::nic::NicServiceConfig;
use netvsc::nic::{Lending, NicOffloads, PageSlice, PagedFrame, TxFrame, TxWork};
use netvsc::nvsp::Version;
use netvsc::rndis::packet::TransmitChecksum;
use netvsc::{NicConfig, NicEvent};

use crate::world::*;

#[test]
fn frames_allocate_nothing_either_way() {
    let offloads = NicOffloads::ALL;
    let config = NicConfig { queues: 2, offloads, lend_from: 0, ..NicConfig::default() };
    let mut service = NicServiceConfig::new(MAC);
    service.policy.versions = vec![Version::V6_1];
    let mut world = world_with(config, &Sizes { ring: 33, receive: 256, send: 256 }, service);
    world.settle();
    world.nic.request_queues(1, world.now).unwrap();
    world.settle();
    world.add_queue(1, 17);
    assert!(world.events.iter().any(|event| matches!(event, NicEvent::Ready { .. })));
    let frames: Vec<_> = (0..40).map(|seed| frame(PEER, MAC, 60 + 30 * seed, seed as u8)).collect();
    let back: Vec<_> = (0..40).map(|seed| frame(MAC, PEER, 60 + 30 * seed, seed as u8)).collect();
    let memory = world.allocate(4);
    let body = [(100, 1000), (1100, 300), (8192, 100)]
        .map(|(at, len)| PageSlice::new(memory.clone(), at, len).unwrap());
    let mut buffer = vec![0; 2000];
    let mut received = 0;
    for round in 0..50 {
        let pieces = [&frames[0][..]];
        let work =
            TxFrame { hash: Some(7), checksum: TransmitChecksum::IPV4, ..TxFrame::plain(&pieces) };
        let paged = PagedFrame { head: &frames[1], body: &body, work: TxWork::NONE, token: round };
        let World { nic, queues, .. } = &mut world;
        let sent = measure(|| {
            for frame in &frames {
                nic.transmit(frame).unwrap();
                queues[0].transmit(frame).unwrap();
            }
            nic.transmit_with(&work).unwrap();
            for _ in 0..3 {
                assert_eq!(nic.transmit_pages(&paged), Ok(Lending::Lent));
            }
            nic.flush();
            queues[0].flush();
        });
        // What keeps account of pages grows to what is under way at once.
        assert!(sent.count_total == 0 || round == 0, "sending, round {round}");
        for frame in &back {
            world.peer_sends(frame);
        }
        loop {
            world.poll_host();
            let World { nic, queues, now, .. } = &mut world;
            let heard = measure(|| {
                let mut sink = |frame: netvsc::RxFrame<'_>| {
                    assert_eq!(frame.copy_to(&mut buffer), frame.len());
                    received += 1;
                };
                nic.poll(*now, &mut sink).unwrap();
                queues[0].poll(&mut sink).unwrap();
                while nic.poll_returned().is_some() {}
            });
            assert!(heard.count_total == 0 || round == 0, "receiving, round {round}");
            if !world.to_host.take() && !world.to_guest.take() {
                break;
            }
        }
        while world.port.peer_receive(world.now).is_some() {}
    }
    assert_eq!(received, 50 * 40);
    assert_eq!(world.nic.stats().tx_completed, world.nic.stats().tx_messages);
}

//! Once a NIC is at work, frames allocate nothing in the guest.

use std::task::{Context, Waker};

use allocation_counter::measure;
use embassy_net_driver::Driver;
use hyperv_host::nic::NicServiceConfig;
use netvsc::adapter::{Frame, Refused};
use netvsc::nic::{Lending, NicOffloads, PageSlice, PagedFrame, TxFrame, TxWork};
use netvsc::nvsp::Version;
use netvsc::rndis::packet::TransmitChecksum;
use netvsc::stack::{Card, Device, FramesConfig};
use netvsc::{NicConfig, NicEvent};
use smoltcp::phy::Device as _;
use vmbus::Instant;

use crate::world::*;

/// A card that only ever has one frame for the stack, and takes every one.
struct Line {
    frame: Vec<u8>,
    sent: usize,
}

impl Card for Line {
    type Event = ();
    type Error = std::convert::Infallible;

    fn poll(&mut self, _: Instant, sink: &mut dyn FnMut(&dyn Frame)) -> Result<(), Self::Error> {
        sink(&&self.frame[..]);
        Ok(())
    }

    fn transmit(&mut self, _: &[u8], _: Instant) -> Result<(), Refused> {
        self.sent += 1;
        Ok(())
    }

    fn transmit_with(&mut self, _: &TxFrame<'_>, _: Instant) -> Result<(), Refused> {
        self.sent += 1;
        Ok(())
    }

    fn flush(&mut self) {}

    fn poll_deadline(&self) -> Option<Instant> {
        None
    }

    fn poll_event(&mut self) -> Option<()> {
        None
    }

    fn is_connected(&self) -> bool {
        true
    }
}

// Most frames of a stack want no answer at once: an acknowledgement, a part of a stream.
#[test]
fn a_stack_that_answers_or_does_not_makes_no_buffers_either_way() {
    let line = || Device::new(Line { frame: vec![7; 1200], sent: 0 }, FramesConfig::default());
    let mut smoltcp = line();
    let mut smoltcp = |answer: bool| {
        smoltcp.poll(Instant::ZERO).unwrap();
        let (received, room) = smoltcp.receive(smoltcp::time::Instant::ZERO).unwrap();
        smoltcp::phy::RxToken::consume(received, |frame| {
            assert_eq!(frame.len(), 1200);
            if answer {
                smoltcp::phy::TxToken::consume(room, 60, |frame| frame[13] = 1);
            }
        });
        smoltcp.card().sent
    };
    let (mut runner, mut driver) = line().split();
    let mut embassy = |answer: bool| {
        runner.poll(Instant::ZERO).unwrap();
        let mut context = Context::from_waker(Waker::noop());
        let (received, room) = driver.receive(&mut context).unwrap();
        embassy_net_driver::RxToken::consume(received, |frame| {
            assert_eq!(frame.len(), 1200);
            if answer {
                embassy_net_driver::TxToken::consume(room, 60, |frame| frame[13] = 1);
            }
        });
        runner.card().sent
    };
    let stacks: [&mut dyn FnMut(bool) -> usize; 2] = [&mut smoltcp, &mut embassy];
    for stack in stacks {
        let mut sent = 0;
        for round in 0..100 {
            let made = measure(|| sent = stack(round % 3 == 0));
            assert!(made.count_total == 0 || round < 4, "round {round}");
        }
        assert_eq!(sent, 33, "what the last answered has not been asked for");
    }
}

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

//! Sub-channels: frames spread over them both ways.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use hyperv_host::nic::{NicServiceConfig, NicServiceEvent};
use netvsc::nic::{NicQueue, QueueError, SettingError, Step, TransmitError};
use netvsc::nvsp::Version;
use netvsc::rndis::scaling::Scaling;
use netvsc::rndis::{Oid, Status};
use netvsc::{NicConfig, NicEvent};

use crate::world::*;

const RING: usize = 17;

/// A NIC that may use four channels, on a host that grants as many.
fn wide(versions: &[Version]) -> World {
    let config = NicConfig { queues: 4, ..NicConfig::default() };
    let mut service = NicServiceConfig::new(MAC);
    service.policy.versions = versions.to_vec();
    service.policy.max_queues = 8;
    let mut world = world_with(config, &Sizes { ring: 33, receive: 256, send: 128 }, service);
    world.settle();
    assert!(matches!(world.events.pop_front(), Some(NicEvent::Ready { .. })));
    world
}

/// The same with all of them open.
fn spread() -> World {
    let mut world = wide(&[Version::V6_1]);
    world.nic.request_queues(3, world.now).unwrap();
    world.settle();
    assert_eq!(world.events.pop_front(), Some(NicEvent::QueuesGranted { count: 3 }));
    assert_eq!(world.host_events.pop(), Some(NicServiceEvent::OfferSubChannels { count: 3 }));
    for number in 1..=3 {
        world.add_queue(number, RING);
    }
    assert_eq!(world.events.pop_front(), Some(NicEvent::SendTable));
    world
}

/// A UDP frame over IPv4 to the guest, of one of many flows.
fn udp(flow: u8, number: u8) -> Vec<u8> {
    let mut frame = MAC.0.to_vec();
    frame.extend(PEER.0);
    frame.extend([8, 0, 0x45, 0, 0, 46, 0, 0, 0, 0, 64, 17, 0, 0, 10, 0, 0, flow, 10, 0, 0, 2]);
    frame.extend([0x10, 0, 0x20, 0, 0, 26, 0, 0]);
    frame.resize(59, 0);
    frame.push(number);
    frame
}

/// Has received frames spread over all channels, or over all but the primary one.
fn spread_received(world: &mut World, least: u16) {
    let mut scaling = Scaling::even(4, [0x5a; 40]);
    scaling.key.iter_mut().enumerate().for_each(|(at, byte)| *byte = (at * 37 + 11) as u8);
    scaling.table.iter_mut().for_each(|queue| *queue = (*queue).max(least));
    world.nic.set_scaling(Some(&scaling), world.now).unwrap();
    world.settle();
    let set = NicEvent::Set { oid: Oid::RSS_PARAMETERS, status: Status::SUCCESS };
    assert_eq!(world.events.pop_front(), Some(set));
}

#[test]
fn received_frames_are_spread_and_each_flow_keeps_its_queue_and_order() {
    let mut world = spread();
    spread_received(&mut world, 0);
    for number in 0..20 {
        for flow in 0..16 {
            world.peer_sends(&udp(flow, number));
        }
        world.settle();
    }
    let mut all: Vec<(u16, Vec<u8>)> = world.received.drain(..).map(|frame| (0, frame)).collect();
    all.append(&mut world.received_by_queue);
    assert_eq!(all.len(), 320);
    let mut used = [false; 4];
    for flow in 0..16u8 {
        let mine: Vec<_> = all.iter().filter(|(_, frame)| frame[29] == flow).collect();
        assert!(mine.iter().all(|(queue, _)| *queue == mine[0].0), "flow {flow} keeps its queue");
        used[usize::from(mine[0].0)] = true;
        let numbers: Vec<_> = mine.iter().map(|(_, frame)| frame[59]).collect();
        assert_eq!(numbers, (0..20).collect::<Vec<_>>(), "flow {flow} keeps its order");
    }
    assert_eq!(used, [true; 4], "every queue has work");
    let counted: u64 = world.queues.iter().map(|queue| queue.stats().rx_frames).sum();
    assert_eq!(counted + world.nic.stats().rx_frames, 320);
    assert!(world.queues.iter().all(|queue| queue.stats().bad.total() == 0));
}

#[test]
fn frames_are_sent_on_the_queue_that_the_table_names() {
    let mut world = spread();
    let info = world.nic.info();
    assert_eq!(info.queues, 4);
    let mut sent = [0; 4];
    for hash in 0..64u32 {
        let queue = info.send_queue(hash);
        assert_eq!(u32::from(queue), info.send_table.unwrap()[hash as usize % 16]);
        let frame = frame(PEER, MAC, 200, hash as u8);
        sent[usize::from(queue)] += 1;
        match queue {
            0 => world.nic.transmit(&frame).unwrap(),
            number => world.queues[usize::from(number) - 1].transmit(&frame).unwrap(),
        }
    }
    world.nic.flush();
    world.queues.iter_mut().for_each(netvsc::nic::NicQueue::flush);
    world.settle();
    assert_eq!(world.at_peer.len(), 64);
    assert_eq!(sent, [16; 4]);
    for queue in &world.queues {
        assert_eq!(queue.stats().tx_frames, 16);
        assert!(queue.is_idle());
    }
}

/// Sends so many frames of one flow on a queue of this thread's own, with nobody to wait for but the host, and receives until all threads
/// together have received all that is left. Returns flow and number of what it received.
fn work_alone(queue: &mut NicQueue, frames: u32, left: &AtomicUsize) -> Vec<[u8; 2]> {
    let (mut received, flow) = (Vec::new(), queue.number() as u8);
    let mut sink = |frame: netvsc::RxFrame<'_>| {
        let mut copy = [0; 60];
        assert_eq!(frame.copy_to(&mut copy), 60);
        received.push([copy[29], copy[59]]);
        left.fetch_sub(1, Ordering::AcqRel);
    };
    for number in 0..frames {
        let mut frame = frame(PEER, MAC, 60 + number as usize % 1400, flow);
        frame[14] = flow;
        frame[15..19].copy_from_slice(&number.to_le_bytes());
        while let Err(error) = queue.transmit(&frame) {
            assert!(matches!(error, TransmitError::Full(_)), "{error}");
            queue.poll(&mut sink).unwrap();
            thread::yield_now();
        }
        if number % 7 == 0 {
            queue.flush();
        }
    }
    queue.stop();
    while !queue.is_idle() || left.load(Ordering::Acquire) > 0 {
        queue.poll(&mut sink).unwrap();
        thread::yield_now();
    }
    received
}

// They share the slots of one send buffer, of which there are fewer than any of them could use.
#[test]
fn each_queue_belongs_to_a_thread_of_its_own() {
    const FRAMES: u32 = 400;
    const FLOWS: u8 = 32;
    const EACH: u8 = 50;
    let mut world = spread();
    // The primary channel is this thread's, which has other things to do.
    spread_received(&mut world, 1);
    let mut peer = (0..EACH).flat_map(|number| (0..FLOWS).map(move |flow| udp(flow, number)));
    let left = AtomicUsize::new(usize::from(FLOWS) * usize::from(EACH));
    let queues = std::mem::take(&mut world.queues);
    let (done, count) = (AtomicUsize::new(0), queues.len());
    let worked = thread::scope(|scope| {
        let alone = |mut queue: NicQueue| {
            let (done, left) = (&done, &left);
            scope.spawn(move || {
                let received = work_alone(&mut queue, FRAMES, left);
                done.fetch_add(1, Ordering::Release);
                (queue, received)
            })
        };
        let threads: Vec<_> = queues.into_iter().map(alone).collect();
        while done.load(Ordering::Acquire) < count {
            // One that fails is not waited for.
            let failed = threads.iter().filter(|it| it.is_finished()).count();
            assert!(failed <= done.load(Ordering::Acquire), "a thread has failed");
            peer.by_ref().take(5).for_each(|frame| world.peer_sends(&frame));
            world.poll_host();
            world.at_peer.extend(std::iter::from_fn(|| world.port.peer_receive(world.now)));
            thread::yield_now();
        }
        threads.into_iter().map(|it| it.join().unwrap()).collect::<Vec<_>>()
    });
    let (queues, received): (Vec<_>, Vec<_>) = worked.into_iter().unzip();
    world.queues = queues;
    world.settle();
    assert!(received.iter().all(|mine| !mine.is_empty()), "every thread has received some");
    for flow in 0..FLOWS {
        let mine = |all: &&Vec<[u8; 2]>| all.iter().any(|[of, _]| *of == flow);
        let [all] = received.iter().filter(mine).collect::<Vec<_>>()[..] else {
            panic!("flow {flow} belongs to one queue");
        };
        let numbers = all.iter().filter(|[of, _]| *of == flow).map(|[_, number]| *number);
        assert!(numbers.eq(0..EACH), "flow {flow} comes whole and in order");
    }
    assert_eq!(world.at_peer.len(), count * FRAMES as usize);
    for flow in 1..=count as u8 {
        let mine = world.at_peer.iter().filter(|frame| frame[14] == flow);
        let numbers = mine.map(|frame| u32::from_le_bytes(*frame[15..].first_chunk().unwrap()));
        assert!(numbers.eq(0..FRAMES), "flow {flow} arrives whole and in order");
    }
    let kept: u64 = world.queues.iter().map(|queue| queue.stats().tx_refused).sum();
    assert_eq!((kept, world.nic.stats().bad.total()), (0, 0));
}

#[test]
fn a_queue_that_leaves_gives_its_slots_to_the_others() {
    let mut world = spread();
    for round in 0..50 {
        let mut queue = world.queues.pop().unwrap();
        let number = queue.number();
        queue.transmit(&frame(PEER, MAC, 500, round)).unwrap();
        queue.stop();
        assert!(queue.transmit(&frame(PEER, MAC, 500, 0)).is_err(), "no more is taken");
        world.queues.push(queue);
        world.settle();
        let queue = world.queues.pop().unwrap();
        assert!(queue.is_idle());
        drop(queue.into_parts());
        world.service.close_queue(number, &mut world.port);
        world.service.queue_released();
        world.nic.queues_removed(number);
        assert_eq!(world.nic.info().queues, number);
        world.poll_host();
        world.settle();
        world.events.clear();
        world.nic.request_queues(1, world.now).unwrap();
        world.settle();
        assert_eq!(world.events.pop_front(), Some(NicEvent::QueuesGranted { count: 1 }));
        world.add_queue(number, RING);
    }
    assert_eq!(world.at_peer.len(), 50);
}

#[test]
fn requests_that_make_no_sense_are_refused_by_name() {
    let mut world = wide(&[Version::V4]);
    let now = world.now;
    let step = Step::SubChannels;
    let error = SettingError::Version { step, version: Version::V4 };
    assert_eq!(world.nic.request_queues(1, now), Err(error));
    let mut world = wide(&[Version::V5]);
    world.nic.request_queues(100, now).unwrap();
    assert_eq!(world.nic.request_queues(1, now), Err(SettingError::UnderWay(step)));
    world.settle();
    assert_eq!(world.events.pop_front(), Some(NicEvent::QueuesGranted { count: 0 }));
    assert_eq!(world.nic.stats().answers.failure, 1, "as the host says");
    let (ours, _) = vmbus_pair();
    let error = world.nic.add_queue(1, ours).map(|_| ());
    assert_eq!(error, Err(QueueError::Number { number: 1, granted: 0 }));
}

type Channel = vmbus::Channel<vmbus::memory::SharedPages>;

fn vmbus_pair() -> (Channel, Channel) {
    let pages = |first: u64| {
        let frames: Vec<_> = (first..first + 5).map(vmbus::Pfn).collect();
        vmbus::memory::SharedPages::from_heap(&frames)
    };
    let (up, down) = (pages(1), pages(100));
    let bell = vmbus::SignalFlag::new();
    let one = Channel::from_parts(up.clone(), down.clone(), bell.clone()).unwrap();
    (one, Channel::from_parts(down, up, bell).unwrap())
}

//! Sub-channels, receive side scaling, and the table that spreads what the guest sends.

use std::time::Duration;

use netvsc::nvsp::{MessageType, Version};
use vmbus::packet::Outgoing;

use super::guest::*;
use crate::nic::*;
use crate::switch::{HashTypes, SideState, Spread, Toeplitz};

const KEY: [u8; 40] = [
    0x6d, 0x5a, 0x56, 0xda, 0x25, 0x5b, 0x0e, 0xc2, 0x41, 0x67, 0x25, 0x3d, 0x43, 0xa3, 0x8f, 0xb0,
    0xd0, 0xca, 0x2b, 0xcb, 0xae, 0x7b, 0x30, 0xb4, 0x77, 0xcb, 0x2d, 0xa3, 0x80, 0x30, 0xf2, 0x0c,
    0x6a, 0x42, 0xb7, 0x3b, 0xbe, 0xac, 0x01, 0xfa,
];

/// A UDP frame of a flow; the number stands in its last byte.
fn udp(flow: u8, number: u8) -> Vec<u8> {
    let mut frame =
        vec![0, 0x15, 0x5d, 0, 0, 1, 2, 0, 0, 0, 0, 9, 8, 0, 0x45, 0, 0, 46, 0, 0, 0, 0];
    frame.extend([64, 17, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2, 0x10, flow, 0x20, 0, 0, 26, 0, 0]);
    frame.resize(59, 0);
    frame.push(number);
    frame
}

/// Asks for sub-channels; the words of the answer and the events that follow.
fn ask(rig: &mut Rig, count: u32) -> (Vec<u32>, Vec<NicServiceEvent>) {
    let id = rig.say(&[133, 1, count], true);
    let mut answer = rig.answer(id);
    answer.truncate(3);
    (answer, rig.events())
}

/// Sets RSS with this table; the status.
fn set_rss(rig: &mut Rig, flags: u32, table: &[u32]) -> u32 {
    let mut info = bytes(&[0x0028_0289, flags, 0x4301, table.len() as u32 * 4, 40, 40]);
    info.extend(bytes(&[40 + table.len() as u32 * 4, 0, 0, 0]));
    info.extend(bytes(table));
    info.extend(KEY);
    let mut message = vec![5, 9, 0x10204, info.len() as u32, 20, 0];
    message.extend(info.chunks(4).map(|word| u32::from_le_bytes(word.try_into().unwrap())));
    rig.control(&message);
    let heard = rig.hear_and_complete();
    let Some(Heard::Frames { control: true, ranges, .. }) = heard.last() else {
        panic!("{heard:?}")
    };
    u32::from_le_bytes(ranges[0][12..16].try_into().unwrap())
}

/// A guest with this many queues, RSS on, everything heard so far forgotten.
fn rig_with_queues(queues: usize) -> Rig {
    let mut rig = rig_with(|_| (), 64);
    rig.start();
    let (answer, events) = ask(&mut rig, queues as u32 - 1);
    assert_eq!(answer, [133, 1, queues as u32 - 1]);
    assert_eq!(events, [NicServiceEvent::OfferSubChannels { count: queues as u16 - 1 }]);
    for _ in 1..queues {
        rig.open_sub();
    }
    rig.hear();
    let table: Vec<_> = (0..queues as u32).collect();
    assert_eq!(set_rss(&mut rig, 0, &table), 0);
    rig
}

/// The messages on the primary channel that spread what the guest sends.
fn tables(heard: &[Heard]) -> Vec<Vec<u32>> {
    let words = heard.iter().filter_map(|packet| match packet {
        Heard::Message { words, completion: false, .. } if words[0] == 134 => Some(words.clone()),
        _ => None,
    });
    words.collect()
}

#[test]
fn sub_channels_are_granted_whole_or_not_at_all() {
    let mut rig = rig_with(|config| config.policy.max_queues = 4, 16);
    rig.start();
    assert_eq!(ask(&mut rig, 4), (vec![133, 2, 0], vec![]));
    assert_eq!(ask(&mut rig, 0), (vec![133, 2, 0], vec![]));
    let offer = NicServiceEvent::OfferSubChannels { count: 2 };
    assert_eq!(ask(&mut rig, 2), (vec![133, 1, 2], vec![offer]));
    assert_eq!(ask(&mut rig, 2), (vec![133, 2, 0], vec![]), "one is left");
    rig.service.policy_mut().grants_fewer = true;
    let offer = NicServiceEvent::OfferSubChannels { count: 1 };
    assert_eq!(ask(&mut rig, u32::MAX), (vec![133, 1, 1], vec![offer]));
    rig.say(&[133, 2, 1], true);
    let wrong = netvsc::nvsp::SubChannelOperation(2);
    assert_eq!(rig.failure(), NicServiceError::SubChannelOperation(wrong));
}

#[test]
fn the_table_follows_when_all_sub_channels_are_open() {
    let mut rig = rig();
    rig.start();
    ask(&mut rig, 2);
    rig.open_sub();
    assert_eq!(rig.hear(), []);
    rig.open_sub();
    let heard = rig.hear();
    let [table] = &tables(&heard)[..] else { panic!("{heard:?}") };
    assert_eq!(table[1..3], [16, 12]);
    assert_eq!(table[3..9], [0, 1, 2, 0, 1, 2]);
    assert_eq!((rig.service.queues(), rig.service.counters().send_tables), (3, 1));
}

// HISTORY 32: the offset names 12, the table stands at 40.
#[test]
fn an_old_host_sends_the_table_under_a_wrong_offset() {
    let wrong = |config: &mut NicServiceConfig| {
        config.policy.versions = vec![Version::V6];
        config.policy.send_table = SendTable::WrongOffset;
    };
    let mut rig = rig_with(wrong, 16);
    let id = rig.say(&[1, 0x60000, 0x60000], true);
    rig.answer(id);
    rig.say(&[125, 1514, 0, 4, 0], false);
    rig.say(&[100, 6, 0x1e], false);
    rig.say(&[101, RECEIVE.0, 0xcafe], true);
    rig.say(&[104, SEND.0, 0], true);
    rig.control(&[2, 1, 1, 0, 0x4000]);
    rig.hear_and_complete();
    rig.events();
    ask(&mut rig, 1);
    rig.open_sub();
    let heard = rig.hear();
    let [table] = &tables(&heard)[..] else { panic!("{heard:?}") };
    assert_eq!((table.len(), &table[1..3]), (26, &[16, 12][..]));
    assert_eq!(table[10..14], [0, 1, 0, 1]);
    let message = netvsc::nvsp::HostMessage::decode(&bytes(table), Version::V6).unwrap();
    let expected = std::array::from_fn(|at| at as u32 % 2);
    assert_eq!(message, netvsc::nvsp::HostMessage::IndirectionTable(expected));
}

#[test]
fn offers_come_late_and_stop_short_where_policy_says_so() {
    let mut rig = rig_with(
        |config| {
            config.policy.sub_channel_delay = Duration::from_secs(10);
            config.policy.offers_short = 1;
        },
        16,
    );
    rig.start();
    assert_eq!(ask(&mut rig, 3), (vec![133, 1, 3], vec![]));
    assert_eq!(rig.service.poll_deadline(), Some(rig.now + Duration::from_secs(10)));
    rig.wait(Duration::from_secs(10));
    assert_eq!(rig.events(), [NicServiceEvent::OfferSubChannels { count: 2 }]);
    rig.open_sub();
    assert_eq!(tables(&rig.hear()).len(), 0);
    rig.open_sub();
    assert_eq!(tables(&rig.hear()).len(), 1);
    rig.service.policy_mut().send_table = SendTable::Never;
    rig.service.close_queue(2, &mut rig.port);
    rig.poll();
    assert_eq!(tables(&rig.hear()).len(), 0);
}

#[test]
fn frames_are_spread_by_the_guests_key_and_table() {
    let mut rig = rig_with_queues(4);
    let spread = Spread {
        hash: Toeplitz::new(&KEY),
        types: HashTypes::IPV4 | HashTypes::TCP_IPV4 | HashTypes::UDP_IPV4,
        table: vec![0, 1, 2, 3],
    };
    let mut expected = vec![Vec::new(); 4];
    for number in 0..60 {
        let frame = udp(number % 16, number);
        let (queue, hash) = spread.place(&frame);
        expected[usize::from(queue)].push((frame.clone(), hash.unwrap()));
        rig.peer_sends(&frame);
    }
    assert!(expected.iter().all(|frames| frames.len() > 3), "a hash that spreads");
    rig.poll();
    for (queue, expected) in expected.iter().enumerate() {
        let heard = if queue == 0 { rig.hear() } else { rig.hear_on(queue) };
        let mut found = Vec::new();
        for packet in &heard {
            let Heard::Frames { id, control: false, ranges } = packet else { panic!("{packet:?}") };
            found.extend(ranges.iter().map(|message| {
                let hash = u32::from_le_bytes(message[72..76].try_into().unwrap());
                assert_eq!(message[64..68], 8u32.to_le_bytes(), "the hash is told");
                (unpack(message), hash)
            }));
            let payload = bytes(&[108, 1]);
            let answer = Outgoing::Completion { transaction_id: *id, payload: &payload };
            match queue {
                0 => rig.guest.try_send(&answer).unwrap(),
                _ => rig.subs[queue - 1].try_send(&answer).unwrap(),
            }
        }
        assert_eq!(&found, expected, "queue {queue}");
    }
    rig.poll();
    rig.settled(0);
}

#[test]
fn without_scaling_everything_goes_to_the_first_queue() {
    let mut rig = rig_with_queues(2);
    assert_eq!(set_rss(&mut rig, 0x10, &[]), 0);
    for flow in 0..8 {
        rig.peer_sends(&udp(flow, 0));
    }
    rig.poll();
    assert_eq!(rig.hear_on(1), []);
    assert_eq!(frames(&rig.hear_and_complete()).len(), 8);
}

#[test]
fn scaling_is_refused_where_it_makes_no_sense() {
    let mut rig = rig_with_queues(2);
    assert_eq!(set_rss(&mut rig, 0, &[0, 2]), 0xc001_0015, "there are two queues");
    assert_eq!(set_rss(&mut rig, 0, &[]), 0xc001_0015);
    // Some hosts want RSS switched off before it is changed.
    rig.service.policy_mut().live_scaling_change = false;
    assert_eq!(set_rss(&mut rig, 0, &[1, 0]), 0xc000_0001);
    assert_eq!(set_rss(&mut rig, 0x10, &[]), 0);
    assert_eq!(set_rss(&mut rig, 0, &[1, 0]), 0);
    rig.service.policy_mut().max_queues = 1;
    assert_eq!(set_rss(&mut rig, 0, &[0]), 0xc000_00bb);
}

#[test]
fn frames_are_sent_on_every_queue() {
    let mut rig = rig_with_queues(3);
    let message = Rig::packet(&[], &frame(5, 100));
    for number in 1..=2u32 {
        use vmbus::memory::SharedMemory;
        rig.send.write(number as usize * 6144, &message).unwrap();
        let payload = bytes(&[107, 0, number, message.len() as u32, 0, 0, 0, 0, 0, 0]);
        let id = u64::from(number) + 1000;
        let packet = Outgoing::InBand { transaction_id: id, completion: true, payload: &payload };
        rig.subs[number as usize - 1].try_send(&packet).unwrap();
        rig.poll();
        let heard = rig.hear_on(number as usize);
        assert!(
            matches!(&heard[..], [Heard::Completion { id: found, words }] if *found == id && words[1] == 1),
            "on the channel that it came on: {heard:?}"
        );
    }
    assert_eq!(rig.peer_hears(), [frame(5, 100), frame(5, 100)]);
}

#[test]
fn only_frames_travel_on_sub_channels() {
    for message in
        [&[1, 0x60001, 0x60001][..], &[129, 1], &[133, 1, 1], &[103, 0xcafe], &[107, 1, 0, 12]]
    {
        let mut rig = rig_with_queues(2);
        let mut payload = bytes(message);
        payload.resize(40, 0);
        let packet = Outgoing::InBand { transaction_id: 9, completion: true, payload: &payload };
        rig.subs[0].try_send(&packet).unwrap();
        rig.poll();
        let error = NicServiceError::OnSubChannel { message: MessageType(message[0]), queue: 1 };
        assert_eq!(rig.failure(), error);
        assert_eq!(rig.port.side_state(SYNTHETIC), SideState::Down);
    }
}

#[test]
fn a_completion_on_another_channel_ends_the_channel() {
    let mut rig = rig_with_queues(2);
    // One of these flows is for queue 1.
    for flow in 0..8 {
        rig.peer_sends(&udp(flow, 0));
    }
    rig.poll();
    let heard = rig.hear_on(1);
    let [Heard::Frames { id, .. }, ..] = &heard[..] else { panic!("{heard:?}") };
    rig.complete(*id, &[108, 1]);
    rig.poll();
    assert_eq!(rig.failure(), NicServiceError::NotOutstanding(*id));
}

#[test]
fn a_queue_that_closes_leaves_its_frames_to_the_others() {
    let mut rig = rig_with_queues(2);
    for number in 0..200 {
        rig.peer_sends(&udp(number % 8, number));
    }
    rig.poll();
    let lost = rig.hear_on(1);
    let lent: usize = lost
        .iter()
        .map(|packet| match packet {
            Heard::Frames { ranges, .. } => ranges.len(),
            other => panic!("{other:?}"),
        })
        .sum();
    let mut got = frames(&lost).len();
    rig.service.close_queue(1, &mut rig.port);
    rig.subs.clear();
    rig.poll();
    assert_eq!(rig.service.counters().leaked, lent as u64);
    let mut last = [None; 8];
    loop {
        let heard = rig.hear_and_complete();
        let some = frames(&heard);
        if some.is_empty() {
            break;
        }
        got += some.len();
        for frame in some {
            let (flow, number) = (usize::from(frame[35]), frame[59]);
            assert!(last[flow].is_none_or(|last| last < number), "flow {flow} in order");
            last[flow] = Some(number);
        }
    }
    assert_eq!(got, 200);
    rig.settled(0);
    // And there is one again.
    rig.open_sub();
    assert_eq!(rig.service.queues(), 2);
    assert_eq!(tables(&rig.hear()).len(), 1);
}

#[test]
fn a_slow_queue_does_not_starve_the_others() {
    let mut rig = rig_with_queues(2);
    for number in 0..240 {
        rig.peer_sends(&udp(number % 8, number));
    }
    rig.poll();
    // Queue 1 never completes; queue 0 gets all of its frames all the same.
    let mut got = 0;
    loop {
        let some = frames(&rig.hear_and_complete()).len();
        if some == 0 {
            break;
        }
        got += some;
    }
    assert!(got >= 90, "{got}");
    assert!(rig.service.counters().receive_starved > 0);
    assert_eq!(rig.port.waiting(SYNTHETIC) + got + frames(&rig.hear_on(1)).len(), 240);
}

#[test]
fn one_poll_does_a_bounded_amount_of_work() {
    let mut rig = rig_with(|config| config.policy.packets_per_poll = 3, 16);
    rig.start();
    let payload = bytes(&[100, 6, 0x1e, 0, 0, 0, 0, 0, 0, 0]);
    rig.service.policy_mut().tolerate_repeats = true;
    for id in 1..=7 {
        rig.send(&Outgoing::InBand { transaction_id: id, completion: true, payload: &payload });
    }
    rig.poll();
    assert_eq!(rig.hear().len(), 3);
    assert_eq!(rig.service.poll_deadline(), Some(rig.now), "at once, without a doorbell");
    rig.poll();
    rig.poll();
    assert_eq!(rig.hear().len(), 4);
    assert_eq!(rig.service.poll_deadline(), None);
    // What is left when the channel is closed keeps nobody awake.
    for id in 1..=7 {
        rig.send(&Outgoing::InBand { transaction_id: id, completion: true, payload: &payload });
    }
    rig.poll();
    assert_eq!(rig.service.poll_deadline(), Some(rig.now));
    rig.service.close(&mut rig.port);
    rig.poll();
    assert_eq!(rig.service.poll_deadline(), None);
}

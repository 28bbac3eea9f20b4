use std::time::Duration;

use netvsc::MacAddress;
use proptest::prelude::*;

use super::*;

fn at(micros: u64) -> Instant {
    Instant::from_nanos(micros * 1000)
}

fn frame(number: u8, len: usize) -> Vec<u8> {
    let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 9, 8, 0];
    frame.resize(len.max(14), number);
    frame
}

fn broadcast() -> Vec<u8> {
    let mut frame = frame(0, 60);
    frame[..6].fill(0xff);
    frame
}

fn syn() -> Vec<u8> {
    let mut frame = frame(0, 14 + 40);
    frame[14] = 0x45;
    frame[14 + 9] = 6;
    frame[14 + 20 + 13] = 2;
    frame
}

fn instant_port() -> SwitchPort {
    let mut port = SwitchPort::new(PortConfig {
        to_peer: WireConfig::instant(),
        from_peer: WireConfig::instant(),
        ..PortConfig::default()
    });
    port.set_side(Path::Synthetic, SideState::Up);
    port.set_filter(0xb);
    port
}

fn switched_port() -> SwitchPort {
    let mut port = instant_port();
    port.set_side(Path::Vf, SideState::Up);
    port.set_data_path(Path::Vf);
    port
}

#[test]
fn each_port_has_its_own_peer() {
    let mut switch = Switch::new();
    let ids: Vec<_> = (0..3).map(|_| switch.add_port(PortConfig::default())).collect();
    for (number, id) in ids.iter().enumerate() {
        let port = switch.port_mut(*id).unwrap();
        let sent = port.accept_from_guest(Path::Synthetic, &frame(number as u8, 60), at(0));
        assert_eq!(sent, Offered::Accepted);
    }
    let due = switch.poll_deadline().unwrap();
    assert_eq!(due, at(50));
    for (number, id) in ids.iter().enumerate() {
        assert_eq!(switch.peer_receive(*id, due), Some(frame(number as u8, 60)));
        assert_eq!(switch.peer_receive(*id, due), None);
    }
    assert_eq!(switch.poll_deadline(), None);
}

#[test]
fn the_data_path_chooses_the_side() {
    let mut port = instant_port();
    port.set_side(Path::Vf, SideState::Up);
    assert_eq!(port.peer_transmit(&frame(1, 60), at(0)), Offered::Accepted);
    port.set_data_path(Path::Vf);
    assert_eq!(port.peer_transmit(&frame(2, 60), at(0)), Offered::Accepted);
    assert_eq!(port.next_for_guest(Path::Synthetic, at(0)), Some(frame(1, 60)));
    assert_eq!(port.next_for_guest(Path::Vf, at(0)), Some(frame(2, 60)));
    assert_eq!(port.counters().in_flight(), 0);
}

#[test]
fn groups_and_connection_requests_stay_on_the_synthetic_side() {
    let mut port = switched_port();
    for sent in [broadcast(), syn(), frame(1, 60)] {
        assert_eq!(port.peer_transmit(&sent, at(0)), Offered::Accepted);
    }
    assert_eq!(port.waiting(Path::Synthetic), 2);
    assert_eq!(port.waiting(Path::Vf), 1);
}

#[test]
fn the_side_is_chosen_on_arrival_not_on_sending() {
    let mut port = SwitchPort::new(PortConfig::default());
    port.set_side(Path::Synthetic, SideState::Up);
    port.set_side(Path::Vf, SideState::Up);
    assert_eq!(port.peer_transmit(&frame(1, 60), at(0)), Offered::Accepted);
    port.set_data_path(Path::Vf);
    port.poll(at(50));
    assert_eq!(port.waiting(Path::Vf), 1);
}

#[test]
fn a_full_wire_pushes_back_and_wakes_the_side_that_waits() {
    let mut port = SwitchPort::new(PortConfig {
        to_peer: WireConfig { capacity: 100, ..WireConfig::instant() },
        ..PortConfig::default()
    });
    assert_eq!(port.accept_from_guest(Path::Synthetic, &frame(1, 80), at(0)), Offered::Accepted);
    assert!(!port.has_room(80));
    assert_eq!(port.accept_from_guest(Path::Synthetic, &frame(2, 80), at(0)), Offered::Busy);
    assert!(!port.take_wake(Path::Synthetic, at(0)));
    assert!(port.peer_receive(at(0)).is_some());
    assert!(port.take_wake(Path::Synthetic, at(0)) && !port.take_wake(Path::Synthetic, at(0)));
    assert!(!port.take_wake(Path::Vf, at(0)), "nobody was turned away there");
    assert_eq!(port.counters().synthetic.busy, 1);
    assert_eq!(port.counters().unaccounted(), (0, 0));
}

#[test]
fn a_slow_guest_pushes_back_to_the_peer() {
    let mut port = SwitchPort::new(PortConfig {
        from_peer: WireConfig { capacity: 100, ..WireConfig::instant() },
        side_capacity: 100,
        ..PortConfig::default()
    });
    port.set_side(Path::Synthetic, SideState::Up);
    assert_eq!(port.peer_transmit(&frame(1, 80), at(0)), Offered::Accepted);
    assert_eq!(port.peer_transmit(&frame(2, 80), at(0)), Offered::Accepted);
    assert_eq!(port.peer_transmit(&frame(3, 80), at(0)), Offered::Busy);
    assert_eq!(port.next_for_guest(Path::Synthetic, at(0)), Some(frame(1, 80)));
    assert_eq!(port.peer_transmit(&frame(3, 80), at(0)), Offered::Accepted, "room again");
    assert_eq!(port.counters().dropped(), 0);
}

#[test]
fn frames_waiting_for_the_vf_follow_the_data_path_back_in_order() {
    let mut port = switched_port();
    for number in 1..=3 {
        assert_eq!(port.peer_transmit(&frame(number, 60), at(0)), Offered::Accepted);
    }
    port.set_data_path(Path::Synthetic);
    assert_eq!(port.peer_transmit(&frame(4, 60), at(0)), Offered::Accepted);
    for number in 1..=4 {
        assert_eq!(port.next_for_guest(Path::Synthetic, at(0)), Some(frame(number, 60)));
    }
    assert_eq!(port.counters().resteered, 3);
}

#[test]
fn a_detached_vf_leaves_its_frames_to_the_synthetic_side() {
    let mut port = switched_port();
    assert_eq!(port.peer_transmit(&frame(1, 60), at(0)), Offered::Accepted);
    port.set_side(Path::Vf, SideState::Absent);
    assert_eq!(port.peer_transmit(&frame(2, 60), at(0)), Offered::Accepted);
    assert_eq!(port.waiting(Path::Synthetic), 2);
    assert_eq!(port.counters().dropped(), 0);
}

// HISTORY 39: stopping a VF before the path has left it shows as loss.
#[test]
fn a_vf_stopped_while_the_path_is_on_it_loses_frames_and_says_so() {
    let mut port = switched_port();
    assert_eq!(port.peer_transmit(&frame(1, 60), at(0)), Offered::Accepted);
    port.set_side(Path::Vf, SideState::Down);
    assert_eq!(port.peer_transmit(&frame(2, 60), at(0)), Offered::Accepted);
    assert_eq!(port.counters().dropped_from_peer.by(DropCause::VfDown), 2);
    assert_eq!(port.counters().unaccounted(), (0, 0));
}

// HISTORY 37: a guest that sends on the VF before the host has switched loses its frames.
#[test]
fn a_vf_may_send_from_its_first_switch_on() {
    let mut port = instant_port();
    port.set_side(Path::Vf, SideState::Up);
    let dropped = Offered::Dropped(DropCause::NotSwitched);
    assert_eq!(port.accept_from_guest(Path::Vf, &frame(1, 60), at(0)), dropped);
    port.set_data_path(Path::Vf);
    assert_eq!(port.accept_from_guest(Path::Vf, &frame(2, 60), at(0)), Offered::Accepted);
    port.set_data_path(Path::Synthetic);
    assert_eq!(
        port.accept_from_guest(Path::Vf, &frame(3, 60), at(0)),
        Offered::Accepted,
        "a VF is drained after the path has left it"
    );
    port.set_side(Path::Vf, SideState::Absent);
    port.set_side(Path::Vf, SideState::Up);
    assert_eq!(port.accept_from_guest(Path::Vf, &frame(4, 60), at(0)), dropped, "another VF");
}

#[test]
fn every_drop_has_its_cause() {
    let mut port = SwitchPort::new(PortConfig {
        to_peer: WireConfig::instant(),
        from_peer: WireConfig::instant(),
        max_frame: 100,
        ..PortConfig::default()
    });
    assert_eq!(
        port.accept_from_guest(Path::Synthetic, &[0; 13], at(0)),
        Offered::Dropped(DropCause::Runt)
    );
    assert_eq!(port.peer_transmit(&frame(1, 101), at(0)), Offered::Dropped(DropCause::Oversize));
    assert_eq!(port.peer_transmit(&frame(1, 60), at(0)), Offered::Accepted);
    port.set_side(Path::Synthetic, SideState::Up);
    port.set_filter(1);
    assert_eq!(port.peer_transmit(&broadcast(), at(0)), Offered::Accepted);
    port.set_filter(0x20);
    assert_eq!(port.peer_transmit(&broadcast(), at(0)), Offered::Accepted);
    let counters = port.counters();
    assert_eq!(counters.dropped_from_guest.by(DropCause::Runt), 1);
    for cause in [DropCause::Oversize, DropCause::SyntheticDown, DropCause::Filtered] {
        assert_eq!(counters.dropped_from_peer.by(cause), 1, "{cause}");
    }
    assert_eq!(counters.synthetic.queued, 1);
    assert_eq!(counters.unaccounted(), (0, 0));
}

#[test]
fn frames_for_others_are_for_a_promiscuous_nic_only() {
    let mut port = SwitchPort::new(PortConfig {
        to_peer: WireConfig::instant(),
        from_peer: WireConfig::instant(),
        ..PortConfig::default()
    });
    port.set_side(Path::Synthetic, SideState::Up);
    let (directed, promiscuous) = (0x1, 0x20);
    let own = frame(1, 60);
    let mut other = own.clone();
    other[5] ^= 1;
    let address = MacAddress(*own.first_chunk().unwrap());
    let mut delivered = |filter, address, frame: &[u8]| {
        port.set_filter(filter);
        port.set_address(address);
        assert_eq!(port.peer_transmit(frame, at(0)), Offered::Accepted);
        port.poll(at(0));
        port.next_for_guest(Path::Synthetic, at(0)).is_some()
    };
    assert!(delivered(directed, Some(address), &own));
    assert!(!delivered(directed, Some(address), &other));
    assert!(delivered(directed | promiscuous, Some(address), &other));
    assert!(!delivered(0x8, Some(address), &own), "broadcasts only");
    assert!(delivered(directed, None, &other), "nobody else is there");
    for cause in [DropCause::Filtered, DropCause::Foreign] {
        assert_eq!(port.counters().dropped_from_peer.by(cause), 1, "{cause}");
    }
    assert_eq!(port.counters().unaccounted(), (0, 0));
}

#[test]
fn one_deadline_covers_many_frames() {
    let mut port = SwitchPort::new(PortConfig::default());
    let mut now = at(0);
    let mut sent = 0;
    let mut received = 0;
    let mut steps = 0;
    while received < 10_000 {
        while sent < 10_000
            && port.accept_from_guest(Path::Synthetic, &frame(7, 1514), now) == Offered::Accepted
        {
            sent += 1;
        }
        now = port.poll_deadline().expect("something is on its way");
        while let Some(frame) = port.peer_receive(now) {
            port.recycle(frame);
            received += 1;
        }
        steps += 1;
    }
    // 10 000 frames of 1514 bytes take 12.1 ms at 10 Gbit/s: 243 ticks.
    assert!((240..=250).contains(&steps), "{steps} wake-ups");
    assert!(now.since(at(0)) < Duration::from_millis(13));
}

/// Two NICs and a way out, joined; the first two in VLAN 1.
fn joined() -> (Switch, [PortId; 2], UplinkId) {
    let mut switch = Switch::new();
    let config = PortConfig {
        to_peer: WireConfig::instant(),
        from_peer: WireConfig { capacity: 200, ..WireConfig::instant() },
        side_capacity: 200,
        ..PortConfig::default()
    };
    let ports = [switch.add_port(config), switch.add_port(config)];
    for port in ports {
        switch.connect(port, VlanMode::Access(1));
        let port = switch.port_mut(port).unwrap();
        port.set_side(Path::Synthetic, SideState::Up);
        port.set_filter(0xf);
    }
    let uplink = switch.add_uplink(VlanMode::Trunk { native: 9, tagged: vec![1] }, 100);
    (switch, ports, uplink)
}

/// A frame between two stations.
fn between(to: u8, from: u8) -> Vec<u8> {
    let mut frame = vec![2, 0, 0, 0, 0, to, 2, 0, 0, 0, 0, from, 8, 0];
    frame.resize(60, 0xaa);
    frame
}

fn send(switch: &mut Switch, from: PortId, path: Path, frame: &[u8]) {
    let offered = switch.port_mut(from).unwrap().accept_from_guest(path, frame, at(0));
    assert_eq!(offered, Offered::Accepted);
    switch.poll(at(0));
}

fn heard(switch: &mut Switch, port: PortId, path: Path) -> Option<Vec<u8>> {
    switch.port_mut(port).unwrap().next_for_guest(path, at(0))
}

#[test]
fn joined_ports_and_uplinks_reach_each_other() {
    let (mut switch, [a, b], uplink) = joined();
    let tagged = |mut frame: Vec<u8>| {
        frame.splice(12..12, [0x81, 0, 0, 1]);
        frame
    };
    // Nobody knows where 2 is; then everybody does.
    send(&mut switch, a, Path::Synthetic, &between(2, 1));
    assert_eq!(heard(&mut switch, b, Path::Synthetic), Some(between(2, 1)));
    assert_eq!(switch.uplink_receive(uplink), Some(tagged(between(2, 1))));
    send(&mut switch, b, Path::Synthetic, &between(1, 2));
    assert_eq!(heard(&mut switch, a, Path::Synthetic), Some(between(1, 2)));
    assert_eq!(switch.uplink_receive(uplink), None);
    switch.uplink_transmit(uplink, &tagged(between(1, 7)), at(0));
    assert_eq!(heard(&mut switch, a, Path::Synthetic), Some(between(1, 7)));
    assert_eq!(heard(&mut switch, b, Path::Synthetic), None);
    switch.disconnect(b);
    send(&mut switch, a, Path::Synthetic, &between(2, 1));
    assert_eq!(heard(&mut switch, b, Path::Synthetic), None, "it has left");
}

// The receiving NIC's data path decides, and the first packet of a connection and groups stay on the synthetic side.
#[test]
fn joined_ports_redirect_to_their_virtual_functions() {
    let (mut switch, [a, b], _) = joined();
    let port = switch.port_mut(b).unwrap();
    port.set_side(Path::Vf, SideState::Up);
    port.set_data_path(Path::Vf);
    send(&mut switch, a, Path::Synthetic, &between(2, 1));
    assert_eq!(heard(&mut switch, b, Path::Vf), Some(between(2, 1)));
    let mut broadcast = between(2, 1);
    broadcast[..6].fill(0xff);
    send(&mut switch, a, Path::Synthetic, &broadcast);
    assert_eq!(heard(&mut switch, b, Path::Synthetic), Some(broadcast));
    // And back, sent on the virtual function.
    send(&mut switch, b, Path::Vf, &between(1, 2));
    assert_eq!(heard(&mut switch, a, Path::Synthetic), Some(between(1, 2)));
}

#[test]
fn a_party_that_takes_nothing_costs_its_own_frames_only() {
    let (mut switch, [a, b], uplink) = joined();
    for _ in 0..20 {
        send(&mut switch, a, Path::Synthetic, &between(2, 1));
    }
    let waiting = std::iter::from_fn(|| heard(&mut switch, b, Path::Synthetic)).count();
    let outside = std::iter::from_fn(|| switch.uplink_receive(uplink)).count();
    let counters = switch.bridge_counters();
    assert_eq!((counters.frames, counters.copies, counters.unaccounted()), (20, 40, 0));
    assert_eq!(counters.dropped_congested, 40 - (waiting + outside) as u64);
    assert!(waiting < 10 && outside < 3, "both are full after a while");
    for port in [a, b] {
        assert_eq!(switch.port(port).unwrap().counters().unaccounted(), (0, 0));
    }
}

#[derive(Clone, Debug)]
enum Step {
    Guest(bool, usize),
    Peer(u8, usize),
    TakeGuest(bool),
    TakePeer,
    Side(bool, u8),
    DataPath(bool),
    Filter(u32),
    Wait(u64),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (any::<bool>(), 0usize..300).prop_map(|(vf, len)| Step::Guest(vf, len)),
        4 => (0u8..3, 0usize..300).prop_map(|(kind, len)| Step::Peer(kind, len)),
        3 => any::<bool>().prop_map(Step::TakeGuest),
        3 => Just(Step::TakePeer),
        1 => (any::<bool>(), 0u8..3).prop_map(|(vf, state)| Step::Side(vf, state)),
        1 => any::<bool>().prop_map(Step::DataPath),
        1 => (0u32..16).prop_map(Step::Filter),
        2 => (0u64..100).prop_map(Step::Wait),
    ]
}

fn path(vf: bool) -> Path {
    if vf { Path::Vf } else { Path::Synthetic }
}

proptest! {
    #[test]
    fn no_frame_is_ever_unaccounted(steps in proptest::collection::vec(step(), 0..400)) {
        let wire = WireConfig {
            rate: Some(100_000_000),
            latency: Duration::from_micros(7),
            capacity: 1000,
            tick: Duration::from_micros(10),
        };
        let mut port = SwitchPort::new(PortConfig {
            to_peer: wire,
            from_peer: wire,
            side_capacity: 500,
            max_frame: 280,
            ..PortConfig::default()
        });
        let mut now = at(0);
        for step in steps {
            match step {
                Step::Guest(vf, len) => {
                    let _ = port.accept_from_guest(path(vf), &vec![2; len], now);
                }
                Step::Peer(kind, len) => {
                    let mut frame = vec![2; len];
                    frame.iter_mut().take(6).for_each(|byte| *byte = [2, 0xff, 1][usize::from(kind)]);
                    let _ = port.peer_transmit(&frame, now);
                }
                Step::TakeGuest(vf) => drop(port.next_for_guest(path(vf), now)),
                Step::TakePeer => drop(port.peer_receive(now)),
                Step::Side(vf, state) => {
                    let state = [SideState::Absent, SideState::Down, SideState::Up][usize::from(state)];
                    port.set_side(path(vf), state);
                }
                Step::DataPath(vf) => port.set_data_path(path(vf)),
                Step::Filter(filter) => port.set_filter(filter),
                Step::Wait(micros) => now = now + Duration::from_micros(micros),
            }
            prop_assert_eq!(port.counters().unaccounted(), (0, 0));
            if let Some(due) = port.poll_deadline() {
                port.poll(now);
                prop_assert!(due.as_nanos() % 10_000 == 0);
            }
        }
        // Whatever happened, an open port empties itself.
        port.set_side(Path::Synthetic, SideState::Up);
        now = now + Duration::from_secs(1);
        let mut taken = 1;
        while taken > 0 {
            taken = 0;
            for path in [Path::Synthetic, Path::Vf] {
                while port.next_for_guest(path, now).is_some() {
                    taken += 1;
                }
            }
            while port.peer_receive(now).is_some() {
                taken += 1;
            }
        }
        prop_assert_eq!(port.counters().in_flight(), 0);
        prop_assert_eq!(port.counters().unaccounted(), (0, 0));
    }
}

/// A TCP segment over IPv4 from the peer, and how it is to be cut.
fn segment_of_peer() -> (Vec<u8>, Uncut) {
    let mut frame = between(1, 9);
    frame.truncate(14);
    frame.extend([0x45, 0, 0, 0, 0, 7, 0x40, 0, 64, 6, 0, 0, 192, 0, 2, 1, 192, 0, 2, 2]);
    frame.extend([0x13, 0x88, 0, 80, 0, 0, 0, 1, 0, 0, 0, 0, 0x50, 0x10, 1, 0, 0, 0, 0, 0]);
    frame.extend((0..5000_u32).map(|byte| byte as u8));
    (frame, Uncut { segment: 1460, headers: 54, layer4: 34, ipv6: false })
}

#[test]
fn a_segment_of_the_peer_reaches_a_driver_that_cuts_as_it_is_and_everybody_else_in_pieces() {
    let config = PortConfig {
        to_peer: WireConfig::instant(),
        from_peer: WireConfig::instant(),
        max_frame: 1518,
        ..PortConfig::default()
    };
    let (segment, uncut) = segment_of_peer();
    let mut port = SwitchPort::new(config);
    port.set_side(Path::Synthetic, SideState::Up);
    port.set_side(Path::Vf, SideState::Up);
    let send = |port: &mut SwitchPort| {
        assert_eq!(port.peer_transmit_uncut(&segment, uncut, at(0)), Offered::Accepted);
        assert_eq!(port.counters().unaccounted(), (0, 0));
    };
    let pieces = |port: &mut SwitchPort, path| {
        let frames = std::iter::from_fn(|| port.next_for_guest(path, at(0)));
        let lengths: Vec<_> = frames.map(|frame| frame.len()).collect();
        assert_eq!(port.counters().unaccounted(), (0, 0));
        lengths
    };
    let cut = [1514, 1514, 1514, 54 + 620];
    send(&mut port);
    assert_eq!((port.wants_uncut(), pieces(&mut port, Path::Synthetic)), (false, cut.to_vec()));
    port.set_data_path(Path::Vf);
    send(&mut port);
    assert_eq!((port.wants_uncut(), pieces(&mut port, Path::Vf)), (false, cut.to_vec()));
    port.set_vf_cuts(true);
    send(&mut port);
    assert!(port.wants_uncut());
    let queued = port.next_for_vf(at(0)).unwrap();
    assert_eq!((&queued.frame, queued.uncut), (&segment, Some(uncut)));
    // One that waits for the VF when the path leaves it.
    send(&mut port);
    port.set_data_path(Path::Synthetic);
    assert_eq!(pieces(&mut port, Path::Synthetic), cut);
    // Nobody can cut what has no headers; and pieces have to fit the link, as all frames do.
    let offered = port.peer_transmit_uncut(&[2; 5000], uncut, at(0));
    assert_eq!((offered, pieces(&mut port, Path::Synthetic)), (Offered::Accepted, vec![]));
    let wide = Uncut { segment: 1518, ..uncut };
    let offered = port.peer_transmit_uncut(&segment, wide, at(0));
    assert_eq!(offered, Offered::Dropped(DropCause::Oversize));
    let counters = port.counters();
    assert_eq!(counters.dropped_from_peer.by(DropCause::Oversize), 2);
    assert_eq!((counters.from_peer, counters.unaccounted()), (4 + 4 + 1 + 4 + 2, (0, 0)));
}

#[test]
fn a_segment_for_a_peer_that_cuts_is_one_frame_with_what_is_left_to_it() {
    let config = PortConfig {
        to_peer: WireConfig::instant(),
        from_peer: WireConfig::instant(),
        max_frame: 1518,
        ..PortConfig::default()
    };
    let mut port = SwitchPort::new(config);
    assert!(!port.peer_cuts());
    port.set_peer_cuts(true);
    port.set_side(Path::Synthetic, SideState::Up);
    let uncut = Uncut { segment: 1460, headers: 54, layer4: 34, ipv6: false };
    let long = vec![2; 60_000];
    let offered = port.accept_uncut(Path::Synthetic, &long, uncut, Instant::ZERO);
    assert_eq!(offered, Offered::Accepted);
    // Its pieces have to fit the link, as all frames do.
    let wide = Uncut { segment: config.max_frame, ..uncut };
    let offered = port.accept_uncut(Path::Synthetic, &long, wide, Instant::ZERO);
    assert_eq!(offered, Offered::Dropped(DropCause::Oversize));
    assert_eq!(port.accept_from_guest(Path::Synthetic, &[2; 60], Instant::ZERO), Offered::Accepted);
    assert_eq!(port.peer_receive_uncut(Instant::ZERO), Some((long, Some(uncut))));
    assert_eq!(port.peer_receive_uncut(Instant::ZERO), Some((vec![2; 60], None)));
    let counters = port.counters();
    assert_eq!((counters.synthetic.from_guest, counters.to_peer), (3, 2));
    // 59,946 bytes behind the headers: 42 pieces, and as many of the one that was dropped.
    let wide = 59_946u64.div_ceil(config.max_frame as u64);
    assert_eq!(counters.synthetic.from_guest_cut(), 42 + wide + 1);
    assert_eq!(counters.unaccounted(), (0, 0));
}

use rand_core::SeedableRng;

use super::*;

const MACS: [MacAddress; 2] = [MacAddress([2; 6]), MacAddress([4; 6])];

/// Sends so many frames of one flow.
fn send(flows: &mut Flows, at: usize, count: u64) -> Vec<Vec<u8>> {
    let mut random = Xoshiro256PlusPlus::seed_from_u64(1 + flows.sent());
    let mut frames = Vec::new();
    flows.want(4096);
    while frames.len() < count as usize {
        let frame = flows.front(&mut random).expect("a frame").to_vec();
        if flows.at == at {
            flows.taken();
            frames.push(frame);
        } else {
            flows.held.clear();
        }
    }
    flows.wanted = 0;
    frames
}

fn flows() -> (Flows, Vec<Vec<u8>>) {
    let mut flows = Flows::new(3, Way::Out, MACS, 9);
    let frames = send(&mut flows, 2, 4);
    (flows, frames)
}

#[test]
fn frames_in_order_are_all_right_and_a_repeated_one_is_counted() {
    let (mut flows, frames) = flows();
    for frame in &frames {
        assert_eq!(flows.arrived(frame), Ok(()));
    }
    assert_eq!(flows.arrived(&frames[1]), Ok(()));
    assert_eq!((flows.lacking(), flows.duplicates()), (0, 1));
}

#[test]
fn a_frame_may_be_overtaken_by_another_flow_and_not_by_its_own() {
    for at in 0..KINDS.len() {
        let mut flows = Flows::new(3, Way::In, MACS, 9);
        let first = send(&mut flows, at, 2);
        let other = send(&mut flows, (at + 1) % KINDS.len(), 2);
        for frame in &other {
            assert_eq!(flows.arrived(frame), Ok(()));
        }
        assert_eq!(flows.lacking(), 2);
        assert_eq!(flows.arrived(&first[1]), Ok(()));
        let overtaken = flows.arrived(&first[0]).unwrap_err();
        assert!(overtaken.contains(&format!("flow {at}: frame 0 was overtaken")), "{overtaken}");
    }
}

#[test]
fn a_frame_may_be_overtaken_only_if_its_way_has_changed_since_it_was_sent() {
    let (mut changed, frames) = flows();
    changed.way_changed();
    changed.arrived(&frames[1]).unwrap();
    assert_eq!(changed.arrived(&frames[0]), Ok(()));
    let later = send(&mut changed, 2, 2);
    changed.arrived(&later[1]).unwrap();
    assert_eq!(changed.arrived(&frames[3]), Ok(()), "sent before the change");
    assert!(changed.arrived(&later[0]).unwrap_err().contains("overtaken"));
}

#[test]
fn frames_whose_carrier_is_gone_are_not_missing_and_later_ones_are() {
    let (mut gone, frames) = flows();
    gone.arrived(&frames[1]).unwrap();
    gone.carrier_gone();
    assert_eq!(gone.lacking(), 0);
    gone.arrived(&frames[3]).unwrap();
    assert_eq!(gone.lacking(), 0, "those that do arrive count once");
    send(&mut gone, 2, 2);
    assert_eq!(gone.lacking(), 2);
}

#[test]
fn a_frame_that_is_lost_overtaken_changed_or_a_stranger_is_noticed() {
    let (mut flows, frames) = flows();
    flows.arrived(&frames[1]).unwrap();
    assert_eq!(flows.lacking(), 3);
    assert!(flows.arrived(&frames[0]).unwrap_err().contains("overtaken"));
    for at in [0, 6, 12, 20, 40, 60, frames[2].len() - 1] {
        let mut frame = frames[2].clone();
        frame[at] ^= 1;
        assert!(flows.arrived(&frame).is_err(), "{at}");
    }
    let mut other = Flows::new(4, Way::Out, MACS, 9);
    other.want(1);
    assert!(other.arrived(&frames[0]).unwrap_err().contains("nic3"));
    assert!(flows.arrived(&frames[0][..20]).unwrap_err().contains("20 bytes"));
}

#[test]
fn frames_are_as_long_as_the_mtu_lets_them_and_no_longer() {
    let mut random = Xoshiro256PlusPlus::seed_from_u64(68);
    let mut flows = Flows::new(3, Way::In, MACS, 9);
    flows.want(4096);
    for (mtu, least) in [(9000, 8000), (68, 80), (1500, 1400)] {
        // What was made and not taken yet may be too long for the next one.
        flows.front(&mut random).expect("a frame");
        flows.set_mtu(mtu);
        let mut longest = 0;
        for _ in 0..200 {
            let frame = flows.front(&mut random).expect("a frame").to_vec();
            flows.taken();
            longest = longest.max(frame.len());
            assert_eq!(flows.arrived(&frame), Ok(()));
        }
        assert!((least..=14 + mtu as usize).contains(&longest), "{mtu}: {longest}");
    }
}

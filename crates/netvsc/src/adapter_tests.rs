extern crate std;
use std::cell::RefCell;
use std::rc::Rc;
use std::vec;
use std::vec::Vec;

use super::*;
use crate::mac::MacAddress;
use crate::nic::{Lending, PagedFrame, Returned, TxFrame, TxWork};

/// What fake NIC and fake port share with the test.
#[derive(Default)]
struct Wire {
    /// Frames that left, by path, in the order in which they did.
    sent: Vec<(Path, Vec<u8>)>,
    /// Frames in the VF's queue that are not out yet.
    queued: VecDeque<Vec<u8>>,
    confirmed: u64,
    link: Option<PortLink>,
    /// Frames that the NIC takes until it is full.
    room: usize,
    /// Frames that the NIC has and its host has not taken.
    in_flight: usize,
    /// The ring has no room for a switch, and this wish waits for some.
    no_room_for_switch: bool,
    wish: Option<Path>,
    /// The NIC is between two lives.
    not_ready: bool,
    /// The host reads frames in pages.
    lends: bool,
    returned: VecDeque<Returned>,
    switches: Vec<Path>,
    /// What NIC and port do to frames, and what they were asked for.
    offloads: [PathOffloads; 2],
    work: Vec<TxWork>,
    settings: Option<PortSettings>,
    /// How the port was set up, and the last switch asked for before.
    configured: Vec<(PortSettings, Option<Path>)>,
    signs: VecDeque<Sign>,
    from_nic: Vec<Vec<u8>>,
    from_port: Vec<Vec<u8>>,
}

impl Wire {
    /// The VF sends and confirms `count` of its frames.
    fn confirm(&mut self, count: usize) {
        for frame in self.queued.drain(..count.min(self.queued.len())).collect::<Vec<_>>() {
            self.sent.push((Path::Vf, frame));
            self.confirmed += 1;
        }
    }
}

type Shared = Rc<RefCell<Wire>>;

struct FakeNic(Shared);

impl Synthetic for FakeNic {
    type Event = Sign;
    type Error = ();

    fn poll(&mut self, _: Instant, sink: &mut dyn FnMut(&dyn Frame)) -> Result<(), ()> {
        for frame in core::mem::take(&mut self.0.borrow_mut().from_nic) {
            sink(&frame.as_slice());
        }
        Ok(())
    }

    fn poll_event(&mut self) -> Option<Sign> {
        self.0.borrow_mut().signs.pop_front()
    }

    fn sign(event: &Sign) -> Option<Sign> {
        Some(*event)
    }

    fn poll_deadline(&self) -> Option<Instant> {
        None
    }

    fn transmit(&mut self, frame: &[u8]) -> Result<(), Refused> {
        let mut wire = self.0.borrow_mut();
        if wire.not_ready {
            return Err(Refused::NotReady);
        }
        wire.room = wire.room.checked_sub(1).ok_or(Refused::Full(Lack::Ring))?;
        wire.sent.push((Path::Synthetic, frame.to_vec()));
        Ok(())
    }

    fn transmit_with(&mut self, frame: &TxFrame<'_>) -> Result<(), Refused> {
        self.transmit(&frame.pieces.concat())?;
        self.0.borrow_mut().work.push(frame.work());
        Ok(())
    }

    fn transmit_pages(&mut self, frame: &PagedFrame<'_>) -> Result<Lending, Refused> {
        if !self.0.borrow().lends {
            return Err(Refused::Never);
        }
        self.transmit(frame.head)?;
        let returned = Returned { token: frame.token, status: None };
        self.0.borrow_mut().returned.push_back(returned);
        Ok(Lending::Lent)
    }

    fn poll_returned(&mut self) -> Option<Returned> {
        self.0.borrow_mut().returned.pop_front()
    }

    fn offloads(&self) -> PathOffloads {
        self.0.borrow().offloads[0]
    }

    fn settings(&self) -> Option<PortSettings> {
        self.0.borrow().settings
    }

    fn flush(&mut self) {}

    fn is_idle(&self) -> bool {
        self.0.borrow().in_flight == 0
    }

    fn switch_data_path(&mut self, path: Path, _: Instant) {
        let mut wire = self.0.borrow_mut();
        if wire.no_room_for_switch {
            wire.wish = Some(path);
        } else {
            wire.switches.push(path);
        }
    }
}

struct FakePort(Shared);

impl VfPort for FakePort {
    fn permanent_mac(&self) -> Option<MacAddress> {
        None
    }

    fn link(&mut self) -> PortLink {
        self.0.borrow().link.unwrap_or(PortLink::Up)
    }

    fn transmit(&mut self, frame: &[u8]) -> Result<(), PortError> {
        let mut wire = self.0.borrow_mut();
        if wire.link == Some(PortLink::Gone) {
            return Err(PortError::Gone);
        }
        if wire.queued.len() == 4 {
            return Err(PortError::Full);
        }
        wire.queued.push_back(frame.to_vec());
        Ok(())
    }

    fn configure(&mut self, settings: PortSettings) -> Result<(), PortError> {
        let mut wire = self.0.borrow_mut();
        let switched = wire.switches.last().copied();
        wire.configured.push((settings, switched));
        let most = 1500;
        if settings.mtu > most {
            return Err(PortError::Mtu { mtu: settings.mtu, most });
        }
        Ok(())
    }

    fn offloads(&self) -> PathOffloads {
        self.0.borrow().offloads[1]
    }

    fn transmit_with(&mut self, frame: &[u8], work: &TxWork) -> Result<(), PortError> {
        self.transmit(frame)?;
        self.0.borrow_mut().work.push(*work);
        Ok(())
    }

    fn flush(&mut self) {}

    fn receive(&mut self, sink: &mut dyn FnMut(&[u8])) -> usize {
        let frames = core::mem::take(&mut self.0.borrow_mut().from_port);
        frames.iter().for_each(|frame| sink(frame));
        frames.len()
    }

    fn confirmed(&mut self) -> u64 {
        self.0.borrow().confirmed
    }
}

fn at(millis: u64) -> Instant {
    Instant::from_nanos(millis * 1_000_000)
}

fn frame(number: u8) -> Vec<u8> {
    vec![number; 60]
}

fn numbers(wire: &Shared) -> Vec<(Path, u8)> {
    wire.borrow().sent.iter().map(|(path, frame)| (*path, frame[0])).collect()
}

/// A card on its VF.
fn on_vf() -> (Adapter<FakeNic, FakePort>, Shared) {
    let wire = Shared::default();
    wire.borrow_mut().room = 1000;
    wire.borrow_mut().signs.extend([Sign::Ready, Sign::Associated]);
    let mut card = Adapter::new(FakeNic(wire.clone()), AdapterConfig::default());
    poll(&mut card, at(0));
    assert!(card.bind(FakePort(wire.clone()), at(1)).is_ok());
    assert_eq!(wire.borrow().switches, [Path::Vf]);
    complete(&mut card, &wire, Path::Vf, at(2));
    assert_eq!(card.path(), Path::Vf);
    (card, wire)
}

fn poll(card: &mut Adapter<FakeNic, FakePort>, now: Instant) -> Vec<(Path, usize)> {
    let mut seen = Vec::new();
    card.poll(now, &mut |path, frame| seen.push((path, frame.len()))).unwrap();
    seen
}

fn complete(card: &mut Adapter<FakeNic, FakePort>, wire: &Shared, path: Path, now: Instant) {
    wire.borrow_mut().signs.push_back(Sign::SwitchCompleted(path));
    poll(card, now);
}

fn released(card: &mut Adapter<FakeNic, FakePort>) -> Option<bool> {
    core::iter::from_fn(|| card.poll_event()).find_map(|event| match event {
        AdapterEvent::Released { orderly, .. } => Some(orderly),
        _ => None,
    })
}

// F5, F6.
#[test]
fn what_a_vanished_vf_did_not_confirm_goes_out_again_before_anything_newer() {
    let (mut card, wire) = on_vf();
    for number in 1..=4 {
        card.transmit(&frame(number), at(3)).unwrap();
    }
    wire.borrow_mut().confirm(2);
    wire.borrow_mut().link = Some(PortLink::Gone);
    wire.borrow_mut().queued.clear();
    card.transmit(&frame(5), at(4)).unwrap();
    let expected = [
        (Path::Vf, 1),
        (Path::Vf, 2),
        (Path::Synthetic, 3),
        (Path::Synthetic, 4),
        (Path::Synthetic, 5),
    ];
    assert_eq!(numbers(&wire), expected);
    let counters = card.counters();
    assert_eq!((counters.frames_accepted, counters.frames_resent), (5, 2));
    assert_eq!(released(&mut card), Some(false));
    assert!(!card.has_port());
}

#[test]
fn frames_are_sent_again_as_room_comes_and_newer_ones_wait() {
    let (mut card, wire) = on_vf();
    for number in 1..=3 {
        card.transmit(&frame(number), at(3)).unwrap();
    }
    wire.borrow_mut().link = Some(PortLink::Gone);
    wire.borrow_mut().room = 2;
    poll(&mut card, at(4));
    assert_eq!(card.transmit(&frame(4), at(5)), Err(AdapterError::Full(Lack::Backlog)));
    assert_eq!(numbers(&wire), [(Path::Synthetic, 1), (Path::Synthetic, 2)]);
    wire.borrow_mut().room = 10;
    card.transmit(&frame(4), at(6)).unwrap();
    assert_eq!(numbers(&wire)[2..], [(Path::Synthetic, 3), (Path::Synthetic, 4)]);
}

// F4, F6, HISTORY 39: nothing is lost or overtaken when a VF is left in order.
#[test]
fn a_vf_that_is_left_in_order_is_drained_first() {
    let (mut card, wire) = on_vf();
    for number in 1..=3 {
        card.transmit(&frame(number), at(3)).unwrap();
    }
    card.release(Cause::Eject, at(4));
    assert_eq!(wire.borrow().switches, [Path::Vf, Path::Synthetic]);
    assert_eq!(
        card.transmit(&frame(4), at(5)),
        Err(AdapterError::Full(Lack::Drain)),
        "would overtake"
    );
    assert_eq!(released(&mut card), None);
    wire.borrow_mut().confirm(3);
    card.transmit(&frame(4), at(6)).unwrap();
    assert_eq!(released(&mut card), None, "the host has not switched yet");
    complete(&mut card, &wire, Path::Synthetic, at(7));
    assert_eq!(released(&mut card), Some(true));
    let expected = [(Path::Vf, 1), (Path::Vf, 2), (Path::Vf, 3), (Path::Synthetic, 4)];
    assert_eq!(numbers(&wire), expected);
    assert_eq!(card.counters().frames_resent, 0);
}

#[test]
fn a_vf_that_never_confirms_is_given_up_in_time() {
    let (mut card, wire) = on_vf();
    card.transmit(&frame(1), at(3)).unwrap();
    card.release(Cause::Eject, at(4));
    complete(&mut card, &wire, Path::Synthetic, at(5));
    assert_eq!(card.poll_deadline(), Some(at(1004)));
    poll(&mut card, at(1004));
    assert_eq!(numbers(&wire), [(Path::Synthetic, 1)]);
    assert_eq!(released(&mut card), Some(false));
}

// F1.
#[test]
fn both_paths_are_received_from_whatever_the_path() {
    let (mut card, wire) = on_vf();
    wire.borrow_mut().from_nic.push(frame(1));
    wire.borrow_mut().from_port.push(vec![2; 100]);
    assert_eq!(poll(&mut card, at(3)), [(Path::Synthetic, 60), (Path::Vf, 100)]);
    card.release(Cause::Eject, at(4));
    wire.borrow_mut().from_port.push(vec![3; 80]);
    assert_eq!(poll(&mut card, at(5)), [(Path::Vf, 80)]);
    assert_eq!(card.counters().frames_received, 3);
}

// HISTORY 35.
#[test]
fn carrier_loss_is_followed_within_one_poll() {
    let (mut card, wire) = on_vf();
    wire.borrow_mut().link = Some(PortLink::Down);
    poll(&mut card, at(3));
    assert_eq!(card.path(), Path::Synthetic);
    card.transmit(&frame(1), at(4)).unwrap();
    assert_eq!(numbers(&wire), [(Path::Synthetic, 1)]);
    assert!(card.has_port(), "it may come back");
}

#[test]
fn a_full_vf_pushes_back_and_loses_nothing() {
    let (mut card, wire) = on_vf();
    for number in 1..=4 {
        card.transmit(&frame(number), at(3)).unwrap();
    }
    assert_eq!(card.transmit(&frame(5), at(3)), Err(AdapterError::Full(Lack::Port)));
    wire.borrow_mut().confirm(1);
    card.transmit(&frame(5), at(4)).unwrap();
    wire.borrow_mut().confirm(4);
    poll(&mut card, at(5));
    assert!(card.is_quiet());
    assert_eq!(numbers(&wire).len(), 5);
}

// F5: what has to go out again waits for a NIC that is at work, however long that takes.
#[test]
fn a_nic_that_is_not_at_work_costs_no_frame_that_has_to_go_out_again() {
    let (mut card, wire) = on_vf();
    for number in 1..=2 {
        card.transmit(&frame(number), at(3)).unwrap();
    }
    wire.borrow_mut().not_ready = true;
    wire.borrow_mut().link = Some(PortLink::Gone);
    poll(&mut card, at(4));
    assert_eq!(
        card.transmit(&frame(3), at(5)),
        Err(AdapterError::Full(Lack::Backlog)),
        "would overtake"
    );
    assert_eq!((numbers(&wire), card.counters().frames_lost), (vec![], 0));
    wire.borrow_mut().not_ready = false;
    poll(&mut card, at(6));
    assert_eq!(numbers(&wire), [(Path::Synthetic, 1), (Path::Synthetic, 2)]);
    assert_eq!((card.counters().frames_resent, card.counters().frames_lost), (2, 0));
}

#[test]
fn a_frame_for_a_nic_that_is_not_at_work_is_pushed_back_with_the_reason() {
    let wire = Shared::default();
    wire.borrow_mut().not_ready = true;
    let mut card = Adapter::<_, FakePort>::new(FakeNic(wire.clone()), AdapterConfig::default());
    assert_eq!(card.transmit(&frame(1), at(0)), Err(AdapterError::NotReady));
    assert_eq!((card.counters().pushed_back, card.counters().refused), (1, 0));
    wire.borrow_mut().not_ready = false;
    wire.borrow_mut().room = 1;
    card.transmit(&frame(1), at(1)).unwrap();
}

#[test]
fn a_second_port_is_handed_back() {
    let (mut card, wire) = on_vf();
    assert!(card.bind(FakePort(wire), at(3)).is_err());
}

#[test]
fn a_frame_that_is_too_long_is_refused_and_costs_nothing() {
    let (mut card, _) = on_vf();
    let error = card.transmit(&[0; 2000], at(3)).unwrap_err();
    assert_eq!(error, AdapterError::Refused { len: 2000, most: 1518 });
}

#[test]
fn what_was_sent_again_is_not_mistaken_for_newer_frames_when_the_vf_confirms_it_after_all() {
    let (mut card, wire) = on_vf();
    for number in 1..=3 {
        card.transmit(&frame(number), at(3)).unwrap();
    }
    wire.borrow_mut().link = Some(PortLink::Down);
    poll(&mut card, at(4));
    assert_eq!(card.counters().frames_resent, 3, "without carrier nothing is waited for");
    complete(&mut card, &wire, Path::Synthetic, at(5));
    wire.borrow_mut().link = Some(PortLink::Up);
    poll(&mut card, at(6));
    complete(&mut card, &wire, Path::Vf, at(7));
    card.transmit(&frame(4), at(8)).unwrap();
    // The first three go out a second time and are confirmed; the fourth is not, and then the VF vanishes.
    wire.borrow_mut().confirm(3);
    poll(&mut card, at(9));
    wire.borrow_mut().link = Some(PortLink::Gone);
    poll(&mut card, at(10));
    assert_eq!(numbers(&wire).last(), Some(&(Path::Synthetic, 4)));
    let counters = card.counters();
    assert_eq!((counters.frames_resent, counters.frames_lost), (4, 0));
    assert_eq!(
        counters.frames_accepted + counters.frames_resent,
        counters.frames_vf + counters.frames_synthetic
    );
}

// F6: what is on the synthetic path when the host has switched goes first.
#[test]
fn the_vf_waits_until_the_host_has_taken_what_is_on_synthetic() {
    let wire = Shared::default();
    wire.borrow_mut().room = 1000;
    wire.borrow_mut().signs.extend([Sign::Ready, Sign::Associated]);
    let mut card = Adapter::new(FakeNic(wire.clone()), AdapterConfig::default());
    poll(&mut card, at(0));
    assert!(card.bind(FakePort(wire.clone()), at(1)).is_ok());
    card.transmit(&frame(1), at(2)).unwrap();
    wire.borrow_mut().in_flight = 1;
    complete(&mut card, &wire, Path::Vf, at(3));
    assert_eq!(card.path(), Path::Vf);
    assert_eq!(
        card.transmit(&frame(2), at(4)),
        Err(AdapterError::Full(Lack::Drain)),
        "would overtake"
    );
    assert!(!card.is_quiet());
    wire.borrow_mut().in_flight = 0;
    poll(&mut card, at(5));
    card.transmit(&frame(2), at(6)).unwrap();
    wire.borrow_mut().confirm(1);
    assert_eq!(numbers(&wire), [(Path::Synthetic, 1), (Path::Vf, 2)]);
}

// F8, HISTORY 41: the ring has no room for a switch.
#[test]
fn a_full_ring_keeps_frames_on_synthetic_and_the_newest_wish_wins() {
    let wire = Shared::default();
    wire.borrow_mut().room = 1000;
    wire.borrow_mut().no_room_for_switch = true;
    wire.borrow_mut().signs.extend([Sign::Ready, Sign::Associated]);
    let mut card = Adapter::new(FakeNic(wire.clone()), AdapterConfig::default());
    poll(&mut card, at(0));
    assert!(card.bind(FakePort(wire.clone()), at(1)).is_ok());
    card.transmit(&frame(1), at(2)).unwrap();
    assert_eq!((wire.borrow().wish, card.path()), (Some(Path::Vf), Path::Synthetic));
    // For ever: it is said, and frames go on.
    poll(&mut card, at(5001));
    let overdue = core::iter::from_fn(|| card.poll_event())
        .any(|event| matches!(event, AdapterEvent::SwitchOverdue { path: Path::Vf }));
    assert!(overdue);
    card.transmit(&frame(2), at(5002)).unwrap();
    assert_eq!(numbers(&wire), [(Path::Synthetic, 1), (Path::Synthetic, 2)]);
    // The port goes before there is room: the newest wish is all that will be sent.
    card.release(Cause::Eject, at(5003));
    assert_eq!(wire.borrow().wish, Some(Path::Synthetic));
    complete(&mut card, &wire, Path::Synthetic, at(5004));
    assert_eq!(released(&mut card), Some(true));
}

// F9.
#[test]
fn a_channel_that_is_reset_gives_nothing_up_and_returns_to_the_vf() {
    let (mut card, wire) = on_vf();
    for number in 1..=2 {
        card.transmit(&frame(number), at(3)).unwrap();
    }
    wire.borrow_mut().signs.push_back(Sign::Closed);
    poll(&mut card, at(4));
    assert_eq!((card.path(), card.host_path()), (Path::Synthetic, Path::Synthetic));
    // The VF confirms one; the other one is given up on, but there is no channel to send it on.
    wire.borrow_mut().confirm(1);
    wire.borrow_mut().queued.clear();
    poll(&mut card, at(1004));
    assert_eq!(card.transmit(&frame(3), at(1005)), Err(AdapterError::Full(Lack::Backlog)));
    assert_eq!(numbers(&wire), [(Path::Vf, 1)]);
    *card.nic_mut() = FakeNic(wire.clone());
    wire.borrow_mut().signs.extend([Sign::Ready, Sign::Associated]);
    poll(&mut card, at(2000));
    assert_eq!(numbers(&wire), [(Path::Vf, 1), (Path::Synthetic, 2)]);
    assert_eq!(wire.borrow().switches, [Path::Vf, Path::Vf]);
    complete(&mut card, &wire, Path::Vf, at(2001));
    card.transmit(&frame(3), at(2002)).unwrap();
    assert_eq!((card.path(), card.counters().frames_vf), (Path::Vf, 3));
}

// F3, and section 6 item 5.
#[test]
fn the_hosts_notice_is_obeyed_at_once_and_nothing_is_sent_in_answer() {
    let (mut card, wire) = on_vf();
    card.transmit(&frame(1), at(3)).unwrap();
    wire.borrow_mut().confirm(1);
    wire.borrow_mut().signs.push_back(Sign::HostSwitched(Path::Synthetic));
    poll(&mut card, at(4));
    card.transmit(&frame(2), at(5)).unwrap();
    assert_eq!(numbers(&wire), [(Path::Vf, 1), (Path::Synthetic, 2)]);
    assert_eq!(wire.borrow().switches, [Path::Vf], "only what was asked in the beginning");
}

// F4.
#[test]
fn a_withdrawn_association_leaves_the_vf_and_keeps_the_port() {
    let (mut card, wire) = on_vf();
    wire.borrow_mut().signs.push_back(Sign::Disassociated);
    poll(&mut card, at(3));
    assert_eq!(card.path(), Path::Synthetic);
    assert_eq!(wire.borrow().switches, [Path::Vf, Path::Synthetic]);
    assert!(card.has_port());
}

#[test]
fn a_vf_is_full_when_no_more_copies_can_be_kept() {
    let wire = Shared::default();
    wire.borrow_mut().room = 1000;
    wire.borrow_mut().signs.extend([Sign::Ready, Sign::Associated]);
    let config = AdapterConfig { replay_frames: 2, ..AdapterConfig::default() };
    let mut card = Adapter::new(FakeNic(wire.clone()), config);
    poll(&mut card, at(0));
    assert!(card.bind(FakePort(wire.clone()), at(1)).is_ok());
    complete(&mut card, &wire, Path::Vf, at(2));
    for number in 1..=2 {
        card.transmit(&frame(number), at(3)).unwrap();
    }
    assert_eq!(card.transmit(&frame(3), at(4)), Err(AdapterError::Full(Lack::Confirmation)));
    wire.borrow_mut().confirm(1);
    card.transmit(&frame(3), at(5)).unwrap();
    assert_eq!(card.counters().pushed_back, 1);
}

#[test]
fn every_switch_tells_how_long_it_kept_frames_waiting() {
    let (mut card, wire) = on_vf();
    while card.poll_event().is_some() {}
    card.transmit(&frame(1), at(3)).unwrap();
    card.release(Cause::Eject, at(4));
    assert_eq!(card.transmit(&frame(2), at(5)), Err(AdapterError::Full(Lack::Drain)));
    wire.borrow_mut().confirm(1);
    poll(&mut card, at(6));
    card.transmit(&frame(2), at(7)).unwrap();
    let told = core::iter::from_fn(|| card.poll_event()).find_map(|event| match event {
        AdapterEvent::Resumed { path, blackout, pushed_back } => {
            Some((path, blackout, pushed_back))
        }
        _ => None,
    });
    assert_eq!(told, Some((Path::Synthetic, core::time::Duration::from_millis(2), 1)));
}

// F4, F9, HISTORY 36: the guest is suspended while a switch is under way. What the host says of it later is about another channel.
#[test]
fn a_suspend_in_the_middle_of_a_switch_ends_it_and_the_vf_is_used_again_after_the_resume() {
    for to in [Path::Vf, Path::Synthetic] {
        let (mut card, wire) = on_vf();
        card.transmit(&frame(1), at(3)).unwrap();
        wire.borrow_mut().link = Some(PortLink::Down);
        poll(&mut card, at(4));
        if to == Path::Vf {
            complete(&mut card, &wire, Path::Synthetic, at(5));
            wire.borrow_mut().link = Some(PortLink::Up);
            poll(&mut card, at(6));
        }
        assert_eq!(wire.borrow().switches.last(), Some(&to), "under way");
        card.channel_closed(at(7));
        assert_eq!((card.path(), card.is_switching()), (Path::Synthetic, false));
        wire.borrow_mut().link = Some(PortLink::Up);
        let asked = wire.borrow().switches.len();
        complete(&mut card, &wire, to, at(8));
        assert_eq!(card.path(), Path::Synthetic, "an answer of before");
        wire.borrow_mut().signs.extend([Sign::Ready, Sign::Associated]);
        poll(&mut card, at(9));
        assert_eq!(wire.borrow().switches[asked..], [Path::Vf]);
        assert_eq!(card.path(), Path::Synthetic, "not before the completion");
        complete(&mut card, &wire, Path::Vf, at(10));
        assert_eq!(card.path(), Path::Vf);
        assert_eq!(numbers(&wire), [(Path::Synthetic, 1)], "sent again, once");
    }
}

#[path = "adapter_work_tests.rs"]
mod work_tests;

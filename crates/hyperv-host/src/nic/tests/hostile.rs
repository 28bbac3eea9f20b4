//! Guests that send anything at any moment. Whatever they do costs them their channel at most.

use std::time::Duration;

use proptest::prelude::*;
use vmbus::packet::{GpaRange, Outgoing};
use vmbus::{Pfn, Serial};

use super::guest::*;
use crate::switch::{Path, SideState};

#[derive(Clone, Debug)]
enum Step {
    /// An in-band message: type, words, whether a completion is asked for.
    Message(u32, Vec<u32>, bool),
    /// A control message with this body.
    Control(Vec<u32>),
    /// A data message: anything as RNDIS.
    Data(Vec<u8>),
    /// A good frame with these bytes as per-packet information.
    Frame(Vec<u32>, usize),
    /// A GPA-direct message over this many bytes of these pages.
    Direct(u32, u32, u64),
    Complete(u64),
    CompleteAll,
    Peer(u8, usize),
    Vf(bool),
    Link(bool),
    Wait(u64),
    Close,
}

fn step() -> impl Strategy<Value = Step> {
    let kinds = prop_oneof![
        5 => prop::sample::select(vec![1u32, 100, 101, 103, 104, 106, 107, 125, 129, 131, 133]),
        1 => any::<u32>(),
    ];
    let word = || {
        prop_oneof![0u32..20, prop::sample::select(vec![0x10106, 0x1010e, u32::MAX]), any::<u32>()]
    };
    let words = move |most| prop::collection::vec(word(), 0..most);
    prop_oneof![
        2 => (kinds, words(10), any::<bool>()).prop_map(|(k, w, c)| Step::Message(k, w, c)),
        2 => (2u32..9, words(12)).prop_map(|(kind, mut body)| {
            body.insert(0, kind);
            Step::Control(body)
        }),
        1 => prop::collection::vec(any::<u8>(), 0..200).prop_map(Step::Data),
        4 => (words(12), 0usize..2000).prop_map(|(info, len)| Step::Frame(info, len)),
        1 => (0u32..5000, 0u32..5000, 90u64..170).prop_map(|(len, at, page)| Step::Direct(len, at, page)),
        1 => (0u64..40).prop_map(Step::Complete),
        6 => Just(Step::CompleteAll),
        5 => (0u8..4, 0usize..1600).prop_map(|(kind, len)| Step::Peer(kind, len)),
        1 => any::<bool>().prop_map(Step::Vf),
        1 => any::<bool>().prop_map(Step::Link),
        2 => (0u64..2000).prop_map(Step::Wait),
        1 => Just(Step::Close),
    ]
}

fn apply(rig: &mut Rig, step: Step) {
    match step {
        Step::Message(kind, mut words, completion) => {
            words.insert(0, kind);
            words.truncate(10);
            rig.say(&words, completion);
        }
        Step::Control(message) => {
            rig.control(&message);
        }
        Step::Data(message) => {
            rig.transmit(1, &message);
        }
        Step::Frame(info, len) => {
            rig.transmit(2, &Rig::packet(&info, &frame(3, len)));
        }
        Step::Direct(len, offset, page) => {
            let pages = (u64::from(len) + u64::from(offset % 4096)).div_ceil(4096).max(1);
            let frames: Vec<_> = (page..page + pages).map(Pfn).collect();
            let range = GpaRange { byte_count: len, byte_offset: offset % 4096, frames: &frames };
            let id = rig.id();
            let payload = bytes(&[107, 0, u32::MAX, 0]);
            rig.send(&Outgoing::GpaDirect {
                transaction_id: id,
                ranges: &[range],
                payload: &payload,
            });
        }
        Step::Complete(id) => rig.complete(id, &[108, 1]),
        Step::CompleteAll => drop(rig.hear_and_complete()),
        Step::Peer(kind, len) => {
            let mut sent = frame(kind, len);
            sent.iter_mut().take(6).for_each(|byte| *byte = [2, 0xff, 1, 2][usize::from(kind)]);
            let _ = rig.port.peer_transmit(&sent, rig.now);
        }
        Step::Vf(true) => rig.service.vf_added(Serial(7), rig.now),
        Step::Vf(false) => rig.service.vf_lost(),
        Step::Link(up) => rig.service.set_link(up),
        Step::Wait(millis) => rig.now = rig.now + Duration::from_millis(millis),
        Step::Close => rig.service.close(&mut rig.port),
    }
    rig.poll();
}

proptest! {
    #[test]
    fn no_guest_breaks_the_service(steps in prop::collection::vec(step(), 0..60)) {
        let mut rig = rig();
        rig.port.set_side(Path::Vf, SideState::Up);
        rig.start();
        for step in steps {
            apply(&mut rig, step);
            prop_assert_eq!(rig.port.counters().unaccounted(), (0, 0));
            prop_assert_eq!(rig.port.data_path(), rig.service.data_path());
            if let Some(due) = rig.service.poll_deadline() {
                prop_assert!(due > rig.now, "what is due was done");
            }
            if !rig.service.is_open() {
                prop_assert_eq!(rig.service.counters().lent, 0);
                while rig.service.poll_event().is_some() {}
                rig.open();
                rig.start();
            }
        }
    }
}

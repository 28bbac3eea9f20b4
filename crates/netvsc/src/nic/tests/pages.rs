//! Frames out of the caller's own pages.

extern crate std;
use std::vec;
use std::vec::Vec;

use vmbus::memory::{SharedMemory, SharedPages};

use super::host::*;
use crate::nic::*;
use crate::nvsp::Status;
use crate::rndis::packet::VlanTag;

/// A NIC at work that lends whatever it is given, and eight pages that the host can read, from number 9000 on.
fn lender(shape: Shape) -> (Rig, SharedPages) {
    let config = NicConfig { lend_from: 0, ..shape.config };
    let mtu = config.mtu;
    let mut rig = rig_of(Shape { config, ..shape });
    rig.mtu = mtu;
    let memory = pages(9000, 8);
    rig.memory.push(memory.clone());
    rig.settle();
    assert!(matches!(rig.events()[..], [NicEvent::Ready { .. }]));
    (rig, memory)
}

/// A frame whose bytes from `head` on lie at `places`.
struct Paged {
    frame: Vec<u8>,
    head: usize,
    body: Vec<PageSlice>,
}

impl Paged {
    fn new(memory: &SharedPages, head: usize, places: &[(usize, usize)]) -> Self {
        let len = places.iter().map(|(_, len)| len).sum::<usize>();
        let frame = frame(head + len, 5);
        let mut at = head;
        let body = places.iter().map(|(offset, len)| {
            memory.write(*offset, &frame[at..at + len]).unwrap();
            at += len;
            PageSlice::new(memory.clone(), *offset, *len).unwrap()
        });
        Self { body: body.collect(), frame, head }
    }

    fn send(&self, rig: &mut Rig, token: u64) -> Result<Lending, TransmitError> {
        rig.nic.transmit_pages(&PagedFrame {
            head: &self.frame[..self.head],
            body: &self.body,
            work: TxWork::NONE,
            token,
        })
    }
}

fn returned(rig: &mut Rig) -> Vec<(u64, Option<Status>)> {
    let returned = std::iter::from_fn(|| rig.nic.poll_returned());
    returned.map(|Returned { token, status }| (token, status)).collect()
}

#[test]
fn a_frame_is_read_where_it_lies_and_its_pages_come_back_with_its_completion() {
    let (mut rig, memory) = lender(Shape::default());
    let paged = Paged::new(&memory, 54, &[(100, 1000), (5000, 446)]);
    assert_eq!(paged.send(&mut rig, 77), Ok(Lending::Lent));
    rig.nic.flush();
    rig.serve();
    // The RNDIS header and the head in the section, the rest by two lists.
    assert_eq!(rig.lists, [[(100, 1000, vec![9000]), (904, 446, vec![9001])]]);
    assert_eq!(rig.got[0].data, paged.frame);
    assert_eq!(returned(&mut rig), [], "the host has answered, and nobody has looked");
    rig.settle();
    assert_eq!(returned(&mut rig), [(77, Some(Status::SUCCESS))]);
    assert_eq!(returned(&mut rig), [], "once");
    let stats = rig.nic.stats();
    assert_eq!((stats.tx_frames, stats.tx_bytes, stats.tx_lent), (1, 1500, 1));
    assert_eq!((stats.tx_messages, stats.tx_completed, stats.bad.total()), (1, 1, 0));
}

// HISTORY 69.
#[test]
fn nine_thousand_bytes_over_three_pages_are_one_range_or_three() {
    let config = NicConfig { mtu: 9000, ..NicConfig::default() };
    let (mut rig, memory) = lender(Shape { config, send_pages: 60, ..Shape::default() });
    let whole = Paged::new(&memory, 14, &[(96, 9000)]);
    let apart = Paged::new(&memory, 14, &[(13_000, 3000), (17_000, 3000), (21_000, 3000)]);
    for (paged, token) in [(&whole, 1), (&apart, 2)] {
        assert_eq!(paged.send(&mut rig, token), Ok(Lending::Lent));
    }
    rig.nic.flush();
    rig.settle();
    let counts: Vec<_> = rig.lists.iter().map(Vec::len).collect();
    assert_eq!(counts, [1, 3]);
    assert_eq!(rig.lists[0][0], (96, 9000, vec![9000, 9001, 9002]));
    let data: Vec<_> = rig.got.iter().map(|got| &got.data).collect();
    assert_eq!(data, [&whole.frame, &apart.frame]);
    assert_eq!(returned(&mut rig).len(), 2);
}

#[test]
fn a_frame_that_the_host_refused_comes_back_with_how() {
    let (mut rig, memory) = lender(Shape::default());
    rig.held.frames = true;
    let paged = Paged::new(&memory, 14, &[(0, 100)]);
    for token in 1..=3 {
        assert_eq!(paged.send(&mut rig, token), Ok(Lending::Lent));
    }
    rig.nic.flush();
    rig.settle();
    let ids: Vec<_> = rig.waiting.drain(..).collect();
    // In the order of the host, and by what it says.
    rig.complete_send(ids[1], Status::FAILURE);
    rig.complete(ids[0], &[]);
    rig.complete_send(ids[2], Status::SUCCESS);
    rig.complete_send(ids[2], Status::SUCCESS);
    rig.settle();
    let expected =
        [(2, Some(Status::FAILURE)), (1, Some(Status::NONE)), (3, Some(Status::SUCCESS))];
    assert_eq!(returned(&mut rig), expected);
    let stats = rig.nic.stats();
    assert_eq!((stats.tx_completed, stats.tx_refused), (3, 2));
    assert_eq!((stats.bad.completion, stats.bad.answer), (1, 1));
}

#[test]
fn frames_from_pages_keep_their_place_among_others() {
    let (mut rig, memory) = lender(Shape::default());
    let paged = Paged::new(&memory, 14, &[(0, 300)]);
    rig.nic.transmit(&frame(60, 1)).unwrap();
    rig.nic.transmit(&frame(61, 2)).unwrap();
    assert_eq!(paged.send(&mut rig, 1), Ok(Lending::Lent));
    rig.nic.transmit(&frame(62, 3)).unwrap();
    assert!(!rig.to_host.take(), "nothing is shown before the flush");
    rig.nic.flush();
    rig.settle();
    let lengths: Vec<_> = rig.got.iter().map(|got| (got.data.len(), got.message)).collect();
    assert_eq!(lengths, [(60, 0), (61, 0), (314, 1), (62, 2)]);
}

#[test]
fn short_and_scattered_frames_are_copied_and_do_not_come_back() {
    let config = NicConfig { lend_from: 500, ..NicConfig::default() };
    let mut rig = rig_of(Shape { config, ..Shape::default() });
    rig.chain = 4;
    let memory = pages(9000, 8);
    rig.memory.push(memory.clone());
    rig.settle();
    assert_eq!(rig.nic.info().page_ranges, 3, "and the section with the header");
    let short = Paged::new(&memory, 14, &[(0, 499)]);
    assert_eq!(short.send(&mut rig, 1), Ok(Lending::Copied));
    let long = Paged::new(&memory, 14, &[(0, 200), (300, 200), (600, 200)]);
    assert_eq!(long.send(&mut rig, 2), Ok(Lending::Lent));
    let scattered = Paged::new(&memory, 14, &[(1000, 200), (1300, 200), (1600, 200), (1900, 200)]);
    assert_eq!(scattered.send(&mut rig, 3), Ok(Lending::Copied));
    let bare = Paged::new(&memory, 60, &[]);
    assert_eq!(bare.send(&mut rig, 4), Ok(Lending::Copied));
    rig.nic.flush();
    rig.settle();
    let data: Vec<_> = rig.got.iter().map(|got| &got.data).collect();
    assert_eq!(data, [&short.frame, &long.frame, &scattered.frame, &bare.frame]);
    assert_eq!(returned(&mut rig), [(2, Some(Status::SUCCESS))]);
    assert_eq!(rig.nic.stats().tx_bytes, 513 + 614 + 814 + 60);
}

#[test]
fn a_host_that_takes_no_lists_gets_copies() {
    let mut rig = rig_of(Shape {
        config: NicConfig { lend_from: 0, ..NicConfig::default() },
        ..Shape::default()
    });
    rig.chain = 0;
    rig.settle();
    assert_eq!(rig.nic.info().page_ranges, 0);
    let memory = pages(9000, 1);
    let paged = Paged::new(&memory, 14, &[(0, 400)]);
    assert_eq!(paged.send(&mut rig, 1), Ok(Lending::Copied));
    rig.nic.flush();
    rig.settle();
    assert_eq!(rig.got[0].data, paged.frame);
}

#[test]
fn an_isolated_guest_lends_nothing() {
    let config = NicConfig { isolated: true, ..NicConfig::default() };
    let (mut rig, memory) = lender(Shape { config, ..Shape::default() });
    assert_eq!(rig.nic.info().page_ranges, 0);
    let paged = Paged::new(&memory, 14, &[(0, 400)]);
    let error = TransmitError::Pages(PagesError::Isolated);
    assert_eq!(paged.send(&mut rig, 1), Err(error));
}

// A device of uio tells nobody the numbers of page frames, nor are those of other memory to be had there.
#[test]
fn where_page_frames_have_no_numbers_nothing_is_lent() {
    let (mut rig, memory) = lender(Shape { numbered: false, ..Shape::default() });
    assert_eq!(rig.nic.info().page_ranges, 0);
    let paged = Paged::new(&memory, 14, &[(0, 400)]);
    let error = TransmitError::Pages(PagesError::NoFrameNumbers);
    assert_eq!(paged.send(&mut rig, 1), Err(error));
    // Those of some memory are known and those of other are not.
    let (mut rig, memory) = lender(Shape::default());
    let mut paged = Paged::new(&memory, 14, &[(0, 200), (4096, 200)]);
    paged.body[1] = PageSlice::new(memory.without_frames(), 4096, 200).unwrap();
    let error = TransmitError::Pages(PagesError::UnknownPages(1));
    assert_eq!(paged.send(&mut rig, 1), Err(error));
    assert_eq!((rig.nic.stats().tx_frames, returned(&mut rig)), (0, vec![]));
}

#[test]
fn what_cannot_be_sent_out_of_pages_is_refused_by_name() {
    let (mut rig, memory) = lender(Shape::default());
    let runt = Paged { frame: frame(100, 1), head: 13, body: vec![] };
    assert_eq!(runt.send(&mut rig, 1), Err(TransmitError::TooShort(13)));
    let long = Paged::new(&memory, 14, &[(0, 1501)]);
    let error = TransmitError::TooLong { len: 1515, most: 1514 };
    assert_eq!(long.send(&mut rig, 1), Err(error));
    rig.nic.shutdown(rig.now);
    let good = Paged::new(&memory, 14, &[(0, 400)]);
    assert_eq!(good.send(&mut rig, 1), Err(TransmitError::NotReady));
    let errors = [PagesError::UnknownPages(2), PagesError::Scattered { ranges: 40, most: 32 }];
    let said: Vec<_> = errors.iter().map(std::string::ToString::to_string).collect();
    assert_eq!(
        said[0],
        "part 2 of the frame has pages of unknown numbers: expected memory with one for each page"
    );
    assert_eq!(
        said[1],
        "a frame in 40 ranges of pages: expected at most 32, as many as the host takes"
    );
}

#[test]
fn a_tag_goes_beside_a_frame_in_pages_too() {
    let (mut rig, memory) = lender(Shape::default());
    let mut paged = Paged::new(&memory, 18, &[(0, 100)]);
    paged.frame[12..16].copy_from_slice(&[0x81, 0, 0x60, 0x07]);
    assert_eq!(paged.send(&mut rig, 1), Ok(Lending::Lent));
    rig.nic.flush();
    rig.settle();
    let plain = [&paged.frame[..12], &paged.frame[16..]].concat();
    assert_eq!(rig.got, [Got { data: plain, tag: Some(VlanTag(0x6007)), message: 0 }]);
}

#[test]
fn frames_wait_for_sections_for_the_ring_and_for_whom_they_come_back_to() {
    let (mut rig, memory) = lender(Shape { send_pages: 60, ..Shape::default() });
    rig.held.frames = true;
    let paged = Paged::new(&memory, 14, &[(0, 400)]);
    let mut sent = 0;
    let full = loop {
        match paged.send(&mut rig, sent) {
            Ok(_) => sent += 1,
            Err(error) => break error,
        }
    };
    assert_eq!(full, TransmitError::Full(Lack::Section));
    assert_eq!(sent, 60 * 4096 / SECTION as u64 - 1);
    assert!(rig.to_host.take(), "what was taken is shown");
    rig.serve();
    let ids: Vec<_> = rig.waiting.drain(..).collect();
    for id in ids {
        rig.complete_send(id, Status::SUCCESS);
    }
    rig.held.frames = false;
    rig.settle();
    // They have come back, and nobody has asked for them.
    let full = loop {
        match paged.send(&mut rig, sent) {
            Ok(_) => sent += 1,
            Err(TransmitError::Full(Lack::Section)) => rig.settle(),
            Err(error) => break error,
        }
    };
    assert_eq!((full, sent), (TransmitError::Full(Lack::Return), 1024));
    rig.settle();
    assert_eq!(returned(&mut rig).len(), 1024);
    assert_eq!(paged.send(&mut rig, 1), Ok(Lending::Lent));
}

#[test]
fn a_full_ring_is_a_value_and_takes_no_pages() {
    let (mut rig, memory) = lender(Shape { up_pages: 2, send_pages: 200, ..Shape::default() });
    rig.held.frames = true;
    let paged = Paged::new(&memory, 14, &[(0, 10), (20, 10), (40, 10), (60, 10), (80, 10)]);
    let mut sent = 0;
    let full = loop {
        match paged.send(&mut rig, sent) {
            Ok(_) => sent += 1,
            Err(error) => break error,
        }
    };
    assert_eq!(full, TransmitError::Full(Lack::Ring));
    let busy = rig.nic.busy_slots();
    assert_eq!(paged.send(&mut rig, sent), Err(full));
    assert_eq!(rig.nic.busy_slots(), busy, "the slot is free again");
    rig.held.frames = false;
    rig.nic.flush();
    rig.settle();
    assert_eq!(paged.send(&mut rig, sent), Ok(Lending::Lent), "the host has made room");
}

#[test]
fn pages_stay_as_long_as_the_host_may_read_them() {
    let (mut rig, memory) = lender(Shape::default());
    rig.held.frames = true;
    rig.memory.clear();
    let paged = Paged::new(&memory, 14, &[(0, 400)]);
    assert_eq!(paged.send(&mut rig, 1), Ok(Lending::Lent));
    let weak = memory.downgrade();
    drop((memory, paged));
    assert!(weak.is_alive(), "the NIC has a view");
    rig.memory.extend(weak.upgrade());
    rig.nic.flush();
    rig.settle();
    rig.memory.clear();
    let id = rig.waiting.pop_front().unwrap();
    rig.complete_send(id, Status::SUCCESS);
    rig.settle();
    assert!(!weak.is_alive(), "nobody holds them any more");
    assert_eq!(returned(&mut rig), [(1, Some(Status::SUCCESS))]);
}

#[test]
fn what_is_never_completed_comes_back_without_a_status() {
    let (mut rig, memory) = lender(Shape::default());
    rig.held.frames = true;
    let paged = Paged::new(&memory, 14, &[(0, 400)]);
    for token in [1, 2] {
        assert_eq!(paged.send(&mut rig, token), Ok(Lending::Lent));
    }
    rig.nic.flush();
    rig.settle();
    rig.nic.abandon(rig.now);
    rig.settle();
    assert_eq!(returned(&mut rig), [(1, None), (2, None)]);
    assert!(rig.events().contains(&NicEvent::Stopped));
    rig.memory.clear();
    let weak = memory.downgrade();
    drop((memory, paged));
    assert!(weak.is_alive(), "the channel is not closed yet");
    drop(rig.restart().unwrap());
    assert!(!weak.is_alive());
    rig.settle();
    assert_eq!(returned(&mut rig), []);
}

#[test]
fn pages_go_with_what_is_left_when_a_nic_begins_anew_whether_that_works_or_not() {
    for works in [true, false] {
        let (mut rig, memory) = lender(Shape::default());
        rig.held.frames = true;
        let paged = Paged::new(&memory, 14, &[(0, 400)]);
        assert_eq!(paged.send(&mut rig, 1), Ok(Lending::Lent));
        rig.nic.flush();
        rig.settle();
        // The channel has failed and is not closed: the host may still read.
        rig.down.store_u32(0, 5).unwrap();
        assert!(rig.try_poll().is_err());
        rig.memory.clear();
        let weak = memory.downgrade();
        drop((memory, paged));
        rig.break_next = !works;
        let remains = match rig.restart() {
            Ok(remains) => {
                assert!(works);
                remains
            }
            Err(RestartError { error, remains }) => {
                assert!(!works && matches!(error, ConfigError::Channel(_)), "{error}");
                *remains
            }
        };
        assert!(weak.is_alive(), "the caller has a view, working: {works}");
        assert_eq!(remains.lent.len(), 1);
        assert_eq!(returned(&mut rig), [(1, None)]);
        drop(remains);
        assert!(!weak.is_alive());
        if !works {
            let again = rig.restart().expect("a NIC that has failed can begin anew");
            assert!(again.lent.is_empty());
        }
        rig.settle();
        assert!(rig.nic.info().ready);
    }
}

#[test]
fn pages_go_with_what_is_left_when_a_nic_is_taken_apart_before_the_host_has_answered() {
    let (mut rig, memory) = lender(Shape::default());
    rig.held.frames = true;
    let paged = Paged::new(&memory, 14, &[(0, 400)]);
    assert_eq!(paged.send(&mut rig, 1), Ok(Lending::Lent));
    rig.nic.shutdown(rig.now);
    rig.settle();
    rig.pass(NicConfig::default().deadline);
    assert_eq!(rig.events(), [NicEvent::Overdue { step: Step::Drain }]);
    rig.memory.clear();
    let weak = memory.downgrade();
    drop((memory, paged));
    let remains = rig.nic.into_parts();
    assert_eq!((remains.lent.len(), weak.is_alive()), (1, true), "the host may still read");
    drop(remains);
    assert!(!weak.is_alive());
}

#[test]
fn a_broken_ring_gives_back_what_was_lent() {
    let (mut rig, memory) = lender(Shape::default());
    rig.held.frames = true;
    let paged = Paged::new(&memory, 14, &[(0, 400)]);
    assert_eq!(paged.send(&mut rig, 9), Ok(Lending::Lent));
    rig.nic.flush();
    rig.settle();
    rig.down.store_u32(0, 5).unwrap();
    assert!(rig.try_poll().is_err());
    assert_eq!(returned(&mut rig), [(9, None)]);
}

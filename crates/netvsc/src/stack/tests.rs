extern crate std;
#[cfg(feature = "embassy")]
use std::sync::Arc;
#[cfg(feature = "embassy")]
use std::sync::atomic::{AtomicUsize, Ordering};
#[cfg(feature = "embassy")]
use std::task::{Wake, Waker};
use std::vec;
use std::vec::Vec;

use super::*;
#[cfg(feature = "embassy")]
use crate::MacAddress;
use crate::adapter::{Frame, Refused};
use crate::nic::{Lack, TxFrame};
use crate::rndis::packet::ReceiveChecksum;

/// A card that keeps what it is given, up to a number of frames, and receives what it is told to.
#[derive(Debug, Default)]
struct Loop {
    arriving: Vec<Vec<u8>>,
    sent: Vec<Vec<u8>>,
    work: Vec<crate::nic::TxWork>,
    room: usize,
    flushes: usize,
    unplugged: bool,
    events: Vec<usize>,
}

impl Card for Loop {
    type Error = core::convert::Infallible;
    type Event = usize;

    fn poll(&mut self, _: Instant, sink: &mut dyn FnMut(&dyn Frame)) -> Result<(), Self::Error> {
        self.arriving.drain(..).for_each(|frame| sink(&frame.as_slice()));
        Ok(())
    }

    fn transmit(&mut self, frame: &[u8], _: Instant) -> Result<(), Refused> {
        match (frame.len(), self.room) {
            (0..14, _) => Err(Refused::Never),
            (_, 0) => Err(Refused::Full(Lack::Ring)),
            _ => {
                self.room -= 1;
                self.sent.push(frame.to_vec());
                Ok(())
            }
        }
    }

    fn transmit_with(&mut self, frame: &TxFrame<'_>, now: Instant) -> Result<(), Refused> {
        self.transmit(frame.pieces[0], now)?;
        self.work.push(frame.work());
        Ok(())
    }

    fn flush(&mut self) {
        self.flushes += 1;
    }

    fn poll_deadline(&self) -> Option<Instant> {
        None
    }

    fn poll_event(&mut self) -> Option<usize> {
        self.events.pop()
    }

    fn is_connected(&self) -> bool {
        !self.unplugged
    }
}

fn device(send: usize, receive: usize) -> Device<Loop> {
    Device::new(Loop::default(), FramesConfig { send, receive, ..FramesConfig::default() })
}

fn send(device: &mut Device<Loop>, byte: u8, len: usize) -> bool {
    let room = !device.frames.is_full();
    if room {
        device.frames.outgoing.push_back((vec![byte; len], crate::nic::TxWork::NONE));
    }
    room
}

#[test]
fn frames_wait_in_order_until_the_card_has_room_and_are_flushed_together() {
    let mut device = device(3, 3);
    assert!((1..=3).all(|byte| send(&mut device, byte, 60)));
    assert!(!send(&mut device, 4, 60), "as many as may wait");
    device.card_mut().room = 2;
    assert!(device.poll(Instant::ZERO).unwrap());
    assert_eq!((device.card().sent.len(), device.card().flushes), (2, 1));
    assert!(send(&mut device, 4, 60), "room again");
    device.card_mut().room = 2;
    device.poll(Instant::ZERO).unwrap();
    let firsts: Vec<u8> = device.card().sent.iter().map(|frame| frame[0]).collect();
    assert_eq!(firsts, [1, 2, 3, 4]);
    assert!(!device.poll(Instant::ZERO).unwrap(), "nothing happened");
    assert_eq!(device.card().flushes, 2);
}

#[test]
fn a_frame_that_can_never_be_sent_does_not_hold_up_the_next() {
    let mut device = device(3, 3);
    send(&mut device, 1, 5);
    send(&mut device, 2, 60);
    device.card_mut().room = 1;
    device.poll(Instant::ZERO).unwrap();
    assert_eq!((device.card().sent.len(), device.frames().refused()), (1, 1));
}

#[test]
fn received_frames_beyond_the_queue_are_dropped_and_counted() {
    let mut device = device(1, 2);
    device.card_mut().arriving = vec![vec![1; 60], vec![2; 60], vec![3; 60]];
    assert!(device.poll(Instant::ZERO).unwrap());
    assert_eq!((device.frames().to_receive(), device.frames().dropped()), (2, 1));
    assert_eq!(device.frames.incoming[0][0], 1);
}

#[test]
fn of_events_that_nobody_takes_the_newest_are_kept() {
    let mut device = device(1, 1);
    device.card_mut().events = (0..300).rev().collect();
    assert!(!device.poll(Instant::ZERO).unwrap(), "events are not for the stack");
    assert!(device.card().events.is_empty(), "nothing is left to keep the card from reading");
    assert_eq!((device.poll_event(), device.events_lost()), (Some(44), 44));
    assert_eq!(core::iter::from_fn(|| device.poll_event()).last(), Some(299));
}

#[test]
fn the_stacks_link_is_the_cards() {
    let card = Loop { unplugged: true, ..Loop::default() };
    let mut device = Device::new(card, FramesConfig::default());
    assert!(!device.frames().has_link(), "it is not at work yet");
    for unplugged in [false, true, false] {
        device.card_mut().unplugged = unplugged;
        assert!(device.poll(Instant::ZERO).unwrap(), "the stack should know");
        assert_eq!(device.frames().has_link(), !unplugged);
        assert!(!device.poll(Instant::ZERO).unwrap());
    }
}

#[cfg(feature = "smoltcp")]
#[test]
fn smoltcp_gets_a_frame_only_with_room_for_an_answer() {
    use ::smoltcp::phy::{Device as Phy, RxToken, TxToken};
    use ::smoltcp::time::Instant as Time;
    let mut device = device(1, 2);
    device.card_mut().arriving = vec![vec![1; 60], vec![2; 60]];
    device.poll(Instant::ZERO).unwrap();
    let (received, room) = Phy::receive(&mut device, Time::ZERO).unwrap();
    assert_eq!(RxToken::consume(received, |frame| frame[0]), 1);
    // An answer takes the only place there is; the next frame has to wait for it.
    TxToken::consume(room, 60, |buffer| buffer[0] = 9);
    assert!(Phy::receive(&mut device, Time::ZERO).is_none());
    device.card_mut().room = 1;
    device.poll(Instant::ZERO).unwrap();
    assert_eq!(device.card().sent[0][0], 9);
    let (received, _) = Phy::receive(&mut device, Time::ZERO).unwrap();
    assert_eq!(RxToken::consume(received, |frame| frame[0]), 2);
}

#[cfg(feature = "smoltcp")]
#[test]
fn smoltcp_is_told_to_do_checksums_itself() {
    use ::smoltcp::phy::{Checksum, Device as _, Medium};
    let capabilities = device(1, 1).capabilities();
    assert_eq!(capabilities.medium, Medium::Ethernet);
    assert_eq!(capabilities.max_transmission_unit, 1514);
    for checksum in
        [capabilities.checksum.ipv4, capabilities.checksum.tcp, capabilities.checksum.udp]
    {
        assert!(matches!(checksum, Checksum::Both));
    }
}

#[cfg(feature = "smoltcp")]
#[test]
fn a_stack_that_trusts_is_told_to_check_neither_tcp_nor_ipv4() {
    use ::smoltcp::phy::{Checksum, Device as _};
    let config = FramesConfig { trust: true, ..FramesConfig::default() };
    let mut device = Device::new(Loop::default(), config);
    let checksum = device.capabilities().checksum;
    assert!(matches!((checksum.ipv4, checksum.tcp), (Checksum::Tx, Checksum::Tx)));
    assert!(matches!(checksum.udp, Checksum::Both));
    // So what is wrong does not come as far: an IPv4 header whose sum is.
    let mut frame = vec![2; 12];
    frame.extend([8, 0, 0x45, 0, 0, 20, 0, 0, 0, 0, 64, 17, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
    device.card_mut().arriving = vec![frame];
    device.poll(Instant::ZERO).unwrap();
    assert_eq!((device.frames().to_receive(), device.frames().corrupt()), (0, 1));
}

/// Counts how often a task is woken.
#[cfg(feature = "embassy")]
#[derive(Default)]
struct Count(AtomicUsize);

#[cfg(feature = "embassy")]
impl Wake for Count {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

#[cfg(feature = "embassy")]
impl Count {
    /// Since this was asked last.
    fn woken(&self) -> usize {
        self.0.swap(0, Ordering::Relaxed)
    }
}

#[cfg(feature = "embassy")]
#[test]
fn embassy_is_woken_by_frames_by_room_and_by_the_link() {
    use embassy_net_driver::{Driver, HardwareAddress, LinkState, RxToken, TxToken};
    use std::task::Context;

    let count = Arc::new(Count::default());
    let waker = Waker::from(count.clone());
    let mut context = Context::from_waker(&waker);
    let woken = || count.woken();

    let (mut runner, mut driver) = device(1, 2).split();
    assert!(driver.receive(&mut context).is_none());
    runner.card_mut().arriving = vec![vec![1; 60]];
    runner.poll(Instant::ZERO).unwrap();
    assert_eq!(woken(), 1, "a frame came");
    let (received, room) = driver.receive(&mut context).unwrap();
    // As smoltcp does it: the answer is written while the frame is read.
    let len = RxToken::consume(received, |frame| {
        TxToken::consume(room, 60, |buffer| buffer[0] = 9);
        frame.len()
    });
    assert_eq!(len, 60);
    assert!(driver.transmit(&mut context).is_none());
    assert_eq!(woken(), 0);
    runner.card_mut().room = 1;
    runner.poll(Instant::ZERO).unwrap();
    assert_eq!((woken(), runner.card().sent[0][0]), (1, 9), "room came back");
    assert!(driver.link_state(&mut context) == LinkState::Up);
    runner.card_mut().unplugged = true;
    runner.poll(Instant::ZERO).unwrap();
    assert_eq!(woken(), 1, "the link changed");
    assert!(driver.link_state(&mut context) == LinkState::Down);
    assert_eq!(driver.hardware_address(), HardwareAddress::Ethernet([0; 6]));
    runner.frames().with(|frames| frames.set_mac(MacAddress([2; 6])));
    assert_eq!(driver.hardware_address(), HardwareAddress::Ethernet([2; 6]));

    runner.card_mut().unplugged = false;
    runner.poll(Instant::ZERO).unwrap();
    assert!(driver.link_state(&mut context) == LinkState::Up);
    woken();
    drop(runner);
    assert_eq!(woken(), 1, "nobody carries frames any more");
    assert!(driver.link_state(&mut context) == LinkState::Down);
}

#[cfg(feature = "embassy")]
#[test]
fn the_task_of_the_card_is_woken_by_what_the_stack_sends() {
    use embassy_net_driver::{Driver, TxToken};
    use std::task::{Context, Poll};

    let count = Arc::new(Count::default());
    let waker = Waker::from(count.clone());
    let mut context = Context::from_waker(&waker);
    let (mut runner, mut driver) = device(2, 2).split();
    let send = |driver: &mut embassy::StackDriver| {
        let mut context = Context::from_waker(Waker::noop());
        let room = driver.transmit(&mut context).expect("room");
        TxToken::consume(room, 60, |buffer| buffer[0] = 1);
    };
    assert!(runner.poll_queued(&mut context).is_pending());
    send(&mut driver);
    assert_eq!(count.woken(), 1);
    assert_eq!(runner.poll_queued(&mut context), Poll::Ready(()));
    assert!(runner.poll_queued(&mut context).is_pending(), "it was told");
    // A card without room is not asked again and again: it rings when it has.
    send(&mut driver);
    assert_eq!(count.woken(), 1);
    runner.poll(Instant::ZERO).unwrap();
    assert!(runner.card().sent.is_empty() && runner.poll_queued(&mut context).is_pending());
    runner.card_mut().room = 2;
    runner.poll(Instant::ZERO).unwrap();
    assert_eq!((runner.card().sent.len(), count.woken()), (2, 0));
}

#[test]
fn frames_that_the_host_found_right_and_did_not_sum_get_their_checksums() {
    use ReceiveChecksum as C;
    struct Unsummed(Vec<u8>);
    impl Frame for Unsummed {
        fn len(&self) -> usize {
            self.0.len()
        }

        fn copy_to(&self, out: &mut [u8]) -> usize {
            self.0.as_slice().copy_to(out)
        }

        fn checksum(&self) -> C {
            C::IP_GOOD | C::UDP_GOOD | C::IP_VALUE_INVALID | C::TCP_VALUE_INVALID
        }
    }
    // A datagram of 9 bytes, once as another guest of the host sent it.
    let mut right = vec![2; 12];
    right.extend([8, 0, 0x45, 0, 0, 37, 0, 0, 0x40, 0, 64, 17, 0x26, 0xc6]);
    right.extend([10, 0, 0, 1, 10, 0, 0, 2, 0, 80, 0, 81, 0, 17, 0xc4, 0x7a]);
    right.extend(*b"ninebytes");
    let mut unsummed = right.clone();
    for field in [24, 40] {
        unsummed[field..field + 2].copy_from_slice(&[0xee, 0xee]);
    }
    for trust in [false, true] {
        let mut frames = Frames::new(FramesConfig { trust, ..FramesConfig::default() });
        frames.push_frame(&Unsummed(unsummed.clone()));
        assert_eq!(frames.incoming.pop_front().as_ref(), Some(&right), "trusting: {trust}");
    }
}

#[test]
fn frames_that_the_host_found_damaged_are_dropped_and_counted() {
    struct Found(ReceiveChecksum);
    impl Frame for Found {
        fn len(&self) -> usize {
            60
        }

        fn copy_to(&self, out: &mut [u8]) -> usize {
            out.len().min(60)
        }

        fn checksum(&self) -> ReceiveChecksum {
            self.0
        }
    }
    use ReceiveChecksum as C;
    let mut frames = device(1, 9).frames;
    for bad in [C::TCP_BAD, C::UDP_BAD | C::IP_GOOD, C::IP_BAD] {
        frames.push_frame(&Found(bad));
    }
    for good in [C::empty(), C::TCP_GOOD | C::IP_GOOD, C::TCP_VALUE_INVALID, C::LOOPBACK] {
        frames.push_frame(&Found(good));
    }
    assert_eq!((frames.corrupt(), frames.to_receive(), frames.dropped()), (3, 4, 0));
}

extern crate std;
use std::vec;
use std::vec::Vec;

use super::*;
use crate::adapter::{Frame, Refused};
use crate::nic::TxFrame;
use crate::rndis::packet::ReceiveChecksum;

/// A card that keeps what it is given, up to a number of frames, and receives what it is told to.
#[derive(Debug, Default)]
struct Loop {
    arriving: Vec<Vec<u8>>,
    sent: Vec<Vec<u8>>,
    work: Vec<crate::nic::TxWork>,
    room: usize,
    flushes: usize,
}

impl Card for Loop {
    type Error = core::convert::Infallible;

    fn poll(&mut self, _: Instant, sink: &mut dyn FnMut(&dyn Frame)) -> Result<(), Self::Error> {
        self.arriving.drain(..).for_each(|frame| sink(&frame.as_slice()));
        Ok(())
    }

    fn transmit(&mut self, frame: &[u8], _: Instant) -> Result<(), Refused> {
        match (frame.len(), self.room) {
            (0..14, _) => Err(Refused::Never),
            (_, 0) => Err(Refused::Full),
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
}

fn device(send: usize, receive: usize) -> Device<Loop> {
    Device::new(Loop::default(), FramesConfig { send, receive, ..FramesConfig::default() })
}

fn send(device: &mut Device<Loop>, byte: u8, len: usize) -> bool {
    let room = device.frames.room();
    room.map(|room| room.fill(len, |buffer| buffer.fill(byte))).is_some()
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
    let (received, room) = device.frames.take().unwrap();
    assert_eq!(received.take(|frame| frame[0]), 1);
    // An answer takes the only place there is; the next frame has to wait for it.
    room.fill(60, |buffer| buffer[0] = 9);
    assert!(device.frames.take().is_none());
    device.card_mut().room = 1;
    device.poll(Instant::ZERO).unwrap();
    assert_eq!(device.card().sent[0][0], 9);
    assert_eq!(device.frames.take().unwrap().0.take(|frame| frame[0]), 2);
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

#[cfg(feature = "embassy")]
#[test]
fn embassy_is_woken_by_frames_by_room_and_by_the_link() {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::task::{Context, Wake, Waker};

    use embassy_net_driver::{Driver, HardwareAddress, LinkState, RxToken, TxToken};

    #[derive(Default)]
    struct Count(AtomicUsize);
    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }
    let count = Arc::new(Count::default());
    let waker = Waker::from(count.clone());
    let mut context = Context::from_waker(&waker);
    let woken = || count.0.swap(0, Ordering::Relaxed);

    let mut device = device(1, 2);
    assert!(Driver::receive(&mut device, &mut context).is_none());
    device.card_mut().arriving = vec![vec![1; 60]];
    device.poll(Instant::ZERO).unwrap();
    assert_eq!(woken(), 1, "a frame came");
    let (received, room) = Driver::receive(&mut device, &mut context).unwrap();
    assert_eq!(RxToken::consume(received, |frame| frame.len()), 60);
    TxToken::consume(room, 60, |buffer| buffer[0] = 9);
    assert!(Driver::transmit(&mut device, &mut context).is_none());
    assert_eq!(woken(), 0);
    device.card_mut().room = 1;
    device.poll(Instant::ZERO).unwrap();
    assert_eq!(woken(), 1, "room came back");
    assert!(device.link_state(&mut context) == LinkState::Up);
    device.frames.set_link(false);
    assert_eq!(woken(), 1, "the link changed");
    assert!(device.link_state(&mut context) == LinkState::Down);
    assert_eq!(device.hardware_address(), HardwareAddress::Ethernet([0; 6]));
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

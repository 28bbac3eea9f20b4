//! The embassy-net driver of a NIC, in the hands of a task: it asks behind the virtual switch who has an address.
//!
//! `cargo run --example embassy` ends when it knows. The task sleeps until the driver wakes it: no timer, no busy loop.

use std::cell::RefCell;
use std::error::Error;
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};

use embassy_net_driver::{Driver, HardwareAddress, RxToken, TxToken};
use netvsc::stack::Frames;
use smoltcp::iface::{Config, Interface, SocketSet};
use smoltcp::time::Instant as StackInstant;
use smoltcp::wire::{
    ArpOperation, ArpPacket, ArpRepr, EthernetAddress, EthernetFrame, EthernetProtocol,
    EthernetRepr, IpAddress, IpCidr, Ipv4Address,
};

mod small_world;
use small_world::{GUEST, PEER, SmallWorld};

const OURS: Ipv4Address = Ipv4Address::new(192, 0, 2, 1);
const THEIRS: Ipv4Address = Ipv4Address::new(192, 0, 2, 2);

/// Asks, and waits for the answer.
async fn who_has(driver: &RefCell<Frames>, address: Ipv4Address) -> EthernetAddress {
    let HardwareAddress::Ethernet(mac) = driver.borrow().hardware_address() else {
        unreachable!("a NIC is an Ethernet card");
    };
    let question = ArpRepr::EthernetIpv4 {
        operation: ArpOperation::Request,
        source_hardware_addr: EthernetAddress(mac),
        source_protocol_addr: OURS,
        target_hardware_addr: EthernetAddress::default(),
        target_protocol_addr: address,
    };
    poll_fn(|context| {
        let mut driver = driver.borrow_mut();
        let Some(room) = driver.transmit(context) else { return Poll::Pending };
        room.consume(14 + question.buffer_len(), |bytes| {
            let mut frame = EthernetFrame::new_unchecked(bytes);
            let ethernet = EthernetRepr {
                src_addr: EthernetAddress(mac),
                dst_addr: EthernetAddress::BROADCAST,
                ethertype: EthernetProtocol::Arp,
            };
            ethernet.emit(&mut frame);
            question.emit(&mut ArpPacket::new_unchecked(frame.payload_mut()));
        });
        Poll::Ready(())
    })
    .await;
    poll_fn(|context| {
        loop {
            let mut driver = driver.borrow_mut();
            let Some((received, _)) = driver.receive(context) else { return Poll::Pending };
            if let Some(mac) = received.consume(|bytes| answer(bytes, address)) {
                return Poll::Ready(mac);
            }
        }
    })
    .await
}

/// Who has the address, if that is what the frame says.
fn answer(bytes: &[u8], address: Ipv4Address) -> Option<EthernetAddress> {
    let frame = EthernetFrame::new_checked(bytes).ok()?;
    let packet = ArpPacket::new_checked(frame.payload()).ok()?;
    match ArpRepr::parse(&packet).ok()? {
        ArpRepr::EthernetIpv4 {
            operation: ArpOperation::Reply,
            source_hardware_addr,
            source_protocol_addr,
            ..
        } if source_protocol_addr == address => Some(source_hardware_addr),
        _ => None,
    }
}

/// Set when the task is woken.
#[derive(Default)]
struct Flag(AtomicBool);

impl Wake for Flag {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::Release);
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let mut small = SmallWorld::new()?;
    let driver = Rc::new(RefCell::new(SmallWorld::frames(GUEST)));
    let mut theirs = SmallWorld::frames(PEER);
    let mut peer = Interface::new(
        Config::new(EthernetAddress(PEER.0).into()),
        &mut theirs,
        StackInstant::ZERO,
    );
    peer.update_ip_addrs(|addresses| {
        addresses.push(IpCidr::new(IpAddress::Ipv4(THEIRS), 24)).expect("room for one");
    });

    // A frame before the NIC is ready would be lost, as on any cable that is not plugged in.
    while small.world.guest.view(0).mac.is_empty() {
        if !small.carry(&mut driver.borrow_mut(), &mut theirs) {
            small.step(None)?;
        }
    }
    let woken = Arc::new(Flag(AtomicBool::new(true)));
    let waker = Waker::from(woken.clone());
    let mut task = pin!(who_has(&driver, THEIRS));
    loop {
        if woken.0.swap(false, Ordering::Acquire)
            && let Poll::Ready(mac) = task.as_mut().poll(&mut Context::from_waker(&waker))
        {
            println!("{THEIRS} is at {mac}");
            return match mac.0 == PEER.0 {
                true => Ok(()),
                false => Err(format!("expected {PEER}").into()),
            };
        }
        let micros = i64::try_from(small.now.as_nanos() / 1000)?;
        peer.poll(StackInstant::from_micros(micros), &mut theirs, &mut SocketSet::new(Vec::new()));
        let moved = small.carry(&mut driver.borrow_mut(), &mut theirs);
        if !moved && !woken.0.load(Ordering::Acquire) {
            small.step(None)?;
        }
    }
}

//! The guest's PCI bus against a host that sends anything.

use vmbus::memory::SharedPages;
use vmbus::packet::Outgoing;
use vmbus::{Channel, Instant, Pfn, SignalFlag};
use vpci::interrupt::Delivery;
use vpci::{Event, InterruptWish, PciBus, PciBusConfig};

/// Flag: a completion and not a message.
const COMPLETION: u8 = 1;
/// Flag: of the newest request.
const NEWEST: u8 = 2;
/// Flag: the upper half of a message's type is right.
const TYPED: u8 = 4;

/// A list of packets. Each begins with a byte of flags and a length; a packet may answer the newest request of
/// the guest, so that the fuzzer gets beyond the first question, or any other id. Between packets the guest obeys: it
/// asks for an interrupt for what arrives and gives back what it is asked for.
pub fn vpci_guest(input: &[u8]) {
    let ring = |first: u64| SharedPages::from_heap(&[0, 1, 2].map(|page| Pfn(first + page)));
    let (up, down) = (ring(0), ring(3));
    let Ok(guest) = Channel::from_parts(up.clone(), down.clone(), SignalFlag::new()) else {
        return;
    };
    let Ok(mut host) = Channel::from_parts(down, up, SignalFlag::new()) else { return };
    let mut bus = PciBus::new(guest, PciBusConfig::new(0x1000), Instant::ZERO);
    let mut newest = 0;
    let mut buffer = vec![0; 8192];
    let mut rest = input;
    while let [flags, length, tail @ ..] = rest {
        let (payload, tail) = tail.split_at(usize::from(*length).min(tail.len()));
        rest = tail;
        let mut payload = payload.to_vec();
        if flags & TYPED != 0
            && let Some(upper) = payload.get_mut(2..4)
        {
            upper.copy_from_slice(&[0x49, 0x42]);
        }
        let transaction_id = if flags & NEWEST != 0 { newest } else { u64::from(flags >> 3) };
        let packet = if flags & COMPLETION != 0 {
            Outgoing::Completion { transaction_id, payload: &payload }
        } else {
            Outgoing::InBand { transaction_id, completion: false, payload: &payload }
        };
        let _ = host.try_send(&packet);
        let _ = bus.poll(Instant::ZERO);
        while let Some(event) = bus.poll_event() {
            match event {
                Event::FunctionArrived(function) => {
                    let wish = InterruptWish {
                        vector: 1,
                        vectors: 1,
                        delivery: Delivery::Fixed,
                        processors: &[0],
                    };
                    let _ = bus.create_interrupt(function.id, &wish, Instant::ZERO);
                }
                Event::EjectRequested { function } => {
                    let _ = bus.eject_complete(function);
                }
                _ => {}
            }
        }
        let _ = bus.poll(Instant::ZERO);
        while let Ok(Some(packet)) = host.receive(&mut buffer) {
            if packet.completion_requested {
                newest = packet.transaction_id;
            }
        }
        let _ = host.commit_read();
    }
    // Whatever was sent: what the guest says is there can be asked for.
    for function in bus.functions() {
        assert_eq!(bus.serial(function.slot()), Some(function.serial()));
    }
}

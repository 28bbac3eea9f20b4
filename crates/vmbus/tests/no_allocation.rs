//! Nothing is allocated for a packet, whichever way it goes. The crate has no lock to begin with: it knows neither threads nor
//! `std`.

use allocation_counter::measure;
use vmbus::memory::{PageList, SharedMemory, SharedPages};
use vmbus::packet::{GpaRange, Outgoing, PacketKind, TransferRange};
use vmbus::{Channel, Pfn, SignalFlag};

/// Four laps around a ring of one page, with whatever a packet can be, signals and waits for space included.
fn laps<M: SharedMemory, N: SharedMemory>(
    near: &mut Channel<M, SignalFlag>,
    far: &mut Channel<N, SignalFlag>,
) {
    let frames = [Pfn(3), Pfn(9)];
    let gpa = [GpaRange { byte_count: 5000, byte_offset: 7, frames: &frames }; 2];
    let ranges = [TransferRange { byte_count: 60, byte_offset: 1806 }; 8];
    let (body, mut buffer) = ([7; 200], [0; 1024]);
    let (transaction_id, payload) = (1, &body[..]);
    let packets = [
        Outgoing::InBand { transaction_id, completion: true, payload },
        Outgoing::Completion { transaction_id, payload },
        Outgoing::GpaDirect { transaction_id, ranges: &gpa, payload },
        Outgoing::TransferPages { transaction_id, pageset: 1, ranges: &ranges, payload },
    ];
    for packet in packets.iter().cycle().take(64) {
        near.try_send(packet).unwrap();
        let mut slot = near.reserve(packet, 64).unwrap();
        slot.append(&body[..50]).unwrap();
        slot.finish().unwrap();
        near.commit().unwrap();
        while near.stage(packet).is_ok() {}
        assert!(!near.request_space(packet.ring_len()).unwrap());

        far.mask().unwrap();
        while let Some(packet) = far.receive(&mut buffer).unwrap() {
            if let PacketKind::TransferPages { ranges, .. } = packet.kind {
                assert_eq!(ranges.iter().count(), 8);
            }
            let Some(mut view) = far.peek().unwrap() else { break };
            while view.next_range().unwrap().is_some() {}
            view.take(&mut buffer).unwrap();
            view.advance();
        }
        assert!(!far.arm().unwrap());
    }
    // A packet that contradicts itself is skipped without one, too.
    near.try_send(&packets[0]).unwrap();
    assert!(far.receive(&mut [0; 8]).is_err());
}

fn ring() -> SharedPages {
    SharedPages::from_heap(&[Pfn(0), Pfn(1)])
}

#[test]
fn a_packet_allocates_nothing() {
    let (up, down) = (ring(), ring());
    let mut near = Channel::from_parts(up.clone(), down.clone(), SignalFlag::new()).unwrap();
    let mut far = Channel::from_parts(down, up, SignalFlag::new()).unwrap();
    let info = measure(|| laps(&mut near, &mut far));
    assert_eq!((info.count_total, info.bytes_total), (0, 0));
    assert!(near.stats().sent_bytes > 4 * 4096 && far.stats().space_signals > 0);
}

#[test]
fn nor_does_one_in_scattered_pages() {
    let (up, down) = (ring(), ring());
    let pieces = |memory: &SharedPages| {
        PageList::new([memory.slice(0, 1).unwrap(), memory.slice(1, 1).unwrap()])
    };
    let mut far = Channel::from_parts(pieces(&down), pieces(&up), SignalFlag::new()).unwrap();
    let mut near = Channel::from_parts(up, down, SignalFlag::new()).unwrap();
    let info = measure(|| laps(&mut near, &mut far));
    assert_eq!((info.count_total, info.bytes_total), (0, 0));
    assert!(near.stats().sent_bytes > 4 * 4096 && far.stats().space_signals > 0);
}

#[test]
fn the_counter_counts() {
    assert_eq!(measure(|| drop(ring())).count_current, 0);
    assert!(measure(|| drop(ring())).count_total >= 2);
}

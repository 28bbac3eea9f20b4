//! A guest whose host spoils the rings, in every way it knows.

use vmbus::bus::BusState;
use vmbus::packet::{Outgoing, PacketKind};
use vmbus::ring::{ReceiveError, SendError};
use vmbus::{Channel, ChannelId};

use super::world::{World, spec};
use crate::bus::{DeviceId, RingFault};

/// What a fault costs the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cost {
    /// The channel.
    Channel,
    /// One packet, which is skipped and counted.
    Packet,
    /// Nothing in itself: the ids of what arrives are these.
    Nothing(&'static [u64]),
}

const NOBODYS: u64 = 0xdead_0000_0000_0001;

fn cost(fault: RingFault) -> Cost {
    use RingFault as F;
    match fault {
        F::WriteIndexOutside | F::WriteIndexUneven | F::WriteIndexBack => Cost::Channel,
        F::ReadIndexOutside | F::ReadIndexUneven | F::ReadIndexAhead => Cost::Channel,
        F::LengthZero | F::LengthBeyond => Cost::Channel,
        F::HeaderShort | F::HeaderLong | F::FlagsUnknown | F::TypeUnknown => Cost::Packet,
        F::RangesNone | F::RangesTooMany | F::GpaRangesTooMany => Cost::Packet,
        F::MasksForEver | F::WantsTooMuch => Cost::Nothing(&[8]),
        F::SignalsForNothing | F::LosesSignal => Cost::Nothing(&[8]),
        F::TrailerWrong | F::CompletesUnasked => Cost::Nothing(&[8, NOBODYS]),
        F::SendsTwice => Cost::Nothing(&[8, 8]),
        F::NeverCompletes => Cost::Nothing(&[NOBODYS]),
    }
}

/// The ids of all packets that can be read; an error ends it.
fn read_all(channel: &mut Channel) -> Result<Vec<u64>, ReceiveError> {
    let mut ids = Vec::new();
    let mut buffer = [0; 256];
    loop {
        match channel.receive(&mut buffer) {
            Ok(Some(packet)) => ids.push(packet.transaction_id),
            Ok(None) if !channel.arm()? => return Ok(ids),
            Ok(None) | Err(ReceiveError::Packet(_)) => {}
            Err(error @ ReceiveError::Ring(_)) => return Err(error),
        }
    }
}

fn message(transaction_id: u64) -> Outgoing<'static> {
    Outgoing::InBand { transaction_id, completion: true, payload: b"a question" }
}

/// Whether the ring from the guest can still be written, as far as it goes. The host's index is looked at first.
fn fill(channel: &mut Channel) -> Result<(), SendError> {
    channel.writable(channel.capacity())?;
    loop {
        match channel.try_send(&message(5)) {
            Ok(()) => {}
            Err(SendError::Full { .. }) => return Ok(()),
            Err(error) => return Err(error),
        }
    }
}

/// Two devices; the guest has asked twice on the first, and read one of the answers.
fn world() -> (World, [DeviceId; 2], ChannelId) {
    let mut world = World::usual();
    let devices = [1, 2].map(|instance| world.host.offer(spec(instance), world.now));
    world.run();
    let channel = world.channel(1).unwrap();
    let guest = world.drivers.get_mut(&channel).unwrap().open.as_mut().unwrap();
    let host = world.services.get_mut(&devices[0]).unwrap();
    let mut buffer = [0; 256];
    for transaction_id in [7, 8] {
        guest.try_send(&message(transaction_id)).unwrap();
        assert!(host.receive(&mut buffer).unwrap().unwrap().completion_requested);
        host.try_send(&Outgoing::Completion { transaction_id, payload: b"answer" }).unwrap();
    }
    host.commit_read().unwrap();
    let packet = guest.receive(&mut buffer).unwrap().unwrap();
    assert!(matches!(packet.kind, PacketKind::Completion));
    assert!(world.drivers[&channel].bell.take());
    assert_eq!(world.host.interrupts().collect::<Vec<_>>(), [channel]);
    (world, devices, channel)
}

// HISTORY 70, and section 6 item 7
#[test]
fn whatever_is_spoiled_in_a_ring_costs_one_channel_at_most_and_that_comes_back() {
    for fault in RingFault::ALL {
        let (mut world, [spoiled, other], channel) = world();
        let host = world.services.get_mut(&spoiled).unwrap();
        world.host.spoil(spoiled, host, fault).unwrap();
        assert_eq!(world.host.ring_faults(fault), 1);
        let signalled = world.host.interrupts().count();
        assert_eq!(signalled, usize::from(fault != RingFault::LosesSignal), "{fault:?}");

        let driver = world.drivers.get_mut(&channel).unwrap();
        let guest = driver.open.as_mut().unwrap();
        let (read, written) = (read_all(guest), fill(guest));
        let dead = read.is_err() || written.is_err();
        match cost(fault) {
            Cost::Channel => assert!(dead, "{fault:?}"),
            Cost::Packet => {
                assert_eq!((read, written), (Ok(vec![8]), Ok(())), "{fault:?}");
                assert_eq!(guest.stats().bad_packets, 1, "{fault:?}");
            }
            Cost::Nothing(ids) => {
                assert_eq!((read, written), (Ok(ids.to_vec()), Ok(())), "{fault:?}");
                assert_eq!(guest.stats().bad_packets, 0, "{fault:?}");
            }
        }
        if !dead {
            // The host that wants no signals gets none; all others do.
            assert_eq!(driver.bell.take(), fault != RingFault::MasksForEver, "{fault:?}");
            let host = world.services.get_mut(&spoiled).unwrap();
            let mut buffer = [0; 256];
            while host.receive(&mut buffer).unwrap().is_some() {}
            host.commit_read().unwrap();
            assert!(world.works(spoiled), "{fault:?}");
        }
        assert!(world.works(other), "{fault:?}");

        // The driver gives up what is dead, and the channel comes back whole.
        world.drivers.get_mut(&channel).unwrap().open = None;
        world.bus.close(channel, world.now).unwrap();
        world.run();
        assert_eq!(world.ram.allocated(), 48, "the other channel's, {fault:?}");
        world.open(channel);
        world.run();
        assert!(world.works(spoiled) && world.works(other), "{fault:?}");
        assert_eq!((world.bus.state(), world.host.counters().guest_errors), (BusState::Running, 0));
        world.bus.unload(world.now).unwrap();
        world.run();
        world.assert_clean();
    }
}

#[test]
fn a_ring_of_a_device_that_is_not_open_is_not_spoiled() {
    let (mut world, [spoiled, other], channel) = world();
    world.drivers.get_mut(&channel).unwrap().open = None;
    world.bus.close(channel, world.now).unwrap();
    world.run();
    let host = world.services.get_mut(&other).unwrap();
    world.host.spoil(spoiled, host, RingFault::LengthZero).unwrap();
    assert_eq!(world.host.ring_faults(RingFault::LengthZero), 0);
    assert!(world.works(other));
}

// HISTORY section 6 item 7: the signal is lost, and the packet is found by looking once more before the rest.
#[test]
fn a_lost_signal_is_found_by_whoever_looks_before_resting() {
    let (mut world, [spoiled, _], channel) = world();
    let guest = world.drivers.get_mut(&channel).unwrap().open.as_mut().unwrap();
    let host = world.services.get_mut(&spoiled).unwrap();
    assert_eq!(read_all(guest), Ok(vec![8]));
    guest.mask().unwrap();
    host.try_send(&message(9)).unwrap();
    world.host.spoil(spoiled, host, RingFault::LosesSignal).unwrap();
    assert_eq!(world.host.interrupts().count(), 0);
    assert!(guest.arm().unwrap());
    assert_eq!(read_all(guest), Ok(vec![9]));
}

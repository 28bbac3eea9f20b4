//! Whole conversations, word for word. What a guest's machine says is here as bytes and is understood by a host's machine,
//! and the other way round.

use std::fmt::Write as _;

use vmbus::bus::{Bus, BusConfig, OpenOptions, SignalParameters};
use vmbus::memory::SharedPages;
use vmbus::message::{Features, OfferFlags, Version};
use vmbus::{ConnectionId, Guid, Pfn};

use super::world::{Habit, World, guest_end, spec};
use crate::bus::{BusPolicy, DeviceId, OfferSpec};
use crate::memory::{GuestMemory, UnknownFrame};

/// One message: who, which, how long, and what is not zero behind the header, in 32-bit words at their offsets.
fn line(who: &str, payload: &[u8]) -> String {
    let mut line = format!("{who} {:02x}({})", payload[0], payload.len());
    assert_eq!(payload[1..8], [0; 7]);
    for (at, word) in payload.chunks(4).enumerate().skip(2) {
        if word.iter().any(|byte| *byte != 0) {
            write!(line, " {}:", 4 * at).unwrap();
            word.iter().for_each(|byte| write!(line, "{byte:02x}").unwrap());
        }
    }
    line
}

/// Lets the two talk until nobody has anything to say, and writes it down.
fn listen(world: &mut World) -> Vec<String> {
    let mut lines = Vec::new();
    loop {
        if let Some(post) = world.bus.poll_outgoing() {
            lines.push(line(&format!("G{:x}", post.connection.0), &post.payload));
            let result = world.host.handle_message(post.connection, &post.payload, world.now);
            assert_eq!(result, Ok(()), "{lines:?}");
            world.host_events();
        } else if let Some(message) = world.host.poll_message() {
            lines.push(line("H", &message));
            world.bus.handle_message(&message, world.now).unwrap();
            world.guest_events();
        } else {
            return lines;
        }
    }
}

/// Memory with known frames, which the host can reach.
struct Known(SharedPages);

impl GuestMemory for Known {
    fn map(&self, frames: &[Pfn]) -> Result<vmbus::memory::PageList, UnknownFrame> {
        let all = self.0.frames();
        let page = |frame: &Pfn| {
            let at = all.iter().position(|known| known == frame);
            at.and_then(|at| self.0.slice(at, 1)).ok_or(UnknownFrame { frame: *frame })
        };
        let pages: Result<Vec<_>, _> = frames.iter().map(page).collect();
        Ok(vmbus::memory::PageList::new(pages?))
    }
}

const INSTANCE: u128 = 0x0c0d_0e0f_0a0b_0809_0706_0504_0302_0100;

/// A world with one device; the frames of its memory are 0x100 and up.
fn world(version: Version, features: Features) -> (World, DeviceId, SharedPages) {
    let memory = SharedPages::from_heap(&(0x100..0x140).map(Pfn).collect::<Vec<_>>());
    let policy = BusPolicy {
        versions: vec![version],
        features,
        monitor_ids: true,
        server_monitor_pages: (0x7000, 0x8000),
        ..BusPolicy::default()
    };
    let mut world = World::new(&[version], policy.clone(), Habit::Watch);
    world.host = crate::bus::BusServer::new(policy, std::sync::Arc::new(Known(memory.clone())));
    world.bus = Bus::new(BusConfig {
        versions: vec![version],
        features,
        client_id: Guid::from_u128(INSTANCE),
        monitor_pages: memory.slice(0x30, 2),
        target_vp: 3,
        ..BusConfig::default()
    });
    let flags = OfferFlags::ENUMERATE_INTERFACE | OfferFlags::CONFIDENTIAL_RING;
    let device = world.host.offer(
        OfferSpec { flags, ..OfferSpec { instance: Guid::from_u128(INSTANCE), ..spec(1) } },
        world.now,
    );
    (world, device, memory)
}

/// A whole life: contact, open, memory of 30 pages, another processor, close, rescind, farewell.
fn life(version: Version, features: Features) -> Vec<String> {
    let (mut world, device, memory) = world(version, features);
    let now = world.now;
    world.bus.start(now).unwrap();
    let mut lines = listen(&mut world);
    let channel = *world.drivers.keys().next().unwrap();
    let rings = memory.slice(0, 8).unwrap();
    let end = guest_end(&rings, &vmbus::SignalFlag::new());
    let signal = SignalParameters { connection: ConnectionId(0x999), event_flag: 0x77 };
    let options = OpenOptions {
        downstream_page: 4,
        target_vp: 2,
        signal: features.contains(Features::GUEST_SIGNAL_PARAMETERS).then_some(signal),
        redirect_interrupt: features.contains(Features::INTERRUPT_REDIRECTION),
        ..OpenOptions::default()
    };
    world.bus.open_with(channel, &rings, options, now).unwrap();
    lines.extend(listen(&mut world));
    world.bus.share(channel, &memory.slice(8, 30).unwrap(), now).unwrap();
    lines.extend(listen(&mut world));
    assert_eq!(world.host.gpadls(), 2);
    if version >= Version::V4_1 {
        world.bus.retarget(channel, 5, now).unwrap();
        lines.extend(listen(&mut world));
        assert_eq!(world.host.target_vp(device), Some(5));
    }
    if version >= Version::V6_0 {
        world.bus.modify_connection(memory.slice(0x32, 2).as_ref(), now).unwrap();
        lines.extend(listen(&mut world));
        assert_eq!(world.host.monitor_pages(), Some((0x13_2000, 0x13_3000)));
        world.bus.pause(now).unwrap();
        lines.extend(listen(&mut world));
        world.bus.unpause().unwrap();
    }
    drop(end);
    world.bus.close(channel, now).unwrap();
    lines.extend(listen(&mut world));
    world.host.rescind(device, now);
    lines.extend(listen(&mut world));
    assert_eq!(world.host.state(device), None);
    world.bus.unload(now).unwrap();
    lines.extend(listen(&mut world));
    // Guests of 2.4 do not say good-bye.
    assert_eq!(world.host.version().is_none(), version >= Version::V3_0);
    assert_eq!(world.host.gpadls(), 0);
    lines
}

#[test]
fn conversations_are_the_same_byte_for_byte() {
    for (version, features, expected) in [
        (Version::V6_0, Features::all(), include_str!("wire/6.0.txt")),
        (Version::V5_3, Features::empty(), include_str!("wire/5.3.txt")),
        (Version::V4_1, Features::empty(), include_str!("wire/4.1.txt")),
        (Version::V2_4, Features::empty(), include_str!("wire/2.4.txt")),
    ] {
        let expected: Vec<&str> = expected.lines().collect();
        assert_eq!(life(version, features), expected, "{version}");
    }
}

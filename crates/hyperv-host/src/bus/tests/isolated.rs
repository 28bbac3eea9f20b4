//! A guest that is isolated from its host: the host reaches no page that was not revealed to it.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};

use vmbus::bus::{Bus, BusConfig, ChannelState, Error, Event, OpenOptions, Wait};
use vmbus::memory::{PageList, SharedMemory, SharedPages};
use vmbus::message::{Features, MessageType, OfferFlags, Version};
use vmbus::platform::AllocError;
use vmbus::{ChannelId, Pfn, Platform, SignalFlag};

use super::world::{Habit, RING_PAGES, World, guest_end, spec};
use crate::bus::{BusPolicy, BusServer, DeviceId, OfferSpec};
use crate::memory::{GuestMemory, GuestRam, UnknownFrame};

/// Memory that the host reaches only as far as it was decrypted, and that is scrambled by every change.
#[derive(Clone)]
struct Sealed {
    ram: GuestRam,
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    open: BTreeSet<Pfn>,
    /// Pages of each change: decrypted, or encrypted.
    log: Vec<(&'static str, usize)>,
    fail: bool,
}

impl Sealed {
    fn change(&self, what: &'static str, memory: &SharedPages) -> Result<(), AllocError> {
        let mut state = self.state.lock().unwrap();
        if state.fail {
            return Err(AllocError { pages: memory.pages() });
        }
        state.log.push((what, memory.pages()));
        for frame in memory.frames() {
            let changed = match what {
                "decrypt" => state.open.insert(*frame),
                _ => state.open.remove(frame),
            };
            assert!(changed, "{what} of {frame} twice");
        }
        memory.fill(0xa5);
        Ok(())
    }

    fn log(&self) -> Vec<(&'static str, usize)> {
        std::mem::take(&mut self.state.lock().unwrap().log)
    }

    fn fail(&self, fail: bool) {
        self.state.lock().unwrap().fail = fail;
    }

    fn open_pages(&self) -> usize {
        self.state.lock().unwrap().open.len()
    }
}

impl Platform for Sealed {
    fn allocate(&self, pages: usize) -> Result<SharedPages, AllocError> {
        let memory = self.ram.allocate(pages)?;
        let state = self.state.lock().unwrap();
        let open = |frame: &Pfn| state.open.contains(frame);
        assert!(!memory.frames().iter().any(open), "a page that the host can read is used again");
        Ok(memory)
    }

    fn decrypt(&self, memory: &SharedPages) -> Result<(), AllocError> {
        self.change("decrypt", memory)
    }

    fn encrypt(&self, memory: &SharedPages) -> Result<(), AllocError> {
        self.change("encrypt", memory)
    }
}

impl GuestMemory for Sealed {
    fn map(&self, frames: &[Pfn]) -> Result<PageList, UnknownFrame> {
        let state = self.state.lock().unwrap();
        match frames.iter().find(|frame| !state.open.contains(frame)) {
            Some(frame) => Err(UnknownFrame { frame: *frame }),
            None => self.ram.map(frames),
        }
    }
}

/// An isolated guest, and a host with one device. The guest has made contact and was offered channel 1.
fn world(policy: BusPolicy, config: BusConfig) -> (World, Sealed, DeviceId) {
    let mut world = World::new(&[], policy.clone(), Habit::Watch);
    let sealed = Sealed { ram: world.ram.clone(), state: Arc::default() };
    world.host = BusServer::new(policy, Arc::new(sealed.clone()));
    world.bus = Bus::new(BusConfig { isolated: true, ..config });
    let flags = OfferFlags::all();
    let device = world.host.offer(OfferSpec { flags, ..spec(1) }, world.now);
    world.bus.start(world.now).unwrap();
    world.run();
    (world, sealed, device)
}

fn usual() -> (World, Sealed, DeviceId) {
    world(BusPolicy::default(), BusConfig::default())
}

const ONE: ChannelId = ChannelId(1);

fn open(world: &mut World, sealed: &Sealed) {
    let rings = sealed.allocate(RING_PAGES).unwrap();
    let downstream = RING_PAGES as u32 / 2;
    world.bus.reveal(sealed, &rings).unwrap();
    let driver = world.drivers.get_mut(&ONE).unwrap();
    driver.open = Some(guest_end(&rings, &SignalFlag::new()));
    world.bus.open(ONE, &rings, downstream, 0, world.now).unwrap();
    world.run();
    assert_eq!(world.guest_log.last(), Some(&Event::Opened { channel: ONE }));
}

#[test]
fn pages_are_revealed_before_the_host_is_told_and_concealed_when_it_has_returned_them() {
    let (mut world, sealed, device) = usual();
    let rings = sealed.allocate(RING_PAGES).unwrap();
    let hidden = Error::NotRevealed { pages: RING_PAGES };
    assert_eq!(world.bus.open(ONE, &rings, 4, 0, world.now), Err(hidden));
    assert_eq!((world.bus.poll_outgoing(), sealed.open_pages()), (None, 0));
    drop(rings);

    open(&mut world, &sealed);
    assert_eq!(sealed.log(), [("decrypt", 8)]);
    let memory = sealed.allocate(40).unwrap();
    world.bus.reveal(&sealed, &memory).unwrap();
    world.bus.reveal(&sealed, &memory).unwrap();
    assert_eq!(sealed.log(), [("decrypt", 40)], "once is enough");
    let mut bytes = [1; 64];
    memory.read(0, &mut bytes).unwrap();
    assert_eq!(bytes, [0; 64], "nothing of what was scrambled");
    let gpadl = world.bus.share(ONE, &memory, world.now).unwrap();
    drop(memory);
    world.run();
    world.drivers.get_mut(&ONE).unwrap().shared.push(gpadl);
    assert!(world.works(device));

    // Half of the memory comes back; nothing happens before the host says so, and then before anybody hears of it.
    world.drivers.get_mut(&ONE).unwrap().open = None;
    world.bus.close(ONE, world.now).unwrap();
    while world.post_one() {}
    world.bus.conceal(&sealed);
    assert_eq!((sealed.log(), sealed.open_pages()), (vec![], 48));
    assert!(world.answer_one());
    let before = world.guest_log.len();
    world.guest_events();
    assert_eq!(world.guest_log.len(), before, "events wait");
    world.bus.conceal(&sealed);
    assert_eq!((sealed.log(), sealed.open_pages()), (vec![("encrypt", 8)], 40));
    world.run();
    world.bus.conceal(&sealed);
    world.guest_events();
    assert_eq!(sealed.log(), [("encrypt", 40)]);
    assert_eq!(world.guest_log.last(), Some(&Event::Closed { channel: ONE }));
    world.assert_clean();
    assert_eq!((world.bus.revealed_pages(), sealed.open_pages()), (0, 0));
}

#[test]
fn memory_that_was_told_of_twice_is_concealed_when_both_are_returned() {
    let (mut world, sealed, _) = usual();
    let memory = sealed.allocate(6).unwrap();
    world.bus.reveal(&sealed, &memory).unwrap();
    let all = world.bus.share(ONE, &memory, world.now).unwrap();
    let part = world.bus.share(ONE, &memory.slice(2, 2).unwrap(), world.now).unwrap();
    world.run();
    sealed.log();
    world.bus.unshare(all, world.now).unwrap();
    world.run();
    world.bus.conceal(&sealed);
    assert_eq!(sealed.log(), [("encrypt", 2), ("encrypt", 2)], "what lies before and behind");
    world.bus.unshare(part, world.now).unwrap();
    world.run();
    world.bus.conceal(&sealed);
    assert_eq!((sealed.log(), sealed.open_pages()), (vec![("encrypt", 2)], 0));
}

#[test]
fn memory_that_the_host_refuses_or_never_hears_of_is_concealed() {
    let policy = BusPolicy { gpadl_status: 9, ..BusPolicy::default() };
    let (mut world, sealed, _) = world(policy, BusConfig::default());
    let memory = sealed.allocate(3).unwrap();
    world.bus.reveal(&sealed, &memory).unwrap();
    world.bus.share(ONE, &memory, world.now).unwrap();
    world.bus.give_up(&memory);
    world.bus.conceal(&sealed);
    assert_eq!(sealed.open_pages(), 3, "the host may know of it");
    world.run();
    world.bus.conceal(&sealed);
    world.guest_events();
    assert!(matches!(world.guest_log.last(), Some(Event::ShareFailed { status: 9, .. })));
    assert_eq!(sealed.open_pages(), 0);
    world.bus.reveal(&sealed, &memory).unwrap();
    world.bus.give_up(&memory);
    world.bus.conceal(&sealed);
    assert_eq!((sealed.open_pages(), world.bus.lost_pages()), (0, 0));
}

#[test]
fn memory_that_the_host_does_not_return_stays_readable_and_is_never_used_again() {
    for unloads in [true, false] {
        let (mut world, sealed, device) = usual();
        open(&mut world, &sealed);
        world.host.policy_mut().withheld = vec![MessageType::GPADL_TORNDOWN];
        world.host.rescind(device, world.now);
        world.host_events();
        world.run();
        let deadline = world.bus.poll_deadline().unwrap();
        world.bus.handle_deadline(deadline);
        world.guest_events();
        let overdue = |event: &Event| matches!(event, Event::Overdue(Wait::Unshare { .. }));
        assert!(world.guest_log.iter().any(overdue));
        assert_eq!(world.guest_log.last(), Some(&Event::Released { channel: ONE }));
        world.run();
        world.bus.conceal(&sealed);
        assert_eq!((sealed.open_pages(), world.bus.revealed_pages()), (8, 8));
        if unloads {
            // The end of the connection is as good.
            world.bus.unload(world.now).unwrap();
            world.run();
            world.bus.conceal(&sealed);
            world.guest_events();
            assert_eq!(world.guest_log.last(), Some(&Event::Unloaded));
        }
        world.bus = Bus::new(BusConfig::default());
        world.services.clear();
        let left = if unloads { 0 } else { 8 };
        assert_eq!((world.ram.allocated(), sealed.open_pages()), (left, left));
    }
}

#[test]
fn memory_that_cannot_be_revealed_is_never_told_of() {
    let (mut world, sealed, _) = usual();
    let memory = sealed.allocate(RING_PAGES).unwrap();
    sealed.fail(true);
    let pages = RING_PAGES;
    assert_eq!(world.bus.reveal(&sealed, &memory), Err(Error::RevealFailed { pages }));
    let hidden = Error::NotRevealed { pages };
    assert_eq!(world.bus.open(ONE, &memory, 4, 0, world.now), Err(hidden));
    assert_eq!(world.bus.share(ONE, &memory, world.now), Err(hidden));
    assert_eq!(world.bus.poll_outgoing(), None);
    assert_eq!((world.bus.lost_pages(), world.bus.revealed_pages()), (8, 8));
    drop(memory);
    assert_eq!(world.ram.allocated(), 8, "nobody gets pages that the host may be able to read");
    // Another try has other pages.
    sealed.fail(false);
    open(&mut world, &sealed);
    assert_eq!(world.ram.allocated(), 16);
    world.bus = Bus::new(BusConfig::default());
    world.drivers.clear();
    world.services.clear();
    drop(world.host);
    assert_eq!(world.ram.allocated(), 16, "nor when the bus is gone");
}

#[test]
fn memory_that_cannot_be_concealed_is_lost_and_its_channel_closes_all_the_same() {
    let (mut world, sealed, _) = usual();
    open(&mut world, &sealed);
    world.drivers.get_mut(&ONE).unwrap().open = None;
    world.bus.close(ONE, world.now).unwrap();
    world.run();
    sealed.fail(true);
    world.bus.conceal(&sealed);
    world.guest_events();
    assert_eq!(world.guest_log.last(), Some(&Event::Closed { channel: ONE }));
    assert_eq!(world.bus.channel_state(ONE), Some(ChannelState::Offered));
    assert_eq!((world.bus.lost_pages(), world.ram.allocated()), (8, 8));
    sealed.fail(false);
    open(&mut world, &sealed);
}

#[test]
fn monitor_pages_are_told_only_where_they_are_revealed() {
    let features = Features::MODIFY_CONNECTION;
    let versions = vec![Version::V6_0];
    let policy = BusPolicy { versions: versions.clone(), ..BusPolicy::default() };
    let (mut world, sealed, _) =
        world(policy, BusConfig { versions: versions.clone(), features, ..BusConfig::default() });
    let first = sealed.allocate(2).unwrap();
    let wish = world.bus.modify_connection(Some(&first), world.now);
    assert_eq!(wish, Err(Error::NotRevealed { pages: 2 }));
    world.bus.reveal(&sealed, &first).unwrap();
    world.bus.modify_connection(Some(&first), world.now).unwrap();
    world.run();
    assert!(world.host.monitor_pages().is_some());
    // Others instead, which the host refuses, and then takes: each time the right ones come back.
    for (state, back) in [(2, 1), (0, 0)] {
        world.host.policy_mut().modify_connection_state = state;
        let pages = [first.clone(), sealed.allocate(2).unwrap()];
        world.bus.reveal(&sealed, &pages[1]).unwrap();
        world.bus.modify_connection(Some(&pages[1]), world.now).unwrap();
        world.run();
        world.bus.conceal(&sealed);
        world.guest_events();
        assert_eq!(world.guest_log.last(), Some(&Event::ConnectionModified { state }));
        let open = |pages: &SharedPages| sealed.map(pages.frames()).is_ok();
        assert!(!open(&pages[back]) && open(&pages[1 - back]));
    }
    // Contact again tells of the ones that were agreed on, and a farewell returns them.
    world.bus.unload(world.now).unwrap();
    world.run();
    world.bus.conceal(&sealed);
    world.guest_events();
    assert_eq!(sealed.open_pages(), 0);
    world.bus.start(world.now).unwrap();
    world.run();
    assert_eq!(world.host.monitor_pages(), None, "they are the guest's own now");
}

#[test]
fn confidential_channels_need_not_be_revealed() {
    let features = Features::CONFIDENTIAL_CHANNELS;
    let versions = vec![Version::V6_0];
    for agreed in [Features::empty(), features] {
        let policy =
            BusPolicy { versions: versions.clone(), features: agreed, ..BusPolicy::default() };
        let config = BusConfig { versions: versions.clone(), features, ..BusConfig::default() };
        let (mut world, sealed, _) = world(policy, config);
        let memory = sealed.allocate(RING_PAGES).unwrap();
        let options = OpenOptions { downstream_page: 4, ..OpenOptions::default() };
        let opened = world.bus.open_with(ONE, &memory, options, world.now);
        let shared = world.bus.share(ONE, &memory, world.now);
        assert_eq!((opened.is_ok(), shared.is_ok()), (!agreed.is_empty(), !agreed.is_empty()));
        assert_eq!((sealed.log(), world.bus.revealed_pages()), (vec![], 0));
    }
}

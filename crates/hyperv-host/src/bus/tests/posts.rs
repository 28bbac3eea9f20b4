//! Posts that the hypervisor does not take, and what becomes of the messages.

use std::sync::Arc;

use vmbus::Instant;
use vmbus::bus::{
    Bus, BusConfig, BusState, ContactFailure, Event, Post, PostRetry, PostStatus, PostVerdict, Wait,
};
use vmbus::message::{MessageType, Version};

use super::world::spec;
use crate::bus::{BusPolicy, BusServer};
use crate::memory::GuestRam;

/// A guest and its host, with the hypervisor between them.
struct Pair {
    bus: Bus,
    host: BusServer,
    retry: PostRetry,
    now: Instant,
    /// Posts that were tried, with what the hypervisor said.
    tried: Vec<(Post, PostStatus)>,
    events: Vec<Event>,
}

impl Pair {
    fn new(config: BusConfig, policy: BusPolicy) -> Self {
        let mut pair = Self {
            bus: Bus::new(config),
            host: BusServer::new(policy, Arc::new(GuestRam::new(3, 64))),
            retry: PostRetry::default(),
            now: Instant::ZERO,
            tried: Vec::new(),
            events: Vec::new(),
        };
        pair.bus.start(pair.now).unwrap();
        pair
    }

    /// What a shell does with the guest's messages, until neither side has more to say.
    fn settle(&mut self) {
        loop {
            let message = self.host.poll_message();
            if let Some(message) = &message {
                self.bus.handle_message(message, self.now).unwrap();
            }
            self.events.extend(std::iter::from_fn(|| self.bus.poll_event()));
            let Some(post) = self.bus.poll_outgoing() else {
                if message.is_none() {
                    return;
                }
                continue;
            };
            let status = self.host.post(post.connection, &post.payload, self.now);
            self.tried.push((post, status));
            match self.retry.result(status, post.payload.kind(), self.now) {
                PostVerdict::Sent => {}
                PostVerdict::RetryAt(at) => {
                    self.bus.put_back(post);
                    self.now = at;
                }
                PostVerdict::GiveUp(status) => self.bus.post_failed(post, status, self.now),
            }
        }
    }
}

fn guest_of(versions: &[Version]) -> BusConfig {
    BusConfig { versions: versions.to_vec(), ..BusConfig::default() }
}

#[test]
fn a_guest_of_all_versions_finds_the_one_of_every_host_through_posts_that_fail() {
    for version in Version::ALL {
        let versions = vec![version];
        let policy = BusPolicy { versions, ..BusPolicy::default() };
        let mut pair = Pair::new(guest_of(&Version::ALL), policy);
        pair.host.offer(spec(1), pair.now);
        pair.settle();
        assert_eq!((pair.bus.version(), pair.host.version()), (Some(version), Some(version)));
        assert_eq!(pair.events.first(), Some(&Event::Connected { version }));
        assert!(pair.events.iter().any(|event| matches!(event, Event::Offered(_))), "{version}");
        // Older hosts have no connection 4, so that they never see the newer versions; each is tried once.
        let modern = Version::ALL.iter().filter(|version| **version >= Version::V5_0).count();
        let refused = if version < Version::V5_0 { modern } else { 0 };
        let failed = pair.tried.iter().filter(|(_, status)| *status != PostStatus::SUCCESS);
        assert_eq!(failed.count(), refused, "{version}");
        assert_eq!(pair.bus.stats().unposted, refused as u64);
        assert_eq!((pair.host.counters().guest_errors, pair.bus.poll_deadline()), (0, None));
    }
}

#[test]
fn contact_from_vtl_2_is_redirected_where_the_host_does_that_and_usual_elsewhere() {
    for (versions, redirected, connections) in [
        (vec![Version::V5_3], true, vec![0x80_0074]),
        (vec![Version::V5_2], true, vec![0x80_0074, 0x80_0074]),
        // The first post says that nothing is redirected, and the same version is asked for again.
        (vec![Version::V5_3], false, vec![0x80_0074, 4]),
        (vec![Version::V5_2], false, vec![0x80_0074, 4, 4]),
        (vec![Version::V4_1], true, vec![0x80_0074, 4, 4, 4, 4, 1]),
    ] {
        let version = versions[0];
        let policy = BusPolicy { versions, redirected, ..BusPolicy::default() };
        let config = BusConfig { vtl: 2, ..BusConfig::default() };
        let mut pair = Pair::new(config, policy);
        pair.settle();
        let contact = |post: &Post| post.payload.kind() == MessageType::INITIATE_CONTACT;
        let tried: Vec<_> = pair
            .tried
            .iter()
            .filter(|(post, _)| contact(post))
            .map(|(post, _)| post.connection.0)
            .collect();
        assert_eq!(tried, connections, "{version}");
        assert_eq!(pair.bus.version(), Some(version));
        assert_eq!(pair.host.vtl(), if version >= Version::V5_1 { 2 } else { 0 });
        assert_eq!(pair.host.counters().guest_errors, 0);
    }
}

#[test]
fn contact_that_can_never_be_posted_ends_and_may_be_tried_again() {
    let missing = PostStatus::INVALID_CONNECTION_ID;
    let old = || BusPolicy { versions: vec![Version::V4_1], ..BusPolicy::default() };
    // No older version is left to ask for.
    let mut pair = Pair::new(guest_of(&[Version::V5_3, Version::V5_0]), old());
    pair.settle();
    let not_posted =
        |version, status| vec![Event::ContactFailed(ContactFailure::NotPosted { version, status })];
    assert_eq!(pair.events, not_posted(Version::V5_0, missing));
    assert_eq!((pair.bus.state(), pair.bus.poll_deadline()), (BusState::Idle, None));
    // Any other status says nothing of the version.
    let broken = PostStatus(5);
    let post_failures = [broken].into();
    let mut pair =
        Pair::new(guest_of(&Version::ALL), BusPolicy { post_failures, ..BusPolicy::default() });
    pair.settle();
    assert_eq!(pair.events, not_posted(Version::V6_0, broken));
    pair.bus.start(pair.now).unwrap();
    pair.settle();
    assert_eq!(pair.bus.version(), Some(Version::V5_3));
    // And so does a hypervisor that never has room.
    let busy = PostStatus::INSUFFICIENT_BUFFERS;
    let post_failures = vec![busy; 100].into();
    let mut pair =
        Pair::new(guest_of(&Version::ALL), BusPolicy { post_failures, ..BusPolicy::default() });
    pair.settle();
    assert_eq!(pair.events, not_posted(Version::V6_0, busy));
}

#[test]
fn contacts_of_earlier_tries_that_were_not_posted_move_nothing() {
    let mut bus = Bus::new(guest_of(&[Version::V5_3, Version::V5_2]));
    let (now, missing) = (Instant::ZERO, PostStatus::INVALID_CONNECTION_ID);
    bus.start(now).unwrap();
    let first = bus.poll_outgoing().unwrap();
    bus.post_failed(first, missing, now);
    bus.post_failed(first, missing, now);
    let second = bus.poll_outgoing().unwrap();
    assert_eq!(second.payload[8..12], Version::V5_2.0.to_le_bytes());
    assert_eq!((bus.poll_outgoing(), bus.poll_event()), (None, None));
    assert_eq!(bus.state(), BusState::Contacting);
    bus.post_failed(second, missing, now);
    assert_eq!(bus.state(), BusState::Idle);
}

#[test]
fn the_answer_to_a_message_that_was_never_posted_is_overdue() {
    let mut pair = Pair::new(guest_of(&Version::ALL), BusPolicy::default());
    pair.settle();
    // The host is asked to end the connection, and does not hear it.
    pair.bus.unload(pair.now).unwrap();
    let post = pair.bus.poll_outgoing().unwrap();
    assert_eq!(post.payload.kind(), MessageType::UNLOAD);
    pair.bus.post_failed(post, PostStatus::INSUFFICIENT_BUFFERS, pair.now);
    assert_eq!((pair.bus.poll_event(), pair.bus.state()), (None, BusState::Unloading));
    pair.now = pair.bus.poll_deadline().unwrap();
    pair.bus.handle_deadline(pair.now);
    assert_eq!(pair.bus.poll_event(), Some(Event::Overdue(Wait::Unload)));
    pair.bus.start(pair.now).unwrap();
    pair.settle();
    assert_eq!(pair.bus.version(), Some(Version::V5_3));
}

#[test]
fn a_farewell_waits_for_a_connection_that_is_being_rebuilt() {
    let mut pair = Pair::new(guest_of(&Version::ALL), BusPolicy::default());
    pair.settle();
    (pair.tried, pair.events) = (Vec::new(), Vec::new());
    let missing = PostStatus::INVALID_CONNECTION_ID;
    pair.host.policy_mut().post_failures = [missing, PostStatus::SUCCESS].into();
    pair.bus.unload(pair.now).unwrap();
    assert_eq!(pair.bus.version(), None);
    pair.settle();
    let tried: Vec<_> =
        pair.tried.iter().map(|(post, status)| (post.payload.kind(), *status)).collect();
    let unload = MessageType::UNLOAD;
    assert_eq!(tried, [(unload, missing), (unload, PostStatus::SUCCESS)]);
    assert_eq!(pair.events, [Event::Unloaded]);
    assert_eq!((pair.bus.stats().unposted, pair.bus.poll_deadline()), (0, None));
}

//! The bus against answers written by hand. How it gets along with a whole host is tested where the host is.

extern crate std;

mod rare;

use core::time::Duration;
use std::vec;
use std::vec::Vec;

use zerocopy::little_endian::{U16, U32};

use super::*;
use crate::memory::SharedPages;
use crate::message::*;
use crate::{Guid, Pfn};

const T0: Instant = Instant::ZERO;
const FIVE: ChannelId = ChannelId(5);

fn late() -> Instant {
    T0 + BusConfig::default().deadline
}

fn pages(count: u64) -> SharedPages {
    SharedPages::from_heap(&(0..count).map(|page| Pfn(2 * page + 9)).collect::<Vec<_>>())
}

fn tell<B: Body>(bus: &mut Bus, body: &B) {
    bus.handle_message(&Payload::new(body), T0).unwrap();
}

fn events(bus: &mut Bus) -> Vec<Event> {
    core::iter::from_fn(|| bus.poll_event()).collect()
}

fn posted(bus: &mut Bus) -> Vec<MessageType> {
    core::iter::from_fn(|| bus.poll_outgoing()).map(|post| post.payload.kind()).collect()
}

fn answer(supported: u8, state: u8, connection: u32) -> VersionResponse {
    VersionResponse { supported, state, reserved: U16::new(0), connection: U32::new(connection) }
}

fn offer(channel: u32) -> OfferChannel {
    OfferChannel {
        class: NIC_CLASS.into(),
        instance: Guid::from_u128(1).into(),
        reserved: [0; 16],
        flags: U16::new(0x8200),
        mmio_megabytes: U16::new(8),
        user_defined: [0; 120],
        sub_channel: U16::new(0),
        mmio_megabytes_optional: U16::new(0),
        channel: U32::new(channel),
        monitor: 3,
        monitor_allocated: 0,
        dedicated_interrupt: U16::new(1),
        connection: U32::new(0x2000 | channel),
    }
}

fn created(gpadl: GpadlId, status: u32) -> GpadlCreated {
    let (gpadl, status) = (U32::new(gpadl.0), U32::new(status));
    GpadlCreated { channel: U32::new(5), gpadl, status }
}

fn torn_down(gpadl: GpadlId) -> GpadlTorndown {
    GpadlTorndown { gpadl: U32::new(gpadl.0) }
}

fn opened(status: u32) -> OpenResult {
    OpenResult { channel: U32::new(5), open_id: U32::new(5), status: U32::new(status) }
}

const RESCIND: RescindOffer = RescindOffer { channel: U32::new(5) };

fn bus_of(versions: &[Version]) -> Bus {
    Bus::new(BusConfig { versions: versions.to_vec(), ..BusConfig::default() })
}

/// Connected, with channel 5 offered and nothing left to fetch.
fn connected(version: Version) -> Bus {
    let mut bus = bus_of(&[version]);
    bus.start(T0).unwrap();
    tell(&mut bus, &answer(1, 0, 0x77));
    tell(&mut bus, &offer(5));
    tell(&mut bus, &AllOffersDelivered {});
    let _ = (events(&mut bus), posted(&mut bus));
    bus
}

/// Channel 5 open; its ring is the first GPADL.
fn open(version: Version) -> (Bus, GpadlId) {
    let ring = BusConfig::default().first_gpadl;
    let mut bus = connected(version);
    bus.open(FIVE, &pages(8), 4, 0, T0).unwrap();
    tell(&mut bus, &created(ring, 0));
    tell(&mut bus, &opened(0));
    assert_eq!(events(&mut bus), [Event::Opened { channel: FIVE }]);
    posted(&mut bus);
    (bus, ring)
}

#[test]
fn versions_are_asked_newest_first_on_their_connections() {
    let mut bus = bus_of(&[Version::V6_0, Version::V5_3, Version::V4_1]);
    bus.start(T0).unwrap();
    for connection in [4, 4] {
        assert_eq!(bus.poll_outgoing().unwrap().connection, ConnectionId(connection));
        tell(&mut bus, &answer(0, 0, 0));
    }
    let post = bus.poll_outgoing().unwrap();
    assert_eq!(post.connection, ConnectionId(1));
    assert_eq!(post.payload[8..12], Version::V4_1.0.to_le_bytes());
    assert_eq!(post.payload[16..24], [0; 8], "no interrupt page");
    tell(&mut bus, &answer(1, 0, Version::V4_1.0));
    assert_eq!(events(&mut bus), [Event::Connected { version: Version::V4_1 }]);
    let post = bus.poll_outgoing().unwrap();
    assert_eq!(
        (post.connection, post.payload.kind()),
        (ConnectionId(1), MessageType::REQUEST_OFFERS)
    );
}

#[test]
fn messages_go_where_the_host_says_from_5_0_on() {
    let mut bus = bus_of(&[Version::V5_0]);
    bus.start(T0).unwrap();
    let post = bus.poll_outgoing().unwrap();
    assert_eq!(post.payload[16..24], [2, 0, 0, 0, 0, 0, 0, 0]);
    tell(&mut bus, &answer(1, 0, 0x77));
    assert_eq!(bus.poll_outgoing().unwrap().connection, ConnectionId(0x77));
}

#[test]
fn contact_fails_without_a_common_version_or_when_the_host_says_so() {
    let mut bus = bus_of(&[Version::V5_0, Version::V4_0]);
    bus.start(T0).unwrap();
    tell(&mut bus, &answer(0, 0, 0));
    tell(&mut bus, &answer(0, 0, 0));
    let failed = |failure| vec![Event::ContactFailed(failure)];
    assert_eq!(events(&mut bus), failed(ContactFailure::NoCommonVersion));
    assert_eq!((bus.state(), bus.poll_deadline()), (BusState::Idle, None));
    bus.start(T0).unwrap();
    tell(&mut bus, &answer(1, 1, 4));
    let refused = ContactFailure::Refused { version: Version::V5_0, state: 1 };
    assert_eq!(events(&mut bus), failed(refused));
}

#[test]
fn only_the_answer_counts_while_contacting() {
    let mut bus = bus_of(&[Version::V5_0]);
    tell(&mut bus, &UnloadResponse {});
    bus.start(T0).unwrap();
    tell(&mut bus, &offer(5));
    tell(&mut bus, &UnloadResponse {});
    tell(&mut bus, &RESCIND);
    assert_eq!((events(&mut bus), bus.stats().out_of_state), (vec![], 4));
    assert_eq!(bus.start(T0), Err(Error::AlreadyStarted { state: BusState::Contacting }));
    assert_eq!(bus_of(&[]).start(T0), Err(Error::NoVersions));
}

#[test]
fn an_offer_says_what_the_wire_said() {
    let mut bus = connected(Version::V5_3);
    let user_defined = core::array::from_fn(|at| at as u8 + 1);
    tell(&mut bus, &OfferChannel { monitor_allocated: 1, user_defined, ..offer(6) });
    let Some(Event::Offered(offer)) = bus.poll_event() else { panic!("no offer") };
    assert_eq!(offer.user_defined, user_defined);
    assert_eq!((offer.channel, offer.class, offer.monitor), (ChannelId(6), NIC_CLASS, Some(3)));
    assert_eq!((offer.connection, offer.mmio_megabytes), (ConnectionId(0x2006), 8));
    assert_eq!(offer.flags, OfferFlags::PARENT_OFFER, "unknown bits are ignored");
    assert_eq!(bus.offer(ChannelId(6)), Some(&offer));
}

#[test]
fn offers_with_impossible_ids_are_errors() {
    let mut bus = connected(Version::V5_3);
    for channel in [0, 2048, u32::MAX] {
        assert_eq!(
            bus.handle_message(&Payload::new(&offer(channel)), T0),
            Err(HostError::ChannelIdOutOfRange { channel: ChannelId(channel) })
        );
    }
    assert_eq!(
        bus.handle_message(&Payload::new(&offer(5)), T0),
        Err(HostError::ChannelHeld { channel: FIVE })
    );
    assert_eq!((events(&mut bus), bus.stats().bad_offers), (vec![], 4));
}

#[test]
fn wrong_messages_cost_nothing_but_themselves() {
    let mut bus = connected(Version::V4_0);
    let modify = ModifyChannelResponse { channel: U32::new(5), status: U32::new(0) };
    assert!(matches!(
        bus.handle_message(&Payload::new(&modify), T0),
        Err(HostError::Message(MessageError::TooNew { .. }))
    ));
    assert!(bus.handle_message(&Payload::new(&Unload {}), T0).is_err());
    assert!(bus.handle_message(&[1, 2], T0).is_err());
    bus.handle_message(&[0xee; 16], T0).unwrap();
    tell(&mut bus, &answer(1, 0, 0));
    tell(&mut bus, &AllOffersDelivered {});
    let stats = bus.stats();
    assert_eq!((stats.malformed, stats.unknown, stats.out_of_state, stats.late), (3, 1, 1, 1));
    bus.open(FIVE, &pages(8), 4, 0, T0).unwrap();
}

#[test]
fn open_tells_the_rings_first_and_close_returns_them() {
    let mut bus = connected(Version::V5_3);
    let ring = BusConfig::default().first_gpadl;
    bus.open(FIVE, &pages(8), 4, 7, T0).unwrap();
    assert_eq!(posted(&mut bus), [MessageType::GPADL_HEADER]);
    tell(&mut bus, &created(ring, 0));
    let post = bus.poll_outgoing().unwrap().payload;
    let words: Vec<u32> =
        post[8..28].chunks(4).map(|word| u32::from_le_bytes(word.try_into().unwrap())).collect();
    assert_eq!((post.kind(), words), (MessageType::OPEN_CHANNEL, vec![5, 5, ring.0, 7, 4]));
    tell(&mut bus, &opened(0));
    tell(&mut bus, &opened(0));
    assert_eq!(bus.stats().late, 1, "a second answer");
    assert_eq!(bus.unshare(ring, T0), Err(Error::RingGpadl { gpadl: ring }));
    bus.close(FIVE, T0).unwrap();
    assert_eq!(posted(&mut bus), [MessageType::CLOSE_CHANNEL, MessageType::GPADL_TEARDOWN]);
    assert_eq!(bus.shared_pages(), 8);
    tell(&mut bus, &torn_down(ring));
    tell(&mut bus, &torn_down(ring));
    assert_eq!((bus.shared_pages(), bus.stats().late), (0, 2));
    assert_eq!(
        events(&mut bus),
        [Event::Opened { channel: FIVE }, Event::Closed { channel: FIVE }]
    );
    assert_eq!(bus.poll_deadline(), None);
}

#[test]
fn other_memory_goes_back_before_the_close_until_4_0_and_after_it_since() {
    use MessageType as M;
    for (version, expected) in [
        (Version::V3_0, [M::GPADL_TEARDOWN, M::CLOSE_CHANNEL, M::GPADL_TEARDOWN]),
        (Version::V4_0, [M::CLOSE_CHANNEL, M::GPADL_TEARDOWN, M::GPADL_TEARDOWN]),
    ] {
        let (mut bus, ring) = open(version);
        let gpadl = bus.share(FIVE, &pages(2), T0).unwrap();
        tell(&mut bus, &created(gpadl, 0));
        assert_eq!(events(&mut bus), [Event::Shared { channel: FIVE, gpadl }]);
        posted(&mut bus);
        bus.close(FIVE, T0).unwrap();
        assert_eq!(posted(&mut bus), expected);
        bus.unshare(gpadl, T0).unwrap();
        assert_eq!(posted(&mut bus), [], "asked for already");
        tell(&mut bus, &torn_down(ring));
        assert_eq!(events(&mut bus), []);
        tell(&mut bus, &torn_down(gpadl));
        let closed = Event::Closed { channel: FIVE };
        assert_eq!(events(&mut bus), [Event::Unshared { channel: FIVE, gpadl }, closed]);
    }
}

#[test]
fn refusals_return_the_memory_and_leave_the_channel_offered() {
    let mut bus = connected(Version::V5_3);
    let ring = BusConfig::default().first_gpadl;
    bus.open(FIVE, &pages(8), 4, 0, T0).unwrap();
    tell(&mut bus, &created(ring, 7));
    let failed = |step, status| Event::OpenFailed { channel: FIVE, step, status };
    assert_eq!(events(&mut bus), [failed(OpenStep::Rings, 7)]);
    assert_eq!(bus.shared_pages(), 0);
    let ring = GpadlId(ring.0 + 1);
    bus.open(FIVE, &pages(8), 4, 0, T0).unwrap();
    tell(&mut bus, &created(ring, 0));
    tell(&mut bus, &opened(8));
    assert_eq!(events(&mut bus), []);
    tell(&mut bus, &torn_down(ring));
    assert_eq!(events(&mut bus), [failed(OpenStep::Open, 8)]);
    let gpadl = bus.share(FIVE, &pages(1), T0).unwrap();
    tell(&mut bus, &created(gpadl, 9));
    assert_eq!(events(&mut bus), [Event::ShareFailed { channel: FIVE, gpadl, status: 9 }]);
    assert_eq!((bus.shared_pages(), bus.channel_state(FIVE)), (0, Some(ChannelState::Offered)));
}

#[test]
fn a_channel_can_be_closed_while_it_opens() {
    let ring = BusConfig::default().first_gpadl;
    for step in 0..4 {
        let mut bus = connected(Version::V5_3);
        bus.open(FIVE, &pages(8), 4, 0, T0).unwrap();
        if step == 0 {
            bus.close(FIVE, T0).unwrap();
            tell(&mut bus, &created(ring, 7));
        } else {
            if step == 1 {
                bus.close(FIVE, T0).unwrap();
            }
            tell(&mut bus, &created(ring, 0));
            if step > 1 {
                bus.close(FIVE, T0).unwrap();
                tell(&mut bus, &opened(if step == 2 { 0 } else { 9 }));
            }
            let closes =
                posted(&mut bus).iter().filter(|kind| **kind == MessageType::CLOSE_CHANNEL).count();
            assert_eq!(closes, usize::from(step == 2), "step {step}");
            tell(&mut bus, &torn_down(ring));
        }
        assert_eq!(events(&mut bus), [Event::Closed { channel: FIVE }], "step {step}");
        bus.open(FIVE, &pages(8), 4, 0, T0).unwrap();
    }
}

#[test]
fn memory_that_is_still_being_told_is_asked_back_afterwards() {
    let mut bus = connected(Version::V5_3);
    let gpadl = bus.share(FIVE, &pages(1), T0).unwrap();
    posted(&mut bus);
    bus.unshare(gpadl, T0).unwrap();
    assert_eq!(posted(&mut bus), []);
    tell(&mut bus, &created(gpadl, 0));
    assert_eq!(posted(&mut bus), [MessageType::GPADL_TEARDOWN]);
    tell(&mut bus, &torn_down(gpadl));
    assert_eq!(events(&mut bus), [Event::Unshared { channel: FIVE, gpadl }]);
    assert_eq!(bus.unshare(gpadl, T0), Err(Error::UnknownGpadl { gpadl }));
}

#[test]
fn answers_for_other_channels_or_requests_count_as_late() {
    let mut bus = connected(Version::V5_3);
    let gpadl = bus.share(FIVE, &pages(1), T0).unwrap();
    tell(&mut bus, &GpadlCreated { channel: U32::new(6), ..created(gpadl, 0) });
    tell(&mut bus, &torn_down(gpadl));
    tell(&mut bus, &opened(0));
    tell(&mut bus, &OpenResult { channel: U32::new(9), ..opened(0) });
    assert_eq!((events(&mut bus), bus.stats().late), (vec![], 4));
    assert_eq!(bus.shared_pages(), 1);
}

#[test]
fn every_wait_ends_on_rescind_and_the_id_goes_back_once() {
    let (mut bus, ring) = open(Version::V5_3);
    let gpadl = bus.share(FIVE, &pages(2), T0).unwrap();
    posted(&mut bus);
    tell(&mut bus, &RESCIND);
    tell(&mut bus, &RESCIND);
    assert_eq!(events(&mut bus), [Event::Rescinded { channel: FIVE }]);
    assert_eq!((bus.poll_deadline(), bus.stats().repeated_rescinds), (None, 1));
    assert_eq!(bus.close(FIVE, T0), Err(Error::Rescinded { channel: FIVE }));
    assert_eq!(bus.share(FIVE, &pages(1), T0), Err(Error::Rescinded { channel: FIVE }));
    assert_eq!(bus.unshare(gpadl, T0), Err(Error::Rescinded { channel: FIVE }));
    bus.release(FIVE, T0).unwrap();
    assert_eq!(bus.release(FIVE, T0), Err(Error::Released { channel: FIVE }));
    assert_eq!(posted(&mut bus), [MessageType::GPADL_TEARDOWN], "one piece is still being told");
    tell(&mut bus, &torn_down(ring));
    tell(&mut bus, &created(gpadl, 0));
    tell(&mut bus, &RESCIND);
    tell(&mut bus, &torn_down(gpadl));
    assert_eq!(posted(&mut bus), [MessageType::GPADL_TEARDOWN, MessageType::RELID_RELEASED]);
    assert_eq!(events(&mut bus), [Event::Released { channel: FIVE }]);
    assert_eq!(bus.release(FIVE, T0), Err(Error::UnknownChannel { channel: FIVE }));
    tell(&mut bus, &RESCIND);
    assert_eq!((bus.shared_pages(), bus.stats().repeated_rescinds), (0, 3));
}

#[test]
fn an_offer_with_a_held_id_is_new_after_the_release() {
    let mut bus = connected(Version::V5_3);
    tell(&mut bus, &RESCIND);
    tell(&mut bus, &offer(5));
    assert_eq!(events(&mut bus), [Event::Rescinded { channel: FIVE }]);
    bus.release(FIVE, T0).unwrap();
    assert!(matches!(&events(&mut bus)[..], [Event::Released { .. }, Event::Offered(_)]));
    bus.open(FIVE, &pages(8), 4, 0, T0).unwrap();
}

#[test]
fn an_offer_with_a_held_id_can_be_rescinded_unseen() {
    let mut bus = connected(Version::V5_3);
    tell(&mut bus, &RESCIND);
    tell(&mut bus, &offer(5));
    tell(&mut bus, &RESCIND);
    bus.release(FIVE, T0).unwrap();
    let released = Event::Released { channel: FIVE };
    assert_eq!(events(&mut bus), [Event::Rescinded { channel: FIVE }, released]);
}

#[test]
fn an_unwanted_offer_can_be_given_back_but_not_an_open_channel() {
    let (mut bus, _) = open(Version::V5_3);
    let expected = ChannelState::Offered;
    let wrong = Error::WrongState { channel: FIVE, state: ChannelState::Open, expected };
    assert_eq!(bus.release(FIVE, T0), Err(wrong));
    tell(&mut bus, &offer(6));
    bus.release(ChannelId(6), T0).unwrap();
    assert_eq!(posted(&mut bus), [MessageType::RELID_RELEASED]);
}

#[test]
fn late_answers_are_reported_once_and_still_count() {
    let mut bus = connected(Version::V5_3);
    let ring = BusConfig::default().first_gpadl;
    bus.open(FIVE, &pages(8), 4, 0, T0).unwrap();
    assert_eq!(bus.poll_deadline(), Some(late()));
    bus.handle_deadline(T0 + Duration::from_secs(1));
    assert_eq!(events(&mut bus), []);
    bus.handle_deadline(late());
    bus.handle_deadline(late());
    assert_eq!(events(&mut bus), [Event::Overdue(Wait::Share { channel: FIVE, gpadl: ring })]);
    assert_eq!((bus.poll_deadline(), bus.stats().overdue), (None, 1));
    tell(&mut bus, &created(ring, 0));
    bus.handle_deadline(late());
    assert_eq!(events(&mut bus), [Event::Overdue(Wait::Open { channel: FIVE })]);
    tell(&mut bus, &opened(0));
    assert_eq!(events(&mut bus), [Event::Opened { channel: FIVE }]);
}

#[test]
fn a_host_that_keeps_memory_does_not_keep_the_id() {
    let (mut bus, ring) = open(Version::V5_3);
    tell(&mut bus, &RESCIND);
    bus.release(FIVE, T0).unwrap();
    bus.handle_deadline(late());
    let channel = FIVE;
    let overdue = Event::Overdue(Wait::Unshare { channel, gpadl: ring });
    assert_eq!(
        events(&mut bus),
        [Event::Rescinded { channel }, overdue, Event::Released { channel }]
    );
    assert_eq!(bus.shared_pages(), 8, "the host may still write there");
    tell(&mut bus, &offer(5));
    tell(&mut bus, &torn_down(ring));
    assert_eq!(bus.shared_pages(), 0);
    assert!(matches!(&events(&mut bus)[..], [Event::Offered(_)]));
}

#[test]
fn memory_that_was_late_before_the_release_does_not_keep_the_id() {
    for (told, then) in [(false, "its making"), (true, "its return")] {
        let mut bus = connected(Version::V5_3);
        let gpadl = bus.share(FIVE, &pages(1), T0).unwrap();
        if told {
            tell(&mut bus, &created(gpadl, 0));
            bus.unshare(gpadl, T0).unwrap();
        }
        bus.handle_deadline(late());
        events(&mut bus);
        bus.release(FIVE, late()).unwrap();
        assert_eq!(events(&mut bus), [Event::Released { channel: FIVE }], "late with {then}");
        assert_eq!((bus.poll_deadline(), bus.shared_pages()), (None, 1));
    }
}

#[test]
fn unload_ends_everything_and_a_new_contact_may_follow() {
    let (mut bus, _) = open(Version::V5_3);
    let gpadl = bus.share(FIVE, &pages(2), T0).unwrap();
    bus.unload(T0).unwrap();
    assert_eq!(posted(&mut bus).last(), Some(&MessageType::UNLOAD));
    tell(&mut bus, &offer(6));
    tell(&mut bus, &created(gpadl, 0));
    assert_eq!((events(&mut bus), bus.shared_pages()), (vec![], 10));
    assert_eq!(bus.unload(T0), Err(Error::NotConnected { state: BusState::Unloading }));
    tell(&mut bus, &UnloadResponse {});
    tell(&mut bus, &UnloadResponse {});
    assert_eq!((events(&mut bus), bus.shared_pages()), (vec![Event::Unloaded], 0));
    assert_eq!(bus.close(FIVE, T0), Err(Error::NotConnected { state: BusState::Idle }));
    bus.start(T0).unwrap();
}

#[test]
fn a_host_that_does_not_answer_the_unload_is_contacted_again() {
    let (mut bus, _) = open(Version::V5_3);
    bus.unload(T0).unwrap();
    bus.handle_deadline(late());
    assert_eq!(events(&mut bus), [Event::Overdue(Wait::Unload)]);
    bus.start(T0).unwrap();
    tell(&mut bus, &UnloadResponse {});
    assert_eq!((events(&mut bus), bus.shared_pages()), (vec![], 8));
    tell(&mut bus, &answer(1, 0, 4));
    assert_eq!(bus.shared_pages(), 0, "contact makes the host forget");
}

#[test]
fn hosts_before_3_0_are_not_asked_to_unload() {
    let (mut bus, _) = open(Version::V2_4);
    bus.unload(T0).unwrap();
    assert_eq!((posted(&mut bus), events(&mut bus)), (vec![], vec![Event::Unloaded]));
    assert_eq!(bus.shared_pages(), 8, "until the next contact");
}

#[test]
fn requests_that_cannot_be_followed_are_errors() {
    let mut bus = bus_of(&[Version::V5_3]);
    let idle = Error::NotConnected { state: BusState::Idle };
    assert_eq!(bus.open(FIVE, &pages(8), 4, 0, T0), Err(idle));
    assert_eq!(bus.release(FIVE, T0), Err(idle));
    assert_eq!(bus.unshare(GpadlId(1), T0), Err(idle));
    let mut bus = connected(Version::V5_3);
    for (count, split) in [(8, 1), (8, 7), (8, 8), (8, u32::MAX), (3, 2)] {
        let error = Error::BadRings { pages: count, downstream_page: split };
        assert_eq!(bus.open(FIVE, &pages(count as u64), split, 0, T0), Err(error));
    }
    let six = ChannelId(6);
    let unknown = Error::UnknownChannel { channel: six };
    assert_eq!(bus.open(six, &pages(8), 4, 0, T0), Err(unknown));
    assert_eq!(
        bus.share(FIVE, &pages(8191), T0),
        Err(Error::Encode(crate::gpadl::EncodeError::TooLarge { bytes: 65536 }))
    );
    let wrong = |state, expected| Err(Error::WrongState { channel: FIVE, state, expected });
    assert_eq!(bus.close(FIVE, T0), wrong(ChannelState::Offered, ChannelState::Open));
    assert_eq!(posted(&mut bus), []);
    let (mut bus, _) = open(Version::V5_3);
    assert_eq!(
        bus.open(FIVE, &pages(8), 4, 0, T0),
        wrong(ChannelState::Open, ChannelState::Offered)
    );
    bus.close(FIVE, T0).unwrap();
    let closing = wrong(ChannelState::Closing, ChannelState::Open);
    assert_eq!(bus.close(FIVE, T0), closing);
    assert_eq!(bus.share(FIVE, &pages(1), T0).map(|_| ()), closing);
}

#[test]
fn gpadl_ids_end_and_are_never_used_twice() {
    let config = BusConfig { first_gpadl: GpadlId(u32::MAX), ..BusConfig::default() };
    let mut bus = Bus::new(config);
    bus.start(T0).unwrap();
    tell(&mut bus, &answer(1, 0, 4));
    tell(&mut bus, &offer(5));
    assert_eq!(bus.share(FIVE, &pages(1), T0), Ok(GpadlId(u32::MAX)));
    assert_eq!(bus.share(FIVE, &pages(1), T0), Err(Error::NoGpadlIds));
}

#[test]
fn a_message_that_could_not_be_posted_keeps_its_place() {
    let mut bus = connected(Version::V5_3);
    bus.share(FIVE, &pages(40), T0).unwrap();
    let first = bus.poll_outgoing().unwrap();
    bus.put_back(first);
    assert_eq!(posted(&mut bus), [MessageType::GPADL_HEADER, MessageType::GPADL_BODY]);
}

#[test]
fn offer_flags_that_need_a_feature_mean_nothing_without_it() {
    // Older hosts set the same bits for other reasons.
    let special = OfferChannel { flags: U16::new(0x20e), ..offer(7) };
    let mut old = connected(Version::V5_3);
    tell(&mut old, &special);
    assert_eq!(old.offer(ChannelId(7)).unwrap().flags, OfferFlags::PARENT_OFFER);
    let (confidential, pinned) = (Features::CONFIDENTIAL_CHANNELS, Features::GPADL_PINNING);
    for (features, bits) in [
        (Features::empty(), 0x200),
        (confidential, 0x206),
        (pinned, 0x208),
        (confidential | pinned, 0x20e),
    ] {
        let versions = [Version::V6_0].to_vec();
        let mut bus = Bus::new(BusConfig { versions, features, ..BusConfig::default() });
        bus.start(T0).unwrap();
        let yes = Payload::new(&answer(1, 0, 4)).with(&features.bits().to_le_bytes());
        bus.handle_message(&yes, T0).unwrap();
        tell(&mut bus, &special);
        assert_eq!(bus.offer(ChannelId(7)).unwrap().flags.bits(), bits, "{features:?}");
    }
}

#[test]
fn a_bit_rings_in_the_guests_own_page_and_in_no_other() {
    let own = pages(2);
    for (features, monitor, rings) in [
        (Features::empty(), 3, true),
        (Features::empty(), 128, false),
        (Features::SERVER_MONITOR_PAGES, 3, false),
    ] {
        let mut bus = Bus::new(BusConfig {
            versions: [Version::V6_0].to_vec(),
            features,
            monitor_pages: Some(own.clone()),
            ..BusConfig::default()
        });
        bus.start(T0).unwrap();
        // The features, and pages of the host behind them, which count only with their feature.
        let yes =
            Payload::new(&answer(1, 0, 4)).with(&features.bits().to_le_bytes()).with(&[0; 20]);
        bus.handle_message(&yes, T0).unwrap();
        tell(&mut bus, &OfferChannel { monitor, monitor_allocated: 1, ..offer(6) });
        tell(&mut bus, &offer(7));
        assert_eq!(bus.monitor_doorbell(ChannelId(6)).is_some(), rings, "{features:?} {monitor}");
        assert!(
            bus.monitor_doorbell(ChannelId(7)).is_none() && bus.monitor_doorbell(FIVE).is_none()
        );
        if let Some(bell) = bus.monitor_doorbell(ChannelId(6)) {
            crate::Doorbell::ring(&bell);
            let mut word = [0; 4];
            crate::memory::SharedMemory::read(&own, 4096 + 8, &mut word).unwrap();
            assert_eq!(word, [8, 0, 0, 0]);
        }
    }
}

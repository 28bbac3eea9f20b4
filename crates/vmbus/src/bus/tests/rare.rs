//! What happens seldom: answers that cross, old hosts, guests of other trust levels.

use super::*;

#[test]
fn an_answer_to_a_wish_of_before_a_close_is_late_as_long_as_that_can_be_told() {
    let (mut bus, ring) = open(Version::V5_3);
    let answer = ModifyChannelResponse { channel: U32::new(5), status: U32::new(0) };
    bus.retarget(FIVE, 1, T0).unwrap();
    posted(&mut bus);
    bus.close(FIVE, T0).unwrap();
    tell(&mut bus, &torn_down(ring));
    assert_eq!(
        (events(&mut bus), bus.poll_deadline()),
        (vec![Event::Closed { channel: FIVE }], None)
    );
    posted(&mut bus);
    let ring = GpadlId(ring.0 + 1);
    bus.open(FIVE, &pages(8), 4, 0, T0).unwrap();
    tell(&mut bus, &created(ring, 0));
    tell(&mut bus, &opened(0));
    assert_eq!(events(&mut bus), [Event::Opened { channel: FIVE }]);
    posted(&mut bus);
    bus.retarget(FIVE, 2, T0).unwrap();
    // The new wish is not even posted.
    tell(&mut bus, &answer);
    assert_eq!((events(&mut bus), bus.stats().late), (vec![], 1));
    assert_eq!(posted(&mut bus), [MessageType::MODIFY_CHANNEL]);
    tell(&mut bus, &answer);
    assert_eq!(events(&mut bus), [Event::Retargeted { channel: FIVE, target_vp: 2, status: 0 }]);
    assert_eq!((bus.stats().late, bus.poll_deadline()), (1, None));
}

#[test]
fn events_that_nobody_took_before_the_farewell_are_void() {
    for version in [Version::V2_4, Version::V5_3] {
        let (mut bus, _) = open(version);
        let gpadl = bus.share(FIVE, &pages(2), T0).unwrap();
        tell(&mut bus, &created(gpadl, 0));
        tell(&mut bus, &offer(6));
        tell(&mut bus, &RESCIND);
        bus.unload(T0).unwrap();
        if version >= Version::V3_0 {
            assert_eq!(events(&mut bus), [], "nothing that could be asked for");
            bus.handle_deadline(late());
            assert_eq!(events(&mut bus), [Event::Overdue(Wait::Unload)]);
            tell(&mut bus, &UnloadResponse {});
        }
        assert_eq!(events(&mut bus), [Event::Unloaded], "{version}");
    }
}

#[test]
fn an_old_host_has_nothing_left_if_all_was_closed_before_the_farewell() {
    let (mut bus, ring) = open(Version::V2_4);
    bus.close(FIVE, T0).unwrap();
    tell(&mut bus, &torn_down(ring));
    assert_eq!(events(&mut bus), [Event::Closed { channel: FIVE }]);
    bus.unload(T0).unwrap();
    assert_eq!((events(&mut bus), bus.shared_pages()), (vec![Event::Unloaded], 0));
    // What was not closed is the host's until it answers the next contact.
    let (mut bus, _) = open(Version::V2_4);
    bus.unload(T0).unwrap();
    assert_eq!((events(&mut bus), bus.shared_pages()), (vec![Event::Unloaded], 8));
    bus.start(T0).unwrap();
    assert_eq!(bus.shared_pages(), 8);
    tell(&mut bus, &answer(1, 0, Version::V2_4.0));
    assert_eq!(bus.shared_pages(), 0);
}

#[test]
fn a_guest_says_in_which_trust_level_it_runs_from_5_1_on() {
    for (vtl, redirected) in [(0, false), (1, false), (2, true)] {
        for version in Version::ALL {
            let versions = vec![version];
            let features = Features::MODIFY_CONNECTION;
            let mut bus = Bus::new(BusConfig { versions, features, vtl, ..BusConfig::default() });
            bus.start(T0).unwrap();
            let post = bus.poll_outgoing().unwrap();
            let told = if version >= Version::V5_1 { vtl } else { 0 };
            let sint = if version >= Version::V5_0 { 2 } else { 0 };
            let asked = if version >= Version::V6_0 { 4 } else { 0 };
            assert_eq!(post.payload[16..24], [sint, told, 0, 0, asked, 0, 0, 0], "{version}");
            let connection = match version {
                Version::V2_4 | Version::V3_0 | Version::V4_0 | Version::V4_1 => 1,
                _ if redirected => 0x80_0074,
                _ => 4,
            };
            assert_eq!(post.connection, ConnectionId(connection), "{version} from {vtl}");
        }
    }
}

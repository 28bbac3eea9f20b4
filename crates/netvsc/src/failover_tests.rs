extern crate std;
use std::vec;
use std::vec::Vec;

use super::*;

fn at(millis: u64) -> Instant {
    Instant::from_nanos(millis * 1_000_000)
}

fn actions(failover: &mut Failover) -> Vec<Action> {
    core::iter::from_fn(|| failover.poll_action()).collect()
}

const fn transmit(path: Path, cause: Cause) -> Action {
    Action::Transmit { path, cause }
}

/// A NIC on its VF.
fn on_vf() -> Failover {
    let mut failover = Failover::new(FailoverConfig::default());
    failover.channel_opened(at(0));
    failover.associated(at(0));
    failover.port_bound(true, at(1));
    failover.switch_completed(Path::Vf, at(2));
    let expected = vec![Action::Switch(Path::Vf), transmit(Path::Vf, Cause::PortUp)];
    assert_eq!(actions(&mut failover), expected);
    failover
}

// HISTORY 37: no frame leaves on the VF before the host has switched.
#[test]
fn nothing_leaves_on_the_vf_before_the_completion() {
    let mut failover = Failover::new(FailoverConfig::default());
    assert_eq!(failover.outlet(), Outlet::Path(Path::Synthetic), "F1");
    failover.port_bound(true, at(0));
    assert_eq!(actions(&mut failover), [], "the NIC is not ready");
    failover.channel_opened(at(1));
    failover.associated(at(1));
    assert_eq!(actions(&mut failover), [Action::Switch(Path::Vf)]);
    assert_eq!(failover.outlet(), Outlet::Path(Path::Synthetic));
    failover.switch_completed(Path::Vf, at(1000));
    assert_eq!(failover.outlet(), Outlet::Path(Path::Vf));
}

// HISTORY 35, 36.
#[test]
fn a_port_without_carrier_is_not_switched_to_and_its_loss_is_followed_at_once() {
    let mut failover = Failover::new(FailoverConfig::default());
    failover.channel_opened(at(0));
    failover.associated(at(0));
    failover.port_bound(false, at(1));
    assert_eq!(actions(&mut failover), []);
    failover.port_link(true, at(2));
    failover.switch_completed(Path::Vf, at(3));
    actions(&mut failover);
    failover.port_link(false, at(4));
    assert_eq!(failover.outlet(), Outlet::Draining);
    let expected = [transmit(Path::Synthetic, Cause::LinkDown), Action::Switch(Path::Synthetic)];
    assert_eq!(actions(&mut failover), expected, "transmission stops first (F4)");
    failover.drained();
    assert_eq!(failover.outlet(), Outlet::Path(Path::Synthetic));
    failover.switch_completed(Path::Synthetic, at(5));
    failover.port_link(true, at(6));
    assert_eq!(actions(&mut failover), [Action::Switch(Path::Vf)]);
}

// F12, HISTORY section 6 item 1.
#[test]
fn a_port_asked_back_is_released_only_when_drained_and_switched() {
    for drained_first in [false, true] {
        let mut failover = on_vf();
        failover.port_leaving(Cause::Eject, at(10));
        let expected = [transmit(Path::Synthetic, Cause::Eject), Action::Switch(Path::Synthetic)];
        assert_eq!(actions(&mut failover), expected);
        if drained_first {
            failover.drained();
        } else {
            failover.switch_completed(Path::Synthetic, at(11));
        }
        assert_eq!(actions(&mut failover), []);
        if drained_first {
            failover.switch_completed(Path::Synthetic, at(12));
        } else {
            failover.drained();
        }
        assert_eq!(actions(&mut failover), [Action::Release { orderly: true }]);
        assert_eq!(failover.poll_deadline(), None);
    }
}

#[test]
fn a_port_that_was_never_used_is_released_at_once() {
    let mut failover = Failover::new(FailoverConfig::default());
    failover.channel_opened(at(0));
    failover.associated(at(0));
    failover.port_bound(false, at(1));
    failover.port_leaving(Cause::Unbound, at(2));
    assert_eq!(actions(&mut failover), [Action::Release { orderly: true }]);
}

// HISTORY section 6 item 1: the eject comes while the switch to the VF is under way.
#[test]
fn a_wish_that_changes_under_way_waits_for_the_newest_answer() {
    let mut failover = Failover::new(FailoverConfig::default());
    failover.channel_opened(at(0));
    failover.associated(at(0));
    failover.port_bound(true, at(1));
    failover.port_leaving(Cause::Eject, at(2));
    assert_eq!(actions(&mut failover), [Action::Switch(Path::Vf)], "one request at a time");
    failover.switch_completed(Path::Vf, at(3));
    let expected = [Action::Switch(Path::Synthetic)];
    assert_eq!(actions(&mut failover), expected, "no frame leaves on the VF any more");
    failover.switch_completed(Path::Synthetic, at(4));
    assert_eq!(actions(&mut failover), [Action::Release { orderly: true }]);
    assert_eq!(failover.host_path(), Path::Synthetic);
}

// F5, HISTORY 7, 8.
#[test]
fn a_vanished_port_needs_no_cooperation() {
    let mut failover = on_vf();
    failover.port_gone(at(10));
    let expected = [
        transmit(Path::Synthetic, Cause::Gone),
        Action::Resend,
        Action::Release { orderly: false },
        Action::Switch(Path::Synthetic),
    ];
    assert_eq!(actions(&mut failover), expected);
    assert_eq!(failover.outlet(), Outlet::Path(Path::Synthetic));
    failover.port_gone(at(11));
    assert_eq!(actions(&mut failover), [], "said twice, done once");
}

#[test]
fn a_port_that_vanishes_while_it_is_drained_is_resent_and_released_once() {
    let mut failover = on_vf();
    failover.port_leaving(Cause::Eject, at(10));
    actions(&mut failover);
    failover.port_gone(at(11));
    assert_eq!(actions(&mut failover), [Action::Resend, Action::Release { orderly: false }]);
    failover.switch_completed(Path::Synthetic, at(12));
    failover.drained();
    assert_eq!(actions(&mut failover), []);
}

// F3.
#[test]
fn the_hosts_own_switch_is_obeyed_and_not_answered() {
    let mut failover = on_vf();
    failover.host_switched(Path::Synthetic, at(10));
    assert_eq!(actions(&mut failover), [transmit(Path::Synthetic, Cause::Host)]);
    assert_eq!(failover.host_path(), Path::Synthetic);
    failover.drained();
    failover.handle_deadline(at(100_000));
    assert_eq!(actions(&mut failover), [], "and nothing is tried again by itself");
    failover.associated(at(100_001));
    assert_eq!(actions(&mut failover), [Action::Switch(Path::Vf)], "until something changes");
}

// HISTORY section 6 item 5: the notice comes before the completion.
#[test]
fn a_notice_before_the_completion_wins() {
    let mut failover = Failover::new(FailoverConfig::default());
    failover.channel_opened(at(0));
    failover.associated(at(0));
    failover.port_bound(true, at(1));
    actions(&mut failover);
    failover.host_switched(Path::Synthetic, at(2));
    failover.switch_completed(Path::Vf, at(3));
    assert_eq!(actions(&mut failover), []);
    assert_eq!(failover.outlet(), Outlet::Path(Path::Synthetic));
}

// F7.
#[test]
fn a_missing_completion_is_said_once_and_a_late_one_counts() {
    let mut failover = Failover::new(FailoverConfig::default());
    failover.channel_opened(at(0));
    failover.associated(at(0));
    failover.port_bound(true, at(1));
    actions(&mut failover);
    assert_eq!(failover.poll_deadline(), Some(at(5001)));
    failover.handle_deadline(at(5001));
    assert_eq!(actions(&mut failover), [Action::ReportOverdue { path: Path::Vf }]);
    assert_eq!(failover.poll_deadline(), None);
    assert_eq!(failover.outlet(), Outlet::Path(Path::Synthetic), "the safe one");
    failover.switch_completed(Path::Vf, at(60_000));
    assert_eq!(actions(&mut failover), [transmit(Path::Vf, Cause::PortUp)]);
}

// F7, F12: a host that never completes cannot keep the port.
#[test]
fn a_port_is_released_although_the_host_is_silent() {
    let mut failover = on_vf();
    failover.port_leaving(Cause::Eject, at(10));
    failover.drained();
    actions(&mut failover);
    failover.handle_deadline(at(5010));
    assert_eq!(
        actions(&mut failover),
        [Action::ReportOverdue { path: Path::Synthetic }, Action::Release { orderly: true }]
    );
}

#[test]
fn what_a_vf_does_not_confirm_in_time_is_sent_again() {
    let mut failover = on_vf();
    failover.port_leaving(Cause::Eject, at(10));
    failover.switch_completed(Path::Synthetic, at(11));
    actions(&mut failover);
    failover.handle_deadline(at(1010));
    assert_eq!(actions(&mut failover), [Action::Resend, Action::Release { orderly: false }]);
}

// F9, HISTORY 9.
#[test]
fn a_channel_that_closes_is_on_synthetic_and_returns_to_the_vf() {
    let mut failover = on_vf();
    failover.channel_closed(at(10));
    assert_eq!(
        actions(&mut failover),
        [transmit(Path::Synthetic, Cause::ChannelClosed)],
        "no message can be sent"
    );
    failover.drained();
    failover.switch_completed(Path::Vf, at(11));
    assert_eq!(actions(&mut failover), []);
    failover.channel_opened(at(12));
    assert_eq!(actions(&mut failover), [], "the host has not named a VF since");
    failover.associated(at(13));
    assert_eq!(actions(&mut failover), [Action::Switch(Path::Vf)]);
}

// F10, HISTORY: 900 flaps in an hour were seen in the field.
#[test]
fn flapping_is_reported() {
    let mut failover = on_vf();
    let mut reports = 0;
    for round in 0..10 {
        failover.port_link(false, at(100 + round * 10));
        failover.drained();
        failover.switch_completed(Path::Synthetic, at(101 + round * 10));
        failover.port_link(true, at(102 + round * 10));
        failover.switch_completed(Path::Vf, at(103 + round * 10));
        reports += actions(&mut failover)
            .iter()
            .filter(|action| matches!(action, Action::ReportFlapping { .. }))
            .count();
    }
    assert_eq!(reports, 11, "of 21 switches the first ten are normal");
}

// HISTORY 44: a port that comes before the association may be paired, and is not switched to.
#[test]
fn no_switch_is_asked_for_before_the_association() {
    let mut failover = Failover::new(FailoverConfig::default());
    failover.channel_opened(at(0));
    failover.port_bound(true, at(1));
    assert_eq!(actions(&mut failover), []);
    assert_eq!(failover.poll_deadline(), None, "nothing waits");
    failover.associated(at(5000));
    assert_eq!(actions(&mut failover), [Action::Switch(Path::Vf)]);
}

// F4.
#[test]
fn a_disassociation_is_followed_at_once() {
    let mut failover = on_vf();
    failover.disassociated(at(10));
    let expected =
        [transmit(Path::Synthetic, Cause::Disassociated), Action::Switch(Path::Synthetic)];
    assert_eq!(actions(&mut failover), expected);
}

/// A host that does what it is asked, late, and sometimes something by itself.
#[derive(Default)]
struct Host {
    path: Option<Path>,
    asked: VecDeque<Path>,
}

proptest::proptest! {
    // HISTORY 10: whatever happens, guest and host agree once everything has come to rest.
    #[test]
    fn guest_and_host_agree_at_rest(events in proptest::collection::vec((0u8..11, 1u64..500), 0..200)) {
        let mut failover = Failover::new(FailoverConfig::default());
        let mut host = Host { path: Some(Path::Synthetic), ..Host::default() };
        let mut now = at(0);
        let (mut open, mut bound, mut releases) = (false, false, 0);
        for (event, millis) in events {
            now = now + Duration::from_millis(millis);
            match event {
                0 if !open => { open = true; failover.channel_opened(now); }
                1 if open => {
                    open = false;
                    host.asked.clear();
                    host.path = Some(Path::Synthetic);
                    failover.channel_closed(now);
                }
                2 if !bound => { bound = true; failover.port_bound(true, now); }
                3 => failover.port_link(false, now),
                4 => failover.port_link(true, now),
                5 => failover.port_leaving(Cause::Eject, now),
                6 => failover.port_gone(now),
                7 => if let Some(path) = host.asked.pop_front() {
                    host.path = Some(path);
                    failover.switch_completed(path, now);
                },
                8 => failover.associated(now),
                9 => failover.disassociated(now),
                _ => failover.drained(),
            }
            while let Some(action) = failover.poll_action() {
                match action {
                    Action::Switch(path) => host.asked.push_back(path),
                    Action::Release { .. } => { bound = false; releases += 1; }
                    Action::Transmit { path: Path::Vf, .. } => proptest::prop_assert!(bound && open),
                    _ => {}
                }
            }
        }
        while let Some(path) = host.asked.pop_front() {
            host.path = Some(path);
            failover.switch_completed(path, now);
        }
        failover.drained();
        while let Some(action) = failover.poll_action() {
            if let Action::Switch(path) = action {
                host.path = Some(path);
                failover.switch_completed(path, now);
            }
        }
        proptest::prop_assert_eq!(Some(failover.host_path()), host.path);
        proptest::prop_assert_eq!(failover.outlet(), Outlet::Path(failover.host_path()));
        let _ = releases;
    }
}

extern crate std;
use core::time::Duration;
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

/// A NIC that is ready and associated, without a port.
fn ready() -> Failover {
    let mut failover = Failover::new(FailoverConfig::default());
    failover.channel_opened(at(0));
    failover.associated(at(0));
    assert_eq!(actions(&mut failover), []);
    failover
}

/// A NIC on its VF.
fn on_vf() -> Failover {
    let mut failover = ready();
    failover.port_bound(true, at(1));
    failover.switch_completed(Path::Vf, at(2));
    let expected = vec![Action::Switch(Path::Vf), transmit(Path::Vf, Cause::PortUp)];
    assert_eq!(actions(&mut failover), expected);
    failover.drained();
    assert_eq!(failover.outlet(), Outlet::Path(Path::Vf));
    failover
}

// HISTORY 37: no frame leaves on the VF before the host has switched.
#[test]
fn nothing_leaves_on_the_vf_before_the_completion() {
    let mut failover = Failover::new(FailoverConfig::default());
    assert_eq!(failover.outlet(), Outlet::Path(Path::Synthetic), "F1");
    failover.port_bound(true, at(0));
    failover.associated(at(0));
    assert_eq!(actions(&mut failover), [], "the NIC is not ready");
    failover.channel_opened(at(1));
    assert_eq!(actions(&mut failover), [Action::Switch(Path::Vf)]);
    assert_eq!(failover.outlet(), Outlet::Path(Path::Synthetic));
    failover.switch_completed(Path::Vf, at(1000));
    assert_eq!(failover.outlet(), Outlet::Draining, "what is on synthetic goes first (F6)");
    failover.drained();
    assert_eq!(failover.outlet(), Outlet::Path(Path::Vf));
}

// HISTORY 44: a pair by MAC alone is made before the association, and switched after it.
#[test]
fn nothing_is_switched_before_the_association() {
    let mut failover = Failover::new(FailoverConfig::default());
    failover.channel_opened(at(0));
    failover.port_bound(true, at(1));
    assert_eq!((actions(&mut failover), failover.poll_deadline()), (vec![], None));
    failover.associated(at(5000));
    assert_eq!(actions(&mut failover), [Action::Switch(Path::Vf)]);
}

// F4.
#[test]
fn a_withdrawn_association_leads_to_synthetic() {
    let mut failover = on_vf();
    failover.disassociated(at(10));
    let expected =
        [transmit(Path::Synthetic, Cause::Disassociated), Action::Switch(Path::Synthetic)];
    assert_eq!(actions(&mut failover), expected);
    failover.drained();
    failover.switch_completed(Path::Synthetic, at(11));
    assert_eq!(actions(&mut failover), [], "the port is pairing's to take");
}

// The VF was gone and is back, and the word that it was gone got lost.
#[test]
fn an_association_that_is_told_again_has_the_host_asked_where_it_is() {
    let mut failover = on_vf();
    failover.associated(at(10));
    assert_eq!(actions(&mut failover), [Action::Switch(Path::Vf)]);
    assert_eq!(failover.outlet(), Outlet::Path(Path::Vf), "most likely it is right");
    failover.associated(at(11));
    assert_eq!(actions(&mut failover), [], "one request at a time");
    failover.switch_completed(Path::Vf, at(12));
    assert_eq!((actions(&mut failover), failover.poll_deadline()), (vec![], None));
}

#[test]
fn a_host_that_does_not_say_where_it_is_has_lost_the_vf_until_it_does() {
    let mut failover = on_vf();
    failover.associated(at(10));
    assert_eq!(failover.poll_deadline(), Some(at(5010)));
    failover.handle_deadline(at(5010));
    let expected = [
        Action::Switch(Path::Vf),
        Action::ReportOverdue { path: Path::Vf },
        transmit(Path::Synthetic, Cause::Unanswered),
    ];
    assert_eq!(actions(&mut failover), expected);
    failover.drained();
    failover.switch_completed(Path::Vf, at(5500));
    assert_eq!(actions(&mut failover), [transmit(Path::Vf, Cause::PortUp)]);
}

// HISTORY section 6 item 4: both in one batch.
#[test]
fn an_association_withdrawn_and_renewed_at_once_ends_on_the_vf() {
    let mut failover = on_vf();
    failover.disassociated(at(10));
    failover.associated(at(10));
    failover.drained();
    failover.switch_completed(Path::Synthetic, at(11));
    failover.switch_completed(Path::Vf, at(12));
    let expected = [
        transmit(Path::Synthetic, Cause::Disassociated),
        Action::Switch(Path::Synthetic),
        Action::Switch(Path::Vf),
        transmit(Path::Vf, Cause::PortUp),
    ];
    assert_eq!(actions(&mut failover), expected);
}

// HISTORY 35, 36.
#[test]
fn a_port_without_carrier_is_not_switched_to_and_its_loss_is_followed_at_once() {
    let mut failover = ready();
    failover.port_bound(false, at(1));
    assert_eq!(actions(&mut failover), []);
    failover.port_link(true, at(2));
    failover.switch_completed(Path::Vf, at(3));
    actions(&mut failover);
    failover.port_link(false, at(4));
    assert_eq!(failover.outlet(), Outlet::Draining);
    assert_eq!(failover.poll_deadline(), Some(at(4)), "nothing drains without carrier");
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
    failover.port_bound(false, at(1));
    failover.port_leaving(Cause::Unbound, at(2));
    assert_eq!(actions(&mut failover), [Action::Release { orderly: true }]);
}

// HISTORY section 6 item 1: the eject comes while the switch to the VF is under way.
#[test]
fn a_wish_that_changes_under_way_waits_for_the_newest_answer() {
    let mut failover = ready();
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
    failover.associated(at(11));
    assert_eq!(actions(&mut failover), [Action::Switch(Path::Vf)], "until something changes");
}

// F3: the host left the VF by itself, and nothing else happens. It is asked again, less and less often, and then no more.
#[test]
fn what_the_host_undid_is_tried_again_a_bounded_number_of_times() {
    let mut failover = on_vf();
    let mut now = at(10);
    let mut waits = vec![];
    loop {
        failover.host_switched(Path::Synthetic, now);
        failover.drained();
        actions(&mut failover);
        let Some(due) = failover.poll_deadline() else { break };
        waits.push(due.since(now).as_secs());
        now = due;
        failover.handle_deadline(now);
        let attempt = waits.len() as u32;
        let expected = [Action::ReportRetry { attempt }, Action::Switch(Path::Vf)];
        assert_eq!(actions(&mut failover), expected);
        failover.switch_completed(Path::Vf, now);
        failover.drained();
        assert_eq!(actions(&mut failover).first(), Some(&transmit(Path::Vf, Cause::PortUp)));
    }
    assert_eq!(waits, [1, 2, 4, 8, 16]);
    assert_eq!(failover.outlet(), Outlet::Path(Path::Synthetic), "the host has its way");
    // Something changes, and the count begins anew.
    failover.port_link(false, now);
    failover.port_link(true, now);
    assert_eq!(actions(&mut failover), [Action::Switch(Path::Vf)]);
}

#[test]
fn nothing_is_tried_again_without_a_vf_to_try() {
    for leave in [Failover::port_gone, Failover::disassociated, Failover::channel_closed] {
        let mut failover = on_vf();
        failover.host_switched(Path::Synthetic, at(10));
        failover.drained();
        assert_eq!(failover.poll_deadline(), Some(at(1010)));
        leave(&mut failover, at(11));
        actions(&mut failover);
        assert_eq!(failover.poll_deadline(), None);
    }
}

// F10.
#[test]
fn a_path_that_flaps_is_damped_if_asked_for() {
    let damping = Some(Duration::from_secs(60));
    let config = FailoverConfig { flap_limit: 2, damping, ..FailoverConfig::default() };
    let mut failover = Failover::new(config);
    failover.channel_opened(at(0));
    failover.associated(at(0));
    failover.port_bound(true, at(1));
    for round in 0..2 {
        failover.switch_completed(Path::Vf, at(2 + round * 10));
        failover.drained();
        failover.port_link(false, at(3 + round * 10));
        failover.drained();
        failover.switch_completed(Path::Synthetic, at(4 + round * 10));
        actions(&mut failover);
        failover.port_link(true, at(5 + round * 10));
    }
    assert_eq!(actions(&mut failover), [], "the fourth switch was too many");
    assert_eq!(failover.poll_deadline(), Some(at(60_013)));
    failover.handle_deadline(at(60_013));
    assert_eq!(actions(&mut failover), [Action::Switch(Path::Vf)]);
}

// How often a path may switch is the owner's to say: any number.
#[test]
fn a_path_may_be_allowed_to_flap_as_often_as_it_likes() {
    let config = FailoverConfig { flap_limit: usize::MAX, ..FailoverConfig::default() };
    let mut failover = Failover::new(config);
    failover.channel_opened(at(0));
    failover.associated(at(0));
    failover.port_bound(true, at(0));
    let mut switches = 0;
    for round in 0..1500 {
        failover.switch_completed(Path::Vf, at(round));
        failover.port_link(false, at(round));
        failover.drained();
        failover.switch_completed(Path::Synthetic, at(round));
        failover.port_link(true, at(round));
        let told = actions(&mut failover);
        assert!(!told.iter().any(|told| matches!(told, Action::ReportFlapping { .. })));
        switches += told.iter().filter(|told| matches!(told, Action::Transmit { .. })).count();
    }
    assert_eq!(switches, 3000);
}

// HISTORY section 6 item 5: the notice comes before the completion.
#[test]
fn a_notice_before_the_completion_is_obeyed_and_the_truth_asked_for() {
    let mut failover = ready();
    failover.port_bound(true, at(1));
    actions(&mut failover);
    failover.host_switched(Path::Synthetic, at(2));
    assert_eq!(actions(&mut failover), [], "obeyed, not answered (F3)");
    failover.switch_completed(Path::Vf, at(3));
    assert_eq!(failover.outlet(), Outlet::Path(Path::Synthetic));
    // Nobody can tell which the host did last. So it is told.
    assert_eq!(actions(&mut failover), [Action::Switch(Path::Synthetic)]);
    failover.switch_completed(Path::Synthetic, at(4));
    assert_eq!((actions(&mut failover), failover.host_path()), (vec![], Path::Synthetic));
}

#[test]
fn after_a_notice_in_between_the_vf_is_asked_for_again() {
    let mut failover = ready();
    failover.port_bound(true, at(1));
    actions(&mut failover);
    failover.host_switched(Path::Synthetic, at(2));
    failover.associated(at(3));
    failover.switch_completed(Path::Vf, at(4));
    assert_eq!(actions(&mut failover), [Action::Switch(Path::Vf)], "the old answer is void");
    assert_eq!(failover.outlet(), Outlet::Path(Path::Synthetic));
    failover.switch_completed(Path::Vf, at(5));
    assert_eq!(actions(&mut failover), [transmit(Path::Vf, Cause::PortUp)]);
}

// HISTORY section 6 item 5: the host says "VF" unasked.
#[test]
fn a_vf_that_was_not_asked_for_is_used_if_it_can_be() {
    let mut failover = on_vf();
    failover.host_switched(Path::Synthetic, at(10));
    failover.drained();
    actions(&mut failover);
    failover.host_switched(Path::Vf, at(11));
    assert_eq!(actions(&mut failover), [transmit(Path::Vf, Cause::PortUp)]);
}

#[test]
fn a_vf_that_was_not_asked_for_and_is_not_there_is_left_again() {
    let mut failover = ready();
    failover.host_switched(Path::Vf, at(1));
    assert_eq!(actions(&mut failover), [Action::Switch(Path::Synthetic)]);
    failover.switch_completed(Path::Synthetic, at(2));
    assert_eq!(failover.host_path(), Path::Synthetic);
}

// HISTORY section 6 item 5: completed twice, and completed although nobody asked.
#[test]
fn a_completion_that_nobody_waits_for_changes_nothing() {
    let mut failover = on_vf();
    failover.switch_completed(Path::Vf, at(10));
    failover.switch_completed(Path::Synthetic, at(10));
    assert_eq!((actions(&mut failover), failover.path()), (vec![], Path::Vf));
}

// F7.
#[test]
fn a_missing_completion_is_said_once_and_a_late_one_counts() {
    let mut failover = ready();
    failover.port_bound(true, at(1));
    actions(&mut failover);
    assert_eq!(failover.poll_deadline(), Some(at(5001)));
    failover.handle_deadline(at(5001));
    assert_eq!(actions(&mut failover), [Action::ReportOverdue { path: Path::Vf }]);
    assert_eq!(failover.outlet(), Outlet::Path(Path::Synthetic), "the safe one");
    failover.switch_completed(Path::Vf, at(5500));
    assert_eq!(actions(&mut failover), [transmit(Path::Vf, Cause::PortUp)]);
    failover.drained();
    assert_eq!(failover.poll_deadline(), None);
}

// F7: the request is lost. It is made again by way of synthetic, so that its answer cannot be taken for that to the first one.
#[test]
fn a_switch_that_is_never_completed_is_asked_for_again_by_way_of_synthetic() {
    let mut failover = ready();
    failover.port_bound(true, at(1));
    failover.handle_deadline(at(5001));
    actions(&mut failover);
    assert_eq!(failover.poll_deadline(), Some(at(6001)));
    failover.handle_deadline(at(6001));
    let expected = [Action::ReportRetry { attempt: 1 }, Action::Switch(Path::Synthetic)];
    assert_eq!(actions(&mut failover), expected);
    failover.switch_completed(Path::Vf, at(6002));
    assert_eq!((actions(&mut failover), failover.path()), (vec![], Path::Synthetic));
    failover.switch_completed(Path::Synthetic, at(6003));
    assert_eq!(actions(&mut failover), [Action::Switch(Path::Vf)]);
    failover.switch_completed(Path::Vf, at(6004));
    assert_eq!(actions(&mut failover), [transmit(Path::Vf, Cause::PortUp)]);
}

// F7, F8: the newest wish is sent although the answer before is missing. Which answer is to which request, the NIC knows.
#[test]
fn a_host_that_is_late_is_asked_for_the_other_path() {
    let mut failover = ready();
    failover.port_bound(true, at(1));
    failover.handle_deadline(at(5001));
    failover.port_link(false, at(5002));
    let expected = [
        Action::Switch(Path::Vf),
        Action::ReportOverdue { path: Path::Vf },
        Action::Switch(Path::Synthetic),
    ];
    assert_eq!(actions(&mut failover), expected);
    failover.handle_deadline(at(10_002));
    failover.port_link(true, at(10_003));
    let expected = [Action::ReportOverdue { path: Path::Synthetic }, Action::Switch(Path::Vf)];
    assert_eq!(actions(&mut failover), expected);
    failover.switch_completed(Path::Synthetic, at(10_004));
    assert_eq!((actions(&mut failover), failover.path()), (vec![], Path::Synthetic));
    failover.switch_completed(Path::Vf, at(10_005));
    assert_eq!(actions(&mut failover), [transmit(Path::Vf, Cause::PortUp)]);
}

// F12: whatever the host leaves unanswered, an eject is answered long before its patience of 60 seconds ends.
#[test]
fn an_eject_is_answered_within_the_hosts_patience_even_if_nothing_else_is_answered() {
    let mut failover = ready();
    failover.port_bound(true, at(0));
    failover.port_leaving(Cause::Eject, at(1));
    let mut last = at(1);
    while let Some(due) = failover.poll_deadline() {
        last = due;
        failover.handle_deadline(due);
    }
    assert_eq!(actions(&mut failover).last(), Some(&Action::Release { orderly: true }));
    assert!(last.since(at(1)) < Duration::from_secs(60), "{last}");
}

// F6: a host that is slow to take the last frames of the synthetic path cannot block the VF for ever.
#[test]
fn the_synthetic_path_is_waited_for_no_longer_than_the_deadline() {
    let mut failover = ready();
    failover.port_bound(true, at(0));
    failover.switch_completed(Path::Vf, at(1));
    actions(&mut failover);
    assert_eq!((failover.outlet(), failover.poll_deadline()), (Outlet::Draining, Some(at(1001))));
    failover.handle_deadline(at(1001));
    assert_eq!(failover.outlet(), Outlet::Path(Path::Vf));
    assert_eq!(actions(&mut failover), [], "there is nothing to send again");
}

// HISTORY 35: carrier lost while a port that is to go is drained.
#[test]
fn a_port_that_leaves_and_loses_carrier_is_not_waited_for() {
    let mut failover = on_vf();
    failover.port_leaving(Cause::Eject, at(10));
    failover.switch_completed(Path::Synthetic, at(11));
    actions(&mut failover);
    failover.port_link(false, at(12));
    assert_eq!(failover.poll_deadline(), Some(at(12)));
    failover.handle_deadline(at(12));
    assert_eq!(actions(&mut failover), [Action::Resend, Action::Release { orderly: false }]);
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
    assert_eq!(actions(&mut failover), [], "the host has not said again that it has a VF");
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
        for action in actions(&mut failover) {
            if let Action::ReportFlapping { switches } = action {
                reports += 1;
                assert_eq!(switches, 10 + reports, "all that were in this hour");
            }
        }
    }
    assert_eq!(reports, 11, "of 21 switches the first ten are normal");
}

#[test]
fn causes_have_words_for_machines_and_for_people() {
    use std::string::ToString;
    let causes = [
        Cause::PortUp,
        Cause::LinkDown,
        Cause::Eject,
        Cause::Unbound,
        Cause::Disassociated,
        Cause::Gone,
        Cause::Host,
        Cause::ChannelClosed,
        Cause::Unanswered,
    ];
    for (i, cause) in causes.iter().enumerate() {
        assert!(!cause.word().contains(' ') && cause.to_string().contains(' '));
        assert!(causes[..i].iter().all(|other| other.word() != cause.word()));
    }
}

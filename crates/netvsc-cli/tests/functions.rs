//! Functions in a whole system: host and guest over one memory, on a stepped clock, with numbered frames instead of TCP.

mod system;

use std::time::Duration;

use system::System;

/// Long enough for every frame to arrive, and for every switch.
const SOON: Duration = Duration::from_millis(50);

// HISTORY 35: without carrier the VF is a black hole; what it had and had not sent goes out on the synthetic path.
#[test]
fn a_vf_without_carrier_is_left_and_no_frame_is_lost_doubled_or_overtaken() {
    let mut system = System::with_nics(1);
    system.add_vf(0, 7);
    system.run_until_on_vf(0);
    for _ in 0..5 {
        system.send(0, 40);
        system.peer_sends(0, 5);
        system.world.host.set_vf_link(0, false).unwrap();
        system.send(0, 20);
        system.settle();
        assert_eq!(system.path(0), "synthetic", "within one poll");
        system.run(SOON);
        system.check(0);
        system.world.host.set_vf_link(0, true).unwrap();
        system.run_until_on_vf(0);
        system.send(0, 30);
        system.run(SOON);
        system.check(0);
    }
    assert!(system.world.host.vf_counters(0).tx_taken_back >= 5 * 60);
}

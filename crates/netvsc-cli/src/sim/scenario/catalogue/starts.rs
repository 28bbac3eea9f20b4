//! Ways to start, and what moves in the guest.

use std::time::Duration;

use hyperv_host::bus::Fault;
use hyperv_host::host::Disassociation::First;
use hyperv_host::nic::NicFault;
use netvsc::nvsp::Version;
use vmbus::Serial;

use super::super::Scenario;
use super::super::expect::Expect::{Never, NotBefore, Times, Told, Within};
use super::super::setup::Set;
use super::{BY_BOTH, BY_MAC, OFF_VF, ON_VF, PLAIN};
use crate::sim::deed::Deed::{self, Eject, Give, Link, MovePort, See, TearAway};

/// All of them.
pub(super) const ALL: &[Scenario] = &[
    // Ways to start.
    Scenario {
        name: "power-on-refused-once",
        rows: &["54"],
        what: "the PCI bus refuses to be turned on, as after a crash; it is turned off and on again",
        setup: &[Set::RefuseD0(1), Set::Pci(100)],
        steps: &[(2000, 0, See("accelerated"))],
        expect: &[
            NotBefore(550, "names serial 1", "with serial 1 arrived"),
            Told(&["with serial 1 arrived", BY_BOTH]),
        ],
        ..PLAIN
    },
    Scenario {
        name: "eject-during-bus-start",
        rows: &["54"],
        what: "the VF is asked back while its bus starts; it is let go and nothing stays behind",
        setup: &[Set::Pci(100)],
        steps: &[(150, 0, Eject(First)), (2000, 0, See("synthetic"))],
        expect: &[Never("serial 1 (SerialAndMac)"), Told(&["asks for the VF back"])],
        ..PLAIN
    },
    Scenario {
        name: "slow-host",
        rows: &["15", "53"],
        what: "every message of the host takes ten seconds or nearly; what was said meanwhile is not lost",
        setup: &[Set::Bus(3000), Set::Pci(500)],
        steps: &[(40_000, 0, See("accelerated"))],
        expect: &[NotBefore(5000, "nic0: offered", ON_VF)],
        ..PLAIN
    },
    Scenario {
        name: "very-old-host",
        rows: &["S4"],
        what: "the host speaks version 2, which knows no VFs: it is never heard of, and nothing is lost on the synthetic path",
        setup: &[Set::Versions(&[Version::V2])],
        steps: &[(3000, 0, See("synthetic"))],
        expect: &[Told(&["NVSP 2,"]), Never("names serial 1"), Never(ON_VF)],
        final_as_is: true,
    },
    Scenario {
        name: "old-host",
        rows: &["S4", "S5"],
        what: "the host speaks version 5 only; VFs are the same there",
        setup: &[Set::Versions(&[Version::V5])],
        steps: &[(500, 0, See("accelerated"))],
        expect: &[Told(&["NVSP 5,", BY_BOTH, ON_VF])],
        ..PLAIN
    },
    // What moves in the guest.
    Scenario {
        name: "namespace-move",
        rows: &["11", "49"],
        what: "the VF's port moves into another network namespace: it leaves and arrives as another port, and is paired again",
        steps: &[(500, 0, MovePort), (1000, 0, See("accelerated"))],
        expect: &[
            Times(2, BY_BOTH),
            Times(1, "with serial 1 arrived"),
            Told(&["unpaired", BY_BOTH, ON_VF]),
            Never("never confirmed"),
        ],
        ..PLAIN
    },
    Scenario {
        name: "driver-restarts-again-and-again",
        rows: &["48", "33"],
        what: "the VF's driver registers its port anew five times; it is found each time, without the host's help",
        steps: &[
            (500, 0, MovePort),
            (600, 0, MovePort),
            (700, 0, MovePort),
            (800, 0, MovePort),
            (900, 0, MovePort),
            (1500, 0, See("accelerated")),
        ],
        expect: &[Times(6, BY_BOTH), Times(6, ON_VF), Times(1, "with serial 1 arrived")],
        ..PLAIN
    },
    Scenario {
        name: "reset-on-the-vf",
        rows: &["S4", "S5"],
        what: "the guest resets the NIC while its VF is in use; the host hears of it anew, offers the VF no second time, and is asked for it",
        steps: &[(500, 0, Deed::Renew), (1000, 0, See("accelerated"))],
        expect: &[
            Told(&[ON_VF, "resets the NIC", "names serial 1", ON_VF]),
            Times(1, "with serial 1 arrived"),
            Times(2, ON_VF),
        ],
        ..PLAIN
    },
    Scenario {
        name: "associated-twice",
        rows: &["S4", "S6.4"],
        what: "the host says twice more that there is the VF which is in use; it stays in use",
        steps: &[(500, 0, Deed::Repeat), (501, 0, Deed::Repeat), (1000, 0, See("accelerated"))],
        expect: &[
            Times(2, "the host says again whether there is a VF"),
            Times(1, BY_BOTH),
            Never("unpaired"),
            Never("overdue"),
        ],
        ..PLAIN
    },
    Scenario {
        name: "asleep-during-the-switch",
        rows: &["36"],
        what: "the guest goes to sleep while the switch to the VF is under way; the VF is used when it is awake again",
        setup: &[Set::Switch(500)],
        steps: &[
            (300, 0, See("paired")),
            (300, 0, Deed::Hibernate(Duration::from_secs(2))),
            (5000, 0, See("accelerated")),
        ],
        expect: &[
            Told(&["names serial 1", "goes to sleep", "names serial 1", ON_VF]),
            Times(1, ON_VF),
            Never("overdue"),
        ],
        ..PLAIN
    },
    Scenario {
        name: "hibernated-on-the-vf",
        rows: &["36", "54"],
        what: "the guest sleeps while its VF is in use; it wakes up on its synthetic path with the same function, and switches when that has a carrier",
        setup: &[Set::Nics(2), Set::Disks(1)],
        steps: &[
            (1000, 0, Deed::Hibernate(Duration::from_secs(5))),
            (4000, 0, Link(false)),
            (8000, 0, See("paired")),
            (8000, 1, See("accelerated")),
            (8500, 0, Link(true)),
            (9000, 0, See("accelerated")),
        ],
        expect: &[
            Told(&[
                ON_VF,
                "goes to sleep",
                OFF_VF,
                "is up",
                BY_MAC,
                "agree now",
                "link goes up",
                ON_VF,
            ]),
            Times(1, "function 1414:f0f0 with serial 1 arrived"),
            Never("never confirmed"),
        ],
        ..PLAIN
    },
    Scenario {
        name: "vf-gone-while-asleep",
        rows: &["36", "28"],
        what: "the VF is torn away while the guest sleeps, and another one given: the one has left and the other arrived when it wakes up",
        setup: &[Set::Nics(2)],
        steps: &[
            (1000, 0, Deed::Hibernate(Duration::from_secs(9))),
            (3000, 0, TearAway(First)),
            (5000, 0, Give(Serial(77))),
            (12_000, 0, See("accelerated")),
            (12_000, 1, See("accelerated")),
        ],
        expect: &[
            Told(&["goes to sleep", "function with serial 1 left", "names serial 77", ON_VF]),
            Times(1, "function 1414:f0f0 with serial 2 arrived"),
        ],
        ..PLAIN
    },
    Scenario {
        name: "asked-back-while-asleep",
        rows: &["36", "54"],
        what: "the host asks for the VF while the guest sleeps, and takes it when its patience is over; nobody misses it later",
        setup: &[Set::Nics(1)],
        steps: &[
            (1000, 0, Deed::Hibernate(Duration::from_secs(90))),
            (5000, 0, Eject(First)),
            (93_000, 0, See("synthetic")),
        ],
        expect: &[Told(&["goes to sleep", "asks for the VF back", "function with serial 1 left"])],
        ..PLAIN
    },
    Scenario {
        name: "pause-while-the-nic-resets",
        rows: &["36"],
        what: "the guest resets the NIC with frames under way, and the whole machine stands still for longer than anybody is patient; the host gets the time that it had not, and nothing is lost",
        setup: &[Set::Queues(4), Set::Association(0, 20_000)],
        steps: &[
            (500, 0, Deed::Burst(2000)),
            (500, 0, Deed::Suspend(Duration::from_secs(11))),
            (40_000, 0, See("accelerated")),
        ],
        expect: &[Told(&["has not answered what was sent", "ready", ON_VF])],
        ..PLAIN
    },
    Scenario {
        name: "reset-without-a-completion",
        rows: &["9"],
        what: "the host never completes a frame of the guest's, and the guest resets the NIC; it waits twice as long as it is patient, and begins anew without",
        setup: &[Set::Association(0, 30_000)],
        steps: &[
            (500, 0, Deed::Nic(NicFault::SendNeverCompleted)),
            (500, 0, Deed::Burst(1)),
            (600, 0, Deed::Renew),
            (60_000, 0, See("accelerated")),
        ],
        expect: &[
            Told(&["has not answered what was sent", "goes on without", "ready", ON_VF]),
            NotBefore(20_000, "resets the NIC", "goes on without"),
            Within(20_100, "resets the NIC", "ready"),
        ],
        ..PLAIN
    },
    Scenario {
        name: "no-memory-for-a-queue",
        rows: &["15"],
        what: "the NIC comes back, and there is no memory for the rings of a sub-channel; the others are used, and that one when it is tried again",
        setup: &[Set::Queues(4), Set::Rndis(0, 20)],
        steps: &[
            (1000, 0, Deed::Unplug),
            (1100, 0, Deed::Plug),
            (1140, 0, Deed::Starve(2)),
            (5000, 0, See("synthetic")),
        ],
        expect: &[
            Told(&["comes back", "ready", "sub-channel 1: no 256 pages"]),
            Times(2, "no 256 pages"),
        ],
        ..PLAIN
    },
    Scenario {
        name: "sub-channel-that-nobody-asked-for",
        rows: &["S6.4"],
        what: "the host offers a sub-channel more than the NIC has asked for; it is refused, and the others are used",
        setup: &[Set::Queues(4)],
        steps: &[
            (500, 0, Deed::Bus(Fault::UnaskedSubChannel)),
            (500, 0, Deed::Renew),
            (2000, 0, See("accelerated")),
        ],
        expect: &[
            Told(&[
                "resets the NIC",
                "ready",
                "sub-channel 9 of nic0 is offered, it has asked for 3",
            ]),
            Never("did not open"),
        ],
        ..PLAIN
    },
    Scenario {
        name: "reset-twice-in-a-row",
        rows: &["S4"],
        what: "the guest resets the NIC, and once more while the sub-channels that it has asked for are being offered; they are left, and those of the third beginning used",
        setup: &[Set::Queues(4)],
        steps: &[(500, 0, Deed::Renew), (502, 0, Deed::Renew), (2000, 0, See("accelerated"))],
        expect: &[Times(2, "resets the NIC"), Times(3, "ready"), Never("message of the host")],
        ..PLAIN
    },
];

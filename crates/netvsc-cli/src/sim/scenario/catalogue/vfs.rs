//! VFs that come and go: servicing, ejects, removals, carriers.

use hyperv_host::host::Disassociation::{After, First};
use vmbus::Serial;

use super::super::Scenario;
use super::super::expect::Expect::{Never, NotBefore, OnlyAfter, Times, Told, Within};
use super::super::setup::Set;
use super::{BY_BOTH, BY_MAC, OFF_VF, ON_VF, PLAIN, millis};
use crate::args::VfLayout;
use crate::sim::deed::Deed::{Burst, Eject, Give, Link, See, TearAway};

/// All of them.
pub(super) const ALL: &[Scenario] = &[
    // Orders of servicing.
    Scenario {
        name: "serials-swapped-by-servicing",
        rows: &["28", "S6.2"],
        what: "two VFs go and come back with each other's serials; both are paired rightly",
        setup: &[Set::Nics(2)],
        steps: &[
            (500, 0, TearAway(First)),
            (501, 1, TearAway(First)),
            (1000, 0, Give(Serial(2))),
            (1001, 1, Give(Serial(1))),
            (2000, 0, See("accelerated")),
            (2000, 1, See("accelerated")),
        ],
        expect: &[
            Told(&[
                "nic0: paired with",
                "nic0: unpaired",
                "nic0: the host names serial 2",
                "nic0: paired with",
            ]),
            Told(&["nic1: the host names serial 2", "nic1: the host names serial 1"]),
            Never(BY_MAC),
        ],
        ..PLAIN
    },
    Scenario {
        name: "serial-reused-by-another-nic",
        rows: &["28", "19"],
        what: "a serial is withdrawn from one NIC and given to another; it matches nothing in between",
        setup: &[Set::Nics(2)],
        steps: &[
            (500, 0, TearAway(First)),
            (500, 1, TearAway(First)),
            (800, 0, See("synthetic")),
            (1000, 1, Give(Serial(1))),
            (1500, 1, See("accelerated")),
            (1500, 0, See("synthetic")),
        ],
        expect: &[Told(&[
            "nic0: the host says that it has no VF",
            "nic1: the host names serial 1",
            "nic1: paired with",
        ])],
        ..PLAIN
    },
    Scenario {
        name: "same-serial-again",
        rows: &["S4", "S5"],
        what: "the VF is asked back and given again with its old serial",
        steps: &[
            (500, 0, Eject(First)),
            (800, 0, See("synthetic")),
            (1000, 0, Give(Serial(1))),
            (1500, 0, See("accelerated")),
        ],
        expect: &[Times(2, "names serial 1"), Told(&["let go", "names serial 1", BY_BOTH, ON_VF])],
        ..PLAIN
    },
    Scenario {
        name: "new-serial-after-servicing",
        rows: &["28", "S5"],
        what: "the VF comes back with another serial and is another function",
        steps: &[
            (500, 0, TearAway(First)),
            (1000, 0, Give(Serial(1001))),
            (1500, 0, See("accelerated")),
        ],
        expect: &[Told(&[
            "with serial 1 arrived",
            "with serial 1 left",
            "with serial 1001 arrived",
            "serial 1001 (SerialAndMac)",
        ])],
        ..PLAIN
    },
    Scenario {
        name: "eight-nics-in-order",
        rows: &["30", "63"],
        what: "eight NICs start at different speed; their order is that of their offers",
        setup: &[
            Set::Nics(8),
            Set::Rndis(0, 90),
            Set::Rndis(1, 10),
            Set::Rndis(2, 70),
            Set::Rndis(4, 50),
            Set::Rndis(7, 30),
        ],
        steps: &[(3000, 0, See("accelerated")), (3000, 7, See("accelerated"))],
        expect: &[
            Told(&[
                "nic0: offered",
                "nic1: offered",
                "nic2: offered",
                "nic6: offered",
                "nic7: offered",
            ]),
            Told(&["nic1: ready", "nic7: ready", "nic0: ready"]),
        ],
        ..PLAIN
    },
    // Ejects and removals.
    Scenario {
        name: "eject-before-the-switch",
        rows: &["S6.1"],
        what: "the VF is asked back while it waits for its carrier: nothing was switched, it is let go",
        steps: &[
            (0, 0, Link(false)),
            (500, 0, See("paired")),
            (600, 0, Eject(First)),
            (900, 0, See("synthetic")),
        ],
        expect: &[
            Told(&["the host wants it back", "let go"]),
            OnlyAfter("let go", "wants it back"),
            Within(50, "wants it back", "let go"),
        ],
        ..PLAIN
    },
    Scenario {
        name: "eject-during-join",
        rows: &["S6.1", "54"],
        what: "the VF is asked back while the switch to it is under way; it is let go only after the host has left it again",
        setup: &[Set::Switch(500)],
        steps: &[
            (200, 0, See("paired")),
            (300, 0, Eject(After(millis(10)))),
            (600, 0, See("paired")),
            (2500, 0, See("synthetic")),
        ],
        expect: &[
            NotBefore(500, "wants it back", "let go"),
            Told(&["paired with", "wants it back", "let go"]),
        ],
        ..PLAIN
    },
    Scenario {
        name: "eject-and-torn-away",
        rows: &["S6.1", "26"],
        what: "the VF is asked back, and torn away before the guest can have left it",
        setup: &[Set::Switch(300)],
        steps: &[
            (1000, 0, See("accelerated")),
            (1100, 0, Eject(After(millis(50)))),
            (1110, 0, TearAway(First)),
            (3000, 0, See("synthetic")),
        ],
        expect: &[Told(&["wants it back", OFF_VF]), Times(1, "with serial 1 left")],
        ..PLAIN
    },
    Scenario {
        name: "asked-back-twice",
        rows: &["26"],
        what: "the host asks for the VF, and once more before it has it: one removal, one answer",
        setup: &[Set::Switch(100)],
        steps: &[
            (600, 0, See("accelerated")),
            (700, 0, Eject(First)),
            (720, 0, Eject(First)),
            (1500, 0, See("synthetic")),
        ],
        expect: &[Times(1, "wants it back"), Times(1, "let go"), Times(1, "with serial 1 left")],
        ..PLAIN
    },
    Scenario {
        name: "function-of-three-ports-asked-back",
        rows: &["40", "S6.1"],
        what: "the function whose ports three NICs use is asked back, twice: all leave it, and only then is it let go; another comes and all are on it",
        setup: &[Set::Nics(3), Set::Layout(VfLayout::Shared), Set::Switch(20)],
        steps: &[
            (1000, 2, See("accelerated")),
            (1100, 0, Eject(After(millis(300)))),
            (1500, 0, See("synthetic")),
            (1500, 1, See("synthetic")),
            (1500, 2, See("synthetic")),
            (2000, 0, Give(Serial(5))),
            (2500, 0, See("accelerated")),
            (2500, 1, See("accelerated")),
            (2500, 2, See("accelerated")),
            // This time the NICs hear first that they have it no longer.
            (3000, 0, Eject(First)),
            (3400, 0, See("synthetic")),
            (3400, 1, See("synthetic")),
            (3400, 2, See("synthetic")),
        ],
        expect: &[
            Told(&["nic2: frames leave on the vf path", "wants it back", "with serial 1 left"]),
            Told(&["with serial 5 arrived", "wants it back", "with serial 5 left"]),
            NotBefore(20, "asks for the VF back", "with serial 1 left"),
            Times(6, "frames leave on the synthetic path"),
            Times(2, "let go"),
            Never("sent again"),
        ],
        ..PLAIN
    },
    Scenario {
        name: "torn-away-under-load",
        rows: &["8", "S4", "S5"],
        what: "the VF vanishes while it is in use: frames leave on the synthetic path at once",
        steps: &[
            (500, 0, See("accelerated")),
            (600, 0, TearAway(First)),
            (800, 0, See("synthetic")),
        ],
        expect: &[
            Told(&[ON_VF, "tears the VF away", OFF_VF]),
            Within(5, "tears the VF away", OFF_VF),
            Never("let go"),
        ],
        ..PLAIN
    },
    Scenario {
        name: "torn-away-and-told-late",
        rows: &["S4"],
        what: "the VF vanishes, and only five seconds later the NIC hears that it has none",
        steps: &[
            (500, 0, TearAway(After(millis(5000)))),
            (5000, 0, See("waiting")),
            (6000, 0, See("synthetic")),
        ],
        expect: &[
            NotBefore(4900, OFF_VF, "says that it has no VF"),
            Told(&["unpaired", "says that it has no VF"]),
        ],
        ..PLAIN
    },
    Scenario {
        name: "torn-away-during-the-switch",
        rows: &["S4"],
        what: "the VF vanishes while the switch to it is under way; no frame ever leaves on it",
        setup: &[Set::Switch(500)],
        steps: &[
            (300, 0, TearAway(First)),
            (2000, 0, See("synthetic")),
            (2000, 0, Give(Serial(9))),
        ],
        expect: &[
            Told(&[
                "serial 1 (SerialAndMac)",
                "tears the VF away",
                "serial 9 (SerialAndMac)",
                ON_VF,
            ]),
            Times(1, ON_VF),
        ],
        ..PLAIN
    },
    Scenario {
        name: "torn-away-during-the-way-back",
        rows: &["S4"],
        what: "the VF vanishes while the switch away from it is under way",
        setup: &[Set::Switch(500)],
        steps: &[
            (1500, 0, See("accelerated")),
            (1600, 0, Link(false)),
            (1700, 0, TearAway(First)),
            (3000, 0, See("synthetic")),
        ],
        expect: &[Told(&["the VF has no carrier", "tears the VF away", "left"]), Times(1, OFF_VF)],
        ..PLAIN
    },
    // Carrier.
    Scenario {
        name: "carrier-lost",
        rows: &["35"],
        what: "the VF in use loses its carrier: frames leave on the synthetic path at once, and come back with it",
        steps: &[
            (500, 0, Link(false)),
            (600, 0, See("paired")),
            (800, 0, Link(true)),
            (1000, 0, See("accelerated")),
        ],
        expect: &[Within(1, "link goes down", "no carrier"), Times(2, ON_VF), Times(1, OFF_VF)],
        ..PLAIN
    },
    Scenario {
        name: "carrier-late",
        rows: &["36"],
        what: "the VF comes without carrier: it is paired and not switched to before the carrier is there",
        steps: &[
            (0, 0, Link(false)),
            (5000, 0, See("paired")),
            (5000, 0, Link(true)),
            (5500, 0, See("accelerated")),
        ],
        expect: &[NotBefore(4900, BY_BOTH, ON_VF)],
        ..PLAIN
    },
    Scenario {
        name: "carrier-back-in-a-burst",
        rows: &["41", "S6.5"],
        what: "the carrier comes back while the ring is full of frames: the request to switch waits for room, and is not lost",
        setup: &[Set::Rings(2)],
        // Whether what is left of the ring is too small for the request depends on the lengths of the frames.
        steps: &[
            (500, 0, Link(false)),
            (600, 0, See("paired")),
            (705, 0, Burst(4096)),
            (705, 0, Link(true)),
            (805, 0, Link(false)),
            (905, 0, Burst(4096)),
            (905, 0, Link(true)),
            (1005, 0, Link(false)),
            (1106, 0, Burst(4096)),
            (1106, 0, Link(true)),
            (1206, 0, Link(false)),
            (1307, 0, Burst(4096)),
            (1307, 0, Link(true)),
            (1407, 0, Link(false)),
            (1508, 0, Burst(4096)),
            (1508, 0, Link(true)),
            (1608, 0, Link(false)),
            (1709, 0, Burst(4096)),
            (1709, 0, Link(true)),
            (1809, 0, Link(false)),
            (1910, 0, Burst(4096)),
            (1910, 0, Link(true)),
            (2010, 0, Link(false)),
            (2111, 0, Burst(4096)),
            (2111, 0, Link(true)),
            (2500, 0, See("accelerated")),
        ],
        expect: &[Times(9, ON_VF)],
        ..PLAIN
    },
    Scenario {
        name: "carrier-that-flaps",
        rows: &["S6.6", "S5"],
        what: "the carrier goes and comes eight times within a second; that is told, and no frame is lost",
        steps: &[
            (500, 0, Link(false)),
            (560, 0, Link(true)),
            (620, 0, Link(false)),
            (680, 0, Link(true)),
            (740, 0, Link(false)),
            (800, 0, Link(true)),
            (860, 0, Link(false)),
            (920, 0, Link(true)),
            (980, 0, Link(false)),
            (1040, 0, Link(true)),
            (1100, 0, Link(false)),
            (1160, 0, Link(true)),
            (1220, 0, Link(false)),
            (1280, 0, Link(true)),
            (1340, 0, Link(false)),
            (1400, 0, Link(true)),
            (2000, 0, See("accelerated")),
        ],
        expect: &[Times(9, ON_VF), Told(&["has switched 11 times within an hour"])],
        ..PLAIN
    },
];

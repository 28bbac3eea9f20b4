//! Ways to start, and what moves in the guest.

use hyperv_host::host::Disassociation::First;
use netvsc::nvsp::Version;

use super::super::Scenario;
use super::super::expect::Expect::{Never, NotBefore, Times, Told};
use super::super::setup::Set;
use super::{BY_BOTH, ON_VF, PLAIN};
use crate::sim::deed::Deed::{Eject, MovePort, See};

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
];

//! Who belongs to whom.

use hyperv_host::host::Disassociation::After;
use vmbus::Serial;

use super::super::Scenario;
use super::super::expect::Expect::{Never, NotBefore, Times, Told};
use super::super::setup::Set;
use super::{BY_BOTH, BY_MAC, OFF_VF, ON_VF, PLAIN, millis};
use crate::args::VfLayout;
use crate::sim::deed::Deed::{self, ChangeMac, See, TearAway};
use crate::sim::deed::Stranger;

/// All of them.
pub(super) const ALL: &[Scenario] = &[
    Scenario {
        name: "emulated-nic-first",
        rows: &["19", "21"],
        what: "an emulated card with the NIC's MAC was there first; it is refused and the VF paired",
        setup: &[Set::Offer(0, 500)],
        steps: &[(100, 0, See("waiting")), (1000, 0, See("accelerated"))],
        expect: &[
            NotBefore(499, "names serial 1", BY_BOTH),
            Told(&["emulated", "nic0: the host names serial 1", BY_BOTH]),
            Never(BY_MAC),
        ],
        ..PLAIN
    },
    Scenario {
        name: "association-before-offer",
        rows: &["66", "S4"],
        what: "the VF is heard of five seconds before it comes; the NIC waits on its synthetic path",
        setup: &[Set::Offer(0, 5000)],
        steps: &[(4900, 0, See("waiting")), (6000, 0, See("accelerated"))],
        expect: &[NotBefore(4990, "names serial 1", ON_VF), Told(&[BY_BOTH, ON_VF])],
        ..PLAIN
    },
    Scenario {
        name: "offer-before-association",
        rows: &["44"],
        what: "the VF comes five seconds before it is heard of; paired by MAC at once, switched to only when associated",
        setup: &[Set::OfferFirst, Set::Association(0, 5000)],
        steps: &[(4000, 0, See("paired")), (6000, 0, See("accelerated"))],
        expect: &[Told(&[BY_MAC, "names serial 1", ON_VF]), NotBefore(4000, BY_MAC, ON_VF)],
        ..PLAIN
    },
    Scenario {
        name: "vf-that-is-late",
        rows: &["57"],
        what: "the VF that was heard of comes after 90 seconds; that it is missing is told once, and it is used when it comes",
        setup: &[Set::Offer(0, 90_000)],
        steps: &[(70_000, 0, See("waiting")), (91_000, 0, See("accelerated"))],
        expect: &[Times(1, "overdue"), Told(&["names serial 1", "overdue", BY_BOTH, ON_VF])],
        ..PLAIN
    },
    Scenario {
        name: "offer-after-a-second",
        rows: &["66"],
        what: "the VF is offered a second after it was heard of, as real hosts do",
        setup: &[Set::Offer(0, 1000)],
        steps: &[(900, 0, See("waiting")), (1500, 0, See("accelerated"))],
        expect: &[NotBefore(1000, "names serial 1", BY_BOTH)],
        ..PLAIN
    },
    Scenario {
        name: "offer-after-a-minute",
        rows: &["66"],
        what: "the VF is offered almost a minute after it was heard of; nothing is overdue yet",
        setup: &[Set::Offer(0, 59_000)],
        steps: &[(58_000, 0, See("waiting")), (60_000, 0, See("accelerated"))],
        expect: &[Never("overdue"), NotBefore(59_000, "names serial 1", BY_BOTH)],
        ..PLAIN
    },
    Scenario {
        name: "vf-before-the-nic",
        rows: &["45"],
        what: "the VF is there long before the NIC has started; it is paired as soon as the NIC is ready",
        setup: &[Set::OfferFirst, Set::Rndis(0, 400)],
        steps: &[(3000, 0, See("accelerated"))],
        expect: &[Told(&["with serial 1 arrived", "nic0: ready", "paired with"])],
        ..PLAIN
    },
    Scenario {
        name: "disk-with-the-same-serial",
        rows: &["16", "S6.3"],
        what: "two NVMe disks have the VF's serial; both are seen, and the VF is paired",
        setup: &[Set::Disks(2)],
        steps: &[(500, 0, See("accelerated"))],
        expect: &[Times(3, "with serial 1 arrived"), Times(1, BY_BOTH)],
        ..PLAIN
    },
    Scenario {
        name: "function-of-three-ports",
        rows: &["40"],
        what: "one function with one serial has a port for each of three NICs; the MACs tell them apart",
        setup: &[Set::Nics(3), Set::Layout(VfLayout::Shared)],
        steps: &[
            (1000, 0, See("accelerated")),
            (1000, 1, See("accelerated")),
            (1000, 2, See("accelerated")),
        ],
        expect: &[Times(1, "with serial 1 arrived"), Times(3, BY_BOTH)],
        ..PLAIN
    },
    Scenario {
        name: "mana",
        rows: &["40", "44"],
        what: "one function of three ports has another serial than its NICs hear of; they are paired by MAC",
        setup: &[Set::Nics(3), Set::Layout(VfLayout::Mana)],
        steps: &[(1000, 0, See("accelerated")), (1000, 2, See("accelerated"))],
        expect: &[Times(3, BY_MAC), Never(BY_BOTH)],
        ..PLAIN
    },
    Scenario {
        name: "one-serial-for-three-nics",
        rows: &["S6.3", "28"],
        what: "three VFs of three NICs carry one serial; the MACs tell them apart",
        setup: &[Set::Nics(3), Set::Serial(0, 7), Set::Serial(1, 7), Set::Serial(2, 7)],
        steps: &[
            (1000, 0, See("accelerated")),
            (1000, 1, See("accelerated")),
            (1000, 2, See("accelerated")),
        ],
        expect: &[Times(3, "serial 7 (SerialAndMac)")],
        ..PLAIN
    },
    Scenario {
        name: "serial-of-one-mac-of-another",
        rows: &["19", "28"],
        what: "a function comes with the serial of one NIC and the MAC of another; it is nobody's, whoever may be without a VF",
        setup: &[Set::Nics(2), Set::Offer(0, 4000)],
        steps: &[
            (500, 0, Deed::Stranger(Stranger::Twin, Serial(2))),
            (1500, 0, See("waiting")),
            (1500, 1, See("accelerated")),
            (2000, 0, Deed::StrangerGoes { asked: false }),
            (5000, 0, See("accelerated")),
        ],
        expect: &[Never(BY_MAC), Times(2, BY_BOTH)],
        ..PLAIN
    },
    Scenario {
        name: "second-vf-takes-over",
        rows: &["S6.3"],
        what: "a second VF with the NIC's serial and MAC stands by; it takes over when the first is torn away, and is left for the next",
        steps: &[
            (500, 0, Deed::Stranger(Stranger::Twin, Serial(1))),
            (900, 0, See("accelerated")),
            (1000, 0, TearAway(After(millis(3000)))),
            (1500, 0, See("paired")),
            (2000, 0, Deed::StrangerGoes { asked: true }),
            (2500, 0, See("waiting")),
        ],
        expect: &[Told(&[ON_VF, "stands by", OFF_VF, BY_BOTH, "let go", "says that it has no VF"])],
        ..PLAIN
    },
    Scenario {
        name: "serial-zero",
        rows: &["S6.3"],
        what: "serial 0 is a serial like any other",
        setup: &[Set::Serial(0, 0)],
        steps: &[(500, 0, See("accelerated"))],
        expect: &[Told(&["nic0: the host names serial 0", "serial 0 (SerialAndMac)"])],
        ..PLAIN
    },
    Scenario {
        name: "largest-serial",
        rows: &["S6.3", "20"],
        what: "serial 4294967295 is a serial like any other",
        setup: &[Set::Serial(0, u32::MAX)],
        steps: &[(500, 0, See("accelerated"))],
        expect: &[Told(&["serial 4294967295 (SerialAndMac)"])],
        ..PLAIN
    },
    Scenario {
        name: "two-nics-one-mac",
        rows: &["19"],
        what: "two NICs have one MAC; the serial tells their VFs apart",
        setup: &[Set::Nics(2), Set::SameMac(0, 1)],
        steps: &[(1000, 0, See("accelerated")), (1000, 1, See("accelerated"))],
        expect: &[Times(2, BY_BOTH), Told(&["names serial 1"])],
        ..PLAIN
    },
    Scenario {
        name: "two-nics-one-mac-one-serial",
        rows: &["S6.3", "19"],
        what: "nothing tells two NICs apart: nobody is paired, and the conflict is told",
        setup: &[Set::Nics(2), Set::SameMac(0, 1), Set::Serial(1, 1)],
        steps: &[(1000, 0, See("conflict")), (1000, 1, See("conflict"))],
        expect: &[Told(&["conflict"]), Never("frames leave on the vf path")],
        final_as_is: true,
    },
    Scenario {
        name: "mac-changed",
        rows: &["1"],
        what: "somebody changes the NIC's MAC before the VF comes; the permanent one counts",
        setup: &[Set::Offer(0, 1000)],
        steps: &[(500, 0, ChangeMac), (2000, 0, See("accelerated"))],
        expect: &[Told(&["gives it another MAC", BY_BOTH, ON_VF])],
        ..PLAIN
    },
    Scenario {
        name: "mac-changed-while-on-the-vf",
        rows: &["1"],
        what: "somebody changes the NIC's MAC while the VF is in use; the pair stays",
        steps: &[(500, 0, ChangeMac), (1000, 0, See("accelerated"))],
        expect: &[Told(&["gives it another MAC"]), Never("unpaired"), Times(1, ON_VF)],
        ..PLAIN
    },
];

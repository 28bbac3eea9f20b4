//! The scenarios.

use std::time::Duration;

use hyperv_host::host::Disassociation::{After, First};
use hyperv_host::nic::SwitchAnswer::{CompleteTwice, Fail, Lose, Silent};
use netvsc::nvsp::Version;
use vmbus::Serial;

use super::Scenario;
use super::expect::Expect::{Never, NotBefore, OnlyAfter, Times, Told, Within};
use super::setup::Set;
use crate::args::VfLayout;
use crate::sim::deed::Deed::{
    self, ChangeMac, Eject, Give, Link, MovePort, Notice, Rest, See, TearAway,
};
use crate::sim::deed::Stranger;

const fn millis(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

const ON_VF: &str = "nic0: frames leave on the vf path";
const OFF_VF: &str = "nic0: frames leave on the synthetic path";
const BY_BOTH: &str = "(SerialAndMac)";
const BY_MAC: &str = "(Mac)";

/// What is not said otherwise: nothing is changed, nothing is done, nothing told, and in the end everything is on its VF.
const PLAIN: Scenario = Scenario {
    name: "",
    rows: &[],
    what: "",
    setup: &[],
    steps: &[],
    expect: &[],
    final_as_is: false,
};

/// All of them.
pub(in crate::sim) const ALL: &[Scenario] = &[
    // Who belongs to whom.
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
        name: "torn-away-under-load",
        rows: &["8", "S5"],
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
    // The host's answers to switches.
    Scenario {
        name: "completion-after-a-second",
        rows: &["37", "38"],
        what: "the host takes a second to switch; no frame leaves on the VF before it has said so",
        setup: &[Set::Switch(1000)],
        steps: &[(900, 0, See("paired")), (1500, 0, See("accelerated"))],
        expect: &[NotBefore(1000, BY_BOTH, ON_VF)],
        ..PLAIN
    },
    Scenario {
        name: "switch-lost",
        rows: &["S6.5", "41"],
        what: "the host loses the request to switch; it is asked again by way of the other path",
        setup: &[Set::Answers(&[Lose])],
        steps: &[(4000, 0, See("paired")), (30_000, 0, See("accelerated"))],
        expect: &[Told(&[
            "the host has not switched",
            "the host is asked for the VF again, try 1",
            ON_VF,
        ])],
        ..PLAIN
    },
    Scenario {
        name: "switch-lost-five-times",
        rows: &["S6.5"],
        what: "the host loses five requests in a row; the sixth is answered",
        setup: &[Set::Answers(&[Lose, Lose, Lose, Lose, Lose])],
        steps: &[(4000, 0, See("paired")), (120_000, 0, See("accelerated"))],
        expect: &[Told(&["try 1", "try 2", ON_VF]), Times(1, ON_VF)],
        ..PLAIN
    },
    Scenario {
        name: "completed-twice",
        rows: &["S6.5"],
        what: "every answer of the host to a switch comes twice; the second tells nothing",
        setup: &[Set::Answers(&[
            CompleteTwice(millis(5)),
            CompleteTwice(millis(5)),
            CompleteTwice(millis(5)),
        ])],
        steps: &[
            (500, 0, See("accelerated")),
            (600, 0, Link(false)),
            (700, 0, Link(true)),
            (1000, 0, See("accelerated")),
        ],
        expect: &[Times(2, ON_VF), Times(1, OFF_VF)],
        ..PLAIN
    },
    Scenario {
        name: "switch-fails",
        rows: &["S4", "S5"],
        what: "the host completes a switch that has failed and says so; frames are on the synthetic path until it is asked again",
        setup: &[Set::Answers(&[Fail(millis(5))])],
        steps: &[(100, 0, See("paired")), (3000, 0, See("accelerated"))],
        expect: &[Told(&[
            "the host switched by itself",
            "the host is asked for the VF again, try 1",
            ON_VF,
        ])],
        ..PLAIN
    },
    Scenario {
        name: "switched-in-silence",
        rows: &["S6.5"],
        what: "the host switches and never says so; what it sends on the VF is received, and it is asked again",
        setup: &[Set::Answers(&[Silent(millis(5))])],
        steps: &[(4000, 0, See("paired")), (30_000, 0, See("accelerated"))],
        expect: &[Told(&["the host has not switched", ON_VF])],
        ..PLAIN
    },
    Scenario {
        name: "host-undoes-the-switch",
        rows: &["S6.5", "10"],
        what: "the host says by itself that it has left the VF: obeyed at once, and asked again after a while",
        steps: &[(500, 0, Notice), (600, 0, See("paired")), (3000, 0, See("accelerated"))],
        expect: &[
            Within(1, "says that it has left the VF", "the host switched by itself"),
            Told(&["try 1", ON_VF]),
        ],
        ..PLAIN
    },
    Scenario {
        name: "host-undoes-too-early",
        rows: &["S6.5"],
        what: "the host says that it has left the VF before it has completed the switch to it",
        setup: &[Set::Switch(500)],
        steps: &[(200, 0, Notice), (5000, 0, See("accelerated"))],
        expect: &[
            Told(&["says that it has left the VF", ON_VF]),
            NotBefore(300, "says that it has left the VF", ON_VF),
        ],
        ..PLAIN
    },
    Scenario {
        name: "completion-after-disassociation",
        rows: &["S6.5", "38"],
        what: "the association is withdrawn while a switch is under way; its late completion moves no frame",
        setup: &[Set::Switch(1000)],
        steps: &[(300, 0, Eject(First)), (2000, 0, Rest), (4000, 0, See("synthetic"))],
        expect: &[
            Told(&["says that it has no VF", "let go"]),
            Told(&["paired with", "wants it back"]),
        ],
        ..PLAIN
    },
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

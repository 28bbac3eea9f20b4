//! What hosts answer to switches, and what of it gets lost.

use hyperv_host::host::Disassociation::{After, First};
use hyperv_host::nic::Notice::{Association, Disassociation, Path};
use hyperv_host::nic::SwitchAnswer::{CompleteTwice, Fail, Lose, Silent};
use hyperv_host::vf::VfPace;
use vmbus::Serial;

use super::super::Scenario;
use super::super::expect::Expect::{Never, NotBefore, Times, Told, Within};
use super::super::setup::Set;
use super::{BY_BOTH, BY_MAC, OFF_VF, ON_VF, PLAIN, millis};
use crate::sim::deed::Deed::{self, Eject, Give, Link, Notice, Rest, See, TearAway};

/// All of them.
pub(super) const ALL: &[Scenario] = &[
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
    // What gets lost, and VFs that fall behind.
    Scenario {
        name: "association-lost",
        rows: &["44", "S4"],
        what: "the host's word that there is a VF gets lost; it is paired by MAC, and used only when the host says so again",
        setup: &[Set::Association(0, 500)],
        steps: &[
            (100, 0, Deed::Lose(Association)),
            (3000, 0, See("paired")),
            (3500, 0, Deed::Repeat),
            (4000, 0, See("accelerated")),
        ],
        expect: &[Told(&[BY_MAC, "names serial 1", ON_VF]), NotBefore(2000, BY_MAC, ON_VF)],
        ..PLAIN
    },
    Scenario {
        name: "vf-back-unheard",
        rows: &["28", "S4"],
        what: "the VF goes and another comes with its serial, and the host's word that there was none gets lost; asked too early, the host is asked again",
        setup: &[Set::Association(0, 300), Set::OfferFirst],
        steps: &[
            (1000, 0, Deed::Lose(Disassociation)),
            (1000, 0, Deed::Lose(Path)),
            (1010, 0, TearAway(After(millis(50)))),
            (1200, 0, Give(Serial(1))),
        ],
        expect: &[
            Told(&["names serial 1", ON_VF, OFF_VF, BY_BOTH, ON_VF, "names serial 1"]),
            Never("the host says that it has no VF"),
        ],
        ..PLAIN
    },
    Scenario {
        name: "stalled-vf-asked-back",
        rows: &["26", "S6.1"],
        what: "a VF that sends nothing any more is asked back; what it has not sent leaves on the synthetic path a second later, and it is let go",
        steps: &[
            (500, 0, Deed::Pace(VfPace::Stalled)),
            (600, 0, Eject(First)),
            (3000, 0, See("synthetic")),
        ],
        expect: &[
            Told(&["asks for the VF back", OFF_VF, "sent again", "let go"]),
            Within(1100, "asks for the VF back", "let go"),
            NotBefore(1000, "asks for the VF back", "let go"),
        ],
        ..PLAIN
    },
    Scenario {
        name: "torn-away-unconfirmed",
        rows: &["8", "26"],
        what: "a VF that sends and does not confirm is torn away: what it may have sent is sent again, and only that arrives twice",
        steps: &[
            (500, 0, Deed::Pace(VfPace::Unconfirmed)),
            (600, 0, TearAway(First)),
            (2000, 0, See("synthetic")),
        ],
        expect: &[Told(&["tears the VF away", OFF_VF, "sent again"])],
        ..PLAIN
    },
];

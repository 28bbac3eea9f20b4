//! What happens in a system: what the host does, and what befalls the guest.

use std::fmt;
use std::time::Duration;

use hyperv_host::bus::Fault;
use hyperv_host::host::Disassociation;
use hyperv_host::nic::{NicFault, Notice};
use hyperv_host::vf::VfPace;
use vmbus::Serial;

/// A function that is no NIC's VF.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stranger {
    /// It has the MAC of the NIC, and no link.
    Twin,
    /// A network function with a MAC that no NIC has.
    Other,
    /// A disk.
    Disk,
}

/// Something that happens to a NIC, its VF, or all. What is not possible at its moment is left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Deed {
    /// The host asks for the VF back.
    Eject(Disassociation),
    /// It tears the VF away.
    TearAway(Disassociation),
    /// It gives a VF with this serial.
    Give(Serial),
    /// It gives a VF with this serial and a MAC that is not the NIC's.
    GiveOther(Serial),
    /// It promises a VF with this serial that does not come.
    Promise(Serial),
    /// The VF's link goes up or down.
    Link(bool),
    /// It tells the guest, out of turn, that the path is the synthetic one.
    Notice,
    /// It says again whether there is a VF.
    Repeat,
    /// The next thing of this kind that it says by itself gets lost.
    Lose(Notice),
    /// How the VF deals with what it is to send, from now on.
    Pace(VfPace),
    /// It takes the NIC away, with its VF.
    Unplug,
    /// The NIC that it has taken away comes back, without VF.
    Plug,
    /// A function comes that is no NIC's VF.
    Stranger(Stranger, Serial),
    /// The first of those goes.
    StrangerGoes {
        /// The host asks for it before.
        asked: bool,
    },
    /// From now on, messages of the bus take so long.
    Slow(Duration),
    /// The bus misbehaves.
    Bus(Fault),
    /// The NIC's service misbehaves.
    Nic(NicFault),
    /// The machine stands still so long: host and guest find the time gone.
    Sleep(Duration),
    /// The guest's clock jumps forward, the host's does not.
    Jump(Duration),
    /// Another guest takes over the machine.
    Restart {
        /// The old one takes leave of the host before.
        farewell: bool,
    },
    /// The guest has the NIC begin anew, as a change of its MTU does.
    Renew,
    /// The guest has all its NICs begin anew; the machine stands still so long meanwhile.
    Suspend(Duration),
    /// The guest takes leave of its host with all its NICs and buses, sleeps so long, and wakes up.
    Hibernate(Duration),
    /// So many allocations of the guest fail.
    Starve(usize),
    /// Somebody in the guest changes the NIC's MAC.
    ChangeMac,
    /// Somebody in the guest changes the NIC's MTU, for which it begins anew.
    ChangeMtu(u32),
    /// The port of the NIC's VF leaves and arrives anew, its function does not: its driver starts again, or it moves into another
    /// network namespace.
    MovePort,
    /// So many frames of the guest are sent at this very moment, before anything else that happens at it.
    Burst(u64),
    /// Nothing; the NIC has to be in this state now.
    See(&'static str),
    /// Nothing; frames flow.
    Rest,
}

impl Deed {
    /// A word for its kind.
    pub(super) const fn kind(self) -> &'static str {
        match self {
            Self::Eject(_) => "eject",
            Self::TearAway(_) => "tear-away",
            Self::Give(_) => "give",
            Self::GiveOther(_) => "give-wrong-mac",
            Self::Promise(_) => "vf-never-comes",
            Self::Link(_) => "link",
            Self::Notice => "false-notice",
            Self::Repeat => "association-again",
            Self::Lose(_) => "notice-lost",
            Self::Pace(VfPace::Prompt) => "vf-prompt",
            Self::Pace(VfPace::Stalled) => "vf-stalls",
            Self::Pace(VfPace::Unconfirmed) => "vf-confirms-late",
            Self::Unplug => "nic-rescind",
            Self::Plug => "nic-again",
            Self::Stranger(Stranger::Twin, _) => "vf-twice",
            Self::Stranger(Stranger::Other, _) => "strange-function",
            Self::Stranger(Stranger::Disk, _) => "disk",
            Self::StrangerGoes { asked: true } => "bus-eject",
            Self::StrangerGoes { asked: false } => "bus-rescind",
            Self::Slow(_) => "messages-late",
            Self::Bus(_) => "bus-fault",
            Self::Nic(_) => "nic-fault",
            Self::Sleep(_) => "machine-stood-still",
            Self::Jump(_) => "guest-clock-jump",
            Self::Restart { farewell: true } => "kexec-after-unload",
            Self::Restart { farewell: false } => "kexec",
            Self::Renew => "nic-reset",
            Self::Suspend(_) => "suspend",
            Self::Hibernate(_) => "hibernate",
            Self::Starve(_) => "no-memory",
            Self::ChangeMac => "mac-change",
            Self::ChangeMtu(_) => "mtu-change",
            Self::MovePort => "port-move",
            Self::Burst(_) => "burst",
            Self::See(_) => "look",
            Self::Rest => "rest",
        }
    }
}

impl fmt::Display for Deed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Eject(_) => f.write_str("the host asks for the VF back"),
            Self::TearAway(_) => f.write_str("the host tears the VF away"),
            Self::Give(serial) => write!(f, "the host gives a VF with serial {serial}"),
            Self::GiveOther(serial) => {
                write!(f, "the host gives a VF with serial {serial} and a strange MAC")
            }
            Self::Promise(serial) => {
                write!(f, "the host promises a VF with serial {serial} that does not come")
            }
            Self::Link(true) => f.write_str("the VF's link goes up"),
            Self::Link(false) => f.write_str("the VF's link goes down"),
            Self::Notice => f.write_str("the host says that it has left the VF"),
            Self::Repeat => f.write_str("the host says again whether there is a VF"),
            Self::Lose(Notice::Association) => {
                f.write_str("the next word of the host that there is a VF gets lost")
            }
            Self::Lose(Notice::Disassociation) => {
                f.write_str("the next word of the host that there is no VF gets lost")
            }
            Self::Lose(Notice::Path) => {
                f.write_str("the next word of the host that it has left the VF gets lost")
            }
            Self::Pace(VfPace::Prompt) => f.write_str("the VF sends and confirms at once"),
            Self::Pace(VfPace::Stalled) => f.write_str("the VF sends nothing"),
            Self::Pace(VfPace::Unconfirmed) => f.write_str("the VF sends and confirms nothing"),
            Self::Unplug => f.write_str("the host takes the NIC away"),
            Self::Plug => f.write_str("the NIC comes back"),
            Self::Stranger(Stranger::Twin, serial) => {
                write!(f, "a second function with the NIC's MAC comes, serial {serial}")
            }
            Self::Stranger(Stranger::Other, serial) => {
                write!(f, "a function with a MAC of its own comes, serial {serial}")
            }
            Self::Stranger(Stranger::Disk, serial) => write!(f, "a disk comes, serial {serial}"),
            Self::StrangerGoes { asked: true } => {
                f.write_str("the host asks for a function back that is no VF")
            }
            Self::StrangerGoes { asked: false } => {
                f.write_str("the host tears a function away that is no VF")
            }
            Self::Slow(delay) => write!(f, "messages of the bus take {delay:?}"),
            Self::Bus(fault) => write!(f, "the bus misbehaves: {fault:?}"),
            Self::Nic(fault) => write!(f, "the NIC misbehaves: {fault:?}"),
            Self::Sleep(span) => write!(f, "the machine stands still for {span:?}"),
            Self::Jump(span) => write!(f, "the guest's clock jumps by {span:?}"),
            Self::Restart { farewell: true } => {
                f.write_str("the guest takes its leave, and another takes over")
            }
            Self::Restart { farewell: false } => f.write_str("another guest takes over"),
            Self::Renew => f.write_str("the guest resets the NIC"),
            Self::Suspend(span) => {
                write!(
                    f,
                    "the guest resets all NICs, the machine stands still for {span:?} meanwhile"
                )
            }
            Self::Hibernate(span) => write!(f, "the guest goes to sleep for {span:?}"),
            Self::Starve(count) => write!(f, "{count} allocations of the guest fail"),
            Self::ChangeMac => f.write_str("somebody in the guest gives it another MAC"),
            Self::ChangeMtu(mtu) => write!(f, "somebody in the guest gives it an MTU of {mtu}"),
            Self::MovePort => f.write_str("the VF's port leaves and arrives anew"),
            Self::Burst(frames) => write!(f, "the guest sends {frames} frames at once"),
            Self::See(state) => write!(f, "expected to be {state} now"),
            Self::Rest => f.write_str("nothing, frames flow"),
        }
    }
}

/// What is done to whom, and how long after the deed before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Act {
    pub(super) after: Duration,
    pub(super) nic: usize,
    pub(super) deed: Deed,
}

impl fmt::Display for Act {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { after, nic, deed } = self;
        write!(f, "{after:>9.3?} later, nic{nic}: {deed}")
    }
}

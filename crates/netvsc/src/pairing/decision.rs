//! What pairing decides, why, and from which facts (P15).

use alloc::vec::Vec;
use core::fmt;

use vmbus::{Guid, Serial};

use super::facts::{DeviceKind, FunctionKey, NicId, PortId, PortKey};
use crate::mac::MacAddress;

/// Why a NIC and a port belong together; the stronger claim is the smaller value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Reason {
    /// The NIC is associated, the serials are equal and so are the permanent MACs (P3).
    SerialAndMac,
    /// The serials are equal, the function has one port, and its MAC can never be known (P4).
    Serial,
    /// No NIC is associated with the port's serial, and one NIC has its MAC. Weak (P6).
    Mac,
}

impl Reason {
    /// The word for machines.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::SerialAndMac => "SerialAndMac",
            Self::Serial => "Serial",
            Self::Mac => "Mac",
        }
    }

    /// Whether the next association may undo it.
    #[must_use]
    pub const fn is_weak(self) -> bool {
        matches!(self, Self::Mac)
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::SerialAndMac => "serial and permanent MAC agree",
            Self::Serial => {
                "the serials agree, and it is the function's only port, with no MAC to compare"
            }
            Self::Mac => {
                "the permanent MACs agree, and no NIC is associated with the port's serial"
            }
        })
    }
}

/// A NIC, with the name that outlives its handle.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct NicRef {
    /// Instance of its VMBus offer.
    pub instance: Guid,
    /// Its handle.
    pub id: NicId,
}

impl fmt::Display for NicRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "NIC {}", self.instance)
    }
}

/// A port, with the name that outlives its handle.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PortRef {
    /// What makes it this port.
    pub key: PortKey,
    /// Its handle.
    pub id: PortId,
}

impl fmt::Display for PortRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.key.fmt(f)
    }
}

/// The facts that made a pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Facts {
    /// The serial the NIC is associated with, if any.
    pub associated: Option<Serial>,
    /// The serial of the port's function.
    pub serial: Serial,
    /// The NIC's permanent MAC.
    pub nic_mac: MacAddress,
    /// The port's permanent MAC, if it can be known.
    pub port_mac: Option<MacAddress>,
}

impl fmt::Display for Facts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.associated {
            Some(serial) => write!(f, "the NIC is associated with serial {serial}")?,
            None => f.write_str("the NIC has no association")?,
        }
        write!(f, " and has MAC {}; the port's serial is {}", self.nic_mac, self.serial)?;
        match self.port_mac {
            Some(mac) => write!(f, " and its MAC {mac}"),
            None => f.write_str(" and its MAC cannot be known"),
        }
    }
}

/// Something that several parties have in common and that tells none of them apart (P5).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Dispute {
    /// Several NICs with one MAC are associated with one serial.
    SerialAndMac(Serial, MacAddress),
    /// One serial, and no MAC to decide with.
    Serial(Serial),
    /// Several NICs have the MAC, and none is associated with the port's serial.
    Mac(MacAddress),
}

impl fmt::Display for Dispute {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::SerialAndMac(serial, mac) => {
                write!(f, "several NICs are associated with serial {serial} and have MAC {mac}")
            }
            Self::Serial(serial) => {
                write!(f, "serial {serial} names several, and no MAC tells them apart")
            }
            Self::Mac(mac) => {
                write!(f, "several NICs have MAC {mac}, and no association tells them apart")
            }
        }
    }
}

/// Why a pair comes apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Parting {
    /// The NIC has left.
    NicLeft,
    /// The port, or its function, has left. There is nothing to be careful with.
    PortLeft,
    /// The NIC has another port now.
    BetterPort(PortRef, Reason),
    /// The port has another NIC now.
    BetterNic(NicRef, Reason),
    /// More than one could be meant now.
    Conflict(Dispute),
    /// The serial still fits; the MAC does not.
    MacMismatch,
    /// Nothing speaks for the pair any more.
    NoMatch,
    /// A rule forbids it.
    Refused(Refusal),
}

impl fmt::Display for Parting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NicLeft => f.write_str("the NIC has left"),
            Self::PortLeft => f.write_str("the port has left"),
            Self::BetterPort(port, why) => write!(f, "the NIC goes to {port}: {why}"),
            Self::BetterNic(nic, why) => write!(f, "the port goes to {nic}: {why}"),
            Self::Conflict(dispute) => write!(f, "conflict: {dispute}"),
            Self::MacMismatch => {
                f.write_str("a NIC is associated with its serial, but not this one")
            }
            Self::NoMatch => f.write_str("neither serial nor MAC speak for it any more"),
            Self::Refused(refusal) => refusal.fmt(f),
        }
    }
}

/// A rule that says no.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The device did not come over vPCI (P1).
    NotVpci(DeviceKind, MacAddress),
    /// A NIC with this MAC is here, but policy wants a serial (P6).
    MacAlone(MacAddress),
    /// The guest is isolated from its host (P14).
    Isolated,
}

impl Refusal {
    /// The rule of the table that refused.
    #[must_use]
    pub const fn rule(&self) -> &'static str {
        match self {
            Self::NotVpci(..) => "P1",
            Self::MacAlone(_) => "P6",
            Self::Isolated => "P14",
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rule = self.rule();
        match self {
            Self::NotVpci(kind, mac) => {
                write!(
                    f,
                    "{kind} with MAC {mac} is no candidate: it did not come over vPCI ({rule})"
                )
            }
            Self::MacAlone(mac) => {
                write!(f, "only MAC {mac} agrees, and policy asks for a serial ({rule})")
            }
            Self::Isolated => {
                write!(f, "this guest is isolated from its host and takes no VF from it ({rule})")
            }
        }
    }
}

/// Whom a refusal concerns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Party {
    /// A NIC.
    Nic(NicRef),
    /// A port.
    Port(PortRef),
    /// A device that is not even a candidate.
    Stranger,
}

/// Something expected that has not come within the patience of the configuration (P12). Not an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Overdue {
    /// The host associated the NIC with a serial, and there is no pair.
    Association(NicRef, Serial),
    /// The port has no NIC.
    Port(PortRef),
    /// A pair was to be unbound, and nobody has said that it is.
    Unbinding(NicRef, PortRef),
}

impl fmt::Display for Overdue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Association(nic, serial) => {
                write!(f, "{nic} has been associated with serial {serial}, and still has no VF")
            }
            Self::Port(port) => write!(f, "{port} still has no NIC"),
            Self::Unbinding(nic, port) => write!(f, "{nic} still has not let go of {port}"),
        }
    }
}

/// A decision of pairing. `Bind` and `Unbind` are to be carried out; the others explain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Give this port to this NIC. Neither has another one.
    Bind {
        /// The NIC.
        nic: NicRef,
        /// The port.
        port: PortRef,
        /// Why.
        reason: Reason,
        /// From what.
        facts: Facts,
    },
    /// Take this port from this NIC, cleanly, and then say [`unbound`](super::Pairing::unbound).
    Unbind {
        /// The NIC.
        nic: NicRef,
        /// The port.
        port: PortRef,
        /// Why.
        why: Parting,
    },
    /// A pair stays, for another reason than before.
    Reexamined {
        /// The NIC.
        nic: NicRef,
        /// The port.
        port: PortRef,
        /// The reason so far.
        was: Reason,
        /// The reason now.
        reason: Reason,
        /// From what.
        facts: Facts,
    },
    /// The port would fit, and waits behind another one (P9).
    Standby {
        /// The NIC.
        nic: NicRef,
        /// The port that waits.
        port: PortRef,
        /// Why it would fit.
        reason: Reason,
        /// The port that goes first.
        behind: PortRef,
    },
    /// The port's permanent MAC is not known yet; nothing is guessed (P4).
    Pending {
        /// The port.
        port: PortRef,
    },
    /// NICs are associated with the port's serial, and none has its MAC (P7).
    MacMismatch {
        /// The port.
        port: PortRef,
        /// Its permanent MAC.
        mac: MacAddress,
        /// One NIC that is associated with the serial.
        nic: NicRef,
        /// That NIC's permanent MAC.
        nic_mac: MacAddress,
        /// How many NICs are.
        nics: usize,
    },
    /// More than one could be meant: nobody is paired (P5). Repeated whenever the parties change.
    Conflict {
        /// What they have in common.
        over: Dispute,
        /// All NICs concerned.
        nics: Vec<NicRef>,
        /// All ports concerned.
        ports: Vec<PortRef>,
    },
    /// A conflict is over.
    Settled {
        /// What it was about.
        over: Dispute,
    },
    /// No NIC has anything in common with the port. It may be all there is (P12).
    Alone {
        /// The port.
        port: PortRef,
    },
    /// A rule says no.
    Refused {
        /// To whom.
        party: Party,
        /// Which rule, and what it saw.
        refusal: Refusal,
    },
    /// The slot holds another function now: the old one has left, the new one has arrived (P13).
    Replaced {
        /// The function that was there.
        old: FunctionKey,
        /// The function that is there.
        new: FunctionKey,
    },
    /// Something expected has not come.
    Overdue(Overdue),
}

impl Decision {
    /// The word for machines.
    #[must_use]
    pub const fn word(&self) -> &'static str {
        match self {
            Self::Bind { .. } => "bind",
            Self::Unbind { .. } => "unbind",
            Self::Reexamined { .. } => "reexamined",
            Self::Standby { .. } => "standby",
            Self::Pending { .. } => "pending",
            Self::MacMismatch { .. } => "mac-mismatch",
            Self::Conflict { .. } => "conflict",
            Self::Settled { .. } => "settled",
            Self::Alone { .. } => "alone",
            Self::Refused { .. } => "refused",
            Self::Replaced { .. } => "replaced",
            Self::Overdue(_) => "overdue",
        }
    }
}

impl fmt::Display for Decision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bind { nic, port, reason, facts } => {
                write!(f, "bind {nic} and {port}: {reason} ({facts})")
            }
            Self::Unbind { nic, port, why } => write!(f, "unbind {nic} and {port}: {why}"),
            Self::Reexamined { nic, port, reason, .. } => {
                write!(f, "{nic} keeps {port}: {reason} now")
            }
            Self::Standby { nic, port, reason, behind } => {
                write!(f, "{port} stands by for {nic}, behind {behind}: {reason}")
            }
            Self::Pending { port } => write!(f, "{port} waits: its permanent MAC is not known yet"),
            Self::MacMismatch { port, mac, nic, nic_mac, nics } => {
                write!(f, "{port} has MAC {mac}, but {nic} of its serial has {nic_mac}")?;
                match nics.saturating_sub(1) {
                    0 => f.write_str("; not paired by serial"),
                    others => write!(f, ", and {others} more have others; not paired by serial"),
                }
            }
            Self::Conflict { over, nics, ports } => {
                write!(f, "conflict, nobody is paired: {over}; concerned are")?;
                list(f, nics)?;
                f.write_str(" and")?;
                list(f, ports)
            }
            Self::Settled { over } => write!(f, "no conflict any more: {over} no longer holds"),
            Self::Alone { port } => write!(f, "{port} has no NIC: none has its serial or its MAC"),
            Self::Refused { party, refusal } => match party {
                Party::Nic(nic) => write!(f, "{nic}: {refusal}"),
                Party::Port(port) => write!(f, "{port}: {refusal}"),
                Party::Stranger => refusal.fmt(f),
            },
            Self::Replaced { old, new } => write!(f, "{old} was replaced by {new}"),
            Self::Overdue(what) => what.fmt(f),
        }
    }
}

fn list<T: fmt::Display>(f: &mut fmt::Formatter<'_>, items: &[T]) -> fmt::Result {
    if items.is_empty() {
        return f.write_str(" none");
    }
    for (i, item) in items.iter().enumerate() {
        write!(f, "{} {item}", if i == 0 { "" } else { "," })?;
    }
    Ok(())
}

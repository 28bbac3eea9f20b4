//! Where every NIC and every port stands, in words.

use alloc::collections::BTreeSet;
use alloc::vec::Vec;
use core::fmt;

use vmbus::Serial;

use super::Pairing;
use super::decision::{Dispute, NicRef, PortRef, Reason, Refusal};
use super::facts::{FactError, NicId, PermanentMac, PortId};
use super::rules::Granted;
use super::settle::Told;
use crate::mac::MacAddress;
use crate::port::Path;

/// Where a port stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// It is, or is about to be, this NIC's.
    Matched(NicRef, Reason),
    /// It would fit this NIC, and waits behind another port.
    Standby(NicRef, Reason, PortRef),
    /// Its permanent MAC is not known yet.
    Pending,
    /// NICs (so many, one of them this) are associated with its serial, and none has its MAC.
    MacMismatch(NicRef, usize),
    /// More than one could be meant.
    Conflict(Dispute),
    /// No NIC has anything in common with it.
    Alone,
    /// A rule says no.
    Refused(Refusal),
}

impl fmt::Display for Standing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Matched(nic, reason) => write!(f, "belongs to {nic}: {reason}"),
            Self::Standby(nic, reason, behind) => {
                write!(f, "stands by for {nic}, behind {behind}: {reason}")
            }
            Self::Pending => f.write_str("waits: its permanent MAC is not known yet"),
            Self::MacMismatch(nic, _) => write!(f, "has the serial of {nic}, but another MAC"),
            Self::Conflict(dispute) => write!(f, "in conflict: {dispute}"),
            Self::Alone => f.write_str("has no NIC: none has its serial or its MAC"),
            Self::Refused(refusal) => write!(f, "is refused: {refusal}"),
        }
    }
}

/// Why a NIC is in conflict.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Conflict {
    /// More than one could be meant (P5).
    Dispute(Dispute),
    /// This port has its serial, and no NIC of that serial has the port's MAC (P7).
    MacMismatch(PortRef),
}

impl fmt::Display for Conflict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Dispute(dispute) => dispute.fmt(f),
            Self::MacMismatch(port) => write!(f, "{port} has its serial, but another MAC"),
        }
    }
}

/// The state of a NIC, as an operator sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NicState {
    /// No association and no port.
    Synthetic,
    /// Associated; the VF is not here yet.
    Waiting,
    /// The VF is here and not decidable yet, or another one is still being unbound.
    Pending,
    /// Bound to a port, frames still go the synthetic way.
    Paired(Reason),
    /// Bound to a port, frames go through it.
    Accelerated(Reason),
    /// Not paired, for this reason.
    Conflict(Conflict),
}

impl NicState {
    /// The word for machines, the same one everywhere.
    #[must_use]
    pub const fn word(&self) -> &'static str {
        match self {
            Self::Synthetic => "synthetic",
            Self::Waiting => "waiting",
            Self::Pending => "pending",
            Self::Paired(_) => "paired",
            Self::Accelerated(_) => "accelerated",
            Self::Conflict(_) => "conflict",
        }
    }

    /// The state, given the path that failover has chosen: a paired NIC on the VF is accelerated.
    #[must_use]
    pub const fn on(self, path: Path) -> Self {
        match (self, path) {
            (Self::Paired(reason), Path::Vf) => Self::Accelerated(reason),
            (Self::Accelerated(reason), Path::Synthetic) => Self::Paired(reason),
            (state, _) => state,
        }
    }
}

impl fmt::Display for NicState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())?;
        match self {
            Self::Synthetic => f.write_str(": no association"),
            Self::Waiting => f.write_str(": associated, the VF is not here yet"),
            Self::Pending => f.write_str(": the VF is here, nothing can be decided yet"),
            Self::Paired(reason) | Self::Accelerated(reason) => write!(f, ": {reason}"),
            Self::Conflict(conflict) => write!(f, ": {conflict}"),
        }
    }
}

/// All there is to say about one NIC.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Explanation {
    /// The NIC.
    pub nic: NicRef,
    /// Its permanent MAC.
    pub mac: MacAddress,
    /// The serial it is associated with, if any.
    pub associated: Option<Serial>,
    /// Its state, as far as pairing knows.
    pub state: NicState,
    /// The port it has.
    pub port: Option<PortRef>,
    /// Every port with its serial or its MAC, and where that port stands.
    pub candidates: Vec<(PortRef, Standing)>,
    /// The rule that refuses every VF to it, if one does (P14).
    pub refusal: Option<Refusal>,
}

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} with MAC {} is {}.", self.nic, self.mac, self.state)?;
        if let Some(refusal) = self.refusal {
            return write!(f, " Its host's associations are ignored: {refusal}.");
        }
        match self.associated {
            Some(serial) => write!(f, " The host associates it with serial {serial}.")?,
            None => f.write_str(" The host associates it with no serial.")?,
        }
        if let Some(port) = self.port {
            write!(f, " It has {port}.")?;
        }
        if self.candidates.is_empty() {
            return f.write_str(" No port has its serial or its MAC.");
        }
        for (port, standing) in &self.candidates {
            write!(f, " {port} {standing}.")?;
        }
        Ok(())
    }
}

/// All there is to say about one port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortExplanation {
    /// The port, with its function's serial.
    pub port: PortRef,
    /// Its permanent MAC.
    pub mac: PermanentMac,
    /// Where it stands; also which rule refuses it.
    pub standing: Standing,
    /// Every NIC with its serial or its MAC: the NIC, its MAC, and the serial it is associated with.
    pub nics: Vec<(NicRef, MacAddress, Option<Serial>)>,
}

impl fmt::Display for PortExplanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}.", self.port, self.standing)?;
        match (self.mac.known(), self.mac) {
            (Some(mac), _) => write!(f, " Its permanent MAC is {mac}.")?,
            (None, PermanentMac::Never) => f.write_str(" Its permanent MAC can never be known.")?,
            (None, _) => f.write_str(" Its permanent MAC is not known yet.")?,
        }
        if self.nics.is_empty() {
            return f.write_str(" No NIC has its serial or its MAC.");
        }
        for (nic, mac, associated) in &self.nics {
            write!(f, " {nic} has MAC {mac} and is associated with ")?;
            match associated {
                Some(serial) => write!(f, "serial {serial}.")?,
                None => f.write_str("no serial.")?,
            }
        }
        Ok(())
    }
}

impl Pairing {
    /// The state of a NIC. Pairing does not know paths; add yours with [`NicState::on`].
    ///
    /// # Errors
    /// [`FactError::NicLeft`] for a stale handle.
    pub fn state(&self, nic: NicId) -> Result<NicState, FactError> {
        let record = self.nics.get(nic.0).ok_or(FactError::NicLeft(nic))?;
        if let Some((_, reason)) = self.bound(nic) {
            return Ok(NicState::Paired(reason));
        }
        if matches!(self.granted(nic), Granted::To(_)) || record.held.is_some() {
            return Ok(NicState::Pending);
        }
        let serial = record.associated;
        let disputes = [
            serial.map(|serial| Dispute::SerialAndMac(serial, record.mac)),
            serial.map(Dispute::Serial),
            Some(Dispute::Mac(record.mac)),
        ];
        let disputed = |dispute: &Dispute| self.index.disputed.contains_key(dispute);
        if let Some(dispute) = disputes.into_iter().flatten().find(disputed) {
            return Ok(NicState::Conflict(Conflict::Dispute(dispute)));
        }
        Ok(serial.map_or(NicState::Synthetic, |serial| self.state_by_serial(serial)))
    }

    /// The state of an associated NIC that no port claims.
    fn state_by_serial(&self, serial: Serial) -> NicState {
        let mut state = NicState::Waiting;
        for port in self.index.by_serial.ports(serial) {
            let Some(record) = self.ports.get(port.0) else { continue };
            match record.told {
                Some(Told::Pending) => return NicState::Pending,
                Some(Told::MacMismatch(..)) => {
                    let port = PortRef { key: record.key, id: port };
                    state = NicState::Conflict(Conflict::MacMismatch(port));
                }
                _ => {}
            }
        }
        state
    }

    /// Where a port stands.
    ///
    /// # Errors
    /// [`FactError::PortLeft`] for a stale handle.
    pub fn standing(&self, port: PortId) -> Result<Standing, FactError> {
        let record = self.ports.get(port.0).ok_or(FactError::PortLeft(port))?;
        Ok(record.told.and_then(|told| self.in_full(told)).unwrap_or(Standing::Alone))
    }

    /// All there is to say about a NIC.
    ///
    /// # Errors
    /// [`FactError::NicLeft`] for a stale handle.
    pub fn explain(&self, nic: NicId) -> Result<Explanation, FactError> {
        let record = self.nics.get(nic.0).ok_or(FactError::NicLeft(nic))?;
        let mut candidates: BTreeSet<PortId> = record.claims.iter().map(|c| c.port).collect();
        candidates.extend(self.index.by_mac.ports(record.mac));
        if let Some(serial) = record.associated {
            candidates.extend(self.index.by_serial.ports(serial));
        }
        let mut candidates: Vec<_> = candidates
            .into_iter()
            .filter_map(|id| {
                let port = self.ports.get(id.0)?;
                Some((PortRef { key: port.key, id }, self.in_full(port.told?)?))
            })
            .collect();
        candidates.sort_by_key(|(port, _)| *port);
        Ok(Explanation {
            nic: NicRef { instance: record.instance, id: nic },
            mac: record.mac,
            associated: record.associated,
            state: self.state(nic)?,
            port: self.bound(nic).map(|(port, _)| port),
            candidates,
            refusal: self.config.isolated.then_some(Refusal::Isolated),
        })
    }

    /// All there is to say about a port, refused ones as well.
    ///
    /// # Errors
    /// [`FactError::PortLeft`] for a stale handle.
    pub fn explain_port(&self, port: PortId) -> Result<PortExplanation, FactError> {
        let record = self.ports.get(port.0).ok_or(FactError::PortLeft(port))?;
        let by_serial = self.index.by_serial.nics(record.key.function.serial).map(|nic| nic.id);
        let by_mac = record.mac.known().into_iter();
        let by_mac = by_mac.flat_map(|mac| self.index.by_mac.nics(mac)).map(|(_, nic)| nic);
        let nics: BTreeSet<NicId> = by_serial.chain(by_mac).collect();
        let mut nics: Vec<_> = nics
            .into_iter()
            .filter_map(|id| {
                let nic = self.nics.get(id.0)?;
                Some((NicRef { instance: nic.instance, id }, nic.mac, nic.associated))
            })
            .collect();
        nics.sort_by_key(|(nic, ..)| *nic);
        let standing = self.standing(port)?;
        Ok(PortExplanation {
            port: PortRef { key: record.key, id: port },
            mac: record.mac,
            standing,
            nics,
        })
    }
}

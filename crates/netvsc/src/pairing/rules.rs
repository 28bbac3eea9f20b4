//! The rules themselves: which NIC a port may claim, and which of its claims a NIC grants.
//!
//! Two steps, each a function of the facts alone, so that the order in which the facts came cannot matter (P11):
//!
//! 1. every *port* claims at most one NIC ([`Pairing::judge`]);
//! 2. every *NIC* grants the strongest claim on it ([`Pairing::granted`]), among equals the one whose port comes first
//!    by bus, slot and index. The others stand by.

use super::decision::{Dispute, Reason, Refusal};
use super::facts::{MacPolicy, NicId, PermanentMac, PortId, PortKey};
use super::{Pairing, Port};
use crate::mac::MacAddress;
use vmbus::Serial;

/// What a port has to say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It claims this NIC.
    Claims(NicId, Reason),
    /// Its MAC is not known yet.
    Pending,
    /// NICs (so many, one of them this) are associated with its serial, and none has its MAC.
    Mismatch(NicId, usize),
    /// It could claim several.
    Disputed(Dispute),
    /// It could claim none.
    Alone,
    /// It must not claim any.
    Refused(Refusal),
}

/// A claim on a NIC; the strongest is the smallest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Claim {
    pub(super) reason: Reason,
    pub(super) key: PortKey,
    pub(super) port: PortId,
}

/// What a NIC does about the claims on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Granted {
    /// Nobody claims it.
    Nothing,
    /// This one has it.
    To(Claim),
    /// Nothing tells the strongest ones apart.
    Disputed(Dispute),
}

impl Pairing {
    /// Step 1: which NIC a port claims.
    pub(super) fn judge(&self, port: &Port) -> Verdict {
        if self.config.isolated {
            return Verdict::Refused(Refusal::Isolated);
        }
        let serial = port.key.function.serial;
        match (port.mac.known(), port.mac) {
            (Some(_), _) if seeded!("ignore-mac") => self.judge_by_serial(port, serial),
            (Some(mac), _) if self.index.by_serial.count_nics(serial) > 0 => {
                self.judge_by_both(serial, mac)
            }
            (Some(mac), _) => self.judge_by_mac(mac),
            (None, PermanentMac::Never) => self.judge_by_serial(port, serial),
            (None, _) => Verdict::Pending,
        }
    }

    /// P3, P5, P7: some NIC is associated with the serial; the MAC says which.
    fn judge_by_both(&self, serial: Serial, mac: MacAddress) -> Verdict {
        let mut both = self.index.by_mac.with(serial, mac);
        match (both.next(), both.next()) {
            (Some(nic), None) => Verdict::Claims(nic, Reason::SerialAndMac),
            (None, _) if seeded!("mac-is-enough") => self.judge_by_mac(mac),
            (None, _) => {
                let count = self.index.by_serial.count_nics(serial);
                let first = self.index.by_serial.nics(serial).next();
                first.map_or(Verdict::Alone, |nic| Verdict::Mismatch(nic.id, count))
            }
            (Some(_), Some(_)) => Verdict::Disputed(Dispute::SerialAndMac(serial, mac)),
        }
    }

    /// P6: no NIC is associated with the serial.
    fn judge_by_mac(&self, mac: MacAddress) -> Verdict {
        match (self.index.by_mac.only_nic(mac), self.config.mac_policy) {
            (Err(0), _) => Verdict::Alone,
            (_, MacPolicy::Deny) => Verdict::Refused(Refusal::MacAlone(mac)),
            (Ok((_, nic)), MacPolicy::Allow) => Verdict::Claims(nic, Reason::Mac),
            (Err(_), MacPolicy::Allow) => Verdict::Disputed(Dispute::Mac(mac)),
        }
    }

    /// P4, P5: there is no MAC and never will be.
    fn judge_by_serial(&self, port: &Port, serial: Serial) -> Verdict {
        let siblings = self.functions.get(port.function.0).map_or(0, |f| f.ports.len());
        match self.index.by_serial.only_nic(serial) {
            Err(0) => Verdict::Alone,
            Ok(nic) if siblings == 1 => Verdict::Claims(nic.id, Reason::Serial),
            _ => Verdict::Disputed(Dispute::Serial(serial)),
        }
    }

    /// Step 2: who gets a NIC (P8, P9).
    ///
    /// Claims with a MAC all mean this very NIC, so one of them may have it while the others stand by. Two claims by
    /// serial alone contradict each other: at most one of them can be right.
    pub(super) fn granted(&self, nic: NicId) -> Granted {
        let Some(record) = self.nics.get(nic.0) else { return Granted::Nothing };
        let mut claims = record.claims.iter();
        match (claims.next(), claims.next(), record.associated) {
            (None, ..) => Granted::Nothing,
            (Some(first), Some(second), Some(serial))
                if first.reason == Reason::Serial && second.reason == Reason::Serial =>
            {
                Granted::Disputed(Dispute::Serial(serial))
            }
            (Some(first), ..) => Granted::To(*first),
        }
    }
}

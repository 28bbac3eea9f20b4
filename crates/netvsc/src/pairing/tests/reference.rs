//! The pairing rules once more, in the simplest way there is: look at everything, for everything.
//!
//! Shares no code with the real thing, keeps no state and no index. What it says is right by reading PAIRING.md.

extern crate std;

use std::collections::{BTreeMap, BTreeSet};
use std::vec::Vec;

use vmbus::{Guid, Serial};

use crate::mac::MacAddress;
use crate::pairing::{FunctionKey, MacPolicy, PermanentMac, PortKey, Reason};

/// Everything that is true at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Truth {
    pub(super) nics: BTreeMap<Guid, (MacAddress, Option<Serial>)>,
    pub(super) functions: BTreeSet<FunctionKey>,
    pub(super) ports: Vec<(PortKey, PermanentMac)>,
}

impl Truth {
    fn associated_with(&self, serial: Serial) -> Vec<Guid> {
        let all = self.nics.iter();
        all.filter(|(_, (_, s))| *s == Some(serial)).map(|(nic, _)| *nic).collect()
    }

    /// Every NIC that a port could mean, and why.
    fn meant(&self, port: &(PortKey, PermanentMac), policy: MacPolicy) -> Vec<(Guid, Reason)> {
        let serial = port.0.function.serial;
        let by_serial = self.associated_with(serial);
        match port.1 {
            PermanentMac::NotYet => Vec::new(),
            PermanentMac::Never => {
                let same = |other: &&(PortKey, _)| other.0.function == port.0.function;
                if self.ports.iter().filter(same).count() > 1 {
                    return Vec::new();
                }
                by_serial.iter().map(|nic| (*nic, Reason::Serial)).collect()
            }
            PermanentMac::Known(mac) if by_serial.is_empty() => {
                if policy == MacPolicy::Deny {
                    return Vec::new();
                }
                let all = self.nics.iter().filter(|(_, (m, _))| *m == mac);
                all.map(|(nic, _)| (*nic, Reason::Mac)).collect()
            }
            PermanentMac::Known(mac) => {
                let fits = by_serial.iter().filter(|nic| self.nics[*nic].0 == mac);
                fits.map(|nic| (*nic, Reason::SerialAndMac)).collect()
            }
        }
    }

    /// The pairs that these facts call for.
    pub(super) fn pairs(&self, policy: MacPolicy) -> Vec<(Guid, PortKey, Reason)> {
        let mut pairs = Vec::new();
        for nic in self.nics.keys() {
            let mut wooers: Vec<(Reason, PortKey)> = Vec::new();
            for port in &self.ports {
                if let [(only, reason)] = self.meant(port, policy)[..]
                    && only == *nic
                {
                    wooers.push((reason, port.0));
                }
            }
            wooers.sort();
            let strongest = wooers.first().map(|(reason, _)| *reason);
            let equals = wooers.iter().filter(|(reason, _)| Some(*reason) == strongest).count();
            if strongest == Some(Reason::Serial) && equals > 1 {
                continue;
            }
            pairs.extend(wooers.first().map(|(reason, port)| (*nic, *port, *reason)));
        }
        pairs.sort();
        pairs
    }
}

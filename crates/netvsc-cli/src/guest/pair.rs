//! Carrying out what pairing decides.

use netvsc::failover::Cause;
use netvsc::pairing::{Decision, NicId, NicRef, Parting, Party, PortRef, Refusal};
use vmbus::Instant;

use super::{Guest, Machine};
use crate::event::What;

impl<M: Machine> Guest<M> {
    pub(super) fn carry_out(&mut self, decision: Decision, now: Instant) {
        match &decision {
            Decision::Bind { nic, port, reason, facts } => {
                let number = self.number(nic.id);
                if self.bind(*nic, *port, now)
                    && let Some(nic) = number
                {
                    self.events.push_back(What::Paired {
                        nic,
                        serial: port.key.function.serial,
                        mac: facts.nic_mac,
                        reason: reason.word(),
                        why: facts.to_string(),
                    });
                }
            }
            Decision::Unbind { nic, port, why } => {
                if let Some(nic) = self.number(nic.id) {
                    self.events.push_back(What::Unpaired { nic, why: why.to_string() });
                }
                self.unbind(*nic, *port, *why, now);
            }
            Decision::Refused {
                party: Party::Stranger,
                refusal: refusal @ Refusal::NotVpci(kind, mac),
            } => {
                let (device, why) = (kind.to_string(), refusal.to_string());
                self.events.push_back(What::Ignored { device, mac: *mac, why });
            }
            Decision::Overdue(what) => {
                self.events.push_back(What::Overdue { what: what.to_string() });
            }
            Decision::Standby { nic, .. } | Decision::Reexamined { nic, .. } => {
                let nic = self.number(nic.id);
                self.events.push_back(What::Pairing { nic, why: decision.to_string() });
            }
            other => {
                self.events.push_back(What::Pairing { nic: None, why: other.to_string() });
            }
        }
    }

    /// The number of the NIC that pairing knows by this name.
    fn number(&self, id: NicId) -> Option<usize> {
        self.nics.iter().position(|nic| nic.id == Some(id))
    }

    /// Gives a port to a NIC. False if one of them has gone meanwhile; pairing will hear of that by itself.
    fn bind(&mut self, nic: NicRef, port: PortRef, now: Instant) -> bool {
        if self.lets_go() {
            return false;
        }
        let Some(number) = self.number(nic.id) else { return false };
        let Some((bound, port)) = self.take_port(port.id) else { return false };
        let Some(device) = self.nics.get_mut(number) else { return false };
        let Some(adapter) = device.adapter_mut() else {
            self.keep_port(bound, port);
            return false;
        };
        match adapter.bind(port, now) {
            Ok(()) => {
                device.bound = Some(bound);
                device.rung = true;
                true
            }
            Err(port) => {
                self.keep_port(bound, port);
                self.fail(format!("nic{number} has a port already"));
                false
            }
        }
    }

    /// Takes a port from a NIC. What has gone already is let go at once.
    fn unbind(&mut self, nic: NicRef, port: PortRef, why: Parting, now: Instant) {
        let number = self.number(nic.id);
        let device = number.and_then(|number| self.nics.get_mut(number));
        if let Some(device) = device
            && device.bound.is_some_and(|bound| bound.port == port.id)
        {
            device.unbinding = Some(port.id);
            device.rung = true;
            if let Some(adapter) = device.adapter_mut()
                && adapter.has_port()
            {
                match why {
                    Parting::PortLeft => adapter.port_gone(now),
                    _ => adapter.release(Cause::Unbound, now),
                }
            }
            return;
        }
        let stale = self.pairing.unbound(nic.id, port.id, now).err();
        self.note_stale(stale);
    }
}

//! What whoever runs the host does to its NICs, and how they are joined to each other and to the outside.

use vmbus::Instant;
use vmbus::message::NIC_CLASS;

use super::device::Phase;
use super::vf::Disassociation;
use super::{ActError, Host, HostNic, Owner};
use crate::bus::{BusPolicy, Fault, OfferSpec};
use crate::nic::{NicCounters, NicFault, NicPolicy};
use crate::switch::{BridgeCounters, UplinkId, VlanMode};

impl Host {
    /// A NIC that has not been taken away.
    pub(super) fn nic(&self, nic: usize) -> Result<&HostNic, ActError> {
        self.nics.get(nic).filter(|entry| !entry.leaving).ok_or(ActError::NoNic(nic))
    }

    /// The same, to be polled afterwards.
    fn nic_to_poll(&mut self, nic: usize) -> Result<&mut HostNic, ActError> {
        let entry = self.nics.get_mut(nic).filter(|entry| !entry.leaving);
        let entry = entry.ok_or(ActError::NoNic(nic))?;
        entry.dirty = true;
        Ok(entry)
    }

    /// Takes a NIC away, with its VF if it has one; others that share the VF lose it, too. Ends in [`super::HostEvent::NicGone`], when the guest has let go of it;
    /// a NIC that is added afterwards may have the same identity.
    ///
    /// # Errors
    /// [`ActError::NoNic`].
    pub fn remove_nic(&mut self, nic: usize, now: Instant) -> Result<(), ActError> {
        let entry = self.nic_to_poll(nic)?;
        entry.leaving = true;
        let (device, port, vf) = (entry.device, entry.port, entry.vf);
        let at = self.devices.iter().position(|it| Some(it.instance) == vf);
        if let Some(at) = at {
            let announced = self.devices.get(at).is_some_and(|it| it.phase == Phase::Announced);
            if announced {
                // The guest was not offered it.
                self.disassociate(at);
                for port in self.devices.remove(at).ports {
                    if let Some(entry) = self.nics.get_mut(port.nic) {
                        entry.vf = None;
                    }
                }
            } else {
                let _ = self.tear_away(at, Disassociation::First, now);
            }
        }
        self.switch.disconnect(port);
        self.bus.rescind(device, now);
        Ok(())
    }

    /// Whether a NIC that was taken away is gone altogether.
    #[must_use]
    pub fn nic_is_gone(&self, nic: usize) -> bool {
        self.nics.get(nic).is_some_and(|nic| nic.gone)
    }

    /// Offers a NIC again that was taken away and is gone: it has the number, MAC, policy and switch port that it had.
    ///
    /// # Errors
    /// [`ActError::NoNic`] if there is none that is gone.
    pub fn return_nic(&mut self, nic: usize, now: Instant) -> Result<(), ActError> {
        let entry =
            self.nics.get_mut(nic).filter(|entry| entry.gone).ok_or(ActError::NoNic(nic))?;
        (entry.gone, entry.leaving) = (false, false);
        entry.device = self.bus.offer(OfferSpec::new(NIC_CLASS, entry.instance, 0), now);
        self.owners.insert(entry.device, Owner::Nic(nic));
        Ok(())
    }

    /// How the bus behaves; may be changed at any moment.
    pub fn bus_policy_mut(&mut self) -> &mut BusPolicy {
        self.bus.policy_mut()
    }

    /// Makes the bus misbehave once.
    pub fn inject_bus(&mut self, fault: Fault) {
        self.bus.inject(fault);
    }

    /// How often the bus misbehaved like this.
    #[must_use]
    pub fn bus_faults(&self, fault: Fault) -> u64 {
        self.bus.faults(fault)
    }

    /// How a NIC behaves; may be changed at any moment.
    ///
    /// # Errors
    /// [`ActError::NoNic`].
    pub fn nic_policy_mut(&mut self, nic: usize) -> Result<&mut NicPolicy, ActError> {
        Ok(self.nic_to_poll(nic)?.service.policy_mut())
    }

    /// Sets the link of a NIC's synthetic side.
    ///
    /// # Errors
    /// [`ActError::NoNic`].
    pub fn set_nic_link(&mut self, nic: usize, up: bool) -> Result<(), ActError> {
        self.nic_to_poll(nic)?.service.set_link(up);
        Ok(())
    }

    /// Starts the network behind a NIC anew; see [`crate::nic::NicService::restart_endpoint`].
    ///
    /// # Errors
    /// [`ActError::NoNic`].
    pub fn restart_nic(&mut self, nic: usize) -> Result<(), ActError> {
        self.nic_to_poll(nic)?.service.restart_endpoint();
        Ok(())
    }

    /// Makes a NIC misbehave once.
    ///
    /// # Errors
    /// [`ActError::NoNic`].
    pub fn inject_nic(&mut self, nic: usize, fault: NicFault) -> Result<(), ActError> {
        self.nic_to_poll(nic)?.service.inject(fault);
        Ok(())
    }

    /// How often a NIC misbehaved like this.
    #[must_use]
    pub fn nic_faults(&self, nic: usize, fault: NicFault) -> u64 {
        self.nics.get(nic).map_or(0, |nic| nic.service.faults(fault))
    }

    /// What a NIC's service did.
    #[must_use]
    pub fn nic_counters(&self, nic: usize) -> Option<NicCounters> {
        Some(self.nics.get(nic)?.service.counters())
    }

    /// Answers to switch requests that a NIC's policy still has in its script.
    #[must_use]
    pub fn switch_script(&self, nic: usize) -> usize {
        self.nics.get(nic).map_or(0, |nic| nic.service.policy().switch_script.len())
    }

    /// Channels of a NIC that are open, the primary one included.
    #[must_use]
    pub fn nic_queues(&self, nic: usize) -> usize {
        self.nics.get(nic).map_or(0, |nic| nic.service.queues())
    }

    /// Joins a NIC to the others that are joined, and to uplinks, instead of to a peer of its own.
    ///
    /// # Errors
    /// [`ActError::NoNic`].
    pub fn connect_nic(&mut self, nic: usize, vlans: VlanMode) -> Result<(), ActError> {
        let port = self.nic(nic)?.port;
        self.switch.connect(port, vlans);
        Ok(())
    }

    /// Joins a way out of the host, on which this many bytes may wait to be taken.
    pub fn add_uplink(&mut self, vlans: VlanMode, capacity: usize) -> UplinkId {
        self.switch.add_uplink(vlans, capacity)
    }

    /// A frame from outside. Poll afterwards.
    pub fn uplink_transmit(&mut self, uplink: UplinkId, frame: &[u8], now: Instant) {
        self.switch.uplink_transmit(uplink, frame, now);
    }

    /// The next frame that goes outside.
    pub fn uplink_receive(&mut self, uplink: UplinkId) -> Option<Vec<u8>> {
        self.switch.uplink_receive(uplink)
    }

    /// What the bridge between NICs and uplinks did.
    #[must_use]
    pub const fn bridge_counters(&self) -> BridgeCounters {
        self.switch.bridge_counters()
    }
}

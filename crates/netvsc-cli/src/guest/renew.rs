//! A NIC that begins anew on its channel, as a change of its MTU or a sleep of the guest wants: it stops, its channel closes and
//! opens again, and its VF and what it was set to stay.

use vmbus::memory::SharedPages;
use vmbus::{Channel, ChannelId, Doorbell, Instant};

use super::nic::{NicDevice, Sharing};
use super::{Guest, Machine};
use crate::event::What;

/// How far a NIC is that begins anew on its channel.
pub(super) enum Renewal<D: Doorbell> {
    /// It does not.
    None,
    /// It stops, and then its channel closes.
    Stopping,
    /// The same, and then it sleeps.
    Drowsy,
    /// It has no channel until it is offered again.
    Asleep,
    /// The channel is being opened again.
    Opening(Channel<SharedPages, D>),
    /// The host is being told of new buffers.
    Sharing(Sharing<D>),
}

impl<M: Machine> Guest<M> {
    /// Has a NIC that is at work begin anew, as a change of its MTU does: it stops, its channel closes and opens again. Its VF and
    /// what it was set to stay. False if it is not at work.
    pub fn renew_nic(&mut self, number: usize, now: Instant) -> bool {
        let Some(nic) = self.nics.get_mut(number) else { return false };
        let idle = nic.id.is_some() && matches!(nic.renewal, Renewal::None);
        let Some(adapter) = nic.adapter_mut().filter(|adapter| idle && adapter.is_open()) else {
            return false;
        };
        adapter.nic_mut().shutdown(now);
        (nic.renewal, nic.rung) = (Renewal::Stopping, true);
        true
    }

    /// Has a NIC begin anew with another MTU, which the host may make smaller. False if it is not at work, or no host has such.
    pub fn change_mtu(&mut self, number: usize, mtu: u32, now: Instant) -> bool {
        let nic = self.nics.get_mut(number);
        let Some(adapter) = nic.and_then(|nic| nic.adapter_mut()) else { return false };
        let taken = adapter.is_open() && adapter.nic_mut().nic_mut().set_mtu(mtu).is_ok();
        taken && self.renew_nic(number, now)
    }

    /// The host has not answered a NIC in time. One that stops is given as much time again: host and guest may both have stood still
    /// meanwhile, and what the host still has is not to be lost for that.
    pub(super) fn stop_is_overdue(&mut self, number: usize, now: Instant) {
        let patience = self.nic_config.deadline;
        let Some(nic) = self.nics.get_mut(number) else { return };
        if matches!(nic.renewal, Renewal::Stopping | Renewal::Drowsy) {
            nic.give_up.get_or_insert(now + patience);
        }
    }

    /// Has a NIC stop without what the host owes, if that took too long.
    pub(super) fn give_up_stop(&mut self, number: usize, now: Instant) {
        let Some(nic) = self.nics.get_mut(number) else { return };
        let Some(_) = nic.give_up.take_if(|at| *at <= now) else { return };
        nic.rung = true;
        if let Some(adapter) = nic.adapter_mut() {
            adapter.nic_mut().abandon(now);
            let what = format!("nic{number}: the host lets go of nothing; it goes on without");
            self.events.push_back(What::Overdue { what });
        }
    }

    /// A NIC has stopped; if it is to begin anew, its channel closes.
    pub(super) fn nic_stopped(&mut self, number: usize, now: Instant) {
        let Some(nic) = self.nics.get_mut(number) else { return };
        nic.give_up = None;
        nic.unopened.clear();
        let (Renewal::Stopping | Renewal::Drowsy, Some(channel)) = (&nic.renewal, nic.channel)
        else {
            return;
        };
        if let Some(id) = nic.id {
            // What the host said on the channel it says again on the next one.
            let stale = self.pairing.disassociated(id, now).err();
            self.note_stale(stale);
        }
        // A channel that is rescinded closes by itself.
        if let Err(error) = self.bus.close(channel, now) {
            tracing::debug!(%error, "a NIC's channel that closes already");
        }
    }

    /// The channel of a NIC that begins anew is closed: it opens again.
    pub(super) fn nic_closed(&mut self, number: usize, channel: ChannelId, now: Instant) {
        if let Some(nic) = self.nics.get_mut(number).filter(|nic| nic.is_drowsy()) {
            nic.renewal = Renewal::Asleep;
            return;
        }
        let waits = |nic: &NicDevice<_, _>| matches!(nic.renewal, Renewal::Stopping);
        if !self.nics.get(number).is_some_and(waits) {
            return;
        }
        let Some(offer) = self.bus.offer(channel).cloned() else { return };
        let opened = self.open(&offer, self.nic_rings, now);
        let Some(nic) = self.nics.get_mut(number) else { return };
        match opened {
            Ok(link) => nic.renewal = link.map_or(Renewal::None, Renewal::Opening),
            Err(why) => {
                nic.renewal = Renewal::None;
                self.fail(format!("nic{number}: {why}"));
            }
        }
    }

    /// The NIC starts on the channel that is open again.
    pub(super) fn begin_anew(&mut self, number: usize, now: Instant) {
        let Some(nic) = self.nics.get_mut(number) else { return };
        let renewal = std::mem::replace(&mut nic.renewal, Renewal::None);
        let Renewal::Sharing(Sharing { link, receive, send, .. }) = renewal else { return };
        nic.rung = true;
        let Some(adapter) = nic.adapter_mut() else { return };
        if let Err(error) = adapter.nic_mut().restart(link, receive, Some(send), now) {
            self.fail(format!("nic{number}: {error}"));
        }
    }
}

//! The end of a run: the host behaves, and everything has to come to rest as it should be.

use hyperv_host::host::{Disassociation, VfPlace};
use hyperv_host::nic::SwitchAnswer;
use hyperv_host::vf::VfPace;
use netvsc::Path;
use std::time::Duration;
use vmbus::{Instant, Serial};

use super::{LIVENESS, Lane, Phase, System};

/// Frames in each direction at the end, over the VFs.
const LAST_BURST: u64 = 8;
/// How far the serials of the end are from all others.
const LAST_SERIALS: u32 = 1 << 20;

impl System {
    /// From here on the host does everything right.
    pub(super) fn behave(&mut self) {
        for nic in 0..self.lanes.len() {
            if let Some(service) = self.stage.world.host.nic_mut(nic) {
                let policy = service.policy_mut();
                if let Some(lane) = self.lanes.get_mut(nic) {
                    let given = lane.answers.len().saturating_sub(policy.switch_script.len());
                    lane.answers.truncate(given);
                }
                policy.switch_script.clear();
                policy.switch_answer = SwitchAnswer::Complete(Duration::from_millis(1));
                policy.lost_notices.clear();
                if service.counters().notices_lost > 0 {
                    // The guest may have missed it; whoever has heard it hears nothing new.
                    service.repeat_association();
                    if service.data_path() == Path::Synthetic {
                        service.send_notice(Path::Synthetic);
                    }
                }
            }
            // There may be no VF now; the next one has a link.
            let _ = self.stage.world.host.set_vf_link(nic, true);
            let _ = self.stage.world.host.set_vf_pace(nic, VfPace::Prompt);
        }
        for lane in &mut self.lanes {
            // Its serial may name another NIC, and then it is rightly in no pair: the next one has a serial of its own.
            lane.spoilt |= lane.sees_vfs && !lane.knows_vfs;
        }
        self.stage.world.starve(0);
        self.stage.world.host.bus_policy_mut().reply_delay = Duration::from_micros(200);
        self.expel_strangers(self.now);
        if self.starved > 0 {
            self.offer_anew();
        }
        self.phase = Phase::Behaving { since: self.now, burst: false };
    }

    /// What the guest had no memory for is offered once more.
    fn offer_anew(&mut self) {
        let (host, now) = (&mut self.stage.world.host, self.now);
        for (nic, lane) in self.lanes.iter_mut().enumerate() {
            lane.spoilt = true;
            if !lane.ready {
                // It may be gone, or on its way.
                let _ = host.remove_nic(nic, now);
            }
        }
    }

    pub(super) fn come_to_rest(&mut self, since: Instant, burst: bool) -> Result<bool, String> {
        if self.stage.world.guest.is_drowsy() && self.now < since + LIVENESS {
            return Ok(false);
        }
        if !self.final_as_is && self.restore_all()? {
            return Ok(true);
        }
        let host = &self.stage.world.host;
        self.strangers.retain(|(instance, _)| host.has_device(*instance));
        let idle = |lane: &Lane| lane.out.is_idle() && lane.back.is_idle() && lane.group.is_idle();
        let quiet = (0..self.lanes.len()).all(|nic| self.stage.is_quiet(nic));
        let rested = quiet && self.strangers.is_empty() && self.lanes.iter().all(idle);
        let as_it_should = self.final_as_is || self.all_in_place();
        if rested && as_it_should && self.kept().is_ok() {
            if burst {
                self.phase = Phase::Over;
                return Ok(true);
            }
            for lane in &mut self.lanes {
                lane.out.want(LAST_BURST);
                lane.back.want(LAST_BURST);
                lane.group.want(LAST_BURST);
            }
            self.phase = Phase::Behaving { since, burst: true };
            return Ok(true);
        }
        if self.now >= since + LIVENESS {
            self.kept()?;
            let standing = self.standing();
            return Err(format!("{LIVENESS:?} after the last act: {standing}"));
        }
        Ok(false)
    }

    /// The guest takes its leave in order, once all is at rest: its NICs stop, its channels close, its buses are turned off, and what it
    /// shared comes back. Nothing of it may be left then, whatever happened before.
    ///
    /// # Errors
    /// What is left, or that it does not come to an end.
    pub(in crate::sim) fn leave(&mut self) -> Result<(), String> {
        let by = self.now + LIVENESS;
        if !self.stage.world.guest.suspend(self.stage.world.guest_time(self.now)) {
            return Err("the guest has no connection that it could end".into());
        }
        for lane in &mut self.lanes {
            lane.carrier_gone();
        }
        loop {
            self.settle(&mut |_| {})?;
            self.check_step()?;
            if self.stage.world.guest.is_asleep() {
                break;
            }
            let next =
                self.stage.deadline(self.now).filter(|next| *next < by).ok_or_else(|| {
                    format!("the guest comes to no end of its leave; {}", self.standing())
                })?;
            self.now = next.max(self.now + Duration::from_micros(1));
        }
        self.nothing_left().map_err(|wrong| format!("after the guest's leave: {wrong}"))
    }

    fn restore_all(&mut self) -> Result<bool, String> {
        let vfs = if self.shared { 1 } else { self.lanes.len() };
        let mut moved = false;
        for nic in 0..vfs {
            moved |= self.restore(nic)?;
        }
        Ok(moved)
    }

    /// Sees to it that a NIC has a VF that is its own.
    pub(super) fn restore(&mut self, nic: usize) -> Result<bool, String> {
        let now = self.now;
        for nic in 0..self.lanes.len() {
            if self.stage.world.host.nic_is_gone(nic) {
                let returned = self.stage.world.host.return_nic(nic, now);
                returned.map_err(|error| error.to_string())?;
                return Ok(true);
            }
        }
        if self.lanes.iter().any(|lane| !lane.ready) {
            return Ok(false);
        }
        let Some(lane) = self.lanes.get_mut(nic) else { return Ok(false) };
        match self.stage.world.host.vf_place(nic) {
            VfPlace::Absent => {
                let serial = Serial(LAST_SERIALS + nic as u32);
                lane.spoilt = false;
                // A NIC that has just been taken away can be given none; it will be back.
                Ok(self.stage.give_vf(nic, serial, None, now).is_ok())
            }
            VfPlace::Offered | VfPlace::InUse if lane.spoilt => {
                lane.spoilt = false;
                let host = &mut self.stage.world.host;
                let gone = if self.starved > 0 {
                    host.tear_away_vf(nic, Disassociation::First, now)
                } else {
                    host.eject_vf(nic, Disassociation::First, now)
                };
                gone.map_err(|error| error.to_string())?;
                Ok(true)
            }
            _ => Ok(false),
        }
    }

    /// Whether every NIC is at work, paired and on its VF. One that can use none is on its synthetic path, and says so.
    pub(super) fn all_in_place(&self) -> bool {
        self.lanes.iter().enumerate().all(|(nic, lane)| {
            let view = self.stage.world.guest.view(nic);
            let may = lane.may_use_vf();
            let place = match (may, lane.sees_vfs) {
                (true, _) => VfPlace::InUse,
                (false, true) => VfPlace::Offered,
                (false, false) => VfPlace::Moving,
            };
            let paired = view.pair.is_empty() != lane.sees_vfs;
            let placed = self.stage.world.host.vf_place(nic) == place;
            let accelerated = view.state == "accelerated";
            placed && accelerated == may && (may || lane.ready && paired)
        })
    }

    /// Whether every NIC is in its place and has all of its queues: one that lacked one had fewer pages in use than later.
    pub(super) fn is_complete(&self) -> bool {
        let guest = &self.stage.world.guest;
        self.all_in_place() && (0..self.lanes.len()).all(|nic| !guest.lacks_queues(nic))
    }

    pub(super) fn standing(&self) -> String {
        let nics = self.stage.views().into_iter().enumerate().map(|(nic, view)| {
            let host = &self.stage.world.host;
            let (place, path) = (host.vf_place(nic), host.data_path(nic));
            format!(
                "nic{nic} is {} ({}), its VF {place:?}, host on {path:?}",
                view.state, view.pair
            )
        });
        nics.collect::<Vec<_>>().join("; ")
    }
}

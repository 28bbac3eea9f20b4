//! What must hold: at every step, and in the end.

use netvsc::Path;

use super::System;

/// Frames of one NIC that may be on the switch at once, by far.
const QUEUED: u64 = 50_000;

impl System {
    /// The switch knows where every frame is, and holds no more than it may.
    pub(super) fn check_switch(&self) -> Result<(), String> {
        for nic in 0..self.lanes.len() {
            let Some(port) = self.stage.world.host.port_counters(nic) else { continue };
            if port.unaccounted() != (0, 0) {
                return Err(format!("nic{nic}: the switch lost count: {:?}", port.unaccounted()));
            }
            if port.in_flight() > QUEUED {
                return Err(format!("nic{nic}: {} frames queue up", port.in_flight()));
            }
        }
        Ok(())
    }

    /// What has to be so in the end.
    pub(super) fn check_end(&self) -> Result<(), String> {
        let (host, guest) = (&self.stage.world.host, &self.stage.world.guest);
        for (nic, lane) in self.lanes.iter().enumerate() {
            let lost = lane.out.lacking();
            if lost > 0 && !self.lies {
                return Err(format!("{lost} frames of nic{nic} never arrived"));
            }
            let not_switched = host.port_counters(nic).map_or(0, |port| port.dropped());
            if lost > not_switched {
                return Err(format!(
                    "{lost} frames of nic{nic} are missing, {not_switched} dropped"
                ));
            }
            // A host that lies about the path gives frames to a VF that the guest has left on its word; they go down with it.
            let torn = host.perished(nic).received_surprise;
            if lane.back.lacking() > torn && !self.lies {
                let lost = lane.back.lacking();
                return Err(format!(
                    "{lost} frames for nic{nic} are missing, {torn} were torn away"
                ));
            }
            let (twice, resent) = (lane.out.duplicates(), guest.counters(nic).frames_resent);
            if twice > resent || lane.back.duplicates() > 0 {
                let back = lane.back.duplicates();
                return Err(format!(
                    "nic{nic}: {twice} frames arrived twice, {resent} were sent again; {back} came twice"
                ));
            }
            if host.data_path(nic) != Some(Path::Vf) {
                return Err(format!("host and guest disagree; {}", self.standing()));
            }
        }
        let pairs = guest.pairs();
        let right = |pair: &crate::event::PairLine| {
            host.vf_serial(pair.nic).is_some_and(|serial| serial.0 == pair.serial)
        };
        if pairs.len() != self.lanes.len() || !pairs.iter().all(right) {
            return Err(format!("wrong pairs in the end: {pairs:?}"));
        }
        match (self.pages, self.stage.world.shared_pages()) {
            (Some(before), after) if before != after => {
                Err(format!("{before} pages were shared at first, {after} in the end"))
            }
            _ => Ok(()),
        }
    }
}

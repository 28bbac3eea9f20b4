//! What the host does.

use hyperv_host::host::VfPlace;
use netvsc::Path;

use super::System;
use crate::event::What;
use crate::sim::script::{Act, Deed};

impl System {
    pub(super) fn act(&mut self, act: Act) {
        let (nic, now) = (if self.shared { 0 } else { act.nic }, self.now);
        let host = &mut self.stage.world.host;
        let done = match act.deed {
            Deed::Eject(then) => host.eject_vf(nic, then, now).is_ok(),
            Deed::TearAway(then) => host.tear_away_vf(nic, then, now).is_ok(),
            Deed::Link(up) => host.set_vf_link(act.nic, up).is_ok(),
            Deed::Notice => match host.nic_mut(act.nic) {
                Some(service) => {
                    service.send_notice(Path::Synthetic);
                    if let Some(lane) = self.lanes.get_mut(act.nic) {
                        lane.told_lies = true;
                    }
                    true
                }
                None => false,
            },
            Deed::Give(serial) => {
                host.vf_place(nic) == VfPlace::Absent
                    && self.stage.give_vf(nic, serial, now).is_ok()
            }
            Deed::Rest => true,
        };
        if done {
            self.done += 1;
            self.stage.tell(now, What::HostAction { nic: act.nic, action: act.to_string() });
        }
    }
}

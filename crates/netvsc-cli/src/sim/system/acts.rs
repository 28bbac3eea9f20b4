//! What the host does, and what befalls the guest.

use std::collections::BTreeMap;
use std::time::Duration;

use hyperv_host::bus::Fault;
use hyperv_host::host::{DeviceSpec, VfPlace};
use hyperv_host::nic::{NicFault, NicService, Notice, SwitchAnswer, VfState};
use hyperv_host::pci::FunctionSpec;
use netvsc::{MacAddress, Path};
use vmbus::{Guid, Instant, Serial};
use vpci::slot::DevFn;

use super::lanes::PATIENCE;
use super::{Nap, System};
use crate::embedded::EmbeddedMachine;
use crate::event::What;
use crate::guest::Guest;
use crate::sim::deed::{Act, Deed, Stranger};

/// A jump of a clock by this much or more makes a guest or a host give up waiting.
const NOTICEABLE: Duration = Duration::from_millis(500);

/// A MAC that no NIC has.
const STRANGE: MacAddress = MacAddress([0x02, 0xff, 0, 0, 0, 1]);

impl System {
    pub(super) fn act(&mut self, act: Act) -> Result<(), String> {
        let (nic, now) = (if self.shared { 0 } else { act.nic }, self.now);
        let host = &mut self.stage.world.host;
        let done = match act.deed {
            Deed::Eject(then) => host.eject_vf(nic, then, now).is_ok(),
            Deed::TearAway(then) => host.tear_away_vf(nic, then, now).is_ok(),
            Deed::Link(up) => host.set_vf_link(act.nic, up).is_ok(),
            Deed::Notice => self.false_notice(act.nic),
            Deed::Repeat => host.nic_mut(act.nic).map(NicService::repeat_association).is_some(),
            Deed::Lose(notice) => self.lose(act.nic, notice),
            Deed::Pace(pace) => host.set_vf_pace(act.nic, pace).is_ok(),
            Deed::Give(serial) => self.give(nic, serial, None),
            Deed::GiveOther(serial) => self.give(nic, serial, Some(STRANGE)),
            Deed::Unplug => host.remove_nic(act.nic, now).is_ok(),
            Deed::Plug => host.return_nic(act.nic, now).is_ok(),
            Deed::Stranger(kind, serial) => self.stranger(act.nic, kind, serial),
            Deed::StrangerGoes { asked } => self.stranger_goes(asked),
            Deed::Slow(delay) => {
                host.bus_policy_mut().reply_delay = delay;
                true
            }
            Deed::Promise(serial) => self.promise(nic, serial),
            Deed::Bus(fault) => {
                self.nonsense += 1;
                host.inject_bus(fault);
                true
            }
            Deed::Nic(fault) => host.inject_nic(act.nic, fault).is_ok(),
            Deed::Sleep(span) => self.stand_still(span),
            Deed::Jump(span) => {
                self.stage.world.jump(span);
                self.time_jumped(span);
                true
            }
            Deed::Restart { farewell } => self.restart(farewell)?,
            Deed::Renew => self.renew(act.nic),
            Deed::Suspend(span) => {
                for nic in 0..self.lanes.len() {
                    self.renew(nic);
                }
                self.stand_still(span)
            }
            Deed::Hibernate(span) => self.hibernate(span),
            Deed::Starve(count) => {
                self.stage.world.starve(count);
                true
            }
            Deed::ChangeMtu(mtu) => {
                self.begin_anew(act.nic, |guest, now| guest.change_mtu(act.nic, mtu, now))
            }
            Deed::ChangeMac => self.stage.world.guest.change_mac(act.nic, now),
            Deed::MovePort => self.stage.world.guest.move_port(act.nic, now),
            Deed::Burst(frames) => self.burst(act.nic, frames)?,
            Deed::See(state) => self.look(act.nic, state),
            Deed::Rest => true,
        };
        if done {
            self.done += 1;
            *self.fired.entry(act.deed.kind()).or_default() += 1;
            self.stage.tell(now, What::HostAction { nic: act.nic, action: act.to_string() });
        }
        Ok(())
    }

    /// Looks whether a NIC is in a state, which can always be done.
    fn look(&mut self, nic: usize, state: &str) -> bool {
        let found = self.stage.world.guest.view(nic).state;
        if found != state {
            let (at, standing) = (self.now, self.standing());
            self.unseen = Some(format!("at {at}, nic{nic} has to be {state}; {standing}"));
        }
        true
    }

    fn false_notice(&mut self, nic: usize) -> bool {
        let Some(service) = self.stage.world.host.nic_mut(nic) else { return false };
        service.send_notice(Path::Synthetic);
        if let Some(lane) = self.lanes.get_mut(nic) {
            lane.told_lies = true;
        }
        true
    }

    /// Something that the host says by itself is to get lost. Without a word that there is a VF, one is used later; without the
    /// others the guest knows a path that is not so.
    fn lose(&mut self, nic: usize, notice: Notice) -> bool {
        let Ok(policy) = self.stage.world.host.nic_policy_mut(nic) else { return false };
        policy.lost_notices.push(notice);
        if let Some(lane) = self.lanes.get_mut(nic) {
            lane.told_lies |= notice != Notice::Association;
        }
        true
    }

    /// A NIC without a VF gets one, with the NIC's MAC or a `strange` one.
    fn give(&mut self, nic: usize, serial: Serial, strange: Option<MacAddress>) -> bool {
        let given = self.stage.world.host.vf_place(nic) == VfPlace::Absent
            && self.stage.give_vf(nic, serial, strange, self.now).is_ok();
        if let (Some(lane), true) = (self.lanes.get_mut(nic), given) {
            lane.spoilt = strange.is_some();
        }
        given
    }

    /// A NIC hears of a VF that never comes.
    fn promise(&mut self, nic: usize, serial: Serial) -> bool {
        if self.shared {
            return false;
        }
        let Some(service) = self.stage.world.host.nic_mut(nic) else { return false };
        let absent = service.vf_state() == VfState::Unavailable;
        if absent {
            service.vf_added(serial, self.now);
        }
        absent
    }

    /// A function that is no NIC's VF comes.
    fn stranger(&mut self, nic: usize, kind: Stranger, serial: Serial) -> bool {
        self.strangers_made += 1;
        let instance = Guid::from_bytes([0xa0u8.wrapping_add(self.strangers_made); 16]);
        let slot = DevFn(0).slot();
        let own = self.lanes.get(nic).map_or(STRANGE, |lane| lane.mac);
        let (mac, function) = match kind {
            Stranger::Twin => (own, FunctionSpec::multi_port(slot, serial, &[own])),
            Stranger::Other => (STRANGE, FunctionSpec::multi_port(slot, serial, &[STRANGE])),
            Stranger::Disk => (STRANGE, FunctionSpec::nvme(slot, serial)),
        };
        let world = &mut self.stage.world;
        world.map_stranger(instance, mac);
        let spec = DeviceSpec { instance, functions: vec![function] };
        let added = world.host.add_device(spec, self.now).is_ok();
        self.strangers.push((instance, mac));
        added
    }

    fn stranger_goes(&mut self, asked: bool) -> bool {
        let host = &mut self.stage.world.host;
        self.strangers.retain(|(instance, _)| host.has_device(*instance));
        let now = self.now;
        self.strangers.iter().any(|(instance, _)| match asked {
            true => host.eject_device(*instance, now).is_ok(),
            false => host.tear_away_device(*instance, now).is_ok(),
        })
    }

    /// The whole machine stands still for a while.
    fn stand_still(&mut self, span: Duration) -> bool {
        self.time_jumped(span);
        self.now = self.now + span;
        true
    }

    /// Time has gone that guest, host or both did not see go: whoever waited gives up, and what was under way is late.
    fn time_jumped(&mut self, span: Duration) {
        if span < NOTICEABLE {
            return;
        }
        for lane in &mut self.lanes {
            lane.told_lies = true;
            lane.out.way_changed();
            lane.back.way_changed();
            lane.group.way_changed();
        }
    }

    /// Another guest takes over.
    fn restart(&mut self, farewell: bool) -> Result<bool, String> {
        for (nic, lane) in self.lanes.iter_mut().enumerate() {
            // A host that stays on the VF says nothing of it to the new guest.
            let policy = self.stage.world.host.nic_policy_mut(nic);
            lane.told_lies |= policy.is_ok_and(|policy| policy.keep_path_over_close);
            lane.resent_before += self.stage.world.guest.counters(nic).frames_resent;
            lane.carrier_gone();
        }
        self.nap = Nap::None;
        self.stage.restart_guest(farewell, self.now).map_err(|error| error.to_string())?;
        self.equip();
        Ok(true)
    }

    /// The guest's next NICs have rings and an MTU as the script wants them.
    pub(super) fn equip(&mut self) {
        if let Some(pages) = self.rings {
            self.stage.world.guest.set_nic_rings(pages);
        }
        if let Some(mtu) = self.mtu {
            self.stage.world.guest.set_mtu(mtu);
        }
    }

    /// The guest resets a NIC.
    fn renew(&mut self, nic: usize) -> bool {
        self.begin_anew(nic, |guest, now| guest.renew_nic(nic, now))
    }

    /// A NIC begins anew if `how` has it do so. Nothing that it sends may be lost; what is sent to it meanwhile finds nobody.
    fn begin_anew(
        &mut self,
        nic: usize,
        how: impl FnOnce(&mut Guest<EmbeddedMachine>, Instant) -> bool,
    ) -> bool {
        let now = self.stage.world.guest_time(self.now);
        let Some(lane) = self.lanes.get_mut(nic).filter(|lane| lane.ready) else { return false };
        if !how(&mut self.stage.world.guest, now) {
            return false;
        }
        (lane.ready, lane.away) = (false, true);
        lane.back.carrier_gone();
        lane.group.carrier_gone();
        true
    }

    /// The guest goes to sleep with all it has. What it has taken it sends before.
    fn hibernate(&mut self, span: Duration) -> bool {
        let now = self.stage.world.guest_time(self.now);
        if !self.stage.world.guest.suspend(now) {
            return false;
        }
        self.nap = Nap::Wanted(span);
        for lane in &mut self.lanes {
            (lane.ready, lane.away) = (false, true);
            lane.back.carrier_gone();
            lane.group.carrier_gone();
        }
        true
    }

    /// The guest sleeps from when it is ready to until its time is over. True if it has just been woken.
    pub(super) fn nap_goes_on(&mut self) -> bool {
        match self.nap {
            Nap::Wanted(span) if self.stage.world.guest.is_asleep() => {
                self.nap = Nap::Until(self.now + span);
                false
            }
            Nap::Until(end) if end <= self.now => {
                self.nap = Nap::None;
                let now = self.stage.world.guest_time(self.now);
                self.stage.world.guest.resume(now)
            }
            Nap::None | Nap::Wanted(_) | Nap::Until(_) => false,
        }
    }

    /// All strangers go.
    pub(super) fn expel_strangers(&mut self, now: Instant) {
        for (instance, _) in &self.strangers {
            // One that is on its way out already goes all the same.
            let _ = self.stage.world.host.tear_away_device(*instance, now);
        }
    }

    /// What happened, by kind: deeds, and what came of those that wait for their moment.
    pub(super) fn fired(&self) -> BTreeMap<&'static str, u64> {
        let world = &self.stage.world;
        let mut fired = self.fired.clone();
        let mut add = |kind, count: u64| {
            if count > 0 {
                *fired.entry(kind).or_default() += count;
            }
        };
        for (nic, lane) in self.lanes.iter().enumerate() {
            for answer in lane.given_answers(world.host.switch_script(nic)) {
                add(answer_kind(answer), 1);
            }
            let faults = NicFault::ALL.iter();
            add("nic-fault-met", faults.map(|fault| world.host.nic_faults(nic, *fault)).sum());
            add("ring-full", world.guest.ring_full(nic));
            add("notice-lost-met", world.host.nic_counters(nic).map_or(0, |it| it.notices_lost));
            let (sent, received) =
                world.guest.queue_totals(nic).iter().fold((0, 0), |sum, queue| {
                    (sum.0 + u64::from(queue.tx_frames > 0), sum.1 + u64::from(queue.rx_frames > 0))
                });
            add("sent-on-several-queues", u64::from(sent > 1));
            add("received-on-several-queues", u64::from(received > 1));
        }
        let faults = Fault::ALL.into_iter();
        add("bus-fault-met", faults.map(|fault| world.host.bus_faults(fault)).sum());
        add("no-memory-met", world.starved() as u64);
        fired
    }
}

/// A word for the way a host answers a switch.
fn answer_kind(answer: &SwitchAnswer) -> &'static str {
    match answer {
        SwitchAnswer::Complete(span) if *span < PATIENCE => "switch",
        SwitchAnswer::Complete(_) => "switch-late",
        SwitchAnswer::Fail(_) => "switch-fails",
        SwitchAnswer::Silent(_) => "switch-not-completed",
        SwitchAnswer::Lose => "switch-lost",
        SwitchAnswer::CompleteTwice(_) => "switch-completed-twice",
    }
}

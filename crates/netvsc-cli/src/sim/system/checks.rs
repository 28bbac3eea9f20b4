//! The facts of a system, for the rules of [`invariant`](crate::sim::invariant).

use hyperv_host::bus::LeftBehind;
use hyperv_host::nic::NicFault;
use hyperv_host::switch::Path;

use super::System;
use super::lanes::Lane;
use crate::event::What;
use crate::sim::invariant::{Books, Moment, PairFacts, Wrong, pages_bounded, returned};

impl System {
    /// Notices that frames for the guest take another way from here on.
    pub(super) fn note_turns(&mut self) {
        for (nic, lane) in self.lanes.iter_mut().enumerate() {
            let Some(port) = self.stage.world.host.port_counters(nic) else { continue };
            if port.turns != lane.turns {
                lane.turns = port.turns;
                lane.back.way_changed();
            }
        }
    }

    /// What holds at every step.
    pub(super) fn check_step(&mut self) -> Result<(), String> {
        self.note_turns();
        for nic in 0..self.lanes.len() {
            let wrong = |wrong| format!("nic{nic}: {wrong}; {}", self.standing());
            self.moment(nic).map_or(Ok(()), |moment| moment.check()).map_err(wrong)?;
        }
        Ok(())
    }

    /// Answers of a NIC's script that are still to come.
    fn answers_left(&self, nic: usize) -> usize {
        self.stage.world.host.switch_script(nic)
    }

    /// That the guest does not miss the answer to a switch which the host has given, or was never asked for.
    pub(super) fn check_answered(&self, told: &What) -> Result<(), String> {
        let What::Overdue { what } = told else { return Ok(()) };
        for (nic, lane) in self.lanes.iter().enumerate() {
            let switch = format!("nic{nic}: the host has not switched");
            if what.starts_with(&switch) && lane.honest(self.answers_left(nic)) {
                return Err(format!("the host answers every switch; {what}; {}", self.standing()));
            }
        }
        Ok(())
    }

    fn moment(&self, nic: usize) -> Option<Moment> {
        let (host, guest) = (&self.stage.world.host, &self.stage.world.guest);
        let lane = self.lanes.get(nic)?;
        let port = host.port_counters(nic)?;
        let pair = guest.paired_port(nic).map(|(bus, number)| {
            let port = host.port_of_device(bus, number as usize);
            // A twin of the VF may take its place.
            let stranger = self.strangers.iter().find(|(stranger, _)| *stranger == bus);
            let port = port.or(stranger.map(|(_, mac)| (*mac, nic)));
            PairFacts {
                nic_mac: lane.mac,
                port_mac: port.map(|(mac, _)| mac),
                owner: port.map(|(_, owner)| owner),
            }
        });
        let known = lane.ready && lane.honest(self.answers_left(nic));
        let paths = guest.settled_path(nic).zip(host.data_path(nic)).filter(|_| known);
        Some(Moment {
            nic,
            unaccounted: port.unaccounted(),
            queued: port.in_flight(),
            held: guest.unconfirmed(nic),
            pair,
            endless: guest.waits_forever(nic),
            paths,
        })
    }

    /// That the guest's memory is bounded. Looking at it costs much.
    pub(super) fn check_memory(&self) -> Result<(), String> {
        let pages = self.stage.world.shared_pages();
        pages_bounded(pages, self.lanes.len()).map_err(|wrong| wrong.to_string())
    }

    /// The frames of a NIC, of which none is under way.
    pub(in crate::sim) fn books(&self, nic: usize) -> Option<Books> {
        let (host, guest) = (&self.stage.world.host, &self.stage.world.guest);
        let lane = self.lanes.get(nic)?;
        let port = host.port_counters(nic)?;
        let perished = host.perished(nic);
        Some(Books {
            missing_out: lane.out.lacking(),
            twice_out: lane.out.duplicates(),
            resent: lane.resent_before + guest.counters(nic).frames_resent,
            missing_in: lane.back.lacking() + lane.group.lacking(),
            twice_in: lane.back.duplicates() + lane.group.duplicates(),
            dropped_out: port.dropped_from_guest.total(),
            dropped_in: port.dropped_from_peer.total(),
            torn: perished.received_surprise,
            left: perished.received_orderly,
            outgrown: if lane.narrowed { guest.counters(nic).frames_lost } else { 0 },
            lied: lane.lied(self.answers_left(nic)),
            away: lane.away,
        })
    }

    /// What has to be so in the end.
    pub(super) fn check_end(&self) -> Result<(), String> {
        let (host, guest) = (&self.stage.world.host, &self.stage.world.guest);
        for nic in 0..self.lanes.len() {
            let checked = self.books(nic).map_or(Ok(()), |books| books.check());
            checked.map_err(|wrong| format!("nic{nic}: {wrong}"))?;
            if self.final_as_is {
                continue;
            }
            let on_vf = self.lanes.get(nic).is_none_or(Lane::may_use_vf);
            if host.data_path(nic) != Some(if on_vf { Path::Vf } else { Path::Synthetic }) {
                return Err(format!("host and guest disagree; {}", self.standing()));
            }
        }
        if self.final_as_is {
            return Ok(());
        }
        let pairs = guest.pairs();
        let right = |pair: &crate::event::PairLine| {
            host.vf_serial(pair.nic).is_some_and(|serial| serial.0 == pair.serial)
        };
        if pairs.len() != self.lanes.iter().filter(|lane| lane.sees_vfs).count()
            || !pairs.iter().all(right)
        {
            return Err(format!("wrong pairs in the end: {pairs:?}"));
        }
        let Some(before) = self.in_use else { return Ok(()) };
        let after = self.in_use();
        let names = ["pages shared", "pieces of memory shared", "channels in use"];
        for ((what, before), after) in names.into_iter().zip(before).zip(after) {
            returned(what, before, after).map_err(|wrong| wrong.to_string())?;
        }
        Ok(())
    }

    /// That nothing is left of a guest that has taken its leave in order. What it still has itself goes with it.
    pub(super) fn nothing_left(&mut self) -> Result<(), Wrong> {
        let host = &self.stage.world.host;
        let LeftBehind { channels, gpadls, ids } = host.left_behind();
        returned("channels open", 0, channels)?;
        returned("pieces of memory shared", 0, gpadls)?;
        returned("ids of channels that are gone", 0, ids)?;
        returned("pieces of memory that the host still has", 0, host.gpadls())?;
        returned("channels in use", 0, self.stage.world.guest.channels())?;
        drop(self.stage.world.restart_guest());
        returned("pages shared", 0, self.stage.world.shared_pages())
    }

    /// What one side has of the other's buffers when no frame is under way, and should have given back.
    pub(super) fn kept(&self) -> Result<(), String> {
        let (host, guest) = (&self.stage.world.host, &self.stage.world.guest);
        for nic in 0..self.lanes.len() {
            let lent = host.nic_counters(nic).map_or(0, |counters| counters.lent as usize);
            let never = host.nic_faults(nic, NicFault::SendNeverCompleted) as usize;
            let busy = guest.busy_slots(nic).saturating_sub(never);
            for (what, count) in [("pieces for received frames", lent), ("send slots", busy)] {
                returned(what, 0, count).map_err(|wrong| format!("nic{nic}: {wrong}"))?;
            }
        }
        Ok(())
    }

    /// Pages, pieces of memory and channels that are in use.
    pub(super) fn in_use(&self) -> [usize; 3] {
        let world = &self.stage.world;
        [world.shared_pages(), world.host.gpadls(), world.guest.channels()]
    }
}

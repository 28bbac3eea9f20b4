//! The traffic of every NIC, and how it is moved.

use std::time::Duration;

use hyperv_host::nic::SwitchAnswer;
use hyperv_host::switch::Offered;
use hyperv_host::vf::layout::LONGEST_FRAME;
use netvsc::MacAddress;
use rand_core::Rng;

use super::System;
use crate::guest::Sending;
use crate::sim::traffic::Flows;

/// One NIC's traffic.
#[derive(Debug)]
pub(super) struct Lane {
    pub(super) out: Flows,
    pub(super) back: Flows,
    /// Frames to everybody.
    pub(super) group: Flows,
    pub(super) ready: bool,
    /// Its VF has a MAC that is not the NIC's.
    pub(super) spoilt: bool,
    pub(super) mac: MacAddress,
    /// As the NIC said it when it was ready last.
    pub(super) mtu: u32,
    /// It has had a larger one before.
    pub(super) narrowed: bool,
    /// Whether guest and host speak a version in which the guest asks for VFs.
    pub(super) knows_vfs: bool,
    /// Whether the guest gets to see its VFs: a host that never announces them offers those only that it offers before.
    pub(super) sees_vfs: bool,
    /// How the host answers the first switches, by the script.
    pub(super) answers: Vec<SwitchAnswer>,
    /// The host has told a path that was not so.
    pub(super) told_lies: bool,
    /// Frames that guests before this one had sent again.
    pub(super) resent_before: u64,
    /// Frames that this one had sent again when that was looked at last.
    pub(super) resent: u64,
    /// The NIC was not there for a while.
    pub(super) away: bool,
    /// How often the way of frames for the guest had changed when that was looked at last.
    pub(super) turns: u64,
}

/// How long a guest waits for a switch before it goes on without.
pub(super) const PATIENCE: Duration = Duration::from_secs(5);

/// The largest MTU of the hosts' VFs: their frames have room for Ethernet header and tag besides.
const VF_MTU: u32 = LONGEST_FRAME as u32 - 18;

impl Lane {
    /// The NIC has this MTU, in both directions.
    pub(super) fn set_mtu(&mut self, mtu: u32) {
        self.narrowed |= mtu < self.mtu;
        self.mtu = mtu;
        for flows in [&mut self.out, &mut self.back, &mut self.group] {
            flows.set_mtu(mtu);
        }
    }

    /// Whether the NIC is to use its VF. Where the host knows of none, or the VF cannot take the NIC's frames, it is not.
    pub(super) fn may_use_vf(&self) -> bool {
        self.knows_vfs && self.mtu <= VF_MTU
    }

    /// The host may have dropped frames by what it said of the path, or did not do; `left` answers of its script are to come.
    pub(super) fn lied(&self, left: usize) -> bool {
        let excuse = |answer: &SwitchAnswer| match answer {
            SwitchAnswer::Fail(_) | SwitchAnswer::Lose => true,
            SwitchAnswer::Complete(span)
            | SwitchAnswer::Silent(span)
            | SwitchAnswer::CompleteTwice(span) => *span >= PATIENCE,
        };
        self.told_lies || self.given_answers(left).iter().any(excuse)
    }

    /// Every switch was completed, once, in time.
    pub(super) fn honest(&self, left: usize) -> bool {
        let right = |answer: &SwitchAnswer| matches!(answer, SwitchAnswer::Complete(span) if *span < PATIENCE);
        !self.told_lies && self.given_answers(left).iter().all(right)
    }

    /// The NIC is gone, and with it what it carried.
    pub(super) fn carrier_gone(&mut self) {
        (self.ready, self.away) = (false, true);
        self.out.carrier_gone();
        self.back.carrier_gone();
        self.group.carrier_gone();
    }

    /// The answers of the script that were given, if `left` are to come.
    pub(super) fn given_answers(&self, left: usize) -> &[SwitchAnswer] {
        self.answers.get(..self.answers.len().saturating_sub(left)).unwrap_or_default()
    }
}

impl System {
    /// Moves the traffic of one NIC as far as it goes.
    pub(super) fn carry(&mut self, nic: usize) -> Result<bool, String> {
        let Self { lanes, stage, random, now, .. } = self;
        let Some(lane) = lanes.get_mut(nic) else { return Ok(false) };
        let (mut moved, mut sent) = (false, false);
        let resent = stage.world.guest.counters(nic).frames_resent;
        if resent != lane.resent {
            lane.resent = resent;
            // A host that said it was on the VF and was not may have dropped some of them, and taken newer ones later.
            if lane.lied(stage.world.host.switch_script(nic)) {
                lane.out.way_changed();
            }
        }
        while lane.ready
            && let Some(frame) = lane.out.front(random)
        {
            let guest_now = stage.world.guest_time(*now);
            let before = stage.world.guest.counters(nic).frames_accepted;
            if stage.world.guest.transmit(nic, frame, guest_now) == Sending::Later {
                break;
            }
            if stage.world.guest.counters(nic).frames_accepted == before {
                return Err(format!("nic{nic} refuses a frame of {} bytes", frame.len()));
            }
            lane.out.taken();
            sent = true;
        }
        if sent {
            stage.world.guest.flush(nic);
            moved = true;
        }
        for flows in [&mut lane.back, &mut lane.group] {
            while lane.ready
                && let Some(frame) = flows.front(random)
            {
                match stage.world.host.peer_transmit(nic, frame, *now) {
                    Offered::Busy => break,
                    Offered::Accepted => {}
                    Offered::Dropped(cause) => {
                        return Err(format!("the switch dropped a frame for nic{nic}: {cause}"));
                    }
                }
                flows.taken();
                moved = true;
            }
        }
        while let Some(frame) = stage.world.host.peer_receive(nic, *now) {
            lane.out.arrived(&frame)?;
            stage.world.host.recycle(nic, frame);
            moved = true;
        }
        Ok(moved)
    }

    /// Frames to send, as many of which as there is room for are sent before anybody else has a turn.
    pub(super) fn burst(&mut self, nic: usize, frames: u64) -> Result<bool, String> {
        let Some(lane) = self.lanes.get_mut(nic) else { return Ok(false) };
        lane.out.want(frames);
        // None is, if others were under way and the ring is full already.
        self.carry(nic)?;
        Ok(true)
    }

    /// New frames for everybody.
    pub(super) fn feed(&mut self) {
        // More than small rings hold, although one message carries several frames.
        let burst = if self.rings.is_some() { 1024 } else { 128 };
        for lane in &mut self.lanes {
            let draw = self.random.next_u64();
            if lane.ready {
                // A few at a time, sometimes a burst; a lane that has not kept up gets no more.
                let most = if draw.is_multiple_of(8) { burst } else { 6 };
                if lane.out.is_idle() {
                    lane.out.want((draw >> 8) % most);
                }
                if lane.back.is_idle() {
                    lane.back.want((draw >> 32) % most);
                }
                if lane.group.is_idle() {
                    lane.group.want((draw >> 56) % 3);
                }
            }
        }
        let gap = 200 + self.random.next_u64() % 8_000;
        self.tick = self.now + Duration::from_micros(gap);
    }
}

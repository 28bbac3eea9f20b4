//! The way down (PROTOCOL §7.6): no frames wanted, the path back, HALT, everything completed, buffers revoked.

use vmbus::Instant;
use vmbus::channel::Doorbell;

use super::receive::RECEIVE_BUFFER_ID;
use super::start::SEND_BUFFER_ID;
use super::{Nic, NicEvent, Remains, Stage, Step};
use crate::nvsp::GuestMessage;
use crate::port::Path;
use crate::rndis::PacketFilter;

/// How far down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stopping {
    /// The empty packet filter was set.
    Filter,
    /// The path goes back to synthetic.
    Switching,
    /// HALT is on its way.
    Halting,
    /// What was sent has not been completed yet.
    Draining,
    /// The buffers are being revoked.
    Revoking,
}

impl<D: Doorbell> Nic<D> {
    /// Begins the way down, from wherever the NIC is. Frames taken before still go out. [`NicEvent::Stopped`] follows, unless
    /// the host keeps silent: then [`NicEvent::Overdue`] says at which step, and [`Nic::into_parts`] ends it.
    pub fn shutdown(&mut self, now: Instant) {
        self.now = now.max(self.now);
        let next = match self.stage {
            Stage::Stopping(_) | Stage::Stopped => return,
            Stage::Failed(_) => {
                self.stop();
                return;
            }
            Stage::Filtering | Stage::Ready => Stopping::Filter,
            Stage::Initializing | Stage::Querying => Stopping::Halting,
            Stage::Negotiating(_) | Stage::ReceiveBuffer | Stage::SendBuffer => Stopping::Draining,
        };
        // A switch stays under way, and the way back waits for it.
        self.waits.keep(|step| matches!(step, Step::Switch(_)));
        self.info.ready = false;
        self.flushing = true;
        self.stage = Stage::Stopping(next);
        match next {
            Stopping::Filter => self.set_filter(PacketFilter::empty()),
            Stopping::Halting => self.begin_halt(),
            _ => self.waits.begin(Step::Drain, self.now),
        }
        self.advance_stop();
        if let Err(error) = self.pump() {
            self.fail(error);
            return;
        }
        self.finish_stop();
    }

    /// Goes on with the way down without what the host owes: what was sent and not completed counts as lost, and the buffers
    /// are revoked, if the host's ring has room to say so: that of a host that does not read may not have any, and it lets go when the
    /// channel closes. Of use after [`NicEvent::Overdue`]; begins the way down if nobody has. [`NicEvent::Stopped`] follows at once,
    /// unless the channel breaks.
    pub fn abandon(&mut self, now: Instant) {
        self.shutdown(now);
        self.skip_to_revoke();
        if matches!(self.stage, Stage::Stopping(_)) {
            self.stop();
        }
    }

    /// Takes the NIC apart.
    #[must_use]
    pub fn into_parts(mut self) -> Remains<D> {
        let lent = self.transmit.loans.take_lent();
        let (receive, send) = (self.receive.buffer, Some(self.transmit.buffer));
        Remains { channel: self.link.channel, receive, send, lent }
    }

    /// No frames come any more: the path goes back, if the host is on the VF or may be when it has answered.
    pub(super) fn begin_way_back(&mut self) {
        self.stage = Stage::Stopping(Stopping::Switching);
        self.wish_for_way_back();
        // One that was overdue before, or finds no room in the ring, is to be heard of all the same.
        let runs = self.waits.is_running(|step| matches!(step, Step::Switch(_)));
        if !runs && !self.switching.is_idle() {
            self.wait_for_switch(Path::Synthetic);
        }
    }

    fn begin_halt(&mut self) {
        self.halt();
        self.waits.begin(Step::Halt, self.now);
    }

    /// Goes on as far as what has been completed allows.
    pub(super) fn advance_stop(&mut self) {
        while let Stage::Stopping(stopping) = self.stage {
            let next = match stopping {
                Stopping::Filter | Stopping::Revoking => return,
                Stopping::Switching => {
                    if self.switching.is_idle() && self.info.path == Path::Vf {
                        self.wish_for(Path::Synthetic);
                    }
                    if !self.switching.is_idle() {
                        return;
                    }
                    self.begin_halt();
                    Stopping::Halting
                }
                Stopping::Halting => {
                    if !self.control.is_empty() || self.transmit.control_busy() {
                        return;
                    }
                    self.waits.end(Step::Halt);
                    self.waits.begin(Step::Drain, self.now);
                    Stopping::Draining
                }
                Stopping::Draining => {
                    if !self.transmit.is_idle() || !self.link.is_empty() {
                        return;
                    }
                    self.waits.end(Step::Drain);
                    self.revoke();
                    Stopping::Revoking
                }
            };
            self.stage = Stage::Stopping(next);
        }
    }

    /// Revokes the buffers, whatever the host has not completed.
    pub(super) fn skip_to_revoke(&mut self) {
        if !matches!(self.stage, Stage::Stopping(_)) {
            return;
        }
        if self.stage != Stage::Stopping(Stopping::Revoking) {
            self.waits.clear();
            self.flushing = false;
            self.revoke();
            self.stage = Stage::Stopping(Stopping::Revoking);
        }
        if let Err(error) = self.pump() {
            self.fail(error);
            return;
        }
        self.finish_stop();
    }

    fn revoke(&mut self) {
        let version = self.version();
        if self.receive.given {
            let revoke = GuestMessage::RevokeReceiveBuffer { id: RECEIVE_BUFFER_ID };
            self.link.tell(revoke.encode(version));
        }
        if self.transmit.given {
            let revoke = GuestMessage::RevokeSendBuffer { id: SEND_BUFFER_ID };
            self.link.tell(revoke.encode(version));
        }
    }

    /// Ends it, once the revocations are in the ring.
    pub(super) fn finish_stop(&mut self) {
        if self.stage == Stage::Stopping(Stopping::Revoking) && self.link.is_empty() {
            self.stop();
        }
    }

    fn stop(&mut self) {
        self.stage = Stage::Stopped;
        self.transmit.loans.lose();
        self.waits.clear();
        self.more = false;
        self.events.push_back(NicEvent::Stopped);
    }
}

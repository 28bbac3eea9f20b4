//! The account of frames at the end of a run: what the guest handed out and got, against what the host took and gave.

use std::time::Duration;

use hyperv_host::Host;
use hyperv_host::host::Perished;
use hyperv_host::switch::DropCause;
use vmbus::Instant;

use super::counters::NicLine;
use crate::event::{PairLine, Summary};
use crate::guest::{Blackouts, Guest, Machine};

/// Totals of a run.
#[derive(Clone, Debug, Default)]
pub struct Account {
    /// Frames that the guest's upper layer handed to its NICs and that were taken; a large send is as many as its segments.
    pub accepted: u64,
    /// Frames of the guest that arrived at the switch.
    pub arrived: u64,
    /// Frames that the switch handed to the guest, on any path.
    pub given: u64,
    /// Frames that the guest's NICs passed up.
    pub passed_up: u64,
    /// Frames that the switch dropped, but for those to others' addresses.
    pub dropped: u64,
    /// Frames that went down with VFs.
    pub perished: Perished,
    /// Frames that an interface of the kernel's had taken when it went, or that it had not given yet.
    pub swallowed: u64,
    /// Frames that the guest sent on VFs.
    pub frames_vf: u64,
    /// Frames that the guest sent on synthetic paths.
    pub frames_synthetic: u64,
    /// Of these, frames sent again.
    pub frames_resent: u64,
    /// Completed switches to a VF.
    pub switches_to_vf: u64,
    /// Completed switches to synthetic.
    pub switches_to_synthetic: u64,
    /// How long switches kept frames waiting.
    pub blackouts: Blackouts,
}

impl Account {
    /// Adds up what host and guest counted. Meaningful once nothing is on its way any more.
    #[must_use]
    pub fn take<M: Machine>(host: &Host, guest: &Guest<M>) -> Self {
        let mut account = Self::of_guest(guest);
        for number in 0..guest.nics() {
            if let Some(port) = host.port_counters(number) {
                account.arrived += port.synthetic.from_guest_cut() + port.vf.from_guest_cut();
                // A guest counts what was joined as one.
                let joined = host.nic_counters(number).map_or(0, |counters| counters.coalesced);
                account.given += port.synthetic.to_guest + port.vf.to_guest - joined;
                let foreign = port.dropped_from_peer.by(DropCause::Foreign);
                account.dropped += port.dropped() - foreign;
            }
            let perished = host.perished(number);
            account.perished.sent_surprise += perished.sent_surprise;
            account.perished.received_surprise += perished.received_surprise;
            account.perished.sent_orderly += perished.sent_orderly;
            account.perished.received_orderly += perished.received_orderly;
        }
        account
    }

    /// The same for a host in another process, which has said what it counted.
    #[must_use]
    pub fn remote<M: Machine>(host: netvsc_linux::socket::Account, guest: &Guest<M>) -> Self {
        Self {
            arrived: host.arrived,
            given: host.given,
            dropped: host.dropped,
            perished: Perished {
                sent_surprise: host.sent_surprise,
                received_surprise: host.received_surprise,
                sent_orderly: host.sent_orderly,
                received_orderly: host.received_orderly,
            },
            ..Self::of_guest(guest)
        }
    }

    /// What the guest counted.
    pub(super) fn of_guest<M: Machine>(guest: &Guest<M>) -> Self {
        let mut account = Self { blackouts: guest.blackouts().clone(), ..Self::default() };
        for number in 0..guest.nics() {
            let counters = guest.counters(number);
            account.accepted += counters.frames_accepted + counters.segments_accepted;
            account.passed_up += counters.frames_received;
            account.frames_vf += counters.frames_vf;
            account.frames_synthetic += counters.frames_synthetic;
            account.frames_resent += counters.frames_resent;
            account.switches_to_vf += counters.switches_to_vf;
            account.switches_to_synthetic += counters.switches_to_synthetic;
        }
        account
    }

    /// Adds what another guest counted that had the machine before.
    pub(super) fn add_guest(&mut self, other: &Self) {
        self.accepted += other.accepted;
        self.passed_up += other.passed_up;
        self.frames_vf += other.frames_vf;
        self.frames_synthetic += other.frames_synthetic;
        self.frames_resent += other.frames_resent;
        self.switches_to_vf += other.switches_to_vf;
        self.switches_to_synthetic += other.switches_to_synthetic;
        self.blackouts.merge(&other.blackouts);
    }

    /// Frames that are missing at the other end, except those that the host gave to a VF and then tore away with it. What
    /// the guest had sent on such a VF is no exception: it has to be sent again.
    #[must_use]
    pub fn lost(&self) -> u64 {
        let sent = self.accepted.saturating_sub(self.arrived);
        let received = self.given.saturating_sub(self.passed_up + self.perished.received_surprise);
        (sent + received + self.dropped).saturating_sub(self.swallowed)
    }

    /// An interface of the kernel's went without a word, and nobody can tell what it took with it: what is missing was in it.
    pub fn swallow(&mut self) {
        self.swallowed = self.lost();
    }

    /// Frames that arrived more often than they were sent.
    #[must_use]
    pub fn duplicated(&self) -> u64 {
        self.arrived.saturating_sub(self.accepted)
    }

    /// The totals in the form that is printed.
    #[must_use]
    pub fn summary(&self, facts: Facts, wall: Duration) -> Summary {
        Summary {
            nics: facts.nics,
            pairs: facts.pairs,
            bytes: facts.bytes,
            digest_ok: facts.digest_ok,
            switches_to_vf: self.switches_to_vf,
            switches_to_synthetic: self.switches_to_synthetic,
            frames_vf: self.frames_vf,
            frames_synthetic: self.frames_synthetic,
            frames_lost_orderly: self.lost(),
            frames_perished_surprise: self.perished.sent_surprise
                + self.perished.received_surprise
                + self.swallowed,
            frames_perished_sent: self.perished.sent_surprise,
            frames_resent: self.frames_resent,
            frames_duplicated: self.duplicated(),
            blackouts: self.blackouts.line(),
            counters: facts.counters,
            ejects: facts.ejects,
            surprises: facts.surprises,
            virtual_seconds: (facts.end.as_nanos() / 1000) as f64 / 1e6,
            wall_seconds: wall.as_secs_f64(),
        }
    }
}

/// What a summary needs beside the account.
#[derive(Clone, Debug, Default)]
pub struct Facts {
    /// Number of NICs.
    pub nics: usize,
    /// The pairs at the end.
    pub pairs: Vec<PairLine>,
    /// Bytes carried.
    pub bytes: u64,
    /// Whether every digest matched; `None` without transfers.
    pub digest_ok: Option<bool>,
    /// VFs that went in order.
    pub ejects: u64,
    /// VFs torn away.
    pub surprises: u64,
    /// What each NIC counted.
    pub counters: Vec<NicLine>,
    /// When the run ended.
    pub end: Instant,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_perished_on_its_way_to_the_guest_is_no_orderly_loss_but_what_it_sent_is() {
        let account = Account {
            accepted: 100,
            arrived: 100,
            given: 50,
            passed_up: 47,
            perished: Perished { received_surprise: 3, sent_surprise: 5, ..Perished::default() },
            ..Account::default()
        };
        assert_eq!(account.lost(), 0);
        assert_eq!(Account { arrived: 95, ..account.clone() }.lost(), 5, "not sent again");
        assert_eq!(Account { passed_up: 46, ..account.clone() }.lost(), 1);
        assert_eq!(Account { dropped: 2, ..account.clone() }.lost(), 2);
        assert_eq!(Account { arrived: 101, ..account }.duplicated(), 1);
    }
}

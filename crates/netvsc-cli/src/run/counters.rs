//! What each NIC counted, for the summary of a run.

use std::collections::BTreeMap;

use netvsc::adapter::AdapterCounters;
use netvsc::nic::{NicStats, QueueTotals};
use serde::Serialize;

use crate::guest::{Guest, Machine};

/// What one channel of a NIC did, over all its openings.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct QueueLine {
    /// Its number; 0 is the primary channel.
    pub queue: usize,
    /// Frames sent on it, on the synthetic path.
    pub tx_frames: u64,
    /// Their bytes.
    pub tx_bytes: u64,
    /// Messages they were sent in; several frames share one.
    pub tx_messages: u64,
    /// Messages that the host completed.
    pub tx_completed: u64,
    /// Of them, with anything but success.
    pub tx_refused: u64,
    /// Times that no room was found in the ring.
    pub tx_ring_full: u64,
    /// Times that no section of the send buffer was free.
    pub tx_sections_full: u64,
    /// Frames received on it.
    pub rx_frames: u64,
    /// Their bytes.
    pub rx_bytes: u64,
    /// Packets that brought them.
    pub rx_packets: u64,
    /// Completions that had to wait for room in the ring.
    pub completions_delayed: u64,
    /// What of the host's could not be used.
    pub bad: u64,
}

impl QueueLine {
    fn new(queue: usize, totals: QueueTotals) -> Self {
        Self {
            queue,
            tx_frames: totals.tx_frames,
            tx_bytes: totals.tx_bytes,
            tx_messages: totals.tx_messages,
            tx_completed: totals.tx_completed,
            tx_refused: totals.tx_refused,
            tx_ring_full: totals.tx_ring_full,
            tx_sections_full: totals.tx_sections_full,
            rx_frames: totals.rx_frames,
            rx_bytes: totals.rx_bytes,
            rx_packets: totals.rx_packets,
            completions_delayed: totals.completions_delayed,
            bad: totals.bad,
        }
    }
}

/// Counters that have names; those that are zero are left out.
type Named = BTreeMap<&'static str, u64>;

fn named(counts: impl Iterator<Item = (&'static str, u64)>) -> Named {
    counts.filter(|(_, count)| *count > 0).collect()
}

/// What one NIC did.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct NicLine {
    /// Number of the NIC.
    pub nic: usize,
    /// Channels in use at the end, the primary one included.
    pub channels: usize,
    /// What each of them did.
    pub queues: Vec<QueueLine>,
    /// Frames taken from the upper layer.
    pub accepted: u64,
    /// Frames that could not be taken at the moment.
    pub pushed_back: u64,
    /// Frames that can never be sent.
    pub refused: u64,
    /// Frames that came of cutting large sends in the guest, less one for each send.
    pub cut: u64,
    /// Frames too long for the VF, which went on the synthetic path.
    pub too_long_for_vf: u64,
    /// Large sends that the host cut.
    pub tx_large: u64,
    /// Frames whose checksums the guest computed since the host does not.
    pub tx_checksums: u64,
    /// Frames that came before they were asked for.
    pub rx_early: u64,
    /// Associations told by the host, repetitions included.
    pub associations: u64,
    /// Switches asked for and sent.
    pub switches: u64,
    /// Switches that the host announced.
    pub host_switches: u64,
    /// Changes of the link after start-up.
    pub link_changes: u64,
    /// Times that the NIC was started anew.
    pub restarts: u64,
    /// Answers that did not come in time.
    pub overdue: u64,
    /// Of them, those that came later.
    pub late: u64,
    /// How the host completed messages on the primary channel, if not with success.
    pub sent: Named,
    /// How it answered requests of NVSP, if not with success.
    pub answers: Named,
    /// How it replied to requests of RNDIS, if not with success.
    pub replies: Named,
    /// What it said unasked by RNDIS.
    pub indications: Named,
    /// What of the primary channel could not be used, by cause.
    pub bad: Named,
}

impl NicLine {
    /// What all NICs of a guest did.
    #[must_use]
    pub fn all<M: Machine>(guest: &Guest<M>) -> Vec<Self> {
        (0..guest.nics())
            .map(|nic| {
                let queues = guest.queue_totals(nic).into_iter().enumerate();
                let queues = queues.map(|(queue, totals)| QueueLine::new(queue, totals)).collect();
                let channels = guest.queues(nic);
                Self::new(nic, channels, queues, &guest.counters(nic), &guest.nic_stats(nic))
            })
            .collect()
    }

    fn new(
        nic: usize,
        channels: usize,
        queues: Vec<QueueLine>,
        adapter: &AdapterCounters,
        stats: &NicStats,
    ) -> Self {
        Self {
            nic,
            channels,
            queues,
            accepted: adapter.frames_accepted,
            pushed_back: adapter.pushed_back,
            refused: adapter.refused,
            cut: adapter.frames_cut,
            too_long_for_vf: adapter.too_long_for_vf,
            tx_large: stats.tx_large,
            tx_checksums: stats.tx_checksums,
            rx_early: stats.rx_early,
            associations: stats.associations,
            switches: stats.switches,
            host_switches: stats.host_switches,
            link_changes: stats.link_changes,
            restarts: stats.restarts,
            overdue: stats.overdue,
            late: stats.late,
            sent: named(stats.sent.counts()),
            answers: named(stats.answers.counts()),
            replies: named(stats.replies.counts()),
            indications: named(stats.indications.counts()),
            bad: named(stats.bad.counts()),
        }
    }
}

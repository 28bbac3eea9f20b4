//! What a NIC counts.

use super::tally::{Indications, NvspStatuses, RndisStatuses};
use crate::nvsp::{self, HostMessage};
use crate::rndis;

/// Messages and ranges of the host that could not be used, by cause. Each cost itself and nothing else.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BadInput {
    /// Packets that contradict themselves.
    pub packet: u64,
    /// In-band messages that cannot be read.
    pub message: u64,
    /// In-band messages of a type that is never sent unasked, and questions that come faster than answers are taken.
    pub unexpected: u64,
    /// GPA-direct packets: hosts do not send them.
    pub gpa_direct: u64,
    /// Completions of nothing that is under way, or a second time.
    pub completion: u64,
    /// Completions of frames that do not say what became of them.
    pub answer: u64,
    /// Transfer pages before there was a receive buffer, or of another buffer.
    pub buffer: u64,
    /// Transfer pages without SEND_RNDIS_PACKET.
    pub carrier: u64,
    /// Ranges outside the receive buffer or longer than one of its pieces.
    pub range: u64,
    /// Frames whose header contradicts itself.
    pub header: u64,
    /// Frames whose per-packet information contradicts itself or is too long.
    pub info: u64,
    /// Coalesced segments that lack a part, or that nobody asked for.
    pub coalesced: u64,
    /// Frames without a whole Ethernet header.
    pub runt: u64,
    /// RNDIS control messages that cannot be read.
    pub control: u64,
    /// RNDIS replies that nobody waits for.
    pub reply: u64,
    /// Values of objects that cannot be read, and are done without.
    pub value: u64,
    /// Indirection tables that name channels which there are not.
    pub table: u64,
    /// Switches to paths that there are not.
    pub path: u64,
}

impl BadInput {
    /// Each of them with its name.
    pub fn counts(&self) -> impl Iterator<Item = (&'static str, u64)> {
        [
            ("packet", self.packet),
            ("message", self.message),
            ("unexpected", self.unexpected),
            ("gpa_direct", self.gpa_direct),
            ("completion", self.completion),
            ("answer", self.answer),
            ("buffer", self.buffer),
            ("carrier", self.carrier),
            ("range", self.range),
            ("header", self.header),
            ("info", self.info),
            ("coalesced", self.coalesced),
            ("runt", self.runt),
            ("control", self.control),
            ("reply", self.reply),
            ("value", self.value),
            ("table", self.table),
            ("path", self.path),
        ]
        .into_iter()
    }

    /// All of them.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.counts().map(|(_, count)| count).fold(0, u64::saturating_add)
    }
}

/// What a NIC did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NicStats {
    /// Frames taken for sending.
    pub tx_frames: u64,
    /// Their bytes.
    pub tx_bytes: u64,
    /// Of them, segments that the host cut.
    pub tx_large: u64,
    /// Of them, those whose checksums were computed here, since the host does not.
    pub tx_checksums: u64,
    /// Of them, those that the host read in the caller's pages.
    pub tx_lent: u64,
    /// Messages they were sent in; several frames share one.
    pub tx_messages: u64,
    /// Messages that the host completed.
    pub tx_completed: u64,
    /// Messages that the host completed with anything but success: their frames are lost.
    pub tx_refused: u64,
    /// Times that no room was found in the ring.
    pub tx_ring_full: u64,
    /// Times that no section was free.
    pub tx_sections_full: u64,
    /// Frames delivered.
    pub rx_frames: u64,
    /// Their bytes.
    pub rx_bytes: u64,
    /// Frames that came before they were asked for.
    pub rx_early: u64,
    /// Transfer-page packets completed.
    pub rx_packets: u64,
    /// Completions that had to wait for room in the ring.
    pub completions_delayed: u64,
    /// Associations told by the host, repetitions included.
    pub associations: u64,
    /// Associations ignored because nobody wants a virtual function.
    pub associations_ignored: u64,
    /// Switches asked for and sent.
    pub switches: u64,
    /// Switches that the host announced.
    pub host_switches: u64,
    /// Changes of the link after start-up.
    pub link_changes: u64,
    /// How the host completed messages with frames and control messages, if not with success.
    pub sent: NvspStatuses,
    /// How the host answered requests of NVSP, if not with success: versions, buffers, channels.
    pub answers: NvspStatuses,
    /// How the host replied to requests of RNDIS, if not with success.
    pub replies: RndisStatuses,
    /// What the host said unasked by RNDIS.
    pub indications: Indications,
    /// Times that the NIC was started anew.
    pub restarts: u64,
    /// Answers that did not come in time.
    pub overdue: u64,
    /// Of them, those that came later.
    pub late: u64,
    /// Times that the host was asked whether it is there, since it had been silent.
    pub keep_alives: u64,
    /// Times that the host asked that of the guest, and was answered.
    pub keep_alives_answered: u64,
    /// What could not be used.
    pub bad: BadInput,
}

impl NicStats {
    /// Requests of NVSP and RNDIS that the host refused.
    #[must_use]
    pub fn refused(&self) -> u64 {
        self.answers.total().saturating_add(self.replies.total())
    }

    /// The host has completed a message with this status.
    pub(super) fn sent(&mut self, status: nvsp::Status) {
        if status != nvsp::Status::SUCCESS {
            self.sent.count(status);
        }
    }

    /// The host has answered a request of NVSP.
    pub(super) fn answered(&mut self, answer: &HostMessage) {
        match *answer {
            HostMessage::InitComplete { status, .. }
            | HostMessage::ReceiveBufferComplete { status, .. }
            | HostMessage::SendBufferComplete { status, .. }
                if status != nvsp::Status::SUCCESS =>
            {
                self.answers.count(status);
            }
            _ => {}
        }
    }

    /// The host has replied to a request of RNDIS with this status.
    pub(super) fn replied(&mut self, status: rndis::Status) {
        if status != rndis::Status::SUCCESS {
            self.replies.count(status);
        }
    }
}

/// What went over one channel of a NIC. The figures of several openings can be added.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct QueueTotals {
    /// Frames taken for sending.
    pub tx_frames: u64,
    /// Their bytes.
    pub tx_bytes: u64,
    /// Messages they were sent in; several frames share one.
    pub tx_messages: u64,
    /// Messages that the host completed.
    pub tx_completed: u64,
    /// Messages that the host completed with anything but success: their frames are lost.
    pub tx_refused: u64,
    /// Times that no room was found in the ring.
    pub tx_ring_full: u64,
    /// Times that no section was free.
    pub tx_sections_full: u64,
    /// Frames delivered.
    pub rx_frames: u64,
    /// Their bytes.
    pub rx_bytes: u64,
    /// Transfer-page packets completed.
    pub rx_packets: u64,
    /// Completions that had to wait for room in the ring.
    pub completions_delayed: u64,
    /// Messages and ranges of the host that could not be used.
    pub bad: u64,
}

impl From<NicStats> for QueueTotals {
    fn from(stats: NicStats) -> Self {
        Self {
            tx_frames: stats.tx_frames,
            tx_bytes: stats.tx_bytes,
            tx_messages: stats.tx_messages,
            tx_completed: stats.tx_completed,
            tx_refused: stats.tx_refused,
            tx_ring_full: stats.tx_ring_full,
            tx_sections_full: stats.tx_sections_full,
            rx_frames: stats.rx_frames,
            rx_bytes: stats.rx_bytes,
            rx_packets: stats.rx_packets,
            completions_delayed: stats.completions_delayed,
            bad: stats.bad.total(),
        }
    }
}

impl core::ops::Add for QueueTotals {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            tx_frames: self.tx_frames.saturating_add(other.tx_frames),
            tx_bytes: self.tx_bytes.saturating_add(other.tx_bytes),
            tx_messages: self.tx_messages.saturating_add(other.tx_messages),
            tx_completed: self.tx_completed.saturating_add(other.tx_completed),
            tx_refused: self.tx_refused.saturating_add(other.tx_refused),
            tx_ring_full: self.tx_ring_full.saturating_add(other.tx_ring_full),
            tx_sections_full: self.tx_sections_full.saturating_add(other.tx_sections_full),
            rx_frames: self.rx_frames.saturating_add(other.rx_frames),
            rx_bytes: self.rx_bytes.saturating_add(other.rx_bytes),
            rx_packets: self.rx_packets.saturating_add(other.rx_packets),
            completions_delayed: self.completions_delayed.saturating_add(other.completions_delayed),
            bad: self.bad.saturating_add(other.bad),
        }
    }
}

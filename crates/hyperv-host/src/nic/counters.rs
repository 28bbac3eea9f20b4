//! What a NIC service did.

/// Counters of one NIC, over all openings of its channel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct NicCounters {
    /// Times the channel was opened.
    pub opened: u64,
    /// Times the guest ended the channel's use by an error.
    pub failed: u64,
    /// Data messages of the guest (NVSP 107, channel type 0).
    pub transmit_messages: u64,
    /// Frames in them that went to the switch, segments of large sends counted one by one.
    pub transmit_frames: u64,
    /// Large sends that were cut into segments.
    pub large_sends: u64,
    /// Data messages that were refused with status 2; none of their frames went out.
    pub transmit_refused: u64,
    /// Times the host's network started anew.
    pub restarts: u64,
    /// Frames that were lost in that: they waited for the wire.
    pub lost_in_restarts: u64,
    /// Times transmission stopped because the wire was full.
    pub transmit_blocked: u64,
    /// Transfer-page packets with frames for the guest.
    pub receive_messages: u64,
    /// Frames in them, those that were put together counted as one.
    pub receive_frames: u64,
    /// Frames that were joined to another one before them.
    pub coalesced: u64,
    /// Segments of the peer's that the guest got as they were, since it coalesces.
    pub receive_uncut: u64,
    /// Times delivery stopped because the guest held every data piece of the receive buffer.
    pub receive_starved: u64,
    /// Times a message waited because the ring to the guest was full.
    pub ring_full: u64,
    /// Pieces of receive buffers that the guest completed with a status other than success.
    pub refused_by_guest: u64,
    /// Pieces of the receive buffer lent to the guest now.
    pub lent: u64,
    /// Pieces that were still lent when the guest took its receive buffer away or closed the channel.
    pub leaked: u64,
    /// NVSP messages that were too short to be heard.
    pub unheard: u64,
    /// RNDIS requests.
    pub control_requests: u64,
    /// Times the guest was asked whether it is there.
    pub keep_alives: u64,
    /// Times it answered that.
    pub keep_alive_answers: u64,
    /// Answers to questions that were not asked, or were answered before.
    pub unasked_answers: u64,
    /// RNDIS messages to the guest.
    pub control_messages: u64,
    /// Sub-channels that were opened.
    pub queues_opened: u64,
    /// Tables that spread what the guest sends over its channels.
    pub send_tables: u64,
    /// Indications that the link is up or down.
    pub link_indications: u64,
    /// VF_ASSOCIATION messages sent.
    pub associations: u64,
    /// Requests to switch the data path.
    pub switch_requests: u64,
    /// Changes of the data path.
    pub switches: u64,
    /// Notices that the path is synthetic.
    pub notices: u64,
    /// Associations and notices that got lost, as policy wants it. They are not counted as sent.
    pub notices_lost: u64,
}

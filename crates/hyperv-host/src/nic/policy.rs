//! What the host offers a NIC, and how it behaves and misbehaves: values, so that a scenario is data.

use std::collections::VecDeque;
use std::time::Duration;

use netvsc::MacAddress;
use netvsc::nvsp::{Status, Version};
use netvsc::rndis::{self, Oid};

use super::offers::OffloadPolicy;

/// Longest chain of memory descriptors, as real hosts give it in INIT_COMPLETE.
const MDL_CHAIN: u32 = 34;

/// Most bytes in one message by default: eight large sends.
const MAX_TRANSFER: u32 = 8 * 65_536;

/// Something that a host tells its guest by itself, and that can get lost on the way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Notice {
    /// That the NIC has a VF, and with which serial.
    Association,
    /// That it has none any more.
    Disassociation,
    /// That the data path is synthetic.
    Path,
}

/// How the host answers a `SWITCH_DATA_PATH` that asks for a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SwitchAnswer {
    /// The path changes after this time, and the request is completed.
    Complete(Duration),
    /// The path does not change; after this time the request is completed all the same. A failed switch to the VF is told
    /// by a notice behind the completion, a failed switch to synthetic is not told at all.
    Fail(Duration),
    /// The path changes after this time and the guest never hears of it.
    Silent(Duration),
    /// The request is lost: the path does not change and no completion comes.
    Lose,
    /// The path changes after this time, and the request is completed twice.
    CompleteTwice(Duration),
}

impl Default for SwitchAnswer {
    fn default() -> Self {
        Self::Complete(Duration::ZERO)
    }
}

/// In which order data messages are completed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SendOrder {
    /// As they came.
    #[default]
    InOrder,
    /// Of those that are due, the newest first.
    NewestFirst,
    /// Of those that are due, any first, as follows from this seed.
    Shuffled(u64),
}

/// How the host answers an RNDIS RESET.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ResetAnswer {
    /// It takes it for an error and gives the channel up.
    #[default]
    Fail,
    /// It answers, with the packet filter back at 0 and the address the permanent one; the guest is told so.
    Complete,
}

/// The table that spreads what the guest sends over its channels.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SendTable {
    /// Sent as it should be, once all sub-channels are open.
    #[default]
    Right,
    /// Sent with an offset that is wrong, as Windows Server 2016 does. Only up to version 6.0 can a guest know.
    WrongOffset,
    /// Never sent.
    Never,
}

/// Behaviour of a NIC service. The default is a host that does everything right at once, except for the VF's PCI device,
/// which it offers a second after the association as real hosts do.
#[derive(Clone, Debug)]
pub struct NicPolicy {
    /// NVSP versions that are accepted; others are refused.
    pub versions: Vec<Version>,
    /// Answer to other versions: 0 on some hosts, 2 or 3 on others.
    pub version_refusal: Status,
    /// Bytes of the shortest NVSP message that is heard, as they stand in the ring. Shorter ones are never answered:
    /// 32 on some hosts. 0 to hear all.
    pub shortest_message: usize,
    /// Most pieces of memory that one message may lie in, its section included, as the guest is told in INIT_COMPLETE: 34 on real
    /// hosts. A message in more is refused.
    pub mdl_chain: u32,
    /// Most bytes of one message, as the guest is told in INITIALIZE_CMPLT (MaxTransferSize). A longer one is refused.
    pub max_transfer: u32,
    /// Answer to a receive buffer that is in order: success, or a refusal.
    pub receive_buffer_answer: Status,
    /// Answer to a send buffer that is in order: success, or a refusal.
    pub send_buffer_answer: Status,
    /// A repeated NDIS_CONFIG, NDIS_VERSION or buffer message is answered instead of ending the channel.
    pub tolerate_repeats: bool,
    /// Time between an RNDIS request and its answer.
    pub rndis_delay: Duration,
    /// Bytes of RNDIS messages that may wait for the guest to return control pieces. More end the channel.
    pub control_queue: usize,
    /// Objects that are refused, with the status, both when asked for and when set.
    pub refused_objects: Vec<(Oid, rndis::Status)>,
    /// Answer to RESET.
    pub reset: ResetAnswer,
    /// Whether the guest may change its address.
    pub mac_changes: bool,
    /// The guest gets frames for its own address only, groups aside, unless its packet filter is promiscuous. Otherwise it gets
    /// whatever comes, as if there were nobody else behind the switch.
    pub own_unicast: bool,
    /// A question for the link is always answered with "connected"; that it is down is only ever indicated.
    pub always_connected: bool,
    /// Least time between two indications of the link. Changes that come faster are merged into the last state, by way
    /// of the other one, so that the guest notices. Guests look once in two seconds; careful hosts leave five.
    pub link_spacing: Duration,
    /// Buffers of indications are not counted in the length of their message.
    pub uncounted_buffers: bool,
    /// Time between the end of start-up (or the arrival of a VF) and the association.
    pub association_delay: Duration,
    /// Whether the association asks for a completion. Guests are free to send none.
    pub association_completion: bool,
    /// Time between the association and the offer of the VF's PCI device. A guest that switches earlier gets the offer at
    /// once.
    pub offer_delay: Duration,
    /// Answers to the first switch requests, in order.
    pub switch_script: VecDeque<SwitchAnswer>,
    /// Answer to every later switch request.
    pub switch_answer: SwitchAnswer,
    /// Notices that get lost: for each, the next one of its kind. The host goes on as if the guest had been told.
    pub lost_notices: Vec<Notice>,
    /// The data path stays on the VF while the NIC's channel is closed, and after reopening the host takes the path as
    /// switched. Without it, closing the channel returns the path to synthetic.
    pub keep_path_over_close: bool,
    /// Offloads that the NIC has.
    pub offloads: OffloadPolicy,
    /// Time between the last frame of a data message and its completion.
    pub send_delay: Duration,
    /// Order of these completions. Anything but the default holds them until the guest pauses.
    pub send_order: SendOrder,
    /// Most frames in one transfer-page packet.
    pub frames_per_packet: usize,
    /// Most packets of a channel that one poll takes; the rest waits for the next, which is due at once.
    pub packets_per_poll: usize,
    /// Most channels of the NIC, the primary one included. With 1 there is no RSS.
    pub max_queues: u16,
    /// A request for too many sub-channels is granted as far as possible, and not refused whole.
    pub grants_fewer: bool,
    /// Time between a request for sub-channels and their offers.
    pub sub_channel_delay: Duration,
    /// Sub-channels that are promised and never offered.
    pub offers_short: u16,
    /// The table for what the guest sends.
    pub send_table: SendTable,
    /// RSS parameters may change while RSS is on. Some hosts want it switched off before.
    pub live_scaling_change: bool,
}

impl Default for NicPolicy {
    fn default() -> Self {
        Self {
            versions: vec![Version::V6_1, Version::V5],
            version_refusal: Status::NONE,
            shortest_message: 0,
            mdl_chain: MDL_CHAIN,
            max_transfer: MAX_TRANSFER,
            receive_buffer_answer: Status::SUCCESS,
            send_buffer_answer: Status::SUCCESS,
            tolerate_repeats: false,
            rndis_delay: Duration::ZERO,
            control_queue: 100 * 1024,
            refused_objects: Vec::new(),
            reset: ResetAnswer::default(),
            mac_changes: true,
            own_unicast: false,
            always_connected: false,
            link_spacing: Duration::ZERO,
            uncounted_buffers: false,
            association_delay: Duration::ZERO,
            association_completion: true,
            offer_delay: Duration::from_secs(1),
            switch_script: VecDeque::new(),
            switch_answer: SwitchAnswer::default(),
            lost_notices: Vec::new(),
            keep_path_over_close: false,
            offloads: OffloadPolicy::default(),
            send_delay: Duration::ZERO,
            send_order: SendOrder::default(),
            frames_per_packet: 32,
            packets_per_poll: 4096,
            max_queues: 64,
            grants_fewer: false,
            sub_channel_delay: Duration::ZERO,
            offers_short: 0,
            send_table: SendTable::default(),
            live_scaling_change: true,
        }
    }
}

/// What the host knows of a NIC before any guest opens it.
#[derive(Clone, Debug)]
pub struct NicServiceConfig {
    /// Permanent address.
    pub mac: MacAddress,
    /// What the administrator calls the NIC, as the guest is told. `None`: this host has no names for them.
    pub name: Option<String>,
    /// Link speed in bits per second, as the guest is told. The wire has its own rate.
    pub link_speed: u64,
    /// Whether the link is up at start.
    pub link_up: bool,
    /// Behaviour.
    pub policy: NicPolicy,
}

impl NicServiceConfig {
    /// A NIC with a link of 10 Gbit/s that is up, and default behaviour.
    #[must_use]
    pub fn new(mac: MacAddress) -> Self {
        Self {
            mac,
            name: Some("Network Adapter".into()),
            link_speed: 10_000_000_000,
            link_up: true,
            policy: NicPolicy::default(),
        }
    }
}

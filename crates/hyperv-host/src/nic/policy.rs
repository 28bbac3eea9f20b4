//! What the host offers a NIC, and how it behaves and misbehaves: values, so that a scenario is data.

use std::collections::VecDeque;
use std::time::Duration;

use netvsc::MacAddress;
use netvsc::nvsp::Version;

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

/// Behaviour of a NIC service. The default is a host that does everything right at once, except for the VF's PCI device,
/// which it offers a second after the association as real hosts do.
#[derive(Clone, Debug)]
pub struct NicPolicy {
    /// NVSP versions that are accepted; others are refused.
    pub versions: Vec<Version>,
    /// A repeated NDIS_CONFIG, NDIS_VERSION or buffer message is answered instead of ending the channel.
    pub tolerate_repeats: bool,
    /// Time between an RNDIS request and its answer.
    pub rndis_delay: Duration,
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
    /// The data path stays on the VF while the NIC's channel is closed, and after reopening the host takes the path as
    /// switched. Without it, closing the channel returns the path to synthetic.
    pub keep_path_over_close: bool,
    /// Most frames in one transfer-page packet.
    pub frames_per_packet: usize,
}

impl Default for NicPolicy {
    fn default() -> Self {
        Self {
            versions: vec![Version::V6_1, Version::V5],
            tolerate_repeats: false,
            rndis_delay: Duration::ZERO,
            association_delay: Duration::ZERO,
            association_completion: true,
            offer_delay: Duration::from_secs(1),
            switch_script: VecDeque::new(),
            switch_answer: SwitchAnswer::default(),
            keep_path_over_close: false,
            frames_per_packet: 32,
        }
    }
}

/// What the host knows of a NIC before any guest opens it.
#[derive(Clone, Debug)]
pub struct NicServiceConfig {
    /// Permanent address.
    pub mac: MacAddress,
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
        Self { mac, link_speed: 10_000_000_000, link_up: true, policy: NicPolicy::default() }
    }
}

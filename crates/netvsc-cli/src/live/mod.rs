//! What a running `netvsc run` tells of itself to whoever asks, above all to `netvsc metrics`: the kernel knows nothing of a NIC that
//! user space drives.
//!
//! Each run with interfaces of the kernel's listens at a Unix socket of its own, `PID.sock` in [`FOLDER`], and answers every connection
//! with one [`Live`] as JSON and the end of the connection. It reads nothing, so nobody can tell it anything; it answers at most
//! one in 20 ms, and never waits for who asks. What it tells are counters, as everybody reads them of the kernel's interfaces.
//! A run that was killed leaves a file at which nobody listens, which is known for what it is and taken away by the next.

mod ask;
mod door;

use std::os::fd::OwnedFd;
use std::path::Path;

use netvsc::adapter::AdapterCounters;
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};
use serde::{Deserialize, Serialize};

use crate::event::path_word;
use crate::guest::{Guest, Machine};
use crate::inspect::document::SCHEMA_VERSION;

pub use ask::{Answers, ask_all};
pub(crate) use door::Door;

/// Where the sockets are, below the root.
pub const FOLDER: &str = "run/netvsc/live";

/// Longest answer that is believed, in bytes.
const LONGEST: usize = 64 << 10;

/// What a run tells.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Live {
    /// [`SCHEMA_VERSION`].
    pub schema_version: u32,
    /// The process.
    pub pid: u32,
    /// The program's version.
    pub version: String,
    /// What it drives NICs of: `uio`, `unix` or `embedded`.
    pub host: String,
    /// How long it has run, in seconds.
    pub uptime_seconds: f64,
    /// Its NICs.
    pub nics: Vec<LiveNic>,
}

/// A NIC that a run drives.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct LiveNic {
    /// The interface that the kernel has of it, or its number in the run.
    pub device: String,
    /// Instance of its offer.
    pub guid: Option<String>,
    /// MAC now.
    pub mac: Option<String>,
    /// MTU in bytes.
    pub mtu: Option<u32>,
    /// Path on which frames leave, once it is at work: `synthetic` or `vf`.
    pub path: Option<String>,
    /// The kernel's interface that is its VF, while it has one.
    pub vf: Option<String>,
    /// Channels in use.
    pub queues: usize,
    /// What it has counted.
    pub counters: LiveCounters,
}

/// What a NIC has counted since its run began.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LiveCounters {
    /// Frames sent on the synthetic path.
    pub sent_synthetic: u64,
    /// Frames sent on VFs.
    pub sent_vf: u64,
    /// Frames received on the synthetic path.
    pub received_synthetic: u64,
    /// Frames received from VFs.
    pub received_vf: u64,
    /// Switches to a VF.
    pub switches_to_vf: u64,
    /// Switches back.
    pub switches_to_synthetic: u64,
    /// Frames sent again since a VF never confirmed them.
    pub resent: u64,
    /// Frames that are lost.
    pub lost: u64,
    /// Times that a frame had to wait.
    pub pushed_back: u64,
    /// Frames that can never be sent.
    pub unsendable: u64,
    /// Received frames that the kernel did not take.
    pub refused: u64,
}

impl LiveCounters {
    /// Of an adapter, and frames that the kernel did not take.
    pub(crate) fn of(counters: &AdapterCounters, refused: u64) -> Self {
        Self {
            sent_synthetic: counters.frames_synthetic,
            sent_vf: counters.frames_vf,
            received_synthetic: counters
                .frames_received
                .saturating_sub(counters.frames_received_vf),
            received_vf: counters.frames_received_vf,
            switches_to_vf: counters.switches_to_vf,
            switches_to_synthetic: counters.switches_to_synthetic,
            resent: counters.frames_resent,
            lost: counters.frames_lost,
            pushed_back: counters.pushed_back,
            unsendable: counters.refused,
            refused,
        }
    }
}

impl LiveNic {
    /// Of a guest's NIC, which the kernel has as `device`.
    pub(crate) fn of_guest<M: Machine>(guest: &Guest<M>, nic: usize, device: Option<&str>) -> Self {
        Self {
            device: device.map_or_else(|| format!("nic{nic}"), str::to_owned),
            guid: guest.instance(nic).map(|guid| guid.to_string()),
            mac: guest.address(nic).map(|mac| mac.to_string()),
            path: guest.path(nic).map(|path| path_word(path).to_owned()),
            queues: guest.queues(nic),
            counters: LiveCounters::of(&guest.counters(nic), 0),
            ..Self::default()
        }
    }
}

impl Live {
    /// Of this process.
    pub(crate) fn new(host: &str, uptime_seconds: f64, nics: Vec<LiveNic>) -> Self {
        Self {
            schema_version: SCHEMA_VERSION,
            pid: std::process::id(),
            version: env!("CARGO_PKG_VERSION").into(),
            host: host.into(),
            uptime_seconds,
            nics,
        }
    }
}

/// Connects without waiting for anybody.
fn knock(path: &Path) -> Result<OwnedFd, Errno> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    connect(&socket, &SocketAddrUnix::new(path)?)?;
    Ok(socket)
}

//! What a run tells: one value per event, with a form for people and a form for programs.

use std::fmt;
use std::time::Duration;

use netvsc::{MacAddress, Path};
use serde::{Serialize, Serializer};
use vmbus::{Guid, Instant, Serial};

use crate::guest::BlackoutLine;
use crate::run::NicLine;

/// Something happened in a run.
#[derive(Clone, Debug, Serialize)]
pub struct Event {
    /// When, in seconds since the start of the run: virtual time, or real time where a kernel takes part.
    #[serde(rename = "t", serialize_with = "seconds")]
    pub at: Instant,
    /// What.
    #[serde(flatten)]
    pub what: What,
}

fn seconds<S: Serializer>(at: &Instant, serializer: S) -> Result<S::Ok, S::Error> {
    // Microseconds are what the text form shows, too.
    serializer.serialize_f64((at.as_nanos() / 1000) as f64 / 1e6)
}

fn as_text<T: fmt::Display, S: Serializer>(value: &T, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(value)
}

fn as_number<S: Serializer>(serial: &Serial, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_u32(serial.0)
}

/// The word for a path in JSON and in sentences.
#[must_use]
pub const fn path_word(path: Path) -> &'static str {
    match path {
        Path::Synthetic => "synthetic",
        Path::Vf => "vf",
    }
}

fn as_path<S: Serializer>(value: &Path, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(path_word(*value))
}

fn as_micros<S: Serializer>(value: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_u64(u64::try_from(value.as_micros()).unwrap_or(u64::MAX))
}

/// What happened. `nic` is the NIC's number in the order of offers, from 0.
#[derive(Clone, Debug, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
#[non_exhaustive]
pub enum What {
    /// The host was chosen.
    Host {
        /// Its name, as in `--host`.
        host: &'static str,
        /// Why this one.
        reason: String,
        /// The seed of the run.
        seed: u64,
    },
    /// A host waits for guests.
    Listening {
        /// At which path.
        path: String,
    },
    /// A guest has shared its memory with the host.
    GuestArrived {
        /// Pages of 4,096 bytes.
        pages: usize,
    },
    /// A guest is gone.
    GuestLeft {
        /// Why.
        why: String,
        /// Whether everything that was its is given back.
        clean: bool,
    },
    /// The host is gone.
    HostLeft {
        /// Why.
        why: String,
        /// Pages that the guest has not given back: 0.
        pages_kept: usize,
    },
    /// How many frames and bytes went where so far.
    Statistics {
        /// Frames from the guest's side, by the synthetic path.
        tx_synthetic: u64,
        /// Frames from the guest's side, by VFs.
        tx_vf: u64,
        /// Frames to the guest's side, by any path.
        rx: u64,
        /// Frames that were dropped because whoever should take them did not.
        refused: u64,
    },
    /// The bus is up.
    Connected {
        /// VMBus version.
        version: String,
    },
    /// The host offers a NIC.
    NicOffered {
        /// Number of the NIC.
        nic: usize,
        /// Its instance GUID: its identity.
        #[serde(serialize_with = "as_text")]
        instance: Guid,
    },
    /// A NIC can carry frames on its synthetic path.
    NicReady {
        /// Number of the NIC.
        nic: usize,
        /// Its permanent MAC.
        #[serde(serialize_with = "as_text")]
        mac: MacAddress,
        /// NVSP version.
        nvsp: String,
        /// Largest frame without Ethernet header, in bytes.
        mtu: u32,
    },
    /// A NIC was asked to take another MAC address.
    Address {
        /// Number of the NIC.
        nic: usize,
        /// The address that it has.
        #[serde(serialize_with = "as_text")]
        mac: MacAddress,
        /// Whether that is the one that was asked for.
        taken: bool,
    },
    /// A NIC is gone.
    NicGone {
        /// Number of the NIC.
        nic: usize,
        /// Why.
        why: String,
    },
    /// A network device of another kind was seen; it is never paired.
    Ignored {
        /// Kind of the device.
        device: String,
        /// Its MAC.
        #[serde(serialize_with = "as_text")]
        mac: MacAddress,
        /// Why it is not a candidate.
        why: String,
    },
    /// The host says which serial the NIC's VF has.
    Associated {
        /// Number of the NIC.
        nic: usize,
        /// The serial.
        #[serde(serialize_with = "as_number")]
        serial: Serial,
    },
    /// The host says that the NIC has no VF any more.
    Disassociated {
        /// Number of the NIC.
        nic: usize,
    },
    /// A PCI function came over vPCI.
    FunctionArrived {
        /// Instance GUID of its bus.
        #[serde(serialize_with = "as_text")]
        bus: Guid,
        /// Its slot on that bus.
        slot: String,
        /// Its serial.
        #[serde(serialize_with = "as_number")]
        serial: Serial,
        /// Vendor and device id.
        id: String,
    },
    /// A PCI function left.
    FunctionLeft {
        /// Instance GUID of its bus.
        #[serde(serialize_with = "as_text")]
        bus: Guid,
        /// Its slot on that bus.
        slot: String,
        /// Its serial.
        #[serde(serialize_with = "as_number")]
        serial: Serial,
        /// Why.
        why: String,
    },
    /// The host asks for a function back.
    EjectRequested {
        /// Instance GUID of the bus.
        #[serde(serialize_with = "as_text")]
        bus: Guid,
        /// The slot.
        slot: String,
    },
    /// The guest has let the function go.
    EjectAnswered {
        /// Instance GUID of the bus.
        #[serde(serialize_with = "as_text")]
        bus: Guid,
        /// The slot.
        slot: String,
    },
    /// A NIC and a port are a pair.
    Paired {
        /// Number of the NIC.
        nic: usize,
        /// The serial of the port's function.
        #[serde(serialize_with = "as_number")]
        serial: Serial,
        /// The permanent MAC.
        #[serde(serialize_with = "as_text")]
        mac: MacAddress,
        /// `SerialAndMac`, `Serial` or `Mac`.
        reason: &'static str,
        /// The decision in words.
        why: String,
    },
    /// A NIC and a port are no pair any more.
    Unpaired {
        /// Number of the NIC.
        nic: usize,
        /// The decision in words.
        why: String,
    },
    /// A pairing decision that binds and unbinds nothing: waiting, refused, in conflict.
    Pairing {
        /// Number of the NIC, if one is concerned.
        nic: Option<usize>,
        /// The decision in words.
        why: String,
    },
    /// Frames now leave on another path.
    Path {
        /// Number of the NIC.
        nic: usize,
        /// The path.
        #[serde(serialize_with = "as_path")]
        path: Path,
        /// Why.
        why: String,
    },
    /// A switch, or several in a row, keep new frames waiting no longer.
    Resumed {
        /// Number of the NIC.
        nic: usize,
        /// The path that takes frames now.
        #[serde(serialize_with = "as_path")]
        path: Path,
        /// How long none took any, in microseconds.
        #[serde(rename = "blackout_us", serialize_with = "as_micros")]
        blackout: Duration,
        /// Times that a frame was pushed back meanwhile; one that is tried twice counts twice.
        pushed_back: u64,
    },
    /// Frames that a vanished VF had not confirmed were sent again.
    Resent {
        /// Number of the NIC.
        nic: usize,
        /// How many.
        frames: u64,
    },
    /// The host does something that the scenario told it to do.
    HostAction {
        /// Number of the NIC whose VF it is about.
        nic: usize,
        /// What it does.
        action: String,
    },
    /// Something takes longer than it should. Nothing is blocked by it.
    Overdue {
        /// Who waits for what.
        what: String,
    },
    /// Something failed.
    Failed {
        /// What, and why.
        what: String,
    },
    /// A transfer is complete.
    TransferDone {
        /// Number of the NIC.
        nic: usize,
        /// Number of the flow, where a NIC carries several.
        #[serde(skip_serializing_if = "Option::is_none")]
        flow: Option<usize>,
        /// Bytes that arrived.
        bytes: u64,
        /// SHA-256 of what arrived.
        digest: String,
        /// Whether it is the digest of what was sent.
        digest_ok: bool,
    },
}

impl fmt::Display for What {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Host { host, reason, seed } => write!(f, "host: {host} ({reason}), seed {seed}"),
            Self::Listening { path } => write!(f, "listening at {path}"),
            Self::GuestArrived { pages } => {
                write!(f, "a guest is here with {pages} pages of memory")
            }
            Self::GuestLeft { why, clean } => {
                let rest = if *clean { "" } else { "; something of its memory is still in use" };
                write!(f, "the guest is gone: {why}{rest}")
            }
            Self::HostLeft { why, pages_kept: 0 } => write!(f, "the host is gone: {why}"),
            Self::HostLeft { why, pages_kept } => {
                write!(f, "the host is gone: {why}; {pages_kept} pages are still in use")
            }
            Self::Statistics { tx_synthetic, tx_vf, rx, refused } => write!(
                f,
                "frames: {tx_synthetic} out on the synthetic path, {tx_vf} on VFs, {rx} in, {refused} refused"
            ),
            Self::Connected { version } => write!(f, "VMBus {version} is up"),
            Self::NicOffered { nic, instance } => write!(f, "nic{nic}: offered as {instance}"),
            Self::NicReady { nic, mac, nvsp, mtu } => {
                write!(f, "nic{nic}: ready, {mac}, NVSP {nvsp}, MTU {mtu}")
            }
            Self::Address { nic, mac, taken: true } => {
                write!(f, "nic{nic}: has the MAC address {mac} now")
            }
            Self::Address { nic, mac, taken: false } => {
                write!(f, "nic{nic}: the host refuses another MAC address; it has {mac}")
            }
            Self::NicGone { nic, why } => write!(f, "nic{nic}: gone, {why}"),
            Self::Associated { nic, serial } => {
                write!(f, "nic{nic}: the host names serial {serial} for its VF")
            }
            Self::Disassociated { nic } => write!(f, "nic{nic}: the host says that it has no VF"),
            Self::FunctionArrived { bus, slot, serial, id } => {
                write!(f, "pci {bus} slot {slot}: function {id} with serial {serial} arrived")
            }
            Self::FunctionLeft { bus, slot, serial, why } => {
                write!(f, "pci {bus} slot {slot}: function with serial {serial} left, {why}")
            }
            Self::EjectRequested { bus, slot } => {
                write!(f, "pci {bus} slot {slot}: the host wants it back")
            }
            Self::EjectAnswered { bus, slot } => write!(f, "pci {bus} slot {slot}: let go"),
            Self::Paired { nic, serial, mac, reason, why } => {
                write!(f, "nic{nic}: paired with {mac}, serial {serial} ({reason}): {why}")
            }
            Self::Unpaired { nic, why } => write!(f, "nic{nic}: unpaired: {why}"),
            Self::Pairing { nic: Some(nic), why } => write!(f, "nic{nic}: {why}"),
            Self::Pairing { nic: None, why } | Self::Ignored { why, .. } => f.write_str(why),
            Self::Path { nic, path, why } => {
                write!(f, "nic{nic}: frames leave on the {} path: {why}", path_word(*path))
            }
            Self::Resumed { nic, path, blackout, pushed_back } => write!(
                f,
                "nic{nic}: the {} path takes frames after {} us, {pushed_back} were pushed back",
                path_word(*path),
                blackout.as_micros()
            ),
            Self::Resent { nic, frames } => {
                write!(f, "nic{nic}: {frames} frames that the VF never confirmed were sent again")
            }
            Self::HostAction { nic, action } => write!(f, "host: {action} (nic{nic})"),
            Self::Overdue { what } => write!(f, "overdue: {what}"),
            Self::Failed { what } => write!(f, "failed: {what}"),
            Self::TransferDone { nic, flow, bytes, digest, digest_ok } => {
                let verdict = if *digest_ok { "as sent" } else { "NOT what was sent" };
                let flow = flow.map_or_else(String::new, |flow| format!(" flow {flow}"));
                write!(f, "nic{nic}{flow}: {bytes} bytes arrived, {verdict}, SHA-256 {digest}")
            }
        }
    }
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:>12} {}", self.at.to_string(), self.what)
    }
}

/// One pair at the end of a run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PairLine {
    /// Number of the NIC.
    pub nic: usize,
    /// The serial that the host gave both sides.
    pub serial: u32,
    /// The permanent MAC that both have.
    pub mac: String,
    /// `SerialAndMac`, `Serial` or `Mac`.
    pub reason: &'static str,
    /// State of the NIC, in the words of the pairing rules.
    pub state: String,
    /// The path on which frames leave.
    pub path: &'static str,
}

/// The totals of a run.
#[derive(Clone, Debug, Serialize)]
pub struct Summary {
    /// Number of NICs.
    pub nics: usize,
    /// The pairs at the end.
    pub pairs: Vec<PairLine>,
    /// Bytes that the transfers carried.
    pub bytes: u64,
    /// Whether every transfer arrived as it was sent; `null` without transfers.
    pub digest_ok: Option<bool>,
    /// Completed switches to a VF.
    pub switches_to_vf: u64,
    /// Completed switches to the synthetic path.
    pub switches_to_synthetic: u64,
    /// Frames that the guest sent on VFs.
    pub frames_vf: u64,
    /// Frames that the guest sent on synthetic paths.
    pub frames_synthetic: u64,
    /// Frames, both directions, that went missing although every removal they could have met was orderly.
    pub frames_lost_orderly: u64,
    /// Frames, both directions, that perished in VFs torn away; those of the guest were sent again.
    pub frames_perished_surprise: u64,
    /// Of these, the guest's.
    pub frames_perished_sent: u64,
    /// Frames sent again on a synthetic path because a VF never confirmed them.
    pub frames_resent: u64,
    /// Frames that arrived more than once.
    pub frames_duplicated: u64,
    /// How long switches kept frames waiting.
    pub blackouts: BlackoutLine,
    /// What each NIC counted.
    pub counters: Vec<NicLine>,
    /// VFs that the host took back in order.
    pub ejects: u64,
    /// VFs that the host tore away.
    pub surprises: u64,
    /// The run's own time.
    pub virtual_seconds: f64,
    /// Time that passed outside.
    pub wall_seconds: f64,
}

/// [`Summary`] as a line of JSON.
#[derive(Debug, Serialize)]
#[serde(tag = "event", rename = "summary")]
pub struct SummaryLine<'a> {
    /// The totals.
    #[serde(flatten)]
    pub summary: &'a Summary,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_one_flat_json_object() {
        let event = Event {
            at: Instant::from_nanos(1_234_567_891),
            what: What::Associated { nic: 1, serial: Serial(7) },
        };
        assert_eq!(
            serde_json::to_string(&event).unwrap(),
            r#"{"t":1.234567,"event":"associated","nic":1,"serial":7}"#
        );
        assert_eq!(event.to_string(), "    1.234567 nic1: the host names serial 7 for its VF");
    }

    #[test]
    fn paths_have_one_word_each() {
        let event = What::Path { nic: 0, path: Path::Vf, why: "carrier".into() };
        assert_eq!(
            serde_json::to_string(&event).unwrap(),
            r#"{"event":"path","nic":0,"path":"vf","why":"carrier"}"#
        );
    }
}

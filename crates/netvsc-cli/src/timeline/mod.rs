//! A picture of one run: what happened to every NIC over the run's time, for people who would rather look than read.

mod draw;
#[cfg(test)]
mod tests;
mod xml;

use std::fs::File;
use std::io::Write;
use std::path::{Path as FilePath, PathBuf};
use std::time::Duration;

use netvsc::Path;
use vmbus::{Guid, Instant};

use crate::error::Error;
use crate::event::{Event, What};

/// Frames sent within so long are counted together, in nanoseconds: what is kept grows with the run's time and not with its frames.
const GRAIN: u64 = 100_000;

/// What a mark stands for. The order is that of their weight: a cluster looks like its heaviest mark.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    /// A decision of pairing.
    Pair,
    /// The host does something.
    Act,
    /// The host names a serial, or takes it back.
    Association,
    /// A function arrived or left.
    Function,
    /// The host wants a function back, or gets it.
    Eject,
    /// Something failed, is late, or went missing.
    Fault,
}

#[derive(Clone, Debug)]
struct Mark {
    at: Instant,
    kind: Kind,
    text: String,
}

/// From then on frames leave there, or nowhere.
#[derive(Clone, Debug)]
struct Turn {
    at: Instant,
    path: Option<Path>,
    why: String,
}

/// No path took frames.
#[derive(Clone, Debug)]
struct Blackout {
    from: Instant,
    to: Instant,
    pushed_back: u64,
}

/// Frames sent within one grain.
#[derive(Clone, Copy, Debug, Default)]
struct Sent {
    grain: u64,
    vf: u64,
    synthetic: u64,
}

#[derive(Clone, Debug, Default)]
struct Lane {
    turns: Vec<Turn>,
    blackouts: Vec<Blackout>,
    marks: Vec<Mark>,
    sent: Vec<Sent>,
    /// What was counted last: on VFs, on the synthetic path.
    counted: [u64; 2],
}

/// What the head of the picture says.
#[derive(Clone, Debug)]
pub(crate) struct Heading {
    /// Which run it is.
    pub(crate) title: String,
    /// What came of it.
    pub(crate) verdict: Result<(), String>,
    /// Its figures, a line each.
    pub(crate) figures: Vec<String>,
}

/// Takes down what happens in a run.
#[derive(Clone, Debug)]
pub(crate) struct Recorder {
    lanes: Vec<Lane>,
    /// What concerns no NIC.
    system: Lane,
    /// The virtual PCI bus of each NIC's VF.
    buses: Vec<Guid>,
    end: Instant,
}

impl Recorder {
    /// For as many NICs as there are `buses`: those that their VFs come on.
    pub(crate) fn new(buses: Vec<Guid>) -> Self {
        let lanes = vec![Lane::default(); buses.len()];
        Self { lanes, system: Lane::default(), buses, end: Instant::ZERO }
    }

    /// Something happened.
    pub(crate) fn event(&mut self, event: &Event) {
        self.end = self.end.max(event.at);
        let (kind, nic) = match &event.what {
            What::Host { .. } | What::Connected { .. } | What::Ignored { .. } => return,
            What::NicOffered { .. } | What::TransferDone { .. } | What::Statistics { .. } => return,
            // Runs with a host in another process are not drawn.
            What::Listening { .. } | What::GuestArrived { .. } => return,
            What::GuestLeft { .. } | What::HostLeft { .. } => return,
            What::NicReady { nic, .. } => {
                return self.turn(*nic, event, Some(Path::Synthetic), "the NIC is ready");
            }
            What::Path { nic, path, why } => return self.turn(*nic, event, Some(*path), why),
            What::Resumed { nic, blackout, pushed_back, .. } => {
                return self.resumed(*nic, event.at, *blackout, *pushed_back);
            }
            What::NicGone { nic, .. } => {
                self.turn(*nic, event, None, "the NIC is gone");
                (Kind::Fault, Some(*nic))
            }
            What::Associated { nic, .. } | What::Disassociated { nic } => {
                (Kind::Association, Some(*nic))
            }
            What::FunctionArrived { bus, .. } | What::FunctionLeft { bus, .. } => {
                (Kind::Function, self.nic_of(*bus))
            }
            What::EjectRequested { bus, .. } | What::EjectAnswered { bus, .. } => {
                (Kind::Eject, self.nic_of(*bus))
            }
            What::Paired { nic, .. } | What::Unpaired { nic, .. } => (Kind::Pair, Some(*nic)),
            What::Pairing { nic, .. } => (Kind::Pair, *nic),
            What::HostAction { nic, .. } | What::Address { nic, .. } => (Kind::Act, Some(*nic)),
            What::Resent { nic, .. } => (Kind::Fault, Some(*nic)),
            What::Overdue { .. } | What::Failed { .. } => (Kind::Fault, None),
        };
        let mark = Mark { at: event.at, kind, text: event.what.to_string() };
        let lane = nic.and_then(|nic| self.lanes.get_mut(nic)).unwrap_or(&mut self.system);
        lane.marks.push(mark);
    }

    fn nic_of(&self, bus: Guid) -> Option<usize> {
        self.buses.iter().position(|known| *known == bus)
    }

    fn turn(&mut self, nic: usize, event: &Event, path: Option<Path>, why: &str) {
        if let Some(lane) = self.lanes.get_mut(nic) {
            lane.turns.push(Turn { at: event.at, path, why: why.into() });
        }
    }

    fn resumed(&mut self, nic: usize, to: Instant, blackout: Duration, pushed_back: u64) {
        let length = u64::try_from(blackout.as_nanos()).unwrap_or(u64::MAX);
        let from = Instant::from_nanos(to.as_nanos().saturating_sub(length));
        if let Some(lane) = self.lanes.get_mut(nic) {
            lane.blackouts.push(Blackout { from, to, pushed_back });
        }
    }

    /// So many frames a NIC has sent until now, in all.
    pub(crate) fn sent(&mut self, nic: usize, now: Instant, vf: u64, synthetic: u64) {
        self.end = self.end.max(now);
        let Some(lane) = self.lanes.get_mut(nic) else { return };
        let [had_vf, had_synthetic] = std::mem::replace(&mut lane.counted, [vf, synthetic]);
        let (vf, synthetic) = (vf.saturating_sub(had_vf), synthetic.saturating_sub(had_synthetic));
        if vf + synthetic == 0 {
            return;
        }
        let grain = now.as_nanos() / GRAIN;
        match lane.sent.last_mut() {
            Some(last) if last.grain == grain => {
                last.vf += vf;
                last.synthetic += synthetic;
            }
            _ => lane.sent.push(Sent { grain, vf, synthetic }),
        }
    }

    /// The picture, as the text of an SVG file.
    pub(crate) fn picture(&self, heading: &Heading) -> String {
        draw::picture(self, heading)
    }
}

/// The file that a picture goes to, made before the run so that a bad name costs no run.
#[derive(Debug)]
pub(crate) struct Target {
    path: PathBuf,
    file: File,
}

impl Target {
    /// Makes the file; one that is there is replaced.
    ///
    /// # Errors
    /// If it cannot be written to.
    pub(crate) fn create(path: &FilePath) -> Result<Self, Error> {
        let path = path.to_owned();
        match File::create(&path) {
            Ok(file) => Ok(Self { path, file }),
            Err(source) => Err(Error::Timeline { path, source }),
        }
    }

    /// Writes the picture.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub(crate) fn write(mut self, recorder: &Recorder, heading: &Heading) -> Result<(), Error> {
        let text = recorder.picture(heading);
        let written = self.file.write_all(text.as_bytes());
        written.map_err(|source| Error::Timeline { path: self.path, source })
    }
}

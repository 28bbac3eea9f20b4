//! What the kernel log alone tells of the past.

use std::collections::BTreeMap;

use netvsc::port::Path;
use vmbus::{Guid, Instant};

use super::change::{Change, Subject, What};
use super::moment;
use crate::inventory::{self, LogEvent, Snapshot};

/// What was going on with one NIC.
#[derive(Default)]
struct Past {
    path_since: Option<Instant>,
    path: Option<Path>,
    vf: Option<(String, Instant)>,
    without: Option<Instant>,
}

/// The changes that the kernel log of a snapshot tells, oldest first: associations, VFs that came and went, switches of
/// the path. States need more than the log, so there are none.
#[must_use]
pub fn history(snapshot: &Snapshot) -> Vec<Change> {
    let mut all: BTreeMap<Guid, Past> = BTreeMap::new();
    let mut changes = Vec::new();
    for line in &snapshot.log.lines {
        let inventory::Subject::Vmbus(guid) = line.subject else { continue };
        let at = moment(line.at);
        let past = all.entry(guid).or_default();
        let Some(what) = past.step(&line.event, at) else { continue };
        let link = snapshot.link_of(guid);
        let subject = Subject {
            name: link.map_or_else(|| guid.to_string(), |link| link.name.clone()),
            guid: Some(guid),
            index: link.and_then(|link| link.index),
        };
        changes.push(Change { at, subject: Some(subject), what });
    }
    changes
}

impl Past {
    fn step(&mut self, event: &LogEvent, at: Instant) -> Option<What> {
        match event {
            LogEvent::Associated(serial) => Some(What::Associated { serial: Some(serial.0) }),
            LogEvent::Dissociated(_) => Some(What::Associated { serial: None }),
            LogEvent::Registering(vf) => {
                let after = self.without.take().map(|since| at - since);
                self.vf = Some((vf.clone(), at));
                Some(What::VfBack { vf: vf.clone(), pci: None, after })
            }
            LogEvent::Unregistering(vf) => {
                let after = self.vf.take().map(|(_, since)| at - since);
                self.without = Some(at);
                Some(What::VfGone { vf: vf.clone(), pci: None, after })
            }
            LogEvent::SwitchedToVf => self.switch(Path::Vf, at),
            LogEvent::SwitchedFromVf => self.switch(Path::Synthetic, at),
            _ => None,
        }
    }

    fn switch(&mut self, to: Path, at: Instant) -> Option<What> {
        // The kernel says it once more when the VF goes.
        if self.path.replace(to) == Some(to) {
            return None;
        }
        let after = self.path_since.replace(at).map(|since| at - since);
        Some(What::Path { to, after })
    }
}

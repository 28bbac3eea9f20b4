//! The machine that turns news into changes.

use std::collections::{BTreeMap, VecDeque};
use std::mem::{Discriminant, discriminant};
use std::time::Duration;

use netvsc::port::Path;
use vmbus::{Guid, Instant};

use super::change::{Change, Subject, What};
use super::{News, Told, moment};
use crate::inventory::{
    self, KernelLog, LogEvent, LogLine, NetDevice, Parent, PciAddress, Snapshot, SoftKind,
};
use crate::netlink::Link;
use crate::relation::{Relations, State};

/// So many lines of the kernel log are kept for sure. Of older ones, the newest of each kind about each device.
const LINES: usize = 512;

/// A NIC as it was last seen.
#[derive(Clone, Debug)]
struct Nic {
    subject: Subject,
    state: State,
    /// Since when it is in that state; none if nobody saw it begin.
    since: Option<Instant>,
    path: Option<Path>,
    path_since: Option<Instant>,
    vf: Option<Vf>,
    /// Since when it has that VF, or has none.
    vf_since: Option<Instant>,
}

/// A VF as it was last seen. It is the same one as long as number and function are.
#[derive(Clone, Debug)]
struct Vf {
    index: Option<u32>,
    pci: PciAddress,
    name: String,
}

/// An interface as it was last seen.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Shown {
    name: String,
    up: Option<bool>,
    nic: bool,
}

/// The machine.
#[derive(Clone, Debug)]
pub struct Watch {
    snapshot: Snapshot,
    nics: BTreeMap<Guid, Nic>,
    links: BTreeMap<u32, Shown>,
    changes: VecDeque<Change>,
}

impl Watch {
    /// Begins with a snapshot. What is there is told as [`What::Present`].
    #[must_use]
    pub fn new(snapshot: Snapshot, now: Instant) -> Self {
        let (nics, changes) = (BTreeMap::new(), VecDeque::new());
        let mut watch = Self { snapshot, nics, links: BTreeMap::new(), changes };
        watch.prune();
        watch.nics = watch.seen();
        watch.links = watch.shown();
        for nic in watch.nics.values() {
            let vf = nic.vf.as_ref().map(|vf| vf.name.clone());
            let what = What::Present { state: nic.state, vf, since: nic.since };
            watch.changes.push_back(Change { at: now, subject: Some(nic.subject.clone()), what });
        }
        watch
    }

    /// The guest as it is known now.
    #[must_use]
    pub const fn snapshot(&self) -> &Snapshot {
        &self.snapshot
    }

    /// A NIC that will not stay as it is: one for which a VF is on its way, and only where there is none such, one of which nobody can
    /// tell ([`State::Unknown`]). Who is accelerated, or has no VF to wait for, stays.
    #[must_use]
    pub fn unsettled(&self) -> Option<(&str, State)> {
        let moves = |nic: &&Nic| !matches!(nic.state, State::Accelerated | State::Synthetic);
        let open = self.nics.values().filter(moves);
        let nic = open.min_by_key(|nic| nic.state == State::Unknown)?;
        Some((nic.subject.name.as_str(), nic.state))
    }

    /// The next change.
    pub fn poll_change(&mut self) -> Option<Change> {
        self.changes.pop_front()
    }

    /// Takes news in. Nothing is compared before [`settle`](Self::settle).
    pub fn tell(&mut self, news: News) -> Told {
        match news {
            News::Link(link) => return self.link(&link),
            News::LinkGone(index) => self.link_gone(index),
            News::Said(line) => {
                self.associated(&line);
                self.snapshot.log.lines.push(line);
                self.prune();
            }
            News::LogLost(records) => {
                self.snapshot.log.lost = self.snapshot.log.lost.saturating_add(records);
                self.snapshot.log.complete = false;
            }
            News::Devices => return Told::LookAgain,
        }
        Told::Taken
    }

    /// Goes on with another snapshot of the same guest; with the reason, if events were lost. The kernel log is kept: a
    /// snapshot for this is [taken](inventory::take_without_log) without one.
    pub fn replace(&mut self, snapshot: Snapshot, lost: Option<&'static str>, now: Instant) {
        let log = std::mem::take(&mut self.snapshot.log);
        self.snapshot = Snapshot { log, ..snapshot };
        if let Some(lost) = lost {
            let what = What::Resynchronised { lost };
            self.changes.push_back(Change { at: now, subject: None, what });
        }
        self.settle(now);
    }

    /// Compares what is with what was.
    pub fn settle(&mut self, now: Instant) {
        self.settle_links(now);
        let before = std::mem::take(&mut self.nics);
        let mut after = self.seen();
        for (guid, old) in &before {
            if !after.contains_key(guid) {
                self.change(now, &old.subject, What::Gone { state: old.state });
            }
        }
        for (guid, nic) in &mut after {
            match before.get(guid) {
                Some(old) => self.compare(old, nic, now),
                None => {
                    (nic.since, nic.path_since, nic.vf_since) = (Some(now), Some(now), Some(now));
                    self.change(now, &nic.subject.clone(), What::Arrived { state: nic.state });
                }
            }
        }
        self.nics = after;
    }

    fn change(&mut self, at: Instant, subject: &Subject, what: What) {
        self.changes.push_back(Change { at, subject: Some(subject.clone()), what });
    }

    /// What the host says is a change by itself: between two looks it may take back what it said.
    fn associated(&mut self, line: &LogLine) {
        let serial = match line.event {
            LogEvent::Associated(serial) => Some(serial.0),
            LogEvent::Dissociated(_) => None,
            _ => return,
        };
        let inventory::Subject::Vmbus(guid) = line.subject else { return };
        let name = self.snapshot.link_of(guid);
        let subject = Subject {
            name: name.map_or_else(|| guid.to_string(), |link| link.name.clone()),
            guid: Some(guid),
            index: name.and_then(|link| link.index),
        };
        self.change(moment(line.at), &subject, What::Associated { serial });
    }

    fn compare(&mut self, old: &Nic, nic: &mut Nic, now: Instant) {
        let subject = nic.subject.clone();
        let lasted = |since: Option<Instant>| since.map(|since| now - since);
        let same = |a: &Vf, b: &Vf| (a.index, a.pci) == (b.index, b.pci);
        nic.vf_since = old.vf_since;
        match (&old.vf, &nic.vf) {
            (None, None) => {}
            (Some(before), Some(after)) if same(before, after) => {}
            (before, after) => {
                nic.vf_since = Some(now);
                let mut since = lasted(old.vf_since);
                if let Some(Vf { name, pci, .. }) = before {
                    let what = What::VfGone { vf: name.clone(), pci: Some(*pci), after: since };
                    self.change(now, &subject, what);
                    since = Some(Duration::ZERO);
                }
                if let Some(Vf { name, pci, .. }) = after {
                    let what = What::VfBack { vf: name.clone(), pci: Some(*pci), after: since };
                    self.change(now, &subject, what);
                }
            }
        }
        nic.path_since = old.path_since;
        match (old.path, nic.path) {
            (before, after) if before == after => {}
            (before, after) => {
                nic.path_since = Some(now);
                // The way is known now and was not before: that is no switch.
                if let (Some(_), Some(to)) = (before, after) {
                    self.change(now, &subject, What::Path { to, after: lasted(old.path_since) });
                }
            }
        }
        nic.since = old.since;
        if old.state != nic.state {
            nic.since = Some(now);
            let (from, to, after) = (old.state, nic.state, lasted(old.since));
            let obstacle = self.obstacle(&subject);
            self.change(now, &subject, What::State { from, to, after, obstacle });
        }
    }

    fn obstacle(&self, subject: &Subject) -> Option<String> {
        let relations = Relations::of(&self.snapshot);
        let nic = relations.nics.iter().find(|nic| Some(nic.device.guid) == subject.guid)?;
        nic.obstacle.map(|obstacle| obstacle.to_string())
    }

    /// The NICs as they are now.
    fn seen(&self) -> BTreeMap<Guid, Nic> {
        let relations = Relations::of(&self.snapshot);
        let nics = relations.nics.iter().map(|nic| {
            let port = relations.vf(nic).filter(|_| nic.joined);
            let since = nic.since.map(moment);
            let subject = Subject {
                name: nic.name(),
                guid: Some(nic.device.guid),
                index: nic.link.and_then(|link| link.index),
            };
            let vf = port.map(|port| Vf {
                index: port.link.index,
                pci: port.function.address,
                name: port.link.name.clone(),
            });
            let accelerated = since.filter(|_| nic.state == State::Accelerated);
            let (state, path) = (nic.state, nic.path);
            let seen = Nic {
                subject,
                state,
                since: accelerated,
                path,
                path_since: since,
                vf_since: None,
                vf,
            };
            (nic.device.guid, seen)
        });
        nics.collect()
    }

    fn shown(&self) -> BTreeMap<u32, Shown> {
        let links = self.snapshot.links.iter().filter_map(|link| {
            let nic = matches!(link.parent, Parent::Vmbus(_));
            Some((link.index?, Shown { name: link.name.clone(), up: link.is_up(), nic }))
        });
        links.collect()
    }

    fn settle_links(&mut self, now: Instant) {
        let before = std::mem::take(&mut self.links);
        let after = self.shown();
        let subject = |index: u32, shown: &Shown| {
            let guid = self.snapshot.links.iter().find(|link| link.index == Some(index));
            let guid = guid.and_then(|link| match link.parent {
                Parent::Vmbus(guid) => Some(guid),
                _ => None,
            });
            Subject { name: shown.name.clone(), guid, index: Some(index) }
        };
        let mut changes = Vec::new();
        for (index, old) in before.iter().filter(|(index, _)| !after.contains_key(index)) {
            // NICs are told by what becomes of their offers.
            if !old.nic {
                changes.push((subject(*index, old), What::LinkGone));
            }
        }
        for (index, new) in &after {
            let subject = subject(*index, new);
            let Some(old) = before.get(index) else {
                if !new.nic {
                    changes.push((subject, What::LinkArrived));
                }
                continue;
            };
            if old.name != new.name {
                changes.push((subject.clone(), What::Renamed { from: old.name.clone() }));
            }
            if let (Some(was), Some(up)) = (old.up, new.up)
                && was != up
            {
                changes.push((subject, What::Up { up }));
            }
        }
        self.links = after;
        for (subject, what) in changes {
            self.changes.push_back(Change { at: now, subject: Some(subject), what });
        }
    }

    fn link(&mut self, told: &Link) -> Told {
        let at = self.snapshot.links.iter().position(|link| link.index == Some(told.index));
        let at = match at {
            Some(at) => at,
            // One made by software is all that netlink says; of hardware there is more to know.
            None if told.made.is_some() && told.parent.is_none() => {
                self.snapshot.links.push(software(told));
                self.snapshot.links.len() - 1
            }
            None => return Told::LookAgain,
        };
        let name_of = |links: &[NetDevice], index| {
            let master = links.iter().find(|link| link.index == Some(index));
            master.map(|link| link.name.clone())
        };
        let master = told.master.map(|index| name_of(&self.snapshot.links, index));
        let Some(link) = self.snapshot.links.get_mut(at) else { return Told::LookAgain };
        let old = std::mem::replace(&mut link.name, told.name.clone());
        link.take(told);
        if old != told.name {
            self.rename(&old, &told.name);
        }
        match master {
            // Its master is one that was never told.
            Some(None) => Told::LookAgain,
            Some(Some(master)) => {
                self.enslave(&told.name, Some(&master));
                Told::Taken
            }
            None => {
                self.enslave(&told.name, None);
                Told::Taken
            }
        }
    }

    /// What others call it.
    fn rename(&mut self, from: &str, to: &str) {
        for link in &mut self.snapshot.links {
            let names = link.lowers.iter_mut().chain(&mut link.uppers).chain(&mut link.master);
            for name in names.filter(|name| *name == from) {
                to.clone_into(name);
            }
        }
    }

    fn enslave(&mut self, name: &str, master: Option<&str>) {
        for link in &mut self.snapshot.links {
            if link.name == name {
                let before = link.master.take();
                link.uppers.retain(|upper| Some(upper) != before.as_ref());
                link.master = master.map(str::to_owned);
                link.uppers.extend(master.map(str::to_owned));
            } else {
                link.lowers.retain(|lower| lower != name);
                if Some(link.name.as_str()) == master {
                    link.lowers.push(name.to_owned());
                }
            }
        }
    }

    fn link_gone(&mut self, index: u32) {
        let Some(at) = self.snapshot.links.iter().position(|link| link.index == Some(index)) else {
            return;
        };
        let gone = self.snapshot.links.remove(at);
        for link in &mut self.snapshot.links {
            link.lowers.retain(|name| *name != gone.name);
            link.uppers.retain(|name| *name != gone.name);
            link.master = link.master.take().filter(|name| *name != gone.name);
        }
    }

    /// Lets old lines go that newer ones have made pointless.
    fn prune(&mut self) {
        let KernelLog { lines, .. } = &mut self.snapshot.log;
        if lines.len() < 2 * LINES {
            return;
        }
        let recent = lines.len() - LINES;
        let mut kept: Vec<(inventory::Subject, Discriminant<LogEvent>)> = Vec::new();
        let mut keep = vec![true; lines.len()];
        for (at, line) in lines.iter().enumerate().rev() {
            let key = (line.subject, discriminant(&line.event));
            let known = kept.contains(&key);
            if !known {
                kept.push(key);
            }
            if let Some(keep) = keep.get_mut(at) {
                *keep = at >= recent || !known;
            }
        }
        let mut keep = keep.into_iter();
        lines.retain(|_| keep.next().unwrap_or(true));
    }
}

/// An interface made by software, as netlink tells it.
fn software(link: &Link) -> NetDevice {
    let soft = link.made.as_deref().map_or(SoftKind::Other, SoftKind::made);
    NetDevice::software(link.index, link.name.clone(), soft)
}
